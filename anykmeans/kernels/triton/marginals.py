# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""The scores of `screen` with half the work on each: the two lowest by marginals, as whole numbers, of tiles the GPU fetches.

A row's scores have coordinates: the tile, and within it a run of lanes, a place in the run, and one of eight neighbours, which is
how tensor cores spread a tile over threads. What is kept are marginals: the lowest of each run and of each place over all
tiles, and of each neighbour the lowest two of all tiles. The winner is where they are lowest; any other centroid differs from
it in one coordinate at least, so that the lowest marginal without the winner's is exactly the second lowest score.

Scores are made above zero by what is at least a row's squared length, so that their bits are whole numbers in the same order, of
which a GPU finds the lowest of three at once. Tiles come by descriptors (TMA), which compute capability 9.0 has.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from anykmeans.kernels.triton.screen import CHUNK as FEWEST
from anykmeans.kernels.triton.screen import DONE, HELD, OPEN, RUNNING, STATES, WORST, limits, push

ROWS = 128  # of a tile of scores
CHUNK = 128  # features of a product, where they are more than are held
FAR = tl.constexpr(0x7F000000)  # more than any score, as bits of float32


def lanes(k: int) -> int:
    """Return how many of `k` centroids a tile takes: twice as many, unless that is mostly padding."""
    return 64 if triton.cdiv(k, 128) * 128 > 1.1 * triton.cdiv(k, 64) * 64 else 128


