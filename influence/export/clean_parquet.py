"""Parquet files without the rows that go: the same schema, metadata, order and compression, and the same values.

The bytes are another file's: Parquet packs many rows into a page. See `clean_columns`.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow.parquet as pq

from influence.artifacts.partial import PartialFile
from influence.data.identity import digest_files
from influence.export.clean_columns import (
    BATCH,
    Gathered,
    Labels,
    Originals,
    Values,
    clean_batch,
    parquet_batches,
    restored_batches,
)
from influence.export.decisions import CleanedFile, DecisionWriter, give_up
from influence.export.verdicts import Verdicts


def clean_parquet(
    source: Path, name: str, number: int, label: str | None, verdicts: Verdicts, out: Path, decisions: DecisionWriter
) -> CleanedFile:
    """Write one file without the rows that go, and with the labels that change; see `clean_text` for the arguments.

    Raises:
        DataError: A label that should change can't be the new one.
    """
    first, values = verdicts.passed, Values()
    file = PartialFile(out)
    try:
        with pq.ParquetFile(source) as read, _Written(file, read) as written:
            labels = Labels.of(read.schema_arrow, label)
            for batch in parquet_batches(read):
                values.add(batch)
                written.add(clean_batch(batch, number, labels, verdicts, decisions, str(source)))
        file.finish()
        file.publish()
    finally:
        file.discard()
    digest = digest_files([str(source)])
    return CleanedFile(name, verdicts.passed - first, digest, file.digest, values.digest)


def restore_parquet(cleaned: Path, originals: Originals, first: int, rows: int, out: Path) -> str:
    """Write one file with every row and label that it had; see `restored_batches`.

    Returns:
        The digest of its values.
    """
    values = Values()
    file = PartialFile(out)
    try:
        with pq.ParquetFile(cleaned) as read, _Written(file, read) as written:
            for batch in restored_batches(parquet_batches(read), originals, first, rows):
                values.add(batch)
                written.add(batch)
        file.finish()
        file.publish()
    finally:
        file.discard()
    return values.digest


class _Written:
    """A Parquet file with another's schema, metadata and compression; row groups of BATCH rows, or BATCH_BYTES."""

    def __init__(self, file: PartialFile, like: pq.ParquetFile) -> None:
        codecs: Any = "snappy"
        if like.num_row_groups:
            group = like.metadata.row_group(0)
            columns = [group.column(number) for number in range(group.num_columns)]
            codecs = {column.path_in_schema: column.compression.replace("UNCOMPRESSED", "NONE") for column in columns}
        self._writer = pq.ParquetWriter(file, like.schema_arrow, compression=codecs)
        self._rows = Gathered(self._writer.write_table, like.schema_arrow, BATCH)
        self.add = self._rows.add

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._rows.write()
            self._writer.close()
        else:
            give_up(self._writer)


__all__ = ["clean_parquet", "restore_parquet"]
