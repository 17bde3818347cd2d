"""Personalised PageRank against a dense linear solve, and the index against what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import Cancelled, GraphFormatError, IndexMismatchError, UsageError
from windlass.core.progress import Silent
from windlass.core.tasks import TaskPool
from windlass.graphs.graph import Graph
from windlass.graphs.pagerank import Workplace, checked_seeds, personalized_pagerank, reaches
from windlass.graphs.pagerank_index import PPRIndex


def random_graph(seed: int, n: int = 60, edges: int = 150, directed: bool = True, weighted: bool = True) -> Graph:
    random = np.random.default_rng(seed)
    ends = random.integers(0, n, (2, edges))
    weights = random.uniform(0.2, 3, edges) if weighted else None
    return Graph.from_edges(*ends, weights, num_nodes=n, directed=directed, self_loops="keep")


def solved(graph: Graph, start: int, restart: float = 0.15) -> np.ndarray:
    """p = c e + (1 - c) P' p with a dead end's row leading back to the start."""
    n = graph.num_nodes
    dense = np.zeros((n, n))
    for node in range(n):
        part = slice(graph.indptr[node], graph.indptr[node + 1])
        dense[node, graph.indices[part]] = 1 if graph.weights is None else graph.weights[part]
    sums = dense.sum(1)
    dense[sums == 0, start] = 1
    dense /= dense.sum(1, keepdims=True)
    one = np.zeros(n)
    one[start] = restart
    result: np.ndarray = np.linalg.solve(np.eye(n) - (1 - restart) * dense.T, one)
    return result


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 999), st.booleans(), st.booleans(), st.sampled_from([0.15, 0.4]))
def test_every_method_equals_the_linear_solve(seed: int, directed: bool, weighted: bool, restart: float) -> None:
    graph = random_graph(seed, directed=directed, weighted=weighted)
    start = seed % graph.num_nodes
    expected = solved(graph, start, restart)
    for method, tol, error in (("exact", 1e-12, 1e-11), ("push", 1e-9, 1e-8), ("walks", 0.01, 0.06)):
        found = personalized_pagerank(graph, start, restart=restart, tol=tol, method=method)  # type: ignore[arg-type]
        dense = found.dense(graph.num_nodes)[0]
        assert np.abs(dense - expected).sum() <= error, method
        assert (found.scores > 0).all() and (np.diff(found[0][1]) <= 0).all()
    index = PPRIndex.build(graph, R=30, restart=restart)
    found = index.query(start, threshold=1e-6, top=None)
    assert np.abs(found.dense(graph.num_nodes)[0] - expected).sum() <= 2e-3
    assert found.scores.sum() == pytest.approx(1, abs=1e-5)
    rough = index.query(start, threshold=0.1, top=None)
    assert rough.scores.sum() == pytest.approx(1, abs=1e-5) and (rough.scores > 0).all()


def test_several_starts_are_the_weighted_mean() -> None:
    graph = random_graph(4)
    expected = 0.25 * solved(graph, 3) + 0.75 * solved(graph, 50)
    for found in (
        personalized_pagerank(graph, {3: 1.0, 50: 3.0}, tol=1e-12),
        personalized_pagerank(graph, {3: 1.0, 50: 3.0}, tol=1e-12, method="push"),
        PPRIndex.build(graph, R=5).query({3: 1.0, 50: 3.0}, threshold=1e-9, top=None),
    ):
        np.testing.assert_allclose(found.dense(60)[0], expected, atol=1e-7)


def test_new_numbers_for_nodes_permute_the_scores() -> None:
    graph = random_graph(5, directed=False)
    order = np.random.default_rng(0).permutation(60)
    begin, end, weights = graph.edges()
    other = Graph.from_edges(order[begin], order[end], weights, num_nodes=60, self_loops="keep")
    a = personalized_pagerank(graph, 7, tol=1e-12).dense(60)[0]
    b = personalized_pagerank(other, int(order[7]), tol=1e-12).dense(60)[0]
    np.testing.assert_allclose(a, b[order], atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.floats(1e-4, 0.5))
def test_what_waits_completes_what_is_settled(seed: int, threshold: float) -> None:
    """exact(s) = result + sum of residue(v) exact(v), wherever pushing stops (both sides by the linear solve)."""
    graph = random_graph(seed)
    reach = reaches(graph, 0.15)
    nodes, values = checked_seeds(graph, seed % 60)
    work = Workplace(graph)
    ids, scores, _, left = work.run(nodes, values / reach[nodes], 0.15, threshold, None)
    settled = np.zeros(60)
    settled[ids] = scores
    exact = solved(graph, seed % 60)
    assert (settled <= exact + 1e-12).all()
    # A fingerprint that is exact closes it exactly: walks from v leave reach(v) * solve(v) behind.
    whole = np.stack([solved(graph, node) for node in range(60)])
    offsets = np.arange(0, 3600 + 1, 60)
    ids_all = np.tile(np.arange(60, dtype=np.int32), 60)
    visits = np.round(whole * 2**16).clip(0, 65535).astype(np.uint16)
    scales = (reach / np.maximum(visits.sum(1), 1)).astype(np.float32)
    ids, scores, _, _ = work.run(
        nodes, values / reach[nodes], 0.15, threshold, (offsets, ids_all, visits.ravel(), scales)
    )
    closed = np.zeros(60)
    closed[ids] = scores
    np.testing.assert_allclose(closed, exact, atol=2e-3 * left + 1e-9)


def test_fingerprints_are_unbiased() -> None:
    graph = random_graph(8, n=20, edges=60)
    exact = np.stack([solved(graph, node) for node in range(20)])
    reach = reaches(graph, 0.15)
    means, squares, times = np.zeros((20, 20)), np.zeros((20, 20)), 60
    for seed in range(times):
        index = PPRIndex.build(graph, R=10, max_steps=200, seed=seed)
        for node in range(20):
            part = slice(index._arrays["offsets"][node], index._arrays["offsets"][node + 1])
            share = np.zeros(20)
            share[index._arrays["ids"][part]] = index._arrays["visits"][part] * 0.15 / 10
            means[node] += share
            squares[node] += share**2
    means /= times
    deviation = np.sqrt(np.maximum(squares / times - means**2, 1e-12) / times)
    expected = exact * reach[:, None]
    assert (np.abs(means - expected) <= 5 * deviation + 1e-3).all()


def test_more_walks_are_nearer() -> None:
    graph = random_graph(9, n=200, edges=900, directed=False)
    exact = solved(graph, 3)
    errors = []
    for walks in (8, 32, 128):
        index = PPRIndex.build(graph, R=walks, seed=1)
        rows = [index.query(node, threshold=10.0, top=None).dense(200)[0] for node in range(0, 30)]
        truth = [solved(graph, node) for node in range(0, 30)]
        errors.append(np.mean([np.abs(a - b).sum() for a, b in zip(rows, truth, strict=True)]))
    slope = np.polyfit(np.log([8, 32, 128]), np.log(errors), 1)[0]
    assert -0.62 < slope < -0.38
    assert np.abs(index.query(3, threshold=1e-9, top=None).dense(200)[0] - exact).sum() < 1e-6


@pytest.mark.parametrize("weighted", [False, True])
def test_the_same_bytes_whoever_walks(tmp_path: Path, weighted: bool) -> None:
    graph = random_graph(10, n=5000, edges=12000, weighted=weighted)
    graph.save(tmp_path / "g")
    kept = Graph.open(tmp_path / "g")
    indexes = [
        PPRIndex.build(kept, R=8, seed=3, task_pool=pool)
        for pool in (TaskPool("serial"), TaskPool("threads", 3), TaskPool("processes", 2))
    ]
    for other in indexes[1:]:
        assert other.parameters == indexes[0].parameters
        for name, array in indexes[0]._arrays.items():
            np.testing.assert_array_equal(array, other._arrays[name])
    assert not np.array_equal(PPRIndex.build(kept, R=8, seed=4)._arrays["visits"], indexes[0]._arrays["visits"])
    singles = [indexes[0].query(node, top=20) for node in range(40)]
    together = indexes[0].query_batch(list(range(40)), top=20)
    for number, single in enumerate(singles):
        np.testing.assert_allclose(together[number][1], single[0][1], rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("directed", [False, True])
def test_a_batch_is_its_queries(monkeypatch: pytest.MonkeyPatch, shared: bool, directed: bool) -> None:
    from windlass.graphs import pagerank_index

    monkeypatch.setattr(pagerank_index, "_WORTH_SHARING", 0 if shared else 1e9)
    graph = random_graph(11, n=400, edges=1600, directed=directed)
    index = PPRIndex.build(graph, R=20)
    queries: list[Any] = [*range(50), [3, 4], {7: 1.0, 9: 2.0}, *[5] * 9]
    for threshold in (0.03, 1e-4):
        together = index.query_batch(queries, threshold=threshold, top=30)
        assert len(together) == len(queries)
        for number, query in enumerate(queries):
            single = index.query(query, threshold=threshold, top=30)[0]
            ids, scores = together[number]
            np.testing.assert_allclose(scores, single[1], rtol=2e-4, atol=1e-7)
            full = index.query(query, threshold=threshold, top=None).dense(400)[0]
            np.testing.assert_allclose(full[ids], scores, rtol=2e-4, atol=1e-7)
            assert (np.diff(scores) <= 0).all() and len(set(ids.tolist())) == len(ids)
    again = index.query_batch(queries, threshold=1e-4, top=30)
    np.testing.assert_array_equal(again.ids, together.ids)  # nothing is left behind in the arrays


def test_fingerprints_are_sorted_and_hold_every_visit() -> None:
    graph = Graph.from_edges(np.zeros(300, int), np.arange(1, 301))  # the hub is visited past the counting sort's range
    index = PPRIndex.build(graph, R=200, seed=2)
    offsets, visits = index._arrays["offsets"], index._arrays["visits"].astype(int)
    for node in range(301):
        part = visits[offsets[node] : offsets[node + 1]]
        assert (np.diff(part) <= 0).all() and part.sum() == index._arrays["totals"][node]
        assert len(set(index._arrays["ids"][offsets[node] : offsets[node + 1]].tolist())) == len(part)


class Stopping(Silent):
    """Is cancelled after so many nodes."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.left, self.resumed = nodes, 0

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        self.left -= done
        self.resumed += done > 2048
        if self.left <= 0:
            self.cancel()


