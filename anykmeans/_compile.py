"""Calls that have all compiled code compiled: each function for each kind of rows that it is ever called for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from anykmeans import _settings
from anykmeans.kernels import choose

# Rows and features of each way to search: all centroids, the same with slack, few features, and more, with a first look.
_SIZES = [(60, 3), (9000, 60), (6000, 5), (9000, 100)]
_K = 20  # clusters: fewer are not compiled otherwise


def compile_all() -> int:
    """Make the calls, and return how many they were.

    Raises
    ------
    RuntimeError
        If Numba cannot run here.
    """
    try:
        choose(np.ones((2, 2)), "numba")
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    made = 0
    with _settings.settings(at_once=1 << 13, few=0):
        for call in _calls():
            call()
            made += 1
    return made


def _calls() -> Iterator[Callable[[], object]]:
    from scipy.sparse import csr_array

    rng = np.random.default_rng(0)
    for (n, d), dtype, weighted in itertools.product(_SIZES, ("float32", "float64"), (False, True)):
        x = rng.normal(size=(n, d)).astype(dtype)
        w = rng.exponential(size=n) if weighted else None
        yield from _of(x, w)
        if d < 64:
            continue
        there = rng.random((n, d)) < 0.1
        there[:, 0] = True  # each row has a direction
        some = csr_array(np.where(there, x, 0).astype(dtype))
        yield from _of(some, w)


def _of(x: object, w: np.ndarray | None) -> Iterator[Callable[[], object]]:
    """Yield the calls for rows of one kind, float `x` (n, d), and weights `w` (n,) or none."""
    from anykmeans import KMeans, MiniBatchKMeans, kmeans

    how: dict[str, Any] = {
        "rng": 0,
        "max_iter": 6,
        "tol": 0.0,
        "kernel": "numba",
        "sample_weight": w,
    }
    yield lambda: kmeans(x, _K, **how)
    yield lambda: kmeans(x, _K, init="k-means||", **how)
    yield lambda: kmeans(x, _K, init="random", n_init=1, empty="keep", **how)
    if not isinstance(x, np.ndarray):  # of dense rows the same is compiled
        yield lambda: kmeans(x, _K, metric="cosine", **how)
    few: dict[str, Any] = {"kernel": "numba", "max_iter": 2, "n_init": 1, "random_state": 0}
    model = KMeans(_K, **few).fit(x, sample_weight=w)
    yield lambda: model.predict(x)
    yield lambda: model.transform(x)
    yield lambda: model.score(x, sample_weight=w)
    few["reassignment_ratio"] = 0.9  # clusters are moved to rows in the first batch
    yield lambda: MiniBatchKMeans(_K, **few).fit(x, sample_weight=w)
