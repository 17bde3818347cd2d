"""Best-first search of a tree of clusters, looking only at the members that were asked for.

Rows lie in the order in which the tree's leaves are met, so that a node is a range of positions, and which of a sorted
list of members are below it is two binary searches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled
from windlass.kernels.distances import best_first, l2_row, push, row_score

SCORED, CENTRES, SHORTLISTS = range(3)
"""Places in the int64 report of `search_tree`."""


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
def search_tree(
    centres: Any,
    variances: Any,
    ends: Any,
    first_child: Any,
    children: Any,
    members: Any,
    row_at: Any,
    vectors: Any,
    dim: int,
    scales: Any,
    query: Any,
    negated: Any,
    metric: int,
    boost: Any,
    shortlist: int,
    least: int,
    order: Any,
    scores: Any,
    rows: Any,
    report: Any,
) -> int:
    """Keep the best of the members found before a shortlist changes nothing.

    Args:
        centres: float32 `[nodes * dim]`; `variances` float32 `[nodes]`: the mean squared distance of a node's rows.
        ends: int64 `[nodes]`: the position after a node's last row. A node's children follow one another.
        first_child, children: int64 `[nodes]`; a leaf has none.
        members: int64 `[m]`, sorted positions that may be found.
        row_at: int32 `[n]`: the row at each position.
        query, negated: float32 `[dim]`, and the same with its sign turned.
        metric: Of the rows. Centres are compared by squared distance.
        boost: By how much of its variance a node counts as nearer.
        shortlist: A node with at most so many members is looked at row by row.
        least: Shortlists to look at whatever they change.
        scores, rows: float32 and int64 `[ef]`.

    Returns:
        How many rows were found, best first.
    """
    nodes = len(ends)
    waiting_scores, waiting = np.empty(nodes, np.float32), np.empty(nodes, np.int64)
    starts, stops = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    asked = query if metric == 0 else negated
    count, size = 0, 0
    report[SCORED] = report[CENTRES] = report[SHORTLISTS] = 0
    stops[0] = len(members)
    if len(members):
        waiting_scores[0], waiting[0], count = np.float32(0.0), 0, 1
    while count > 0:
        node = waiting[0]
        count -= 1
        if count > 0:
            last_score, last = waiting_scores[count], waiting[count]
            at = 0
            while 2 * at + 1 < count:
                child = 2 * at + 1
                if child + 1 < count and waiting_scores[child + 1] < waiting_scores[child]:
                    child += 1
                if last_score <= waiting_scores[child]:
                    break
                waiting_scores[at], waiting[at] = waiting_scores[child], waiting[child]
                at = child
            waiting_scores[at], waiting[at] = last_score, last
        start, stop = starts[node], stops[node]
        if children[node] == 0 or stop - start <= shortlist:
            changed = False
            for i in range(start, stop):
                row = np.int64(row_at[members[i]])
                score = row_score(vectors, dim, scales, row, asked, metric)
                if size < len(rows) or score > scores[0]:
                    changed = True
                if size < len(rows) or score >= scores[0]:
                    size = push(scores, rows, size, order, score, row)
            report[SCORED] += stop - start
            report[SHORTLISTS] += 1
            if not changed and report[SHORTLISTS] >= least:
                break
            continue
        low = start
        for child in range(first_child[node], first_child[node] + children[node]):
            high = _below(members, low, stop, ends[child])
            if high > low:
                starts[child], stops[child] = low, high
                report[CENTRES] += 1
                distance = l2_row(centres, child * dim, np.float32(1.0), negated, dim) - boost * variances[child]
                at = count
                count += 1
                while at > 0 and distance < waiting_scores[(at - 1) >> 1]:
                    parent = (at - 1) >> 1
                    waiting_scores[at], waiting[at] = waiting_scores[parent], waiting[parent]
                    at = parent
                waiting_scores[at], waiting[at] = distance, child
            low = high
    best_first(scores, rows, size, order)
    return size
