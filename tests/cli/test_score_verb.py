"""`influence score`: what it writes, says and refuses, and how a killed one goes on; and `--where` of both verbs."""

import json
import signal

import pyarrow.parquet as pq
import pytest

import influence.api as runs
from influence.recipes import SIGN_RULE
from tests.cli.conftest import ASKED, COMPLETION, PROMPT
from tests.kills import killed, say


@pytest.fixture
def asked(tmp_path):
    """A file of two queries."""
    path = tmp_path / "q.jsonl"
    queries = [{"prompt": PROMPT, "completion": COMPLETION, "id": "river"}, {"text": "In winter it freezes"}]
    path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    return path


def test_scores_are_written_with_unit_and_sign_rule_and_no_data_is_printed(cli, built, asked, tmp_path):
    out = tmp_path / "s.parquet"
    ended = cli("score", built, "--queries", asked, "--out", out)
    assert (ended.code, ended.out) == (0, "")
    assert f"Scores in nats per extra copy of the row. {SIGN_RULE}" in ended.told
    assert f"Wrote {out}: 40 rows, scored for 2 queries." in ended.told
    assert "40 rows × 2 queries" in ended.told
    with runs.open(built) as run:
        queries = [json.loads(line) for line in asked.read_text().splitlines()]
        found = pq.read_table(out)["scores"].to_pylist()
        for expected, scores in zip(run.score(queries).T.tolist(), found, strict=True):
            assert scores == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_only_the_top_rows_that_meet_a_condition_are_kept_where_that_is_asked(cli, built, asked, tmp_path):
    out = tmp_path / "s.parquet"
    flags = ["--keep", "top", "-k", 3, "--where", "source = 'shelf-0' and row > 2"]
    ended = cli("score", built, "--queries", asked, "--out", out, *flags)
    assert ended.code == 0
    hits = pq.read_table(out).to_pylist()
    with runs.open(built) as run:
        assert all(run.meta([hit["row"]])[0]["source"] == "shelf-0" and hit["row"] > 2 for hit in hits)
    assert {(hit["query_id"], hit["side"]) for hit in hits} >= {("river", "promoting"), ("river", "opposing")}


def test_self_scores_each_row_for_itself(cli, built, tmp_path):
    out = tmp_path / "self.parquet"
    ended = cli("score", built, "--self", "--out", out)
    assert "40 rows, scored for themselves" in ended.told
    with runs.open(built) as run:
        assert pq.read_table(out)["score"].to_numpy() == pytest.approx(run.self_influence(), rel=1e-5)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "give --queries FILE, or --self"),
        (["--self", "--queries", "Q"], "Both --queries and --self"),
        (["--self", "--keep", "top"], "--keep top applies to queries"),
        (["--queries", "Q", "-k", "3"], "-k 3 applies to --keep top"),
        (["--queries", "Q", "--keep", "best"], "'best' is not one of"),
        (["--queries", "Q", "--where", "tokens >"], "can't be read: syntax error"),
        (["--queries", "Q", "--where", "sauce = 1"], "no column 'sauce'. Columns: row (number), id (text)"),
        (["--queries", "Q", "--where", "1 = 1); copy metadata to 'x.csv'; select (1"], "another statement"),
        (["--queries", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--queries", "Q", "--out", "s.csv"], "must end in .parquet"),
        (["--queries", "Q", "--out", "nowhere/s.parquet"], "The folder nowhere doesn't exist"),
    ],
)
def test_what_cannot_be_scored_exits_with_2_and_no_traceback(cli, built, asked, tmp_path, monkeypatch, flags, told):
    monkeypatch.chdir(tmp_path)
    given = [str(asked) if flag == "Q" else flag for flag in flags]
    ended = cli("score", built, *(given if "--out" in given else [*given, "--out", "s.parquet"]))
    assert (ended.code, ended.out) == (2, "")
    assert told in ended.told
    assert "Traceback" not in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


def test_a_query_may_ask_only_of_rows_that_meet_a_condition(cli, built):
    ended = cli("query", built, *ASKED, "-k", 4, "--where", "row between 10 and 20", "--format", "json")
    hits = json.loads(ended.out)
    rows = [hit["row"] for side in ("promoting", "opposing") for hit in hits[side]]
    assert rows
    assert all(10 <= row <= 20 for row in rows)
    assert "11 of 40 rows pass" in ended.told
    ended = cli("query", built, *ASKED, "-k", 9, "--where", "row < 4")
    assert ended.code == 0
    assert "warning: k is 9 rows on each side, and only 4 rows meet" in ended.told
    ended = cli("query", built, *ASKED, "--where", "tokens > 99999")
    assert (ended.code, ended.out) == (2, "")
    assert "none of the 40 rows" in ended.told


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_scan_ended_in_the_middle_goes_on_with_the_same_command(cli, built, asked, tmp_path, number):
    out, parts, log = tmp_path / "s.parquet", tmp_path / "s.parquet.parts", tmp_path / "log"
    words = ("score", built, "--queries", asked, "--out", out)
    code = killed(say, words, log, "influence.engine.stage:Task.save", 2, number)
    assert code == (4 if number == signal.SIGINT else -number)
    assert [path.name for path in parts.glob("queries-*.json")] == ["queries-00000.json"]
    assert not out.exists()
    assert ("Interrupted. Partial results are in" in log.read_text()) == (number == signal.SIGINT)
    assert "Traceback" not in log.read_text()
    asked_again = (parts / "queries-00000.safetensors").stat().st_mtime_ns
    killed_before = killed(say, words, log, "influence.engine.stage:Task.save", 1)
    assert killed_before == -signal.SIGKILL
    assert (parts / "queries-00000.safetensors").stat().st_mtime_ns == asked_again
    assert cli(*words).code == 0
    assert pq.read_table(out).num_rows == 40
    assert not parts.exists()
