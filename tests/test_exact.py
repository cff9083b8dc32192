"""What comes out is right: means, labels, distances and costs against the referee."""

import itertools
import math
from fractions import Fraction
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import referee

from anykmeans import assign, kernels, kmeans
from anykmeans._frame import largest_and_offsets
from anykmeans._grid import Grid
from anykmeans._libraries import np_compat
from anykmeans._stats import ClusterStats
from anykmeans.kernels import Kernel
from anykmeans.sources.rows import Rows

EMPTY = "ignore:Number of distinct clusters"  # "keep" may leave clusters empty, and says so


def assert_within_an_ulp(got, wanted):
    """Each value lies within one unit in the last place, of its dtype, of the float64 wanted."""
    unit = np.spacing(np.abs(wanted.astype(got.dtype))).astype(np.float64)
    off = np.abs(got.astype(np.float64) - wanted) / unit
    assert off.max() <= 1, f"{off.max()} units in the last place"


def lognormal(n, d, dtype):
    """Values over many decades (n, d), with a few outliers a thousand million times as large."""
    rng = np.random.default_rng(d)
    x = rng.lognormal(0, 2, size=(n, d))
    x[:: n // 5] *= 1e9
    return x.astype(dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_centroids_are_the_correctly_rounded_means(backend, make, host, kernel, dtype, weighted):
    x = lognormal(600, 3, dtype)
    w = np.random.default_rng(1).lognormal(0, 2, size=600) if weighted else np.ones(600)
    result = kmeans(
        make(x), 8, sample_weight=make(w) if weighted else None, rng=0, tol=0, kernel=kernel
    )
    centroids, labels = host(result.centroids), host(result.labels)
    assert result.converged
    assert str(centroids.dtype) == dtype
    wide = x.astype(np.float64)
    means = [referee.mean(wide[labels == j], w[labels == j]) for j in range(8)]
    assert_within_an_ulp(centroids, np.stack(means))


@pytest.mark.parametrize("weight_of", [1e-8, 1.0, 1e12])
def test_means_of_one_cluster_survive_cancellation(weight_of):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(1000, 4)) * 10.0 ** rng.integers(-6, 6, size=(1000, 4))
    x = np.concatenate([x, -x])
    x[0] += 2.0**-20  # all that is left of the sum
    w = np.full(2000, weight_of)
    got = kmeans(x, 1, sample_weight=w).centroids
    assert_within_an_ulp(got, referee.mean(x, w)[None])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 2, 3, 17])
def test_labels_at_offset_1e6(backend, make, host, kernel, dtype, d):
    rng = np.random.default_rng(d)
    x = (1e6 + rng.normal(size=(1500, d))).astype(dtype)
    result = kmeans(make(x), 12, rng=0, max_iter=5, kernel=kernel)
    centroids = host(result.centroids).astype(np.float64)
    labels, squared = referee.nearest(x.astype(np.float64), centroids)
    np.testing.assert_array_equal(host(result.labels), labels)
    assert result.inertia == math.fsum(squared)


