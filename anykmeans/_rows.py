"""Rows in memory: the exact sums of a matrix, kept running, and the decisions made from them.

:class:`Rows` is a source for the loop. Which rows a sweep really looks at is the business of its search.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans._distance import halving_sum
from anykmeans._frame import BESIDE, Frame, looks, power_of_two, within_reach
from anykmeans._grid import Grid, exact_sum, extent_of_costs, merged_extent, significant_bits
from anykmeans._groups import groups
from anykmeans._libraries import Array, Namespace, Selection, dtype_name, to_numpy
from anykmeans._matrix import Matrix
from anykmeans._search import Search, moves, own_distances
from anykmeans._stats import ClusterStats, means, seats
from anykmeans._work import Work
from anykmeans.kernels import Kernel, choose

BOUNDS = "auto"  # "auto", "off", "hamerly" or "groups"

_CALL = 1 << 16  # numbers that take compiled code longer than it takes to call another thread
_GROUP = 12  # centroids a group: 8 to 16 skipped most on real data
_MANY = 256  # centroids from which on groups beat one bound a row, in more than 12 dimensions


class Rows:
    """A source over a matrix in memory.

    Parameters
    ----------
    matrix : Matrix
        Rows (n, d).
    weights : Matrix or None
        Sample weights as a column (n, 1).
    kernel : Kernel
        How the steps are made.
    max_bytes : int or None
        Budget for temporaries and bounds.
    threads : int or None
        Most threads to work in.
    precision : {"exact", "fast"}
        Whether labels are certified.
    names : Names
        What the user calls the rows, for messages.
    glance : float or None
        If given, the first row alone is looked at, if it and this magnitude, of centroids, are ordinary ones and the
        kernel notices where others are not. Labels are all that can be asked for then, and are None if some are not.
    like : Rows or None
        What these are rows of, with the same weights or none: its magnitudes do for them.
    plan : bool
        Whether to look at the rows now; else `plan_together` does.

    Raises
    ------
    ValueError
        If a row, a weight or their product is NaN or infinite.
    """

    def __init__(
        self,
        matrix: Matrix,
        weights: Matrix | None,
        kernel: Kernel,
        *,
        max_bytes: int | None = None,
        threads: int | None = None,
        precision: str = "exact",
        names: check.Names = check.FUNCTIONS,
        glance: float | None = None,
        like: Rows | None = None,
        plan: bool = True,
    ) -> None:
        self.matrix, self.weights, self.kernel = matrix, weights, kernel
        self.xp, self.shape = matrix.xp, matrix.shape
        self.exact, self.names = precision == "exact", names
        n, width = self.shape[0], matrix.width
        self.largest, self.heaviest = 0.0, 0
        self.work = Work(
            n,
            width,
            host=kernel.host,
            max_bytes=max_bytes,
            threads=threads,
            blas=not kernel.compiled,
            effort=4 if matrix.sparse else 1,
        )
        self._grid: Grid | None = None
        self._placed: Array | None = None
        self._extents: tuple[np.ndarray, ...] | None = None
        self._spread: tuple[float, int] | None = None
        self.glanced = glance is not None and kernel.wary and self._glance(glance)
        if like is not None:
            self.largest, self.heaviest = like.largest, like.heaviest if weights is not None else 0
            self._extents = like._extent if (weights is None) == (like.weights is None) else None
        elif plan and not self.glanced:
            self._plan()

    @classmethod
    def over(
        cls,
        x: Array,
        sample_weight: Array | None = None,
        *,
        kernel: str | Kernel = "auto",
        max_bytes: int | None = None,
        threads: int | None = None,
        precision: str = "exact",
        names: check.Names = check.FUNCTIONS,
        glance: float | None = None,
        given: np.ndarray | None = None,
        plan: bool = True,
    ) -> Rows:
        """Return a source over checked arrays `x` (n, d) and `sample_weight` (n,).

        Centroids (k, d) that are not rows, or means of rows, are `given`: sparse rows have columns for them.
        """
        chosen = kernel if isinstance(kernel, Kernel) else choose(x, kernel)
        weights = None
        if sample_weight is not None:
            weights = Matrix.of(sample_weight, chosen.library)
        matrix = Matrix.of(x, chosen.library, given=given, max_bytes=max_bytes)
        return cls(
            matrix,
            weights,
            chosen,
            max_bytes=max_bytes,
            threads=threads,
            precision=precision,
            names=names,
            glance=glance,
            plan=plan,
        )

    # -- rows ---------------------------------------------------------------------------------

    def copies(self, number: int) -> list[Rows]:
        """Return so many sources over the same rows, this one first, to begin with centroids of their own."""
        grids_together([self])  # which is that of all
        return [self, *(copy.copy(self) for _ in range(number - 1))]

    def take(self, at: np.ndarray, *, weighted: bool = True, alike: bool = False) -> Rows:
        """Return the rows `at` (m,) as a source of their own, without weights if not `weighted`.

        If they are `alike`, magnitudes of all these rows do for them, and they are not looked at.
        """
        numbers, weights = self.matrix.asarray(at), None
        if weighted and self.weights is not None:
            weights = self.weights.take(numbers)
        how: dict[str, Any] = {
            "max_bytes": self.work.max_bytes,
            "threads": self.work.most,
            "precision": "exact" if self.exact else "fast",
            "names": self.names,
        }
        return Rows(
            self.matrix.take(numbers), weights, self.kernel, like=self if alike else None, **how
        )

    def rows(self, select: Selection) -> Array:
        """Return rows in the dtype of centroids."""
        return self.matrix.rows(select, self.matrix.state_dtype)

    def relative_weight(self, select: Selection) -> Array | None:
        """Return weights (m,), float64, or None where all are one.

        They are the user's times a power of two: only proportions matter, and products must not
        leave the range.
        """
        if self.weights is None:
            return None
        w = self.weights.rows(select, self.xp.float64)[:, 0]
        return w * 2.0**-self.heaviest if self.heaviest else w

    # -- exact sums ---------------------------------------------------------------------------

    def _glance(self, other: float) -> bool:
        """Take the first row's magnitude for that of all; return whether it and another need no scaling."""
        self.largest = float(self.xp.max(self.xp.abs(self.matrix.rows(slice(0, 1)))))
        return 2.0**-20 < self.largest < 2.0**20 and other < 2.0**20

    def _plan(self) -> None:
        """Look at all rows once: for what is not finite, and how large they are."""
        xp, matrix, n = self.xp, self.matrix, self.shape[0]
        heaviest = 1.0
        if self.weights is not None:
            heaviest = float(xp.max(self.weights.rows(slice(0, n), xp.float64)))
            self.heaviest = power_of_two(heaviest)
        if matrix.sparse:  # all values at once tell as much, unless one of them has to be named
            self.largest = matrix.data.largest
            if self.largest * max(heaviest, 1.0) < 2.0**900:
                return
        self._accept()

    def _accept(self) -> None:
        """Refuse rows that are not finite, or cannot be added up; note how large they are."""
        (high, largest, _), matrix, name = self._extent, self.matrix, self.names.x
        check.finite(matrix.spread(high[None, :])[0], name, matrix.dtype)
        if self.weights is not None:
            check.finite(largest, f"sample_weight * {name}", "float64")
        check.summable(largest, self.shape[0], name)
        self.largest = float(high.max())

    @property
    def _extent(self) -> tuple[np.ndarray, ...]:
        """By feature, the largest magnitude of rows, and the largest and the smallest nonzero one of summands."""
        if self._extents is None:
            self._extents = self._magnitudes()
        return self._extents

    def _magnitudes(self) -> tuple[np.ndarray, ...]:
        xp, matrix = self.xp, self.matrix

        def magnitudes(tile: slice) -> tuple[np.ndarray, ...]:
            """Largest |x|, and largest and smallest nonzero |summand|, of each feature."""
            if self.kernel.magnitudes is not None:
                found = self.kernel.magnitudes(matrix, tile, self.relative_weight(tile))
                return tuple(a.astype(np.float64) for a in found)
            x = xp.abs(matrix.rows(tile))
            high = xp.max(x, axis=0)
            w = self.relative_weight(tile)
            if w is not None:
                x = xp.concat([xp.astype(x, xp.float64) * w[:, None], w[:, None]], axis=1)
            largest = high if w is None else xp.max(x, axis=0)
            if w is not None or not matrix.integral:
                smallest = xp.min(xp.where(x > 0, x, xp.full_like(x, xp.inf)), axis=0)
            else:  # at least 1, and none of those that are whole anyway
                smallest = xp.clip(largest, max=2.0**23)
            return tuple(to_numpy(a).astype(np.float64) for a in (high, largest, smallest))

        return self.work.reduce(magnitudes, self._shares(self.shape[0]), _merged_magnitudes)

    # No `functools.cached_property`: up to Python 3.11 it has a lock, which a process forked meanwhile would wait for.
    @property
    def grid(self) -> Grid:
        """The grids of the sums, which labels alone do not need."""
        if self._grid is None:
            (self._grid,) = _grids([self])
        return self._grid

    @property
    def _scale(self) -> Array:
        """The grid's scale where the work is done: not every kernel wants it there."""
        if self._placed is None:
            self._placed = self.matrix.asarray(self.grid.scale)
        return self._placed

    def _shares(self, m: int, clusters: int = 0) -> list[slice]:
        """Return tiles of `m` rows; each ends in the sums of so many `clusters`, if any."""
        work = self.work
        results = -(-clusters * self.shape[1] // work.d)  # rows as large as these
        if self.kernel.compiled:  # which needs no room for itself
            share = -(-m // (2 * work.threads)) if work.threads > 1 else m
            # Each result is written and added, and each thread called.
            share = max(share, 2 * results, _CALL // work.d)
            # On a device rows are read where they are.
            most = work.readable(self.matrix) if work.host else m
            return work.tiles(0, m, max(1, min(share, most)))
        # Each piece adds its result, so make it long against that. Exact products take more temporaries.
        room = work.room if self.weights is None else work.room // 3
        step = max(1, min(max(work.rows_of(work.d), 4 * results), room // work.d))
        if self.kernel.one_hot:
            step = max(1, min(step, work.room // max(1, clusters)))
        return work.tiles(0, m, step)

    def summands(self, select: Selection) -> Array:
        """Return the rows' weighted values and weights, split on the grid (m, folds * (d + 1))."""
        xp = self.xp
        x = self.matrix.rows(select, xp.float64)
        one = xp.ones((x.shape[0], 1), dtype=xp.float64, device=self.matrix.device)
        values = xp.concat([x, one], axis=1)
        return self.grid.split(xp, values, self._scale, self.relative_weight(select))

    def stats(
        self, labels: Array, k: int, select: Array | None = None, old: Array | None = None
    ) -> ClusterStats:
        """Return the stats of the selected rows (default: all) with the given labels (m,).

        With `old` (m,) labels, the change that moving the rows from those makes.
        """
        xp, m, grid = self.xp, int(labels.shape[0]), self.grid

        def added(tile: slice) -> Array:
            rows = tile if select is None else select[tile]
            new, before = labels[tile], None if old is None else old[tile]
            if self.kernel.accumulate is not None:
                w = self.relative_weight(rows)
                return self.kernel.accumulate(self.matrix, rows, w, new, before, grid, k)
            values = self.summands(rows)
            if before is not None:
                values, new = xp.concat([values, -values]), xp.concat([new, before])
            return self.kernel.segment_sum(xp, values, new, k)

        tiles = self._shares(m, k)
        if tiles:
            return ClusterStats(self.work.reduce(added, tiles, operator.add), grid)
        shape = (k, grid.folds * (self.shape[1] + 1))
        return ClusterStats(xp.zeros(shape, dtype=xp.float64, device=self.matrix.device), grid)

    def masses(self, labels: Array, k: int) -> Array:
        """Return the weights (k,), float64, of all rows by label: the last column of the sums alone."""
        xp, grid = self.xp, Grid(self.grid.scale[-1:], self.grid.step, self.grid.folds)

        def added(tile: slice) -> Array:
            one = xp.ones((tile.stop - tile.start, 1), dtype=xp.float64, device=self.matrix.device)
            values = grid.split(xp, one, self._scale[-1:], self.relative_weight(tile))
            return self.kernel.segment_sum(xp, values, labels[tile], k)

        sums = self.work.reduce(added, self._shares(self.shape[0], k), operator.add)
        return grid.total(xp, sums, self._scale[-1:])[:, 0]

    def totals(self, stats: ClusterStats) -> tuple[Array, Array]:
        """Return the sums (k, d) and weights (k,) of `stats`, float64, both of relative weights."""
        if self.kernel.total is not None:
            total = self.kernel.total(self.grid, stats.sums)
        else:
            total = self.grid.total(self.xp, stats.sums, self._scale)
        return total[:, :-1], total[:, -1]

    def sums(self, labels: Array, k: int) -> tuple[Array, Array]:
        """Return the sums (k, d) and weights (k,) of all rows by label (n,), float64, both of relative weights."""
        if self.kernel.by_label is None or not self.matrix.direct:
            return self.totals(self.stats(labels, k))
        w = self.relative_weight(slice(0, self.shape[0]))
        total = self.kernel.by_label(self.matrix, self.work, w, labels, self.grid, k)
        return total[:, :-1], total[:, -1]

    # -- the source ---------------------------------------------------------------------------

    def begin(
        self, c: Array, bounds: str | None = None, *, host: Any = None, frame: Frame | None = None
    ) -> Array:
        """Forget labels and bounds; return the centroids (k, d) to run from for `c`, with a frame for them.

        They are others where rows would not show beside these: see `restored`. Where `c` is on the `host` as well, or
        there is a `frame` in which all of it shows, it is not looked at.

        Raises
        ------
        ValueError
            If given centroids do not fit the dtype of `c`.
        """
        bounds = BOUNDS if bounds is None else bounds
        self._cut: tuple[Array, Array] | None = None
        self._stats: ClusterStats | None = None
        reached: Any = None
        if frame is None:
            given, host = c, to_numpy(c) if host is None else host
            reached, self._magnitude = within_reach(host, self.largest)
            if reached is not host:
                if not np.isfinite(host).all():  # given ones are of a wider dtype
                    raise ValueError(
                        f"`init` must fit the dtype of the centroids, {dtype_name(c)}; got values beyond it."
                    )
                c = self.matrix.asarray(reached, c.dtype)
                self._cut = given, c
            largest = max(self.largest, float(self._magnitude.max()))
            frame = Frame.around(self.matrix, largest, reached)
        self.frame = frame
        if self.kernel.search is not None:
            self._search = self.kernel.search(
                self.frame, self.work, c.shape[0], bounds=bounds, exact=self.exact
            )
            return c
        self._search = Search(
            self.frame,
            self.kernel,
            self.work,
            self._group(reached, bounds),
            exact=self.exact,
            skip=bounds != "off",
            drop=bounds == "auto",
        )
        return c

    def restored(self, c: Array) -> Array:
        """Return centroids (k, d) with those that `begin` cut, and that have not moved since, as they were given."""
        if self._cut is None:
            return c
        given, cut = self._cut
        return self.xp.where(self.xp.all(c == cut, axis=1)[:, None], given, c)

    @property
    def cut(self) -> np.ndarray:
        """The numbers (m,) of the centroids that `begin` cut."""
        if self._cut is None:
            return np.empty(0, np.int64)
        given, cut = self._cut
        return np.flatnonzero(to_numpy(self.xp.any(given != cut, axis=1)))

    def near(self) -> np.ndarray:
        """Return the numbers (m,) of rows whose distances to the centroids begun with may not show beside the largest row."""
        limit = self.largest / BESIDE
        if self.glanced or limit == 0:
            return np.empty(0, np.int64)
        least = np.sort(self._magnitude)[:2]
        if least[0] > limit or (least[0] == 0 and min(least[-1], self._extent[2].min()) > limit):
            return np.empty(0, np.int64)  # all show, or are zero as that centroid is

        def magnitudes(tile: slice) -> np.ndarray:
            if self.matrix.sparse:
                return self.matrix.tile(tile).magnitudes()
            largest = to_numpy(self.xp.max(self.xp.abs(self.matrix.rows(tile)), axis=1))
            return np.asarray(largest, np.float64)

        return np.flatnonzero(np.concatenate(self.work.map(magnitudes, self.work.tiles())) <= limit)

    def _group(self, c: np.ndarray, bounds: str) -> list[np.ndarray]:
        """Return the numbers of the centroids `c` (k, d) by group: near ones together."""
        n, d = self.shape
        k = c.shape[0]
        everything = [np.arange(k)]
        if self.matrix.sparse or bounds in ("off", "hamerly") or k <= _GROUP:
            return everything
        if bounds == "auto" and (d <= 12 or k < _MANY):
            return everything
        found = groups(c.astype(np.float64, copy=False), _GROUP)
        return found if 4 * (2 + len(found)) * n <= self.work.max_bytes // 2 else everything

    def sweep(self, c: Array) -> ClusterStats:
        """Return the stats of all rows, each with its nearest centroid of `c` (k, d)."""
        xp, k = self.xp, int(c.shape[0])
        changes = self._search.settle(c)
        stats, moved = self._stats, self.shape[0]
        if changes is not None:
            moved = sum(int(rows.shape[0]) for rows, _, _ in changes)
        if stats is None or 3 * moved > self.shape[0]:  # in order, and once a row
            stats = self.stats(self._search.labels, k)
        elif moved:
            rows, old, new = changes[0]
            if len(changes) > 1:
                rows, old, new = (xp.concat([change[i] for change in changes]) for i in range(3))
            stats = stats + self.stats(new, k, rows, old)
        self._stats = stats
        return stats

    def leap(self, c: Array, passes: int, tol: float, empty: str) -> tuple[Array, int, float]:
        """Return the centroids after as many passes as its search can make at once, how many, and the shift."""
        leap = getattr(self._search, "leap", None)
        if leap is None:
            return c, 0, math.nan
        self._stats = None  # which are of other labels now
        w = self.relative_weight(slice(0, self.shape[0]))
        found: tuple[Array, int, float] = leap(c, passes, tol, w, self.grid, keep=empty == "keep")
        return found

    # -- decisions ----------------------------------------------------------------------------

    def update(self, stats: ClusterStats, c: Array, empty: str) -> Array:
        """Return the means (k, d) in the dtype of `c`, empty clusters served as `empty` says.

        Raises
        ------
        ValueError
            If a cluster is empty and `empty` is ``"error"``.
        """
        xp = self.xp
        sums, mass = self.totals(stats)
        vacant = np.flatnonzero(to_numpy(mass == 0))
        if vacant.size and empty == "error":
            raise ValueError(
                f"`empty`='error' and cluster {int(vacant[0])} has no rows. Use fewer clusters, "
                f"other initial centroids, or empty='relocate'."
            )
        if vacant.size and empty == "relocate":
            far, labels = self._farthest(c, vacant.size)
            if far.size:
                # The farthest rows leave their clusters and become clusters of their own.
                rows = self.matrix.asarray(far)
                new = self.matrix.asarray(vacant[: far.size])
                old = xp.astype(xp.take(labels, rows), new.dtype)
                k = int(c.shape[0])
                stats = stats + self.stats(new, k, rows, old)
                sums, mass = self.totals(stats)
        if self.kernel.means is not None:
            return self.kernel.means(sums, mass, c)
        return means(xp, sums, mass, c)

    def _farthest(self, c: Array, wanted: int) -> tuple[np.ndarray, Array]:
        """Return the rows farthest from their centroid in `c`, and the labels of all rows."""
        distance, labels = self.distances(c)
        if self.weights is not None:  # rows of no weight are not there
            w = self.weights.rows(slice(0, self.shape[0]))[:, 0]
            distance = self.xp.where(w > 0, distance, self.xp.zeros_like(distance))
        return seats(to_numpy(distance), wanted), labels

    def distances(self, c: Array) -> tuple[Array, Array]:
        """Return each row's squared distance (n,) in the scaled frame to its centroid, and its label."""
        labels, own = self._search.labels, getattr(self._search, "distances", None)
        return self._distances(self.frame.widen(c), labels) if own is None else own(), labels

    def _distances(self, wide: Array, labels: Array) -> Array:
        """Return each row's squared distance (n,) to its label's centroid of `wide` (k, d)."""
        parts = self.work.map(
            lambda tile: own_distances(self.frame, self.kernel, tile, wide, labels[tile]),
            self._shares(self.shape[0]),
        )
        return parts[0] if len(parts) == 1 else self.xp.concat(parts)

    def shift(self, c_new: Array, c: Array) -> float:
        """Return the sum of squared moves in the scaled frame."""
        now, before = self.frame.widen(c_new), self.frame.widen(c)
        moved = moves(self.kernel, self.matrix, now, before)
        return float(halving_sum(self.xp, moved[None, :])[0])

    def cost(self, distances: Array) -> float:
        """Return the sum of per-row `distances` (n,) by relative weight, exact on its grid."""
        if self.kernel.cost is not None:
            return self.kernel.cost(distances, self.relative_weight(slice(0, self.shape[0])))

        tiles = self.work.tiles(step=max(1, self.work.tile // 8))
        weigh = self.relative_weight
        extents = self.work.map(
            lambda tile: extent_of_costs(self.xp, distances[tile], weigh(tile)), tiles
        )
        extent = merged_extent(extents)
        grid = Grid.of_costs(extent, self.shape[0], self.weights is not None)
        return exact_sum(self.xp, ((distances[tile], weigh(tile)) for tile in tiles), grid)

    def variance(self) -> float:
        """Return the mean over features of the rows' weighted variance, in the scaled frame."""
        if self._spread is None:  # the same for every start
            self._spread = self._variance(), self.frame.exponent
        variance, exponent = self._spread
        return math.ldexp(variance, 2 * (exponent - self.frame.exponent))

    def _variance(self) -> float:
        xp, n = self.xp, self.shape[0]
        labels = xp.zeros(n, dtype=xp.int32, device=self.matrix.device)
        sums, mass = self.sums(labels, 1)
        weight = float(mass[0])
        mean = self.frame.widen(sums / xp.full_like(sums, weight))  # as in `means`
        return self.cost(self._distances(mean, labels)) / weight / self.matrix.features

    def label(self, c: Array) -> Array | None:
        """Return the labels (n,) of the nearest of the centroids `c`, or None if a glance at the rows misled."""
        self._search.settle(c)
        return None if self.glanced and self._search.lost else self._search.labels

    def finish(self, c: Array) -> tuple[Array, Array, float]:
        """Return labels (n,), squared distances (n,) and inertia for the centroids `c` returned."""
        labels, own = self.label(c), getattr(self._search, "distances", None)
        del self._search  # whose bounds are as large as what follows
        distances = self._distances(self.frame.widen(c), labels) if own is None else own()
        cost = self.cost(distances)
        exponent = 2 * self.frame.exponent
        inertia = float(np.ldexp(cost, exponent + self.heaviest))
        for part in (self.frame.exponent // 2, (self.frame.exponent + 1) // 2) * 2:
            if part:  # in four steps, as 2**exponent itself may be out of range
                distances = distances * 2.0**part
        return labels, distances, inertia


def _merged_magnitudes(
    a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, ...]:
    """Return the largest of two parts' largest magnitudes, twice, and the smallest of their smallest."""
    return np.maximum(a[0], b[0]), np.maximum(a[1], b[1]), np.minimum(a[2], b[2])


# -- sources of one shape, whose kernel may share launches among them ---------------------------


def plan_together(sources: list[Rows]) -> None:
    """Look at the rows of all sources, as each would that was made with a `plan`."""
    xp, look = sources[0].xp, sources[0].kernel.magnitudes_together
    if look is None:
        for source in sources:
            source._plan()
        return
    if sources[0].weights is not None:
        heaviest = to_numpy(xp.max(_stacked(xp, _weights(sources) or []), axis=1))
        for source, each in zip(sources, heaviest.tolist(), strict=True):
            source.heaviest = power_of_two(each)
    extents = look([source.matrix for source in sources], _weights(sources))
    highest = extents[0].max(axis=1).tolist()
    ordinary = all(float(a.max()) < 2.0**900 for a in extents[:2])  # which NaN is not
    for source, most, *extent in zip(sources, highest, *extents, strict=True):
        source._extents, source.largest = tuple(extent), most
        if not ordinary:
            source._accept()


def _grids(sources: list[Rows]) -> list[Grid]:
    """Return the grid of each source; they have as many folds as one needs, which does not show."""
    first = sources[0]
    n, matrix, weights = first.shape[0], first.matrix, first.weights
    precision = matrix.precision
    extents = zip(*(source._extent for source in sources), strict=True)
    high, largest, smallest = (_stacked(np, a) for a in extents)
    one = np.ones((len(sources), 1))
    if weights is not None:
        w = _weights(sources) or []
        bits = significant_bits(first.xp, _stacked(first.xp, w), weights.precision[0])[:, None]
        high = np.concatenate([high, one], axis=1)
        grid = Grid.of(high, largest, smallest, n, precision, bits)
    else:
        last = one * 2.0 ** (precision[0] - 1)  # its last bit is 1, as of whole numbers at least
        if matrix.integral:
            smallest = np.maximum(smallest, last)
        largest = np.concatenate([largest, one], axis=1)
        smallest = np.concatenate([smallest, last], axis=1)
        grid = Grid.of(largest, largest, smallest, n, precision)
    return [Grid(scale, grid.step, grid.folds) for scale in grid.scale]


def grids_together(sources: list[Rows]) -> None:
    """Plan the grids of all sources at once, for each source's `grid`."""
    missing = [source for source in sources if source._grid is None]
    for source, grid in zip(missing, _grids(missing) if missing else [], strict=True):
        source._grid = grid


def _stacked(xp: Namespace, arrays: Sequence[Array]) -> Array:
    """Return arrays with an axis of their own in front; one alone is not copied."""
    return xp.stack(arrays) if len(arrays) > 1 else arrays[0][None, ...]


def _weights(sources: list[Rows]) -> list[Array] | None:
    """Return the relative weights (n,) of each source, or None where all are one."""
    if sources[0].weights is None:
        return None
    return [source.relative_weight(slice(0, source.shape[0])) for source in sources]


def _alike(sources: list[Rows]) -> bool:
    """Return whether sources are copies of one."""
    return sources[-1].matrix is sources[0].matrix


def frames_together(sources: list[Rows], centroids: list[Array]) -> list[Frame | None]:
    """Return the frame for each source to `begin` its centroids (k, d) with, or None if it has to look for itself.

    Copies of one source share one.
    """
    first, alike = sources[0], _alike(sources)
    if first.kernel.together is None:
        return [None] * len(sources)
    largest, offsets = looks(first.xp, _stacked(first.xp, centroids), alike=alike)
    tops = [max(source.largest, each) for source, each in zip(sources, largest, strict=True)]
    reach = [top <= BESIDE * source.largest for source, top in zip(sources, tops, strict=True)]
    if not alike:
        return [
            Frame(source.matrix, top, offset) if shows else None
            for source, top, offset, shows in zip(sources, tops, offsets, reach, strict=True)
        ]
    most = max((top for top, shows in zip(tops, reach, strict=True) if shows), default=0.0)
    shared = Frame(first.matrix, most, offsets[0])
    return [
        shared if shows and power_of_two(top) == shared.exponent else None
        for top, shows in zip(tops, reach, strict=True)
    ]


def variances_together(sources: list[Rows]) -> None:
    """Find the variances of all sources at once, if their kernel knows how, for each source's `variance`."""
    find = sources[0].kernel.variances_together
    apart = sources[:1] if _alike(sources) else sources
    if find is not None and apart[0]._spread is None:
        grids_together(apart)
        grids = [source.grid for source in apart]
        costs, weights = find([source.frame for source in apart], _weights(apart), grids)
        found = costs / weights / apart[0].matrix.features
        for source, each in zip(apart, found.tolist(), strict=True):
            source._spread = each, source.frame.exponent
    for source in sources[len(apart) :]:
        source._spread = apart[0]._spread


def settle_together(sources: list[Rows], centroids: list[Array]) -> None:
    """Label the rows of all sources at once, if their kernel knows how, for each source's `finish`."""
    settle = sources[0].kernel.settle_together
    if settle is not None and len(sources) > 1:
        settle([source._search for source in sources], centroids)


def leap_together(
    sources: list[Rows], centroids: list[Array], passes: int, tol: list[float], empty: str
) -> list[tuple[Array, int, float]]:
    """Return what each source's `leap` gives, of launches they share if their kernel knows how; else no pass."""
    together = sources[0].kernel.together
    if together is None or len(sources) == 1:
        return [(c, 0, math.nan) for c in centroids]
    grids_together(sources)
    found: list[tuple[Array, int, float]] = together(
        [source._search for source in sources],
        centroids,
        passes,
        tol,
        _weights(sources) or [None] * len(sources),
        [source.grid for source in sources],
        keep=empty == "keep",
    )
    return found


def finish_together(sources: list[Rows], centroids: list[Array]) -> list[tuple[Array, float]]:
    """Return labels (n,) and inertia of each source for the centroids (k, d) returned."""
    find = sources[0].kernel.costs_together
    if find is None:
        ends = [source.finish(c) for source, c in zip(sources, centroids, strict=True)]
        return [(labels, inertia) for labels, _, inertia in ends]
    settle_together(sources, centroids)
    labels = [source.label(c) for source, c in zip(sources, centroids, strict=True)]
    costs = find([source._search for source in sources], _weights(sources))
    exponents = [2 * source.frame.exponent + source.heaviest for source in sources]
    for source in sources:
        del source._search  # whose memory is as large as what follows
    return list(zip(labels, np.ldexp(costs, exponents).tolist(), strict=True))
