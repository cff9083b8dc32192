"""Stage: whole calls as the table of rows times them, and where the host's time goes in them."""

import cProfile
import io
import pstats
import time
import warnings
from typing import Any

import torch

from benchmarks.gpu.day.clock import Clock
from benchmarks.gpu.day.record import Day
from benchmarks.gpu.rows import Task

ROWS = ("2", "4", "3", "8")
CALLS = 3


def run(day: Day) -> None:
    """Note the times of a few calls of each row, the host's functions, and the device's kernels."""
    for row in day.rows(ROWS):
        if day.left < 0:
            day.note(row=row.name, skipped="no time is left")
            continue
        with day.guarded(row=row.name):
            day.note(row=row.name, **timed(row.task(day.device)))


def fit(day: Day) -> None:
    """Cluster each row once, for a program that looks on."""
    from benchmarks.gpu.day.passes import call

    for row in day.rows():
        call(row.task(day.device), 3, None)


def timed(task: Task) -> dict[str, Any]:
    """Return milliseconds of calls, the first one apart, and what they consist of."""
    from benchmarks.gpu.peers import AnyKMeans

    peer, clock = AnyKMeans(), Clock(task.x.is_cuda)
    times = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(1 + CALLS):
            begun = time.perf_counter()
            outcome = peer.fit(task)
            clock.wait()
            times.append(1e3 * (time.perf_counter() - begun))
        profile = cProfile.Profile()
        profile.runcall(lambda: (peer.fit(task), clock.wait()))
        kernels = on_device(lambda: peer.fit(task)) if task.x.is_cuda else None
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(16)
    return {
        "first": times[0],
        "calls": times[1:],
        "n_iter": outcome.n_iter,
        "host": text.getvalue()[-2600:],
        "kernels": kernels,
    }


def on_device(call: Any) -> list[tuple[str, int, float]]:
    """Return the kernels of a call by name: how many, and their milliseconds in all, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    kernels = [
        (each.key[:60], each.count, each.device_time_total / 1e3) for each in seen.key_averages()
    ]
    return sorted(kernels, key=lambda each: -each[2])[:16]
