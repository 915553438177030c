"""The best k rows of every query at both ends, kept while blocks of scores go by.

What beats a query's k-th best so far waits; once a million do, all queries are settled by one sort. After the first
blocks hardly a score waits, and a block costs one comparison a score.
"""

import numpy as np
from numpy.typing import NDArray

WAITING = 2**20
"""Scores that wait before they are settled, and scores that are compared at a time."""


class Shortlist:
    """The k highest scores so far of every query, best first; equal scores by ascending row.

    Rows must be offered in ascending order: a row that only equals the k-th best then never displaces it. Memory: 12
    bytes a query and each of k; 20 bytes for twice `WAITING` at most, and while these are sorted three times as much.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._scores = np.full((queries, k), -np.inf, dtype=np.float32)
        self._rows = np.full((queries, k), -1, dtype=np.int64)
        self._waiting: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]] = []
        self._count = 0

    @property
    def scores(self) -> NDArray[np.float32]:
        """Best first, [m, k]; −inf where fewer than k rows were offered."""
        self._settle()
        return self._scores

    @property
    def rows(self) -> NDArray[np.int64]:
        """Of the scores, [m, k]; −1 where fewer than k rows were offered."""
        self._settle()
        return self._rows

    def offer(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Take in the scores [m, b] of some rows [b]."""
        step = max(1, WAITING // max(1, len(scores)))
        for start in range(0, len(rows), step):
            part, numbers = scores[:, start : start + step], rows[start : start + step]
            query, place = np.nonzero(part > self._scores[:, -1:])
            self._wait(query, part[query, place], numbers[place])

    def merge(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        """Take in another shortlist's scores and rows, [m, k'], of rows above all that were offered here."""
        query, place = np.nonzero((rows >= 0) & (scores > self._scores[:, -1:]))
        self._wait(query, scores[query, place], rows[query, place])

    def _wait(self, query: NDArray[np.int64], scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        if query.size:
            self._waiting.append((query, scores, rows))
            self._count += query.size
        if self._count >= WAITING:
            self._settle()

    def _settle(self) -> None:
        """Sort what waits together with the best so far, and keep the best."""
        if not self._waiting:
            return
        queries, k = self._scores.shape
        # Kept ones first, then as they came: rows ascend within a query, and a stable sort leaves ties in that order.
        kept = self._rows >= 0
        parts = [(np.nonzero(kept)[0], self._scores[kept], self._rows[kept]), *self._waiting]
        query, scores, rows = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self._waiting, self._count = [], 0
        order = np.argsort((query.astype(np.uint64) << np.uint64(32)) | descending(scores), kind="stable")
        query = query[order]
        rank = np.arange(query.size) - np.searchsorted(query, np.arange(queries))[query]
        best = rank < k
        place, chosen = (query[best], rank[best]), order[best]
        self._scores[place], self._rows[place] = scores[chosen], rows[chosen]


def descending(scores: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return keys below 2³² that are the lower the higher a score is, and equal where scores are; NaN isn't one."""
    # Adding zero turns -0.0 into 0.0, which equals it. Positive numbers are in the order of their bits.
    bits = (scores + np.float32(0)).view(np.uint32)
    ascending = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(2**31))
    return (~ascending).astype(np.uint64)
