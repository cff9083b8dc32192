"""Groups of near centroids: what several bounds a row, and panels of centroids, are about."""

from __future__ import annotations

import numpy as np


def groups(c: np.ndarray, size: int) -> list[np.ndarray]:
    """Return the numbers of the centroids `c` (k, d) in groups of at most `size`, near ones together.

    Halved again and again across the direction in which they spread most; all groups but the last
    cut of each half are full. Any grouping is right, a compact one skips more.
    """
    done, left = [], [np.arange(c.shape[0])]
    while left:
        part = left.pop()
        if part.size <= size:
            done.append(part)
            continue
        spread = c[part] - c[part].mean(axis=0)
        along = spread[np.argmax((spread * spread).sum(axis=1))]
        for _ in range(5):  # power iterations; a rough direction will do
            along = spread.T @ (spread @ along)
            length = np.abs(along).max()
            along = along / length if length > 0 else along
        order = part[np.argsort(spread @ along, kind="stable")]
        half = -(-part.size // (2 * size)) * size
        left += [order[half:], order[:half]]
    return done
