"""Compiled steps for arrays in host memory: a row is read once for all that is done to it.

`sweep` chooses how to search the nearest centroids: by `near` in few features, by `grouped` in more, after a first look
in a `subspace`. What both share is in `bounded`, and compiled in `steps`; centroids go by `panels`, and `simd` has the inner
loops. `small` computes all distances instead, where they are few. `sums` and `seeding` are what their names say. None holds
the interpreter's lock, so that threads really run at once.
Whatever needs Numba is imported when first called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from anykmeans import _libraries as arrays
from anykmeans._fork import first_call
from anykmeans._grid import Grid
from anykmeans._libraries import Array, Namespace, Selection
from anykmeans._matrix import Matrix
from anykmeans.kernels import broken, cpu

LIBRARY, LEAN, WARY = "numpy", True, True
segment_sum = cpu.segment_sum

# Distances of a pass, or of a pick, times features: up to so many, all are computed, and in one call.
SMALL = 1 << 21
_DIFFERENCES = 64  # features up to which all distances cost less by differences than by a product
_CACHE = 1 << 15  # numbers of rows that wait in the L2 cache beside a panel of centroids


def why_not(x: Array) -> str | None:
    """Return None for arrays in host memory, and sparse ones, where Numba can compile."""
    if not arrays.on_cpu(x):
        return f"the rows are {arrays.where_is(x)}, out of NumPy's reach"
    if (reason := broken("numba.core.config")) is not None:
        return f"Numba cannot be imported ({reason}; `pip install anykmeans[numba]`)"
    if sys.modules["numba.core.config"].DISABLE_JIT:
        return "Numba is told not to compile (NUMBA_DISABLE_JIT)"
    if (reason := broken(f"{__name__}.small")) is not None:
        return f"its code does not suit the Numba installed ({reason})"
    return None


def search(frame: Any, work: Any, k: int, *, bounds: str, exact: bool) -> Any:
    """Return the search of all rows, see `anykmeans.kernels.numba.sweep` and `small`."""
    if bounds in ("auto", "off") and _small(frame, work, k):
        from anykmeans.kernels.numba import small

        return small.Search(frame)
    with first_call:
        from anykmeans.kernels.numba import sweep

    return sweep.Search(frame, work, bounds=bounds, exact=exact)


def _small(frame: Any, work: Any, times: int) -> bool:
    """Return whether to compute as many distances of each row at once, from copies of them."""
    n, d = frame.matrix.shape
    numbers = n * (4 << max(0, (d - 1).bit_length() - 2))  # padded
    return bool(numbers * times <= SMALL and numbers <= min(SMALL >> 3, work.max_bytes >> 6))


def seeds(
    frame: Any, work: Any, w: np.ndarray | None, first: int, draws: np.ndarray
) -> np.ndarray | None:
    """Return the rows that greedy k-means++ picks with `draws` (k - 1, t), or None where they are many."""
    if not _small(frame, work, draws.shape[1]):
        return None
    from anykmeans.kernels.numba import small

    picks = np.full(draws.shape[0] + 1, first)
    small.seeds(np.ascontiguousarray(frame.wide(slice(None))), _weights(w), draws, picks)
    return picks


def magnitudes(matrix: Matrix, select: slice, w: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Return the largest |x| (d,), and the largest and smallest nonzero |w x| and w (d + 1,)."""
    from anykmeans.kernels.numba import sums

    d = matrix.shape[1]
    x = _read(matrix, select)
    whole = np.uint32 if x.dtype == np.float32 else np.uint64
    infinity = np.asarray(np.inf, x.dtype).view(whole)[()]
    together = max(1, 64 // d)  # rows, that the inner loop be long
    bits = x.view(whole).ravel()
    cut = bits.size - bits.size % (together * d)
    high, smallest = np.zeros((2, together, d), whole), np.full((2, together, d), infinity)
    for i, (part, width) in enumerate(((bits[:cut], together * d), (bits[cut:], d))):
        part = part.reshape(-1, width)
        sums.magnitudes(
            part, whole(~whole(0) >> whole(1)), high[i].ravel()[:width], smallest[i].ravel()[:width]
        )
    high = high.view(x.dtype).max(axis=(0, 1))
    smallest = smallest.view(x.dtype).min(axis=(0, 1))
    if w is None:
        return high, high, smallest
    largest, least = np.zeros(d + 1), np.full(d + 1, np.inf)
    sums.weighted_magnitudes(x, w, largest, least)
    return high, largest, least


def accumulate(
    matrix: Matrix,
    select: Selection,
    w: np.ndarray | None,
    new: np.ndarray,
    old: np.ndarray | None,
    grid: Grid,
    k: int,
) -> np.ndarray:
    """Return the whole-number sums (k, columns) of the selected rows by label `new`, less by `old`."""
    from anykmeans.kernels.numba import sums

    found = np.zeros((k, grid.folds * (matrix.shape[1] + 1)))
    x, at = matrix.readable(select)
    none = new[:0] if old is None else old
    sums.accumulate(x, at, _weights(w), new, none, grid.scale, grid.step, grid.folds, found)
    return found


def total(grid: Grid, sums: np.ndarray) -> np.ndarray:
    """Return the sums (k, columns) that whole numbers mean."""
    from anykmeans.kernels.numba import sums as compiled

    found: np.ndarray = compiled.total(sums, grid.scale, grid.step, grid.folds)
    return found


def means(sums: np.ndarray, mass: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the means (k, d) of clusters in the dtype of `c`; an empty one keeps its row of `c`."""
    from anykmeans.kernels.numba import sums as compiled

    found = np.empty_like(c)
    compiled.means(sums, mass, c, found)
    return found


def own_distances(
    matrix: Matrix,
    select: slice,
    unit: float,
    wide: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
) -> None:
    """Write the squared `distances` (m,) of rows to their own centroids of `wide` (k, d)."""
    from anykmeans.kernels.numba import sums

    x = _read(matrix, select)
    sums.own_distances(x, unit, wide, labels, distances)


def cost(distances: np.ndarray, w: np.ndarray | None) -> float:
    """Return the exact sum of the weighted `distances` (n,): `anykmeans._grid.exact_sum`, bit for bit."""
    from anykmeans.kernels.numba import sums

    weights = _weights(w)
    extent = sums.extent_of_costs(distances, weights)
    grid = Grid.of_costs(extent, distances.shape[0], w is not None)
    whole = sums.whole(distances, weights, grid.scale[0], grid.step, grid.folds)
    return float(sums.total(whole, grid.scale, grid.step, grid.folds)[0, 0])


def pairwise(frame: Any, wide: np.ndarray, room: int) -> Callable[[slice, np.ndarray], int]:
    """Return what writes the distances (m, k) of selected rows to all centroids of `wide` (k, d).

    That returns how many rows were not finite or out of the range of the `frame`. It takes `room` numbers.
    """
    from anykmeans.kernels.numba import sums
    from anykmeans.kernels.numba.simd import ROWS

    matrix, unit, factor = frame.matrix, frame.unit, 2.0**frame.exponent
    if wide.shape[1] <= _DIFFERENCES:
        columns = np.ascontiguousarray(wide.T)
        return lambda select, found: int(
            sums.pairwise(_read(matrix, select), unit, columns, factor, found)
        )
    with first_call:
        from anykmeans.kernels.numba.panels import Panels

    centred, offset = frame.centre(wide), frame.affine(narrow=False)[1]
    panels, norms = Panels.in_order(wide.shape[0]).coefficients(centred, np.float64)
    at_once = ROWS * max(1, min(room, _CACHE) // (ROWS * wide.shape[1]))
    return lambda select, found: int(
        sums.pairwise_products(
            _read(matrix, select), unit, offset, panels, norms, wide, factor, at_once, found
        )
    )


def _read(matrix: Matrix, select: slice) -> np.ndarray:
    x: np.ndarray = matrix.data[select] if matrix.direct else matrix.readable(select)[0]
    return x


def sieve(frame: Any, work: Any, first: np.ndarray, k: int) -> Any:
    """Return what rules candidates of k-means++ out, see `anykmeans.kernels.numba.seeding`."""
    from anykmeans.kernels.numba import seeding

    return seeding.Sieve(frame, work)


def gains(
    xp: Namespace,
    read: Callable[[], Array],
    c: Array,
    closest: Array,
    kept: tuple[np.ndarray, ...],
    against: tuple[np.ndarray, ...],
    w: Array | None,
    scale: float,
) -> tuple[Array, float, Array]:
    """Return what each of t more centroids saves (t,), in doubt by how much, and bits of what it may win (blocks, t)."""
    from anykmeans.kernels.numba import seeding

    (z, edge, spare), w = kept, _weights(w)
    saved, won = np.zeros(c.shape[0]), np.empty((z.shape[0], c.shape[0]), np.int64)
    if z.shape[1] == c.shape[1]:
        doubt = seeding.few(z, edge, spare, *against, w, saved, won)
    else:
        y = np.ascontiguousarray(read())
        doubt = seeding.many(y, c, z, edge, *against, closest, w, saved, won)
    return saved * scale, doubt * scale, won


def saved(
    xp: Namespace,
    y: Array,
    c: Array,
    closest: Array,
    w: Array | None,
    scale: float,
    won: np.ndarray,
    j: int,
) -> float:
    """Return exactly what candidate `j`, at `c` (1, d), saves."""
    from anykmeans.kernels.numba import seeding

    y = np.ascontiguousarray(y)
    return float(seeding.exact(y, c, closest, _weights(w), scale, won, j))


def settle(
    xp: Namespace,
    y: Array,
    c: Array,
    closest: Array,
    kept: tuple[np.ndarray, ...],
    pick: int,
    won: np.ndarray | None,
    j: int,
) -> tuple[Array, tuple[np.ndarray, ...]]:
    """Return `closest` (m,) and what is kept of rows with candidate `j`, at `c` (1, d), counted in."""
    from anykmeans.kernels.numba import seeding

    _, edge, spare = kept
    won = np.empty((0, 0), np.int64) if won is None else won
    seeding.settle(np.ascontiguousarray(y), c, closest, edge, spare, won, j)
    return closest, kept


def costs(
    xp: Namespace, closest: Array, w: Array | None, scale: float, block: int
) -> tuple[Array, float]:
    """Return the whole-number costs of blocks of rows, and the largest cost of a row."""
    from anykmeans.kernels.numba import seeding

    found = np.empty(-(-closest.shape[0] // block))
    return found, seeding.costs(closest, _weights(w), scale, block, found)


def reached(
    closest: np.ndarray, w: np.ndarray | None, scale: float, total: float, draw: float
) -> int:
    """Return the first row up to which costs add up to the `draw`, if up to the last they do to the `total`."""
    from anykmeans.kernels.numba import seeding

    return int(seeding.reached(closest, _weights(w), scale, total, draw))


_ONE = np.ones(1)


def _weights(w: np.ndarray | None) -> np.ndarray:
    return _ONE if w is None else np.ascontiguousarray(w)


def squared_distances(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the squared distances (m,) of the rows of `a` (m, d) and `b` (m, d) or (1, d), float64."""
    from anykmeans.kernels.numba import steps

    found: np.ndarray = steps.distances(np.ascontiguousarray(a), np.ascontiguousarray(b))
    return found
