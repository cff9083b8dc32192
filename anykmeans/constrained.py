"""k-means whose clusters have sizes within bounds: Lloyd's loop, with rows assigned by an exact minimum-cost flow.

Where the nearest centroids make clusters of allowed sizes they are the answer, and all is as in `kmeans`. Else the
squared distances of all rows to all centroids are the costs of a flow, see `_transport.py`.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state

from anykmeans import _check as check
from anykmeans._eager import eager
from anykmeans._fork import first_call
from anykmeans._init import Init, generator, given, starts
from anykmeans._libraries import Array, is_array, to_numpy
from anykmeans._lloyd import Descent, lloyd
from anykmeans._result import KMeansResult
from anykmeans._runs import _runs
from anykmeans._stats import ClusterStats
from anykmeans._transport import transport
from anykmeans.estimators.base import _BaseKMeans, _whole
from anykmeans.sources.descent import InMemory
from anykmeans.sources.rows import Rows

__all__ = ["KMeansConstrained", "constrained_kmeans"]

_PAIR = 128  # bytes of a flow for each row and cluster: the cost, and OR-tools' arcs both ways


@eager
def constrained_kmeans(
    x: Any,
    k: int,
    size_min: Any = None,
    size_max: Any = None,
    *,
    sample_weight: Any = None,
    init: Init = "k-means++",
    n_init: int | str = "auto",
    max_iter: int = 300,
    tol: float = 1e-4,
    metric: str = "euclidean",
    rng: Any = None,
    max_bytes: int | None = None,
    threads: int | None = None,
    kernel: str = "auto",
) -> KMeansResult:
    """Return the k-means clustering of the rows of `x` in which every cluster has `size_min` to `size_max` rows.

    In each pass rows are assigned to centroids so that the sizes are allowed and the sum of squared distances is the
    least that this allows; then centroids become means. The same data, weights and seed give the same bits on every
    library, device and number of threads, as with `kmeans`. It needs OR-tools: ``pip install "anykmeans[constrained]"``.

    Parameters
    ----------
    x : array of shape (n, d)
        Rows, as for `kmeans`, SciPy sparse matrices among them; no batch.
    k : int
        Number of clusters, between 1 and n.
    size_min : int or sequence of k ints, optional
        Rows that each cluster has at least, one number for all clusters or one for each; default 0.
    size_max : int or sequence of k ints, optional
        Rows that each cluster has at most, likewise; default n.
    sample_weight : array of shape (n,), optional
        Weight of each row in costs and means. Sizes count rows, whatever they weigh.
    init : {"k-means++", "k-means||", "random"}, array of shape (k, d), or callable
        Initial centroids, or how to draw them, as for `kmeans`: sizes do not matter there. Bounds of
        their own for each cluster go by the order of the centroids.
    n_init : "auto" or int
        Runs, of which the one of lowest inertia is returned, as for `kmeans`.
    max_iter : int
        Most passes of a run.
    tol : float
        When to stop, as for `kmeans`.
    metric : {"euclidean", "cosine"}
        As for `kmeans`: ``"cosine"`` reads rows and centroids at length 1, and costs are ``2 - 2 cos``.
    rng : None, int, SeedSequence, BitGenerator, Generator or RandomState
        Where draws come from, as for `kmeans`.
    max_bytes : int, optional
        Budget for memory beyond `x`. A flow takes 128 bytes for each row and cluster, and a call that needs one
        and has not as much is refused. By default it takes what it needs.
    threads : int, optional
        Most threads to work in, as for `kmeans`; OR-tools has one.
    kernel : str
        ``"auto"`` or the name of a kernel, see `anykmeans.kernels`.

    Returns
    -------
    KMeansResult
        Centroids, labels, inertia, and how it went. The labels are the cheapest that the sizes allow for the
        centroids returned. `assign` has those of the nearest centroids, whatever the sizes.

    Raises
    ------
    ImportError
        If OR-tools is not installed.
    TypeError
        If an argument is of the wrong type, or a size is not a whole number.
    ValueError
        If `x` is not a finite matrix with at least `k` rows.
    ValueError
        If a size is negative, `size_min` is above `size_max`, there are not `k` of them, or no clustering of n rows has such sizes.
    ValueError
        If weights are negative, all zero, not finite or not one a row.
    ValueError
        If given centroids have the wrong shape or live elsewhere than `x`.
    ValueError
        If a row or a given centroid has length 0 and `metric` is ``"cosine"``.
    ValueError
        If the named kernel cannot run on `x`, or `max_bytes` is too small.

    Warns
    -----
    ConvergenceWarning
        If a cluster has no rows, which a `size_min` of 0 allows. Its centroid stays where it was last.

    Notes
    -----
    Costs are squared distances in float64, the ones that `assign` returns, times the weights. OR-tools solves the flow for costs of 40
    bits. Its answer is then proven, and where need be mended, for the costs themselves, whose sums are compared exactly, as whole
    numbers. Of equally cheap labels the first in lexicographic order is taken, so neither OR-tools nor its version shows in a bit.

    Where the nearest centroids make allowed sizes they are taken, as `assign` finds them: so sizes that never bind give
    the bits of ``kmeans(..., empty="keep")``.

    Memory and time of a pass grow with n k: docs/constrained.md has figures.

    References
    ----------
    P. S. Bradley, K. P. Bennett and A. Demiriz, "Constrained k-means clustering", Microsoft Research
    MSR-TR-2000-65, 2000.

    Examples
    --------
    >>> import numpy as np
    >>> from anykmeans.constrained import constrained_kmeans
    >>> x = np.asarray([[0.0], [1.0], [2.0], [3.0], [20.0]])
    >>> centroids, labels, *_ = constrained_kmeans(x, 2, size_min=2, rng=0)
    >>> labels
    array([0, 0, 0, 1, 1])
    >>> centroids[:, 0]
    array([ 1. , 11.5])
    """
    return _cluster(
        x,
        k,
        (size_min, size_max),
        sample_weight=sample_weight,
        init=init,
        n_init=n_init,
        max_iter=max_iter,
        tol=tol,
        metric=metric,
        rng=rng,
        max_bytes=max_bytes,
        threads=threads,
        kernel=kernel,
    )


def _cluster(
    x: Any,
    k: int,
    bounds: tuple[Any, Any],
    *,
    sample_weight: Any,
    init: Init,
    n_init: int | str,
    max_iter: int,
    tol: float,
    metric: str,
    rng: Any,
    max_bytes: int | None,
    threads: int | None,
    kernel: str,
    names: check.Names = check.FUNCTIONS,
) -> KMeansResult:
    """Return what `constrained_kmeans` does, which see, with the caller's names in errors."""
    x = check.matrix(x, names.x)
    k = check.clusters(k, x, names)
    sizes = _sizes(*bounds, k, x.shape[0], names)
    sample_weight = check.weights(sample_weight, x, names)
    max_iter = check.whole(max_iter, "max_iter", 1)
    tol = check.tolerance(tol)
    check.word(metric, "metric", check.METRICS)
    max_bytes = check.budget(max_bytes, 64 * (x.shape[1] + k))
    threads = check.threads(threads)
    draws = generator(rng)
    init = check.start(init, x, k, names)
    runs = _runs(n_init, init)
    if importlib.util.find_spec("ortools") is None:
        raise ImportError(
            "Bounds on cluster sizes need OR-tools, which is not installed: "
            'pip install "anykmeans[constrained]", or pip install ortools.'
        )
    rows = Rows.over(
        x,
        sample_weight,
        kernel=kernel,
        max_bytes=max_bytes,
        threads=threads,
        metric=metric,
        names=names,
        given=given(init, x),
    )
    with rows.work:
        (begins,) = starts([rows], k, [init], runs, draws)
        ends = [_ended(Sized(rows, c, *sizes), max_iter, tol) for c in begins]
    inertia, c, labels, n_iter, converged = min(ends, key=lambda end: end[0])
    _warn_if_few(labels, k, names)
    give, xp = rows.matrix.give, rows.xp
    return KMeansResult(
        give(rows.matrix.spread(c)),
        give(xp.astype(labels, xp.int64)),
        inertia,
        n_iter,
        converged,
        "+".join(rows.ran),
        "exact",
    )


