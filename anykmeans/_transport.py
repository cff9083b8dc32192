"""Rows to clusters of bounded sizes at the least total cost: a transportation problem, solved by OR-tools, proven here.

OR-tools takes whole numbers, so it solves a problem near the one that is meant. Whether its answer is the cheapest is decided by
the costs themselves, exactly: if it is not, then there is a cycle of clusters along which moving a row from each to the next saves
something. All cycles are looked at in a graph of k + 1 nodes: the clusters, with the cheapest move of a row between each two, and one
for what is not bounded: a cluster that may have another row has an arc to it, one that may lose a row an arc from it.
Where no cycle saves anything, shortest paths are prices of the clusters, the certificate that no answer is cheaper.

R. K. Ahuja, T. L. Magnanti and J. B. Orlin, "Network Flows", 1993: chapter 9.3 has the certificate, 9.6 the cycles.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from anykmeans._fork import first_call

_BITS = 40  # of the whole numbers; more would be no slower, but what OR-tools adds up must fit 64
_NEAR = 3  # clusters of a row that a flow needs as a rule, if prices are nearly known: see docs/tuning.md


def transport(
    costs: np.ndarray, least: np.ndarray, most: np.ndarray, prices: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels (n,), int64, of the least total cost with `least` to `most` (k,) rows a label, and their prices.

    `costs` (k, n), float64, are finite and not negative. Their exact sum is what is least. Of equally cheap labels they are the first in
    lexicographic order, so that they are nobody's choice. Prices (k + 1,) of like costs save time.
    """
    labels = solved(costs, least, most, prices)
    exact = mended(costs, labels, least, most)
    _put_first(costs, labels, exact, least, most)
    return labels, Whole(costs).nearly(exact)


def solved(
    costs: np.ndarray, least: np.ndarray, most: np.ndarray, prices: np.ndarray | None = None
) -> np.ndarray:
    """Return labels (n,) that are nearly the cheapest: what OR-tools finds, where there are prices among the best clusters of each row."""
    if prices is not None and len(costs) > _NEAR:
        left = costs - prices[:-1, None]
        few = left <= np.partition(left, _NEAR - 1, axis=0)[_NEAR - 1]
        del left
        if (labels := _flow(costs, least, most, few)) is not None:
            return labels
    labels = _flow(costs, least, most, np.ones(costs.shape, bool))
    if labels is None:
        k, n = costs.shape
        raise RuntimeError(f"OR-tools found no flow of {n} rows to {k} clusters.")
    return labels


def _flow(
    costs: np.ndarray, least: np.ndarray, most: np.ndarray, allowed: np.ndarray
) -> np.ndarray | None:
    """Return labels (n,) among those `allowed` (k, n) that are as cheap as costs of 40 bits can tell, or None if there are none."""
    with first_call:
        from ortools.graph.python import min_cost_flow

    k, n = costs.shape
    to, row = (each.astype(np.int32) for each in np.nonzero(allowed))
    cost = (costs - costs.min(axis=0))[allowed]  # which no choice can save
    bits = min(_BITS, 60 - (n + k).bit_length())
    cost = np.rint(np.ldexp(cost, bits - np.frexp(cost.max())[1])).astype(np.int64)
    flow = min_cost_flow.SimpleMinCostFlow()
    arcs = flow.add_arcs_with_capacity_and_unit_cost(row, n + to, np.ones(to.size, np.int64), cost)
    flow.add_arcs_with_capacity_and_unit_cost(
        np.arange(n, n + k, dtype=np.int32),
        np.full(k, n + k, np.int32),
        most - least,
        np.zeros(k, np.int64),
    )
    supplies = np.concatenate([np.ones(n, np.int64), -least, [least.sum() - n]])
    flow.set_nodes_supplies(np.arange(n + k + 1, dtype=np.int32), supplies)
    if flow.solve() != flow.OPTIMAL:
        return None
    taken = flow.flows(arcs) > 0
    labels = np.empty(n, np.int64)
    labels[row[taken]] = to[taken]
    return labels


