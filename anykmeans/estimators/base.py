"""What the estimators share: checks, names and manners that scikit-learn expects, and all but how to fit."""

import copy
import functools
import sys
from collections.abc import Callable, Mapping
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
from anykmeans._eager import eager
from anykmeans._evaluate import distances, evaluate, nearest
from anykmeans._inputs import as_array
from anykmeans._libraries import (
    Array,
    device_of,
    is_array,
    is_sparse,
    library_of,
    move,
    names_device,
    placed,
    same_place,
    to_numpy,
    where_is,
    without_history,
)
from anykmeans.estimators import states

T = TypeVar("T")


def _is_plain(x: Any) -> bool:
    """Return whether `x` is a NumPy array or CSR matrix that scikit-learn's `check_array` would return as it is."""
    plain = type(x) is np.ndarray or (is_sparse(x) and x.format == "csr")
    return plain and len(x.shape) == 2 and x.dtype.kind in "fiub" and 0 not in x.shape


def _is_common(x: Any) -> bool:
    """Return whether `x` is what is most common: a NumPy array of single or double precision, (n, d), not empty."""
    return type(x) is np.ndarray and x.dtype.char in "fd" and x.ndim == 2 and 0 not in x.shape


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


def _place(where: Any, device: Any, centers: Array) -> tuple[Any, Any]:
    """Return the library and the device that `where` and `device` name: an array's, or a device of the library of `centers`."""
    if is_array(where) or is_sparse(where):
        return library_of(where), device_of(where) if device is None else device
    own = library_of(centers)
    if where is None:
        return own, device
    if isinstance(where, getattr(sys.modules.get("torch"), "device", ())):
        return "torch", where
    if not isinstance(where, str):
        raise TypeError(
            f"`library` must be a name such as 'torch', a device, or an array; got {type(where).__name__}."
        )
    if device is None and (names_device(where, own) or (own, where) == ("numpy", "cpu")):
        return own, where
    return where, device


