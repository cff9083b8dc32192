"""How the estimators behave: what goes in, what comes out, and where it lives."""

import copy
import inspect
import io
import pickle
import re
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anykmeans import KMeans, MiniBatchKMeans, kmeans
from anykmeans.sources.rows import Rows

BOTH = pytest.mark.parametrize("cls", [KMeans, MiniBatchKMeans])


@pytest.fixture(scope="module")
def x():
    return make_blobs(n_samples=200, n_features=3, centers=4, random_state=0)[0]


def fitted(cls, x, **settings):
    return cls(4, random_state=0, **settings).fit(x)


# Arrays of every library


@BOTH
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_library_gives_the_bits_of_numpy(cls, dtype, x, backend):
    w = np.linspace(1, 2, len(x))
    ours = cls(4, random_state=0, n_init=2).fit(
        backend.make(x, dtype), sample_weight=backend.make(w)
    )
    theirs = cls(4, random_state=0, n_init=2).fit(x.astype(dtype), sample_weight=w)
    np.testing.assert_array_equal(backend.host(ours.cluster_centers_), theirs.cluster_centers_)
    np.testing.assert_array_equal(backend.host(ours.labels_), theirs.labels_)
    assert (ours.inertia_, ours.n_iter_) == (theirs.inertia_, theirs.n_iter_)
    assert backend.dtype_name(ours.cluster_centers_) == dtype


def test_a_stream_gives_the_bits_of_numpy(x, backend):
    ours, theirs = (MiniBatchKMeans(4, random_state=0, reassignment_ratio=0.9) for _ in range(2))
    for start in range(0, 200, 20):
        ours.partial_fit(backend.make(x[start : start + 20]))
        theirs.partial_fit(x[start : start + 20])
    np.testing.assert_array_equal(backend.host(ours.cluster_centers_), theirs.cluster_centers_)
    np.testing.assert_array_equal(ours._seen.counts, theirs._seen.counts)


@BOTH
def test_outputs_live_where_the_input_does(cls, x, backend):
    rows = backend.make(x)
    km = fitted(cls, rows)
    outputs = [km.cluster_centers_, km.labels_, km.predict(rows), km.transform(rows)]
    outputs += [km.fit_predict(rows), km.fit_transform(rows)]
    for a in outputs:
        assert type(a) is type(rows)
        assert getattr(a, "device", None) == getattr(rows, "device", None)
    assert isinstance(km.score(rows), float)
    assert isinstance(km.inertia_, float)
    assert isinstance(km.n_iter_, int)


@BOTH
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32", "uint8", "bool"])
def test_narrow_and_whole_numbers(cls, dtype, x, backend):
    if not backend.has_dtype(dtype):
        pytest.skip(f"{backend.library} has no {dtype}")
    values = (x > np.median(x, axis=0)) if dtype == "bool" else np.floor(x - x.min())
    settings = {"reassignment_ratio": 0.9} if cls is MiniBatchKMeans else {}
    km = fitted(cls, backend.make(values, dtype), **settings)
    assert backend.dtype_name(km.cluster_centers_) == ("float32" if "float" in dtype else "float64")
    same = fitted(cls, values.astype("float32" if "float" in dtype else "float64"), **settings)
    np.testing.assert_array_equal(backend.host(km.cluster_centers_), same.cluster_centers_)
    np.testing.assert_array_equal(backend.host(km.labels_), same.labels_)
    predicted = km.predict(backend.make(values, dtype))
    np.testing.assert_array_equal(backend.host(predicted), same.labels_)


@BOTH
def test_tensors_that_require_a_gradient(cls, x):
    torch = pytest.importorskip("torch", reason="needs torch")
    rows = torch.tensor(x, requires_grad=True)
    km = fitted(cls, rows)
    assert not km.transform(rows).requires_grad
    np.testing.assert_array_equal(km.cluster_centers_.numpy(), fitted(cls, x).cluster_centers_)


@BOTH
def test_weights_follow_the_rows(cls, x, backend):
    w = np.linspace(1, 2, len(x))
    expected = cls(4, random_state=0).fit(x, sample_weight=w)
    rows = backend.make(x)
    for weights in (w, w.tolist()):
        km = cls(4, random_state=0).fit(rows, sample_weight=weights)
        np.testing.assert_array_equal(backend.host(km.cluster_centers_), expected.cluster_centers_)
        assert km.score(rows, sample_weight=weights) == -km.inertia_


def test_one_number_as_weight(x):
    once = fitted(KMeans, x)
    twice = KMeans(4, random_state=0).fit(x, sample_weight=2)
    np.testing.assert_array_equal(once.labels_, twice.labels_)
    assert twice.inertia_ == 2 * once.inertia_


@BOTH
def test_rows_are_neither_written_to_nor_required_to_be_in_order(cls, x):
    expected = fitted(cls, x).cluster_centers_
    for rows in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[:, ::-1].copy()[:, ::-1]):
        before = rows.copy()
        rows.flags.writeable = False
        np.testing.assert_array_equal(fitted(cls, rows).cluster_centers_, expected)
        np.testing.assert_array_equal(rows, before)


# Moving


