"""Show how the cost of 20 iterations grows with n, at fixed k, and with k, at fixed n.

The rows have eight features and some structure: clusters of many sizes and widths, in groups. A peer
stops growing where its next size would take longer than --cap.
"""

import argparse
import dataclasses
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import chart, floor, peers, report
from benchmarks.peers import OURS, PEERS, Run, Task, ready
from benchmarks.timing import alternate, busy

FEATURES, ITERATIONS = 8, 20
K_OF_N, N_OF_K = 64, 100_000
N = [10_000, 31_623, 100_000, 316_228, 1_000_000, 3_162_278, 10_000_000]
K = [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    peers.options(parser)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"])
    parser.add_argument("--most-n", type=int, default=N[-1], help=f"largest n (default: {N[-1]})")
    parser.add_argument("--most-k", type=int, default=K[-1], help=f"largest k (default: {K[-1]})")
    parser.add_argument(
        "--cap",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="longest run of a peer (default: 60)",
    )
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the curves there")
    parser.set_defaults(repeats=3)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark; return 0."""
    runs, reasons = ready(options.peers)
    runs = {name: go for name, go in runs.items() if options.dtype in PEERS[name].dtypes}
    print(report.heading())
    report.absent(reasons)
    print(
        f"{ITERATIONS} iterations from the same centres, d = {FEATURES}, {options.dtype}; seconds, "
        f"medians of up to {options.repeats} alternating rounds, and in brackets the times of ours\n"
    )
    sizes = {
        "n": [n for n in N if n <= options.most_n],
        "k": [k for k in K if k <= options.most_k],
    }
    x = structured(max([N_OF_K, *sizes["n"]]), options.dtype)
    series: list[dict[str, Any]] = []
    for axis, values in sizes.items():
        fixed = f"k = {K_OF_N}" if axis == "n" else f"n = {N_OF_K}"
        points: dict[str, list[dict[str, float]]] = {name: [] for name in (*runs, floor.NAME)}
        print(line(f"{axis}, {fixed}", list(points)))
        for size in values:
            part, k = (x[:size], K_OF_N) if axis == "n" else (x[:N_OF_K], size)
            going = {
                name: go for name, go in runs.items() if expected(points[name], size) <= options.cap
            }
            seconds, others = measure(part, k, going, options.repeats, options.cap)
            for name, value in seconds.items():
                points[name].append({"size": size, "seconds": value})
            cells = [cell(seconds, name) for name in points]
            print(line(str(size), cells), busy(others), flush=True)
        series += [
            {"axis": axis, "fixed": fixed, "peer": name, "points": each}
            for name, each in points.items()
        ]
        report.write(options.json, as_json(series, reasons, options.dtype))
        print()
    if options.chart:
        chart.growth(series, options.chart)
    return 0


def structured(n: int, dtype: str) -> NDArray:
    """Return rows (n, 8) of 2000 clusters of very different sizes and widths, in 40 groups."""
    rng = np.random.default_rng(0)
    groups = rng.normal(size=(40, FEATURES)) * 10
    centres = groups[rng.integers(40, size=2000)] + rng.normal(size=(2000, FEATURES)) * 2
    widths = rng.lognormal(-1, 0.7, size=2000)
    shares = rng.lognormal(0, 1.2, size=2000)
    of = rng.choice(2000, size=n, p=shares / shares.sum())
    x = np.empty((n, FEATURES), dtype)
    for i in range(0, n, 1 << 18):  # in parts, so that ten million rows need no float64 copies
        part = of[i : i + (1 << 18)]
        noise = rng.normal(size=(len(part), FEATURES)) * widths[part, None]
        x[i : i + len(part)] = centres[part] + noise
    return x


def expected(points: list[dict[str, float]], size: int) -> float:
    """Return the seconds that the next size would take if cost grew with it."""
    return points[-1]["seconds"] * size / points[-1]["size"] if points else 0.0


def measure(
    x: NDArray, k: int, runs: dict[str, Run], repeats: int, cap: float
) -> tuple[dict[str, float], float | None]:
    """Return the median seconds of each run and those of the matrix product, and others' share."""
    task = Task.given(x, k, ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for go in runs.values():
            go(dataclasses.replace(task, max_iter=2))
        timed = {name: partial(go, task) for name, go in runs.items()}
        timed[floor.NAME], passes = floor.run(x, task.init, ITERATIONS)
        timings = alternate(timed, repeats, cap)
    seconds = {name: timings.median(name) for name in runs}
    least = min(timings.seconds[floor.NAME]) / passes * ITERATIONS
    return seconds | {floor.NAME: least}, timings.others


def line(head: str, cells: list[str]) -> str:
    """Return one line of the table."""
    return f"{head:<14}" + "".join(f"{cell:>18}" for cell in cells)


def cell(seconds: dict[str, float], name: str) -> str:
    """Return seconds, and how many times ours they are; a dash for a peer that had stopped."""
    if name not in seconds:
        return "-"
    ratio = f" ({seconds[name] / seconds[OURS]:.2f})" if OURS in seconds and name != OURS else ""
    return f"{seconds[name]:.3f}{ratio}"


def as_json(series: list[dict[str, Any]], reasons: dict[str, str], dtype: str) -> dict[str, Any]:
    """Return the curves as a report."""
    return {
        "command": "growth",
        "dtype": dtype,
        "iterations": ITERATIONS,
        "not_run": reasons,
        "series": series,
    }
