"""Inner products of rows, each summed in one order, whatever stands beside the row."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 4096
"""Columns that are summed in float32 before float64 takes over, where both sides are float32."""


def row_dots(values: NDArray[np.floating], right: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return ⟨row, other⟩ for every row, float64 [n].

    The order of a sum depends on the width alone, not on the row's address, its neighbours or the processor, as that of
    a BLAS may. Products of float32 numbers are summed in float32 over 4,096 columns, and these sums in float64;
    anything else is summed in float64.

    Args:
        values: [n, w].
        right: [w], the same for all rows; or [n, w], one for each.
    """
    wide = any(array.dtype != np.float32 for array in (values, right))
    dtype = np.float64 if wide else np.float32
    right = np.ascontiguousarray(np.atleast_2d(right), dtype=dtype)
    out = np.empty(len(values))
    (_in_float64 if wide else _in_float32)()(np.ascontiguousarray(values, dtype=dtype), right, out)
    return out


@cache
def _in_float64() -> Callable[..., None]:
    """Return the kernel of float64 rows: column c is added to sum c modulo 8."""
    from numba import types

    from index.gemm.compiled import compiled

    def kernel(values: Any, right: Any, out: Any) -> None:
        width = values.shape[1]
        whole = width // 8 * 8
        for row in range(values.shape[0]):
            line, other = values[row], right[row if right.shape[0] > 1 else 0]
            a = b = c = d = e = f = g = h = 0.0
            for at in range(0, whole, 8):
                a += line[at] * other[at]
                b += line[at + 1] * other[at + 1]
                c += line[at + 2] * other[at + 2]
                d += line[at + 3] * other[at + 3]
                e += line[at + 4] * other[at + 4]
                f += line[at + 5] * other[at + 5]
                g += line[at + 6] * other[at + 6]
                h += line[at + 7] * other[at + 7]
            total = ((a + e) + (c + g)) + ((b + f) + (d + h))
            for at in range(whole, width):
                total += line[at] * other[at]
            out[row] = total

    read = types.Array(types.float64, 2, "C", readonly=True)
    return compiled(kernel, "row_dots_64", [], read, read, types.Array(types.float64, 1, "C"))


@cache
def _in_float32() -> Callable[..., None]:
    """Return the kernel of float32 rows: column c of a piece is added to lane c modulo 64, the last ones to the end."""
    from numba import types

    from index.gemm import vectors
    from index.gemm.compiled import compiled
    from index.gemm.lanes import LANES
    from index.gemm.vectors import add_dots, add_lanes, zeros

    several = 4
    step, piece = several * LANES, PIECE

    def kernel(values: Any, right: Any, out: Any) -> None:
        sums = np.empty(several)
        width = values.shape[1]
        whole = width // step * step
        for row in range(values.shape[0]):
            other = row if right.shape[0] > 1 else 0
            total = 0.0
            for begin in range(0, whole, piece):
                accumulators = zeros(several)
                for at in range(begin, min(begin + piece, whole), step):
                    accumulators = add_dots(accumulators, values, (row, at), right, (other, at))
                add_lanes(accumulators, sums)
                total += (sums[0] + sums[1]) + (sums[2] + sums[3])
            for at in range(whole, width):
                total += np.float64(values[row, at]) * np.float64(right[other, at])
            out[row] = total

    read = types.Array(types.float32, 2, "C", readonly=True)
    return compiled(kernel, "row_dots_32", [vectors], read, read, types.Array(types.float64, 1, "C"))
