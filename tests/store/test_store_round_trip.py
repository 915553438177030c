import subprocess
import sys
import tracemalloc

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from influence.errors import StoreError
from influence.store.manifest import ShardRange
from influence.store.reader import Store
from influence.store.shard import RowMeta
from influence.store.writer import write_shard

TINY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_what_was_written_is_read_back(run):
    store = run.write_all()
    ((first, unit, norms),) = store.blocks(size=100)
    assert (first, store.rows, store.dims, store.modules) == (0, 11, 6, run.manifest.modules)
    np.testing.assert_array_equal(unit, run.unit)
    np.testing.assert_array_equal(norms, run.norms)
    assert (unit.dtype, norms.dtype) == (np.float32, np.float32)


def test_the_safetensors_library_reads_the_vectors_as_any_others(run):
    run.write_all()
    tensors = load_file(run.files(1).vectors)
    np.testing.assert_array_equal(tensors["vectors"], run.unit[4:8])
    np.testing.assert_array_equal(tensors["norms"], run.norms[4:8])


def test_duckdb_reads_the_metadata_of_all_rows_in_order(run):
    paths = [str(path) for path in run.write_all().metadata_files()]
    found = duckdb.execute("SELECT row, id, label, norm FROM read_parquet($1) ORDER BY row", [paths]).fetchall()
    assert [line[0] for line in found] == list(range(11))
    assert found[4] == (4, "row-4", "4", 5000.0)


@TINY
@given(size=st.integers(1, 30), bounds=st.tuples(st.integers(0, 11), st.integers(0, 11)))
def test_blocks_of_any_size_cross_shard_boundaries(make_run, size, bounds):
    run = make_run()
    store = Store(run.folder) if run.folder.exists() else run.write_all()
    start, stop = sorted(bounds)
    blocks = list(store.blocks(size, start, stop))
    assert [first for first, _, _ in blocks] == list(range(start, stop, size))
    assert all(len(unit) == len(norms) == size for _, unit, norms in blocks[:-1])
    together = np.concatenate([run.unit[:0], *(unit for _, unit, _ in blocks)])
    np.testing.assert_array_equal(together, run.unit[start:stop])
    np.testing.assert_array_equal(np.concatenate([run.norms[:0], *(n for _, _, n in blocks)]), run.norms[start:stop])


@TINY
@given(rows=st.lists(st.integers(0, 10), max_size=25))
def test_rows_are_read_by_number_in_any_order_with_repeats(make_run, rows):
    run = make_run()
    store = Store(run.folder) if run.folder.exists() else run.write_all()
    gradients = run.unit.astype(np.float32) * run.norms[:, None]
    found = store.vectors(rows)
    assert (found.dtype, found.shape) == (np.float32, (len(rows), 6))
    np.testing.assert_array_equal(found, gradients[rows])
    assert [line["id"] for line in store.meta(rows)] == [f"row-{row}" for row in rows]


def test_metadata_keeps_missing_values_missing_and_labels_as_text(run):
    store = run.write_all()
    lines = store.meta([6, 7])
    assert lines[0] == {
        "row": 6,
        "id": "row-6",
        "source": "book",
        "uri": "file.txt#L6",
        "label": "6",
        "tokens": 8,
        "loss": 1.5,
        "norm": 7000.0,
        "text": "text of row 6 – né",
    }
    assert (lines[1]["source"], lines[1]["label"]) == (None, None)
    assert store.meta([3], columns=("loss", "row")) == [{"loss": 0.75, "row": 3}]


def test_metadata_beyond_the_first_row_group_is_found(make_run):
    store = make_run(rows=2500, dims=2, rows_per_shard=2400).write_all()
    assert [line["id"] for line in store.meta([2450, 0, 1024, 1023])] == ["row-2450", "row-0", "row-1024", "row-1023"]


def test_rows_far_longer_than_float16_reaches_survive(make_run):
    run = make_run()
    run.norms[3] = 1e30
    assert run.write_all().vectors([3])[0, 3] == np.float32(-1e30)


