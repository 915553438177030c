"""`int4`: a whole number from −7 to 7 a coordinate, two in a byte, and a float32 scale a row and module.

With so few levels the largest entry is a bad measure: the blocks of a gradient have heavy tails, and most entries
would round to zero. So entries beyond 7 scales are clipped at 7, and the scale is searched: for each of thirteen clips,
from the largest magnitude down to an eighth of it, the codes and the least squared error that a scale of theirs gives.
The codes of least error are kept, at the scale with which a block has its true inner product with itself
(`coordinates.calibrated`; that of least error makes scores .98 of the true ones). Relative error for 1,024 normal
numbers .114 (.143 without the search), for Laplace's .164 (.219), for Student's t with 3 degrees of freedom .283
(.384); a finer search gains a hundredth of that.

A module's first half of columns lies in the low four bits of its bytes, the second half in the high four, as two's
complement: both halves unpack with one operation on whole bytes, to 16 times the code, by which the scale is divided.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from index.gemm.dots import row_dots
from influence.store.codecs.coordinates import Scaled, calibrated, over_largest
from influence.store.codecs.pieces import INT4

LEVELS = 7
CLIPS = tuple(2.0 ** (-step / 4) for step in range(13))
"""What share of the largest magnitude a code of 7 may stand for."""
SHIFT = 16
"""What unpacking multiplies a code by."""


@dataclass(frozen=True)
class Int4(Scaled):
    """Directions as uint8 [n, bytes], ⌈w/2⌉ bytes for a module of w columns, and scales [n, M]."""

    name: ClassVar[Literal["int4"]] = "int4"
    kind: ClassVar[int] = INT4
    code_bits: ClassVar[int] = 4

    def _quantise(self, block: NDArray[np.float32]) -> tuple[np.ndarray, NDArray[np.float32]]:
        relative, largest = over_largest(block)
        best_codes = np.zeros_like(block)
        gain, overlap = np.zeros(len(block)), np.zeros(len(block))
        for clip in CLIPS:
            codes = np.rint(relative * np.float32(LEVELS / clip))
            np.clip(codes, -LEVELS, LEVELS, out=codes)
            along, squares = row_dots(codes, relative), row_dots(codes, codes)
            # ‖x‖² − ‖x − s·c‖² at the best s; a zero block has no codes and gains nothing.
            gained = np.divide(along**2, squares, out=np.zeros_like(along), where=squares > 0)
            better = gained > gain
            gain[better], best_codes[better] = gained[better], codes[better]
            overlap[better] = along[better]
        return _packed(best_codes.astype(np.int8)), calibrated(relative, overlap) * largest / np.float32(SHIFT)


def _packed(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return [b, w] codes as [b, ⌈w/2⌉] bytes; an odd width is padded with a zero."""
    half = -(-codes.shape[1] // 2)
    pairs = codes[:, :half] & np.int8(SHIFT - 1)
    pairs[:, : codes.shape[1] - half] |= codes[:, half:] * np.int8(SHIFT)
    return pairs.view(np.uint8)
