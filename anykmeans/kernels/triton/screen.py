# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""The fused pass: scores in half precision on tensor cores, the two lowest of a row, and what they prove.

Rows and centroids are shifted and scaled by a power of two, rounded to float16, and what that leaves of each
is measured. So a row's scores err by no more than its own residual and the centroids' say; ``docs/proofs.md``
has the proof. Rows that are not proven go to a list, each with the score up to which a centroid may be the nearest,
for `resolve`.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROWS, LANES = 128, 64  # of a tile of scores
FULL = 128  # centroids up to which the last bits of a score have room for their number
HELD = 256  # features up to which a tile of rows is read once for all centroids
CHUNK = 64  # features of a product, where they are more
LARGEST = 12  # the binary exponent of the largest coordinate: squares of 2^20 features fit float32
# Columns of the table of a problem, float64: what a coordinate is multiplied by in the frame and then for
# scores, the grid's step, the relative difference of a tie, and the shift at which to stop.
COLUMNS = tl.constexpr(5)
UNIT, SCREEN, STEP, TIE, TOL = (tl.constexpr(i) for i in range(5))
# Columns of its state, int64: whether it is done, passes made, whether a cluster is empty, the most passes, and
# rows listed to be resolved.
STATES = tl.constexpr(5)
DONE, PASSES, EMPTY, MOST, OPEN = (tl.constexpr(i) for i in range(5))
RUNNING, STOPPED, VACANT = (tl.constexpr(i) for i in range(3))  # what DONE says
# Columns of the worst that rounding does to its centroids, float32 in the bits of int32: see `prepare`.
WORST = tl.constexpr(2)


def errors(d: int, width: int, chunk: int, lost: float, mask: int) -> tuple[float, float]:
    """Return `gamma` and `rounding` of scores of `d` features, by products of `chunk` of them, whose last bits, those of `mask`, are no part of them.

    `lost` is what tensor cores lose of each term. What `resolve` loses, which may add products of CHUNK, is no more.
    """
    parts = width // min(chunk, CHUNK)
    return (min(d, chunk) + 16) * lost, (parts + 2 + mask) * 2.0**-23