@pytest.mark.parametrize(
    ("dtype", "gap"), [("float32", 2e-8), ("float64", 2e-8), ("float64", 1e-11)]
)
@pytest.mark.parametrize("d", [2, 30, 300])
def test_labels_beyond_the_resolution_of_a_score(backend, make, host, kernel, d, dtype, gap):
    """Rows half-way between two centroids, give or take a little: a plain score misjudges many."""
    rng = np.random.default_rng(d)
    c = rng.normal(size=(12, d)).astype(dtype)
    one, two = np.array([rng.permutation(12)[:2] for _ in range(600)]).T
    wide = c.astype(np.float64)
    off = gap * rng.uniform(1, 3, size=(600, 1)) * rng.choice([-1, 1], size=(600, 1))
    x = ((wide[one] + wide[two]) / 2 + off * (wide[one] - wide[two])).astype(dtype)
    x = np.concatenate([x, c])  # no cluster stays empty
    wide, centres = x.astype(np.float64), c.astype(np.float64)
    wanted, _ = referee.nearest(wide, centres)
    y, b = x.astype("float32"), c.astype("float32")
    assert (((b * b).sum(axis=1) - 2 * (y @ b.T)).argmin(axis=1) != wanted).sum() > 10
    np.testing.assert_array_equal(host(assign(make(x), make(c))[0]), wanted)
    step = kmeans(make(x), 12, init=make(c), max_iter=1, tol=0, kernel=kernel)
    means = [wide[wanted == j].mean(axis=0) for j in range(12)]
    np.testing.assert_allclose(host(step.centroids), means, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings(EMPTY)
@pytest.mark.parametrize("scale", [1.0, 2.0**-30, 2.0**40])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_ties_on_a_lattice_go_to_the_lowest_index(backend, make, host, kernel, d, scale):
    x = np.array(list(itertools.product(range(0, 18, 2), repeat=d)))
    c = np.array(list(itertools.product([2, 6, 11, 6], repeat=d)))  # duplicates, too
    c = np.random.default_rng(d).permutation(c)
    squared = ((x[:, None, :] - c) ** 2).sum(axis=2)  # whole numbers: exact
    wanted = squared.argmin(axis=1)  # the first of equals
    assert ((squared == squared.min(axis=1)[:, None]).sum(axis=1) > 1).sum() > len(x) // 4
    for dtype in ["float32", "float64"]:
        rows, start = make(x * scale, dtype), make(c * scale, dtype)
        labels, distance = assign(rows, start)
        np.testing.assert_array_equal(host(labels), wanted)
        np.testing.assert_array_equal(host(distance), squared.min(axis=1) * scale**2)
        result = kmeans(rows, len(c), init=start, empty="keep", kernel=kernel)
        state = host(result.centroids).astype(np.float64)
        np.testing.assert_array_equal(host(result.labels), referee.nearest(x * scale, state)[0])


@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 17, 100, 127])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distances_have_one_order_of_addition(backend, make, host, dtype, d):
    rng = np.random.default_rng(d)
    x, c = (rng.normal(size=(m, d)).astype(dtype) for m in (200, 7))
    x[:7] = c
    labels, squared = assign(make(x), make(c))
    wanted_labels, wanted = referee.nearest(x.astype(np.float64), c.astype(np.float64))
    np.testing.assert_array_equal(host(labels), wanted_labels)
    assert host(squared).tobytes() == wanted.tobytes()
    assert not host(squared)[:7].any()
    assert host(labels)[:7].tolist() == list(range(7))


def test_the_referees_distances_are_accurate():
    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(20, 33)), rng.normal(size=(3, 33))
    got = referee.distances(x, c)
    for i, j in itertools.product(range(20), range(3)):
        true = sum((Fraction(a) - Fraction(b)) ** 2 for a, b in zip(x[i], c[j], strict=True))
        assert got[i, j] == pytest.approx(float(true), rel=1e-15)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "d", "k"), [(200, 1, 3), (250, 2, 7), (150, 9, 20), (123, 63, 5)])
