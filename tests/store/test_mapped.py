"""Rows lent where they lie are the rows that are read, and a file that can't be relied on is read instead."""

import os
import sys

import numpy as np
import pytest

from influence.errors import DigestMismatch, StoreError
from influence.store import mapped, reader
from influence.store.mapped import mapped_rows
from influence.store.shard import read_rows
from tests.store.conftest import CODECS, columns_of, directions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pages are promised by Linux alone")
SHAPES = ((3, 5), (2, 7), (1, 4))


@pytest.fixture
def made(make_run):
    """`made("bits")`: a written run of 40 random rows of 33 columns, in shards of 25."""

    def make(codec: str):
        modules = columns_of(*SHAPES)
        run = make_run(codec, 40, 33, 25, modules=modules, codec=CODECS[codec].codec, rank=CODECS[codec].rank)
        run.unit[:] = directions(40, 33)
        run.write_all()
        return run

    return make


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize(("start", "stop"), [(0, 25), (3, 4), (7, 24)])
def test_rows_are_lent_as_they_are_read(made, name, start, stop):
    run = made(name)
    path, codec = run.files(0).vectors, run.codec
    read, norms = codec.zeros(stop - start), np.empty(stop - start, np.float32)
    read_rows(path, codec, 25, np.arange(start, stop), read, norms)
    lent = mapped_rows(path, codec, 25, start, stop)
    if lent is None:
        # 33 columns leave some codecs' numbers at places where no processor wants them.
        assert any(np.dtype(plane.dtype).itemsize > 1 for plane in codec.layout)
        return
    assert set(lent[0]) == set(read)
    for plane in codec.layout:
        np.testing.assert_array_equal(lent[0][plane.name], read[plane.name])
        assert not lent[0][plane.name].flags.writeable
    np.testing.assert_array_equal(lent[1], norms)


@pytest.mark.parametrize("name", ["float16", "int8", "bits"])
def test_a_scan_of_lent_rows_scores_to_the_bit_as_one_of_rows_that_are_read(made, name, monkeypatch):
    store = made(name).write_all()
    queries, lent = directions(3, 33, seed=5), []

    def lending(*asked):
        lent.append(mapped_rows(*asked))
        return lent[-1]

    monkeypatch.setattr(reader, "mapped_rows", lending)
    monkeypatch.setattr("influence.store.scan.block_rows", lambda *_: 8)
    found = np.concatenate([block for _, block in store.scores(queries)], axis=1)
    # Blocks of eight: the one from row 24 on has rows of two shards, and is read.
    assert [part is not None for part in lent] == [True] * 4
    monkeypatch.setattr(reader, "mapped_rows", lambda *_: None)
    read = np.concatenate([block for _, block in store.scores(queries)], axis=1)
    np.testing.assert_array_equal(found, read)


def test_a_file_that_ends_too_soon_or_is_another_is_not_lent(made):
    run = made("bits")
    path, codec = run.files(0).vectors, run.codec
    assert mapped_rows(path, codec, 25, 0, 25) is not None
    assert mapped_rows(path, codec, 24, 0, 24) is None
    os.truncate(path, path.stat().st_size - 1)
    assert mapped_rows(path, codec, 25, 0, 25) is None


def test_a_shard_cut_short_after_it_was_checked_ends_with_an_error_and_no_signal(made, monkeypatch):
    run = made("bits")
    store = run.write_all()
    path, whole = run.files(0).vectors, run.files(0).vectors.read_bytes()
    monkeypatch.setattr(store._commits, "check", lambda *_: path.write_bytes(whole[: len(whole) // 2]))
    with pytest.raises(StoreError, match=r"shard-00000.safetensors ends .* bytes too soon"):
        list(store.scores(directions(1, 33)))


def test_where_the_kernel_promises_no_pages_rows_are_read(made, monkeypatch):
    run = made("bits")
    monkeypatch.setattr(mapped, "POPULATE_READ", 2**20)
    assert mapped_rows(run.files(0).vectors, run.codec, 25, 0, 25) is None


def test_a_changed_byte_is_refused_before_anything_is_lent(made, flip):
    run = made("bits")
    store = run.write_all()
    flip(run.files(0).vectors, run.files(0).vectors.stat().st_size - 3)
    with pytest.raises(DigestMismatch):
        list(store.scores(directions(1, 33)))
