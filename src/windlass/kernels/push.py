"""Residue push: personalised PageRank from one place outwards, touching only what matters.

`result` is what is settled, `residue` what is still on its way. At any moment
`exact(seeds) = result + sum of residue[v] * exact(v)`, where exact(v) is what walks from v leave behind: so what is
left can be closed with fingerprints of the nodes it waits at, at any time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled, inlined

_QUEUED, _REACHED, _SETTLED = 1, 2, 4


@compiled
def push(
    indptr: Any, indices: Any, weights: Any, strengths: Any, seeds: Any, values: Any, restart: float, threshold: float,
    result: Any, residue: Any, stride: int, lane: int, flags: Any, queue: Any, reached: Any,
) -> Any:  # fmt: skip
    """Push residues of at least `threshold` times the number of neighbours, first come first served.

    Args:
        seeds, values: int64 and float64: where residue is put at first, and how much.
        result, residue: float [n * stride], zeros at `lane` of every node.
        flags: uint8 [n], zeros.
        queue: int32 [n + 1]. reached: int32 [n], gets the nodes that have had residue.

    Returns:
        How many nodes were reached, and the arcs that were touched.
    """
    room = queue.size
    head, waiting, seen, touched = 0, 0, 0, 0
    for at in range(seeds.size):
        node = seeds[at]
        residue[node * stride + lane] += values[at]
        if not flags[node] & _REACHED:
            reached[seen] = node
            seen += 1
        if not flags[node] & _QUEUED:
            queue[(head + waiting) % room] = node
            waiting += 1
        flags[node] |= _QUEUED | _REACHED
    while waiting:
        node = np.int64(queue[head])
        head += 1
        if head == room:
            head = 0
        waiting -= 1
        flags[node] &= ~_QUEUED
        own = node * stride + lane
        amount = residue[own]
        residue[own] = 0.0
        result[own] += restart * amount
        begin, end = indptr[node], indptr[node + 1]
        if begin == end:
            continue
        share = (1.0 - restart) * amount / strengths[node]
        touched += end - begin
        for at in range(begin, end):
            other = np.int64(indices[at])
            more = share * weights[at] if weights.size else share
            have = residue[other * stride + lane] + more
            residue[other * stride + lane] = have
            flag = flags[other]
            if not flag & _REACHED:
                reached[seen] = other
                seen += 1
                flags[other] = flag | _REACHED
            if have >= threshold * max(1, indptr[other + 1] - indptr[other]) and not flag & _QUEUED:
                flags[other] |= _QUEUED
                place = head + waiting
                queue[place - room if place >= room else place] = other
                waiting += 1
    return seen, touched


@compiled
def close(
    reached: Any, seen: int, offsets: Any, ids: Any, visits: Any, scales: Any, least: float, result: Any, residue: Any,
    flags: Any, settled: Any,
) -> Any:  # fmt: skip
    """Add what waits at each reached node, spread by its fingerprint, and take stock.

    Args:
        offsets, ids, visits, scales: Fingerprints: of node v `scales[v] * visits` over `ids` between two offsets, the
            most visited first.
        least: Entries that would add less are left out.
        settled: int32 [n], gets the nodes whose result is not zero.

    Returns:
        How many those are, and the entries that were touched.
    """
    count, touched = 0, 0
    for at in range(seen):
        node = np.int64(reached[at])
        if residue[node] > 0.0 and offsets.size > 1:
            share = residue[node] * scales[node]
            limit = least / share
            for entry in range(offsets[node], offsets[node + 1]):
                times = np.float64(visits[entry])
                if times < limit:
                    break
                other = np.int64(ids[entry])
                result[other] += share * times
                touched += 1
                if not flags[other] & _SETTLED:
                    settled[count] = other
                    count += 1
                    flags[other] |= _SETTLED
        if result[node] > 0.0 and not flags[node] & _SETTLED:
            settled[count] = node
            count += 1
            flags[node] |= _SETTLED
    return count, touched


@inlined
def _below(score: Any, node: Any, other_score: Any, other: Any) -> Any:
    return score < other_score or (score == other_score and node > other)


@inlined
def _sift(ids: Any, scores: Any, place: int, size: int) -> None:
    """Move the entry at `place` down until the worst of the first `size` is on top again."""
    node, score = ids[place], scores[place]
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and _below(scores[child + 1], ids[child + 1], scores[child], ids[child]):
            child += 1
        if not _below(scores[child], ids[child], score, node):
            break
        ids[place], scores[place] = ids[child], scores[child]
        place = child
    ids[place], scores[place] = node, score


@compiled
def best(settled: Any, count: int, result: Any, stride: int, lane: int, ids: Any, scores: Any) -> Any:
    """The best of the settled nodes, best first, ties by the smaller node.

    Args:
        ids, scores: int64 and float64, as many as are wanted; written.

    Returns:
        How many were written, and the sum of all results.
    """
    kept, wanted, total = 0, ids.size, 0.0
    for at in range(count):
        node = np.int64(settled[at])
        score = np.float64(result[node * stride + lane])
        if score <= 0.0:
            continue
        total += score
        if kept < wanted:
            place = kept
            kept += 1
            while place > 0:
                parent = (place - 1) // 2
                if not _below(score, node, scores[parent], ids[parent]):
                    break
                ids[place], scores[place] = ids[parent], scores[parent]
                place = parent
            ids[place], scores[place] = node, score
        elif _below(scores[0], ids[0], score, node):
            ids[0], scores[0] = node, score
            _sift(ids, scores, 0, kept)
    for last in range(kept - 1, 0, -1):
        worst, least = ids[0], scores[0]
        ids[0], scores[0] = ids[last], scores[last]
        ids[last], scores[last] = worst, least
        _sift(ids, scores, 0, last)
    return kept, total


@compiled
def clear(reached: Any, seen: int, settled: Any, count: int, result: Any, residue: Any, flags: Any) -> Any:
    """Leave every array as zeros; returns the residue that was there."""
    left = 0.0
    for at in range(seen):
        left += residue[reached[at]]
        residue[reached[at]] = 0.0
        flags[reached[at]] = 0
    for at in range(count):
        result[settled[at]] = 0.0
        flags[settled[at]] = 0
    return left


@compiled
def layered(
    indptr: Any, indices: Any, weights: Any, strengths: Any, seed: int, restart: float, rounds: int, least: float,
    offsets: Any, ids: Any, visits: Any, scales: Any, result: Any,
) -> Any:  # fmt: skip
    """The published order of the same work: `rounds` rounds over all nodes with flow, flows below `least` closed at
    once with fingerprints, the rest after the last round. For comparison; returns the arcs and entries touched.
    """
    nodes = indptr.size - 1
    flow, coming = result.copy(), result.copy()
    flow[:] = 0.0
    coming[:] = 0.0
    flow[seed] = 1.0
    touched = 0
    for turn in range(rounds + 1):
        for node in range(nodes):
            amount = flow[node]
            if amount == 0.0:
                continue
            flow[node] = 0.0
            begin, end = indptr[node], indptr[node + 1]
            if turn == rounds or amount < least or begin == end:
                scale = amount * scales[node]
                touched += offsets[node + 1] - offsets[node]
                for entry in range(offsets[node], offsets[node + 1]):
                    result[ids[entry]] += scale * visits[entry]
                continue
            result[node] += restart * amount
            share = (1.0 - restart) * amount / strengths[node]
            touched += end - begin
            for at in range(begin, end):
                coming[indices[at]] += share * weights[at] if weights.size else share
        flow, coming = coming, flow
    return touched
