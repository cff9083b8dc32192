"""How codebooks learn: a batch of rows after the other, by exact sums that decay.

A batch labels its rows, adds their sums to those of all batches before, times a factor, and moves codes to the means of what they
have seen: the moving averages of van den Oord, Vinyals and Kavukcuoglu, "Neural discrete representation learning", NeurIPS 2017,
appendix A.1, and, with a factor of 1, k-means by mini-batches. Nothing is rounded before the rows of all processes are added up.
"""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding

from anykmeans._distance import halving_sum
from anykmeans._evaluate import counted, nearest
from anykmeans._grid import Grid
from anykmeans._kmeans import kmeans
from anykmeans._libraries import Array, has_float64, like, namespace, np_compat, on_cpu, to_numpy
from anykmeans._matrix import Dense
from anykmeans._stats import ClusterStats, Farthest
from anykmeans.kernels import Kernel
from anykmeans.kernels.agnostic import KERNEL
from anykmeans.sources.rows import Rows
from anykmeans.torch.ranks import Ranks

FOLDS = 3  # with what follows, sums hold 70 bits below the largest value there is room for
_AT_ONCE, _ROOM = 24, 40  # powers of two: rows of a batch, of all ranks, and what a code may weigh
_SPARE = 8  # powers of two by which later rows may be larger without another grid
NO_GRID = -2000  # an exponent below that of any number: there is no room yet
_FARTHEST = 64  # rows of a batch to which codes may be moved


@dataclass(frozen=True)
class State:
    """What codebooks have learnt: tensors, which are written to.

    Attributes
    ----------
    codebook : Tensor of shape (heads, k, d)
        The codes.
    sums : Tensor of shape (heads, k, FOLDS * (d + 1)), int64
        Decayed sums of their rows, as whole numbers: those of `ClusterStats`.
    exponents : Tensor of shape (heads,), int64
        Their grids: there is room for values below ``2**exponent``.
    idle : Tensor of shape (heads, k), int64
        How many batches in a row each code has won no row of.
    seen : Tensor of shape (), int64
        How many of the first rows, from which codes are clustered, there are.
    first : Tensor of shape (heads, m, d)
        Those rows, with room for as many as there are to be, and for none once there are.
    """

    codebook: Tensor
    sums: Tensor
    exponents: Tensor
    idle: Tensor
    seen: Tensor
    first: Tensor

    def grid(self, head: int) -> Grid:
        """Return the grid of a codebook's sums."""
        coarse = min(52 - _ROOM - int(self.exponents[head]), 1023)
        scale = np.ldexp(1.0, np.full(self.codebook.shape[2] + 1, coarse))
        scale[-1] = 2.0 ** (51 - _ROOM)  # of weights, which are 1
        return Grid(scale, 2.0 ** (53 - _AT_ONCE), FOLDS)

    def stats(self, head: int) -> ClusterStats:
        """Return the stats of a codebook: a copy where float64 can be computed, in NumPy on a CPU."""
        sums = self.sums[head]
        if on_cpu(sums) or not has_float64(sums):
            return ClusterStats(to_numpy(sums).astype(np.float64), self.grid(head))
        return ClusterStats(sums.to(torch.float64), self.grid(head))

    def fits(self, exponents: np.ndarray) -> bool:
        """Return whether there is room for values below powers of two (heads,)."""
        return bool((exponents <= to_numpy(self.exponents)).all())

    def make_room(self, exponents: np.ndarray) -> None:
        """Have room for values below powers of two (heads,), and for larger ones."""
        for head, exponent in enumerate(exponents.astype(np.int64).tolist()):
            if exponent > int(self.exponents[head]):
                stats = self.stats(head)
                self.exponents[head] = exponent + _SPARE
                self._keep(head, stats.on(self.grid(head)))

    def move(
        self, head: int, stats: ClusterStats, total: Array, won: np.ndarray, kernel: Kernel
    ) -> None:
        """Keep the stats, which mean sums `total` (k, d + 1), and move the codes that `won` (k,) rows to the means of theirs."""
        mass = total[:, -1] * like(won.astype(np.float64), total)
        c = self.codebook[head]
        c = c.to(torch.promote_types(c.dtype, torch.float32))
        if isinstance(total, np.ndarray):
            c = to_numpy(c)
        found = kernel.divide(namespace(total), total[:, :-1], mass, c)
        self.codebook[head] = torch.as_tensor(found)
        self._keep(head, stats)

    def _keep(self, head: int, stats: ClusterStats) -> None:
        self.sums[head] = torch.as_tensor(stats.sums)  # whole numbers, so that nothing is rounded


