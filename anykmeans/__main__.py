"""What is done from a shell: ``python -m anykmeans compile``."""

from __future__ import annotations

import argparse
import sys
import time

from anykmeans.kernels.compiled import folder


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of a command."""
    parser = argparse.ArgumentParser(prog="python -m anykmeans", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "compile",
        help="compile all that is compiled, and keep it on disk: for images and CI, so that no first call waits",
    )
    parser.parse_args(arguments)
    from anykmeans._compile import compile_all

    since = time.perf_counter()
    try:
        calls = compile_all()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"compiled by {calls} calls in {time.perf_counter() - since:.0f} s, in {folder('numba')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
