"""One pass that no other follows, compiled: labels and distances are those of the referee, whatever leaves scores in doubt."""

import numpy as np
import pytest

pytest.importorskip("numba")

from anykmeans._evaluate import evaluate, nearest
from anykmeans.kernels.numba.once import _FEW


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
@pytest.mark.parametrize("k", [1, 3, _FEW, _FEW + 1, 45])
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


@pytest.mark.parametrize("k", [_FEW, _FEW + 1])
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