def _ended(run: Sized, max_iter: int, tol: float) -> tuple[float, Array, Array, int, bool]:
    """Return inertia, centroids, labels, passes and whether it stopped, of a run from its centroids (k, d)."""
    stop = tol * run.variance if tol else 0.0
    c, n_iter, converged = lloyd(run, run.c, max_iter=max_iter, tol=stop, empty="keep")
    found = run.label(c)
    return found.inertia, run.restored(c), found.labels, n_iter, converged


class Sized(InMemory):
    """A run over rows in memory whose clusters have from `least` to `most` (k,) rows."""

    def __init__(self, rows: Rows, c: Array, least: np.ndarray, most: np.ndarray) -> None:
        super().__init__(rows, c)
        self._least, self._most = least, most
        self._labels: Array = None
        self._prices: np.ndarray | None = None  # of the last flow, as the next is like it

    def steps(self, c: Array, most: int, tol: float, empty: str) -> tuple[Array, int, float]:
        """Return the centroids after the next pass: searches that make several know no sizes."""
        if self.rows.renewed():
            self.kernel = self.rows.kernel
            self._begin(self.frame, c)
        return Descent.steps(self, c, most, tol, empty)

    def sweep(self, c: Array) -> ClusterStats:
        """Return the stats of all rows, each with its centroid of `c` (k, d)."""
        return self.rows.stats(self.labels(c), len(self._least))

    def labels(self, c: Array) -> Array:
        """Return the cheapest labels (n,) of allowed sizes for the centroids `c`: those of the nearest if they can be."""
        labels = super().labels(c)
        sizes = np.bincount(to_numpy(labels), minlength=len(self._least))
        if not ((self._least <= sizes) & (sizes <= self._most)).all():
            costs = self._costs(c, labels.dtype)
            found, self._prices = transport(costs, self._least, self._most, self._prices)
            del costs
            labels = self.rows.matrix.asarray(found, labels.dtype)
        self._labels = labels
        return labels

    def distances(self, c: Array) -> Array:
        """Return the squared distances (n,), in the frame, to the labels' centroids of `c`."""
        return self.kernel.distances(self.rows, self.frame, self.frame.widen(c), self._labels)

    def _costs(self, c: Array, dtype: Any) -> np.ndarray:
        """Return the weighted squared distances (k, n) of all rows to the centroids `c` (k, d), in NumPy."""
        rows, (n, k) = self.rows, (self.rows.shape[0], len(self._least))
        if rows.work.bounded and _PAIR * n * k > rows.work.max_bytes:
            raise ValueError(
                f"`max_bytes` must hold a flow of {n} rows to {k} clusters, {_PAIR * n * k} bytes; got "
                f"max_bytes={rows.work.max_bytes}. Give it as much, or cluster fewer rows."
            )
        wide, every = self.frame.widen(c), rows.matrix.asarray(np.zeros(n), dtype)
        w = rows.relative_weight(rows.every)
        costs = np.empty((k, n))
        for j in range(k):
            own = self.kernel.distances(rows, self.frame, wide[j : j + 1, :], every)
            costs[j] = to_numpy(own if w is None else own * w)
        return costs


