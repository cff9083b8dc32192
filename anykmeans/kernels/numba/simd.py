"""The inner loops in vector registers: rows against centroids, and the two lowest scores.

Compilers turn loops into vector code, but do not keep a block of sums in registers across a loop of
run-time length; here it is spelled out in LLVM's vector types, which suit any processor. Sixteen
centroids, a *panel*, are the lanes, so rows are read where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16  # centroids a panel
EIGHT = 8  # centroids that sparse rows are scored with at a time
BLOCK = 64  # features a sum is cut into: a product rounds BLOCK + d / BLOCK times, not d times
WIDTH = 2 * LANES  # rows side by side, as `lanes` takes them
SIDE = 64  # and as all others do
# Rows a tile, and the bytes of a row's sums: as many as the registers hold.
ROWS, HELD = (8, 128) if llvmlite.binding.get_host_cpu_features().get("avx512f") else (4, 64)

PIECE = 32  # features that are added up before they are added to the others
SMALL = 2.0**-80  # a squared distance below which squares may have been lost in float32

INDEX, SHORT = ir.IntType(64), ir.IntType(32)


@intrinsic
def tile(context, y, at, d, panels, norms, p, scores, low, second, lane):  # type: ignore[no-untyped-def]
    """Score `ROWS` rows with one panel, from ``norms[p]`` on.

    ``scores[r]`` becomes the scores of ``y[at[r]]`` with the LANES centroids ``panels[p]`` (d, LANES);
    ``low[r]``, ``second[r]`` and ``lane[r]`` the lowest, the second lowest, and the lane of a lowest.
    All arrays are C-contiguous; `at` and `lane` are int64, the others of one floating dtype.
    """
    return types.void(y, at, d, panels, norms, p, scores, low, second, lane), _generate_tile


@intrinsic
def apart(context, x, row, panels, p, found, to, at):  # type: ignore[no-untyped-def]
    """Write to ``found[to + r, at:]`` the distances of ROWS rows ``x[row + r]`` to one panel, ``panels[p]`` (d, lanes).

    Returns whether any squared distance was too SMALL to be added up in every dtype. There are as many lanes as HELD bytes hold, up
    to LANES, and so many numbers are written to a row. Squares are added up PIECE at a time. All arrays are C-contiguous and
    of one floating dtype.
    """
    return types.boolean(x, row, panels, p, found, to, at), _generate_apart


@intrinsic
def prefetch(context, a, index):  # type: ignore[no-untyped-def]
    """Ask for the element of the C-contiguous `a` at a flat index, so that it is near when read."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        code = Code(context, builder, signature, args)
        code.prefetch(code.at(code.data(0), code.whole(1)))
        return context.get_dummy_value()

    return types.void(a, index), generate


@intrinsic
def lanes(context, columns, d, minus_2c, norms, visit, start, stop, best, second, who):  # type: ignore[no-untyped-def]
    """Score WIDTH rows with the centroids ``visit[start:stop]``, not empty, and keep the two lowest.

    Row r is ``columns[:, r]`` (d,), the scores are ``norms[j] + minus_2c[j] @ columns[:, r]``; ``best[r]``
    and ``second[r]`` are lowered to them, and ``who[r]``, int32, becomes the centroid of the lowest.
    All arrays are C-contiguous; `visit` is int64, the others of one floating dtype.
    """
    signature = types.void(columns, d, minus_2c, norms, visit, start, stop, best, second, who)
    return signature, _generate_lanes


@intrinsic
def centre(context, y, t, x, row, ahead, start, stop, scale, offset, c, j):  # type: ignore[no-untyped-def]
    """Write ``x[row] * scale - offset`` to ``y[t]``, both from `start` to `stop`, whole vectors of LANES.

    Returns what these features add to its squared norm and its product with ``c[j]``, and asks for row `ahead`.
    All arrays are C-contiguous; `scale` and `offset` are of one dtype, and so are `y` and `c`.
    """
    real = y.dtype
    signature = types.UniTuple(real, 2)(y, t, x, row, ahead, start, stop, scale, offset, c, j)
    return signature, _generate_centre


