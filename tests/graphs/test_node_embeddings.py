"""Node vectors against the dense formula, for every option, and the promises about changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.graphs import node_embeddings
from windlass.graphs.graph import Graph
from windlass.graphs.node_embeddings import FastRP, _gaussian, _sparse_rows


def random_graph(seed: int, n: int = 120, edges: int = 400, directed: bool = False, weighted: bool = False) -> Graph:
    random = np.random.default_rng(seed)
    weights = random.uniform(0.2, 3, edges) if weighted else None
    return Graph.from_edges(*random.integers(0, n, (2, edges)), weights, num_nodes=n + 2, directed=directed)


def dense(graph: Graph) -> np.ndarray:
    out = np.zeros((graph.num_nodes, graph.num_nodes))
    for node in range(graph.num_nodes):
        part = slice(graph.indptr[node], graph.indptr[node + 1])
        out[node, graph.indices[part]] = 1 if graph.weights is None else graph.weights[part]
    return out


def projection(n: int, dim: int, kind: str, seed: int) -> np.ndarray:
    if kind == "gaussian":
        return _gaussian(n, dim, seed).astype(np.float64)
    chance = 1 / np.sqrt(n)
    indptr, columns, signs = _sparse_rows(n, dim, chance, seed)
    out = np.zeros((n, dim))
    for row in range(n):
        part = slice(indptr[row], indptr[row + 1])
        out[row, columns[part]] = signs[part] * np.sqrt(1 / chance)
    return out


def formula(model: FastRP, graph: Graph) -> np.ndarray:
    adjacency = dense(graph)
    if graph.directed and model.direction != "out":
        both = adjacency + adjacency.T if graph.weights is not None else np.maximum(adjacency, adjacency.T)
        adjacency = adjacency.T if model.direction == "in" else both
    rows, columns = adjacency.sum(1), adjacency.sum(0)
    walk = adjacency / np.where(rows > 0, rows, 1)[:, None]
    loads = (np.where(columns > 0, columns, 1) / adjacency.sum()) ** model.beta
    level = loads[:, None] * projection(graph.num_nodes, model.dim, model.projection, model.seed)
    total = np.zeros_like(level)
    for weight in model.weights:
        level = walk @ level
        norms = np.linalg.norm(level, axis=1, keepdims=True)
        total += weight * (level / np.where(norms > 0, norms, 1) if model.normalize else level)
    if model.standardize:
        total -= total.mean(0)
        deviation = total.std(0)
        total = np.where(deviation > 1e-12, total / np.where(deviation > 1e-12, deviation, 1), 0)
    return total


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 999), dim=st.integers(1, 200), beta=st.sampled_from([-1.0, -0.6, 0.0, 0.5]),
    weights=st.lists(st.sampled_from([0.0, 1.0, -2.0, 6.0]), min_size=1, max_size=5).filter(any),
    directed=st.sampled_from(["no", "out", "in", "both"]), normalize=st.booleans(), standardize=st.booleans(),
    kind=st.sampled_from(["very_sparse", "gaussian"]), weighted=st.booleans(),
)  # fmt: skip
def test_vectors_equal_the_dense_formula(
    seed: int, dim: int, beta: float, weights: list[float], directed: str, normalize: bool, standardize: bool,
    kind: Any, weighted: bool,
) -> None:  # fmt: skip
    graph = random_graph(seed, directed=directed != "no", weighted=weighted)
    direction: Any = "out" if directed == "no" else directed
    model = FastRP(
        dim, weights, beta, normalize=normalize, standardize=standardize, projection=kind, direction=direction,
        seed=seed,
    )  # fmt: skip
    found, expected = model.fit_transform(graph), formula(model, graph)
    if standardize:  # a column that is constant but for rounding has no direction
        steady = np.asarray(model._raw, np.float64).std(0) < 1e-5 * (1 + np.abs(model._raw).max())
        found, expected = found[:, ~steady], expected[:, ~steady]
    assert np.abs(found - expected).max(initial=0) <= 2e-3 * (1 + np.abs(expected).max(initial=0))


def test_the_random_matrix_has_the_density_and_variance_it_should() -> None:
    n, dim = 4000, 64
    chance = 1 / np.sqrt(n)
    indptr, columns, signs = _sparse_rows(n, dim, chance, 5)
    expected = n * dim * chance
    assert abs(len(columns) - expected) <= 5 * np.sqrt(expected)
    assert abs(signs.sum()) <= 5 * np.sqrt(expected) and set(signs.tolist()) == {1.0, -1.0}
    counts = np.bincount(columns, minlength=dim)
    assert ((counts - expected / dim) ** 2 / (expected / dim)).sum() <= dim + 5 * np.sqrt(2 * dim)
    assert all((np.diff(columns[indptr[row] : indptr[row + 1]]) > 0).all() for row in range(n))
    fewer = _sparse_rows(10, dim, chance, 5)
    np.testing.assert_array_equal(fewer[1], columns[: indptr[10]])  # a row does not depend on how many there are


def test_inner_products_are_kept_in_the_mean() -> None:
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, 300))
    products = []
    for seed in range(300):
        matrix = projection(300, 16, "very_sparse", seed)
        products.append((x @ matrix) @ (y @ matrix) / 16)
    assert abs(np.mean(products) - x @ y) <= 5 * np.std(products) / np.sqrt(300)


def test_the_same_bytes_for_any_threads_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_graph(1, n=6000, edges=90_000)
    expected = FastRP(96, seed=3).fit_transform(graph)
    for threads, columns in ((1, 128), (3, 17)):
        monkeypatch.setattr(node_embeddings, "usable_cores", lambda threads=threads: threads)
        monkeypatch.setattr(node_embeddings, "_COLUMNS", columns)
        np.testing.assert_array_equal(FastRP(96, seed=3).fit_transform(graph), expected)


def test_a_node_given_by_its_neighbours_gets_its_own_vector() -> None:
    graph = random_graph(2)
    model = FastRP(40, (1, 2, 0, 3)).fit(graph)
    nodes = [3, 50, 120]
    made = model.transform_new([graph.neighbors(node).tolist() for node in nodes])
    np.testing.assert_allclose(made, model.embedding_[nodes], atol=1e-4)
    assert model.transform_new([[]]).shape == (1, 40)
    with pytest.raises(UsageError, match="neighbour is no node"):
        model.transform_new([[500]])


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("beta", [0.0, -0.6])
def test_an_update_is_a_new_fit(beta: float, incremental: bool) -> None:
    ring = np.arange(300)
    graph = Graph.from_edges(ring, (ring + 1) % 300)
    changed = Graph.from_edges([*ring, 5], [*((ring + 1) % 300), 9])
    model = FastRP(32, (0, 1, 2), beta, standardize=False, incremental=incremental).fit(graph)
    before = model.embedding_.copy()
    found = model.update(changed, [5, 9])
    expected = FastRP(32, (0, 1, 2), beta, standardize=False).fit_transform(changed)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    far = np.r_[20:290]
    np.testing.assert_array_equal(found[far], before[far])
    assert np.abs(found[4:11] - before[4:11]).max() > 1e-3
    with pytest.raises(UsageError, match="the fit had 300"):
        model.update(Graph.from_edges([0], [1]), [0])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.booleans(), st.booleans(), st.sampled_from([0.0, -0.6]))
def test_many_updates_stay_a_new_fit(seed: int, directed: bool, normalize: bool, beta: float) -> None:
    random = np.random.default_rng(seed)
    ends = random.integers(0, 90, (2, 150))
    weights = random.uniform(0.5, 2, 150)
    options: Any = {"standardize": False, "normalize": normalize, "seed": seed}
    model = FastRP(16, (1, 0, 2), beta, incremental=True, **options)
    model.fit(Graph.from_edges(*ends, weights, num_nodes=90, directed=directed))
    for _ in range(3):
        moved = random.choice(150, 2, replace=False)
        before = ends[:, moved].ravel()
        ends = ends.copy()
        ends[1, moved] = random.integers(0, 90, 2)
        graph = Graph.from_edges(*ends, weights, num_nodes=90, directed=directed)
        found = model.update(graph, np.union1d(before, ends[:, moved].ravel()).tolist())
        expected = FastRP(16, (1, 0, 2), beta, **options).fit_transform(graph)
        np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))


def test_an_update_computes_what_a_change_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = np.arange(3000)
    model = FastRP(8, (0, 1, 2), incremental=True).fit(Graph.from_edges(ring, (ring + 1) % 3000))
    sizes: list[int] = []
    spread = node_embeddings._spread

    def counted(rows: Graph, *rest: Any) -> Any:
        sizes.append(rows.num_nodes)
        return spread(rows, *rest)

    monkeypatch.setattr(node_embeddings, "_spread", counted)
    model.update(Graph.from_edges([*ring, 5], [*((ring + 1) % 3000), 900]), [5, 900])
    assert len(sizes) == 2 and max(sizes) < 30


def test_nodes_without_edges_are_zeros_and_nothing_is_nan() -> None:
    graph = Graph.from_edges([0, 1], [1, 2], num_nodes=6)
    raw = FastRP(16, standardize=False).fit_transform(graph)
    assert not raw[3:].any() and raw[:3].any()
    assert np.isfinite(FastRP(200).fit_transform(graph)).all()
    assert FastRP(8).fit_transform(Graph.from_edges([], [])).shape == (0, 8)
    assert not FastRP(8).fit_transform(Graph.from_edges([], [], num_nodes=3)).any()


def test_parts_that_do_not_touch_have_nothing_in_common() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 200, (2, 2000)), random.integers(200, 400, (2, 2000))
    graph = Graph.from_edges(*np.concatenate([a, b], axis=1))
    vectors = FastRP(512, (0, 1, 1), 0.0, standardize=False).fit_transform(graph)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert abs((unit[:200] @ unit[200:].T).mean()) < 0.15 < (unit[:200] @ unit[:200].T).mean()


def test_tuning_without_labels_is_no_worse_than_the_worst() -> None:
    random = np.random.default_rng(1)
    group = random.integers(0, 8, 4000)
    ends = group * 50 + random.integers(0, 50, (2, 4000))
    graph = Graph.from_edges(*ends, num_nodes=400)
    model = FastRP(32, seed=1).tune(graph, trials=4)
    assert model.score_ > 0.8 and -1 <= model.beta <= 0 and model.embedding_.shape == (400, 32)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dim": 0}, "dim is 0"),
        ({"weights": ()}, "at least one"),
        ({"weights": (0, 0)}, "all weights are zero"),
        ({"weights": (float("nan"),)}, "finite"),
        ({"beta": 2.0}, "beta is 2"),
        ({"projection": "dense"}, "unknown projection"),
        ({"direction": "up"}, "unknown direction"),
    ],
)
def test_impossible_parameters_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        FastRP(**arguments).fit(Graph.from_edges([0], [1]))


def test_what_is_no_graph_or_not_fitted_is_refused() -> None:
    with pytest.raises(UsageError, match="a list is no graph"):
        FastRP().fit([[0, 1]])
    with pytest.raises(UsageError, match="has not seen a graph"):
        FastRP().transform_new([[0]])


@pytest.mark.peers
def test_scipy_and_networkx_graphs_are_taken_as_they_are() -> None:
    networkx = pytest.importorskip("networkx")
    karate = networkx.karate_club_graph()
    expected = FastRP(16).fit_transform(Graph.from_networkx(karate))
    np.testing.assert_array_equal(FastRP(16).fit_transform(karate), expected)
    np.testing.assert_array_equal(FastRP(16).fit_transform(networkx.to_scipy_sparse_array(karate)), expected)
