"""What a stage is told, and where it writes what it finds."""

import contextlib
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.rows import Row

TFLOPS, BANDWIDTH = 790.0, 4.3
"""For floors: of an H200, as everywhere in these benchmarks."""


@dataclass(frozen=True)
class Day:
    """One stage of a day.

    Attributes
    ----------
    stage : str
        Its name.
    out : Path
        The folder of results.
    device : str
        "cuda" or "cpu".
    small : bool
        Whether to try it on small rows.
    names : list of str, optional
        Rows to look at; by default the stage chooses.
    seconds : float
        After which it is stopped.
    begun : float
        When it was made.
    """

    stage: str
    out: Path
    device: str = "cuda"
    small: bool = False
    names: list[str] | None = None
    seconds: float = 60.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def on_gpu(self) -> bool:
        """Whether there is a device to ask."""
        return self.device.startswith("cuda")

    @property
    def left(self) -> float:
        """Seconds until it is stopped, less what the last record takes."""
        return self.begun + self.seconds - 5 - time.monotonic()

    def note(self, **what: Any) -> None:
        """Append a record."""
        record = {"stage": self.stage, "at": round(time.time(), 2)} | what
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, default=str) + "\n")

    @contextlib.contextmanager
    def guarded(self, **what: Any) -> Iterator[None]:
        """Make a record of what is raised meanwhile, which `what` was tried, and go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the device may raise anything, and the rest is to be seen
            said = f"{type(error).__name__}: {str(error)[:500]}"
            self.note(**what, error=said, traceback=traceback.format_exc(limit=-5)[-3000:])

    def rows(self, default: tuple[str, ...] | None = None) -> list["Row"]:
        """Return the rows to look at: those named, those that the stage chooses, or all, the quickest first."""
        from benchmarks.gpu.rows import ROWS

        names = self.names or default
        chosen = [row for row in ROWS if names is None or row.name in names]
        chosen = [row.small() if self.small else row for row in chosen]
        return sorted(chosen, key=lambda row: max(row.floor(TFLOPS, BANDWIDTH)))

    def arguments(self, stage: str | None = None) -> list[str]:
        """Return the command line of a process that runs it, or another stage alike."""
        made = [stage or self.stage, "--out", str(self.out), "--device", self.device]
        made += ["--seconds", str(self.seconds)]
        made += ["--small"] if self.small else []
        return made + (["--rows", ",".join(self.names)] if self.names else [])
