"""Rows and centroids of length 1, which is all that `metric="cosine"` is: k-means of them is Euclidean from there on.

Of rows and centroids of length 1 the squared distance is ``2 - 2 cos``, so the nearest centroid is the one of the largest
cosine, and where the mean of rows is brought to length 1, no other centroid has a larger sum of cosines with them (Dhillon
and Modha, "Concept decompositions for large sparse text data using clustering", Machine Learning 2001).

A length is the root of the sum of squares in float64, in the order of a distance (R5): the distance from the origin. Where
squares would leave float64, the row is first multiplied by a power of two. What is divided by it is rounded to the dtype of
centroids. What has length 1 already but for such rounding is taken as it is: so nothing changes when done twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from anykmeans import _check as check
from anykmeans._distance import squared_distances
from anykmeans._frame import Frame
from anykmeans._libraries import Array, Namespace, Selection, np_compat, to_numpy
from anykmeans._matrix import Dense, Matrix, Sparse
from anykmeans._sparse import SparseRows
from anykmeans._work import Work

if TYPE_CHECKING:
    from anykmeans.kernels.agnostic import Kernel

# Squared lengths between which no square has left float64 that counts.
LEAST, MOST = 2.0**-600, 2.0**1000
LARGEST = 1000  # exponent of a power of two, so that it is finite
# By how much a squared length may differ from 1 where every number was rounded once to float32, or to float64 after a length
# that rounds as often as a sum of 2**20 squares does.
SINGLE, DOUBLE = 2.0**-22, 2.0**-46
_TILES = 16  # as many tiles of elementwise work at once: there are no temporaries of the rows' size but one


@dataclass(frozen=True, eq=False)
class Lengths:
    """What rows, times `powers` of two (m,), are divided by: `lengths` (m,), both float64. Powers are None if all are 1."""

    lengths: Array
    powers: Array = None

    @classmethod
    def of(
        cls,
        squared: np.ndarray,
        read: Callable[[np.ndarray], Any],
        measure: Callable[[Any], np.ndarray],
        *,
        single: bool,
    ) -> Lengths:
        """Return the lengths, on the host, of rows whose `squared` lengths (m,) may have left float64.

        Such rows are `read` by their numbers, NumPy's or sparse ones, and are to be `measured` again. If `single`, a length of 1 is
        so but for the rounding of float32.
        """
        found, powers = np.sqrt(squared), None
        (odd,) = np.nonzero(~((squared > LEAST) & (squared < MOST)))
        if odd.size:
            x = read(odd)
            high = x.magnitudes() if isinstance(x, SparseRows) else np.abs(x).max(axis=1)
            exponents = np.clip(np.frexp(high)[1], -LARGEST, LARGEST)
            powers = np.ones(squared.size)
            powers[odd] = np.ldexp(1.0, -exponents)
            found[odd] = np.sqrt(measure(cls(np.ones(odd.size), powers[odd]).divide(np_compat, x)))
        found[np.abs(squared - 1.0) <= (SINGLE if single else DOUBLE)] = 1.0
        return cls(found, powers)

    @classmethod
    def joined(cls, parts: list[Lengths]) -> Lengths:
        """Return the lengths of parts of all rows."""
        powers = None
        if any(part.powers is not None for part in parts):
            powers = np.concatenate(
                [np.ones_like(p.lengths) if p.powers is None else p.powers for p in parts]
            )
        return cls(np.concatenate([part.lengths for part in parts]), powers)

    @property
    def ones(self) -> bool:
        """Whether all lengths, on the host, are 1, so that nothing changes."""
        return self.powers is None and bool((self.lengths == 1.0).all())

    def __getitem__(self, select: Selection) -> Lengths:
        """Return those of some rows."""
        return Lengths(*(None if a is None else a[select] for a in (self.lengths, self.powers)))

    def divide(self, xp: Namespace, x: Any, dtype: Any = None) -> Any:
        """Return rows `x` (m, d) at length 1, rounded from float64 to `dtype` (default: not at all)."""
        if isinstance(x, SparseRows):
            return x.divided(self.lengths, self.powers, dtype)
        dtype = xp.float64 if dtype is None else dtype
        if isinstance(x, np.ndarray):
            if self.powers is not None:
                x = x * self.powers[:, None]
            found = np.empty(x.shape, dtype)
            how: Any = {"out": found, "dtype": np.float64, "casting": "same_kind"}
            np.divide(x, self.lengths[:, None], **how)  # by pieces, without a copy in float64
            return found
        x = xp.astype(x, xp.float64, copy=False)
        if self.powers is not None:
            x = x * self.powers[:, None]
        # As in `segment_mean`: XLA multiplies by the reciprocal of what it broadcasts in a division.
        return xp.astype(x / xp.broadcast_to(self.lengths[:, None], x.shape), dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Normalized(Matrix):
    """Dense rows that are read at length 1, a few at a time, and nothing kept of them but their lengths.

    Attributes
    ----------
    given : Matrix
        The rows as they are.
    lengths : Lengths
        Those of all rows, where the work is done.
    """

    source: Array
    given: Matrix
    lengths: Lengths
    xp: Namespace
    device: Any
    dtype: str
    spherical = True

    @classmethod
    def over(cls, x: Matrix, lengths: Lengths) -> Normalized:
        """Return rows `x` that are read at length 1, of lengths on the host."""
        there = (None if a is None else x.asarray(a) for a in (lengths.lengths, lengths.powers))
        dtype = "float32" if x.single else "float64"
        return cls(x.source, x, Lengths(*there), x.xp, x.device, dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.given.shape

    def rows(self, select: Selection, dtype: Any = None) -> Array:
        """Return the selected rows (m, d) in `dtype` (default: `float_dtype`)."""
        xp, lengths = self.xp, self.lengths
        if not isinstance(select, slice) and xp is not np_compat:
            every = lengths.lengths, lengths.powers
            some = Lengths(*(None if a is None else xp.take(a, select) for a in every))
        else:
            some = lengths[select]
        found = some.divide(xp, self.given.rows(select), self.state_dtype)
        return found if dtype is None else xp.astype(found, dtype, copy=False)

    def take(self, at: Array, over: Matrix | None = None) -> Dense:
        """Return the rows numbered `at` (m,) as a matrix of their own, a copy in the dtype of centroids."""
        data = self.rows(at)
        return Dense(data, data, self.xp, self.device, self.dtype, spherical=True)

    def copy(self, work: Work, tiles: list[slice]) -> Dense:
        """Return all rows as a matrix of their own, a copy."""
        xp = self.xp
        data: Array
        if xp is np_compat:
            data = np.empty(self.shape, self.state_dtype)

            def write(tile: slice) -> None:
                data[tile] = self.rows(tile)

            work.map(write, tiles)
        else:
            data = xp.concat(work.map(self.rows, tiles))
        return Dense(self.source, data, xp, self.device, self.dtype, spherical=True)


def normalized(
    matrix: Matrix, kernel: Kernel, work: Work, name: str, *, copy: bool
) -> tuple[Matrix, int]:
    """Return the rows of a `matrix`, which the user calls `name`, at length 1; and how many bytes of the budget that takes.

    They are read so, tile by tile, unless a `copy` is wanted and fits the budget, or they have length 1 already. Of sparse rows the values alone are
    copied, beyond the budget.

    Raises
    ------
    ValueError
        If a row is not finite, or has length 0.
    """
    single = matrix.single
    step = min(_TILES * work.rows_of(work.d), max(1, work.room // work.d))
    tiles = work.tiles(step=step)
    lengths = _measured(matrix, kernel, work, tiles, single=single)
    _check(lengths.lengths, matrix, name)
    same = matrix.dtype == ("float32" if single else "float64")
    if isinstance(matrix, Sparse):
        data = matrix.data
        if not (same and lengths.ones):
            values = np.empty(data.values.shape, matrix.state_dtype)

            def write(tile: slice) -> None:
                some = lengths[tile].divide(np_compat, data[tile], values.dtype).values
                first = data.begins[tile.start]
                values[first : first + some.size] = some

            work.map(write, tiles)
            data = replace(data, values=values)
        return replace(matrix, data=data, dtype=data.dtype.name, spherical=True), 0
    if isinstance(matrix, Dense) and same and lengths.ones:
        return replace(matrix, spherical=True), 0
    found = Normalized.over(matrix, lengths)
    bytes_ = matrix.shape[0] * matrix.shape[1] * (4 if single else 8)
    if not copy or bytes_ > work.copied:
        return found, 0
    return found.copy(work, tiles), bytes_


def _measured(
    matrix: Matrix, kernel: Kernel, work: Work, tiles: list[slice], *, single: bool
) -> Lengths:
    """Return the lengths of all rows, on the host."""
    xp, frame = matrix.xp, Frame(matrix, 1.0)
    on = {"device": matrix.device}
    origin = xp.zeros((1, matrix.shape[1]), dtype=xp.float64, **on)

    def of_tile(tile: slice) -> Lengths:
        labels = xp.zeros(tile.stop - tile.start, dtype=xp.int32, **on)
        with np.errstate(over="ignore"):
            squared = to_numpy(kernel.own_distances(frame, tile, origin, labels))

        def read(at: np.ndarray) -> Any:
            x = matrix.tile(matrix.asarray(at + tile.start), xp.float64)
            return x if matrix.sparse else to_numpy(x)

        return Lengths.of(squared, read, _squares, single=single)

    return Lengths.joined(work.map(of_tile, tiles))


def _squares(x: Any) -> np.ndarray:
    """Return the squared lengths (m,) of NumPy's or sparse rows with all features."""
    with np.errstate(over="ignore"):
        if isinstance(x, SparseRows):
            return x.squared_distances(np.zeros(x.shape[1]))
        return np.asarray(squared_distances(np_compat, x, np.zeros((1, x.shape[1]))))


