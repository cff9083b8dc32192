"""One row: what everybody took for it, and what it is worth.

From the same start, a peer whose inertia ends more than 1e-3 above ours did not solve the same problem: it
is *invalid*. That is lenient, as their centroids are rounded to half precision after each iteration and
labels follow from scores that are rounded, too. How many labels are wrong for their centroids is told
beside it. Ours must be exact: no wrong label in the sample, the inertia that float64 finds, and the same
bits from a second run; else the whole row is invalid.
"""

import dataclasses
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.peers import FAST, Outcome, Peer
from benchmarks.gpu.rows import Row, Task
from benchmarks.peers import OURS
from benchmarks.referee import EXACT, SAMPLE, strays
from benchmarks.timing import Timings, alternate, wall

T = TypeVar("T")

GOALS = {OURS: 1.5, FAST: 2.0}
"""How many times as fast as the best valid peer ours want to be."""

WORSE = 1e-3
"""Inertias that are more above ours, relatively, are of other problems."""

WARM = 5
"""Iterations of the runs before the first round; the first of them loads and compiles."""

SCORES = 1 << 26
"""Numbers that the referee writes at once, float64."""


@dataclass(frozen=True)
class Line:
    """One implementation on one row: a line of the table. What is not known is None.

    Attributes
    ----------
    peer : str
        Who ran.
    first : float
        Seconds of the first call beyond those of the next: loading and compiling.
    call : float
        Milliseconds an iteration: the median whole call, by the iterations made.
    steady : float
        Milliseconds that one iteration more takes: calls of twice as many, less calls of as many.
    ratio, steady_ratio : float
        Those relative to ours.
    n_iter : float
        Iterations, the mean of the problems.
    inertia, difference : float
        Of the centroids, in float64, and by how much it is above ours, relatively.
    stray : int
        Labels of a sample that are not of the nearest centroid.
    same : bool
        Whether a second run gave the same bits.
    peak : int
        Bytes by which memory peaked above the rows and the start.
    fault : str
        Why its time is not compared, or why it did not run; empty if it is.
    remark : str
        What else to know.
    """

    peer: str
    first: float | None = None
    call: float | None = None
    steady: float | None = None
    ratio: float | None = None
    steady_ratio: float | None = None
    n_iter: float | None = None
    inertia: float | None = None
    difference: float | None = None
    stray: int | None = None
    same: bool | None = None
    peak: int | None = None
    fault: str = ""
    remark: str = ""


@dataclass(frozen=True)
class Result:
    """All lines of one row, and the floor: milliseconds an iteration for products and for reading."""

    row: Row
    compute: float
    read: float
    rounds: int
    lines: list[Line]

    @property
    def floor(self) -> float:
        """The milliseconds an iteration that neither can be done without."""
        return max(self.compute, self.read)

    def line(self, name: str) -> Line | None:
        """Return the line of one implementation."""
        return next((line for line in self.lines if line.peer == name), None)

    def best(self, *, valid: bool) -> Line | None:
        """Return the fastest peer's line, of the valid ones or of all, or None."""
        return min(
            (
                line
                for line in self.lines
                if line.call and not line.peer.startswith(OURS) and not (valid and line.fault)
            ),
            key=lambda line: line.call,
            default=None,
        )

    def speedup(self, name: str, *, valid: bool = True) -> float | None:
        """Return how many times as long as one of ours the best peer takes."""
        ours, best = self.line(name), self.best(valid=valid)
        return best.call / ours.call if ours and ours.call and best else None

    def met(self, name: str) -> bool:
        """Return whether one of ours, at no fault, is as much faster than the best valid peer as it wants to be."""
        ours, speedup = self.line(name), self.speedup(name)
        return bool(ours and not ours.fault and speedup and speedup >= GOALS[name])


