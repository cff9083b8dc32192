"""The benchmarks of the GPU, on tiny rows in the CPU's memory: the same code but for the clock."""

import dataclasses
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import __main__ as cli  # noqa: E402
from benchmarks import plain  # noqa: E402
from benchmarks.gpu import measure, peers, rows  # noqa: E402
from benchmarks.gpu.measure import Line, Result  # noqa: E402
from benchmarks.peers import OURS  # noqa: E402

ROW = rows.Row("tiny", 2, 300, 8, 6, "float32", 12, "blobs")


class Wrong(peers.Torch):
    """A peer that stops after one iteration."""

    def fit(self, task):
        return super().fit(dataclasses.replace(task, max_iter=1))


class Lost(peers.Torch):
    """A peer whose numbers left their range."""

    def fit(self, task):
        outcome = super().fit(task)
        return dataclasses.replace(outcome, centroids=outcome.centroids * float("nan"))


class Broken(peers.Torch):
    """A peer that fails."""

    def fit(self, task):
        raise RuntimeError("out of luck\nwith details")


@pytest.fixture
def task():
    return ROW.task("cpu")


@pytest.fixture
def table(monkeypatch):
    """Two tiny rows and few peers in place of the large ones."""
    half = dataclasses.replace(ROW, name="half", b=1, dtype="bfloat16", data="uniform")
    monkeypatch.setattr(rows, "ROWS", [ROW, half])
    kept = {name: peers.PEERS[name] for name in (OURS, peers.FAST, "torch")}
    monkeypatch.setattr(peers, "PEERS", kept | {"wrong": Wrong, "broken": Broken})


def run(*options):
    return cli.main(["gpu", "--device", "cpu", "--repeats", "1", *options])


def measured(**named):
    return measure.measure(ROW, named, "cpu", repeats=1, budget=60, floor=(1.0, 2.0))


@pytest.mark.parametrize(
    ("name", "compute", "read"),
    [("1", 1.36, 0.25), ("2", 0.004, 0.008), ("3", 0.23, 0.14), ("6", 65, 0.6), ("9", 7.8, 0.71)],
)
def test_the_floor_of_a_row(name, compute, read):
    row = next(row for row in rows.ROWS if row.name == name)
    assert row.floor(790, 4.3) == pytest.approx((compute, read), rel=0.07)


def test_all_start_where_fastkmeans_does():
    torch.manual_seed(3)
    assert torch.equal(rows.start(1000, 10, 3), torch.randperm(1000)[:10])


def test_data_are_the_same_each_time_and_as_named(task):
    assert torch.equal(task.x, ROW.task("cpu").x)
    assert torch.equal(task.init[1], task.x[1][rows.start(ROW.n, ROW.k, 1)])
    assert abs(dataclasses.replace(ROW, data="offset").task("cpu").x.mean() - 50) < 5
    x = dataclasses.replace(ROW, data="uniform", dtype="float16").task("cpu").x
    assert x.dtype == torch.float16
    assert 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1


def test_plain_torch_walks_the_path_of_float64(task, monkeypatch):
    monkeypatch.setattr(peers.Torch, "part", 1000)  # parts of unequal size
    outcome = peers.Torch().fit(task)
    for x, init, c in zip(task.x, task.init, outcome.centroids, strict=True):
        true = kept(x.double().numpy(), init.double().numpy(), 12)
        np.testing.assert_allclose(c.numpy(), true, rtol=1e-5)


def kept(x, c, max_iter):
    """Lloyd's centroids by brute force, where empty clusters stay where they are."""
    for _ in range(max_iter):
        labels = plain.nearest(x, c)
        c = np.stack([x[labels == j].mean(axis=0) if j in labels else c[j] for j in range(len(c))])
    return c


def test_labels_of_a_peer_are_those_of_the_centroids_it_returned(task):
    peer = peers.Torch()
    early = dataclasses.replace(task, max_iter=1)
    outcome = peer.fit(early)
    true = [
        plain.nearest(x, c) for x, c in zip(task.x.numpy(), outcome.centroids.numpy(), strict=True)
    ]
    assert not np.array_equal(outcome.labels, true)
    sample = torch.arange(ROW.n)
    assert np.array_equal(peer.labels(early, outcome, sample), true)


