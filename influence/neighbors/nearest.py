"""The best rows of many queries at both ends, kept while blocks of scores go by; no query is looked at by itself.

After the first blocks hardly a score is better than the k-th so far, so that one comparison of a whole block leaves a
handful of entries, and these are sorted in together.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NOBODY = -1
"""Stands for a row that was not found."""
MANY = 4
"""Where a query has more than so many times k better entries in a block, its own k-th best of the block is found."""


class Nearest:
    """The k largest and the k smallest scores so far of m queries, best first; equal scores by ascending row.

    Rows may be offered in any order, each once to a query.

    Attributes:
        alike_rows: int64 [m, k], −1 where fewer than k rows were offered.
        alike: float32 [m, k], descending; −inf likewise.
        opposed_rows: int64 [m, k].
        opposed: The negated smallest scores, float32 [m, k], descending.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.alike, self.opposed = (np.full((queries, k), -np.inf, dtype=np.float32) for _ in range(2))
        self.alike_rows, self.opposed_rows = (np.full((queries, k), NOBODY, dtype=np.int64) for _ in range(2))

    def offer(
        self,
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
        queries: NDArray[np.int64] | None = None,
        barred: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
    ) -> None:
        """Take in the scores of some rows.

        Args:
            scores: [q, b], finite. Overwritten.
            rows: [b].
            queries: Which of the m they are, [q], each once; all if None.
            barred: Places (query of the q, row of the b) that don't count.
        """
        for scored, found in ((self.alike, self.alike_rows), (self.opposed, self.opposed_rows)):
            if scored is self.opposed:
                np.negative(scores, out=scores)
            if barred is not None:
                scores[barred] = -np.inf
            _sort_in(scored, found, scores, rows, queries)

    def forget(self, queries: NDArray[np.bool_]) -> None:
        """Drop what was found for some queries, bool [m]."""
        for scored, rows in ((self.alike, self.alike_rows), (self.opposed, self.opposed_rows)):
            scored[queries], rows[queries] = -np.inf, NOBODY

    def merge(self, other: "Nearest") -> None:
        """Take in what was found for the same queries among other rows."""
        k = self.alike.shape[1]
        for scored, rows, found, numbers in (
            (self.alike, self.alike_rows, other.alike, other.alike_rows),
            (self.opposed, self.opposed_rows, other.opposed, other.opposed_rows),
        ):
            values, names = np.concatenate([scored, found], axis=1), np.concatenate([rows, numbers], axis=1)
            order = np.lexsort((names, -values), axis=1)[:, :k]
            scored[:], rows[:] = np.take_along_axis(values, order, 1), np.take_along_axis(names, order, 1)

    def settled(self) -> dict[str, NDArray[Any]]:
        """Return the rows that were found and their scores: `alike`, `alike_cosines`, `opposed`, `opposed_cosines`."""
        ends = {}
        for name, scored, rows, sign in (
            ("alike", self.alike, self.alike_rows, 1),
            ("opposed", self.opposed, self.opposed_rows, -1),
        ):
            # Adding zero turns the -0.0 of a negated zero score into 0.0.
            ends[f"{name}_cosines"] = np.where(rows >= 0, sign * scored, 0).astype(np.float32) + np.float32(0)
            ends[name] = rows
        return ends


def own_places(queries: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where queries that are rows stand among some rows, as (place of the query, place of the row).

    Args:
        queries: [q], any order.
        rows: [b], ascending.
    """
    places = np.searchsorted(rows, queries)
    within = places < len(rows)
    within[within] = rows[places[within]] == queries[within]
    return np.flatnonzero(within), places[within]


def _sort_in(
    scored: NDArray[np.float32],
    found: NDArray[np.int64],
    offered: NDArray[np.float32],
    rows: NDArray[np.int64],
    queries: NDArray[np.int64] | None,
) -> None:
    k = scored.shape[1]
    last = scored[:, -1] if queries is None else scored[queries, -1]
    # An equal score may belong to a lower row. What is barred is −inf, and so is the k-th of a query with fewer.
    least = np.maximum(last, np.finfo(np.float32).min)
    better = offered >= least[:, None]
    many = np.flatnonzero(np.count_nonzero(better, axis=1) > MANY * k)
    if many.size:
        place = offered.shape[1] - k
        least[many] = np.maximum(np.partition(offered[many], place, axis=1)[:, place], least[many])
        better[many] = offered[many] >= least[many, None]
    flat = np.flatnonzero(better)
    if not flat.size:
        return
    line, column = np.divmod(flat, better.shape[1])
    values = offered[line, column]
    touched, line = np.unique(line, return_inverse=True)
    kept = touched if queries is None else queries[touched]
    values = np.concatenate([scored[kept].ravel(), values])
    numbers = np.concatenate([found[kept].ravel(), rows[column]])
    lines = np.concatenate([np.repeat(np.arange(len(touched)), k), line])
    order = np.lexsort((numbers, -values, lines))
    counts = np.bincount(lines)
    first = order[(np.cumsum(counts) - counts)[:, None] + np.arange(k)]
    scored[kept], found[kept] = values[first], numbers[first]


__all__ = ["NOBODY", "Nearest", "own_places"]
