"""What goes in: any library, dtype and layout, never written to, never copied whole."""

import tracemalloc

import numpy as np
import pandas as pd
import polars as pl
import pytest
import referee

from anykmeans import KMeans, KMeansResult, assign, kmeans, kmeans_plusplus

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
        assert array.device == x.device
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


def test_results_live_on_the_rows_own_device():
    xp = pytest.importorskip("array_api_strict")
    device = xp.Device("device1")
    x = xp.asarray(rows(), device=device)
    result = kmeans(x, 3, rng=0)
    labels, squared = assign(x, result.centroids)
    centres, indices = kmeans_plusplus(x, 3, random_state=0)
    for array in [result.centroids, result.labels, labels, squared, centres, indices]:
        assert array.device == device


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


def peak(call):
    """Bytes that a call takes at most, once all it needs is loaded and compiled."""
    call()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("init", ["k-means++", "random", "k-means||"])
@pytest.mark.parametrize("max_bytes", [1_000_000, 2_000_000])
def test_memory_stays_within_the_budget(kernel, init, max_bytes):
    n, d, k = 25_000, 8, 64
    x = np.random.default_rng(0).normal(size=(n, d)).astype("float32")
    options = {"init": init, "n_init": 1, "max_iter": 3, "max_bytes": max_bytes, "kernel": kernel}
    # Bytes; n x k float32 scores would be 256 n.
    assert peak(lambda: kmeans(x, k, rng=0, **options)) < max_bytes + 96 * n


def test_rows_are_never_copied_whole(kernel):
    n, d = 20_000, 200
    x = np.random.default_rng(0).normal(size=(n, d)).astype("float32")
    c = x[:10].copy()
    for call in [
        lambda: kmeans(x, 10, init=c, max_iter=3, max_bytes=1_000_000, kernel=kernel),
        lambda: kmeans_plusplus(x, 10, random_state=0),
        lambda: assign(x, c),
    ]:
        assert peak(call) < x.nbytes


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
