"""`spann`: what one query costs on an index whose vectors lie on the disk, at recall@10 of at least 0.95.

Peers, at the cheapest setting of their own knob that reaches the recall: faiss `IndexIVFFlat` with its lists mapped
from a file (how much is read and scored), and hnswlib in memory (how long it takes, how much memory it holds). All on
one thread, queries one by one, blocks of queries in turn.

Reads and bytes of faiss are what its probed lists hold: each list is one read of all its vectors in float32.
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
from windlass.bench.vectors.data import data_and_queries, recall, true_neighbours
from windlass.bench.vectors.kernels import kernel_metrics
from windlass.vectors.results import Counters
from windlass.vectors.schema import Schema

K, LEAST_RECALL = 10, 0.95

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]


@dataclass(frozen=True)
class Measured:
    """A side at the setting that reached the recall: what it costs for each query."""

    setting: str
    recall: float
    search: Search
    reads: float = 0.0
    scored: float = 0.0
    bytes_read: float = 0.0
    resident: float = 0.0
    build_seconds: float = 0.0


def run(context: BenchContext) -> BenchReport:
    count, asked = (60_000, 200) if context.quick else (300_000, 500)
    rows, queries = data_and_queries(count, asked, context.seed)
    truth = true_neighbours(rows, queries, K)
    ours = _ours(context.workdir / "ours", rows, queries, truth, context)
    ivf = _faiss(context.workdir, rows, queries, truth)
    graph = _hnsw(rows, queries, truth)
    return context.report(
        mode="measured",
        workload=f"{count:,} MiniLM-like vectors of 384, {asked} real ones asked, k = {K}, one thread",
        metrics=[
            *_found(ours, ivf, graph),
            *_costs(ours, ivf),
            *_times(ours, ivf, graph, queries, context),
            *kernel_metrics(context),
        ],
    )


def _ours(
    path: Path, rows: NDArray[np.float32], queries: NDArray[np.float32], truth: NDArray[np.int64], context: BenchContext
) -> Measured:
    collection = vectors.create(path, Schema(dim=rows.shape[1]), kind="postings", durability="none")
    batches = ({"ids": np.arange(at, min(at + 20_000, len(rows))), "vectors": rows[at : at + 20_000]}
               for at in range(0, len(rows), 20_000))  # fmt: skip
    began = time.perf_counter()
    collection.build(batches, seed=context.seed, progress=context.progress)
    seconds = time.perf_counter() - began
    params: dict[str, Any] = {}
    for margin in np.arange(0.9, 1.5, 0.01):
        params = {"margin": float(margin)}
        found = np.concatenate([collection.search(query, K, params=params).ids for query in queries])
        reached = recall(found, truth)
        if reached >= LEAST_RECALL:
            break
    total = Counters()
    for query in queries:
        counters = collection.search(query, K, params=params).counters
        for name in ("reads", "vectors_scored", "bytes_read"):
            setattr(total, name, getattr(total, name) + getattr(counters, name))
    return Measured(
        setting=f"margin {params['margin']:.2f}",
        recall=reached,
        search=lambda query: collection.search(query, K, params=params).ids,
        reads=total.reads / len(queries),
        scored=total.vectors_scored / len(queries),
        bytes_read=total.bytes_read / len(queries),
        resident=float(collection.stats().index_bytes),
        build_seconds=seconds,
    )


def _faiss(
    folder: Path, rows: NDArray[np.float32], queries: NDArray[np.float32], truth: NDArray[np.int64]
) -> Measured | None:
    """The number of lists and the number of lists read that reach the recall with the fewest vectors scored."""
    faiss: Any = peer_module("faiss")
    if faiss is None:
        return None
    faiss.omp_set_num_threads(1)
    best: Measured | None = None
    for lists in (512, 1024) if len(rows) < 100_000 else (1024, 2048):
        began = time.perf_counter()
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        index.train(rows[: 40 * lists])
        index.add(rows)
        faiss.write_index(index, str(folder / f"ivf{lists}"))
        seconds = time.perf_counter() - began
        index = faiss.read_index(str(folder / f"ivf{lists}"), faiss.IO_FLAG_MMAP)
        sizes = np.array([index.invlists.list_size(number) for number in range(lists)])
        _, order = index.quantizer.search(queries, lists)
        for probes in (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256):
            index.nprobe = probes
            reached = recall(index.search(queries, K)[1], truth)
            if reached >= LEAST_RECALL:
                break
        scored = float(sizes[order[:, :probes]].sum(axis=1).mean())
        if best is None or scored < best.scored:
            best = Measured(
                setting=f"{lists} lists, nprobe {probes}",
                recall=reached,
                search=lambda query, index=index: index.search(query[None], K)[1],  # type: ignore[misc]
                reads=float(probes),
                scored=scored,
                bytes_read=scored * rows.shape[1] * 4,
                build_seconds=seconds,
            )
    return best


def _hnsw(rows: NDArray[np.float32], queries: NDArray[np.float32], truth: NDArray[np.int64]) -> Measured | None:
    """The smallest ef that reaches the recall."""
    hnswlib: Any = peer_module("hnswlib")
    if hnswlib is None:
        return None
    began = time.perf_counter()
    index = hnswlib.Index("cosine", rows.shape[1])
    index.init_index(len(rows), M=16, ef_construction=100, random_seed=1)
    index.set_num_threads(1)
    index.add_items(rows, num_threads=1)
    seconds = time.perf_counter() - began
    for ef in (16, 24, 32, 48, 64, 80, 96, 128, 192, 256):
        index.set_ef(ef)
        reached = recall(index.knn_query(queries, K)[0].astype(np.int64), truth)
        if reached >= LEAST_RECALL:
            break
    links = 2 * 16 * 4 + 4  # of the lowest layer, as hnswlib lays them out
    return Measured(
        setting=f"M 16, ef {ef}",
        recall=reached,
        search=lambda query: index.knn_query(query[None], K)[0].astype(np.int64),
        resident=float(len(rows) * (rows.shape[1] * 4 + links + 8)),
        build_seconds=seconds,
    )


def _found(ours: Measured, ivf: Measured | None, graph: Measured | None) -> list[Metric]:
    sides = [("ours", ours), ("faiss on-disk IVF", ivf), ("hnswlib", graph)]
    return [
        metric(f"recall@{K}, {name}", "", side.recall, better="higher", least=LEAST_RECALL, note=side.setting)
        for name, side in sides
        if side is not None
    ]


def _costs(ours: Measured, ivf: Measured | None) -> list[Metric]:
    name = "faiss on-disk IVF"

    def beside(what: str, unit: str, field: str, least_ratio: float | None = None) -> Metric:
        peer = None if ivf is None else getattr(ivf, field)
        return metric(
            what, unit, getattr(ours, field), better="lower", peer=peer, peer_name=name, least_ratio=least_ratio
        )

    return [
        beside("reads a query", "", "reads", 1 / 0.35),
        beside("vectors scored a query", "", "scored", 1 / 0.4),
        beside("bytes read a query", "B", "bytes_read"),
        beside("build", "s", "build_seconds"),
    ]


def _times(
    ours: Measured, ivf: Measured | None, graph: Measured | None, queries: NDArray[np.float32], context: BenchContext
) -> list[Metric]:
    def block(side: Measured) -> Callable[[], object]:
        return lambda: [side.search(query) for query in queries]

    against_graph = compare(block(ours), block(graph) if graph else None, repeats=5, progress=context.progress)
    found = against_graph.metrics(f"{len(queries)} queries, warm", peer_name="hnswlib", least_ratio=1.0)
    found.append(
        metric(
            "resident",
            "B",
            ours.resident,
            better="lower",
            peer=graph.resident if graph else None,
            peer_name="hnswlib",
            least_ratio=1 / 0.15,
            note="arrays of the index; mapped files are not counted",
        )
    )
    against_ivf = compare(block(ours), block(ivf) if ivf else None, repeats=5, progress=context.progress)
    return [*found, *against_ivf.metrics(f"{len(queries)} queries, warm", peer_name="faiss on-disk IVF")]
