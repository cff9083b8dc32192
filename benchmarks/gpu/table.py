"""What is printed: a table in Markdown, fit for benchmarks/results/, and the same numbers as JSON."""

import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks import report
from benchmarks.gpu.measure import GOALS, Line, Result
from benchmarks.gpu.rows import Row

LEGEND = """\
`call` is the median time of a whole call divided by its iterations, `steady` what one iteration more takes (a call of
twice as many iterations, less a call of as many); both in ms. `ratio` is theirs / ours, of each. `of floor` is how much of
that time the machine could not have saved: products at {tflops:g} TFLOP/s or one reading of the rows at {bandwidth:g} TB/s,
whichever takes longer (given numbers, not measured here). `inertia` is that of the returned centroids in float64, `+/-` how much it is
above ours; `wrong` counts sampled labels that are not of the nearest centroid in float64, ties aside; `same bits` says
whether a second run repeated them. `peak` is memory above the rows, `first` what the first call took longer. Empty clusters stay where
they are (fastkmeans and faiss move them).
"""

HEADS = (
    *("", "call", "ratio", "of floor", "steady", "ratio", "of floor", "iter", "inertia", "+/-"),
    *("wrong", "same bits", "peak MiB", "first s", ""),
)


def title(about: dict[str, Any], machine: dict[str, float], not_run: dict[str, str]) -> str:
    """Return how the document begins: where, when, what the columns are, and who is missing."""
    details = {name: value for name, value in about.items() if name not in ("device", "date")}
    return "\n".join(
        [
            f"# {about['device']}, {about['date']}\n",
            f"{report.heading(details)}.\n",
            LEGEND.format(**machine),
            *(f"- {name} does not run here: {reason}" for name, reason in not_run.items()),
        ]
    )


def section(result: Result) -> str:
    """Return the lines of one row."""
    row = result.row
    about = (
        f"Floor {number(result.floor)} ms an iteration (products {number(result.compute)}, reading "
        f"{number(result.read)}); medians of {result.rounds} rounds."
    )
    cells = [list(HEADS), *(line_cells(line, result) for line in result.lines)]
    heading = f"## {row.name}: {row}, {row.max_iter} iterations"
    return f"{heading}\n\n{about}\n\n{report.markdown(cells)}"


def line_cells(line: Line, result: Result) -> list[str]:
    """Return the cells of one line."""
    notes = [line.fault if line.call is None else f"INVALID: {line.fault}"] if line.fault else []
    if line.remark:
        notes.append(line.remark)

    def share(ms: float | None) -> str:
        return f"{result.floor / ms:.0%}" if ms else ""

    return [
        line.peer,
        number(line.call),
        number(line.ratio),
        share(line.call),
        number(line.steady),
        number(line.steady_ratio),
        share(line.steady),
        "" if line.n_iter is None else f"{line.n_iter:g}",
        "" if line.inertia is None else f"{line.inertia:.8g}",
        "" if not line.difference else f"{line.difference:+.0e}",
        "" if line.stray is None else str(line.stray),
        "" if line.same is None else "yes" if line.same else "NO",
        "" if line.peak is None else f"{line.peak / 2**20:.0f}",
        "" if line.first is None else f"{line.first:.1f}",
        "; ".join(notes),
    ]


def summary(results: list[Result]) -> str:
    """Return the goals: a line for each row and each of ours."""
    cells = [["row", "", "call", "best valid peer", "best of all", "goal", "met"]]
    found: dict[str, list[tuple[float, str]]] = {name: [] for name in GOALS}
    for result in results:
        for name, goal in GOALS.items():
            if ours := result.line(name):
                best = [named(result, name, valid=valid) for valid in (True, False)]
                met = "yes" if result.met(name) else "NO"
                cells.append([result.row.name, name, number(ours.call), *best, f"{goal:g}", met])
            if speedup := result.speedup(name):
                found[name].append((speedup, result.row.name))
    lines = ["## Goals", "", report.markdown(cells, left=2), ""]
    for name, speedups in found.items():
        if speedups:
            mean = math.exp(statistics.fmean(math.log(speedup) for speedup, _ in speedups))
            worst, where = min(speedups)
            lines.append(
                f"- {name}: geometric mean of best valid peer / ours {mean:.2f} over {len(speedups)} "
                f"rows, worst {worst:.2f} (row {where})"
            )
    return "\n".join(lines)


def named(result: Result, name: str, *, valid: bool) -> str:
    """Return the best peer's time over that of one of ours, and its name."""
    best, speedup = result.best(valid=valid), result.speedup(name, valid=valid)
    return f"{speedup:.2f} {best.peer}" if best and speedup else "none"


def number(value: float | None) -> str:
    """Return three digits, or nothing."""
    if value is None:
        return ""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def as_json(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Return the results as records, with what follows from them."""
    return [
        dataclasses.asdict(result)
        | {
            "met": {name: result.met(name) for name in GOALS if result.line(name)},
            "best_valid": best.peer if (best := result.best(valid=True)) else None,
            "best_of_all": best.peer if (best := result.best(valid=False)) else None,
        }
        for result in results
    ]


def from_json(records: Iterable[dict[str, Any]]) -> list[Result]:
    """Return the results that records were made of."""
    return [
        Result(
            Row(**record["row"]),
            record["compute"],
            record["read"],
            record["rounds"],
            [Line(**line) for line in record["lines"]],
        )
        for record in records
    ]
