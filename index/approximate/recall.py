"""Measure how much of the truth an approximate index proposes, and set the search by it.

Questions are rows of the data, rows negated and differences of rows, each row left out of its own answers: they
resemble rows more than a user's question does, but they are what is there when an index is built. The truth is theirs
by an exact search. Two things are chosen for each end of the ranking and each depth, so that the questions of every
kind find enough: how many cells are read, and how many candidates are proposed. A third follows from them: how far the
cells that aren't read stay below what is found, by which a search knows a question that is unlike these.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.approximate.operating_points import CurvePoint, Dial, End, Measured
from index.approximate.questions import Questions
from index.approximate.search import ApproximateIndex, distance_to_unread, propose
from index.approximate.train import lists_of
from index.exact import SLICE_BYTES
from index.neighbours import Found, Neighbours
from index.rerank import Fetch

log = logging.getLogger(__name__)

DEPTHS = (10, 100)
"""The k that are measured."""

SPREADS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
"""What `Cells.order` is tried with. The radius is that of one direction, so these are standard deviations."""

FACTORS = (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
"""Candidates that are tried, times the depth."""

FURTHER = (150, 200, 300, 500, 700, 1000)
"""Those tried where none of `FACTORS` is enough, as long as they are no more than `SHARE` of the rows."""

SHARE = 1 / 16
"""Of the rows: more candidates cost more than they save."""

OWN = 2
"""Rows that a question is made of, at most."""

MARGIN_SHARE = 0.05
"""Of the measured questions: those that lie as near to unread cells as a question which more cells are read for."""

DOUBT = 2.0
"""Standard errors that a dial's recall has to be above the target: queries that weren't measured must reach it too."""

COVERED = 0.7
"""How far above the target, of the way to 1, cells are read: the rest of the misses is left to the codes."""


def truth_depth(rows: int) -> int:
    """Return the k that the exact search of the questions needs: the deepest, and the rows that one is made of."""
    return min(rows, max(DEPTHS) + OWN)


def measure_recall(
    index: ApproximateIndex,
    queries: NDArray[np.floating],
    own: Questions,
    truth: Neighbours,
    fetch: Fetch,
    target: float,
    *,
    last: bool = True,
) -> Measured:
    """Choose how the index is searched, and say what was measured.

    Reads codes of at most all rows a query, end and depth; fetches each row of the truth once.

    Args:
        index: All of it, merged or not.
        queries: [m, D].
        own: The rows that they are made of.
        truth: Of an exact search for the queries with k = `truth_depth`.
        fetch: Gives rows' vectors.
        target: Share of the true rows to be found.
        last: Whether this index is the last to be tried; a warning is logged if it finds less.
    """
    queries = np.asarray(queries, dtype=np.float64)
    sides = {"largest": _without(truth.largest, own), "smallest": _without(truth.smallest, own)}
    ends: list[tuple[End, NDArray[np.float64], NDArray[np.int64]]] = [
        ("largest", queries, sides["largest"].rows),
        ("smallest", -queries, sides["smallest"].rows),
    ]
    depths = sorted({min(depth, ends[0][2].shape[1]) for depth in DEPTHS} - {0}) if len(queries) else []
    if not depths:
        return Measured(target=target, reached=True, queries=0, spread=1.0, dials=_everything(index), curve=())
    ranks = _ranks(index, ends, fetch)
    spread = min(SPREADS, key=lambda candidate: _cost(index, ranks[candidate], own, depths, target))
    dials, curve = [], []
    for number, (end, signed, true) in enumerate(ends):
        for depth in depths:
            enough = target + COVERED * (1 - target)
            reached_by = [_cells_for(ranks[spread][number][kind, :depth], enough) for kind in own.kinds]
            dial, points = _candidates(index, end, signed, own, true[:, :depth], max(reached_by), spread, target)
            least = sides[end].scores[:, depth - 1] * (1 if end == "largest" else -1)
            dials.append(dial.model_copy(update={"margin": _margin(index, signed, least, dial.probes, spread)}))
            curve += points
    reached = all(dial.recall >= target for dial in dials)
    if not reached and last:
        worst = min(dials, key=lambda dial: dial.recall)
        log.warning(
            "The index finds %.3f of the true rows at the %s end (target %.3f) with every cell read and %d "
            "candidates: give it more memory, set more candidates, or search exactly.",
            worst.recall,
            worst.end,
            target,
            worst.candidates,
        )
    return Measured(
        target=target, reached=reached, queries=len(queries), spread=spread, dials=tuple(dials), curve=tuple(curve)
    )


def _everything(index: ApproximateIndex) -> tuple[Dial, ...]:
    """Return dials that read all of an index with nothing to measure in it."""
    cells, rows = index.trained.plan.cells, max(1, index.rows)
    ends: tuple[End, ...] = ("largest", "smallest")
    return tuple(Dial(end=end, depth=rows, probes=cells, candidates=rows, recall=1.0) for end in ends)


def _without(neighbours: Found, own: Questions) -> Found:
    """Drop the rows that each question is made of, or else its last neighbours, so that all have equally many."""
    count = max(0, neighbours.rows.shape[1] - OWN)
    rows = np.empty((len(own), count), np.int64)
    scores = np.empty((len(own), count), np.float32)
    for question, line in enumerate(neighbours.rows):
        places = np.flatnonzero(np.isin(line, own.drop_own(question, line)))[:count]
        rows[question], scores[question] = line[places], neighbours.scores[question, places]
    return Found(rows, scores)


def _cells_for(ranks: NDArray[np.int64], enough: float) -> int:
    """Return how many cells hold a share of the true rows, whose cells come after so many others, [m, depth]."""
    within = np.sort(ranks.ravel())
    return int(within[min(within.size - 1, int(np.ceil(enough * within.size)) - 1)]) + 1


def _margin(
    index: ApproximateIndex, signed: NDArray[np.float64], last: NDArray[np.float32], probes: int, spread: float
) -> float | None:
    """Return how many deviations of its rows the nearest unread cell stays below the last score, of most questions.

    Args:
        index: As measured.
        signed: Questions, negated for the smallest scores, [m, D].
        last: Each question's least true score of the depth, with the sign of `signed`, [m].
        probes: Cells that are read.
        spread: Of `Cells.order`.

    Returns:
        All but `MARGIN_SHARE` of the questions are further away; None where every cell is read.
    """
    distances = distance_to_unread(index, signed, last, probes, spread)
    return None if np.isinf(distances).all() else float(np.quantile(distances, MARGIN_SHARE, method="lower"))


def _ranks(
    index: ApproximateIndex,
    ends: Sequence[tuple[End, NDArray[np.float64], NDArray[np.int64]]],
    fetch: Fetch,
) -> dict[float, list[NDArray[np.int64]]]:
    """Return, for each spread and end, how many cells come before the one that holds each true row, [m, depth]."""
    trained = index.trained
    true_rows = np.unique(np.concatenate([true.ravel() for _, _, true in ends]))
    step = max(1, SLICE_BYTES // (4 * trained.dims))
    homes = [
        trained.cells.assign(trained.reduce(fetch(true_rows[first : first + step])))
        for first in range(0, true_rows.size, step)
    ]
    home = np.concatenate([np.empty(0, np.int64), *homes])
    ranks: dict[float, list[NDArray[np.int64]]] = {}
    for spread in SPREADS:
        ranks[spread] = []
        for _, signed, true in ends:
            order, _ = trained.cells.order(trained.reduce(signed), spread)
            places = np.empty_like(order)
            np.put_along_axis(places, order, np.arange(order.shape[1])[None], axis=1)
            ranks[spread].append(np.take_along_axis(places, home[np.searchsorted(true_rows, true)], axis=1))
    return ranks


def _cost(
    index: ApproximateIndex, ranks: list[NDArray[np.int64]], own: Questions, depths: list[int], target: float
) -> float:
    """Return the cells to be read at both ends and all depths for a coverage a little above the target."""
    enough = target + COVERED * (1 - target)
    return sum(
        max(float(np.quantile(places[kind, :depth], enough)) for kind in own.kinds)
        for places in ranks
        for depth in depths
    )


def _candidates(
    index: ApproximateIndex,
    end: End,
    signed: NDArray[np.float64],
    own: Questions,
    true: NDArray[np.int64],
    probes: int,
    spread: float,
    target: float,
) -> tuple[Dial, list[CurvePoint]]:
    """Find the fewest candidates that reach the target, reading more cells where no number does."""
    depth, cells = true.shape[1], index.trained.plan.cells
    counts = sorted({max(1, min(index.rows - OWN, int(depth * factor))) for factor in FACTORS})
    further = [depth * factor for factor in FURTHER if depth * factor <= SHARE * index.rows]
    points: list[CurvePoint] = []
    while True:
        proposed = propose(index, signed, probes, min(index.rows, counts[-1] + OWN), spread)
        hits = np.zeros((len(true), counts[-1]), dtype=np.float64)
        for i, rows in enumerate(proposed):
            proposals = own.drop_own(i, rows)[: counts[-1]]
            hits[i, : proposals.size] = np.isin(proposals, true[i])
        shares = hits.cumsum(axis=1) / depth
        recalls, surely = _of_the_worst_kind(shares, own)
        read = _share_read(index, signed, probes, spread)
        new = [
            CurvePoint(
                end=end, depth=depth, probes=probes, rows_read=read, candidates=count, recall=float(recalls[count - 1])
            )
            for count in counts
        ]
        points += new
        sure = [point for point in new if surely[point.candidates - 1] >= target]
        if not sure and probes == cells and further:
            counts, further = [*counts, *further], []
            continue
        if sure or probes == cells:
            first_point = sure[0] if sure else new[-1]
            return (
                Dial(end=end, depth=depth, probes=probes, candidates=first_point.candidates, recall=first_point.recall),
                points,
            )
        probes = min(cells, 2 * probes)


def _of_the_worst_kind(shares: NDArray[np.float64], own: Questions) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the recall of the kind of question that finds least, [counts], and the least that is beyond doubt."""
    means = [shares[kind].mean(axis=0) for kind in own.kinds]
    doubts = [DOUBT * shares[kind].std(axis=0) / np.sqrt(len(kind)) for kind in own.kinds]
    return np.min(means, axis=0), np.min(np.subtract(means, doubts), axis=0)


def _share_read(index: ApproximateIndex, signed: NDArray[np.float64], probes: int, spread: float) -> float:
    sizes = np.zeros(index.trained.plan.cells)
    for part in index.parts:
        lists = lists_of(part).invlists
        sizes += [lists.list_size(cell) for cell in range(lists.nlist)]
    order, _ = index.trained.cells.order(index.trained.reduce(signed), spread)
    return float(sizes[order[:, :probes]].sum(axis=1).mean() / max(1, index.rows))
