# mypy: allow-untyped-defs, allow-untyped-calls
"""Small kernels, each for one number of the model in docs/gpu.md."""

import triton
import triton.language as tl


@triton.jit
def nothing(state):
    """Read a flag and end, as a block does of a problem that is done."""
    if tl.load(state) != 0:
        tl.store(state + 1 + tl.program_id(0) % 8, 1)


@triton.jit
def scattered(to, sums, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Add whole numbers of 64 bits to the `sums` (k, columns) of clusters `to` (n,), as rows that move are added."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    label = tl.load(to + rows).to(tl.int64)
    for begin in range(0, columns, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        value = (rows[:, None] + at[None, :]).to(tl.int64)
        there = (at < columns)[None, :]
        tl.atomic_add(
            sums + label[:, None] * columns + at[None, :], value, mask=there, sem="relaxed"
        )


@triton.jit
def streamed(x, out, n, times, BLOCK: tl.constexpr):
    """Read `x` (n,) `times` times in every block, each from another place on, as centroids are read from the cache."""
    total = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0) * BLOCK * 7
    for _ in range(times):
        for begin in range(0, n, BLOCK):
            at = (begin + first) % n + tl.arange(0, BLOCK)
            total += tl.load(x + at, cache_modifier=".cg")
    tl.store(out + tl.program_id(0), tl.sum(total, 0))


@triton.jit
def products(a, b, out, n, ROWS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """Write the products (m, n), float32, of rows `a` (m, WIDTH) and `b` (n, WIDTH), as tensor cores add them."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lanes = tl.program_id(1) * LANES + tl.arange(0, LANES)
    cols = tl.arange(0, WIDTH)
    x = tl.load(a + rows[:, None] * WIDTH + cols[None, :])
    y = tl.load(b + lanes[None, :] * WIDTH + cols[:, None])
    tl.store(out + rows[:, None].to(tl.int64) * n + lanes[None, :], tl.dot(x, y))
