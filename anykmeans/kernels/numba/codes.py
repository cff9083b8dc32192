# mypy: allow-untyped-defs, allow-untyped-calls
"""Whole numbers of a byte for a first look: how far a row is at least from every centroid.

Where ``y' = f u`` is a row rounded to multiples u of f, ``|u| <= MOST``, and e the length of what that took,
``y.c <= y'.c' + e |c| + |y'| e_c``. So

    |y - c|^2 >= |y|^2 + |c|^2 - 2 f f_c u.u_c - 2 e |c| - 2 |y'| e_c,

and whole numbers add exactly. The proof, with the rounding of all that is measured, is in ``docs/proofs.md``.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from anykmeans.kernels.numba.panels import Panels
from anykmeans.kernels.numba.room import empty
from anykmeans.kernels.numba.simd import INDEX, LANES, ROWS, SHORT, Code, integer
from anykmeans.kernels.numba.steps import any_minimum, any_order, jit

QUAD = 4  # coordinates side by side: what one instruction adds


def _features() -> dict[str, bool]:
    """Return what compiled code may use of the processor."""
    if config.CPU_NAME or config.CPU_FEATURES:  # compiled for another one
        return {}
    return dict(llvmlite.binding.get_host_cpu_features())


_HAS = _features()
WIDE = bool(_HAS.get("avx512vnni") and _HAS.get("avx512f"))
PAIRS = bool(_HAS.get("avx2"))  # of products that are added at once
AVAILABLE = WIDE or (PAIRS and not _HAS.get("avx512f"))
MOST = 63  # the largest magnitude of a code: four products of 127 and 63 fit 16 bits
ZERO = 64  # what is added to a row's, which are unsigned
_TERMS = 4  # numbers of a row, and of a centroid


@intrinsic
def least(context, codes, at, row_terms, panels, starts, terms, p, found, low):
    """Write what bounds the squared distances of ROWS rows to a panel's centroids, less the rows' squared lengths.

    ``found[r]`` (LANES,) is of row ``at[r]``, ``low[r]`` the lowest of it. `codes` and `row_terms` are `Codes` of rows,
    `panels` and `terms` of centroids, with `starts` (panels, LANES), int32.
    """
    signature = types.void(codes, at, row_terms, panels, starts, terms, p, found, low)
    return signature, _generate_least


@intrinsic
def nearer(context, codes, at, row_terms, panels, starts, terms, p, edges, bits):
    """Write what bounds are below an edge: ``bits[r]`` has a bit for each lane of a panel, of row ``at[r]``.

    The bounds are those of `least`, and the rows' squared lengths; `edges` (panels, LANES) are those of the lanes, and the other
    arguments as there.
    """
    signature = types.void(codes, at, row_terms, panels, starts, terms, p, edges, bits)
    return signature, _generate_nearer


def _generate_least(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    found, low = code.data(7), code.data(8)
    lowest = []
    width, bounds = _bounds(code)
    for r, values in enumerate(bounds):
        for i, value in enumerate(values):
            code.put(value, code.at(found, r * LANES + i * width))
        lowest.append(values[0] if len(values) == 1 else _lower(builder, *values))
    share = width  # lanes of a row
    while share > 1:  # two vectors at a time become one that has half as many lanes of each row
        pairs = zip(lowest[::2], lowest[1::2], strict=True) if len(lowest) > 1 else [lowest * 2]
        lowest = [_halved(builder, a, b, share) for a, b in pairs]
        share //= 2
    code.put(lowest[0], low)
    return context.get_dummy_value()


def _generate_nearer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    code = Code(context, builder, signature, args)
    at, row_terms, edges, bits = (code.data(i) for i in (1, 2, 7, 8))
    edges = code.at(edges, builder.mul(code.whole(6), integer(LANES)))
    width, bounds = _bounds(code)
    limits = [code.some(code.at(edges, part), width) for part in range(0, LANES, width)]
    for r, values in enumerate(bounds):
        place = builder.add(builder.mul(builder.load(code.at(at, r)), integer(_TERMS)), integer(3))
        length = code.splat(builder.load(code.at(row_terms, place)), width)
        squared, word = builder.fmul(length, length), integer(0)
        for i, (value, limit) in enumerate(zip(values, limits, strict=True)):
            less = builder.fcmp_ordered("<", builder.fadd(value, squared), limit)
            lanes = builder.zext(builder.bitcast(less, ir.IntType(width)), INDEX)
            word = builder.or_(word, builder.shl(lanes, integer(i * width)))
        builder.store(word, code.at(bits, r))
    return context.get_dummy_value()


def _bounds(code: Code) -> tuple[int, list[list[Any]]]:
    """The bounds of ROWS rows and the lanes of a panel, by vectors of so many lanes."""
    builder = code.builder
    codes, at, row_terms, panels, starts, terms = (code.data(i) for i in range(6))
    panel, quads = code.whole(6), code.size(3, 1)
    width = LANES if WIDE else LANES // 2  # lanes of a vector of sums
    parts = range(0, LANES, width)
    p = builder.mul(quads, integer(QUAD))
    rows = [builder.load(code.at(at, r)) for r in range(ROWS)]
    columns = code.at(panels, builder.mul(builder.mul(panel, p), integer(LANES)))
    start = code.at(starts, builder.mul(panel, integer(LANES)))
    sums = _products(
        code,
        quads,
        [code.at(codes, builder.mul(row, p)) for row in rows],
        columns,
        [code.some(code.at(start, part), width) for part in parts],
    )

    of_panel = code.at(terms, builder.mul(panel, integer(_TERMS * LANES)))
    own = [
        [code.some(code.at(of_panel, t * LANES + part), width) for part in parts]
        for t in range(_TERMS)
    ]
    reals, name = own[0][0].type, f"llvm.fmuladd.v{width}f32"
    found = []
    for r, row in enumerate(rows):
        of_row = code.at(row_terms, builder.mul(row, integer(_TERMS)))
        factors = [code.splat(builder.load(code.at(of_row, t)), width) for t in range(_TERMS - 1)]
        values = []
        for i in range(len(parts)):
            product = builder.fmul(builder.sitofp(sums[r][i], reals), own[1][i])
            value = _call(builder, name, reals, factors[0], product, own[0][i])
            for t in range(1, _TERMS - 1):
                value = _call(builder, name, reals, factors[t], own[t + 1][i], value)
            values.append(value)
        found.append(values)
    return width, found


def _products(code: Code, quads: Any, rows: list[Any], columns: Any, starts: list[Any]) -> Any:
    """Add the products of rows and a panel's columns to the starts, vectors of whole numbers."""
    builder, width = code.builder, starts[0].type.count
    step = 1 if WIDE else 2  # quads a turn: their sums fit 16 bits
    before = builder.block
    loop, after = (builder.append_basic_block(name) for name in ("quads", "added"))
    builder.branch(loop)

    builder.position_at_end(loop)
    q = builder.phi(quads.type)
    q.add_incoming(integer(0), before)
    sums = [[builder.phi(start.type) for start in starts] for _ in rows]
    place, offset = builder.mul(q, integer(QUAD * LANES)), builder.mul(q, integer(QUAD))
    held = [
        [
            code.some(
                code.at(columns, builder.add(place, integer(QUAD * (LANES * s + width * i)))),
                QUAD * width,
            )
            for i in range(len(starts))
        ]
        for s in range(step)
    ]
    added: list[list[Any]] = []
    for r, row in enumerate(rows):
        four = []
        for s in range(step):
            at = builder.bitcast(
                code.at(row, builder.add(offset, integer(QUAD * s))), SHORT.as_pointer()
            )
            word = builder.load(at)
            word.align = 4
            four.append(builder.bitcast(code.splat(word, width), held[0][0].type))
        added.append([])
        for i, start in enumerate(starts):
            sums[r][i].add_incoming(start, before)
            total = _added(builder, sums[r][i], four, [columns[i] for columns in held])
            sums[r][i].add_incoming(total, loop)
            added[r].append(total)
    following = builder.add(q, integer(step))
    q.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, quads), loop, after)

    builder.position_at_end(after)
    return added