def _check(lengths: np.ndarray, matrix: Matrix, name: str) -> None:
    """Raise if a row is not finite, or has length 0."""
    bad = np.flatnonzero(~np.isfinite(lengths))
    if bad.size:
        row = to_numpy(matrix.rows(matrix.asarray(bad[:1]), matrix.xp.float64))
        check.finite(np.abs(np.asarray(matrix.spread(row)))[0], name, matrix.dtype)
    check.directed(np.flatnonzero(lengths == 0), name, "row")


# -- centroids, in NumPy ------------------------------------------------------------------------


def at_length_one(c: np.ndarray, name: str, *, single: bool) -> np.ndarray:
    """Return a user's centroids (k, features), called `name`, at length 1: in float32 if they and those of the rows, `single`, are.

    Raises
    ------
    ValueError
        If a centroid has length 0.
    """
    wide, narrow = c.astype(np.float64), c.dtype.kind == "f" and c.dtype.itemsize < 8
    lengths = Lengths.of(_squares(wide), wide.__getitem__, _squares, single=narrow or single)
    check.directed(np.flatnonzero(lengths.lengths == 0), name, "centroid")
    dtype = np.float32 if narrow and single else np.float64
    found: np.ndarray = lengths.divide(np_compat, wide, dtype)
    return found


def directions(kernel: Kernel, matrix: Matrix, means: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return means (k, columns), float64, at length 1, in the dtype of `c` (k, columns): a row of `c` where a mean is zero."""

    def measure(a: np.ndarray) -> np.ndarray:
        origin = np.zeros_like(a)
        if kernel.host:  # of sparse rows' columns, in the order of all features
            return np.asarray(kernel.moves(matrix, a, origin))
        return np.asarray(squared_distances(np_compat, a, origin))

    single = c.dtype == np.float32
    lengths = Lengths.of(measure(means), means.__getitem__, measure, single=single)
    zero = lengths.lengths == 0
    lengths.lengths[zero] = 1.0
    return np.where(zero[:, None], c, lengths.divide(np_compat, means, c.dtype))
