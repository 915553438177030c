"""The tasks of a full scan: queries are captured in batches, blocks of rows scored against each, and kept in files.

Every task is idempotent and leaves one file with its commit record: a scan that was killed does what is missing. They
are done in this process or on the run's cluster, by how long they take (`dispatch`), to the same bytes. Whoever does
one holds a batch of queries and what it keeps of one block; nobody ever holds the matrix of scores.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from influence.artifacts.tensors import load_tensors
from influence.capture.opening import check_modules, check_unchanged
from influence.capture.process_session import session_here
from influence.capture.queries import query_gradients, query_seconds
from influence.capture.session import Session
from influence.capture.spec import CaptureSpec
from influence.config import RunConfig
from influence.data.example import Example
from influence.engine.dispatch import complete, workers_for
from influence.engine.progress import Report
from influence.engine.stage import Stage, Task
from influence.errors import QueryError
from influence.recipes import Recipe
from influence.scan.plan import Scan, coordinate_cost
from influence.scan.shortlist import Shortlist
from influence.stages.index import load_comparison, scored_blocks
from influence.store.manifest import Manifest
from influence.store.reader import Store
from influence.vectors.ensemble import Compared
from influence.vectors.queries import compared_queries
from influence.vectors.unit_norm import at_length

log = logging.getLogger(__name__)

SELF_ROWS = 256
"""Rows whose curvature is applied at a time."""
COORDINATE_SECONDS = 1e-8
"""What a coordinate takes to unpack and multiply where rows aren't scored straight from their codes."""
CURVED_SECONDS = 5e-11
"""What it takes besides for every column of the curvature that is applied to it."""


@dataclass
class QueryBatches(Stage):
    """Batches of queries, captured and saved as they are compared."""

    scan: Scan
    spec: CaptureSpec
    queries: Sequence[Example]

    name = "queries"
    local = ("queries",)

    @property
    def key(self) -> str:
        """Of the question."""
        return self.scan.fingerprint

    def cut(self) -> list[Task]:
        """Return a task for each batch; none where rows are scored for themselves."""
        scan, tasks = self.scan, list[Task]()
        for number, first in enumerate(scan.batches if scan.queries else ()):
            batch = tuple(self.queries[first : first + scan.batch])
            name = f"queries {first} to {first + len(batch) - 1}"
            tasks.append(Task(self, number, name, batch, scan.asked_file(number), self.key))
        return tasks

    def session(self, task: Task) -> AbstractContextManager[Session]:
        """Lend the session of the run."""
        return session_here(self.spec)

    def run(self, task: Task, session: Session) -> None:
        """Capture a batch of queries and save them as they are compared."""
        scan, store = self.scan, Store(self.scan.run_dir)
        with session.computing:
            check_modules(session, scan.run_dir, store.manifest)
            gradients, said, instead = query_gradients(session, task.span, cut=scan.cut)
        names = [example.id for example in task.span]
        vectors = compared_queries(_comparison(scan.run_dir, scan.recipe, store.manifest), gradients, names, said)
        tensors = {"vectors": torch.from_numpy(vectors).contiguous()}
        tensors |= {"said": torch.from_numpy(said).double(), "instead": torch.from_numpy(instead).double()}
        task.save(tensors)


@dataclass
class ScoreBlocks(Stage):
    """Blocks of rows scored against batches of queries, or each row against itself; a task covers (block, batch)."""

    scan: Scan
    name: str = "scores"

    @property
    def key(self) -> str:
        """Of the question."""
        return self.scan.fingerprint

    def cut(self) -> list[Task]:
        """Return the blocks of rows with each batch, the batches of a block one after the other."""
        scan, tasks = self.scan, list[Task]()
        for block in range(len(scan.blocks)):
            start, stop = scan.block(block)
            for batch in range(len(scan.batches)):
                name = f"rows {start} to {stop - 1}, batch {batch + 1} of {len(scan.batches)}"
                path = scan.scored_file(block, batch)
                tasks.append(Task(self, len(tasks), name, (block, batch), path, self.key))
        return tasks

    def run(self, task: Task, session: Any) -> None:
        """Score a block of rows and save what is kept of it."""
        scan, (block, batch), store = self.scan, task.span, Store(self.scan.run_dir)
        comparison, rows = _comparison(scan.run_dir, scan.recipe, store.manifest), scan.chosen(block)
        if scan.keep == "self":
            kept = {"scores": self_scores(store, comparison, rows)}
        else:
            scores = _checked(_scored(scan, block, batch, store, comparison), scan, batch, rows)
            kept = _kept(scan, batch, scores, rows)
        # Numpy's empty arrays have no stride that torch could view as bytes.
        task.save(
            {
                name: torch.from_numpy(array).clone() if array.size else torch.zeros(array.shape)
                for name, array in kept.items()
            }
        )


