# mypy: allow-untyped-defs, allow-untyped-calls
"""Sparse rows, compiled: each entry is read once for all centroids."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from anykmeans._array import Matrix, Namespace, Selection
from anykmeans._exact import Bounds, Grid
from anykmeans._sparse import SparseRows, coefficients
from anykmeans.kernels.numba import (
    cost,
    costs,
    means,
    reached,
    segment_sum,
    squared_distances,
    total,
)
from anykmeans.kernels.numba.simd import LANES as PANEL
from anykmeans.kernels.numba.simd import combine
from anykmeans.kernels.numba.steps import jit
from anykmeans.kernels.numba.sums import split_row
from anykmeans.kernels.sparse import cpu
from anykmeans.kernels.sparse.cpu import gains

__all__ = [
    "accumulate",
    "cost",
    "costs",
    "gains",
    "interval",
    "magnitudes",
    "means",
    "moves",
    "nearest",
    "own_distances",
    "pairwise",
    "reached",
    "saved",
    "seeds",
    "segment_sum",
    "settle",
    "sieve",
    "squared_distances",
    "total",
]

LIBRARY, LANES = "numpy", PANEL
SHORT = 64  # sums for each entry: so many are faster added up all than found one by one

_ONE = np.ones(1)


def nearest(
    xp: Namespace, y: SparseRows, minus_2c: np.ndarray, norms: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return labels (m,), best and second best score (m,) of rows `y` (m, d)."""
    m = y.shape[0]
    labels = np.empty(m, np.int32)
    best, second = np.empty((2, m), norms.dtype)
    _nearest(y.starts, y.features, y.values, minus_2c, norms, labels, best, second)
    return labels, best, second