def _added(builder: Any, total: Any, rows: list[Any], columns: list[Any]) -> Any:
    """Add products of unsigned and signed bytes, by fours, to whole numbers."""
    kind = total.type
    if WIDE:
        words = [builder.bitcast(vector, kind) for vector in (rows[0], columns[0])]
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", kind, total, *words)
    if not PAIRS:  # for any processor: not used, but compiled with what uses it
        return functools.reduce(
            builder.add, map(functools.partial(_fours, builder), rows, columns), total
        )
    halves = ir.VectorType(ir.IntType(16), 2 * kind.count)
    ones = ir.Constant(halves, [1] * halves.count)
    pairs = [
        _call(builder, "llvm.x86.avx2.pmadd.ub.sw", halves, row, column)
        for row, column in zip(rows, columns, strict=True)
    ]
    four = _call(builder, "llvm.x86.avx2.pmadd.wd", kind, builder.add(*pairs), ones)
    return builder.add(total, four)


def _fours(builder: Any, rows: Any, columns: Any) -> Any:
    """Return the sums of four products each, of unsigned and signed bytes."""
    count = rows.type.count
    whole = ir.VectorType(SHORT, count)
    products = builder.mul(builder.zext(rows, whole), builder.sext(columns, whole))
    parts = [
        builder.shuffle_vector(
            products,
            products,
            ir.Constant(ir.VectorType(SHORT, count // QUAD), list(range(i, count, QUAD))),
        )
        for i in range(QUAD)
    ]
    return functools.reduce(builder.add, parts)


def _call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    """Call one of LLVM's functions."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _halved(builder: Any, a: Any, b: Any, share: int) -> Any:
    """Return the lower halves of each row's `share` lanes, in `a` and, if another, `b`."""
    starts = range(0, a.type.count * (1 if a is b else 2), share)
    first = [start + i for start in starts for i in range(share // 2)]
    masks = [
        ir.Constant(ir.VectorType(SHORT, len(first)), [i + by for i in first])
        for by in (0, share // 2)
    ]
    return _lower(builder, *(builder.shuffle_vector(a, b, mask) for mask in masks))


def _lower(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", b, a), b, a)


class Codes(NamedTuple):
    """Vectors as `least` takes them.

    Attributes
    ----------
    whole : ndarray
        Of rows (n, p), uint8, `ZERO` more than what they stand for; of panels (panels, p / QUAD, LANES, QUAD), int8.
    terms : ndarray, float32
        Of rows (n, 4): -2 times f, e, and the length of y'; and the length. Of panels (panels, 4, LANES): the squared
        length, f, the length, and e.
    """

    whole: np.ndarray
    terms: np.ndarray


@jit
def encode(x, at, scale, offset, codes, terms, lengths):
    """Write what stands for rows ``x[at] * scale - offset``: `Codes`, and their squared lengths (m,), float32."""
    d, p = x.shape[1], codes.shape[1]
    y = empty(d, np.float32)
    for i in range(at.shape[0]):
        row = at[i]
        for f in range(d):
            y[f] = x[row, f] * scale - offset[f]
        lengths[i], most = _squared_length(y), _largest(y)
        step = most / np.float32(MOST) if most > np.float32(2.0**-60) else np.float32(1.0)
        inverse = np.float32(1.0) / step
        for f in range(d):
            codes[i, f] = np.uint8(np.int32(y[f] * inverse + np.float32(ZERO + 0.5)))
        for f in range(d, p):
            codes[i, f] = ZERO
        left, coded = _taken(y, step, codes, i)
        terms[i, 0] = -2 * step
        terms[i, 1], terms[i, 2] = -2 * np.sqrt(left), -2 * np.sqrt(coded)
        terms[i, 3] = np.sqrt(lengths[i])


@any_order
def _squared_length(y):
    length = np.float32(0.0)
    for f in range(y.shape[0]):
        length += y[f] * y[f]
    return length


@any_minimum
def _largest(y):
    most = np.float32(0.0)
    for f in range(y.shape[0]):
        magnitude = abs(y[f])
        most = magnitude if magnitude > most else most
    return most


@any_order
def _taken(y, step, codes, i):
    """Return the squared lengths of what coding took, and of what it left."""
    left = coded = np.float32(0.0)
    for f in range(y.shape[0]):
        value = step * np.float32(np.int32(codes[i, f]) - ZERO)
        off = y[f] - value
        left += off * off
        coded += value * value
    return left, coded


def taken(a: np.ndarray) -> np.ndarray:
    """Return about the lengths of what coding takes from rows `a` (m, d)."""
    found: np.ndarray = np.abs(a).max(axis=1) * np.float32(math.sqrt(a.shape[1] / 12) / MOST)
    return found


def room(n: int, d: int) -> Codes:
    """Return room for the codes of `n` vectors of `d` features."""
    p = -(-d // (2 * QUAD)) * (2 * QUAD)
    return Codes(np.empty((n, p), np.uint8), np.empty((n, _TERMS), np.float32))


def of_panels(wide: np.ndarray, offset: np.ndarray, panels: Panels) -> tuple[Codes, np.ndarray]:
    """Return the codes of centroids `wide` (k, d) less the offset, and where sums begin, (panels, LANES), int32."""
    k, d = wide.shape
    (codes, terms), lengths = room(k, d), np.empty(k, np.float32)
    encode(wide, np.arange(k, dtype=np.int32), 1.0, offset, codes, terms, lengths)
    found, starts = room_of_panels(panels.number, d)
    as_panels(codes, terms, lengths, panels.ids, *found, starts)
    return found, starts


def room_of_panels(panels: int, d: int) -> tuple[Codes, np.ndarray]:
    """Return room for the codes of so many panels of `d` features, and where sums begin."""
    whole = np.empty((panels, -(-d // (2 * QUAD)) * 2, LANES, QUAD), np.int8)
    terms = np.empty((panels, _TERMS, LANES), np.float32)
    return Codes(whole, terms), np.empty((panels, LANES), np.int32)


@jit
def as_panels(codes, terms, lengths, ids, whole, lanes, starts):
    """Write `Codes` of k vectors as those of panels, `whole` and `lanes`, and where sums begin: vector ``ids[slot]``, if there is one."""
    k = codes.shape[0]
    for slot in range(ids.shape[0]):
        panel, lane, i = slot // LANES, slot % LANES, min(ids[slot], k - 1)
        total = np.int32(0)
        for q in range(whole.shape[1]):
            for f in range(QUAD):
                u = np.int32(codes[i, q * QUAD + f]) - np.int32(ZERO)
                whole[panel, q, lane, f] = u
                total += u
        starts[panel, lane] = -ZERO * total
        lanes[panel, 0, lane] = lengths[i] if ids[slot] < k else np.inf
        lanes[panel, 1, lane] = terms[i, 0] / -2
        lanes[panel, 2, lane] = terms[i, 3]
        lanes[panel, 3, lane] = terms[i, 1] / -2
