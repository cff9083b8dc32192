"""Sparse rows: the bits of dense ones, from the entries alone."""

import itertools
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import scipy.sparse as sp
from referee import bits

from anykmeans import KMeans, MiniBatchKMeans, assign, kernels, kmeans, kmeans_plusplus
from anykmeans._bounds import Bounds
from anykmeans._certify import interval
from anykmeans._distance import squared_distances
from anykmeans._frame import Frame
from anykmeans._libraries import np_compat
from anykmeans._matrix import Matrix, Sparse
from anykmeans._sparse import SparseRows
from anykmeans.kernels import compiled
from anykmeans.sources.rows import Rows

KERNELS = ["cpu", *(["numba"] if find_spec("numba") else [])]
pytestmark = pytest.mark.filterwarnings("ignore:Number of distinct clusters")


def sparse(n, d, density, dtype="float64", seed=0, whole=False):
    """Random rows (n, d), CSR, with rows of no entry, values of both signs and, if `whole`, many ties."""
    rng = np.random.default_rng([n, d, seed])
    values = rng.integers(-2, 3, size=(n, d)) if whole else rng.normal(size=(n, d)) * 3
    x = np.where(rng.random((n, d)) < density, values, 0).astype(dtype)
    x[: n // 7] = 0
    return sp.csr_array(x)


def same(x, k, kernel, dense=None, **options):
    """Assert that clustering sparse rows gives the bits of clustering them dense."""
    dense = x.toarray() if dense is None else dense
    got = kmeans(x, k, kernel=kernel, **options)
    assert got.kernel == kernel
    assert bits(got) == bits(kmeans(dense, k, kernel="agnostic", **options))


@pytest.mark.parametrize("d", [1, 2, 3, 5, 8, 17, 100, 1 << 12])
@pytest.mark.parametrize("density", [0, 0.003, 0.05, 0.6, 1])
@pytest.mark.parametrize("by", KERNELS)
def test_a_distance_is_that_of_dense_rows(by, d, density):
    x = sparse(40, d, density)
    rng = np.random.default_rng(d)
    c = np.where(rng.random((3, d)) < 0.5, rng.normal(size=(3, d)), 0)
    c[2] = 0
    labels = rng.integers(3, size=40)
    wanted = squared_distances(np_compat, x.toarray(), c[labels])
    # With a column for each feature, and for those alone that are not zero everywhere.
    for room in (0, 1 << 30):
        matrix = Sparse(x, SparseRows.of(x, c, room), "float64")
        chosen, frame = kernels.choose(x, by), Frame(matrix, 1.0)
        found = chosen.own_distances(frame, slice(0, 40), matrix.columns_of(c), labels)
        assert found.tobytes() == wanted.tobytes()
        at = np.array([3, 39, 3])
        found = chosen.own_distances(frame, at, matrix.columns_of(c), labels[at])
        assert found.tobytes() == wanted[at].tobytes()
        moved = chosen.moves(matrix, matrix.columns_of(c), matrix.columns_of(c[::-1]))
        assert moved.tobytes() == squared_distances(np_compat, c, c[::-1]).tobytes()


def test_few_features_with_entries_have_columns():
    x = sp.csr_array(([1.0, 2.0, -4.0], [70, 9, 70], [0, 1, 1, 3]), shape=(3, 100))
    c = np.zeros((2, 100))
    c[1, 33] = 5
    rows = SparseRows.of(x, c, 1 << 20)
    assert rows.halving.columns.tolist() == [9, 33, 70]
    matrix = Sparse(x, rows, "float64")
    assert matrix.rows(slice(0, 3)).tolist() == [[0, 0, 1], [0, 0, 0], [2, 0, -4]]
    np.testing.assert_array_equal(matrix.spread(matrix.columns_of(c)), c)
    assert SparseRows.of(x, c, 0).halving.complete  # there is no room for new numbers
    assert SparseRows.of(x, np.ones((1, 100)), 1 << 20).halving.complete


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("init", ["k-means++", "random", "k-means||", "given", "callable"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_bits_of_dense_rows(by, dtype, init, weighted):
    for d, density in ((7, 0.4), (300, 0.03), (3000, 0.001)):
        x = sparse(150, d, density, dtype, whole=dtype in ("int64", "bool"))
        w = np.random.default_rng(1).integers(0, 4, 150) / 3 if weighted else None
        start = np.random.default_rng(2).normal(size=(6, d)).astype("float32")
        start[:, ::2] = 0
        how = {"given": start, "callable": lambda x, k, rng, start=start: start}.get(init, init)
        same(x, 6, by, init=how, rng=3, sample_weight=w, n_init=1, max_iter=15)


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("scale", [2.0**-600, 2.0**-400, 1e-12, 1e30, 2.0**400, 2.0**600])
def test_tiny_and_huge_values(by, scale):
    x = sparse(120, 40, 0.2)
    same(x * scale, 5, by, rng=0, max_iter=10)
    same(x * scale, 5, by, init=(x.toarray() * scale)[40:45], max_iter=10)


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("values", [1, 3])
def test_rows_of_few_values_that_often_tie(by, values):
    """Where estimates cannot tell candidates of k-means++ apart, exact steps must."""
    rng = np.random.default_rng(values)
    x = sp.csr_array(rng.integers(0, values + 1, size=(300, 12)).astype("float64"))
    for k, seed in itertools.product([2, 9, 40], range(4)):
        wanted = kmeans_plusplus(x.toarray(), k, random_state=seed)[1]
        assert kmeans_plusplus(x, k, random_state=seed, n_local_trials=None)[1].tolist() == (
            wanted.tolist()
        )
        same(x, k, by, rng=seed, max_iter=5)


@pytest.mark.skipif("numba" not in KERNELS, reason="Numba is not installed")
@pytest.mark.parametrize("weighted", [False, True])
def test_picks_by_estimates_and_by_exact_distances(monkeypatch, weighted):
    from anykmeans.kernels.sparse.numba import seeding

    x = sparse(2000, 200, 0.05)
    w = np.random.default_rng(0).exponential(size=2000) if weighted else None
    estimated = []
    seeds = seeding.by_estimates

    def spy(*arguments):
        estimated.append(seeds(*arguments))
        return estimated[-1]

    for how in (spy, lambda *arguments: None):
        monkeypatch.setattr(seeding, "by_estimates", how)
        for seed in range(5):
            got = kmeans(x, 20, sample_weight=w, rng=seed, max_iter=1, kernel="numba")
            dense = kmeans(x.toarray(), 20, sample_weight=w, rng=seed, max_iter=1)
            assert bits(got) == bits(dense)
    assert [picks for picks in estimated if picks is not None]  # it is of use


def containers(x):
    """The same rows in all of SciPy's formats and index types, and with entries out of order and given twice."""
    yield from (form(x) for form in (sp.csr_array, sp.csr_matrix, sp.csc_matrix, sp.coo_array))
    yield sp.lil_matrix(x)
    wide = sp.csr_array(x)
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    yield wide
    yield sp.csc_array(wide)
    backwards = sp.csr_array(x)
    for start, stop in itertools.pairwise(backwards.indptr):
        backwards.indices[start:stop] = backwards.indices[start:stop][::-1]
        backwards.data[start:stop] = backwards.data[start:stop][::-1]
    backwards.has_sorted_indices = False
    yield sp.csr_array((backwards.data, backwards.indices, backwards.indptr), shape=x.shape)
    coo = sp.coo_array(x)
    third = coo.data / 3
    entries = np.concatenate([third, coo.data, -third, np.zeros(1)])
    row, col = (np.concatenate([a, a, a, [0]]) for a in (coo.row, coo.col))
    order = np.random.default_rng(0).permutation(entries.size)
    twice = sp.coo_array((entries[order], (row[order], col[order])), shape=x.shape)
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=x.shape[0]))])
    rows = np.argsort(row[order], kind="stable")
    yield twice
    yield sp.csr_array((entries[order][rows], col[order][rows], starts), shape=x.shape)


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("d", [20, 900])
def test_containers_and_indices(by, d):
    for x in containers(sparse(90, d, 8 / d)):
        parts = [getattr(x, name, None) for name in ("data", "indices", "indptr", "row", "col")]
        before = [np.copy(part) for part in parts]
        same(x, 5, by, rng=1, max_iter=8)
        for model in (KMeans(5, random_state=0, kernel=by), MiniBatchKMeans(5, random_state=0)):
            dense = type(model)(5, random_state=0).fit(x.toarray())
            model.fit(x)
            np.testing.assert_array_equal(model.cluster_centers_, dense.cluster_centers_)
            np.testing.assert_array_equal(model.predict(x), dense.labels_)
        # Nothing was put in order, or added up.
        for part, was in zip(parts, before, strict=True):
            assert np.asarray(part).tobytes() == was.tobytes() or part is None


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("d", [30, 2000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_new_rows(by, d, dtype):
    x, new = sparse(80, d, 6 / d, dtype), sparse(300, d, 3 / d, dtype, seed=1)
    dense = new.toarray()
    centroids = kmeans(x, 7, rng=0).centroids
    for rows in (new, sp.csr_array(x), sp.vstack([x, new]).tocsr()):
        for got, wanted in zip(
            assign(rows, centroids), assign(rows.toarray(), centroids), strict=True
        ):
            assert got.tobytes() == wanted.tobytes()
    sparse_model = KMeans(7, random_state=0, kernel=by).fit(x)
    model = KMeans(7, random_state=0).fit(x.toarray())
    np.testing.assert_array_equal(sparse_model.predict(new), model.predict(dense))
    assert sparse_model.score(new) == model.score(dense)
    every = sparse_model.transform(new)
    assert every.dtype == dtype
    assert every.flags.c_contiguous
    wide = dense.astype(np.float64)[:, None] - model.cluster_centers_.astype(np.float64)
    true = np.sqrt((wide**2).sum(axis=2))
    np.testing.assert_allclose(every, true, rtol=1e-6 if dtype == "float32" else 1e-12, atol=1e-12)
    own = sparse_model.transform(sp.csr_array(model.cluster_centers_))
    assert not own.diagonal().any()  # where products lose all digits


@pytest.mark.parametrize("by", KERNELS)
def test_a_stream(by):
    x = sparse(400, 60, 0.1)
    one, other = (MiniBatchKMeans(6, random_state=0, kernel=k) for k in (by, "auto"))
    for start in range(0, 400, 100):
        batch = x[start : start + 100]
        one.partial_fit(batch)
        other.partial_fit(batch.toarray())
        np.testing.assert_array_equal(one.cluster_centers_, other.cluster_centers_)
        assert one.inertia_ == other.inertia_


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("d", [50, 5000])
def test_a_value_that_is_not_finite_is_found(by, bad, d):
    dense = sparse(60, d, 3 / d).toarray()
    dense[30, 41] = bad
    x = sp.csr_array(dense)
    with pytest.raises(ValueError, match=r"in feature 41\b"):
        kmeans(x, 3, kernel=by)
    with pytest.raises(ValueError, match=r"in feature 41\b"):
        assign(x, np.zeros((2, d)))


@pytest.mark.parametrize("by", KERNELS)
def test_every_memory_budget_and_thread_count(by, setting):
    x = sparse(700, 500, 0.02)
    wanted = bits(kmeans(x.toarray(), 8, rng=0, max_iter=20))
    for threads, max_bytes in itertools.product([1, 3], [40_000, 300_000, None]):
        setting(call=1)
        options = {"rng": 0, "max_iter": 20, "kernel": by, "max_bytes": max_bytes}
        options["threads"] = threads
        assert bits(kmeans(x, 8, **options)) == wanted


def test_rows_are_not_made_dense(monkeypatch):
    """But for centroids, which are."""
    x = sparse(300, 400, 0.02)
    most = []
    dense = SparseRows.dense

    def spy(self):
        most.append(self.shape[0])
        return dense(self)

    monkeypatch.setattr(SparseRows, "dense", spy)
    model = KMeans(5, random_state=0).fit(x)
    model.predict(x), model.transform(x), model.score(x)
    MiniBatchKMeans(5, random_state=0).fit(x)
    assert max(most) <= 5


def test_bounds_on_distances_hold():
    """What labels are proven by, for rows at and between centroids."""
    x = sparse(200, 64, 0.3)
    chosen, matrix = kernels.choose(x, "cpu"), Matrix.of(x, "numpy")
    c = x.toarray()[100:116] + 1e-3
    frame = Frame(matrix, 10.0)
    norms, minus_2c = (c * c).sum(axis=1), np.ascontiguousarray((c * -2.0).T)
    true = np.sort(np.sqrt(((x.toarray()[:, None] - c) ** 2).sum(axis=2)), axis=1)
    for dtype, unit in (("float32", 2.0**-24), ("float64", 2.0**-53)):
        y = frame.centred(slice(0, 200), dtype == "float32")
        found = chosen.nearest(np, y, minus_2c.astype(dtype), norms.astype(dtype))
        upper, lower = interval(np_compat, y, *found[1:], Bounds.of(64, unit, matrix.terms))
        assert (true[:, 0] <= upper).all()
        assert (lower <= true[:, 1]).all()
        assert np.abs(upper - true[:, 0]).max() < 0.1


@pytest.mark.skipif("numba" not in KERNELS, reason="Numba is not installed")
@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("k", [1, 2, 16])
def test_bounds_that_are_kept_hold(narrow, exact, k):
    """From pass to pass, as centroids move, for the label a row has and for all others."""
    x = sparse(200, 64, 0.3)
    rng, dense = np.random.default_rng(0), x.toarray()
    rows = Rows.over(x, kernel="numba", precision="exact" if exact else "fast")
    search = rows.start(rows.matrix.asarray(dense[100 : 100 + k] + 1e-3)).search
    search._narrow = narrow
    with rows.work:
        for step in (0, 1e-6, 1e-2, 1.0):
            moved = rng.normal(size=(k, 64)) * step * (rng.random((k, 1)) < 0.5)
            c = dense[100 : 100 + k] + 1e-3 + moved
            search.relabel(rows.matrix.asarray(c))
            distances = np.sqrt(((dense[:, None] - c) ** 2).sum(axis=2))
            own = distances[np.arange(200), search.labels]
            others = np.where(np.arange(k) == search.labels[:, None], np.inf, distances)
            assert (own <= search._upper).all()
            assert (search._lower <= others.min(axis=1)).all()
            if exact:
                np.testing.assert_array_equal(search.labels, distances.argmin(axis=1))


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("k", [1, 3, 8, 9, 64, 65, 131])
def test_any_number_of_centroids(by, k):
    """Those whose coefficients are float64, and as many features as make them float32."""
    for d, n, dtype in ((90, 260, "float32"), (90, 260, "float64"), (1 << 15, 140, "float64")):
        some = min(k, n)
        x = sparse(n, d, 8 / d, dtype)
        same(x[:, : 1 + (1 << 18) // some], some, by, init="random", n_init=1, rng=0, max_iter=4)


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("d", [40, 6000])
@pytest.mark.parametrize("dtype", ["float64", "int16"])
def test_whole_numbers_tie_exactly(by, d, dtype):
    """Where scores have no error, those that are equal go to the lowest label, without a look at distances."""
    rng = np.random.default_rng(0)
    x = sp.csr_array((rng.random((200, d)) < 5 / d).astype(dtype))
    for init in (x.toarray()[:9], x.toarray()[[4, 4, 7, 150, 7]], np.zeros((2, d))):
        same(x, len(init), by, init=init, max_iter=4)
        same(x, len(init), by, init=init * 3 + 1, max_iter=4)  # far, and of equal distances
    # Whole, but too large for sums without error.
    large = x.astype("float64") * 2.0**30
    same(large, 9, by, init=large.toarray()[:9], max_iter=4)


@pytest.mark.parametrize("by", KERNELS)
def test_rows_that_float32_cannot_tell_apart(by):
    """Scores are made anew in float64 where too few of them prove a label."""
    x = sparse(500, 6000, 0.001).tolil()
    x[:, 0] = 3e4
    same(x.tocsr(), 8, by, rng=0, max_iter=8)


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("d", [40, 1 << 13])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("empty", ["relocate", "keep"])
def test_clusters_that_lose_their_rows(by, d, weighted, empty):
    """Passes that need no decision stop where one does, and go on after it."""
    x = sparse(100, d, 6 / d)
    w = np.random.default_rng(0).integers(0, 3, 100) if weighted else None
    init = np.zeros((7, d))
    init[:, 3] = [0, 1, 2, 50, 60, 70, 80]
    init[3:, 5] = 40
    for tol in (0.0, 1e-2):
        same(x, 7, by, init=init, sample_weight=w, empty=empty, max_iter=12, tol=tol)


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("d", [40, 1 << 13])
def test_what_ties_are_goes_by_all_features(by, d):
    """How far apart distances may be that count as equal, also where few features have columns."""
    x = sp.csr_array((np.ones(3), (np.arange(3), np.zeros(3, int))), shape=(3, d))
    seen = []
    for apart in np.linspace(1, 9, 33) * 1e-15:
        c = np.zeros((2, d))
        c[0, 5] = np.sqrt(apart)
        seen.append(assign(x.toarray(), c)[0].tolist())
        assert assign(x, c, kernel=by)[0].tolist() == seen[-1]
    assert [0, 0, 0] in seen
    assert [1, 1, 1] in seen


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("d", [40, 1 << 13])
def test_what_tol_goes_by_counts_all_features(by, d):
    x = sparse(150, d, 6 / d)
    rows = Rows.over(x, kernel=by)
    assert rows.matrix.data.halving.complete == (d == 40)
    assert rows.variance(0) == Rows.over(x.toarray(), kernel="cpu").variance(0)


@pytest.mark.parametrize("by", KERNELS)
@pytest.mark.parametrize("d", [40, 1 << 13])
@pytest.mark.parametrize("weighted", [False, True])
def test_mini_batches_are_those_of_dense_rows(by, d, weighted):
    """With every decision on the way, in columns for some of the features; and new batches bring new features."""
    x, new = sparse(150, d, 5 / d), sparse(50, d, 5 / d, seed=5)
    w = np.random.default_rng(0).integers(0, 4, 150) if weighted else None
    options = {"batch_size": 40, "random_state": 0, "tol": 1e-3, "reassignment_ratio": 0.3}
    options |= {"max_iter": 5}
    for init in (
        "k-means++",
        x.toarray()[40:48],
        lambda x, k, random_state: x[40 : 40 + k],
    ):
        one = MiniBatchKMeans(8, init=init, kernel=by, **options)
        other = MiniBatchKMeans(8, init=init, kernel="cpu", **options)
        if callable(init):  # which gives back what it gets
            one.init = lambda x, k, random_state: x[40 : 40 + k].toarray()
        one.fit(x, sample_weight=w)
        other.fit(x.toarray(), sample_weight=w)
        assert one.n_steps_ == other.n_steps_
        for _ in range(2):
            for name in ("cluster_centers_", "labels_", "inertia_"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            one.partial_fit(new)
            other.partial_fit(new.toarray())


def test_some_rows_share_the_entries_of_all():
    x = sparse(50, 30, 0.2, whole=True)
    rows, dense = SparseRows.of(x, None, 0), x.toarray()
    at = np.array([40, 3, 3, 8, 49])
    some = rows[at]
    assert some.values is rows.values
    for part in (slice(1, 4), slice(2, 2), np.array([4, 4])):
        found = some[part]
        np.testing.assert_array_equal(found.dense(), dense[at][part])
        np.testing.assert_array_equal(found.squared_norms(), (dense[at][part] ** 2).sum(axis=1))
        np.testing.assert_array_equal(found.magnitudes(), abs(dense[at][part]).max(axis=1))
        np.testing.assert_array_equal(found @ np.eye(30), dense[at][part])
        assert found.largest == abs(dense[at][part]).max(initial=0)
        assert found.entries == np.count_nonzero(dense[at][part])
        np.testing.assert_array_equal(
            found.times(2.0).astype("float32").dense(), 2 * dense[at][part]
        )


@pytest.mark.skipif("numba" not in KERNELS, reason="Numba is not installed")
def test_few_entries_wait_for_no_compiler(monkeypatch):
    """Compiled code for dense rows is not that for sparse ones."""
    few, many = sparse(60, 500, 0.02), sparse(1000, 500, 0.2)
    monkeypatch.delitem(sys.modules, "anykmeans.kernels.sparse.numba.sweep", raising=False)
    monkeypatch.setattr(compiled, "seconds", lambda: 0.0)
    monkeypatch.setattr(compiled, "_is_compiled", lambda module: module == "numba")
    assert kernels.choose(few).name == kernels.choose(many).name == "cpu"
    monkeypatch.setattr(compiled, "_is_compiled", lambda module: module == "sparse.numba")
    assert kernels.choose(few).name == "numba"
