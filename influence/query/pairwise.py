"""Scores of every query against every training example, in memory, for any torch model: for researchers and tests.

It shares the capture, the projection, the curvature and the comparison with the pipeline; only the store and the index
are left out. The rows of the whole training set are held at once: use `influence.build` for more than fits.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from influence.axes import ModuleColumns
from influence.curvature.covariance import CovarianceFit
from influence.curvature.ekfac import EigenvalueFit
from influence.curvature.kfac import Eigenbasis, KroneckerCurvature, decompose, kfac_eigenvalues, preconditioned
from influence.curvature.projected_fisher import FisherSums, ProjectedFisher, blocks_of
from influence.curvature.whitening import fold_for
from influence.data.batch_fields import batch_field
from influence.errors import CaptureError, RecipeError
from influence.gradients.adam import denominators
from influence.gradients.capture import Capture
from influence.gradients.capture_check import check_capture
from influence.gradients.hooks import Measure
from influence.gradients.inner_products import InnerProducts
from influence.gradients.optimiser import read_second_moments
from influence.gradients.projection import Projection, ProjectionSettings
from influence.gradients.weight_gradients import weight_gradients
from influence.model.checkpoints import Checkpoints
from influence.model.evaluation import evaluation_mode
from influence.model.layers import LayerSettings, TrackedLayer, tracked_layers
from influence.query.baseline import Decode, baseline_scores
from influence.recipes import Recipe
from influence.recipes import recipe as preset
from influence.task import Task, fisher_loss, fisher_scale, measurement, row_loss, row_weight
from influence.vectors.ensemble import Ensemble
from influence.vectors.whiten import Comparison

CHECKED = 2**22
"""Numbers that are looked at together: torch copies what it checks."""

SecondMoments = Mapping[str, Tensor]
"""v̂ of an optimiser by parameter name, as the parameter lies."""


def pairwise(
    model: nn.Module,
    task: Task,
    train: Iterable[Any],
    queries: Iterable[Any],
    recipe: Recipe | str = Recipe(),
    layers: LayerSettings = LayerSettings(),
    checkpoints: Sequence[Mapping[str, Tensor]] | None = None,
    second_moments: SecondMoments | Sequence[SecondMoments] | None = None,
    decode: Decode | None = None,
) -> Tensor:
    """Score every training example for every query.

    `recipe.exact` is not used: every row is scored by the recipe itself. Nor is `recipe.factors.rows`: factors are
    fitted to all rows of `train`.

    Args:
        model: Any torch module. Its state is restored afterwards. Dropout and similar layers are switched off, with a
            warning if they were on. Parameters that require gradients count as trained; if none does, all do.
        task: What is differentiated: `example_loss(model, batch) -> [N]`, summed over positions, and optionally
            `measurement(model, batch) -> [N]` for the queries, `sampled_loss(model, batch, generator) -> [N]`,
            `log_odds(model, batch) -> [N]` with `residual(model, batch) -> [N]`, and, of a loss that is a mean over
            tokens, `averaged_tokens(batch) -> [N]`, without which every curvature is too small.
        train: Batches in the form that the task reads, kept in memory if the recipe needs more than one pass. The
            `attention_mask` of a batch, as an attribute or a key, marks the positions that hold tokens; without one
            Kronecker factors count every position, padding included.
        queries: Batches in the same form.
        recipe: The method, or a preset's name; see `influence.recipe`.
        layers: Which layers are tracked.
        checkpoints: State dicts of the model, in the order of `recipe.checkpoints` if it names any. Each is loaded in
            turn, and the model gets its own weights back.
        second_moments: Adam's bias-corrected second moments by parameter name, for recipes with Adam's gradients; one
            mapping per checkpoint. Default: read from `gradient.state` or the checkpoints' states.
        decode: A function that returns the texts of a batch; only for the baseline `bm25`.

    Returns:
        [queries, rows], float32 (float64 for a float64 model), on the CPU, in `recipe.unit` (of a mean
        loss `recipe.unit_under("mean")`). Positive: training more on the row raises the measured output's
        log-probability. The upper limit of a task's measurement is not known here; for log-likelihoods,
        `influence.recipes.magnitudes` returns whether scores can be numbers of nats.

    Raises:
        CaptureError: There are no training or no query batches, or a gradient is not finite.
        CurvatureError: Factors are not finite, singular, or too wide.
        ModelError: A checkpoint has other weights than the model; a tracked layer's gradient cannot be divided by
            example or differs from that of its calls; or less than half of the trained weights are tracked.
        OptimiserMismatch: Second moments are not those of the model, or a tracked layer has none.
        RecipeError: The recipe names other checkpoints than the call, lacks second moments or texts, or does not use
            them.
        TaskError: The recipe samples labels or measures log-odds, and the task has no such method.
    """
    recipe = preset(recipe) if isinstance(recipe, str) else recipe
    _check_used(recipe, second_moments, decode)
    if recipe.baseline is not None:
        with evaluation_mode(model):
            return baseline_scores(recipe.baseline, model, train, queries, decode)
    if recipe.checkpoints and checkpoints is None:
        raise RecipeError(
            f"The recipe names {len(recipe.checkpoints)} checkpoints, and in memory their weights are given by you: "
            "pairwise(…, checkpoints=[state dict, …])."
        )
    asked = _Asked(model, task, tracked_layers(model, layers), recipe)
    with evaluation_mode(model), Checkpoints(model, checkpoints) as loaded:
        train, queries = asked.checked(train, queries, layers)
        asked.moments = _moments(recipe, model, second_moments, len(loaded))
        weights = recipe.checkpoint_weights(len(loaded))
        if len(loaded) > 1 or recipe.projection.folds or recipe.curvature.whole:
            train, queries = list(train), list(queries)
        if recipe.curvature.whole:
            return torch.stack([weights[number] * asked.exact(train, queries) for number in loaded]).sum(dim=0)
        return _compared([asked.projected(number, train, queries) for number in loaded])


@dataclass(frozen=True)
class _Projected:
    """One checkpoint's share of a recipe whose rows could be stored: gradients of rows and queries, and curvature.

    Attributes:
        rows: [n, D].
        weights: 1−p of the rows, [n], where the recipe measures log-odds.
        wanted: −∇m of the queries, [m, D].
        comparison: With this checkpoint's curvature.
    """

    rows: Tensor
    weights: Tensor | None
    wanted: Tensor
    comparison: Comparison


def _compared(held: Sequence[_Projected]) -> Tensor:
    """Return the scores over all checkpoints."""
    ensemble = Ensemble(tuple(one.comparison for one in held))
    weights = ensemble.mean_weights([one.weights for one in held if one.weights is not None])
    rows = ensemble.row_vectors(torch.cat([one.rows for one in held], dim=1), weights)
    return ensemble.query_vectors(torch.cat([one.wanted for one in held], dim=1)) @ rows.T


class _Asked:
    """The arguments of one call, and the passes over the data that it takes."""

    def __init__(self, model: nn.Module, task: Task, layers: Sequence[TrackedLayer], recipe: Recipe) -> None:
        self.model, self.task, self.layers, self.recipe = model, task, layers, recipe
        self.moments: Sequence[SecondMoments | None] = ()

    def checked(
        self, train: Iterable[Any], queries: Iterable[Any], settings: LayerSettings
    ) -> tuple[Iterable[Any], Iterable[Any]]:
        """Check on the first batches that the hooks see what was trained, and return all batches."""
        first, train = _first_of(train)
        if first:
            check_capture(self.model, self.layers, settings, self._loss, first[0])
        asked, queries = _first_of(queries)
        if asked:
            weight_gradients(self.model, self.layers, self._measure, asked[0]).check()
        return train, queries

    def _loss(self, model: Any, batch: Any) -> Tensor:
        return row_loss(self.task, model, batch, self.recipe.measurement)

    def projected(self, checkpoint: int, train: Iterable[Any], queries: Iterable[Any]) -> _Projected:
        """Capture the rows and queries of a recipe whose rows could be stored, and fit its curvature."""
        settings = self.recipe.projection
        fold = fold_for(settings, *self.eigenbasis(train)) if settings.folds else None
        gradient, moments = self.recipe.gradient, self.moments[checkpoint]
        scales = None if moments is None else denominators(self.model, self.layers, moments, gradient.epsilon)
        with Capture(self.model, self.layers, Projection(settings, fold, checkpoint), scales) as capture:
            rows, weights, scale = self._rows(capture, train)
            wanted = -_gradients(capture, self._measure, queries, "query", raw=gradient.sides == "rows")
        fisher = None
        if self.recipe.curvature.kind == "fisher":
            sums = FisherSums(blocks_of(capture.modules, self.recipe.curvature.blocks))
            sums.add(rows if scale is None else rows * scale.to(rows).unsqueeze(1))
            fisher = ProjectedFisher.prepare(sums, self.recipe.curvature.damping, dtype=rows.dtype)
        return _Projected(rows, weights, wanted, Comparison(self.recipe, fisher, len(rows)))

    def _rows(self, capture: Capture, train: Iterable[Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Capture the rows, their weights where the recipe measures log-odds, and their `fisher_scale`."""
        kind = self.recipe.measurement
        weights: list[Tensor] = []
        scales: list[Tensor] = []

        def noted() -> Iterator[Any]:
            for batch in train:
                weight = row_weight(self.task, self.model, batch, kind)
                if weight is not None:
                    weights.append(weight.cpu())
                scale = fisher_scale(self.task, batch, kind)
                if scale is not None:
                    scales.append(scale.cpu())
                yield batch

        rows = _gradients(capture, self._loss, noted(), "training")
        return rows, torch.cat(weights) if weights else None, torch.cat(scales) if scales else None

    def eigenbasis(self, train: Iterable[Any]) -> tuple[Eigenbasis, int]:
        """Fit the Kronecker factors' eigenbasis; also N, the rows it is fitted to."""
        settings = self.recipe.factors
        with CovarianceFit(self.model, self.layers, settings) as fit:
            for number, batch in enumerate(train):
                mask, scale = batch_field(batch, "attention_mask"), fisher_scale(self.task, batch)
                fit.add(self._fisher(number), batch, mask, scale)
        return decompose(fit.sums, _dtype(self.model)), fit.sums.examples

    def curvature(self, train: Iterable[Any]) -> KroneckerCurvature:
        """Fit K-FAC's or EK-FAC's eigenvalues on the factors' eigenbasis."""
        (basis, _), damping = self.eigenbasis(train), self.recipe.curvature.damping
        budget = self._losses(train) if damping.kind == "bounded" else None
        if self.recipe.curvature.kind == "kfac":
            return KroneckerCurvature.prepare(basis, kfac_eigenvalues(basis), damping, budget)
        with EigenvalueFit(self.model, self.layers, basis) as fit:
            for number, batch in enumerate(train):
                fit.add(self._fisher(number), batch)
        return KroneckerCurvature.prepare(basis, fit.sums.eigenvalues(), damping, budget)

    def _losses(self, train: Iterable[Any]) -> float:
        """Return −log p of all rows together, in nats: N times their mean, what a bounded damping is held to."""
        total = 0.0
        with torch.no_grad():
            for batch in train:
                losses = self.task.example_loss(self.model, batch)
                averaged = getattr(self.task, "averaged_tokens", None)
                tokens = None if averaged is None else averaged(batch)
                total += float((losses if tokens is None else losses * tokens.to(losses.device)).sum())
        return total

    def exact(self, train: Iterable[Any], queries: Iterable[Any]) -> Tensor:
        """Score every row's whole gradient against the queries under the inverse curvature."""
        curvature = self.curvature(train)
        with Capture(self.model, self.layers, Projection(ProjectionSettings(kind="none"))) as capture:
            wanted = _gradients(capture, self._measure, queries, "query").neg_()
            modules: tuple[ModuleColumns, ...] = capture.modules
        matrices = preconditioned(wanted, modules, curvature)
        with InnerProducts(self.model, self.layers, matrices) as products:
            scores = torch.cat([products(self.task.example_loss, batch)[0].cpu() for batch in train])
        _check_finite(scores, "training")
        return scores.T / len(scores)

    def _measure(self, model: Any, batch: Any) -> Tensor:
        return measurement(self.task, model, batch, self.recipe.measurement)

    def _fisher(self, number: int) -> Measure:
        factors = self.recipe.factors
        seed = factors.label_seed(number)
        return lambda model, batch: fisher_loss(self.task, factors.labels, model, batch, seed)