def test_a_build_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from windlass.graphs import pagerank_index

    monkeypatch.setattr(pagerank_index, "_BLOCK", 100)
    monkeypatch.setattr(pagerank_index, "_BLOCKS_KEPT", 4)
    graph = random_graph(12, n=2000, edges=6000)
    whole = PPRIndex.build(graph, R=6)
    with pytest.raises(Cancelled):
        PPRIndex.build(graph, R=6, keep=tmp_path / "k", progress=Stopping(1100))
    finished = sorted(path.name for path in (tmp_path / "k").iterdir())
    assert len(finished) == 2
    (tmp_path / "k" / finished[0] / "manifest.json").write_text("{")  # cut off while it was written
    walked = []
    walk = pagerank_index._walk
    monkeypatch.setattr(pagerank_index, "_walk", lambda part: walked.append(part.nodes[0]) or walk(part))
    again = PPRIndex.build(graph, R=6, keep=tmp_path / "k")
    assert sorted(walked) == [at for at in range(0, 2000, 100) if not 400 <= at < 800]
    assert not (tmp_path / "k").exists()
    assert again.parameters == whole.parameters
    for name, array in whole._arrays.items():
        np.testing.assert_array_equal(array, again._arrays[name])
    with pytest.raises(Cancelled):
        PPRIndex.build(graph, R=6, keep=tmp_path / "k", progress=Stopping(1100))
    other = PPRIndex.build(graph, R=7, keep=tmp_path / "k")  # what was kept had other parameters
    np.testing.assert_array_equal(other._arrays["ids"], PPRIndex.build(graph, R=7)._arrays["ids"])


