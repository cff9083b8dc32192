"""The coordinates in which rows and centroids are compared: less an offset, times a power of two."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from anykmeans._grid import Grid
from anykmeans._libraries import Array, Namespace, Selection, to_numpy
from anykmeans._matrix import Matrix
from anykmeans._sparse import SparseRows

HEAVIEST = 2.0**21  # what relative weights are below
# How many times as large as another a number may be for both to show in a distance.
BESIDE = 2.0**200


def power_of_two(values: float) -> int:
    """Return the exponent e that brings `values` (a largest magnitude) to about 1, 0 if near it.

    Scaling by a power of two is exact. It is done only where squares would leave the range of the
    scoring dtype.
    """
    exponent = max(math.frexp(values)[1], -1000)  # 2**-exponent must be finite
    return 0 if -20 <= exponent <= 20 or values == 0 else exponent


def within_reach(c: np.ndarray, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Return centroids (k, d), none too far for rows of magnitude `largest` to show beside it, and their magnitudes (k,).

    One that is cannot be the nearest of any row, and neither can what it is cut to.
    """
    magnitudes = np.maximum(c.max(axis=1), -c.min(axis=1)).astype(np.float64)
    if magnitudes.max() <= BESIDE * largest:
        return c, magnitudes
    limit = BESIDE * (max(largest, magnitudes.min()) or magnitudes[magnitudes > 0].min())
    if limit >= magnitudes.max():
        return c, magnitudes
    return np.clip(c, -limit, limit), np.minimum(magnitudes, limit)


def largest_and_offsets(
    xp: Namespace, c: Array, *, alike: bool = False
) -> tuple[list[float], list[np.ndarray | None]]:
    """Return the largest magnitude of the centroids of each problem, `c` (b, k, d), and an offset (d,) or none for each.

    They stay where they are; one wait for the device tells. If problems are `alike`, they share the offset of all.
    """
    found = [xp.min(c, axis=1), xp.max(c, axis=1), xp.mean(c, axis=1)]
    low, high, mean = np.asarray(to_numpy(xp.stack(found)), np.float64)
    largest = np.maximum(high, -low).max(axis=1).tolist()
    if alike:
        low, high, mean = low.min(axis=0), high.max(axis=0), mean.mean(axis=0)
        return largest, _offsets(low[None, :], high[None, :], mean[None, :]) * len(largest)
    return largest, _offsets(low, high, mean)


def _offsets(low: np.ndarray, high: np.ndarray, mean: np.ndarray) -> list[np.ndarray | None]:
    """Return the `mean` (b, d) of problems whose centroids lie far from the origin for the box (b, d) they fill.

    It is rounded to a 64th of the box: rows of few digits then keep them, and it is as good an offset.
    """
    scale = np.frexp(np.maximum(high, -low).max(axis=1))[1]
    low, high, mean = (np.ldexp(a, -scale[:, None]) for a in (low, high, mean))
    wide = high - low
    square = (mean**2).sum(axis=1)
    # As if they filled it evenly.
    far = ((wide**2).sum(axis=1) < 12 * square) & np.isfinite(square)
    unit = np.ldexp(1.0, np.frexp(wide.max(axis=1))[1] - 6)[:, None]
    rounded = np.where(unit > 2.0**-64, np.rint(mean / unit) * unit, mean)
    mean = np.ldexp(rounded, scale[:, None])
    return [each if off else None for each, off in zip(mean, far.tolist(), strict=True)]


