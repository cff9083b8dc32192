"""Compiled steps of k-means++: every trial of a step in one pass over the rows.

Distances that are kept are `anykmeans._exact`'s bit for bit: no fused or reordered additions. Rows of
few features are measured for many rows at a time, features transposed. Of more features sums in any
order, given up as soon as they are too large, tell candidates apart to within a bound on their error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from anykmeans._array import Array, Namespace

_FEW = 32  # features up to which rows are measured many at a time
_ONE = np.ones(1)


def gains(
    xp: Namespace,
    y: Array,
    c: Array,
    origin: Array,
    closest: Array,
    owner: Array,
    reach: Array,
    w: Array | None,
    scale: float,
) -> tuple[Array, float, Array]:
    """Return what each of t more centroids saves (t,), in doubt by how much, and what it may win (m,)."""
    y, w = np.ascontiguousarray(y), _ONE if w is None else np.ascontiguousarray(w)
    saved, won = np.zeros(c.shape[0]), np.empty(y.shape[0], np.uint8)
    if y.shape[1] <= _FEW:
        _few()(y, c, closest, owner, reach, w, scale, saved, won)
        return saved, 0.0, won
    doubt = _many()(y, c, closest, owner, reach, w, saved, won)
    return saved * scale, doubt * scale, won


def settle(
    xp: Namespace, y: Array, c: Array, closest: Array, owner: Array, pick: int, won: Array
) -> tuple[Array, Array]:
    """Return `closest` and `owner` (m,) with pick number `pick` at `c` (1, d) counted in."""
    _settle()(np.ascontiguousarray(y), c, closest, owner, pick, won)
    return closest, owner


def costs(
    xp: Namespace, closest: Array, w: Array | None, scale: float, block: int
) -> tuple[Array, float]:
    """Return the whole-number costs of blocks of rows, and the largest cost of a row."""
    sums = np.empty(-(-closest.shape[0] // block))
    return sums, _costs()(
        closest, _ONE if w is None else np.ascontiguousarray(w), scale, block, sums
    )


def _jit(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    import numba

    jit: Callable[..., Any] = numba.njit(
        cache=True, nogil=True, error_model="numpy", boundscheck=False, **options
    )
    return jit


@functools.cache
def _few() -> Callable[..., None]:
    """Return the trials of few features: rows that no bound rules out, side by side."""

    def few(y, c, closest, owner, reach, w, scale, saved, won):  # type: ignore[no-untyped-def]
        lanes = 64
        m, d = y.shape
        t = c.shape[0]
        quarter = 1
        while 4 * quarter < d:
            quarter *= 2
        columns, sums = np.zeros((4 * quarter, lanes)), np.zeros((quarter, lanes))
        far = np.zeros((t, 4 * quarter))
        for j in range(t):
            for f in range(d):
                far[j, f] = c[j, f]
        weight, before, cost = np.ones(lanes), np.empty(lanes), np.empty(lanes)
        less, bits = np.zeros((t, lanes)), np.empty(lanes, np.int64)
        rows = np.empty(lanes, np.uint64)  # a signed index would be looked at twice
        nearest = np.empty(reach.shape[0])
        for o in range(reach.shape[0]):
            nearest[o] = np.inf
            for j in range(reach.shape[1]):
                nearest[o] = reach[o, j] if reach[o, j] < nearest[o] else nearest[o]
        row = 0
        while row < m:
            count = 0
            while row < m and count < lanes:
                won[row], rows[count] = 0, row
                count += closest[row] > nearest[owner[row]]  # no branch: it would be a guess
                row += 1
            for i in range(count):
                before[i] = closest[rows[i]]
                weight[i] = w[rows[i]] if w.shape[0] > 1 else w[0]
            for i in range(count, lanes):
                before[i] = 0.0  # nothing is nearer
            for f in range(d):
                for i in range(count):
                    columns[f, i] = y[rows[i], f]
            for i in range(lanes):
                cost[i] = np.rint(weight[i] * before[i] * scale)
                bits[i] = 0
            for j in range(t):
                for f in range(quarter):
                    a, b, g, h = (
                        far[j, f],
                        far[j, f + quarter],
                        far[j, f + 2 * quarter],
                        far[j, f + 3 * quarter],
                    )
                    for i in range(lanes):
                        p, q = columns[f, i] - a, columns[f + 2 * quarter, i] - g
                        r, s = columns[f + quarter, i] - b, columns[f + 3 * quarter, i] - h
                        sums[f, i] = (p * p + q * q) + (r * r + s * s)
                left = quarter
                while left > 1:
                    left //= 2
                    for f in range(left):
                        for i in range(lanes):
                            sums[f, i] += sums[f + left, i]
                flag = 1 << (j & 7)
                for i in range(lanes):
                    found = sums[0, i]
                    nearer = found < before[i]
                    less[j, i] += cost[i] - np.rint(weight[i] * found * scale) if nearer else 0.0
                    bits[i] |= flag if nearer else 0
            for i in range(count):
                won[rows[i]] = bits[i]
        for j in range(t):
            for i in range(lanes):
                saved[j] += less[j, i]

    return _jit()(few)


@functools.cache
def _many() -> Callable[..., float]:
    """Return the trials of many features, estimated: a sum is given up once too large."""

    def many(y, c, closest, owner, reach, w, saved, won):  # type: ignore[no-untyped-def]
        m, d = y.shape
        piece = 64  # features after which to see whether it is too far already
        # A sum of d squares in any order errs by less than half of this, and so does the exact one.
        error, tiny = (d + 8) * 2.0**-51, 2.0**-1000
        nearest = np.empty(reach.shape[0])
        for o in range(reach.shape[0]):
            nearest[o] = np.inf
            for j in range(reach.shape[1]):
                nearest[o] = reach[o, j] if reach[o, j] < nearest[o] else nearest[o]
        doubt = 0.0
        for row in range(m):
            bits, o, before = 0, owner[row], closest[row]
            if before > nearest[o]:
                limit = before + before * error + tiny
                weight = w[row] if w.shape[0] > 1 else w[0]
                for j in range(c.shape[0]):
                    if before > reach[o, j]:
                        total = 0.0
                        for start in range(0, d, piece):
                            a, b = y[row, start : start + piece], c[j, start : start + piece]
                            for f in range(a.shape[0]):
                                step = a[f] - b[f]
                                total += step * step
                            if total > limit:
                                break
                        if total <= limit:
                            bits |= 1 << (j & 7)
                            saved[j] += weight * (before - total) if before > total else 0.0
                            doubt += weight * before * error + tiny
            won[row] = bits
        return doubt

    # Order matters to nobody here, but must stay within the bound.
    return _jit(fastmath={"reassoc", "contract"})(many)


@functools.cache
def _settle() -> Callable[..., None]:
    """Return the update of what is closest, for rows that a pick may be nearer to."""

    def settle(y, c, closest, owner, pick, won):  # type: ignore[no-untyped-def]
        m, d = y.shape
        largest = 1
        while 2 * largest < d:
            largest *= 2
        t, b = np.empty(largest), c[0]
        for row in range(m):
            if won[row]:
                a = y[row]
                for f in range(d - largest):
                    p, q = a[f] - b[f], a[f + largest] - b[f + largest]
                    t[f] = p * p + q * q
                for f in range(d - largest, largest):
                    p = a[f] - b[f]
                    t[f] = p * p
                half = largest
                while half > 1:
                    half //= 2
                    for f in range(half):
                        t[f] += t[f + half]
                if t[0] < closest[row]:
                    closest[row], owner[row] = t[0], pick

    return _jit()(settle)


@functools.cache
def _costs() -> Callable[..., float]:
    """Return the sums of whole-number costs, block by block, and the largest cost."""

    def costs(closest, w, scale, block, sums):  # type: ignore[no-untyped-def]
        whole, high = np.empty(block), np.zeros(block)
        for number in range(sums.shape[0]):
            start = number * block
            rows = closest.shape[0] - start if closest.shape[0] - start < block else block
            for i in range(rows):
                cost = closest[start + i] * (w[start + i] if w.shape[0] > 1 else w[0])
                high[i] = cost if cost > high[i] else high[i]
                whole[i] = np.rint(cost * scale)
            for i in range(rows, block):
                whole[i] = 0.0
            half = block  # a power of two; halves are added side by side, one sum would wait for itself
            while half > 1:
                half //= 2
                for i in range(half):
                    whole[i] += whole[i + half]
            sums[number] = whole[0]
        largest = 0.0
        for i in range(block):
            largest = high[i] if high[i] > largest else largest
        return largest

    return _jit()(costs)
