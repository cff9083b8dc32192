"""A k-means nobody can doubt: float64, plain loops, `math.fsum`. The tests compare the library with it."""

import math
from fractions import Fraction

import numpy as np

TIE = 1e-14  # distances closer than this (relative) are a tie; no test relies on its size


def distances(x, c):
    """Squared distances (n, k): squares added by halving along the features, as promised (R5)."""
    out = np.empty((x.shape[0], c.shape[0]))
    for j in range(c.shape[0]):
        t = x - c[j]
        t = t * t
        while t.shape[1] > 1:
            h = 1
            while 2 * h < t.shape[1]:
                h *= 2
            right = np.zeros((t.shape[0], h))
            right[:, : t.shape[1] - h] = t[:, h:]
            t = t[:, :h] + right
        out[:, j] = t[:, 0]
    return out


def nearest(x, c):
    """Labels (n,) and squared distances (n,): of the nearest centroids, the one of lowest index."""
    every = distances(x, c)
    labels = np.empty(x.shape[0], dtype=np.int64)
    for i, row in enumerate(every):
        labels[i] = next(j for j, value in enumerate(row) if value <= row.min() * (1 + TIE))
    return labels, every[np.arange(x.shape[0]), labels]


def mean(x, w):
    """Weighted mean (d,) of the rows: the exact sum of the products over that of the weights, each rounded once."""
    if (w == 1).all():
        return np.array([math.fsum(x[:, f]) / len(x) for f in range(x.shape[1])])
    return np.array([weighted_sum(x[:, f], w) / math.fsum(w) for f in range(x.shape[1])])


def weighted_sum(values, w):
    """The exact sum of the values (n,) times their weights (n,), rounded once."""
    exact = sum(Fraction(float(v)) * Fraction(float(u)) for v, u in zip(values, w, strict=True))
    return float(exact)


def meant(stats, host=np.asarray):
    """What the whole numbers mean, exactly: a list of columns for each cluster."""
    grid, sums = stats.grid, host(stats.sums)
    columns = grid.scale.size
    return [
        [
            sum(
                Fraction(row[i * columns + f]) / Fraction(grid.step) ** i for i in range(grid.folds)
            )
            / Fraction(scale)
            for f, scale in enumerate(grid.scale.tolist())
        ]
        for row in sums.tolist()
    ]


def exact_sums(x, w, labels, k, heaviest=0):
    """Sums of the rows (n, d) and of the weights, by label, of weights relative to ``2**heaviest``: fractions."""
    found = [[Fraction(0)] * (x.shape[1] + 1) for _ in range(k)]
    for row, weight, j in zip(x.tolist(), w.tolist(), labels.tolist(), strict=True):
        weight = Fraction(weight) / Fraction(2) ** heaviest
        for f, value in enumerate([*row, 1.0]):
            if value:
                found[j][f] += weight * Fraction(value)
    return found


def wild(n, d, seed=0):
    """Rows (n, d) over 60 powers of two, some of them zero."""
    draw = np.random.default_rng(seed)
    x = np.ldexp(draw.normal(size=(n, d)), draw.integers(-60, 1, size=(n, d)))
    return np.where(draw.random((n, d)) < 0.1, 0, x)


def update(x, w, labels, squared, c, empty="relocate"):
    """The next centroids (k, d) in float64; each empty cluster takes the farthest row left."""
    labels = labels.copy()
    hollow = [j for j in range(c.shape[0]) if math.fsum(w[labels == j]) == 0]
    if empty == "relocate" and squared.max() > 0:
        far = sorted(range(x.shape[0]), key=lambda i: (-squared[i], i))
        for j, i in zip(hollow, far, strict=False):
            labels[i] = j
    new = c.copy()
    for j in range(c.shape[0]):
        if math.fsum(w[labels == j]) > 0:
            new[j] = mean(x[labels == j], w[labels == j])
    return new


def kmeans(x, c, w=None, *, max_iter=300, tol=1e-4, dtype=np.float64, empty="relocate"):
    """Lloyd from the centroids `c`, stopped as scikit-learn does: centroids, labels, inertia, n_iter.

    The state, the centroids, is rounded to `dtype` after each step; everything else is float64.
    """
    x, c = x.astype(np.float64), c.astype(dtype).astype(np.float64)
    w = np.ones(x.shape[0]) if w is None else w.astype(np.float64)
    threshold = tol * np.mean(np.average((x - mean(x, w)) ** 2, axis=0, weights=w))
    before = np.full(x.shape[0], -1)
    for n_iter in range(1, max_iter + 1):  # noqa: B007
        labels, squared = nearest(x, c)
        new = update(x, w, labels, squared, c, empty).astype(dtype).astype(np.float64)
        shift = math.fsum(distances(new[j : j + 1], c[j : j + 1])[0, 0] for j in range(len(c)))
        c = new
        if (labels == before).all() or shift <= threshold:
            break
        before = labels
    labels, squared = nearest(x, c)
    return c, labels, weighted_sum(squared, w), n_iter


def kmeans_plusplus(x, k, random_state, w=None, trials=None):
    """Row numbers (k,) of greedy k-means++ with the draws that scikit-learn makes."""
    w = np.ones(x.shape[0]) if w is None else w
    trials = 2 + int(math.log(k)) if trials is None else trials
    picks = [random_state.choice(x.shape[0], p=w / w.sum())]
    closest = distances(x, x[picks])[:, 0]
    while len(picks) < k:
        cost = np.cumsum(w * closest)
        candidates = np.searchsorted(cost, random_state.uniform(size=trials) * cost[-1])
        options = [
            np.minimum(closest, distances(x, x[[i]])[:, 0])
            for i in np.minimum(candidates, x.shape[0] - 1)
        ]
        best = min(range(trials), key=lambda t: math.fsum(w * options[t]))
        picks.append(min(candidates[best], x.shape[0] - 1))
        closest = options[best]
    return np.array(picks)


def bits(result, host=np.asarray):
    """Everything a result promises, in a form that is equal only if every bit is."""
    centroids, labels = host(result.centroids), host(result.labels)
    return {
        "dtype": str(centroids.dtype),
        "centroids": [[float(value).hex() for value in row] for row in centroids],
        "labels": labels.tolist(),
        "inertia": float(result.inertia).hex(),
        "n_iter": result.n_iter,
        "converged": result.converged,
    }
