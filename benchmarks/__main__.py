"""The referee: anykmeans and its peers, side by side.

Each command says more with --help. Nothing is installed or downloaded: peers that cannot be imported
are named with the reason, and rows whose data is not there are skipped.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import chart, cpu, gpu, growth, load, small

COMMANDS = {"cpu": cpu, "gpu": gpu, "growth": growth, "small": small, "load": load, "chart": chart}


def shared() -> argparse.ArgumentParser:
    """Return the options that all measuring commands have; each sets its own defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="timed rounds (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    return parser


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in COMMANDS.items():
        about = command.__doc__ or ""
        sub = commands.add_parser(
            name,
            help=about.partition("\n")[0],
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[] if command is chart else [shared()],
        )
        command.options(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    options = parser().parse_args(arguments)
    if getattr(options, "repeats", 1) < 1:
        print("--repeats must be at least 1", file=sys.stderr)
        return 2
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
