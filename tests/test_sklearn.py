"""The estimators against scikit-learn: its own checks, and its own results."""

import re
import warnings

import numpy as np
import pytest
import scipy
import scipy.sparse as sp
import sklearn.cluster
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.fixes import parse_version

import anykmeans
from anykmeans import KMeans, MiniBatchKMeans, kmeans_plusplus

# What scikit-learn expects to fail for its own two, for its own reason (instance_generator.py).
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "k-means++ draws by position: repeated or shuffled rows give other first centroids."
    ),
    "check_sample_weight_equivalence_on_sparse_data": (
        "k-means++ draws by position: repeated or shuffled rows give other first centroids."
    ),
}

if parse_version(scipy.__version__) < parse_version("1.14"):
    EXPECTED_FAILURES["check_array_api_input"] = "scikit-learn asks for SciPy 1.14."

AS_NOW = pytest.mark.skipif(
    parse_version(sklearn.__version__) < parse_version("1.9"),
    reason="before 1.9, scikit-learn drew its batches in another way",
)


@pytest.fixture
def array_api(monkeypatch):
    """Let scikit-learn's checks hand over arrays of other libraries."""
    monkeypatch.setenv("SCIPY_ARRAY_API", "1")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("array_api")
@parametrize_with_checks(
    [
        KMeans(n_clusters=2, n_init=2, max_iter=5),
        MiniBatchKMeans(n_clusters=2, n_init=2, max_iter=5, batch_size=10),
    ],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", [KMeans(n_init=1), MiniBatchKMeans(batch_size=20)])
def test_check_estimator_with_the_defaults(estimator):
    check_estimator(estimator, expected_failed_checks=EXPECTED_FAILURES)


def data(name):
    if name == "digits":
        return load_digits().data, 10
    if name == "scaled digits":
        return StandardScaler().fit_transform(load_digits().data), 10
    return make_blobs(n_samples=600, n_features=4, centers=7, cluster_std=1.5, random_state=3)[0], 7


def same_clustering(ours, theirs):
    """Both fits found one and the same clustering."""
    assert adjusted_rand_score(ours.labels_, theirs.labels_) == 1
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-9, atol=1e-9)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-6)
    assert ours.n_iter_ == theirs.n_iter_


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["blobs", "scaled digits"])
def test_kmeans_finds_what_scikit_learn_finds(name, seed):
    x, k = data(name)
    same_clustering(
        KMeans(k, random_state=seed).fit(x),
        sklearn.cluster.KMeans(k, random_state=seed).fit(x),
    )


@pytest.mark.parametrize(("name", "k"), [("s1", 15), ("a1", 20), ("unbalance", 8), ("dim064", 16)])
def test_real_data(name, k, real):
    x = real(name).astype(np.float64)
    for seed in range(3):
        same_clustering(
            KMeans(k, random_state=seed).fit(x),
            sklearn.cluster.KMeans(k, random_state=seed).fit(x),
        )


def test_where_scikit_learn_finds_another_clustering_rows_are_tied():
    """Whole numbers tie often; there it goes by rounding errors and we by the lowest label."""
    x, k = data("digits")
    differ = 0
    for seed in range(12):
        ours = KMeans(k, random_state=seed).fit(x)
        theirs = sklearn.cluster.KMeans(k, random_state=seed).fit(x)
        if adjusted_rand_score(ours.labels_, theirs.labels_) == 1:
            same_clustering(ours, theirs)
            continue
        differ += 1
        start, rows = kmeans_plusplus(x, k, random_state=seed)
        centred = x - x.mean(axis=0)
        picked = sklearn.cluster.kmeans_plusplus(centred, k, random_state=seed)[1]
        np.testing.assert_array_equal(rows, picked)
        nearest = np.sort(((x[:, None] - start) ** 2).sum(axis=2), axis=1)
        assert (nearest[:, 0] == nearest[:, 1]).any()
    assert differ <= 3


@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("n_init", ["auto", 3])
def test_the_same_of_many_starts(init, n_init):
    x, k = data("blobs")
    settings = {"init": init, "n_init": n_init, "random_state": 0}
    same_clustering(KMeans(k, **settings).fit(x), sklearn.cluster.KMeans(k, **settings).fit(x))


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_one_iteration_from_the_same_first_centroids(init):
    x, k = data("scaled digits")
    settings = {"init": init, "n_init": 1, "max_iter": 1, "random_state": 5}
    same_clustering(KMeans(k, **settings).fit(x), sklearn.cluster.KMeans(k, **settings).fit(x))


def test_an_array_or_a_callable_as_init():
    x, k = data("blobs")
    same_clustering(KMeans(k, init=x[:k]).fit(x), sklearn.cluster.KMeans(k, init=x[:k]).fit(x))
    same_clustering(
        KMeans(k, init=x[:k].tolist()).fit(x.tolist()), sklearn.cluster.KMeans(k, init=x[:k]).fit(x)
    )

    def first(X, n_clusters, *, random_state):
        return X[random_state.permutation(X.shape[0])[:n_clusters]]

    settings = {"init": first, "random_state": 0}
    same_clustering(KMeans(k, **settings).fit(x), sklearn.cluster.KMeans(k, **settings).fit(x))


