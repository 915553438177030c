"""`influence query`: every form of an answer, every source of a question, and what can't be asked."""

import csv
import io
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import influence.api as runs
from influence.query.hits import COLUMNS
from influence.recipes import SIGN_RULE
from tests.cli.conftest import ASKED, COMPLETION, PROMPT, clean, settings


@pytest.fixture
def asked(tmp_path):
    """A file of three queries."""
    path = tmp_path / "q.jsonl"
    queries = [
        {"prompt": PROMPT, "completion": COMPLETION, "id": "river"},
        {"text": "In winter the harbour freezes", "id": "winter"},
        {"prompt": "", "completion": "A list keeps its items", "id": "list"},
    ]
    path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    return path


def test_a_table_is_printed_also_into_a_pipe_with_unit_sign_rule_and_both_sides(cli, built):
    ended = cli("query", built, *ASKED, "-k", 3)
    assert ended.code == 0
    shown = " ".join(ended.out.split())
    assert f"{PROMPT} → {COMPLETION.strip()}" in shown
    assert "nats per extra copy of the row" in shown
    assert SIGN_RULE in shown
    assert shown.index("Promoting") < shown.index("row-3 ") < shown.index("Opposing")
    assert "shelf-0" in shown
    assert "−" in shown
    assert "\x1b" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 120


def test_json_is_the_hits_of_the_library_and_nothing_else(cli, built):
    ended = cli("query", built, *ASKED, "-k", 3, "--format", "json")
    with runs.open(built) as run:
        assert json.loads(ended.out) == run.query(PROMPT, COMPLETION, k=3).to_dict()
    assert json.loads(ended.out)["sign"] == SIGN_RULE
    assert 0.9 < json.loads(ended.out)["body_coverage"] < 1


def test_every_line_of_jsonl_is_an_answer(cli, built, asked):
    ended = cli("query", built, "--queries", asked, "-k", 2, "--format", "jsonl")
    answers = [json.loads(line) for line in ended.out.splitlines()]
    assert [answer["query"]["id"] for answer in answers] == ["river", "winter", "list"]
    assert all(len(answer["promoting"]) <= 2 for answer in answers)


def test_flat_forms_have_a_row_a_hit_and_say_the_sign_rule_beside_the_data(cli, built, asked, tmp_path):
    ended = cli("query", built, "--queries", asked, "-k", 2, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(ended.out)))
    assert tuple(rows[0]) == COLUMNS
    assert {row["unit"] for row in rows} == {"nats per extra copy of the row"}
    assert SIGN_RULE in ended.told
    out = tmp_path / "hits.parquet"
    assert cli("query", built, "--queries", asked, "-k", 2, "--out", out).code == 0
    assert pq.read_table(out).num_rows == len(rows)


def test_a_page_is_whole(cli, built):
    ended = cli("query", built, *ASKED, "-k", 2, "--format", "html")
    assert ended.out.lower().startswith("<!doctype html>")
    assert SIGN_RULE.split(":")[0] in ended.out


@pytest.mark.parametrize("form", ["table", "json", "html"])
def test_out_writes_the_file_and_prints_no_data(cli, built, tmp_path, form):
    out = tmp_path / f"hits.{form}"
    ended = cli("query", built, *ASKED, "-k", 2, "--out", out, "--format", form)
    assert (ended.code, ended.out) == (0, "")
    assert f"Wrote {out}" in ended.told
    assert out.read_text() == cli("query", built, *ASKED, "-k", 2, "--format", form).out
    assert "\x1b" not in out.read_text()


def test_the_suffix_of_out_names_the_form(cli, built, tmp_path):
    cli("query", built, *ASKED, "-k", 1, "--out", tmp_path / "hits.json")
    assert json.loads((tmp_path / "hits.json").read_text())["promoting"]
    ended = cli("query", built, *ASKED, "--out", tmp_path / "hits.txt")
    assert ended.code == 2
    assert "its suffix names no format" in ended.told


