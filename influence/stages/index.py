"""The index stage: the rows as they are compared, streamed into a FAISS index; nothing where every search scans."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import index.build
import index.persist
from index.approximate.fallback import CLIMB, ladder, read_scan
from index.approximate.merge import ApproximateRecord, read_approximate, remove_index
from index.errors import VectorIndexError
from index.factory import IndexPlan, bytes_needed, load_faiss, plan_factory
from index.gemm.dots import row_dots
from index.rerank import scored_by
from index.settings import IndexSettings
from influence.engine.stage import Stage, Task
from influence.recipes import Recipe
from influence.stages.fisher import BLOCK_ROWS, curvature_fingerprint, gradient_blocks, load_curvature
from influence.stages.lexical_index import lexical_stands
from influence.stages.mirror import filled
from influence.store.manifest import Manifest, Part, fingerprint_of
from influence.store.reader import Store
from influence.vectors.ensemble import Compared, compared

log = logging.getLogger(__name__)

FOLDER = "index"


def check_index(settings: IndexSettings) -> None:
    """Refuse an index that can't be built here, before any row is captured.

    Raises:
        VectorIndexError: faiss is missing, or a GPU.
    """
    if settings.kind != "exact":
        load_faiss(settings.device)


def index_plan(settings: IndexSettings, manifest: Manifest) -> IndexPlan:
    """Return what kind of index the settings come to for a run's rows, and what it costs.

    Raises:
        VectorIndexError: The settings can't be carried out for so many rows and columns.
    """
    return plan_factory(settings, manifest.rows, manifest.dims)


def index_plans(settings: IndexSettings, manifest: Manifest) -> tuple[IndexPlan, ...]:
    """Return what is tried in turn until one finds enough: the plan above, and of `auto` its further steps.

    Raises:
        VectorIndexError: As above.
    """
    return ladder(settings, manifest.rows, manifest.dims)


def index_fingerprint(manifest: Manifest, recipe: Recipe) -> str:
    """Return the fingerprint of the indexed vectors: the rows', and what is done to them before they are compared."""
    parts: dict[str, Part] = {"rows": manifest.rows_fingerprint, "comparison": recipe.comparison}
    if recipe.checkpoints:
        parts["checkpoints"] = ", ".join(map(repr, recipe.checkpoint_weights(len(recipe.checkpoints))))
    if recipe.curvature.rescale:
        parts["rescale"] = True
    if recipe.halved or recipe.curvature.rescale:
        damping = recipe.curvature.damping
        parts |= {"curvature": curvature_fingerprint(manifest, recipe), "damping": damping.value, "kind": damping.kind}
    return fingerprint_of(parts)


def index_stands(run_dir: Path, manifest: Manifest, recipe: Recipe, settings: IndexSettings) -> bool:
    """Whether the index of the settings is there, or that of BM25; a damaged record counts as none, with a log line."""
    if recipe.baseline == "bm25":
        return lexical_stands(run_dir / FOLDER, manifest)
    plan, folder = index_plan(settings, manifest), run_dir / FOLDER
    if plan.kind == "exact":
        return True
    if plan.factory is not None:
        if (folder / CLIMB).exists():
            return False
        record = read_standing(folder, manifest, recipe, settings)
        if record is None:
            return scan_stands(run_dir, manifest, recipe, settings)
        plans, found = index_plans(settings, manifest), record.measured
        return (
            found is not None
            and found.target == settings.recall
            and (found.reached or record.plan.kind == plans[-1].kind)
        )
    try:
        record = index.persist.read_record(folder)
    except VectorIndexError as error:
        log.warning("The index is built again: %s", error)
        return False
    vectors = folder / index.persist.VECTORS
    return (
        record is not None
        and record.fingerprint == index_fingerprint(manifest, recipe)
        and vectors.exists()
        and vectors.stat().st_size == record.bytes
    )


def read_standing(
    folder: Path, manifest: Manifest, recipe: Recipe, settings: IndexSettings
) -> ApproximateRecord | None:
    """Return the record of the merged index that the settings ask for, measured or not; None where there is none.

    Of `auto`, any of its steps. A damaged record counts as none, with a log line.
    """
    plans = index_plans(settings, manifest)
    try:
        record = read_approximate(folder)
    except VectorIndexError as error:
        log.warning("The index is built again: %s", error)
        return None
    if record is None or record.fingerprint != index_fingerprint(manifest, recipe) or record.plan not in plans:
        return None
    sizes = {name: file.bytes for name, file in record.files.items()}
    standing = {name: (folder / name).stat().st_size for name in sizes if (folder / name).exists()}
    return record if sizes == standing else None


def scan_stands(run_dir: Path, manifest: Manifest, recipe: Recipe, settings: IndexSettings) -> bool:
    """Whether it is on record that no step of `auto` finds enough, so that searches scan the stored rows.

    A damaged record counts as none: whoever opens the index that should be there says what is wrong.
    """
    try:
        record = read_scan(run_dir / FOLDER)
    except VectorIndexError:
        return False
    return (
        record is not None
        and record.fingerprint == index_fingerprint(manifest, recipe)
        and record.plans == index_plans(settings, manifest)
        and record.target <= settings.recall
    )


def load_comparison(run_dir: Path, manifest: Manifest, recipe: Recipe) -> Compared:
    """Return the recipe of the stored rows with its curvature, of each of its checkpoints.

    Raises:
        DigestMismatch: The curvature is missing, damaged, or of other rows.
        CurvatureError: It is singular and the damping is 0.
    """
    return compared(recipe, load_curvature(run_dir, manifest, recipe), manifest.rows)


