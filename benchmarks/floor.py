"""The brute-force floor: what the machine's own matrix product takes for the distances alone."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

TILE = 4096
"""Rows a product: long enough for BLAS, and short enough that the scores stay in the cache."""

WORK = 1e11
"""Operations to time; the rest is scaled, as passes of a product take the same time."""


def passes(n: int, d: int, k: int, most: int) -> int:
    """Return how many passes to time, at least one."""
    return int(np.clip(WORK / (2 * n * d * k), 1, most))


def products(x: NDArray, centres: NDArray, passes: int) -> Callable[[], None]:
    """Return a run of `passes` times the products of all rows (n, d) with the centres (k, d).

    In the dtype of x, on all cores, tile by tile into one array that is written to beforehand, so
    that no page faults count.
    """
    transposed = np.ascontiguousarray(centres.T)
    scores = np.zeros((TILE, len(centres)), x.dtype)

    def run() -> None:
        for _ in range(passes):
            for i in range(0, len(x), TILE):
                tile = x[i : i + TILE]
                np.matmul(tile, transposed, out=scores[: len(tile)])

    return run