def events(run: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds between the device's events before and after a run, and its result."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    result = run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, result


def measure(
    row: Row,
    peers: dict[str, Peer],
    device: str,
    *,
    repeats: int,
    budget: float,
    floor: tuple[float, float],
) -> Result:
    """Return the times and the findings of all peers on a row, in about `budget` seconds.

    A peer that would take more than half of the budget for one round, or fails, is left out, and said so.
    """
    task = row.task(device)
    clock = events if task.x.is_cuda else wall
    lines = {name: Line(name) for name, peer in peers.items() if row.dtype in peer.dtypes}
    for name in lines:
        lines[name] = _warmed(name, peers[name], task, clock, budget / 2)
    runs = {name: peers[name] for name, line in lines.items() if not line.fault}
    if not runs:
        return Result(row, *floor, 0, list(lines.values()))

    def times(max_iter: int, cap: float) -> Timings[Outcome]:
        """Return what calls of so many iterations took."""
        longer = dataclasses.replace(task, max_iter=max_iter)
        fits = {name: partial(peer.fit, longer) for name, peer in runs.items()}
        return alternate(fits, repeats, cap, clock)

    calls = times(task.max_iter, budget / 3)
    twice = times(2 * task.max_iter, budget * 2 / 3)
    for name in runs:
        outcome = calls.results[name]
        more = twice.results[name].n_iter - outcome.n_iter
        longer = 1e3 * (twice.median(name) - calls.median(name))
        lines[name] = dataclasses.replace(
            lines[name],
            call=1e3 * calls.median(name) / outcome.n_iter,
            # None where all stood still before; where noise is all there is, too.
            steady=longer / more if more > 0 and longer > 0 else None,
            n_iter=outcome.n_iter,
        )
    for name, line in _judged(task, runs, calls.results).items():
        lines[name] = dataclasses.replace(lines[name], **line)
    return Result(row, *floor, calls.rounds, _compared(list(lines.values())))


def _warmed(name: str, peer: Peer, task: Task, clock: Callable, most: float) -> Line:
    """Return the line of a peer that has run, or why it takes no part."""
    remark = peer.remarks.get(str(task.x.dtype).removeprefix("torch."), "")
    short = partial(peer.fit, dataclasses.replace(task, max_iter=WARM))
    try:
        (first, _), (second, _) = clock(short), clock(short)
    except Exception as error:  # noqa: BLE001 - each fails in its own way, and the others run on
        traceback.print_exc(file=sys.stderr)
        said = (str(error).strip() or "no message").splitlines()[0]
        return Line(name, fault=f"did not run: {type(error).__name__}: {said}", remark=remark)
    round_ = 3 * task.max_iter / WARM * second
    late = f"did not run: a round would take {round_:.0f} s" if round_ > most else ""
    return Line(name, first=max(0.0, first - second), fault=late, remark=remark)


def _judged(
    task: Task, runs: dict[str, Peer], outcomes: dict[str, Outcome]
) -> dict[str, dict[str, Any]]:
    """Return what is found about each outcome by itself."""
    b, n, _ = task.x.shape
    sample = torch.from_numpy(np.random.default_rng(0).permutation(n)[: -(-SAMPLE // b)])
    rows = host(task.x[:, sample.to(task.x.device)].double())
    findings = {}
    for name, peer in runs.items():
        outcome = outcomes[name]
        labels = peer.labels(task, outcome, sample.to(outcome.labels.device))
        stray = sum(map(strays, rows, host(outcome.centroids.double()), host(labels)))
        true = sum(map(inertia, task.x, outcome.centroids))
        same, peak = _again(peer, task, outcome)
        fault = ""
        if name == OURS and stray:
            fault = (
                f"{stray} labels of {rows.shape[0] * rows.shape[1]} are not of the nearest centroid"
            )
        elif name == OURS and not same:
            fault = "a second run gave other bits"
        elif name == OURS and abs(outcome.inertia - true) > EXACT * true:
            fault = f"its inertia is {true}, not {outcome.inertia}"
        findings[name] = {
            "inertia": true,
            "stray": stray,
            "same": same,
            "peak": peak,
            "fault": fault,
        }
    return findings


def _again(peer: Peer, task: Task, outcome: Outcome) -> tuple[bool, int | None]:
    """Return whether a run gives the same bits again, and by how many bytes the device's memory peaks."""
    before = 0
    if task.x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    again = peer.fit(task)
    peak = torch.cuda.max_memory_allocated() - before if task.x.is_cuda else None
    equal = [
        torch.equal(getattr(again, part), getattr(outcome, part))
        for part in ("centroids", "labels")
    ]
    return all(equal) and again.inertia == outcome.inertia, peak


def inertia(x: torch.Tensor, centroids: torch.Tensor) -> float:
    """Return the sum of squared distances of rows (n, d) to the nearest of the centroids (k, d).

    From products in float64, of what is left when the mean of the centroids is taken off.
    """
    c = centroids.to(x.device, torch.float64)
    middle = c.mean(dim=0)
    c = c - middle
    norms = c.square().sum(dim=1)
    total = 0.0
    for rows in x.split(max(1, SCORES // max(c.shape))):
        y = rows.double() - middle
        least = torch.addmm(norms, y, c.T, alpha=-2).amin(dim=1)
        total += float((least + y.square().sum(dim=1)).clamp(min=0).sum())
    return total


def host(a: torch.Tensor) -> NDArray:
    """Return a tensor as an array of NumPy."""
    return a.cpu().numpy()


def _compared(lines: list[Line]) -> list[Line]:
    """Return the lines with all that is relative to ours."""
    ours = lines[0]
    if ours.call is None:
        return [
            dataclasses.replace(line, fault=line.fault or f"{OURS} did not run") for line in lines
        ]
    return [_against(line, ours) if line.call else line for line in lines]


def _against(line: Line, ours: Line) -> Line:
    """Return a line with what is relative to ours."""
    difference = line.inertia / ours.inertia - 1
    fault = f"{OURS}: {ours.fault}" if ours.fault else ""
    if not fault and not difference <= WORSE:  # nor if it is not a number
        fault = f"inertia {difference:.0e} above ours"
    return dataclasses.replace(
        line,
        ratio=line.call / ours.call,
        steady_ratio=line.steady / ours.steady if line.steady and ours.steady else None,
        difference=difference,
        fault=fault,
    )
