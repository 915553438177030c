"""Whether the hooks see what was trained: asked of one batch, before a row is kept."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from influence.coverage import Coverage
from influence.gradients.hooks import Measure
from influence.gradients.weight_gradients import weight_gradients
from influence.model.evaluation import check_rescaling
from influence.model.layers import LayerSettings, TrackedLayer
from influence.model.trained import check_coverage, coverage_of, trained_parameters


def check_capture(
    model: nn.Module, layers: Sequence[TrackedLayer], settings: LayerSettings, measure: Measure, batch: Any
) -> Coverage:
    """Hold the hooks against an ordinary backward pass, and count which share of the trained weights they cover.

    Nothing is remembered between calls: the task, the model's code and its hooks may be others the next time.

    Args:
        model: In eval mode.
        layers: The tracked layers.
        settings: The globs that chose them.
        measure: Gives one value an example, [N].
        batch: What `measure` understands.

    Raises:
        ModelError: A tracked layer's gradient is another than its calls show or can't be split by example, most of
            what was trained isn't tracked, two passes give other values, or the model's gradients are of other weights
            than were trained.
        TaskError, CaptureError: See `Hooks.run`.
    """
    check_rescaling(model)
    trained = trained_parameters(model)
    gradients = weight_gradients(model, layers, measure, batch, trained)
    gradients.check()
    coverage = coverage_of(model, settings, layers, gradients.reached)
    check_coverage(coverage, settings)
    return coverage
