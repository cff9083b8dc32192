# mypy: allow-untyped-defs, allow-untyped-calls
"""The nearest centroid of every sparse row, certified, compiled, and passes of the loop that need no decision.

A row's scores are its entries' combinations of rows of the transposed centroids. As rows are short, what else a pass
does counts as much: centroids that lose or win no row stay as they are, and all that is made of the others, from
their sums to the coefficients of the next pass, is made while a few of their features are in the cache.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from anykmeans._bounds import DOWN, GAP, TINY, UP, Bounds
from anykmeans._distance import halving_sum
from anykmeans._grid import Grid
from anykmeans._libraries import np_compat
from anykmeans._search import Change, Search
from anykmeans._spherical import DOUBLE, LARGEST, LEAST, MOST, SINGLE
from anykmeans.kernels.numba.simd import EIGHT, combine
from anykmeans.kernels.numba.steps import any_order, decide, inline, jit
from anykmeans.kernels.numba.sums import total
from anykmeans.kernels.numba.whole import meaning
from anykmeans.kernels.sparse.numba import sums
from anykmeans.kernels.sparse.numba.sums import TOGETHER

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work
    from anykmeans.sources.descent import InMemory
    from anykmeans.sources.rows import Rows

_CACHE = 1 << 18  # bytes of coefficients that stay near whatever their dtype


class SparseSearch(Search):
    """One lower bound a row, and passes made where nothing has to be decided.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
        Of the last centroids.
    """

    turns = True

    def __init__(self, frame: Frame, work: Work, k: int, *, skip: bool, exact: bool) -> None:
        self.frame, self.work, self.matrix = frame, work, frame.matrix
        n, columns = self.matrix.shape
        self._skip, self._exact, self._terms = skip, exact, self.matrix.terms
        # Coefficients are read at random: in float32 where they would not stay in the cache.
        slots = -(-k // EIGHT) * EIGHT
        self._narrow = 8 * columns * slots > _CACHE and self._errors(2.0**-24).sound
        self._table, self._norms = np.empty((0, slots)), np.full(slots, np.inf)
        self.labels, self._old = np.zeros((2, n), np.int32)
        self._upper, self._lower = np.empty((2, n), np.float32)
        self._rows = np.empty(n, np.int32 if n < 1 << 31 else np.int64)
        self._fresh, self._whole = True, False
        self._wide, self._drift = np.empty((0, 0)), np.zeros(k)
        # Where the last passes ended, for which all is prepared.
        self._reached: np.ndarray | None = None
        copied = frame.exponent or not self.matrix.direct
        most = max(1, work.room // work.d) if copied else n
        self._blocks = work.tiles(step=min(most, -(-n // work.threads)))

    def _errors(self, unit: float) -> Bounds:
        return Bounds.of(self.matrix.features, unit, self._terms)

    def relabel(self, c: np.ndarray) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows changed."""
        if c is not self._reached:
            wide = self.frame.widen(c)
            if not self._fresh:
                moved = np.empty(c.shape[0])
                sums.moves(wide, self._wide, *sums.children(self.matrix.data.halving), moved)
                self._drift = np.sqrt(moved)
            self._wide = wide
            self._prepare()
            self._whole = self._is_whole()
        first = self._fresh
        rows, old = self._label()
        return [(rows, old, self.labels[rows])], self.labels.size if first else rows.size

    def steps(
        self, run: InMemory, c: np.ndarray, most: int, tol: float, empty: str
    ) -> tuple[np.ndarray, int, float]:
        """Return the centroids after up to `most` passes from `c`, how many those were, and the last squared move."""
        rows = run.rows
        w = rows.relative_weight(rows.every)
        c, done, moved = self._passes(c, most, tol, w, rows.grid, keep=empty == "keep")
        run.forget()
        return (c, done, moved) if done else super().steps(run, c, most, tol, empty)

    def _passes(
        self, c: np.ndarray, most: int, tol: float, w: np.ndarray | None, grid: Grid, *, keep: bool
    ) -> tuple[np.ndarray, int, float]:
        """Return what `steps` does; stop before a pass that would leave a cluster without weight.

        Unless to `keep` its centroid is what to do then.
        """
        (k, columns), unit, single = c.shape, self.frame.unit, c.dtype == np.float32
        to = _turn if self.matrix.spherical else _move
        self.relabel(c)
        wide = self._wide
        state = wide if unit == 1.0 else c.astype(np.float64)
        whole, moved = np.zeros((k, grid.folds * (columns + 1))), np.empty(k)
        rows, old = np.arange(self.labels.size), self.labels[:0]
        done, shift = 0, np.nan
        while True:
            self._add(whole, grid, w, rows, old)
            last = np.ascontiguousarray(whole.reshape(k, grid.folds, -1)[:, :, -1])
            mass = total(last, grid.scale[-1:], grid.step, grid.folds)[:, 0]
            if not (keep or mass.all()):
                break
            touched = np.full(k, done == 0)
            touched[old] = touched[self.labels[rows]] = True
            clusters = np.flatnonzero(touched & (mass != 0))
            moved[:] = 0.0
            move = functools.partial(
                to, whole, grid.scale, grid.step, grid.folds, mass, single, unit, state, wide,
                self._norms, moved, *sums.children(self.matrix.data.halving),
            )  # fmt: skip
            parts = np.array_split(clusters, sums.threads(self.work, clusters.size * columns))
            self.work.map(move, parts)
            self._fill(clusters)
            self._drift = np.sqrt(moved)
            shift, done = float(halving_sum(np_compat, moved[None, :])[0]), done + 1
            if shift <= tol or done == most:
                break
            rows, old = self._label()
        self._reached = state.astype(c.dtype)
        return self._reached, done, shift

    def distances(self, rows: Rows, frame: Frame, c: np.ndarray) -> np.ndarray:
        """Return the squared distances (n,), by R5 in the frame, of rows to the centroids of their labels."""
        found = np.empty(self.labels.size)
        for tile in self.work.tiles(step=self.work.readable(self.matrix)):
            x, at = self.matrix.readable(tile)
            labels = self.labels[tile]
            write = functools.partial(
                sums.write_distances, x, at, self.frame.unit, self._wide, labels, found[tile]
            )
            sums.cluster_by_cluster(write, self.work, labels, labels[:0], self._drift.size)
        return found

    def _add(
        self, whole: np.ndarray, grid: Grid, w: np.ndarray | None, rows: np.ndarray, old: np.ndarray
    ) -> None:
        """Add `rows` to the sums of their clusters, and take them from the `old` ones, if any."""
        for tile in self.work.tiles(0, rows.size, self.work.readable(self.matrix)):
            x, at = self.matrix.readable(rows[tile])
            weights = np.ones(1) if w is None else w[rows[tile]]
            new, left = self.labels[rows[tile]], old[tile]
            add = functools.partial(
                sums.accumulate, x.begins, x.ends, x.features, x.values, at, weights, new, left,
                grid.scale, grid.step, grid.folds, whole,
            )  # fmt: skip
            sums.cluster_by_cluster(add, self.work, new, left, whole.shape[0])

    def _prepare(self) -> None:
        """Make what rows are scored with, of all centroids."""
        columns, slots, k = self.matrix.shape[1], self._norms.size, self._drift.size
        dtype, wide = np.float32 if self._narrow else np.float64, self._wide
        if self._table.shape[0] != columns or self._table.dtype != dtype:
            self._table = np.zeros((columns, slots), dtype)
        self._norms[:k] = np.einsum("kd,kd->k", wide, wide)
        self._fill(np.arange(k))

    def _is_whole(self) -> bool:
        """Return whether all numbers are whole, and so small that scores, and distances by R5, have no error."""
        most = 2.0**24 if self._narrow else 2.0**40
        if self.frame.exponent or 4 * self.matrix.shape[1] * self.frame.largest**2 >= most:
            return False
        return bool(integral(self._wide)) and self.matrix.integral

    def _fill(self, clusters: np.ndarray) -> None:
        """Make the coefficients of some clusters' centroids."""
        columns = self.matrix.shape[1]
        step = -(-columns // sums.threads(self.work, clusters.size * columns))
        self.work.map(
            lambda part: _fill(self._wide, clusters, self._table, part.start, part.stop),
            self.work.tiles(0, columns, step),
        )

    def _label(self) -> tuple[np.ndarray, np.ndarray]:
        """Give every row its nearest centroid; return the rows whose labels changed, and what these were."""
        drift = self._drift * (UP * UP) + TINY
        second, most = np.partition(np.append(drift, 0.0), -2)[-2:]
        others = np.where(drift == most, second, most)
        errors = self._errors(2.0**-24 if self._narrow else 2.0**-53)
        if self._whole:
            errors = Bounds(0.0, 0.0, errors.tie)
        hard = self.work.map(lambda block: self._block(block, drift, others, errors), self._blocks)
        self._drift, self._fresh, self._whole = np.zeros(drift.size), False, False
        if self._narrow and sum(count for _, count in hard) > self.labels.size // 5:
            self._narrow = False  # float32 cannot tell these centroids apart: score in float64
            self._prepare()
        changed = [
            slice(block.start, block.start + count)
            for block, (count, _) in zip(self._blocks, hard, strict=True)
        ]
        rows, old = (np.concatenate([a[each] for each in changed]) for a in (self._rows, self._old))
        return rows, old

    def _block(
        self, block: slice, drift: np.ndarray, others: np.ndarray, errors: Bounds
    ) -> tuple[int, int]:
        """Bring a block up to date; return how many rows changed, and how many scores did not prove."""
        y = self.frame.tile(block, np.float64 if self.frame.exponent else None)
        scored = (
            y.begins, y.ends, y.features, y.values, self._table, self._norms, errors.beta, errors.eta,
        )  # fmt: skip
        state = self.labels[block], self._upper[block], self._lower[block]
        changed, k = (self._rows[block], self._old[block]), drift.size
        count, hard = _relabel(
            *scored, drift, others, self._fresh or not self._skip,
            self._exact and not self._whole, *state, *changed,
        )  # fmt: skip
        if hard:
            doubtful = self._rows[block][-hard:].copy()
            for tile in self.work.tiles(0, hard, max(1, self.work.tile // k)):
                at = doubtful[tile]
                who, candidates = np.empty((2, at.size * k), np.int32)
                most, stops = np.empty(at.size), np.empty(at.size, np.int64)
                _candidates(*scored, errors.tie, at, k, who, candidates, most, stops)
                pairs = slice(0, stops[-1])
                squared = sums.own_distances(y, who[pairs], 1.0, self._wide, candidates[pairs])
                count = _decide(
                    at, candidates, squared, most, stops, errors.tie, count, *state, *changed
                )
        found = self._rows[block.start : block.start + count]
        np.add(found, block.start, out=found)
        return count, hard


@inline
def _at_most(norm, score, beta, eta):
    """Return what a squared distance is at most, see `Bounds.upper`."""
    estimate = norm + score
    return (estimate * (1 + beta) if estimate > 0.0 else estimate) + norm * beta + eta


@inline
def _at_least(norm, score, beta, eta):
    """Return what a squared distance is at least, see `Bounds.lower`."""
    estimate = norm + score
    return (estimate * (1 - beta) if estimate > 0.0 else estimate) - norm * beta - eta


@inline
def _root(squared):
    return np.sqrt(squared) if squared > 0.0 else 0.0


@any_order
def _squared_norm(values, first, stop):
    norm = 0.0
    for entry in range(first, stop):
        norm += np.float64(values[entry]) * np.float64(values[entry])
    return norm


@jit
def _relabel(
    begins, ends, features, values, table, norms, beta, eta, drift, others, fresh, exact,
    labels, upper, lower, rows, old,
):  # fmt: skip
    """Bring rows up to date, all if `fresh`, else those whose label worn bounds do not prove.

    Writes to `rows` and `old` which rows changed and what their labels were, to the end of `rows` those whose scores do
    not prove a label, and returns how many each are.
    """
    m, k, changed, hard = labels.shape[0], drift.shape[0], 0, 0
    scores = np.empty(norms.shape[0] + 1, table.dtype)
    start = norms.astype(table.dtype)
    scores[norms.shape[0]] = np.inf
    for row in range(m):
        label = labels[row]
        if not fresh:
            above = np.float32((upper[row] + drift[label]) * UP)
            below = np.float32((lower[row] - others[label]) * DOWN)
            upper[row], lower[row] = above, below
            if above * GAP < below:
                continue
        begin, stop = begins[row], ends[row]
        combine(table, features, values, begin, stop, start, scores)
        low, after, nearest = scores[0], scores[norms.shape[0]], 0
        for j in range(1, k):  # no branch: it would be a guess
            score = scores[j]
            worse = score if score > low else low
            after = worse if worse < after else after
            nearest = j if score < low else nearest
            low = score if score < low else low
        norm = _squared_norm(values, begin, stop)
        above = np.float32(_root(_at_most(norm, low, beta, eta)) * UP + TINY)
        below = np.float32(_root(_at_least(norm, after, beta, eta)) * DOWN - TINY)
        if exact and not above * GAP < below:
            hard += 1
            rows[m - hard] = row
            continue
        upper[row], lower[row], labels[row] = above, below, nearest
        rows[changed], old[changed] = row, label
        changed += nearest != label
    return changed, hard


@jit
def _candidates(
    begins, ends, features, values, table, norms, beta, eta, tie, at, k, who, candidates, most,
    stops,
):  # fmt: skip
    """List the pairs of the rows `at` (m,), in `who`, and the `candidates` that may be the nearest, row i's up to ``stops[i]``.

    All others are at least ``most[i]`` away, squared.
    """
    scores, start, count = np.empty(norms.shape[0], table.dtype), norms.astype(table.dtype), 0
    for i in range(at.shape[0]):
        first, stop = begins[at[i]], ends[at[i]]
        combine(table, features, values, first, stop, start, scores)
        norm, least = _squared_norm(values, first, stop), scores[0]
        for j in range(k):
            least = scores[j] if scores[j] < least else least
        most[i] = _at_most(norm, least, beta, eta) * (1 + 3 * tie)
        for j in range(k):
            if _at_least(norm, scores[j], beta, eta) <= most[i]:
                who[count], candidates[count] = at[i], j
                count += 1
        stops[i] = count


@jit
def _decide(at, candidates, squared, most, stops, tie, changed, labels, upper, lower, rows, old):
    """Give the rows `at` (m,) the nearest of their candidates, by exact distances; return how many rows changed by now."""
    first = 0
    for i in range(at.shape[0]):
        row, stop = at[i], stops[i]
        label = labels[row]
        nearest, upper[row], lower[row], _ = decide(
            candidates[first:stop], squared[first:stop], stop - first, most[i], tie, label
        )
        labels[row] = nearest
        if nearest != label:
            rows[changed], old[changed] = row, label
            changed += 1
        first = stop
    return changed


@jit
def _move(
    whole, scale, step, folds, mass, single, unit, c, wide, norms, moves, left, right, clusters
):
    """Move the centroids of some `clusters` to their means.

    Written are `c` (k, columns), as float32 holds it if `single`; `wide`, the same in the frame, which may be the same
    array, and the squared `norms` there; and the squared `moves` by R5, of the tree that `left` and `right` describe.
    """
    columns = wide.shape[1]
    squares, found = np.empty(columns), np.empty(TOGETHER)
    room = np.empty(2 * columns if left.shape[0] else 0)
    for j in clusters:
        weight, norm = mass[j], 0.0
        for begin in range(0, columns, TOGETHER):
            stop = begin + TOGETHER if begin + TOGETHER < columns else columns
            meaning(whole, j, scale, begin, stop, step, folds, found, 0)
            mine, there, square = c[j, begin:stop], wide[j, begin:stop], squares[begin:stop]
            for i in range(stop - begin):
                mean = found[i] / weight
                found[i] = np.float64(np.float32(mean)) if single else mean
            for i in range(stop - begin):
                moved = found[i] * unit - there[i]
                square[i] = moved * moved
            for i in range(stop - begin):
                mine[i] = found[i]
            for i in range(stop - begin):
                there[i] = found[i] * unit
            norm += _sum_of_squares(there)
        norms[j] = norm
        moves[j] = sums.total(squares, left, right, room)


@jit
def _turn(
    whole, scale, step, folds, mass, single, unit, c, wide, norms, moves, left, right, clusters
):
    """Do what `_move` does, to means that are brought to length 1 as `Lengths` does it: one that is zero does not move its centroid."""
    columns = wide.shape[1]
    mean, squares, found = np.empty(columns), np.empty(columns), np.empty(TOGETHER)
    room = np.empty(2 * columns if left.shape[0] else 0)
    for j in clusters:
        weight, largest = mass[j], 0.0
        for begin in range(0, columns, TOGETHER):
            stop = begin + TOGETHER if begin + TOGETHER < columns else columns
            meaning(whole, j, scale, begin, stop, step, folds, found, 0)
            for i in range(stop - begin):
                value = found[i] / weight
                mean[begin + i] = value
                squares[begin + i] = value * value
        squared = sums.total(squares, left, right, room)
        near = abs(squared - 1.0) <= (SINGLE if single else DOUBLE)
        if not LEAST < squared < MOST:
            for f in range(columns):
                largest = abs(mean[f]) if abs(mean[f]) > largest else largest
            if largest == 0.0:
                continue
            exponent = min(max(math.frexp(largest)[1], -LARGEST), LARGEST)
            power = math.ldexp(1.0, -exponent)
            for f in range(columns):
                mean[f] *= power
                squares[f] = mean[f] * mean[f]
            squared = sums.total(squares, left, right, room)
        length = 1.0 if near else np.sqrt(squared)
        for f in range(columns):
            value = mean[f] / length
            value = np.float64(np.float32(value)) if single else value
            moved = value * unit - wide[j, f]
            squares[f] = moved * moved
            c[j, f] = value
            wide[j, f] = value * unit
        norms[j] = _sum_of_squares(wide[j])
        moves[j] = sums.total(squares, left, right, room)


@any_order
def _sum_of_squares(a):
    total = 0.0
    for i in range(a.shape[0]):
        total += a[i] * a[i]
    return total


@jit
def _fill(wide, clusters, table, first, stop):
    """Write ``-2 wide[j]`` to column j of the `table` for some `clusters`, features from `first` to `stop`."""
    for begin in range(first, stop, EIGHT):
        end = begin + EIGHT if begin + EIGHT < stop else stop
        for j in clusters:
            for f in range(begin, end):
                table[f, j] = -2.0 * wide[j, f]


@jit
def integral(a):
    """Return whether all numbers of `a` (k, d) are whole."""
    for j in range(a.shape[0]):
        for f in range(a.shape[1]):
            if np.rint(a[j, f]) != a[j, f]:
                return False
    return True
