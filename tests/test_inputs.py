"""What goes in: any library, dtype and layout, never written to, never copied whole."""

import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pytest
import referee
import scipy.sparse

from anykmeans import (
    KMeans,
    KMeansResult,
    MiniBatchKMeans,
    assign,
    kmeans,
    kmeans_plusplus,
)
from anykmeans._libraries import device_of

DTYPES = {  # of the rows: of the centroids
    "float64": "float64",
    "float32": "float32",
    "float16": "float32",
    "bfloat16": "float32",
    "int8": "float64",
    "int16": "float64",
    "int32": "float64",
    "int64": "float64",
    "uint8": "float64",
    "uint16": "float64",
    "uint32": "float64",
    "uint64": "float64",
    "bool": "float64",
}


def rows(n=120, d=3):
    """Rows (n, d) with whole values between 0 and 100: every dtype but bool holds them."""
    rng = np.random.default_rng(0)
    return np.round(np.clip(rng.normal(size=(n, d)) * 8 + rng.choice([20, 50, 80], (n, 1)), 0, 100))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(backend, make, host, kernel, dtype):
    if not backend.has_dtype(dtype):
        pytest.skip(f"{backend.name} has no {dtype}")
    values = rows() if dtype != "bool" else rows() > 50
    x = make(values, dtype)
    result = kmeans(x, 5, rng=0, kernel=kernel)
    wide = kmeans(make(values, "float64"), 5, rng=0, kernel=kernel)
    assert backend.dtype_name(result.centroids) == DTYPES[dtype]
    assert host(result.labels).tolist() == host(wide.labels).tolist()
    np.testing.assert_allclose(host(result.centroids), host(wide.centroids), rtol=1e-6)
    labels, squared = assign(x, result.centroids)
    assert host(labels).tolist() == host(result.labels).tolist()
    assert backend.dtype_name(squared) == "float64"
    centres, indices = kmeans_plusplus(x, 5, random_state=0)
    np.testing.assert_array_equal(host(centres), values[host(indices)].astype(DTYPES[dtype]))


def test_results_live_where_the_rows_do(backend, make, kernel):
    x = make(rows(), "float32")
    result = kmeans(x, 4, rng=0, sample_weight=make(np.ones(120)), kernel=kernel)
    assert isinstance(result, KMeansResult)
    labels, squared = assign(x, result.centroids)
    centres, indices = kmeans_plusplus(x, 4, random_state=0)
    for array in [result.centroids, result.labels, labels, squared, centres, indices]:
        assert type(array) is type(x)
        assert device_of(array) == device_of(x)
    for array in [result.labels, labels, indices]:
        assert backend.dtype_name(array) == "int64"
    assert backend.dtype_name(result.centroids) == "float32"
    assert result.centroids.shape == (4, 3)
    assert result.labels.shape == labels.shape == squared.shape == (120,)
    assert type(result.inertia) is float
    assert type(result.n_iter) is int
    assert type(result.converged) is bool
    assert type(result.kernel) is str
    centroids, same, *_ = result
    assert centroids is result.centroids
    assert same is result.labels


def test_nothing_is_written(backend, make, host, kernel):
    x, w, c = make(rows()), make(np.arange(120.0)), make(rows()[:5])
    for init in ["k-means++", "random", "k-means||", c]:
        kmeans(x, 5, sample_weight=w, init=init, rng=0, kernel=kernel)
    assign(x, c)
    kmeans_plusplus(x, 5, sample_weight=w, random_state=0)
    np.testing.assert_array_equal(host(x), rows())
    np.testing.assert_array_equal(host(w), np.arange(120.0))
    np.testing.assert_array_equal(host(c), rows()[:5])


def test_read_only_arrays(kernel):
    x, w, c = rows(), np.arange(120.0), rows()[:5].copy()
    for array in (x, w, c):
        array.flags.writeable = False
    result = kmeans(x, 5, sample_weight=w, init=c, kernel=kernel)
    assign(x, c)
    kmeans_plusplus(x, 5, sample_weight=w, random_state=0)
    np.testing.assert_array_equal(x, rows())
    np.testing.assert_array_equal(w, np.arange(120.0))
    for array in (result.centroids, result.labels):
        assert array.flags.writeable
        assert array.flags.c_contiguous


