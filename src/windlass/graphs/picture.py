"""A graph as a picture: which of its nodes, where they stand, which group they are in, and the edges worth a line.

Groups are laid out first, as one node each, then their members around them, by the forces of Fruchterman and Reingold
(1991) with every pair of nodes: what is drawn is never more than a few thousand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import uniform
from windlass.core.tasks import usable_cores
from windlass.graphs.graph import Graph
from windlass.graphs.pagerank import personalized_pagerank
from windlass.graphs.partition import detect_communities
from windlass.kernels.layout import advance, repel

MOST_NODES = 5_000
_MOST_EDGES = 8_000
_ROUNDS = 80
_BLOCK = 1_024


@dataclass(frozen=True)
class Picture:
    """What there is to draw.

    Attributes:
        nodes: int64 [k], numbers of the drawn nodes.
        x, y: float32 [k], between 0 and 1.
        group: int32 [k], 0 is the largest group.
        degree: float64 [k], weights around each node in the whole graph.
        edges: int32 [e, 2], places in `nodes`, the strongest for their ends.
        seeds: int64, places in `nodes` of the nodes it was drawn around.
        num_nodes, num_edges: Of the whole graph.
    """

    nodes: NDArray[np.int64]
    x: NDArray[np.float32]
    y: NDArray[np.float32]
    group: NDArray[np.int32]
    degree: NDArray[np.float64]
    edges: NDArray[np.int32]
    seeds: NDArray[np.int64]
    num_nodes: int
    num_edges: int


def draw(
    graph: Graph,
    seeds: Sequence[int] = (),
    *,
    most: int = MOST_NODES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Picture:
    """Choose what to draw of `graph` and where.

    Args:
        seeds: Draw the `most` nodes that matter to these; none: the whole graph, or its `most` nodes with the most
            weight around them.
        most: 1 to 5,000.
        progress: Gets the stages `groups` and `layout`.

    Raises:
        UsageError: An unknown node, or `most` is out of range.
        Cancelled: `progress` was cancelled.

    Example:
        >>> picture = draw(Graph.from_edges([0, 1, 2], [1, 2, 0]))
        >>> len(picture.nodes), picture.edges.tolist()
        (3, [[0, 1], [0, 2], [1, 2]])
    """
    if not 1 <= most <= MOST_NODES:
        raise UsageError(f"most is {most}, it must be 1 to {MOST_NODES}")
    progress = progress or Silent()
    nodes = _chosen(graph, seeds, most)
    part = _part(graph, nodes)
    group = detect_communities(part, seed=seed, progress=progress)
    x, y = _laid_out(part, group, seed, progress)
    places = np.searchsorted(nodes, np.unique(np.asarray(list(seeds), np.int64)))
    return Picture(
        nodes, x, y, group, graph.strengths[nodes], _lines(part), places, graph.num_nodes, graph.num_edges
    )  # fmt: skip


def _chosen(graph: Graph, seeds: Sequence[int], most: int) -> NDArray[np.int64]:
    if len(seeds):
        found = personalized_pagerank(graph, list(seeds), tol=1e-4, method="push", top=most)[0][0]
        if len(found) == most:
            found = found[: most - len(seeds)]
        return np.union1d(found, np.asarray(list(seeds), np.int64))
    if graph.num_nodes <= most:
        return np.arange(graph.num_nodes)
    return np.sort(np.lexsort((np.arange(graph.num_nodes), -graph.strengths))[:most])


def _part(graph: Graph, nodes: NDArray[np.int64]) -> Graph:
    """The edges among `nodes`, undirected and without loops, as nodes 0, 1, ..."""
    place = np.full(graph.num_nodes, -1, np.int64)
    place[nodes] = np.arange(len(nodes))
    sizes = np.diff(graph.indptr)[nodes]
    at = np.repeat(graph.indptr[nodes] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum())
    begin, end = np.repeat(np.arange(len(nodes)), sizes), place[graph.indices[at]]
    kept = end >= 0
    weights = None if graph.weights is None else graph.weights[at][kept]
    return Graph.from_edges(begin[kept], end[kept], weights, num_nodes=len(nodes))


def _laid_out(
    part: Graph, group: NDArray[np.int32], seed: int, progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Members around their groups, then every node where the forces on it take it."""
    n = part.num_nodes
    if not n:
        return np.empty(0, np.float32), np.empty(0, np.float32)
    progress.start("layout", _ROUNDS, "rounds")
    groups = int(group.max()) + 1
    sizes = np.bincount(group, minlength=groups).astype(np.float64)
    angle = 2 * np.pi * uniform(seed, "angle", size=n)
    radius = np.sqrt(uniform(seed, "radius", size=n))
    center_x, center_y = np.zeros(groups, np.float32), np.zeros(groups, np.float32)
    if 1 < groups < n:
        begin, end, weights = part.edges()
        between = Graph.from_edges(group[begin], group[end], weights, num_nodes=groups)
        turns = np.arange(groups) * math.pi * (3 - math.sqrt(5))
        reach = np.sqrt(np.cumsum(sizes) - sizes / 2)
        center_x, center_y = _settled(between, reach * np.cos(turns), reach * np.sin(turns), sizes, None)
    own = np.sqrt(sizes)[group] * (0.8 if groups < n else 1.5 * math.sqrt(n))
    around_x, around_y = own * radius * np.cos(angle), own * radius * np.sin(angle)
    x, y = _settled(part, center_x[group] + around_x, center_y[group] + around_y, np.ones(n), progress)
    progress.finish("layout")
    return _unit(x), _unit(y)