def test_weights():
    x, k = data("blobs")
    w = np.random.RandomState(0).randint(1, 5, x.shape[0]).astype(float)
    ours = KMeans(k, random_state=1).fit(x, sample_weight=w)
    theirs = sklearn.cluster.KMeans(k, random_state=1).fit(x, sample_weight=w)
    same_clustering(ours, theirs)
    assert ours.score(x, sample_weight=w) == pytest.approx(theirs.score(x, sample_weight=w))
    assert ours.score(x, sample_weight=w) == -ours.inertia_


def test_predict_transform_and_score():
    x, k = data("digits")
    ours = KMeans(k, random_state=0).fit(x[:1000])
    theirs = sklearn.cluster.KMeans(k, random_state=0).fit(x[:1000])
    np.testing.assert_array_equal(ours.predict(x), theirs.predict(x))
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), rtol=1e-9)
    assert ours.score(x) == pytest.approx(theirs.score(x))
    assert isinstance(ours.score(x), float)


def test_a_tolerance_stops_at_the_same_iteration():
    x, k = data("digits")
    for tol in (1e-2, 1e-3, 0):
        same_clustering(
            KMeans(k, tol=tol, random_state=2).fit(x),
            sklearn.cluster.KMeans(k, tol=tol, random_state=2).fit(x),
        )


def test_empty_clusters_are_relocated_as_in_scikit_learn():
    x = np.array([[0.0], [1.0], [10.0], [11.0], [30.0]])
    init = np.array([[0.0], [11.0], [1000.0]])
    same_clustering(KMeans(3, init=init).fit(x), sklearn.cluster.KMeans(3, init=init).fit(x))


@pytest.mark.parametrize("container", [sp.csr_array, sp.csr_matrix, sp.csc_array, sp.coo_array])
def test_sparse_rows(container):
    x, k = data("digits")
    rows = container(x)
    ours = KMeans(k, random_state=0).fit(rows)
    theirs = sklearn.cluster.KMeans(k, random_state=0).fit(rows)
    same_clustering(ours, theirs)
    np.testing.assert_array_equal(ours.predict(rows), theirs.predict(rows))
    np.testing.assert_allclose(ours.transform(rows), theirs.transform(rows), rtol=1e-9)
    assert ours.score(rows) == pytest.approx(theirs.score(rows))
    np.testing.assert_array_equal(ours.predict(x), ours.predict(rows))


@pytest.mark.parametrize("container", [sp.csr_array, sp.csr_matrix, sp.csc_array, sp.coo_array])
@pytest.mark.parametrize("cls", [KMeans, MiniBatchKMeans])
def test_sparse_rows_with_long_indices(cls, container):
    x, k = data("digits")
    short, rows = container(x), container(x)
    for name in ("indices", "indptr", "row", "col", "coords"):
        if (numbers := getattr(rows, name, None)) is not None:
            long = tuple(a.astype(np.int64) for a in numbers) if name == "coords" else None
            setattr(rows, name, long or numbers.astype(np.int64))
    ours, same = (cls(k, random_state=0).fit(each) for each in (rows, short))
    np.testing.assert_array_equal(ours.cluster_centers_, same.cluster_centers_)
    np.testing.assert_array_equal(ours.predict(rows), same.labels_)
    np.testing.assert_array_equal(ours.transform(rows), same.transform(short))
    assert ours.score(rows) == same.score(short)


def same_batches(ours, theirs):
    """Both mini-batch fits took the same steps."""
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(ours._seen.counts, theirs._counts)
    assert ours.n_steps_ == theirs.n_steps_
    if hasattr(theirs, "n_iter_"):
        assert ours.n_iter_ == theirs.n_iter_
    if theirs.compute_labels:
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-7)


@AS_NOW
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 50},
        {"batch_size": 50, "init": "random"},
        {"batch_size": 64, "n_init": 3, "init_size": 100},
        {"batch_size": 30, "tol": 1e-2, "max_no_improvement": None, "max_iter": 5},
        {"batch_size": 40, "compute_labels": False},
        {"batch_size": 40, "reassignment_ratio": 0.5, "max_iter": 3},
        {"batch_size": 40, "reassignment_ratio": 0},
    ],
    ids=str,
)
def test_mini_batches_are_scikit_learns(settings, seed):
    x, k = data("blobs")
    same_batches(
        MiniBatchKMeans(k, random_state=seed, **settings).fit(x),
        sklearn.cluster.MiniBatchKMeans(k, random_state=seed, **settings).fit(x),
    )


