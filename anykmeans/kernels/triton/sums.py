# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""Exact sums by integer atomics, and what a pass ends with: means, the shift, whether to stop.

Whole numbers of grid steps may be added in any order, so atomics make the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from anykmeans.kernels.triton.resolve import halving_sum
from anykmeans.kernels.triton.screen import (
    COLUMNS,
    DONE,
    EMPTY,
    MOST,
    OPEN,
    PASSES,
    RUNNING,
    STATES,
    STEP,
    STOPPED,
    TOL,
    UNIT,
    VACANT,
    WORST,
)

COPIES = 64  # of the sums, at most: blocks that add to the same number wait for each other
ROWS, WIDTH = 16, 64  # of a tile
MOVED = 32  # columns of a tile of rows that change label: for more there are not registers enough
REGISTERS = 200  # then; left alone, the compiler spills a few, for one more block
HELD = 1024  # features up to which one block holds a mean
# Added to a float64 of up to 2^51, it leaves a whole number in the last bits, halves to even.
SHIFT = tl.constexpr(1.5 * 2.0**52)
SHIFTED = tl.constexpr(0x4338000000000000)  # the bits of 0 there


def span(rows: int) -> int:
    """Return how many of so many rows a block looks through: more where there are many, as most do not change."""
    return 1024 if rows >= 1 << 19 else 64


