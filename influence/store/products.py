"""Many queries against tiles of unpacked rows.

From `MANY` queries on, a tile of rows is unpacked once and multiplied with all of them by `index.gemm`, whose products
have one order of summation. A score is a function of one row and one query on every processor: copies of a row score
equally to the last bit, and so does a row beside any others. From the code kernels' inner products with fewer than
`MANY` queries it differs by float32's rounding, because these sum in another order.
"""

MANY = 128
"""From so many queries on, rows are unpacked for matrix products. Where vectors have 512 bits, those gain a few
hundredths on the kernels for fewer queries; where they have 256, 64 queries are already a third faster that way."""
GROUP = 64
"""Queries are multiplied in panels; batches of a multiple of this fill them on every processor."""
PANEL = 4096
"""Columns that are summed in float32 before float64 takes over: a wide module's, or several narrow ones'."""
TILE = 2**20
"""Coordinates of a tile: 4 MiB of float32."""
HIGHEST, LOWEST = 512, 64
"""The most and the fewest rows of a tile."""


def tile_rows(width: int) -> int:
    """Return the rows of a tile of some columns."""
    return max(LOWEST, min(HIGHEST, TILE // max(1, width)))