@intrinsic
def product(context, y, t, c, j, start, stop):  # type: ignore[no-untyped-def]
    """Return the product of ``y[t]`` and ``c[j]`` from `start` to `stop`, whole vectors of LANES; one dtype, C-contiguous."""
    return y.dtype(y, t, c, j, start, stop), _generate_product


@intrinsic
def within(context, z, block, c, j, start, edge):  # type: ignore[no-untyped-def]
    """Return the bits of SIDE rows with ``start[j] + sum((z[block] - c[j]) ** 2) < edge[block]``.

    Coordinates `z` (blocks, p, SIDE) and `c` (t, p), `start` (t,) and `edge` (blocks, SIDE) are C-contiguous and
    of one floating dtype. Bit r is row r's.
    """
    return types.int64(z, block, c, j, start, edge), _generate_within


@intrinsic
def saving(context, z, block, c, j, start, edge, wider, spare, weight, less):  # type: ignore[no-untyped-def]
    """Return the bits of `within`; add to ``less[j]`` (LANES,), float64, what those rows gain by the centroid.

    That is ``weight * ((edge[block] - spare) / wider - squared distance)`` where it is positive, rows LANES apart in
    one sum. `weight` (SIDE,) is of the dtype of `z`, and so are the numbers `wider` and `spare`.
    """
    signature = types.int64(z, block, c, j, start, edge, z.dtype, z.dtype, weight, less)
    return signature, _generate_saving


@intrinsic
def combine(context, table, features, values, first, stop, start, scores):  # type: ignore[no-untyped-def]
    """Write to `scores` the sum of `start` and ``values[e] * table[features[e]]`` for e from `first` to `stop`.

    `table` (columns, slots), `start` and `scores` (slots,) are of one floating dtype, the slots a multiple of EIGHT; all
    are C-contiguous.
    """
    return types.void(table, features, values, first, stop, start, scores), _generate_combine


@intrinsic
def lowest(context, bits):  # type: ignore[no-untyped-def]
    """Return the number of the lowest bit that is set; `bits` is not 0."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@intrinsic
def how_many(context, bits):  # type: ignore[no-untyped-def]
    """Return how many bits are set."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.int64), generate