def test_parquet_is_not_written_to_a_terminal(cli, built, terminal):
    terminal()
    ended = cli("query", built, *ASKED, "--format", "parquet")
    assert ended.code == 2
    assert "binary" in ended.told
    assert ended.out == ""


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "No query is given"),
        (["--prompt", "a"], "--prompt is given without --completion"),
        (["--completion", ""], "The completion is empty"),
        (["--prompt", "a", "--completion", ""], "The completion is empty"),
        (["--text", ""], "The text is empty"),
        (["--text", "a", "--completion", "b"], "--text is the whole query"),
        (["--label", "1"], "--label is the class of a --text"),
        (["--prompt", "a", "--queries", "q.jsonl"], "Both --queries and --prompt"),
        (["--completion", "a", "-k", "41"], "k is 41, but"),
        (["--completion", "\udcff\udcfe"], "half of a surrogate pair"),
        (["--completion", "a"], "has no scored token"),
        (["--completion", "The river", "--out", "nowhere/hits.json"], "The folder nowhere does not exist"),
        (["--completion", "word " * 2000], "positions"),
    ],
)
def test_what_cannot_be_asked_ends_with_2_and_says_why(cli, built, flags, told):
    ended = cli("query", built, *flags)
    assert ended.code == 2, ended.err
    assert told in ended.told
    assert "Traceback" not in ended.err
    assert ended.out == ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "q.jsonl holds no query"),
        (b"\n\n", "q.jsonl holds no query"),
        (b'{"completion": "ab cd"}\n{"completion"}\n', "q.jsonl, line 2: malformed JSON"),
        (b'{"completion": "ab cd"}\n\n"ab"\n', "q.jsonl, line 3: found a JSON str, expected one JSON object"),
        (b'{"completion": "caf\xe9"}\n', "q.jsonl, line 1: byte 20 of the line, 0xe9, is not valid UTF-8"),
        (b'{"prompt": "a"}\n', "q.jsonl, line 1: A query has prompt and completion, or text alone"),
        (b'{"completion": "a", "promt": "b"}\n', "q.jsonl, line 1: A query has no key 'promt': is 'prompt' meant?"),
        (b'{"completion": 3}\n', "q.jsonl, line 1: The query's completion is int 3"),
        (b'{"completion": "ab cd"}\n{"prompt": "a", "completion": ""}\n', "q.jsonl, line 2: The completion is empty"),
    ],
)
def test_a_file_of_queries_that_cannot_be_read_is_named_by_line(cli, built, tmp_path, content, told):
    path = tmp_path / "q.jsonl"
    path.write_bytes(content)
    ended = cli("query", built, "--queries", path)
    assert ended.code == 2
    assert told in ended.told
    assert "Traceback" not in ended.err


def test_a_file_of_queries_that_is_not_there_is_named(cli, built, tmp_path):
    assert "no.jsonl can't be read" in cli("query", built, "--queries", tmp_path / "no.jsonl").told
    assert "is a folder" in cli("query", built, "--queries", tmp_path).told


def test_queries_come_from_standard_input(cli, built, asked):
    before = os.dup(0)
    try:
        with asked.open("rb") as source:
            os.dup2(source.fileno(), 0)
        ended = cli("query", built, "--queries", "-", "-k", 1, "--format", "jsonl")
    finally:
        os.dup2(before, 0)
        os.close(before)
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 3


@pytest.mark.parametrize("there", [False, True])
def test_a_directory_without_a_run_is_named(cli, tmp_path, there):
    folder = tmp_path / "run"
    if there:
        folder.mkdir()
    ended = cli("query", folder, *ASKED)
    assert ended.code == 2
    assert f"{folder} holds no run" in ended.told


def test_an_unfinished_run_ends_with_4(cli, run_copy):
    shutil.rmtree(run_copy / "index")
    ended = cli("query", run_copy, *ASKED)
    assert ended.code == 4
    assert "Run the same build again" in ended.told


