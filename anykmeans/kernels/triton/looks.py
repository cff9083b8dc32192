# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""What is looked up around the passes, of all problems at once: magnitudes, sums, distances and what they add up to."""

from __future__ import annotations

import numpy as np
import torch
import triton

from anykmeans._grid import FOLDS, Grid
from anykmeans._libraries import Array, np_compat
from anykmeans._stats import Cost
from anykmeans.kernels.triton import device, resolve, sums
from anykmeans.kernels.triton.screen import COLUMNS, STATES, STEP

_SUMMED = 1024  # costs that a block adds
_LOOKS = 1024  # blocks that look at rows


def accumulate(
    xs: list[Array], w: Array | None, new: Array, old: Array | None, grids: list[Grid], k: int
) -> Array:
    """Return the sums (b, k, columns), float64, of rows of problems (m, d) by labels `new` (b, m), less by `old`."""
    b, (m, d), on = len(xs), xs[0].shape, {"device": xs[0].device}
    folds = max(grid.folds for grid in grids)  # more than needed change no sum
    width = folds * (d + 1)
    copies = sums.copies(k, b * k * width, 1 << 28, device.about(xs[0]).multiprocessors)
    made = torch.zeros((b, copies, k, width), dtype=torch.int64, **on)
    scale = device.placed(np.stack([grid.scale for grid in grids]), xs[0])
    table = torch.zeros((b, COLUMNS.value), dtype=torch.float64, **on)
    table[:, STEP.value] = grids[0].step
    state = torch.zeros((b, STATES.value), dtype=torch.int64, **on)
    # The kernel notes there that rows are where they belong.
    left = torch.full((b, m), -1, dtype=torch.int32, **on)
    if old is not None:
        left.copy_(old)
    changed = torch.empty((b, m), dtype=torch.int32, **on)
    with device.on_device(xs[0]):
        span = sums.span(b * m)
        device.launch(sums.accumulate, (triton.cdiv(m, span), b))(
            *(xs[0], scale if w is None else w.contiguous(), scale, table, state, left),
            *(new.to(torch.int32), changed, made, m, k, d, folds, copies, *device.strides(xs)),
            WEIGHTED=w is not None,
            SPAN=span,
            ROWS=sums.ROWS,
            WIDTH=min(1 << (d - 1).bit_length(), sums.MOVED),
            maxnreg=sums.REGISTERS,
            enable_fp_fusion=False,
        )
    return made.sum(dim=1).to(torch.float64)


def magnitudes(xs: list[Array], w: Array | None) -> np.ndarray:
    """Return the largest |x|, and the largest and smallest nonzero |w x|, of problems (n, d): (b, 3, d), or d + 1 with w (b, n)."""
    b, (n, d) = len(xs), xs[0].shape
    found = torch.zeros((b, 3, d + 1), dtype=torch.int64, device=xs[0].device)
    found[:, 2] = 0x7FF0000000000000  # the bits of infinity
    blocks = min(triton.cdiv(n, sums.ROWS), max(1, _LOOKS // b))
    with device.on_device(xs[0]):
        device.launch(sums.magnitudes, (blocks, triton.cdiv(d + 1, sums.WIDTH), b))(
            *(xs[0], found if w is None else w.contiguous(), found, n, d, *device.strides(xs)),
            WEIGHTED=w is not None,
            ROWS=sums.ROWS,
            WIDTH=sums.WIDTH,
            enable_fp_fusion=False,
        )
    made: np.ndarray = found.cpu().numpy().view(np.float64)
    return made if w is not None else made[:, :, :d]


def costs(distances: Array, w: Array | None) -> list[Cost]:
    """Return the exact sums of the weighted `distances` (b, n), after one wait: the device plans their grids, by what they are."""
    (b, n), weighted = distances.shape, w is not None
    high = largest = distances.amax(1)
    if w is not None:
        largest = (w * distances).amax(1)
    extents = torch.stack([high, largest, largest], dim=1)  # the kernel reads two of three
    found = torch.zeros((b, FOLDS), dtype=torch.int64, device=distances.device)
    bits = max((2 * n if weighted else n) - 1, 1).bit_length()
    with device.on_device(distances):
        device.launch(sums.cost, (triton.cdiv(n, _SUMMED), b))(
            *(distances, found if w is None else w.contiguous(), extents, found),
            *(n, 52 - bits),
            FOLDS=FOLDS,
            WEIGHTED=weighted,
            BLOCK=_SUMMED,
            enable_fp_fusion=False,
        )
    both = torch.cat([extents.view(torch.int64), found], dim=1).cpu().numpy()
    high, largest = np.frexp(both[:, :2].view(np.float64).T)[1]
    coarse = np.minimum(52 - bits - largest, np.minimum(960 - high, 1023) if weighted else 1023)
    # What a step of each grid is: a problem's parts are whole numbers of them.
    steps = -coarse[:, None] - (53 - bits) * np.arange(FOLDS)
    parts = np.ldexp(both[:, 3:].astype(np.float64), steps)
    return [Cost(tuple(filter(None, each))) for each in parts.tolist()]


def own_distances(xs: list[Array], units: np.ndarray, c: Array, labels: Array) -> Array:
    """Return squared distances (b, m) of rows of problems (m, d) to the centroids, of `c` (b, ..., d), of their labels (b, m).

    Coordinates of rows, and of centroids, are multiplied by `units` (b, 2).
    """
    b, (m, d), on = len(xs), xs[0].shape, {"device": xs[0].device}
    found = torch.empty((b, m), dtype=torch.float64, **on)
    padded = 1 << (d - 1).bit_length()
    rows = max(1, resolve.TILE // padded)
    with device.on_device(xs[0]):
        device.launch(resolve.own, (triton.cdiv(m, rows), b))(
            *(xs[0], c.contiguous(), labels, found),
            *(device.placed(units, xs[0]), m, d, c[0].numel(), *device.strides(xs)),
            WIDTH=padded,
            ROWS=rows,
            enable_fp_fusion=False,
        )
    return found


def deviations(
    xs: list[Array], units: np.ndarray, w: Array | None, grids: list[Grid]
) -> tuple[Array, np.ndarray]:
    """Return squared distances (b, n) of rows of problems (n, d) to their mean, and the weights (b,) of all."""
    b, (n, d) = len(xs), xs[0].shape
    labels = torch.zeros((b, n), dtype=torch.int32, device=xs[0].device)
    whole = accumulate(xs, w, labels, None, grids, 1).cpu().numpy()
    folds = whole.shape[2] // (d + 1)
    # The columns of all problems on one grid.
    grid = Grid(np.concatenate([grid.scale for grid in grids]), grids[0].step, folds)
    whole = whole.reshape(b, folds, d + 1).transpose(1, 0, 2).reshape(1, -1)
    total = grid.total(np_compat, whole, grid.scale).reshape(b, d + 1)
    means = device.placed(total[:, None, :d] / total[:, None, d:], xs[0])
    units = np.stack([units, units], axis=1)
    return own_distances(xs, units, means, labels), total[:, d]
