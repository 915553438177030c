"""The right-hand side of a product, laid out once for many left-hand sides."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Packed:
    """A matrix [w, m] in panels of columns.

    Attributes:
        width: w.
        columns: m.
        panels: float32 [panels · w, PANEL], the last panel filled up with zeros.
    """

    width: int
    columns: int
    panels: NDArray[np.float32]


def packed(right: NDArray[np.floating]) -> Packed:
    """Lay out a matrix [w, m] for `product`."""
    from index.gemm.kernel import PANEL

    width, columns = right.shape
    count = -(-columns // PANEL)
    panels = np.zeros((count, width, PANEL), dtype=np.float32)
    for number in range(count):
        part = right[:, number * PANEL : (number + 1) * PANEL]
        panels[number, :, : part.shape[1]] = part
    return Packed(width, columns, panels.reshape(count * width, PANEL))


def product(left: NDArray[np.floating], right: Packed | NDArray[np.floating]) -> NDArray[np.float32]:
    """Return left @ right, float32 [n, m], each entry summed in the order of the columns; see the package.

    numba, which compiles the kernel, is imported at the first call. One thread; the interpreter's lock is let go.

    Args:
        left: [n, w].
        right: [w, m], or what `packed` makes of it.
    """
    from index.gemm.kernel import PANEL, products

    right = right if isinstance(right, Packed) else packed(right)
    left = np.ascontiguousarray(left, dtype=np.float32)
    if left.ndim != 2 or left.shape[1] != right.width:
        raise ValueError(f"left is {list(left.shape)}, right has {right.width} rows")
    count = len(right.panels) // right.width if right.width else 0
    out = np.zeros((len(left), count * PANEL), dtype=np.float32)
    if out.size and right.width:
        products()(left, right.panels, out)
    return np.ascontiguousarray(out[:, : right.columns]) if count else np.zeros((len(left), right.columns), np.float32)
