"""The folder as a graph of passages: who is joined to whom, and what groups are about."""

from __future__ import annotations

import numpy as np

from windlass.retrieval.passage_map import group_words, nearest_graph


def test_each_is_joined_to_its_nearest() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(700, 12)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    graph = nearest_graph(vectors, 4)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    best = np.argsort(-cosines, axis=1)[:, :4]
    wanted = {(min(a, b), max(a, b)) for a in range(700) for b in best[a].tolist() if cosines[a, b] >= 0.3}
    begin, end, weights = graph.edges()
    assert set(zip(begin.tolist(), end.tolist(), strict=True)) == wanted
    assert weights is not None
    np.testing.assert_allclose(weights, cosines[begin, end], atol=1e-6)


def test_few_or_unlike_passages_have_no_edges() -> None:
    for vectors in (np.zeros((0, 3)), np.ones((1, 3)), np.eye(4)):
        graph = nearest_graph(vectors.astype(np.float32))
        assert graph.num_nodes == len(vectors) and graph.num_edges == 0


def test_groups_are_named_by_what_sets_them_apart() -> None:
    texts = ["the pilot boards a ship"] * 4 + ["the crane lifts a ship"] * 4 + ["a ship"]
    titles = group_words(texts, np.array([0] * 4 + [1] * 4 + [2], np.int32), most=2, words=2)
    assert [set(title.split(", ")) for title in titles] == [{"pilot", "boards"}, {"crane", "lifts"}]
    assert group_words([], np.empty(0, np.int32)) == []
