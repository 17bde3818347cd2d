"""`fastrp`: node vectors beside the published algorithm as one writes it with scikit-learn and SciPy.

How good vectors are is the share of nodes whose group the nearest class mean names, from a tenth of the labels; both
sides are judged by the same rule on the same split. node2vec is run where it is installed, for a part of its walks, and
its time scaled up; the row says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.bench.graphs.generated import grouped_graph
from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.randomness import permutation
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
