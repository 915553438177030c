"""What can be wrong with a data set, and that the message says what, where and what to do."""

import gzip
import os
import re

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from influence.data import records
from influence.data.columns import Columns
from influence.data.dataset import DataSettings, open_rows
from influence.data.example import Example
from influence.errors import DataError


def complaint(path, **settings) -> str:
    with pytest.raises(DataError) as caught:
        list(open_rows(DataSettings(path=str(path), **settings)).examples())
    return str(caught.value)


def complaint_of_check(path, kind="causal_lm", **settings) -> str:
    rows = open_rows(DataSettings(path=str(path), **settings))
    with pytest.raises(DataError) as caught:
        rows.check(kind)
    return str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_named(textfile, name, content):
    message = complaint(textfile(name, content))
    assert name in message
    assert "is empty" in message


def test_a_header_or_schema_alone_is_no_data(textfile, tmp_path):
    assert "columns but no rows" in complaint(textfile("rows.csv", "text,id\n"))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    assert "columns but no rows" in complaint(tmp_path / "rows.parquet")
    datasets.Dataset.from_dict({"text": []}).save_to_disk(tmp_path / "saved")
    assert "has no rows" in complaint(tmp_path / "saved")


def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path):
    message = complaint(tmp_path / "absent.jsonl")
    assert f"nothing at {tmp_path / 'absent.jsonl'}" in message
    assert "check data.path" in message
    assert "absent" in complaint(tmp_path / "absent*.csv")


def test_a_folder_that_datasets_did_not_write_is_refused_with_the_pattern_to_give(tmp_path):
    message = complaint(tmp_path)
    assert "save_to_disk did not write" in message
    assert str(tmp_path / "*.jsonl") in message


def test_a_saved_data_set_without_the_split_lists_those_it_has(tmp_path):
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "saved")
    message = complaint(tmp_path / "saved")
    assert "no split 'train'" in message
    assert "test" in message


def test_a_broken_saved_data_set_is_named(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    assert f"{tmp_path / 'saved'} looks like a saved data set but can't be opened" in complaint(tmp_path / "saved")


def test_a_hub_that_cannot_be_reached_says_what_was_looked_for(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = complaint("somebody/some-corpus", name="en", split="test")
    assert "'somebody/some-corpus', configuration 'en', split 'test'" in message
    assert "Couldn't reach the hub" in message


def test_a_hub_data_set_is_read_like_a_saved_one(monkeypatch):
    hub = datasets.Dataset.from_dict({"text": ["a", "b"], "extra": [1, 2]})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, split: hub if path == "corpus" else None)
    rows = open_rows(DataSettings(path="corpus"))
    assert [e.text for e in rows.examples()] == ["a", "b"]
    assert rows.digest() == hub._fingerprint


def test_an_unknown_suffix_asks_for_the_format(textfile):
    message = complaint(textfile("rows.txt", "hello"))
    assert "rows.txt" in message
    assert "data.format" in message
    assert complaint(textfile("more.txt", '{"text": 1}'), format="jsonl").endswith("int 1, expected a string.")


def test_a_malformed_json_line_is_named_by_file_and_line(textfile):
    message = complaint(textfile("rows.jsonl", '{"text": "a"}\n\n{"text": "b"\n'))
    assert "rows.jsonl, line 3: malformed JSON" in message
    assert "Expected one JSON object a line" in message


def test_a_json_array_is_told_to_be_lines(textfile):
    message = complaint(textfile("rows.json", '[{"text": "a"}]'))
    assert "line 1" in message
    assert "one JSON array" in message


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.json", '[\n {"text": "a"}\n]\n', "is one JSON array: write its objects one a line (jq"),
        ("rows.json", '{\n "text": "a"\n}\n', "has its objects over several lines"),
        ("rows.jsonl", '{"text": "a"}\r{"text": "b"}\r', "lines end with CR alone"),
        ("rows.csv", "text,id\ra,1\rb,2\r", "lines end with CR alone"),
        ("rows.csv", "text\tid\na\t1\n", "separated by tabs. Expected commas: set data.format: tsv"),
        ("rows.csv", "text;id\na;1\n", "separated by semicolons"),
        ("rows.tsv", "text,id\na,1\n", "separated by commas. Expected tabs: set data.format: csv"),
        ("rows.csv", "text\na\n".encode("utf-16"), "is UTF-16 (byte order mark FF FE), expected UTF-8"),
        ("rows.jsonl", '{"text": "a"}\n'.encode("utf-16-be"), "is UTF-16BE (every second byte is 0)"),
        ("rows.jsonl", '{"text": "a"}\n'.encode("utf-32"), "is UTF-32 (byte order mark FF FE 00 00)"),
    ],
)
def test_a_file_of_another_form_is_told_what_it_is_and_how_to_convert_it(textfile, name, content, said):
    message = complaint(textfile(name, content))
    assert said in message
    assert name in message


