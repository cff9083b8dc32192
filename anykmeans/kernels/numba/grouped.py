# mypy: allow-untyped-defs, allow-untyped-calls
"""The search in many features: panels of centroids are the lanes, and bounds rule most of them out.

Yinyang (Ding et al., "Yinyang k-means: a drop-in replacement of the classic k-means with consistent speedup",
ICML 2015), with a lower bound a row for every panel, or for several.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from anykmeans._bounds import DOWN, FAR, GAP, TINY, UP, Bounds
from anykmeans._search import Change
from anykmeans.kernels.numba import bounded, subspace
from anykmeans.kernels.numba.bounded import BoundedSearch, Changes, Counts
from anykmeans.kernels.numba.panels import Panels
from anykmeans.kernels.numba.simd import BLOCK, LANES, ROWS, centre, tile
from anykmeans.kernels.numba.steps import (
    Rows,
    State,
    Truth,
    decide,
    inline,
    inline_minimum,
    inner,
    jit,
    squared_distance,
)
from anykmeans.kernels.numba.subspace import Subspace

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work

_POINTLESS = 0.8  # of the rows: so many not proven by a first look, and it is given up
_ROOMY = 0.6  # of all panels: a pass that scores more may as well score all, and choose new panels


class Scoring(NamedTuple):
    """How rows are scored, as they are or in a subspace.

    With ``y = x * scale - offset`` squared distances are at least ``|y|^2 + norms[slot] + minus_2c[:, slot] @ y``,
    nearly, and at most ``4 y[-1] spare[j]`` more.

    Attributes
    ----------
    scale : float
        Of the dtype of `offset`.
    offset : ndarray of shape (d,)
        In the dtype in which rows are centred.
    minus_2c : ndarray of shape (panels, d, LANES)
        Centroids, centred, times -2, in the dtype of scores.
    norms : ndarray of shape (panels, LANES)
        Their squared norms, in that dtype; of empty slots infinity.
    centred : ndarray of shape (k, d)
        The centroids as they are numbered, in that dtype.
    spare : ndarray of shape (k,), float64
        What their coordinates leave of them; zero in all coordinates.
    beta, eta : float
        How far scores can be off: `Bounds`.
    """

    scale: float
    offset: np.ndarray
    minus_2c: np.ndarray
    norms: np.ndarray
    centred: np.ndarray
    spare: np.ndarray
    beta: float
    eta: float


class Groups(NamedTuple):
    """A lower bound of each row for every panel, or for several where memory is short, less how far these have moved.

    With g = p // share, ``lowers[row, g] - moved[g]`` is at most the distance of the row to every centroid
    of panel p but its own: the bounds of Yinyang (Ding et al., ICML 2015), which wear unwritten.

    Attributes
    ----------
    lowers : ndarray of shape (n, groups), float32
        The bounds when they were written, and what their groups had moved then.
    moved : ndarray of shape (groups,), float64
        How far a group's centroids have moved at most since the panels were chosen.
    share : int
        Panels a bound.
    """

    lowers: np.ndarray
    moved: np.ndarray
    share: int


@inline
def _centre(x, row, ahead, scale, offset, y, t, c, j):
    """Write row `row` of `x` into ``y[t]``, in the frame and less the offset, and ask for row `ahead`.

    Returns its squared norm, and its product with row `j` of `c`, which round no more often than `tile`.
    """
    d = x.shape[1]
    whole = d - d % LANES
    norm = product = 0.0
    for start in range(0, whole, BLOCK * LANES):
        stop = start + BLOCK * LANES if start + BLOCK * LANES < whole else whole
        squared, along = centre(y, t, x, row, ahead, start, stop, scale, offset, c, j)
        norm += squared
        product += along
    for f in range(whole, d):
        y[t, f] = x[row, f] * scale - offset[f]
        value = np.float64(y[t, f])
        norm += value * value
        product += value * np.float64(c[j, f])
    return norm, product


@inner
def _at_most(norm, score, beta, eta):
    """Return a distance that the true one does not exceed: `Bounds.at_most`."""
    a = norm + score
    squared = (a * (1 + beta) if a > 0 else a) + norm * beta + eta
    return np.float32(math.sqrt(squared if squared > 0 else 0.0) * UP + TINY)


@inner
def _at_least(norm, score, beta, eta):
    """Return a distance that the true one reaches: `Bounds.at_least`."""
    a = norm + score
    squared = (a * (1 - beta) if a > 0 else a) - norm * beta - eta
    return np.float32(math.sqrt(squared if squared > 0 else 0.0) * DOWN - TINY)


@inline_minimum
def _wear_row(bounds, row, moved, worn, room):
    """Write a row's bounds, worn, to `worn` (groups,) and return the lowest of them."""
    count = moved.shape[0]
    for g in range(count):
        worn[g] = np.float64(bounds[row, g]) - moved[g]
    for i in range(LANES):
        room[i] = np.inf
    whole = count - count % LANES
    for g in range(0, whole, LANES):  # by lanes, as one minimum after the other would wait for each
        for i in range(LANES):
            room[i] = worn[g + i] if worn[g + i] < room[i] else room[i]
    lowest = np.inf
    for i in range(LANES):
        lowest = room[i] if room[i] < lowest else lowest
    for g in range(whole, count):
        lowest = worn[g] if worn[g] < lowest else lowest
    return lowest


