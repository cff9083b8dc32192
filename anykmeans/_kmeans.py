"""The functions: kmeans, assign, kmeans_plusplus."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans._array import (
    Array,
    Matrix,
    Namespace,
    eager,
    is_sparse,
    like,
    marked,
    namespace,
    on_cpu,
    put,
    take,
    to_numpy,
)
from anykmeans._exact import squared_norms
from anykmeans._fork import first_call
from anykmeans._frame import BESIDE
from anykmeans._init import Draws, Init, generator, given, plus_plus, start, start_together
from anykmeans._lloyd import lloyd
from anykmeans._rows import (
    Rows,
    finish_together,
    frames_together,
    leap_together,
    plan_together,
    variances_together,
)
from anykmeans._search import own_distances
from anykmeans.kernels import choose

# Inertia, centroids, labels, passes and whether it stopped: of one run, or stacked.
_Run = tuple[Any, Array, Array, Any, Any]
# Told before a run, with 0, and after each pass, with its number: the centroids it began with, in NumPy, the squared
# shift, and that at which to stop.
Watch = Callable[[int, np.ndarray, float, float], None]


@dataclass(frozen=True, eq=False)  # arrays have no single truth to compare by
class KMeansResult:
    """A clustering, or one of each problem of a batch. It unpacks: ``centroids, labels, *_ = kmeans(x, 3)``.

    Of a batch of b problems all but `kernel` and `precision` have b entries. Counts and inertia stay with
    the host, as Python's numbers do: in NumPy arrays, whatever the library of `x`.

    Attributes
    ----------
    centroids : array of shape (k, d) or (b, k, d)
        Means of their rows, from exact sums, in the library and on the device of `x`; float32 for
        half and single precision, float64 otherwise.
    labels : array of shape (n,) or (b, n), int64
        The nearest centroid of each row, of the centroids returned.
    inertia : float, or NumPy array of shape (b,), float64
        Weighted sum of the rows' squared distances to their centroid, in squared units of `x`
        (infinite where float64 cannot hold it).
    n_iter : int, or NumPy array of shape (b,), int64
        Passes of the best run.
    converged : bool, or NumPy array of shape (b,), bool
        Whether that run stopped by itself rather than at `max_iter`.
    kernel : str
        The kernel that did the work.
    precision : str
        ``"exact"``, or ``"fast"`` where labels were not certified.
    """

    centroids: Array
    labels: Array
    inertia: float | np.ndarray
    n_iter: int | np.ndarray
    converged: bool | np.ndarray
    kernel: str
    precision: str

    def __iter__(self) -> Iterator[Any]:
        return iter(getattr(self, name) for name in self.__dataclass_fields__)


@eager
def kmeans(
    x: Any,
    k: int,
    *,
    sample_weight: Any = None,
    init: Init = "k-means++",
    n_init: int | str = "auto",
    max_iter: int = 300,
    tol: float = 1e-4,
    rng: Any = None,
    empty: str = "relocate",
    precision: str = "exact",
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
) -> KMeansResult:
    """Return the k-means clustering of the rows of `x`, where `x` lives.

    The same data, weights and seed give the same bits on every library, device, memory budget and
    number of threads. An `x` of three dimensions is a batch of problems, each clustered by itself: the
    bits are those of a loop over ``kmeans(x[i], k, ...)`` with one generator for all.

    Parameters
    ----------
    x : array of shape (n, d) or (b, n, d)
        Rows, or b problems of n rows, of any real dtype and strides: NumPy, PyTorch, CuPy, JAX or any
        other Array API library, lists, frames, and SciPy sparse matrices (n, d). Never written to, never
        copied whole. An image (h, w, 3) would be h problems: flatten it with ``image.reshape(-1, 3)``.
    k : int
        Number of clusters, between 1 and n.
    sample_weight : array of shape (n,) or (b, n), optional
        Weight of each row, not negative: an array beside `x`, or a list. A weight of 2 is the row twice, to
        the last bit of the result from given centroids. Weights (n,) are those of every problem.
    init : {"k-means++", "k-means||", "random"}, array of shape (k, d) or (b, k, d), or callable
        Initial centroids, or how to draw them. A callable is called as ``init(x, k, rng)``, for each
        problem with its rows (n, d); centroids (k, d) are those of every problem.
    n_init : "auto" or int
        Runs, of which the one of lowest inertia is returned. ``"auto"`` is 10 for ``"random"`` and
        callables, else 1.
    max_iter : int
        Most passes of a run.
    tol : float
        A run stops when the squared moves of all centroids add up to no more than `tol` times the
        mean weighted variance of the features.
    rng : None, int, SeedSequence, BitGenerator, Generator or RandomState
        Where draws come from, always on the host. A RandomState is drawn from as scikit-learn does.
        None draws afresh and ignores ``np.random.seed``, which the estimators obey. A batch draws problem after problem, all runs of one before the next.
    empty : {"relocate", "keep", "error"}
        What becomes of a cluster without rows: it takes the row farthest from its centroid (lowest
        row number first) unless all distances are zero, stays where it is, or raises.
    precision : {"exact", "fast"}
        ``"fast"`` takes the lowest score without proof; equal bits are no longer promised.
    max_bytes : int, optional
        Budget for memory beyond `x`; up to about 90 bytes a row (labels, bounds, distances, draws) and
        a dozen copies of the centroids, or of the ten times as many candidates of ``"k-means||"``, come on top.
        Default: 256 MiB on a CPU, 1 GiB elsewhere, and on a GPU for rows in half precision up to a quarter of the free memory.
    threads : int, optional
        Most threads to work in, whatever bounds them otherwise: the cores that this process may use, a
        container's share of them, `OMP_NUM_THREADS` and ``threadpoolctl.threadpool_limits``. Never changes a bit.
    kernel : str
        ``"auto"`` or the name of a kernel, see `anykmeans.kernels`.

    Returns
    -------
    KMeansResult
        Centroids, labels, inertia, and how it went.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If `x` is not a finite matrix with at least `k` rows, or a batch of such. A problem is named, as
        in ``x[3]``, and a value that is not finite is found when the turn comes to its problem.
    ValueError
        If weights are negative, all zero, not finite or not one a row.
    ValueError
        If given centroids have the wrong shape or live elsewhere than `x`.
    ValueError
        If a cluster is empty and `empty` is ``"error"``.
    ValueError
        If the named kernel cannot run on `x`.

    Warns
    -----
    ConvergenceWarning
        If fewer than `k` clusters have rows, as when fewer than `k` rows are distinct. Once for a
        batch, with the number of such problems and the first of them.

    Notes
    -----
    Values from 1e-300 to 1e300 are scaled by a power of two and work; an inertia beyond float64 is
    infinite. Side by side rows have limits: differences below 1e-150 of the largest value do not
    show in a distance. Sums of float32, half precision and integers are exact; sums of float64 and of
    weighted rows keep 263 bits below a feature's largest value (at n = 10^6), and what is smaller
    counts as zero.

    JAX arrays are clustered eagerly, outside of ``jax.jit``, ``jax.vmap`` and ``jax.grad``. While JAX has no dtypes of
    64 bits, which is its default, labels come as int32 and what would be float64 is rounded to float32 at the end.

    References
    ----------
    S. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory, 1982.

    Examples
    --------
    >>> import numpy as np
    >>> from anykmeans import kmeans
    >>> x = np.asarray([[0.0], [1.0], [9.0], [10.0]])
    >>> centroids, labels, *_ = kmeans(x, 2, rng=0)
    >>> sorted(centroids[:, 0].tolist())
    [0.5, 9.5]

    Two problems at once, the second ten times as large:

    >>> result = kmeans(np.stack([x, 10 * x]), 2, rng=0)
    >>> result.centroids.shape, result.labels.shape
    ((2, 2, 1), (2, 4))
    >>> result.inertia
    array([  1., 100.])
    """
    return cluster(
        x,
        k,
        sample_weight=sample_weight,
        init=init,
        n_init=n_init,
        max_iter=max_iter,
        tol=tol,
        rng=rng,
        empty=empty,
        precision=precision,
        max_bytes=max_bytes,
        threads=threads,
        kernel=kernel,
    )


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


@eager
def assign(
    x: Any,
    centroids: Any,
    *,
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
) -> tuple[Array, Array]:
    """Return the nearest centroid of each row and the squared distance to it.

    An `x` of three dimensions is a batch of problems: the bits are those of a loop over ``assign(x[i], ...)``.

    Parameters
    ----------
    x : array of shape (n, d) or (b, n, d)
        Rows, or b problems of n rows, as for `kmeans`.
    centroids : array of shape (k, d) or (b, k, d)
        Centroids beside `x`. Centroids (k, d) are those of every problem.
    max_bytes : int, optional
        Budget for memory beyond `x`, as for `kmeans`.
    threads : int, optional
        Most threads to work in, as for `kmeans`.
    kernel : str
        ``"auto"`` or the name of a kernel, see `anykmeans.kernels`.

    Returns
    -------
    labels : array of shape (n,) or (b, n), int64
        Certified: float64 differences find no nearer centroid. Ties go to the lowest label.
    squared_distances : array of shape (n,) or (b, n), float64
        In squared units of `x`; the same bits from every library.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If `threads` is less than 1.
    ValueError
        If `x` or `centroids` is not a finite matrix or a batch of such, their features differ in number,
        or they live in different places.
    ValueError
        If the named kernel cannot run on `x`, or `max_bytes` is too small for one row.
    """
    names = check.FUNCTIONS
    how: dict[str, Any] = {"max_bytes": max_bytes, "threads": threads}
    x = check.matrix(x, names.x, batch=True)
    if len(x.shape) == 2:
        labels, distances, _ = evaluate(x, centroids, kernel=kernel, **how)
        return labels, distances
    c = check.centroids(centroids, x, names.centroids)
    kernel = choose(x, kernel).name  # once, as in `kmeans`
    found = [
        evaluate(one, first, kernel=kernel, names=own, **how)[:2]
        for own, one, _, first in _problems(x, None, c, names)
    ]
    labels, distances = (_together(each) for each in zip(*found, strict=True))
    return labels, distances


def _together(parts: Sequence[Array]) -> Array:
    """Return arrays with an axis of their own in front."""
    if on_cpu(parts[0]):  # as in `_replaced`
        return like(np.stack([to_numpy(a) for a in parts]), parts[0])
    return namespace(parts[0]).stack(parts)


def nearest(
    x: Any,
    centroids: Any,
    *,
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
    names: check.Names = check.FUNCTIONS,
) -> Array:
    """Return labels (n,), int64: of the nearest centroids."""
    how = _how(max_bytes, threads, kernel, names)
    for glance in (True, False):
        rows, host = _against(x, centroids, glance=glance, **how)
        with rows.work:
            c = _begun(rows, host)
            labels = rows.label(c)
            near = rows.near()
        if labels is not None:
            break
    labels = rows.matrix.give(rows.xp.astype(labels, rows.xp.int64))
    if near.size:
        labels = _replaced(labels, near, nearest(take(rows.matrix.source, near), centroids, **how))
    return labels


def evaluate(
    x: Any,
    centroids: Any,
    *,
    sample_weight: Any = None,
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
    names: check.Names = check.FUNCTIONS,
) -> tuple[Array, Array, float]:
    """Return labels (n,), squared distances (n,) and the inertia, bit for bit as a fit ends with."""
    rows, host = _against(x, centroids, sample_weight, **_how(max_bytes, threads, kernel, names))
    with rows.work:
        labels, distances, inertia = evaluated(rows, host)
    give = rows.matrix.give
    return give(rows.xp.astype(labels, rows.xp.int64)), give(distances), inertia


def evaluated(rows: Rows, host: np.ndarray) -> tuple[Array, Array, float]:
    """Return what `evaluate` does, where the work is done, for centroids (k, columns) in NumPy."""
    c = _begun(rows, host)
    labels, distances, inertia = rows.finish(c)
    near = rows.near()
    if near.size:
        w = rows.relative_weight(rows.matrix.asarray(near))
        weighs = w is None or bool(rows.xp.any(w > 0))
        few = rows.take(near, weighted=weighs)
        with few.work:
            others = evaluated(few, host)
        labels, distances = (
            _replaced(*each) for each in ((labels, near, others[0]), (distances, near, others[1]))
        )
        # All others are far beyond these, or have no weight to speak of.
        inertia = max(inertia, others[2]) if weighs else inertia
    return labels, distances, inertia


def _replaced(found: Array, at: np.ndarray, others: Array, axis: int = 0) -> Array:
    """Return `found` with `others` in the places `at` (m,) along an axis."""
    if on_cpu(found):  # not by JAX, which would compile it for each shape
        a = np.array(to_numpy(found))
        a[(slice(None),) * axis + (at,)] = to_numpy(others)
        return like(a, found)
    xp, n = namespace(found), found.shape[axis]
    source = np.arange(n)
    source[at] = n + np.arange(at.size)
    return xp.take(xp.concat([found, others], axis=axis), like(source, found), axis=axis)


def _how(
    max_bytes: int | None, threads: int | None, kernel: str, names: check.Names
) -> dict[str, Any]:
    """Return how to compute and to speak, for functions that hand it on."""
    return {"max_bytes": max_bytes, "threads": threads, "kernel": kernel, "names": names}


def _against(
    x: Any,
    centroids: Any,
    sample_weight: Any = None,
    *,
    max_bytes: int | None,
    threads: int | None,
    kernel: str,
    names: check.Names,
    glance: bool = False,
) -> tuple[Rows, np.ndarray]:
    """Return checked rows, and the centroids (k, columns) to compare them with, in NumPy."""
    x = check.matrix(x, names.x)
    c = check.centroids(centroids, x, names.centroids, names=names)
    sample_weight = check.weights(sample_weight, x, names)
    max_bytes = check.budget(max_bytes, 64 * (x.shape[1] + c.shape[0]))
    host, other = check.host(c), None
    if glance and not is_sparse(x):
        host = np.asarray(host, np.float64)
        other = max(float(host.max()), -float(host.min()))
        # Rows beside the first may be as tiny as centroids.
        if (
            float(np.abs(host).min()) * BESIDE < 1
            and int(np.count_nonzero(np.abs(host).max(axis=1) * BESIDE < 1)) > 1
        ):
            other = None
    rows = Rows.over(
        x,
        sample_weight,
        kernel=kernel,
        max_bytes=max_bytes,
        threads=check.threads(threads),
        names=names,
        glance=other,
        given=host if is_sparse(x) else None,
    )
    return rows, rows.matrix.columns_of(host)


def _begun(rows: Rows, host: np.ndarray) -> Array:
    """Return the centroids that rows are ready to make one pass with: those in NumPy, in a float dtype that holds them."""
    xp = rows.xp
    narrow = rows.matrix.narrow and max(float(host.max()), -float(host.min())) < 1e38
    if narrow and host.dtype != np.float32:
        narrow = bool((host.astype(np.float32) == host).all())
    # One pass: bounds would not pay.
    host = host.astype(np.float32 if narrow else np.float64, copy=False)
    c = rows.matrix.asarray(host, xp.float32 if narrow else xp.float64)
    return rows.begin(c, "off", host=host)


def distances(
    x: Any,
    centroids: Any,
    *,
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
    names: check.Names = check.FUNCTIONS,
) -> Array:
    """Return Euclidean distances (n, k) of rows to centroids, in the dtype of centroids of `x`.

    In up to 64 features compiled code takes differences. Elsewhere they come from products, but those of
    nearly equal rows, where products lose digits, from differences: last bits may differ between libraries.
    """
    how = _how(max_bytes, threads, kernel, names)
    for glance in (True, False):
        rows, host = _against(x, centroids, glance=glance, **how)
        with rows.work:
            c = _begun(rows, host)
            found, lost = _all_distances(rows, c)
            near = rows.near()
        if not (rows.glanced and lost):
            break
    x, found = rows.matrix.source, rows.matrix.give(found)
    if (far := rows.cut).size:
        cut = take(check.centroids(centroids, x, names.centroids), far)
        found = _replaced(found, far, distances(x, cut, **how), axis=1)
    if near.size:
        found = _replaced(found, near, distances(take(x, near), centroids, **how))
    return found


def _all_distances(rows: Rows, c: Array) -> tuple[Array, int]:
    """Return the distances (n, k) that show beside the largest, and of how many rows they mean nothing."""
    if (pairwise := rows.kernel.pairwise) is not None:
        return _written(pairwise, rows, c)
    xp, wide = rows.xp, rows.frame.widen(c)
    centred = rows.frame.centre(wide)
    norms = squared_norms(xp, centred)
    minus_2c = xp.permute_dims(centred * -2.0, (1, 0))

    def tile_distances(tile: slice) -> Array:
        y = rows.frame.centred(tile, narrow=False)
        norm = squared_norms(xp, y)[:, None]
        squared = (y @ minus_2c + norms) + norm
        near = squared < (norm + norms) * 1e-6
        (pairs,) = xp.nonzero(xp.reshape(near, (-1,)))
        if pairs.shape[0]:
            k = int(norms.shape[0])
            found = own_distances(rows.frame, rows.kernel, pairs // k + tile.start, wide, pairs % k)
            flat = put(xp, xp.reshape(squared, (-1,)), pairs, found)
            squared = xp.reshape(flat, squared.shape)
        result = xp.sqrt(xp.where(squared > 0, squared, xp.zeros_like(squared)))
        if rows.frame.exponent:
            result = result * 2.0**rows.frame.exponent
        return xp.astype(result, rows.matrix.state_dtype)

    step = max(1, rows.work.tile // (rows.work.d + 2 * int(c.shape[0])))
    return xp.concat(rows.work.map(tile_distances, rows.work.tiles(step=step))), 0


def _written(pairwise: Callable[..., Any], rows: Rows, c: Array) -> tuple[Array, int]:
    """Return the distances (n, k) that a kernel writes, and of how many rows they mean nothing."""
    n, threads = rows.shape[0], rows.work.threads
    found = rows.xp.empty((n, c.shape[0]), dtype=rows.matrix.state_dtype)
    step = min(rows.work.readable(rows.matrix), -(-n // (4 * threads if threads > 1 else 1)))
    write = pairwise(rows.frame, rows.frame.widen(c), rows.work.room)
    lost = rows.work.map(lambda tile: write(tile, found[tile]), rows.work.tiles(step=step))
    return found, sum(lost)


@eager
def kmeans_plusplus(
    X: Any,
    n_clusters: int,
    *,
    sample_weight: Any = None,
    x_squared_norms: Any = None,
    random_state: int | np.random.RandomState | None = None,
    n_local_trials: int | None = None,
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
) -> tuple[Array, Array]:
    """Return initial centroids by greedy k-means++, and the rows they are.

    Takes and returns what scikit-learn's function of this name does, and takes `threads`.

    Parameters
    ----------
    X : array of shape (n, d)
        Rows to pick from, as for `kmeans`.
    n_clusters : int
        How many to pick, between 1 and n.
    sample_weight : array of shape (n,), optional
        Weight of each row.
    x_squared_norms : array of shape (n,), optional
        Their number is checked; their values are not needed.
    random_state : int, RandomState or None
        Seed, or where draws come from; None draws afresh and ignores ``np.random.seed``.
    n_local_trials : int, optional
        Rows tried for each pick; default ``2 + int(log(n_clusters))``.
    max_bytes : int, optional
        Budget for memory beyond `X`, as for `kmeans`.
    threads : int, optional
        Most threads to work in, as for `kmeans`.
    kernel : str
        ``"auto"`` or the name of a kernel, see `anykmeans.kernels`.

    Returns
    -------
    centers : array of shape (n_clusters, d)
        The rows picked, in the dtype of centroids.
    indices : array of shape (n_clusters,), int64
        Their row numbers.

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If `X` is not a finite matrix with at least `n_clusters` rows.
    ValueError
        If the weights or the squared norms are not one a row, or weights are negative, all zero or not finite.
    ValueError
        If `n_local_trials` or `threads` is less than 1.
    ValueError
        If the named kernel cannot run on `X`, or `max_bytes` is too small for one row.

    References
    ----------
    D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    names = check.ESTIMATORS
    x = check.matrix(X, names.x)
    k = check.clusters(n_clusters, x, names)
    w = check.weights(sample_weight, x, names)
    check.squared_norms(x_squared_norms, x, names)
    if n_local_trials is not None:
        n_local_trials = check.whole(n_local_trials, "n_local_trials", 1)
    draws: Draws
    if random_state is None or isinstance(random_state, int | np.integer):
        draws = np.random.RandomState(random_state)
    else:
        draws = generator(random_state, "random_state")
    max_bytes = check.budget(max_bytes, 64 * (x.shape[1] + k))
    threads = check.threads(threads)
    rows = Rows.over(x, w, kernel=kernel, max_bytes=max_bytes, threads=threads, names=names)
    with rows.work:
        at = rows.matrix.asarray(plus_plus(rows, k, draws, n_local_trials))
    give = rows.matrix.give
    return give(rows.matrix.spread(rows.rows(at))), give(at)
