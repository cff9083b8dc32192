"""Greedy k-means++ in the Array API alone: the picks so far, and each row's squared distance to the closest.

A step's costs are whole numbers on a grid of their own, so sums over blocks of rows are exact, and so is what
a candidate saves; an estimate says how good it is, and candidates that it cannot tell apart are compared
exactly. A *sieve* leaves rows unread that candidates cannot win. Here it is the triangle inequality: rows whose pick is
at least twice as far from a candidate as from them are none of its.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anykmeans._bounds import GAP, Bounds
from anykmeans._distance import squared_distances
from anykmeans._frame import Frame
from anykmeans._grid import Grid
from anykmeans._libraries import Array, Namespace, device_of, np_compat, put, to_numpy
from anykmeans._matrix import take_rows
from anykmeans._sparse import SparseRows

if TYPE_CHECKING:
    from anykmeans.sources.rows import Rows

_FAR = 2.0**40  # a squared distance within which of an ordinary row others are ordinary, too
BLOCK = 1024  # rows whose cost is kept as one number, a power of two


@dataclass
class Tile:
    """What is known of the rows `at`: arrays (m,) where the work is done."""

    at: slice
    w: Array | None
    closest: Array  # squared distance to the closest pick, float64
    kept: Any = None  # what the sieve keeps of the rows
    won: Any = None  # which rows which candidates may win; None for all of any


class Outlying(Exception):
    """Rows that were but glanced at are not ordinary numbers after all: they are to be looked at."""


class Seeds:
    """The picks of one run: candidates in, the best of them out.

    Parameters
    ----------
    rows : Rows
        What to pick from.
    first : array of shape (1, d), float64
        The first pick in the frame of the rows.
    k : int
        How many picks there will be.
    trials : int
        Candidates for each.
    """

    def __init__(self, rows: Rows, first: Array, k: int, trials: int) -> None:
        self.rows, self.xp, self.frame = rows, rows.xp, Frame(rows.matrix, rows.largest)
        self._exponent, self.scale = 0, 0.0
        self.prepare(first, k)
        self.tiles = []
        for at in self.cut(trials):
            m = at.stop - at.start
            closest = self.xp.full(m, self.xp.inf, dtype=self.xp.float64, device=rows.matrix.device)
            self.tiles.append(Tile(at, rows.relative_weight(at), closest))
        blocks = [-(-(tile.at.stop - tile.at.start) // BLOCK) for tile in self.tiles]
        self._blocks = np.cumsum([0, *blocks])  # number of each tile's first block
        self.count_in(first, 0)

    # -- what a kernel may do its own way -----------------------------------------------------------

    def prepare(self, first: Array, k: int) -> None:
        """Make room for what the sieve needs of `k` picks, of which the first is at `first` (1, d)."""
        d = int(first.shape[1])
        self._origin = first[0, :]  # a point near the rows, for products
        self._picks, self._norms, self._count = np.zeros((k, d)), np.zeros(k), 0
        self._bounds = Bounds.of(d, 2.0**-53)

    def cut(self, trials: int) -> list[slice]:
        """Return tiles of rows."""
        work = self.rows.work
        return work.tiles(step=work.rows_of(work.d + 2 * trials))

    def begin(self, tile: Tile, c: Array, pick: int) -> None:
        """Keep what the sieve needs of a tile's rows, and count the first pick, at `c` (1, d), in."""
        tile.kept = self.keep(self.read(tile))
        self.shorten(tile, c, pick, 0)

    def keep(self, y: Array) -> Any:
        """Return what is kept of rows `y` (m, d): the number of each row's pick, int32."""
        return self.xp.zeros(y.shape[0], dtype=self.xp.int32, device=device_of(y))

    def admit(self, c: Array) -> int:
        """Tell the sieve of the pick at `c` (1, d), and return its number."""
        number, pick = self._count, to_numpy(c - self._origin)[0]
        self._picks[number], self._norms[number] = pick, pick @ pick
        self._count += 1
        return number

    def against(self, c: Array) -> Any:
        """Return what the sieve knows of candidates `c` (t, d): a reach (picks, t), squared.

        Within it from each pick, rows are not nearer to the candidate.
        """
        b = to_numpy(c - self._origin)
        picks, norms = self._picks[: self._count], self._norms[: self._count, None]
        estimate = picks @ (b * -2.0).T + (b * b).sum(axis=1) + norms
        lower = self._bounds.lower(np_compat, estimate, norms)
        # A quarter, less more than rounding takes. Nothing that may have underflowed is used.
        return self.rows.matrix.asarray(np.where(lower > 2.0**-900, lower / (4 * GAP), 0.0))

    def gains(self, tile: Tile, c: Array, against: Any) -> tuple[Array, float]:
        """Return what each of the candidates `c` (t, d) saves (t,), and by how much that may be off.

        Savings are differences of weighted distances times the scale. Bit ``j % 8`` of ``tile.won`` (m,), uint8, is set for
        all rows nearer to `c[j]`.
        """
        xp, owner, closest, w = self.xp, tile.kept, tile.closest, tile.w
        y, m = self.read(tile), int(closest.shape[0])
        (at,) = xp.nonzero(closest > xp.take(xp.min(against, axis=1), owner))
        some = 2 * at.shape[0] < m  # else the others are no more work than to leave them out
        if some:
            y, closest = xp.take(y, at, axis=0), xp.take(closest, at)
            w = None if w is None else xp.take(w, at)
        z, b = xp.astype(y, xp.float64, copy=False) - self._origin, c - self._origin
        norm = xp.vecdot(z, z)
        estimate = (b * -2.0) @ xp.permute_dims(z, (1, 0)) + xp.vecdot(b, b)[:, None]  # (t, m)
        estimate += norm
        saved, doubt, won = weighed(xp, estimate, norm, closest, self._bounds, w, self.scale)
        if some:
            won = put(xp, xp.zeros_like(owner, dtype=xp.uint8), at, won)
        tile.won = won
        return saved, doubt

    def saved(self, tile: Tile, c: Array, j: int) -> float:
        """Return exactly what candidate `j`, at `c` (1, d), saves."""
        xp, scale = self.xp, self.scale
        (at,) = xp.nonzero(tile.won & (1 << j % 8))
        found = distances_to(xp, self.read(tile), at, c)
        before = xp.take(tile.closest, at)
        w = None if tile.w is None else xp.take(tile.w, at)
        less = whole(xp, before, w, scale) - whole(xp, xp.minimum(found, before), w, scale)
        return float(xp.sum(less))

    def shorten(self, tile: Tile, c: Array, pick: int, j: int) -> None:
        """Count the pick of this number, candidate `j` at `c` (1, d), in what is closest to the rows."""
        xp, owner, won = self.xp, tile.kept, tile.won
        at = xp.nonzero(xp.ones_like(owner) if won is None else won & (1 << j % 8))[0]
        found = distances_to(xp, self.read(tile), at, c)
        before, old = xp.take(tile.closest, at), xp.take(owner, at)
        owner = put(xp, owner, at, xp.where(found < before, xp.full_like(old, pick), old))
        tile.closest, tile.kept = put(xp, tile.closest, at, xp.minimum(found, before)), owner

    def costs(self, tile: Tile) -> tuple[np.ndarray, float]:
        """Return the whole-number costs of each block of rows, and the largest cost of a row."""
        xp, closest = self.xp, tile.closest
        cost = closest if tile.w is None else tile.w * closest
        counts, m = xp.round(cost * self.scale), int(closest.shape[0])
        full = m // BLOCK
        sums = np.empty(-(-m // BLOCK))
        if full:
            parts = xp.reshape(counts[: full * BLOCK], (full, BLOCK))
            sums[:full] = to_numpy(xp.sum(parts, axis=1))
        if full * BLOCK < m:
            sums[full] = float(xp.sum(counts[full * BLOCK :]))
        return sums, float(xp.max(cost))

    def reached(self, tile: Tile, rows: slice, total: float, draw: float) -> int:
        """Return the first of the `rows` up to which costs add up to the `draw`, if up to the last they do to the `total`."""
        cost = to_numpy(tile.closest[rows])  # few enough for the host
        if tile.w is not None:
            cost = to_numpy(tile.w[rows]) * cost
        so_far = np.rint(cost * self.scale).cumsum()
        return int((so_far + (total - so_far[-1])).searchsorted(draw))

    # -- what is the same for all -------------------------------------------------------------------

    def read(self, tile: Tile) -> Array:
        """Return the tile's rows (m, d) in the frame, in the dtype they come in if it is a float."""
        frame, matrix = self.frame, self.rows.matrix
        if matrix.sparse:
            return frame.tile(tile.at, np.float64 if frame.exponent else None)
        return (frame.wide if frame.exponent else matrix.rows)(tile.at)

    def picked(self, draws: np.ndarray, *, last: bool) -> int:
        """Return the row picked by `draws` (t,), from 0 to 1, and count it in, unless no pick follows the `last`."""
        candidates = self.at(draws)
        wide = self.frame.wide(self.rows.matrix.asarray(candidates))
        best = self.best(wide)
        if not last:
            self.count_in(wide[best : best + 1, :], best)
        return candidates[best]

    def at(self, draws: np.ndarray) -> list[int]:
        """Return the rows at `draws` (t,), from 0 to 1, of the cumulative cost, no row twice."""
        cumulative = self._sums.cumsum()  # whole numbers: exact in any order
        draws = draws * cumulative[-1]
        blocks = cumulative.searchsorted(draws)
        numbers = self._blocks.searchsorted(blocks, side="right") - 1
        totals = cumulative[blocks]
        blocks -= self._blocks[numbers]
        found: dict[int, None] = {}
        lists = (a.tolist() for a in (draws, totals, blocks, numbers))
        for draw, total, block, number in zip(*lists, strict=True):
            tile, start = self.tiles[number], block * BLOCK
            rows = slice(start, min(start + BLOCK, tile.at.stop - tile.at.start))
            found[tile.at.start + start + self.reached(tile, rows, total, draw)] = None
        return list(found)

    def best(self, wide: Array) -> int:
        """Return which of the candidates at `wide` (t, d) saves most, the first of equals."""
        against, work = self.against(wide), self.rows.work

        def gains(tile: Tile) -> tuple[Any, float]:
            saved, doubt = self.gains(tile, wide, against)
            return to_numpy(saved), doubt

        parts, doubts = zip(*work.map(gains, self.tiles), strict=True)
        saved, doubt = sum(parts), sum(doubts)
        best = int(np.argmax(saved))
        # Estimates are not rounded to whole numbers, and their sums round.
        doubt += self.rows.shape[0] * (1 + 2.0**-51 * float(self._sums.sum()))
        doubtful = np.flatnonzero(saved >= saved[best] - 2 * doubt)
        if doubtful.size > 1:
            places = to_numpy(wide)  # of equal rows, the first
            first = {places[j].tobytes(): j for j in doubtful[::-1].tolist()}
            exact = {
                j: sum(work.map(functools.partial(self._saved, wide[j : j + 1, :], j), self.tiles))
                for j in sorted(first.values())
            }
            best = max(exact, key=exact.__getitem__)
        return best

    def _saved(self, c: Array, j: int, tile: Tile) -> float:
        return self.saved(tile, c, j)

    def count_in(self, c: Array, j: int) -> None:
        """Count the pick at `c` (1, d), candidate `j`, in."""
        work, pick = self.rows.work, self.admit(c)

        def shortened(tile: Tile) -> tuple[np.ndarray, float]:
            if tile.kept is None:
                self.begin(tile, c, pick)
            else:
                self.shorten(tile, c, pick, j)
            return self.costs(tile)

        sums, largest = zip(*work.map(shortened, self.tiles), strict=True)
        high = max(largest)
        if self.rows.glanced and not high < _FAR:
            raise Outlying
        exponent = math.frexp(high)[1]
        if not self.scale or exponent != self._exponent:
            grid = Grid.plan(
                np.asarray([high]), self.rows.shape[0], np.zeros(1)
            )  # one fold is used
            self._exponent, self.scale = exponent, float(grid.scale[0])
            sums, _ = zip(*work.map(self.costs, self.tiles), strict=True)
        self._sums = np.concatenate(sums)


def weighed(
    xp: Namespace,
    estimate: Array,
    norm: Array,
    closest: Array,
    bounds: Bounds,
    w: Array | None,
    scale: float,
) -> tuple[Array, float, Array]:
    """Return what candidates save, its doubt and what they win, by estimates (t, m) that err by `bounds` at most."""
    m, t = int(closest.shape[0]), int(estimate.shape[0])
    # Solved for the estimate, with 1 / (1 - beta) <= 1 + 2 beta: the distance may be below `closest`.
    nearer = estimate < (closest + norm * bounds.beta + bounds.eta) * (1 + 2 * bounds.beta)
    less = xp.minimum(xp.maximum(closest - estimate, xp.zeros_like(closest)), closest)
    weights = xp.ones_like(norm) if w is None else w
    # An estimate errs by `beta` times these and by underflow; relative weights are below 2**21.
    doubt = 1.1 * bounds.beta * float(xp.vecdot(closest + norm, weights)) + m * 2.0**21 * bounds.eta
    bits = xp.asarray([[1 << j] for j in range(8)], dtype=xp.uint8, device=device_of(closest))
    won = xp.zeros_like(closest, dtype=xp.uint8)
    for j in range(0, t, 8):
        eight = nearer[j : min(j + 8, t), :]
        flags = xp.astype(eight, xp.uint8) * bits[: eight.shape[0], :]
        won |= xp.sum(flags, axis=0, dtype=xp.uint8)
    return (less @ weights) * scale, doubt * scale, won


def distances_to(xp: Namespace, y: Array | SparseRows, at: Array, c: Array) -> Array:
    """Return the squared distances (m,), by R5, of the rows ``y[at]`` to one centroid `c` (1, d), float64."""
    y = take_rows(xp, y, at) if at.shape[0] < y.shape[0] else y
    if isinstance(y, SparseRows):
        return y.squared_distances(c[0])
    return squared_distances(xp, xp.astype(y, xp.float64, copy=False), c)


def whole(xp: Namespace, distances: Array, w: Array | None, scale: float) -> Array:
    """Return costs, `w` (m,) times squared distances (..., m), as whole numbers of a grid."""
    return xp.round((distances if w is None else w * distances) * scale)
