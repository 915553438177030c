"""Score found rows again from their stored vectors, in one way whatever proposed them.

An index may hold rows rounded, compressed or on another device; what people read is computed here, from the stored
row, as a float64 sum of float32 products rounded once.
"""

from collections.abc import Sequence

import numpy as np
import torch

from influence.store.reader import Store
from influence.vectors.ensemble import Compared


def rescore(store: Store, comparison: Compared, vector: np.ndarray, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the scores of some rows for one query.

    Args:
        store: Of the run.
        comparison: Of the run's recipe.
        vector: The query as it is compared, [D].
        rows: Row numbers, any order.

    Returns:
        float32 [len(rows)], in the order asked; the recipe's unit.
    """
    weights = torch.from_numpy(store.weights(rows)) if comparison.recipe.weighted else None
    compared = comparison.row_vectors(torch.from_numpy(store.vectors(rows)), weights).numpy()
    return (compared.astype(np.float64) @ vector.astype(np.float64)).astype(np.float32)


def ranked(rows: np.ndarray, scores: np.ndarray, *, largest: bool) -> np.ndarray:
    """Return the order of rows by score, the highest (or lowest) first, ties by the lower row."""
    return np.lexsort((rows, -scores if largest else scores))
