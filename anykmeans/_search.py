"""The nearest centroid of every row, certified, with bounds that skip work.

Skipping follows Hamerly ("Making k-means even faster", SDM 2010) with one group of centroids and
Yinyang (Ding et al., ICML 2015) with several; both are one piece of code here. A skipped row is proven
unchanged, so a search that skips gives the labels of one that does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from anykmeans._bounds import DOWN, GAP, TINY, UP, Bounds, squared_norms
from anykmeans._certify import Differences, Scored, interval, unproven
from anykmeans._frame import Frame
from anykmeans._groups import groups
from anykmeans._libraries import Array, Namespace, Selection, full_float32_products, put, to_numpy
from anykmeans._matrix import Matrix, take_rows
from anykmeans._sparse import coefficients
from anykmeans._work import Work

if TYPE_CHECKING:
    from anykmeans._stats import ClusterStats
    from anykmeans.kernels.agnostic import Kernel
    from anykmeans.sources.descent import InMemory
    from anykmeans.sources.rows import Rows

_GROUP = 12  # centroids a group: 8 to 16 skipped most on real data
_MANY = 256  # centroids from which on groups beat one bound a row, in more than 12 dimensions
_ENOUGH = 0.35  # of all distances: groups that leave more to do cost more than they save

Change = tuple[Array, Array, Array]  # rows (m,), their old labels and their new ones


class Search(ABC):
    """How the labels of all rows are found, and kept up to date as centroids move.

    Attributes
    ----------
    labels : array of shape (n,)
        Of the last centroids.
    lost : bool
        Whether a row was out of the frame's range, or not finite: then labels mean nothing. Who does not look is never lost.
    turns : bool
        Whether its `steps` bring means to length 1 where rows have it; else they are not asked for then.
    """

    labels: Array
    lost = turns = False

    @abstractmethod
    def relabel(self, c: Array) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows may have changed.

        Where that is all of them, changes need not be told.
        """

    def steps(
        self, run: InMemory, c: Array, most: int, tol: float, empty: str
    ) -> tuple[Array, int, float]:
        """Return what `run.steps` does: here by one step; who can make several in one call does so."""
        c, moved = run.step(c, empty)
        return c, 1, moved

    def swept(self, rows: Rows, c: Array) -> ClusterStats | None:
        """Return the stats of all rows by their nearest of `c` (k, d), if they can be made with the labels in one go: here None."""
        return None

    def distances(self, rows: Rows, frame: Frame, c: Array) -> Array:
        """Return the squared distances (n,), in the frame, of all rows to their labels' centroids of `c`."""
        return rows.kernel.distances(rows, frame, frame.widen(c), self.labels)


@dataclass
class Block:
    """State of the rows from `start` to `stop`: labels (m,), bounds upper (m,) and lower (groups, m).

    The bounds are float32 distances in the scaled frame: to the own centroid at most `upper`, to
    every other centroid of group g at least ``lower[:, g]``.
    """

    start: int
    stop: int
    labels: Array = None
    upper: Array = None
    lower: Array = None


@dataclass(frozen=True)
class Pass:
    """Centroids prepared for one pass.

    Attributes
    ----------
    scored : Scored
        All of them in their own order.
    centred : array of shape (k, d)
        Less the offset, in the scoring dtype.
    groups : list of (ids (g,), minus_2c (d, g), norms (g,))
        What a kernel scores with; the groups are disjoint.
    group_of : array of shape (k,)
        The group of each centroid.
    drift : array of shape (k,), float32, or None
        How far each centroid moved since the last pass.
    drifts : array of shape (groups, k), float32
        By label, how far the centroids of each group moved at most, the row's own centroid left out.
    """

    scored: Scored
    centred: Array
    groups: list[tuple[Array, Array, Array]]
    group_of: Array
    drift: Array | None
    drifts: Array | None


def members(matrix: Matrix, work: Work, c: Array, bounds: str) -> list[np.ndarray]:
    """Return the numbers of the centroids `c` (k, d) by group, near ones together: one group is Hamerly's bound."""
    (n, d), k = matrix.shape, int(c.shape[0])
    everything = [np.arange(k)]
    if matrix.sparse or bounds in ("off", "hamerly") or k <= _GROUP:
        return everything
    if bounds == "auto" and (d <= 12 or k < _MANY):
        return everything
    found = groups(to_numpy(c).astype(np.float64, copy=False), _GROUP)
    return found if 4 * (2 + len(found)) * n <= work.max_bytes // 2 else everything


