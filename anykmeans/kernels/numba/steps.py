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
from anykmeans.kernels.numba.simd import LANES, ROWS, WIDTH, lanes, prefetch, tile

# On disk after the first time. Compiling that one takes is the price of Numba: NumPy's and Python's own
# functions, `min` and `max` too, cost much of it, and are spelled out here.
jit = njit(cache=True, nogil=True, error_model="numpy")
# Sums whose order of addition is free, as the bounds allow any.
any_order = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
# Minima in any order.
_no_nan = njit(cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc"})

_STRETCH = 256  # rows whose bounds are worn before the doubtful ones are listed
_CHUNK = 8  # centroids searched before looking whether to go on


@jit
def wear(upper, lower, labels, drift, around, begin, active):
    """Wear the bounds (m,) of rows from `begin`; list those now in doubt in `active`, return how many.

    A row's centroid moved by at most ``drift[label]``; `around` is what `surroundings` returns.
    """
    separation, _, drifts, beyond = around
    count = 0
    overlap = np.empty(_STRETCH, np.float32)
    for start in range(0, labels.shape[0], _STRETCH):
        left = labels.shape[0] - start
        length = left if left < _STRETCH else _STRETCH
        for i in range(length):
            label = np.uint32(labels[start + i])  # unsigned, so that no sign is looked at
            above = np.float32((upper[start + i] + drift[label]) * np.float32(UP))
            worn = np.float32((lower[start + i] - drifts[label]) * np.float32(DOWN))
            outside = beyond[label] - above * np.float32(UP)
            below = worn if worn < outside else outside
            apart = separation[label] - above * np.float32(UP)
            upper[start + i], lower[start + i] = above, below
            overlap[i] = above * np.float32(GAP) - (below if below > apart else apart)
        for i in range(length):
            active[count] = begin + start + i
            count += not overlap[i] < 0
    return count


@jit
def farthest_rows(upper, labels, farthest):
    """Raise ``farthest[label]`` to the upper bounds (m,) of its rows."""
    for row in range(labels.shape[0]):
        label = np.uint32(labels[row])
        if upper[row] > farthest[label]:
            farthest[label] = upper[row]


@any_order
def _centre(x, row, scale, offset, y, t, c, j):
    """Write row `row` of `x` into ``y[t]``, in the frame and less the offset.

    Returns its squared norm, and its product with row `j` of `c`; float64, so that no rounding counts.
    """
    norm = product = 0.0
    for f in range(x.shape[1]):
        y[t, f] = x[row, f] * scale - offset[f]
        value = np.float64(y[t, f])
        norm += value * value
        product += value * np.float64(c[j, f])
    return norm, product


@jit
def _at_most(norm, score, beta, eta):
    """Return a distance that the true one does not exceed: `Bounds.at_most`."""
    a = norm + score
    squared = (a * (1 + beta) if a > 0 else a) + norm * beta + eta
    return np.float32(math.sqrt(squared if squared > 0 else 0.0) * UP + TINY)


@jit
def _at_least(norm, score, beta, eta):
    """Return a distance that the true one reaches: `Bounds.at_least`."""
    a = norm + score
    squared = (a * (1 - beta) if a > 0 else a) - norm * beta - eta
    return np.float32(math.sqrt(squared if squared > 0 else 0.0) * DOWN - TINY)


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
def surroundings(wide, ids, place, corners, drift, farthest):
    """Return what surrounds each centroid, four float32 arrays (k,).

    At least and at most how far the nearest other centroid is; at most how far the others moved that
    a row may get nearest to, if it is no farther from its centroid than `farthest`; and at least how
    far all others are.
    """
    low_corner, high_corner = corners
    k, p_count = wide.shape[0], low_corner.shape[0]
    least, most = np.empty(k, np.float32), np.empty(k, np.float32)
    drifts, beyond = np.empty(k, np.float32), np.empty(k, np.float32)
    away, fastest = np.empty(p_count), np.zeros(p_count, np.float32)
    for j in range(k):
        p = place[j] // LANES
        fastest[p] = drift[j] if drift[j] > fastest[p] else fastest[p]
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
                        squared = _between(wide, a, j)
                        nearest = squared if squared < nearest else nearest
        root = math.sqrt(nearest)
        least[a], most[a] = root * DOWN - TINY, root * UP + TINY
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
        drifts[a], beyond[a] = moved, math.sqrt(outside) * DOWN - TINY
    return least, most, drifts, beyond


@jit
def _to_panel(wide, a, low_corner, high_corner, p):
    """Return the squared distance of centroid `a` to the box around panel `p`."""
    squared = 0.0
    for f in range(wide.shape[1]):
        c = wide[a, f]
        under, over = low_corner[p, f] - c, c - high_corner[p, f]
        gap = under if under > over else over
        squared += gap * gap if gap > 0.0 else 0.0
    return squared


@jit
def _between(wide, a, j):
    """Return the squared distance of two centroids, in no promised order."""
    squared = 0.0
    for f in range(wide.shape[1]):
        step = wide[a, f] - wide[j, f]
        squared += step * step
    return squared


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
def distances(a, b):
    """Return the squared distances (m,) of the rows of `a` (m, d) and `b` (m, d) or (1, d)."""
    found, room = np.empty(a.shape[0]), np.empty(a.shape[1])
    for row in range(a.shape[0]):
        found[row] = squared_distance(a, row, 1.0, b, row if b.shape[0] > 1 else 0, room)
    return found


@jit
def _decide(candidates, squared, found, most, tie, guess):
    """Return the label of the shortest of the squared distances, ties to the lowest.

    Also float32 bounds on the distances to it and to all others, which are at least ``sqrt(most)`` where
    they are no candidates, and at least how far the `guess` is.
    """
    shortest = np.inf
    for q in range(found):
        shortest = squared[q] if squared[q] < shortest else shortest
    lowest = np.int64(1) << 62
    for q in range(found):
        if squared[q] <= shortest * (1 + tie) and candidates[q] < lowest:
            lowest = candidates[q]
    label, runner_up, left = lowest, most, np.inf
    for q in range(found):
        if candidates[q] != label and squared[q] < runner_up:
            runner_up = squared[q]
        if candidates[q] == guess:
            left = squared[q]
    up = np.float32(math.sqrt(shortest) * UP + TINY)
    down = np.float32(math.sqrt(runner_up) * DOWN - TINY)
    return label, up, down, math.sqrt(left) * DOWN - TINY


# Loops over lanes that have no branches become vector code where the order of minima is free.


@_no_nan
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


@_no_nan
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


@_no_nan
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
):
    """Search the centroids near each row's own; return how many rows were not proven by scores.

    Exponion (Newling and Fleuret, "Fast k-means with accurate bounds", ICML 2016): from a row at
    distance u of its centroid c, no centroid farther from c than u + v can be at less than v. Rows of
    one centroid go together, as lanes.
    """
    m, k, d = rows.shape[0], wide.shape[0], x.shape[1]
    begin = np.zeros(k + 2, np.int64)
    order = np.empty(m, rows.dtype)
    if first:
        begin[1] = m
        for i in range(m):
            order[i] = i
    else:  # by label, in one go
        for i in range(m):
            begin[labels[rows[i]] + 2] += 1
        for a in range(k):
            begin[a + 2] += begin[a + 1]
        for i in range(m):
            a = labels[rows[i]]
            order[begin[a + 1]] = i
            begin[a + 1] += 1
    columns = np.empty((d, WIDTH), minus_2c.dtype)
    best, second = np.empty(WIDTH, minus_2c.dtype), np.empty(WIDTH, minus_2c.dtype)
    who, norm, above = np.empty(WIDTH, np.int32), np.empty(WIDTH), np.empty(WIDTH)
    ups, downs = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    visit, reach = np.empty(k, np.int64), np.zeros(k)
    for j in range(k):
        visit[j] = j
    candidates, squared = np.empty(k, np.int64), np.empty(k)
    room = np.empty(d + WIDTH)
    hard = 0
    for a in range(1 if first else k):
        start, stop = begin[a], begin[a + 1]
        if start == stop:
            continue
        visits, beyond = k, np.inf
        if not first:
            farthest = 0.0
            for i in range(start, stop):
                up = np.float64(upper[rows[order[i]]])
                farthest = up if up > farthest else farthest
            radius = (2 * farthest + apart[a]) * UP
            visits, beyond = _nearby(
                wide, ids, place, low_corner, high_corner, a, radius, visit, reach
            )
        for b in range(start, stop, WIDTH):
            used = stop - b if stop - b < WIDTH else WIDTH
            for i in order[b + WIDTH : b + 2 * WIDTH]:
                prefetch(x, at[i] * d)
                prefetch(x, at[i] * d + d - 1)
                prefetch(upper, rows[i])
                prefetch(lower, rows[i])
                prefetch(labels, rows[i])
            for r in range(used):
                i = order[b + r]
                for f in range(d):
                    columns[f, r] = x[at[i], f] * scale - offset[f]
                above[r] = 0.0 if first else upper[rows[i]]
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
            unseen = reach[q] if q < visits else beyond
            _interval(norm, best, second, above, unseen, beta, eta, ups, downs)
            for r in range(used):
                row, label = rows[order[b + r]], np.int64(who[r])
                up, down = ups[r], downs[r]
                if not up * np.float32(GAP) < down:
                    hard += 1
                    if exact:
                        most, found = np.float64(up) ** 2 * GAP, 0
                        for v in range(q):
                            j = visit[v]
                            estimate = norm[r] + np.float64(norms[j])
                            for f in range(d):
                                estimate += np.float64(minus_2c[j, f]) * np.float64(columns[f, r])
                            least = estimate - (abs(estimate) + norm[r]) * beta - eta
                            if least <= most:
                                candidates[found] = j
                                i = at[order[b + r]]
                                squared[found] = squared_distance(x, i, unit, wide, j, room)
                                found += 1
                        label, up, down, _ = _decide(candidates, squared, found, most, tie, label)
                labels[row], upper[row], lower[row] = label, up, down
    return hard


