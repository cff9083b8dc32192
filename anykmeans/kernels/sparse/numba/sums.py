# mypy: allow-untyped-defs, allow-untyped-calls
"""What entries of sparse rows are read once for besides the search: magnitudes, exact sums, distances by R5."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from anykmeans._sparse import Halving, SparseRows
from anykmeans.kernels.numba.steps import halve, inline, inner, jit
from anykmeans.kernels.numba.sums import two_product
from anykmeans.kernels.numba.whole import meaning

if TYPE_CHECKING:
    from anykmeans._work import Work

TOGETHER = 512  # features whose sums are read together, as many as stay in the nearest cache
_ALONE = 1 << 14  # numbers that take no longer to go through than it takes to call another thread
SHORT = 64  # sums for each entry: so many are faster added up all than found one by one


@jit
def norms(begins, ends, values, found):
    """Write the squared norms (m,), float64, added in any order."""
    for row in range(found.shape[0]):
        total = 0.0
        for entry in range(begins[row], ends[row]):
            value = np.float64(values[entry])
            total += value * value
        found[row] = total


@jit
def magnitudes(begins, ends, features, values, w, high, largest, smallest):
    """Raise `high` (d,) to |x| and `largest` (d + 1,) to |w x| and w, lower `smallest` (d + 1,) to those not zero."""
    d = high.shape[0]
    for row in range(begins.shape[0]):
        weight = w[row] if w.shape[0] > 1 else w[0]
        largest[d] = weight if weight > largest[d] else largest[d]
        smallest[d] = weight if 0.0 < weight < smallest[d] else smallest[d]
        for entry in range(begins[row], ends[row]):
            f, value = features[entry], abs(np.float64(values[entry]))
            high[f] = value if value > high[f] or value != value else high[f]
            value *= weight
            largest[f] = value if value > largest[f] or value != value else largest[f]
            smallest[f] = value if 0.0 < value < smallest[f] else smallest[f]


@jit
def by_cluster(new, old, k):
    """Return the numbers of `new` (m,), and after them those of `old`, which may be empty, in the order of clusters.

    Also where each cluster begins (k + 1,).
    """
    m, total = new.shape[0], new.shape[0] + old.shape[0]
    begins, place, order = (
        np.zeros(k + 1, np.int64),
        np.empty(k, np.int64),
        np.empty(total, np.int64),
    )
    for i in range(total):
        begins[(new[i] if i < m else old[i - m]) + 1] += 1
    for j in range(k):
        place[j] = begins[j]
        begins[j + 1] += begins[j]
    for i in range(total):
        j = new[i] if i < m else old[i - m]
        order[place[j]] = i
        place[j] += 1
    return order, begins


def cluster_by_cluster(
    do: Callable[[np.ndarray], None], work: Work, new: np.ndarray, old: np.ndarray, k: int
) -> None:
    """Have threads do `by_cluster`'s order of the labels; each has clusters of its own, of about as many rows."""
    order, begins = by_cluster(new, old, k)
    count = threads(work, order.size * work.d)
    cuts = np.searchsorted(begins, np.arange(1, count) * order.size // count)
    work.map(do, np.split(order, begins[cuts]))


def threads(work: Work, numbers: int) -> int:
    """Return in how many threads to go through so many numbers."""
    return int(min(work.threads, 1 + numbers // _ALONE))


@jit
def accumulate(begins, ends, features, values, at, w, new, old, scale, step, folds, sums, order):
    """Add the rows `at` (m,) to their clusters `new` and take them from `old`, all that are listed in the `order`.

    `sums` (k, folds * (d + 1)) are whole numbers of the grid: as `Grid.split` makes them. To go cluster by cluster leaves
    what is added to in the cache.
    """
    m = at.shape[0]
    for p in order:
        i, sign = (p, 1.0) if p < m else (p - m, -1.0)
        cluster = new[i] if p < m else old[i]
        weight = w[i] if w.shape[0] > 1 else w[0]
        _add_row(
            begins[at[i]],
            ends[at[i]],
            features,
            values,
            weight,
            sign,
            scale,
            step,
            folds,
            sums,
            cluster,
        )


@jit
def totals(begins, ends, features, values, at, w, labels, scale, step, folds, found, order):
    """Write to `found` (k, d + 1) what the sums of the rows `at` (m,) mean, by label, of all that are listed in the `order`.

    One cluster after the other, so that sums which nobody wants to keep do not leave the cache.
    """
    columns, i = scale.shape[0], 0
    whole = np.empty((1, folds * columns))
    while i < order.shape[0]:
        label = labels[order[i]]
        for f in range(folds * columns):
            whole[0, f] = 0.0
        while i < order.shape[0] and labels[order[i]] == label:
            row, weight = at[order[i]], w[order[i]] if w.shape[0] > 1 else w[0]
            _add_row(
                begins[row], ends[row], features, values, weight, 1.0, scale, step, folds, whole, 0
            )
            i += 1
        for begin in range(0, columns, TOGETHER):
            end = begin + TOGETHER if begin + TOGETHER < columns else columns
            meaning(whole, 0, scale, begin, end, step, folds, found, label * columns + begin)


@inline
def _add_row(first, stop, features, values, weight, sign, scale, step, folds, sums, cluster):
    """Add the entries from `first` to `stop`, and the row's weight, one entry more."""
    d = scale.shape[0] - 1
    weighted = weight != 1.0
    for e in range(first, stop):
        f = np.uint64(features[e])  # a signed index would be looked at twice
        scaled = np.float64(values[e]) * scale[f]
        _add(sums, cluster, f, scaled, weight, weighted, sign, step, folds, d + 1)
    _add(sums, cluster, np.uint64(d), scale[d], weight, weighted, sign, step, folds, d + 1)


@inline
def _add(sums, cluster, f, rest, weight, weighted, sign, step, folds, columns):
    """Add a scaled value times the `weight` to column `f` of each fold, see `Grid.split`."""
    error = 0.0
    if weighted:
        rest, error = two_product(rest, weight)
    for fold in range(folds):
        part = np.rint(rest)
        rest = (rest - part) * step
        if weighted:
            more = np.rint(error)
            part += more
            error = (error - more) * step
        sums[cluster, f + np.uint64(fold * columns)] += sign * part


def own_distances(
    y: SparseRows, at: np.ndarray, unit: float, wide: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return the squared distances (m,) of the rows `at` (m,), times `unit`, to their labels' centroids of `wide`."""
    found = np.empty(at.size)
    order, _ = by_cluster(labels, labels[:0], wide.shape[0])
    write_distances(y, at, unit, wide, labels, found, order)
    return found


def write_distances(
    y: SparseRows,
    at: np.ndarray,
    unit: float,
    wide: np.ndarray,
    labels: np.ndarray,
    found: np.ndarray,
    order: np.ndarray,
) -> None:
    """Write those of `own_distances` that are listed in the `order`: of clusters, as what a centroid has of its own is made once."""
    given = y.begins, y.ends, y.features, y.values, at, order, unit, wide, labels
    if y.halving.complete:
        _own(*given, found)
    else:
        _own_of_some(*given, y.halving.parent, *y.halving.children, found)


@jit
def _own(begins, ends, features, values, at, order, unit, wide, labels, distances):
    """Write the squared distances (m,) in the `order` of labels: `SparseRows.squared_distances`, bit for bit.

    Sums of a level stand side by side, sum i that of what is at i and half a level on, in the level below. A row writes its
    own where it has entries, up to a level that is short enough to be added up as it is; then the centroid's are put back.
    """
    d, size, height, label = wide.shape[1], 1, 1, -1
    while size < d:
        size, height = 2 * size, height + 1
    longest = np.int64(0)
    for row in at:
        count = ends[row] - begins[row]
        longest = count if count > longest else longest
    tree, top = np.zeros(2 * size), np.empty(size)
    places, before = np.empty(longest * height, np.int64), np.empty(longest * height)
    for p in order:
        first, last = begins[at[p]], ends[at[p]]
        if labels[p] != label:
            label = labels[p]
            for f in range(d):
                tree[f] = wide[label, f] * wide[label, f]
            begin, width = 0, size
            while width > 1:
                half = width // 2
                low, high = tree[begin : begin + half], tree[begin + half : begin + width]
                both = tree[begin + width : begin + width + half]
                for i in range(half):
                    both[i] = low[i] + high[i]
                begin, width = begin + width, half
        written = 0
        for entry in range(first, last):
            place = np.int64(features[entry])
            step = values[entry] * unit - wide[label, place]
            places[written], before[written] = place, tree[place]
            written += 1
            tree[place] = step * step
        begin, width = 0, size
        while width > SHORT * (last - first) and width > 1:
            half = width // 2
            for entry in range(first, last):
                i = begin + (features[entry] & (half - 1))
                places[written], before[written] = i + width, tree[i + width]
                written += 1
                tree[i + width] = tree[i] + tree[i + half]
            begin, width = begin + width, half
        top[0], half = tree[begin], width // 2
        low, high = tree[begin : begin + half], tree[begin + half : begin + width]
        for i in range(half):
            top[i] = low[i] + high[i]
        while half > 1:
            half //= 2
            low, high = top[:half], top[half : 2 * half]
            for i in range(half):
                low[i] += high[i]
        distances[p] = top[0]
        while written:  # the last first, as one place may have been written to more than once
            written -= 1
            tree[places[written]] = before[written]


@jit
def _own_of_some(
    begins, ends, features, values, at, order, unit, wide, labels, parent, left, right, distances
):
    """Do what `_own` does, of columns that are some of the features, in the tree of their `Halving`."""
    m, label = wide.shape[1], -1
    own, tree = np.empty(2 * m - 1), np.empty(2 * m - 1)
    for p in order:
        first, last = begins[at[p]], ends[at[p]]
        if labels[p] != label:
            label = labels[p]
            for f in range(m):
                own[f] = wide[label, f] * wide[label, f]
            add_up(own, m, left, right)
            tree[:] = own
        # Sums so near the root that most are above an entry are made anew, all of them.
        top = own.shape[0] - 2 * (last - first)
        top = top if top > m else m
        for entry in range(first, last):
            f = features[entry]
            step = values[entry] * unit - wide[label, f]
            tree[f] = step * step
            node = parent[f]
            while node < top:
                tree[node] = tree[left[node - m]] + tree[right[node - m]]
                node = parent[node]
        for node in range(top, own.shape[0]):
            tree[node] = tree[left[node - m]] + tree[right[node - m]]
        distances[p] = tree[own.shape[0] - 1]
        for entry in range(first, last):
            node = np.int32(features[entry])
            while node < top:
                tree[node] = own[node]
                node = parent[node]
        for node in range(top, own.shape[0]):
            tree[node] = own[node]


@inner
def add_up(tree, m, left, right):
    """Write the sums of a `Halving` over the `m` leaves of a `tree` (2 m - 1,); the last is the total."""
    for i in range(m - 1):
        tree[m + i] = tree[left[i]] + tree[right[i]]


def children(halving: Halving) -> tuple[np.ndarray, ...]:
    """Return the two nodes of each sum of the tree, as `total` takes them: none where it is complete."""
    none = np.empty(0, np.int32)
    return (none, none) if halving.complete else halving.children


@jit
def total(leaves, left, right, room):
    """Return the sum of `leaves` (m,) in the order of R5; both they and `room` (2 m - 1,) may be overwritten.

    `left` and `right` are the `children` of their tree.
    """
    m = leaves.shape[0]
    if not left.shape[0]:
        return halve(leaves, m)
    for f in range(m):
        room[f] = leaves[f]
    add_up(room, m, left, right)
    return room[2 * m - 2]


@jit
def moves(a, b, left, right, found):
    """Write the squared distances (k,), by R5, of centroids `a` to centroids `b` (k, columns), see `total`."""
    m = a.shape[1]
    leaves, room = np.empty(m), np.empty(2 * m - 1)
    for j in range(a.shape[0]):
        for f in range(m):
            step = a[j, f] - b[j, f]
            leaves[f] = step * step
        found[j] = total(leaves, left, right, room)
