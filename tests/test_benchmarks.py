"""The referee of the benchmarks: who is valid, how times are compared. Nothing here is timed."""

import dataclasses
import functools
import json
import sys
import types

import numpy as np
import pytest

from benchmarks import __main__ as cli
from benchmarks import cpu, floor, index, plain, rows, timing
from benchmarks.peers import OURS, PEERS, Peer, Task, ready
from benchmarks.referee import judge


@pytest.fixture
def x():
    rng = np.random.default_rng(0)
    return (rng.normal(size=(6, 1, 3)) * 5 + rng.normal(size=(6, 50, 3))).reshape(-1, 3)


@pytest.fixture
def task(x):
    return Task.given(x, 4, 20)


def ours(task):
    return PEERS[OURS].make()(task)


def wrong(task):
    """A peer that stops after two iterations."""
    return ours(dataclasses.replace(task, max_iter=2))


def test_same_path_is_valid_and_another_is_not(task):
    outcomes = {OURS: ours(task), "good": PEERS["sklearn"].make()(task), "wrong": wrong(task)}
    findings = judge(task, outcomes)
    assert findings[OURS].valid
    assert findings["good"].valid
    assert not findings["wrong"].valid
    assert findings["wrong"].difference > 1e-5
    assert findings["wrong"].fault.startswith("off the float64 path: wrong by")


def test_all_are_invalid_if_ours_left_the_path(task):
    findings = judge(task, {OURS: wrong(task), "good": ours(task)})
    assert "anykmeans: off the float64 path" in findings["good"].fault


def test_all_are_invalid_if_our_labels_are_not_the_nearest(task):
    outcome = ours(task)
    labels = outcome.labels.copy()
    labels[:10] = (labels[:10] + 1) % task.k
    assert (
        "10 labels" in judge(task, {OURS: dataclasses.replace(outcome, labels=labels)})[OURS].fault
    )


def test_all_are_invalid_if_our_inertia_is_not_that_of_the_labels(task):
    outcome = ours(task)
    wrong = dataclasses.replace(outcome, inertia=outcome.inertia * (1 + 1e-6))
    assert "its inertia is" in judge(task, {OURS: wrong})[OURS].fault


@pytest.mark.parametrize(("rounded", "valid"), [(True, True), (False, False)])
def test_rounding_of_centroids_alone_excuses_ours(task, rounded, valid):
    # A stand-in for a path that ends 1 % elsewhere in float64; with float32 centroids where ours did.
    task = dataclasses.replace(task, x=task.x.astype(np.float32), init=task.init.astype(np.float32))
    mine = ours(task)

    def path(x, init, max_iter, state):
        return mine.inertia if state == np.float32 and rounded else mine.inertia * 1.01

    outcomes = {OURS: mine, "wrong": wrong(task)}
    findings = judge(task, outcomes, path)
    assert findings[OURS].valid == valid
    assert not findings["wrong"].valid
    assert OURS in findings["wrong"].fault


def test_with_defaults_luck_makes_nobody_invalid_but_it_is_told(x):
    task = Task(x, 6)
    mine = ours(task)
    other = ours(dataclasses.replace(task, max_iter=1, seed=1))
    findings = judge(task, {OURS: mine, "other": other})
    assert findings["other"].valid
    assert findings["other"].difference == pytest.approx(other.inertia / mine.inertia - 1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_brute_force_walks_our_path(x, dtype):
    task = Task.given(x.astype(dtype), 5, 30)
    assert plain.lloyd(task.x, task.init, 30, dtype) == pytest.approx(ours(task).inertia, rel=1e-12)


def test_brute_force_gives_a_tie_to_the_lowest_label():
    centroids = np.asarray([[2.0], [0.0], [2.0]])
    assert plain.nearest(np.asarray([[1.0], [2.0], [-1.0]]), centroids).tolist() == [0, 0, 1]


def test_ratio_is_the_median_of_ratios_within_a_round():
    timings = timing.Timings({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 4.0]}, {})
    assert timings.ratio("a", "b") == 2  # of 2, 3 and 1; the ratio of the medians is 1
    assert timings.median("a") == 4


def test_rounds_go_to_and_fro_and_end_at_the_cap():
    order = []
    runs = {name: functools.partial(order.append, name) for name in "abc"}
    assert timing.alternate(runs, 3).rounds == 3
    assert "".join(order) == "abccbaabc"
    assert timing.alternate(runs, 3, cap=0).rounds == 1


def test_the_floor_is_the_product_of_all_rows(x):
    transposed = np.ascontiguousarray(x[:4].T)
    scores = floor.scores_for(x, transposed)
    floor.multiply(x, transposed, scores, floor.TILE, 0)
    np.testing.assert_allclose(scores[: len(x)], x @ x[:4].T)
    go, passes = floor.run(x, x[:4], 3)
    go()
    assert 1 <= passes <= 3


def test_a_peer_that_cannot_be_imported_is_named_with_the_reason(monkeypatch):
    def make():
        raise ImportError("no such library")

    monkeypatch.setitem(PEERS, "absent", Peer(make))
    runs, reasons = ready(["absent"])
    assert list(runs) == [OURS]
    assert reasons == {"absent": "no such library"}


def test_rows_are_chosen_by_data_or_name():
    assert [row.name for row in rows.chosen(["pixels"])] == ["pixels-64", "pixels-256"]
    assert [row.name for row in rows.chosen(["*-512", "birch1"])] == ["birch1-100", "patches-512"]


def test_initial_centres_are_distinct_rows():
    x = np.repeat(np.arange(20.0), 50)[:, None]
    centres = rows.initial_centres(x, 10)
    assert len(np.unique(centres)) == 10
    assert np.isin(centres, x).all()


