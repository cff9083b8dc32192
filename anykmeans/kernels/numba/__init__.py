"""Compiled steps for arrays in host memory: a row is read once for all that is done to it.

Few centroids are all scored, `few`, and so are all where rows are few, but for rows that have `slack`; `once` makes one pass over more
that no other follows. Else `sweep` chooses how to search the nearest: by `near` in few features, by `grouped` in more, after a first look
(`looks`) at `codes` or in a `subspace`. What both share is in `bounded`, and compiled in `steps`; centroids go by `panels`, and `simd` has the inner
loops. `sums` and `seeding` are what their names say, and `small` is seeding of few rows. None holds
the interpreter's lock, so that threads really run at once.
Whatever needs Numba is imported when first called.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from anykmeans import _libraries as arrays
from anykmeans._extent import Extent
from anykmeans._fork import first_call
from anykmeans._libraries import Array, Namespace, Selection
from anykmeans._matrix import Matrix
from anykmeans._search import Search
from anykmeans._settings import current
from anykmeans._stats import ClusterStats, Cost
from anykmeans.kernels import compiled
from anykmeans.kernels.cpu import Cpu, long_tiles
from anykmeans.kernels.optional import broken
from anykmeans.kernels.seeding import Outlying, Seeds

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans.kernels.numba import once
    from anykmeans.sources.rows import Rows

_MOST = 2048  # features of which a few rows and centroids are in the cache, so that all scores of a pass are made
_BRIEF = 1 << 20  # numbers that are looked at, or added, by one thread alone
_ONE = np.ones(1)


class Numba(Cpu):
    """The steps in compiled code, which needs no room for arrays of its own."""

    name = "numba"
    blas = False

    def why_not(self, x: Array) -> str | None:
        """Return None for arrays in host memory, or that are copied there, where Numba can compile."""
        if not arrays.in_host(x):
            return f"the rows are {arrays.where_is(x)}, out of NumPy's reach"
        if (reason := broken("numba.core.config")) is not None:
            return f"Numba cannot be imported ({reason}; `pip install numba`)"
        if sys.modules["numba.core.config"].DISABLE_JIT:
            return "Numba is told not to compile (NUMBA_DISABLE_JIT)"
        if (reason := broken(f"{__name__}.once")) is not None:
            return f"its code does not suit the Numba installed ({reason})"
        return None

    def stays(self) -> bool:
        """Return True: nothing on a CPU pays more."""
        return True

    def pays(self, x: Array) -> bool:
        """Return whether compiled code is there, or NumPy has worked for as long as compiling takes."""
        return compiled.pays("numba")

    def notices_outliers(self) -> bool:
        """Return True: the loops count rows that are beyond what their bounds hold for."""
        return True

    # -- steps on a tile ----------------------------------------------------------------------

    def squared_distances(self, xp: Namespace, a: Array, b: Array) -> Array:
        """Return the squared distances (m,) of the rows of `a` (m, d) and `b` (m, d) or (1, d), float64."""
        from anykmeans.kernels.numba import steps

        found: np.ndarray = steps.distances(np.ascontiguousarray(a), np.ascontiguousarray(b))
        return found

    def own_distances(
        self, frame: Frame, select: Selection, wide: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        """Return the squared distances (m,) of selected rows to their labels' centroids of `wide` (k, d)."""
        from anykmeans.kernels.numba import sums

        found = np.empty(labels.shape[0])
        sums.own_distances(read(frame.matrix, select), frame.unit, wide, labels, found)
        return found

    def look(self, rows: Rows, tile: slice) -> Extent:
        """Return what one look at a tile of rows tells, by whole numbers that have the order of magnitudes."""
        from anykmeans.kernels.numba import sums

        d, w = rows.shape[1], rows.relative_weight(tile)
        x = read(rows.matrix, tile)
        whole = np.uint32 if x.dtype == np.float32 else np.uint64
        infinity = np.asarray(np.inf, x.dtype).view(whole)[()]
        together = max(1, 64 // d)  # rows, that the inner loop be long
        bits = x.view(whole).ravel()
        cut = bits.size - bits.size % (together * d)
        high, smallest = np.zeros((2, together, d), whole), np.full((2, together, d), infinity)
        for i, (part, width) in enumerate(((bits[:cut], together * d), (bits[cut:], d))):
            part = part.reshape(-1, width)
            sums.magnitudes(
                part,
                whole(~whole(0) >> whole(1)),
                high[i].ravel()[:width],
                smallest[i].ravel()[:width],
            )
        high = high.view(x.dtype).max(axis=(0, 1))
        smallest = smallest.view(x.dtype).min(axis=(0, 1))
        if w is None:
            return rows.told(tile, high, high, smallest)
        largest, least = np.zeros(d + 1), np.full(d + 1, np.inf)
        sums.weighted_magnitudes(x, w, largest, least)
        return rows.told(tile, high, largest, least)

    def sums(
        self, rows: Rows, select: Selection, new: np.ndarray, old: np.ndarray | None, k: int
    ) -> np.ndarray:
        """Return the whole-number sums (k, columns) of selected rows by label `new` (m,), less by `old`."""
        from anykmeans.kernels.numba import sums

        grid, w = rows.grid, weights(rows.relative_weight(select))
        found = np.zeros((k, grid.folds * (rows.shape[1] + 1)))
        x, at = rows.matrix.readable(select)
        none = new[:0] if old is None else old
        sums.accumulate(x, at, w, new, none, grid.scale, grid.step, grid.folds, found)
        return found

    def tiles(self, rows: Rows, m: int, clusters: int = 0) -> list[slice]:
        """Return tiles of `m` rows: long ones."""
        if m * rows.shape[1] < _BRIEF:  # over before a thread has begun
            return rows.work.tiles(0, m, rows.work.readable(rows.matrix))
        return long_tiles(rows, m, clusters)

    # -- passes over rows ---------------------------------------------------------------------

    def search(self, rows: Rows, frame: Frame, c: np.ndarray, bounds: str) -> Search:
        """Return the search of all rows, see `anykmeans.kernels.numba.sweep`, `few` and `once`."""
        (k, d), bounded = c.shape, bounds not in ("auto", "off")
        with first_call:
            from anykmeans.kernels.numba import few
        if not bounded and d <= _MOST and (bounds == "off" or few.suits(rows.shape[0], d, k)):
            return few.FewSearch(frame, rows.work, k, keeps=bounds == "auto")
        with first_call:
            from anykmeans.kernels.numba import sweep

        return sweep.choose(frame, rows.work, k, bounds=bounds, exact=rows.exact)

    def total(self, rows: Rows, stats: ClusterStats) -> np.ndarray:
        """Return the sums (k, d + 1) that whole numbers mean."""
        from anykmeans.kernels.numba import sums

        grid = stats.grid
        found: np.ndarray = sums.total(stats.sums, grid.scale, grid.step, grid.folds)
        return found

    def joined(self, stats: ClusterStats, more: ClusterStats) -> tuple[ClusterStats, np.ndarray]:
        """Return the sum of stats on one grid, carried, and the sums (k, d + 1) that it means; `more` is overwritten."""
        from anykmeans.kernels.numba import sums

        grid, total = stats.grid, np.zeros((stats.sums.shape[0], stats.grid.scale.size))
        sums.join(stats.sums, more.sums, grid.scale, grid.step, grid.folds, total)
        return more, total

    def put(
        self, stats: ClusterStats, where: np.ndarray, c: np.ndarray, counts: np.ndarray
    ) -> None:
        """Write to sums, where a mask (k, d + 1) says, those of as many rows as `counts` (k,) tells, all at `c` (k, d)."""
        from anykmeans.kernels.numba import sums

        grid = stats.grid
        sums.put(where, c, counts, grid.scale, grid.step, grid.folds, stats.sums)

    def divide(self, xp: Namespace, sums: Array, mass: Array, c: np.ndarray) -> np.ndarray:
        """Return sums (k, d) by weights (k,), in the dtype of `c`, an empty cluster's row of `c`."""
        from anykmeans.kernels.numba import sums as loops

        found = np.empty_like(c)
        loops.means(sums, mass, c, found)
        return found

    def cost(self, rows: Rows, frame: Frame, distances: np.ndarray) -> Cost:
        """Return the exact sum of per-row `distances` (n,), squared and in the `frame`, by relative weight."""
        from anykmeans.kernels.numba import sums

        w = rows.relative_weight(rows.every)
        grid = frame.costs(distances.size, w is not None)
        whole = sums.whole(distances, weights(w), grid.scale[0], grid.step, grid.folds)
        return Cost.of(whole, grid)

    def pairwise(self, rows: Rows, frame: Frame, wide: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the distances (n, k) of rows to centroids `wide` (k, d), and of how many rows they mean nothing."""
        from anykmeans.kernels.numba import once

        matrix, work, found = rows.matrix, rows.work, empty_distances(rows, wide.shape[0])
        if matrix.direct and not frame.exponent and (c := once.same(wide, found.dtype)) is not None:
            own = once.panels_of(c)

            def write(tile: slice) -> int:
                return once.measure(matrix.data[tile], own, wide, found[tile])

            return found, sum(work.map(write, pieces(rows)))
        panels = once.panels_of(wide)

        def write_wide(tile: slice) -> int:
            apart = np.empty((tile.stop - tile.start, wide.shape[0]))
            lost = once.measure(np.ascontiguousarray(frame.wide(tile)), panels, wide, apart)
            found[tile] = apart * 2.0**frame.exponent
            return lost

        step = max(1, work.tile // (work.d + wide.shape[0]))
        return found, sum(work.map(write_wide, work.tiles(step=step)))

    # -- whole jobs ---------------------------------------------------------------------------

    def labels(self, x: np.ndarray, c: np.ndarray, threads: int | None) -> np.ndarray | None:
        """Return labels (n,), int32, of rows `x` (n, d) for centroids `c` (k, d), if they can be read as they are, and are ordinary."""
        if not _direct(x) or x.shape[1] > _MOST:
            return None
        from anykmeans.kernels.numba import once

        return once.labels(x, c, threads)

    def all_distances(self, x: np.ndarray, c: np.ndarray, threads: int | None) -> np.ndarray | None:
        """Return distances (n, k) of rows `x` (n, d) to centroids `c` (k, d), under the same conditions."""
        if not _direct(x):
            return None
        from anykmeans.kernels.numba import once

        return once.all_distances(x, c, threads)

    def evaluated(self, rows: Rows, c: np.ndarray) -> once.Found | None:
        """Return labels (n,), squared distances (n,) and inertia for centroids `c` (k, d), if all are dense ordinary numbers."""
        if not _plain(rows):
            return None
        from anykmeans.kernels.numba import once

        return once.evaluated(rows, c)

    def counted(
        self, rows: Rows, c: np.ndarray, *, measured: bool
    ) -> tuple[np.ndarray, np.ndarray | None, float, np.ndarray] | None:
        """Return the same, distances and inertia only if `measured`, and the sums (k, columns) of rows by label."""
        if not _plain(rows):
            return None
        from anykmeans.kernels.numba import once

        return once.counted(rows, c, measured=measured)

    def seeds(self, rows: Rows, first: Array, k: int, trials: int) -> Seeds:
        """Return what picks the rows of one run, of which the first is at `first` (1, d)."""
        from anykmeans.kernels.numba.seeding import CompiledSeeds

        return CompiledSeeds(rows, first, k, trials)

    def picks_of(self, rows: Rows, first: int, draws: np.ndarray) -> np.ndarray:
        """Return the rows (k,) that greedy k-means++ picks: in one call where they are few."""
        # In float64, which takes eight times as long as what else there is.
        if draws.shape[0] == 0 or not is_small(rows, 8 * draws.shape[1]):
            try:
                return super().picks_of(rows, first, draws)
            except Outlying:
                rows.look()
                return super().picks_of(rows, first, draws)
        from anykmeans.kernels.numba import small

        if rows.glanced:  # which nothing here would notice
            rows.look()
        picks = np.full(draws.shape[0] + 1, first)
        y = np.ascontiguousarray(rows.frame().wide(slice(None)))
        small.seeds(y, weights(rows.relative_weight(rows.every)), draws, picks)
        return picks


def _direct(x: np.ndarray) -> bool:
    """Return whether compiled code can read a user's array where it is."""
    return x.flags.carray and x.dtype.char in "fd" and x.dtype.isnative


def _plain(rows: Rows) -> bool:
    """Return whether all scores of dense rows that were looked at can be made."""
    return not (rows.matrix.sparse or rows.glanced or rows.shape[1] > _MOST)


def is_small(rows: Rows, times: int) -> bool:
    """Return whether to compute as many distances of each row at once, from copies of them."""
    n, d = rows.shape
    numbers = n * (4 << max(0, (d - 1).bit_length() - 2))  # padded
    most = current().at_once
    return bool(numbers * times <= most and numbers <= min(most >> 3, rows.work.max_bytes >> 6))


def read(matrix: Matrix, select: Selection) -> np.ndarray:
    """Return selected rows that compiled code can read."""
    if matrix.direct:
        found: np.ndarray = matrix.data[select]
        return found
    return np.asarray(matrix.readable(select)[0])


def weights(w: np.ndarray | None) -> np.ndarray:
    """Return weights (m,) as compiled code takes them: one alone is that of all rows."""
    return _ONE if w is None else np.ascontiguousarray(w)


def empty_distances(rows: Rows, k: int) -> np.ndarray:
    """Return room for the distances (n, k) of all rows."""
    found: np.ndarray = rows.xp.empty((rows.shape[0], k), dtype=rows.matrix.state_dtype)
    return found


def pieces(rows: Rows) -> list[slice]:
    """Return tiles of all rows for work whose results are written: a few for each thread."""
    n, work = rows.shape[0], rows.work
    parts = 4 * work.threads if work.threads > 1 else 1
    return work.tiles(step=min(work.readable(rows.matrix), -(-n // parts)))


KERNEL = Numba()
