"""The steps in the Array API standard alone: the reference, and every other library's path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from anykmeans import _libraries as arrays
from anykmeans._bounds import DOWN, GAP, UP, Bounds, squared_norms
from anykmeans._distance import squared_distances
from anykmeans._libraries import Array, Namespace, put, to_numpy
from anykmeans._matrix import take_rows
from anykmeans._sparse import SparseRows

__all__ = [
    "costs",
    "gains",
    "interval",
    "nearest",
    "reached",
    "saved",
    "segment_sum",
    "settle",
    "sieve",
    "squared_distances",
    "wear",
    "why_not",
]

LIBRARY = None


def why_not(x: Array) -> str | None:
    """Return None for every dense array: the standard is all this kernel needs."""
    return "the rows are sparse, which the Array API does not have" if arrays.is_sparse(x) else None


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


class Sieve:
    """What rules candidates of k-means++ out: the triangle inequality.

    Rows whose pick is at least twice as far from a candidate as from them are none of its.
    """

    def __init__(self, frame: Any, first: Array, k: int) -> None:
        d = int(first.shape[1])
        self._xp, self._matrix = frame.xp, frame.matrix
        self._origin = first[0, :]  # a point near the rows, for products
        self._picks, self._norms, self._count = np.zeros((k, d)), np.zeros(k), 0
        self._bounds = Bounds.of(d, 2.0**-53)

    def rows(self, y: Array) -> Array:
        """Return what is kept of rows `y` (m, d): the number of each row's pick, int32."""
        return self._xp.zeros(y.shape[0], dtype=self._xp.int32, device=arrays.device_of(y))

    def add(self, c: Array) -> int:
        """Count the pick at `c` (1, d) in, and return its number."""
        number, pick = self._count, to_numpy(c - self._origin)[0]
        self._picks[number], self._norms[number] = pick, pick @ pick
        self._count += 1
        return number

    def against(self, c: Array) -> tuple[Array, Array]:
        """Return the origin, and for candidates `c` (t, d) squared distances (picks, t), a `reach`.

        Within it from each pick, rows are not nearer to the candidate.
        """
        b = to_numpy(c - self._origin)
        picks, norms = self._picks[: self._count], self._norms[: self._count, None]
        estimate = picks @ (b * -2.0).T + (b * b).sum(axis=1) + norms
        lower = self._bounds.lower(np, estimate, norms)
        # A quarter, less more than rounding takes. Nothing that may have underflowed is used.
        reach = np.where(lower > 2.0**-900, lower / (4 * GAP), 0.0)
        return self._origin, self._matrix.asarray(reach)


def sieve(frame: Any, work: Any, first: Array, k: int) -> Sieve:
    """Return what rules candidates out, for `k` picks of which the first is at `first` (1, d)."""
    return Sieve(frame, first, k)


def gains(
    xp: Namespace,
    read: Callable[[], Array],
    c: Array,
    closest: Array,
    owner: Array,
    against: tuple[Array, Array],
    w: Array | None,
    scale: float,
) -> tuple[Array, float, Array]:
    """Return what each of t more centroids `c` (t, d) saves (t,), in doubt by how much, and what it wins.

    Rows (m, d), which `read` returns, have squared distances `closest` (m,) to their centroid, number `owner` (m,); those
    with ``closest <= reach[owner, j]`` are none of candidate j's. Savings are differences of weighted
    distances times `scale`. Bit ``j % 8`` of the last result (m,), uint8, is set for all rows nearer to `c[j]`.
    """
    y, (origin, reach) = read(), against
    m = int(closest.shape[0])
    (at,) = xp.nonzero(closest > xp.take(xp.min(reach, axis=1), owner))
    some = 2 * at.shape[0] < m  # else the others are no more work than to leave them out
    if some:
        y, closest = xp.take(y, at, axis=0), xp.take(closest, at)
        w = None if w is None else xp.take(w, at)
    z, b = xp.astype(y, xp.float64, copy=False) - origin, c - origin
    norm = xp.vecdot(z, z)
    estimate = (b * -2.0) @ xp.permute_dims(z, (1, 0)) + xp.vecdot(b, b)[:, None]  # (t, m)
    estimate += norm
    bounds = Bounds.of(int(c.shape[1]), 2.0**-53)
    saved, doubt, won = weighed(xp, estimate, norm, closest, bounds, w, scale)
    if some:
        won = put(xp, xp.zeros_like(owner, dtype=xp.uint8), at, won)
    return saved, doubt, won


