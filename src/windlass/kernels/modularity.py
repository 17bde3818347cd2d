"""One level of Louvain's method: nodes move to the neighbouring group that raises modularity most."""

from __future__ import annotations

from typing import Any

from windlass.kernels.compiled import compiled


@compiled
def move_nodes(
    indptr: Any, indices: Any, weights: Any, volumes: Any, resolution: float, order: Any, group: Any, inside: Any,
    link: Any, near: Any, rounds: int,
) -> Any:  # fmt: skip
    """Move nodes between groups until none gains, at most `rounds` times over all of them.

    Args:
        weights: float64 [m] of a symmetric matrix; a loop stands once, with twice what lies inside.
        volumes: float64 [n], the row sums.
        order: int32 [n], in which nodes are asked.
        group: int32 [n], the group of each node, written.
        inside: float64 [n], the volume of each group, kept up to date.
        link, near: float64 [n] zeros and int32 [n], scratch.

    Returns:
        How many moves were made.
    """
    total = 0.0
    for node in range(volumes.size):
        total += volumes[node]
    moves = 0
    for _ in range(rounds):
        moved = 0
        for place in range(order.size):
            node = order[place]
            own, volume, found = group[node], volumes[node], 0
            for at in range(indptr[node], indptr[node + 1]):
                other = indices[at]
                if other == node:
                    continue
                label = group[other]
                if link[label] == 0.0:
                    near[found] = label
                    found += 1
                link[label] += weights[at]
            inside[own] -= volume
            best, most = own, link[own] - resolution * volume * inside[own] / total
            for at in range(found):
                label = near[at]
                gain = link[label] - resolution * volume * inside[label] / total
                if gain > most + 1e-12:
                    best, most = label, gain
                link[label] = 0.0
            inside[best] += volume
            if best != own:
                group[node] = best
                moved += 1
        moves += moved
        if moved == 0:
            break
    return moves
