"""The bytes of JSON Lines, CSV and TSV files, row by row: what lets some rows go and leaves the others as they were.

The bytes of all chunks, joined, are the file. Rows are those that `records` reads, in the same order.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from influence.data.records import BOM, DELIMITERS, csv_rows, raw_lines
from influence.errors import DataError

TextFormat = Literal["jsonl", "csv", "tsv"]

JSON_SPACE = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of a file.

    Attributes:
        content: The bytes, with the end of the line.
        row: Whether they are a row; else a header or lines without anything.
    """

    content: bytes
    row: bool


def chunks(file: str, file_format: TextFormat) -> Iterator[Chunk]:
    """Yield a file's bytes, row by row.

    Raises:
        DataError: It can't be read.
    """
    return _csv_chunks(file, DELIMITERS[file_format]) if file_format in DELIMITERS else _json_chunks(file)


def _json_chunks(file: str) -> Iterator[Chunk]:
    for content, text in raw_lines(file):
        yield Chunk(content, bool(text.strip()))


def _csv_chunks(file: str, delimiter: str) -> Iterator[Chunk]:
    chunk: list[bytes] = []

    def lines() -> Iterator[str]:
        for content, text in raw_lines(file):
            chunk.append(content)
            yield text

    header = True
    for _ in csv_rows(file, lines(), delimiter):
        # A row begins at the first line with anything in it.
        while not chunk[0].removeprefix(BOM).strip(b"\r\n"):
            yield Chunk(chunk.pop(0), False)
        yield Chunk(b"".join(chunk), not header)
        chunk.clear()
        header = False
    for content in chunk:
        yield Chunk(content, False)


def csv_header(file: str, file_format: TextFormat) -> list[str]:
    """Return the columns of a CSV or TSV file."""
    return next(iter(csv_rows(file, (text for _, text in raw_lines(file)), DELIMITERS[file_format])))[1]


def with_label(content: bytes, file_format: TextFormat, column: str | int, label: str, where: str) -> bytes:
    """Return a row's bytes with another label; not a byte beside the label's value differs.

    A JSON number stays a number and a string a string, a quoted cell stays quoted.

    Args:
        content: The row's bytes.
        file_format: Of the file.
        column: The label's key, of JSON Lines; the number of its cell, of CSV.
        label: The new label as text.
        where: The row, for messages.

    Raises:
        DataError: The row has no label, or one that is a number where the new one is a name.
    """
    mark = BOM if content.startswith(BOM) else b""
    text = content[len(mark) :].decode()
    if file_format in DELIMITERS:
        changed = _csv_label(text, int(column), label, where, DELIMITERS[file_format])
    else:
        changed = _json_label(text, str(column), label, where)
    return mark + changed.encode()


def _json_label(text: str, key: str, label: str, where: str) -> str:
    span = _json_span(text, key)
    old = None if span is None else json.loads(text[slice(*span)])
    if span is None or isinstance(old, bool) or not isinstance(old, str | int):
        raise DataError(f"{where} has {'no' if old is None else repr(old)} {key!r}. Expected a label to be changed.")
    if isinstance(old, int):
        if not label.isascii() or not label.removeprefix("-").isdigit():
            raise DataError(
                f"{where}: {key!r} is the number {old}, and {label!r}, which it should become, is none. Relabel it by "
                "hand."
            )
        return text[: span[0]] + label + text[span[1] :]
    return text[: span[0]] + json.dumps(label, ensure_ascii=text.isascii()) + text[span[1] :]


def _json_span(text: str, name: str) -> tuple[int, int] | None:
    """Return where the value of a key of the outermost object stands; of a key that is there twice, the last one's.

    The text is an object that `json.loads` reads.
    """
    decoder = json.JSONDecoder()

    def past_space(place: int) -> int:
        while text[place] in JSON_SPACE:
            place += 1
        return place

    span = None
    place = past_space(past_space(0) + 1)
    while text[place] != "}":
        key, place = decoder.raw_decode(text, place)
        start = past_space(past_space(place) + 1)
        _, stop = decoder.raw_decode(text, start)
        if key == name:
            span = (start, stop)
        place = past_space(stop)
        if text[place] == ",":
            place = past_space(place + 1)
    return span


def _csv_label(text: str, number: int, label: str, where: str, delimiter: str) -> str:
    start, stop = _csv_span(text, number, delimiter)
    if text[start:stop] in ("", '""'):
        raise DataError(f"{where} has an empty label. Expected a label to be changed.")
    quoted = text[start] == '"' or any(sign in label for sign in delimiter + '"\r\n')
    cell = '"' + label.replace('"', '""') + '"' if quoted else label
    return text[:start] + cell + text[stop:]


def _csv_span(text: str, number: int, delimiter: str) -> tuple[int, int]:
    """Return where a cell of a row stands, its quotes included."""
    start = place = 0
    for passed in range(number + 1):
        start = place
        if text[start : start + 1] == '"':
            place = text.index('"', start + 1)
            while text[place + 1 : place + 2] == '"':
                place = text.index('"', place + 2)
            place += 1
        else:
            while place < len(text) and text[place] not in delimiter + "\r\n":
                place += 1
        if passed < number:
            place += 1
    return start, place


__all__ = ["Chunk", "TextFormat", "chunks", "csv_header", "with_label"]
