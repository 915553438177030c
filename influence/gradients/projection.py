"""Two-sided (Kronecker) random projection of a layer's per-example gradient: the matrices.

For one example G = Σ_s g_s a_sᵀ has shape [O, I]. We keep V = R_o G R_iᵀ, shape [Q, P], with entries of R_i of
variance 1/P and of R_o of variance 1/Q, so that ⟨V, V'⟩ is an unbiased estimate of ⟨G, G'⟩. A side that is no wider
than its projection is kept whole: the identity is exact and costs nothing.

The matrices are a pure function of (format version, seed, module name, side, shape, entries): numpy's Philox, a
counter-based generator, keyed on a SHA-256 of those and read on the CPU. They are the same on every device, worker,
batch size and restart. Rademacher entries come straight from the generator's bits, so they are also the same under
every numpy version, and exact in bfloat16 wherever P and Q are powers of four.

With `rows: whitened` the half-inverses of K-FAC's factors are folded into the matrices, R_i (A + λ_A)^-½ and
R_o (S + λ_S)^-½, so that the plain inner product of two rows already is their product under the curvature, at no cost a
row; with `rows: eigenvectors` the rows of R are the leading eigenvectors of A and S. Both need the factors: `Fold`.

Source: Choe et al. 2024, "What is Your Data Worth to GPT?" (LoGra), section 3 and its PCA initialisation; the whitened
form is K-FAC's (Martens & Grosse 2015) with the random sketch between its halves.
"""

import hashlib
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import Tensor

from influence.errors import ProjectionError

PROJECTION_VERSION = 1

MOST_BLOCKS = 100
"""trak's block seeds are 1,000 apart and its checkpoints' 100,000: of more blocks, two would be the same."""

Width = Annotated[int, Field(ge=1, le=16_384)]


def _share_or_rule(value: object) -> object:
    """Refuse what is neither the rule's name nor a share, in one sentence rather than one for each type."""
    share: object = None
    if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "bounded":
        with suppress(ValueError):
            share = float(value)
    if value != "bounded" and not (isinstance(share, float) and math.isfinite(share) and share >= 0):
        raise ValueError("should be 'bounded', or a share of the mean eigenvalues: a finite number of at least 0")
    return value if value == "bounded" else share


