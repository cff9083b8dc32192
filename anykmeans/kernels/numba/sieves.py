# mypy: allow-untyped-defs, allow-untyped-calls
"""What k-means++ keeps of each row to rule candidates out: bounds by codes, or coordinates that lengthen no distance.

A row has an *edge*, ``wider * B + spare``, where B is the squared distance of its pick, beyond which no candidate is nearer. The
proofs are in ``docs/proofs.md``. A sieve says besides whether what it keeps also `estimates` what candidates save, and what `share`
of the time of all products of rows and candidates it takes to look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anykmeans._bounds import Bounds
from anykmeans.kernels.numba import codes, subspace
from anykmeans.kernels.numba.room import empty
from anykmeans.kernels.numba.side import across
from anykmeans.kernels.numba.simd import LANES, ROWS, SIDE, within
from anykmeans.kernels.numba.steps import jit
from anykmeans.kernels.seeding import Outlying

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work

_FEW, _BARE = 2, 64  # picks up to which, and features from which on nothing is kept of rows
# Features, picks, and rows times picks from which on rows may be coded.
_WIDE, _PICKS, _LARGE = 16, 32, 1 << 18
_SAMPLE = 512  # rows that tell what pays
_DIRECTIONS = LANES, 2 * LANES  # of few features and of more, where there is no room for all
_ORDINARY = 2.0**21  # a magnitude that no row has in its frame
# Features up to which what sums of squares lose in float32 is within what edges have to spare.
_SOUND = 1 << 20
_NARROW = 2.0**-23  # error of a vector of coordinates, relatively, where it is but rounded
WIDER = 1 + 2.0**-9  # edges over squared distances, by coordinates
_PANELS = SIDE // LANES  # of a block
# Nanoseconds, about: of a feature of a pair of a row and a candidate as a number and coded, of one of a row that is coded, over the
# candidates of a pick, of a pair that is measured, and of a feature of it.
_NUMBER, _CODED, _CODING, _ALONE, _READ = 0.03, 0.006, 0.2, 20.0, 0.17


class Kept(NamedTuple):
    """What is kept of blocks of SIDE rows.

    Attributes
    ----------
    rows : tuple of ndarrays
        Codes or coordinates, blocks along the first axis.
    edge : ndarray of shape (blocks, SIDE), float32
        What a candidate that is nearer is below.
    spare : ndarray of shape (blocks,), float64
        By how much errors move the edges of a block.
    """

    rows: tuple[np.ndarray, ...]
    edge: np.ndarray
    spare: np.ndarray

    def part(self, blocks: slice) -> Kept:
        """Return what is kept of some of the blocks."""
        rows = []
        for a in self.rows:
            wide = a.shape[0] // self.edge.shape[0]
            rows.append(a[blocks.start * wide : blocks.stop * wide])
        return Kept(tuple(rows), self.edge[blocks], self.spare[blocks])


class Coded:
    """Bounds by `codes`: of a candidate nearer than B they are less than ``(1 + 2 beta) (B + beta |y|^2 + eta)``, by `Bounds`."""

    estimates = False
    share = 0.25

    def __init__(self, origin: np.ndarray, bounds: Bounds) -> None:
        self.origin, self._eta = origin.astype(np.float32), bounds.eta
        # More by what edges and squared lengths of candidates lose in float32.
        self._beta = bounds.beta + 2.0**-20
        self.wider = 1 + 2 * self._beta

    def room(self, blocks: int) -> Kept:
        """Return room for what is kept of so many blocks of rows."""
        whole, starts = codes.room_of_panels(_PANELS * blocks, self.origin.size)
        return Kept((*whole, starts), np.zeros((blocks, SIDE), np.float32), np.empty(blocks))

    def keep(self, y: np.ndarray, kept: Kept) -> None:
        """Write what is kept of rows `y` (m, d), but for their edges."""
        (coded, terms), m, slots = codes.room(*y.shape), y.shape[0], kept.edge.size
        lengths, ids = np.zeros(slots, np.float32), np.arange(slots, dtype=np.int32)
        unit = y.dtype.type(1)  # of the dtypes that fits have it compiled for
        codes.encode(y, ids[:m], unit, self.origin, coded, terms, lengths)
        codes.as_panels(coded, terms, lengths, ids, *kept.rows)
        largest = lengths.reshape(-1, SIDE).max(axis=1).astype(np.float64)
        kept.spare[:] = self.wider * (self._beta * largest + self._eta)

    def against(self, c: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return candidates `c` (t, d) coded, and their terms."""
        found, lengths = codes.room(*c.shape), np.empty(c.shape[0], np.float32)
        codes.encode(c, np.arange(len(c), dtype=np.int32), 1.0, self.origin, *found, lengths)
        return found

    def nearer(self, kept: Kept, against: tuple[np.ndarray, ...], won: np.ndarray) -> None:
        """Write the bits of the rows that each of t candidates may be nearer to, to `won` (blocks, t)."""
        by_codes(*kept.rows, kept.edge, *against, won)


