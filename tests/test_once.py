"""One pass that no other follows, compiled: labels and distances are those of the referee, whatever leaves scores in doubt."""

import numpy as np
import pytest

pytest.importorskip("numba")

from anykmeans import KMeans
from anykmeans._evaluate import evaluate, evaluated, nearest
from anykmeans.kernels.numba import _MOST, looks, once
from anykmeans.sources.rows import Rows


def rows_and_centroids(kind, n, d, k, dtype):
    rng = np.random.default_rng(d * k)
    if kind == "apart":
        x = rng.normal(size=(n, d)) + 5.0 * rng.integers(3, size=(n, 1))
    elif kind == "ties":
        x = rng.integers(-1, 2, size=(n, d))
    elif kind == "far":  # from the origin, for the box they fill
        x = 4096.0 + rng.normal(size=(n, d)) * 2.0**-9
    else:  # float32 cannot tell them apart
        x = 1.0 + rng.integers(0, 8, size=(n, d)) * 2.0**-23
    x = x.astype(dtype)
    return x, x[rng.choice(n, k)]  # some twice


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("kind", ["apart", "ties", "far", "alike"])
@pytest.mark.parametrize("k", [1, 3, 10, 45])
@pytest.mark.parametrize("d", [1, 2, 5, 48, 70])
def test_labels_and_distances_are_those_of_the_standard_alone(d, k, kind, dtype):
    x, c = rows_and_centroids(kind, 200, d, k, dtype)
    (labels, distances, inertia), expected = (
        evaluate(x, c, kernel=kernel) for kernel in ("numba", "agnostic")
    )
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_array_equal(distances, expected[1])
    assert inertia == expected[2]
    np.testing.assert_array_equal(nearest(x, c, kernel="numba"), expected[0])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("d", [2, 40])
def test_a_batch_is_labelled_measured_and_added_in_one_go(
    setting, monkeypatch, d, dtype, weighted, threads
):
    setting(spread=0)
    monkeypatch.setattr(once, "_NEAR", 64 * d)  # several tiles for each thread
    monkeypatch.setattr(once, "_READ", 1)
    x, c = rows_and_centroids("apart", 500, d, 7, dtype)
    c = c + 0.5  # none at the origin, where rows of any size may be near
    w = np.random.default_rng(0).exponential(size=500) if weighted else None
    found = []
    for kernel in ("numba", "agnostic"):
        rows = Rows.over(x, w, kernel=kernel, threads=threads)
        with rows.work:
            labels, distances, inertia = evaluated(rows, c)
            sums = rows.stats(labels, 7).sums
            found.append((labels.tolist(), distances.tobytes(), inertia))
            if kernel == "numba":
                *each, cost, whole = rows.kernel.counted(rows, c, measured=True)
                found_too, nothing, none, _ = rows.kernel.counted(rows, c, measured=False)
                for one, other in zip(
                    (*each, whole, found_too), (labels, distances, sums, labels), strict=True
                ):
                    np.testing.assert_array_equal(one, other)
                assert cost == inertia
                assert nothing is None
                assert np.isnan(none)
    assert found[0] == found[1]


