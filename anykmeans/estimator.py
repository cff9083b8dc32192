"""KMeans and MiniBatchKMeans: scikit-learn estimators over the functions of the core.

They take whatever scikit-learn's own take, and arrays of any library besides: what goes in on a GPU
comes out on it. What is computed is the core's business; here are the names, the checks and the
manners that scikit-learn expects, and the mini-batch algorithm.
"""

import copy
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, Self, TypeVar

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
    clone,
)
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from anykmeans import _check
from anykmeans._array import (
    Array,
    as_array,
    device_of,
    eager,
    is_array,
    is_sparse,
    library_of,
    like,
    move,
    placed,
    same_place,
    take,
    to_numpy,
    where_is,
    without_history,
)
from anykmeans._exact import halving_sum, power_of_two
from anykmeans._init import given, start
from anykmeans._kmeans import Watch, cluster, distances, evaluate, evaluated, nearest
from anykmeans._rows import Rows
from anykmeans._search import moves
from anykmeans._stats import means

__all__ = ["KMeans", "MiniBatchKMeans"]

T = TypeVar("T")


def _is_plain(x: Any) -> bool:
    """Return whether `x` is a NumPy array or CSR matrix that scikit-learn's `check_array` would return as it is."""
    plain = type(x) is np.ndarray or (is_sparse(x) and x.format == "csr")
    return plain and len(x.shape) == 2 and x.dtype.kind in "fiub" and 0 not in x.shape


def _drawn(w: Array | None, n: int, size: int, rng: np.random.RandomState) -> np.ndarray:
    """Return the numbers (size,) of rows drawn with replacement from those of n that have weight."""
    if w is None:
        return rng.randint(0, n, size)
    heavy = np.flatnonzero(to_numpy(w))
    return heavy[rng.randint(0, heavy.size, size)]


