"""Problems of any sizes at once give, bit for bit, what a loop over them gives."""

import tracemalloc
import warnings

import numpy as np
import pytest
from referee import bits
from sklearn.exceptions import ConvergenceWarning

from anykmeans import KMeans, KMeansResult, assign, kmeans
from anykmeans._libraries import device_of

SIZES = [40, 25, 25, 1, 60, 7]
KS = [5, 3, 3, 1, 4, 7]  # one row, and as many clusters as rows, among them
B, N, D = len(SIZES), sum(SIZES), 3
ENDS = np.cumsum(SIZES)
NAMES = [f"x[{stop - n}:{stop}]" for n, stop in zip(SIZES, ENDS, strict=True)]


def together(dtype="float64"):
    """Rows (N, d) of all problems, with whole values; the problems differ in spread and place."""
    rng = np.random.default_rng(0)
    parts = [
        rng.normal(size=(n, D)) * spread + 50
        for n, spread in zip(SIZES, rng.uniform(2, 12, B), strict=True)
    ]
    return np.round(np.concatenate(parts)).astype(dtype)


def divided(a):
    """The parts (n_i, ...) of each problem."""
    return np.split(np.asarray(a), ENDS[:-1])


def sample_weights():
    """Weights (N,) of very different size, some of them zero."""
    w = np.random.default_rng(1).lognormal(0, 2, size=N)
    w[: -SIZES[-1] : 7] = 0  # in the last, every row is a cluster
    w[ENDS - 1] = 1
    return w


def apart(result):
    """The results (b,) of the problems, each as a call for it alone gives it, of any form but rows end to end."""
    names = ("centroids", "labels")
    return [
        KMeansResult(
            *(getattr(result, name)[i] for name in names),
            float(result.inertia[i]),
            int(result.n_iter[i]),
            bool(result.converged[i]),
            result.kernel,
            result.precision,
        )
        for i in range(len(result.inertia))
    ]


def ends_apart(result, host):
    """The same of rows end to end, in NumPy."""
    labels = divided(host(result.labels))
    centroids = (
        [host(c) for c in result.centroids]
        if isinstance(result.centroids, list)
        else host(result.centroids)
    )
    return apart(KMeansResult(centroids, labels, *list(result)[2:]))


def loop(xs, ks, ws=None, inits=None, *, rng, **options):
    """What calls for each problem give, one after the other, with one generator for all."""
    draws = rng if isinstance(rng, np.random.RandomState) else np.random.default_rng(rng)
    found = []
    for i, x in enumerate(xs):
        weight = None if ws is None else ws[i]
        init = options.get("init", "k-means++") if inits is None else inits[i]
        k = ks if isinstance(ks, int) else ks[i]
        found.append(kmeans(x, k, sample_weight=weight, rng=draws, **{**options, "init": init}))
    return found


def each(results, host=np.asarray):
    return [bits(result, host) for result in results]


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("init", ["k-means++", "random", "k-means||"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "uint8", "int64"])
def test_every_dtype_and_init(backend, make, host, kernel, dtype, init):
    if not backend.has_dtype(dtype):
        pytest.skip(f"{backend.name} has no {dtype}")
    options = {"init": init, "rng": 3, "kernel": kernel, "n_init": 2}
    xs = [make(x, dtype) for x in divided(together())]
    wanted = each(loop(xs, KS, **options), host)
    assert len({str(one) for one in wanted}) == B
    assert each(apart(kmeans(xs, KS, **options)), host) == wanted
    assert each(apart(kmeans(tuple(xs), tuple(KS), **options)), host) == wanted
    x = make(together(), dtype)
    assert each(ends_apart(kmeans(x, KS, lengths=SIZES, **options), host)) == wanted
    np.testing.assert_array_equal(host(x), host(make(together(), dtype)))  # nothing is written


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_one_k_for_all(backend, make, host, kernel):
    keep = [i for i, n in enumerate(SIZES) if n > 3]
    xs = [divided(together())[i] for i in keep]
    options = {"rng": 3, "kernel": kernel}
    wanted = each(loop([make(x) for x in xs], 4, **options), host)
    result = kmeans([make(x) for x in xs], 4, **options)
    assert isinstance(result.centroids, list)
    assert each(apart(result), host) == wanted
    x, lengths = make(np.concatenate(xs)), [len(x) for x in xs]
    result = kmeans(x, 4, lengths=lengths, **options)
    assert result.centroids.shape == (len(keep), 4, D)
    assert result.labels.shape == (sum(lengths),)
    labels = np.split(host(result.labels), np.cumsum(lengths)[:-1])
    found = KMeansResult(host(result.centroids), labels, *list(result)[2:])
    assert each(apart(found)) == wanted