def test_results_share_no_memory_with_what_came_in(kernel):
    x = rows()
    start = x[:4].copy()
    for options in [{"init": start}, {"init": start, "empty": "keep", "max_iter": 1}]:
        result = kmeans(x, 4, kernel=kernel, **options)
        assert not np.shares_memory(result.centroids, start)
        assert not np.shares_memory(result.centroids, x)
    whole = kmeans(x[:4], 4, init=x[:4], kernel=kernel)
    assert not np.shares_memory(whole.centroids, x)


def test_tensors_that_require_grad_are_detached(kernel):
    torch = pytest.importorskip("torch")
    x = torch.tensor(rows(), requires_grad=True)
    w = torch.ones(120, dtype=torch.float64, requires_grad=True)
    result = kmeans(x * 1.0, 3, sample_weight=w, init=(x * 1.0)[:3], kernel=kernel)
    assert not result.centroids.requires_grad
    assert x.grad is None
    assert referee.bits(result) == referee.bits(kmeans(rows(), 3, init=rows()[:3]))
    with torch.inference_mode():
        assert referee.bits(kmeans(x, 3, rng=0)) == referee.bits(kmeans(rows(), 3, rng=0))


def test_tensor_layouts(kernel):
    torch = pytest.importorskip("torch")
    x = torch.tensor(rows())
    wanted = referee.bits(kmeans(rows(), 4, rng=0))
    wide = torch.zeros(240, 6, dtype=torch.float64)
    wide[::2, ::2] = x
    for same in [x.T.contiguous().T, wide[::2, ::2], x.repeat(2, 1)[:120]]:
        assert referee.bits(kmeans(same, 4, rng=0, kernel=kernel)) == wanted


def test_one_row_shown_many_times(kernel):
    """A broadcast view has stride 0: nothing may write to it or rely on its layout."""
    x = np.broadcast_to(np.array([1.5, 2.5]), (50, 2))
    result = kmeans(x, 1, kernel=kernel)
    assert result.centroids.tolist() == [[1.5, 2.5]]


def test_lists_and_frames():
    wanted = referee.bits(kmeans(rows(), 4, rng=0))
    x = rows()
    frames = [
        x.tolist(),
        tuple(map(tuple, x)),
        pd.DataFrame(x, columns=list("abc")),
        pd.DataFrame({"a": x[:, 0].astype(int), "b": x[:, 1], "c": x[:, 2].astype("float32")}),
        pl.DataFrame(x, schema=list("abc")),
    ]
    for frame in frames:
        result = kmeans(frame, 4, rng=0)
        assert isinstance(result.centroids, np.ndarray)
        assert referee.bits(result) == wanted
        labels, _ = assign(frame, result.centroids.tolist())
        np.testing.assert_array_equal(labels, result.labels)


def test_frames_of_several_types():
    whole, half, flag = np.arange(1, 9), np.arange(8) / 2, np.arange(8) % 3 == 0
    wanted = kmeans(np.column_stack([whole, half, flag]), 3, rng=0)
    several = {"a": whole, "b": half, "c": flag}
    nullable = {
        "a": pd.array(whole, dtype="Int64"),
        "b": half,
        "c": pd.array(flag, dtype="boolean"),
    }
    for frame in (pd.DataFrame(several), pd.DataFrame(nullable), pl.DataFrame(several)):
        assert referee.bits(kmeans(frame, 3, rng=0)) == referee.bits(wanted)
    for dtypes, centroids in [
        (("Float32", "boolean"), "float32"),
        (("float32", "bool"), "float32"),
        (("Float32", "Int32"), "float64"),
        (("bool", "boolean"), "float64"),
    ]:
        frame = pd.DataFrame(
            {i: pd.array(flag, dtype="boolean").astype(d) for i, d in enumerate(dtypes)}
        )
        assert kmeans(frame, 2, rng=0).centroids.dtype == centroids