def test_the_table_end_to_end(x, monkeypatch, capsys, tmp_path):
    def missing(data):
        raise FileNotFoundError("it is not here")

    table = [rows.Row("tiny", 4, lambda data: x, max_iter=20), rows.Row("gone", 4, missing)]
    monkeypatch.setattr(rows, "ROWS", table)
    monkeypatch.setitem(PEERS, "wrong", Peer(lambda: wrong))
    report = tmp_path / "report.json"
    options = ["--peers", "sklearn", "wrong", "--repeats", "1", "--modes", "given"]
    assert cli.main(["cpu", *options, "--dtypes", "float64", "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "gone-4          skipped: it is not here" in out
    assert "INVALID: off the float64 path: wrong by" in out
    assert '"best_valid": "sklearn"' in report.read_text(encoding="utf-8")


def test_the_best_peer_is_the_best_valid_one_and_the_best_of_all():
    lines = [
        cpu.Line(OURS, 1.0, 1.0, 9, 5.0, 0.0, 0, ""),
        cpu.Line("slow", 3.0, 3.0, 9, 5.0, 0.0, 0, ""),
        cpu.Line("fast", 1.5, 1.5, 9, 6.0, 0.2, 0, "elsewhere"),
    ]
    result = cpu.Result("tiny-4", 9, 3, 4, "float64", "given", 2.0, 3, lines)
    assert result.best(valid=True).peer == "slow"
    assert result.best(valid=False).peer == "fast"
    assert result.met
    assert result.hungry is None


def test_an_index_is_built_and_its_recall_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(index, "QUERIES", 50)
    monkeypatch.setitem(index.SHAPES, "many", (2000, 32))
    report = tmp_path / "report.json"
    options = ["--shapes", "many", "--k", "20", "--iterations", "3", "--repeats", "1"]
    chosen = ["--peers", "sklearn", "superkmeans", "--json", str(report)]
    assert cli.main(["index", *options, *chosen]) == 0
    assert "anykmeans, init='random', 10 iterations" in capsys.readouterr().out
    told = json.loads(report.read_text(encoding="utf-8"))
    (passes,) = told["passes"]
    sklearn = next(line for line in passes["runs"] if line["peer"] == "sklearn")
    assert sklearn["above"] == pytest.approx(0.0, abs=1e-5)
    for way in told["build"]:
        few, more = way["recall"]
        assert 0 < few <= more <= 1


def test_recall_is_the_share_of_neighbours_in_the_clusters_probed():
    queries, nearest = np.asarray([[0.4]]), np.asarray([[0, 1, 2]])
    found = [
        index.recall(np.asarray([[0.5], [10.5]]), np.asarray([0, 0, 1, 1]), queries, nearest, share)
        for share in (0.5, 1.0)
    ]
    assert found == [pytest.approx(2 / 3), 1.0]


def test_embeddings_have_the_spectrum_that_they_are_said_to_have():
    x = rows.embeddings(None, 4000, 384)
    assert x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    values = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    share = values.cumsum() / values.sum()
    assert 0.55 < share[63] < 0.7
    assert 0.7 < share[127] < 0.85


class Idle:
    """A faiss.Kmeans that ends where it begins."""

    def __init__(self, d, k, **options):
        self.obj = [0.0] * options["niter"]
        self.index = self

    def train(self, x, init_centroids):
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
        self.centroids = init_centroids

    def search(self, x, k):
        return None, np.argmax(x @ self.centroids.T, axis=1)[:, None]


@pytest.mark.only("torch")
def test_what_belongs_inside_pytorch_end_to_end(monkeypatch, capsys, tmp_path):
    inside = pytest.importorskip("benchmarks.torch", reason="PyTorch is not installed")
    monkeypatch.setattr(inside, "STEPS", [(64, 4, 8)] * 3)
    monkeypatch.setattr(inside, "BATCHES", [(3, 40, 4, 2)])
    monkeypatch.setattr(inside, "COSINE", [(2000, 8, 5)])
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    monkeypatch.setitem(sys.modules, "torch_kmeans", None)
    faiss = types.SimpleNamespace(Kmeans=Idle, omp_set_num_threads=lambda threads: None)
    monkeypatch.setitem(sys.modules, "faiss", faiss)
    report = tmp_path / "report.json"
    parts = ["step", "residual", "batches", "cosine"]
    assert cli.main(["torch", "--parts", *parts, "--repeats", "1", "--json", str(report)]) == 0
    out = capsys.readouterr().out
    assert "vector_quantize_pytorch does not run here" in out
    assert "torch_kmeans does not run here" in out
    lines = json.loads(report.read_text(encoding="utf-8"))["results"]
    assert [line["part"] for line in lines] == ["step"] * 3 + ["residual"] * 2 + parts[2:]
    assert lines[-2]["note"] != "LABELS DIFFER FROM THE LOOP'S"
    assert abs(float(lines[-1]["objective of by hand, Euclid"])) < 0.01
    assert float(lines[-1]["objective of faiss"]) < -0.01
    assert lines[-1]["passes"].endswith(", 20")


@pytest.mark.only("torch")
def test_cosines_are_added_up_whatever_the_lengths():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks.torch import objective

    rng = np.random.default_rng(0)
    x, c = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    wanted = 0.0
    for row in x:
        wanted += max(row @ each / (np.linalg.norm(row) * np.linalg.norm(each)) for each in c)
    assert objective(torch.from_numpy(x), torch.from_numpy(c)) == pytest.approx(wanted, rel=1e-12)
    assert objective(torch.from_numpy(7 * x), torch.from_numpy(3 * c)) == pytest.approx(wanted)
