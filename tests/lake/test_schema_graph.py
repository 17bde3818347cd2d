"""The forest against enumeration, against networkx and an integer program where they are installed."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import ModelError
from windlass.core.randomness import integers, uniform
from windlass.kernels.arborescence import cheapest_tree
from windlass.lake.schema_graph import EdgeList, Forest, Join, build_schema, k_mca, k_mca_cc

TREE = -math.log(0.5)


@st.composite
def graphs(draw: st.DrawFn, most: int = 5) -> tuple[int, EdgeList]:
    vertices = draw(st.integers(1, most))
    count = draw(st.integers(0, 9))
    ends = st.integers(0, vertices - 1)
    tails, heads = (draw(st.lists(ends, min_size=count, max_size=count)) for _ in range(2))
    # Few different costs, so that ties are common.
    costs = draw(st.lists(st.sampled_from([0.05, 0.2, 0.3, 0.5, 0.7, 1.2]), min_size=count, max_size=count))
    groups = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    return vertices, EdgeList(
        np.array(tails, np.int64), np.array(heads, np.int64), np.array(costs), np.array(groups, np.int64)
    )


def enumerated(vertices: int, edges: EdgeList, *, once: bool) -> float:
    """The least cost over all ways to give each vertex one edge that enters it, or none."""
    entering: list[list[int]] = [[-1] for _ in range(vertices)]
    for edge, (tail, head) in enumerate(zip(edges.tails, edges.heads, strict=True)):
        if tail != head:
            entering[head].append(edge)
    best = math.inf
    for choice in product(*entering):
        used = [edge for edge in choice if edge >= 0]
        if once and len({int(edges.groups[edge]) for edge in used}) < len(used):
            continue
        if has_cycle(choice, edges):
            continue
        best = min(best, sum(edges.costs[edge] for edge in used) + (vertices - len(used) - 1) * TREE)
    return best


def has_cycle(choice: tuple[int, ...], edges: EdgeList) -> bool:
    for start in range(len(choice)):
        vertex, steps = start, 0
        while choice[vertex] >= 0:
            vertex, steps = int(edges.tails[choice[vertex]]), steps + 1
            if steps > len(choice):
                return True
    return False


def check_forest(vertices: int, edges: EdgeList, forest: Forest) -> None:
    heads = [int(edges.heads[edge]) for edge in forest.edges]
    assert len(set(heads)) == len(heads)
    choice = [-1] * vertices
    for edge in forest.edges:
        choice[int(edges.heads[edge])] = edge
    assert not has_cycle(tuple(choice), edges)
    cost = sum(edges.costs[edge] for edge in forest.edges) + (vertices - len(forest.edges) - 1) * TREE
    assert forest.cost == pytest.approx(cost)


@settings(deadline=None, max_examples=300)
@given(graphs())
def test_no_forest_is_cheaper(graph: tuple[int, EdgeList]) -> None:
    vertices, edges = graph
    forest = k_mca(vertices, edges)
    check_forest(vertices, edges, forest)
    assert forest.cost == pytest.approx(enumerated(vertices, edges, once=False))


@settings(deadline=None, max_examples=300)
@given(graphs())
def test_no_forest_that_refers_once_is_cheaper(graph: tuple[int, EdgeList]) -> None:
    vertices, edges = graph
    forest = k_mca_cc(vertices, edges)
    check_forest(vertices, edges, forest)
    groups = [int(edges.groups[edge]) for edge in forest.edges]
    assert len(set(groups)) == len(groups) and forest.gap == 0
    assert forest.cost == pytest.approx(enumerated(vertices, edges, once=True))


@settings(deadline=None)
@given(graphs(), st.floats(0.01, 2), st.floats(0.01, 2))
def test_dearer_trees_are_never_more(graph: tuple[int, EdgeList], one: float, other: float) -> None:
    vertices, edges = graph
    cheap, dear = sorted((one, other))
    assert len(k_mca(vertices, edges, cheap).edges) <= len(k_mca(vertices, edges, dear).edges)


@settings(deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_the_order_of_tables_does_not_matter(graph: tuple[int, EdgeList], random: Any) -> None:
    vertices, edges = graph
    order = list(range(vertices))
    random.shuffle(order)
    renamed = np.array(order, np.int64)
    moved = EdgeList(renamed[edges.tails], renamed[edges.heads], edges.costs, edges.groups)
    assert k_mca_cc(vertices, moved).cost == pytest.approx(k_mca_cc(vertices, edges).cost)


def random_graph(vertices: int, count: int, seed: int) -> EdgeList:
    draws = integers(seed, size=3 * count, high=1 << 30).reshape(3, count)
    costs = -np.log(uniform(seed, "p", size=count) * 0.98 + 0.01)
    tails = draws[0] % vertices
    # A table has a handful of columns that may refer to something.
    return EdgeList(tails, draws[1] % vertices, costs, tails * 6 + draws[2] % 6)


def test_an_unreachable_vertex_gives_no_tree() -> None:
    one = np.array([0], np.int64)
    assert cheapest_tree(3, 0, one, np.array([1]), np.array([1.0]), np.array([True])).tolist() == [-1, -1, -1]


@pytest.mark.peers
def test_trees_cost_what_networkx_says() -> None:
    networkx: Any = pytest.importorskip("networkx")
    for seed in range(300):
        vertices, count = 2 + seed % 9, 4 + seed % 30
        edges = random_graph(vertices, count, seed)
        costs = np.round(edges.costs * 4) / 4 - 0.5 * (seed % 3)
        graph = networkx.DiGraph()
        for tail, head, cost in zip(edges.tails, edges.heads, costs, strict=True):
            if tail != head and (not graph.has_edge(tail, head) or graph[tail][head]["weight"] > cost):
                graph.add_edge(int(tail), int(head), weight=float(cost))
        for vertex in range(vertices):
            graph.add_edge(vertices, vertex, weight=2.0)
        tails = np.concatenate([edges.tails, np.full(vertices, vertices)])
        heads = np.concatenate([edges.heads, np.arange(vertices)])
        every = np.concatenate([costs, np.full(vertices, 2.0)])
        found = cheapest_tree(vertices + 1, vertices, tails, heads, every, np.ones(len(tails), np.bool_))
        tree = networkx.minimum_spanning_arborescence(graph)
        assert every[found[:vertices]].sum() == pytest.approx(tree.size(weight="weight"))


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(12))
def test_the_integer_program_finds_nothing_cheaper(seed: int) -> None:
    pytest.importorskip("scipy.optimize")
    from windlass.bench.lake.auto_bi import forest_by_milp

    vertices = 6 + 2 * seed
    edges = random_graph(vertices, 6 * vertices, seed)
    forest = k_mca_cc(vertices, edges)
    assert forest.gap == 0
    assert forest.cost == pytest.approx(forest_by_milp(vertices, edges, TREE), abs=1e-7)


def test_a_hundred_tables_keep_to_the_time_limit() -> None:
    edges = random_graph(100, 2_000, 3)
    forest = k_mca_cc(100, edges, time_limit_s=20)
    check_forest(100, edges, forest)
    assert forest.gap <= 0.5


ORDERS = [
    Join("orders", ("customer_id",), "customers", ("id",), 0.97),
    Join("orders", ("ship_date",), "dates", ("day",), 0.8),
    Join("orders", ("order_date",), "dates", ("day",), 0.9),
    Join("invoices", ("day",), "dates", ("day",), 0.85),
    Join("orders", ("customer_id",), "products", ("id",), 0.6),
    Join("customers", ("id",), "products", ("id",), 0.3),
]


def test_shared_and_twice_used_dimensions_come_back() -> None:
    graph = build_schema(["orders", "customers", "dates", "invoices", "products"], ORDERS)
    assert {(join.child, join.columns[0], join.parent) for join in graph.joins} == {
        ("orders", "customer_id", "customers"),
        ("orders", "ship_date", "dates"),
        ("orders", "order_date", "dates"),
        ("invoices", "day", "dates"),
    }
    assert graph.facts == ("invoices", "orders") and graph.dimensions == ("customers", "dates")
    assert [join.probability for join in graph.rejected] == [0.6, 0.3]
    assert len(graph.backbone) == 2 and graph.gap == 0


def test_a_reference_goes_to_the_table_that_owns_the_key() -> None:
    joins = [
        Join("orders", ("customer_id",), "details", ("id",), 0.98),
        Join("orders", ("customer_id",), "customers", ("id",), 0.97),
        Join("details", ("id",), "customers", ("id",), 0.99, True),
        Join("customers", ("id",), "details", ("id",), 0.6, True),
    ]
    graph = build_schema(["orders", "details", "customers"], joins)
    assert {join[:4] for join in graph.joins} == {joins[1][:4], joins[2][:4]}
    assert {join[:4] for join in graph.backbone} == {joins[0][:4], joins[2][:4]}
    unlikely = [joins[0], joins[1]._replace(probability=0.3), *joins[2:]]
    assert {join[:4] for join in build_schema(graph.tables, unlikely).joins} == {joins[0][:4], joins[2][:4]}


def test_pictures_and_views_can_be_read() -> None:
    graph = build_schema(["orders", "customers", "dates", "invoices", "products"], ORDERS)
    assert 't3 }o--|| t0 : "customer_id = id (97%)"' in graph.to_mermaid()
    duckdb: Any = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE customers (id INT); CREATE TABLE dates (day DATE); CREATE TABLE products (id INT)"
        )
        connection.execute("CREATE TABLE orders (customer_id INT, ship_date DATE, order_date DATE)")
        connection.execute("CREATE TABLE invoices (day DATE)")
        connection.execute("INSERT INTO customers VALUES (1); INSERT INTO dates VALUES ('2024-01-01'), ('2024-01-02')")
        connection.execute("INSERT INTO orders VALUES (1, '2024-01-02', '2024-01-01')")
        connection.execute(graph.to_sql())
        assert connection.execute('SELECT count(*) FROM "orders with all"').fetchone() == (1,)
        assert connection.execute('SELECT count(*) FROM "invoices with all"').fetchone() == (0,)


def test_no_tables_no_joins_and_wrong_probabilities() -> None:
    assert build_schema([], []).joins == ()
    assert build_schema(["a"], []).facts == ()
    with pytest.raises(ModelError, match="probability"):
        build_schema(["a", "b"], [Join("a", ("x",), "b", ("y",), math.nan)])
