"""Which rows a search may return."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from index.errors import VectorIndexError
from index.factory import load_faiss


@dataclass(frozen=True)
class Allowed:
    """Rows that may come back.

    Attributes:
        ranges: The rows [first, stop) that the index holds, ascending.
        mask: A truth value for every row of the data; None if all may.
        total: How many rows the data has.
    """

    ranges: tuple[tuple[int, int], ...]
    mask: NDArray[np.bool_] | None
    total: int

    @classmethod
    def of(
        cls,
        selection: NDArray[np.int64] | NDArray[np.bool_] | None,
        total: int,
        ranges: Sequence[tuple[int, int]],
    ) -> Self:
        """Check what a caller asks for. Memory: a byte a row of the data.

        Args:
            selection: Ascending row numbers, each once; or a truth value for every row; or None for all rows.
            total: Rows of the data.
            ranges: The rows that the index holds.

        Raises:
            VectorIndexError: Rows out of order, repeated or unknown; truth values for another number of rows.
        """
        if selection is None:
            return cls(tuple(ranges), None, total)
        array = np.asarray(selection)
        if array.dtype == np.bool_:
            if array.shape != (total,):
                raise VectorIndexError(
                    f"`allowed` has truth values of the shape {list(array.shape)}; one for each of {total:,} rows, "
                    f"[{total}], was expected."
                )
            return cls(tuple(ranges), array.astype(np.bool_), total)
        if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or array.size == 0):
            raise VectorIndexError(
                f"`allowed` is an array of {array.dtype} of the shape {list(array.shape)}; expected ascending "
                "row numbers, int64 [n], or a truth value a row."
            )
        wrong = np.flatnonzero(np.diff(array) <= 0)
        if wrong.size:
            before, after = array[wrong[0]], array[wrong[0] + 1]
            raise VectorIndexError(
                f"`allowed` has row {after} after row {before}; sort it, each row once: numpy.unique."
            )
        if array.size and (array[0] < 0 or array[-1] >= total):
            raise VectorIndexError(
                f"`allowed` has rows from {array[0]} to {array[-1]}; the index has rows 0 to {total - 1}."
            )
        mask = np.zeros(total, dtype=np.bool_)
        mask[array.astype(np.int64)] = True
        return cls(tuple(ranges), mask, total)

    @property
    def narrow(self) -> bool:
        """Whether any row is left out."""
        return self.mask is not None

    @cached_property
    def count(self) -> int:
        """How many rows of the index may come back."""
        if self.mask is None:
            return sum(stop - first for first, stop in self.ranges)
        return int(sum(np.count_nonzero(self.mask[first:stop]) for first, stop in self.ranges))

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The rows of the index that may come back, ascending."""
        pieces = []
        for first, stop in self.ranges:
            inside = np.arange(first, stop, dtype=np.int64)
            pieces.append(inside if self.mask is None else inside[self.mask[first:stop]])
        return np.concatenate([np.empty(0, np.int64), *pieces])

    def selector(self) -> Any:
        """Return FAISS's own, a bit a row."""
        assert self.mask is not None
        bits = np.packbits(self.mask, bitorder="little")
        bitmap = load_faiss().IDSelectorBitmap(bits)
        # FAISS keeps a pointer; the bits must live as long as it does.
        bitmap.bits_held = bits
        return bitmap