def test_a_named_column_that_only_a_later_line_has_is_read(jsonl):
    path = jsonl([{"text": "a"}, {"text": "b"}, {"text": "c", "origin": "web"}])
    rows = open_rows(DataSettings(path=str(path), columns=Columns(source="origin")))
    assert [example.source for example in rows.examples()] == [None, None, "web"]
    again = open_rows(DataSettings(path=str(path), columns=rows.columns))
    assert [example.source for example in again.examples()] == [None, None, "web"]
    assert "no column 'origins'" in complaint(path, columns=Columns(source="origins"))


def test_labels_that_only_a_later_line_has_are_read_also_when_the_run_is_opened_again(jsonl):
    path = jsonl([{"input_ids": [5, 6, 7]}, {"input_ids": [5, 6, 7], "labels": [-100, -100, 7]}])
    rows = open_rows(DataSettings(path=str(path)))
    for opened in (rows, open_rows(DataSettings(path=str(path), columns=rows.columns))):
        assert [example.content.labels for example in opened.examples()] == [None, (-100, -100, 7)]


def test_tab_separated_rows_are_read_as_csv_is(textfile):
    rows = open_rows(DataSettings(path=str(textfile("rows.tsv", 'id\ttext\n1\t"a, and\tb"\n2\tc,d\n'))))
    assert [(example.id, example.text) for example in rows.examples()] == [("1", "a, and\tb"), ("2", "c,d")]
    assert "line 2: found 1 cells" in complaint(textfile("more.tsv", "id\ttext\n1\n"))


def test_half_a_surrogate_pair_is_named_by_line(textfile):
    path = textfile("rows.jsonl", '{"text": "\\ud83d\\ude00 is whole"}\n{"text": "\\ud83d"}\n')
    assert "rows.jsonl, line 2: a \\u escape is half of a surrogate pair" in complaint(path)


@pytest.mark.parametrize(
    ("name", "content"), [("rows.jsonl", b'{"text": "a"}\n{"text": "caf\xe9"}\n'), ("rows.csv", b"text\ncaf\xe9\n")]
)
def test_invalid_utf8_is_named_by_file_and_line(textfile, name, content):
    message = complaint(textfile(name, content))
    assert f"{name}, line 2: byte" in message
    assert "0xe9" in message
    assert "not valid UTF-8" in message


def test_a_ragged_csv_row_is_named_by_the_line_it_starts_on(textfile):
    long = complaint(textfile("rows.csv", 'text,id\n"two\nlines",1\nb,2,3\n'))
    assert "rows.csv, line 4: found 3 cells, expected 2" in long
    assert "rows.csv, line 3: found 1 cells, expected 2" in complaint(textfile("rows.csv", "text,id\na,1\nb\n"))


def test_an_unclosed_csv_quote_is_named_by_its_line(textfile):
    assert "rows.csv, line 3: malformed CSV" in complaint(textfile("rows.csv", 'text,id\na,1\n"b,2\n'))


def test_a_csv_header_with_a_name_twice_is_refused(textfile):
    assert "'text' twice" in complaint(textfile("rows.csv", "text,text\na,b\n"))


def test_csv_cannot_hold_lists(textfile):
    assert "CSV can't hold" in complaint(textfile("rows.csv", 'input_ids\n"[1, 2]"\n'))


def test_a_file_that_is_no_parquet_is_named(textfile):
    assert "rows.parquet is not a Parquet file" in complaint(textfile("rows.parquet", "text\n"))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved"])
def test_missing_columns_list_those_found(kind, tmp_path, jsonl, textfile):
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        jsonl([{"body": "a", "title": "b"}])
    elif kind == "csv":
        textfile("rows.csv", "body,title\na,b\n")
    elif kind == "parquet":
        pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), path)
    else:
        datasets.Dataset.from_dict({"body": ["a"], "title": ["b"]}).save_to_disk(path)
    message = complaint(path)
    assert "Columns found: 'body', 'title'" in message
    assert "data.columns" in message


def test_a_prompt_alone_is_no_shape(jsonl):
    message = complaint(jsonl([{"prompt": "a"}]))
    assert "'prompt' and 'completion'" in message


