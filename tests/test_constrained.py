"""Clusters of bounded sizes: flows against all assignments, fits against plain loops, and the same bits from every library."""

import itertools
import json
import math
import pickle
import subprocess
import sys
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linear_sum_assignment
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks

import anykmeans
from anykmeans import _transport, kmeans
from anykmeans import constrained as module
from anykmeans._transport import transport
from anykmeans.constrained import KMeansConstrained, constrained_kmeans
from anykmeans.sources.rows import Rows
from benchmarks import __main__ as cli
from benchmarks import constrained as benchmark
from tests import referee

pytest.importorskip("ortools", reason="OR-tools is not installed")


def cheapest(costs, least, most):
    """The first of the cheapest labels, of all there are: sums are fractions."""
    k, n = costs.shape
    exact = [[Fraction(value) for value in row] for row in costs.tolist()]
    found = None
    for labels in itertools.product(range(k), repeat=n):
        sizes = np.bincount(labels, minlength=k)
        if (least <= sizes).all() and (sizes <= most).all():
            total = sum(exact[j][i] for i, j in enumerate(labels))
            if found is None or total < found[0]:
                found = total, labels
    return list(found[1])


def assigned(costs, least, most):
    """Cheap labels (n,) by SciPy: clusters have a place for each row, and rows that are not there take those that may be empty."""
    k, n = costs.shape
    own, needed = np.repeat(np.arange(k), most), []
    for j in range(k):
        needed += [True] * least[j] + [False] * (most[j] - least[j])
    nobody = np.tile(np.where(needed, np.inf, 0.0), (own.size - n, 1))
    _, places = linear_sum_assignment(np.concatenate([costs[own].T, nobody]))
    return own[places[:n]]


def total(costs, labels):
    return math.fsum(costs[labels, np.arange(labels.size)])


def bounded_problem(draw, n, k, room):
    """Bounds that n rows can satisfy."""
    while True:
        least = draw.integers(0, room, k)
        most = np.minimum(least + draw.integers(0, room + 1, k), n)
        if least.sum() <= n <= most.sum() and (least <= most).all():
            return least, most


KINDS = {
    "any": lambda draw, k, n: draw.random((k, n)),
    "whole": lambda draw, k, n: draw.integers(0, 3, (k, n)).astype(float),
    "wild": lambda draw, k, n: draw.random((k, n)) * 10.0 ** draw.integers(-290, 290, (k, n)),
    "equal rows": lambda draw, k, n: np.repeat(draw.integers(0, 3, (k, 1)) * 0.1, n, axis=1),
    # 0.1 + 0.2 is not 0.3, by 2^-54, which no sum of floats would tell.
    "rounding": lambda draw, k, n: draw.choice([0.1, 0.2, 0.1 + 0.2, 0.3], (k, n)),
    "zero": lambda draw, k, n: np.zeros((k, n)),
}


# -- the flow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_first_of_the_cheapest(kind):
    draw = np.random.default_rng(3)
    for _ in range(40):
        k = int(draw.integers(1, 5))
        n = int(draw.integers(k, 7))
        costs = KINDS[kind](draw, k, n)
        least, most = bounded_problem(draw, n, k, 4)
        assert transport(costs, least, most)[0].tolist() == cheapest(costs, least, most)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_the_library_says_is_mended(kind, monkeypatch):
    draw = np.random.default_rng(4)
    cases = []
    for _ in range(30):
        k = int(draw.integers(2, 6))
        least, most = bounded_problem(draw, 30, k, 16)
        costs = KINDS[kind](draw, k, 30)
        cases.append((costs, least, most, transport(costs, least, most)[0]))

    def anyhow(costs, least, most, prices):
        return assigned(draw.random(costs.shape), least, most)

    monkeypatch.setattr(_transport, "solved", anyhow)
    for costs, least, most, labels in cases:
        assert transport(costs, least, most)[0].tolist() == labels.tolist()


