# mypy: allow-untyped-defs, allow-untyped-calls
"""Compiled steps of k-means++: every trial of a step in one pass over the rows.

Distances that are kept are `anykmeans._exact`'s bit for bit: no fused or reordered additions. Rows of
few features are measured for many rows at a time, features transposed. Of more features sums in any
order, given up as soon as they are too large, tell candidates apart to within a bound on their error.
"""

from __future__ import annotations

import numpy as np

from anykmeans.kernels.numba.steps import (
    SIDE,
    any_order,
    inner,
    jit,
    quarter,
    side_by_side,
    squared_distance,
)


@inner
def _nearest(reach):
    """Return for each pick within what distance no candidate is nearer to its rows."""
    nearest = np.empty(reach.shape[0])
    for o in range(reach.shape[0]):
        nearest[o] = np.inf
        for j in range(reach.shape[1]):
            nearest[o] = reach[o, j] if reach[o, j] < nearest[o] else nearest[o]
    return nearest


@jit
def few(y, c, closest, owner, reach, w, scale, saved, won):
    """Trials of few features, in float64: rows that no bound rules out, side by side.

    Adds what each of the candidates `c` (t, d) saves to `saved` (t,), and writes to `won` (m,) which may be nearer.
    """
    m, d = y.shape
    t = c.shape[0]
    left = quarter(d)
    columns, sums = np.zeros((4 * left, SIDE)), np.zeros((left, SIDE))
    far = np.zeros((t, 4 * left))
    for j in range(t):
        for f in range(d):
            far[j, f] = c[j, f]
    weight, before, cost = np.ones(SIDE), np.empty(SIDE), np.empty(SIDE)
    less, bits = np.zeros((t, SIDE)), np.empty(SIDE, np.int64)
    rows = np.empty(SIDE, np.uint64)  # a signed index would be looked at twice
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


@any_order
def many(y, c, closest, owner, reach, w, saved, won):
    """Trials of many features, estimated: a sum is given up once too large. Returns how far off `saved` may be."""
    m, d = y.shape
    piece = 64  # features after which to see whether it is too far already
    # A sum of d squares in any order errs by less than half of this, and so does the exact one.
    error, tiny = (d + 8) * 2.0**-51, 2.0**-1000
    nearest = _nearest(reach)
    doubt = 0.0
    for row in range(m):
        bits, o, before = 0, owner[row], closest[row]
        if before > nearest[o]:
            limit = before + before * error + tiny
            weight = w[row] if w.shape[0] > 1 else w[0]
            for j in range(c.shape[0]):
                if before > reach[o, j]:
                    total = 0.0
                    for start in range(0, d, piece):
                        a, b = y[row, start : start + piece], c[j, start : start + piece]
                        for f in range(a.shape[0]):
                            step = a[f] - b[f]
                            total += step * step
                        if total > limit:
                            break
                    if total <= limit:
                        bits |= 1 << (j & 7)
                        saved[j] += weight * (before - total) if before > total else 0.0
                        doubt += weight * before * error + tiny
        won[row] = bits
    return doubt


@jit
def settle(y, c, closest, owner, pick, won):
    """Update what is closest, for rows that the pick at `c` (1, d) may be nearer to."""
    room = np.empty(y.shape[1])
    for row in range(y.shape[0]):
        if won[row]:
            squared = squared_distance(y, row, 1.0, c, np.int64(0), room)
            if squared < closest[row]:
                closest[row], owner[row] = squared, pick


@jit
def costs(closest, w, scale, block, sums):
    """Write the sums of whole-number costs, block by block, and return the largest cost."""
    whole, high = np.empty(block), np.zeros(block)
    for number in range(sums.shape[0]):
        start = number * block
        rows = closest.shape[0] - start if closest.shape[0] - start < block else block
        for i in range(rows):
            cost = closest[start + i] * (w[start + i] if w.shape[0] > 1 else w[0])
            high[i] = cost if cost > high[i] else high[i]
            whole[i] = np.rint(cost * scale)
        for i in range(rows, block):
            whole[i] = 0.0
        half = block  # a power of two; halves are added side by side, one sum would wait for itself
        while half > 1:
            half //= 2
            for i in range(half):
                whole[i] += whole[i + half]
        sums[number] = whole[0]
    largest = 0.0
    for i in range(block):
        largest = high[i] if high[i] > largest else largest
    return largest
