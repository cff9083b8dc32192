# mypy: allow-untyped-defs, allow-untyped-calls
"""The compiled steps of a search: wear bounds, score rows in doubt, certify them.

All arrays are C-contiguous. A *slot* is a place among the lanes of the panels, ``place[j]`` that of
centroid j and ``ids[slot]`` its inverse. No function holds the interpreter's lock, so that threads
really run at once.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from anykmeans._exact import DOWN, GAP, TINY, UP
from anykmeans.kernels.numba.simd import LANES, ROWS, WIDTH, lanes, tile

# On disk after the first time.
jit = njit(cache=True, nogil=True, error_model="numpy")
# Sums whose order of addition is free, as the bounds allow any.
_any_order = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})

_AT_ONCE = 128  # rows whose scores wait in the cache while panels pass by
_CHUNK = 8  # centroids searched before looking whether to go on


@jit
def wear(upper, lower, labels, drift, around, start, stop, active, farthest):
    """Wear the bounds of rows start to stop; write those now in doubt to `active`, return how many.

    A row's centroid moved by at most ``drift[label]``; `around` is what `surroundings` returns.
    ``farthest[label]`` becomes the largest upper bound of a label's rows.
    """
    separation, _, drifts, beyond = around
    count = 0
    for row in range(start, stop):
        label = labels[row]
        above = np.float32((upper[row] + drift[label]) * np.float32(UP))
        worn = np.float32((lower[row] - drifts[label]) * np.float32(DOWN))
        outside = beyond[label] - above * np.float32(UP)
        below = worn if worn < outside else outside
        upper[row], lower[row] = above, below
        farthest[label] = max(farthest[label], above)
        apart = separation[label] - above * np.float32(UP)
        active[count] = row
        count += not above * np.float32(GAP) < max(below, apart)
    return count


@_any_order
def _centre(x, row, scale, offset, y, t, c, j):
    """Write row `row` of `x` into ``y[t]``, in the frame and less the offset.

    Returns its squared norm, and its product with row `j` of `c`.
    """
    norm = product = c[j, 0] * 0
    for f in range(x.shape[1]):
        value = y.dtype.type(x[row, f] * scale - offset[f])
        y[t, f] = value
        norm += value * value
        product += value * c[j, f]
    return np.float64(norm), np.float64(product)


@jit
def _at_most(norm, score, beta, eta):
    """Return a distance that the true one does not exceed: `Bounds.at_most`."""
    a = norm + score
    squared = (a * (1 + beta) if a > 0 else a) + norm * beta + eta
    return np.float32(math.sqrt(max(squared, 0.0)) * UP + TINY)


@jit
def _at_least(norm, score, beta, eta):
    """Return a distance that the true one reaches: `Bounds.at_least`."""
    a = norm + score
    squared = (a * (1 - beta) if a > 0 else a) - norm * beta - eta
    return np.float32(math.sqrt(max(squared, 0.0)) * DOWN - TINY)


@jit
def surroundings(wide, ids, place, low_corner, high_corner, drift, farthest):
    """Return what surrounds each centroid, four float32 arrays (k,).

    At least and at most how far the nearest other centroid is; at most how far the others moved that
    a row may get nearest to, if it is no farther from its centroid than `farthest`; and at least how
    far all others are.
    """
    k, d, p_count = wide.shape[0], wide.shape[1], low_corner.shape[0]
    least, most = np.empty(k, np.float32), np.empty(k, np.float32)
    drifts, beyond = np.empty(k, np.float32), np.empty(k, np.float32)
    away, fastest = np.empty(p_count), np.zeros(p_count, np.float32)
    for j in range(k):
        fastest[place[j] // LANES] = max(fastest[place[j] // LANES], drift[j])
    for a in range(k):
        own = place[a] // LANES
        nearest = np.inf
        for turn in range(p_count):
            p = own if turn == 0 else (turn - 1 if turn <= own else turn)  # the own panel first
            away[p] = _to_panel(wide, a, low_corner, high_corner, p)
            if away[p] < nearest:
                for slot in range(p * LANES, (p + 1) * LANES):
                    j = ids[slot]
                    if j < k and j != a:
                        squared = 0.0
                        for f in range(d):
                            step = wide[a, f] - wide[j, f]
                            squared += step * step
                        nearest = min(nearest, squared)
        root = math.sqrt(nearest)
        least[a], most[a] = root * DOWN - TINY, root * UP + TINY
        radius = (2 * np.float64(farthest[a]) + root) * UP
        moved, outside = np.float32(0.0), np.inf
        for slot in range(own * LANES, (own + 1) * LANES):
            j = ids[slot]
            if j < k and j != a:
                moved = max(moved, drift[j])
        for p in range(p_count):
            if p == own:
                continue
            if away[p] > radius * radius:
                outside = min(outside, away[p])
            else:
                moved = max(moved, fastest[p])
        drifts[a], beyond[a] = moved, math.sqrt(outside) * DOWN - TINY
    return least, most, drifts, beyond


@jit
def _to_panel(wide, a, low_corner, high_corner, p):
    """Return the squared distance of centroid `a` to the box around panel `p`."""
    squared = 0.0
    for f in range(wide.shape[1]):
        c = wide[a, f]
        gap = max(low_corner[p, f] - c, c - high_corner[p, f], 0.0)
        squared += gap * gap
    return squared


@jit
def near(
    x,
    at,
    rows,
    scale,
    offset,
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
    first,
    hard,
):
    """Search the centroids near each row's own; return how many rows are not proven, in `hard`.

    Exponion (Newling and Fleuret, "Fast k-means with accurate bounds", ICML 2016): from a row at
    distance u of its centroid c, no centroid farther from c than u + v can be at less than v. Rows of
    one centroid go together, as lanes.
    """
    m, k, d, p_count = rows.shape[0], wide.shape[0], x.shape[1], low_corner.shape[0]
    begin = np.zeros(k + 2, np.int64)
    order = np.empty(m, np.int64)
    if first:
        begin[1:] = m
        order[:] = np.arange(m)
    else:  # by label, in one go
        for i in range(m):
            begin[labels[rows[i]] + 2] += 1
        for a in range(k):
            begin[a + 2] += begin[a + 1]
        for i in range(m):
            a = labels[rows[i]]
            order[begin[a + 1]] = i
            begin[a + 1] += 1
    columns = np.zeros((d, WIDTH), minus_2c.dtype)
    best, second = np.empty(WIDTH, minus_2c.dtype), np.empty(WIDTH, minus_2c.dtype)
    who, norm, above = np.empty(WIDTH, np.int32), np.zeros(WIDTH), np.zeros(WIDTH)
    visit, reach = np.arange(k), np.zeros(k)
    hard_count = 0
    for a in range(1 if first else k):
        start, stop = begin[a], begin[a + 1]
        if start == stop:
            continue
        visits, beyond = k, np.inf
        if not first:
            farthest = 0.0
            for i in range(start, stop):
                farthest = max(farthest, np.float64(upper[rows[order[i]]]))
            radius = (2 * farthest + apart[a]) * UP
            visits, beyond = _nearby(
                wide, ids, place, low_corner, high_corner, a, radius, visit, reach
            )
        for b in range(start, stop, WIDTH):
            used = min(WIDTH, stop - b)
            for r in range(used):
                i = order[b + r]
                total = 0.0
                score = np.float64(norms[a])
                for f in range(d):
                    value = minus_2c.dtype.type(x[at[i], f] * scale - offset[f])
                    columns[f, r] = value
                    total += np.float64(value) * np.float64(value)
                    score += np.float64(value) * np.float64(minus_2c[a, f])
                norm[r] = total
                if not first:
                    above[r] = min(upper[rows[i]], _at_most(total, score, beta, eta))
            best[:], second[:], who[:] = np.inf, np.inf, 0
            q, limit = 0, np.inf
            while q < visits and reach[q] <= limit:
                until = visits if first else min(q + _CHUNK, visits)
                lanes(columns, d, minus_2c, norms, visit, q, until, best, second, who)
                q = until
                if q < visits:
                    limit = 0.0
                    for r in range(used):
                        far = _at_most(norm[r], np.float64(second[r]), beta, eta)
                        limit = max(limit, above[r] + far)
            unseen = reach[q] if q < visits else beyond
            for r in range(used):
                row = rows[order[b + r]]
                up = _at_most(norm[r], np.float64(best[r]), beta, eta)
                down = min(
                    _at_least(norm[r], np.float64(second[r]), beta, eta),
                    np.float32((unseen - above[r]) * DOWN - TINY),
                )
                labels[row], upper[row], lower[row] = who[r], up, down
                hard[hard_count] = order[b + r]
                hard_count += not up * np.float32(GAP) < down
    return hard_count


@jit
def _nearby(wide, ids, place, low_corner, high_corner, a, radius, visit, reach):
    """List the centroids within `radius` of `a`, nearest first, itself at the head.

    Returns how many, and at least how far all others are.
    """
    k, d = wide.shape
    visits, outside, square = 0, np.inf, radius * radius
    for p in range(low_corner.shape[0]):
        away = _to_panel(wide, a, low_corner, high_corner, p)
        if away > square:
            outside = min(outside, away)
            continue
        for slot in range(p * LANES, (p + 1) * LANES):
            j = ids[slot]
            if j == k:
                break
            squared = 0.0
            for f in range(d):
                step = wide[a, f] - wide[j, f]
                squared += step * step
            if squared > square:
                outside = min(outside, squared)
                continue
            visit[visits] = j
            reach[visits] = -1.0 if j == a else math.sqrt(squared) * DOWN - TINY
            visits += 1
    # Shell sort.
    gap = 1
    while 3 * gap < visits:
        gap = 3 * gap + 1
    while gap:
        for i in range(gap, visits):
            key, j = reach[i], visit[i]
            q = i
            while q >= gap and reach[q - gap] > key:
                reach[q], visit[q] = reach[q - gap], visit[q - gap]
                q -= gap
            reach[q], visit[q] = key, j
        gap //= 3
    return visits, math.sqrt(outside) * DOWN - TINY


@jit
def grouped(
    x,
    at,
    rows,
    scale,
    offset,
    panels,
    norms,
    ids,
    place,
    centred,
    moved,
    bounds,
    labels,
    upper,
    lower,
    beta,
    eta,
    first,
    hard,
):
    """Search the panels that a row's bounds do not rule out; return rows not proven, and panels scored.

    ``bounds[row, p] - moved[p]`` is at most the distance of the row to every centroid of panel p but its
    own: the bounds of Yinyang (Ding et al., ICML 2015), which wear without being written to.
    """
    m, d, p_count = rows.shape[0], x.shape[1], norms.shape[0]
    y = np.empty((_AT_ONCE, d), panels.dtype)
    which, norm, own = np.empty(_AT_ONCE, np.int64), np.empty(_AT_ONCE), np.empty(_AT_ONCE)
    best, who = np.empty(_AT_ONCE), np.empty(_AT_ONCE, np.int64)
    wanting = np.empty((p_count, _AT_ONCE + ROWS), np.int64)
    wants = np.empty(p_count, np.int64)
    lows = np.empty((_AT_ONCE, p_count), panels.dtype)
    seconds = np.empty((_AT_ONCE, p_count), panels.dtype)
    spots = np.empty((_AT_ONCE, p_count), np.int64)
    scores = np.empty((ROWS, LANES), panels.dtype)
    low, next_ = np.empty(ROWS, panels.dtype), np.empty(ROWS, panels.dtype)
    lane = np.empty(ROWS, np.int64)
    hard_count, scored, i = 0, 0, 0
    while i < m:
        count = 0
        wants[:] = 0
        while i < m and count < _AT_ONCE:
            row = rows[i]
            if not first:  # before the row itself is read
                below = np.inf
                for p in range(p_count):
                    below = min(below, bounds[row, p] - moved[p])
                lower[row] = below * DOWN - TINY
                if upper[row] * np.float32(GAP) < lower[row]:
                    i += 1
                    continue
            own_label = 0 if first else labels[row]
            norm[count], product = _centre(x, at[i], scale, offset, y, count, centred, own_label)
            which[count] = i
            i += 1
            if first:
                best[count], who[count] = np.inf, 0
                for p in range(p_count):
                    wanting[p, count] = count
                    wants[p] += 1
                count += 1
                continue
            slot = place[own_label]
            score = np.float64(norms[slot // LANES, slot % LANES]) - 2 * product
            up = min(upper[row], _at_most(norm[count], score, beta, eta))
            upper[row] = up
            if up * np.float32(GAP) < lower[row]:
                continue
            above = np.float64(up) * GAP
            for p in range(p_count):
                spots[count, p] = -1
                wanting[p, wants[p]] = count
                wants[p] += bounds[row, p] - moved[p] <= above
            best[count], own[count], who[count] = score, score, slot
            count += 1
        for p in range(p_count):
            if wants[p] == 0:
                continue
            scored += wants[p]
            for r in range(ROWS):
                wanting[p, wants[p] + r] = wanting[p, wants[p] - 1]
            for b in range(0, wants[p], ROWS):
                tile(y, wanting[p, b : b + ROWS], d, panels, norms, p, scores, low, next_, lane)
                for r in range(min(ROWS, wants[p] - b)):
                    t = wanting[p, b + r]
                    lows[t, p], seconds[t, p], spots[t, p] = low[r], next_[r], lane[r]
                    if low[r] < best[t]:
                        best[t], who[t] = low[r], p * LANES + lane[r]
        for t in range(count):
            row = rows[which[t]]
            panel, spot, below = who[t] // LANES, who[t] % LANES, np.inf
            for p in range(p_count):
                if spots[t, p] >= 0:
                    score = seconds[t, p] if p == panel and spots[t, p] == spot else lows[t, p]
                    least = np.float64(_at_least(norm[t], np.float64(score), beta, eta))
                    bounds[row, p] = (least + moved[p]) * DOWN
                below = min(below, bounds[row, p] - moved[p])
            if not first and place[labels[row]] != who[t]:
                p = place[labels[row]] // LANES
                if spots[t, p] < 0:  # else the centroid left is among the scored
                    least = np.float64(_at_least(norm[t], own[t], beta, eta))
                    bounds[row, p] = min(bounds[row, p], np.float32((least + moved[p]) * DOWN))
                    below = min(below, bounds[row, p] - moved[p])
            up = _at_most(norm[t], best[t], beta, eta)
            down = np.float32(below * DOWN - TINY)
            labels[row], upper[row], lower[row] = ids[who[t]], up, down
            if not up * np.float32(GAP) < down:
                hard[hard_count] = which[t]
                hard_count += 1
    return hard_count, scored


@jit
def squared_distance(x, row, unit, c, j, t):
    """Return the distance of `anykmeans._exact` of a row and a centroid, bit for bit; `t` is room (d,)."""
    d = c.shape[1]
    for f in range(d):
        step = x[row, f] * unit - c[j, f]
        t[f] = step * step
    half = 1
    while 2 * half < d:
        half *= 2
    while d > 1:
        for f in range(d - half):
            t[f] += t[f + half]
        d, half = half, half // 2
    return t[0]


@jit
def resolve(
    x,
    at,
    rows,
    hard,
    scale,
    unit,
    offset,
    panels,
    norms,
    ids,
    place,
    centred,
    wide,
    moved,
    bounds,
    labels,
    upper,
    lower,
    beta,
    eta,
    tie,
):
    """Decide rows by float64 distances among the centroids that may be nearest; ties to the lowest."""
    k, d, p_count = wide.shape[0], wide.shape[1], norms.shape[0]
    y, norm, most = np.empty((ROWS, d), panels.dtype), np.empty(ROWS), np.empty(ROWS)
    batch, lane = np.arange(ROWS), np.empty(ROWS, np.int64)
    scores = np.empty((ROWS, LANES), panels.dtype)
    low, next_ = np.empty(ROWS, panels.dtype), np.empty(ROWS, panels.dtype)
    candidates = np.empty((ROWS, k), np.int64)
    found, squared = np.zeros(ROWS, np.int64), np.empty((ROWS, k))
    t = np.empty(d)
    for b in range(0, hard.shape[0], ROWS):
        used = min(ROWS, hard.shape[0] - b)
        for r in range(ROWS):
            i = hard[b + min(r, used - 1)]
            norm[r], _ = _centre(x, at[i], scale, offset, y, r, centred, 0)
            most[r] = np.float64(upper[rows[i]]) ** 2 * GAP
            found[r] = 0
        for p in range(p_count):
            tile(y, batch, d, panels, norms, p, scores, low, next_, lane)
            for r in range(used):
                i = hard[b + r]
                for spot in range(LANES):
                    a = norm[r] + np.float64(scores[r, spot])
                    least = (a * (1 - beta) if a > 0 else a) - norm[r] * beta - eta
                    j = ids[p * LANES + spot]
                    if least <= most[r] and j < k:
                        squared[r, found[r]] = squared_distance(x, at[i], unit, wide, j, t)
                        candidates[r, found[r]] = j
                        found[r] += 1
        for r in range(used):
            row = rows[hard[b + r]]
            shortest = np.inf
            for q in range(found[r]):
                shortest = min(shortest, squared[r, q])
            label = k
            for q in range(found[r]):
                if squared[r, q] <= shortest * (1 + tie):
                    label = min(label, candidates[r, q])
            runner_up, left = most[r], np.inf
            for q in range(found[r]):
                if candidates[r, q] != label:
                    runner_up = min(runner_up, squared[r, q])
                if candidates[r, q] == labels[row]:
                    left = squared[r, q]
            if bounds.shape[1] and labels[row] != label:
                p = place[labels[row]] // LANES
                least = math.sqrt(left) * DOWN - TINY
                bounds[row, p] = min(bounds[row, p], np.float32((least + moved[p]) * DOWN))
            labels[row] = label
            upper[row] = math.sqrt(shortest) * UP + TINY
            lower[row] = math.sqrt(runner_up) * DOWN - TINY
