"""Projected per-example gradients of a frozen model: one row of D numbers an example.

The forward hook of a tracked layer keeps only its projected input, [N, S, P]; the hook on its output receives the
output gradient, projects it and adds one batched product to the rows. A layer used twice adds twice. What the hooks
promise is in `hooks`.

Sources: Goodfellow 2015, "Efficient per-example gradient computations"; Choe et al. 2024 (LoGra), section 3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from influence.axes import ND, NSO, ModuleColumns, PerExample
from influence.gradients.hooks import Hooks, Measure, layer_inputs
from influence.gradients.linear import project_output_grads, sum_over_positions
from influence.gradients.projection import Projection, Sides
from influence.model.layers import TrackedLayer


class Capture(Hooks):
    """The rows of batches; a context manager that leaves the model as it found it.

    Attributes:
        modules: Which columns of a row belong to which layer.
        dims: D, the columns of a row.
    """

    def __init__(self, model: nn.Module, layers: Sequence[TrackedLayer], projection: Projection) -> None:
        self.modules, sides = lay_out(layers, projection)
        self.dims = self.modules[-1].stop if self.modules else 0
        self._sinks = [
            _Rows(layer, columns, side) for layer, columns, side in zip(layers, self.modules, sides, strict=True)
        ]
        super().__init__(model, layers, self._sinks)

    def __call__(self, measure: Measure, batch: Any) -> tuple[ND, PerExample]:
        """Return the gradient of every example's measured value, projected.

        Args:
            measure: `measure(model, batch)` gives one value an example, [N], summed over its positions.
            batch: Whatever `measure` understands; the first axis of every tracked layer's input must be its N examples.

        Returns:
            Rows [N, D] on the model's device, float32 (float64 for a float64 model), the gradient of the *sum* of the
            values, which is each example's own gradient; and the values [N], detached.

        Raises:
            TaskError: The measure doesn't give one value an example.
            CaptureError: A layer's input isn't split by example, or a layer ran where no graph was recorded.
        """
        rows: Tensor | None = None

        def begin(values: Tensor) -> None:
            nonlocal rows
            dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
            rows = torch.zeros(len(values), self.dims, dtype=dtype, device=values.device)
            for sink in self._sinks:
                sink.rows = rows

        try:
            values = self.run(measure, batch, begin)
        finally:
            for sink in self._sinks:
                sink.rows = None
        assert rows is not None, "the hooks begin before they return"
        return rows, values


def lay_out(
    layers: Sequence[TrackedLayer], projection: Projection
) -> tuple[tuple[ModuleColumns, ...], tuple[Sides, ...]]:
    """Return the columns and the projection matrices of each layer, in the order of the layers."""
    modules: list[ModuleColumns] = []
    sides: list[Sides] = []
    start = 0
    for layer in layers:
        side = projection.sides(layer.name, layer.inputs, layer.outputs)
        stop = start + side.q * side.p
        sizes = {"outputs": layer.outputs, "inputs": layer.inputs, "q": side.q, "p": side.p}
        modules.append(ModuleColumns(name=layer.name, **sizes, start=start, stop=stop))
        sides.append(side)
        start = stop
    return tuple(modules), tuple(sides)


class _Rows:
    """One layer's columns of the rows: the sink of its hooks."""

    def __init__(self, layer: TrackedLayer, columns: ModuleColumns, sides: Sides) -> None:
        self.rows: Tensor | None = None
        self._layer = layer
        self._columns = columns
        self._sides = sides

    def keep(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        return layer_inputs(self._layer, inputs, output, self._side("inputs", output))

    def take(self, grads: NSO, kept: Tensor, *, last: bool) -> None:
        assert self.rows is not None, "a capture gives its rows before the backward pass"
        projected = project_output_grads(grads, self._side("outputs", grads))
        product = sum_over_positions(projected, kept, self.rows.dtype)
        self.rows[:, self._columns.start : self._columns.stop] += product.flatten(1).to(self.rows.device)

    def _side(self, which: str, like: Tensor) -> Tensor | None:
        """The projection matrix in the dtype and on the device of `like`, moved once."""
        side = getattr(self._sides, which)
        if side is not None and (side.dtype != like.dtype or side.device != like.device):
            side = side.to(device=like.device, dtype=like.dtype)
            kept = {"inputs": self._sides.inputs, "outputs": self._sides.outputs, which: side}
            self._sides = Sides(**kept, p=self._sides.p, q=self._sides.q)
        return side
