"""`influence export`: what it prints, what --where leaves alone, how it is undone, and what it refuses."""

import json

import datasets
import pyarrow.parquet as pq
import pytest

import influence
from influence.export.clean import export_clean
from influence.export.verdicts import Wish
from tests.diagnose.exported import table_of


@pytest.fixture(scope="module")
def run(built):
    with influence.open(built) as opened:
        yield opened


@pytest.fixture
def table(run, tmp_path):
    """Rows 0 to 5 are copies; rows 10 and 11 should have another label."""
    return table_of(run, tmp_path / "issues.parquet", drop=range(6), relabel={10: "0", 11: "1"})


@pytest.fixture
def out(tmp_path):
    return tmp_path / "clean.jsonl"


def test_what_became_of_the_rows_is_printed_and_undoing_gives_the_file_back(cli, built, table, out, corpus_file):
    ended = cli("export", built, "--drop", table, "--relabel", "--out", out)
    assert ended.code == 0
    printed = [" ".join(line.split()) for line in ended.out.splitlines()]
    assert {"kept 32", "dropped copies 6", "kept, relabelled labels 2"} <= set(printed)
    assert f"34 of 40 rows: {out}" in ended.told
    back = out.with_name("back.jsonl")
    undone = cli("export", "--undo", out, "--out", back)
    assert (undone.code, undone.out) == (0, "")
    assert "40 rows, the original bytes" in undone.told
    assert back.read_bytes() == corpus_file.read_bytes()


def test_json_is_clean(cli, built, table, out):
    ended = cli("export", built, "--drop", table, "--out", out, "--format", "json")
    found = json.loads(ended.out)
    assert (found["rows"], found["kept"], found["dropped"]) == (40, 34, {"copies": 6})
    undone = cli("export", "--undo", out, "--out", out.with_name("back.jsonl"), "--format", "json")
    assert json.loads(undone.out)["rows"] == 40


def test_rows_that_don_t_meet_the_condition_are_left_alone(cli, built, table, out, corpus_file):
    where = "source = 'shelf-1'"
    ended = cli("export", built, "--drop", table, "--relabel", "--where", where, "--out", out)
    assert ended.code == 0, ended.err
    decided = pq.read_table(out.with_name("clean.decisions.parquet")).to_pylist()
    assert [(line["row"], line["action"]) for line in decided] == [(1, "drop"), (4, "drop"), (10, "relabel")]
    before, after = corpus_file.read_bytes().splitlines(), out.read_bytes().splitlines()
    assert [json.loads(line)["id"] for line in set(before) - set(after)] != []
    assert len(after) == 38


def test_a_condition_that_no_row_meets_changes_nothing_and_says_so(cli, built, table, out, corpus_file):
    ended = cli("export", built, "--drop", table, "--where", "source = 'nowhere'", "--out", out)
    assert ended.code == 0
    assert "warning: nothing was changed: the tables flag no row that meets --where" in ended.told
    assert out.read_bytes() == corpus_file.read_bytes()


def test_the_verb_and_its_twin_in_python_write_the_same(cli, built, run, table, out):
    cli("export", built, "--drop", table, "--drop-issues", "labels", "--out", out)
    done = run.export(out.with_name("twin.jsonl"), table, drop_issues=["labels"])
    assert done.dropped == {"labels": 2}
    assert done.out.read_bytes() == out.read_bytes()
    run.undo_export(done.out, out.with_name("back.jsonl"))
    assert out.with_name("back.jsonl").stat().st_size > done.out.stat().st_size
    assert export_clean(run, Wish((table,)), out.with_name("third.jsonl")).kept == 34


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--drop", "TABLE"], "Name the run: influence export RUN --drop issues.parquet"),
        (["RUN"], "a table of issues (--drop FILE)"),
        (["RUN", "--undo", "TABLE"], "needs --out and no other option"),
        (["RUN", "--drop", "TABLE", "--where", "colour = 'red'"], "there is no column 'colour'"),
        (
            ["RUN", "--drop", "TABLE", "--drop-issues", "leek"],
            "there is no such check. The tables have the checks",
        ),
        (["RUN", "--drop", "TABLE", "--drop-issues", "copies,leak"], "run `influence issues` with --checks leak"),
        (["RUN", "--drop", "TABLE", "--drop-issues", " "], "--drop-issues names no check"),
        (["RUN", "--drop", "nowhere.parquet"], "There is no file nowhere.parquet"),
        (["--undo", "nowhere.jsonl"], "There is no file nowhere.decisions.parquet"),
    ],
)
def test_what_can_t_be_done_ends_with_code_2_and_writes_nothing(words, said, cli, built, table, out):
    given = [{"RUN": built, "TABLE": table}.get(word, word) for word in words]
    ended = cli("export", *given, "--out", out)
    assert ended.code == 2
    assert said in ended.told
    assert [path.name for path in out.parent.iterdir()] == ["issues.parquet"]


