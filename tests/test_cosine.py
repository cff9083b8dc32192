"""Spherical k-means, `metric="cosine"`: rows and centroids at length 1, bit for bit, by plain loops."""

import math
import tracemalloc
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import referee
import scipy.sparse as sp
from referee import bits
from sklearn.base import clone
from sklearn.metrics.pairwise import cosine_distances

from anykmeans import KMeans, MiniBatchKMeans, assign, kernels, kmeans, kmeans_plusplus

COMPILED = ["numba"] if find_spec("numba") else []
KERNELS = ["agnostic", "cpu", *COMPILED]
FEW = pytest.mark.filterwarnings("ignore:Number of distinct clusters")


def at_length_one(x, dtype="float32"):
    """Rows (n, d) at length 1, by plain loops over rows whose squares stay within float64."""
    found = np.empty(x.shape, dtype)
    for i, row in enumerate(np.asarray(x, np.float64)):
        (squared,) = referee.distances(row[None, :], np.zeros((1, x.shape[1])))[0]
        within = abs(squared - 1) <= (2.0**-22 if dtype == "float32" else 2.0**-46)
        length = 1.0 if within else math.sqrt(squared)
        found[i] = [value / length for value in row.tolist()]  # rounded to the dtype last
    return found


def spherical(x, c, w=None, *, dtype="float32", max_iter=300, tol=1e-4, empty="relocate"):
    """Lloyd's loop of the referee over rows of any length from `c`: means are brought to length 1."""
    u, c = at_length_one(x, dtype).astype(np.float64), at_length_one(c, dtype).astype(np.float64)
    w = np.ones(x.shape[0]) if w is None else w.astype(np.float64)
    threshold = tol * np.mean(np.average((u - referee.mean(u, w)) ** 2, axis=0, weights=w))
    for n_iter in range(1, max_iter + 1):  # noqa: B007
        labels, squared = referee.nearest(u, c)
        means = referee.update(u, w, labels, squared, c, empty)
        zero = ~means.any(axis=1)
        means[zero] = c[zero]
        new = at_length_one(means, dtype).astype(np.float64)
        shift = math.fsum(
            referee.distances(new[j : j + 1], c[j : j + 1])[0, 0] for j in range(len(c))
        )
        c = new
        if (
            shift <= threshold
        ):  # exact sums: labels that repeat move nothing, where no row was moved to an empty cluster
            break
    labels, squared = referee.nearest(u, c)
    return c, labels, referee.weighted_sum(squared, w), n_iter


def rows(n=200, d=5, dtype="float64", seed=0):
    """Overlapping bundles of directions, of lengths over six powers of ten."""
    rng = np.random.default_rng([n, d, seed])
    towards = rng.normal(size=(6, d))[rng.integers(6, size=n)] + rng.normal(size=(n, d)) * 0.4
    return (towards * 10.0 ** rng.uniform(-3, 3, size=(n, 1))).astype(dtype)


def weights(n):
    """Weights (n,) of very different size, some of them zero."""
    w = np.random.default_rng(n).lognormal(0, 2, size=n)
    w[::7] = 0
    return w


def entries(n, d, dtype="float64"):
    """Sparse rows (n, d), CSR, none of them without an entry."""
    rng = np.random.default_rng([n, d])
    x = np.where(rng.random((n, d)) < 6 / d, rng.normal(size=(n, d)), 0)
    x[np.arange(n), rng.integers(min(d, 40), size=n)] = rng.exponential(size=n) + 0.1
    return sp.csr_array(x.astype(dtype))


def check(result, wanted, host=np.asarray):
    """Assert that a result is what the referee found, to the last bit."""
    c, labels, inertia, n_iter = wanted
    assert host(result.labels).tolist() == labels.tolist()
    assert host(result.centroids).astype(np.float64).tobytes() == c.tobytes()
    assert (result.inertia, result.n_iter) == (inertia, n_iter)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d", "k"), [(200, 5, 6), (120, 33, 9), (60, 1, 2), (40, 2, 1)])
