"""Stage: the tests of the Triton kernels, of which only a device can say that they are right there."""

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

from benchmarks.gpu.day.record import Day

FILES = ("tests/test_triton.py", "tests/test_triton_seeding.py")
WORKERS = 8

_ENDED = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")
_FAILED = re.compile(r"(?:FAILED|ERROR) (tests/\S+)|(tests/\S+) (?:FAILED|ERROR)")


def run(day: Day) -> None:
    """Note pytest's status, how tests ended, and its last words; a report of all tests is beside the results."""
    log = day.out / "pytest.txt"
    with log.open("w") as file:
        tests = subprocess.Popen(
            command(day), stdout=file, stderr=subprocess.STDOUT, process_group=0
        )
        status = ended(tests, day.left)
    said = log.read_text(errors="replace")
    progress = said.partition("= FAILURES")[0].partition("= short test summary")[0]
    day.note(
        status=status,
        tests=Counter(_ENDED.findall(progress)),
        failed=["".join(names) for names in _FAILED.findall(progress)][:40],
        said=said[-6000:],
    )


def command(day: Day) -> list[str]:
    """Return how to run the tests: all of them on a few processes, or few of them to try the stage."""
    made = [sys.executable, "-m", "pytest", "-v", "--tb=short", "--maxfail=8"]
    # A plugin for timing warns that it does not like many processes, and warnings are errors here.
    made += ["-p", "no:cacheprovider", "-p", "no:benchmark", f"--junitxml={day.out / 'tests.xml'}"]
    if (
        find_spec("hypothesis") is None
    ):  # which these tests do without, but not what all tests share
        made += ["--noconftest"]
    if day.small:
        return [*made, *FILES[:1], "-k", "why_it_cannot_run"]
    if find_spec("xdist") is not None:
        made += ["-n", str(WORKERS)]
    return [*made, *FILES]


def ended(tests: subprocess.Popen[bytes], seconds: float) -> int | str:
    """Return the status of the tests once they end, or are told to because time is over."""
    for wait, tell in ((seconds - 4, signal.SIGINT), (4, signal.SIGKILL)):
        try:
            status = tests.wait(max(wait, 1))
        except subprocess.TimeoutExpired:
            os.killpg(tests.pid, tell)
        else:
            return status if tell == signal.SIGINT else "out of time"
    return "out of time"