@pytest.mark.parametrize("value", [None, float("nan")])
def test_missing_values_of_frames(value):
    for frame in [
        pd.DataFrame({"a": pd.array([1, value, 3], dtype="Int64"), "b": [1.5, 2, 3]}),
        pd.DataFrame({"a": [1.0, value, 3.0], "b": [True, False, True]}),
        pl.DataFrame({"a": [True, None, False]}),
    ]:
        with pytest.raises(ValueError, match=r"^`x` must have no missing values .*got 1 of them"):
            kmeans(frame, 2)
    with pytest.raises(ValueError, match=r"NaN"):
        kmeans(pd.DataFrame({"a": pd.array([1, value, 3], dtype="Float64")}), 2)


def test_lists_follow_the_rows(backend, make, host):
    """They have no place of their own, where arrays are never moved."""
    w, c = np.arange(120) % 5, rows()[:4]
    wanted = kmeans(rows(), 4, sample_weight=w, init=c)
    for weights, init in [(w.tolist(), c.tolist()), (pd.Series(w), pd.DataFrame(c))]:
        result = kmeans(make(rows()), 4, sample_weight=weights, init=init)
        assert referee.bits(result, host) == referee.bits(wanted)
        labels, _ = assign(make(rows()), init)
        assert type(labels) is type(result.labels)


def test_weights_may_be_lists_series_and_other_dtypes():
    w = np.arange(120) % 5
    wanted = referee.bits(kmeans(rows(), 4, sample_weight=w.astype(float), rng=0))
    for same in [w, w.tolist(), w.astype("float32"), w.astype("int8"), pd.Series(w), pl.Series(w)]:
        assert referee.bits(kmeans(rows(), 4, sample_weight=same, rng=0)) == wanted
    mask = w > 2
    assert referee.bits(kmeans(rows(), 4, sample_weight=mask, init=rows()[:4])) == referee.bits(
        kmeans(rows(), 4, sample_weight=mask.astype(float), init=rows()[:4])
    )


def test_integers_beyond_float32_are_exact():
    x = np.array([[2**24 + 1], [2**24 + 1], [0], [0]], dtype=np.int32)
    assert sorted(kmeans(x, 2, rng=0).centroids[:, 0].tolist()) == [0, 2**24 + 1]


def test_a_whole_result_can_be_pickled(kernel):
    import pickle

    result = kmeans(rows(), 3, rng=0, kernel=kernel)
    assert referee.bits(pickle.loads(pickle.dumps(result))) == referee.bits(result)


