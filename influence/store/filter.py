"""Which rows pass a condition on their metadata: `source = 'x' and tokens > 50`, an expression of DuckDB.

A condition is written by whoever may ask, and decides nothing but whether a row passes. DuckDB parses it; of what it
parsed to, only comparisons, arithmetic and such functions are let through that are known to give the same answer for
the same row every time: no second statement, no subquery, no aggregate, no table. It is then evaluated in an empty
database in memory that may neither read nor write files nor load extensions, over the columns it names, which we read.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence.errors import QueryError
from influence.remote.access import source
from influence.store.reader import Store
from influence.store.shard import METADATA, ROW_GROUP, WEIGHT

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
ALLOWED = ("COLUMN_REF", "CONSTANT", "COMPARISON", "CONJUNCTION", "OPERATOR", "FUNCTION", "CAST", "BETWEEN", "CASE")
"""The kinds of node that a condition may consist of; and what they are made of, types and collations."""
PARTS = ("TYPE", "COLLATE")


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
        with _database(schema.empty_table()) as database:
            tree = _parsed(database, condition)
            columns = _checked(database, tree, condition, schema)
            try:
                found = database.execute(f"SELECT {_enclosed(condition)} FROM {TABLE}").description  # noqa: S608
            except duckdb.Error as error:
                raise _refused(condition, error) from None
        if found[0][1] != "BOOLEAN":
            raise QueryError(
                f"--where {condition!r} is of type {found[0][1]}, expected true or false: compare it with something, "
                "as in tokens > 50."
            )
        return cls(condition, columns)

    def passing(self, store: Store, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return which of the rows [start, stop) pass, bool. Reads the named columns, 16,384 rows at a time.

        Raises:
            QueryError: The condition can't be evaluated for some row: a text that is cast to a number, say.
            DigestMismatch: A file isn't the one that was committed.
        """
        stop = store.rows if stop is None else stop
        mask = np.zeros(stop - start, dtype=bool)
        asked = f"SELECT row FROM {TABLE} WHERE {_enclosed(self.condition)}"  # noqa: S608
        with duckdb.connect(":memory:", config=SETTINGS) as database:
            for path in store.metadata_files(start, stop):
                for table in _tables(path, self.columns):
                    database.register(TABLE, table)
                    try:
                        rows = np.asarray(database.execute(asked).fetchnumpy()["row"], dtype=np.int64)
                    except duckdb.Error as error:
                        raise _refused(self.condition, error) from None
                    mask[rows[(rows >= start) & (rows < stop)] - start] = True
        return mask


def passing_rows(store: Store, condition: str) -> np.ndarray:
    """Return which rows of a run pass a condition, bool [rows], at least one.

    Raises:
        QueryError: See `RowFilter`; or no row passes.
    """
    mask = RowFilter.parse(condition, metadata_schema(store)).passing(store)
    if not mask.any():
        raise QueryError(
            f"--where {condition!r}: none of the {store.rows:,} rows of {store.run_dir} passes. A row passes where the "
            f"condition is true, not where it is null. Columns: {_shown(metadata_schema(store))}."
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


def _database(table: pa.Table) -> duckdb.DuckDBPyConnection:
    database = duckdb.connect(":memory:", config=SETTINGS)
    database.register(TABLE, table)
    return database


def _enclosed(condition: str) -> str:
    # On lines of its own: a comment at its end must not swallow the bracket.
    return f"(\n{condition}\n)"


def _parsed(database: duckdb.DuckDBPyConnection, condition: str) -> dict[str, Any]:
    """Return the one expression that a condition is, as DuckDB parses it."""
    if not condition.strip():
        raise QueryError("--where is empty. Write what must be true of a row, as in source = 'x' and tokens > 50.")
    asked = "SELECT json_serialize_sql(?)"
    try:
        found = json.loads(database.execute(asked, [f"SELECT {_enclosed(condition)}"]).fetchall()[0][0])
    except duckdb.Error as error:
        raise _refused(condition, error) from None
    if found["error"]:
        if found.get("error_type") == "parser":
            raise QueryError(
                f"--where {condition!r} can't be read: {found['error_message']}. Write a condition as in SQL, texts in "
                "single quotes: source = 'x' and tokens > 50."
            )
        raise _more(condition, "another statement")
    statements = found["statements"]
    node = statements[0]["node"]
    if len(statements) != 1 or node["type"] != "SELECT_NODE" or node["from_table"]["type"] != "EMPTY":
        raise _more(condition, "another statement")
    clauses = ("where_clause", "having", "qualify", "sample", "modifiers", "group_expressions")
    if len(node["select_list"]) != 1 or any(node.get(clause) for clause in clauses):
        raise _more(condition, "another clause")
    return node["select_list"][0]


def _checked(
    database: duckdb.DuckDBPyConnection, tree: dict[str, Any], condition: str, schema: pa.Schema
) -> tuple[str, ...]:
    """Return the columns that an expression names, refusing what isn't let through."""
    known = {name.lower(): name for name in schema.names}
    columns = set()
    for node in _nodes(tree):
        kind = node["class"]
        if kind == "COLUMN_REF":
            name = ".".join(node["column_names"])
            if name.lower() not in known:
                raise QueryError(
                    f"--where {condition!r}: there is no column {name!r}. Columns: {_shown(schema)}. Texts stand in "
                    "single quotes."
                )
            columns.add(known[name.lower()])
        elif kind == "FUNCTION":
            _check_function(database, node["function_name"], condition)
        elif kind not in (*ALLOWED, *PARTS):
            raise _more(condition, f"a {kind.lower().replace('_', ' ')}")
    return tuple(sorted(columns))


def _check_function(database: duckdb.DuckDBPyConnection, name: str, condition: str) -> None:
    asked = "SELECT DISTINCT function_type, stability FROM duckdb_functions() WHERE function_name = ?"
    found = database.execute(asked, [name]).fetchall()
    if not found:
        raise QueryError(f"--where {condition!r}: there is no function {name!r}.")
    if set(found) != {("scalar", "CONSISTENT")}:
        raise _more(condition, f"{name}(), which is no function of a row alone")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every node of an expression."""
    if isinstance(tree, dict):
        if "class" in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _shown(schema: pa.Schema) -> str:
    kinds = {"string": "text", "large_string": "text", "int64": "number", "int32": "number", "float": "number"}
    return ", ".join(f"{field.name} ({kinds.get(str(field.type), field.type)})" for field in schema)


def _more(condition: str, what: str) -> QueryError:
    return QueryError(
        f"--where {condition!r} holds {what}. It may compare and compute with a row's columns, and nothing more."
    )


def _refused(condition: str, error: duckdb.Error) -> QueryError:
    return QueryError(f"--where {condition!r} can't be evaluated: {str(error).strip().splitlines()[0]}")
