"""Exports of what `datasets` saved or loaded: a saved folder again, as `datasets` itself would filter and save it."""

import json
import os
import signal
from datetime import UTC, datetime

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence.errors import DataError, Incomplete, QueryError
from influence.export import clean as clean_module
from influence.export.clean import export_clean
from influence.export.clean_columns import Labels
from influence.export.decisions import decisions_path
from influence.export.undo import undo_export
from influence.export.verdicts import Wish
from tests import kills
from tests.diagnose.exported import run_of, table_of
from tests.kills import killed

ROWS = 23
NAMES = ["ham", "spam", "7"]
FEATURES = datasets.Features(
    {
        "text": datasets.Value("large_string"),
        "label": datasets.ClassLabel(names=NAMES),
        "when": datasets.Value("timestamp[us, tz=UTC]"),
        "turns": datasets.List({"who": datasets.Value("string"), "said": datasets.Value("string")}),
        "grid": datasets.Array2D((2, 2), "float32"),
        "weights": datasets.List(datasets.Value("float64")),
        "picture": {"bytes": datasets.Value("binary")},
    }
)


def rows():
    return datasets.Dataset.from_list(
        [
            {
                "text": f"row {row} ä",
                "label": row % 3,
                "when": datetime(2020, 1, 1 + row, 12, tzinfo=UTC),
                "turns": [{"who": "me", "said": None}] * (row % 3),
                "grid": np.full((2, 2), row / 3, np.float32),
                "weights": None if row % 5 == 0 else [row / 7, None],
                "picture": {"bytes": bytes([row])},
            }
            for row in range(ROWS)
        ],
        features=FEATURES,
        info=datasets.DatasetInfo(description="about", license="CC0", features=FEATURES),
        split="train",
    )


@pytest.fixture
def saved(tmp_path):
    rows().with_format("numpy", columns=["label"]).save_to_disk(tmp_path / "saved", num_shards=3)
    return tmp_path / "saved"


