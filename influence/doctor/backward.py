"""The capture against one ordinary backward pass, which forms weight gradients."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from influence.doctor.check import Check, relative_error
from influence.doctor.subject import Subject
from influence.gradients.capture import Capture
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import TrackedLayer

LAYERS = 8
"""Layers whose weight gradients are formed, spread over the model, so that they fit into memory."""


def ordinary_backward(subject: Subject) -> Check:
    """Compare with one backward pass that forms weight gradients, on some layers that share no weight."""
    session = subject.session
    index = min(range(len(subject.parts)), key=lambda index: len(subject.parts[index].input_ids))
    layers = _unshared(session.model, session.layers)
    layers = layers[:: -(-len(layers) // LAYERS)] if layers else ()
    if not layers:
        return Check("ordinary backward", "note", "does not apply: every tracked layer shares its weight")
    settings = session.spec.projection
    if settings.kind == "trak":
        # A dense sketch has no columns of a single layer: the capture that it is made of is looked at two-sided.
        settings = ProjectionSettings()
    projection = Projection(settings)
    with Capture(session.model, session.layers, projection) as capture:
        row = Subject(session, capture, subject.parts).rows([subject.parts[index]])[0]
    columns = {module.name: slice(module.start, module.stop) for module in capture.modules}
    weights = [weight for layer in layers for weight in layer.module.parameters(recurse=False)]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        session.task.example_loss(session.model, subject.batch([subject.parts[index]])).sum().backward()
        slow = torch.cat([_projected(layer, projection) for layer in layers])
    finally:
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
    fast = torch.cat([row[columns[layer.name]] for layer in layers])
    error = relative_error(fast, slow.to(fast.dtype))
    return Check(
        "ordinary backward",
        "pass" if error <= subject.tolerance else "fail",
        f"error {error:.2g} on {len(layers)} layers of one row",
        f"at most {subject.tolerance:g} ({session.spec.model.dtype})",
        "The capture differs from autograd's own weight gradients. Leave out layers that are used in an unusual way "
        "(model.layers.exclude), and please report the model's class.",
        value=error,
        limit=subject.tolerance,
    )


def _projected(layer: TrackedLayer, projection: Projection) -> Tensor:
    """Return R_o G R_iᵀ of a layer's weight gradient G, [Q·P], in float64."""
    grad = _grad(layer.module.weight)
    if layer.kind in ("conv1d", "embedding"):
        grad = grad.T
    grad = grad.reshape(layer.outputs, -1)
    if layer.bias:
        grad = torch.cat([grad, _grad(layer.module.bias).reshape(-1, 1)], dim=1)
    sides = projection.sides(layer.name, layer.inputs, layer.outputs, torch.float64)
    if sides.outputs is not None:
        grad = sides.outputs @ grad
    if sides.inputs is not None:
        grad = grad @ sides.inputs.T
    return grad.flatten()


def _grad(weight: Any) -> Tensor:
    return (torch.zeros_like(weight) if weight.grad is None else weight.grad).double().cpu()


def _unshared(model: nn.Module, layers: Sequence[TrackedLayer]) -> Sequence[TrackedLayer]:
    """Return the layers whose weight no other module has: of a shared one, autograd sums what reaches all of them."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    return [layer for layer in layers if owners[id(layer.module.weight)] == 1]
