"""Labels that are proven (R2): what the interval of a score leaves open, float64 differences decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from anykmeans._bounds import DOWN, GAP, TINY, UP, Bounds, squared_norms
from anykmeans._frame import Frame
from anykmeans._libraries import Array, Namespace
from anykmeans._sparse import SparseRows
from anykmeans._work import Work

if TYPE_CHECKING:
    from anykmeans.kernels.agnostic import Kernel


@dataclass(frozen=True)
class Scored:
    """Centroids as they are scored with: ``|y|^2 + norms + y @ minus_2c`` estimates squared distances within `bounds`.

    Attributes
    ----------
    wide : array of shape (k, d), float64
        Centroids in the frame, for distances.
    minus_2c, norms : array of shape (d, k), (k,)
        In the scoring dtype.
    """

    wide: Array
    minus_2c: Array
    norms: Array
    bounds: Bounds


def interval(
    xp: Namespace, y: Array | SparseRows, best: Array, second: Array, bounds: Bounds
) -> tuple[Array, Array]:
    """Return float32 distances (m,): at most to the nearest, at least to the second nearest centroid."""
    norm = squared_norms(xp, y)
    return bounds.at_most(xp, norm, best), bounds.at_least(xp, norm, second)


def unproven(xp: Namespace, upper: Array, lower: Array) -> Array:
    """Return the rows whose bounds, upper (m,) and lower (groups, m), do not prove their label."""
    return xp.nonzero(~(upper * GAP < xp.min(lower, axis=0)))[0]


@dataclass(frozen=True)
class Differences:
    """What decides where scores do not: float64 differences of rows, made by a kernel, to `scored` centroids."""

    frame: Frame
    kernel: Kernel
    work: Work
    scored: Scored

    def resolve(
        self, y: Array | SparseRows, rows: Array, guess: Array
    ) -> tuple[Array, Array, Array]:
        """Return labels (m,), upper (m,) and a lower bound (m,) for the label guessed, of the `rows` (m,), centred `y` (m, d).

        Float64 differences decide among the centroids that may be the nearest; equal distances go
        to the lowest label.
        """
        k = int(self.scored.norms.shape[0])
        step = max(1, self.work.tile // (k + self.work.d))
        parts = [
            self._tile(y[t, :], rows[t], guess[t])
            for t in self.work.tiles(0, int(rows.shape[0]), step)
        ]
        labels, upper, lower = (
            parts[0][i] if len(parts) == 1 else self.frame.xp.concat([part[i] for part in parts])
            for i in range(3)
        )
        return labels, upper, lower

    def _tile(self, y: Array | SparseRows, rows: Array, guess: Array) -> tuple[Array, Array, Array]:
        xp, bounds = self.frame.xp, self.scored.bounds
        norm = squared_norms(xp, y)
        k = int(self.scored.norms.shape[0])
        scores = xp.astype(y @ self.scored.minus_2c + self.scored.norms, xp.float64)
        estimates = norm[:, None] + scores  # (m, k)
        least = bounds.lower(xp, estimates, norm[:, None])
        most = bounds.upper(xp, norm + xp.min(scores, axis=1), norm) * (1 + 3 * bounds.tie)
        who, candidates = xp.nonzero(least <= most[:, None])
        pairs = int(who.shape[0])
        step = max(1, self.work.tile // self.work.d)
        found = xp.concat(
            [
                self.kernel.own_distances(
                    self.frame, xp.take(rows, who[t]), self.scored.wide, candidates[t]
                )
                for t in self.work.tiles(0, pairs, step)
            ]
        )
        # The pairs come row by row: line each row's up, padded with infinity.
        count = xp.sum(xp.astype(least <= most[:, None], xp.int64), axis=1)
        start = xp.cumulative_sum(count) - count
        numbers = self.frame.matrix.arange(int(xp.max(count)))[None, :]
        used = numbers < count[:, None]
        place = xp.where(used, start[:, None] + numbers, xp.zeros_like(start)[:, None])
        flat = xp.reshape(place, (-1,))
        distance = xp.where(used, xp.reshape(xp.take(found, flat), place.shape), xp.inf)
        number = xp.reshape(xp.take(candidates, flat), place.shape)
        shortest = xp.min(distance, axis=1)
        tied = distance <= (shortest * (1 + bounds.tie))[:, None]
        labels = xp.min(xp.where(tied, number, xp.full_like(number, k)), axis=1)
        left = xp.take_along_axis(least, xp.astype(guess, number.dtype)[:, None], axis=1)[:, 0]
        left = xp.sqrt(xp.where(left > 0, left, xp.zeros_like(left))) * DOWN - TINY
        upper = xp.sqrt(shortest) * UP + TINY
        return (
            xp.astype(labels, guess.dtype),
            xp.astype(upper, xp.float32),
            xp.astype(left, xp.float32),
        )
