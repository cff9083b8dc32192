"""Lloyd's algorithm by brute force in float64: what the referee believes."""

import numpy as np
from numpy.typing import DTypeLike, NDArray

BLOCK = 1 << 20
"""Numbers worked on at once."""


def tie(d: int) -> float:
    """Return how close, relatively, two squared distances in d features are when they are a tie.

    It is what float64 differences can err by, the library's documented rule. It matters on pictures:
    many of their pixels are equally far from two others, and where labels of ties go decides the path.
    """
    return 4 * ((d - 1).bit_length() + 4) * 2.0**-53


def nearest(x: NDArray, centroids: NDArray) -> NDArray[np.int64]:
    """Return the label of the nearest centroid (k, d) of each row (n, d).

    By a product in float64; rows whose two lowest scores are as close as its rounding are decided by
    differences. A tie goes to the lowest label.
    """
    c = centroids.astype(np.float64)
    k, d = c.shape
    norms, minus_2c = np.einsum("ij,ij->i", c, c), np.ascontiguousarray(-2 * c.T)
    longest = float(np.sqrt(norms.max()))
    labels = np.empty(len(x), np.int64)
    step = max(1, BLOCK // k)
    for i in range(0, len(x), step):
        y = x[i : i + step].astype(np.float64)
        scores = y @ minus_2c
        scores += norms
        best = labels[i : i + step] = scores.argmin(axis=1)
        every = np.arange(len(y))
        lowest = scores[every, best]
        scores[every, best] = np.inf
        length = np.sqrt(np.einsum("ij,ij->i", y, y))
        rounding = 4 * (d + 8) * np.finfo(np.float64).eps * longest * (longest + length)
        for row in np.flatnonzero(scores.min(axis=1) - lowest <= rounding):
            squared = ((y[row] - c) ** 2).sum(axis=1)
            labels[i + row] = np.argmax(squared <= squared.min() * (1 + tie(d)))
    return labels


def squared_distances(x: NDArray, centroids: NDArray, labels: NDArray) -> NDArray[np.float64]:
    """Return the squared distance (n,) of each row to its labelled centroid."""
    c = np.asarray(centroids, np.float64)
    squared = np.empty(len(x))
    step = max(1, BLOCK // x.shape[1])
    for i in range(0, len(x), step):
        squared[i : i + step] = ((x[i : i + step] - c[labels[i : i + step]]) ** 2).sum(axis=1)
    return squared


def inertia(x: NDArray, centroids: NDArray, labels: NDArray) -> float:
    """Return the sum of squared distances to the labelled centroids."""
    return float(squared_distances(x, centroids, labels).sum())


def lloyd(x: NDArray, centres: NDArray, max_iter: int, state: DTypeLike) -> float:
    """Return the inertia after `max_iter` iterations from the centres (k, d).

    All is float64; the centroids are rounded to the dtype `state` after each iteration, as they are
    by a library that keeps them so. An empty cluster takes the farthest row, as in scikit-learn.
    """
    from scipy.sparse import csr_array  # where the rest is used, it may not be installed

    c = centres.astype(state)
    x = x.astype(np.float64)
    n, k = len(x), len(c)
    for _ in range(max_iter):
        labels = nearest(x, c)
        empty = np.flatnonzero(np.bincount(labels, minlength=k) == 0)
        if len(empty):
            squared = squared_distances(x, c, labels)
            labels[np.argsort(-squared, kind="stable")[: len(empty)]] = empty
        counts = np.bincount(labels, minlength=k)
        of = csr_array((np.ones(n), (labels, np.arange(n))), shape=(k, n))
        mean = (of @ x) / np.maximum(counts, 1)[:, None]
        new = np.where(counts[:, None] > 0, mean, c).astype(state)
        if np.array_equal(new, c):
            break
        c = new
    return inertia(x, c, nearest(x, c))
