"""k-means||: a few rounds of many candidates, then k-means of these."""

from __future__ import annotations

import numpy as np

from anykmeans._libraries import Array, to_numpy
from anykmeans._lloyd import lloyd
from anykmeans._matrix import Matrix
from anykmeans._plusplus import Draws, _probabilities, plus_plus
from anykmeans._rows import Rows

_ROUNDS = 5  # passes of k-means||; Bahmani et al. saw no gain from more


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
        distances = _distances(rows, picked)
        w = rows.relative_weight(slice(0, n))
        cost = distances if w is None else w * distances
        total = rows.cost(distances)
        if total == 0:
            break

        def draw(tile: slice, turn: int = turn, cost: Array = cost, total: float = total) -> Array:
            skip = tile.start % 4
            bits = np.random.Philox(key=[seed, turn]).advance(tile.start // 4)
            u = np.random.Generator(bits).random(skip + tile.stop - tile.start)[skip:]
            share = cost[tile] * (2.0 * k) / xp.full_like(cost[tile], total)  # see `means`
            chosen = matrix.asarray(u) < share
            return xp.nonzero(chosen)[0] + tile.start

        new = np.concatenate([to_numpy(a) for a in rows.work.map(draw, rows.work.tiles())])
        picked = np.union1d(picked, new)
    if picked.size <= k:  # hardly more distinct rows than clusters
        return rows.rows(matrix.asarray(plus_plus(rows, k, rng)))
    c = rows.rows(matrix.asarray(picked))
    rows.begin(c, "off")
    mass = rows.masses(rows.label(c), int(c.shape[0]))
    weights = Matrix.of(mass[:, None], rows.kernel.library)
    candidates = matrix.take(matrix.asarray(picked))
    max_bytes, threads = rows.work.max_bytes, rows.work.most
    few = Rows(candidates, weights, rows.kernel, max_bytes=max_bytes, threads=threads)
    with few.work:
        c = few.rows(matrix.asarray(plus_plus(few, k, rng)))
        few.begin(c)
        return lloyd(few, c, max_iter=100, tol=0.0, empty="relocate")[0]


def _distances(rows: Rows, picked: np.ndarray) -> Array:
    """Return squared distances (n,) to the nearest of the picked rows."""
    c = rows.rows(rows.matrix.asarray(picked))
    rows.begin(c, "off")
    rows.label(c)
    return rows.distances(c)[0]
