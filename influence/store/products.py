"""Many queries against tiles of unpacked rows: matrix products that score equal rows equally.

In a matrix product the order of a sum may depend on where its row and its query stand, and on the shape. So every
product here has one shape, whatever the block and however many queries there are: `tile_rows` rows and `GROUP` queries,
filled up where there are fewer, in memory that starts at a cache line. That leaves the place within the shape. BLAS
kernels add up every entry alike, column after column, wherever it stands; whether the one at hand does is looked at
once for every width, and where it doesn't, rows are multiplied one by one. Either way a score is a function of one row
and one query: copies of a row score equally to the last bit, and so does a row beside any others. From the kernels'
inner products with fewer than `MANY` queries it differs by float32's rounding.
"""

import logging
from functools import cache

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

MANY = 128
"""From so many queries on, rows are unpacked for matrix products. Where vectors have 512 bits, those gain a few
hundredths on the kernels for fewer queries; where they have 256, 64 queries are already a third faster that way."""
GROUP = 64
"""Queries of one product."""
PANEL = 4096
"""Columns that are summed in float32 before float64 takes over: a wide module's, or several narrow ones'."""
TILE = 2**20
"""Coordinates of a tile: 4 MiB of float32, of which BLAS takes into a core's cache what it needs; twice as many cost an
eighth more."""
HIGHEST, LOWEST = 512, 64
"""The most and the fewest rows of a tile."""
LINE = 64
"""Bytes of a cache line. MKL adds up by where its operands start."""


def tile_rows(width: int) -> int:
    """Return the rows of a tile of some columns."""
    return max(LOWEST, min(HIGHEST, TILE // max(1, width)))


def aligned(rows: int, width: int) -> NDArray[np.float32]:
    """Return zeros [rows, width] that start at a cache line."""
    size = 4 * rows * width
    held = np.zeros(size + LINE, dtype=np.uint8)
    start = -held.ctypes.data % LINE
    return held[start : start + size].view(np.float32).reshape(rows, width)


def padded(queries: int) -> int:
    """Return how many queries the groups of so many hold."""
    return -(-queries // GROUP) * GROUP


def grouped(queries: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return queries [m, w] in groups [w, GROUP], the last one filled up with zeros."""
    groups = []
    for first in range(0, len(queries), GROUP):
        part = queries[first : first + GROUP]
        group = aligned(queries.shape[1], GROUP)
        group[:, : len(part)] = part.T
        groups.append(group)
    return groups


def tile_products(values: NDArray[np.float32], group: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inner products of a tile's rows with a group of queries, [b, GROUP].

    Args:
        values: [b, w], `aligned`, with b of `tile_rows`.
        group: [w, GROUP], of `grouped`.
    """
    if place_does_not_matter(*values.shape):
        return values @ group
    # A stack of vector-by-vector products, each computed as if it stood alone.
    return np.matmul(values[:, None, None, :], np.ascontiguousarray(group.T)[None, :, :, None])[:, :, 0, 0]


@cache
def place_does_not_matter(rows: int, width: int) -> bool:
    """Whether equal rows and equal queries get equal products everywhere in a product of this shape."""
    rng = np.random.default_rng(width)
    values, group = aligned(rows, width), aligned(width, GROUP)
    values[:] = rng.standard_normal(width, dtype=np.float32)
    group[:] = rng.standard_normal((width, 1), dtype=np.float32)
    found = values @ group
    alike = bool((found == found[0, 0]).all())
    if not alike:
        log.info("This BLAS adds up by place (%d × %d): rows are scored one by one, which is slower.", rows, width)
    return alike