@pytest.mark.parametrize("shape", [(3, 300), (12, 200)])
def test_as_cheap_as_an_assignment_to_places(shape):
    draw = np.random.default_rng(5)
    for _ in range(3):
        costs = draw.random(shape)
        least, most = bounded_problem(draw, shape[1], shape[0], 2 * shape[1] // shape[0])
        labels, theirs = transport(costs, least, most)[0], assigned(costs, least, most)
        assert total(costs, labels) == total(costs, theirs)
        assert labels.tolist() == theirs.tolist()


@pytest.mark.parametrize("wrong", [0.0, 0.01, 1.0])
def test_prices_change_nothing(wrong):
    draw = np.random.default_rng(8)
    costs = draw.random((20, 400))
    least, most = np.full(20, 15), np.full(20, 22)
    labels, prices = transport(costs, least, most)
    assert len(np.unique(prices)) > 5
    off = prices + wrong * draw.normal(size=21)
    assert transport(costs, least, most, off)[0].tolist() == labels.tolist()


def test_prices_that_leave_no_flow_change_nothing():
    draw = np.random.default_rng(8)
    costs = draw.random((9, 90))
    sizes = np.full(9, 10)
    far = np.repeat([1e6, 0.0], [5, 5])  # all rows go to five clusters, which have no room for them
    assert (
        transport(costs, sizes, sizes, far)[0].tolist()
        == transport(costs, sizes, sizes)[0].tolist()
    )


def test_costs_beyond_the_librarys_digits():
    """Beside costs of 1e20 its whole numbers have no digit left for those of 1."""
    draw = np.random.default_rng(6)
    costs = draw.random((4, 60))
    costs[3] += 1e20
    costs[3, :15] = 0
    least = most = np.full(4, 15)
    labels, near = transport(costs, least, most)[0], costs.copy()
    near[3, 15:] = 1e6
    assert labels.tolist() == assigned(near, least, most).tolist()
    assert _transport.solved(costs, least, most).tolist() != labels.tolist()


def test_a_library_that_fails_is_an_error():
    few = np.asarray([1, 1])  # as the caller has checked that they are not
    with pytest.raises(RuntimeError, match="4 rows to 2 clusters"):
        transport(np.asarray([[0.0] * 4, [1.0] * 4]), few, few)


# -- fits ---------------------------------------------------------------------------------------


def blobs(n=120, d=3, k=4, seed=0):
    draw = np.random.default_rng(seed)
    own = draw.choice(k, n, p=np.arange(1, k + 1) / (k * (k + 1) / 2))
    return draw.normal(size=(n, d)) + 3 * draw.normal(size=(k, d))[own]


def plain(x, c, least, most, w=None):
    """Lloyd's loop with SciPy's assignments: centroids, labels, inertia."""
    w = np.ones(len(x)) if w is None else w
    before = None
    while True:
        costs = referee.distances(x, c).T * w
        labels = assigned(costs, least, most)
        if before is not None and (labels == before).all():
            return c, labels, total(costs, labels)
        before = labels
        c = np.stack(
            [
                referee.mean(x[labels == j], w[labels == j]) if (labels == j).any() else c[j]
                for j in range(len(c))
            ]
        )


@pytest.mark.parametrize(
    ("least", "most"),
    [
        ([30] * 4, [30] * 4),
        ([20] * 4, [120] * 4),
        ([0] * 4, [40] * 4),
        ([50, 0, 10, 1], [60, 30, 30, 120]),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_fit_is_the_referees(kernel, least, most, weighted):
    x = blobs()
    w = np.random.default_rng(1).random(120) + 0.1 if weighted else None
    c, labels, inertia = plain(x, x[:4], np.asarray(least), np.asarray(most), w)
    result = constrained_kmeans(
        x, 4, least, most, sample_weight=w, init=x[:4], tol=0, kernel=kernel
    )
    assert result.labels.tolist() == labels.tolist()
    sizes = np.bincount(result.labels, minlength=4)
    assert (sizes >= least).all()
    assert (sizes <= most).all()
    np.testing.assert_array_equal(result.centroids, c)
    np.testing.assert_allclose(result.inertia, inertia, rtol=1e-14)
    assert result.converged


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_bits_from_every_library(backend, kernel, make, host, dtype, weighted):
    if not backend.has_dtype(dtype):
        pytest.skip(f"{backend.name} has no {dtype}")
    x = (8 * blobs()).astype(dtype)
    w = np.random.default_rng(1).integers(1, 4, 120).astype(np.float32) if weighted else None
    how = {"size_min": 25, "size_max": [30, 35, 40, 30], "rng": 0, "n_init": 2}
    first = constrained_kmeans(x, 4, sample_weight=w, kernel="agnostic", **how)
    mine = make(w) if weighted else None
    result = constrained_kmeans(make(x, dtype), 4, sample_weight=mine, kernel=kernel, **how)
    assert referee.bits(result, host) == referee.bits(first)
    assert result.precision == "exact"


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_bits_from_any_number_of_threads(threads, setting):
    setting(spread=0)
    x = blobs(2000, 5, 6)
    first = constrained_kmeans(x, 6, 300, 400, rng=0)
    result = constrained_kmeans(x, 6, 300, 400, rng=0, threads=threads)
    assert referee.bits(result) == referee.bits(first)


@pytest.mark.parametrize("form", [sparse.csr_matrix, sparse.csc_array])
def test_sparse_rows_have_the_bits_of_dense_ones(form):
    draw = np.random.default_rng(2)
    x = np.where(draw.random((150, 20)) < 0.2, draw.normal(size=(150, 20)), 0)
    first = constrained_kmeans(x, 5, 20, 40, init=x[:5])
    assert referee.bits(constrained_kmeans(form(x), 5, 20, 40, init=x[:5])) == referee.bits(first)


def test_sizes_that_never_bind_are_those_of_kmeans():
    x = blobs()
    first = kmeans(x, 4, rng=0, empty="keep")
    assert referee.bits(constrained_kmeans(x, 4, rng=0)) == referee.bits(first)
    least = int(np.bincount(first.labels).min())
    bound = constrained_kmeans(x, 4, size_min=1, size_max=10**6, rng=0)
    assert referee.bits(bound) == referee.bits(first)
    assert constrained_kmeans(x, 4, size_min=least + 1, rng=0).inertia > first.inertia


def test_the_objective_never_rises():
    x = blobs(400, 2, 6, seed=3)
    before = math.inf
    for most in range(1, 12):
        result = constrained_kmeans(x, 6, 60, 80, init=x[:6], max_iter=most, tol=0)
        assert result.inertia <= before * (1 + 1e-15)
        before = result.inertia
    assert result.n_iter > 5


def test_one_pass_after_another_is_the_cheapest():
    """A pass that goes on from another has labels that one from nowhere has: no search remembers sizes."""
    x = blobs(300, 3, 5, seed=4)
    run = module.Sized(Rows.over(x), x[:5], np.full(5, 50), np.full(5, 70))
    c = x[:5]
    for _ in range(5):
        after, _ = run.step(c, "keep")
        labels = assigned(referee.distances(x, c).T, np.full(5, 50), np.full(5, 70))
        means = [referee.mean(x[labels == j], np.ones((labels == j).sum())) for j in range(5)]
        np.testing.assert_array_equal(after, means)
        c = after


# -- ties, scales, small numbers ----------------------------------------------------------------


def test_equal_rows_are_dealt_out_in_order():
    result = constrained_kmeans(np.ones((9, 2)), 3, size_min=3, rng=0)
    assert result.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert result.inertia == 0
    least, most = [1, 2, 3], [4, 4, 4]
    labels = constrained_kmeans(np.ones((9, 2)), 3, least, most, rng=0).labels
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2]


def test_many_ties_have_the_same_labels_on_every_library(backend, kernel, make, host):
    x = np.random.default_rng(7).integers(0, 3, (200, 2)).astype(np.float64)
    first = constrained_kmeans(x, 5, 40, 40, init=x[:5], kernel="agnostic")
    assert np.bincount(first.labels).tolist() == [40] * 5
    result = constrained_kmeans(make(x), 5, 40, 40, init=make(x[:5]), kernel=kernel)
    assert referee.bits(result, host) == referee.bits(first)


@pytest.mark.parametrize("exponent", [-700, -330, 330, 700])
def test_scales(exponent):
    x = blobs()
    first = constrained_kmeans(x, 4, 25, 35, init=x[:4])
    far = np.ldexp(x, exponent)
    result = constrained_kmeans(far, 4, 25, 35, init=far[:4])
    assert result.labels.tolist() == first.labels.tolist()
    np.testing.assert_array_equal(np.ldexp(result.centroids, -exponent), first.centroids)


@pytest.mark.parametrize("weight", [1e-300, 1e300])
def test_the_unit_of_weights_is_free(weight):
    x, w = blobs(), np.random.default_rng(1).random(120)
    first = constrained_kmeans(x, 4, 25, 35, init=x[:4], sample_weight=w)
    scaled = np.ldexp(w, round(math.log2(weight)))
    result = constrained_kmeans(x, 4, 25, 35, init=x[:4], sample_weight=scaled)
    assert result.labels.tolist() == first.labels.tolist()


def test_an_outlier_beside_many_rows():
    x = blobs()
    x[0] *= 1e12
    result = constrained_kmeans(x, 4, 30, 30, init=x[:4], tol=0)
    labels = assigned(referee.distances(x, result.centroids).T, np.full(4, 30), np.full(4, 30))
    costs = referee.distances(x, result.centroids).T
    assert total(costs, result.labels) <= total(costs, labels)


def test_rows_without_weight_fill_sizes():
    x, w = np.asarray([[0.0], [1.0], [2.0], [9.0], [50.0], [60.0]]), [1, 1, 1, 1, 0, 0]
    result = constrained_kmeans(x, 2, 3, 3, sample_weight=w, init=[[0.0], [9.0]])
    assert result.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert result.centroids[:, 0].tolist() == [1, 9]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 1), (7, 7)])