@AS_NOW
def test_mini_batches_of_weighted_and_of_sparse_rows():
    x, k = data("digits")
    w = np.random.RandomState(0).uniform(size=x.shape[0])
    settings = {"random_state": 0, "batch_size": 100, "n_init": 2}
    same_batches(
        MiniBatchKMeans(k, **settings).fit(x, sample_weight=w),
        sklearn.cluster.MiniBatchKMeans(k, **settings).fit(x, sample_weight=w),
    )
    rows = sp.csr_array(x)
    settings["reassignment_ratio"] = 0.3
    same_batches(
        MiniBatchKMeans(k, **settings).fit(rows),
        sklearn.cluster.MiniBatchKMeans(k, **settings).fit(rows),
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_a_stream_of_batches(weighted):
    x, k = data("digits")
    w = np.random.RandomState(0).uniform(size=x.shape[0])
    ours = MiniBatchKMeans(k, random_state=0)
    theirs = sklearn.cluster.MiniBatchKMeans(k, random_state=0)
    for start in range(0, 1700, 100):
        batch = slice(start, start + 100)
        for km in (ours, theirs):
            km.partial_fit(x[batch], sample_weight=w[batch] if weighted else None)
        same_batches(ours, theirs)
    assert ours.n_steps_ == 17


@AS_NOW
def test_partial_fit_goes_on_after_fit():
    x, k = data("blobs")
    fitted = [
        cls(k, random_state=0, batch_size=50).fit(x).partial_fit(x[:90]).partial_fit(x[90:95])
        for cls in (MiniBatchKMeans, sklearn.cluster.MiniBatchKMeans)
    ]
    np.testing.assert_allclose(fitted[0].cluster_centers_, fitted[1].cluster_centers_, rtol=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_as_sklearn_predicts(dtype):
    x, k = data("digits")
    x = x.astype(dtype)
    km = KMeans(k, random_state=0, init="k-means||", empty="keep").fit(x)
    peer = km.as_sklearn()
    assert type(peer) is sklearn.cluster.KMeans
    assert peer.get_params()["random_state"] == 0
    np.testing.assert_array_equal(peer.predict(x), km.predict(x))
    np.testing.assert_array_equal(peer.labels_, km.labels_)
    np.testing.assert_allclose(peer.transform(x), km.transform(x), rtol=1e-3)
    assert peer.inertia_ == km.inertia_
    assert peer.n_iter_ == km.n_iter_
    assert peer.get_feature_names_out()[0] == "kmeans0"
    peer.fit(x)  # and can be fitted again


def test_as_sklearn_goes_on_with_partial_fit():
    x, k = data("digits")
    km = MiniBatchKMeans(k, random_state=0).partial_fit(x[:500])
    peer = km.as_sklearn()
    assert type(peer) is sklearn.cluster.MiniBatchKMeans
    np.testing.assert_array_equal(peer.predict(x), km.predict(x))
    for start in range(500, 1500, 100):
        km.partial_fit(x[start : start + 100])
        peer.partial_fit(x[start : start + 100])
    same_batches(km, peer)


def test_as_sklearn_keeps_feature_names():
    pd = pytest.importorskip("pandas", reason="frames are pandas'")
    x, k = data("blobs")
    frame = pd.DataFrame(x, columns=list("abcd"))
    peer = KMeans(k, random_state=0).fit(frame).as_sklearn()
    assert list(peer.feature_names_in_) == list("abcd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        peer.predict(frame)


def printed(km, x, w, capsys):
    """The lines of a fit, and the numbers in them."""
    km.fit(x, sample_weight=w)
    text = capsys.readouterr().out
    number = r"[0-9]+(?:\.[0-9]*)?(?:e[-+][0-9]+)?"
    return re.sub(number, "#", text).splitlines(), [float(a) for a in re.findall(number, text)]


@AS_NOW
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("KMeans", {}),
        ("KMeans", {"tol": 1e-2}),
        ("KMeans", {"tol": 0, "n_init": 2, "init": "random"}),
        ("KMeans", {"max_iter": 2}),
        ("MiniBatchKMeans", {"batch_size": 50}),
        ("MiniBatchKMeans", {"batch_size": 50, "n_init": 2, "reassignment_ratio": 0.5}),
        ("MiniBatchKMeans", {"batch_size": 50, "tol": 1e-1, "max_no_improvement": None}),
    ],
    ids=str,
)
def test_verbose_lines_are_scikit_learns(name, settings, weighted, capsys):
    x, k = data("blobs")
    w = np.random.RandomState(0).uniform(0.5, 1, size=len(x)) if weighted else None
    settings = {"random_state": 0, "verbose": 1, **settings}
    ours, numbers = printed(getattr(anykmeans, name)(k, **settings), x, w, capsys)
    theirs, expected = printed(getattr(sklearn.cluster, name)(k, **settings), x, w, capsys)
    assert ours == theirs
    assert len(ours) > 2
    if weighted and "within tolerance" in ours[-1]:  # of the variance, which is weighted here
        assert numbers.pop() != expected.pop()
    np.testing.assert_allclose(numbers, expected, rtol=1e-6)
