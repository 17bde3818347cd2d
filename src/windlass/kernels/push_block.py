"""Many queries in one call, each by itself or together.

Together: what waits at a node is closed for all of them in one pass over its fingerprint. Results and residues of the
queries stand side by side, so that an entry of a fingerprint is read once and added to all with one vector instruction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled
from windlass.kernels.push import best, clear, close, push
from windlass.kernels.simd import LANES, fma, load_float, repeat, store_float

_REACHED, _SETTLED, _LISTED = 2, 4, 8


@compiled
def answer_each(
    indptr: Any, indices: Any, weights: Any, strengths: Any, seed_ptr: Any, seeds: Any, values: Any, restart: float,
    threshold: float, offsets: Any, ids: Any, visits: Any, scales: Any, least: float, result: Any, residue: Any,
    flags: Any, queue: Any, reached: Any, settled: Any, top_ids: Any, top_scores: Any, kept: Any,
) -> Any:  # fmt: skip
    """Push, close and keep the best, query by query; as `answer_block`, with float64 [n] results and residues."""
    touched = 0
    for query in range(seed_ptr.size - 1):
        part = slice(seed_ptr[query], seed_ptr[query + 1])
        seen, arcs = push(
            indptr, indices, weights, strengths, seeds[part], values[part], restart, threshold, result, residue, 1, 0,
            flags, queue, reached,
        )  # fmt: skip
        count, entries = close(
            reached, seen, offsets, ids, visits, scales, least, result, residue, flags, settled
        )  # fmt: skip
        touched += arcs + entries
        kept[query], total = best(settled, count, result, 1, 0, top_ids[query], top_scores[query])
        top_scores[query] /= total
        clear(reached, seen, settled, count, result, residue, flags)
    return touched


@compiled
def answer_block(
    indptr: Any, indices: Any, weights: Any, strengths: Any, seed_ptr: Any, seeds: Any, values: Any, restart: float,
    threshold: float, offsets: Any, ids: Any, visits: Any, scales: Any, least: float, result: Any, residue: Any,
    flags: Any, queue: Any, reached: Any, listed: Any, settled: Any, top_ids: Any, top_scores: Any, kept: Any,
) -> Any:  # fmt: skip
    """Push for up to `LANES` queries, close them together, and keep the best of each.

    Args:
        seed_ptr, seeds, values: Of query q the seeds between `seed_ptr[q]` and `seed_ptr[q + 1]`.
        result, residue: float32 [n * LANES], zeros. flags: uint8 [n], zeros.
        queue: int32 [n + 1]. reached, listed, settled: int32 [n].
        top_ids, top_scores: int64 and float64 [queries, top], scores that sum to one over all nodes; kept: int64
            [queries], how many were written.

    Returns:
        Arcs and entries that were touched. All arrays are zeros again.
    """
    queries = seed_ptr.size - 1
    touched, union = 0, 0
    for query in range(queries):
        part = slice(seed_ptr[query], seed_ptr[query + 1])
        seen, arcs = push(
            indptr, indices, weights, strengths, seeds[part], values[part], restart, threshold, result, residue, LANES,
            query, flags, queue, reached,
        )  # fmt: skip
        touched += arcs
        for at in range(seen):
            node = reached[at]
            if not flags[node] & _LISTED:
                listed[union] = node
                union += 1
            flags[node] = _LISTED
    count, entries = _close(listed, union, offsets, ids, visits, scales, least, result, residue, flags, settled)
    for query in range(queries):
        kept[query], total = best(settled, count, result, LANES, query, top_ids[query], top_scores[query])
        top_scores[query] /= total
    for at in range(union):
        node = np.int64(listed[at])
        residue[node * LANES : (node + 1) * LANES] = np.float32(0)
        flags[node] = 0
    for at in range(count):
        node = np.int64(settled[at])
        result[node * LANES : (node + 1) * LANES] = np.float32(0)
        flags[node] = 0
    return touched + entries


@compiled
def _close(
    listed: Any, union: int, offsets: Any, ids: Any, visits: Any, scales: Any, least: float, result: Any, residue: Any,
    flags: Any, settled: Any,
) -> Any:  # fmt: skip
    """As `push.close`, for all lanes: a lane drops out of a fingerprint where its entries add less than `least`."""
    count, touched = 0, 0
    shares, times = np.empty(LANES, np.float32), np.empty(1, np.float32)
    limits = np.empty(LANES, np.float64)
    for at in range(union):
        node = np.int64(listed[at])
        own = node * LANES
        active, lane = 0, 0
        for each in range(LANES):
            amount = residue[own + each]
            shares[each] = amount * scales[node]
            limits[each] = -1.0
            if amount > 0:
                limits[each] = least / np.float64(shares[each])
                active += 1
                lane = each
        entry, end = offsets[node], offsets[node + 1]
        while active > 0:
            # The lane that gives up first decides how far all go on together.
            limit = -1.0
            for each in range(LANES):
                limit = max(limit, limits[each])
            start = entry
            if active == 1:
                share = shares[lane]
                while entry < end and visits[entry] >= limit:
                    other = np.int64(ids[entry])
                    result[other * LANES + lane] += share * np.float32(visits[entry])
                    if not flags[other] & _SETTLED:
                        settled[count] = other
                        count += 1
                        flags[other] |= _SETTLED
                    entry += 1
            else:
                together = load_float(shares, 0)
                while entry < end and visits[entry] >= limit:
                    other = np.int64(ids[entry])
                    times[0] = np.float32(visits[entry])
                    place = other * LANES
                    store_float(result, place, fma(repeat(times, 0), together, load_float(result, place)))
                    if not flags[other] & _SETTLED:
                        settled[count] = other
                        count += 1
                        flags[other] |= _SETTLED
                    entry += 1
            touched += entry - start
            for each in range(LANES):
                if limits[each] >= 0.0 and (entry == end or limits[each] >= limit):
                    shares[each] = np.float32(0)
                    limits[each] = -1.0
                    active -= 1
                elif limits[each] >= 0.0:
                    lane = each
        for each in range(LANES):
            if result[own + each] > 0 and not flags[node] & _SETTLED:
                settled[count] = node
                count += 1
                flags[node] |= _SETTLED
    return count, touched
