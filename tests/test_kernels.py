"""Each kernel's steps against plain loops, and the seam that chooses between kernels."""

import functools
import pathlib
import sys

import numpy as np
import pytest

from anykmeans import kernels, kmeans
from anykmeans._array import Matrix
from anykmeans._frame import Frame
from anykmeans._work import Work

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


class Steps:
    """A kernel's steps on a backend's arrays, NumPy in and NumPy out."""

    def __init__(self, backend, name):
        self.backend = backend
        self.kernel = kernels.choose(backend.make(np.ones((2, 2))), name)

    def see(self, a, dtype=None):
        """The namespace and the array as the kernel sees it."""
        a = self.backend.make(a, dtype)
        matrix = Matrix.of(a[:, None] if a.ndim == 1 else a, self.kernel.library)
        return matrix.xp, matrix.data[:, 0] if a.ndim == 1 else matrix.data

    def read(self, a):
        return np.asarray(a) if self.kernel.host else self.backend.host(a)


@pytest.fixture
def steps(backend):
    """Every kernel that can run on the backend's arrays."""
    if backend.library == "jax.numpy":
        pytest.skip("to every kernel its arrays are NumPy's")
    x = backend.make(np.ones((2, 2)))
    return [Steps(backend, name) for name in kernels.TABLE if kernels.why_not(name, x) is None]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("m", "d", "k"), SHAPES)
def test_nearest(steps, m, d, k, dtype):
    rng = np.random.default_rng([m, d, k])
    y, c = (np.round(rng.normal(size=(rows, d)) * 8) / 4 for rows in (m, k))  # scores are exact
    scores = np.array([[sum(b * b) - 2 * sum(a * b) for b in c] for a in y])
    runner_up = np.sort(scores, axis=1)[:, 1] if k > 1 else np.full(m, np.inf)
    for each in steps:
        xp, rows = each.see(y, dtype)
        minus_2c, norms = each.see(-2 * c.T, dtype)[1], each.see((c**2).sum(axis=1), dtype)[1]
        labels, best, second = map(each.read, each.kernel.nearest(xp, rows, minus_2c, norms))
        name = each.kernel.name
        np.testing.assert_array_equal(labels, scores.argmin(axis=1), name)  # the first of equals
        np.testing.assert_array_equal(best, scores.min(axis=1), name)
        np.testing.assert_array_equal(second, runner_up, name)
        np.testing.assert_array_equal(each.read(rows), y, name)  # nothing was written


