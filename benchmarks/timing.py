"""Fair timing on a machine that is not quiet."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Timings(Generic[T]):
    """What alternating runs took: the seconds of each, round by round, and their first results."""

    seconds: dict[str, list[float]]
    results: dict[str, T]

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

    def scaled(self, name: str, factor: float) -> "Timings[T]":
        """Return the timings with the seconds of one run multiplied."""
        scaled = [factor * seconds for seconds in self.seconds[name]]
        return dataclasses.replace(self, seconds=self.seconds | {name: scaled})


def alternate(
    runs: dict[str, Callable[[], T]], repeats: int, cap: float = float("inf")
) -> Timings[T]:
    """Time the runs in alternation, in up to `repeats` rounds.

    All alternate in one process, so that a slow minute of the machine hits all of them, and every
    other round goes backwards, so that none always runs after the same neighbour. Ratios are taken
    within a round and only then the median. No round starts that would end, like the one before,
    after more than `cap` seconds in all. Warm the runs up first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, T] = {}
    spent = last = 0.0
    for repeat in range(repeats):
        if repeat and spent + last > cap:
            break
        for name in reversed(runs) if repeat % 2 else runs:
            begin = time.perf_counter()
            result = runs[name]()
            seconds[name].append(time.perf_counter() - begin)
            results.setdefault(name, result)
        last = sum(of_one[-1] for of_one in seconds.values())
        spent += last
    return Timings(seconds, results)
