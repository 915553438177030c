"""Cells: which list of the index a row goes to, and which lists a query reads.

FAISS puts a row beside the centroid that it has the largest inner product with, or the nearest one. Either breaks where
lengths differ much, as gradients' do: the longest centroids take all the rows, or the short rows all lie in one cell.
We cut the rows into bands by length first, and each band into cells by direction. A long row is then never hidden among
short ones, and whole cells of short rows can be left out: with log-normal lengths (σ = 0.8) 95 of 100 best rows are
found in 6% of the rows at the promoting end and in 1% at the opposing one, where cells of directions alone need 24% and
54% (docs/benchmarks.md).

Cells are read in the order of ⟨q, centroid⟩ + spread · ‖q‖ · radius: rows scatter about their centroid, and those at
the end of the ranking are the scattered ones, above all at the opposing end, where centroids say little. `spread` is
chosen by measuring.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from index.gemm import product

SHARES = (0.5, 0.25, 0.15, 0.07, 0.02, 0.01)
"""Of the rows, from short to long: the bands."""

ROUNDS = 8
"""Of k-means. More move centroids by less than what is lost between cells anyway."""

Cluster = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""Unit rows [n, d] and how many: their centroids [cells, d]."""


@dataclass(frozen=True)
class Cells:
    """Bands by length, and in each cells by direction.

    Attributes:
        edges: The lengths at which a longer band begins, ascending, float32 [bands - 1].
        starts: Each band's first cell, and after the last band how many cells there are, [bands + 1].
        centroids: The mean of each cell's rows, float32 [cells, d].
        radii: The root of the mean squared distance of a cell's rows from its centroid, over √d, float32 [cells].
    """

    edges: NDArray[np.float32]
    starts: NDArray[np.int64]
    centroids: NDArray[np.float32]
    radii: NDArray[np.float32]

    def assign(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return each row's cell: of the cells of its band the one whose centroid has the nearest direction.

        Args:
            vectors: [n, d].
        """
        bands = np.searchsorted(self.edges, lengths(vectors), side="right")
        assignment = np.empty(len(vectors), dtype=np.int64)
        for band in np.unique(bands):
            inside = np.flatnonzero(bands == band)
            start, stop = self.starts[band], self.starts[band + 1]
            assignment[inside] = start + np.argmax(product(vectors[inside], self._directions[start:stop].T), axis=1)
        return assignment

    def order(self, queries: NDArray[np.float32], spread: float) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the cells from most to least promising for each query, and ⟨q, centroid⟩ of each, both [m, cells]."""
        products = queries @ self.centroids.T
        promise = products + spread * lengths(queries)[:, None] * self.radii
        ranked = np.argsort(-promise, axis=1, kind="stable")
        return ranked, np.take_along_axis(products, ranked, axis=1)

    @cached_property
    def longest(self) -> float:
        """The length of the longest centroid."""
        return float(lengths(self.centroids).max(initial=0))

    @cached_property
    def _directions(self) -> NDArray[np.float32]:
        return unit(self.centroids)


def train_cells(sample: NDArray[np.float32], count: int, cluster: Cluster) -> Cells:
    """Cut a sample into cells.

    Args:
        sample: Rows [n, d], as the codes see them.
        count: How many cells; fewer where the sample has fewer rows.
        cluster: k-means on unit rows.
    """
    long = lengths(sample)
    shares = SHARES if count >= 4 * len(SHARES) else (1.0,)
    edges = np.quantile(long, np.cumsum(shares)[:-1]).astype(np.float32) if long.size else np.empty(0, np.float32)
    edges = _apart(edges, float(long.min()) if long.size else 0.0)
    bands = np.searchsorted(edges, long, side="right")
    members = [np.flatnonzero(bands == band) for band in range(len(edges) + 1)]
    sizes = _split(count, [len(inside) for inside in members])
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    centroids = np.zeros((starts[-1], sample.shape[1]), dtype=np.float32)
    for band, inside in enumerate(members):
        if len(inside) and sizes[band] > 1:
            centroids[starts[band] : starts[band + 1]] = cluster(unit(sample[inside]), sizes[band])
            centroids[starts[band] : starts[band + 1]] *= long[inside].mean()
        elif len(inside):
            centroids[starts[band]] = sample[inside].mean(axis=0)
    return _recentre(Cells(edges, starts, centroids, np.zeros(starts[-1], np.float32)), sample)


def _apart(edges: NDArray[np.float32], shortest: float) -> NDArray[np.float32]:
    """Keep rows of one length together, as unit rows are: what sets them apart is rounding."""
    separate, before = [], shortest
    for edge in edges:
        if edge > 1.01 * before:
            separate.append(edge / 1.005)
            before = edge
    return np.array(separate, dtype=np.float32)


def _split(count: int, sizes: list[int]) -> list[int]:
    """Share out cells by the bands' rows: one each at least, and no more than its rows."""
    total = max(1, sum(sizes))
    shared = [max(1, min(size, round(count * size / total))) for size in sizes]
    # Rounding up may have given away a few too many; the largest bands don't miss them.
    while sum(shared) > max(count, len(sizes)):
        shared[shared.index(max(shared))] -= 1
    return shared


def _recentre(cells: Cells, sample: NDArray[np.float32]) -> Cells:
    """Put each centroid at the mean of its rows, and measure how far they scatter."""
    assignment = cells.assign(sample)
    count, width = cells.centroids.shape
    sizes = np.bincount(assignment, minlength=count)
    means, squares = cells.centroids.astype(np.float64), np.zeros(count)
    order = np.argsort(assignment, kind="stable")
    for cell, inside in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        if inside.size:
            rows = sample[inside].astype(np.float64)
            means[cell] = rows.mean(axis=0)
            squares[cell] = ((rows - means[cell]) ** 2).sum(axis=1).mean()
    return Cells(cells.edges, cells.starts, means.astype(np.float32), np.sqrt(squares / width).astype(np.float32))


def lengths(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each row's 2-norm, float32 [n]."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors))


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the rows at length 1, zero rows as they are."""
    long = lengths(vectors)[:, None]
    return np.divide(vectors, long, out=np.zeros_like(vectors), where=long > 0)
