"""Extent: what one look at rows tells of their sums. Extents of parts merge, and give the grid of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from anykmeans._grid import Grid
from anykmeans._libraries import np_compat, stacked


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
        return replace(self, largest=largest, smallest=smallest, heaviest=heaviest)

    def grid(self) -> Grid:
        """Return the grid on which all sums of these rows are exact."""
        return grids([self])[0]


def grids(extents: Sequence[Extent]) -> list[Grid]:
    """Return the grid of each of several extents of one shape and dtype.

    They have as many folds as one needs, which does not show.
    """
    one = extents[0]
    high, largest, smallest = (
        stacked(np_compat, [getattr(each, name) for each in extents])
        for name in ("high", "largest", "smallest")
    )
    unit = np.ones((len(extents), 1))
    if one.digits is not None:
        digits = np.asarray([[each.digits] for each in extents])
        high = np.concatenate([high, unit], axis=1)
        grid = Grid.of(high, largest, smallest, one.n, one.precision, digits)
    else:
        last = unit * 2.0 ** (
            one.precision[0] - 1
        )  # its last bit is 1, as of whole numbers at least
        if all(each.integral for each in extents):
            smallest = np.maximum(smallest, last)
        largest = np.concatenate([largest, unit], axis=1)
        smallest = np.concatenate([smallest, last], axis=1)
        grid = Grid.of(largest, largest, smallest, one.n, one.precision)
    return [Grid(scale, grid.step, grid.folds) for scale in grid.scale]
