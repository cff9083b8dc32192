"""Fair timing, and a judge of the results that trusts no peer's own numbers."""

import statistics
import time
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import OURS, Outcome, Run, scikit_learn

INERTIA_TOLERANCE = 1e-5
"""Two runs whose inertias differ by more, relatively, did not solve the same problem."""


@dataclass(frozen=True)
class Verdict:
    """How one peer did against anykmeans on one row of the table.

    `ratio` is the median over the repeats of the peer's seconds divided by ours: above 1 anykmeans
    is the faster one.
    """

    peer: str
    seconds: float
    our_seconds: float
    ratio: float
    n_iter: int
    our_n_iter: int
    inertia: float
    our_inertia: float
    reference_inertia: float | None = None

    @property
    def valid(self) -> bool:
        """Whether both ended at the same inertia."""
        return same(self.inertia, self.our_inertia)

    @property
    def note(self) -> str:
        """What is wrong, and whose inertia is not that of the reference; empty if nothing is."""
        if self.valid:
            return ""
        if self.reference_inertia is None:
            return "INVALID: inertias differ"
        pairs = ((OURS, self.our_inertia), (self.peer, self.inertia))
        astray = [
            f"{name} by {abs(value / self.reference_inertia - 1):.0e}"
            for name, value in pairs
            if not same(value, self.reference_inertia)
        ]
        return f"INVALID: off the float64 run: {', '.join(astray)}"


def same(a: float, b: float) -> bool:
    """Return whether two inertias are equal within `INERTIA_TOLERANCE`."""
    return abs(a - b) <= INERTIA_TOLERANCE * max(a, b)


def in_float64(x: NDArray, centres: NDArray, max_iter: int) -> float:
    """Return the inertia that scikit-learn reaches in float64.

    Rounding in float32 changes labels, and over many iterations that can lead elsewhere. This tells
    which of two float32 runs it was.
    """
    x = x.astype(np.float64)
    return inertia(x, scikit_learn("lloyd")(x, centres.astype(np.float64), max_iter))


def initial_centres(x: NDArray, k: int, seed: int = 0) -> NDArray:
    """Return k distinct rows of x drawn at random: (k, d).

    Not k-means++: its picks would leave fewer iterations to time, and it is timed elsewhere.
    """
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(x))[: 20 * k]
    distinct = np.sort(np.unique(x[rows], axis=0, return_index=True)[1])
    return x[rows[distinct[:k]]]


def inertia(x: NDArray, outcome: Outcome, block: int = 4096) -> float:
    """Return the sum of squared distances to the labelled centroids, in float64."""
    centroids = np.asarray(outcome.centroids, dtype=np.float64)
    return sum(
        float(np.sum((x[i : i + block] - centroids[outcome.labels[i : i + block]]) ** 2))
        for i in range(0, len(x), block)
    )


def timed(run: Run, x: NDArray, centres: NDArray, max_iter: int) -> tuple[float, Outcome]:
    """Return the seconds that one run took, and its outcome."""
    with warnings.catch_warnings():
        # Every run stops at max_iter by design.
        warnings.filterwarnings("ignore", category=UserWarning)
        begin = time.perf_counter()
        outcome = run(x, centres, max_iter)
        return time.perf_counter() - begin, outcome


def compare(
    runs: dict[str, Run], x: NDArray, centres: NDArray, max_iter: int, repeats: int
) -> list[Verdict]:
    """Return a verdict for every peer.

    All runs alternate in one process, so that a slow minute of the machine hits all of them, and
    every other round goes backwards, so that none always runs after the same neighbour. The ratio
    is taken within a round and only then the median.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    # The first run of each is not timed: it loads libraries, compiles kernels, starts threads.
    outcomes = {name: timed(run, x, centres, max_iter)[1] for name, run in runs.items()}
    for repeat in range(repeats):
        for name in reversed(runs) if repeat % 2 else runs:
            seconds[name].append(timed(runs[name], x, centres, max_iter)[0])

    inertias = {name: inertia(x, outcome) for name, outcome in outcomes.items()}
    agree = all(same(value, inertias[OURS]) for value in inertias.values())
    reference = None if agree or x.dtype == np.float64 else in_float64(x, centres, max_iter)
    return [
        Verdict(
            peer=name,
            seconds=statistics.median(seconds[name]),
            our_seconds=statistics.median(seconds[OURS]),
            ratio=statistics.median(
                theirs / ours for theirs, ours in zip(seconds[name], seconds[OURS], strict=True)
            ),
            n_iter=outcomes[name].n_iter,
            our_n_iter=outcomes[OURS].n_iter,
            inertia=inertias[name],
            our_inertia=inertias[OURS],
            reference_inertia=reference,
        )
        for name in runs
        if name != OURS
    ]
