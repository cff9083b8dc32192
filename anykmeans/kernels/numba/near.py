# mypy: allow-untyped-defs, allow-untyped-calls
"""The search in few features: rows of one centroid are the lanes, and only centroids near it are scored.

Exponion (Newling and Fleuret, "Fast k-means with accurate bounds", ICML 2016), with one lower bound a row.
Loops over lanes that have no branches become vector code where the order of minima is free.
"""

from __future__ import annotations

import math

import numpy as np

from anykmeans._bounds import DOWN, FAR, GAP, TINY, UP
from anykmeans.kernels.numba.simd import LANES, WIDTH, lanes, prefetch
from anykmeans.kernels.numba.steps import any_minimum, decide, inner, jit, squared_distance

_SORTED = 8  # centroids a row up to which sorting them pays
_CHUNK = 16  # centroids searched before looking whether to go on


@jit
def farthest_rows(upper, labels, farthest):
    """Raise ``farthest[label]`` to the upper bounds (m,) of its rows."""
    for row in range(labels.shape[0]):
        label = np.uint32(labels[row])
        if upper[row] > farthest[label]:
            farthest[label] = upper[row]


@jit
def boxes(wide, ids):
    """Return the low and high corners (panels, d) of the boxes around the panels of `wide` (k, d)."""
    k, d = wide.shape
    low, high = np.empty((ids.shape[0] // LANES, d)), np.empty((ids.shape[0] // LANES, d))
    for slot in range(ids.shape[0]):
        p, j = slot // LANES, ids[slot]
        if j < k:
            first = slot % LANES == 0  # which is never empty
            for f in range(d):
                c = wide[j, f]
                low[p, f] = c if first or c < low[p, f] else low[p, f]
                high[p, f] = c if first or c > high[p, f] else high[p, f]
    return low, high


@jit
def surroundings(wide, ids, place, corners, drift, farthest, start, stop):
    """Return what surrounds each centroid from `start` to `stop`, four float32 arrays.

    At least and at most how far the nearest other centroid is; at most how far the others moved that
    a row may get nearest to, if it is no farther from its centroid than `farthest`; and at least how
    far all others are.
    """
    low_corner, high_corner = corners
    k, p_count = wide.shape[0], low_corner.shape[0]
    found = np.empty((4, stop - start), np.float32)
    away, fastest = np.empty(p_count), np.zeros(p_count, np.float32)
    for j in range(k):
        p = place[j] // LANES
        fastest[p] = drift[j] if drift[j] > fastest[p] else fastest[p]
    for a in range(start, stop):
        own = place[a] // LANES
        nearest = np.inf
        for turn in range(p_count):
            p = own if turn == 0 else (turn - 1 if turn <= own else turn)  # the own panel first
            away[p] = _to_panel(wide, a, low_corner, high_corner, p)
            if away[p] < nearest:
                for slot in range(p * LANES, (p + 1) * LANES):
                    j = ids[slot]
                    if j < k and j != a:
                        squared = _between(wide, a, j)
                        nearest = squared if squared < nearest else nearest
        root = math.sqrt(nearest)
        found[0, a - start], found[1, a - start] = root * DOWN - TINY, root * UP + TINY
        radius = (2 * np.float64(farthest[a]) + root) * UP
        moved, outside = np.float32(0.0), np.inf
        for slot in range(own * LANES, (own + 1) * LANES):
            j = ids[slot]
            if j < k and j != a:
                moved = drift[j] if drift[j] > moved else moved
        for p in range(p_count):
            if p == own:
                continue
            if away[p] > radius * radius:
                outside = away[p] if away[p] < outside else outside
            else:
                moved = fastest[p] if fastest[p] > moved else moved
        found[2, a - start], found[3, a - start] = moved, math.sqrt(outside) * DOWN - TINY
    return found


@inner
def _to_panel(wide, a, low_corner, high_corner, p):
    """Return the squared distance of centroid `a` to the box around panel `p`."""
    squared = 0.0
    for f in range(wide.shape[1]):
        c = wide[a, f]
        under, over = low_corner[p, f] - c, c - high_corner[p, f]
        gap = under if under > over else over
        squared += gap * gap if gap > 0.0 else 0.0
    return squared


@inner
def _between(wide, a, j):
    """Return the squared distance of two centroids, in no promised order."""
    squared = 0.0
    for f in range(wide.shape[1]):
        step = wide[a, f] - wide[j, f]
        squared += step * step
    return squared


@inner  # as what is not a number must stay that
def _measure(columns, minus_2c, norms, a, norm, own, above, beta, eta, first):
    """Write squared norms; lower `above` to what the scores `own` with centroid `a` say, unless `first`."""
    for r in range(WIDTH):
        norm[r], own[r] = 0.0, norms[a]
    for f in range(columns.shape[0]):
        c = np.float64(minus_2c[a, f])
        for r in range(WIDTH):
            value = np.float64(columns[f, r])
            norm[r] += value * value
            own[r] += c * value
    if not first:
        for r in range(WIDTH):
            estimate = norm[r] + own[r]
            squared = estimate + abs(estimate) * beta + norm[r] * beta + eta
            near_by = math.sqrt(squared if squared > 0.0 else 0.0) * UP + TINY
            above[r] = near_by if near_by < above[r] else above[r]


@any_minimum
def _farthest(norm, second, above, beta, eta, room):
    """Return how far from their centroid others must be to be no nearer than the rows' second."""
    for r in range(WIDTH):
        estimate = norm[r] + np.float64(second[r])
        squared = estimate + abs(estimate) * beta + norm[r] * beta + eta
        room[r] = above[r] + math.sqrt(squared if squared > 0.0 else 0.0) * UP
    half = WIDTH // 2
    while half:  # by halving, as one maximum after the other would wait for each
        for r in range(half):
            room[r] = room[r] if room[r] > room[r + half] else room[r + half]
        half //= 2
    return room[0] + TINY


@any_minimum
def _interval(norm, best, second, above, unseen, beta, eta, ups, downs):
    """Write `_at_most` of the best, and `_at_least` of the second and what is unseen."""
    for r in range(WIDTH):
        estimate = norm[r] + np.float64(best[r])
        squared = estimate + abs(estimate) * beta + norm[r] * beta + eta
        ups[r] = math.sqrt(squared if squared > 0.0 else 0.0) * UP + TINY
        estimate = norm[r] + np.float64(second[r])
        squared = (estimate * (1 - beta) if estimate > 0 else estimate) - norm[r] * beta - eta
        down = math.sqrt(squared if squared > 0.0 else 0.0)
        down = down if down < unseen - above[r] else unseen - above[r]
        downs[r] = down * DOWN - TINY


@jit
def near(
    x,
    at,
    rows,
    scale,
    offset,
    unit,
    minus_2c,
    norms,
    ids,
    place,
    low_corner,
    high_corner,
    wide,
    apart,
    labels,
    upper,
    lower,
    beta,
    eta,
    tie,
    first,
    exact,
    changes,
):
    """Search the centroids near each row's own, or all if `first`.

    Returns how many labels changed, rows not proven by scores, scores made, and rows out of range, whose labels
    mean nothing. Changed rows, their old and new labels go to the rows of `changes` (3, m), unless that is empty.

    Exponion (Newling and Fleuret, "Fast k-means with accurate bounds", ICML 2016): from a row at
    distance u of its centroid c, no centroid farther from c than u + v can be at less than v. Rows of
    one centroid go together, as lanes.
    """
    m, k, d = rows.shape[0], wide.shape[0], x.shape[1]
    begin, farthest = np.zeros(k + 2, np.int64), np.zeros(k)
    # By label: the rows, and where they are in `x`, which is the same where that is the whole matrix.
    order = np.zeros(m + WIDTH, rows.dtype)
    places = order if x.shape[0] == labels.shape[0] else np.zeros(m + WIDTH, rows.dtype)
    if first:
        begin[1] = m
        for i in range(m):
            order[i], places[i] = rows[i], at[i]
    else:  # by label, in one go
        for i in range(m):
            own = np.uint64(labels[rows[i]])  # unsigned, so that no sign is looked at
            begin[own + np.uint64(2)] += 1
            up = np.float64(upper[rows[i]])
            farthest[own] = up if up > farthest[own] else farthest[own]
        for a in range(k):
            begin[a + 2] += begin[a + 1]
        for i in range(m):
            after = np.uint64(labels[rows[i]]) + np.uint64(1)
            order[begin[after]], places[begin[after]] = rows[i], at[i]
            begin[after] += 1
    columns = np.empty((d, WIDTH), minus_2c.dtype)
    best, second = np.empty(WIDTH, minus_2c.dtype), np.empty(WIDTH, minus_2c.dtype)
    who, norm, above = np.empty(WIDTH, np.int32), np.empty(WIDTH), np.empty(WIDTH)
    ups, downs = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    visit, reach = np.empty(k, np.int64), np.zeros(k)
    for j in range(k):
        visit[j] = j
    candidates, squared = np.empty(k, np.int64), np.empty(k)
    room = np.empty(d + WIDTH)
    hard = changed = scored = lost = 0
    for a in range(1 if first else k):
        start, stop = begin[a], begin[a + 1]
        if start == stop:
            continue
        visits, beyond = k, np.inf
        if not first:
            radius = (2 * farthest[a] + apart[a]) * UP
            visits, beyond = _nearby(
                wide, ids, place, low_corner, high_corner, a, radius, stop - start, visit, reach
            )
        for b in range(start, stop, WIDTH):
            used = stop - b if stop - b < WIDTH else WIDTH
            for r in range(used):
                # A later row for each of these: processors forget what is asked for all at once.
                at_x, row = np.int64(places[b + WIDTH + r]), order[b + WIDTH + r]
                for f in range(0, d - 1, 64 // x.itemsize):
                    prefetch(x, at_x * d + f)
                prefetch(x, at_x * d + d - 1)
                prefetch(upper, row)
                prefetch(lower, row)
                # Read once: for all the compiler knows, writing to `columns` may change it.
                at_x, row = np.int64(places[b + r]), order[b + r]
                for f in range(d):
                    columns[f, r] = x[at_x, f] * scale - offset[f]
                above[r] = 0.0 if first else upper[row]
            for r in range(used, WIDTH):  # the last row again
                above[r] = above[used - 1]
                for f in range(d):
                    columns[f, r] = columns[f, used - 1]
            _measure(columns, minus_2c, norms, a, norm, room, above, beta, eta, first)
            for r in range(WIDTH):
                best[r], second[r], who[r] = np.inf, np.inf, 0
            q, limit = 0, np.inf
            while q < visits and reach[q] <= limit:
                until = visits if first or visits - q < _CHUNK else q + _CHUNK
                lanes(columns, d, minus_2c, norms, visit, q, until, best, second, who)
                q = until
                if q < visits:
                    limit = _farthest(norm, second, above, beta, eta, room)
            scored += q * WIDTH
            unseen = reach[q] if q < visits else beyond
            _interval(norm, best, second, above, unseen, beta, eta, ups, downs)
            for r in range(used):
                row, label = order[b + r], np.int64(who[r])
                up, down = ups[r], downs[r]
                within = norm[r] <= FAR
                lost += not within
                if not up * np.float32(GAP) < down:
                    hard += 1
                    if exact and within:
                        most, found = np.float64(up) ** 2 * GAP, 0
                        for v in range(q):
                            j = visit[v]
                            estimate = norm[r] + np.float64(norms[j])
                            for f in range(d):
                                estimate += np.float64(minus_2c[j, f]) * np.float64(columns[f, r])
                            least = estimate - (abs(estimate) + norm[r]) * beta - eta
                            if least <= most:
                                candidates[found] = j
                                squared[found] = squared_distance(
                                    x, np.int64(places[b + r]), unit, wide, j, room
                                )
                                found += 1
                        label, up, down, _ = decide(
                            candidates, squared, np.int64(found), most, tie, label
                        )
                upper[row], lower[row] = up, down
                if first or label != a:
                    if changes.shape[0] and label != labels[row]:
                        changes[0, changed], changes[1, changed] = row, labels[row]
                        changes[2, changed] = label
                        changed += 1
                    labels[row] = label
    return changed, hard, scored, lost


@inner
def _nearby(wide, ids, place, low_corner, high_corner, a, radius, rows, visit, reach):
    """List the centroids within `radius` of `a` and perhaps some more, nearest first, itself among the first.

    Returns how many, and at least how far all others are. No centroid from ``visit[q]`` on is nearer than
    ``reach[q]``. For few `rows` whole panels are listed, as sorting their centroids would not pay.
    """
    k, p_count = wide.shape[0], low_corner.shape[0]
    panels, away = np.empty(p_count, np.int64), np.empty(p_count)
    listed, outside, square = 0, np.inf, radius * radius
    for p in range(p_count):
        squared = _to_panel(wide, a, low_corner, high_corner, p)
        if squared > square:
            outside = squared if squared < outside else outside
        else:
            panels[listed], away[listed] = p, squared
            listed += 1
    whole, visits = listed * LANES > _SORTED * rows, 0
    if whole:
        own = place[a] // LANES
        for q in range(listed):
            away[q] = -1.0 if panels[q] == own else math.sqrt(away[q]) * DOWN - TINY
        _sort(away, panels, np.int64(listed))
    for q in range(listed):
        for slot in range(panels[q] * LANES, (panels[q] + 1) * LANES):
            j = ids[slot]
            if j == k:
                break
            if whole:
                visit[visits], reach[visits] = j, away[q]
                visits += 1
                continue
            squared = _between(wide, a, j)
            if squared > square:
                outside = squared if squared < outside else outside
                continue
            visit[visits] = j
            reach[visits] = -1.0 if j == a else math.sqrt(squared) * DOWN - TINY
            visits += 1
    if not whole:
        _sort(reach, visit, np.int64(visits))
    return visits, math.sqrt(outside) * DOWN - TINY


@inner
def _sort(keys, values, count):
    """Sort the first `count` of `values` by their `keys`: Shell's way, with few of either."""
    gap = 1
    while 3 * gap < count:
        gap = 3 * gap + 1
    while gap:
        for i in range(gap, count):
            key, value = keys[i], values[i]
            q = i
            while q >= gap and keys[q - gap] > key:
                keys[q], values[q] = keys[q - gap], values[q - gap]
                q -= gap
            keys[q], values[q] = key, value
        gap //= 3
