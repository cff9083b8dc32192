"""Sparse rows: what is done to the entries of a CSR matrix, so that rows are never made dense.

The distance of two rows has one order of addition, by halving along all features (R5): a binary tree. For a sparse row
nearly all of what is added is the centroid's own, sums that are made once for a centroid; a row has leaves of its own
where it has entries, and the sums above them. The result has the bits of the dense row's distance, for a few operations an
entry. Features without an entry are leaves of zero, which change no sum: they are left out of the tree, and of
centroids.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

_FEW = 4  # features for each column: where there are fewer, columns are features


@dataclass(frozen=True)
class SparseRows:
    """Rows as CSR holds them, no entry twice.

    Attributes
    ----------
    starts : ndarray of shape (m + 1,)
        Row i has the entries from ``starts[i]`` to ``starts[i + 1]``.
    features, values : ndarray of shape (entries,)
        The column an entry is in, and its value.
    halving : Halving
        What the columns are, and in which order a distance adds them up.
    """

    starts: np.ndarray
    features: np.ndarray
    values: np.ndarray
    halving: Halving

    @classmethod
    def of(cls, x: Any, c: np.ndarray | None, max_bytes: float) -> SparseRows:
        """Return the rows of a SciPy CSR matrix or array, where they are.

        If most features have no entry, and are zero in all of `c` (k, d), if given, they have no column; that takes new
        numbers of features, which must fit `max_bytes`.
        """
        starts, features, values, d = x.indptr, x.indices, x.data, int(x.shape[1])
        if not x.has_canonical_format:
            starts, features, values = _without_repeats(starts, features, values, d)
        if _FEW * features.size < d and 2 * features.nbytes + 16 * d < max_bytes:
            used = np.zeros(d, bool)
            used[features] = True
            if c is not None:
                used |= c.any(axis=0)
            if _FEW * np.count_nonzero(used) < d:
                columns = np.flatnonzero(used) if used.any() else np.arange(1)
                number = np.empty(d, features.dtype)
                number[columns] = np.arange(columns.size, dtype=features.dtype)
                return cls(starts, number[features], values, Halving(columns, d))
        return cls(starts, features, values, Halving(np.arange(d), d))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.starts.shape[0] - 1, self.halving.columns.size

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def entries(self) -> int:
        """How many entries all rows have."""
        return int(self.starts[-1] - self.starts[0])

    @property
    def largest(self) -> float:
        """The largest magnitude of a value."""
        if not self.values.size:
            return 0.0
        return max(float(self.values.max()), -float(self.values.min()))

    @property
    def longest(self) -> int:
        """How many entries a row has at most."""
        return int(np.diff(self.starts).max(initial=0))

    def __getitem__(self, select: Any) -> SparseRows:
        """Return some rows, with all features: by a slice, as views, or by numbers (m,)."""
        if isinstance(select, tuple):  # array libraries want it said that all features are meant
            select = select[0]
        if isinstance(select, slice):
            first, last, _ = select.indices(self.shape[0])
            if last - first == self.shape[0]:
                return self
            starts = self.starts[first : max(first, last) + 1]
            part = slice(int(starts[0]), int(starts[-1]))
            return self._with(starts - starts[0], self.features[part], self.values[part])
        counts = self.starts[1:][select] - self.starts[:-1][select]
        starts = np.zeros(counts.size + 1, self.starts.dtype)
        np.cumsum(counts, out=starts[1:])
        at = np.arange(starts[-1]) + np.repeat(self.starts[:-1][select] - starts[:-1], counts)
        return self._with(starts, self.features[at], self.values[at])

    def _with(self, starts: np.ndarray, features: np.ndarray, values: np.ndarray) -> SparseRows:
        return SparseRows(starts, features, values, self.halving)

    def times(self, factor: float) -> SparseRows:
        """Return the rows with every value multiplied."""
        if factor == 1.0:
            return self
        return self._with(self.starts, self.features, self.values * self.dtype.type(factor))

    def astype(self, dtype: Any) -> SparseRows:
        """Return the rows in another dtype, themselves if it is theirs."""
        if self.dtype == dtype:
            return self
        return self._with(self.starts, self.features, self.values.astype(dtype))

    def dense(self) -> np.ndarray:
        """Return the rows as an array (m, columns)."""
        found = np.zeros(self.shape, self.dtype)
        found[self._owners(), self.features] = self.values
        return found

    def __matmul__(self, dense: np.ndarray) -> np.ndarray:
        """Return the product (m, k) with an array (columns, k), in the dtype of that."""
        from scipy.sparse import csr_array  # which the rows are of

        values = self.values.astype(dense.dtype, copy=False)
        x = csr_array((values, self.features, self.starts), shape=self.shape)
        found: np.ndarray = x @ dense
        return found

    def magnitudes(self) -> np.ndarray:
        """Return the largest magnitude (m,), float64, in each row."""
        found = np.zeros(self.shape[0])
        np.maximum.at(found, self._owners(), np.abs(self.values.astype(np.float64)))
        return found

    def squared_norms(self) -> np.ndarray:
        """Return the squared norms (m,), float64."""
        values = self.values.astype(np.float64, copy=False)
        return np.bincount(self._owners(), values * values, self.shape[0])

    def _owners(self) -> np.ndarray:
        """Return the row (entries,) of each entry."""
        return np.repeat(np.arange(self.shape[0]), np.diff(self.starts))

    def squared_distances(self, c: np.ndarray) -> np.ndarray:
        """Return the squared distances (m,) to one centroid `c` (columns,), float64: R5, bit for bit."""
        halving, row = self.halving, self._owners()
        own = halving.sums((c * c)[None, :])[0]
        order = np.argsort(row << halving.height | halving.keys[self.features])
        row, node = row[order], self.features[order].astype(np.int64)
        t = self.values[order].astype(np.float64, copy=False) - c[node]
        t *= t
        for height in range(1, halving.height + 1):
            # Siblings are neighbours here; who is alone is added to what the centroid has beside it.
            parent = halving.parent[node]
            here = halving.heights[parent] == height
            twin = np.zeros(row.size, bool)
            twin[:-1] = here[1:] & (parent[1:] == parent[:-1]) & (row[1:] == row[:-1])
            second = np.zeros(row.size, bool)
            second[1:] = twin[:-1]
            alone = here & ~twin & ~second
            t[alone] += own[halving.sibling[node[alone]]]
            (first,) = np.nonzero(twin)
            t[first] += t[first + 1]
            keep = ~second
            row, node, t = row[keep], np.where(here, parent, node)[keep], t[keep]
        found = np.full(self.shape[0], own[-1])
        found[row] = t
        return found


@dataclass(frozen=True)
class Halving:
    """In which order the columns of sparse rows are added up: the tree of R5, without leaves that are always zero.

    Nodes are numbered leaves first, each that of its column, then sums from the lowest up; the root is the last.

    Attributes
    ----------
    columns : ndarray of shape (m,)
        The feature that each column is of.
    d : int
        How many features there are in all.
    """

    columns: np.ndarray
    d: int

    @property
    def complete(self) -> bool:
        """Whether each feature has its column."""
        return self.columns.size == self.d

    @property
    def height(self) -> int:
        """How many additions are above a leaf, if none is left out."""
        return (self.d - 1).bit_length()

    @property
    def keys(self) -> np.ndarray:
        """The place (m,) of each column among the leaves: its feature's number with the bits reversed."""
        return reversed_bits(self.columns, self.d)

    @property
    def _tree(self) -> tuple[np.ndarray, ...]:
        """Parents, siblings and heights (2 m - 1,), and the two children (m - 1,) of each sum."""
        # Kept by hand, as `functools.cached_property` has a lock that a forked process would wait for.
        if "grown" not in vars(self):
            object.__setattr__(self, "grown", self._grow())
        found: tuple[np.ndarray, ...] = vars(self)["grown"]
        return found

    def _grow(self) -> tuple[np.ndarray, ...]:
        m = self.columns.size
        order = np.argsort(self.keys)
        key = self.keys[order]
        # Two neighbours are first added together where their places begin to agree.
        height = np.frexp((key[1:] ^ key[:-1]).astype(np.float64))[1]
        gaps = np.argsort(height, kind="stable")
        parent, sibling = np.full(2 * m - 1, 2 * m - 1, np.int32), np.zeros(2 * m - 1, np.int32)
        left, right = np.empty(m - 1, np.int32), np.empty(m - 1, np.int32)
        begins, ends = (
            order.astype(np.int32),
            order.astype(np.int32),
        )  # the node from, or up to, a place
        first, last = np.arange(2 * m - 1), np.arange(2 * m - 1)  # places of a node
        first[order] = last[order] = np.arange(m)
        stops = np.searchsorted(height[gaps], np.arange(1, self.height + 2))
        for start, stop in itertools.pairwise(stops):
            gap, node = gaps[start:stop], np.arange(m + start, m + stop)
            a, b = ends[gap], begins[gap + 1]
            left[start:stop], right[start:stop] = a, b
            parent[a] = parent[b] = node
            sibling[a], sibling[b] = b, a
            first[node], last[node] = first[a], last[b]
            begins[first[node]] = ends[last[node]] = node
        heights = np.zeros(2 * m, np.int32)
        heights[m : 2 * m - 1] = height[gaps]
        heights[-1] = 62  # of what is above the root
        return parent, sibling, heights, left, right

    parent = property(lambda self: self._tree[0], doc="The sum (2 m - 1,) above each node.")
    sibling = property(lambda self: self._tree[1], doc="What each node is added to (2 m - 1,).")
    heights = property(
        lambda self: self._tree[2], doc="The height of each node, and above the root."
    )
    children = property(lambda self: self._tree[3:], doc="The two nodes (m - 1,) of each sum.")

    def sums(self, leaves: np.ndarray) -> np.ndarray:
        """Return all nodes' sums (k, 2 m - 1) of `leaves` (k, m), float64; the last are the totals."""
        m, (left, right) = self.columns.size, self.children
        found = np.empty((leaves.shape[0], 2 * m - 1))
        found[:, :m] = leaves
        heights = self.heights[m : 2 * m - 1]
        stops = np.searchsorted(heights, np.arange(1, self.height + 2))
        for start, stop in itertools.pairwise(stops):
            found[:, m + start : m + stop] = (
                found[:, left[start:stop]] + found[:, right[start:stop]]
            )
        return found


