# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""The distance whose bits are promised, in float64, and the rows whose labels only it can prove."""

from __future__ import annotations

import triton
import triton.language as tl

from anykmeans.kernels.triton.screen import (
    COLUMNS,
    OPEN,
    PASSES,
    SCREEN,
    STATES,
    TIE,
    UNIT,
    centred,
)

ROWS, LANES = 64, 64  # of a tile of scores
BITS = tl.constexpr(
    16
)  # tiles whose centroids within a row's limit are noted before they are listed
RIVALS = tl.constexpr(8)  # centroids that a row is compared with, before it is with all
PROBLEMS = tl.constexpr(128)  # whose lists' lengths are added up at once
TILE = 2048  # numbers of a tile of differences
COMPARED = 1024  # of listed rows, beside whose scores there are fewer registers
MANY = 16  # rows compared at once, at most
MOST = 1 << 19  # features up to which a row fits one


@triton.jit
def halving_sum(t, WIDTH: tl.constexpr):
    """Return the sums (m,) of the rows of `t` (m, WIDTH), by halving along the features."""
    m: tl.constexpr = t.shape[0]
    for level in tl.static_range(WIDTH.bit_length() - 1):
        t = tl.sum(tl.reshape(t, (m, 2, WIDTH >> (level + 1))), 1)
    return tl.reshape(t, (m,))


@triton.jit
def _rows(x, rows, cols, valid, d, across, along, unit):
    """Return rows (m, WIDTH) in the frame, float64."""
    at = rows[:, None] * across + cols[None, :].to(tl.int64) * along
    there = valid[:, None] & (cols[None, :] < d)
    return tl.load(x + at, mask=there, other=0).to(tl.float64) * unit


@triton.jit
def _to(y, c, ids, cols, valid, d, unit, WIDTH: tl.constexpr):
    """Return the squared distances (m,) of rows `y` (m, WIDTH), or (1, WIDTH), to the centroids `ids` (m,)."""
    there = valid[:, None] & (cols[None, :] < d)
    at = tl.load(c + ids[:, None].to(tl.int64) * d + cols[None, :], mask=there, other=0.0)
    t = y - at.to(tl.float64) * unit
    return tl.where(valid, halving_sum(t * t, WIDTH), float("inf"))


@triton.jit
def _nearest(y, c, k, cols, d, unit, tie, WIDTH: tl.constexpr, IDS: tl.constexpr):
    """Return the nearest of all centroids to a row `y` (1, WIDTH): the lowest of those that tie."""
    lanes = tl.arange(0, IDS)
    best = tl.full((), float("inf"), tl.float64)
    second = tl.full((), float("inf"), tl.float64)
    label = tl.zeros((), tl.int32)
    for base in range(0, k, IDS):
        distance = _to(y, c, base + lanes, cols, base + lanes < k, d, unit, WIDTH)
        lowest, lane = tl.min(distance, 0), tl.argmin(distance, 0)
        runner = tl.min(tl.where(lanes == lane, float("inf"), distance), 0)
        second = tl.minimum(tl.minimum(second, runner), tl.maximum(best, lowest))
        label = tl.where(lowest < best, base + lane, label)
        best = tl.minimum(best, lowest)
    limit = best + best * tie
    if second <= limit:
        label = k + tl.zeros((), tl.int32)
        for base in range(0, k, IDS):
            ids = base + lanes
            distance = _to(y, c, ids, cols, ids < k, d, unit, WIDTH)
            label = tl.minimum(label, tl.min(tl.where(distance <= limit, ids, k), 0))
    return label


