"""A random turn of wide rows that costs no matrix: random signs, then the real Fourier transform, made orthonormal.

Codes of one bit want coordinates of one size, and rows of one layer beside rows of another don't have them. A random
rotation gives them, but its matrix has the square of the columns; this takes D log D. A row is turned by itself: the
same row gives the same bits beside any others, with any number of threads.

Source: Ailon & Chazelle 2009, "The fast Johnson-Lindenstrauss transform and approximate nearest neighbors", section 2,
with Fourier in the place of Hadamard, which would have every width be a power of two.
"""

import numpy as np
from numpy.typing import NDArray

STEP = 8
"""Widths are multiples of this: codes of one bit fill whole bytes."""


def turned_width(columns: int) -> int:
    """Return the least multiple of 8, at least `columns`, that the transform is fast for."""
    width = -(-max(1, columns) // STEP) * STEP
    while not _smooth(width):
        width += STEP
    return width


def widest_turned(columns: int) -> int:
    """Return the greatest multiple of 8, at most `columns` and at least 8, that the transform is fast for."""
    width = max(STEP, columns // STEP * STEP)
    while not _smooth(width):
        width -= STEP
    return width


def turn(vectors: NDArray[np.float32], signs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn every row: inner products, and so lengths, stay what they are.

    Args:
        vectors: [n, d], d even.
        signs: 1 or -1 for every column, [d].
    """
    half = vectors.shape[1] // 2
    waves = np.fft.rfft(vectors * signs, axis=1)
    out = np.empty(vectors.shape, dtype=np.float32)
    out[:, :half], out[:, half + 1 :] = waves.real[:, :half], waves.imag[:, 1:half]
    # The first and the middle wave of a real row have no imaginary part: these two fill one place each.
    out[:, half] = waves.real[:, half]
    out *= np.float32(half**-0.5)
    out[:, [0, half]] *= np.float32(0.5**0.5)
    return out


def _smooth(width: int) -> bool:
    """Whether a width has no prime factor above 7."""
    for factor in (2, 3, 5, 7):
        while width % factor == 0:
            width //= factor
    return width == 1
