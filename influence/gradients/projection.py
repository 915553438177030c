"""Two-sided (Kronecker) random projection of a layer's per-example gradient: the matrices.

For one example G = Σ_s g_s a_sᵀ has shape [O, I]. We keep V = R_o G R_iᵀ, shape [Q, P], with entries of R_i of
variance 1/P and of R_o of variance 1/Q, so that ⟨V, V'⟩ is an unbiased estimate of ⟨G, G'⟩. A side that is no wider
than its projection is kept whole: the identity is exact and costs nothing.

The matrices are a pure function of (format version, seed, module name, side, shape, entries): numpy's Philox, a
counter-based generator, keyed on a SHA-256 of those and read on the CPU. They are the same on every device, worker,
batch size and restart. Rademacher entries come straight from the generator's bits, so they are also the same under
every numpy version, and exact in bfloat16 wherever P and Q are powers of four.

Source: Choe et al. 2024, "What is Your Data Worth to GPT?" (LoGra), section 3.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from influence.errors import ProjectionError

PROJECTION_VERSION = 1

Width = Annotated[int, Field(ge=1, le=16_384)]


class ProjectionSettings(BaseModel):
    """How a gradient becomes a row: its kind, widths, seed and the distribution of the entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["kronecker", "none"] = "kronecker"
    p: Width = 16
    """P, the width that a layer's inputs are projected to."""
    q: Width = 16
    """Q, the width that a layer's outputs are projected to."""
    seed: Annotated[int, Field(ge=0)] = 0
    entries: Literal["rademacher", "normal"] = "rademacher"

    @property
    def summary(self) -> str:
        """The projection in words: `two-sided 16×16 rademacher projection (seed 0)`."""
        if self.kind == "none":
            return "no projection"
        return f"two-sided {self.q}×{self.p} {self.entries} projection (seed {self.seed})"


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
    """Draws the projection matrices of any module from its settings alone."""

    settings: ProjectionSettings = ProjectionSettings()

    def sides(self, name: str, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> Sides:
        """Return the matrices of the module `name`, on the CPU.

        Args:
            name: The module's name within its model; it is part of the generator's key.
            inputs: I, one more than the layer's where its bias is tracked.
            outputs: O.
            dtype: The matrices' dtype; the numbers drawn don't depend on it.

        Raises:
            ProjectionError: A matrix holds zeros only or non-finite numbers.
        """
        if self.settings.kind == "none":
            return Sides(None, None, p=inputs, q=outputs)
        p, q = min(self.settings.p, inputs), min(self.settings.q, outputs)
        return Sides(self._side(name, "inputs", p, inputs, dtype), self._side(name, "outputs", q, outputs, dtype), p, q)

    def _side(self, name: str, side: str, width: int, full: int, dtype: torch.dtype) -> Tensor | None:
        if width == full:
            return None
        entries = self.settings.entries
        key = f"{PROJECTION_VERSION}|{self.settings.seed}|{name}|{side}|{width}x{full}|{entries}"
        drawn = draw(key, (width, full), entries) / np.sqrt(width)
        if not np.isfinite(drawn).all() or not drawn.any(axis=1).all():
            raise ProjectionError(f"The projection of {name} ({side}, {width}×{full}) has an empty or non-finite row.")
        return torch.from_numpy(drawn).to(dtype)


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
