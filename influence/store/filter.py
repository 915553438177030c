"""Which rows pass a condition on their metadata: `source = 'x' and tokens > 50`, an expression of DuckDB.

A condition is written by whoever may ask, and decides nothing but whether a row passes. DuckDB parses it; of what it
parsed to, `condition.py` lets through comparisons, arithmetic and the functions of a list: no second statement, no
subquery, no aggregate, no table. It is then evaluated in an empty database in memory that may neither read nor write
files nor load extensions, over the columns it names, which we read; for a limited time, and until Ctrl-C.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence.artifacts.access import source
from influence.errors import QueryError
from influence.store.condition import check_condition, enclosed, parse_condition, shown_columns, unusable
from influence.store.evaluation import Evaluation
from influence.store.reader import Store
from influence.store.shard import METADATA, ROW_GROUP, WEIGHT

if TYPE_CHECKING:
    import duckdb

TABLE = "metadata"
BATCH = 16 * ROW_GROUP
"""Rows whose columns are held at a time."""
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "temp_directory": "",
    "threads": "1",
    "memory_limit": "2GB",
    "lock_configuration": "true",
}
"""What keeps an expression in its place; the last one keeps the others."""
SECONDS = 60.0
"""How long a condition may take over as many rows as are held at a time: 16,384 take some milliseconds."""
SLICE_BYTES = 4 << 20
"""Bytes of columns that are evaluated at a time. With `condition.MOST_TEXTS` it keeps what a condition makes of texts,
which DuckDB doesn't count, within the memory limit."""


@dataclass(frozen=True)
class RowFilter:
    """A checked condition.

    Attributes:
        condition: As it was written.
        columns: Those that it names.
    """

    condition: str
    columns: tuple[str, ...]

    @classmethod
    def parse(cls, condition: str, schema: pa.Schema = METADATA) -> "RowFilter":
        """Check a condition.

        Args:
            condition: An expression that is true or false of a row. A row for which it is null doesn't pass.
            schema: The columns there are.

        Raises:
            QueryError: It can't be read, names an unknown column, is neither true nor false, or does more than compare.
        """
        with Evaluation(SETTINGS) as evaluation:
            tree = parse_condition(evaluation, condition)
            columns = check_condition(evaluation, tree, condition, schema)
            statement = f"SELECT {enclosed(condition)} FROM {TABLE}"  # noqa: S608
            result = _evaluated(
                evaluation,
                condition,
                lambda database: _over(database, schema.empty_table()).execute(statement).description,
            )
        if result[0][1] != "BOOLEAN":
            raise QueryError(
                f"--where {condition!r} is of type {result[0][1]}, expected true or false: compare it with something, "
                "as in tokens > 50."
            )
        return cls(condition, columns)

    def passing(self, store: Store, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return which of the rows [start, stop) pass, bool. Reads the named columns, 16,384 rows at a time.

        Raises:
            QueryError: The condition can't be evaluated for some row: a text that is cast to a number, say. Or it takes
                longer than a minute over 16,384 rows.
            DigestMismatch: A file isn't the one that was committed.
        """
        stop = store.rows if stop is None else stop
        mask = np.zeros(stop - start, dtype=bool)
        with Evaluation(SETTINGS) as evaluation:
            for path in store.metadata_files(start, stop):
                for table in _tables(path, self.columns):
                    rows = self._rows(evaluation, table)
                    mask[rows[(rows >= start) & (rows < stop)] - start] = True
        return mask

    def _rows(self, evaluation: Evaluation, table: pa.Table) -> np.ndarray:
        statement = f"SELECT row FROM {TABLE} WHERE {enclosed(self.condition)}"  # noqa: S608

        def select(database: "duckdb.DuckDBPyConnection") -> np.ndarray:
            slices = [_over(database, part).execute(statement).fetchnumpy()["row"] for part in _slices(table)]
            return np.concatenate(slices).astype(np.int64)

        return _evaluated(evaluation, self.condition, select)


def passing_rows(store: Store, condition: str) -> np.ndarray:
    """Return which rows of a run pass a condition, bool [rows], at least one.

    Raises:
        QueryError: See `RowFilter`; or no row passes.
    """
    mask = RowFilter.parse(condition, metadata_schema(store)).passing(store)
    if not mask.any():
        raise QueryError(
            f"--where {condition!r}: none of the {store.rows:,} rows of {store.run_dir} passes. A row passes where the "
            f"condition is true, not where it is null. Columns: {shown_columns(metadata_schema(store))}."
        )
    return mask


def metadata_schema(store: Store) -> pa.Schema:
    """Return the columns that a run's rows have."""
    files = store.metadata_files(0, 1)
    weighted = bool(files) and WEIGHT.name in pq.read_schema(source(files[0])).names
    return METADATA.append(WEIGHT) if weighted else METADATA


def _tables(path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    with pq.ParquetFile(source(path)) as file:
        for batch in file.iter_batches(BATCH, columns=sorted({"row", *columns})):
            yield pa.Table.from_batches([batch])


def _slices(table: pa.Table) -> Iterator[pa.Table]:
    """Cut a table until each part has at most `SLICE_BYTES`, or a single row."""
    if table.nbytes <= SLICE_BYTES or table.num_rows <= 1:
        yield table
        return
    half = table.num_rows // 2
    yield from _slices(table.slice(0, half))
    yield from _slices(table.slice(half))


def _over(database: "duckdb.DuckDBPyConnection", table: pa.Table) -> "duckdb.DuckDBPyConnection":
    return database.register(TABLE, table)


def _evaluated(evaluation: Evaluation, condition: str, step: "Callable[[duckdb.DuckDBPyConnection], Any]") -> Any:
    import duckdb

    try:
        return evaluation.run(step, SECONDS)
    except TimeoutError:
        raise QueryError(
            f"--where {condition!r:.200} took more than {SECONDS:g} seconds over {BATCH:,} rows and was stopped. Write "
            "a condition that compares columns, without long regular expressions."
        ) from None
    except duckdb.Error as error:
        raise unusable(condition, error) from None


__all__ = ["RowFilter", "metadata_schema", "passing_rows"]
