"""A batch: x of shape (b, n, d) gives, bit for bit, what a loop over its problems gives."""

import tracemalloc
import warnings

import numpy as np
import pytest
from referee import bits
from sklearn.exceptions import ConvergenceWarning

from anykmeans import KMeansResult, assign, kmeans, kmeans_plusplus
from anykmeans._libraries import device_of, namespace

B, N, D, K = 4, 90, 3, 6


def problems(dtype="float64"):
    """Rows (b, n, d) with whole values between 0 and 100; the problems differ in spread and place."""
    rng = np.random.default_rng(0)
    spread, place = rng.uniform(2, 12, (B, 1, 1)), rng.choice([20, 50, 80], (B, N, 1))
    return np.round(np.clip(rng.normal(size=(B, N, D)) * spread + place, 0, 100)).astype(dtype)


def sample_weights():
    """Weights (b, n) of very different size, some of them zero."""
    w = np.random.default_rng(1).lognormal(0, 2, size=(B, N))
    w[:, ::7] = 0
    return w


def apart(result):
    """The results (b,) of the problems, each as a call for it alone gives it."""
    return [
        KMeansResult(
            result.centroids[i, ...],
            result.labels[i, ...],
            float(result.inertia[i]),
            int(result.n_iter[i]),
            bool(result.converged[i]),
            result.kernel,
            result.precision,
        )
        for i in range(len(result.inertia))
    ]


def loop(xs, k, ws=None, inits=None, *, rng, **options):
    """What calls for each problem give, one after the other, with one generator for all."""
    draws = rng if isinstance(rng, np.random.RandomState) else np.random.default_rng(rng)
    found = []
    for i, x in enumerate(xs):
        weight = None if ws is None else ws[i]
        init = options.get("init", "k-means++") if inits is None else inits[i]
        found.append(kmeans(x, k, sample_weight=weight, rng=draws, **{**options, "init": init}))
    return found