def test_columns_of_two_shapes_ask_which_is_meant(jsonl):
    message = complaint(jsonl([{"text": "a", "input_ids": [1]}]))
    assert "text, input_ids" in message
    assert "data.columns.input_ids: null" in message


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"text": None}, "'text' is null"),
        ({}, "'text' is missing"),
        ({"text": 3}, "'text' is int 3, expected a string"),
        ({"text": ["a"]}, "'text' is list ['a'], expected a string"),
        ({"text": "a", "source": {"file": 1}}, "'source' is dict"),
        ({"text": "a", "label": 1.5}, "'label' is float 1.5"),
        ({"text": "a", "label": True}, "'label' is bool True"),
    ],
)
def test_a_value_that_is_no_text_is_named_by_file_and_line(jsonl, record, said):
    assert f"rows.jsonl, line 2: {said}" in complaint(jsonl([{"text": "a"}, record]))


def test_a_null_prompt_or_completion_is_named(jsonl):
    whole = {"prompt": "a", "completion": "b"}
    assert "line 2: 'prompt' is null" in complaint(jsonl([whole, {**whole, "prompt": None}]))
    assert "line 2: 'completion' is null" in complaint(jsonl([whole, {**whole, "completion": None}]))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"input_ids": "1 2"}, "expected a list of token numbers"),
        ({"input_ids": [1, 2.0]}, "float 2.0, expected integers"),
        ({"input_ids": [1, True]}, "bool True, expected integers"),
        ({"input_ids": [1, -1]}, "holds -1"),
        ({"input_ids": [1, 2**31]}, "holds 2147483648"),
        ({"input_ids": [1, 2], "labels": [1]}, "1 entries for 2 input_ids"),
        ({"input_ids": [1, 2], "labels": [1, -7]}, "holds -7"),
    ],
)
def test_tokens_that_are_none_are_named_by_file_and_line(jsonl, record, said):
    message = complaint(jsonl([{"input_ids": [1]}, record]))
    assert "rows.jsonl, line 2" in message
    assert said in message


@pytest.mark.parametrize(
    "messages", ["hello", [], ["hello"], [{"role": "user"}], [{"content": "hello"}], [{"role": 1, "content": "a"}]]
)
def test_messages_that_are_none_are_named_by_file_and_line(jsonl, messages):
    good = [{"role": "user", "content": "a"}]
    assert "rows.jsonl, line 2" in complaint(jsonl([{"messages": good}, {"messages": messages}]))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "saved"])
def test_an_id_given_twice_is_named_with_both_rows(kind, tmp_path, jsonl, textfile):
    path = tmp_path / f"rows.{kind}"
    if kind == "jsonl":
        jsonl([{"text": "a", "id": 1}, {"text": "b", "id": "it's"}, {"text": "c", "id": "it's"}])
    elif kind == "csv":
        textfile("rows.csv", "text,id\na,1\nb,it's\nc,it's\n")
    elif kind == "parquet":
        pq.write_table(pa.table({"text": list("abc"), "id": ["1", "it's", "it's"]}), path)
    else:
        datasets.Dataset.from_dict({"text": list("abc"), "id": ["1", "it's", "it's"]}).save_to_disk(path)
    message = complaint_of_check(path)
    assert "rows 1 and 2 (counted from 0)" in message
    assert '"it\'s"' in message
    open_rows(DataSettings(path=str(path), columns=Columns(id=None))).check("causal_lm")


def test_duplicates_are_found_across_blocks_of_rows(jsonl):
    records = ({"text": "a", "id": row % 2500} for row in range(2501))
    assert "rows 0 and 2500" in complaint_of_check(jsonl(records))


@pytest.mark.parametrize("second", [{"text": "b"}, {"text": "b", "id": None}, {"text": "b", "id": ""}])
def test_a_row_without_an_id_where_others_have_one_is_named(jsonl, second):
    assert "line 2: 'id' is null, empty or missing" in complaint(jsonl([{"text": "a", "id": "1"}, second]))


def test_an_id_that_only_later_rows_have_is_named(jsonl):
    assert "line 2: 'id' is 'x', but the first row has none" in complaint(
        jsonl([{"text": "a"}, {"text": "b", "id": "x"}])
    )


