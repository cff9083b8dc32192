"""Greedy k-means++: the draws, and the picks they make."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from anykmeans._frame import Frame
from anykmeans._grid import Grid
from anykmeans._libraries import Array, to_numpy
from anykmeans._rows import Rows

Draws = np.random.Generator | np.random.RandomState
_BLOCK = 1024  # rows whose cost is kept as one number, a power of two
_PIECES, _LONG = 4, 1 << 18  # long tiles: at most so many a thread, of at least so many numbers


def _probabilities(rows: Rows) -> np.ndarray:
    n = rows.shape[0]
    if rows.weights is None:
        return np.full(n, 1.0) / n
    w = to_numpy(rows.relative_weight(slice(0, n)))
    return np.asarray(w / w.sum())


def plus_plus(rows: Rows, k: int, rng: Draws, trials: int | None = None) -> np.ndarray:
    """Return the row numbers (k,) that greedy k-means++ picks.

    Each pick is the best of `trials` rows, by default ``2 + int(log(k))``, drawn with probability
    proportional to weight times squared distance from the rows picked so far (Arthur and
    Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007).
    """
    return _picked(rows, *_drawn(rows, k, rng, trials))


def _drawn(rows: Rows, k: int, rng: Draws, trials: int | None = None) -> tuple[int, np.ndarray]:
    """Return the first pick, and draws (k - 1, trials) from 0 to 1 for all others: no draw depends on a pick."""
    trials = 2 + int(math.log(k)) if trials is None else trials
    first = _first(rows, rng)
    return first, rng.uniform(size=(k - 1, trials)) if k > 1 else np.empty((0, trials))


def _picked(rows: Rows, first: int, draws: np.ndarray) -> np.ndarray:
    """Return all picks (k,) by draws (k - 1, trials)."""
    picks = np.full(draws.shape[0] + 1, first, dtype=np.int64)
    if picks.size > 1:
        if rows.kernel.seeds is not None:
            w = rows.relative_weight(slice(0, rows.shape[0]))
            found = rows.kernel.seeds(Frame(rows.matrix, rows.largest), rows.work, w, first, draws)
            if found is not None:
                return found
        seeds = _Seeds(rows, first, picks.size, draws.shape[1])
        for i in range(1, picks.size):
            picks[i] = seeds.best(seeds.at(draws[i - 1]))
    return picks


def start_together(sources: list[Rows], k: int, runs: int, rng: Draws) -> list[list[Array]] | None:
    """Return centroids (k, d) by k-means++ for some runs of each source, in launches they share, or None if nothing does.

    They are those of one `start` after the other.
    """
    one = sources[0]
    together = one.kernel.seeds_together
    if together is None or k == 1 or len(sources) * runs == 1:
        return None
    drawn = [_drawn(rows, k, rng) for rows in sources for _ in range(runs)]
    every = [rows for rows in sources for _ in range(runs)]
    # The sources of one run, or runs of one source, as many as the budget has room for: costs, owners, candidates won.
    most = max(1, one.work.max_bytes // (16 * one.shape[0]))
    groups = [slice(run, None, runs) for run in range(runs)]
    if len(sources) == 1:
        groups = [slice(run, run + most) for run in range(0, runs, most)]
    starts: list[Any] = [None] * len(every)
    for group in groups:
        some = every[group]
        frames = [Frame(rows.matrix, rows.largest) for rows in some]
        w = [rows.relative_weight(slice(0, rows.shape[0])) for rows in some]
        first, draws = zip(*drawn[group], strict=True)
        picks: Any = together(
            frames, w if one.weights is not None else None, first, np.stack(draws)
        )
        if picks is None:
            picks = [_picked(*each) for each in zip(some, first, draws, strict=True)]
        found = [rows.rows(rows.matrix.asarray(at)) for rows, at in zip(some, picks, strict=True)]
        starts[group] = found
    return [starts[i : i + runs] for i in range(0, len(starts), runs)]


def _first(rows: Rows, rng: Draws) -> int:
    """Return the row that ``rng.choice(n, p=weights)`` draws."""
    n = rows.shape[0]
    if rows.weights is None:
        # The first row whose cumulative probability exceeds a uniform draw: that is n times the draw
        # but for the rounding of the cumulative sum, at most 2 n + 4 units of 2**-53.
        draw = rng.random()
        if abs(draw * n - round(draw * n)) > n * (n + 4.0) * 2.0**-51:
            return int(draw * n)
        p = _probabilities(rows).cumsum()
        return int((p / p[-1]).searchsorted(draw, side="right"))
    return int(rng.choice(n, p=_probabilities(rows)))


@dataclass
class _Tile:
    """What is known of the rows `at`: arrays (m,) where the work is done."""

    at: slice
    w: Array | None
    closest: Array  # squared distance to the closest pick, float64
    kept: Any = None  # what the kernel's sieve keeps of the rows
    won: Any = None  # which rows which candidates may win; None for all of any


class _Seeds:
    """The picks so far, and each row's squared distance to the closest of them.

    A step's costs are whole numbers on a grid of their own, so sums over blocks of rows are exact,
    and so is what a candidate saves; where a kernel estimates it, it says how well, and candidates that
    this cannot tell apart are compared exactly. A sieve leaves rows unread that candidates cannot win.
    """

    def __init__(self, rows: Rows, first: int, k: int, trials: int) -> None:
        self.rows, self.xp = rows, rows.xp
        xp, matrix, kernel = rows.xp, rows.matrix, rows.kernel
        self._frame = Frame(matrix, rows.largest)
        c = self._frame.wide(matrix.asarray([first]))
        self._sieve = kernel.sieve(self._frame, rows.work, c, k)
        self._exponent, self._scale = 0, 0.0
        self._tiles = []
        for at in self._cut(trials):
            m = at.stop - at.start
            closest = xp.full(m, xp.inf, dtype=xp.float64, device=matrix.device)
            self._tiles.append(_Tile(at, rows.relative_weight(at), closest))
        blocks = [-(-(tile.at.stop - tile.at.start) // _BLOCK) for tile in self._tiles]
        self._blocks = np.cumsum([0, *blocks])  # number of each tile's first block
        self._settle(c, 0)

    def _cut(self, trials: int) -> list[slice]:
        """Return tiles: long ones where nothing of the rows' size is written but what copies the rows take."""
        n, d, work = self.rows.shape[0], self.rows.work.d, self.rows.work
        if not self.rows.kernel.lean:
            return work.tiles(step=work.rows_of(d + 2 * trials))
        pieces = n * (d + trials) // _LONG + 1 if work.threads > 1 else 1
        step = -(-n // min(pieces, _PIECES * work.threads))
        most = n if self._frame.exponent == 0 else max(1, work.room // d)
        return work.tiles(step=min(step, most, work.readable(self.rows.matrix)))

    def _read(self, tile: _Tile) -> Callable[[], Array]:
        """Return what returns rows (m, d) in the frame, in the dtype they come in if it is a float."""
        frame, matrix = self._frame, self.rows.matrix
        if matrix.sparse:
            return functools.partial(frame.tile, tile.at, np.float64 if frame.exponent else None)
        return functools.partial(frame.wide if frame.exponent else matrix.rows, tile.at)

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
            tile, start = self._tiles[number], block * _BLOCK
            rows = slice(start, min(start + _BLOCK, tile.at.stop - tile.at.start))
            w = None if tile.w is None else tile.w[rows]
            row = self.rows.kernel.reached(tile.closest[rows], w, self._scale, total, draw)
            found[tile.at.start + start + row] = None
        return list(found)

    def best(self, candidates: list[int]) -> int:
        """Return the candidate that saves most, the first of equals, and count it as picked."""
        kernel = self.rows.kernel
        wide = self._frame.wide(self.rows.matrix.asarray(candidates))
        against = self._sieve.against(wide)

        def gains(tile: _Tile) -> tuple[Any, float]:
            read, w, scale = self._read(tile), tile.w, self._scale
            saved, doubt, tile.won = kernel.gains(
                self.xp, read, wide, tile.closest, tile.kept, against, w, scale
            )
            return to_numpy(saved), doubt

        parts, doubts = zip(*self.rows.work.map(gains, self._tiles), strict=True)
        saved, doubt = sum(parts), sum(doubts)
        best = int(np.argmax(saved))
        # Estimates are not rounded to whole numbers, and their sums round.
        doubt += self.rows.shape[0] * (1 + 2.0**-51 * float(self._sums.sum()))
        doubtful = np.flatnonzero(saved >= saved[best] - 2 * doubt)
        if doubtful.size > 1:
            places = to_numpy(wide)  # of equal rows, the first
            first = {places[j].tobytes(): j for j in doubtful[::-1].tolist()}
            best = max(sorted(first.values()), key=lambda j: self._saved(wide[j : j + 1, :], j))
        self._settle(wide[best : best + 1, :], best)
        return candidates[best]

    def _saved(self, wide: Array, j: int) -> float:
        """Return the whole number that candidate `j`, at `wide` (1, d), saves."""
        kernel, scale = self.rows.kernel, self._scale

        def saved(tile: _Tile) -> float:
            y, w = self._read(tile)(), tile.w
            return float(kernel.saved(self.xp, y, wide, tile.closest, w, scale, tile.won, j))

        return sum(self.rows.work.map(saved, self._tiles))

    def _settle(self, wide: Array, j: int) -> None:
        """Count the pick at `wide` (1, d), candidate `j`, in."""
        kernel, work, pick = self.rows.kernel, self.rows.work, self._sieve.add(wide)

        def costs(tile: _Tile) -> tuple[Array, float]:
            return kernel.costs(self.xp, tile.closest, tile.w, self._scale, _BLOCK)

        def settle(tile: _Tile) -> tuple[Array, float]:
            y = self._read(tile)()
            if tile.kept is None:
                tile.kept = self._sieve.rows(y)
            tile.closest, tile.kept = kernel.settle(
                self.xp, y, wide, tile.closest, tile.kept, pick, tile.won, j
            )
            return costs(tile)

        sums, largest = zip(*work.map(settle, self._tiles), strict=True)
        high = max(largest)
        exponent = math.frexp(high)[1]
        if not self._scale or exponent != self._exponent:
            grid = Grid.plan(
                np.asarray([high]), self.rows.shape[0], np.zeros(1)
            )  # one fold is used
            self._exponent, self._scale = exponent, float(grid.scale[0])
            sums, _ = zip(*work.map(costs, self._tiles), strict=True)
        self._sums = np.concatenate(sums)
