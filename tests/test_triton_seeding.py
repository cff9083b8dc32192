"""Greedy k-means++ on the device: NumPy's picks, and each launch against plain loops."""

import os
from importlib.util import find_spec

import numpy as np
import pytest

from anykmeans import _init, _plusplus
from anykmeans._frame import Frame
from anykmeans.sources.rows import Rows

if not (find_spec("torch") and find_spec("triton")):
    pytest.skip("PyTorch or Triton is not installed", allow_module_level=True)

import torch

from anykmeans._distance import squared_distances
from anykmeans.kernels.triton import seeding

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not (INTERPRETED or torch.cuda.is_available()):
    pytest.skip("no CUDA device, and TRITON_INTERPRET is not 1", allow_module_level=True)

# The interpreter's own.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0")
DEVICE = "cpu" if INTERPRETED else "cuda"
if INTERPRETED:
    import interpreting  # noqa: F401


def tensor(a, dtype=None):
    return torch.tensor(np.ascontiguousarray(a), device=DEVICE, dtype=dtype)


def picks_by(x, k, seed, kernel, w=None, trials=None):
    rows = Rows.over(x, w, kernel=kernel)
    with rows.work:
        return _plusplus.plus_plus(rows, k, np.random.RandomState(seed), trials).tolist()


def same_picks(x, k, seed, w=None, trials=None, on=None):
    on = tensor(x) if on is None else on
    heavy = None if w is None else tensor(w)
    assert picks_by(on, k, seed, "triton", heavy, trials) == picks_by(x, k, seed, "cpu", w, trials)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("n", "d", "k", "trials"),
    [
        (1, 3, 1, None),
        (2, 1, 2, None),
        (300, 1, 6, None),
        (1100, 2, 4, 2),
        (70, 5, 6, 16),
        (60, 16, 6, None),
        (60, 17, 6, 9),
        (50, 33, 8, None),
        (40, 130, 4, None),
        (20, 300, 3, 2),
    ],
)
def test_picks_are_numpys(n, d, k, trials, weighted):
    rng = np.random.default_rng([n, d, k])
    x = rng.normal(size=(8, d))[rng.integers(8, size=n)] * 4 + rng.normal(size=(n, d))
    w = rng.exponential(size=n) if weighted else None
    for seed, dtype in enumerate(["float32", "float64"]):
        same_picks(x.astype(dtype), k, seed, w, trials)


@pytest.mark.parametrize("d", [3, 20])
@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64"]
)
def test_every_dtype(dtype, d):
    x = np.random.default_rng(d).integers(0, 100, size=(50, d))  # which all of them hold
    for k, seed in [(6, 0), (3, 1)]:
        same_picks(x.astype(float), k, seed, on=tensor(x, getattr(torch, dtype)))


SHAPES = ["lattice", "far", "twice", "one", "uneven", "outlier", "huge", "tiny", "subnormal"]


