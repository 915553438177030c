"""`influence groups`: its forms, its picture, and what it refuses."""

import json
import sys
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest

from influence.recipes import SIGN_RULE


@pytest.fixture
def dev(tmp_path):
    path = tmp_path / "dev.jsonl"
    texts = ("The river was named after a cartographer.", "In winter the harbour freezes.", "Sort the list in place.")
    path.write_text("".join(json.dumps({"text": text, "topic": text[:3]}) + "\n" for text in texts))
    return path


def test_the_table_has_unit_sign_rule_and_what_intervals_are_and_nothing_else_is_printed(cli, built, dev):
    ended = cli("groups", built, "--queries", dev, "--by", "source", "--replicates", 100)
    assert ended.code == 0
    printed = " ".join(ended.out.split())
    assert "influence on 3 queries" in printed
    assert all(f"shelf-{number}" in printed for number in range(3))
    assert f"In nats per extra copy of the row. {SIGN_RULE}" in printed
    assert "of a sum over queries, of a mean over queries and rows" in printed


def test_json_is_clean_and_the_same_as_what_is_written_to_a_file(cli, built, dev, tmp_path):
    flags = ["--queries", dev, "--replicates", 100, "--seed", 3]
    printed = json.loads(cli("groups", built, *flags, "--format", "json").out)
    out = tmp_path / "groups.parquet"
    figure = tmp_path / "bars.svg"
    ended = cli("groups", built, *flags, "--out", out, "--figure", figure)
    assert (ended.code, ended.out) == (0, "")
    assert f"Wrote {out}." in ended.told
    table = pq.read_table(out)
    assert table.column("sum").to_pylist() == [line["sum"] for line in printed["lines"]]
    assert set(table.column("unit").to_pylist()) == {"nats per extra copy of the row"}
    assert ElementTree.fromstring(figure.read_bytes()).tag.endswith("svg")
    assert not (tmp_path / "groups.parquet.parts").exists()
    again = cli("groups", built, *flags, "--out", out)
    assert again.code == 2
    assert "exists already" in again.told


def test_each_query_set_has_its_own_table_and_one_query_has_no_interval(cli, built, dev):
    ended = cli("groups", built, "--queries", dev, "--sets", "topic", "--replicates", 100)
    assert ended.code == 0
    assert "The: influence on 1 query" in " ".join(ended.out.split())
    assert "one query" in ended.out
    assert "nan" not in ended.out.lower()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--by", "shelf"], "There is no column 'shelf' to group rows by; there are source, label, uri"),
        (["--sets", "shelf"], "has no column 'shelf' to part queries by; it has text, topic"),
        (["--replicates", "7"], "--replicates 7: expected an even number from 100 to 20000"),
        (["--figure", "bars.png"], "written as .svg or .html"),
        (["--out", "groups.txt"], "its suffix names no format"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_computed(cli, built, dev, flags, said):
    ended = cli("groups", built, "--queries", dev, *flags)
    assert ended.code == 2
    assert said in ended.told
    assert "Traceback" not in ended.err


def test_queries_with_other_columns_are_refused_with_those_found_and_expected(cli, built, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text('{"body": "a", "topic": "b"}\n')
    ended = cli("groups", built, "--queries", other)
    assert ended.code == 2
    assert "other.jsonl" in ended.told
    assert "'body'" in ended.told
    assert "'text'" in ended.told


@pytest.mark.parametrize("verb", ["groups", "select"])
def test_without_matplotlib_a_figure_is_refused_before_anything_is_computed(
    cli, built, dev, tmp_path, monkeypatch, verb
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out = tmp_path / ("chosen.jsonl" if verb == "select" else "groups.csv")
    flags = ["--target", dev, "--top", 3] if verb == "select" else ["--queries", dev]
    ended = cli(verb, built, *flags, "--out", out, "--figure", tmp_path / "figure.svg")
    assert ended.code == 2
    assert "pip install 'influence[plots]'" in " ".join(ended.told.split())
    assert list(tmp_path.iterdir()) == [dev]
