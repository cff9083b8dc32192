"""Rows in memory: the exact sums of a matrix, kept running, and the decisions made from them.

:class:`Rows` is a source for the loop. Which rows a sweep really looks at is the business of its search.
"""

from __future__ import annotations

import functools
import math
import operator

import numpy as np

from anykmeans import _check as check
from anykmeans._array import Array, Matrix, Selection, to_numpy
from anykmeans._exact import Grid, exact_sum, halving_sum, power_of_two
from anykmeans._frame import Frame
from anykmeans._groups import groups
from anykmeans._search import Search
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
    precision : {"exact", "fast"}
        Whether labels are certified.
    name : str
        What the user calls the rows, for messages.
    glance : float or None
        If given, the first row alone is looked at, if it and this magnitude, of centroids, are ordinary ones and the
        kernel notices where others are not. Labels are all that can be asked for then, and are None if some are not.

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
        precision: str = "exact",
        name: str = "x",
        glance: float | None = None,
    ) -> None:
        self.matrix, self.weights, self.kernel = matrix, weights, kernel
        self.xp, self.shape = matrix.xp, matrix.shape
        self.exact = precision == "exact"
        self.work = Work(
            *self.shape, host=kernel.host, max_bytes=max_bytes, blas=not kernel.compiled
        )
        self.glanced = glance is not None and kernel.wary and self._glance(glance)
        if not self.glanced:
            self._plan(name)

    @classmethod
    def over(
        cls,
        x: Array,
        sample_weight: Array | None = None,
        *,
        kernel: str = "auto",
        max_bytes: int | None = None,
        precision: str = "exact",
        name: str = "x",
        glance: float | None = None,
    ) -> Rows:
        """Return a source over checked arrays `x` (n, d) and `sample_weight` (n,)."""
        chosen = choose(x, kernel)
        weights = None
        if sample_weight is not None:
            weights = Matrix.of(sample_weight, chosen.library)
        matrix = Matrix.of(x, chosen.library)
        return cls(
            matrix,
            weights,
            chosen,
            max_bytes=max_bytes,
            precision=precision,
            name=name,
            glance=glance,
        )

    # -- rows ---------------------------------------------------------------------------------

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

    def _plan(self, name: str) -> None:
        """Look at all rows once: for what is not finite, and for what the grids are made from."""
        xp, matrix = self.xp, self.matrix
        self.heaviest = 0
        if self.weights is not None:
            w = self.weights.rows(slice(0, self.shape[0]), xp.float64)
            self.heaviest = power_of_two(float(xp.max(w)))

        def magnitudes(tile: slice) -> tuple[np.ndarray, ...]:
            """Largest |x|, and largest and smallest nonzero |summand|, of each feature."""
            if self.kernel.magnitudes is not None:
                found = self.kernel.magnitudes(matrix, tile, self.relative_weight(tile))
                return tuple(a.astype(np.float64) for a in found)
            x = xp.abs(matrix.rows(tile))
            high = xp.max(x, axis=0)
            w = self.relative_weight(tile)
            if w is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    x = xp.concat([xp.astype(x, xp.float64) * w[:, None], w[:, None]], axis=1)
            largest = high if w is None else xp.max(x, axis=0)
            smallest = largest
            if w is not None or not matrix.integral:
                smallest = xp.min(xp.where(x > 0, x, xp.full_like(x, xp.inf)), axis=0)
            return tuple(to_numpy(a).astype(np.float64) for a in (high, largest, smallest))

        found = self.work.map(magnitudes, self._shares(self.shape[0]))
        highs, largests, smallests = zip(*found, strict=True)
        high, largest = (functools.reduce(np.maximum, each) for each in (highs, largests))
        check.finite(high, name, matrix.dtype)
        if self.weights is not None:
            check.finite(largest, f"sample_weight * {name}", "float64")
        check.summable(largest, self.shape[0], name)
        self._extent = largest, functools.reduce(np.minimum, smallests)
        self.largest = float(high.max())

    @functools.cached_property
    def grid(self) -> Grid:
        """The grids of the sums, which labels alone do not need."""
        largest, smallest = self._extent
        # Every summand is a multiple of the last bit of the smallest.
        digits, least = (24, -149) if self.matrix.narrow and self.weights is None else (53, -1074)
        empty = ~np.isfinite(smallest)
        lowest = np.maximum(np.frexp(np.where(empty, 1.0, smallest))[1] - float(digits), least)
        lowest[empty] = 0.0
        if self.weights is None:
            if self.matrix.integral:
                lowest[:] = 0.0
            largest, lowest = np.append(largest, 1.0), np.append(lowest, 0.0)
        return Grid.plan(largest, self.shape[0], lowest)

    @functools.cached_property
    def _scale(self) -> Array:
        return self.matrix.asarray(self.grid.scale)

    @functools.cached_property
    def frame(self) -> Frame:
        """The coordinates of comparison; a run from centroids chooses its own."""
        return Frame(self.matrix, self.largest)

    def _shares(self, m: int, width: int = 1) -> list[slice]:
        """Return tiles of `m` rows for work that ends in `width` times a row's numbers a tile."""
        if self.kernel.compiled:  # which needs no room for itself
            share = -(-m // (2 * self.work.threads)) if self.work.threads > 1 else m
            # Each result is written and added, and each thread called.
            share = max(share, 2 * width, _CALL // self.shape[1])
            return self.work.tiles(0, m, max(1, min(share, self.work.readable(self.matrix))))
        # Each piece adds its result, so make it long against that.
        step = max(
            self.work.rows_of(self.shape[1]), min(4 * width, self.work.room // self.shape[1])
        )
        if self.kernel.one_hot:
            step = max(1, min(step, self.work.room // width))
        return self.work.tiles(0, m, step)

    def summands(self, select: Selection) -> Array:
        """Return the rows' weighted values and weights, split on the grid (m, folds * (d + 1))."""
        xp = self.xp
        x = self.matrix.rows(select, xp.float64)
        w = self.relative_weight(select)
        if w is None:
            w = xp.ones(x.shape[0], dtype=xp.float64, device=self.matrix.device)
        else:
            x = x * w[:, None]
        return self.grid.split(xp, xp.concat([x, w[:, None]], axis=1), self._scale)

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

        def run(tiles: list[slice]) -> Array:
            return functools.reduce(operator.add, map(added, tiles))

        tiles = self._shares(m, k)
        if len(tiles) == 1:
            return ClusterStats(added(tiles[0]), grid)
        runs = [tiles[i :: self.work.threads] for i in range(min(self.work.threads, len(tiles)))]
        if not runs:
            zero = self.xp.zeros(
                (k, grid.folds * (self.shape[1] + 1)),
                dtype=self.xp.float64,
                device=self.matrix.device,
            )
            return ClusterStats(zero, grid)
        parts = [ClusterStats(sums, grid) for sums in self.work.map(run, runs)]
        return functools.reduce(ClusterStats.__add__, parts)

    def totals(self, stats: ClusterStats) -> tuple[Array, Array]:
        """Return the sums (k, d) and weights (k,) of `stats`, float64, both of relative weights."""
        if self.kernel.total is not None:
            total = self.kernel.total(self.grid, stats.sums)
        else:
            total = self.grid.total(self.xp, stats.sums, self._scale)
        return total[:, :-1], total[:, -1]

    # -- the source ---------------------------------------------------------------------------

    def begin(self, c: Array, bounds: str | None = None, name: str = "init") -> None:
        """Forget labels and bounds, and choose the frame for a run from centroids `c` (k, d).

        Raises
        ------
        ValueError
            If the centroids, which the user calls `name`, are beyond all rows.
        """
        bounds = BOUNDS if bounds is None else bounds
        host = check.host_float64(c)
        check.reach(self.largest, host, name)
        self.frame = Frame.around(self.matrix, self.largest, host)
        self._stats: ClusterStats | None = None
        if self.kernel.search is not None:
            self._search = self.kernel.search(
                self.frame, self.work, c.shape[0], bounds=bounds, exact=self.exact
            )
            return
        self._search = Search(
            self.frame,
            self.kernel,
            self.work,
            self._group(host, bounds),
            exact=self.exact,
            skip=bounds != "off",
            drop=bounds == "auto",
        )

    def _group(self, c: np.ndarray, bounds: str) -> list[np.ndarray]:
        """Return the numbers of the centroids `c` (k, d) by group: near ones together."""
        n, d = self.shape
        k = c.shape[0]
        everything = [np.arange(k)]
        if bounds in ("off", "hamerly") or k <= _GROUP:
            return everything
        if bounds == "auto" and (d <= 12 or k < _MANY):
            return everything
        found = groups(c, _GROUP)
        return found if 4 * (2 + len(found)) * n <= self.work.max_bytes // 2 else everything

    def sweep(self, c: Array) -> ClusterStats:
        """Return the stats of all rows, each with its nearest centroid of `c` (k, d)."""
        xp, k = self.xp, int(c.shape[0])
        changes = self._search.settle(c)
        moved = sum(int(rows.shape[0]) for rows, _, _ in changes)
        if self._stats is None or 3 * moved > self.shape[0]:  # in order, and once a row
            self._stats = self.stats(self._search.labels, k)
        elif moved:
            rows, old, new = changes[0]
            if len(changes) > 1:
                rows, old, new = (xp.concat([change[i] for change in changes]) for i in range(3))
            self._stats = self._stats + self.stats(new, k, rows, old)
        return self._stats

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
        labels = self._search.labels
        return self._distances(self.frame.widen(c), labels), labels

    def _distances(self, wide: Array, labels: Array) -> Array:
        """Return each row's squared distance (n,) to its label's centroid of `wide` (k, d)."""
        xp = self.xp

        if self.kernel.own_distances is not None:
            found = xp.empty(self.shape[0], dtype=xp.float64, device=self.matrix.device)
            unit, write = self.frame.unit, self.kernel.own_distances
            self.work.map(
                lambda tile: write(self.matrix, tile, unit, wide, labels[tile], found[tile]),
                self._shares(self.shape[0]),
            )
            return found

        def distance(tile: slice) -> Array:
            own = xp.take(wide, labels[tile], axis=0)
            return self.kernel.squared_distances(xp, self.frame.wide(tile), own)

        return xp.concat(self.work.map(distance, self._shares(self.shape[0])))

    def shift(self, c_new: Array, c: Array) -> float:
        """Return the sum of squared moves in the scaled frame."""
        moves = self.kernel.squared_distances(self.xp, self.frame.widen(c_new), self.frame.widen(c))
        return float(halving_sum(self.xp, moves[None, :])[0])

    def cost(self, distances: Array) -> float:
        """Return the sum of per-row `distances` (n,) by relative weight, exact on its grid."""
        if self.kernel.cost is not None:
            return self.kernel.cost(distances, self.relative_weight(slice(0, self.shape[0])))

        def cost(tile: slice) -> Array:
            w = self.relative_weight(tile)
            return distances[tile] if w is None else w * distances[tile]

        tiles = self.work.tiles(step=max(1, self.work.tile // 8))
        high = max(self.work.map(lambda tile: float(self.xp.max(cost(tile))), tiles))
        return exact_sum(self.xp, (cost(tile) for tile in tiles), high, self.shape[0])

    def variance(self) -> float:
        """Return the mean over features of the rows' variance (unweighted), in the scaled frame."""
        xp = self.xp
        n, d = self.shape
        plain = (
            self
            if self.weights is None
            else Rows(self.matrix, None, self.kernel, max_bytes=self.work.max_bytes)
        )
        labels = xp.zeros(n, dtype=xp.int32, device=self.matrix.device)
        sums, mass = plain.totals(plain.stats(labels, 1))
        mean = self.frame.widen(sums / xp.full_like(sums, float(mass[0])))  # as in `means`
        spread = self._distances(mean, labels)
        return plain.cost(spread) / n / d

    def label(self, c: Array) -> Array | None:
        """Return the labels (n,) of the nearest of the centroids `c`, or None if a glance at the rows misled."""
        self._search.settle(c)
        return None if self.glanced and self._search.lost else self._search.labels

    def finish(self, c: Array) -> tuple[Array, Array, float]:
        """Return labels (n,), squared distances (n,) and inertia for the centroids `c` returned."""
        labels = self.label(c)
        del self._search  # whose bounds are as large as what follows
        distances = self._distances(self.frame.widen(c), labels)
        cost = self.cost(distances)
        exponent = 2 * self.frame.exponent
        with np.errstate(over="ignore"):
            inertia = float(np.ldexp(cost, exponent + self.heaviest))
            for part in (self.frame.exponent // 2, (self.frame.exponent + 1) // 2) * 2:
                if part:  # in four steps, as 2**exponent itself may be out of range
                    distances = distances * 2.0**part
        return labels, distances, inertia


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
    weights = [source.relative_weight(slice(0, source.shape[0])) for source in sources]
    found: list[tuple[Array, int, float]] = together(
        [source._search for source in sources],
        centroids,
        passes,
        tol,
        weights,
        [source.grid for source in sources],
        keep=empty == "keep",
    )
    return found
