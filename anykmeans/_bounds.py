"""How far a score from a matrix product can be from the distance (R2): an interval that surely holds it.

The proof is in ``docs/proofs.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

from anykmeans._libraries import Array, Namespace
from anykmeans._sparse import SparseRows

# Bounds are kept as float32 distances, rounded outwards by more than float32 rounding takes, and by
# more than underflow does in a frame whose largest row is near 1.
UP, DOWN, TINY = 1 + 2.0**-22, 1 - 2.0**-22, 2.0**-120
GAP = 1 + 2.0**-20  # the factor between bounds that prove a label: more than any tie
FAR = 2.0**80  # a squared norm beyond which rows are out of the range of a frame, or not finite


@dataclass(frozen=True)
class Bounds:
    """How far a score can be from the truth, for rows of `d` features scored with roundoff `unit`.

    A score is ``s = fl(|c|^2 - 2 y.c)`` in any order of addition, and ``a = |y|^2 + s`` estimates
    the squared distance. With ``beta = (d + 8) unit <= 1/50`` the true squared distance D obeys
    ``lower(a) <= D <= upper(a)`` (proof in docs/proofs.md).
    """

    beta: float
    eta: float
    tie: float

    @classmethod
    def of(cls, d: int, unit: float, terms: int | None = None) -> Bounds:
        """Return the bounds for `d` features; `eta` covers underflow in the scaled frame.

        `terms`, by default `d`, is how many roundings a product passes through at most.
        """
        gamma = ((d - 1).bit_length() + 4) * 2.0**-53  # error of squared_distances
        terms = d if terms is None else terms
        return cls(
            8 * (terms + 8) * unit, d * (2.0**-100 if unit > 2.0**-30 else 2.0**-900), 4 * gamma
        )

    @property
    def sound(self) -> bool:
        """Whether the proof's premise holds; beyond it a wider dtype must do the scoring."""
        return self.beta <= 8 / 50

    def upper(self, xp: Namespace, a: Array, norm: Array) -> Array:
        """Return a value that no squared distance estimated as `a` exceeds; `norm` is ``|y|^2``."""
        return xp.where(a > 0, a * (1 + self.beta), a) + norm * self.beta + self.eta

    def lower(self, xp: Namespace, a: Array, norm: Array) -> Array:
        """Return a value that every squared distance estimated as `a` reaches."""
        return xp.where(a > 0, a * (1 - self.beta), a) - norm * self.beta - self.eta

    def at_most(self, xp: Namespace, norm: Array, scores: Array) -> Array:
        """Return float32 distances (m,) that the true ones of rows with these scores do not exceed."""
        squared = self.upper(xp, norm + xp.astype(scores, xp.float64), norm)
        root = xp.sqrt(xp.where(squared > 0, squared, xp.zeros_like(squared)))
        return xp.astype(root * UP + TINY, xp.float32)

    def at_least(self, xp: Namespace, norm: Array, scores: Array) -> Array:
        """Return float32 distances (m,) that the true ones of rows with these scores reach."""
        squared = self.lower(xp, norm + xp.astype(scores, xp.float64), norm)
        root = xp.sqrt(xp.where(squared > 0, squared, xp.zeros_like(squared)))
        return xp.astype(root * DOWN - TINY, xp.float32)


def squared_norms(xp: Namespace, y: Array | SparseRows) -> Array:
    """Return the squared norms (m,), float64, of rows `y` (m, d), as `Bounds` takes them."""
    if isinstance(y, SparseRows):
        return y.squared_norms()
    return xp.astype(xp.vecdot(y, y), xp.float64)
