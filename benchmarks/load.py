"""Show how fits behave where they are not alone: beside busy cores, in pools, with one thread.

Part "busy" times a fit on a quiet machine and beside one spinning process a core, in alternation. Part
"pools" runs the same fits one by one and two at a time. Its column "threads" says how many threads of
the process and its workers wanted a core at once, on average and at most; "cpu" is the seconds that
they worked. More threads than cores is oversubscription; cpu above that of one by one is its price.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import peers, report
from benchmarks.growth import structured
from benchmarks.peers import PEERS, Task, ready
from benchmarks.timing import Timings, alternate, busy

SIZE, K, ITERATIONS = 200_000, 64, 20
FITS, WORKERS = 8, 2
LOOK = 0.005
"""Seconds between two looks at the threads."""

PROC = Path("/proc")


def options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    peers.options(parser)
    parser.add_argument("--parts", nargs="+", default=["busy", "pools"], choices=["busy", "pools"])
    parser.set_defaults(repeats=5)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark; return 0."""
    runs, reasons = ready(options.peers)
    print(report.heading())
    report.absent(reasons)
    print(
        f"{ITERATIONS} iterations from the same centres, n = {SIZE}, d = 8, k = {K}, float32, on "
        f"{report.cores()} cores\n"
    )
    records: dict[str, Any] = {"command": "load", "not_run": reasons}
    if "busy" in options.parts:
        records["busy"] = beside_busy_cores(list(runs), options.repeats)
    if "pools" in options.parts:
        if PROC.is_dir():
            records["pools"] = in_pools(list(runs))
        else:
            print("pools skipped: threads are counted in /proc, which is not here")
    report.write(options.json, records)
    return 0


def task() -> Task:
    """Return the clustering that all parts run."""
    return Task.given(structured(SIZE, "float32"), K, ITERATIONS)


def once(name: str, task: Task) -> None:
    """Run a peer; a function of a module, so that worker processes find it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it stops at its number of iterations by design
        PEERS[name].make()(task)


def beside_busy_cores(names: list[str], repeats: int) -> list[dict[str, Any]]:
    """Print and return how much longer each peer takes while every core is kept busy."""
    fits = {name: partial(once, name, task()) for name in names}
    alternate(fits, 1)  # to warm up
    seconds: dict[str, dict[str, list[float]]] = {name: {"quiet": [], "busy": []} for name in names}
    others = []
    for _ in range(repeats):
        quiet = alternate(fits, 1)
        with spinning():
            loaded = alternate(fits, 1)
        others.append(quiet.others or 0.0)
        for name in names:
            seconds[name]["quiet"] += quiet.seconds[name]
            seconds[name]["busy"] += loaded.seconds[name]
    said = busy(max(others))
    print(f"{'':<20}{'quiet s':>10}{'busy s':>10}{'busy / quiet':>14}  {said}".rstrip())
    records = []
    for name in names:
        timings: Timings[None] = Timings(seconds[name], {})
        record = {which: timings.median(which) for which in seconds[name]}
        record["factor"] = timings.ratio("busy", "quiet")
        print("{:<20}{quiet:>10.3f}{busy:>10.3f}{factor:>14.2f}".format(name, **record))
        records.append({"peer": name} | record)
    print()
    return records


@contextmanager
def spinning() -> Iterator[None]:
    """Keep every core busy with a process of its own."""
    code = "while True: pass"
    spinners = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(report.cores())]
    try:
        time.sleep(0.3)  # until they spin
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def one_by_one(fit: Callable[[], None]) -> None:
    """Run the fits in turn."""
    for _ in range(FITS):
        fit()


def thread_pool(fit: Callable[[], None]) -> None:
    """Run the fits two at a time, in threads."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(fit) for _ in range(FITS)]:
            done.result()


def joblib(fit: Callable[[], None], backend: str) -> None:
    """Run the fits two at a time, as joblib does."""
    from joblib import Parallel, delayed

    Parallel(n_jobs=WORKERS, backend=backend)(delayed(fit)() for _ in range(FITS))


PLACES: dict[str, tuple[Callable[[Callable[[], None]], None], dict[str, str]]] = {
    "one by one": (one_by_one, {}),
    "OMP_NUM_THREADS=1": (one_by_one, {"OMP_NUM_THREADS": "1"}),
    "ThreadPoolExecutor": (thread_pool, {}),
    "joblib threading": (partial(joblib, backend="threading"), {}),
    "joblib loky": (partial(joblib, backend="loky"), {}),
}


def in_pools(names: list[str]) -> list[dict[str, Any]]:
    """Print and return what the fits take in each place, in a fresh process each."""
    heads = ("peer", f"{FITS} fits", "wall s", "cpu s", "threads: mean", "most")
    print("{:<20}{:<24}{:>8}{:>8}{:>15}{:>6}".format(*heads))
    records = []
    for name in names:
        for place, (_, variables) in PLACES.items():
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.load", place, name],
                cwd=Path(__file__).parents[1],
                env=os.environ | variables,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                record = {"failed": done.stderr.strip().rpartition("\n")[2]}
                cells = f"  FAILED: {record['failed']}"
            else:
                record = json.loads(done.stdout.splitlines()[-1])
                cells = "{wall:>8.2f}{cpu:>8.2f}{mean:>15.1f}{most:>6}".format(**record)
            print(f"{name:<20}{place:<24}{cells}", flush=True)
            records.append({"peer": name, "place": place} | record)
    return records


def watched(place: str, name: str) -> dict[str, float]:
    """Return what the fits take in one place: wall and cpu seconds, and threads at once."""
    go, _ = PLACES[place]
    fit = partial(once, name, task())
    go(fit)  # to load libraries, compile and start workers
    family = [os.getpid(), *children(os.getpid())]
    over = threading.Event()
    counts: list[int] = []

    def look() -> None:
        while not over.wait(LOOK):
            counts.append(sum(running(process) for process in family) - 1)  # this one runs too

    watcher = threading.Thread(target=look)
    worked = sum(map(cpu_seconds, family))
    begin = time.perf_counter()
    watcher.start()
    go(fit)
    over.set()
    wall = time.perf_counter() - begin
    watcher.join()
    worked = sum(map(cpu_seconds, family)) - worked
    mean = sum(counts) / max(1, len(counts))
    return {"wall": wall, "cpu": worked, "mean": mean, "most": max(counts, default=0)}


def fields(stat: Path) -> list[str]:
    """Return the fields of a process or thread from its state on, none if it has gone."""
    try:
        # Its name comes before, in brackets, and may hold anything.
        return stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def children(parent: int) -> list[int]:
    """Return the processes that the given one has started."""
    processes = [int(each.name) for each in PROC.iterdir() if each.name.isdigit()]
    return [one for one in processes if fields(PROC / str(one) / "stat")[1:2] == [str(parent)]]


def running(process: int) -> int:
    """Return how many threads of a process run or wait for a core."""
    stats = (PROC / str(process) / "task").glob("*/stat")
    return sum(fields(stat)[:1] == ["R"] for stat in stats)


def cpu_seconds(process: int) -> float:
    """Return the seconds that a process has worked, in all its threads."""
    user, system = map(int, fields(PROC / str(process) / "stat")[11:13])
    return (user + system) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    print(json.dumps(watched(*sys.argv[1:])))
