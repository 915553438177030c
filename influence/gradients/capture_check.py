"""Whether the hooks see what was trained: asked of one batch, before a row is kept."""

from collections.abc import Hashable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from influence.coverage import Coverage
from influence.gradients.hooks import Measure
from influence.gradients.weight_gradients import WeightGradients, weight_gradients
from influence.model.evaluation import check_rescaling
from influence.model.layers import LayerSettings, TrackedLayer
from influence.model.trained import check_coverage, coverage_of, trained_parameters

_compared: WeakKeyDictionary[nn.Module, dict[Hashable, WeightGradients]] = WeakKeyDictionary()


def check_capture(
    model: nn.Module,
    layers: Sequence[TrackedLayer],
    settings: LayerSettings,
    measure: Measure,
    batch: Any,
    kind: Hashable = None,
) -> Coverage:
    """Hold the hooks against an ordinary backward pass, and count which share of the trained weights they cover.

    Args:
        model: In eval mode.
        layers: The tracked layers.
        settings: The globs that chose them.
        measure: Gives one value an example, [N].
        batch: What `measure` understands.
        kind: What tells this measure from others. Where it is given the comparison is made once for a model, its
            layers and a kind: the model's code decides it, and other weights don't change that.

    Raises:
        ModelError: A tracked layer's gradient is another than its calls show or can't be split by example, or most of
            what was trained isn't tracked, or the model's gradients are of other weights than were trained.
        TaskError, CaptureError: See `Hooks.run`.
    """
    check_rescaling(model)
    trained = trained_parameters(model)
    key = (kind, trained, *((layer.name, layer.bias) for layer in layers))
    before = _compared.setdefault(model, {})
    found = before.get(key) if kind is not None else None
    if found is None:
        found = weight_gradients(model, layers, measure, batch, trained)
        found.check(next(model.parameters()).dtype)
    if kind is not None:
        before[key] = found
    coverage = coverage_of(model, settings, layers, found.reached)
    check_coverage(coverage, settings)
    return coverage