def compute(
    config: RunConfig, scan: Scan, spec: CaptureSpec, queries: Sequence[Example], report: Report | None
) -> None:
    """Do whatever tasks of a scan are missing. A cluster starts only where they are worth it; see `dispatch`.

    Raises:
        FingerprintMismatch: There are queries to capture, and the model has changed since the rows were.
        QueryError: A query can't be captured, or a score isn't finite.
        InfluenceError: What else a worker met.
    """
    capture, scores = QueryBatches(scan, spec, queries), ScoreBlocks(scan)
    asking, scoring = capture.missing(), scores.missing()
    total = len(capture.cut()) + len(scores.cut())
    if 0 < len(asking) + len(scoring) < total:
        log.info("%d of %d parts are there already.", total - len(scoring) - len(asking), total)
    manifest = Manifest.load(scan.run_dir)
    if asking:
        check_unchanged(config, scan.run_dir, manifest)
    seconds = query_seconds(spec, [example for task in asking for example in task.span], cut=scan.cut)
    seconds += scoring_seconds(scan, manifest, len(scoring))
    with workers_for(config, scan.run_dir, seconds, max(len(asking), len(scoring))) as workers, comparison_held():
        complete([capture, scores] if scan.queries else [scores], workers, report)


def scoring_seconds(scan: Scan, manifest: Manifest, tasks: int) -> float:
    """Return what so many blocks of a scan take to score on one core, about."""
    recipe, dims, curved = scan.recipe, manifest.dims, 0
    coordinates = float(tasks) * min(scan.step, scan.rows) * dims
    if recipe.curvature.kind == "fisher":
        curved = max(dims if recipe.curvature.blocks == "all" else own.stop - own.start for own in manifest.modules)
    if scan.keep == "self" or (curved and recipe.halved):
        return coordinates * (COORDINATE_SECONDS * max(1, scan.batch) + CURVED_SECONDS * curved)
    return coordinates * coordinate_cost(scan.batch) * 1e-9


def self_scores(store: Store, comparison: Compared, rows: np.ndarray) -> np.ndarray:
    """Return what each row scores when it is asked about itself, float32 [len(rows)], summed in float64.

    Where all columns count alike it is read off the rows' lengths, which are those of the captured gradients whatever
    the codec. Else the rows are taken as the codec gives them back, at their own length, so that the codec's error
    turns a row and doesn't lengthen it.

    Args:
        store: Of the run.
        comparison: Of a recipe that queries and rows go into alike: a dot product, of the same gradients.
        rows: Ascending.

    Raises:
        QueryError: A row is a sum of means over the parts of a split text, from which its sum can't be told.
    """
    lengths = store.lengths(rows)
    times = _tokens_averaged(store, comparison.recipe, rows)
    if (factor := comparison.even_factor) is not None:
        weights = store.weights(rows).astype(np.float64) if comparison.recipe.weighted else 1.0
        return (times * factor * weights * lengths.astype(np.float64) ** 2).astype(np.float32)
    found = np.zeros(len(rows), dtype=np.float32)
    for place in range(0, len(rows), SELF_ROWS):
        part = rows[place : place + SELF_ROWS]
        own = torch.from_numpy(lengths[place : place + SELF_ROWS])
        gradients = at_length(torch.from_numpy(store.vectors(part)), own)
        weights = torch.from_numpy(store.weights(part)) if comparison.recipe.weighted else None
        asked, held = comparison.query_vectors(gradients), comparison.row_vectors(gradients, weights)
        found[place : place + len(part)] = (asked.double() * held.double()).sum(dim=1).float().numpy()
    return (times * found).astype(np.float32)


