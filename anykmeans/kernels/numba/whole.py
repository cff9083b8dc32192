"""A row's whole numbers, added to exact sums in vector registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from anykmeans.kernels.numba.simd import INDEX, Code, integer


@intrinsic
def add(context, x, row, weight, scale, step, folds, sums, to, since):  # type: ignore[no-untyped-def]
    """Add the whole numbers of ``x[row]``, and of its weight, to ``sums[to]``; take them from ``sums[since]`` unless that is below 0.

    They are those of `anykmeans._grid.Grid.split`, of `folds` times d + 1 columns. All arrays are C-contiguous.
    """
    return types.void(x, row, weight, scale, step, folds, sums, to, since), _generate_add


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

    def split(value: Any, f: Any) -> None:
        """Add vectors of scaled values, whose columns begin at `f`."""
        with builder.if_else(weighted) as (heavy, light):
            with heavy:
                weight = code.splat(args[2], value.type.count)
                _add_folds(code, _two_product(builder, value, weight), f, columns, there, moves)
            with light:
                _add_folds(code, [value], f, columns, there, moves)

    f = integer(0)
    for count in (4, 1):
        before = builder.block
        head, body, after = map(builder.append_basic_block, ("columns", "split", "added"))
        builder.branch(head)

        builder.position_at_end(head)
        begin = builder.phi(INDEX)
        begin.add_incoming(f, before)
        end = builder.add(begin, integer(count))
        builder.cbranch(builder.icmp_signed("<=", end, d), body, after)

        builder.position_at_end(body)
        value = code.cast(
            code.some(code.at(x, begin), count), ir.VectorType(ir.DoubleType(), count)
        )
        split(builder.fmul(value, code.some(code.at(scale, begin), count)), begin)
        begin.add_incoming(end, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        f = begin
    unit = code.some(code.at(scale, d), 1)  # of the weight, as of a feature that is 1
    with builder.if_else(weighted) as (heavy, light):
        with heavy:
            rests = _two_product(builder, unit, code.splat(args[2], 1))
            _add_folds(code, rests, d, columns, there, moves)
        with light:  # whole in the first fold
            place = code.at(there[0], d)
            code.put(builder.fadd(code.some(place, 1), unit), place)
            with builder.if_then(moves):
                place = code.at(there[1], d)
                code.put(builder.fsub(code.some(place, 1), unit), place)
    return context.get_dummy_value()


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


def _add_folds(
    code: Code, rests: list[Any], begin: Any, columns: Any, there: Any, moves: Any
) -> None:
    """Add whole numbers of vectors of scaled values, fold by fold, whose columns `begin` there."""
    builder, kind = code.builder, rests[0].type
    before = builder.block
    fold, after = (builder.append_basic_block(name) for name in ("fold", "whole"))
    finer, whole = code.splat(code.args[4], kind.count), ir.Constant(kind, [_WHOLE] * kind.count)
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
    builder.cbranch(builder.icmp_signed("<", further[0], code.whole(5)), fold, after)
    builder.position_at_end(after)
