"""Scores of every query against every training example, in memory, for any torch model: for researchers and tests.

It shares the capture, the projection, the curvature and the comparison with the pipeline; only the store and the index
are left out. The rows of the whole training set are held at once: use `influence.build` for more than fits.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from influence.curvature.projected_fisher import FisherSums, ProjectedFisher
from influence.errors import CaptureError
from influence.gradients.capture import Capture
from influence.gradients.hooks import Measure
from influence.gradients.projection import Projection
from influence.model.layers import LayerSettings, tracked_layers
from influence.recipe import Recipe
from influence.task import Task, measurement
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

    Args:
        model: Any torch module, in eval mode; it is left as it was found.
        task: What is differentiated: `example_loss(model, batch) -> [N]`, summed over positions, and optionally
            `measurement(model, batch) -> [N]` for the queries.
        train: Batches that the task understands; read once.
        queries: Batches likewise.
        recipe: The method; see `influence.recipe`.
        layers: Which layers are tracked.

    Returns:
        [queries, rows], float32 (float64 for a float64 model), on the CPU, in `recipe.unit`. Positive: training more
        on the row raises the measured output's log-probability.

    Raises:
        CaptureError: There are no training or no query batches, or a gradient is not finite.
    """
    chosen = tracked_layers(model, layers)
    with Capture(model, chosen, Projection(recipe.projection)) as capture:
        rows = _gradients(capture, task.example_loss, train, "training")
        asked = -_gradients(capture, lambda model, batch: measurement(task, model, batch), queries, "query")
    fisher = None
    if recipe.curvature.kind == "fisher":
        sums = FisherSums(capture.modules)
        sums.add(rows)
        fisher = ProjectedFisher.prepare(sums, recipe.curvature.damping, dtype=rows.dtype)
    comparison = Comparison(recipe, fisher, len(rows))
    return comparison.query_vectors(asked) @ comparison.row_vectors(rows).T


def _gradients(capture: Capture, measure: Measure, batches: Iterable[Any], what: str) -> Tensor:
    found = [capture(measure, batch)[0].cpu() for batch in batches]
    if not found:
        raise CaptureError(f"There are no {what} batches.")
    rows = torch.cat(found)
    if not bool(torch.isfinite(rows).all()):
        bad = (~torch.isfinite(rows).all(dim=1)).nonzero().squeeze(1).tolist()
        raise CaptureError(f"The gradients of {what} examples {bad[:10]} are not finite.")
    return rows
