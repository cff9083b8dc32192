"""Map the sizes that most people fit: every job, on many n, d and k, kinds of data and dtypes.

Estimators and functions as they come, against those of the same names in scikit-learn, and in
scikit-learn-intelex where it is installed. Measure "cpu" is seconds of CPU time with one thread in every
library, in which work of others does not count, "wall" is seconds with all threads. A ratio is the peer's
time divided by ours: above 1 anykmeans is faster.

The whole grid takes half a day. With --budget it is sampled: every job and n as often, every d and k
once before any comes again with other data. With --json what is measured is kept, and the same command
goes on where it was stopped.
"""

import argparse
import contextlib
import dataclasses
import importlib
import itertools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from anykmeans.__main__ import main as command_of_anykmeans
from benchmarks import chart, report
from benchmarks.jobs import DATA, JOBS, OURS_AT_FAULT, Job, same_work
from benchmarks.peers import OURS
from benchmarks.timing import Timings, alternate, busy

MODULES = {OURS: "anykmeans", "sklearn": "sklearn.cluster", "sklearnex": "sklearnex.cluster"}
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}

N = [1000, 20_000, 200_000]
D = [1, 2, 3, 5, 8, 13, 20, 32, 38, 64, 128, 300, 784]
K = [2, 3, 4, 6, 10, 20, 50, 150, 500]
DTYPES = ["float32", "float64"]

LEAST = 0.005
"""Seconds that a clock has to show, so that short calls are repeated within it."""

PRODUCTS = {"float32": 40e9, "float64": 20e9}
"""Operations a second of a core, to tell which calls are too long; to a factor of two or three."""

MOST_BYTES = 4e9
"""Memory for rows, a copy, and what calls return."""

LARGE = 1 << 24
"""Bytes of memory that does not come from what a process has at hand."""

SAVE_EVERY = 10.0
"""Seconds after which what is new is written down."""


@dataclass(frozen=True)
class Cell:
    """What one measurement is of."""

    measure: str
    job: str
    n: int
    d: int
    k: int
    dtype: str
    data: str

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Cell":
        """Return the cell that a record is of."""
        return cls(**{field.name: record[field.name] for field in dataclasses.fields(cls)})

    @property
    def seconds(self) -> float:
        """About how long a call takes in one thread."""
        products = self.n * self.k * (2 * self.d + 8) * JOBS[self.job].passes(self.n, self.k)
        return products / PRODUCTS[self.dtype]

    @property
    def bytes(self) -> float:
        """About how much memory it takes."""
        returned = 2 * self.k if self.job == "transform" else 0
        return self.n * (2 * self.d + returned) * np.dtype(self.dtype).itemsize

    def refused(self, longest: float) -> str:
        """Return why it is left out, or nothing."""
        if self.k > self.n:
            return "k is above n"
        if self.bytes > MOST_BYTES:
            return f"takes more than {MOST_BYTES / 1e9:g} GB"
        return f"a call takes more than about {longest:g} s" if self.seconds > longest else ""

    def __str__(self) -> str:
        where = f"{self.n} x {self.d}, k={self.k}"
        return f"{self.measure:<5}{self.job:<12}{where:<24}{self.dtype:<8} {self.data:<14}"


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    for name, values in (("n", N), ("d", D), ("k", K)):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=int,
            default=values,
            metavar=name.upper(),
            help=f"(default: {' '.join(map(str, values))})",
        )
    choices = {"dtypes": DTYPES, "data": list(DATA), "jobs": list(JOBS), "measure": list(CLOCKS)}
    for name, words in choices.items():
        default = ["cpu"] if name == "measure" else words
        parser.add_argument(
            f"--{name}",
            nargs="+",
            default=default,
            choices=words,
            help=f"(default: {' '.join(default)})",
        )
    peers = [name for name in MODULES if name != OURS]
    parser.add_argument("--peers", nargs="+", default=peers, choices=peers)
    parser.add_argument(
        "--budget",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="begin no further cell after this time (default: measure all)",
    )
    parser.add_argument(
        "--cap",
        type=float,
        default=2.0,
        metavar="SECONDS",
        help="no further round of a cell after this time (default: 2)",
    )
    parser.add_argument(
        "--longest",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="leave out cells with calls that would take longer in one thread (default: 20)",
    )
    parser.add_argument(
        "--chart", type=Path, metavar="FILE.png", help="draw the first measure and peer there"
    )
    parser.set_defaults(repeats=5)