def _wear(
    xp: Namespace, upper: Array, lower: Array, labels: Array, drift: Array, drifts: Array
) -> tuple[Array, Array, Array]:
    """Return bounds upper (m,) and lower (groups, m) after centroids moved, and rows now in doubt.

    `drift` (k,) is how far each centroid moved, `drifts` (groups, k) how far the others of each
    group did at most, by label. What is given may be written to.
    """
    upper = (upper + xp.take(drift, labels)) * UP
    lower = (lower - xp.take(drifts, labels, axis=1)) * DOWN
    return upper, lower, unproven(xp, upper, lower)


def _joined(xp: Any, parts: list[tuple[Any, ...]]) -> tuple[Array, Array, Array]:
    """Return labels (m,), upper (m,) and lower (groups, m) of tiles, end to end."""
    if len(parts) == 1:
        return parts[0][:3]
    labels, upper, lower = ([part[i] for part in parts] for i in range(3))
    return xp.concat(labels), xp.concat(upper), xp.concat(lower, axis=1)


class Tiled(Search):
    """The search of the Array API: a tile of rows at a time, its blocks spread over threads.

    Parameters
    ----------
    frame : Frame
        The rows, and the coordinates to compare them in.
    kernel : Kernel
        What scores them.
    work : Work
        How the rows are cut into tiles and spread over threads.
    members : list of ndarray
        The centroids' numbers by group: one group is Hamerly's bound, several are Yinyang's.
    exact : bool
        Whether labels are certified.
    skip : bool
        Whether rows are skipped that bounds prove unchanged.
    drop : bool
        Whether groups are given up where they skip too little.
    """

    def __init__(
        self,
        frame: Frame,
        kernel: Kernel,
        work: Work,
        members: list[np.ndarray],
        *,
        exact: bool = True,
        skip: bool = True,
        drop: bool = False,
    ) -> None:
        self.frame, self.kernel, self.work = frame, kernel, work
        self.matrix, self.xp, self.shape = frame.matrix, frame.xp, frame.matrix.shape
        self._members, self._exact, self._skip, self._drop = members, exact, skip, drop
        # Score in float32 where that can tell centroids apart and the library really does it.
        self._narrow = (
            full_float32_products(self.matrix.source)
            and Bounds.of(self.matrix.features, 2.0**-24, self.matrix.terms).sound
        )
        self._centroids: Array | None = None
        self._passes = 0
        self._tile = self._tile_rows()
        # A block's bounds are worked on whole: keep them in the cache, too.
        share = -(-self.shape[0] // (4 * work.threads))
        length = max(self._tile, min(share, 1 << 16, work.room // (len(members) + 4)))
        self._blocks = [Block(s.start, s.stop) for s in work.tiles(step=max(1, length))]

    @property
    def labels(self) -> Array:
        """The labels (n,) of the last centroids."""
        return self.xp.concat([block.labels for block in self._blocks])

    def _tile_rows(self) -> int:
        """Return how many rows to score at once."""
        d, groups = self.work.d, len(self._members)
        widest = max(len(ids) for ids in self._members)
        if not self.kernel.host:
            return max(1, self.work.room // (widest + 4 * groups + d))
        if groups > 1:  # long, so that the few rows that want a group are many
            rows = min(1 << 16, (1 << 22) // d)
        else:  # what Python spends on a tile counts for more than scores that leave the L2 cache
            rows = min((1 << 20) // widest, (1 << 21) // d)
        return max(1, min(rows, self.work.room // (widest + groups + d)))

    def _prepared(self, c: Array) -> Pass:
        xp, asarray = self.xp, self.matrix.asarray
        wide = self.frame.widen(c)
        dtype = xp.float32 if self._narrow else xp.float64
        near = self.frame.centre(wide)
        if self.matrix.sparse:  # in one group, whose coefficients are all that is needed
            centred = near
            minus_2c, norms = coefficients(near, dtype, 1)
        else:
            norms = xp.astype(xp.sum(near * near, axis=1), dtype)
            centred = xp.astype(near, dtype)
            minus_2c = xp.permute_dims(centred * -2.0, (1, 0))
        # Indices: four bytes a row in NumPy; torch wants int64 to index with.
        number = xp.int32 if self.kernel.host else xp.int64
        groups, group_of = [], np.zeros(int(c.shape[0]), dtype=np.int64)
        for g, ids in enumerate(self._members):
            group_of[ids] = g
            if len(self._members) == 1:
                groups.append((asarray(ids, number), minus_2c, norms))
            else:
                at = asarray(ids, number)
                part = xp.take(centred, at, axis=0) * -2.0
                groups.append((at, xp.permute_dims(part, (1, 0)), xp.take(norms, at)))
        drift = drifts = None
        if self._centroids is not None:
            before = self.frame.widen(self._centroids)
            moved = to_numpy(xp.sqrt(self.kernel.moves(self.matrix, wide, before)))
            drift, drifts = (asarray(a, xp.float32) for a in self._drifts(moved * UP))
        group_of = asarray(group_of, number)
        unit = 2.0**-24 if self._narrow else 2.0**-53
        bounds = Bounds.of(self.matrix.features, unit, self.matrix.terms)
        return Pass(Scored(wide, minus_2c, norms, bounds), centred, groups, group_of, drift, drifts)

    def _drifts(self, moved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return moves (k,), and by own centroid the most that each group's others moved (groups, k)."""
        table = np.empty((len(self._members), moved.shape[0]))
        for g, ids in enumerate(self._members):
            order = ids[np.argsort(moved[ids])]
            table[g] = moved[order[-1]]
            table[g, order[-1]] = moved[order[-2]] if len(order) > 1 else 0.0
        return moved * UP + TINY, table * UP + TINY

    def relabel(self, c: Array) -> tuple[list[Change], int]:
        """Give every row its nearest centroid of `c`; return changes, and how many rows changed."""
        turn, n = self._prepared(c), self.shape[0]
        first = self._centroids is None
        found = self.work.map(lambda block: self._relabel_block(block, turn), self._blocks)
        self._centroids = c
        if self._narrow and sum(hard for _, hard, _ in found) > n // 5:
            self._narrow = False  # float32 cannot tell these centroids apart: score in float64
        scored = sum(scored for _, _, scored in found) / n / int(c.shape[0])
        self._passes += 1
        if self._drop and self._passes > 3 and scored > _ENOUGH:
            self._drop_groups()
        changes = [change for change, _, _ in found if change is not None]
        return changes, n if first else sum(int(rows.shape[0]) for rows, _, _ in changes)

    def _drop_groups(self) -> None:
        """Go on with one bound a row: the lowest of its groups' is one."""
        self._members = [np.arange(sum(len(ids) for ids in self._members))]
        for block in self._blocks:
            block.lower = self.xp.min(block.lower, axis=0)[None, :]
        self._tile = self._tile_rows()

    def _relabel_block(self, block: Block, turn: Pass) -> tuple[Change | None, int, int]:
        """Bring the block up to date; return what changed, rows not proven, distances scored."""
        xp = self.xp
        first = block.labels is None
        old = block.labels
        if first or not self._skip or turn.drift is None:
            active = None
        else:
            block.upper, block.lower, active = _wear(
                xp, block.upper, block.lower, old, turn.drift, turn.drifts
            )
            if active.shape[0] == 0:
                return None, 0, 0
            # To gather most of sparse rows takes longer than to score them all.
            if active.shape[0] * (2 if self.matrix.sparse else 1) >= block.stop - block.start:
                active = None
        parts = []
        count = block.stop - block.start if active is None else int(active.shape[0])
        for tile in self.work.tiles(0, count, self._tile):
            at: Selection = tile
            select: Selection = slice(block.start + tile.start, block.start + tile.stop)
            if active is not None:
                at = active[tile]
                select = at + block.start
            parts.append(self._assign(select, turn, None if first else self._state(block, at)))
        labels, upper, lower = _joined(xp, parts)
        hard, scored = (sum(part[i] for part in parts) for i in (3, 4))
        if active is None:
            block.labels, block.upper, block.lower = labels, upper, lower
            if first:
                return None, hard, scored
            (moved,) = xp.nonzero(labels != old)
            change = moved + block.start, xp.take(old, moved), xp.take(labels, moved)
            return change, hard, scored
        before = xp.take(old, active)
        (moved,) = xp.nonzero(labels != before)
        block.labels = put(xp, block.labels, active, labels)
        block.upper = put(xp, block.upper, active, upper)
        block.lower = xp.stack(
            [put(xp, block.lower[g, :], active, lower[g, :]) for g in range(lower.shape[0])]
        )
        rows = xp.take(active, moved) + block.start
        return (rows, xp.take(before, moved), xp.take(labels, moved)), hard, scored

    def _state(self, block: Block, at: Selection) -> tuple[Array, Array, Array]:
        if isinstance(at, slice):
            return block.labels[at], block.upper[at], block.lower[:, at]
        xp = self.xp
        return (
            xp.take(block.labels, at),
            xp.take(block.upper, at),
            xp.take(block.lower, at, axis=1),
        )

    def _assign(
        self, select: Selection, turn: Pass, state: tuple[Array, Array, Array] | None
    ) -> tuple[Array, Array, Array, int, int]:
        """Return certified labels (m,), upper (m,), lower (groups, m), rows not proven, scores made."""
        xp = self.xp
        y = self.frame.centred(select, turn.scored.norms.dtype == xp.float32)
        if len(turn.groups) == 1:
            labels, best, second = self.kernel.nearest(xp, y, *turn.groups[0][1:])
            upper, lower = interval(xp, y, best, second, turn.scored.bounds)
            lower, scored = lower[None, :], 0  # what is scored matters only where there are groups
        else:
            labels, upper, lower, scored = self._assign_groups(y, turn, state)
        labels = xp.astype(labels, turn.group_of.dtype)
        hard = 0
        if self._exact:
            at = unproven(xp, upper, lower)
            hard = int(at.shape[0])
            if hard:
                rows = at + select.start if isinstance(select, slice) else xp.take(select, at)
                decide = Differences(self.frame, self.kernel, self.work, turn.scored)
                found, above, far = decide.resolve(take_rows(xp, y, at), rows, xp.take(labels, at))
                upper = put(xp, upper, at, above)
                distance = put(xp, xp.full_like(upper, xp.inf), at, far)
                after = put(xp, xp.asarray(labels, copy=True), at, found)
                lower = self._left_behind(turn, lower, labels, after, distance)
                labels = after
        return labels, upper, lower, hard, scored

    def _assign_groups(
        self,
        y: Array,
        turn: Pass,
        state: tuple[Array, Array, Array] | None,
    ) -> tuple[Array, Array, Array, int]:
        """Return labels (m,), upper (m,), lower (groups, m) and scores made: of groups in doubt."""
        xp = self.xp
        m, groups = int(y.shape[0]), len(turn.groups)
        bounds, norm = turn.scored.bounds, squared_norms(xp, y)
        on = {"device": self.matrix.device}
        if state is None:
            labels = xp.full((m,), -1, dtype=turn.group_of.dtype, **on)
            best = xp.full((m,), xp.inf, dtype=y.dtype, **on)
            need = xp.ones((groups, m), dtype=xp.bool, **on)
            bound = [xp.full((m,), xp.inf, dtype=xp.float32, **on) for _ in range(groups)]
        else:
            old, _, lower = state
            own = xp.vecdot(y, xp.take(turn.centred, old, axis=0)) * -2.0
            own = own + xp.take(turn.scored.norms, old)
            need = lower <= (bounds.at_most(xp, norm, own) * GAP)[None, :]
            labels, best = xp.asarray(old, copy=True), xp.asarray(own, copy=True)
            bound = [xp.asarray(lower[g, :], copy=True) for g in range(groups)]
        scored = []
        for g, (ids, minus_2c, norms) in enumerate(turn.groups):
            (at,) = xp.nonzero(need[g, :])
            if at.shape[0] == 0:
                continue
            part, part_norm = y, norm
            if at.shape[0] < m:
                part, part_norm = xp.take(y, at, axis=0), xp.take(norm, at)
            found, low, second = self.kernel.nearest(xp, part, minus_2c, norms)
            who = xp.take(ids, found)
            bound[g] = put(xp, bound[g], at, bounds.at_least(xp, part_norm, low))
            (closer,) = xp.nonzero(low < xp.take(best, at))
            best = put(xp, best, xp.take(at, closer), xp.take(low, closer))
            labels = put(xp, labels, xp.take(at, closer), xp.take(who, closer))
            scored.append((g, at, who, part_norm, second))
        # In the group of its own label, a row's bound is that of the other centroids ...
        for g, at, who, part_norm, second in scored:
            (own_at,) = xp.nonzero(who == xp.take(labels, at))
            far = bounds.at_least(xp, xp.take(part_norm, own_at), xp.take(second, own_at))
            bound[g] = put(xp, bound[g], xp.take(at, own_at), far)
        lower = xp.stack(bound, axis=0)
        if state is not None:
            far = bounds.at_least(xp, norm, own)
            lower = self._left_behind(turn, lower, old, labels, far)
        made = sum(int(at.shape[0]) * int(turn.groups[g][0].shape[0]) for g, at, *_ in scored)
        return labels, bounds.at_most(xp, norm, best), lower, made

    def _left_behind(self, turn: Pass, lower: Array, old: Array, new: Array, far: Array) -> Array:
        """Return `lower` (groups, m) with the centroid a row left, at least `far`, counted as another's."""
        xp = self.xp
        (at,) = xp.nonzero(old != new)
        if at.shape[0] == 0:
            return lower
        numbers = self.matrix.arange(lower.shape[0])[:, None]
        left = (numbers == xp.take(turn.group_of, old)[None, :]) & (old != new)[None, :]
        return xp.where(left & (far[None, :] < lower), far[None, :], lower)
