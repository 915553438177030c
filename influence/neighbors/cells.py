"""Near rows by way of cells: each row is compared with the rows of the cells where its neighbours most likely are.

Rows are sorted into cells by direction, and their codes copied in that order, so that a cell is one piece of a file.
A task takes rows that lie side by side there, finds for each the cells that it looks most towards and those that it
looks most away from, up to a number of rows at each end, and compares each cell with all rows that want it in one
matrix product off the codes. Work grows with rows × compared rows; cosines are exact, and what can be missing is a row
whose cell wasn't looked at. Which share that is, is measured.

    cells    unit rows drawn across the run, k-means: centroids
    homes    each row's cell, a task a block of rows
    order    the rows in the order of cells, and where each cell begins
    codes    codes in that order, a task a stretch of it
    places   neighbours of the rows in that order, a task a stretch of it
    near     the same in the order of rows
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from index.approximate.reduction import Sketch
from index.approximate.train import SEED, sample_rows
from index.gemm import packed, product
from influence.artifacts.tensors import load_tensors
from influence.engine.stage import Stage, Task
from influence.neighbors.files import mapped, save_near, zero_rows
from influence.neighbors.nearest import NOBODY, Nearest, own_places
from influence.neighbors.plan import GraphPlan, decoded, directions
from influence.store.codec import Encoded

PASSING = ("cells", "homes", "order", "codes", "places")
"""What files that are gone once the graph stands begin with."""
WIDEST = 1024
"""Columns that rows are added up to before they are sorted into cells."""
PER_CELL = 32
"""Rows a cell that k-means sees."""
ROUNDS = 6
"""Of k-means."""
HOME_ROWS, PASS_ROWS = 2**16, 4096
"""Rows of a block that are sorted into cells, and of them at a time."""
PROMISES = 2**22
"""Products of rows with centroids that are held at a time, to choose each row's cells: 16 MiB, some times over."""
LARGEST = 4
"""Cells with more than so many times the average rows are cut, in the order of their rows: copies can't be told
apart."""

one_compares = threading.Lock()
"""A worker's two task slots take turns at what fills memory and cores."""


@dataclass
class CellPhase(Stage):
    """A step of the way, cut into blocks of rows or places."""

    plan: GraphPlan
    phase: str

    name = "neighbours"

    @property
    def key(self) -> str:
        """Of the graph."""
        return self.plan.fingerprint

    def cut(self) -> list[Task]:
        """Return a task for each block; a task covers rows or places [first, stop)."""
        plan, tasks, size = self.plan, list[Task](), PHASES[self.phase][1](self.plan)
        for number, first in enumerate(range(0, plan.rows, size)):
            name, path = f"neighbours, {self.phase} from {first}", file_of(plan, self.phase, first)
            tasks.append(Task(self, number, name, (first, min(plan.rows, first + size)), path, self.key))
        return tasks

    def run(self, task: Task, session: Any) -> None:
        """Do what the phase does."""
        PHASES[self.phase][0](self.plan, task)


