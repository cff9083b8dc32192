"""Stage: choices of the library's own kernels against others, in whole calls: what `docs/tuning.md` has no measurement of."""

from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from anykmeans.kernels.triton import device, marginals, passes, resolve, screen
from benchmarks.gpu.day.clock import Clock
from benchmarks.gpu.day.passes import call
from benchmarks.gpu.day.record import Day
from benchmarks.gpu.rows import ROWS, Row, Task

PASSES = 10
ALL = {row.name: row for row in ROWS} | {
    "d64": Row("d64", 1, 1 << 20, 64, 1024, "float32", 20),
    "d32": Row("d32", 1, 1 << 21, 32, 256, "float32", 20),
}
_SHAPE = marginals.shape


def constants(module: Any, **new: Any) -> Any:
    """Return a context in which a module has other constants."""
    return mock.patch.multiple(module, **new)


def options(kernel: Any, **new: Any) -> Any:
    """Return a context in which a kernel is launched with other options."""
    run = kernel.run
    return mock.patch.object(kernel, "run", lambda *a, **named: run(*a, **(named | new)))


def shape(**new: Any) -> Any:
    """Return a context in which marginals are compiled for another shape."""
    made = {name: value for name, value in new.items() if value is not None}
    left = {name for name, value in new.items() if value is None}

    def other(lanes: int, width: int) -> dict[str, Any]:
        found = _SHAPE(lanes, width) | made
        return {name: value for name, value in found.items() if name not in left}

    return constants(marginals, shape=other)


def _narrow(rows: int, regs: int | None, stages: int) -> list[Any]:
    return [constants(marginals, ROWS=rows), shape(num_warps=4, STAGES=stages, maxnreg=regs)]


def _few(rows: int, warps: int, regs: int | None) -> list[Any]:
    return [constants(screen, ROWS=rows), options(screen.screen, num_warps=warps, maxnreg=regs)]


def variants(row: str) -> dict[str, list[Any]]:
    """Return what to try with a row: contexts by name."""
    found: dict[str, list[Any]] = {"as it is": []}
    if row == "3":
        found["128 lanes"] = [constants(marginals, lanes=lambda k: 128)]
    if row.startswith("d"):
        for rows, regs, stages in ((64, None, 2), (64, None, 3), (64, 128, 2), (128, None, 2)):
            found[f"{rows} rows, {regs} registers, {stages} stages"] = _narrow(rows, regs, stages)
    if row in "3457":
        found["resolve: 4 warps"] = [options(resolve.resolve, num_warps=4)]
        found["blocks: 4"] = [constants(passes, _BLOCKS=4)]
        for tile in (2048, 4096):
            of = constants(resolve, COMPARED=tile, MANY=tile // 128)
            found[f"resolve: tile of {tile}"] = [of]
        for lanes in (32, 128):
            found[f"resolve: {lanes} lanes"] = [constants(resolve, LANES=lanes)]
    if row == "8":
        for rows, warps, regs in ((128, 4, 128), (128, 4, None), (64, 4, 128), (256, 8, 128)):
            found[f"screen: {rows} rows, {warps} warps, {regs} registers"] = _few(rows, warps, regs)
    return found


def run(day: Day) -> None:
    """Note milliseconds of a call, and of a launch of each kernel in it."""
    for name in ("4", "5", "3", "d64", "8", "7", "d32"):
        if day.names and name not in day.names:
            continue
        row = ALL[name].small() if day.small else ALL[name]
        task = row.task(day.device)
        for what, contexts in variants(name).items():
            if day.left < 0:
                day.note(row=name, variant=what, skipped="no time is left")
                continue
            with day.guarded(row=name, variant=what), ExitStack() as stack:
                # Or kernels would be found by what they were launched with before.
                stack.enter_context(constants(device, _TAKES_ALL=False))
                for context in contexts:
                    stack.enter_context(context)
                day.note(row=name, variant=what, **timed(task, 2 if day.small else PASSES))


def timed(task: Task, count: int) -> dict[str, Any]:
    """Return what a call takes, its launches, and its inertia, which no variant may change."""
    clock = Clock(task.x.is_cuda)
    made = call(task, count, None)  # compiles
    taken = clock.median(lambda: call(task, count, None))
    found: dict[str, Any] = {"call": taken, "inertia": float(torch.as_tensor(made.inertia).sum())}
    if task.x.is_cuda:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            call(task, count, None)
            clock.wait()
        names = ("prepare", "screen", "resolve", "accumulate", "means")
        found["kernels"] = {
            each.key: each.device_time_total / 1e3 / each.count
            for each in seen.key_averages()
            if each.key.startswith(names)
        }
    return found