def weighed(
    xp: Namespace,
    estimate: Array,
    norm: Array,
    closest: Array,
    bounds: Bounds,
    w: Array | None,
    scale: float,
) -> tuple[Array, float, Array]:
    """Return what `gains` does, by estimates (t, m) of squared distances that err by `bounds` at most."""
    m, t = int(closest.shape[0]), int(estimate.shape[0])
    # Solved for the estimate, with 1 / (1 - beta) <= 1 + 2 beta: the distance may be below `closest`.
    nearer = estimate < (closest + norm * bounds.beta + bounds.eta) * (1 + 2 * bounds.beta)
    less = xp.minimum(xp.maximum(closest - estimate, xp.zeros_like(closest)), closest)
    weights = xp.ones_like(norm) if w is None else w
    # An estimate errs by `beta` times these and by underflow; relative weights are below 2**21.
    doubt = 1.1 * bounds.beta * float(xp.vecdot(closest + norm, weights)) + m * 2.0**21 * bounds.eta
    bits = xp.asarray(
        [[1 << j] for j in range(8)], dtype=xp.uint8, device=arrays.device_of(closest)
    )
    won = xp.zeros_like(closest, dtype=xp.uint8)
    for j in range(0, t, 8):
        eight = nearer[j : min(j + 8, t), :]
        flags = xp.astype(eight, xp.uint8) * bits[: eight.shape[0], :]
        won |= xp.sum(flags, axis=0, dtype=xp.uint8)
    return (less @ weights) * scale, doubt * scale, won


def saved(
    xp: Namespace,
    y: Array,
    c: Array,
    closest: Array,
    w: Array | None,
    scale: float,
    won: Array,
    j: int,
) -> Array:
    """Return exactly what candidate `j`, at `c` (1, d), saves (), of rows it may have `won` (m,) alone."""
    (at,) = xp.nonzero(won & (1 << j % 8))
    found = distances_to(xp, y, at, c)
    before = xp.take(closest, at)
    w = None if w is None else xp.take(w, at)
    less = whole(xp, before, w, scale) - whole(xp, xp.minimum(found, before), w, scale)
    return xp.sum(less)


def settle(
    xp: Namespace,
    y: Array,
    c: Array,
    closest: Array,
    owner: Array,
    pick: int,
    won: Array | None,
    j: int,
) -> tuple[Array, Array]:
    """Return `closest` and `owner` (m,) with pick number `pick`, candidate `j` at `c` (1, d), counted in.

    It may have `won` (m,) only some rows, or None for all. What is given may be written to.
    """
    at = xp.nonzero(xp.ones_like(owner) if won is None else won & (1 << j % 8))[0]
    found = distances_to(xp, y, at, c)
    before, old = xp.take(closest, at), xp.take(owner, at)
    owner = put(xp, owner, at, xp.where(found < before, xp.full_like(old, pick), old))
    return put(xp, closest, at, xp.minimum(found, before)), owner


def distances_to(xp: Namespace, y: Array | SparseRows, at: Array, c: Array) -> Array:
    """Return the squared distances (m,), by R5, of the rows ``y[at]`` to one centroid `c` (1, d), float64."""
    y = take_rows(xp, y, at) if at.shape[0] < y.shape[0] else y
    if isinstance(y, SparseRows):
        return y.squared_distances(c[0])
    return squared_distances(xp, xp.astype(y, xp.float64, copy=False), c)


def costs(
    xp: Namespace, closest: Array, w: Array | None, scale: float, block: int
) -> tuple[Array, float]:
    """Return the whole-number costs of each `block` rows, on the host, and the largest cost of a row."""
    cost = closest if w is None else w * closest
    counts, m = xp.round(cost * scale), int(closest.shape[0])
    full = m // block
    sums = np.empty(-(-m // block))
    if full:
        parts = xp.reshape(counts[: full * block], (full, block))
        sums[:full] = to_numpy(xp.sum(parts, axis=1))
    if full * block < m:
        sums[full] = float(xp.sum(counts[full * block :]))
    return sums, float(xp.max(cost))


def reached(closest: Array, w: Array | None, scale: float, total: float, draw: float) -> int:
    """Return the first row up to which costs add up to the `draw`, if up to the last they do to the `total`."""
    cost = to_numpy(closest)  # few enough for the host
    if w is not None:
        cost = to_numpy(w) * cost
    so_far = np.rint(cost * scale).cumsum()
    return int((so_far + (total - so_far[-1])).searchsorted(draw))


def whole(xp: Namespace, distances: Array, w: Array | None, scale: float) -> Array:
    """Return costs, `w` (m,) times squared distances (..., m), as whole numbers of a grid."""
    return xp.round((distances if w is None else w * distances) * scale)


def segment_sum(xp: Namespace, values: Array, labels: Array, k: int) -> Array:
    """Return the sums (k, columns) of `values` (m, columns), float64, by label.

    A product with the one-hot matrix: the standard has no scatter-add. It is exact, because the
    values are whole numbers whose sums a float64 holds.
    """
    columns = xp.arange(k, dtype=labels.dtype, device=arrays.device_of(values))
    one_hot = xp.astype(columns[:, None] == labels[None, :], values.dtype)  # (k, m)
    return one_hot @ values
