"""Stage: the tests of the Triton kernels, of which only a device can say that they are right there."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec

from benchmarks.gpu.day.record import Day

FILES = ("tests/test_triton.py", "tests/test_triton_seeding.py")
WORKERS = 8


def run(day: Day) -> None:
    """Note the status of pytest and its last words; a report of all tests is beside the results."""
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail", "8", "-p", "no:cacheprovider"]
    command += [f"--junitxml={day.out / 'tests.xml'}", *(FILES[:1] if day.small else FILES)]
    # A few of them, to try the stage.
    command += ["-k", "why_it_cannot_run"] if day.small else []
    if find_spec("xdist") is not None and not day.small:
        command += ["-n", str(WORKERS)]
    if (
        find_spec("hypothesis") is None
    ):  # which these tests can do without, but not what all tests share
        command += ["--noconftest"]
    log = day.out / "pytest.txt"
    with log.open("w") as file:
        tests = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, process_group=0)
        try:
            status: int | str = tests.wait(max(day.left, 1))
        except subprocess.TimeoutExpired:
            os.killpg(tests.pid, signal.SIGKILL)
            tests.wait()
            status = "out of time"
    day.note(status=status, command=command[2:], said=log.read_text(errors="replace")[-6000:])
