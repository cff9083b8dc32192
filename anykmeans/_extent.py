"""Extent: what one look at rows tells of their sums. Extents of parts merge, and give the grid of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anykmeans._grid import DOUBLE, Grid
from anykmeans._libraries import np_compat, stacked

_LEAST = 2.0**-1074  # the smallest float


@dataclass(frozen=True, eq=False)
class Extent:
    """How many rows there are, and by feature how large and how fine their numbers.

    Attributes
    ----------
    n : int
        Number of rows.
    high : ndarray of shape (d,), float64
        Largest magnitude of rows.
    largest, smallest : ndarray of shape (d,), or (d + 1,) with the weights' own column, float64
        Largest and smallest nonzero magnitude of summands: rows, or rows times weights.
    precision : tuple of int
        Bits of a number of the rows, and the exponent of the last that any has.
    integral : bool
        Whether all numbers are whole.
    digits : float or None
        Bits that hold a weight; None without weights.
    heaviest : int
        Weights are relative: multiplied by ``2**-heaviest``.
    """

    n: int
    high: np.ndarray
    largest: np.ndarray
    smallest: np.ndarray
    precision: tuple[int, int]
    integral: bool = False
    digits: float | None = None
    heaviest: int = 0

    def __or__(self, other: Extent) -> Extent:
        """Return the extent of both parts' rows.

        Raises
        ------
        ValueError
            If one part has weights and the other has none.
        """
        if (self.digits is None) != (other.digits is None):
            raise ValueError(
                "Extents merge if both parts have weights, or neither; got one of each. Give the other weights of 1."
            )
        heaviest = max(self.heaviest, other.heaviest)
        a, b = self._relative_to(heaviest), other._relative_to(heaviest)
        return Extent(
            a.n + b.n,
            np.maximum(a.high, b.high),
            np.maximum(a.largest, b.largest),
            np.minimum(a.smallest, b.smallest),
            (max(a.precision[0], b.precision[0]), min(a.precision[1], b.precision[1])),
            a.integral and b.integral,
            None if a.digits is None or b.digits is None else max(a.digits, b.digits),
            heaviest,
        )

    def _relative_to(self, heaviest: int) -> Extent:
        less = self.heaviest - heaviest
        if not less:
            return self
        largest, smallest = np.ldexp(self.largest, less), np.ldexp(self.smallest, less)
        smallest = np.maximum(smallest, _LEAST)  # as zero would stand for none at all
        return replace(self, largest=largest, smallest=smallest, heaviest=heaviest)

    def weighted(self) -> Extent:
        """Return the extent of the same rows with weights, of 1 if they have none."""
        if self.digits is not None:
            return self
        largest, smallest = np.append(self.largest, 1.0), np.append(self.smallest, 1.0)
        return replace(self, largest=largest, smallest=smallest, digits=1.0)

    def among(self, columns: np.ndarray) -> Extent:
        """Return what is told of some features, which are numbered by `columns` (m,)."""
        high, columns = self.high[columns], self._with_weights(columns, self.high.size)
        return replace(
            self, high=high, largest=self.largest[columns], smallest=self.smallest[columns]
        )

    def spread(self, columns: np.ndarray, d: int) -> Extent:
        """Return the extent over `d` features, of which these are the `columns` (m,) and all others are zero."""
        high, at = np.zeros(d), self._with_weights(columns, d)
        high[columns] = self.high
        width = d if self.digits is None else d + 1
        largest, smallest = np.zeros(width), np.full(width, np.inf)
        largest[at], smallest[at] = self.largest, self.smallest
        return replace(self, high=high, largest=largest, smallest=smallest)

    def _with_weights(self, columns: np.ndarray, d: int) -> np.ndarray:
        return columns if self.digits is None else np.append(columns, d)

    def fits(self, grid: Grid, room: int) -> bool:
        """Return whether a `grid` of other rows, weighted or not as these are, will do with so much `room` for as many at once."""
        bits, smallest = float(self.precision[0]), self.smallest
        if self.digits is not None:
            bits = min(bits + self.digits, 2 * DOUBLE[0]) + 1  # as in `Grid.of`
        elif self.integral:  # the last bit of each is 1 at least
            smallest = np.maximum(smallest, 2.0 ** (bits - 1))
        return grid.holds(self.high, self.largest, smallest, bits, room)

    def grid(self, at_once: int | None = None, room: int | None = None) -> Grid:
        """Return the grid on which all sums of these rows are exact.

        Sums that are carried after every `at_once` rows may go on until a cluster weighs ``2**room``, relatively.
        """
        return grids([self], at_once, room)[0]


def grids(
    extents: Sequence[Extent], at_once: int | None = None, room: int | None = None
) -> list[Grid]:
    """Return the grid of each of several extents of one shape and dtype, see `Extent.grid`.

    They have as many folds as one needs, which does not show.
    """
    one = extents[0]
    n = one.n if at_once is None else at_once
    high, largest, smallest = (
        stacked(np_compat, [getattr(each, name) for each in extents])
        for name in ("high", "largest", "smallest")
    )
    unit = np.ones((len(extents), 1))
    if one.digits is not None:
        digits = np.asarray([[each.digits] for each in extents])
        high = np.concatenate([high, unit], axis=1)
        grid = Grid.of(high, largest, smallest, n, one.precision, digits, room)
    else:
        last = unit * 2.0 ** (
            one.precision[0] - 1
        )  # its last bit is 1, as of whole numbers at least
        if all(each.integral for each in extents):
            smallest = np.maximum(smallest, last)
        largest = np.concatenate([largest, unit], axis=1)
        smallest = np.concatenate([smallest, last], axis=1)
        grid = Grid.of(largest, largest, smallest, n, one.precision, room=room)
    return [Grid(scale, grid.step, grid.folds) for scale in grid.scale]
