"""Greedy k-means++: the draws, and the picks they make."""

from __future__ import annotations

import math

import numpy as np

from anykmeans._libraries import Array, np_compat, stacked, to_numpy
from anykmeans.sources.rows import Rows

Draws = np.random.Generator | np.random.RandomState


def plus_plus(rows: Rows, k: int, rng: Draws, trials: int | None = None) -> np.ndarray:
    """Return the row numbers (k,) that greedy k-means++ picks.

    Each pick is the best of `trials` rows, by default ``2 + int(log(k))``, drawn with probability
    proportional to weight times squared distance from the rows picked so far (Arthur and
    Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007).
    """
    first, draws = _drawn(rows, k, rng, trials)
    (picks,) = rows.kernel.picks([rows], [first], draws[None])
    return picks


def starts(all_rows: list[Rows], k: int, runs: int, rng: Draws) -> list[list[Array]]:
    """Return centroids (k, d) by k-means++ for some runs of each source.

    No draw depends on a pick: all are drawn first, and what is picked is that of one run after the other.
    """
    kernel = all_rows[0].kernel
    drawn = [[_drawn(rows, k, rng) for _ in range(runs)] for rows in all_rows]
    found: list[list[Array]] = [[] for _ in all_rows]
    # The runs of one source, or one run of every source, may share launches.
    groups = [[(0, run) for run in range(runs)]]
    if len(all_rows) > 1:
        groups = [[(i, run) for i in range(len(all_rows))] for run in range(runs)]
    for group in groups:
        some = [all_rows[i] for i, _ in group]
        first, draws = zip(*(drawn[i][run] for i, run in group), strict=True)
        for (i, _), at in zip(
            group, kernel.picks(some, first, stacked(np_compat, draws)), strict=True
        ):
            rows = all_rows[i]
            found[i].append(rows.rows(rows.matrix.asarray(at)))
    return found


def _drawn(rows: Rows, k: int, rng: Draws, trials: int | None = None) -> tuple[int, np.ndarray]:
    """Return the first pick, and draws (k - 1, trials) from 0 to 1 for all others."""
    trials = 2 + int(math.log(k)) if trials is None else trials
    first = _first(rows, rng)
    return first, rng.uniform(size=(k - 1, trials)) if k > 1 else np.empty((0, trials))


def _first(rows: Rows, rng: Draws) -> int:
    """Return the row that ``rng.choice(n, p=weights)`` draws."""
    n = rows.shape[0]
    if rows.weights is None:
        # The first row whose cumulative probability exceeds a uniform draw: that is n times the draw
        # but for the rounding of the cumulative sum, at most 2 n + 4 units of 2**-53.
        draw = rng.random()
        if abs(draw * n - round(draw * n)) > n * (n + 4.0) * 2.0**-51:
            return int(draw * n)
        p = probabilities(rows).cumsum()
        return int((p / p[-1]).searchsorted(draw, side="right"))
    return int(rng.choice(n, p=probabilities(rows)))


def probabilities(rows: Rows) -> np.ndarray:
    """Return by which a row is drawn (n,): its share of the weights."""
    n = rows.shape[0]
    if rows.weights is None:
        return np.full(n, 1.0) / n
    w = to_numpy(rows.relative_weight(rows.every))
    return np.asarray(w / w.sum())
