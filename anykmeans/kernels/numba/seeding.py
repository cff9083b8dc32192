# mypy: allow-untyped-defs, allow-untyped-calls
"""Compiled steps of k-means++: every trial of a step in one pass over the rows.

`CompiledSeeds` keeps float32 coordinates of each row, in which distances are hardly longer than the true ones, and an
*edge*, beyond which no candidate is nearer than the row's pick. Of `few` features all are coordinates, so that distances in
them estimate what candidates save. Of `many` features some directions are, which leave few pairs of a row and a candidate;
these are measured in float64. Both tell candidates apart to within a bound on the error. Distances that are kept are
`anykmeans._distance`'s bit for bit: no fused or reordered additions.
"""

from __future__ import annotations

import numpy as np

from anykmeans._settings import current
from anykmeans.kernels.numba import subspace, weights
from anykmeans.kernels.numba.distance import squared_distance
from anykmeans.kernels.numba.room import empty, zeros
from anykmeans.kernels.numba.side import across
from anykmeans.kernels.numba.simd import LANES, SIDE, how_many, lowest, prefetch, saving, within
from anykmeans.kernels.numba.steps import (
    ZERO,
    any_order,
    inline,
    inner,
    jit,
    quarter,
    side_by_side,
)
from anykmeans.kernels.seeding import BLOCK, Seeds, Tile

_COLUMNS = 8  # features up to which a block of rows is measured side by side
_DIRECTIONS = LANES, 2 * LANES  # of few features and of more, where there is no room for all
_PIECES = 4  # tiles a thread at most
# Products of a tile for each number of `Settings.piece`, of fewer of which a pick is over before a thread has begun; and as many as take as
# long as a row takes besides.
_PRODUCTS, _ROW = 64, 150
_NEAR = 1 << 17  # numbers of rows that are in the cache from one step to the next
_SAMPLE = 512  # rows that directions are found from, where they are not
_NARROW = 2.0**-23  # error of a vector of coordinates, relatively, where it is but rounded
_WIDER = 1 + 2.0**-9  # edges over squared distances


