# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Greedy k-means++ on the device: five launches a pick, none of which the host waits for.

`draw` finds the candidates, `reach` how far around each pick none of them is nearer, `gains` what each saves,
`count_in` counts the best in, and `costs` adds what the next draws need. Costs are whole numbers on a grid, added
in int64: any order makes the same bits. Everything a pick changes stays on the device, the number of the pick as
well, so that all picks are the same launches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
import triton.language as tl

from anykmeans._libraries import Array
from anykmeans.kernels.triton import device
from anykmeans.kernels.triton.resolve import halving_sum
from anykmeans.kernels.triton.screen import LARGEST, centred

if TYPE_CHECKING:
    from anykmeans._frame import Frame

CANDIDATES = 16  # candidates at most: columns of a product
BLOCK = 1024  # rows whose cost is kept as one number
SPAN = 512  # rows that a block settles
TILE = 256  # numbers of a tile for each warp: few rows, as one nearer to a candidate costs all of them a distance
PIECE = 16  # features of a tile; more where a row would have more than `PIECES` of them
PIECES, WARPS = 8, 16
MOST = 4096  # features up to which tiles of differences fit the registers
MEASURED = 16  # features up to which all distances cost less than to rule some out
CHUNK = 64  # features of a product
_BLOCKS = 64  # on each multiprocessor: far more than run at once, as some have more to do
_REPLAYED = 8  # picks from which on launches are replayed as a graph
# What the `state` of a problem holds, int64: the pick at work, the last one done, and the bits of the largest cost of a row.
STATES = tl.constexpr(3)
PICK, DONE, HIGH = (tl.constexpr(i) for i in range(3))


@triton.jit
def _halved(
    y,
    c,
    there,
    along,
    unit,
    START: tl.constexpr,
    STEP: tl.constexpr,
    PIECE: tl.constexpr,
    D: tl.constexpr,
):
    """Return the squared differences (m, PIECE) of the features from START on, every STEP-th piece, by halving.

    Feature i is added to i + h for the largest h first: the two halves of what STEP leaves are 2 STEP apart.
    """
    if STEP >= D:
        mask = there
        if START + PIECE > D:
            mask = there & (START + tl.arange(0, PIECE) < D)[None, :]
        t = tl.load(y + START * along, mask=mask, other=0).to(tl.float64) * unit
        t -= tl.load(c + START, mask=mask, other=0.0)
        found = t * t
    else:
        found = _halved(y, c, there, along, unit, START, 2 * STEP, PIECE, D)
        if START + STEP < D:
            found += _halved(y, c, there, along, unit, START + STEP, 2 * STEP, PIECE, D)
    return found


@triton.jit
def _distances(x, rows, there, c, across, along, unit, PIECE: tl.constexpr, D: tl.constexpr):
    """Return the squared distances (m,), float64, of rows that are `there` to `c` (D,), by rule R5."""
    cols = tl.arange(0, PIECE)[None, :]
    y = x + rows[:, None] * across + cols.to(tl.int64) * along
    t = _halved(y, c + cols, there[:, None], along, unit, 0, PIECE, PIECE, D)
    return halving_sum(t, PIECE)


@triton.jit
def _cost(closest, w, rows, there, WEIGHTED: tl.constexpr):
    cost = tl.load(closest + rows, mask=there, other=0.0)
    if WEIGHTED:
        cost = tl.load(w + rows, mask=there, other=0.0) * cost
    return cost


@triton.jit
def _whole(cost, scale):
    """Return `cost` times `scale`, at most 2^52, rounded to whole numbers, int64, halves to even."""
    # In float64 what lies between 2^52 and 2^53 is whole, and its bits count on from those of 2^52.
    return (cost * scale + 2.0**52).to(tl.int64, bitcast=True) - 0x4330000000000000


