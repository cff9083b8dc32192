"""MiniBatchKMeans: the estimator over mini-batches."""

import math
import numbers
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from anykmeans import _check
from anykmeans._distance import halving_sum
from anykmeans._eager import eager
from anykmeans._evaluate import evaluated
from anykmeans._frame import power_of_two
from anykmeans._init import given, start
from anykmeans._libraries import (
    Array,
    is_sparse,
    like,
    np_compat,
    take,
    to_numpy,
)
from anykmeans._stats import segment_mean
from anykmeans.estimators.base import _BaseKMeans, _whole
from anykmeans.kernels.agnostic import KERNEL
from anykmeans.sources.rows import Rows


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
    return float(halving_sum(np_compat, to_numpy(rows.kernel.moves(rows.matrix, a, b))[None, :])[0])


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

        Examples
        --------
        >>> from anykmeans import MiniBatchKMeans
        >>> km = MiniBatchKMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> km.labels_, km.converged_
        (array([1, 1, 0, 0]), True)
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

        Examples
        --------
        >>> from anykmeans import MiniBatchKMeans
        >>> km = MiniBatchKMeans(2, init=[[0.0], [9.0]], random_state=0)
        >>> for batch in [[0.0], [4.0], [9.0]], [[2.0], [11.0]]:
        ...     km = km.partial_fit(batch)
        >>> km.cluster_centers_
        array([[ 2.],
               [10.]])
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

        Examples
        --------
        >>> from anykmeans import MiniBatchKMeans
        >>> km = MiniBatchKMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> km.as_sklearn().predict([[-3.0], [6.0]])
        array([1, 0], dtype=int32)
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
            rows = rows.of(matrix, None)
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
        same = segment_mean(np_compat, sums, counts, centers) == centers
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
        kernel = rows.kernel if rows.kernel.host else KERNEL
        centers = kernel.divide(np_compat, sums, np.where(mass > 0, counts, mass), centers)

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