class ProjectionSettings(BaseModel):
    """How a gradient becomes a row: its kind, widths, seed and the distribution of the entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["kronecker", "trak", "none"] = "kronecker"
    """Two-sided, layer by layer; or dense, over the gradient of all layers together, by the `trak` package."""
    p: Width = 16
    """P, the width that a layer's inputs are projected to."""
    q: Width = 16
    """Q, the width that a layer's outputs are projected to."""
    seed: Annotated[int, Field(ge=0)] = 0
    entries: Literal["rademacher", "normal"] = "rademacher"
    rows: Literal["random", "whitened", "eigenvectors"] = "random"
    """What the rows of R_i and R_o are: random; random with K-FAC's half-inverse behind; or leading eigenvectors."""
    damping: Annotated[Literal["bounded"] | float, BeforeValidator(_share_or_rule)] = "bounded"
    """Of a whitened projection: λ_A and λ_S as a share of the mean eigenvalues of A and S. `bounded` is the least share
    between .01 and 100 that the rows' losses allow: see `curvature.whitening`."""
    dims: Annotated[int, Field(ge=1)] | None = None
    """k, the width of a trak projection."""
    projector: Literal["basic", "cuda"] = "basic"
    """Which of trak's projectors; `cuda` needs a GPU and the package `fast_jl`."""
    block: Annotated[int, Field(ge=1)] = 100
    """Columns that trak's basic projector draws at once; it holds this many numbers for every weight."""

    @model_validator(mode="after")
    def _of_one_kind(self) -> "ProjectionSettings":
        """Refuse settings of one kind of projection beside another kind, where they would do nothing."""
        other, kind = (
            (("p", "q", "rows"), "kronecker") if self.kind == "trak" else (("dims", "projector", "block"), "trak")
        )
        idle = [name for name in other if getattr(self, name) != type(self).model_fields[name].default]
        if idle:
            raise ValueError(
                f"{' and '.join(idle)} mean nothing to kind {self.kind}: leave them out, or choose kind {kind}"
            )
        if self.kind == "trak":
            if self.dims is None:
                raise ValueError("a trak projection needs dims, its width")
            if self.projector == "basic" and self.blocks > MOST_BLOCKS:
                raise ValueError(
                    f"dims {self.dims:,} in blocks of {self.block} makes {self.blocks} blocks, and of more than "
                    f"{MOST_BLOCKS} trak's seeds repeat themselves: set block to {-(-self.dims // MOST_BLOCKS)} or more"
                )
        return self

    @property
    def blocks(self) -> int:
        """The blocks that trak's basic projector draws one after another."""
        return -(-(self.dims or 0) // self.block)

    @property
    def folds(self) -> bool:
        """Whether the matrices are made from K-FAC's factors."""
        return self.kind == "kronecker" and self.rows != "random"

    @property
    def summary(self) -> str:
        """The projection in words: `two-sided 16×16 rademacher projection (seed 0)`."""
        if self.kind == "none":
            return "no projection"
        if self.kind == "trak":
            name = {"basic": "BasicProjector", "cuda": "CudaProjector"}[self.projector]
            return f"dense {self.entries} projection to {self.dims} by trak's {name} (seed {self.seed})"
        if self.rows == "eigenvectors":
            return f"two-sided {self.q}×{self.p} projection on leading eigenvectors"
        damping = "bounded damping" if self.damping == "bounded" else f"damping {self.damping:g}"
        whitened = f"K-FAC-whitened ({damping}) " if self.rows == "whitened" else ""
        return f"{whitened}two-sided {self.q}×{self.p} {self.entries} projection (seed {self.seed})"


class Fold(Protocol):
    """What makes projection matrices of K-FAC's factors; see `curvature.whitening`."""

    def fold(self, name: str, side: Literal["inputs", "outputs"], random: Tensor) -> Tensor:
        """Return R, [P, W] float64, of one side of module `name`, from the random matrix drawn for it, [P, W]."""
        ...


@dataclass(frozen=True)
class Sides:
    """The two projection matrices of one module; `None` stands for the identity.

    Attributes:
        inputs: R_i, [P, I], or None where P = I.
        outputs: R_o, [Q, O], or None where Q = O.
        p: P.
        q: Q.
    """

    inputs: Tensor | None
    outputs: Tensor | None
    p: int
    q: int


@dataclass(frozen=True)
class Projection:
    """Makes the projection matrices of any module from its settings, and from K-FAC's factors where they ask for them.

    Attributes:
        settings: Kind, widths, seed.
        factors: Needed by `rows: whitened` and `rows: eigenvectors`, and by nothing else.
        checkpoint: Which of a recipe's checkpoints it is for, from 0; trak's projector draws another matrix for each.
    """

    settings: ProjectionSettings = ProjectionSettings()
    factors: Fold | None = None
    checkpoint: int = 0

    def __post_init__(self) -> None:
        """Refuse a whitened projection without factors, and factors that nothing asked for."""
        if self.settings.folds != (self.factors is not None):
            actual = "no Kronecker factors were given" if self.factors is None else "Kronecker factors were given"
            raise ProjectionError(f"The projection is {self.settings.summary}, and {actual}.")

    def sides(self, name: str, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> Sides:
        """Return the matrices of the module `name`, on the CPU; none where modules aren't projected one by one.

        Args:
            name: The module's name within its model; it is part of the generator's key.
            inputs: I, one more than the layer's where its bias is tracked.
            outputs: O.
            dtype: The matrices' dtype; the numbers drawn don't depend on it.

        Raises:
            ProjectionError: A matrix holds zeros only or non-finite numbers.
        """
        if self.settings.kind != "kronecker":
            return Sides(None, None, p=inputs, q=outputs)
        p, q = min(self.settings.p, inputs), min(self.settings.q, outputs)
        return Sides(self._side(name, "inputs", p, inputs, dtype), self._side(name, "outputs", q, outputs, dtype), p, q)

    def _side(
        self, name: str, side: Literal["inputs", "outputs"], width: int, full: int, dtype: torch.dtype
    ) -> Tensor | None:
        if width == full and self.factors is None:
            return None
        matrix = torch.from_numpy(self._random(name, side, width, full))
        if self.factors is not None:
            matrix = self.factors.fold(name, side, matrix)
        if not bool(torch.isfinite(matrix).all()) or not bool(matrix.any(dim=1).all()):
            raise ProjectionError(f"The projection of {name} ({side}, {width}×{full}) has an empty or non-finite row.")
        return matrix.to(dtype)

    def _random(self, name: str, side: str, width: int, full: int) -> np.ndarray:
        if width == full:
            return np.eye(full)
        entries = self.settings.entries
        key = f"{PROJECTION_VERSION}|{self.settings.seed}|{name}|{side}|{width}x{full}|{entries}"
        return draw(key, (width, full), entries) / np.sqrt(width)


def draw(key: str, shape: tuple[int, int], entries: Literal["rademacher", "normal"]) -> np.ndarray:
    """Draw a matrix of mean 0 and variance 1, float64, as a pure function of its arguments."""
    words = np.frombuffer(hashlib.sha256(key.encode()).digest()[:16], dtype="<u8")
    philox = np.random.Philox(key=words)
    if entries == "normal":
        return np.random.Generator(philox).standard_normal(shape)
    count = shape[0] * shape[1]
    bits = np.unpackbits(
        philox.random_raw(-(-count // 64)).astype("<u8").view(np.uint8), count=count, bitorder="little"
    )
    return (2.0 * bits - 1.0).reshape(shape)
