"""Rows of columns, in Parquet or Arrow: without those that go, with the labels that change, and back again.

No row has bytes of its own there. So a decision holds the row's values, and what undoing gives back is every row's
values under the same schema, held to a digest of them.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from influence.data.classes import class_names
from influence.errors import DataError
from influence.export.decisions import VALUES, DecisionWriter
from influence.export.verdicts import Verdict, Verdicts

BATCH = 2**13
"""Rows in memory at a time, at most."""
BATCH_BYTES = 16 << 20
"""Bytes of rows in memory at a time, about; at least a row."""
COUNTED = 256
"""Rows that are Python's at a time."""


@dataclass(frozen=True)
class Labels:
    """The column of labels.

    Attributes:
        column: Its name.
        classes: Of a column of numbers that names its classes (`ClassLabel`), these, from 0; else none.
    """

    column: str
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, schema: pa.Schema, column: str | None) -> "Labels | None":
        """Return a schema's column of labels; None where there is none."""
        if column is None:
            return None
        return cls(column, class_names(schema, column))

    def changed(self, old: Any, new: str) -> str | int | None:
        """Return a new label as what the old one is, a number or a text; a class's name as its number.

        Digits are a number where the old label is one: tables of issues name a number's class so. None if it can't be.
        """
        if isinstance(old, str):
            return new
        if not isinstance(old, int):
            return None
        if new.isascii() and new.removeprefix("-").isdigit():
            return int(new) if not self.classes or 0 <= int(new) < len(self.classes) else None
        return self.classes.index(new) if new in self.classes else None


class Values:
    """A digest of rows' values, the same whatever batches they come in."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows in."""
        for part in portions(batch, COUNTED):
            for record in part.to_pylist():
                self._hash.update(repr(record).encode(errors="backslashreplace"))

    @property
    def digest(self) -> str:
        """Hex SHA-256 of the rows so far."""
        return self._hash.hexdigest()


def clean_batch(
    batch: pa.RecordBatch,
    number: int,
    labels: Labels | None,
    verdicts: Verdicts,
    decisions: DecisionWriter,
    source: str,
) -> pa.RecordBatch:
    """Return the next rows without those that go and with the labels that change.

    Args:
        batch: Rows that follow on those that have passed.
        number: Which of the files they are of.
        labels: The column of labels.
        verdicts: What happens to which rows.
        decisions: Takes down what is done.
        source: Where the rows are from, for messages.

    Raises:
        DataError: A label that should change can't be the new one.
    """
    before = verdicts.passed
    found = {verdict.row - before: verdict for verdict in verdicts.take(len(batch))}
    if not found:
        return batch
    decisions.add_values(list(found.values()), number, batch.take(list(found)).to_struct_array())
    if labels is not None and any(verdict.action == "relabel" for verdict in found.values()):
        batch = _relabelled(batch, labels, found, source)
    stay = [place for place in range(len(batch)) if place not in found or found[place].action == "relabel"]
    return batch.take(pa.array(stay, pa.int64()))


def _relabelled(batch: pa.RecordBatch, labels: Labels, found: Mapping[int, Verdict], source: str) -> pa.RecordBatch:
    number = batch.schema.get_field_index(labels.column)
    held = batch.column(number).to_pylist()
    for place, verdict in found.items():
        if verdict.action != "relabel":
            continue
        new = labels.changed(held[place], str(verdict.new_label))
        if new is None:
            raise DataError(
                f"{source}, row {verdict.row} (counted from 0, id {verdict.id!r}): {labels.column!r} is "
                f"{held[place]!r}, which can't become {verdict.new_label!r}. Relabel it by hand."
            )
        held[place] = new
    field = batch.schema.field(number)
    return batch.set_column(number, field, pa.array(held, field.type))


class Originals:
    """The rows that decisions are about, with their own values, in order; a row group is in memory at a time."""

    def __init__(self, path: Path) -> None:
        self._lines = self._read(path)
        self._next = next(self._lines, None)

    def below(self, row: int) -> Iterator[tuple[int, str, pa.RecordBatch]]:
        """Yield (row, action, the row's values) of what is left of the decisions about rows before one."""
        while self._next is not None and self._next[0] < row:
            found = self._next
            self._next = next(self._lines, None)
            yield found

    @staticmethod
    def _read(path: Path) -> Iterator[tuple[int, str, pa.RecordBatch]]:
        with pq.ParquetFile(path) as file:
            for batch in parquet_batches(file, ["row", "action", VALUES]):
                rows, actions = batch.column("row").to_pylist(), batch.column("action").to_pylist()
                values = pa.RecordBatch.from_struct_array(batch.column(VALUES))
                for place, (row, action) in enumerate(zip(rows, actions, strict=True)):
                    yield row, action, values.slice(place, 1)


def restored_batches(
    cleaned: Iterator[pa.RecordBatch], originals: Originals, first: int, rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of one file as they were.

    Args:
        cleaned: The rows of what was made of it.
        originals: The decisions about all files.
        first: The number of its first row.
        rows: Rows it had.
    """
    kept = _Kept(cleaned)
    row = first
    for decided, action, original in originals.below(first + rows):
        yield from kept.take(decided - row)
        yield original
        if action == "relabel":
            list(kept.take(1))
        row = decided + 1
    yield from kept.take(first + rows - row)


class _Kept:
    """The rows of a cleaned file, as many at a time as are asked."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held: pa.RecordBatch | None = None

    def take(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows > 0:
            held = self._held if self._held is not None and len(self._held) else next(self._batches)
            found = held.slice(0, rows)
            self._held = held.slice(len(found))
            rows -= len(found)
            yield found


class Gathered:
    """Rows that come in small batches and are written in larger ones.

    Args:
        write: Is given the rows, a table in one piece.
        schema: Of the rows.
        most: Rows that are written at a time, or BATCH_BYTES of them, or a little more.
    """

    def __init__(self, write: Callable[[pa.Table], None], schema: pa.Schema, most: int) -> None:
        self._write_table, self._schema, self._most = write, schema, most
        self._held: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take rows, and write what is held once there is enough."""
        self._held.append(batch)
        self._rows += len(batch)
        self._bytes += batch.nbytes
        if self._rows >= self._most or self._bytes >= BATCH_BYTES:
            self.write()

    def write(self) -> None:
        """Write what is held."""
        if self._rows:
            self._write_table(pa.Table.from_batches(self._held, self._schema).combine_chunks())
        self._held, self._rows, self._bytes = [], 0, 0


def portions(batch: pa.RecordBatch, most: int) -> Iterator[pa.RecordBatch]:
    """Yield rows in parts of at most some, and of about BATCH_BYTES."""
    size = _rows_of(most, batch.nbytes, len(batch))
    for first in range(0, len(batch), size):
        yield batch.slice(first, size)


def _rows_of(most: int, size: int, rows: int) -> int:
    """Return how many rows are about BATCH_BYTES, at most `most`, where some rows have a size in bytes."""
    return max(1, min(most, BATCH_BYTES * rows // max(1, size)))


def parquet_batches(file: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield a Parquet file's rows, some columns or all."""
    # One row group after another: Arrow can't join the dictionaries that nested columns have in each.
    for group in range(file.num_row_groups):
        told = file.metadata.row_group(group)
        size = _rows_of(BATCH, told.total_byte_size, told.num_rows)
        yield from file.iter_batches(size, row_groups=[group], columns=columns)


__all__ = [
    "BATCH",
    "BATCH_BYTES",
    "Gathered",
    "Labels",
    "Originals",
    "Values",
    "clean_batch",
    "parquet_batches",
    "portions",
    "restored_batches",
]
