from itertools import pairwise

import numpy as np
import pytest

from index.approximate.cells import lengths, train_cells
from index.approximate.reduction import Sketch, principal_directions
from index.approximate.train import sample_rows, train
from index.errors import VectorIndexError
from index.factory import plan_factory
from index.settings import IndexSettings
from tests.index.gradient_rows import blocks_of, gradients


def first_rows(unit, count):
    """A stand-in for k-means: any centroids must do."""
    return unit[:count]


def test_every_row_goes_to_a_cell_of_its_own_band_and_there_to_the_nearest_direction():
    rows = gradients(500, 16)
    cells = train_cells(rows, 40, first_rows)
    found = cells.assign(rows)
    directions = cells.centroids / np.maximum(lengths(cells.centroids), 1e-30)[:, None]
    for row, cell in zip(rows, found, strict=True):
        band = int(np.searchsorted(cells.edges, lengths(row[None])[0], side="right"))
        start, stop = cells.starts[band], cells.starts[band + 1]
        assert start <= cell < stop
        assert directions[cell] @ row >= (directions[start:stop] @ row).max() - 1e-5


def test_no_more_cells_are_made_than_were_asked_for():
    for count in (1, 7, 24, 40, 100):
        cells = train_cells(gradients(500, 16), count, first_rows)
        assert len(cells.centroids) == cells.starts[-1] <= count


def test_centroids_are_the_means_of_their_rows_and_radii_how_far_these_scatter():
    rows = gradients(300, 8)
    start = train_cells(rows, 1, first_rows)
    np.testing.assert_allclose(start.centroids[0], rows.mean(axis=0), atol=1e-5)
    spread = np.sqrt(((rows - rows.mean(axis=0)) ** 2).sum(axis=1).mean() / 8)
    np.testing.assert_allclose(start.radii, [spread], rtol=1e-5)


def test_unit_rows_make_one_band_and_zero_rows_find_a_cell():
    rows = gradients(300, 8, sigma=0.0)
    rows /= np.maximum(lengths(rows), 1e-9)[:, None]
    cells = train_cells(rows[lengths(rows) > 0.5], 40, first_rows)
    assert cells.edges.size == 0
    assert cells.assign(np.zeros((2, 8), "f4")).max() < 40
    with_zeros = train_cells(rows, 40, first_rows)
    assert np.unique(np.searchsorted(with_zeros.edges, lengths(rows)), return_counts=True)[1].tolist() == [2, 298]


def test_cells_come_in_the_order_of_what_they_promise():
    cells = train_cells(gradients(300, 8), 30, first_rows)
    queries = gradients(5, 8, 3)
    order, products = cells.order(queries, 1.5)
    promise = queries @ cells.centroids.T + 1.5 * lengths(queries)[:, None] * cells.radii
    assert (np.diff(np.take_along_axis(promise, order, 1), axis=1) <= 0).all()
    np.testing.assert_allclose(products, np.take_along_axis(queries @ cells.centroids.T, order, 1), rtol=1e-5)


def dense(sketch):
    """The obviously right twin: the sketch as a matrix [dims, reduced], a unit vector at a time."""
    return np.stack([sketch.apply(line[None])[0] for line in np.eye(sketch.dims, dtype="f4")])


@pytest.mark.parametrize(("dims", "reduced"), [(10, 10), (10, 4), (101, 7), (64, 16), (9, 1)])
def test_the_sketch_is_linear_with_one_sign_a_column_and_groups_of_equal_size(dims, reduced):
    sketch = Sketch(dims, reduced, 5)
    matrix = dense(sketch)
    assert (np.abs(matrix).sum(axis=1) == 1).all()
    assert np.ptp(np.abs(matrix).sum(axis=0)) <= 1
    rows = np.random.default_rng(0).standard_normal((20, dims)).astype("f4")
    np.testing.assert_allclose(sketch.apply(rows), rows.astype("f8") @ matrix, rtol=1e-4, atol=1e-5)


def test_a_sketched_row_depends_on_no_other_row():
    sketch, rows = Sketch(1000, 64, 5), np.random.default_rng(0).standard_normal((50, 1000)).astype("f2")
    np.testing.assert_array_equal(sketch.apply(rows)[7:9], sketch.apply(rows[7:9]))


def test_inner_products_of_sketches_are_right_on_average():
    rows = np.random.default_rng(0).standard_normal((2, 300)).astype("f4")
    rows[1] += rows[0]
    products = []
    for seed in range(400):
        one, other = Sketch(300, 20, seed).apply(rows).astype("f8")
        products.append(one @ other)
    error = np.std(products) / np.sqrt(len(products))
    assert abs(np.mean(products) - rows[0].astype("f8") @ rows[1].astype("f8")) < 4 * error


def test_principal_directions_keep_inner_products_of_rows_with_a_mean_far_from_zero():
    random = np.random.default_rng(0)
    rows = (random.standard_normal((200, 3)) @ random.standard_normal((3, 20)) + 5).astype("f4")
    for turned in (False, True):
        directions = principal_directions(rows, 4, 1, turned=turned)
        np.testing.assert_allclose(directions @ directions.T, np.eye(4), atol=1e-5)
        reduced = rows @ directions.T
        np.testing.assert_allclose(reduced @ reduced.T, rows @ rows.T, rtol=1e-3)


@pytest.mark.parametrize(("rows", "count"), [(1000, 100), (1000, 999), (7, 7), (5, 100), (10**8, 64), (0, 5)])
def test_the_sample_is_drawn_across_all_rows_each_once(rows, count):
    sample = sample_rows(rows, count)
    assert len(sample) == min(rows, count)
    assert (np.diff(sample) > 0).all()
    starts = [number * rows // len(sample) for number in range(len(sample) + 1)] if len(sample) else [0]
    assert all(start <= row < stop for row, (start, stop) in zip(sample, pairwise(starts), strict=True))


def test_training_says_which_sample_was_too_small():
    pytest.importorskip("faiss")
    plan = plan_factory(IndexSettings(kind="factory", factory="IVF50,PQ8"), 1000, 16)
    with pytest.raises(VectorIndexError, match="sample has 20 rows and the factory IVF50,PQ8 has 50 lists"):
        train(plan, blocks_of(gradients(20, 16)), 1000, 16)


def test_faisss_own_refusal_to_train_is_passed_on_with_a_way_out():
    pytest.importorskip("faiss")
    plan = plan_factory(IndexSettings(kind="factory", factory="IVF2,PQ8"), 20, 16)
    with pytest.raises(VectorIndexError, match=r"FAISS can't train IVF2,PQ8 from 20 rows.*Set index.kind: flat"):
        train(plan, blocks_of(gradients(20, 16)), 20, 16)
