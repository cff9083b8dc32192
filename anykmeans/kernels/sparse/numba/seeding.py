"""k-means++ of sparse rows: by estimates as long as these can tell, else by the exact steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from anykmeans._bounds import Bounds
from anykmeans._sparse import SparseRows, coefficients
from anykmeans.kernels.numba import weights
from anykmeans.kernels.numba.seeding import costs, reached
from anykmeans.kernels.numba.simd import EIGHT
from anykmeans.kernels.seeding import BLOCK, Tile
from anykmeans.kernels.sparse.cpu import Estimate, SparseSeeds
from anykmeans.kernels.sparse.numba import products, sums

if TYPE_CHECKING:
    from anykmeans.sources.rows import Rows


class CompiledSeeds(SparseSeeds):
    """The exact steps, compiled."""

    def keep(self, y: SparseRows) -> np.ndarray:
        """Return what is kept of rows: their squared norms (m,)."""
        return squared_norms(y)

    def against(self, c: np.ndarray) -> Estimate:
        """Return what estimates the squared distances (m, t) of rows, with their norms (m,), to candidates `c` (t, columns)."""
        return estimating(c)

    def saved(self, tile: Tile, c: np.ndarray, j: int) -> float:
        """Return exactly what candidate `j`, at `c` (1, d), saves."""
        at, found = self._won(tile, c, j)
        before, weight = tile.closest[at], 1.0 if tile.w is None else tile.w[at]
        after = np.minimum(found, before)
        less = np.rint(weight * before * self.scale) - np.rint(weight * after * self.scale)
        return float(less.sum())

    def shorten(self, tile: Tile, c: np.ndarray, pick: int, j: int) -> None:
        """Count candidate `j`, at `c` (1, d), in what is closest to the rows."""
        at, found = self._won(tile, c, j)
        tile.closest[at] = np.minimum(tile.closest[at], found)

    def _won(self, tile: Tile, c: np.ndarray, j: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows that candidate `j`, at `c` (1, d), may be nearer to, and their squared distances."""
        y, won = self.read(tile), tile.won
        at = np.arange(y.shape[0]) if won is None else np.flatnonzero(won & (1 << j % 8))
        return at, sums.own_distances(y, at, 1.0, c, np.zeros(at.size, np.int32))

    def costs(self, tile: Tile) -> tuple[np.ndarray, float]:
        """Return the whole-number costs of blocks of rows, and the largest cost of a row."""
        found = np.empty(-(-tile.closest.shape[0] // BLOCK))
        return found, costs(tile.closest, weights(tile.w), self.scale, BLOCK, found)

    def reached(self, tile: Tile, rows: slice, total: float, draw: float) -> int:
        """Return the first of the `rows` up to which costs add up to the `draw`, if up to the last they do to the `total`."""
        w = weights(None if tile.w is None else tile.w[rows])
        return int(reached(tile.closest[rows], w, self.scale, total, draw))


def squared_norms(y: SparseRows) -> np.ndarray:
    """Return the squared norms (m,), float64."""
    found = np.empty(y.shape[0])
    sums.norms(y.begins, y.ends, y.values, found)
    return found


def estimating(c: np.ndarray) -> Estimate:
    """Return what estimates the squared distances (m, t) of rows, with their norms (m,), to candidates `c` (t, columns)."""
    minus_2c, norms = coefficients(c, np.float64, EIGHT)

    def estimate(y: SparseRows, norm: np.ndarray) -> np.ndarray:
        found = np.empty((norm.size, c.shape[0]))
        products.estimates(y.begins, y.ends, y.features, y.values, minus_2c, norms, norm, found)
        return found

    return estimate


def by_estimates(rows: Rows, first: int, draws: np.ndarray) -> np.ndarray | None:
    """Return the rows (k,) that greedy k-means++ picks by `draws` (k - 1, t), or None where estimates cannot tell.

    The picks are those of exact distances: an estimate errs by no more than `Bounds` says, and if a draw comes so near
    the border of two rows' costs, or what two candidates save is so nearly equal, that this may decide, the exact steps
    have to.
    """
    frame, work, (n, _), t = rows.frame(), rows.work, rows.shape, draws.shape[1]
    if 8 * n * (t + 4) > work.max_bytes // 2:
        return None
    y = frame.tile(slice(0, n), np.float64 if frame.exponent else None)
    bounds = Bounds.of(y.halving.d, 2.0**-53, y.longest)
    beta = 1.1 * bounds.beta + 2.0**-46  # and what rounding takes from the exact distance
    norm, weights = (
        squared_norms(y),
        np.ones(n) if (w := rows.relative_weight(rows.every)) is None else w,
    )
    closest, estimates = np.full(n, np.inf), np.empty((n, t))
    picks, candidates = np.empty(draws.shape[0] + 1, np.int64), [first]
    tiles = work.tiles(step=-(-n // work.threads))
    doubt = 0.0
    for i in range(picks.size):
        if i:
            costs = weights * closest
            cumulative = costs.cumsum()
            # Exact costs are rounded to whole numbers of a grid, and the sum here is rounded, too.
            doubt = 2 * beta * float(weights @ (closest + norm)) + n * 2.0**22 * bounds.eta
            doubt += n * n * 2.0**-49 * float(costs.max()) + n * 2.0**-51 * float(cumulative[-1])
            borders = draws[i - 1] * cumulative[-1]
            drawn = np.minimum(cumulative.searchsorted(borders), n - 1)
            before = np.where(drawn > 0, cumulative[drawn - 1], -np.inf)
            if not (np.minimum(borders - before, cumulative[drawn] - borders) > doubt).all():
                return None
            candidates = list(dict.fromkeys(drawn.tolist()))
        c = frame.wide(np.asarray(candidates))
        estimate, found = estimating(c), estimates[:, : len(candidates)]

        def fill(tile: slice, estimate: Any = estimate, found: np.ndarray = found) -> None:
            found[tile] = estimate(y[tile], norm[tile])

        work.map(fill, tiles)
        best = 0
        if i:
            less = np.minimum(np.maximum(closest[:, None] - found, 0.0), closest[:, None])
            saved = weights @ less
            rivals = np.flatnonzero(saved >= saved.max() - 2 * doubt)
            best = int(rivals[0])
            if not (c[rivals] == c[best]).all():
                return None
        picks[i] = candidates[best]
        closest = np.minimum(closest, np.maximum(found[:, best], 0.0))
    return picks
