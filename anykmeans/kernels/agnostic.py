"""The steps in the Array API standard alone: the reference, and every other library's path."""

from __future__ import annotations

from anykmeans import _array as arrays
from anykmeans._array import Array, Namespace
from anykmeans._exact import DOWN, GAP, UP, Bounds, squared_distances, squared_norms

__all__ = ["interval", "nearest", "segment_sum", "squared_distances", "trials", "wear", "why_not"]

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


def interval(
    xp: Namespace, y: Array, best: Array, second: Array, bounds: Bounds
) -> tuple[Array, Array]:
    """Return float32 distances (m,): at most to the nearest, at least to the second nearest centroid."""
    norm = squared_norms(xp, y)
    return bounds.at_most(xp, norm, best), bounds.at_least(xp, norm, second)


def wear(
    xp: Namespace, upper: Array, lower: Array, labels: Array, drift: Array, drifts: Array
) -> tuple[Array, Array, Array]:
    """Return bounds upper (m,) and lower (groups, m) after centroids moved, and rows now in doubt.

    `drift` (k,) is how far each centroid moved, `drifts` (groups, k) how far the others of each
    group did at most, by label. What is given may be written to.
    """
    upper = (upper + xp.take(drift, labels)) * UP
    lower = (lower - xp.take(drifts, labels, axis=1)) * DOWN
    return upper, lower, xp.nonzero(~(upper * GAP < xp.min(lower, axis=0)))[0]


def trials(
    xp: Namespace, y: Array, minus_2c: Array, norms: Array, closest: Array, w: Array | None
) -> tuple[Array, Array]:
    """Return what rows `y` (m, d), float64, would cost with each of t more centroids, estimated.

    The costs (t,) are sums over rows of weight `w` (m,) times squared distance, `closest` (m,) at
    most; the second result (1,) is the weighted sum of ``closest + |y|^2``, for their error.
    """
    norm = squared_norms(xp, y)
    estimate = (y @ minus_2c + norms) + norm[:, None]  # (m, t)
    estimate = xp.where(estimate < closest[:, None], estimate, closest[:, None])
    estimate = xp.where(estimate > 0, estimate, xp.zeros_like(estimate))
    scale = closest + norm
    if w is not None:
        estimate, scale = estimate * w[:, None], scale * w
    return xp.sum(estimate, axis=0), xp.sum(scale)[None]


def segment_sum(xp: Namespace, values: Array, labels: Array, k: int) -> Array:
    """Return the sums (k, columns) of `values` (m, columns), float64, by label.

    A product with the one-hot matrix: the standard has no scatter-add. It is exact, because the
    values are whole numbers whose sums a float64 holds.
    """
    columns = xp.arange(k, dtype=labels.dtype, device=arrays.device_of(values))
    one_hot = xp.astype(columns[:, None] == labels[None, :], values.dtype)  # (k, m)
    return one_hot @ values