def _settled(
    part: Graph, x: NDArray[Any], y: NDArray[Any], mass: NDArray[np.float64], progress: Progress | None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where nodes come to rest, in a plane in which each takes one unit of area for its mass."""
    n, width = part.num_nodes, math.sqrt(mass.sum())
    x, y = x.astype(np.float32), y.astype(np.float32)
    force_x, force_y = np.empty(n, np.float32), np.empty(n, np.float32)
    # Charges are per unit of area and pulls fall with degree, so that hubs do not draw everything into one point.
    charge = np.sqrt(mass).astype(np.float32)
    strengths = np.maximum(part.strengths, 1e-9)
    rows = np.repeat(np.arange(n), np.diff(part.indptr))
    values = np.ones(part.num_arcs) if part.weights is None else part.weights
    pulls = (values / np.sqrt(strengths[rows] * strengths[part.indices])).astype(np.float32)
    blocks = [slice(first, first + _BLOCK) for first in range(0, n, _BLOCK)]

    def push_away(part: slice) -> None:
        repel(x, y, charge, x[part], y[part], charge[part], force_x[part], force_y[part])

    with ThreadPoolExecutor(usable_cores()) as pool:
        for turn in range(_ROUNDS):
            check_cancelled(progress or Silent())
            list(pool.map(push_away, blocks))
            most = 0.15 * width * (1 - turn / _ROUNDS) ** 2 + 0.01
            advance(part.indptr, part.indices, pulls, x, y, force_x, force_y, 1.5, 2.0, most)
            if progress is not None:
                progress.advance("layout")
    return x, y


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.full(len(values), 0.5, np.float32)
    scaled: NDArray[np.float32] = ((values - low) / (high - low)).astype(np.float32)
    return scaled


def _lines(part: Graph) -> NDArray[np.int32]:
    """The edges that mean most to their ends: by weight over the geometric mean of the ends' weights."""
    begin, end, weights = part.edges()
    pairs = np.stack([begin, end], axis=1).astype(np.int32)
    if len(pairs) <= _MOST_EDGES:
        return pairs
    values = np.ones(len(pairs)) if weights is None else weights
    strength = values / np.sqrt(part.strengths[begin] * part.strengths[end])
    return pairs[np.sort(np.lexsort((np.arange(len(pairs)), -strength))[:_MOST_EDGES])]
