# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled exact sums: one reading of a row finds magnitudes, or splits and adds it."""

from __future__ import annotations

import numpy as np
from numba import njit

from anykmeans.kernels.numba.steps import squared_distance

jit = njit(cache=True, nogil=True, error_model="numpy")


@jit
def magnitudes(x, w, high, largest, smallest):
    """Raise `high` (d,) to |x|, `largest` and lower `smallest` (d + 1,) to the nonzero |w x| and w.

    `w` has one weight a row, or one for all. NaN stays in `high` and `largest`.
    """
    d = x.shape[1]
    for row in range(x.shape[0]):
        weight = w[row] if w.shape[0] > 1 else w[0]
        for f in range(d):
            value = np.float64(abs(x[row, f]))
            high[f] = value if value > high[f] or value != value else high[f]
            summand = value * weight
            largest[f] = summand if summand > largest[f] or summand != summand else largest[f]
            smallest[f] = summand if 0.0 < summand < smallest[f] else smallest[f]
        largest[d] = max(largest[d], weight)
        smallest[d] = weight if 0.0 < weight < smallest[d] else smallest[d]


@jit
def accumulate(x, at, w, new, old, scale, step, folds, sums):
    """Add the rows ``x[at]`` to their clusters `new` and take them from `old`, unless that is empty.

    `sums` (k, folds * (d + 1)) are whole numbers of the grid: as `Grid.split` makes them.
    """
    d = x.shape[1]
    rest = np.empty(d + 1)
    for i in range(at.shape[0]):
        row = at[i]
        weight = w[i] if w.shape[0] > 1 else w[0]
        for f in range(d):
            rest[f] = np.float64(x[row, f]) * weight * scale[f]
        rest[d] = weight * scale[d]
        to = new[i]
        for fold in range(folds):
            column = fold * (d + 1)
            if old.shape[0]:
                since = old[i]
                for f in range(d + 1):
                    part = np.rint(rest[f])
                    sums[to, column + f] += part
                    sums[since, column + f] -= part
                    rest[f] = (rest[f] - part) * step
            else:
                for f in range(d + 1):
                    part = np.rint(rest[f])
                    sums[to, column + f] += part
                    rest[f] = (rest[f] - part) * step


@jit
def own_distances(x, unit, wide, labels, distances):
    """Write each row's squared distance to its own centroid of `wide` (k, d), in the frame."""
    room = np.empty(x.shape[1])
    for row in range(x.shape[0]):
        distances[row] = squared_distance(x, row, unit, wide, labels[row], room)
