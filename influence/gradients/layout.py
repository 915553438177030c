"""How the N examples of a batch lie in a tracked layer's output. Decided from gradients, never from sizes.

The value of one example depends on the positions of that example alone, so the gradient of some examples' values with
respect to a layer's output is exactly zero at the positions of all others. A layout that contradicts this is dropped;
where none is left, the layer mixes examples or gathers their tokens, and its gradient can't be split by example.
Sizes alone would take a sequence-first [S, N, H] with S = N for a batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from influence.axes import NS
from influence.errors import ModelError
from influence.model.layers import globs_for

TRIES = 2
"""Batches in which a layer may have no gradient before its layout is taken from its shape, where that leaves one, and
before one that never runs is no longer looked at."""


class Layout(Enum):
    """Where the examples are in a layer's output; the last axis holds features (a convolution's: channels, H, W)."""

    FIRST = "[N, …]"
    SECOND = "[S, N, …]"
    FLAT = "[N·S, …]"
    FLAT_SECOND = "[S·N, …]"

    def fits(self, shape: Sequence[int], examples: int, *, image: bool) -> bool:
        """Whether an output of this shape can hold so many examples in this layout."""
        if self is Layout.FIRST:
            return shape[0] == examples
        if self is Layout.SECOND:
            return not image and len(shape) == 3 and shape[1] == examples
        return shape[0] > examples and shape[0] % examples == 0

    def contradicts(self, grad: Tensor, inside: Tensor) -> bool:
        """Whether a gradient is nonzero at positions of examples that are not `inside`, bool [N]."""
        used = grad.ne(0)
        if self is Layout.SECOND:
            return bool((used.any(dim=2).any(dim=0) & ~inside).any())
        places = torch.arange(len(grad), device=grad.device)
        if self is Layout.FLAT:
            places = places // (len(grad) // len(inside))
        if self is Layout.FLAT_SECOND:
            places = places % len(inside)
        return bool((used.flatten(1).any(dim=1) & ~inside[places]).any())

    def by_example(self, tensor: Tensor, examples: int) -> Tensor:
        """Return [A, B, …] as the layer had it, B positions after the first axis, as [N, positions, …]."""
        if self is Layout.FIRST:
            return tensor
        if self is Layout.SECOND:
            return tensor.transpose(0, 1)
        rest = tensor.shape[2:]
        if self is Layout.FLAT_SECOND:
            tensor = tensor.unflatten(0, (-1, examples)).transpose(0, 1)
        return tensor.reshape(examples, -1, *rest)

    def of_mask(self, mask: NS) -> Tensor:
        """Return a mask of tokens, [N, S], as the positions of such a layer lie."""
        if self is Layout.FIRST:
            return mask
        if self is Layout.SECOND:
            return mask.T
        return (mask if self is Layout.FLAT else mask.T).reshape(-1, 1)


@dataclass
class Known:
    """What is known of one module, for as long as it lives.

    Attributes:
        layout: How examples lie; None until a batch of several examples has run.
        settled: Whether no other layout is possible.
        squares: By the first two axes of outputs [K, K, …] how K examples lie there, which the layout of other shapes
            need not tell: a model may move the axis of its examples.
        shares: First-axis entries an example that were seen where the layout is flat.
        tries: Batches of several examples that left other layouts possible.
        reached: Whether every use of it reached the values when it last ran; None before that.
    """

    layout: Layout | None = None
    settled: bool = False
    squares: dict[tuple[int, ...], Layout] = field(default_factory=dict)
    shares: set[int] = field(default_factory=set)
    tries: int = 0
    reached: bool | None = None

    def of(self, shape: Sequence[int], examples: int) -> Layout | None:
        """Return how the examples lie in an output of this shape; None where that isn't known."""
        if self.layout in (Layout.FLAT, Layout.FLAT_SECOND) and shape[0] == examples:
            return Layout.FIRST  # One position an example: all three are the same.
        return self.squares.get(tuple(shape[:2]), self.layout)

    def tells(self, shape: Sequence[int], examples: int, positions: int | None, *, image: bool) -> bool:
        """Whether how several examples lie in an output of this shape is known, and not to be looked for."""
        if not self.settled:
            return self.layout is None and self.tries >= TRIES
        if is_square(shape, examples, image=image):
            return tuple(shape[:2]) in self.squares
        layout = self.of(shape, examples)
        if layout in (Layout.FLAT, Layout.FLAT_SECOND) and positions is None:
            # Without `input_ids` another number of rows an example may mean that examples are of several lengths.
            return shape[0] // examples in self.shares
        return layout in fitting_layouts(shape, examples, positions, image=image)


