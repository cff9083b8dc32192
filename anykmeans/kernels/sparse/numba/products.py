# mypy: allow-untyped-defs, allow-untyped-calls
"""Distances of sparse rows to all centroids, from products of their entries: as near as a product is."""

from __future__ import annotations

import math

import numpy as np

from anykmeans.kernels.numba.simd import combine
from anykmeans.kernels.numba.steps import jit


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
