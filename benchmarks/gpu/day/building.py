"""Stage: compile the kernels of all rows at once, on as many cores as there are, before the device is asked for any."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks.gpu.day.record import Day
from benchmarks.gpu.rows import ROWS
from benchmarks.report import cores


def run(day: Day) -> None:
    """Note the seconds that each row took."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        day.note(skipped="interpreted kernels are not compiled")
        return
    names = [row.name for row in day.rows()][::-1]  # those of most numbers first
    begun = time.monotonic()
    # Spawned, as threads of PyTorch do not survive a fork.
    with ProcessPoolExecutor(min(cores(), len(names)), get_context("spawn")) as pool:
        futures = [pool.submit(built, name, day.small) for name in names]
        for name, future in zip(names, futures, strict=True):
            with day.guarded(row=name):
                launches, seconds = future.result()
                day.note(row=name, launches=launches, seconds=round(seconds, 1))
    day.note(seconds=round(time.monotonic() - begun, 1))


def built(name: str, small: bool) -> tuple[int, float]:
    """Compile what a row launches; return how many launches those are, and the seconds."""
    from benchmarks.gpu.compiled import of_row

    begun = time.monotonic()
    row = next(row for row in ROWS if row.name == name)
    launches, _ = of_row(row.small() if small else row)
    return len(launches), time.monotonic() - begun
