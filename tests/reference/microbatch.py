"""One ordinary backward pass per example, with weight gradients: what every captured row is compared with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from influence.gradients.projection import Projection
from influence.model.layers import TrackedLayer


def weight_gradient(layer: TrackedLayer) -> Tensor:
    """The gradient that autograd left in a layer's parameters, as [O, I], the bias as a last column where tracked."""
    weight = layer.module.weight
    grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
    if layer.kind in ("conv1d", "embedding"):
        grad = grad.T
    grad = grad.reshape(layer.outputs, -1)
    if layer.bias:
        bias = layer.module.bias
        column = torch.zeros_like(bias) if bias.grad is None else bias.grad
        grad = torch.cat([grad, column.reshape(-1, 1)], dim=1)
    return grad


@contextmanager
def all_requiring_gradients(model: nn.Module) -> Iterator[None]:
    """Let every parameter require gradients, and give the flags back: they say what was trained."""
    trained = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, flag in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(flag)


def one_backward_per_example(
    model: nn.Module,
    layers: Sequence[TrackedLayer],
    projection: Projection,
    measure: Callable[[Any, Any], Tensor],
    examples: Sequence[Any],
) -> Tensor:
    """Rows [N, D]: each example alone, unpadded, its weight gradients formed and then projected with R_o G R_iᵀ."""
    rows = []
    with all_requiring_gradients(model):
        for example in examples:
            model.zero_grad(set_to_none=True)
            measure(model, example).sum().backward()
            blocks = []
            for layer in layers:
                grad = weight_gradient(layer)
                sides = projection.sides(layer.name, layer.inputs, layer.outputs, grad.dtype)
                if sides.outputs is not None:
                    grad = sides.outputs.to(grad.dtype) @ grad
                if sides.inputs is not None:
                    grad = grad @ sides.inputs.to(grad.dtype).T
                blocks.append(grad.flatten())
            rows.append(torch.cat(blocks))
    model.zero_grad(set_to_none=True)
    return torch.stack(rows).detach()
