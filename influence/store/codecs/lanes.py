"""What a kernel does with 16 columns at a time, in LLVM's vectors: read codes, multiply and add, write numbers.

numba's loops call these operations; each becomes some instructions in place. Written as vectors, a sum has one order on
every machine, which a loop that LLVM is allowed to reorder wouldn't have, and nothing is left to luck. LLVM cuts the
vectors where the machine's are narrower. The last columns of a piece are read and written through a mask: no byte
beyond them is touched.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, register_model

from influence.store.codecs.pieces import BITS, FLOAT16, INT4, LANES

_BYTE, _SHORT, _INT, _FLOAT, _DOUBLE = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType(), ir.DoubleType()
_VECTOR = ir.VectorType(_FLOAT, LANES)


class Sums(types.Type):
    """So many vectors of `LANES` float32 numbers, as one variable of a kernel."""

    def __init__(self, count: int) -> None:
        super().__init__(name=f"Sums({count})")
        self.count = count


@register_model(Sums)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Sums) -> None:
        super().__init__(manager, kind, ir.ArrayType(_VECTOR, kind.count))


def operation(typed: Callable[..., Any]) -> Any:
    """Make an intrinsic, to which arguments that are constants come as such."""
    return intrinsic(prefer_literal=True)(typed)


@operation
def zeros(_: Any, count: Any) -> Any:
    """Return `Sums` of zeros."""
    kind = Sums(count.literal_value)
    return kind(count), lambda context, *_: ir.Constant(context.get_value_type(kind), None)


@operation
def add_products(
    _: Any, kind: Any, tile: Any, sums: Any, codes: Any, place: Any, queries: Any, asked: Any, count: Any
) -> Any:
    """Add the products of codes with queries to the sums of a tile; of `bits`, the queries' numbers at set bits.

    Args:
        kind: Of the codes.
        tile: So many rows, and so many queries.
        sums: Those of a query together, row by row.
        codes: uint8 [n, bytes].
        place: The tile's first row, the last of all rows, and the byte. What is behind the last row is that row again.
        queries: float32 [m, W].
        asked: The tile's first query, the column, and how far behind it that of the byte's higher half is.
        count: Of the columns, where fewer than `LANES` are left; else None.
    """
    rows, several = (part.literal_value for part in tile)

    def made(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, found, codes, place, queries, asked, count = args
        first, last, byte = (builder.extract_value(place, part) for part in range(3))
        query, column, beyond = (builder.extract_value(asked, part) for part in range(3))
        halves = 2 if kind.literal_value == INT4 else 1
        laid = {}
        for half in range(halves):
            for number in range(several):
                row = builder.add(query, ir.Constant(query.type, number))
                at = builder.add(column, beyond) if half else column
                at = _address(context, builder, signature.args[5], queries, row, at)
                laid[half, number] = builder.load(builder.bitcast(at, _VECTOR.as_pointer()), align=4)
        fused = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        fused = get_or_insert_function(builder.module, fused, f"llvm.fma.v{LANES}f32")
        for row in range(rows):
            number = builder.add(first, ir.Constant(first.type, row))
            number = builder.select(builder.icmp_signed("<", number, last), number, last)
            at = _address(context, builder, signature.args[3], codes, number, byte)
            held = _codes(builder, kind.literal_value, at, _given(signature, count))
            for half in range(halves):
                numbers = None if kind.literal_value == BITS else _numbers(builder, kind.literal_value, held, half)
                for number in range(several):
                    total = builder.extract_value(found, number * rows + row)
                    if numbers is None:
                        more = builder.fadd(total, laid[half, number])
                        total = builder.select(_set(builder, held), more, total)
                    else:
                        total = builder.call(fused, [numbers, laid[half, number], total])
                    found = builder.insert_value(found, total, number * rows + row)
        return found

    return sums(kind, tile, sums, codes, place, queries, asked, count), made


@operation
def add_lanes(_: Any, sums: Any, out: Any) -> Any:
    """Add up the lanes of each vector in float64, halves first, into an array [count]."""

    def made(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[1])(context, builder, args[1]).data
        for number in range(signature.args[0].count):
            part = builder.fpext(builder.extract_value(args[0], number), ir.VectorType(_DOUBLE, LANES))
            while part.type.count > 1:
                size = part.type.count // 2
                nothing = ir.Constant(part.type, ir.Undefined)
                sides = [ir.Constant(ir.VectorType(_INT, size), [*range(at, at + size)]) for at in (0, size)]
                part = builder.fadd(*(builder.shuffle_vector(part, nothing, side) for side in sides))
            whole = builder.extract_element(part, ir.Constant(_INT, 0))
            builder.store(whole, builder.gep(data, [ir.Constant(ir.IntType(64), number)]))
        return context.get_dummy_value()

    return types.void(sums, out), made


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

    def made(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, _, codes, row, byte, scale, out, place, count = args
        count = _given(signature, count)
        at = _address(context, builder, signature.args[2], codes, row, byte)
        held = _codes(builder, kind.literal_value, at, count)
        numbers = _numbers(builder, kind.literal_value, held, half.literal_value)
        values = builder.fmul(numbers, _spread(builder, scale, LANES))
        row, column = (builder.extract_value(place, part) for part in range(2))
        at = _address(context, builder, signature.args[6], out, row, column)
        at = builder.bitcast(at, _VECTOR.as_pointer())
        if count is None:
            builder.store(values, at, align=4)
            return context.get_dummy_value()
        mask = _first(builder, count, LANES, 1)
        store = ir.FunctionType(ir.VoidType(), [_VECTOR, at.type, _INT, mask.type])
        store = get_or_insert_function(builder.module, store, f"llvm.masked.store.v{LANES}f32.p0")
        builder.call(store, [values, at, ir.Constant(_INT, 4), mask])
        return context.get_dummy_value()

    return types.void(kind, half, codes, row, byte, scale, out, place, count), made


def _given(signature: Any, count: Any) -> Any | None:
    return None if isinstance(signature.args[-1], types.NoneType) else count


def _address(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> Any:
    """Return the address of an element of an array [n, w], whose rows lie anywhere, each without gaps."""
    held = context.make_array(kind)(context, builder, array)
    start = builder.mul(row, builder.extract_value(held.strides, 0))
    size = ir.Constant(column.type, kind.dtype.bitwidth // 8)
    at = builder.add(start, builder.mul(column, size))
    return builder.gep(builder.bitcast(held.data, _BYTE.as_pointer()), [at])


def _codes(builder: Any, kind: int, at: Any, count: Any | None) -> Any:
    """Read the codes of `LANES` columns, or of the first `count`; then no byte behind them is touched."""
    element, size = {FLOAT16: (_SHORT, LANES), BITS: (_BYTE, LANES // 8)}.get(kind, (_BYTE, LANES))
    held = ir.VectorType(element, size)
    at = builder.bitcast(at, held.as_pointer())
    if count is None:
        return builder.load(at, align=1)
    mask = _first(builder, count, size, LANES // size)
    load = ir.FunctionType(held, [at.type, _INT, mask.type, held])
    load = get_or_insert_function(builder.module, load, f"llvm.masked.load.v{size}i{element.width}.p0")
    return builder.call(load, [at, ir.Constant(_INT, 1), mask, ir.Constant(held, [0] * size)])


def _first(builder: Any, count: Any, size: int, each: int) -> Any:
    """Return which of some elements hold one of the first `count` columns, `each` columns an element."""
    number = _spread(builder, builder.trunc(count, _INT), size)
    return builder.icmp_signed("<", ir.Constant(number.type, [place * each for place in range(size)]), number)


def _numbers(builder: Any, kind: int, codes: Any, half: int) -> Any:
    """Return the numbers that codes stand for before any scale: whole ones (of `int4`, 16 times the code), or ±1."""
    if kind == FLOAT16:
        return builder.fpext(builder.bitcast(codes, ir.VectorType(ir.HalfType(), LANES)), _VECTOR)
    if kind == BITS:
        return builder.select(_set(builder, codes), *(ir.Constant(_VECTOR, [sign] * LANES) for sign in (-1.0, 1.0)))
    if kind == INT4:
        change, number = (builder.and_, -LANES) if half else (builder.shl, 4)
        codes = change(codes, ir.Constant(codes.type, [number] * LANES))
    return builder.sitofp(builder.sext(codes, ir.VectorType(_INT, LANES)), _VECTOR)


def _set(builder: Any, codes: Any) -> Any:
    return builder.bitcast(codes, ir.VectorType(ir.IntType(1), LANES))


def _spread(builder: Any, value: Any, count: int) -> Any:
    """Return a vector that holds a number everywhere."""
    one = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, count), ir.Undefined), value, ir.Constant(_INT, 0)
    )
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_INT, count), [0] * count))
