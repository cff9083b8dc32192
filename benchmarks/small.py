"""Time what is small or sparse: first calls, warm calls, predict, transform, and the seeding.

Estimators with their defaults against scikit-learn's, which is the only peer here. A ratio is
scikit-learn's time divided by ours: above 1 anykmeans is faster.
"""

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.cluster
from numpy.typing import NDArray

import anykmeans
from benchmarks import report, rows, sparse
from benchmarks.rows import Row, chosen, from_file, initial_centres
from benchmarks.timing import Timings, alternate, busy

OURS, THEIRS = "anykmeans", "sklearn"
MODULES = {OURS: anykmeans, THEIRS: sklearn.cluster}

SMALLEST = (1000, 8, 8)
"""n, d and k of a small problem."""

SHAPES = [(100_000, 8, 64), (20_000, 784, 100), SMALLEST]
"""n, d and k that predict and transform are timed on."""

PROCESSES = 7
"""Fresh processes for the first call."""

CAP = 20.0
"""Seconds after which no further round of a line begins."""

FIRST_CALL = """
import json, time
import numpy as np
x = np.random.default_rng(0).standard_normal(({n}, {d})).astype({dtype!r})
begin = time.perf_counter()
from {module} import KMeans
imported = time.perf_counter()
KMeans({k}, random_state=0).fit(x)
first = time.perf_counter()
KMeans({k}, random_state=0).fit(x)
print(json.dumps([imported - begin, first - imported, time.perf_counter() - first]))
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    rows.options(parser)
    parser.set_defaults(repeats=101)


def run(options: argparse.Namespace) -> int:
    """Run the parts that were asked for; return 0."""
    print(report.heading())
    print(
        f"Milliseconds, medians of up to {options.repeats} alternating calls within {CAP:g} s; "
        "ratio = scikit-learn / anykmeans\n"
    )
    show("what", "on", "dtype", "ours ms", "theirs ms", "ratio", "rounds", "")
    records: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that stop after one iteration, by design
        for part in options.parts:
            for what, on, dtype, timings, note in PARTS[part](options):
                ours, theirs = timings.median(OURS), timings.median(THEIRS)
                ratio = timings.ratio(THEIRS, OURS)
                times = (f"{ours * 1e3:.2f}", f"{theirs * 1e3:.2f}", f"{ratio:.2f}")
                notes = "; ".join(filter(None, (note, busy(timings.others))))
                show(what, on, dtype, *times, str(timings.rounds), notes)
                records.append(
                    {"what": what, "on": on, "dtype": dtype, "ours": ours, "theirs": theirs}
                    | {"ratio": ratio, "rounds": timings.rounds, "note": notes}
                )
                report.write(options.json, {"command": "small", "results": records})
    return 0


Lines = Iterator[tuple[str, str, str, Timings[Any], str]]
"""what was timed, on what, dtype, the times, and what is to be said of the results"""


def first(options: argparse.Namespace) -> Lines:
    """Yield what import, first and second call take in a fresh process."""
    n, d, k = SMALLEST
    for dtype in options.dtypes:
        spans: dict[str, list[list[float]]] = {name: [] for name in MODULES}
        for i in range(min(options.repeats, PROCESSES)):
            for name in reversed(MODULES) if i % 2 else MODULES:
                module = MODULES[name].__name__
                code = FIRST_CALL.format(n=n, d=d, k=k, dtype=dtype, module=module)
                done = subprocess.run(
                    [sys.executable, "-c", code],
                    cwd=Path(__file__).parents[1],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                spans[name].append(json.loads(done.stdout))
        for i, what in enumerate(("import", "first call", "second call")):
            seconds = {name: [each[i] for each in of_one] for name, of_one in spans.items()}
            yield what, shape(n, d, k), dtype, Timings(seconds, {}), ""


def fit(options: argparse.Namespace) -> Lines:
    """Yield what a warm call takes end to end, on noise and on small sets of data."""
    n, d, k = SMALLEST
    problems = [
        Row(shape(n, d, k), k, lambda data: noise(n, d)),
        Row("digits", 10, digits),
        Row("s4", 15, partial(from_file, file="s4.npz")),
        Row("dim128", 16, partial(from_file, file="dim128.npz")),
    ]
    for problem in problems:
        for dtype in options.dtypes:
            try:
                x = problem.x(options.data, dtype)
            except FileNotFoundError:
                continue  # the others say enough
            timings = both(
                lambda module, x=x, k=problem.k: module.KMeans(k, random_state=0).fit(x),
                options.repeats,
            )
            ours, theirs = (timings.results[name] for name in (OURS, THEIRS))
            note = f"iterations {ours.n_iter_} and {theirs.n_iter_}, inertia "
            note += f"{ours.inertia_ / theirs.inertia_ - 1:+.0e} above theirs"
            yield "fit", problem.data, dtype, timings, note


def predict(options: argparse.Namespace) -> Lines:
    """Yield what the labels of rows take, and whether they are the same."""
    for on, dtype, timings in method("predict", options):
        ours, theirs = (timings.results[name] for name in (OURS, THEIRS))
        yield "predict", on, dtype, timings, f"{int((ours != theirs).sum())} labels differ"


def transform(options: argparse.Namespace) -> Lines:
    """Yield what all distances of rows take, and by how much they differ."""
    for on, dtype, timings in method("transform", options):
        ours, theirs = (timings.results[name] for name in (OURS, THEIRS))
        apart = np.abs(ours - theirs).max() / theirs.max()
        yield "transform", on, dtype, timings, f"distances differ by {apart:.0e} of the largest"


def method(name: str, options: argparse.Namespace) -> Iterator[tuple[str, str, Timings[NDArray]]]:
    """Yield the times of a method of estimators fitted to the same centroids, shape by shape."""
    for n, d, k in SHAPES:
        for dtype in options.dtypes:
            x = noise(n, d).astype(dtype)
            centres = initial_centres(x, k)
            models = {module: fitted(module, centres) for module in MODULES.values()}
            call = lambda module, x=x, models=models: getattr(models[module], name)(x)  # noqa: E731
            yield shape(n, d, k), dtype, both(call, options.repeats)


def fitted(module: Any, centres: NDArray) -> Any:
    """Return the `KMeans` of a module, with the given centroids (k, d) to the last bit."""
    twice = np.concatenate(
        [centres, centres]
    )  # scikit-learn-intelex needs more rows than centroids
    model = module.KMeans(len(centres), init=centres, n_init=1, max_iter=1).fit(twice)
    model.cluster_centers_ = centres
    return model


def seeding(options: argparse.Namespace) -> Lines:
    """Yield what greedy k-means++ takes on the rows of the table, and whether the picks agree."""
    for row in chosen(options.rows):
        for dtype in options.dtypes:
            try:
                x = row.x(options.data, dtype)
            except FileNotFoundError as error:
                print(f"{row.name} skipped: {error}")
                break
            for module in MODULES.values():
                module.kmeans_plusplus(x[: 4 * row.k], row.k, random_state=0)
            timings = both(
                lambda module, x=x, k=row.k: module.kmeans_plusplus(x, k, random_state=0)[1],
                options.repeats,
                warm=False,
            )
            yield "k-means++", row.name, dtype, timings, verdict(x, row.k, timings.results)


def verdict(x: NDArray, k: int, picks: dict[str, NDArray]) -> str:
    """Return whether the picks (k,) agree, or else whether ours are those of float64 distances.

    scikit-learn's distances have the dtype of x, and rounding in float32 can move a pick.
    """
    apart = np.flatnonzero(picks[OURS] != picks[THEIRS])
    if not len(apart):
        return "same picks"
    true = sklearn.cluster.kmeans_plusplus(x.astype(np.float64), k, random_state=0)[1]
    agree = "ours are" if np.array_equal(true, picks[OURS]) else "NOR ARE OURS"
    return f"picks differ from number {apart[0]} on; {agree} those of scikit-learn in float64"


def of_sparse(options: argparse.Namespace) -> Lines:
    """Yield what all calls take on sparse rows."""
    for name, (k, make) in sparse.DATA.items():
        for dtype in options.dtypes:
            x = make().astype(dtype)
            c = sparse.centres(x, k)

            def fitted(module: Any, x: Any = x, c: NDArray = c, k: int = k, most: int = 10) -> Any:
                return module.KMeans(k, init=c, n_init=1, max_iter=most, tol=0).fit(x)

            models = {module: fitted(module, most=1) for module in MODULES.values()}
            calls: dict[str, Callable[[Any], Any]] = {
                "10 passes": fitted,
                "fit": lambda module, x=x, k=k: module.KMeans(k, random_state=0).fit(x),
                "k-means++": lambda module, x=x, k=k: module.kmeans_plusplus(x, k, random_state=0),
                "predict": lambda module, x=x, models=models: models[module].predict(x),
                "transform": lambda module, x=x, models=models: models[module].transform(x),
                "mini-batch": lambda module, x=x, c=c, k=k: module.MiniBatchKMeans(
                    k, init=c, n_init=1, random_state=0, max_iter=2
                ).fit(x),
            }
            for what, call in calls.items():
                timings = both(call, options.repeats)
                ours, theirs = (timings.results[name] for name in (OURS, THEIRS))
                note = ""
                if hasattr(ours, "inertia_"):
                    note = f"inertia {ours.inertia_ / theirs.inertia_ - 1:+.0e} above theirs"
                yield what, f"{name}, k={k}", dtype, timings, note


PARTS: dict[str, Callable[[argparse.Namespace], Lines]] = {
    "first": first,
    "fit": fit,
    "predict": predict,
    "transform": transform,
    "seeding": seeding,
    "sparse": of_sparse,
}


def both(call: Callable[[Any], Any], repeats: int, *, warm: bool = True) -> Timings[Any]:
    """Return the times of `call(module)` for both libraries, in alternation."""
    runs = {name: partial(call, module) for name, module in MODULES.items()}
    if warm:
        for go in runs.values():
            go()
    return alternate(runs, repeats, CAP)


def digits(data: Path | None) -> NDArray:
    """Return scikit-learn's digits: (1797, 64)."""
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)[0]


def noise(n: int, d: int) -> NDArray:
    """Return standard normal rows (n, d)."""
    return np.random.default_rng(0).standard_normal((n, d))


def shape(n: int, d: int, k: int) -> str:
    """Return what a line calls a synthetic problem."""
    return f"{n} x {d}, k={k}"


def show(*cells: str) -> None:
    """Print one line of the table."""
    print("{:<12}{:<20}{:<9}{:>10}{:>11}{:>7}{:>8}  {}".format(*cells).rstrip(), flush=True)
