"""Each kernel's steps against plain loops, and the seam that chooses between kernels."""

import numpy as np
import pytest

from anykmeans import kernels, kmeans
from anykmeans._array import Matrix

SHAPES = [  # rows, features, clusters
    (1, 1, 1),
    (1, 5, 3),
    (63, 1, 2),
    (100, 17, 1),
    (100, 3, 63),
    (123, 100, 7),
    (63, 64, 123),
    (1000, 2, 5),
]


@pytest.fixture(params=kernels.TABLE)
def steps(request, backend, make):
    """A kernel of the table that can run on the backend's arrays, and those arrays as it sees them."""
    x = make(np.ones((2, 2)))
    if (reason := kernels.why_not(request.param, x)) is not None:
        pytest.skip(f"{request.param}: {reason}")
    kernel = kernels.choose(x, request.param)

    def see(a, dtype=None):
        a = make(a, dtype)
        flat = a.ndim == 1
        matrix = Matrix.of(a[:, None] if flat else a, host=kernel.host)
        data = matrix.data[:, 0] if flat else matrix.data
        return matrix.xp, data

    return kernel, see


def read(backend, kernel, a):
    """A NumPy array of what a kernel returned, in whichever library it worked."""
    return np.asarray(a) if kernel.host else backend.host(a)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "d", "k"), SHAPES)
def test_nearest(backend, steps, m, d, k, dtype):
    kernel, see = steps
    rng = np.random.default_rng([m, d, k])
    y, c = (np.round(rng.normal(size=(rows, d)) * 8) / 4 for rows in (m, k))  # scores are exact
    scores = np.array([[sum(b * b) - 2 * sum(a * b) for b in c] for a in y])
    xp, rows = see(y, dtype)
    before = read(backend, kernel, rows).copy()
    labels, best, second = kernel.nearest(
        xp, rows, see(-2 * c.T, dtype)[1], see((c**2).sum(axis=1), dtype)[1]
    )
    labels, best, second = (read(backend, kernel, a) for a in (labels, best, second))
    np.testing.assert_array_equal(labels, scores.argmin(axis=1))  # the first of equals
    np.testing.assert_array_equal(best, scores.min(axis=1))
    runner_up = np.sort(scores, axis=1)[:, 1] if k > 1 else np.full(m, np.inf)
    np.testing.assert_array_equal(second, runner_up)
    np.testing.assert_array_equal(read(backend, kernel, rows), before)


@pytest.mark.parametrize("labels_dtype", ["int32", "int64"])
@pytest.mark.parametrize(("m", "columns", "k"), SHAPES)
def test_segment_sum(backend, steps, m, columns, k, labels_dtype):
    kernel, see = steps
    rng = np.random.default_rng([m, columns, k])
    high = 2**52 // m  # as large as sums of whole numbers can be exact
    values = rng.integers(-high, high, size=(m, columns)).astype(np.float64)
    labels = rng.integers(k, size=m) // 2  # some clusters stay empty
    wanted = [
        [sum(int(v) for v in values[labels == j, f]) for f in range(columns)] for j in range(k)
    ]
    xp, rows = see(values)
    got = kernel.segment_sum(xp, rows, see(labels, labels_dtype)[1], k)
    assert read(backend, kernel, got).tolist() == wanted


def test_the_choice_is_reported_and_can_be_forced(backend, make):
    x = make(np.arange(24.0).reshape(12, 2))
    can_run = [name for name in kernels.TABLE if kernels.why_not(name, x) is None]
    assert "agnostic" in can_run
    assert kmeans(x, 2, rng=0).kernel == can_run[0]
    for name in can_run:
        assert kmeans(x, 2, rng=0, kernel=name).kernel == name
    for name in set(kernels.TABLE) - set(can_run):
        reason = kernels.why_not(name, x)
        with pytest.raises(ValueError, match=r"^`kernel`") as caught:
            kmeans(x, 2, rng=0, kernel=name)
        assert reason in str(caught.value)


def test_the_table_names_every_kernel_file():
    import pathlib

    files = {path.stem for path in pathlib.Path(kernels.__file__).parent.glob("*.py")}
    assert files - {"__init__"} == set(kernels.TABLE)
