"""Exact search: one pass over blocks of vectors, both ends of the ranking, nothing kept but the best so far.

Scores are summed in float64, each row by itself and in a fixed order, and rounded once to float32. In a BLAS's product
of matrices the order may depend on where a row stands, and copies of one document would then rank by accident; this way
equal rows score equally, in blocks of any size, and the lower row wins. Whoever can score rows without having their
vectors, such as a store of compressed rows, hands scores to `exact_search_scores`, and keeps that promise itself.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from index.errors import VectorIndexError
from index.gemm.dots import row_dots
from index.neighbours import Found, Neighbours, best, checked_count

Blocks = Iterable[tuple[int, NDArray[np.floating]]]
"""(first row, vectors [b, D]) pairs, of any float type and any b."""

ScoredBlocks = Iterable[tuple[int, NDArray[np.float32]]]
"""(first row, scores [m, b]) pairs, of any b."""

SLICE_BYTES = 32 * 2**20
"""A block is worked through in float64 slices of at most this size, so that a large block costs no second copy."""


def exact_search(queries: NDArray[np.floating], blocks: Blocks, k: int) -> Neighbours:
    """Find the k largest and the k smallest inner products of every query, in one pass.

    Memory: one block as the caller made it, 2 × 32 MiB of float64 slices, and 24 bytes a query and neighbour. It does
    not grow with the number of rows.

    Args:
        queries: [m, D].
        blocks: The rows, in any order; each row once.
        k: Neighbours wanted at each end; where there are fewer rows, all of them come back.

    Raises:
        VectorIndexError: k < 1, a query or row that is NaN, infinite or too long for float32 (its row is named), or
            widths that differ.
    """
    checked_count(k)
    queries = checked_queries(queries)
    return exact_search_scores(_scored(queries, blocks), len(queries), k)


def exact_search_scores(blocks: ScoredBlocks, queries: int, k: int) -> Neighbours:
    """Find the k largest and the k smallest of every query's scores, in one pass over blocks of them.

    Memory: one block as the caller made it, and 24 bytes a query and neighbour. Ties go to the lower row, in blocks of
    any size and order.

    Args:
        blocks: Each row's scores once. Equal rows must come with equal scores, wherever they stand.
        queries: m, how many queries were asked.
        k: Neighbours wanted at each end; where there are fewer rows, all of them come back.

    Raises:
        VectorIndexError: k < 1, a block for another number of queries, or a score that isn't finite (its row is named).
    """
    count = checked_count(k)
    largest, smallest = _Shortlist(queries, count), _Shortlist(queries, count)
    for start, scores in blocks:
        if scores.ndim != 2 or len(scores) != queries:
            raise VectorIndexError(
                f"The scores that start at row {start} have the shape {list(scores.shape)}; expected [{queries}, rows]."
            )
        _check_scores(start, scores)
        rows = np.arange(start, start + scores.shape[1], dtype=np.int64)
        largest.offer(scores, rows)
        smallest.offer(-scores, rows)
    # Adding zero turns the -0.0 of a negated zero score into 0.0.
    return Neighbours(Found(largest.rows, largest.scores + 0.0), Found(smallest.rows, 0.0 - smallest.scores))


def _scored(queries: NDArray[np.float64], blocks: Blocks) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first row, scores [m, n]) of slices of bounded size."""
    for start, part, _ in checked_slices(blocks, queries.shape[1], len(queries)):
        scores = np.empty((len(queries), len(part)), dtype=np.float32)
        for query in range(len(queries)):
            scores[query] = row_dots(part, queries[query])
        yield start, scores


def _check_scores(start: int, scores: NDArray[np.float32]) -> None:
    finite = np.isfinite(scores)
    if not finite.all():
        query, place = (int(axis[0]) for axis in np.nonzero(~finite))
        raise VectorIndexError(
            f"Row {start + place} scores {scores[query, place]} with query {query}; a finite score was expected. "
            "Row or query is too long for float32 scores: look at that example, or compute its gradient in float32."
        )


def checked_queries(queries: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the queries as float64 [m, D].

    Raises:
        VectorIndexError: They aren't a matrix, or one isn't finite; the message names it.
    """
    if queries.ndim != 2:
        raise VectorIndexError(f"Queries must be a matrix [queries, dims]; found the shape {list(queries.shape)}.")
    return _finite(queries, 0, "query")[0]


def checked_slices(
    blocks: Blocks, dims: int, width: int = 1
) -> Iterator[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
    """Cut blocks into float64 slices of bounded size, refusing what can't be scored.

    Args:
        blocks: (first row, vectors [b, D]) pairs.
        dims: D.
        width: Values a row that the caller makes beside the slice, bounded by the same size.

    Yields:
        First row, vectors [n, D] in float64, and the rows' squared lengths [n].

    Raises:
        VectorIndexError: A block of another width, or a row that isn't finite; the message names the row.
    """
    step = max(1, SLICE_BYTES // (8 * max(dims, width, 1)))
    for start, vectors in blocks:
        if vectors.ndim != 2 or vectors.shape[1] != dims:
            raise VectorIndexError(
                f"The block that starts at row {start} has the shape {list(vectors.shape)}; expected [rows, {dims}]. "
                "Queries and rows must come from the same model, layers and projection."
            )
        for first in range(0, len(vectors), step):
            part, squares = _finite(vectors[first : first + step], start + first, "row")
            yield start + first, part, squares


def _finite(vectors: NDArray[np.floating], start: int, noun: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    part = np.asarray(vectors, dtype=np.float64)
    with np.errstate(all="ignore"):
        squares = np.einsum("nd,nd->n", part, part)
        # One comparison for all three troubles: NaN compares false, infinity is over the limit, and so is a length
        # whose inner products could overflow the float32 that scores and FAISS are held in.
        bad = np.flatnonzero(~(squares <= np.finfo(np.float32).max))
    if bad.size:
        values = part[bad[0]]
        trouble = f"{int(np.sum(~np.isfinite(values)))} values that are NaN or infinite"
        if np.isfinite(values).all():
            trouble = f"values up to {np.abs(values).max():.3g}, too long for float32 scores"
        raise VectorIndexError(
            f"The vector of {noun} {start + bad[0]} holds {trouble}; finite values were expected. "
            "The model overflowed there: look at that example, or compute its gradient in float32."
        )
    return part, squares


class _Shortlist:
    """The highest k scores so far, for every query."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.scores = np.empty((queries, 0), dtype=np.float32)
        self.rows = np.empty((queries, 0), dtype=np.int64)

    def offer(self, scores: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
        pooled = np.concatenate([self.scores, scores], axis=1)
        numbered = np.concatenate([self.rows, np.broadcast_to(rows, scores.shape)], axis=1)
        places = [best(pooled[query], numbered[query], self.k) for query in range(len(pooled))]
        order = np.array(places, dtype=np.intp).reshape(len(pooled), min(self.k, pooled.shape[1]))
        self.scores = np.take_along_axis(pooled, order, axis=1)
        self.rows = np.take_along_axis(numbered, order, axis=1)