@BOTH
@pytest.mark.parametrize("method", ["predict", "transform", "score"])
def test_another_library_raises_with_the_line_that_fixes_it(cls, method, x):
    torch = pytest.importorskip("torch", reason="needs torch")
    km, X = fitted(cls, x), torch.tensor(x)
    with pytest.raises(ValueError, match="must use the same namespace and the same device") as info:
        getattr(km, method)(X)
    message = str(info.value)
    assert f"{cls.__name__}.{method}()" in message
    assert "numpy on cpu" in message
    assert "torch on cpu" in message
    line = message.splitlines()[-1].strip()
    assert line == 'km = km.to("torch", device="cpu")'
    scope = {"km": km, "X": X}
    exec(line, scope)
    expected = getattr(km, method)(x)
    np.testing.assert_array_equal(np.asarray(getattr(scope["km"], method)(X)), expected)

    with pytest.raises(ValueError, match=r'km = km\.to\("numpy"\)$'):
        getattr(scope["km"], method)(x)
    for other in (x.tolist(), sp.csr_array(x)):
        with pytest.raises(ValueError, match=r'km = km\.to\("numpy"\)$'):
            getattr(scope["km"], method)(other)


@BOTH
def test_another_device_raises_with_the_line_that_fixes_it(cls, x, strict):
    km, X = fitted(cls, strict.asarray(x)), strict.asarray(x, device=strict.Device("device1"))
    with pytest.raises(ValueError, match="must use the same namespace and the same device") as info:
        km.predict(X)
    line = str(info.value).splitlines()[-1].strip()
    scope = {"km": km, "X": X}
    exec(line, scope)
    assert scope["km"].cluster_centers_.device == X.device
    assert scope["km"].predict(X).device == X.device
    assert km.cluster_centers_.device != X.device


def test_a_stream_stays_in_one_library(x):
    torch = pytest.importorskip("torch", reason="needs torch")
    km = MiniBatchKMeans(4, random_state=0).partial_fit(x)
    with pytest.raises(ValueError, match=r"MiniBatchKMeans\.partial_fit\(\) must use the same"):
        km.partial_fit(torch.tensor(x))
    km.to("torch").partial_fit(torch.tensor(x))


@BOTH
def test_there_and_back(cls, x, backend):
    rows = backend.make(x)
    km = fitted(cls, x)
    before = pickle.dumps(km)
    there = km.to(rows)
    assert type(there.cluster_centers_) is type(rows)
    assert there.get_params() == km.get_params()
    np.testing.assert_array_equal(backend.host(there.predict(rows)), km.predict(x))
    assert there.score(rows) == km.score(x)
    back = there.to("numpy")
    np.testing.assert_array_equal(back.cluster_centers_, km.cluster_centers_)
    np.testing.assert_array_equal(back.labels_, km.labels_)
    assert pickle.dumps(km) == before
    back.cluster_centers_[:] = 0
    assert pickle.dumps(km) == before


def test_a_moved_stream_goes_on(x, backend):
    km = MiniBatchKMeans(4, random_state=0).partial_fit(x[:100])
    moved = km.to(backend.make(x))
    km.partial_fit(x[100:])
    moved.partial_fit(backend.make(x[100:]))
    np.testing.assert_array_equal(backend.host(moved.cluster_centers_), km.cluster_centers_)


def test_to_moves_init_too(x, backend):
    km = KMeans(4, init=x[:4]).fit(x).to(backend.make(x))
    again = clone(km).fit(backend.make(x))
    np.testing.assert_array_equal(backend.host(again.labels_), backend.host(km.labels_))


def test_to_wants_a_library(x):
    km = fitted(KMeans, x)
    with pytest.raises(ValueError, match="`library` must be one of"):
        km.to("tensorflow")
    with pytest.raises(TypeError, match="`library` must be a name"):
        km.to(4)
    with pytest.raises(NotFittedError):
        KMeans().to("numpy")


@BOTH
def test_as_sklearn_from_any_library(cls, x, backend):
    km = fitted(cls, backend.make(x))
    np.testing.assert_array_equal(km.as_sklearn().predict(x), backend.host(km.labels_))


def test_scikit_learn_moves_it_too(x, monkeypatch, strict):
    array_api = pytest.importorskip("sklearn.utils._array_api", reason="needs move_estimator_to")
    if not hasattr(array_api, "move_estimator_to"):
        pytest.skip("this scikit-learn has no move_estimator_to")
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    with config_context(array_api_dispatch=True):
        km = array_api.move_estimator_to(fitted(KMeans, x), strict, None)
    km.predict(strict.asarray(x))


@BOTH
def test_init_that_a_network_computed(cls, x):
    """Such a tensor cannot be copied with its history, which none of these needs."""
    torch = pytest.importorskip("torch", reason="needs torch")
    rows = torch.tensor(x)
    init = torch.nn.Linear(3, 3).double()(rows[:4])
    km = cls(4, init=init)
    assert km.init is init
    assert clone(km).init.grad_fn is None
    km.fit(rows)
    assert km.init is init
    assert not any(
        getattr(value, "requires_grad", False) for value in (km.cluster_centers_, km.labels_)
    )
    labels = km.predict(rows)
    for same in (copy.deepcopy(km), pickle.loads(pickle.dumps(km)), km.to("torch")):
        assert torch.equal(same.init, init)
        assert torch.equal(same.predict(rows), labels)
    np.testing.assert_array_equal(km.to("numpy").init, init.detach().numpy())
    np.testing.assert_array_equal(km.as_sklearn().predict(x), labels.numpy())
    search = GridSearchCV(cls(4, init=init), {"tol": [0.0, 1e-4]}, cv=2, error_score="raise")
    with pytest.raises(ValueError, match="`init` must live where `X` does"):  # and no other error
        search.fit(x)


