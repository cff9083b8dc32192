"""k-means in the Array API alone: distance, argmin and segment mean, and all that is made of them.

These three steps are what every other kernel is a faster way to make, and what it is compared with, bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from anykmeans import _distance
from anykmeans._bounds import squared_norms
from anykmeans._extent import Extent
from anykmeans._grid import exact_sum
from anykmeans._libraries import (
    Array,
    Namespace,
    Selection,
    device_of,
    is_sparse,
    like,
    namespace,
    np_compat,
    put,
    to_numpy,
)
from anykmeans._lloyd import Watch, lloyd
from anykmeans._matrix import Matrix
from anykmeans._search import Search, Tiled, members
from anykmeans._stats import ClusterStats, Cost, segment_mean
from anykmeans.kernels.seeding import Seeds

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans.sources.descent import InMemory
    from anykmeans.sources.rows import Rows

T = TypeVar("T")


def scores(y: Array, minus_2c: Array, norms: Array) -> Array:
    """Return the distance step: scores (m, k) of rows `y` (m, d), squared distances less ``|y|^2``.

    They are ``|c|^2 - 2 y.c``, with `norms` (k,) and `minus_2c` (d, k); what their rounding leaves open is decided by differences.
    """
    return y @ minus_2c + norms


def lowest_two(xp: Namespace, scores: Array) -> tuple[Array, Array, Array]:
    """Return the argmin step: labels (m,), best and second best of the `scores` (m, k) of each row."""
    labels = xp.argmin(scores, axis=1)
    best = xp.min(scores, axis=1)
    columns = xp.arange(scores.shape[1], dtype=labels.dtype, device=device_of(scores))
    infinity = xp.full_like(scores, xp.inf)
    second = xp.min(xp.where(columns == labels[:, None], infinity, scores), axis=1)
    return labels, best, second


def segment_sum(xp: Namespace, values: Array, labels: Array, k: int) -> Array:
    """Return the segment-mean step before its division: sums (k, columns) of `values` (m, columns), float64, by label.

    A product with the one-hot matrix: the standard has no scatter-add. It is exact, because the
    values are whole numbers whose sums a float64 holds. `segment_mean` divides.
    """
    columns = xp.arange(k, dtype=labels.dtype, device=device_of(values))
    one_hot = xp.astype(columns[:, None] == labels[None, :], values.dtype)  # (k, m)
    return one_hot @ values


class Kernel:
    """How the steps are made; here in the standard alone. Another kernel overrides what it makes faster.

    There are three levels: steps on a tile of rows, passes over all rows, and whole jobs. What a kernel has no
    answer to, for some rows or sizes, it leaves to ``super()``. It keeps nothing of a call.

    Attributes
    ----------
    name : str
        What it is called in `anykmeans.kernels.TABLE`.
    library : str or None
        The library whose view of an array it works on; None for the array's own.
    blas : bool
        Whether it makes products with a BLAS, which then has one thread in each of ours.
    named : bool
        Whether it was asked for by name, and so makes way for no other.
    metrics : tuple of str
        What it can compare rows by: "cosine" if it reads them by their matrix, as they are of another length there.
    """

    name = "agnostic"
    library: str | None = None
    blas = True
    metrics: tuple[str, ...] = ("euclidean", "cosine")

    def __init__(self, *, named: bool = False) -> None:
        self.named = named

    def why_not(self, x: Array) -> str | None:
        """Return why it cannot run on the array `x`, or None if it can."""
        return "the rows are sparse, which the Array API does not have" if is_sparse(x) else None

    def pays(self, x: Array) -> bool:
        """Return whether to choose it unasked for `x`, if it can run."""
        return True

    def stays(self) -> bool:
        """Return whether no other kernel pays more by now: asked between passes, as bits do not depend on the kernel."""
        return True

    @property
    def host(self) -> bool:
        """Whether it works on NumPy views."""
        return self.library == "numpy"

    def notices_outliers(self) -> bool:
        """Return whether its search and `pairwise` notice rows that are not finite, or out of the range of their frame."""
        return False

    # -- steps on a tile ----------------------------------------------------------------------

    def nearest(
        self, xp: Namespace, y: Array, minus_2c: Array, norms: Array
    ) -> tuple[Array, Array, Array]:
        """Return labels (m,), best and second best score (m,) of rows `y` (m, d)."""
        return lowest_two(xp, scores(y, minus_2c, norms))

    def segment_sum(self, xp: Namespace, values: Array, labels: Array, k: int) -> Array:
        """Return the sums (k, columns) of whole-number `values` (m, columns) by label."""
        return segment_sum(xp, values, labels, k)

    def squared_distances(self, xp: Namespace, a: Array, b: Array) -> Array:
        """Return the one distance whose bits are promised (m,), of rows `a` (m, d) and `b` (m, d) or (1, d), float64."""
        return _distance.squared_distances(xp, a, b)

    def moves(self, matrix: Matrix, a: Array, b: Array) -> Array:
        """Return the same (k,) of centroids `a` to centroids `b` (k, d): in the order that rows of the `matrix` have."""
        return self.squared_distances(matrix.xp, a, b)

    def own_distances(self, frame: Frame, select: Selection, wide: Array, labels: Array) -> Array:
        """Return the same (m,) of selected rows to their labels' centroids of `wide` (k, d)."""
        xp = frame.xp
        return self.squared_distances(xp, frame.wide(select), xp.take(wide, labels, axis=0))

    def look(self, rows: Rows, tile: slice) -> Extent:
        """Return what one look at a tile of rows tells."""
        xp, matrix = rows.xp, rows.matrix
        x = xp.abs(matrix.rows(tile))
        high, w = xp.max(x, axis=0), rows.relative_weight(tile)
        if w is not None:
            x = xp.concat([xp.astype(x, xp.float64) * w[:, None], w[:, None]], axis=1)
        largest = high if w is None else xp.max(x, axis=0)
        if w is not None or not matrix.integral:
            smallest = xp.min(xp.where(x > 0, x, xp.full_like(x, xp.inf)), axis=0)
        else:  # at least 1, and none of those that are whole anyway
            smallest = xp.clip(largest, max=2.0**23)
        return rows.told(tile, *(to_numpy(a) for a in (high, largest, smallest)))

    def sums(self, rows: Rows, select: Selection, new: Array, old: Array | None, k: int) -> Array:
        """Return the whole-number sums (k, columns) of selected rows by label `new` (m,), less by `old`."""
        xp, values = rows.xp, rows.summands(select)
        if old is not None:
            values, new = xp.concat([values, -values]), xp.concat([new, old])
        return self.segment_sum(xp, values, new, k)

    def tiles(self, rows: Rows, m: int, clusters: int = 0) -> list[slice]:
        """Return tiles of `m` rows, each of which ends in the sums of so many `clusters`, if any."""
        work = rows.work
        results = -(-clusters * rows.shape[1] // work.d)  # rows as large as these
        # Each piece adds its result, so make it long against that. Exact products take more temporaries.
        room = work.room if rows.weights is None else work.room // 3
        step = max(1, min(max(work.rows_of(work.d), 4 * results), room // work.d))
        written = self.written_a_row(clusters)
        return work.tiles(0, m, max(1, min(step, work.room // written)) if written else step)

    def written_a_row(self, clusters: int) -> int:
        """Return how many numbers `segment_sum` writes out for a row, beside its sums: those of the one-hot matrix."""
        return clusters

    # -- passes over rows ---------------------------------------------------------------------

    def extents(self, all_rows: Sequence[Rows]) -> list[Extent]:
        """Return what one look at the rows of each source tells."""
        return [
            rows.work.reduce(
                functools.partial(self.look, rows),
                self.tiles(rows, rows.shape[0]),
                Extent.__or__,
            )
            for rows in all_rows
        ]

    def search(self, rows: Rows, frame: Frame, c: Array, bounds: str) -> Search:
        """Return what finds the labels of all rows, pass after pass, from centroids `c` (k, d) on."""
        return Tiled(
            *(frame, self, rows.work, members(rows.matrix, rows.work, c, bounds)),
            exact=rows.exact,
            skip=bounds != "off",
            drop=bounds == "auto",
        )

    def distances(self, rows: Rows, frame: Frame, wide: Array, labels: Array) -> Array:
        """Return the squared distances (n,), by R5, of all rows to their labels' centroids of `wide` (k, d)."""
        parts = rows.work.map(
            lambda tile: self.own_distances(frame, tile, wide, labels[tile]),
            self.tiles(rows, rows.shape[0]),
        )
        return parts[0] if len(parts) == 1 else rows.xp.concat(parts)

    def total(self, rows: Rows, stats: ClusterStats) -> Array:
        """Return the sums (k, d + 1), float64, that whole numbers mean; the last column is weights."""
        return stats.grid.total(rows.xp, stats.sums, rows.scale)

    def totals_by_label(self, rows: Rows, labels: Array, k: int) -> Array:
        """Return the same of all rows by label (n,), where sums need not be kept."""
        return self.total(rows, rows.stats(labels, k))

    def joined(self, stats: ClusterStats, more: ClusterStats) -> tuple[ClusterStats, Array]:
        """Return the sum of stats on one grid, carried, and the sums (k, d + 1), float64, that it means.

        Who can writes it to `more`.
        """
        both = (stats + more).carried()
        return both, both.grid.total(
            namespace(both.sums), both.sums, like(both.grid.scale, both.sums)
        )

    def put(
        self, stats: ClusterStats, where: np.ndarray, c: np.ndarray, counts: np.ndarray
    ) -> None:
        """Write to sums in NumPy, where a mask (k, d + 1) says, those of as many rows as `counts` (k,) tells, all at `c` (k, d).

        The product of both is exact, as with any weight; the last column is the counts' own.
        """
        grid, k = stats.grid, counts.size
        sums = stats.sums.reshape(k, grid.folds, -1)
        (at,) = np.nonzero(where.any(axis=1))
        sums[at] *= ~where[at, None, :]
        values = np.append(c[at].astype(np.float64), np.ones((at.size, 1)), axis=1)
        i, f = np.nonzero(where[at] & (values != 0))  # of sparse rows, few
        own = replace(grid, scale=grid.scale[f, None])
        whole = own.split(np_compat, values[i, f, None], own.scale, counts[at[i]])
        sums[at[i], :, f] = replace(grid, scale=grid.scale[:1]).carried(np_compat, whole)

    def means(self, rows: Rows, stats: ClusterStats, c: Array) -> tuple[Array, Array]:
        """Return the means (k, d) of clusters in the dtype of `c`, an empty one's row of `c`, and the weights (k,)."""
        total = self.total(rows, stats)
        return self.divide(rows.xp, total[:, :-1], total[:, -1], c), total[:, -1]

    def divide(self, xp: Namespace, sums: Array, mass: Array, c: Array) -> Array:
        """Return sums (k, d) by weights (k,), in the dtype of `c`, an empty cluster's row of `c`."""
        return segment_mean(xp, sums, mass, c)

    def cost(self, rows: Rows, frame: Frame, distances: Array) -> Cost:
        """Return the exact sum of per-row `distances` (n,), squared and in the `frame`, by relative weight."""
        work, grid = rows.work, frame.costs(rows.shape[0], rows.weights is not None)

        def of_tile(tile: slice) -> Cost:
            w = rows.relative_weight(tile)
            return Cost.of(exact_sum(rows.xp, distances[tile], w, grid), grid)

        return work.reduce(of_tile, work.tiles(step=max(1, work.tile // 8)), Cost.__add__)

    def variances(self, all_rows: Sequence[Rows]) -> list[float]:
        """Return the mean over features of the weighted variance of each source's rows, in their own frame."""
        return [self.variance(rows) for rows in all_rows]

    def variance(self, rows: Rows) -> float:
        """Return that of one source."""
        xp, n = rows.xp, rows.shape[0]
        labels = xp.zeros(n, dtype=xp.int32, device=rows.matrix.device)
        sums, mass = rows.sums(labels, 1)
        weight, frame = float(mass[0]), rows.frame()
        mean = frame.widen(sums / xp.full_like(sums, weight))  # as in `segment_mean`
        return (
            float(self.cost(rows, frame, self.distances(rows, frame, mean, labels)))
            / weight
            / rows.matrix.features
        )

    def pairwise(self, rows: Rows, frame: Frame, wide: Array) -> tuple[Array, int]:
        """Return the distances (n, k) of rows to centroids `wide` (k, d), and of how many rows they mean nothing."""
        xp, matrix, work = rows.xp, rows.matrix, rows.work
        centred = frame.centre(wide)
        norms = squared_norms(xp, centred)
        minus_2c = xp.permute_dims(centred * -2.0, (1, 0))

        def of_tile(tile: slice) -> Array:
            y = frame.centred(tile, narrow=False)
            norm = squared_norms(xp, y)[:, None]
            squared = scores(y, minus_2c, norms) + norm
            near = squared < (norm + norms) * 1e-6
            (pairs,) = xp.nonzero(xp.reshape(near, (-1,)))
            if pairs.shape[0]:
                k = int(norms.shape[0])
                found = self.own_distances(frame, pairs // k + tile.start, wide, pairs % k)
                flat = put(xp, xp.reshape(squared, (-1,)), pairs, found)
                squared = xp.reshape(flat, squared.shape)
            result = xp.sqrt(xp.where(squared > 0, squared, xp.zeros_like(squared)))
            if frame.exponent:
                result = result * 2.0**frame.exponent
            return xp.astype(result, matrix.state_dtype)

        step = max(1, work.tile // (work.d + 2 * int(wide.shape[0])))
        return xp.concat(work.map(of_tile, work.tiles(step=step))), 0

    # -- whole jobs ---------------------------------------------------------------------------

    def together(self, problems: Iterable[T]) -> Iterator[list[T]]:
        """Yield problems of one size in one array, those together that share launches: here each by itself, as it takes room."""
        for problem in problems:
            yield [problem]

    def labels(self, x: np.ndarray, c: np.ndarray, threads: int | None) -> np.ndarray | None:
        """Return labels (n,) of NumPy's rows `x` (n, d) for centroids `c` (k, d), both not looked at, if there is a short way: here None.

        Who has one notices whatever is not finite, or has to be scaled, and returns None then.
        """
        return None

    def all_distances(self, x: np.ndarray, c: np.ndarray, threads: int | None) -> np.ndarray | None:
        """Return the distances (n, k) of the same, in the dtype of `x`, under the same conditions: here None."""
        return None

    def evaluated(self, rows: Rows, c: np.ndarray) -> tuple[Array, Array, float] | None:
        """Return labels (n,), squared distances (n,) and inertia for centroids `c` (k, d), if there is a short way: here None."""
        return None

    def counted(
        self, rows: Rows, c: np.ndarray, *, measured: bool
    ) -> tuple[Array, Array | None, float, Array] | None:
        """Return the same and the sums (k, columns) of rows by label, likewise; distances are None and the inertia NaN if not `measured`."""
        return None

    def seeds(self, rows: Rows, first: Array, k: int, trials: int) -> Seeds:
        """Return what picks the rows of one run, of which the first is at `first` (1, d)."""
        return Seeds(rows, first, k, trials)

    def picks(
        self, all_rows: Sequence[Rows], first: Sequence[int], draws: np.ndarray
    ) -> list[np.ndarray]:
        """Return the rows (k,) that greedy k-means++ picks of each source, from its `first` on, by `draws` (b, k - 1, t)."""
        return [self.picks_of(*each) for each in zip(all_rows, first, draws, strict=True)]

    def picks_of(self, rows: Rows, first: int, draws: np.ndarray) -> np.ndarray:
        """Return those of one source."""
        picks = np.full(draws.shape[0] + 1, first, dtype=np.int64)
        if picks.size > 1:
            there = rows.frame().wide(rows.matrix.asarray([first]))
            seeds = self.seeds(rows, there, picks.size, draws.shape[1])
            for i in range(1, picks.size):
                if rows.renewed():
                    seeds = rows.kernel.seeds(rows, there, picks.size, draws.shape[1])
                    for pick in picks[1:i].tolist():
                        seeds.count_in(rows.frame().wide(rows.matrix.asarray([pick])), 0)
                picks[i] = seeds.picked(draws[i - 1], last=i == picks.size - 1)
        return picks

    def start(self, all_rows: Sequence[Rows], starts: Sequence[Array]) -> list[InMemory]:
        """Return a run of each source, from centroids (k, d)."""
        runs = []
        for rows, c in zip(all_rows, starts, strict=True):
            with rows.named():
                runs.append(rows.start(c))
        return runs

    def descend(
        self,
        runs: Sequence[InMemory],
        tols: Sequence[float],
        max_iter: int,
        empty: str,
        watch: Watch | None,
    ) -> list[tuple[Array, int, bool]]:
        """Return the centroids (k, d) that each run reaches, its passes, and whether it converged."""
        ends = []
        for run, tol in zip(runs, tols, strict=True):
            with run.rows.named():
                end = lloyd(run, run.c, max_iter=max_iter, tol=tol, empty=empty, watch=watch)
                ends.append(end)
        return ends

    def label(self, runs: Sequence[InMemory], ends: Sequence[Array]) -> list[tuple[Array, float]]:
        """Return labels (n,) and inertia of each run for the centroids (k, d) returned."""
        found = []
        for run, c in zip(runs, ends, strict=True):
            labelled = run.label(c)
            found.append((labelled.labels, labelled.inertia))
        return found


KERNEL = Kernel()
