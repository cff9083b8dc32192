"""One stage of the day, in this process: `python -m benchmarks.gpu.day STAGE --out DIR`."""

import argparse
import sys
from pathlib import Path

from benchmarks.gpu import day
from benchmarks.gpu.day.record import Day


def main(arguments: list[str] | None = None) -> int:
    """Run the stage; it writes its own records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.day", description=__doc__)
    parser.add_argument("stage", choices=list(day.STAGES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rows", type=lambda text: text.split(","))
    parser.add_argument("--seconds", type=float, default=60.0)
    o = parser.parse_args(arguments)
    o.out.mkdir(parents=True, exist_ok=True)
    day.stage(Day(o.stage, o.out, o.device, o.small, o.rows, o.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
