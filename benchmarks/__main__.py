"""Time kmeans against its peers, side by side, and print a table.

Every clustering starts from the same centres with tol=0 and the same limit of iterations. A ratio
above 1 means that anykmeans is faster.
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import anykmeans
from benchmarks.peers import OURS, PEERS
from benchmarks.referee import compare, initial_centres
from benchmarks.rows import ROWS

DATA_VARIABLE = "ANYKMEANS_DATA"
COLUMNS = "{:<16}{:>8}{:>5}{:>5}{:>9}  {:<19}{:>9}{:>9}{:>7}{:>10}{:>15}{:>15}  {}"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=default_data(),
        help=f"folder of .npz files (default: ${DATA_VARIABLE}, or ../shared/data if it exists); "
        "rows whose file is not there are skipped",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["*"],
        metavar="NAME",
        help='rows to run, as "name" or "name-k", * allowed; one of: '
        + ", ".join(f"{row.name}-{row.k}" for row in ROWS),
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        default=["sklearn"],
        choices=[name for name in PEERS if name != OURS],
        help="what to compare with (default: sklearn)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table there")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    return options


def default_data() -> Path | None:
    """Return the data folder that the environment names, or None."""
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return beside if beside.is_dir() else None


def environment() -> dict[str, str | int | None]:
    """Return what the numbers depend on."""
    return {
        "python": platform.python_version(),
        "anykmeans": anykmeans.__version__,
        **{name: version(name) for name in ("numpy", "scipy", "scikit-learn")},
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; return 1 if a row was invalid or none ran."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    wanted = [
        row
        for row in ROWS
        if any(
            fnmatch.fnmatch(name, pattern)
            for pattern in options.rows
            for name in (row.name, f"{row.name}-{row.k}")
        )
    ]
    if not wanted:
        print(f"no row is called {' or '.join(options.rows)}", file=sys.stderr)
        return 1

    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"medians of {options.repeats} alternating runs; ratio = peer / anykmeans\n")
    heads = ("data", "n", "d", "k", "dtype", "peer", "ours s", "peer s", "ratio", "iter", "")
    print(COLUMNS.format(*heads[:10], "our inertia", "peer inertia", "").rstrip())

    runs = {name: PEERS[name]() for name in (OURS, *options.peers)}
    records = []
    for row in wanted:
        try:
            x = row.load(options.data)
        except FileNotFoundError as error:
            print(f"{row.name:<16}skipped: {error}")
            continue
        centres = initial_centres(x, row.k)
        for verdict in compare(runs, x, centres, row.max_iter, options.repeats):
            n, d = x.shape
            shape = {"data": row.name, "n": n, "d": d, "k": row.k, "dtype": str(x.dtype)}
            print(
                COLUMNS.format(
                    *shape.values(),
                    verdict.peer,
                    f"{verdict.our_seconds:.3f}",
                    f"{verdict.seconds:.3f}",
                    f"{verdict.ratio:.2f}",
                    f"{verdict.our_n_iter}/{verdict.n_iter}",
                    f"{verdict.our_inertia:.8g}",
                    f"{verdict.inertia:.8g}",
                    verdict.note,
                ).rstrip(),
                flush=True,
            )
            records.append(shape | dataclasses.asdict(verdict) | {"valid": verdict.valid})

    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"environment": about, "repeats": options.repeats, "results": records}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if records and all(record["valid"] for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