@FEW
def test_a_fit_is_that_of_plain_loops(backend, kernel, make, host, n, d, k, weighted, dtype):
    x = rows(n, d, dtype)
    w = weights(n) if weighted else None
    c = np.asarray([[3], [-2]], dtype) if d == 1 else x[:: n // k][:k] * np.asarray(3, dtype)
    found = kmeans(
        make(x),
        k,
        init=make(c),
        sample_weight=None if w is None else make(w),
        metric="cosine",
        kernel=kernel,
    )
    check(found, spherical(x, c, w, dtype=dtype), host)


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint16", "int64", "bool"]
)
@FEW
def test_a_fit_is_that_of_rows_brought_to_length_1_by_hand(backend, make, host, dtype, init):
    if not backend.has_dtype(dtype):
        pytest.skip(f"{backend.name} has no {dtype}")
    x = rows(300, 9, seed=1)
    x = x / np.abs(x).max(axis=1)[:, None]
    x = x > 0.1 if dtype == "bool" else np.rint(x * 100)
    x = make(x[x.any(axis=1)], dtype)
    wide = host(x).astype(np.float64)
    u = at_length_one(wide, "float32" if "float" in dtype and dtype != "float64" else "float64")
    how = {"metric": "cosine", "init": init, "rng": 3, "n_init": 1}
    wanted = bits(kmeans(u, 7, **how))
    for max_bytes in (None, 1 << 20, 3000):
        assert bits(kmeans(x, 7, max_bytes=max_bytes, **how), host) == wanted
    if init == "k-means++":
        picks = kmeans_plusplus(u, 7, random_state=5)
        found = kmeans_plusplus(x, 7, random_state=5, metric="cosine")
        assert [host(a).tobytes() for a in found] == [a.tobytes() for a in picks]


@pytest.mark.parametrize("by", KERNELS)
def test_seeding_measures_directions(by):
    """With the picks of the referee, of unit rows, where the lengths would lead to others."""
    x = rows(150, 4)
    picks = referee.kmeans_plusplus(at_length_one(x, "float64"), 6, np.random.RandomState(3))
    centers, at = kmeans_plusplus(x, 6, random_state=3, metric="cosine", kernel=by)
    assert at.tolist() == picks.tolist()
    assert centers.tobytes() == at_length_one(x, "float64")[picks].tobytes()
    assert kmeans_plusplus(x, 6, random_state=3)[1].tolist() != at.tolist()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("how", [{"threads": 1}, {"threads": 2}, {"max_bytes": 20_000}], ids=str)
def test_neither_threads_nor_memory_show(backend, kernel, make, host, setting, how, weighted):
    setting(spread=0)
    x = rows(700, 20, "float32")
    w = make(weights(700)) if weighted else None
    options = {"metric": "cosine", "rng": 0, "kernel": kernel, "sample_weight": w}
    wanted = bits(
        kmeans(
            x,
            9,
            **{**options, "kernel": "agnostic", "sample_weight": host(w) if weighted else None},
        )
    )
    assert bits(kmeans(make(x), 9, **options, **how), host) == wanted


def test_rows_are_read_without_a_copy_if_the_budget_is_small():
    x, budget = rows(20_000, 128), 1 << 22
    for by in ("cpu", *COMPILED):
        how = {"kernel": by, "init": x[:4].copy(), "max_iter": 2, "threads": 1}
        kmeans(
            x[:500], 4, metric="cosine", max_bytes=budget, **how
        )  # whatever is loaded or compiled
        tracemalloc.start()
        kmeans(x, 4, metric="cosine", max_bytes=budget, **how)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < budget + 100 * len(x) < x.nbytes / 3