def test_the_whole_run_is_the_referees(backend, make, host, kernel, n, d, k, dtype, weighted):
    rng = np.random.default_rng([n, d])
    x = rng.normal(size=(n, d)).astype(dtype)
    w = rng.exponential(size=n).astype(dtype) if weighted else None
    centroids, labels, inertia, n_iter = referee.kmeans(x, x[:k], w, dtype=dtype)
    result = kmeans(
        make(x),
        k,
        sample_weight=make(w) if weighted else None,
        init=make(x[:k]),
        kernel=kernel,
    )
    np.testing.assert_array_equal(host(result.labels), labels)
    assert_within_an_ulp(host(result.centroids), centroids)
    assert result.inertia == pytest.approx(inertia, rel=1e-12)
    assert result.n_iter == n_iter


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tol", [0, 0.01])
def test_weights_are_repetition(backend, make, host, kernel, dtype, tol):
    """Not to within rounding, but bit for bit, and as many passes."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 3)).astype(dtype)
    w = rng.integers(0, 5, size=300)
    w[:6] = 1, 3, 7, 1, 1, 1000
    start, weights = make(x[:6]), make(w, "float64")
    repeated = kmeans(make(np.repeat(x, w, axis=0)), 6, init=start, tol=tol, kernel=kernel)
    weighted = kmeans(make(x), 6, init=start, sample_weight=weights, tol=tol, kernel=kernel)
    got, wanted = referee.bits(weighted, host), referee.bits(repeated, host)
    got["labels"] = np.repeat(got["labels"], w).tolist()
    assert got == wanted


@pytest.mark.parametrize(
    ("x", "w"), [([0.1, -0.3], [3, 1]), ([1 / 3, -1.0], [3, 1]), ([0.1, -0.7], [7, 1])]
)
def test_weighted_rows_that_nearly_cancel(backend, make, host, kernel, x, w):
    """Weight times value has more bits than a float64: rounded, it would be all that is left here."""
    exact = sum(Fraction(value) * weight for value, weight in zip(x, w, strict=True))
    rows, weights = make(np.array(x)[:, None]), make(np.array(w, np.float64))
    for scale in (1.0, 2.0**-600, 2.0**600, 0.1):
        total = float(sum(Fraction(weight * scale) for weight in w))
        wanted = sum(Fraction(v) * Fraction(u * scale) for v, u in zip(x, w, strict=True))
        got = kmeans(rows, 1, sample_weight=weights * scale, kernel=kernel)
        assert host(got.centroids)[0, 0] == float(wanted) / total
        assert scale == 0.1 or wanted == exact * Fraction(scale)


def test_weights_and_rows_of_opposite_scale(kernel):
    """Tiny weights of huge rows, and a row of no weight that is out of all proportion."""
    rng = np.random.default_rng(11)
    scale = 10.0 ** rng.integers(-60, 60, size=200)
    x, w = rng.normal(size=(200, 2)) * scale[:, None], rng.random(200) / scale
    x[7], w[7] = np.finfo(np.float64).max / 1e6, 0.0
    got = kmeans(x, 1, sample_weight=w, kernel=kernel).centroids
    keep = w > 0
    assert_within_an_ulp(got, referee.mean(x[keep], w[keep])[None])


@pytest.mark.filterwarnings(EMPTY)
@pytest.mark.parametrize("empty", ["relocate", "keep"])
def test_inertia_never_rises(kernel, empty):
    rng = np.random.default_rng(4)
    x, w = rng.normal(size=(400, 2)), rng.exponential(size=400)
    start = rng.normal(size=(25, 2)) * 3
    costs = [
        kmeans(
            x, 25, init=start, sample_weight=w, max_iter=m, tol=0, empty=empty, kernel=kernel
        ).inertia
        for m in range(1, 25)
    ]
    assert all(later <= cost for cost, later in itertools.pairwise(costs))
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_converged_result_is_its_own_fixed_point(backend, make, host, kernel, dtype):
    x = make(np.random.default_rng(5).normal(size=(500, 3)), dtype)
    result = kmeans(x, 7, rng=0, tol=0, kernel=kernel)
    assert result.converged
    labels, squared = assign(x, result.centroids)
    np.testing.assert_array_equal(host(labels), host(result.labels))
    assert math.fsum(host(squared)) == result.inertia
    again = kmeans(x, 7, init=result.centroids, tol=0, kernel=kernel)
    assert again.n_iter <= 2
    first = referee.bits(result, host)
    assert {**referee.bits(again, host), "n_iter": result.n_iter} == first


def test_labels_belong_to_the_centroids_returned(backend, make, host, kernel):
    x = np.random.default_rng(6).normal(size=(400, 2))
    result = kmeans(make(x), 10, rng=0, max_iter=1, tol=0, kernel=kernel)
    assert not result.converged
    labels, squared = referee.nearest(x, host(result.centroids))
    np.testing.assert_array_equal(host(result.labels), labels)
    assert result.inertia == math.fsum(squared)


def test_inertia_is_the_rounded_sum(kernel):
    x = lognormal(500, 2, "float64")
    result = kmeans(x, 30, rng=0, kernel=kernel)
    _, squared = referee.nearest(x, result.centroids)
    assert result.inertia == math.fsum(squared)
    w = np.random.default_rng(0).lognormal(0, 20, size=500)
    result = kmeans(x, 30, rng=0, sample_weight=w, kernel=kernel)
    _, squared = referee.nearest(x, result.centroids)
    assert result.inertia == referee.weighted_sum(squared, w)


def test_a_sum_is_rounded_once():
    """Whatever the grid: totals of whole numbers on several grids, half-way cases among them, against fractions."""
    rng = np.random.default_rng(12)
    for n, folds in itertools.product([1, 2, 50, 10**6], [1, 2, 3, 8]):
        step = 2.0 ** (53 - (n - 1).bit_length())
        grid = Grid(np.ldexp(1.0, np.zeros(400, int)), step, folds)
        parts = rng.integers(-(2**52), 2**52, size=(folds, 400)).astype(np.float64)
        parts *= rng.choice([0.0, 1.0, 2.0**-30, 2.0**-51], size=parts.shape)
        parts = np.rint(parts)
        if folds > 1:  # halves of a unit, with and without something after them
            parts[0, ::3] = 2.0**52 + rng.integers(0, 100, size=parts[0, ::3].size)
            parts[1, ::3] = rng.choice([-1, 1], size=parts[0, ::3].size) * step / 2
            parts[2:, ::6] = 0
        exact = [
            float(sum(Fraction(v) / Fraction(step) ** i for i, v in enumerate(column)))
            for column in parts.T.tolist()
        ]
        sums = np.ascontiguousarray(parts.reshape(1, -1))
        for name in ("agnostic", *(["numba"] if find_spec("numba") else [])):
            kernel = kernels.choose(np.zeros((2, 2)), name)
            rows = SimpleNamespace(xp=np_compat, scale=grid.scale)
            got = kernel.total(rows, ClusterStats(sums, grid))
            assert got[0].tolist() == exact, (name, n, folds)


def test_a_search_that_does_not_know_what_changed():
    """Its sums are made anew, not taken for those of before."""
    x, one, other = np.arange(8.0)[:, None], np.array([[0.0], [1]]), np.array([[1.0], [6]])
    run = Rows.over(x).start(one)
    before = run.sweep(one)
    relabel = run.search.relabel
    run.search.relabel = lambda c: (relabel(c), ([], len(x)))[1]
    fresh = Rows.over(x).start(other)
    found = run.sweep(other)
    assert not np.array_equal(found.sums, before.sums)
    np.testing.assert_array_equal(found.sums, fresh.sweep(other).sums)


@pytest.mark.parametrize("by", ["agnostic", "cpu"])
def test_a_grid_holds_small_whole_numbers_beside_large_ones(by):
    x = np.full((1 << 23, 1), 3)
    x[0] = 2**61
    grid = Rows.over(x, kernel=by).grid
    finest = grid.scale * grid.step ** (grid.folds - 1)
    assert (finest >= 1).all()  # steps of the last grid are no longer than 1


@pytest.mark.parametrize("weighted", [False, True])
def test_the_variance_is_found_once_for_all_starts(monkeypatch, weighted):
    x, w = lognormal(200, 2, "float64"), np.linspace(1, 2, 200) if weighted else None
    made = []
    for name in ("extents", "variances"):
        found = getattr(Kernel, name)
        spy = lambda *how, name=name, found=found: made.append(name) or found(*how)  # noqa: E731
        monkeypatch.setattr(Kernel, name, spy)
    kmeans(x, 3, sample_weight=w, init="random", n_init=5, rng=0, kernel="cpu")
    assert sorted(made) == ["extents", "variances"]


def test_stats_of_two_grids_do_not_add():
    one, other = (ClusterStats(np.zeros((1, 2)), Grid(np.full(2, s), 2.0**40, 1)) for s in (1.0, 2))
    assert (one + one).sums.tolist() == [[0, 0]]
    with pytest.raises(ValueError, match="one grid"):
        one + other


@pytest.mark.parametrize(
    ("dtype", "exponents"),
    [("float64", [-990, -600, -300, 300, 500, 600, 990]), ("float32", [-100, -60, 40, 70, 100])],
)
def test_tiny_and_huge_values(backend, make, host, kernel, dtype, exponents):
    x = np.random.default_rng(7).normal(size=(200, 3)).astype(dtype)
    wanted = kmeans(x, 5, rng=0)
    for e in exponents:
        scaled = np.ldexp(x, e)
        assert np.isfinite(scaled).all()
        result = kmeans(make(scaled), 5, rng=0, kernel=kernel)
        np.testing.assert_array_equal(host(result.labels), wanted.labels, err_msg=f"2**{e}")
        np.testing.assert_array_equal(host(result.centroids), np.ldexp(wanted.centroids, e))
        assert result.n_iter == wanted.n_iter
        # A cost that float64 cannot hold is infinite or zero, never wrong.
        with np.errstate(over="ignore", under="ignore"):
            inertia = np.ldexp(wanted.inertia, 2 * e)
        assert result.inertia == inertia


def test_tiny_and_huge_values_side_by_side():
    """Within a feature, values 90 bits below the largest may be lost; the clustering is not."""
    x = np.array([[1e-300, 0], [2e-300, 0], [1e300, 1e300], [1.1e300, 1e300]])
    result = kmeans(x, 2, init=x[[0, 2]])
    assert result.labels.tolist() == [0, 0, 1, 1]
    assert result.converged
    wanted = [[1.5e-300, 0], [1.05e300, 1e300]]
    np.testing.assert_allclose(result.centroids, wanted, rtol=1e-15, atol=1e300 * 2.0**-90)


@pytest.mark.parametrize("d", [3, 7, 30])
def test_distances_equal_but_for_rounding_are_ties(backend, make, host, d):
    """The same numbers in another order: the true distances are equal, their last bits are not."""
    rng = np.random.default_rng(d)
    c = np.stack([rng.permutation(v) for v in [rng.normal(size=d)] * 12])
    x = np.zeros((5, d))
    assert len(set(referee.distances(x, c)[0])) > 1
    labels, _ = assign(make(x), make(c))
    assert not host(labels).any()


def test_features_of_different_scale_keep_their_bits():
    rng = np.random.default_rng(8)
    x = rng.lognormal(size=(300, 4)) * [1e-200, 1e-3, 1.0, 1e100]
    got = kmeans(x, 3, rng=0, tol=0)
    means = [referee.mean(x[got.labels == j], np.ones((got.labels == j).sum())) for j in range(3)]
    assert_within_an_ulp(got.centroids, np.stack(means))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_one_cluster_and_as_many_as_rows(backend, make, host, kernel, n):
    x = np.arange(2.0 * n).reshape(n, 2)
    one = kmeans(make(x), 1, rng=0, kernel=kernel)
    assert host(one.centroids).tolist() == [x.mean(axis=0).tolist()]
    each = kmeans(make(x), n, rng=0, kernel=kernel)
    assert each.inertia == 0
    assert sorted(host(each.labels).tolist()) == list(range(n))


@pytest.mark.parametrize("name", ["s1", "a3", "unbalance", "dim032"])
def test_real_data_with_known_clusters(backend, make, host, real, name):
    x = real(name)[::3]
    centroids, labels, inertia, n_iter = referee.kmeans(x, x[::150])
    result = kmeans(make(x), len(x[::150]), init=make(x[::150]))
    np.testing.assert_array_equal(host(result.labels), labels)
    assert_within_an_ulp(host(result.centroids), centroids)
    assert (result.inertia, result.n_iter) == (pytest.approx(inertia, rel=1e-12), n_iter)


def test_precision_fast_says_so():
    x = np.random.default_rng(9).normal(size=(100, 2))
    assert kmeans(x, 3, rng=0).precision == "exact"
    fast = kmeans(x, 3, rng=0, precision="fast")
    assert fast.precision == "fast"
    assert fast.inertia == pytest.approx(kmeans(x, 3, rng=0).inertia, rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_means_beside_a_value_that_fills_the_dtype(dtype):
    """A missing value coded as the largest float must not swallow the other rows' bits."""
    rng = np.random.default_rng(3)
    x = np.concatenate(
        [rng.normal(5, 1, 300), rng.normal(100, 1, 300), [np.finfo("float32").max]]
    ).astype(dtype)
    result = kmeans(x[:, None], 3, init=np.array([[0], [90], [3e38]], dtype))
    for j, part in enumerate([x[:300], x[300:600]]):
        wanted = np.asarray(math.fsum(part.tolist()) / 300, dtype)
        assert result.centroids[j, 0] == wanted


