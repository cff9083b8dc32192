"""Stats and extents: sums that move between grids, are carried and are added, and lose nothing by it."""

import functools
import math
from importlib.util import find_spec

import numpy as np
import pytest
import referee
from referee import exact_sums, wild

from anykmeans import kernels
from anykmeans._extent import Extent
from anykmeans._grid import Grid
from anykmeans._libraries import to_numpy
from anykmeans._stats import ClusterStats, Cost
from anykmeans.sources.rows import Rows

meant = functools.partial(referee.meant, host=to_numpy)
CPU = ("agnostic", "cpu", *(["numba"] if find_spec("numba") else []))


@pytest.mark.parametrize("folds", [1, 2, 5, 8])
@pytest.mark.parametrize("n", [1, 2, 100, 10**6])
def test_stats_mean_the_same_on_another_grid(make, n, folds):
    """Grids for fewer and more summands, coarser and finer at the top; nothing is left to overflow after it."""
    draw = np.random.default_rng(folds)
    step = 2.0 ** (53 - max(n - 1, 1).bit_length())
    one = Grid(np.ldexp(1.0, draw.integers(-900, 900, size=5)), step, folds)
    sums = draw.integers(-(2**52), 2**52, size=(3, folds * 5)).astype(np.float64)
    sums *= draw.choice([0.0, 1.0], size=sums.shape)  # or no more than one summand
    stats = ClusterStats(make(sums), one)
    for most in (1, 3, 2000, 10**7):
        bits = 53 - max(most - 1, 1).bit_length()
        lower = draw.integers(2, 40, size=5)
        needed = 1 + math.ceil((lower.max() + (folds - 1) * math.log2(step)) / bits)
        grid = Grid(np.ldexp(one.scale, -lower), 2.0**bits, needed)
        found = stats.on(grid)
        assert type(found.sums) is type(stats.sums)
        assert meant(found) == meant(stats)
        assert np.abs(to_numpy(found.sums)[:, 5:]).max(initial=0) <= grid.step / 2
        doubled = stats.on(Grid(np.ldexp(grid.scale, -7), grid.step, needed + 1), 7)
        assert meant(doubled) == [[128 * v for v in row] for row in meant(stats)]
    assert stats.on(one) is stats


def test_stats_stay_on_their_device():
    xp = pytest.importorskip("array_api_strict", reason="needs array-api-strict")
    device = xp.Device("device1")
    stats = ClusterStats(xp.asarray([[3.0, 5.0]], device=device), Grid(np.ones(1), 2.0**40, 2))
    grid = Grid(np.full(1, 0.25), 2.0**30, 3)
    assert stats.on(grid).sums.device == stats.carried().sums.device == device
    assert meant(stats.on(grid)) == meant(stats)


