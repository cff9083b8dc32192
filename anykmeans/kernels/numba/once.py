# mypy: allow-untyped-defs, allow-untyped-calls
"""One pass that no other follows, of ordinary numbers: nothing is planned, and no frame is looked for.

What is looked at is the centroids. Rows that are other than these let expect are noticed as they are read.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from anykmeans._frame import Frame
from anykmeans._matrix import Matrix
from anykmeans._settings import current
from anykmeans._work import Work
from anykmeans.kernels.numba import few, looks, read, sums, weights
from anykmeans.kernels.numba.grouped import GroupedSearch
from anykmeans.kernels.numba.room import zeros
from anykmeans.kernels.numba.simd import HELD, LANES, ROWS, SIDE
from anykmeans.kernels.numba.steps import any_order, jit

if TYPE_CHECKING:
    from anykmeans.sources.rows import Rows

Found = tuple[np.ndarray, np.ndarray, float]

_ORDINARY = 2.0**20  # times as large or small as one that numbers may be to be compared as they are
_ROOM = 1 << 26  # bytes for codes of rows, and bounds
_MAGNITUDE = np.int64(2**63 - 1)  # all bits but the sign
_SMALL = np.float64(1 / _ORDINARY).view(np.int64)
_CACHE = 1 << 12  # numbers of rows that wait in the L1 cache beside a panel of centroids
_NEAR = 1 << 19  # numbers of rows that are in some cache for what follows their scores
# In products: what else is done to a number of a row, and, for a thread that does it all, each number of `Settings.spread` and of sums.
_NUMBER, _CALL, _SUM = 50, 64, 800
_READ = 16  # rows for each centroid, at least, that these are prepared for


@any_order
def _squares(c, j, mean):
    """Return the squared norms of row `j` less the `mean` (d,), and of that."""
    spread, square = 0.0, 0.0
    for f in range(mean.shape[0]):
        step = c[j, f] - mean[f]
        spread += step * step
        square += mean[f] * mean[f]
    return spread, square


@jit
def look(c, bits):
    """Return the largest magnitude of centroids `c` (k, d), NaN if any is not a number, and how many are small.

    Also their mean (d,), as float32, if they are nearer to it than to the origin, else zeros. The `bits` are the same as whole
    numbers, which have the order of magnitudes, NaN above all.
    """
    (k, d), small, largest = c.shape, 0, np.int64(0)
    mean, square, spread = zeros(d, np.float64), 0.0, 0.0
    for j in range(k):
        high = np.int64(0)
        for f in range(d):
            value = bits[j, f] & _MAGNITUDE
            high = value if value > high else high
            mean[f] += c[j, f]
        small += 1 if high < _SMALL else 0
        largest = high if high > largest else largest
    for f in range(d):
        mean[f] = np.float64(np.float32(mean[f] / k))
    for j in range(k):
        less, more = _squares(c, j, mean)
        spread += less
        square += more
    if not square > spread:
        for f in range(d):
            mean[f] = 0.0
    found = np.int64(largest)  # of one definition, for `view`
    return found.view(np.float64), small, mean


def label(
    rows: Iterable[tuple[slice, np.ndarray]],
    c: np.ndarray,
    mean: np.ndarray,
    labels: np.ndarray,
    w: np.ndarray = few.ONE,
    whole: np.ndarray = few.NO_SUMS,
    folds: few.Folds = few.NO_FOLDS,
    distances: np.ndarray | None = None,
) -> int:
    """Write the `labels` (n,), int32, of `rows`, tile by tile, for centroids `c` (k, d), float64; return how many are out of range.

    Labels are certified, so what the `mean` (d,) is to be taken from shows in none. If there is room for any, the sums `whole` have
    the rows added, by weights `w`, and the squared `distances` (n,) to the nearest are written.
    """
    errors, lost, lanes = few.Errors.of(c.shape[1], 1.0), 0, None
    for tile, x in rows:
        own, weight = labels[tile], w[tile] if w.size > 1 else w
        if looks.alone(own.size, x.shape[1], len(c)):
            lost += _coded(x, c, own)
            if whole.size:
                sums.accumulate(
                    x, np.arange(own.size, dtype=np.int32), weight, own, own[:0], *folds, whole
                )
        else:
            if lanes is None:
                real = x.dtype.type
                lanes = few.room(SIDE, real(1.0), mean.astype(real))
            lost += few.label(x, weight, lanes, c, errors, own, whole, folds)
        if distances is not None:
            sums.own_distances(x, 1.0, c, own, distances[tile])
    return lost


def _coded(x: np.ndarray, c: np.ndarray, labels: np.ndarray) -> int:
    """Do what `few.label` does for rows whose codes pay."""
    work = Work(*x.shape, host=True, max_bytes=None, threads=1, blas=False)
    frame = Frame.around(Matrix.of(x, "numpy"), 1.0, c)  # which is not scaled
    search = GroupedSearch(frame, work, skips=True, exact=True)
    search.relabel(c)
    labels[:] = search.labels
    return int(search.lost)


def _together(work: Work, m: int, k: int, near: int) -> int:
    """Return how many of `m` rows to label together for `k` centroids: `near`, or as many as there is room for the codes of."""
    if not looks.alone(m, work.d, k):
        return near
    return max(1, min(_ROOM, work.max_bytes // (2 * work.threads)) // (work.d + k // 4))


def labels(x: np.ndarray, c: np.ndarray, threads: int | None) -> np.ndarray | None:
    """Return the labels (n,), int32, of rows `x` (n, d) that compiled code can read, for given centroids `c` (k, d).

    None if anything is out of the ordinary, or not finite.
    """
    wide = np.array(c, np.float64, order="C")  # one kind of array, for which all is compiled
    high, small, mean = look(wide, wide.view(np.int64))
    # Rows that do not show beside others may be near to one small centroid, but not to two.
    if not 1 / _ORDINARY < high < _ORDINARY or small > 1:
        return None
    with (work := _work(x, threads)):
        found = np.empty(work.n, np.int32)
        spread = work.n * work.d * len(c) >= current().spread * few.BRIEF

        def some(tile: slice) -> int:
            m = tile.stop - tile.start
            parts = work.tiles(tile.start, tile.stop, _together(work, m, len(c), m))
            return label(((part, x[part]) for part in parts), wide, mean, found)

        lost = sum(work.map(some, _tiles(work, spread=spread)))
    return None if lost else found


def all_distances(x: np.ndarray, c: np.ndarray, threads: int | None) -> np.ndarray | None:
    """Return the distances (n, k), in the dtype of `x`, of the same, under the same conditions."""
    wide = np.array(c, np.float64, order="C")
    high, small, _ = look(wide, wide.view(np.int64))
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
    if (ordinary := _ordinary(rows, c)) is None:
        return None
    wide, mean, high = ordinary
    found, distances = np.empty(rows.work.n, np.int32), np.empty(rows.work.n)

    def some(tile: slice) -> None:
        label(_near(rows, tile, len(c)), wide, mean, found, distances=distances)

    rows.work.map(some, _pieces(rows, len(c)))
    return found, distances, _inertia(rows, high, distances)


def counted(
    rows: Rows, c: np.ndarray, *, measured: bool
) -> tuple[np.ndarray, np.ndarray | None, float, np.ndarray] | None:
    """Return what `evaluated` does, distances and inertia only if `measured`, and the sums (k, columns) of rows by label; or None."""
    if (ordinary := _ordinary(rows, c)) is None:
        return None
    wide, mean, high = ordinary
    found, distances = np.empty(rows.work.n, np.int32), np.empty(rows.work.n) if measured else None
    grid, w = rows.grid, weights(rows.relative_weight(rows.every))
    folds = few.Folds(grid.scale, grid.step, grid.folds)

    def some(tile: slice) -> np.ndarray:
        whole = np.zeros((len(c), grid.folds * grid.scale.size))
        near = _near(rows, tile, len(c))
        label(near, wide, mean, found, w, whole, folds, distances)
        return whole

    whole = rows.work.reduce(some, _pieces(rows, len(c)), operator.add)
    cost = math.nan if distances is None else _inertia(rows, high, distances)
    return found, distances, cost, whole


def _ordinary(rows: Rows, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Return centroids (k, d), float64, what is to be taken from them and rows, and their largest magnitude; None if any need scaling."""
    wide = np.array(c, np.float64, order="C")
    high, small, mean = look(wide, wide.view(np.int64))
    plain = high < _ORDINARY and small == 0 and 1 / _ORDINARY < rows.largest < _ORDINARY
    return (wide, mean, high) if plain else None


