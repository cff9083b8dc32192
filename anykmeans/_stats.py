"""ClusterStats: what a pass over rows leaves behind, exact and addable in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from anykmeans._libraries import Array, Namespace

if TYPE_CHECKING:
    from anykmeans._grid import Grid


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
    """

    sums: Array
    grid: Grid

    def __add__(self, other: ClusterStats) -> ClusterStats:
        if self.grid != other.grid:
            raise ValueError(
                "ClusterStats can be added on one grid only; got two, whose whole numbers mean different steps. "
                "Plan one grid for all rows."
            )
        return ClusterStats(self.sums + other.sums, self.grid)


def means(xp: Namespace, sums: Array, mass: Array, c: Array) -> Array:
    """Return the mean of each cluster in the dtype of `c` (k, d); an empty one keeps its row of `c`."""
    empty = (mass == 0)[:, None]
    # Of the full shape, as XLA multiplies by the reciprocal of what it broadcasts in a division.
    mean = sums / xp.where(empty, xp.ones_like(sums), mass[:, None])
    return xp.where(empty, c, xp.astype(mean, c.dtype))


def seats(distances: np.ndarray, wanted: int) -> np.ndarray:
    """Return which of the rows given by their squared `distances` take the empty clusters' seats.

    The farthest first, ties by row number; fewer than `wanted` where distances are zero.
    """
    least = np.partition(distances, -wanted)[-wanted]  # as sorting all takes longer
    (far,) = np.nonzero(distances >= least)
    order = far[np.argsort(-distances[far], kind="stable")][:wanted]
    return order[distances[order] > 0]
