"""The brute-force floor: what the machine's own matrix product takes for the distances alone."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import cores

NAME = "matrix product"

TILE = 4096
"""Rows a product."""

ENOUGH = 1.0
"""Seconds of a run: passes take the same time, so that more of them say no more."""

Pass = Callable[[], None]


def run(x: NDArray, centres: NDArray, most: int) -> tuple[Callable[[], None], int]:
    """Return a run of up to `most` passes of the products of x (n, d), and the number of passes."""
    go, seconds = fastest(x, centres)
    passes = int(np.clip(ENOUGH / seconds, 1, most))

    def run() -> None:
        for _ in range(passes):
            go()

    return run, passes


def fastest(x: NDArray, centres: NDArray) -> tuple[Pass, float]:
    """Return a pass of the products of all rows (n, d) with the centres (k, d), and its seconds.

    It is done in the dtype of x, tile by tile, into arrays written to beforehand so that no page
    faults count, on all cores: by the threads of BLAS or by threads of ours with one of BLAS in each,
    whichever is faster here. OpenBLAS's own have been seen to take ten times as long in float64
    with three features, which would be no floor.
    """
    ways = []
    for way in (by_blas, by_tiles):
        go = way(x, np.ascontiguousarray(centres.T))
        go()
        begin = time.perf_counter()
        go()
        ways.append((time.perf_counter() - begin, go))
    seconds, go = min(ways, key=lambda each: each[0])
    return go, seconds


def by_blas(x: NDArray, transposed: NDArray) -> Pass:
    """Return a run that leaves threads to BLAS."""
    return partial(multiply, x, transposed, scores_for(x, transposed), TILE, 0)


def by_tiles(x: NDArray, transposed: NDArray) -> Pass:
    """Return a run that spreads tiles over threads, with BLAS kept to one."""
    from threadpoolctl import ThreadpoolController

    threads = cores()
    pool, controller = ThreadPoolExecutor(threads), ThreadpoolController()
    shares = [
        partial(multiply, x, transposed, scores_for(x, transposed), threads * TILE, i * TILE)
        for i in range(threads)
    ]

    def run() -> None:
        with controller.limit(limits=1, user_api="blas"):
            for done in [pool.submit(share) for share in shares]:
                done.result()

    return run


def multiply(x: NDArray, transposed: NDArray, scores: NDArray, step: int, start: int) -> None:
    """Multiply one tile of x every `step` rows into `scores` (TILE, k)."""
    for i in range(start, len(x), step):
        tile = x[i : i + TILE]
        np.matmul(tile, transposed, out=scores[: len(tile)])


def scores_for(x: NDArray, transposed: NDArray) -> NDArray:
    """Return an array (TILE, k) whose pages are there."""
    return np.full((TILE, transposed.shape[1]), 1, x.dtype)
