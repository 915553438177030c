"""The values of any column of a data set's files, whether or not it has a role here: a topic, an annotator."""

import json
from collections.abc import Iterator
from typing import Any

from influence.data.dataset import DataSettings, locate
from influence.data.records import columns_of, records
from influence.errors import DataError


def columns_in(settings: DataSettings, prefix: str) -> tuple[str, ...]:
    """Return the columns of a data set's files, as the first file has them; none of a saved or hub data set.

    Args:
        settings: Of the data set.
        prefix: A column that JSON objects after the first may have: looked for until it is found.

    Raises:
        DataError: It can't be read.
    """
    kind, files = locate(settings)
    return () if kind in ("saved", "hub") else columns_of(files[0], kind, (prefix,))


def column_values(settings: DataSettings, column: str) -> Iterator[str | None]:
    """Yield a column's value of every row, in order, as text; None where it is null, missing or empty.

    Raises:
        DataError: The files can't be read, or it is a saved or hub data set, of which only columns with a role are.
    """
    kind, files = locate(settings)
    if kind in ("saved", "hub"):
        raise DataError(
            f"{settings.path} is a data set of the library datasets, of which only the columns with a role are read; "
            f"{column!r} is none. Name it in data.columns, as data.columns.source: {column}."
        )
    row = 0
    for file in files:
        for _, record in records(file, kind, (column,)):
            if row == settings.limit:
                return
            yield _text(record.get(column))
            row += 1


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


__all__ = ["column_values", "columns_in"]
