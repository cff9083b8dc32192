"""What a day has recorded, as tables in Markdown: `python -m benchmarks.gpu.day.tables DIR [--rule]`.

With --rule the sweep's kernels are compiled again, here, and their times are held against what is counted in them.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.gpu import day
from benchmarks.gpu.table import number

Records = list[dict[str, Any]]

BEST = 8
"""Tiles of each shape that are shown."""

MULTIPROCESSORS, HERTZ = 132, 1.8e9
"""Unless the day says otherwise."""


def passes(records: Records) -> str:
    """Return a line for each row: milliseconds of a pass, of its kernels, and of the host, once it has settled."""
    cells = [["row", "budget", "floor", "whole", "host", "kernels", "open, moved", "by kernel"]]
    for each in records:
        if each["stage"] != "passes" or "passes" not in each:
            continue
        whole = [one for one in each["passes"] if "whole" in one]
        inside = [one["kernels"] for one in each["passes"] if "kernels" in one]
        settled = inside[len(inside) // 2 :]  # in the first passes most labels change
        kernels = {
            name: statistics.median(one[name][1] for one in settled if name in one)
            for name in settled[-1]
        }
        shares = [one for one in each["passes"] if "kernels" in one][-1]
        cells.append(
            [
                each["row"],
                str(each["budget"] or ""),
                number(each["floor"]),
                number(statistics.median(one["whole"] for one in whole)) if whole else "",
                number(statistics.median(one["host"] for one in whole)) if whole else "",
                number(sum(kernels.values())),
                ", ".join(number(shares.get(name)) for name in ("open", "moved")),
                ", ".join(f"{name} {number(value)}" for name, value in kernels.items()),
            ]
        )
    return report.markdown(cells, left=2)


def tiles(records: Records) -> str:
    """Return the fastest kernels of each shape, and the library's own."""
    scored = [each for each in records if "tflops" in each and "shape" in each]
    cells = [
        ["shape", "stage", "tile", "ms", "TFLOP/s", "wrong", "gap off", "registers", "spilled"]
    ]
    for shape in dict.fromkeys(each["shape"] for each in scored):
        of_shape = sorted((e for e in scored if e["shape"] == shape), key=lambda each: each["ms"])
        shown = [e for i, e in enumerate(of_shape) if i < BEST or e.get("kernel") == "own"]
        for each in shown:
            made = each.get("job") or each.get("tile") or {"kernel": each["kernel"]}
            tile = " ".join(f"{name}={value}" for name, value in made.items() if value is not None)
            numbers = [each.get(name) for name in ("ms", "tflops", "wrong", "gap_off")]
            takes = [str(each.get(name, "")) for name in ("n_regs", "n_spills")]
            cells.append([shape, each["stage"], tile, *map(number, numbers), *takes])
    return report.markdown(cells, left=3)


def variants(records: Records) -> str:
    """Return whole calls and launches of the library's own kernels, as they are and otherwise."""
    cells = [["row", "variant", "call", "by kernel"]]
    for each in records:
        if each["stage"] == "variants" and "call" in each:
            kernels = each.get("kernels", {}).items()
            by = ", ".join(f"{name} {number(value)}" for name, value in kernels)
            cells.append([each["row"], each["variant"], number(each["call"]), by])
    return report.markdown(cells, left=2)


def constants(records: Records) -> str:
    """Return the constants, one a line."""
    cells = [["what", "of", "value", "assumed"]]
    for each in records:
        if each["stage"] == "constants" and ("value" in each or "worst" in each):
            known = ("stage", "at", "what", "value", "worst", "assumed")
            of = ", ".join(f"{name} {value}" for name, value in each.items() if name not in known)
            value, assumed = each.get("value", each.get("worst")), each.get("assumed")
            cells.append([each["what"], of, number(value), number(assumed)])
    return report.markdown(cells, left=2)


def wrong(records: Records) -> str:
    """Return what did not go well."""
    lines = []
    for each in filter(day.failed, records):
        what = {
            name: v for name, v in each.items() if name not in ("at", "traceback", "said", "out")
        }
        lines.append(f"- {json.dumps(what, default=str)[:600]}")
    return "\n".join(lines) or "nothing"


def rule(records: Records, hertz: float = HERTZ) -> dict[str, tuple[dict[str, float], float, int]]:
    """Return for each mode of the sweep what a cycle of issue, of the ALUs and of the tensor cores counts for in its time.

    And by how much times are off from that at most, relatively, and of how many kernels. By (1) of docs/gpu.md those
    of the ALUs and of the tensor cores count one each, and those of issue nothing.
    """
    from benchmarks.gpu import compiled, sass
    from benchmarks.gpu.day import scores, sweep

    shapes = scores.SHAPES | scores.SMALL
    seen: dict[str, list[list[float]]] = {}
    with compiled.compile_only() as made:
        for each in records:
            if each["stage"] != "sweep" or "ms" not in each:
                continue
            job = sweep.Job(**each["job"])
            n, d, k = shapes[each["shape"]]
            sweep.tried(job, n)
            kernel = made[-1].kernel
            cost = sass.cost(kernel, job.rows, job.lanes)
            blocks, many = -(-n // job.rows), k // job.lanes
            spent = each["ms"] / 1e3 * hertz * MULTIPROCESSORS / blocks
            outside = cost.outside * job.warps / 4
            issue, alu = cost.cycles(job.warps)
            tensor = job.rows * job.lanes * d / 2048
            name = f"{job.mode}{' whole' if job.whole else ''}"
            seen.setdefault(name, []).append([(spent - outside) / many, issue, alu, tensor])
    found = {}
    for name, lines in seen.items():
        measured, *counted = np.asarray(lines).T
        columns = np.stack(counted, axis=1)
        # Relative errors are what counts.
        factors, *_ = np.linalg.lstsq(columns / measured[:, None], np.ones(len(lines)), rcond=None)
        off = float(np.abs(columns @ factors / measured - 1).max())
        names = ("issue", "alu", "tensor")
        found[name] = (dict(zip(names, map(float, factors), strict=True)), off, len(lines))
    return found


def text(records: Records) -> str:
    """Return all tables."""
    parts = {
        "Wrong": wrong,
        "Passes": passes,
        "Variants": variants,
        "Tiles": tiles,
        "Constants": constants,
    }
    return "\n\n".join(f"## {title}\n\n{part(records)}" for title, part in parts.items())


def main(arguments: list[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.day.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="DIR", help="where results are")
    parser.add_argument("--rule", action="store_true", help="also fit the rule of docs/gpu.md")
    options = parser.parse_args(arguments)
    records = day.records(options.out / "results.jsonl")
    print(text(records))
    if options.rule:
        clocks = [
            e["value"] for e in records if str(e.get("what")).startswith("clock") and "value" in e
        ]
        print("\n## Rule\n")
        for name, (factors, off, many) in rule(
            records, 1e6 * clocks[-1] if clocks else HERTZ
        ).items():
            said = " + ".join(f"{value:.2f} {pipe}" for pipe, value in factors.items())
            print(f"- {name}: {said}, of {many} kernels, within {off:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