@pytest.mark.parametrize(
    ("words", "check"), [(["--drop-issues", "copies,poisoned"], "poisoned"), (["--relabel"], "mislabelled")]
)
def test_a_check_that_was_skipped_can_t_be_asked_for_and_why_it_was_is_said(
    words, check, cli, built, run, out, tmp_path
):
    skipped = {"poisoned": "no unwanted output is given.", "mislabelled": "the rows have no labels."}
    table = table_of(run, tmp_path / "issues.parquet", drop=range(6), skipped=skipped)
    ended = cli("export", built, "--drop", table, *words, "--out", out)
    assert ended.code == 2
    assert f"{words[0]}" in ended.told
    assert f"{check} was skipped when {table} was made: {skipped[check]}" in ended.told
    assert [path.name for path in tmp_path.iterdir()] == ["issues.parquet"]


def test_a_check_that_one_of_two_tables_skipped_is_taken_from_the_other(cli, built, run, out, tmp_path):
    tables = [
        table_of(run, tmp_path / "some.parquet", skipped={"leak": "no evaluation set is given."}),
        table_of(run, tmp_path / "leaks.parquet", leak=[3]),
    ]
    ended = cli("export", built, "--drop", tables[0], "--drop", tables[1], "--drop-issues", "leak", "--out", out)
    assert ended.code == 0, ended.err
    assert f"39 of 40 rows: {out}" in ended.told


def test_relabelling_by_a_table_that_looked_for_wrong_labels_and_found_none_changes_nothing(
    cli, built, run, out, tmp_path
):
    table = table_of(run, tmp_path / "issues.parquet", mislabelled=[])
    ended = cli("export", built, "--drop", table, "--relabel", "--out", out)
    assert ended.code == 0, ended.err
    assert "warning: nothing was changed" in ended.told


def test_a_table_of_a_run_says_which_checks_it_lacks(cli, built, out, tmp_path):
    table = tmp_path / "issues.parquet"
    assert cli("issues", built, "--checks", "all,empty", "--out", table).code == 0
    ended = cli("export", built, "--drop", table, "--drop-issues", "poisoned", "--out", out)
    assert ended.code == 2
    assert "poisoned was skipped" in ended.told
    assert "no unwanted output is given" in ended.told


def test_a_table_of_another_run_ends_with_code_2(cli, built, run, out, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(type(run.manifest), "rows_fingerprint", "e" * 64)
        table = table_of(run, tmp_path / "issues.parquet", drop=[0])
    ended = cli("export", built, "--drop", table, "--out", out)
    assert ended.code == 2
    assert f"is of another run: it was made of 40 rows with the fingerprint {'e' * 64}" in ended.told


def test_a_run_of_a_saved_data_set_is_exported_as_one_and_undone(cli, run_file, in_process, tmp_path):
    saved, out, back = tmp_path / "saved", tmp_path / "clean", tmp_path / "back"
    rows = [{"text": f"Bread number {row} is baked before dawn.", "kind": row % 2} for row in range(12)]
    datasets.Dataset.from_list(rows).save_to_disk(saved)
    assert cli("build", "-c", run_file(data=saved), "--out", tmp_path / "run").code == 0
    with influence.open(tmp_path / "run") as run:
        table = table_of(run, tmp_path / "issues.parquet", drop=[0, 5])
    ended = cli("export", tmp_path / "run", "--drop", table, "--out", out)
    assert (ended.code, datasets.load_from_disk(str(out)).to_list()) == (0, [*rows[1:5], *rows[6:]]), ended.err
    refused = cli("export", tmp_path / "run", "--drop", table, "--relabel", "--out", tmp_path / "other")
    assert refused.code == 2
    assert "has no column of labels" in refused.told
    undone = cli("export", "--undo", out, "--out", back)
    assert "12 rows, the original values of every row" in undone.told
    assert datasets.load_from_disk(str(back)).to_list() == rows
