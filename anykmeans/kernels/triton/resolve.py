# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""The distance whose bits are promised, in float64, and the rows that only it can decide."""

from __future__ import annotations

import triton
import triton.language as tl

from anykmeans.kernels.triton.screen import (
    COLUMNS,
    PASSES,
    RESOLVE,
    STATES,
    TIE,
    UNIT,
    tile_of,
)

TILE = 2048  # numbers of a tile of differences
MANY = 16  # rows decided at once, at most
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


@triton.jit(do_not_specialize=["b", "n", "k", "d"])
def resolve(
    x,
    c,
    table,
    state,
    labels,
    listed,
    rivals,
    b,
    n,
    k,
    d,
    apart,
    across,
    along,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    IDS: tl.constexpr,
):
    """Write the labels of the listed rows: the lowest of those whose distance is the shortest, or ties with it.

    It is a row's label or its rival, or any where the rival is below 0.
    """
    cols = tl.arange(0, WIDTH)
    tile = tl.program_id(0)
    problem, start = tile_of(state + RESOLVE, b, tile, ROWS)
    while problem < b:
        begin = problem.to(tl.int64)
        unit = tl.load(table + begin * COLUMNS + UNIT)
        tie = tl.load(table + begin * COLUMNS + TIE)
        count = tl.load(state + begin * STATES + RESOLVE).to(tl.int32)
        its_c = c + (begin * 2 + tl.load(state + begin * STATES + PASSES) % 2) * k * d
        its_x, its_labels = x + begin * apart, labels + begin * n
        place = start + tl.arange(0, ROWS)
        valid = place < count
        rows = tl.load(listed + begin * n + place, mask=valid, other=0).to(tl.int64)
        rival = tl.load(rivals + begin * n + place, mask=valid, other=0)
        valid = valid & (rival >= 0)
        y = _rows(its_x, rows, cols, valid, d, across, along, unit)
        label = tl.load(its_labels + rows, mask=valid, other=0)
        first = _to(y, its_c, label, cols, valid, d, unit, WIDTH)
        second = _to(y, its_c, rival, cols, valid, d, unit, WIDTH)
        best = tl.minimum(first, second)
        tied = tl.maximum(first, second) <= best + best * tie
        nearer = tl.where(first < second, label, rival)
        nearer = tl.where(tied, tl.minimum(label, rival), nearer)
        tl.store(its_labels + rows, nearer, mask=valid)
        if tl.min(rival, 0) < 0:  # hardly ever: more than two are equally near
            for i in range(start, tl.minimum(start + ROWS, count)):
                if tl.load(rivals + begin * n + i) < 0:
                    row = tl.load(listed + begin * n + i).to(tl.int64) + tl.zeros((1,), tl.int64)
                    one = _rows(its_x, row, cols, row >= 0, d, across, along, unit)
                    nearest = _nearest(one, its_c, k, cols, d, unit, tie, WIDTH, IDS)
                    tl.store(its_labels + row, nearest + tl.zeros((1,), tl.int32))
        tile += tl.num_programs(0)
        problem, start = tile_of(state + RESOLVE, b, tile, ROWS)


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
