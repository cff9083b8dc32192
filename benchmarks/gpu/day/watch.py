"""Whole calls watched from outside: which kernels each pass launches, how long they take, and what they leave open.

Nothing of what a pass consists of is known here: whatever is launched meanwhile is timed, under its name.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.day.clock import Clock

LAUNCH = 0.15
"""Milliseconds that the host takes to launch a kernel, at most: so much the device is kept busy before."""


@dataclass
class Pass:
    """One pass: all of it, and, if it was looked into, its kernels.

    Attributes
    ----------
    begin, end : mark
        Of a clock.
    host : float
        Milliseconds that the host took to launch it.
    launches : list of (str, tuple, mark, mark)
        Name and grid, and marks around it; none if the pass is timed as a whole.
    state : tensor or None
        Of the problems, before the kernel that ends the pass.
    moved : tensor or None
        The share of labels that are others than before the pass.
    """

    begin: Any = None
    end: Any = None
    host: float = 0.0
    launches: list[tuple[str, tuple[int, ...], Any, Any]] = field(default_factory=list)
    state: torch.Tensor | None = None
    moved: torch.Tensor | None = None


class Watch:
    """Watches the passes of the calls that are made within it.

    Every second pass is looked into, kernel by kernel, the first of them among these; the others run as they
    would, but for the marks around them. All launches are as the first, which Triton looks at.

    Parameters
    ----------
    clock : Clock
        Of the device.
    """

    def __init__(self, clock: Clock) -> None:
        self.passes: list[Pass] = []
        self.kernels: dict[str, dict[str, Any]] = {}
        self._clock = clock
        self._now: Pass | None = None
        self._busy = 10

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what is launched meanwhile."""
        from triton.runtime.interpreter import InterpretedFunction
        from triton.runtime.jit import JITFunction

        from anykmeans.kernels.triton import device, passes

        with contextlib.ExitStack() as stack:
            for kind in (JITFunction, InterpretedFunction):
                stack.enter_context(mock.patch.object(kind, "run", self._timed(kind.run)))
            whole = self._watched(passes.Passes._pass)
            stack.enter_context(mock.patch.object(passes.Passes, "_pass", whole))
            # All launches go by way of Triton's `run`.
            stack.enter_context(mock.patch.object(device, "captured", lambda launch: launch))
            stack.enter_context(mock.patch.object(device, "_TAKES_ALL", False))
            yield

    def _timed(self, run: Any) -> Any:
        """Return a launch that is timed if the pass is looked into."""

        def timed(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
            now, clock = self._now, self._clock
            if now is None or clock.capturing():
                return run(kernel, *arguments, grid=grid, warmup=warmup, **options)
            named = dict(zip(kernel.arg_names, arguments, strict=False)) | options
            if kernel.__name__ == "advance" and "state" in named:  # which clears what is counted
                now.state = named["state"].clone()
            begin = clock.mark()
            made = run(kernel, *arguments, grid=grid, warmup=warmup, **options)
            shape = tuple(grid(named) if callable(grid) else grid)
            now.launches.append((kernel.__name__, shape, begin, clock.mark()))
            self._about(kernel.__name__, made, named)
            return made

        return timed

    def _about(self, name: str, made: Any, named: dict[str, Any]) -> None:
        """Keep what a kernel takes, and the constants it was made with."""
        if name not in self.kernels:
            sizes = {key: v for key, v in named.items() if isinstance(v, int | float | bool | None)}
            takes = {key: getattr(made, key, None) for key in ("n_regs", "n_spills")}
            shared = getattr(getattr(made, "metadata", None), "shared", None)
            self.kernels[name] = takes | {"shared": shared, "sizes": sizes}

    def _watched(self, whole: Any) -> Any:
        """Return a pass that is watched."""

        def watched(problems: Any) -> None:
            clock, made = self._clock, Pass()
            if clock.capturing():
                whole(problems)
                return
            inside = len(self.passes) % 2 == 0
            before = problems.labels.clone() if inside and self.passes else None
            if inside:
                clock.ahead(LAUNCH * self._busy)
                self._now = made
            made.begin, begun = clock.mark(), time.perf_counter()
            whole(problems)
            made.host, made.end = 1e3 * (time.perf_counter() - begun), clock.mark()
            self._now = None
            if before is not None:
                made.moved = (problems.labels != before).to(torch.float32).mean()
            if inside:
                self._busy = len(made.launches)
            self.passes.append(made)

        return watched

    def summaries(self, rows: int) -> list[dict[str, Any]]:
        """Return what was seen of each pass over so many rows in all, once all of it is done."""
        return [self._summary(made) | self._open(made, rows) for made in self.passes]

    def _summary(self, made: Pass) -> dict[str, Any]:
        """Return the milliseconds of a pass, or of its kernels: how many launches of each, and their sum."""
        total = self._clock.between(made.begin, made.end)
        if not made.launches:
            return {"whole": total, "host": made.host}
        kernels: dict[str, list[Any]] = {}
        for name, grid, begin, end in made.launches:
            seen = kernels.setdefault(name, [0, 0.0, grid])
            seen[0] += 1
            seen[1] += self._clock.between(begin, end)
        return {"kernels": kernels, "inside": total}

    @staticmethod
    def _open(made: Pass, rows: int) -> dict[str, Any]:
        """Return the shares of rows whose labels scores left open, and of labels that changed."""
        from anykmeans.kernels.triton import screen

        found: dict[str, Any] = {}
        if made.state is not None:
            found["open"] = float(made.state[:, screen.OPEN.value].sum()) / rows
        if made.moved is not None:
            found["moved"] = float(made.moved)
        return found
