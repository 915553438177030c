"""Exports: the bytes of what stays are those that were, only what was named goes, and all of it can be undone."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence.artifacts.lock import lock_folder
from influence.errors import DataError, DigestMismatch, Incomplete, QueryError, RunLocked
from influence.export import clean as clean_module
from influence.export import original as original_module
from influence.export.clean import export_clean
from influence.export.decisions import decisions_path
from influence.export.undo import undo_export
from influence.export.verdicts import Wish
from tests.diagnose.exported import run_of, table_of

LINES = (
    b'{"text": "one", "label": "a", "x": 1.50}\n',
    b'{"label":"a","text":"tw\\u00f6 \xc3\xb6"}   \r\n',
    b"\n",
    b'  {"text": "three", "label"  :  "b" , "label_": "a"}\n',
    b'{"text": "four \\"label\\": \\"a\\"", "label": "a"}\n',
    b"   \n",
    b'{"text": "five", "label": "c"}',
)
ROWS = tuple(line for line in LINES if line.strip())


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(LINES))
    return path


@pytest.fixture
def run(data):
    return run_of(data)


def decided(out):
    return pq.read_table(decisions_path(out)).to_pylist()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_kept_lines_keep_their_bytes_and_dropped_ones_are_named_with_their_reason(run, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1, 3], review=[0])
    out = tmp_path / "clean.jsonl"
    done = export_clean(run, Wish((table,)), out)
    assert out.read_bytes() == b"".join(line for line in LINES if line not in (ROWS[1], ROWS[3]))
    assert (done.rows, done.kept, done.dropped, done.relabelled) == (5, 3, {"copies": 2}, {})
    first, second = decided(out)
    assert (first["row"], first["id"], first["action"], first["reason"]) == (1, "id-1", "drop", "copies")
    assert first["suggestion"] == "drop: a copy"
    assert first["score"] == pytest.approx(0.25)
    assert first["run"] == run.manifest.rows_fingerprint
    assert second["original"] == ROWS[3]
    assert names_in(tmp_path) == ["clean.decisions.parquet", "clean.jsonl", "issues.parquet", "rows.jsonl"]


def test_a_row_that_was_only_to_be_looked_at_goes_when_its_check_is_named_and_no_other_does(run, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1], review=[0], relabel={3: "b"})
    done = export_clean(run, Wish((table,), checks=("labels",)), tmp_path / "clean.jsonl")
    assert done.dropped == {"labels": 2}
    assert [line["row"] for line in decided(done.out)] == [0, 3]


def test_only_the_value_of_a_label_changes(run, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[0], relabel={1: "é", 2: "a", 3: 'q"'})
    done = export_clean(run, Wish((table,), relabel=True), tmp_path / "clean.jsonl")
    found = done.out.read_bytes()
    assert '{"label":"é","text":"tw\\u00f6 ö"}   \r\n'.encode() in found
    assert b'  {"text": "three", "label"  :  "a" , "label_": "a"}\n' in found
    assert b'{"text": "four \\"label\\": \\"a\\"", "label": "q\\""}\n' in found
    assert (done.kept, done.relabelled) == (4, {"labels": 3})
    assert [(line["old_label"], line["new_label"]) for line in decided(done.out)][1:] == [
        ("a", "é"),
        ("b", "a"),
        ("a", 'q"'),
    ]


def test_labels_stay_where_nobody_asked_and_nothing_is_dropped_where_none_is(run, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[0], relabel={1: "b"})
    done = export_clean(run, Wish((table,)), tmp_path / "clean.jsonl")
    assert done.relabelled == {}
    done = export_clean(run, Wish((table,), checks=("none",), relabel=True), tmp_path / "labels.jsonl")
    assert (done.dropped, done.relabelled) == ({}, {"labels": 1})


def test_several_tables_drop_what_any_of_them_suggests(run, tmp_path):
    one = table_of(run, tmp_path / "one.parquet", drop=[0], relabel={2: "a"})
    other = table_of(run, tmp_path / "other.parquet", leak=[0, 2])
    done = export_clean(run, Wish((one, other), relabel=True), tmp_path / "clean.jsonl")
    assert done.dropped == {"copies, leak": 1, "leak": 1}
    assert done.relabelled == {}
    third = table_of(run, tmp_path / "third.parquet", relabel={2: "c"})
    with pytest.raises(QueryError, match="different labels for it, 'a' and 'c'"):
        export_clean(run, Wish((one, third), relabel=True), tmp_path / "both.jsonl")
    assert not (tmp_path / "both.jsonl").exists()


def test_undoing_gives_the_bytes_back_and_a_changed_file_is_refused(run, data, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1, 4], relabel={0: "long label", 3: ""})
    out = tmp_path / "clean.jsonl"
    export_clean(run, Wish((table,), relabel=True), out)
    undo_export(out, tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == data.read_bytes()
    with pytest.raises(QueryError, match="exists already"):
        undo_export(out, tmp_path / "back.jsonl")
    with pytest.raises(QueryError, match="only read"):
        undo_export(out, out, overwrite=True)
    with pytest.raises(QueryError, match="exported from another run's data"):
        undo_export(out, tmp_path / "other.jsonl", of_run=run_of(data, fingerprint="e" * 64))
    out.write_bytes(out.read_bytes() + b"\n")
    with pytest.raises(DataError, match=r"its digest is .* the export wrote"):
        undo_export(out, tmp_path / "again.jsonl")
    assert not (tmp_path / "again.jsonl").exists()


def test_damaged_decisions_don_t_pass_for_the_data(run, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    out = tmp_path / "clean.jsonl"
    export_clean(run, Wish((table,)), out)
    path = decisions_path(out)
    with pq.ParquetFile(path) as file:
        metadata, found = file.metadata.metadata, file.read()
    column = found.schema.get_field_index("original")
    changed = pa.array([b"{}\n"], found.schema.field(column).type)
    with pq.ParquetWriter(path, found.schema) as writer:
        writer.write_table(found.set_column(column, found.schema.field(column), changed))
        writer.add_key_value_metadata({b"influence.decisions": metadata[b"influence.decisions"]})
    with pytest.raises(DigestMismatch, match="decisions is damaged"):
        undo_export(out, tmp_path / "back.jsonl")
    assert not (tmp_path / "back.jsonl").exists()


def test_several_files_become_a_folder_with_their_names(tmp_path):
    for name, lines in (("a/one.jsonl", ROWS[:2]), ("a/two.jsonl", ROWS[2:4]), ("b/one.jsonl", ROWS[4:])):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"".join(lines))
    run = run_of(tmp_path / "data" / "*" / "*.jsonl")
    table = table_of(run, tmp_path / "issues.parquet", drop=[1, 3], relabel={4: "d"})
    done = export_clean(run, Wish((table,), relabel=True), tmp_path / "clean")
    assert (done.out / "a/one.jsonl").read_bytes() == ROWS[0]
    assert (done.out / "a/two.jsonl").read_bytes() == ROWS[2]
    assert (done.out / "b/one.jsonl").read_bytes() == ROWS[4].replace(b'"c"', b'"d"')
    undo_export(done.out, tmp_path / "back")
    for name in ("a/one.jsonl", "a/two.jsonl", "b/one.jsonl"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "data" / name).read_bytes()
    with pytest.raises(QueryError, match="holds the data themselves"):
        export_clean(run, Wish((table,)), tmp_path / "data" / ".." / "data")


def test_rows_beyond_the_limit_stay(data, tmp_path):
    run = run_of(data, limit=2)
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    done = export_clean(run, Wish((table,)), tmp_path / "clean.jsonl")
    assert (done.rows, done.kept, done.unexamined) == (5, 4, 3)
    undo_export(done.out, tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == data.read_bytes()


@pytest.mark.parametrize("way", ["itself", "symlink", "hard link", "round about", "its table"])
def test_neither_the_input_nor_the_table_is_written_over(way, run, data, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    before = data.read_bytes()
    out = tmp_path / "other.jsonl"
    if way == "symlink":
        out.symlink_to(data)
    elif way == "hard link":
        os.link(data, out)
    else:
        out = {"itself": data, "round about": tmp_path / "x" / ".." / "rows.jsonl", "its table": table}[way]
    (tmp_path / "x").mkdir()
    with pytest.raises(QueryError, match="which is only read"):
        export_clean(run, Wish((table,)), out, overwrite=True)
    assert data.read_bytes() == before


def test_a_table_of_another_run_is_refused_with_both_names(run, data, tmp_path):
    other = run_of(data, fingerprint="e" * 64)
    table = table_of(other, tmp_path / "issues.parquet", drop=[1])
    with pytest.raises(QueryError, match=f"fingerprint {'e' * 64}.*fingerprint {'f' * 64}"):
        export_clean(run, Wish((table,)), tmp_path / "clean.jsonl")


def test_data_that_changed_since_the_build_are_refused(run, data, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    data.write_bytes(ROWS[1] + data.read_bytes())
    with pytest.raises(DataError, match=r"has changed since runs/x was built"):
        export_clean(run, Wish((table,)), tmp_path / "clean.jsonl")
    assert names_in(tmp_path) == ["issues.parquet", "rows.jsonl"]


def test_data_that_change_under_an_export_leave_nothing(run, data, tmp_path, monkeypatch):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    checked = original_module.digest_files

    def then_change(files):
        found = checked(files)
        data.write_bytes(data.read_bytes().replace(b"one", b"eno"))
        return found

    monkeypatch.setattr(original_module, "digest_files", then_change)
    with pytest.raises(DataError, match="has changed since"):
        export_clean(run, Wish((table,)), tmp_path / "clean.jsonl")
    assert names_in(tmp_path) == ["issues.parquet", "rows.jsonl"]


def test_what_is_there_stays_unless_it_is_to_be_overwritten(run, data, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    out = tmp_path / "clean.jsonl"
    out.write_text("mine\n")
    with pytest.raises(QueryError, match=r"clean\.jsonl exists already"):
        export_clean(run, Wish((table,)), out)
    assert out.read_text() == "mine\n"
    export_clean(run, Wish((table,)), out, overwrite=True)
    out.unlink()
    with pytest.raises(QueryError, match=r"clean\.decisions\.parquet exists already"):
        export_clean(run, Wish((table,)), out)


@pytest.mark.parametrize("moment", ["after the decisions", "before any", "while rows are written"])
def test_an_export_that_was_killed_is_done_by_the_same_call(moment, run, data, tmp_path, monkeypatch):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    wish, out = Wish((table,)), tmp_path / "clean.jsonl"
    child = os.fork()
    if child == 0:
        replace, add = Path.replace, clean_module.DecisionWriter.add

        def killing(self, target):
            if moment == "before any" and Path(target) == decisions_path(out):
                os._exit(9)
            found = replace(self, target)
            if moment == "after the decisions" and Path(target) == decisions_path(out):
                os._exit(9)
            return found

        def added(self, *arguments):
            add(self, *arguments)
            if moment == "while rows are written":
                os._exit(9)

        monkeypatch.setattr(Path, "replace", killing)
        monkeypatch.setattr(clean_module.DecisionWriter, "add", added)
        export_clean(run, wish, out)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert not out.exists()
    assert (tmp_path / "clean.jsonl.parts").is_dir()
    assert decisions_path(out).exists() == (moment == "after the decisions")
    export_clean(run, wish, out)
    undo_export(out, tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == data.read_bytes()
    assert not (tmp_path / "clean.jsonl.parts").exists()


def test_an_export_that_should_replace_another_and_was_cut_short_can_t_be_undone_by_mistake(run, data, tmp_path):
    one = table_of(run, tmp_path / "one.parquet", drop=[1])
    other = table_of(run, tmp_path / "other.parquet", drop=[0, 2])
    first = export_clean(run, Wish((one,)), tmp_path / "clean.jsonl")
    second = export_clean(run, Wish((other,)), tmp_path / "next.jsonl")
    second.decisions.replace(first.decisions)
    with pytest.raises(DataError, match="an export that should replace it was interrupted"):
        undo_export(first.out, tmp_path / "back.jsonl")
    export_clean(run, Wish((other,)), first.out, overwrite=True)
    undo_export(first.out, tmp_path / "back.jsonl")
    assert (tmp_path / "back.jsonl").read_bytes() == data.read_bytes()


def test_an_interrupted_export_leaves_nothing(run, tmp_path, monkeypatch):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(clean_module.DecisionWriter, "add", interrupt)
    with pytest.raises(Incomplete, match="un the same command again"):
        export_clean(run, Wish((table,)), tmp_path / "clean.jsonl")
    assert names_in(tmp_path) == ["issues.parquet", "rows.jsonl"]


def test_two_exports_to_one_file_don_t_meet(run, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[1])
    with lock_folder(tmp_path / "clean.jsonl.parts"), pytest.raises(RunLocked, match="is being written already"):
        export_clean(run, Wish((table,)), tmp_path / "clean.jsonl")


@pytest.mark.parametrize(
    ("wish", "out", "message"),
    [
        ({"tables": ()}, "clean.jsonl", "--drop FILE"),
        ({"checks": ("leak",)}, "clean.jsonl", "leak was not made for .*The tables have the checks copies, labels"),
        ({}, "clean.csv", "name a file ….jsonl"),
        ({}, "nowhere/clean.jsonl", "doesn't exist"),
        ({"checks": ("everything",)}, "clean.jsonl", "Every one of the 5 rows would be dropped"),
    ],
)
def test_what_can_t_be_is_refused(wish, out, message, run, tmp_path):
    checks = {"everything": range(5)} if "everything" in wish.get("checks", ()) else {}
    table = table_of(run, tmp_path / "issues.parquet", drop=[1], **checks)
    with pytest.raises(QueryError, match=message):
        export_clean(run, Wish(**{"tables": (table,), **wish}), tmp_path / out)
    assert names_in(tmp_path) == ["issues.parquet", "rows.jsonl"]


def test_a_number_becomes_no_name(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 2}\n')
    run = run_of(path)
    table = table_of(run, tmp_path / "issues.parquet", relabel={1: "spam"})
    with pytest.raises(DataError, match=r"row 1 \(counted from 0, id 'id-1'\): 'label' is the number 2"):
        export_clean(run, Wish((table,), relabel=True), tmp_path / "clean.jsonl")
    table = table_of(run, tmp_path / "issues.parquet", relabel={1: "1"})
    export_clean(run, Wish((table,), relabel=True), tmp_path / "clean.jsonl")
    assert (tmp_path / "clean.jsonl").read_text() == '{"text": "a", "label": 1}\n{"text": "b", "label": 1}\n'


def test_labels_can_t_be_changed_where_there_are_none(tmp_path):
    for name, content, told in (
        ("rows.csv", "text\na\nb\n", "has no column of labels"),
        ("rows.jsonl", '{"text": "a"}\n{"text": "b"}\n', r"row 1 .* has no 'label'. Expected a label to be changed"),
    ):
        path = tmp_path / name
        path.write_text(content)
        run = run_of(path)
        table = table_of(run, tmp_path / f"{name}.parquet", drop=[0], relabel={1: "b"})
        with pytest.raises((DataError, QueryError), match=told):
            export_clean(run, Wish((table,), relabel=True), tmp_path / f"clean-{name}")


def test_many_rows_are_read_side_by_side_with_their_tables(tmp_path, monkeypatch):
    monkeypatch.setattr("influence.issues.table.BLOCK", 7)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "t{row}", "label": "a"}}\n' for row in range(50)))
    run = run_of(path)
    chance = np.random.default_rng(0)
    drop = sorted(map(int, chance.choice(50, 20, replace=False)))
    one = table_of(run, tmp_path / "one.parquet", drop=drop[::2])
    other = table_of(run, tmp_path / "other.parquet", drop=drop[1::2])
    done = export_clean(run, Wish((one, other)), tmp_path / "clean.jsonl")
    kept = [json.loads(line)["text"] for line in done.out.read_text().splitlines()]
    assert kept == [f"t{row}" for row in range(50) if row not in drop]
