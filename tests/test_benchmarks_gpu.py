"""The benchmarks of the GPU, on tiny rows in the CPU's memory: the same code but for the clock."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import __main__ as cli  # noqa: E402
from benchmarks import plain  # noqa: E402
from benchmarks.gpu import day, measure, peers, rows  # noqa: E402
from benchmarks.gpu.day import calls, others, tables  # noqa: E402
from benchmarks.gpu.day.record import Day  # noqa: E402
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


def fresh(code, *arguments, **environment):
    """What a fresh interpreter prints."""
    made = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=day.ROOT,
        env=os.environ | environment,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_a_day_begins_without_what_has_to_be_installed():
    code = (
        "import sys\nfrom benchmarks import __main__ as cli\ncli.parser('gpu')\nprint(*sys.modules)"
    )
    found = {name.partition(".")[0] for name in fresh(code).split()}
    assert found.isdisjoint({"anykmeans", "array_api_compat", "torch", "scipy", "sklearn", "numpy"})


def test_stages_run_one_by_one_and_say_what_they_cannot(tmp_path, capsys):
    names = "environment,passes,warpgroups"
    run = ["gpu", "--stages", names, "--device", "cpu", "--small", "--out", str(tmp_path)]
    assert cli.main(run) == 0
    made = day.records(tmp_path / "results.jsonl")
    assert [each["stage"] for each in made] == ["environment"] * 3 + ["passes", "warpgroups"]
    assert made[0]["versions"]["torch"] == torch.__version__
    assert made[2]["ended"] == 0
    assert "skipped" in made[3]
    assert "without a GPU" in made[4]["skipped"]
    out = capsys.readouterr().out
    assert '"stage": "warpgroups"' in out
    assert "## Passes" in out


def test_a_stage_that_raises_leaves_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(others, "broken", lambda day: 1 // 0, raising=False)
    monkeypatch.setitem(day.STAGES, "broken", day.Stage(0, 9, "others:broken"))
    day.stage(Day("broken", tmp_path))
    (made,) = day.records(tmp_path / "results.jsonl")
    assert made["error"].startswith("ZeroDivisionError")
    assert day.failed(made)


def test_a_stage_without_end_is_ended(tmp_path, monkeypatch):
    endless = tmp_path / "endless"
    endless.write_text("#!/bin/sh\nexec sleep 600\n")
    endless.chmod(0o755)
    monkeypatch.setattr(day.sys, "executable", str(endless))
    day.attempt(Day("environment", tmp_path, "cpu", seconds=0.05), dict(os.environ))
    (made,) = day.records(tmp_path / "results.jsonl")
    assert made["ended"] == "out of time"
    assert day.failed(made)


def test_a_command_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(day, "LIMIT", 1.0)
    options = ["gpu", "--stages", "environment", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(options) == 0
    (made,) = day.records(tmp_path / "results.jsonl")
    assert made["skipped"] == "no time is left"
    assert cli.main([*options[:2], "gone", *options[3:]]) == 1


def test_wheels_are_installed_from_a_folder(tmp_path):
    pytest.importorskip("pip", reason="pip is not installed")
    assert "no wheel" in day.installed(tmp_path, tmp_path / "site")
    with zipfile.ZipFile(tmp_path / "nothing_much-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("nothing_much.py", "x = 1\n")
        about = "nothing_much-1.0.dist-info/"
        wheel.writestr(
            about + "METADATA", "Metadata-Version: 2.1\nName: nothing-much\nVersion: 1.0\n"
        )
        wheel.writestr(
            about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(about + "RECORD", "")
    assert day.installed(tmp_path, tmp_path / "site") is None
    assert (tmp_path / "site" / "nothing_much.py").is_file()


def test_every_stage_is_there():
    for stage in day.STAGES.values():
        module, _, function = stage.where.partition(":")
        text = (pathlib.Path(day.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        assert f"def {function}(day: Day)" in text
    for command in (1, 2):
        names = [name for name, stage in day.STAGES.items() if stage.command == command]
        assert sum(day.STAGES[name].seconds for name in names) < day.LIMIT


def test_calls_are_taken_apart(task):
    found = calls.timed(task)
    assert len(found["calls"]) == calls.CALLS
    assert "tottime" in found["host"]
    assert found["kernels"] is None


KERNELS = """
import pathlib, sys
import torch
from benchmarks.gpu import day, rows
from benchmarks.gpu.day.record import Day
torch.set_num_threads(1)
rows.ROWS[:] = [rows.Row("tiny", 2, 40, 16, 3, "float16", 2)]
out = pathlib.Path(sys.argv[1])
day.stage(Day("passes", out, "cpu", seconds=200))
for name in ("described", "constants", "sweep"):
    day.stage(Day(name, out, "cpu", small=True, seconds=200))
"""


def test_stages_that_run_kernels(tmp_path):
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    fresh(KERNELS, tmp_path, TRITON_INTERPRET="1")
    made = day.records(tmp_path / "results.jsonl")
    assert not [each for each in made if day.failed(each)]
    (row,) = (each for each in made if each["stage"] == "passes")
    first, second = row["passes"]
    assert {"screen", "accumulate", "means", "advance"} <= set(first["kernels"])
    assert 0 <= first["open"] <= 1
    assert second["whole"] > 0
    assert row["kernels"]["means"]["sizes"]["k"] == 3
    scored = [each for each in made if "wrong" in each]
    assert {each["stage"] for each in scored} == {"described", "sweep"}
    assert all(each["wrong"] == 0 and each["gap_off"] < 1e-4 for each in scored)
    assert any(each.get("kernel") == "own" for each in made)
    found = tables.text(made)
    assert "## Wrong\n\nnothing\n" in found
    assert "| tiny |" in found
    assert "| small | described | kernel=own |" in found
    assert "| error of a sum | d 64, kind normal |" in found
    errors = [each for each in made if each.get("what") == "error of a sum"]
    assert all(0 < each["worst"] < each["assumed"] for each in errors)
