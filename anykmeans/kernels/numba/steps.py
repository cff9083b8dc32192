# mypy: allow-untyped-defs, allow-untyped-calls
"""What both ways to search share, compiled: bounds wear, and float64 distances decide.

Here and in the two searches all arrays are C-contiguous. A *slot* is a place among the lanes of the panels,
``place[j]`` that of centroid j and ``ids[slot]`` its inverse. Named tuples say what goes together; compiled code takes
them apart where it begins.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.core import event as events
from numba.core.caching import FunctionCache, NullCache

from anykmeans._bounds import DOWN, GAP, TINY, UP
from anykmeans._fork import first_call
from anykmeans.kernels.numba.distance import squared_distance
from anykmeans.kernels.numba.room import empty


class _Kept(NullCache):
    """Compiled code on disk where there is a place for it; what cannot be read or written is compiled each time."""

    def __init__(self, function):
        self._function, self._files = function, None

    def _found(self):
        if self._files is None:  # a function that is never called needs no place
            self._files = FunctionCache(self._function)
        return self._files

    @property
    def cache_path(self):
        return None if self._files is None else self._files.cache_path

    def load_overload(self, sig, target_context):
        with contextlib.suppress(Exception):  # what a damaged file raises could be anything
            return self._found().load_overload(sig, target_context)
        return None

    def save_overload(self, sig, data):
        with contextlib.suppress(Exception):
            self._found().save_overload(sig, data)


class _Compiling(events.Listener):
    """Tells a fork when a thread waits for Numba's one lock to load or compile a function, or has it."""

    def on_start(self, event):
        first_call.__enter__()

    def on_end(self, event):
        first_call.__exit__()


events.register("numba:compiler_lock", _Compiling())


def _compiled(**options):
    """Return a decorator that has Numba compile a function when it is first called."""

    def compiled(function):
        dispatcher = njit(nogil=True, error_model="numpy", no_cfunc_wrapper=True, **options)(
            function
        )
        dispatcher._cache = _Kept(function)  # its own would raise where there is no place
        return dispatcher

    return compiled


# Compiling takes seconds, the price of Numba: NumPy's and Python's own functions, `min` and `max` too, cost much of
# it, and are spelled out; and what a variable is passed to that begins as a literal would be compiled once for the
# literal.
jit = _compiled()
# What compiled code alone calls, and what goes in line: where it is called for each row, handing it arrays by the stack,
# seven words and more each, would take about as long as what it does.
inner = _compiled(no_cpython_wrapper=True)
inline = _compiled(no_cpython_wrapper=True, forceinline=True)
# What becomes part of its caller before that is compiled: one file to keep and to load, not many.
within = _compiled(no_cpython_wrapper=True, inline="always")
# Sums whose order of addition is free, as the bounds allow any.
any_order = _compiled(no_cpython_wrapper=True, fastmath={"reassoc", "contract"})
# Minima in any order.
_MINIMA = {"nnan", "nsz", "reassoc"}
any_minimum = _compiled(no_cpython_wrapper=True, fastmath=_MINIMA)
inline_minimum = _compiled(no_cpython_wrapper=True, forceinline=True, fastmath=_MINIMA)


# What counting begins with: a literal is of a type of its own, and for each that becomes a number in a loop, and what depends
# on that, all of a function is typed once more.
ZERO: Any = np.int64(0)
# In float32, as they are: to be made that is four things more to compile, wherever it is.
UP32, DOWN32, GAP32, TINY32, INF32 = map(np.float32, (UP, DOWN, GAP, TINY, np.inf))


class Rows(NamedTuple):
    """Rows to look at.

    Attributes
    ----------
    x : ndarray of shape (., d)
        Rows as they are read.
    at : ndarray of shape (m,), int32
        Where in `x` they are.
    numbers : ndarray of shape (m,), int32 or int64
        Their numbers among all.
    """

    x: np.ndarray
    at: np.ndarray
    numbers: np.ndarray


class State(NamedTuple):
    """What is kept of all rows.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
        The nearest centroid.
    upper, lower : ndarray of shape (n,), float32
        How far it is at most, and how far all others are at least.
    """

    labels: np.ndarray
    upper: np.ndarray
    lower: np.ndarray


class Truth(NamedTuple):
    """What decides where scores do not.

    Attributes
    ----------
    wide : ndarray of shape (k, d), float64
        The centroids.
    unit : float
        What rows are multiplied by to be compared with them.
    tie : float
        By what share two squared distances may differ that count as equal.
    exact : bool
        Whether it is asked.
    """

    wide: np.ndarray
    unit: float
    tie: float
    exact: bool


_STRETCH = 256  # rows whose bounds are worn before the doubtful ones are listed