def _sizes(
    size_min: Any, size_max: Any, k: int, n: int, names: check.Names
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the largest sizes (k,) of clusters, such that n rows can have them."""
    least, most = _bound(size_min, "size_min", k, 0), _bound(size_max, "size_max", k, n)
    for j, (low, high) in enumerate(zip(least, most, strict=True)):
        if low > high:
            raise ValueError(
                f"`size_min` must not be above `size_max`; got size_min={low} and size_max={high} for cluster {j}."
            )
    if sum(least) > n:
        raise ValueError(
            f"`size_min` must leave enough rows for all {names.k}={k} clusters, together at most the {n} rows of "
            f"{names.x}; got sizes of at least {sum(least)} together. Lower it, or have fewer clusters."
        )
    if sum(most) < n:
        raise ValueError(
            f"`size_max` must have room for all {n} rows of {names.x} in {names.k}={k} clusters; got sizes of at most "
            f"{sum(most)} together. Raise it, or have more clusters."
        )
    return np.asarray(least, np.int64), np.asarray([min(each, n) for each in most], np.int64)


def _bound(value: Any, name: str, k: int, default: int) -> list[int]:
    """Return sizes, one for each of `k` clusters."""
    if value is None:
        return [default] * k
    if is_array(value) and not isinstance(value, np.generic):
        value = to_numpy(value).tolist()
    if not hasattr(value, "__len__") or isinstance(value, str):
        return [check.whole(value, name, 0)] * k
    if len(value) != k:
        raise ValueError(
            f"`{name}` must be one number, or one for each of {k} clusters; got {len(value)} numbers."
        )
    return [check.whole(each, f"{name}[{j}]", 0) for j, each in enumerate(value)]


def _warn_if_few(labels: Array, k: int, names: check.Names) -> None:
    """Warn if labels (n,) leave some of `k` clusters out."""
    used = np.unique(to_numpy(labels)).size
    if used < k:
        with first_call:
            from sklearn.exceptions import ConvergenceWarning

        check.warn(
            f"Number of distinct clusters ({used}) found smaller than {names.k} ({k}). Their centroids stay where they "
            "were last. With a `size_min` of at least 1 no cluster is empty.",
            ConvergenceWarning,
        )


class KMeansConstrained(_BaseKMeans):
    """k-means whose clusters have sizes within bounds, with scikit-learn's interface.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.
    size_min : int or sequence of n_clusters ints, optional
        Rows that each cluster of the fit has at least.
    size_max : int or sequence of n_clusters ints, optional
        Rows that each cluster of the fit has at most.
    init : {"k-means++", "random", "k-means||"}, callable or array-like, default="k-means++"
        How the first centroids are chosen, as in `anykmeans.KMeans`.
    n_init : int or "auto", default="auto"
        Number of starts, of which the one with the lowest inertia is kept.
    max_iter : int, default=300
        Largest number of iterations of one start.
    tol : float, default=1e-4
        When to stop, as in `anykmeans.KMeans`.
    metric : {"euclidean", "cosine"}, default="euclidean"
        What distances are, as in `anykmeans.KMeans`.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws.
    max_bytes : int, optional
        Memory to use beyond the data, in bytes, see `constrained_kmeans`.
    threads : int, optional
        Most threads to work in.
    kernel : str, default="auto"
        Which kernel does the work.

    Attributes
    ----------
    cluster_centers_ : array, shape (n_clusters, n_features)
        Centroids, float64, or float32 if the data are float32 or narrower.
    labels_ : int64 array, shape (n_samples,)
        Label of each row of the fit, the cheapest that the sizes allow.
    inertia_ : float
        Weighted sum of squared distances of the rows to the centroids of their labels.
    n_iter_ : int
        Number of iterations.
    converged_ : bool
        Whether it stopped before `max_iter`.
    kernel_ : str
        The kernel that did the work.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features_in_,)
        Names of the features, if `X` had any.

    See Also
    --------
    constrained_kmeans : The same as a function.

    Notes
    -----
    The sizes are those of the clusters of the fit: `labels_` and `fit_predict` have them. `predict` takes any number of rows and
    gives each the label of its nearest centroid, so its sizes are free, also for the rows of the fit.

    References
    ----------
    .. [1] P. S. Bradley, K. P. Bennett and A. Demiriz, "Constrained k-means clustering", Microsoft
       Research MSR-TR-2000-65, 2000.

    Examples
    --------
    >>> from anykmeans.constrained import KMeansConstrained
    >>> X = [[0.0], [1.0], [2.0], [3.0], [20.0]]
    >>> KMeansConstrained(2, size_min=2, random_state=0).fit_predict(X)
    array([0, 0, 0, 1, 1])
    """

    def __init__(
        self,
        n_clusters: int = 8,
        size_min: Any = None,
        size_max: Any = None,
        *,
        init: Any = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        metric: str = "euclidean",
        random_state: Any = None,
        max_bytes: int | None = None,
        threads: int | None = None,
        kernel: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.size_min = size_min
        self.size_max = size_max
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.metric = metric
        self.random_state = random_state
        self.max_bytes = max_bytes
        self.threads = threads
        self.kernel = kernel

    @eager
    @_whole
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Estimator fitted to the rows.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features)
            Rows to cluster, as for `anykmeans.KMeans`.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the rows in costs and means; sizes count rows.

        Returns
        -------
        self : KMeansConstrained
            This estimator.

        Raises
        ------
        ImportError
            If OR-tools is not installed.
        ValueError
            As `anykmeans.KMeans`, or if the sizes are impossible, or `max_bytes` does not hold a flow.
        TypeError
            If a parameter or the data has a type that cannot be used.

        Warns
        -----
        ConvergenceWarning
            If a cluster has no rows, which a `size_min` of 0 allows.
        RuntimeWarning
            If `init` is an array and `n_init` asks for more than one start.

        Examples
        --------
        >>> from anykmeans.constrained import KMeansConstrained
        >>> km = KMeansConstrained(2, size_max=2, random_state=0).fit([[0.0], [1.0], [2.0], [9.0]])
        >>> km.labels_
        array([0, 0, 1, 1])
        """
        x = self._rows(X, "fit", reset=True)
        check.clusters(self.n_clusters, x, check.ESTIMATORS)
        init, n_init = self._starting(x)
        result = _cluster(
            x,
            self.n_clusters,
            (self.size_min, self.size_max),
            sample_weight=self._weights(sample_weight, x),
            init=init,
            n_init=n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            rng=self._drawing(check_random_state(self.random_state)),
            **self._how,
        )
        self.cluster_centers_ = result.centroids
        self.labels_ = result.labels
        self.inertia_ = result.inertia
        self.n_iter_ = result.n_iter
        self.converged_ = result.converged
        self.kernel_ = result.kernel
        return self