# Centroids set by hand


def by_hand(cls, centers):
    km = cls(2, random_state=0)
    km.cluster_centers_ = centers
    return km


@BOTH
def test_centroids_set_by_hand(cls, backend):
    c, x = np.array([[0.0, 0.0], [5.0, 5.0]]), np.array([[4.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
    km, rows = by_hand(cls, backend.make(c)), backend.make(x)
    assert backend.host(km.predict(rows)).tolist() == [1, 0, 0]
    assert backend.host(km.transform(rows))[1, 0] == 1
    assert km.score(rows) == -3
    assert km.to("numpy").predict(x).tolist() == km.as_sklearn().predict(x).tolist() == [1, 0, 0]
    assert list(km.get_feature_names_out()) == [f"{cls.__name__.lower()}{j}" for j in range(2)]
    with pytest.raises(ValueError, match=r"X has 1 features, but .*KMeans is expecting 2 features"):
        km.predict(rows[:, :1])


@BOTH
def test_centroids_set_by_hand_and_rows_that_are_no_array(cls):
    pd = pytest.importorskip("pandas", reason="needs pandas")
    x = [[4.0, 4.0], [1.0, 0.0]]
    for centers in ([[0, 0], [5, 5]], np.array([[0, 0], [5, 5]]), pd.DataFrame([[0, 0], [5, 5]])):
        km = by_hand(cls, centers)
        for rows in (x, pd.DataFrame(x, columns=["a", "b"]), sp.csr_array(x), np.array(x)):
            assert km.predict(rows).tolist() == [1, 0]
            assert km.score(rows) == -3
        assert km.as_sklearn().score(x) == -3


def test_a_stream_from_centroids_set_by_hand(x, backend):
    km = MiniBatchKMeans(4, random_state=0)
    km.cluster_centers_ = backend.make(x[:4])
    given = MiniBatchKMeans(4, init=x[:4], random_state=0)
    for batch in (x[:90], x[90:]):
        km.partial_fit(backend.make(batch))
        given.partial_fit(batch)
    np.testing.assert_array_equal(backend.host(km.cluster_centers_), given.cluster_centers_)
    assert km.n_steps_ == 2
    km.cluster_centers_ = backend.make(x[:3])
    with pytest.raises(ValueError, match=r"`cluster_centers_` must have shape \(4, 3\)"):
        km.partial_fit(backend.make(x))


@pytest.mark.parametrize("put", [list, np.array, np.float16, np.float64, sp.csr_array])
def test_a_stream_goes_on_from_where_centroids_were_put(put):
    """As in scikit-learn, whose running sums are centroids times counts."""
    km = MiniBatchKMeans(2, init=np.array([[0.0], [10.0]]), reassignment_ratio=0, random_state=0)
    km.partial_fit([[0.0], [1.0], [9.0], [10.0]])
    km.cluster_centers_ = put([[1], [13]])
    km.partial_fit([[10.0], [10.0]])
    assert km.cluster_centers_.tolist() == [[1.0], [11.5]]


# Frames and names


@BOTH
def test_pandas_frames(cls, x):
    pd = pytest.importorskip("pandas", reason="needs pandas")
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    km = fitted(cls, frame)
    assert list(km.feature_names_in_) == ["a", "b", "c"]
    assert km.n_features_in_ == 3
    np.testing.assert_array_equal(km.labels_, fitted(cls, x).labels_)
    np.testing.assert_array_equal(km.predict(frame), km.labels_)
    with pytest.raises(ValueError, match="feature names should match"):
        km.predict(frame[["b", "a", "c"]])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        km.predict(x)


@BOTH
def test_polars_frames(cls, x):
    pl = pytest.importorskip("polars", reason="needs polars")
    frame = pl.DataFrame(x, schema=["a", "b", "c"])
    km = fitted(cls, frame)
    assert list(km.feature_names_in_) == ["a", "b", "c"]
    np.testing.assert_array_equal(km.predict(frame), fitted(cls, x).labels_)
    km.set_output(transform="polars")
    out = km.transform(frame)
    assert isinstance(out, pl.DataFrame)
    assert out.columns == [f"{cls.__name__.lower()}{j}" for j in range(4)]


@BOTH
def test_frames_of_several_types(cls, x):
    pd = pytest.importorskip("pandas", reason="needs pandas")
    pl = pytest.importorskip("polars", reason="needs polars")
    whole, flag = np.round(x[:, 0] * 10).astype(int), x[:, 1] > 0
    expected = fitted(cls, np.column_stack([whole, flag, x[:, 2]]))
    columns = {
        "a": pd.array(whole, dtype="Int64"),
        "b": pd.array(flag, dtype="boolean"),
        "c": x[:, 2],
    }
    for frame in (pd.DataFrame(columns), pl.DataFrame({"a": whole, "b": flag, "c": x[:, 2]})):
        km = fitted(cls, frame)
        np.testing.assert_array_equal(km.cluster_centers_, expected.cluster_centers_)
        np.testing.assert_array_equal(km.predict(frame), expected.labels_)
        assert list(km.feature_names_in_) == ["a", "b", "c"]
    narrow = pd.DataFrame({"b": flag, "c": x[:, 2].astype("float32")})
    assert fitted(cls, narrow).cluster_centers_.dtype == np.float32
    assert fitted(cls, pd.DataFrame(x).astype(object)).inertia_ == fitted(cls, x).inertia_


def test_set_output(x):
    pd = pytest.importorskip("pandas", reason="needs pandas")
    frame = pd.DataFrame(x, columns=["a", "b", "c"], index=np.arange(len(x)) + 7)
    km = KMeans(4, random_state=0).set_output(transform="pandas")
    out = km.fit_transform(frame)
    assert list(out.columns) == ["kmeans0", "kmeans1", "kmeans2", "kmeans3"]
    assert list(out.columns) == list(km.get_feature_names_out())
    assert (out.index == frame.index).all()
    pd.testing.assert_frame_equal(out, km.transform(frame))


@BOTH
def test_the_number_of_features_is_checked_everywhere(cls, x, backend):
    km = fitted(cls, backend.make(x))
    assert km.n_features_in_ == 3
    with pytest.raises(ValueError, match=r"X has 2 features, but .*KMeans is expecting 3 features"):
        km.predict(backend.make(x[:, :2]))


# The manners of an estimator


@BOTH
def test_clone_and_parameters(cls, x):
    km = cls(4, init=x[:4], random_state=3)
    same = clone(km)
    assert same.get_params().keys() == km.get_params().keys()
    assert same.init is not km.init
    np.testing.assert_array_equal(same.init, km.init)
    assert km.set_params(n_clusters=5) is km
    assert km.n_clusters == 5


@BOTH
def test_pickle(cls, x, backend):
    rows = backend.make(x)
    if backend.library == "array_api_strict" and "__reduce__" not in vars(type(rows)):
        pytest.skip("arrays of this array-api-strict cannot be pickled")
    km = fitted(cls, rows)
    again = pickle.load(io.BytesIO(pickle.dumps(km)))
    np.testing.assert_array_equal(backend.host(again.predict(rows)), backend.host(km.labels_))
    copied = copy.deepcopy(km)
    assert copied.score(rows) == km.score(rows)


@BOTH
def test_html_and_text(cls, x):
    km = cls(4, empty="keep") if cls is KMeans else cls(4)
    assert cls.__name__ in km._repr_html_()
    assert repr(km).startswith(f"{cls.__name__}(")
    assert "n_clusters=4" in repr(km)


@BOTH
def test_metadata_routing(cls, x):
    w = np.linspace(0, 1, len(x))
    with config_context(enable_metadata_routing=True):
        km = cls(4, random_state=0).set_fit_request(sample_weight=True)
        km.set_score_request(sample_weight=True)
        pipe = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), km)
        pipe.fit(x, sample_weight=w)
        routed = pipe.score(x, sample_weight=w)
    scaled = StandardScaler().fit_transform(x)
    alone = cls(4, random_state=0).fit(scaled, sample_weight=w)
    np.testing.assert_array_equal(pipe[-1].cluster_centers_, alone.cluster_centers_)
    assert routed == alone.score(scaled, sample_weight=w)


@BOTH
def test_unfitted(cls, x):
    for method in ("predict", "transform", "score"):
        with pytest.raises(NotFittedError):
            getattr(cls(), method)(x)
    with pytest.raises(NotFittedError):
        cls().as_sklearn()
    km = cls(4)
    with pytest.raises(ValueError, match="finite"):
        km.fit(np.full_like(x, np.nan))
    with pytest.raises(NotFittedError):
        km.predict(x)


def test_a_bad_batch_leaves_a_stream_as_it_was(x):
    km = MiniBatchKMeans(4, random_state=0)
    for _ in range(2):
        with pytest.raises(ValueError, match="finite"):
            km.partial_fit(np.full_like(x, np.nan))
        km.partial_fit(x)
    expected = MiniBatchKMeans(4, random_state=0).partial_fit(x).partial_fit(x)
    np.testing.assert_array_equal(km.cluster_centers_, expected.cluster_centers_)
    assert km.n_steps_ == 2


def test_the_estimator_is_the_function(x):
    km = KMeans(4, random_state=7).fit(x)
    result = kmeans(x, 4, rng=np.random.RandomState(7))
    np.testing.assert_array_equal(km.cluster_centers_, result.centroids)
    np.testing.assert_array_equal(km.labels_, result.labels)
    assert (km.inertia_, km.n_iter_) == (result.inertia, result.n_iter)
    assert (km.converged_, km.kernel_) == (result.converged, result.kernel)


def test_labels_match_the_centroids_when_stopped_early(x):
    km = KMeans(4, max_iter=1, init="random", n_init=1, random_state=0).fit(x)
    assert not km.converged_
    np.testing.assert_array_equal(km.predict(x), km.labels_)
    assert km.score(x) == -km.inertia_


@BOTH
def test_scalable_init(cls, x):
    km = fitted(cls, x, init="k-means||")
    assert km.score(x) == pytest.approx(fitted(cls, x).score(x), rel=0.5)


@BOTH
def test_quiet_unless_asked(cls, x, backend, capsys):
    rows = backend.make(x)
    quiet = fitted(cls, rows)
    assert capsys.readouterr().out == ""
    km = fitted(cls, rows, verbose=1)
    lines = capsys.readouterr().out.splitlines()
    word, number = ("Iteration", "n_iter_") if cls is KMeans else ("Minibatch step", "n_steps_")
    assert sum(line.startswith(word) for line in lines) == getattr(km, number)
    np.testing.assert_array_equal(
        backend.host(km.cluster_centers_), backend.host(quiet.cluster_centers_)
    )
    assert (km.n_iter_, km.inertia_) == (quiet.n_iter_, quiet.inertia_)


# What fails


def state(km):
    """Everything a model holds, in bytes."""
    return pickle.dumps(vars(km))


def broken(*_args, **_options):
    raise KeyboardInterrupt


REFUSED = [
    {"X": np.full((30, 5), np.nan)},
    {"X": np.ones(30)},
    {"X": [["a", "b", "c"]] * 30},
    {"sample_weight": -np.ones(200)},
    {"sample_weight": np.full(200, np.nan)},
    {"sample_weight": np.ones(3)},
    {"X": np.eye(3)},
    {"n_clusters": 201},
    {"init": np.ones((2, 2))},
    {"init": "best"},
    {"init": broken},
    {"n_init": 0},
    {"max_iter": 0},
    {"tol": -1},
    {"random_state": "seed"},
    {"max_bytes": 1},
    {"kernel": "abacus"},
    {"algorithm": "auto"},
    {"empty": "drop"},
    {"precision": "double"},
    {"batch_size": 0},
    {"init_size": 0},
    {"max_no_improvement": -1},
    {"reassignment_ratio": -1},
]


@BOTH
@pytest.mark.parametrize("wrong", REFUSED, ids=lambda wrong: next(iter(wrong)))
def test_a_refused_fit_leaves_the_model_as_it_was(cls, wrong, x):
    pd = pytest.importorskip("pandas", reason="needs pandas")
    settings = {name: value for name, value in wrong.items() if name not in ("X", "sample_weight")}
    if settings.keys() - cls().get_params().keys():
        pytest.skip("a parameter of the other estimator")
    frame = pd.DataFrame(x, columns=list("abc"))
    km = fitted(cls, frame).set_params(**settings)
    before = state(km)
    with pytest.raises((ValueError, TypeError, KeyboardInterrupt)):
        km.fit(
            wrong.get("X", frame.rename(columns=str.upper)),
            sample_weight=wrong.get("sample_weight"),
        )
    assert state(km) == before
    fresh = cls(**{"n_clusters": 4, **settings})
    with pytest.raises((ValueError, TypeError, KeyboardInterrupt)):
        fresh.fit(wrong.get("X", x), sample_weight=wrong.get("sample_weight"))
    assert vars(fresh) == cls(**{"n_clusters": 4, **settings}).get_params()


@pytest.mark.parametrize("wrong", REFUSED[:6], ids=lambda wrong: next(iter(wrong)))
@pytest.mark.parametrize("fits", [0, 1, 2])
def test_a_refused_batch_leaves_a_stream_as_it_was(wrong, fits, x):
    km = MiniBatchKMeans(4, random_state=np.random.RandomState(0), reassignment_ratio=0.9)
    for _ in range(fits):
        km.partial_fit(x)
    before = state(km)
    with pytest.raises((ValueError, TypeError)):
        km.partial_fit(wrong.get("X", x), sample_weight=wrong.get("sample_weight"))
    assert state(km) == before


@pytest.mark.parametrize("seed", [0, np.random.RandomState(0)], ids=["int", "generator"])
def test_an_interrupted_batch_leaves_its_generator_as_it_was(seed, x, monkeypatch):
    km = MiniBatchKMeans(4, random_state=seed, reassignment_ratio=0.9)
    twin = copy.deepcopy(km)
    for _ in range(3):
        before = state(km)

        def interrupted(*_args, before=before):  # when rows to move clusters to have been drawn
            assert state(km) != before
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("anykmeans.estimators.minibatch.like", interrupted)
            with pytest.raises(KeyboardInterrupt):
                km.partial_fit(x)
        assert state(km) == before
        km.partial_fit(x)
        twin.partial_fit(x)
        np.testing.assert_array_equal(km.cluster_centers_, twin.cluster_centers_)


# Words


@BOTH
def test_warnings_name_the_callers_line(cls, x):
    pytest.importorskip("torch", reason="what is between is PyTorch's, too")
    few = np.repeat(x[:2], 3, axis=0)
    settings = {"init": few[:3], "n_init": 3}
    kinds = {RuntimeWarning, ConvergenceWarning} if cls is KMeans else {RuntimeWarning}
    for model in (cls(3, **settings), make_pipeline(StandardScaler(), cls(3, **settings))):
        for method in ("fit", "fit_predict", "fit_transform"):
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                line = getattr(model, method)(few) is None or inspect.currentframe().f_lineno
            assert {each.category for each in seen} == kinds
            assert {(each.filename, each.lineno) for each in seen} == {(__file__, line)}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        kmeans(few, 3, rng=0)
    assert [each.filename for each in seen] == [__file__]


def test_where_scikit_learn_warns_of_few_clusters_so_do_we(x):
    words = (
        r"^Number of distinct clusters \(2\) found smaller than n_clusters \(3\)\. "
        r"Possibly due to duplicate points in X\."
    )
    with pytest.warns(ConvergenceWarning, match=words):
        KMeans(3, random_state=0).fit(np.repeat(x[:2], 3, axis=0))


def test_one_cluster_and_elkan(x):
    with pytest.warns(RuntimeWarning, match="^algorithm='elkan' doesn't make sense for a single"):
        KMeans(1, algorithm="elkan").fit(x)


# Bad input


@BOTH
def test_masked_values(cls, x):
    masked = np.ma.masked_greater(x, 5)
    assert masked.mask.any()
    km = fitted(cls, x)
    methods = ["fit", "fit_predict", "fit_transform", "predict", "transform", "score"]
    for method in methods + (["partial_fit"] if cls is MiniBatchKMeans else []):
        for rows in (masked, list(masked)):
            with pytest.raises(
                ValueError, match=r"^`X` must have no masked values; got \d+ of them"
            ):
                getattr(km, method)(rows)
    w = np.ma.masked_equal(np.arange(200.0), 3)
    for method in (km.fit, km.score):
        with pytest.raises(ValueError, match=r"^`sample_weight` must have no masked values; got 1"):
            method(x, sample_weight=w)
    part = np.ma.masked_less(x[:4], 100)
    for init in (part, lambda *_args, **_options: part, list(part)):
        with pytest.raises(ValueError, match=r"^`init` must have no masked values"):
            cls(4, init=init).fit(x)
    km.cluster_centers_ = np.ma.masked_less(km.cluster_centers_, 100)
    for call in (
        km.predict,
        km.transform,
        km.score,
        lambda _: km.to("numpy"),
        lambda _: km.as_sklearn(),
    ):
        with pytest.raises(ValueError, match=r"^`cluster_centers_` must have no masked values"):
            call(x)
    np.testing.assert_array_equal(fitted(cls, np.ma.array(x)).labels_, fitted(cls, x).labels_)


@BOTH
def test_errors_speak_of_what_the_estimator_was_given(cls, x, backend):
    spoiled = x.copy()
    spoiled[3, 1] = np.nan
    huge = np.full_like(x, 1.7e308)
    calls = [
        (lambda: cls(2).fit(backend.make(spoiled)), "^`X` must be finite"),
        (
            lambda: fitted(cls, backend.make(x)).predict(backend.make(spoiled)),
            "^`X` must be finite",
        ),
        (lambda: fitted(cls, backend.make(x)).transform(backend.make(spoiled)), "^`X` must be fin"),
        (lambda: cls(2).fit(backend.make(huge)), "^`X` must add up"),
        (lambda: cls(300).fit(backend.make(x)), r"^`n_clusters` must .* n_clusters=300 with X of"),
        (lambda: cls(2, kernel="cupy").fit(backend.make(x)), "^`kernel`='cupy' cannot run here"),
        (lambda: cls(2, max_bytes=1).fit(backend.make(x)), "^`max_bytes` must hold"),
        (
            lambda: cls(2, init="random").fit(backend.make(x), sample_weight=np.eye(1, 200)[0]),
            "^`sample_weight` must be positive for at least n_clusters=2 rows .* got 1 such",
        ),
    ]
    for call, words in calls:
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert not re.search(r"\bx\b", str(caught.value))


@BOTH
def test_what_is_no_array_is_refused_in_words(cls, x):
    pl = pytest.importorskip("polars", reason="needs polars")
    pd = pytest.importorskip("pandas", reason="needs pandas")
    for rows, words in [
        (pd.Series(x[:, 0]), r"^`X` must .*`X\.to_frame\(\)`"),
        (pd.Series(list(x)), r"^`X` must .*`numpy\.stack\(X\)`"),
        (pl.DataFrame(x).lazy(), r"^`X` must .*`X\.collect\(\)`"),
        ((row for row in x), r"^`X` must .*`list\(X\)`"),
        ({"a": x[:, 0]}, r"^`X` must .*`numpy\.column_stack"),
        (pd.DataFrame({"a": pd.array([1, None, 3], dtype="Int64"), "b": [1.0, 2, 3]}), "missing"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            cls(2).fit(rows)


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(cls, bad, x, backend):
    spoiled = x.copy()
    spoiled[-1, 1] = bad
    km = fitted(cls, backend.make(x))
    for method in (cls(4, batch_size=5).fit if cls is MiniBatchKMeans else cls(4).fit, km.predict):
        with pytest.raises(ValueError, match=r"NaN|inf"):
            method(backend.make(spoiled))
    with pytest.raises(ValueError, match=r"NaN|inf"):
        km.transform(backend.make(spoiled))


@BOTH
@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"n_clusters": 0}, ValueError, "`n_clusters`"),
        ({"n_clusters": 201}, ValueError, "n_samples=200 should be >= n_clusters=201"),
        ({"n_clusters": 2.0}, TypeError, "`n_clusters`"),
        ({"n_clusters": True}, TypeError, "`n_clusters`"),
        ({"init": "kmeans++"}, ValueError, "`init`"),
        (
            {"init": [[0, 0, 0]] * 3},
            ValueError,
            r"`init` must have shape \(8, 3\), .* features of X",
        ),
        ({"init": [[0, 0]] * 8}, ValueError, "`init` must have shape"),
        ({"n_init": 0}, ValueError, "`n_init`"),
        ({"n_init": "many"}, TypeError, "`n_init`"),
        ({"max_iter": 0}, ValueError, "`max_iter`"),
        ({"tol": -1}, ValueError, "`tol`"),
        ({"tol": "small"}, TypeError, "`tol`"),
        ({"kernel": "abacus"}, ValueError, "`kernel`"),
        ({"max_bytes": -1}, ValueError, "`max_bytes`"),
        ({"random_state": "seed"}, ValueError, "seed"),
    ],
    ids=str,
)
def test_impossible_parameters(cls, settings, error, match, x):
    with pytest.raises(error, match=match):
        cls(**settings).fit(x)


