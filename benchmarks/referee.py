"""The judge of results: it trusts no library's own numbers, ours least of all.

From given centres, two runs that end at inertias differing by more than 1e-5 did not solve the same
problem, and their times are not compared: the verdict is *invalid*, not won. In float64 that is all.

In float32 it is not, for centroids rounded to float32 after each iteration lead a little off the path
that float64 takes, and after 50 iterations sometimes to another inertia, in every library. So where
inertias differ the referee runs the path itself, by brute force in float64, and says who left it. Ours
may leave it by that rounding alone, since our labels and sums are exact. That is checked: the referee
runs the path once more with its centroids rounded to float32 after each iteration and all else in
float64, and our inertia must be that of *this* path. If it is not, all verdicts of the row are invalid.

Always, in both modes, labels of ours are compared with those that brute force in float64 finds for the
centroids returned, on a sample of rows, and our inertia with the one computed anew.

With defaults libraries start from picks of their own and end in optima of their own, some higher and
some lower by luck. There no inertia makes a peer invalid; the table shows by how much they differ.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from benchmarks import plain
from benchmarks.peers import OURS, Outcome, Task

SAME = 1e-5
"""From the same centres, inertias that differ by more are of different problems."""

EXACT = 1e-9
"""Ours may differ from the inertia of its labels and centroids by no more."""

SAMPLE = 4096
"""Rows whose labels are checked."""


@dataclass(frozen=True)
class Finding:
    """What the referee says about one run.

    Attributes
    ----------
    inertia : float
        Computed in float64 from labels and centroids.
    difference : float
        How much it is above ours, relatively.
    stray : int
        How many labels of the sample are not those of the nearest centroid.
    fault : str
        Why times are not compared; empty if they are.
    """

    inertia: float
    difference: float
    stray: int
    fault: str

    @property
    def valid(self) -> bool:
        """Whether times may be compared."""
        return not self.fault


def same(a: float, b: float) -> bool:
    """Return whether two inertias are equal within `SAME`."""
    return abs(a - b) <= SAME * max(a, b)


def judge(
    task: Task,
    outcomes: dict[str, Outcome],
    path: Callable[..., float] = plain.lloyd,
) -> dict[str, Finding]:
    """Return a finding for every outcome, ours among them."""
    sample = np.random.default_rng(0).permutation(len(task.x))[:SAMPLE]
    inertias, stray = {}, {}
    for name, outcome in outcomes.items():
        inertias[name] = plain.inertia(task.x, outcome.centroids, outcome.labels)
        stray[name] = strays(task.x[sample], outcome.centroids, outcome.labels[sample])

    faults = dict.fromkeys(outcomes, "")
    if task.init is not None:
        faults |= departures(task, inertias, path)
    if ours := faults[OURS] or own_faults(outcomes[OURS], inertias[OURS], stray[OURS]):
        faults = dict.fromkeys(outcomes, f"{OURS}: {ours}")
    return {
        name: Finding(value, value / inertias[OURS] - 1, stray[name], faults[name])
        for name, value in inertias.items()
    }


def strays(x: NDArray, centroids: NDArray, labels: NDArray) -> int:
    """Return how many rows (n, d) have a centroid that is surely nearer than that of their label."""
    least = plain.squared_distances(x, centroids, plain.nearest(x, centroids))
    theirs = plain.squared_distances(x, centroids, labels)
    return int((theirs > least * (1 + 2 * plain.tie(x.shape[1]))).sum())


def own_faults(outcome: Outcome, inertia: float, stray: int) -> str:
    """Return what is wrong with ours whatever the peers say, or nothing."""
    if stray:
        return f"{stray} labels of {SAMPLE} are not of the nearest centroid"
    if abs(outcome.inertia - inertia) > EXACT * inertia:
        return f"its inertia is {inertia}, not {outcome.inertia}"
    return ""


def departures(
    task: Task, inertias: dict[str, float], path: Callable[..., float]
) -> dict[str, str]:
    """Return what is wrong with each run that does not end where ours did, and with ours."""
    ours = inertias[OURS]
    apart = [name for name, value in inertias.items() if not same(value, ours)]
    if not apart:
        return {}

    def walk(state: DTypeLike) -> float:
        return path(task.x, task.init, task.max_iter, state)

    true = walk(np.float64)
    off = {name: abs(value / true - 1) for name, value in inertias.items() if not same(value, true)}
    if OURS in off and (task.x.dtype == np.float64 or not same(walk(task.x.dtype), ours)):
        return {OURS: f"off the float64 path by {off[OURS]:.0e}, and not by rounding of centroids"}

    def blame(name: str) -> str:
        astray = ", ".join(f"{who} by {off[who]:.0e}" for who in (OURS, name) if who in off)
        return f"off the float64 path: {astray}" if astray else "inertias differ"

    return {name: blame(name) for name in apart}
