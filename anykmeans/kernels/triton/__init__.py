"""Triton kernels for CUDA tensors, and for CuPy arrays through DLPack: a pass without the host.

`screen` scores rows in half precision and proves labels, `resolve` decides what is left in float64, `sums`
adds by integer atomics and ends the pass; `passes` launches them, `looks` what comes before and after. `seeding` is all of k-means++. Whatever needs
Triton is imported when first called. With ``TRITON_INTERPRET=1`` they run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from anykmeans import _libraries as arrays
from anykmeans._grid import Grid
from anykmeans._libraries import Array, Selection
from anykmeans._matrix import Matrix
from anykmeans.kernels import broken

LIBRARY = "torch"

_FEATURES = 1 << 16  # a row must fit the differences of one tile; more take minutes to compile
_ROWS = (1 << 31) - (
    1 << 20
)  # their numbers, and those of the block after the last, must fit int32
_CUDA = 2  # what DLPack calls a device's own memory
_PROBLEMS = (1 << 16) - 1  # a grid has no more along its second axis


def why_not(x: Array) -> str | None:
    """Return None for dense CUDA tensors and CuPy arrays where Triton is installed."""
    library = arrays.library_of(x)
    if library not in ("torch", "cupy"):
        return f"the rows are {arrays.where_is(x)}, neither a tensor nor a CuPy array"
    for needed in ("torch", "triton"):
        if (reason := broken(needed)) is not None:
            return f"{needed} cannot be imported ({reason}; `pip install {needed}`)"
    if arrays.dtype_name(x) == "bool":
        return "the rows are of dtype bool"
    if x.shape[-1] > _FEATURES or x.shape[-2] >= _ROWS:
        return f"the rows have more than {_FEATURES} features or {_ROWS - 1} rows"
    if library == "cupy" and min(x.strides) < 0:
        return "the rows have strides below 0, which tensors do not have"
    if library == "cupy" and x.__dlpack_device__()[0] != _CUDA:
        return "the rows lie in managed memory, which PyTorch does not take"
    if library == "torch" and x.device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "the rows are torch on cpu, where Triton runs only with TRITON_INTERPRET=1"
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return "PyTorch cannot use CUDA here"
    device = x.device.index if library == "torch" else x.device.id
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None


def search(frame: Any, work: Any, k: int, *, bounds: str, exact: bool) -> Any:
    """Return the search of all rows, see `anykmeans.kernels.triton.passes`."""
    from anykmeans.kernels.triton.passes import Search

    return Search(frame, work, k, exact=exact)


def together(
    searches: list[Any],
    centroids: list[Array],
    passes: int,
    tol: list[float],
    w: list[Array | None],
    grids: list[Grid],
    *,
    keep: bool,
) -> list[tuple[Array, int, float]]:
    """Return what `leap` of each search returns, of launches that all share."""
    from anykmeans.kernels.triton.passes import Passes

    found = []
    for part in _parts(searches):
        shared = Passes(searches[part])
        for i, one in enumerate(searches[part]):
            one.join(shared, i)
        starts = dict(enumerate(centroids[part]))
        found += shared.leap(starts, passes, tol[part], w[part], grids[part], keep=keep)
    return found


def settle_together(searches: list[Any], centroids: list[Array]) -> None:
    """Label all rows of all problems by launches they share."""
    for shared, at in _sharing(searches):
        shared.settle({searches[i].place: centroids[i] for i in at})
        for i in at:
            searches[i].settled = centroids[i]


def magnitudes(matrix: Matrix, select: slice, w: Array | None) -> tuple[np.ndarray, ...]:
    """Return the largest |x| (d,), and the largest and smallest nonzero |w x| and w (d + 1,)."""
    from anykmeans.kernels.triton import looks

    (found,) = looks.magnitudes([matrix.data[select]], None if w is None else w[None])
    return found[0, : matrix.shape[1]], found[1], found[2]


def magnitudes_together(matrices: list[Matrix], w: list[Array] | None) -> tuple[np.ndarray, ...]:
    """Return what `magnitudes` of all rows of each matrix returns, stacked, of one launch and one look at what it found."""
    from anykmeans.kernels.triton import looks

    xs, d = [each.data for each in matrices], matrices[0].shape[1]
    parts = [looks.magnitudes(xs[part], _stacked(w and w[part])) for part in _parts(xs)]
    found = np.concatenate(parts)
    return found[:, 0, :d], found[:, 1], found[:, 2]


def cost(distances: Array, w: Array | None) -> float:
    """Return the exact sum of the weighted `distances` (n,): `anykmeans._grid.exact_sum`, bit for bit."""
    from anykmeans.kernels.triton import looks

    return float(looks.costs(distances[None], None if w is None else w[None])[0])


def costs_together(searches: list[Any], w: list[Array] | None) -> np.ndarray:
    """Return the exact sums (b,) of weighted distances in the frame of all rows, each to the centroid it is labelled by."""
    from anykmeans.kernels.triton import looks

    found = np.empty(len(searches))
    for shared, at in _sharing(searches):
        found[at] = looks.costs(shared.distances(), _stacked(w and [w[i] for i in at]))
    return found


def variances_together(
    frames: list[Any], w: list[Array] | None, grids: list[Grid]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted sums (b,) of all rows' squared distances, in the frame, to their mean, and the weights (b,)."""
    from anykmeans.kernels.triton import looks

    found = []
    for part in _parts(frames):
        xs = [frame.matrix.data for frame in frames[part]]
        units = np.asarray([frame.unit for frame in frames[part]])
        found.append(looks.variances(xs, units, _stacked(w and w[part]), grids[part]))
    costs, weights = zip(*found, strict=True)
    return np.concatenate(costs), np.concatenate(weights)