@triton.jit(do_not_specialize=["n", "t", "blocks"])
def draw(
    x,
    w,
    offset,
    table,
    state,
    scale,
    draws,
    sums,
    closest,
    candidates,
    c,
    near,
    norms,
    saved,
    n,
    t,
    blocks,
    d,
    apart,
    across,
    along,
    WEIGHTED: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write a candidate: the row at its draw, from 0 to 1, of the cumulative cost; as it is, and centred."""
    j, problem = tl.program_id(0), tl.program_id(1).to(tl.int64)
    x += problem * apart
    offset += problem * d
    table += problem * 2
    state += problem * STATES
    scale += problem
    sums += problem * blocks
    closest += problem * n
    c += problem * t * d
    near += problem * (CANDIDATES * WIDTH)
    norms += problem * CANDIDATES
    saved += problem * t
    if WEIGHTED:
        w += problem * n
    done = tl.load(state + DONE)
    tl.store(state + PICK, done + 1)
    tl.store(state + HIGH, tl.zeros((), tl.int64))
    tl.store(saved + j, tl.zeros((), tl.int64))
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((), tl.int64)
    for start in range(0, blocks, BLOCK):
        place = start + lanes
        total += tl.sum(tl.load(sums + place, mask=place < blocks, other=0), 0)
    aim = tl.load(draws + (done * tl.num_programs(1) + problem) * t + j) * total.to(tl.float64)
    # The first block, and in it the first row, up to which the costs are no less.
    block = tl.zeros((), tl.int64)
    passed = tl.zeros((), tl.int64)
    total = tl.zeros((), tl.int64)
    for start in range(0, blocks, BLOCK):
        place = start + lanes
        part = tl.load(sums + place, mask=place < blocks, other=0)
        short = (place < blocks) & ((total + tl.cumsum(part, 0)).to(tl.float64) < aim)
        block += tl.sum(short.to(tl.int64), 0)
        passed += tl.sum(tl.where(short, part, 0), 0)
        total += tl.sum(part, 0)
    rows = block * BLOCK + lanes
    cost = _whole(_cost(closest, w, rows, rows < n, WEIGHTED), tl.load(scale))
    short = (rows < n) & ((passed + tl.cumsum(cost, 0)).to(tl.float64) < aim)
    row = block * BLOCK + tl.sum(short.to(tl.int64), 0)
    tl.store(candidates + problem * t + j, row)
    unit, zoom = tl.load(table), tl.load(table + 1)
    one = row + tl.zeros((1,), tl.int64)
    norm = tl.zeros((1,), tl.float32)
    for begin in range(0, WIDTH, CHUNK):
        cols = begin + tl.arange(0, CHUNK)
        at = row * across + cols.to(tl.int64) * along
        y = tl.load(x + at, mask=cols < d, other=0).to(tl.float64) * unit
        tl.store(c + j * d + cols, y, mask=cols < d)
        y = centred(x, one, cols, one >= 0, d, across, along, offset, unit, zoom, WIDE)
        tl.store(near + j * WIDTH + cols[None, :], y)
        norm += tl.sum(y * y, 1)
    tl.store(norms + j + tl.arange(0, 1), norm)


@triton.jit(do_not_specialize=["k"])
def reach(
    x,
    table,
    state,
    picks,
    c,
    least,
    k,
    apart,
    across,
    along,
    ROWS: tl.constexpr,
    PIECE: tl.constexpr,
    D: tl.constexpr,
):
    """Lower to what it leaves the squared distance from each pick within which no candidate is nearer."""
    problem = tl.program_id(2).to(tl.int64)
    x += problem * apart
    table += problem * 2
    picks += problem * k
    least += problem * k
    c += (problem * tl.num_programs(1) + tl.program_id(1)) * D
    count = tl.load(state + problem * STATES + PICK)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if tl.program_id(0) * ROWS < count:
        there = place < count
        rows = tl.load(picks + place, mask=there, other=0)
        unit = tl.load(table)
        found = _distances(x, rows, there, c, across, along, unit, PIECE, D)
        # A quarter, less more than rounding takes. Nothing that may have underflowed is used.
        safe = tl.where(found > 2.0**-900, found * (0.25 - 2.0**-22), 0.0)
        # Numbers that are not negative are in the order of their bits.
        tl.atomic_min(least + place, safe.to(tl.int64, bitcast=True), mask=there, sem="relaxed")


@triton.jit
def _maybe(
    x,
    rows,
    there,
    before,
    offset,
    near,
    norms,
    unit,
    zoom,
    d,
    across,
    along,
    gamma,
    WIDE: tl.constexpr,
    CANDIDATES: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Return which candidates may be nearer to rows than `before` (m,), a bit for each, int32.

    The estimate from a product errs by at most `gamma` times the squared norms of both: ``docs/proofs.md``.
    """
    lanes = tl.arange(0, CANDIDATES)
    norm = tl.zeros(before.shape, tl.float32)
    product = tl.zeros((before.shape[0], CANDIDATES), tl.float32)
    for begin in range(0, WIDTH, CHUNK):
        cols = begin + tl.arange(0, CHUNK)
        y = centred(x, rows, cols, there, d, across, along, offset, unit, zoom, WIDE)
        norm += tl.sum(y * y, 1)
        product = tl.dot(y, tl.load(near + lanes[None, :] * WIDTH + cols[:, None]), product)
    both = norm[:, None] + tl.load(norms + lanes)[None, :]
    lower = both - 2.0 * product - gamma * both - 2.0**-80  # and less what underflows
    limit = (before * zoom * zoom).to(tl.float32) * (1.0 + 2.0**-20)
    return tl.sum(tl.where(lower > limit[:, None], 0, 1 << lanes[None, :]), 1)


@triton.jit(do_not_specialize=["n", "t", "k"])
def gains(
    x,
    w,
    offset,
    table,
    scale,
    c,
    near,
    norms,
    least,
    closest,
    owner,
    won,
    saved,
    n,
    t,
    k,
    apart,
    across,
    along,
    gamma,
    WEIGHTED: tl.constexpr,
    WIDE: tl.constexpr,
    SCREENED: tl.constexpr,
    ROWS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    PIECE: tl.constexpr,
    D: tl.constexpr,
):
    """Add what each of `t` candidates saves to `saved`; write whom each row is nearer to, a bit for each."""
    problem = tl.program_id(1).to(tl.int64)
    x += problem * apart
    offset += problem * D
    table += problem * 2
    c += problem * t * D
    near += problem * (CANDIDATES * WIDTH)
    norms += problem * CANDIDATES
    least += problem * k
    closest += problem * n
    owner += problem * n
    won += problem * n
    if WEIGHTED:
        w += problem * n
    lanes = tl.arange(0, CANDIDATES)
    unit, zoom, grid = tl.load(table), tl.load(table + 1), tl.load(scale + problem)
    total = tl.zeros((CANDIDATES,), tl.int64)
    step = tl.num_programs(0).to(tl.int64) * ROWS
    for start in range(tl.program_id(0).to(tl.int64) * ROWS, n, step):
        rows = start + tl.arange(0, ROWS).to(tl.int64)
        valid = rows < n
        before = tl.load(closest + rows, mask=valid, other=0.0)
        free = tl.load(least + tl.load(owner + rows, mask=valid, other=0))
        there = before > free.to(tl.float64, bitcast=True)
        maybe = tl.where(there, (1 << t) - 1, 0)
        nearer = tl.zeros((ROWS,), tl.int32)
        if SCREENED and tl.max(maybe, 0) > 0:
            maybe &= _maybe(
                *(x, rows, there, before, offset, near, norms, unit, zoom, D, across, along, gamma),
                *(WIDE, CANDIDATES, WIDTH, CHUNK),
            )
        if tl.max(maybe, 0) > 0:
            weight = tl.full((ROWS,), 1.0, tl.float64)
            if WEIGHTED:
                weight = tl.load(w + rows, mask=valid, other=0.0)
            cost = _whole(weight * before, grid)
            for j in range(t):
                mine = ((maybe >> j) & 1) > 0
                if tl.max(mine.to(tl.int32), 0) > 0:
                    found = _distances(x, rows, mine, c + j * D, across, along, unit, PIECE, D)
                    wins = mine & (found < before)
                    less = tl.where(wins, cost - _whole(weight * found, grid), 0)
                    total += tl.where(lanes == j, tl.sum(less, 0), 0)
                    nearer |= wins.to(tl.int32) << j
        tl.store(won + rows, nearer.to(tl.int16), mask=valid)
    tl.atomic_add(saved + problem * t + lanes, total, mask=total != 0, sem="relaxed")


@triton.jit(do_not_specialize=["n", "t", "k"])
def count_in(
    x,
    w,
    table,
    state,
    candidates,
    c,
    saved,
    closest,
    owner,
    won,
    picks,
    n,
    t,
    k,
    apart,
    across,
    along,
    WEIGHTED: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    PIECE: tl.constexpr,
    D: tl.constexpr,
):
    """Pick the candidate that saves most, the first of equals, and count it in; note the largest cost."""
    problem = tl.program_id(1).to(tl.int64)
    x += problem * apart
    state += problem * STATES
    c += problem * t * D
    closest += problem * n
    owner += problem * n
    won += problem * n
    if WEIGHTED:
        w += problem * n
    lanes = tl.arange(0, CANDIDATES)
    best = tl.argmax(tl.load(saved + problem * t + lanes, mask=lanes < t, other=-1), 0)
    pick, unit = tl.load(state + PICK), tl.load(table + problem * 2)
    if tl.program_id(0) == 0:
        tl.store(picks + problem * k + pick, tl.load(candidates + problem * t + best))
    first = tl.program_id(0).to(tl.int64) * SPAN
    for start in range(0, SPAN, ROWS):
        rows = first + start + tl.arange(0, ROWS)
        mine = ((tl.load(won + rows, mask=rows < n, other=0) >> best) & 1) != 0
        if tl.max(mine.to(tl.int32), 0) > 0:
            found = _distances(x, rows, mine, c + best * D, across, along, unit, PIECE, D)
            tl.store(closest + rows, found, mask=mine)
            tl.store(owner + rows, pick.to(tl.int32) + tl.zeros((ROWS,), tl.int32), mask=mine)
    tl.debug_barrier()  # one block's threads read what others have written
    rows = first + tl.arange(0, SPAN)
    high = tl.max(_cost(closest, w, rows, rows < n, WEIGHTED), 0).to(tl.int64, bitcast=True)
    tl.atomic_max(state + HIGH, high, mask=high > tl.load(state + HIGH), sem="relaxed")


@triton.jit(do_not_specialize=["n", "k", "room"])
def costs(
    w,
    state,
    scale,
    closest,
    sums,
    least,
    n,
    k,
    room,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the whole-number cost of each block of rows, on the grid of the largest: `_grid.Grid.plan`."""
    problem = tl.program_id(1).to(tl.int64)
    state += problem * STATES
    closest += problem * n
    if WEIGHTED:
        w += problem * n
    # A subnormal one gets the last grid, as well, and zero any: its multiples are zero.
    exponent = (tl.load(state + HIGH) >> 52) - 1022
    grid = ((tl.minimum(room - exponent, 1023) + 1023) << 52).to(tl.float64, bitcast=True)
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    cost = _whole(_cost(closest, w, rows, rows < n, WEIGHTED), grid)
    tl.store(sums + problem * tl.num_programs(0) + tl.program_id(0), tl.sum(cost, 0))
    infinity = tl.full((BLOCK,), 0x7FF0000000000000, tl.int64)  # its bits
    tl.store(least + problem * k + rows, infinity, mask=rows < k)
    if tl.program_id(0) == 0:
        tl.store(scale + problem, grid)
        tl.store(state + DONE, tl.load(state + PICK))


def gamma(d: int) -> float:
    """Return how far an estimate is from a squared distance at most, for squared norms whose sum is 1."""
    return 2.0**-8 + (d + 64) * 2.0**-21


class Seeds:
    """The picks so far of b problems on the device, and each row's squared distance to the closest of them.

    Parameters
    ----------
    frames : list of Frame
        The rows of each problem, of one shape, that follow each other in memory at one distance; and the coordinates of distances.
    w : list of tensors of shape (n,), or None
        Weights, float64.
    first : sequence of int
        The first picks.
    draws : ndarray of shape (b, k - 1, t)
        Where the candidates of all further picks lie in the cumulative cost, from 0 to 1.
    """

    def __init__(
        self, frames: list[Frame], w: list[Array] | None, first: Sequence[int], draws: np.ndarray
    ) -> None:
        matrix = frames[0].matrix
        (n, d), on = matrix.shape, {"device": matrix.data.device}
        self.x, self.n, self.d = matrix.data, n, d
        self.strides = device.strides([frame.matrix.data for frame in frames])
        self.b, self.k, self.t = len(frames), draws.shape[1] + 1, draws.shape[2]
        padded = 1 << (d - 1).bit_length()
        piece = max(min(PIECE, padded), padded // PIECES)
        self._rows = max(16, TILE // piece)
        warps = min(WARPS, max(1, self._rows * piece // TILE))
        self._tile = {"ROWS": self._rows, "PIECE": piece, "D": d, "num_warps": warps}
        self._chunk = {"CHUNK": min(CHUNK, max(16, padded))}
        self._width = -(-d // self._chunk["CHUNK"]) * self._chunk["CHUNK"]
        self._weighted = {"WEIGHTED": w is not None}
        units = np.asarray([float(frame.unit) for frame in frames])
        largest = np.asarray([frame.largest for frame in frames])
        # Differences of rows, twice as large as rows at most, are brought near 2^LARGEST: in float32 their
        # squares neither overflow nor, where they matter, underflow.
        zooms = np.ldexp(1.0, LARGEST - np.frexp(2.0 * largest * units)[1])
        power = np.frexp(units)[1] + np.frexp(zooms)[1] - 2  # of their product, which may overflow
        exact = (power >= -126) & (power < 127)
        self._wide = {"WIDE": not (matrix.narrow and bool(exact.all()))}
        b, k, t = self.b, self.k, self.t
        self.table = device.placed(np.stack([units, zooms], axis=1), self.x)
        self.draws = device.placed(np.ascontiguousarray(draws.swapaxes(0, 1)), self.x)
        self.w = self.table if w is None else torch.stack(w)
        self.closest = torch.full((b, n), torch.inf, dtype=torch.float64, **on)
        self.owner = torch.zeros((b, n), dtype=torch.int32, **on)
        self.won = torch.ones((b, n), dtype=torch.int16, **on)
        self.sums = torch.zeros((b, triton.cdiv(n, BLOCK)), dtype=torch.int64, **on)
        self.state = torch.zeros((b, STATES.value), dtype=torch.int64, **on)
        self.scale = torch.zeros(b, dtype=torch.float64, **on)
        self.picks = torch.zeros((b, k), dtype=torch.int64, **on)
        self.least = torch.zeros((b, k), dtype=torch.int64, **on)
        self.saved = torch.zeros((b, t), dtype=torch.int64, **on)
        self.candidates = device.placed(np.repeat(np.asarray(first)[:, None], t, axis=1), self.x)
        rows = [frame.wide(at) for frame, at in zip(frames, self.candidates[:, :1], strict=True)]
        self.offset = torch.cat(rows)
        self.c = self.offset[:, None, :].repeat(1, t, 1)
        self.near = torch.zeros((b, CANDIDATES, self._width), dtype=torch.float32, **on)
        self.norms = torch.zeros((b, CANDIDATES), dtype=torch.float32, **on)

    def run(self) -> np.ndarray:
        """Return all picks (b, k)."""
        with device.on_device(self.x):
            self.count_in()
            self.costs()
            step: Callable[[], None] = self.pick
            for turn in range(1, self.k):
                step()
                if turn == 1 and self.k > _REPLAYED and self.x.is_cuda:
                    step = device.captured(self.pick)
            found: np.ndarray = self.picks.cpu().numpy()
            return found

    def pick(self) -> None:
        """Launch one pick of each problem."""
        self.draw()
        self.reach()
        self.gains()
        self.count_in()
        self.costs()

    def draw(self) -> None:
        """Launch what finds the candidates."""
        draw[(self.t, self.b)](
            *(self.x, self.w, self.offset, self.table, self.state, self.scale, self.draws),
            *(self.sums, self.closest, self.candidates, self.c, self.near, self.norms, self.saved),
            *(self.n, self.t, self.sums.shape[1], self.d, *self.strides),
            BLOCK=BLOCK,
            CANDIDATES=CANDIDATES,
            WIDTH=self._width,
            enable_fp_fusion=False,
            **self._weighted,
            **self._wide,
            **self._chunk,
        )

    def reach(self) -> None:
        """Launch what finds how far around each pick no candidate is nearer."""
        reach[(triton.cdiv(self.k, self._rows), self.t, self.b)](
            *(self.x, self.table, self.state, self.picks, self.c, self.least),
            *(self.k, *self.strides),
            enable_fp_fusion=False,
            **self._tile,
        )

    def gains(self) -> None:
        """Launch what finds how much each candidate saves."""
        programs = max(1, _BLOCKS * device.about(self.x).multiprocessors // self.b)
        gains[(min(triton.cdiv(self.n, self._rows), programs), self.b)](
            *(self.x, self.w, self.offset, self.table, self.scale, self.c, self.near, self.norms),
            *(self.least, self.closest, self.owner, self.won, self.saved),
            *(self.n, self.t, self.k, *self.strides, gamma(self.d)),
            SCREENED=self.d > MEASURED,
            CANDIDATES=CANDIDATES,
            WIDTH=self._width,
            enable_fp_fusion=False,
            **self._weighted,
            **self._wide,
            **self._chunk,
            **self._tile,
        )

    def count_in(self) -> None:
        """Launch what counts the best candidate in."""
        count_in[(triton.cdiv(self.n, SPAN), self.b)](
            *(self.x, self.w, self.table, self.state, self.candidates, self.c, self.saved),
            *(self.closest, self.owner, self.won, self.picks),
            *(self.n, self.t, self.k, *self.strides),
            SPAN=SPAN,
            CANDIDATES=CANDIDATES,
            enable_fp_fusion=False,
            **self._weighted,
            **self._tile,
        )

    def costs(self) -> None:
        """Launch what adds costs, to draw from."""
        costs[(triton.cdiv(self.n, BLOCK), self.b)](
            *(self.w, self.state, self.scale, self.closest, self.sums, self.least),
            *(self.n, self.k, 52 - (self.n - 1).bit_length()),
            BLOCK=BLOCK,
            enable_fp_fusion=False,
            **self._weighted,
        )
