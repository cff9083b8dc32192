"""A first look at rows, coded or in few coordinates: which one pays, by what it would leave of a sample of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from anykmeans._bounds import Bounds
from anykmeans._settings import current
from anykmeans.kernels.numba import codes, subspace
from anykmeans.kernels.numba.codes import Codes
from anykmeans.kernels.numba.panels import Panels
from anykmeans.kernels.numba.simd import LANES

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work

WIDE = 64  # features from which on a first look may pay
# Features of all centroids, and rows for each of these, from which on a first look pays in a single pass, too.
_LARGE, _SHARING = 1 << 17, 32
_CHOICES = (32, 48, 64, 96, 128, 192, 256)  # coordinates
_MOST = _CHOICES[-1]
_SAMPLE, _LEAST = 256, 64  # rows that tell, and the fewest that do
_PAIRS = 1 << 19  # of a row that tells and a centroid, about, at most
_PASSES = 4  # over all rows and panels, whose bounds rule out more and more, that share what a look takes to make
# Nanoseconds, about: of a feature of a panel as a number and coded, of a panel besides, of a feature of a row that is
# read, of one that is coded, of one of a centroid that is scored alone, and of such a centroid besides.
_NUMBER, _CODED, _PANEL, _READ, _CODING, _ALONE, _EACH = 0.36, 0.2, 20.0, 0.4, 1.0, 0.12, 50.0


class Look(NamedTuple):
    """How rows are looked at before they are scored.

    Attributes
    ----------
    kind : int
        FULL: they are scored with whole panels; NUMBERS: bounds by coordinates, CODES: by codes come first.
    z : ndarray of shape (n, p), float32
        Coordinates of all rows.
    minus_2c : ndarray of shape (panels, p, LANES)
        Those of centroids times -2, or as they are scored if in full, in the dtype of scores.
    norms : ndarray of shape (panels, LANES)
        Their squared lengths, infinity where there is none, in that dtype.
    codes : Codes
        Of rows.
    panels : Codes
        Of centroids.
    starts : ndarray of shape (panels, LANES), int32
        Where their sums begin.
    lengths : ndarray of shape (n,), float32
        Squared lengths of the rows.
    beta, eta : float
        How far bounds can be off that are made of this in the dtype of scores: `Bounds`.
    """

    kind: int
    z: np.ndarray
    minus_2c: np.ndarray
    norms: np.ndarray
    codes: Codes
    panels: Codes
    starts: np.ndarray
    lengths: np.ndarray
    beta: float
    eta: float


FULL, NUMBERS, CODES = range(3)


class Plan(NamedTuple):
    """How to look at rows first.

    Attributes
    ----------
    origin : ndarray of shape (d,), float64
        What rows are less.
    q : ndarray of shape (d, p - 1), float64, or None
        The directions of coordinates; None for codes of all features.
    settles : bool
        Whether rows are decided by their coordinates, and few are left to be read.
    """

    origin: np.ndarray
    q: np.ndarray | None = None
    settles: bool = False


def alone(n: int, d: int, k: int) -> bool:
    """Return whether codes of `n` rows of `d` features may pay where `k` centroids are searched but once."""
    large = d >= WIDE and d * k >= _LARGE and n >= _SHARING * k
    return codes.AVAILABLE and large and n >= current().first_look


def directions(y: np.ndarray, c: np.ndarray, most: int) -> np.ndarray:
    """Return orthonormal directions (d, up to `most`) that leave little of centroids `c` (k, d), the first ones least.

    Where these are fewer, directions follow in which the rows `y` (m, d) vary most, as centroids will move there.
    """
    k, d = c.shape
    p = min(most, d)
    if k >= p:
        q = subspace.principal(c, p)
    else:
        own = np.linalg.qr(c.T)[0]
        rest = y - (y @ own) @ own.T
        q = np.linalg.qr(np.concatenate([own, subspace.principal(rest, p - k)], axis=1))[0]
    some = c @ q
    found: np.ndarray = q @ np.linalg.eigh(some.T @ some)[1][:, ::-1]
    return found


def plan(
    frame: Frame, work: Work, wide: np.ndarray, labels: np.ndarray | None, coded: bool
) -> Plan | None:
    """Return the look that pays most for centroids `wide` (k, d), or None if none does.

    The nearest were `labels` (n,) before they moved; where that is not known yet, there are no coordinates. Rows may be
    `coded` already.
    """
    n, d = frame.matrix.shape
    k = wide.shape[0]
    room = work.max_bytes // (64 * d)  # for some copies of rows
    if d < WIDE or n < current().first_look or room < _LEAST:
        return None
    every = np.arange(0, n, -(-n // max(_LEAST, min(_SAMPLE, room, _PAIRS // k))))
    origin = wide.mean(axis=0)
    y, c = frame.wide(every) - origin, wide - origin
    rows, few = y.astype(np.float32), c.astype(np.float32)
    norm, norms = _squared(rows)[:, None], _squared(few)
    squared = norm + norms - 2 * (rows @ few.T)
    own = squared.min(axis=1) if labels is None else ((y - c[labels[every]]) ** 2).sum(axis=1)
    own = (own * np.float32(1.001)).astype(np.float32)[:, None]
    panels, alone, read = k / LANES, d * _ALONE + _EACH, d * _READ
    best, found = panels * (_NUMBER * d + _PANEL), None
    budget = work.max_bytes // n
    if codes.AVAILABLE and 4 * (d + 2 * LANES) <= budget:
        off = 2 * (codes.taken(rows)[:, None] * np.sqrt(norms) + np.sqrt(norm) * codes.taken(few))
        looked, refined = panels * (_CODED * d + _PANEL), _left(squared - off, own) * alone
        if refined < looked < best - refined:  # what to find directions takes would not come back
            return Plan(origin)
        took = looked + refined + (0 if coded else _CODING * d / _PASSES)
        if took < best:
            best, found = took, Plan(origin)
    most = min(_MOST, budget // 16, work.max_bytes // (128 * d), d // 2) // LANES * LANES
    # What finding directions takes must come back.
    finding = d * most * (most + max(k, every.size))
    if labels is None or most < 2 * LANES or n * best * _PASSES < finding:
        return found
    q = directions(y, c, most - 1)
    z, few = (y @ q).astype(np.float32), (c @ q).astype(np.float32)
    product, start = np.zeros(squared.shape, np.float32), 0
    mine = np.arange(own.size), labels[every]
    for p in _CHOICES:
        if p > most:
            break
        product += z[:, start : p - 1] @ few[:, start : p - 1].T
        start = p - 1
        length, lengths = _squared(z[:, :start])[:, None], _squared(few[:, :start])
        between = np.sqrt(np.maximum(norm - length, 0)) * np.sqrt(np.maximum(norms - lengths, 0))
        low = norm + norms - 2 * (product + between)
        unsettled = np.mean(_left(low, (low[mine] + 4 * between[mine])[:, None], axis=1) > 1)
        looked = panels * (_NUMBER * p + _PANEL) + 2 * p * d * _NUMBER / LANES / _PASSES
        refined = looked + _left(low, own) * alone
        settled = looked + p * _READ - read + unsettled * (refined + read)
        for took, settles in ((refined, False), (settled, True)):
            if took < best:
                best, found = took, Plan(origin, q[:, :start], settles)
    return found


def _squared(a: np.ndarray) -> np.ndarray:
    """Return the squared lengths (m,) of the rows of `a` (m, d)."""
    found: np.ndarray = np.einsum("md,md->m", a, a)
    return found


def _left(low: np.ndarray, edge: np.ndarray, axis: int | None = None) -> Any:
    """Return how many of the bounds `low` (m, k) are not above their row's `edge` (m, 1): on average, or of each row."""
    found = np.count_nonzero(low <= edge, axis=axis)
    return found / low.shape[0] if axis is None else found


