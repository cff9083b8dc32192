# mypy: allow-untyped-defs, allow-untyped-calls
"""A kernel for Hopper alone, in Gluon, for rows of many features: 128 of them stay in shared memory, pieces of centroids pass by.

What `screen` does there is fetch rows anew with each tile, for which the cache is too slow. One warp fetches; two warpgroups of
64 rows each share every piece. Products are summed in tensor cores over 256 features at most.
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

from benchmarks.gpu.day.warpgroups import finish

ROWS = 64  # of a warpgroup
PIECE = 64  # features
SUMMED = 4  # pieces that tensor cores add up
REGISTERS = (232, 24)  # of a thread of the second warpgroup, and of the warp that fetches
TILES = ((64, 3, 4), (64, 2, 4))
"""Centroids of a tile, pieces on their way, and the lines that lanes are in."""


@gluon.jit
def fetch(
    x,
    c,
    norms,
    x_here,
    c_here,
    n_here,
    x_ready,
    ready,
    empty,
    first,
    tiles,
    ROWS: gl.constexpr,
    N: gl.constexpr,
    S: gl.constexpr,
    PIECES: gl.constexpr,
    PIECE: gl.constexpr,
):
    """Fetch the rows, then centroids piece by piece as soon as there is room, with the last of a tile its norms."""
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
    labels,
    gaps,
    x_here,
    c_here,
    n_here,
    x_ready,
    ready,
    empty,
    first,
    n,
    tiles,
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
        total = gl.full((ROWS, N), 0.0, gl.float32, layout=L)
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
                total += norm[None, :]
            mbarrier.arrive(empty.index(at), count=1)
            if piece % SUMMED == SUMMED - 1 or piece == PIECES - 1:
                total += acc
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
def screen_held(
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
    gl.warp_specialize(
        [
            (
                score,
                (
                    labels,
                    gaps,
                    x_here,
                    c_here,
                    n_here,
                    x_ready,
                    ready,
                    empty,
                    first,
                    n,
                    tiles,
                    0,
                    ROWS,
                    N,
                    S,
                    PIECES,
                    SUMMED,
                    J,
                    L,
                    MOST,
                ),
            ),
            (
                score,
                (
                    labels,
                    gaps,
                    x_here,
                    c_here,
                    n_here,
                    x_ready,
                    ready,
                    empty,
                    first,
                    n,
                    tiles,
                    1,
                    ROWS,
                    N,
                    S,
                    PIECES,
                    SUMMED,
                    J,
                    L,
                    MOST,
                ),
            ),
            (
                fetch,
                (
                    x,
                    c,
                    norms,
                    x_here,
                    c_here,
                    n_here,
                    x_ready,
                    ready,
                    empty,
                    first,
                    tiles,
                    ROWS,
                    N,
                    S,
                    PIECES,
                    PIECE,
                ),
            ),
        ],
        [4, 1],
        [REGISTERS[0], REGISTERS[1]],
    )


def launch(x, c, norms, labels, gaps, N, S, J):
    """Launch it for rows `x` (n, d) and centroids `c` (slots, d) times -2, both float16, of whole pieces of features."""
    n, d = x.shape
    rows, lanes = (
        gl.NVMMASharedLayout.get_default_for([many, PIECE], gl.float16) for many in (2 * ROWS, N)
    )
    return screen_held[(triton.cdiv(n, 2 * ROWS),)](
        TensorDescriptor.from_tensor(x, [2 * ROWS, PIECE], rows),
        TensorDescriptor.from_tensor(c, [N, PIECE], lanes),
        *(norms, labels, gaps, n, c.shape[0] // N),
        ROWS=ROWS,
        N=N,
        S=S,
        PIECES=d // PIECE,
        PIECE=PIECE,
        SUMMED=SUMMED,
        J=J,
        REGISTERS=REGISTERS,
        MOST=0x7F000000,
        num_warps=4,
        maxnreg=168,
    )
