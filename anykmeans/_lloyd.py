"""The loop of Lloyd, "Least squares quantization in PCM", 1982.

It knows nothing of libraries, devices, tiles or bounds. A source says what the rows are; a `Descent` is one run over them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from anykmeans._extent import Extent
from anykmeans._libraries import Array
from anykmeans._stats import ClusterStats, Cost, Farthest, means_of, update


class Descent(ABC):
    """One run from given centroids. What it remembers of the passes before is its own business."""

    @abstractmethod
    def sweep(self, c: Array) -> ClusterStats:
        """Return the stats of all rows, each with its nearest centroid of `c` (k, d)."""

    @abstractmethod
    def farthest(self, c: Array, most: int) -> Farthest:
        """Return the rows farthest from their centroid of `c`, those last swept with."""

    @abstractmethod
    def label(self, c: Array) -> Labelled:
        """Return what a run ends with, after which it is over: labels, distances and inertia for the centroids `c` returned."""

    @abstractmethod
    def move(self, c_new: Array, c: Array) -> float:
        """Return the sum of squared moves, in the run's own unit."""

    def means(self, stats: ClusterStats, c: Array) -> tuple[Array, Array]:
        """Return the means (k, d) in the dtype of `c`, an empty cluster's row of `c`, and the weights (k,)."""
        return means_of(stats, c)

    def step(self, c: Array, empty: str) -> tuple[Array, float]:
        """Return the centroids after one pass, and how far they moved: the algorithm."""
        stats = self.sweep(c)  # distance, argmin, segment sum
        c_new = update(stats, c, empty=empty, farthest=self.farthest, means=self.means)
        return c_new, self.move(c_new, c)

    def steps(self, c: Array, most: int, tol: float, empty: str) -> tuple[Array, int, float]:
        """Return the centroids after the next passes, how many, from 1 to `most`, and the last squared move.

        Who can make several at once stops after a move of at most `tol`.
        """
        c, moved = self.step(c, empty)
        return c, 1, moved

    def progress(self, n_iter: int, c: Array, moved: float, tol: float) -> Progress:
        """Return what a `Watch` is told, in the user's unit."""
        return Progress(n_iter, c, moved, tol)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labels (n,), squared distances (n,), and inertia for some centroids: the `cost` in the user's unit."""

    labels: Array
    distances: Array
    cost: Cost
    inertia: float


class Source(Protocol):
    """Rows, wherever they are: in memory, stored, streamed, on a cluster."""

    shape: tuple[int, int]

    @property
    def extent(self) -> Extent:
        """What one look at all rows tells."""

    def rows(self, numbers: Array) -> Array:
        """Return the rows of these numbers, in the dtype of centroids."""

    def start(self, c: Array) -> Descent:
        """Return a run over these rows from the centroids `c` (k, d)."""


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a run has come.

    Attributes
    ----------
    n_iter : int
        Passes made.
    centroids : array of shape (k, d)
        After them.
    move, tol : float
        Sum of squared moves of the last, NaN before the first; and that at which to stop.
    """

    n_iter: int
    centroids: Array
    move: float
    tol: float


class Watch(Protocol):
    """Who is told after every so many passes, and after the last."""

    every: int

    def __call__(self, at: Progress) -> bool | None:
        """Take note, before the first pass too; return True to stop."""


def lloyd(
    run: Descent,
    c: Array,
    *,
    max_iter: int,
    tol: float,
    empty: str,
    watch: Watch | None = None,
    done: int = 0,
    moved: float = math.nan,
) -> tuple[Array, int, bool]:
    """Return the centroids (k, d) that Lloyd's loop reaches from `c`, its passes, and whether it converged.

    `tol` is the squared move at which to stop, in the run's unit. As sums are exact, labels that
    repeat give centroids that repeat: a move of zero is scikit-learn's strict convergence. If passes are `done`
    already, they ended with the last `moved`.
    """
    every = max_iter if watch is None else watch.every
    stop = watch is not None and watch(run.progress(done, c, moved, tol))
    while not (stop or done >= max_iter or moved <= tol):
        most = min(every - done % every, max_iter - done)
        c, made, moved = run.steps(c, most, tol, empty)
        done += made
        if watch is not None and (done % every == 0 or done == max_iter or moved <= tol):
            stop = watch(run.progress(done, c, moved, tol))
    return c, done, moved <= tol
