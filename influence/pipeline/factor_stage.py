"""The factor stage: Kronecker factors fitted to a random sample of the rows, and EK-FAC's eigenvalues in a second pass.

The sample is cut into groups by its size alone; each group's sums are a file, so that an interrupted build sums only
the groups it lacks, and they are merged in order, so that any number of workers gives the same bytes. Once merged, the
partial sums are removed.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from distributed import Client
from torch import Tensor

from influence.axes import ModuleColumns
from influence.curvature.covariance import CovarianceFit, CovarianceSums, FactorSettings, ModuleWidths
from influence.curvature.damping import Damping
from influence.curvature.ekfac import EigenvalueFit, EigenvalueSums
from influence.curvature.kfac import Eigenbasis, KroneckerCurvature, decompose, kfac_eigenvalues
from influence.data.batch import Batch, collate
from influence.data.example import place_of
from influence.data.tokenise import Part
from influence.errors import InfluenceError
from influence.pipeline.batches import cut, halved
from influence.pipeline.memory import out_of_memory
from influence.pipeline.plan import factor_groups
from influence.pipeline.progress import Stage
from influence.pipeline.session import Session
from influence.pipeline.spec import CaptureSpec, FactorFile
from influence.pipeline.submit import run_tasks
from influence.pipeline.tensors import load_tensors, remove_tensors, save_tensors, saved_for
from influence.pipeline.threads import torch_threads
from influence.pipeline.worker import session_here
from influence.recipe import Recipe
from influence.store.manifest import Manifest, fingerprint_of
from influence.task import fisher_loss

log = logging.getLogger(__name__)

FOLDER = "curvature"
Pass = Literal["covariance", "eigenvalues"]


@dataclass(frozen=True)
class FactorTask:
    """What a worker is sent: one group of sampled rows to sum over, in one of the two passes."""

    spec: CaptureSpec
    run_dir: Path
    factors: FactorFile
    kind: Pass
    number: int
    groups: int
    rows: tuple[int, ...]

    @property
    def path(self) -> Path:
        """The partial's file. Its name holds the number of groups: another cut gives other sums."""
        return self.run_dir / FOLDER / f"{self.kind}-{self.number:03d}-of-{self.groups:03d}.safetensors"

    @property
    def name(self) -> str:
        """The pass, the group and its rows, for messages."""
        return f"{self.kind} {self.number} of {self.groups} (rows {self.rows[0]} to {self.rows[-1]}, sampled)"


def factor_file(run_dir: Path, manifest: Manifest, recipe: Recipe) -> FactorFile | None:
    """Return where the run's factors are or will be; None for a recipe that needs none."""
    if not recipe.needs_factors:
        return None
    shared = ("model", "tokeniser", "data", "task.", "cluster.")
    parts = {key: value for key, value in manifest.fingerprint_parts.items() if key.startswith(shared)}
    parts |= {f"factors.{key}": value for key, value in recipe.factors.model_dump(mode="json").items()}
    path = run_dir / FOLDER / "factors.safetensors"
    return FactorFile(path=path, fingerprint=fingerprint_of(parts), settings=recipe.factors)


def check_widths(modules: Sequence[ModuleColumns], recipe: Recipe) -> None:
    """Refuse layers whose factors would be too wide, before anything is written.

    Raises:
        CurvatureError: A side is over the limit; the module is named.
    """
    if recipe.needs_factors:
        CovarianceSums(module_widths(modules), recipe.factors)


def sampled_rows(rows: int, settings: FactorSettings) -> np.ndarray:
    """Return the rows that factors are fitted to, int64, ascending: a random sample, or all."""
    if settings.rows is None or settings.rows >= rows:
        return np.arange(rows)
    generator = np.random.Generator(np.random.Philox(key=settings.seed))
    return np.sort(generator.choice(rows, size=settings.rows, replace=False))


def factors_stand(run_dir: Path, manifest: Manifest, recipe: Recipe) -> bool:
    """Whether what the recipe needs of the factors is there to be loaded."""
    held = factor_file(run_dir, manifest, recipe)
    if held is None:
        return True
    return saved_for(held.path, held.fingerprint) and (
        not recipe.corrects_eigenvalues or saved_for(_eigenvalue_path(held), held.fingerprint)
    )


