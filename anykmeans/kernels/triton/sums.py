# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""Exact sums by integer atomics, and what a pass ends with: means, the shift, whether to stop.

Whole numbers of grid steps may be added in any order, so atomics make the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from anykmeans.kernels.triton.screen import (
    AGAIN,
    COLUMNS,
    DONE,
    EMPTY,
    MOST,
    PASSES,
    RESOLVE,
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
SPANS = (64, 1024)  # rows a block looks through: more where there are many, as most do not change


@triton.jit
def _rint(a):
    """Return float64 `a`, below 2^52 in magnitude, rounded to whole numbers, halves to even."""
    low = tl.floor(a)
    part = a - low
    half = low * 0.5
    odd = half != tl.floor(half)
    return tl.where((part > 0.5) | ((part == 0.5) & odd), low + 1.0, low)


@triton.jit
def _two_product(a, b):
    """Return the rounded product, and exactly what the rounding took: `anykmeans._exact.two_product`."""
    product = a * b
    scaled = a * 134217728.0 + a
    a_high = scaled - (scaled - a)
    scaled = b * 134217728.0 + b
    b_high = scaled - (scaled - b)
    a_low = a - a_high
    b_low = b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


@triton.jit(do_not_specialize=["n", "k", "d", "copies"])
def accumulate(
    x,
    w,
    scale,
    table,
    state,
    old,
    new,
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

    An old label below 0 is none.
    """
    problem = tl.program_id(1).to(tl.int64)
    if tl.load(state + problem * STATES + DONE) != RUNNING:
        return
    old += problem * n
    new += problem * n
    first = tl.program_id(0) * SPAN
    span = first + tl.arange(0, SPAN)
    inside = span < n
    latest = tl.load(new + span, mask=inside, other=0)
    moved = tl.load(old + span, mask=inside, other=0) != latest
    x += problem * apart
    scale += problem * (d + 1)
    step = tl.load(table + problem * COLUMNS + STEP)
    width = folds * (d + 1)
    copy = (problem * copies + tl.program_id(0) % copies) * k
    some = tl.max(moved.to(tl.int32), 0)
    for start in range(first, first + some * SPAN, ROWS):
        place = start + tl.arange(0, ROWS)
        valid = place < n
        rows = place.to(tl.int64)
        before = tl.load(old + rows, mask=valid, other=0)
        after = tl.load(new + rows, mask=valid, other=0)
        changed = before != after
        to = sums + ((copy + after) * width)[:, None]
        off = sums + ((copy + before) * width)[:, None]
        leaves = changed & (before >= 0)
        weight = tl.full((ROWS,), 1.0, tl.float64)
        if WEIGHTED:
            weight = tl.load(w + problem * n + rows, mask=changed, other=0.0)
        few = tl.max(changed.to(tl.int32), 0)
        for begin in range(0, few * (d + 1), WIDTH):
            cols = begin + tl.arange(0, WIDTH)
            at = rows[:, None] * across + cols[None, :].to(tl.int64) * along
            value = tl.load(x + at, mask=changed[:, None] & (cols[None, :] < d), other=0)
            value = tl.where(cols[None, :] == d, 1.0, value.to(tl.float64))
            rest = value * tl.load(scale + cols, mask=cols < d + 1, other=1.0)[None, :]
            error = tl.zeros((ROWS, WIDTH), tl.float64)
            if WEIGHTED:
                rest, error = _two_product(rest, weight[:, None])
            there = cols[None, :] < d + 1
            for fold in range(0, folds):
                part = _rint(rest)
                rest = (rest - part) * step
                if WEIGHTED:
                    more = _rint(error)
                    error = (error - more) * step
                    part += more
                whole = part.to(tl.int64)
                column = fold * (d + 1) + cols[None, :]
                there_now = there & (whole != 0)
                tl.atomic_add(to + column, whole, mask=there_now & changed[:, None], sem="relaxed")
                tl.atomic_add(off + column, -whole, mask=there_now & leaves[:, None], sem="relaxed")
    # Only now, and after a barrier: warps of a block read the same labels, each at its own time.
    tl.debug_barrier()
    tl.store(old + span, latest, mask=inside & moved)


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
def _part(sums, copies, between, cols, stop, fold, d, COPIES: tl.constexpr):
    """Return whole numbers of a fold, those of all copies together."""
    every = tl.arange(0, COPIES)
    there = (every[:, None] < copies) & (cols[None, :] < stop)
    at = sums + every[:, None].to(tl.int64) * between + fold * (d + 1) + cols[None, :]
    return tl.sum(tl.load(at, mask=there, other=0), 0).to(tl.float64)


@triton.jit
def _total(sums, copies, between, cols, stop, folds, d, step, COPIES: tl.constexpr):
    """Return what whole numbers of all folds mean, times their scale: `anykmeans._exact.Grid.total`."""
    found = tl.zeros((cols.shape[0],), tl.float64)
    low = tl.zeros((cols.shape[0],), tl.float64)
    after = tl.zeros((cols.shape[0],), tl.float64)
    unit = step / step
    for fold in range(0, folds):
        # What finer ones carry up is found anew for each: there are two or three, and no room for them.
        carry = tl.zeros((cols.shape[0],), tl.float64)
        for back in range(0, folds - 1 - fold):
            part = _part(sums, copies, between, cols, stop, folds - 1 - back, d, COPIES) + carry
            carry = _rint(part / step)
        part = _part(sums, copies, between, cols, stop, fold, d, COPIES) + carry
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


@triton.jit(do_not_specialize=["k", "d", "copies"])
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
    copies,
    WIDTH: tl.constexpr,
    COPIES: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Write the mean of a cluster, and the squared distance that its centroid moves; or that it is empty.

    If an empty one is to KEEP its centroid, that is its mean.
    """
    problem = tl.program_id(1).to(tl.int64)
    state += problem * STATES
    if tl.load(state + DONE) != RUNNING:
        return
    table += problem * COLUMNS
    cluster = tl.program_id(0).to(tl.int64)
    width = folds * (d + 1)
    between = k * width.to(tl.int64)
    sums += problem * copies * between + cluster * width
    scale += problem * (d + 1)
    now = (problem * 2 + tl.load(state + PASSES) % 2) * k + cluster
    then = (problem * 2 + (tl.load(state + PASSES) + 1) % 2) * k + cluster
    unit, step = tl.load(table + UNIT), tl.load(table + STEP)
    scratch += (problem * k + cluster) * d
    at_mass = d + tl.arange(0, 1)
    mass = _total(sums, copies, between, at_mass, d + 1, folds, d, step, COPIES)
    mass = tl.sum(mass, 0) / tl.load(scale + d)
    if (mass == 0.0) & (not KEEP):
        tl.store(state + EMPTY, 1)
    else:
        for start in range(0, d, WIDTH):
            cols = start + tl.arange(0, WIDTH)
            there = cols < d
            total = _total(sums, copies, between, cols, d, folds, d, step, COPIES)
            total = total / tl.load(scale + cols, mask=there, other=1.0)
            before = tl.load(c + now * d + cols, mask=there, other=0.0)
            mean = (total / tl.where(mass == 0.0, 1.0, mass)).to(before.dtype)
            if KEEP:
                mean = tl.where(mass == 0.0, before, mean)
            tl.store(c + then * d + cols, mean, mask=there)
            t = mean.to(tl.float64) * unit - before.to(tl.float64) * unit
            tl.store(scratch + cols, t * t, mask=there)
        tl.debug_barrier()
        _add_by_halving(scratch, d, WIDTH)
        tl.store(moves + problem * k + cluster, tl.load(scratch))


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
    tl.store(state + AGAIN, 0)
    tl.store(state + RESOLVE, 0)
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

    A summand has at most `room` bits on the coarsest, and one more on the others: `anykmeans._exact.Grid.plan`.
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
        part = _rint(rest)
        rest = (rest - part) * finer
        if WEIGHTED:
            more = _rint(error)
            error = (error - more) * finer
            part += more
        tl.atomic_add(found + fold, tl.sum(part.to(tl.int64), 0), sem="relaxed")