class CompiledSeeds(Seeds):
    """Candidates are ruled out by coordinates of rows and candidates, and how near a candidate must be in them.

    With errors e of coordinates, a candidate that is nearer than the pick, whose squared distance is B, is in the
    coordinates within ``(sqrt(B) + e_row + e_candidate)^2 <= (1 + 2^-10) B + 2050 (e_row^2 + e_candidate^2)``.
    """

    def prepare(self, first: np.ndarray, k: int) -> None:
        """Choose coordinates: all features of few, else the directions in which a sample varies most."""
        frame, work = self.frame, self.rows.work
        n, d = self.rows.shape
        p = d
        if 8 * n * d > work.max_bytes:
            # Coordinates of all rows, and directions with what finding them takes, within the budget.
            p = min(d, _DIRECTIONS[d >= 256], max(2, work.max_bytes // (16 * n)))
            p = min(p, max(2, work.max_bytes // (128 * d)))
        sample = max(1, min(_SAMPLE, work.max_bytes // (64 * d)))
        sample = frame.wide(np.arange(0, n, -(-n // sample)))
        self._origin = sample.mean(axis=0)
        self._q: np.ndarray | None = None
        error = _NARROW
        if p < d:
            self._q = subspace.principal(sample - self._origin, p - 1)
            error = subspace.error(d)
        self._slack = error**2 * 4096  # times a squared norm: how far errors move an edge

    def cut(self, trials: int) -> list[slice]:
        """Return tiles: long ones, as nothing of the rows' size is written but what copies the rows take."""
        (n, d), work = self.rows.shape, self.rows.work
        pieces = n * (d * trials + _ROW) // (_PRODUCTS * current().piece) + 1
        pieces = pieces if work.threads > 1 else 1
        step = -(-n // min(pieces, _PIECES * work.threads))
        most = n if self.frame.exponent == 0 else max(1, work.room // d)
        return work.tiles(step=min(step, most, work.readable(self.rows.matrix)))

    def begin(self, tile: Tile, c: np.ndarray, pick: int) -> None:
        """Keep what there is to know of a tile's rows, and count the first pick, at `c` (1, d), in, while they are in the cache.

        Coordinates (blocks, p, SIDE), edges (blocks, SIDE), and by how much the errors move these (blocks,).
        """
        y = np.ascontiguousarray(self.read(tile))
        d, blocks, none = y.shape[1], -(-y.shape[0] // SIDE), np.empty((0, 0), np.int64)
        p = d if self._q is None else self._q.shape[1] + 1
        z = np.empty((blocks, p, SIDE), np.float32)
        edge, spare = np.empty((blocks, SIDE), np.float32), np.empty(blocks)
        tile.kept, step = (z, edge, spare), max(1, _NEAR // (SIDE * d))
        for first in range(0, blocks, step):
            at, part = slice(first, first + step), slice(first * SIDE, (first + step) * SIDE)
            some, origin = y[part], self._origin
            if self._q is not None:
                near = subspace.projected(some, 1.0, origin, self._q, self.rows.work.room)
                side(
                    np.ascontiguousarray(near), np.zeros(p), self._slack, z[at], edge[at], spare[at]
                )
            else:
                side(some, origin, self._slack, z[at], edge[at], spare[at])
            shorten(some, c, tile.closest[part], edge[at], spare[at], none, 0)

    def admit(self, c: np.ndarray) -> int:
        """Return 0: rows keep what there is to know of a pick, all are alike."""
        return 0

    def against(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coordinates (t, p) of candidates `c` (t, d), float32, and less how much their errors move edges (t,)."""
        near = c - self._origin
        if self._q is not None:
            near = subspace.coordinates(near, self._q)
        return near.astype(np.float32), (-self._slack * (near**2).sum(axis=1)).astype(np.float32)

    def gains(
        self, tile: Tile, c: np.ndarray, against: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, float]:
        """Return what each of t candidates saves (t,), and by how much that may be off; bits of what it may win are (blocks, t)."""
        (z, edge, spare), w = tile.kept, weights(tile.w)
        saved, tile.won = np.zeros(c.shape[0]), np.empty((z.shape[0], c.shape[0]), np.int64)
        if z.shape[1] == c.shape[1]:
            doubt = few(z, edge, spare, *against, w, saved, tile.won)
        else:
            y = np.ascontiguousarray(self.read(tile))
            doubt = many(y, c, z, edge, *against, tile.closest, w, saved, tile.won)
        return saved * self.scale, doubt * self.scale

    def saved(self, tile: Tile, c: np.ndarray, j: int) -> float:
        """Return exactly what candidate `j`, at `c` (1, d), saves."""
        y = np.ascontiguousarray(self.read(tile))
        return float(exact(y, c, tile.closest, weights(tile.w), self.scale, tile.won, j))

    def shorten(self, tile: Tile, c: np.ndarray, pick: int, j: int) -> None:
        """Count candidate `j`, at `c` (1, d), in what is closest to the rows, and in their edges."""
        _, edge, spare = tile.kept
        won = np.empty((0, 0), np.int64) if tile.won is None else tile.won
        shorten(np.ascontiguousarray(self.read(tile)), c, tile.closest, edge, spare, won, j)

    def costs(self, tile: Tile) -> tuple[np.ndarray, float]:
        """Return the whole-number costs of blocks of rows, and the largest cost of a row."""
        found = np.empty(-(-tile.closest.shape[0] // BLOCK))
        return found, costs(tile.closest, weights(tile.w), self.scale, BLOCK, found)

    def reached(self, tile: Tile, rows: slice, total: float, draw: float) -> int:
        """Return the first of the `rows` up to which costs add up to the `draw`, if up to the last they do to the `total`."""
        w = weights(None if tile.w is None else tile.w[rows])
        return int(reached(tile.closest[rows], w, self.scale, total, draw))


@jit
def side(y, origin, slack, z, edge, spare):
    """Write rows `y` (m, p) less the origin to `z` (blocks, p, SIDE), and `slack` times the largest squared norms.

    Places beyond the last row are at the origin: no candidate is nearer to any than its edge, as they are all 0 in the end.
    """
    (m, p), blocks = y.shape, z.shape[0]
    for block in range(blocks):
        row, largest = block * SIDE, np.float32(0.0)
        count = SIDE if row + SIDE <= m else m - row
        across(y, row, 1.0, origin, z, block, edge)
        for i in range(count):
            largest = edge[block, i] if edge[block, i] > largest else largest
        for i in range(SIDE):
            edge[block, i] = 0.0
        for f in range(p if count < SIDE else 0):
            for i in range(count, SIDE):
                z[block, f, i] = 0.0
        spare[block] = largest * slack + 2.0**-100  # and what underflows


@inline
def _edge(before, spare):
    return np.float32(before * _WIDER + spare if before > 0.0 else 0.0)


@inline
def _ask(y, closest, row):
    """Ask for the beginning of a row, and for what is closest to it."""
    d, line = y.shape[1], 64 // y.itemsize
    prefetch(closest, row)
    for f in range(0, d if d < 8 * line else 8 * line, line):
        prefetch(y, row * d + f)


@any_order
def _measure(y, row, c, j, limit):
    """Return the squared distance, added in any order, or more than the limit."""
    total = 0.0
    for start in range(0, y.shape[1], SIDE):
        a, b = y[row, start : start + SIDE], c[j, start : start + SIDE]
        for f in range(a.shape[0]):
            step = a[f] - b[f]
            total += step * step
        if total > limit:
            break
    return total


@any_order
def _total(a, count):
    total = 0.0
    for i in range(count):
        total += a[i]
    return total


@inner
def _sparse(y, c, closest, w, rows, error, saved, won):
    """Measure the rows that candidates may win, and correct `won`; return the doubt."""
    doubt, tiny = 0.0, 2.0**-1000
    for row in rows:
        before = closest[row]
        limit = before + before * error + tiny
        weight = w[row] if w.shape[0] > 1 else w[0]
        block, bit = row // SIDE, np.int64(1) << (row % SIDE)
        for j in range(c.shape[0]):
            if won[block, j] & bit:
                total = _measure(y, row, c, j, limit)
                if total <= limit:
                    saved[j] += weight * (before - total) if before > total else 0.0
                    doubt += weight * before * error + tiny
                else:
                    won[block, j] ^= bit
    return doubt


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
                z, block, near, j, start, edge, _WIDER, spare[block], weight, less
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
    return costs * (2.0**-19 + (d + 16) * 2.0**-23) + slack * 2.0**10 + faint * 2.0**-140


@jit
def many(y, c, z, edge, near, start, closest, w, saved, won):
    """Add what each of the candidates `c` (t, d) saves to `saved` (t,); return how far off that may be.

    The bits of ``won[:, j]`` (blocks,) are the rows that candidate j may be nearer to.
    """
    # A sum of d squares in any order errs by less than half of this, and so does the exact one.
    error = (y.shape[1] + 8) * 2.0**-51
    rows, waiting = empty(2 * SIDE, np.int64), ZERO
    doubt = 0.0
    for block in range(z.shape[0]):
        some = ZERO
        for j in range(c.shape[0]):
            won[block, j] = within(z, block, near, j, start, edge)
            some |= won[block, j]
        while some:
            row = block * SIDE + lowest(some)
            some &= some - 1
            rows[waiting] = row
            waiting += 1
            _ask(y, closest, row)
        if waiting >= SIDE:
            doubt += _sparse(y, c, closest, w, rows[:waiting], error, saved, won)
            waiting = 0
    return doubt + _sparse(y, c, closest, w, rows[:waiting], error, saved, won)


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
def shorten(y, c, closest, edge, spare, won, j):
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
                edge[block, i] = _edge(before, spare[block])
            continue
        while bits:
            i = lowest(bits)
            bits &= bits - 1
            if i >= count:
                break
            squared = squared_distance(y, first + i, 1.0, c, ZERO, room)
            if squared < closest[first + i]:
                closest[first + i] = squared
                edge[block, i] = _edge(squared, spare[block])


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
