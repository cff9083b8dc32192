"""The referee: anykmeans and its peers, side by side.

Each command says more with --help. Nothing is installed or downloaded: peers that cannot be imported
are named with the reason, and rows whose data is not there are skipped.
"""

import argparse
import importlib
import sys
from pathlib import Path

COMMANDS = (
    "cpu",
    "map",
    "gpu",
    "growth",
    "small",
    "load",
    "index",
    "constrained",
    "torch",
    "chart",
)


def shared() -> argparse.ArgumentParser:
    """Return the options that all measuring commands have; each sets its own defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--repeats", type=int, metavar="N", help="timed rounds (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    return parser


def parser(named: str | None = None) -> argparse.ArgumentParser:
    """Return the command line: of the command `named` alone, or of all.

    Others are not imported, as they may need what is not there.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name in (named,) if named in COMMANDS else COMMANDS:
        command = importlib.import_module(f"benchmarks.{name}")
        about = command.__doc__ or ""
        sub = commands.add_parser(
            name,
            help=about.partition("\n")[0],
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[] if name == "chart" else [shared()],
        )
        command.options(sub)
        sub.set_defaults(run=command.run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser(*arguments[:1]).parse_args(arguments)
    if getattr(options, "repeats", 1) < 1:
        print("--repeats must be at least 1", file=sys.stderr)
        return 2
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())