def _sums(rows: Rows, labels: Array, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact weighted sums (k, columns) and weights (k,) of the rows by label, float64 in NumPy."""
    sums, mass = map(to_numpy, rows.sums(labels, k))
    unit = 2.0**rows.heaviest
    return (sums, mass) if unit == 1.0 else (sums * unit, mass * unit)


def _squared_shift(rows: Rows, before: np.ndarray, after: np.ndarray) -> float:
    """Return the sum of the squared differences of two sets of centroids (k, columns), in the order of a distance."""
    a, b = (rows.matrix.asarray(c.astype(np.float64)) for c in (after, before))
    return float(halving_sum(np, to_numpy(moves(rows.kernel, rows.matrix, a, b))[None, :])[0])


def _whole(fit: Callable[..., T]) -> Callable[..., T]:
    """Return `fit` as one that leaves the model as it was unless it comes to its end."""

    @functools.wraps(fit)
    def fitted(self: Any, *args: Any, **kwargs: Any) -> T:
        before = dict(vars(self))
        self._states = {}
        try:
            result = fit(self, *args, **kwargs)
            del self._states
        except BaseException:
            for rng, state in self._states.values():
                rng.set_state(state)
            vars(self).clear()
            vars(self).update(before)
            raise
        return result

    return fitted


class _BaseKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """What `KMeans` and `MiniBatchKMeans` share: all but how to fit."""

    # The fitted attributes that live where X does.
    _arrays: tuple[str, ...] = ("cluster_centers_", "labels_")
    _states: dict[int, tuple[np.random.RandomState, dict[str, Any]]]  # during a fit
    _random_starts = 10  # what n_init="auto" means where starts differ much

    @property
    def _how(self) -> dict[str, Any]:
        """What every computation is told: its kernel, memory and threads, and how to speak of the data."""
        return {
            "kernel": self.kernel,
            "max_bytes": self.max_bytes,
            "threads": self.threads,
            "names": _check.ESTIMATORS,
        }

    @property
    def _n_features_out(self) -> int:
        """Number of the columns that `transform` returns, for scikit-learn."""
        return int(self._centers.shape[0])

    @property
    def _centers(self) -> Array:
        """The centroids (k, d) as an array, also if somebody has set them by hand."""
        return as_array(self.cluster_centers_, "cluster_centers_")

    def _rows(self, X: Any, method: str, *, reset: bool = False) -> Array:
        """Return the rows (n, d) of `X`, not copied if it is an array, after every check but one.

        Whether all values are finite is left to the core, which looks at each of them anyway.
        """
        x = X if _is_plain(X) else as_array(X, "X")
        framed, column = hasattr(X, "columns"), hasattr(X, "to_frame")
        expected = None if reset else getattr(self, "n_features_in_", None)
        if (is_sparse(x) or isinstance(x, np.ndarray)) and not (_is_plain(x) or column):
            # What is unusual, such as numbers that are objects, scikit-learn takes or refuses.
            x = validate_data(
                self, X if framed else x, reset=reset, accept_sparse="csr", ensure_all_finite=False
            )
            x = _check.matrix(x, "X")
        else:
            x = _check.matrix(X if column else x, "X")
            # scikit-learn looks at names and numbers of features alone here, and takes its time.
            named = expected is not None and (framed or hasattr(self, "feature_names_in_"))
            if reset or named or x.shape[1] != (expected or x.shape[1]):
                validate_data(self, X if framed else x, reset=reset, skip_check_array=True)
        if method == "fit" or not self.__sklearn_is_fitted__():
            return x
        centers = self._centers
        if expected is None and len(centers.shape) == 2 and x.shape[1] != centers.shape[1]:
            raise ValueError(
                f"X has {x.shape[1]} features, but {type(self).__name__} is expecting {centers.shape[1]} features "
                "as input."
            )
        if not same_place(x, centers):
            library, device = library_of(x), device_of(x)
            where = {
                "numpy": "",
                "torch": f', device="{device}"',
                "cupy": f", device={getattr(device, 'id', None)}",
            }.get(library, ", device=X.device")
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace "
                "and the same device as those passed to fit(). The fit had arrays of "
                f"{where_is(centers)}, `X` is of {where_is(x)}. Move the estimator:\n"
                f'    km = km.to("{library}"{where})'
            )
        return x

    def _weights(self, sample_weight: Any, x: Array) -> Array | None:
        """Return checked weights (n,) where `x` is: scikit-learn has everything follow `X`."""
        return _check.weights(sample_weight, x, _check.ESTIMATORS, follow=True)

    def _starting(self, x: Array) -> tuple[Any, int]:
        """Return `init` as the core takes it, and the number of starts."""
        init = self.init
        auto = isinstance(self.n_init, str) and self.n_init == "auto"
        n_init = 1 if auto else _check.whole(self.n_init, "n_init", 1)
        if isinstance(init, str):
            _check.word(init, "init", _check.INITS)
            return init, self._random_starts if auto and init == "random" else n_init
        if callable(init):  # scikit-learn's name for the third argument
            start = lambda x, k, rng: init(x, k, random_state=rng)  # noqa: E731
            return start, self._random_starts if auto else n_init
        if n_init != 1:
            _check.warn(
                "Explicit initial center position passed: performing only one init in "
                f'{type(self).__name__} instead of n_init={n_init}. Leave `n_init` at "auto".',
                RuntimeWarning,
            )
        return _check.centroids(init, x, "init", self.n_clusters, _check.ESTIMATORS), 1

    def _drawing(self, rng: np.random.RandomState) -> np.random.RandomState:
        """Return `rng` to draw from: one that the model keeps gets its state back if the fit fails."""
        kept = rng is self.random_state or rng is getattr(self, "_random_state", None)
        # NumPy's own, which random_state=None draws from, is everybody's.
        if kept and rng is not check_random_state(None) and id(rng) not in self._states:
            self._states[id(rng)] = rng, rng.get_state(legacy=False)
        return rng

    def _evaluate(self, x: Any, centers: Any, w: Any = None) -> tuple[Any, Any, float]:
        """Return labels (n,), squared distances (n,) and inertia of the rows; `centers` may be in NumPy."""
        if isinstance(centers, np.ndarray):
            centers = placed(centers, x)
        out: tuple[Any, Any, float] = evaluate(x, centers, sample_weight=w, **self._how)
        return out

    @eager
    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Label of each row after a fit to the same rows.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features)
            Rows to cluster.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the rows; all equal by default.

        Returns
        -------
        labels : int64 array, shape (n_samples,)
            Index of the cluster of each row.
        """
        self.fit(X, sample_weight=sample_weight)
        return self.labels_ if hasattr(self, "labels_") else self.predict(X)

    @eager
    def predict(self, X: Any) -> Any:
        """Label of the centroid nearest to each row.

        Labels are certified: they are those of float64 distances, whatever the dtype of `X`, and
        equal distances go to the lowest label.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features)
            Rows in the library and on the device of the fit.

        Returns
        -------
        labels : int64 array, shape (n_samples,)
            Index of the cluster of each row, where `X` is.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            If `X` is in another library or on another device than the data of the fit, has another
            number of features, or holds NaN or infinity.
        """
        check_is_fitted(self)
        x = self._rows(X, "predict")
        return nearest(x, self._centers, **self._how)

    @eager
    def transform(self, X: Any) -> Any:
        """Distance of each row to each centroid.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features)
            Rows in the library and on the device of the fit.

        Returns
        -------
        distances : array, shape (n_samples, n_clusters)
            Euclidean distances, dense and where `X` is, in the dtype that its centroids have.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            As `predict`.
        """
        check_is_fitted(self)
        x = self._rows(X, "transform")
        return distances(x, self._centers, **self._how)

    @eager
    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Distance of each row to each centroid after a fit to the same rows.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features)
            Rows to cluster.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the rows; all equal by default.

        Returns
        -------
        distances : array, shape (n_samples, n_clusters)
            Euclidean distances, dense and where `X` is, in the dtype that its centroids have.
        """
        return self.fit(X, sample_weight=sample_weight).transform(X)

    @eager
    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Minus the inertia of the rows: larger is better.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features)
            Rows in the library and on the device of the fit.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the rows; all equal by default.

        Returns
        -------
        score : float
            Minus the weighted sum of squared distances to the nearest centroids.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            As `predict`, or if the weights are negative, all zero, not finite or wrongly shaped.
        """
        check_is_fitted(self)
        x = self._rows(X, "score")
        w = self._weights(sample_weight, x)
        return -self._evaluate(x, self._centers, w)[2]

    def to(self, library: Any, device: Any = None) -> Self:
        """Fitted copy of the estimator with its arrays in another library or on another device.

        Parameters
        ----------
        library : str or array
            Name of the library (``"numpy"``, ``"torch"``, ``"cupy"``, ...), or an array: the copy then
            works with arrays of that library on that device.
        device : optional
            Where the library puts the arrays, in its own terms (``"cuda:0"``, ``0``, a device
            object). By default the device of the array, or the library's own default.

        Returns
        -------
        estimator : KMeans or MiniBatchKMeans
            The copy; the original keeps its arrays where they are.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If `library` is neither a name nor an array.
        ValueError
            If there is no such library.
        """
        check_is_fitted(self)
        if not isinstance(library, str):
            if not (is_array(library) or is_sparse(library)):
                raise TypeError(
                    "`library` must be a name such as 'torch', or an array; got "
                    f"{type(library).__name__}."
                )
            device = device_of(library) if device is None else device
            library = library_of(library)
        return self.__sklearn_array_api_convert__(
            functools.partial(move, library=library, device=device)
        )

    def __sklearn_array_api_convert__(self, converter: Callable[[Any], Any]) -> Self:
        """Return a copy of the estimator with every array converted: scikit-learn's hook for a move."""
        new: Self = clone(self)
        if is_array(self.init):
            new.init = converter(as_array(self.init, "init"))
        parameters = self.get_params(deep=False)
        for name, value in vars(self).items():
            if name in self._arrays:
                setattr(new, name, converter(as_array(value, name)))
            elif name not in parameters:
                setattr(new, name, copy.deepcopy(value))
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies and pickles are made of: no graph of a network, which neither can hold."""
        state: dict[str, Any] = super().__getstate__()
        return {name: without_history(value) for name, value in state.items()}

    def __sklearn_clone__(self) -> Self:
        """Return an unfitted estimator with copies of the parameters."""
        new: Self = super(_BaseKMeans, copy.copy(self)).__sklearn_clone__()
        return new

    def _filled(self, peer: Any) -> Any:
        """Return `peer`, a scikit-learn estimator, with the parameters and the state of this one.

        The peer is first fitted to one row, which sets the private attributes that `predict` needs
        in the version of scikit-learn at hand.
        """
        centers = np.ascontiguousarray(to_numpy(self._centers))
        if centers.dtype != np.float32:
            centers = centers.astype(np.float64)
        peer.set_params(n_clusters=1, random_state=0).fit(centers[:1])
        mine = clone(self).get_params(deep=False)
        peer.set_params(**{name: mine[name] for name in peer.get_params(deep=False)})
        if is_array(self.init):
            peer.init = to_numpy(self.init)
        elif isinstance(self.init, str) and self.init == "k-means||":
            peer.init = "k-means++"
        fitted = {name: value for name, value in vars(self).items() if name not in mine}
        for name in [name for name in vars(peer) if name.endswith("_") and name not in fitted]:
            delattr(peer, name)
        for name, value in fitted.items():
            if name in self._arrays:
                value = to_numpy(as_array(value, name))
            if name not in ("_seen", "converged_", "kernel_"):
                setattr(peer, name, copy.deepcopy(value))
        peer.cluster_centers_, peer._n_features_out = centers, centers.shape[0]
        if hasattr(peer, "labels_"):
            peer.labels_ = peer.labels_.astype(np.int32)
        if hasattr(peer, "_counts"):
            _, counts = fitted.get("_seen", (None, np.zeros(centers.shape[0])))
            peer._counts = counts.astype(centers.dtype)
        return peer

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "cluster_centers_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.array_api_support = True
        return tags


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
        The kernel that did the work.
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
        X : array, frame or sparse matrix, shape (n_samples, n_features)
            Rows to cluster: an array of any library, a list, a pandas or polars frame, or a SciPy
            sparse matrix (one that is not CSR is converted). Never written to.
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
            parameter has an impossible value; if `init` is in another library than `X`.
        TypeError
            If a parameter or the data has a type that cannot be used.

        Warns
        -----
        ConvergenceWarning
            If there are fewer distinct rows than `n_clusters`.
        RuntimeWarning
            If `init` is an array and `n_init` asks for more than one start, or if `algorithm` is "elkan" and
            there is one cluster.
        """
        _check.word(self.algorithm, "algorithm", ("lloyd", "elkan"))
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
            watch=self._printing(x, w) if self.verbose else None,
            **self._how,
        )
        self.cluster_centers_ = result.centroids
        self.labels_ = result.labels
        self.inertia_ = result.inertia
        self.n_iter_ = result.n_iter
        self.converged_ = result.converged
        self.kernel_ = result.kernel
        return self

    def _printing(self, x: Array, w: Array | None) -> Watch:
        """Return what prints scikit-learn's lines about runs on these rows."""

        def tell(passes: int, centers: np.ndarray, shift: float, tol: float) -> None:
            if passes == 0:
                print("Initialization complete")
                return
            number = passes - 1
            print(f"Iteration {number}, inertia {self._evaluate(x, centers, w)[2]}.")
            if shift == 0 and number > 0:  # labels have repeated
                print(f"Converged at iteration {number}: strict convergence.")
            elif shift <= tol:
                print(
                    f"Converged at iteration {number}: center shift {shift} within tolerance {tol}."
                )

        return tell

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
        """
        from sklearn.cluster import KMeans as Peer

        check_is_fitted(self)
        return self._filled(Peer())


class _EarlyStop:
    """Tell when batches no longer improve the centroids, by scikit-learn's two rules.

    Called once a step with the mean cost of a row of the batch and the squared shift of the centroids.
    """

    def __init__(self, n: int, batch_size: int, tol: float, patience: int | None) -> None:
        self.alpha = min(batch_size * 2.0 / (n + 1), 1)
        self.tol = tol
        self.patience = patience
        self.smoothed: float | None = None
        self.best = math.inf
        self.waited = 0
        self.started = False

    def __call__(self, cost: float, shift: float) -> str | None:
        """Return why to stop, in scikit-learn's words, or None."""
        if not self.started:  # the cost of the first centroids says nothing about progress
            self.started = True
            return None
        if self.smoothed is None:
            self.smoothed = cost
        else:
            self.smoothed = self.smoothed * (1 - self.alpha) + cost * self.alpha
        if self.tol > 0 and shift <= self.tol:
            return "small centers change"
        if self.smoothed < self.best:
            self.best, self.waited = self.smoothed, 0
        else:
            self.waited += 1
        waited = self.patience is not None and self.waited >= self.patience
        return "lack of improvement in inertia" if waited else None


