"""Communities against exact Jaccard similarities and dense reference rankings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from windlass.core.errors import GraphFormatError, UsageError
from windlass.graphs.communities import CommunityIndex, _gap
from windlass.graphs.graph import Graph
from windlass.graphs.pagerank import personalized_pagerank
from windlass.kernels import minhash
from windlass.kernels.signature_matches import exact_jaccard


def followers(seed: int, groups: int = 6, accounts: int = 30, fans: int = 80, noise: int = 300) -> Graph:
    """Accounts 0..groups*accounts-1, each followed by fans of its group, and some by anyone."""
    random = np.random.default_rng(seed)
    total = groups * accounts
    sources, targets = [], []
    for group in range(groups):
        for account in range(accounts):
            chosen = random.choice(fans, 30, replace=False) + total + group * fans
            sources += chosen.tolist()
            targets += [group * accounts + account] * 30
    sources += random.integers(total, total + groups * fans, noise).tolist()
    targets += random.integers(0, total, noise).tolist()
    return Graph.from_edges(sources, targets, directed=True)


def jaccard(graph: Graph, a: int, b: int) -> float:
    one, two = (set(graph.transposed.neighbors(node).tolist()) for node in (a, b))
    return len(one & two) / len(one | two) if one | two else 0.0


def test_estimates_are_near_the_exact_similarities() -> None:
    graph = followers(0)
    index = CommunityIndex.build(graph, K=512)
    random = np.random.default_rng(0)
    pairs = random.integers(0, 180, (2000, 2))
    exact = np.array([jaccard(graph, a, b) for a, b in pairs])
    found = np.array([index.similarities(np.array([a]), np.array([b]))[0, 0] for a, b in pairs])
    error = np.sqrt(exact * (1 - exact) / 512)
    assert (np.abs(found - exact) <= 5 * error + 2e-3).all()
    assert abs((found - exact).mean()) < 0.004


def test_candidates_appear_as_often_as_the_curve_says() -> None:
    graph = followers(1)
    expected, seen = 0.0, 0
    for seed in range(12):
        index = CommunityIndex.build(graph, K=64, rows=3, seed=seed)
        assert index.parameters["bands"] == 21
        for node in (0, 40, 100):
            found = set(index._candidates(np.array([node]))[0].tolist())
            for other in range(180):
                if other != node:
                    expected += 1 - (1 - jaccard(graph, node, other) ** 3) ** 21
                    seen += other in found
    assert abs(seen - expected) <= 0.15 * expected


def test_parts_and_streams_give_the_same_index() -> None:
    graph = followers(2)
    whole = CommunityIndex.build(graph, K=64)
    begin, end, _ = graph.edges()
    order = np.random.default_rng(0).permutation(len(begin))
    for parts in (1, 2, 7):
        pieces = np.array_split(order, parts)
        streamed = CommunityIndex.from_arcs(((begin[p], end[p]) for p in pieces), graph.num_nodes, K=64)
        merged = CommunityIndex.merged(
            [CommunityIndex.from_arcs([(begin[p], end[p])], graph.num_nodes, K=64) for p in pieces]
        )
        grown = CommunityIndex.from_arcs([(begin[pieces[0]], end[pieces[0]])], graph.num_nodes, K=64)
        for piece in pieces[1:]:
            grown.add_arcs(begin[piece], end[piece])
        for other in (streamed, merged, grown):
            np.testing.assert_array_equal(other._table, whole._table)
            np.testing.assert_array_equal(other._degrees, whole._degrees)
        np.testing.assert_array_equal(streamed._nodes, whole._nodes)
    with pytest.raises(UsageError, match="cannot be merged"):
        CommunityIndex.merged([whole, CommunityIndex.build(graph, K=32)])


@pytest.mark.parametrize("method", ["pagerank", "average", "agglomerative"])
def test_planted_groups_are_found(method: Any) -> None:
    index = CommunityIndex.build(followers(3), K=256)
    for group in range(6):
        seeds = [group * 30 + at for at in (0, 7, 13)]
        found = index.query(seeds, 27, method=method)
        assert set(found.members.tolist()) == set(range(group * 30, group * 30 + 30)) - set(seeds)
        assert (np.diff(found.scores) <= 0).all() and found.similarity.shape == (27, 27)
        assert not found.exhausted and found.ignored == ()


def test_rankings_equal_the_dense_reference() -> None:
    graph = followers(4, noise=2500)
    index = CommunityIndex.build(graph, K=128, rows=1)
    seeds = np.array([3, 8])
    found = np.setdiff1d(index._candidates(seeds)[0], seeds)
    similar = index.similarities(np.arange(graph.num_nodes), np.arange(graph.num_nodes)).astype(float)
    average = similar[np.ix_(found, seeds)].mean(1)
    by_average = index.query([3, 8], 20, method="average")
    np.testing.assert_array_equal(by_average.members, found[np.lexsort((found, -average))[:20]])
    nodes = np.concatenate([seeds, found])
    matrix = similar[np.ix_(nodes, nodes)]
    matrix = matrix / matrix.sum(0)
    rank = np.ones(len(nodes)) / len(nodes)
    for _ in range(3):
        rank = 0.9 * matrix @ rank
        rank[:2] += (1 - rank.sum()) / 2
    by_rank = index.query([3, 8], 20, method="pagerank")
    np.testing.assert_allclose(by_rank.scores, np.sort(rank[2:])[::-1][:20], rtol=1e-6)
    members = [3, 8]
    for _ in range(10):
        rest = [node for node in found if node not in members]
        members.append(max(rest, key=lambda node: (similar[node, members].mean(), -node)))
    grown = index.query([3, 8], 10, method="agglomerative")
    assert grown.members.tolist() == [int(node) for node in members[2:]]


@pytest.mark.parametrize("side", ["in", "out", "both"])
def test_with_the_graph_similarities_are_exact(side: Any) -> None:
    graph = followers(9, noise=4000)
    index = CommunityIndex.build(graph, K=128, side=side, min_degree=1)
    around = {"in": graph.transposed, "out": graph}.get(side) or Graph.from_edges(
        *graph.edges()[:2], num_nodes=graph.num_nodes
    )
    seeds = [500, 501] if side == "out" else [3, 8]
    found = index.query(seeds, 15, graph=graph)
    rows = [set(around.neighbors(node).tolist()) for node in range(graph.num_nodes)]

    def mean(node: int) -> float:
        return float(np.mean([len(rows[node] & rows[seed]) / len(rows[node] | rows[seed]) for seed in seeds]))

    np.testing.assert_allclose(found.scores, [mean(node) for node in found.members.tolist()], atol=1e-6)
    if side == "in":
        best = sorted((node for node in range(180) if node not in seeds), key=lambda node: (-mean(node), node))[:15]
        assert len(set(best) & set(found.members.tolist())) >= 14
    with pytest.raises(UsageError, match="the graph has 3 nodes"):
        index.query(seeds, graph=Graph.from_edges([0, 1], [1, 2]))


def test_a_short_row_is_looked_up_in_a_long_one() -> None:
    rows = [range(0, 4000, 3), [3, 9, 10, 3999], [], range(4000)]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    indices = np.concatenate([np.array(row, np.int32) for row in rows])
    out = np.empty((4, 4), np.float32)
    exact_jaccard(indptr, indices, np.arange(4), np.arange(4), out)
    sets = [set(row) for row in rows]
    expected = [[len(a & b) / len(a | b) if a | b else 0 for b in sets] for a in sets]
    np.testing.assert_allclose(out, expected, rtol=1e-6)


def test_a_prior_brings_in_what_similarity_cannot_see() -> None:
    """A ring of friends: neighbours have no neighbour in common, and PageRank knows them all the same."""
    ring = np.arange(40)
    graph = Graph.from_edges(np.concatenate([ring, ring + 40]), np.concatenate([(ring + 1) % 40, (ring + 1) % 40 + 40]))
    index = CommunityIndex.build(graph, K=64, min_degree=1)
    near = personalized_pagerank(graph, 10, top=9)[0]
    fused = index.query([10], 6, prior=near)
    assert {9, 11} < set(fused.members.tolist()) < set(range(3, 18))
    alone = index.query([10], 6)
    assert not {9, 11} & set(alone.members.tolist()) and alone.exhausted


def test_bands_follow_the_data() -> None:
    random = np.random.default_rng(0)
    crowd = Graph.from_edges(random.integers(0, 40, 60_000), random.integers(40, 3040, 60_000), directed=True)
    sparse = Graph.from_edges(
        random.integers(0, 50_000, 20_000), random.integers(50_000, 52_000, 20_000), directed=True
    )
    crowded = CommunityIndex.build(crowd, K=128, max_candidates=500)
    assert crowded.parameters["rows"] > CommunityIndex.build(sparse, K=128, max_candidates=500).parameters["rows"]
    slots = crowded.parameters["bands"] * crowded.parameters["rows"]
    assert slots <= 128


def test_size_by_the_largest_drop() -> None:
    assert _gap(np.array([1, 0.9, 0.9, 0.8, 0.8, 0.8, 0.1, 0.1])) == 6
    assert _gap(np.array([1.0, 0.5])) == 2
    found = CommunityIndex.build(followers(5, noise=0), K=256).query([0, 1, 2], None, method="average")
    assert set(found.members.tolist()) == set(range(3, 30))


def test_seeds_that_cannot_be_used() -> None:
    graph = followers(6)
    index = CommunityIndex.build(graph)
    fan = graph.num_nodes - 1
    assert index.query([0, fan], 5).ignored == (fan,)
    for seeds, says in (([], "no seeds"), ([fan], "none of the seeds"), ([10**6], "no node"), ([True], "no node")):
        with pytest.raises(UsageError, match=says):
            index.query(seeds)
    with pytest.raises(UsageError, match="unknown method"):
        index.query([0], method="best")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="size is 0"):
        index.query([0], 0)
    assert index.query([0], 10_000).exhausted
    for wrong in ({"K": 0}, {"rows": 999}, {"side": "up"}, {"min_degree": 0}):
        with pytest.raises(UsageError):
            CommunityIndex.build(graph, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="arc 1 goes from 0 to 99"):
        CommunityIndex.from_arcs([([0, 0], [1, 99])], 5)


def test_a_bucket_of_everyone_is_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    from windlass.graphs import communities

    monkeypatch.setattr(communities, "_BUCKET_CAP", 50)
    hub = Graph.from_edges([0] * 900 + [1] * 900 + [2] * 900, [*range(3, 903)] * 3, directed=True)
    found = CommunityIndex.build(hub, K=16, rows=2).query([5], 10)
    assert found.capped > 0 and found.candidates < 500 and len(found.members) == 10


def test_saving_opening_and_explaining(tmp_path: Path) -> None:
    graph = followers(7)
    index = CommunityIndex.build(graph, K=128)
    index.save(tmp_path / "c")
    again = CommunityIndex.open(tmp_path / "c")
    np.testing.assert_array_equal(again.query([1, 2]).members, index.query([1, 2]).members)
    again.add_arcs([graph.num_nodes - 1], [0])
    (row,) = index.explain(3, [4], graph)
    assert row["similarity"] == pytest.approx(jaccard(graph, 3, 4), abs=5 * row["error"])
    assert row["shared_count"] >= len(row["shared"]) > 0
    file = next((tmp_path / "c").glob("table-*.bin"))
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(GraphFormatError):
        CommunityIndex.open(tmp_path / "c")


@pytest.mark.parametrize("n", [0, 4])
def test_graphs_without_arcs(n: int) -> None:
    index = CommunityIndex.build(Graph.from_edges([], [], num_nodes=n, directed=True))
    with pytest.raises(UsageError):
        index.query([0])


def test_signatures_are_minima_of_the_stated_hashes() -> None:
    graph = followers(8, groups=1, accounts=5, noise=0)
    index = CommunityIndex.build(graph, K=32, seed=9)
    factors, shifts = minhash.slot_constants(32, 9)
    from windlass.kernels.hashing import add_cells

    for account in range(5):
        members = graph.transposed.neighbors(account).astype(np.uint64)
        shingles = np.zeros(len(members), np.uint64)
        add_cells(members, np.uint64(9), shingles)
        values = (shingles >> np.uint64(32)).astype(np.uint32)
        expected = (factors[:, None] * values + shifts[:, None]).min(1)
        np.testing.assert_array_equal(index._table[account], expected)
