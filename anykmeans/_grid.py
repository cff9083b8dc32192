"""Exact sums (R3): summands split on power-of-two grids, whose parts add without rounding, in any order.

Pre-rounding as in Demmel and Nguyen, "Fast reproducible floating-point summation", ARITH 2013. The proof is in ``docs/proofs.md``.
"""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass

import numpy as np

from anykmeans._libraries import Array, Namespace, to_numpy

FOLDS = 8  # grids a summand may be split on; at n = 10^6 they hold 263 bits below the maximum
DOUBLE = (
    53,
    -1074,
)  # bits of a float64, and the exponent of the last that any has: see `Matrix.precision`
_HALVING = 2.0**27 + 1  # a float64 times this, less what it adds, is the upper half of its bits
_ROOM = 52  # a float64 holds every whole number of this many bits, and one bit more for a sum


@dataclass(frozen=True)
class Grid:
    """Where the columns of a sum are rounded: multiples of ``1 / scale``, then finer by ``step``.

    Attributes
    ----------
    scale : ndarray of shape (columns,), float64
        Powers of two; a summand times its scale is below ``2**(52 - log2(n))``.
    step : float
        How much finer each further grid is, ``2**(53 - log2(n))``.
    folds : int
        Number of grids in use; fewer than `FOLDS` only where they hold every summand exactly, so
        that it never changes a sum.
    """

    scale: np.ndarray
    step: float
    folds: int

    @classmethod
    def plan(
        cls,
        largest: np.ndarray,
        n: int,
        lowest_bit: np.ndarray,
        high: np.ndarray | None = None,
        bound: np.ndarray | None = None,
    ) -> Grid:
        """Return the grid for sums of `n` summands of magnitude at most `largest` (columns,).

        `lowest_bit` (columns,) holds exponents e such that every summand is a multiple of ``2**e``. Where a summand is
        a weight times a value of at most `high` (columns,), the product and what its rounding took are two of `n`.
        Sums that are `carried` after every `n` summands may reach ``2**bound`` (columns,).
        """
        bits = max(
            n - 1, 1
        ).bit_length()  # so that a summand has 51 at most, as kernels that round by 1.5 * 2^52 need
        coarse = np.minimum(_ROOM - bits - np.frexp(largest)[1], 1023)
        if bound is not None:  # that of the coarsest grid alone, as the finer ones are carried
            coarse = np.minimum(coarse, _ROOM - bound)
        if (
            high is not None
        ):  # scaled values are split into halves: neither they nor these may overflow
            coarse = np.minimum(coarse, 960 - np.frexp(high)[1])
        missing = float(np.max(-lowest_bit - coarse, initial=0))
        folds = min(FOLDS, 1 + math.ceil(missing / (_ROOM + 1 - bits)))
        return cls(np.ldexp(1.0, coarse), 2.0 ** (_ROOM + 1 - bits), folds)

    @classmethod
    def of(
        cls,
        high: np.ndarray,
        largest: np.ndarray,
        smallest: np.ndarray,
        n: int,
        precision: tuple[int, int],
        weight_digits: int | np.ndarray | None = None,
        room: int | None = None,
    ) -> Grid:
        """Return the grid for sums over `n` rows of values of at most `high` (columns,) and a dtype's `precision`.

        The summands, or what weights of `weight_digits` bits make of them, are from `smallest`, the least that is
        not zero, or infinite if all are, to `largest` (columns,). Sums that are `carried` after every `n` rows have
        `room` for weights of ``2**room``.
        """
        bound = None if room is None else np.frexp(high)[1] + room
        empty = ~np.isfinite(smallest)
        first = np.frexp(np.where(empty, 1.0, smallest))[1]
        digits, last = precision
        if weight_digits is None:
            lowest = np.maximum(first - float(digits), last)
            return cls.plan(largest, n, np.where(empty, 0.0, lowest), bound=bound)
        # A product may be rounded up to the next power of two.
        lowest = first - 1.0 - np.minimum(digits + weight_digits, 2 * DOUBLE[0])
        return cls.plan(largest, 2 * n, np.where(empty, 0.0, lowest), high, bound)

    def holds(
        self, high: np.ndarray, largest: np.ndarray, smallest: np.ndarray, bits: float, room: int
    ) -> bool:
        """Return whether sums over other rows are exact here, too, if as many are added at once.

        Their values are at most `high` (d,), the summands from `smallest`, of so many significant `bits`, to `largest`
        (d,), or (d + 1,) with the weights' own column, and there is to be `room` for weights of ``2**room``.
        """
        scale, most = self.scale[: largest.size], 2.0 ** min(_ROOM - room, 960)
        if (largest * scale).max() * 2 >= self.step or self.scale[-1] >= most:
            return False
        if (high * scale[: high.size]).max() >= most:
            return False
        finest = 2.0 ** (bits - 1) * self.step ** (1 - self.folds)
        return self.folds == FOLDS or bool((smallest * scale).min() >= finest)

    @classmethod
    @functools.lru_cache(maxsize=64)  # as batches are alike
    def of_costs(cls, most: float, n: int, weighted: bool) -> Grid:
        """Return the grid for the sum of `n` costs of at most `most` each, known before any of them is.

        Weighted ones are two summands each. There are folds down to the last bit of any float64, as distances may be far
        below the most that they can be; who adds up goes no further than he has to.
        """
        bits = max((2 * n if weighted else n) - 1, 1).bit_length()
        coarse = min(_ROOM - bits - math.frexp(most)[1], 1023)
        folds = 1 + math.ceil((_ROOM - DOUBLE[1] * (2 if weighted else 1)) / (_ROOM + 1 - bits))
        return cls(np.asarray([math.ldexp(1.0, coarse)]), 2.0 ** (_ROOM + 1 - bits), folds)

    def down_to(self, smallest: float, digits: int) -> Grid:
        """Return as many folds of this grid of one column as hold numbers of `digits` bits, the least of them the `smallest`."""
        if not math.isfinite(smallest):  # all are zero
            return Grid(self.scale, self.step, 1)
        missing = digits - math.frexp(smallest)[1] - math.frexp(float(self.scale[0]))[1] + 2
        folds = 1 + math.ceil(max(missing, 0) / (math.frexp(self.step)[1] - 1))
        return Grid(self.scale, self.step, min(self.folds, folds))

    def split(self, xp: Namespace, values: Array, scale: Array, w: Array | None = None) -> Array:
        """Return `values` (m, columns), times `w` (m,), as whole numbers (m, folds * columns), coarsest grid first.

        `scale` is ``self.scale`` where the values live.
        """
        rest = values * scale
        chains = [rest] if w is None else list(two_product(rest, w[:, None]))
        parts = [functools.reduce(operator.add, map(xp.round, chains))]
        for _ in range(1, self.folds):
            chains = [(rest - xp.round(rest)) * self.step for rest in chains]
            parts.append(functools.reduce(operator.add, map(xp.round, chains)))
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)

    def total(self, xp: Namespace, sums: Array, scale: Array) -> Array:
        """Return the sums (k, columns), float64, that whole-number `sums` (k, folds * columns) mean.

        Correctly rounded, so that sums which are equal give equal floats, whatever their grid.
        """
        parts = self._carried(xp, sums)
        # From the coarsest down: one addition rounds, what it loses is `low`; only where that is half a unit does the
        # sign of the first that follows decide (as in Python's `math.fsum`).
        found, low, after = parts[0], xp.zeros_like(parts[0]), xp.zeros_like(parts[0])
        unit = 1.0
        for i in range(1, self.folds):
            unit /= self.step
            finer = parts[i] * unit
            exact = low == 0
            further = found + finer
            after = xp.where(exact | (after != 0), after, finer)
            low = xp.where(exact, finer - (further - found), low)
            found = xp.where(exact, further, found)
        beyond = found + 2 * low
        tie = (low * after > 0) & (beyond - found == 2 * low)
        return (
            xp.where(tie, beyond, found) + 0.0
        ) / scale  # never -0.0, which some ways of adding give

    def carried(self, xp: Namespace, sums: Array) -> Array:
        """Return whole-number `sums` (k, folds * columns) that mean the same, and have room for as many summands again.

        Of a finer grid no more is left than of one summand; only the coarsest grows.
        """
        return sums if self.folds == 1 else xp.concat(self._carried(xp, sums), axis=-1)

    def _carried(self, xp: Namespace, sums: Array) -> list[Array]:
        """Return the sums (k, columns) of each grid, after what overflowed a finer one is carried up.

        What is left of it is at most half a step of the grid before.
        """
        columns = int(self.scale.shape[0])
        parts = [sums[:, i * columns : (i + 1) * columns] for i in range(self.folds)]
        for i in range(self.folds - 1, 0, -1):
            carry = xp.round(parts[i] / self.step)
            parts[i] = parts[i] - carry * self.step
            parts[i - 1] = parts[i - 1] + carry
        return parts

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Grid)
            and (self.step, self.folds) == (other.step, other.folds)
            and np.array_equal(self.scale, other.scale)
        )


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded product of two float64 arrays, and exactly what the rounding took.

    By halves of the factors, whose products are exact (Dekker, "A floating-point technique for extending the
    available precision", Numerische Mathematik 1971); no library has to have a fused multiplication and addition.
    """
    product = a * b
    (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _halves(a: Array) -> tuple[Array, Array]:
    """Return what float64 `a` is the sum of: two numbers of at most 26 bits."""
    scaled = a * _HALVING
    high = scaled - (scaled - a)
    return high, a - high


def significant_bits(xp: Namespace, w: Array, most: int) -> np.ndarray:
    """Return numbers (b,) of bits that hold the weights `w` (b, n), float64, of each problem: at `most` those of their dtype."""
    whole = xp.astype(xp.all(xp.round(w) == w, axis=1), xp.float64)
    whole, largest = to_numpy(xp.stack([whole, xp.max(w, axis=1)]))
    return np.where(whole > 0, np.minimum(np.frexp(largest)[1], most), most)


def exact_sum(xp: Namespace, values: Array, w: Array | None, grid: Grid) -> np.ndarray:
    """Return the sum of `values` (m,), float64, times their weights, as whole numbers (folds,) of a `grid` of one column."""
    costs = values if w is None else w * values
    smallest = float(xp.min(xp.where(costs > 0, costs, xp.full_like(costs, xp.inf))))
    grid = grid.down_to(smallest, DOUBLE[0] if w is None else 2 * DOUBLE[0])
    found: np.ndarray = to_numpy(
        xp.sum(grid.split(xp, values[:, None], float(grid.scale[0]), w), axis=0)
    )
    return found
