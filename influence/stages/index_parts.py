"""The parts of the way to an approximate index, a stage each: training, lists of the rows, their merge, and the truth.

Each part is committed on its own, so that a build that was interrupted fills only those it lacks.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from index.approximate.merge import merge_parts
from index.approximate.parts import build_part, load_trained, part_ranges, read_part, save_trained
from index.approximate.questions import questions
from index.approximate.recall import truth_depth
from index.approximate.train import sample_rows, train
from index.errors import VectorIndexError
from index.exact import exact_search_scores
from index.factory import IndexPlan
from index.neighbours import Found, Neighbours, merge_neighbours
from index.settings import IndexSettings
from influence.engine.progress import Progress
from influence.engine.stage import Stage, Task
from influence.recipes import Recipe
from influence.stages.index import (
    compared_blocks,
    compared_rows,
    load_comparison,
    read_standing,
    scored_blocks,
)
from influence.store.manifest import Manifest
from influence.store.reader import Store
from influence.vectors.ensemble import Compared

SAMPLE_BLOCK = 4096


@dataclass
class IndexStage(Stage):
    """A part of the way to an approximate index.

    Attributes:
        run_dir: The run, whose rows are read.
        folder: Where the index is made.
        recipe: Of the stored rows.
        settings: Of the index.
        vectors: Fingerprint of the indexed vectors.
        plan: What the settings come to, at one step where `auto` climbs.
        rows: N.
        threads: Torch's, of every task.
        here: The folder isn't shared with workers.
    """

    run_dir: Path
    folder: Path
    recipe: Recipe
    settings: IndexSettings
    vectors: str
    plan: IndexPlan
    rows: int
    threads: int
    here: bool

    name = "index"

    @property
    def key(self) -> str:
        """Of the indexed vectors."""
        return self.vectors

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The rows of each part."""
        return part_ranges(self.plan, self.rows)

    def stands(self) -> bool:
        """Whether the index of this plan is there, measured or not."""
        record = read_standing(self.folder, Manifest.load(self.run_dir), self.recipe, self.settings)
        return record is not None and record.plan == self.plan

    def missing(self) -> list[Task]:
        """Return what is to be done; where the index stands, what it was made from isn't read."""
        return [] if self.stands() else super().missing()

    def compared(self) -> tuple[Store, Compared]:
        """Return the stored rows, and the recipe with its curvature."""
        store = Store(self.run_dir)
        return store, load_comparison(self.run_dir, store.manifest, self.recipe)


class Training(IndexStage):
    """The index trained on rows drawn across all shards."""

    def cut(self) -> list[Task]:
        """Return the one task."""
        return [Task(self, 0, "the index's training")]

    def done(self, task: Task) -> bool:
        """Whether this plan was trained for these rows."""
        try:
            return load_trained(self.folder, self.vectors)[0].plan == self.plan
        except VectorIndexError:
            return False

    def run(self, task: Task, session: Any) -> None:
        """Train and save."""
        store, comparison = self.compared()
        wanted = sample_rows(self.rows, self.plan.sample)
        sample = (
            (int(wanted[first]), compared_rows(store, comparison, wanted[first : first + SAMPLE_BLOCK]))
            for first in range(0, len(wanted), SAMPLE_BLOCK)
        )
        save_trained(train(self.plan, sample, self.rows, store.dims), self.folder, self.vectors)


class Parts(IndexStage):
    """Lists of the rows, a part a task, each committed on its own."""

    def cut(self) -> list[Task]:
        """Return a task for each part."""
        return [
            Task(self, n, f"the index's part {n} of {len(self.ranges)}", rows) for n, rows in enumerate(self.ranges)
        ]

    def missing(self) -> list[Task]:
        """Return the parts that don't stand, filled from what was trained last."""
        if self.stands():
            return []
        _, trained = load_trained(self.folder, self.vectors)
        return [task for task in self.cut() if read_part(self.folder, task.number, trained) is None]

    def run(self, task: Task, session: Any) -> None:
        """Fill one part with its rows."""
        build_part(self.folder, self.vectors, task.number, compared_blocks(*self.compared(), *task.span))


class Merge(IndexStage):
    """Lists copied on disk, in the order of the parts, so that any number of workers gives the same bytes."""

    def cut(self) -> list[Task]:
        """Return the one task."""
        return [Task(self, 0, "the index's merge")]

    def run(self, task: Task, session: Any) -> None:
        """Merge the parts."""
        merge_parts(self.folder, self.vectors)


class Truth(IndexStage):
    """An exact search for some of the rows, a task for each part's rows; by it the search's dials are set."""

    local = ("found",)

    @cached_property
    def found(self) -> list[Neighbours]:
        """What was found in each part so far."""
        return []

    def cut(self) -> list[Task]:
        """Return a search of each part's rows."""
        count = len(self.ranges)
        return [Task(self, n, f"the index's search of part {n} of {count}", rows) for n, rows in enumerate(self.ranges)]

    def stands(self) -> bool:
        """Never: it is kept in memory."""
        return False

    def run(self, task: Task, session: Any) -> Neighbours:
        """Search one part's rows exactly for the rows that are asked as queries."""
        (store, comparison), (first, stop) = self.compared(), task.span
        queries = query_vectors(store, comparison)
        blocks = ((start - first, scores) for start, scores in scored_blocks(store, comparison, queries, first, stop))
        best = exact_search_scores(blocks, len(queries), min(truth_depth(self.rows), stop - first))
        sides = (Found(side.rows + first, side.scores) for side in (best.largest, best.smallest))
        return Neighbours(*sides)

    def take(self, result: Neighbours, progress: Progress) -> None:
        """Keep what was found in a part."""
        self.found.append(result)
        progress.finished()

    def neighbours(self) -> Neighbours:
        """Return what was found in all parts."""
        return merge_neighbours(self.found, truth_depth(self.rows))


def query_vectors(store: Store, comparison: Any) -> np.ndarray:
    """Return the questions of `index.approximate.questions` as queries of the recipe, [m, D] float32."""
    gradients = torch.from_numpy(questions(store.rows).vectors(store.vectors))
    return comparison.query_vectors(gradients).numpy()
