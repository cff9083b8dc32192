"""How the estimators behave: what goes in, what comes out, and where it lives."""

import copy
import io
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from anykmeans import KMeans, MiniBatchKMeans, kmeans

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
    np.testing.assert_array_equal(ours._seen[1], theirs._seen[1])


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
def test_another_device_raises_with_the_line_that_fixes_it(cls, x):
    xp = pytest.importorskip("array_api_strict", reason="needs array-api-strict")
    km, X = fitted(cls, xp.asarray(x)), xp.asarray(x, device=xp.Device("device1"))
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


def test_scikit_learn_moves_it_too(x, monkeypatch):
    xp = pytest.importorskip("array_api_strict", reason="needs array-api-strict")
    array_api = pytest.importorskip("sklearn.utils._array_api", reason="needs move_estimator_to")
    if not hasattr(array_api, "move_estimator_to"):
        pytest.skip("this scikit-learn has no move_estimator_to")
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")
    with config_context(array_api_dispatch=True):
        km = array_api.move_estimator_to(fitted(KMeans, x), xp, None)
    km.predict(xp.asarray(x))


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
    if backend.library == "array_api_strict":
        pytest.skip("array-api-strict arrays cannot be pickled")
    rows = backend.make(x)
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


def test_quiet_unless_asked(x, capsys):
    fitted(KMeans, x)
    fitted(MiniBatchKMeans, x)
    assert capsys.readouterr().out == ""
    fitted(KMeans, x, verbose=1)
    assert "KMeans: converged after" in capsys.readouterr().out
    km = fitted(MiniBatchKMeans, x, verbose=1)
    assert capsys.readouterr().out.count("MiniBatchKMeans: step") == km.n_steps_


# Bad input


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
        ({"init": [[0, 0, 0]] * 3}, ValueError, "`init` must have shape"),
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
    with pytest.warns(RuntimeWarning, match="there is one start, not n_init=5"):
        cls(4, init=x[:4], n_init=5).fit(x)


def test_a_small_init_size_is_raised(x):
    with pytest.warns(RuntimeWarning, match="`init_size` should be at least n_clusters=4"):
        MiniBatchKMeans(4, init_size=2).fit(x)


@BOTH
def test_init_stays_where_it_is(cls, x):
    torch = pytest.importorskip("torch", reason="needs torch")
    with pytest.raises(ValueError, match="`init` must live where `x` does"):
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


# Mini-batches


def test_late_batches_of_a_long_float32_stream_still_count():
    km = MiniBatchKMeans(1, random_state=0, reassignment_ratio=0, compute_labels=False)
    batch = np.full((1000, 1), 1000.0, dtype="float32")
    batch[0] += 1  # moves the mean by 1e-3, far below what is added to it in a step
    for _ in range(300):
        km.partial_fit(batch)
    assert km._seen[1][0] == 300_000
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
