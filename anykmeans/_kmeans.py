"""The functions: kmeans, assign, kmeans_plusplus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anykmeans import _check as check
from anykmeans._eager import eager
from anykmeans._evaluate import evaluate
from anykmeans._init import Init, generator
from anykmeans._libraries import Array
from anykmeans._plusplus import Draws, plus_plus
from anykmeans._problems import problems
from anykmeans._result import KMeansResult
from anykmeans._runs import cluster
from anykmeans.sources.rows import Rows


@eager
def kmeans(
    x: Any,
    k: int | Sequence[int] | Array,
    *,
    lengths: Any = None,
    sample_weight: Any = None,
    init: Init | Sequence[Array] = "k-means++",
    n_init: int | str = "auto",
    max_iter: int = 300,
    tol: float = 1e-4,
    metric: str = "euclidean",
    rng: Any = None,
    empty: str = "relocate",
    precision: str = "exact",
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
) -> KMeansResult:
    """Return the k-means clustering of the rows of `x`, where `x` lives.

    The same data, weights and seed give the same bits on every library, device, memory budget and
    number of threads. An `x` of three dimensions is a batch of problems, each clustered by itself; a list of matrices is one of any
    sizes, and so are rows end to end with their `lengths`. The bits are those of a loop over ``kmeans(x[i], k, ...)`` with one
    generator for all.

    Parameters
    ----------
    x : array of shape (n, d), (b, n, d) or (N, d), or list of b arrays of shape (n_i, d_i)
        Rows, or b problems of n rows, or of any numbers of rows: a list or a tuple of matrices in one place (a nested tensor, too), or
        rows that lie end to end, see `lengths`. Arrays of any real dtype and strides: NumPy, PyTorch, CuPy, JAX or any
        other Array API library, lists, frames, and SciPy sparse matrices (n, d). Never written to, nor copied whole but by cosine and from
        devices without float64, see the notes. An image (h, w, 3) would be h problems: flatten it with ``image.reshape(-1, 3)``.
    k : int, or list or array of b ints
        Number of clusters, between 1 and n: of every problem, or of each.
    lengths : list or array of b ints, optional
        The numbers of rows, at least 1, of problems that lie end to end in `x` (N, d): they add up to N.
    sample_weight : array of shape (n,), (b, n) or (N,), or list of b arrays of shape (n_i,), optional
        Weight of each row, not negative: an array beside `x`, or a list. A weight of 2 is the row twice, to
        the last bit of the result from given centroids. Weights (n,) are those of every problem of a batch. Beside a list of problems it is a list,
        of which some may be None.
    init : {"k-means++", "k-means||", "random"}, array of shape (k, d) or (b, k, d), list of b arrays of shape (k_i, d_i), or callable
        Initial centroids, or how to draw them. A callable is called as ``init(x, k, rng)``, for each
        problem with its rows (n, d); centroids (k, d) are those of every problem.
    n_init : "auto" or int
        Runs, of which the one of lowest inertia is returned. ``"auto"`` is 10 for ``"random"`` and
        callables, else 1.
    max_iter : int
        Most passes of a run.
    tol : float
        A run stops when the squared moves of all centroids add up to no more than `tol` times the
        mean weighted variance of the features, with `metric` ``"cosine"`` those of rows at length 1.
    metric : {"euclidean", "cosine"}
        ``"cosine"`` is spherical k-means: rows count for their directions alone. They are read at length 1, given
        centroids are brought to it, and so are the means after each pass; all else is Euclidean. See the notes.
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
        Default: 256 MiB on a CPU, or 8 bytes for each number and each row of `x` if that is more; 1 GiB elsewhere, and on a GPU for rows in half precision up to a quarter of the free memory.
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
        If `x` is not a finite matrix with at least `k` rows, or several of such. A problem is named, as
        in ``x[3]`` or ``x[90:120]``, and a value that is not finite is found when the turn comes to its problem.
    ValueError
        If `lengths` do not add up to the rows of `x`, or there is not one `k`, or weights or centroids, for each problem.
    ValueError
        If problems of a list live in different places.
    ValueError
        If weights are negative, all zero, not finite or not one a row.
    ValueError
        If given centroids have the wrong shape or live elsewhere than `x`.
    ValueError
        If a cluster is empty and `empty` is ``"error"``.
    ValueError
        If a row, whatever its weight, or a given centroid has length 0 and `metric` is ``"cosine"``.
    ValueError
        If the named kernel cannot run on `x`.

    Warns
    -----
    ConvergenceWarning
        If fewer than `k` clusters have rows, as when fewer than `k` rows are distinct. Once for
        all problems, with the number of such problems and the first of them.

    Notes
    -----
    Values from 1e-300 to 1e300 are scaled by a power of two and work; an inertia beyond float64 is
    infinite. Side by side rows have limits: differences below 1e-150 of the largest value do not
    show in a distance. Sums of float32, half precision and integers are exact; sums of float64 and of
    weighted rows keep 263 bits below a feature's largest value (at n = 10^6), and what is smaller
    counts as zero.

    With `metric` ``"cosine"`` squared distances are ``2 - 2 cos``, so that a label is that of the largest cosine and the inertia is
    twice the weighted sum of ``1 - cos``. Rows of length 1 are float32 where centroids are, else float64; those that have length 1
    but for such rounding are taken as they are. A copy of all others is made if it fits half of `max_bytes`, or its default on a CPU
    (of sparse rows always, of their values), else 8 bytes a row are kept and rows are read a few at a time. A cluster whose mean is zero keeps its centroid. Whether rows are
    as small as 1e-300 or as large as 1e300 does not matter, even side by side.

    On a GPU problems of a batch share launches, and so do neighbours in one array, a batch or rows end to end, that have as many rows and one `k`.
    All others, and those of a list, are launched one after the other.

    JAX arrays are clustered eagerly, outside of ``jax.jit``, ``jax.vmap`` and ``jax.grad``. While JAX has no dtypes of
    64 bits, which is its default, labels come as int32 and what would be float64 is rounded to float32 at the end.

    Rows on a device without float64 (``mps``, some of ``xpu``, TPUs) are copied to host memory, worked on there, and
    results go back: the same bits, but what would be float64 is rounded to float32 at the end.

    References
    ----------
    S. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory, 1982.

    I. Dhillon and D. Modha, "Concept decompositions for large sparse text data using clustering", Machine Learning, 2001.

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

    Two problems of other sizes, as a list and end to end:

    >>> result = kmeans([x, x[:3]], [2, 1], rng=0)
    >>> [c.shape for c in result.centroids], result.labels[1]
    ([(2, 1), (1, 1)], array([0, 0, 0]))
    >>> rows = np.concatenate([x, x[:3]])
    >>> kmeans(rows, [2, 1], lengths=[4, 3], rng=0).labels.shape
    (7,)

    Directions:

    >>> x = np.asarray([[1.0, 0.0], [5.0, 0.0], [0.0, 0.1], [0.0, 3.0]])
    >>> kmeans(x, 2, metric="cosine", rng=0).centroids
    array([[0., 1.],
           [1., 0.]])
    """
    return cluster(
        x,
        k,
        lengths=lengths,
        sample_weight=sample_weight,
        init=init,
        n_init=n_init,
        max_iter=max_iter,
        tol=tol,
        metric=metric,
        rng=rng,
        empty=empty,
        precision=precision,
        max_bytes=max_bytes,
        threads=threads,
        kernel=kernel,
    )


@eager
def assign(
    x: Any,
    centroids: Any,
    *,
    lengths: Any = None,
    metric: str = "euclidean",
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
) -> tuple[Any, Any]:
    """Return the nearest centroid of each row and the squared distance to it.

    An `x` of three dimensions is a batch of problems, and there may be more of any sizes, as for `kmeans`: the bits are those of a
    loop over ``assign(x[i], ...)``.

    Parameters
    ----------
    x : array of shape (n, d), (b, n, d) or (N, d), or list of b arrays of shape (n_i, d_i)
        Rows, or b problems, as for `kmeans`.
    centroids : array of shape (k, d) or (b, k, d), or list of b arrays of shape (k_i, d_i)
        Centroids beside `x`. Centroids (k, d) are those of every problem.
    lengths : list or array of b ints, optional
        The numbers of rows of problems that lie end to end in `x`, as for `kmeans`.
    metric : {"euclidean", "cosine"}
        As for `kmeans`: ``"cosine"`` reads rows and centroids at length 1.
    max_bytes : int, optional
        Budget for memory beyond `x`, as for `kmeans`.
    threads : int, optional
        Most threads to work in, as for `kmeans`.
    kernel : str
        ``"auto"`` or the name of a kernel, see `anykmeans.kernels`.

    Returns
    -------
    labels : array of shape (n,), (b, n) or (N,), or list of b arrays of shape (n_i,), int64
        Certified: float64 differences find no nearer centroid. Ties go to the lowest label.
    squared_distances : array of shape (n,), (b, n) or (N,), or list of b arrays of shape (n_i,), float64
        In squared units of `x`, with `metric` ``"cosine"`` ``2 - 2 cos``; the same bits from every library (rounded to
        float32 on a device without float64).

    Raises
    ------
    TypeError
        If an argument is of the wrong type.
    ValueError
        If `threads` is less than 1.
    ValueError
        If `x` or `centroids` is not a finite matrix or several of such, their features differ in number,
        or they live in different places.
    ValueError
        If `lengths` do not add up to the rows of `x`, or there are not `centroids` for each problem.
    ValueError
        If a row or a centroid has length 0 and `metric` is ``"cosine"``.
    ValueError
        If the named kernel cannot run on `x`, or `max_bytes` is too small for one row.

    Examples
    --------
    >>> import numpy as np
    >>> from anykmeans import assign
    >>> x = np.asarray([[0.0], [4.0], [9.0]])
    >>> assign(x, np.asarray([[1.0], [9.0]]))
    (array([0, 0, 1]), array([1., 9., 0.]))
    """
    check.word(metric, "metric", check.METRICS)
    how: dict[str, Any] = {"metric": metric, "max_bytes": max_bytes, "threads": threads}
    told = problems(x, check.FUNCTIONS, lengths)
    if told.alone:
        labels, distances, _ = evaluate(told.rows(0), centroids, kernel=kernel, **how)
        return labels, distances
    told.compare(centroids)
    found = [
        evaluate(told.rows(i), told.first(i), kernel=own.name, names=told.named(i), **how)[:2]
        for i, own in enumerate(told.kernels(kernel, metric))  # chosen once, as in `kmeans`
    ]
    labels, distances = (told.joined(list(each)) for each in zip(*found, strict=True))
    return labels, distances


@eager
def kmeans_plusplus(
    X: Any,
    n_clusters: int,
    *,
    sample_weight: Any = None,
    x_squared_norms: Any = None,
    random_state: int | np.random.RandomState | None = None,
    n_local_trials: int | None = None,
    metric: str = "euclidean",
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
) -> tuple[Array, Array]:
    """Return initial centroids by greedy k-means++, and the rows they are.

    Takes and returns what scikit-learn's function of this name does, and takes `metric` and `threads`.

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
    metric : {"euclidean", "cosine"}
        As for `kmeans`: ``"cosine"`` measures rows at length 1, and returns such centers.
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
        If a row has length 0 and `metric` is ``"cosine"``.
    ValueError
        If the named kernel cannot run on `X`, or `max_bytes` is too small for one row.

    References
    ----------
    D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.

    Examples
    --------
    >>> import numpy as np
    >>> from anykmeans import kmeans_plusplus
    >>> x = np.asarray([[0.0], [0.0], [9.0], [9.0]])
    >>> centers, indices = kmeans_plusplus(x, 2, random_state=0)
    >>> centers[:, 0], indices
    (array([9., 0.]), array([2, 1]))
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
    check.word(metric, "metric", check.METRICS)
    how: dict[str, Any] = {"max_bytes": max_bytes, "threads": threads, "names": names}
    how["metric"] = metric
    rows = Rows.over(x, w, kernel=kernel, look=False, **how)
    with rows.work:
        # Rows are measured to all picks but the last, which tells what a glance does not; one pick alone tells nothing.
        if w is None and k > 1 and rows.matrix.direct:
            rows.glance()
        else:
            rows.look()
        at = rows.matrix.asarray(plus_plus(rows, k, draws, n_local_trials))
    give = rows.matrix.give
    return give(rows.matrix.spread(rows.rows(at))), give(at)
