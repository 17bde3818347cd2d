"""Swaps of k-medoids: what each would change, all k at once, and the bookkeeping after one.

State of an object o: `near[o]`, `d1[o]`, the slot of its nearest medoid and the distance to it; `sec[o]`, `d2[o]`, the
second nearest. A medoid is always its own nearest. `removal[m]` is what the total would rise by were slot m given up:
the weighted sum of `d2 - d1` over its members. Sums are float64; distances keep their type.

A distance row `row[o]` is the dissimilarity of object o to the candidate, contiguous. `rows[at[m]]` is that of slot m.
Candidates are all that may become medoids. Objects may be some of them only: `ids[o]` is the candidate that object o
is, and `taken[j]` says whether candidate j is a medoid.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compaction import collect_less
from windlass.kernels.compiled import compiled
from windlass.kernels.feature_rows import point_to_all


@compiled
def assign_two_nearest(rows: Any, at: Any, medoids: Any, ids: Any, near: Any, sec: Any, d1: Any, d2: Any) -> None:
    """Fill the state of every object from scratch; needs two slots at least."""
    n = len(near)
    first, second = rows[at[0]], rows[at[1]]
    for o in range(n):
        if second[o] < first[o] or ids[o] == medoids[1]:
            near[o], d1[o], sec[o], d2[o] = 1, second[o], 0, first[o]
        else:
            near[o], d1[o], sec[o], d2[o] = 0, first[o], 1, second[o]
    for m in range(2, len(medoids)):
        row = rows[at[m]]
        for o in range(n):
            d = row[o]
            if d < d1[o] or ids[o] == medoids[m]:
                sec[o], d2[o] = near[o], d1[o]
                near[o], d1[o] = m, d
            elif d < d2[o]:
                sec[o], d2[o] = m, d


@compiled
def removal_losses(near: Any, d1: Any, d2: Any, weight: Any, out: Any) -> float:
    """Fill `removal`; returns the total."""
    out[:] = 0.0
    total = 0.0
    for o in range(len(near)):
        out[near[o]] += weight[o] * (np.float64(d2[o]) - np.float64(d1[o]))
        total += weight[o] * np.float64(d1[o])
    return total


@compiled
def swap_gain(row: Any, near: Any, d1: Any, d2: Any, weight: Any, removal: Any, gain: Any, found: Any) -> Any:
    """The change of the total by the best swap of one candidate, and the slot it would take: O(n + k).

    Args:
        row: Distances to the candidate.
        gain: float64 `[k]`, overwritten.
        found: int32 `[n + 8]`, overwritten.
    """
    # Few objects are nearer to the candidate than to their second medoid: only those are looked at.
    count = collect_less(row, d2, found)
    gain[:] = removal
    shared = 0.0
    for t in range(count):
        o = found[t]
        d, nearest = np.float64(row[o]), np.float64(d1[o])
        # With the candidate the object is as near as min(d, d1); without its own medoid too, it would be max(d, d1).
        shared += weight[o] * (min(d, nearest) - nearest)
        gain[near[o]] += weight[o] * (max(d, nearest) - np.float64(d2[o]))
    best = 0
    for m in range(1, len(gain)):
        if gain[m] < gain[best]:
            best = m
    return shared + gain[best], best


@compiled
def _second_nearest(rows: Any, at: Any, o: int, near: int, slot: int, distance: Any) -> Any:
    second, d2 = slot, distance
    for m in range(len(at)):
        if m != near and m != slot and rows[at[m], o] < d2:
            second, d2 = m, rows[at[m], o]
    return second, d2


@compiled
def apply_swap(
    row: Any, slot: int, j: int, rows: Any, at: Any, ids: Any, near: Any, sec: Any, d1: Any, d2: Any
) -> None:
    """Candidate `j` takes `slot`. `rows` and `at` may hold the old or the new row of `slot`: it is not read."""
    for o in range(len(near)):
        d = row[o]
        if ids[o] == j:
            if near[o] != slot:
                sec[o], d2[o] = near[o], d1[o]
            near[o], d1[o] = slot, d
        elif near[o] == slot:
            if d < d2[o]:
                d1[o] = d
            else:
                near[o], d1[o] = sec[o], d2[o]
                sec[o], d2[o] = _second_nearest(rows, at, o, near[o], slot, d)
        elif d < d1[o]:
            sec[o], d2[o] = near[o], d1[o]
            near[o], d1[o] = slot, d
        elif sec[o] == slot:
            sec[o], d2[o] = _second_nearest(rows, at, o, near[o], slot, d)
        elif d < d2[o]:
            sec[o], d2[o] = slot, d


@compiled
def read_row(rows: Any, features: Any, sizes: Any, metric: int, j: int, buffer: Any) -> Any:
    """The distance row of object j: row j of the matrix, or, when `metric` is not negative, made from features."""
    if metric < 0:
        return rows[j]
    size = sizes[j] if len(sizes) else np.float32(0)
    point_to_all(features, features[:, j].copy(), size, sizes, metric, buffer)
    buffer[j] = 0  # exactly, also where rounding says otherwise
    return buffer


@compiled
def walk_eagerly(
    rows: Any, at: Any, features: Any, sizes: Any, metric: int, buffer: Any, order: Any, tolerance: float, steps: int,
    medoids: Any, taken: Any, ids: Any, near: Any, sec: Any, d1: Any, d2: Any, weight: Any, removal: Any, gain: Any,
    found: Any, counters: Any, totals: Any,
) -> None:  # fmt: skip
    """Go on with the walk over all candidates, swapping as soon as a swap gains.

    Args:
        order: The candidates in the order in which they are tried.
        tolerance: A swap must lower the total by more than this share of it.
        steps: Try so many at most.
        counters: int64 `[4]`: place in `order`, tried since the last swap, swaps, tried. The walk is over when as many
            were tried since the last swap as there are.
        totals: float64 `[1]`, the total.
    """
    n, place, since = len(order), counters[0], counters[1]
    for _ in range(steps):
        if since >= n:
            break
        j = order[place]
        place = place + 1 if place + 1 < n else 0
        since += 1
        counters[3] += 1
        if taken[j]:
            continue
        row = read_row(rows, features, sizes, metric, j, buffer)
        change, slot = swap_gain(row, near, d1, d2, weight, removal, gain, found)
        if change < -tolerance * totals[0]:
            taken[medoids[slot]], taken[j] = False, True
            medoids[slot] = j
            if metric >= 0:
                rows[slot] = row
            apply_swap(row, slot, j, rows, at, ids, near, sec, d1, d2)
            totals[0] = removal_losses(near, d1, d2, weight, removal)
            counters[2] += 1
            since = 0
    counters[0], counters[1] = place, since


@compiled
def best_swap(
    rows: Any, features: Any, sizes: Any, metric: int, buffer: Any, taken: Any, near: Any, d1: Any, d2: Any,
    weight: Any, removal: Any, gain: Any, found: Any,
) -> Any:  # fmt: skip
    """The best swap of all: change, object, slot (FastPAM1); of equal ones the first object and slot."""
    best, chosen, chosen_slot = 0.0, -1, -1
    for j in range(len(taken)):
        if taken[j]:
            continue
        row = read_row(rows, features, sizes, metric, j, buffer)
        change, slot = swap_gain(row, near, d1, d2, weight, removal, gain, found)
        if change < best:
            best, chosen, chosen_slot = change, j, slot
    return best, chosen, chosen_slot


@compiled
def best_swap_by_pairs(rows: Any, taken: Any, k: int, near: Any, d1: Any, d2: Any, weight: Any) -> Any:
    """What `best_swap` finds, as the original PAM looks for it: every pair of a medoid and an object, O(k n^2)."""
    best, chosen, chosen_slot = 0.0, -1, -1
    for j in range(len(taken)):
        if taken[j]:
            continue
        row = rows[j]
        for slot in range(k):
            change = 0.0
            for o in range(len(near)):
                d = np.float64(row[o])
                stays = np.float64(d2[o]) if near[o] == slot else np.float64(d1[o])
                change += weight[o] * (min(d, stays) - np.float64(d1[o]))
            if change < best:
                best, chosen, chosen_slot = change, j, slot
    return best, chosen, chosen_slot


@compiled
def build_gain(row: Any, d1: Any, weight: Any) -> float:
    """How much the total falls when the object of `row` becomes one more medoid."""
    total = 0.0
    for o in range(len(row)):
        if row[o] < d1[o]:
            total += weight[o] * (np.float64(d1[o]) - np.float64(row[o]))
    return total


@compiled
def matrix_faults(matrix: Any, limit: Any) -> Any:
    """Checks of a square matrix: the place of the first value that is negative, NaN or above `limit` (-1, -1 when there
    is none), whether it is symmetric, and whether its diagonal is zero."""
    n = matrix.shape[0]
    same, good, hollow = True, True, True
    for i in range(n):
        hollow &= matrix[i, i] == 0
    for top in range(0, n, 64):
        for left in range(0, top + 64, 64):
            for i in range(top, min(top + 64, n)):
                for j in range(left, min(left + 64, i + 1)):
                    a = matrix[i, j]
                    same &= a == matrix[j, i]
                    good &= (a >= 0) & (a <= limit)
    if same and good:
        return -1, -1, True, hollow
    for i in range(n):
        for j in range(n):
            if not (matrix[i, j] >= 0 and matrix[i, j] <= limit):
                return i, j, same, hollow
    return -1, -1, same, hollow
