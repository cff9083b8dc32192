# mypy: allow-untyped-defs, allow-untyped-calls
"""Rows in a few coordinates, for a first look: where centroids are, and how far the rows are from there.

Let Q (d, p) have orthonormal columns, ``z = Q.T y``, and r the norm of what is left of y. Then for a row
and a centroid ``|z - z_c|^2 + (r - r_c)^2 <= |y - c|^2 <= |z - z_c|^2 + (r + r_c)^2``, so that the vector
``(z, r)`` gives a lower bound by its distance and an upper bound by ``4 r r_c`` more. Q is chosen so that
little of centroids is left, and the two bounds are close.
"""

from __future__ import annotations

import math

import numpy as np

from anykmeans.kernels.numba.room import empty, zeros
from anykmeans.kernels.numba.simd import LANES, ROWS, tile
from anykmeans.kernels.numba.steps import jit, squared_norm


def error(d: int) -> float:
    """Return the error of a vector of coordinates of `d` features, relatively to its length.

    They are stored in float32, and r is found by difference.
    """
    return max(2.0**-18, math.sqrt(d) * 2.0**-25)


def principal(y: np.ndarray, p: int) -> np.ndarray:
    """Return orthonormal directions (d, p), about where the rows `y` (m, d) vary most.

    Subspace iteration (Halko, Martinsson and Tropp, SIAM Review 2011).
    """
    narrow = y.astype(np.float32)
    q = np.random.default_rng(0).normal(size=(y.shape[1], p))
    for _ in range(2):
        q = np.linalg.qr((narrow.T @ (narrow @ q.astype(np.float32))).astype(np.float64))[0]
    return q


def coordinates(y: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return ``(z, r)`` (m, p + 1), float64, of rows `y` (m, d), float64."""
    z = y @ q
    left = (y * y).sum(axis=1) - (z * z).sum(axis=1)
    return np.concatenate([z, np.sqrt(np.maximum(left, 0.0))[:, None]], axis=1)


@jit
def project(x, at, unit, offset, panels, found):
    """Write the `coordinates` of rows ``x[at]``, in the frame and less the offset, to `found` (m, p)."""
    d, p = x.shape[1], found.shape[1]
    y, norm = empty((ROWS, d), np.float64), empty(ROWS, np.float64)
    batch, lane = empty(ROWS, np.int64), empty(ROWS, np.int64)
    low, second = empty(ROWS, np.float64), empty(ROWS, np.float64)
    scores, norms = empty((ROWS, LANES), np.float64), zeros((panels.shape[0], LANES), np.float64)
    for r in range(ROWS):
        batch[r] = r
    for b in range(0, at.shape[0], ROWS):
        used = at.shape[0] - b if at.shape[0] - b < ROWS else ROWS
        for r in range(used):
            row = at[b + r]
            for f in range(d):
                y[r, f] = np.float64(x[row, f]) * unit - offset[f]
            norm[r] = squared_norm(y, r)
        for panel in range(panels.shape[0]):
            tile(y, batch, d, panels, norms, panel, scores, low, second, lane)
            for r in range(used):
                for spot in range(LANES):  # the last of all is of no direction, and zero
                    found[b + r, panel * LANES + spot] = scores[r, spot]
                norm[r] -= squared_norm(scores, r)
        for r in range(used):
            found[b + r, p - 1] = math.sqrt(norm[r] if norm[r] > 0.0 else 0.0)


def as_panels(q: np.ndarray, p: int) -> np.ndarray:
    """Return the directions Q (d, up to p - 1) as `project` takes them, for rows of `p` coordinates."""
    lanes = np.zeros((q.shape[0], -(-p // LANES) * LANES))
    lanes[:, : q.shape[1]] = q
    return np.ascontiguousarray(lanes.reshape(q.shape[0], -1, LANES).transpose(1, 0, 2))


def projected(
    y: np.ndarray, unit: float, offset: np.ndarray, q: np.ndarray, room: int
) -> np.ndarray:
    """Return the `coordinates` (m, p + 1), float32, of all rows `y` (m, d), with `room` for so many numbers."""
    (m, d), p = y.shape, q.shape[1]
    if 4 * LANES * d > room:  # for directions as panels, the last of which may hold few
        found = np.empty((m, p + 1), np.float32)
        step = max(1, room // d)
        for start in range(0, m, step):
            rows = y[start : start + step]
            found[start : start + step] = coordinates(rows * np.float64(unit) - offset, q)
        return found
    panels = as_panels(q, p + 1)
    found = np.empty((y.shape[0], panels.shape[0] * LANES), np.float32)
    project(y, np.arange(y.shape[0]), unit, offset, panels, found)
    return (
        found if found.shape[1] == p + 1 else np.concatenate([found[:, :p], found[:, -1:]], axis=1)
    )