def test_stats_of_the_smallest_and_of_the_largest_numbers():
    """Scales at either end of the range, and factors between them that are beyond it."""
    ends = np.ldexp(1.0, [1023, 1023, -1000, 0])
    sums = np.array([[7.0, 0, 2.0**50, 3, -(2.0**51), 0, 5, 2.0**40]])
    stats = ClusterStats(sums, Grid(ends, 2.0**43, 2))
    same = stats.on(Grid(np.ldexp(1.0, [1000, -1000, -1020, -1]), 2.0**38, 4))
    assert meant(same) == meant(stats)
    # A feature so small beside what is to come that its sum is below the last fold counts as zero.
    lost = stats.on(Grid(np.ldexp(1.0, [-1000, 1023, -1000, 0]), 2.0**43, 8))
    assert meant(lost) == [[0, *meant(stats)[0][1:]]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_stats_of_parts_add_on_the_grid_of_their_merged_extent(make, dtype, weighted):
    """Each part on a grid of its own first, and all rows at once on that of all."""
    x, labels = wild(400, 3).astype(dtype), np.arange(400) % 3
    x[100:200] *= 2.0**-20
    w = np.ones(400)
    if weighted:  # each part's relative to another power of two
        w = np.ldexp(1 + np.random.default_rng(1).random(400), np.arange(400) // 100 * 40)

    def stats_of(part):
        rows = Rows.over(make(x[part]), make(w[part]) if weighted else None)
        return rows, rows.stats(rows.matrix.asarray(labels[part]), 3)

    parts = [stats_of(slice(i, i + 100)) for i in range(0, 400, 100)]
    extent = functools.reduce(Extent.__or__, [rows.extent for rows, _ in parts])
    grid = extent.grid()
    moved = [stats.on(grid, rows.heaviest - extent.heaviest) for rows, stats in parts]
    wanted = exact_sums(x, w, labels, 3, extent.heaviest)
    assert meant(functools.reduce(ClusterStats.__add__, moved)) == wanted
    rows, stats = stats_of(slice(None))
    assert rows.heaviest == extent.heaviest
    assert meant(stats) == wanted
    sums, weights = map(to_numpy, stats.totals())
    assert np.append(sums, weights[:, None], axis=1).tolist() == [
        [float(v) for v in row] for row in wanted
    ]


def test_what_is_carried_means_the_same():
    draw = np.random.default_rng(5)
    for folds, columns, step in [(1, 3, 2.0**40), (2, 70, 2.0**52), (4, 130, 2.0**33)]:
        grid = Grid(np.ldexp(1.0, draw.integers(-30, 30, size=columns)), step, folds)
        sums, more = draw.integers(-(2**51), 2**51, size=(2, 4, folds * columns)).astype(float)
        sums[:, columns // 2 :: columns] = more[:, columns // 2 :: columns] = 0
        one, other = (ClusterStats(a, grid) for a in (sums, more))
        wanted = one + other
        assert meant(wanted.carried()) == meant(wanted)
        for name in CPU:
            kernel = kernels.choose(np.zeros((2, 2)), name)
            both, total = kernel.joined(one, ClusterStats(more.copy(), grid))
            np.testing.assert_array_equal(both.sums, wanted.carried().sums)
            assert (np.abs(both.sums[:, columns:]) <= step / 2).all()
            assert total.tolist() == [[float(v) for v in row] for row in meant(wanted)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_an_extent_fits_a_grid_that_holds_its_sums(dtype, weighted):
    draw = np.random.default_rng(3)
    answers = set()
    for _ in range(200):
        w = draw.random((2, 9)) + 0.1
        x = np.ldexp(draw.normal(size=(2, 9, 2)), draw.integers(-3, 12, size=(2, 9, 2)))
        one, other = (
            Rows.over(a.astype(dtype), b if weighted else None, kernel="cpu")
            for a, b in zip(x, w, strict=True)
        )
        room = int(draw.integers(5, 9))
        grid = one.extent.grid(9, room)
        assert one.extent.fits(grid, room)
        assert not one.extent.fits(grid, room + 1)
        answers.add(fits := other.extent.fits(grid, room))
        if fits:
            other.add_on(grid)
            labels = np.zeros(9, np.int64)
            weights = w[1] if weighted else np.ones(9)
            assert meant(other.stats(labels, 1)) == exact_sums(
                x[1].astype(dtype), weights, labels, 1
            )
    assert answers == {False, True}


def test_extents_of_some_features_and_back():
    extent = Rows.over(wild(50, 6), np.linspace(1, 2, 50)).extent
    at = np.array([1, 4, 5])
    some = extent.among(at)
    assert some.high.tolist() == extent.high[at].tolist()
    assert some.largest.tolist() == extent.largest[[1, 4, 5, 6]].tolist()
    back = some.spread(at, 6)
    assert back.high.tolist() == np.where(np.isin(np.arange(6), at), extent.high, 0).tolist()
    assert np.isinf(back.smallest[[0, 2, 3]]).all()
    assert (back | extent).smallest.tolist() == extent.smallest.tolist()
    plain = Rows.over(wild(50, 6)).extent
    with pytest.raises(ValueError, match="Give the other weights of 1"):
        plain | extent
    assert isinstance(plain.weighted() | extent, Extent)


def test_a_cost_goes_where_the_stats_go():
    grid = Grid(np.ones(3), 2.0**40, 1)
    stats = ClusterStats(np.ones((2, 3)), grid, Cost((3.0, 2.0**-80)))
    moved = stats.on(Grid(np.full(3, 0.25), 2.0**40, 2), 5)
    assert moved.cost == Cost((96.0, 2.0**-75))
    assert stats.carried().cost == stats.among(np.array([1])).cost == stats.cost
    assert ClusterStats(np.ones((2, 3)), grid).on(moved.grid).cost is None
