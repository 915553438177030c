"""The best k rows of every query at both ends, kept while blocks of scores go by.

After the first blocks hardly a row is better than the k-th so far, so one comparison of the whole block says for most
queries that nothing changes.
"""

import numpy as np
from numpy.typing import NDArray

from index.neighbours import best


class Shortlist:
    """The k highest scores so far of every query, best first; equal scores by ascending row.

    Rows must be offered in ascending order: a row that only equals the k-th best then never displaces it.

    Attributes:
        scores: [m, k'], float32; −inf where fewer than k rows were offered.
        rows: [m, k'], int64; −1 likewise.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.scores = np.full((queries, k), -np.inf, dtype=np.float32)
        self.rows = np.full((queries, k), -1, dtype=np.int64)

    def offer(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Take in the scores [m, b] of some rows [b]."""
        better = (scores > self.scores[:, -1:]).any(axis=1)
        for query in np.flatnonzero(better):
            self._merge(int(query), scores[query], rows)

    def merge(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Take in another shortlist's scores and rows, [m, k'], of rows above all that were offered here."""
        for query in range(len(scores)):
            found = rows[query] >= 0
            self._merge(query, scores[query][found], rows[query][found])

    def _merge(self, query: int, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        wanted = scores > self.scores[query, -1]
        pooled = np.concatenate([self.scores[query], scores[wanted]])
        numbered = np.concatenate([self.rows[query], rows[wanted]])
        chosen = best(pooled, numbered, self.scores.shape[1])
        self.scores[query], self.rows[query] = pooled[chosen], numbered[chosen]
