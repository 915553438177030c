"""Checks of whole columns: no nulls where there must be none, and no id given twice."""

import tempfile
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from influence.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

MEMORY_LIMIT = "1GB"
"""What the search for duplicate ids may hold; beyond it, it spills to a temporary folder."""


def check_nulls(dataset: "Dataset", columns: Iterable[str], place: str) -> None:
    """Check that columns hold no null.

    Raises:
        DataError: One does; the message names the column and its first such row.
    """
    for column in columns:
        row = 0
        for chunk in dataset.data.column(column).chunks:
            if chunk.null_count:
                row += chunk.is_null().index(True).as_py()
                raise DataError(
                    f"{place}, row {row} (counted from 0): {column!r} is null. Expected a value in every row."
                )
            row += len(chunk)


def check_ids(dataset: "Dataset", column: str, place: str) -> None:
    """Check that no two rows were given the same id.

    Raises:
        DataError: Two were; the message names the id and the first two rows that have it.
    """
    import duckdb

    with tempfile.TemporaryDirectory(prefix="influence-ids-") as spill, duckdb.connect() as connection:
        connection.execute("SET enable_progress_bar = false")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.execute("SET temp_directory = ?", [spill])
        twice = _first(
            connection, dataset, column, "SELECT id FROM ids GROUP BY id HAVING count(*) > 1 ORDER BY min(row) LIMIT 1"
        )
        if twice:
            (identifier,) = twice[0]
            same = _first(
                connection, dataset, column, "SELECT row FROM ids WHERE id = ? ORDER BY row LIMIT 2", identifier
            )
            (first,), (second,) = same
            raise DataError(
                f"{place}: rows {first} and {second} (counted from 0) were both given the id {identifier!r}. "
                "Ids must be unique: change one, or leave the column out with data.columns.id: null."
            )


def _first(connection: Any, dataset: "Dataset", column: str, question: str, *values: Any) -> list[tuple[Any, ...]]:
    import pyarrow as pa

    ids = dataset.data.column(column)
    schema = pa.schema([("row", pa.int64()), ("id", ids.type)])

    def batches() -> Iterator[pa.RecordBatch]:
        row = 0
        for chunk in ids.chunks:
            numbers = pa.array(range(row, row + len(chunk)), pa.int64())
            yield pa.RecordBatch.from_arrays([numbers, chunk], schema=schema)
            row += len(chunk)

    connection.register("ids", pa.RecordBatchReader.from_batches(schema, batches()))
    return connection.execute(question, list(values)).fetchall()
