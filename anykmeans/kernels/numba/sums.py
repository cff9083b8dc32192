# mypy: allow-untyped-defs, allow-untyped-calls
"""What a row is read once for besides the search: magnitudes, exact sums, distances to its centroid or all."""

from __future__ import annotations

import math

import numpy as np

from anykmeans.kernels.numba.distance import squared_distance
from anykmeans.kernels.numba.room import empty, zeros
from anykmeans.kernels.numba.simd import ROWS, SIDE, SMALL, apart
from anykmeans.kernels.numba.steps import inline, jit
from anykmeans.kernels.numba.whole import add, meaning

_HALVING = 2.0**27 + 1
_TOGETHER = 64  # columns that are skipped if all are zero


@jit
def magnitudes(bits, magnitude, high, smallest):
    """Raise `high` (d,) to |x| and lower `smallest` (d,) to the nonzero |x|, all given by their bits.

    `magnitude` is the bits but the sign. As whole numbers, bits have the order of the floats, NaN above all.
    """
    for row in range(bits.shape[0]):
        for f in range(bits.shape[1]):
            value = bits[row, f] & magnitude
            high[f] = value if value > high[f] else high[f]
            value = magnitude if value == 0 else value
            smallest[f] = value if value < smallest[f] else smallest[f]


@jit
def weighted_magnitudes(x, w, largest, smallest):
    """Raise `largest` (d + 1,) to |w x| and w, lower `smallest` (d + 1,) to those not zero."""
    d = x.shape[1]
    for row in range(x.shape[0]):
        for f in range(d + 1):
            value = w[row] * (np.float64(abs(x[row, f])) if f < d else 1.0)
            largest[f] = value if value > largest[f] or value != value else largest[f]
            smallest[f] = value if 0.0 < value < smallest[f] else smallest[f]


@inline
def two_product(a, b):
    """Return the rounded product, and exactly what the rounding took: `anykmeans._grid.two_product`."""
    product = a * b
    scaled = a * _HALVING
    a_high = scaled - (scaled - a)
    scaled = b * _HALVING
    b_high = scaled - (scaled - b)
    a_low, b_low = a - a_high, b - b_high
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


@jit
def accumulate(x, at, w, new, old, scale, step, folds, sums):
    """Add the rows ``x[at]`` to their clusters `new` and take them from `old`, unless that is empty.

    `sums` (k, folds * (d + 1)) are whole numbers of the grid: as `Grid.split` makes them.
    """
    for i in range(at.shape[0]):
        weight = w[i] if w.shape[0] > 1 else w[0]
        since = np.int64(old[i]) if old.shape[0] else np.int64(-1)
        add(x, at[i], weight, scale, step, folds, sums, np.int64(new[i]), since)


@jit
def own_distances(x, unit, wide, labels, distances):
    """Write each row's squared distance to its own centroid of `wide` (k, d), in the frame."""
    room = empty(x.shape[1], np.float64)
    for row in range(x.shape[0]):
        distances[row] = squared_distance(x, row, unit, wide, np.int64(labels[row]), room)


@jit
def whole(values, w, scale, step, folds):
    """Return the sum of `values` (n,) times `w` as whole numbers (folds,) of the grid."""
    found, rest = zeros((folds, SIDE), np.float64), zeros((2, SIDE), np.float64)
    weighted = w.shape[0] > 1 or w[0] != 1.0
    terms = 2 if weighted else 1  # products, and what their rounding took
    for start in range(0, values.shape[0], SIDE):
        count = values.shape[0] - start if values.shape[0] - start < SIDE else SIDE
        for i in range(count):
            rest[0, i] = values[start + i] * scale
        for i in range(count, SIDE):
            rest[0, i] = rest[1, i] = 0.0
        if weighted:
            for i in range(count):
                weight = w[start + i] if w.shape[0] > 1 else w[0]
                rest[0, i], rest[1, i] = two_product(rest[0, i], weight)
        for fold in range(folds):
            left = False
            for term in range(terms):
                for i in range(SIDE):
                    part = np.rint(rest[term, i])
                    found[fold, i] += part
                    rest[term, i] = (rest[term, i] - part) * step
                    left |= rest[term, i] != 0.0
            if not left:  # as of most, before all folds are through
                break
    total = zeros(folds, np.float64)
    for fold in range(folds):
        for i in range(SIDE):
            total[fold] += found[fold, i]
    return total


@jit
def total(sums, scale, step, folds):
    """Return the sums (k, columns) that whole numbers mean: `Grid.total`, bit for bit."""
    k, columns = sums.shape[0], scale.shape[0]
    result = empty((k, columns), np.float64)
    for a in range(k):
        meaning(sums, a, scale, 0, columns, step, folds, result, a * columns)
    return result


