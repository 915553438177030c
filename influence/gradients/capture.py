"""Projected per-example gradients of a frozen model: one row of D numbers an example.

The forward hook of a tracked layer keeps only its projected input, [N, S, P]; the hook on its output receives the
output gradient, projects it and adds one batched product to the rows. A layer used twice adds twice. What the hooks
promise is in `hooks`.

Sources: Goodfellow 2015, "Efficient per-example gradient computations"; Choe et al. 2024 (LoGra), section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from influence.axes import ND, NSO, ModuleColumns, PerExample
from influence.gradients.adam import Division
from influence.gradients.hooks import Hooks, Measure, layer_inputs
from influence.gradients.linear import project_output_grads, sum_over_positions
from influence.gradients.projection import Projection, Sides
from influence.gradients.trak_projection import TrakProjection
from influence.model.layers import TrackedLayer


@dataclass
class Terms:
    """The terms (R_o g_s)(R_i a_s)ᵀ that one layer's columns of a batch are the sum of.

    Attributes:
        length: Σ |R_o g_s| |R_i a_s| over examples and positions: what the sum's rounding is measured in, because terms
            may cancel.
        dtype: The narrowest dtype that a gradient or an input came in.
    """

    length: float = 0.0
    dtype: torch.dtype = torch.float64

    def add(self, grads: Tensor, inputs: Tensor) -> None:
        """Count the terms of R_o g [N, S, Q] and R_i a [N, S, P]."""
        norms = [torch.linalg.vector_norm(factor.double(), dim=2) for factor in (grads, inputs)]
        self.length += float((norms[0] * norms[1]).sum())
        self.dtype = min(self.dtype, grads.dtype, inputs.dtype, key=lambda dtype: torch.finfo(dtype).bits)


class Capture(Hooks):
    """The rows of batches; a context manager that leaves the model as it found it.

    Attributes:
        modules: Which columns of a row belong to which layer; one block where layers are projected together.
        dims: D, the columns of a row.
        record: What a trak projection drew and on what, to be kept beside the rows; None for any other.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[TrackedLayer],
        projection: Projection,
        denominators: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Set up.

        Args:
            model: The model.
            layers: The tracked layers.
            projection: Makes the projection matrices.
            denominators: What every layer's gradient is divided by before it is projected, [O, I] by the layer's name
                (`adam.denominators`); None divides nothing.
        """
        blocks, sides = lay_out(layers, projection, _home(model)[1])
        self._columns = blocks[-1].stop if blocks else 0
        self._dense = None
        if projection.settings.kind == "trak":
            self._dense = TrakProjection(projection.settings, blocks, projection.checkpoint, *_home(model))
        self.modules = blocks if self._dense is None else self._dense.modules
        self.record = None if self._dense is None else self._dense.record
        self.dims = self.modules[-1].stop if self.modules else 0
        divisions = [None if denominators is None else Division(layer, denominators[layer.name]) for layer in layers]
        self._sinks = [_Rows(*parts) for parts in zip(layers, blocks, sides, divisions, strict=True)]
        super().__init__(model, layers, self._sinks)

    @property
    def width(self) -> int:
        """Numbers an example while it is captured: D, or those of its whole gradient where that is projected after."""
        return self._columns

    def weighed(self, measure: Measure, batch: Any) -> tuple[ND, PerExample, dict[str, Terms]]:
        """Return what a call does, and the terms that every layer's columns are the sum of, by the layer's name."""
        with self._turn:
            terms = [Terms() for _ in self._sinks]
            for sink, counted in zip(self._sinks, terms, strict=True):
                sink.terms = counted
            try:
                rows, values = self(measure, batch)
            finally:
                for sink in self._sinks:
                    sink.terms = None
        return rows, values, {sink.name: counted for sink, counted in zip(self._sinks, terms, strict=True)}

    def __call__(self, measure: Measure, batch: Any, *, raw: bool = False) -> tuple[ND, PerExample]:
        """Return the gradient of every example's measured value, projected.

        Args:
            measure: `measure(model, batch)` gives one value an example, [N], summed over its positions.
            batch: Whatever `measure` understands; the first axis of every tracked layer's input must be its N examples.
            raw: Divide nothing, though there are denominators: the queries of a recipe that divides rows only.

        Returns:
            Rows [N, D] on the model's device, float32 (float64 for a float64 model), the gradient of the *sum* of the
            values, which is each example's own gradient; and the values [N], detached.

        Raises:
            TaskError: The measure doesn't give one value an example.
            CaptureError: A layer's input isn't split by example, or a layer ran where no graph was recorded.
        """
        with self._turn:
            for sink in self._sinks:
                sink.raw = raw
            rows, values = self.collect(measure, batch, self._columns, self._sinks)
        return rows if self._dense is None else self._dense(rows), values


def lay_out(
    layers: Sequence[TrackedLayer], projection: Projection, dtype: torch.dtype = torch.float32
) -> tuple[tuple[ModuleColumns, ...], tuple[Sides, ...]]:
    """Return the columns and the projection matrices of each layer, in the order of the layers."""
    modules: list[ModuleColumns] = []
    sides: list[Sides] = []
    start = 0
    for layer in layers:
        side = projection.sides(layer.name, layer.inputs, layer.outputs, dtype)
        stop = start + side.q * side.p
        sizes = {"outputs": layer.outputs, "inputs": layer.inputs, "q": side.q, "p": side.p}
        modules.append(ModuleColumns(name=layer.name, **sizes, start=start, stop=stop))
        sides.append(side)
        start = stop
    return tuple(modules), tuple(sides)


def _home(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a model is, and what its rows are computed in: float64 for a float64 model, float32 for any other."""
    first = next(model.parameters(), torch.empty(0))
    return first.device, torch.float64 if first.dtype == torch.float64 else torch.float32


class _Rows:
    """One layer's columns of the rows: the sink of its hooks."""

    def __init__(self, layer: TrackedLayer, columns: ModuleColumns, sides: Sides, division: Division | None) -> None:
        self.made: Tensor | None = None
        self.raw = False
        self.terms: Terms | None = None
        self.name = layer.name
        self._layer = layer
        self._columns = columns
        self._sides = sides
        self._division = division
        self._moved: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def keep(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        if self._division is not None and not self.raw:
            return self._division.keep(inputs, output)
        return layer_inputs(self._layer, inputs, output, self._side("inputs", output.device, output.dtype))

    def take(self, grads: NSO, activations: Tensor, *, last: bool) -> None:
        assert self.made is not None, "a capture gives its rows before the backward pass"
        dtype, device = self.made.dtype, grads.device
        if self._division is not None and not self.raw:
            left, right = (self._side(side, device, dtype) for side in ("outputs", "inputs"))
            product = self._division.product(grads, activations, left, right, dtype)
        else:
            projected = project_output_grads(grads, self._side("outputs", device, grads.dtype))
            if self.terms is not None:
                self.terms.add(projected, activations)
            product = sum_over_positions(projected, activations, dtype)
        self.made[:, self._columns.start : self._columns.stop] += product.flatten(1).to(self.made.device)

    def _side(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """The projection matrix in a dtype and on a device, moved there once."""
        side: Tensor | None = getattr(self._sides, name)
        if side is None or (side.dtype == dtype and side.device == device):
            return side
        key = (name, device, dtype)
        if key not in self._moved:
            self._moved[key] = side.to(device=device, dtype=dtype)
        return self._moved[key]
