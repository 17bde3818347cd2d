"""`fastrp`: node vectors beside the published algorithm as one writes it with scikit-learn and SciPy.

How good vectors are is the share of nodes whose group the nearest class mean names, from a tenth of the labels; all
sides are judged by the same rule on the same splits. The package node2vec (10 walks of 40 steps a node, 128 numbers,
one worker) runs on the smaller graph; a quick run makes one walk a node and counts its walking and training ten times.
In a full run, where BlogCatalog is at hand (see `labelled`), micro and macro F1 by the protocol of the paper: a tenth
of the nodes known, one logistic regression a label, as many labels named as a node has.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from windlass.bench.graphs.generated import grouped_graph
from windlass.bench.graphs.labelled import public_folder
from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.randomness import permutation
from windlass.graphs.files import read_graph
from windlass.graphs.graph import Graph
from windlass.graphs.node_embeddings import FastRP

_WEIGHTS = (0.0, 0.0, 7.81, 45.28)
_BETA = -0.628


def run(context: BenchContext) -> BenchReport:
    nodes, edges, dim = (4_000, 40_000, 128) if context.quick else (10_000, 330_000, 512)
    graph, group = grouped_graph(nodes, edges, context.seed, groups=12, inside=0.3)
    model = FastRP(dim, _WEIGHTS, _BETA, seed=context.seed)
    peer = _published(graph, dim, context.seed)
    both = compare(lambda: model.fit_transform(graph), peer, progress=context.progress)
    name = "the published algorithm with scikit-learn and SciPy"
    metrics: list[Metric] = [*both.metrics("vectors", peer_name=name, least_ratio=3)]
    theirs = _accuracy(both.peer.result, group, context.seed) if both.peer else None
    metrics.append(
        metric(
            "nodes whose group is named", "share", _accuracy(both.ours.result, group, context.seed), better="higher",
            peer=theirs, peer_name=name, least_ratio=0.99,
        )
    )  # fmt: skip
    metrics += _node2vec(context)
    if not context.quick:
        metrics += _blogcatalog(context)
    metrics.append(_changed(graph, context.seed))
    growth = [
        compare(lambda g=g: model.fit_transform(g), None).ours.cpu_median  # type: ignore[misc]
        for g in (grouped_graph(nodes, count, 1, groups=12)[0] for count in (edges // 2, edges))
    ]
    metrics.append(
        metric("growth of CPU time with edges doubled", "times", growth[1] / growth[0], better="lower", most=2.2)
    )
    return context.report(
        mode="measured",
        workload=f"power-law graph with 12 groups, {nodes:,} nodes, {graph.num_edges:,} edges, d = {dim}, 4 powers",
        metrics=metrics,
    )


def _node2vec(context: BenchContext) -> list[Metric]:
    """Time and share of groups named on 4,000 nodes."""
    node2vec, networkx = peer_module("node2vec"), peer_module("networkx")
    graph, group = grouped_graph(4_000, 40_000, context.seed, groups=12, inside=0.3)
    model = FastRP(128, _WEIGHTS, _BETA, seed=context.seed)
    ours = compare(lambda: model.fit_transform(graph), None).ours
    seconds = share = None
    walks = 1 if context.quick else 10
    if node2vec is not None and networkx is not None:
        given = networkx.Graph()
        given.add_nodes_from(range(graph.num_nodes))
        given.add_edges_from(zip(*(end.tolist() for end in graph.edges()[:2]), strict=True))
        begin = time.perf_counter()
        prepared = node2vec.Node2Vec(given, dimensions=128, walk_length=40, num_walks=0, workers=1, quiet=True)
        ready = time.perf_counter() - begin
        prepared.num_walks = walks
        begin = time.perf_counter()
        prepared.walks = prepared._generate_walks()
        trained = prepared.fit(window=10, min_count=1, seed=context.seed + 1)
        seconds = ready + (time.perf_counter() - begin) * 10 / walks
        vectors = np.stack([trained.wv[str(node)] for node in range(graph.num_nodes)])
        share = _accuracy(vectors - vectors.mean(0), group, context.seed)
    note = "the peer made one walk a node; walking and training counted ten times" if seconds and context.quick else ""
    return [
        metric(
            "vectors of 128 numbers, 4,000 nodes", "s", ours.wall_median, better="lower", peer=seconds,
            peer_name="node2vec", least_ratio=500, note=note,
        ),
        metric(
            "nodes whose group is named, 4,000 nodes", "share", _accuracy(ours.result, group, context.seed),
            better="higher", peer=share, peer_name="node2vec", least_ratio=None if context.quick else 1.0, note=note,
        ),
    ]  # fmt: skip


def _blogcatalog(context: BenchContext) -> list[Metric]:
    folder, linear = public_folder(), peer_module("sklearn.linear_model")
    if folder is None or linear is None:
        return []
    graph = read_graph(folder / "blogcatalog_edges.tsv.gz")
    pairs = np.loadtxt(folder / "blogcatalog_labels.tsv.gz", np.int64)
    labels = np.zeros((graph.num_nodes, pairs[:, 1].max() + 1), bool)
    labels[pairs[:, 0], pairs[:, 1]] = True
    ours = FastRP(512, _WEIGHTS, _BETA, seed=context.seed).fit_transform(graph)
    published = _published(graph, 512, context.seed)
    theirs = published() if published is not None else None
    rows = [_f1(linear, vectors, labels, context.seed) if vectors is not None else None for vectors in (ours, theirs)]
    assert rows[0] is not None
    return [
        metric(
            f"{name} F1, BlogCatalog", "", rows[0][at], better="higher", peer=rows[1][at] if rows[1] else None,
            peer_name="the published algorithm with scikit-learn and SciPy", least_ratio=0.99,
        )
        for at, name in enumerate(("micro", "macro"))
    ]  # fmt: skip


def _f1(linear: Any, vectors: np.ndarray, labels: np.ndarray, seed: int) -> tuple[float, float]:
    """Micro and macro F1 from a tenth of the nodes."""
    order = permutation(seed, "blogcatalog", size=len(labels))
    known, asked = order[: len(order) // 10], order[len(order) // 10 :]
    scores = np.full((len(asked), labels.shape[1]), -np.inf)
    for label in range(labels.shape[1]):
        if labels[known, label].any():
            model = linear.LogisticRegression(C=0.1, solver="liblinear").fit(vectors[known], labels[known, label])
            scores[:, label] = model.decision_function(vectors[asked])
    rank = np.argsort(np.argsort(-scores, axis=1), axis=1)
    named, true = rank < labels[asked].sum(1)[:, None], labels[asked]
    hits = (named & true).sum(0)
    each = 2 * hits / np.maximum(named.sum(0) + true.sum(0), 1)
    return float(2 * hits.sum() / (named.sum() + true.sum())), float(each.mean())


def _changed(graph: Graph, seed: int) -> Metric:
    """Time of an update after one edge came between two nodes with few neighbours, beside a new fit."""
    quiet = np.argsort(graph.strengths, kind="stable")[graph.num_nodes // 4 :][:2].tolist()
    begin, end, _ = graph.edges()
    after = Graph.from_edges([*begin, quiet[0]], [*end, quiet[1]], num_nodes=graph.num_nodes)
    model = FastRP(64, (0, 1), _BETA, standardize=False, incremental=True, seed=seed).fit(graph)
    fresh = FastRP(64, (0, 1), _BETA, standardize=False, seed=seed)
    states = [graph, after]

    def update() -> None:
        states.reverse()
        model.update(states[0], quiet)

    both = compare(update, lambda: fresh.fit(after))
    assert both.peer is not None
    return metric(
        "update after one edge, 2 powers", "s", both.ours.wall_median, better="lower", peer=both.peer.wall_median,
        peer_name="our own new fit",
    )  # fmt: skip


def _published(graph: Graph, dim: int, seed: int) -> Any:
    projection, sparse = peer_module("sklearn.random_projection"), peer_module("scipy.sparse")
    if projection is None or sparse is None:
        return None
    n = graph.num_nodes
    values = np.ones(graph.num_arcs) if graph.weights is None else graph.weights
    matrix = sparse.csr_matrix((values.astype(np.float32), graph.indices, graph.indptr), shape=(n, n))

    def fit() -> np.ndarray:
        degree = np.asarray(matrix.sum(axis=1)).ravel()
        safe = np.where(degree > 0, degree, 1)
        walk = sparse.diags(1 / safe).astype(np.float32) @ matrix
        transformer = projection.SparseRandomProjection(n_components=dim, random_state=seed)
        random = transformer.fit(matrix).components_.T.astype(np.float32)
        loads = sparse.diags((safe / degree.sum()) ** _BETA).astype(np.float32)
        level = walk @ (loads @ random)
        total = None
        for weight in _WEIGHTS:
            dense = np.asarray(level.todense()) if sparse.issparse(level) else level
            if weight:
                lengths = np.linalg.norm(dense, axis=1, keepdims=True)
                part = weight * dense / np.where(lengths > 0, lengths, 1)
                total = part if total is None else total + part
            level = walk @ level
        assert total is not None
        made: np.ndarray = (total - total.mean(0)) / np.maximum(total.std(0), 1e-12)
        return made

    return fit


def _accuracy(vectors: np.ndarray, group: np.ndarray, seed: int) -> float:
    """Nearest class mean by cosine, a tenth of the nodes known, mean of three splits."""
    shares = []
    for split in range(3):
        order = permutation(seed, "split", split, size=len(group))
        known, asked = order[: len(order) // 10], order[len(order) // 10 :]
        means = np.stack([vectors[known[group[known] == label]].mean(0) for label in range(group.max() + 1)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        shares.append(float(((vectors[asked] @ means.T).argmax(1) == group[asked]).mean()))
    return float(np.mean(shares))