def test_a_classifier_is_asked_with_text_and_label(cli, model_folder, corpus_file, in_process, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(model_folder("bert"), corpus_file, "sequence_classification")))
    assert cli("build", "-c", path, "--out", tmp_path / "run").code == 0
    ended = cli("query", tmp_path / "run", "--text", "A set.", "--label", "2", "-k", 2, "--format", "json")
    answer = json.loads(ended.out)
    assert (answer["query"]["prompt"], answer["query"]["completion"]) == ("A set.", "2")
    assert answer["promoting"]
    ended = cli("query", tmp_path / "run", *ASKED)
    assert ended.code == 2
    assert "Traceback" not in ended.err


HOSTILE = "\x1b[31mred\x07 \x9b2J \u202etxet \x7f"


@pytest.fixture
def hostile(run_file, written, in_process, tmp_path):
    """A run whose ids, sources and texts would clear the screen."""
    rows = [
        {
            "text": f"A list keeps its items in order. {HOSTILE}{n}",
            "id": f"{HOSTILE}{n}",
            "source": HOSTILE,
            "uri": HOSTILE,
        }
        for n in range(4)
    ]
    runs.build(run_file(data=written(*rows)), tmp_path / "hostile")
    return tmp_path / "hostile"


@pytest.mark.parametrize("form", ["table", "json", "jsonl", "csv", "html"])
def test_nothing_in_the_data_steers_the_terminal(cli, hostile, terminal, form):
    argv = ("query", hostile, "--prompt", f"A list {HOSTILE}", "--completion", " keeps its items", "-k", 2)
    piped = cli(*argv, "--format", form).out
    terminal()
    shown = cli(*argv, "--format", form).out
    ours = {"\x1b"} if form == "table" else set()
    assert not set(shown) & ({"\x1b", "\x07", "\x9b", "\u202e", "\x7f"} - ours)
    assert "\x1b[31mred" not in shown
    assert "red" in shown
    if form == "json":
        assert json.loads(shown) == json.loads(piped)


def test_queries_from_a_pipe_are_answered_before_it_ends(built):
    """A producer that waits for its answers would otherwise wait for ever."""
    queries = ({"text": f"The river was named {'x' * number}", "id": str(number)} for number in range(40))
    taken = []

    def counted():
        for query in queries:
            taken.append(query["id"])
            yield query

    with runs.open(built) as run:
        answers = run.query_each(counted(), k=1)
        assert next(answers).query.id == "0"
        assert len(taken) < 20
        assert [answer.query.id for answer in answers] == [str(number) for number in range(1, 40)]


def test_a_bad_line_far_into_a_file_of_queries_is_named_and_leaves_no_file(cli, built, tmp_path):
    lines = [json.dumps({"text": f"The river was named {number}"}) for number in range(30)]
    (tmp_path / "q.jsonl").write_text("\n".join([*lines, '{"prompt": "a"}']) + "\n")
    ended = cli("query", built, "--queries", tmp_path / "q.jsonl", "-k", 1, "--out", tmp_path / "hits.jsonl")
    assert ended.code == 2
    assert "q.jsonl, line 31: A query has prompt and completion" in ended.told
    assert not (tmp_path / "hits.jsonl").exists()
    assert clean(tmp_path)


def test_a_row_with_columns_that_say_nothing_to_a_query_is_asked_and_they_are_named(cli, built, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"text": "The river was", "source": "web", "label": 1}) + "\n")
    ended = cli("query", built, "--queries", tmp_path / "q.jsonl", "-k", 1, "--format", "jsonl")
    assert (ended.code, len(ended.out.splitlines())) == (0, 1)
    assert "Columns of the queries that are not read: 'source', 'label'." in ended.told
    ended = cli("query", built, "--text", "The river was", "--label", "1")
    assert ended.code == 2
    assert "only a classifier uses" in ended.told


def test_a_csv_runs_nothing_in_a_spreadsheet_unless_its_texts_are_asked_for_raw(cli, built):
    ended = cli("query", built, *ASKED, "-k", 1, "--raw-csv")
    assert (ended.code, ended.out) == (2, "")
    assert "--raw-csv applies to CSV, and the format is table" in ended.told