def fit_factors(
    client: Client, spec: CaptureSpec, run_dir: Path, manifest: Manifest, recipe: Recipe, stage: Stage
) -> None:
    """Fit what is missing: the covariances and their eigenbasis, then, for EK-FAC, its eigenvalues.

    Args:
        client: Of the cluster, whose workers have the session plugin.
        spec: With dtype and device decided; its projection isn't used.
        run_dir: The run, in reach of every worker.
        manifest: Of the run.
        recipe: Of the run.
        stage: Hears of every group.

    Raises:
        InfluenceError: As a worker raised it; the message names the pass and the group.
        CurvatureError: A factor that isn't finite or is too wide; the module is named.
    """
    held = factor_file(run_dir, manifest, recipe)
    assert held is not None, "a recipe without factors has nothing to fit"
    widths = module_widths(manifest.modules)
    if not saved_for(held.path, held.fingerprint):
        remove_tensors(_eigenvalue_path(held))
        tasks = _tasks(spec, run_dir, manifest, held, "covariance")
        _run(client, tasks, stage)
        sums = CovarianceSums(widths, held.settings)
        for task in tasks:
            tensors = load_tensors(task.path, held.fingerprint)
            sums.merge(CovarianceSums.from_tensors(widths, held.settings, tensors))
        with torch_threads(spec.threads):
            basis = decompose(sums)
        save_tensors(held.path, basis.tensors(), held.fingerprint)
        _remove(tasks)
    if recipe.corrects_eigenvalues and not saved_for(_eigenvalue_path(held), held.fingerprint):
        tasks = _tasks(spec, run_dir, manifest, held, "eigenvalues")
        _run(client, tasks, stage)
        names = tuple(module.name for module in widths)
        squares = EigenvalueSums(names)
        for task in tasks:
            squares.merge(EigenvalueSums.from_tensors(names, load_tensors(task.path, held.fingerprint)))
        squares.eigenvalues()
        save_tensors(_eigenvalue_path(held), squares.tensors(), held.fingerprint)
        _remove(tasks)


def factor_steps(run_dir: Path, manifest: Manifest, recipe: Recipe) -> int:
    """Return how many groups all passes have together."""
    held = factor_file(run_dir, manifest, recipe)
    if held is None:
        return 0
    return len(_groups(manifest, held.settings)) * (1 + recipe.corrects_eigenvalues)


def load_basis(run_dir: Path, manifest: Manifest, recipe: Recipe) -> Eigenbasis:
    """Return the eigenbasis of the run's factors.

    Raises:
        DigestMismatch: It is missing, damaged, or of another fit.
    """
    held = factor_file(run_dir, manifest, recipe)
    assert held is not None, "a recipe without factors has no eigenbasis"
    tensors = load_tensors(held.path, held.fingerprint)
    return Eigenbasis.from_tensors(module_widths(manifest.modules), held.settings, tensors)


def load_kronecker(
    run_dir: Path, manifest: Manifest, recipe: Recipe, kind: Literal["kfac", "ekfac"], damping: Damping
) -> KroneckerCurvature:
    """Return the run's K-FAC or EK-FAC under a damping, to be applied to whole gradients.

    Raises:
        DigestMismatch: A file of it is missing, damaged, or of another fit.
        CurvatureError: It is singular and the damping is 0.
    """
    basis = load_basis(run_dir, manifest, recipe)
    if kind == "kfac":
        return KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), damping)
    held = factor_file(run_dir, manifest, recipe)
    assert held is not None, "a recipe without factors has no eigenvalues"
    names = tuple(module.name for module in basis.modules)
    squares = EigenvalueSums.from_tensors(names, load_tensors(_eigenvalue_path(held), held.fingerprint))
    return KroneckerCurvature.prepare(basis, squares.eigenvalues(), damping)


def run_group(task: FactorTask) -> int:
    """Sum over one group and save it; the entry point of a task. Returns the rows summed over."""
    try:
        with session_here(task.spec) as session:
            examples = [session.rows.example(row) for row in task.rows]
            parts = [part for part in session.tokenise(examples) if part.scored]
            with session.computing:
                sums = _summed(session, task, parts, [place_of(example) for example in examples])
        save_tensors(task.path, sums.tensors(), task.factors.fingerprint)
    except InfluenceError as error:
        raise type(error)(f"{task.name}: {error}") from error
    return len(task.rows)


