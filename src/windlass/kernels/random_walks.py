"""Random walks with restart, counted: how often the walks from a node come by each other node.

A walk is at its start, ends with probability `restart` before every step, and ends at a node without neighbours. Its
random numbers depend on seed, start, walk and step alone, so what is counted for a node does not depend on which other
nodes are done, by whom, or in which order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled, inlined
from windlass.kernels.hashing import mix64

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_PART = np.uint64(0xD1B54A32D192ED03)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_COUNTED = 64


@compiled
def row_prefix(indptr: Any, weights: Any, out: Any) -> None:
    """Running sums of the weights of each row (float64 [m])."""
    for row in range(indptr.size - 1):
        total = 0.0
        for at in range(indptr[row], indptr[row + 1]):
            total += weights[at]
            out[at] = total


@inlined
def _neighbor(indptr: Any, indices: Any, prefix: Any, node: int, draw: Any) -> Any:
    """A neighbour by 32 random bits: each as likely as its weight."""
    begin, end = indptr[node], indptr[node + 1]
    if prefix.size == 0:
        return indices[begin + np.int64((draw * np.uint64(end - begin)) >> _SHIFT)]
    wanted = np.float64(draw) * 2.0**-32 * prefix[end - 1]
    low, high = begin, end - 1
    while low < high:
        middle = (low + high) // 2
        if prefix[middle] > wanted:
            high = middle
        else:
            low = middle + 1
    return indices[low]


@compiled
def count_visits(
    indptr: Any, indices: Any, prefix: Any, start: int, walks: int, restart: float, max_steps: int, seed: Any,
    counts: Any, touched: Any,
) -> Any:  # fmt: skip
    """Count the visits of `walks` walks from `start`.

    Args:
        prefix: from `row_prefix`, or of size 0 when all weights are 1.
        seed: uint64.
        counts: int64 [n], zeros; left with the visits to each node.
        touched: int32 [n], gets the nodes that were visited, in the order of their first visit.

    Returns:
        How many nodes were visited, and the visits in all.
    """
    stop = np.uint64(restart * 4294967296.0)
    node_key = mix64(mix64(seed + _GAMMA) ^ mix64(np.uint64(start) + _PART))
    seen, total = 0, 0
    for walk in range(walks):
        key = mix64(node_key ^ mix64(np.uint64(walk) + _PART))
        node = start
        for step in range(max_steps + 1):
            if counts[node] == 0:
                touched[seen] = node
                seen += 1
            counts[node] += 1
            total += 1
            draw = mix64(key + np.uint64(step) * _GAMMA)
            if (draw >> _SHIFT) < stop or indptr[node] == indptr[node + 1]:
                break
            node = _neighbor(indptr, indices, prefix, node, draw & _LOW)
    return seen, total


@compiled
def most_visited(touched: Any, kept: int, counts: Any, ids: Any, visits: Any) -> None:
    """Move the counts of the first `kept` touched nodes to `ids` and `visits`, the most visited first.

    A counting sort, ties in the order in which nodes were touched; the few beyond its range are inserted.
    """
    begin = np.zeros(_COUNTED + 2, np.int32)
    for at in range(kept):
        begin[_COUNTED - min(counts[touched[at]], _COUNTED) + 1] += 1
    for place in range(_COUNTED + 1):
        begin[place + 1] += begin[place]
    for at in range(kept):
        node = touched[at]
        count = counts[node]
        counts[node] = 0
        bucket = _COUNTED - min(count, _COUNTED)
        place = begin[bucket]
        begin[bucket] += 1
        value = np.uint16(min(count, 65535))
        while bucket == 0 and place > 0 and visits[place - 1] < value:
            ids[place], visits[place] = ids[place - 1], visits[place - 1]
            place -= 1
        ids[place], visits[place] = node, value


@compiled
def fingerprint_nodes(
    indptr: Any, indices: Any, prefix: Any, nodes: Any, walks: int, restart: float, max_steps: int, seed: Any,
    most: int, counts: Any, touched: Any, ids: Any, visits: Any, sizes: Any, totals: Any, cut: Any,
) -> Any:  # fmt: skip
    """`count_visits` from each of `nodes`, one behind the other in `ids` and `visits`.

    Stops before the entries might not fit; the number of nodes done is returned.

    Args:
        most: Entries kept of a node, the heaviest; visits to the others are counted for the node itself. 0: all.
        counts, touched: as `count_visits` takes them.
        ids, visits: int32 and uint16, written, the most visited first.
        sizes, totals, cut: int64 [nodes], entries and visits of each node, and the visits that were moved.
    """
    used = 0
    for place in range(nodes.size):
        start = nodes[place]
        if used + min(counts.size, walks * (max_steps + 1)) > ids.size:
            return place
        seen, total = count_visits(indptr, indices, prefix, start, walks, restart, max_steps, seed, counts, touched)
        kept, moved = seen, 0
        if 0 < most < seen:
            # The start is always the first that was touched, and stays.
            order = np.argsort(-counts[touched[1:seen]], kind="mergesort")
            touched[1:seen] = touched[1:seen][order]
            kept = most
            for at in range(most, seen):
                moved += counts[touched[at]]
                counts[touched[at]] = 0
            counts[start] += moved
        most_visited(touched, kept, counts, ids[used:], visits[used:])
        used += kept
        sizes[place], totals[place], cut[place] = kept, total, moved
    return nodes.size
