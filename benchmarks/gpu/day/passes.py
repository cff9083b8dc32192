"""Stage: every kernel in every second pass of each row, and the passes between as they are."""

import gc
import time
import warnings
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.day.clock import Clock
from benchmarks.gpu.day.record import BANDWIDTH, TFLOPS, Day
from benchmarks.gpu.day.watch import Watch
from benchmarks.gpu.rows import Row, Task

BUDGETS = (None, 16 << 30)
"""Bytes that a call may take: as it is by default, and so much that all rows are kept in half precision."""


def run(day: Day) -> None:
    """Note the passes of each row while time lasts, quick rows first."""
    for row in day.rows():
        task = None
        for budget in BUDGETS:
            if day.left < 0:
                day.note(row=row.name, budget=budget, skipped="no time is left")
                continue
            with day.guarded(row=row.name, budget=budget):
                task = task or row.task(day.device)
                found = profiled(row, task, budget, 2 if day.small else None)
                day.note(row=row.name, budget=budget, **found)
                if day.small or not found["rounded"]:
                    break
        task = None
        gc.collect()
        if day.on_gpu:
            torch.cuda.empty_cache()


def profiled(row: Row, task: Task, budget: int | None, most: int | None = None) -> dict[str, Any]:
    """Return what the passes of one call took, milliseconds; all kernels have been compiled before."""
    clock = Clock(task.x.is_cuda)
    floor = max(row.floor(TFLOPS, BANDWIDTH))
    # As many as are telling, fewer where one takes long.
    count = min(row.max_iter, most or int(np.clip(260 / floor, 4, 20)))
    if task.x.is_cuda:  # where the first launch compiles
        call(task, 1, budget)
        clock.wait()
    watch = Watch(clock)
    with watch.watching():
        begun = time.perf_counter()
        call(task, count, budget)
        clock.wait()
        spent = 1e3 * (time.perf_counter() - begun)
    passes = watch.summaries(row.b * row.n)
    return {
        "floor": floor,
        "call": spent,
        "passes": passes,
        "kernels": watch.kernels,
        "rounded": any("round_rows" in each.get("kernels", {}) for each in passes),
    }


def call(task: Task, passes: int, budget: int | None) -> Any:
    """Cluster as the table of rows does, with the Triton kernels, which may be interpreted."""
    from anykmeans import kmeans

    batch = len(task.x) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kmeans(
            task.x if batch else task.x[0],
            task.k,
            init=task.init if batch else task.init[0],
            max_iter=passes,
            tol=0,
            empty="keep",
            kernel="triton",
            max_bytes=budget,
        )
