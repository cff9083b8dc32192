# mypy: allow-untyped-defs, allow-untyped-calls
"""Ways to find the lowest two scores of a row, for tiles of any shape: candidates for the kernel `screen`.

The scores of a row have two coordinates, the tile of centroids and the lane within it. Whatever is not the
lowest differs from it in one of them. So the second lowest is the lower of the second lowest tile, each
counted by its minimum, and of the second lowest lane; nothing has to be told apart while tiles are scored.

Centroids times -2 and norms so large that all scores are positive make whole numbers of scores, in the
same order, for which some devices have a minimum of three.
"""

import triton
import triton.language as tl

HALF_FLOAT: tl.constexpr = tl.constexpr(3e38)
MOST: tl.constexpr = tl.constexpr(0x7F000000)  # in the bits of a float32, near its largest


@triton.jit
def screen(
    x,
    c,
    norms,
    labels,
    gaps,
    n,
    slots,
    mask,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    WIDTH: tl.constexpr,
    MODE: tl.constexpr,
    WHOLE: tl.constexpr,
    STAGES: tl.constexpr,
    J: tl.constexpr,
):
    """Write the `labels` (n,) of rows `x` (n, WIDTH) among centroids `c` (slots, WIDTH), and the `gaps` to the next score.

    MODE is how: "tags" in the last bits of a score say of which tile it is, as in the library's own; "lowest" has
    those and no second lowest; "lanes" keeps the lowest score of each lane; "places" has lanes in J times M and
    keeps the lowest of each line of those; "parts" counts a tile as J tiles. Only the last three can be WHOLE.
    """
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, WIDTH)
    a = tl.load(x + tl.minimum(place, n - 1)[:, None].to(tl.int64) * WIDTH + cols[None, :])
    most = MOST if WHOLE else HALF_FLOAT
    kind: tl.constexpr = tl.int32 if WHOLE else tl.float32
    if MODE == "tags" or MODE == "lowest":
        best = tl.full((ROWS, LANES), most, kind)
        second = tl.full((ROWS, LANES), most, kind)
        for base in tl.range(0, slots, LANES, num_stages=STAGES):
            score = scored(a, c, norms, base, LANES, WIDTH, WHOLE)
            score = tagged(score, base // LANES, mask)
            if MODE == "tags":
                second = tl.minimum(second, tl.maximum(best, score))
            best = tl.minimum(best, score)
        tile = (best.to(tl.int32, bitcast=True) & mask) * LANES
        lowest, lane, runner = two_of(best, most, LANES)
        label = tl.sum(tl.where(tl.arange(0, LANES)[None, :] == lane[:, None], tile, 0), 1) + lane
        runner = tl.minimum(runner, tl.min(second, 1))
    if MODE == "lanes":
        best = tl.full((ROWS, LANES), most, kind)
        one = tl.full((ROWS, 8), most, kind)
        two = tl.full((ROWS, 8), most, kind)
        tile = tl.zeros((ROWS, 8), tl.int32)
        for base in tl.range(0, slots, LANES, num_stages=STAGES):
            score = scored(a, c, norms, base, LANES, WIDTH, WHOLE)
            best = tl.minimum(best, score)
            low = tl.min(tl.reshape(score, (ROWS, LANES // 8, 8)), 1)
            one, two, tile = lowest_two(low, one, two, tile, base)
        lowest, lane, runner = two_of(best, most, LANES)
        mine = tl.arange(0, 8)[None, :] == (lane % 8)[:, None]
        label = tl.sum(tl.where(mine, tile, 0), 1) + lane
        runner = tl.minimum(runner, tl.min(two, 1))
    if MODE == "places":
        M: tl.constexpr = LANES // 8 // J
        down = tl.full((ROWS, J, 8), most, kind)
        along = tl.full((ROWS, M, 8), most, kind)
        one = tl.full((ROWS, 8), most, kind)
        two = tl.full((ROWS, 8), most, kind)
        tile = tl.zeros((ROWS, 8), tl.int32)
        for base in tl.range(0, slots, LANES, num_stages=STAGES):
            score = scored(a, c, norms, base, LANES, WIDTH, WHOLE)
            down, along, one, two, tile = placed(
                score, down, along, one, two, tile, base, ROWS, J, M
            )
        lowest, runner, label = of_places(down, along, one, two, tile, most, ROWS, J, M)
    if MODE == "parts":
        PART: tl.constexpr = LANES // J
        best = tl.full((ROWS, PART), most, kind)
        one = tl.full((ROWS, J, 8), most, kind)
        two = tl.full((ROWS, J, 8), most, kind)
        tile = tl.zeros((ROWS, J, 8), tl.int32)
        for base in tl.range(0, slots, LANES, num_stages=STAGES):
            score = scored(a, c, norms, base, LANES, WIDTH, WHOLE)
            best = tl.minimum(best, tl.min(tl.reshape(score, (ROWS, J, PART)), 1))
            low = tl.min(tl.reshape(score, (ROWS, J, PART // 8, 8)), 2)
            one, two, tile = lowest_two(low, one, two, tile, base)
        lowest, at, runner = two_of(tl.reshape(one, (ROWS, J * 8)), most, J * 8)
        _, lane, other = two_of(best, most, PART)
        mine = tl.arange(0, J * 8)[None, :] == at[:, None]
        label = tl.sum(tl.where(mine, tl.reshape(tile, (ROWS, J * 8)), 0), 1) + at // 8 * PART
        label += lane
        runner = tl.minimum(tl.minimum(runner, other), tl.min(tl.reshape(two, (ROWS, J * 8)), 1))
    written(labels, gaps, place, n, label, lowest, runner, WHOLE)


@triton.jit
def scored(a, c, norms, base, LANES: tl.constexpr, WIDTH: tl.constexpr, WHOLE: tl.constexpr):
    """Return the scores of rows `a` (rows, WIDTH) for the tile of centroids that begins at `base`."""
    lanes = tl.arange(0, LANES)
    cols = tl.arange(0, WIDTH)
    b = tl.load(c + tl.cast(base, tl.int64) * WIDTH + lanes[None, :] * WIDTH + cols[:, None])
    norm = tl.load(norms + base + lanes)[None, :]
    if WHOLE:
        return (norm + tl.dot(a, b)).to(tl.int32, bitcast=True)
    else:  # noqa: RET505 - a branch of a constant: only one of the two is compiled
        return norm - 2.0 * tl.dot(a, b)


@triton.jit
def tagged(score, tag, mask):
    """Return scores with their last bits, those of `mask`, replaced by `tag`."""
    return ((score.to(tl.int32, bitcast=True) & ~mask) | tag).to(tl.float32, bitcast=True)


@triton.jit
def lowest_two(low, one, two, tile, base):
    """Return the lowest two with one more, and the tile of the lowest."""
    two = tl.minimum(two, tl.maximum(one, low))
    tile = tl.where(low < one, base, tile)
    return tl.minimum(one, low), two, tile


@triton.jit
def placed(
    score,
    down,
    along,
    one,
    two,
    tile,
    base,
    ROWS: tl.constexpr,
    J: tl.constexpr,
    M: tl.constexpr,
):
    """Return the minima of lanes by line, down and along, and the lowest two tiles, with one tile more."""
    lines = tl.reshape(score, (ROWS, J, M, 8))
    low = tl.min(lines, 2)
    down = tl.minimum(down, low)
    along = tl.minimum(along, tl.min(lines, 1))
    one, two, tile = lowest_two(tl.min(low, 1), one, two, tile, base)
    return down, along, one, two, tile


@triton.jit
def of_places(
    down,
    along,
    one,
    two,
    tile,
    most,
    ROWS: tl.constexpr,
    J: tl.constexpr,
    M: tl.constexpr,
):
    """Return the lowest score, the next, and the number of the centroid of the lowest."""
    lowest = tl.min(one, 1)
    last = tl.argmin(one, 1)
    _, j, runner = two_of(tl.reshape(down, (ROWS, J * 8)), most, J * 8)
    _, i, other = two_of(tl.reshape(along, (ROWS, M * 8)), most, M * 8)
    mine = tl.arange(0, 8)[None, :] == last[:, None]
    label = tl.sum(tl.where(mine, tile, 0), 1) + (j // 8) * (M * 8) + (i // 8) * 8 + last
    return lowest, tl.minimum(tl.minimum(runner, other), tl.min(two, 1)), label


@triton.jit
def two_of(scores, most, MANY: tl.constexpr):
    """Return the lowest of scores (rows, MANY), its place, and the lowest of the others."""
    at = tl.argmin(scores, 1)
    mine = tl.arange(0, MANY)[None, :] == at[:, None]
    return tl.min(scores, 1), at, tl.min(tl.where(mine, most, scores), 1)


@triton.jit
def written(labels, gaps, place, n, label, lowest, runner, WHOLE: tl.constexpr):
    """Write what was found of the rows."""
    if WHOLE:
        lowest = lowest.to(tl.float32, bitcast=True)
        runner = runner.to(tl.float32, bitcast=True)
    tl.store(labels + place, label, mask=place < n)
    tl.store(gaps + place, runner - lowest, mask=place < n)
