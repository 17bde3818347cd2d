"""`curator`: one index for a thousand tenants beside an hnswlib index for each of them.

Tenants are of Zipf sizes; 70 % of a tenant's rows come from three topics and the rest from everywhere, about five
grants a row. Queries are real embeddings, asked for tenants drawn by their size. The peer has an index for each tenant
that is asked for (`ef` as small as the recall allows); its memory for all tenants is what those it has would need for
each row, added up. One thread on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass import vectors
from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.bench.vectors.data import data_and_queries, recall
from windlass.core.access import Access
from windlass.kernels.distances import gather_topk
from windlass.kernels.kmeans import kmeans, nearest
from windlass.vectors.schema import Schema

K, LEAST_RECALL = 10, 0.97
_TENANTS, _TOPICS = 1000, 60


@dataclass(frozen=True)
class Work:
    """Rows, who has which, and what is asked for whom."""

    rows: NDArray[np.float32]
    owned: list[NDArray[np.int64]]
    queries: NDArray[np.float32]
    asked: NDArray[np.int64]
    truth: NDArray[np.int64]


def run(context: BenchContext) -> BenchReport:
    count, asked = (30_000, 200) if context.quick else (200_000, 600)
    work = make_work(count, asked, context.seed)
    collection, building = _ours(context.workdir / "ours", work, context)
    graphs, peer_bytes = _graphs(work)
    with collection:
        metrics = [
            *_answers(collection, graphs, work, context),
            *_memory(collection, work, peer_bytes),
            *_grants(collection, work, context),
            metric("build", "s", building, better="lower"),
        ]
    sizes = [len(rows) for rows in work.owned]
    return context.report(
        mode="measured",
        workload=f"{count:,} MiniLM-like vectors of 384, {_TENANTS:,} tenants of {min(sizes)} to {max(sizes):,} rows, "
        f"{sum(sizes):,} grants, {asked} queries, k = {K}, one thread",
        metrics=metrics,
    )


def make_work(count: int, asked: int, seed: int) -> Work:
    """Zipf(0.8) sizes from a fifteenth of all rows down."""
    rows, queries = data_and_queries(count, asked, seed)
    rng = np.random.default_rng(seed)
    sample = rows[rng.permutation(count)[:8000]]
    topic = np.concatenate(_topics(rows, sample, seed))
    by_topic = [np.flatnonzero(topic == number) for number in range(_TOPICS)]
    owned = []
    for number in range(_TENANTS):
        size = max(20, int(count / 15 / (number + 1) ** 0.8))
        near = np.concatenate([by_topic[one] for one in rng.choice(_TOPICS, 3, replace=False)])
        near = rng.permutation(near)[: int(0.7 * size)]
        owned.append(np.unique(np.concatenate([near, rng.integers(0, count, size - len(near))])))
    sizes = np.array([len(one) for one in owned], np.float64)
    chosen = rng.choice(_TENANTS, asked, p=sizes / sizes.sum())
    truth = np.stack(
        [gather_topk(rows, query, K, owned[tenant])[1] for query, tenant in zip(queries, chosen, strict=True)]
    )
    return Work(rows, owned, queries, chosen, truth)


def _topics(rows: NDArray[np.float32], sample: NDArray[np.float32], seed: int) -> list[NDArray[np.int64]]:
    centres, _ = kmeans(sample, _TOPICS, seed=seed, rounds=5)
    return [nearest(rows[at : at + 8192], centres)[0] for at in range(0, len(rows), 8192)]


def _ours(path: Path, work: Work, context: BenchContext) -> tuple[vectors.Collection, float]:
    schema = Schema(dim=work.rows.shape[1], tenants=True)
    collection = vectors.create(path, schema, kind="tenant-tree", durability="none")
    batches = [{"ids": np.arange(at, min(at + 20_000, len(work.rows))), "vectors": work.rows[at : at + 20_000]}
               for at in range(0, len(work.rows), 20_000)]  # fmt: skip
    began = time.perf_counter()
    collection.build(batches, seed=context.seed, progress=context.progress)
    for number, rows in enumerate(work.owned):
        collection.grant(rows, [f"tenant {number}"])
    return collection, time.perf_counter() - began


def _graphs(work: Work) -> tuple[dict[int, Any], float]:
    """An index for each tenant that is asked for, and the bytes that indexes for all tenants would take."""
    hnswlib: Any = peer_module("hnswlib")
    if hnswlib is None:
        return {}, 0.0
    graphs = {}
    for tenant in np.unique(work.asked).tolist():
        index = hnswlib.Index("cosine", work.rows.shape[1])
        index.init_index(len(work.owned[tenant]), M=16, ef_construction=100, random_seed=1)
        index.set_num_threads(1)
        index.add_items(work.rows[work.owned[tenant]], work.owned[tenant], num_threads=1)
        graphs[tenant] = index
    a_row = work.rows.shape[1] * 4 + 2 * 16 * 4 + 4 + 8  # vector, links of the lowest layer, label
    return graphs, float(sum(len(rows) for rows in work.owned) * a_row)


def _answers(collection: vectors.Collection, graphs: dict[int, Any], work: Work, context: BenchContext) -> list[Metric]:
    access = {tenant: Access(tenants={f"tenant {tenant}"}) for tenant in np.unique(work.asked).tolist()}
    pairs = list(zip(work.queries, work.asked.tolist(), strict=True))

    def ours(params: dict[str, Any]) -> Callable[[], NDArray[np.int64]]:
        return lambda: np.concatenate(
            [collection.search(query, K, access=access[tenant], params=params).ids for query, tenant in pairs]
        )

    def peer() -> NDArray[np.int64]:
        found = [graphs[tenant].knn_query(query[None], min(K, len(work.owned[tenant])))[0] for query, tenant in pairs]
        return np.concatenate(found).astype(np.int64)

    params: dict[str, Any] = {}
    for breadth in (2, 4, 6, 10, 16, 24, 40):
        params = {"breadth": breadth}
        reached = recall(ours(params)(), work.truth)
        if reached >= LEAST_RECALL:
            break
    found = [metric(f"recall@{K}, ours", "", reached, better="higher", least=LEAST_RECALL, note=f"breadth {breadth}")]
    if graphs:
        for ef in (10, 16, 24, 32, 48, 64, 96, 128, 256):
            for index in graphs.values():
                index.set_ef(ef)
            theirs = recall(peer(), work.truth)
            if theirs >= LEAST_RECALL:
                break
        found.append(
            metric(f"recall@{K}, hnswlib", "", theirs, better="higher", least=LEAST_RECALL, note=f"M 16, ef {ef}")
        )
    result = compare(ours(params), peer if graphs else None, repeats=5, progress=context.progress)
    name = f"{len(pairs)} queries of tenants drawn by size"
    found += result.metrics(name, peer_name="an hnswlib index a tenant", least_ratio=1 / 0.7)
    return found


def _memory(collection: vectors.Collection, work: Work, peer_bytes: float) -> list[Metric]:
    """Ours: the vectors once, the tree, and the grants."""
    mine = collection.stats().resident_bytes + work.rows.nbytes
    grants = sum(len(rows) for rows in work.owned)
    beyond = collection.stats().resident_bytes
    most = 8 * grants + 0.05 * work.rows.nbytes
    return [
        metric(
            "memory with the vectors", "B", mine, better="lower", peer=peer_bytes or None,
            peer_name="an hnswlib index a tenant", least_ratio=4,
        ),
        metric("memory beyond the vectors", "B", beyond, better="lower", most=most,
               note="target: 8 bytes a grant and 5 % of the vectors"),
    ]  # fmt: skip


def _grants(collection: vectors.Collection, work: Work, context: BenchContext) -> list[Metric]:
    rng = np.random.default_rng(context.seed)
    batch = [np.unique(rng.integers(0, len(work.rows), 200)) for _ in range(100)]
    began = time.perf_counter()
    for number, rows in enumerate(batch):
        collection.grant(rows, [f"tenant {number}"])
    rate = sum(len(rows) for rows in batch) / (time.perf_counter() - began)
    single = []
    for row in rng.integers(0, len(work.rows), 300).tolist():
        began = time.perf_counter()
        collection.grant([row], ["tenant 3"])
        single.append(time.perf_counter() - began)
    return [
        metric("grants, 200 at a time", "/s", rate, better="higher", least=20_000, note="not synced one by one"),
        metric("one grant, 99th percentile", "ms", 1000 * float(np.quantile(single, 0.99)), better="lower", most=1.0),
    ]
