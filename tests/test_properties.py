"""Properties that hold for any data: what may not matter, does not change a bit."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from referee import bits, nearest

from anykmeans import _settings, assign, kmeans

# What one backend or kernel is, stays the same for every example: fixtures need no reset.
settings.register_profile(
    "properties",
    parent=settings.get_profile("anykmeans"),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
pytestmark = pytest.mark.filterwarnings("ignore:Number of distinct clusters")

finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)
lattice = st.integers(-4, 4).map(float)


@st.composite
def problems(draw, elements=finite | lattice):
    """Rows (n, d) of at most 24 bits, small whole weights (n,) or None, and initial centroids (k, d) among or beside the rows."""
    n, d, k = draw(st.integers(1, 40)), draw(st.integers(1, 5)), draw(st.integers(1, 8))
    kind = draw(st.sampled_from([elements, lattice]))
    dtype = draw(st.sampled_from(["float32", "float64"]))
    x = draw(hnp.arrays(np.float64, (n, d), elements=kind)).astype(dtype)
    c = draw(hnp.arrays(np.float64, (k, d), elements=kind)).astype(dtype)
    c[: n // 2] = x[: n // 2][:k]
    w = draw(st.none() | hnp.arrays(np.float64, n, elements=st.integers(0, 5).map(float)))
    if w is not None and not w.any():
        w = None
    k = min(n, k)
    return x, w, c[:k]


def run(x, w, c, **options):
    return bits(kmeans(x, len(c), init=c, sample_weight=w, max_iter=20, **options))


@settings(settings.get_profile("properties"))
@given(
    problems(),
    st.sampled_from(["auto", "off", "hamerly", "groups"]),
    st.integers(1, 3),
    st.sampled_from([2_000, 50_000, None]),
    st.sampled_from(["relocate", "keep"]),
)
def test_how_it_is_computed_does_not_matter(
    backend, make, host, kernel, problem, bounds, threads, max_bytes, empty
):
    x, w, c = problem
    wanted = run(x, w, c, empty=empty, kernel="cpu")
    with _settings.settings(bounds=bounds, spread=0):
        result = kmeans(
            make(x),
            len(c),
            init=make(c),
            sample_weight=None if w is None else make(w),
            max_iter=20,
            empty=empty,
            max_bytes=max_bytes,
            threads=threads,
            kernel=kernel,
        )
    assert bits(result, host) == wanted


@settings(settings.get_profile("properties"))
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(kernel, problem, random):
    x, w, c = problem
    order = np.arange(len(x))
    random.shuffle(order)
    wanted = run(x, w, c, empty="keep", kernel=kernel)  # relocation goes by row number
    got = run(x[order], None if w is None else w[order], c, empty="keep", kernel=kernel)
    wanted["labels"] = [wanted["labels"][i] for i in order]
    assert got == wanted


@settings(settings.get_profile("properties"))
@given(problems())
def test_a_weight_is_a_repetition(kernel, problem):
    x, w, c = problem
    w = np.ones(len(x)) if w is None else w
    times = w.astype(int)
    if times.sum() < len(c):
        return
    weighted = run(x, w, c, empty="keep", kernel=kernel)
    repeated = run(np.repeat(x, times, axis=0), None, c, empty="keep", kernel=kernel)
    weighted["labels"] = np.repeat(weighted["labels"], times).tolist()
    assert weighted == repeated


@settings(settings.get_profile("properties"))
@given(problems(), st.integers(-60, 60), st.integers(-200, 200))
def test_powers_of_two_and_signs_scale_through(kernel, problem, exponent, weight_exponent):
    """Scaling or mirroring the rows scales or mirrors the centroids, bit for bit."""
    x, w, c = problem
    w = np.ones(len(x)) if w is None else w
    plain = kmeans(x, len(c), init=c, sample_weight=w, max_iter=20, kernel=kernel)
    scale = np.where(np.arange(x.shape[1]) % 2, -1.0, 1.0) * 2.0**exponent
    other = kmeans(
        x * scale.astype(x.dtype),
        len(c),
        init=c * scale.astype(x.dtype),
        sample_weight=w * 2.0**weight_exponent,
        max_iter=20,
        kernel=kernel,
    )
    np.testing.assert_array_equal(other.labels, plain.labels)
    np.testing.assert_array_equal(other.centroids, plain.centroids * scale.astype(x.dtype))
    assert other.inertia == plain.inertia * 2.0 ** (2 * exponent + weight_exponent)
    assert other.n_iter == plain.n_iter


@settings(settings.get_profile("properties"))
@given(problems())
def test_labels_and_distances_are_the_referees(kernel, problem):
    x, w, c = problem
    result = kmeans(x, len(c), init=c, sample_weight=w, max_iter=3, kernel=kernel)
    labels, squared = assign(x, result.centroids)
    wanted, distance = nearest(x.astype(np.float64), result.centroids.astype(np.float64))
    np.testing.assert_array_equal(result.labels, wanted)
    np.testing.assert_array_equal(labels, wanted)
    assert squared.tobytes() == distance.tobytes()


@settings(settings.get_profile("properties"))
@given(problems())
def test_inertia_never_rises(problem):
    x, w, c = problem
    x, c = x.astype(np.float64), c.astype(np.float64)
    costs = [
        kmeans(x, len(c), init=c, sample_weight=w, max_iter=m, tol=0).inertia for m in range(1, 8)
    ]
    for cost, later in itertools.pairwise(costs):
        assert later <= cost * (1 + 1e-12) + 1e-18 * np.abs(x).max() ** 2
