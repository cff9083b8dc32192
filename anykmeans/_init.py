"""Initial centroids: k-means++, k-means||, random rows, given ones, or a caller's function.

Every draw is made on the host, in scikit-learn's order, so that a ``RandomState`` starts every
library and device from the rows that scikit-learn picks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from anykmeans import _array as arrays
from anykmeans import _check as check
from anykmeans._array import Array, Matrix, put, to_numpy
from anykmeans._exact import Bounds, Grid
from anykmeans._frame import Frame
from anykmeans._lloyd import lloyd
from anykmeans._rows import Rows

Draws = np.random.Generator | np.random.RandomState
Init = str | Array | Callable[..., Array]

_FEW = 16  # features up to which a distance costs no more than to find that it does not matter
_ROUNDS = 5  # passes of k-means||; Bahmani et al. saw no gain from more


def generator(rng: Any, name: str = "rng") -> Draws:
    """Return what to draw from: a Generator, or the RandomState given; never the global one.

    Raises
    ------
    TypeError
        If `rng` is not a seed or a NumPy generator.
    """
    if isinstance(rng, np.random.Generator | np.random.RandomState):
        return rng
    try:
        if isinstance(rng, bool | float | str):
            raise TypeError
        return np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise TypeError(
            f"`{name}` must be None, a seed (a whole number >= 0) or a NumPy generator; got {rng!r} "
            f"of type {type(rng).__name__}."
        ) from None


def initial_centroids(
    x: Array,
    k: int,
    *,
    init: Init = "k-means++",
    rng: Any = None,
    sample_weight: Array | None = None,
    max_bytes: int | None = None,
    kernel: str = "auto",
) -> Array:
    """Return initial centroids (k, d) for rows `x` (n, d), where `x` lives."""
    init = check.start(init, x, k)
    rows = Rows.over(x, sample_weight, kernel=kernel, max_bytes=max_bytes)
    with rows.work:
        return rows.matrix.give(start(rows, k, init, generator(rng)))


def start(rows: Rows, k: int, init: Init, rng: Draws) -> Array:
    """Return initial centroids (k, d) in their dtype, where the work is done."""
    xp, matrix = rows.xp, rows.matrix
    if isinstance(init, str):
        if init == "k-means||":
            return parallel(rows, k, rng)
        if init == "random":
            return rows.rows(matrix.asarray(_random(rows, k, rng)))
        return rows.rows(matrix.asarray(plus_plus(rows, k, rng)))
    if callable(init):
        init = check.centroids(init(matrix.source, k, rng), matrix.source, "init", k)
    c = matrix.asarray(check.host_float64(init))
    with np.errstate(over="ignore"):
        c = xp.astype(c, matrix.state_dtype)
    if not bool(xp.all(xp.isfinite(c))):
        raise ValueError(
            f"`init` must fit the dtype of the centroids, {arrays.dtype_name(c)}; got values "
            f"beyond it."
        )
    return c


def _probabilities(rows: Rows) -> np.ndarray:
    n = rows.shape[0]
    if rows.weights is None:
        return np.full(n, 1.0) / n
    w = to_numpy(rows.relative_weight(slice(0, n)))
    return np.asarray(w / w.sum())


def _random(rows: Rows, k: int, rng: Draws) -> np.ndarray:
    """Return `k` different row numbers, drawn by weight."""
    p = _probabilities(rows)
    if np.count_nonzero(p) < k:
        raise ValueError(
            f"`sample_weight` must be positive for at least k={k} rows with init='random'; got "
            f"{np.count_nonzero(p)} such rows."
        )
    return rng.choice(rows.shape[0], size=k, replace=False, p=p)


def plus_plus(rows: Rows, k: int, rng: Draws, trials: int | None = None) -> np.ndarray:
    """Return the row numbers (k,) that greedy k-means++ picks.

    Each pick is the best of `trials` rows, by default ``2 + int(log(k))``, drawn with probability
    proportional to weight times squared distance from the rows picked so far (Arthur and
    Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007).
    """
    xp, matrix = rows.xp, rows.matrix
    n = rows.shape[0]
    trials = 2 + int(math.log(k)) if trials is None else trials
    picks = np.empty(k, dtype=np.int64)
    picks[0] = rng.choice(n, p=_probabilities(rows))
    if k == 1:
        return picks
    seeds = _Seeds(rows, int(picks[0]))
    w = rows.relative_weight(slice(0, n))
    for i in range(1, k):
        cost = seeds.closest if w is None else w * seeds.closest
        grid = Grid.plan(np.asarray([float(xp.max(cost))]), n, np.zeros(1))  # one fold is used
        whole = functools.partial(_whole, xp, w, float(grid.scale[0]))
        cumulative = xp.cumulative_sum(whole(seeds.closest))  # whole numbers: exact in any order
        total = float(cumulative[-1])
        draws = matrix.asarray(rng.uniform(size=trials) * total)
        candidates = np.minimum(to_numpy(xp.searchsorted(cumulative, draws)), n - 1)
        picks[i] = seeds.best(candidates, whole, n / float(grid.scale[0]))
    return picks


def _whole(xp: Any, w: Array | None, scale: float, distances: Array) -> Array:
    """Return weighted squared distances (n,) as whole numbers of the step's grid."""
    return xp.round((distances if w is None else w * distances) * scale)