def copies(k: int, numbers: int, max_bytes: int, multiprocessors: int) -> int:
    """Return how many copies to keep of sums of `k` clusters, so many numbers: more where they are few."""
    most = max(1, min(COPIES, 4096 // k, max_bytes // 64 // numbers, multiprocessors))
    return 1 << (most.bit_length() - 1) // 2 * 2  # a power of four: kernels are compiled for each


@triton.jit
def _rint(a):
    """Return float64 `a`, of at most 2^51, rounded to whole numbers, halves to even."""
    return (a + SHIFT) - SHIFT


@triton.jit
def _whole(a):
    """Return the same as int64."""
    return (a + SHIFT).to(tl.int64, bitcast=True) - SHIFTED


@triton.jit
def _two_product(a, b):
    """Return the rounded product, and exactly what the rounding took: `anykmeans._grid.two_product`."""
    product = a * b
    scaled = a * 134217728.0 + a
    a_high = scaled - (scaled - a)
    scaled = b * 134217728.0 + b
    b_high = scaled - (scaled - b)
    a_low = a - a_high
    b_low = b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


@triton.jit
def _move(
    rest, weight, there, to, off, folds, between, step, changed, leaves, WEIGHTED: tl.constexpr
):
    """Add scaled values times weights to the whole numbers at `to`, and take them `off` where they were."""
    error = tl.zeros(rest.shape, tl.float64)
    if WEIGHTED:
        rest, error = _two_product(rest, weight)
    for _ in range(0, folds):
        whole = _whole(rest)
        rest = (rest - _rint(rest)) * step
        if WEIGHTED:
            whole += _whole(error)
            error = (error - _rint(error)) * step
        some = there & (whole != 0)
        tl.atomic_add(to, whole, mask=some & changed, sem="relaxed")
        tl.atomic_add(off, -whole, mask=some & leaves, sem="relaxed")
        to += between
        off += between


@triton.jit(do_not_specialize=["n", "k", "d", "copies"])
def accumulate(
    x,
    w,
    scale,
    table,
    state,
    old,
    new,
    listed,
    sums,
    n,
    k,
    d,
    folds,
    copies,
    apart,
    across,
    along,
    WEIGHTED: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Add rows whose label changed to `sums` (copies, k, folds, d + 1), int64; `old` becomes `new`.

    An old label below 0 is none. A block lists the rows that changed among its own in its part of `listed` (n,).
    """
    problem = tl.program_id(1).to(tl.int64)
    if tl.load(state + problem * STATES + DONE) != RUNNING:
        return
    first = tl.program_id(0) * SPAN
    old += problem * n
    new += problem * n
    listed += problem * n + first
    span = first + tl.arange(0, SPAN)
    inside = span < n
    latest = tl.load(new + span, mask=inside, other=0)
    moved = tl.load(old + span, mask=inside, other=0) != latest
    count = tl.sum(moved.to(tl.int32), 0)
    if count > 0:
        tl.store(listed + tl.cumsum(moved.to(tl.int32), 0) - 1, span, mask=moved)
        tl.debug_barrier()  # one block's threads read what others have written
        x += problem * apart
        scale += problem * (d + 1)
        step = tl.load(table + problem * COLUMNS + STEP)
        width = folds * (d + 1)
        copy = (problem * copies + tl.program_id(0) % copies) * k
        for start in range(0, count, ROWS):
            place = start + tl.arange(0, ROWS)
            valid = place < count
            rows = tl.load(listed + place, mask=valid, other=0).to(tl.int64)
            before = tl.load(old + rows, mask=valid, other=0)
            after = tl.load(new + rows, mask=valid, other=0)
            changed, leaves = valid[:, None], (valid & (before >= 0))[:, None]
            to = sums + ((copy + after) * width)[:, None]
            off = sums + ((copy + before) * width)[:, None]
            weight = tl.full((ROWS, 1), 1.0, tl.float64)
            if WEIGHTED:
                weight = tl.load(w + problem * n + rows, mask=valid, other=0.0)[:, None]
            for begin in range(0, d, WIDTH):
                cols = begin + tl.arange(0, WIDTH)
                there = cols < d
                at = rows[:, None] * across + cols[None, :].to(tl.int64) * along
                value = tl.load(x + at, mask=changed & there[None, :], other=0).to(tl.float64)
                value *= tl.load(scale + cols, mask=there, other=1.0)[None, :]
                each = (to + cols[None, :], off + cols[None, :], folds, d + 1, step)
                _move(value, weight, there[None, :], *each, changed, leaves, WEIGHTED)
            mass = tl.full((ROWS, 1), 1.0, tl.float64) * tl.load(scale + d)
            _move(
                *(mass, weight, changed, to + d, off + d, folds, d + 1, step, changed, leaves),
                WEIGHTED,
            )
        # Only now, and after a barrier: warps of a block read the same labels, each at its own time.
        tl.debug_barrier()
        tl.store(old + span, latest, mask=moved)


@triton.jit
def _add_by_halving(s, count, BLOCK: tl.constexpr):
    """Add the numbers (count,) at `s` by halving; the sum ends up in the first."""
    half = count * 0 + 1
    while half * 2 < count:
        half *= 2
    while count > 1:
        for start in range(0, count - half, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            there = cols < count - half
            a = tl.load(s + cols, mask=there, other=0.0)
            b = tl.load(s + half + cols, mask=there, other=0.0)
            tl.store(s + cols, a + b, mask=there)
        tl.debug_barrier()  # one block's threads read what others have written
        count = half
        half = half // 2


@triton.jit
def _part(sums, between, cols, stop, fold, d, COPIES: tl.constexpr):
    """Return whole numbers of a fold, those of all copies together."""
    FEW: tl.constexpr = min(COPIES, 4)  # at a time, for which there are registers
    part = tl.zeros((cols.shape[0],), tl.int64)
    for first in range(0, COPIES, FEW):
        every = first + tl.arange(0, FEW)
        there = (every[:, None] >= 0) & (cols[None, :] < stop)
        at = sums + every[:, None].to(tl.int64) * between + fold * (d + 1) + cols[None, :]
        part += tl.sum(tl.load(at, mask=there, other=0), 0)
    return part.to(tl.float64)


@triton.jit
def _total(sums, between, cols, stop, folds, d, step, COPIES: tl.constexpr):
    """Return what whole numbers of all folds mean, times their scale: `anykmeans._grid.Grid.total`."""
    found = tl.zeros((cols.shape[0],), tl.float64)
    low = tl.zeros((cols.shape[0],), tl.float64)
    after = tl.zeros((cols.shape[0],), tl.float64)
    unit = step / step
    for fold in range(0, folds):
        # What finer ones carry up is found anew for each: there are two or three, and no room for them.
        carry = tl.zeros((cols.shape[0],), tl.float64)
        for back in range(0, folds - 1 - fold):
            part = _part(sums, between, cols, stop, folds - 1 - back, d, COPIES) + carry
            carry = _rint(part / step)
        part = _part(sums, between, cols, stop, fold, d, COPIES) + carry
        if fold > 0:
            part -= _rint(part / step) * step
        finer = part * unit
        unit = unit / step
        exact = low == 0.0
        further = found + finer
        after = tl.where(exact | (after != 0.0), after, finer)
        low = tl.where(exact, finer - (further - found), low)
        found = tl.where(exact, further, found)
    beyond = found + 2.0 * low
    tie = (low * after > 0.0) & (beyond - found == 2.0 * low)
    return tl.where(tie, beyond, found) + 0.0


@triton.jit(do_not_specialize=["k", "d"])
def means(
    c,
    scale,
    table,
    state,
    sums,
    scratch,
    moves,
    k,
    d,
    folds,
    WIDTH: tl.constexpr,
    COPIES: tl.constexpr,
    HELD: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Write the mean of a cluster, and the squared distance that its centroid moves; or that it is empty.

    If an empty one is to KEEP its centroid, that is its mean. Features are HELD in registers, or else moves are added up
    in `scratch` (b, k, d).
    """
    problem = tl.program_id(1).to(tl.int64)
    state += problem * STATES
    if tl.load(state + DONE) != RUNNING:
        return
    table += problem * COLUMNS
    cluster = tl.program_id(0).to(tl.int64)
    width = folds * (d + 1)
    between = k * width.to(tl.int64)
    sums += problem * COPIES * between + cluster * width
    scale += problem * (d + 1)
    now = (problem * 2 + tl.load(state + PASSES) % 2) * k + cluster
    then = (problem * 2 + (tl.load(state + PASSES) + 1) % 2) * k + cluster
    unit, step = tl.load(table + UNIT), tl.load(table + STEP)
    moves += problem * k + cluster
    at_mass = d + tl.arange(0, 1)
    mass = tl.sum(_total(sums, between, at_mass, d + 1, folds, d, step, COPIES), 0)
    mass /= tl.load(scale + d)
    if (mass == 0.0) & (not KEEP):
        tl.store(state + EMPTY, 1)
    elif HELD:
        cols = tl.arange(0, WIDTH)
        t = _mean(
            *(c, scale, sums, mass, between, cols, now, then, folds, d, unit, step),
            *(COPIES, KEEP),
        )
        tl.store(moves + tl.arange(0, 1), halving_sum(tl.reshape(t, (1, WIDTH)), WIDTH))
    else:
        scratch += (problem * k + cluster) * d
        for start in range(0, d, WIDTH):
            cols = start + tl.arange(0, WIDTH)
            t = _mean(
                *(c, scale, sums, mass, between, cols, now, then, folds, d, unit, step),
                *(COPIES, KEEP),
            )
            tl.store(scratch + cols, t, mask=cols < d)
        tl.debug_barrier()
        _add_by_halving(scratch, d, WIDTH)
        tl.store(moves, tl.load(scratch))


@triton.jit
def _mean(
    c,
    scale,
    sums,
    mass,
    between,
    cols,
    now,
    then,
    folds,
    d,
    unit,
    step,
    COPIES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Write some features of a mean; return the squares of how far it moves in each."""
    there = cols < d
    total = _total(sums, between, cols, d, folds, d, step, COPIES)
    total = total / tl.load(scale + cols, mask=there, other=1.0)
    before = tl.load(c + now * d + cols, mask=there, other=0.0)
    mean = (total / tl.where(mass == 0.0, 1.0, mass)).to(before.dtype)
    if KEEP:
        mean = tl.where(mass == 0.0, before, mean)
    tl.store(c + then * d + cols, mean, mask=there)
    t = mean.to(tl.float64) * unit - before.to(tl.float64) * unit
    return t * t


@triton.jit(do_not_specialize=["k"])
def advance(
    table,
    state,
    worst,
    moves,
    shifts,
    k,
    WIDTH: tl.constexpr,
):
    """End the pass: the new centroids become the present ones, unless a cluster is empty; stop if still."""
    problem = tl.program_id(0).to(tl.int64)
    state += problem * STATES
    if tl.load(state + DONE) != RUNNING:
        return
    worst += problem * WORST
    for i in tl.static_range(WORST):
        tl.store(worst + i, 0)
    tl.store(state + OPEN, 0)
    if tl.load(state + EMPTY) != 0:
        tl.store(state + DONE, VACANT)
    else:
        moves += problem * k
        _add_by_halving(moves, k, WIDTH)
        shift = tl.load(moves)
        tl.store(shifts + problem, shift)
        passes = tl.load(state + PASSES) + 1
        tl.store(state + PASSES, passes)
        if (shift <= tl.load(table + problem * COLUMNS + TOL)) | (passes >= tl.load(state + MOST)):
            tl.store(state + DONE, STOPPED)


@triton.jit
def _bits(a):
    """Return |a|, float64, as whole numbers in the same order, NaN last."""
    return tl.abs(a).to(tl.int64, bitcast=True)


@triton.jit(do_not_specialize=["n", "d"])
def magnitudes(
    x,
    w,
    found,
    n,
    d,
    apart,
    across,
    along,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Raise `found` (b, 3, d + 1) to the bits of the largest |x| and |w x|, and lower them to the smallest nonzero |w x|.

    Weights by themselves are the last column.
    """
    problem = tl.program_id(2).to(tl.int64)
    x += problem * apart
    w += problem * n
    found += problem * 3 * (d + 1)
    infinity = tl.full((), 0x7FF0000000000000, tl.int64)
    cols = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    high = tl.zeros((ROWS, WIDTH), tl.int64)
    largest = tl.zeros((ROWS, WIDTH), tl.int64)
    smallest = tl.zeros((ROWS, WIDTH), tl.int64) + infinity
    for start in range(tl.program_id(0).to(tl.int64) * ROWS, n, tl.num_programs(0) * ROWS):
        rows = start + tl.arange(0, ROWS)
        there = (rows[:, None] < n) & (cols[None, :] < d)
        at = rows[:, None] * across + cols[None, :].to(tl.int64) * along
        value = tl.load(x + at, mask=there, other=0).to(tl.float64)
        high = tl.maximum(high, _bits(value))
        if WEIGHTED:
            weight = tl.load(w + rows, mask=rows < n, other=0.0)[:, None]
            value = tl.where(cols[None, :] == d, 1.0, value) * weight
        seen = _bits(value)
        largest = tl.maximum(largest, seen)
        smallest = tl.minimum(smallest, tl.where(seen == 0, infinity, seen))
    inside = cols < d + 1
    tl.atomic_max(found + cols, tl.max(high, 0), mask=inside, sem="relaxed")
    tl.atomic_max(found + d + 1 + cols, tl.max(largest, 0), mask=inside, sem="relaxed")
    tl.atomic_min(found + 2 * (d + 1) + cols, tl.min(smallest, 0), mask=inside, sem="relaxed")


@triton.jit
def _exponent(a):
    """Return what `numpy.frexp` does of a float64, but -1022 of any that has no more digits than that."""
    return (_bits(a) >> 52) - 1022


@triton.jit(do_not_specialize=["n", "room"])
def cost(
    distances,
    w,
    extents,
    found,
    n,
    room,
    FOLDS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add weighted distances (b, n), split on the grid of their `extents` (b, 3), to whole numbers `found` (b, FOLDS).

    A summand has at most `room` bits on the coarsest, and one more on the others: `anykmeans._grid.Grid.plan`.
    """
    problem = tl.program_id(1).to(tl.int64)
    distances += problem * n
    w += problem * n
    found += problem * FOLDS
    coarse = tl.minimum(room - _exponent(tl.load(extents + problem * 3 + 1)), 1023)
    if WEIGHTED:
        coarse = tl.minimum(coarse, 960 - _exponent(tl.load(extents + problem * 3)))
    scale = ((coarse + 1023) << 52).to(tl.float64, bitcast=True)
    finer = ((tl.full((), 1024, tl.int64) + room) << 52).to(tl.float64, bitcast=True)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    rest = tl.load(distances + rows, mask=rows < n, other=0.0) * scale
    error = tl.zeros((BLOCK,), tl.float64)
    if WEIGHTED:
        rest, error = _two_product(rest, tl.load(w + rows, mask=rows < n, other=0.0))
    for fold in tl.static_range(FOLDS):
        whole = _whole(rest)
        rest = (rest - _rint(rest)) * finer
        if WEIGHTED:
            whole += _whole(error)
            error = (error - _rint(error)) * finer
        tl.atomic_add(found + fold, tl.sum(whole, 0), sem="relaxed")