def test_offsets_of_centroids_have_few_digits():
    """So that rows of few digits, less an offset, have no more."""
    c = np.random.default_rng(0).random((3, 50, 4))
    c[1], c[2] = c[1] * 3 + 100, c[2] - 0.5
    largest, (_, far, near) = largest_and_offsets(np_compat, c)
    assert largest == np.abs(c).max(axis=(1, 2)).tolist()
    assert near is None
    assert (far * 16 == np.round(far * 16)).all()  # a 64th of the box, which is between 2 and 4
    np.testing.assert_allclose(far, c[1].mean(axis=0), atol=1 / 32, rtol=0)
    largest, offsets = largest_and_offsets(np_compat, c[1:], alike=True)
    assert (offsets[0] == offsets[1]).all()


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_whole_centroids_are_no_other_than_floats(dtype):
    x = (
        np.random.default_rng(0).random((50, 3)) * 1e-70
    )  # which some of these centroids are out of reach of
    c = np.asarray([[1, 0, 1], [0, 0, 0], [1, 1, 1]], dtype)
    for one, other in zip(assign(x, c), assign(x, c.astype(float)), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_grid_of_costs_is_finite_whatever_they_may_be(weighted):
    for most in (2.0**-1074, 1e-300, 1.0, 1e300):
        grid = Grid.of_costs(most, 1000, weighted)
        assert np.isfinite(grid.scale[0])
        assert most * grid.scale[0] <= 2.0**52 / 1000
