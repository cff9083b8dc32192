"""The seams: what is told of parts adds up to what is told of all, and an engine of its own needs no more than that."""

import functools
import math
import operator
from fractions import Fraction

import numpy as np
import pytest

from anykmeans import kmeans
from anykmeans._frame import Frame
from anykmeans._grid import Grid
from anykmeans._libraries import np_compat
from anykmeans._lloyd import Descent, Labelled, lloyd
from anykmeans._matrix import Dense, Matrix
from anykmeans._plusplus import plus_plus
from anykmeans._stats import ClusterStats, Cost, Farthest
from anykmeans.kernels import choose, why_not
from anykmeans.sources.rows import Rows


class Blocks:
    """A source of blocks (rows, weights), each of which is looked at by itself and again in each pass."""

    def __init__(self, blocks, by="auto"):
        self.blocks = [Rows.over(x, w, kernel=by) for x, w in blocks]
        self.shape = sum(len(x) for x, _ in blocks), self.blocks[0].shape[1]
        self.extent = functools.reduce(operator.or_, (block.extent for block in self.blocks))
        self.largest = max(block.largest for block in self.blocks)
        for block in self.blocks:
            block.be_part_of(self.extent)

    def rows(self, numbers):
        starts = np.cumsum([0, *(block.shape[0] for block in self.blocks)])
        where = np.searchsorted(starts, numbers, side="right") - 1
        return np.concatenate(
            [self.blocks[i].rows(np.array([n - starts[i]])) for i, n in zip(where, numbers)]  # noqa: B905
        )

    def start(self, c):
        return Streamed(self, c)


class Streamed(Descent):
    """A run that forgets everything between passes, but for the sums."""

    def __init__(self, source, c):
        largest = max(source.largest, np.abs(c).max())
        self.runs = [
            block.start(c, bounds="off", frame=Frame.around(block.matrix, largest, c))
            for block in source.blocks
        ]

    def sweep(self, c):
        return functools.reduce(operator.add, (run.sweep(c) for run in self.runs))

    def farthest(self, c, most):
        return functools.reduce(operator.add, (run.farthest(c, most) for run in self.runs))

    def move(self, c_new, c):
        return self.runs[0].move(c_new, c)

    def label(self, c):
        ends = [run.label(c) for run in self.runs]
        cost = functools.reduce(operator.add, (end.cost for end in ends))
        frame, heaviest = self.runs[0].frame, self.runs[0].rows.heaviest
        return Labelled(
            np.concatenate([end.labels for end in ends]),
            np.concatenate([end.distances for end in ends]),
            cost,
            math.ldexp(float(cost), 2 * frame.exponent + heaviest),
        )


def problem(weighted, dtype="float64", seed=0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(300, 3)) * [1e-3, 1, 40] + rng.integers(4, size=(300, 1))).astype(dtype)
    x[150:160] = x[0]
    return x, rng.exponential(size=300) * 3 if weighted else None


def cut(x, w, *at):
    parts = np.split(x, at), [None] * (len(at) + 1) if w is None else np.split(w, at)
    return list(zip(*parts, strict=True))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("by", ["auto", "agnostic"])
@pytest.mark.parametrize("empty", ["relocate", "keep"])
def test_an_engine_of_blocks_gives_the_bits_of_rows_in_memory(by, weighted, dtype, empty):
    x, w = problem(weighted, dtype)
    c = x[:6].copy()
    c[3:] += np.array([1e3, 2e3, -5e3]).astype(dtype)[:, None]  # of which three are empty at first
    result = kmeans(x, 6, sample_weight=w, init=c, tol=0, empty=empty, kernel=by)
    for at in [(150,), (1, 2, 100, 299), (77, 200)]:
        source = Blocks(cut(x, w, *at), by)
        assert source.rows(np.array([0, 299])).tolist() == x[[0, 299]].tolist()
        run = source.start(c)
        found, n_iter, converged = lloyd(run, c, max_iter=300, tol=0.0, empty=empty)
        assert found.tobytes() == result.centroids.tobytes()
        assert (n_iter, converged) == (result.n_iter, result.converged)
        end = run.label(found)
        assert end.labels.tolist() == result.labels.tolist()
        assert end.inertia == result.inertia


@pytest.mark.parametrize("weighted", [False, True])
def test_extents_of_parts_are_those_of_all(weighted):
    x, w = problem(weighted)
    if weighted:
        w[:100] *= 2.0**-30  # so that this part's weights are relative to others
    whole = Rows.over(x, w).extent
    parts = [Rows.over(*part).extent for part in cut(x, w, 100, 101)]
    for order in ([0, 1, 2], [2, 0, 1]):
        found = functools.reduce(operator.or_, (parts[i] for i in order))
        assert (found.n, found.heaviest, found.digits) == (300, whole.heaviest, whole.digits)
        for name in ("high", "largest", "smallest"):
            assert getattr(found, name).tolist() == getattr(whole, name).tolist()
        assert found.grid() == whole.grid()


def test_extents_with_and_without_weights_do_not_merge():
    x, w = problem(True)
    with pytest.raises(ValueError, match="both parts have weights, or neither"):
        Rows.over(x, w).extent | Rows.over(x).extent


def test_whole_numbers_are_those_only_if_all_are():
    ints, floats = (Rows.over(np.ones((4, 2), kind)).extent for kind in ("int64", "float64"))
    assert (ints | ints).integral
    assert not (ints | floats).integral
    assert (ints | floats).precision == (53, -1074)


