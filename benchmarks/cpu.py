"""Time kmeans against its peers on the CPU, side by side, and print a table.

Mode "given" is a fixed number of iterations from the same centres with tol=0; mode "default" is end to
end as the libraries come, with one start by k-means++ from the same seed. A ratio is the peer's time
divided by ours: above 1 anykmeans is faster. benchmarks/referee.py says when times are not compared.
"""

import argparse
import dataclasses
import math
import statistics
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks import chart, floor, memory, peers, report, rows
from benchmarks.peers import OURS, PEERS, Run, ready
from benchmarks.referee import judge
from benchmarks.rows import Row
from benchmarks.timing import alternate, busy

FLOOR_FROM = 256
"""Number of clusters from which on the floor is to be beaten."""

WARM = 10
"""Iterations of the run before the first round: it loads libraries, compiles, starts threads."""

COLUMNS = "{:<15} {:<8} {:<8} {:<19}{:>10}{:>8}{:>6} {:>15} {:>9}{:>9}  {}"
MIB = 2**20


@dataclass(frozen=True)
class Line:
    """One run on one row: a line of the table.

    Attributes
    ----------
    peer : str
        Who ran.
    seconds : float
        Median over the rounds.
    ratio : float
        Median over the rounds of its seconds divided by ours.
    n_iter : int
        Iterations.
    inertia, difference : float
        Computed in float64, and by how much it is above ours, relatively.
    stray : int
        Labels of a sample that are not of the nearest centroid.
    fault : str
        Why its time is not compared with ours; empty if it is.
    peak : int, optional
        Bytes by which its memory peaked.
    """

    peer: str
    seconds: float
    ratio: float
    n_iter: int
    inertia: float
    difference: float
    stray: int
    fault: str
    peak: int | None = None


