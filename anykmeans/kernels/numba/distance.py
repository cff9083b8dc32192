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
_FOUR = ir.VectorType(_DOUBLE, 4)


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
    bits = builder.sub(integer(62), clear)
    bits = builder.select(builder.icmp_signed("<", bits, integer(2)), integer(2), bits)
    quarter = builder.shl(integer(1), bits)
    many = builder.icmp_signed(">", quarter, integer(4))
    names = ("four", "half", "halves", "pair", "paired", "last")
    four, half, halves, pair, paired, last = map(builder.append_basic_block, names)
    builder.branch(four)

    builder.position_at_end(four)
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
    following = builder.add(f, integer(4))
    f.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, quarter), four, half)

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
    total = builder.fadd(*(code.some(place, 4) for place in places))
    code.put(total, places[0])
    following = builder.add(f, integer(4))
    f.add_incoming(following, pair)
    builder.cbranch(builder.icmp_signed("<", following, size), pair, paired)
    builder.position_at_end(paired)
    before.add_incoming(size, paired)
    builder.cbranch(builder.icmp_signed(">", size, integer(4)), halves, last)

    builder.position_at_end(last)
    rest = builder.phi(_FOUR)
    rest.add_incoming(found, half)
    rest.add_incoming(total, paired)
    numbers = [builder.extract_element(rest, ir.Constant(SHORT, i)) for i in range(4)]
    pairs = (builder.fadd(numbers[i], numbers[i + 2]) for i in range(2))
    builder.ret(builder.fadd(*pairs))


def _squares(code: Code, x: Any, c: Any, begin: Any, d: Any, unit: Any) -> Any:
    """The squared differences of four features, zeros beyond the last."""
    builder = code.builder
    end = builder.add(begin, integer(4))
    names = ("whole", "less", "some", "squared")
    whole, less, some, after = map(builder.append_basic_block, names)
    builder.cbranch(builder.icmp_signed("<=", end, d), whole, less)

    def squared(value: Any, centre: Any) -> Any:
        apart = builder.fsub(builder.fmul(code.cast(value, _FOUR), code.splat(unit, 4)), centre)
        return builder.fmul(apart, apart)

    builder.position_at_end(whole)
    all_four = squared(code.some(code.at(x, begin), 4), code.some(code.at(c, begin), 4))
    builder.branch(after)

    builder.position_at_end(less)
    builder.cbranch(builder.icmp_signed("<", begin, d), some, after)

    builder.position_at_end(some)
    found = [ir.Constant(ir.VectorType(a.type.pointee, 4), [0.0] * 4) for a in (x, c)]
    for i in range(4):
        at = builder.add(begin, integer(i))
        inside = builder.icmp_signed("<", at, d)
        at = builder.select(inside, at, begin)
        for which, a in enumerate((x, c)):
            zero = ir.Constant(a.type.pointee, 0.0)
            number = builder.select(inside, builder.load(code.at(a, at)), zero)
            found[which] = builder.insert_element(found[which], number, ir.Constant(SHORT, i))
    those = squared(*found)
    builder.branch(after)

    builder.position_at_end(after)
    result = builder.phi(_FOUR)
    for value, block in ((all_four, whole), (ir.Constant(_FOUR, [0.0] * 4), less), (those, some)):
        result.add_incoming(value, block)
    return result
