# mypy: allow-untyped-defs, allow-untyped-calls
"""The search for few clusters or few rows: rows are the lanes, and all centroids are scored.

Scores are made at the processor's peak; what goes on around them is what costs. So there are no bounds, nothing is gathered, and
a row's certificate is one comparison. Rows are transposed once, centred, in float32, and kept so while there is room.
As many passes are made in one call as need no decision about an empty cluster.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anykmeans._bounds import FAR, Bounds
from anykmeans._search import Change, Search
from anykmeans._settings import current
from anykmeans.kernels.numba import read, sums, weights
from anykmeans.kernels.numba.room import empty, zeros
from anykmeans.kernels.numba.side import TOGETHER, across, nearest
from anykmeans.kernels.numba.simd import EIGHT, LANES, PIECE, SIDE, lowest
from anykmeans.kernels.numba.steps import (
    ZERO,
    halve,
    jit,
    quarter,
    side_by_side,
    within,
)
from anykmeans.kernels.numba.whole import add

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work
    from anykmeans.sources.descent import InMemory

BRIEF = 128  # products for each number of `Settings.spread`: a pass of fewer is over before a thread has begun
_NARROW = 100  # features below which bounds of more than few clusters may cost more than they save
# Scores in fewer features than that, or as many as there are features, and products, for each number of `Settings.at_once`:
# up to so many a pass are all made. And how many of these numbers for a row are enough, whatever is to be scored.
_SCORES, _PRODUCTS, _ROWS = 16, 64, 1024


class Lanes(NamedTuple):
    """Rows as they are scored, LANES by LANES: less the offset, in float32.

    Attributes
    ----------
    columns : ndarray of shape (blocks, d, LANES), float32
        Features first. SIDE rows alone are room for all in turn.
    squares : ndarray of shape (blocks, LANES), float32
        Their squared norms.
    scale : float
        What they are multiplied by first, of the dtype of `offset`.
    offset : ndarray of shape (d,)
        What is taken from that.
    """

    columns: np.ndarray
    squares: np.ndarray
    scale: float
    offset: np.ndarray


class Errors(NamedTuple):
    """How far scores and distances can be off.

    Attributes
    ----------
    beta, eta : float
        See `anykmeans.kernels.numba.simd.nearest`, float32.
    unit : float
        What rows are multiplied by for distances.
    tie : float
        By what share two squared distances may differ that count as equal.
    """

    beta: np.float32
    eta: np.float32
    unit: float
    tie: float

    @classmethod
    @functools.lru_cache(maxsize=64)  # as few rows are labelled in less time
    def of(cls, d: int, unit: float) -> Errors:
        """Return them for rows of `d` features."""
        bounds = Bounds.of(d, 2.0**-24, min(d, PIECE + -(-d // PIECE)))
        beta = 0.65 * bounds.beta + 2.0**-19  # as two scores are compared, not two distances
        return cls(np.float32(beta), np.float32(4 * bounds.eta), unit, bounds.tie)


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


@within
def fill(x, start, tail, lanes, block):
    """Write SIDE rows of `x` from `start` to the `lanes`, from a `block` on; return how many are out of range.

    Beyond the last row, zeros: these LANES go by way of `tail` (LANES, d).
    """
    lost = ZERO
    for begin in range(start, start + SIDE, LANES):
        source, row = x, begin
        if begin + LANES > x.shape[0]:
            source, row = tail, 0
            for i in range(LANES):
                for f in range(x.shape[1]):
                    tail[i, f] = x[begin + i, f] if begin + i < x.shape[0] else 0
        across(source, row, lanes.scale, lanes.offset, lanes.columns, block, lanes.squares)
        for i in range(LANES):
            lost += not lanes.squares[block, i] <= np.float32(FAR)
        block += 1
    return lost


@jit
def measured(x, rows, unit, wide, tie, labels, distances):
    """Write the `labels` of the nearest of `wide` (k, d) to `rows` of `x`, by the promised distance: ties to the lowest.

    The squared distances to them become `distances`, if there is room for any. Returns how many of these rows are out of range,
    or not finite: those mean nothing.
    """
    d, k, width, count = x.shape[1], wide.shape[0], 4 * quarter(x.shape[1]), rows.shape[0]
    lanes = SIDE if count > SIDE - EIGHT else (count + EIGHT - 1) // EIGHT * EIGHT
    taken, none, squares = (
        zeros((lanes, d), np.float64),
        zeros(d, np.float64),
        empty((1, lanes), np.float64),
    )
    columns, c = zeros((1, width, lanes), np.float64), zeros((k, width), np.float64)
    room, squared = empty((width // 4, lanes), np.float64), empty((k, lanes), np.float64)
    limit, own = empty(lanes, np.float64), empty(lanes, np.float64)
    found = empty(lanes, np.int64)  # as wide as a distance, to be chosen with it
    for j in range(k):
        for f in range(d):
            c[j, f] = wide[j, f]
    lost = 0
    for start in range(0, count, lanes):
        used = count - start if count - start < lanes else lanes
        for i in range(used):
            row = rows[start + i]
            for f in range(d):
                taken[i, f] = x[row, f]
        across(taken, 0, unit, none, columns, 0, squares)
        for i in range(lanes):
            limit[i], own[i], found[i] = np.inf, np.inf, 0
        for j in range(k):
            side_by_side(columns[0], c, j, room)
            for i in range(lanes):
                squared[j, i] = room[0, i]
                limit[i] = room[0, i] if room[0, i] < limit[i] else limit[i]
        for i in range(lanes):
            limit[i] *= 1 + tie
        for j in range(k - 1, -1, -1):
            for i in range(lanes):
                near = squared[j, i] <= limit[i]
                found[i], own[i] = j if near else found[i], squared[j, i] if near else own[i]
        for i in range(used):
            labels[rows[start + i]] = found[i]
            lost += not own[i] <= FAR
        if distances.shape[0]:
            for i in range(used):
                distances[rows[start + i]] = own[i]
    return lost


@within
def sweep(x, w, lanes, fresh, minus_2c, norms, wide, errors, labels, whole, folds, first):
    """Give rows `x` (m, d) their nearest centroids; return how many rows are out of range.

    The `lanes` are filled if they are to be `fresh`. The sums `whole`, if there is room for any, become those of the new labels,
    or, if it is the `first` sweep, have all rows added.
    """
    m, summing = labels.shape[0], whole.shape[0] > 0
    kept = lanes.columns.shape[0] * LANES >= m
    before, now = zeros(SIDE, np.int32), empty(SIDE, np.int32)
    tail = empty((LANES, x.shape[1]), x.dtype)
    room = m if summing else 0
    rows, old, moved = empty(room, np.int32), empty(room, np.int32), ZERO
    doubtful, count, lost = empty(m, np.int32), ZERO, ZERO
    for start in range(0, m, SIDE):
        used = m - start if m - start < SIDE else SIDE
        block = start // LANES if kept else 0
        if fresh or not kept:
            lost += fill(x, start, tail, lanes, block)
        for i in range(used):
            before[i] = labels[start + i]
        changed, unproven = nearest(
            lanes.columns,
            block,
            minus_2c,
            norms,
            lanes.squares,
            errors.beta,
            errors.eta,
            before,
            now,
        )
        for i in range(used):
            labels[start + i] = now[i]
        every = (np.int64(1) << used) - 1 if used < SIDE else np.int64(-1)
        changed = every if first else (changed | unproven) & every
        unproven &= every
        while summing and changed:
            i = lowest(changed)
            changed &= changed - 1
            rows[moved], old[moved] = start + i, -1 if first else before[i]
            moved += 1
        while unproven:
            doubtful[count] = start + lowest(unproven)
            unproven &= unproven - 1
            count += 1
    if count:
        measured(x, doubtful[:count], errors.unit, wide, errors.tie, labels, empty(0, np.float64))
    for q in range(moved):
        row = rows[q]
        if old[q] != labels[row]:
            weight = w[row] if w.shape[0] > 1 else w[0]
            add(x, row, weight, folds.scale, folds.step, folds.number, whole, labels[row], old[q])
    return lost


@within
def advance(whole, c, wide, single, unit, folds, keep):
    """Move the centroids `c` (k, d), float64, to the means of the sums `whole`; return whether, and how far.

    Not if a cluster is without weight, unless to `keep` its centroid is what to do then. With `single` means are float32.
    They were `wide` in the frame.
    """
    k, d = c.shape
    total = sums.total(whole, folds.scale, folds.step, folds.number)
    moves, room = empty(k, np.float64), empty(d, np.float64)
    full = k > 0
    for j in range(k):
        full &= total[j, d] != 0.0
    if not (full or keep):
        return False, np.nan
    for j in range(k):
        mass = total[j, d]
        for f in range(d):
            mean = total[j, f] / mass if mass != 0.0 else c[j, f]
            c[j, f] = np.float64(np.float32(mean)) if single else mean
        for f in range(d):
            moved = c[j, f] * unit - wide[j, f]
            room[f] = moved * moved
        moves[j] = halve(room, d)
    return True, halve(moves, k)


@within
def arranged(c, lanes, unit, wide, minus_2c, norms):
    """Write centroids `c` (k, d) in the frame to `wide`, and what scores are made of as `nearest` takes it.

    That goes by parts of up to TOGETHER centroids, which differ by one at most: feature by feature, the centroids of a part together.
    """
    k, d = c.shape
    first = ZERO
    while first < k:
        parts = (k - first + TOGETHER - 1) // TOGETHER
        count = (k - first + parts - 1) // parts
        for i in range(count):
            j, norm = first + i, 0.0
            for f in range(d):
                wide[j, f] = c[j, f] * unit
                centred = wide[j, f] - lanes.offset[f]
                minus_2c[first * d + f * count + i] = -2.0 * centred
                norm += centred * centred
            norms[j] = norm
        first += count


@jit
def passes(
    x, w, lanes, fresh, c, labels, errors, whole, folds, first, most, tol, keep, single, before
):
    """Label rows `x` (m, d), add up what that changes, and move centroids so, up to `most` times; all by one function, compiled once.

    Returns how many times, how far the last time, and how many rows are out of range. Stops after a shift of at most `tol`, and
    before a pass that `advance` does not make. There are no sums if there is no room for them, the running `whole`, to which all
    rows are added if it is the `first` pass. The `lanes` are filled if they are to be `fresh`. The `labels` become those of the
    centroids that are written to `before`, if there is room, as `c` (k, d), float64, moves on.
    """
    k, d = c.shape
    wide, minus_2c, norms = (
        empty((k, d), np.float64),
        empty(k * d, np.float32),
        empty(k, np.float32),
    )
    done, shift, lost = ZERO, np.nan, ZERO
    while True:
        arranged(c, lanes, errors.unit, wide, minus_2c, norms)
        lost += sweep(
            x, w, lanes, fresh, minus_2c, norms, wide, errors, labels, whole, folds, first
        )
        fresh = False
        if done == most:
            break
        for j in range(before.shape[0]):
            for f in range(d):
                before[j, f] = c[j, f]
        ahead, moves = advance(whole, c, wide, single, errors.unit, folds, keep)
        first = False
        if not ahead:
            break
        done, shift = done + 1, moves
        if done == most or shift <= tol:
            break
    return done, shift, lost


def room(m: int, scale: float, offset: np.ndarray) -> Lanes:
    """Return lanes for `m` rows, not filled."""
    blocks = -(-m // SIDE) * (SIDE // LANES)
    numbers = blocks * offset.size * LANES
    found = np.empty(numbers + LANES, np.float32)
    begin = (
        -(found.__array_interface__["data"][0] // 4) % LANES
    )  # with a line of the cache: no vector is in two
    columns = found[begin : begin + numbers].reshape(blocks, offset.size, LANES)
    return Lanes(columns, np.empty((blocks, LANES), np.float32), scale, offset)


class Ends(NamedTuple):
    """Where passes end.

    Attributes
    ----------
    tol : float
        The shift at most.
    keep : bool
        Whether a cluster without weight keeps its centroid; else somebody has to decide.
    single : bool
        Whether centroids are float32.
    """

    tol: float
    keep: bool
    single: bool


class FewSearch(Search):
    """Labels of all rows, each of which is compared with all centroids in every pass.

    Parameters
    ----------
    frame : Frame
        The rows, and the coordinates to compare them in.
    work : Work
        How the rows are spread over threads.
    k : int
        How many centroids there will be.
    keeps : bool
        Whether there will be more passes than one, for which transposed rows are kept.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
        Of the last centroids.
    lost : bool
        Whether a row was out of the frame's range, or not finite: then labels mean nothing.
    """

    def __init__(self, frame: Frame, work: Work, k: int, *, keeps: bool) -> None:
        self.frame, self.work, self.matrix = frame, work, frame.matrix
        n, d = self.matrix.shape
        self.labels, self.lost = np.zeros(n, np.int32), False
        self._at = np.empty((0, d))  # the centroids of the labels
        self._errors = Errors.of(d, frame.unit)
        self._x, numbers = self.matrix.data if self.matrix.direct else None, n * (d + 1)
        if self._x is None and keeps and 32 * numbers <= work.max_bytes:
            self._x = np.ascontiguousarray(self.matrix.rows(slice(None)))
        keeps = keeps and self._x is not None and 8 * numbers <= work.max_bytes
        spread = work.threads > 1 and numbers * k >= current().spread * BRIEF
        pieces = 2 * work.threads if spread else 1
        step = min(-(-n // pieces), work.readable(self.matrix) if self._x is None else n)
        self._parts = work.tiles(step=SIDE * -(-step // SIDE))
        affine = frame.affine(narrow=True)
        self._lanes = [
            room(part.stop - part.start if keeps else SIDE, *affine) for part in self._parts
        ]
        self._fresh = True

    def relabel(self, c: np.ndarray) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows changed."""
        at, first = c.astype(np.float64), not self._at.size
        if np.array_equal(at, self._at):
            return [], 0
        before, self._at = self.labels, at
        if not first:
            self.labels = before.copy()  # as results hold the old ones
        lost = self._look(at, _ONE, itertools.repeat(_NO_SUMS), _NO_FOLDS, first=False)
        self.lost = first and lost > 0
        if first:
            return [], before.size
        (rows,) = np.nonzero(self.labels != before)
        return [(rows, before[rows], self.labels[rows])], rows.size

    def steps(
        self, run: InMemory, c: np.ndarray, most: int, tol: float, empty: str
    ) -> tuple[np.ndarray, int, float]:
        """Return the centroids after up to `most` passes from `c`, how many those were, and the last squared move."""
        if self._x is None:
            return super().steps(run, c, most, tol, empty)
        rows, at, (k, d) = run.rows, c.astype(np.float64), c.shape
        grid, w = rows.grid, weights(rows.relative_weight(rows.every))
        folds = Folds(grid.scale, grid.step, grid.folds)
        whole = np.zeros((len(self._parts), k, grid.folds * (d + 1)))
        self._at, end = np.empty((k, d)), Ends(tol, empty == "keep", c.dtype == np.float32)
        done, shift = 0, np.nan
        if len(self._parts) == 1:
            done, shift, _ = passes(
                self._x, w, self._lanes[0], self._fresh, at, self.labels, self._errors, whole[0], folds,
                True, most, *end, self._at,
            )  # fmt: skip
            self._fresh = False
        else:
            while done < most and not shift <= tol:
                self._look(at, w, whole, folds, first=done == 0)
                none = self._x[:0], w, self._lanes[0], False, at, self.labels[:0]
                made, moved, _ = passes(
                    *none, self._errors, whole.sum(axis=0), folds, False, 1, *end, self._at
                )
                if not made:
                    break
                done, shift = done + 1, moved
        run.forget()
        if not done:
            return super().steps(run, c, most, tol, empty)
        return at.astype(c.dtype), done, shift

    def _look(
        self, c: np.ndarray, w: np.ndarray, sums: Iterable[np.ndarray], folds: Folds, *, first: bool
    ) -> int:
        """Label all rows, spread over threads; change `sums` of each part, and return how many rows are out of range."""

        def look(one: tuple[slice, Lanes, np.ndarray]) -> int:
            part, lanes, whole = one
            x = read(self.matrix, part) if self._x is None else self._x[part]
            _, _, lost = passes(
                x, w[part] if w.size > 1 else w, lanes, self._fresh, c, self.labels[part],
                self._errors, whole, folds, first, 0, *_NO_END, _NO_SUMS,
            )  # fmt: skip
            return int(lost)

        lost = self.work.map(look, zip(self._parts, self._lanes, sums, strict=False))
        self._fresh = False
        return sum(lost)


_ONE, _NO_SUMS = np.ones(1), np.empty((0, 0))
_NO_FOLDS, _NO_END = Folds(np.empty(0), 1.0, 0), Ends(0.0, False, False)


def label(x: np.ndarray, lanes: Lanes, c: np.ndarray, errors: Errors, labels: np.ndarray) -> int:
    """Write the `labels` (m,) of rows `x` (m, d) for centroids `c` (k, d), float64; return how many rows are out of range."""
    _, _, lost = passes(
        x, _ONE, lanes, True, c, labels, errors, _NO_SUMS, _NO_FOLDS, False, 0, *_NO_END, _NO_SUMS
    )
    return int(lost)


def suits(n: int, d: int, k: int) -> bool:
    """Return whether bounds of `k` clusters, for `n` rows of `d` features, would cost more than they save."""
    now = current()
    if k < now.few or (d < _NARROW and n * k <= min(d, _SCORES) * now.at_once):
        return True
    return n * k * d <= _PRODUCTS * now.at_once or n * _ROWS <= now.at_once
