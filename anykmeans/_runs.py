"""From checked arguments to the best run: problems of a batch, their starts, their runs."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans._fork import first_call
from anykmeans._init import Init, generator, given, start
from anykmeans._libraries import (
    Array,
    Namespace,
    marked,
    on_cpu,
    take,
    to_numpy,
)
from anykmeans._lloyd import lloyd
from anykmeans._matrix import Matrix
from anykmeans._plusplus import Draws, start_together
from anykmeans._result import KMeansResult
from anykmeans._rows import (
    Rows,
    finish_together,
    frames_together,
    leap_together,
    plan_together,
    variances_together,
)
from anykmeans.kernels import choose

# Inertia, centroids, labels, passes and whether it stopped: of one run, or stacked.
_Run = tuple[Any, Array, Array, Any, Any]
# Told before a run, with 0, and after each pass, with its number: the centroids it began with, in NumPy, the squared
# shift, and that at which to stop.
Watch = Callable[[int, np.ndarray, float, float], None]


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
    max_bytes = check.budget(max_bytes, 64 * (x.shape[-1] + k))
    threads = check.threads(threads)
    draws = generator(rng)
    init = check.start(init, x, k, names)
    runs = _runs(n_init, init)

    best = functools.partial(
        _best,
        k=k,
        runs=runs,
        draws=draws,
        max_iter=max_iter,
        tol=tol,
        empty=empty,
        watch=watch,
    )
    how: dict[str, Any] = {"max_bytes": max_bytes, "threads": threads, "precision": precision}
    if len(x.shape) == 2:
        columns = given(init, x)
        rows = Rows.over(x, sample_weight, kernel=kernel, names=names, given=columns, **how)
        ((inertia, c, labels, n_iter, converged),) = best([_Problem("", rows, init)])
    else:
        chosen = choose(x, kernel)  # once, as what pays depends on how many problems there are
        problems = (
            _Problem(own.x, Rows(one, w, chosen, names=own, plan=False, **how), first)
            for own, one, w, first in _matrices(x, sample_weight, init, names, chosen.library)
        )
        # Those that can share launches are clustered together; others one after the other, as they need room.
        groups = ([each] for each in problems) if chosen.together is None else [list(problems)]
        found = []
        for group in groups:
            plan_together([problem.rows for problem in group])
            found += best(group)
            rows = group[0].rows
        inertia, c, labels, n_iter, converged = _stacked(rows.xp, found)
    give = rows.matrix.give
    labels = rows.xp.astype(labels, rows.xp.int64)
    _warn_if_few(labels, k, names)
    return KMeansResult(
        give(rows.matrix.spread(c)),
        give(labels),
        inertia,
        n_iter,
        converged,
        rows.kernel.name,
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
        seen = Matrix.of(a, library)
        if len(shape) == dimensions:
            return map(seen.problem, range(x.shape[0]))
        return itertools.repeat(seen)

    parts = problems(x, 3), problems(sample_weight, 2), problems(init, 3)
    for i, (one, weights, first) in enumerate(zip(*parts, strict=False)):
        yield replace(names, x=f"{names.x}[{i}]"), one, weights, first


def _stacked(xp: Namespace, runs: list[_Run]) -> _Run:
    """Return the runs as one, with an axis of their own in front; numbers in NumPy."""
    inertia, c, labels, n_iter, converged = zip(*runs, strict=True)
    passes = np.asarray(n_iter, dtype=np.int64)
    return np.asarray(inertia), xp.stack(c), xp.stack(labels), passes, np.asarray(converged)


@dataclass(frozen=True)
class _Problem:
    """Rows to cluster, where to start, and what they are called if they are not all of `x`."""

    name: str
    rows: Rows
    init: Init

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Tell of an error, that of a callable too, which problem it was."""
        try:
            yield
        except Exception as error:
            if self.name:
                error.add_note(f"This was while clustering `{self.name}`.")
            raise