class MiniBatchKMeans(_BaseKMeans):
    """k-means from random batches of the rows, or from a stream, on arrays of any library.

    The algorithm and its draws are those of `sklearn.cluster.MiniBatchKMeans` in scikit-learn 1.9;
    labels of a batch are certified and its sums exact, so a seed has one answer on every library.

    Parameters
    ----------
    n_clusters : int, default=8
        Number of clusters.
    init : {"k-means++", "random", "k-means||"}, callable or array-like, default="k-means++"
        How the first centroids are chosen among `init_size` random rows; see `KMeans`.
    max_iter : int, default=100
        Largest number of passes over the data, counted in rows drawn.
    batch_size : int, default=1024
        Number of rows in a batch.
    verbose : int, default=0
        If not 0, print scikit-learn's lines about starts and steps.
    compute_labels : bool, default=True
        Whether to label every row after the fit.
    random_state : int, RandomState instance or None, default=None
        Seed of the draws, which are made on the host, with NumPy, in scikit-learn's order. None draws from
        NumPy's global state, which ``np.random.seed`` sets and `anykmeans.kmeans` ignores.
    tol : float, default=0.0
        Stop when the squared shift of the centroids in a step is at most `tol` times the mean
        variance of the features; 0 switches this off.
    max_no_improvement : int or None, default=10
        Stop after so many batches that did not lower the smoothed inertia; None switches this off.
    init_size : int, optional
        Number of rows to choose the first centroids from; three batches by default, and at least
        ``3 * n_clusters``.
    n_init : int or "auto", default="auto"
        Number of starts, of which the one with the lowest inertia on `init_size` random rows goes on.
        "auto" is 3 for "random" or a callable, else 1.
    reassignment_ratio : float, default=0.01
        Clusters that have seen less than this share of the rows of the largest one are moved to
        random rows of the batch now and then; 0 switches this off.
    max_bytes : int, optional
        Memory to use beyond the data, a batch and the rows of `init_size`, in bytes.
    threads : int, optional
        Most threads to work in, in every method, see `anykmeans.kmeans`; never changes a bit.
    kernel : str, default="auto"
        Which kernel does the work; one that is named and cannot run raises with its reason.

    Attributes
    ----------
    cluster_centers_ : array, shape (n_clusters, n_features)
        Centroids, float64, or float32 if the data are float32 or narrower.
    labels_ : int64 array, shape (n_samples,)
        Label of each row of the fit or of the last batch, if `compute_labels`.
    inertia_ : float
        Weighted sum of squared distances of the rows to their centroids; estimated from the batches
        if not `compute_labels`.
    n_iter_ : int
        Number of passes over the data, counted in rows drawn and rounded up.
    n_steps_ : int
        Number of batches.
    converged_ : bool
        Whether `fit` stopped before `max_iter`.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features_in_,)
        Names of the features, if `X` had any.

    See Also
    --------
    KMeans : Uses all rows in each iteration.

    Notes
    -----
    The centroids are the running sums of all rows seen, kept in float64, over their mass, so that late
    batches of a long stream still count. Ties between counts go to the lowest index.

    References
    ----------
    .. [1] D. Sculley, "Web-scale k-means clustering", WWW 2010.

    Examples
    --------
    >>> import numpy as np
    >>> from anykmeans import MiniBatchKMeans
    >>> X = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 0.0], [10.0, 2.0], [10.0, 4.0], [10.0, 0.0]])
    >>> km = MiniBatchKMeans(n_clusters=2, random_state=0)
    >>> km = km.partial_fit(X[:4]).partial_fit(X[4:])
    >>> km.predict([[0.0, 0.0], [12.0, 3.0]])
    array([0, 1])
    """

    _random_starts = 3
    # Sums (k, d) and counts (k,) of all batches, float64; in a tuple, as scikit-learn wants arrays of a model where X is.
    _seen: tuple[np.ndarray, np.ndarray]
    _batch_size: int
    _init_size: int
    _n_since_last_reassign: int

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        max_iter: int = 100,
        batch_size: int = 1024,
        verbose: int = 0,
        compute_labels: bool = True,
        random_state: Any = None,
        tol: float = 0.0,
        max_no_improvement: int | None = 10,
        init_size: int | None = None,
        n_init: int | str = "auto",
        reassignment_ratio: float = 0.01,
        max_bytes: int | None = None,
        threads: int | None = None,
        kernel: str = "auto",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.verbose = verbose
        self.compute_labels = compute_labels
        self.random_state = random_state
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.init_size = init_size
        self.n_init = n_init
        self.reassignment_ratio = reassignment_ratio
        self.max_bytes = max_bytes
        self.threads = threads
        self.kernel = kernel

    @eager
    @_whole
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Estimator fitted to random batches of the rows.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features)
            Rows to cluster: an array of any library, a list, a pandas or polars frame, or a SciPy
            sparse matrix (one that is not CSR is converted). Never written to.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the rows, not negative; all equal by default: rows are drawn into batches in
            proportion to them, and none without weight is drawn at all. Moved to where `X` is.

        Returns
        -------
        self : MiniBatchKMeans
            This estimator.

        Raises
        ------
        ValueError
            If `X` is empty, has the wrong rank, fewer rows than `n_clusters`, or holds NaN or
            infinity; if the weights are negative, all zero, not finite or wrongly shaped; if a
            parameter has an impossible value; if `init` is in another library than `X`.
        TypeError
            If a parameter or the data has a type that cannot be used.

        Warns
        -----
        RuntimeWarning
            If `init` is an array and `n_init` asks for more than one start, or if `init_size` is less
            than `n_clusters`.
        """
        x = self._rows(X, "fit", reset=True)
        self._check_parameters(x)
        init, n_init = self._starting(x)
        w = self._weights(sample_weight, x)
        # Raises if a value is not finite, drawn or not.
        rows = Rows.over(x, w, given=given(init, x), **self._how)
        n, size = x.shape[0], self._batch_size
        chances = np.ones(n) if w is None else _check.host_float64(w)
        exponent = power_of_two(float(chances.max()))  # else their sum might be out of range
        chances = np.ldexp(chances, -exponent)
        total = chances.sum()
        chances = np.cumsum(chances / total)  # `RandomState.choice` would sum them up at each step
        chances /= chances[-1]
        tol = self.tol * self._variance(rows) if self.tol else 0.0

        rng = self._drawing(check_random_state(self.random_state))
        valid = _drawn(w, n, self._init_size, rng)  # even if there is nothing to compare
        compared = n_init > 1 or self.verbose
        starts = []
        for i in range(n_init):
            if self.verbose:
                print(f"Init {i + 1}/{n_init} with method {self.init}")
            first, cost = self._initial(rows, init, rng), 0.0
            if compared:
                some = rows.take(valid, alike=True)
                with some.work:
                    cost = evaluated(some, first)[2]
            if self.verbose:
                print(f"Inertia for init {i + 1}/{n_init}: {cost}")
            starts.append((cost, first))
        centers = min(starts, key=lambda each: each[0])[1]

        sums, counts = self._nothing(centers)
        self._n_since_last_reassign = 0
        stop = _EarlyStop(n, size, tol, self.max_no_improvement)
        steps = (self.max_iter * n) // size
        for step in range(1, steps + 1):
            drawn = chances.searchsorted(rng.random_sample(size), side="right")
            batch, before = rows.take(drawn, weighted=False, alike=True), centers
            centers, sums, counts, inertia = self._step(batch, centers, sums, counts, rng)
            cost, shift = inertia / size, _squared_shift(rows, before, centers) if tol else 0.0
            why = stop(cost, shift)
            if self.verbose:
                smoothed = "" if stop.smoothed is None else f", ewa inertia: {stop.smoothed}"
                print(f"Minibatch step {step}/{steps}: mean batch inertia: {cost}{smoothed}")
            if why:
                if self.verbose:
                    print(f"Converged ({why}) at step {step}/{steps}")
                break

        self._keep(rows, centers, sums, counts)
        self.n_steps_ = step
        self.n_iter_ = math.ceil(step * size / n)
        self.converged_ = why is not None
        weight = float(np.ldexp(total, exponent))
        self.inertia_ = (cost if stop.smoothed is None else stop.smoothed) * weight
        if "labels_" in vars(self):  # of an earlier fit
            delattr(self, "labels_")
        if self.compute_labels:
            self._label(rows, centers)
        return self

    @eager
    @_whole
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Estimator updated with one batch of rows.

        The first call chooses the first centroids among the rows it gets, or takes a `cluster_centers_` that was
        set by hand.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features)
            The batch, in the library and on the device of the first one.
        y : Ignored
            Present for API consistency.
        sample_weight : array-like, shape (n_samples,), optional
            Weights of the rows, not negative; all equal by default. Moved to where `X` is.

        Returns
        -------
        self : MiniBatchKMeans
            This estimator.

        Raises
        ------
        ValueError
            As `fit`, or if `X` is in another library or on another device than the first batch.
        TypeError
            If a parameter or the data has a type that cannot be used.
        """
        x = self._rows(X, "partial_fit", reset=not hasattr(self, "n_features_in_"))
        w = self._weights(sample_weight, x)
        if not hasattr(self, "_random_state"):
            self._random_state = check_random_state(self.random_state)
        if hasattr(self, "_seen") and self._seen[1].shape[0] == self._centers.shape[0]:
            centers = _check.host(self._centers)
            # In a float dtype, whatever was set by hand.
            centers = centers.astype(np.result_type(centers, np.float32))
            sums, counts = self._running(centers)
            used = ((sums != 0) | (centers != 0)).any(axis=0)[None, :]
            rows = Rows.over(x, w, given=used if is_sparse(x) else None, **self._how)
            centers, sums = rows.matrix.columns_of(centers), rows.matrix.columns_of(sums)
        else:
            self._check_parameters(x)
            if self.__sklearn_is_fitted__():  # set by hand
                k, names = self.n_clusters, _check.ESTIMATORS
                init = _check.centroids(self.cluster_centers_, x, names.centroids, k, names)
            else:
                init, _ = self._starting(x)
            self._n_since_last_reassign = 0
            rows = Rows.over(x, w, given=given(init, x), **self._how)
            centers = self._initial(rows, init, self._drawing(self._random_state))
            sums, counts = self._nothing(centers)
        centers, sums, counts, _ = self._step(rows, centers, sums, counts, self._random_state)
        self._keep(rows, centers, sums, counts)
        self.n_steps_ = getattr(self, "n_steps_", 0) + 1
        if self.compute_labels:
            self._label(rows, centers)
        return self

    def _keep(self, rows: Rows, centers: np.ndarray, sums: np.ndarray, counts: np.ndarray) -> None:
        """Keep what was found in the columns of the rows, with all of the user's."""
        spread = rows.matrix.spread
        self.cluster_centers_ = like(spread(centers), rows.matrix.source)
        self._seen = spread(sums), counts

    def _label(self, rows: Rows, centers: np.ndarray) -> None:
        """Keep the labels of the rows, and their inertia."""
        with rows.work:
            labels, _, self.inertia_ = evaluated(rows, centers)
        self.labels_ = rows.matrix.give(rows.xp.astype(labels, rows.xp.int64))

    @eager
    def as_sklearn(self) -> Any:
        """Fitted `sklearn.cluster.MiniBatchKMeans` with the same centroids and counts, in NumPy.

        Returns
        -------
        estimator : sklearn.cluster.MiniBatchKMeans
            Ready to predict and to go on with `partial_fit`. ``init="k-means||"``, which scikit-learn
            lacks, becomes "k-means++".

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        """
        from sklearn.cluster import MiniBatchKMeans as Peer

        check_is_fitted(self)
        return self._filled(Peer())

    def _check_parameters(self, x: Any) -> None:
        """Raise on a parameter that cannot be, and settle the sizes for these rows."""
        _check.clusters(self.n_clusters, x, _check.ESTIMATORS)
        _check.whole(self.max_iter, "max_iter", 1)
        _check.whole(self.batch_size, "batch_size", 1)
        if self.max_no_improvement is not None:
            _check.whole(self.max_no_improvement, "max_no_improvement", 0)
        if self.init_size is not None:
            _check.whole(self.init_size, "init_size", 1)
        _check.tolerance(self.tol)
        _check.budget(self.max_bytes, 64 * (x.shape[1] + self.n_clusters))
        _check.threads(self.threads)
        ratio = self.reassignment_ratio
        if not isinstance(ratio, numbers.Real) or not 0 <= ratio < math.inf:
            raise ValueError(
                f"`reassignment_ratio` must be a finite number of at least 0; got {ratio!r}."
            )
        self._batch_size = min(self.batch_size, x.shape[0])
        size = 3 * self._batch_size if self.init_size is None else self.init_size
        if size < self.n_clusters:
            size = 3 * self.n_clusters
            if self.init_size is not None:
                _check.warn(
                    f"init_size={self.init_size} should be larger than n_clusters={self.n_clusters}. "
                    "Setting it to min(3*n_clusters, n_samples)",
                    RuntimeWarning,
                )
        self._init_size = min(size, x.shape[0])

    def _variance(self, rows: Rows) -> float:
        """Return the mean variance of the features, of rows without their weights."""
        matrix, n = rows.matrix, rows.shape[0]
        if rows.weights is not None:
            rows = Rows(
                matrix,
                None,
                rows.kernel,
                max_bytes=self.max_bytes,
                threads=self.threads,
                names=rows.names,
            )
        with rows.work:
            sums, _ = _sums(rows, matrix.asarray(np.zeros(n, dtype=np.int32)), 1)
            spread = evaluated(rows, sums / n)[2]
        return spread / float(n * matrix.features)

    def _initial(self, rows: Rows, init: Any, rng: np.random.RandomState) -> np.ndarray:
        """Return first centroids (k, columns), from `init_size` random rows."""
        n, w = rows.shape[0], None if rows.weights is None else rows.weights.source
        heavy = n if w is None else np.count_nonzero(to_numpy(w))
        chosen = None
        if self._init_size < heavy:
            chosen = _drawn(w, n, self._init_size, rng)
        elif self.n_clusters <= heavy < n:
            chosen = np.flatnonzero(to_numpy(w))
        if chosen is not None:
            if callable(init):  # which is for the user's own kind of rows
                x = take(rows.matrix.source, chosen)
                w = w if w is None else take(w, chosen)
                rows = Rows.over(x, w, given=given(init, x), **self._how)
            else:
                rows = rows.take(chosen)
        with rows.work:
            found: np.ndarray = to_numpy(start(rows, self.n_clusters, init, rng))
        return found

    def _nothing(self, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sums (k, d) and counts (k,) before the first batch."""
        return np.zeros(centers.shape), np.zeros(centers.shape[0])

    def _running(self, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sums (k, d) of which `centers` are the means, also where these were set by hand, and counts (k,)."""
        sums, counts = self._seen
        same = means(np, sums, counts, centers) == centers
        return np.where(same, sums, centers * counts[:, None]), counts

    def _step(
        self,
        rows: Rows,
        centers: np.ndarray,
        sums: np.ndarray,
        counts: np.ndarray,
        rng: np.random.RandomState,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Return centroids, sums (k, columns) and counts (k,) after a batch of rows, and its inertia before.

        They stay in NumPy: they are few beside the rows of a batch, and some libraries divide in ways of their own.
        """
        k = centers.shape[0]
        since = self._n_since_last_reassign + self._batch_size
        due = since >= 10 * k or not counts.all()
        with rows.work:
            labels, _, inertia = evaluated(rows, centers)
            batch_sums, mass = _sums(rows, labels, k)
        self._n_since_last_reassign = 0 if due else since
        sums, counts = sums + batch_sums, counts + mass
        divide = rows.kernel.means if rows.kernel.host else None
        weights = np.where(mass > 0, counts, mass)
        if divide is None:
            divide = functools.partial(means, np)
        centers = divide(sums, weights, centers)

        if due and self.reassignment_ratio > 0:
            w = rows.weights
            heavy = np.arange(rows.shape[0]) if w is None else np.flatnonzero(to_numpy(w.source))
            low = self._to_reassign(counts, heavy.size)
            if low.any():
                m = np.count_nonzero(low)
                if self.verbose:
                    print(f"[MiniBatchKMeans] Reassigning {m} cluster centers.")
                picks = self._drawing(rng).choice(heavy.size, size=m, replace=False)
                centers[low] = to_numpy(rows.rows(rows.matrix.asarray(heavy[picks])))
                # Some weight, or the cluster would be moved again at once: scikit-learn's rule.
                counts[low] = counts[~low].min()
                sums[low] = centers[low] * counts[low, None]
        return centers, sums, counts, inertia

    def _to_reassign(self, counts: np.ndarray, n: int) -> np.ndarray:
        """Return a mask (k,) of the clusters to move to rows of a batch of n, at most half of it."""
        low: np.ndarray = counts < self.reassignment_ratio * counts.max()
        # A stable order, so that every machine moves the same ones of equal count.
        order = np.argsort(counts, kind="stable")
        most = int(0.5 * n) if low.sum() > 0.5 * n else counts.shape[0] - 1
        low[order[most:]] = False
        return low
