"""Sparse rows, compiled: each entry is read once for all centroids.

`sweep` searches and makes passes, `products` are distances that are not exact, `sums` all that is.
Whatever needs Numba is imported when first called.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from anykmeans._extent import Extent
from anykmeans._fork import first_call
from anykmeans._libraries import Array, Selection
from anykmeans._matrix import Matrix
from anykmeans._search import Search
from anykmeans.kernels import compiled
from anykmeans.kernels.numba import Numba, empty_distances, pieces, weights
from anykmeans.kernels.seeding import Seeds

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans.sources.rows import Rows


class SparseNumba(Numba):
    """The steps that see entries; what sees none of them is that of dense rows."""

    def pays(self, x: Array) -> bool:
        """Return whether compiled code is there, or NumPy has worked for as long as compiling takes."""
        return compiled.pays("sparse.numba")

    def notices_outliers(self) -> bool:
        """Return False: all entries are looked at anyway."""
        return False

    def look(self, rows: Rows, tile: slice) -> Extent:
        """Return what one look at a tile of rows tells."""
        from anykmeans.kernels.sparse.numba import sums

        x, d, w = rows.matrix.tile(tile), rows.shape[1], rows.relative_weight(tile)
        high, largest, smallest = np.zeros(d), np.zeros(d + 1), np.full(d + 1, np.inf)
        sums.magnitudes(x.begins, x.ends, x.features, x.values, weights(w), high, largest, smallest)
        if w is None:
            largest, smallest = largest[:d], smallest[:d]
        return rows.told(tile, high, largest, smallest)

    def sums(
        self, rows: Rows, select: Selection, new: np.ndarray, old: np.ndarray | None, k: int
    ) -> np.ndarray:
        """Return the whole-number sums (k, columns) of selected rows by label `new` (m,), less by `old`."""
        from anykmeans.kernels.sparse.numba import sums

        grid, w = rows.grid, weights(rows.relative_weight(select))
        found = np.zeros((k, grid.folds * (rows.shape[1] + 1)))
        (x, at), old = rows.matrix.readable(select), new[:0] if old is None else old
        order, _ = sums.by_cluster(new, old, k)
        sums.accumulate(
            x.begins, x.ends, x.features, x.values, at, w, new, old,
            grid.scale, grid.step, grid.folds, found, order,
        )  # fmt: skip
        return found

    def totals_by_label(self, rows: Rows, labels: np.ndarray, k: int) -> Array:
        """Return the sums (k, columns), and in the last column the weights, of all rows by label."""
        from anykmeans.kernels.sparse.numba import sums

        if not rows.matrix.direct:
            return super().totals_by_label(rows, labels, k)
        grid, w = rows.grid, weights(rows.relative_weight(rows.every))
        found = np.zeros((k, rows.shape[1] + 1))
        x, at = rows.matrix.readable(slice(None))
        write = functools.partial(
            sums.totals, x.begins, x.ends, x.features, x.values, at, w, labels,
            grid.scale, grid.step, grid.folds, found,
        )  # fmt: skip
        sums.cluster_by_cluster(write, rows.work, labels, labels[:0], k)
        return found

    def own_distances(
        self, frame: Frame, select: Selection, wide: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        """Return the squared distances (m,) of selected rows to their labels' centroids of `wide` (k, d)."""
        from anykmeans.kernels.sparse.numba import sums

        found: np.ndarray = sums.own_distances(
            *frame.matrix.readable(select), frame.unit, wide, labels
        )
        return found

    def moves(self, matrix: Matrix, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the squared distances (k,), by R5, of centroids `a` to centroids `b` (k, columns)."""
        from anykmeans.kernels.sparse.numba import sums

        found = np.empty(a.shape[0])
        sums.moves(a, b, *sums.children(matrix.data.halving), found)
        return found

    def search(self, rows: Rows, frame: Frame, c: np.ndarray, bounds: str) -> Search:
        """Return the search of all rows."""
        with first_call:
            from anykmeans.kernels.sparse.numba.sweep import SparseSearch

        skip = bounds != "off"
        return SparseSearch(frame, rows.work, c.shape[0], skip=skip, exact=rows.exact)

    def pairwise(self, rows: Rows, frame: Frame, wide: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the distances (n, k) of rows to centroids `wide` (k, columns): they mean something for all rows."""
        from anykmeans.kernels.sparse.numba import products

        found = empty_distances(rows, wide.shape[0])
        write = products.writing(frame, wide)
        rows.work.map(lambda tile: write(tile, found[tile]), pieces(rows))
        return found, 0

    def seeds(self, rows: Rows, first: np.ndarray, k: int, trials: int) -> Seeds:
        """Return what picks the rows of one run, of which the first is at `first` (1, d)."""
        from anykmeans.kernels.sparse.numba.seeding import CompiledSeeds

        return CompiledSeeds(rows, first, k, trials)

    def picks_of(self, rows: Rows, first: int, draws: np.ndarray) -> np.ndarray:
        """Return the rows (k,) that greedy k-means++ picks, by estimates where these can tell."""
        from anykmeans.kernels.sparse.numba.seeding import by_estimates

        picks = by_estimates(rows, first, draws)
        return super().picks_of(rows, first, draws) if picks is None else picks


KERNEL = SparseNumba()
