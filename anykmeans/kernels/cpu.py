"""NumPy and SciPy on every array whose memory NumPy can look at: NumPy, CPU torch, CPU JAX, sparse."""

from __future__ import annotations

import numpy as np

from anykmeans import _libraries as arrays
from anykmeans._fork import first_call
from anykmeans._libraries import Array, Namespace

LIBRARY = "numpy"


def why_not(x: Array) -> str | None:
    """Return None for arrays in host memory, else where they are."""
    return None if arrays.on_cpu(x) else f"the rows are {arrays.where_is(x)}, out of NumPy's reach"


def nearest(xp: Namespace, y: Array, minus_2c: Array, norms: Array) -> tuple[Array, Array, Array]:
    """Return labels (m,), best and second best score (m,); the score tile is worked in place."""
    scores = y @ minus_2c
    scores += norms
    rows = np.arange(scores.shape[0])
    labels = scores.argmin(axis=1)
    best = scores[rows, labels]
    if scores.shape[1] == 1:
        return labels, best, np.full_like(best, np.inf)
    scores[rows, labels] = np.inf
    return labels, best, scores[rows, scores.argmin(axis=1)]  # argmin is faster than min in NumPy


def segment_sum(xp: Namespace, values: Array, labels: Array, k: int) -> Array:
    """Return the sums (k, columns) by label, as a sparse product: 10 times faster than one-hot."""
    with first_call:
        from scipy.sparse import csr_array

    m = labels.shape[0]
    picks = csr_array((np.ones(m), labels, np.arange(m + 1)), shape=(m, k))
    return picks.T @ values
