"""k-means||: a few rounds of many candidates, then k-means of these."""

from __future__ import annotations

import numpy as np

from anykmeans._libraries import Array, to_numpy
from anykmeans._lloyd import lloyd
from anykmeans._matrix import Matrix
from anykmeans._plusplus import Draws, plus_plus, probabilities
from anykmeans.sources.rows import Rows

_ROUNDS = 5  # passes of k-means||; Bahmani et al. saw no gain from more


def parallel(rows: Rows, k: int, rng: Draws) -> Array:
    """Return initial centroids (k, d) by k-means|| (Bahmani et al., "Scalable k-means++", VLDB 2012).

    In each of a few rounds every row becomes a candidate with probability ``2 k w D / cost``; the
    candidates, weighted by the rows they stand for, are clustered by k-means. A row's draw belongs to
    its number alone, so tiles and ranks are free.
    """
    xp, matrix = rows.xp, rows.matrix
    n, kernel = rows.shape[0], rows.kernel
    if isinstance(rng, np.random.Generator):
        seed = int(rng.integers(1 << 63))
    else:
        seed = int(rng.randint(0, (1 << 63) - 1, dtype=np.int64))
    picked = np.asarray([rng.choice(n, p=probabilities(rows))])
    for turn in range(_ROUNDS):
        c = rows.rows(matrix.asarray(picked))
        run = rows.start(c, bounds="off")
        run.labels(run.c)
        distances, w = run.distances(run.c), rows.relative_weight(rows.every)
        cost = distances if w is None else w * distances
        total = float(kernel.cost(rows, run.frame, distances))
        if total == 0:
            break

        def draw(tile: slice, turn: int = turn, cost: Array = cost, total: float = total) -> Array:
            skip = tile.start % 4
            bits = np.random.Philox(key=[seed, turn]).advance(tile.start // 4)
            u = np.random.Generator(bits).random(skip + tile.stop - tile.start)[skip:]
            share = cost[tile] * (2.0 * k) / xp.full_like(cost[tile], total)  # see `segment_mean`
            chosen = matrix.asarray(u) < share
            return xp.nonzero(chosen)[0] + tile.start

        new = np.concatenate([to_numpy(a) for a in rows.work.map(draw, rows.work.tiles())])
        picked = np.union1d(picked, new)
    if picked.size <= k:  # hardly more distinct rows than clusters
        return rows.rows(matrix.asarray(plus_plus(rows, k, rng)))
    c = rows.rows(matrix.asarray(picked))
    run = rows.start(c, bounds="off")
    mass = rows.masses(run.labels(run.c), int(c.shape[0]))
    few = rows.of(matrix.take(matrix.asarray(picked)), Matrix.of(mass[:, None], kernel.library))
    with few.work:
        run = few.start(few.rows(matrix.asarray(plus_plus(few, k, rng))))
        return lloyd(run, run.c, max_iter=100, tol=0.0, empty="relocate")[0]