def run(options: argparse.Namespace) -> int:
    """Measure, and print a summary in Markdown; return 1 if ours was at fault somewhere, 2 if it cannot go on."""
    before = kept(options.json)
    if different := other_environment(before):
        print(f"{options.json} was measured with {different}: give another --json", file=sys.stderr)
        return 2
    modules, reasons = ready(options.peers)
    wanted = list(cells(options))
    chosen = set(wanted)
    records = before["results"]
    done = {Cell.of(record) for record in records}
    lonely = {
        name: f"no peer has {job.name}" for name, job in JOBS.items() if not compared(job, modules)
    }
    refused = (
        (cell, lonely.get(cell.job) or cell.refused(options.longest))
        for cell in wanted
        if cell not in done
    )
    left_out = {cell: why for cell, why in refused if why}
    # Those of other options stay in the file.
    others = {Cell.of(record): record["why"] for record in before["left_out"]}
    others = {cell: why for cell, why in others.items() if cell not in chosen}
    waiting = [cell for cell in ordered(wanted) if cell not in done and cell not in left_out]

    def save() -> None:
        report.write(options.json, as_json(records, others | left_out, reasons))

    if waiting and options.budget > 0:
        compile_first()
        saved = time.perf_counter()
        try:
            for cell, found in measured(waiting, modules, options):
                if isinstance(found, str):
                    left_out[cell] = found
                else:
                    records.append(found)
                if time.perf_counter() - saved > SAVE_EVERY:
                    save()
                    saved = time.perf_counter()
        finally:
            save()
    here = [record for record in records if Cell.of(record) in chosen]
    print("\n\n".join(summary(here, left_out, reasons, len(wanted))))
    if options.chart and here:
        drawn = as_json(here, left_out, reasons)
        chart.ratios(drawn, options.chart, options.measure[0], options.peers[0])
    return 1 if any(at_fault(record) for record in here) else 0


def kept(file: Path | None) -> dict[str, Any]:
    """Return the report in a file, or an empty one."""
    if file is None or not file.is_file():
        return as_json([], {}, {})
    return json.loads(file.read_text(encoding="utf-8"))


def other_environment(before: dict[str, Any]) -> str:
    """Return what of a report's environment is not that of here, or nothing."""
    now = report.environment()
    apart = {k: v for k, v in before.get("environment", now).items() if v != now.get(k)}
    return report.heading(apart) if apart else ""


def ready(peers: Iterable[str]) -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Return the modules of anykmeans and of peers that can be imported, and why others cannot."""
    modules, reasons = {}, {}
    for name in (OURS, *peers):
        try:
            modules[name] = importlib.import_module(MODULES[name])
        except ImportError as error:
            reasons[name] = str(error)
    return modules, reasons


def compared(job: Job, modules: dict[str, ModuleType]) -> list[str]:
    """Return the peers that have what a job needs."""
    return [name for name, module in modules.items() if name != OURS and hasattr(module, job.name)]


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield all cells that were asked for."""
    axes = (options.measure, options.jobs, options.n, options.d, options.k)
    yield from itertools.starmap(Cell, itertools.product(*axes, options.dtypes, options.data))


def ordered(wanted: list[Cell]) -> list[Cell]:
    """Return the cells in an order of which every beginning is a fair sample; it is always the same.

    Measures, jobs and n take turns. Each goes through all pairs of d and k, drawn, before one comes a second
    time, with other data or dtype.
    """
    rng = np.random.default_rng(0)
    groups: dict[tuple[str, str, int], dict[tuple[int, int], list[Cell]]] = {}
    for cell in wanted:
        shapes = groups.setdefault((cell.measure, cell.job, cell.n), {})
        shapes.setdefault((cell.d, cell.k), []).append(cell)
    queues = []
    for shapes in groups.values():
        kinds = [[of[i] for i in rng.permutation(len(of))] for of in shapes.values()]
        kinds = [kinds[i] for i in rng.permutation(len(kinds))]
        queues.append([cell for turn in zip(*kinds, strict=True) for cell in turn])
    return [cell for turn in itertools.zip_longest(*queues) for cell in turn if cell is not None]


