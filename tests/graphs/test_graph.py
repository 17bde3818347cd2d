"""Graphs against dictionaries of edges, and every way of building one wrongly."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import GraphFormatError, NotFound, UsageError, WindlassError
from windlass.graphs.files import read_graph
from windlass.graphs.graph import Graph

edge_lists = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.sampled_from([0.5, 1.0, 2.25])), max_size=60)


def as_dictionary(graph: Graph) -> dict[tuple[int, int], float]:
    weights = np.ones(graph.num_arcs) if graph.weights is None else graph.weights
    return {
        (node, int(other)): float(weights[at])
        for node in range(graph.num_nodes)
        for at, other in enumerate(graph.neighbors(node), graph.indptr[node])
    }


@settings(max_examples=150, deadline=None)
@given(
    edge_lists,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["sum", "max", "first"]),
    st.sampled_from(["drop", "keep"]),
)
def test_rows_equal_a_dictionary_of_edges(
    edges: list[tuple[int, int, float]], directed: bool, weighted: bool, rule: Any, loops: Any
) -> None:
    expected: dict[tuple[int, int], float] = {}
    for a, b, weight in edges:
        if a == b and loops == "drop":
            continue
        key = (a, b) if directed else (min(a, b), max(a, b))
        weight = weight if weighted else 1.0
        merge = {"sum": lambda old, new: old + new, "max": max, "first": lambda old, new: old}[rule]
        expected[key] = merge(expected[key], weight) if key in expected else weight
    single = dict(expected)
    if not directed:
        expected |= {(b, a): weight for (a, b), weight in expected.items()}
    if not weighted:
        expected = dict.fromkeys(expected, 1.0)
    columns = [list(part) for part in zip(*edges, strict=True)] if edges else [[], [], []]
    graph = Graph.from_edges(
        columns[0], columns[1], columns[2] if weighted else None, num_nodes=13, directed=directed, duplicates=rule,
        self_loops=loops,
    )  # fmt: skip
    assert as_dictionary(graph) == expected
    assert all((np.diff(graph.neighbors(node)) > 0).all() for node in range(13))
    assert graph.num_edges == len(single)
    again = Graph.from_edges(*graph.edges(), num_nodes=13, directed=directed, self_loops="keep")
    assert as_dictionary(again) == expected and again.fingerprint == graph.fingerprint
    turned = {(b, a): weight for (a, b), weight in expected.items()}
    assert as_dictionary(graph.transposed) == turned
    sums = [sum(weight for (a, _), weight in expected.items() if a == node) for node in range(13)]
    np.testing.assert_allclose(graph.strengths, sums)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0, 1], [1]), "2 sources and 1 targets"),
        (([0, -1], [1, 2]), "source of edge 1 is -1"),
        (([0, 1], [1, 2], [1.0, np.nan]), "weight of edge 1 is nan"),
        (([0, 1], [1, 2], [1.0, -2.0]), "weight of edge 1 is -2"),
        (([0, 1], [1, 2], [0.0, 1.0]), "weight of edge 0 is 0"),
        (([0, 1], [1, 2], [np.inf, 1.0]), "weight of edge 0 is inf"),
        (([0, 1], [1, 2], [1.0]), r"\(1,\) weights for 2 edges"),
        (([0, 1], [1, 2], ["a", "b"]), "not a number"),
        (([0.5], [1]), "0.5, not a whole number"),
        (([float("nan")], [1]), "nan, not a whole number"),
        (([0], [2**31]), "at most"),
        (([[0, 1]], [[1, 2]]), "dimensions"),
        ((["a", 1], ["b", "c"]), "different kinds"),
    ],
)
def test_impossible_edges_are_named(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Graph.from_edges(*arguments)


def test_what_may_be_refused_is() -> None:
    with pytest.raises(UsageError, match="edge 1 goes from node 2 to itself"):
        Graph.from_edges([0, 2], [1, 2], self_loops="refuse")
    with pytest.raises(UsageError, match="1 edges are given more than once"):
        Graph.from_edges([0, 1], [1, 0], duplicates="refuse")
    with pytest.raises(UsageError, match="nodes are 0 to 1"):
        Graph.from_edges([0], [5], num_nodes=2)
    with pytest.raises(UsageError, match="sum of the weights"):
        Graph.from_edges([0, 0], [1, 1], [3e38, 3e38])


def test_an_empty_graph_and_nodes_without_edges() -> None:
    empty = Graph.from_edges([], [])
    assert (empty.num_nodes, empty.num_arcs, empty.num_edges) == (0, 0, 0)
    alone = Graph.from_edges([], [], num_nodes=4)
    assert alone.num_nodes == 4 and alone.neighbors(3).size == 0 and alone.transposed is alone


def test_names_become_numbers_in_order() -> None:
    graph = Graph.from_edges(["berth", "crane"], ["crane", "anchor"])
    assert graph.ids([0, 1, 2]) == ["anchor", "berth", "crane"]
    assert graph.numbers(["crane", "berth"]).tolist() == [2, 1]
    assert graph.ids(graph.neighbors(2)) == ["anchor", "berth"]
    with pytest.raises(UsageError, match="no node 'tide'"):
        graph.numbers(["tide"])
    far = Graph.from_edges([-5, 10**15], [10**15, 7], relabel=True)
    assert far.num_nodes == 3 and far.ids([0, 2]) == [-5, 10**15]
    with pytest.raises(UsageError, match="no node 3"):
        Graph.from_edges([0], [1]).numbers([3])
    with pytest.raises(UsageError, match="no node True"):
        Graph.from_edges([0], [1]).numbers([True])


def test_rows_that_are_given_are_checked() -> None:
    graph = Graph.from_csr([0, 1, 2], [1, 0], directed=False)
    assert as_dictionary(graph) == {(0, 1): 1, (1, 0): 1}
    for indptr, indices, says in (
        ([0, 2, 1], [1], "does not rise"),
        ([1, 1], [], "does not rise"),
        ([0, 2], [0, 0], "not above the one before"),
        ([0, 1], [5], "out of range"),
        ([0, 1], [0.5], "not whole numbers"),
    ):
        with pytest.raises(UsageError, match=says):
            Graph.from_csr(indptr, indices, directed=True)
    with pytest.raises(UsageError, match="not symmetric"):
        Graph.from_csr([0, 1, 1], [1], directed=False)


@pytest.mark.parametrize("names", [None, "text", "numbers"])
def test_saved_graphs_come_back_and_damage_is_noticed(tmp_path: Path, names: str | None) -> None:
    sources: list[Any] = [0, 1, 2, 5]
    targets: list[Any] = [1, 2, 3, 0]
    if names == "text":
        sources, targets = [f"é{n}" for n in sources], [f"é{n}" for n in targets]
    graph = Graph.from_edges(sources, targets, [1, 2, 3, 4], relabel=names == "numbers", directed=True)
    graph.save(tmp_path / "g")
    Graph.from_edges([0], [1]).save(tmp_path / "other")
    graph.save(tmp_path / "g")
    back = Graph.open(tmp_path / "g")
    assert back.fingerprint == graph.fingerprint and as_dictionary(back) == as_dictionary(graph)
    assert back.directed and back.ids(range(back.num_nodes)) == graph.ids(range(graph.num_nodes))
    assert pickle.loads(pickle.dumps(back)).fingerprint == graph.fingerprint
    for file in sorted((tmp_path / "g").glob("*.bin")):
        data = file.read_bytes()
        file.write_bytes(data[:-1])
        with pytest.raises(GraphFormatError, match="bytes"):
            Graph.open(tmp_path / "g")
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        with pytest.raises(GraphFormatError, match="damaged"):
            Graph.open(tmp_path / "g")
        file.unlink()
        with pytest.raises(GraphFormatError, match="cannot read"):
            Graph.open(tmp_path / "g")
        file.write_bytes(data)
    with pytest.raises(GraphFormatError, match="holds no graph"):
        Graph.open(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "source,target,weight\n0,1,2\n1,2,3\n"),
        ("a.csv", "0,1,2\n1,2,3\n"),
        ("a.tsv", "u\tv\tw\n0\t1\t2\n1\t2\t3\n"),
        ("a.txt", "# a comment\n% another\n0 1 2\n1   2\t3\n".replace("\t", " ")),
        ("a.edges", "0;1;2\r\n1;2;3\r\n"),
        ("a.tsv.gz", "0\t1\t2\n1\t2\t3\n"),
        ("a.csv", "\ufeffsource,target,weight\n0,1,2\n1,2,3\n"),
    ],
)
def test_edge_lists_in_their_many_forms(tmp_path: Path, name: str, text: str) -> None:
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    graph = read_graph(tmp_path / name)
    assert as_dictionary(graph) == {(0, 1): 2, (1, 0): 2, (1, 2): 3, (2, 1): 3} and graph.node_ids is None


def test_names_and_columns_that_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mail.csv").write_text("when,sender,receiver,size\n1,ann,bob,3\n2,bob,eve,1\n")
    graph = read_graph(tmp_path / "mail.csv", directed=True, source="sender", target="receiver", weight="size")
    assert graph.ids(range(3)) == ["ann", "bob", "eve"] and as_dictionary(graph) == {(0, 1): 3, (1, 2): 1}
    with pytest.raises(UsageError, match="no column 'from'"):
        read_graph(tmp_path / "mail.csv", source="from")
    (tmp_path / "far.csv").write_text("source,target\n99999999999,5\n5,7\n")
    assert read_graph(tmp_path / "far.csv").ids([0, 1, 2]) == [5, 7, 99999999999]


def test_parquet_and_graphml(tmp_path: Path) -> None:
    table = pa.table({"src": ["a", "b"], "dst": ["b", "c"], "weight": [2.0, 3.0]})
    parquet.write_table(table, tmp_path / "g.parquet")
    expected = {(0, 1): 2, (1, 0): 2, (1, 2): 3, (2, 1): 3}
    assert as_dictionary(read_graph(tmp_path / "g.parquet")) == expected
    parquet.write_table(pa.table({"src": ["a", None], "dst": ["b", "c"]}), tmp_path / "holes.parquet")
    with pytest.raises(GraphFormatError, match="empty cells"):
        read_graph(tmp_path / "holes.parquet")
    (tmp_path / "g.graphml").write_text(
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><key id="d0" for="edge" attr.name="weight"/>'
        '<graph edgedefault="undirected"><node id="a"/><node id="b"/><node id="c"/><node id="d"/>'
        '<edge source="a" target="b"><data key="d0">2</data></edge>'
        '<edge source="b" target="c"><data key="d0">3</data></edge></graph></graphml>'
    )
    graph = read_graph(tmp_path / "g.graphml")
    assert as_dictionary(graph) == expected and graph.ids(range(4)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", b"0,1\n1\n2,3\n", "1 lines have not 2 columns.*line 2"),
        ("a.csv", b"", "holds no edges"),
        ("a.csv", b"# only a comment\n", "holds no edges"),
        ("a.csv", b"\x00\x01\x02", "is no text"),
        ("a.csv", b"0\n1\n", "1 columns"),
        ("a.csv", b"source,target,weight\n0,1,x\n", "no number"),
        ("a.csv", b"source,target\n0,\n", "empty cells"),
        ("a.csv.gz", b"no gzip", "cut or damaged"),
        ("a.parquet", b"PAR1 and no more", "no readable Parquet"),
        ("a.graphml", b"<graphml><graph><edge source='a'", "no readable GraphML"),
        ("a.graphml", b"<graphml><graph><edge source='a'/></graph></graphml>", "no readable GraphML"),
        ("a.graphml", b"<graphml/>", "holds no <graph>"),
        ("a.xlsx", b"", "no reader for .xlsx"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(WindlassError, match=says) as caught:
        read_graph(tmp_path / name)
    assert name in str(caught.value)
    with pytest.raises(NotFound):
        read_graph(tmp_path / "missing.csv")


def test_entities_of_graphml_are_not_resolved(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "a.graphml").write_text(
        f'<!DOCTYPE g [<!ENTITY x SYSTEM "{tmp_path}/secret">]>'
        '<graphml><graph><node id="a">&x;</node></graph></graphml>'
    )
    graph = read_graph(tmp_path / "a.graphml")
    assert graph.ids([0]) == ["a"]


@pytest.mark.peers
def test_graphs_of_scipy_and_networkx() -> None:
    scipy = pytest.importorskip("scipy.sparse")
    networkx = pytest.importorskip("networkx")
    random = np.random.default_rng(0)
    dense = np.where(random.random((20, 20)) < 0.2, random.random((20, 20)), 0).astype(np.float32)
    for matrix, directed in ((dense, True), (np.maximum(dense, dense.T), False)):
        graph = Graph.from_scipy(scipy.csc_array(matrix))
        assert graph.directed == directed
        back = scipy.csr_array((graph.weights, graph.indices, graph.indptr), shape=(20, 20))
        np.testing.assert_array_equal(back.toarray(), matrix)
    with pytest.raises(UsageError, match="square"):
        Graph.from_scipy(scipy.csr_array(np.ones((2, 3))))
    with pytest.raises(UsageError, match="above zero"):
        Graph.from_scipy(scipy.csr_array(-np.ones((2, 2))))
    named = networkx.karate_club_graph()
    graph = Graph.from_networkx(named)
    assert graph.num_edges == named.number_of_edges() and not graph.directed
    many = networkx.MultiDiGraph([("x", "y"), ("x", "y"), ("y", "y")])
    graph = Graph.from_networkx(many)
    assert graph.ids([0, 1]) == ["x", "y"] and as_dictionary(graph) == {(0, 1): 1, (1, 1): 1}