@dataclass
class FlatIndex(Stage):
    """A flat index of the stored rows, built by the coordinator; nothing where every search scans.

    Memory: the index itself (4 bytes a row and column), one block of rows.
    """

    run_dir: Path
    manifest: Manifest
    recipe: Recipe
    settings: IndexSettings
    threads: int

    name = "index"
    here = True
    single = True

    @property
    def key(self) -> str:
        """Of the indexed vectors."""
        return index_fingerprint(self.manifest, self.recipe)

    def cut(self) -> list[Task]:
        """Return the one task."""
        return [Task(self, 0, "the index")]

    def stands(self) -> bool:
        """Whether it is there, or none is wanted."""
        return index_stands(self.run_dir, self.manifest, self.recipe, self.settings)

    def run(self, task: Task, session: Any) -> None:
        """Build and save.

        Raises:
            VectorIndexError: It can't be built or written.
        """
        store, comparison = Store(self.run_dir), load_comparison(self.run_dir, self.manifest, self.recipe)
        size = bytes_needed(self.settings, store.rows, store.dims)
        log.info("Indexing %d rows of %d columns: %.3g MB.", store.rows, store.dims, size / 1e6)
        flat = index.build.build(self.settings, compared_blocks(store, comparison), store.rows, store.dims)
        with filled(self.run_dir / FOLDER) as folder:
            remove_index(folder)
            index.persist.save(flat, folder, self.key)


def compared_blocks(
    store: Store, comparison: Compared, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, vectors float32 [b, D]) of the stored rows as the recipe compares them, in order."""
    for first, gradients in gradient_blocks(store, start, stop):
        yield first, comparison.row_vectors(gradients, row_weights(store, comparison, first, len(gradients))).numpy()


def compared_rows(store: Store, comparison: Compared, rows: np.ndarray) -> np.ndarray:
    """Return the vectors of some rows as the recipe compares them, float32 [n, D]."""
    weights = torch.from_numpy(store.weights(rows)) if comparison.recipe.weighted else None
    return comparison.row_vectors(torch.from_numpy(store.vectors(rows)), weights).numpy()


def row_weights(store: Store, comparison: Compared, first: int, count: int) -> torch.Tensor | None:
    """Return the weights of consecutive rows, float32 [count]; None of a recipe whose rows have none."""
    if not comparison.recipe.weighted:
        return None
    return torch.from_numpy(store.weights(np.arange(first, first + count)))


def scored_blocks(
    store: Store,
    comparison: Compared,
    vectors: np.ndarray,
    start: int = 0,
    stop: int | None = None,
    *,
    passing: np.ndarray | None = None,
    threads: int | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, scores float32 [m, b]) of the stored rows for queries as they are compared, in order.

    Where rows are compared as they are stored, or at unit length, they are scored straight from their codes; where half
    the curvature is on their side they are decoded first. Equal rows score equally either way. Weights of rows multiply
    their scores.

    Args:
        store: Of the run.
        comparison: Of the run's recipe.
        vectors: What `comparison.query_vectors` made of the queries, [m, D] float32.
        start: The first row.
        stop: One past the last; all rows if None.
        passing: Which of these rows are scored, bool; then the first row is a place among those that are.
        threads: See `influence.store.scan`.
    """
    stop = store.rows if stop is None else stop
    kept = None if passing is None else start + np.flatnonzero(passing)
    wanted, unit = comparison.stored_queries(torch.from_numpy(vectors)), comparison.recipe.comparison == "cosine"
    if wanted is not None:
        blocks = store.scores(wanted.numpy(), start, stop, unit=unit, passing=passing, threads=threads)
        for first, found in blocks:
            if comparison.recipe.weighted:
                rows = np.arange(first, first + found.shape[1])
                weights = store.weights(rows if kept is None else kept[rows])
                # Nothing but zero in front of a row changes its direction.
                found *= (weights > 0).astype(np.float32) if unit else weights
            yield first, found
        return
    asked = vectors.astype(np.float64)
    decoded = (
        compared_blocks(store, comparison, start, stop) if kept is None else chosen_blocks(store, comparison, kept)
    )
    for first, block in decoded:
        rows = block.astype(np.float64)
        yield first, np.stack([row_dots(rows, query) for query in asked]).astype(np.float32)


def candidate_scores(store: Store, comparison: Compared, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the scores of some rows for one query as it is compared, float32 [n]: as `scored_blocks` yields them.

    Args:
        store: Of the run.
        comparison: Of the run's recipe.
        query: [D].
        rows: Row numbers.
    """
    asked, unit = torch.from_numpy(query[None]).float(), comparison.recipe.comparison == "cosine"
    wanted = comparison.stored_queries(asked)
    if wanted is None:
        return scored_by(lambda part: compared_rows(store, comparison, part))(query, rows)
    found = store.chosen_scores(wanted.numpy(), rows, unit=unit)[0]
    if comparison.recipe.weighted:
        weights = store.weights(rows)
        # Nothing but zero in front of a row changes its direction.
        found *= (weights > 0).astype(np.float32) if unit else weights
    return found


def chosen_blocks(store: Store, comparison: Compared, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (place, vectors float32 [b, D]) of some rows, ascending, as the recipe compares them."""
    for place in range(0, len(rows), BLOCK_ROWS):
        yield place, compared_rows(store, comparison, rows[place : place + BLOCK_ROWS])
