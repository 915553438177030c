"""The factor stage: Kronecker factors fitted to a random sample of the rows, and EK-FAC's eigenvalues in a second pass.

The sample is cut into groups by its size alone; each group's sums are a file, so that an interrupted build sums only
the groups it lacks, and they are merged in order, so that any number of workers gives the same bytes. Once merged, the
partial sums are removed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from distributed import Client

from influence.axes import ModuleColumns
from influence.curvature.covariance import CovarianceSums, FactorSettings, ModuleWidths
from influence.curvature.damping import Damping
from influence.curvature.ekfac import EigenvalueSums
from influence.curvature.kfac import Eigenbasis, KroneckerCurvature, kfac_eigenvalues
from influence.pipeline.decomposition import MergeTask, Pass, cut_modules, run_merge
from influence.pipeline.factor_group import FactorTask, run_group
from influence.pipeline.plan import factor_groups
from influence.pipeline.progress import Stage
from influence.pipeline.spec import CaptureSpec, FactorFiles
from influence.pipeline.submit import run_tasks
from influence.pipeline.tensors import load_all, remove_tensors, saved_for
from influence.recipe import Recipe
from influence.store.manifest import Manifest, fingerprint_of

FOLDER = "curvature"


def factor_file(run_dir: Path, manifest: Manifest, recipe: Recipe) -> FactorFiles | None:
    """Return where the run's factors are or will be; None for a recipe that needs none."""
    if not recipe.needs_factors:
        return None
    shared = ("model", "tokeniser", "data", "task.", "cluster.")
    parts = {key: value for key, value in manifest.fingerprint_parts.items() if key.startswith(shared)}
    parts |= {f"factors.{key}": value for key, value in recipe.factors.model_dump(mode="json").items()}
    count = len(cut_modules(module_widths(manifest.modules)))
    return FactorFiles(folder=run_dir / FOLDER, parts=count, fingerprint=fingerprint_of(parts), settings=recipe.factors)


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
    wanted = [*held.bases, *(held.eigenvalues if recipe.corrects_eigenvalues else ())]
    return all(saved_for(path, held.fingerprint) for path in wanted)


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
    if _fit_pass(client, spec, run_dir, manifest, held, "covariance", stage):
        for path in held.eigenvalues:
            remove_tensors(path)
    if recipe.corrects_eigenvalues:
        _fit_pass(client, spec, run_dir, manifest, held, "eigenvalues", stage)


def _fit_pass(
    client: Client, spec: CaptureSpec, run_dir: Path, manifest: Manifest, held: FactorFiles, kind: Pass, stage: Stage
) -> bool:
    """Make what is missing of one pass: the groups' sums, then what they are merged to. Returns whether any was."""
    groups = _tasks(spec, run_dir, manifest, held, kind)
    paths = held.bases if kind == "covariance" else held.eigenvalues
    partials, modules = tuple(group.path for group in groups), cut_modules(module_widths(manifest.modules))
    merges = [
        MergeTask(kind, part, held.settings, partials, path, held.fingerprint, spec.threads)
        for part, path in zip(modules, paths, strict=True)
    ]
    todo = [merge for merge in merges if not saved_for(merge.path, held.fingerprint)]
    if todo:
        _run(client, groups, stage)
        for _ in run_tasks(client, run_merge, todo, lambda task: task.name, stage):
            stage.finished()
    for path in partials:
        remove_tensors(path)
    return bool(todo)


def factor_steps(run_dir: Path, manifest: Manifest, recipe: Recipe) -> int:
    """Return how many groups all passes have together."""
    held = factor_file(run_dir, manifest, recipe)
    if held is None:
        return 0
    return (len(_groups(manifest, held.settings)) + held.parts) * (1 + recipe.corrects_eigenvalues)


def load_basis(run_dir: Path, manifest: Manifest, recipe: Recipe) -> Eigenbasis:
    """Return the eigenbasis of the run's factors.

    Raises:
        DigestMismatch: It is missing, damaged, or of another fit.
    """
    held = factor_file(run_dir, manifest, recipe)
    assert held is not None, "a recipe without factors has no eigenbasis"
    tensors = load_all(held.bases, held.fingerprint)
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
    squares = EigenvalueSums.from_tensors(names, load_all(held.eigenvalues, held.fingerprint))
    return KroneckerCurvature.prepare(basis, squares.eigenvalues(), damping)


def _tasks(
    spec: CaptureSpec, run_dir: Path, manifest: Manifest, held: FactorFiles, kind: Pass
) -> tuple[FactorTask, ...]:
    groups = _groups(manifest, held.settings)
    return tuple(
        FactorTask(spec, held, kind, number, len(groups), tuple(group.tolist())) for number, group in enumerate(groups)
    )


def _groups(manifest: Manifest, settings: FactorSettings) -> list[np.ndarray]:
    """Cut the sample into consecutive groups."""
    sample = sampled_rows(manifest.rows, settings)
    return np.array_split(sample, factor_groups(len(sample), manifest.modules))


def _run(client: Client, tasks: Sequence[FactorTask], stage: Stage) -> None:
    todo = [task for task in tasks if not saved_for(task.path, task.factors.fingerprint)]
    for _ in tasks[len(todo) :]:
        stage.finished()
    for rows in run_tasks(client, run_group, todo, lambda task: task.name, stage):
        stage.finished(rows=rows)


def module_widths(modules: Sequence[ModuleColumns]) -> tuple[ModuleWidths, ...]:
    """Return the sides of a run's modules."""
    return tuple(ModuleWidths(module.name, module.inputs, module.outputs) for module in modules)
