# mypy: allow-untyped-defs, allow-untyped-calls
"""k-means++ of few rows: all picks in one call, as where little is to be computed calls between steps are what costs.

Rows are the lanes, and distances are `anykmeans._distance`'s bit for bit.
"""

from __future__ import annotations

import math

import numpy as np

from anykmeans._bounds import GAP
from anykmeans.kernels.numba import seeding
from anykmeans.kernels.numba.distance import squared_distance
from anykmeans.kernels.numba.room import empty, zeros
from anykmeans.kernels.numba.simd import SIDE
from anykmeans.kernels.numba.steps import ZERO, inner, jit, quarter, side_by_side


@inner
def _nearest(reach):
    """Return for each pick within what distance no candidate is nearer to its rows."""
    nearest = empty(reach.shape[0], np.float64)
    for o in range(reach.shape[0]):
        nearest[o] = np.inf
        for j in range(reach.shape[1]):
            nearest[o] = reach[o, j] if reach[o, j] < nearest[o] else nearest[o]
    return nearest


@inner
def trials(y, c, closest, owner, reach, w, scale, saved, won):
    """Trials of few features, in float64: rows that no bound rules out, side by side.

    Adds what each of the candidates `c` (t, d) saves to `saved` (t,), and writes to `won` (m,) which may be nearer.
    """
    m, d = y.shape
    t = c.shape[0]
    left = quarter(d)
    columns, sums = zeros((4 * left, SIDE), np.float64), zeros((left, SIDE), np.float64)
    far = zeros((t, 4 * left), np.float64)
    for j in range(t):
        for f in range(d):
            far[j, f] = c[j, f]
    weight, before, cost = zeros(SIDE, np.float64), empty(SIDE, np.float64), empty(SIDE, np.float64)
    less, bits = zeros((t, SIDE), np.float64), empty(SIDE, np.int64)
    rows = empty(SIDE, np.uint64)  # a signed index would be looked at twice
    nearest = _nearest(reach)
    row = 0
    while row < m:
        count = 0
        while row < m and count < SIDE:
            won[row], rows[count] = 0, row
            count += closest[row] > nearest[owner[row]]  # no branch: it would be a guess
            row += 1
        for i in range(count):
            before[i] = closest[rows[i]]
            weight[i] = w[rows[i]] if w.shape[0] > 1 else w[0]
        for i in range(count, SIDE):
            before[i] = 0.0  # nothing is nearer
        for f in range(d):
            for i in range(count):
                columns[f, i] = y[rows[i], f]
        for i in range(SIDE):
            cost[i] = np.rint(weight[i] * before[i] * scale)
            bits[i] = 0
        for j in range(t):
            side_by_side(columns, far, j, sums)
            flag = 1 << (j & 7)
            for i in range(SIDE):
                found = sums[0, i]
                nearer = found < before[i]
                less[j, i] += cost[i] - np.rint(weight[i] * found * scale) if nearer else 0.0
                bits[i] |= flag if nearer else 0
        for i in range(count):
            won[rows[i]] = bits[i]
    for j in range(t):
        for i in range(SIDE):
            saved[j] += less[j, i]


@inner
def count_in(y, c, closest, owner, pick, won):
    """Update what is closest, for rows that the pick at `c` (1, d) may be nearer to."""
    room = empty(y.shape[1], np.float64)
    for row in range(y.shape[0]):
        if won[row]:
            squared = squared_distance(y, row, 1.0, c, ZERO, room)
            if squared < closest[row]:
                closest[row], owner[row] = squared, pick


@jit
def seeds(y, w, draws, picks):
    """Write to `picks` (k,), of which the first is given, those of greedy k-means++ with `draws` (k - 1, t)."""
    n, d = y.shape
    k, t = picks.shape[0], draws.shape[1]
    block = 1024
    closest, owner = empty(n, np.float64), zeros(n, np.int32)
    won, blocks = empty(n, np.uint8), empty(-(-n // block), np.float64)
    for row in range(n):
        closest[row], won[row] = np.inf, 1
    candidates, c = empty(t, np.int64), empty((t, d), np.float64)
    bits, scale, last = 0, 0.0, 0
    while n - 1 >> bits:
        bits += 1
    error = (d + 8) * 2.0**-51
    for pick in range(k):
        if pick == 0:
            best = 0
            for f in range(d):
                c[0, f] = y[picks[0], f]
        else:
            total, count = 0.0, 0
            for cost in blocks:  # whole numbers: exact in any order
                total += cost
            for q in range(t):
                # The first row up to which the costs add up to the draw.
                draw, so_far, number = draws[pick - 1, q] * total, 0.0, 0
                while number < blocks.shape[0] - 1 and so_far + blocks[number] < draw:
                    so_far += blocks[number]
                    number += 1
                row = number * block
                while row < n:
                    weight = w[row] if w.shape[0] > 1 else w[0]
                    so_far += np.rint(weight * closest[row] * scale)
                    if so_far >= draw:
                        break
                    row += 1
                candidates[count] = row
                new = True
                for other in range(count):
                    new = new and candidates[other] != row
                count += new
            reach = empty((pick, count), np.float64)
            for j in range(count):
                for f in range(d):
                    c[j, f] = y[candidates[j], f]
                for o in range(pick):
                    lower = seeding.measure(y, picks[o], c, j) * (1 - error)
                    # As the sieve of `anykmeans.kernels.agnostic` has it: a quarter, less more than rounding takes.
                    reach[o, j] = lower / (4 * GAP) if lower > 2.0**-900 else 0.0
            saved = zeros(count, np.float64)
            trials(y, c[:count], closest, owner, reach, w, scale, saved, won)
            best = 0
            for j in range(count):
                best = j if saved[j] > saved[best] else best
            picks[pick] = candidates[best]
            for row in range(n):
                won[row] &= 1 << (best & 7)
        if pick == k - 1:  # nobody asks what is closest to the rows
            break
        count_in(y, c[best : best + 1], closest, owner, pick, won)
        high = seeding.costs(closest, w, scale, block, blocks)
        exponent = math.frexp(high)[1]
        if scale == 0.0 or exponent != last:  # the first fold of `Grid.plan`
            last, coarse = exponent, 52 - bits - exponent
            scale = math.ldexp(1.0, coarse if coarse < 1023 else 1023)
            seeding.costs(closest, w, scale, block, blocks)