@pytest.mark.parametrize(
    "settings",
    [{"algorithm": "auto"}, {"empty": "drop"}, {"precision": "double"}],
    ids=str,
)
def test_impossible_parameters_of_kmeans(settings, x):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must be one of"):
        KMeans(4, **settings).fit(x)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"batch_size": 0}, ValueError),
        ({"batch_size": 1.5}, TypeError),
        ({"init_size": 0}, ValueError),
        ({"max_no_improvement": -1}, ValueError),
        ({"reassignment_ratio": -0.1}, ValueError),
        ({"reassignment_ratio": "some"}, ValueError),
    ],
    ids=str,
)
def test_impossible_parameters_of_mini_batches(settings, error, x):
    for method in ("fit", "partial_fit"):
        with pytest.raises(error, match=f"`{next(iter(settings))}` must be"):
            getattr(MiniBatchKMeans(4, **settings), method)(x)


@BOTH
@pytest.mark.parametrize(
    ("weights", "match"),
    [
        (-1.0, "negative"),
        (0.0, "zero"),
        (np.nan, "finite"),
        (np.ones(3), "shape"),
        (np.ones((200, 1)), "shape"),
    ],
    ids=str,
)
def test_impossible_weights(cls, weights, match, x):
    for method in (cls(4).fit, fitted(cls, x).score):
        with pytest.raises(ValueError, match=match):
            method(x, sample_weight=weights)
    w = np.ones(200)
    w[-1] = -1
    with pytest.raises(ValueError, match="negative"):
        cls(4).fit(x, sample_weight=w)


