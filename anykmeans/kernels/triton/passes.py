# mypy: allow-untyped-defs, allow-untyped-calls
"""The search on a GPU: buffers, launches, and passes that the host only watches."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import torch
import triton

from anykmeans._array import Array
from anykmeans._exact import Bounds, Grid
from anykmeans.kernels.triton import resolve, screen, sums
from anykmeans.kernels.triton.screen import COLUMNS, STATES

_GRAPH = 1 << 32  # products of a pass below which launches are what costs: they are replayed as a graph
_CACHE = 1 << 24  # bytes of rows in half precision, where not all of them are kept
_BLOCKS = 4  # for lists of unknown length, on each multiprocessor


class Search:
    """Labels of all rows, found anew in each pass, and passes that end without the host.

    Parameters
    ----------
    frame : Frame
        The rows, and the coordinates to compare them in.
    work : Work
        The budget for memory.
    k : int
        Number of centroids.
    exact : bool
        Whether labels are certified.
    """

    def __init__(self, frame: Any, work: Any, k: int, *, exact: bool) -> None:
        matrix = frame.matrix
        self._x, self._k, self._exact = matrix.data, k, exact
        self.frame, self._max_bytes = frame, work.max_bytes
        (self._n, self._d), on = matrix.shape, {"device": matrix.data.device}
        self._on = on
        n, d, b = self._n, self._d, 1
        self._b = b
        unit, offset = frame.affine(narrow=False)
        reach = math.frexp(frame.largest * float(unit) + float(np.abs(offset).max()))[1]
        self._width, self._chunk = _widths(d)
        x = matrix.data
        # Float16 rows are read as they are, if that gives the numbers that would be written.
        self._direct = (
            matrix.dtype == "float16"
            and d == self._width
            and x.stride(1) == 1
            and not offset.any()
            and unit == 1
            and -4 <= reach <= 15
        )
        scale = 1.0 if self._direct else 2.0 ** (screen.LARGEST - reach)
        # In float32 the scaling must be exact, and one rounding follows.
        self._wide = not (matrix.narrow and 2.0**-126 <= unit * scale < 2.0**127)
        table = np.zeros((b, COLUMNS))
        table[:, screen.UNIT], table[:, screen.SCREEN] = unit, scale
        table[:, screen.TIE] = Bounds.of(d, 2.0**-53).tie
        self._table = torch.as_tensor(table, **on)
        self._offset = torch.as_tensor(np.ascontiguousarray(offset[None, :]), **on)
        self._state = torch.zeros((b, STATES), dtype=torch.int64, **on)
        self._worst = torch.zeros((b, 3), dtype=torch.int32, **on)

        self._slots = -(-k // screen.LANES) * screen.LANES
        self._c = torch.zeros((b, 2, k, d), dtype=matrix.state_dtype, **on)
        self._high, self._low = torch.empty(
            (2, b, self._slots, self._width), dtype=torch.float16, **on
        )
        self._norms = torch.empty((b, self._slots), dtype=torch.float32, **on)
        self._new = torch.zeros((b, n), dtype=torch.int32, **on)
        self._lists = torch.empty((2, b, n), dtype=torch.int32, **on)
        self._lengths = torch.empty((b, 2, n), dtype=torch.float32, **on)
        self._halves, self._room = x, n
        if not self._direct:
            # All rows if they fit, else a part at a time that stays in the L2 cache.
            row = 2 * b * self._width
            self._room = n if n * row <= self._max_bytes // 2 else max(1, min(_CACHE, self._max_bytes // 2) // row)
            self._halves = torch.empty((b, self._room, self._width), dtype=torch.float16, **on)
        self._kept = self._room == n
        if self._kept:
            self._halve(0, n)
        self._sums: torch.Tensor | None = None

    @property
    def labels(self) -> Array:
        """The labels (n,) of the centroids last settled for."""
        return self._new[0]

    def settle(self, c: Array) -> list[Any]:
        """Give every row its nearest centroid of `c`; what changed is asked of sources that do not leap."""
        with _device(self._x):
            self._begin(c)
            self._nearest()
        return []

    def leap(
        self, c: Array, passes: int, tol: float, w: Array | None, grid: Grid, *, keep: bool
    ) -> tuple[Array, int, float]:
        """Return the centroids after up to `passes` passes, how many, and the last shift.

        It stops before a pass that would leave a cluster without weight, unless to `keep` its centroid is
        what to do then.
        """
        with _device(self._x):
            self._begin(c)
            self._state[:, screen.MOST] = passes
            self._table[:, screen.TOL] = tol
            if self._sums is None:
                self._plan(grid, w)
            self._keep = keep
            self._run(passes)
            state = self._state.cpu()
            made = int(state[0, screen.PASSES])
            vacant = int(state[0, screen.DONE]) == screen.VACANT
            shift = math.nan if made == 0 or vacant else float(self._shifts[0])
            return self._c[0, made % 2].clone(), made, shift

    def _plan(self, grid: Grid, w: Array | None) -> None:
        """Make room for sums, and for what a pass ends with."""
        b, n, k, d, on = self._b, self._n, self._k, self._d, self._on
        self._folds = grid.folds
        width = grid.folds * (d + 1)
        self._copies = max(1, min(sums.COPIES, self._max_bytes // 64 // (b * k * width)))
        self._sums = torch.zeros((b, self._copies, k, width), dtype=torch.int64, **on)
        self._old = torch.full((b, n), -1, dtype=torch.int32, **on)
        self._scale = torch.as_tensor(grid.scale, **on).reshape(b, d + 1)
        self._table[:, screen.STEP] = grid.step
        self._weighted = w is not None
        self._w = self._scale if w is None else w.contiguous().reshape(b, n)
        self._scratch = torch.empty((b, k, d), dtype=torch.float64, **on)
        self._moves = torch.empty((b, k), dtype=torch.float64, **on)
        self._shifts = torch.zeros(b, dtype=torch.float64, **on)

    def _begin(self, c: Array) -> None:
        self._c[0, 0] = c
        self._state.zero_()
        self._worst.zero_()

    def _run(self, passes: int) -> None:
        """Launch passes; look whether they go on one pass late, so that the device never waits."""
        if not self._x.is_cuda:
            for _ in range(passes):
                self._pass()
                if bool((self._state[:, screen.DONE] != 0).all()):
                    return
            return
        seen = torch.zeros((2, self._b, STATES), dtype=torch.int64, pin_memory=True)
        events = [torch.cuda.Event(), torch.cuda.Event()]
        launch = self._pass
        for turn in range(passes):
            launch()
            if turn == 0 and passes > 4 and self._b * self._n * self._k * self._d < _GRAPH:
                launch = self._captured()
            now, before = turn % 2, 1 - turn % 2
            seen[now].copy_(self._state, non_blocking=True)
            events[now].record()
            if turn:
                events[before].synchronize()
                if bool((seen[before][:, screen.DONE] != 0).all()):
                    return

    def _captured(self) -> Any:
        """Return what replays the launches of a pass, all kernels of which have run before."""
        graph = torch.cuda.CUDAGraph()
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            graph.capture_begin(capture_error_mode="thread_local")
            self._pass()
            graph.capture_end()
        current.wait_stream(stream)
        return graph.replay

    def _pass(self) -> None:
        """Launch one pass: labels, sums, means, and whether to go on."""
        self._nearest()
        b, n, k, d = self._b, self._n, self._k, self._d
        of = {"COLUMNS": COLUMNS, "STATES": STATES}
        exact = {"enable_fp_fusion": False}  # the host rounds every product
        sums.accumulate[(triton.cdiv(n, sums.ROWS), b)](
            *(self._x, self._w, self._scale, self._table, self._state, self._old, self._new),
            *(self._sums, n, k, d, self._folds, self._copies, *self._strides()),
            WEIGHTED=self._weighted,
            ROWS=sums.ROWS,
            WIDTH=sums.WIDTH,
            **of,
            **exact,
        )
        copies = 1 << (self._copies - 1).bit_length()
        sums.means[(k, b)](
            *(self._c, self._scale, self._table, self._state, self._sums, self._scratch),
            *(self._moves, k, d, self._folds, self._copies),
            WIDTH=sums.WIDTH,
            COPIES=copies,
            KEEP=self._keep,
            **of,
            **exact,
        )
        sums.advance[(b,)](
            *(self._table, self._state, self._worst, self._moves, self._shifts, k),
            WIDTH=1024,
            **of,
        )

    def _strides(self) -> tuple[int, int, int]:
        return (0, *self._x.stride())

    def _nearest(self) -> None:
        """Launch what labels all rows."""
        b, n, k, d, slots, width = self._b, self._n, self._k, self._d, self._slots, self._width
        of = {"COLUMNS": COLUMNS, "STATES": STATES}
        centroids = (self._high, self._low, self._norms, self._worst)
        chunk = min(self._chunk, screen.CHUNK)
        screen.prepare[(slots // 16, b)](
            *(self._c, self._offset, self._table, self._state, *centroids, k, d, slots),
            ROWS=16,
            WIDTH=width,
            CHUNK=chunk,
            **of,
        )
        mask = (1 << (slots // screen.LANES - 1).bit_length()) - 1
        for first in range(0, n, self._room):
            stop = min(first + self._room, n)
            if not self._kept:
                self._halve(first, stop)
            across = self._halves.stride(-2)
            screen.screen[(triton.cdiv(stop - first, screen.ROWS), b)](
                *(self._halves, self._lengths, self._state, self._high, self._norms, self._worst),
                *(self._new, self._lists, n, k, d, slots, first, stop, self._room * across, across),
                mask,
                (min(d, self._chunk) + 16) * 2.0**-22,
                (width // self._chunk + 2 + mask) * 2.0**-23,
                STATES=STATES,
                ROWS=screen.ROWS,
                LANES=screen.LANES,
                WIDTH=width,
                CHUNK=self._chunk,
                EXACT=self._exact,
                num_warps=8,
                # So that two blocks share a multiprocessor: one scores while the other looks for the lowest.
                maxnreg=128 if width <= 128 else None,
            )
        if self._exact:
            screen.again[(min(triton.cdiv(n, screen.FEW), self._many(_BLOCKS)), b)](
                *(self._x, self._offset, self._table, self._state, *centroids, self._new),
                *(self._lists[0], self._lists[1], n, k, d, slots, *self._strides()),
                (min(d, chunk) + 16) * 2.0**-22 + 2.0**-28,
                (width // chunk + 2) * 2.0**-23,
                ROWS=screen.FEW,
                LANES=screen.NARROW,
                WIDTH=width,
                CHUNK=chunk,
                WIDE=self._wide,
                num_warps=4,
                **of,
            )
        if self._exact:
            padded = 1 << (d - 1).bit_length()
            resolve.resolve[(min(n, self._many(8 * _BLOCKS)), b)](
                *(self._x, self._c, self._table, self._state, self._new, self._lists[1]),
                *(n, k, d, *self._strides(), screen.SECOND),
                WIDTH=padded,
                IDS=max(1, resolve.TILE // padded),
                enable_fp_fusion=False,
                **of,
            )

    def _halve(self, first: int, stop: int) -> None:
        """Launch what rounds rows to float16."""
        screen.halve[(triton.cdiv(stop - first, 32), self._b)](
            *(self._x, self._offset, self._table, self._halves, self._lengths),
            *(self._n, self._d, self._room, first, stop, *self._strides()),
            COLUMNS=COLUMNS,
            ROWS=32,
            WIDTH=self._width,
            CHUNK=min(self._width, screen.CHUNK),
            WIDE=self._wide,
            KEEP=not self._direct,
        )

    def _many(self, each: int) -> int:
        """Return how many blocks keep the device busy."""
        if not self._x.is_cuda:
            return 2
        return each * torch.cuda.get_device_properties(self._x.device).multi_processor_count


def _widths(d: int) -> tuple[int, int]:
    """Return to how many features `d` are padded, and how many of them go into a product."""
    padded = max(16, 1 << (d - 1).bit_length())
    if padded <= screen.HELD:
        return padded, padded
    return -(-d // screen.CHUNK) * screen.CHUNK, screen.CHUNK


def own_distances(x: Array, unit: float, wide: Array, labels: Array, distances: Array) -> None:
    """Write the squared `distances` (m,) of rows `x` (m, d) to their own centroids of `wide` (k, d)."""
    m, d = x.shape
    padded = 1 << (d - 1).bit_length()
    rows = max(1, resolve.TILE // padded)
    with _device(x):
        resolve.own[(triton.cdiv(m, rows),)](
            *(x, wide.contiguous(), labels, distances),
            torch.as_tensor(unit, dtype=torch.float64, device=x.device),
            *(m, d, *x.stride()),
            WIDTH=padded,
            ROWS=rows,
            enable_fp_fusion=False,
        )


def _device(x: Array) -> Any:
    """Return a context in which kernels are launched where `x` is."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
