"""Search an approximate index: codes propose, the stored rows decide.

Both ends of the ranking are searched, the smallest scores as the largest of -q. Proposals are scored again from the
stored rows, in float64 as `exact` does, so that what comes back has true scores in the true order; what can be
missing is a row that wasn't proposed. A row that FAISS didn't find never comes back.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.allowed import Allowed
from index.approximate.doubt import ROWS_SHARE, Effort, came_late, unread_distance
from index.approximate.operating_points import End, Measured, dial_for, dialled
from index.approximate.train import Trained, lists_of
from index.errors import IndexCorrupt, VectorIndexError
from index.exact import checked_queries
from index.factory import load_faiss
from index.neighbours import Found, Neighbours, best, checked_count
from index.rerank import Score

log = logging.getLogger(__name__)

QUERY_BITS = 8
"""Of a query's coordinate, against one-bit codes. Four bits are a tenth faster and lose a hundredth of recall."""

TURNED_BITS = 4
"""The same for turned rows, which have many coordinates: half the time, and the same recall."""

QUERY_LENGTH = 30.0
"""How long a query is made, in lengths of the longest centroid. FAISS's RaBitQ codes q minus the centroid, and its
error is as long as that: a long centroid drowns a short query. Inner products don't mind a longer query."""

BATCH = 256
"""Queries that are proposed for together."""


@dataclass(frozen=True)
class ApproximateIndex:
    """An index that proposes.

    Attributes:
        trained: What its parts share.
        parts: FAISS's indexes with rows in them: one if merged.
        ranges: The rows [first, stop) that they hold, together.
        measured: How it is to be searched; None if nobody measured.
    """

    trained: Trained
    parts: Sequence[Any]
    ranges: tuple[tuple[int, int], ...]
    measured: Measured | None

    @property
    def rows(self) -> int:
        """How many rows can be found."""
        return sum(stop - first for first, stop in self.ranges)


def search(
    index: ApproximateIndex,
    queries: NDArray[np.floating],
    k: int,
    score: Score,
    allowed: NDArray[np.int64] | NDArray[np.bool_] | None = None,
    probes: int | None = None,
    candidates: int | None = None,
) -> Neighbours:
    """Find nearly the k largest and the k smallest inner products of every query; those that come back are exact.

    Memory: 12 bytes a query of 256 and candidate, and what `score` takes.

    Args:
        index: Of `open_index` or `open_parts`.
        queries: [m, D].
        k: Neighbours wanted at each end; where fewer rows may be found, all of them come back.
        score: Scores rows exactly: `rerank.scored_by(fetch)`, or a store that scores from its codes.
        allowed: The rows that may come back: ascending row numbers, or a truth value for every row of the data. Where
            they are no more than the candidates, all of them are scored; else every cell is read, and codes of other
            rows are passed over.
        probes: Cells to read, instead of what was measured.
        candidates: Rows to propose at each end, instead of what was measured.

    Raises:
        VectorIndexError: k < 1; queries of another width, or not finite; unknown rows in `allowed`; an index that
            wasn't measured, without probes and candidates.
    """
    requested = checked_count(k)
    queries = checked_queries(queries)
    if queries.shape[1] != index.trained.dims:
        raise VectorIndexError(
            f"The queries have {queries.shape[1]} columns and the index has {index.trained.dims}: they must come "
            "from the same model, layers and projection as the rows."
        )
    permitted = Allowed.of(allowed, index.trained.rows, index.ranges)
    k, settings = min(requested, permitted.count), (probes, candidates)
    most = _search_end(index, queries, "largest", k, score, permitted, settings)
    least = _search_end(index, -queries, "smallest", k, score, permitted, settings)
    # Adding zero turns the -0.0 of a negated zero score into 0.0.
    return Neighbours(replace(most, scores=most.scores + 0.0), replace(least, scores=0.0 - least.scores))