@pytest.mark.peers
def test_ray_walks_the_same(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    graph = random_graph(10, n=5000, edges=12000)
    graph.save(tmp_path / "g")
    kept = Graph.open(tmp_path / "g")
    here = PPRIndex.build(kept, R=8)
    there = PPRIndex.build(kept, R=8, task_pool=TaskPool("ray", 2))
    for name, array in here._arrays.items():
        np.testing.assert_array_equal(array, there._arrays[name])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.booleans())
def test_an_update_is_the_index_built_anew(seed: int, directed: bool) -> None:
    graph = random_graph(seed, n=80, edges=160, directed=directed, weighted=False)
    random = np.random.default_rng(seed)
    begin, end, _ = graph.edges()
    gone = random.choice(len(begin), 3, replace=False)
    have = set(zip(begin.tolist(), end.tolist(), strict=True))
    fresh: list[tuple[int, int]] = []
    while len(fresh) < 3:
        a, b = sorted(random.integers(0, 80, 2).tolist())
        if (a, b) not in have and a != b:
            have.add((a, b))
            fresh.append((a, b))
    index = PPRIndex.build(graph, R=6, seed=seed)
    added = ([a for a, _ in fresh], [b for _, b in fresh])
    updated, report = index.update(added, (begin[gone], end[gone]))
    rebuilt = PPRIndex.build(updated.graph, R=6, seed=seed)
    for name, array in rebuilt._arrays.items():
        np.testing.assert_array_equal(array, updated._arrays[name])
    assert 6 <= report.walked <= report.nodes == 80
    with pytest.raises(UsageError, match="in the graph already"):
        updated.update(added)
    with pytest.raises(UsageError, match="not in the graph"):
        updated.update(((), ()), (begin[gone], end[gone]))


