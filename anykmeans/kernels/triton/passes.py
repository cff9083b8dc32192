# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs
"""The search on a GPU: memory, launches, and passes that the host only watches."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton

from anykmeans._bounds import Bounds
from anykmeans._grid import Grid
from anykmeans._libraries import Array
from anykmeans._search import Change, Search
from anykmeans.kernels.triton import device, looks, marginals, resolve, screen, sums
from anykmeans.kernels.triton.screen import COLUMNS, STATES

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work
    from anykmeans.sources.descent import InMemory

_UNSEEN = 4  # passes between two looks at whether they go on, at most
_BLOCKS = 2  # for a list of unknown length, on each multiprocessor


class DeviceSearch(Search):
    """The labels of one problem's rows, found anew in each pass.

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

    def __init__(self, frame: Frame, work: Work, k: int, *, exact: bool) -> None:
        self.frame, self.work, self.k, self.exact = frame, work, k, exact
        self._passes: Passes | None = None
        self.place = 0

    def join(self, passes: Passes, place: int) -> None:
        """Be the problem number `place` of those that `passes` are made of."""
        self._passes, self.place = passes, place

    @property
    def passes(self) -> Passes:
        """What finds the labels: of this problem alone, unless it has joined others."""
        if self._passes is None:
            self._passes = Passes([self])
        return self._passes

    @property
    def labels(self) -> Array:
        """The labels (n,) of the last centroids."""
        return self.passes.labels[self.place]

    def relabel(self, c: Array) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; any label may have changed."""
        self.passes.relabel({self.place: c})
        return [], self.frame.matrix.shape[0]

    def steps(
        self, run: InMemory, c: Array, most: int, tol: float, empty: str
    ) -> tuple[Array, int, float]:
        """Return the centroids after up to `most` passes, how many, and the last squared move.

        It stops before a pass that would leave a cluster without weight, unless that is to be kept.
        """
        rows, keep = run.rows, empty == "keep"
        w = None if rows.weights is None else [rows.relative_weight(rows.every)]
        (found,) = self.passes.leap({self.place: c}, most, [tol], w, [rows.grid], keep=keep)
        run.forget()
        return found if found[1] else super().steps(run, c, most, tol, empty)


class Passes:
    """Passes over b problems of one shape, that end without the host; and all the memory they take.

    Parameters
    ----------
    searches : list of DeviceSearch
        The problems: their rows must follow each other in memory at one distance.
    """

    def __init__(self, searches: list[DeviceSearch]) -> None:
        frames, one = [search.frame for search in searches], searches[0]
        matrix = one.frame.matrix
        self._x, self._k, self._exact = matrix.data, one.k, one.exact
        self._max_bytes = one.work.max_bytes
        self._b, (self._n, self._d) = len(searches), matrix.shape
        self._on, self._about = {"device": self._x.device}, device.about(self._x)
        self._xs = [frame.matrix.data for frame in frames]
        self._strides = device.strides(self._xs)
        self._width, self._chunk = _widths(self._d, self._about.shared)
        self._padded = 1 << (self._d - 1).bit_length()
        self._frame(frames)
        self._marginals = (
            self._about.hopper
            and self._k > screen.LANES
            and self._exact
            and (self._width == self._chunk) == (self._width <= screen.HELD)
            and self._describable()
        )
        self._lists(matrix.state_dtype)
        # Restarts look at one matrix in one frame: its rows are rounded once.
        alike = self._b > 1 and all(frame is frames[0] for frame in frames)
        self._halve(1 if alike else self._b, bounded=one.work.bounded)
        self._sums: torch.Tensor | None = None
        self._keep = False
        self._forget_launches()
        self._ends: list[Array] = []

    def _frame(self, frames: list[Frame]) -> None:
        """Note where the coordinates of each problem begin, and what they are multiplied by."""
        b, d, matrix = self._b, self._d, frames[0].matrix
        units, offsets = zip(*(frame.affine(narrow=False) for frame in frames), strict=True)
        unit, offset = np.asarray(units), np.asarray(offsets)
        largest = np.asarray([frame.largest for frame in frames])
        self._units = unit
        reach = np.frexp(largest * unit + np.abs(offset).max(axis=1))[1]
        # Float16 rows are read as they are, if that gives the numbers that would be written.
        self._direct = (
            matrix.dtype == "float16"
            and d == self._width
            and self._x.stride(1) == 1
            and not offset.any()
            and bool((unit == 1).all() and (reach >= -4).all() and (reach <= 14).all())
        )
        scale = np.ones(b) if self._direct else np.ldexp(1.0, screen.LARGEST - reach)
        # In float32 the scaling must be exact, and one rounding follows.
        exact = (unit * scale >= 2.0**-126).all() and (unit * scale < 2.0**127).all()
        self._wide = not (matrix.narrow and bool(exact))
        table = np.zeros((b, COLUMNS.value))
        table[:, screen.UNIT.value], table[:, screen.SCREEN.value] = unit, scale
        table[:, screen.TIE.value] = Bounds.of(d, 2.0**-53).tie
        self._table, self._offset = device.placed(table, self._x), device.placed(offset, self._x)
        self._state = torch.zeros((b, STATES.value), dtype=torch.int64, **self._on)
        self._worst = torch.zeros((b, screen.WORST.value), dtype=torch.int32, **self._on)

    def _lists(self, dtype: torch.dtype) -> None:
        """Make room for centroids of a `dtype` and their halves, for labels, and for lists of rows."""
        b, n, k, d, on = self._b, self._n, self._k, self._d, self._on
        self._lanes = marginals.lanes(k) if self._marginals else screen.LANES
        self._slots = -(-k // self._lanes) * self._lanes
        self._c = torch.zeros((b, 2, k, d), dtype=dtype, **on)
        self._high = torch.empty((b, self._slots, self._width), dtype=torch.float16, **on)
        self._norms = torch.empty((b, self._slots), dtype=torch.float32, **on)
        self.labels = torch.empty((b, n), dtype=torch.int32, **on)
        # Several arrays, not one: kernels are compiled for how a pointer is aligned.
        self._listed = torch.empty((b, n), dtype=torch.int32, **on)
        self._limits = torch.empty((b, n), dtype=torch.float32, **on)
        rows, rivals = resolve.ROWS, resolve.RIVALS.value
        most = _BLOCKS * self._about.multiprocessors
        blocks = max(1, min(most, self._max_bytes // 8 // (2 * rows * self._width)))
        self._open = torch.empty((blocks, rows, self._width), dtype=torch.float16, **on)
        self._rivals = torch.empty((blocks, rows, rivals), dtype=torch.int32, **on)
        self._counts = torch.empty((blocks, rows), dtype=torch.int32, **on)

    def _halve(self, problems: int, *, bounded: bool) -> None:
        """Make room for rows in half precision: all if there is enough, else a part at a time; and round them, if all."""
        n, on = self._n, self._on
        self._rounded = problems
        self._lengths = torch.empty((problems, 2, n), dtype=torch.float32, **on)
        self._halves, self._room, self._between = self._x, n, self._strides[0]
        if not self._direct:
            row, most = 2 * problems * self._width, self._max_bytes // 2
            if row * n > most and not bounded:
                most = max(most, device.free(self._x) // 4)
            self._room = min(n, max(1, most // row))
            shape = problems, self._room, self._width
            self._halves = torch.empty(shape, dtype=torch.float16, **on)
            self._between = self._halves.stride(0) if problems == self._b else 0
        if self._marginals:
            self._tiles = self._described()
        self._kept = self._room == n
        if self._kept:
            with device.on_device(self._x):
                self._round(0, n)

    def _describable(self) -> bool:
        """Return whether the rows of all problems, as they are or rounded, are a matrix that the GPU can fetch tiles of."""
        if not self._direct:
            return bool(self._b * self._n < 1 << 31)
        apart, across, _ = self._strides
        last = self._x.storage_offset() + (self._b - 1) * apart + (self._n - 1) * across + self._d
        return bool(
            across > 0
            and across % 8 == apart % across == self._x.data_ptr() % 16 == 0
            and last // across < 1 << 31
            and 2 * last <= self._x.untyped_storage().nbytes()
        )

    def _described(self) -> tuple[Any, Any]:
        """Return descriptors of the tiles of rows, as they are or rounded, and of centroids, all problems' end to end."""
        from triton.tools.tensor_descriptor import TensorDescriptor

        width, high = self._width, self._high.reshape(-1, self._width)
        if self._direct:
            apart, across, _ = self._strides
            self._between = apart // across  # in rows
            rows = self._x.as_strided((self._between * (self._b - 1) + self._n, width), (across, 1))
        else:
            self._between = self._room if self._rounded == self._b else 0
            rows = self._halves.reshape(-1, width)
        return (
            TensorDescriptor.from_tensor(rows, [marginals.ROWS, marginals.chunk(width)]),
            TensorDescriptor.from_tensor(high, [self._lanes, marginals.chunk(width)]),
        )

    def _forget_launches(self) -> None:
        """Look at the arguments of kernels anew."""
        self._labelling, self._moving = device.Launches(), device.Launches()

    def relabel(self, centroids: dict[int, Array]) -> None:
        """Label all rows of the problems whose `centroids` are given by their number."""
        if self._ends and all(end is centroids.get(i) for i, end in enumerate(self._ends)):
            return  # while the host was told of them
        with device.on_device(self._x):
            self._begin(centroids)
            self._label()
            self._labelled_by = self._c

    def leap(
        self,
        centroids: dict[int, Array],
        passes: int,
        tol: list[float],
        w: list[Array] | None,
        grids: list[Grid],
        *,
        keep: bool,
        last: bool = False,
    ) -> list[tuple[Array, int, float]]:
        """Return for the problems given centroids, how many passes there were, and the last squared move, of passes all problems make at once.

        If they are the `last`, rows are labelled meanwhile, where no cluster was empty.
        """
        with device.on_device(self._x):
            self._begin(centroids, passes)
            if self._sums is None:
                self._plan(grids, w)
            tols = np.zeros(self._b)
            tols[list(centroids)] = tol
            self._table[:, screen.TOL.value] = device.placed(tols, self._x)
            if keep != self._keep:
                self._keep = keep
                self._forget_launches()
            self._run(passes)
            shifts = self._shifts.view(torch.int64)[:, None]
            told = device.Fetched(torch.cat([self._state, shifts], dim=1))
            odd = (self._state[:, screen.PASSES.value, None, None] & 1).bool()
            c = torch.where(odd, self._c[:, 1], self._c[:, 0])
            ends = c.unbind()
            if last:
                # Those that have stopped, which is 1, run; where a cluster is empty, which is 2, nothing changes.
                self._state[:, screen.DONE.value].bitwise_and_(screen.VACANT.value)
                self._label()
                self._ends, self._labelled_by = list(ends), c
        state = told.numpy()
        made, done = state[:, screen.PASSES.value], state[:, screen.DONE.value]
        still = (made > 0) & (done != screen.VACANT.value)
        if not still.all():
            self._ends = []
        shift = np.where(still, state[:, -1].view(np.float64), math.nan)
        return [(ends[i], int(made[i]), float(shift[i])) for i in centroids]

    def distances(self) -> Array:
        """Return the squared distances (b, n) of all rows to the centroids that they were last labelled by."""
        units = np.repeat(self._units[:, None], 2, axis=1)
        return looks.own_distances(self._xs, units, self._labelled_by, self.labels)

    def _plan(self, grids: list[Grid], w: list[Array] | None) -> None:
        """Make room for sums, and for what a pass ends with."""
        b, n, k, d, on = self._b, self._n, self._k, self._d, self._on
        self._folds = max(grid.folds for grid in grids)  # more than needed change no sum
        width = self._folds * (d + 1)
        most = self._about.multiprocessors
        self._copies = sums.copies(k, b * k * width, self._max_bytes, most)
        self._sums = torch.zeros((b, self._copies, k, width), dtype=torch.int64, **on)
        self._old = torch.full((b, n), -1, dtype=torch.int32, **on)
        self._scale = device.placed(np.stack([grid.scale for grid in grids]), self._x)
        self._table[:, screen.STEP.value] = grids[0].step
        self._weighted = w is not None
        self._w = self._scale if w is None else torch.stack(w)
        held = d <= sums.HELD
        self._scratch = torch.empty((1,) if held else (b, k, d), dtype=torch.float64, **on)
        self._moves = torch.empty((b, k), dtype=torch.float64, **on)
        self._shifts = torch.zeros(b, dtype=torch.float64, **on)

    def _begin(self, centroids: dict[int, Array], passes: int = 0) -> None:
        """Take the centroids of some problems, for so many passes at most; the others wait."""
        state = np.zeros((self._b, STATES.value), np.int64)
        state[:, screen.DONE.value] = screen.STOPPED.value
        state[list(centroids), screen.DONE.value] = screen.RUNNING.value
        state[:, screen.MOST.value] = passes
        self._state.copy_(torch.from_numpy(state), non_blocking=True)
        self._worst.zero_()
        self._ends = []
        starts = list(centroids.values())
        if starts[0].dtype != self._c.dtype:  # given ones may be of more digits than means have
            self._c = self._c.to(starts[0].dtype)
            self._forget_launches()
        if len(starts) == self._b:
            torch.stack(starts, out=self._c[:, 0])
        else:
            for i, c in centroids.items():
                self._c[i, 0] = c

    def _run(self, passes: int) -> None:
        """Launch passes; look whether they go on, and that late, so that the device never waits."""
        if not self._x.is_cuda:
            for _ in range(passes):
                self._pass()
                if bool((self._state[:, screen.DONE.value] != 0).all()):
                    return
            return
        before, look, apart = None, 0, 1
        for turn in range(passes):
            self._pass()
            if turn < look:
                continue
            now = device.Fetched(self._state)
            if before is not None:
                if before.there:  # passes are shorter than it takes to launch them and to look
                    apart = min(2 * apart, _UNSEEN)
                if (before.numpy()[:, screen.DONE.value] != screen.RUNNING.value).all():
                    return
            before, look = now, turn + apart

    def _pass(self) -> None:
        """Launch one pass: labels, sums, means, and whether to go on."""
        self._label()
        self._moving(self._move)

    def _label(self) -> None:
        """Launch what labels all rows."""
        self._labelling(self._nearest)

    def _move(self, launch: device.Launch) -> None:
        """Launch what adds rows up, moves centroids, and says whether to go on."""
        b, n, k, d = self._b, self._n, self._k, self._d
        exact = {"enable_fp_fusion": False}  # the host rounds every product
        span = sums.span(b * n)
        launch(sums.accumulate, (triton.cdiv(n, span), b))(
            *(self._x, self._w, self._scale, self._table, self._state, self._old, self.labels),
            *(self._listed, self._sums, n, k, d, self._folds, self._copies, *self._strides),
            WEIGHTED=self._weighted,
            SPAN=span,
            ROWS=sums.ROWS,
            WIDTH=min(self._padded, sums.MOVED),
            maxnreg=sums.REGISTERS,
            **exact,
        )
        launch(sums.means, (k, b))(
            *(self._c, self._scale, self._table, self._state, self._sums, self._scratch),
            *(self._moves, k, d, self._folds),
            WIDTH=min(self._padded, sums.HELD),
            COPIES=self._copies,
            HELD=d <= sums.HELD,
            KEEP=self._keep,
            num_warps=max(1, min(4, self._padded // 64)),
            maxnreg=128,
            **exact,
        )
        launch(sums.advance, (b,))(
            *(self._table, self._state, self._worst, self._moves, self._shifts, k),
            WIDTH=1024,
        )

    def _nearest(self, launch: device.Launch) -> None:
        """Launch what labels all rows."""
        b, n, k, d, slots, width = self._b, self._n, self._k, self._d, self._slots, self._width
        centroids = (self._high, self._norms, self._worst)
        chunk = min(self._chunk, screen.CHUNK)
        launch(screen.prepare, (slots // 16, b))(
            *(self._c, self._offset, self._table, self._state, *centroids, k, d, slots),
            ROWS=16,
            WIDTH=width,
            CHUNK=chunk,
        )
        full = slots <= screen.FULL
        mask = (1 << ((slots if full else slots // screen.LANES) - 1).bit_length()) - 1
        lists = (self.labels, self._listed, self._limits)
        lost = self._about.lost
        for first in range(0, n, self._room):
            stop = min(first + self._room, n)
            if not self._kept:
                self._round(first, stop, launch)
            if self._marginals:
                launch(
                    marginals.screen_by_marginals, (triton.cdiv(stop - first, marginals.ROWS), b)
                )(
                    *(*self._tiles, self._lengths, self._state, self._norms, self._worst),
                    *(*lists, n, d, slots, first, stop),
                    *(self._between, self._lengths.stride(0) if self._rounded == b else 0),
                    *(*marginals.errors(d, width, lost), 1.0),
                    ROWS=marginals.ROWS,
                    LANES=self._lanes,
                    **marginals.shape(self._lanes, width),
                )
                continue
            launch(screen.screen, (triton.cdiv(stop - first, screen.ROWS), b))(
                *(self._halves, self._lengths, self._state, self._high, self._norms, self._worst),
                *(*lists, n, k, d, slots, first, stop),
                *(self._between, self._lengths.stride(0) if self._rounded == b else 0),
                *(self._halves.stride(-2), mask),
                *(*screen.errors(d, width, self._chunk, lost, mask), 1.0),
                ROWS=screen.ROWS,
                LANES=screen.LANES,
                WIDTH=width,
                CHUNK=self._chunk,
                EXACT=self._exact,
                FULL=full,
                ONE=slots == screen.LANES and width == self._chunk,
                num_warps=8,
                # So that two blocks share a multiprocessor: one scores while the other looks for the lowest.
                maxnreg=128 if width <= 128 else None,
            )
        if self._exact:
            # Where tensor cores read shared memory: elsewhere as much would have to be in registers.
            held = self._chunk if self._about.hopper else chunk
            launch(resolve.resolve, (self._open.shape[0],))(
                *(self._x, self._offset, self._c, self._table, self._state),
                *(self._high, self._norms, *lists, self._open, self._rivals, self._counts),
                *(b, n, k, d, slots, *self._strides, 1.0),
                ROWS=resolve.ROWS,
                LANES=resolve.LANES,
                WIDTH=width,
                CHUNK=held,
                PART=chunk,
                WIDE=self._wide,
                FEW=max(1, min(resolve.MANY, resolve.COMPARED // self._padded)),
                PADDED=self._padded,
                IDS=max(1, resolve.COMPARED // self._padded),
                num_warps=8,
                enable_fp_fusion=False,  # the host rounds every product
            )

    def _round(self, first: int, stop: int, launch: device.Launch = device.launch) -> None:
        """Launch what rounds rows to float16."""
        launch(screen.round_rows, (triton.cdiv(stop - first, 32), self._rounded))(
            *(self._x, self._offset, self._table, self._halves, self._lengths),
            *(self._n, self._d, self._room, first, stop, *self._strides),
            ROWS=32,
            WIDTH=self._width,
            CHUNK=min(self._width, screen.CHUNK),
            WIDE=self._wide,
            KEEP=not self._direct,
        )


def _widths(d: int, shared: int) -> tuple[int, int]:
    """Return to how many features `d` are padded, and how many of them go into a product."""
    padded = max(16, 1 << (d - 1).bit_length())
    # A tile of rows and, on their way, three of centroids.
    if padded <= screen.HELD and 2 * padded * (screen.ROWS + 3 * screen.LANES) <= shared:
        return padded, padded
    return -(-d // screen.CHUNK) * screen.CHUNK, screen.CHUNK