@pytest.mark.parametrize("d", [2, 18])
@pytest.mark.parametrize("shape", SHAPES)
def test_hostile_rows(shape, d):
    rng = np.random.default_rng(d)
    n = 48
    x = rng.normal(size=(n, d))
    if shape == "lattice":  # full of equal distances
        x = np.rint(x)
    elif shape == "far":
        x += 1e6
    elif shape == "twice":
        x = x[rng.integers(n // 3, size=n)]
    elif shape == "one":
        x = np.repeat(x[:1], n, axis=0)
    elif shape == "uneven":
        x *= np.exp(rng.normal(size=(n, 1)) * 4)
    elif shape == "outlier":  # beside which float32 squares of all others vanish
        x[7] *= 1e30
    else:
        x *= {"huge": 1e200, "tiny": 1e-200, "subnormal": 1e-310}[shape]
    w = rng.exponential(size=n) * (np.arange(n) % 3 > 0)
    same_picks(x, 7, 0)
    same_picks(x, 7, 1, w)
    if shape not in ("huge", "tiny", "subnormal"):
        same_picks(x.astype("float32"), 7, 2)
    same_picks((x / np.abs(x).max() * 3e38).astype("float32"), 5, 3)


@pytest.mark.parametrize("d", [3, 20])
def test_rows_are_read_where_they_are(d):
    x = np.random.default_rng(d).normal(size=(64, 2 * d)).astype("float32")
    for view in [
        x[:, ::2],
        x[::3, :d],
        x[5:, d:],
        x.T[:d],
        np.broadcast_to(x[0, :, None], (2 * d, d)),
    ]:
        rows, columns = (step // 4 for step in view.strides)
        first = (view.__array_interface__["data"][0] - x.__array_interface__["data"][0]) // 4
        on = tensor(x).as_strided(view.shape, (rows, columns), first)
        same_picks(view, 5, 0, on=on)


def test_what_a_tile_does_not_hold_is_picked_in_steps(monkeypatch):
    x = np.random.default_rng(0).normal(size=(40, 3))
    made = []
    monkeypatch.setattr(seeding.Seeds, "run", lambda self: made.append(self))
    same_picks(x, 5, 0, trials=17)
    rows = Rows.over(tensor(np.eye(2, 5000)), kernel="triton")
    assert rows.kernel.picks([rows], [0], np.full((1, 1, 2), 0.5))[0].tolist() == [0, 1]
    assert not made


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d", "t"), [(40, 2, 3), (1500, 1, 2), (50, 20, 5), (30, 70, 16)])
def test_each_launch(n, d, t, weighted):
    """What two picks leave behind, step by step, in the second of two problems that share launches."""
    rng = np.random.default_rng([n, d, t])
    x = rng.normal(size=(2, n, d)) * 3
    w = rng.exponential(size=(2, n)) if weighted else None
    draws = rng.uniform(size=(2, 3, t))
    there, beside = tensor(x), [None, None] if w is None else tensor(w)
    both = [Rows.over(there[i], beside[i], kernel="triton") for i in range(2)]
    frames = [Frame(rows.matrix, rows.largest) for rows in both]
    on = None if w is None else [rows.relative_weight(slice(0, n)) for rows in both]
    seeds = seeding.Seeds(frames, on, [3, 5], draws)
    x, draws = x[1], draws[1]
    weights = None if w is None else on[1].cpu().numpy()

    closest, owner = np.full(n, np.inf), np.zeros(n, np.int32)
    picks, candidates, best = [5], [5], 0
    seeds.count_in()
    for pick in range(3):
        c = x[candidates[best]][None, :]
        found = squared_distances(np, x, c)
        closest, owner = np.minimum(closest, found), np.where(found < closest, pick, owner)
        np.testing.assert_array_equal(seeds.closest[1].cpu(), closest)
        np.testing.assert_array_equal(seeds.owner[1].cpu(), owner)
        assert seeds.picks[1][: pick + 1].tolist() == picks

        seeds.costs()
        cost = closest if weights is None else weights * closest
        high = cost.max()
        scale = float(seeds.scale[1])
        assert 2.0**51 < high * scale * 2 ** (n - 1).bit_length() <= 2.0**52
        counts = np.rint(cost * scale)
        blocks = np.add.reduceat(counts, np.arange(0, n, seeding.BLOCK))
        assert seeds.sums[1].tolist() == blocks.tolist()
        assert seeds.state[1][2:].view(torch.float64).item() == high

        seeds.draw()
        cumulative = counts.cumsum()
        candidates = cumulative.searchsorted(draws[pick] * cumulative[-1])
        assert seeds.candidates[1].tolist() == candidates.tolist()
        np.testing.assert_array_equal(seeds.c[1].cpu(), x[candidates])

        seeds.reach()
        free = ((x[picks][:, None] - x[candidates]) ** 2).sum(axis=2).min(axis=1) / 4
        least = seeds.least[1][: pick + 1].view(torch.float64).cpu().numpy()
        assert (least <= free).all()
        np.testing.assert_allclose(least, free, rtol=2.0**-18)

        seeds.gains()
        found = np.stack([squared_distances(np, x, x[j][None, :]) for j in candidates])
        left = np.rint(np.minimum(found, closest) * (1 if weights is None else weights) * scale)
        saved = (counts - left).sum(axis=1)
        assert seeds.saved[1].tolist() == saved.tolist()
        nearer = seeds.won[1].cpu().numpy()[None, :].astype(np.int32) >> np.arange(t)[:, None] & 1
        np.testing.assert_array_equal(nearer, found < closest)
        best = int(np.argmax(saved))
        picks.append(int(candidates[best]))
        seeds.count_in()


@pytest.mark.parametrize("d", [17, 100, 3000])
def test_estimates_from_factors_of_ten_bits_are_as_near_as_is_said(d):
    """What tensor cores do to float32: a factor's last 13 bits are dropped."""
    rng = np.random.default_rng(d)

    def dropped(a):
        return (a.astype(np.float32).view(np.int32) & ~0x1FFF).view(np.float32)

    for spread in [1.0, 1e-3]:  # rows near the candidate cancel most
        c = rng.uniform(size=(1, d)).astype(np.float32) * 2.0**12
        y = (c * (1 + spread * rng.normal(size=(500, d)))).astype(np.float32)
        norms = (y * y).sum(axis=1) + (c * c).sum()
        estimate = norms - 2 * (dropped(y) @ dropped(c).T)[:, 0]
        true = ((y.astype(float) - c) ** 2).sum(axis=1)
        assert (np.abs(estimate - true) < seeding.gamma(d) * norms).all()


@pytest.mark.parametrize(("n", "d", "k"), [(120, 2, 4), (60, 20, 3)])
def test_parallel_starts_are_numpys(n, d, k):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d)).astype("float32")
    for w in [None, rng.exponential(size=n)]:
        heavy = None if w is None else tensor(w)
        found = []
        for rows in (Rows.over(tensor(x), heavy, kernel="triton"), Rows.over(x, w, kernel="cpu")):
            with rows.work:
                found.append(_init.start(rows, k, "k-means||", np.random.default_rng(1)))
        np.testing.assert_array_equal(found[0].cpu(), found[1])
