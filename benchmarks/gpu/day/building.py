"""Stage: compile the kernels of all rows at once, on as many cores as there are, before the device is asked for any."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from benchmarks.gpu.compiled import Launch, of_row
from benchmarks.gpu.day.record import Day
from benchmarks.gpu.rows import ROWS
from benchmarks.report import cores


def run(day: Day) -> None:
    """Note the seconds that each row took, its launches, and how many launchers were built."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        day.note(skipped="interpreted kernels are not compiled")
        return
    names = [row.name for row in day.rows()][::-1]  # those of most numbers first
    begun = time.monotonic()
    # Spawned, as threads of PyTorch do not survive a fork.
    with ProcessPoolExecutor(min(cores(), len(names)), get_context("spawn")) as pool:
        futures = [pool.submit(built, name, day.small, day.on_gpu) for name in names]
        for name, future in zip(names, futures, strict=True):
            with day.guarded(row=name):
                launches, launchers, seconds = future.result()
                day.note(row=name, launches=launches, launchers=launchers, seconds=seconds)
    day.note(seconds=round(time.monotonic() - begun, 1))


def built(name: str, small: bool, on_gpu: bool) -> tuple[int, int | str, float]:
    """Compile what a row launches; return how many launches those are, how many launchers, and the seconds."""
    begun = time.monotonic()
    row = next(row for row in ROWS if row.name == name)
    launches, _ = of_row(row.small() if small else row)
    made = launchers(launches) if on_gpu else "they need a driver"
    return len(launches), made, round(time.monotonic() - begun, 1)


def launchers(launches: list[Launch]) -> int | str:
    """Build what launches the kernels, which Triton has a C compiler do for each kind of arguments; or say why not."""
    from triton.backends.nvidia.driver import CudaLauncher

    kernels = {launch.kernel.hash: launch.kernel for launch in launches}
    try:
        for kernel in kernels.values():
            CudaLauncher(kernel.src, kernel.metadata)
    except Exception as error:  # noqa: BLE001 - those missing are built at the first launch
        return f"{type(error).__name__}: {str(error)[:200]}"
    return len(kernels)