class _Seeds:
    """Each row's squared distance to the closest row picked so far."""

    def __init__(self, rows: Rows, first: int) -> None:
        self.rows, self.xp = rows, rows.xp
        xp, matrix = rows.xp, rows.matrix
        row = matrix.rows(slice(first, first + 1))
        rows.frame = Frame(matrix, rows.largest, to_numpy(row)[0])  # near the data, and exact
        c = rows.frame.wide(slice(first, first + 1))
        tiles = rows.work.tiles()
        self.closest = xp.concat(
            rows.work.map(
                lambda tile: rows.kernel.squared_distances(xp, rows.frame.wide(tile), c), tiles
            )
        )
        self._bounds = Bounds.of(rows.shape[1], 2.0**-53)

    def best(self, candidates: np.ndarray, whole: Callable[[Array], Array], lost: float) -> int:
        """Return the candidate that leaves the lowest cost, and count it as picked.

        Costs are first estimated from matrix products; only candidates whose costs these cannot
        tell apart are compared exactly, as whole numbers whose rounding may take `lost` from a cost.
        """
        contenders = list(dict.fromkeys(int(i) for i in candidates))
        if len(contenders) > 1:
            contenders = self._contenders(np.asarray(contenders), lost)
        left = [self._closest_with(i) for i in contenders]
        choice = 0
        if len(contenders) > 1:
            choice = int(np.argmin([float(self.xp.sum(whole(each))) for each in left]))
        self.closest = left[choice]
        return contenders[choice]

    def _contenders(self, candidates: np.ndarray, lost: float) -> list[int]:
        xp, rows = self.xp, self.rows
        c = rows.frame.centre(rows.frame.wide(rows.matrix.asarray(candidates)))
        minus_2c, norms = xp.permute_dims(c * -2.0, (1, 0)), xp.vecdot(c, c)

        def cost(tile: slice) -> np.ndarray:
            y, w = rows.frame.centred(tile, narrow=False), rows.relative_weight(tile)
            costs, scale = rows.kernel.trials(xp, y, minus_2c, norms, self.closest[tile], w)
            return np.concatenate([to_numpy(costs), to_numpy(scale)])

        step = rows.work.rows_of(rows.shape[1] + 2 * len(candidates))
        parts = rows.work.map(cost, rows.work.tiles(step=step))
        *costs, scale = np.sum(parts, axis=0)
        # An estimate errs by `beta` times its scale, and by underflow; relative weights are below 2^21.
        doubt = scale * (1.1 * self._bounds.beta) + rows.shape[0] * 2.0**21 * self._bounds.eta
        # Additions in float64 round, and so do whole numbers of the grid.
        doubt += max(costs) * rows.shape[0] * 2.0**-51 + lost
        keep = np.asarray(costs) <= min(costs) + 2 * doubt
        return [int(i) for i in candidates[keep]]

    def _closest_with(self, pick: int) -> Array:
        """Return each row's squared distance (n,) to the closest pick, `pick` counted in."""
        xp, rows = self.xp, self.rows
        row = rows.frame.wide(slice(pick, pick + 1))
        distances = functools.partial(rows.kernel.squared_distances, xp)
        if rows.shape[1] <= _FEW:

            def nearer(tile: slice) -> Array:
                found, old = distances(rows.frame.wide(tile), row), self.closest[tile]
                return xp.where(found < old, found, old)

            return xp.concat(rows.work.map(nearer, rows.work.tiles()))
        c = rows.frame.centre(row)
        minus_2c, norm_c = xp.permute_dims(c * -2.0, (1, 0)), xp.vecdot(c, c)

        def closest(tile: slice) -> Array:
            y = rows.frame.centred(tile, narrow=False)
            norm = xp.vecdot(y, y)
            estimate = (y @ minus_2c)[:, 0] + norm_c + norm
            old = self.closest[tile]
            maybe = self._bounds.lower(xp, estimate, norm) < old
            (at,) = xp.nonzero(maybe)
            if at.shape[0] == 0:
                return old
            found = distances(rows.frame.wide(at + tile.start), row)
            before = xp.take(old, at)
            nearer = xp.where(found < before, found, before)
            return put(xp, xp.asarray(old, copy=True), at, nearer)

        return xp.concat(rows.work.map(closest, rows.work.tiles()))


