"""The Kronecker factors' sums: what a layer receives, and the gradient of what it returns, each with itself.

Per module, over the rows of a random sample:

    A = Σ_{n,s} a aᵀ / T     [I, I]    T the positions that hold a token
    S = Σ_{n,s} g gᵀ / N     [O, O]    N the examples

With S per example (not per token) A⊗S has the scale of the Fisher of the mean example loss,
(1/N) Σ_n vec(G_n)vec(G_n)ᵀ, so that one damping means the same here and there. Sums of disjoint rows merge by addition.
The gradients are those of labels drawn from the model (the true Fisher), or of the data's own (the empirical one): the
recipe says which.

Source: Martens & Grosse 2015, "Optimizing neural networks with Kronecker-factored approximate curvature", section 3.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from influence.axes import NS, NSI, NSO, PerExample
from influence.errors import CurvatureError
from influence.gradients.hooks import Hooks, Measure, layer_inputs
from influence.gradients.layout import Layout, known
from influence.model.layers import TrackedLayer
from influence.model.unembedding import unembedding

NARROWEST = 96
"""Columns of the narrowest strip that a product is cut into."""


class FactorSettings(BaseModel):
    """How Kronecker factors are fitted.

    Attributes:
        labels: `sampled` from the model's own distribution (the true Fisher), or `empirical`, the data's.
        rows: The size of the random sample they are fitted to; None takes every row.
        seed: Of the sample and of the labels drawn.
        width_limit: The widest side (a layer's inputs or outputs) that is decomposed whole.
        blocks: A wider side is cut into this many blocks and its factor is block diagonal; 1 refuses it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: Literal["sampled", "empirical"] = "sampled"
    rows: Annotated[int, Field(ge=1)] | None = 4096
    seed: Annotated[int, Field(ge=0)] = 0
    width_limit: Annotated[int, Field(ge=1)] = 16_384
    blocks: Annotated[int, Field(ge=1)] = 1

    @property
    def summary(self) -> str:
        """The fit in words: `sampled labels, 4,096 random rows`."""
        rows = "every row" if self.rows is None else f"up to {self.rows:,} random rows"
        return f"{self.labels} labels, {rows}"

    def label_seed(self, *place: int) -> int:
        """Return the seed of the labels drawn for one batch, told from others by its place in the fit."""
        digest = hashlib.sha256(":".join(map(str, (self.seed, *place))).encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    def cut(self, name: str, side: str, width: int) -> tuple[slice, ...]:
        """Return the diagonal blocks of a side of this width, one unless it is over the limit.

        Raises:
            CurvatureError: It is over the limit, and so would its blocks be.
        """
        count = self.blocks if width > self.width_limit else 1
        size = -(-width // count)
        if size > self.width_limit:
            raise CurvatureError(
                f"{name} has {width:,} {side}; its factor would hold {width:,}² numbers and the limit is "
                f"{self.width_limit:,} a side. Exclude the layer (model.layers.exclude), or cut wide sides into "
                f"{-(-width // self.width_limit)} blocks: recipe.factors.blocks."
            )
        return tuple(slice(start, min(width, start + size)) for start in range(0, width, size))


@dataclass(frozen=True)
class ModuleWidths:
    """One module's name and sides: I inputs (one more where the bias is tracked) and O outputs."""

    name: str
    inputs: int
    outputs: int


def widths_of(layers: Sequence[TrackedLayer]) -> tuple[ModuleWidths, ...]:
    """Return the sides of tracked layers."""
    return tuple(ModuleWidths(layer.name, layer.inputs, layer.outputs) for layer in layers)


@dataclass
class CovarianceSums:
    """Σ a aᵀ and Σ g gᵀ of each module over some examples; sums of disjoint examples merge by addition.

    Attributes:
        modules: Whose they are.
        settings: How wide sides are cut.
        examples: N.
        positions: T of each module.
        losses: Of all examples together, in nats: of the labels that the gradients are of.
        inputs: Σ a aᵀ, one [w, w] a block of the inputs' side.
        outputs: Σ g gᵀ likewise.
    """

    modules: tuple[ModuleWidths, ...]
    settings: FactorSettings
    examples: int = 0
    positions: dict[str, int] = field(default_factory=dict)
    losses: float = 0.0
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse sides that are too wide, by name, before anything is computed."""
        for module in self.modules:
            self.settings.cut(module.name, "inputs", module.inputs)
            self.settings.cut(module.name, "outputs", module.outputs)

    def merge(self, other: Self) -> None:
        """Add the sums of other examples; merge in a fixed order for the same bits every time."""
        self.examples += other.examples
        self.losses += other.losses
        for own, added in ((self.inputs, other.inputs), (self.outputs, other.outputs)):
            for name, blocks in added.items():
                own[name] = [a + b for a, b in zip(own[name], blocks, strict=True)] if name in own else blocks
        for name, count in other.positions.items():
            self.positions[name] = self.positions.get(name, 0) + count

    def names(self) -> list[str]:
        """Return the names that `tensors` gives where every module ran."""
        names = ["examples", "losses"]
        for module in self.modules:
            names.append(f"positions.{module.name}")
            for side, width in (("inputs", module.inputs), ("outputs", module.outputs)):
                count = len(self.settings.cut(module.name, side, width))
                names += [f"{side}.{number}.{module.name}" for number in range(count)]
        return names

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors on the CPU, to be saved."""
        tensors = {"examples": torch.tensor(self.examples), "losses": torch.tensor(self.losses, dtype=torch.float64)}
        for module in self.modules:
            tensors[f"positions.{module.name}"] = torch.tensor(self.positions.get(module.name, 0))
            for side, sums in (("inputs", self.inputs), ("outputs", self.outputs)):
                for number, block in enumerate(sums.get(module.name, ())):
                    tensors[f"{side}.{number}.{module.name}"] = block.cpu()
        return tensors

    @classmethod
    def from_tensors(
        cls, modules: Sequence[ModuleWidths], settings: FactorSettings, tensors: Mapping[str, Tensor]
    ) -> Self:
        """Return the sums that `tensors()` gave."""
        sums = cls(tuple(modules), settings, int(tensors["examples"]))
        # Sums of a build that an earlier version began have none.
        sums.losses = float(tensors.get("losses", torch.tensor(torch.nan)))
        for module in modules:
            sums.positions[module.name] = int(tensors[f"positions.{module.name}"])
            for side, into, width in (
                ("inputs", sums.inputs, module.inputs),
                ("outputs", sums.outputs, module.outputs),
            ):
                names = [f"{side}.{k}.{module.name}" for k in range(len(settings.cut(module.name, side, width)))]
                arrays = [tensors[name] for name in names if name in tensors]
                if arrays:
                    into[module.name] = arrays
        return sums


class CovarianceFit(Hooks):
    """Sums covariances over batches; a context manager that leaves the model as it found it.

    Attributes:
        sums: What was added so far.
    """

    def __init__(self, model: nn.Module, layers: Sequence[TrackedLayer], settings: FactorSettings) -> None:
        self.sums = CovarianceSums(widths_of(layers), settings)
        last = unembedding(model)
        self._sinks = [_Covariances(layer, self.sums, sliced=layer.module is last) for layer in layers]
        super().__init__(model, layers, self._sinks)

    def add(self, measure: Measure, batch: Any, mask: NS | None = None, scale: PerExample | None = None) -> None:
        """Add a batch.

        Args:
            measure: Gives the loss of each example, [N], summed over its positions.
            batch: Whatever `measure` understands.
            mask: [N, S], nonzero where a position holds a token. An unembedding may be called on slices of the
                positions, one after another. Positions of other layers whose inputs have another shape than [N, S, I],
                such as a classifier's head, all count.
            scale: [N], what the measure divided each example's summed loss by; None stands for 1. See `fisher_scale`.

        After an error the sums hold an unknown part of the batch: begin anew.

        Raises:
            TaskError, CaptureError: See `Hooks.run`.
        """
        if not self.knows(1 if mask is None else len(mask)):
            self.learn(measure, batch)
        for sink in self._sinks:
            sink.begin(mask)

        def turn(values: Tensor) -> None:
            for sink in self._sinks:
                sink.backward = True

        values = self.run(measure, batch, turn).double()
        self.sums.examples += len(values)
        self.sums.losses += float((values if scale is None else values * scale.to(values)).sum())


class _Covariances:
    """One layer's two sums: the sink of its hooks.

    Inputs are added as the forward pass meets them, so that none is held. What checkpointing runs again during the
    backward pass is added only when its output gradient comes: without reentrancy it never does, because that use was
    added before. Of a layer with uses that never reach the values (DoRA measures its adapter on an identity matrix)
    inputs wait for their output gradient, too.
    """

    def __init__(self, layer: TrackedLayer, sums: CovarianceSums, *, sliced: bool) -> None:
        self.backward = False
        self._layer = layer
        self._sums = sums
        self._sliced = sliced
        self._mask: Tensor | None = None
        self._place = 0
        self._inputs = sums.settings.cut(layer.name, "inputs", layer.inputs)
        self._outputs = sums.settings.cut(layer.name, "outputs", layer.outputs)

    def begin(self, mask: Tensor | None) -> None:
        """Forget the last batch."""
        self.backward = False
        self._mask = mask
        self._place = 0

    def keep(self, module: nn.Module, inputs: Tensor, output: Tensor) -> NSI | None:
        received, layout = layer_inputs(self._layer, inputs, output), known(self._layer.module)
        if self.backward or (layout.reached is False and not self._sliced):
            return received
        self._add_inputs(received, layout.layout or Layout.FIRST)
        return None

    def take(self, grads: NSO, activations: NSI | None, *, last: bool) -> None:
        if activations is not None:
            self._add_inputs(activations, Layout.FIRST)
        _add(self._sums.outputs, self._layer.name, grads, self._outputs)

    def _add_inputs(self, received: Tensor, layout: Layout) -> None:
        """Add inputs, [A, B, I] with the examples in this layout."""
        mask = self._mask
        if mask is not None and self._sliced:
            mask = mask[:, self._place : self._place + received.shape[1]]
            self._place += received.shape[1]
        count = received.shape[0] * received.shape[1]
        if mask is not None:
            mask = layout.of_mask(mask)
        if mask is not None and mask.shape == received.shape[:2]:
            present = (mask != 0).to(received.device)
            received = received * present.unsqueeze(2).to(received.dtype)
            count = int(present.sum())
        name = self._layer.name
        self._sums.positions[name] = self._sums.positions.get(name, 0) + count
        _add(self._sums.inputs, name, received, self._inputs)


def _add(sums: dict[str, list[Tensor]], name: str, vectors: Tensor, blocks: tuple[slice, ...]) -> None:
    """Add Σ v vᵀ of vectors [N, S, W], in float32 or better."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    flat = flat if flat.dtype == torch.float64 else flat.float()
    if name not in sums:
        sums[name] = [flat.new_zeros(part.stop - part.start, part.stop - part.start) for part in blocks]
    for total, part in zip(sums[name], blocks, strict=True):
        _add_symmetric(total, flat[:, part])


def _add_symmetric(total: Tensor, vectors: Tensor) -> None:
    """Add vᵀv of vectors [n, w] to a symmetric [w, w]: the lower triangle by strips, then its mirror image.

    Strips of an eighth of the width take .56 of the products of the whole; narrower ones multiply too slowly.
    """
    width = len(total)
    step = max(NARROWEST, -(-width // 8))
    for start in range(0, width, step):
        stop = min(start + step, width)
        total[start:, start:stop].addmm_(vectors[:, start:].T, vectors[:, start:stop])
        total[start:stop, stop:] = total[stop:, start:stop].T