class _BaseKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """What `KMeans` and `MiniBatchKMeans` share: all but how to fit."""

    # The fitted attributes that live where X does.
    _arrays: tuple[str, ...] = ("cluster_centers_", "labels_")
    # What a fit leaves behind, for a checkpoint.
    _kept: tuple[str, ...] = (
        *_arrays,
        "inertia_",
        "n_iter_",
        "converged_",
        "kernel_",
        "n_features_in_",
        "feature_names_in_",
    )
    _states: dict[int, tuple[np.random.RandomState, dict[str, Any]]]  # during a fit
    _random_starts = 10  # what n_init="auto" means where starts differ much

    @property
    def _how(self) -> dict[str, Any]:
        """What every computation is told: its metric, kernel, memory and threads, and how to speak of the data."""
        return {
            "metric": self.metric,
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
        known = vars(self)
        if (
            method != "fit"
            and _is_common(X)
            and _is_common(known.get("cluster_centers_"))
            and X.shape[1] == known.get("n_features_in_")
            and "feature_names_in_" not in known
        ):
            return X  # of which nothing else is to be said
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
            if reset and type(X) is np.ndarray:  # without names
                self.n_features_in_ = x.shape[1]
                if hasattr(self, "feature_names_in_"):
                    del self.feature_names_in_
            elif reset or named or x.shape[1] != (expected or x.shape[1]):
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

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> KMeans(2, random_state=0).fit_predict([[0.0], [1.0], [9.0], [10.0]])
        array([1, 1, 0, 0])
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
            number of features, or holds NaN or infinity, or a row of length 0 while `metric` is "cosine".

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> km = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> km.predict([[-3.0], [4.0], [6.0]])
        array([1, 1, 0])
        """
        if not self.__sklearn_is_fitted__():  # scikit-learn asks for tags first, and takes its time
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
            Euclidean distances, or ``1 - cos`` if `metric` is "cosine", dense and where `X` is, in the dtype
            that its centroids have.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            As `predict`.

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> km = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> km.transform([[0.0], [9.5]])
        array([[9.5, 0.5],
               [0. , 9. ]])
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
            Euclidean distances, or ``1 - cos`` if `metric` is "cosine", dense and where `X` is, in the dtype
            that its centroids have.

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> KMeans(2, random_state=0).fit_transform([[0.0], [1.0], [9.0], [10.0]])
        array([[9.5, 0.5],
               [8.5, 0.5],
               [0.5, 8.5],
               [0.5, 9.5]])
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
            Minus the weighted sum of squared distances to the nearest centroids, ``2 - 2 cos`` if `metric` is "cosine".

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ValueError
            As `predict`, or if the weights are negative, all zero, not finite or wrongly shaped.

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> km = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> km.score([[0.0], [9.5], [11.5]])
        -4.25
        """
        check_is_fitted(self)
        x = self._rows(X, "score")
        w = self._weights(sample_weight, x)
        return -self._evaluate(x, self._centers, w)[2]

    def to(self, library: Any = None, device: Any = None) -> Self:
        """Fitted copy of the estimator with its arrays in another library or on another device.

        Parameters
        ----------
        library : str, array or torch.device, optional
            Name of the library (``"numpy"``, ``"torch"``, ``"cupy"``, ...), or an array: the copy then
            works with arrays of that library on that device. By default the library of the fit, whose devices may be
            named alone: ``km.to("cuda")`` after a fit to tensors.
        device : optional
            Where the library puts the arrays, in its own terms (``"cuda:0"``, ``0``, a device
            object). By default the device of the array, or the library's own default. Where a device has no
            float64, such arrays become float32.

        Returns
        -------
        estimator : KMeans or MiniBatchKMeans
            The copy; the original keeps its arrays where they are.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If `library` is neither a name, nor an array, nor a device of PyTorch.
        ValueError
            If there is no such library, nor such a device of the library of the fit.

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> km = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> km.to("torch").cluster_centers_
        tensor([[9.5000],
                [0.5000]], dtype=torch.float64)
        """
        check_is_fitted(self)
        library, device = _place(library, device, self._centers)
        return self.__sklearn_array_api_convert__(
            functools.partial(move, library=library, device=device)
        )

    def state_dict(self) -> dict[str, Any]:
        """State of the fitted estimator, as a flat dictionary for a checkpoint.

        Arrays are entries of their own, in the library and on the device of the fit, copied: tensors where it was fitted to
        tensors, so that `torch.save` keeps them and ``torch.load(weights_only=True)`` reads them; `numpy.savez` keeps any. All
        else is text in JSON, and a version. What settles scikit-learn's output and its routing of metadata is not in it.

        Returns
        -------
        state : dict of str
            What `from_state_dict` takes: ``"version"``, ``"estimator"``, ``"parameters"`` and ``"fitted"`` (JSON), and arrays.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If `init` is a function, or another parameter is no plain value.

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> km = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> sorted(km.state_dict())
        ['cluster_centers_', 'estimator', 'fitted', 'labels_', 'parameters', 'version']
        """
        check_is_fitted(self)
        return states.state_of(self)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Self:
        """Estimator that a state was taken of: it predicts, and goes on, to the same bits.

        Parameters
        ----------
        state : dict of str
            What `state_dict` returned, also after a way through a file. It is copied.

        Returns
        -------
        estimator : KMeans or MiniBatchKMeans
            Fitted, its arrays in the library and on the device of those in the state: `to` moves it.

        Raises
        ------
        TypeError
            If `state` is no dictionary.
        ValueError
            If it is of another version or another estimator, or if keys are missing or are unexpected.

        Examples
        --------
        >>> from anykmeans import KMeans
        >>> km = KMeans(2, random_state=0).fit([[0.0], [1.0], [9.0], [10.0]])
        >>> KMeans.from_state_dict(km.state_dict()).predict([[-3.0], [6.0]])
        array([1, 0])
        """
        return states.restored(cls, state)

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
        if self.metric != "euclidean":
            raise ValueError(
                f"`metric` must be 'euclidean' for scikit-learn, which has no other; got {self.metric!r}. Give rows and "
                "centroids length 1 (`sklearn.preprocessing.Normalizer`) to use them there."
            )
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
        return peer

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "cluster_centers_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        tags.array_api_support = True
        return tags
