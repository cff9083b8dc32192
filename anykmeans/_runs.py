"""From checked arguments to the best run: problems of a batch, their starts, their runs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans._fork import first_call
from anykmeans._init import Init, generator, given, starts
from anykmeans._libraries import (
    Array,
    Namespace,
    marked,
    on_cpu,
    take,
    to_numpy,
)
from anykmeans._lloyd import Watch
from anykmeans._matrix import Dense, Matrix
from anykmeans._plusplus import Draws
from anykmeans._result import KMeansResult
from anykmeans._work import Work
from anykmeans.kernels import Kernel, choose
from anykmeans.sources.rows import Rows, look_at, plan, vary

# Inertia, centroids, labels, passes and whether it stopped: of one run, or stacked.
_Run = tuple[Any, Array, Array, Any, Any]


def cluster(
    x: Any,
    k: int,
    *,
    sample_weight: Any,
    init: Init,
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
    names: check.Names = check.FUNCTIONS,
    watch: Watch | None = None,
) -> KMeansResult:
    """Return what `kmeans` does, which see, with the caller's names in errors, and somebody to watch."""
    x = check.matrix(x, names.x, batch=True)
    k = check.clusters(k, x, names)
    sample_weight = check.weights(sample_weight, x, names)
    max_iter = check.whole(max_iter, "max_iter", 1)
    tol = check.tolerance(tol)
    check.word(empty, "empty", check.EMPTY)
    check.word(precision, "precision", check.PRECISIONS)
    check.word(metric, "metric", check.METRICS)
    max_bytes = check.budget(max_bytes, 64 * (x.shape[-1] + k))
    threads = check.threads(threads)
    draws = generator(rng)
    init = check.start(init, x, k, names)
    runs = _runs(n_init, init)
    batch = len(x.shape) == 3
    chosen = choose(x, kernel, metric)  # once for all problems
    how: dict[str, Any] = {"max_bytes": max_bytes, "threads": threads, "precision": precision}
    how["metric"] = metric
    problems: Iterator[tuple[Rows, Init]]
    if batch:
        problems = _sources(_matrices(x, sample_weight, init, names, chosen.library), chosen, how)
    else:
        columns = given(init, x)
        rows = Rows.over(x, sample_weight, kernel=chosen, names=names, given=columns, **how)
        problems = iter([(rows, init)])
    found: list[_Run] = []
    ran: dict[str, None] = {}
    for group in chosen.together(problems):
        all_rows, inits = map(list, zip(*group, strict=True))
        rows = all_rows[0]
        if batch:
            look_at(all_rows)
        found += _best(all_rows, inits, k, runs, draws, tol, max_iter, empty, watch)
        for each in all_rows:
            ran |= each.ran
    inertia, c, labels, n_iter, converged = _stacked(rows.xp, found) if batch else found[0]
    give = rows.matrix.give
    labels = rows.xp.astype(labels, rows.xp.int64)
    _warn_if_few(labels, k, names)
    return KMeansResult(
        give(rows.matrix.spread(c)),
        give(labels),
        inertia,
        n_iter,
        converged,
        "+".join(ran),
        precision,
    )


def _problems(
    x: Array, sample_weight: Array | None, init: Init, names: check.Names
) -> Iterator[tuple[check.Names, Array, Array | None, Init]]:
    """Yield the names, rows (n, d), weights (n,) and init of each problem of `x` (b, n, d), as views."""

    def own(a: Any, dimensions: int, i: int) -> Any:
        return take(a, i) if len(getattr(a, "shape", ())) == dimensions else a

    for i in range(x.shape[0]):
        name = replace(names, x=f"{names.x}[{i}]")
        yield name, take(x, i), own(sample_weight, 2, i), own(init, 3, i)


def _matrices(
    x: Array, sample_weight: Array | None, init: Init, names: check.Names, library: str | None
) -> Iterator[tuple[check.Names, Matrix, Matrix | None, Any]]:
    """Yield what `_problems` does, arrays as a `library` that works on them sees them, all seen at once."""

    def problems(a: Any, dimensions: int) -> Iterator[Any]:
        shape = getattr(a, "shape", None)
        if shape is None or callable(a):
            return itertools.repeat(a)
        seen = Dense.over(a, library)
        if len(shape) == dimensions:
            return seen.problems()
        return itertools.repeat(seen)

    parts = problems(x, 3), problems(sample_weight, 2), problems(init, 3)
    for i, (one, weights, first) in enumerate(zip(*parts, strict=False)):
        yield check.Names(f"{names.x}[{i}]", names.k, names.centroids), one, weights, first


def _sources(
    matrices: Iterator[tuple[check.Names, Matrix, Matrix | None, Init]],
    kernel: Kernel,
    how: dict[str, Any],
) -> Iterator[tuple[Rows, Init]]:
    """Yield a source, not looked at yet, and the init of each problem: their work is cut alike."""
    work: Work | None = None
    for own, one, w, first in matrices:
        rows = Rows(one, w, kernel, names=own, problem=own.x, look=False, work=work, **how)
        work = rows.work
        yield rows, first


def _stacked(xp: Namespace, runs: list[_Run]) -> _Run:
    """Return the runs as one, with an axis of their own in front; numbers in NumPy."""
    inertia, c, labels, n_iter, converged = zip(*runs, strict=True)
    passes = np.asarray(n_iter, dtype=np.int64)
    return np.asarray(inertia), xp.stack(c), xp.stack(labels), passes, np.asarray(converged)


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


def _warn_if_few(labels: Array, k: int, names: check.Names) -> None:
    """Warn, once, if labels (n,) or (b, n) leave some of `k` clusters out."""
    batch = len(labels.shape) == 2
    used = _distinct(labels if batch else labels[None, :], k)
    few = [i for i, number in enumerate(used) if number < k]
    if few:
        with first_call:
            from sklearn.exceptions import ConvergenceWarning

        where = f" in {len(few)} of {len(used)} problems, first in {names.x}[{few[0]}]"
        # The words of scikit-learn, by which people filter.
        check.warn(
            f"Number of distinct clusters ({used[few[0]]}) found smaller than {names.k} ({k})"
            f"{where if batch else ''}. Possibly due to duplicate points in {names.x}. Or "
            f"`empty` is 'keep' and centroids are far from the data, or `max_iter` is too low.",
            ConvergenceWarning,
        )


def _distinct(labels: Array, k: int) -> list[int]:
    """Return how many of `k` clusters have rows in each problem, of labels (b, n)."""
    b = labels.shape[0]
    if on_cpu(labels):
        seen = np.zeros((b, k), bool)
        for own, row in zip(seen, to_numpy(labels), strict=True):
            own[row] = True
    else:  # not all labels to the host
        seen = to_numpy(marked(labels, k))
    found: list[int] = seen.sum(axis=1).tolist()
    return found
