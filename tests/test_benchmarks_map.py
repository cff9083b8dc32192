"""The map of the benchmarks: what is measured, goes on, agrees, is told and drawn. Nothing here is timed."""

import json

import numpy as np
import pytest
import sklearn.cluster

import anykmeans
from benchmarks import __main__ as cli
from benchmarks import jobs, plain, timing
from benchmarks import map as mapping
from benchmarks.map import Cell
from benchmarks.peers import OURS

GRID = ["--n", "60", "--d", "1", "3", "--k", "2", "3", "--repeats", "1", "--peers", "sklearn"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(mapping, "compile_first", lambda: None)
    monkeypatch.setattr(mapping, "LEAST", 1e-9)
    monkeypatch.setattr(timing, "PAUSE", 0.0)


def cell(**changes):
    sizes = {"n": 60, "d": 2, "k": 3}
    usual = {"measure": "cpu", "job": "lloyd", "dtype": "float64", "data": "separate"}
    return Cell(**usual | sizes | changes)


def record(ratio, differ="", **changes):
    return {
        **vars(cell(**changes)),
        "seconds": {OURS: 0.002, "sklearn": 0.002 * ratio},
        "ratios": {"sklearn": ratio},
        "rounds": 5,
        "differ": {"sklearn": differ},
        "others": None,
    }


def found(file):
    return json.loads(file.read_text(encoding="utf-8"))["results"]


def test_every_job_end_to_end(capsys, tmp_path):
    file = tmp_path / "map.json"
    options = ["--dtypes", "float64", "--data", "separate", "--json", str(file)]
    both = ["--measure", "cpu", "wall", "--jobs", "predict"]
    assert cli.main(["map", *GRID, *options, *both]) == 0
    assert "## scikit-learn, wall time, all threads" in capsys.readouterr().out
    assert cli.main(["map", *GRID, *options]) == 0
    records = found(file)
    assert len({Cell.of(r) for r in records}) == len(records) == 4 * (1 + len(jobs.JOBS))
    assert all(r["ratios"]["sklearn"] > 0 and not r["differ"]["sklearn"] for r in records)
    out = capsys.readouterr().out
    assert "28 of 28 cells are measured, 0 are left out" in out
    assert "## scikit-learn, CPU time, one thread" in out
    assert all(f"| {job} | 60 | 4 |" in out for job in jobs.JOBS)


def test_a_run_that_was_stopped_goes_on(monkeypatch, tmp_path):
    file = tmp_path / "map.json"
    options = ["map", *GRID, "--jobs", "predict", "--data", "separate", "--json", str(file)]
    began = []

    def measure(cell, *rest):
        began.append(cell)
        if len(began) == 4:
            raise KeyboardInterrupt
        return record(2.0, **vars(cell))

    monkeypatch.setattr(mapping, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        cli.main(options)
    assert len(found(file)) == 3
    assert cli.main(options) == 0
    assert len(found(file)) == len(set(began)) == len(began) - 1 == 8
    assert cli.main(options) == 0
    assert len(began) == 9


def test_a_report_keeps_what_other_options_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr(mapping, "measure", lambda cell, *rest: record(2.0, **vars(cell)))
    file = tmp_path / "map.json"
    options = ["map", "--n", "60", "--d", "1", "--jobs", "predict", "--data", "separate"]
    for k in (["61", "2"], ["62", "3"]):
        assert cli.main([*options, "--dtypes", "float64", "--k", *k, "--json", str(file)]) == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    assert [(r["k"], r["why"]) for r in report["left_out"]] == [
        (61, "k is above n"),
        (62, "k is above n"),
    ]
    assert [r["k"] for r in report["results"]] == [2, 3]


def test_a_report_of_another_machine_is_not_added_to(monkeypatch, capsys, tmp_path):
    file = tmp_path / "map.json"
    options = ["map", *GRID, "--jobs", "predict", "--json", str(file)]
    assert cli.main([*options, "--budget", "0"]) == 0
    monkeypatch.setattr(mapping, "measure", lambda cell, *rest: record(2.0, **vars(cell)))
    assert cli.main(options) == 0
    before = file.read_bytes()
    file.write_bytes(before.replace(b'"python": "', b'"python": "0.'))
    assert cli.main(options) == 2
    assert "was measured with python 0." in capsys.readouterr().err


def test_what_is_not_measured_is_named(monkeypatch, capsys):
    def measure(cell, *rest):
        if cell.d == 3:
            raise ValueError("no such rows")
        return record(2.0, **vars(cell))

    monkeypatch.setattr(mapping, "measure", measure)
    options = ["--k", "3", "61", "--dtypes", "float32", "--jobs", "predict", "--data", "separate"]
    assert cli.main(["map", *GRID, *options]) == 0
    out = capsys.readouterr().out
    assert "1 of 4 cells are measured, 3 are left out" in out
    assert "| predict | 60 | float32 | k is above n | 1: 61; 3: 61 |" in out
    assert "| predict | 60 | float32 | ValueError: no such rows | 3: 3 |" in out
    monkeypatch.setitem(mapping.MODULES, "sklearn", "json")
    assert cli.main(["map", *GRID, *options]) == 0
    assert (
        "| predict | 60 | float32 | no peer has KMeans | 1: 3, 61; 3: 3, 61 |"
        in capsys.readouterr().out
    )
    assert "more than 4 GB" in cell(job="transform", n=200_000, d=784, k=500).refused(1e9)
    assert "more than about 20 s" in cell(n=200_000, d=784, k=500).refused(20)


def test_every_beginning_of_the_order_is_a_fair_sample():
    sizes = [
        (job, n, d, k) for job in ("fit", "lloyd") for n in (9, 90) for d in (1, 2) for k in (2, 3)
    ]
    cells = [
        cell(job=job, n=n, d=d, k=k, dtype=dtype)
        for job, n, d, k in sizes
        for dtype in mapping.DTYPES
    ]
    order = mapping.ordered(cells)
    assert order == mapping.ordered(cells)
    assert sorted(map(str, order)) == sorted(map(str, cells))
    assert len({(each.job, each.n) for each in order[:4]}) == 4
    assert len({(each.job, each.n, each.d, each.k) for each in order[:16]}) == 16


def test_the_summary_has_the_losses():
    records = [
        record(4.0, k=2),
        record(0.25, k=3),
        record(1.2, "9 and 8 iterations", k=4, dtype="float32"),
    ]
    text = "\n".join(mapping.summary(records, {}, {"sklearnex": "no such module"}, 5))
    assert "3 of 5 cells are measured, 0 are left out, 2 wait" in text
    assert "sklearnex does not run here: no such module" in text
    line = "| 3 | 1.06 | 1.00 | 67% | 33% | 0.25 | 1 (1 in float32) |"
    assert f"| lloyd | 60 {line}" in text
    assert f"| all |  {line}" in text
    worst = "| lloyd | separate | float64 | 60 | 2 | 3 | 0.25 | 2.000 | 0.500 | 5 |  |"
    assert worst in text
    assert text.index(worst) < text.index("| 9 and 8 iterations |")


def test_a_wrong_result_of_ours_is_told_in_the_status(monkeypatch):
    wrong = lambda cell, *rest: record(2.0, f"{jobs.OURS_AT_FAULT}: so it is", **vars(cell))  # noqa: E731
    monkeypatch.setattr(mapping, "measure", wrong)
    assert cli.main(["map", *GRID, "--jobs", "predict"]) == 1


def test_in_what_results_differ():
    x = jobs.overlapping(300, 3, 4, "float64")
    results = [jobs.lloyd(module, x, 4)() for module in (anykmeans, sklearn.cluster)]
    ours, theirs = results
    assert jobs.ends(x, 4, ours, theirs) == ""
    turned = sklearn.cluster.KMeans(
        4, init=theirs.cluster_centers_[::-1], n_init=1, max_iter=20, tol=0
    )
    turned.fit(x).n_iter_ = ours.n_iter_
    assert "labels" not in jobs.ends(x, 4, ours, turned)  # another order of clusters is none
    early = sklearn.cluster.KMeans(4, init=x[:4], n_init=1, max_iter=1).fit(x)
    assert "and 1 iterations, inertia +" in jobs.ends(x, 4, ours, early)
    ours.labels_[:2] = (ours.labels_[:2] + 1) % 4
    assert jobs.ends(x, 4, ours, theirs).startswith(f"{jobs.OURS_AT_FAULT}: 2 labels")

    right = plain.nearest(x, jobs.initial_centres(x, 4))
    wrong = np.where(np.arange(300) < 5, (right + 1) % 4, right)
    assert jobs.labels(x, 4, right, right) == ""
    assert jobs.labels(x, 4, right, wrong) == "5 labels"
    assert jobs.labels(x, 4, wrong, right).startswith(f"{jobs.OURS_AT_FAULT}: 5 labels")
    assert jobs.picks(x, 4, np.arange(4), np.asarray([0, 1, 3, 2])) == "picks from number 2 on"
    assert jobs.distances(x, 3, x, x * (1 + 1e-12)) == ""
    assert jobs.distances(x, 3, x, x * 1.01).startswith("distances by 1e-02")
    assert jobs.streams(x, 4, ours, early).startswith("inertia +")


@pytest.mark.parametrize("d", [1, 2, 9, 30])
def test_separate_blobs_are_apart_and_rows_have_their_dtype(d):
    x = jobs.separate(9000, d, 150, "float32")
    corners = np.unique(np.rint(x / 20), axis=0)
    assert len(corners) == 150
    assert all(make(20, d, 3, "float32").dtype == np.float32 for make in jobs.DATA.values())


def test_the_map_is_drawn(tmp_path):
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    shapes = [(job, k) for job in ("lloyd", "predict", "fit") for k in (2, 3)]
    records = [record(0.5 * k, job=job, k=k) for job, k in shapes]
    large = {cell(n=200_000): "too large"}
    file, png = tmp_path / "map.json", tmp_path / "map.png"
    report = mapping.as_json(records, large, {})
    file.write_text(json.dumps(report), encoding="utf-8")
    assert cli.main(["chart", str(file), str(png)]) == 0
    assert png.read_bytes().startswith(b"\x89PNG")
