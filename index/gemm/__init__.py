"""float32 matrix products with one order of summation, on every processor and for every shape.

A BLAS promises no order: with the kernels of some processors an entry's last bits depend on where its row stands, on
the shape of the product and on the number of threads. Here entry (i, j) is Σ_c left[i, c]·right[c, j], c ascending, one
fused multiply-add a term, in one float32 sum. So equal rows get equal products wherever they stand, and the same rows
give the same bytes on every machine.
"""

from index.gemm.lanes import LANES
from index.gemm.packed import Packed, packed, product

__all__ = ["LANES", "Packed", "packed", "product"]
