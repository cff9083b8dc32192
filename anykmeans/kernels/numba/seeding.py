# mypy: allow-untyped-defs, allow-untyped-calls
"""Compiled steps of k-means++: every trial of a step in one pass over the rows.

A sieve (`sieves.py`) leaves few pairs of a row and a candidate, which are measured in float64; of all features in float32, `few`
estimates what candidates save without. Both tell candidates apart to within a bound on the error. Distances that are kept are
`anykmeans._distance`'s bit for bit: no fused or reordered additions.
"""

from __future__ import annotations

import numpy as np

from anykmeans._settings import current
from anykmeans.kernels.numba import simd, weights
from anykmeans.kernels.numba.distance import squared_distance
from anykmeans.kernels.numba.room import empty, zeros
from anykmeans.kernels.numba.sieves import WIDER, choose
from anykmeans.kernels.numba.simd import (
    LANES,
    SIDE,
    how_many,
    lowest,
    prefetch,
    saving,
)
from anykmeans.kernels.numba.steps import (
    ZERO,
    any_order,
    inline,
    jit,
    quarter,
    side_by_side,
)
from anykmeans.kernels.seeding import BLOCK, Seeds, Tile

_COLUMNS = 8  # features up to which a block of rows is measured side by side
_PIECES = 4  # tiles a thread at most
# Products of a tile for each number of `Settings.piece`, of fewer of which a pick is over before a thread has begun; and as many as take as
# long as a row takes besides.
_PRODUCTS, _ROW = 64, 150
_NEAR = 1 << 17  # numbers of rows that are in the cache from one step to the next


