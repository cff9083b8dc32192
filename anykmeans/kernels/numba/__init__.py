"""Compiled steps for arrays in host memory: a row is read once for all that is done to it.

`sweep` searches the nearest centroids, by `near` in few features and by `grouped` in more, after a first look in a
`subspace`; `simd` has the inner loops. `sums` and `seeding` are what their names say. None holds the interpreter's lock, so that threads really run at once. Whatever needs
Numba is imported when first called.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from anykmeans import _array as arrays
from anykmeans._array import Array, Matrix, Namespace, Selection
from anykmeans._exact import Grid
from anykmeans.kernels import cpu
from anykmeans.kernels.numba import seeding

HOST = True
segment_sum = cpu.segment_sum
gains, settle, costs, LEAN = seeding.gains, seeding.settle, seeding.costs, True


def why_not(x: Array) -> str | None:
    """Return None for dense arrays in host memory where Numba is installed."""
    if arrays.is_sparse(x):
        return "x is sparse"
    if not arrays.on_cpu(x):
        return f"x is {arrays.where_is(x)}, out of NumPy's reach"
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed (`pip install anykmeans[numba]`)"
    return None


def search(frame: Any, work: Any, *, bounds: str, exact: bool) -> Any:
    """Return the search of all rows, see `anykmeans.kernels.numba.sweep`."""
    from anykmeans.kernels.numba.sweep import Search

    return Search(frame, work, bounds=bounds, exact=exact)


def magnitudes(matrix: Matrix, select: slice, w: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Return the largest |x| (d,), and the largest and smallest nonzero |w x| and w (d + 1,)."""
    from anykmeans.kernels.numba import sums

    d = matrix.shape[1]
    x = matrix.data[select] if matrix.direct else matrix.readable(select)[0]
    high, smallest = np.zeros(d, x.dtype), np.full(d, np.inf, x.dtype)
    if not sums.magnitudes(x, high, smallest):
        high[np.isnan(x).any(axis=0)] = np.nan
    if w is None:
        return high, high, smallest
    largest, least = np.zeros(d + 1), np.full(d + 1, np.inf)
    sums.weighted_magnitudes(x, w, largest, least)
    return high, largest, least


def accumulate(
    matrix: Matrix,
    select: Selection,
    w: np.ndarray | None,
    new: np.ndarray,
    old: np.ndarray | None,
    grid: Grid,
    k: int,
) -> np.ndarray:
    """Return the whole-number sums (k, columns) of the selected rows by label `new`, less by `old`."""
    from anykmeans.kernels.numba import sums

    found = np.zeros((k, grid.folds * (matrix.shape[1] + 1)))
    x, at = matrix.readable(select)
    none = new[:0] if old is None else old
    sums.accumulate(x, at, _weights(w), new, none, grid.scale, grid.step, grid.folds, found)
    return found


def total(grid: Grid, sums: np.ndarray) -> np.ndarray:
    """Return the sums (k, columns) that whole numbers mean."""
    from anykmeans.kernels.numba import sums as compiled

    found: np.ndarray = compiled.total(sums, grid.scale, grid.step, grid.folds)
    return found


def own_distances(
    matrix: Matrix,
    select: slice,
    unit: float,
    wide: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
) -> None:
    """Write the squared `distances` (m,) of rows to their own centroids of `wide` (k, d)."""
    from anykmeans.kernels.numba import sums

    x = matrix.data[select] if matrix.direct else matrix.readable(select)[0]
    sums.own_distances(x, unit, wide, labels, distances)


def pairwise(
    matrix: Matrix, select: slice, unit: float, wide: np.ndarray, factor: float, found: np.ndarray
) -> None:
    """Write the distances (m, k), times `factor`, of rows to all centroids of `wide` (k, d)."""
    from anykmeans.kernels.numba import sums

    x = matrix.data[select] if matrix.direct else matrix.readable(select)[0]
    sums.pairwise(x, unit, np.ascontiguousarray(wide.T), factor, found)


def _weights(w: np.ndarray | None) -> np.ndarray:
    return np.ones(1) if w is None else np.ascontiguousarray(w)


def squared_distances(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the squared distances (m,) of the rows of `a` (m, d) and `b` (m, d) or (1, d), float64."""
    from anykmeans.kernels.numba import steps

    found: np.ndarray = steps.distances(np.ascontiguousarray(a), np.ascontiguousarray(b))
    return found
