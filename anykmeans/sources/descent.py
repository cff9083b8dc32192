"""A run over rows in memory: labels found by a search that may skip work, sums kept running.

Which rows a pass really looks at is the business of its search, and does not show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from anykmeans._distance import halving_sum
from anykmeans._frame import BESIDE, Frame, within_reach
from anykmeans._libraries import Array, dtype_name, to_numpy
from anykmeans._lloyd import Descent, Labelled, Progress
from anykmeans._settings import current
from anykmeans._spherical import directions
from anykmeans._stats import ClusterStats, Farthest

if TYPE_CHECKING:
    from anykmeans.sources.rows import Rows


class InMemory(Descent):
    """A run over `rows` from the centroids `c` (k, d).

    Parameters
    ----------
    rows : Rows
        What to label.
    c : array of shape (k, d)
        Where to begin, in the dtype of centroids.
    bounds : {"auto", "off", "hamerly", "groups"}, optional
        How work is skipped; "off" for who makes one pass alone.
    host : ndarray of shape (k, d), optional
        The same centroids, where they are on the host already.
    frame : Frame, optional
        One in which all of `c` shows: they are not looked at.

    Attributes
    ----------
    c : array of shape (k, d)
        The centroids to run from. They are others where rows would not show beside those given: see `restored`.

    Raises
    ------
    ValueError
        If given centroids do not fit their dtype.
    """

    def __init__(
        self,
        rows: Rows,
        c: Array,
        *,
        bounds: str | None = None,
        host: np.ndarray | None = None,
        frame: Frame | None = None,
    ) -> None:
        if isinstance(c, np.ndarray):  # a frame's columns may be what lies together
            c = np.ascontiguousarray(c)
        self.rows, self.kernel, self.given, self.c = rows, rows.kernel, c, c
        self._bounds = current().bounds if bounds is None else bounds
        self._stats: ClusterStats | None = None
        if frame is None:
            frame = self._framed(to_numpy(c) if host is None else host)
        self._begin(frame, self.c)

    def _begin(self, frame: Frame, c: Array) -> None:
        """Have all rows to be labelled in a frame, from the centroids `c` on."""
        self.frame = frame
        self.search = self.kernel.search(self.rows, frame, c, self._bounds)

    def _framed(self, host: np.ndarray) -> Frame:
        """Return a frame for rows and centroids, and cut those that are out of reach."""
        rows = self.rows
        reached, self._magnitudes = within_reach(host, rows.largest)
        if reached is not host:
            if not np.isfinite(host).all():  # given ones are of a wider dtype
                raise ValueError(
                    f"`init` must fit the dtype of the centroids, {dtype_name(self.c)}; got values beyond it."
                )
            self.c = rows.matrix.asarray(reached, self.c.dtype)
        largest = max(rows.largest, float(self._magnitudes.max()))
        return Frame.around(rows.matrix, largest, reached)

    # -- passes -------------------------------------------------------------------------------

    def steps(self, c: Array, most: int, tol: float, empty: str) -> tuple[Array, int, float]:
        """Return the centroids after the next passes: as many as the search can make at once.

        By a kernel that pays more by now, if there is one: its search begins anew.
        """
        if self.rows.renewed():
            self.kernel = self.rows.kernel
            self._begin(self.frame, c)
        if self.rows.matrix.spherical and not self.search.turns:
            return super().steps(c, most, tol, empty)
        return self.search.steps(self, c, most, tol, empty)

    def sweep(self, c: Array) -> ClusterStats:
        """Return the stats of all rows, each with its nearest centroid of `c` (k, d)."""
        rows, k = self.rows, int(c.shape[0])
        if rows.matrix.spherical and (swept := self.search.swept(rows, c)) is not None:
            return swept  # others are asked for `steps`
        changes, moved = self.search.relabel(c)
        stats = self._stats
        if stats is None or 3 * moved > rows.shape[0]:  # in order, and once a row
            stats = rows.stats(self.search.labels, k)
        elif moved:
            which, old, new = changes[0]
            if len(changes) > 1:
                which, old, new = (rows.xp.concat([each[i] for each in changes]) for i in range(3))
            stats = stats + rows.stats(new, k, which, old)
        self._stats = stats
        return stats

    def forget(self) -> None:
        """Forget the sums: passes were made without them, and labels are others now."""
        self._stats = None

    def means(self, stats: ClusterStats, c: Array) -> tuple[Array, Array]:
        """Return the means (k, d) of clusters in the dtype of `c`, at length 1 if rows are, and their relative weights (k,)."""
        rows, kernel = self.rows, self.kernel
        if not rows.matrix.spherical:
            return kernel.means(rows, stats, c)
        total = kernel.total(rows, stats)
        sums, mass = total[:, :-1], total[:, -1]
        means = kernel.divide(rows.xp, sums, mass, rows.xp.astype(c, rows.xp.float64))
        found = directions(kernel, rows.matrix, to_numpy(means), to_numpy(c))
        return rows.matrix.asarray(found), mass

    def move(self, c_new: Array, c: Array) -> float:
        """Return the sum of squared moves in the frame."""
        matrix = self.rows.matrix
        moved = self.kernel.moves(matrix, self.frame.widen(c_new), self.frame.widen(c))
        return float(halving_sum(matrix.xp, moved[None, :])[0])

    def farthest(self, c: Array, most: int) -> Farthest:
        """Return the rows farthest from their centroid in `c`."""
        return self.rows.farthest(self.search.labels, self.distances(c), most)

    def progress(self, n_iter: int, c: Array, moved: float, tol: float) -> Progress:
        """Return what a `Watch` is told: centroids in NumPy, with all of the user's features."""
        squares = np.ldexp([moved, tol], 2 * self.frame.exponent).tolist()
        return Progress(n_iter, to_numpy(self.rows.matrix.spread(c)), *squares)

    @property
    def variance(self) -> float:
        """The mean weighted variance of the features, in the frame: what a user's `tol` is relative to."""
        return self.rows.variance(self.frame.exponent)

    # -- ends ---------------------------------------------------------------------------------

    def labels(self, c: Array) -> Array:
        """Return the labels (n,) of the nearest of the centroids `c`."""
        self.search.relabel(c)
        if self.rows.glanced and self.search.lost:
            self._look_again()
            self.search.relabel(c)
        return self.search.labels

    def pairwise(self, c: Array) -> Array:
        """Return the distances (n, k) of all rows to the centroids `c` (k, d)."""
        found, lost = self.kernel.pairwise(self.rows, self.frame, self.frame.widen(c))
        if self.rows.glanced and lost:
            self._look_again()
            found, _ = self.kernel.pairwise(self.rows, self.frame, self.frame.widen(c))
        return found

    def _look_again(self) -> None:
        """Begin anew, with a look at all rows: a glance misled."""
        self.rows.look()
        self._begin(self._framed(to_numpy(self.given)), self.c)

    def distances(self, c: Array) -> Array:
        """Return the squared distances (n,), in the frame, to the labels' centroids of `c`."""
        return self.search.distances(self.rows, self.frame, c)

    def label(self, c: Array) -> Labelled:
        """Return labels (n,), squared distances (n,) and inertia for the centroids `c` returned."""
        labels, rows = self.labels(c), self.rows
        distances = self.distances(c)
        del self.search  # whose bounds are as large as what follows
        cost, exponent = self.kernel.cost(rows, self.frame, distances), self.frame.exponent
        inertia = float(np.ldexp(float(cost), 2 * exponent + rows.heaviest))
        for part in (exponent // 2, (exponent + 1) // 2) * 2:
            if part:  # in four steps, as 2**exponent itself may be out of range
                distances = distances * 2.0**part
        return Labelled(labels, distances, cost, inertia)

    def restored(self, c: Array) -> Array:
        """Return centroids (k, d) with those that were cut, and that have not moved since, as they were given."""
        if self.c is self.given:
            return c
        same = self.rows.xp.all(c == self.c, axis=1)[:, None]
        return self.rows.xp.where(same, self.given, c)

    @property
    def cut(self) -> np.ndarray:
        """The numbers (m,) of the centroids that were cut."""
        if self.c is self.given:
            return np.empty(0, np.int64)
        return np.flatnonzero(to_numpy(self.rows.xp.any(self.given != self.c, axis=1)))

    def near(self) -> np.ndarray:
        """Return the numbers (m,) of rows whose distances to the centroids begun with may not show beside the largest row."""
        rows = self.rows
        limit = rows.largest / BESIDE
        if rows.glanced or limit == 0:
            return np.empty(0, np.int64)
        least = np.sort(self._magnitudes)[:2]
        if least[0] > limit or (
            least[0] == 0 and min(least[-1], rows.extent.smallest.min()) > limit
        ):
            return np.empty(0, np.int64)  # all show, or are zero as that centroid is

        def magnitudes(tile: slice) -> np.ndarray:
            if rows.matrix.sparse:
                return rows.matrix.tile(tile).magnitudes()
            largest = to_numpy(rows.xp.max(rows.xp.abs(rows.matrix.rows(tile)), axis=1))
            return np.asarray(largest, np.float64)

        work = rows.work
        return np.flatnonzero(np.concatenate(work.map(magnitudes, work.tiles())) <= limit)
