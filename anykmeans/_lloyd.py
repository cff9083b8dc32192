"""The loop of Lloyd, "Least squares quantization in PCM", 1982.

It knows nothing of libraries, devices, tiles or bounds: a source answers what the rows are.
"""

from __future__ import annotations

import math
from typing import Protocol

from anykmeans._libraries import Array
from anykmeans._stats import ClusterStats


class Source(Protocol):
    """Rows in memory, blocks of a stream, a cluster's workers: anything that can be swept."""

    def leap(self, c: Array, passes: int, tol: float, empty: str) -> tuple[Array, int, float]:
        """Return the centroids after the next passes of the loop, how many, and the last shift.

        At most `passes`, and as many as the source can make at once: often none.
        """

    def sweep(self, c: Array) -> ClusterStats:
        """Return the stats of the rows, each with its nearest centroid of `c` (k, d)."""

    def update(self, stats: ClusterStats, c: Array, empty: str) -> Array:
        """Return the new centroids (k, d), empty clusters served as `empty` says."""

    def shift(self, c_new: Array, c: Array) -> float:
        """Return the sum of squared moves, in the source's own unit."""


def lloyd(
    source: Source,
    c: Array,
    *,
    max_iter: int,
    tol: float,
    empty: str,
    done: int = 0,
    shift: float = math.nan,
) -> tuple[Array, int, bool]:
    """Return the centroids (k, d) that Lloyd's loop reaches from `c`, its passes, and whether it stopped.

    `tol` is the squared move at which to stop, in the source's unit. As sums are exact, labels that
    repeat give centroids that repeat: zero shift is scikit-learn's strict convergence. If passes are `done`
    already, they ended with the last `shift`.
    """
    while done < max_iter and not shift <= tol:
        c, made, shift = source.leap(c, max_iter - done, tol, empty)
        done += made
        if done < max_iter and not shift <= tol:
            stats = source.sweep(c)
            c_new = source.update(stats, c, empty)
            shift = source.shift(c_new, c)
            c, done = c_new, done + 1
    return c, done, shift <= tol
