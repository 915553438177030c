"""The factor stage: Kronecker factors fitted to a random sample of the rows, and EK-FAC's eigenvalues in a second pass.

The sample is cut into groups by its size alone; each group's sums are a file, so that an interrupted build sums only
the groups it lacks, and they are merged in order, so that any number of workers gives the same bytes. Once merged, the
partial sums are removed. Of several checkpoints each has factors of its own, fitted to the same rows, one checkpoint
after another: a worker changes its weights once, and one checkpoint's partial sums are on the disk at a time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from distributed import Client

from influence.artifacts.tensors import load_all, remove_tensors, saved_for
from influence.axes import ModuleColumns
from influence.capture.cut import factor_groups
from influence.capture.factor_files import cut_modules, factor_files, module_widths
from influence.capture.spec import CaptureSpec, FactorFiles
from influence.curvature.covariance import CovarianceSums, FactorSettings, ModuleWidths
from influence.curvature.damping import Damping
from influence.curvature.ekfac import EigenvalueSums
from influence.curvature.kfac import Eigenbasis, KroneckerCurvature, kfac_eigenvalues
from influence.engine.poison import run_surviving
from influence.engine.progress import Progress
from influence.engine.submit import run_tasks
from influence.recipes import Recipe
from influence.stages.decomposition import MergeTask, Pass, run_merge
from influence.stages.factor_group import FactorTask, run_group, try_group
from influence.store.manifest import Manifest
from influence.store.reader import Store
from influence.vectors.ensemble import of_one


def check_widths(modules: Sequence[ModuleColumns], recipe: Recipe) -> None:
    """Refuse layers whose factors would be too wide, before anything is written.

    Raises:
        CurvatureError: A side is over the limit; the module is named.
    """
    if recipe.needs_factors:
        CovarianceSums(module_widths(modules, recipe), recipe.factors)


def sampled_rows(rows: int, settings: FactorSettings) -> np.ndarray:
    """Return the rows that factors are fitted to, int64, ascending: a random sample, or all."""
    if settings.rows is None or settings.rows >= rows:
        return np.arange(rows)
    generator = np.random.Generator(np.random.Philox(key=settings.seed))
    return np.sort(generator.choice(rows, size=settings.rows, replace=False))


def factors_stand(run_dir: Path, manifest: Manifest, recipe: Recipe) -> bool:
    """Whether what the recipe needs of the factors is there to be loaded."""
    return all(
        saved_for(path, held.fingerprint)
        for held in factor_files(run_dir, manifest, recipe)
        for path in (*held.bases, *(held.eigenvalues if recipe.corrects_eigenvalues else ()))
    )


def fit_factors(
    client: Client, spec: CaptureSpec, run_dir: Path, manifest: Manifest, recipe: Recipe, stage: Progress
) -> None:
    """Fit what is missing of each checkpoint: covariances and their eigenbasis, then, for EK-FAC, its eigenvalues.

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
    sampled, modules = _groups(manifest, recipe), cut_modules(module_widths(manifest.modules, recipe))
    for held in factor_files(run_dir, manifest, recipe):
        if _fit_pass(client, spec, sampled, modules, held, "covariance", stage):
            for path in held.eigenvalues:
                remove_tensors(path)
        if recipe.corrects_eigenvalues:
            _fit_pass(client, spec, sampled, modules, held, "eigenvalues", stage)


def _fit_pass(
    client: Client,
    spec: CaptureSpec,
    sampled: Sequence[np.ndarray],
    modules: Sequence[tuple[ModuleWidths, ...]],
    held: FactorFiles,
    kind: Pass,
    stage: Progress,
) -> bool:
    """Make what is missing of one pass: the groups' sums, then what they are merged to. Returns whether any was."""
    groups = _tasks(spec, sampled, held, kind)
    paths = held.bases if kind == "covariance" else held.eigenvalues
    partials = tuple(group.path for group in groups)
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
    """Return how many groups and merges all passes over all checkpoints have together."""
    found = factor_files(run_dir, manifest, recipe)
    groups = len(_groups(manifest, recipe))
    return sum(groups + held.parts for held in found) * (1 + recipe.corrects_eigenvalues)


def load_basis(run_dir: Path, manifest: Manifest, recipe: Recipe, checkpoint: int = 0) -> Eigenbasis:
    """Return the eigenbasis of the run's factors, of one of the recipe's checkpoints where it names some.

    Raises:
        DigestMismatch: It is missing, damaged, or of another fit.
    """
    held = factor_files(run_dir, manifest, recipe)[checkpoint]
    tensors = load_all(held.bases, held.fingerprint)
    return Eigenbasis.from_tensors(module_widths(manifest.modules, recipe), held.settings, tensors)


def load_kronecker(
    run_dir: Path, manifest: Manifest, recipe: Recipe, kind: Literal["kfac", "ekfac"], damping: Damping
) -> KroneckerCurvature:
    """Return the run's K-FAC or EK-FAC under a damping, to be applied to whole gradients.

    Raises:
        DigestMismatch: A file of it is missing, damaged, or of another fit.
        CurvatureError: It is singular and the damping is 0.
    """
    basis = load_basis(run_dir, manifest, recipe)
    budget = manifest.rows * Store(run_dir).mean_loss() if damping.kind == "bounded" else None
    if kind == "kfac":
        return KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), damping, budget)
    (held,) = factor_files(run_dir, manifest, recipe)
    names = tuple(module.name for module in basis.modules)
    squares = EigenvalueSums.from_tensors(names, load_all(held.eigenvalues, held.fingerprint))
    return KroneckerCurvature.prepare(basis, squares.eigenvalues(), damping, budget)


def _tasks(spec: CaptureSpec, sampled: Sequence[np.ndarray], held: FactorFiles, kind: Pass) -> tuple[FactorTask, ...]:
    return tuple(
        FactorTask(spec, held, kind, number, len(sampled), tuple(group.tolist()))
        for number, group in enumerate(sampled)
    )


def _groups(manifest: Manifest, recipe: Recipe) -> list[np.ndarray]:
    """Cut the sample into consecutive groups, the same at every checkpoint."""
    sample = sampled_rows(manifest.rows, recipe.factors)
    return np.array_split(sample, factor_groups(len(sample), of_one(manifest.modules, len(recipe.checkpoints) or 1)))


def _run(client: Client, tasks: Sequence[FactorTask], stage: Progress) -> None:
    todo = [task for task in tasks if not saved_for(task.path, task.factors.fingerprint)]
    for _ in tasks[len(todo) :]:
        stage.finished()
    # What is left out of a sample isn't lost: the capture sets it aside by name, or ends the build.
    most = todo[0].spec.data.quarantine if todo else 0
    for rows in run_surviving(client, run_group, try_group, todo, lambda: most, stage):
        stage.finished(rows=rows)
