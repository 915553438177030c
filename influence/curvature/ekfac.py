"""EK-FAC's second pass: the diagonal of the Fisher in the Kronecker eigenbasis.

    Λ = (1/N) Σ_n (Q_Sᵀ G_n Q_A)²     [O, I]

K-FAC assumes Λ = λ_S λ_Aᵀ; measured instead, ‖F − Q Λ Qᵀ‖ is the smallest that this basis allows. The square is of a
whole example's gradient, so a layer used twice is squared once, after both uses.

Source: George et al. 2018, "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", section 3.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from influence.axes import NSI, NSO
from influence.curvature.kfac import Eigenbasis, ModuleBasis
from influence.errors import CurvatureError
from influence.gradients.hooks import Hooks, Measure, layer_inputs
from influence.model.layers import TrackedLayer

CHUNK_BYTES = 32 * 2**20
"""Per-example gradients of a layer that are formed at once; they are squared and added while they are in the cache."""


@dataclass
class EigenvalueSums:
    """Σ_n (Q_Sᵀ G_n Q_A)² of each module over some examples; sums of disjoint examples merge by addition."""

    names: tuple[str, ...]
    examples: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def merge(self, other: Self) -> None:
        """Add the sums of other examples; merge in a fixed order for the same bits every time."""
        self.examples += other.examples
        for name, total in other.sums.items():
            self.sums[name] = self.sums[name] + total if name in self.sums else total

    def eigenvalues(self) -> tuple[Tensor, ...]:
        """Return Λ of each module, [O, I], float64.

        Raises:
            CurvatureError: There are no examples, or a module saw none; it is named.
        """
        if self.examples == 0:
            raise CurvatureError("EK-FAC's eigenvalues need rows; there are none.")
        for name in self.names:
            if name not in self.sums:
                raise CurvatureError(f"{name} saw no gradient: it isn't part of the forward pass.")
        return tuple(self.sums[name].double().cpu() / self.examples for name in self.names)

    def tensor_names(self) -> list[str]:
        """Return the names that `tensors` gives where every module ran."""
        return ["examples", *(f"squares.{name}" for name in self.names)]

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors on the CPU, to be saved."""
        return {
            "examples": torch.tensor(self.examples),
            **{f"squares.{name}": total.cpu() for name, total in self.sums.items()},
        }

    @classmethod
    def from_tensors(cls, names: Sequence[str], tensors: Mapping[str, Tensor]) -> Self:
        """Return the sums that `tensors()` gave."""
        squares = {name: tensors[f"squares.{name}"] for name in names if f"squares.{name}" in tensors}
        return cls(tuple(names), int(tensors["examples"]), squares)


class EigenvalueFit(Hooks):
    """Sums squared rotated gradients over batches; a context manager that leaves the model as it found it.

    Attributes:
        sums: What was added so far.
    """

    def __init__(self, model: nn.Module, layers: Sequence[TrackedLayer], basis: Eigenbasis) -> None:
        self.sums = EigenvalueSums(tuple(layer.name for layer in layers))
        self._sinks = [_Squares(layer, basis[layer.name], self.sums) for layer in layers]
        super().__init__(model, layers, self._sinks)

    def add(self, measure: Measure, batch: Any) -> None:
        """Add a batch; `measure` gives the loss of each example, [N], summed over its positions.

        After an error the sums hold an unknown part of the batch: begin anew.
        """
        examples = len(self.run(measure, batch))
        for sink in self._sinks:
            sink.finish()
        self.sums.examples += examples


class _Squares:
    """One layer's sum of squares: the sink of its hooks."""

    def __init__(self, layer: TrackedLayer, basis: ModuleBasis, sums: EigenvalueSums) -> None:
        self._layer = layer
        self._basis = basis
        self._sums = sums
        self._pending: Tensor | None = None

    def keep(self, module: nn.Module, inputs: Tensor, output: Tensor) -> NSI:
        return layer_inputs(self._layer, inputs, output)

    def take(self, grads: NSO, activations: NSI, *, last: bool) -> None:
        dtype = torch.float64 if grads.dtype == torch.float64 else torch.float32
        total = self._total(grads, dtype)
        if last and self._pending is None:
            step = max(1, CHUNK_BYTES // (total.numel() * total.element_size()))
            for first in range(0, len(grads), step):
                part = slice(first, first + step)
                _add_squares(total, self._rotated(grads[part].to(dtype), activations[part].to(dtype)))
            return
        product = torch.bmm(grads.to(dtype).transpose(1, 2), activations.to(dtype))
        self._pending = product if self._pending is None else self._pending + product
        if last:
            self.finish()

    def finish(self) -> None:
        """Square what is pending: at the last use, or once the batch is over, where a use was due that never came."""
        pending, self._pending = self._pending, None
        if pending is not None:
            _add_squares(self._total(pending, pending.dtype), self._basis_like(pending).rotate(pending))

    def _rotated(self, grads: NSO, activations: NSI) -> Tensor:
        """Q_Sᵀ G Q_A, [n, O, I]: the factors turned before their product, or the product after, whichever is less."""
        basis = self._basis_like(grads)
        positions, (outputs, inputs) = grads.shape[1], (grads.shape[2], activations.shape[2])
        if positions * (outputs**2 + inputs**2) <= outputs * inputs * (outputs + inputs):
            return torch.bmm(basis.outputs.rotate(grads).transpose(1, 2), basis.inputs.rotate(activations))
        return basis.rotate(torch.bmm(grads.transpose(1, 2), activations))

    def _total(self, grads: Tensor, dtype: torch.dtype) -> Tensor:
        name = self._layer.name
        if name not in self._sums.sums:
            shape = (self._layer.outputs, self._layer.inputs)
            self._sums.sums[name] = torch.zeros(shape, dtype=dtype, device=grads.device)
        return self._sums.sums[name]

    def _basis_like(self, like: Tensor) -> ModuleBasis:
        """The basis in the dtype and on the device of `like`, moved once."""
        vectors = self._basis.inputs.vectors[0]
        if vectors.dtype != like.dtype or vectors.device != like.device:
            self._basis = self._basis.to(like.device, like.dtype)
        return self._basis


def _add_squares(total: Tensor, gradients: Tensor) -> None:
    for gradient in gradients:
        total.addcmul_(gradient, gradient)