@BOTH
def test_an_array_as_init_starts_once(cls, x):
    words = (
        rf"^Explicit initial .*: performing only one init in {cls.__name__} instead of n_init=5\."
    )
    with pytest.warns(RuntimeWarning, match=words):
        cls(4, init=x[:4], n_init=5).fit(x)


def test_a_small_init_size_is_raised(x):
    with pytest.warns(RuntimeWarning, match="^init_size=2 should be larger than n_clusters=4"):
        MiniBatchKMeans(4, init_size=2).fit(x)


@BOTH
def test_init_stays_where_it_is(cls, x):
    torch = pytest.importorskip("torch", reason="needs torch")
    with pytest.raises(ValueError, match=r"`init` must live where `X` does; .* and X of numpy"):
        cls(4, init=torch.tensor(x[:4])).fit(x)


@BOTH
@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (np.ones(5), ValueError),
        (np.ones((2, 2, 2)), ValueError),
        (np.empty((0, 2)), ValueError),
        (np.empty((4, 0)), ValueError),
        (np.ones((4, 2), dtype=complex), ValueError),
    ],
    ids=["1-d", "3-d", "no rows", "no features", "complex"],
)
def test_impossible_rows(cls, bad, error, backend):
    with pytest.raises(error):
        cls(2).fit(backend.make(bad))