def test_one_cluster_and_as_many_as_rows(n, k):
    x = blobs(n)
    result = constrained_kmeans(x, k, n // k, n // k, rng=0)
    assert np.bincount(result.labels).tolist() == [n // k] * k
    if k == n:
        assert result.inertia == 0
    else:
        np.testing.assert_array_equal(result.centroids[0], referee.mean(x, np.ones(n)))


def test_sizes_in_all_forms(backend, make, host):
    x = make(blobs())
    first = host(constrained_kmeans(x, 4, 25, 35, rng=0).labels).tolist()
    forms = [[25] * 4, (25,) * 4, np.full(4, 25), np.int8(25), np.asarray(25), make([25] * 4)]
    for form in forms:
        assert host(constrained_kmeans(x, 4, form, 35, rng=0).labels).tolist() == first


def test_a_cluster_left_empty_is_told():
    x = np.asarray([[0.0], [1.0], [2.0]])
    with pytest.warns(ConvergenceWarning, match="`size_min` of at least 1"):
        result = constrained_kmeans(x, 2, [3, 0], init=x[:2])
    assert result.labels.tolist() == [0, 0, 0]
    assert result.centroids[:, 0].tolist() == [1, 1]


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"size_min": 3}, ValueError, "`size_min` must leave enough rows.*8 rows.*at least 9"),
        ({"size_min": [4, 4, 1]}, ValueError, "`size_min` must leave enough"),
        ({"size_max": 2}, ValueError, "`size_max` must have room for all 8 rows.*at most 6"),
        ({"size_min": 2, "size_max": [3, 3, 1]}, ValueError, "size_min=2 and size_max=1 .*ter 2"),
        ({"size_min": -1}, ValueError, "`size_min` must be at least 0"),
        ({"size_max": [3, 3, -2]}, ValueError, r"`size_max\[2\]` must be at least 0"),
        ({"size_min": 1.5}, TypeError, "`size_min` must be a whole number; got 1.5"),
        ({"size_min": True}, TypeError, "`size_min` must be a whole number"),
        ({"size_min": "two"}, TypeError, "`size_min` must be a whole number"),
        ({"size_min": [1, 2.0, 1]}, TypeError, r"`size_min\[1\]` must be a whole number"),
        ({"size_min": [1, 2]}, ValueError, "one for each of 3 clusters; got 2 numbers"),
        ({"size_max": [[3, 3, 3]]}, ValueError, "one for each of 3 clusters; got 1 numbers"),
        ({"size_max": [[3]] * 3}, TypeError, r"`size_max\[0\]` must be a whole number"),
    ],
)
def test_sizes_that_cannot_be(sizes, error, message):
    x = np.arange(16.0).reshape(8, 2)
    with pytest.raises(error, match=message):
        constrained_kmeans(x, 3, **sizes)
    with pytest.raises(error, match=message):
        KMeansConstrained(3, **sizes).fit(x)


