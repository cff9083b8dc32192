"""Centroids by the LANES, near ones together, as compiled code takes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from anykmeans._groups import groups
from anykmeans.kernels.numba.simd import LANES


class Panels(NamedTuple):
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

    @property
    def number(self) -> int:
        """How many there are."""
        return self.ids.size // LANES

    def coefficients(self, near: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return ``-2 c`` (panels, d, LANES) and ``|c|^2`` (panels, LANES) of centred `near` (k, d)."""
        k, d = near.shape
        at = np.minimum(self.ids, k - 1)
        lanes = near[at].reshape(self.number, LANES, d).transpose(0, 2, 1)
        norms = np.einsum("kd,kd->k", near, near)[at]
        norms[self.ids == k] = np.inf
        minus_2c = np.empty(lanes.shape, dtype)
        np.multiply(lanes, -2.0, out=minus_2c, casting="same_kind")
        return minus_2c, norms.astype(dtype).reshape(-1, LANES)
