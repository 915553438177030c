"""What every part of an index shares: the reduction, the cells, and FAISS's own trained object without a row in it.

Trained once, from rows drawn across the whole data, with fixed seeds, and written to one file that every worker reads:
parts then agree, whoever builds them.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index.approximate.cells import ROUNDS, Cells, train_cells
from index.approximate.reduction import Sketch, principal_directions
from index.errors import IndexMismatch, VectorIndexError
from index.exact import Blocks, checked_slices
from index.factory import PER_CELL, IndexPlan, load_faiss
from index.gemm import Packed, packed, product

SEED = 20_240_917
"""Of everything that is drawn: the sample, the sketch, rotations, k-means."""

SLICE_ROWS = 4096
"""Rows that are reduced and coded together, counted from a part's first row."""


@dataclass(frozen=True)
class Trained:
    """An index without rows.

    Attributes:
        plan: What it was trained for.
        rows: How many rows the index will have.
        dims: D.
        sketch: D columns to `plan.reduced`.
        cells: Over the rows as FAISS's codes see them, after its own transform.
        faiss: FAISS's IndexPreTransform or IndexIVF. Don't add to it; `emptied` gives a copy.
    """

    plan: IndexPlan
    rows: int
    dims: int
    sketch: Sketch
    cells: Cells
    faiss: Any

    def reduce(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return rows or queries as the codes see them, [n, D] to [n, d]: linear, so inner products carry over."""
        return self.transform(self.sketch.apply(vectors))

    def transform(self, sketched: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the sketch left as the codes see it, [n, reduced] to [n, d]."""
        return sketched if self._matrix is None else product(sketched, self._matrix)

    @cached_property
    def _matrix(self) -> Packed | None:
        # FAISS's own threads spin while they wait: beside other work on the machine they took ten milliseconds a query.
        matrix = transform_of(self.faiss)
        return None if matrix is None else packed(matrix)

    @property
    def lists(self) -> Any:
        """FAISS's IndexIVF."""
        return lists_of(self.faiss)

    def emptied(self) -> "Trained":
        """Return a copy whose lists can be filled."""
        return replace(self, faiss=load_faiss().clone_index(self.faiss))


def lists_of(index: Any) -> Any:
    """Return the IndexIVF in one of FAISS's indexes, as the class that it is."""
    faiss = load_faiss()
    lists = faiss.downcast_index(faiss.extract_index_ivf(index))
    # FAISS frees the lists with the index that they are in, whoever still holds them.
    lists.referenced_objects = [index]
    return lists


def transform_of(index: Any) -> NDArray[np.float32] | None:
    """Return the matrix [in, out] of what stands before the lists of one of FAISS's indexes; None if nothing does."""
    faiss = load_faiss()
    if not isinstance(index, faiss.IndexPreTransform):
        return None
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    matrix = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
    return np.ascontiguousarray(matrix.T)


def sample_rows(rows: int, count: int) -> NDArray[np.int64]:
    """Return which rows to train from, drawn evenly across all of them: ascending, each once, int64 [min(count, rows)].

    One row of every stretch of rows / count rows, at random inside it, so that no shard is left out.
    """
    count = min(count, rows)
    random = np.random.Generator(np.random.Philox(key=SEED))
    edges = np.arange(count + 1, dtype=np.int64) * rows // max(1, count)
    return edges[:-1] + (random.random(count) * (edges[1:] - edges[:-1])).astype(np.int64)


def train(plan: IndexPlan, sample: Blocks, rows: int, dims: int) -> Trained:
    """Train an index from a sample.

    Memory: `plan.build_bytes`, and a block. FAISS's threads are left as the process set them.

    Args:
        plan: Of `plan_factory`.
        sample: (number, vectors [b, dims]) pairs of the rows of `sample_rows`; the numbers are for messages only.
        rows: Of the whole index.
        dims: D.

    Raises:
        VectorIndexError: `exact` or `flat`, a row that isn't finite, or too few rows for what the factory asks.
        FaissMissing: faiss isn't installed.
    """
    if plan.factory is None:
        raise VectorIndexError(f"index.kind is {plan.kind}: there is nothing to train.")
    faiss = load_faiss()
    sketch = Sketch(dims, plan.reduced, SEED, plan.turned)
    gathered = [sketch.apply(part) for _, part, _ in checked_slices(sample, dims)]
    reduced = np.concatenate([np.empty((0, plan.reduced), np.float32), *gathered])
    del gathered
    if rows and len(reduced) < min(rows, plan.cells):
        raise IndexMismatch(
            f"The sample has {len(reduced):,} rows and the factory {plan.factory} has {plan.cells:,} lists; "
            f"{min(rows, plan.sample):,} rows were expected. Run the same build again, or ask for fewer lists."
        )
    try:
        index = faiss.index_factory(plan.reduced, plan.factory, faiss.METRIC_INNER_PRODUCT)
        coded = _train_transform(faiss, index, reduced, plan.factory)
        del reduced
        cells = train_cells(coded, plan.cells, lambda unit, count: _cluster(faiss, unit, count))
        lists = lists_of(index)
        cells = _padded(cells, lists.nlist)
        lists.quantizer.reset()
        lists.quantizer.add(cells.centroids)
        _train_codes(faiss, lists, coded, cells)
    except RuntimeError as error:
        raise VectorIndexError(
            f"FAISS can't train {plan.factory} from {min(rows, plan.sample):,} rows of {plan.reduced:,} columns "
            f"({str(error).strip().splitlines()[-1]}). Set index.kind: flat or exact, or another factory."
        ) from None
    index.is_trained = True
    return Trained(plan, rows, dims, sketch, cells, index)


def _train_transform(faiss: Any, index: Any, sample: NDArray[np.float32], factory: str) -> NDArray[np.float32]:
    """Train what stands before the lists, and return the sample behind it."""
    if not isinstance(index, faiss.IndexPreTransform):
        return sample
    transform = faiss.downcast_VectorTransform(index.chain.at(0))
    if factory.startswith("PCA"):
        directions = np.zeros((transform.d_out, transform.d_in), dtype=np.float32)
        if len(sample):
            directions = principal_directions(sample, transform.d_out, SEED, turned=factory.startswith("PCAR"))
        faiss.copy_array_to_vector(directions.ravel(), transform.A)
        # FAISS's PCA subtracts the mean, which inner products don't survive.
        transform.have_bias, transform.is_trained = False, True
        faiss.copy_array_to_vector(np.zeros(0, np.float32), transform.b)
    elif not transform.is_trained:
        transform.train(sample)
    matrix = transform_of(index)
    assert matrix is not None
    return product(sample, packed(matrix))


def _cluster(faiss: Any, unit: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    means = faiss.Kmeans(
        unit.shape[1],
        count,
        niter=ROUNDS,
        spherical=True,
        seed=SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=PER_CELL,
    )
    means.train(unit)
    return means.centroids


def _padded(cells: Cells, count: int) -> Cells:
    """Give FAISS as many lists as its factory names; those that the sample didn't fill stay empty and come last."""
    missing = count - len(cells.centroids)
    assert missing >= 0, (count, len(cells.centroids))
    blank = np.zeros((missing, cells.centroids.shape[1]), np.float32)
    return replace(
        cells,
        centroids=np.concatenate([cells.centroids, blank]),
        radii=np.concatenate([cells.radii, np.full(missing, -1, np.float32)]),
    )


def _train_codes(faiss: Any, lists: Any, coded: NDArray[np.float32], cells: Cells) -> None:
    """Train the codec on what is left of rows beyond their centroids."""
    assignment = cells.assign(coded)
    if isinstance(lists, faiss.IndexIVFPQ):
        # Meant for a filter that nobody here uses, and slow.
        lists.do_polysemous_training = False
        lists.pq.cp.niter, lists.pq.cp.min_points_per_centroid = ROUNDS, 1
    if not isinstance(lists, faiss.IndexIVFFlat):
        lists.by_residual = True
    if len(coded):
        residuals = np.ascontiguousarray(coded - cells.centroids[assignment])
        lists.train_encoder(len(coded), faiss.swig_ptr(residuals), faiss.swig_ptr(assignment))
    lists.is_trained = True
