"""Graphs that benchmarks make for themselves: groups, hubs, and noise, as social graphs have them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from windlass.core.randomness import integers, uniform
from windlass.graphs.graph import Graph


def grouped_graph(
    nodes: int, edges: int, seed: int, *, groups: int = 20, inside: float = 0.7
) -> tuple[Graph, NDArray[np.int64]]:
    """An undirected graph whose degrees follow a power law (exponent about 2.5), and each node's group.

    A share `inside` of the edges joins nodes of one group; the rest joins any two.
    """
    group = integers(seed, "group", size=nodes, high=groups)
    order = np.argsort(group, kind="stable")
    begin = np.searchsorted(group[order], np.arange(groups + 1))
    weight = (1 - uniform(seed, "weight", size=nodes)) ** (-1 / 1.5)
    total = np.cumsum(np.minimum(weight[order], nodes**0.5))
    draws = uniform(seed, "ends", size=(3, edges))
    first = np.searchsorted(total, draws[0] * total[-1], side="right")
    low = np.concatenate([[0.0], total])[begin[group[order[first]]]]
    high = np.concatenate([[0.0], total])[begin[group[order[first]] + 1]]
    near = np.searchsorted(total, low + draws[1] * (high - low), side="right")
    far = np.searchsorted(total, draws[1] * total[-1], side="right")
    second = np.where(draws[2] < inside, near, far).clip(0, nodes - 1)
    return Graph.from_edges(order[first.clip(0, nodes - 1)], order[second], num_nodes=nodes), group


def follower_arcs(
    accounts: int, arcs: int, seed: int, *, groups: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sources and targets of follower arcs over `accounts` accounts, and each account's group.

    A follower points at accounts of one group four times in five, at any otherwise.
    """
    group = integers(seed, "group", size=accounts, high=groups)
    order = np.argsort(group, kind="stable")
    begin = np.searchsorted(group[order], np.arange(groups + 1))
    sources = integers(seed, "source", size=arcs, high=accounts)
    draws = uniform(seed, "target", size=(2, arcs))
    home = group[sources]
    near = order[begin[home] + ((begin[home + 1] - begin[home]) * draws[0]).astype(np.int64)]
    targets = np.where(draws[1] < 0.8, near, (draws[0] * accounts).astype(np.int64))
    return sources, targets, group
