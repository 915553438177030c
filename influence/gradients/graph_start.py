"""Where the graph of a frozen model starts, and whether the model computes parts of it twice."""

from typing import Any

import torch
from torch import Tensor, nn


def checkpoints_activations(model: nn.Module) -> bool:
    """Ask by the new name first: transformers 5 renamed the property and warns on the old name."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    name = (
        "is_activation_checkpointing"
        if hasattr(type(model), "is_activation_checkpointing")
        else "is_gradient_checkpointing"
    )
    return bool(getattr(model, name, False))


def require_grad(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Start the graph at the input embedding: reentrant checkpointing needs a block's input to require grad."""
    return output if output.requires_grad or not torch.is_grad_enabled() else start_graph(output)


def start_graph(output: Tensor) -> Tensor:
    """Return the same numbers as the first node of a graph; not a leaf, which in-place activations can't change."""
    anchor = torch.empty(0, requires_grad=True)
    started: Tensor = _Start.apply(output, anchor)  # type: ignore[assignment]
    return started


def own_node(output: Tensor) -> Tensor:
    """Return the same numbers as a node of the graph that is no view.

    A hook on a view, which a linear layer's output often is, is lost when the view is changed in place, as an in-place
    activation does.
    """
    passed: Tensor = _Pass.apply(output)  # type: ignore[assignment]
    return passed


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None
