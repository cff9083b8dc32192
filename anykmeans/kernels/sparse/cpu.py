"""Sparse rows by SciPy and NumPy: the reference for those compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from anykmeans._bounds import Bounds
from anykmeans._grid import Grid, two_product
from anykmeans._libraries import Namespace, Selection
from anykmeans._matrix import Matrix
from anykmeans._sparse import SparseRows, coefficients
from anykmeans.kernels import agnostic, cpu

LIBRARY, LEAN = "numpy", False
nearest, segment_sum = cpu.nearest, cpu.segment_sum

Estimate = Callable[[SparseRows, np.ndarray], np.ndarray]


def magnitudes(matrix: Matrix, select: slice, w: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Return the largest |x| (d,), and the largest and smallest nonzero |w x|, (d,) or with w (d + 1,)."""
    rows, d = matrix.tile(select, np.float64).gathered, matrix.shape[1]
    values = np.abs(rows.values)
    high, largest, smallest = np.zeros(d), np.zeros(d), np.full(d, np.inf)
    np.maximum.at(high, rows.features, values)
    if w is not None:
        values = values * w[rows.owners]
    np.maximum.at(largest, rows.features, values)
    np.minimum.at(smallest, rows.features, np.where(values == 0, np.inf, values))
    if w is None:
        return high, largest, smallest
    least = w[w > 0].min(initial=np.inf)
    return high, np.append(largest, w.max()), np.append(smallest, least)


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
    rows, width = matrix.tile(select, np.float64).gathered, matrix.shape[1] + 1
    m = rows.shape[0]
    # A row's weight is one entry more.
    at = np.concatenate([rows.owners, np.arange(m)])
    column = np.concatenate([rows.features, np.full(m, width - 1)])
    rest = np.concatenate([rows.values, np.ones(m)]) * grid.scale[column]
    chains = [rest] if w is None else list(two_product(rest, w[at]))
    found = np.zeros((k, grid.folds * width))
    for fold in range(grid.folds):
        part = sum(map(np.rint, chains))
        chains = [(rest - np.rint(rest)) * grid.step for rest in chains]
        np.add.at(found, (new[at], fold * width + column), part)
        if old is not None:
            np.subtract.at(found, (old[at], fold * width + column), part)
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
    rows = matrix.tile(select, np.float64).times(unit)
    order = np.argsort(labels, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    for at in parts if order.size else []:  # a tree is made for each centroid
        distances[at] = rows[at].squared_distances(wide[labels[at[0]]])


def moves(matrix: Matrix, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared distances (k,), by R5, of centroids `a` to centroids `b` (k, columns)."""
    halving = matrix.data.halving
    if halving.complete:
        return np.asarray(agnostic.squared_distances(np, a, b))
    found: np.ndarray = halving.sums((a - b) ** 2)[:, -1]
    return found


class Sieve:
    """What candidates of k-means++ are prepared to: a product with the entries tells what they save."""

    def rows(self, y: SparseRows) -> np.ndarray:
        """Return what is kept of rows: their squared norms (m,)."""
        return y.squared_norms()

    def add(self, c: np.ndarray) -> int:
        """Count a pick in: rows keep nothing of it."""
        return 0

    def against(self, c: np.ndarray) -> Estimate:
        """Return what estimates the squared distances (m, t) of rows, with their norms (m,), to candidates `c` (t, d)."""
        minus_2c, norms = coefficients(c, np.float64, 1)
        return lambda y, norm: y @ minus_2c + norms + norm[:, None]


def sieve(frame: Any, work: Any, first: np.ndarray, k: int) -> Sieve:
    """Return what candidates are prepared to."""
    return Sieve()


def gains(
    xp: Namespace,
    read: Callable[[], SparseRows],
    c: np.ndarray,
    closest: np.ndarray,
    norm: np.ndarray,
    against: Estimate,
    w: np.ndarray | None,
    scale: float,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return what each of t more centroids saves (t,), in doubt by how much, and what it wins (m,)."""
    y = read()
    bounds = Bounds.of(y.halving.d, 2.0**-53, y.longest)
    return agnostic.weighed(np, against(y, norm).T, norm, closest, bounds, w, scale)


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
    at = np.arange(closest.size) if won is None else np.flatnonzero(won & (1 << j % 8))
    found = agnostic.distances_to(np, y, at, c)
    closest[at] = np.minimum(closest[at], found)
    return closest, norm
