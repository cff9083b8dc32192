"""From checked arguments to the best run: problems, their starts, their runs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans._fork import first_call
from anykmeans._init import Init, generator, starts
from anykmeans._libraries import (
    Array,
    marked,
    on_cpu,
    stacked,
    to_numpy,
)
from anykmeans._lloyd import Watch
from anykmeans._plusplus import Draws
from anykmeans._problems import Problems, problems
from anykmeans._result import KMeansResult
from anykmeans.sources.rows import Rows, look_at, plan, vary

# Inertia, centroids, labels, passes and whether it stopped.
_Run = tuple[float, Array, Array, int, bool]


def cluster(
    x: Any,
    k: Any,
    *,
    sample_weight: Any,
    init: Any,
    n_init: int | str,
    max_iter: int,
    tol: float,
    rng: Any,
    empty: str,
    precision: str,
    max_bytes: int | None,
    threads: int | None,
    kernel: str,
    metric: str = "euclidean",
    lengths: Any = None,
    names: check.Names = check.FUNCTIONS,
    watch: Watch | None = None,
) -> KMeansResult:
    """Return what `kmeans` does, which see, with the caller's names in errors, and somebody to watch."""
    told = problems(x, names, lengths)
    told.cluster(k, sample_weight, init)
    max_iter = check.whole(max_iter, "max_iter", 1)
    tol = check.tolerance(tol)
    check.word(empty, "empty", check.EMPTY)
    check.word(precision, "precision", check.PRECISIONS)
    check.word(metric, "metric", check.METRICS)
    max_bytes = check.budget(
        max_bytes, 64 * max(map(sum, zip(told.features, told.ks, strict=True)))
    )
    threads = check.threads(threads)
    draws = generator(rng)
    runs = _runs(n_init, init)
    kernels = told.kernels(kernel, metric)
    how: dict[str, Any] = {"max_bytes": max_bytes, "threads": threads, "precision": precision}
    how["metric"] = metric
    ends: list[tuple[float, int, bool]] = []
    parts: list[tuple[Array, Array]] = []
    used: list[int] = []
    ran: dict[str, None] = {}
    for all_rows, inits, own_k in told.groups(kernels, how):
        look_at(all_rows)
        found = _best(all_rows, inits, own_k, runs, draws, tol, max_iter, empty, watch)
        matrix, xp = all_rows[0].matrix, all_rows[0].xp
        inertias, cs, labels, *counts = zip(*found, strict=True)
        every = xp.astype(stacked(xp, labels), xp.int64)
        used += _distinct(every, own_k)
        parts.append(told.part(matrix, stacked(xp, list(map(matrix.spread, cs))), every))
        ends += zip(inertias, *counts, strict=True)
        for rows in all_rows:
            ran |= rows.ran
    _warn_if_few(told, used)
    inertia, n_iter, converged = (told.numbers(list(each)) for each in zip(*ends, strict=True))
    centroids, labels = told.whole(matrix, *map(list, zip(*parts, strict=True)))
    return KMeansResult(centroids, labels, inertia, n_iter, converged, "+".join(ran), precision)


def _best(
    all_rows: list[Rows],
    inits: list[Init],
    k: int,
    runs: int,
    draws: Draws,
    tol: float,
    max_iter: int,
    empty: str,
    watch: Watch | None,
) -> list[_Run]:
    """Return the best of the runs of each source."""
    with all_rows[0].work:
        begins = starts(all_rows, k, inits, runs, draws)
        run = functools.partial(_ended, tol=tol, max_iter=max_iter, empty=empty, watch=watch)
        if len(all_rows) > 1:
            found = [run(all_rows, list(c)) for c in zip(*begins, strict=True)]
            return [min(each, key=lambda run: run[0]) for each in zip(*found, strict=True)]
        # As many runs of one source at once as the budget has room for: labels, lists, distances; and centroids.
        (rows,), (cs,) = all_rows, begins
        bytes_ = rows.shape[0] * (32 if rows.weights is None else 40) + 100 * k * rows.shape[1]
        some = max(1, rows.work.max_bytes // bytes_)
        ends: list[_Run] = []
        for part in rows.kernel.together(cs):
            for i in range(0, len(part), some):
                ends += run([rows] * len(part[i : i + some]), part[i : i + some])
        return [min(ends, key=lambda run: run[0])]


def _ended(
    all_rows: list[Rows],
    c: list[Array],
    *,
    tol: float,
    max_iter: int,
    empty: str,
    watch: Watch | None,
) -> list[_Run]:
    """Return inertia, centroids, labels, passes and whether it stopped, of one run of each source from its `c` (k, d)."""
    kernel = all_rows[0].kernel
    runs = kernel.start(all_rows, c)
    plan(all_rows)
    tols = [0.0] * len(runs)
    if tol:
        vary(all_rows)
        tols = [tol * run.variance for run in runs]
    ends = kernel.descend(runs, tols, max_iter, empty, watch)
    labelled = kernel.label(runs, [c for c, _, _ in ends])
    return [
        (inertia, run.restored(c), labels, n_iter, converged)
        for run, (c, n_iter, converged), (labels, inertia) in zip(runs, ends, labelled, strict=True)
    ]


def _runs(n_init: int | str, init: Init) -> int:
    """Return how many runs `n_init` asks for; given centroids need only one."""
    if not isinstance(n_init, str):
        n_init = check.whole(n_init, "n_init", 1)
    elif n_init != "auto":
        raise ValueError(f"`n_init` must be 'auto' or a whole number; got {n_init!r}.")
    if not isinstance(init, str) and not callable(init):
        return 1
    if isinstance(n_init, int):
        return n_init
    return 10 if init == "random" or callable(init) else 1


def _warn_if_few(told: Problems, used: list[int]) -> None:
    """Warn, once, if fewer clusters of problems are `used` (b,) than they are to have."""
    few = [i for i, (number, k) in enumerate(zip(used, told.ks, strict=True)) if number < k]
    if few:
        with first_call:
            from sklearn.exceptions import ConvergenceWarning

        first = told.named(few[0])
        where = f" in {len(few)} of {len(used)} problems, first in {first.x}"
        # The words of scikit-learn, by which people filter.
        check.warn(
            f"Number of distinct clusters ({used[few[0]]}) found smaller than {first.k} ({told.ks[few[0]]})"
            f"{'' if told.alone else where}. Possibly due to duplicate points in {told.names.x}. Or "
            f"`empty` is 'keep' and centroids are far from the data, or `max_iter` is too low.",
            ConvergenceWarning,
        )


def _distinct(labels: Array, k: int) -> list[int]:
    """Return how many of `k` clusters have rows in each problem, of labels (b, n)."""
    if on_cpu(labels):
        seen = np.zeros((labels.shape[0], k), bool)
        for own, row in zip(seen, to_numpy(labels), strict=True):
            own[row] = True
    else:  # not all labels to the host
        seen = to_numpy(marked(labels, k))
    return list(map(np.count_nonzero, seen))
