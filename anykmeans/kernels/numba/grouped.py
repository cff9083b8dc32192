# mypy: allow-untyped-defs, allow-untyped-calls
"""The search in many features: panels of centroids are the lanes, and bounds rule most of them out.

Yinyang (Ding et al., "Yinyang k-means: a drop-in replacement of the classic k-means with consistent speedup",
ICML 2015), with a lower bound a row for every panel, or for several.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from anykmeans._bounds import DOWN, FAR, GAP, TINY, UP
from anykmeans._search import Change
from anykmeans.kernels.numba import bounded, looks
from anykmeans.kernels.numba.bounded import BoundedSearch, Changes, Counts
from anykmeans.kernels.numba.codes import least
from anykmeans.kernels.numba.distance import squared_distance
from anykmeans.kernels.numba.looks import CODES, FULL, NUMBERS, FirstLook, Look
from anykmeans.kernels.numba.panels import Panels
from anykmeans.kernels.numba.room import empty
from anykmeans.kernels.numba.simd import BLOCK, LANES, ROWS, centre, product, tile
from anykmeans.kernels.numba.steps import (
    DOWN32,
    GAP32,
    INF32,
    TINY32,
    ZERO,
    Rows,
    State,
    Truth,
    decide,
    inline,
    inline_minimum,
    inner,
    jit,
)

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work

_POINTLESS = 0.8  # of the rows: so many not decided by their coordinates, and it is given up
_AT_ONCE = 64  # rows
_ROOMY = 0.6  # of all panels: a pass that scores more may as well score all, and choose new panels


class Scoring(NamedTuple):
    """How rows are scored, as they are or in a few coordinates.

    With ``y = x * scale - offset`` squared distances are at least ``|y|^2 + norms[j] - 2 centred[j] @ y``, nearly, and
    at most ``4 y[-1] spare[j]`` more.

    Attributes
    ----------
    scale : float
        Of the dtype of `offset`.
    offset : ndarray of shape (d,)
        In the dtype in which rows are centred.
    centred : ndarray of shape (k, d)
        The centroids, centred, in the dtype of scores.
    norms : ndarray of shape (k,), float64
        Their squared norms.
    spare : ndarray of shape (k,), float64
        What their coordinates leave of them; zero in all coordinates.
    beta, eta : float
        How far scores can be off: `Bounds`.
    """

    scale: float
    offset: np.ndarray
    centred: np.ndarray
    norms: np.ndarray
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
    moved_most, moved_least : ndarray of shape (groups,), float32
        The same, none less and none more.
    share : int
        Panels a bound.
    """

    lowers: np.ndarray
    moved: np.ndarray
    moved_most: np.ndarray
    moved_least: np.ndarray
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


@inner
def _score(y, t, c, j, norm):
    """Return ``norm - 2 y[t] @ c[j]``, which rounds no more often than `tile`."""
    d = y.shape[1]
    whole = d - d % LANES
    total = 0.0
    for start in range(0, whole, BLOCK * LANES):
        stop = start + BLOCK * LANES if start + BLOCK * LANES < whole else whole
        total += product(y, t, c, j, start, stop)
    for f in range(whole, d):
        total += np.float64(y[t, f]) * np.float64(c[j, f])
    return norm - 2 * total


@inline_minimum
def _wear_row(bounds, row, moved, worn):
    """Write a row's bounds, worn, to `worn` (groups,) and return the lowest of them."""
    lowest = INF32
    for g in range(moved.shape[0]):
        worn[g] = bounds[row, g] - moved[g]
        lowest = worn[g] if worn[g] < lowest else lowest
    return lowest


@inline_minimum
def _lowest(values):
    """Return the lowest of `values` (m,)."""
    lowest = values[0]
    for i in range(values.shape[0]):
        lowest = values[i] if values[i] < lowest else lowest
    return lowest


@inner
def _all_at_least(lows, t, norm, beta, eta, found):
    """Write `_at_least` of ``lows[t]`` to `found` (panels,), float32: in the dtype of scores, by lanes."""
    real = lows.dtype.type
    length, zero = real(norm), real(0.0)
    spare, shrink = real(norm * beta + eta), real(1 - beta)
    for p in range(found.shape[0]):
        a = length + lows[t, p]
        squared = (a * shrink if a > zero else a) - spare
        root = np.sqrt(squared if squared > zero else zero)
        found[p] = np.float32(root) * DOWN32 - TINY32