def _first_of(batches: Iterable[Any]) -> tuple[list[Any], Iterable[Any]]:
    """Return the first batch, in a list that is empty where there is none, and all batches."""
    rest = iter(batches)
    first = list(islice(rest, 1))
    return first, batches if isinstance(batches, Sequence) else chain(first, rest)


def _check_used(recipe: Recipe, second_moments: Any, decode: Any) -> None:
    """Refuse arguments that the recipe would not look at."""
    if second_moments is not None and recipe.gradient.kind != "adam":
        raise RecipeError(
            f"Second moments were given, and {recipe.name} divides by none ({recipe.summary}). Set recipe.gradient to "
            "adam, or leave them out."
        )
    if decode is not None and recipe.baseline != "bm25":
        raise RecipeError(f"{recipe.name} reads no texts ({recipe.summary}): leave decode out.")


def _moments(
    recipe: Recipe, model: nn.Module, given: SecondMoments | Sequence[SecondMoments] | None, count: int
) -> Sequence[SecondMoments | None]:
    """Return each checkpoint's second moments, or None of each where the recipe divides by none."""
    if recipe.gradient.kind != "adam":
        return [None] * count
    states = [state for state in recipe.optimiser_states(count) if state is not None]
    if given is None and len(states) == count:
        return [read_second_moments(state, model) for state in states]
    found = [] if given is None else [given] if isinstance(given, Mapping) else list(given)
    if len(found) != count:
        where = "recipe.gradient.state to the checkpoint folder of its training (with its optimizer.pt), or "
        raise RecipeError(
            f"{recipe.name} divides gradients by the root of the optimiser's second moments, and there are "
            f"{len(found) or 'none'} for {count} model{'s' if count > 1 else ''}. Set {where if count == 1 else ''}"
            "second_moments to v̂ by parameter name, for each checkpoint its own."
        )
    return found


