"""Rows and queries put into groups by a column: one of the metadata, or any other of the data set's own files."""

from collections.abc import Iterable

import numpy as np

from influence.data.dataset import DataSettings
from influence.data.values import column_values, columns_in
from influence.errors import DataError, QueryError
from influence.query.evaluation import Evaluation
from influence.run_dir import RunDir
from influence.store.columns import NO_CODE, Categories, categories
from influence.text_dedup.inputs import open_data

MOST = 10_000
"""Values that a column may have to be grouped by."""
STORED = ("source", "label", "uri")
"""Columns of a run's metadata that group rows."""


def groups_of(run: RunDir, by: str) -> Categories:
    """Return the group of every row.

    Args:
        run: The run.
        by: `source`, `label`, `uri`, or a column of the data set's files. Rows without a value have code −1.

    Raises:
        QueryError: There is no such column (those there are, are listed), or it has too many values.
        DataError: The data set isn't the one that the run was built from.
    """
    if by in STORED:
        found = categories(run.store, by)
        _check_few(len(found.names), by, str(run.path))
        return found
    try:
        there = columns_in(run.config.data, by)
    except DataError as error:
        raise QueryError(
            f"--by {by}: the run keeps {', '.join(STORED)}; another column is read from the data set. {error}"
        ) from None
    if by not in there:
        if not there:
            raise QueryError(
                f"--by {by}: of {run.config.data.path}, no file but a data set of the library datasets, rows are "
                f"grouped by {', '.join(STORED)} only. Build a run with data.columns.source: {by}."
            )
        listed = ", ".join(dict.fromkeys((*STORED, *there)))
        raise QueryError(f"There is no column {by!r} to group rows by; there are {listed}.")
    data = open_data(run)
    found = _coded(column_values(run.config.data, by), run.rows, by, run.config.data.path)
    # The column was read from the files themselves, not from the copy that was checked.
    data.digest()
    return found


def sets_of(run: RunDir, queries: Evaluation, column: str | None) -> Categories:
    """Return the set of every query: all of them one, without a name, or a set for each value of a column.

    Args:
        run: The run.
        queries: Read from a file where a column is named.
        column: Of that file. Queries without a value have code −1.

    Raises:
        QueryError: There is no such column; those there are, are listed.
    """
    if column is None:
        return Categories(np.zeros(len(queries.examples), dtype=np.int32), ("all",))
    if queries.file is None:
        raise QueryError(f"Sets are parted by a column of a file, and {queries.place} came from none. Name a file.")
    settings = DataSettings(path=queries.file)
    there = columns_in(settings, column)
    if not there:
        raise QueryError(
            f"{queries.place} is a data set of the library datasets, and sets are parted by a column of a jsonl, csv "
            "or parquet file: write it as one (to_parquet), and name that."
        )
    if column not in there:
        raise QueryError(f"{queries.place} has no column {column!r} to part queries by; it has {', '.join(there)}.")
    return _coded(column_values(settings, column), len(queries.examples), column, queries.place)


def _coded(values: Iterable[str | None], rows: int, column: str, place: str) -> Categories:
    codes, places = np.full(rows, NO_CODE, dtype=np.int32), dict[str, int]()
    for row, value in enumerate(values):
        if value is not None:
            codes[row] = places.setdefault(value, len(places))
            _check_few(len(places), column, place)
    return Categories(codes, tuple(places))


def _check_few(found: int, column: str, place: str) -> None:
    if found > MOST:
        raise QueryError(
            f"{place}: the column {column!r} has more than {MOST:,} values, too many groups to compare. Name another."
        )


__all__ = ["MOST", "STORED", "groups_of", "sets_of"]