def file_of(plan: GraphPlan, phase: str, first: int = 0) -> Path:
    """Return the file of a phase that begins at some row or place."""
    if phase == "near":
        return plan.block_file(first // plan.step)
    return plan.folder / f"{phase}-{first:012d}.safetensors"


def make_cells(plan: GraphPlan, task: Task) -> None:
    """Find the cells' centroids by k-means on directions."""
    store, sketch = plan.store, _sketch(plan)
    wanted = sample_rows(plan.rows, PER_CELL * plan.cells)
    wanted = wanted[~zero_rows(plan)[wanted]]
    sample = np.zeros((len(wanted), sketch.reduced), dtype=np.float32)
    for first in range(0, len(wanted), PASS_ROWS):
        part = slice(first, first + PASS_ROWS)
        sample[part] = _normed(sketch.apply(directions(store, wanted[part])))
    random = np.random.Generator(np.random.Philox(key=SEED))
    begin = random.choice(len(sample), min(plan.cells, len(sample)), replace=False)
    centroids = sample[np.sort(begin)]
    for _ in range(ROUNDS):
        centroids = _moved(centroids, sample)
    if not len(centroids):
        # All of what was drawn is zero rows: one cell holds whatever there is.
        centroids = np.zeros((1, sketch.reduced), dtype=np.float32)
    task.save({"centroids": torch.from_numpy(centroids)})


def find_homes(plan: GraphPlan, task: Task) -> None:
    """Say in which cell each row of a block is, −1 of zero rows."""
    (begin, end), store, sketch, centroids = task.span, plan.store, _sketch(plan), _centroids(plan)
    cells = packed(centroids.T)
    homes = np.empty(end - begin, dtype=np.int32)
    for first in range(begin, end, PASS_ROWS):
        rows = np.arange(first, min(end, first + PASS_ROWS))
        near = product(sketch.apply(directions(store, rows)), cells)
        homes[rows - begin] = np.argmax(near, axis=1)
    homes[zero_rows(plan)[begin:end]] = NOBODY
    task.save({"homes": torch.from_numpy(homes)})


def put_in_order(plan: GraphPlan, task: Task) -> None:
    """Order the rows by cell, zero rows last. Memory: 20 bytes a row."""
    files = [file_of(plan, "homes", first) for first in range(0, plan.rows, HOME_ROWS)]
    homes = np.concatenate([load_tensors(path, plan.fingerprint)["homes"].numpy() for path in files])
    cells = len(_centroids(plan))
    order = np.argsort(np.where(homes >= 0, homes, cells), kind="stable")
    counts = np.bincount(homes[homes >= 0], minlength=cells)
    starts, parents, largest = [0], [], max(1, LARGEST * plan.rows // plan.cells)
    for cell, count in enumerate(counts.tolist()):
        for left in range(count, 0, -largest):
            starts.append(starts[-1] + min(left, largest))
            parents.append(cell)
    places = np.empty(plan.rows, dtype=np.int64)
    places[order] = np.arange(plan.rows)
    found = {"order": order, "places": places, "starts": np.array(starts), "parents": np.array(parents or [0])}
    task.save({name: torch.from_numpy(array) for name, array in found.items()})


def copy_codes(plan: GraphPlan, task: Task) -> None:
    """Copy the codes of a stretch of the order. Memory: some times `CODE_BYTES`."""
    store, rows = plan.store, _ordered(plan, "order", *task.span)
    sorted_by = np.argsort(rows)
    with one_compares:
        encoded, _ = store.encoded(rows[sorted_by], store.arrays(len(rows)))
        back = np.argsort(sorted_by)
        tensors = {name: torch.from_numpy(array[back]) for name, array in encoded.items()}
        task.save(tensors)


def compare_places(plan: GraphPlan, task: Task) -> None:
    """Compare the rows of a stretch of the order with their cells.

    Memory: their directions, float32, twice; a byte a row and cell; `PROMISES`; a cell's codes and scores.
    """
    with one_compares:
        found = _compared(plan, *task.span)
    save_near(task.file, found.settled(), plan)


def _compared(plan: GraphPlan, begin: int, end: int) -> Nearest:
    codec, sketch = plan.store.codec, _sketch(plan)
    starts, parents = (_whole(plan, name) for name in ("starts", "parents"))
    stop = min(end, int(starts[-1]))
    found = Nearest(end - begin, plan.k)
    if stop > begin:
        rows, asked = _ordered(plan, "order", begin, stop), decoded(codec, _codes(plan, begin, stop))
        wanted = _wanted(sketch.apply(asked), _centroids(plan)[parents], starts, begin, plan)
        # The cells of the rows themselves first: what is found there leaves little to sort in later.
        own = np.searchsorted(starts, [begin, stop - 1], side="right") - 1
        for cell in sorted(range(len(parents)), key=lambda cell: not own[0] <= cell <= own[1]):
            lines = np.flatnonzero(wanted[cell])
            if lines.size:
                first, last = int(starts[cell]), int(starts[cell + 1])
                encoded, held = _codes(plan, first, last), _ordered(plan, "order", first, last)
                scores, lengths = codec.scorer(asked[lines], many=True)(encoded), codec.lengths(encoded)
                np.divide(scores, lengths, out=scores, where=lengths > 0)
                found.offer(scores, held, lines, own_places(rows[lines], held))
    return found


def put_in_rows(plan: GraphPlan, task: Task) -> None:
    """Gather the neighbours of a block of rows from what was found for places."""
    places = _ordered(plan, "places", *task.span)
    found: dict[str, np.ndarray] = {}
    for first in range(0, plan.rows, plan.asked):
        lines = np.flatnonzero((places >= first) & (places < first + plan.asked))
        if lines.size:
            for name, tensor in load_tensors(file_of(plan, "places", first), plan.fingerprint).items():
                held = tensor.numpy()
                into = found.setdefault(name, np.empty((len(places), plan.k), held.dtype))
                into[lines] = held[places[lines] - first]
    save_near(task.file, found, plan)
    # A mapped file keeps its place on the disk when it is removed.
    _mapped.cache_clear()


def _wanted(reduced: np.ndarray, centroids: np.ndarray, starts: np.ndarray, first: int, plan: GraphPlan) -> np.ndarray:
    """Return which cells are compared with each row, bool [cells, n]: its own, and the best at each end.

    Args:
        reduced: The rows' directions, as cells are told by, [n, columns].
        centroids: Each cell's, [cells, columns].
        starts: Each cell's first place, and the end.
        first: The place of the first row; they lie side by side.
        plan: Of the graph.
    """
    sizes, most, cells = np.diff(starts), max(1, (plan.compared or 0) // 2), len(centroids)
    wanted = np.zeros((cells, len(reduced)), dtype=bool)
    own = np.searchsorted(starts, np.arange(first, first + len(reduced)), side="right") - 1
    wanted[own, np.arange(len(reduced))] = True
    # So many cells are more than `most` rows, unless they are smaller than most cells are.
    few = min(cells, 8 + 4 * most * cells // max(1, int(starts[-1])))
    step, across = max(1, PROMISES // cells), packed(centroids.T)
    for begin in range(0, len(reduced), step):
        promise = product(reduced[begin : begin + step], across)
        sides = np.argpartition(promise, sorted({few - 1, cells - few}), axis=1)
        for best, sign in ((sides[:, cells - few :], -1), (sides[:, :few], 1)):
            order = np.argsort(sign * np.take_along_axis(promise, best, axis=1), axis=1, kind="stable")
            ranked = np.take_along_axis(best, order, axis=1)
            taken = np.cumsum(sizes[ranked], axis=1) - sizes[ranked] // 2 <= most
            taken[:, 0] = True
            lines, columns = np.nonzero(taken)
            wanted[ranked[lines, columns], begin + lines] = True
    return wanted


def _moved(centroids: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Return the directions of the means of the rows nearest to each centroid; one without rows stays."""
    sums, across = np.zeros_like(centroids), packed(centroids.T)
    for first in range(0, len(sample), PASS_ROWS):
        part = sample[first : first + PASS_ROWS]
        homes = np.argmax(product(part, across), axis=1)
        ones = np.ones(len(part), dtype=np.float32)
        sums += csr_array((ones, (homes, np.arange(len(part)))), shape=(len(centroids), len(part))) @ part
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1), centroids)


def _normed(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def _sketch(plan: GraphPlan) -> Sketch:
    return Sketch(plan.dims, min(plan.dims, WIDEST), SEED)


def _centroids(plan: GraphPlan) -> np.ndarray:
    return load_tensors(file_of(plan, "cells"), plan.fingerprint)["centroids"].numpy()


def _whole(plan: GraphPlan, name: str) -> np.ndarray:
    return load_tensors(file_of(plan, "order"), plan.fingerprint, [name])[name].numpy()


def _ordered(plan: GraphPlan, name: str, first: int, stop: int) -> np.ndarray:
    """Return some entries of an array that is as long as the run."""
    # Files of a moment ago, gone soon: to check their digests would cost more than what is read of them.
    return np.array(_mapped(file_of(plan, "order"), plan.fingerprint)[name][first:stop])


def _codes(plan: GraphPlan, first: int, stop: int) -> Encoded:
    """Return the codes at some places."""
    step, pieces = plan.code_rows, list[Encoded]()
    for begin in range(first // step * step, stop, step):
        inside = slice(max(0, first - begin), min(step, stop - begin))
        held = _mapped(file_of(plan, "codes", begin), plan.fingerprint)
        pieces.append({name: np.array(array[inside]) for name, array in held.items()})
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


@lru_cache(maxsize=256)
def _mapped(path: Path, fingerprint: str) -> dict[str, np.ndarray]:
    return mapped(path)


PHASES: dict[str, tuple[Callable[[GraphPlan, Task], None], Callable[[GraphPlan], int]]] = {
    "cells": (make_cells, lambda plan: plan.rows),
    "homes": (find_homes, lambda plan: HOME_ROWS),
    "order": (put_in_order, lambda plan: plan.rows),
    "codes": (copy_codes, lambda plan: plan.code_rows),
    "places": (compare_places, lambda plan: plan.asked),
    "near": (put_in_rows, lambda plan: plan.step),
}
"""What is done, in order: by whom, and for how many rows or places at a time."""
