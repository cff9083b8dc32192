"""Clusters of bounded sizes, against k-means-constrained, and how a flow grows with rows and clusters.

Both start from the same centroids, in turns, with their defaults. They stop after passes of different numbers at different
minima, so seconds of a pass are told beside those of a fit, and how much more than the least its labels cost the peer,
for its own centroids.
"""

import argparse
import importlib
import statistics
import warnings
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anykmeans import kmeans_plusplus
from anykmeans._transport import transport
from anykmeans.constrained import constrained_kmeans
from benchmarks import report
from benchmarks.timing import alternate, wall

PEER = "k_means_constrained"
SIZES = [(1_000, 2, 5), (5_000, 16, 10), (20_000, 16, 20)]
GROWTH = [(1_000, 5), (1_000, 100), (10_000, 5), (10_000, 100), (100_000, 5), (100_000, 20)]
BOUNDS = {"equal": (1.0, 1.0), "80 to 125 %": (0.8, 1.25), "50 to 200 %": (0.5, 2.0)}  # of n / k
LATER = 5  # passes after the first


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--most-n", type=int, default=100_000, help="largest n (default: 100000)")
    parser.set_defaults(repeats=5)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark; return 0."""
    print(report.heading())
    rows: list[list[str]] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = importlib.import_module(PEER).KMeansConstrained
    except ImportError as error:
        report.absent({PEER: str(error)})
    else:
        for n, d, k in [each for each in SIZES if each[0] <= options.most_n]:
            rows += [against(peer, n, d, k, name, options.repeats) for name in BOUNDS]
        head = [
            "rows",
            "features",
            "k",
            "sizes",
            "fit, s",
            "peer, s",
            "ratio",
            "pass, ms",
            "peer, ms",
        ]
        print(
            report.markdown([[*head, "peer's inertia", "is lower", "its labels cost"], *rows], 4),
            "\n",
        )
    grown = [growth(*each, options.repeats) for each in GROWTH if each[0] <= options.most_n]
    head = ["rows", "k", "first pass, s", "later, s"]
    print(report.markdown([head, *grown], 0))
    report.write(options.json, {"command": "constrained", "against": rows, "growth": grown})
    return 0


def blobs(n: int, d: int, k: int) -> NDArray:
    """Return rows (n, d) of overlapping clusters of very different sizes."""
    rng = np.random.default_rng(0)
    of = rng.choice(k, size=n, p=rng.dirichlet(np.full(k, 2.0)))
    return rng.normal(size=(n, d)) + 2 * rng.normal(size=(k, d))[of]


def bounds(n: int, k: int, name: str) -> tuple[int, int]:
    """Return the least and the most rows of a cluster."""
    low, high = BOUNDS[name]
    return int(low * n / k), int(np.ceil(high * n / k))


def against(peer: Any, n: int, d: int, k: int, name: str, repeats: int) -> list[str]:
    """Return a row of the table: medians of as many starts, each timed once."""
    x, (least, most) = blobs(n, d, k), bounds(n, k, name)
    found = []
    for start in range(repeats):
        c, _ = kmeans_plusplus(x, k, random_state=start)
        fits = {
            "ours": partial(constrained_kmeans, x, k, least, most, init=c),
            "peer": partial(peer(k, size_min=least, size_max=most, init=c, n_init=1).fit, x),
        }
        if not start:
            fits["ours"]()  # compiled code is loaded
        timings = alternate(dict(sorted(fits.items(), reverse=bool(start % 2))), 1)
        ours, theirs = timings.results["ours"], timings.results["peer"]
        seconds = [timings.seconds[each][0] for each in ("ours", "peer")]
        costs = np.stack([((x - each) ** 2).sum(axis=1) for each in theirs.cluster_centers_])
        labels = theirs.predict(x)
        sizes = np.bincount(ours.labels, minlength=k)
        if sizes.min() < least or sizes.max() > most:
            raise RuntimeError(f"sizes from {sizes.min()} to {sizes.max()}, not {least} to {most}")
        at, cheapest = np.arange(n), transport(costs, np.full(k, least), np.full(k, most))[0]
        paid, needed = costs[labels, at].sum(), costs[cheapest, at].sum()
        passes = seconds[0] / ours.n_iter, seconds[1] / theirs.n_iter_
        found.append(
            (*seconds, seconds[1] / seconds[0], *passes, paid / ours.inertia, paid / needed)
        )
    fit, fits_peer, ratio, own, others, inertia, cost = map(
        statistics.median, zip(*found, strict=True)
    )
    lower = sum(each[5] < 1 - 1e-9 for each in found)
    return [
        *(f"{n:,}", str(d), str(k), name, f"{fit:.3f}", f"{fits_peer:.3f}", f"{ratio:.2f}"),
        *(f"{1e3 * own:.1f}", f"{1e3 * others:.1f}", f"{100 * (inertia - 1):+.2f} %"),
        *(f"{lower} of {repeats}", f"{100 * (cost - 1):.1g} %" if cost > 1 + 1e-12 else "0"),
    ]


def growth(n: int, k: int, repeats: int) -> list[str]:
    """Return a row of the table: seconds of the first pass, whose flow has all pairs, and of one that follows."""
    x = blobs(n, 16, k)
    c, _ = kmeans_plusplus(x, k, random_state=0)
    fit = partial(constrained_kmeans, x, k, *bounds(n, k, "80 to 125 %"), init=c, tol=0)
    fit(max_iter=1)
    took: list[tuple[float, float]] = []
    for _ in range(min(repeats, 3)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            short, long = (wall(partial(fit, max_iter=most))[0] for most in (1, 1 + LATER))
        later = (long - short) / LATER  # a fit ends with the labels of its last centroids
        took.append((short - later, later))
    first, later = map(statistics.median, zip(*took, strict=True))
    return [f"{n:,}", str(k), f"{first:.3f}", f"{later:.3f}"]