@BOTH
def test_words_are_no_rows(cls):
    for bad in ([["a", "b"], ["c", "d"]], np.array([["a"], ["b"]], dtype=object)):
        with pytest.raises(ValueError, match=r"numeric|convert"):
            cls(2).fit(bad)


@BOTH
@pytest.mark.parametrize("name", ["cpu", "agnostic"])
def test_kernel_and_memory_are_those_asked_for(cls, name, x, monkeypatch):
    asked = []

    class Spy(Rows):
        def __init__(self, matrix, weights, kernel, **options):
            super().__init__(matrix, weights, kernel, **options)
            asked.append((kernel.name, self.work.max_bytes))

    monkeypatch.setattr("anykmeans.sources.rows.Rows", Spy)
    for module in ("_kmeans", "_runs", "_evaluate", "estimators.minibatch"):
        monkeypatch.setattr(f"anykmeans.{module}.Rows", Spy)
    settings = {"kernel": name, "max_bytes": 123_456, "random_state": 0}
    if cls is MiniBatchKMeans:
        settings |= {"batch_size": 20, "tol": 1e-4, "n_init": 2, "reassignment_ratio": 0.9}
    km = cls(4, **settings).fit(x, sample_weight=np.ones(200))
    for method in ("predict", "transform", "score", "fit_predict", "fit_transform"):
        getattr(km, method)(x)
    if cls is MiniBatchKMeans:
        km.partial_fit(x)
        cls(4, init="k-means||", **settings).partial_fit(x)
    assert set(asked) == {(name, 123_456)}