_known: WeakKeyDictionary[nn.Module, Known] = WeakKeyDictionary()


def known(module: nn.Module) -> Known:
    """Return what is known of a module; its layout is a property of the model's code, not of one batch."""
    return _known.setdefault(module, Known())


class Evidence:
    """What the gradients of some examples' values say about one layer's layout.

    Attributes:
        shape: Of the output of its last use that had a gradient; None before.
        seen: Whether any gradient was nonzero.
        left: Layouts that nothing contradicts; None before the first gradient.
    """

    def __init__(self, positions: int | None, *, image: bool) -> None:
        """Begin.

        Args:
            positions: S of the batch where it has `input_ids`, [N, S]: a flat layer must have as many for an example.
            image: Whether it is a convolution.
        """
        self.shape: tuple[int, ...] | None = None
        self.seen = False
        self.left: list[Layout] | None = None
        self._positions, self.image = positions, image

    def add(self, grad: Tensor, inside: Tensor) -> None:
        """Look at the gradient of the values of the examples `inside`, bool [N]."""
        self.shape = tuple(grad.shape)
        fitting = fitting_layouts(self.shape, len(inside), self._positions, image=self.image)
        self.left = fitting if self.left is None else [layout for layout in self.left if layout in fitting]
        if not bool(grad.any()) or not bool(torch.isfinite(grad).all()):
            return
        self.seen = True
        inside = inside.to(grad.device)
        self.left = [layout for layout in self.left if not layout.contradicts(grad, inside)]


def fitting_layouts(shape: Sequence[int], examples: int, positions: int | None, *, image: bool) -> list[Layout]:
    """Return the layouts that an output's shape allows, the commonest first."""
    layouts = [layout for layout in Layout if layout.fits(shape, examples, image=image)]
    if len(shape) == 2 and positions is not None and shape[0] != examples * positions:
        # Rows of a language model that aren't all of its positions were gathered, as a router's experts do.
        layouts = [layout for layout in layouts if layout in (Layout.FIRST, Layout.SECOND)]
    return layouts


def is_square(shape: Sequence[int], examples: int, *, image: bool) -> bool:
    """Whether both of the first two axes of [K, K, …] could hold the examples."""
    return all(layout.fits(shape, examples, image=image) for layout in (Layout.FIRST, Layout.SECOND))


def halves(examples: int) -> Iterator[Tensor]:
    """Yield sets of examples, bool [N], that tell any two apart: those whose number has a certain bit."""
    numbers = torch.arange(examples)
    for bit in range((examples - 1).bit_length()):
        yield (numbers >> bit) % 2 == 1


def ends(examples: int) -> Iterator[Tensor]:
    """Yield the first example, the last, and all others, bool [N]."""
    numbers = torch.arange(examples)
    yield numbers == 0
    yield numbers == examples - 1
    if examples > 2:
        yield (numbers > 0) & (numbers < examples - 1)


def settle(evidence: Sequence[tuple[str, nn.Module, Evidence]], examples: int) -> None:
    """Write down what the evidence shows.

    Args:
        evidence: Of each layer: its name, its module, and what its gradients showed.
        examples: N.

    Raises:
        ModelError: Layers fit no layout; all of them are named, with globs that leave them out.
    """
    bad = [
        (name, observation.shape)
        for name, _, observation in evidence
        if observation.left is not None and not observation.left
    ]
    if bad:
        shapes = "; ".join(f"{name} {shape}" for name, shape in bad[:4]) + ("; …" if len(bad) > 4 else "")
        raise ModelError(
            f"The outputs of {len(bad)} tracked layers can't be split into the {examples} examples of a batch: "
            f"{shapes}. They gather tokens (a router's experts), share positions between examples or mix examples. "
            f"Leave them out: model.layers.exclude: {globs_for([name for name, _ in bad])}. (A layer that only mixes "
            "examples can be captured one row a batch: cluster.token_budget: 2.)"
        )
    for _, module, observation in evidence:
        entry = known(module)
        entry.tries += 1
        if observation.left:
            assert observation.shape is not None, "layouts are left where a shape was seen"
            sure = len(observation.left) == 1 and (observation.seen or entry.tries >= TRIES)
            square = is_square(observation.shape, examples, image=observation.image)
            if sure and square:
                entry.squares[tuple(observation.shape[:2])] = observation.left[0]
            if entry.settled and (square or not sure):
                continue
            entry.layout, entry.settled = observation.left[0], sure
            entry.shares.add(observation.shape[0] // examples)