def _tokens_averaged(store: Store, recipe: Recipe, rows: np.ndarray) -> np.ndarray | float:
    """Return how many times a row's own gradient is what is asked about it, [len(rows)] float64.

    What is asked is the log-likelihood of all scored tokens together, also where a row's loss is the mean over them.
    """
    if store.manifest.reduction == "sum" or recipe.measurement == "log_odds":
        return 1.0
    if store.manifest.fingerprint_parts.get("data.long_rows") == "split":
        raise QueryError(
            "Under task.reduction mean with data.long_rows split a row is a sum of means over its parts, so what it "
            "scores for itself can't be told from what is stored. Build with long_rows truncate, or reduction sum."
        )
    tokens = [meta["tokens"] for meta in store.meta(rows, ("tokens",))]
    return np.maximum(np.asarray(tokens, dtype=np.float64), 1.0)


def _scored(
    scan: Scan, block: int, batch: int, store: Store, comparison: Compared
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield places among the block's rows that are asked of, and their scores [m, b]."""
    start, stop = scan.block(block)
    passing = scan.passing(start, stop)
    vectors = load_tensors(scan.asked_file(batch), scan.fingerprint)["vectors"].numpy()
    offset = 0 if scan.filtered else start
    blocks = scored_blocks(store, comparison, vectors, start, stop, passing=passing, threads=scan.threads)
    for first, found in blocks:
        yield slice(first - offset, first - offset + found.shape[1]), found


def _checked(
    blocks: Iterator[tuple[slice, np.ndarray]], scan: Scan, batch: int, rows: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Refuse scores that aren't finite."""
    for places, found in blocks:
        finite = np.isfinite(found)
        if not finite.all():
            query, place = (int(where[0]) for where in np.nonzero(~finite))
            raise QueryError(
                f"Row {rows[places][place]} scores {found[query, place]} with query {scan.batches[batch] + query} "
                "(counted from 0); a finite score was expected. Row or query is too long for float32 scores: look at "
                "that example, or leave the row out with --where."
            )
        yield places, found


def _kept(
    scan: Scan, batch: int, blocks: Iterator[tuple[slice, np.ndarray]], rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Return what is kept of a block's scores, by name; `best` is each query's largest, which a bound is held to."""
    count = scan.batch_size(batch)
    if scan.keep == "all":
        scores = np.zeros((len(rows), count), dtype=np.float32)
        for places, found in blocks:
            scores[places] = found.T
        return {"scores": scores, "best": scores.max(axis=0, initial=0)}
    if scan.keep == "top":
        high, low = Shortlist(count, scan.k), Shortlist(count, scan.k)
        for places, found in blocks:
            high.offer(found, rows[places])
            low.offer(-found, rows[places])
        best = high.scores.max(axis=1, initial=0)
        return {"high": high.scores, "high_rows": high.rows, "low": low.scores, "low_rows": low.rows, "best": best}
    kept = {name: np.zeros(len(rows), dtype=np.float64) for name in ("sum", "min", "max")}
    positive, best = np.zeros(len(rows), dtype=np.int64), np.zeros(count, dtype=np.float32)
    for places, found in blocks:
        kept["sum"][places] = found.sum(axis=0, dtype=np.float64)
        kept["min"][places], kept["max"][places] = found.min(axis=0), found.max(axis=0)
        positive[places] = (found > 0).sum(axis=0)
        best = np.maximum(best, found.max(axis=1, initial=0))
    return {**kept, "positive": positive, "best": best}


@lru_cache(maxsize=1)
def _loaded(run_dir: Path, recipe: str, manifest: str) -> Compared:
    return load_comparison(run_dir, Manifest.model_validate_json(manifest), Recipe.model_validate_json(recipe))


@contextmanager
def comparison_held() -> Iterator[None]:
    """Release the curvature afterwards, where tasks were done in this process: a worker's goes with it."""
    try:
        yield
    finally:
        _loaded.cache_clear()


def _comparison(run_dir: Path, recipe: Recipe, manifest: Manifest) -> Compared:
    """Return the recipe with its curvature, which a worker loads once."""
    return _loaded(run_dir, recipe.model_dump_json(), manifest.model_dump_json())