def test_another_k_for_each_problem_of_a_batch(backend, make, host, kernel):
    x = np.random.default_rng(3).normal(size=(5, 30, D))
    ks, w = [2, 4, 4, 30, 1], np.random.default_rng(4).random((5, 30))
    options = {"rng": 2, "kernel": kernel, "n_init": 2}
    for mine, theirs in [(None, None), (w, [make(one) for one in w]), (w[0], [make(w[0])] * 5)]:
        weights = None if mine is None else make(mine)
        result = kmeans(make(x), ks, sample_weight=weights, **options)
        assert [tuple(c.shape) for c in result.centroids] == [(k, D) for k in ks]
        assert result.labels.shape == (5, 30)
        labels = list(host(result.labels))
        found = KMeansResult([host(c) for c in result.centroids], labels, *list(result)[2:])
        assert each(apart(found)) == each(
            loop([make(one) for one in x], ks, theirs, **options), host
        )


@pytest.mark.parametrize("n_init", [1, 3])
def test_weights(backend, make, host, kernel, n_init):
    options = {"rng": 5, "n_init": n_init, "kernel": kernel}
    xs, ws = ([make(a) for a in divided(all_)] for all_ in (together(), sample_weights()))
    wanted = each(loop(xs, KS, ws, **options), host)
    assert each(apart(kmeans(xs, KS, sample_weight=ws, **options)), host) == wanted
    listed = [w.tolist() for w in divided(sample_weights())]
    assert each(apart(kmeans(xs, KS, sample_weight=listed, **options)), host) == wanted
    x, w = make(together()), make(sample_weights())
    result = kmeans(x, KS, lengths=SIZES, sample_weight=w, **options)
    assert each(ends_apart(result, host)) == wanted
    some = [None if i % 2 else w for i, w in enumerate(ws)]
    wanted = each(loop(xs, KS, some, **options), host)
    assert each(apart(kmeans(xs, KS, sample_weight=some, **options)), host) == wanted


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # "keep" leaves them
@pytest.mark.parametrize("empty", ["relocate", "keep"])
def test_given_centroids(backend, make, host, kernel, empty):
    xs = divided(together("float32"))
    cs = [x[:k].copy() for x, k in zip(xs, KS, strict=True)]
    cs[0][-1] = 500  # without rows
    cs[2] = cs[2].astype("float64")
    xs, cs = ([make(a) for a in arrays] for arrays in (xs, cs))
    options = {"rng": 0, "empty": empty, "kernel": kernel}
    wanted = each(loop(xs, KS, None, cs, **options), host)
    assert each(apart(kmeans(xs, KS, init=cs, **options)), host) == wanted
    x = make(together("float32"))
    result = kmeans(x, KS, lengths=SIZES, init=cs, **options)
    assert each(ends_apart(result, host)) == wanted
    # Of one number of clusters: those of all problems, or stacked; and of a batch, a list.
    batch, starts = make(np.stack([together()[:20], together()[20:40]])), together()[:8]
    options["rng"] = 1
    for mine, theirs in [
        (starts[:4], [starts[:4]] * 2),
        (starts.reshape(2, 4, 3), starts.reshape(2, 4, 3)),
    ]:
        theirs = [make(c) for c in theirs]
        wanted = each(loop([batch[0, ...], batch[1, ...]], 4, None, theirs, **options), host)
        x = make(together()[:40])
        for init in (make(mine), mine.tolist(), theirs):
            result = kmeans(x, 4, lengths=[20, 20], init=init, **options)
            labels = host(result.labels).reshape(2, 20)
            found = KMeansResult(host(result.centroids), labels, *list(result)[2:])
            assert each(apart(found)) == wanted
            result = kmeans([batch[0, ...], batch[1, ...]], 4, init=init, **options)
            assert each(apart(result), host) == wanted
            result = kmeans(batch, 4, init=init, **options)
            found = KMeansResult(*map(host, (result.centroids, result.labels)), *list(result)[2:])
            assert each(apart(found)) == wanted


