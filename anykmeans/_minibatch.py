"""k-means by mini-batches (Sculley, "Web-scale k-means clustering", WWW 2010), with the draws and rules of scikit-learn.

A step labels a batch of rows, adds their exact sums to those of all batches before, and moves centroids to the means of
what they have seen. As nothing is rounded before that, the order of batches does not show in a mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans._distance import halving_sum
from anykmeans._evaluate import counted, evaluated
from anykmeans._extent import Extent
from anykmeans._frame import power_of_two
from anykmeans._grid import DOUBLE, FOLDS, Grid
from anykmeans._init import Init, given, placed, start
from anykmeans._libraries import Array, np_compat, take, to_numpy
from anykmeans._matrix import Matrix
from anykmeans._spherical import directions
from anykmeans._stats import ClusterStats
from anykmeans.kernels import Kernel
from anykmeans.kernels.agnostic import KERNEL
from anykmeans.sources.rows import Rows

_CACHE = 1 << 16  # numbers that are put on another grid together
_END = 1022  # the largest power of two that sums may reach
_SPARE = 3, 12  # bits of room beyond need that a new grid has, not to be changed again soon

# -- what there is between steps ----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Seen:
    """Where a run stands after some batches, all in NumPy: it is small beside a batch, and some libraries divide in ways of their own.

    Attributes
    ----------
    centers : ndarray of shape (k, d)
        The centroids.
    stats : ClusterStats
        Exact sums of all rows by cluster, of relative weights as `extent` has them, carried.
    counts : ndarray of shape (k,), float64
        The weights among them, rounded once.
    extent : Extent
        That of all rows.
    most : int
        Rows of the largest batch: as many are added at once.
    room : int
        Sums have room until a cluster weighs ``2**room``.
    features : int
        How many the user's rows have.
    columns : ndarray of shape (d,) or None
        Those that there are columns of, which others of sparse rows are zero in; None for all.
    since : int
        Rows since clusters were last looked at for reassignment.
    """

    centers: np.ndarray
    stats: ClusterStats
    counts: np.ndarray
    extent: Extent
    most: int
    room: int
    features: int
    columns: np.ndarray | None
    since: int = 0

    @classmethod
    def nothing(cls, rows: Rows, centers: np.ndarray, most: int) -> Seen:
        """Return where a run stands that is to begin from `centers` (k, d) with a batch of at most so many rows like these."""
        (k, d), extent, matrix = centers.shape, rows.extent, rows.matrix
        grid, room = _planned(extent, most, _room(np.zeros(1), extent, most))
        stats = ClusterStats(np.zeros((k, grid.folds * (d + 1))), grid)
        columns = _columns(matrix)
        return cls(centers, stats, np.zeros(k), extent, most, room, matrix.features, columns)

    @property
    def weights(self) -> np.ndarray:
        """The counts in the user's unit."""
        found: np.ndarray = np.ldexp(self.counts, self.extent.heaviest)
        return found

    def beside(self, rows: Rows) -> Seen:
        """Return the same with columns and room for these rows."""
        seen = self.over(_columns(rows.matrix))
        extent, most = seen.extent, max(seen.most, rows.shape[0])
        if rows.extent is not extent:
            extent = _merged(extent, rows.extent)
        lighter, counts = seen.extent.heaviest - extent.heaviest, seen.counts
        if lighter:
            counts = np.ldexp(counts, lighter)
        room = _room(counts, extent, most)
        if extent is seen.extent and most == seen.most and room <= seen.room:
            return seen
        stats, room = seen._fitted(extent, most, room, rows.names.x)
        return replace(seen, stats=stats, counts=counts, extent=extent, most=most, room=room)

    def _fitted(self, extent: Extent, most: int, room: int, name: str) -> tuple[ClusterStats, int]:
        """Return the stats on a grid for a larger `extent` and `most` rows at once, with `room` at least, and with how much."""
        lighter, stats = self.extent.heaviest - extent.heaviest, self.stats
        same = most == self.most and (extent.digits is None) == (self.extent.digits is None)
        if same and not lighter and extent.fits(stats.grid, room):
            return stats, room
        if np.frexp(extent.high.max())[1] + room > _END:
            check.summable(extent.high, 2**room, name)
        grid, room = _planned(extent, most, room)
        return _on(stats, grid, lighter), room

    def put(
        self,
        where: np.ndarray,
        counts: np.ndarray,
        extent: Extent,
        name: str,
        kernel: Kernel = KERNEL,
    ) -> Seen:
        """Return the same as if clusters had seen their centers and nothing else, in the coordinates `where` (k, d + 1) says.

        As many rows there as their new `counts` (k,). Of the counts themselves, the last coordinate, `where` speaks, too. All that
        is then is of an `extent`. Their sums are written over.
        """
        stats, room = self._fitted(extent, self.most, _room(counts, extent, 0), name)
        kernel.put(stats, where, self.centers, counts)
        return replace(self, stats=stats, counts=counts, extent=extent, room=room)

    def counted(self, rows: Rows, *, measured: bool) -> tuple[ClusterStats, float]:
        """Return the stats of rows that there is room for, by the nearest centers, and their inertia; NaN if it need not be `measured`."""
        grid, lighter = self.stats.grid, rows.heaviest - self.extent.heaviest
        # On a grid so much coarser, relative weights of the rows give the same whole numbers.
        rows.add_on(replace(grid, scale=np.ldexp(grid.scale, lighter)) if lighter else grid)
        _, _, inertia, sums = counted(rows, self.centers, measured=measured)
        return ClusterStats(to_numpy(sums), grid), inertia

    def added(self, more: ClusterStats, rows: Rows, since: int) -> Seen:
        """Return where the run stands after rows with these stats on its grid, which are overwritten."""
        grid = self.stats.grid
        won = more.sums[:, grid.scale.size - 1 :: grid.scale.size].any(axis=1)
        kernel, spherical = _in_numpy(rows), rows.matrix.spherical
        stats, total = kernel.joined(self.stats, more)
        counts, before = total[:, -1], self.centers
        if spherical:  # so that means are rounded once they have length 1
            before = before.astype(np.float64)
        centers = kernel.divide(np_compat, total[:, :-1], np.where(won, counts, 0.0), before)
        if spherical:
            centers = directions(kernel, rows.matrix, centers, self.centers)
        return replace(self, centers=centers, stats=stats, counts=counts, since=since)

    def over(self, columns: np.ndarray | None) -> Seen:
        """Return the same with columns for these of the user's features, None for all; any other is zero."""
        mine = self.columns
        if columns is mine:
            return self
        if mine is None:
            seen = self._among(columns)
        elif columns is None:
            seen = self._spread(mine, self.features)
        else:
            both = np.intersect1d(mine, columns, assume_unique=True)
            seen = self if both.size == mine.size else self._among(np.searchsorted(mine, both))
            seen = seen._spread(np.searchsorted(columns, both), columns.size)
        return replace(seen, columns=columns)

    def _among(self, at: Any) -> Seen:
        """Return the same with columns `at` (m,) alone."""
        stats, extent = self.stats.among(at), self.extent.among(at)
        return replace(self, centers=np.take(self.centers, at, axis=1), stats=stats, extent=extent)

    def _spread(self, at: np.ndarray, d: int) -> Seen:
        """Return the same with `d` columns, of which the `at` (m,) are these and all others are zero."""
        centers = np.zeros((self.counts.size, d), self.centers.dtype)
        centers[:, at] = self.centers
        stats, extent = self.stats.spread(at, d), self.extent.spread(at, d)
        return replace(self, centers=centers, stats=stats, extent=extent)

    def moved(self, centers: np.ndarray, name: str) -> Seen:
        """Return the same from `centers` (k, features), called `name`, some of which may have been set by hand since."""
        seen, mine = self, centers
        if self.columns is not None:
            mine = np.take(centers, self.columns, axis=1)
            if np.count_nonzero(mine) < np.count_nonzero(centers):
                seen, mine = self.over(None), centers
        where = mine != seen.centers.astype(mine.dtype, copy=False)
        if not where.any():
            return seen if mine.dtype == seen.centers.dtype else replace(seen, centers=mine)
        (at,) = np.nonzero(where.any(axis=1))
        extent = _merged(seen.extent, _extent_of(mine[at], seen.counts[at], seen.extent))
        where = np.append(where, np.zeros_like(where[:, :1]), axis=1)
        stats = replace(seen.stats, sums=seen.stats.sums.copy())
        return replace(seen, centers=mine, stats=stats).put(where, seen.counts, extent, name)

    @property
    def used(self) -> np.ndarray:
        """Which of the user's features are not zero in all rows and centers."""
        # Centers that have seen rows are zero where these are.
        found: np.ndarray = (self.extent.high > 0) | self.centers[self.counts == 0].any(axis=0)
        if self.columns is None:
            return found
        every = np.zeros(self.features, bool)
        every[self.columns] = found
        return every


