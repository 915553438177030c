"""Parquet files without the rows that go: the same schema, metadata, order and compression, and the same values.

The bytes are another file's: Parquet packs many rows into a page, and no row has bytes of its own. So a decision holds
the row's values, and what undoing gives back is every row's values under the same schema, held to a digest of them.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from influence.data.dataset import digest_files
from influence.diagnose.decisions import VALUES, CleanedFile, DecisionWriter, give_up
from influence.diagnose.verdicts import Verdict, Verdicts
from influence.errors import DataError
from influence.store.partial import PartialFile

BATCH = 2**13
"""Rows in memory at a time."""


def clean_parquet(
    source: Path, name: str, number: int, label: str | None, verdicts: Verdicts, out: Path, decisions: DecisionWriter
) -> CleanedFile:
    """Write one file without the rows that go, and with the labels that change; see `clean_text` for the arguments.

    Raises:
        DataError: A label that should change can't be the new one.
    """
    first = verdicts.passed
    values = hashlib.sha256()
    file = PartialFile(out)
    try:
        with pq.ParquetFile(source) as read, _Written(file, read) as written:
            for batch in _batches(read):
                _count(values, batch)
                before = verdicts.passed
                found = {verdict.row - before: verdict for verdict in verdicts.take(len(batch))}
                if found:
                    decisions.add_values(list(found.values()), number, batch.take(list(found)).to_struct_array())
                    batch = _cleaned(batch, label, found, source)
                written.add(batch)
        file.finish()
        file.publish()
    finally:
        file.discard()
    digest = digest_files([str(source)])
    return CleanedFile(name, verdicts.passed - first, digest, file.digest, values.hexdigest())


def restore_parquet(cleaned: Path, originals: "Originals", first: int, rows: int, out: Path) -> str:
    """Write one file with every row and label that it had.

    Args:
        cleaned: What was made of it.
        originals: The decisions about all files.
        first: The number of its first row.
        rows: Rows it had.
        out: Where to.

    Returns:
        The digest of its values.
    """
    values = hashlib.sha256()
    file = PartialFile(out)
    try:
        with pq.ParquetFile(cleaned) as read, _Written(file, read) as written:
            kept = _Kept(read)
            row = first
            for decided, action, original in originals.below(first + rows):
                for batch in (*kept.take(decided - row), original):
                    _count(values, batch)
                    written.add(batch)
                if action == "relabel":
                    list(kept.take(1))
                row = decided + 1
            for batch in kept.take(first + rows - row):
                _count(values, batch)
                written.add(batch)
        file.finish()
        file.publish()
    finally:
        file.discard()
    return values.hexdigest()


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
            for batch in _batches(file, ["row", "action", VALUES]):
                rows, actions = batch.column("row").to_pylist(), batch.column("action").to_pylist()
                values = pa.RecordBatch.from_struct_array(batch.column(VALUES))
                for place, (row, action) in enumerate(zip(rows, actions, strict=True)):
                    yield row, action, values.slice(place, 1)


class _Kept:
    """The rows of a cleaned file, as many at a time as are asked."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self._batches = _batches(file)
        self._held: pa.RecordBatch = pa.RecordBatch.from_pylist([], file.schema_arrow)

    def take(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows > 0:
            if not len(self._held):
                self._held = next(self._batches)
            found = self._held.slice(0, rows)
            self._held = self._held.slice(len(found))
            rows -= len(found)
            yield found


class _Written:
    """A Parquet file with another's schema, metadata and compression, whose row groups are of BATCH rows."""

    def __init__(self, file: PartialFile, like: pq.ParquetFile) -> None:
        codecs: Any = "snappy"
        if like.num_row_groups:
            group = like.metadata.row_group(0)
            columns = [group.column(number) for number in range(group.num_columns)]
            codecs = {column.path_in_schema: column.compression.replace("UNCOMPRESSED", "NONE") for column in columns}
        self._writer = pq.ParquetWriter(file, like.schema_arrow, compression=codecs)
        self._held: list[pa.RecordBatch] = []
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._rows += len(batch)
        if self._rows >= BATCH:
            self._write()

    def _write(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_batches(self._held).combine_chunks())
        self._held, self._rows = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write()
            self._writer.close()
        else:
            give_up(self._writer)


def _batches(file: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    # One row group after another: Arrow can't join the dictionaries that nested columns have in each.
    for group in range(file.num_row_groups):
        yield from file.iter_batches(BATCH, row_groups=[group], columns=columns)


def _cleaned(batch: pa.RecordBatch, label: str | None, found: Mapping[int, Verdict], source: Path) -> pa.RecordBatch:
    """Return some rows without those that go and with the labels that change; `found` is by place."""
    if label is not None and any(verdict.action == "relabel" for verdict in found.values()):
        number = batch.schema.get_field_index(label)
        labels = batch.column(number).to_pylist()
        for place, verdict in found.items():
            if verdict.action == "relabel":
                labels[place] = _as_is(labels[place], str(verdict.new_label), label, verdict, source)
        batch = batch.set_column(number, batch.schema.field(number), pa.array(labels, batch.schema.field(number).type))
    stay = [place for place in range(len(batch)) if place not in found or found[place].action == "relabel"]
    return batch.take(pa.array(stay, pa.int64()))


def _as_is(old: Any, new: str, column: str, verdict: Verdict, source: Path) -> Any:
    """Return a new label as what the old one is, a number or a text."""
    if isinstance(old, str):
        return new
    if isinstance(old, int) and new.isascii() and new.removeprefix("-").isdigit():
        return int(new)
    raise DataError(
        f"{source}, row {verdict.row} (counted from 0, id {verdict.id!r}): {column!r} is {old!r}, which can't become "
        f"{new!r}. Relabel it by hand."
    )


def _count(values: Any, batch: pa.RecordBatch) -> None:
    """Take rows into a digest of values, the same whatever batches they come in."""
    for record in batch.to_pylist():
        values.update(repr(record).encode(errors="backslashreplace"))


__all__ = ["Originals", "clean_parquet", "restore_parquet"]