def shape(lanes: int, width: int) -> dict[str, Any]:
    """Return what else the kernel is compiled for, with tiles of so many lanes of rows of so many features."""
    held = width <= HELD
    found = {"RUNS": lanes // 32, "STAGES": 2 if lanes == 128 else 3, "num_warps": 8}
    found |= {"HELD": held, "CHUNK": chunk(width)}
    # So that two blocks share a multiprocessor: one scores while the other looks for the lowest.
    return found | ({"maxnreg": 128} if width <= 128 else {})


def chunk(width: int) -> int:
    """Return how many of so many features are fetched at once."""
    return width if width <= HELD else CHUNK


def errors(d: int, width: int, lost: float) -> tuple[float, float]:
    """Return `gamma` and `rounding` of scores of `d` features: tensor cores lose as much of what products are added to.

    `lost` is what they lose of each term. What `resolve` loses, which adds products of fewer features, is no more.
    """
    gamma = (min(d, chunk(width)) + 16) * lost
    if width <= HELD:
        return 0.0, gamma + 4 * 2.0**-23
    return gamma, (triton.cdiv(d, FEWEST) + 4) * 2.0**-23


@triton.jit
def _place(marginal, lowest, length: tl.constexpr):
    """Return the first place (m,) of a marginal (m, length) where each row's `lowest` is: rows that tie are not proven."""
    places = tl.arange(0, length)[None, :]
    return tl.min(tl.where(marginal == lowest[:, None], places, length), 1)


@triton.jit
def _least_beside(marginal, at, length: tl.constexpr):
    """Return each row's lowest of a marginal (m, length) but for the place `at` (m,)."""
    mine = tl.arange(0, length)[None, :] == at[:, None]
    return tl.min(tl.where(mine, FAR, marginal), 1)


@triton.jit(do_not_specialize=["n", "d", "first", "stop", "room", "lengthwise"])
def screen_by_marginals(
    rows,
    centroids,
    lengths,
    state,
    norms,
    worst,
    labels,
    listed,
    open_to,
    n,
    d,
    slots,
    first,
    stop,
    room,
    lengthwise,
    gamma,
    rounding,
    times,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    CHUNK: tl.constexpr,
    RUNS: tl.constexpr,
    STAGES: tl.constexpr,
    HELD: tl.constexpr,
):
    """Write the labels of the rows from `first` to `stop`; list those not proven, and what they are `open_to`.

    `rows` and `centroids` describe float16 halves of all problems, end to end: `room` rows and `slots` centroids of each,
    these times -2. A score's product errs by at most `gamma` ``|y| |c|`` in its sum, and the score by `rounding` times
    ``|c|^2 + 2 |y| |c| + shift``. Rows of one CHUNK of features are HELD, and products added to the rest of the score in tensor cores; of
    more features they are fetched with each tile, and `times`, which is 1, hides from the compiler that it could do the same.
    """
    problem = tl.program_id(1).to(tl.int64)
    state += problem * STATES
    if tl.load(state + DONE) != RUNNING:
        return
    PLACES: tl.constexpr = LANES // 8 // RUNS
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = place < stop - first
    at = (first + place).to(tl.int64)
    lengths += problem * lengthwise
    norms += problem * slots
    length = tl.load(lengths + at, mask=valid, other=0.0)
    floor = tl.sqrt(d * 1.0) * 2.0**-12
    # Errors of a score are below 2^-7 |y| |c|, or as much of `floor`: with so much more it is above zero.
    shift = length * length * (1.0 + 2.0**-6) + floor * floor
    lanes = tl.arange(0, LANES)
    own = tl.program_id(1) * room + tl.program_id(0) * ROWS
    if HELD:
        a = rows.load([own, 0])
    of_run = tl.full((ROWS, RUNS, 8), FAR, tl.int32)
    of_place = tl.full((ROWS, PLACES, 8), FAR, tl.int32)
    one = tl.full((ROWS, 8), FAR, tl.int32)
    two = tl.full((ROWS, 8), FAR, tl.int32)
    tile = tl.zeros((ROWS, 8), tl.int32)
    begin = tl.program_id(1) * slots
    for base in tl.range(0, slots, LANES, num_stages=STAGES):
        score = tl.load(norms + base + lanes)[None, :] + shift[:, None]
        if HELD:
            score += tl.dot(a, centroids.load([begin + base, 0]).T)
        else:
            for feature in tl.range(0, d, CHUNK, num_stages=STAGES):
                part = rows.load([own, feature])
                score += times * tl.dot(part, centroids.load([begin + base, feature]).T)
        score = tl.reshape(score.to(tl.int32, bitcast=True), (ROWS, RUNS, PLACES, 8))
        runs = tl.min(score, 2)
        of_run = tl.minimum(of_run, runs)
        of_place = tl.minimum(of_place, tl.min(score, 1))
        least = tl.min(runs, 1)
        two = tl.minimum(two, tl.maximum(one, least))
        tile = tl.where(least < one, base, tile)
        one = tl.minimum(one, least)
    lowest = tl.min(one, 1)
    neighbour = _place(one, lowest, 8)
    of_run = tl.reshape(of_run, (ROWS, RUNS * 8))
    of_place = tl.reshape(of_place, (ROWS, PLACES * 8))
    run, spot = _place(of_run, lowest, RUNS * 8), _place(of_place, lowest, PLACES * 8)
    mine = tl.arange(0, 8)[None, :] == neighbour[:, None]
    label = tl.sum(tl.where(mine, tile, 0), 1)
    label += (run // 8) * (PLACES * 8) + (spot // 8) * 8 + neighbour
    runner = tl.minimum(
        _least_beside(of_run, run, RUNS * 8), _least_beside(of_place, spot, PLACES * 8)
    )
    runner = tl.minimum(runner, tl.min(two, 1)).to(tl.float32, bitcast=True) - shift
    lowest = lowest.to(tl.float32, bitcast=True) - shift
    tl.store(labels + problem * n + at, label, mask=valid)
    worst += problem * WORST
    farthest = tl.load(worst).to(tl.float32, bitcast=True)
    loss = tl.load(worst + 1).to(tl.float32, bitcast=True)
    error = tl.load(lengths + n + at, mask=valid, other=0.0) + length * (loss + gamma)
    limit = limits(lowest, length, error, floor, farthest, rounding, shift)
    lists = (state + OPEN, listed + problem * n, open_to + problem * n)
    push(at, limit, valid & ((runner > limit) == 0), *lists)
