"""Compiled steps for arrays in host memory: what NumPy needs several passes over a tile for, in one.

Scores of few features are made in registers for blocks of rows with the features transposed; more
features leave the product to BLAS. Either way the two lowest scores of a row are found in one go.
None of the functions holds the interpreter's lock, so tiles in several threads really run at once.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from anykmeans import _array as arrays
from anykmeans._array import Array, Namespace
from anykmeans._exact import DOWN, GAP, TINY, UP, Bounds
from anykmeans.kernels import agnostic, cpu
from anykmeans.kernels.numba import seeding

HOST = True
segment_sum = cpu.segment_sum
gains, settle, costs, LEAN = seeding.gains, seeding.settle, seeding.costs, True

_FEW = 16  # features up to which a product in registers beats BLAS
_LANES = 128  # rows a block: long enough loops, columns that stay in the L1 cache


def why_not(x: Array) -> str | None:
    """Return None for dense arrays in host memory where Numba is installed."""
    if arrays.is_sparse(x):
        return "x is sparse"
    if not arrays.on_cpu(x):
        return f"x is {arrays.where_is(x)}, out of NumPy's reach"
    if importlib.util.find_spec("numba") is None:
        return "Numba is not installed (`pip install anykmeans[numba]`)"
    return None


def fused(d: int) -> bool:
    """Return whether rows of `d` features are scored in registers."""
    return d <= _FEW


def nearest(xp: Namespace, y: Array, minus_2c: Array, norms: Array) -> tuple[Array, Array, Array]:
    """Return labels (m,), best and second best score (m,)."""
    m = y.shape[0]
    labels = np.empty(m, dtype=np.int32)
    best, second = np.empty(m, dtype=y.dtype), np.empty(m, dtype=y.dtype)
    if fused(y.shape[1]):
        _few(y.shape[1])(y, np.ascontiguousarray(minus_2c.T), norms, labels, best, second)
    else:
        _two_lowest()(y @ minus_2c, norms, labels, best, second)
    return labels, best, second


def interval(
    xp: Namespace, y: Array, best: Array, second: Array, bounds: Bounds
) -> tuple[Array, Array]:
    """Return float32 distances (m,): at most to the nearest, at least to the second nearest centroid."""
    upper, lower = np.empty(y.shape[0], np.float32), np.empty(y.shape[0], np.float32)
    _interval()(y, best, second, bounds.beta, bounds.eta, upper, lower)
    return upper, lower


def wear(
    xp: Namespace, upper: Array, lower: Array, labels: Array, drift: Array, drifts: Array
) -> tuple[Array, Array, Array]:
    """Return bounds upper (m,) and lower (groups, m) after centroids moved, and rows now in doubt."""
    if lower.shape[0] > 1:
        return agnostic.wear(xp, upper, lower, labels, drift, drifts)
    active = np.empty(upper.shape[0], np.int64)
    count = _wear()(upper, lower[0], labels, drift, drifts[0], active)
    return upper, lower, active[:count]


def squared_distances(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the squared distances (m,) of the rows of `a` (m, d) and `b` (m, d) or (1, d), float64."""
    distances = np.empty(a.shape[0])
    _distances()(np.ascontiguousarray(a), np.ascontiguousarray(b), distances)
    return distances


@functools.cache
def _jit() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    import numba

    # On disk after the first time. No fast-math: infinities are meant, and the order of additions
    # matters to nobody but must stay within the error bound.
    jit: Callable[..., Callable[..., Any]] = numba.njit(cache=True, nogil=True, error_model="numpy")
    return jit


