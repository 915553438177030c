"""What a tracked layer receives and the gradient of what it returns, by hooks on a frozen model.

The forward hook hands a layer's input to its sink; a hook on the layer's output hands over the output gradient. **No
weight gradient is ever computed**: parameters are frozen, and the graph starts at the outputs of the first tracked
layers (or, under gradient checkpointing, at the output of the input embedding), so that only activation gradients flow.
The measured values are summed before the backward pass, which makes an example's share independent of its batch.

An example's part of a layer's output is found from gradients the first time that several examples run: see `layout`.

A layer used twice is handed over twice. Under non-reentrant checkpointing the recomputed graph is never run backwards,
under reentrant checkpointing only the recomputed one is: each use is handed over once either way.

Source: Goodfellow 2015, "Efficient per-example gradient computations".
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from influence.axes import NSI, PerExample
from influence.data.batch_fields import batch_field
from influence.errors import CaptureError, TaskError
from influence.gradients.conv import project_patches
from influence.gradients.graph_start import checkpoints_activations, require_grad
from influence.gradients.layout import Evidence, Layout, ends, halves, settle
from influence.gradients.linear import positions, project_inputs, project_tokens
from influence.gradients.tap import Sink, Tap
from influence.model.layers import TrackedLayer

Measure = Callable[[Any, Any], Tensor]


_turns: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
"""Held while a batch runs through a model: of two threads' batches each would meet the other's hooks."""
_turns_given = threading.Lock()


class Collector(Protocol):
    """A sink that adds to a tensor of one row an example."""

    made: Tensor | None
    """[N, width], while the backward pass runs."""


class Hooks:
    """Hooks on the tracked layers of one model; a context manager that leaves the model as it found it.

    While it is open the model's parameters don't require gradients. Runs don't influence one another; those of several
    threads through one model take turns, and hooks aren't set or removed in the middle of one. The model's `training`
    flag is not touched: put it in eval mode, or dropout makes gradients random.
    """

    def __init__(self, model: nn.Module, layers: Sequence[TrackedLayer], sinks: Sequence[Sink]) -> None:
        self.model = model
        self._taps = [Tap(layer, sink) for layer, sink in zip(layers, sinks, strict=True)]
        self.looks = True
        """Whether unknown layouts are looked for, by backward passes of some examples."""
        self._handles: list[Any] = []
        self._trained: list[nn.Parameter] = []
        with _turns_given:
            self._turn = _turns.setdefault(model, threading.RLock())

    def __enter__(self) -> Self:
        """Freeze the parameters and set the hooks."""
        with self._turn:
            self._set()
        return self

    def _set(self) -> None:
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for parameter in self._trained:
            parameter.requires_grad_(False)
        # First in line: another hook may change what the layer returned, and g belongs to what its weight made.
        self._handles = [tap.layer.module.register_forward_hook(tap.forward, prepend=True) for tap in self._taps]
        checkpoints = checkpoints_activations(self.model)
        for tap in self._taps:
            tap.checkpoints = checkpoints
        if checkpoints:
            embedding = self.model.get_input_embeddings()  # type: ignore[operator]
            self._handles.append(embedding.register_forward_hook(require_grad))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks and give the parameters back their flags."""
        with self._turn:
            for handle in self._handles:
                handle.remove()
            for parameter in self._trained:
                parameter.requires_grad_(True)
            self._handles, self._trained = [], []

    def run(self, measure: Measure, batch: Any, begin: Callable[[Tensor], None] | None = None) -> PerExample:
        """Differentiate the sum of every example's measured value; the sinks hear of every tracked layer.

        Args:
            measure: `measure(model, batch)` gives one value an example, [N], summed over its positions.
            batch: Whatever `measure` understands, of N examples.
            begin: Called with the values, [N], between the forward and the backward pass.

        Returns:
            The values [N], detached.

        Raises:
            TaskError: The measure doesn't give one value an example.
            ModelError: The output of a tracked layer can't be split by example.
            CaptureError: A layer ran where no graph was recorded, or the hooks were removed by the measure itself.
        """
        with self._turn:
            return self._run(measure, batch, begin)

    def _run(self, measure: Measure, batch: Any, begin: Callable[[Tensor], None] | None) -> PerExample:
        handles = self._handles
        if not handles:
            raise CaptureError("Hooks are set by a context manager: call this inside `with Capture(...) as capture:`.")
        for tap in self._taps:
            tap.start()
        try:
            with torch.enable_grad():
                values = measure(self.model, batch)
                self._check(values)
                positions = _positions(batch, len(values))
                for tap in self._taps:
                    tap.examples, tap.positions = len(values), positions
                self._settle_layouts(values, positions)
                if begin is not None:
                    begin(values)
                values.sum().backward()
            if self._handles is not handles:
                raise CaptureError("The hooks were removed while a batch ran: parts of its gradients would be zeros.")
            for tap in self._taps:
                tap.check()
        finally:
            for tap in self._taps:
                tap.examples = None
        for tap in self._taps:
            tap.finish()
        return values.detach()

    def learn(self, measure: Measure, batch: Any) -> PerExample:
        """Run a batch past the sinks, to learn how its examples lie in each layer and which uses reach the values."""
        with self._turn:
            for tap in self._taps:
                tap.quiet = True
            try:
                return self._run(measure, batch, None)
            finally:
                for tap in self._taps:
                    tap.quiet = False

    def knows(self, examples: int) -> bool:
        """Whether `learn` would find out nothing new from a batch of so many examples."""
        return not any(tap.uses_unknown or (examples > 1 and tap.unsettled) for tap in self._taps)

    def _settle_layouts(self, values: Tensor, positions: int | None) -> None:
        """Find out how the examples lie in the layers of which that isn't known, by backward passes of some of them."""
        count = len(values)
        unknown = [tap for tap in self._taps if tap.unsettled]
        if count < 2 or not unknown or not self.looks:
            return
        evidence = [Evidence(positions, image=tap.layer.kind == "conv2d") for tap in unknown]

        def look(inside: Tensor) -> None:
            for tap, observation in zip(unknown, evidence, strict=True):
                tap.look = partial(observation.add, inside=inside)
            values[inside.to(values.device)].sum().backward(retain_graph=True)

        try:
            for tap in self._taps:
                tap.look = _ignore
            for inside in ends(count):
                look(inside)
            if any(entry.left and entry.left[0] in (Layout.FLAT, Layout.FLAT_SECOND) for entry in evidence):
                for inside in halves(count):
                    look(inside)
        finally:
            for tap in self._taps:
                tap.look = None
        settle(
            [(t.layer.name, t.layer.module, entry) for t, entry in zip(unknown, evidence, strict=True)],
            count,
        )

    def collect(
        self, measure: Measure, batch: Any, width: int, sinks: Sequence[Collector]
    ) -> tuple[Tensor, PerExample]:
        """Run with sinks that add to one tensor, a row an example.

        Args:
            measure: See `run`.
            batch: See `run`.
            width: Numbers a row.
            sinks: Given the tensor, all zeros, before the backward pass, and relieved of it afterwards.

        Returns:
            What the sinks made, [N, width], float32 (float64 for float64 values), on the values' device; and the values
            [N], detached.

        Raises:
            TaskError, CaptureError: See `run`.
        """
        made: list[Tensor] = []

        def begin(values: Tensor) -> None:
            dtype = torch.float64 if values.dtype == torch.float64 else torch.float32
            made.append(torch.zeros(len(values), width, dtype=dtype, device=values.device))
            for sink in sinks:
                sink.made = made[0]

        with self._turn:
            try:
                values = self.run(measure, batch, begin)
            finally:
                for sink in sinks:
                    sink.made = None
        return made[0], values

    def _check(self, values: Any) -> None:
        if not isinstance(values, Tensor) or values.ndim != 1:
            actual = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise TaskError(f"A task must return one value an example, shape [N]; found {actual}. Sum over positions.")
        if not values.requires_grad:
            names = ", ".join(tap.layer.name for tap in self._taps[:5])
            raise CaptureError(
                f"The measured values don't depend on any tracked layer ({names}, …): either these layers are "
                "not part of the forward pass, or it ran under no_grad."
            )


