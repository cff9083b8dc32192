"""Fair timing on a machine that is not quiet."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

PAUSE = 0.01  # seconds before a run, in which what the one before left spinning falls asleep

T = TypeVar("T")


def wall(run: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a run took, and its result."""
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


@dataclass(frozen=True)
class Timings(Generic[T]):
    """What alternating runs took: the seconds of each, round by round, and their first results.

    `others` is the share of the machine's cores that other processes had meanwhile, where it can be
    known. Threads that wait for each other suffer from it far more than in proportion, so that what
    was measured beside much of it says little about a quiet machine.
    """

    seconds: dict[str, list[float]]
    results: dict[str, T]
    others: float | None = None

    @property
    def rounds(self) -> int:
        """How many rounds there were."""
        return len(next(iter(self.seconds.values())))

    def median(self, name: str) -> float:
        """Return the median of its seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """Return the median over the rounds of the one's seconds divided by the other's."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return statistics.median(one / other for one, other in pairs)


def alternate(
    runs: dict[str, Callable[[], T]],
    repeats: int,
    cap: float = float("inf"),
    clock: Callable[[Callable[[], T]], tuple[float, T]] = wall,
) -> Timings[T]:
    """Time the runs in alternation, in up to `repeats` rounds.

    All alternate in one process, so that a slow minute of the machine hits all of them, and every
    other round goes backwards, so that none always runs after the same neighbour. OpenMP's threads look out for
    more work for milliseconds after a run, on cores that the next one needs: so each begins after a pause. Ratios
    are taken within a round and only then the median. No round starts that would end, like the one before,
    after more than `cap` seconds in all. Warm the runs up first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, T] = {}
    spent = last = 0.0
    before = clocks()
    for repeat in range(repeats):
        if repeat and spent + last > cap:
            break
        for name in reversed(runs) if repeat % 2 else runs:
            time.sleep(PAUSE)
            took, result = clock(runs[name])
            seconds[name].append(took)
            results.setdefault(name, result)
        last = sum(of_one[-1] for of_one in seconds.values())
        spent += last
    return Timings(seconds, results, share_of_others(before, clocks()))


Clocks = tuple[float, float, float | None]
"""seconds that passed, that this process worked, and that all cores worked, if it can be known"""


def clocks() -> Clocks:
    """Return the clocks."""
    machine = None
    stat = Path("/proc/stat")
    if stat.is_file():
        user, nice, system, _, _, *interrupts = stat.read_text(encoding="ascii").split()[1:9]
        ticks = sum(map(int, (user, nice, system, *interrupts)))
        machine = ticks / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), time.process_time(), machine


def share_of_others(before: Clocks, after: Clocks) -> float | None:
    """Return the share of the cores that other processes had between two readings."""
    if before[2] is None or after[2] is None:
        return None
    wall, own, machine = (b - a for a, b in zip(before, after, strict=True))
    if wall < 0.5:
        return None  # the machine's clock ticks a hundred times a second
    return max(0.0, (machine - own) / (wall * (os.cpu_count() or 1)))


def busy(others: float | None) -> str:
    """Return what to say of a measurement that was not alone, or nothing."""
    return f"others had {others:.0%} of the machine" if others and others > 0.1 else ""