@jit
def grouped(rows, scoring, panels, groups, truth, state, first, at_once, deferred, changes):
    """Search the panels that a row's bounds do not rule out, or all if `first`; as many rows `at_once` wait in the cache.

    Returns how many labels changed, rows not proven, panels scored, and rows out of range, whose labels mean
    nothing. Changed rows, their old and new labels go to the rows of `changes` (3, m), unless that is empty.

    Rows not proven keep their label and go to `deferred`, as numbers into `rows`, if that has room for them;
    else the truth decides if it is asked.
    """
    x, at, numbers = rows
    scale, offset, minus_2c, norms, centred, spare, beta, eta = scoring
    ids, place = panels
    bounds, moved, share = groups
    labels, upper, lower = state
    wide, unit, tie, exact = truth
    m, k, d, p_count = numbers.shape[0], wide.shape[0], x.shape[1], norms.shape[0]
    y = np.empty((at_once, d), minus_2c.dtype)
    which, norm, own = np.empty(at_once, np.int64), np.empty(at_once), np.empty(at_once)
    best, who = np.empty(at_once), np.empty(at_once, np.int64)
    below = np.empty(at_once)
    wanting = np.empty((p_count, at_once + ROWS), np.int64)
    wants, group = np.empty(p_count, np.int64), np.empty(p_count, np.int64)
    for p in range(p_count):
        group[p] = p // share
    lows = np.empty((p_count, at_once + ROWS), minus_2c.dtype)
    seconds = np.empty((p_count, at_once + ROWS), minus_2c.dtype)
    spots = np.empty((p_count, at_once + ROWS), np.int64)
    scores = np.empty((p_count, at_once + ROWS, LANES), minus_2c.dtype)
    candidates = np.empty(k + 1, np.int64)
    squared, room = np.empty(k + 1), np.empty(d)
    worn, lanes_room = np.empty(moved.shape[0]), np.empty(LANES)
    hard = scored = changed = lost = i = 0
    while i < m:
        count = 0
        for p in range(p_count):
            wants[p] = 0
        while i < m and count < at_once:
            row, label = numbers[i], np.int64(0)
            if not first:  # before the row itself is read
                label = labels[row]
                lower[row] = _wear_row(bounds, row, moved, worn, lanes_room) * DOWN - TINY
                if upper[row] * np.float32(GAP) < lower[row]:
                    i += 1
                    continue
            ahead = np.int64(at[i + 1 if i + 1 < m else i])
            norm[count], product = _centre(
                x, np.int64(at[i]), ahead, scale, offset, y, np.int64(count), centred, label
            )
            lost += not norm[count] <= FAR
            which[count] = i
            i += 1
            if first:
                best[count], who[count], below[count] = np.inf, 0, np.inf
                for p in range(p_count):
                    wanting[p, count] = count
                    wants[p] += 1
                count += 1
                continue
            slot = place[label]
            score = np.float64(norms[slot // LANES, slot % LANES]) - 2 * product
            score_up = score + 4 * abs(np.float64(y[count, d - 1])) * spare[label]
            up = _at_most(norm[count], score_up, beta, eta)
            up = up if up < upper[row] else upper[row]
            upper[row] = up
            if up * np.float32(GAP) < lower[row]:
                continue
            limit, others = np.float64(up) * GAP, np.inf
            for p in range(p_count):  # no branch: it would be a guess
                bound = worn[group[p]]
                wanting[p, wants[p]] = count
                wants[p] += bound <= limit
                beyond = np.inf if bound <= limit else bound
                others = beyond if beyond < others else others
            best[count], own[count], who[count], below[count] = score, score, slot, others
            count += 1
        for p in range(p_count):
            scored += wants[p]
            if wants[p]:
                for r in range(ROWS):
                    wanting[p, wants[p] + r] = wanting[p, wants[p] - 1]
        for p in range(p_count):
            for b in range(0, wants[p], ROWS):
                e = b + ROWS
                tile(
                    y, wanting[p, b:e], d, minus_2c, norms, p, scores[p, b:e],
                    lows[p, b:e], seconds[p, b:e], spots[p, b:e],
                )  # fmt: skip
            for q in range(wants[p]):
                t = wanting[p, q]
                closer = lows[p, q] < best[t]
                best[t] = lows[p, q] if closer else best[t]
                who[t] = p * LANES + spots[p, q] if closer else who[t]
        if not first:
            for t in range(count):
                # The centroid that a row left is one of the others now.
                left = place[labels[numbers[which[t]]]]
                if left != who[t]:
                    row, g = numbers[which[t]], left // LANES // share
                    least = np.float64(_at_least(norm[t], own[t], beta, eta))
                    bound = np.float32((least + moved[g]) * DOWN)
                    bounds[row, g] = bound if bound < bounds[row, g] else bounds[row, g]
                    below[t] = least if least < below[t] else below[t]
        for p in range(p_count):
            g, fresh = group[p], p == 0 or group[p] != group[p - 1]
            for q in range(wants[p]):
                t = wanting[p, q]
                row = numbers[which[t]]
                mine = who[t] == p * LANES + spots[p, q]
                score = np.float64(seconds[p, q] if mine else lows[p, q])
                least = np.float64(_at_least(norm[t], score, beta, eta))
                below[t] = least if least < below[t] else below[t]
                bound = np.float32((least + moved[g]) * DOWN)
                bounds[row, g] = bound if fresh or bound < bounds[row, g] else bounds[row, g]
        for t in range(count):
            row, label = numbers[which[t]], np.int64(ids[who[t]])
            score_up = best[t] + 4 * abs(np.float64(y[t, d - 1])) * spare[label]
            up, down = _at_most(norm[t], score_up, beta, eta), np.float32(below[t] * DOWN - TINY)
            if not up * np.float32(GAP) < down:
                if deferred.shape[0]:
                    deferred[hard] = which[t]
                    hard += 1
                    if not first and label != labels[row]:  # then the best is one of the others
                        g = who[t] // LANES // share
                        least = np.float64(_at_least(norm[t], best[t], beta, eta))
                        bound = np.float32((least + moved[g]) * DOWN)
                        bounds[row, g] = bound if bound < bounds[row, g] else bounds[row, g]
                    continue
                hard += 1
                if exact and norm[t] <= FAR:
                    most, found = np.float64(up) ** 2 * GAP, 0
                    if not first:
                        candidates[0], found = labels[row], 1
                    for p in range(p_count):
                        q, end = 0, wants[p]
                        while q < end:  # the rows of a panel ascend
                            middle = (q + end) // 2
                            if wanting[p, middle] < t:
                                q = middle + 1
                            else:
                                end = middle
                        if q == wants[p] or wanting[p, q] != t:
                            continue
                        for spot in range(LANES):
                            j = ids[p * LANES + spot]
                            a = norm[t] + np.float64(scores[p, q, spot])
                            least = (a * (1 - beta) if a > 0 else a) - norm[t] * beta - eta
                            if least <= most and j < k and (first or j != labels[row]):
                                candidates[found] = j
                                found += 1
                    guess = label
                    for q in range(found):
                        squared[q] = squared_distance(
                            x, np.int64(at[which[t]]), unit, wide, candidates[q], room
                        )
                    label, up, down, left = decide(
                        candidates, squared, np.int64(found), most, tie, guess
                    )
                    if label != guess:
                        g = who[t] // LANES // share
                        bound = np.float32((left + moved[g]) * DOWN)
                        bounds[row, g] = bound if bound < bounds[row, g] else bounds[row, g]
            if changes.shape[0] and label != labels[row]:
                changes[0, changed], changes[1, changed] = row, labels[row]
                changes[2, changed] = label
                changed += 1
            labels[row], upper[row], lower[row] = label, up, down
    return changed, hard, scored, lost


_UNDEFERRED = np.empty(0, np.int64)


class _FirstLook(NamedTuple):
    """Rows in few coordinates (n, p), and how they are scored there."""

    x: np.ndarray
    scoring: Scoring


class _Pass(NamedTuple):
    """Centroids prepared for a look at rows, see `bounded.Pass`; at first in a subspace, if there is one."""

    matrix: Any
    state: State
    panels: Panels
    groups: Groups
    scoring: Scoring
    first_look: _FirstLook | None
    truth: Truth
    worn: tuple[np.ndarray, np.ndarray]
    whole: bool
    at_once: int

    def look(self, numbers: np.ndarray, changes: Changes) -> Counts:
        """Bring the rows of these numbers (m,) up to date."""
        looked, scored = numbers.size, 0
        if self.first_look is not None:
            deferred = np.empty(looked + 1, np.int64)
            rows = Rows(self.first_look.x, numbers, numbers)
            left, scored, _ = self._search(rows, self.first_look.scoring, deferred, changes)
            numbers = numbers[deferred[:left]]
        x, at = self.matrix.readable(numbers)
        rows = Rows(x, at, numbers)
        hard, more, lost = self._search(rows, self.scoring, _UNDEFERRED, changes)
        return Counts(hard, scored + more, looked, numbers.size, lost)

    def _search(
        self, rows: Rows, scoring: Scoring, deferred: np.ndarray, changes: Changes
    ) -> tuple[int, int, int]:
        """Search for rows; return how many were not proven, panels scored, and rows out of range."""
        room = changes.room(rows.numbers)
        changed, hard, scored, lost = grouped(
            rows, scoring, self.panels, self.groups, self.truth, self.state, self.whole,
            self.at_once, deferred, room,
        )  # fmt: skip
        changes.add(room, changed)
        return hard, scored, lost


class GroupedSearch(BoundedSearch):
    """Labels of all rows, of which each has a lower bound for every panel, and is compared with those not ruled out.

    Attributes
    ----------
    groups : Groups
        The bounds.
    subspace : Subspace or None
        Few coordinates of all rows, once there are any, while they prove enough.
    """

    def __init__(self, frame: Frame, work: Work, *, skips: bool, exact: bool) -> None:
        super().__init__(frame, work, skips=skips, exact=exact)
        n, d = self.matrix.shape
        self.groups = Groups(np.empty((n, 0), np.float32), np.zeros(0), 1)
        self.subspace: Subspace | None = None
        # Rows whose scores wait in the cache while panels pass by.
        self._at_once = max(ROWS, min(128, work.room // (d + 4 * LANES)))
        self._scored = 1.0  # of all pairs of a row and a panel, in the last pass

    def relabel(self, c: np.ndarray) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows changed."""
        first = self.passes == 0
        wide, drift = self.advance(c)
        # Centroids move most in the first passes.
        if self.passes == 3 and self.skips:
            self.subspace = subspace.of_rows(self.frame, self.work, self.frame.centre(wide))
        renew = first or (self.skips and self._renews())
        if renew:  # without skipping it does not matter which are near each other
            self.panels = Panels.of(wide) if self.skips else Panels.in_order(c.shape[0])
            self.groups = self._divided()
        else:
            self.groups = self._worn(drift)
        whole = renew or not self.skips
        prepared = self._prepared(wide, bounded.not_below(drift), whole=whole)
        counts, changes = self.sweep(prepared, self.blocks)
        if counts.again > _POINTLESS * counts.looked:
            self.subspace = None
        self._scored = counts.scored / (self.matrix.shape[0] * self.panels.number)
        return changes, self.matrix.shape[0] if first else bounded.moved(changes)

    def _renews(self) -> bool:
        """Return whether to choose panels anew: centroids move most in the first passes."""
        return self.panels.number > 1 and self.passes in (1, 4, 16) and self._scored > _ROOMY

    def _divided(self) -> Groups:
        """Return room for bounds: one a panel, or one for several where memory is short."""
        n, panels = self.matrix.shape[0], self.panels.number
        columns = max(1, min(panels, self.work.max_bytes // (8 * n) - 2))
        if not self.skips:
            columns = 1
        share = -(-panels // columns)
        columns = -(-panels // share)
        return Groups(np.empty((n, columns), np.float32), np.zeros(columns), share)

    def _worn(self, drift: np.ndarray) -> Groups:
        """Return the bounds after their centroids moved by up to `drift` (k,)."""
        slots = np.append(drift, 0.0)[self.panels.ids]
        starts = np.arange(0, slots.size, self.groups.share * LANES)
        moved = (self.groups.moved + np.maximum.reduceat(slots, starts)) * UP + TINY
        return self.groups._replace(moved=moved)

    def _prepared(self, wide: np.ndarray, drift: np.ndarray, *, whole: bool) -> _Pass:
        """Return centroids `wide` (k, d), moved by up to `drift` (k,), prepared."""
        k, d = wide.shape
        centred, errors = self.frame.centre(wide), self.errors(min(d, BLOCK + -(-d // BLOCK)))
        affine = self.frame.affine(self.narrow)
        scoring = _scoring(self.panels, affine, centred, self.dtype, np.zeros(k), errors)
        first_look = None
        if self.subspace is not None:
            few = subspace.coordinates(centred, self.subspace.q)
            p = few.shape[1]
            error = Bounds.of(p, 2.0**-24)
            error = dataclasses.replace(error, beta=error.beta + 16 * subspace.error(d))
            as_they_are = np.float32(1), np.zeros(p, np.float32)
            spare = few[:, -1].copy()
            first_look = _FirstLook(
                self.subspace.rows,
                _scoring(self.panels, as_they_are, few, np.float32, spare, error),
            )
        truth, worn = self.truth(wide, errors), bounded.alone(drift)
        return _Pass(
            self.matrix, self.state, self.panels, self.groups, scoring, first_look, truth, worn,
            whole, self._at_once,
        )  # fmt: skip


def _scoring(
    panels: Panels,
    affine: tuple[Any, np.ndarray],
    centred: np.ndarray,
    dtype: Any,
    spare: np.ndarray,
    errors: Bounds,
) -> Scoring:
    """Return how rows, brought there by scale and offset, are scored where the centroids are `centred` (k, d)."""
    (scale, offset), (minus_2c, norms) = affine, panels.coefficients(centred, dtype)
    return Scoring(
        scale, offset, minus_2c, norms, centred.astype(dtype), spare, errors.beta, errors.eta
    )
