"""Rows in memory: tiles, the bounds that skip work, and the running sums.

:class:`Rows` is a source for the loop. Skipping follows Hamerly ("Making k-means even faster",
SDM 2010) with one group of centroids and Yinyang (Ding et al., ICML 2015) with several; both are one
piece of code here. A skipped row is proven unchanged, so a sweep that skips returns the bits of one
that does not.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from anykmeans import _check as check
from anykmeans._array import Array, Matrix, Selection, full_float32_products, put, to_numpy
from anykmeans._exact import (
    Bounds,
    Grid,
    exact_sum,
    halving_sum,
    power_of_two,
    squared_distances,
)
from anykmeans._lloyd import lloyd
from anykmeans._stats import ClusterStats, means, seats
from anykmeans.kernels import Kernel, choose

BOUNDS = "auto"  # "auto", "off", "hamerly" or "groups"
THREADS: int | None = None  # None: the cores this process may use, OMP_NUM_THREADS respected

_UP, _DOWN = 1 + 2.0**-22, 1 - 2.0**-22  # more than float32 rounding takes
_TINY = 2.0**-120  # more than underflow takes, in a frame whose largest row is near 1
_GAP = 1 + 2.0**-20  # bounds must differ by more than any tie of squared_distances
_GROUP = 12  # centroids a group: 8 to 16 skipped most on real data
_MANY = 256  # centroids from which on groups beat one bound a row, in more than 12 dimensions
_ENOUGH = 0.35  # of all distances: groups that leave more to do cost more than they save
_SMALL = 1 << 18  # numbers in `x` below which starting threads costs more than they save
_CPU_BYTES, _DEVICE_BYTES = 1 << 28, 1 << 30

T = TypeVar("T")
R = TypeVar("R")


class _OneBlasThread:
    """Keeps BLAS to one thread while anyone needs it; fits may run in several threads at once."""

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._controller: Any = None
        self._limit: Any = None

    def enter(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                if self._controller is None:  # finding the loaded libraries takes milliseconds
                    from threadpoolctl import ThreadpoolController

                    self._controller = ThreadpoolController()
                self._limit = self._controller.limit(limits=1, user_api="blas")

    def leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._limit.restore_original_limits()


_one_blas_thread = _OneBlasThread()


def _cores() -> int:
    if THREADS is not None:
        return THREADS
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return max(1, min(cores, int(limit))) if limit.isdigit() else cores


@dataclass
class Block:
    """State of the rows from `start` to `stop`: labels (m,), bounds upper (m,) and lower (groups, m).

    The bounds are float32 distances in the scaled frame: to the own centroid at most `upper`, to
    every other centroid of group g at least ``lower[:, g]``.
    """

    start: int
    stop: int
    labels: Array = None
    upper: Array = None
    lower: Array = None


@dataclass(frozen=True)
class Screen:
    """Centroids prepared for one sweep.

    Attributes
    ----------
    wide : array of shape (k, d), float64
        Centroids in the scaled frame, for distances.
    centred : array of shape (k, d)
        Less the offset, in the scoring dtype.
    groups : list of (ids (g,), minus_2c (d, g), norms (g,))
        What a kernel scores with; the groups are disjoint.
    minus_2c, norms : array of shape (d, k), (k,)
        The same for all centroids in their own order.
    group_of : array of shape (k,)
        The group of each centroid.
    drift : array of shape (k,), float32, or None
        How far each centroid moved since the last sweep.
    drifts : array of shape (groups, k), float32
        By label, how far the centroids of each group moved at most, the row's own centroid left out.
    """

    wide: Array
    centred: Array
    groups: list[tuple[Array, Array, Array]]
    minus_2c: Array
    norms: Array
    group_of: Array
    drift: Array | None
    drifts: Array | None
    bounds: Bounds


def _joined(xp: Any, parts: list[tuple[Any, ...]]) -> tuple[Array, Array, Array]:
    """Return labels (m,), upper (m,) and lower (groups, m) of tiles, end to end."""
    if len(parts) == 1:
        return parts[0][:3]
    labels, upper, lower = ([part[i] for part in parts] for i in range(3))
    return xp.concat(labels), xp.concat(upper), xp.concat(lower, axis=1)


@dataclass
class _Frame:
    """The coordinates scores are made in: rows less an offset, times a power of two."""

    exponent: int = 0
    offset: np.ndarray | None = None  # (d,), in the rows' own unit
    narrow: bool = True  # score in float32
    cache: dict[str, Array] = field(default_factory=dict)


class Rows:
    """A source over a matrix in memory.

    Parameters
    ----------
    matrix : Matrix
        Rows (n, d).
    weights : Matrix or None
        Sample weights as a column (n, 1).
    kernel : Kernel
        How the steps are made.
    max_bytes : int or None
        Budget for temporaries and bounds.
    precision : {"exact", "fast"}
        Whether labels are certified.
    name : str
        What the user calls the rows, for messages.

    Raises
    ------
    ValueError
        If a row, a weight or their product is NaN or infinite.
    """

    def __init__(
        self,
        matrix: Matrix,
        weights: Matrix | None,
        kernel: Kernel,
        *,
        max_bytes: int | None = None,
        precision: str = "exact",
        name: str = "x",
    ) -> None:
        self.matrix, self.weights, self.kernel = matrix, weights, kernel
        self.xp, self.shape = matrix.xp, matrix.shape
        self.exact = precision == "exact"
        n, d = self.shape
        self.threads = _cores() if kernel.host else 1
        self.max_bytes = max_bytes or (_CPU_BYTES if kernel.host else _DEVICE_BYTES)
        if n * d < _SMALL:
            self.threads = 1
        self.threads = max(1, min(self.threads, self.max_bytes // (1 << 20)))
        # Temporaries of a tile: a few copies of its rows in float64.
        fit = max(1, self.max_bytes // self.threads // 64)
        self._elements = min(1 << 16, fit) if kernel.host else fit
        step = max(1, self._elements // d)
        if step >= 4:
            step -= step % 4  # blocks of 4 rows share a draw of the counter-based generator
        self._step = step
        self.frame = _Frame()
        self._single = full_float32_products(matrix.source)
        self._fit = fit
        self._pool: ThreadPoolExecutor | None = None
        self._plan(name)

    @classmethod
    def over(
        cls,
        x: Array,
        sample_weight: Array | None = None,
        *,
        kernel: str = "auto",
        max_bytes: int | None = None,
        precision: str = "exact",
        name: str = "x",
    ) -> Rows:
        """Return a source over checked arrays `x` (n, d) and `sample_weight` (n,)."""
        chosen = choose(x, kernel)
        weights = None
        if sample_weight is not None:
            weights = Matrix.of(sample_weight[:, None], host=chosen.host)
        matrix = Matrix.of(x, host=chosen.host)
        return cls(matrix, weights, chosen, max_bytes=max_bytes, precision=precision, name=name)

    # -- rows ---------------------------------------------------------------------------------

    def tiles(self, start: int = 0, stop: int | None = None, step: int = 0) -> list[slice]:
        """Return slices of rows that keep a float64 copy within the budget."""
        stop = self.shape[0] if stop is None else stop
        step = step or self._step
        return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]

    def __enter__(self) -> Rows:
        """Keep BLAS to one thread, as the tiles are spread over threads of our own.

        OpenBLAS collapses where its threads wait for a core that another process has.
        """
        if self.kernel.host:
            _one_blas_thread.enter()
        return self

    def __exit__(self, *error: object) -> None:
        """Give BLAS its threads back, and end ours."""
        if self.kernel.host:
            _one_blas_thread.leave()
        if self._pool is not None:
            self._pool.shutdown()
        self._pool = None

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Return ``[work(i) for i in items]``, spread over threads."""
        items = list(items)
        if self.threads == 1 or len(items) == 1:
            return [work(item) for item in items]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads)
        runs = np.array_split(np.arange(len(items)), min(len(items), 8 * self.threads))
        done = self._pool.map(lambda run: [work(items[i]) for i in run], runs)
        return [result for results in done for result in results]

    def rows(self, select: Selection) -> Array:
        """Return rows in the dtype of centroids."""
        return self.matrix.rows(select, self.matrix.state_dtype)

    def weight(self, select: Selection) -> Array | None:
        """Return the weights (m,) of rows, float64, or None where all are one."""
        if self.weights is None:
            return None
        return self.weights.rows(select, self.xp.float64)[:, 0]

    def relative_weight(self, select: Selection) -> Array | None:
        """Return the weights times a power of two that brings the largest to about 1."""
        w = self.weight(select)
        return w if w is None or not self.heaviest else w * 2.0**-self.heaviest

    def wide(self, select: Selection) -> Array:
        """Return rows in the scaled frame, float64, for distances."""
        x = self.matrix.rows(select, self.xp.float64)
        return x * 2.0**-self.frame.exponent if self.frame.exponent else x

    def widen(self, c: Array) -> Array:
        """Return centroids in the scaled frame, float64."""
        c = self.xp.astype(c, self.xp.float64)
        return c * 2.0**-self.frame.exponent if self.frame.exponent else c

    def centred(self, select: Selection, narrow: bool) -> Array:
        """Return rows less the offset in the scaled frame, float32 if `narrow`, for scores."""
        xp, frame = self.xp, self.frame
        dtype = xp.float32 if narrow else xp.float64
        x = self.matrix.rows(select, None if self.matrix.narrow and narrow else xp.float64)
        # One rounding between the row and its score: the subtraction, or the cast where the data
        # is float64. Scaling is exact, and comes first so that nothing overflows.
        if frame.exponent:
            x = x * 2.0**-frame.exponent
        if frame.offset is not None:
            name = "offset" + str(x.dtype)
            if name not in frame.cache:
                offset = np.ldexp(frame.offset, -frame.exponent)
                frame.cache[name] = self.matrix.asarray(offset, x.dtype)
            x = x - frame.cache[name]
        return x if x.dtype == dtype else xp.astype(x, dtype)

    # -- exact sums ---------------------------------------------------------------------------

    def _plan(self, name: str) -> None:
        """Fix the grids from one pass over the rows, which also finds what is not finite."""
        xp, matrix = self.xp, self.matrix
        known = self.weights is None and (matrix.narrow or matrix.integral)

        def magnitudes(tile: slice) -> tuple[np.ndarray, ...]:
            x = xp.abs(matrix.rows(tile))
            high = xp.max(x, axis=0)
            low = high
            if known and not matrix.integral:
                low = xp.min(xp.where(x > 0, x, xp.full_like(x, xp.inf)), axis=0)
            high = xp.astype(high, xp.float64)
            product = high
            w = self.weight(tile)
            if w is not None:
                with np.errstate(over="ignore", invalid="ignore"):
                    product = xp.max(xp.astype(x, xp.float64) * w[:, None], axis=0)
                product = xp.concat([product, xp.max(w)[None]])
            return tuple(to_numpy(a).astype(np.float64) for a in (high, product, low))

        found = self.map(magnitudes, self.tiles())
        high, product = (np.max([f[i] for f in found], axis=0) for i in (0, 1))
        check.finite(high, name, matrix.dtype)
        check.finite(product, f"sample_weight * {name}", "float64")
        lowest = None
        if known:
            low = np.min([f[2] for f in found], axis=0)
            used = np.isfinite(low) & (not matrix.integral)
            lowest = np.where(used, np.frexp(np.where(used, low, 1.0))[1] - 24.0, 0.0)
            lowest = np.append(np.maximum(lowest, -149.0), 0.0)
        if self.weights is None:
            product = np.append(product, 1.0)
        self.grid = Grid.plan(product, self.shape[0], lowest)
        self._scale = matrix.asarray(self.grid.scale)
        self.heaviest = power_of_two(float(product[-1]))
        self.largest = float(high.max())
        self.frame.exponent = power_of_two(self.largest)

    def summands(self, select: Selection) -> Array:
        """Return the rows' weighted values and weights, split on the grid (m, folds * (d + 1))."""
        xp = self.xp
        x = self.matrix.rows(select, xp.float64)
        w = self.weight(select)
        if w is None:
            w = xp.ones(x.shape[0], dtype=xp.float64, device=self.matrix.device)
        else:
            x = x * w[:, None]
        return self.grid.split(xp, xp.concat([x, w[:, None]], axis=1), self._scale)

    def stats(
        self, labels: Array, k: int, select: Array | None = None, old: Array | None = None
    ) -> ClusterStats:
        """Return the stats of the selected rows (default: all) with the given labels (m,).

        With `old` (m,) labels, the change that moving the rows from those makes.
        """
        xp, m = self.xp, int(labels.shape[0])

        def run(tiles: list[slice]) -> Array:
            sums = None
            for tile in tiles:
                values = self.summands(tile if select is None else select[tile])
                to = labels[tile]
                if old is not None:
                    values, to = xp.concat([values, -values]), xp.concat([to, old[tile]])
                part = self.kernel.segment_sum(xp, values, to, k)
                sums = part if sums is None else sums + part
            return sums

        # Each piece adds k rows of sums, so make it long against k.
        piece = max(self._step, min(4 * k, self._fit // self.shape[1]))
        if self.kernel.one_hot:
            piece = max(1, min(piece, self._fit // k))
        tiles = self.tiles(0, m, piece)
        runs = [tiles[i :: self.threads] for i in range(min(self.threads, len(tiles)))]
        if not runs:
            zero = self.xp.zeros(
                (k, self.grid.folds * (self.shape[1] + 1)),
                dtype=self.xp.float64,
                device=self.matrix.device,
            )
            return ClusterStats(zero, self.grid)
        parts = [ClusterStats(sums, self.grid) for sums in self.map(run, runs)]
        return functools.reduce(ClusterStats.__add__, parts)

    def totals(self, stats: ClusterStats) -> tuple[Array, Array]:
        """Return the sums (k, d) and weights (k,) of `stats`, float64."""
        return stats.totals(self.xp, self._scale)

    # -- the source ---------------------------------------------------------------------------

    def begin(self, c: Array, bounds: str | None = None) -> None:
        """Forget labels and bounds, and choose the frame for a run from centroids `c` (k, d)."""
        self._skipping = BOUNDS if bounds is None else bounds
        k, d = int(c.shape[0]), self.shape[1]
        host = check.host_float64(c)
        self.frame = _Frame(power_of_two(max(self.largest, float(np.abs(host).max()))))
        with np.errstate(over="ignore"):
            mean = np.ldexp(host, -self.frame.exponent).mean(axis=0)
            spread = np.ldexp(host, -self.frame.exponent) - mean
            if (mean**2).sum() > (spread**2).sum() / k:
                offset = np.ldexp(mean, self.frame.exponent)
                # Exact in the rows' dtype, so that subtracting it rounds once.
                self.frame.offset = np.asarray(offset, np.float32 if self.matrix.narrow else None)
        self.frame.narrow = self._single and Bounds.of(d, 2.0**-24).sound
        self._centroids: Array | None = None
        self._stats: ClusterStats | None = None
        self._members = self._group(c)
        self._passes = 0
        self._tile = self._tile_rows()
        groups = len(self._members)
        share = -(-self.shape[0] // (4 * self.threads))
        # A block's bounds are worked on whole: keep them in the cache, too.
        length = max(self._tile, min(share, 1 << 16, self._fit // (groups + 4)))
        self._blocks = [Block(s.start, s.stop) for s in self.tiles(step=max(1, length))]

    def _tile_rows(self) -> int:
        """Return how many rows to score at once."""
        d, groups = self.shape[1], len(self._members)
        widest = max(len(ids) for ids in self._members)
        if not self.kernel.host:
            return max(1, self._fit // (widest + 4 * groups + d))
        # Scores should stay in the L2 cache; groups want each of their few rows to be many.
        cache, rows = (
            ((1 << 18) // widest, (1 << 19) // d) if groups == 1 else (1 << 16, (1 << 22) // d)
        )
        return max(1, min(cache, rows, self._fit // (widest + groups + d)))

    def _group(self, c: Array) -> list[np.ndarray]:
        """Return the centroids' numbers by group: near ones together (k-means of the centroids)."""
        n, d = self.shape
        k = int(c.shape[0])
        everything = [np.arange(k)]
        wanted = -(-k // _GROUP)
        if self._skipping in ("off", "hamerly") or wanted < 2:
            return everything
        if self._skipping == "auto" and (d <= 12 or k < _MANY):
            return everything
        if 4 * (2 + wanted) * n > self.max_bytes // 2:
            return everything
        rows = Rows(Matrix.of(c, host=self.kernel.host), None, self.kernel, precision="fast")
        start = c[:: max(1, k // wanted), :][:wanted, :]
        rows.begin(start, "off")
        lloyd(rows, start, max_iter=5, tol=0.0, empty="keep")
        labels = np.concatenate([to_numpy(block.labels) for block in rows._blocks])
        groups = [np.flatnonzero(labels == g) for g in range(wanted)]
        return [
            part
            for group in groups
            if group.size
            for part in np.array_split(group, -(-group.size // (2 * _GROUP)))
        ]

    def _screen(self, c: Array) -> Screen:
        xp, asarray = self.xp, self.matrix.asarray
        wide = self.widen(c)
        dtype = xp.float32 if self.frame.narrow else xp.float64
        near = wide
        if self.frame.offset is not None:
            near = wide - asarray(np.ldexp(self.frame.offset, -self.frame.exponent), xp.float64)
        norms = xp.astype(xp.sum(near * near, axis=1), dtype)
        centred = xp.astype(near, dtype)
        minus_2c = xp.permute_dims(centred * -2.0, (1, 0))
        # Indices: four bytes a row in NumPy; torch wants int64 to index with.
        number = xp.int32 if self.kernel.host else xp.int64
        groups, group_of = [], np.zeros(int(c.shape[0]), dtype=np.int64)
        for g, ids in enumerate(self._members):
            group_of[ids] = g
            if len(self._members) == 1:
                groups.append((asarray(ids, number), minus_2c, norms))
            else:
                at = asarray(ids, number)
                part = xp.take(centred, at, axis=0) * -2.0
                groups.append((at, xp.permute_dims(part, (1, 0)), xp.take(norms, at)))
        drift = drifts = None
        if self._centroids is not None:
            moved = to_numpy(xp.sqrt(squared_distances(xp, wide, self.widen(self._centroids))))
            drift, drifts = (asarray(a, xp.float32) for a in self._drifts(moved * _UP))
        group_of = asarray(group_of, number)
        bounds = Bounds.of(self.shape[1], 2.0**-24 if self.frame.narrow else 2.0**-53)
        return Screen(wide, centred, groups, minus_2c, norms, group_of, drift, drifts, bounds)

    def _drifts(self, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return moves (k,), and by own centroid the most that each group's others moved (groups, k)."""
        table = np.empty((len(self._members), moved.shape[0]))
        for g, ids in enumerate(self._members):
            order = ids[np.argsort(moved[ids])]
            table[g] = moved[order[-1]]
            table[g, order[-1]] = moved[order[-2]] if len(order) > 1 else 0.0
        return moved * _UP + _TINY, table * _UP + _TINY

    def sweep(self, c: Array) -> ClusterStats:
        """Return the stats of all rows, each with its nearest centroid of `c` (k, d)."""
        xp, k = self.xp, int(c.shape[0])
        changes = self._settle(c)
        moved = sum(int(rows.shape[0]) for rows, _, _ in changes)
        if self._stats is None or 2 * moved > self.shape[0]:
            self._stats = self.stats(xp.concat([block.labels for block in self._blocks]), k)
        elif moved:
            rows, old, new = (xp.concat([change[i] for change in changes]) for i in range(3))
            self._stats = self._stats + self.stats(new, k, rows, old)
        return self._stats

    def _settle(self, c: Array) -> list[tuple[Array, Array, Array]]:
        """Give every row its nearest centroid of `c`; return changed rows, old and new labels."""
        screen = self._screen(c)
        found = self.map(lambda block: self._settle_block(block, screen), self._blocks)
        self._centroids = c
        if self.frame.narrow and sum(hard for _, hard, _ in found) > self.shape[0] // 5:
            self.frame.narrow = False  # float32 cannot tell these centroids apart: score in float64
        scored = sum(scored for _, _, scored in found) / self.shape[0] / int(c.shape[0])
        self._passes += 1
        if self._skipping == "auto" and self._passes > 3 and scored > _ENOUGH:
            self._drop_groups()
        return [change for change, _, _ in found if change is not None]

    def _drop_groups(self) -> None:
        """Go on with one bound a row: the lowest of its groups' is one."""
        self._members = [np.arange(sum(len(ids) for ids in self._members))]
        for block in self._blocks:
            block.lower = self.xp.min(block.lower, axis=0)[None, :]
        self._tile = self._tile_rows()

    def _settle_block(
        self, block: Block, screen: Screen
    ) -> tuple[tuple[Array, Array, Array] | None, int, int]:
        """Bring the block up to date; return what changed, rows not proven, distances scored."""
        xp = self.xp
        first = block.labels is None
        old = block.labels
        if first or self._skipping == "off" or screen.drift is None:
            active = None
        else:
            block.upper = (block.upper + xp.take(screen.drift, old)) * _UP
            block.lower = (block.lower - xp.take(screen.drifts, old, axis=1)) * _DOWN
            doubt = ~(block.upper * _GAP < xp.min(block.lower, axis=0))
            (active,) = xp.nonzero(doubt)
            if active.shape[0] == 0:
                return None, 0, 0
            if active.shape[0] == block.stop - block.start:
                active = None
        parts = []
        count = block.stop - block.start if active is None else int(active.shape[0])
        for tile in self.tiles(0, count, self._tile):
            at: Selection = tile
            select: Selection = slice(block.start + tile.start, block.start + tile.stop)
            if active is not None:
                at = active[tile]
                select = at + block.start
            parts.append(self._assign(select, screen, None if first else self._state(block, at)))
        labels, upper, lower = _joined(xp, parts)
        hard, scored = (sum(part[i] for part in parts) for i in (3, 4))
        if active is None:
            block.labels, block.upper, block.lower = labels, upper, lower
            if first:
                return None, hard, scored
            (moved,) = xp.nonzero(labels != old)
            change = moved + block.start, xp.take(old, moved), xp.take(labels, moved)
            return change, hard, scored
        before = xp.take(old, active)
        (moved,) = xp.nonzero(labels != before)
        block.labels = put(xp, block.labels, active, labels)
        block.upper = put(xp, block.upper, active, upper)
        block.lower = xp.stack(
            [put(xp, block.lower[g, :], active, lower[g, :]) for g in range(lower.shape[0])]
        )
        rows = xp.take(active, moved) + block.start
        return (rows, xp.take(before, moved), xp.take(labels, moved)), hard, scored

    def _state(self, block: Block, at: Selection) -> tuple[Array, Array, Array]:
        if isinstance(at, slice):
            return block.labels[at], block.upper[at], block.lower[:, at]
        xp = self.xp
        return (
            xp.take(block.labels, at),
            xp.take(block.upper, at),
            xp.take(block.lower, at, axis=1),
        )

    def _assign(
        self, select: Selection, screen: Screen, state: tuple[Array, Array, Array] | None
    ) -> tuple[Array, Array, Array, int, int]:
        """Return certified labels (m,), upper (m,), lower (groups, m), rows not proven, scores made."""
        xp = self.xp
        y = self.centred(select, screen.norms.dtype == xp.float32)
        norm = xp.astype(xp.vecdot(y, y), xp.float64)
        if len(screen.groups) == 1:
            labels, best, second = self.kernel.nearest(xp, y, *screen.groups[0][1:])
            scored = 0  # of interest only where there are groups
            upper = self._at_most(screen, norm, best)
            lower = self._at_least(screen, norm, second)[None, :]
        else:
            labels, upper, lower, scored = self._assign_groups(y, norm, screen, state)
        labels = xp.astype(labels, screen.group_of.dtype)
        hard = 0
        if self.exact:
            unproven = ~(upper * _GAP < xp.min(lower, axis=0))
            (at,) = xp.nonzero(unproven)
            hard = int(at.shape[0])
            if hard:
                rows = at + select.start if isinstance(select, slice) else xp.take(select, at)
                found, above, far = self._resolve(
                    xp.take(y, at, axis=0), rows, xp.take(norm, at), xp.take(labels, at), screen
                )
                upper = put(xp, upper, at, above)
                distance = put(xp, xp.full_like(upper, xp.inf), at, far)
                after = put(xp, xp.asarray(labels, copy=True), at, found)
                lower = self._left_behind(screen, lower, labels, after, distance)
                labels = after
        return labels, upper, lower, hard, scored

    def _at_most(self, screen: Screen, norm: Array, scores: Array) -> Array:
        """Return float32 distances that the true ones of rows with these scores do not exceed."""
        xp = self.xp
        squared = screen.bounds.upper(xp, norm + xp.astype(scores, xp.float64), norm)
        root = xp.sqrt(xp.where(squared > 0, squared, xp.zeros_like(squared)))
        return xp.astype(root * _UP + _TINY, xp.float32)

    def _at_least(self, screen: Screen, norm: Array, scores: Array) -> Array:
        """Return float32 distances that the true ones of rows with these scores reach."""
        xp = self.xp
        squared = screen.bounds.lower(xp, norm + xp.astype(scores, xp.float64), norm)
        root = xp.sqrt(xp.where(squared > 0, squared, xp.zeros_like(squared)))
        return xp.astype(root * _DOWN - _TINY, xp.float32)

    def _assign_groups(
        self,
        y: Array,
        norm: Array,
        screen: Screen,
        state: tuple[Array, Array, Array] | None,
    ) -> tuple[Array, Array, Array, int]:
        """Return labels (m,), upper (m,), lower (groups, m) and scores made: of groups in doubt."""
        xp = self.xp
        m, groups = int(y.shape[0]), len(screen.groups)
        on = {"device": self.matrix.device}
        if state is None:
            labels = xp.full((m,), -1, dtype=screen.group_of.dtype, **on)
            best = xp.full((m,), xp.inf, dtype=y.dtype, **on)
            need = xp.ones((groups, m), dtype=xp.bool, **on)
            bound = [xp.full((m,), xp.inf, dtype=xp.float32, **on) for _ in range(groups)]
        else:
            old, _, lower = state
            own = xp.vecdot(y, xp.take(screen.centred, old, axis=0)) * -2.0
            own = own + xp.take(screen.norms, old)
            need = lower <= (self._at_most(screen, norm, own) * _GAP)[None, :]
            labels, best = xp.asarray(old, copy=True), xp.asarray(own, copy=True)
            bound = [xp.asarray(lower[g, :], copy=True) for g in range(groups)]
        scored = []
        for g, (ids, minus_2c, norms) in enumerate(screen.groups):
            (at,) = xp.nonzero(need[g, :])
            if at.shape[0] == 0:
                continue
            part, part_norm = y, norm
            if at.shape[0] < m:
                part, part_norm = xp.take(y, at, axis=0), xp.take(norm, at)
            found, low, second = self.kernel.nearest(xp, part, minus_2c, norms)
            who = xp.take(ids, found)
            bound[g] = put(xp, bound[g], at, self._at_least(screen, part_norm, low))
            (closer,) = xp.nonzero(low < xp.take(best, at))
            best = put(xp, best, xp.take(at, closer), xp.take(low, closer))
            labels = put(xp, labels, xp.take(at, closer), xp.take(who, closer))
            scored.append((g, at, who, part_norm, second))
        # In the group of its own label, a row's bound is that of the other centroids ...
        for g, at, who, part_norm, second in scored:
            (own_at,) = xp.nonzero(who == xp.take(labels, at))
            far = self._at_least(screen, xp.take(part_norm, own_at), xp.take(second, own_at))
            bound[g] = put(xp, bound[g], xp.take(at, own_at), far)
        lower = xp.stack(bound, axis=0)
        if state is not None:
            far = self._at_least(screen, norm, own)
            lower = self._left_behind(screen, lower, old, labels, far)
        made = sum(int(at.shape[0]) * int(screen.groups[g][0].shape[0]) for g, at, *_ in scored)
        return labels, self._at_most(screen, norm, best), lower, made

    def _left_behind(
        self, screen: Screen, lower: Array, old: Array, new: Array, far: Array
    ) -> Array:
        """Return `lower` (groups, m) with the centroid a row left, at least `far`, counted as another's."""
        xp = self.xp
        (at,) = xp.nonzero(old != new)
        if at.shape[0] == 0:
            return lower
        numbers = self.matrix.arange(lower.shape[0])[:, None]
        left = (numbers == xp.take(screen.group_of, old)[None, :]) & (old != new)[None, :]
        return xp.where(left & (far[None, :] < lower), far[None, :], lower)

    def _resolve(
        self, y: Array, rows: Array, norm: Array, guess: Array, screen: Screen
    ) -> tuple[Array, Array, Array]:
        """Return labels (m,), upper (m,) and a lower bound (m,) for the label guessed.

        Float64 differences decide among the centroids that may be the nearest; equal distances go
        to the lowest label.
        """
        k = int(screen.norms.shape[0])
        step = max(1, self._elements // (k + self.shape[1]))
        parts = [
            self._resolve_tile(y[t, :], rows[t], norm[t], guess[t], screen)
            for t in self.tiles(0, int(rows.shape[0]), step)
        ]
        labels, upper, lower = (
            parts[0][i] if len(parts) == 1 else self.xp.concat([part[i] for part in parts])
            for i in range(3)
        )
        return labels, upper, lower

    def _resolve_tile(
        self, y: Array, rows: Array, norm: Array, guess: Array, screen: Screen
    ) -> tuple[Array, Array, Array]:
        xp, bounds = self.xp, screen.bounds
        k = int(screen.norms.shape[0])
        scores = xp.astype(y @ screen.minus_2c + screen.norms, xp.float64)
        estimates = norm[:, None] + scores  # (m, k)
        least = bounds.lower(xp, estimates, norm[:, None])
        most = bounds.upper(xp, norm + xp.min(scores, axis=1), norm) * (1 + 3 * bounds.tie)
        who, candidates = xp.nonzero(least <= most[:, None])
        pairs = int(who.shape[0])
        step = max(1, self._elements // self.shape[1])
        found = xp.concat(
            [
                squared_distances(
                    xp,
                    self.wide(xp.take(rows, who[t])),
                    xp.take(screen.wide, candidates[t], axis=0),
                )
                for t in self.tiles(0, pairs, step)
            ]
        )
        # The pairs come row by row: line each row's up, padded with infinity.
        count = xp.sum(xp.astype(least <= most[:, None], xp.int64), axis=1)
        start = xp.cumulative_sum(count) - count
        numbers = self.matrix.arange(int(xp.max(count)))[None, :]
        used = numbers < count[:, None]
        place = xp.where(used, start[:, None] + numbers, xp.zeros_like(start)[:, None])
        flat = xp.reshape(place, (-1,))
        distance = xp.where(used, xp.reshape(xp.take(found, flat), place.shape), xp.inf)
        number = xp.reshape(xp.take(candidates, flat), place.shape)
        shortest = xp.min(distance, axis=1)
        tied = distance <= (shortest * (1 + bounds.tie))[:, None]
        labels = xp.min(xp.where(tied, number, xp.full_like(number, k)), axis=1)
        left = xp.take_along_axis(least, xp.astype(guess, number.dtype)[:, None], axis=1)[:, 0]
        left = xp.sqrt(xp.where(left > 0, left, xp.zeros_like(left))) * _DOWN - _TINY
        upper = xp.sqrt(shortest) * _UP + _TINY
        return (
            xp.astype(labels, guess.dtype),
            xp.astype(upper, xp.float32),
            xp.astype(left, xp.float32),
        )

    # -- decisions ----------------------------------------------------------------------------

    def update(self, stats: ClusterStats, c: Array, empty: str) -> Array:
        """Return the means (k, d) in the dtype of `c`, empty clusters served as `empty` says.

        Raises
        ------
        ValueError
            If a cluster is empty and `empty` is ``"error"``.
        """
        xp = self.xp
        sums, mass = self.totals(stats)
        vacant = np.flatnonzero(to_numpy(mass == 0))
        if vacant.size and empty == "error":
            raise ValueError(
                f"`empty`='error' and cluster {int(vacant[0])} has no rows. Use fewer clusters, "
                f"other initial centroids, or empty='relocate'."
            )
        if vacant.size and empty == "relocate":
            far, labels = self._farthest(c, vacant.size)
            if far.size:
                # The farthest rows leave their clusters and become clusters of their own.
                rows = self.matrix.asarray(far)
                new = self.matrix.asarray(vacant[: far.size])
                old = xp.astype(xp.take(labels, rows), new.dtype)
                k = int(c.shape[0])
                stats = stats + self.stats(new, k, rows, old)
                sums, mass = self.totals(stats)
        return means(xp, sums, mass, c)

    def _farthest(self, c: Array, wanted: int) -> tuple[np.ndarray, Array]:
        """Return the rows farthest from their centroid in `c`, and the labels of all rows."""
        distance, labels = self.distances(c)
        if self.weights is not None:  # rows of no weight are not there
            w = self.weights.rows(slice(0, self.shape[0]))[:, 0]
            distance = self.xp.where(w > 0, distance, self.xp.zeros_like(distance))
        return seats(to_numpy(distance), wanted), labels

    def distances(self, c: Array) -> tuple[Array, Array]:
        """Return each row's squared distance (n,) in the scaled frame to its centroid, and its label."""
        xp = self.xp
        labels = xp.concat([block.labels for block in self._blocks])
        wide = self.widen(c)

        def distance(tile: slice) -> Array:
            own = xp.take(wide, labels[tile], axis=0)
            return squared_distances(xp, self.wide(tile), own)

        return xp.concat(self.map(distance, self.tiles())), labels

    def shift(self, c_new: Array, c: Array) -> float:
        """Return the sum of squared moves in the scaled frame."""
        moves = squared_distances(self.xp, self.widen(c_new), self.widen(c))
        return float(halving_sum(self.xp, moves[None, :])[0])

    def cost(self, distances: Array) -> float:
        """Return the sum of per-row `distances` (n,) by relative weight, exact on its grid."""
        w = self.relative_weight(slice(0, self.shape[0]))
        cost = distances if w is None else w * distances
        return exact_sum(self.xp, cost, float(self.xp.max(cost)), self.shape[0])

    def variance(self) -> float:
        """Return the mean over features of the rows' variance (unweighted), in the scaled frame."""
        xp = self.xp
        n, d = self.shape
        plain = self if self.weights is None else Rows(self.matrix, None, self.kernel)
        plain.frame, plain.threads = self.frame, 1 if plain is not self else self.threads
        labels = xp.zeros(n, dtype=xp.int32, device=self.matrix.device)
        sums, mass = plain.totals(plain.stats(labels, 1))
        mean = plain.widen(sums / mass[:, None])
        spread = xp.concat(
            self.map(lambda tile: squared_distances(xp, self.wide(tile), mean), self.tiles())
        )
        return plain.cost(spread) / n / d

    def finish(self, c: Array) -> tuple[Array, Array, float]:
        """Return labels (n,), squared distances (n,) and inertia for the centroids `c` returned."""
        self._settle(c)
        distances, labels = self.distances(c)
        cost = self.cost(distances)
        exponent = 2 * self.frame.exponent
        with np.errstate(over="ignore"):
            inertia = float(np.ldexp(cost, exponent + self.heaviest))
            if exponent:  # in two steps, as 2**exponent itself may be out of range
                half = 2.0 ** (exponent // 2)
                distances = distances * half * half
        return labels, distances, inertia
