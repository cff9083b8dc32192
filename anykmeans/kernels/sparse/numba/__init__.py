# mypy: allow-untyped-defs, allow-untyped-calls
"""Sparse rows, compiled: each entry is read once for all centroids.

`sweep` searches and makes passes, `products` are distances that are not exact, `sums` all that is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from anykmeans._bounds import Bounds
from anykmeans._grid import Grid
from anykmeans._libraries import Namespace, Selection
from anykmeans._matrix import Matrix
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
from anykmeans.kernels.numba.simd import EIGHT
from anykmeans.kernels.sparse import cpu
from anykmeans.kernels.sparse.cpu import gains
from anykmeans.kernels.sparse.numba import products, sums, sweep

__all__ = [
    "accumulate",
    "by_label",
    "cost",
    "costs",
    "gains",
    "magnitudes",
    "means",
    "moves",
    "own_distances",
    "pairwise",
    "reached",
    "saved",
    "search",
    "seeds",
    "segment_sum",
    "settle",
    "sieve",
    "squared_distances",
    "total",
]

LIBRARY = "numpy"

_ONE = np.ones(1)


def search(frame: Any, work: Any, k: int, *, bounds: str, exact: bool) -> sweep.Search:
    """Return the search of all rows."""
    return sweep.Search(frame, work, k, bounds=bounds, exact=exact)


def squared_norms(y: SparseRows) -> np.ndarray:
    """Return the squared norms (m,), float64."""
    found = np.empty(y.shape[0])
    sums.norms(y.begins, y.ends, y.values, found)
    return found


def magnitudes(matrix: Matrix, select: slice, w: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Return the largest |x| (d,), and the largest and smallest nonzero |w x|, (d,) or with w (d + 1,)."""
    rows, d = matrix.tile(select), matrix.shape[1]
    high, largest, smallest = np.zeros(d), np.zeros(d + 1), np.full(d + 1, np.inf)
    sums.magnitudes(
        rows.begins, rows.ends, rows.features, rows.values, _weights(w), high, largest, smallest
    )
    if w is None:
        return high, largest[:d], smallest[:d]
    return high, largest, smallest


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
    found = np.zeros((k, grid.folds * (matrix.shape[1] + 1)))
    (rows, at), old = matrix.readable(select), new[:0] if old is None else old
    order, _ = sums.by_cluster(new, old, k)
    sums.accumulate(
        rows.begins, rows.ends, rows.features, rows.values, at, _weights(w), new, old,
        grid.scale, grid.step, grid.folds, found, order,
    )  # fmt: skip
    return found


def by_label(
    matrix: Matrix, work: Any, w: np.ndarray | None, labels: np.ndarray, grid: Grid, k: int
) -> np.ndarray:
    """Return the sums (k, columns), and in the last column the weights, of all rows by label."""
    found = np.zeros((k, matrix.shape[1] + 1))
    (rows, at), weights = matrix.readable(slice(None)), _weights(w)
    write = functools.partial(
        sums.totals, rows.begins, rows.ends, rows.features, rows.values, at, weights, labels,
        grid.scale, grid.step, grid.folds, found,
    )  # fmt: skip
    sums.cluster_by_cluster(write, work, labels, labels[:0], k)
    return found


def own_distances(
    matrix: Matrix,
    select: Selection,
    unit: float,
    wide: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
) -> None:
    """Write the squared `distances` (m,) of rows to their own centroids of `wide` (k, d)."""
    distances[:] = sums.own_distances(*matrix.readable(select), unit, wide, labels)


def moves(matrix: Matrix, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared distances (k,), by R5, of centroids `a` to centroids `b` (k, columns)."""
    found = np.empty(a.shape[0])
    sums.moves(a, b, *sums.children(matrix.data.halving), found)
    return found


class Sieve(cpu.Sieve):
    """What candidates are prepared to, as compiled code takes it."""

    def rows(self, y: SparseRows) -> np.ndarray:
        """Return what is kept of rows: their squared norms (m,)."""
        return squared_norms(y)

    def against(self, c: np.ndarray) -> cpu.Estimate:
        """Return what estimates the squared distances (m, t) of rows, with their norms (m,), to candidates `c` (t, columns)."""
        minus_2c, norms = coefficients(c, np.float64, EIGHT)

        def estimate(y: SparseRows, norm: np.ndarray) -> np.ndarray:
            found = np.empty((norm.size, c.shape[0]))
            products.estimates(y.begins, y.ends, y.features, y.values, minus_2c, norms, norm, found)
            return found

        return estimate


def sieve(frame: Any, work: Any, first: np.ndarray, k: int) -> Sieve:
    """Return what candidates are prepared to."""
    return Sieve()


def seeds(
    frame: Any, work: Any, w: np.ndarray | None, first: int, draws: np.ndarray
) -> np.ndarray | None:
    """Return the rows that greedy k-means++ picks with `draws` (k - 1, t), or None where estimates cannot tell.

    The picks are those of exact distances: an estimate errs by no more than `Bounds` says, and if a draw comes so near
    the border of two rows' costs, or what two candidates save is so nearly equal, that this may decide, the exact steps
    have to.
    """
    n, t = frame.matrix.shape[0], draws.shape[1]
    if 8 * n * (t + 4) > work.max_bytes // 2:
        return None
    y = frame.tile(slice(0, n), np.float64 if frame.exponent else None)
    bounds = Bounds.of(y.halving.d, 2.0**-53, y.longest)
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
    return at, sums.own_distances(y, at, 1.0, c, np.zeros(at.size, np.int32))


def pairwise(frame: Any, wide: np.ndarray, room: int) -> Callable[[slice, np.ndarray], int]:
    """Return what writes the distances (m, k) of selected rows to all centroids of `wide` (k, columns)."""
    k, factor = wide.shape[0], 2.0**frame.exponent
    minus_2c, norms = coefficients(wide, np.float64, EIGHT)

    def write(select: slice, found: np.ndarray) -> int:
        y = frame.tile(select, np.float64 if frame.exponent else None)
        norm, near = squared_norms(y), np.empty(64 * k, np.int64)
        begin = 0
        while begin < norm.size:  # until there is no more room for near pairs
            begin, count = products.pairwise(
                y.begins,
                y.ends,
                y.features,
                y.values,
                minus_2c,
                norms,
                norm,
                factor,
                begin,
                near,
                found,
            )
            rows, labels = np.divmod(near[:count], k)
            exact = sums.own_distances(y, rows, 1.0, wide, labels)
            found[rows, labels] = np.sqrt(exact) * factor
        return 0

    return write


def _weights(w: np.ndarray | None) -> np.ndarray:
    return _ONE if w is None else np.ascontiguousarray(w)
