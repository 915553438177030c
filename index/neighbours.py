"""What a search returns, and the one order that neighbours have: by score, ties by the lower row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.errors import VectorIndexError


@dataclass(frozen=True)
class Found:
    """The neighbours of each query, best first.

    Attributes:
        rows: [queries, k'], int64, k' = min(k, rows of the index). Never a row that wasn't found.
        scores: [queries, k'], float32, the inner product of query and row: summed in float64, rounded once.
        below_recall: [queries], bool: for which of them an approximate index doesn't reach its recall, so that rows may
            be missing. None where every row was compared.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    below_recall: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Neighbours:
    """Both ends of one ranking. Where k is over half the rows, a row stands in both.

    Attributes:
        largest: The k' largest scores, descending. They needn't be positive.
        smallest: The k' smallest scores, ascending. They needn't be negative.
    """

    largest: Found
    smallest: Found


def merge_neighbours(parts: Sequence[Neighbours], k: int) -> Neighbours:
    """Return the neighbours among several disjoint sets of rows from the neighbours in each: exact, ties by lower row.

    Args:
        parts: Of each set, for the same queries, with k neighbours or all that the set has.
        k: Neighbours wanted at each end.
    """
    count = checked_count(k)
    ends = []
    for sign, several in ((1, [part.largest for part in parts]), (-1, [part.smallest for part in parts])):
        rows = np.concatenate([end.rows for end in several], axis=1)
        scores = np.concatenate([end.scores for end in several], axis=1)
        places = [best(sign * line, numbers, count) for line, numbers in zip(scores, rows, strict=True)]
        order = np.array(places, dtype=np.intp).reshape(len(rows), min(count, rows.shape[1]))
        ends.append(Found(np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)))
    return Neighbours(*ends)


def checked_count(k: int) -> int:
    """Return k, or refuse it.

    Raises:
        VectorIndexError: k isn't a whole number of at least one.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise VectorIndexError(f"k = {k!r} neighbours were asked for; k must be a whole number, 1 or more.")
    return int(k)


def best(scores: NDArray[np.float32], rows: NDArray[np.int64], k: int) -> NDArray[np.intp]:
    """Return the positions of the k highest scores, descending; equal scores by ascending row.

    Args:
        scores: [n], one query's.
        rows: [n], the row that each score belongs to.
        k: How many; fewer come back where n < k.
    """
    positions = np.arange(scores.size)
    if scores.size > k:
        # Everything that ties with the k-th stays in until rows decide; a partition alone would pick any of them.
        threshold = np.partition(scores, scores.size - k)[scores.size - k]
        positions = np.flatnonzero(scores >= threshold)
    return positions[np.lexsort((rows[positions], -scores[positions]))[:k]]
