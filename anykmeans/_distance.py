"""The squared distance of two rows (R5): one fixed sequence of float64 operations, in every library."""

from __future__ import annotations

from anykmeans._libraries import Array, Namespace

_COLUMNS_FIRST = 16  # features up to which it pays to have them first


def squared_distances(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the squared distances (m,) of the rows of `a` (m, d) and `b` (m, d) or (1, d), float64.

    The squared differences are added by halving along the features, always in the same order and
    by elementwise operations alone: the same bits from every library, and zero for equal rows.
    """
    t = a - b
    return halving_sum(xp, t * t)


def halving_sum(xp: Namespace, t: Array) -> Array:
    """Return the sums (m,) of the rows of `t` (m, d) in the one order every kernel keeps."""
    m, d = int(t.shape[0]), int(t.shape[1])
    few = d <= _COLUMNS_FIRST
    if few:  # written out with the features first, so that operations are not as short as a row
        t = xp.reshape(xp.reshape(xp.permute_dims(t, (1, 0)), (d * m,)), (d, m))

    def part(start: int, stop: int) -> Array:
        return t[start:stop, :] if few else t[:, start:stop]

    half = 1 << max(0, (d - 1).bit_length() - 1)  # the largest power of two below d
    while d > 1:
        low = part(0, d - half) + part(half, d)
        t = low if d == 2 * half else xp.concat([low, part(d - half, half)], axis=0 if few else 1)
        d, half = half, half // 2
    return t[0, :] if few else t[:, 0]
