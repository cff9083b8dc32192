"""Triton kernels for CUDA tensors, and for CuPy arrays through DLPack: a pass without the host.

`screen` scores rows in half precision and proves labels, `resolve` decides what is left in float64, `sums`
adds by integer atomics and ends the pass; `passes` launches them, `looks` what comes before and after. `seeding` is all of k-means++. Whatever needs
Triton is imported when first called. With ``TRITON_INTERPRET=1`` they run on CPU tensors, slowly, for tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from anykmeans import _libraries as arrays
from anykmeans._extent import Extent
from anykmeans._frame import BESIDE, Frame, largest_and_offsets, power_of_two
from anykmeans._grid import significant_bits
from anykmeans._libraries import Array, Selection, stacked
from anykmeans._lloyd import Watch, lloyd
from anykmeans._stats import Cost
from anykmeans.kernels.agnostic import Kernel
from anykmeans.kernels.optional import broken
from anykmeans.kernels.torch import Torch

if TYPE_CHECKING:
    from anykmeans.kernels.triton.passes import DeviceSearch
    from anykmeans.sources.descent import InMemory
    from anykmeans.sources.rows import Rows

T = TypeVar("T")

_FEATURES = 1 << 16  # a row must fit the differences of one tile; more take minutes to compile
_ROWS = (1 << 31) - (
    1 << 20
)  # their numbers, and those of the block after the last, must fit int32
_CUDA = 2  # what DLPack calls a device's own memory
_PROBLEMS = (1 << 16) - 1  # a grid has no more along its second axis


class Triton(Torch):
    """Passes in launches that many problems share, and none of which waits for the host."""

    name, library, blas = "triton", "torch", False
    metrics = ("euclidean",)

    def why_not(self, x: Array) -> str | None:
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

    # -- steps on a tile ----------------------------------------------------------------------

    def own_distances(self, frame: Frame, select: Selection, wide: Array, labels: Array) -> Array:
        """Return the squared distances (m,) of selected rows to their labels' centroids of `wide` (k, d)."""
        from anykmeans.kernels.triton import looks

        xs, units = [frame.matrix.data[select]], np.asarray([[frame.unit, 1.0]])
        return looks.own_distances(xs, units, wide[None], labels[None])[0]

    def sums(self, rows: Rows, select: Selection, new: Array, old: Array | None, k: int) -> Array:
        """Return the whole-number sums (k, columns) of selected rows by label `new` (m,), less by `old`."""
        from anykmeans.kernels.triton import looks

        w, before = rows.relative_weight(select), None if old is None else old[None]
        w = None if w is None else w[None]
        return looks.accumulate([rows.matrix.data[select]], w, new[None], before, [rows.grid], k)[0]

    def tiles(self, rows: Rows, m: int, clusters: int = 0) -> list[slice]:
        """Return all `m` rows at once: they are read where they are."""
        return [slice(0, m)] if m else []

    # -- passes over rows ---------------------------------------------------------------------

    def extents(self, all_rows: Sequence[Rows]) -> list[Extent]:
        """Return what one look at the rows of each source tells, of one launch and one look at what it found."""
        from anykmeans.kernels.triton import looks

        one, w = all_rows[0], relative_weights(all_rows)
        xs, (n, d), matrix = [rows.matrix.data for rows in all_rows], one.shape, one.matrix
        parts = [looks.magnitudes(xs[part], w and stacked(one.xp, w[part])) for part in _parts(xs)]
        high, largest, smallest = np.concatenate(parts).transpose(1, 0, 2)
        digits: Iterable[float | None] = [None] * len(all_rows)
        if w is not None and one.weights is not None:
            digits = significant_bits(one.xp, stacked(one.xp, w), one.weights.precision[0]).tolist()
        found = zip(all_rows, high[:, :d], largest, smallest, digits, strict=True)
        return [
            Extent(n, a, b, c, matrix.precision, matrix.integral, bits, rows.heaviest)
            for rows, a, b, c, bits in found
        ]

    def search(self, rows: Rows, frame: Frame, c: Array, bounds: str) -> DeviceSearch:
        """Return the search of all rows, see `anykmeans.kernels.triton.passes`."""
        from anykmeans.kernels.triton.passes import DeviceSearch

        return DeviceSearch(frame, rows.work, c.shape[0], exact=rows.exact)

    def cost(self, rows: Rows, frame: Frame, distances: Array) -> Cost:
        """Return the exact sum of per-row `distances` (n,), squared and in the `frame`, by relative weight."""
        from anykmeans.kernels.triton import looks

        w = rows.relative_weight(rows.every)
        (cost,) = looks.costs(distances[None], None if w is None else w[None])
        return cost

    def variances(self, all_rows: Sequence[Rows]) -> list[float]:
        """Return the mean over features of the weighted variance of each source's rows, in their own frame."""
        from anykmeans.kernels.triton import looks

        w, found = relative_weights(all_rows), []
        for part in _parts(all_rows):
            xs = [rows.matrix.data for rows in all_rows[part]]
            frames = [rows.frame() for rows in all_rows[part]]
            units = np.asarray([frame.unit for frame in frames])
            grids = [rows.grid for rows in all_rows[part]]
            heavy = w and stacked(all_rows[0].xp, w[part])
            distances, weights = looks.deviations(xs, units, heavy, grids)
            costs = np.asarray([float(cost) for cost in looks.costs(distances, heavy)])
            found.append(costs / weights / all_rows[0].matrix.features)
        variances: list[float] = np.concatenate(found).tolist()
        return variances

    # -- whole jobs ---------------------------------------------------------------------------

    def together(self, problems: Iterable[T]) -> Iterator[list[T]]:
        """Yield all problems at once: they share launches."""
        yield list(problems)

    def picks(
        self, all_rows: Sequence[Rows], first: Sequence[int], draws: np.ndarray
    ) -> list[np.ndarray]:
        """Return the rows (k,) that greedy k-means++ picks of each source, of launches all share.

        Sources are different ones, whose rows follow each other in memory at one distance, or all the same.
        """
        from anykmeans.kernels.triton import seeding

        one = all_rows[0]
        if (
            draws.shape[1] == 0
            or draws.shape[2] > seeding.CANDIDATES
            or one.shape[1] > seeding.MOST
        ):
            return super().picks(all_rows, first, draws)
        w, found = relative_weights(all_rows), []
        # Costs, owners, candidates won; different rows are there to be worked on all at once.
        most = max(1, one.work.max_bytes // (16 * one.shape[0])) if _alike(all_rows) else _PROBLEMS
        for part in _parts(all_rows, most):
            frames = [rows.frame() for rows in all_rows[part]]
            seeds = seeding.Seeds(frames, w and w[part], first[part], draws[part])
            found += list(seeds.run())
        return found

    def start(self, all_rows: Sequence[Rows], starts: Sequence[Array]) -> list[InMemory]:
        """Return a run of each source, from centroids (k, d) that stay where they are, if all of them show beside the rows.

        Runs over one source share a frame, and with it rounded rows.
        """
        one, alike = all_rows[0], _alike(all_rows)
        largest, offsets = largest_and_offsets(one.xp, stacked(one.xp, starts), alike=alike)
        tops = [max(rows.largest, each) for rows, each in zip(all_rows, largest, strict=True)]
        shows = [top <= BESIDE * rows.largest for rows, top in zip(all_rows, tops, strict=True)]
        most = max((top for top, show in zip(tops, shows, strict=True) if show), default=0.0)
        shared = Frame(one.matrix, most, offsets[0])
        runs = []
        for rows, c, top, offset, show in zip(all_rows, starts, tops, offsets, shows, strict=True):
            frame: Frame | None = None
            if show and not alike:
                frame = Frame(rows.matrix, top, offset)
            elif show and power_of_two(top) == shared.exponent:
                frame = shared
            with rows.named():
                runs.append(rows.start(c, frame=frame))
        return runs

    def descend(
        self,
        runs: Sequence[InMemory],
        tols: Sequence[float],
        max_iter: int,
        empty: str,
        watch: Watch | None,
    ) -> list[tuple[Array, int, bool]]:
        """Return the centroids (k, d) that each run reaches, its passes, and whether it converged: of launches all share."""
        if watch is not None:
            return super().descend(runs, tols, max_iter, empty, watch)
        from anykmeans.kernels.triton.passes import Passes

        ends = []
        for part in _parts(runs):
            some = runs[part]
            shared = Passes([_search(run) for run in some])
            for i, run in enumerate(some):
                _search(run).join(shared, i)
            begun = shared.leap(
                {i: run.c for i, run in enumerate(some)},
                max_iter,
                list(tols[part]),
                relative_weights([run.rows for run in some]),
                [run.rows.grid for run in some],
                keep=empty == "keep",
                last=True,
            )
            for run, tol, (c, done, moved) in zip(some, tols[part], begun, strict=True):
                with run.rows.named():
                    end = lloyd(
                        run, c, max_iter=max_iter, tol=tol, empty=empty, done=done, moved=moved
                    )
                    ends.append(end)
        return ends

    def label(self, runs: Sequence[InMemory], ends: Sequence[Array]) -> list[tuple[Array, float]]:
        """Return labels (n,) and inertia of each run for the centroids (k, d) returned, of launches all share."""
        from anykmeans.kernels.triton import looks

        searches, costs = [_search(run) for run in runs], np.empty(len(runs))
        w = relative_weights([run.rows for run in runs])
        labels: list[Array] = [None] * len(runs)
        for shared in dict.fromkeys(search.passes for search in searches):
            at = [i for i, search in enumerate(searches) if search.passes is shared]
            shared.relabel({searches[i].place: ends[i] for i in at})
            heavy = w and stacked(runs[0].rows.xp, [w[i] for i in at])
            costs[at] = [float(cost) for cost in looks.costs(shared.distances(), heavy)]
            every = shared.labels.unbind()
            for i in at:
                labels[i] = every[searches[i].place]
        for run in runs:
            del run.search  # whose memory is as large as what follows
        exponents = [2 * run.frame.exponent + run.rows.heaviest for run in runs]
        return list(zip(labels, np.ldexp(costs, exponents).tolist(), strict=True))


def relative_weights(all_rows: Sequence[Rows]) -> list[Array] | None:
    """Return the relative weights (n,) of each source, or None where all are one."""
    if all_rows[0].weights is None:
        return None
    return [rows.relative_weight(rows.every) for rows in all_rows]


def _alike(all_rows: Sequence[Rows]) -> bool:
    """Return whether all sources are one."""
    return all(rows is all_rows[0] for rows in all_rows)


def _parts(problems: Sequence[object], most: int = _PROBLEMS) -> list[slice]:
    """Return slices of problems, as many as a launch takes."""
    most = min(most, _PROBLEMS)
    return [slice(i, i + most) for i in range(0, len(problems), most)]


def _search(run: InMemory) -> DeviceSearch:
    """Return the search of a run, which is of this kernel."""
    search: DeviceSearch = run.search  # type: ignore[assignment]
    return search


KERNEL: Kernel = Triton()
