"""Groups over a whole graph and what is drawn of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import Cancelled, UsageError
from windlass.core.progress import Silent
from windlass.graphs.graph import Graph
from windlass.graphs.partition import detect_communities, modularity
from windlass.graphs.picture import draw


def rings(cliques: int, size: int) -> Graph:
    """Cliques joined to a ring by one edge each."""
    pairs = [
        (clique * size + a, clique * size + b)
        for clique in range(cliques)
        for a, b in itertools.combinations(range(size), 2)
    ]
    pairs += [(clique * size, ((clique + 1) % cliques) * size + 1) for clique in range(cliques)]
    return Graph.from_edges(*zip(*pairs, strict=True))


def dense_modularity(graph: Graph, labels: np.ndarray, resolution: float) -> float:
    """Newman's formula, pair by pair; a loop counts twice in its node's degree."""
    n = graph.num_nodes
    matrix = np.zeros((n, n))
    begin, end, weights = graph.edges()
    values = np.ones(len(begin)) if weights is None else weights
    for a, b, w in zip(begin, end, values, strict=True):
        matrix[a, b] += w
        matrix[b, a] += w
    degree, total = matrix.sum(1), matrix.sum()
    same = labels[:, None] == labels[None, :]
    return float(((matrix - resolution * np.outer(degree, degree) / total) * same).sum() / total)


@st.composite
def small_graphs(draw_from: st.DrawFn) -> Graph:
    n = draw_from(st.integers(2, 7))
    pairs = draw_from(st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), min_size=1, max_size=14))
    weights = draw_from(st.lists(st.floats(0.125, 4, width=16), min_size=len(pairs), max_size=len(pairs)))
    return Graph.from_edges(
        *zip(*pairs, strict=True), weights, num_nodes=n, directed=draw_from(st.booleans()), self_loops="keep"
    )


@settings(max_examples=60, deadline=None)
@given(small_graphs(), st.floats(0.5, 2))
def test_modularity_is_newmans_and_every_merge_gains(graph: Graph, resolution: float) -> None:
    labels = detect_communities(graph, resolution=resolution)
    got = modularity(graph, labels, resolution=resolution)
    assert got == pytest.approx(dense_modularity(graph, labels, resolution), abs=1e-6)
    singles = np.arange(graph.num_nodes)
    assert got >= dense_modularity(graph, singles, resolution) - 1e-9
    # No two groups gain by being joined: the last level ended because nothing did.
    for a, b in itertools.combinations(range(labels.max() + 1), 2):
        joined = np.where(labels == b, a, labels)
        assert dense_modularity(graph, joined, resolution) <= got + 1e-6


def test_cliques_are_found_and_named_by_size() -> None:
    labels = detect_communities(rings(12, 6))
    assert sorted(np.bincount(labels).tolist()) == [6] * 12
    assert all(len(set(labels[c * 6 : c * 6 + 6])) == 1 for c in range(12))
    assert labels[:6].tolist() == [0] * 6  # equal sizes: the group of the smallest node is the first
    assert (detect_communities(rings(12, 6)) == labels).all()
    assert modularity(rings(12, 6), labels) == pytest.approx(12 * (15 / 192 - (32 / 384) ** 2))


def test_graphs_of_nothing_have_groups_too() -> None:
    assert detect_communities(Graph.from_edges([], [])).tolist() == []
    assert detect_communities(Graph.from_edges([], [], num_nodes=3)).tolist() == [0, 1, 2]
    assert modularity(Graph.from_edges([], [], num_nodes=3), np.zeros(3, np.int32)) == 0
    picture = draw(Graph.from_edges([], []))
    assert len(picture.nodes) == 0 and picture.edges.shape == (0, 2)
    alone = draw(Graph.from_edges([], [], num_nodes=1))
    assert alone.x.tolist() == [0.5]
    with pytest.raises(UsageError, match="resolution is 0"):
        detect_communities(rings(3, 3), resolution=0)


def test_a_picture_stands_in_the_unit_square_and_keeps_groups_together() -> None:
    graph = rings(8, 12)
    picture = draw(graph)
    for place in (picture.x, picture.y):
        assert place.min() == 0 and place.max() == 1 and np.isfinite(place).all()
    again = draw(graph)
    assert (again.x == picture.x).all() and (again.y == picture.y).all()
    points = np.stack([picture.x, picture.y], 1)
    centers = np.stack([points[picture.group == g].mean(0) for g in range(8)])
    nearest = np.linalg.norm(points[:, None] - centers[None], axis=2).argmin(1)
    assert (nearest == picture.group).mean() > 0.9
    assert len(picture.edges) == graph.num_edges


def test_of_a_large_graph_the_most_connected_or_those_around_the_seeds_are_drawn() -> None:
    graph = rings(40, 6)
    assert len(draw(graph, most=50).nodes) == 50
    hub = Graph.from_edges([0] * 30 + list(range(31, 60)), list(range(1, 31)) + list(range(32, 61)))
    assert 0 in draw(hub, most=5).nodes
    around = draw(graph, [12, 13], most=20)
    assert 12 < len(around.nodes) <= 20 and around.nodes[around.seeds].tolist() == [12, 13]
    assert set(range(12, 18)) <= set(around.nodes.tolist())
    pairs = around.nodes[around.edges]
    real = set(zip(*(end.tolist() for end in graph.edges()[:2]), strict=True))
    assert all(tuple(sorted(pair)) in real for pair in pairs.tolist())
    with pytest.raises(UsageError, match="no node 999"):
        draw(graph, [999])
    with pytest.raises(UsageError, match="most is 0"):
        draw(graph, most=0)


class Heard(Silent):
    def __init__(self) -> None:
        super().__init__()
        self.stages: list[str] = []

    def start(self, stage: str, total: int | None, unit: str) -> None:
        self.stages.append(stage)


def test_drawing_tells_how_far_it_is_and_stops_when_told() -> None:
    heard = Heard()
    draw(rings(5, 5), progress=heard)
    assert heard.stages == ["groups", "layout"]
    heard.cancel()
    with pytest.raises(Cancelled):
        draw(rings(5, 5), progress=heard)