@pytest.mark.parametrize("by", KERNELS)
def test_rows_of_any_length_count_alike(by):
    """Times a power of two no bit changes, and rows of 1e-300 beside such of 1e300 are no worse than others."""
    x = rows(300, 6)
    rng = np.random.default_rng(1)
    wanted = bits(kmeans(x, 5, metric="cosine", rng=0, kernel=by))
    for exponents in (rng.integers(-960, 960, size=(300, 1)), -990, 990):
        found = kmeans(np.ldexp(x, exponents), 5, metric="cosine", rng=0, kernel=by)
        assert bits(found) == wanted
    size = 10.0 ** rng.integers(-300, 300, size=(300, 1))
    found = kmeans(x / np.abs(x).max(axis=1)[:, None] * size, 5, metric="cosine", rng=0, kernel=by)
    result = kmeans(x, 5, metric="cosine", rng=0)
    assert found.labels.tolist() == result.labels.tolist()
    np.testing.assert_allclose(found.centroids, result.centroids, rtol=0, atol=1e-14)
    single = (x * 1e-30).astype("float32"), (x * 1e30).astype("float32")
    a, b = (kmeans(each, 5, metric="cosine", rng=0, kernel=by) for each in single)
    assert a.labels.tolist() == b.labels.tolist() == result.labels.tolist()
    least = np.full((2, 3), 5e-324) * [[1], [3]]
    found = kmeans(least, 1, metric="cosine", kernel=by)
    np.testing.assert_allclose(found.centroids, np.full((1, 3), 3**-0.5), rtol=1e-15)


def test_what_has_length_1_is_taken_as_it_is():
    """So rows that somebody has normalized are not copied, and a fit ends at what `assign` and `predict` take."""
    x = rows(400, 12, "float32")
    u = x / np.linalg.norm(x, axis=1, keepdims=True)  # not by the same roundings
    assert (at_length_one(u) == u).all()
    picked, at = kmeans_plusplus(u, 6, random_state=0, metric="cosine")
    assert picked.tobytes() == u[at].tobytes()
    result = kmeans(u, 6, metric="cosine", rng=0)
    check(result, spherical(u, u[kmeans_plusplus(u, 6, random_state=np.random.default_rng(0))[1]]))
    for c in (result.centroids, result.centroids.tolist()):
        labels, squared = assign(x, c, metric="cosine")
        assert labels.tolist() == assign(u, result.centroids)[0].tolist()
    labels, squared = assign(u, result.centroids, metric="cosine")
    assert labels.tolist() == result.labels.tolist()
    assert math.fsum(squared) == result.inertia


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distances_are_those_of_cosines(dtype):
    x = rows(100, 8, dtype)
    result = kmeans(x, 5, metric="cosine", rng=0)
    cosines = 1 - cosine_distances(x.astype(np.float64), result.centroids.astype(np.float64))
    labels, squared = assign(x, result.centroids, metric="cosine")
    error = {"rtol": 0, "atol": 1e-6 if dtype == "float32" else 1e-14}
    np.testing.assert_allclose(squared, 2 - 2 * cosines.max(axis=1), **error)
    assert labels.tolist() == cosines.argmax(axis=1).tolist() == result.labels.tolist()
    np.testing.assert_allclose(result.inertia, 2 * (1 - cosines.max(axis=1)).sum(), rtol=1e-5)
    lengths = np.linalg.norm(result.centroids.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, **error)


# -- batches, sparse rows -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "init", ["k-means++", "random", "k-means||", "given", "given to each", "called"]
)
@pytest.mark.parametrize("weighted", [False, True])
@FEW
def test_a_batch_is_a_loop(backend, make, host, init, weighted):
    x = rows(360, 4).reshape(4, 90, 4)
    w = weights(360).reshape(4, 90) if weighted else None
    start = {"given": x[0, :5] * 7, "given to each": x[:, 3:8] * 5}.get(init, init)
    starts = start if init == "given to each" else [start] * 4
    if init == "called":
        start = lambda x, k, rng: x[2 : 2 + k, :]  # noqa: E731
        starts = [start] * 4
    rng = np.random.default_rng(0)
    wanted = [
        kmeans(x[i], 5, init=starts[i], sample_weight=None if w is None else w[i], rng=rng, metric="cosine", n_init=2 if isinstance(starts[i], str) else "auto")
        for i in range(4)
    ]  # fmt: skip
    found = kmeans(
        make(x),
        5,
        init=make(start) if isinstance(start, np.ndarray) else start,
        n_init=2 if isinstance(start, str) else "auto",
        sample_weight=None if w is None else make(w),
        rng=0,
        metric="cosine",
    )
    assert host(found.centroids).tobytes() == np.stack([a.centroids for a in wanted]).tobytes()
    assert host(found.labels).tolist() == [a.labels.tolist() for a in wanted]
    assert found.inertia.tolist() == [a.inertia for a in wanted]
    assert found.n_iter.tolist() == [a.n_iter for a in wanted]
    labels, squared = assign(make(x), found.centroids, metric="cosine")
    assert host(labels).tolist() == host(found.labels).tolist()
    ones = [assign(x[i], wanted[i].centroids, metric="cosine")[1] for i in range(4)]
    assert host(squared).tobytes() == np.stack(ones).tobytes()