def _parts(problems: list[Any]) -> list[slice]:
    """Return slices of problems, as many as a launch takes."""
    return [slice(i, i + _PROBLEMS) for i in range(0, len(problems), _PROBLEMS)]


def _sharing(searches: list[Any]) -> Iterator[tuple[Any, list[int]]]:
    """Yield what some searches share, and their numbers in order of their places there."""
    for shared in dict.fromkeys(one.passes for one in searches):
        yield shared, [i for i, one in enumerate(searches) if one.passes is shared]


def _stacked(w: list[Array] | None) -> Array | None:
    """Return the weights (b, n) of problems as one array."""
    if w is None:
        return None
    import torch

    return w[0][None] if len(w) == 1 else torch.stack(w)


def accumulate(
    matrix: Matrix,
    select: Selection,
    w: Array | None,
    new: Array,
    old: Array | None,
    grid: Grid,
    k: int,
) -> Array:
    """Return the whole-number sums (k, columns) of the selected rows by label `new`, less by `old`."""
    from anykmeans.kernels.triton import looks

    xs, before = [matrix.data[select]], None if old is None else old[None]
    return looks.accumulate(xs, None if w is None else w[None], new[None], before, [grid], k)[0]


def seeds(frame: Any, work: Any, w: Array | None, first: int, draws: np.ndarray) -> Any:
    """Return the rows that greedy k-means++ picks with `draws` (k - 1, t), or None where a tile is too small."""
    found = seeds_together([frame], None if w is None else [w], [first], draws[None])
    return None if found is None else found[0]


def seeds_together(
    frames: list[Any], w: list[Array] | None, first: Sequence[int], draws: np.ndarray
) -> np.ndarray | None:
    """Return the picks (b, k) that `seeds` makes of each problem's rows, with `draws` (b, k - 1, t), of launches all share."""
    from anykmeans.kernels.triton import seeding

    if draws.shape[2] > seeding.LANES or frames[0].matrix.shape[1] > seeding.MOST:
        return None
    found = [
        seeding.Seeds(frames[part], w and w[part], first[part], draws[part]).run()
        for part in _parts(frames)
    ]
    return np.concatenate(found)


def own_distances(
    matrix: Matrix, select: slice, unit: float, wide: Array, labels: Array, distances: Array
) -> None:
    """Write the squared `distances` (m,) of rows to their own centroids of `wide` (k, d)."""
    from anykmeans.kernels.triton import looks

    units = np.asarray([[unit, 1.0]])
    looks.own_distances([matrix.data[select]], units, wide[None], labels[None], distances[None])