@jit
def wear(upper, lower, labels, moves, others, begin, active):
    """Wear the bounds (m,) of rows from `begin`; list those now in doubt in `active`, return how many.

    `moves` and `others` are pairs of float32 by label, each pair one int64, as looking up is what costs: how far
    the centroid and those around it moved at most, and how far it is at least from the nearest of these and from
    all others. The loops are short, as the compiler must know that what they write is not what they read.
    """
    count = ZERO
    overlap = empty(_STRETCH, np.float32)
    moved, apart = empty(_STRETCH, np.int64), empty(_STRETCH, np.int64)
    for start in range(0, labels.shape[0], _STRETCH):
        left = labels.shape[0] - start
        length = left if left < _STRETCH else _STRETCH
        above, below = upper[start : start + length], lower[start : start + length]
        for i in range(length):
            label = np.uint32(labels[start + i])  # unsigned, so that no sign is looked at
            moved[i], apart[i] = moves[label], others[label]
        for i in range(length):
            above[i] = (above[i] + _low(moved[i])) * UP32
        for i in range(length):
            worn = (below[i] - _high(moved[i])) * DOWN32
            outside = _high(apart[i]) - above[i] * UP32
            below[i] = worn if worn < outside else outside
        for i in range(length):
            nearest = _low(apart[i]) - above[i] * UP32
            overlap[i] = above[i] * GAP32 - (below[i] if below[i] > nearest else nearest)
        for i in range(length):
            active[count] = begin + start + i
            count += not overlap[i] < 0
    return count


@inline
def _low(pair):
    return np.int32(pair).view(np.float32)


@inline
def _high(pair):
    return np.int32(pair >> 32).view(np.float32)


@inline
def halve(t, d):
    """Return the sum of ``t[:d]``, which is overwritten, in the order of `anykmeans._distance`, bit for bit."""
    half = 1
    while 2 * half < d:
        half *= 2
    while d > 1:
        for f in range(d - half):
            t[f] += t[f + half]
        d, half = half, half // 2
    return t[0]


@any_order
def squared_norm(y, r):
    """Return the squared norm of a row, added in any order."""
    norm = 0.0
    for f in range(y.shape[1]):
        norm += y[r, f] * y[r, f]
    return norm


@inner
def quarter(d):
    """Return the rows of `side_by_side`'s room for `d` features, a quarter of what they are padded to."""
    found = 1
    while 4 * found < d:
        found *= 2
    return found


@inner
def side_by_side(columns, c, j, room):
    """Write `squared_distance` of rows, ``columns[:, i]``, to row `j` of `c`, to ``room[0]``.

    Features are padded with zeros to four times the rows of `room`, whose columns are so many rows.
    """
    left, lanes = room.shape
    for f in range(left):
        a, b, g, h = c[j, f], c[j, f + left], c[j, f + 2 * left], c[j, f + 3 * left]
        for i in range(lanes):
            p, q = columns[f, i] - a, columns[f + 2 * left, i] - g
            r, s = columns[f + left, i] - b, columns[f + 3 * left, i] - h
            room[f, i] = (p * p + q * q) + (r * r + s * s)
    while left > 1:
        left //= 2
        for f in range(left):
            for i in range(lanes):
                room[f, i] += room[f + left, i]


@jit
def distances(a, b):
    """Return the squared distances (m,) of the rows of `a` (m, d) and `b` (m, d) or (1, d)."""
    found, room = empty(a.shape[0], np.float64), empty(a.shape[1], np.float64)
    for row in range(a.shape[0]):
        found[row] = squared_distance(a, row, 1.0, b, row if b.shape[0] > 1 else 0, room)
    return found


@inner
def decide(candidates, squared, found, most, tie, guess):
    """Return the label of the shortest of the squared distances, ties to the lowest.

    Also float32 bounds on the distances to it and to all others, which are at least ``sqrt(most)`` where
    they are no candidates, and at least how far the `guess` is.
    """
    shortest = np.inf
    for q in range(found):
        shortest = squared[q] if squared[q] < shortest else shortest
    lowest = np.int64(1) << 62
    for q in range(found):
        if squared[q] <= shortest * (1 + tie) and candidates[q] < lowest:
            lowest = candidates[q]
    label, runner_up, left = lowest, most, np.inf
    for q in range(found):
        if candidates[q] != label and squared[q] < runner_up:
            runner_up = squared[q]
        if candidates[q] == guess:
            left = squared[q]
    up = np.float32(math.sqrt(shortest) * UP + TINY)
    down = np.float32(math.sqrt(runner_up) * DOWN - TINY)
    return label, up, down, math.sqrt(left) * DOWN - TINY
