"""Rows in memory, with their weights: what is known of them before any centroid."""

from __future__ import annotations

import math
import operator
from typing import Any, cast

import numpy as np

from anykmeans import _check as check
from anykmeans._extent import Extent, grids
from anykmeans._frame import BESIDE, Frame, power_of_two
from anykmeans._grid import Grid, significant_bits
from anykmeans._libraries import Array, Selection, stacked, to_numpy
from anykmeans._matrix import Matrix
from anykmeans._spherical import normalized
from anykmeans._stats import ClusterStats, Farthest, farthest_rows
from anykmeans._work import Work
from anykmeans.kernels import Kernel, choose
from anykmeans.sources.descent import InMemory


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
    problem : str
        What they are called if they are one of several.
    look : bool
        Whether to look at them now; else `look`, `look_at` or `glance` does, before they are used.
    work : Work, optional
        That of other rows, as many and as wide.
    metric : {"euclidean", "cosine"}
        Whether rows and centroids are as they are, or are brought to length 1.
    once : bool
        Whether rows are read once or so, for which no copy of them is made.

    Attributes
    ----------
    largest : float
        The largest magnitude of the rows.
    heaviest : int
        Relative weights are the user's times ``2**-heaviest``.
    ran : dict
        The names of the kernels that were at work, in their order.
    glanced : bool
        Whether `largest` is that of the first row alone.

    Raises
    ------
    ValueError
        If a row, a weight or their product is NaN or infinite.
    ValueError
        If a row has length 0 and `metric` is "cosine".
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
        problem: str = "",
        look: bool = True,
        work: Work | None = None,
        metric: str = "euclidean",
        once: bool = False,
    ) -> None:
        self.work = work or _work(matrix, kernel, max_bytes, threads)
        if metric == "cosine":
            matrix, taken = normalized(matrix, kernel, self.work, names.x, copy=not once)
            if taken and work is None:
                self.work = _work(matrix, kernel, self.work.beside(taken), threads)
        self.matrix, self.weights, self.kernel = matrix, weights, kernel
        self.ran: dict[str, None] = {}
        self.xp, self.shape = matrix.xp, matrix.shape
        self.exact, self.names, self.problem = precision == "exact", names, problem
        self.largest, self.heaviest, self.glanced = 0.0, 0, False
        self._others: Work | None = None  # on other rows, see `of`
        self._extent: Extent | None = None
        self._grid: Grid | None = None
        self._scale: Array | None = None
        self._variance: tuple[float, int] | None = None
        self._at_work()
        if look:
            self.look()

    @classmethod
    def over(
        cls,
        x: Array,
        sample_weight: Array | None = None,
        *,
        kernel: str | Kernel = "auto",
        max_bytes: int | None = None,
        given: np.ndarray | None = None,
        metric: str = "euclidean",
        **how: Any,
    ) -> Rows:
        """Return a source over checked arrays `x` (n, d) and `sample_weight` (n,), told `how` as the class is.

        Centroids (k, d) that are not rows, or means of rows, are `given`: sparse rows have columns for them.
        """
        chosen = kernel if isinstance(kernel, Kernel) else choose(x, kernel, metric)
        weights = None if sample_weight is None else Matrix.of(sample_weight, chosen.library)
        matrix = Matrix.of(x, chosen.library, given=given, max_bytes=max_bytes)
        return cls(matrix, weights, chosen, max_bytes=max_bytes, metric=metric, **how)

    def start(self, c: Array, *, bounds: str | None = None, **known: Any) -> InMemory:
        """Return a run from the centroids `c` (k, d), in their dtype; see `InMemory` for what may be `known`."""
        return InMemory(self, c, bounds=bounds, **known)

    def named(self) -> Named:
        """Tell of an error, that of a callable too, which of several problems it was."""
        return Named(self.problem)

    def renewed(self) -> bool:
        """Go on with the kernel that pays by now; return whether that is another."""
        if self.kernel.stays():
            return False
        before, self._others = self.kernel, None
        self.kernel = choose(self.matrix.source, metric=self.matrix.metric)
        self._at_work()
        return self.kernel is not before

    def _at_work(self) -> None:
        """Take down that the kernel is at work, and if it is so in host memory on rows that are not."""
        name = self.kernel.name
        self.ran |= {f"host:{name}" if self.matrix.away else name: None}

    # -- rows ---------------------------------------------------------------------------------

    def take(
        self,
        at: np.ndarray,
        *,
        weighted: bool = True,
        alike: bool = False,
        over: Rows | None = None,
    ) -> Rows:
        """Return the rows `at` (m,) as a source of their own, without weights if not `weighted`.

        If they are `alike`, magnitudes of all these rows do for them, and they are not looked at. They may be written `over` rows
        that were taken before, and are not needed any more.
        """
        numbers, weights = self.matrix.asarray(at), None
        if weighted and self.weights is not None:
            weights = self.weights.take(numbers)
        matrix = self.matrix.take(numbers, None if over is None else over.matrix)
        few = self.of(matrix, weights, look=not alike)
        if alike:
            few.largest = self.largest
            if weights is not None:
                few.heaviest = self.heaviest
            if (weights is None) == (self.weights is None):
                few._extent = self.extent
        return few

    def of(
        self,
        matrix: Matrix,
        weights: Matrix | None,
        *,
        look: bool = True,
        metric: str = "euclidean",
    ) -> Rows:
        """Return a source over other rows, to be worked on and spoken of as these are; a `metric` is that of the class."""
        work = (
            self._others
        )  # batches are alike, and how many threads there may be takes long to tell
        if work is None or (work.n, work.d) != (matrix.shape[0], matrix.width):
            work = _work(matrix, self.kernel, self.work.max_bytes, self.work.most)
            self._others = work
        return Rows(
            matrix,
            weights,
            self.kernel,
            work=work,
            precision="exact" if self.exact else "fast",
            names=self.names,
            look=look,
            metric=metric,
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

    @property
    def every(self) -> slice:
        """What selects all rows."""
        return slice(0, self.shape[0])

    # -- what a look tells --------------------------------------------------------------------

    def look(self) -> None:
        """Look at all rows once: for what is not finite, and how large they are."""
        look_at([self])

    def glance(self, c: np.ndarray | None = None) -> None:
        """Look at the first row alone, if that will do for labels and distances to centroids `c` (k, d), or to rows.

        It does if all are ordinary numbers and the kernel notices where other rows are not; that is looked for as they are read.
        """
        if self.kernel.notices_outliers() and (c is None or _ordinary(c)):
            self.largest = float(self.xp.max(self.xp.abs(self.matrix.rows(slice(0, 1)))))
            self.glanced = 2.0**-20 < self.largest < 2.0**20
        if not self.glanced:
            self.look()

    def accept(self, extent: Extent) -> None:
        """Take what a look told; refuse rows that are not finite, or cannot be added up."""
        self._extent, name = extent, self.names.x
        self.largest = float(extent.high.max())
        weighted = self.weights is not None  # else summands are rows
        if self.largest < 2.0**900 and not (weighted and not extent.largest.max() < 2.0**900):
            return  # which NaN is not
        check.finite(self.matrix.spread(extent.high[None, :])[0], name, self.matrix.dtype)
        if self.weights is not None:
            check.finite(extent.largest, f"sample_weight * {name}", "float64")
        check.summable(extent.largest, self.shape[0], name)

    def told(
        self, tile: slice, high: np.ndarray, largest: np.ndarray, smallest: np.ndarray
    ) -> Extent:
        """Return the extent of a tile by its magnitudes, of any float dtype."""
        w, digits, matrix = self.relative_weight(tile), None, self.matrix
        if w is not None and self.weights is not None:
            (digits,) = significant_bits(self.xp, w[None, :], self.weights.precision[0])
        high, largest, smallest = (
            a.astype(np.float64, copy=False) for a in (high, largest, smallest)
        )
        m, about = tile.stop - tile.start, (matrix.precision, matrix.integral, digits)
        return Extent(m, high, largest, smallest, *about, heaviest=self.heaviest)

    @property
    def extent(self) -> Extent:
        """What a look at all rows tells, which sparse ones that are ordinary numbers have not had yet."""
        if self._extent is None:
            (self._extent,) = self.kernel.extents([self])
        return self._extent

    def be_part_of(self, extent: Extent) -> None:
        """Add up on the grid of more rows, of which `extent` is known, and weigh these as it weighs all."""
        self.heaviest = extent.heaviest
        self.add_on(extent.grid())

    # No `functools.cached_property`: up to Python 3.11 it has a lock, which a process forked meanwhile would wait for.
    @property
    def grid(self) -> Grid:
        """The grids of the sums, which labels alone do not need."""
        if self._grid is None:
            plan([self])
        return cast(Grid, self._grid)

    def add_on(self, grid: Grid) -> None:
        """Have sums made on a `grid` that holds those of other rows, too."""
        self._grid, self._scale = grid, None

    @property
    def scale(self) -> Array:
        """The grid's scale where the work is done: not every kernel wants it there."""
        if self._scale is None:
            self._scale = self.matrix.asarray(self.grid.scale)
        return self._scale

    def frame(self) -> Frame:
        """Return coordinates for the rows alone."""
        return Frame(self.matrix, self.largest)

    def variance(self, exponent: int) -> float:
        """Return the mean over features of the rows' weighted variance, in the frame of an `exponent`."""
        if self._variance is None:
            vary([self])
        variance, own = cast(tuple[float, int], self._variance)
        return math.ldexp(variance, 2 * (own - exponent))

    # -- exact sums ---------------------------------------------------------------------------

    def summands(self, select: Selection) -> Array:
        """Return the rows' weighted values and weights, split on the grid (m, folds * (d + 1))."""
        xp = self.xp
        x = self.matrix.rows(select, xp.float64)
        one = xp.ones((x.shape[0], 1), dtype=xp.float64, device=self.matrix.device)
        values = xp.concat([x, one], axis=1)
        return self.grid.split(xp, values, self.scale, self.relative_weight(select))

    def stats(
        self, labels: Array, k: int, select: Array | None = None, old: Array | None = None
    ) -> ClusterStats:
        """Return the stats of the selected rows (default: all) with the given labels (m,).

        With `old` (m,) labels, the change that moving the rows from those makes.
        """
        m, width = int(labels.shape[0]), self.grid.folds * (self.shape[1] + 1)

        def added(tile: slice) -> Array:
            rows = tile if select is None else select[tile]
            before = None if old is None else old[tile]
            return self.kernel.sums(self, rows, labels[tile], before, k)

        tiles = self.kernel.tiles(self, m, k)
        if tiles:
            return ClusterStats(self.work.reduce(added, tiles, operator.add), self.grid)
        zeros = self.xp.zeros((k, width), dtype=self.xp.float64, device=self.matrix.device)
        return ClusterStats(zeros, self.grid)

    def farthest(self, labels: Array, distances: Array, most: int) -> Farthest:
        """Return the rows farthest from their centroid, by labels (n,) and squared `distances` (n,) of all rows."""
        if self.weights is not None:  # rows of no weight are not there
            w = self.weights.rows(self.every)[:, 0]
            distances = self.xp.where(w > 0, distances, self.xp.zeros_like(distances))
        far = farthest_rows(to_numpy(distances), most)
        at, m = self.matrix.asarray(far), far.size
        apart = self.matrix.asarray(np.arange(m))
        summands = self.stats(self.xp.astype(apart, labels.dtype), m, at).sums
        found = (self.xp.take(a, at) for a in (distances, labels))
        return Farthest(most, *(np.asarray(to_numpy(a)) for a in (*found, summands)))

    def sums(self, labels: Array, k: int) -> tuple[Array, Array]:
        """Return the sums (k, d) and weights (k,) of all rows by label (n,), float64, both of relative weights."""
        total = self.kernel.totals_by_label(self, labels, k)
        return total[:, :-1], total[:, -1]

    def masses(self, labels: Array, k: int) -> Array:
        """Return the weights (k,), float64, of all rows by label: the last column of the sums alone."""
        xp, grid = self.xp, Grid(self.grid.scale[-1:], self.grid.step, self.grid.folds)

        def added(tile: slice) -> Array:
            one = xp.ones((tile.stop - tile.start, 1), dtype=xp.float64, device=self.matrix.device)
            values = grid.split(xp, one, self.scale[-1:], self.relative_weight(tile))
            return self.kernel.segment_sum(xp, values, labels[tile], k)

        tiles = self.kernel.tiles(self, self.shape[0], k)
        sums = self.work.reduce(added, tiles, operator.add)
        return grid.total(xp, sums, self.scale[-1:])[:, 0]


class Named:
    """Tells of an error in which `problem` it was, if that has a name."""

    def __init__(self, problem: str) -> None:  # no generator: there may be thousands
        self._problem = problem

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._problem and isinstance(error, Exception):
            error.add_note(f"This was while clustering `{self._problem}`.")


def _work(matrix: Matrix, kernel: Kernel, max_bytes: int | None, threads: int | None) -> Work:
    """Return how work on rows is cut and spread."""
    return Work(
        *(matrix.shape[0], matrix.width),
        host=kernel.host,
        max_bytes=max_bytes,
        threads=threads,
        blas=kernel.blas,
        effort=4 if matrix.sparse else 1,
    )


def _ordinary(c: np.ndarray) -> bool:
    """Return whether centroids (k, d) need no scaling, nor rows beside the first that are as tiny as they are."""
    c = np.asarray(c, np.float64)
    if max(float(c.max()), -float(c.min())) >= 2.0**20:
        return False
    if float(np.abs(c).min()) * BESIDE >= 1:
        return True
    return int(np.count_nonzero(np.abs(c).max(axis=1) * BESIDE < 1)) <= 1


# -- rows of one shape, whose kernel may look at them in launches they share --------------------


def look_at(all_rows: list[Rows]) -> None:
    """Look at the rows of all sources: for what is not finite, and how large they are."""
    one = all_rows[0]
    heaviest = [1.0] * len(all_rows)
    if one.weights is not None:
        w = [rows.relative_weight(rows.every) for rows in all_rows]
        heaviest = to_numpy(one.xp.max(stacked(one.xp, w), axis=1)).tolist()
    for rows, most in zip(all_rows, heaviest, strict=True):
        rows.glanced = False
        rows.heaviest = 0 if rows.weights is None else power_of_two(most)
    if one.matrix.sparse:  # all values at once tell as much, unless one of them has to be named
        one.largest = one.matrix.data.largest
        if one.largest * max(heaviest[0], 1.0) < 2.0**900:
            return
    for rows, extent in zip(all_rows, one.kernel.extents(all_rows), strict=True):
        rows.accept(extent)


def plan(all_rows: list[Rows]) -> None:
    """Plan the grids of all sources at once, for each source's `grid`."""
    missing = [rows for rows in dict.fromkeys(all_rows) if rows._grid is None]
    found = grids([rows.extent for rows in missing]) if missing else []
    for rows, grid in zip(missing, found, strict=True):
        rows._grid = grid


def vary(all_rows: list[Rows]) -> None:
    """Find the variances of all sources at once, for each source's `variance`."""
    missing = [rows for rows in dict.fromkeys(all_rows) if rows._variance is None]
    plan(missing)
    found = missing[0].kernel.variances(missing) if missing else []
    for rows, variance in zip(missing, found, strict=True):
        rows._variance = variance, rows.frame().exponent