@pytest.mark.parametrize("by", ["cpu", *COMPILED])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize(("n", "d"), [(250, 12), (150, 700), (90, 5000)])
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random", "given", "called"])
@FEW
def test_sparse_rows_give_the_bits_of_dense_ones(by, dtype, n, d, init):
    x = entries(n, d, dtype if dtype != "int64" else "float64")
    if dtype == "int64":
        x.data = np.ceil(x.data * 3)
        x = x.astype("int64")
        x = x[np.abs(x).sum(axis=1) > 0]
    n, w = x.shape[0], weights(x.shape[0])
    if init == "given":
        init = np.random.default_rng(0).normal(size=(6, d))  # of features that no row has, too
    elif init == "called":
        init = lambda x, k, rng: x[5 : 5 + k]  # noqa: E731
    how = {"metric": "cosine", "init": init, "rng": 0, "max_iter": 20}
    for weight in (None, w):
        for max_bytes in (None, 64 * (d + 10)):
            found = kmeans(x, 6, kernel=by, sample_weight=weight, max_bytes=max_bytes, **how)
            assert bits(found) == bits(kmeans(x.toarray(), 6, sample_weight=weight, **how))
    values = x.data.copy()
    for c in (found.centroids, sp.csr_array(found.centroids), found.centroids * 3):
        a = assign(x, c, metric="cosine", kernel=by)
        b = assign(x.toarray(), c.toarray() if sp.issparse(c) else c, metric="cosine")
        assert [each.tobytes() for each in a] == [each.tobytes() for each in b]
    assert (x.data == values).all()


@pytest.mark.parametrize("by", ["cpu", *COMPILED])
def test_sparse_rows_of_any_length_count_alike(by):
    x = entries(120, 900)
    wanted = bits(kmeans(x, 5, metric="cosine", rng=0, kernel=by))
    exponents = np.random.default_rng(0).integers(-900, 900, size=120)
    huge = sp.csr_array((np.ldexp(x.data, np.repeat(exponents, np.diff(x.indptr))), x.indices, x.indptr), x.shape)  # fmt: skip
    assert bits(kmeans(huge, 5, metric="cosine", rng=0, kernel=by)) == wanted


