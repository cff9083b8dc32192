# mypy: allow-untyped-defs, allow-untyped-calls
"""By how much the other centroids are farther than a row's own: while some of it is left, the row need not be looked at.

One number a row, Hamerly's two bounds in one ("Making k-means even faster", SDM 2010). A look at all centroids tells it in passing,
and then it wears as they move. Where it is soon gone for most rows, as where they have no structure, passes go on without, and twice as
many as before until it is tried again.
"""

from __future__ import annotations

import math

import numpy as np

from anykmeans._bounds import DOWN, GAP, TINY, UP
from anykmeans.kernels.numba.room import empty
from anykmeans.kernels.numba.steps import jit

_FIRST = 1  # passes before it is told first, as in that centroids move far; and after it was of no use, none, then 2, 4, 8, ...
# What takes as long as so many products: to gather a row, and each feature of it, to wear a row's slack, and to go about it.
_GATHERED, _FEATURE, _WORN, _CALLED = 500, 32, 50, 4_000_000
_FEW = 8  # one row in so many: where to look at these alone would not pay, slack is not kept


class Slack:
    """That of `n` rows of `d` features among `k` centroids, if passes are so long that it may pay.

    Attributes
    ----------
    left : ndarray of shape (n,), float32
        By how much all others are farther than GAP times the nearest, at least; of no rows if it is not kept.
    told : bool
        Whether that is so for the last labels.
    wait : int
        Passes until it is told, none if it is.
    """

    def __init__(self, n: int, d: int, k: int) -> None:
        self._d, self._k = d, k
        self.left = np.empty(n if self.pays(n // _FEW, n) else 0, np.float32)
        self.told, self.wait, self._next = False, _FIRST, 0

    def pays(self, doubtful: int, n: int) -> bool:
        """Return whether to look at so many doubtful rows of `n` alone takes less time than to look at all, and not to ask."""
        each = (self._k + _FEATURE) * self._d + _GATHERED
        return doubtful * each + n * _WORN + _CALLED < n * self._k * self._d

    def turns(self, most: int) -> int:
        """Return how many passes to make at once, up to `most`: none if slack is to be told or looked at."""
        return min(most, self.wait) if self.left.size else most

    @property
    def room(self) -> np.ndarray:
        """Where the next pass is to tell it, if it is."""
        return self.left[: 0 if self.wait else None]

    def passed(self, passes: int, doubtful: int = 0) -> None:
        """Take note of so many passes, of which the last was to look at so many rows."""
        self.told, self.wait = self.left.size > 0 and not self.wait, max(0, self.wait - passes)
        if doubtful and not self.pays(doubtful, self.left.size):
            self.told, self.wait, self._next = not self._next, self._next, 2 * self._next or 2


@jit
def wear(left, labels, before, now, unit, doubtful):
    """Wear the slack `left` to rows (m,) as centroids (k, d), float64, move; list those that have none in `doubtful`, return how many.

    They were `before`, and are `now`, times `unit` in the frame.
    """
    k, d = now.shape
    moves, worn = empty(k, np.float64), empty(k, np.float32)
    most = second = 0.0
    for j in range(k):
        squared = 0.0
        for f in range(d):
            step = (now[j, f] - before[j, f]) * unit
            squared += step * step
        moves[j] = math.sqrt(squared)
        if moves[j] > most:
            most, second = moves[j], most
        elif moves[j] > second:
            second = moves[j]
    for j in range(k):
        others = second if moves[j] == most else most
        worn[j] = (moves[j] * GAP + others) * UP + TINY
    count = 0
    for i in range(labels.shape[0]):
        left[i] = (left[i] - worn[np.uint32(labels[i])]) * np.float32(DOWN)
        doubtful[count] = i
        count += not left[i] > 0
    return count
