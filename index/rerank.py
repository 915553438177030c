"""Put FAISS's candidates into the true order, and say whether they are sure to hold the true best.

FAISS sums in float32, and differently for one query than for twenty; two copies of a document can score an ulp apart.
So it only proposes: the candidates' scores are summed again in float64, exactly as `exact` does.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from index.exact import SLICE_BYTES
from index.gemm.dots import row_dots
from index.neighbours import best

SPARE = 64
"""Candidates asked for beyond twice k. They have to outnumber the copies of one document that straddle the k-th place;
where they don't, the answer is still right but costs a full pass."""

Fetch = Callable[[NDArray[np.int64]], NDArray[np.floating]]
"""Rows [n] to their vectors [n, D]."""

Score = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float32]]
"""A query [D] and rows [n] to the rows' scores [n]. Equal rows must score equally, whatever is asked beside them."""


def candidates_for(k: int, rows: int) -> int:
    """Return how many candidates to ask FAISS for."""
    return min(rows, 2 * k + SPARE)


def rerank(
    query: NDArray[np.float64], candidates: NDArray[np.int64], fetch: Fetch, k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the k best candidates for one query, and their scores, descending, ties by lower row.

    Args:
        query: [D].
        candidates: [n], rows.
        fetch: Gives the candidates' vectors, a slice of at most 32 MiB in float64 at a time.
        k: How many.
    """
    scores = scored_by(fetch)(query, candidates)
    order = best(scores, candidates, k)
    return candidates[order], scores[order]


def scored_by(fetch: Fetch) -> Score:
    """Return the scores that `exact_search` would give, from vectors that are fetched by row."""

    def score(query: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        step = max(1, SLICE_BYTES // (8 * max(1, query.size)))
        scores = np.empty(rows.size, dtype=np.float32)
        for first in range(0, rows.size, step):
            part = slice(first, first + step)
            scores[part] = row_dots(fetch(rows[part]).astype(np.float64), query)
        return scores

    return score


def surely_complete(last: np.float32, last_candidate: np.float32, rounding: float) -> bool:
    """Say whether no row that FAISS left out can belong among the best.

    Args:
        last: The k-th best score after reranking.
        last_candidate: FAISS's lowest score among the candidates; every row it left out scored no higher.
        rounding: What FAISS's float32 scores may be off by.
    """
    return bool(last > np.float32(float(last_candidate) + rounding))


def float32_rounding(query: NDArray[np.float64], longest: float) -> float:
    """Return what a float32 inner product may be off by: √D units in the last place of ‖query‖·‖longest row‖.

    Rounding errors of a sum of D terms add like a random walk, and FAISS sums in at least four lanes, so √D is
    generous; the worst case, D, would call nearly everything a tie.
    """
    unit = float(np.finfo(np.float32).eps)
    return unit * float(np.sqrt(query.size)) * float(np.linalg.norm(query)) * longest
