"""The factor stage: Kronecker factors fitted to a random sample of the rows, and EK-FAC's eigenvalues in a second pass.

The sample is cut into groups by its size alone; each group's sums are a file, so that an interrupted build sums only
the groups it lacks, and they are merged in order, so that any number of workers gives the same bytes. Once merged, the
partial sums are removed. Of several checkpoints each has factors of its own, fitted to the same rows, one checkpoint
after another: a worker changes its weights once, and one checkpoint's partial sums are on the disk at a time.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from influence.artifacts.tensors import load_all, saved_for
from influence.axes import ModuleColumns
from influence.capture.cut import factor_groups
from influence.capture.factor_files import cut_modules, factor_files, module_widths
from influence.capture.spec import CaptureSpec
from influence.curvature.covariance import CovarianceSums, FactorSettings
from influence.curvature.damping import Damping
from influence.curvature.ekfac import EigenvalueSums
from influence.curvature.kfac import Eigenbasis, KroneckerCurvature, kfac_eigenvalues
from influence.engine.stage import Series, Stage
from influence.recipes import Recipe
from influence.stages.decomposition import FactorDecomposition
from influence.stages.factor_group import FactorPartials, Pass
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


class KroneckerFactors(Series):
    """What the recipe needs of the factors: of each checkpoint covariances, an eigenbasis and EK-FAC's eigenvalues."""

    name = "factors"

    def __init__(self, spec: CaptureSpec, run_dir: Path, manifest: Manifest, recipe: Recipe) -> None:
        """Set up.

        Args:
            spec: With dtype and device decided, and a projection without the factors.
            run_dir: The run, in reach of every worker.
            manifest: Of the run.
            recipe: Of the run.
        """
        self._spec, self._run_dir, self._manifest, self._recipe = spec, run_dir, manifest, recipe

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """Both passes and their decompositions, one checkpoint after another."""
        manifest, recipe = self._manifest, self._recipe
        sample, own = (
            sampled_rows(manifest.rows, recipe.factors),
            of_one(manifest.modules, len(recipe.checkpoints) or 1),
        )
        groups = tuple(np.array_split(sample, factor_groups(len(sample), own)))
        modules = tuple(cut_modules(module_widths(manifest.modules, recipe)))
        passes: tuple[Pass, ...] = ("covariance", "eigenvalues") if recipe.corrects_eigenvalues else ("covariance",)
        stages: list[Stage] = []
        for factors in factor_files(self._run_dir, manifest, recipe):
            for kind in passes:
                sums = FactorPartials(self._spec, factors, kind, groups)
                stages += [sums, FactorDecomposition(sums, modules)]
        return tuple(stages)

    def stands(self) -> bool:
        """Whether it is there to be loaded; the sample isn't drawn for that."""
        return factors_stand(self._run_dir, self._manifest, self._recipe)


def factors_stand(run_dir: Path, manifest: Manifest, recipe: Recipe) -> bool:
    """Whether what the recipe needs of the factors is there to be loaded."""
    return all(
        saved_for(path, held.fingerprint)
        for held in factor_files(run_dir, manifest, recipe)
        for path in (*held.bases, *(held.eigenvalues if recipe.corrects_eigenvalues else ()))
    )


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