class Code:
    """What the generators share: constants, and vectors of the first argument's dtype."""

    def __init__(
        self, context: Any, builder: Any, signature: Any, args: Any, most: int | None = None
    ) -> None:
        self.context, self.builder, self.signature, self.args = context, builder, signature, args
        self.real = context.get_data_type(signature.args[0].dtype)
        self.bytes = signature.args[0].dtype.bitwidth // 8
        # Lanes of a vector: a panel, or what of one fits `most` bytes.
        self.lanes = min(LANES, (most or LANES * self.bytes) // self.bytes)
        self.vector = ir.VectorType(self.real, self.lanes)
        self.fma = None
        if isinstance(self.real, ir.IntType):
            return
        self.fma = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(self.vector, [self.vector] * 3),
            f"llvm.fmuladd.v{self.lanes}f{8 * self.bytes}",
        )

    def function(self, name: str, result: Any, *arguments: Any) -> tuple[Any, Code | None]:
        """A function of the module that is not put in line, and what writes it where no other call has."""
        kind = ir.FunctionType(result, arguments)
        found = cgutils.get_or_insert_function(self.builder.module, kind, f"anykmeans.{name}")
        if not found.is_declaration:
            return found, None
        found.linkage = "internal"
        found.attributes.add("noinline")
        code = copy(self)
        code.builder = ir.IRBuilder(found.append_basic_block())
        return found, code

    def data(self, i: int) -> Any:
        """Where the numbers of array argument `i` are."""
        return self.context.make_array(self.signature.args[i])(
            self.context, self.builder, self.args[i]
        ).data

    def whole(self, i: int) -> Any:
        """Argument `i`, a whole number."""
        return self.context.cast(self.builder, self.args[i], self.signature.args[i], types.intp)

    def size(self, i: int, axis: int) -> Any:
        """How long an axis of array argument `i` is."""
        array = self.context.make_array(self.signature.args[i])
        shape = array(self.context, self.builder, self.args[i]).shape
        return self.builder.extract_value(shape, axis)

    def at(self, pointer: Any, index: Any) -> Any:
        """The place of element `index`."""
        return self.builder.gep(pointer, [integer(index) if isinstance(index, int) else index])

    def load(self, pointer: Any) -> Any:
        """The elements of a vector, from a place on."""
        kind = ir.VectorType(pointer.type.pointee, self.lanes)
        loaded = self.builder.load(self.builder.bitcast(pointer, kind.as_pointer()))
        loaded.align = self.bytes if pointer.type.pointee == self.real else 4
        return loaded

    def store(self, value: Any, pointer: Any) -> None:
        """Put a vector's elements to a place."""
        stored = self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer()))
        stored.align = self.bytes if pointer.type.pointee == self.real else 4

    def some(self, pointer: Any, count: int) -> Any:
        """So many elements from a place on, wherever that is."""
        kind = ir.VectorType(pointer.type.pointee, count).as_pointer()
        loaded = self.builder.load(self.builder.bitcast(pointer, kind))
        loaded.align = 4
        return loaded

    def masked(self, pointer: Any, there: Any) -> Any:
        """The elements from a place on that are `there`, a vector of bits, and zeros."""
        real, count = pointer.type.pointee, there.type.count
        vector = ir.VectorType(real, count)
        kind = ir.FunctionType(vector, [vector.as_pointer(), SHORT, there.type, vector])
        bits = 32 if real == ir.FloatType() else 64
        name = f"llvm.masked.load.v{count}f{bits}.p0v{count}f{bits}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        place = self.builder.bitcast(pointer, vector.as_pointer())
        zeros = ir.Constant(vector, [0.0] * count)
        return self.builder.call(function, [place, ir.Constant(SHORT, 4), there, zeros])

    def put(self, value: Any, pointer: Any) -> None:
        """Put any vector's elements to any place."""
        self.builder.store(value, self.builder.bitcast(pointer, value.type.as_pointer())).align = 4

    def prefetch(self, pointer: Any) -> None:
        """Ask for what is at a place."""
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, SHORT, SHORT, SHORT])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0i8")
        # To read, into all levels of the cache, data.
        how = [ir.Constant(SHORT, i) for i in (0, 3, 1)]
        self.builder.call(function, [self.builder.bitcast(pointer, byte), *how])

    def cast(self, value: Any, kind: Any) -> Any:
        """A vector with elements of another floating type."""
        if value.type.element == kind.element:
            return value
        wider = kind.element == ir.DoubleType()
        return (self.builder.fpext if wider else self.builder.fptrunc)(value, kind)

    def magnitude(self, vector: Any) -> Any:
        """A vector's elements without their signs."""
        return self._each("fabs", vector)

    def root(self, vector: Any) -> Any:
        """The square roots of a vector's elements."""
        return self._each("sqrt", vector)

    def _each(self, name: str, vector: Any) -> Any:
        kind = ir.FunctionType(self.vector, [self.vector])
        name = f"llvm.{name}.v{self.lanes}f{8 * self.bytes}"
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, kind, name), [vector]
        )

    def total(self, vector: Any) -> Any:
        """The sum of a vector's elements, two halves at a time."""
        kind = ir.FunctionType(self.real, [self.real, self.vector])
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f{8 * self.bytes}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        zero = ir.Constant(self.real, -0.0)
        return self.builder.call(function, [zero, vector], fastmath=("reassoc",))

    def splat(self, scalar: Any, count: int = 0) -> Any:
        """A vector of one value."""
        undefined = ir.Constant(ir.VectorType(scalar.type, count or self.lanes), ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, ir.Constant(SHORT, 0))
        zeros = ir.Constant(ir.VectorType(SHORT, count or self.lanes), [0] * (count or self.lanes))
        return self.builder.shuffle_vector(one, undefined, zeros)


def integer(i: int) -> Any:
    """The constant of a 64-bit whole number."""
    return ir.Constant(INDEX, i)