def layer_inputs(layer: TrackedLayer, inputs: Tensor, output: Tensor, side: Tensor | None = None) -> NSI:
    """Return what a tracked layer received as a[n, s, :], projected with R_i where there is one.

    Args:
        layer: Its kind and whether its bias is tracked decide the form.
        inputs: As the layer was called.
        output: What it returned; its dtype is the result's.
        side: R_i, [P, I], in the output's dtype; None keeps every input.

    Returns:
        [N, S, I] or [N, S, P], in the output's dtype; with a 1 appended (before projection) where the bias is tracked.
        Of a layer that doesn't have the examples on its first axis, [A, B, …] with the axes as they are.
    """
    # Of a model spread over devices a layer may be called with the last one's output, which is still there.
    inputs = inputs.to(output.device)
    if isinstance(layer.module, nn.Embedding):
        return positions(project_tokens(inputs, side, layer.inputs, output.dtype, layer.module.padding_idx))
    inputs = inputs.to(output.dtype)
    if isinstance(layer.module, nn.Conv2d):
        return project_patches(layer.module, inputs, side, layer.bias)
    return project_inputs(inputs, side, layer.bias)


def _positions(batch: Any, examples: int) -> int | None:
    """Return S where a batch has `input_ids`, [N, S]."""
    tokens = batch_field(batch, "input_ids")
    return tokens.shape[1] if isinstance(tokens, Tensor) and tokens.ndim == 2 and len(tokens) == examples else None


def _ignore(grad: Tensor) -> None:
    """Look at nothing."""


__all__ = ["Collector", "Hooks", "Measure", "Sink", "layer_inputs"]