def _pieces(rows: Rows, k: int) -> list[slice]:
    """Return tiles of all rows: for more threads, as far as what these save is more than what it takes to have a piece more."""
    (n, d), work = rows.shape, rows.work
    most = n * d * (k + _NUMBER) // (current().spread * _CALL + k * d * _SUM)
    pieces = min(most, work.threads if most < 4 * work.threads else 2 * work.threads)
    pieces = max(1, pieces if work.threads > 1 else 1)
    return work.tiles(step=min(-(-n // pieces), work.readable(rows.matrix)))


def _near(rows: Rows, tile: slice, k: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield a tile's rows, so many at a time that they are in the cache for what follows the scores, if they are scored."""
    step = _together(rows.work, tile.stop - tile.start, k, max(_NEAR // rows.shape[1], _READ * k))
    for part in rows.work.tiles(tile.start, tile.stop, step):
        yield part, read(rows.matrix, part)


def _inertia(rows: Rows, high: float, distances: np.ndarray) -> float:
    """Return the sum of the squared `distances` (n,), by weight, to centroids of magnitudes up to `high`."""
    frame = Frame(rows.matrix, max(rows.largest, high))
    cost = float(rows.kernel.cost(rows, frame, distances))
    return float(np.ldexp(cost, rows.heaviest))  # which may be infinite
