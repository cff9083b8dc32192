# mypy: allow-untyped-defs, allow-untyped-calls
"""The search in few features: rows of one centroid are the lanes, and only centroids near it are scored.

Exponion (Newling and Fleuret, "Fast k-means with accurate bounds", ICML 2016), with one lower bound a row.
Loops over lanes that have no branches become vector code where the order of minima is free.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from anykmeans._bounds import DOWN, FAR, GAP, TINY, UP
from anykmeans._search import Change
from anykmeans.kernels.numba import bounded
from anykmeans.kernels.numba.bounded import BoundedSearch, Changes, Counts
from anykmeans.kernels.numba.distance import squared_distance
from anykmeans.kernels.numba.panels import Panels
from anykmeans.kernels.numba.room import empty, zeros
from anykmeans.kernels.numba.simd import LANES, WIDTH, lanes, prefetch
from anykmeans.kernels.numba.steps import (
    GAP32,
    ZERO,
    Rows,
    State,
    Truth,
    any_minimum,
    decide,
    inner,
    jit,
)

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work

_SORTED = 8  # centroids a row up to which sorting them pays
_CHUNK = 16  # centroids searched before looking whether to go on
_SPREAD = (
    512  # centroids whose surroundings take longer to find than it takes to call another thread
)
_FULL = 64  # rows in doubt for each centroid in each block, as many as fill vectors


class Scoring(NamedTuple):
    """How rows are scored: with ``y = x * scale - offset``, ``|y|^2 + norms[j] + minus_2c[j] @ y`` is nearly a squared distance.

    Attributes
    ----------
    scale : float
        Of the dtype of `offset`.
    offset : ndarray of shape (d,)
        In the dtype in which rows are centred.
    minus_2c : ndarray of shape (k, d)
        Centroids, centred, times -2, in the dtype of scores.
    norms : ndarray of shape (k,)
        Their squared norms, in that dtype.
    beta, eta : float
        How far that can be off: `Bounds`.
    """

    scale: float
    offset: np.ndarray
    minus_2c: np.ndarray
    norms: np.ndarray
    beta: float
    eta: float


class Surroundings(NamedTuple):
    """Where centroids are.

    Attributes
    ----------
    low, high : ndarray of shape (panels, d), float64
        The corners of the boxes around the panels.
    apart : ndarray of shape (k,), float32
        How far the nearest other centroid is at most.
    """

    low: np.ndarray
    high: np.ndarray
    apart: np.ndarray


@jit
def farthest_rows(upper, labels, farthest):
    """Raise ``farthest[label]`` to the upper bounds (m,) of its rows."""
    for row in range(labels.shape[0]):
        label = np.uint32(labels[row])
        if upper[row] > farthest[label]:
            farthest[label] = upper[row]


@jit
def boxes(wide, ids):
    """Return the low and high corners (panels, d) of the boxes around the panels of `wide` (k, d)."""
    k, d = wide.shape
    low, high = (
        empty((ids.shape[0] // LANES, d), np.float64),
        empty((ids.shape[0] // LANES, d), np.float64),
    )
    for slot in range(ids.shape[0]):
        p, j = slot // LANES, ids[slot]
        if j < k:
            first = slot % LANES == 0  # which is never empty
            for f in range(d):
                c = wide[j, f]
                low[p, f] = c if first or c < low[p, f] else low[p, f]
                high[p, f] = c if first or c > high[p, f] else high[p, f]
    return low, high


@jit
def surroundings(wide, panels, corners, drift, farthest, start, stop):
    """Return what surrounds each centroid from `start` to `stop`, four float32 arrays.

    At least and at most how far the nearest other centroid is; at most how far the others moved that
    a row may get nearest to, if it is no farther from its centroid than `farthest`; and at least how
    far all others are.
    """
    ids, place = panels
    low, high = corners
    k, p_count = wide.shape[0], low.shape[0]
    found = empty((4, stop - start), np.float32)
    away, fastest = empty(p_count, np.float64), zeros(p_count, np.float32)
    for j in range(k):
        p = place[j] // LANES
        fastest[p] = drift[j] if drift[j] > fastest[p] else fastest[p]
    for a in range(start, stop):
        own = place[a] // LANES
        nearest = np.inf
        for turn in range(p_count):
            p = own if turn == 0 else (turn - 1 if turn <= own else turn)  # the own panel first
            away[p] = _to_panel(wide, a, low, high, p)
            if away[p] < nearest:
                for slot in range(p * LANES, (p + 1) * LANES):
                    j = ids[slot]
                    if j < k and j != a:
                        squared = _between(wide, a, j)
                        nearest = squared if squared < nearest else nearest
        root = math.sqrt(nearest)
        found[0, a - start], found[1, a - start] = root * DOWN - TINY, root * UP + TINY
        radius = (2 * np.float64(farthest[a]) + root) * UP
        moved, outside = np.float32(0.0), np.inf
        for slot in range(own * LANES, (own + 1) * LANES):
            j = ids[slot]
            if j < k and j != a:
                moved = drift[j] if drift[j] > moved else moved
        for p in range(p_count):
            if p == own:
                continue
            if away[p] > radius * radius:
                outside = away[p] if away[p] < outside else outside
            else:
                moved = fastest[p] if fastest[p] > moved else moved
        found[2, a - start], found[3, a - start] = moved, math.sqrt(outside) * DOWN - TINY
    return found


@inner
def _aligned(d, like):
    """Return room (d, WIDTH) in the dtype of `like` that begins with a line of the cache, so that no vector is in two."""
    line = 64 // like.itemsize
    room = empty(d * WIDTH + line, like.dtype)
    start = -(room.ctypes.data // like.itemsize) % line
    return room[start : start + d * WIDTH].reshape((d, WIDTH))


@inner
def _to_panel(wide, a, low, high, p):
    """Return the squared distance of centroid `a` to the box around panel `p`."""
    squared = 0.0
    for f in range(wide.shape[1]):
        c = wide[a, f]
        under, over = low[p, f] - c, c - high[p, f]
        gap = under if under > over else over
        squared += gap * gap if gap > 0.0 else 0.0
    return squared


@inner
def _between(wide, a, j):
    """Return the squared distance of two centroids, in no promised order."""
    squared = 0.0
    for f in range(wide.shape[1]):
        step = wide[a, f] - wide[j, f]
        squared += step * step
    return squared


@inner  # as what is not a number must stay that
def _measure(columns, minus_2c, norms, a, norm, own, above, beta, eta, every):
    """Write squared norms; lower `above` to what the scores `own` with centroid `a` say, unless `every` one is scored."""
    for r in range(WIDTH):
        norm[r], own[r] = 0.0, norms[a]
    for f in range(columns.shape[0]):
        c = np.float64(minus_2c[a, f])
        for r in range(WIDTH):
            value = np.float64(columns[f, r])
            norm[r] += value * value
            own[r] += c * value
    if not every:
        for r in range(WIDTH):
            estimate = norm[r] + own[r]
            squared = estimate + abs(estimate) * beta + norm[r] * beta + eta
            near_by = math.sqrt(squared if squared > 0.0 else 0.0) * UP + TINY
            above[r] = near_by if near_by < above[r] else above[r]


@any_minimum
def _farthest(norm, second, above, beta, eta, room):
    """Return how far from their centroid others must be to be no nearer than the rows' second."""
    for r in range(WIDTH):
        estimate = norm[r] + np.float64(second[r])
        squared = estimate + abs(estimate) * beta + norm[r] * beta + eta
        room[r] = above[r] + math.sqrt(squared if squared > 0.0 else 0.0) * UP
    half = WIDTH // 2
    while half:  # by halving, as one maximum after the other would wait for each
        for r in range(half):
            room[r] = room[r] if room[r] > room[r + half] else room[r + half]
        half //= 2
    return room[0] + TINY


