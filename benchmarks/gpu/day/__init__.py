"""A day with a GPU: all that a device is needed for, recorded in two short commands.

`python -m benchmarks gpu --day 1 --out DIR`, then `--day 2`. Each runs stages, one after the other, each in a
process of its own that ends after its time, whatever it does; and each stage appends what it finds to
DIR/results.jsonl at once, a record a line. So what stops a stage costs that stage alone. docs/gpu.md says what
each records and what follows from it. Nothing is imported here that the machine may lack.
"""

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.gpu.day.record import Day

ROOT = Path(__file__).parents[3]

LIMIT = 470.0
"""Seconds of a command at most."""

KEPT = Path(tempfile.gettempdir()) / "anykmeans-day"
"""Where one command leaves to the next what is not a result: compiled kernels, and packages."""


@dataclass(frozen=True)
class Stage:
    """A part of the day.

    Attributes
    ----------
    command : int
        Of which command it is a part; 0 if of none, but of another stage.
    seconds : float
        After which it is stopped.
    where : str
        Its module in this package, and the function there that is called with a `Day`.
    needs : {"", "triton", "kernels", "cuda"}
        What must be there: Triton, or a device or the interpreter to run its kernels, or a device.
    """

    command: int
    seconds: float
    where: str
    needs: str = ""

    def lacks(self, day: Day) -> str | None:
        """Return why it cannot be run, or None."""
        if self.needs == "cuda" and not day.on_gpu:
            return "there is nothing to try without a GPU"
        if self.needs and find_spec("triton") is None:
            return "triton is not installed"
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        if self.needs == "kernels" and not day.on_gpu and not interpreted:
            return "kernels run on a GPU, or with TRITON_INTERPRET=1"
        return None


STAGES = {
    "environment": Stage(1, 25, "environment:run"),
    "compile": Stage(1, 60, "building:run", "triton"),
    "tests": Stage(1, 100, "correctness:run", "kernels"),
    "passes": Stage(1, 60, "passes:run", "kernels"),
    "calls": Stage(1, 45, "calls:run"),
    "peers": Stage(1, 150, "others:peers"),
    "variants": Stage(2, 90, "variants:run", "kernels"),
    "constants": Stage(2, 40, "constants:run", "kernels"),
    "described": Stage(2, 35, "scores:described", "kernels"),
    "sweep": Stage(2, 120, "sweep:run", "kernels"),
    "counters": Stage(2, 60, "others:counters", "cuda"),
    # Last, as a kernel that hangs may keep the device.
    "warpgroups": Stage(2, 35, "scores:warpgroups", "cuda"),
    "wide": Stage(2, 30, "scores:wide", "cuda"),
    "fit": Stage(0, 60, "calls:fit", "kernels"),
}
"""What is run, in this order."""


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options that only the day has."""
    parser.add_argument(
        "--day",
        type=int,
        choices=sorted({stage.command for stage in STAGES.values()} - {0}),
        help="run the stages of this command of a day with a GPU instead; see docs/gpu.md",
    )
    parser.add_argument(
        "--stages",
        type=lambda text: text.split(","),
        metavar="NAME,NAME",
        help="of the day: these, whatever command they are of",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="of the day: where results go (default: day)"
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="of the day: packages to install, from there only",
    )


def run(options: argparse.Namespace) -> int:
    """Run the stages; return 1 if something went wrong."""
    names = options.stages or [n for n, stage in STAGES.items() if stage.command == options.day]
    if unknown := [name for name in names if name not in STAGES]:
        print(f"no stage is called {' or '.join(unknown)}", file=sys.stderr)
        return 1
    out = (options.out or Path("day")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    results, end = out / "results.jsonl", time.monotonic() + LIMIT
    before = len(records(results))
    site = KEPT / "site"
    if options.wheels is not None and (reason := installed(options.wheels, site)):
        Day("wheels", out).note(error=reason)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(site), str(ROOT), os.getenv("PYTHONPATH")])
        ),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(KEPT / "triton")),
    }
    for name in names:
        seconds = min(STAGES[name].seconds, end - time.monotonic())
        day = Day(name, out, options.device, options.small, options.rows, seconds)
        if reason := STAGES[name].lacks(day):
            day.note(skipped=reason)
        elif seconds < 5:
            day.note(skipped="no time is left")
        else:
            attempt(day, environment)
    print(shown(results))
    print(summary(out, environment))
    wrong = [each for each in records(results)[before:] if failed(each)]
    print(f"{len(wrong)} records say that something went wrong", file=sys.stderr)
    return int(bool(wrong))


def attempt(day: Day, environment: dict[str, str]) -> None:
    """Run a stage in a process of its own, and note how it ended."""
    log = day.out / f"{day.stage}.txt"
    command = [sys.executable, "-m", "benchmarks.gpu.day", *day.arguments()]
    begun = time.monotonic()
    with log.open("w") as file:
        # A group of its own, so that what it has started ends with it.
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
        try:
            status: int | str = process.wait(day.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)  # a driver may keep it, and is not waited for
            status = "out of time"
    said = "" if status == 0 else log.read_text(errors="replace")[-2000:]
    day.note(ended=status, seconds=round(time.monotonic() - begun, 1), said=said)
    print(f"{day.stage}: {status or 'done'}, {time.monotonic() - begun:.0f} s", flush=True)


def stage(day: Day) -> None:
    """Run one stage here; what it raises becomes a record."""
    module, function = STAGES[day.stage].where.split(":")
    with day.guarded():
        getattr(importlib.import_module(f"benchmarks.gpu.day.{module}"), function)(day)


def installed(wheels: Path, site: Path) -> str | None:
    """Install all wheels of a folder to `site`, asking nobody for more; return what pip had to say if it failed."""
    files = sorted(str(file) for file in wheels.glob("*.whl"))
    if not files:
        return f"no wheel is in {wheels}"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
    command = [*pip, "--no-cache-dir", "--upgrade", "--target", str(site), *files]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if made.returncode == 0 else (made.stdout + made.stderr)[-2000:]


def shown(results: Path, width: int = 300, most: int = 5000) -> str:
    """Return the last records, each cut to a line: what is left if the files should be lost."""
    lines = [line[:width] for line in results.read_text(encoding="utf-8").splitlines()]
    return "\n".join(lines)[-most:]


def summary(out: Path, environment: dict[str, str], most: int = 7000) -> str:
    """Return the tables of all that has been recorded, which may need what was installed."""
    command = [sys.executable, "-m", "benchmarks.gpu.day.tables", str(out)]
    try:
        made = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=environment,
            timeout=60,
        )
    except subprocess.TimeoutExpired:
        return "no tables were made in time"
    return (made.stdout or made.stderr[-1000:])[:most]


def records(results: Path) -> list[dict[str, Any]]:
    """Return the records of a day."""
    if not results.exists():
        return []
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def failed(record: dict[str, Any]) -> bool:
    """Return whether a record says that something went wrong."""
    return "error" in record or bool(record.get("ended")) or bool(record.get("status"))
