"""Search a flat index for both ends of the ranking."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from index.build import FlatIndex
from index.errors import VectorIndexError
from index.exact import SLICE_BYTES, checked_queries, exact_search
from index.neighbours import Found, Neighbours, checked_count
from index.rerank import candidates_for, float32_rounding, rerank, surely_complete

GPU_LIMIT = 2048
"""The most candidates that FAISS returns from a GPU."""


def search(index: FlatIndex, queries: NDArray[np.floating], k: int) -> Neighbours:
    """Find the k largest and the k smallest inner products of every query: the same answer as `exact_search`.

    FAISS is called once, with q for the largest and -q for the smallest. Memory: 24 bytes a query and candidate
    (2k + 64 of them), and 32 MiB. FAISS's number of threads is left as the process set it.

    Args:
        index: A flat index.
        queries: [m, D], rounded to float32 for FAISS to propose with; scores use them as they are.
        k: Neighbours wanted at each end; where there are fewer rows, all of them come back.

    Raises:
        VectorIndexError: k < 1, or more than a GPU index can give; a query that isn't finite or is of another width.
    """
    best_count = min(checked_count(k), index.rows)
    queries = checked_queries(queries)
    if queries.shape[1] != index.dims:
        raise VectorIndexError(
            f"The queries have {queries.shape[1]} columns and the index has {index.dims}: they must come from the same "
            "model, layers and projection as the rows."
        )
    count = candidates_for(best_count, index.rows)
    if index.device == "gpu" and count > GPU_LIMIT:
        raise VectorIndexError(
            f"k = {k} needs {count} candidates, and FAISS returns at most {GPU_LIMIT:,} from a GPU. "
            f"Ask for k = {(GPU_LIMIT - candidates_for(0, index.rows)) // 2} or fewer, or set index.device: cpu."
        )
    if best_count == 0 or not len(queries):
        nothing = Found(
            np.empty((len(queries), best_count), np.int64), np.empty((len(queries), best_count), np.float32)
        )
        return Neighbours(nothing, nothing)
    both = np.concatenate([queries, -queries])
    proposed, candidates = index.faiss.search(both.astype(np.float32), count)
    answers = [_settle(index, both[i], proposed[i], candidates[i], best_count) for i in range(len(both))]
    rows, scores = np.stack([f[0] for f in answers]), np.stack([f[1] for f in answers])
    m = len(queries)
    # Adding zero turns the -0.0 of a negated zero score into 0.0.
    return Neighbours(Found(rows[:m], scores[:m] + 0.0), Found(rows[m:], 0.0 - scores[m:]))


def _settle(
    index: FlatIndex,
    query: NDArray[np.float64],
    proposed: NDArray[np.float32],
    candidates: NDArray[np.int64],
    k: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    # FAISS pads a short answer with -1, which any later arithmetic on rows would turn into a real row's number.
    real = candidates >= 0
    proposed, candidates = proposed[real], candidates[real]
    if candidates.size >= k:
        rows, scores = rerank(query, candidates, index.faiss.reconstruct_batch, k)
        rounding = float32_rounding(query, index.longest)
        if candidates.size == index.rows or surely_complete(scores[-1], proposed[-1], rounding):
            return rows, scores
    # More rows tie around the k-th place than were proposed: only a pass over all of them can tell which come first.
    scanned = exact_search(query[None], _stored(index), k).largest
    return scanned.rows[0], scanned.scores[0]


def _stored(index: FlatIndex) -> Iterator[tuple[int, NDArray[np.float32]]]:
    step = max(1, SLICE_BYTES // (4 * index.dims))
    for start in range(0, index.rows, step):
        yield start, index.faiss.reconstruct_n(start, min(step, index.rows - start))