def codes(x: Tensor, codebook: Tensor) -> Tensor:
    """Return the nearest codes (n, heads) of rows `x` (n, heads, d) among `codebook` (heads, k, d), certified."""
    if x.shape[0] == 0:
        return x.new_zeros(x.shape[:2], dtype=torch.int64)
    found = [nearest(rows, c) for rows, c in zip(_apart(x), codebook, strict=True)]
    return torch.stack(found, dim=1)


def decode(codebook: Tensor, found: Tensor) -> Tensor:
    """Return the values (..., heads, d) that codes (..., heads) stand for in `codebook` (heads, k, d)."""
    # By an embedding each: there, numbers that would count from the end are errors.
    values = [embedding(found[..., head], c) for head, c in enumerate(codebook)]
    return torch.stack(values, dim=-2)


def learn(
    x: Tensor, state: State, *, decay: float, restart_after: int, seed: int, sync: bool
) -> tuple[Tensor, Tensor]:
    """Return values (n, heads, d) and codes (n, heads) of rows `x` (n, heads, d) before the codebooks learn from them.

    Codes that have won no row of `restart_after` batches in a row are moved to rows; 0 stands for never.
    """
    ranks = Ranks(sync, x.device)
    if int(state.seen) < state.first.shape[1]:
        _begin(x, state, ranks, seed)
        found = codes(x, state.codebook)
        return decode(state.codebook, found), found
    due = restart_after > 0 and int(state.idle.max()) + 1 >= restart_after
    batch = _counted(x, state, ranks, _FARTHEST if due else 0)
    values = decode(state.codebook, batch.codes)
    for head in range(x.shape[1]):
        _update(state, head, batch, decay, restart_after)
    return values, batch.codes


# -- the first rows -----------------------------------------------------------------------------


def _begin(x: Tensor, state: State, ranks: Ranks, seed: int) -> None:
    """Keep rows until there are enough, and cluster those that there are now and then."""
    rows = torch.stack(_apart(ranks.rows(x))).to(state.first.dtype)  # (heads, n, d)
    seen, n = int(state.seen), int(rows.shape[1])
    for each in rows if n else ():
        Rows.over(each)  # which refuses what is not finite, before it is kept
    more = min(n, state.first.shape[1] - seen)
    at = torch.arange(more, device=x.device) * n // max(more, 1)  # of a large batch, evenly
    state.first[:, seen : seen + more] = rows[:, at]
    state.seen.add_(more)
    # As often as there are twice as many, and once there are enough.
    again = (seen + more).bit_length() > seen.bit_length()
    again |= more > 0 and seen + more == state.first.shape[1]
    rng = np.random.default_rng(seed)
    for head in range(state.first.shape[0] if again else 0):
        _cluster(state, head, state.first[head, : seen + more], rng)


def _cluster(state: State, head: int, x: Tensor, rng: np.random.Generator) -> None:
    """Have codes be the means of clusters of the rows `x` (n, d)."""
    k = state.codebook.shape[1]
    distinct = len(np.unique(to_numpy(x), axis=0))
    found = kmeans(x, min(k, distinct), rng=rng)
    rows = Rows.over(x)
    state.exponents[head] = _exponent(rows) + _SPARE
    rows.add_on(state.grid(head))
    stats = rows.stats(Dense.over(found.labels, rows.kernel.library).data[:, 0], k)
    # Where there are fewer distinct rows than codes, other codes are equal to these, to which ties go.
    at = torch.arange(k, device=x.device) % found.centroids.shape[0]
    state.codebook[head] = found.centroids[at].to(state.codebook.dtype)
    state.idle[head] = 0
    total = rows.kernel.total(rows, stats)
    state.move(head, stats, total, np.ones(k, bool), rows.kernel)


