# mypy: allow-untyped-defs, allow-untyped-calls
"""One pass that no other follows: labels and distances of rows where they are, in one call, and no bounds.

Rows are the lanes, a block at a time. Where centroids are few all distances are those of `anykmeans._distance`, bit for bit, so
that labels need no certificate; else scores in float32 find the nearest, and what they leave in doubt is measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anykmeans._bounds import FAR, GAP, Bounds
from anykmeans._frame import Frame
from anykmeans._search import Change, Search
from anykmeans.kernels.numba import pieces, read
from anykmeans.kernels.numba.simd import SIDE, WIDTH, lanes, prefetch
from anykmeans.kernels.numba.steps import (
    any_order,
    decide,
    inline,
    inner,
    jit,
    quarter,
    side_by_side,
    squared_distance,
)

if TYPE_CHECKING:
    from anykmeans.sources.rows import Rows

Found = tuple[np.ndarray, np.ndarray, float]

_ORDINARY = 2.0**20  # times as large or small as one that numbers may be to be compared as they are
_FEW = 10  # centroids up to which all distances in float64 take no longer than scores and the distances to the nearest
_APART = 8  # numbers that keep features a power of two long out of each other's place in the cache


@inline
def turn(x, start, used, unit, offset, columns):
    """Write so many rows from `start` on, in the frame, less the `offset` (d,), to `columns`, features first, four together."""
    d = x.shape[1]
    for f in range((start + used) * d, (start + 2 * used) * d, 64 // x.itemsize):
        prefetch(x, f)  # of those that follow, as processors do not foresee so many at once
    fours = d - d % 4
    for f in range(0, fours, 4):
        a, b, g, h = columns[f], columns[f + 1], columns[f + 2], columns[f + 3]
        p, q, r, s = offset[f], offset[f + 1], offset[f + 2], offset[f + 3]
        for i in range(used):
            row = start + i
            t, u, v, w = x[row, f], x[row, f + 1], x[row, f + 2], x[row, f + 3]
            a[i], b[i], g[i], h[i] = t * unit - p, u * unit - q, v * unit - r, w * unit - s
    for f in range(fours, d):
        for i in range(used):
            columns[f, i] = x[start + i, f] * unit - offset[f]


@jit
def measured(x, unit, wide, tie, labels, distances):
    """Write the `labels` (n,) of the nearest of `wide` (k, d), ties to the lowest, and squared `distances` (n,) to them.

    Returns how many rows are out of range, or not finite: those mean nothing.
    """
    (n, d), k, width = x.shape, wide.shape[0], 4 * quarter(x.shape[1])
    columns, c = np.zeros((width, SIDE + _APART)), np.zeros((k, width))
    room, none = np.empty((width // 4, SIDE)), np.zeros(d)
    for j in range(k):
        for f in range(d):
            c[j, f] = wide[j, f]
    squared, limit, own = np.empty((k, SIDE)), np.empty(SIDE), np.empty(SIDE)
    found = np.empty(SIDE, np.int64)  # as wide as a distance, to be chosen with it
    lost = 0
    for start in range(0, n, SIDE):
        used = n - start if n - start < SIDE else SIDE
        turn(x, start, used, unit, none, columns)
        for i in range(SIDE):
            limit[i], own[i], found[i] = np.inf, np.inf, 0
        for j in range(k):
            side_by_side(columns, c, j, room)
            for i in range(SIDE):
                squared[j, i] = room[0, i]
                limit[i] = room[0, i] if room[0, i] < limit[i] else limit[i]
        for i in range(SIDE):
            limit[i] *= 1 + tie
        for j in range(k - 1, -1, -1):
            for i in range(SIDE):
                near = squared[j, i] <= limit[i]
                found[i], own[i] = j if near else found[i], squared[j, i] if near else own[i]
        for i in range(used):
            labels[start + i], distances[start + i] = found[i], own[i]
            lost += not own[i] <= FAR
    return lost


@inner
def middle(wide):
    """Return the mean (d,) of centroids `wide` (k, d), as float32, if they are nearer to it than to the origin, else zeros."""
    k, d = wide.shape
    mean, square, spread = np.zeros(d), 0.0, 0.0
    for j in range(k):
        for f in range(d):
            mean[f] += wide[j, f]
    for f in range(d):
        mean[f] = np.float64(np.float32(mean[f] / k))
        square += mean[f] * mean[f]
    for j in range(k):
        for f in range(d):
            step = wide[j, f] - mean[f]
            spread += step * step
    if not square * k > spread:
        for f in range(d):
            mean[f] = 0.0
    return mean


@any_order
def product(minus_2c, j, y):
    """Return the product of a row of `minus_2c` and `y` (d,), added in any order."""
    total = np.float32(0.0)
    for f in range(y.shape[0]):
        total += minus_2c[j, f] * y[f]
    return total


@jit
def scored(x, unit, wide, tie, beta, eta, labels):
    """Write the `labels` that `measured` does, by scores that are off by what `Bounds` says; return the same."""
    (n, d), k = x.shape, wide.shape[0]
    offset, columns = middle(wide), np.zeros((d, WIDTH), np.float32)
    minus_2c, norms = np.empty((k, d), np.float32), np.empty(k, np.float32)
    every, candidates = np.empty(k, np.int64), np.empty(k, np.int64)
    for j in range(k):
        every[j], square = j, 0.0
        for f in range(d):
            c = wide[j, f] - offset[f]
            minus_2c[j, f] = c * -2.0
            square += c * c
        norms[j] = square
    best, second = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    who, norm = np.empty(WIDTH, np.int32), np.empty(WIDTH)
    most, least = np.empty(WIDTH), np.empty(WIDTH)
    squared, room, y = np.empty(k), np.empty(d), np.empty(d, np.float32)
    lost = 0
    for start in range(0, n, WIDTH):
        used = n - start if n - start < WIDTH else WIDTH
        turn(x, start, used, unit, offset, columns)
        for r in range(WIDTH):
            norm[r], best[r], second[r], who[r] = 0.0, np.inf, np.inf, 0
        for f in range(d):
            for r in range(WIDTH):
                value = np.float64(columns[f, r])
                norm[r] += value * value
        lanes(columns, d, minus_2c, norms, every, 0, k, best, second, who)
        for r in range(WIDTH):
            estimate, other = norm[r] + np.float64(best[r]), norm[r] + np.float64(second[r])
            most[r] = (estimate + abs(estimate) * beta + norm[r] * beta + eta) * GAP
            least[r] = other - abs(other) * beta - norm[r] * beta - eta
        for r in range(used):
            row, label = start + r, np.int64(who[r])
            if not norm[r] <= FAR:
                lost += 1
            elif not most[r] < least[r]:
                found = 0
                for f in range(d):
                    y[f] = columns[f, r]
                for j in range(k):
                    estimate = norm[r] + np.float64(norms[j]) + np.float64(product(minus_2c, j, y))
                    if estimate - (abs(estimate) + norm[r]) * beta - eta <= most[r]:
                        candidates[found] = j
                        squared[found] = squared_distance(x, row, unit, wide, j, room)
                        found += 1
                label = decide(candidates, squared, np.int64(found), most[r], tie, label)[0]
            labels[row] = label
    return lost


@jit
def extremes(c):
    """Return the least and the largest magnitude of centroids `c` (k, d), NaN if any is not a number."""
    least, largest = np.inf, 0.0
    for j in range(c.shape[0]):
        magnitude = 0.0
        for f in range(c.shape[1]):
            value = np.float64(abs(c[j, f]))
            magnitude = value if value > magnitude or value != value else magnitude
        least = magnitude if magnitude < least or magnitude != magnitude else least
        largest = magnitude if magnitude > largest or magnitude != magnitude else largest
    return least, largest


def ordinary(rows: Rows, c: np.ndarray) -> Found | None:
    """Return labels (n,), squared distances (n,) and inertia for centroids `c` (k, d), if nothing there needs scaling, else None."""
    c = np.array(c, np.float64, order="C")  # one kind of array, for which all is compiled
    low, high = extremes(c)
    if not (low > 1 / _ORDINARY and high < _ORDINARY and 1 / _ORDINARY < rows.largest < _ORDINARY):
        return None
    frame = Frame(rows.matrix, max(rows.largest, high))
    search = Once(rows, frame)
    search.relabel(c)
    distances = search.distances(rows, frame, c)
    cost = float(rows.kernel.cost(rows, frame, distances))
    return search.labels, distances, float(np.ldexp(cost, rows.heaviest))  # which may be infinite


class Once(Search):
    """Labels of all rows of one pass."""

    def __init__(self, rows: Rows, frame: Frame) -> None:
        self.rows, self.frame = rows, frame
        self._measured: tuple[np.ndarray, np.ndarray] | None = None

    def relabel(self, c: np.ndarray) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; all may have changed."""
        rows, unit, wide = self.rows, self.frame.unit, self.frame.widen(c)
        (n, d), work = rows.shape, rows.work
        self.labels, tie = np.empty(n, np.int32), Bounds.of(d, 2.0**-53).tie
        if c.shape[0] <= _FEW:
            found = np.empty(n)
            self._measured = c, found

            def label(tile: slice) -> int:
                x = read(rows.matrix, tile)
                return int(measured(x, unit, wide, tie, self.labels[tile], found[tile]))

        else:
            off = Bounds.of(d, 2.0**-24)

            def label(tile: slice) -> int:
                x = read(rows.matrix, tile)
                return int(scored(x, unit, wide, tie, off.beta, off.eta, self.labels[tile]))

        self.lost = sum(work.map(label, pieces(rows))) > 0
        return [], n

    def distances(self, rows: Rows, frame: Frame, c: np.ndarray) -> np.ndarray:
        """Return the squared distances (n,), in the frame, of all rows to their labels' centroids of `c`."""
        if self._measured is not None and self._measured[0] is c:
            return self._measured[1]
        return np.asarray(super().distances(rows, frame, c))