def _generate_lanes(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    columns, minus_2c, norms, visit = (code.data(i) for i in (0, 2, 3, 4))
    results = [code.data(i) for i in (7, 8, 9)]
    d, start, stop = (code.whole(i) for i in (1, 5, 6))
    blocks = WIDTH // LANES
    held = [[code.load(code.at(pointer, b * LANES)) for pointer in results] for b in range(blocks)]

    before = builder.block
    loop, features, scored, after = (
        builder.append_basic_block(name) for name in ("centroids", "features", "scored", "after")
    )
    builder.branch(loop)

    builder.position_at_end(loop)
    q = builder.phi(INDEX)
    q.add_incoming(start, before)
    kept = [[builder.phi(value.type) for value in values] for values in held]
    for phis, values in zip(kept, held, strict=True):
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, before)
    j = builder.load(code.at(visit, q))
    c = code.at(minus_2c, builder.mul(j, d))
    norm = code.splat(builder.load(code.at(norms, j)))
    builder.branch(features)

    builder.position_at_end(features)
    f = builder.phi(INDEX)
    f.add_incoming(integer(0), loop)
    sums = [builder.phi(code.vector) for _ in range(blocks)]
    value = code.splat(builder.load(code.at(c, f)))
    column = code.at(columns, builder.mul(f, integer(WIDTH)))
    added = []
    for b in range(blocks):
        sums[b].add_incoming(norm, loop)
        y = code.load(code.at(column, b * LANES))
        added.append(builder.call(code.fma, [value, y, sums[b]]))
        sums[b].add_incoming(added[b], features)
    following = builder.add(f, integer(1))
    f.add_incoming(following, features)
    builder.cbranch(builder.icmp_signed("<", following, d), features, scored)

    builder.position_at_end(scored)
    number = code.splat(builder.trunc(j, SHORT))
    for b in range(blocks):
        (best, second, who), s = kept[b], added[b]
        closer = builder.fcmp_ordered("<", s, best)
        worse = builder.select(closer, best, s)
        lower = builder.fcmp_ordered("<", worse, second)
        values = [
            builder.select(closer, s, best),
            builder.select(lower, worse, second),
            builder.select(closer, number, who),
        ]
        for phi, value in zip(kept[b], values, strict=True):
            phi.add_incoming(value, scored)
        held[b] = values
    next_q = builder.add(q, integer(1))
    q.add_incoming(next_q, scored)
    builder.cbranch(builder.icmp_signed("<", next_q, stop), loop, after)

    builder.position_at_end(after)
    for b in range(blocks):
        for pointer, value in zip(results, held[b], strict=True):
            code.store(value, code.at(pointer, b * LANES))
    return context.get_dummy_value()


