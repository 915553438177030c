"""The stage of an approximate index: trained by one worker, filled part by part, merged, and measured.

train   from rows drawn across all shards
parts   a task each, committed on its own: a build that was interrupted fills only those it lacks
merge   lists copied on disk, in the order of the parts, so that any number of workers gives the same bytes
truth   an exact search for some of the rows, a task for each part's rows; by it the search's dials are set

With kind `auto`, an index whose measured recall is too low is replaced by the next step of
`index.approximate.fallback`; the exact results are kept for it.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from index.approximate.fallback import CLIMB, end_climb, fell_short, read_climb, record_scan
from index.approximate.merge import open_index, record_measured, remove_index
from index.approximate.operating_points import Measured
from index.approximate.questions import questions
from index.approximate.recall import measure_recall
from index.neighbours import Neighbours
from index.persist import RECORD, VECTORS
from index.settings import IndexSettings
from influence.engine.stage import Stage, Task
from influence.recipes import Recipe
from influence.stages.index import (
    FOLDER,
    compared_rows,
    index_fingerprint,
    index_plans,
    index_stands,
    load_comparison,
    read_standing,
)
from influence.stages.index_parts import IndexStage, Merge, Parts, Training, Truth, query_vectors
from influence.stages.mirror import filled
from influence.store.manifest import Manifest
from influence.store.reader import Store

log = logging.getLogger(__name__)

P = TypeVar("P", bound=IndexStage)


class ApproximateIndex(Stage):
    """An approximate index of a run: trained, filled, merged and measured, at one step of `auto` after another."""

    name = "index"

    def __init__(
        self, run_dir: Path, manifest: Manifest, recipe: Recipe, settings: IndexSettings, threads: int
    ) -> None:
        """Set up.

        Args:
            run_dir: The run, with all its rows and curvature. Where it is in a bucket, whose folders can't be shared,
                this process does the work.
            manifest: Of the run.
            recipe: Of the stored rows.
            settings: Of an approximate index.
            threads: Torch's, of every task.
        """
        self._run_dir, self._manifest, self._recipe, self._settings = run_dir, manifest, recipe, settings
        self._threads, self._plans = threads, index_plans(settings, manifest)

    @property
    def key(self) -> str:
        """Of the indexed vectors."""
        return index_fingerprint(self._manifest, self._recipe)

    def cut(self) -> list[Task]:
        """Return the tasks of the first step; where `auto` climbs there are more."""
        folder = self._run_dir / FOLDER
        return [task for kind in (Training, Parts, Merge, Truth) for task in self._part(kind, folder, 0).cut()]

    def stands(self) -> bool:
        """Whether the index is there and finds what it should, or no index does."""
        return index_stands(self._run_dir, self._manifest, self._recipe, self._settings)

    def each(self, do: Callable[[Stage], None]) -> None:
        """Make what is missing of the index.

        Raises:
            VectorIndexError: It can't be trained, filled, merged or written.
        """
        plans, truth = self._plans, None
        with filled(self._run_dir / FOLDER) as folder:
            climb = read_climb(folder, self.key, plans, self._settings.recall)
            while True:
                standing = read_standing(folder, self._manifest, self._recipe, self._settings)
                step = climb.next if standing is None else plans.index(standing.plan)
                if plans[step].factory is None:
                    break
                if standing is None:
                    # Another kind's, or an older plan's: no record may vouch for what is about to be replaced.
                    _forget(folder)
                for kind in (Training, Parts, Merge):
                    do(self._part(kind, folder, step))
                if truth is None:
                    search = self._part(Truth, folder, step)
                    do(search)
                    truth = search.neighbours()
                last = step == len(plans) - 1
                measured = self._measure(folder, truth, last=last)
                if measured.reached or last:
                    record_measured(folder, measured, [one for one in climb.tried if one.step < step])
                    end_climb(folder)
                    return
                climb = fell_short(folder, climb, step, measured)
                _forget(folder)
            remove_index(folder, keep=CLIMB)
            record_scan(folder, climb)
            end_climb(folder)

    def _part(self, kind: type[P], folder: Path, step: int) -> P:
        here = folder != self._run_dir / FOLDER
        settings, plan = self._settings, self._plans[step]
        return kind(
            self._run_dir, folder, self._recipe, settings, self.key, plan, self._manifest.rows, self._threads, here
        )

    def _measure(self, folder: Path, truth: Neighbours, *, last: bool) -> Measured:
        """Set the index's dials by the truth."""
        store, comparison = Store(self._run_dir), load_comparison(self._run_dir, self._manifest, self._recipe)
        opened = open_index(folder, self.key, verify="size")
        own, queries = questions(store.rows), query_vectors(store, comparison)
        vectors = lambda rows: compared_rows(store, comparison, rows)  # noqa: E731
        measured = measure_recall(opened, queries, own, truth, vectors, self._settings.recall, last=last)
        log.info("Index: %s. %s", opened.trained.plan.summary, told(measured))
        return measured


def _forget(folder: Path) -> None:
    for name in (RECORD, VECTORS):
        (folder / name).unlink(missing_ok=True)


def told(measured: Measured) -> str:
    """Return what was measured in a sentence."""
    dials = [dial for dial in measured.dials if dial.depth == min(dial.depth for dial in measured.dials)]
    said = [
        f"{dial.recall:.3f} of the {dial.depth} {dial.end} scores with {dial.probes:,} cells and {dial.candidates:,} "
        "candidates"
        for dial in dials
    ]
    return f"Measured on {measured.queries} questions (rows, rows negated, contrasts), it finds {', '.join(said)}."