class FirstLook:
    """All rows as they are looked at first.

    Attributes
    ----------
    plan : Plan
        How.
    """

    def __init__(self, plan: Plan, frame: Frame, work: Work) -> None:
        self.plan = plan
        n, d = frame.matrix.shape
        self._lengths, self._offset = np.empty(n, np.float32), plan.origin.astype(np.float32)
        self._codes, self._z = _NO_CODES, _NONE
        step = min(work.readable(frame.matrix), -(-n // (4 * work.threads)))
        if plan.q is None:
            self._codes = codes.room(n, d)
            scale = frame.affine(narrow=True)[0]

            def fill(tile: slice) -> None:
                x, at = frame.matrix.readable(tile)
                whole, terms = self._codes.whole[tile], self._codes.terms[tile]
                codes.encode(x, at, scale, self._offset, whole, terms, self._lengths[tile])

        else:
            p = plan.q.shape[1] + 1
            self._z, panels = np.empty((n, p), np.float32), subspace.as_panels(plan.q, p)

            def fill(tile: slice) -> None:
                x, at = frame.matrix.readable(tile)
                subspace.project(x, at, frame.unit, plan.origin, panels, self._z[tile])
                self._lengths[tile] = _squared(self._z[tile])

        work.map(fill, work.tiles(step=step))

    def of(self, wide: np.ndarray, panels: Panels) -> tuple[Look, np.ndarray | None]:
        """Return the look with centroids `wide` (k, d), and their coordinates (k, p), float64, if there are any."""
        d = wide.shape[1]
        if self.plan.q is None:
            bounds = Bounds.of(d, 2.0**-24, 2 * d)
            look = in_full(*_NO_PANELS, bounds, np.float32)
            coded, starts = codes.of_panels(wide, self._offset, panels)
            look = look._replace(kind=CODES, codes=self._codes, panels=coded, starts=starts)
            return look._replace(lengths=self._lengths), None
        few = subspace.coordinates(wide - self.plan.origin, self.plan.q)
        bounds = Bounds.of(few.shape[1], 2.0**-24)
        look = in_full(*panels.coefficients(few, np.float32), bounds, np.float32)
        beta = look.beta + 16 * subspace.error(d)
        return look._replace(kind=NUMBERS, z=self._z, lengths=self._lengths, beta=beta), few


_NONE = np.empty((0, 1), np.float32)
_NO_PANELS = np.empty((0, 1, LANES), np.float32), np.empty((0, LANES), np.float32)
_NO_CODES = codes.room(0, 1)
_NO_CODED = Codes(np.empty((0, 1, LANES, codes.QUAD), np.int8), np.empty((0, 4, LANES), np.float32))
_NO_STARTS = np.empty((0, LANES), np.int32)
_NO_LENGTHS = np.empty(0, np.float32)


def in_full(minus_2c: np.ndarray, norms: np.ndarray, bounds: Bounds, dtype: Any) -> Look:
    """Return no look before rows are scored in a dtype with the panels (panels, d, LANES)."""
    beta = bounds.beta + 4 * float(np.finfo(dtype).eps)
    none = _NONE.astype(dtype)  # what is compiled for that dtype takes coordinates in no other
    return Look(
        FULL, none, minus_2c, norms, _NO_CODES, _NO_CODED, _NO_STARTS, _NO_LENGTHS, beta, bounds.eta
    )  # fmt: skip