def _generate_combine(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    start, scores, slots = code.data(5), code.data(6), code.size(0, 1)
    # So many eights of sums stay in registers while the entries pass by; what is left over has a loop of its own.
    most = 4 * HELD // (EIGHT * code.bytes)
    before = builder.block
    head, done = (builder.append_basic_block(name) for name in ("slots", "combined"))
    builder.branch(head)

    builder.position_at_end(head)
    begin = builder.phi(INDEX)
    begin.add_incoming(integer(0), before)
    eights = builder.udiv(builder.sub(slots, begin), integer(EIGHT))
    full = builder.append_basic_block("eights")
    choice = builder.switch(eights, full)
    choice.add_case(integer(0), done)
    for count in range(most, 0, -1):
        if count < most:
            choice.add_case(integer(count), builder.append_basic_block("eights"))
        block = full if count == most else choice.cases[-1][1]
        builder.position_at_end(block)
        _combine_eights(code, count, begin, code.at(start, begin), code.at(scores, begin))
        following = builder.add(begin, integer(count * EIGHT))
        begin.add_incoming(following, builder.block)
        builder.branch(head)

    builder.position_at_end(done)
    return context.get_dummy_value()


def _combine_eights(code: Code, count: int, begin: Any, start: Any, scores: Any) -> None:
    """Do `combine` for so many eights of slots from `begin` on."""
    builder, (table, features, values) = code.builder, (code.data(i) for i in range(3))
    first, stop, width = code.whole(3), code.whole(4), code.size(0, 1)
    eight = Code(code.context, builder, code.signature, code.args, EIGHT * code.bytes)
    vectors = [(place, code) for place in range(0, count // 2 * LANES, LANES)]
    vectors += [((count - 1) * EIGHT, eight)] * (count % 2)
    starts = [some.load(some.at(start, place)) for place, some in vectors]
    before = builder.block
    loop, after = (builder.append_basic_block(name) for name in ("entries", "added"))
    builder.cbranch(builder.icmp_signed("<", first, stop), loop, after)

    builder.position_at_end(loop)
    e, totals = builder.phi(INDEX), [builder.phi(some.vector) for _, some in vectors]
    e.add_incoming(first, before)
    feature = builder.load(code.at(features, e))
    if feature.type != INDEX:
        feature = builder.sext(feature, INDEX)
    value = builder.load(code.at(values, e))
    if value.type != code.real:
        wider = code.real == ir.DoubleType()
        value = (builder.fpext if wider else builder.fptrunc)(value, code.real)
    row = code.at(table, builder.add(builder.mul(feature, width), begin))
    following = builder.add(e, integer(1))
    e.add_incoming(following, loop)
    added = []
    for (place, some), zeroth, total in zip(vectors, starts, totals, strict=True):
        factor = some.load(some.at(row, place))
        added.append(builder.call(some.fma, [some.splat(value), factor, total]))
        total.add_incoming(zeroth, before)
        total.add_incoming(added[-1], loop)
    builder.cbranch(builder.icmp_signed("<", following, stop), loop, after)

    builder.position_at_end(after)
    results = [builder.phi(some.vector) for _, some in vectors]
    for result, zeroth, total in zip(results, starts, added, strict=True):
        result.add_incoming(zeroth, before)
        result.add_incoming(total, loop)
    for (place, some), result in zip(vectors, results, strict=True):
        some.store(result, some.at(scores, place))


def _generate_within(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    return _within(Code(context, builder, signature, args))[0]


def _within(code: Code) -> tuple[Any, list[Any], list[Any]]:
    """The bits of `within`, and by vectors of LANES the squared distances, with the start, and the edges."""
    builder = code.builder
    z, c, start, edge = (code.data(i) for i in (0, 2, 4, 5))
    block, j = code.whole(1), code.whole(3)
    p = code.size(2, 1)
    z = code.at(z, builder.mul(builder.mul(block, p), integer(SIDE)))
    edge = code.at(edge, builder.mul(block, integer(SIDE)))
    start = code.splat(builder.load(code.at(start, j)))
    columns = [code.at(z, r) for r in range(0, SIDE, LANES)]
    squares = _squares(code, p, columns, code.at(c, builder.mul(j, p)), start)
    edges = [code.load(code.at(edge, r)) for r in range(0, SIDE, LANES)]
    bits = integer(0)
    for b, (square, limit) in enumerate(zip(squares, edges, strict=True)):
        less = builder.fcmp_ordered("<", square, limit)
        word = builder.zext(builder.bitcast(less, ir.IntType(LANES)), INDEX)
        bits = builder.or_(bits, builder.shl(word, integer(b * LANES)))
    return bits, squares, edges


def _generate_saving(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    bits, squares, edges = _within(code)
    start, weight, less = (code.data(i) for i in (4, 8, 9))
    j = code.whole(3)
    with builder.if_then(builder.icmp_unsigned("!=", bits, integer(0))):
        wider, spare = code.splat(args[6]), code.splat(args[7])
        start = code.splat(builder.load(code.at(start, j)))
        zero = ir.Constant(code.vector, [0.0] * LANES)
        total = zero
        for b, (square, edge) in enumerate(zip(squares, edges, strict=True)):
            before = builder.fdiv(builder.fsub(edge, spare), wider)
            gain = builder.fsub(before, builder.fsub(square, start))
            gain = builder.select(builder.fcmp_ordered(">", gain, zero), gain, zero)
            total = builder.call(code.fma, [code.load(code.at(weight, b * LANES)), gain, total])
        wide = ir.VectorType(ir.DoubleType(), LANES)
        place = code.at(less, builder.mul(j, integer(LANES)))
        code.store(builder.fadd(code.load(place), code.cast(total, wide)), place)
    return bits


def _squares(code: Code, d: Any, columns: list[Any], c: Any, start: Any) -> list[Any]:
    """Add the squares of differences to `start`: of `d` features of vectors from places on, SIDE apart, and of `c`."""
    builder = code.builder

    def add(f: Any, sums: list[Any]) -> list[Any]:
        value, feature = code.splat(builder.load(code.at(c, f))), builder.mul(f, integer(SIDE))
        found = []
        for total, column in zip(sums, columns, strict=True):
            step = builder.fsub(code.load(code.at(column, feature)), value)
            found.append(builder.call(code.fma, [step, step, total]))
        return found

    return _by_blocks(code, d, [start] * len(columns), add)


def _generate_centre(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    y, x, offset, c = (code.data(i) for i in (0, 2, 8, 9))
    t, row, ahead, start, stop, j = (code.whole(i) for i in (1, 3, 4, 5, 6, 10))
    scale = code.splat(args[7])
    d = context.make_array(signature.args[8])(context, builder, args[8]).nitems
    y, x, coming, c = (
        code.at(data, builder.mul(i, d)) for data, i in ((y, t), (x, row), (x, ahead), (c, j))
    )
    line = 64 // (signature.args[2].dtype.bitwidth // 8)

    before = builder.block
    loop, after = (builder.append_basic_block(name) for name in ("features", "after"))
    zero = ir.Constant(code.vector, [0.0] * LANES)
    builder.cbranch(builder.icmp_signed("<", start, stop), loop, after)

    builder.position_at_end(loop)
    f = builder.phi(INDEX)
    f.add_incoming(start, before)
    sums = [builder.phi(code.vector) for _ in range(2)]
    for i in range(0, LANES, line):
        code.prefetch(code.at(coming, builder.add(f, integer(i))))
    value = code.cast(code.load(code.at(x, f)), scale.type)
    value = builder.fsub(builder.fmul(value, scale), code.load(code.at(offset, f)))
    value = code.cast(value, code.vector)
    code.store(value, code.at(y, f))
    added = []
    for phi, other in zip(sums, (value, code.load(code.at(c, f))), strict=True):
        phi.add_incoming(zero, before)
        added.append(builder.call(code.fma, [value, other, phi]))
        phi.add_incoming(added[-1], loop)
    following = builder.add(f, integer(LANES))
    f.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, stop), loop, after)

    builder.position_at_end(after)
    found = []
    for value in added:
        total = builder.phi(code.vector)
        total.add_incoming(zero, before)
        total.add_incoming(value, loop)
        found.append(total)
    return context.make_tuple(builder, signature.return_type, [code.total(v) for v in found])


def _generate_apart(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args, HELD)
    x, panels, found = (code.data(i) for i in (0, 2, 4))
    d, k, row, p, to, at = code.size(0, 1), code.size(4, 1), *(code.whole(i) for i in (1, 3, 5, 6))
    starts = [code.at(x, builder.mul(builder.add(row, integer(r)), d)) for r in range(ROWS)]
    panel = code.at(panels, builder.mul(builder.mul(p, d), integer(code.lanes)))
    zero = ir.Constant(code.vector, [0.0] * code.lanes)
    before = builder.block
    piece, loop, ended, more, after = map(
        builder.append_basic_block, ("piece", "features", "ended", "more", "added")
    )
    builder.branch(piece)

    builder.position_at_end(piece)
    begin = builder.phi(INDEX)
    so_far = [builder.phi(code.vector) for _ in starts]
    end = builder.add(begin, integer(PIECE))
    end = builder.select(builder.icmp_signed("<", end, d), end, d)
    builder.branch(loop)

    builder.position_at_end(loop)
    f = builder.phi(INDEX)
    totals = [builder.phi(code.vector) for _ in starts]
    c = code.load(code.at(panel, builder.mul(f, integer(code.lanes))))
    added = []
    for start, total in zip(starts, totals, strict=True):
        step = builder.fsub(code.splat(builder.load(code.at(start, f))), c)
        added.append(builder.call(code.fma, [step, step, total]))
    following = builder.add(f, integer(1))
    builder.cbranch(builder.icmp_signed("<", following, end), loop, ended)

    builder.position_at_end(ended)
    builder.cbranch(builder.icmp_signed("<=", d, integer(PIECE)), after, more)
    builder.position_at_end(more)
    sums = [builder.fadd(*pair) for pair in zip(so_far, added, strict=True)]
    builder.cbranch(builder.icmp_signed("<", end, d), piece, after)

    builder.position_at_end(after)
    squared = [builder.phi(code.vector) for _ in starts]
    ends = [(begin, integer(0), before, end, more), (f, begin, piece, following, loop)]
    for r in range(ROWS):
        ends += [
            (so_far[r], zero, before, sums[r], more),
            (totals[r], zero, piece, added[r], loop),
            (squared[r], added[r], ended, sums[r], more),
        ]
    for phi, first, there, then, here in ends:
        phi.add_incoming(first, there)
        phi.add_incoming(then, here)
    root = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(code.vector, [code.vector]),
        f"llvm.sqrt.v{code.lanes}f{8 * code.bytes}",
    )
    small = None
    for r, value in enumerate(squared):
        place = builder.mul(builder.add(to, integer(r)), k)
        code.put(builder.call(root, [value]), code.at(found, builder.add(place, at)))
        below = builder.fcmp_ordered("<", value, code.splat(ir.Constant(code.real, SMALL)))
        small = below if small is None else builder.or_(small, below)
    bits = builder.bitcast(small, ir.IntType(code.lanes))
    return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(code.lanes), 0))


def _generate_product(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    t, j, start, stop = (code.whole(i) for i in (1, 3, 4, 5))
    d = code.size(0, 1)
    y, c = (code.at(code.data(i), builder.mul(row, d)) for i, row in ((0, t), (2, j)))
    before = builder.block
    loop, after = (builder.append_basic_block(name) for name in ("features", "after"))
    zero = ir.Constant(code.vector, [0.0] * LANES)
    builder.cbranch(builder.icmp_signed("<", start, stop), loop, after)

    builder.position_at_end(loop)
    f, total = builder.phi(INDEX), builder.phi(code.vector)
    f.add_incoming(start, before)
    total.add_incoming(zero, before)
    added = builder.call(code.fma, [code.load(code.at(y, f)), code.load(code.at(c, f)), total])
    total.add_incoming(added, loop)
    following = builder.add(f, integer(LANES))
    f.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, stop), loop, after)

    builder.position_at_end(after)
    found = builder.phi(code.vector)
    found.add_incoming(zero, before)
    found.add_incoming(added, loop)
    return code.total(found)


