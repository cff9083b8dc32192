"""Build the clusters of a search index: passes over embeddings, and end to end with the recall they give.

Part "passes" makes the same number of iterations over all rows, from rows drawn at random: the same for anykmeans,
scikit-learn and faiss, others for those that draw their own. Part "build" runs each library as it comes, and
anykmeans in the ways this use wants; recall@10 is the share of the ten nearest rows of a query that lie in the 1 % and
5 % of clusters nearest to it. Seconds are of the CPU in one thread, or of the wall with all.
"""

import argparse
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks import peers, plain, report
from benchmarks.peers import OURS, Task, ready
from benchmarks.rows import embeddings, initial_centres
from benchmarks.timing import Timings, alternate

SHAPES = {"minilm": (20_000, 384), "wide": (60_000, 1024), "many": (100_000, 384)}
K = (256, 1024, 4096)
ITERATIONS = (10, 25)
BUILT, CLUSTERS, QUERIES, NEAREST = "many", 1024, 1000, 10
SHARES = (0.01, 0.05)
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    peers.options(parser, approximate=True)
    parser.add_argument(
        "--parts", nargs="+", default=["passes", "build"], choices=["passes", "build"]
    )
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--k", nargs="+", type=int, default=list(K), metavar="K")
    parser.add_argument("--iterations", nargs="+", type=int, default=list(ITERATIONS), metavar="N")
    parser.add_argument("--measure", default="cpu", choices=list(CLOCKS))
    parser.add_argument(
        "--rows", type=int, metavar="N", help="rows in place of those of a shape, to try it"
    )
    parser.add_argument(
        "--cap",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="no further round after this time",
    )
    parser.set_defaults(repeats=3)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark; return 0."""
    runs, reasons = ready(options.peers)
    runs[OURS] = peers.anykmeans(kernel="numba")  # compiled from the start
    print(report.heading())
    report.absent(reasons)
    shapes = {name: (options.rows or SHAPES[name][0], SHAPES[name][1]) for name in options.shapes}
    clock = partial(clocked, CLOCKS[options.measure])
    records: dict[str, Any] = {"command": "index", "not_run": reasons, "measure": options.measure}
    with threadpool_limits(1) if options.measure == "cpu" else contextlib.nullcontext():
        if "passes" in options.parts:
            records["passes"] = []
            for name, (n, d) in shapes.items():
                x = embeddings(None, n, d)
                for k in options.k:
                    for count in options.iterations:
                        task = Task(x, k, initial_centres(x, k), count, 0.0)
                        calls = {who: partial(go, task) for who, go in runs.items()}
                        timings = warmed(calls, task, options.repeats, options.cap, clock)
                        records["passes"].append(shown(name, task, timings))
                        report.write(options.json, records)
        if "build" in options.parts:
            n = options.rows or SHAPES[BUILT][0]
            records["build"] = build(runs, n, min(CLUSTERS, n // 8), clock)
    report.write(options.json, records)
    return 0


def clocked(clock: Callable[[], float], call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    begin = clock()
    result = call()
    return clock() - begin, result


def warmed(
    calls: dict[str, Any], task: Task, repeats: int, cap: float, clock: Callable[..., Any]
) -> Timings[Any]:
    """Return the times of runs, after one of few rows has loaded and compiled what they need."""
    few = np.ascontiguousarray(task.x[: max(10_000, 2 * task.k)])
    for call in calls.values():
        call.func(Task(few, task.k, initial_centres(few, task.k), 3, 0.0))
    return alternate(calls, repeats, cap, clock)


def shown(name: str, task: Task, timings: Timings[Any]) -> dict[str, Any]:
    """Print and return a line for each run of one task."""
    inertia = {
        who: plain.inertia(task.x, outcome.centroids, outcome.labels)
        for who, outcome in timings.results.items()
    }
    n, d = task.x.shape
    lines = []
    for who in timings.seconds:
        line = {
            "peer": who,
            "seconds": timings.median(who),
            "ratio": timings.ratio(who, OURS),
            "inertia": inertia[who],
            "above": inertia[who] / inertia[OURS] - 1,
        }
        lines.append(line)
        print(
            f"{name:<8}{n:>8} x {d:<5} k={task.k:<5} {task.max_iter:>3} "
            "{peer:<16}{seconds:>9.2f}{ratio:>8.2f}{above:>+11.1e}".format(**line),
            flush=True,
        )
    return {"data": name, "n": n, "d": d, "k": task.k, "iterations": task.max_iter, "runs": lines}


def ways(k: int) -> dict[str, Callable[[NDArray], tuple[NDArray, NDArray]]]:
    """Return how anykmeans may be used for this: x (n, d) -> centroids (k, d), labels (n,)."""
    from anykmeans import assign, kmeans

    def all_rows(x: NDArray, **options: Any) -> tuple[NDArray, NDArray]:
        result = kmeans(x, k, n_init=1, rng=0, kernel="numba", **options)
        return result.centroids, result.labels

    def some(x: NDArray, **options: Any) -> tuple[NDArray, NDArray]:
        rows = np.random.default_rng(0).permutation(len(x))[: int(0.3 * len(x))]
        centroids, _ = all_rows(x[np.sort(rows)], **options)
        return centroids, assign(x, centroids, kernel="numba")[0]

    return {
        "anykmeans": all_rows,
        "anykmeans, init='random', 25 iterations": partial(all_rows, init="random", max_iter=25),
        "anykmeans, init='random', 10 iterations": partial(all_rows, init="random", max_iter=10),
        "anykmeans, 30 % of the rows": some,
        "anykmeans, 30 %, init='random', 10": partial(some, init="random", max_iter=10),
    }


def build(runs: dict[str, Any], n: int, k: int, clock: Callable[..., Any]) -> list[dict[str, Any]]:
    """Print and return what each library takes as it comes, and how good its clusters are."""
    every = embeddings(None, n + QUERIES, SHAPES[BUILT][1])
    x, queries = np.ascontiguousarray(every[:n]), every[n:]
    nearest = truth(x, queries)
    calls: dict[str, Callable[[], tuple[NDArray, NDArray]]] = {
        name: partial(go, x) for name, go in ways(k).items()
    }
    for name, go in runs.items():
        if not name.startswith(OURS):
            calls[name] = partial(outcome_of, go, Task(x, k))
    few = np.ascontiguousarray(x[:10_000])
    for go in ways(min(k, 1000)).values():
        go(few)  # to load and compile
    heads = ("end to end", "seconds", "inertia", *(f"recall, {share:.0%}" for share in SHARES))
    print("\n{:<44}{:>9}{:>12}{:>13}{:>13}".format(*heads))
    records, base = [], None
    for name, call in calls.items():
        took, (centroids, labels) = clock(call)
        inertia = plain.inertia(x, centroids, labels)
        base = inertia if base is None else base
        recalls = [recall(centroids, labels, queries, nearest, share) for share in SHARES]
        print(
            f"{name:<44}{took:>9.2f}{inertia / base:>12.4f}"
            + "".join(f"{r:>13.3f}" for r in recalls),
            flush=True,
        )
        records.append({"way": name, "seconds": took, "inertia": inertia, "recall": recalls})
    return records


def outcome_of(go: Callable[[Task], Any], task: Task) -> tuple[NDArray, NDArray]:
    """Return the centroids and the labels of a peer's run."""
    outcome = go(task)
    return outcome.centroids, outcome.labels


def truth(x: NDArray, queries: NDArray) -> NDArray:
    """Return the numbers of the rows nearest to each query, (q, NEAREST)."""
    scores = (x * x).sum(axis=1) - 2 * queries @ x.T
    return np.argpartition(scores, NEAREST, axis=1)[:, :NEAREST]


def recall(
    centroids: NDArray, labels: NDArray, queries: NDArray, nearest: NDArray, share: float
) -> float:
    """Return the share of the nearest rows that lie in the share of clusters nearest to the query."""
    probed = max(1, round(share * len(centroids)))
    scores = (centroids * centroids).sum(axis=1) - 2 * queries @ centroids.T
    lists = np.argpartition(scores, min(probed, len(centroids) - 1), axis=1)[:, :probed]
    return float((labels[nearest][:, :, None] == lists[:, None, :]).any(axis=2).mean())
