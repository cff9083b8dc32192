"""What both searches with bounds have in common: a pass looks at the rows that worn bounds leave in doubt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from anykmeans._bounds import TINY, UP, Bounds
from anykmeans._libraries import full_float32_products
from anykmeans._search import Change, Search
from anykmeans.kernels.numba import steps
from anykmeans.kernels.numba.panels import Panels
from anykmeans.kernels.numba.steps import State, Truth

if TYPE_CHECKING:
    from anykmeans._frame import Frame
    from anykmeans._work import Work

_LISTED = 1 << 15  # rows listed at once where all are looked at


class Counts(NamedTuple):
    """What looking at rows came to.

    Attributes
    ----------
    hard : int
        Rows that scores did not prove.
    scored : int
        Pairs scored: of a row, and a centroid or a panel.
    looked : int
        Rows looked at.
    again : int
        Those of them that a first look in few coordinates left, or all without one.
    lost : int
        Rows out of the frame's range, or not finite.
    """

    hard: int
    scored: int
    looked: int
    again: int
    lost: int


class Changes:
    """Rows that got another label, their old and new labels, as compiled code lists them.

    Attributes
    ----------
    found : list of tuple of three ndarrays
        Those listed so far.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.found: list[Change] = []
        self._wanted = wanted

    def room(self, numbers: np.ndarray) -> np.ndarray:
        """Return where to list rows of these numbers (m,): (3, m), or nothing where that is not wanted."""
        return np.empty((3, numbers.size) if self._wanted else (0, 0), numbers.dtype)

    def add(self, room: np.ndarray, count: int) -> None:
        """Add the first `count` that are listed in a `room`."""
        if count:
            self.found.append((room[0, :count], room[1, :count], room[2, :count]))


class Pass(Protocol):
    """Centroids prepared for a look at rows."""

    @property
    def whole(self) -> bool:
        """Whether all rows are looked at, whatever their bounds."""

    @property
    def worn(self) -> tuple[np.ndarray, np.ndarray]:
        """The pairs by label (k,), int64, that `steps.wear` wears bounds by."""

    def look(self, numbers: np.ndarray, changes: Changes) -> Counts:
        """Bring the rows of these numbers (m,) up to date."""


class BoundedSearch(Search):
    """Labels of all rows, kept up to date as centroids move, and two bounds of each row.

    Parameters
    ----------
    frame : Frame
        The rows, and the coordinates to compare them in.
    work : Work
        How the rows are spread over threads.
    skips : bool
        Whether rows whose bounds prove their labels are skipped.
    exact : bool
        Whether labels are certified.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
        Of the last centroids.
    lost : bool
        Whether a row was out of the frame's range, or not finite: then labels mean nothing.
    state : State
        The labels, and the bounds.
    panels : Panels
        Which centroids are near each other, when last looked.
    narrow : bool
        Whether scores are float32.
    passes : int
        How many were made.
    blocks : list of slice
        All rows, cut so that threads that are late have less to do.
    """

    def __init__(self, frame: Frame, work: Work, *, skips: bool, exact: bool) -> None:
        self.frame, self.work, self.matrix = frame, work, frame.matrix
        self.skips, self.exact = skips, exact
        n, d = self.matrix.shape
        self.labels, self.lost = np.empty(n, np.int32), False
        self.state = State(self.labels, np.empty(n, np.float32), np.empty(n, np.float32))
        self.panels, self.passes = Panels.in_order(0), 0
        # Score in float32 where that can tell centroids apart.
        self.narrow = full_float32_products(self.matrix.source) and Bounds.of(d, 2.0**-24).sound
        self.blocks = work.tiles(step=-(-n // (2 * work.threads if work.threads > 1 else 1)))
        self._wide = np.empty((0, d))

    @property
    def dtype(self) -> Any:
        """The dtype of scores."""
        return np.float32 if self.narrow else np.float64

    def advance(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Go on to `c` (k, d): return it in the frame, float64, and how far centroids have moved at most (k,)."""
        wide, before = self.frame.widen(c), self._wide
        self._wide = wide
        if not self.passes:
            return wide, np.zeros(c.shape[0])
        return wide, np.sqrt(steps.distances(wide, before)) * UP

    def errors(self, terms: int) -> Bounds:
        """Return how far scores can be off whose products pass through so many roundings, `terms`."""
        return Bounds.of(self.matrix.shape[1], 2.0**-24 if self.narrow else 2.0**-53, terms)

    def truth(self, wide: np.ndarray, errors: Bounds) -> Truth:
        """Return what decides between centroids `wide` (k, d)."""
        return Truth(wide, self.frame.unit, errors.tie, self.exact)

    def sweep(self, prepared: Pass, blocks: list[slice]) -> tuple[Counts, list[Change]]:
        """Make a pass over `blocks` of rows; return what it came to, and what it changed, but for the first."""
        first = self.passes == 0

        def sweep(block: slice) -> tuple[Counts, list[Change]]:
            changes = Changes(wanted=not first)
            looks = [prepared.look(rows, changes) for rows in self._doubtful(prepared, block)]
            return _sum(looks), changes.found

        found = self.work.map(sweep, blocks)
        counts = _sum([counts for counts, _ in found])
        self.lost = counts.lost > 0
        if self.narrow and counts.hard > self.matrix.shape[0] // 5:
            self.narrow = False  # float32 cannot tell these centroids apart: score in float64
        self.passes += 1
        return counts, [change for _, changes in found for change in changes]

    def _doubtful(self, prepared: Pass, block: slice) -> Iterator[np.ndarray]:
        """Yield the numbers of the rows to look at, as many at once as there is room for."""
        most = self.work.readable(self.matrix)
        dtype = np.int32 if self.matrix.shape[0] < 1 << 31 else np.int64
        if prepared.whole:
            for tile in self.work.tiles(block.start, block.stop, min(most, _LISTED)):
                yield np.arange(tile.start, tile.stop, dtype=dtype)
            return
        rows = np.empty(block.stop - block.start, dtype)
        labels, upper, lower = (kept[block] for kept in self.state)
        count = steps.wear(upper, lower, labels, *prepared.worn, block.start, rows)
        for tile in self.work.tiles(0, count, most):
            yield rows[tile]


def _sum(counts: list[Counts]) -> Counts:
    if len(counts) == 1:
        return counts[0]
    return Counts(*map(sum, zip(*counts, strict=True))) if counts else _NOTHING


_NOTHING = Counts(0, 0, 0, 0, 0)


def moved(changes: list[Change]) -> int:
    """Return how many rows got another label."""
    return sum(rows.size for rows, _, _ in changes)


def not_below(drift: np.ndarray) -> np.ndarray:
    """Return the moves (k,) in float32, none less."""
    return (drift * UP + TINY).astype(np.float32)


def pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return each two float32 of `a` and `b` (k,) as one int64, `a` in its lower half."""
    return (a.view(np.uint32) | b.view(np.uint32).astype(np.uint64) << 32).view(np.int64)


def alone(drift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs that `steps.wear` takes where of a centroid's surroundings nothing is known but moves `drift` (k,)."""
    # How far the other centroids moved at most, by label.
    second, most = np.sort(np.append(drift, np.float32(0)))[-2:]
    others = np.where(drift == most, second, most)
    none = np.zeros(drift.size, np.float32)
    return pairs(drift, others), pairs(none, np.full(drift.size, np.inf, np.float32))
