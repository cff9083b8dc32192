"""The compiled search: its inner loops against plain ones, and every bound it keeps against the truth."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import referee
import scipy.sparse

from anykmeans import KMeans, MiniBatchKMeans, _settings, assign, kernels, kmeans, kmeans_plusplus
from anykmeans._distance import squared_distances
from anykmeans._evaluate import distances
from anykmeans._grid import Grid
from anykmeans._groups import groups
from anykmeans._stats import ClusterStats
from anykmeans.sources.rows import Rows

if reason := kernels.why_not("numba", np.ones((1, 1))):
    pytest.skip(reason, allow_module_level=True)

from anykmeans._matrix import Matrix
from anykmeans.kernels import numba as compiled
from anykmeans.kernels.numba import (
    codes,
    few,
    grouped,
    looks,
    near,
    seeding,
    side,
    sieves,
    simd,
    slack,
    small,
    steps,
    subspace,
    sums,
)
from anykmeans.kernels.numba.distance import squared_distance
from anykmeans.kernels.numba.panels import Panels
from anykmeans.kernels.numba.simd import LANES, ROWS, SIDE, WIDTH
from anykmeans.kernels.numba.steps import jit
from anykmeans.kernels.numba.whole import add
from anykmeans.kernels.sparse import numba as of_sparse


@jit
def run_tile(y, at, panels, norms, p, scores, low, second, lane):
    simd.tile(y, at, y.shape[1], panels, norms, p, scores, low, second, lane)


@jit
def run_lanes(columns, minus_2c, norms, visit, start, stop, best, second, who):
    simd.lanes(columns, columns.shape[0], minus_2c, norms, visit, start, stop, best, second, who)


@jit
def run_distance(x, row, unit, c, j):
    return squared_distance(x, row, unit, c, j, np.empty(c.shape[1]))


def quarters(rng, shape, dtype):
    """Numbers whose products and sums are exact, with many ties among them."""
    return (rng.integers(-3, 4, size=shape) / 4).astype(dtype)


@jit
def run_centre(x, row, scale, offset, y, t, c, j):
    return grouped._centre(x, row, row, scale, offset, y, t, c, j)


@pytest.mark.parametrize("d", [1, 15, 16, 17, 200, 1024, 1025, 2100])
@pytest.mark.parametrize(
    ("source", "frame", "dtype"),
    [
        ("float32", "float32", "float32"),
        ("float32", "float64", "float64"),
        ("float64", "float64", "float32"),
        ("float64", "float64", "float64"),
    ],
)
def test_centred_rows(d, source, frame, dtype):
    rng = np.random.default_rng(d)
    x, c = quarters(rng, (5, d), source), quarters(rng, (3, d), dtype)
    offset = quarters(rng, (d,), frame)
    y = np.full((4, d), np.nan, dtype)
    found = run_centre(x, 4, np.dtype(frame).type(0.5), offset, y, 2, c, 1)
    wanted = x[4].astype(float) * 0.5 - offset
    np.testing.assert_array_equal(y[2], wanted)
    assert np.isnan(y[[0, 1, 3]]).all()
    assert found == ((wanted**2).sum(), (wanted * c[1]).sum())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 2, 63, 64, 65, 200])
def test_tile(d, dtype):
    rng = np.random.default_rng(d)
    y, panels = quarters(rng, (20, d), dtype), quarters(rng, (3, d, LANES), dtype)
    norms = quarters(rng, (3, LANES), dtype)
    norms[1, 5:] = np.inf  # empty slots
    norms[2, 1:] = np.inf
    for p in range(3):
        at = rng.integers(20, size=ROWS)
        scores = np.empty((ROWS, LANES), dtype)
        low, second, lane = np.empty(ROWS, dtype), np.empty(ROWS, dtype), np.empty(ROWS, np.int64)
        run_tile(y, at, panels, norms, p, scores, low, second, lane)
        for r in range(ROWS):
            wanted = [
                norms[p, i]
                + sum(float(a) * float(b) for a, b in zip(y[at[r]], panels[p, :, i], strict=True))
                for i in range(LANES)
            ]
            np.testing.assert_array_equal(scores[r], np.asarray(wanted, dtype))
            assert (low[r], second[r]) == tuple(sorted(wanted)[:2])
            assert wanted[lane[r]] == min(wanted)


@jit
def run_least(whole, at, terms, panels, starts, of_panels, p, found, low):
    codes.least(whole, at, terms, panels, starts, of_panels, p, found, low)


@jit
def run_nearer(whole, at, terms, panels, starts, of_panels, p, edges, bits):
    codes.nearer(whole, at, terms, panels, starts, of_panels, p, edges, bits)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("d", [1, 8, 9, 100, 1000])
def test_bounds_by_codes_add_exactly(d, extreme):
    rng = np.random.default_rng(d)
    most = codes.MOST
    whole = (
        rng.choice([-most, most], (20, d)) if extreme else rng.integers(-most, most + 1, (20, d))
    )
    of_panels = (
        np.full((2 * LANES, d), most) if extreme else rng.integers(-most, most + 1, (2 * LANES, d))
    )
    (rows, _), (columns, _) = codes.room(20, d), codes.room(2 * LANES, d)
    rows[:], columns[:] = codes.ZERO, 0
    rows[:, :d] += whole.astype(np.int8).view(np.uint8)
    columns[:, :d] = of_panels.astype(np.int8).view(np.uint8)
    panels = columns.view(np.int8).reshape(2, LANES, -1, codes.QUAD).transpose(0, 2, 1, 3).copy()
    starts = (-codes.ZERO * of_panels.sum(axis=1)).astype(np.int32).reshape(2, LANES)
    row_terms = quarters(rng, (20, 4), np.float32)
    terms = quarters(rng, (2, 4, LANES), np.float32)
    at = rng.integers(20, size=ROWS)
    found, low = np.empty((ROWS, LANES), np.float32), np.empty(ROWS, np.float32)
    for p in range(2):
        run_least(rows, at, row_terms, panels, starts, terms, p, found, low)
        exact = whole[at] @ of_panels[p * LANES : (p + 1) * LANES].T
        wanted = terms[p, 0] + row_terms[at, :1] * exact * terms[p, 1]
        wanted = wanted + row_terms[at, 1:2] * terms[p, 2] + row_terms[at, 2:3] * terms[p, 3]
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6 * d * most**2)
        np.testing.assert_array_equal(low, found.min(axis=1))
        bounds, bits = found + row_terms[at, 3:] ** 2, np.empty(ROWS, np.int64)
        edges = np.tile(bounds[ROWS // 2], (2, 1))  # of one row no bound is below
        run_nearer(rows, at, row_terms, panels, starts, terms, p, edges, bits)
        np.testing.assert_array_equal(bits, (bounds < edges[p]) @ 2 ** np.arange(LANES))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("kind", ["even", "one feature is large", "small integers", "zeros"])
def test_codes_bound_the_distance(kind, scale):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 70))
    if kind == "one feature is large":
        x[:, 3] *= 1000
    elif kind == "small integers":
        x = np.round(x)
    elif kind == "zeros":
        x[:, 1:] = 0
        x[::3] = 0
    x = (x * scale).astype(np.float32)
    rows = Rows.over(x, kernel="numba")
    frame = rows.start(x[:5]).frame
    wide = frame.wide(slice(0, 300))
    look = looks.FirstLook(looks.Plan(wide.mean(axis=0)), frame, rows.work)
    panels = Panels.in_order(300)
    (whole, terms), (_, of_panels), lengths = (look.of(wide, panels)[0][i] for i in (4, 5, 7))
    numbers = whole[:, :70].astype(np.float64) - codes.ZERO
    beta, eta = look.of(wide, panels)[0][8:]
    _, step, length, left = of_panels.transpose(1, 0, 2).reshape(4, -1)[:, :300]
    low = lengths[:, None] + lengths + terms[:, :1] * (numbers @ numbers.T) * step
    low = low + terms[:, 1:2] * length + terms[:, 2:3] * left
    true = ((wide[:, None] - wide) ** 2).sum(axis=2)
    assert (low * (1 - beta) - lengths[:, None] * beta - eta <= true).all()
    # And not by much: the bound is about what the last bit of a code is worth.
    if kind == "even":
        assert (low >= true - 0.1 * (lengths[:, None] + lengths)).all()


@pytest.mark.skipif(not codes.AVAILABLE, reason="no look at codes on this processor")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "kind", ["even", "one feature is large", "far away", "few values", "tiny", "bytes", "half"]
)
@pytest.mark.parametrize("d", [2, 31, 70])
def test_what_codes_leave_is_what_seeding_needs(d, kind, weighted, monkeypatch):
    """Picks by codes are those of NumPy, for rows that codes tell badly apart, too, and for more candidates than ROWS."""
    monkeypatch.setattr(sieves, "pay", lambda y, n, k: True)
    rng = np.random.default_rng(d)
    x = rng.normal(size=(700, d)).astype(np.float32)
    x[:, 0] *= 1e4 if kind == "one feature is large" else 1
    x += 1e4 if kind == "far away" else 0
    x *= 1e-30 if kind == "tiny" else 1
    if kind == "few values":
        x = np.round(x)[rng.integers(50, size=700)]
    elif kind == "bytes":
        x = rng.integers(256, size=x.shape).astype(np.uint8)
    elif kind == "half":
        x = x.astype(np.float16)
    how = {"sample_weight": rng.exponential(size=700) if weighted else None, "random_state": 0}
    for trials, k, max_bytes in ((None, 40, None), (11, 300, None), (3, 60, 200_000), (5, 2, None)):
        how |= {"n_local_trials": trials, "max_bytes": max_bytes}
        with _settings.settings(at_once=1, piece=256):
            got = kmeans_plusplus(x, k, kernel="numba", threads=2, **how)
        wanted = kmeans_plusplus(x, k, kernel="cpu", **how)
        np.testing.assert_array_equal(got[1], wanted[1])


@pytest.mark.parametrize("k", [1, 2, 40])
@pytest.mark.parametrize("d", [1, 20, 70])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_seeding_notices_what_a_glance_does_not(dtype, d, k):
    """Only the first row is looked at before picks measure all; the answer is that of a look at all of them."""
    rng = np.random.default_rng(d)
    x = rng.normal(size=(3000, d)).astype(dtype)
    large = 1e37 if dtype == "float32" else 1e200
    for value, rows in (
        (np.nan, 0), (np.nan, 2999), (np.inf, 1234), (-np.inf, 1), (large, 17), (1e30, slice(0, None, 7)), (1e-30, 0)
    ):  # fmt: skip
        y, how = x.copy(), {"random_state": 1}
        y[rows, d - 1] = value
        with _settings.settings(at_once=1):
            if np.isfinite(value):
                got = kmeans_plusplus(y, k, kernel="numba", **how)
                wanted = kmeans_plusplus(y, k, kernel="cpu", **how)
                np.testing.assert_array_equal(got[1], wanted[1])
            else:
                with pytest.raises(ValueError, match=f"`X` must be finite.* feature {d - 1}"):
                    kmeans_plusplus(y, k, kernel="numba", **how)


def test_what_codes_leave_is_estimated(monkeypatch):
    """About the share of pairs that are measured; where nothing is left to pick, none."""
    rng, pairs = np.random.default_rng(0), []
    measured = seeding.measured

    def counted(y, c, closest, w, saved, won):
        bits = np.unpackbits(won.view(np.uint8)).sum()
        pairs.append(bits / (y.shape[0] * c.shape[0]))
        return measured(y, c, closest, w, saved, won)

    monkeypatch.setattr(seeding, "measured", counted)
    monkeypatch.setattr(sieves, "pay", lambda y, n, k: codes.AVAILABLE)
    x = rng.normal(size=(4000, 40)) + 3 * rng.normal(size=(20, 40))[rng.integers(20, size=4000)]
    some = x[:512] - x.mean(axis=0)
    for k in (40, 150):
        pairs.clear()
        kmeans_plusplus(x, k, random_state=0, kernel="numba", threads=1)
        guess = sieves.left(some[::2], some[1::4], k)
        assert 0.5 < guess / np.mean(pairs) < 2 if codes.AVAILABLE else not pairs
    assert sieves.left(np.zeros((9, 3)), np.zeros((5, 3)), 40) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 3, 12])
def test_lanes(d, dtype):
    rng = np.random.default_rng(d)
    columns, minus_2c = quarters(rng, (d, WIDTH), dtype), quarters(rng, (30, d), dtype)
    norms, visit = quarters(rng, 30, dtype), rng.permutation(30)
    best, second = np.full(WIDTH, np.inf, dtype), np.full(WIDTH, np.inf, dtype)
    who = np.zeros(WIDTH, np.int32)
    for start, stop in [(0, 1), (1, 9), (9, 25)]:  # what was found before stays in force
        run_lanes(columns, minus_2c, norms, visit, start, stop, best, second, who)
        scores = norms[visit[:stop], None] + minus_2c[visit[:stop]] @ columns
        np.testing.assert_array_equal(
            [best, second], np.sort(np.vstack([scores, np.full((1, WIDTH), np.inf)]), axis=0)[:2]
        )
        np.testing.assert_array_equal(who, visit[scores.argmin(axis=0)])


@jit
def run_across(x, row, scale, offset, columns, block, squares):
    side.across(x, row, scale, offset, columns, block, squares)


@jit
def run_nearest(columns, block, minus_2c, norms, squares, beta, eta, loose, before, now, slack):
    return side.nearest(
        columns, block, minus_2c, norms, squares, beta, eta, loose, before, now, slack
    )


@jit
def run_add(x, row, weight, scale, step, folds, whole, to, since):
    add(x, row, weight, scale, step, folds, whole, to, since)


@pytest.mark.parametrize("d", [1, 3, 4, 5, 13, 64])
@pytest.mark.parametrize(
    ("source", "frame", "dtype"),
    [
        ("float32", "float32", "float32"),
        ("float32", "float64", "float32"),
        ("float64", "float64", "float32"),
        ("float32", "float64", "float64"),
    ],
)
def test_rows_across(d, source, frame, dtype):
    rng = np.random.default_rng(d)
    x, offset = quarters(rng, (SIDE + 2, d), source), quarters(rng, (d,), frame)
    columns, squares = np.full((3, d, SIDE), np.nan, dtype), np.full((3, SIDE), np.nan, dtype)
    run_across(x, 1, np.dtype(frame).type(0.5), offset, columns, 1, squares)
    wanted = x[1 : 1 + SIDE].astype(float) * 0.5 - offset
    np.testing.assert_array_equal(columns[1], wanted.T)
    np.testing.assert_array_equal(squares[1], (wanted**2).sum(axis=1))
    assert np.isnan(columns[[0, 2]]).all()
    assert np.isnan(squares[[0, 2]]).all()
    run_across(x, SIDE - 1, np.dtype(frame).type(0.5), offset, columns, 2, squares)
    last = np.minimum(np.arange(SIDE - 1, 2 * SIDE - 1), SIDE + 1)  # which stands in for all beyond
    np.testing.assert_array_equal(columns[2], (x[last].astype(float) * 0.5 - offset).T)


def arranged(c):
    """What `few.arranged` makes of `c` (d, k), by whole arrays."""
    parts = np.array_split(c, -(-c.shape[1] // side.TOGETHER), axis=1)
    return np.concatenate([part.ravel() for part in parts])


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7, 8, 9, 13, 31, 200])
@pytest.mark.parametrize("d", [1, 5, 32, 33, 70])
def test_nearest_of_all(d, k):
    rng = np.random.default_rng([d, k])
    columns = quarters(rng, (3 * SIDE // LANES, d, LANES), "float32")
    minus_2c, norms = quarters(rng, (d, k), "float32"), quarters(rng, k, "float32")
    squares = rng.random((3 * SIDE // LANES, LANES)).astype(np.float32)
    if k > 2:
        norms[1] = np.inf
        minus_2c[:, 2] = np.nan  # out of range, not the nearest
    before = np.concatenate([[-1, -1], rng.integers(k, size=SIDE), [-1]]).astype(np.int32)
    block = SIDE // LANES
    y, norm = columns[block : 2 * block], squares[block : 2 * block].ravel()
    scores = norms[:, None] + minus_2c.T @ y.transpose(1, 0, 2).reshape(d, SIDE)
    scores = np.where(np.isnan(scores), np.inf, scores)
    best, second = np.sort(np.vstack([scores, np.full((1, SIDE), 2.0**100)]), axis=0)[:2]
    for beta, eta in [(0.0, 0.0), (0.125, 0.0), (0.0, 0.25)]:
        margin = beta * (2 * norm + abs(norm + best) + abs(norm + second)) + eta
        told, labels = np.full(SIDE + 3, np.nan, np.float32), before.copy()
        how = squares, *map(np.float32, (beta, eta, 0.01)), labels, 2, told
        words = run_nearest(columns, block, arranged(minus_2c), norms, *how)
        now, told, around = labels[2:-1], told[2:-1], told[[0, 1, -1]]
        np.testing.assert_array_equal(now, scores.argmin(axis=0))
        assert np.isnan(around).all()
        assert (labels[[0, 1, -1]] == -1).all()
        changed, unproven = ([word >> r & 1 for r in range(SIDE)] for word in words)
        np.testing.assert_array_equal(changed, now != before[2:-1])
        np.testing.assert_array_equal(unproven, ~(second - best > margin.astype(np.float32)))
        far, near = (norm + score.astype(np.float64) for score in (second, best))
        far, near = (
            np.sqrt(np.maximum(a + sign * (0.01 * (abs(a) + norm) + eta), 0))
            for sign, a in ((-1, far), (1, near))
        )
        np.testing.assert_allclose(told, far - near, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [*range(1, 36), 63, 64, 65, 130, 784, 1025])
def test_one_distance_is_the_promised_one(d, dtype):
    rng = np.random.default_rng(d)
    x, c = rng.normal(size=(3, d)).astype(dtype), rng.normal(size=(4, d))
    after = np.full(3 * d + 8, np.nan, dtype)  # what lies behind the last row is not read into any
    after[: 3 * d] = x.ravel()
    found = run_distance(after[: 3 * d].reshape(3, d), 2, 0.25, c, 3)
    assert found == squared_distances(np, x[2:].astype(float) * 0.25, c[3:])[0]


@pytest.mark.parametrize("weight", [1.0, 0.0, 3.0, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("d", [1, 3, 4, 6, 13, 16, 17, 39])
def test_rows_are_added_as_the_grid_splits_them(d, dtype, weight):
    x = np.random.default_rng(d).normal(size=(5, d)).astype(dtype)
    largest = np.append(np.abs(x).max(axis=0), 1.0).astype(float) * max(weight, 1)
    grid = Grid.plan(largest, 10, np.full(d + 1, -120.0), largest)
    whole = np.ones((3, grid.folds * (d + 1)))
    wanted = whole.copy()
    for since in (-1, 0):
        run_add(x, 3, weight, grid.scale, grid.step, grid.folds, whole, 2, since)
        value = np.append(x[3].astype(float), 1.0)[None]
        parts = grid.split(np, value, grid.scale, None if weight == 1 else np.asarray([weight]))[0]
        wanted[2] += parts
        if since >= 0:
            wanted[since] -= parts
        np.testing.assert_array_equal(whole, wanted)


HOSTILE = {
    "blob": lambda x: x,
    "lattice": lambda x: np.round(x * 2),
    "far": lambda x: x + 1e6,
    "duplicates": lambda x: x[np.arange(len(x)) // 3],
    "constant": lambda x: np.ones_like(x),
    "an outlier": lambda x: np.concatenate([x[:-1], x[-1:] + 1e7]),
    "tiny": lambda x: x * 2.0**-90,
    "huge": lambda x: x * 2.0**90,
    "tight clusters": lambda x: np.round(x) * 1e5 + x * 1e-3,
}


@pytest.mark.parametrize("bounds", ["auto", "off"])  # with and without rows kept
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int16"])
@pytest.mark.parametrize("shape", HOSTILE)
def test_few_are_the_referees(setting, shape, dtype, bounds):
    setting(at_once=0)
    for n, d, k in [(70, 1, 1), (200, 2, 3), (129, 5, 20), (64, 13, 4), (31, 40, 31)]:
        x = HOSTILE[shape](np.random.default_rng([n, d]).normal(size=(n, d)))
        with np.errstate(over="ignore", invalid="ignore"):
            x = np.clip(x, -3e4, 3e4).astype(dtype) if dtype[-2:] == "16" else x.astype(dtype)
        rows = Rows.over(x, kernel="numba")
        c = rows.matrix.rows(np.arange(k), rows.matrix.state_dtype)
        search = rows.start(c, bounds=bounds).search
        assert isinstance(search, few.FewSearch)
        for turn in range(3):
            search.relabel(c)
            wanted, _ = referee.nearest(x.astype(float), c.astype(float))
            np.testing.assert_array_equal(search.labels, wanted)
            c[turn % k] = c[turn % k] / 2 + x[-1 - turn] / 2


@pytest.fixture
def skipping(monkeypatch):
    """Look at rows in doubt alone, however many there are; return how many are gathered, time by time."""
    for constant in ("_GATHERED", "_FEATURE", "_WORN", "_CALLED"):
        monkeypatch.setattr(slack, constant, 0)
    found, gather = [], few._gather

    def counted(rows, *how):
        found.append(rows.size)
        gather(rows, *how)

    monkeypatch.setattr(few, "_gather", counted)
    return found


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_that_have_slack_are_not_looked_at(setting, skipping, dtype, weighted, threads):
    setting(at_once=0, spread=0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 6)) + 10 * rng.integers(6, size=(20, 6))[rng.integers(20, size=1500)]
    x[::5] = 30 * rng.random(size=(300, 6))  # some have no structure
    x, c = x.astype(dtype), x[1:81:4].astype(dtype)
    w = rng.exponential(size=1500) if weighted else None
    found = []
    for bounds in ("auto", "off"):
        skipping.clear()
        rows = Rows.over(x, w, kernel="numba", threads=threads)
        with rows.work:
            run = rows.start(c, bounds=bounds)
            one, made, _ = run.steps(c, 30, 0.0, "keep")
            end = run.label(one)
        found.append((one.tobytes(), made, end.labels.tobytes(), end.inertia))
        assert (0 < sum(skipping) < 1500 * made // 2) is (bounds == "auto")
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", HOSTILE)
def test_slack_is_less_than_there_is(setting, skipping, shape, dtype):
    setting(at_once=0)
    rng = np.random.default_rng(0)
    for n, d, k in [(300, 1, 1), (300, 2, 3), (200, 5, 20), (150, 40, 31)]:
        x = HOSTILE[shape](rng.normal(size=(n, d)) + 6 * rng.integers(3, size=(n, d))).astype(dtype)
        rows = Rows.over(x, kernel="numba")
        c = rows.matrix.rows(np.arange(k), rows.matrix.state_dtype)
        search = rows.start(c).search
        for turn in range(12):
            search.relabel(c)
            wanted, _ = referee.nearest(x.astype(float), c.astype(float))
            np.testing.assert_array_equal(search.labels, wanted)
            step = 2.0 ** -(turn % 7)
            c[turn % k] += (x[-1 - turn] - c[turn % k]) * c.dtype.type(step)
    assert skipping or shape == "constant"


def test_picks_are_spread_where_they_take_longer_than_threads():
    for n, d, trials, least in [
        (1000, 300, 7, 1),
        (2000, 128, 5, 1),
        (20_000, 38, 5, 1),
        (20_000, 300, 4, 2),
        (200_000, 2, 6, 2),
        (200_000, 64, 5, 5),
    ]:
        rows = Rows.over(np.random.default_rng(0).normal(size=(n, d)), kernel="numba", threads=4)
        assert rows.work.threads == 4
        seeds = rows.kernel.seeds(rows, rows.frame().wide(np.asarray([0])), 3, trials)
        assert len(seeds.tiles) >= least
        assert least > 1 or len(seeds.tiles) == 1


@pytest.mark.parametrize("k", [1, 2, 7, 31])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("empty", ["keep", "relocate"])
def test_passes_of_few_are_steps(setting, k, weighted, empty):
    """All passes in one call, one pass a call, in parts, and rows that are read in tiles: one result."""
    setting(at_once=0, spread=0)
    rng = np.random.default_rng(k)
    x = rng.normal(size=(1000, 6)).astype(np.float16)
    c = x[:k].astype(np.float32)
    c[-1] += 100 * (k > 2)  # the nearest of no row
    w = rng.exponential(size=1000) if weighted else None
    found = []
    for threads, max_bytes, dtype in [
        (1, None, "float32"), (3, None, "float32"), (1, None, "float16"), (3, 50_000, "float16"),
    ]:  # fmt: skip
        how = {"kernel": "numba", "threads": threads, "max_bytes": max_bytes}
        rows = Rows.over(x.astype(dtype), w, **how)
        with rows.work:
            run = rows.start(c)
            one, done = c, 0
            while done < 9:
                one, made, _ = run.steps(one, 9 - done, 0.0, empty)
                done += made
            end = run.label(one)
        found.append((one.tobytes(), end.labels.tobytes(), end.inertia))
        run, one = rows.start(c), c
        for _ in range(9):
            one, _ = run.step(one, empty)
        found.append((one.tobytes(), run.labels(one).tobytes(), run.label(one).inertia))
    assert found == found[:1] * len(found)


@pytest.mark.parametrize("k", [1, 15, 16, 17, 100])
def test_groups_share_all_out(k):
    c = np.random.default_rng(k).normal(size=(k, 5))
    c[: k // 2] = c[0]  # no direction to cut across
    found = groups(c, 16)
    assert sorted(np.concatenate(found).tolist()) == list(range(k))
    assert all(1 <= part.size <= 16 for part in found)
    assert len(found) == -(-k // 16)


@pytest.fixture
def many(setting):
    """However few the rows, they are searched as many are."""
    setting(at_once=0, few=0, first_look=0)


CASES = {  # n, d, k, bounds, max_bytes
    "near": (700, 3, 40, "auto", None),
    "near, one panel": (300, 2, 7, "auto", None),
    "near, many features": (300, 30, 40, "hamerly", None),
    "near, few rows a centroid": (900, 8, 150, "auto", None),
    "a bound for every panel": (700, 20, 70, "auto", None),
    "few features in groups": (700, 3, 70, "groups", None),
    "a bound for several panels": (3000, 20, 100, "auto", 60_000),
    "a first look at codes": (900, 80, 70, "auto", None),
    "a first look at codes, bounds for several panels": (3000, 80, 100, "auto", 120_000),
    "a first look at coordinates": (900, 80, 70, "auto", None),
    "rows decided by coordinates": (900, 80, 70, "auto", None),
}


def planned(case):
    """How to look first, as `looks.plan` would say."""

    def plan(frame, work, wide, labels, coded):
        origin = wide.mean(axis=0)
        if "codes" in case:
            return looks.Plan(origin)
        if labels is None or "coordinates" not in case:
            return None
        q = looks.directions(wide - origin, wide - origin, 31)
        return looks.Plan(origin, q, settles="decided" in case)

    return plan


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("case", CASES)
def test_bounds_hold_and_labels_are_nearest(many, monkeypatch, case, dtype, offset):
    if "codes" in case and not codes.AVAILABLE:
        pytest.skip("no instructions for products of bytes here")
    monkeypatch.setattr(looks, "plan", planned(case))
    n, d, k, bounds, max_bytes = CASES[case]
    rng = np.random.default_rng([n, d, k])
    middle = rng.normal(size=(9, d)) * np.geomspace(3, 0.03, d)  # most of it in a few directions
    x = middle[rng.integers(9, size=n)] + 0.3 * rng.normal(size=(n, d)) * np.geomspace(1, 0.03, d)
    x = (x + offset).astype(dtype)
    x[n // 2 :][:k] = x[:k]  # duplicates, and rows on centroids
    rows = Rows.over(x, kernel="numba", max_bytes=max_bytes)
    c = x[:k].copy()
    search = rows.start(c, bounds=bounds).search
    assert isinstance(search, near.NearSearch if case.startswith("near") else grouped.GroupedSearch)
    for turn in range(6):
        search.relabel(c)
        looked = getattr(search, "first_look", None) is not None
        assert looked == ("codes" in case or ("coordinates" in case and turn > 0))
        check(search, x, c)
        labels = search.labels
        c = np.stack(
            [x[labels == j].mean(axis=0) if (labels == j).any() else c[j] for j in range(k)]
        )
        c[turn] = x[rng.integers(n)]  # one of them jumps
        c = c.astype(dtype)
    shared = isinstance(search, grouped.GroupedSearch) and search.groups.share > 1
    assert shared == ("several panels" in case)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [case for case in CASES if "look" in case or "decided" in case])
def test_rows_that_float32_cannot_tell_apart_are_scored_in_float64(many, monkeypatch, case, dtype):
    if "codes" in case and not codes.AVAILABLE:
        pytest.skip("no instructions for products of bytes here")
    monkeypatch.setattr(looks, "plan", planned(case))
    rng = np.random.default_rng(0)
    middle = rng.normal(size=(30, 80))  # each of them many times, or nearly
    x = middle[rng.integers(30, size=600)] * (1 + 1e-6 * rng.integers(2, size=(600, 1)))
    x = x.astype(dtype)
    c = x[:90].copy()
    search = Rows.over(x, kernel="numba").start(c, bounds="groups").search
    for _ in range(4):
        search.relabel(c)
        check(search, x, c)
        c = (c + 1e-6 * rng.normal(size=c.shape)).astype(dtype)
    assert not search.narrow
    assert search.first_look is None


def check(search, x, c):
    """Every label is of a nearest centroid, and no bound is beyond the true distance."""
    wide, centres = x.astype(np.float64), c.astype(np.float64)
    distance = np.sqrt(((wide[:, None, :] - centres[None]) ** 2).sum(axis=2))
    every = np.arange(len(x))
    own = distance[every, search.labels]
    np.testing.assert_allclose(own, distance.min(axis=1), rtol=1e-12, atol=1e-12)
    others = distance.copy()
    others[every, search.labels] = np.inf
    assert (search.state.upper * (1 + 1e-12) >= own).all()
    assert (search.state.lower <= others.min(axis=1) * (1 + 1e-12) + 1e-30).all()
    if isinstance(search, grouped.GroupedSearch):
        panels, (lowers, moved, _, _, share) = search.panels.ids.reshape(-1, LANES), search.groups
        for g in range(moved.size):
            members = panels[g * share : (g + 1) * share].ravel()
            nearest = others[:, members[members < len(c)]].min(axis=1)
            assert (lowers[:, g] - moved[g] <= nearest * (1 + 1e-12) + 1e-30).all()


@pytest.mark.parametrize("bounds", ["hamerly", "groups"])
def test_roundings_that_all_point_one_way_are_within_the_bound(many, bounds):
    """Equal features, whose products are rounded alike as they are added up: by up to d / 4 of the last bits."""
    row, far, near_by = 0.8184808492660522, 0.8253653049468994, 0.8240669369697571
    x = np.outer([row, -row, far, -far, near_by, -near_by], np.ones(20_000)).astype(np.float32)
    run = Rows.over(x, kernel="numba").start(x[2:], bounds=bounds)
    np.testing.assert_array_equal(run.labels(x[2:]), [2, 3, 0, 1, 2, 3])


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_a_first_look_is_between_the_bounds(many, scale):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(400, 100)) * np.geomspace(1, 0.02, 100) * scale).astype(np.float32)
    rows = Rows.over(x, kernel="numba")
    frame = rows.start(x[:5]).frame
    y = frame.wide(slice(0, 400)) - frame.wide(slice(0, 20)).mean(axis=0)
    q = looks.directions(y, y[:20], 31)
    look = looks.FirstLook(looks.Plan(frame.wide(slice(0, 20)).mean(axis=0), q), frame, rows.work)
    few = look.of(frame.wide(slice(0, 20)), Panels.in_order(20))[0].z
    assert few.shape == (400, q.shape[1] + 1)
    assert (
        few[:20, -1] <= 1e-6 * np.sqrt((y[:20] ** 2).sum(axis=1))
    ).all()  # nothing is left of these
    for j in range(0, 400, 50):
        true = ((y - y[j]) ** 2).sum(axis=1)
        low = ((few.astype(np.float64) - few[j]) ** 2).sum(axis=1)
        slack = 4 * subspace.error(y.shape[1]) * ((y**2).sum(axis=1) + (y[j] ** 2).sum())
        assert (low <= true + slack).all()
        assert (true <= low + 4.0 * few[:, -1] * few[j, -1] + slack).all()


def test_all_centroids_are_searched_where_few_rows_share_one(many):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 8)).astype(np.float32)
    x[:1000, :2] += 40 * rng.integers(5, size=(1000, 2))  # half of them in 25 places
    for k, x_k, wanted in [(50, x[:1000], False), (500, x[1000:], True)]:
        c = x_k[:k]
        run = Rows.over(x_k, kernel="numba").start(c)
        for _ in range(4):
            c, _ = run.step(c, "keep")
        assert run.search.every is wanted


def test_all_are_scored_where_few_rows_share_a_centroid(setting):
    setting(at_once=0)
    x = np.random.default_rng(0).normal(size=(320, 40)).astype(np.float32)
    for d, k, wanted in [(1, 320, True), (1, 319, False), (8, 40, True), (12, 40, True), (12, 39, False),
                         (31, 40, True), (32, 320, False)]:  # fmt: skip
        run = Rows.over(np.ascontiguousarray(x[:, :d]), kernel="numba").start(x[:k, :d])
        assert isinstance(run.search, few.FewSearch) is wanted
        labels = run.labels(run.c)
        np.testing.assert_array_equal(
            labels, referee.nearest(x[:, :d].astype(float), x[:k, :d].astype(float))[0]
        )


def test_what_pays_is_found_in_a_sample(many, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 200)).astype(np.float32)
    flat = (x * np.geomspace(1, 0.01, 200)).astype(np.float32)
    away = (flat + 100 * np.eye(200, dtype=np.float32)[0] * rng.integers(2, size=(2000, 1))).astype(
        np.float32
    )

    def plan(x, coded):
        monkeypatch.setattr(codes, "AVAILABLE", coded)
        rows = Rows.over(x, kernel="numba")
        run = rows.start(x[:200])
        wide = run.frame.widen(x[:200])
        labels = ((x[:, None] - x[:200]) ** 2).sum(axis=2).argmin(axis=1)
        return looks.plan(run.frame, rows.work, wide, labels, coded=False)

    assert plan(x, coded=False) is None  # centroids in all directions
    assert plan(flat, coded=False).q is not None
    found = plan(flat, coded=True)
    assert found.q is None
    assert plan(away, coded=True).q is not None  # one direction takes all the bits


@pytest.mark.parametrize("folds", [1, 2, 3])
def test_sums_are_those_of_the_grid(folds):
    rng = np.random.default_rng(folds)
    x = rng.normal(size=(200, 7)).astype(np.float32 if folds < 3 else np.float64)
    if folds == 1:
        x = np.round(x * 8)
    w = rng.integers(1, 5, size=200).astype(np.float64) if folds == 2 else None
    rows = Rows.over(x, w, kernel="numba")
    plain = Rows.over(x, w, kernel="cpu")
    assert rows.grid.folds == plain.grid.folds
    np.testing.assert_array_equal(rows.grid.scale, plain.grid.scale)
    labels, old = (rng.integers(4, size=200).astype(np.int32) for _ in range(2))
    select = rng.permutation(200)
    for change in [(labels, 4), (labels, 4, select, old)]:
        for a, b in zip(
            rows.kernel.total(rows, rows.stats(*change)),
            plain.kernel.total(plain, plain.stats(*change)),
            strict=True,
        ):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8"])
@pytest.mark.parametrize(
    "n_d", [(70_000, 3), (1003, 100)], ids=str
)  # as many as Numba is chosen for
def test_distances_to_all_centroids(dtype, n_d):
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=n_d) * 40).astype(dtype)
    c = np.concatenate([x[:18], x[:1] + 3]).astype("float32" if dtype == "float32" else "float64")
    model = KMeans(len(c), init=c, max_iter=1).fit(x)
    model.cluster_centers_ = c  # with rows on them, whose distance is zero
    found = model.transform(x)
    wide = x.astype(np.float64)[:, None, :] - c.astype(np.float64)[None]
    wanted = np.sqrt((wide**2).sum(axis=2))
    assert found.dtype == c.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-6 if dtype == "float32" else 1e-9)
    assert ((found == 0) == (wanted == 0)).all()
    assert (found == 0).sum() >= 18


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_not_finite_is_found(bad, weighted):
    x = np.random.default_rng(0).normal(size=(50, 3))
    x[17, 2] = bad
    with pytest.raises(ValueError, match="NaN" if np.isnan(bad) else "infinit"):
        kmeans(x, 2, rng=0, sample_weight=np.ones(50) if weighted else None, kernel="numba")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n_d", [(1, 1), (7, 3), (500, 5), (65, 64), (20, 130)], ids=str)
def test_magnitudes_see_the_smallest_and_largest(dtype, n_d):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=n_d) * 2.0 ** rng.integers(-60, 60, size=n_d)).astype(dtype)
    x[rng.random(n_d) < 0.3] = -0.0
    x[:, 0] = 0
    rows = Rows(Matrix.of(x, "numpy"), None, compiled.KERNEL, look=False)
    seen = rows.extent
    np.testing.assert_array_equal(seen.high, np.abs(x).max(axis=0))
    np.testing.assert_array_equal(seen.largest, seen.high)
    np.testing.assert_array_equal(seen.smallest, np.where(x != 0, np.abs(x), np.inf).min(axis=0))
    for bad in [np.inf, -np.inf, np.nan]:
        x[-1, -1] = bad
        (seen,) = compiled.KERNEL.extents([rows])
        np.testing.assert_array_equal(seen.high[-1], abs(bad))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "n_d", [(60, 3), (40_000, 3), (3000, 30), (1100, 70)], ids=str
)  # each way to search, and to measure
def test_rows_unlike_the_first_are_measured_or_refused(n_d, dtype):
    """`predict` and `transform` take the first row for what all are like; their loops notice where they are not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=n_d).astype(dtype)
    c = x[:20].copy()
    numba, cpu = (KMeans(20, init=c, max_iter=1, kernel=name).fit(x) for name in ("numba", "cpu"))
    numba.cluster_centers_ = cpu.cluster_centers_ = c
    for factor in [1.0, 1e25, 1e-25, 1e35]:
        others = x.copy()
        others[5::7] *= np.asarray(factor, dtype)
        for part in (others, others[5:]):
            np.testing.assert_array_equal(numba.predict(part), cpu.predict(part))
            found = numba.transform(part)
            for j in range(20):
                wanted = np.linalg.norm(part.astype(np.float64) - c[j].astype(np.float64), axis=1)
                np.testing.assert_allclose(found[:, j], wanted, 1e-6, 1e-7)
    if dtype == "float64":  # rows as far as centroids, but for the first
        away = np.concatenate([x[:1], x * 1e150])
        numba.cluster_centers_ = cpu.cluster_centers_ = c * 1e150
        np.testing.assert_array_equal(numba.predict(away), cpu.predict(away))
    for bad in [np.nan, np.inf, -np.inf]:
        for row in [0, n_d[0] // 2, n_d[0] - 1]:
            worse = x.copy()
            worse[row, row % n_d[1]] = bad
            for method in (numba.predict, numba.transform):
                with pytest.raises(ValueError, match="NaN" if np.isnan(bad) else "infinity"):
                    method(worse)


@pytest.mark.parametrize("sparse", [False, True])
def test_no_array_needs_code_of_its_own(sparse):
    """Neither those that are read-only, nor centroids that lie by columns, as a frame's may; and nothing else comes of them."""

    def fit(x, w, c):
        kmeans(x, 4, sample_weight=w, rng=0, kernel="numba")
        found = kmeans(x, 4, init=c, kernel="numba")
        labels, apart = assign(x, c, kernel="numba")
        results.append((found.centroids.tolist(), found.inertia, labels.tolist(), apart.tolist()))
        km = KMeans(4, random_state=0, kernel="numba").fit(x)
        km.cluster_centers_ = c
        km.predict(x)
        km.transform(x)
        MiniBatchKMeans(4, random_state=0, kernel="numba").fit(x, sample_weight=w).partial_fit(x)

    def compiled_for():
        return [
            function.signatures
            for module in (
                sums,
                few,
                small,
                steps,
                grouped,
                codes,
                near,
                seeding,
                sieves,
                subspace,
                of_sparse,
            )
            for function in vars(module).values()
            if hasattr(function, "signatures")
        ]

    results = []
    x, w = np.random.default_rng(0).normal(size=(300, 20)), np.arange(300.0)
    c = x[:4].copy()
    x = scipy.sparse.csr_array(np.where(x > 1, x, 0)) if sparse else x
    fit(x, w, c)
    before = compiled_for()
    fit(x, w, np.asfortranarray(c))
    assert compiled_for() == before
    for array in (x.data, x.indices, x.indptr, w, c) if sparse else (x, w, c):
        array.flags.writeable = False
    fit(x, w, c)
    assert compiled_for() == before
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("n", [1, 2, 5, 67])
@pytest.mark.parametrize("k", [1, 7, 16, 17, 40])
@pytest.mark.parametrize("d", [1, 31, 32, 33, 100])
def test_distances_in_panels(d, k, n, dtype):
    rng = np.random.default_rng([d, k, n])
    x, c = rng.normal(size=(n, d)).astype(dtype), rng.normal(size=(k, d)).astype(dtype)
    c[k // 2] = x[-1]
    x[0] = c[0] * (1 + 1e-3)
    if n > 4:
        x[3], c[-1] = 1e-30, 2e-30  # whose squares float32 does not have
    wanted = np.sqrt(((x[:, None].astype(float) - c[None]) ** 2).sum(axis=2))
    rtol = (d / 32 + 38) * 2.0**-25 if dtype == "float32" else 1e-14
    rows = Rows.over(x, kernel="numba")
    long, _ = rows.kernel.pairwise(rows, rows.frame(), c.astype(float))
    for found in (distances(x, c, kernel="numba"), long):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, wanted, rtol=rtol, atol=0)
    for threads in (1, 3):
        part = distances(x[n // 2 :], c, kernel="numba", threads=threads)
        np.testing.assert_array_equal(part, found[n // 2 :])


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="that instruction is not of this family"
)
def test_the_code_of_other_processors_is_made():
    """Bytes are multiplied by AVX-512's own instruction where there is one, which this processor may not have."""
    script = """
import numba
from numba import types
from anykmeans.kernels.numba import codes
codes.WIDE, codes.ROWS = True, 8

@numba.njit
def run(whole, at, terms, panels, starts, of_panels, p, found, low):
    codes.least(whole, at, terms, panels, starts, of_panels, p, found, low)

def array(dtype, ndim):
    return types.Array(dtype, ndim, "C")

f = types.float32
signature = (
    array(types.uint8, 2), array(types.int64, 1), array(f, 2), array(types.int8, 4),
    array(types.int32, 2), array(f, 3), types.int64, array(f, 2), array(f, 1),
)
run.compile(signature)
print(run.inspect_asm(signature).count("vpdpbusd"))
"""
    features = "+avx512f,+avx512vnni,+avx512bw,+avx512vl,+avx2,+fma"
    named = {"NUMBA_CPU_NAME": "icelake-server", "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | named,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) >= 8


def test_a_processor_without_products_of_bytes_runs_the_same_code():
    """No look is at codes there, but what is compiled has them in it; and numbers of any processor are the same."""
    script = """
import numpy as np
import pytest
from anykmeans import _settings, kmeans
from anykmeans.kernels.numba import codes

assert not codes.AVAILABLE
code = pytest.main(["-q", "-p", "no:cacheprovider", "-k", "bounds_by_codes_add", "tests/test_compiled.py"])
assert code == 0
x = np.random.default_rng(0).normal(size=(400, 70)).astype("float32")
with _settings.settings(at_once=0, few=0, first_look=0):
    found = kmeans(x, 40, init=x[:40], kernel="numba")
wanted = kmeans(x, 40, init=x[:40], kernel="cpu")
np.testing.assert_array_equal(found.labels, wanted.labels)
np.testing.assert_array_equal(found.centroids, wanted.centroids)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("folds", [1, 2, 4])
def test_sums_of_clusters_that_are_moved_are_those_of_numpy(dtype, folds):
    """Exact products with weights up to what a grid has room for, in some coordinates, beside others that stay."""
    rng = np.random.default_rng(folds)
    k, d = 7, 5
    grid = Grid(np.ldexp(1.0, np.array([20, 3, 0, 9, 14, 30])), 2.0**30, folds)
    c = (rng.normal(size=(k, d)) * np.ldexp(1.0, rng.integers(-40, 5, (k, d)))).astype(dtype)
    c[2, 3], c[4] = 0.0, 0.0
    counts = np.array([0.0, 1.0, 3.0, 1e3 + 1 / 3, 2.0**21 - 0.1, 17.0, 2.0**20])
    where = rng.random((k, d + 1)) < 0.6
    where[5], where[6] = False, True
    before = np.rint(rng.normal(size=(k, folds * (d + 1))) * 2.0**20)
    found = [ClusterStats(before.copy(), grid) for _ in range(2)]
    for kernel, stats in zip((kernels.choose(c, "cpu"), compiled.KERNEL), found, strict=True):
        kernel.put(stats, where, c, counts)
    np.testing.assert_array_equal(*(stats.sums for stats in found))
    stays = np.tile(~where, folds)
    np.testing.assert_array_equal(found[0].sums[stays], before[stays])
    assert not np.array_equal(found[0].sums, before)
