"""Peak memory of one clustering, in a process of its own.

`python -m benchmarks.memory JSON` is that process: it loads x, warms the peer up on a part of it, notes
what it holds, clusters, and prints by how many bytes the peak rose above that. Libraries, compiled
code and threads are loaded by then and not counted; x is not counted either, a copy of it is.
"""

import dataclasses
import json
import subprocess
import sys
import warnings
from ctypes import CDLL
from pathlib import Path

from benchmarks.peers import PEERS, Task
from benchmarks.rows import ROWS

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def peak(row: str, dtype: str, peer: str, mode: str, data: Path | None) -> int:
    """Return by how many bytes the memory of a fresh process peaks while it clusters.

    Raises
    ------
    RuntimeError
        If the process failed.
    """
    request = {"row": row, "dtype": dtype, "peer": peer, "mode": mode, "data": data and str(data)}
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(request)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise RuntimeError(f"{peer} on {row} failed:\n{run.stderr}")
    return int(run.stdout.split()[-1])


def measure(row: str, dtype: str, peer: str, mode: str, data: str | None) -> int:
    """Return by how many bytes this process peaks while it clusters."""
    wanted = next(each for each in ROWS if each.name == row)
    x = wanted.x(data and Path(data), dtype)
    task = task_of(mode, x, wanted.k, wanted.max_iter)
    run = PEERS[peer].make()
    n, d = x.shape
    few = min(n, max(2 * wanted.k, (1 << 18) // d))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(dataclasses.replace(task, x=x[:few], max_iter=3))
        trim()
        before = held()
        run(task)
    return highest() - before


def task_of(mode: str, x: object, k: int, max_iter: int) -> Task:
    """Return the task of a mode, "given" or "default"."""
    return Task.given(x, k, max_iter) if mode == "given" else Task(x, k)


def held() -> int:
    """Return the bytes this process holds now, and let the peak begin anew where that can be done."""
    try:
        RESET.write_text("5", encoding="ascii")
        return status("VmRSS")
    except OSError:
        # The peak so far stands in for what is held: it can only make the growth look smaller.
        return highest()


def highest() -> int:
    """Return the bytes this process held at its peak."""
    if STATUS.is_file():
        return status("VmHWM")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def status(field: str) -> int:
    """Return a field of this process's status, in bytes."""
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def trim() -> None:
    """Give freed memory back to the system, where malloc can: what is kept would hide growth."""
    if sys.platform == "linux":
        release = getattr(CDLL(None), "malloc_trim", None)
        if release is not None:
            release(0)


if __name__ == "__main__":
    print(measure(**json.loads(sys.argv[1])))