@any_minimum
def _interval(norm, best, second, above, unseen, beta, eta, ups, downs):
    """Write `_at_most` of the best, and `_at_least` of the second and what is unseen."""
    for r in range(WIDTH):
        estimate = norm[r] + np.float64(best[r])
        squared = estimate + abs(estimate) * beta + norm[r] * beta + eta
        ups[r] = math.sqrt(squared if squared > 0.0 else 0.0) * UP + TINY
        estimate = norm[r] + np.float64(second[r])
        squared = (estimate * (1 - beta) if estimate > 0 else estimate) - norm[r] * beta - eta
        down = math.sqrt(squared if squared > 0.0 else 0.0)
        down = down if down < unseen - above[r] else unseen - above[r]
        downs[r] = down * DOWN - TINY


@jit
def near(rows, scoring, panels, around, truth, state, every, changes):
    """Search the centroids near each row's own, or all if `every`.

    Returns how many labels changed, rows not proven by scores, scores made, and rows out of range, whose labels
    mean nothing. Changed rows, their old and new labels go to the rows of `changes` (3, m), unless that is empty.

    Exponion (Newling and Fleuret, "Fast k-means with accurate bounds", ICML 2016): from a row at
    distance u of its centroid c, no centroid farther from c than u + v can be at less than v. Rows of
    one centroid go together, as lanes.
    """
    x, at, numbers = rows
    scale, offset, minus_2c, norms, beta, eta = scoring
    labels, upper, lower = state
    wide, unit, tie, exact = truth
    m, k, d = numbers.shape[0], wide.shape[0], x.shape[1]
    begin, farthest = zeros(k + 2, np.int64), zeros(k, np.float64)
    # By label: the rows, and where they are in `x`, which is the same where that is the whole matrix.
    order = zeros(m + WIDTH, numbers.dtype)
    places = order if x.shape[0] == labels.shape[0] else zeros(m + WIDTH, numbers.dtype)
    if every:
        begin[1] = m
        for i in range(m):
            order[i], places[i] = numbers[i], at[i]
    else:  # by label, in one go
        for i in range(m):
            own = np.uint64(labels[numbers[i]])  # unsigned, so that no sign is looked at
            begin[own + np.uint64(2)] += 1
            up = np.float64(upper[numbers[i]])
            farthest[own] = up if up > farthest[own] else farthest[own]
        for a in range(k):
            begin[a + 2] += begin[a + 1]
        for i in range(m):
            after = np.uint64(labels[numbers[i]]) + np.uint64(1)
            order[begin[after]], places[begin[after]] = numbers[i], at[i]
            begin[after] += 1
    columns = _aligned(d, minus_2c)
    best, second = empty(WIDTH, minus_2c.dtype), empty(WIDTH, minus_2c.dtype)
    who, norm, above = empty(WIDTH, np.int32), empty(WIDTH, np.float64), empty(WIDTH, np.float64)
    ups, downs = empty(WIDTH, np.float32), empty(WIDTH, np.float32)
    visit, reach = empty(k, np.int64), zeros(k, np.float64)
    for j in range(k):
        visit[j] = j
    candidates, squared = empty(k, np.int64), empty(k, np.float64)
    room = empty(d + WIDTH, np.float64)
    hard = changed = scored = lost = ZERO
    for a in range(1 if every else k):
        start, stop = begin[a], begin[a + 1]
        if start == stop:
            continue
        visits, beyond = k, np.inf
        if not every:
            radius = (2 * farthest[a] + around.apart[a]) * UP
            visits, beyond = _nearby(wide, panels, around, a, radius, stop - start, visit, reach)
        for b in range(start, stop, WIDTH):
            used = stop - b if stop - b < WIDTH else WIDTH
            for r in range(used):
                # A later row for each of these: processors forget what is asked for all at once.
                at_x, row = np.int64(places[b + WIDTH + r]), order[b + WIDTH + r]
                for f in range(0, d - 1, 64 // x.itemsize):
                    prefetch(x, at_x * d + f)
                prefetch(x, at_x * d + d - 1)
                prefetch(upper, row)
                prefetch(lower, row)
                # Read once: for all the compiler knows, writing to `columns` may change it.
                at_x, row = np.int64(places[b + r]), order[b + r]
                for f in range(d):
                    columns[f, r] = x[at_x, f] * scale - offset[f]
                above[r] = 0.0 if every else upper[row]
            for r in range(used, WIDTH):  # the last row again
                above[r] = above[used - 1]
                for f in range(d):
                    columns[f, r] = columns[f, used - 1]
            _measure(columns, minus_2c, norms, a, norm, room, above, beta, eta, every)
            for r in range(WIDTH):
                best[r], second[r], who[r] = np.inf, np.inf, 0
            q, limit = ZERO, np.inf
            while q < visits and reach[q] <= limit:
                until = visits if every or visits - q < _CHUNK else q + _CHUNK
                lanes(columns, d, minus_2c, norms, visit, q, until, best, second, who)
                q = until
                if q < visits:
                    limit = _farthest(norm, second, above, beta, eta, room)
            scored += q * WIDTH
            unseen = reach[q] if q < visits else beyond
            _interval(norm, best, second, above, unseen, beta, eta, ups, downs)
            for r in range(used):
                row, label = order[b + r], np.int64(who[r])
                up, down = ups[r], downs[r]
                within = norm[r] <= FAR
                lost += not within
                if not up * GAP32 < down:
                    hard += 1
                    if exact and within:
                        most, found = np.float64(up) * np.float64(up) * GAP, ZERO
                        for v in range(q):
                            j = visit[v]
                            estimate = norm[r] + np.float64(norms[j])
                            for f in range(d):
                                estimate += np.float64(minus_2c[j, f]) * np.float64(columns[f, r])
                            least = estimate - (abs(estimate) + norm[r]) * beta - eta
                            if least <= most:
                                candidates[found] = j
                                squared[found] = squared_distance(
                                    x, np.int64(places[b + r]), unit, wide, j, room
                                )
                                found += 1
                        label, up, down, _ = decide(candidates, squared, found, most, tie, label)
                upper[row], lower[row] = up, down
                if every or label != a:
                    if changes.shape[0] and label != labels[row]:
                        changes[0, changed], changes[1, changed] = row, labels[row]
                        changes[2, changed] = label
                        changed += 1
                    labels[row] = label
    return changed, hard, scored, lost


@inner
def _nearby(wide, panels, around, a, radius, rows, visit, reach):
    """List the centroids within `radius` of `a` and perhaps some more, nearest first, itself among the first.

    Returns how many, and at least how far all others are. No centroid from ``visit[q]`` on is nearer than
    ``reach[q]``. For few `rows` whole panels are listed, as sorting their centroids would not pay.
    """
    ids, place = panels
    low, high = around.low, around.high
    k, p_count = wide.shape[0], low.shape[0]
    near_by, away = empty(p_count, np.int64), empty(p_count, np.float64)
    listed, outside, square = ZERO, np.inf, radius * radius
    for p in range(p_count):
        squared = _to_panel(wide, a, low, high, p)
        if squared > square:
            outside = squared if squared < outside else outside
        else:
            near_by[listed], away[listed] = p, squared
            listed += 1
    whole, visits = listed * LANES > _SORTED * rows, ZERO
    if whole:
        own = place[a] // LANES
        for q in range(listed):
            away[q] = -1.0 if near_by[q] == own else math.sqrt(away[q]) * DOWN - TINY
        _sort(away, near_by, listed)
    for q in range(listed):
        for slot in range(near_by[q] * LANES, (near_by[q] + 1) * LANES):
            j = ids[slot]
            if j == k:
                break
            if whole:
                visit[visits], reach[visits] = j, away[q]
                visits += 1
                continue
            squared = _between(wide, a, j)
            if squared > square:
                outside = squared if squared < outside else outside
                continue
            visit[visits] = j
            reach[visits] = -1.0 if j == a else math.sqrt(squared) * DOWN - TINY
            visits += 1
    if not whole:
        _sort(reach, visit, visits)
    return visits, math.sqrt(outside) * DOWN - TINY


@inner
def _sort(keys, values, count):
    """Sort the first `count` of `values` by their `keys`: Shell's way, with few of either."""
    gap = 1
    while 3 * gap < count:
        gap = 3 * gap + 1
    while gap:
        for i in range(gap, count):
            key, value = keys[i], values[i]
            q = i
            while q >= gap and keys[q - gap] > key:
                keys[q], values[q] = keys[q - gap], values[q - gap]
                q -= gap
            keys[q], values[q] = key, value
        gap //= 3


class _Pass(NamedTuple):
    """Centroids prepared for a look at rows, see `bounded.Pass`."""

    matrix: Any
    state: State
    panels: Panels
    scoring: Scoring
    around: Surroundings
    truth: Truth
    worn: tuple[np.ndarray, np.ndarray]
    whole: bool
    every: bool

    def look(self, numbers: np.ndarray, changes: Changes) -> Counts:
        """Bring the rows of these numbers (m,) up to date."""
        x, at = self.matrix.readable(numbers)
        rows, room = Rows(x, at, numbers), changes.room(numbers)
        changed, hard, scored, lost = near(
            rows, self.scoring, self.panels, self.around, self.truth, self.state, self.every, room
        )
        changes.add(room, changed)
        return Counts(hard, scored, numbers.size, numbers.size, lost)


class NearSearch(BoundedSearch):
    """Labels of all rows, of which each has one lower bound, and is compared with the centroids near its own.

    Attributes
    ----------
    every : bool
        Whether a row is compared with all centroids, as those near its own are no fewer.
    """

    def __init__(self, frame: Frame, work: Work, *, skips: bool, exact: bool) -> None:
        super().__init__(frame, work, skips=skips, exact=exact)
        n = self.matrix.shape[0]
        self.every, self._looked = False, n
        self._farthest = np.asarray([np.inf], np.float32)  # row of each centroid, at most
        self._long_blocks = work.tiles(step=-(-n // work.threads))

    def relabel(self, c: np.ndarray) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows changed."""
        k, first = c.shape[0], self.passes == 0
        wide, drift = self.advance(c)
        renew = first or (self.skips and self._renews())
        if renew:  # without skipping it does not matter which are near each other
            self.panels = Panels.of(wide) if self.skips else Panels.in_order(k)
        every, whole = self.every and not renew, first or not self.skips
        drift = bounded.not_below(drift)
        self._farthest = self._farthest + drift
        prepared = self._prepared(wide, drift, every=every, whole=whole)
        # Rows of one centroid go side by side: where few are in doubt, together from longer blocks.
        few = self._looked < _FULL * k * len(self.blocks)
        counts, changes = self.sweep(prepared, self._long_blocks if few else self.blocks)
        self._looked = counts.looked
        if not (whole or every):
            self.every = counts.scored > counts.looked * k
        if renew and self.skips:
            self._farthest = np.zeros(k, np.float32)
            farthest_rows(self.state.upper, self.labels, self._farthest)
        return changes, self.matrix.shape[0] if first else bounded.moved(changes)

    def _renews(self) -> bool:
        """Return whether to choose panels anew: centroids move most in the first passes."""
        if self.every:  # look again now and then whether those near the own have become fewer
            return self.passes in (16, 64, 256)
        return self.passes & (self.passes - 1) == 0  # 1, 2, 4, 8, ...

    def _prepared(self, wide: np.ndarray, drift: np.ndarray, *, every: bool, whole: bool) -> _Pass:
        """Return centroids `wide` (k, d), moved by up to `drift` (k,), prepared."""
        k, d = wide.shape
        errors = self.errors(d)
        centred = self.frame.centre(wide)
        scale, offset = self.frame.affine(self.narrow)
        scoring = Scoring(
            scale,
            offset,
            (centred * -2.0).astype(self.dtype),
            (centred * centred).sum(axis=1).astype(self.dtype),
            errors.beta,
            errors.eta,
        )
        if not self.skips or (every and k * _FULL > self.matrix.shape[0]):
            worn = bounded.alone(drift)
            around = Surroundings(np.empty((0, d)), np.empty((0, d)), np.zeros(k, np.float32))
        else:
            low, high = boxes(wide, self.panels.ids)
            step = -(-k // self.work.threads) if k >= _SPREAD else k
            parts = self.work.map(
                lambda part: surroundings(
                    wide, self.panels, (low, high), drift, self._farthest, part.start, part.stop
                ),
                self.work.tiles(0, k, step),
            )
            nearest, apart, drifts, beyond = np.concatenate(parts, axis=1)
            worn = bounded.pairs(drift, drifts), bounded.pairs(nearest, beyond)
            around = Surroundings(low, high, apart)
        truth = self.truth(wide, errors)
        return _Pass(
            self.matrix,
            self.state,
            self.panels,
            scoring,
            around,
            truth,
            worn,
            whole,
            every or whole,
        )
