"""`bits`: the sign of a coordinate, eight in a byte, and a float32 scale a row and module.

The scale is ‖x‖²/‖x‖₁, with which a block has its true inner product with itself: see `coordinates.calibrated`. For
normal entries it is π/2 times the mean magnitude. (Mean magnitude alone minimises ‖x − s·sign(x)‖² and makes scores
.64 of the true ones; π/2 times it is right for normal entries and makes those of rows of few tokens, whose entries have
heavy tails, .6 to .9 of the true ones.) Entries of zero count as positive; what is read back has cosine .80 with x for
normal entries.

Sources: Rastegari et al. 2016, "XNOR-Net", section 3.1, for signs and one scale; Gao & Long 2024, "RaBitQ", section
3.2, for the scale.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from index.gemm.dots import row_dots
from influence.store.codecs.coordinates import Scaled, calibrated, over_largest
from influence.store.codecs.pieces import BITS


@dataclass(frozen=True)
class Bits(Scaled):
    """Directions as uint8 [n, bytes], ⌈w/8⌉ bytes for a module of w columns, and scales [n, M]."""

    name: ClassVar[Literal["bits"]] = "bits"
    kind: ClassVar[int] = BITS
    code_bits: ClassVar[int] = 1

    def _quantise(self, block: NDArray[np.float32]) -> tuple[np.ndarray, NDArray[np.float32]]:
        relative, largest = over_largest(block)
        along = row_dots(np.abs(relative), np.ones(block.shape[1], np.float32))
        codes = np.packbits(block < 0, axis=1, bitorder="little")
        return codes, calibrated(relative, along) * largest