def _generate_tile(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args, HELD)
    y, at, panels, norms, scores, low, second, lane = (
        code.data(i) for i in (0, 1, 3, 4, 6, 7, 8, 9)
    )
    d, p = code.whole(2), code.whole(5)
    starts = [code.at(y, builder.mul(builder.load(code.at(at, r)), d)) for r in range(ROWS)]
    panel = code.at(panels, builder.mul(builder.mul(p, d), integer(LANES)))
    norm = code.at(norms, builder.mul(p, integer(LANES)))
    parts = [
        _score(code, d, starts, code.at(panel, first), code.at(norm, first))
        for first in range(0, LANES, code.lanes)
    ]
    whole = ir.Constant(ir.VectorType(SHORT, LANES), list(range(LANES)))
    added = parts[0]
    if len(parts) > 1:
        added = [builder.shuffle_vector(*halves, whole) for halves in zip(*parts, strict=True)]

    for r in range(ROWS):
        code.store(added[r], code.at(scores, r * LANES))
    # A tournament: two vectors at a time become one that has half as many lanes of each row.
    numbers = ir.Constant(ir.VectorType(SHORT, LANES), list(range(LANES)))
    found: list[tuple[Any, Any, Any]] = [(value, None, numbers) for value in added]
    share = LANES  # lanes of a row
    while share > 1:
        pairs = zip(found[::2], found[1::2], strict=True) if len(found) > 1 else [(found[0],) * 2]
        found = [_round(code, a, b, share) for a, b in pairs]
        share //= 2
    ((least, runner_up, where),) = found
    code.store(least, low)
    code.store(runner_up, second)
    code.store(builder.zext(where, ir.VectorType(INDEX, ROWS)), lane)
    return context.get_dummy_value()


