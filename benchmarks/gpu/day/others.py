"""Stages: the peers, by the table of rows; and the device's own counters, by Nsight Compute if it is there."""

import shutil
import subprocess
import sys

from benchmarks.gpu.day.record import Day

PEERS = "flash_kmeans,flashlib,torch"
ROWS = ("4", "2", "7", "1", "3", "5")
COUNTED = ("4", "9")
KERNELS = "regex:screen|resolve|accumulate"


def peers(day: Day) -> None:
    """Note the tables of ours and the peers, a row at a time; the numbers are in files beside the results."""
    chosen = {row.name for row in day.rows(ROWS)}
    for name in (name for name in ROWS if name in chosen):
        if day.left < 10:
            day.note(row=name, skipped="no time is left")
            continue
        command = [sys.executable, "-m", "benchmarks", "gpu", "--rows", name, "--peers", PEERS]
        command += ["--budget", "12", "--repeats", "3", "--device", day.device]
        command += ["--json", str(day.out / f"row{name}.json")]
        command += ["--small"] if day.small else []
        with day.guarded(row=name):
            made = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=day.left
            )
            said = {"out": made.stdout[-5000:], "err": made.stderr[-1500:]}
            day.note(row=name, status=made.returncode, **said)


def counters(day: Day) -> None:
    """Note how it went; what Nsight Compute counts of the kernels of a pass is in files beside the results."""
    program = shutil.which("ncu")
    if program is None:
        day.note(skipped="ncu is not here")
        return
    for row in day.rows(COUNTED):
        command = [program, "--clock-control", "none", "--set", "full", "-k", KERNELS]
        command += ["--launch-skip", "4", "--launch-count", "4", "--csv", "--page", "raw"]
        one = Day("fit", day.out, day.device, day.small, [row.name], day.seconds)
        command += [sys.executable, "-m", "benchmarks.gpu.day", *one.arguments()]
        with day.guarded(row=row.name):
            made = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=max(day.left, 1)
            )
            (day.out / f"ncu{row.name}.csv").write_text(made.stdout[-15_000_000:])
            day.note(row=row.name, status=made.returncode, err=made.stderr[-800:])
