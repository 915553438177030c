"""Exports and their undoing after somebody, or something, has been at the files."""

import gc

import datasets
import pyarrow.parquet as pq
import pytest

from influence.artifacts.digest import sha256
from influence.artifacts.outfile import MARK, parts_folder
from influence.data.columns import Columns
from influence.errors import DataError, QueryError
from influence.export.clean import export_clean
from influence.export.decisions import decisions_path
from influence.export.undo import undo_export
from influence.export.verdicts import Wish
from tests.diagnose.exported import run_of, table_of


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "row {row}", "label": {row % 2}}}\n' for row in range(6)))
    return path


@pytest.fixture
def run(data):
    return run_of(data)


@pytest.fixture
def table(run, tmp_path):
    return table_of(run, tmp_path / "issues.parquet", drop=[1, 3])


def killed_late(out, of):
    """Leave what a call leaves that was killed when its file stood and its parts weren't gone."""
    parts_folder(out).mkdir(exist_ok=True)
    (parts_folder(out) / MARK).write_text(sha256(of))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_table_that_is_not_there_is_named_though_the_output_is(run, table, tmp_path):
    out = tmp_path / "clean.jsonl"
    export_clean(run, Wish((table,)), out)
    with pytest.raises(QueryError, match=r"There is no file .*gone\.parquet"):
        export_clean(run, Wish((tmp_path / "gone.parquet",)), out, overwrite=True)


def test_naming_no_check_is_no_way_to_drop_nothing(run, table, tmp_path):
    with pytest.raises(QueryError, match=r"--drop-issues names no check\. Name some, or none to drop nothing"):
        export_clean(run, Wish((table,), checks=()), tmp_path / "clean.jsonl")


def test_data_that_have_other_columns_now_have_changed_and_data_that_are_gone_are_missed(run, table, data, tmp_path):
    named = run_of(data, columns=Columns(text="text", label="label"))
    data.write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match="has changed since"):
        export_clean(named, Wish((table,)), tmp_path / "clean.jsonl")
    data.unlink()
    with pytest.raises(DataError, match=r"The data that runs/x was built from aren't there. There is nothing at"):
        export_clean(run, Wish((table,)), tmp_path / "clean.jsonl")


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_wish_that_can_t_be_fulfilled_is_told_without_noise(run, tmp_path):
    table = table_of(run, tmp_path / "issues.parquet", drop=[0], relabel={4: "spam"})
    with pytest.raises(DataError, match="'label' is the number 0, and 'spam'"):
        export_clean(run, Wish((table,), relabel=True), tmp_path / "clean.jsonl")
    assert names_in(tmp_path) == ["issues.parquet", "rows.jsonl"]
    gc.collect()


def test_an_export_that_was_killed_when_it_stood_is_done_and_another_one_is_not_done_over_it(run, table, tmp_path):
    out = tmp_path / "clean.jsonl"
    export_clean(run, Wish((table,)), out)
    whole, decided = out.read_bytes(), decisions_path(out).read_bytes()
    killed_late(out, decisions_path(out))
    export_clean(run, Wish((table,)), out)
    assert (out.read_bytes(), decisions_path(out).read_bytes()) == (whole, decided)
    assert not parts_folder(out).exists()
    killed_late(out, decisions_path(out))
    with pytest.raises(QueryError, match="exists already"):
        export_clean(run, Wish((table,), checks=("none",)), out)
    assert out.read_bytes() == whole
    out.write_bytes(whole + b'{"text": "mine"}\n')
    killed_late(out, decisions_path(out))
    with pytest.raises(QueryError, match="exists already"):
        export_clean(run, Wish((table,)), out)
    assert out.read_bytes().endswith(b'{"text": "mine"}\n')


