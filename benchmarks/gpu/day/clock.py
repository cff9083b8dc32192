"""Time on the device, or, to try the code, on the host."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


class Clock:
    """Marks in the order of launches, and the milliseconds between them.

    Parameters
    ----------
    on_gpu : bool
        Whether the device is to be asked.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu

    def mark(self) -> Any:
        """Return a mark after all that has been launched."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Return the milliseconds between two marks that have been reached."""
        return first.elapsed_time(last) if self._on_gpu else 1e3 * (last - first)

    def wait(self) -> None:
        """Wait until all that has been launched is done."""
        if self._on_gpu:
            torch.cuda.synchronize()

    def capturing(self) -> bool:
        """Return whether what is launched goes into a graph, where nothing has a time."""
        return self._on_gpu and torch.cuda.is_current_stream_capturing()

    def ahead(self, milliseconds: float) -> None:
        """Keep the device busy about so long, for the host to get ahead: a launch must not be timed by its caller."""
        if self._on_gpu and hasattr(torch.cuda, "_sleep"):
            torch.cuda._sleep(int(milliseconds * 1.8e6))

    def median(self, run: Callable[[], object], warm: int = 10, spent: int = 40) -> float:
        """Return the median milliseconds of a run, from a cold cache, measured for about `spent` milliseconds."""
        if self._on_gpu:
            from triton.testing import do_bench

            return do_bench(run, warmup=warm, rep=spent, return_mode="median")
        times = []
        for _ in range(2):
            begun = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - begun))
        return statistics.median(times)
