"""Autograd's own weight gradients of one batch, held against what the hooks see.

The hooks know a layer's gradient only from the calls of its module. A weight that is read past its module (Mamba's
`dt_proj`, `F.linear(x, layer.weight)`, PEFT's `target_parameters`), that two modules share, or whose module computes
something else than its type says, has another gradient than they see. So both are computed in the same pass, projected
alike, and compared. Autograd's gradients are projected as they come and dropped: one is held at a time.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from influence.errors import ModelError
from influence.gradients.capture import Capture, Terms
from influence.gradients.hooks import Measure
from influence.gradients.projection import Projection, ProjectionSettings
from influence.model.layers import TrackedLayer, globs_for

SKETCH = ProjectionSettings(p=8, q=8)
"""64 numbers a layer: as many random projections of its gradient."""
CHUNK = 2**24
"""Numbers of a weight gradient that are projected at once."""
LIMITS = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 0.02}
"""The error from which on a layer is refused, by the dtype of its gradients, in units of the terms that are summed
(`Terms.length`): what rounding does where a sum over examples and positions cancels is of their size, not the sum's."""
SAME = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far two passes over one batch may be apart, relative; 2e-2 in narrower dtypes."""


@dataclass(frozen=True)
class WeightGradients:
    """What one batch showed.

    Attributes:
        errors: By layer name |ours − autograd's| / |autograd's|, of the sum over examples; 0 where both are zero.
        refused: Layers whose error is beyond rounding.
        unseen: Layers whose module contributed nothing although autograd found a gradient.
        reached: Names of the parameters that got a gradient.
        shared: Layers whose weight other modules have as well, with those modules' names.
    """

    errors: Mapping[str, float]
    refused: tuple[str, ...]
    unseen: frozenset[str]
    reached: frozenset[str]
    shared: Mapping[str, tuple[str, ...]]

    def check(self) -> None:
        """Refuse layers whose gradient the hooks don't see or see wrongly.

        Raises:
            ModelError: There are some; all are named, with the reason where it is known and globs that leave them out.
        """
        bad = self.refused
        if bad:
            alike: dict[str, list[str]] = {}
            for name in bad:
                alike.setdefault(globs_for([name])[0], []).append(name)
            reasons = [
                self._reason(names[0]) + (f" (and {len(names) - 1} alike)" if len(names) > 1 else "")
                for names in alike.values()
            ]
            raise ModelError(
                f"{len(bad)} of {len(self.errors)} tracked layers have another weight gradient than their calls show: "
                f"{'; '.join(reasons)}. Rows would hold wrong numbers for them. Leave them out: "
                f"model.layers.exclude: {self._globs(bad)}."
            )

    def _reason(self, name: str) -> str:
        sharing = self.shared.get(name, ())
        if sharing:
            return f"{name} shares its weight with {', '.join(sharing[:3])}, whose part is missing"
        if name in self.unseen:
            return f"the model reads the weight of {name} without calling it"
        return f"{name} differs by {self.errors[name]:.2g} of its length"

    def _globs(self, bad: Sequence[str]) -> list[str]:
        """Return globs that match the layers that are bad and no others; their names where a glob can't."""
        globs = globs_for(bad)
        good = globs_for([name for name in self.errors if name not in bad])
        return globs if not set(globs) & set(good) else list(bad)


def weight_gradients(
    model: nn.Module,
    layers: Sequence[TrackedLayer],
    measure: Measure,
    batch: Any,
    trained: Collection[str] = (),
    projection: Projection | None = None,
) -> WeightGradients:
    """Compare the hooks with autograd on one batch; the model is left as it was found.

    Args:
        model: In eval mode.
        layers: The tracked layers.
        measure: Gives one value an example, [N].
        batch: What `measure` understands. Two examples or more show the layers' layouts as well.
        trained: Names of other parameters, of which it should be found out whether they get a gradient.
        projection: Two-sided; what is compared. 8 × 8 numbers a layer unless given.

    Raises:
        ModelError: The output of a tracked layer can't be split by example, or two passes give other values.
        TaskError, CaptureError: See `Hooks.run`.
    """
    projection = projection or Projection(SKETCH)
    sums = _Sums(layers, projection)
    with Capture(model, layers, projection) as capture:
        # Layouts are found by backward passes of their own, which must not reach the weights.
        before = capture.learn(measure, batch)
        with _collected(model, sums, trained) as reached:
            capture.looks = False
            rows, values, terms = _captured(capture, measure, batch)
        modules = capture.modules
    _check_repeatable(model, before, values)
    errors, unseen, refused = {}, set(), []
    for module in modules:
        own, reference = rows[:, module.start : module.stop], sums.total[module.name].flatten()
        total = own.to(reference).sum(dim=0)
        difference = float(torch.linalg.vector_norm(total - reference))
        # Where examples cancel, rounding is of the size of their own lengths.
        length = max(float(torch.linalg.vector_norm(reference)), float(torch.linalg.vector_norm(own)))
        errors[module.name] = difference / length if length else difference
        # What isn't finite is some row's fault, and is refused with the row's name elsewhere.
        if difference > _limit(terms[module.name], model) * max(length, terms[module.name].length):
            refused.append(module.name)
        if not bool(own.any()) and bool(reference.any()):
            unseen.add(module.name)
    return WeightGradients(errors, tuple(refused), frozenset(unseen), frozenset(reached), _shared(model, layers))


