"""Inner products of whole, unprojected per-example gradients with given matrices: exact scoring.

For example n and matrix H_q of a module, ⟨G_n, H_q⟩ summed over modules. G_n = Σ_s g_s a_sᵀ is formed for a few
examples at a time, used for every query, and dropped; with matrices given as rank-r factors it isn't formed at all:
⟨G, Σ_r u_r v_rᵀ⟩ = Σ_s Σ_r (u_r · g_s)(v_r · a_s).

Source: the gradient form of influence functions, Koh & Liang 2017, equation 2; the low-rank form, Grosse et al. 2023,
"Studying large language model generalization with influence functions", section 3.2.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from influence.axes import NSI, NSO, PerExample
from influence.gradients.hooks import Hooks, Measure, layer_inputs
from influence.model.layers import TrackedLayer

CHUNK_BYTES = 32 * 2**20
"""Whole gradients of a layer that are formed at once."""


@dataclass(frozen=True)
class LowRank:
    """A module's matrices for m queries as rank-r products, H_q ≈ Σ_r left[q, :, r] right[q, :, r]ᵀ.

    Attributes:
        left: [m, O, r].
        right: [m, I, r].
        error: ‖H − H_r‖ / ‖H‖ over the queries, what truncation left out.
    """

    left: Tensor
    right: Tensor
    error: float


def compress(matrices: Tensor, rank: int) -> LowRank:
    """Return the best approximation of rank `rank` of every matrix [m, O, I], by truncated SVD."""
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    total = float(values.square().sum())
    error = (float(values[:, rank:].square().sum()) / total) ** 0.5 if total else 0.0
    return LowRank(left[:, :, :rank] * values[:, None, :rank], right[:, :rank].transpose(1, 2).contiguous(), error)


class InnerProducts(Hooks):
    """Scores of batches against fixed matrices; a context manager that leaves the model as it found it."""

    def __init__(self, model: nn.Module, layers: Sequence[TrackedLayer], matrices: Sequence[Tensor | LowRank]) -> None:
        """Set up.

        Args:
            model: The model.
            layers: The tracked layers.
            matrices: For each layer the m queries' matrices, [m, O, I], or their low-rank form.
        """
        first = matrices[0]
        self.queries = len(first.left if isinstance(first, LowRank) else first)
        self._sinks = [_Products(layer, matrix) for layer, matrix in zip(layers, matrices, strict=True)]
        super().__init__(model, layers, self._sinks)

    @property
    def width(self) -> int:
        """Numbers an example: m."""
        return self.queries

    def __call__(self, measure: Measure, batch: Any) -> tuple[Tensor, PerExample]:
        """Return Σ_modules ⟨G_n, H_q⟩ of every example and query.

        Args:
            measure: `measure(model, batch)` gives one value an example, [N], summed over its positions.
            batch: Whatever `measure` understands.

        Returns:
            [N, m], float32 (float64 for a float64 model), on the model's device; and the values [N], detached.

        Raises:
            TaskError, CaptureError: See `Hooks.run`.
        """
        return self.collect(measure, batch, self.queries, self._sinks)


class _Products:
    """One layer's share of the scores: the sink of its hooks."""

    def __init__(self, layer: TrackedLayer, matrices: Tensor | LowRank) -> None:
        self.made: Tensor | None = None
        self._layer = layer
        self._matrices = matrices
        self._moved: tuple[Tensor, ...] | None = None

    def keep(self, module: nn.Module, inputs: Tensor, output: Tensor) -> NSI:
        return layer_inputs(self._layer, inputs, output)

    def take(self, grads: NSO, activations: NSI, *, last: bool) -> None:
        assert self.made is not None, "inner products have their scores before the backward pass"
        dtype = self.made.dtype
        sides = self._there(grads.device, dtype)
        if len(sides) == 2:
            left, right = sides
            products = ((grads.to(dtype) @ left) * (activations.to(dtype) @ right)).sum(dim=1)
            self.made += products.unflatten(1, (self.made.shape[1], -1)).sum(dim=2).to(self.made.device)
            return
        (matrices,) = sides
        step = max(1, CHUNK_BYTES // (4 * matrices.shape[1]))
        for first in range(0, len(grads), step):
            part = slice(first, first + step)
            gradients = torch.bmm(grads[part].to(dtype).transpose(1, 2), activations[part].to(dtype))
            self.made[part].addmm_(gradients.flatten(1), matrices.T)

    def _there(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The matrices on a device, [m, O·I], or their two low-rank sides, [W, m·r] each; moved once."""
        matrices = self._moved
        if matrices is None or matrices[0].device != device or matrices[0].dtype != dtype:
            sources = self._matrices
            if isinstance(sources, LowRank):
                matrices = tuple(_flat(side, device, dtype) for side in (sources.left, sources.right))
            else:
                matrices = (sources.to(device, dtype).flatten(1),)
            self._moved = matrices
        return matrices


def _flat(side: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """View [m, W, r] as [W, m·r]."""
    return side.to(device, dtype).transpose(0, 1).flatten(1)