def test_other_errors():
    x = np.arange(16.0).reshape(8, 2)
    with pytest.raises(ValueError, match="`x` must have 2 dimensions"):
        constrained_kmeans(x[None], 3)
    with pytest.raises(ValueError, match="between 1 and the number of rows"):
        constrained_kmeans(x, 9)
    with pytest.raises(ValueError, match="`init` must have shape"):
        constrained_kmeans(x, 3, init=x[:2])
    with pytest.raises(ValueError, match="must be finite"):
        constrained_kmeans(np.where(x == 3, np.nan, x), 3)
    with pytest.raises(ValueError, match="`n_init` must be"):
        constrained_kmeans(x, 3, n_init="many")
    with pytest.raises(ValueError, match=r"all n_clusters=3 clusters, .*the 8 rows of X"):
        KMeansConstrained(3, size_min=3).fit(x)


def test_memory_for_a_flow_is_asked_for_before():
    x = blobs()
    with pytest.raises(
        ValueError, match="`max_bytes` must hold a flow of 120 rows to 4 clusters, 61440 "
    ):
        constrained_kmeans(x, 4, 30, 30, rng=0, max_bytes=61439)
    first = constrained_kmeans(x, 4, 30, 30, rng=0)
    assert referee.bits(constrained_kmeans(x, 4, 30, 30, rng=0, max_bytes=61440)) == referee.bits(
        first
    )


