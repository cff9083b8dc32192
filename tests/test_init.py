"""Where a run starts, and what becomes of a cluster that lost its rows."""

import functools

import numpy as np
import pytest
import referee
import scipy.sparse
import sklearn.cluster
from hypothesis import given
from hypothesis import strategies as st

from anykmeans import _plusplus, _settings, assign, kernels, kmeans, kmeans_plusplus
from anykmeans.sources.rows import Rows


def blobs(n=400, d=3, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, d)) * 4
    return centres[rng.integers(8, size=n)] + rng.normal(size=(n, d))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d", "k"), [(50, 1, 5), (300, 2, 8), (200, 20, 30), (400, 3, 20)])
def test_kmeans_plusplus_picks_what_scikit_learn_picks(n, d, k, weighted):
    x = blobs(n, d)
    w = np.random.default_rng(1).exponential(size=n) if weighted else None
    for seed in range(25):
        centres, indices = kmeans_plusplus(x, k, sample_weight=w, random_state=seed)
        wanted_centres, wanted = sklearn.cluster.kmeans_plusplus(
            x, k, sample_weight=w, random_state=seed
        )
        np.testing.assert_array_equal(indices, wanted, err_msg=f"seed {seed}")
        np.testing.assert_array_equal(centres, wanted_centres)