def peak_of(call):
    """How many bytes a call takes at most, once all it needs is loaded and compiled."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("init", ["k-means++", "random", "k-means||"])
@pytest.mark.parametrize("max_bytes", [500_000, 1_000_000])
def test_memory_stays_within_the_budget(kernel, init, max_bytes):
    n, d, k = 12_500, 8, 64
    x = np.random.default_rng(0).normal(size=(n, d)).astype("float32")
    options = {"init": init, "n_init": 1, "max_iter": 3, "max_bytes": max_bytes, "kernel": kernel}
    # Bytes; n x k float32 scores would be 256 n.
    assert peak_of(lambda: kmeans(x, k, rng=0, **options)) < max_bytes + 96 * n


def measured_rows(name):
    """Rows whose shape makes one thing or another large, and how much memory to allow for them."""
    rng = np.random.default_rng(0)
    if name == "sparse":  # 40 of 200,000 features, as hashed words are
        n, d, each = 500, 200_000, 40
        features = rng.integers(d, size=(n, each))
        x = scipy.sparse.coo_array(
            (rng.random(n * each), (np.repeat(np.arange(n), each), features.ravel())), shape=(n, d)
        )
        return x.tocsr(), 1 << 24
    n, d, max_bytes = {"wide": (150, 6000, 1 << 22), "tall": (60_000, 5, 1 << 21)}[name]
    return rng.normal(size=(n, d)).astype("float32"), max_bytes


CALLS = {
    "kmeans": lambda x, c, **how: kmeans(x, 4, init=c, max_iter=6, tol=0, **how),
    "weights": lambda x, c, **how: kmeans(
        x, 4, init=c, max_iter=2, sample_weight=np.linspace(0.1, 2, x.shape[0]), **how
    ),
    "k-means++": lambda x, c, **how: kmeans_plusplus(x, 4, random_state=0, **how),
    "assign": assign,
    "fit": lambda x, c, **how: KMeans(4, init=c, max_iter=2, **how).fit(x),
    "predict": lambda x, c, **how: fitted(KMeans, c, **how).predict(x),
    "transform": lambda x, c, **how: fitted(KMeans, c, **how).transform(x),
    "score": lambda x, c, **how: fitted(KMeans, c, **how).score(x),
    "mini-batches": lambda x, c, **how: MiniBatchKMeans(
        4, init=c, max_iter=1, random_state=0, tol=1e-3, batch_size=10, init_size=30, **how
    ).fit(x),
    "partial_fit": lambda x, c, **how: MiniBatchKMeans(
        4, init=c, init_size=30, random_state=0, **how
    ).partial_fit(x),
}


def fitted(estimator, c, **how):
    """An estimator with these centroids."""
    model = estimator(4, **how)
    model.cluster_centers_ = c
    return model


@pytest.mark.parametrize("name", ["wide", "tall", "sparse"])
@pytest.mark.parametrize("call", CALLS)
def test_memory_of_every_call_on_rows_of_every_shape(kernel, name, call):
    """The budget, 96 bytes a row, a dozen copies of the centroids; results and batches are the user's."""
    x, max_bytes = measured_rows(name)
    if name == "sparse" and kernel == "agnostic":
        kernel = "cpu"
    c = x[:4].toarray() if name == "sparse" else x[:4].copy()
    n, d = x.shape
    allowed = max_bytes + 96 * n + 12 * 8 * 4 * d
    if call == "transform":
        allowed += 4 * n * (8 if name == "sparse" else 4)
    if call in ("mini-batches", "partial_fit") and name != "sparse":
        allowed += 2 * 30 * d * 4
    peak = peak_of(lambda: CALLS[call](x, c, max_bytes=max_bytes, kernel=kernel))
    assert peak < allowed
    # The bound says something: rows as they are used, or what a pass makes of them, would not fit.
    assert {"wide": 8 * n * d, "tall": 1 << 22, "sparse": 8 * n * d}[name] > max_bytes


def test_rows_are_never_copied_whole(kernel):
    n, d = 10_000, 200
    x = np.random.default_rng(0).normal(size=(n, d)).astype("float32")
    c = x[:10].copy()
    for call in [
        lambda: kmeans(x, 10, init=c, max_iter=3, max_bytes=1_000_000, kernel=kernel),
        lambda: kmeans_plusplus(x, 10, random_state=0, max_bytes=1_000_000, kernel=kernel),
        lambda: assign(x, c, max_bytes=1_000_000, kernel=kernel),
    ]:
        assert peak_of(call) < x.nbytes


@pytest.mark.filterwarnings("ignore")  # the compiler's own, about what it meets on the way
def test_torch_compile_calls_it_as_it_is():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = torch.as_tensor(rows())

    def network(x):
        result = kmeans(x * 2, 3, rng=0)
        model = KMeans(3, random_state=0).fit(x * 2)
        return result.centroids.sum(), model.predict(x * 2) + 1, result.inertia

    torch._dynamo.reset()
    plain, compiled = network(x), torch.compile(network, backend="eager")(x)
    assert plain[0] == compiled[0]
    assert bool((plain[1] == compiled[1]).all())
    assert plain[2] == compiled[2]
    # What NumPy does was not looked into, where PyTorch's operations would have taken its place.
    assert not any("numpy" in reason for reason in torch._dynamo.utils.counters["graph_break"])
