"""The nearest centroid of every row, certified, compiled: `anykmeans._search` for arrays in host memory.

Two ways to skip work. In few features a row has one lower bound, and the centroids near its own are searched;
in more it has one for every panel of sixteen near centroids, and those are searched that it does not rule
out, at first in a few coordinates alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from anykmeans._bounds import TINY, UP, Bounds
from anykmeans._groups import groups
from anykmeans._libraries import full_float32_products
from anykmeans._search import Change, Search
from anykmeans.kernels.numba import grouped, near, steps, subspace
from anykmeans.kernels.numba.simd import BLOCK, LANES, ROWS

_FEW = 12  # features up to which boxes around panels rule out more than bounds of their own
_POINTLESS = 0.8  # of the rows: so many not proven by a first look, and it is given up
_LISTED = 1 << 15  # rows listed at once where all are looked at
_MANY = 512  # centroids whose surroundings take longer to find than it takes to call another thread
_FULL = 64  # rows in doubt for each centroid in each block, as many as fill vectors
_ROOMY = 0.6  # of all panels: a pass that scores more may as well score all, and choose new panels


@dataclass(frozen=True)
class Panels:
    """Centroids by the LANES, near ones together.

    Attributes
    ----------
    ids : ndarray of shape (panels * LANES,), int32
        The centroid in each slot; k where there is none.
    place : ndarray of shape (k,), int64
        The slot of each centroid.
    """

    ids: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, c: np.ndarray) -> Panels:
        """Return panels for centroids `c` (k, d)."""
        return cls.from_groups(c.shape[0], groups(c, LANES))

    @classmethod
    def in_order(cls, k: int) -> Panels:
        """Return panels for `k` centroids as they are numbered."""
        ids = np.full(-(-k // LANES) * LANES, k, np.int32)
        ids[:k] = np.arange(k)
        return cls(ids, np.arange(k))

    @classmethod
    def from_groups(cls, k: int, parts: list[np.ndarray]) -> Panels:
        """Return a panel for each group of up to LANES of `k` centroids."""
        ids = np.full((len(parts), LANES), k, np.int32)
        for row, part in zip(ids, parts, strict=True):
            row[: part.size] = part
        place = np.empty(k + 1, np.int64)
        place[ids.ravel()[::-1]] = np.arange(ids.size)[::-1]
        return cls(ids.ravel(), place[:k])

    def __len__(self) -> int:
        return self.ids.size // LANES

    def coefficients(self, near: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return ``-2 c`` (panels, d, LANES) and ``|c|^2`` (panels, LANES) of centred `near` (k, d)."""
        k, d = near.shape
        at = np.minimum(self.ids, k - 1)
        lanes = near[at].reshape(len(self), LANES, d).transpose(0, 2, 1)
        norms = np.einsum("kd,kd->k", near, near)[at]
        norms[self.ids == k] = np.inf
        minus_2c = np.empty(lanes.shape, dtype)
        np.multiply(lanes, -2.0, out=minus_2c, casting="same_kind")
        return minus_2c, norms.astype(dtype).reshape(-1, LANES)