@triton.jit
def tile_of(counts, b, tile, ROWS: tl.constexpr):
    """Return of which of `b` problems' lists the `tile` of ROWS rows is, all lists end to end, and its first place there.

    `counts` are their lengths, in the problems' states. The problem is `b` if there is no such tile.
    """
    problem = tile * 0
    before = tile * 0
    total = tile * 0
    for first in range(0, b, PROBLEMS):
        at = first + tl.arange(0, PROBLEMS)
        count = tl.load(counts + at.to(tl.int64) * STATES, mask=at < b, other=0).to(tl.int32)
        ends = total + tl.cumsum((count + (ROWS - 1)) // ROWS, 0)
        earlier = (ends <= tile) & (at < b)
        problem += tl.sum(earlier.to(tl.int32), 0)
        before = tl.maximum(before, tl.max(tl.where(earlier, ends, 0), 0))
        total = tl.max(ends, 0)
    return problem, (tile - before) * ROWS


@triton.jit
def _list(near, base, counts, rivals, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Append to each row's `rivals` (ROWS, RIVALS) the centroids that are `near`: bit i of a lane is tile i after `base`."""
    rows = tl.arange(0, ROWS)[:, None] + tl.zeros((1, LANES), tl.int32)
    lanes = tl.arange(0, LANES)[None, :]
    while tl.max(tl.max(near, 1), 0) != 0:
        bit = near & -near
        # Which bit that is, by the exponent it has as a number.
        tile = (bit.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
        slot = tl.atomic_add(counts + rows, 1, mask=bit != 0, sem="relaxed")
        there = (bit != 0) & (slot < RIVALS)
        tl.store(rivals + rows * RIVALS + slot, base + tile * LANES + lanes, mask=there)
        near ^= bit


@triton.jit
def _nearest_of(y, c, rivals, count, cols, k, d, unit, tie, WIDTH: tl.constexpr):
    """Return the nearest (m,) of the `count` (m,) rivals of each row `y` (m, WIDTH): the lowest of those that tie."""
    best = tl.full((y.shape[0],), float("inf"), tl.float64)
    second = tl.full((y.shape[0],), float("inf"), tl.float64)
    label = tl.zeros((y.shape[0],), tl.int32)
    most = tl.max(count, 0)
    for i in range(0, most):
        rival = tl.load(rivals + i, mask=i < count, other=0, cache_modifier=".cg")
        distance = _to(y, c, rival, cols, i < count, d, unit, WIDTH)
        second = tl.minimum(second, tl.maximum(best, distance))
        label = tl.where(distance < best, rival, label)
        best = tl.minimum(best, distance)
    limit = best + best * tie
    tied = (second <= limit) & (count > 1)
    if tl.max(tied.to(tl.int32), 0) > 0:
        lowest = tl.zeros((y.shape[0],), tl.int32) + k
        for i in range(0, most):
            rival = tl.load(rivals + i, mask=i < count, other=0, cache_modifier=".cg")
            distance = _to(y, c, rival, cols, i < count, d, unit, WIDTH)
            lowest = tl.where((i < count) & (distance <= limit), tl.minimum(lowest, rival), lowest)
        label = tl.where(tied, lowest, label)
    return label


@triton.jit(do_not_specialize=["b", "n", "k", "d", "slots"])
def resolve(
    x,
    offset,
    c,
    table,
    state,
    high,
    norms,
    labels,
    listed,
    limits,
    halves,
    rivals,
    counts,
    b,
    n,
    k,
    d,
    slots,
    apart,
    across,
    along,
    times,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    PART: tl.constexpr,
    WIDE: tl.constexpr,
    FEW: tl.constexpr,
    PADDED: tl.constexpr,
    IDS: tl.constexpr,
):
    """Write the labels of the listed rows: the lowest of those whose distance is the shortest, or ties with it.

    They are scored once more, to see which centroids are within their limits: those `rivals` (blocks, ROWS, RIVALS) are compared by
    the distance, FEW rows at a time; or all centroids, where rivals are too many. A block writes its rows as float16
    `halves` (blocks, ROWS, WIDTH) and reads them back, so that they come to products from shared memory.
    """
    lanes, inside = tl.arange(0, LANES), tl.arange(0, ROWS)[:, None] * WIDTH
    halves += tl.program_id(0).to(tl.int64) * (ROWS * WIDTH)
    rivals += tl.program_id(0) * (ROWS * RIVALS)
    counts += tl.program_id(0) * ROWS
    cols, features = tl.arange(0, CHUNK), tl.arange(0, PADDED)
    tile = tl.program_id(0)
    problem, start = tile_of(state + OPEN, b, tile, ROWS)
    while problem < b:
        of = problem.to(tl.int64)
        its_state, its_norms, its_high = state + of * STATES, norms + of * slots, high
        its_high += of * slots * WIDTH
        its_x, its_labels, its_list = x + of * apart, labels + of * n, listed + of * n + start
        its_c = c + (of * 2 + tl.load(its_state + PASSES) % 2) * k * d
        unit = tl.load(table + of * COLUMNS + UNIT)
        scale = tl.load(table + of * COLUMNS + SCREEN)
        tie = tl.load(table + of * COLUMNS + TIE)
        left = tl.load(its_state + OPEN).to(tl.int32) - start
        place = tl.arange(0, ROWS)
        valid = place < left
        rows = tl.load(its_list + place, mask=valid, other=0).to(tl.int64)
        limit = tl.load(limits + of * n + start + place, mask=valid, other=-3e38)
        for begin in range(0, WIDTH, PART):
            at = begin + tl.arange(0, PART)
            its_offset = offset + of * d
            y = centred(its_x, rows, at, valid, d, across, along, its_offset, unit, scale, WIDE)
            tl.store(halves + inside + at[None, :], y.to(tl.float16))
        tl.store(counts + place, 0)
        tl.debug_barrier()  # one block's threads read what others have written
        if WIDTH == CHUNK:
            a = tl.load(halves + inside + cols[None, :])
        for first in range(0, slots, BITS * LANES):
            near = tl.zeros((ROWS, LANES), tl.int32)
            for base in range(first, tl.minimum(first + BITS * LANES, slots), LANES):
                score = tl.zeros((ROWS, LANES), tl.float32)
                score += tl.load(its_norms + base + lanes)[None, :]
                # Not to WIDTH where that are several: it would be unrolled.
                for begin in range(0, CHUNK if WIDTH == CHUNK else d, CHUNK):
                    if WIDTH > CHUNK:
                        a = tl.load(halves + inside + begin + cols[None, :])
                    skip = tl.cast(base, tl.int64) * WIDTH + begin
                    score += times * tl.dot(
                        a, tl.load(its_high + skip + lanes[None, :] * WIDTH + cols[:, None])
                    )
                bit = 1 << ((base - first) // LANES)
                near |= tl.where(score <= limit[:, None], bit, 0)
            _list(near, first, counts, rivals, ROWS, LANES)
        tl.debug_barrier()
        for first in range(0, tl.minimum(left, ROWS), FEW):
            some = first + tl.arange(0, FEW)
            count = tl.load(counts + some, cache_modifier=".cg")
            known = (some < left) & (count > 0) & (count <= RIVALS)
            these = tl.load(its_list + some, mask=known, other=0).to(tl.int64)
            y = _rows(its_x, these, features, known, d, across, along, unit)
            its_rivals, count = rivals + some * RIVALS, tl.where(known, count, 0)
            label = _nearest_of(y, its_c, its_rivals, count, features, k, d, unit, tie, PADDED)
            tl.store(its_labels + these, label, mask=known)
            missed = (some < left) & (known == 0)
            if tl.max(missed.to(tl.int32), 0) > 0:  # hardly ever: many are equally near
                for i in range(first, tl.minimum(first + FEW, left)):
                    if tl.load(counts + i, cache_modifier=".cg") > RIVALS:
                        row = tl.load(its_list + i).to(tl.int64) + tl.zeros((1,), tl.int64)
                        one = _rows(its_x, row, features, row >= 0, d, across, along, unit)
                        nearest = _nearest(one, its_c, k, features, d, unit, tie, PADDED, IDS)
                        tl.store(its_labels + row, nearest + tl.zeros((1,), tl.int32))
        tile += tl.num_programs(0)
        problem, start = tile_of(state + OPEN, b, tile, ROWS)
        tl.debug_barrier()  # before halves and counts are others


@triton.jit(do_not_specialize=["n", "d"])
def own(
    x,
    c,
    labels,
    found,
    units,
    n,
    d,
    between,
    apart,
    across,
    along,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write the squared distances (b, n) of rows to the centroids of their labels, `between` numbers from problem to problem.

    `units` (b, 2) are what coordinates of rows, and of centroids, are multiplied by.
    """
    problem = tl.program_id(1).to(tl.int64)
    x += problem * apart
    c += problem * between
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, WIDTH)
    label = tl.load(labels + problem * n + rows, mask=rows < n, other=0).to(tl.int64)
    there = (rows[:, None] < n) & (cols[None, :] < d)
    at = rows[:, None] * across + cols[None, :].to(tl.int64) * along
    y = tl.load(x + at, mask=there, other=0).to(tl.float64) * tl.load(units + 2 * problem)
    z = tl.load(c + label[:, None] * d + cols[None, :], mask=there, other=0.0).to(tl.float64)
    t = y - z * tl.load(units + 2 * problem + 1)
    tl.store(found + problem * n + rows, halving_sum(t * t, WIDTH), mask=rows < n)