@jit
def _nearby(wide, ids, place, low_corner, high_corner, a, radius, visit, reach):
    """List the centroids within `radius` of `a`, nearest first, itself at the head.

    Returns how many, and at least how far all others are.
    """
    k = wide.shape[0]
    visits, outside, square = 0, np.inf, radius * radius
    for p in range(low_corner.shape[0]):
        away = _to_panel(wide, a, low_corner, high_corner, p)
        if away > square:
            outside = away if away < outside else outside
            continue
        for slot in range(p * LANES, (p + 1) * LANES):
            j = ids[slot]
            if j == k:
                break
            squared = _between(wide, a, j)
            if squared > square:
                outside = squared if squared < outside else outside
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


@_no_nan
def _wear_row(bounds, row, moved, worn, room):
    """Write a row's bounds, worn, to `worn` (groups,) and return the lowest of them."""
    count = moved.shape[0]
    for g in range(count):
        worn[g] = np.float64(bounds[row, g]) - moved[g]
    for i in range(LANES):
        room[i] = np.inf
    whole = count - count % LANES
    for g in range(0, whole, LANES):  # by lanes, as one minimum after the other would wait for each
        for i in range(LANES):
            room[i] = worn[g + i] if worn[g + i] < room[i] else room[i]
    lowest = np.inf
    for i in range(LANES):
        lowest = room[i] if room[i] < lowest else lowest
    for g in range(whole, count):
        lowest = worn[g] if worn[g] < lowest else lowest
    return lowest