class Sweeping(Search):
    """Labels of all rows, kept up to date as centroids move.

    Parameters
    ----------
    frame : Frame
        The rows, and the coordinates to compare them in.
    work : Work
        How the rows are spread over threads.
    bounds : {"auto", "off", "hamerly", "groups"}
        No bounds, one lower bound a row, one for each panel, or what suits the data.
    exact : bool
        Whether labels are certified.

    Attributes
    ----------
    labels : ndarray of shape (n,), int32
        Of the last centroids.
    lost : bool
        Whether a row was out of the frame's range, or not finite: then labels mean nothing.
    """

    def __init__(self, frame: Any, work: Any, *, bounds: str, exact: bool) -> None:
        self.frame, self.work = frame, work
        self.matrix = frame.matrix
        n, d = self.matrix.shape
        self._bounds, self._exact = bounds, exact
        # Score in float32 where that can tell centroids apart.
        self._narrow = full_float32_products(self.matrix.source) and Bounds.of(d, 2.0**-24).sound
        self._centroids: np.ndarray | None = None
        # Rows whose scores wait in the cache while panels pass by.
        self._at_once = max(ROWS, min(128, work.room // (d + 4 * LANES)))
        self._panels = Panels.in_order(0)
        self._passes, self._scored = 0, 1.0
        self.labels, self.lost = np.empty(n, np.int32), False
        self._upper, self._lower = np.empty(n, np.float32), np.empty(n, np.float32)
        self._grouped = bounds == "groups" or (bounds != "hamerly" and d > _FEW)
        self._lowers, self._moved, self._share = np.empty((n, 0), np.float32), np.zeros(0), 1
        self._farthest = np.asarray([np.inf], np.float32)
        self._every = False  # whether to search all centroids, as those near the own are no fewer
        self._subspace: tuple[np.ndarray, np.ndarray] | None = None
        self._looked = n
        self._long_blocks = work.tiles(step=-(-n // work.threads))
        self._blocks = work.tiles(step=-(-n // (2 * work.threads if work.threads > 1 else 1)))

    def relabel(self, c: np.ndarray) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows changed."""
        first = self._centroids is None
        fresh = first or self._bounds == "off"
        wide, before = self.frame.widen(c), self._centroids
        drift = np.zeros(c.shape[0])
        if before is not None:
            drift = np.sqrt(steps.distances(wide, before)) * UP
        renew = first or (self._bounds != "off" and self._renew())
        # Centroids move most in the first passes.
        if self._passes == 3 and self._grouped and not fresh:
            self._subspace = subspace.of_rows(self.frame, self.work, self.frame.centre(wide))
        if renew:
            if self._bounds == "off":  # then it does not matter which are near each other
                self._panels = Panels.in_order(c.shape[0])
            else:
                self._panels = Panels.of(wide)
            if self._grouped:
                fresh = True
                self._divide(len(self._panels))
        elif self._grouped:
            slots = np.append(drift, 0.0)[self._panels.ids]
            starts = np.arange(0, slots.size, self._share * LANES)
            self._moved = (self._moved + np.maximum.reduceat(slots, starts)) * UP + TINY
        every = self._every and not renew
        sweep = _Sweep(self, wide, drift, first, fresh, every)
        # Rows of one centroid go side by side: where few are in doubt, together from longer blocks.
        few = not self._grouped and self._looked < _FULL * c.shape[0] * len(self._blocks)
        found = self.work.map(sweep.block, self._long_blocks if few else self._blocks)
        self._centroids = wide
        hard, scored, looked, deferred, lost = (sum(part[i] for part in found) for i in range(1, 6))
        self._looked, self.lost = looked, lost > 0
        if not (self._grouped or fresh or every):
            self._every = scored > looked * c.shape[0]
        if deferred > _POINTLESS * looked:
            self._subspace = None
        if self._narrow and hard > self.matrix.shape[0] // 5:
            self._narrow = False  # float32 cannot tell these centroids apart: score in float64
        if renew and not self._grouped and self._bounds != "off":
            self._farthest = np.zeros(c.shape[0], np.float32)
            near.farthest_rows(self._upper, self.labels, self._farthest)
        self._scored = scored / (self.matrix.shape[0] * len(self._panels))
        self._passes += 1
        if first:
            return [], self.matrix.shape[0]
        changes = [change for part in found for change in part[0] if change[0].size]
        return changes, sum(change[0].size for change in changes)

    def _divide(self, panels: int) -> None:
        """Make room for bounds: one a panel, or one for several where memory is short."""
        n = self.matrix.shape[0]
        columns = max(1, min(panels, self.work.max_bytes // (8 * n) - 2))
        if self._bounds == "off":
            columns = 1
        self._share = -(-panels // columns)
        columns = -(-panels // self._share)
        self._lowers = np.empty((n, columns), np.float32)
        self._moved = np.zeros(columns)

    def _renew(self) -> bool:
        """Return whether to choose panels anew: centroids move most in the first passes."""
        if self._grouped:
            return len(self._panels) > 1 and self._passes in (1, 4, 16) and self._scored > _ROOMY
        if self._every:  # look again now and then whether those near the own have become fewer
            return self._passes in (16, 64, 256)
        return self._passes & (self._passes - 1) == 0  # 1, 2, 4, 8, ...


@dataclass(frozen=True)
class _View:
    """Centroids prepared for the rows as they are, or for their coordinates in a subspace."""

    scale: Any
    offset: np.ndarray
    panels: np.ndarray
    norms: np.ndarray
    centred: np.ndarray
    spare: np.ndarray
    errors: Bounds

    @classmethod
    def of(
        cls,
        panels: Panels,
        centred: np.ndarray,
        dtype: Any,
        scale: Any,
        offset: np.ndarray,
        spare: np.ndarray,
        errors: Bounds,
    ) -> _View:
        """Return the view in which the centroids are `centred` (k, d)."""
        lanes, norms = panels.coefficients(centred, dtype)
        return cls(scale, offset, lanes, norms, centred.astype(dtype), spare, errors)


def _pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return each two float32 of `a` and `b` (k,) as one int64, `a` in its lower half."""
    return (a.view(np.uint32) | b.view(np.uint32).astype(np.uint64) << 32).view(np.int64)


class _Sweep:
    """One pass: the centroids prepared, and what is done to each block of rows."""

    def __init__(
        self,
        search: Sweeping,
        wide: np.ndarray,
        drift: np.ndarray,
        first: bool,
        fresh: bool,
        every: bool,
    ) -> None:
        self.search, self.wide, self.first, self.fresh = search, wide, first, fresh
        self.every = every or fresh
        frame, panels = search.frame, search._panels
        self.panels, self.grouped = panels, search._grouped
        k, d = wide.shape
        self.dtype = np.float32 if search._narrow else np.float64
        centred = frame.centre(wide)
        unit = 2.0**-24 if search._narrow else 2.0**-53
        self.errors = Bounds.of(d, unit, min(d, BLOCK + -(-d // BLOCK)))
        self.scale, self.offset = frame.affine(search._narrow)
        self.first_look: _View | None = None
        self.drift = (drift * UP + TINY).astype(np.float32)
        if self.grouped:
            self.view = _View.of(
                panels, centred, self.dtype, self.scale, self.offset, np.zeros(k), self.errors
            )
            if search._subspace is not None:
                few = subspace.coordinates(centred, search._subspace[0])
                p = few.shape[1]
                errors = Bounds.of(p, 2.0**-24)
                errors = dataclasses.replace(errors, beta=errors.beta + 16 * subspace.error(d))
                self.first_look = _View.of(
                    panels, few, np.float32, np.float32(1), np.zeros(p, np.float32),
                    few[:, -1].copy(), errors,
                )  # fmt: skip
        else:
            self.minus_2c = (centred * -2.0).astype(self.dtype)
            self.norms = (centred * centred).sum(axis=1).astype(self.dtype)
            search._farthest = search._farthest + self.drift
        alone = search._bounds == "off" or (every and k * _FULL > frame.matrix.shape[0])
        if self.grouped or alone:
            # How far the other centroids moved at most, by label.
            second, most = np.sort(np.append(self.drift, np.float32(0)))[-2:]
            others = np.where(self.drift == most, second, most)
            none = np.zeros(k, np.float32)
            self.corners, self.apart = (np.empty((0, d)), np.empty((0, d))), none
            self.pairs = _pairs(self.drift, others), _pairs(none, np.full(k, np.inf, np.float32))
        else:
            self.corners = near.boxes(wide, panels.ids)
            work = search.work
            step = -(-k // work.threads) if k >= _MANY else k
            parts = work.map(
                lambda part: near.surroundings(
                    wide, panels.ids, panels.place, self.corners, self.drift, search._farthest,
                    part.start, part.stop,
                ),
                work.tiles(0, k, step),
            )  # fmt: skip
            nearest, self.apart, drifts, beyond = np.concatenate(parts, axis=1)
            self.pairs = _pairs(self.drift, drifts), _pairs(nearest, beyond)

    def block(self, block: slice) -> tuple[list[Change], int, int, int, int, int]:
        """Bring a block up to date.

        Returns what changed, rows not proven, panels (near: centroids) scored, rows given a first look, of these
        those that needed a second, and rows out of range.
        """
        counts = np.zeros(5, np.int64)
        changes: list[Change] = []
        for rows in self._doubtful(block):
            counts += self._rows(rows, changes)
        hard, scored, looked, deferred, lost = counts.tolist()
        return changes, hard, scored, looked, deferred, lost

    def _doubtful(self, block: slice) -> Iterator[np.ndarray]:
        """Yield the numbers of the rows to look at, as many at once as there is room for."""
        search = self.search
        most = search.work.readable(search.matrix)
        number = np.int32 if search.matrix.shape[0] < 1 << 31 else np.int64
        if self.fresh:
            for tile in search.work.tiles(block.start, block.stop, min(most, _LISTED)):
                yield np.arange(tile.start, tile.stop, dtype=number)
            return
        rows = np.empty(block.stop - block.start, number)
        bounds = search._upper[block], search._lower[block], search.labels[block]
        count = steps.wear(*bounds, *self.pairs, block.start, rows)
        for tile in search.work.tiles(0, count, most):
            yield rows[tile]

    def _rows(self, rows: np.ndarray, changes: list[Change]) -> tuple[int, int, int, int, int]:
        """Find the labels of the rows and add to the `changes`; return counts as `block` does."""
        search, panels, frame = self.search, self.panels, self.search.frame
        state = (search.labels, search._upper, search._lower)

        def room(rows: np.ndarray) -> np.ndarray:
            return np.empty((3, rows.size) if not self.first else (0, 0), rows.dtype)

        if not self.grouped:
            x, at = search.matrix.readable(rows)
            errors, moves = self.errors, room(rows)
            changed, hard, scored, lost = near.near(
                x, at, rows, self.scale, self.offset, frame.unit, self.minus_2c, self.norms,
                panels.ids, panels.place, *self.corners, self.wide, self.apart, *state,
                errors.beta, errors.eta, errors.tie, self.every, search._exact, moves,
            )  # fmt: skip
            changes.append(tuple(moves[:, :changed]))
            return hard, scored, rows.size, 0, lost

        def look(
            x: np.ndarray, at: np.ndarray, rows: np.ndarray, view: _View, deferred: np.ndarray
        ) -> Any:
            moves = room(rows)
            changed, hard, scored, lost = grouped.grouped(
                x, at, rows, view.scale, view.offset, frame.unit, view.panels, view.norms,
                panels.ids, panels.place, view.centred, view.spare, self.wide, search._moved,
                search._lowers, search._share, search._at_once, *state, view.errors.beta,
                view.errors.eta, view.errors.tie, self.fresh, search._exact, deferred, moves,
            )  # fmt: skip
            changes.append(tuple(moves[:, :changed]))
            return hard, scored, lost

        looked = rows.size
        scored = 0
        if self.first_look is not None and search._subspace is not None:
            deferred = np.empty(rows.size + 1, np.int64)
            count, scored, _ = look(search._subspace[1], rows, rows, self.first_look, deferred)
            rows = rows[deferred[:count]]
        x, at = search.matrix.readable(rows)
        hard, more, lost = look(x, at, rows, self.view, np.empty(0, np.int64))
        return hard, more + scored, looked, rows.size, lost
