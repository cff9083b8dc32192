"""The promised distance of one row, `anykmeans._distance`, in vector registers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from anykmeans.kernels.numba.simd import INDEX, SHORT, Code, integer


@intrinsic
def squared_distance(context, x, row, unit, c, j, t):  # type: ignore[no-untyped-def]
    """Return the squared distance of ``x[row]`` times `unit` and ``c[j]``, bit for bit; `t` is room (d,), float64.

    Halves are added until one number is left. As squares are not below zero, it is the same to add up quarters of the
    next power of two, padded with zeros, which takes a fourth of the room. `c` is float64. All arrays are C-contiguous.
    """
    if not all(array.layout == "C" for array in (x, c, t)):  # nothing else would tell
        raise TypingError("squared_distance wants arrays that are C-contiguous")
    return types.float64(x, row, unit, c, j, t), _generate


_DOUBLE = ir.DoubleType()
_LANES = 8  # features side by side
_MANY = ir.VectorType(_DOUBLE, _LANES)


def _generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    x, c, room = (code.data(i) for i in (0, 3, 5))
    row, j, d = code.whole(1), code.whole(4), code.size(3, 1)
    name = f"squared_distance.{8 * code.bytes}"
    function, body = code.function(name, _DOUBLE, x.type, c.type, INDEX, _DOUBLE, room.type)
    if body is not None:
        _define(body, *function.args)
    unit = context.cast(builder, args[2], signature.args[2], types.float64)
    starts = code.at(x, builder.mul(row, d)), code.at(c, builder.mul(j, d))
    return builder.call(function, [*starts, d, unit, room])


def _define(code: Code, x: Any, c: Any, d: Any, unit: Any, room: Any) -> None:
    """Write the function of a row, a centroid, their length, the unit and the room."""
    builder, entry = code.builder, code.builder.block
    zeros = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(INDEX, [INDEX, ir.IntType(1)]), "llvm.ctlz.i64"
    )
    clear = builder.call(zeros, [builder.sub(d, integer(1)), ir.Constant(ir.IntType(1), 0)])
    bits, fewest = builder.sub(integer(62), clear), integer(_LANES.bit_length() - 1)
    bits = builder.select(builder.icmp_signed("<", bits, fewest), fewest, bits)
    quarter, least = builder.shl(integer(1), bits), integer(_LANES)
    many = builder.icmp_signed(">", quarter, least)
    names = ("fourths", "half", "halves", "pair", "paired", "last")
    fourths, half, halves, pair, paired, last = map(builder.append_basic_block, names)
    builder.branch(fourths)

    builder.position_at_end(fourths)
    f = builder.phi(INDEX)
    f.add_incoming(integer(0), entry)
    parts, begin = [], f
    for _ in range(4):
        parts.append(_squares(code, x, c, begin, d, unit))
        begin = builder.add(begin, quarter)
    a, b, g, h = parts
    found = builder.fadd(builder.fadd(a, g), builder.fadd(b, h))
    with builder.if_then(many):
        code.put(found, code.at(room, f))
    following = builder.add(f, least)
    f.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, quarter), fourths, half)

    builder.position_at_end(half)
    builder.cbranch(many, halves, last)

    builder.position_at_end(halves)
    before = builder.phi(INDEX)
    before.add_incoming(quarter, half)
    size = builder.lshr(before, integer(1))
    builder.branch(pair)
    builder.position_at_end(pair)
    f = builder.phi(INDEX)
    f.add_incoming(integer(0), halves)
    places = code.at(room, f), code.at(room, builder.add(f, size))
    total = builder.fadd(*(code.some(place, _LANES) for place in places))
    code.put(total, places[0])
    following = builder.add(f, least)
    f.add_incoming(following, pair)
    builder.cbranch(builder.icmp_signed("<", following, size), pair, paired)
    builder.position_at_end(paired)
    before.add_incoming(size, paired)
    builder.cbranch(builder.icmp_signed(">", size, least), halves, last)

    builder.position_at_end(last)
    rest = builder.phi(_MANY)
    rest.add_incoming(found, half)
    rest.add_incoming(total, paired)
    count = _LANES
    while count > 1:
        count //= 2
        picks = (
            ir.Constant(ir.VectorType(SHORT, count), list(range(i, i + count))) for i in (0, count)
        )
        rest = builder.fadd(*(builder.shuffle_vector(rest, rest, pick) for pick in picks))
    builder.ret(builder.extract_element(rest, ir.Constant(SHORT, 0)))


def _squares(code: Code, x: Any, c: Any, begin: Any, d: Any, unit: Any) -> Any:
    """The squared differences of so many features, zeros beyond the last."""
    builder = code.builder
    names = ("whole", "less", "some", "squared")
    whole, less, some, after = map(builder.append_basic_block, names)
    places = [code.at(a, begin) for a in (x, c)]
    left = builder.sub(d, begin)
    builder.cbranch(builder.icmp_signed(">=", left, integer(_LANES)), whole, less)

    def squared(value: Any, centre: Any) -> Any:
        apart = builder.fsub(
            builder.fmul(code.cast(value, _MANY), code.splat(unit, _LANES)), centre
        )
        return builder.fmul(apart, apart)

    builder.position_at_end(whole)
    all_of_them = squared(*(code.some(place, _LANES) for place in places))
    builder.branch(after)

    builder.position_at_end(less)
    builder.cbranch(builder.icmp_signed(">", left, integer(0)), some, after)

    builder.position_at_end(some)
    numbers = ir.Constant(ir.VectorType(INDEX, _LANES), list(range(_LANES)))
    there = builder.icmp_signed("<", numbers, code.splat(left, _LANES))
    those = squared(*(code.masked(place, there) for place in places))
    builder.branch(after)

    builder.position_at_end(after)
    result = builder.phi(_MANY)
    none = ir.Constant(_MANY, [0.0] * _LANES)
    for value, block in ((all_of_them, whole), (none, less), (those, some)):
        result.add_incoming(value, block)
    return result
