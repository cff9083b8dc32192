# mypy: allow-untyped-defs, allow-untyped-calls
"""A kernel for Hopper alone, in Gluon: rows stay in shared memory, one warp fetches centroids, two warpgroups share each tile.

While one of them looks for its lowest scores, the other has the tensor cores. The lowest two are found as
`epilogues` does in MODE "places", of whole numbers. Of many features, for which the cache is too slow to bring rows anew with each tile as
the library's `screen` does, centroids pass by in pieces, and products are summed in tensor cores over 256 features at most.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

HELD = 256  # features up to which centroids are fetched whole, for 128 rows of a warpgroup; else for 64
PIECE = 64  # features of a piece of others
SUMMED = 4  # pieces that tensor cores add up
REGISTERS = (232, 24)  # of a thread of the second warpgroup, and of the warp that fetches
TILES = ((128, 4, 4), (64, 4, 2), (128, 3, 4), (64, 2, 2))
"""Centroids of a tile, pieces on their way, and the lines that lanes are in."""
WIDE = ((64, 3, 4), (64, 2, 4))
"""The same for more features."""


@gluon.jit
def fetch(
    x,
    c,
    norms,
    tiles,
    here,
    ROWS: gl.constexpr,
    N: gl.constexpr,
    S: gl.constexpr,
    PIECES: gl.constexpr,
    PIECE: gl.constexpr,
):
    """Fetch the rows, then centroids piece by piece as soon as there is room, with the last of a tile its norms."""
    x_here, c_here, n_here, x_ready, ready, empty, first = here
    mbarrier.expect(x_ready, 2 * ROWS * PIECES * PIECE * 2)
    for piece in gl.static_range(PIECES):
        tma.async_copy_global_to_shared(x, [first, piece * PIECE], x_ready, x_here.index(piece))
    flat: gl.constexpr = gl.BlockedLayout([N // 32], [32], [1], [0])
    lanes = gl.arange(0, N, layout=flat)
    for i in range(tiles):
        for piece in gl.static_range(PIECES):
            step = i * PIECES + piece
            at = step % S
            mbarrier.wait(empty.index(at), (step // S) & 1 ^ 1)
            mbarrier.expect(ready.index(at), N * PIECE * 2)
            tma.async_copy_global_to_shared(
                c, [i * N, piece * PIECE], ready.index(at), c_here.index(at)
            )
            if piece == PIECES - 1:
                n_here.index(at).store(gl.load(norms + i * N + lanes))
            mbarrier.arrive(ready.index(at), count=1)


@gluon.jit
def score(
    found,
    here,
    WHICH: gl.constexpr,
    ROWS: gl.constexpr,
    N: gl.constexpr,
    S: gl.constexpr,
    PIECES: gl.constexpr,
    SUMMED: gl.constexpr,
    J: gl.constexpr,
    L: gl.constexpr,
    MOST: gl.constexpr,
):
    """Score the rows of one warpgroup, and write what was found."""
    labels, gaps, n, tiles = found
    x_here, c_here, n_here, x_ready, ready, empty, first = here
    M: gl.constexpr = N // 8 // J
    acc = gl.full((ROWS, N), 0.0, gl.float32, layout=L)
    lines = gl.reshape(gl.full((ROWS, N), MOST, gl.int32, layout=L), (ROWS, J, M, 8))
    down = gl.min(lines, 2)
    along = gl.min(lines, 1)
    one = gl.min(down, 1)
    two = one
    tile = one * 0
    mbarrier.wait(x_ready, 0)
    for i in range(tiles):
        total = acc
        for piece in gl.static_range(PIECES):
            step = i * PIECES + piece
            at = step % S
            mbarrier.wait(ready.index(at), (step // S) & 1)
            acc = warpgroup_mma(
                x_here.index(piece).slice(WHICH * ROWS, ROWS),
                c_here.index(at).permute((1, 0)),
                acc,
                use_acc=piece % SUMMED != 0,
                is_async=True,
            )
            acc = warpgroup_mma_wait(0, deps=(acc,))
            if piece == PIECES - 1:
                norm = n_here.index(at).load(gl.SliceLayout(0, L))
            mbarrier.arrive(empty.index(at), count=1)
            if piece % SUMMED == SUMMED - 1 or piece == PIECES - 1:
                total = acc if piece < SUMMED else total + acc  # its first sum, or one more
        total += norm[None, :]
        lines = gl.reshape(total.to(gl.int32, bitcast=True), (ROWS, J, M, 8))
        low = gl.min(lines, 2)
        down = gl.minimum(down, low)
        along = gl.minimum(along, gl.min(lines, 1))
        low = gl.min(low, 1)
        two = gl.minimum(two, gl.maximum(one, low))
        tile = gl.where(low < one, i * N, tile)
        one = gl.minimum(one, low)
    finish(labels, gaps, down, along, one, two, tile, first + WHICH * ROWS, n, ROWS, J, M, MOST)


@gluon.jit
def finish(
    labels,
    gaps,
    down,
    along,
    one,
    two,
    tile,
    first,
    n,
    ROWS: gl.constexpr,
    J: gl.constexpr,
    M: gl.constexpr,
    MOST: gl.constexpr,
):
    """Write the labels and gaps of the rows, each of which a thread has to itself from here on."""
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [4, 1], [1, 0])
    row: gl.constexpr = gl.SliceLayout(1, flat)
    one = gl.convert_layout(one, flat)
    two = gl.convert_layout(two, flat)
    tile = gl.convert_layout(tile, flat)
    column = gl.arange(0, 8, layout=gl.SliceLayout(0, flat))
    lowest = gl.min(one, 1)
    last = gl.min(gl.where(one == lowest[:, None], column[None, :], 8), 1)
    base = gl.max(gl.where(column[None, :] == last[:, None], tile, 0), 1)
    runner = gl.min(two, 1)
    j, other = others(down, lowest, row, J, MOST)
    runner = gl.minimum(runner, other)
    i, other = others(along, lowest, row, M, MOST)
    runner = gl.minimum(runner, other)
    label = base + j // 8 * (M * 8) + i // 8 * 8 + last
    rows = first + gl.arange(0, ROWS, layout=row)
    gl.store(labels + rows, label, mask=rows < n)
    gap = runner.to(gl.float32, bitcast=True) - lowest.to(gl.float32, bitcast=True)
    gl.store(gaps + rows, gap, mask=rows < n)


@gluon.jit
def others(minima, lowest, row: gl.constexpr, MANY: gl.constexpr, MOST: gl.constexpr):
    """Return the place of the `lowest` among minima (rows, MANY, 8), the first of equals, and the lowest of the others."""
    L: gl.constexpr = gl.BlockedLayout([1, MANY, 8], [32, 1, 1], [4, 1, 1], [2, 1, 0])
    minima = gl.convert_layout(minima, L)
    here = gl.convert_layout(lowest, gl.SliceLayout(1, gl.SliceLayout(2, L)))
    line = gl.arange(0, MANY, layout=gl.SliceLayout(0, gl.SliceLayout(2, L)))
    column = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(1, L)))
    places = line[None, :, None] * 8 + column[None, None, :]
    mine = gl.where(minima == here[:, None, None], places, 1 << 20)
    at = gl.min(gl.min(mine, 2), 1)
    rest = gl.where(places == at[:, None, None], MOST, minima)
    return gl.convert_layout(at, row), gl.convert_layout(gl.min(gl.min(rest, 2), 1), row)


@gluon.jit
def screen_warpgroups(
    x,
    c,
    norms,
    labels,
    gaps,
    n,
    tiles,
    ROWS: gl.constexpr,
    N: gl.constexpr,
    S: gl.constexpr,
    PIECES: gl.constexpr,
    PIECE: gl.constexpr,
    SUMMED: gl.constexpr,
    J: gl.constexpr,
    REGISTERS: gl.constexpr,
    MOST: gl.constexpr,
):
    """Write what `epilogues.screen` does, of 2 ROWS rows a block; S pieces of N centroids are on their way."""
    L: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, N, 16]
    )
    x_here = gl.allocate_shared_memory(gl.float16, [PIECES, 2 * ROWS, PIECE], x.layout)
    c_here = gl.allocate_shared_memory(gl.float16, [S, N, PIECE], c.layout)
    n_here = gl.allocate_shared_memory(gl.float32, [S, N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    x_ready = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [S, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [S, 1], mbarrier.MBarrierLayout())
    mbarrier.init(x_ready, count=1)
    for i in gl.static_range(S):
        mbarrier.init(ready.index(i), count=2)  # the copy of centroids, and the norms
        mbarrier.init(empty.index(i), count=2)  # both warpgroups
    fence_async_shared()
    first = gl.program_id(0) * (2 * ROWS)
    here = (x_here, c_here, n_here, x_ready, ready, empty, first)
    found = (labels, gaps, n, tiles)
    gl.warp_specialize(
        [
            (score, (found, here, 0, ROWS, N, S, PIECES, SUMMED, J, L, MOST)),
            (score, (found, here, 1, ROWS, N, S, PIECES, SUMMED, J, L, MOST)),
            (fetch, (x, c, norms, tiles, here, ROWS, N, S, PIECES, PIECE)),
        ],
        [4, 1],
        [REGISTERS[0], REGISTERS[1]],
    )


def launch(x, c, norms, labels, gaps, N, S, J):
    """Launch it for rows `x` (n, d) and centroids `c` (slots, d) times -2, both float16, of whole pieces of features."""
    n, d = x.shape
    own, piece = (128, d) if d <= HELD else (64, PIECE)
    rows, lanes = (
        gl.NVMMASharedLayout.get_default_for([many, piece], gl.float16) for many in (2 * own, N)
    )
    return screen_warpgroups[(triton.cdiv(n, 2 * own),)](
        TensorDescriptor.from_tensor(x, [2 * own, piece], rows),
        TensorDescriptor.from_tensor(c, [N, piece], lanes),
        *(norms, labels, gaps, n, c.shape[0] // N),
        ROWS=own,
        N=N,
        S=S,
        PIECES=d // piece,
        PIECE=piece,
        SUMMED=SUMMED,
        J=J,
        REGISTERS=REGISTERS,
        MOST=0x7F000000,
        num_warps=4,
        maxnreg=168,
    )
