# mypy: allow-untyped-defs, allow-untyped-calls
"""The search in many features: panels of centroids are the lanes, and bounds rule most of them out.

Yinyang (Ding et al., "Yinyang k-means: a drop-in replacement of the classic k-means with consistent speedup",
ICML 2015), with a lower bound a row for every panel, or for several.
"""

from __future__ import annotations

import math

import numpy as np

from anykmeans._bounds import DOWN, FAR, GAP, TINY, UP
from anykmeans.kernels.numba.simd import BLOCK, LANES, ROWS, centre, tile
from anykmeans.kernels.numba.steps import (
    any_minimum,
    decide,
    inner,
    jit,
    squared_distance,
)


@inner
def _centre(x, row, ahead, scale, offset, y, t, c, j):
    """Write row `row` of `x` into ``y[t]``, in the frame and less the offset, and ask for row `ahead`.

    Returns its squared norm, and its product with row `j` of `c`, which round no more often than `tile`.
    """
    d = x.shape[1]
    whole = d - d % LANES
    norm = product = 0.0
    for start in range(0, whole, BLOCK * LANES):
        stop = start + BLOCK * LANES if start + BLOCK * LANES < whole else whole
        squared, along = centre(y, t, x, row, ahead, start, stop, scale, offset, c, j)
        norm += squared
        product += along
    for f in range(whole, d):
        y[t, f] = x[row, f] * scale - offset[f]
        value = np.float64(y[t, f])
        norm += value * value
        product += value * np.float64(c[j, f])
    return norm, product


@inner
def _at_most(norm, score, beta, eta):
    """Return a distance that the true one does not exceed: `Bounds.at_most`."""
    a = norm + score
    squared = (a * (1 + beta) if a > 0 else a) + norm * beta + eta
    return np.float32(math.sqrt(squared if squared > 0 else 0.0) * UP + TINY)


@inner
def _at_least(norm, score, beta, eta):
    """Return a distance that the true one reaches: `Bounds.at_least`."""
    a = norm + score
    squared = (a * (1 - beta) if a > 0 else a) - norm * beta - eta
    return np.float32(math.sqrt(squared if squared > 0 else 0.0) * DOWN - TINY)


@any_minimum
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
    changes,
):
    """Search the panels that a row's bounds do not rule out.

    Returns how many labels changed, rows not proven, panels scored, and rows out of range, whose labels mean
    nothing. Changed rows, their old and new labels go to the rows of `changes` (3, m), unless that is empty.

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
    wants, group = np.empty(p_count, np.int64), np.empty(p_count, np.int64)
    for p in range(p_count):
        group[p] = p // share
    lows = np.empty((p_count, at_once + ROWS), panels.dtype)
    seconds = np.empty((p_count, at_once + ROWS), panels.dtype)
    spots = np.empty((p_count, at_once + ROWS), np.int64)
    scores = np.empty((p_count, at_once + ROWS, LANES), panels.dtype)
    candidates = np.empty(k + 1, np.int64)
    squared, room = np.empty(k + 1), np.empty(d)
    worn, lanes_room = np.empty(moved.shape[0]), np.empty(LANES)
    hard = scored = changed = lost = i = 0
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
            ahead = np.int64(at[i + 1 if i + 1 < m else i])
            norm[count], product = _centre(
                x, np.int64(at[i]), ahead, scale, offset, y, np.int64(count), centred, label
            )
            lost += not norm[count] <= FAR
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
            for p in range(p_count):  # no branch: it would be a guess
                bound = worn[group[p]]
                wanting[p, wants[p]] = count
                wants[p] += bound <= limit
                beyond = np.inf if bound <= limit else bound
                others = beyond if beyond < others else others
            best[count], own[count], who[count], below[count] = score, score, slot, others
            count += 1
        for p in range(p_count):
            scored += wants[p]
            if wants[p]:
                for r in range(ROWS):
                    wanting[p, wants[p] + r] = wanting[p, wants[p] - 1]
        for p in range(p_count):
            for b in range(0, wants[p], ROWS):
                e = b + ROWS
                tile(
                    y, wanting[p, b:e], d, panels, norms, p, scores[p, b:e],
                    lows[p, b:e], seconds[p, b:e], spots[p, b:e],
                )  # fmt: skip
            for q in range(wants[p]):
                t = wanting[p, q]
                closer = lows[p, q] < best[t]
                best[t] = lows[p, q] if closer else best[t]
                who[t] = p * LANES + spots[p, q] if closer else who[t]
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
            g, fresh = group[p], p == 0 or group[p] != group[p - 1]
            for q in range(wants[p]):
                t = wanting[p, q]
                row = rows[which[t]]
                mine = who[t] == p * LANES + spots[p, q]
                score = np.float64(seconds[p, q] if mine else lows[p, q])
                least = np.float64(_at_least(norm[t], score, beta, eta))
                below[t] = least if least < below[t] else below[t]
                bound = np.float32((least + moved[g]) * DOWN)
                bounds[row, g] = bound if fresh or bound < bounds[row, g] else bounds[row, g]
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
                if exact and norm[t] <= FAR:
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
                            x, np.int64(at[which[t]]), unit, wide, candidates[q], room
                        )
                    label, up, down, left = decide(
                        candidates, squared, np.int64(found), most, tie, guess
                    )
                    if label != guess:
                        g = who[t] // LANES // share
                        bound = np.float32((left + moved[g]) * DOWN)
                        bounds[row, g] = bound if bound < bounds[row, g] else bounds[row, g]
            if changes.shape[0] and label != labels[row]:
                changes[0, changed], changes[1, changed] = row, labels[row]
                changes[2, changed] = label
                changed += 1
            labels[row], upper[row], lower[row] = label, up, down
    return changed, hard, scored, lost
