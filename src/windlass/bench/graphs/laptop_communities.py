"""`laptop-communities`: the group around five accounts, beside exact similarity to every account.

Accounts follow accounts, mostly of their own group. Recall is the share of the exact 50 most similar accounts (mean
Jaccard similarity to the seeds, over all accounts) that the index returns by the same rule; it proposes candidates by
signatures and compares them by the rows of the graph. Groups are recovered from labels on generated graphs, and on
public ones where they are at hand (see `labelled`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.bench.graphs.generated import follower_arcs
from windlass.bench.graphs.labelled import labelled_graphs
from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.errors import UsageError
from windlass.core.randomness import integers, permutation
from windlass.graphs.communities import CommunityIndex
from windlass.graphs.graph import Graph
from windlass.graphs.pagerank import nearness, personalized_pagerank
from windlass.kernels.hashing import add_cells

_SIZE = 50
_SEEDS = 5


def run(context: BenchContext) -> BenchReport:
    accounts, arcs, queries = (20_000, 400_000, 10) if context.quick else (200_000, 4_000_000, 20)
    groups = accounts // 100
    sources, targets, group = follower_arcs(accounts, arcs, context.seed, groups=groups)
    graph = Graph.from_edges(sources, targets, num_nodes=accounts, directed=True)
    built = compare(lambda: CommunityIndex.build(graph, K=256), None, progress=context.progress)
    index: CommunityIndex = built.ours.result
    seeds = [
        np.flatnonzero(group == chosen)[:_SEEDS].tolist()
        for chosen in integers(context.seed, "groups", size=queries, high=groups)
    ]
    both = compare(
        lambda: [index.query(nodes, _SIZE, graph=graph) for nodes in seeds],
        lambda: [_exact(graph, nodes) for nodes in seeds],
        progress=context.progress,
    )
    assert both.peer is not None
    recall = [len(set(a.members.tolist()) & b) / _SIZE for a, b in zip(both.ours.result, both.peer.result, strict=True)]
    mates = [_mates(group, nodes, a.members) for nodes, a in zip(seeds, both.ours.result, strict=True)]
    theirs = [_mates(group, nodes, np.array(sorted(b))) for nodes, b in zip(seeds, both.peer.result, strict=True)]
    estimated = [index.query(nodes, _SIZE) for nodes in seeds]
    by_signature = [
        len(set(a.members.tolist()) & b) / _SIZE for a, b in zip(estimated, both.peer.result, strict=True)
    ]  # fmt: skip
    ranked = compare(
        lambda: [index.query(nodes, _SIZE, method="pagerank") for nodes in seeds], None, progress=context.progress
    )  # fmt: skip
    name = "exact similarity to every account"
    return context.report(
        mode="measured",
        workload=f"{accounts:,} accounts, {graph.num_arcs:,} arcs, {groups:,} groups, K = 256, {queries} queries of 5",
        metrics=[
            metric("recall of the exact 50 nearest", "", float(np.mean(recall)), better="higher", least=0.95),
            metric("the same by signatures alone", "", float(np.mean(by_signature)), better="higher"),
            metric(
                "members of the seeds' group", "share", float(np.mean(mates)), better="higher",
                peer=float(np.mean(theirs)), peer_name=name, least_ratio=0.95,
            ),
            *both.metrics(f"{queries} queries by average", peer_name=name, least_ratio=20),
            metric("a query by PageRank", "ms", 1000 * ranked.ours.wall_median / queries, better="lower", most=50),
            metric("build", "arcs/s", graph.num_arcs / built.ours.wall_median, better="higher"),
            *_datasketch(graph, built.ours.wall_median),
            *_noise(context, sources, targets, group, accounts, seeds, float(np.mean(mates))),
            *_fusion(context),
            metric("index", "bytes/account", _bytes(index) / accounts, better="lower", most=4 * 256 + 12 * 64),
        ],
    )  # fmt: skip


def _noise(
    context: BenchContext, sources: np.ndarray, targets: np.ndarray, group: np.ndarray, accounts: int,
    seeds: list[list[int]], clean: float,
) -> list[Metric]:  # fmt: skip
    """Members of the seeds' group with one seed of five from elsewhere, and with 30 % more arcs that go anywhere."""
    graph = Graph.from_edges(sources, targets, num_nodes=accounts, directed=True)
    index = CommunityIndex.build(graph, K=256)
    wrong = integers(context.seed, "wrong", size=len(seeds), high=accounts).tolist()
    mixed = [[*nodes[:-1], other] for nodes, other in zip(seeds, wrong, strict=True)]
    more = [integers(context.seed, "noise", end, size=3 * len(sources) // 10, high=accounts) for end in (0, 1)]
    noisy = Graph.from_edges(
        np.concatenate([sources, more[0]]), np.concatenate([targets, more[1]]), num_nodes=accounts, directed=True
    )
    other = CommunityIndex.build(noisy, K=256)
    rows = []
    for name, found in (
        ("one seed of five from elsewhere", [index.query(nodes, _SIZE, graph=graph) for nodes in mixed]),
        ("30 % more arcs that go anywhere", [other.query(nodes, _SIZE, graph=noisy) for nodes in seeds]),
    ):
        share = float(np.mean([_mates(group, nodes, one.members) for nodes, one in zip(seeds, found, strict=True)]))
        rows.append(
            metric(f"members of the seeds' group, {name}", "share", share, better="higher", peer=clean,
                   peer_name="without noise", least_ratio=0.9)
        )  # fmt: skip
    return rows


def _fusion(context: BenchContext) -> list[Metric]:
    """Recall of labelled groups from five members of each: fused, beside similarity and PageRank alone."""
    rows = []
    for given in labelled_graphs(context.seed):
        index = CommunityIndex.build(given.graph, K=256)
        recalls: list[tuple[float, ...]] = []
        for turn, members in enumerate(given.groups()[:20]):
            order = permutation(context.seed, "fusion", turn, size=len(members))
            seeds, rest = members[order[:5]].tolist(), members[order[5:]]
            size = min(len(rest), 1_000)
            near = nearness(given.graph, seeds)
            fused = index.query(seeds, size, prior=near, graph=given.graph).members
            walked = personalized_pagerank(given.graph, seeds, tol=1e-5, method="push", top=size + 5)[0][0]
            try:
                alike = index.query(seeds, size, graph=given.graph).members
            except UsageError:  # no seed has a neighbourhood
                alike = np.empty(0, np.int64)
            rankings = (fused, alike, walked[~np.isin(walked, seeds)][:size], near[0][~np.isin(near[0], seeds)][:size])
            recalls.append(tuple(len(np.intersect1d(ranking, rest)) / size for ranking in rankings))
        fused_recall, alike_recall, walked_recall, near_recall = np.mean(recalls, axis=0).tolist()
        better = "similarity" if alike_recall >= walked_recall else "PageRank"
        rows.append(
            metric(
                f"recall of groups, fused, {given.name}", "", fused_recall, better="higher",
                peer=max(alike_recall, walked_recall), peer_name=f"the better of both alone: {better}", least_ratio=1.0,
                note=f"similarity {alike_recall:.3f}, PageRank {walked_recall:.3f}, over degree {near_recall:.3f}",
            )
        )  # fmt: skip
    return rows


def _exact(graph: Graph, seeds: list[int]) -> set[int]:
    """The accounts with the largest mean Jaccard similarity, by counting common followers over the whole graph."""
    turned = graph.transposed
    sizes = np.diff(turned.indptr)
    mean = np.zeros(graph.num_nodes)
    for seed in seeds:
        mine = turned.neighbors(seed)
        marked = np.zeros(graph.num_nodes, np.int64)
        marked[mine] = 1
        common = np.add.reduceat(np.append(marked[turned.indices], 0), turned.indptr[:-1])
        common[sizes == 0] = 0
        mean += common / np.maximum(sizes + len(mine) - common, 1)
    mean[seeds] = -1
    mean[sizes < 3] = -1
    return set(np.lexsort((np.arange(len(mean)), -mean))[:_SIZE].tolist())


def _mates(group: np.ndarray, seeds: list[int], members: np.ndarray) -> float:
    return float((group[members] == group[seeds[0]]).mean()) if len(members) else 0.0


def _datasketch(graph: Graph, seconds: float) -> list[Metric]:
    """The build time of signatures and bands, by the arcs of a part of the accounts, scaled up."""
    datasketch = peer_module("datasketch")
    part = min(400, graph.num_nodes)
    turned = graph.transposed
    arcs = int(turned.indptr[part])
    peer = None
    if datasketch is not None and arcs:

        def fit() -> Any:
            store = datasketch.MinHashLSH(num_perm=256, params=(64, 2))
            for node in range(part):
                members = turned.neighbors(node).astype(np.uint64)
                hashes = np.zeros(len(members), np.uint64)
                add_cells(members, np.uint64(0), hashes)
                made = datasketch.MinHash(num_perm=256, hashfunc=lambda value: value)
                made.update_batch([int(value) & 0xFFFFFFFF for value in hashes])
                store.insert(node, made)
            return store

        peer = compare(fit, None).ours.wall_median / arcs * graph.num_arcs
    return [
        metric(
            "build", "s", seconds, better="lower", peer=peer, peer_name="datasketch", least_ratio=20,
            note=f"peer timed on {part} accounts and scaled up by arcs" if peer else "",
        )
    ]  # fmt: skip


def _bytes(index: CommunityIndex) -> int:
    return sum(array.nbytes for array in (index._table, index._degrees, index._keys, index._nodes))