def test_a_shard_of_zero_vectors_is_kept_counted_and_listed(make_run):
    run = make_run()
    run.unit[4:8], run.norms[4:8] = 0, 0
    store = run.write_all()
    assert store.zero_rows().tolist() == [4, 5, 6, 7]
    assert not store.vectors([4, 7]).any()


def test_norms_come_with_the_first_row_of_their_shard(run):
    found = [(first, norms.tolist()) for first, norms in run.write_all().norms()]
    assert found == [(start, run.norms[start : start + 4].tolist()) for start in (0, 4, 8)]


def test_the_same_rows_give_the_same_bytes_in_every_file(make_run):
    first, second = make_run("first"), make_run("second")
    first.write_all()
    second.write_all()
    assert first.bytes_on_disk() == second.bytes_on_disk()


def test_a_shard_is_read_in_the_memory_of_a_block(make_run):
    store = make_run(rows=4096, dims=1024, rows_per_shard=4096).write_all()
    shard = 2 * 4096 * 1024
    tracemalloc.start()
    for _ in store.blocks(size=16):
        pass
    store.vectors([5, 4000])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < shard / 8


def test_the_store_imports_no_torch():
    code = "import sys, influence.store.reader, influence.store.writer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("rows", [[11], [-1], [0.5], [[1]]])
def test_rows_that_are_not_there_are_refused(run, rows):
    store = run.write_all()
    for read in (store.vectors, store.meta):
        with pytest.raises(StoreError, match=r"which holds rows 0 to 10|selected by number"):
            read(rows)


def test_blocks_outside_the_store_are_refused(run):
    with pytest.raises(StoreError, match="which holds rows 0 to 11"):
        next(run.write_all().blocks(size=4, start=0, stop=12))


def test_an_unknown_metadata_column_is_named_beside_those_there_are(run):
    with pytest.raises(StoreError, match="no metadata column 'author'; there are row, id"):
        run.write_all().meta([0], columns=["author"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows, norms: ({"vectors": rows.astype(np.float32)}, norms), r"float16 \[4, 6\] vectors, found float32"),
        (lambda rows, norms: ({"vectors": rows[:3]}, norms), r"vectors, found float16 \[3, 6\]"),
        (lambda rows, norms: ({"vectors": np.asfortranarray(rows)}, norms), "not contiguous"),
        (lambda rows, norms: ({"int8": rows}, norms), "takes vectors of codec float16, found int8"),
        (lambda rows, norms: ({"vectors": rows}, norms.astype(np.float64)), r"norms, found float64 \[4\]"),
        (lambda rows, norms: ({"vectors": np.where(rows > 0, np.float16("inf"), rows)}, norms), "the first is row 5"),
        (lambda rows, norms: ({"vectors": rows}, np.where(norms == 8000, np.nan, norms).astype("f4")), "is row 7"),
        (lambda rows, norms: ({"vectors": rows}, -norms), "4 rows with non-finite entries or a negative norm"),
    ],
)
def test_rows_that_can_not_be_stored_are_refused_by_number(run, change, message):
    meta = RowMeta(**{name: values[4:8] for name, values in run.meta.items()})
    unit = np.zeros((4, 6), dtype=np.float16)
    unit[1, 0] = 0.5
    norms = np.array([5000, 6000, 7000, 8000], dtype=np.float32)
    with pytest.raises(StoreError, match=message):
        write_shard(run.folder, ShardRange(shard=1, start=4, stop=8), run.codec, *change(unit, norms), meta, "f")
    assert not (run.folder / "rows").exists()


def test_a_metadata_column_of_another_length_is_refused(run):
    meta = RowMeta(**{name: values[4:8] for name, values in run.meta.items()} | {"source": ["book"]})
    encoded = run.codec.encode(run.unit[4:8])
    with pytest.raises(StoreError, match="holds 4 rows, column 'source' has 1"):
        write_shard(run.folder, run.manifest.shards[1], run.codec, encoded, run.norms[4:8].copy(), meta, "f")