def test_a_saved_data_sets_nulls_are_named_by_row(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a", None], "id": ["1", "2"]})
    rows.save_to_disk(tmp_path / "text")
    assert "row 1 (counted from 0): 'text' is null" in complaint_of_check(tmp_path / "text")
    assert "row 1 (counted from 0): 'text' is null" in complaint(tmp_path / "text")
    datasets.Dataset.from_dict({"text": ["a", "b"], "id": [None, 2]}).save_to_disk(tmp_path / "id")
    assert "row 0 (counted from 0): 'id' is null" in complaint_of_check(tmp_path / "id")


def test_a_null_far_into_a_saved_data_set_is_named_by_its_row(tmp_path):
    texts = ["a"] * 2345
    texts[2222] = None
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved")
    assert "row 2222 (counted from 0): 'text' is null" in complaint_of_check(tmp_path / "saved")


def test_a_classifier_needs_a_label_in_every_row(jsonl):
    message = complaint_of_check(jsonl([{"text": "a", "id": "1"}]), "sequence_classification")
    assert "no label column" in message
    assert "'text', 'id'" in message
    path = jsonl([{"text": "a", "label": 1}, {"text": "b", "label": None}])
    assert "row 1 (counted from 0): 'label' is null" in complaint_of_check(path, "sequence_classification")


def test_a_classifier_reads_no_prompts(jsonl):
    path = jsonl([{"prompt": "a", "completion": "b", "label": 1}])
    assert "shape 'prompt'" in complaint_of_check(path, "sequence_classification")


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_to_set(jsonl, monkeypatch, textfile):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", textfile("no-folder", ""))
    assert "HF_DATASETS_CACHE" in complaint(jsonl([{"text": "unwritten"}]))


def test_a_query_must_be_text_that_utf8_holds():
    with pytest.raises(DataError, match="completion is int 3, expected a string"):
        Example.query("a", 3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="half of a surrogate pair at character 1"):
        Example.query("a\ud83d", "b")


def test_a_query_without_an_id_is_named_by_its_content():
    assert Example.query("a", "b").id == Example.query("a", "b").id != Example.query("ab", "").id
    assert Example.query("a", "b", id="mine").id == "mine"
    assert Example.query("a", "b").row == -1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.jsonl", gzip.compress(b"{}", mtime=0), "compressed by gzip, expected lines of text: unpack it"),
        ("rows.csv", b"\x28\xb5\x2f\xfd\x04", "compressed by zstd"),
        ("rows.csv", b"PK\x03\x04\x14\x00\x06\x00", "a zip archive or an Excel workbook.*save the sheet as CSV"),
        ("rows.tsv", b"\xd0\xcf\x11\xe0\xa1\xb1", r"an old Office document \(\.xls\)"),
        ("rows.jsonl", b"PAR1\x15\x04\x15", r"is Parquet, expected lines of text.*data\.format: parquet"),
        ("rows.parquet", b"ARROW1\0\0" + b"\0" * 40, "an Arrow file, expected Parquet"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        ("rows.jsonl", '{"text": "a"}\n'.encode("utf-32-le"), "is UTF-32LE .*iconv -f UTF-32LE"),
        ("rows.csv", "text|id\na|1\n", "separated by bars"),
    ],
)
def test_a_file_whose_suffix_is_another_kinds_is_named_for_what_it_holds(textfile, name, content, said):
    assert re.search(said, complaint(textfile(name, content)))


def test_a_command_in_a_message_runs_nothing_that_a_files_name_holds(textfile):
    path = textfile("$(touch x); rows.jsonl", '[{"text": "a"}]')
    assert f"jq -c '.[]' '{path}' > rows.jsonl" in complaint(path)


def test_a_line_without_an_end_is_refused_before_it_fills_memory(textfile, monkeypatch):
    monkeypatch.setattr(records, "LONGEST_LINE", 1000)
    path = textfile("rows.jsonl", '{"text": "a"}\n' + "\0" * 5000)
    assert f"{path}, line 2 has more than 1,000 bytes" in complaint(path)
    assert "more than 1,000 bytes" in complaint(textfile("zeros.jsonl", b"\0" * 5000))


@pytest.mark.parametrize("kind", ["a FIFO", "a link that leads nowhere", "a circle of symbolic links"])
def test_what_is_no_file_is_said_to_be_it_and_not_to_be_missing(tmp_path, kind):
    path = tmp_path / "rows.jsonl"
    if kind == "a FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(path if "circle" in kind else tmp_path / "gone")
    assert f"{path} is {kind}. Rows are read several times" in complaint(path)


def test_a_dash_is_no_data_set_of_the_hub():
    assert "nothing at -" in complaint("-")


def test_a_parquet_schema_with_a_name_twice_is_refused(tmp_path):
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, tmp_path / "rows.parquet")
    assert "the schema has 'text' twice" in complaint(tmp_path / "rows.parquet")


def test_messages_that_are_json_in_a_text_are_told_to_be_a_list(jsonl):
    path = jsonl([{"messages": '[{"role": "user", "content": "a"}]'}])
    assert "looks like JSON in a text: write the list itself" in complaint(path)
