"""The index stage: the rows as they are compared, streamed into a FAISS index; nothing where every search scans."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import index.build
import index.persist
from index.errors import VectorIndexError
from index.exact import inner_products
from index.factory import IndexSettings, bytes_needed, load_faiss
from influence.pipeline.curvature_stage import curvature_fingerprint, gradient_blocks
from influence.recipe import Recipe
from influence.store.manifest import Manifest, Part, fingerprint_of
from influence.store.reader import Store
from influence.vectors.whiten import Comparison

log = logging.getLogger(__name__)

FOLDER = "index"


def check_index(settings: IndexSettings) -> None:
    """Refuse an index that can't be built here, before any row is captured.

    Raises:
        VectorIndexError: faiss is missing, or a GPU.
    """
    if settings.kind == "flat":
        load_faiss(settings.device)


def index_fingerprint(manifest: Manifest, recipe: Recipe) -> str:
    """Return the fingerprint of the indexed vectors: the rows', and what is done to them before they are compared."""
    parts: dict[str, Part] = {"rows": manifest.fingerprint, "comparison": recipe.comparison}
    if recipe.halved:
        damping = recipe.curvature.damping
        parts |= {"curvature": curvature_fingerprint(manifest, recipe), "damping": damping.value, "kind": damping.kind}
    return fingerprint_of(parts)


def index_stands(run_dir: Path, manifest: Manifest, recipe: Recipe, settings: IndexSettings) -> bool:
    """Whether the index that the settings ask for is there; a damaged record counts as none, with a log line."""
    if settings.kind == "exact":
        return True
    folder = run_dir / FOLDER
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


def build_index(run_dir: Path, settings: IndexSettings, comparison: Comparison) -> None:
    """Build the index from the stored rows and save it.

    Memory: the index itself (4 bytes a row and column), one block of rows.

    Raises:
        VectorIndexError: It can't be built or written.
    """
    if settings.kind == "exact":
        return
    store = Store(run_dir)
    log.info(
        "Indexing %d rows of %d columns: %.3g MB.",
        store.rows,
        store.dims,
        bytes_needed(settings, store.rows, store.dims) / 1e6,
    )
    flat = index.build.build(settings, compared_blocks(store, comparison), store.rows, store.dims)
    index.persist.save(flat, run_dir / FOLDER, index_fingerprint(store.manifest, comparison.recipe))


def compared_blocks(
    store: Store, comparison: Comparison, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, vectors float32 [b, D]) of the stored rows as the recipe compares them, in order."""
    for first, gradients in gradient_blocks(store, start, stop):
        yield first, comparison.row_vectors(gradients).numpy()


def scored_blocks(
    store: Store, comparison: Comparison, vectors: np.ndarray, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, scores float32 [m, b]) of the stored rows for queries as they are compared, in order.

    Where rows are compared as they are stored, or at unit length, they are scored straight from their codes; where half
    the curvature is on their side they are decoded first. Equal rows score equally either way.

    Args:
        store: Of the run.
        comparison: Of the run's recipe.
        vectors: What `comparison.query_vectors` made of the queries, [m, D] float32.
        start: The first row.
        stop: One past the last; all rows if None.
    """
    if comparison.fisher is None or not comparison.recipe.halved:
        yield from store.scores(vectors, start, stop, unit=comparison.recipe.comparison == "cosine")
        return
    asked = vectors.astype(np.float64)
    for first, block in compared_blocks(store, comparison, start, stop):
        rows = block.astype(np.float64)
        yield first, np.stack([inner_products(rows, query) for query in asked]).astype(np.float32)
