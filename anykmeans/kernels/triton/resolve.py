# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""The distance whose bits are promised, in float64, and the rows that only it can decide."""

from __future__ import annotations

import triton
import triton.language as tl

from anykmeans.kernels.triton.screen import (
    COLUMNS,
    DONE,
    PASSES,
    RESOLVE,
    RUNNING,
    STATES,
    TIE,
    UNIT,
)

TILE = 4096  # numbers of a tile of differences
MOST = 1 << 19  # features up to which a row fits one


@triton.jit
def halving_sum(t, WIDTH: tl.constexpr):
    """Return the sums (m,) of the rows of `t` (m, WIDTH), by halving along the features."""
    m: tl.constexpr = t.shape[0]
    for level in tl.static_range(WIDTH.bit_length() - 1):
        t = tl.sum(tl.reshape(t, (m, 2, WIDTH >> (level + 1))), 1)
    return tl.reshape(t, (m,))


@triton.jit
def _row(x, row, cols, d, across, along, unit):
    at = x + row * across + cols.to(tl.int64) * along
    return tl.load(at, mask=cols < d, other=0).to(tl.float64) * unit


@triton.jit
def _distances(y, c, ids, cols, k, d, unit, WIDTH: tl.constexpr):
    there = (ids[:, None] < k) & (cols[None, :] < d)
    at = tl.load(c + ids[:, None].to(tl.int64) * d + cols[None, :], mask=there, other=0.0)
    t = y[None, :] - at.to(tl.float64) * unit
    return tl.where(ids < k, halving_sum(t * t, WIDTH), float("inf"))


@triton.jit(do_not_specialize=["n", "k", "d"])
def resolve(
    x,
    c,
    table,
    state,
    labels,
    rows,
    n,
    k,
    d,
    apart,
    across,
    along,
    WIDTH: tl.constexpr,
    IDS: tl.constexpr,
):
    """Write the labels of the listed rows: the lowest of those whose distance is the shortest, or ties with it."""
    problem = tl.program_id(1).to(tl.int64)
    state += problem * STATES
    if tl.load(state + DONE) != RUNNING:
        return
    table += problem * COLUMNS
    unit, tie = tl.load(table + UNIT), tl.load(table + TIE)
    x += problem * apart
    c += (problem * 2 + tl.load(state + PASSES) % 2) * k * d
    labels += problem * n
    rows += problem * n
    cols, lanes = tl.arange(0, WIDTH), tl.arange(0, IDS)
    for place in range(tl.program_id(0), tl.load(state + RESOLVE).to(tl.int32), tl.num_programs(0)):
        row = tl.load(rows + place).to(tl.int64)
        y = _row(x, row, cols, d, across, along, unit)
        best = tl.full((), float("inf"), tl.float64)
        second = tl.full((), float("inf"), tl.float64)
        label = tl.zeros((), tl.int32)
        for base in range(0, k, IDS):
            distance = _distances(y, c, base + lanes, cols, k, d, unit, WIDTH)
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
                distance = _distances(y, c, ids, cols, k, d, unit, WIDTH)
                label = tl.minimum(label, tl.min(tl.where(distance <= limit, ids, k), 0))
        tl.store(labels + row, label)


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