# Seeds


def test_who_obeys_the_global_seed(x):
    """`KMeans` does, as in scikit-learn; `kmeans` draws afresh."""

    def found(fit):
        inertias = set()
        for _ in range(4):
            np.random.seed(3)
            inertias.add(fit())
        return len(inertias)

    assert found(lambda: KMeans(20).fit(x).inertia_) == 1
    assert found(lambda: kmeans(x, 20).inertia) > 1


# Mini-batches


def test_late_batches_of_a_long_float32_stream_still_count():
    km = MiniBatchKMeans(1, random_state=0, reassignment_ratio=0, compute_labels=False)
    batch = np.full((1000, 1), 1000.0, dtype="float32")
    batch[0] += 1  # moves the mean by 1e-3, far below what is added to it in a step
    for _ in range(300):
        km.partial_fit(batch)
    assert km._seen.counts[0] == 300_000
    assert km.cluster_centers_[0, 0] == np.float32(1000.001)


def test_labels_of_an_earlier_fit_do_not_linger(x):
    km = fitted(MiniBatchKMeans, x)
    km.set_params(compute_labels=False).fit(x)
    assert not hasattr(km, "labels_")
    np.testing.assert_array_equal(km.fit_predict(x), km.predict(x))
    assert np.isfinite(km.inertia_)