class Coordinates:
    """Float32 coordinates: of all features, or in the directions in which a sample varies most.

    With errors e of coordinates, a candidate that is nearer than the pick, whose squared distance is B, is in the
    coordinates within ``(sqrt(B) + e_row + e_candidate)^2 <= (1 + 2^-10) B + 2050 (e_row^2 + e_candidate^2)``.
    """

    wider, share = WIDER, 1.0

    def __init__(self, origin: np.ndarray, q: np.ndarray | None, room: int) -> None:
        self.origin, self._q, self._room = origin, q, room
        self.estimates = q is None  # from all features alone
        error = _NARROW if q is None else subspace.error(origin.size)
        self._slack = error**2 * 4096  # times a squared norm: how far errors move an edge

    def room(self, blocks: int) -> Kept:
        """Return room for what is kept of so many blocks of rows."""
        p = self.origin.size if self._q is None else self._q.shape[1] + 1
        z, edge = np.empty((blocks, p, SIDE), np.float32), np.zeros((blocks, SIDE), np.float32)
        return Kept((z,), edge, np.empty(blocks))

    def keep(self, y: np.ndarray, kept: Kept) -> None:
        """Write what is kept of rows `y` (m, d), but for their edges."""
        origin = self.origin
        if self._q is not None:
            y = subspace.projected(y, 1.0, origin, self._q, self._room)
            y, origin = np.ascontiguousarray(y), np.zeros(y.shape[1])
        beside(y, origin, self._slack, *kept.rows, kept.edge, kept.spare)

    def against(self, c: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return coordinates (t, p) of candidates `c` (t, d), float32, and less how much their errors move edges (t,)."""
        near = c - self.origin
        if self._q is not None:
            near = subspace.coordinates(near, self._q)
        return near.astype(np.float32), (-self._slack * (near**2).sum(axis=1)).astype(np.float32)

    def nearer(self, kept: Kept, against: tuple[np.ndarray, ...], won: np.ndarray) -> None:
        """Write the bits of the rows that each of t candidates may be nearer to, to `won` (blocks, t)."""
        by_coordinates(*kept.rows, kept.edge, *against, won)


class Everything:
    """No candidate is ruled out: of so few picks that coordinates would take longer to make than to go without."""

    estimates, wider, share = False, 1.0, 1.0

    def room(self, blocks: int) -> Kept:
        """Return room for what is kept of so many blocks of rows."""
        tiny = np.full(blocks, 2.0**-100)  # edges are above zero where picks are not at the rows
        return Kept((), np.zeros((blocks, SIDE), np.float32), tiny)

    def keep(self, y: np.ndarray, kept: Kept) -> None:
        """Keep nothing of rows `y` (m, d)."""

    def against(self, c: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return nothing of candidates `c` (t, d)."""
        return ()

    def nearer(self, kept: Kept, against: tuple[np.ndarray, ...], won: np.ndarray) -> None:
        """Write the bits of all rows that are not picked to `won` (blocks, t)."""
        won[:] = np.packbits(kept.edge > 0, axis=1, bitorder="little").view(np.int64)


def choose(frame: Frame, work: Work, k: int) -> Coded | Coordinates | Everything:
    """Return what to keep of rows for `k` picks: codes where they pay, else coordinates, of all features if there is room."""
    n, d = frame.matrix.shape
    if k <= _FEW and d >= _BARE:
        return Everything()
    sample = max(1, min(_SAMPLE, work.max_bytes // (64 * d)))
    some = frame.wide(np.arange(0, n, -(-n // sample)))
    if not np.abs(some).max() < _ORDINARY:
        raise Outlying
    origin, bounds = some.mean(axis=0), Bounds.of(d, 2.0**-24, 2 * d)
    room = 2 * n * (d + 2 * LANES) <= work.max_bytes
    if codes.AVAILABLE and bounds.sound and room and pay(some - origin, n, k):
        return Coded(origin, bounds)
    if 8 * n * d <= work.max_bytes and d <= _SOUND:
        return Coordinates(origin, None, work.room)
    # Coordinates of all rows, and directions with what finding them takes, within the budget.
    p = min(d, _DIRECTIONS[d >= 256], max(2, work.max_bytes // (16 * n)))
    p = min(p, max(2, work.max_bytes // (128 * d)))
    q = subspace.principal(some - origin, p - 1) if p < d else None
    return Coordinates(origin, q, work.room)


def pay(y: np.ndarray, n: int, k: int) -> bool:
    """Return whether codes of `n` rows such as `y` (m, d) pay over `k` picks, by what they leave of these."""
    d = y.shape[1]
    if d < _WIDE or k < _PICKS or n * k < _LARGE:
        return False
    gain = d * (_NUMBER - _CODED - _CODING / k)
    return bool(left(y[::2], y[1::4], k) * (_ALONE + _READ * d) < gain)


def left(picks: np.ndarray, y: np.ndarray, k: int) -> float:
    """Return what share of pairs of rows such as `y` (m, d) and candidates, about, codes leave on average over k picks.

    Rows take the place of candidates, and `picks` (s, d), in no order, that of picks: two at random that of one, which is about
    as near.
    """
    off, norms = codes.taken(y), np.einsum("md,md->m", y, y)
    lengths = np.sqrt(norms)
    low = norms[:, None] + norms - 2 * (y @ y.T)
    low -= 2 * (off[:, None] * lengths + lengths[:, None] * off)
    np.fill_diagonal(low, np.inf)  # a candidate is another row
    picks = picks[np.random.default_rng(0).permutation(picks.shape[0])]
    apart = np.einsum("sd,sd->s", picks, picks) + norms[:, None] - 2 * (y @ picks.T)
    share, i = 0.0, 1
    while i < k:
        closest = np.maximum(apart[:, : 2 * i].min(axis=1), 0)
        total, following = closest.sum(), 2 * i if 4 * i <= min(2 * k, picks.shape[0]) else k
        if total == 0:  # all are picked
            break
        chance = closest / total  # that a row is drawn
        share += float((low < closest[:, None]).mean(axis=0) @ chance) * (following - i)
        i = following
    return share / max(k - 1, 1)


@jit
def beside(y, origin, slack, z, edge, spare):
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


@jit
def by_codes(whole, terms, starts, edge, near, near_terms, won):
    """Write the bits of the rows that each of t candidates may be nearer to, by `Codes` of both, to `won` (blocks, t)."""
    t, at, bits = won.shape[1], empty(ROWS, np.int64), empty(ROWS, np.int64)
    for block in range(won.shape[0]):
        for first in range(0, t, ROWS):
            count = min(ROWS, t - first)
            for r in range(ROWS):
                at[r] = first + min(r, count - 1)
            for r in range(count):
                won[block, first + r] = 0
            for p in range(_PANELS):
                codes.nearer(
                    near, at, near_terms, whole, starts, terms, block * (_PANELS) + p, edge, bits
                )  # fmt: skip
                for r in range(count):
                    won[block, first + r] |= bits[r] << (p * LANES)


@jit
def by_coordinates(z, edge, near, start, won):
    """Write the bits of the rows that each of t candidates at `near` (t, p) may be nearer to, to `won` (blocks, t)."""
    for block in range(won.shape[0]):
        for j in range(won.shape[1]):
            won[block, j] = within(z, block, near, j, start, edge)