def compile_first() -> None:
    """Have all compiled, so that no call waits for it."""
    with contextlib.redirect_stdout(sys.stderr):
        command_of_anykmeans(["compile"])


def measured(
    waiting: list[Cell], modules: dict[str, ModuleType], options: argparse.Namespace
) -> Iterator[tuple[Cell, dict[str, Any] | str]]:
    """Yield cells and their records, or why they failed, until the budget is spent."""
    begin = time.perf_counter()
    if (
        waiting
    ):  # else what is called first in a new virtual machine pays for memory that this has never had
        np.ones(int(max(cell.bytes for cell in waiting)) // 8)
    for i, cell in enumerate(waiting):
        if time.perf_counter() - begin > options.budget:
            return
        found: dict[str, Any] | str
        try:
            found = measure(cell, modules, options.repeats, options.cap)
            line = said(found)
        except (ValueError, RuntimeError, MemoryError) as error:
            line = found = f"{type(error).__name__}: {error}"
        print(f"{i + 1:>6}/{len(waiting)} {cell}{line}", file=sys.stderr, flush=True)
        yield cell, found


def measure(cell: Cell, modules: dict[str, ModuleType], repeats: int, cap: float) -> dict[str, Any]:
    """Return the times of all modules that have the job, and in what their results differ from ours."""
    job = JOBS[cell.job]
    x = DATA[cell.data](cell.n, cell.d, cell.k, cell.dtype)
    one = threadpool_limits(1) if cell.measure == "cpu" else contextlib.nullcontext()
    with warnings.catch_warnings(), one:
        warnings.simplefilter("ignore")  # of fits that stop after a fixed number of iterations
        calls = {
            name: job.make(modules[name], x, cell.k) for name in (OURS, *compared(job, modules))
        }
        clock = partial(clocked, CLOCKS[cell.measure], int(cell.bytes))
        timings = repeated(calls, repeats, cap, clock)
        results = timings.results
        differ = {
            name: job.differ(x, cell.k, results[OURS], results[name])
            for name in results
            if name != OURS
        }
    return {
        **dataclasses.asdict(cell),
        "seconds": {name: timings.median(name) for name in calls},
        "ratios": {name: timings.ratio(name, OURS) for name in differ},
        "rounds": timings.rounds,
        "differ": differ,
        "others": timings.others,
    }


def repeated(
    calls: dict[str, Callable[[], Any]], repeats: int, cap: float, clock: Callable[..., Any]
) -> Timings[Any]:
    """Return the times of the calls, of which the first round does not count, unless it is so long that it is all."""
    first = alternate(calls, 1, clock=clock)
    if sum(first.median(name) for name in calls) > cap:
        return first
    return alternate(calls, repeats, cap, clock)


def clocked(clock: Callable[[], float], size: int, call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call, made again until the clock has something to show, and its result.

    It finds so many bytes of memory, if they are many, as others have just left it: where a virtual machine has to get it from its host
    first, that takes longer than the call.
    """
    if size > LARGE:
        np.ones(size // 8)
    begin, took, calls = clock(), 0.0, 0
    while took < LEAST:
        result = call()
        calls += 1
        took = clock() - begin
    return took / calls, result


def at_fault(record: dict[str, Any]) -> bool:
    """Return whether our result was wrong."""
    return any(words.startswith(OURS_AT_FAULT) for words in record["differ"].values())


def said(record: dict[str, Any]) -> str:
    """Return the figures of a record on one line."""
    ours = f"{record['seconds'][OURS] * 1e3:>10.3f} ms"
    theirs = [
        f"  {name} {ratio:.2f}" + (f" ({words})" if (words := record["differ"][name]) else "")
        for name, ratio in record["ratios"].items()
    ]
    beside = busy(record["others"]) if record["measure"] == "wall" else ""
    return ours + "".join(theirs) + (f"  {beside}" if beside else "")


def summary(
    records: list[dict[str, Any]],
    left_out: dict[Cell, str],
    reasons: dict[str, str],
    wanted: int,
) -> list[str]:
    """Return the paragraphs that end the command, in Markdown."""
    missing = wanted - len(records) - len(left_out)
    lines = [
        report.heading(),
        f"{len(records)} of {wanted} cells are measured, {len(left_out)} are left out, "
        f"{missing} wait for a run with more --budget and the same --json. A ratio is the peer's time / ours.",
    ]
    lines += [f"{name} does not run here: {reason}" for name, reason in reasons.items()]
    for measure, peer in itertools.product(CLOCKS, MODULES):
        of = [r for r in records if r["measure"] == measure and peer in r["ratios"]]
        if of:
            lines += part(of, measure, peer)
    if left_out:
        lines += ["## Left out", report.markdown(unmeasured(left_out), left=4)]
    return lines


def part(records: list[dict[str, Any]], measure: str, peer: str) -> list[str]:
    """Return the paragraphs on one measure and peer."""
    heads = ["job", "n", "cells", "mean", "of same work", "below 1.5", "below 1", "worst"]
    rows = [[*heads, "results that differ"]]
    for job in JOBS:
        mine = [r for r in records if r["job"] == job]
        for n in sorted({r["n"] for r in mine}):
            rows.append([job, f"{n:,}", *figures([r for r in mine if r["n"] == n], peer)])
    rows.append(["all", "", *figures(records, peer)])
    worst = sorted(records, key=lambda r: r["ratios"][peer])[:10]
    heads = ["job", "data", "dtype", "n", "d", "k", "ratio", "ours ms", "theirs ms", "rounds"]
    beside = sum(bool(busy(r["others"])) for r in records) if measure == "wall" else 0
    losses = [[*heads, "results that differ"]]
    for r in worst:
        sizes = (r["job"], r["data"], r["dtype"], f"{r['n']:,}", str(r["d"]), str(r["k"]))
        seconds = (f"{r['seconds'][name] * 1e3:.3f}" for name in (OURS, peer))
        ratio, rounds = f"{r['ratios'][peer]:.2f}", str(r["rounds"])
        losses.append([*sizes, ratio, *seconds, rounds, r["differ"][peer]])
    return [
        f"## {chart.label(peer)}, {chart.MEASURES[measure]}",
        report.markdown(rows),
        *([f"{beside} cells were measured beside other processes."] if beside else []),
        f"The {len(worst)} worst cells:",
        report.markdown(losses, left=3),
    ]


def figures(records: list[dict[str, Any]], peer: str) -> list[str]:
    """Return what a line of the summary says of some cells."""
    ratios = [r["ratios"][peer] for r in records]
    same = [r["ratios"][peer] for r in records if same_work(r["differ"][peer])]
    below = [
        sum(ratio < bound for ratio in ratios) / len(ratios) for bound in (chart.WANTED, chart.EVEN)
    ]
    apart = [r["dtype"] for r in records if r["differ"][peer]]
    return [
        str(len(ratios)),
        f"{chart.geometric_mean(ratios):.2f}",
        f"{chart.geometric_mean(same):.2f}" if same else "",
        *(f"{share:.0%}" for share in below),
        f"{min(ratios):.2f}",
        f"{len(apart)} ({apart.count('float32')} in float32)" if apart else "",
    ]


def unmeasured(left_out: dict[Cell, str]) -> list[list[str]]:
    """Return a table of what is left out: why, and for each job, n and dtype the d and k."""
    groups: dict[tuple[str, ...], dict[int, set[int]]] = {}
    for cell, why in left_out.items():
        group = groups.setdefault((cell.job, f"{cell.n:,}", cell.dtype, why), {})
        group.setdefault(cell.d, set()).add(cell.k)
    table = [["job", "n", "dtype", "why", "d: k"]]
    for group, shapes in sorted(groups.items()):
        named = (f"{d}: {', '.join(map(str, sorted(ks)))}" for d, ks in sorted(shapes.items()))
        table.append([*group, "; ".join(named)])
    return table


def as_json(
    records: list[dict[str, Any]], left_out: dict[Cell, str], reasons: dict[str, str]
) -> dict[str, Any]:
    """Return the records as a report."""
    absent = [dataclasses.asdict(cell) | {"why": why} for cell, why in left_out.items()]
    return {"command": "map", "not_run": reasons, "left_out": absent, "results": records}