def test_a_single_step_without_labels(x):
    km = MiniBatchKMeans(4, max_iter=1, compute_labels=False, random_state=0).fit(x)
    assert km.n_steps_ == 1
    assert np.isfinite(km.inertia_)


def test_every_cluster_below_the_ratio(x):
    km = fitted(MiniBatchKMeans, x, reassignment_ratio=2.0, batch_size=20)
    assert np.isfinite(km.cluster_centers_).all()


def test_batches_are_drawn_as_choice_draws_them(x):
    w = np.random.RandomState(1).uniform(size=50)
    chances = np.cumsum(w / w.sum())
    chances /= chances[-1]
    drawn = chances.searchsorted(np.random.RandomState(0).random_sample(1000), side="right")
    expected = np.random.RandomState(0).choice(50, 1000, p=w / w.sum())
    np.testing.assert_array_equal(drawn, expected)


@pytest.mark.parametrize(
    "settings",
    [{}, {"init": "random"}, {"init": "k-means||"}, {"n_init": 3}, {"n_init": 3, "init": "random"}],
    ids=str,
)
def test_few_rows_with_weight(settings, backend):
    """They are all there is: no centroid comes from elsewhere."""
    x = np.random.default_rng(0).normal(size=(20_000, 2))
    w = np.zeros(20_000)
    w[5_000:5_020] = 1
    x[w == 0] += 100
    km = MiniBatchKMeans(3, batch_size=100, random_state=0, **settings)
    for fit in (km.fit, clone(km).partial_fit):
        centers = fit(backend.make(x), sample_weight=w).cluster_centers_
        assert np.abs(backend.host(centers)).max() < 50


def test_fewer_rows_with_weight_than_clusters(x):
    w = np.zeros(200)
    w[:20] = 1
    few = MiniBatchKMeans(30, batch_size=10, init="random", random_state=0)
    with pytest.raises(ValueError, match=r"at least n_clusters=30 rows .* got 20 such rows"):
        few.fit(x, sample_weight=w)
    few.set_params(init="k-means++").fit(x, sample_weight=w)


def test_a_sample_has_enough_rows_with_weight():
    x = np.random.default_rng(0).normal(size=(20_000, 2))
    w = (np.random.default_rng(0).random(20_000) < 0.01) * 1.0
    MiniBatchKMeans(50, random_state=0, init="random").fit(x, sample_weight=w)


def test_only_proportions_of_weights_matter(x):
    w = np.random.default_rng(0).uniform(size=200)
    km = MiniBatchKMeans(4, random_state=0, n_init=3)
    plain = clone(km).fit(x, sample_weight=w)
    for scale in (2.0**1020, 2.0**-1000):
        scaled = clone(km).fit(x, sample_weight=w * scale)
        np.testing.assert_array_equal(scaled.cluster_centers_, plain.cluster_centers_)


def test_no_cluster_moves_to_a_row_without_weight(x):
    w = np.zeros(200)
    w[:50] = 1
    far = np.where(w[:, None] > 0, x, 1e6)
    km = MiniBatchKMeans(4, init=np.vstack([x[:3], x[:1] + 1e3]), random_state=0)
    for _ in range(5):
        km.partial_fit(far, sample_weight=w)
    assert np.abs(km.cluster_centers_).max() < 2e3