def _search_end(
    index: ApproximateIndex,
    queries: NDArray[np.float64],
    end: End,
    k: int,
    score: Score,
    allowed: Allowed,
    settings: tuple[int | None, int | None],
) -> Found:
    rows, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    if k == 0 or not len(queries):
        return Found(rows, scores)
    cells = index.trained.plan.cells
    probes, count, spread = dialled(index.measured, end, k, cells, *settings)
    if allowed.count <= count:
        for i, query in enumerate(queries):
            rows[i], scores[i], _ = _rerank(score, query, allowed.rows, k)
        return Found(rows, scores)
    effort = Effort(cells if allowed.narrow else probes, count)
    # What the user set stays as it is.
    most = Effort(
        cells if settings[0] is None else effort.probes,
        max(count, allowed.count // ROWS_SHARE) if settings[1] is None else count,
    )
    margin, below = None, np.zeros(len(queries), dtype=bool)
    if index.measured is not None:
        dial = dial_for(index.measured, end, k)
        margin = dial.margin
        # What a user set wasn't measured.
        below |= settings == (None, None) and dial.recall < index.measured.target
    pending = np.arange(len(queries))
    while True:
        late = np.zeros(len(pending), dtype=bool)
        proposed = _proposed(index, queries[pending], effort, spread, k, allowed)
        for place, i in enumerate(pending):
            rows[i], scores[i], places = _rerank(score, queries[i], proposed[place], k)
            late[place] = came_late(places, effort.candidates)
        near = np.zeros(len(pending), dtype=bool)
        if margin is not None and effort.probes < most.probes:
            near = distance_to_unread(index, queries[pending], scores[pending, -1], effort.probes, spread) < margin
        further, pending = effort.more(most), pending[near | late]
        if not pending.size:
            return Found(rows, scores, below)
        if further == effort:
            _warn(len(pending), len(queries), k, end, effort)
            below[pending] = True
            return Found(rows, scores, below)
        effort = further


def _warn(doubtful: int, queries: int, k: int, end: End, effort: Effort) -> None:
    """Say that an answer may lack rows, and what finds them."""
    log.warning(
        "Of %d of %d queries many of the %d %s scores were among the last of the index's %d candidates, so "
        "others may be missing: the index does not reach its recall for them. Add --where 'row >= 0', which "
        "scans all rows, or "
        "set index.kind: exact.",
        *(doubtful, queries, k, end, effort.candidates),
    )


def _proposed(
    index: ApproximateIndex, queries: NDArray[np.float64], effort: Effort, spread: float, k: int, allowed: Allowed
) -> list[NDArray[np.int64]]:
    """Return each query's candidates, best codes first, at least k of them."""
    proposals = propose(index, queries, effort.probes, effort.candidates, spread, allowed)
    # Too few rows in the cells that were read: read them all.
    short = [i for i, candidates in enumerate(proposals) if candidates.size < k]
    if short:
        again = propose(index, queries[short], index.trained.plan.cells, effort.candidates, spread, allowed)
        for i, candidates in zip(short, again, strict=True):
            proposals[i] = candidates
            if candidates.size < k:
                raise IndexCorrupt(
                    f"The index finds {candidates.size} rows where {k} were wanted, with all its lists read: the "
                    "files were altered, or rows are too long for its codes. Open it with every byte verified; if "
                    "that passes, set index.kind: exact."
                )
    return proposals


def _rerank(
    score: Score, query: NDArray[np.float64], candidates: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.intp]]:
    """Return the best k of some candidates by their true scores: rows, scores, and their places among these."""
    order = np.argsort(candidates)
    ascending = candidates[order]
    exact = score(query, ascending)
    places = best(exact, ascending, k)
    return ascending[places], exact[places], order[places]


