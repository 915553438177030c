"""What a kernel does with codes, 16 columns at a time, in LLVM's vectors: read them, multiply and add, write numbers.

See `index.gemm.vectors` for what such operations are. The last columns of a piece are read and written through a mask:
no byte beyond them is touched.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function

from index.gemm.vectors import INT, VECTOR, address, multiply_add, operation, spread
from influence.store.codecs.pieces import BITS, FLOAT16, INT4, LANES

_BYTE, _SHORT = ir.IntType(8), ir.IntType(16)


@operation
def add_products(
    _: Any, kind: Any, tile: Any, sums: Any, codes: Any, place: Any, queries: Any, query_place: Any, count: Any
) -> Any:
    """Add the products of codes with queries to the sums of a tile; of `bits`, the queries' numbers at set bits.

    Args:
        kind: Of the codes.
        tile: So many rows, and so many queries.
        sums: Those of a query together, row by row.
        codes: uint8 [n, bytes].
        place: The tile's first row, the last of all rows, and the byte. What is behind the last row is that row again.
        queries: float32 [m, W].
        query_place: The tile's first query, the column, and how far behind it that of the byte's higher half is.
        count: Of the columns, where fewer than `LANES` are left; else None.
    """
    rows, several = (part.literal_value for part in tile)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, accumulators, codes, place, queries, query_place, count = args
        first, last, byte = (builder.extract_value(place, part) for part in range(3))
        query, column, beyond = (builder.extract_value(query_place, part) for part in range(3))
        halves = 2 if kind.literal_value == INT4 else 1
        loaded = {}
        for half in range(halves):
            for number in range(several):
                row = builder.add(query, ir.Constant(query.type, number))
                at = builder.add(column, beyond) if half else column
                at = address(context, builder, signature.args[5], queries, row, at)
                loaded[half, number] = builder.load(builder.bitcast(at, VECTOR.as_pointer()), align=4)
        for row in range(rows):
            number = builder.add(first, ir.Constant(first.type, row))
            number = builder.select(builder.icmp_signed("<", number, last), number, last)
            at = address(context, builder, signature.args[3], codes, number, byte)
            bits = _codes(builder, kind.literal_value, at, _count_or_none(signature, count))
            for half in range(halves):
                numbers = None if kind.literal_value == BITS else _numbers(builder, kind.literal_value, bits, half)
                for number in range(several):
                    total = builder.extract_value(accumulators, number * rows + row)
                    if numbers is None:
                        more = builder.fadd(total, loaded[half, number])
                        total = builder.select(_set(builder, bits), more, total)
                    else:
                        total = multiply_add(builder, numbers, loaded[half, number], total)
                    accumulators = builder.insert_value(accumulators, total, number * rows + row)
        return accumulators

    return sums(kind, tile, sums, codes, place, queries, query_place, count), emit


@operation
def unpack(
    _: Any, kind: Any, half: Any, codes: Any, row: Any, byte: Any, scale: Any, out: Any, place: Any, count: Any
) -> Any:
    """Write the numbers of a row's codes times a scale.

    Args:
        kind: Of the codes.
        half: Of a byte that holds two: 0 is the lower one.
        codes: uint8 [n, bytes].
        row: Of the codes.
        byte: Where they begin.
        scale: float32.
        out: float32 [b, w].
        place: The row and the column.
        count: Of the columns, where fewer than `LANES` are left; else None.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, codes, row, byte, scale, out, place, count = args
        count = _count_or_none(signature, count)
        at = address(context, builder, signature.args[2], codes, row, byte)
        bits = _codes(builder, kind.literal_value, at, count)
        numbers = _numbers(builder, kind.literal_value, bits, half.literal_value)
        values = builder.fmul(numbers, spread(builder, scale, LANES))
        row, column = (builder.extract_value(place, part) for part in range(2))
        at = address(context, builder, signature.args[6], out, row, column)
        at = builder.bitcast(at, VECTOR.as_pointer())
        if count is None:
            builder.store(values, at, align=4)
            return context.get_dummy_value()
        mask = _first(builder, count, LANES, 1)
        store = ir.FunctionType(ir.VoidType(), [VECTOR, at.type, INT, mask.type])
        store = get_or_insert_function(builder.module, store, f"llvm.masked.store.v{LANES}f32.p0")
        builder.call(store, [values, at, ir.Constant(INT, 4), mask])
        return context.get_dummy_value()

    return types.void(kind, half, codes, row, byte, scale, out, place, count), emit


def _count_or_none(signature: Any, count: Any) -> Any | None:
    return None if isinstance(signature.args[-1], types.NoneType) else count


def _codes(builder: Any, kind: int, at: Any, count: Any | None) -> Any:
    """Read the codes of `LANES` columns, or of the first `count`; then no byte behind them is touched."""
    element, size = {FLOAT16: (_SHORT, LANES), BITS: (_BYTE, LANES // 8)}.get(kind, (_BYTE, LANES))
    vector = ir.VectorType(element, size)
    at = builder.bitcast(at, vector.as_pointer())
    if count is None:
        return builder.load(at, align=1)
    mask = _first(builder, count, size, LANES // size)
    load = ir.FunctionType(vector, [at.type, INT, mask.type, vector])
    load = get_or_insert_function(builder.module, load, f"llvm.masked.load.v{size}i{element.width}.p0")
    return builder.call(load, [at, ir.Constant(INT, 1), mask, ir.Constant(vector, [0] * size)])


def _first(builder: Any, count: Any, size: int, per_element: int) -> Any:
    """Return which of some elements hold one of the first `count` columns, `per_element` columns an element."""
    number = spread(builder, builder.trunc(count, INT), size)
    return builder.icmp_signed("<", ir.Constant(number.type, [place * per_element for place in range(size)]), number)


def _numbers(builder: Any, kind: int, codes: Any, half: int) -> Any:
    """Return the numbers that codes stand for before any scale: whole ones (of `int4`, 16 times the code), or ±1."""
    if kind == FLOAT16:
        return builder.fpext(builder.bitcast(codes, ir.VectorType(ir.HalfType(), LANES)), VECTOR)
    if kind == BITS:
        return builder.select(_set(builder, codes), *(ir.Constant(VECTOR, [sign] * LANES) for sign in (-1.0, 1.0)))
    if kind == INT4:
        change, number = (builder.and_, -LANES) if half else (builder.shl, 4)
        codes = change(codes, ir.Constant(codes.type, [number] * LANES))
    return builder.sitofp(builder.sext(codes, ir.VectorType(INT, LANES)), VECTOR)


def _set(builder: Any, codes: Any) -> Any:
    return builder.bitcast(codes, ir.VectorType(ir.IntType(1), LANES))