@pytest.mark.parametrize("labels_dtype", ["int32", "int64"])
@pytest.mark.parametrize(("m", "columns", "k"), SHAPES)
def test_segment_sum(steps, m, columns, k, labels_dtype):
    rng = np.random.default_rng([m, columns, k])
    high = 2**52 // m  # as large as sums of whole numbers can be exact
    values = rng.integers(-high, high, size=(m, columns)).astype(np.float64)
    labels = rng.integers(k, size=m) // 2  # some clusters stay empty
    wanted = [
        [sum(int(v) for v in values[labels == j, f]) for f in range(columns)] for j in range(k)
    ]
    for each in steps:
        xp, rows = each.see(values)
        got = each.kernel.segment_sum(xp, rows, each.see(labels, labels_dtype)[1], k)
        assert each.read(got).tolist() == wanted, each.kernel.name


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("t", [1, 3, 11])
@pytest.mark.parametrize("max_bytes", [None, 1])
@pytest.mark.parametrize(("m", "d"), [(1, 1), (90, 2), (200, 3), (70, 16), (150, 33), (40, 300)])
def test_steps_of_seeding(steps, m, d, max_bytes, t, dtype, weighted):
    """What candidates save and win, what a pick changes, and costs, against plain loops."""
    rng = np.random.default_rng([m, d, t])
    y = np.round(rng.normal(size=(m, d)) * 8) / 4  # distances are exact, and often equal
    picks, c = y[rng.integers(m, size=2)] + 0.25, y[rng.integers(m, size=t)]
    to_picks, to_c = (((y[:, None] - b[None]) ** 2).sum(axis=2) for b in (picks, c))
    closest = to_picks.min(axis=1)
    w = np.round(rng.exponential(size=m) * 4) if weighted else None
    weights = np.ones(m) if w is None else w
    cost, scale = weights * closest, 0.5
    left = np.rint(weights[:, None] * np.minimum(to_c, closest[:, None]) * scale)
    saved = np.rint(cost * scale).sum() - left.sum(axis=0)
    free = scale * (cost - (weights[:, None] * np.minimum(to_c, closest[:, None])).T).sum(axis=1)
    so_far = np.rint(cost * scale).cumsum()
    after = np.minimum(closest, to_c[:, t - 1])
    draws = [0.0, so_far[-1] / 3, so_far[m // 2], so_far[-1]]
    for each in steps:
        name, kernel = each.kernel.name, each.kernel
        matrix = Matrix.of(each.backend.make(y, dtype), kernel.library)
        xp, rows, frame = matrix.xp, matrix.data, Frame(matrix, float(np.abs(y).max()))
        first, second, wide, old = (
            each.see(a, "float64")[1] for a in (picks[:1], picks[1:], c, np.full(m, np.inf))
        )
        heavy = None if w is None else each.see(w, "float64")[1]
        work = Work(m, d, host=kernel.host, max_bytes=max_bytes)
        sieve = kernel.sieve(frame, work, first, 3)
        kept = sieve.rows(rows)
        for pick in (first, second):
            old, kept = kernel.settle(xp, rows, pick, old, kept, sieve.add(pick), None, 0)
        np.testing.assert_array_equal(each.read(old), closest, name)
        against = sieve.against(wide)
        read = functools.partial(matrix.rows, slice(0, m))
        got, doubt, won = kernel.gains(xp, read, wide, old, kept, against, heavy, scale)
        assert (np.abs(each.read(got) - free) <= doubt).all(), name  # nothing was rounded
        assert doubt <= 1e-4 * scale * (weights * (closest + (y**2).sum(axis=1))).sum() + 1e-9, name
        exact = [
            float(kernel.saved(xp, rows, wide[j : j + 1, :], old, heavy, scale, won, j))
            for j in range(t)
        ]
        assert exact == saved.tolist(), name
        found, largest = kernel.costs(xp, old, heavy, scale, 64)
        wanted = [np.rint(cost[i : i + 64] * scale).sum() for i in range(0, m, 64)]
        assert (found.tolist(), largest) == (wanted, cost.max()), name
        for draw in draws:
            row = kernel.reached(old, heavy, scale, so_far[-1], draw)
            assert row == so_far.searchsorted(draw), name
        old, kept = kernel.settle(xp, rows, wide[t - 1 :, :], old, kept, 2, won, t - 1)
        np.testing.assert_array_equal(each.read(old), after, name)


def test_the_choice_is_reported_and_can_be_forced(backend, make, monkeypatch, tmp_path):
    x = make(np.arange(24.0).reshape(12, 2))
    can_run = [name for name in kernels.TABLE if kernels.why_not(name, x) is None]
    assert "agnostic" in can_run
    monkeypatch.delitem(sys.modules, "anykmeans.kernels.numba.steps", raising=False)
    monkeypatch.setattr(kernels, "_numba", tmp_path)
    monkeypatch.setattr(kernels, "seconds", lambda: 0.0)
    at_once = next(name for name in can_run if name not in kernels.LEAST)
    assert kernels.choose(x).name == at_once  # nothing is compiled
    monkeypatch.setattr(kernels, "seconds", lambda: 1e9)  # but so much small work pays for it
    assert kernels.choose(x).name == can_run[0]
    monkeypatch.setattr(kernels, "seconds", lambda: 0.0)
    assert kmeans(x, 2, rng=0).kernel == kernels.choose(x).name == at_once
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "small.passes-80.py311.nbi").touch()
    assert kmeans(x, 2, rng=0).kernel == can_run[0]
    large = make(np.zeros((max(kernels.LEAST.values()), 1)))
    assert kernels.choose(large).name == can_run[0]
    for name in can_run:
        assert kmeans(x, 2, rng=0, kernel=name).kernel == name
    for name in set(kernels.TABLE) - set(can_run):
        reason = kernels.why_not(name, x)
        with pytest.raises(ValueError, match=r"^`kernel`") as caught:
            kmeans(x, 2, rng=0, kernel=name)
        assert reason in str(caught.value)


def test_the_table_names_every_kernel_file():
    folder = pathlib.Path(kernels.__file__).parent
    files = {path.stem for path in folder.glob("*.py")}
    folders = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert (files | folders) - {"__init__"} == set(kernels.TABLE)
