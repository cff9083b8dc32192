"""MiniBatchKMeans: the estimator over mini-batches."""

import itertools
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from anykmeans import _check
from anykmeans._batches import each_of, gathered, gives_batches, refuse_weights
from anykmeans._distance import halving_sum, squared_distances
from anykmeans._eager import eager
from anykmeans._evaluate import evaluated
from anykmeans._init import given
from anykmeans._libraries import is_sparse, like, np_compat
from anykmeans._minibatch import EarlyStop, Seen, Urn, drawn, initial, squared_shift, step, variance
from anykmeans._spherical import at_length_one
from anykmeans.estimators.base import _BaseKMeans, _whole
from anykmeans.sources.rows import Rows


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
    metric : {"euclidean", "cosine"}, default="euclidean"
        "cosine" is spherical k-means: rows count for their directions alone, and centroids have length 1. Squared
        distances are ``2 - 2 cos``, so that `inertia_` is twice the weighted sum of ``1 - cos``, which is what `transform`
        returns. A row of length 0 is an error.
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
    kernel_ : str
        The kernel that did the work, or kernels, one after the other: ``"cpu+numba"``; see `anykmeans.KMeansResult`.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : array of str, shape (n_features_in_,)
        Names of the features, if `X` had any.

    See Also
    --------
    KMeans : Uses all rows in each iteration.

    Notes
    -----
    The centroids are the sums of all rows seen over their weight. These sums are exact, so that late batches of a long
    stream still count, and batches that get the same labels in another order give the same centroids to the last bit.
    They are kept between batches, in two to four float64 numbers a coordinate as a rule. Ties between counts go to the
    lowest index.

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
    _kept = (
        *_BaseKMeans._kept,
        "n_steps_",
        "_seen",
        "_random_state",
        "_batch_size",
        "_init_size",
    )
    _seen: Seen
    _batch_size: int
    _init_size: int

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
        metric: str = "euclidean",
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
        self.metric = metric
        self.max_bytes = max_bytes
        self.threads = threads
        self.kernel = kernel

    @eager
    @_whole
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Estimator fitted to random batches of the rows.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features), or iterable of such
            Rows to cluster: an array of any library, a list, a pandas or polars frame, or a SciPy
            sparse matrix (one that is not CSR is converted). Never written to. Or a `DataLoader`, or another iterable
            that gives rows batch by batch, as its batches are: see Notes.
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
            parameter has an impossible value; if `init` is in another library than `X`; if a row, whatever its
            weight, or a centroid of `init` has length 0 and `metric` is "cosine".
        ValueError
            If `X` gives no batches, or batches that are dictionaries or differ, or if there are weights beside batches.
        TypeError
            If a parameter or the data has a type that cannot be used, or if `X` gives its batches only once and `max_iter`
            is larger than 1.

        Warns
        -----
        RuntimeWarning
            If `init` is an array and `n_init` asks for more than one start, or if `init_size` is less
            than `n_clusters`.

        Notes
        -----
        Over batches of a loader a fit is `partial_fit` of one after the other, in the order they come in, bit for bit, for
        up to `max_iter` passes, each of which iterates over `X` anew. First centroids are chosen among the rows of
        its first batches, as many as hold `init_size` rows, which are then batches like all others; of `n_init` starts
        that of the lowest inertia on those rows goes on. `max_no_improvement` and `tol` may end it, as they end a fit to
        rows, from the second pass on, when the number of rows is known; `tol` is relative to the variance of the rows
        that centroids were chosen among. `inertia_` is the sum over the batches of the last pass, each before
        its step, as a share of all rows, and there are no `labels_`: a loader may shuffle, and `predict` labels what it is given.

        Examples
        --------
        >>> from anykmeans import MiniBatchKMeans
        >>> km = MiniBatchKMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> km.labels_, km.converged_
        (array([1, 1, 0, 0]), True)
        """
        if gives_batches(X):
            refuse_weights(sample_weight)
            return self._fit_batches(X)
        x = self._rows(X, "fit", reset=True)
        self._check_parameters(x)
        init, n_init = self._starting(x)
        w = self._weights(sample_weight, x)
        # Raises if a value is not finite, drawn or not.
        rows = Rows.over(x, w, given=given(init, x), **self._how)
        plain = rows if w is None else rows.of(rows.matrix, None)  # as batches are
        n, size, urn = x.shape[0], self._batch_size, Urn(w, x.shape[0])
        tol = self.tol * variance(plain) if self.tol else 0.0

        rng = self._drawing(check_random_state(self.random_state))
        valid = drawn(w, n, self._init_size, rng)  # even if there is nothing to compare
        first = self._first(rows, init, n_init, lambda: rng, lambda: rows.take(valid, alike=True))
        seen = Seen.nothing(plain, first, size)

        stop = EarlyStop(n, size, tol, self.max_no_improvement)
        steps = (self.max_iter * n) // size
        # What batches cost is asked for by who waits for it to fall, or reads it; else that of all rows is told in the end.
        asked = self.max_no_improvement is not None or bool(self.verbose) or not self.compute_labels
        batch: Rows | None = None
        for done in range(1, steps + 1):
            plain.renewed()
            batch = plain.take(urn.drawn(size, rng), alike=True, over=batch)
            before = seen.centers
            seen, inertia = self._step(seen, batch, lambda: rng, measured=asked)
            cost, shift = inertia / size, squared_shift(rows, before, seen.centers) if tol else 0.0
            why = stop(cost, shift)
            if self.verbose:
                smoothed = "" if stop.smoothed is None else f", ewa inertia: {stop.smoothed}"
                print(f"Minibatch step {done}/{steps}: mean batch inertia: {cost}{smoothed}")
            if why:
                if self.verbose:
                    print(f"Converged ({why}) at step {done}/{steps}")
                break

        self._keep(rows, seen)
        self.kernel_ = "+".join(rows.ran | plain.ran)
        self.n_steps_ = done
        self.n_iter_ = math.ceil(done * size / n)
        self.converged_ = why is not None
        self.inertia_ = (cost if stop.smoothed is None else stop.smoothed) * urn.weight
        if "labels_" in vars(self):  # of an earlier fit
            delattr(self, "labels_")
        if self.compute_labels:
            self._label(rows, seen)
        return self

    @eager
    @_whole
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Estimator updated with one batch of rows.

        The first call chooses the first centroids among the rows it gets, or takes a `cluster_centers_` that was
        set by hand.

        Parameters
        ----------
        X : array, frame or sparse matrix, shape (n_samples, n_features), or iterable of such
            The batch, in the library and on the device of the first one. Or a `DataLoader`, or another iterable that
            gives batches: one after the other, bit for bit. If one of them fails, all leave the model as it was.
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
        if gives_batches(X):
            refuse_weights(sample_weight)
            for each in each_of(X, "X"):
                rows, _ = self._feed(each)
        else:
            rows, _ = self._feed(X, sample_weight)
        self.kernel_ = "+".join(rows.ran)
        if self.compute_labels:
            self._label(rows, self._seen)
        return self

    def _feed(
        self, X: Any, sample_weight: Any = None, *, measured: bool = False
    ) -> tuple[Rows, float]:
        """Return the rows of one batch, after its step, and their inertia before, if it is to be `measured`."""
        x = self._rows(X, "partial_fit", reset=not hasattr(self, "n_features_in_"))
        w = self._weights(sample_weight, x)
        _check.word(self.metric, "metric", _check.METRICS)
        if not hasattr(self, "_random_state"):
            self._random_state = _unless_a_seed(self.random_state)
        seen: Seen | None = getattr(self, "_seen", None)
        if seen is not None and tuple(self._centers.shape) == (seen.counts.size, seen.features):
            centers = _check.host(self._centers)
            # In a float dtype, whatever was set by hand.
            centers = centers.astype(np.result_type(centers, np.float32), copy=False)
            if self.metric == "cosine":
                centers = at_length_one(
                    centers, "cluster_centers_", single=seen.centers.dtype == np.float32
                )
            seen = seen.moved(centers, "cluster_centers_")
            used = seen.used[None, :] if is_sparse(x) else None
            rows = Rows.over(x, w, given=used, **self._how)
        else:
            self._check_parameters(x)
            if self.__sklearn_is_fitted__():  # set by hand
                k, names = self.n_clusters, _check.ESTIMATORS
                init = _check.centroids(self.cluster_centers_, x, names.centroids, k, names)
            else:
                init, _ = self._starting(x)
            rows = Rows.over(x, w, given=given(init, x), **self._how)
            first = initial(rows, self.n_clusters, self._init_size, init, self._draws)
            seen = Seen.nothing(rows, first, x.shape[0])
        seen, inertia = self._step(seen, rows, self._draws, measured=measured)
        self._keep(rows, seen)
        self.n_steps_ = getattr(self, "n_steps_", 0) + 1
        return rows, inertia

    def _fit_batches(self, X: Any) -> Self:
        """Return the estimator fitted to what gives batches of rows, pass after pass."""
        _check.whole(self.max_iter, "max_iter", 1)
        _check.whole(self.n_clusters, "n_clusters", 1)
        if self.max_iter > 1 and isinstance(X, Iterator):
            raise TypeError(
                f"`X` must be something that can be iterated over `max_iter`={self.max_iter} times, such as a `DataLoader`; "
                f"got {type(X).__name__}, which gives its batches once. Use `partial_fit`, or `max_iter=1`; or, if it gives "
                "row by row, make it a list first: `list(X)`."
            )
        for name in set(self._kept) & set(vars(self)):  # of an earlier fit
            delattr(self, name)
        self._random_state = _unless_a_seed(self.random_state)
        batches = iter(each_of(X, "X"))
        tol, held = self._seeded(batches)
        ran: dict[str, None] = {}
        stop: EarlyStop | None = None
        why, n = None, 0
        for number in range(1, self.max_iter + 1):
            count, total = 0, 0.0
            for batch in itertools.chain(held, batches):
                before = self._seen.over(None).centers
                rows, inertia = self._feed(batch, measured=True)
                ran |= rows.ran
                size = rows.shape[0]
                count, total = count + size, total + inertia
                if stop is not None:
                    shift = _squared_shift(before, self._seen.over(None).centers) if tol else 0.0
                    why = stop(inertia / size, shift)
                if self.verbose:
                    ewa = None if stop is None else stop.smoothed
                    smoothed = "" if ewa is None else f", ewa inertia: {ewa}"
                    mean = f"mean batch inertia: {inertia / size}"
                    print(f"Minibatch step {self.n_steps_}: {mean}{smoothed}")
                if why:
                    if self.verbose:
                        print(f"Converged ({why}) at step {self.n_steps_}")
                    break
            if stop is None:
                n = count
                stop = EarlyStop(n, math.ceil(n / self.n_steps_), tol, self.max_no_improvement)
            if why or number == self.max_iter:
                break
            held, batches = [], iter(each_of(X, "X"))
        self.kernel_, self.converged_, self.n_iter_ = "+".join(ran), why is not None, number
        self.inertia_ = total / count * n
        return self

    def _seeded(self, batches: Iterator[Any]) -> tuple[float, list[Any]]:
        """Choose first centroids among first batches; return what shift is small, and those batches."""
        held = [next(batches)]
        x = self._rows(held[0], "fit", reset=True)
        self._check_numbers(x.shape[1])
        self._batch_size = min(self.batch_size, x.shape[0])
        size = self._wanted()
        parts = [x]
        if isinstance(self.init, str) or callable(self.init):
            while (
                sum(part.shape[0] for part in parts) < size
                and (more := next(batches, None)) is not None
            ):
                held.append(more)
                parts.append(self._rows(more, "fit"))
        x = gathered(parts, "X")
        _check.clusters(self.n_clusters, x, _check.ESTIMATORS)
        self._init_size = min(size, x.shape[0])
        init, n_init = self._starting(x)
        rows = Rows.over(x, None, given=given(init, x), **self._how)
        first = self._first(rows, init, n_init, self._draws, lambda: rows)
        self._keep(rows, Seen.nothing(rows, first, x.shape[0]))
        return self.tol * variance(rows) if self.tol else 0.0, held

    def _first(
        self,
        rows: Rows,
        init: Any,
        n_init: int,
        rng: Callable[[], np.random.RandomState],
        some: Callable[[], Rows],
    ) -> np.ndarray:
        """Return the first centroids of all `n_init` starts whose inertia on some rows is lowest."""
        starts = []
        for i in range(n_init):
            if self.verbose:
                print(f"Init {i + 1}/{n_init} with method {self.init}")
            first, cost = initial(rows, self.n_clusters, self._init_size, init, rng), 0.0
            if n_init > 1 or self.verbose:
                judges = some()
                with judges.work:
                    cost = evaluated(judges, first)[2]
            if self.verbose:
                print(f"Inertia for init {i + 1}/{n_init}: {cost}")
            starts.append((cost, first))
        return min(starts, key=lambda each: each[0])[1]

    def _draws(self) -> np.random.RandomState:
        """Return what batches that come one by one draw from, few of which do."""
        rng: np.random.RandomState = check_random_state(self._random_state)
        self._random_state = rng
        return self._drawing(rng)

    def _step(
        self, seen: Seen, batch: Rows, rng: Callable[[], np.random.RandomState], *, measured: bool
    ) -> tuple[Seen, float]:
        """Return where the run stands after a batch, and the inertia of that before, if it is to be `measured`."""
        seen, inertia, moved = step(
            seen,
            batch,
            rng,
            size=self._batch_size,
            ratio=self.reassignment_ratio,
            measured=measured,
        )
        if moved and self.verbose:
            print(f"[MiniBatchKMeans] Reassigning {moved} cluster centers.")
        return seen, inertia

    def _keep(self, rows: Rows, seen: Seen) -> None:
        """Keep what was found in the columns of the rows, with all of the user's."""
        centers = rows.matrix.spread(seen.centers)
        if centers is seen.centers:  # by which it will show if somebody sets others
            centers = centers.copy()
        self._seen, self.cluster_centers_ = seen, like(centers, rows.matrix.source)

    def _label(self, rows: Rows, seen: Seen) -> None:
        """Keep the labels of the rows, and their inertia."""
        with rows.work:
            labels, _, self.inertia_ = evaluated(rows, seen.centers)
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
        ValueError
            If `metric` is "cosine", which scikit-learn does not have.

        Examples
        --------
        >>> from anykmeans import MiniBatchKMeans
        >>> km = MiniBatchKMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> km.as_sklearn().predict([[-3.0], [6.0]])
        array([1, 0], dtype=int32)
        """
        from sklearn.cluster import MiniBatchKMeans as Peer

        check_is_fitted(self)
        peer, seen = self._filled(Peer()), getattr(self, "_seen", None)
        centers, counts = peer.cluster_centers_, np.zeros(peer._n_features_out)
        if seen is not None and seen.counts.size == counts.size:
            counts, peer._n_since_last_reassign = seen.weights, seen.since
        peer._counts = counts.astype(centers.dtype)
        if hasattr(self, "_random_state"):
            peer._random_state = check_random_state(peer._random_state)
        return peer

    def _check_parameters(self, x: Any) -> None:
        """Raise on a parameter that cannot be, and settle the sizes for these rows."""
        _check.clusters(self.n_clusters, x, _check.ESTIMATORS)
        self._check_numbers(x.shape[1])
        self._batch_size = min(self.batch_size, x.shape[0])
        self._init_size = min(self._wanted(), x.shape[0])

    def _check_numbers(self, d: int) -> None:
        """Raise on a parameter that cannot be, whatever the rows, of which `d` features are known."""
        _check.whole(self.max_iter, "max_iter", 1)
        _check.whole(self.batch_size, "batch_size", 1)
        if self.max_no_improvement is not None:
            _check.whole(self.max_no_improvement, "max_no_improvement", 0)
        if self.init_size is not None:
            _check.whole(self.init_size, "init_size", 1)
        _check.tolerance(self.tol)
        _check.word(self.metric, "metric", _check.METRICS)
        _check.budget(self.max_bytes, 64 * (d + self.n_clusters))
        _check.threads(self.threads)
        ratio = self.reassignment_ratio
        if not isinstance(ratio, numbers.Real) or not 0 <= ratio < math.inf:
            raise ValueError(
                f"`reassignment_ratio` must be a finite number of at least 0; got {ratio!r}."
            )

    def _wanted(self) -> int:
        """Return among how many rows first centroids are to be chosen."""
        size: int = 3 * self._batch_size if self.init_size is None else self.init_size
        if size < self.n_clusters:
            size = 3 * self.n_clusters
            if self.init_size is not None:
                _check.warn(
                    f"init_size={self.init_size} should be larger than n_clusters={self.n_clusters}. "
                    "Setting it to min(3*n_clusters, n_samples)",
                    RuntimeWarning,
                )
        return size


def _squared_shift(before: np.ndarray, after: np.ndarray) -> float:
    """Return the sum of the squared differences of two sets of centroids (k, d), in the order of a distance."""
    a, b = after.astype(np.float64), before.astype(np.float64)
    return float(halving_sum(np_compat, squared_distances(np_compat, a, b)[None, :])[0])


def _unless_a_seed(random_state: Any) -> int | np.random.RandomState:
    """Return the generator, but a seed as it is: to make a generator of one takes as long as some batches."""
    if type(random_state) is int and 0 <= random_state < 2**32:
        return random_state
    found: np.random.RandomState = check_random_state(random_state)
    return found
