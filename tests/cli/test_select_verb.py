"""`influence select`: what it writes, prints, warns of and refuses; and `--target` of `influence issues`."""

import json
from xml.etree import ElementTree

import pytest

from influence.recipes import SIGN_RULE


@pytest.fixture
def dev(tmp_path):
    path = tmp_path / "dev.jsonl"
    texts = ("Bread is baked before dawn.", "It is sold while it is warm.")
    path.write_text("".join(json.dumps({"text": text, "task": text[:2]}) + "\n" for text in texts))
    return path


def test_chosen_rows_are_written_and_the_summary_is_printed_with_unit_and_sign(cli, built, dev, tmp_path):
    out, figure = tmp_path / "chosen.jsonl", tmp_path / "plot.html"
    ended = cli("select", built, "--target", dev, "--top", "25%", "--out", out, "--figure", figure, "--sets", "task")
    assert ended.code == 0
    assert len(out.read_text().splitlines()) == 10
    printed = " ".join(ended.out.split())
    assert "random choice of as many" in printed
    assert "BM25's choice of as many" in printed
    assert "chosen for it" in printed
    assert f"in nats per extra copy of the row. {SIGN_RULE}" in printed
    assert f"Wrote {out}: 10 of 40 rows." in ended.told
    page = figure.read_text()
    assert ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6]) is not None
    told = json.loads(
        cli("select", built, "--target", dev, "--top", 3, "--out", out, "--overwrite", "--format", "json").out
    )
    assert (told["chosen"], told["rows"], told["expected"]) == (3, 40, pytest.approx(0.075))


@pytest.mark.parametrize(
    ("top", "said"),
    [
        ("0", "--top 0: expected 1 to 40 rows"),
        ("0%", "expected a share above 0% and up to 100%"),
        ("200%", "expected a share above 0% and up to 100%"),
        ("41", "--top 41: expected 1 to 40 rows"),
        ("some", "expected a share, as 5%, or a number of rows"),
    ],
)
def test_amounts_that_cannot_be_end_with_code_2_and_no_file(cli, built, dev, tmp_path, top, said):
    ended = cli("select", built, "--target", dev, "--top", top, "--out", tmp_path / "chosen.jsonl")
    assert ended.code == 2
    assert said in ended.told
    assert list(tmp_path.glob("chosen*")) == []


def test_an_empty_target_and_one_with_other_columns_are_refused_by_name(cli, built, tmp_path):
    target = tmp_path / "target.jsonl"
    target.write_text("")
    flags = ["--top", "5", "--out", tmp_path / "chosen.jsonl"]
    assert "target.jsonl is empty" in cli("select", built, "--target", target, *flags).told
    target.write_text('{"body": "a"}\n')
    ended = cli("select", built, "--target", target, *flags)
    assert ended.code == 2
    assert "Columns found: 'body'" in ended.told


def test_a_target_that_is_the_training_data_is_warned_of(cli, built, corpus_file, tmp_path):
    flags = ["--top", "5", "--no-bm25", "--out", tmp_path / "chosen.jsonl"]
    ended = cli("select", built, "--target", corpus_file, *flags)
    assert ended.code == 0
    assert "near-copies of target examples, and 5 of them were chosen" in ended.told
    assert "not compared" in ended.out


def test_issues_takes_a_written_target_and_says_by_what_rule_rows_are_poison(cli, built, tmp_path):
    out = tmp_path / "issues.parquet"
    flags = ["--checks", "poisoned", "--out", out]
    ended = cli("issues", built, "--target", " a cartographer", "--prompt", "The river was named after", *flags)
    assert ended.code == 0
    assert "null: all rows" in " ".join(ended.out.split())
    ended = cli("issues", built, *flags, "--overwrite")
    assert ended.code == 2
    assert "no unwanted output is given" in ended.told
    ended = cli("issues", built, *flags, "--overwrite", "--target", tmp_path / "gone.jsonl")
    assert "There is no file" in ended.told
