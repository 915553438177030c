"""How a kernel walks through a row: pieces of a module's codes, and the queries' columns in the order of the codes.

A piece is summed in float32 and has one scale. Its codes are read `LANES` columns at a time, so a query is laid out in
pieces too: columns in the order in which codes are read, filled up with zeros to whole vectors. Where a byte holds two
codes, a piece has the columns of its bytes' lower halves, then those of the higher ones.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from index.gemm import LANES

PIECE = 4096
"""The most columns of a piece."""

FLOAT16, INT8, INT4, BITS = range(4)
"""Kinds of codes, as numbers that kernels are compiled with."""
CODE_BYTES = {FLOAT16: 32, INT8: 16, INT4: 16, BITS: 2}
"""Bytes of a row that are read together: `LANES` columns, or twice as many where a byte holds two."""


class Stretch(NamedTuple):
    """Consecutive columns with one scale: a module's, or where there are no scales any.

    Attributes:
        columns: Of a row.
        codes: Bytes of a row's codes.
    """

    columns: slice
    codes: slice

    @property
    def width(self) -> int:
        """Its columns."""
        return self.columns.stop - self.columns.start


class Piece(NamedTuple):
    """A line of the table that kernels read.

    Attributes:
        begin: Its first byte of a row's codes.
        end: One past its last.
        place: Where its columns begin in a query that is laid out.
        beyond: How far behind those its bytes' higher halves have their columns; 0 where a byte holds no two codes.
        scale: The number of its scale.
        column: Its first column.
        width: Its columns, without those of higher halves.
        higher: The first column of the higher halves.
        higher_width: How many those are.
    """

    begin: int
    end: int
    place: int
    beyond: int
    scale: int
    column: int
    width: int
    higher: int
    higher_width: int


class Pieces:
    """The pieces of a row.

    Attributes:
        table: A `Piece` a line, int64 [S', 9].
        first: Each stretch's first line, and the number of lines, [S + 1].
    """

    def __init__(self, kind: int, stretches: Sequence[Stretch]) -> None:
        """Cut stretches, which lie side by side, into pieces."""
        lines: list[Piece] = []
        self.first = [0]
        columns: list[NDArray[np.int64]] = []
        dims = stretches[-1].columns.stop if stretches else 0
        at = 0
        for number, stretch in enumerate(stretches):
            for line in _cut(kind, stretch, number):
                lanes = -(-(line.end - line.begin) // CODE_BYTES[kind]) * LANES
                beyond = lanes if kind == INT4 else 0
                lines.append(line._replace(place=at, beyond=beyond))
                columns.append(_filled(line.column, line.width, lanes, dims))
                if beyond:
                    columns.append(_filled(line.higher, line.higher_width, lanes, dims))
                at += lanes + beyond
            self.first.append(len(lines))
        self.table = np.array(lines, dtype=np.int64).reshape(-1, len(Piece._fields))
        self._columns = np.concatenate([np.empty(0, np.int64), *columns])

    def laid_out(self, queries: NDArray[np.float32], multiple: int) -> NDArray[np.float32]:
        """Return queries [m, D] as kernels read them, [m', W]: m' is m rounded up to a multiple, with zeros."""
        layout = np.zeros((-(-len(queries) // multiple) * multiple, len(self._columns)), dtype=np.float32)
        wider = np.concatenate([queries, np.zeros((len(queries), 1), np.float32)], axis=1)
        np.take(wider, self._columns, axis=1, out=layout[: len(queries)], mode="clip")
        return layout

    def totals(self, layout: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the sum of each query's numbers in each piece, [m', S'], each as if it stood alone."""
        edges = [*self.table[:, 2].tolist(), layout.shape[1]]
        return np.array([[float(query[a:b].astype(np.float64).sum()) for a, b in pairwise(edges)] for query in layout])


def _cut(kind: int, stretch: Stretch, number: int) -> list[Piece]:
    """Return a stretch's pieces, their places left open."""
    columns, codes = stretch
    both = 2 if kind == INT4 else 1
    # Columns of the lower halves; where no byte has two codes, all.
    lower = codes.stop - codes.start if kind == INT4 else stretch.width
    step, size = PIECE // both, PIECE // both // LANES * CODE_BYTES[kind]
    pieces = []
    for at, begin in zip(range(0, lower, step), range(codes.start, codes.stop, size), strict=True):
        width = min(step, lower - at)
        above = max(0, min(width, stretch.width - lower - at))
        end, first = min(codes.stop, begin + size), columns.start + at
        pieces.append(Piece(begin, end, 0, 0, number, first, width, first + lower, above))
    return pieces


def _filled(first: int, width: int, lanes: int, nothing: int) -> NDArray[np.int64]:
    """Return consecutive columns, filled up with that of a zero."""
    columns = np.full(lanes, nothing, dtype=np.int64)
    columns[:width] = np.arange(first, first + width)
    return columns
