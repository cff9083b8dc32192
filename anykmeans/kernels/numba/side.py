"""Rows side by side in vector registers: transposed, and compared with all centroids."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from anykmeans.kernels.numba.simd import (
    EIGHT,
    HELD,
    INDEX,
    LANES,
    PIECE,
    SHORT,
    SIDE,
    Code,
    integer,
)


@intrinsic
def across(context, x, row, scale, offset, columns, block, squares):  # type: ignore[no-untyped-def]
    """Write ``x[row + r] * scale - offset`` to ``columns[block, :, r]``, of all r, and its squared norm to ``squares[block, r]``.

    There are a multiple of EIGHT rows in a block; the last row of `x`, which has some, stands in for all beyond. All arrays are
    C-contiguous; `scale` and `offset` are of one dtype, not narrower than that of `x`, and `columns` and `squares` of one, not wider.
    """
    signature = types.void(x, row, scale, offset, columns, block, squares)
    return signature, _generate_across


@intrinsic
def nearest(  # type: ignore[no-untyped-def]
    context, columns, block, minus_2c, norms, squares, beta, eta, loose, labels, at, slack
):
    """Write to ``labels[at:]`` which of all centroids has the lowest score, for SIDE rows; return two words of 64 bits.

    Rows are LANES to a block of `columns` (blocks, d, LANES), from `block` on, and so are their squared norms, `squares`. The scores
    are ``norms[j]`` and a row's product with column j of `minus_2c` (d, k), which is (k * d,) in the order that `arranged` tells.
    Bit r of the first word says that ``labels[at + r]`` was another, that of the second that the lowest does not differ from the
    second lowest by more than ``beta * (|estimate| + |second estimate| + 2 * squared norm) + eta``. Scores that are no numbers
    are none. If there is room in `slack`, ``slack[at + r]`` says how much farther the second is at least, as an estimate is off by
    ``loose * (|estimate| + squared norm) + eta``: see `anykmeans.kernels.numba.slack`. All arrays are C-contiguous; `labels` are
    int32, the others of one floating dtype.
    """
    real = columns.dtype
    signature = types.UniTuple(types.int64, 2)(
        columns, block, minus_2c, norms, squares, real, real, real, labels, at, slack
    )
    return signature, _generate_nearest


def _generate_across(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    x, offset, columns, squares = (code.data(i) for i in (0, 3, 4, 6))
    row, block, d, lanes = code.whole(1), code.whole(5), code.size(0, 1), code.size(4, 2)
    last = builder.sub(code.size(0, 0), integer(1))
    columns = code.at(columns, builder.mul(builder.mul(block, d), lanes))
    squares = code.at(squares, builder.mul(block, lanes))
    wide, real = args[2].type, columns.type.pointee
    eights = ir.VectorType(real, EIGHT)

    def centred(value: Any, less: Any) -> Any:
        """A vector of the rows' numbers, scaled, less that of the offset."""
        count = value.type.count
        if value.type.element != wide:
            value = builder.fpext(value, ir.VectorType(wide, count))
        value = builder.fsub(builder.fmul(value, code.splat(args[2], count)), less)
        return code.cast(value, ir.VectorType(real, count))

    def keep(value: Any, feature: Any, first: Any, square: Any) -> Any:
        """Put a feature of EIGHT rows to its place; return their `square` with its own added."""
        place = code.at(columns, builder.add(builder.mul(feature, lanes), first))
        code.put(value, place)
        return builder.fadd(square, builder.fmul(value, value))

    def pick(a: Any, b: Any, order: list[int]) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(SHORT, len(order)), order))

    entry = builder.block
    names = ("rows", "fours", "four", "ones", "one", "squared", "across")
    rows, fours, four, ones, one, squared, after = map(builder.append_basic_block, names)
    builder.branch(rows)

    builder.position_at_end(rows)
    first = builder.phi(INDEX)
    first.add_incoming(integer(0), entry)
    starts = []
    for r in range(EIGHT):
        at = builder.add(row, builder.add(first, integer(r)))
        at = builder.select(builder.icmp_signed("<", at, last), at, last)
        starts.append(code.at(x, builder.mul(at, d)))
    builder.branch(fours)

    builder.position_at_end(fours)  # four features at a time
    f, square = builder.phi(INDEX), builder.phi(eights)
    f.add_incoming(integer(0), rows)
    square.add_incoming(ir.Constant(eights, [0.0] * EIGHT), rows)
    end = builder.add(f, integer(4))
    builder.cbranch(builder.icmp_signed("<=", end, d), four, ones)
    builder.position_at_end(four)
    less = code.some(code.at(offset, f), 4)
    values = [centred(code.some(code.at(start, f), 4), less) for start in starts]
    pairs = [pick(values[r], values[r + 4], list(range(EIGHT))) for r in range(4)]
    low, high = [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]
    total, at = square, 0
    for order in (low, high):
        a, b = pick(pairs[0], pairs[1], order), pick(pairs[2], pairs[3], order)
        for half in ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]):
            total = keep(pick(a, b, half), builder.add(f, integer(at)), first, total)
            at += 1
    f.add_incoming(end, four)
    square.add_incoming(total, four)
    builder.branch(fours)

    builder.position_at_end(ones)  # and what is left
    g, rest = builder.phi(INDEX), builder.phi(eights)
    g.add_incoming(f, fours)
    rest.add_incoming(square, fours)
    builder.cbranch(builder.icmp_signed("<", g, d), one, squared)
    builder.position_at_end(one)
    value = ir.Constant(ir.VectorType(x.type.pointee, EIGHT), ir.Undefined)
    for r, start in enumerate(starts):
        number = builder.load(code.at(start, g))
        value = builder.insert_element(value, number, ir.Constant(SHORT, r))
    less = code.splat(builder.load(code.at(offset, g)), EIGHT)
    total = keep(centred(value, less), g, first, rest)
    g.add_incoming(builder.add(g, integer(1)), one)
    rest.add_incoming(total, one)
    builder.branch(ones)

    builder.position_at_end(squared)
    code.put(rest, code.at(squares, first))
    following = builder.add(first, integer(EIGHT))
    first.add_incoming(following, squared)
    builder.cbranch(builder.icmp_signed("<", following, lanes), rows, after)

    builder.position_at_end(after)
    return context.get_dummy_value()


