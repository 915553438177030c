"""The compiled product: tiles of sums in registers, column after column.

A tile's sums take most of the registers, as in Goto's algorithm; a block of `DEPTH` columns of one panel of `right`
stays in the first-level cache while every tile of a row block passes. Sums that are continued in the next block of
columns are written and read back as they are, so the blocks don't show in any bit.

Source: Goto and van de Geijn 2008, "Anatomy of High-Performance Matrix Multiplication".
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import types

from index.gemm import vectors
from index.gemm.compiled import WIDE, compiled
from index.gemm.lanes import LANES
from index.gemm.vectors import add_outer, load_tile, store_tile, zeros

TILE = (12, 2) if WIDE else (6, 1)
"""Rows and vectors of a tile: as many sums as registers hold. No product depends on it."""
PANEL = TILE[1] * LANES
"""Columns of `right` that lie together."""
DEPTH = 256
"""Columns of `left` in a block: 16 KiB of a panel."""


@cache
def products() -> Callable[..., None]:
    """Return the kernel.

    Args of the kernel:
        left: float32 [n, w], n at least 1.
        right: float32 [panels · w, PANEL], as `packed` lays it out.
        out: float32 [n, panels · PANEL]; overwritten.
    """
    (rows, wide), panel, depth = TILE, PANEL, DEPTH
    count = rows * wide

    def kernel(left: Any, right: Any, out: Any) -> None:
        width, last = left.shape[1], left.shape[0] - 1
        for begin in range(0, width, depth):
            end = min(begin + depth, width)
            for first in range(0, left.shape[0], rows):
                for number in range(out.shape[1] // panel):
                    at = (first, last, number * panel)
                    sums = zeros(count)
                    if begin:
                        sums = load_tile((rows, wide), out, at)
                    for column in range(begin, end):
                        sums = add_outer(
                            (rows, wide), sums, left, (first, last, column), right, number * width + column
                        )
                    store_tile((rows, wide), sums, out, at)

    read = types.Array(types.float32, 2, "A", readonly=True)
    return compiled(kernel, "products", [vectors], read, read, types.Array(types.float32, 2, "C"))
