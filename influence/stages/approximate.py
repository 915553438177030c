"""The stage of an approximate index: trained by one worker, filled part by part, merged, and measured.

train   from rows drawn across all shards
parts   a task each, committed on its own: a build that was interrupted fills only those it lacks
merge   lists copied on disk, in the order of the parts, so that any number of workers gives the same bytes
truth   an exact search for some of the rows, a task for each part's rows; by it the search's dials are set

With kind `auto`, an index whose measured recall is too low is replaced by the next step of
`index.approximate.fallback`; the exact results are kept for it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import Client

from index.approximate.fallback import CLIMB, end_climb, fell_short, read_climb, record_scan
from index.approximate.merge import merge_parts, open_index, record_measured, remove_index
from index.approximate.operating_points import Measured
from index.approximate.parts import build_part, load_trained, part_ranges, read_part, save_trained
from index.approximate.questions import questions
from index.approximate.recall import measure_recall, truth_depth
from index.approximate.train import sample_rows, train
from index.errors import VectorIndexError
from index.exact import exact_search_scores
from index.neighbours import Found, Neighbours, merge_neighbours
from index.persist import RECORD, VECTORS
from index.settings import IndexSettings
from influence.engine.progress import Progress
from influence.engine.submit import run_tasks
from influence.engine.threads import torch_threads
from influence.errors import InfluenceError
from influence.recipes import Recipe
from influence.stages.index import (
    FOLDER,
    compared_blocks,
    compared_rows,
    index_fingerprint,
    index_plan,
    index_plans,
    load_comparison,
    read_standing,
    scored_blocks,
)
from influence.stages.mirror import filled
from influence.store.manifest import Manifest
from influence.store.reader import Store

log = logging.getLogger(__name__)

SAMPLE_BLOCK = 4096


@dataclass(frozen=True)
class IndexTask:
    """What a worker is sent.

    Attributes:
        what: `training`, `part 3 of 8`, …, for messages.
        run_dir: The run, whose rows are read.
        folder: Where the index is made.
        recipe: Of the stored rows.
        settings: Of the index.
        fingerprint: Of the indexed vectors.
        threads: Torch's.
        number: Of the part.
        step: Of `index_plans`: 0 unless `auto` climbed.
    """

    what: str
    run_dir: Path
    folder: Path
    recipe: Recipe
    settings: IndexSettings
    fingerprint: str
    threads: int
    number: int = 0
    step: int = 0

    @property
    def name(self) -> str:
        """For messages."""
        return f"the index's {self.what}"


def index_tasks(manifest: Manifest, settings: IndexSettings) -> int:
    """Return how many tasks make the index: a training, parts, a merge, and as many searches as parts.

    Where `auto` climbs, the stage hears of more.
    """
    return 2 + 2 * len(part_ranges(index_plan(settings, manifest), manifest.rows))


def build_approximate(
    client: Client,
    run_dir: Path,
    manifest: Manifest,
    recipe: Recipe,
    settings: IndexSettings,
    threads: int,
    stage: Progress,
) -> None:
    """Make what is missing of the index.

    Args:
        client: Of the cluster. Where the run is in a bucket, whose folders can't be shared, this process does the work.
        run_dir: The run, with all its rows and curvature.
        manifest: Of the run.
        recipe: Of the stored rows.
        settings: Of an approximate index.
        threads: Torch's, of every task.
        stage: Hears of every task.

    Raises:
        VectorIndexError: It can't be trained, filled, merged or written.
    """
    with filled(run_dir / FOLDER) as folder:
        shared = folder == run_dir / FOLDER
        base = IndexTask("", run_dir, folder, recipe, settings, index_fingerprint(manifest, recipe), threads)

        def run(function: Callable[[IndexTask], Any], tasks: Sequence[IndexTask]) -> Iterator[Any]:
            done = run_tasks(client, function, tasks, lambda task: task.name, stage) if shared else map(function, tasks)
            for result in done:
                stage.finished()
                yield result

        plans, truth = index_plans(settings, manifest), None
        climb = read_climb(folder, base.fingerprint, plans, settings.recall)
        while True:
            standing = read_standing(folder, manifest, recipe, settings)
            step = climb.next if standing is None else plans.index(standing.plan)
            if plans[step].factory is None:
                break
            base, last = replace(base, step=step), step == len(plans) - 1
            ranges = part_ranges(plans[step], manifest.rows)
            if standing is None:
                _make(run, base, len(ranges), stage)
            else:
                _passed(stage, 2 + len(ranges))
            truth = truth or merge_neighbours(
                list(run(run_truth, _tasks(base, "search of part", range(len(ranges)), len(ranges)))),
                truth_depth(manifest.rows),
            )
            measured = _measure(base, truth, last=last)
            if measured.reached or last:
                record_measured(folder, measured, [one for one in climb.tried if one.step < step])
                end_climb(folder)
                return
            climb = fell_short(folder, climb, step, measured)
            _forget(folder)
            if plans[step + 1].factory is not None:
                stage.total += 2 + len(part_ranges(plans[step + 1], manifest.rows))
        remove_index(folder, keep=CLIMB)
        record_scan(folder, climb)
        end_climb(folder)


def _make(run: Callable[..., Iterator[Any]], base: IndexTask, count: int, stage: Progress) -> None:
    """Train, fill those of `count` parts that are missing, and merge."""
    # Another kind's, or an older plan's: no record may vouch for what is about to be replaced.
    _forget(base.folder)
    _exhaust(run(run_training, [replace(base, what="training")]))
    _, trained = load_trained(base.folder, base.fingerprint)
    missing = [number for number in range(count) if read_part(base.folder, number, trained) is None]
    _passed(stage, count - len(missing))
    _exhaust(run(run_part, _tasks(base, "part", missing, count)))
    _exhaust(run(run_merge, [replace(base, what="merge")]))


def _tasks(base: IndexTask, what: str, numbers: Iterable[int], count: int) -> list[IndexTask]:
    return [replace(base, what=f"{what} {number} of {count}", number=number) for number in numbers]


def _passed(stage: Progress, count: int) -> None:
    """Count tasks whose work stands already."""
    for _ in range(count):
        stage.finished()


def _forget(folder: Path) -> None:
    for name in (RECORD, VECTORS):
        (folder / name).unlink(missing_ok=True)


def run_training(task: IndexTask) -> None:
    """Train the index, unless that stands; the entry point of a task."""
    with _computing(task):
        store, manifest = Store(task.run_dir), Manifest.load(task.run_dir)
        plan = index_plans(task.settings, manifest)[task.step]
        try:
            standing, _ = load_trained(task.folder, task.fingerprint)
            if standing.plan == plan:
                return
        except VectorIndexError:
            pass
        comparison = load_comparison(task.run_dir, manifest, task.recipe)
        wanted = sample_rows(manifest.rows, plan.sample)
        sample = (
            (int(wanted[first]), compared_rows(store, comparison, wanted[first : first + SAMPLE_BLOCK]))
            for first in range(0, len(wanted), SAMPLE_BLOCK)
        )
        save_trained(train(plan, sample, manifest.rows, manifest.dims), task.folder, task.fingerprint)


def run_part(task: IndexTask) -> None:
    """Fill one part with its rows; the entry point of a task."""
    with _computing(task):
        store, manifest = Store(task.run_dir), Manifest.load(task.run_dir)
        comparison = load_comparison(task.run_dir, manifest, task.recipe)
        first, stop = part_ranges(index_plans(task.settings, manifest)[task.step], manifest.rows)[task.number]
        build_part(task.folder, task.fingerprint, task.number, compared_blocks(store, comparison, first, stop))


def run_merge(task: IndexTask) -> None:
    """Merge the parts; the entry point of a task."""
    with _computing(task):
        merge_parts(task.folder, task.fingerprint)


def run_truth(task: IndexTask) -> Neighbours:
    """Search one part's rows exactly for the rows that are asked as queries; the entry point of a task."""
    with _computing(task):
        store, manifest = Store(task.run_dir), Manifest.load(task.run_dir)
        comparison = load_comparison(task.run_dir, manifest, task.recipe)
        first, stop = part_ranges(index_plans(task.settings, manifest)[task.step], manifest.rows)[task.number]
        asked = _queries(store, comparison)
        blocks = ((start - first, found) for start, found in scored_blocks(store, comparison, asked, first, stop))
        found = exact_search_scores(blocks, len(asked), min(truth_depth(manifest.rows), stop - first))
        sides = (Found(side.rows + first, side.scores) for side in (found.largest, found.smallest))
        return Neighbours(*sides)