def test_without_or_tools_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install \"anykmeans\[constrained\]\""):
        constrained_kmeans([[0.0], [1.0]], 2)


def test_or_tools_is_loaded_with_the_first_flow():
    code = (
        "import sys; from anykmeans.constrained import constrained_kmeans as fit;"
        "x = [[0.0], [1.0], [8.0]]; fit(x, 2, init=[[0.0], [8.0]]); print('ortools' in sys.modules);"
        "fit(x, 2, size_max=[1, 2], init=[[0.0], [8.0]]); print('ortools' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.stdout.split() == ["False", "True"], run.stderr


def test_nothing_given_is_changed():
    x, w, least = blobs(), np.ones(120), [25] * 4
    for a in (x, w):
        a.flags.writeable = False
    constrained_kmeans(x, 4, least, sample_weight=w, init=x[:4])
    assert least == [25] * 4


# -- the benchmark ------------------------------------------------------------------------------


def test_the_benchmark_runs_on_small_data(capsys, tmp_path, monkeypatch):
    class Peer:
        """What k-means-constrained is called like, for where it is not installed."""

        def __init__(self, k, *, size_min, size_max, init, n_init):
            self.how = k, size_min, size_max, init

        def fit(self, x):
            k, *bounds, init = self.how
            result = constrained_kmeans(x, k, *bounds, init=init, max_iter=3)
            self.cluster_centers_, self.labels_ = result.centroids, result.labels
            self.n_iter_ = result.n_iter
            return self

        def predict(self, x):
            return self.labels_

    monkeypatch.setitem(sys.modules, benchmark.PEER, SimpleNamespace(KMeansConstrained=Peer))
    out = tmp_path / "report.json"
    arguments = ["constrained", "--repeats", "1", "--most-n", "1000", "--json", str(out)]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "| 1,000 | 2 | 5 | equal |" in said
    report = json.loads(out.read_text())
    assert [row[-1] for row in report["against"]] == ["0"] * 3  # its labels are the cheapest
    assert [row[-2] for row in report["against"]] == ["0 of 1"] * 3  # it stops early
    assert len(report["growth"]) == 2


# -- the estimator ------------------------------------------------------------------------------


def test_the_estimator_is_the_function(backend, make, host):
    x = make(blobs())
    model = KMeansConstrained(4, size_min=25, size_max=35, random_state=0).fit(x)
    result = constrained_kmeans(x, 4, 25, 35, rng=np.random.RandomState(0))
    assert referee.bits(result, host)["centroids"] == [
        [value.hex() for value in row] for row in host(model.cluster_centers_).tolist()
    ]
    assert host(model.labels_).tolist() == host(result.labels).tolist()
    assert (model.inertia_, model.n_iter_) == (result.inertia, result.n_iter)
    assert host(clone(model).fit_predict(x)).tolist() == host(model.labels_).tolist()
    nearest, _ = anykmeans.assign(x, model.cluster_centers_)
    assert host(model.predict(x)).tolist() == host(nearest).tolist()
    assert host(nearest).tolist() != host(model.labels_).tolist()
    assert model.predict(x[:1, :]).shape == (1,)  # of which no sizes are asked


def test_the_estimator_pickles_and_a_fit_that_fails_leaves_it():
    x = blobs()
    model = KMeansConstrained(4, 25, 35, init=x[:4]).fit(x, sample_weight=np.ones(120))
    again = pickle.loads(pickle.dumps(model))
    assert again.transform(x).tolist() == model.transform(x).tolist()
    with pytest.raises(ValueError, match="the 120 rows of X"):
        model.set_params(size_min=31).fit(x)
    assert model.labels_.shape == (120,)


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [KMeansConstrained(2, size_min=1, n_init=2, max_iter=5)],
    expected_failed_checks=lambda estimator: dict.fromkeys(
        [f"check_sample_weight_equivalence_on_{kind}_data" for kind in ("dense", "sparse")],
        "sizes count rows, whatever they weigh; and k-means++ draws by position.",
    ),
)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