@inner
def _edge(up, norm, beta, eta, beta_up):
    """Return what is not below any low score of a distance up to `up`, or of one so near that it might matter."""
    squared = np.float64(up) * np.float64(up) * (GAP * GAP) * (GAP * GAP)
    edge = (squared + norm * beta + eta) * beta_up - norm + (squared + norm) * 2.0**-22
    return edge if edge < FAR * FAR else FAR * FAR


@jit
def grouped(
    rows, look, scoring, panels, groups, truth, state, first, whole, at_once, deferred, changes
):
    """Search the panels that a row's bounds do not rule out, or all if `whole`; as many rows `at_once` wait in the cache.

    Panels are scored or, if the `look` is not in full, bounds say which of their centroids are. If `first`, labels
    mean nothing before. Returns how many labels changed, rows not proven, panels looked at, and rows out of range,
    whose labels mean nothing. Changed rows, their old and new labels go to the rows of `changes` (3, m), unless that
    is empty.

    Rows not proven keep their label and go to `deferred`, as numbers into `rows`, if that has room for them;
    else the truth decides if it is asked.
    """
    x, at, numbers = rows
    kind, z, minus_2c, minus_norms, of_rows, of_panels, starts, lengths, low_beta, low_eta = look
    (row_codes, row_terms), (panel_codes, panel_terms) = of_rows, of_panels
    scale, offset, centred, norms, spare, beta, eta = scoring
    ids, place = panels
    bounds, moved, moved_most, moved_least, share = groups
    labels, upper, lower = state
    wide, unit, tie, exact = truth
    m, k, d, p_count = numbers.shape[0], wide.shape[0], x.shape[1], ids.shape[0] // LANES
    in_full, low_up = kind == FULL, (1 + 2.0**-50) / (1 - low_beta)
    y = empty((at_once, d), centred.dtype)
    which, who = empty(at_once, np.int64), empty(at_once, np.int64)
    norm, low_norm = empty(at_once, np.float64), empty(at_once, np.float64)
    best, edge = empty(at_once, np.float64), empty(at_once, np.float64)
    below = empty(at_once, np.float32)
    wanting, wants = empty((p_count, at_once + ROWS), np.int64), empty(p_count, np.int64)
    order = empty((at_once, p_count), np.int32)
    values = empty((p_count, at_once + ROWS, LANES), centred.dtype)
    lows = empty((at_once, p_count), centred.dtype)
    four, second = empty(ROWS, centred.dtype), empty(ROWS, centred.dtype)
    lane, batch = empty(ROWS, np.int64), empty(ROWS, np.int64)
    fresh, worn = empty(p_count, np.float32), empty(moved.shape[0], np.float32)
    slots, scores = empty(k + 1, np.int64), empty(k + 1, np.float64)
    candidates, squared = empty(k + 1, np.int64), empty(k + 1, np.float64)
    room, group = empty(d, np.float64), empty(p_count, np.int64)
    for p in range(p_count):
        group[p] = p // share
    for g in range(moved.shape[0]):
        worn[g] = -np.inf  # so that all are wanted in a pass over all
    hard = looked = changed = lost = i = ZERO
    while i < m:
        count = ZERO
        for p in range(p_count):
            wants[p] = 0
        while i < m and count < at_once:
            row, label = numbers[i], np.int64(0)
            if not first:
                label = labels[row]
            if not whole:  # before the row itself is read
                lowest = _wear_row(bounds, row, moved_most, worn)
                lower[row] = lowest * DOWN32 - TINY32
                if upper[row] * GAP32 < lower[row]:
                    i += 1
                    continue
            ahead = np.int64(at[i + 1 if i + 1 < m else i])
            norm[count], along = _centre(
                x, np.int64(at[i]), ahead, scale, offset, y, np.int64(count), centred, label
            )
            lost += not norm[count] <= FAR
            which[count] = i
            i += 1
            low_norm[count] = norm[count] if in_full else np.float64(lengths[row])
            best[count], who[count], edge[count] = np.inf, -1, FAR * FAR  # beyond what is in range
            limit = np.float32(0.0)
            if not first:
                score = norms[label] - 2 * along
                left = 4 * abs(np.float64(y[count, d - 1])) * spare[label]
                up = _at_most(norm[count], score + left, beta, eta)
                if not whole:  # a pass over all has worn none
                    up = up if up < upper[row] else upper[row]
                    if up * GAP32 < lower[row]:
                        upper[row] = up
                        continue
                upper[row] = up
                best[count], who[count] = score, place[label]
                edge[count] = _edge(up, low_norm[count], low_beta, low_eta, low_up)
                limit = up * GAP32
            others = INF32
            for p in range(p_count):  # no branch: it would be a guess
                bound = worn[group[p]]
                wanted = bound <= limit
                beyond = INF32 if wanted else bound
                others = beyond if beyond < others else others
                wanting[p, wants[p]] = count
                order[count, p] = wants[p] if wanted else -1
                lows[count, p] = np.inf
                wants[p] += wanted
            below[count] = others * DOWN32 - TINY32
            count += 1
        for p in range(p_count):
            looked += wants[p]
            if wants[p]:
                for r in range(ROWS):
                    wanting[p, wants[p] + r] = wanting[p, wants[p] - 1]
            for b in range(0, wants[p], ROWS):
                if not in_full:
                    for r in range(ROWS):
                        batch[r] = numbers[which[wanting[p, b + r]]]
                scored = values[p, b:]
                if kind == CODES:
                    least(
                        row_codes, batch, row_terms, panel_codes, starts, panel_terms, p, scored, four
                    )  # fmt: skip
                elif kind == NUMBERS:
                    tile(
                        z, batch, z.shape[1], minus_2c, minus_norms, p, scored, four, second, lane
                    )  # fmt: skip
                else:
                    tile(
                        y, wanting[p, b:], d, minus_2c, minus_norms, p, scored, four, second, lane
                    )  # fmt: skip
                for r in range(ROWS):
                    lows[wanting[p, b + r], p] = four[r]
        for t in range(count):
            row, own, some = numbers[which[t]], who[t], ZERO
            left = 4 * abs(np.float64(y[t, d - 1]))
            if own >= 0:
                slots[0], scores[0], some = own, best[t], 1
                p = own // LANES
                if order[t, p] >= 0:
                    values[p, order[t, p], own % LANES] = np.inf
                    lows[t, p] = _lowest(values[p, order[t, p]])
            nearest, panel = edge[t], p_count
            for p in range(p_count):
                if lows[t, p] <= nearest:
                    nearest, panel = np.float64(lows[t, p]), p
            turn = ZERO
            # The likeliest centroid first, then all, as its score may rule others out.
            while panel < p_count:
                q, low = order[t, panel], np.inf
                for spot in range(LANES):
                    value = np.float64(values[panel, q, spot])
                    if value <= edge[t] and (turn or value == nearest):
                        slot = panel * LANES + spot
                        j = np.int64(ids[slot])
                        score = value if in_full else _score(y, np.int64(t), centred, j, norms[j])
                        slots[some], scores[some] = slot, score
                        some += 1
                        values[panel, q, spot] = np.inf
                        if score < best[t]:
                            best[t], who[t] = score, slot
                            up = _at_most(norm[t], score + left * spare[j], beta, eta)
                            closer = _edge(up, low_norm[t], low_beta, low_eta, low_up)
                            edge[t] = closer if closer < edge[t] else edge[t]
                    else:
                        low = value if value < low else low
                lows[t, panel] = low
                panel = p_count
                while turn < p_count and panel == p_count:
                    panel = turn if lows[t, turn] <= edge[t] else p_count
                    turn += 1
            _all_at_least(lows, t, low_norm[t], low_beta, low_eta, fresh)
            down = _lowest(fresh)
            down = below[t] if below[t] < down else down
            for g in range(moved.shape[0]):
                if order[t, g * share] >= 0:
                    bound = fresh[g * share]
                    stop = (g + 1) * share
                    for p in range(g * share + 1, stop if stop < p_count else p_count):
                        bound = fresh[p] if fresh[p] < bound else bound
                    bounds[row, g] = (bound + moved_least[g]) * DOWN32
            who[t] = who[t] if who[t] >= 0 else 0  # of a row out of range
            label = np.int64(ids[who[t]])
            up = _at_most(norm[t], best[t] + left * spare[label], beta, eta)
            for s in range(some):
                if slots[s] != who[t]:  # the centroid that a row left is one of the others now
                    g = slots[s] // LANES // share
                    other = _at_least(norm[t], scores[s], beta, eta)
                    down = other if other < down else down
                    bound = (other + moved_least[g]) * DOWN32
                    bounds[row, g] = bound if bound < bounds[row, g] else bounds[row, g]
            down = down * DOWN32 - TINY32
            if not up * GAP32 < down:
                guess, g, passed = label, who[t] // LANES // share, np.inf
                if deferred.shape[0]:
                    deferred[hard] = which[t]
                    label, up, down = np.int64(labels[row]), upper[row], lower[row]
                    passed = np.float64(_at_least(norm[t], best[t], beta, eta))
                elif exact and norm[t] <= FAR:
                    most, found = np.float64(up) * np.float64(up) * GAP, ZERO
                    for s in range(some):
                        a = norm[t] + scores[s]
                        if (a * (1 - beta) if a > 0 else a) - norm[t] * beta - eta <= most:
                            candidates[found] = ids[slots[s]]
                            squared[found] = squared_distance(
                                x, np.int64(at[which[t]]), unit, wide, candidates[found], room
                            )
                            found += 1
                    label, up, down, passed = decide(candidates, squared, found, most, tie, guess)
                hard += 1
                if label != guess:  # which is one of the others then
                    bound = np.float32((passed + moved[g]) * DOWN)
                    bounds[row, g] = bound if bound < bounds[row, g] else bounds[row, g]
            if changes.shape[0] and label != labels[row]:
                changes[0, changed], changes[1, changed] = row, labels[row]
                changes[2, changed] = label
                changed += 1
            labels[row], upper[row], lower[row] = label, up, down
    return changed, hard, looked, lost


