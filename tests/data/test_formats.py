"""Every format and every shape of row gives the same examples."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence.data.columns import Columns
from influence.data.dataset import DataSettings, open_rows
from influence.data.example import MessagesContent, PromptContent, TextContent, TokenContent

# Each of these is something else to a reader that guesses types.
TEXTS = [
    "2020-01-01",
    "NA",
    "  spaces, and\nline ends\r\n kept \n",
    "007",
    'quotes " and commas , ünïcode ☃',
    "true",
    "",
    "null",
]
RECORDS = [
    {"id": f"2021-01-{row + 1:02d}", "text": text, "source": f"00{row}", "uri": f"f:{row}"}
    for row, text in enumerate(TEXTS)
]
TALK = [
    {"role": "user", "content": "2020-01-01"},
    {"role": "assistant", "content": "A date.", "tool_calls": [{"name": "calendar"}]},
]


def write_csv(path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, fieldnames=list(RECORDS[0]))
        writer.writeheader()
        writer.writerows(RECORDS)
    return path


def write(kind: str, folder: Path) -> Path:
    path = folder / f"rows.{kind}"
    if kind == "csv":
        return write_csv(path)
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    elif kind == "saved":
        datasets.Dataset.from_list(RECORDS).save_to_disk(path)
    elif kind == "saved-splits":
        rows = datasets.Dataset.from_list(RECORDS)
        datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(path)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved", "saved-splits"])
def test_every_format_gives_back_the_strings_of_the_file(kind, tmp_path):
    rows = open_rows(DataSettings(path=str(write(kind, tmp_path))))
    rows.check("causal_lm")
    assert rows.shape == "text"
    assert len(rows) == len(TEXTS)
    assert [(e.row, e.id, e.text, e.content, e.source, e.uri) for e in rows.examples()] == [
        (row, record["id"], record["text"], TextContent(record["text"]), record["source"], record["uri"])
        for row, record in enumerate(RECORDS)
    ]


def test_one_row_and_a_range_are_those_of_the_whole(jsonl):
    rows = open_rows(DataSettings(path=str(jsonl({"text": f"text {row}"} for row in range(600)))))
    whole = list(rows.examples())
    assert list(rows.examples(250, 520)) == whole[250:520]
    assert rows.example(599) == whole[599]
    assert list(rows.examples(7, 7)) == []
    with pytest.raises(IndexError, match="has 600"):
        list(rows.examples(0, 601))


def test_prompts_keep_their_completion_apart(jsonl):
    path = jsonl([{"prompt": "The capital is", "completion": " Paris"}, {"prompt": "", "completion": ""}])
    rows = open_rows(DataSettings(path=str(path)))
    assert rows.shape == "prompt"
    assert rows.example(0).content == PromptContent("The capital is", " Paris")
    assert rows.example(0).text == "The capital is Paris"
    assert rows.example(1).content == PromptContent("", "")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_messages_keep_the_keys_each_one_has(kind, tmp_path):
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text(json.dumps({"messages": TALK}))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{"messages": TALK}]), path)
    else:
        datasets.Dataset.from_list([{"messages": TALK}]).save_to_disk(path)
    example = open_rows(DataSettings(path=str(path))).example(0)
    assert example.content == MessagesContent(tuple(TALK))
    assert example.text == "user: 2020-01-01\nassistant: A date."


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_tokens_come_back_as_they_are(kind, tmp_path):
    records = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [], "labels": []}]
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        datasets.Dataset.from_list(records).save_to_disk(path)
    rows = open_rows(DataSettings(path=str(path)))
    assert rows.shape == "input_ids"
    assert [e.content for e in rows.examples()] == [TokenContent((1, 2, 3), (-100, 2, 3)), TokenContent((), ())]


def test_tokens_without_labels_have_none(jsonl):
    assert open_rows(DataSettings(path=str(jsonl([{"input_ids": [5]}])))).example(0).content == TokenContent((5,), None)


def test_a_number_and_its_spelling_stay_two_labels(jsonl):
    rows = open_rows(DataSettings(path=str(jsonl([{"text": "a", "label": 1}, {"text": "b", "label": "1"}]))))
    rows.check("sequence_classification")
    assert rows.has_label
    assert [e.label for e in rows.examples()] == [1, "1"]


def test_integer_ids_become_strings(jsonl):
    rows = open_rows(DataSettings(path=str(jsonl([{"text": "a", "id": 7}, {"text": "b", "id": "8"}]))))
    rows.check("causal_lm")
    assert [e.id for e in rows.examples()] == ["7", "8"]


def test_rows_without_ids_are_named_by_their_content(jsonl):
    rows = open_rows(DataSettings(path=str(jsonl([{"text": "a"}, {"text": "b"}, {"text": "a"}]))))
    rows.check("causal_lm")
    first, second, third = (e.id for e in rows.examples())
    assert first == third != second
    assert len(first) == 16
    int(first, 16)


def test_what_the_first_row_leaves_out_is_kept_where_later_rows_have_it(jsonl):
    path = jsonl([{"text": "a"}, {"text": "b", "source": "shelf", "label": "good", "other": 1}])
    rows = open_rows(DataSettings(path=str(path)))
    assert rows.has_label
    assert [(e.source, e.label) for e in rows.examples()] == [(None, None), ("shelf", "good")]


def test_columns_can_have_other_names_or_be_left_out(jsonl):
    path = jsonl([{"body": "a", "prompt": "p", "completion": "c", "id": None, "where": "shelf"}])
    columns = Columns(text="body", prompt=None, id=None, source="where")
    example = open_rows(DataSettings(path=str(path), columns=columns)).example(0)
    assert (example.text, example.source) == ("a", "shelf")


def test_a_pattern_reads_its_files_in_the_order_of_their_names(jsonl, tmp_path):
    jsonl([{"text": "second"}], "b.jsonl")
    jsonl([{"text": "first"}], "a.jsonl")
    rows = open_rows(DataSettings(path=str(tmp_path / "*.jsonl")))
    assert [e.text for e in rows.examples()] == ["first", "second"]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(textfile):
    path = textfile("rows.jsonl", b'\xef\xbb\xbf{"text": "a"}\n\n  \n{"text": "b"}')
    assert [e.text for e in open_rows(DataSettings(path=str(path))).examples()] == ["a", "b"]


@pytest.mark.parametrize("kind", ["jsonl", "saved"])
def test_a_limit_keeps_the_first_rows(kind, tmp_path):
    rows = open_rows(DataSettings(path=str(write(kind, tmp_path)), limit=3))
    assert [e.text for e in rows.examples()] == TEXTS[:3]
    assert len(open_rows(DataSettings(path=str(write(kind, tmp_path)), limit=99))) == len(TEXTS)


def test_a_csv_cell_may_be_longer_than_pythons_limit(textfile):
    limit = csv.field_size_limit()
    path = textfile("rows.csv", "text\n" + "word " * 100_000 + "\n")
    assert len(open_rows(DataSettings(path=str(path))).example(0).text) == 500_000
    assert csv.field_size_limit() == limit


def test_a_changed_file_is_read_anew_even_with_its_old_length_and_date(jsonl):
    path = jsonl([{"text": "old"}])
    settings, before = DataSettings(path=str(path)), path.stat()
    old = open_rows(settings)
    digest = old.digest()
    jsonl([{"text": "new"}])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    new = open_rows(settings)
    assert (old.example(0).text, new.example(0).text) == ("old", "new")
    assert new.digest() != digest


def test_a_file_is_said_to_be_read_only_when_it_is(jsonl, caplog):
    caplog.set_level(logging.INFO, "influence")
    settings = DataSettings(path=str(jsonl([{"text": "a"}])))
    open_rows(settings)
    assert caplog.messages == [f"Reading {settings.path} (1 file(s), text) into the cache of datasets."]
    caplog.clear()
    open_rows(settings)
    assert caplog.messages == []


def test_another_process_reopens_the_cache_and_prints_nothing(jsonl, own_cache):
    path = jsonl([{"text": "a"}, {"text": "b"}])
    open_rows(DataSettings(path=str(path)))
    stands = {file: file.stat().st_mtime_ns for file in own_cache.rglob("*.arrow")}
    program = (
        "import sys; from influence.data.dataset import *; rows = open_rows(DataSettings(path=sys.argv[1]));"
        "assert [e.text for e in rows.examples()] == ['a', 'b']"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        env={**os.environ, "HF_DATASETS_CACHE": str(own_cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert {file: file.stat().st_mtime_ns for file in own_cache.rglob("*.arrow")} == stands


def test_opening_prints_nothing_and_leaves_progress_bars_as_they_were(jsonl, capfd):
    shown = datasets.are_progress_bars_disabled()
    open_rows(DataSettings(path=str(jsonl([{"text": "quiet"}]))))
    assert capfd.readouterr() == ("", "")
    assert datasets.are_progress_bars_disabled() == shown


@pytest.mark.parametrize("kind", ["jsonl", "saved", "saved-splits"])
def test_the_digest_is_that_of_the_content_wherever_it_lies(kind, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    here = open_rows(DataSettings(path=str(write(kind, tmp_path))))
    there = open_rows(DataSettings(path=str(write(kind, tmp_path / "elsewhere"))))
    assert here.digest() == there.digest()
    assert len(here.digest()) == 64