def _in_numpy(rows: Rows) -> Kernel:
    """Return what works on what a run keeps, which is in NumPy, whatever the rows are in."""
    return rows.kernel if rows.kernel.host else KERNEL


def _columns(matrix: Matrix) -> np.ndarray | None:
    """Return the features that the rows have columns of, None for all."""
    if not matrix.sparse or matrix.data.halving.complete:
        return None
    columns: np.ndarray = matrix.data.halving.columns
    return columns


def _on(stats: ClusterStats, grid: Grid, exponent: int) -> ClusterStats:
    """Return ``stats.on(grid, exponent)``, in NumPy: of the columns that this changes, and of a few clusters at a time."""
    before, k = stats.grid, stats.sums.shape[0]
    sums = stats.sums.reshape(k, before.folds, -1)
    if exponent or (before.step, before.folds) != (grid.step, grid.folds):
        at = np.arange(grid.scale.size)
        found = np.empty((k, grid.folds, at.size))
    else:
        (at,) = np.nonzero(before.scale != grid.scale)
        at = at[sums[:, :, at].any(axis=(0, 1))]
        found = sums.copy() if at.size else sums
    before, after = (replace(each, scale=each.scale[at]) for each in (before, grid))
    step = max(1, _CACHE // sums[0].size)
    for i in range(0, k, step) if at.size else ():
        some = np.take(sums[i : i + step], at, axis=2)
        part = ClusterStats(some.reshape(some.shape[0], -1), before).on(after, exponent)
        found[i : i + step, :, at] = part.sums.reshape(some.shape[0], grid.folds, -1)
    return ClusterStats(found.reshape(k, -1), grid)


def _planned(extent: Extent, most: int, room: int) -> tuple[Grid, int]:
    """Return a grid for `most` rows at once that has `room` and some to spare, and how much it has."""
    end = max(room, _END - int(np.frexp(extent.high.max())[1]))
    little, much = (min(room + spare, end) for spare in _SPARE)
    grid, wide = (extent.grid(most, each) for each in (little, much))
    # Much if it costs no fold, and no bit where there are no more folds.
    return (wide, much) if wide.folds == grid.folds < FOLDS else (grid, little)


def _room(counts: np.ndarray, extent: Extent, most: int) -> int:
    """Return the room for clusters that weigh `counts` (k,) and get `most` rows more."""
    heavy = 1.0 if extent.digits is None else float(extent.largest[-1])
    return math.frexp(float(counts.max()) + most * heavy)[1]


def _merged(one: Extent, other: Extent) -> Extent:
    """Return the extent of both parts' rows, of which those without weights weigh 1 if others have any."""
    if (one.digits is None) != (other.digits is None):
        one, other = one.weighted(), other.weighted()
    return one | other


def _extent_of(c: np.ndarray, w: np.ndarray, among: Extent) -> Extent:
    """Return the extent of centroids (m, d) that are there `w` (m,) times, to be merged with that of rows.

    Their sums have room, as they are not larger than those of as many rows of that magnitude.
    """
    x = np.abs(c.astype(np.float64))
    high, least, digits = x.max(axis=0), np.where(x > 0, x, np.inf), None
    if among.digits is not None:
        products = np.append(least, np.ones((w.size, 1)), axis=1) * w[:, None]
        least, digits = np.where(products > 0, products, np.inf), float(DOUBLE[0])
    least = least.min(axis=0)
    # They are not among those that are added at once, so that their products need not be the largest.
    largest = high if digits is None else np.where(np.isfinite(least), least, 0.0)
    about, whole = np.finfo(c.dtype), bool((np.rint(c) == c).all())
    precision = about.nmant + 1, about.minexp - about.nmant
    return Extent(0, high, largest, least, precision, whole, digits, among.heaviest)


# -- a step -------------------------------------------------------------------------------------


def step(
    seen: Seen,
    rows: Rows,
    rng: Callable[[], np.random.RandomState],
    *,
    size: int,
    ratio: float,
    measured: bool,
) -> tuple[Seen, float, int]:
    """Return where a run stands after a batch of rows, its inertia before, and how many clusters were moved to rows of it.

    `size` is what a batch counts for until clusters that have seen less than `ratio` times as much as the largest are
    looked for. What rows they are moved to is drawn from `rng`, which is asked for then. The inertia is NaN if it is not to be `measured`.
    """
    k = seen.counts.size
    since = seen.since + size
    due = since >= 10 * k or not seen.counts.all()
    with rows.work:
        seen = seen.beside(rows)
        more, inertia = seen.counted(rows, measured=measured)
        seen = seen.added(more, rows, 0 if due else since)
    moved = 0
    if due and ratio > 0:
        w = rows.weights
        heavy = np.arange(rows.shape[0]) if w is None else np.flatnonzero(to_numpy(w.source))
        low = to_reassign(seen.counts, ratio, heavy.size)
        moved = int(np.count_nonzero(low))
        if moved:
            picks = rng().choice(heavy.size, size=moved, replace=False)
            centers, counts, extent = seen.centers.copy(), seen.counts.copy(), seen.extent
            centers[low] = to_numpy(rows.rows(rows.matrix.asarray(heavy[picks])))
            # Some weight, or the cluster would be moved again at once: scikit-learn's rule.
            counts[low] = counts[~low].min()
            if extent.digits is not None:  # else they are rows, a whole number of times
                extent = _merged(extent, _extent_of(centers[low], counts[low], extent))
            where = np.repeat(low[:, None], centers.shape[1] + 1, axis=1)
            seen = replace(seen, centers=centers)
            seen = seen.put(where, counts, extent, rows.names.x, _in_numpy(rows))
    return seen, inertia, moved


def to_reassign(counts: np.ndarray, ratio: float, n: int) -> np.ndarray:
    """Return a mask (k,) of the clusters to move to rows of a batch of n, at most half of it."""
    low: np.ndarray = counts < ratio * counts.max()
    if not low.any():
        return low
    # A stable order, so that every machine moves the same ones of equal count.
    order = np.argsort(counts, kind="stable")
    most = int(0.5 * n) if low.sum() > 0.5 * n else counts.shape[0] - 1
    low[order[most:]] = False
    return low


def squared_shift(rows: Rows, before: np.ndarray, after: np.ndarray) -> float:
    """Return the sum of the squared differences of two sets of centroids (k, columns), in the order of a distance."""
    a, b = (rows.matrix.asarray(c.astype(np.float64)) for c in (after, before))
    return float(halving_sum(np_compat, to_numpy(rows.kernel.moves(rows.matrix, a, b))[None, :])[0])


class EarlyStop:
    """Tell when batches no longer improve the centroids, by scikit-learn's two rules.

    Called once a step with the mean cost of a row of the batch and the squared shift of the centroids.
    """

    def __init__(self, n: int, batch_size: int, tol: float, patience: int | None) -> None:
        self.alpha = min(batch_size * 2.0 / (n + 1), 1)
        self.tol = tol
        self.patience = patience
        self.smoothed: float | None = None
        self.best = math.inf
        self.waited = 0
        self.started = False

    def __call__(self, cost: float, shift: float) -> str | None:
        """Return why to stop, in scikit-learn's words, or None."""
        if not self.started:  # the cost of the first centroids says nothing about progress
            self.started = True
            return None
        if self.smoothed is None:
            self.smoothed = cost
        else:
            self.smoothed = self.smoothed * (1 - self.alpha) + cost * self.alpha
        if self.tol > 0 and shift <= self.tol:
            return "small centers change"
        if self.smoothed < self.best:
            self.best, self.waited = self.smoothed, 0
        else:
            self.waited += 1
        waited = self.patience is not None and self.waited >= self.patience
        return "lack of improvement in inertia" if waited else None


# -- rows that are drawn ------------------------------------------------------------------------


class Urn:
    """Numbers of rows, drawn with replacement in proportion to weights (n,), or evenly among `n`, as `RandomState.choice` does.

    Attributes
    ----------
    weight : float
        That of all rows.
    """

    def __init__(self, w: Array | None, n: int) -> None:
        chances = np.ones(n) if w is None else check.host_float64(w)
        exponent = power_of_two(float(chances.max()))  # else their sum might be out of range
        chances = np.ldexp(chances, -exponent)
        total = chances.sum()
        self.weight = float(np.ldexp(total, exponent))
        chances = np.cumsum(chances / total)  # which `choice` would sum up at each step
        self._edges = np.append(0.0, chances / chances[-1])

    def drawn(self, size: int, rng: np.random.RandomState) -> np.ndarray:
        """Return the next numbers (size,)."""
        draws = rng.random_sample(size)
        # Where all are equally likely, it is known but for rounding where among them a draw is.
        found = (draws * (self._edges.size - 1)).astype(np.int64)
        (other,) = np.nonzero((draws < self._edges[found]) | (draws >= self._edges[found + 1]))
        found[other] = self._edges[1:].searchsorted(draws[other], side="right")
        return found


def drawn(w: Array | None, n: int, size: int, rng: np.random.RandomState) -> np.ndarray:
    """Return the numbers (size,) of rows drawn evenly, with replacement, from those of n that have weight."""
    if w is None:
        return rng.randint(0, n, size)
    heavy = np.flatnonzero(to_numpy(w))
    return heavy[rng.randint(0, heavy.size, size)]


def initial(
    rows: Rows, k: int, size: int, init: Init, rng: Callable[[], np.random.RandomState]
) -> np.ndarray:
    """Return first centroids (k, columns), from as many random rows as `size` says; `rng` is asked for when anything is drawn."""
    n, w = rows.shape[0], None if rows.weights is None else rows.weights.source
    heavy = n if w is None else np.count_nonzero(to_numpy(w))
    chosen = None
    if size < heavy:
        chosen = drawn(w, n, size, rng())
    elif k <= heavy < n:
        chosen = np.flatnonzero(to_numpy(w))
    if chosen is not None:
        rows = _own(rows, chosen, init) if callable(init) else rows.take(chosen)
    with rows.work:
        draws = isinstance(init, str) or callable(init)
        c = start(rows, k, init, rng()) if draws else placed(rows, k, init)
        found: np.ndarray = to_numpy(c)
    return found


def _own(rows: Rows, chosen: np.ndarray, init: Init) -> Rows:
    """Return the rows `chosen` (m,) as the user has them, which is what a callable wants to see."""
    x, library = take(rows.matrix.source, chosen), rows.kernel.library
    matrix = Matrix.of(x, library, given=given(init, x), max_bytes=rows.work.max_bytes)
    w = None if rows.weights is None else Matrix.of(take(rows.weights.source, chosen), library)
    return rows.of(matrix, w, metric=rows.matrix.metric)


def variance(rows: Rows) -> float:
    """Return the mean variance of the features, of rows without weights."""
    matrix, n = rows.matrix, rows.shape[0]
    with rows.work:
        sums, _ = map(to_numpy, rows.sums(matrix.asarray(np.zeros(n, dtype=np.int32)), 1))
        spread = evaluated(rows, sums / n)[2]
    return spread / float(n * matrix.features)
