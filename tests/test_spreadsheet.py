"""CSV that a spreadsheet opens runs nothing, and texts on a page are seen whole."""

import csv
import io

import pytest

from influence.control_characters import show_controls, shown
from influence.spreadsheet import safe_cell, write_csv

FORMULAS = (
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "  =1",
    "\x00=1",
    "＝1",
    "＋1",
    "-",
    "\x7f",
    "\u202e=1",
    "\u200b\ufeff@x",
)
HARMLESS = ("", "a=b", "plain", "'=1", "-5", "+3.25", "-1e-9", ".5", "12", "a\tb", "–5", "(=1)")


@pytest.mark.parametrize("text", FORMULAS)
def test_a_text_that_a_spreadsheet_might_run_has_an_apostrophe_in_front(text):
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [*HARMLESS, -5, -0.25, None, True])
def test_numbers_and_other_texts_stay_as_they_are(value):
    assert safe_cell(value) is value


@pytest.mark.parametrize("raw", [False, True])
def test_csv_has_the_texts_as_they_are_where_it_is_asked_for_raw(raw):
    text = write_csv(("text", "score"), [{"text": "=1", "score": -0.5}, {"text": 'a "b"', "score": None}], raw=raw)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [["text", "score"], ["=1" if raw else "'=1", "-0.5"], ['a "b"', ""]]


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("text", ["a\r=1+1", "a\n=1", "a\r\n=1", "\r", 'a"\r"b'])
def test_an_end_of_line_in_a_text_begins_no_row(text, raw):
    written = write_csv(("id", "text"), [{"id": "x", "text": text}, {"id": "y", "text": "b"}], raw=raw)
    rows = list(csv.reader(io.StringIO(written, newline="")))
    assert rows == [["id", "text"], ["x", text if raw else safe_cell(text)], ["y", "b"]]
    assert written.endswith("y,b\n")


def test_every_character_that_can_not_be_seen_is_shown_as_a_symbol():
    assert show_controls("a\x00\x1b[31m\x7f\x85\u202eb\u2066\n\tc\ud800") == (
        "a␀␛[31m␡⟨U+0085⟩⟨U+202E⟩b⟨U+2066⟩\n\tc⟨U+D800⟩"
    )
    assert show_controls("naïve 数 \U0001f600 e\u0301") == "naïve 数 \U0001f600 e\u0301"
    assert shown(-0.5) == -0.5
