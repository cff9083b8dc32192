"""Sparse rows by NumPy and SciPy: products and sums of their entries alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from anykmeans import _distance
from anykmeans._bounds import Bounds
from anykmeans._extent import Extent
from anykmeans._grid import two_product
from anykmeans._libraries import Selection, np_compat
from anykmeans._matrix import Matrix
from anykmeans._sparse import SparseRows, coefficients
from anykmeans.kernels.cpu import Cpu, long_tiles
from anykmeans.kernels.seeding import Seeds, Tile, distances_to, weighed

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans.sources.rows import Rows

Estimate = Callable[[SparseRows, np.ndarray], np.ndarray]


class SparseCpu(Cpu):
    """The steps that see entries; what sees none of them is that of dense rows."""

    blas = False

    def tiles(self, rows: Rows, m: int, clusters: int = 0) -> list[slice]:
        """Return tiles of `m` rows: long ones."""
        return long_tiles(rows, m, clusters)

    def look(self, rows: Rows, tile: slice) -> Extent:
        """Return what one look at a tile of rows tells."""
        entries, d = rows.matrix.tile(tile, np.float64).gathered, rows.shape[1]
        values, w = np.abs(entries.values), rows.relative_weight(tile)
        high, largest, smallest = np.zeros(d), np.zeros(d), np.full(d, np.inf)
        np.maximum.at(high, entries.features, values)
        if w is not None:
            values = values * w[entries.owners]
        np.maximum.at(largest, entries.features, values)
        np.minimum.at(smallest, entries.features, np.where(values == 0, np.inf, values))
        if w is not None:
            least = w[w > 0].min(initial=np.inf)
            largest, smallest = np.append(largest, w.max()), np.append(smallest, least)
        return rows.told(tile, high, largest, smallest)

    def sums(
        self, rows: Rows, select: Selection, new: np.ndarray, old: np.ndarray | None, k: int
    ) -> np.ndarray:
        """Return the whole-number sums (k, columns) of selected rows by label `new` (m,), less by `old`."""
        grid, w = rows.grid, rows.relative_weight(select)
        entries, width = rows.matrix.tile(select, np.float64).gathered, rows.shape[1] + 1
        m = entries.shape[0]
        # A row's weight is one entry more.
        at = np.concatenate([entries.owners, np.arange(m)])
        column = np.concatenate([entries.features, np.full(m, width - 1)])
        rest = np.concatenate([entries.values, np.ones(m)]) * grid.scale[column]
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
        self, frame: Frame, select: Selection, wide: np.ndarray, labels: np.ndarray
    ) -> np.ndarray:
        """Return the squared distances (m,) of selected rows to their labels' centroids of `wide` (k, d)."""
        rows, found = frame.tile(select, np.float64), np.empty(labels.size)
        order = np.argsort(labels, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
        for at in parts if order.size else []:  # a tree is made for each centroid
            found[at] = rows[at].squared_distances(wide[labels[at[0]]])
        return found

    def moves(self, matrix: Matrix, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the squared distances (k,), by R5, of centroids `a` to centroids `b` (k, columns)."""
        halving = matrix.data.halving
        if halving.complete:
            return np.asarray(_distance.squared_distances(np_compat, a, b))
        found: np.ndarray = halving.sums((a - b) ** 2)[:, -1]
        return found

    def seeds(self, rows: Rows, first: np.ndarray, k: int, trials: int) -> Seeds:
        """Return what picks the rows of one run, of which the first is at `first` (1, d)."""
        return SparseSeeds(rows, first, k, trials)


class SparseSeeds(Seeds):
    """A product with the entries tells what candidates save: nothing is ruled out before."""

    def prepare(self, first: np.ndarray, k: int) -> None:
        """Keep nothing of the picks."""

    def keep(self, y: SparseRows) -> np.ndarray:
        """Return what is kept of rows: their squared norms (m,)."""
        return y.squared_norms()

    def admit(self, c: np.ndarray) -> int:
        """Return 0: rows keep nothing of a pick."""
        return 0

    def against(self, c: np.ndarray) -> Estimate:
        """Return what estimates the squared distances (m, t) of rows, with their norms (m,), to candidates `c` (t, d)."""
        minus_2c, norms = coefficients(c, np.float64, 1)
        return lambda y, norm: y @ minus_2c + norms + norm[:, None]

    def gains(self, tile: Tile, c: np.ndarray, against: Estimate) -> tuple[np.ndarray, float]:
        """Return what each of t candidates saves (t,), and by how much that may be off."""
        y, norm = self.read(tile), tile.kept
        bounds = Bounds.of(y.halving.d, 2.0**-53, y.longest)
        estimate = against(y, norm).T
        saved, doubt, tile.won = weighed(
            np_compat, estimate, norm, tile.closest, bounds, tile.w, self.scale
        )
        return saved, doubt

    def shorten(self, tile: Tile, c: np.ndarray, pick: int, j: int) -> None:
        """Count candidate `j`, at `c` (1, d), in what is closest to the rows."""
        m, won = tile.closest.size, tile.won
        at = np.arange(m) if won is None else np.flatnonzero(won & (1 << j % 8))
        found = distances_to(np_compat, self.read(tile), at, c)
        tile.closest[at] = np.minimum(tile.closest[at], found)


KERNEL = SparseCpu()