# -- by cosine ----------------------------------------------------------------------------------


def test_by_cosine_rows_count_for_their_directions(make, host, rng):
    x = rng.normal(size=(60, 4))
    long = x * rng.uniform(0.1, 10, size=(60, 1))
    init = x[:4]
    found = constrained_kmeans(make(long), 4, 12, 20, metric="cosine", init=make(init), max_iter=1)
    unit, c = (a / np.sqrt((a * a).sum(axis=1))[:, None] for a in (x, init))
    costs = referee.distances(unit, c)
    once = constrained_kmeans(make(unit), 4, 12, 20, init=make(c), max_iter=1)
    means = host(once.centroids)
    means = means / np.sqrt((means * means).sum(axis=1))[:, None]
    np.testing.assert_allclose(host(found.centroids), means, atol=1e-12)
    labels = host(found.labels)
    assert np.bincount(labels).min() >= 12
    assert np.bincount(labels).max() <= 20
    final = referee.distances(unit, host(found.centroids))
    assert found.inertia == pytest.approx(final[np.arange(60), labels].sum())
    assert costs.shape == (60, 4)
    model = KMeansConstrained(4, 12, 20, metric="cosine", random_state=0).fit(make(long))
    assert np.bincount(host(model.labels_)).max() <= 20
    again = KMeansConstrained.from_state_dict(model.state_dict())
    np.testing.assert_array_equal(host(again.predict(make(x))), host(model.predict(make(x))))
