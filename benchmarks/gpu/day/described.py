# mypy: allow-untyped-defs, allow-untyped-calls
"""The lowest two scores by lines of lanes, with rows and centroids fetched by descriptors (TMA on a Hopper)."""

import triton
import triton.language as tl

from benchmarks.gpu.day.epilogues import MOST, of_places, placed, written

TILES = [
    {
        "ROWS": rows,
        "LANES": lanes,
        "J": j,
        "STAGES": stages,
        "num_warps": warps,
        "maxnreg": registers,
    }
    for rows, lanes, j, stages, warps, registers in (
        (128, 64, 2, 3, 8, None),
        (128, 128, 4, 2, 8, 128),
        (128, 128, 4, 3, 8, None),
        (128, 128, 4, 2, 4, None),
        (64, 256, 4, 2, 4, None),
        (256, 64, 2, 3, 8, None),
        (128, 256, 4, 2, 8, None),
        (64, 128, 4, 3, 4, None),
    )
]
"""Tiles to try, and how a block is made: two blocks a multiprocessor, or one with more lanes a product."""


@triton.jit
def screen_described(
    x,
    c,
    norms,
    labels,
    gaps,
    n,
    slots,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
    J: tl.constexpr,
    STAGES: tl.constexpr,
):
    """As `epilogues.screen` with MODE "places" and WHOLE; `x` and `c` are descriptors."""
    M: tl.constexpr = LANES // 8 // J
    lanes = tl.arange(0, LANES)
    first = tl.program_id(0) * ROWS
    a = x.load([first, 0])
    down = tl.full((ROWS, J, 8), MOST, tl.int32)
    along = tl.full((ROWS, M, 8), MOST, tl.int32)
    one = tl.full((ROWS, 8), MOST, tl.int32)
    two = tl.full((ROWS, 8), MOST, tl.int32)
    tile = tl.zeros((ROWS, 8), tl.int32)
    for base in tl.range(0, slots, LANES, num_stages=STAGES):
        b = c.load([base, 0])
        score = tl.load(norms + base + lanes)[None, :] + tl.dot(a, b.T)
        score = score.to(tl.int32, bitcast=True)
        down, along, one, two, tile = placed(score, down, along, one, two, tile, base, ROWS, J, M)
    lowest, runner, label = of_places(down, along, one, two, tile, MOST, ROWS, J, M)
    written(labels, gaps, first + tl.arange(0, ROWS), n, label, lowest, runner, True)


def launch(x, c, norms, labels, gaps, **how):
    """Launch it for rows `x` (n, d) and centroids `c` (slots, d) times -2, both float16."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    n, d = x.shape
    rows = TensorDescriptor.from_tensor(x, [how["ROWS"], d])
    centroids = TensorDescriptor.from_tensor(c, [how["LANES"], d])
    return screen_described[(triton.cdiv(n, how["ROWS"]),)](
        rows, centroids, norms, labels, gaps, n, c.shape[0], num_stages=how["STAGES"], **how
    )
