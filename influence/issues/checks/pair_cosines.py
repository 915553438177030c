"""Cosines of the stored gradients of pairs of rows, a few pairs at a time."""

import numpy as np

from influence.store.reader import Store

HELD_COLUMNS = 2**22
"""Columns of gradients that are in memory at a time, of either row of a pair."""


def pair_cosines(store: Store, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the cosine of each row's gradient and that of the other of its place, float32; NaN where one is zero."""
    found, size = np.empty(len(rows), dtype=np.float32), max(1, HELD_COLUMNS // store.dims)
    for first in range(0, len(rows), size):
        places = slice(first, first + size)
        one, other = (store.vectors(side[places]).astype(np.float64) for side in (rows, others))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        products = (one * other).sum(axis=1)
        found[places] = np.divide(products, lengths, out=np.full(len(one), np.nan), where=lengths > 0)
    return found


__all__ = ["pair_cosines"]