_UNDEFERRED = np.empty(0, np.int64)


class _Pass(NamedTuple):
    """Centroids prepared for a look at rows, see `bounded.Pass`; rows may be decided by their coordinates."""

    matrix: Any
    state: State
    panels: Panels
    groups: Groups
    look_at: Look
    scoring: Scoring
    by_coordinates: tuple[Look, Scoring] | None
    truth: Truth
    worn: tuple[np.ndarray, np.ndarray]
    first: bool
    whole: bool
    at_once: int

    def look(self, numbers: np.ndarray, changes: Changes) -> Counts:
        """Bring the rows of these numbers (m,) up to date."""
        looked, before, whole = numbers.size, 0, self.whole
        if self.by_coordinates is not None:
            look, scoring = self.by_coordinates
            deferred = np.empty(looked + 1, np.int64)
            rows = Rows(self.look_at.z, numbers, numbers)
            left, before, _ = self._search(rows, look, scoring, whole, deferred, changes)
            numbers, whole = numbers[deferred[:left]], False
        x, at = self.matrix.readable(numbers)
        rows = Rows(x, at, numbers)
        hard, more, lost = self._search(
            rows, self.look_at, self.scoring, whole, _UNDEFERRED, changes
        )
        return Counts(hard, before + more, looked, numbers.size, lost)

    def _search(
        self,
        rows: Rows,
        look: Look,
        scoring: Scoring,
        whole: bool,
        deferred: np.ndarray,
        changes: Changes,
    ) -> tuple[int, int, int]:
        room = changes.room(rows.numbers)
        changed, hard, looked, lost = grouped(
            rows, look, scoring, self.panels, self.groups, self.truth, self.state,
            self.first, whole, self.at_once, deferred, room,
        )  # fmt: skip
        changes.add(room, changed)
        return hard, looked, lost


