"""Rows against given centroids: labels, squared distances and inertia, bit for bit as a fit ends with; all distances."""

from __future__ import annotations

from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans._libraries import (
    Array,
    is_sparse,
    like,
    namespace,
    on_cpu,
    take,
    to_numpy,
)
from anykmeans._spherical import at_length_one
from anykmeans.kernels import Kernel, choose
from anykmeans.sources.descent import InMemory
from anykmeans.sources.rows import Rows


def nearest(x: Any, centroids: Any, **how: Any) -> Array:
    """Return labels (n,), int64: of the nearest centroids."""
    if (kernel := _in_short(x, centroids, **how)) is not None:
        short = kernel.labels(x, centroids, how.get("threads"))
        if short is not None:
            return short.astype(np.int64)
    rows, host = _against(x, centroids, glance=True, **how)
    with rows.work:
        run = _begun(rows, host)
        labels = run.labels(run.c)
        near = run.near()
    labels = rows.matrix.give(rows.xp.astype(labels, rows.xp.int64))
    if near.size:
        labels = _replaced(labels, near, nearest(take(rows.matrix.source, near), centroids, **how))
    return labels


def _in_short(
    x: Any,
    centroids: Any,
    *,
    kernel: str = "auto",
    max_bytes: int | None = None,
    threads: int | None = None,
    metric: str = "euclidean",
    names: check.Names = check.FUNCTIONS,
) -> Kernel | None:
    """Return the kernel that may have a short way for NumPy's rows: None if any argument but values may have to be refused."""
    if not type(x) is type(centroids) is np.ndarray or max_bytes is not None:
        return None
    if metric != "euclidean":
        return None
    if not len(x.shape) == len(centroids.shape) == 2 or x.shape[1] != centroids.shape[1]:
        return None
    if 0 in x.shape or not len(centroids) or centroids.dtype.char not in "fd":
        return None
    if not (threads is None or (type(threads) is int and threads > 0)):
        return None
    return choose(x, kernel)


def evaluate(
    x: Any, centroids: Any, *, sample_weight: Any = None, **how: Any
) -> tuple[Array, Array, float]:
    """Return labels (n,), squared distances (n,) and the inertia, bit for bit as a fit ends with."""
    rows, host = _against(x, centroids, sample_weight, **how)
    with rows.work:
        labels, distances, inertia = evaluated(rows, host)
    give = rows.matrix.give
    return give(rows.xp.astype(labels, rows.xp.int64)), give(distances), inertia


def evaluated(rows: Rows, host: np.ndarray) -> tuple[Array, Array, float]:
    """Return what `evaluate` does, where the work is done, for centroids (k, columns) in NumPy."""
    if (short := rows.kernel.evaluated(rows, host)) is not None:
        return short
    run = _begun(rows, host)
    found = run.label(run.c)
    labels, distances, inertia = found.labels, found.distances, found.inertia
    near = run.near()
    if near.size:
        w = rows.relative_weight(rows.matrix.asarray(near))
        weighs = w is None or bool(rows.xp.any(w > 0))
        few = rows.take(near, weighted=weighs)
        with few.work:
            others = evaluated(few, host)
        labels, distances = (
            _replaced(*each) for each in ((labels, near, others[0]), (distances, near, others[1]))
        )
        # All others are far beyond these, or have no weight to speak of.
        inertia = max(inertia, others[2]) if weighs else inertia
    return labels, distances, inertia


def counted(
    rows: Rows, host: np.ndarray, *, measured: bool
) -> tuple[Array, Array | None, float, Array]:
    """Return what `evaluated` does, and the sums (k, columns) of rows by label on their grid.

    Distances may be None and the inertia NaN if they need not be `measured`.
    """
    if (short := rows.kernel.counted(rows, host, measured=measured)) is not None:
        return short
    labels, distances, inertia = evaluated(rows, host)
    return labels, distances, inertia, rows.stats(labels, host.shape[0]).sums


def _replaced(found: Array, at: np.ndarray, others: Array, axis: int = 0) -> Array:
    """Return `found` with `others` in the places `at` (m,) along an axis."""
    if on_cpu(found):  # not by JAX, which would compile it for each shape
        a = np.array(to_numpy(found))
        a[(slice(None),) * axis + (at,)] = to_numpy(others)
        return like(a, found)
    xp, n = namespace(found), found.shape[axis]
    source = np.arange(n)
    source[at] = n + np.arange(at.size)
    return xp.take(xp.concat([found, others], axis=axis), like(source, found), axis=axis)


def _against(
    x: Any,
    centroids: Any,
    sample_weight: Any = None,
    *,
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
    metric: str = "euclidean",
    names: check.Names = check.FUNCTIONS,
    glance: bool = False,
) -> tuple[Rows, np.ndarray]:
    """Return checked rows, and the centroids (k, columns) to compare them with, in NumPy, told how as `assign` is."""
    x = check.matrix(x, names.x)
    c = check.centroids(centroids, x, names.centroids, names=names)
    sample_weight = check.weights(sample_weight, x, names)
    max_bytes = check.budget(max_bytes, 64 * (x.shape[1] + c.shape[0]))
    check.word(metric, "metric", check.METRICS)
    host = check.host(c)
    rows = Rows.over(
        x,
        sample_weight,
        kernel=kernel,
        max_bytes=max_bytes,
        threads=check.threads(threads),
        metric=metric,
        names=names,
        given=host if is_sparse(x) else None,
        look=not glance,
        once=glance,
    )
    if rows.matrix.spherical:
        host = at_length_one(host, names.centroids, single=rows.matrix.single)
    if glance:
        rows.glance(host)
    return rows, rows.matrix.columns_of(host)


def _begun(rows: Rows, host: np.ndarray) -> InMemory:
    """Return a run of one pass with the centroids in NumPy, in a float dtype that holds them."""
    xp = rows.xp
    narrow = rows.matrix.narrow and max(float(host.max()), -float(host.min())) < 1e38
    if narrow and host.dtype != np.float32:
        narrow = bool((host.astype(np.float32) == host).all())
    # One pass: bounds would not pay.
    host = host.astype(np.float32 if narrow else np.float64, copy=False)
    c = rows.matrix.asarray(host, xp.float32 if narrow else xp.float64)
    return rows.start(c, bounds="off", host=host)


def distances(x: Any, centroids: Any, **how: Any) -> Array:
    """Return Euclidean distances (n, k) of rows to centroids, in the dtype of centroids of `x`; or, by cosine, ``1 - cos``.

    That is half the square of the Euclidean, so that digits of small ones are kept. Compiled code takes differences, in that dtype. Elsewhere they come from products, but those of
    nearly equal rows, where products lose digits, from differences: last bits may differ between libraries.
    """
    if (kernel := _in_short(x, centroids, **how)) is not None:
        short = kernel.all_distances(x, centroids, how.get("threads"))
        if short is not None:
            return short
    rows, host = _against(x, centroids, glance=True, **how)
    with rows.work:
        run = _begun(rows, host)
        found = run.pairwise(run.c)
        near = run.near()
    if rows.matrix.spherical:
        return rows.matrix.give(found * found * 0.5)
    x, found = rows.matrix.source, rows.matrix.give(found)
    if (far := run.cut).size:
        cut = take(check.centroids(centroids, x, rows.names.centroids), far)
        found = _replaced(found, far, distances(x, cut, **how), axis=1)
    if near.size:
        found = _replaced(found, near, distances(take(x, near), centroids, **how))
    return found