def each(results, host):
    return [bits(result, host) for result in results]


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "uint8", "int64", "bool"]
)
@pytest.mark.parametrize("init", ["k-means++", "random", "k-means||"])
def test_every_dtype_and_init(backend, make, host, kernel, dtype, init):
    if not backend.has_dtype(dtype):
        pytest.skip(f"{backend.name} has no {dtype}")
    x = problems() if dtype != "bool" else problems() > 50
    options = {"init": init, "rng": 3, "kernel": kernel, "n_init": 2}
    batch = make(x, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # booleans have few distinct rows
        result = kmeans(batch, K, **options)
        wanted = each(loop([make(one, dtype) for one in x], K, **options), host)
    assert each(apart(result), host) == wanted
    assert len({str(one) for one in wanted}) == B
    np.testing.assert_array_equal(host(batch), host(make(x, dtype)))  # nothing is written


@pytest.mark.parametrize("n_init", [1, 3])
@pytest.mark.parametrize("given", [False, True])
def test_weights_of_all_problems_or_of_each(backend, make, host, kernel, given, n_init):
    x, w = problems(), sample_weights()
    options = {"rng": 5, "n_init": n_init, "kernel": kernel}
    if given:
        options["init"] = make(x[0, :K])
    xs = [make(one) for one in x]
    for mine, theirs in [(w, [make(one) for one in w]), (w[0], [make(w[0])] * B)]:
        result = kmeans(make(x), K, sample_weight=make(mine), **options)
        assert each(apart(result), host) == each(loop(xs, K, theirs, **options), host)
    assert len(set(result.n_iter.tolist())) > 1  # each problem stops by itself


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # "keep" leaves them
@pytest.mark.parametrize("empty", ["relocate", "keep"])
def test_centroids_of_all_problems_or_of_each(backend, make, host, kernel, empty):
    x = problems("float32")
    c = x[:, :K].copy()
    c[:, -2:] = 500 + np.arange(2)[:, None]  # two clusters without rows
    options = {"rng": 0, "empty": empty, "kernel": kernel}
    xs = [make(one) for one in x]
    for mine, theirs in [(c, [make(one) for one in c]), (c[1], [make(c[1])] * B)]:
        batch = make(mine)
        result = kmeans(make(x), K, init=batch, **options)
        assert each(apart(result), host) == each(loop(xs, K, None, theirs, **options), host)
        np.testing.assert_array_equal(host(batch), mine)


def test_a_callable_is_called_for_each_problem(backend, make, host, kernel):
    x, seen = problems(), []

    def init(rows, k, rng):
        seen.append(host(rows))
        start = int(rng.integers(N - k))
        return rows[start : start + k, :]

    options = {"init": init, "n_init": 2, "rng": 7, "kernel": kernel}
    result = kmeans(make(x), K, **options)
    np.testing.assert_array_equal(np.stack(seen), np.repeat(x, 2, axis=0))
    assert each(apart(result), host) == each(loop([make(one) for one in x], K, **options), host)


def test_a_random_state_is_drawn_from_problem_after_problem(kernel):
    x = problems()
    result = kmeans(x, K, rng=np.random.RandomState(3), n_init=3, kernel=kernel)
    wanted = loop(x, K, rng=np.random.RandomState(3), n_init=3)
    assert each(apart(result), np.asarray) == each(wanted, np.asarray)


def test_one_problem_is_still_a_batch(kernel):
    x = problems()[:1]
    result = kmeans(x, K, rng=0, kernel=kernel)
    assert result.centroids.shape == (1, K, D)
    assert each(apart(result), np.asarray) == [bits(kmeans(x[0], K, rng=0))]


def test_problems_large_enough_for_threads(kernel):
    x = np.random.default_rng(2).normal(size=(3, 9000, 16)).astype("float32")
    result = kmeans(x, 12, rng=0, max_iter=5, kernel=kernel)
    wanted = loop(x, 12, rng=0, max_iter=5)
    assert each(apart(result), np.asarray) == each(wanted, np.asarray)


def test_views_of_every_layout(backend, make, host, kernel):
    x, w = problems(), sample_weights()
    wanted = each(loop([make(one) for one in x], K, [make(one) for one in w], rng=1), host)
    batch = make(np.swapaxes(x, 0, 1))  # (n, b, d)
    by_feature = make(np.moveaxis(x, 2, 0))  # (d, b, n)
    xp = namespace(batch)
    weight = xp.permute_dims(make(np.ascontiguousarray(w.T)), (1, 0))
    for same in [
        xp.permute_dims(batch, (1, 0, 2)),
        xp.permute_dims(by_feature, (1, 2, 0)),
        make(np.repeat(x, 2, axis=1))[:, ::2, :],
        make(np.repeat(np.repeat(x, 2, axis=0), 2, axis=2))[::2, :, ::2],
    ]:
        result = kmeans(same, K, sample_weight=weight, rng=1, kernel=kernel)
        assert each(apart(result), host) == wanted


def test_tensors_that_require_grad_or_repeat_one_problem(kernel):
    torch = pytest.importorskip("torch")
    x, w = torch.tensor(problems()), torch.tensor(sample_weights())
    wanted = each(loop(problems(), K, sample_weights(), rng=1), np.asarray)
    result = kmeans(
        (x.requires_grad_() * 1.0), K, sample_weight=w.requires_grad_(), rng=1, kernel=kernel
    )
    assert not result.centroids.requires_grad
    assert each(apart(result), np.asarray) == wanted
    shown = x[0].expand(B, N, D)  # of stride 0
    wanted = each(loop([problems()[0]] * B, K, rng=1), np.asarray)
    assert each(apart(kmeans(shown, K, rng=1, kernel=kernel)), np.asarray) == wanted


def test_lists_of_lists_of_rows():
    x, w = problems(), sample_weights()
    result = kmeans(x.tolist(), K, sample_weight=w.tolist(), init=x[:, :K].tolist())
    assert isinstance(result.centroids, np.ndarray)
    wanted = loop(x, K, w, x[:, :K], rng=0)
    assert each(apart(result), np.asarray) == each(wanted, np.asarray)
    with pytest.raises(ValueError, match=r"^`x` must be an array or rows of equal length"):
        kmeans([x[0].tolist(), x[1, 1:].tolist()], K)


def test_results_live_where_the_rows_do_and_numbers_on_the_host(backend, make, kernel):
    x = make(problems(), "float32")
    result = kmeans(x, K, rng=0, kernel=kernel)
    for array in [result.centroids, result.labels]:
        assert type(array) is type(x)
        assert device_of(array) == device_of(x)
    assert result.centroids.shape == (B, K, D)
    assert backend.dtype_name(result.centroids) == "float32"
    assert result.labels.shape == (B, N)
    assert backend.dtype_name(result.labels) == "int64"
    for numbers, dtype in [
        (result.inertia, np.float64),
        (result.n_iter, np.int64),
        (result.converged, np.bool_),
    ]:
        assert type(numbers) is np.ndarray
        assert numbers.dtype == dtype
        assert numbers.shape == (B,)
    centroids, labels, *_ = result
    assert centroids is result.centroids
    assert labels is result.labels


def test_problems_are_never_copied_whole(kernel):
    x = np.random.default_rng(0).normal(size=(20, 1000, 100)).astype("float32")
    c = x[:, :10].copy()
    kmeans(x[:1, :100], 10, rng=0, kernel=kernel)  # loading does not count
    for same in [x, x.transpose(1, 0, 2).copy().transpose(1, 0, 2)]:
        tracemalloc.start()
        try:
            kmeans(same, 10, init=c, max_iter=2, max_bytes=500_000, kernel=kernel)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < x.nbytes / 3


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("shared", [False, True])
def test_assign(backend, make, host, kernel, dtype, shared):
    x, c = problems(dtype), problems(dtype)[:, :K] + 0.25
    labels, squared = assign(make(x), make(c[0] if shared else c), kernel=kernel, max_bytes=10_000)
    assert labels.shape == squared.shape == (B, N)
    assert type(labels) is type(squared) is type(make(x))
    for i in range(B):
        one = assign(make(x[i]), make(c[0 if shared else i]), kernel=kernel)
        assert host(labels[i, ...]).tobytes() == host(one[0]).tobytes()
        assert host(squared[i, ...]).tobytes() == host(one[1]).tobytes()


def test_assign_says_in_which_problem():
    x, c = problems(), problems()[:, :K]
    with pytest.raises(ValueError, match=r"\(k, 3\) for all problems, or \(4, k, 3\).*\(3, 6, 3\)"):
        assign(x, c[:3])
    x[2, 5, 1] = np.nan
    with pytest.raises(ValueError, match=r"^`x\[2\]` must be finite"):
        assign(x, c)


def test_few_distinct_rows_warn_once(backend, make, kernel):
    x = problems()
    x[1:3] = x[1:3, :1]
    with pytest.warns(ConvergenceWarning, match=r"\(1\).*\(6\) in 2 of 4 problems.*x\[1\]") as seen:
        result = kmeans(make(x), K, rng=0, kernel=kernel)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert (result.inertia == 0).tolist() == [False, True, True, False]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(backend, make, kernel, bad):
    x, w, c = problems(), sample_weights(), problems()[:, :K]
    x[2, 5, 1], w[1, 3], c[3, 0, 0] = bad, bad, bad
    good = make(problems())
    with pytest.raises(ValueError, match=r"^`x\[2\]` must be finite; got .* in feature 1"):
        kmeans(make(x), K, rng=0, kernel=kernel)
    with pytest.raises(ValueError, match=r"^`sample_weight\[1\]` must be finite"):
        kmeans(good, K, sample_weight=make(w), kernel=kernel)
    with pytest.raises(ValueError, match=r"^`init\[3\]` must be finite"):
        kmeans(good, K, init=make(c), kernel=kernel)


@pytest.mark.parametrize(
    ("options", "error", "about"),
    [
        (
            {"k": N + 1},
            ValueError,
            r"^`k` must be .* number of rows; got k=91 with x\[0\] of shape \(90, 3\)",
        ),
        ({"sample_weight": np.ones(B)}, ValueError, r"\(90,\).*, or \(4, 90\).*got shape \(4,\)"),
        ({"sample_weight": np.ones((1, N))}, ValueError, r"\(90,\).*, or \(4, 90\).*\(1, 90\)"),
        ({"sample_weight": np.eye(B, N)[::-1] - np.eye(B, N)}, ValueError, r"`sample_weight\[0\]`"),
        ({"sample_weight": np.eye(B, N, 1 - B)}, ValueError, r"`sample_weight\[0\]`.*all zero"),
        ({"init": np.ones((2, D))}, ValueError, r"\(6, 3\).*, or \(4, 6, 3\).*\(2, 3\)"),
        ({"init": np.ones((1, K, D))}, ValueError, r"\(6, 3\).*, or \(4, 6, 3\).*\(1, 6, 3\)"),
        ({"init": np.ones((1, B, K, D))}, ValueError, r"got shape \(1, 4, 6, 3\)"),
        ({"max_bytes": 64 * (D + K) - 1}, ValueError, "^`max_bytes` must hold"),
        ({"kernel": "fastest"}, ValueError, "^`kernel` must be"),
    ],
    ids=str,
)
def test_bad_options_are_refused_before_any_work(options, error, about):
    def init(*_args):
        raise AssertionError("work began")

    with pytest.raises(error, match=about):
        kmeans(problems(), **{"k": K, "init": init, **options})


@pytest.mark.parametrize("shape", [(0, 8, 2), (4, 0, 2), (4, 8, 0)])
def test_nothing_to_cluster(backend, make, shape):
    with pytest.raises(ValueError, match=r"^`x` must have at least one problem, row and feature"):
        kmeans(make(np.ones(shape)), 1)


def test_which_dimensions_are_allowed(backend, make):
    both = r"^`x` must have 2 dimensions, \(rows, features\), or 3, \(problems, rows, features\)"
    for shape in [(8,), (1, 2, 8, 2)]:
        with pytest.raises(ValueError, match=both):
            kmeans(make(np.ones(shape)), 1)
        with pytest.raises(ValueError, match=both):
            assign(make(np.ones(shape)), make(np.ones((1, 2))))
    with pytest.raises(ValueError, match=r"^`X` must have 2 dimensions, \(rows, features\); got"):
        kmeans_plusplus(make(np.ones((2, 8, 2))), 1)


def test_sparse_arrays_have_two_dimensions():
    sparse = pytest.importorskip("scipy.sparse")
    x = problems()
    with pytest.raises(
        TypeError, match=r"^`sample_weight` must be a dense array; got a sparse one"
    ):
        kmeans(x, K, sample_weight=sparse.csr_matrix(sample_weights()))
    try:
        x = sparse.coo_array(x)
    except (TypeError, ValueError):
        pytest.skip("this SciPy has no sparse arrays of three dimensions")
    with pytest.raises(ValueError, match=r"^`x` must have at most 2 dimensions where it is sparse"):
        kmeans(x, K)


def test_an_error_on_the_way_says_in_which_problem():
    """In a note, so that the error of a callable stays the caller's."""
    x = problems()
    c = x[:, :K].copy()
    c[2, 0] = 1e6
    with pytest.raises(ValueError, match=r"^`empty`='error' and cluster 0") as caught:
        kmeans(x, K, init=c, empty="error")
    assert caught.value.__notes__ == ["This was while clustering `x[2]`."]

    def init(rows, k, rng):
        if rows[0, 0] == x[1, 0, 0]:
            raise KeyError("mine")
        return rows[:k]

    with pytest.raises(KeyError, match="mine") as caught:
        kmeans(x, K, init=init)
    assert caught.value.__notes__ == ["This was while clustering `x[1]`."]