# -- a batch ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """What a batch tells.

    Attributes
    ----------
    codes : Tensor of shape (n, heads), int64
        Of the rows here.
    sums : list of arrays of shape (k, FOLDS * (d + 1)), float64
        Of all ranks' rows, by code, for each head.
    farthest : list of Farthest
        Those of all ranks' rows that are farthest from their codes, for each head.
    kernel : Kernel
        What adds such sums.
    """

    codes: Tensor
    sums: list[Array]
    farthest: list[Farthest]
    kernel: Kernel


def _counted(x: Tensor, state: State, ranks: Ranks, most: int) -> Batch:
    """Return what a batch tells, with `most` of the farthest rows, and make room for its values."""
    (n, heads, d), all_rows, failed = x.shape, [], None
    needed = np.full(heads, float(NO_GRID))
    try:
        all_rows = [Rows.over(rows) for rows in _apart(x)] if n else []
        needed[: len(all_rows)] = [_exponent(rows) for rows in all_rows]
    except ValueError as error:  # of values that are not finite: no rank is to wait for this one
        needed[:], failed = np.inf, error
    found = x.new_zeros((n, heads), dtype=torch.int64)
    while True:
        sums, far = [], np.zeros((heads, most, 2 + FOLDS * (d + 1)))
        for head, rows in enumerate(all_rows if state.fits(needed) else []):
            rows.add_on(state.grid(head))
            c = to_numpy(state.codebook[head])
            labels, distances, _, whole = counted(rows, c, measured=most > 0)
            sums.append(whole)
            found[:, head] = rows.matrix.give(labels)
            if most:
                _pack(far[head], rows.farthest(labels, distances, most))
        sums = sums or [state.stats(head).sums * 0 for head in range(heads)]
        told, far, *sums = ranks.total([ranks.own(needed), ranks.own(far), *sums])
        needed = told.max(axis=0)
        if not np.isfinite(needed).all():
            raise failed or ValueError(
                "`x` must be finite; got NaN or infinity on another rank, whose error says where."
            )
        if state.fits(needed):
            farthest = [_unpacked(far[:, head]) for head in range(heads)]
            kernel = all_rows[0].kernel if n and all_rows[0].kernel.host else KERNEL
            return Batch(found, sums, farthest, kernel)
        state.make_room(needed)


def _update(state: State, head: int, batch: Batch, decay: float, restart_after: int) -> None:
    """Add the sums of a batch to those of a codebook, which decay, and move its codes."""
    stats = state.stats(head)
    if decay < 1:
        stats = stats.decayed(decay)
    more, columns = ClusterStats(batch.sums[head], stats.grid), stats.grid.scale.size
    won = to_numpy(more.sums[:, columns - 1 :: columns]).any(axis=1)
    idle = np.where(won, 0, to_numpy(state.idle[head]) + 1)
    stats, total = batch.kernel.joined(stats, more)
    # Those idle longest first, and equal ones as they are numbered.
    order = np.argsort(-idle, kind="stable")
    vacant = order[idle[order] >= restart_after]
    if vacant.size and batch.farthest[head].labels.size:
        far = _far_apart(batch.farthest[head], stats.grid, vacant.size)
        vacant = vacant[: far.labels.size]
        stats.sums[vacant] = 0
        stats = far.moved(stats, vacant).carried()
        total = stats.grid.total(namespace(total), stats.sums, like(stats.grid.scale, total))
        idle[vacant], won[vacant] = 0, True
    state.idle[head] = torch.from_numpy(idle)
    state.move(head, stats, total, won, batch.kernel)


def _far_apart(far: Farthest, grid: Grid, most: int) -> Farthest:
    """Return up to so many of the rows, one after the other the farthest from all codes and from those before it.

    Gonzalez, "Clustering to minimize the maximum intercluster distance", Theoretical Computer Science 1985. Rows that are alike,
    as of an image's background, would else be as many codes.
    """
    x = grid.total(np_compat, far.summands, grid.scale)[:, :-1]
    distances = far.distances.copy()
    picks: list[int] = []
    while len(picks) < most and distances.any():
        picks.append(int(distances.argmax()))
        distances = np.minimum(distances, halving_sum(np_compat, (x - x[picks[-1]]) ** 2))
    return Farthest(most, far.distances[picks], far.labels[picks], far.summands[picks])


def _exponent(rows: Rows) -> int:
    """Return the exponent of a power of two above all values."""
    return int(np.frexp(rows.largest)[1])


def _apart(x: Tensor) -> list[Tensor]:
    """Return the rows (n, d) of each head of `x` (n, heads, d), to be read in order."""
    return list(x.transpose(0, 1).contiguous())


def _pack(room: np.ndarray, far: Farthest) -> None:
    """Write the farthest rows into `room` (most, 2 + columns), zero otherwise: their distances, labels and summands."""
    m = far.labels.size
    room[:m, 0], room[:m, 1], room[:m, 2:] = far.distances, far.labels, far.summands


def _unpacked(packed: np.ndarray) -> Farthest:
    """Return the farthest rows of all ranks, `packed` (ranks, most, 2 + columns)."""
    parts = [part[part[:, 0] > 0] for part in packed]
    found = [
        Farthest(packed.shape[1], part[:, 0], part[:, 1].astype(np.int64), part[:, 2:])
        for part in parts
    ]
    return functools.reduce(operator.add, found)
