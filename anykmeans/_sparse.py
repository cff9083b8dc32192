"""Sparse rows: what is done to the entries of a CSR matrix, so that rows are never made dense.

The distance of two rows has one order of addition, by halving along all features (R5): a binary tree. For a sparse row
nearly all of what is added is the centroid's own, sums that are made once for a centroid; a row has leaves of its own
where it has entries, and the sums above them. The result has the bits of the dense row's distance, for a few operations an
entry. Features without an entry are leaves of zero, which change no sum: they are left out of the tree, and of
centroids.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

_PART = 1 << 14  # values that are looked at together
_FEATURES_A_COLUMN = 4  # features for each column: where there are fewer, columns are features


@dataclass(frozen=True)
class SparseRows:
    """Rows as CSR holds them, no entry twice. Some of them share the entries of all.

    Attributes
    ----------
    begins, ends : ndarray of shape (m,)
        Row i has the entries from ``begins[i]`` to ``ends[i]``.
    features, values : ndarray of shape (entries,)
        The column an entry is in, and its value.
    halving : Halving
        What the columns are, and in which order a distance adds them up.
    alone : bool
        Whether the entries are those of these rows, one row after the other.
    """

    begins: np.ndarray
    ends: np.ndarray
    features: np.ndarray
    values: np.ndarray
    halving: Halving
    alone: bool = True

    @classmethod
    def of(cls, x: Any, c: np.ndarray | None, max_bytes: float) -> SparseRows:
        """Return the rows of a SciPy CSR matrix or array, where they are.

        If most features have no entry, and are zero in all of `c` (k, d), if given, they have no column; that takes new
        numbers of features, which must fit `max_bytes`.
        """
        starts, d = x.indptr, int(x.shape[1])
        features, values = x.indices[: starts[-1]], x.data[: starts[-1]]
        if not x.has_canonical_format:
            starts, features, values = _without_repeats(starts, features, values, d)
        begins, ends = starts[:-1], starts[1:]
        if _FEATURES_A_COLUMN * features.size < d and 2 * features.nbytes + 16 * d < max_bytes:
            used = np.zeros(d, bool)
            used[features] = True
            if c is not None:
                used |= c.any(axis=0)
            if _FEATURES_A_COLUMN * np.count_nonzero(used) < d:
                columns = np.flatnonzero(used) if used.any() else np.arange(1)
                number = np.empty(d, features.dtype)
                number[columns] = np.arange(columns.size, dtype=features.dtype)
                return cls(begins, ends, number[features], values, Halving(columns, d))
        return cls(begins, ends, features, values, Halving(np.arange(d), d))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.begins.shape[0], self.halving.columns.size

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def entries(self) -> int:
        """How many entries all rows have."""
        return self.values.size if self.alone else int((self.ends - self.begins).sum())

    @property
    def largest(self) -> float:
        """The largest magnitude of a value."""
        values = self.gathered.values
        return max(float(values.max()), -float(values.min())) if values.size else 0.0

    @property
    def integral(self) -> bool:
        """Whether every value is a whole number, those that rows share with others too."""
        if "whole" not in vars(self):  # as `Halving` keeps its tree
            v = self.values
            parts = (v[i : i + _PART] for i in range(0, v.size, _PART))
            object.__setattr__(self, "whole", all((np.rint(a) == a).all() for a in parts))
        return bool(vars(self)["whole"])

    @property
    def longest(self) -> int:
        """How many entries a row has at most."""
        return int((self.ends - self.begins).max(initial=0))

    def __getitem__(self, select: Any) -> SparseRows:
        """Return some rows, with all features, by a slice or by numbers (m,); entries are not copied."""
        if isinstance(select, tuple):  # array libraries want it said that all features are meant
            select = select[0]
        begins, ends = self.begins[select], self.ends[select]
        if not (self.alone and isinstance(select, slice)):
            rows = replace(self, begins=begins, ends=ends, alone=False)
            object.__setattr__(rows, "whole", self.integral)  # not to be found out each time
            return rows
        if begins.size == self.begins.size:
            return self
        first, last = (begins[0], ends[-1]) if begins.size else (0, 0)
        features, values = self.features[first:last], self.values[first:last]
        return SparseRows(begins - first, ends - first, features, values, self.halving)

    @property
    def gathered(self) -> SparseRows:
        """The same rows with their own entries alone, a copy if they share them."""
        if self.alone:
            return self
        counts = self.ends - self.begins
        ends = np.cumsum(counts, dtype=self.ends.dtype)
        begins = ends - counts
        at = np.repeat(self.begins - begins, counts)
        at += np.arange(at.size, dtype=at.dtype)
        return SparseRows(begins, ends, self.features[at], self.values[at], self.halving)

    def _with(self, values: np.ndarray) -> SparseRows:
        return replace(self, values=values)

    def times(self, factor: float) -> SparseRows:
        """Return the rows with every value multiplied."""
        if factor == 1.0:
            return self
        rows = self.gathered
        return rows._with(rows.values * self.dtype.type(factor))

    def divided(self, lengths: np.ndarray, powers: np.ndarray | None, dtype: Any) -> SparseRows:
        """Return the rows times powers of two (m,), if any, over lengths (m,), in float64 and then in `dtype`, if any."""
        rows = self.gathered
        owners, values = rows.owners, rows.values.astype(np.float64)
        if powers is not None:
            values *= powers[owners]
        values /= lengths[owners]
        return rows._with(values if dtype is None else values.astype(dtype, copy=False))

    def astype(self, dtype: Any) -> SparseRows:
        """Return the rows in another dtype, themselves if it is theirs."""
        if self.dtype == dtype:
            return self
        rows = self.gathered
        return rows._with(rows.values.astype(dtype))

    def dense(self) -> np.ndarray:
        """Return the rows as an array (m, columns)."""
        rows, found = self.gathered, np.zeros(self.shape, self.dtype)
        found[rows.owners, rows.features] = rows.values
        return found

    def __matmul__(self, dense: np.ndarray) -> np.ndarray:
        """Return the product (m, k) with an array (columns, k), in the dtype of that."""
        from scipy.sparse import csr_array  # which the rows are of

        rows = self.gathered
        values, starts = rows.values.astype(dense.dtype, copy=False), np.append(0, rows.ends)
        x = csr_array((values, rows.features, starts.astype(rows.ends.dtype)), shape=self.shape)
        found: np.ndarray = x @ dense
        return found

    def magnitudes(self) -> np.ndarray:
        """Return the largest magnitude (m,), float64, in each row."""
        rows, found = self.gathered, np.zeros(self.shape[0])
        np.maximum.at(found, rows.owners, np.abs(rows.values.astype(np.float64)))
        return found

    def squared_norms(self) -> np.ndarray:
        """Return the squared norms (m,), float64."""
        rows = self.gathered
        values = rows.values.astype(np.float64, copy=False)
        return np.bincount(rows.owners, values * values, self.shape[0])

    @property
    def owners(self) -> np.ndarray:
        """The row (entries,) of each entry."""
        return np.repeat(np.arange(self.shape[0]), self.ends - self.begins)

    def squared_distances(self, c: np.ndarray) -> np.ndarray:
        """Return the squared distances (m,) to one centroid `c` (columns,), float64: R5, bit for bit."""
        if not self.alone:
            return self.gathered.squared_distances(c)
        halving, row = self.halving, self.owners
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