@functools.cache
def _few(d: int) -> Callable[..., None]:
    """Return the scoring of rows of `d` features; a constant `d` lets the compiler unroll."""

    def few(y, minus_2c, norms, labels, best, second):  # type: ignore[no-untyped-def]
        m, k = y.shape[0], norms.shape[0]
        columns = np.zeros((d, _LANES), y.dtype)
        first, next_ = np.empty(_LANES, y.dtype), np.empty(_LANES, y.dtype)
        who = np.empty(_LANES, np.int32)
        for start in range(0, m, _LANES):
            rows = min(_LANES, m - start)
            for i in range(rows):
                for f in range(d):
                    columns[f, i] = y[start + i, f]
            for i in range(_LANES):
                first[i], next_[i], who[i] = np.inf, np.inf, 0
            for j in range(k):
                norm, number = norms[j], np.int32(j)
                for i in range(_LANES):
                    s = norm
                    for f in range(d):
                        s += minus_2c[j, f] * columns[f, i]
                    low = first[i]
                    # Conditional expressions, as `min` and `max` keep this from being vectorised.
                    high = s if s > low else low
                    next_[i] = high if high < next_[i] else next_[i]
                    first[i] = s if s < low else low
                    who[i] = number if s < low else who[i]
            for i in range(rows):
                labels[start + i], best[start + i] = who[i], first[i]
                second[start + i] = next_[i]

    return _jit()(few)


@functools.cache
def _two_lowest() -> Callable[..., None]:
    """Return the search of products (m, k) for the two lowest scores of each row."""

    def two_lowest(product, norms, labels, best, second):  # type: ignore[no-untyped-def]
        m, k = product.shape
        lanes = 32
        whole = k - k % lanes
        first, next_ = np.empty(lanes, product.dtype), np.empty(lanes, product.dtype)
        who = np.empty(lanes, np.int32)
        for row in range(m):
            for i in range(lanes):
                first[i], next_[i], who[i] = np.inf, np.inf, 0
            for j in range(0, whole, lanes):
                for i in range(lanes):
                    s = product[row, j + i] + norms[j + i]
                    low = first[i]
                    high = s if s > low else low
                    next_[i] = high if high < next_[i] else next_[i]
                    first[i] = s if s < low else low
                    who[i] = np.int32(j + i) if s < low else who[i]
            low, high, label = first[0], next_[0], who[0]
            for i in range(1, lanes):
                if first[i] < low:
                    low, high, label = first[i], min(low, next_[i]), who[i]
                else:
                    high = min(high, first[i])
            for j in range(whole, k):
                s = product[row, j] + norms[j]
                if s < low:
                    low, high, label = s, low, np.int32(j)
                else:
                    high = min(high, s)
            labels[row], best[row], second[row] = label, low, high

    return _jit()(two_lowest)


@functools.cache
def _interval() -> Callable[..., None]:
    """Return `Bounds.at_most` and `Bounds.at_least` in one go."""

    def interval(y, best, second, beta, eta, upper, lower):  # type: ignore[no-untyped-def]
        m, d = y.shape
        for row in range(m):
            norm = 0.0
            for f in range(d):
                norm += np.float64(y[row, f]) * np.float64(y[row, f])
            near, far = norm + best[row], norm + second[row]
            near = (near * (1 + beta) if near > 0 else near) + norm * beta + eta
            far = (far * (1 - beta) if far > 0 else far) - norm * beta - eta
            upper[row] = math.sqrt(max(near, 0.0)) * UP + TINY
            lower[row] = math.sqrt(max(far, 0.0)) * DOWN - TINY

    return _jit()(interval)


@functools.cache
def _wear() -> Callable[..., int]:
    """Return the wear of Hamerly's two bounds."""

    def wear(upper, lower, labels, drift, drifts, active):  # type: ignore[no-untyped-def]
        count = 0
        for row in range(upper.shape[0]):
            label = labels[row]
            upper[row] = (upper[row] + drift[label]) * UP
            lower[row] = (lower[row] - drifts[label]) * DOWN
            if not upper[row] * GAP < lower[row]:
                active[count] = row
                count += 1
        return count

    return _jit()(wear)


@functools.cache
def _distances() -> Callable[..., None]:
    """Return the distance of `anykmeans._exact`, bit for bit: no fused or reordered additions."""

    def distances(a, b, result):  # type: ignore[no-untyped-def]
        m, d = a.shape
        largest = 1  # the largest power of two below d
        while 2 * largest < d:
            largest *= 2
        t = np.empty(d)
        for row in range(m):
            other = row if b.shape[0] > 1 else 0
            for f in range(d):
                step = a[row, f] - b[other, f]
                t[f] = step * step
            left, half = d, largest
            while left > 1:
                for f in range(left - half):
                    t[f] += t[f + half]
                left, half = half, half // 2
            result[row] = t[0]

    return _jit()(distances)
