"""Best-first search of a tree of clusters, looking only at the members that were asked for.

Rows lie in the order in which the tree's leaves are met, so that a node is a range of positions, and which of a sorted
list of members are below it is two binary searches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.bitcodes import sign_scores_of
from windlass.kernels.compiled import compiled
from windlass.kernels.distances import best_first, l2_row, offer

SCORED, CENTRES, SHORTLISTS = range(3)
"""Places in the int64 report of `search_tree`."""
_BLOCK = 256


@compiled
def _below(members: Any, low: int, high: int, bound: int) -> int:
    """The first place in `members[low:high]` that is not below `bound`."""
    while low < high:
        middle = (low + high) >> 1
        if members[middle] < bound:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _put(scores: Any, nodes: Any, count: int, score: Any, node: Any) -> int:
    """Add a node to the heap whose root has the lowest score; returns its new size."""
    at = count
    while at > 0 and score < scores[(at - 1) >> 1]:
        parent = (at - 1) >> 1
        scores[at], nodes[at] = scores[parent], nodes[parent]
        at = parent
    scores[at], nodes[at] = score, node
    return count + 1


@compiled
def _take(scores: Any, nodes: Any, count: int) -> int:
    """Remove the root; returns how many are left."""
    count -= 1
    score, node, at = scores[count], nodes[count], 0
    while 2 * at + 1 < count:
        child = 2 * at + 1
        if child + 1 < count and scores[child + 1] < scores[child]:
            child += 1
        if score <= scores[child]:
            break
        scores[at], nodes[at] = scores[child], nodes[child]
        at = child
    scores[at], nodes[at] = score, node
    return count


@compiled
def search_tree(
    centres: Any,
    variances: Any,
    ends: Any,
    first_child: Any,
    children: Any,
    members: Any,
    codes: Any,
    squares: Any,
    factors: Any,
    asked: Any,
    negated: Any,
    boost: Any,
    shortlist: int,
    least: int,
    order: Any,
    scores: Any,
    found: Any,
    report: Any,
) -> int:
    """Keep the best of the members, by their codes, that are met before a shortlist changes nothing.

    Args:
        centres: float32 `[nodes * dim]`; `variances` float32 `[nodes]`: the mean squared distance of a node's rows.
        ends: int64 `[nodes]`: the position after a node's last row. A node's children follow one another.
        first_child, children: int64 `[nodes]`; a leaf has none.
        members: int64 `[m]`, sorted positions that may be found.
        codes, squares, factors, asked: See `bitcodes.sign_scores_of`, by position.
        negated: float32 `[dim]`, the query with its sign turned.
        boost: By how much of its variance a node counts as nearer.
        shortlist: A node with at most so many members is looked at member by member.
        least: Shortlists to look at whatever they change.
        order: Of two positions with equal scores the one with the lower entry is kept.
        scores, found: float32 and int64 `[ef]`.

    Returns:
        How many positions were found, best first.
    """
    nodes, dim = len(ends), len(negated)
    waiting_scores, waiting = np.empty(nodes, np.float32), np.empty(nodes, np.int64)
    starts, stops, values = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64), np.empty(_BLOCK, np.float32)
    count, size = 0, 0
    report[SCORED] = report[CENTRES] = report[SHORTLISTS] = 0
    stops[0] = len(members)
    if len(members):
        count = _put(waiting_scores, waiting, 0, np.float32(0.0), 0)
    while count > 0:
        node = waiting[0]
        count = _take(waiting_scores, waiting, count)
        start, stop = starts[node], stops[node]
        if children[node] == 0 or stop - start <= shortlist:
            full, worst = size == len(found), scores[0]
            for first in range(start, stop, _BLOCK):
                block = members[first : min(first + _BLOCK, stop)]
                sign_scores_of(codes, squares, factors, asked, block, values)
                size = offer(values[: len(block)], block, order, scores, found, size)
            report[SCORED] += stop - start
            report[SHORTLISTS] += 1
            if full and scores[0] == worst and report[SHORTLISTS] >= least:
                break
            continue
        low = start
        for child in range(first_child[node], first_child[node] + children[node]):
            high = _below(members, low, stop, ends[child])
            if high > low:
                starts[child], stops[child] = low, high
                report[CENTRES] += 1
                distance = l2_row(centres, child * dim, np.float32(1.0), negated, dim) - boost * variances[child]
                count = _put(waiting_scores, waiting, count, distance, child)
            low = high
    best_first(scores, found, size, order)
    return size
