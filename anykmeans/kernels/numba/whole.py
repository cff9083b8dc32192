"""A row's whole numbers, added to exact sums in vector registers, and what these mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from anykmeans._grid import FOLDS
from anykmeans.kernels.numba.simd import INDEX, Code, integer


@intrinsic
def add(context, x, row, weight, scale, step, folds, sums, to, since):  # type: ignore[no-untyped-def]
    """Add the whole numbers of ``x[row]``, and of its weight, to ``sums[to]``; take them from ``sums[since]`` unless that is below 0.

    They are those of `anykmeans._grid.Grid.split`, of `folds` times d + 1 columns. All arrays are C-contiguous.
    """
    return types.void(x, row, weight, scale, step, folds, sums, to, since), _generate_add


@intrinsic
def meaning(context, sums, a, scale, first, stop, step, folds, result, at):  # type: ignore[no-untyped-def]
    """Write what whole numbers ``sums[a]`` mean, columns from `first` to `stop`, to `result` from its number `at` on.

    That is `anykmeans._grid.Grid.total`, bit for bit, of `folds` times as many columns as `scale` has. All arrays are C-contiguous
    and float64.
    """
    return types.void(sums, a, scale, first, stop, step, folds, result, at), _generate_meaning


_MANY = 16  # columns together, where a row has so many
_WHOLE = 1.5 * 2.0**52  # added and taken away again, it rounds to a whole number
_HALVING = 2.0**27 + 1  # as in `anykmeans._grid`


def _generate_add(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    x, scale, sums = (code.data(i) for i in (0, 3, 6))
    row, to, since = (code.whole(i) for i in (1, 7, 8))
    d, width = code.size(0, 1), code.size(6, 1)
    columns = builder.add(d, integer(1))
    x = code.at(x, builder.mul(row, d))
    there = code.at(sums, builder.mul(to, width)), code.at(sums, builder.mul(since, width))
    moves = builder.icmp_signed(">=", since, integer(0))
    weighted = builder.fcmp_unordered("!=", args[2], ir.Constant(ir.DoubleType(), 1.0))

    folding = there, columns, moves, args[4], code.whole(5)

    def add_columns(begin: Any, count: int) -> None:
        value = _scaled(code, x, scale, begin, count)
        with builder.if_else(weighted) as (heavy, light):
            with heavy:
                rests = _two_product(builder, value, code.splat(args[2], count))
                _add_folds(code, rests, begin, *folding)
            with light:
                _add_folds(code, [value], begin, *folding)

    begin = builder.select(weighted, integer(0), builder.and_(d, integer(-_MANY)))
    with builder.if_then(builder.icmp_signed(">", begin, integer(0))):
        _add_many(code, x, scale, begin, *folding)
    _by_columns(builder, begin, d, add_columns)
    unit = code.some(code.at(scale, d), 1)  # of the weight, as of a feature that is 1
    with builder.if_else(weighted) as (heavy, light):
        with heavy:
            rests = _two_product(builder, unit, code.splat(args[2], 1))
            _add_folds(code, rests, d, *folding)
        with light:  # whole in the first fold
            place = code.at(there[0], d)
            code.put(builder.fadd(code.some(place, 1), unit), place)
            with builder.if_then(moves):
                place = code.at(there[1], d)
                code.put(builder.fsub(code.some(place, 1), unit), place)
    return context.get_dummy_value()


def _by_columns(
    builder: Any,
    first: Any,
    stop: Any,
    work: Callable[[Any, int], None],
    counts: tuple[int, ...] = (4, 1),
) -> None:
    """Do `work`, given where they begin and how many, for columns from `first` to `stop`: by fours, then one by one."""
    for count in counts:
        before = builder.block
        head, body, after = map(builder.append_basic_block, ("columns", "work", "done"))
        builder.branch(head)

        builder.position_at_end(head)
        begin = builder.phi(INDEX)
        begin.add_incoming(first, before)
        end = builder.add(begin, integer(count))
        builder.cbranch(builder.icmp_signed("<=", end, stop), body, after)

        builder.position_at_end(body)
        work(begin, count)
        begin.add_incoming(end, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        first = begin


def _two_product(builder: Any, a: Any, b: Any) -> list[Any]:
    """The rounded product of two vectors, and exactly what the rounding took: `anykmeans._grid.two_product`."""
    product = builder.fmul(a, b)
    halves = []
    for value in (a, b):
        scaled = builder.fmul(value, ir.Constant(value.type, [_HALVING] * value.type.count))
        high = builder.fsub(scaled, builder.fsub(scaled, value))
        halves.append((high, builder.fsub(value, high)))
    (a_high, a_low), (b_high, b_low) = halves
    error = builder.fsub(builder.fmul(a_high, b_high), product)
    for one, other in ((a_high, b_low), (a_low, b_high), (a_low, b_low)):
        error = builder.fadd(error, builder.fmul(one, other))
    return [product, error]


def _add_many(
    code: Code, x: Any, scale: Any, stop: Any, there: tuple[Any, Any], *folding: Any
) -> None:
    """Add the columns up to `stop`, _MANY at a time, as one waits for another from fold to fold.

    In a function of its own: in line its constants would take the registers of rows that are shorter.
    """
    given = x, scale, stop, *there, *folding
    function, body = code.function(
        f"add_many.{8 * code.bytes}", ir.VoidType(), *(each.type for each in given)
    )
    code.builder.call(function, given)
    if body is None:
        return
    x, scale, stop, to, since, *folding = function.args

    def add_columns(begin: Any, count: int) -> None:
        value = _scaled(body, x, scale, begin, count)
        _add_folds(body, [value], begin, (to, since), *folding)

    _by_columns(body.builder, integer(0), stop, add_columns, (_MANY,))
    body.builder.ret_void()


def _scaled(code: Code, x: Any, scale: Any, begin: Any, count: int) -> Any:
    """So many values of a row from a column on, as they are in the first fold."""
    kind = ir.VectorType(ir.DoubleType(), count)
    value = code.cast(code.some(code.at(x, begin), count), kind)
    return code.builder.fmul(value, code.some(code.at(scale, begin), count))


def _add_folds(
    code: Code,
    rests: list[Any],
    begin: Any,
    there: tuple[Any, Any],
    columns: Any,
    moves: Any,
    step: Any,
    folds: Any,
) -> None:
    """Add whole numbers of vectors of scaled values, fold by fold, whose columns `begin` there."""
    builder, kind = code.builder, rests[0].type
    before = builder.block
    fold, after = (builder.append_basic_block(name) for name in ("fold", "whole"))
    finer, whole = code.splat(step, kind.count), ir.Constant(kind, [_WHOLE] * kind.count)
    builder.branch(fold)

    builder.position_at_end(fold)
    i, place, *values = (builder.phi(one.type) for one in (integer(0), begin, *rests))
    parts = [builder.fsub(builder.fadd(value, whole), whole) for value in values]
    part = parts[0] if len(parts) == 1 else builder.fadd(*parts)
    code.put(
        builder.fadd(code.some(code.at(there[0], place), kind.count), part),
        code.at(there[0], place),
    )
    with builder.if_then(moves):
        less = builder.fsub(code.some(code.at(there[1], place), kind.count), part)
        code.put(less, code.at(there[1], place))
    left = [builder.fmul(builder.fsub(*pair), finer) for pair in zip(values, parts, strict=True)]
    further = builder.add(i, integer(1)), builder.add(place, columns), *left
    starts = integer(0), begin, *rests
    for phi, first, following in zip((i, place, *values), starts, further, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", further[0], folds), fold, after)
    builder.position_at_end(after)


def _generate_meaning(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    sums, scale, result = (code.data(i) for i in (0, 2, 7))
    a, first, stop, folds, at = (code.whole(i) for i in (1, 3, 4, 6, 8))
    sums = code.at(sums, builder.mul(a, code.size(0, 1)))
    result = code.at(result, builder.sub(at, first))
    room = cgutils.alloca_once(builder, ir.ArrayType(ir.VectorType(code.real, 4), FOLDS))
    finer = builder.fdiv(ir.Constant(code.real, 1.0), args[5])  # a power of two, as `step` is

    def mean_columns(begin: Any, count: int) -> None:
        found = _carried(code, code.at(sums, begin), room, folds, finer, count)
        found, low, beside = _rounded(code, found, room, folds, finer)
        twice = builder.fadd(low, low)
        beyond = builder.fadd(found, twice)
        zero = ir.Constant(found.type, [0.0] * count)
        same = builder.fcmp_ordered("==", builder.fsub(beyond, found), twice)
        tie = builder.and_(builder.fcmp_ordered(">", builder.fmul(low, beside), zero), same)
        found = builder.fadd(builder.select(tie, beyond, found), zero)  # no zero has a sign
        scales = code.some(code.at(scale, begin), count)
        code.put(builder.fdiv(found, scales), code.at(result, begin))

    _by_columns(builder, first, stop, mean_columns)
    return context.get_dummy_value()


def _carried(code: Code, sums: Any, room: Any, folds: Any, finer: Any, count: int) -> Any:
    """Carry up what overflowed finer grids; return the first, the others in `room`."""
    builder, kind = code.builder, ir.VectorType(code.real, count)
    columns, step = code.size(2, 0), code.splat(code.args[5], count)
    finer = code.splat(finer, count)
    rint = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(kind, [kind]), f"llvm.rint.v{count}f64"
    )
    before, last = builder.block, builder.sub(folds, integer(1))
    fold, carry, done = map(builder.append_basic_block, ("fold", "carry", "carried"))
    builder.branch(fold)

    builder.position_at_end(fold)
    i, above = builder.phi(INDEX), builder.phi(kind)
    i.add_incoming(last, before)
    above.add_incoming(ir.Constant(kind, [-0.0] * count), before)
    part = builder.fadd(code.some(code.at(sums, builder.mul(i, columns)), count), above)
    builder.cbranch(builder.icmp_signed(">", i, integer(0)), carry, done)

    builder.position_at_end(carry)
    over = builder.call(rint, [builder.fmul(part, finer)])
    left = builder.fsub(part, builder.fmul(over, step))
    code.put(left, builder.gep(room, [integer(0), i]))
    i.add_incoming(builder.sub(i, integer(1)), carry)
    above.add_incoming(over, carry)
    builder.branch(fold)
    builder.position_at_end(done)
    return part


def _rounded(code: Code, found: Any, room: Any, folds: Any, finer: Any) -> tuple[Any, Any, Any]:
    """The sum of carried parts, what is to be added to it, and what to that."""
    builder, kind = code.builder, found.type
    zero = ir.Constant(kind, [0.0] * kind.count)
    before = builder.block
    fold, add, done = map(builder.append_basic_block, ("part", "rounding", "rounded"))
    builder.branch(fold)

    builder.position_at_end(fold)
    i, unit = builder.phi(INDEX), builder.phi(code.real)
    kept = [builder.phi(kind) for _ in range(3)]
    starts = integer(1), ir.Constant(code.real, 1.0), found, zero, zero
    for phi, start in zip((i, unit, *kept), starts, strict=True):
        phi.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("<", i, folds), add, done)

    builder.position_at_end(add)
    total, low, after = kept
    further = builder.fmul(unit, finer)
    place = builder.bitcast(builder.gep(room, [integer(0), i]), code.real.as_pointer())
    part = code.some(place, kind.count)
    more = builder.fmul(part, code.splat(further, kind.count))
    exact, sum_ = builder.fcmp_ordered("==", low, zero), builder.fadd(total, more)
    known = builder.or_(exact, builder.fcmp_unordered("!=", after, zero))
    rest = builder.fsub(more, builder.fsub(sum_, total))
    following = (
        builder.add(i, integer(1)),
        further,
        builder.select(exact, sum_, total),
        builder.select(exact, rest, low),
        builder.select(known, after, more),
    )
    for phi, value in zip((i, unit, *kept), following, strict=True):
        phi.add_incoming(value, add)
    builder.branch(fold)
    builder.position_at_end(done)
    return total, low, after
