import json
import sys
from pathlib import Path

import numpy as np
import pytest

from index.build import build
from index.errors import FaissMissing, IndexCorrupt, IndexMismatch, IndexNotWritten
from index.factory import IndexSettings
from index.persist import load, read_record, save
from index.search import search

faiss = pytest.importorskip("faiss")
ROWS = np.random.default_rng(0).standard_normal((30, 5)).astype("f4")
PRINT = "a1b2"


@pytest.fixture
def built():
    return build(IndexSettings(kind="flat"), [(0, ROWS)], rows=30, dims=5)


@pytest.fixture
def saved(built, tmp_path):
    save(built, tmp_path / "index", PRINT)
    return tmp_path / "index"


def test_a_loaded_index_answers_as_the_one_that_was_saved(built, saved):
    loaded = load(saved, PRINT)
    before, after = search(built, ROWS[:3], 7), search(loaded, ROWS[:3], 7)
    np.testing.assert_array_equal(before.largest.rows, after.largest.rows)
    np.testing.assert_array_equal(before.smallest.scores, after.smallest.scores)
    assert (loaded.rows, loaded.dims, loaded.longest) == (30, 5, built.longest)


def test_the_record_says_what_the_index_was_built_from(saved):
    record = read_record(saved)
    assert record is not None
    assert (record.fingerprint, record.rows, record.dims, record.kind) == (PRINT, 30, 5, "flat")
    assert record.bytes == (saved / "index.faiss").stat().st_size
    assert sorted(path.name for path in saved.iterdir()) == ["index.faiss", "index.json"]


def test_saving_twice_gives_the_same_bytes(built, saved):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    save(built, saved, PRINT)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def refusal(saved, error, fingerprint=PRINT):
    with pytest.raises(error) as raised:
        load(saved, fingerprint)
    return str(raised.value)


def test_a_truncated_index_is_refused_with_both_sizes(saved):
    path = saved / "index.faiss"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-9])
    message = refusal(saved, IndexCorrupt)
    assert f"{path}: found {size - 9} bytes, expected {size}" in message
    assert f"Delete {saved / 'index.json'} and run the same build" in message


def test_a_flipped_byte_is_refused_with_both_digests(saved):
    path = saved / "index.faiss"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    record = read_record(saved)
    assert record is not None
    message = refusal(saved, IndexCorrupt)
    assert f"{path}: found sha256 " in message
    assert f"expected {record.sha256}" in message
    assert "run the same build" in message


def test_an_index_of_other_rows_is_refused_with_both_fingerprints(saved):
    message = refusal(saved, IndexMismatch, fingerprint="ffff")
    assert f"{saved / 'index.json'}: built from rows with the fingerprint a1b2, expected ffff" in message
    assert "run the same build" in message


def edit(saved, **changes):
    path = saved / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_version_of_the_format_is_refused_even_with_keys_of_its_own(saved):
    edit(saved, format_version=9, clusters=1024)
    message = refusal(saved, IndexMismatch)
    assert f"{saved / 'index.json'}: found format version 9, this software reads version 1" in message
    assert "run the same build" in message


def test_a_record_that_disagrees_with_the_index_is_refused(saved):
    edit(saved, rows=31)
    assert "found IndexFlatIP with 30 rows and 5 columns, expected IndexFlatIP with 31 rows" in refusal(
        saved, IndexCorrupt
    )


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 1}', "\ufeff{}"])
def test_an_unreadable_record_is_refused_by_name(saved, content):
    (saved / "index.json").write_text(content)
    assert str(saved / "index.json") in refusal(saved, IndexCorrupt)


def test_a_missing_index_file_is_refused_by_name(saved):
    (saved / "index.faiss").unlink()
    assert f"{saved / 'index.faiss'}: missing" in refusal(saved, IndexCorrupt)


def test_a_folder_without_an_index_says_how_to_get_one(tmp_path):
    assert "there is no index here. Run the same build" in refusal(tmp_path, IndexCorrupt)
    assert read_record(tmp_path) is None


def test_bytes_that_faiss_cannot_read_are_refused_even_when_their_digest_is_right(built, saved, monkeypatch):
    monkeypatch.setattr(faiss, "write_index", lambda index, path: Path(path).write_bytes(b"not an index"))
    save(built, saved, PRINT)
    assert "can't read what faiss" in refusal(saved, IndexCorrupt)


def test_a_full_disk_leaves_nothing_half_written_and_says_how_much_is_needed(built, tmp_path, monkeypatch):
    def full(index, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError("write error: No space left on device")

    monkeypatch.setattr(faiss, "write_index", full)
    with pytest.raises(IndexNotWritten, match=r"No space left on device\). It needs about 600 bytes") as raised:
        save(built, tmp_path, PRINT)
    assert "run the same command" in str(raised.value)
    assert raised.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_no_record_that_vouches_for_it(built, saved, monkeypatch):
    def interrupted(index, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(faiss, "write_index", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(built, saved, "new")
    assert read_record(saved) is None


def test_loading_without_faiss_names_the_extra_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install 'influence[cpu]'" in refusal(saved, FaissMissing)