def _score(code: Code, d: Any, starts: list[Any], panel: Any, norm: Any) -> list[Any]:
    """Score rows from their starts with a vector of a panel's centroids, from its place on."""
    builder = code.builder

    def add(f: Any, sums: list[Any]) -> list[Any]:
        c = code.load(code.at(panel, builder.mul(f, integer(LANES))))
        values = [code.splat(builder.load(code.at(place, f))) for place in starts]
        return [
            builder.call(code.fma, [value, c, total])
            for value, total in zip(values, sums, strict=True)
        ]

    return _by_blocks(code, d, [code.load(norm)] * len(starts), add)


def _by_blocks(
    code: Code, d: Any, starts: list[Any], add: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Add to `starts` what `add` adds to sums for each of `d` features: those of BLOCK features at a time, from zero on."""
    builder = code.builder
    before = builder.block
    block, loop, end, after = (
        builder.append_basic_block(name) for name in ("block", "features", "end", "added")
    )
    builder.branch(block)

    builder.position_at_end(block)
    first = builder.phi(INDEX)
    first.add_incoming(integer(0), before)
    totals = [builder.phi(code.vector) for _ in starts]
    stop = builder.add(first, integer(BLOCK))
    stop = builder.select(builder.icmp_signed("<", stop, d), stop, d)
    builder.branch(loop)

    builder.position_at_end(loop)
    f = builder.phi(INDEX)
    f.add_incoming(first, block)
    sums = [builder.phi(code.vector) for _ in starts]
    added = add(f, sums)
    for phi, value in zip(sums, added, strict=True):
        phi.add_incoming(ir.Constant(code.vector, [0.0] * code.lanes), block)
        phi.add_incoming(value, loop)
    following = builder.add(f, integer(1))
    f.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, stop), loop, end)

    builder.position_at_end(end)
    found = [builder.fadd(total, value) for total, value in zip(totals, added, strict=True)]
    for phi, start, value in zip(totals, starts, found, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(value, end)
    first.add_incoming(following, end)
    builder.cbranch(builder.icmp_signed("<", following, d), block, after)

    builder.position_at_end(after)
    return found


def _round(code: Code, a: Any, b: Any, share: int) -> tuple[Any, Any, Any]:
    """Let the first half of each row's `share` lanes meet the second half, in `a` and, if another, `b`.

    Each is the lowest score of what a lane stands for, the second lowest, and where the lowest is.
    """
    builder, lanes = code.builder, a[0].type.count
    starts = range(0, lanes * (1 if a is b else 2), share)
    first = [start + i for start in starts for i in range(share // 2)]

    def pick(i: int, order: list[int]) -> Any:
        mask = ir.Constant(ir.VectorType(SHORT, len(order)), order)
        return builder.shuffle_vector(a[i], b[i], mask)

    halves = [first, [i + share // 2 for i in first]]
    u, v = (pick(0, half) for half in halves)
    closer = builder.fcmp_ordered("<", v, u)
    best, rest = builder.select(closer, v, u), builder.select(closer, u, v)
    if a[1] is not None:
        p, q = (pick(1, half) for half in halves)
        p = builder.select(builder.fcmp_ordered("<", q, p), q, p)
        rest = builder.select(builder.fcmp_ordered("<", p, rest), p, rest)
    mine, other = (pick(2, half) for half in halves)
    return best, rest, builder.select(closer, other, mine)
