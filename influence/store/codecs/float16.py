"""`float16`: two bytes a coordinate, no scale. What stands in the shard is the direction itself.

Error: at most 2⁻¹¹ of an entry, or 2⁻²⁵ for entries below 2⁻¹⁴. No entry of a direction exceeds 1, so none overflows.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from influence.store.codec import Encoded, Plane
from influence.store.codecs.coordinates import Coordinates, Stretch

COLUMNS = 4096
"""Columns that are unpacked together."""


@dataclass(frozen=True)
class Float16(Coordinates):
    """Directions as float16 [n, D]."""

    name: ClassVar[Literal["float16"]] = "float16"
    takes: ClassVar[Literal["float16", "float32"]] = "float16"

    def _layout(self) -> tuple[Plane, ...]:
        return (Plane("vectors", np.float16, "F16", self.dims),)

    def _stretches(self) -> tuple[Stretch, ...]:
        edges = [(start, min(self.dims, start + COLUMNS)) for start in range(0, self.dims, COLUMNS)]
        return tuple(Stretch(slice(*edge), slice(*edge), edge[1] - edge[0]) for edge in edges)

    def _encode(self, unit: NDArray[np.floating], into: Encoded) -> None:
        into["vectors"][:] = unit

    def _unpack(self, codes: np.ndarray, out: NDArray[np.float32]) -> None:
        widen(codes, out)


def widen(halves: NDArray[np.float16], out: NDArray[np.float32]) -> None:
    """Copy finite float16 numbers into float32 ones of the same shape, exactly.

    Numpy's own conversion goes number by number, nine times as slowly. Here sign, exponent and fraction are moved to
    where float32 has them; the exponent is then short of 127 − 15, which one product makes good, also where a
    subnormal number has none.
    """
    bits = out.view(np.int32)
    np.copyto(bits, halves.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    # Widened with their sign, negative numbers hold ones where the exponent's new bits are.
    np.bitwise_and(bits, ~0x70000000, out=bits)
    np.multiply(out, np.float32(2.0**112), out=out)