def _summed(
    session: Session, task: FactorTask, parts: Sequence[Part], names: Sequence[str]
) -> CovarianceSums | EigenvalueSums:
    """Sum over parts; where memory runs out, anew with half the token budget, since a batch may be half added."""
    settings, budget = task.factors.settings, session.token_budget
    seeds = _label_seeds(parts, task)

    def loss(model: Any, batch: Any) -> Tensor:
        return fisher_loss(session.task, settings.labels, model, batch, settings.seed)

    while True:
        fit = _fit(session, task)
        session.set_hooks(fit)
        for chosen in cut(parts, budget, 1):
            batch = _with_draws(collate(chosen, session.pad), [seeds[id(part)] for part in chosen]).to(session.device)
            try:
                if isinstance(fit, CovarianceFit):
                    fit.add(loss, batch, batch.attention_mask)
                else:
                    fit.add(loss, batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                budget = halved(chosen, names, budget)
                break
        else:
            # Rows, as in a score's 1/N: some have no scored token, some are cut into several parts.
            fit.sums.examples = len(task.rows)
            return fit.sums


def _label_seeds(parts: Sequence[Part], task: FactorTask) -> dict[int, int]:
    """Return the seed of each part's labels, by the part's `id`: its row's own, however rows are batched."""
    before: Counter[int] = Counter()
    seeds = {}
    for part in parts:
        seeds[id(part)] = task.factors.settings.label_seed(task.rows[part.position], before[part.position])
        before[part.position] += 1
    return seeds


def _with_draws(batch: Batch, seeds: Sequence[int]) -> Batch:
    """Give each part of a batch the numbers that its labels are drawn with; more of them where it is padded longer."""
    longest = batch.input_ids.shape[1]
    drawn = [np.random.Generator(np.random.Philox(key=seed)).random(longest) for seed in seeds]
    return replace(batch, uniforms=torch.from_numpy(np.stack(drawn)))


def _fit(session: Session, task: FactorTask) -> CovarianceFit | EigenvalueFit:
    if task.kind == "covariance":
        return CovarianceFit(session.model, session.layers, task.factors.settings)
    tensors = load_tensors(task.factors.path, task.factors.fingerprint)
    widths = tuple(ModuleWidths(layer.name, layer.inputs, layer.outputs) for layer in session.layers)
    return EigenvalueFit(session.model, session.layers, Eigenbasis.from_tensors(widths, task.factors.settings, tensors))


def _tasks(
    spec: CaptureSpec, run_dir: Path, manifest: Manifest, held: FactorFile, kind: Pass
) -> tuple[FactorTask, ...]:
    groups = _groups(manifest, held.settings)
    return tuple(
        FactorTask(spec, run_dir, held, kind, number, len(groups), tuple(group.tolist()))
        for number, group in enumerate(groups)
    )


def _groups(manifest: Manifest, settings: FactorSettings) -> list[np.ndarray]:
    """Cut the sample into consecutive groups."""
    sample = sampled_rows(manifest.rows, settings)
    return np.array_split(sample, factor_groups(len(sample), manifest.modules))


def _run(client: Client, tasks: Sequence[FactorTask], stage: Stage) -> None:
    todo = [task for task in tasks if not saved_for(task.path, task.factors.fingerprint)]
    for _ in tasks[len(todo) :]:
        stage.finished()
    for rows in run_tasks(client, run_group, todo, lambda task: task.name):
        stage.finished(rows=rows)


def _remove(tasks: Sequence[FactorTask]) -> None:
    for task in tasks:
        remove_tensors(task.path)


def module_widths(modules: Sequence[ModuleColumns]) -> tuple[ModuleWidths, ...]:
    """Return the sides of a run's modules."""
    return tuple(ModuleWidths(module.name, module.inputs, module.outputs) for module in modules)


def _eigenvalue_path(held: FactorFile) -> Path:
    return held.path.with_name("eigenvalues.safetensors")