@dataclass(frozen=True)
class Result:
    """All runs on one row in one dtype and mode; ours is the first line.

    `floor` is the seconds of the matrix products of as many iterations as ours took, in the fastest
    round, and `floor_ratio` ours divided by it; None in mode "default", which seeds as well.
    `others` is the share of the machine that other processes had.
    """

    row: str
    n: int
    d: int
    k: int
    dtype: str
    mode: str
    target: float
    rounds: int
    lines: list[Line]
    floor: float | None = None
    floor_ratio: float | None = None
    others: float | None = None

    def best(self, *, valid: bool) -> Line | None:
        """Return the fastest peer's line, of the valid ones or of all, or None."""
        others = [line for line in self.lines if not line.peer.startswith(OURS)]
        return min(
            (line for line in others if not (valid and line.fault)),
            key=lambda line: line.ratio,
            default=None,
        )

    @property
    def met(self) -> bool:
        """Whether ours is as much faster than the best valid peer as it wants to be."""
        best = self.best(valid=True)
        return best is not None and best.ratio >= self.target

    @property
    def hungry(self) -> bool | None:
        """Whether ours took more memory than scikit-learn's; None unless both were measured."""
        peaks = {line.peer: line.peak for line in self.lines}
        ours, theirs = peaks[OURS], peaks.get("sklearn")
        return None if ours is None or theirs is None else ours > theirs


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    rows.options(parser)
    peers.options(parser)
    parser.add_argument(
        "--modes", nargs="+", default=["given", "default"], choices=["given", "default"]
    )
    parser.add_argument(
        "--cap",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="no further round of a row after this time (default: 120)",
    )
    parser.add_argument(
        "--memory", action="store_true", help="measure peak memory too, each run in a fresh process"
    )
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the speed-ups there")
    parser.set_defaults(repeats=3)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark; return 1 if ours was at fault somewhere or nothing ran."""
    wanted = rows.chosen(options.rows)
    if not wanted:
        print(f"no row is called {' or '.join(options.rows)}", file=sys.stderr)
        return 1
    runs, reasons = ready(options.peers)
    print(report.heading())
    report.absent(reasons)
    print(
        f"Medians of up to {options.repeats} alternating rounds (fewer, and so said, past "
        f"{options.cap:g} s); ratio = seconds / ours; +/- = inertia above ours, relatively.\n"
    )
    heads = ("row", "dtype", "mode", "", "seconds", "ratio", "iter", "inertia", "+/-", "peak MiB")
    print(COLUMNS.format(*heads, "").rstrip())

    results: list[Result] = []
    for row in wanted:
        for dtype in options.dtypes:
            try:
                x = row.x(options.data, dtype)
            except FileNotFoundError as error:
                print(f"{row.name:<15} skipped: {error}")
                break
            fit = {name: go for name, go in runs.items() if dtype in PEERS[name].dtypes}
            for mode in options.modes:
                result = measure(row, x, mode, fit, options.repeats, options.cap)
                if options.memory:
                    result = with_memory(result, options.data)
                show(result, options.repeats)
                results.append(result)
                # After each, as the whole table takes long and may be stopped.
                report.write(options.json, as_json(results, reasons))
    if results:
        print("\n" + "\n".join(summary(results)))
    if options.chart and results:
        chart.speedups(as_json(results, reasons)["results"], options.chart)
    return 0 if results and not any(result.lines[0].fault for result in results) else 1


def measure(
    row: Row, x: NDArray, mode: str, runs: dict[str, Run], repeats: int, cap: float
) -> Result:
    """Return the times and the findings of all runs on x (n, d)."""
    n, d = x.shape
    task = memory.task_of(mode, x, row.k, row.max_iter)
    timed = {name: partial(go, task) for name, go in runs.items()}
    if mode == "given":
        timed[floor.NAME], passes = floor.run(x, task.init, row.max_iter)
    with warnings.catch_warnings():
        # Every run from given centres stops at max_iter by design, and each library says so.
        warnings.simplefilter("ignore")
        for go in runs.values():
            go(dataclasses.replace(task, max_iter=WARM))
        timings = alternate(timed, repeats, cap)
        outcomes = {name: timings.results[name] for name in runs}
        findings = judge(task, outcomes)

    lines = [
        Line(
            name,
            timings.median(name),
            timings.ratio(name, OURS),
            int(outcomes[name].n_iter),
            findings[name].inertia,
            findings[name].difference,
            findings[name].stray,
            findings[name].fault,
        )
        for name in runs
    ]
    about = (row.name, n, d, row.k, str(x.dtype), mode, row.target, timings.rounds)
    result = Result(*about, lines, others=timings.others)
    if mode == "given":
        # A floor is what can be done, so that its fastest round counts, against our usual one.
        least = min(timings.seconds[floor.NAME]) / passes * outcomes[OURS].n_iter
        result = dataclasses.replace(result, floor=least, floor_ratio=lines[0].seconds / least)
    return result


def with_memory(result: Result, data: Path | None) -> Result:
    """Return the result with the peak memory of every run."""
    lines = [
        dataclasses.replace(
            line, peak=memory.peak(result.row, result.dtype, line.peer, result.mode, data)
        )
        for line in result.lines
    ]
    return dataclasses.replace(result, lines=lines)


def show(result: Result, repeats: int) -> None:
    """Print the lines of one row."""
    where = (result.row, result.dtype, result.mode)
    for line in result.lines:
        notes = [f"INVALID: {line.fault}"] if line.fault else []
        if line.peer == OURS:
            if result.rounds < repeats:
                notes.append(f"slow: {result.rounds} of {repeats} rounds")
            if said := busy(result.others):
                notes.append(said)
            if result.hungry:
                notes.append("MORE MEMORY than scikit-learn")
        print(
            COLUMNS.format(
                *where,
                line.peer,
                f"{line.seconds:.3f}",
                f"{line.ratio:.2f}",
                line.n_iter,
                f"{line.inertia:.8g}",
                "" if line.peer == OURS else f"{line.difference:+.0e}",
                "" if line.peak is None else f"{line.peak / MIB:.1f}",
                "; ".join(notes),
            ).rstrip()
        )
    if result.floor is not None and result.floor_ratio is not None:
        note = f"ours / floor = {result.floor_ratio:.2f}"
        cells = (f"{result.floor:.3f}", f"{1 / result.floor_ratio:.2f}", "", "", "", "")
        print(COLUMNS.format(*where, floor.NAME, *cells, note).rstrip())
    valid, every = result.best(valid=True), result.best(valid=False)
    if every:
        said = f"{valid.ratio:.2f} ({valid.peer})" if valid else "none"
        also = "" if every is valid else f", of all {every.ratio:.2f} ({every.peer})"
        print(COLUMNS.format(*where, "-> best peer", *[""] * 6, f"valid: {said}{also}"))
    sys.stdout.flush()


def summary(results: list[Result]) -> list[str]:
    """Return the lines that end the table: one a row, and the goals of each mode."""
    heads = ["row", "dtype", "mode", "ours s", "best valid", "best of all", "ours/floor", "goal"]
    cells = [[*heads, "met"]]
    for result in results:
        pair = [result.best(valid=valid) for valid in (True, False)]
        cells.append(
            [
                result.row,
                result.dtype,
                result.mode,
                f"{result.lines[0].seconds:.3f}",
                *(f"{best.ratio:.2f} {best.peer}" if best else "none" for best in pair),
                f"{result.floor_ratio:.2f}" if result.floor_ratio else "",
                f"{result.target:g}",
                "yes" if result.met else "NO",
            ]
        )
    lines = [report.table(cells, left=3)]
    for mode in dict.fromkeys(result.mode for result in results):
        lines += ["", f"mode {mode}:"]
        lines += goals([result for result in results if result.mode == mode])
    return lines


def goals(results: list[Result]) -> list[str]:
    """Return how the results of one mode stand to the goals."""
    lines = []
    for kind, valid in (("valid", True), ("of all", False)):
        found = [(best.ratio, result) for result in results if (best := result.best(valid=valid))]
        if not found:
            lines.append(f"  best peer, {kind}: none on any row")
            continue
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio, _ in found))
        ratio, worst = min(found, key=lambda pair: pair[0])
        lines.append(
            f"  best peer, {kind}: geometric mean of best / ours {mean:.2f} over {len(found)} of "
            f"{len(results)} rows, worst {ratio:.2f} ({worst.row} {worst.dtype})"
        )
    met = sum(result.met for result in results)
    lines.append(f"  goal against the best valid peer met on {met} of {len(results)} rows")
    floors = [r.floor_ratio for r in results if r.floor_ratio and r.k >= FLOOR_FROM]
    if floors:
        below = sum(ratio < 1 for ratio in floors)
        lines.append(f"  below the floor on {below} of {len(floors)} rows with k >= {FLOOR_FROM}")
    if any(result.hungry is not None for result in results):
        hungry = [f"{result.row} {result.dtype}" for result in results if result.hungry]
        lines.append(f"  peak memory above scikit-learn's: {', '.join(hungry) or 'never'}")
    return lines


def as_json(results: list[Result], reasons: dict[str, str]) -> dict[str, Any]:
    """Return the results as a report."""
    records = []
    for result in results:
        record: dict[str, Any] = dataclasses.asdict(result) | {"met": result.met}
        for name, valid in (("best_valid", True), ("best_of_all", False)):
            best = result.best(valid=valid)
            record[name] = best and best.peer
        records.append(record)
    return {"command": "cpu", "not_run": reasons, "results": records}
