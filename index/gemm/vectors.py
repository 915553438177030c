"""LLVM's vectors of 16 float32 numbers as variables of a numba kernel, and the operations on them.

numba's loops call these operations; each becomes some instructions in place. Written as vectors, a sum has one order on
every machine, which a loop that LLVM is allowed to reorder wouldn't have. LLVM cuts the vectors where the machine's are
narrower.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, models, register_model

from index.gemm.lanes import LANES

INT, FLOAT = ir.IntType(32), ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)


class Sums(types.Type):
    """So many vectors of `LANES` float32 numbers, as one variable of a kernel."""

    def __init__(self, count: int) -> None:
        super().__init__(name=f"Sums({count})")
        self.count = count


@register_model(Sums)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Sums) -> None:
        super().__init__(manager, kind, ir.ArrayType(VECTOR, kind.count))


def operation(typed: Callable[..., Any]) -> Any:
    """Make an intrinsic, to which arguments that are constants come as such."""
    return intrinsic(prefer_literal=True)(typed)


@operation
def zeros(_: Any, count: Any) -> Any:
    """Return `Sums` of zeros."""
    kind = Sums(count.literal_value)
    return kind(count), lambda context, *_: ir.Constant(context.get_value_type(kind), None)


@operation
def load_tile(_: Any, tile: Any, out: Any, place: Any) -> Any:
    """Return the `Sums` of a tile of `out`, float32 [n, m].

    Args:
        tile: So many rows, and so many vectors of columns.
        out: Rows without gaps.
        place: The tile's first row, the last of all rows, and the first column. What is behind the last row is that
            row again.
    """
    rows, vectors = (part.literal_value for part in tile)
    kind = Sums(rows * vectors)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for number, at in enumerate(_tile(context, builder, signature.args[1], args[1], args[2], rows, vectors)):
            value = builder.insert_value(value, builder.load(at, align=4), number)
        return value

    return kind(tile, out, place), emit


@operation
def store_tile(_: Any, tile: Any, sums: Any, out: Any, place: Any) -> Any:
    """Write the `Sums` of a tile to `out`; see `load_tile`."""
    rows, vectors = (part.literal_value for part in tile)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        for number, at in enumerate(_tile(context, builder, signature.args[2], args[2], args[3], rows, vectors)):
            builder.store(builder.extract_value(args[1], number), at, align=4)
        return context.get_dummy_value()

    return types.void(tile, sums, out, place), emit


@operation
def add_outer(_: Any, tile: Any, sums: Any, left: Any, place: Any, right: Any, row: Any) -> Any:
    """Add the outer product of a column of `left` and a row of `right` to the sums of a tile.

    Args:
        tile: So many rows, and so many vectors of columns.
        sums: Row by row.
        left: float32 [n, w], rows without gaps.
        place: The tile's first row, the last of all rows, and the column; see `load_tile`.
        right: float32 [k, vectors · LANES].
        row: Of `right`.
    """
    rows, vectors = (part.literal_value for part in tile)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, sums, left, place, right, row = args
        nothing = ir.Constant(row.type, 0)
        start = address(context, builder, signature.args[4], right, row, nothing)
        start = builder.bitcast(start, VECTOR.as_pointer())
        columns = [builder.load(builder.gep(start, [ir.Constant(INT, n)]), align=4) for n in range(vectors)]
        first, last, column = (builder.extract_value(place, part) for part in range(3))
        for number in range(rows):
            at = address(context, builder, signature.args[2], left, _clamped(builder, first, last, number), column)
            value = spread(builder, builder.load(builder.bitcast(at, FLOAT.as_pointer()), align=4), LANES)
            for vector in range(vectors):
                number_in_tile = number * vectors + vector
                total = multiply_add(builder, value, columns[vector], builder.extract_value(sums, number_in_tile))
                sums = builder.insert_value(sums, total, number_in_tile)
        return sums

    return sums(tile, sums, left, place, right, row), emit


@operation
def add_dots(_: Any, sums: Any, left: Any, at: Any, right: Any, beside: Any) -> Any:
    """Add the products of consecutive columns of two rows to `Sums`, lane by lane.

    Args:
        sums: So many vectors, so many times `LANES` columns.
        left: float32 [n, w], rows without gaps.
        at: The row and the first column.
        right: float32 [m, w], rows without gaps.
        beside: The row and the first column.
    """

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        totals, left, at, right, beside = args
        starts = []
        for kind, array, place in ((signature.args[1], left, at), (signature.args[3], right, beside)):
            row, column = (builder.extract_value(place, part) for part in range(2))
            start = address(context, builder, kind, array, row, column)
            starts.append(builder.bitcast(start, VECTOR.as_pointer()))
        for number in range(sums.count):
            first, other = (builder.load(builder.gep(start, [ir.Constant(INT, number)]), align=4) for start in starts)
            total = multiply_add(builder, first, other, builder.extract_value(totals, number))
            totals = builder.insert_value(totals, total, number)
        return totals

    return sums(sums, left, at, right, beside), emit


@operation
def add_lanes(_: Any, sums: Any, out: Any) -> Any:
    """Add up the lanes of each vector in float64, halves first, into an array [count]."""

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[1])(context, builder, args[1]).data
        for number in range(signature.args[0].count):
            part = builder.fpext(builder.extract_value(args[0], number), ir.VectorType(ir.DoubleType(), LANES))
            while part.type.count > 1:
                size = part.type.count // 2
                nothing = ir.Constant(part.type, ir.Undefined)
                sides = [ir.Constant(ir.VectorType(INT, size), [*range(at, at + size)]) for at in (0, size)]
                part = builder.fadd(*(builder.shuffle_vector(part, nothing, side) for side in sides))
            whole = builder.extract_element(part, ir.Constant(INT, 0))
            builder.store(whole, builder.gep(data, [ir.Constant(ir.IntType(64), number)]))
        return context.get_dummy_value()

    return types.void(sums, out), emit


def multiply_add(builder: Any, left: Any, right: Any, total: Any) -> Any:
    """Return left · right + total, lane by lane, rounded once."""
    fused = ir.FunctionType(VECTOR, [VECTOR] * 3)
    fused = get_or_insert_function(builder.module, fused, f"llvm.fma.v{LANES}f32")
    return builder.call(fused, [left, right, total])


def address(context: Any, builder: Any, kind: Any, array: Any, row: Any, column: Any) -> Any:
    """Return the address of an element of an array [n, w], whose rows lie anywhere, each without gaps."""
    struct = context.make_array(kind)(context, builder, array)
    start = builder.mul(row, builder.extract_value(struct.strides, 0))
    size = ir.Constant(column.type, kind.dtype.bitwidth // 8)
    at = builder.add(start, builder.mul(column, size))
    return builder.gep(builder.bitcast(struct.data, ir.IntType(8).as_pointer()), [at])


def spread(builder: Any, value: Any, count: int) -> Any:
    """Return a vector that holds a number everywhere."""
    single = builder.insert_element(
        ir.Constant(ir.VectorType(value.type, count), ir.Undefined), value, ir.Constant(INT, 0)
    )
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(INT, count), [0] * count))


def _clamped(builder: Any, first: Any, last: Any, number: int) -> Any:
    row = builder.add(first, ir.Constant(first.type, number))
    return builder.select(builder.icmp_signed("<", row, last), row, last)


def _tile(context: Any, builder: Any, kind: Any, out: Any, place: Any, rows: int, vectors: int) -> Any:
    """Yield the address of each of a tile's vectors, row by row."""
    first, last, column = (builder.extract_value(place, part) for part in range(3))
    for number in range(rows):
        at = address(context, builder, kind, out, _clamped(builder, first, last, number), column)
        at = builder.bitcast(at, VECTOR.as_pointer())
        for vector in range(vectors):
            yield builder.gep(at, [ir.Constant(INT, vector)])
