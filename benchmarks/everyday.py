"""Time fits and predictions of everyday sizes, few clusters and some features, against scikit-learn in one thread.

CPU seconds of one thread each, so that a busy machine does not show: medians of alternating calls. A ratio is
scikit-learn's time divided by ours: above 1 anykmeans is faster.
"""

import argparse
import itertools
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import sklearn.cluster
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import anykmeans
from benchmarks import report
from benchmarks.timing import Timings, alternate

OURS, THEIRS = "anykmeans", "sklearn"
MODULES = {OURS: anykmeans, THEIRS: sklearn.cluster}
KINDS = ("overlapping", "separate", "structureless")

CAP = 0.6
"""Seconds after which no further round of a cell begins."""

T = TypeVar("T")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    whole = {"type": int, "nargs": "+"}
    parser.add_argument("--n", **whole, default=[1000, 20_000, 200_000])
    parser.add_argument("--d", **whole, default=[1, 2, 3, 5, 8, 13, 20, 32, 38, 64])
    parser.add_argument("--k", **whole, default=[2, 3, 4, 6, 10, 20])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--most", type=int, default=1 << 62, help="numbers of rows at most")
    parser.set_defaults(repeats=9)


def run(options: argparse.Namespace) -> int:
    """Time every cell, print the ratios, and by size their geometric mean and the lowest; return 0."""
    print(report.heading())
    print(f"{'what':<9}{'kind':<15}{'dtype':<9}{'n x d, k':<22}{'ours ms':>9}{'ratio':>7}")
    records: list[dict[str, Any]] = []
    cells = itertools.product(options.n, options.kinds, options.dtypes, options.d, options.k)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")  # of fits that stop after 20 iterations, by design
        for dtype in options.dtypes:  # compiled, before anything is timed
            few = rows("separate", 1000, 2, 2).astype(dtype)
            anykmeans.KMeans(2, kernel="numba", random_state=0).fit(few).predict(few)
        for n, kind, dtype, d, k in cells:
            if n * d > options.most:
                continue
            for what, timings in cell(rows(kind, n, d, k).astype(dtype), k, options.repeats):
                ours, ratio = timings.median(OURS), timings.ratio(THEIRS, OURS)
                about = f"{n} x {d}, k={k}"
                print(
                    f"{what:<9}{kind:<15}{dtype:<9}{about:<22}{ours * 1e3:9.3f}{ratio:7.2f}",
                    flush=True,
                )
                size = {"n": n, "d": d, "k": k, "kind": kind, "dtype": dtype}
                records.append({"what": what, **size, "ours": ours, "ratio": ratio})
            report.write(options.json, {"command": "everyday", "results": records})
    groups = defaultdict(list)
    for one in records:
        groups[one["what"], one["n"], one["kind"], one["dtype"]].append(one["ratio"])
    for (what, n, kind, dtype), ratios in groups.items():
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        few = sum(ratio < 1.5 for ratio in ratios)
        print(
            f"{what} {n} {kind} {dtype}: {mean:.2f}, lowest {min(ratios):.2f}, {few} of {len(ratios)} below 1.5"
        )
    return 0


def rows(kind: str, n: int, d: int, k: int) -> NDArray:
    """Return rows (n, d): one blob, a blob for each cluster, or evenly spread ones."""
    rng = np.random.default_rng(n + 100 * d + k)
    if kind == "structureless":
        return rng.random((n, d))
    noise = rng.standard_normal((n, d))
    if kind == "overlapping":
        return noise
    centres = rng.standard_normal((k, d)) * 10
    return centres[rng.integers(k, size=n)] + noise


def cell(x: NDArray, k: int, repeats: int) -> list[tuple[str, Timings[Any]]]:
    """Return what 20 iterations from given centres took, and predictions."""
    centres = x[np.random.default_rng(0).choice(len(x), k, replace=False)]
    models = {
        name: module.KMeans(k, init=centres, n_init=1, max_iter=20, tol=0)
        for name, module in MODULES.items()
    }
    found = []
    for what in ("fit", "predict"):
        runs = {name: partial(getattr(model, what), x) for name, model in models.items()}
        for go in runs.values():
            go()
        found.append((what, alternate(runs, repeats, CAP, clock)))
    return found


def clock(run: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU seconds of this thread that a run took, and its result."""
    begin = time.thread_time()
    result = run()
    return time.thread_time() - begin, result
