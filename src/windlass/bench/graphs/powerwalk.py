"""`powerwalk`: personalised PageRank queries from fingerprints, beside iteration and the published order of work.

Truth is power iteration to 1e-10. A query counts as answered when its best 100 nodes hold 0.995 of the true score of
the true best 100 (RAG@100), on average; ours runs at the threshold its own calibration gives for 0.995.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.bench.graphs.generated import grouped_graph
from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.randomness import integers
from windlass.graphs.graph import Graph
from windlass.graphs.pagerank import exact_scores
from windlass.graphs.pagerank_index import PPRIndex
from windlass.kernels.push import layered

_TOP = 100
_Point = tuple[float, float, float]
_WANTED = 0.995


def run(context: BenchContext) -> BenchReport:
    nodes, edges, count = (5_000, 35_000, 100) if context.quick else (22_000, 170_000, 200)
    graph, _ = grouped_graph(nodes, edges, context.seed)
    starts = np.flatnonzero(np.diff(graph.indptr))
    sources = starts[integers(context.seed, "queries", size=count, high=len(starts))].tolist()
    building = compare(lambda: PPRIndex.build(graph, R=100), None, progress=context.progress)
    index: PPRIndex = building.ours.result
    truth = exact_scores(graph, [(np.array([node]), np.ones(1)) for node in sources], 0.15, 1e-10)
    steps = float(index._arrays["totals"].sum())
    metrics = [
        metric("build", "walk steps/s of CPU", steps / building.ours.cpu_median, better="higher", least=3e6),
        metric("index", "bytes/node", index.nbytes / nodes, better="lower", most=100 * 100**0.7),
        *_speed(context, graph, index, sources, truth),
        *_work(graph, index, sources, truth),
    ]
    return context.report(
        mode="measured",
        workload=f"power-law graph, {nodes:,} nodes, {graph.num_edges:,} edges, R = 100, {count} random sources",
        metrics=metrics,
    )


def _speed(context: BenchContext, graph: Graph, index: PPRIndex, sources: list[int], truth: np.ndarray) -> list[Metric]:
    def single() -> list[Any]:
        return [index.query(node, accuracy=_WANTED, top=_TOP)[0] for node in sources]

    few = sources[:3]
    peer = peer_module("sknetwork.ranking")
    run_peer = None
    if peer is not None:
        scipy = peer_module("scipy.sparse")
        matrix = scipy.csr_matrix(  # type: ignore[union-attr]
            (np.ones(graph.num_arcs), graph.indices, graph.indptr), shape=(graph.num_nodes, graph.num_nodes)
        )
        ranker = peer.PageRank(damping_factor=0.85, solver="piteration", n_iter=100, tol=1e-6)

        def run_peer() -> list[Any]:
            return [ranker.fit_predict(matrix, {node: 1}) for node in few]

    both = compare(single, run_peer, progress=context.progress)
    batch = compare(lambda: index.query_batch(sources, accuracy=_WANTED, top=_TOP), None, progress=context.progress)
    found = [ids for ids, _ in both.ours.result]
    quality = float(np.mean([_share(row, ids) for row, ids in zip(truth, found, strict=True)]))
    rate = len(sources) / both.ours.wall_median
    rows = [
        metric("RAG@100", "", quality, better="higher", least=_WANTED),
        metric(
            "single queries", "queries/s", rate, better="higher", least_ratio=50,
            peer=len(few) / both.peer.wall_median if both.peer else None,
            peer_name="scikit-network power iteration, 100 rounds",
        ),
        metric(
            "batch of queries", "queries/s", len(sources) / batch.ours.wall_median, better="higher", least_ratio=3,
            peer=rate, peer_name="our single queries",
        ),
    ]  # fmt: skip
    if both.peer is not None:
        shares = [
            _share(row, np.argsort(-scores)[:_TOP]) for row, scores in zip(truth[:3], both.peer.result, strict=True)
        ]
        rows.append(metric("RAG@100 of scikit-network", "", float(np.mean(shares)), better="higher"))
    return rows


def _work(graph: Graph, index: PPRIndex, sources: list[int], truth: np.ndarray) -> list[Metric]:
    """Arcs and entries touched by residue and by rounds, each at its cheapest setting that is as good as asked."""
    some = sources[:12]
    rest, fingerprints = index.restart, index._fingerprints
    ours: list[_Point] = []
    whole: list[_Point] = []
    theirs: list[_Point] = []
    for step in range(8, 20):
        threshold = 10.0 ** (-step / 4)
        for points, least in ((ours, 0.02 * threshold), (whole, 0.0)):
            results, touched = [], []
            for node in some:
                ids, scores, work, _ = index._work.run(
                    np.array([node]), np.ones(1), rest, threshold, fingerprints, least
                )  # fmt: skip
                results.append(np.zeros(graph.num_nodes))
                results[-1][ids] = scores
                touched.append(work)
            points.append(_point(touched, results, truth))
    for rounds in range(1, 9):
        results, touched = [], []
        for node in some:
            results.append(np.zeros(graph.num_nodes))
            touched.append(
                layered(
                    graph.indptr, graph.indices, graph.flat_weights, graph.strengths, node, rest, rounds, 1e-4,
                    *fingerprints, results[-1],
                )
            )  # fmt: skip
        theirs.append(_point(touched, results, truth))
    rows = []
    for name, error, share in ((f"RAG@100 of {_WANTED}", 2.0, _WANTED), ("L1 of 0.15", 0.15, 0.0)):
        costs, peer_costs = (
            [work for found_error, found_share, work in points if found_error <= error and found_share >= share]
            for points in ([*ours, *whole], theirs)
        )
        if costs and peer_costs:
            rows.append(
                metric(
                    f"arcs and entries touched for {name}", "a query", min(costs), better="lower", peer=min(peer_costs),
                    least_ratio=3, peer_name="1 to 8 rounds of decomposition, as published",
                )
            )  # fmt: skip
    return rows


def _point(touched: list[int], found: list[np.ndarray], truth: np.ndarray) -> _Point:
    """Mean L1 error, RAG@100 and work."""
    errors = [np.abs(row - true).sum() for row, true in zip(found, truth, strict=False)]
    shares = [_share(true, np.argsort(-row)[:_TOP]) for row, true in zip(found, truth, strict=False)]
    return float(np.mean(errors)), float(np.mean(shares)), float(np.mean(touched))


def _share(true: np.ndarray, ids: np.ndarray) -> float:
    return float(true[ids].sum() / np.partition(true, len(true) - _TOP)[-_TOP:].sum())