def test_a_run_that_somebody_else_changed_is_asked_here_and_says_what_it_wanted(cli, run_copy):
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    config["cluster"] |= {"kind": "address", "address": "tcp://203.0.113.5:8786", "workers": None}
    (run_copy / "config.yaml").write_text(yaml.safe_dump(config))
    ended = cli("query", run_copy, "--completion", "The river was", "-k", 1)
    assert ended.code == 0
    assert "the scheduler tcp://203.0.113.5:8786: this process computes" in ended.told
    assert "--trust-run consents" in ended.told
    trusted = cli("query", run_copy, "--completion", "The river was", "-k", 1, "--trust-run")
    assert trusted.out == ended.out
    assert "--trust-run" not in trusted.told


def test_a_setting_that_was_changed_by_hand_ends_with_2_and_its_name(cli, run_copy):
    config = (run_copy / "config.yaml").read_text()
    (run_copy / "config.yaml").write_text(config.replace("seed: 0", "seed: 1", 1))
    ended = cli("query", run_copy, "--completion", "The river was", "-k", 1)
    assert ended.code == 2
    assert "seed is 1, and the run was built with 0" in ended.told


@pytest.mark.parametrize("verb", ["query", "score", "issues", "export", "groups", "select"])
def test_no_verb_puts_its_file_in_the_place_of_a_fifo_also_where_it_may_overwrite(cli, built, asked, tmp_path, verb):
    out = tmp_path / ("out.jsonl" if verb in ("export", "query", "select") else "out.parquet")
    os.mkfifo(out)
    argv = {
        "query": [*ASKED],
        "score": ["--self", "--overwrite"],
        "issues": ["--overwrite"],
        "export": ["--drop", asked, "--overwrite"],
        "groups": ["--queries", asked, "--by", "source", "--overwrite"],
        "select": ["--target", asked, "--top", 3, "--overwrite"],
    }[verb]
    ended = cli(verb, built, *argv, "--out", out)
    assert ended.code == 2
    assert "is a FIFO" in ended.told
    assert out.is_fifo()


@pytest.mark.parametrize("length", [251, 300])
def test_a_name_that_is_too_long_is_bad_input(cli, built, tmp_path, length):
    ended = cli("query", built, *ASKED, "--out", tmp_path / f"{'n' * length}.json")
    assert ended.code == 2
    assert "File name too long" in ended.told


def test_an_endless_chat_on_standard_input_is_refused(cli, built, monkeypatch, tmp_path):
    monkeypatch.setattr("influence.cli.queries.MAX_BYTES", 1000)
    (tmp_path / "chat.json").write_text("[\n" * 600)
    ended = cli("query", built, "--messages", tmp_path / "chat.json")
    assert ended.code == 2
    assert "more than 1,000 bytes, and holds one chat" in ended.told


def test_an_empty_name_of_a_file_is_said_to_be_empty(cli, built):
    ended = cli("query", built, "--queries", "")
    assert (ended.code, "The name of a file is empty" in ended.told) == (2, True)


def test_answers_take_the_place_of_nothing_that_is_read(cli, run_copy, asked, tmp_path):
    rows = tmp_path / "link.jsonl"
    with runs.open(run_copy) as run:
        os.link(run.config.data.path, rows)
        model = run.config.model.path
    for out, said in [
        (asked, "is what is read here"),
        (rows, "is what is read here"),
        (run_copy / "manifest.json", f"is a file of {run_copy}"),
        (Path(model) / "config.json", f"is a file of {model}"),
    ]:
        before = out.read_bytes()
        ended = cli("query", run_copy, "--queries", asked, "--out", out)
        assert (ended.code, out.read_bytes() == before) == (2, True)
        assert f"{said}, and answers would take its place" in ended.told
    for _ in range(2):
        assert cli("query", run_copy, "--queries", asked, "--out", tmp_path / "own.jsonl").code == 0