@jit
def join(sums, more, scale, step, folds, result):
    """Add whole numbers `sums` (k, folds * columns) to `more`, carry, and write to `result` (k, columns), zeros, what that means.

    Bit for bit as `Grid.carried` and `Grid.total`. Of wide sparse rows most sums are zero, and stay so.
    """
    columns, finer = scale.shape[0], 1.0 / step  # a power of two, as `step` is
    for a in range(sums.shape[0]):
        for begin in range(0, columns, _TOGETHER):
            end = begin + _TOGETHER if begin + _TOGETHER < columns else columns
            some = False
            for i in range(folds):
                these = sums[a, i * columns + begin : i * columns + end]
                those = more[a, i * columns + begin : i * columns + end]
                for f in range(end - begin):
                    those[f] += these[f]
                    some |= those[f] != 0.0
            if not some:
                continue
            for i in range((folds - 1) * columns, 0, -columns):
                part, above = more[a, i + begin : i + end], more[a, i - columns + begin : i - columns + end]  # fmt: skip
                for f in range(end - begin):
                    carry = np.rint(part[f] * finer)
                    part[f] -= carry * step
                    above[f] += carry
            meaning(more, a, scale, begin, end, step, folds, result, a * columns + begin)


@jit
def put(where, c, counts, scale, step, folds, sums):
    """Write what `counts` (k,) rows at `c` (k, d) add up to, to `sums` (k, folds * (d + 1)) in columns that a mask (k, d + 1) says.

    As `Grid.split` makes them, carried.
    """
    (k, columns), finer = where.shape, 1.0 / step
    for a in range(k):
        for f in range(columns):
            if not where[a, f]:
                continue
            value = np.float64(c[a, f]) if f < columns - 1 else 1.0
            rest, lost = two_product(value * scale[f], counts[a])
            for i in range(f, folds * columns, columns):
                whole, more = np.rint(rest), np.rint(lost)
                sums[a, i] = whole + more
                rest, lost = (rest - whole) * step, (lost - more) * step
            for i in range(f + (folds - 1) * columns, f, -columns):
                carry = np.rint(sums[a, i] * finer)
                sums[a, i] -= carry * step
                sums[a, i - columns] += carry


@jit
def means(sums, mass, c, found):
    """Write the means ``sums / mass`` (k, d) to `found`, of a cluster without mass its row of `c`."""
    for j in range(c.shape[0]):
        for f in range(c.shape[1]):
            found[j, f] = sums[j, f] / mass[j] if mass[j] != 0.0 else np.float64(c[j, f])


@jit
def pairwise(x, panels, starts, wide, found, at_once):
    """Write the distances (m, k) of rows `x` (m, d) to all centroids `wide` (k, d), which are also ``panels`` that begin at `starts`.

    Returns how many rows were out of range, whose distances mean nothing. As many rows `at_once`, a multiple of ROWS, are in the
    cache while the panels pass by. A panel is full: it may have centroids of the one before, or, if it is the only one, one twice.
    """
    (m, k), width = found.shape, panels.shape[2]
    edge, apart_of = zeros((ROWS, x.shape[1]), x.dtype), empty((ROWS, width), found.dtype)
    room, lost = empty(x.shape[1], np.float64), 0
    for start in range(0, m, at_once):
        stop = start + at_once if start + at_once < m else m
        for p in range(panels.shape[0]):
            first = starts[p]
            for row in range(start, stop, ROWS):
                source, where = x, row
                if row + ROWS > m:
                    source, where = edge, 0
                    for r in range(m - row):
                        for f in range(x.shape[1]):
                            edge[r, f] = x[row + r, f]
                whole = first + width <= k and row + ROWS <= m
                target, to, at = apart_of, 0, 0
                if whole:
                    target, to, at = found, row, first
                small = apart(source, where, panels, p, target, to, at)
                last = row + ROWS if row + ROWS < m else m
                some = width if first + width <= k else k
                if not whole:
                    for r in range(row, last):
                        for j in range(some):
                            found[r, first + j] = apart_of[r - row, j]
                if small:
                    for r in range(row, last):
                        for j in range(first, first + some):
                            if found[r, j] * found[r, j] < SMALL:
                                found[r, j] = math.sqrt(squared_distance(x, r, 1.0, wide, j, room))
        for row in range(start, stop):
            lost += not found[row, 0] <= 2.0**40  # the root of FAR; nor if that is NaN
    return lost