@jit
def grouped(
    x,
    at,
    rows,
    scale,
    offset,
    unit,
    panels,
    norms,
    ids,
    place,
    centred,
    spare,
    wide,
    moved,
    bounds,
    share,
    at_once,
    labels,
    upper,
    lower,
    beta,
    eta,
    tie,
    first,
    exact,
    deferred,
):
    """Search the panels that a row's bounds do not rule out; return rows not proven, and panels scored.

    The scores say that squared distances are at least theirs, and at most theirs plus ``4 r spare[j]``,
    with r the row's last coordinate. Rows not proven keep their label and go to `deferred`, as numbers
    into `rows`, if that has room for them; else they are decided if `exact`.

    With g = p // share, ``bounds[row, g] - moved[g]`` is at most the distance of the row to every centroid
    of panel p but its own: the bounds of Yinyang (Ding et al., ICML 2015), which wear unwritten.
    """
    m, k, d, p_count = rows.shape[0], wide.shape[0], x.shape[1], norms.shape[0]
    y = np.empty((at_once, d), panels.dtype)
    which, norm, own = np.empty(at_once, np.int64), np.empty(at_once), np.empty(at_once)
    best, who = np.empty(at_once), np.empty(at_once, np.int64)
    below = np.empty(at_once)
    wanting = np.empty((p_count, at_once + ROWS), np.int64)
    wants = np.empty(p_count, np.int64)
    lows = np.empty((p_count, at_once), panels.dtype)
    seconds = np.empty((p_count, at_once), panels.dtype)
    spots = np.empty((p_count, at_once), np.int64)
    scores = np.empty((p_count, at_once + ROWS, LANES), panels.dtype)
    lane = np.empty(ROWS, np.int64)
    low, next_ = np.empty(ROWS, panels.dtype), np.empty(ROWS, panels.dtype)
    candidates = np.empty(k + 1, np.int64)
    squared, room = np.empty(k + 1), np.empty(d)
    worn, lanes_room = np.empty(moved.shape[0]), np.empty(LANES)
    hard, scored, i = 0, 0, 0
    while i < m:
        count = 0
        for p in range(p_count):
            wants[p] = 0
        while i < m and count < at_once:
            row, label = rows[i], np.int64(0)
            if not first:  # before the row itself is read
                label = labels[row]
                lower[row] = _wear_row(bounds, row, moved, worn, lanes_room) * DOWN - TINY
                if upper[row] * np.float32(GAP) < lower[row]:
                    i += 1
                    continue
            norm[count], product = _centre(x, at[i], scale, offset, y, count, centred, label)
            which[count] = i
            i += 1
            if first:
                best[count], who[count], below[count] = np.inf, 0, np.inf
                for p in range(p_count):
                    wanting[p, count] = count
                    wants[p] += 1
                count += 1
                continue
            slot = place[label]
            score = np.float64(norms[slot // LANES, slot % LANES]) - 2 * product
            score_up = score + 4 * abs(np.float64(y[count, d - 1])) * spare[label]
            up = _at_most(norm[count], score_up, beta, eta)
            up = up if up < upper[row] else upper[row]
            upper[row] = up
            if up * np.float32(GAP) < lower[row]:
                continue
            limit, others = np.float64(up) * GAP, np.inf
            for g in range(moved.shape[0]):
                if worn[g] <= limit:
                    until = (g + 1) * share
                    for p in range(g * share, until if until < p_count else p_count):
                        wanting[p, wants[p]] = count
                        wants[p] += 1
                elif worn[g] < others:
                    others = worn[g]
            best[count], own[count], who[count], below[count] = score, score, slot, others
            count += 1
        for p in range(p_count):
            scored += wants[p]
            if wants[p]:
                for r in range(ROWS):
                    wanting[p, wants[p] + r] = wanting[p, wants[p] - 1]
        for p in range(p_count):
            for b in range(0, wants[p], ROWS):
                batch = wanting[p, b : b + ROWS]
                tile(y, batch, d, panels, norms, p, scores[p, b : b + ROWS], low, next_, lane)
                for r in range(ROWS if wants[p] - b > ROWS else wants[p] - b):
                    t = batch[r]
                    lows[p, b + r], seconds[p, b + r], spots[p, b + r] = low[r], next_[r], lane[r]
                    if low[r] < best[t]:
                        best[t], who[t] = low[r], p * LANES + lane[r]
        if not first:
            for t in range(count):
                # The centroid that a row left is one of the others now.
                left = place[labels[rows[which[t]]]]
                if left != who[t]:
                    row, g = rows[which[t]], left // LANES // share
                    least = np.float64(_at_least(norm[t], own[t], beta, eta))
                    bound = np.float32((least + moved[g]) * DOWN)
                    bounds[row, g] = bound if bound < bounds[row, g] else bounds[row, g]
                    below[t] = least if least < below[t] else below[t]
        for p in range(p_count):
            g = p // share
            for q in range(wants[p]):
                t = wanting[p, q]
                row = rows[which[t]]
                mine = who[t] == p * LANES + spots[p, q]
                score = np.float64(seconds[p, q] if mine else lows[p, q])
                least = np.float64(_at_least(norm[t], score, beta, eta))
                below[t] = least if least < below[t] else below[t]
                bound = np.float32((least + moved[g]) * DOWN)
                if p % share == 0 or bound < bounds[row, g]:
                    bounds[row, g] = bound
        for t in range(count):
            row, label = rows[which[t]], np.int64(ids[who[t]])
            score_up = best[t] + 4 * abs(np.float64(y[t, d - 1])) * spare[label]
            up, down = _at_most(norm[t], score_up, beta, eta), np.float32(below[t] * DOWN - TINY)
            if not up * np.float32(GAP) < down:
                if deferred.shape[0]:
                    deferred[hard] = which[t]
                    hard += 1
                    if not first and label != labels[row]:  # then the best is one of the others
                        g = who[t] // LANES // share
                        least = np.float64(_at_least(norm[t], best[t], beta, eta))
                        bound = np.float32((least + moved[g]) * DOWN)
                        bounds[row, g] = bound if bound < bounds[row, g] else bounds[row, g]
                    continue
                hard += 1
                if exact:
                    most, found = np.float64(up) ** 2 * GAP, 0
                    if not first:
                        candidates[0], found = labels[row], 1
                    for p in range(p_count):
                        q, end = 0, wants[p]
                        while q < end:  # the rows of a panel ascend
                            middle = (q + end) // 2
                            if wanting[p, middle] < t:
                                q = middle + 1
                            else:
                                end = middle
                        if q == wants[p] or wanting[p, q] != t:
                            continue
                        for spot in range(LANES):
                            j = ids[p * LANES + spot]
                            a = norm[t] + np.float64(scores[p, q, spot])
                            least = (a * (1 - beta) if a > 0 else a) - norm[t] * beta - eta
                            if least <= most and j < k and (first or j != labels[row]):
                                candidates[found] = j
                                found += 1
                    guess = label
                    for q in range(found):
                        squared[q] = squared_distance(
                            x, at[which[t]], unit, wide, candidates[q], room
                        )
                    label, up, down, left = _decide(candidates, squared, found, most, tie, guess)
                    if label != guess:
                        g = who[t] // LANES // share
                        bound = np.float32((left + moved[g]) * DOWN)
                        bounds[row, g] = bound if bound < bounds[row, g] else bounds[row, g]
            labels[row], upper[row], lower[row] = label, up, down
    return hard, scored