def held(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def twin(whole, drop, relabel, folder):
    """What `datasets` itself makes of it."""
    labels = [relabel.get(row, label) for row, label in enumerate(whole["label"])]
    changed = whole.map(lambda _, row: {"label": labels[row]}, with_indices=True, features=whole.features)
    changed.select([row for row in range(len(whole)) if row not in drop]).save_to_disk(folder)
    return datasets.load_from_disk(str(folder))


def check_same(found, expected):
    assert found.features == expected.features
    plain, also = found.with_format(None), expected.with_format(None)
    assert plain.to_list() == also.to_list()
    assert found.data.schema.equals(expected.data.schema, check_metadata=True)


@pytest.mark.parametrize(("batch", "size"), [(2, 2**20), (8192, 300), (8192, 2**20)])
def test_a_saved_data_set_is_cleaned_as_datasets_would_and_undone(batch, size, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("influence.export.clean_saved.BATCH", batch)
    monkeypatch.setattr("influence.export.clean_columns.BATCH_BYTES", size)
    before, run = held(saved), run_of(saved)
    drop = [0, 4, 5, *range(8, 16), 22]
    table = table_of(run, tmp_path / "issues.parquet", drop=drop, relabel={2: "0", 7: "1", 20: "0"})
    done = export_clean(run, Wish((table,), relabel=True), tmp_path / "clean")
    assert (done.rows, done.kept, done.relabelled) == (ROWS, ROWS - len(drop), {"labels": 3})
    found = datasets.load_from_disk(str(done.out))
    check_same(found, twin(rows(), drop, {2: 0, 7: 1, 20: 0}, tmp_path / "twin"))
    assert (found.format, found.split) == (datasets.load_from_disk(str(saved)).format, "train")
    assert (done.out / "dataset_info.json").read_bytes() == (saved / "dataset_info.json").read_bytes()
    assert sorted(held(done.out)) == sorted(before)
    assert found._fingerprint != datasets.load_from_disk(str(saved))._fingerprint
    decided = pq.read_table(done.decisions).to_pylist()
    assert [line["values"]["text"] for line in decided if line["action"] == "drop"] == [f"row {row} ä" for row in drop]
    assert held(saved) == before

    undo_export(done.out, tmp_path / "back")
    back = datasets.load_from_disk(str(tmp_path / "back"))
    check_same(back, datasets.load_from_disk(str(saved)))
    for name in ("state.json", "dataset_info.json"):
        assert (tmp_path / "back" / name).read_bytes() == (saved / name).read_bytes()
    again = table_of(run_of(done.out), tmp_path / "again.parquet", drop=[0])
    assert export_clean(run_of(done.out), Wish((again,)), tmp_path / "cleaner").kept == done.kept - 1


def test_of_a_dictionary_of_splits_the_one_of_the_run_is_written_and_rows_beyond_its_limit_stay(tmp_path):
    whole = rows()
    parted = datasets.DatasetDict({"train": whole.select(range(6)), "test": whole.select(range(6, ROWS))})
    parted.save_to_disk(tmp_path / "saved")
    before = held(tmp_path / "saved")
    run = run_of(tmp_path / "saved", split="test", limit=5)
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    done = export_clean(run, Wish((table,)), tmp_path / "clean")
    assert (done.rows, done.kept, done.unexamined) == (ROWS - 6, ROWS - 7, ROWS - 11)
    expected = whole.select([6, *range(8, ROWS)])
    assert datasets.load_from_disk(str(done.out)).to_list() == expected.to_list()
    assert held(tmp_path / "saved") == before
    for out in (tmp_path / "saved", tmp_path / "saved" / "test"):
        with pytest.raises(QueryError, match="holds the data themselves"):
            export_clean(run, Wish((table,)), out, overwrite=True)
    with pytest.raises(QueryError, match=r"which is only read\. Name a folder elsewhere"):
        export_clean(run, Wish((table,)), tmp_path / "saved" / "clean")
    assert held(tmp_path / "saved") == before


def test_a_data_set_of_the_hub_is_cleaned_from_its_cache_though_it_is_a_slice_of_its_files(tmp_path, monkeypatch):
    rows().to_parquet(tmp_path / "rows.parquet")
    load = datasets.load_dataset

    def from_cache(path, name, split):
        files = str(tmp_path / "rows.parquet")
        return load("parquet", data_files=files, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", from_cache)
    run = run_of("somebody/corpus", split="train[3:15]")
    before = held(tmp_path / "cache")
    table = table_of(run, tmp_path / "issues.parquet", drop=[0, 11], relabel={2: "2"})
    done = export_clean(run, Wish((table,), relabel=True), tmp_path / "clean")
    whole = rows().select(range(3, 15))
    check_same(datasets.load_from_disk(str(done.out)), twin(whole, [0, 11], {2: 2}, tmp_path / "twin"))
    undo_export(done.out, tmp_path / "back")
    check_same(datasets.load_from_disk(str(tmp_path / "back")), whole)
    assert held(tmp_path / "cache") == before
    run.manifest.fingerprint_parts["data"] = "0" * 16
    with pytest.raises(DataError, match="somebody/corpus has changed since"):
        export_clean(run, Wish((table,)), tmp_path / "other")


@pytest.mark.parametrize(
    ("names", "old", "new", "expected"),
    [
        (NAMES, 0, "2", 2),
        (NAMES, 0, "spam", 1),
        (NAMES, 0, "7", None),
        (NAMES, 0, "eggs", None),
        (NAMES, None, "spam", None),
        ((), 0, "7", 7),
        ((), 0, "spam", None),
        ((), "spam", "7", "7"),
    ],
)
def test_a_class_s_name_becomes_its_number_and_a_number_stays_within_the_classes(names, old, new, expected):
    assert Labels("label", tuple(names)).changed(old, new) == expected


def test_labels_are_classes_only_where_the_schema_says_so(saved):
    schema = datasets.load_from_disk(str(saved)).data.schema
    assert Labels.of(schema, "label") == Labels("label", tuple(NAMES))
    assert Labels.of(schema, "turns") == Labels("turns")
    assert Labels.of(pa.schema([("label", pa.int64())]), "label") == Labels("label")
    assert Labels.of(schema, None) is None


def test_a_label_that_is_no_class_is_refused_and_nothing_is_left(saved, tmp_path):
    run = run_of(saved)
    table = table_of(run, tmp_path / "issues.parquet", relabel={4: "3"})
    with pytest.raises(DataError, match=r"saved, row 4 \(counted from 0, id 'id-4'\): 'label' is 1, which can't"):
        export_clean(run, Wish((table,), relabel=True), tmp_path / "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["issues.parquet", "saved"]


def test_what_is_there_stays_and_no_empty_data_set_is_written(saved, tmp_path):
    run = run_of(saved)
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    every = table_of(run, tmp_path / "every.parquet", drop=range(ROWS))
    with pytest.raises(QueryError, match="Every one of the 23 rows would be dropped"):
        export_clean(run, Wish((every,)), tmp_path / "clean")
    with pytest.raises(QueryError, match=r"give a name without \.parquet"):
        export_clean(run, Wish((table,)), tmp_path / "clean.parquet")
    rows().save_to_disk(tmp_path / "mine")
    mine = held(tmp_path / "mine")
    for overwrite in (False, True):
        with pytest.raises(QueryError, match="is no folder that an export made"):
            export_clean(run, Wish((table,)), tmp_path / "mine", overwrite=overwrite)
    assert held(tmp_path / "mine") == mine
    done = export_clean(run, Wish((table,)), tmp_path / "clean")
    once = held(done.out)
    with pytest.raises(QueryError, match="exists already"):
        export_clean(run, Wish((table,)), done.out)
    export_clean(run, Wish((table,)), done.out, overwrite=True)
    assert held(done.out) == once
    (done.out / "cache-0.arrow").write_bytes(b"of a map")
    with pytest.raises(QueryError, match=r"cache-0\.arrow is no file of an export"):
        export_clean(run, Wish((table,)), done.out, overwrite=True)


def test_a_saved_data_set_that_changes_under_an_export_leaves_nothing(saved, tmp_path, monkeypatch):
    run = run_of(saved)
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    cleaned = clean_module.clean_saved
    first = sorted(saved.glob("*.arrow"))[0]

    def then_change(*given):
        found = cleaned(*given)
        first.write_bytes(first.read_bytes() + b"\0" * 8)
        return found

    monkeypatch.setattr(clean_module, "clean_saved", then_change)
    with pytest.raises(DataError, match="has changed since"):
        export_clean(run, Wish((table,)), tmp_path / "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["issues.parquet", "saved"]


def test_a_cleaned_file_that_was_changed_is_not_undone(saved, tmp_path):
    run = run_of(saved)
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    done = export_clean(run, Wish((table,)), tmp_path / "clean")
    path = sorted(done.out.glob("*.arrow"))[1]
    path.write_bytes(path.read_bytes() + b"\0" * 8)
    with pytest.raises(DataError, match=r"data-00001-of-00003\.arrow is not the file"):
        undo_export(done.out, tmp_path / "back")


def test_an_interrupted_export_of_a_saved_data_set_leaves_nothing(saved, tmp_path, monkeypatch):
    table = table_of(run_of(saved), tmp_path / "issues.parquet", drop=[1])

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("influence.export.clean_saved.clean_batch", interrupt)
    with pytest.raises(Incomplete, match="un the same command again"):
        export_clean(run_of(saved), Wish((table,)), tmp_path / "clean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["issues.parquet", "saved"]


@pytest.mark.slow
def test_an_export_and_its_undoing_that_are_killed_give_the_folders_of_undisturbed_ones(saved, tmp_path):
    log, made = tmp_path / "log", tmp_path / "made"
    made.mkdir()
    table = table_of(run_of(saved), tmp_path / "issues.parquet", drop=range(0, ROWS, 2))
    whole = export_clean(run_of(saved), Wish((table,)), tmp_path / "whole")
    expected, decided = held(whole.out), decisions_path(whole.out).read_bytes()
    undo_export(whole.out, tmp_path / "undone")

    given = kills.export, (saved, table, made / "clean"), log
    for where, calls in (
        ("influence.export.clean_saved:clean_batch", 2),
        ("influence.export.clean_saved:_write_told", 1),
        ("influence.export.clean:_publish", 1),
        ("influence.export.clean:sync_folder", 1),
    ):
        assert killed(*given, where, calls) == -signal.SIGKILL, log.read_text()[-3000:]
        assert (made / "clean").exists() == (where == "influence.export.clean:sync_folder")
    assert killed(*given, "os:getcwdb", 99) == 0, log.read_text()[-3000:]
    assert sorted(os.listdir(made)) == ["clean", "clean.decisions.parquet"]
    assert (held(made / "clean"), decisions_path(made / "clean").read_bytes()) == (expected, decided)

    given = kills.undo, (made / "clean", made / "back"), log
    for where, calls in (
        ("influence.export.clean_saved:restored_batches", 2),
        ("influence.export.undo:sync_folder", 1),
    ):
        assert killed(*given, where, calls) == -signal.SIGKILL, log.read_text()[-3000:]
    assert killed(*given, "os:getcwdb", 99) == 0, log.read_text()[-3000:]
    assert sorted(os.listdir(made)) == ["back", "clean", "clean.decisions.parquet"]
    assert held(made / "back") == held(tmp_path / "undone")
    assert json.loads((made / "back" / "state.json").read_text())["_split"] == "train"
    assert "Traceback" not in log.read_text()
