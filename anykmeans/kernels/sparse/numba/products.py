# mypy: allow-untyped-defs, allow-untyped-calls
"""Distances of sparse rows to all centroids, from products of their entries: as near as a product is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from anykmeans._sparse import coefficients
from anykmeans.kernels.numba.simd import EIGHT, combine
from anykmeans.kernels.numba.steps import jit
from anykmeans.kernels.sparse.numba import sums

if TYPE_CHECKING:
    from anykmeans._frame import Frame


@jit
def estimates(begins, ends, features, values, minus_2c, norms, norm, found):
    """Write estimates (m, t) of the squared distances of rows to t centroids."""
    t = found.shape[1]
    estimate = np.empty(norms.shape[0])
    for row in range(norm.shape[0]):
        combine(minus_2c, features, values, begins[row], ends[row], norms, estimate)
        for j in range(t):
            found[row, j] = norm[row] + estimate[j]


@jit
def pairwise(begins, ends, features, values, minus_2c, norms, norm, factor, begin, near, found):
    """Write distances (m, k), times `factor`, of rows from `begin`; list in `near` pairs too close for a product.

    Returns the row it stopped before, and how many pairs.
    """
    k, count = found.shape[1], 0
    squared = np.empty(norms.shape[0])
    for row in range(begin, norm.shape[0]):
        if count + k > near.shape[0]:
            return row, count
        combine(minus_2c, features, values, begins[row], ends[row], norms, squared)
        for j in range(k):
            squared[j] += norm[row]
            near[count] = row * k + j
            count += squared[j] < (norm[row] + norms[j]) * 1e-6
            found[row, j] = math.sqrt(squared[j] if squared[j] > 0.0 else 0.0) * factor
    return norm.shape[0], count


def writing(frame: Frame, wide: np.ndarray) -> Callable[[slice, np.ndarray], None]:
    """Return what writes the distances (m, k) of selected rows to all centroids of `wide` (k, columns)."""
    k, factor = wide.shape[0], 2.0**frame.exponent
    minus_2c, norms = coefficients(wide, np.float64, EIGHT)

    def write(select: slice, found: np.ndarray) -> None:
        y = frame.tile(select, np.float64 if frame.exponent else None)
        norm, near = np.empty(y.shape[0]), np.empty(64 * k, np.int64)
        sums.norms(y.begins, y.ends, y.values, norm)
        begin = 0
        while begin < norm.size:  # until there is no more room for near pairs
            begin, count = pairwise(
                y.begins,
                y.ends,
                y.features,
                y.values,
                minus_2c,
                norms,
                norm,
                factor,
                begin,
                near,
                found,
            )
            rows, labels = np.divmod(near[:count], k)
            exact = sums.own_distances(y, rows, 1.0, wide, labels)
            found[rows, labels] = np.sqrt(exact) * factor

    return write
