"""Per-example gradients of a frozen model by hooks, projected on the way.

The forward hook of a tracked layer keeps only its projected input, [N, S, P]; a hook on the layer's output receives
the output gradient, projects it and adds one batched product to the rows. **No weight gradient is ever computed**:
parameters are frozen, and the graph starts at the outputs of the first tracked layers (or, under gradient
checkpointing, at the output of the input embedding), so that only activation gradients flow. The measured values are
summed before the backward pass, which makes a row independent of the batch it came in.

A layer used twice adds twice. Under non-reentrant checkpointing the recomputed graph is never run backwards, under
reentrant checkpointing only the recomputed one is: each use adds once either way.

Sources: Goodfellow 2015, "Efficient per-example gradient computations"; Choe et al. 2024 (LoGra), section 3.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from influence.axes import ND, ModuleColumns, PerExample
from influence.errors import CaptureError, TaskError
from influence.gradients.conv import output_positions, project_patches
from influence.gradients.linear import project_inputs, project_output_grads, project_tokens, sum_over_positions
from influence.gradients.projection import Projection, Sides
from influence.model.layers import TrackedLayer

Measure = Callable[[Any, Any], Tensor]


class Capture:
    """Hooks on the tracked layers of one model; a context manager that leaves the model as it found it.

    While it is open the model's parameters don't require gradients. Calling it gives the rows of one batch; calls don't
    influence one another. The model's `training` flag is not touched: put it in eval mode, or dropout makes rows
    random.

    Attributes:
        modules: Which columns of a row belong to which layer.
        dims: D, the columns of a row.
    """

    def __init__(self, model: nn.Module, layers: Sequence[TrackedLayer], projection: Projection) -> None:
        self.model = model
        self.modules, sides = lay_out(layers, projection)
        self.dims = self.modules[-1].stop if self.modules else 0
        self._taps = [
            _Tap(layer, columns, side) for layer, columns, side in zip(layers, self.modules, sides, strict=True)
        ]
        self._handles: list[Any] = []
        self._trained: list[nn.Parameter] = []

    def __enter__(self) -> Self:
        """Freeze the parameters and set the hooks."""
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in self._trained:
            parameter.requires_grad_(False)
        self._handles = [tap.layer.module.register_forward_hook(tap.forward) for tap in self._taps]
        if _checkpoints_activations(self.model):
            embedding = self.model.get_input_embeddings()  # type: ignore[operator]
            self._handles.append(embedding.register_forward_hook(_require_grad))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks and give the parameters back their flags."""
        for handle in self._handles:
            handle.remove()
        for parameter in self._trained:
            parameter.requires_grad_(True)
        self._handles, self._trained = [], []

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
        if not self._handles:
            raise CaptureError("Capture is a context manager: call it inside `with Capture(...) as capture:`.")
        for tap in self._taps:
            tap.start()
        try:
            with torch.enable_grad():
                values = measure(self.model, batch)
                if not isinstance(values, Tensor) or values.ndim != 1:
                    found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                    raise TaskError(
                        f"A task must return one value an example, shape [N]; found {found}. Sum over positions."
                    )
                if not values.requires_grad:
                    names = ", ".join(tap.layer.name for tap in self._taps[:5])
                    raise CaptureError(
                        f"The measured values don't depend on any tracked layer ({names}, …): either these layers are "
                        "not part of the forward pass, or it ran under no_grad."
                    )
                dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
                rows = torch.zeros(len(values), self.dims, dtype=dtype, device=values.device)
                for tap in self._taps:
                    tap.rows = rows
                values.sum().backward()
            for tap in self._taps:
                tap.check()
        finally:
            for tap in self._taps:
                tap.rows = None
        return rows, values.detach()


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


class _Tap:
    """One tracked layer's hooks."""

    def __init__(self, layer: TrackedLayer, columns: ModuleColumns, sides: Sides) -> None:
        self.layer = layer
        self.columns = columns
        self.rows: Tensor | None = None
        self._sides = sides
        self._recorded = False
        self._unrecorded = False

    def start(self) -> None:
        self.rows = None
        self._recorded = self._unrecorded = False

    def check(self) -> None:
        if self._unrecorded and not self._recorded:
            raise CaptureError(
                f"{self.layer.name} ran under no_grad and was never run again with gradients, so its rows would be "
                "zeros. If the model checkpoints its activations, use use_reentrant=False or let the checkpointed "
                "block's input require grad."
            )

    def forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        if not torch.is_grad_enabled():
            self._unrecorded = True
            return None
        if not isinstance(output, Tensor) or not args or not isinstance(args[0], Tensor):
            raise CaptureError(
                f"{self.layer.name} was not called with one tensor, so its gradient can't be captured: exclude it."
            )
        self._recorded = True
        with torch.no_grad():
            projected = self._project(module, args[0].detach(), output)
        replaced = None
        if not output.requires_grad:
            replaced = output = _start_graph(output)
        output.register_hook(lambda grad: self._backward(grad, projected))
        return replaced

    def _project(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor:
        side, bias = self._side("inputs", output), self.layer.bias
        if self.layer.kind == "embedding":
            return project_tokens(inputs, side, self.layer.inputs, output.dtype)
        inputs = inputs.to(output.dtype)
        if isinstance(module, nn.Conv2d):
            return project_patches(module, inputs, side, bias)
        return project_inputs(inputs, side, bias)

    @torch.no_grad()
    def _backward(self, grad: Tensor, projected: Tensor) -> None:
        rows = self.rows
        if rows is None:
            return
        examples = rows.shape[0]
        if grad.shape[0] != examples or projected.shape[0] != examples:
            raise CaptureError(
                f"{self.layer.name} returned {tuple(grad.shape)} for a batch of {examples} examples: its first axis "
                "isn't the batch, so its gradient can't be split by example. Exclude this layer."
            )
        if self.layer.kind == "conv2d":
            grad = output_positions(grad)
        product = sum_over_positions(project_output_grads(grad, self._side("outputs", grad)), projected, rows.dtype)
        rows[:, self.columns.start : self.columns.stop] += product.flatten(1).to(rows.device)

    def _side(self, which: str, like: Tensor) -> Tensor | None:
        """The projection matrix in the dtype and on the device of `like`, moved once."""
        side = getattr(self._sides, which)
        if side is not None and (side.dtype != like.dtype or side.device != like.device):
            side = side.to(device=like.device, dtype=like.dtype)
            kept = {"inputs": self._sides.inputs, "outputs": self._sides.outputs, which: side}
            self._sides = Sides(**kept, p=self._sides.p, q=self._sides.q)
        return side


def _checkpoints_activations(model: nn.Module) -> bool:
    """Ask by the new name first: transformers 5 renamed the property and warns on the old name."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    name = (
        "is_activation_checkpointing"
        if hasattr(type(model), "is_activation_checkpointing")
        else "is_gradient_checkpointing"
    )
    return bool(getattr(model, name, False))


def _require_grad(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    """Start the graph at the input embedding: reentrant checkpointing needs a block's input to require grad."""
    return output if output.requires_grad or not torch.is_grad_enabled() else _start_graph(output)


def _start_graph(output: Tensor) -> Tensor:
    """Return the same numbers as the first node of a graph; not a leaf, which in-place activations can't change."""
    anchor = torch.empty(0, requires_grad=True)
    started: Tensor = _Start.apply(output, anchor)  # type: ignore[assignment]
    return started


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None
