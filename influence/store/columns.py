"""The rows' metadata as arrays, read a row group at a time: what checks need of all rows at once.

A number takes four or eight bytes a row, a text column a code of four; the texts themselves are only ever streamed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influence.artifacts.access import source
from influence.store.reader import Store

NUMBERS = {"tokens": np.int32, "loss": np.float32, "norm": np.float32}
NO_CODE = -1


@dataclass(frozen=True)
class Categories:
    """A text column whose values repeat, such as labels and sources.

    Attributes:
        codes: int32 [rows], −1 where the row has none.
        names: The values, in the order of their first row.
    """

    codes: np.ndarray
    names: tuple[str, ...]

    def name(self, row: int) -> str | None:
        """Return a row's value."""
        code = int(self.codes[row])
        return None if code == NO_CODE else self.names[code]


def numbers(store: Store, name: str) -> np.ndarray:
    """Return a numeric column of every row: tokens int32, loss or norm float32, [rows]."""
    values = np.empty(store.rows, dtype=NUMBERS[name])
    for first, column in _groups(store, name):
        values[first : first + len(column)] = column.to_numpy(zero_copy_only=False)
    return values


def categories(store: Store, name: str) -> Categories:
    """Return a text column of every row as codes; `label` or `source`."""
    codes, places = np.full(store.rows, NO_CODE, dtype=np.int32), dict[str, int]()
    for first, column in _groups(store, name):
        values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        encoded = values.dictionary_encode()
        table = np.array([places.setdefault(value, len(places)) for value in encoded.dictionary.to_pylist()], np.int32)
        within = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        if len(table):
            codes[first : first + len(within)] = np.where(within >= 0, table[within], NO_CODE)
    return Categories(codes, tuple(places))


def ids(store: Store, rows: np.ndarray) -> list[str]:
    """Return the ids of some rows, in the order asked."""
    return [meta["id"] for meta in store.meta(rows, ("id",))]


def _groups(store: Store, name: str) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """Yield (first row, column) of every row group."""
    first = 0
    for path in store.metadata_files():
        with pq.ParquetFile(source(path)) as file:
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=[name]).column(name)
                yield first, column
                first += len(column)


__all__ = ["Categories", "categories", "ids", "numbers"]