# -- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", KERNELS)
def test_a_cluster_whose_mean_is_zero_keeps_its_centroid(by):
    x = np.array([[3.0, 0.0], [-0.1, 0.0], [0.0, 2.0], [0.0, -5.0]])
    start = np.array([[2.0, 1.0]])
    found = kmeans(x, 1, init=start, metric="cosine", kernel=by)
    assert found.centroids.tobytes() == at_length_one(start, "float64").tobytes()
    np.testing.assert_allclose(found.inertia, 8, rtol=1e-15)  # a sum of four 2 - 2 cos
    assert (found.n_iter, found.converged) == (1, True)


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("tiny", "wanted"), [(1e-250, [0, 1, 0]), (0, [0, -1, 0])])
def test_a_mean_may_be_tiny(by, sparse, tiny, wanted):
    """What is left of rows that point away from each other has a direction as long as it is not zero."""
    if sparse and by == "agnostic":
        pytest.skip("agnostic: the rows are sparse")
    x = np.array([[1, tiny, 0], [-1, tiny, 0], [0, 0, 1], [0, 0, 2]])
    start = np.array([[0.0, -1, 0], [0, 0, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = kmeans(
            sp.csr_array(x) if sparse else x,
            2,
            init=start,
            sample_weight=[1, 1, 3, 3],
            max_iter=1,
            empty="keep",
            metric="cosine",
            kernel=by,
        )
    # The first two rows are as near to either centroid: the lowest label wins.
    assert found.centroids.tolist() == [wanted, [0, 0, 1]]


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_as_many_clusters_as_directions_fit_exactly(by, dtype):
    x = rows(12, 5, dtype)
    many = np.repeat(x, 4, axis=0) * np.asarray(2.0 ** np.arange(48)[:, None] / 2**30, dtype)
    w = np.tile([1, 1, 2, 4] if dtype == "float64" else [0.1, 0.7, 1.1, 3], 12)
    for weight in (None, w):  # of other weights a float64 mean may be off in its last bit
        found = kmeans(many, 12, metric="cosine", rng=0, sample_weight=weight, kernel=by)
        assert found.inertia == 0
        u = at_length_one(x, dtype)
        assert {row.tobytes() for row in found.centroids} == {row.tobytes() for row in u}
    found = kmeans(x, 12, metric="cosine", rng=0, kernel=by)
    assert found.inertia == 0
    assert sorted(found.labels) == list(range(12))


def test_one_cluster_has_the_direction_of_the_sum():
    x = rows(50, 7)
    u = at_length_one(x, "float64")
    found = kmeans(x, 1, metric="cosine", rng=0)
    mean = u.mean(axis=0)
    np.testing.assert_allclose(found.centroids[0], mean / np.linalg.norm(mean), rtol=1e-13)


@pytest.mark.parametrize("empty", ["relocate", "keep"])
def test_empty_clusters_are_served(backend, kernel, make, host, empty):
    x = np.abs(rows(90, 3))
    c = np.concatenate([x[:2], -x[2:5]])  # nobody points there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = kmeans(make(x), 5, init=make(c), metric="cosine", empty=empty, kernel=kernel)
    check(found, spherical(x, c, dtype="float64", empty=empty), host)
    if empty == "keep":
        assert host(found.centroids)[2:].tobytes() == at_length_one(c, "float64")[2:].tobytes()
        with pytest.raises(ValueError, match="`empty`='error' and cluster 2 has no rows"):
            kmeans(make(x), 5, init=make(c), metric="cosine", empty="error", kernel=kernel)


def test_tol_is_relative_to_the_variance_of_unit_rows(rng):
    x = rng.normal(size=(400, 3)) * rng.uniform(1, 100, size=(400, 1))
    c, u = x[:6], at_length_one(x, "float64")
    passes = []
    for tol in (0, 1e-3, 0.1):
        found = kmeans(x, 6, init=c, metric="cosine", tol=tol)
        check(found, spherical(x, c, dtype="float64", tol=tol))
        assert bits(found) == bits(kmeans(u, 6, init=c, metric="cosine", tol=tol))
        passes.append(found.n_iter)
    assert passes[0] > passes[1] > passes[2]


# -- estimators ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_estimator_is_the_function(backend, make, host, dtype):
    x, w = rows(300, 6, dtype), weights(300)
    model = KMeans(5, metric="cosine", random_state=0).fit(make(x), sample_weight=make(w))
    draws = np.random.RandomState(0)
    wanted = kmeans(x, 5, metric="cosine", rng=draws, sample_weight=w)
    assert host(model.cluster_centers_).tobytes() == wanted.centroids.tobytes()
    assert model.inertia_ == wanted.inertia
    assert model.n_iter_ == wanted.n_iter
    labels = host(model.predict(make(x)))
    assert labels.tolist() == host(model.labels_).tolist() == wanted.labels.tolist()
    assert labels.tolist() == host(model.predict(make(x * np.asarray(8, dtype)))).tolist()
    assert -model.score(make(x), sample_weight=make(w)) == model.inertia_
    found = host(model.transform(make(x)))
    assert str(found.dtype) == dtype
    assert (found >= 0).all()
    exact = cosine_distances(x.astype(np.float64), wanted.centroids.astype(np.float64))
    np.testing.assert_allclose(found, exact, atol=1e-6 if dtype == "float32" else 1e-14)
    with pytest.raises(ValueError, match="`metric` must be 'euclidean' for scikit-learn"):
        model.as_sklearn()
    assert clone(model).metric == "cosine"


def test_small_distances_keep_their_digits():
    """Where ``1 - cos`` of rounded cosines would be 0."""
    angle = np.array([0.0, 1e-3, 1e-5, 1e-7])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1) * 5
    model = KMeans(1, init=x[:1], max_iter=1, metric="cosine")
    model.fit(x[:1])
    wanted = 2 * np.sin(angle / 2) ** 2
    np.testing.assert_allclose(model.transform(x)[:, 0], wanted, rtol=1e-8)


def streamed(x, c, w, size, dtype):
    """Centers after batches from `c`, by plain loops: directions of the sums of all rows."""
    u, c = at_length_one(x, dtype).astype(np.float64), at_length_one(c, dtype).astype(np.float64)
    seen = [[] for _ in c]
    for first in range(0, len(x), size):
        batch = range(first, min(first + size, len(x)))
        labels, _ = referee.nearest(u[first : first + size], c)
        for i, j in zip(batch, labels, strict=True):
            seen[j].append(i)
        for j in set(labels.tolist()):
            if w[seen[j]].any():
                mean = referee.mean(u[seen[j]], w[seen[j]])
                c[j] = at_length_one(mean[None, :], dtype)[0]
    return c


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("weighted", [False, True])
def test_batches_of_a_stream_move_centers_to_the_direction_of_all_rows(
    backend, kernel, make, host, dtype, weighted
):
    x = rows(240, 7, dtype)
    w = np.random.default_rng(0).integers(1, 4, size=240) / 4 if weighted else np.ones(240)
    how = {"metric": "cosine", "reassignment_ratio": 0, "kernel": kernel}
    model = MiniBatchKMeans(5, init=make(x[:5]), **how)
    for first in range(0, 240, 60):
        some = slice(first, first + 60)
        weight = make(w[some]) if weighted else None
        model.partial_fit(make(x[some]), sample_weight=weight)
    found = host(model.cluster_centers_)
    assert found.astype(np.float64).tobytes() == streamed(x, x[:5], w, 60, dtype).tobytes()
    assert (
        host(model.predict(make(x))).tolist()
        == referee.nearest(at_length_one(x, dtype).astype(np.float64), found.astype(np.float64))[
            0
        ].tolist()
    )


@pytest.mark.parametrize("init", ["k-means++", "random", "called"])
def test_mini_batches_give_the_same_bits_everywhere(backend, kernel, make, host, init):
    x, w = rows(500, 9, "float32"), weights(500)
    if init == "called":
        init = lambda x, k, random_state: x[:k, :]  # noqa: E731
    how = {"metric": "cosine", "init": init, "random_state": 0, "batch_size": 60, "tol": 1e-4}
    a = MiniBatchKMeans(6, kernel="agnostic", **how).fit(x, sample_weight=w)
    b = MiniBatchKMeans(6, kernel=kernel, max_bytes=9000, **how).fit(make(x), sample_weight=make(w))
    assert host(b.cluster_centers_).tobytes() == a.cluster_centers_.tobytes()
    assert host(b.labels_).tolist() == a.labels_.tolist()
    assert (b.inertia_, b.n_steps_) == (a.inertia_, a.n_steps_)
    lengths = np.linalg.norm(a.cluster_centers_.astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-7)
    u = at_length_one(x)
    c = MiniBatchKMeans(6, **how).fit(u, sample_weight=w)
    assert c.cluster_centers_.tobytes() == a.cluster_centers_.tobytes()


@pytest.mark.parametrize("by", ["cpu", *COMPILED])
def test_sparse_mini_batches_give_the_bits_of_dense_ones(by):
    x = entries(300, 800)
    how = {"metric": "cosine", "random_state": 0, "batch_size": 50}
    a = MiniBatchKMeans(6, kernel=by, **how).fit(x)
    b = MiniBatchKMeans(6, **how).fit(x.toarray())
    assert a.cluster_centers_.tobytes() == b.cluster_centers_.tobytes()
    assert a.inertia_ == b.inertia_
    a, b = (MiniBatchKMeans(6, init=x[:6].toarray(), kernel=by, metric="cosine") for _ in range(2))
    for some in (slice(0, 80), slice(80, 200), slice(200, 300)):
        a.partial_fit(x[some])
        b.partial_fit(x[some].toarray() if some.start else x[some])
    assert a.cluster_centers_.tobytes() == b.cluster_centers_.tobytes()


def test_centers_set_by_hand_are_brought_to_length_1():
    x = rows(100, 4)
    a, b = (MiniBatchKMeans(3, init=x[:3], metric="cosine").partial_fit(x[:50]) for _ in range(2))
    a.cluster_centers_ = a.cluster_centers_ * np.array([[1.0], [4.0], [1.0]])
    assert a.predict(x).tolist() == b.predict(x).tolist()
    lengths = np.linalg.norm(a.partial_fit(x[50:]).cluster_centers_, axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-15)
    hand = KMeans(metric="cosine")
    hand.cluster_centers_ = b.cluster_centers_ * 1024
    assert hand.predict(x).tolist() == b.predict(x).tolist()


# -- what is refused ----------------------------------------------------------------------------


def test_a_row_of_length_0_is_named(backend, kernel, make):
    x = rows(40, 3)
    x[[7, 30]] = 0
    message = r"must have no row of length 0 with `metric`='cosine'.*got 2 such, number 7, 30"
    how = {"metric": "cosine", "kernel": kernel}
    with pytest.raises(ValueError, match="`x` " + message):
        kmeans(make(x), 3, rng=0, **how)
    with pytest.raises(ValueError, match="`x` " + message):
        assign(make(x), make(x[:3]), **how)
    with pytest.raises(ValueError, match="`X` " + message):
        kmeans_plusplus(make(x), 3, **how)
    w = np.ones(40)
    w[[7, 30]] = 0  # it would get a label, too
    for cls in (KMeans, MiniBatchKMeans):
        with pytest.raises(ValueError, match="`X` " + message):
            cls(3, **how).fit(make(x), sample_weight=make(w))
        model = cls(3, **how).fit(make(x[:7]))
        for method in (model.predict, model.transform, model.score):
            with pytest.raises(ValueError, match="`X` " + message):
                method(make(x))
    with pytest.raises(ValueError, match=r"`X` .*got 1 such, number 7\."):
        MiniBatchKMeans(3, **how).partial_fit(make(x[:9]))
    x[10:20] = 0
    with pytest.raises(ValueError, match=r"got 12 such, number 7, 10, 11, 12, 13, \.\.\."):
        kmeans(make(x), 3, **how)


def test_other_impossible_rows_and_centroids_are_refused():
    x = rows(40, 3)
    with pytest.raises(
        ValueError, match="`metric` must be one of 'euclidean', 'cosine'; got 'cos'"
    ):
        kmeans(x, 3, metric="cos")
    for call in (
        lambda: assign(x, x[:3], metric="l2"),
        lambda: kmeans_plusplus(x, 3, metric="l2"),
        lambda: KMeans(3, metric="l2").fit(x),
        lambda: MiniBatchKMeans(3, metric="l2").fit(x),
        lambda: MiniBatchKMeans(3, metric="l2").partial_fit(x),
        lambda: MiniBatchKMeans(3).partial_fit(x).set_params(metric="l2").partial_fit(x),
        lambda: KMeans(3).fit(x).set_params(metric="l2").predict(x),
        lambda: KMeans(3).fit(x).set_params(metric=None).transform(x),
    ):
        with pytest.raises(ValueError, match="`metric` must be one of"):
            call()
    zero = x[:3].copy()
    zero[1] = 0
    with pytest.raises(ValueError, match=r"`init` must have no centroid of length 0.*number 1\."):
        kmeans(x, 3, init=zero, metric="cosine")
    with pytest.raises(
        ValueError, match=r"`centroids` must have no centroid of length 0.*number 1\."
    ):
        assign(x, zero, metric="cosine")
    for value, word in ((np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")):
        for by in KERNELS:
            bad = x.copy()
            bad[11, 2] = value
            with pytest.raises(ValueError, match=f"`x` must be finite; got {word} .* in feature 2"):
                kmeans(bad, 3, metric="cosine", kernel=by)
            with pytest.raises(ValueError, match=f"`x` must be finite; got {word} .* in feature 2"):
                kmeans(bad.astype("float32"), 3, metric="cosine", kernel=by)
    batch = np.stack([x, x])
    batch[1, 5] = 0
    with pytest.raises(ValueError, match=r"`x\[1\]` must have no row of length 0.*number 5\."):
        kmeans(batch, 3, metric="cosine", rng=0)
    with pytest.raises(ValueError, match=r"`x\[1\]` must have no row of length 0.*number 5\."):
        assign(batch, x[:3], metric="cosine")


@pytest.mark.parametrize("by", ["cpu", *COMPILED])
def test_sparse_rows_without_a_direction_are_refused(by):
    x = entries(50, 300).tolil()
    x[4] = 0
    x = x.tocsr()
    with pytest.raises(ValueError, match=r"no row of length 0.*got 1 such, number 4\."):
        kmeans(x, 3, metric="cosine", kernel=by)
    x = entries(50, 300)
    x.data[x.indptr[9]] = np.nan
    feature = x.indices[x.indptr[9]]
    with pytest.raises(ValueError, match=f"must be finite; got NaN .* in feature {feature}"):
        kmeans(x, 3, metric="cosine", kernel=by)


def test_a_kernel_that_reads_rows_as_they_are_declines(monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.tensor(rows(40, 3))
    reason = kernels.why_not("triton", x, "cosine")
    assert reason == "it reads rows as they are, which suits 'euclidean' alone"
    with pytest.raises(ValueError, match="`kernel`='triton' cannot run here: it reads rows as"):
        kmeans(x, 3, metric="cosine", kernel="triton")
    assert kmeans(x, 3, metric="cosine", rng=0, kernel="torch").kernel == "torch"


def test_what_is_given_stays_as_it_was():
    x, c = rows(60, 5)[::-2, ::-1], rows(4, 5)
    before = x.copy(), c.copy()
    x.flags.writeable = c.flags.writeable = False
    result = kmeans(x, 4, init=c, metric="cosine")
    assert bits(result) == bits(kmeans(before[0], 4, init=c, metric="cosine"))
    assert (x == before[0]).all()
    assert (c == before[1]).all()


# -- peers --------------------------------------------------------------------------------------


def test_faiss_finds_the_same_partition():
    faiss = pytest.importorskip("faiss", reason="faiss is not installed")
    rng = np.random.default_rng(0)
    towards = np.linalg.qr(rng.normal(size=(24, 24)))[0][:8]
    x = (towards[rng.integers(8, size=600)] + rng.normal(size=(600, 24)) * 0.12) * rng.uniform(0.1, 9, size=(600, 1))  # fmt: skip
    x = x.astype("float32")
    u = at_length_one(x)
    start = u[[int(np.flatnonzero((u @ each) > 0.6)[0]) for each in towards]]
    peer = faiss.Kmeans(24, 8, niter=20, spherical=True, min_points_per_centroid=1)
    peer.train(u, init_centroids=start)
    found = kmeans(x, 8, init=start, metric="cosine")
    labels = (u @ peer.centroids.T).argmax(axis=1)
    assert found.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(found.centroids, peer.centroids, atol=1e-6)
