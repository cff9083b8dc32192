# mypy: allow-untyped-defs, allow-untyped-calls
"""Small fits: all distances in float64, and as many passes or picks in one call as need no decision.

Where little is to be computed, calls between steps are what costs. Rows are the lanes, and distances are
`anykmeans._distance`'s bit for bit, so that labels need no certificate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anykmeans._bounds import FAR, GAP, Bounds
from anykmeans._search import Change, Search
from anykmeans.kernels.numba import seeding, sums, weights
from anykmeans.kernels.numba.simd import SIDE
from anykmeans.kernels.numba.steps import halve, inner, jit, quarter, side_by_side, squared_distance

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans.sources.descent import InMemory


class Folds(NamedTuple):
    """The grid of the sums, see `anykmeans._grid.Grid`.

    Attributes
    ----------
    scale : ndarray of shape (d + 1,), float64
        What brings a column to the first fold.
    step : float
        What brings it to the next.
    number : int
        How many there are.
    """

    scale: np.ndarray
    step: float
    number: int


@jit
def by_lanes(x, unit):
    """Return rows (n, d) in the frame as `side_by_side` takes them (blocks, padded d, SIDE)."""
    n, d = x.shape
    columns = np.zeros((-(-n // SIDE), 4 * quarter(d), SIDE))
    for row in range(n):
        for f in range(d):
            columns[row // SIDE, f, row % SIDE] = x[row, f] * unit
    return columns


@jit
def assign(columns, wide, tie, labels):
    """Write the `labels` (n,) of the nearest of `wide` (k, d): ties to the lowest."""
    n, (k, d), padded = labels.shape[0], wide.shape, columns.shape[1]
    c, room = np.zeros((k, padded)), np.empty((padded // 4, SIDE))
    for j in range(k):
        for f in range(d):
            c[j, f] = wide[j, f]
    squared, limit = np.empty((k, SIDE)), np.empty(SIDE)
    found = np.empty(SIDE, np.int32)
    for block in range(columns.shape[0]):
        for i in range(SIDE):
            limit[i], found[i] = np.inf, 0
        for j in range(k):
            side_by_side(columns[block], c, j, room)
            for i in range(SIDE):
                squared[j, i] = room[0, i]
                limit[i] = room[0, i] if room[0, i] < limit[i] else limit[i]
        for i in range(SIDE):
            limit[i] *= 1 + tie
        for j in range(k - 1, -1, -1):
            for i in range(SIDE):
                found[i] = j if squared[j, i] <= limit[i] else found[i]
        start = block * SIDE
        for i in range(n - start if n - start < SIDE else SIDE):
            labels[start + i] = found[i]


@jit
def passes(columns, x, w, c, single, unit, tie, folds, labels, most, tol, keep):
    """Move the centroids `c` (k, d), float64, by up to `most` passes; return how many, and the last shift.

    Stops after a shift of at most `tol`, and before a pass that would leave a cluster without weight, unless
    to `keep` its centroid is what to do then.
    With `single` centroids are float32. `labels` are those of the last pass.
    """
    n, (k, d), (scale, step, number) = x.shape[0], c.shape, folds
    wide, new, moves, room = np.empty((k, d)), np.empty((k, d)), np.empty(k), np.empty(d)
    whole = np.zeros((k, number * (d + 1)))
    before, none = np.empty(n, np.int32), np.empty(0, np.int32)
    rows, old, now = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32)
    weights = np.empty(n)
    done, shift = 0, np.nan
    while done < most and not shift <= tol:
        for j in range(k):
            for f in range(d):
                wide[j, f] = c[j, f] * unit
        for i in range(n):
            before[i] = labels[i]
        assign(columns, wide, tie, labels)
        moved = 0
        for i in range(n):
            rows[moved], old[moved], now[moved] = i, before[i], labels[i]
            if w.shape[0] > 1:
                weights[moved] = w[i]
            moved += done == 0 or before[i] != labels[i]
        left = none if done == 0 else old[:moved]
        sums.accumulate(
            x,
            rows[:moved],
            weights[:moved] if w.shape[0] > 1 else w,
            now[:moved],
            left,
            scale,
            step,
            number,
            whole,
        )
        total = sums.total(whole, scale, step, number)
        for j in range(k):
            mass = total[j, d]
            if mass == 0.0 and not keep:
                return done, shift
            for f in range(d):
                mean = total[j, f] / mass if mass != 0.0 else c[j, f]
                new[j, f] = np.float64(np.float32(mean)) if single else mean
        for j in range(k):
            moves[j] = squared_distance(new, j, unit, wide, j, room)
            for f in range(d):
                c[j, f] = new[j, f]
        shift = halve(moves, k)
        done += 1
    return done, shift


@inner
def _nearest(reach):
    """Return for each pick within what distance no candidate is nearer to its rows."""
    nearest = np.empty(reach.shape[0])
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


@inner
def count_in(y, c, closest, owner, pick, won):
    """Update what is closest, for rows that the pick at `c` (1, d) may be nearer to."""
    room = np.empty(y.shape[1])
    for row in range(y.shape[0]):
        if won[row]:
            squared = squared_distance(y, row, 1.0, c, np.int64(0), room)
            if squared < closest[row]:
                closest[row], owner[row] = squared, pick


@jit
def seeds(y, w, draws, picks):
    """Write to `picks` (k,), of which the first is given, those of greedy k-means++ with `draws` (k - 1, t)."""
    n, d = y.shape
    k, t = picks.shape[0], draws.shape[1]
    block = 1024
    closest, owner = np.empty(n), np.zeros(n, np.int32)
    won, blocks = np.empty(n, np.uint8), np.empty(-(-n // block))
    for row in range(n):
        closest[row], won[row] = np.inf, 1
    candidates, c = np.empty(t, np.int64), np.empty((t, d))
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
            reach = np.empty((pick, count))
            for j in range(count):
                for f in range(d):
                    c[j, f] = y[candidates[j], f]
                for o in range(pick):
                    squared = 0.0
                    for f in range(d):
                        step = y[picks[o], f] - c[j, f]
                        squared += step * step
                    lower = squared * (1 - error)
                    # As the sieve of `anykmeans.kernels.agnostic` has it: a quarter, less more than rounding takes.
                    reach[o, j] = lower / (4 * GAP) if lower > 2.0**-900 else 0.0
            saved = np.zeros(count)
            trials(y, c[:count], closest, owner, reach, w, scale, saved, won)
            best = 0
            for j in range(count):
                best = j if saved[j] > saved[best] else best
            picks[pick] = candidates[best]
            for row in range(n):
                won[row] &= 1 << (best & 7)
        count_in(y, c[best : best + 1], closest, owner, pick, won)
        high = seeding.costs(closest, w, scale, block, blocks)
        exponent = math.frexp(high)[1]
        if scale == 0.0 or exponent != last:  # the first fold of `Grid.plan`
            last, coarse = exponent, 52 - bits - exponent
            scale = math.ldexp(1.0, coarse if coarse < 1023 else 1023)
            seeding.costs(closest, w, scale, block, blocks)


class AtOnce(Search):
    """Labels of all rows, for few rows: as `anykmeans.kernels.numba.bounded.BoundedSearch`, without bounds.

    Attributes
    ----------
    lost : bool
        Whether a row was out of the frame's range, or not finite: then labels mean nothing.
    """

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._x = np.ascontiguousarray(frame.matrix.rows(slice(None), np.float64))
        self._columns = by_lanes(self._x, frame.unit)
        self.lost = not np.abs(self._columns).max() <= math.sqrt(FAR)
        self._tie = Bounds.of(self._x.shape[1], 2.0**-53).tie
        self.labels = np.zeros(self._x.shape[0], np.int32)

    def relabel(self, c: np.ndarray) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows changed."""
        before = self.labels
        self.labels = before.copy()  # as results hold the old ones
        assign(self._columns, self.frame.widen(c), self._tie, self.labels)
        (rows,) = np.nonzero(self.labels != before)
        return [(rows, before[rows], self.labels[rows])], rows.size

    def steps(
        self, run: InMemory, c: np.ndarray, most: int, tol: float, empty: str
    ) -> tuple[np.ndarray, int, float]:
        """Return the centroids after up to `most` passes from `c`, how many those were, and the last squared move."""
        rows, moved = run.rows, c.astype(np.float64)
        grid, w = rows.grid, weights(rows.relative_weight(rows.every))
        done, shift = passes(
            self._columns, self._x, w, moved, c.dtype == np.float32, self.frame.unit, self._tie,
            Folds(grid.scale, grid.step, grid.folds), self.labels, most, tol, empty == "keep",
        )  # fmt: skip
        run.forget()
        if not done:
            return super().steps(run, c, most, tol, empty)
        return moved.astype(c.dtype), done, shift
