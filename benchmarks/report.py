"""What every report says: where it was measured, and how it is written down."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy",
    "scipy",
    "numba",
    "scikit-learn",
    "scikit-learn-intelex",
    "faiss-cpu",
    "superkmeans",
)


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, str | int | None]:
    """Return what the numbers depend on."""
    import anykmeans  # not above, as it may have to be installed first

    return {
        "python": platform.python_version(),
        "anykmeans": anykmeans.__version__,
        **{name: installed(name) for name in packages},
        "processor": processor(),
        "cores": cores(),
    }


def installed(name: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the processor, as well as it can be known."""
    about = Path("/proc/cpuinfo")
    if about.is_file():
        for line in about.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def heading(about: Mapping[str, Any] | None = None) -> str:
    """Return the environment on one line."""
    return ", ".join(
        f"{name} {value or 'none'}" for name, value in (about or environment()).items()
    )


def absent(reasons: dict[str, str]) -> None:
    """Say which peers do not run, and why."""
    for name, reason in reasons.items():
        print(f"{name} does not run here: {reason}")


def write(file: Path | None, report: dict[str, Any]) -> None:
    """Write a report as JSON, if there is a file to write to; it may bring an environment of its own."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"environment": environment()} | report, indent=2)
        part = file.with_name(f"{file.name}.part")  # so that who is stopped leaves what was there
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(file)


def table(rows: list[list[str]], left: int = 1) -> str:
    """Return rows of cells as aligned text: the first `left` columns and the last to the left."""
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if j < left or j == last else cell.rjust(width)
            for j, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def markdown(rows: list[list[str]], left: int = 1) -> str:
    """Return rows of cells as a table in Markdown, the first `left` columns and the last to the left."""
    last = len(rows[0]) - 1
    rule = ["---" if j < left or j == last else "--:" for j in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:]))