class Frame:
    """Coordinates for one matrix.

    Scaling by a power of two is exact; it keeps squares within range. An offset near the data keeps
    scores, which are differences of squares, from cancelling; it does not enter distances.

    Attributes
    ----------
    exponent : int
        Everything is multiplied by ``2**-exponent``.
    largest : float
        The largest magnitude of rows and centroids, before that.
    """

    def __init__(self, matrix: Matrix, largest: float, offset: np.ndarray | None = None) -> None:
        self.matrix, self.xp, self.largest = matrix, matrix.xp, largest
        self.exponent = power_of_two(largest)
        self._around: np.ndarray | None = None
        self._known = self._exact(offset)
        self._placed: Array | None = None

    def _exact(self, offset: np.ndarray | None) -> np.ndarray | None:
        """Return an offset in the frame and exact in the rows' dtype, so that subtracting it rounds once."""
        if offset is None:
            return None
        offset = np.ldexp(np.asarray(offset, np.float64), -self.exponent)
        return offset.astype(np.float32 if self.matrix.narrow else np.float64)

    @classmethod
    def around(cls, matrix: Matrix, largest: float, c: np.ndarray) -> Frame:
        """Return a frame for rows and centroids `c` (k, d) of magnitudes up to the `largest`.

        The offset is the centroids' mean, if they are nearer to it than to the origin. Sparse rows have none: they
        would be dense.
        """
        frame = cls(matrix, largest)
        if not matrix.sparse:
            frame._around = c
        return frame

    @property
    def _host(self) -> np.ndarray | None:
        """The offset (d,) on the host, or None: not every search wants one."""
        c = self._around
        if c is not None:
            scaled = np.ldexp(c.astype(np.float64, copy=False), -self.exponent)
            mean = scaled.mean(axis=0)
            far = (mean**2).sum() > ((scaled - mean) ** 2).sum() / c.shape[0]
            self._known = self._exact(np.ldexp(mean, self.exponent)) if far else None
            self._around = None  # last, as other threads may ask, too
        return self._known

    @property
    def _offset(self) -> Array | None:
        """The offset (d,) where the rows are: not every search wants it there."""
        if self._placed is None and self._host is not None:
            self._placed = self.matrix.asarray(self._host, self.matrix.float_dtype)
        return self._placed

    def scaled(self, a: Array) -> Array:
        """Return `a` in the frame's unit."""
        return a * 2.0**-self.exponent if self.exponent else a

    def wide(self, select: Selection) -> Array:
        """Return rows (m, d), float64, for distances."""
        return self.scaled(self.matrix.rows(select, self.xp.float64))

    def widen(self, c: Array) -> Array:
        """Return centroids (k, d), float64, for distances."""
        # A copy: given ones may be read-only, or lie by columns, for which Numba would compile everything anew.
        if isinstance(c, np.ndarray):
            return self.scaled(np.array(c, np.float64, order="C"))
        return self.scaled(self.xp.astype(c, self.xp.float64))

    def costs(self, n: int, weighted: bool) -> Grid:
        """Return the grid for the cost of `n` rows, of all parts, in this frame: no distance in it is longer than the diagonal."""
        side = 2.0 * self.largest * self.unit
        most = 2.0 * side * side * self.matrix.features  # twice as large as rounding takes
        return Grid.of_costs(most * (HEAVIEST if weighted else 1.0) or 1.0, n, weighted)

    @property
    def unit(self) -> float:
        """What a coordinate is multiplied by."""
        return 2.0**-self.exponent

    def affine(self, narrow: bool) -> tuple[Any, np.ndarray]:
        """Return scale and offset (d,): what makes `centred` of a row, in its dtype, on the host."""
        dtype = np.float32 if self._single(narrow) else np.float64
        if self._host is None:
            return dtype(self.unit), np.zeros(self.matrix.shape[1], dtype)
        return dtype(self.unit), self._host.astype(dtype)

    def _single(self, narrow: bool) -> bool:
        """Return whether rows are centred in float32: 2**126 is one, and must hold the scale."""
        return self.matrix.narrow and narrow and self.exponent > -126

    def tile(self, select: Selection, dtype: Any) -> SparseRows:
        """Return sparse rows (m, d) in the frame."""
        rows: SparseRows = self.matrix.tile(select, dtype)
        return rows.times(self.unit)

    def centred(self, select: Selection, narrow: bool) -> Array | SparseRows:
        """Return rows (m, d) less the offset, float32 if `narrow`, for scores."""
        xp = self.xp
        dtype = xp.float32 if narrow else xp.float64
        if self.matrix.sparse:  # whose values are rounded as they are read
            return self.tile(select, None if self._single(narrow) else np.float64)
        # One rounding between the row and its score: the subtraction, or the cast where the data
        # is float64. Scaling is exact, and comes first so that nothing overflows.
        x = self.matrix.rows(select, None if self._single(narrow) else xp.float64)
        x = self.scaled(x)
        if isinstance(x, np.ndarray) and self._offset is not None and not isinstance(select, slice):
            x -= self.xp.astype(self._offset, x.dtype, copy=False)  # gathered rows are a copy
        else:
            x = self._less_offset(x)
        return xp.astype(x, dtype, copy=False)

    def centre(self, c: Array) -> Array:
        """Return centroids (k, d) in the frame, `widen`'s result, less the offset, float64."""
        return self._less_offset(c)

    def _less_offset(self, a: Array) -> Array:
        if self._offset is None:
            return a
        return a - self.xp.astype(self._offset, a.dtype, copy=False)