class GroupedSearch(BoundedSearch):
    """Labels of all rows, of which each has a lower bound for every panel, and is compared with those not ruled out.

    Attributes
    ----------
    groups : Groups
        The bounds.
    first_look : FirstLook or None
        What rows are looked at before they are scored, where that pays.
    """

    def __init__(self, frame: Frame, work: Work, *, skips: bool, exact: bool) -> None:
        super().__init__(frame, work, skips=skips, exact=exact)
        self.groups = _groups(np.empty((self.matrix.shape[0], 0), np.float32), np.zeros(0), 1)
        self.first_look: FirstLook | None = None
        self._settles = (
            False  # whether rows are decided by their coordinates, and few are left to be read
        )
        self._at_once = max(ROWS, min(_AT_ONCE, work.room // (self.matrix.shape[1] + 4 * LANES)))
        self._scored = 1.0  # of all pairs of a row and a panel, in the last pass

    def relabel(self, c: np.ndarray) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows changed."""
        first = self.passes == 0
        wide, drift = self.advance(c)
        self._look_first(wide)
        renew = first or (self.skips and self._renews())
        if renew:  # without skipping it does not matter which are near each other
            self.panels = Panels.of(wide) if self.skips else Panels.in_order(c.shape[0])
            self.groups = self._divided()
        else:
            self.groups = self._worn(drift)
        drift, whole = bounded.not_below(drift), renew or not self.skips
        counts, changes = self.sweep(self._prepared(wide, drift, first, whole), self.blocks)
        if counts.again > _POINTLESS * counts.looked:
            self._settles = False
        self._scored = counts.scored / (self.matrix.shape[0] * self.panels.number)
        return changes, self.matrix.shape[0] if first else bounded.moved(changes)

    def _look_first(self, wide: np.ndarray) -> None:
        """Choose how to look at rows first, where it is time to."""
        if not (self.skips and self.narrow):  # float32 cannot tell these centroids apart
            self.first_look = None
        elif self.passes in (0, 1):
            coded = self.first_look is not None
            labels = self.labels if self.passes else None
            plan = looks.plan(self.frame, self.work, wide, labels, coded)
            if plan is None:
                self.first_look = None
            elif plan.q is not None or not coded:
                self.first_look = FirstLook(plan, self.frame, self.work)
                self._settles = plan.settles

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
        return _groups(np.empty((n, columns), np.float32), np.zeros(columns), share)

    def _worn(self, drift: np.ndarray) -> Groups:
        """Return the bounds after their centroids moved by up to `drift` (k,)."""
        slots = np.append(drift, 0.0)[self.panels.ids]
        starts = np.arange(0, slots.size, self.groups.share * LANES)
        moved = (self.groups.moved + np.maximum.reduceat(slots, starts)) * UP + TINY
        return _groups(self.groups.lowers, moved, self.groups.share)

    def _prepared(self, wide: np.ndarray, drift: np.ndarray, first: bool, whole: bool) -> _Pass:
        """Return centroids `wide` (k, d), moved by up to `drift` (k,), prepared."""
        k, d = wide.shape
        centred, errors = self.frame.centre(wide), self.errors(min(d, BLOCK + -(-d // BLOCK)))
        scale, offset = self.frame.affine(self.narrow)
        scoring = Scoring(
            scale, offset, centred.astype(self.dtype), _squared(centred), np.zeros(k),
            errors.beta, errors.eta,
        )  # fmt: skip
        by_coordinates = None
        if self.first_look is None:
            minus_2c, minus_norms = self.panels.coefficients(centred, self.dtype)
            look = looks.in_full(minus_2c, minus_norms, errors, self.dtype)
        else:
            look, few = self.first_look.of(wide, self.panels)
            if self._settles and few is not None:  # as if these were all
                by_coordinates = look._replace(kind=looks.FULL), Scoring(
                    self.dtype(1), np.zeros(few.shape[1], np.float32), few.astype(np.float32),
                    _squared(few), few[:, -1].copy(), look.beta, look.eta,
                )  # fmt: skip
        truth, worn = self.truth(wide, errors), bounded.alone(drift)
        return _Pass(
            self.matrix, self.state, self.panels, self.groups, look, scoring, by_coordinates, truth, worn,
            first, whole, self._at_once,
        )  # fmt: skip


def _groups(lowers: np.ndarray, moved: np.ndarray, share: int) -> Groups:
    """Return bounds, and what they have moved in float32, at most and at least."""
    narrow = moved.astype(np.float32)
    return Groups(
        lowers,
        moved,
        np.nextafter(narrow, np.float32(np.inf)),
        np.maximum(np.nextafter(narrow, np.float32(0)), np.float32(0)),
        share,
    )


def _squared(c: np.ndarray) -> np.ndarray:
    """Return the squared norms (k,) of centroids (k, d)."""
    found: np.ndarray = np.einsum("kd,kd->k", c, c)
    return found
