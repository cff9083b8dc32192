"""The three steps in the Array API standard alone: the reference, and every other library's path."""

from __future__ import annotations

from anykmeans import _array as arrays
from anykmeans._array import Array, Namespace

HOST = False


def why_not(x: Array) -> str | None:
    """Return None for every dense array: the standard is all this kernel needs."""
    return "x is sparse, which the Array API does not have" if arrays.is_sparse(x) else None


def nearest(xp: Namespace, y: Array, minus_2c: Array, norms: Array) -> tuple[Array, Array, Array]:
    """Return labels (m,), best and second best score (m,) of rows `y` (m, d).

    The scores are ``norms + y @ minus_2c`` with `minus_2c` (d, k) and `norms` (k,).
    """
    scores = y @ minus_2c + norms  # (m, k)
    labels = xp.argmin(scores, axis=1)
    best = xp.min(scores, axis=1)
    columns = xp.arange(norms.shape[0], dtype=labels.dtype, device=arrays.device_of(y))
    infinity = xp.full_like(scores, xp.inf)
    second = xp.min(xp.where(columns == labels[:, None], infinity, scores), axis=1)
    return labels, best, second


def segment_sum(xp: Namespace, values: Array, labels: Array, k: int) -> Array:
    """Return the sums (k, columns) of `values` (m, columns), float64, by label.

    A product with the one-hot matrix: the standard has no scatter-add. It is exact, because the
    values are whole numbers whose sums a float64 holds.
    """
    columns = xp.arange(k, dtype=labels.dtype, device=arrays.device_of(values))
    one_hot = xp.astype(columns[:, None] == labels[None, :], values.dtype)  # (k, m)
    return one_hot @ values