def distance_to_unread(
    index: ApproximateIndex, queries: NDArray[np.float64], last: NDArray[np.floating], probes: int, spread: float
) -> NDArray[np.float64]:
    """Return `doubt.unread_distance` of queries, negated for the smallest scores, [m]."""
    unit, lengths = _directions(queries)
    return unread_distance(index.trained.cells, index.trained.reduce(unit), lengths, last, probes, spread)


def _directions(queries: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return queries at length 1, [m, D], and their lengths, [m]: the smallest would be lost in float32."""
    lengths = np.linalg.norm(queries, axis=1)
    return np.divide(queries, lengths[:, None], out=np.zeros_like(queries), where=lengths[:, None] > 0), lengths


def propose(
    index: ApproximateIndex,
    queries: NDArray[np.float64],
    probes: int,
    count: int,
    spread: float,
    allowed: Allowed | None = None,
) -> list[NDArray[np.int64]]:
    """Return the rows that codes score highest for each query, best first: `count` of them or all that were found.

    Args:
        index: With parts.
        queries: [m, D]; negated for the smallest scores.
        probes: Cells to read.
        count: Rows to propose.
        spread: Of `Cells.order`.
        allowed: Rows that may be proposed; all if None.
    """
    longest = index.trained.cells.longest
    selector = allowed.selector() if allowed is not None and allowed.narrow else None
    proposed: list[NDArray[np.int64]] = []
    for first in range(0, len(queries), BATCH):
        part = queries[first : first + BATCH]
        # Lengths don't change which rows come first.
        reduced = index.trained.reduce(_directions(part)[0])
        cells, products = index.trained.cells.order(reduced, spread)
        cells, products = np.ascontiguousarray(cells[:, :probes]), np.ascontiguousarray(products[:, :probes])
        bits = TURNED_BITS if index.trained.plan.turned else QUERY_BITS
        answers = [
            _read_lists(segment, longest, reduced, cells, products, count, selector, bits) for segment in index.parts
        ]
        for i in range(len(part)):
            scores = np.concatenate([answer[0][i] for answer in answers])
            rows = np.concatenate([answer[1][i] for answer in answers])
            # FAISS pads a short answer with -1, which is no row's number.
            scores, rows = scores[rows >= 0], rows[rows >= 0]
            if rows.max(initial=0) >= max(1, index.trained.rows):
                raise IndexCorrupt(
                    f"The index's lists name row {rows.max()}, and there are {index.trained.rows} rows: the files were "
                    "altered. Open the index with every byte verified, or delete index.json and run the same build."
                )
            proposed.append(rows[best(scores, rows, count)])
    return proposed


def _read_lists(
    segment: Any,
    longest: float,
    reduced: NDArray[np.float32],
    cells: NDArray[np.int64],
    products: NDArray[np.float32],
    count: int,
    selector: Any,
    bits: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    faiss = load_faiss()
    lists = lists_of(segment)
    queries, kind = reduced, faiss.SearchParametersIVF
    options: dict[str, Any] = {"nprobe": cells.shape[1]}
    if isinstance(lists, faiss.IndexIVFRaBitQ):
        kind, options["qb"] = faiss.IVFRaBitQSearchParameters, bits
        scale = np.float32(QUERY_LENGTH * (longest or 1.0))
        queries, products = np.ascontiguousarray(reduced * scale), products * scale
    if selector is not None:
        options["sel"] = selector
    parameters = kind(**options)
    # Queries share out the cores. FAISS could share out one query's cells too, but its threads wait for one another at
    # every cell: beside other work on the machine that took up to a hundred times as long.
    lists.parallel_mode = 3
    scores = np.empty((len(queries), count), dtype=np.float32)
    rows = np.empty((len(queries), count), dtype=np.int64)
    pointer = faiss.swig_ptr
    lists.search_preassigned_c(
        len(queries),
        pointer(queries),
        count,
        pointer(cells),
        pointer(products),
        pointer(scores),
        pointer(rows),
        False,
        parameters,
    )
    return scores, rows