def _gradients(capture: Capture, measure: Measure, batches: Iterable[Any], what: str, *, raw: bool = False) -> Tensor:
    found = [capture(measure, batch, raw=raw)[0].cpu() for batch in batches]
    if not found:
        raise CaptureError(f"There are no {what} batches.")
    rows = _joined(found)
    _check_finite(rows, what)
    return rows


def _joined(found: list[Tensor]) -> Tensor:
    """Stack batches of rows, letting go of each as it is copied: they may be the largest thing in memory."""
    rows = torch.empty(sum(map(len, found)), found[0].shape[1], dtype=found[0].dtype)
    start = 0
    for number, piece in enumerate(found):
        rows[start : start + len(piece)] = piece
        start += len(piece)
        found[number] = piece[:0].clone()
        del piece
    return rows


def _check_finite(rows: Tensor, what: str) -> None:
    step = max(1, CHECKED // rows.shape[1])
    finite = torch.cat([torch.isfinite(block).all(dim=1) for block in rows.split(step)])
    if not bool(finite.all()):
        bad = (~finite).nonzero().squeeze(1).tolist()
        raise CaptureError(f"The gradients of {what} examples {bad[:10]} are not finite.")


def _dtype(model: nn.Module) -> torch.dtype:
    """What curvature is computed in: float64 for a float64 model, float32 for any other."""
    first = next(model.parameters(), None)
    return torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32
