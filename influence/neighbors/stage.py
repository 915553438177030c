"""The stage of a graph of nearest rows: every row's rows with the largest and the smallest cosine of stored gradients.

A task compares a block of rows, as queries, with all rows in matrix products off the codes, or with those of some cells
(`neighbour_cells`), and leaves a committed file: a graph that was killed does what is missing. Nobody ever holds it
whole, nor a matrix of cosines.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from influence.artifacts.lock import lock_folder
from influence.artifacts.place import is_remote
from influence.artifacts.tensors import save_tensors, saved_for
from influence.config import RunConfig
from influence.engine.dispatch import complete, workers_for
from influence.engine.progress import Progress, Report
from influence.engine.stage import Series, Stage, Task
from influence.errors import QueryError
from influence.neighbors.cells import PASSING, PHASES, CellPhase, one_compares
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


@dataclass
class NearRows(Stage):
    """Blocks of rows, each compared with all rows; their neighbours are a file a block."""

    plan: GraphPlan

    name = "neighbours"

    @property
    def key(self) -> str:
        """Of the graph."""
        return self.plan.fingerprint

    def cut(self) -> list[Task]:
        """Return a task for each block of rows [start, stop)."""
        plan, tasks = self.plan, list[Task]()
        for number in range(len(plan.blocks)):
            start, stop = plan.block(number)
            name, path = f"neighbours of rows {start} to {stop - 1}", plan.block_file(number)
            tasks.append(Task(self, number, name, (start, stop), path, self.key))
        return tasks

    def run(self, task: Task, session: Any) -> None:
        """Compare a block of rows with all rows and save its neighbours."""
        save_near(task.file, search(self.plan, np.arange(*task.span)).settled(), self.plan)


@dataclass
class MeasuredRecall(Stage):
    """What share of the true neighbours a graph has: some rows compared with every block of rows."""

    plan: GraphPlan

    name = "neighbours"
    local = ("truth",)

    @property
    def key(self) -> str:
        """Of the graph."""
        return self.plan.fingerprint

    @cached_property
    def truth(self) -> list[Nearest]:
        """The nearest rows that were found in each block so far."""
        return []

    def cut(self) -> list[Task]:
        """Return a task for each block of rows [start, stop)."""
        starts = range(0, self.plan.rows, TRUTH_ROWS)
        spans = [(start, min(self.plan.rows, start + TRUTH_ROWS)) for start in starts]
        return [Task(self, n, f"neighbours of rows {a} to {b - 1}", (a, b)) for n, (a, b) in enumerate(spans)]

    def stands(self) -> bool:
        """Whether the shares are on record."""
        return saved_for(self.plan.about, self.key)

    def run(self, task: Task, session: Any) -> Nearest:
        """Compare the measured rows with a block of rows."""
        return search(self.plan, asked_rows(self.plan), *task.span)

    def take(self, result: Nearest, progress: Progress) -> None:
        """Keep what was found in a block."""
        self.truth.append(result)
        progress.finished()

    def merge(self) -> None:
        """Record the shares, and remove what the graph was made from."""
        recall = torch.tensor(_recall(self.plan, self.truth), dtype=torch.float64)
        save_tensors(self.plan.about, {"recall": recall}, self.key)
        self.plan.remove(PASSING)


class NearCells(Series):
    """A graph by way of cells: its phases, then what it is worth."""

    name = "neighbours"

    def __init__(self, plan: GraphPlan) -> None:
        self._plan = plan

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """In order."""
        return *(CellPhase(self._plan, phase) for phase in PHASES), MeasuredRecall(self._plan)


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
        stage = NearRows(plan) if plan.compared is None else NearCells(plan)
        if plan.compared is None:
            tasks = len(stage.missing())
            pairs = plan.rows * plan.asked * tasks
        else:
            tasks, pairs = max(len(phase.cut()) for phase in NearCells(plan).stages), plan.rows * plan.compared
        with workers_for(config, plan.run_dir, _seconds(plan, pairs), tasks) as workers:
            complete([stage], workers, report)
        save_mark(plan, store)
    if not is_remote(plan.folder):
        remove_useless(plan, store)


def _seconds(plan: GraphPlan, pairs: int) -> float:
    """Return what so many pairs take to compare on one core."""
    return pairs * (2 * plan.dims + OVERHEAD) / A_SECOND


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


__all__ = ["asked_rows", "build_graph", "search"]
