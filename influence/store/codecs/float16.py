"""`float16`: two bytes a coordinate, no scale. What stands in the shard is the direction itself.

Error: at most 2⁻¹¹ of an entry, or 2⁻²⁵ for entries below 2⁻¹⁴. No entry of a direction exceeds 1, so none overflows.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from influence.store.codec import Encoded, Plane
from influence.store.codecs.coordinates import Coordinates
from influence.store.codecs.pieces import FLOAT16, PIECE, Pieces, Stretch


@dataclass(frozen=True)
class Float16(Coordinates):
    """Directions as float16 [n, D]."""

    name: ClassVar[Literal["float16"]] = "float16"
    kind: ClassVar[int] = FLOAT16
    takes: ClassVar[Literal["float16", "float32"]] = "float16"

    def _layout(self) -> tuple[Plane, ...]:
        return (Plane("vectors", np.float16, "F16", self.dims),)

    def _stretches(self) -> tuple[Stretch, ...]:
        edges = [(start, min(self.dims, start + PIECE)) for start in range(0, self.dims, PIECE)]
        return tuple(Stretch(slice(start, stop), slice(2 * start, 2 * stop)) for start, stop in edges)

    def _encode(self, unit: NDArray[np.floating], into: Encoded) -> None:
        into["vectors"][:] = unit


def widened(halves: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return float16 numbers [n, w] as float32, exactly; numpy's own conversion goes number by number."""
    from influence.store.codecs import kernels

    out = np.empty(halves.shape, dtype=np.float32)
    table = _columns(halves.shape[1]).table
    kernels.unpacked(FLOAT16)(halves.view(np.uint8), np.ones((len(halves), 1), np.float32), table, 0, out)
    return out


@cache
def _columns(width: int) -> Pieces:
    return Pieces(FLOAT16, [Stretch(slice(0, width), slice(0, 2 * width))])