class Whole:
    """Costs as whole numbers, of any length: exact multiples of the last bit of the smallest of all `costs`."""

    def __init__(self, costs: np.ndarray) -> None:
        smallest = np.min(costs, where=costs > 0, initial=1.0)
        self._exponent = 53 - int(np.frexp(smallest)[1])

    def __call__(self, a: np.ndarray) -> np.ndarray:
        """Return costs as whole numbers of Python."""
        digits, exponents = np.frexp(a)
        shift = np.maximum(exponents - 53 + self._exponent, 0)  # where there are no digits
        whole: np.ndarray = np.ldexp(digits, 53).astype(np.int64).astype(object) << shift.astype(
            object
        )
        return whole

    def nearly(self, whole: Iterable[int]) -> np.ndarray:
        """Return the floats nearest to whole numbers."""
        return np.asarray([number / (1 << self._exponent) for number in whole])


def mended(
    costs: np.ndarray, labels: np.ndarray, least: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """Return exact prices (k + 1,), whole numbers, that prove `labels` (n,), whose sizes are allowed, after all moves that save something.

    What a row costs less the price of its cluster is the least of all clusters, and clusters that may both lose and gain a row have
    the last of the prices.
    """
    k, whole = len(costs), Whole(costs)
    far = (2 * int(whole(np.asarray([costs.max()]))[0]) + 1) * (k + 2)  # longer than any path
    arcs = np.full((k + 1, k + 1), far, dtype=object)
    movers = np.zeros((k, k), np.int64)
    changed = list(range(k))
    while True:
        sizes = np.bincount(labels, minlength=k)
        for a in changed:
            (at,) = np.nonzero(labels == a)
            if at.size:
                movers[a] = at[_cheapest(costs[:, at], a, whole)]
                saved = whole(costs[a, movers[a]])
                arcs[a, :k] = whole(costs[np.arange(k), movers[a]]) - saved
            else:
                arcs[a, :k] = far
            arcs[a, a] = far
            arcs[a, k] = 0 if sizes[a] < most[a] else far
            arcs[k, a] = 0 if sizes[a] > least[a] else far
        prices, cycle = _shortest(arcs)
        if not cycle:
            return prices
        for a, b in zip(cycle, cycle[1:] + cycle[:1], strict=True):
            if a < k and b < k:
                labels[movers[a, b]] = b
        changed = [a for a in cycle if a < k]


def _cheapest(costs: np.ndarray, a: int, whole: Whole) -> np.ndarray:
    """Return the rows (k,) that it costs least to move from cluster `a` to each, of the `costs` (k, m) of its rows."""
    extra = costs - costs[a]  # rounded, which keeps their order
    lowest = extra == extra.min(axis=1)[:, None]
    rows: np.ndarray = lowest.argmax(axis=1)
    for b in np.flatnonzero(lowest.sum(axis=1) > 1):
        if b != a:
            (tied,) = np.nonzero(lowest[b])
            rows[b] = tied[(whole(costs[b, tied]) - whole(costs[a, tied])).argmin()]
    return rows


def _shortest(arcs: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return the lengths (nodes,) of the shortest paths to each node, from any, of whole-number `arcs`, or else a cycle of negative length.

    By the method of Bellman, Ford and Moore. What leads to a node by the shortest path so far is a forest until there is a cycle.
    """
    nodes = np.arange(len(arcs))
    lengths, before = np.zeros(nodes.size, dtype=object), np.full(nodes.size, -1)
    while True:
        through = lengths[:, None] + arcs
        last = through.argmin(axis=0)
        found = through[last, nodes]
        shorter = found < lengths
        if not shorter.any():
            return lengths, []
        lengths = np.where(shorter, found, lengths)
        before[shorter] = last[shorter]
        if cycle := _cycle(before.tolist()):
            return lengths, cycle


def _cycle(before: list[int]) -> list[int]:
    """Return the nodes of a cycle, in the direction of its arcs, if the nodes `before` each, -1 for none, make one."""
    walk = [-1] * len(before)
    for start in range(len(before)):
        node = start
        while node >= 0 and walk[node] < 0:
            walk[node] = start
            node = before[node]
        if node >= 0 and walk[node] == start:
            cycle = [node]
            while (node := before[node]) != cycle[0]:
                cycle.append(node)
            return cycle[::-1]
    return []


# -- equally cheap labels -----------------------------------------------------------------------


def _put_first(
    costs: np.ndarray,
    labels: np.ndarray,
    prices: np.ndarray,
    least: np.ndarray,
    most: np.ndarray,
) -> None:
    """Make the cheapest `labels` (n,), proven by `prices` (k + 1,), the first in lexicographic order of all that are as cheap."""
    rows = _undecided(costs, labels, prices)
    if not rows:
        return
    ties = _Ties(rows, labels, least, most, prices[:-1] == prices[-1])
    for row in sorted(rows):
        ties.settle(row)


def _undecided(costs: np.ndarray, labels: np.ndarray, prices: np.ndarray) -> dict[int, list[int]]:
    """Return the rows that other clusters than their label's are as good for, with all these clusters in order.

    Floats rule out almost all rows, whole numbers decide.
    """
    whole, rows = Whole(costs), np.arange(costs.shape[1])
    near, own = whole.nearly(prices), costs[labels, rows]
    value = own - near[labels]
    slack = 2.0**-50 * (own + 2 * np.abs(near).max()) + 2.0**-1060
    found: dict[int, list[int]] = {}
    for b, cost in enumerate(costs):
        (at,) = np.nonzero((cost - near[b] - value <= slack + 2.0**-50 * cost) & (labels != b))
        as_good = whole(cost[at]) - prices[b] == whole(own[at]) - prices[labels[at]]
        for row in at[as_good].tolist():
            found.setdefault(row, [int(labels[row])]).append(b)
    return {row: sorted(clusters) for row, clusters in found.items()}


class _Ties:
    """Rows that are free to go to several clusters each, at no cost: `rows` has these in order.

    Moves among them make a graph of k + 1 nodes as above, in which every path is free of charge; of an arc it has the rows that may move.
    """

    def __init__(
        self,
        rows: dict[int, list[int]],
        labels: np.ndarray,
        least: np.ndarray,
        most: np.ndarray,
        elastic: np.ndarray,
    ) -> None:
        self._rows, self._labels, self._least, self._most = rows, labels, least, most
        self._elastic, self._k = np.flatnonzero(elastic).tolist(), len(least)
        self._sizes = np.bincount(labels, minlength=self._k)
        self._settled = -1  # rows up to this one stay
        self._arcs: list[dict[int, list[int]]] = [defaultdict(list) for _ in least]
        for row in sorted(rows):
            self._enter(row)

    def _enter(self, row: int) -> None:
        """Let a row move away from where it is now."""
        a = int(self._labels[row])
        for b in self._rows[row]:
            if b != a:
                self._arcs[a][b].append(row)

    def settle(self, row: int) -> None:
        """Give a row the lowest label that it can have while the rows before it stay."""
        self._settled, a = row, int(self._labels[row])
        tried: set[int] = set()
        for b in self._rows[row]:
            if b == a:
                return
            if path := self._path(b, a, tried):
                self._move(row, a, b)
                for u, v in itertools.pairwise(path):
                    if self._k not in (u, v):
                        mover = self._arcs[u][v].pop()
                        self._move(mover, u, v)
                        self._enter(mover)
                return

    def _move(self, row: int, a: int, b: int) -> None:
        self._labels[row] = b
        self._sizes[a] -= 1
        self._sizes[b] += 1

    def _path(self, start: int, end: int, tried: set[int]) -> list[int]:
        """Return the nodes from `start` to `end`, or none; nodes that were `tried`, all of which are known to lead nowhere, are left out."""
        before = {start: -1}
        reached = [start]
        for u in reached:
            if u == end:
                path = [u]
                while (u := before[u]) >= 0:
                    path.append(u)
                return path[::-1]
            for v in self._next(u):
                if v not in before and v not in tried:
                    before[v] = u
                    reached.append(v)
        tried.update(reached)
        return []

    def _next(self, u: int) -> list[int]:
        """Return the nodes that there is an arc to."""
        sizes, k = self._sizes, self._k
        if u == k:
            return [v for v in self._elastic if sizes[v] > self._least[v]]
        found = []
        for v, movers in list(self._arcs[u].items()):
            while movers and (movers[-1] <= self._settled or self._labels[movers[-1]] != u):
                movers.pop()
            if movers:
                found.append(v)
            else:
                del self._arcs[u][v]
        if u in self._elastic and sizes[u] < self._most[u]:
            found.append(k)
        return found
