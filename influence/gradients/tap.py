"""One tracked layer's hooks: they pair what the layer received with the gradient of what it returned."""

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from influence.axes import NSO
from influence.errors import CaptureError, ModelError
from influence.gradients.conv import output_positions
from influence.gradients.graph_start import own_node, start_graph
from influence.gradients.layout import TRIES, Known, Layout, fitting_layouts, known
from influence.gradients.linear import positions
from influence.model.layers import TrackedLayer, globs_for


class Sink(Protocol):
    """What is done with one layer's inputs and output gradients."""

    def keep(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Tensor | None:
        """Receive a layer's input, as it was called, and return what `take` needs of it, first axis N."""
        ...

    def take(self, grads: NSO, activations: Any, *, last: bool) -> None:
        """Receive the output gradient, [N, S, O], and what was kept.

        `last` says that no other use of the layer is due. Without it that isn't known: a use may not reach the values,
        or may have been under no_grad, which reentrant checkpointing runs again and others don't.
        """
        ...


class Tap:
    """One tracked layer's hooks, and what they know of the batch that runs."""

    def __init__(self, layer: TrackedLayer, sink: Sink) -> None:
        self.layer = layer
        self.examples: int | None = None
        """N while the backward pass runs; None otherwise."""
        self.positions: int | None = None
        """S of the batch, where that is known."""
        self.checkpoints = False
        """Whether the model checkpoints its activations, so that what ran under no_grad may be run again."""
        self.look: Callable[[Tensor], None] | None = None
        """Receives the output gradients in the place of the sink, while layouts are looked for."""
        self.quiet = False
        """Whether the sink is left alone."""
        self._sink = sink
        self._known: Known = known(layer.module)
        self._due = 0
        self._shape: tuple[int, ...] | None = None
        self._recorded = False
        self._unrecorded = False

    @property
    def unsettled(self) -> bool:
        """Whether the layout of the output that it returned last should be looked for."""
        if self._shape is None or self.examples is None:
            return not self._known.settled and self._known.tries < TRIES
        image = self.layer.kind == "conv2d"
        return not self._known.tells(self._shape, self.examples, self.positions, image=image)

    @property
    def uses_unknown(self) -> bool:
        """Whether it has not run yet."""
        return self._known.reached is None

    def start(self) -> None:
        """Begin a batch."""
        self.examples = None
        self._due, self._shape = 0, None
        self._recorded = self._unrecorded = False

    def check(self) -> None:
        """Refuse a layer whose only run left no graph.

        Raises:
            CaptureError: It ran under no_grad alone.
        """
        if self._unrecorded and not self._recorded:
            raise CaptureError(
                f"{self.layer.name} ran under no_grad and was never run again with gradients, so its rows would be "
                "zeros. If the model checkpoints its activations, use use_reentrant=False or let the checkpointed "
                "block's input require grad."
            )

    def finish(self) -> None:
        """Remember whether every use of this batch reached the values."""
        self._known.reached = self._due == 0

    def forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor | None:
        """Hand the input to the sink and wait for the output's gradient; the graph starts here where it hasn't yet.

        Raises:
            CaptureError: The layer was not called with one tensor.
        """
        if self.examples is None and (torch.is_grad_enabled() or self.checkpoints):
            # What checkpointing runs again during the backward pass is a use that was counted before.
            self._due += 1
        if not torch.is_grad_enabled():
            self._unrecorded = True
            return None
        if not isinstance(output, Tensor) or not args or not isinstance(args[0], Tensor):
            raise CaptureError(
                f"{self.layer.name} was not called with one tensor, so its gradient can't be captured: exclude it."
            )
        self._recorded = True
        self._shape = tuple(output.shape)
        activations = None
        if self.look is None and not self.quiet:
            with torch.no_grad():
                activations = self._sink.keep(module, args[0].detach(), output)
        replaced = None
        if not output.requires_grad:
            replaced = output = start_graph(output)
        elif output._base is not None:
            replaced = output = own_node(output)
        output.register_hook(lambda grad: self._backward(grad, activations))
        return replaced

    @torch.no_grad()
    def _backward(self, grad: Tensor, activations: Tensor | None) -> None:
        if self.examples is None:
            return
        if self.look is not None:
            self.look(grad)
            return
        layout = self._layout(grad)
        self._due -= 1
        if self.quiet:
            return
        grads = output_positions(grad) if self.layer.kind == "conv2d" else positions(grad)
        if len(grads) != len(grad if activations is None else activations):
            self._refuse(grad)
        grads = layout.by_example(grads, self.examples)
        self._sink.take(
            grads,
            activations if activations is None else layout.by_example(activations, self.examples),
            last=self._due == 0,
        )

    def _layout(self, grad: Tensor) -> Layout:
        """Return how this batch's examples lie, which a batch of one example needn't show."""
        assert self.examples is not None, "asked during the backward pass alone"
        if self.examples == 1:
            return Layout.FIRST if len(grad) == 1 else Layout.FLAT
        image, knowledge = self.layer.kind == "conv2d", self._known
        fitting = fitting_layouts(grad.shape, self.examples, self.positions, image=image)
        layout = knowledge.of(grad.shape, self.examples)
        if layout is None and len(fitting) == 1 and grad.ndim > 2:
            layout = fitting[0]
        if layout not in fitting:
            self._refuse(grad)
        return layout

    def _refuse(self, grad: Tensor) -> NoReturn:
        how = "" if self._known.layout is None else f", and has had them as {self._known.layout.value} before"
        raise ModelError(
            f"{self.layer.name} returned {tuple(grad.shape)} for a batch of {self.examples} examples{how}: its "
            "gradient can't be split by example. Leave it out: model.layers.exclude: "
            f"{globs_for([self.layer.name])}."
        )
