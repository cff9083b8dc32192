"""ClusterStats: what a pass over rows leaves behind, exact and addable in any order; and what follows from it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from anykmeans._grid import Grid
from anykmeans._libraries import Array, Namespace, like, namespace, to_numpy


@dataclass(frozen=True)
class Cost:
    """The exact sum of weighted squared distances: floats whose sum it is, so that costs of parts add, whatever grids they are from.

    Attributes
    ----------
    parts : tuple of float
        None of them rounded, but what is below the last bit of float64.
    """

    parts: tuple[float, ...] = ()

    @classmethod
    def of(cls, whole: np.ndarray, grid: Grid) -> Cost:
        """Return the sum that whole numbers (folds,) of a `grid` of one column mean."""
        exponent, finer = 1 - math.frexp(float(grid.scale[0]))[1], math.frexp(grid.step)[1] - 1
        parts = enumerate(whole.tolist())
        return cls(tuple(math.ldexp(part, exponent - finer * i) for i, part in parts if part))

    def __add__(self, other: Cost) -> Cost:
        """Return the sum of both: a few parts, of which none overlaps another, however many were added.

        By sums and what their rounding took (Shewchuk, "Adaptive precision floating-point arithmetic and fast robust
        geometric predicates", Discrete & Computational Geometry 1997).
        """
        parts: list[float] = []
        for x in self.parts + other.parts:
            apart = []
            for y in parts:
                larger, smaller = (x, y) if abs(x) >= abs(y) else (y, x)
                x = larger + smaller
                if left := smaller - (x - larger):
                    apart.append(left)
            parts = [*apart, x] if x else apart
        return Cost(tuple(parts))

    def scaled(self, exponent: int) -> Cost:
        """Return the cost times ``2**exponent``."""
        return Cost(tuple(math.ldexp(part, exponent) for part in self.parts))

    def __float__(self) -> float:
        return math.fsum(self.parts)


@dataclass(frozen=True)
class ClusterStats:
    """Per cluster the exact weighted sum of its rows and the exact weight.

    Addition makes no rounding error, so the order of rows, tiles, threads and ranks is free, and a
    row can be taken out of one cluster and put into another for ever.

    Attributes
    ----------
    sums : array of shape (k, folds * (d + 1)), float64
        Whole numbers of grid steps; the last column of each fold is the weight.
    grid : Grid
        What they mean.
    cost : Cost or None
        Of all rows, where it is known: a pass that skips rows does not know it.
    """

    sums: Array
    grid: Grid
    cost: Cost | None = None

    def __add__(self, other: ClusterStats) -> ClusterStats:
        if self.grid != other.grid:
            raise ValueError(
                "ClusterStats can be added on one grid only; got two, whose whole numbers mean different steps. "
                "Plan one grid for all rows, of their merged `Extent`, or put one `on` the other's grid."
            )
        known = self.cost is not None and other.cost is not None
        cost = self.cost + other.cost if known else None  # type: ignore[operator]
        return ClusterStats(self.sums + other.sums, self.grid, cost)

    def on(self, grid: Grid, exponent: int = 0) -> ClusterStats:
        """Return the same stats, times ``2**exponent``, on another `grid`, planned for these rows and all to be added.

        They leave room there for as many summands as it has room for at once.
        """
        if grid == self.grid and not exponent:
            return self
        xp, columns = namespace(self.sums), self.grid.scale.shape[0]
        mine, theirs = (np.frexp(each.scale)[1] for each in (self.grid, grid))
        carried, found = self.grid.carried(xp, self.sums), None
        finer = int(np.frexp(self.grid.step)[1]) - 1
        for fold in range(self.grid.folds):
            part = carried[:, fold * columns : (fold + 1) * columns]
            # Whole numbers, which neither overflow nor underflow in the unit of a grid that has room for them. What is
            # below 2^-500 is beyond its last fold, and where nothing is, it may be that the factor is out of range.
            power = np.clip(theirs - mine + (exponent - fold * finer), -500, 1023)
            whole = grid.split(xp, part, like(np.ldexp(1.0, power), self.sums))
            found = whole if found is None else found + whole
        cost = None if self.cost is None else self.cost.scaled(exponent)
        return ClusterStats(grid.carried(xp, found), grid, cost)

    def carried(self) -> ClusterStats:
        """Return the same stats, which leave room for as many summands as the grid has room for at once."""
        return replace(self, sums=self.grid.carried(namespace(self.sums), self.sums))

    def decayed(self, factor: float) -> ClusterStats:
        """Return the stats times a `factor` from 0 to 1, rounded to some 53 bits: element by element, so that bits are the same everywhere."""
        grid, columns = self.grid, self.grid.scale.size
        parts = [self.sums[:, i * columns : (i + 1) * columns] for i in range(grid.folds)]
        whole = functools.reduce(lambda finer, part: part + finer / grid.step, reversed(parts))
        return ClusterStats(grid.split(namespace(self.sums), whole * factor, 1.0), grid)

    def among(self, columns: np.ndarray) -> ClusterStats:
        """Return the stats, in NumPy, of some features, which are numbered by `columns` (m,)."""
        grid, (k, _) = self.grid, self.sums.shape
        at = np.append(columns, grid.scale.size - 1)
        sums = np.take(self.sums.reshape(k, grid.folds, grid.scale.size), at, axis=2)
        grid = replace(grid, scale=grid.scale[at])
        return ClusterStats(sums.reshape(k, -1), grid, self.cost)

    def spread(self, columns: np.ndarray, d: int) -> ClusterStats:
        """Return the stats, in NumPy, over `d` features, of which these are the `columns` (m,) and all others are zero."""
        grid, (k, _) = self.grid, self.sums.shape
        at = np.append(columns, d)
        sums, scale = np.zeros((k, grid.folds, d + 1)), np.ones(d + 1)
        sums[:, :, at], scale[at] = self.sums.reshape(k, grid.folds, -1), grid.scale
        return ClusterStats(sums.reshape(k, -1), replace(grid, scale=scale), self.cost)

    def totals(self) -> tuple[Array, Array]:
        """Return the sums (k, d) and weights (k,) that these mean, float64, each rounded once."""
        total = self.grid.total(namespace(self.sums), self.sums, like(self.grid.scale, self.sums))
        return total[:, :-1], total[:, -1]


@dataclass(frozen=True, eq=False)
class Farthest:
    """The rows farthest from their centroid, the farthest first and equal ones as they are numbered.

    Attributes
    ----------
    most : int
        How many are wanted; there are fewer where distances are zero.
    distances : ndarray of shape (m,), float64
        Squared, none of them zero.
    labels : ndarray of shape (m,)
        The clusters they are in.
    summands : ndarray of shape (m, folds * (d + 1)), float64
        What each adds to the sums of its cluster.
    """

    most: int
    distances: np.ndarray
    labels: np.ndarray
    summands: np.ndarray

    def __add__(self, other: Farthest) -> Farthest:
        """Return the farthest of both parts' rows; those of `self` come first where equal."""
        parts = zip(self._arrays, other._arrays, strict=True)
        distances, labels, summands = map(np.concatenate, parts)
        order = np.argsort(-distances, kind="stable")[: self.most]
        return Farthest(self.most, distances[order], labels[order], summands[order])

    @property
    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.distances, self.labels, self.summands

    def moved(self, stats: ClusterStats, vacant: np.ndarray) -> ClusterStats:
        """Return the `stats` after these rows have left their clusters, to be the first of the `vacant` ones.

        One row for one cluster, as many as there are of both.
        """
        change, m = np.zeros(stats.sums.shape), min(self.labels.size, vacant.size)
        change[vacant[:m]] = self.summands[:m]
        np.subtract.at(change, self.labels[:m], self.summands[:m])
        return stats + ClusterStats(like(change, stats.sums), stats.grid)


Means = Callable[[ClusterStats, Array], tuple[Array, Array]]


def update(
    stats: ClusterStats,
    c: Array,
    *,
    empty: str,
    farthest: Callable[[Array, int], Farthest],
    means: Means | None = None,
) -> Array:
    """Return the means (k, d) in the dtype of `c` (k, d), empty clusters served as `empty` says.

    `farthest` tells the rows farthest from their centroid of `c`; `means` may know a faster way to them.

    Raises
    ------
    ValueError
        If a cluster is empty and `empty` is ``"error"``.
    """
    means = means_of if means is None else means
    c_new, mass = means(stats, c)
    vacant = np.flatnonzero(to_numpy(mass == 0))
    if vacant.size and empty == "error":
        raise ValueError(
            f"`empty`='error' and cluster {int(vacant[0])} has no rows. Use fewer clusters, "
            f"other initial centroids, or empty='relocate'."
        )
    if vacant.size and empty == "relocate":
        # The farthest rows leave their clusters and become clusters of their own.
        far = farthest(c, vacant.size)
        if far.labels.size:
            c_new, _ = means(far.moved(stats, vacant), c)
    return c_new


def means_of(stats: ClusterStats, c: Array) -> tuple[Array, Array]:
    """Return the means (k, d) of clusters in the dtype of `c` (k, d), and their weights (k,)."""
    sums, mass = stats.totals()
    return segment_mean(namespace(sums), sums, mass, c), mass


def segment_mean(xp: Namespace, sums: Array, mass: Array, c: Array) -> Array:
    """Return the mean of each cluster in the dtype of `c` (k, d); an empty one keeps its row of `c`."""
    empty = (mass == 0)[:, None]
    # Of the full shape, as XLA multiplies by the reciprocal of what it broadcasts in a division.
    mean = sums / xp.where(empty, xp.ones_like(sums), mass[:, None])
    return xp.where(empty, c, xp.astype(mean, c.dtype))


def farthest_rows(distances: np.ndarray, most: int) -> np.ndarray:
    """Return the numbers (m,) of the rows that have the largest squared `distances` (n,), for `Farthest`."""
    most = min(most, distances.size)  # a part of all rows may have fewer
    least = np.partition(distances, -most)[-most]  # as sorting all takes longer
    (far,) = np.nonzero(distances >= least)
    order = far[np.argsort(-distances[far], kind="stable")][:most]
    return order[distances[order] > 0]
