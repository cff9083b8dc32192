# mypy: allow-untyped-defs, allow-untyped-calls
"""One pass that no other follows, of ordinary numbers: nothing is planned, and no frame is looked for.

What is looked at is the centroids. Rows that are other than these let expect are noticed as they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from anykmeans._bounds import Bounds
from anykmeans._frame import Frame
from anykmeans._settings import current
from anykmeans._work import Work
from anykmeans.kernels.numba import few, pieces, read, sums
from anykmeans.kernels.numba.room import zeros
from anykmeans.kernels.numba.simd import HELD, LANES, ROWS, SIDE
from anykmeans.kernels.numba.steps import jit

if TYPE_CHECKING:
    from anykmeans.sources.rows import Rows

Found = tuple[np.ndarray, np.ndarray, float]

_ORDINARY = 2.0**20  # times as large or small as one that numbers may be to be compared as they are
_CACHE = 1 << 12  # numbers of rows that wait in the L1 cache beside a panel of centroids
_FEW = 10  # centroids up to which all distances in float64 take no longer than scores and the distances to the nearest


@jit
def look(c):
    """Return the largest magnitude of centroids `c` (k, d), NaN if any is not a number, and how many are small.

    Also their mean (d,), as float32, if they are nearer to it than to the origin, else zeros.
    """
    (k, d), small, largest = c.shape, 0, 0.0
    mean, square, spread = zeros(d, np.float64), 0.0, 0.0
    for j in range(k):
        magnitude = 0.0
        for f in range(d):
            value = abs(c[j, f])
            magnitude = value if value > magnitude or value != value else magnitude
            mean[f] += c[j, f]
        small += magnitude * _ORDINARY < 1.0
        largest = magnitude if magnitude > largest or magnitude != magnitude else largest
    for f in range(d):
        mean[f] = np.float64(np.float32(mean[f] / k))
        square += mean[f] * mean[f]
    for j in range(k):
        for f in range(d):
            step = c[j, f] - mean[f]
            spread += step * step
    if not square * k > spread:
        for f in range(d):
            mean[f] = 0.0
    return largest, small, mean


def labelled(
    rows: Callable[[slice], np.ndarray],
    work: Work,
    tiles: list[slice],
    c: np.ndarray,
    mean: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Return the labels (n,), int32, of `rows` for centroids `c` (k, d), and how many rows are out of range: then they mean nothing.

    Labels are certified, so what the `mean` (d,) is to be taken from shows in none.
    """
    labels, errors = np.empty(work.n, np.int32), few.Errors.of(work.d, 1.0)

    def label(tile: slice) -> int:
        x = rows(tile)
        real = x.dtype.type
        lanes = few.room(SIDE, real(1.0), mean.astype(real))
        return few.label(x, lanes, c, errors, labels[tile])

    return labels, sum(work.map(label, tiles))


def labels(x: np.ndarray, c: np.ndarray, threads: int | None) -> np.ndarray | None:
    """Return the labels (n,), int32, of rows `x` (n, d) that compiled code can read, for given centroids `c` (k, d).

    None if anything is out of the ordinary, or not finite.
    """
    wide = np.array(c, np.float64, order="C")  # one kind of array, for which all is compiled
    high, small, mean = look(wide)
    # Rows that do not show beside others may be near to one small centroid, but not to two.
    if not 1 / _ORDINARY < high < _ORDINARY or small > 1:
        return None
    with (work := _work(x, threads)):
        spread = work.n * work.d * len(c) >= current().spread * few.BRIEF
        found, lost = labelled(x.__getitem__, work, _tiles(work, spread=spread), wide, mean)
    return None if lost else found


def all_distances(x: np.ndarray, c: np.ndarray, threads: int | None) -> np.ndarray | None:
    """Return the distances (n, k), in the dtype of `x`, of the same, under the same conditions."""
    wide = np.array(c, np.float64, order="C")
    high, small, _ = look(wide)
    if not high < _ORDINARY or small or (narrow := same(wide, x.dtype)) is None:
        return None
    panels, found = panels_of(narrow), np.empty((x.shape[0], len(c)), x.dtype)

    def write(tile: slice) -> int:
        return measure(x[tile], panels, wide, found[tile])

    with (work := _work(x, threads)):
        lost = sum(work.map(write, _tiles(work, spread=True)))
    return None if lost else found


def _work(x: np.ndarray, threads: int | None) -> Work:
    """Return how work on rows `x` (n, d) is spread, which takes no room to speak of."""
    return Work(*x.shape, host=True, max_bytes=None, threads=threads, blas=False)


def _tiles(work: Work, *, spread: bool) -> list[slice]:
    """Return tiles of all rows: a few for each thread, if they are to be `spread`."""
    parts = 4 * work.threads if spread and work.threads > 1 else 1
    return work.tiles(step=-(-work.n // parts))


def same(wide: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Return centroids `wide` (k, d), float64, in another dtype, if they are the same in it."""
    c = wide.astype(dtype)
    return c if dtype == np.float64 or (c == wide).all() else None


def panels_of(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centroids `c` (k, d) as `sums.pairwise` takes them: full panels (., d, lanes), and the first centroid of each."""
    k, width = c.shape[0], min(LANES, HELD // c.itemsize)
    starts = np.arange(0, k, width)
    starts[-1] = max(0, k - width)
    slots = np.minimum(starts[:, None] + np.arange(width), k - 1)
    return np.ascontiguousarray(c[slots].transpose(0, 2, 1)), starts


def measure(
    x: np.ndarray, panels: tuple[np.ndarray, np.ndarray], wide: np.ndarray, found: np.ndarray
) -> int:
    """Write the distances (m, k) of rows `x` (m, d) to all centroids; return how many rows are out of range."""
    at_once = ROWS * max(1, _CACHE // (ROWS * x.shape[1]))
    return int(sums.pairwise(x, *panels, wide, found, at_once))


def evaluated(rows: Rows, c: np.ndarray) -> Found | None:
    """Return labels (n,), squared distances (n,) and inertia for centroids `c` (k, d), if nothing there needs scaling, else None."""
    c = np.array(c, np.float64, order="C")
    high, small, mean = look(c)
    if not (high < _ORDINARY and small == 0 and 1 / _ORDINARY < rows.largest < _ORDINARY):
        return None
    frame, work, tiles = Frame(rows.matrix, max(rows.largest, high)), rows.work, pieces(rows)
    if c.shape[0] <= _FEW:
        tie = Bounds.of(rows.shape[1], 2.0**-53).tie
        found, distances = np.empty(work.n, np.int32), np.empty(work.n)

        def label(tile: slice) -> None:
            x = read(rows.matrix, tile)
            every = np.arange(x.shape[0], dtype=np.int32)
            few.measured(x, every, 1.0, c, tie, found[tile], distances[tile])

        work.map(label, tiles)
    else:
        found, _ = labelled(lambda tile: read(rows.matrix, tile), work, tiles, c, mean)
        distances = rows.kernel.distances(rows, frame, c, found)
    cost = float(rows.kernel.cost(rows, frame, distances))
    return found, distances, float(np.ldexp(cost, rows.heaviest))  # which may be infinite