@jit
def _nearest(starts, features, values, minus_2c, norms, labels, best, second):
    scores = np.empty_like(norms)
    for row in range(labels.shape[0]):
        first, stop = starts[row], starts[row + 1]
        for j in range(norms.shape[0]):
            scores[j] = norms[j]
        for p in range(norms.shape[0] // PANEL):
            combine(minus_2c, features, values, first, stop, p, scores)
        low, after, label = scores[0], scores[PANEL - 1], 0
        after = low  # of that dtype
        for j in range(1, norms.shape[0]):
            if scores[j] < low:
                low, after, label = scores[j], low, j
            elif scores[j] < after or j == 1:
                after = scores[j]
        labels[row], best[row], second[row] = label, low, after


def interval(
    xp: Namespace, y: SparseRows, best: np.ndarray, second: np.ndarray, bounds: Bounds
) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 distances (m,): at most to the nearest, at least to the second nearest centroid."""
    norm = squared_norms(y)
    return bounds.at_most(np, norm, best), bounds.at_least(np, norm, second)


def squared_norms(y: SparseRows) -> np.ndarray:
    """Return the squared norms (m,), float64."""
    found = np.empty(y.shape[0])
    _norms(y.starts, y.values, found)
    return found


@jit
def _norms(starts, values, found):
    for row in range(found.shape[0]):
        total = 0.0
        for entry in range(starts[row], starts[row + 1]):
            value = np.float64(values[entry])
            total += value * value
        found[row] = total


def magnitudes(matrix: Matrix, select: slice, w: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Return the largest |x| (d,), and the largest and smallest nonzero |w x|, (d,) or with w (d + 1,)."""
    rows, d = matrix.tile(select), matrix.shape[1]
    high, largest, smallest = np.zeros(d), np.zeros(d + 1), np.full(d + 1, np.inf)
    _magnitudes(rows.starts, rows.features, rows.values, _weights(w), high, largest, smallest)
    if w is None:
        return high, largest[:d], smallest[:d]
    return high, largest, smallest


@jit
def _magnitudes(starts, features, values, w, high, largest, smallest):
    d = high.shape[0]
    for row in range(starts.shape[0] - 1):
        weight = w[row] if w.shape[0] > 1 else w[0]
        largest[d] = weight if weight > largest[d] else largest[d]
        smallest[d] = weight if 0.0 < weight < smallest[d] else smallest[d]
        for entry in range(starts[row], starts[row + 1]):
            f, value = features[entry], abs(np.float64(values[entry]))
            high[f] = value if value > high[f] or value != value else high[f]
            value *= weight
            largest[f] = value if value > largest[f] or value != value else largest[f]
            smallest[f] = value if 0.0 < value < smallest[f] else smallest[f]


def accumulate(
    matrix: Matrix,
    select: Selection,
    w: np.ndarray | None,
    new: np.ndarray,
    old: np.ndarray | None,
    grid: Grid,
    k: int,
) -> np.ndarray:
    """Return the whole-number sums (k, columns) of the selected rows by label `new`, less by `old`."""
    rows, found = matrix.tile(select), np.zeros((k, grid.folds * (matrix.shape[1] + 1)))
    none = new[:0] if old is None else old
    _accumulate(
        rows.starts, rows.features, rows.values, rows.longest, _weights(w), new, none,
        grid.scale, grid.step, grid.folds, found,
    )  # fmt: skip
    return found


@jit
def _accumulate(starts, features, values, longest, w, new, old, scale, step, folds, sums):
    d = scale.shape[0] - 1
    rest, error, part = np.empty(longest + 1), np.empty(longest + 1), np.empty(longest + 1)
    weighted = w.shape[0] > 1 or w[0] != 1.0
    for row in range(new.shape[0]):
        first = starts[row]
        count = starts[row + 1] - first
        for i in range(count):
            rest[i] = np.float64(values[first + i]) * scale[features[first + i]]
        rest[count] = scale[d]  # the row's weight is one entry more
        weight = w[row] if w.shape[0] > 1 else w[0]
        to = new[row]
        for fold in range(folds):
            column = fold * (d + 1)
            split_row(rest, error, part, count + 1, weight, weighted, fold, step)
            for i in range(count):
                sums[to, column + features[first + i]] += part[i]
            sums[to, column + d] += part[count]
            if old.shape[0]:
                since = old[row]
                for i in range(count):
                    sums[since, column + features[first + i]] -= part[i]
                sums[since, column + d] -= part[count]


def own_distances(
    matrix: Matrix,
    select: Selection,
    unit: float,
    wide: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
) -> None:
    """Write the squared `distances` (m,) of rows to their own centroids of `wide` (k, d)."""
    _distances(matrix.tile(select), unit, wide, labels, distances)


def _distances(
    y: SparseRows, unit: float, wide: np.ndarray, labels: np.ndarray, distances: np.ndarray
) -> None:
    order = np.argsort(
        labels, kind="stable"
    )  # what centroids have of their own is made once for each
    given = y.starts, y.features, y.values, order, unit, wide, labels
    if y.halving.complete:
        _own(*given, distances)
    else:
        _own_of_some(*given, y.halving.parent, *y.halving.children, distances)


@jit
def _own(starts, features, values, order, unit, wide, labels, distances):
    """Write the squared distances (m,), rows in the `order` of their labels: `SparseRows.squared_distances`, bit for bit.

    Sums of a level stand side by side, sum i that of what is at i and half a level on, in the level below. A row writes its
    own where it has entries, up to a level that is short enough to be added up as it is; then the centroid's are put back.
    """
    d, size, label = wide.shape[1], 1, -1
    while size < d:
        size *= 2
    own, tree, top = np.zeros(2 * size), np.empty(2 * size), np.empty(size)
    for row in order:
        first, last = starts[row], starts[row + 1]
        if labels[row] != label:
            label = labels[row]
            for f in range(d):
                own[f] = wide[label, f] * wide[label, f]
            begin, width = 0, size
            while width > 1:
                half = width // 2
                low, high = own[begin : begin + half], own[begin + half : begin + width]
                both = own[begin + width : begin + width + half]
                for i in range(half):
                    both[i] = low[i] + high[i]
                begin, width = begin + width, half
            tree[:] = own
        for entry in range(first, last):
            f = features[entry]
            step = values[entry] * unit - wide[label, f]
            tree[f] = step * step
        begin, width = 0, size
        while width > SHORT * (last - first) and width > 1:
            half = width // 2
            for entry in range(first, last):
                i = features[entry] & (half - 1)
                tree[begin + width + i] = tree[begin + i] + tree[begin + half + i]
            begin, width = begin + width, half
        top[0], half = tree[begin], width // 2
        low, high = tree[begin : begin + half], tree[begin + half : begin + width]
        for i in range(half):
            top[i] = low[i] + high[i]
        while half > 1:
            half //= 2
            low, high = top[:half], top[half : 2 * half]
            for i in range(half):
                low[i] += high[i]
        distances[row] = top[0]
        stop, begin, width = begin, 0, size
        while begin <= stop and width:
            for entry in range(first, last):
                i = begin + (features[entry] & (width - 1))
                tree[i] = own[i]
            begin, width = begin + width, width // 2


@jit
def _own_of_some(
    starts, features, values, order, unit, wide, labels, parent, left, right, distances
):
    """Do what `_own` does, of columns that are some of the features, in the tree of their `Halving`."""
    m, label = wide.shape[1], -1
    own, tree = np.empty(2 * m - 1), np.empty(2 * m - 1)
    for row in order:
        first, last = starts[row], starts[row + 1]
        if labels[row] != label:
            label = labels[row]
            for f in range(m):
                own[f] = wide[label, f] * wide[label, f]
            for i in range(m - 1):
                own[m + i] = own[left[i]] + own[right[i]]
            tree[:] = own
        # Sums so near the root that most are above an entry are made anew, all of them.
        top = own.shape[0] - 2 * (last - first)
        top = top if top > m else m
        for entry in range(first, last):
            f = features[entry]
            step = values[entry] * unit - wide[label, f]
            tree[f] = step * step
            node = parent[f]
            while node < top:
                tree[node] = tree[left[node - m]] + tree[right[node - m]]
                node = parent[node]
        for node in range(top, own.shape[0]):
            tree[node] = tree[left[node - m]] + tree[right[node - m]]
        distances[row] = tree[own.shape[0] - 1]
        for entry in range(first, last):
            node = np.int32(features[entry])
            while node < top:
                tree[node] = own[node]
                node = parent[node]
        for node in range(top, own.shape[0]):
            tree[node] = own[node]


def moves(matrix: Matrix, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared distances (k,), by R5, of centroids `a` to centroids `b` (k, columns)."""
    halving = matrix.data.halving
    if halving.complete:
        return np.asarray(squared_distances(np, a, b))
    found = np.empty(a.shape[0])
    _moves(a, b, *halving.children, found)
    return found


@jit
def _moves(a, b, left, right, found):
    m = a.shape[1]
    own = np.empty(2 * m - 1)
    for j in range(a.shape[0]):
        for f in range(m):
            step = a[j, f] - b[j, f]
            own[f] = step * step
        for i in range(m - 1):
            own[m + i] = own[left[i]] + own[right[i]]
        found[j] = own[2 * m - 2]


class Sieve(cpu.Sieve):
    """What candidates are prepared to, as compiled code takes it."""

    def rows(self, y: SparseRows) -> np.ndarray:
        """Return what is kept of rows: their squared norms (m,)."""
        return squared_norms(y)

    def against(self, c: np.ndarray) -> cpu.Estimate:
        """Return what estimates the squared distances (m, t) of rows, with their norms (m,), to candidates `c` (t, columns)."""
        minus_2c, norms = coefficients(c, np.float64, PANEL)

        def estimate(y: SparseRows, norm: np.ndarray) -> np.ndarray:
            found = np.empty((norm.size, c.shape[0]))
            _estimates(y.starts, y.features, y.values, minus_2c, norms, norm, found)
            return found

        return estimate


def sieve(frame: Any, work: Any, first: np.ndarray, k: int) -> Sieve:
    """Return what candidates are prepared to."""
    return Sieve()


@jit
def _estimates(starts, features, values, minus_2c, norms, norm, found):
    """Write estimates (m, t) of the squared distances of rows to t centroids."""
    t = found.shape[1]
    estimate = np.empty(norms.shape[0])
    for row in range(norm.shape[0]):
        for j in range(norms.shape[0]):
            estimate[j] = norms[j] + norm[row]
        for p in range(norms.shape[0] // PANEL):
            combine(minus_2c, features, values, starts[row], starts[row + 1], p, estimate)
        for j in range(t):
            found[row, j] = estimate[j]


def seeds(
    frame: Any, work: Any, w: np.ndarray | None, first: int, draws: np.ndarray
) -> np.ndarray | None:
    """Return the rows that greedy k-means++ picks with `draws` (k - 1, t), or None where estimates cannot tell.

    The picks are those of exact distances: an estimate errs by no more than `Bounds` says, and if a draw comes so near
    the border of two rows' costs, or what two candidates save is so nearly equal, that this may decide, the exact steps
    have to.
    """
    (n, columns), t = frame.matrix.data.shape, draws.shape[1]
    if 8 * n * (t + 4) > work.max_bytes // 2:
        return None
    y = frame.tile(slice(0, n), np.float64 if frame.exponent else None)
    bounds = Bounds.of(columns, 2.0**-53, y.longest)
    beta = 1.1 * bounds.beta + 2.0**-46  # and what rounding takes from the exact distance
    norm, weights = squared_norms(y), np.ones(n) if w is None else w
    closest, estimates = np.full(n, np.inf), np.empty((n, t))
    picks, candidates = np.empty(draws.shape[0] + 1, np.int64), [first]
    tiles = work.tiles(step=-(-n // work.threads))
    doubt = 0.0
    for i in range(picks.size):
        if i:
            costs = weights * closest
            cumulative = costs.cumsum()
            # Exact costs are rounded to whole numbers of a grid, and the sum here is rounded, too.
            doubt = 2 * beta * float(weights @ (closest + norm)) + n * 2.0**22 * bounds.eta
            doubt += n * n * 2.0**-49 * float(costs.max()) + n * 2.0**-51 * float(cumulative[-1])
            borders = draws[i - 1] * cumulative[-1]
            rows = np.minimum(cumulative.searchsorted(borders), n - 1)
            before = np.where(rows > 0, cumulative[rows - 1], -np.inf)
            if not (np.minimum(borders - before, cumulative[rows] - borders) > doubt).all():
                return None
            candidates = list(dict.fromkeys(rows.tolist()))
        c = frame.wide(np.asarray(candidates))
        estimate, found = Sieve().against(c), estimates[:, : len(candidates)]

        def fill(tile: slice, estimate: Any = estimate, found: np.ndarray = found) -> None:
            found[tile] = estimate(y[tile], norm[tile])

        work.map(fill, tiles)
        best = 0
        if i:
            less = np.minimum(np.maximum(closest[:, None] - found, 0.0), closest[:, None])
            saved = weights @ less
            rivals = np.flatnonzero(saved >= saved.max() - 2 * doubt)
            best = int(rivals[0])
            if not (c[rivals] == c[best]).all():
                return None
        picks[i] = candidates[best]
        closest = np.minimum(closest, np.maximum(found[:, best], 0.0))
    return picks


def saved(
    xp: Namespace,
    y: SparseRows,
    c: np.ndarray,
    closest: np.ndarray,
    w: np.ndarray | None,
    scale: float,
    won: np.ndarray,
    j: int,
) -> float:
    """Return exactly what candidate `j`, at `c` (1, d), saves."""
    at, found = _won(y, c, won, j)
    before = closest[at]
    weight = 1.0 if w is None else w[at]
    less = np.rint(weight * before * scale) - np.rint(weight * np.minimum(found, before) * scale)
    return float(less.sum())


def settle(
    xp: Namespace,
    y: SparseRows,
    c: np.ndarray,
    closest: np.ndarray,
    norm: np.ndarray,
    pick: int,
    won: np.ndarray | None,
    j: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return `closest` (m,) and what is kept of rows with candidate `j`, at `c` (1, d), counted in."""
    at, found = _won(y, c, won, j)
    closest[at] = np.minimum(closest[at], found)
    return closest, norm


def _won(
    y: SparseRows, c: np.ndarray, won: np.ndarray | None, j: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows that candidate `j`, at `c` (1, d), may be nearer to, and their squared distances."""
    at = np.arange(y.shape[0]) if won is None else np.flatnonzero(won & (1 << j % 8))
    found = np.empty(at.size)
    _distances(y if won is None else y[at], 1.0, c, np.zeros(at.size, np.int32), found)
    return at, found


def pairwise(frame: Any, wide: np.ndarray, room: int) -> Callable[[slice, np.ndarray], int]:
    """Return what writes the distances (m, k) of selected rows to all centroids of `wide` (k, columns)."""
    k, factor = wide.shape[0], 2.0**frame.exponent
    minus_2c, norms = coefficients(wide, np.float64, PANEL)

    def write(select: slice, found: np.ndarray) -> int:
        y = frame.tile(select, np.float64 if frame.exponent else None)
        norm, near = squared_norms(y), np.empty(64 * k, np.int64)
        begin = 0
        while begin < norm.size:  # until there is no more room for near pairs
            begin, count = _pairwise(
                y.starts, y.features, y.values, minus_2c, norms, norm, factor, begin, near, found
            )
            rows, labels = np.divmod(near[:count], k)
            exact = np.empty(count)
            _distances(y[rows], 1.0, wide, labels, exact)
            found[rows, labels] = np.sqrt(exact) * factor
        return 0

    return write


@jit
def _pairwise(starts, features, values, minus_2c, norms, norm, factor, begin, near, found):
    """Write distances (m, k), times `factor`, of rows from `begin`; list in `near` pairs too close for a product.

    Returns the row it stopped before, and how many pairs.
    """
    k, count = found.shape[1], 0
    squared = np.empty(norms.shape[0])
    for row in range(begin, norm.shape[0]):
        if count + k > near.shape[0]:
            return row, count
        for j in range(norms.shape[0]):
            squared[j] = norms[j] + norm[row]
        for p in range(norms.shape[0] // PANEL):
            combine(minus_2c, features, values, starts[row], starts[row + 1], p, squared)
        for j in range(k):
            near[count] = row * k + j
            count += squared[j] < (norm[row] + norms[j]) * 1e-6
            found[row, j] = math.sqrt(squared[j] if squared[j] > 0.0 else 0.0) * factor
    return norm.shape[0], count


def _weights(w: np.ndarray | None) -> np.ndarray:
    return _ONE if w is None else np.ascontiguousarray(w)
