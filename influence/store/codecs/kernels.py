"""Machine code that reads codes: their inner products with a few queries, and their numbers as float32.

numba compiles a kernel when a process first needs it, in about a second, and keeps it on disk for the next process. A
kernel holds the interpreter's lock for no longer than its call takes to start, and starts no threads.

An inner product is summed in float32, a piece of a row at a time, column c of the piece in lane c modulo `LANES`; lanes
and pieces are added up in float64. Its order depends on nothing else: not on where the row starts in memory, the rows
beside it, the other queries or the machine. The sums of a tile of rows and queries stay in registers, where what is
read of a row serves all of the tile's queries, and what is read of a query all of its rows.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from index.gemm import vectors
from index.gemm.compiled import WIDE, compiled
from index.gemm.vectors import add_lanes, zeros
from influence.store.codecs import lanes, pieces
from influence.store.codecs.lanes import add_products, unpack
from influence.store.codecs.pieces import BITS, CODE_BYTES, INT4, LANES

SOURCES = (vectors, lanes, pieces)
"""What the machine code is made of, beside this file."""
TILES = {False: (8, 1), True: (4, 4)} if WIDE else {False: (4, 1), True: (2, 2)}
"""Rows and queries of a tile, for one query and for several: as many sums as registers hold. No score depends on it."""
STRIPS = {False: 8, True: 64}
"""Rows that one piece is read of before the next: with several queries, whose numbers then stay near, many."""


@cache
def products(kind: int, several: bool) -> Callable[..., None]:
    """Return the kernel that adds up inner products with one query, or with several.

    Args of the kernel:
        codes: uint8 [n, bytes].
        scales: float32 [n, S].
        pieces: int64 [S', 9], of `Pieces`.
        queries: float32 [m, W], as `Pieces` lays them out; where they are several, m is a multiple of a tile's.
        totals: Of each query's numbers in each piece, float64 [m, S'].
        out: float64 [m, n]; added to.
    """
    rows, queries = TILES[several]
    count, step, height = rows * queries, CODE_BYTES[kind], STRIPS[several]

    def kernel(codes: Any, scales: Any, pieces: Any, layout: Any, totals: Any, out: Any) -> None:
        sums = np.empty(count)
        last = codes.shape[0] - 1
        for strip in range(0, codes.shape[0], height):
            bottom = min(strip + height, codes.shape[0])
            for piece in range(pieces.shape[0]):
                begin, end, place, beyond, number = pieces[piece, :5]
                whole = begin + (end - begin) // step * step
                rest = (end - whole) * LANES // step
                for first in range(strip, bottom, rows):
                    for query in range(0, layout.shape[0], queries):
                        accumulators, column = zeros(count), place
                        for byte in range(begin, whole, step):
                            at, of = (first, last, byte), (query, column, beyond)
                            accumulators = add_products(
                                kind, (rows, queries), accumulators, codes, at, layout, of, None
                            )
                            column += LANES
                        if rest:
                            at, of = (first, last, whole), (query, column, beyond)
                            accumulators = add_products(
                                kind, (rows, queries), accumulators, codes, at, layout, of, rest
                            )
                        add_lanes(accumulators, sums)
                        for inner in range(queries):
                            for row in range(min(rows, bottom - first)):
                                part = sums[inner * rows + row]
                                if kind == BITS:
                                    part = totals[query + inner, piece] - 2 * part
                                out[query + inner, first + row] += part * scales[first + row, number]

    names = (types.uint8, types.float32, types.int64, types.float32, types.float64)
    out = types.Array(types.float64, 2, "C")
    return compiled(kernel, f"products_{kind}_{queries}", SOURCES, *(_read(name) for name in names), out)


@cache
def unpacked(kind: int) -> Callable[..., None]:
    """Return the kernel that writes the numbers of codes, each times its row's and module's scale.

    Args of the kernel:
        codes: uint8 [n, bytes].
        scales: float32 [n, S].
        pieces: int64 [S', 9], of `Pieces`; those that are unpacked.
        start: The column of a row that is the first one of `out`.
        out: float32 [n, w].
    """
    step = CODE_BYTES[kind]

    def kernel(codes: Any, scales: Any, pieces: Any, start: Any, out: Any) -> None:
        for row in range(codes.shape[0]):
            for piece in range(pieces.shape[0]):
                begin, scale = pieces[piece, 0], scales[row, pieces[piece, 4]]
                column, width = pieces[piece, 5] - start, pieces[piece, 6]
                byte = begin
                for place in range(0, width // LANES * LANES, LANES):
                    unpack(kind, 0, codes, row, byte, scale, out, (row, column + place), None)
                    byte += step
                if width % LANES:
                    place = width // LANES * LANES
                    unpack(kind, 0, codes, row, byte, scale, out, (row, column + place), width % LANES)
                if kind == INT4:
                    column, width = pieces[piece, 7] - start, pieces[piece, 8]
                    byte = begin
                    for place in range(0, width // LANES * LANES, LANES):
                        unpack(kind, 1, codes, row, byte, scale, out, (row, column + place), None)
                        byte += step
                    if width % LANES:
                        place = width // LANES * LANES
                        unpack(kind, 1, codes, row, byte, scale, out, (row, column + place), width % LANES)

    names = (types.uint8, types.float32, types.int64)
    out = types.Array(types.float32, 2, "A")
    return compiled(kernel, f"unpacked_{kind}", SOURCES, *(_read(name) for name in names), types.int64, out)


def _read(element: Any) -> Any:
    return types.Array(element, 2, "A", readonly=True)