@pytest.mark.parametrize("trials", [None, 1, 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_kmeans_plusplus_picks_what_the_referee_picks(backend, make, host, weighted, trials):
    x = blobs(150, 4)
    w = np.random.default_rng(2).exponential(size=150) if weighted else None
    for seed in range(5):
        _, indices = kmeans_plusplus(
            make(x),
            12,
            sample_weight=make(w) if weighted else None,
            random_state=seed,
            n_local_trials=trials,
        )
        wanted = referee.kmeans_plusplus(x, 12, np.random.RandomState(seed), w, trials)
        np.testing.assert_array_equal(host(indices), wanted)


def test_kmeans_plusplus_on_a_lattice_picks_what_the_referee_picks():
    x = np.random.default_rng(6).integers(-3, 4, size=(300, 2)).astype(float)  # full of equal costs
    for seed in range(20):
        wanted = referee.kmeans_plusplus(x, 15, np.random.RandomState(seed))
        np.testing.assert_array_equal(kmeans_plusplus(x, 15, random_state=seed)[1], wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kmeans_plusplus_picks_every_row_once(dtype):
    x = blobs(40, 3).astype(dtype)
    for seed in range(10):
        picks = kmeans_plusplus(x, 40, random_state=seed)[1]
        wanted = referee.kmeans_plusplus(x.astype(float), 40, np.random.RandomState(seed))
        np.testing.assert_array_equal(picks, wanted)
        assert sorted(picks.tolist()) == list(range(40))


def test_kmeans_plusplus_far_from_the_origin_picks_what_the_referee_picks():
    x = (1e6 + blobs(300, 3)).astype("float32")  # scikit-learn's float32 picks are luck here
    for seed in range(10):
        wanted = referee.kmeans_plusplus(x.astype(float), 10, np.random.RandomState(seed))
        np.testing.assert_array_equal(kmeans_plusplus(x, 10, random_state=seed)[1], wanted)


def test_kmeans_plusplus_draws_no_more_than_scikit_learn():
    ours, theirs = np.random.RandomState(5), np.random.RandomState(5)
    x = blobs()
    for _ in range(3):
        mine = kmeans_plusplus(x, 6, random_state=ours)[1]
        np.testing.assert_array_equal(
            mine, sklearn.cluster.kmeans_plusplus(x, 6, random_state=theirs)[1]
        )
    assert ours.random_sample() == theirs.random_sample()


def test_kmeans_plusplus_accepts_the_norms_scikit_learn_wants():
    x = blobs()
    got = kmeans_plusplus(x, 6, x_squared_norms=(x**2).sum(axis=1), random_state=0)[1]
    np.testing.assert_array_equal(got, kmeans_plusplus(x, 6, random_state=0)[1])


def test_kmeans_plusplus_never_picks_a_row_twice_while_others_are_left():
    x = np.repeat(np.arange(10.0), 30)[:, None]
    for seed in range(10):
        centres, _ = kmeans_plusplus(x, 10, random_state=seed)
        assert sorted(centres[:, 0]) == list(range(10))


def picks_by(x, k, seed, kernel, w=None, trials=None, **options):
    rows = Rows.over(x, w, kernel=kernel, **options)
    with rows.work:
        return _plusplus.plus_plus(rows, k, np.random.RandomState(seed), trials).tolist()


def hostile(n, d, shape, seed):
    """Rows that are hard to tell apart, or far from the range in which squares are safe."""
    rng = np.random.default_rng([n, d, seed])
    if shape == "lattice":  # full of equal distances
        return rng.integers(-2, 3, size=(n, d)).astype(float)
    x = blobs(n, d, seed)
    if shape == "far":
        return x + 1e6
    if shape == "twice":  # every row has a double, some many
        return x[rng.integers(-(-n // 3), size=n)]
    if shape == "one":
        return np.repeat(x[:1], n, axis=0)
    if shape == "uneven":
        return x * np.exp(rng.normal(size=(n, 1)) * 4)
    return x * {"huge": 1e150, "tiny": 1e-150, "subnormal": 1e-310}.get(shape, 1.0)


SHAPES = ["lattice", "far", "twice", "one", "uneven", "huge", "tiny", "subnormal"]


@pytest.mark.parametrize("shape", SHAPES)
@given(
    n=st.integers(2, 300),
    d=st.sampled_from([1, 2, 3, 8, 16, 17, 32, 33, 70]),
    part=st.floats(0, 1),
    trials=st.sampled_from([None, 1, 2, 9, 20]),
    weights=st.sampled_from(["none", "some", "zeros"]),
    narrow=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_kernel_picks_the_same(shape, n, d, part, trials, weights, narrow, seed):
    x = hostile(n, d, shape, seed)
    if narrow and shape in ("lattice", "far", "twice", "one"):
        x = x.astype("float32")
    w = None
    if weights != "none":
        w = np.random.default_rng(seed).exponential(size=n)
        w[1::2] *= weights == "some"
    k = 1 + round(part * (min(n, 40) - 1))
    names = [name for name in kernels.TABLE if kernels.why_not(name, x) is None]
    picks = {name: picks_by(x, k, seed, name, w, trials) for name in names}
    if "numba" in names:
        with _settings.settings(at_once=0):
            picks["numba, as if they were many"] = picks_by(x, k, seed, "numba", w, trials)
    assert all(each == picks["agnostic"] for each in picks.values()), picks


@pytest.mark.parametrize("d", [2, 40])
def test_picks_do_not_depend_on_how_rows_are_cut(setting, kernel, d):
    x = blobs(5000, d)
    w = np.random.default_rng(1).exponential(size=5000)
    wanted = {weighted: picks_by(x, 30, 0, kernel, w if weighted else None) for weighted in (0, 1)}
    setting(spread=0, piece=1)  # long tiles are short, too
    cut = functools.partial(picks_by, threads=3)
    for weighted, picks in wanted.items():
        weight = w if weighted else None
        assert cut(x, 30, 0, kernel, weight) == picks
        assert cut(x, 30, 0, kernel, weight, max_bytes=1 << 18) == picks
        assert cut(np.asfortranarray(x), 30, 0, kernel, weight) == picks
        frozen = x.copy()
        frozen.flags.writeable = False
        assert cut(frozen, 30, 0, kernel, weight) == picks
    whole = np.round(x * 4)
    picks = cut(whole, 30, 0, "agnostic")
    for dtype in ["int8", "int32", "int64", "float16", "float32"]:
        assert cut(whole.astype(dtype), 30, 0, kernel) == picks
    assert cut(scipy.sparse.csr_array(whole), 30, 0, "cpu") == picks


def test_the_first_pick_is_the_generators_choice():
    for n in [1, 2, 3, 7, 1000, 99991]:
        rows = Rows.over(np.arange(float(n))[:, None])
        for seed in range(30):
            for make in [np.random.RandomState, np.random.default_rng]:
                ours, theirs = make(seed), make(seed)
                assert _plusplus._first(rows, ours) == theirs.choice(n, p=np.full(n, 1.0) / n)
                assert ours.random() == theirs.random()


def test_the_first_pick_where_the_draw_falls_on_a_bound():
    """A draw next to a cumulative probability is settled by that probability."""

    class Draw:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    for n in [3, 10, 1000]:
        rows = Rows.over(np.arange(float(n))[:, None])
        bounds = np.cumsum(np.full(n, 1.0) / n)
        bounds /= bounds[-1]
        for at in bounds[:-1]:
            for value in [np.nextafter(at, 0), at, np.nextafter(at, 1)]:
                wanted = np.searchsorted(bounds, value, side="right")
                assert _plusplus._first(rows, Draw(value)) == wanted


def test_rows_without_weight_are_never_picked():
    x, w = blobs(100), np.ones(100)
    w[::2] = 0
    for init in ["k-means++", "random", "k-means||"]:
        for seed in range(5):
            result = kmeans(
                x, 5, sample_weight=w, init=init, n_init=1, rng=seed, max_iter=1, empty="keep"
            )
            alone = kmeans(x[1::2], 5, init=result.centroids, max_iter=1, empty="keep")
            assert np.isfinite(alone.inertia)
    for seed in range(20):
        assert (kmeans_plusplus(x, 8, sample_weight=w, random_state=seed)[1] % 2 == 1).all()


def test_kmeans_starts_from_kmeans_plusplus(backend, make, host, kernel):
    x = blobs()
    for seed in range(3):
        start, _ = kmeans_plusplus(x, 6, random_state=seed)
        given = kmeans(make(x), 6, init=make(start), kernel=kernel)
        drawn = kmeans(make(x), 6, rng=np.random.RandomState(seed), kernel=kernel)
        assert referee.bits(drawn, host) == referee.bits(given, host)


def test_random_starts_are_scikit_learns_draws(kernel):
    x, w = blobs(), np.random.default_rng(3).exponential(size=400)
    for seed in range(3):
        rows = np.random.RandomState(seed).choice(400, size=6, replace=False, p=w / w.sum())
        given = kmeans(x, 6, init=x[rows], sample_weight=w, kernel=kernel)
        state = np.random.RandomState(seed)
        drawn = kmeans(x, 6, init="random", n_init=1, sample_weight=w, rng=state, kernel=kernel)
        assert referee.bits(drawn) == referee.bits(given)


@pytest.mark.parametrize("weighted", [False, True])
def test_parallel_starts_are_good(backend, make, host, kernel, weighted):
    """k-means|| finds 20 clusters that lie far apart, where random rows almost surely do not."""
    rng = np.random.default_rng(4)
    centres = np.stack(np.meshgrid(np.arange(5) * 100.0, np.arange(4) * 100.0), -1).reshape(20, 2)
    x = centres[rng.integers(20, size=1000)] + rng.normal(size=(1000, 2))
    w = rng.exponential(size=1000) if weighted else np.ones(1000)
    found = 0
    for seed in range(6):
        result = kmeans(
            make(x), 20, init="k-means||", sample_weight=make(w), rng=seed, kernel=kernel
        )
        found += result.inertia < 10 * 1000 * 2
    assert found >= 4


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_parallel_starts_with_hardly_any_rows(n):
    x = np.arange(2.0 * n).reshape(n, 2)
    result = kmeans(x, n, init="k-means||", rng=0)
    assert result.inertia == 0


def test_given_centroids_are_used_as_they_are(backend, make, host, kernel):
    x = blobs()
    for start in [x[:5], x[:5].astype("float32"), np.round(x[:5]).astype("int64")]:
        result = kmeans(make(x), 5, init=make(start), kernel=kernel)
        wanted = kmeans(x, 5, init=start.astype("float64"))
        assert referee.bits(result, host) == referee.bits(wanted)
    assert referee.bits(kmeans(x, 5, init=x[:5].tolist())) == referee.bits(kmeans(x, 5, init=x[:5]))


def test_a_callable_gives_the_start(backend, make, host, kernel):
    x = make(blobs())
    seen = []

    def init(rows, k, rng):
        seen.append((type(rows), tuple(rows.shape), k))
        return rows[: int(k), :]

    result = kmeans(x, 5, init=init, n_init=1, rng=0, kernel=kernel)
    assert seen == [(type(x), (400, 3), 5)]
    given = kmeans(x, 5, init=x[:5, :], kernel=kernel)
    assert referee.bits(result, host) == referee.bits(given, host)


def test_a_callable_draws_from_the_one_generator():
    x = blobs()

    def init(rows, k, rng):
        return rows[rng.choice(rows.shape[0], size=k, replace=False)]

    first, second = (
        referee.bits(kmeans(x, 5, init=init, n_init=3, rng=np.random.RandomState(7)))
        for _ in range(2)
    )
    assert first == second
    starts = np.random.RandomState(7)
    wanted = [kmeans(x, 5, init=init(x, 5, starts)) for _ in range(3)]
    assert first == referee.bits(min(wanted, key=lambda run: run.inertia))


@pytest.mark.parametrize(
    ("init", "n_init", "calls"),
    [("callable", "auto", 10), ("callable", 1, 1), ("callable", 4, 4)],
)
def test_n_init_counts_the_starts(init, n_init, calls):
    seen = []

    def init(rows, k, rng):
        seen.append(k)
        return rows[len(seen) : len(seen) + k]

    x = blobs()
    best = kmeans(x, 5, init=init, n_init=n_init, rng=0)
    assert len(seen) == calls
    runs = [kmeans(x, 5, init=x[i : i + 5]) for i in range(1, calls + 1)]
    assert best.inertia == min(run.inertia for run in runs)


def test_n_init_auto_is_ten_for_random_and_one_for_the_careful_starts():
    x = blobs()
    for init, runs in [("random", 10), ("k-means++", 1), ("k-means||", 1)]:
        auto = kmeans(x, 8, init=init, rng=0)
        assert referee.bits(auto) == referee.bits(kmeans(x, 8, init=init, n_init=runs, rng=0))
    fewer = kmeans(x, 8, init="random", n_init=1, rng=0)
    assert kmeans(x, 8, init="random", rng=0).inertia < fewer.inertia


def test_the_best_start_wins():
    x = blobs()
    starts = np.random.RandomState(1)
    inertias = [
        kmeans(x, 8, init=kmeans_plusplus(x, 8, random_state=starts)[0]).inertia for _ in range(6)
    ]
    best = kmeans(x, 8, n_init=6, rng=np.random.RandomState(1))
    assert best.inertia == min(inertias) < max(inertias)


def test_a_generator_moves_on_and_an_int_does_not():
    x = blobs()
    assert referee.bits(kmeans(x, 6, rng=1)) == referee.bits(kmeans(x, 6, rng=1))
    state = np.random.RandomState(1)
    starts = [kmeans(x, 6, rng=state, max_iter=1).centroids for _ in range(2)]
    assert not np.array_equal(*starts)
    for rng in [np.random.default_rng(1), None, np.int64(3), np.random.RandomState(2)]:
        assert np.isfinite(kmeans(x, 6, rng=rng).inertia)
    first, second = (kmeans(x, 6, rng=np.random.default_rng(4)) for _ in range(2))
    assert referee.bits(first) == referee.bits(second)


FAR = np.array([[200.0, 200.0], [300.0, 300.0]])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_empty_clusters_take_the_farthest_rows(backend, make, host, kernel, dtype, weighted):
    x = blobs(200, 2).astype(dtype)
    w = np.random.default_rng(5).exponential(size=200).astype(dtype) if weighted else None
    start = np.concatenate([x[:4], FAR.astype(dtype)])
    weight = make(w) if weighted else None
    for max_iter in [1, 2, 300]:
        result = kmeans(
            make(x), 6, init=make(start), sample_weight=weight, max_iter=max_iter, kernel=kernel
        )
        centroids, labels, inertia, n_iter = referee.kmeans(
            x, start, w, max_iter=max_iter, dtype=dtype
        )
        np.testing.assert_array_equal(host(result.labels), labels)
        np.testing.assert_allclose(host(result.centroids), centroids, rtol=1e-6)
        assert result.inertia == pytest.approx(inertia, rel=1e-9)
        assert result.n_iter == n_iter


def test_relocation_is_scikit_learns():
    x = blobs(300, 3)
    start = np.concatenate([x[:5], np.full((3, 3), 500.0) * np.arange(1, 4)[:, None]])
    ours = kmeans(x, 8, init=start)
    theirs = sklearn.cluster.KMeans(8, init=start, n_init=1).fit(x)
    np.testing.assert_array_equal(ours.labels, theirs.labels_)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, rtol=1e-10)
    assert ours.n_iter == theirs.n_iter_


def test_relocation_breaks_ties_by_row_number(backend, make, host, kernel):
    x = np.array([[0.0], [4], [-4], [4], [-4], [0], [1], [-1]])
    start = np.array([[0.0], [100], [200]])
    result = kmeans(make(x), 3, init=make(start), max_iter=1, tol=0, kernel=kernel)
    # Rows 1 and 2, the first of the four farthest, take the seats of clusters 1 and 2.
    assert host(result.centroids).tolist() == [[0.0], [4.0], [-4.0]]


def test_relocation_stops_when_all_distances_are_zero(kernel):
    x = np.repeat(np.array([[0.0, 1.0], [5.0, 5.0]]), 4, axis=0)
    start = np.array([[0.0, 1.0], [5.0, 5.0], [9.0, 9.0]])
    with pytest.warns(UserWarning, match="distinct"):
        result = kmeans(x, 3, init=start, kernel=kernel)
    np.testing.assert_array_equal(result.centroids, start)
    assert result.inertia == 0


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_kept_clusters_stay_where_they_were(backend, make, host, kernel):
    x = blobs(200, 2)
    start = np.concatenate([x[:4], FAR])
    result = kmeans(make(x), 6, init=make(start), empty="keep", kernel=kernel)
    np.testing.assert_array_equal(host(result.centroids)[4:], FAR)
    assert set(host(result.labels).tolist()) == {0, 1, 2, 3}
    four = kmeans(make(x), 4, init=make(start[:4]), kernel=kernel)
    np.testing.assert_array_equal(host(result.centroids)[:4], host(four.centroids))


def test_rows_without_weight_take_no_seat(backend, make, host, kernel):
    x = np.array([[0.0], [1.0], [10.0], [11.0], [50.0]])
    w = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    start = np.array([[0.0], [10.0], [100.0]])
    result = kmeans(make(x), 3, init=make(start), sample_weight=make(w), max_iter=1, kernel=kernel)
    assert host(result.centroids).tolist() == [[0.0], [10.5], [1.0]]


def test_a_cluster_without_weight_is_empty(kernel):
    x = np.array([[0.0], [1.0], [10.0], [11.0], [50.0]])
    w = np.array([1.0, 1.0, 1.0, 1.0, 0.0])
    start = np.array([[0.0], [10.0], [50.0]])
    kept = kmeans(x, 3, init=start, sample_weight=w, empty="keep", kernel=kernel)
    assert kept.centroids.tolist() == [[0.5], [10.5], [50.0]]
    assert kept.labels.tolist() == [0, 0, 1, 1, 2]
    with pytest.raises(ValueError, match="empty"):
        kmeans(x, 3, init=start, sample_weight=w, empty="error", kernel=kernel)
    moved = kmeans(x, 3, init=start, sample_weight=w, empty="relocate", kernel=kernel)
    assert np.isfinite(moved.centroids).all()
    assert moved.inertia <= kept.inertia


def test_scikit_learn_ends_in_the_same_clustering():
    for seed in range(10):
        x = blobs(500, 4, seed)
        start, _ = kmeans_plusplus(x, 7, random_state=seed)
        ours = kmeans(x, 7, init=start)
        theirs = sklearn.cluster.KMeans(7, init=start, n_init=1).fit(x)
        np.testing.assert_array_equal(ours.labels, theirs.labels_)
        assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-12)
        assert ours.n_iter == theirs.n_iter_
        np.testing.assert_array_equal(assign(x, ours.centroids)[0], ours.labels)