def _queries(store: Store, comparison: Any) -> np.ndarray:
    """Return the questions of `index.approximate.questions` as queries of the recipe, [m, D] float32."""
    gradients = torch.from_numpy(questions(store.rows).vectors(store.vectors))
    return comparison.query_vectors(gradients).numpy()


def _measure(task: IndexTask, truth: Neighbours, *, last: bool) -> Measured:
    """Set the index's dials by the truth."""
    store, manifest = Store(task.run_dir), Manifest.load(task.run_dir)
    comparison = load_comparison(task.run_dir, manifest, task.recipe)
    opened = open_index(task.folder, task.fingerprint, verify="size")
    own, asked = questions(store.rows), _queries(store, comparison)
    found = measure_recall(
        opened, asked, own, truth, lambda rows: compared_rows(store, comparison, rows), task.settings.recall, last=last
    )
    log.info("Index: %s. %s", opened.trained.plan.summary, told(found))
    return found


def told(measured: Measured) -> str:
    """Return what was measured in a sentence."""
    dials = [dial for dial in measured.dials if dial.depth == min(dial.depth for dial in measured.dials)]
    said = [
        f"{dial.recall:.3f} of the {dial.depth} {dial.end} scores with {dial.probes:,} cells and {dial.candidates:,} "
        "candidates"
        for dial in dials
    ]
    return f"Measured on {measured.queries} questions (rows, rows negated, contrasts), it finds {', '.join(said)}."


@contextmanager
def _computing(task: IndexTask) -> Iterator[None]:
    """Compute with the task's threads, and name the task in the errors of this package and of `index`."""
    try:
        with torch_threads(task.threads):
            yield
    except (InfluenceError, VectorIndexError) as error:
        raise type(error)(f"{task.name}: {error}") from error


def _exhaust(results: Iterable[Any]) -> None:
    for _ in results:
        pass
