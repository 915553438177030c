"""JSON Lines and CSV without the rows that go: the bytes of all others stay as they were, and it can be undone.

A decision holds the row's bytes and the place where they were in the cleaned file, so undoing reads no JSON and no CSV.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from influence.artifacts.partial import PartialFile
from influence.data.raw_records import TextFormat, chunks, csv_header, with_label
from influence.data.records import DELIMITERS
from influence.export.decisions import CleanedFile, Decisions, DecisionWriter
from influence.export.verdicts import Verdicts

COPIED = 1 << 20
"""Bytes copied at a time."""


def clean_text(
    source: Path,
    name: str,
    number: int,
    file_format: TextFormat,
    label: str | None,
    verdicts: Verdicts,
    out: Path,
    decisions: DecisionWriter,
) -> CleanedFile:
    """Write one file without the rows that go, and with the labels that change.

    Args:
        source: The file.
        name: What it is called among the files.
        number: Which of the files it is.
        file_format: Of the file.
        label: The column of labels; None where there is none.
        verdicts: What happens to which rows.
        out: Where to.
        decisions: Takes down what is done.

    Raises:
        DataError: It can't be read, or a label that should change isn't there.
    """
    first = verdicts.passed
    column: str | int = label or ""
    if label is not None and file_format in DELIMITERS:
        column = csv_header(str(source), file_format).index(label)
    read = hashlib.sha256()
    file = PartialFile(out)
    try:
        for chunk in chunks(str(source), file_format):
            read.update(chunk.content)
            found = verdicts.take(1) if chunk.row else ()
            if not found:
                file.write(chunk.content)
                continue
            (verdict,), kept = found, b""
            if verdict.action == "relabel" and verdict.new_label is not None:
                where = f"{source}, row {verdict.row} (counted from 0, id {verdict.id!r})"
                kept = with_label(chunk.content, file_format, column, verdict.new_label, where)
            decisions.add(verdict, number, file.size, len(kept), chunk.content)
            file.write(kept)
        file.finish()
        file.publish()
    finally:
        file.discard()
    return CleanedFile(name, verdicts.passed - first, read.hexdigest(), file.digest)


def restore_text(cleaned: Path, decisions: Decisions, number: int, out: Path) -> str:
    """Write one file as it was before it was cleaned.

    Returns:
        The SHA-256 of its bytes.
    """
    file = PartialFile(out)
    try:
        with cleaned.open("rb") as stream:
            for line in decisions.of(number):
                for block in _up_to(stream, line["offset"]):
                    file.write(block)
                stream.seek(line["written"], 1)
                file.write(line["original"])
            while block := stream.read(COPIED):
                file.write(block)
        file.finish()
        file.publish()
    finally:
        file.discard()
    return file.digest


def _up_to(stream: BinaryIO, offset: int) -> Iterator[bytes]:
    """Yield what is left of a stream before an offset."""
    left = offset - stream.tell()
    while left > 0:
        block = stream.read(min(COPIED, left))
        assert block, "the cleaned file's digest was that of the decisions, so it is long enough"
        left -= len(block)
        yield block


__all__ = ["clean_text", "restore_text"]