def test_a_callable_is_called_for_each_problem(backend, make, host, kernel):
    seen = []

    def init(rows, k, rng):
        seen.append(host(rows))
        start = int(rng.integers(rows.shape[0] - k + 1))
        return rows[start : start + k, :]

    options = {"init": init, "n_init": 2, "rng": 7, "kernel": kernel}
    x, xs = make(together()), [make(x) for x in divided(together())]
    wanted = each(loop(xs, KS, **options), host)
    for call in (
        lambda: kmeans(x, KS, lengths=SIZES, **options),
        lambda: kmeans(xs, KS, **options),
    ):
        seen.clear()
        found = call()
        for rows, theirs in zip(seen, np.repeat(np.arange(B), 2), strict=True):
            np.testing.assert_array_equal(rows, divided(together())[theirs])
        split = apart if isinstance(found.labels, list) else lambda r: ends_apart(r, host)
        assert each(split(found), np.asarray if split is not apart else host) == wanted


@pytest.mark.parametrize("init", ["k-means++", "random", "k-means||"])
def test_the_generator_goes_on_as_after_the_loop(kernel, init):
    x, w = together(), sample_weights()
    w[0] = 1
    for make in (np.random.default_rng, np.random.RandomState):
        states = []
        for call in (
            lambda rng: loop(divided(x), KS, divided(w + 1), rng=rng, init=init, n_init=2),
            lambda rng: kmeans(
                divided(x),
                KS,
                sample_weight=divided(w + 1),
                rng=rng,
                init=init,
                n_init=2,
                kernel=kernel,
            ),
            lambda rng: kmeans(
                x,
                KS,
                lengths=SIZES,
                sample_weight=w + 1,
                rng=rng,
                init=init,
                n_init=2,
                kernel=kernel,
            ),
        ):
            rng = make(3)
            if make is np.random.default_rng:  # `loop` makes one of a seed
                rng = np.random.RandomState(rng.bit_generator)
            call(rng)
            states.append(rng.random_sample())
        assert len(set(states)) == 1


def test_one_problem_is_still_a_list(kernel):
    x = together()[:40]
    wanted = bits(kmeans(x, 5, rng=0))
    result = kmeans([x], [5], rng=0, kernel=kernel)
    assert each(apart(result)) == [wanted]
    result = kmeans(x, 5, lengths=[40], rng=0, kernel=kernel)
    assert result.centroids.shape == (1, 5, D)
    assert result.labels.shape == (40,)
    assert each(apart(KMeansResult(result.centroids, [result.labels], *list(result)[2:]))) == [
        wanted
    ]


def test_problems_may_differ_in_dtype_and_features(backend, make, host, kernel):
    xs = [
        make(together()[:30], "float32"),
        make(together()[30:70, :2]),
        make(together()[70:100], "int64"),
    ]
    options = {"rng": 0, "kernel": kernel}
    result = kmeans(xs, 3, **options)
    assert each(apart(result), host) == each(loop(xs, 3, **options), host)
    assert [backend.dtype_name(c) for c in result.centroids] == ["float32", "float64", "float64"]


def test_problems_large_enough_for_threads(kernel):
    x = np.random.default_rng(2).normal(size=(21000, 16)).astype("float32")
    lengths, ks = [9000, 300, 11700], [12, 5, 20]
    wanted = each(loop(np.split(x, [9000, 9300]), ks, rng=0, max_iter=5))
    result = kmeans(np.split(x, [9000, 9300]), ks, rng=0, max_iter=5, kernel=kernel, threads=2)
    assert each(apart(result)) == wanted
    options = {"kernel": kernel, "max_bytes": 300_000}
    result = kmeans(x, ks, lengths=lengths, rng=0, max_iter=5, **options)
    labels = np.split(result.labels, [9000, 9300])
    assert each(apart(KMeansResult(result.centroids, labels, *list(result)[2:]))) == wanted