TOGETHER = 6  # centroids whose sums stay in registers
_FAR = 2.0**100  # no score of a row in range of a centroid that may be its nearest


def _generate_nearest(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    columns, minus_2c, norms, squares, labels, slack = (code.data(i) for i in (0, 2, 3, 4, 8, 10))
    block, first, d, k = code.whole(1), code.whole(9), code.size(0, 1), code.size(3, 0)
    wanted = builder.icmp_signed(">", code.size(10, 0), integer(0))
    columns = code.at(columns, builder.mul(builder.mul(block, d), integer(LANES)))
    squares = code.at(squares, builder.mul(block, integer(LANES)))
    # As many rows as fill three quarters of the registers with sums, of TOGETHER centroids.
    places = range(0, LANES * max(1, HELD // 64), LANES)
    entry = builder.block
    part, after = (builder.append_basic_block(name) for name in ("rows", "certified"))
    builder.branch(part)

    builder.position_at_end(part)
    row, words = builder.phi(INDEX), [builder.phi(INDEX) for _ in range(2)]
    for phi in (row, *words):
        phi.add_incoming(integer(0), entry)
    found = _lowest_two(
        code,
        d,
        k,
        [code.at(columns, builder.mul(builder.add(row, integer(r)), d)) for r in places],
        minus_2c,
        norms,
    )
    bits = [integer(0), integer(0)]
    for r, (best, second, who) in zip(places, found, strict=True):
        at = builder.add(row, integer(r))
        square = code.load(code.at(squares, at))
        at = builder.add(first, at)
        changed = builder.icmp_signed("!=", who, code.load(code.at(labels, at)))
        code.store(who, code.at(labels, at))
        size = builder.fadd(square, square)
        for score in (best, second):
            size = builder.fadd(size, code.magnitude(builder.fadd(square, score)))
        with builder.if_then(wanted):
            code.store(_apart(code, square, best, second), code.at(slack, at))
        margin = builder.call(code.fma, [code.splat(args[5]), size, code.splat(args[6])])
        open_ = builder.fcmp_unordered("<=", builder.fsub(second, best), margin)
        for i, flags in enumerate((changed, open_)):
            word = builder.zext(builder.bitcast(flags, ir.IntType(LANES)), INDEX)
            bits[i] = builder.or_(bits[i], builder.shl(word, integer(r)))
    ended = [
        builder.or_(word, builder.shl(some, row)) for word, some in zip(words, bits, strict=True)
    ]
    following = builder.add(row, integer(len(places) * LANES))
    for phi, value in zip((row, *words), (following, *ended), strict=True):
        phi.add_incoming(value, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, integer(SIDE)), part, after)

    builder.position_at_end(after)
    return cgutils.pack_array(builder, ended)


def _apart(code: Code, square: Any, best: Any, second: Any) -> Any:
    """How much farther than the nearest of a vector of rows the second nearest is, at least."""
    builder, zero = code.builder, ir.Constant(code.vector, [0.0] * code.lanes)
    eta, loose = code.splat(code.args[6]), code.splat(code.args[7])
    found = []
    for score, outwards in ((second, builder.fsub), (best, builder.fadd)):
        estimate = builder.fadd(square, score)
        size = builder.fadd(code.magnitude(estimate), square)
        squared = outwards(estimate, builder.call(code.fma, [loose, size, eta]))
        negative = builder.fcmp_ordered("<", squared, zero)
        found.append(code.root(builder.select(negative, zero, squared)))
    return builder.fsub(*found)


def _lowest_two(
    code: Code, d: Any, k: Any, rows: list[Any], minus_2c: Any, norms: Any
) -> list[Any]:
    """The lowest score of each vector of rows with all centroids, the second lowest, and which has the lowest."""
    builder = code.builder
    before = builder.block
    head, after = (builder.append_basic_block(name) for name in ("centroids", "scored"))
    far = ir.Constant(code.vector, [_FAR] * code.lanes)
    none = ir.Constant(ir.VectorType(SHORT, code.lanes), [0] * code.lanes)
    builder.branch(head)

    builder.position_at_end(head)
    j = builder.phi(INDEX)
    j.add_incoming(integer(0), before)
    kept = [[builder.phi(value.type) for value in (far, far, none)] for _ in rows]
    for phis in kept:
        for phi, value in zip(phis, (far, far, none), strict=True):
            phi.add_incoming(value, before)
    # In parts that differ by one centroid at most.
    left = builder.sub(k, j)
    parts = builder.udiv(builder.add(left, integer(TOGETHER - 1)), integer(TOGETHER))
    count = builder.udiv(builder.add(left, builder.sub(parts, integer(1))), parts)
    full = builder.append_basic_block("together")
    choice = builder.switch(count, full)
    join = builder.append_basic_block("compared")
    ends = []
    for some in range(TOGETHER, 0, -1):
        here = full
        if some < TOGETHER:
            here = builder.append_basic_block("together")
            choice.add_case(integer(some), here)
        builder.position_at_end(here)
        scores = _scores(
            code, d, some, rows, code.at(minus_2c, builder.mul(j, d)), code.at(norms, j)
        )
        values = [list(phis) for phis in kept]
        for i in range(some):
            number = code.splat(builder.trunc(builder.add(j, integer(i)), SHORT))
            for v, s in enumerate(scores[i]):
                best, second, who = values[v]
                closer = builder.fcmp_ordered("<", s, best)
                worse = builder.select(closer, best, s)
                lower = builder.fcmp_ordered("<", worse, second)
                values[v] = [
                    builder.select(closer, s, best),
                    builder.select(lower, worse, second),
                    builder.select(closer, number, who),
                ]
        ends.append((values, builder.block))
        builder.branch(join)

    builder.position_at_end(join)
    found = [[builder.phi(phi.type) for phi in phis] for phis in kept]
    for values, block in ends:
        for phis, ours in zip(found, values, strict=True):
            for phi, value in zip(phis, ours, strict=True):
                phi.add_incoming(value, block)
    for phis, ours in zip(kept, found, strict=True):
        for phi, value in zip(phis, ours, strict=True):
            phi.add_incoming(value, join)
    following = builder.add(j, count)
    j.add_incoming(following, join)
    builder.cbranch(builder.icmp_signed("<", following, k), head, after)

    builder.position_at_end(after)
    return found


def _scores(
    code: Code, d: Any, count: int, rows: list[Any], minus_2c: Any, norms: Any
) -> list[Any]:
    """The scores of vectors of rows with `count` centroids, from places on: by centroid.

    They are added up PIECE features at a time, so that none of many passes through as many roundings.
    """
    builder = code.builder
    starts = [code.splat(builder.load(code.at(norms, i))) for i in range(count)]
    zero = ir.Constant(code.vector, [0.0] * code.lanes)
    before = builder.block
    names = ("piece", "features", "ended", "more", "added")
    piece, loop, ended, more, after = map(builder.append_basic_block, names)
    builder.branch(piece)

    builder.position_at_end(piece)
    begin = builder.phi(INDEX)
    begin.add_incoming(integer(0), before)
    begun, so_far = ([[builder.phi(code.vector) for _ in rows] for _ in starts] for _ in range(2))
    for phis, known, start in zip(begun, so_far, starts, strict=True):
        for phi, total in zip(phis, known, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(zero, more)
            total.add_incoming(ir.Constant(code.vector, ir.Undefined), before)
    end = builder.add(begin, integer(PIECE))
    end = builder.select(builder.icmp_signed("<", end, d), end, d)
    builder.branch(loop)

    builder.position_at_end(loop)
    f = builder.phi(INDEX)
    f.add_incoming(begin, piece)
    totals = [[builder.phi(code.vector) for _ in rows] for _ in starts]
    row = builder.mul(f, integer(LANES))
    values = [code.load(code.at(place, row)) for place in rows]
    c = code.at(minus_2c, builder.mul(f, integer(count)))
    added: list[list[Any]] = [[] for _ in starts]
    for i in range(count):
        factor = code.splat(builder.load(code.at(c, i)))
        for value, total, start in zip(values, totals[i], begun[i], strict=True):
            total.add_incoming(start, piece)
            added[i].append(builder.call(code.fma, [factor, value, total]))
            total.add_incoming(added[i][-1], loop)
    following = builder.add(f, integer(1))
    f.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, end), loop, ended)

    builder.position_at_end(ended)
    # One piece alone is all there is: not said of `d`, for which the compiler would write all of this twice.
    builder.cbranch(builder.icmp_signed("==", builder.sub(end, begin), d), after, more)
    builder.position_at_end(more)
    found: list[list[Any]] = [[] for _ in starts]
    first = builder.icmp_signed("==", begin, integer(0))
    sums = [
        [
            builder.fadd(builder.select(first, zero, known), part)
            for known, part in zip(*pair, strict=True)
        ]
        for pair in zip(so_far, added, strict=True)
    ]
    begin.add_incoming(end, more)
    builder.cbranch(builder.icmp_signed("<", end, d), piece, after)

    builder.position_at_end(after)
    for i in range(count):
        for phi, alone, total in zip(so_far[i], added[i], sums[i], strict=True):
            phi.add_incoming(total, more)
            found[i].append(builder.phi(code.vector))
            found[i][-1].add_incoming(alone, ended)
            found[i][-1].add_incoming(total, more)
    return found