def _best(
    problems: list[_Problem],
    k: int,
    runs: int,
    draws: Draws,
    max_iter: int,
    tol: float,
    empty: str,
    watch: Watch | None,
) -> list[_Run]:
    """Return the best of the runs of each problem."""
    with contextlib.ExitStack() as stack:
        for problem in problems:
            stack.enter_context(problem.rows.work)
        init, starts = problems[0].init, None
        if isinstance(init, str) and init == "k-means++":
            starts = start_together([problem.rows for problem in problems], k, runs, draws)
        if starts is None:
            starts = []
            for problem in problems:
                with problem.named():
                    each = [start(problem.rows, k, problem.init, draws) for _ in range(runs)]
                starts.append(each)
        run = functools.partial(_run, max_iter=max_iter, tol=tol, empty=empty, watch=watch)
        together = problems[0].rows.kernel.together is not None
        if together and len(problems) == 1 and runs > 1 and watch is None:
            found = _restarts(problems[0], starts[0], run)
        else:
            found = [run(problems, list(c)) for c in zip(*starts, strict=True)]
    return [min(each, key=lambda run: run[0]) for each in zip(*found, strict=True)]


def _restarts(
    problem: _Problem, starts: list[Array], run: Callable[..., list[_Run]]
) -> list[list[_Run]]:
    """Return the runs of one problem from all its `starts`: as many at once as share launches, and fit the budget."""
    rows, (k, d) = problem.rows, starts[0].shape
    # Labels, lists and distances; and what a pass makes of centroids.
    bytes_ = rows.shape[0] * (32 if rows.weights is None else 40) + 100 * k * d
    most = max(1, rows.work.max_bytes // bytes_)
    found = []
    for first in range(0, len(starts), most):
        some = starts[first : first + most]
        copies = [replace(problem, rows=each) for each in rows.copies(len(some))]
        found += [[each] for each in run(copies, some)]
    return found


def _run(
    problems: list[_Problem],
    starts: list[Array],
    max_iter: int,
    tol: float,
    empty: str,
    watch: Watch | None,
) -> list[_Run]:
    """Return inertia, centroids, labels, passes and whether it stopped, of one run of each problem."""
    sources = [problem.rows for problem in problems]
    frames = frames_together(sources, starts)
    for i, problem in enumerate(problems):
        with problem.named():
            starts[i] = problem.rows.begin(starts[i], frame=frames[i])
    stops = [0.0] * len(problems)
    if tol:
        variances_together(sources)
        for i, problem in enumerate(problems):
            with problem.named():
                stops[i] = tol * problem.rows.variance()
    run = lloyd if watch is None else functools.partial(_watched, watch)
    begun = leap_together(sources, starts, max_iter, stops, empty)
    ends = []
    for problem, stop, (c, done, shift) in zip(problems, stops, begun, strict=True):
        with problem.named():
            ends.append(
                run(
                    problem.rows,
                    c,
                    max_iter=max_iter,
                    tol=stop,
                    empty=empty,
                    done=done,
                    shift=shift,
                )
            )
    found = []
    finished = finish_together(sources, [c for c, _, _ in ends])
    for rows, (c, n_iter, converged), (labels, inertia) in zip(
        sources, ends, finished, strict=True
    ):
        found.append((inertia, rows.restored(c), labels, n_iter, converged))
    return found


def _watched(
    watch: Watch,
    rows: Rows,
    c: Array,
    *,
    max_iter: int,
    tol: float,
    empty: str,
    done: int,
    shift: float,
) -> tuple[Array, int, bool]:
    """Return what `lloyd` does, one pass at a time, each told to `watch`."""

    def tell(done: int, c: Array, shift: float) -> None:
        squares = np.ldexp([shift, tol], 2 * rows.frame.exponent).tolist()
        watch(done, to_numpy(rows.matrix.spread(c)), *squares)

    tell(done, c, shift)
    converged = False
    while done < max_iter and not converged:
        before = c
        c, done, converged = lloyd(rows, c, max_iter=done + 1, tol=tol, empty=empty, done=done)
        tell(done, before, rows.shift(c, before))
    return c, done, converged


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