def test_a_small_batch_is_for_one_thread():
    """Though it is large enough for passes that follow each other to be spread."""
    small, large = (Rows.over(np.ones((n, 128)), kernel="numba", threads=4) for n in (1024, 16384))
    assert small.work.threads == large.work.threads == 4
    assert len(small.kernel.tiles(small, 1024)) == len(once._pieces(small, 20)) == 1
    assert len(large.kernel.tiles(large, 16384)) >= 4
    assert len(once._pieces(large, 20)) >= 4


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("kind", ["apart", "ties", "far", "alike"])
def test_a_single_pass_over_codes_finds_the_same(setting, monkeypatch, kind, dtype, threads):
    if not looks.codes.AVAILABLE:
        pytest.skip("this processor has no products of bytes")
    setting(first_look=0, spread=0)
    for name, value in (("_LARGE", 1), ("_SHARING", 1)):
        monkeypatch.setattr(looks, name, value)
    monkeypatch.setattr(once, "_ROOM", 500 * (70 + 45 // 4))  # several parts
    coded = []

    def plan(frame, work, wide, labels, already):
        coded.append(work.n)
        return looks.Plan(wide.mean(axis=0))

    monkeypatch.setattr(looks, "plan", plan)
    x, c = rows_and_centroids(kind, 1700, 70, 45, dtype)
    c = c + (kind == "ties") / 4  # none at the origin
    found = evaluate(x, c, kernel="numba", threads=threads)
    expected = evaluate(x, c, kernel="agnostic")
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(nearest(x, c, kernel="numba", threads=threads), expected[0])
    if threads == 1:  # settings are those of a thread
        times = 1 + (x.dtype.kind == "f")  # `nearest` takes whole numbers the long way
        assert sum(coded) == times * len(x)
        assert len(coded) >= 4 * times
    rows = Rows.over(x, kernel="numba", threads=threads)
    with rows.work:
        labels, _, cost, whole = rows.kernel.counted(rows, c, measured=True)
        np.testing.assert_array_equal(labels, found[0])
        np.testing.assert_array_equal(whole, rows.stats(found[0].astype(np.int32), 45).sums)
    assert cost == found[2]
    if x.dtype.kind == "f":
        x[1500, 3] = np.nan
        with pytest.raises(ValueError, match="NaN"):
            nearest(x, c, kernel="numba", threads=threads)


@pytest.mark.parametrize("k", [3, 10])
def test_a_row_that_a_glance_did_not_see_is_noticed(k):
    x = np.random.default_rng(0).normal(size=(100, 3))
    c = x[:k]
    for value in (2.0**300, np.inf, np.nan):
        other = x.copy()
        other[70, 1] = value
        if np.isfinite(value):
            expected = nearest(other, c, kernel="agnostic")
            np.testing.assert_array_equal(nearest(other, c, kernel="numba"), expected)
        else:
            with pytest.raises(ValueError, match=r"finite|NaN|infinit"):
                nearest(other, c, kernel="numba")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("k", [2, 7, 130])
@pytest.mark.parametrize("d", [2, 33, 300, _MOST + 1])
def test_centroids_that_are_out_of_the_ordinary(d, k, dtype, monkeypatch):
    rng = np.random.default_rng(d * k)
    x = rng.normal(size=(150, d)).astype(dtype)
    x[::7] *= 2.0**-30
    x[3] = 0
    short = []
    monkeypatch.setattr(
        once, "labels", lambda *a, _of=once.labels: short.append(_of(*a)) or short[-1]
    )
    for small, factor, ordinary in [
        (0, 1.0, True),
        (1, 1.0, True),
        (2, 1.0, False),
        (0, 2.0**30, False),
        (0, 2.0**-30, False),
    ]:
        c = (rng.normal(size=(k, d)) * factor).astype(dtype)
        for j in range(small):
            c[j] *= 0 if j == 0 else 2.0**-40
        expected = nearest(x, c, kernel="agnostic")
        found = nearest(x, c, kernel="numba")
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.int64
        assert len(short) == (d <= _MOST)
        if short:
            assert (short.pop() is not None) == ordinary


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_centroids_that_are_not_finite_are_refused(value):
    c = np.ones((3, 2))
    c[1, 1] = value
    with pytest.raises(ValueError, match="`centroids` must be finite"):
        nearest(np.ones((9, 2)), c, kernel="numba")


def test_centroids_set_by_hand_are_seen_at_once():
    x = np.random.default_rng(0).normal(size=(50, 3))
    km = KMeans(3, kernel="numba", random_state=0).fit(x)
    before = km.predict(x)
    km.cluster_centers_ = km.cluster_centers_[::-1].copy()
    np.testing.assert_array_equal(km.predict(x), 2 - before)
    km.cluster_centers_[0] = np.nan  # in place
    with pytest.raises(ValueError, match="`cluster_centers_` must be finite"):
        km.predict(x)


def test_threads_and_layouts_show_in_no_label(setting):
    setting(spread=0)
    x = np.random.default_rng(0).integers(-2, 3, size=(3001, 5)).astype(np.float32)
    c = x[:40].copy()
    expected = nearest(x, c, kernel="agnostic")
    frozen = x.copy()
    frozen.flags.writeable = False
    for rows in (
        x,
        frozen,
        np.asfortranarray(x),
        x.astype(np.int8),
        np.repeat(x, 2, axis=1)[:, ::2],
    ):
        for threads in (1, 3):
            found = nearest(rows, c, kernel="numba", threads=threads)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("heaviest", [1.0, 1e-300, 1e300])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e5, 1e9])
def test_inertia_by_weights_and_beside_the_ordinary(scale, heaviest):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4)) * scale
    w, c = rng.random(90) * heaviest, x[:12]
    with np.errstate(over="ignore"):  # as every public function has it
        found, expected = (
            evaluate(x, c, sample_weight=w, kernel=kernel) for kernel in ("numba", "agnostic")
        )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    assert found[2] == expected[2]