def coefficients(c: np.ndarray, dtype: Any, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ``-2 c`` (columns, slots), by rows, and squared norms (slots,) of centroids `c` (k, columns), float64.

    The slots are a multiple of `lanes`; those that are left over are infinitely far.
    """
    k, columns = c.shape
    slots = -(-k // lanes) * lanes
    minus_2c, norms = np.zeros((columns, slots), dtype), np.full(slots, np.inf, dtype)
    np.multiply(c.T, -2.0, out=minus_2c[:, :k], casting="same_kind")
    norms[:k] = np.einsum("kd,kd->k", c, c)
    return minus_2c, norms


def reversed_bits(numbers: np.ndarray, d: int) -> np.ndarray:
    """Return whole `numbers` (m,) with their bits reversed, int64, among as many as ``d - 1`` needs."""
    numbers, found = numbers.astype(np.int64), np.zeros(numbers.size, np.int64)
    for _ in range((d - 1).bit_length()):
        found = found << 1 | numbers & 1
        numbers >>= 1
    return found


def _without_repeats(
    starts: np.ndarray, features: np.ndarray, values: np.ndarray, d: int
) -> tuple[np.ndarray, ...]:
    """Return CSR arrays in which values given more than once are added, in their order, as in a dense array."""
    m = starts.size - 1
    key = np.repeat(np.arange(m, dtype=np.int64), np.diff(starts)) * d + features
    unique, which = np.unique(key, return_inverse=True)
    if unique.size == key.size:  # they are but out of order
        return starts, features, values
    added = np.zeros(unique.size, values.dtype)
    np.add.at(added, which, values)
    counts = np.bincount(unique // d, minlength=m)
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(starts.dtype)
    return ends, (unique % d).astype(features.dtype), added
