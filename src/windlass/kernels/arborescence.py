"""The cheapest tree of directed edges from a root to every vertex (Chu and Liu 1965, Edmonds 1967).

Each vertex takes its cheapest edge; the cycles that come of it become one vertex each, and what it costs to enter
them elsewhere is charged, until no cycle is left; then the cycles are opened again where they are entered. All cycles
of a round are contracted at once, so a round costs O(edges) and a few rounds are enough on ordinary graphs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.kernels.compiled import compiled


@compiled
def cheapest_tree(vertices: Any, root: Any, tails: Any, heads: Any, costs: Any, allowed: Any) -> Any:
    """Minimum-cost arborescence.

    Args:
        vertices: How many there are, the root among them.
        root: Its number.
        tails, heads: int64[edges]; parallel edges and loops are welcome.
        costs: float64[edges], of any sign.
        allowed: bool[edges]; the others do not exist.

    Returns:
        int64[vertices]: the edge that enters each vertex, -1 at the root; everywhere -1 when some vertex cannot be
        reached.
    """
    size = tails.size
    tail, head, cost = tails.copy(), heads.copy(), costs.copy()
    # For each round and vertex: the edge of the input that it took, and the vertex it became part of.
    taken = np.full((vertices + 1, vertices), -1, np.int64)
    became = np.full((vertices + 1, vertices), -1, np.int64)
    in_cycle = np.zeros((vertices + 1, vertices), np.bool_)
    inner_head = np.full((vertices + 1, size), -1, np.int32)  # which vertex of the round an edge enters
    alive = allowed.copy()
    count, rounds, start = vertices, 0, root
    while True:
        best = taken[rounds]
        for edge in range(size):
            inner_head[rounds, edge] = head[edge]
            if alive[edge] and tail[edge] != head[edge] and head[edge] != start:
                known = best[head[edge]]
                if known < 0 or cost[edge] < cost[known]:
                    best[head[edge]] = edge
        for vertex in range(count):
            if vertex != start and best[vertex] < 0:
                return np.full(vertices, -1, np.int64)
        labels = became[rounds]
        found = _mark_cycles(count, start, best, tail, labels, in_cycle[rounds])
        if found == 0:
            break
        fresh = found
        for vertex in range(count):
            if labels[vertex] < 0:
                labels[vertex] = fresh
                fresh += 1
        charge = np.zeros(count)
        for vertex in range(count):
            if in_cycle[rounds, vertex]:
                charge[vertex] = cost[best[vertex]]
        for edge in range(size):
            cost[edge] -= charge[head[edge]]
            tail[edge], head[edge] = labels[tail[edge]], labels[head[edge]]
            if tail[edge] == head[edge]:
                alive[edge] = False
        start, count = labels[start], fresh
        rounds += 1
    return _opened(vertices, rounds, count, taken, became, in_cycle, inner_head)


@compiled
def _mark_cycles(count: Any, start: Any, best: Any, tail: Any, labels: Any, in_cycle: Any) -> Any:
    """Number the cycles of the taken edges from 0 in `labels`; returns how many there are."""
    seen = np.full(count, -1, np.int64)
    found = 0
    for origin in range(count):
        vertex = origin
        while vertex != start and seen[vertex] < 0:
            seen[vertex] = origin
            vertex = tail[best[vertex]]
        if vertex != start and seen[vertex] == origin and labels[vertex] < 0:
            while labels[vertex] < 0:
                labels[vertex] = found
                in_cycle[vertex] = True
                vertex = tail[best[vertex]]
            found += 1
    return found


@compiled
def _opened(vertices: Any, rounds: Any, count: Any, taken: Any, became: Any, in_cycle: Any, inner_head: Any) -> Any:
    """Open the cycles, last round first: each keeps its own edges but where it is entered."""
    chosen = taken[rounds].copy()
    for level in range(rounds - 1, -1, -1):
        outer = chosen
        chosen = taken[level].copy()
        for vertex in range(vertices):
            group = became[level, vertex]
            if group < 0:
                continue
            entering = outer[group]
            if not in_cycle[level, vertex]:
                chosen[vertex] = entering
            elif entering >= 0 and inner_head[level, entering] == vertex:
                chosen[vertex] = entering
    return chosen
