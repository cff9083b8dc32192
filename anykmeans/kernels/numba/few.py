# mypy: allow-untyped-defs, allow-untyped-calls
"""The search for few clusters or few rows: rows are the lanes, and all centroids are scored.

Scores are made at the processor's peak; what goes on around them is what costs. So a row's certificate is one comparison, and nothing is
gathered until `slack` says that few rows need be looked at. Rows are transposed once, centred, in float32, and kept so while there is room.
As many passes are made in one call as need no decision about an empty cluster.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from anykmeans._bounds import FAR, Bounds
from anykmeans._search import Change, Search
from anykmeans._settings import current
from anykmeans._stats import ClusterStats
from anykmeans.kernels.numba import read, sums, weights
from anykmeans.kernels.numba.distance import squared_distance
from anykmeans.kernels.numba.room import empty, zeros
from anykmeans.kernels.numba.side import TOGETHER, across, nearest
from anykmeans.kernels.numba.simd import HELD, LANES, PIECE, SIDE, lowest
from anykmeans.kernels.numba.slack import Slack, wear
from anykmeans.kernels.numba.steps import (
    ZERO,
    halve,
    jit,
    within,
)
from anykmeans.kernels.numba.whole import add

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work
    from anykmeans.sources.descent import InMemory
    from anykmeans.sources.rows import Rows

BRIEF = 128  # products for each number of `Settings.spread`: a pass of fewer is over before a thread has begun
# Where bounds of more than few clusters may cost more than they save, by numbers of `Settings.at_once`: in fewer features than that
# while a pass makes as many scores as there are features, up to a most. And whatever is to be scored, while a pass makes so many
# products and not too many scores, or where each row has a share. With vectors of 64 bytes, whose peak is twice as high, of up to a
# number of clusters it may be so many times the products.
_NARROW, _MOST_EACH = 100, 32
_PRODUCTS, _SCORES, _ROWS = 64, 8, 1024
_WIDE, _MOST_OF = 4, 64
# By what factor sums of squares in any order may differ that are of distances which may tie: by more than thousands of roundings do.
_ALIKE = 1 + 2.0**-36
_COPIED = 1 << 14  # labels that are copied at once, as what else is listed of so many rows
_TILES = 4  # tiles of rows that are copied at once, as a call takes as long as some rows


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
        See `anykmeans.kernels.numba.side.nearest`, float32.
    loose : float
        The same, of one score and the squared norm that it is added to.
    unit : float
        What rows are multiplied by for distances.
    tie : float
        By what share two squared distances may differ that count as equal.
    """

    beta: np.float32
    eta: np.float32
    loose: np.float32
    unit: float
    tie: float

    @classmethod
    @functools.lru_cache(maxsize=64)  # as few rows are labelled in less time
    def of(cls, d: int, unit: float) -> Errors:
        """Return them for rows of `d` features."""
        bounds = Bounds.of(d, 2.0**-24, min(d, PIECE + -(-d // PIECE)))
        beta = 0.65 * bounds.beta + 2.0**-19  # as two scores are compared, not two distances
        loose = Bounds.of(d, 2.0**-24).beta + 2.0**-18  # for norms as they are added up, and GAP
        eta = np.float32(4 * bounds.eta)
        return cls(np.float32(beta), eta, np.float32(loose), unit, bounds.tie)


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
def fill(x, start, lanes, block):
    """Write SIDE rows of `x` from `start` to the `lanes`, from a `block` on; return how many are out of range.

    The last row stands in for those beyond, and counts.
    """
    lost = ZERO
    for begin in range(start, start + SIDE, LANES):
        across(x, begin, lanes.scale, lanes.offset, lanes.columns, block, lanes.squares)
        for i in range(LANES):
            lost += not lanes.squares[block, i] <= np.float32(FAR)
        block += 1
    return lost


@jit
def measured(x, rows, unit, wide, tie, labels):
    """Write the `labels` of the nearest of `wide` (k, d) to `rows` of `x`, by the promised distance: ties to the lowest.

    That is asked of centroids that may be nearest by squares which are added for all of them side by side, feature by feature.
    """
    (k, d), columns = wide.shape, empty((wide.shape[1], wide.shape[0]), np.float64)
    room, squared = empty(d, np.float64), empty(k, np.float64)
    for j in range(k):
        for f in range(d):
            columns[f, j] = wide[j, f]
    for row in rows:
        for j in range(k):
            squared[j] = 0.0
        for f in range(d):
            value = x[row, f] * unit
            for j in range(k):
                step = value - columns[f, j]
                squared[j] += step * step
        limit, least, label = squared[0], np.inf, k - 1
        for j in range(k):
            limit = squared[j] if squared[j] < limit else limit
        limit = limit * _ALIKE + 2.0**-1000  # below which squares are not what they were
        for j in range(k):
            if squared[j] <= limit:
                squared[j] = squared_distance(x, row, unit, wide, j, room)
                least = squared[j] if squared[j] < least else least
            else:
                squared[j] = np.inf
        for j in range(k - 2, -1, -1):
            label = j if squared[j] <= least * (1 + tie) else label
        labels[row] = label


@within
def sweep(x, w, lanes, fresh, minus_2c, norms, wide, errors, labels, left, whole, folds, first):
    """Give rows `x` (m, d) their nearest centroids; return how many rows are out of range.

    The `lanes` are filled if they are to be `fresh`. Their slack is told if there is room for it in `left`. The sums `whole`, if there is
    room for any, become those of the new labels, or, if it is the `first` sweep, have all rows added.
    """
    m, summing = labels.shape[0], whole.shape[0] > 0
    kept = lanes.columns.shape[0] * LANES >= m
    # A copy of so many labels that it stays in the cache, in whole vectors: to copy less of one takes longer than to label it.
    padded = (m + SIDE - 1) // SIDE * SIDE if m < _COPIED else _COPIED
    now, told = zeros(padded, np.int32), empty(padded if left.shape[0] else 0, np.float32)
    rows, doubtful = empty(padded if summing else 0, np.int32), empty(padded, np.int32)
    lost = ZERO
    for begin in range(0, m, _COPIED):
        end = begin + _COPIED if begin + _COPIED < m else m
        own, before, moved, count = x[begin:end], labels[begin:end], ZERO, ZERO
        for i in range(end - begin):
            now[i] = before[i]
        for start in range(0, end - begin, SIDE):
            used = end - begin - start if end - begin - start < SIDE else SIDE
            block = (begin + start) // LANES if kept else 0
            if fresh or not kept:
                lost += fill(x, begin + start, lanes, block)
            changed, unproven = nearest(
                lanes.columns,
                block,
                minus_2c,
                norms,
                lanes.squares,
                errors.beta,
                errors.eta,
                errors.loose,
                now,
                start,
                told,
            )
            every = (np.int64(1) << used) - 1 if used < SIDE else np.int64(-1)
            changed = every if first else (changed | unproven) & every
            unproven &= every
            while summing and changed:
                rows[moved] = start + lowest(changed)
                changed &= changed - 1
                moved += 1
            while unproven:
                doubtful[count] = start + lowest(unproven)
                unproven &= unproven - 1
                count += 1
        if count:
            measured(own, doubtful[:count], errors.unit, wide, errors.tie, now)
        for q in range(moved):
            row = rows[q]
            old = np.int64(-1 if first else before[row])
            if old != now[row]:
                weight = w[begin + row] if w.shape[0] > 1 else w[0]
                add(own, row, weight, folds.scale, folds.step, folds.number, whole, now[row], old)
        for i in range(end - begin):
            before[i] = now[i]
        for i in range(end - begin if left.shape[0] else 0):
            left[begin + i] = told[i]
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
    x, w, lanes, fresh, c, labels, left, errors, whole, folds, first, most, tol, keep, single, at
):
    """Label rows `x` (m, d), add up what that changes, and move centroids so, up to `most` times; all by one function, compiled once.

    Returns how many times, how far the last time, and how many rows are out of range. Stops after a shift of at most `tol`, and
    before a pass that `advance` does not make. There are no sums if there is no room for them, the running `whole`, to which all
    rows are added if it is the `first` pass. The `lanes` are filled if they are to be `fresh`. The `labels`, and what slack is `left`,
    if there is room, become those of the centroids that are written to `at`, if there is room, as `c` (k, d), float64, moves on.
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
            x, w, lanes, fresh, minus_2c, norms, wide, errors, labels, left, whole, folds, first
        )
        fresh = False
        if done == most:
            break
        for j in range(at.shape[0]):
            for f in range(d):
                at[j, f] = c[j, f]
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
        self._slack = Slack(n if keeps else 0, d, k)
        self._whole = np.empty((0, 0, 0))  # sums of each part, kept by `swept`

    def relabel(self, c: np.ndarray) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows changed."""
        at, first = np.array(c, np.float64, order="C"), not self._at.size
        if np.array_equal(at, self._at):
            return [], 0
        before, self._whole = self.labels, self._whole[:0]
        if not first:
            self.labels = before.copy()  # as results hold the old ones
        lost = self._look(at, ONE, itertools.repeat(NO_SUMS), NO_FOLDS, first=False)
        self._at, self.lost = at, first and lost > 0
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
        rows, at, (k, d) = run.rows, np.array(c, np.float64, order="C"), c.shape
        grid, w = rows.grid, weights(rows.relative_weight(rows.every))
        folds = Folds(grid.scale, grid.step, grid.folds)
        whole = np.zeros((len(self._parts), k, grid.folds * (d + 1)))
        end = Ends(tol, empty == "keep", c.dtype == np.float32)
        if not self._at.size:
            self._at = np.empty((k, d))
        done, shift, turns, made = 0, np.nan, 0, 0
        while done < most and not shift <= tol and made == turns:
            turns = self._slack.turns(most - done)
            if turns and len(self._parts) == 1:
                made, moved, _ = passes(
                    self._x, w, self._lanes[0], self._fresh, at, self.labels, _NONE, self._errors, whole[0],
                    folds, done == 0, turns, *end, self._at,
                )  # fmt: skip
                self._fresh = False
                self._slack.passed(turns)
            else:
                turns = 1
                self._look(at, w, whole, folds, first=done == 0)
                none = self._x[:0], w, self._lanes[0], False, at, self.labels[:0], _NONE
                made, moved, _ = passes(
                    *none, self._errors, whole.sum(axis=0), folds, False, 1, *end, self._at
                )
            done, shift = done + made, moved if made else shift
        run.forget()
        if not done:
            return super().steps(run, c, most, tol, empty)
        return at.astype(c.dtype), done, shift

    def swept(self, rows: Rows, c: np.ndarray) -> ClusterStats | None:
        """Return the stats of all rows by their nearest of `c` (k, d), kept running from the call before."""
        if self._x is None:
            return None
        at, grid, first = np.array(c, np.float64, order="C"), rows.grid, not self._whole.size
        if first:
            self._whole = np.zeros((len(self._parts), c.shape[0], grid.folds * grid.scale.size))
        w = weights(rows.relative_weight(rows.every))
        folds = Folds(grid.scale, grid.step, grid.folds)
        self._look(at, w, self._whole, folds, first=first)
        self._at = at
        return ClusterStats(self._whole.sum(axis=0), grid)

    def _look(
        self, c: np.ndarray, w: np.ndarray, sums: Iterable[np.ndarray], folds: Folds, *, first: bool
    ) -> int:
        """Label all rows, spread over threads; change `sums` of each part, and return how many rows are out of range.

        Those are not looked at whose slack says so, but if all are to be added, `first`.
        """
        room, wears = self._slack.room, self._slack.told and not first
        how = self._errors, folds, first
        step = -(-_TILES * self.work.tile // self.work.d)

        def look(one: tuple[slice, Lanes, np.ndarray]) -> tuple[int, int]:
            part, lanes, whole = one
            x = read(self.matrix, part) if self._x is None else self._x[part]
            own, labels, left = w[part] if w.size > 1 else w, self.labels[part], room[part]
            rows, count = np.empty(labels.size if wears else 0, np.int32), 0
            if wears:
                count = wear(left, labels, self._at, c, self._errors.unit, rows)
                if self._slack.pays(count, labels.size):
                    for tile in self.work.tiles(0, count, step):
                        _gather(rows[tile], x, own, lanes, c, labels, left, whole, *how)
                    return 0, count
            return _label(x, own, lanes, self._fresh, c, labels, left, whole, *how), count

        found = self.work.map(look, zip(self._parts, self._lanes, sums, strict=False))
        self._fresh = False
        self._slack.passed(1, sum(count for _, count in found))
        return sum(lost for lost, _ in found)


ONE, NO_SUMS, _NONE = np.ones(1), np.empty((0, 0)), np.empty(0, np.float32)
NO_FOLDS, _NO_END = Folds(np.empty(0), 1.0, 0), Ends(0.0, False, False)


def label(
    x: np.ndarray,
    w: np.ndarray,
    lanes: Lanes,
    c: np.ndarray,
    errors: Errors,
    labels: np.ndarray,
    whole: np.ndarray,
    folds: Folds,
) -> int:
    """Write the `labels` (m,) of rows `x` (m, d) for centroids `c` (k, d), float64; return how many rows are out of range.

    The sums `whole` have the rows added, by weights `w`, if there is room for any.
    """
    first = whole.shape[0] > 0
    return _label(x, w, lanes, True, c, labels, _NONE, whole, errors, folds, first)


def _label(
    x: np.ndarray,
    w: np.ndarray,
    lanes: Lanes,
    fresh: bool,
    c: np.ndarray,
    labels: np.ndarray,
    left: np.ndarray,
    whole: np.ndarray,
    errors: Errors,
    folds: Folds,
    first: bool,
) -> int:
    """Make a pass, see `passes`, that moves no centroid; return how many rows are out of range."""
    _, _, lost = passes(
        x, w, lanes, fresh, c, labels, left, errors, whole, folds, first, 0, *_NO_END, NO_SUMS
    )
    return int(lost)


def _gather(
    rows: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    lanes: Lanes,
    c: np.ndarray,
    labels: np.ndarray,
    left: np.ndarray,
    *how: Any,
) -> None:
    """Make such a pass over some of the `rows` alone."""
    few, own = room(SIDE, lanes.scale, lanes.offset), w.take(rows) if w.size > 1 else w
    found = labels.take(rows), left.take(rows)
    _label(x.take(rows, axis=0), own, few, True, c, *found, *how)
    labels[rows], left[rows] = found


def suits(n: int, d: int, k: int) -> bool:
    """Return whether bounds of `k` clusters, for `n` rows of `d` features, would cost more than they save."""
    now = current()
    if k < now.few or n * _ROWS <= now.at_once:
        return True
    products = _PRODUCTS * (_WIDE if HELD >= 128 and k <= _MOST_OF else 1)
    if n * k * d <= products * now.at_once and n * k <= _SCORES * now.at_once:
        return True
    return d < _NARROW and n * k <= min(d, _MOST_EACH) * now.at_once