def test_accuracy_is_kept_on_other_nodes() -> None:
    random = np.random.default_rng(3)
    hubs = (random.pareto(1.2, 6000) * 30).astype(int) % 2000
    graph = Graph.from_edges(hubs, random.integers(0, 2000, 6000), num_nodes=2000)
    index = PPRIndex.build(graph, R=50)
    for accuracy in (0.9, 0.99):
        shares = []
        for node in random.integers(0, 2000, 40).tolist():
            exact = personalized_pagerank(graph, node, tol=1e-10).dense(2000)[0]
            found = index.query(node, accuracy=accuracy)
            ids = found[0][0]
            shares.append(exact[ids].sum() / np.sort(exact)[::-1][:100].sum())
        assert np.mean(shares) >= accuracy - 0.01
        assert found.accuracy is not None and found.accuracy >= accuracy


def test_a_star_keeps_its_memory() -> None:
    graph = Graph.from_edges(np.zeros(5000, int), np.arange(1, 5001))
    index = PPRIndex.build(graph, R=100, max_entries=16)
    assert np.diff(index._arrays["offsets"]).max() <= 16
    assert 0 < index.parameters["cut"] < 1
    assert index.query(5, top=None).scores.sum() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_graphs_without_edges(n: int, tmp_path: Path) -> None:
    graph = Graph.from_edges([], [], num_nodes=n)
    index = PPRIndex.build(graph)
    index.save(tmp_path / "i")
    assert len(PPRIndex.open(tmp_path / "i", graph).query_batch([])) == 0
    if n:
        for found in (index.query(n - 1), personalized_pagerank(graph, n - 1)):
            assert found.ids.tolist() == [n - 1] and found.scores.tolist() == pytest.approx([1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"seeds": 60}, "no node 60"),
        ({"seeds": -1}, "no node -1"),
        ({"seeds": "a"}, "no node 'a'"),
        ({"seeds": []}, "no seeds"),
        ({"seeds": {1: -1.0}}, "weight of seed 1 is -1"),
        ({"seeds": {1: float("nan")}}, "weight of seed 1 is nan"),
        ({"seeds": {1: 0.0}}, "sum to zero"),
        ({"seeds": 1, "restart": 0.0}, "restart is 0"),
        ({"seeds": 1, "restart": 1.0}, "restart is 1"),
        ({"seeds": 1, "tol": 0.0}, "tol is 0"),
        ({"seeds": 1, "method": "magic"}, "unknown method"),
        ({"seeds": 1, "top": 0}, "top is 0"),
    ],
)
def test_questions_that_make_no_sense(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        personalized_pagerank(random_graph(1), **arguments)


def test_an_index_of_another_graph_or_damaged_is_refused(tmp_path: Path) -> None:
    graph = random_graph(1)
    index = PPRIndex.build(graph, R=4)
    index.save(tmp_path / "i")
    again = PPRIndex.open(tmp_path / "i", graph)
    np.testing.assert_array_equal(again.query(3)[0][0], index.query(3)[0][0])
    with pytest.raises(IndexMismatchError, match="another graph"):
        PPRIndex.open(tmp_path / "i", random_graph(2))
    with pytest.raises(GraphFormatError, match="format 2"):
        Graph.open(tmp_path / "i")
    file = next((tmp_path / "i").glob("ids-*.bin"))
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(GraphFormatError, match="bytes"):
        PPRIndex.open(tmp_path / "i", graph)
    for wrong in ({"R": 0}, {"R": 2000}, {"max_steps": 0}, {"max_entries": 0}, {"restart": 2.0}):
        with pytest.raises(UsageError):
            PPRIndex.build(graph, **wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="accuracy"):
        index.query(1, accuracy=1.5)
    with pytest.raises(UsageError, match="threshold"):
        index.query(1, threshold=0.0)
