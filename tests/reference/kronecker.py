"""Dense curvature of tracked layers, one example and one position at a time: what K-FAC and EK-FAC are held to.

Every example runs alone and unpadded. What a layer received and the gradient of what it returned are read off autograd,
position by position; matrices are formed whole and inverted by a solver. Blocks are over vec(G), [O, I] row by row, so
that the Kronecker product of an [O, O] and an [I, I] matrix is `torch.kron(S, A)`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from influence.model.layers import TrackedLayer
from tests.reference.microbatch import all_requiring_gradients

Measure = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Seen:
    """What one layer saw over all examples, uses and positions: inputs [T, I], output gradients [T, O]."""

    inputs: Tensor
    grads: Tensor


def seen_by(model: nn.Module, layers: Sequence[TrackedLayer], measure: Measure, examples: Sequence[Any]) -> list[Seen]:
    """What each layer saw; `examples` are batches of one."""
    with all_requiring_gradients(model):
        return _seen_by(model, layers, measure, examples)


def _seen_by(model: nn.Module, layers: Sequence[TrackedLayer], measure: Measure, examples: Sequence[Any]) -> list[Seen]:
    inputs: list[list[Tensor]] = [[] for _ in layers]
    grads: list[list[Tensor]] = [[] for _ in layers]
    for example in examples:
        calls: list[tuple[int, Tensor, Tensor]] = []
        handles = [
            layer.module.register_forward_hook(partial(_record, calls, number)) for number, layer in enumerate(layers)
        ]
        loss = measure(model, example).sum()
        for handle in handles:
            handle.remove()
        for (number, received, _), grad in zip(
            calls, torch.autograd.grad(loss, [call[2] for call in calls]), strict=True
        ):
            inputs[number].append(position_inputs(layers[number], received))
            grads[number].append(position_grads(layers[number], grad))
    return [Seen(torch.cat(a), torch.cat(g)) for a, g in zip(inputs, grads, strict=True)]


def _record(
    calls: list[tuple[int, Tensor, Tensor]], number: int, module: nn.Module, args: Any, output: Tensor
) -> Tensor:
    """Note a call; what goes on is a copy, so that an activation in place changes the copy."""
    calls.append((number, args[0].detach(), output))
    return output.clone()


def position_inputs(layer: TrackedLayer, received: Tensor) -> Tensor:
    """What one example's positions received, [S, I], a 1 appended where the bias is tracked."""
    if layer.kind == "embedding":
        rows = torch.eye(layer.inputs, dtype=layer.module.weight.dtype)[received.flatten()]
    elif layer.kind == "conv2d":
        rows = _patches(layer.module, received)
    else:
        rows = received.reshape(-1, received.shape[-1])
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if layer.bias else rows


def position_grads(layer: TrackedLayer, grad: Tensor) -> Tensor:
    """One example's output gradient as [S, O]."""
    return grad[0].flatten(1).T if layer.kind == "conv2d" else grad.reshape(-1, grad.shape[-1])


def input_covariance(seen: Seen) -> Tensor:
    """A = Σ a aᵀ / T."""
    return sum(torch.outer(a, a) for a in seen.inputs) / len(seen.inputs)


def output_covariance(seen: Seen, examples: int) -> Tensor:
    """S = Σ g gᵀ / N."""
    return sum(torch.outer(g, g) for g in seen.grads) / examples


def only_blocks(matrix: Tensor, blocks: int) -> Tensor:
    """The matrix with zeros outside its diagonal blocks, each ⌈W/blocks⌉ wide but for the last."""
    block = torch.arange(len(matrix)) // -(-len(matrix) // blocks)
    return matrix * (block[:, None] == block[None])


def fisher(gradients: Tensor) -> Tensor:
    """(1/N) Σ vec(G) vec(G)ᵀ of whole gradients [N, O·I]."""
    return sum(torch.outer(g, g) for g in gradients) / len(gradients)


def dense_kfac(inputs: Tensor, outputs: Tensor) -> Tensor:
    """S ⊗ A, [O·I, O·I]."""
    return torch.kron(outputs, inputs)


def dense_ekfac(inputs: Tensor, outputs: Tensor, gradients: Tensor) -> Tensor:
    """B diag(Bᵀ F B) Bᵀ with B = Q_S ⊗ Q_A."""
    basis = torch.kron(torch.linalg.eigh(outputs)[1], torch.linalg.eigh(inputs)[1])
    return basis @ torch.diag((basis.T @ fisher(gradients) @ basis).diagonal()) @ basis.T


def damped(block: Tensor, share: float) -> Tensor:
    """H + λ with λ a share of the mean eigenvalue."""
    return block + share * block.trace() / len(block) * torch.eye(len(block), dtype=block.dtype)


def scores(blocks: Sequence[Tensor], queries: Tensor, rows: Tensor) -> Tensor:
    """(1/N) Σ_modules ⟨u, H⁻¹ r⟩ of queries −∇m [m, D] and rows ∇ℓ [N, D]; `blocks` are damped already."""
    widths = [len(block) for block in blocks]
    parts = zip(blocks, queries.split(widths, dim=1), rows.split(widths, dim=1), strict=True)
    return sum(u @ torch.linalg.solve(block, r.T) for block, u, r in parts) / len(rows)


def _patches(module: nn.Conv2d, received: Tensor) -> Tensor:
    """The patch under every output position, in reading order, cut out one by one."""
    (high, wide), (down, across), (rows, columns) = module.kernel_size, module.stride, module.dilation
    spans = rows * (high - 1), columns * (wide - 1)
    if module.padding == "same":
        (top, left), (bottom, right) = (spans[0] // 2, spans[1] // 2), (-(-spans[0] // 2), -(-spans[1] // 2))
    else:
        (top, left) = (bottom, right) = (0, 0) if module.padding == "valid" else module.padding
    image = nn.functional.pad(received[0], (left, right, top, bottom))
    return torch.stack(
        [
            image[:, y : y + spans[0] + 1 : rows, x : x + spans[1] + 1 : columns].flatten()
            for y in range(0, image.shape[1] - spans[0], down)
            for x in range(0, image.shape[2] - spans[1], across)
        ]
    )