def test_the_inertia_is_that_of_the_nearest_centroids(task, monkeypatch):
    monkeypatch.setattr(measure, "SCORES", 500)
    x, c = task.x[0] + 50, task.init[0] + 50
    y = x.double().numpy()
    true = plain.inertia(y, c.double().numpy(), plain.nearest(y, c.double().numpy()))
    assert measure.inertia(x, c) == pytest.approx(true, rel=1e-12)


def test_the_table_end_to_end(table, capsys, tmp_path):
    report = tmp_path / "report.json"
    assert run("--json", str(report)) == 0
    out = capsys.readouterr().out
    assert "## tiny: 2 × 300 × 8, k=6, float32, blobs, 12 iterations" in out
    assert "INVALID: inertia" in out
    assert "did not run: RuntimeError: out of luck |" in out
    first, second = json.loads(report.read_text(encoding="utf-8"))["results"]
    assert first["best_valid"] == "torch"
    lines = {line["peer"]: line for line in first["lines"]}
    assert list(lines) == [OURS, "torch", "wrong", "broken"]  # nothing fast in float32
    assert lines[OURS]["stray"] == 0
    assert lines[OURS]["same"]
    assert abs(lines["torch"]["difference"]) < 1e-6
    assert second["lines"][1]["peer"] == peers.FAST

    assert run("--reports", str(report)) == 0
    assert capsys.readouterr().out == out


def test_ours_at_fault_makes_the_row_invalid(table, monkeypatch, capsys):
    def shifted(self, task, outcome, sample):
        return (outcome.labels[:, sample] + 1) % task.k

    monkeypatch.setattr(peers.AnyKMeans, "labels", shifted)
    assert run("--rows", "tiny", "--peers", "torch") == 1
    assert f"INVALID: {OURS}: 600 labels of 600" in capsys.readouterr().out


def test_a_peer_that_ends_nowhere_is_invalid():
    with np.errstate(invalid="ignore"):
        lost = measured(**{OURS: peers.AnyKMeans(), "lost": Lost()}).line("lost")
    assert lost.fault == "inertia nan above ours"
    assert not lost.same


def test_ours_that_fails_leaves_peers_without_a_base():
    result = measured(**{OURS: Broken(), "torch": peers.Torch()})
    assert [line.fault for line in result.lines] == [
        "did not run: RuntimeError: out of luck",
        f"{OURS} did not run",
    ]
    assert result.best(valid=True) is None
    assert not result.met(OURS)


def test_a_peer_that_is_too_slow_is_left_out():
    result = measure.measure(
        ROW, {OURS: peers.AnyKMeans()}, "cpu", repeats=1, budget=0, floor=(1.0, 2.0)
    )
    assert "a round would take" in result.lines[0].fault


def test_rows_and_peers_must_be_there(table, capsys):
    assert run("--rows", "tiny,gone") == 1
    assert run("--peers", "nobody") == 1
    assert capsys.readouterr().err == "no row is called gone\nno peer is called nobody\n"


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["gpu"]) == 1
    assert "no GPU here" in capsys.readouterr().err


def test_goals_are_against_the_best_valid_peer():
    lines = [
        Line(OURS, call=2.0),
        Line(peers.FAST, call=1.0),
        Line("slow", call=3.5),
        Line("elsewhere", call=1.5, fault="inertia 1e-02 above ours"),
        Line("gone", fault="did not run: no luck"),
    ]
    result = Result(ROW, 0.5, 0.25, 3, lines)
    assert result.floor == 0.5
    assert result.best(valid=True).peer == "slow"
    assert result.best(valid=False).peer == "elsewhere"
    assert result.met(OURS)
    assert result.speedup(peers.FAST) == 3.5
    assert result.met(peers.FAST)