@triton.jit(do_not_specialize=["k", "d", "slots"])
def prepare(
    c,
    offset,
    table,
    state,
    high,
    norms,
    worst,
    k,
    d,
    slots,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Write centroids (slots, WIDTH) times -2 as float16 `high`, their squared norms, and what is lost at most.

    `worst` takes the largest of: a norm, and what rounding takes of a centroid in relation to its norm, or to
    where float16 has no more relative precision; as the bits of float32.
    """
    problem = tl.program_id(1).to(tl.int64)
    state += problem * STATES
    if tl.load(state + DONE) != RUNNING:
        return
    table += problem * COLUMNS
    unit, scale = tl.load(table + UNIT), tl.load(table + SCREEN)
    c += (problem * 2 + tl.load(state + PASSES) % 2) * k * d
    offset += problem * d
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    norm = tl.zeros((ROWS,), tl.float64)
    rest = tl.zeros((ROWS,), tl.float64)
    out = (problem * slots + rows[:, None]) * WIDTH
    for start in range(0, WIDTH, CHUNK):
        cols = start + tl.arange(0, CHUNK)
        there = (rows[:, None] < k) & (cols[None, :] < d)
        at = tl.load(c + rows[:, None] * d + cols[None, :], mask=there, other=0.0).to(tl.float64)
        off = tl.load(offset + cols, mask=cols < d, other=0.0)
        near = tl.where(there, (at * unit - off[None, :]) * scale, 0.0)
        half = near.to(tl.float32).to(tl.float16)
        left = near - half.to(tl.float64)
        norm += tl.sum(near * near, 1)
        rest += tl.sum(left * left, 1)
        tl.store(high + out + cols[None, :], half * -2)  # exactly
    tl.store(norms + problem * slots + rows, tl.where(rows < k, norm, 3e38).to(tl.float32))
    length = tl.sqrt(norm)
    floor = tl.maximum(length, tl.sqrt(d * 1.0) * 2.0**-12)
    worst += problem * WORST
    up = 1.0 + 2.0**-20
    bits = (tl.max(length, 0) * up).to(tl.float32).to(tl.int32, bitcast=True)
    tl.atomic_max(worst, bits, sem="relaxed")
    bits = (tl.max(tl.sqrt(rest) / floor, 0) * up).to(tl.float32).to(tl.int32, bitcast=True)
    tl.atomic_max(worst + 1, bits, sem="relaxed")


@triton.jit
def centred(x, rows, cols, valid, d, across, along, offset, unit, scale, WIDE: tl.constexpr):
    """Return rows of `x` less the offset, scaled, float32: one rounding, or two where they are wide."""
    there = valid[:, None] & (cols[None, :] < d)
    at = rows[:, None] * across + cols[None, :].to(tl.int64) * along
    values = tl.load(x + at, mask=there, other=0)
    off = tl.load(offset + cols, mask=cols < d, other=0.0)
    if WIDE:
        return ((values.to(tl.float64) * unit - off[None, :]) * scale).to(tl.float32)
    return values.to(tl.float32) * (unit * scale).to(tl.float32) - (off[None, :] * scale).to(
        tl.float32
    )


@triton.jit(do_not_specialize=["n", "d", "room", "first", "stop"])
def round_rows(
    x,
    offset,
    table,
    halves,
    lengths,
    n,
    d,
    room,
    first,
    stop,
    apart,
    across,
    along,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDE: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Write rows from `first` to `stop` as float16 `halves` (room, WIDTH), if they are to be kept.

    And into `lengths` (2, n) how long they, and what is lost of them, are at most.
    """
    problem = tl.program_id(1).to(tl.int64)
    x += problem * apart
    offset += problem * d
    table += problem * COLUMNS
    unit, scale = tl.load(table + UNIT), tl.load(table + SCREEN)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = place < stop - first
    rows = (first + place).to(tl.int64)
    norm = tl.zeros((ROWS,), tl.float32)
    rest = tl.zeros((ROWS,), tl.float32)
    for begin in range(0, WIDTH, CHUNK):
        cols = begin + tl.arange(0, CHUNK)
        y = centred(x, rows, cols, valid, d, across, along, offset, unit, scale, WIDE)
        half = y.to(tl.float16)
        left = y - half.to(tl.float32)
        norm += tl.sum(y * y, 1)
        rest += tl.sum(left * left, 1)
        if KEEP:
            at = (problem * room + place[:, None]) * WIDTH + cols[None, :]
            tl.store(halves + at, half, mask=valid[:, None])
    up = 1.0 + (d + 64.0) * 2.0**-22  # what float32 may have lost in sums
    length = tl.sqrt(norm) * up
    lengths += problem * 2 * n
    tl.store(lengths + rows, length, mask=valid)
    tl.store(lengths + n + rows, tl.sqrt(rest) * up + length * 2.0**-23 + 2.0**-60, mask=valid)


@triton.jit
def limits(lowest, length, error, floor, farthest, rounding, shift):
    """Return up to which score a centroid may be a row's nearest, of its `lowest` score: see ``docs/proofs.md``.

    The product of a row and a centroid of norm C errs by at most `error` times C, or `floor` if that is more, and the score
    besides by `rounding` times ``C^2 + 2 |y| C + shift``.
    """
    # How far the row's own centroid is at most, and so those that may be nearer from the origin.
    q = error + 2 * length * rounding
    squared = length * length + lowest + 2 * q * (length + floor)
    squared += 2 * rounding * (length * length + shift)
    far = (q + tl.sqrt(q * q + tl.maximum(squared, 0.0))) * (1.0 + 2.0**-10 + 2 * rounding)
    reach = tl.minimum(farthest, (length + far) * (1.0 + 2.0**-20) + 2.0**-60)
    most = 2 * tl.maximum(reach, floor) * error
    most += rounding * (reach * reach + 2 * length * reach + shift)
    limit = lowest + (2.02 * most + far * far * 2.0**-40)
    return limit + tl.abs(limit) * 2.0**-22


@triton.jit
def push(rows, limit, unproven, count, listed, limits):
    """Append the `rows` that are `unproven`, and their limits, to those `listed`."""
    found = tl.sum(unproven.to(tl.int32), 0)
    before = tl.zeros((), tl.int64)
    if found > 0:
        before = tl.atomic_add(count, found.to(tl.int64), sem="relaxed")
    slot = before + tl.cumsum(unproven.to(tl.int32), 0) - 1
    tl.store(listed + slot, rows.to(tl.int32), mask=unproven)
    tl.store(limits + slot, limit, mask=unproven)


@triton.jit
def _tagged(score, tag, mask):
    """Return scores with their last bits, those of `mask`, replaced by `tag`."""
    return ((score.to(tl.int32, bitcast=True) & ~mask) | tag).to(tl.float32, bitcast=True)


@triton.jit
def _two_lowest(best, second, tile, lanes):
    """Return each row's lowest and second lowest score and the number of the lowest, of those of its lanes."""
    lowest = tl.min(best, 1)
    lane = tl.argmin(best, 1)
    mine = lanes[None, :] == lane[:, None]
    label = tl.sum(tl.where(mine, tile, 0), 1) + lane
    runner = tl.minimum(tl.min(second, 1), tl.min(tl.where(mine, float("inf"), best), 1))
    return lowest, runner, label


@triton.jit(do_not_specialize=["n", "k", "d", "first", "stop", "lengthwise", "mask"])
def screen(
    halves,
    lengths,
    state,
    high,
    norms,
    worst,
    labels,
    listed,
    open_to,
    n,
    k,
    d,
    slots,
    first,
    stop,
    apart,
    lengthwise,
    across,
    mask,
    gamma,
    rounding,
    times,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    EXACT: tl.constexpr,
    FULL: tl.constexpr,
    ONE: tl.constexpr,
):
    """Write the labels of the rows from `first` to `stop`, whose `halves` are given; list those not proven, and what they are `open_to`.

    A score's product errs by at most `gamma` ``|y| |c|`` in its sum, and the score by `rounding` times
    ``|c|^2 + 2 |y| |c|``: its last bits, those of `mask`, say which tile of centroids it is of, which saves a
    comparison and a register for each; or, if FULL, which centroid. If there is but ONE tile, scores are not compared twice.
    `times` is 1, which the compiler does not know: it would add products up with the norms in tensor cores.
    """
    problem = tl.program_id(1).to(tl.int64)
    state += problem * STATES
    if tl.load(state + DONE) != RUNNING:
        return
    halves += problem * apart
    norms += problem * slots
    high += problem * slots * WIDTH
    lanes = tl.arange(0, LANES)
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = place < stop - first
    # Rows beyond the last are the last once more: no mask, which would keep loads from being vectors.
    inside = halves + tl.minimum(place, stop - first - 1)[:, None].to(tl.int64) * across
    best = tl.full((ROWS, LANES), 3e38, tl.float32)
    second = tl.full((ROWS, LANES), 3e38, tl.float32)
    cols = tl.arange(0, CHUNK)
    if ONE:
        a = tl.load(inside + cols[None, :])
        b = tl.load(high + lanes[None, :] * WIDTH + cols[:, None])
        best = tl.load(norms + lanes)[None, :] + times * tl.dot(a, b)
        best = _tagged(best, lanes[None, :], mask)
    elif WIDTH == CHUNK:
        a = tl.load(inside + cols[None, :])
        for base in range(0, slots, LANES):
            b = tl.load(
                high + tl.cast(base, tl.int64) * WIDTH + lanes[None, :] * WIDTH + cols[:, None]
            )
            score = tl.load(norms + base + lanes)[None, :] + times * tl.dot(a, b)
            score = _tagged(score, base + lanes[None, :] if FULL else base // LANES, mask)
            if EXACT:
                second = tl.minimum(second, tl.maximum(best, score))
            best = tl.minimum(best, score)
    else:
        for base in range(0, slots, LANES):
            score = tl.zeros((ROWS, LANES), tl.float32) + tl.load(norms + base + lanes)[None, :]
            for begin in range(0, WIDTH, CHUNK):
                a = tl.load(inside + begin + cols[None, :])
                b = tl.load(
                    high
                    + tl.cast(base, tl.int64) * WIDTH
                    + lanes[None, :] * WIDTH
                    + begin
                    + cols[:, None]
                )
                score += times * tl.dot(a, b)
            score = _tagged(score, base + lanes[None, :] if FULL else base // LANES, mask)
            if EXACT:
                second = tl.minimum(second, tl.maximum(best, score))
            best = tl.minimum(best, score)
    if FULL:
        lowest = tl.min(best, 1)
        label = lowest.to(tl.int32, bitcast=True) & mask
        runner = tl.min(tl.where(best == lowest[:, None], 3e38, best), 1)
        if not ONE:
            runner = tl.minimum(runner, tl.min(second, 1))
    else:
        tile = (best.to(tl.int32, bitcast=True) & mask) * LANES
        lowest, runner, label = _two_lowest(best, second, tile, lanes)
    rows = (first + place).to(tl.int64)
    tl.store(labels + problem * n + rows, label, mask=valid)
    if EXACT:
        lengths += problem * lengthwise
        length = tl.load(lengths + rows, mask=valid, other=0.0)
        residual = tl.load(lengths + n + rows, mask=valid, other=0.0)
        worst += problem * WORST
        farthest = tl.load(worst).to(tl.float32, bitcast=True)
        loss = tl.load(worst + 1).to(tl.float32, bitcast=True)
        floor = tl.sqrt(d * 1.0) * 2.0**-12
        error = residual + length * (loss + gamma)
        limit = limits(lowest, length, error, floor, farthest, rounding, 0.0)
        lists = (state + OPEN, listed + problem * n, open_to + problem * n)
        push(rows, limit, valid & ((runner > limit) == 0), *lists)
