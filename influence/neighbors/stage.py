"""The stage of a graph of nearest rows: every row's rows with the largest and the smallest cosine of stored gradients.

A task compares a block of rows, as queries, with all rows in matrix products off the codes, or with those of some cells
(`neighbour_cells`), and leaves a committed file: a graph that was killed does what is missing. Nobody ever holds it
whole, nor a matrix of cosines.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from influence.artifacts.lock import lock_folder
from influence.artifacts.place import is_remote
from influence.artifacts.tensors import save_tensors, saved_for
from influence.config import RunConfig
from influence.engine.dispatch import dispatcher
from influence.engine.progress import Progress, Report
from influence.errors import InfluenceError, QueryError
from influence.neighbors.cells import PASSING, PHASES, CellTask, one_compares
from influence.neighbors.files import read_near, save_near, save_zero_rows, zero_rows
from influence.neighbors.graphs import remove_useless, save_mark
from influence.neighbors.nearest import Nearest, own_places
from influence.neighbors.plan import GraphPlan, directions
from influence.store.reader import Store

log = logging.getLogger(__name__)

A_SECOND = 9e10
"""Multiplications and additions that one core does in a second."""
OVERHEAD = 3000
"""What one cosine costs beside its product, in multiplications and additions: it is summed, compared, sorted in."""
TRUTH_ROWS = 2**17
"""Rows that a task compares those with."""
ROUNDING = 1e-6
"""Cosines that differ by less count as the same: either of two such rows is a nearest one."""
SEED = 20_261_121


@dataclass(frozen=True)
class RowsTask:
    """A block of rows to compare with all rows; or, to measure, the asked rows with a block of rows."""

    plan: GraphPlan
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """For messages."""
        return f"neighbours of rows {self.start} to {self.stop - 1}"


def build_graph(config: RunConfig, store: Store, plan: GraphPlan, report: Report | None = None) -> None:
    """Make what is missing of a graph. A cluster starts only where there is more to do than its start would take.

    What nothing can use any more of graphs beside it is removed; see `neighbour_graphs`.

    Raises:
        QueryError: The run is in a bucket, and cells want a disk.
        RunLocked: Another process is at this graph.
        InfluenceError: What a worker met.
    """
    if plan.compared is not None and is_remote(plan.folder):
        raise QueryError(
            f"{plan.run_dir} is in a bucket, and an approximate search for the neighbours of its {plan.rows:,} rows "
            "wants a disk: copy the run to one, or set neighbours.kind=exact, in time by the square of the rows."
        )
    if plan.stands:
        if plan.compared is not None:
            plan.remove(PASSING)
        return
    with lock_folder(plan.folder):
        save_zero_rows(plan, store)
        if plan.compared is None:
            _compare_all(config, plan, report)
        else:
            _compare_cells(config, plan, report)
        save_mark(plan, store)
    if not is_remote(plan.folder):
        remove_useless(plan, store)


def _compare_all(config: RunConfig, plan: GraphPlan, report: Report | None) -> None:
    tasks = [RowsTask(plan, number, *plan.block(number)) for number in plan.missing]
    stage = Progress("neighbours", len(plan.blocks), report, done=len(plan.blocks) - len(tasks))
    seconds = _seconds(plan, plan.rows * plan.asked * len(tasks))
    with dispatcher(config, plan.run_dir, seconds, len(tasks)) as dispatch:
        _exhaust(dispatch(compare_block, tasks, stage))


def _compare_cells(config: RunConfig, plan: GraphPlan, report: Report | None) -> None:
    truth = range(0, plan.rows, TRUTH_ROWS)
    counts = {phase: len(range(0, plan.rows, rows_of(plan))) for phase, (_, rows_of) in PHASES.items()}
    stage = Progress("neighbours", sum(counts.values()) + len(truth), report)
    seconds = _seconds(plan, plan.rows * (plan.compared or 0))
    with dispatcher(config, plan.run_dir, seconds, max(counts.values())) as dispatch:
        for phase, (function, rows_of) in PHASES.items():
            tasks = [CellTask(plan, phase, first) for first in range(0, plan.rows, rows_of(plan))]
            missing = [task for task in tasks if not saved_for(task.file, plan.fingerprint)]
            for _ in range(len(tasks) - len(missing)):
                stage.finished()
            _exhaust(dispatch(function, missing, stage))
        asked = [RowsTask(plan, n, first, min(plan.rows, first + TRUTH_ROWS)) for n, first in enumerate(truth)]
        recall = _recall(plan, list(dispatch(search_block, asked, stage)))
    save_tensors(plan.about, {"recall": torch.tensor(recall, dtype=torch.float64)}, plan.fingerprint)
    plan.remove(PASSING)


def _seconds(plan: GraphPlan, pairs: int) -> float:
    """Return what so many pairs take to compare on one core."""
    return pairs * (2 * plan.dims + OVERHEAD) / A_SECOND


def compare_block(task: RowsTask) -> int:
    """Compare a block of rows with all rows and save its neighbours; the entry point of a task."""
    plan = task.plan
    try:
        found = search(plan, np.arange(task.start, task.stop))
    except InfluenceError as error:
        raise type(error)(f"{task.name}: {error}") from error
    save_near(plan.block_file(task.number), found.settled(), plan)
    return task.number


def search_block(task: RowsTask) -> Nearest:
    """Compare the asked rows with a block of rows; the entry point of a task."""
    plan = task.plan
    return search(plan, asked_rows(plan), task.start, task.stop)


def search(plan: GraphPlan, rows: np.ndarray, start: int = 0, stop: int | None = None) -> Nearest:
    """Return the nearest among rows [start, stop) of some rows, compared with each of them.

    Memory: the rows' directions, float32, twice; blocks of codes; 24 bytes a row and neighbour; a byte a row of all.

    Args:
        plan: Of the graph; k is 1 or more.
        rows: int64, in any order, each once.
        start: The first row that is compared.
        stop: One past the last; all if None.
    """
    store, zero, found = plan.store, zero_rows(plan), Nearest(len(rows), plan.k)
    with one_compares:
        for first, scores in store.scores(directions(store, rows), start, stop, unit=True, many=True):
            held = np.arange(first, first + scores.shape[1])
            scores, kept = scores[: len(rows)], ~zero[held]
            if not kept.all():
                scores, held = scores[:, kept], held[kept]
            found.offer(scores, held, barred=own_places(rows, held))
    found.forget(zero[rows])
    return found


def asked_rows(plan: GraphPlan) -> np.ndarray:
    """Return the rows that are compared with all others, to measure what the cells miss, int64 ascending."""
    random = np.random.Generator(np.random.Philox(key=SEED))
    return np.sort(random.choice(plan.rows, plan.measured, replace=False)).astype(np.int64)


def _recall(plan: GraphPlan, parts: Sequence[Nearest]) -> tuple[float, float]:
    """Return which shares of the true neighbours at each end the graph has, by the asked rows."""
    truth = parts[0]
    for part in parts[1:]:
        truth.merge(part)
    true, graph = truth.settled(), read_near(plan, asked_rows(plan))
    shares = []
    for name, sign in (("alike", 1), ("opposed", -1)):
        there = true[name] >= 0
        last = (sign * np.where(there, true[f"{name}_cosines"], sign * np.inf)).min(axis=1, keepdims=True)
        found = (graph[name] >= 0) & (sign * graph[f"{name}_cosines"] >= last - ROUNDING)
        shares.append(float(found.sum() / max(1, there.sum())))
    return shares[0], shares[1]


def _exhaust(results: Iterator[Any]) -> None:
    for _ in results:
        pass


__all__ = ["asked_rows", "build_graph", "compare_block", "search"]
