"""Triton kernels for CUDA tensors, and for CuPy arrays through DLPack: a pass without the host.

`screen` scores rows in half precision and proves labels, `resolve` decides what is left in float64, `sums`
adds by integer atomics and ends the pass; `passes` launches them. `seeding` is all of k-means++. Whatever needs
Triton is imported when first called. With ``TRITON_INTERPRET=1`` they run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from anykmeans import _array as arrays
from anykmeans._array import Array, Matrix, Selection
from anykmeans._exact import Grid
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
    for first in range(0, len(searches), _PROBLEMS):
        part = slice(first, first + _PROBLEMS)
        shared = Passes(searches[part])
        for i, one in enumerate(searches[part]):
            one.join(shared, i)
        starts = dict(enumerate(centroids[part]))
        found += shared.leap(starts, passes, tol[part], w[part], grids[part], keep=keep)
    return found


def settle_together(searches: list[Any], centroids: list[Array]) -> None:
    """Label all rows of all problems by launches they share."""
    for shared in dict.fromkeys(one.passes for one in searches):
        theirs = [
            (one, c) for one, c in zip(searches, centroids, strict=True) if one.passes is shared
        ]
        shared.settle({one.place: c for one, c in theirs})
        for one, c in theirs:
            one.settled = c


def magnitudes(matrix: Matrix, select: slice, w: Array | None) -> tuple[np.ndarray, ...]:
    """Return the largest |x| (d,), and the largest and smallest nonzero |w x| and w (d + 1,)."""
    from anykmeans.kernels.triton import passes

    return passes.magnitudes(matrix.data[select], w)


def cost(distances: Array, w: Array | None) -> float:
    """Return the exact sum of the weighted `distances` (n,): `anykmeans._exact.exact_sum`, bit for bit."""
    from anykmeans.kernels.triton import passes

    return passes.cost(distances, w)


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
    from anykmeans.kernels.triton import passes

    return passes.accumulate(matrix.data[select], w, new, old, grid, k)


def seeds(frame: Any, work: Any, w: Array | None, first: int, draws: np.ndarray) -> Any:
    """Return the rows that greedy k-means++ picks with `draws` (k - 1, t), or None where a tile is too small."""
    from anykmeans.kernels.triton import seeding

    if draws.shape[1] > seeding.LANES or frame.matrix.shape[1] > seeding.MOST:
        return None
    return seeding.Seeds(frame, w, first, draws).run()


def own_distances(
    matrix: Matrix, select: slice, unit: float, wide: Array, labels: Array, distances: Array
) -> None:
    """Write the squared `distances` (m,) of rows to their own centroids of `wide` (k, d)."""
    from anykmeans.kernels.triton import passes

    passes.own_distances(matrix.data[select], unit, wide, labels, distances)
