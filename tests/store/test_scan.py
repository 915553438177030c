"""A scan gives the scores of the definition, whatever the block, the filter, the threads and the number of queries."""

import numpy as np
import pytest

from influence.errors import StoreError
from influence.store import scan
from influence.store.products import GROUP, MANY
from tests.store.conftest import CODECS, columns_of, directions

EVERY = pytest.mark.parametrize("name", CODECS)
SHAPES = ((3, 5), (2, 7), (1, 4))


@pytest.fixture
def stored(make_run):
    """`stored("bits")`: a store of 60 random rows of 33 columns in shards of 25; five rows are copies of row 7."""

    def make(codec: str, rows: int = 60):
        modules = columns_of(*SHAPES)
        run = make_run(codec, rows, 33, 25, modules=modules, codec=CODECS[codec].codec, rank=CODECS[codec].rank)
        run.unit[:] = directions(rows, 33)
        run.unit[[2, 24, 25, 40, 59]], run.norms[[2, 24, 25, 40, 59]] = run.unit[7], run.norms[7]
        return run.write_all()

    return make


def whole(store, queries, *args, **options) -> np.ndarray:
    return np.concatenate([found for _, found in store.scores(queries, *args, **options)], axis=1)


@EVERY
@pytest.mark.parametrize("count", [MANY, GROUP + 3])
def test_many_queries_score_as_decoded_in_float64_and_as_one_by_one(stored, name, count):
    store = stored(name)
    queries = directions(count, 33, seed=5)
    found = whole(store, queries)
    rows = np.concatenate([block * norms[:, None] for _, block, norms in store.blocks()]).astype(np.float64)
    largest = np.abs(queries).astype(np.float64) @ np.abs(rows).T
    assert (np.abs(found - queries.astype(np.float64) @ rows.T) <= 2.0**-20 * largest).all()
    alone = np.concatenate([whole(store, query[None]) for query in queries])
    assert (np.abs(found - alone) <= 2.0**-20 * largest).all()


@EVERY
def test_copies_of_a_row_tie_to_the_last_bit_among_many_queries_in_any_block(stored, monkeypatch, name):
    store = stored(name)
    queries = directions(GROUP + 3, 33, seed=5)
    found = whole(store, queries)
    assert (found[:, [2, 24, 25, 40, 59]] == found[:, [7]]).all()
    np.testing.assert_array_equal(whole(store, queries, 5, 41), found[:, 5:41])
    np.testing.assert_array_equal(whole(store, queries[:MANY]), found[:MANY])
    monkeypatch.setattr(scan, "block_rows", lambda *_: 7)
    np.testing.assert_array_equal(whole(store, queries, threads=3), found)


@pytest.mark.parametrize("count", [2, MANY])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_rows_that_pass_a_filter_score_as_without_it_and_no_others_are_scored(stored, monkeypatch, count, share):
    store = stored("bits")
    queries = directions(count, 33, seed=5)
    found = whole(store, queries)
    passing = np.random.default_rng(3).random(60) < share
    monkeypatch.setattr(scan, "block_rows", lambda *_: 7)
    blocks = list(store.scores(queries, 4, 50, passing=passing[4:50], threads=2))
    kept = np.flatnonzero(passing[4:50]) + 4
    assert sum(block.shape[1] for _, block in blocks) == len(kept)
    for place, block in blocks:
        np.testing.assert_array_equal(block, found[:, kept[place : place + block.shape[1]]])


@EVERY
@pytest.mark.parametrize("unit", [False, True])
@pytest.mark.parametrize("count", [1, 3, MANY])
def test_rows_asked_for_by_number_score_as_in_the_scan_in_any_order_and_repeated(
    stored, monkeypatch, name, count, unit
):
    store = stored(name)
    queries = directions(count, 33, seed=5)
    found = whole(store, queries, unit=unit)
    rows = np.array([59, 3, 24, 25, 26, 3, 0, 50])
    monkeypatch.setattr(scan, "block_rows", lambda *_: 3)
    np.testing.assert_array_equal(store.chosen_scores(queries, rows, unit=unit), found[:, rows])
    assert store.chosen_scores(queries, rows[:0], unit=unit).shape == (count, 0)


def test_a_filter_of_another_length_is_refused(stored):
    with pytest.raises(StoreError, match=r"A filter of \(59,\) rows was given for rows 0 to 60"):
        list(stored("bits").scores(directions(1, 33), passing=np.ones(59, dtype=bool)))


def test_no_more_blocks_are_held_than_threads(stored, monkeypatch):
    store = stored("bits")
    made, read = [], []
    arrays, encoded = store.arrays, store.encoded
    monkeypatch.setattr(store, "arrays", lambda rows: made.append(rows) or arrays(rows))
    monkeypatch.setattr(store, "encoded", lambda rows, into: read.append(len(rows)) or encoded(rows, into))
    monkeypatch.setattr(scan, "block_rows", lambda *_: 5)
    blocks = store.scores(directions(2, 33), threads=2)
    next(blocks)
    assert made == [5, 5]
    assert len(read) <= 4
    assert [block.shape for _, block in blocks] == [(2, 5)] * 11