def test_cosine(backend, make, host):
    xs = [make(x - 45) for x in divided(together("float32"))]
    options = {"metric": "cosine", "rng": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        wanted = each(loop(xs, KS, **options), host)
        assert each(apart(kmeans(xs, KS, **options)), host) == wanted
        result = kmeans(make(together("float32") - 45), KS, lengths=SIZES, **options)
    assert each(ends_apart(result, host)) == wanted


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("by", ["auto", "cpu"])
def test_sparse_matrices(by, metric):
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(0)
    dense = np.where(rng.random((90, 200)) < 0.05, rng.normal(size=(90, 200)), 0)
    dense[:, 7] = 1  # no row of length 0
    lengths, ks = [20, 30, 40], [2, 5, 3]
    parts = np.split(dense, [20, 50])
    options = {"metric": metric, "rng": 0}
    wanted = each(loop(parts, ks, **options))
    xs = [sparse.csr_matrix(parts[0]), sparse.csc_matrix(parts[1]), sparse.coo_matrix(parts[2])]
    assert each(apart(kmeans(xs, ks, kernel=by, **options))) == wanted
    x = sparse.csr_matrix(dense)
    for result in (
        kmeans(x, ks, lengths=lengths, kernel=by, **options),
        kmeans(x, ks, lengths=lengths, sample_weight=np.ones(90), kernel=by, **options),
    ):
        labels = np.split(result.labels, [20, 50])
        assert each(apart(KMeansResult(result.centroids, labels, *list(result)[2:]))) == wanted
    cs = [part[:k] for part, k in zip(parts, ks, strict=True)]
    theirs = each(loop(parts, ks, None, cs, **options))
    assert each(apart(kmeans(xs, ks, init=cs, kernel=by, **options))) == theirs
    result = kmeans(x, ks, lengths=lengths, init=cs, kernel=by, **options)
    labels = np.split(result.labels, [20, 50])
    assert each(apart(KMeansResult(result.centroids, labels, *list(result)[2:]))) == theirs
    one = kmeans(x, 3, lengths=lengths, kernel=by, **options)
    assert one.centroids.shape == (3, 3, 200)
    mixed = kmeans([xs[0], parts[1], xs[2]], ks, **options)  # dense ones beside
    assert each(apart(mixed)) == wanted
    for i, (labels, squared) in enumerate(zip(*assign(xs, cs, metric=metric), strict=True)):
        own = assign(parts[i], cs[i], metric=metric)
        assert labels.tobytes() == own[0].tobytes()
        assert squared.tobytes() == own[1].tobytes()


def test_frames(kernel):
    pandas = pytest.importorskip("pandas")
    xs = divided(together())
    frames = [pandas.DataFrame(x) for x in xs]
    result = kmeans(frames, KS, rng=0, kernel=kernel)
    assert each(apart(result)) == each(loop(xs, KS, rng=0))
    weights = [pandas.Series(w) for w in divided(sample_weights())]
    result = kmeans(frames, pandas.Series(KS), sample_weight=weights, rng=0, kernel=kernel)
    assert each(apart(result)) == each(loop(xs, KS, divided(sample_weights()), rng=0))


def test_nested_tensors_and_tensors_that_require_grad():
    torch = pytest.importorskip("torch")
    xs = [torch.tensor(x, requires_grad=True) for x in divided(together())]
    wanted = each(loop(divided(together()), KS, rng=0))
    result = kmeans(xs, KS, rng=0)
    assert not result.centroids[0].requires_grad
    assert each(apart(result)) == wanted
    nested = torch.nested.as_nested_tensor(xs, layout=torch.jagged)
    result = kmeans(nested, torch.tensor(KS), rng=0)
    assert each(apart(result)) == wanted
    x = torch.tensor(together())
    result = kmeans(x, KS, lengths=torch.tensor(SIZES, dtype=torch.int32), rng=0)
    assert each(ends_apart(result, np.asarray)) == wanted


def test_lists_of_rows_are_one_problem_still():
    rows = [[0.0, 1.0], [0.0, 2.0], [9.0, 9.0]]
    for same in (rows, [np.asarray(row) for row in rows], tuple(map(tuple, rows))):
        assert kmeans(same, 2, rng=0).labels.shape == (3,)
    assert kmeans([rows, rows], 2, rng=0).centroids.shape == (2, 2, 2)
    with pytest.raises(ValueError, match=r"^`x` must be an array or rows of equal length"):
        kmeans([rows, rows[:2]], 2)
    with pytest.raises(ValueError, match=r"^Found array with dim 3|^`X`"):
        KMeans(2).fit([np.asarray(rows), np.asarray(rows)])


def test_results_live_where_the_rows_do_and_numbers_on_the_host(backend, make, kernel):
    xs = [make(x, "float32") for x in divided(together())]
    result = kmeans(xs, KS, rng=0, kernel=kernel)
    for arrays in (result.centroids, result.labels):
        assert type(arrays) is list
        for array in arrays:
            assert type(array) is type(xs[0])
            assert device_of(array) == device_of(xs[0])
    assert [tuple(c.shape) for c in result.centroids] == [(k, D) for k in KS]
    assert [tuple(a.shape) for a in result.labels] == [(n,) for n in SIZES]
    for name in ("float32", "int64"):
        arrays = result.centroids if name == "float32" else result.labels
        assert {backend.dtype_name(a) for a in arrays} == {name}
    for numbers, dtype in [
        (result.inertia, np.float64),
        (result.n_iter, np.int64),
        (result.converged, np.bool_),
    ]:
        assert type(numbers) is np.ndarray
        assert numbers.dtype == dtype
        assert numbers.shape == (B,)
    result = kmeans(make(together(), "float32"), KS, lengths=SIZES, rng=0, kernel=kernel)
    assert type(result.centroids) is list
    assert type(result.centroids[1]) is type(result.labels) is type(xs[0])
    assert backend.dtype_name(result.labels) == "int64"


@pytest.mark.parametrize("count", [list, tuple, np.asarray, lambda a: np.asarray(a, "uint8")])
def test_lengths_and_numbers_of_clusters_in_any_list(count):
    x = together()
    wanted = each(ends_apart(kmeans(x, KS, lengths=SIZES, rng=0), np.asarray))
    assert each(ends_apart(kmeans(x, count(KS), lengths=count(SIZES), rng=0), np.asarray)) == wanted


def test_rows_end_to_end_are_never_copied_whole(kernel):
    x = np.random.default_rng(0).normal(size=(20000, 100)).astype("float32")
    cs = [x[i * 1000 : i * 1000 + 10] for i in range(20)]
    kmeans(x[:100], 10, rng=0, kernel=kernel)  # loading does not count
    for call in (
        lambda **options: kmeans(x, 10, lengths=[1000] * 20, **options),
        lambda **options: kmeans(np.split(x, 20), 10, **options),
    ):
        tracemalloc.start()
        try:
            call(init=cs, max_iter=2, max_bytes=500_000, kernel=kernel)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < x.nbytes / 3


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_assign(backend, make, host, kernel, dtype):
    parts = divided(together(dtype))
    cs = [make(x[:k] + 0.25) for x, k in zip(parts, KS, strict=True)]
    xs, x, shared = [make(a) for a in parts], make(together(dtype)), make(parts[0][:5])
    stacked = make(np.stack([parts[0][: 5 + i][-5:] for i in range(B)]))
    options = {"kernel": kernel, "max_bytes": 10_000}
    for given, theirs in [
        (cs, cs),
        (shared, [shared] * B),
        (stacked, [stacked[i, ...] for i in range(B)]),
    ]:
        wanted = [assign(x, c, kernel=kernel) for x, c in zip(xs, theirs, strict=True)]
        labels, squared = assign(xs, given, **options)
        all_labels, all_squared = assign(x, given, lengths=SIZES, **options)
        assert type(labels) is type(squared) is list
        assert type(all_labels) is type(all_squared) is type(x)
        for i, (mine, near) in enumerate(wanted):
            assert host(labels[i]).tobytes() == host(mine).tobytes()
            assert host(squared[i]).tobytes() == host(near).tobytes()
            assert divided(host(all_labels))[i].tobytes() == host(mine).tobytes()
            assert divided(host(all_squared))[i].tobytes() == host(near).tobytes()
    batch = make(np.stack([parts[1], parts[2]]))
    labels, squared = assign(batch, cs[1:3], **options)
    assert labels.shape == squared.shape == (2, 25)
    for i in range(2):
        assert host(labels[i, ...]).tobytes() == host(assign(xs[1 + i], cs[1 + i])[0]).tobytes()


def test_few_distinct_rows_warn_once(backend, make, kernel):
    parts = divided(together())
    parts[1][:] = 3
    parts[4][:, :] = parts[4][:1]
    message = r"\(1\) found smaller than k\[1\] \(3\) in 2 of 6 problems, first in "
    options = {"rng": 0, "kernel": kernel}
    for name, call in [
        (r"x\[1\]", lambda: kmeans([make(x) for x in parts], KS, **options)),
        (r"x\[40:65\]", lambda: kmeans(make(np.concatenate(parts)), KS, lengths=SIZES, **options)),
    ]:
        with pytest.warns(ConvergenceWarning, match=message + name) as seen:
            result = call()
        assert len(seen) == 1
        assert seen[0].filename == __file__
        assert (result.inertia == 0).tolist() == [False, True, False, True, True, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(backend, make, kernel, bad):
    x, w, cs = (
        together(),
        sample_weights(),
        [x[:k].copy() for x, k in zip(divided(together()), KS, strict=True)],
    )
    x[70, 1], w[41], cs[3][0, 0] = bad, bad, bad
    xs, good = [make(a) for a in divided(x)], [make(a) for a in divided(together())]
    options = {"rng": 0, "kernel": kernel}
    with pytest.raises(ValueError, match=r"^`x\[2\]` must be finite; got .* in feature 1"):
        kmeans(xs, KS, **options)
    with pytest.raises(ValueError, match=r"^`x\[65:90\]` must be finite; got .* in feature 1"):
        kmeans(make(x), KS, lengths=SIZES, **options)
    with pytest.raises(ValueError, match=r"^`x\[65:90\]` must be finite"):
        assign(make(x), good[0], lengths=SIZES, kernel=kernel)
    with pytest.raises(ValueError, match=r"^`sample_weight\[1\]` must be finite"):
        kmeans(good, KS, sample_weight=[make(a) for a in divided(w)], kernel=kernel)
    with pytest.raises(ValueError, match=r"^`sample_weight` must be finite"):
        kmeans(make(together()), KS, lengths=SIZES, sample_weight=make(w), kernel=kernel)
    with pytest.raises(ValueError, match=r"^`init\[3\]` must be finite"):
        kmeans(good, KS, init=[make(c) for c in cs], kernel=kernel)
    with pytest.raises(ValueError, match=r"^`centroids\[3\]` must be finite"):
        assign(good, [make(c) for c in cs], kernel=kernel)


def no_weight(i):
    w = np.ones(N)
    w[ENDS[i] - SIZES[i] : ENDS[i]] = 0
    return w


LISTS = [
    ({"k": 3}, ValueError, r"^`k` must be between 1 and .*; got k=3 with x\[3\] of shape \(1, 3\)"),
    (
        {"k": [5, 3, 3, 1, 61, 7]},
        ValueError,
        r"^`k\[4\]` .*got k\[4\]=61 with x\[4\] of shape \(60, 3\)",
    ),
    (
        {"k": KS[1:]},
        ValueError,
        r"^`k` must be a whole number, or one for each of the 6 problems; got 5 of them",
    ),
    ({"k": []}, ValueError, r"^`k` must be .* got 0 of them"),
    ({"k": [5, 3, 3, 1, 0, 7]}, ValueError, r"^`k\[4\]` must be at least 1"),
    ({"k": [5, 3, 3, 1, 2.5, 7]}, TypeError, r"^`k\[4\]` must be a whole number; got 2.5"),
    ({"k": (k for k in KS)}, TypeError, r"^`k` must be a whole number; got <generator"),
    ({"k": [5, 3, 3, True, 2, 7]}, TypeError, r"^`k\[3\]` must be a whole number"),
    (
        {"sample_weight": np.ones(N)},
        TypeError,
        r"^`sample_weight` must be a list of the weights of each problem",
    ),
    (
        {"sample_weight": [1.0] * B},
        TypeError,
        r"^`sample_weight` must be a list of the weights of each problem",
    ),
    (
        {"sample_weight": (w for w in divided(np.ones(N)))},
        TypeError,
        r"^`sample_weight` must be a list.*generator",
    ),
    (
        {"sample_weight": divided(np.ones(N))[1:]},
        ValueError,
        r"^`sample_weight` must be .* 6 problems; got 5 of them",
    ),
    (
        {"sample_weight": divided(np.ones(N))[::-1]},
        ValueError,
        r"^`sample_weight\[0\]` must have shape \(40,\)",
    ),
    (
        {"sample_weight": divided(no_weight(2))},
        ValueError,
        r"^`sample_weight\[2\]` must not be all zero",
    ),
    (
        {"sample_weight": divided(1 - 2 * no_weight(2))},
        ValueError,
        r"^`sample_weight\[0\]` must not be negative",
    ),
    (
        {"init": [x[:2] for x in divided(together())]},
        ValueError,
        r"^`init\[0\]` must have shape \(5, 3\).*features of x\[0\].*\(2, 3\)",
    ),
    (
        {"init": [x[:k] for x, k in zip(divided(together())[:5], KS, strict=False)]},
        ValueError,
        r"^`init` must be centroids \(k, d\) for all, or one for each of the 6 problems; got 5",
    ),
    (
        {"init": np.ones((5, D))},
        ValueError,
        r"^`init` must have shape \(3, 3\).*features of x\[1\]",
    ),
    ({"init": np.ones((B, 5, D))}, ValueError, r"^`init\[1\]` must have shape \(3, 3\)"),
    ({"init": "plus"}, ValueError, r"^`init` must be one of"),
    ({"max_bytes": 64 * (D + 7) - 1}, ValueError, "^`max_bytes` must hold .* 640 bytes"),
    ({"kernel": "fastest"}, ValueError, "^`kernel` must be"),
    ({"lengths": SIZES}, ValueError, r"^`lengths` must be None where `x` is a list of problems"),
]


@pytest.mark.parametrize(("options", "error", "about"), LISTS, ids=range(len(LISTS)))
def test_bad_options_are_refused_before_any_work(options, error, about):
    def init(*_args):
        raise AssertionError("work began")

    with pytest.raises(error, match=about):
        kmeans(divided(together()), **{"k": KS, "init": init, **options})


ENDED = [
    ({"k": 3}, ValueError, r"got k=3 with x\[90:91\] of shape \(1, 3\)"),
    (
        {"k": [5, 3, 3, 1, 61, 7]},
        ValueError,
        r"^`k\[4\]` .*got k\[4\]=61 with x\[91:151\] of shape \(60, 3\)",
    ),
    (
        {"k": KS[1:]},
        ValueError,
        r"^`k` must be a whole number, or one for each of the 6 problems; got 5 of them",
    ),
    (
        {"lengths": SIZES[1:]},
        ValueError,
        r"^`lengths` must add up to the number of rows of x, 158; got 118, in 5 problems",
    ),
    ({"lengths": []}, ValueError, r"^`lengths` must add up to .* got 0, in 0 problems"),
    (
        {"lengths": [0, *SIZES]},
        ValueError,
        r"^`lengths\[0\]` must be at least 1; got lengths\[0\]=0",
    ),
    ({"lengths": [-1, *SIZES, 1]}, ValueError, r"^`lengths\[0\]` must be at least 1"),
    ({"lengths": np.asarray(SIZES, float)}, TypeError, r"^`lengths\[0\]` must be a whole number"),
    ({"lengths": N}, TypeError, r"^`lengths` must be a list of whole numbers"),
    ({"lengths": np.asarray([SIZES])}, TypeError, r"^`lengths` must be a list of whole numbers"),
    ({"lengths": (n for n in SIZES)}, TypeError, r"^`lengths` must be .*list\(lengths\)"),
    ({"sample_weight": np.ones(B)}, ValueError, r"^`sample_weight` must have shape \(158,\)"),
    (
        {"sample_weight": no_weight(4)},
        ValueError,
        r"^`sample_weight\[91:151\]` must not be all zero",
    ),
    (
        {"init": [x[:2] for x in divided(together())]},
        ValueError,
        r"^`init\[0\]` must have shape \(5, 3\).*features of x\[0:40\]",
    ),
    (
        {"x": together().reshape(2, -1, D)},
        ValueError,
        r"^`x` must have 2 dimensions, \(rows, features\); got",
    ),
]


@pytest.mark.parametrize(("options", "error", "about"), ENDED, ids=range(len(ENDED)))
def test_bad_options_of_rows_end_to_end(options, error, about):
    def init(*_args):
        raise AssertionError("work began")

    with pytest.raises(error, match=about):
        kmeans(**{"x": together(), "k": KS, "lengths": SIZES, "init": init, **options})


def test_bad_problems_are_named(backend, make):
    xs = [make(x) for x in divided(together())]
    with pytest.raises(
        ValueError,
        match=r"^`x\[2\]` must have at least one row and one feature; got shape \(0, 3\)",
    ):
        kmeans([*xs[:2], xs[2][:0, :], *xs[3:]], KS)
    with pytest.raises(ValueError, match=r"^`x\[1\]` must have 2 dimensions"):
        kmeans([xs[0], xs[1][:, 0], *xs[2:]], KS)
    with pytest.raises(TypeError, match=r"^`x\[1\]` must "):
        kmeans([xs[0], None, *xs[2:]], KS)
    with pytest.raises(TypeError, match=r"^`x` must be an array or rows.*list\(x\)"):
        kmeans((x for x in xs), KS)
    with pytest.raises(ValueError, match=r"^`init\[1\]` must have shape \(3, 3\)"):
        kmeans(
            xs, KS, init=[x[:k, : D - i % 2] for i, (x, k) in enumerate(zip(xs, KS, strict=True))]
        )
    with pytest.raises(TypeError, match=r"^`k` must be a whole number"):
        kmeans(xs[0], [2, 3])
    if backend.library != "numpy":
        with pytest.raises(ValueError, match=r"^`x\[1\]` must live where `x\[0\]` does"):
            kmeans([xs[0], divided(together())[1]], 1)


def test_assign_names_what_is_wrong():
    xs = divided(together())
    with pytest.raises(
        ValueError, match=r"^`centroids` must be .* each of the 6 problems; got 5 of them"
    ):
        assign(xs, xs[:5])
    with pytest.raises(ValueError, match=r"^`lengths` must add up"):
        assign(together(), xs[0], lengths=[3])
    with pytest.raises(ValueError, match=r"^`centroids\[1\]` must have no centroid of length 0"):
        assign(xs, [x - x[1] if i == 1 else x for i, x in enumerate(xs)], metric="cosine")
    x = together()
    x[50] = 0
    with pytest.raises(ValueError, match=r"^`x\[40:65\]` must have no row of length 0"):
        assign(x, xs[0], lengths=SIZES, metric="cosine")


def test_an_error_on_the_way_says_in_which_problem():
    xs = divided(together())
    cs = [x[:k].copy() for x, k in zip(xs, KS, strict=True)]
    cs[4][0] = 1e6
    with pytest.raises(ValueError, match=r"^`empty`='error' and cluster 0") as caught:
        kmeans(xs, KS, init=cs, empty="error")
    assert caught.value.__notes__ == ["This was while clustering `x[4]`."]
    with pytest.raises(ValueError, match=r"^`empty`='error' and cluster 0") as caught:
        kmeans(together(), KS, init=cs, lengths=SIZES, empty="error")
    assert caught.value.__notes__ == [f"This was while clustering `{NAMES[4]}`."]
    sparse = pytest.importorskip("scipy.sparse")
    with pytest.raises(ValueError, match=r"cannot run here: the rows are sparse") as caught:
        kmeans([xs[0], sparse.csr_matrix(xs[1])], 2, kernel="agnostic")
    assert caught.value.__notes__ == ["This was while clustering `x[1]`."]
