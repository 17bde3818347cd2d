"""Every node's group, over a whole graph: Louvain's method (Blondel and others, 2008).

Nodes join the neighbouring group that raises modularity most, groups become nodes, and so on until nothing is gained.
The result is the same for the same graph and seed. Directed edges count as undirected ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.randomness import permutation
from windlass.graphs.graph import Graph
from windlass.kernels import csr
from windlass.kernels.modularity import move_nodes

_ROUNDS = 20


def detect_communities(
    graph: Graph, *, resolution: float = 1.0, seed: int = 0, progress: Progress | None = None
) -> NDArray[np.int32]:
    """The group of each node, int32 [n]: 0 is the largest; ties by the smallest member.

    Args:
        resolution: Above 1: more and smaller groups.
        progress: Gets the stage `groups`, counted in levels.

    Raises:
        UsageError: `resolution` is not above zero.
        Cancelled: `progress` was cancelled.

    Example:
        >>> two = Graph.from_edges([0, 1, 2, 3, 4, 5, 2], [1, 2, 0, 4, 5, 3, 3])
        >>> detect_communities(two).tolist()
        [0, 0, 0, 1, 1, 1]
    """
    if not 0 < resolution < float("inf"):
        raise UsageError(f"resolution is {resolution}, it must be above zero")
    progress = progress or Silent()
    progress.start("groups", None, "levels")
    level = _level(graph)
    labels = np.arange(graph.num_nodes, dtype=np.int32)
    depth = 0
    while len(level.volumes):
        check_cancelled(progress)
        group = _moved(level, resolution, seed, depth)
        names, compact = np.unique(group, return_inverse=True)
        labels = compact.astype(np.int32)[labels]
        progress.advance("groups")
        if len(names) == len(level.volumes):
            break
        level = _merged(level, compact, len(names))
        depth += 1
    progress.finish("groups")
    return _by_size(labels)


def modularity(graph: Graph, labels: NDArray[Any], *, resolution: float = 1.0) -> float:
    """How much more weight lies inside the groups than if the same degrees were joined at random; at most 1."""
    level = _level(graph)
    total = level.volumes.sum()
    if not total:
        return 0.0
    rows = np.repeat(np.arange(graph.num_nodes), np.diff(level.indptr))
    within = level.weights[labels[rows] == labels[level.indices]].sum() / total
    shares = np.bincount(labels, weights=level.volumes) / total
    return float(within - resolution * (shares**2).sum())


@dataclass(frozen=True)
class _Level:
    """A symmetric matrix; a self loop stands once with twice its weight."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    weights: NDArray[np.float64]

    @cached_property
    def volumes(self) -> NDArray[np.float64]:
        out = np.empty(len(self.indptr) - 1)
        csr.row_sums(self.indptr, self.weights, out)
        return out


def _level(graph: Graph) -> _Level:
    if graph.directed:
        begin, end, weights = graph.edges()
        graph = Graph.from_edges(begin, end, weights, num_nodes=graph.num_nodes, self_loops="keep")
    rows = np.empty(graph.num_arcs, np.int32)
    csr.expand(graph.indptr, rows)
    values = np.ones(graph.num_arcs) if graph.weights is None else graph.weights.astype(np.float64)
    values[rows == graph.indices] *= 2
    return _Level(graph.indptr, graph.indices, values)


def _moved(level: _Level, resolution: float, seed: int, depth: int) -> NDArray[np.int32]:
    n = len(level.volumes)
    group = np.arange(n, dtype=np.int32)
    order = permutation(seed, "louvain", depth, size=n).astype(np.int32)
    move_nodes(
        level.indptr, level.indices, level.weights, level.volumes, resolution, order, group, level.volumes.copy(),
        np.zeros(n), np.empty(n, np.int32), _ROUNDS,
    )  # fmt: skip
    return group


def _merged(level: _Level, compact: NDArray[Any], groups: int) -> _Level:
    rows = np.repeat(compact, np.diff(level.indptr))
    keys, places = np.unique(rows * np.int64(groups) + compact[level.indices], return_inverse=True)
    indptr = np.searchsorted(keys, np.arange(groups + 1) * np.int64(groups)).astype(np.int64)
    weights = np.bincount(places, level.weights, len(keys)).astype(np.float64)
    return _Level(indptr, (keys % groups).astype(np.int32), weights)


def _by_size(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    if not len(labels):
        return labels
    sizes = np.bincount(labels)
    first = np.full(len(sizes), len(labels))
    np.minimum.at(first, labels, np.arange(len(labels)))
    rank = np.empty(len(sizes), np.int32)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes), dtype=np.int32)
    return rank[labels]