def _limit(terms: Terms, model: nn.Module) -> float:
    wide = terms.dtype == torch.float32
    if wide and next(model.parameters()).is_cuda and torch.backends.cuda.matmul.allow_tf32:
        return LIMITS[torch.float16]
    return LIMITS.get(terms.dtype, max(LIMITS.values()))


def _check_repeatable(model: nn.Module, before: Tensor, values: Tensor) -> None:
    """Refuse a model or a task that is random in evaluation mode.

    Raises:
        ModelError: Two passes over the same batch gave other values.
    """
    near = SAME.get(min(values.dtype, next(model.parameters()).dtype, key=lambda dtype: torch.finfo(dtype).bits), 2e-2)
    apart = (values - before).abs()
    worst = int(torch.argmax(apart.nan_to_num(0)))
    if float(apart[worst]) > near * max(1e-6, float(before[worst].abs())):
        raise ModelError(
            f"{type(model).__name__} is random in evaluation mode: two passes over the same batch gave example {worst} "
            f"the values {float(before[worst]):.6g} and {float(values[worst]):.6g}, so gradients would be noise. A "
            "dropout may be left on (F.dropout without training=self.training), noise may be added, or the task may "
            "draw labels or switch the model into training mode. Switch it off, or draw from a generator with a fixed "
            "seed."
        )


def _captured(capture: Capture, measure: Measure, batch: Any) -> tuple[Tensor, Tensor, dict[str, Terms]]:
    try:
        return capture.weighed(measure, batch)
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ModelError(
            f"An ordinary backward pass through {type(capture.model).__name__} fails in evaluation mode, so "
            f"the captured gradients of its layers cannot be compared with it: {str(error).splitlines()[0]}"
        ) from error


class _Sums:
    """The projected weight gradient of each layer, added up as autograd finds its parameters'."""

    def __init__(self, layers: Sequence[TrackedLayer], projection: Projection) -> None:
        wide = torch.float64
        self._sides = {layer.name: projection.sides(layer.name, layer.inputs, layer.outputs, wide) for layer in layers}
        self.total = {name: torch.zeros(side.q, side.p, dtype=torch.float64) for name, side in self._sides.items()}
        self.owners: dict[int, list[tuple[TrackedLayer, str]]] = {}
        for layer in layers:
            for kind in ("weight", "bias") if layer.bias else ("weight",):
                self.owners.setdefault(id(getattr(layer.module, kind)), []).append((layer, kind))

    def add(self, parameter: Tensor, grad: Tensor) -> None:
        """Add a parameter's gradient to the layers that have it."""
        grad = grad.to_dense() if grad.is_sparse else grad
        for layer, kind in self.owners.get(id(parameter), ()):
            if kind == "bias":
                self._add(layer.name, grad.reshape(-1, 1), slice(layer.inputs - 1, layer.inputs))
                continue
            matrix = grad.T if layer.kind in ("conv1d", "embedding") else grad.reshape(layer.outputs, -1)
            step = max(1, CHUNK // matrix.shape[1])
            for start in range(0, len(matrix), step):
                part = slice(start, start + step)
                self._add(layer.name, matrix[part], slice(0, matrix.shape[1]), part)

    def _add(self, name: str, block: Tensor, columns: slice, rows: slice = slice(None)) -> None:
        """Add R_o B R_iᵀ of a block B of a layer's gradient."""
        side, total = self._sides[name], self.total[name]
        wide = block.to(torch.float64 if block.dtype == torch.float64 else torch.float32)
        if side.inputs is not None:
            wide = wide @ side.inputs[:, columns].to(wide).T
        if side.outputs is not None:
            wide = side.outputs[:, rows].to(wide) @ wide
        place = total if side.outputs is not None else total[rows]
        (place if side.inputs is not None else place[:, columns]).add_(wide.to(total))


@contextmanager
def _collected(model: nn.Module, sums: _Sums, trained: Collection[str]) -> Iterator[set[str]]:
    """Let parameters have gradients, each added to the sums and dropped as it comes; yields the names that got one."""
    reached: set[str] = set()
    handles, before = [], {}

    def receiver(name: str) -> Callable[[Tensor], None]:
        def receive(parameter: Tensor) -> None:
            grad, parameter.grad = parameter.grad, None
            if grad is not None:
                reached.add(name)
                sums.add(parameter, grad)

        return receive

    try:
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and (name in trained or id(parameter) in sums.owners):
                before[parameter] = (parameter.grad, parameter.requires_grad)
                parameter.grad = None
                parameter.requires_grad_(True)
                handles.append(parameter.register_post_accumulate_grad_hook(receiver(name)))
        yield reached
    finally:
        for handle in handles:
            handle.remove()
        for parameter, (grad, required) in before.items():
            parameter.requires_grad_(required)
            parameter.grad = grad


def _shared(model: nn.Module, layers: Sequence[TrackedLayer]) -> dict[str, tuple[str, ...]]:
    """Return the layers whose weight other modules have as well, with the names of those."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    sharing = {layer.name: owners.get(id(layer.module.weight), []) for layer in layers}
    return {name: tuple(other for other in names if other != name) for name, names in sharing.items() if len(names) > 1}


__all__ = ["LIMITS", "WeightGradients", "weight_gradients"]
