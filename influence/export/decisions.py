"""What an export did, row by row, and enough to undo it: `clean.decisions.parquet` beside `clean.jsonl`.

    row, id             which row, counted from 0 over all files
    action              drop or relabel
    reason, score       the checks that flagged it, and the first one's score; higher is a stronger case
    suggestion          in the words of the table of issues
    old_label, new_label        of relabel
    run                 fingerprint of the run's rows
    file                which of the files, from 0
    offset, written     where in the cleaned file the row's bytes would begin, and how many bytes stand there for it now
    original            the row's own bytes

Of Parquet and saved data the last three are one column `values` instead, a struct with the row's own values. Rows are
in order.
What the files were and are, by their digests, is in the file's metadata.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from index.strict_json import parse_json
from influence.artifacts.digest import sha256
from influence.artifacts.partial import PartialFile
from influence.errors import QueryError, StoreError
from influence.export.verdicts import Verdict

KEY = b"influence.decisions"
VERSION = 1
BLOCK_BYTES = 8 << 20
"""Bytes of originals that wait to be written."""
BLOCK_ROWS = 2**14

COMMON = (
    pa.field("row", pa.int64(), False),
    pa.field("id", pa.string(), False),
    pa.field("action", pa.string(), False),
    pa.field("reason", pa.string(), False),
    pa.field("score", pa.float32()),
    pa.field("suggestion", pa.string()),
    pa.field("old_label", pa.string()),
    pa.field("new_label", pa.string()),
    pa.field("run", pa.string(), False),
    pa.field("file", pa.int32(), False),
)
BYTES = (pa.field("offset", pa.int64(), False), pa.field("written", pa.int64(), False))
ORIGINAL = pa.field("original", pa.large_binary(), False)
VALUES = "values"


@dataclass(frozen=True)
class CleanedFile:
    """One file of the data.

    Attributes:
        name: Its path, relative to the folder that holds all of them.
        rows: Rows it had.
        original: SHA-256 of its bytes; of what `datasets` saved or loaded, the digest of the whole data set.
        cleaned: SHA-256 of the bytes of what was made of it.
        values: Of Parquet and Arrow, the digest of its rows' values; see `clean_columns.Values`.
    """

    name: str
    rows: int
    original: str
    cleaned: str
    values: str | None = None


@dataclass(frozen=True)
class About:
    """What a file of decisions says of itself.

    Attributes:
        run: Fingerprint of the run's rows.
        data: Digest of the run's data set.
        format: jsonl, csv, parquet or saved.
        folder: Whether what was cleaned is a folder of several files.
        files: Its files, in the order of their rows.
        beside: Of `saved`, the files that hold no rows: name to content, as before the export.
    """

    run: str
    data: str
    format: str
    folder: bool
    files: tuple[CleanedFile, ...]
    beside: dict[str, str] = field(default_factory=dict)

    @property
    def of_columns(self) -> bool:
        """Whether rows have values and no bytes of their own."""
        return self.format in ("parquet", "saved")


class DecisionWriter:
    """Writes decisions as they come; a few megabytes wait in memory.

    Args:
        path: The file.
        run: Fingerprint of the run's rows.
        values: Of Parquet and saved data, the schema of its rows.
    """

    def __init__(self, path: Path, run: str, values: pa.Schema | None = None) -> None:
        kept = (pa.field(VALUES, pa.struct(list(values)), False),) if values is not None else (*BYTES, ORIGINAL)
        self._schema = pa.schema([*COMMON, *kept])
        self._run = run
        self._file = PartialFile(path)
        self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        self._lines: list[dict[str, Any]] = []
        self._tables: list[pa.Table] = []
        self._rows = self._bytes = 0

    def add(self, verdict: Verdict, file: int, offset: int, written: int, original: bytes) -> None:
        """Take down what became of a row of a text file."""
        kept = {"offset": offset, "written": written, "original": original}
        self._lines.append({**self._line(verdict, file), **kept})
        self._added(1, len(original))

    def add_values(self, verdicts: Sequence[Verdict], file: int, values: pa.StructArray) -> None:
        """Take down what became of some rows of columns, whose own values these are."""
        lines = [self._line(verdict, file) for verdict in verdicts]
        table = pa.Table.from_pylist(lines, pa.schema(COMMON))
        self._tables.append(table.append_column(self._schema.field(VALUES), values))
        self._added(len(lines), values.nbytes)

    def finish(self, about: About) -> None:
        """Write what is left and what the file says of itself, and give it its name."""
        self._write()
        told = {"version": VERSION, **asdict(about)}
        self._writer.add_key_value_metadata({KEY: json.dumps(told).encode(errors="backslashreplace")})
        self._writer.close()
        self._file.finish()
        self._file.publish()

    def _line(self, verdict: Verdict, file: int) -> dict[str, Any]:
        score = None if isnan(verdict.score) else verdict.score
        return {**asdict(verdict), "score": score, "run": self._run, "file": file}

    def _added(self, rows: int, size: int) -> None:
        # A row group for each of many small batches would make the file's own metadata grow with the rows.
        self._rows, self._bytes = self._rows + rows, self._bytes + size
        if self._bytes >= BLOCK_BYTES or self._rows >= BLOCK_ROWS:
            self._write()

    def _write(self) -> None:
        if self._lines:
            self._writer.write_table(pa.Table.from_pylist(self._lines, self._schema))
        if self._tables:
            self._writer.write_table(pa.concat_tables(self._tables).combine_chunks())
        self._lines, self._tables, self._rows, self._bytes = [], [], 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            give_up(self._writer)
        self._file.discard()


def give_up(writer: pq.ParquetWriter) -> None:
    """Close a writer whose file goes: left alone, it would write to it when it is collected, and complain."""
    with suppress(Exception):
        writer.close()
    writer.is_open = False


def decisions_path(out: Path) -> Path:
    """Return where the decisions about a cleaned file, or folder of files, are."""
    return out.with_name(f"{out.stem}.decisions.parquet")


def read_decisions_about(path: Path) -> About:
    """Return what a file of decisions says of itself.

    Raises:
        QueryError: There is no such file, or it is something else.
    """
    expected = "Expected the file that `influence export` wrote beside the cleaned one, which is what to name."
    if not path.is_file():
        raise QueryError(f"There is no file {path}. {expected}")
    try:
        with pq.ParquetFile(path) as file:
            told = (file.metadata.metadata or {}).get(KEY)
    except (OSError, pa.ArrowException) as error:
        raise QueryError(f"{path} can't be read as Parquet: {error}. {expected}") from None
    if told is None:
        raise QueryError(f"{path} is a Parquet file, but holds no decisions of an export. {expected}")
    try:
        found = parse_json(told)
    except ValueError as error:
        raise QueryError(f"{path}: what it says of its decisions isn't JSON: {error}. {expected}") from None
    if found.pop("version") != VERSION:
        raise StoreError(f"{path} was written by another version of this format. Export again.")
    return About(**{**found, "files": tuple(CleanedFile(**file) for file in found["files"])})


def changed_file(cleaned: Path, about: About) -> tuple[Path, str, str] | None:
    """Return the first cleaned file that isn't as it was written, with the digest it has and the one it had.

    Raises:
        QueryError: One isn't there.
    """
    for file in about.files:
        path = cleaned / file.name if about.folder else cleaned
        if not path.is_file():
            raise QueryError(f"There is no file {path}, which {decisions_path(cleaned)} is about.")
        digest = sha256(path)
        if digest != file.cleaned:
            return path, digest, file.cleaned
    return None


class Decisions:
    """The decisions of a file of them, one of the cleaned files after another, a row group in memory at a time."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._lines = _lines(path, [*columns, "file"])
        self._next = next(self._lines, None)

    def of(self, file: int) -> Iterator[dict[str, Any]]:
        """Yield the decisions about one of the files, in the order of their rows; files are asked in their order."""
        while self._next is not None and self._next["file"] == file:
            found = self._next
            self._next = next(self._lines, None)
            yield found


def _lines(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as source:
        for group in range(source.num_row_groups):
            yield from source.read_row_group(group, columns=list(columns)).to_pylist()


__all__ = [
    "VALUES",
    "About",
    "CleanedFile",
    "DecisionWriter",
    "Decisions",
    "changed_file",
    "decisions_path",
    "give_up",
    "read_decisions_about",
]