class CompiledSeeds(Seeds):
    """A sieve leaves few pairs of a row and a candidate, and these are measured."""

    def prepare(self, first: np.ndarray, k: int) -> None:
        """Choose what is kept of rows."""
        frame, work, matrix = self.frame, self.rows.work, self.rows.matrix
        (n, d), self._sieve = self.rows.shape, choose(frame, work, k)
        # Rows that are not read as they are stay as they were read, if there is room.
        size = 8 if frame.exponent else np.dtype(matrix.float_dtype).itemsize
        room = 2 * n * d * (4 + size) <= work.max_bytes
        self._stays = room and (frame.exponent != 0 or not matrix.direct)

    def cut(self, trials: int) -> list[slice]:
        """Return tiles: long ones, as nothing of the rows' size is written but what copies the rows take."""
        (n, d), work = self.rows.shape, self.rows.work
        products = n * (self._sieve.share * d * trials + _ROW)
        pieces = int(products) // (_PRODUCTS * current().piece) + 1 if work.threads > 1 else 1
        step = -(-n // min(pieces, _PIECES * work.threads))
        most = n if self.frame.exponent == 0 else max(1, work.room // d)
        return work.tiles(step=min(step, most, work.readable(self.rows.matrix)))

    def begin(self, tile: Tile, c: np.ndarray, pick: int) -> None:
        """Keep what there is to know of a tile's rows, and count the first pick, at `c` (1, d), in, while they are in the cache."""
        y = np.ascontiguousarray(self.read(tile))
        (m, d), none = y.shape, np.empty((0, 0), np.int64)
        blocks, step = -(-m // SIDE), max(1, _NEAR // (SIDE * d))
        kept, wider = self._sieve.room(blocks), self._sieve.wider
        tile.kept = kept, y if self._stays else None
        for first in range(0, blocks, step):
            part = slice(first * SIDE, (first + step) * SIDE)
            some = kept.part(slice(first, first + step))
            self._sieve.keep(y[part], some)
            shorten(y[part], c, tile.closest[part], some.edge, some.spare, wider, none, 0)

    def admit(self, c: np.ndarray) -> int:
        """Return 0: rows keep what there is to know of a pick, all are alike."""
        return 0

    def against(self, c: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return what the sieve takes candidates `c` (t, d) as."""
        return self._sieve.against(c)

    def gains(
        self, tile: Tile, c: np.ndarray, against: tuple[np.ndarray, ...]
    ) -> tuple[np.ndarray, float]:
        """Return what each of t candidates saves (t,), and by how much that may be off; bits of what it may win are (blocks, t)."""
        kept, w = tile.kept[0], weights(tile.w)
        saved, tile.won = np.zeros(c.shape[0]), np.empty((kept.edge.shape[0], c.shape[0]), np.int64)
        if self._sieve.estimates:
            doubt = few(*kept.rows, kept.edge, kept.spare, *against, w, saved, tile.won)
        else:
            self._sieve.nearer(kept, against, tile.won)
            doubt = measured(self._rows(tile), c, tile.closest, w, saved, tile.won)
        return saved * self.scale, doubt * self.scale

    def saved(self, tile: Tile, c: np.ndarray, j: int) -> float:
        """Return exactly what candidate `j`, at `c` (1, d), saves."""
        return float(
            exact(self._rows(tile), c, tile.closest, weights(tile.w), self.scale, tile.won, j)
        )

    def shorten(self, tile: Tile, c: np.ndarray, pick: int, j: int) -> None:
        """Count candidate `j`, at `c` (1, d), in what is closest to the rows, and in their edges."""
        won = np.empty((0, 0), np.int64) if tile.won is None else tile.won
        _, edge, spare = tile.kept[0]
        shorten(self._rows(tile), c, tile.closest, edge, spare, self._sieve.wider, won, j)

    def _rows(self, tile: Tile) -> np.ndarray:
        """Return the tile's rows (m, d) in the frame, C-contiguous."""
        stays: np.ndarray | None = tile.kept[1]
        return np.ascontiguousarray(self.read(tile)) if stays is None else stays

    def costs(self, tile: Tile) -> tuple[np.ndarray, float]:
        """Return the whole-number costs of blocks of rows, and the largest cost of a row."""
        found = np.empty(-(-tile.closest.shape[0] // BLOCK))
        return found, costs(tile.closest, weights(tile.w), self.scale, BLOCK, found)

    def reached(self, tile: Tile, rows: slice, total: float, draw: float) -> int:
        """Return the first of the `rows` up to which costs add up to the `draw`, if up to the last they do to the `total`."""
        w = weights(None if tile.w is None else tile.w[rows])
        return int(reached(tile.closest[rows], w, self.scale, total, draw))


@inline
def _edge(before, spare, wider):
    return np.float32(before * wider + spare if before > 0.0 else 0.0)


@inline
def _ask(y, closest, row):
    """Ask for the beginning of a row, and for what is closest to it."""
    d, line = y.shape[1], 64 // y.itemsize
    prefetch(closest, row)
    for f in range(0, d if d < 8 * line else 8 * line, line):
        prefetch(y, row * d + f)


@any_order
def measure(y, row, c, j):
    """Return the squared distance, added in any order."""
    total = 0.0
    for f in range(y.shape[1]):
        step = y[row, f] - c[j, f]
        total += step * step
    return total


@any_order
def _total(a, count):
    total = 0.0
    for i in range(count):
        total += a[i]
    return total


@any_order
def _added(weight, edge, block):
    """Return the sums of products of `weight` (SIDE,) and ``edge[block]``, and of either."""
    cost, heavy, edges = weight[0] * edge[block, 0], weight[0], edge[block, 0]
    for i in range(1, SIDE):
        cost += weight[i] * edge[block, i]
        heavy += weight[i]
        edges += edge[block, i]
    return cost, heavy, edges


@jit
def few(z, edge, spare, near, start, w, saved, won):
    """Add what each of t candidates at `near` (t, d) saves to `saved` (t,); return how far off that may be.

    The bits of ``won[:, j]`` (blocks,) are the rows that candidate j may be nearer to.
    """
    (t, d), weight = near.shape, empty(SIDE, np.float32)
    for i in range(SIDE):
        weight[i] = w[0]
    less, farthest = zeros((t, LANES), np.float64), 0.0
    for j in range(t):
        farthest = -start[j] if -start[j] > farthest else farthest
    costs, slack, faint = 0.0, 0.0, 0.0
    for block in range(z.shape[0]):
        if w.shape[0] > 1:
            first = block * SIDE
            for i in range(SIDE):
                weight[i] = w[first + i] if first + i < w.shape[0] else 0.0
        for j in range(t):
            won[block, j] = saving(
                z, block, near, j, start, edge, WIDER, spare[block], weight, less
            )
        cost, heavy, edges = _added(weight, edge, block)
        costs += cost
        slack += heavy * (spare[block] + farthest)
        faint += edges if w.shape[0] > 1 else 0.0
    for j in range(t):
        for i in range(LANES):
            saved[j] += less[j, i]
    # A squared distance of up to B errs by `2 sqrt(B) e + e^2 <= 2^-20 B + (2^20 + 1) e^2`, and a sum in float32 by its
    # roundings; a weight by 2^-24 of itself, or 2^-149.
    roundings = min(d, simd.BLOCK) + d // simd.BLOCK + 16
    return costs * (2.0**-19 + roundings * 2.0**-23) + slack * 2.0**10 + faint * 2.0**-140


@jit
def measured(y, c, closest, w, saved, won):
    """Add what each of the candidates `c` (t, d) saves to `saved` (t,); return how far off that may be.

    The bits of ``won[:, j]`` (blocks,) are the rows that candidate j may be nearer to: of those that it is not, they are taken.
    """
    # A sum of d squares in any order errs by less than half of this, and so does the exact one.
    error, tiny, doubt = (y.shape[1] + 8) * 2.0**-51, 2.0**-1000, 0.0
    for block in range(won.shape[0]):
        some = ZERO
        for j in range(won.shape[1]):
            some |= won[block, j]
        while some:
            i = lowest(some)
            some &= some - 1
            row, bit = block * SIDE + i, np.int64(1) << i
            before = closest[row]
            limit, weight = before + before * error + tiny, w[row] if w.shape[0] > 1 else w[0]
            for j in range(c.shape[0]):
                if won[block, j] & bit:
                    total = measure(y, row, c, j)
                    if total <= limit:
                        saved[j] += weight * (before - total) if before > total else 0.0
                        doubt += weight * before * error + tiny
                    else:
                        won[block, j] ^= bit
    return doubt


@jit
def exact(y, c, closest, w, scale, won, j):
    """Return the whole number that candidate `j`, at `c` (1, d), saves."""
    room, less = empty(y.shape[1], np.float64), 0.0
    for block in range(won.shape[0]):
        bits = won[block, j]
        while bits:
            row = block * SIDE + lowest(bits)
            bits &= bits - 1
            before, found = closest[row], squared_distance(y, row, 1.0, c, ZERO, room)
            weight = w[row] if w.shape[0] > 1 else w[0]
            if found < before:
                less += np.rint(weight * before * scale) - np.rint(weight * found * scale)
    return less


@jit
def shorten(y, c, closest, edge, spare, wider, won, j):
    """Update what is closest, for rows that candidate `j`, at `c` (1, d), may be nearer to: all if `won` is empty."""
    m, d = y.shape
    room = empty(d, np.float64)
    left = quarter(d) if d <= _COLUMNS else 1
    columns, sums, wide = (
        zeros((4 * left, SIDE), np.float64),
        zeros((left, SIDE), np.float64),
        zeros((1, 4 * left), np.float64),
    )
    for f in range(d if d <= _COLUMNS else 0):
        wide[0, f] = c[0, f]
    for block in range(edge.shape[0]):
        first = block * SIDE
        count = m - first if m - first < SIDE else SIDE
        bits = won[block, j] if won.shape[0] else np.int64(-1)
        coming = won[block + 1, j] if block + 1 < won.shape[0] else ZERO
        while coming:
            row = first + SIDE + lowest(coming)
            coming &= coming - 1
            _ask(y, closest, row)
        if d <= _COLUMNS and how_many(bits) > SIDE // 4:
            for i in range(count):
                for f in range(d):
                    columns[f, i] = y[first + i, f]
            side_by_side(columns, wide, ZERO, sums)
            for i in range(count):
                squared, before = sums[0, i], closest[first + i]
                before = squared if squared < before else before
                closest[first + i] = before
                edge[block, i] = _edge(before, spare[block], wider)
            continue
        while bits:
            i = lowest(bits)
            bits &= bits - 1
            if i >= count:
                break
            squared = squared_distance(y, first + i, 1.0, c, ZERO, room)
            if squared < closest[first + i]:
                closest[first + i] = squared
                edge[block, i] = _edge(squared, spare[block], wider)


@jit
def costs(closest, w, scale, block, sums):
    """Write the sums of whole-number costs, block by block, and return the largest cost."""
    whole, high = empty(block, np.float64), zeros(block, np.float64)
    for number in range(sums.shape[0]):
        start = number * block
        rows = closest.shape[0] - start if closest.shape[0] - start < block else block
        for i in range(rows):
            cost = closest[start + i] * (w[start + i] if w.shape[0] > 1 else w[0])
            high[i] = cost if cost > high[i] else high[i]
            whole[i] = np.rint(cost * scale)
        sums[number] = _total(whole, rows)  # exact in any order
    largest = 0.0
    for i in range(block):
        largest = high[i] if high[i] > largest else largest
    return largest


@jit
def reached(closest, w, scale, total, draw):
    """Return the first row up to which costs add up to the `draw`, if up to the last they do to the `total`."""
    row, before = closest.shape[0], total
    while row > 0 and before >= draw:
        row -= 1
        before -= np.rint(closest[row] * (w[row] if w.shape[0] > 1 else w[0]) * scale)
    return row