def test_an_undoing_that_was_killed_when_it_stood_is_done_and_an_edited_file_stays(run, table, data, tmp_path):
    out, back = tmp_path / "clean.jsonl", tmp_path / "back.jsonl"
    export_clean(run, Wish((table,)), out)
    undo_export(out, back)
    killed_late(back, decisions_path(out))
    undo_export(out, back)
    assert back.read_bytes() == data.read_bytes()
    assert not parts_folder(back).exists()
    killed_late(back, decisions_path(out))
    back.write_text("mine\n")
    with pytest.raises(QueryError, match="exists already"):
        undo_export(out, back)
    assert back.read_text() == "mine\n"


def test_what_is_restored_takes_no_other_suffix_and_decisions_are_not_what_is_undone(run, table, tmp_path):
    out = tmp_path / "clean.jsonl"
    export_clean(run, Wish((table,)), out)
    before = table.read_bytes()
    with pytest.raises(QueryError, match=r"name a file ….jsonl"):
        undo_export(out, table, overwrite=True)
    assert table.read_bytes() == before
    with pytest.raises(QueryError, match="beside the cleaned one, which is what to name"):
        undo_export(decisions_path(out), tmp_path / "back.jsonl")


def test_decisions_about_another_cleaned_file_stay_even_where_files_may_be_replaced(run, table, tmp_path):
    export_clean(run, Wish((table,)), tmp_path / "clean.jsonl")
    before = decisions_path(tmp_path / "clean.jsonl").read_bytes()
    csv = tmp_path / "rows.csv"
    csv.write_text("text,label\na,1\nb,0\n")
    other = run_of(csv)
    with pytest.raises(QueryError, match="belongs to a file of jsonl that were cleaned: name another"):
        export_clean(
            other,
            Wish((table_of(other, tmp_path / "two.parquet", drop=[1]),)),
            tmp_path / "clean.csv",
            overwrite=True,
        )
    assert decisions_path(tmp_path / "clean.csv").read_bytes() == before


def test_a_folder_is_replaced_only_where_an_export_made_all_of_it(data, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "data" / name).write_bytes(data.read_bytes())
    run = run_of(tmp_path / "data" / "*.jsonl")
    table = table_of(run, tmp_path / "issues.parquet", drop=[1, 7])
    out = tmp_path / "clean"
    export_clean(run, Wish((table,)), out)
    export_clean(run, Wish((table,)), out, overwrite=True)
    killed_late(out, decisions_path(out))
    export_clean(run, Wish((table,)), out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(QueryError, match=r"notes\.txt is no file of an export and would go"):
        export_clean(run, Wish((table,)), out, overwrite=True)
    assert names_in(out) == ["a.jsonl", "b.jsonl", "notes.txt"]
    undo_export(out, tmp_path / "back")
    killed_late(tmp_path / "back", decisions_path(out))
    undo_export(out, tmp_path / "back")
    assert (tmp_path / "back" / "b.jsonl").read_bytes() == data.read_bytes()
    assert not parts_folder(tmp_path / "back").exists()


def test_what_a_saved_data_set_is_to_be_written_as_can_be_cleaned_with_every_value(tmp_path):
    rows = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [0, 1, 1], "x": [[1.5], None, []]},
        features=datasets.Features(
            {
                "text": datasets.Value("string"),
                "label": datasets.ClassLabel(names=["no", "yes"]),
                "x": datasets.Sequence(datasets.Value("float32")),
            }
        ),
    )
    rows.save_to_disk(tmp_path / "saved")
    datasets.load_from_disk(str(tmp_path / "saved")).to_parquet(tmp_path / "rows.parquet")
    run = run_of(tmp_path / "rows.parquet")
    table = table_of(run, tmp_path / "issues.parquet", drop=[0], relabel={2: "0"})
    export_clean(run, Wish((table,), relabel=True), tmp_path / "clean.parquet")
    assert pq.read_table(tmp_path / "clean.parquet").to_pylist() == [
        {"text": "b", "label": 1, "x": None},
        {"text": "c", "label": 0, "x": []},
    ]
    undo_export(tmp_path / "clean.parquet", tmp_path / "back.parquet")
    back = datasets.Dataset.from_parquet(str(tmp_path / "back.parquet"), cache_dir=str(tmp_path / "cache"))
    assert (back.features, back.to_list()) == (rows.features, rows.to_list())