def parallel(rows: Rows, k: int, rng: Draws) -> Array:
    """Return initial centroids (k, d) by k-means|| (Bahmani et al., "Scalable k-means++", VLDB 2012).

    In each of a few rounds every row becomes a candidate with probability ``2 k w D / cost``; the
    candidates, weighted by the rows they stand for, are clustered by k-means. A row's draw belongs to
    its number alone, so tiles and ranks are free.
    """
    xp, matrix = rows.xp, rows.matrix
    n = rows.shape[0]
    if isinstance(rng, np.random.Generator):
        seed = int(rng.integers(1 << 63))
    else:
        seed = int(rng.randint(0, (1 << 63) - 1, dtype=np.int64))
    picked = np.asarray([rng.choice(n, p=_probabilities(rows))])
    for turn in range(_ROUNDS):
        distances, _ = _nearest_pick(rows, picked)
        w = rows.relative_weight(slice(0, n))
        cost = distances if w is None else w * distances
        total = rows.cost(distances)
        if total == 0:
            break

        def draw(tile: slice, turn: int = turn, cost: Array = cost, total: float = total) -> Array:
            skip = tile.start % 4
            bits = np.random.Philox(key=[seed, turn]).advance(tile.start // 4)
            u = np.random.Generator(bits).random(skip + tile.stop - tile.start)[skip:]
            chosen = matrix.asarray(u) < cost[tile] * (2.0 * k) / total
            return xp.nonzero(chosen)[0] + tile.start

        new = np.concatenate([to_numpy(a) for a in rows.work.map(draw, rows.work.tiles())])
        picked = np.union1d(picked, new)
    if picked.size <= k:  # hardly more distinct rows than clusters
        return rows.rows(matrix.asarray(plus_plus(rows, k, rng)))
    _, mass = _nearest_pick(rows, picked)
    candidates = Matrix.of(rows.rows(matrix.asarray(picked)), host=rows.kernel.host)
    weights = Matrix.of(mass[:, None], host=rows.kernel.host)
    few = Rows(candidates, weights, rows.kernel, max_bytes=rows.work.max_bytes)
    with few.work:
        c = few.rows(matrix.asarray(plus_plus(few, k, rng)))
        few.begin(c)
        return lloyd(few, c, max_iter=100, tol=0.0, empty="relocate")[0]


def _nearest_pick(rows: Rows, picked: np.ndarray) -> tuple[Array, Array]:
    """Return squared distances (n,) to the nearest of the picked rows, and the weight of each pick."""
    c = rows.rows(rows.matrix.asarray(picked))
    rows.begin(c, "off")
    stats = rows.sweep(c)
    return rows.distances(c)[0], rows.totals(stats)[1]
