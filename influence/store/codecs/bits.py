"""`bits`: the sign of a coordinate, eight in a byte, and a float32 scale a row and module.

The scale is π/2 times the block's mean magnitude. For normal entries, which a random projection gives, that makes the
inner product with a query unbiased: E⟨q, sign(x)⟩ = √(2/π)⟨q, x⟩/σ. (Mean magnitude alone minimises
‖x − s·sign(x)‖² and makes every score .64 of the true one; ranks are the same under either.) With heavy tails scores
still come out too small. Entries of zero count as positive; what is read back has cosine .80 with x for normal entries.

Source for sign and mean magnitude: Rastegari et al. 2016, "XNOR-Net", section 3.1.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from influence.store.codecs.coordinates import Scaled
from influence.store.codecs.pieces import BITS

UNBIASED = np.float32(np.pi / 2)


@dataclass(frozen=True)
class Bits(Scaled):
    """Directions as uint8 [n, bytes], ⌈w/8⌉ bytes for a module of w columns, and scales [n, M]."""

    name: ClassVar[Literal["bits"]] = "bits"
    kind: ClassVar[int] = BITS
    code_bits: ClassVar[int] = 1

    def _quantise(self, block: NDArray[np.float32]) -> tuple[np.ndarray, NDArray[np.float32]]:
        return np.packbits(block < 0, axis=1, bitorder="little"), UNBIASED * np.abs(block).mean(axis=1)