@pytest.mark.parametrize("by", ["auto", "agnostic"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0**-200, 2.0**-900])
def test_costs_add(by, weighted, scale):
    """Those of parts make that of all, exactly rounded, however small they are beside what they could be."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(100, 2))
    w = rng.exponential(size=100) if weighted else None
    distances = rng.random(100) ** 40 * scale
    distances[30:40] = 0
    parts = []
    for start, stop in [(0, 10), (10, 30), (30, 40), (40, 100), (0, 100)]:
        part = Rows.over(x[start:stop], None if w is None else w[start:stop], kernel=by)
        parts.append(part.kernel.cost(part, part.frame(), distances[start:stop]))
    weights = np.ones(100) if w is None else w
    exact = sum(Fraction(a) * Fraction(b) for a, b in zip(distances, weights, strict=True))
    *parts, whole = parts
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        assert float(sum((parts[i] for i in order), Cost())) == float(exact)
    assert float(whole) == float(exact)
    if scale > 2.0**-900:  # below which parts of parts are no floats
        found = sum(map(Fraction, sum(parts, Cost()).parts))
        assert found == sum(map(Fraction, whole.parts)) == exact


def test_what_costs_are_made_of_stays_short():
    rng = np.random.default_rng(2)
    parts = np.ldexp(rng.random(500), rng.integers(-900, 900, size=500)).tolist()
    found = sum((Cost((part,)) for part in parts), Cost())
    assert sum(map(Fraction, found.parts)) == sum(map(Fraction, parts))
    assert len(found.parts) <= 60


def test_stats_know_a_cost_only_if_both_parts_do():
    grid = Grid(np.ones(2), 2.0**40, 1)
    cost = Cost((3.0,))
    one, other = (ClusterStats(np.ones((1, 2)), grid, each) for each in (cost, None))
    assert float((one + one).cost) == 6
    assert (one + other).cost is None


def test_the_farthest_of_parts_are_those_of_all():
    distances = np.array([3.0, 9, 1, 9, 4, 0, 9])
    numbers = np.arange(7)

    def farthest(which, most):
        order = which[np.argsort(-distances[which], kind="stable")][:most]
        order = order[distances[order] > 0]
        return Farthest(most, distances[order], order, order[:, None] * 1.0)

    for most in (1, 2, 4, 7):
        for at in (1, 3, 6):
            merged = farthest(numbers[:at], most) + farthest(numbers[at:], most)
            assert merged.labels.tolist() == farthest(numbers, most).labels.tolist()


class Told:
    """A watch that notes, and stops a run if it is told to."""

    def __init__(self, every=1, stop=math.inf):
        self.every, self.stop, self.seen = every, stop, []

    def __call__(self, at):
        self.seen.append(at)
        return at.n_iter >= self.stop


@pytest.mark.parametrize("by", ["auto", "agnostic"])
def test_a_watch_is_told_between_passes_and_may_stop(by):
    x, _ = problem(False)
    rows = Rows(Matrix.of(x, "numpy"), None, choose(x, by))
    c = x[:6].copy()
    alone = lloyd(rows.start(c), c, max_iter=7, tol=0.0, empty="keep")
    told = Told()
    watched = lloyd(rows.start(c), c, max_iter=7, tol=0.0, empty="keep", watch=told)
    assert watched[0].tobytes() == alone[0].tobytes()
    assert [at.n_iter for at in told.seen] == list(range(8))
    assert math.isnan(told.seen[0].move)
    assert told.seen[0].centroids.tolist() == c.tolist()
    assert told.seen[-1].centroids.tolist() == alone[0].tolist()
    few = Told(every=3)
    lloyd(rows.start(c), c, max_iter=7, tol=0.0, empty="keep", watch=few)
    assert [at.n_iter for at in few.seen] == [0, 3, 6, 7]
    stopped = lloyd(rows.start(c), c, max_iter=7, tol=0.0, empty="keep", watch=Told(stop=2))
    assert stopped[1:] == (2, False)


class Stored(Matrix):
    """Rows in a file, of which as many are read at once as are asked for."""

    source, xp, device = np.empty((0, 1)), np_compat, "cpu"

    def __init__(self, path):
        self._path, stored = path, np.load(path, mmap_mode="r")
        self.shape_, self.dtype, self.read = stored.shape, stored.dtype.name, 0

    @property
    def shape(self):
        return self.shape_

    def rows(self, select, dtype=None):
        rows = np.load(self._path, mmap_mode="r")[select]
        self.read = max(self.read, len(rows))
        return rows.astype(dtype or self.float_dtype)

    def take(self, at):
        return Dense.over(self.rows(at, self.state_dtype), "numpy")


@pytest.mark.parametrize("by", ["auto", "numba", "cpu", "agnostic"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
def test_stored_rows_are_a_matrix_too(by, dtype, tmp_path):
    x = np.random.default_rng(0).integers(0, 200, size=(4000, 6)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    if by != "auto" and why_not(by, x):
        pytest.skip(why_not(by, x))
    wanted = kmeans(x, 9, rng=0, tol=0, max_iter=20)
    matrix = Stored(tmp_path / "x.npy")
    rows = Rows(matrix, None, choose(matrix.source, by), max_bytes=100_000)
    with rows.work:
        c = rows.rows(plus_plus(rows, 9, np.random.default_rng(0)))
        run = rows.start(c)
        c, n_iter, _ = lloyd(run, run.c, max_iter=20, tol=0.0, empty="relocate")
        end = run.label(c)
    assert (c.tobytes(), n_iter, end.inertia) == (
        wanted.centroids.tobytes(),
        wanted.n_iter,
        wanted.inertia,
    )
    assert end.labels.tolist() == wanted.labels.tolist()
    assert matrix.read < 4000
