"""Scores of every query against every training example, in memory, for any torch model: for researchers and tests.

It shares the capture, the projection, the curvature and the comparison with the pipeline; only the store and the index
are left out. The rows of the whole training set are held at once: use `influence.build` for more than fits.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from influence.axes import ModuleColumns
from influence.curvature.covariance import CovarianceFit
from influence.curvature.ekfac import EigenvalueFit
from influence.curvature.kfac import Eigenbasis, KroneckerCurvature, decompose, kfac_eigenvalues, preconditioned
from influence.curvature.projected_fisher import FisherSums, ProjectedFisher, blocks_of
from influence.curvature.whitening import fold_for
from influence.errors import CaptureError
from influence.gradients.capture import Capture
from influence.gradients.hooks import Measure
from influence.gradients.inner_products import InnerProducts
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import LayerSettings, TrackedLayer, tracked_layers
from influence.recipe import Recipe
from influence.task import Task, fisher_loss, measurement
from influence.vectors.whiten import Comparison


def pairwise(
    model: nn.Module,
    task: Task,
    train: Iterable[Any],
    queries: Iterable[Any],
    recipe: Recipe = Recipe(),
    layers: LayerSettings = LayerSettings(),
) -> Tensor:
    """Score every training example for every query.

    `recipe.exact`, which is about proposals, isn't looked at: every row is scored by the recipe itself.

    Args:
        model: Any torch module, in eval mode; it is left as it was found.
        task: What is differentiated: `example_loss(model, batch) -> [N]`, summed over positions, and optionally
            `measurement(model, batch) -> [N]` for the queries and `sampled_loss(model, batch, generator) -> [N]`.
        train: Batches that the task understands; kept in memory where the recipe passes over them more than once. A
            batch's `attention_mask`, where it has one, says which positions hold tokens.
        queries: Batches likewise.
        recipe: The method; see `influence.recipe`.
        layers: Which layers are tracked.

    Returns:
        [queries, rows], float32 (float64 for a float64 model), on the CPU, in `recipe.unit`. Positive: training more
        on the row raises the measured output's log-probability.

    Raises:
        CaptureError: There are no training or no query batches, or a gradient is not finite.
        CurvatureError: Factors that aren't finite, are singular, or are too wide.
        TaskError: The recipe samples labels, and the task can't.
    """
    chosen = tracked_layers(model, layers)
    asked = _Asked(model, task, chosen, recipe)
    if not recipe.projection.folds and not recipe.curvature.whole:
        return asked.projected(train, queries, None)
    batches = list(train)
    basis = asked.eigenbasis(batches)
    if recipe.curvature.whole:
        return asked.exact(batches, queries, asked.curvature(basis, batches))
    return asked.projected(batches, queries, basis)


class _Asked:
    """The arguments of one call, and the passes over the data that it takes."""

    def __init__(self, model: nn.Module, task: Task, layers: Sequence[TrackedLayer], recipe: Recipe) -> None:
        self.model, self.task, self.layers, self.recipe = model, task, layers, recipe

    def projected(self, train: Iterable[Any], queries: Iterable[Any], basis: Eigenbasis | None) -> Tensor:
        """Return the scores of a recipe whose rows could be stored."""
        settings = self.recipe.projection
        fold = None if basis is None else fold_for(settings, basis)
        with Capture(self.model, self.layers, Projection(settings, fold)) as capture:
            rows = _gradients(capture, self.task.example_loss, train, "training")
            wanted = -_gradients(capture, self._measure, queries, "query")
        fisher = None
        if self.recipe.curvature.kind == "fisher":
            sums = FisherSums(blocks_of(capture.modules, self.recipe.curvature.blocks))
            sums.add(rows)
            fisher = ProjectedFisher.prepare(sums, self.recipe.curvature.damping, dtype=rows.dtype)
        comparison = Comparison(self.recipe, fisher, len(rows))
        return comparison.query_vectors(wanted) @ comparison.row_vectors(rows).T

    def eigenbasis(self, train: Sequence[Any]) -> Eigenbasis:
        """Fit the Kronecker factors' eigenbasis."""
        settings = self.recipe.factors
        with CovarianceFit(self.model, self.layers, settings) as fit:
            for number, batch in enumerate(train):
                fit.add(self._fisher(number), batch, getattr(batch, "attention_mask", None))
        return decompose(fit.sums, _dtype(self.model))

    def curvature(self, basis: Eigenbasis, train: Sequence[Any]) -> KroneckerCurvature:
        """Put K-FAC's or EK-FAC's eigenvalues on the basis."""
        if self.recipe.curvature.kind == "kfac":
            return KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), self.recipe.curvature.damping)
        with EigenvalueFit(self.model, self.layers, basis) as fit:
            for number, batch in enumerate(train):
                fit.add(self._fisher(number), batch)
        return KroneckerCurvature.prepare(basis, fit.sums.eigenvalues(), self.recipe.curvature.damping)

    def exact(self, train: Sequence[Any], queries: Iterable[Any], curvature: KroneckerCurvature) -> Tensor:
        """Score every row's whole gradient against the preconditioned queries."""
        with Capture(self.model, self.layers, Projection(ProjectionSettings(kind="none"))) as capture:
            wanted = -_gradients(capture, self._measure, queries, "query")
            modules: tuple[ModuleColumns, ...] = capture.modules
        matrices = preconditioned(wanted, modules, curvature)
        with InnerProducts(self.model, self.layers, matrices) as products:
            scores = torch.cat([products(self.task.example_loss, batch)[0].cpu() for batch in train])
        _check_finite(scores, "training")
        return scores.T / len(scores)

    def _measure(self, model: Any, batch: Any) -> Tensor:
        return measurement(self.task, model, batch)

    def _fisher(self, number: int) -> Measure:
        factors = self.recipe.factors
        seed = factors.label_seed(number)
        return lambda model, batch: fisher_loss(self.task, factors.labels, model, batch, seed)


def _gradients(capture: Capture, measure: Measure, batches: Iterable[Any], what: str) -> Tensor:
    found = [capture(measure, batch)[0].cpu() for batch in batches]
    if not found:
        raise CaptureError(f"There are no {what} batches.")
    rows = torch.cat(found)
    _check_finite(rows, what)
    return rows


def _check_finite(rows: Tensor, what: str) -> None:
    if not bool(torch.isfinite(rows).all()):
        bad = (~torch.isfinite(rows).all(dim=1)).nonzero().squeeze(1).tolist()
        raise CaptureError(f"The gradients of {what} examples {bad[:10]} are not finite.")


def _dtype(model: nn.Module) -> torch.dtype:
    """What curvature is computed in: float64 for a float64 model, float32 for any other."""
    first = next(model.parameters(), None)
    return torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32
