"""KMeans: the estimator over Lloyd's loop."""

import functools
from collections.abc import Callable
from typing import Any, Self

from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from anykmeans import _check
from anykmeans._batches import each_of, gathered, gives_batches, refuse_weights
from anykmeans._eager import eager
from anykmeans._libraries import (
    Array,
)
from anykmeans._lloyd import Progress
from anykmeans._runs import cluster
from anykmeans.estimators.base import _BaseKMeans, _whole


class KMeans(_BaseKMeans):
    """Exact k-means on arrays of any library, with scikit-learn's interface.

    With the same `random_state` it starts from the same centroids as `sklearn.cluster.KMeans`. From
    there labels are certified and sums exact, so the result is the same to the last bit on NumPy,
    PyTorch and CuPy, for any number of threads and any `max_bytes`.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.
    init : {"k-means++", "random", "k-means||"}, callable or array-like, default="k-means++"
        How the first centroids are chosen: by greedy k-means++ with ``2 + int(log k)`` trials, as rows
        drawn without replacement, by k-means||, as given, shape (n_clusters, n_features), or by
        ``init(X, n_clusters, random_state=...)``, which gets the rows as they are.
    n_init : int or "auto", default="auto"
        Number of starts, of which the one with the lowest inertia is kept. "auto" is 10 for "random"
        or a callable, else 1.
    max_iter : int, default=300
        Largest number of iterations of one start.
    tol : float, default=1e-4
        Stop when the squared shift of the centroids, summed, is at most `tol` times the mean weighted variance
        of the features.
    verbose : int, default=0
        If not 0, print scikit-learn's lines about starts and iterations; each costs a pass over the rows.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws, which are made on the host, with NumPy, in scikit-learn's order. None draws from
        NumPy's global state, which ``np.random.seed`` sets and `anykmeans.kmeans` ignores.
    copy_x : bool, default=True
        Accepted for compatibility; has no effect. `X` is never written to.
    algorithm : {"lloyd", "elkan"}, default="lloyd"
        Accepted for compatibility; has no effect. The result is always that of Lloyd's algorithm;
        bounds that skip work are used where they pay.
    metric : {"euclidean", "cosine"}, default="euclidean"
        "cosine" is spherical k-means: rows count for their directions alone, and centroids have length 1. Squared
        distances are ``2 - 2 cos``, so that `inertia_` is twice the weighted sum of ``1 - cos``, which is what `transform`
        returns. A row of length 0 is an error.
    empty : {"relocate", "keep", "error"}, default="relocate"
        What becomes of a cluster without rows: it moves to the row farthest from its centroid, stays,
        or raises.
    precision : {"exact", "fast"}, default="exact"
        "fast" gives up the certificate of the labels, and with it the promise of equal bits.
    max_bytes : int, optional
        Memory to use beyond the data, in bytes.
    threads : int, optional
        Most threads to work in, in every method, see `anykmeans.kmeans`; never changes a bit.
    kernel : str, default="auto"
        Which kernel does the work; one that is named and cannot run raises with its reason.

    Attributes
    ----------
    cluster_centers_ : array, shape (n_clusters, n_features)
        Centroids, float64, or float32 if the data are float32 or narrower.
    labels_ : int64 array, shape (n_samples,)
        Label of each row of the fit, that of the nearest of `cluster_centers_`.
    inertia_ : float
        Weighted sum of squared distances of the rows to their centroids.
    n_iter_ : int
        Number of iterations.
    converged_ : bool
        Whether it stopped before `max_iter`.
    kernel_ : str
        The kernel that did the work, or kernels, one after the other: ``"cpu+numba"``; see `anykmeans.KMeansResult`.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features_in_,)
        Names of the features, if `X` had any.

    See Also
    --------
    MiniBatchKMeans : Learns from random batches, or from a stream.
    anykmeans.kmeans : The same as a function.

    Notes
    -----
    Arrays of the attributes and of the outputs are in the library and on the device of `X`. Sparse
    matrices and frames are SciPy's, pandas' and polars'; their attributes are NumPy arrays.

    Where the clustering is not scikit-learn's, there are two reasons. Rows equally far from two
    centroids, common in whole numbers, go to the lowest label here and by rounding errors there. And
    scikit-learn draws the first centroids of float32 data from float32 sums, whose errors lead to
    other rows; here the draws are those of float64.

    References
    ----------
    .. [1] S. P. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory
       28(2), 1982.
    .. [2] D. Arthur and S. Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    .. [3] B. Bahmani et al., "Scalable k-means++", PVLDB 5(7), 2012.
    .. [4] I. S. Dhillon and D. S. Modha, "Concept decompositions for large sparse text data using clustering",
       Machine Learning 42, 2001.

    Examples
    --------
    >>> import numpy as np
    >>> from anykmeans import KMeans
    >>> X = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 0.0], [10.0, 2.0], [10.0, 4.0], [10.0, 0.0]])
    >>> km = KMeans(n_clusters=2, random_state=0).fit(X)
    >>> km.cluster_centers_
    array([[10.,  2.],
           [ 1.,  2.]])
    >>> km.predict([[0.0, 0.0], [12.0, 3.0]])
    array([1, 0])

    By cosine, lengths do not count:

    >>> km = KMeans(n_clusters=2, metric="cosine", random_state=0).fit([[1, 0], [9, 0], [0, 2]])
    >>> km.predict([[0.1, 0.0], [0.0, 50.0]]), km.transform([[0.0, 50.0]])
    (array([0, 1]), array([[1., 0.]]))
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        metric: str = "euclidean",
        empty: str = "relocate",
        precision: str = "exact",
        max_bytes: int | None = None,
        threads: int | None = None,
        kernel: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.metric = metric
        self.empty = empty
        self.precision = precision
        self.max_bytes = max_bytes
        self.threads = threads
        self.kernel = kernel

    @eager
    @_whole
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Estimator fitted to the rows.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features), or iterable of such
            Rows to cluster: an array of any library, a list, a pandas or polars frame, or a SciPy
            sparse matrix (one that is not CSR is converted). Never written to. A `DataLoader`, or another iterable that
            gives rows batch by batch, is gathered in memory first, in the order it has: the bits are those of its
            batches in one array. See `MiniBatchKMeans` for more rows than memory holds.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the rows, not negative; all equal by default. Moved to where `X` is.

        Returns
        -------
        self : KMeans
            This estimator.

        Raises
        ------
        ValueError
            If `X` is empty, has the wrong rank, fewer rows than `n_clusters`, or holds NaN or
            infinity; if the weights are negative, all zero, not finite or wrongly shaped; if a
            parameter has an impossible value; if `init` is in another library than `X`; if a row, whatever its
            weight, or a centroid of `init` has length 0 and `metric` is "cosine".
        ValueError
            If `X` gives no batches, or batches that are dictionaries or differ, or if there are weights beside batches.
        TypeError
            If a parameter or the data has a type that cannot be used.

        Warns
        -----
        ConvergenceWarning
            If there are fewer distinct rows than `n_clusters`.
        RuntimeWarning
            If `init` is an array and `n_init` asks for more than one start, or if `algorithm` is "elkan" and
            there is one cluster.

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> km = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]], sample_weight=[1, 3, 1, 1])
        >>> km.cluster_centers_, km.inertia_
        (array([[0.75],
               [9.5 ]]), 1.25)
        """
        _check.word(self.algorithm, "algorithm", ("lloyd", "elkan"))
        if gives_batches(X):
            refuse_weights(sample_weight)
            X = gathered(each_of(X, "X"), "X")
        x = self._rows(X, "fit", reset=True)
        _check.clusters(self.n_clusters, x, _check.ESTIMATORS)
        if self.algorithm == "elkan" and self.n_clusters == 1:
            _check.warn(
                "algorithm='elkan' doesn't make sense for a single cluster. Using 'lloyd' instead.",
                RuntimeWarning,
            )
        init, n_init = self._starting(x)
        w = self._weights(sample_weight, x)
        result = cluster(
            x,
            self.n_clusters,
            sample_weight=w,
            init=init,
            n_init=n_init,
            max_iter=self.max_iter,
            tol=self.tol,
            rng=self._drawing(check_random_state(self.random_state)),
            empty=self.empty,
            precision=self.precision,
            watch=_Printing(functools.partial(self._inertia, x, w)) if self.verbose else None,
            **self._how,
        )
        self.cluster_centers_ = result.centroids
        self.labels_ = result.labels
        self.inertia_ = result.inertia
        self.n_iter_ = result.n_iter
        self.converged_ = result.converged
        self.kernel_ = result.kernel
        return self

    def _inertia(self, x: Array, w: Array | None, centers: Array) -> float:
        """Return the inertia of rows for some centroids, which may be in NumPy."""
        return self._evaluate(x, centers, w)[2]

    @eager
    def as_sklearn(self) -> Any:
        """Fitted `sklearn.cluster.KMeans` with the same centroids, in NumPy.

        Returns
        -------
        estimator : sklearn.cluster.KMeans
            Ready to predict. ``init="k-means||"``, which scikit-learn lacks, becomes "k-means++".

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If `metric` is "cosine", which scikit-learn does not have.

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> km = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> km.as_sklearn().predict([[-3.0], [6.0]])
        array([1, 0], dtype=int32)
        """
        from sklearn.cluster import KMeans as Peer

        check_is_fitted(self)
        return self._filled(Peer())


class _Printing:
    """Prints scikit-learn's lines about runs."""

    every = 1

    def __init__(self, inertia: Callable[[Array], float]) -> None:
        self._inertia = inertia
        self._before: Array = None  # the centroids that the next pass begins with

    def __call__(self, at: Progress) -> None:
        if at.n_iter == 0:
            print("Initialization complete")
        else:
            number = at.n_iter - 1
            print(f"Iteration {number}, inertia {self._inertia(self._before)}.")
            if at.move == 0 and number > 0:  # labels have repeated
                print(f"Converged at iteration {number}: strict convergence.")
            elif at.move <= at.tol:
                shift = f"center shift {at.move} within tolerance {at.tol}"
                print(f"Converged at iteration {number}: {shift}.")
        self._before = at.centroids
