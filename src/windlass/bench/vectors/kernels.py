"""The loops under the vector store, each beside the fastest library for the same loop; part of the report of `spann`.

50,000 vectors of 384 (the int8 and bit codes of the same), one thread, one query at a time, a block of queries in
turn. Answers are compared before times are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import Metric
from windlass.core.randomness import permutation, uniform
from windlass.kernels.bitcodes import hamming, pack_signs
from windlass.kernels.distances import gather_topk, scan_topk
from windlass.kernels.kmeans import unit_rows
from windlass.kernels.lookup import table_sums
from windlass.kernels.postings import near_heads, quantized

ROWS, DIM, K = 50_000, 384, 10
_SUBSPACES = 48
_LEAST_RATIO = 1 / 1.05

Work = Callable[[], object]


def kernel_metrics(context: BenchContext) -> list[Metric]:
    """Two metrics, wall and CPU, for each loop and its peer."""
    rows = unit_rows((uniform(context.seed, "rows", size=(ROWS, DIM)) - 0.5).astype(np.float32))
    queries = unit_rows((uniform(context.seed, "asked", size=(8, DIM)) - 0.5).astype(np.float32))
    faiss: Any = peer_module("faiss")
    if faiss is not None:
        faiss.omp_set_num_threads(1)
    found: list[Metric] = []

    def against(name: str, ours: Work, peer: Work | None, peer_name: str) -> None:
        result = compare(ours, peer, repeats=7, progress=context.progress)
        found.extend(result.metrics(f"kernel {name}", peer_name=peer_name, least_ratio=_LEAST_RATIO))

    _scans(against, rows, queries, faiss)
    _gathers(against, rows, queries, context.seed)
    _int8(against, rows, queries, faiss)
    _bits(against, rows, queries, faiss)
    _tables(against, context.seed, faiss)
    return found


def _scans(against: Any, rows: NDArray[np.float32], queries: NDArray[np.float32], faiss: Any) -> None:
    def ours() -> object:
        return [scan_topk(rows, query, K)[1] for query in queries]

    against("f32 scan", ours, lambda: [np.argpartition(-(rows @ query), K)[:K] for query in queries], "NumPy product")
    if faiss is not None:
        flat = faiss.IndexFlatIP(DIM)
        flat.add(rows)
        _same([flat.search(query[None], K)[1][0] for query in queries], ours())
        against("f32 scan", ours, lambda: [flat.search(query[None], K) for query in queries], "faiss IndexFlatIP")
    else:
        against("f32 scan", ours, None, "faiss IndexFlatIP")


def _gathers(against: Any, rows: NDArray[np.float32], queries: NDArray[np.float32], seed: int) -> None:
    chosen = permutation(seed, "chosen", size=ROWS)[:5000]

    def ours() -> object:
        return [gather_topk(rows, query, K, chosen)[1] for query in queries]

    def peer() -> object:
        found = []
        for query in queries:
            products = rows[chosen] @ query
            found.append(chosen[np.argsort(-products, kind="stable")[:K]])
        return found

    _same(peer(), ours())
    against("gather of 5,000", ours, peer, "NumPy take and product")


def _int8(against: Any, rows: NDArray[np.float32], queries: NDArray[np.float32], faiss: Any) -> None:
    codes, scales = quantized(rows)
    squares, starts, spare = np.ones(ROWS, np.float32), np.array([0, ROWS]), np.arange(ROWS)
    centre, none = np.zeros(DIM, np.float32), np.zeros(1, np.float32)
    scores, found = np.empty(K, np.float32), np.empty(K, np.int64)
    flat = codes.view(np.uint8).reshape(-1)

    def ours() -> object:
        for query in queries:
            near_heads(flat, scales, squares, starts, centre, none, 1, query, 0, scores, found, spare)
        return found

    if faiss is None:
        against("int8 scan", ours, None, "faiss SQ8")
        return
    index = faiss.IndexScalarQuantizer(DIM, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    against("int8 scan", ours, lambda: [index.search(query[None], K) for query in queries], "faiss SQ8")


def _bits(against: Any, rows: NDArray[np.float32], queries: NDArray[np.float32], faiss: Any) -> None:
    codes, asked = pack_signs(rows), pack_signs(queries)
    out = np.empty(ROWS, np.int32)

    def ours() -> object:
        for query in asked:
            hamming(codes, query, out)
            np.argpartition(out, K)
        return out

    if faiss is None:
        against("Hamming, 384 bits", ours, None, "faiss IndexBinaryFlat")
        return
    index = faiss.IndexBinaryFlat(DIM)
    index.add(codes.view(np.uint8))
    against(
        "Hamming, 384 bits",
        ours,
        lambda: [index.search(query[None].view(np.uint8), K) for query in asked],
        "faiss IndexBinaryFlat",
    )


def _tables(against: Any, seed: int, faiss: Any) -> None:
    codes = (uniform(seed, "codes", size=(_SUBSPACES, ROWS)) * 256).astype(np.uint8)
    tables = uniform(seed, "tables", size=(8, _SUBSPACES, 256)).astype(np.float32)
    out = np.empty(ROWS, np.float32)

    def ours() -> object:
        for table in tables:
            table_sums(codes, table, out)
            np.argpartition(out, K)
        return out

    if faiss is None:
        against("table sums, 48 x 8 bits", ours, None, "faiss IndexPQ")
        return
    index = faiss.IndexPQ(DIM, _SUBSPACES, 8)
    training = unit_rows((uniform(seed, "train", size=(4000, DIM)) - 0.5).astype(np.float32))
    index.pq.cp.niter = 2  # how good the codes are is not measured here
    index.train(training)
    index.add(unit_rows((uniform(seed, "rows", size=(ROWS, DIM)) - 0.5).astype(np.float32)))
    queries = training[:8]
    against(
        "table sums, 48 x 8 bits", ours, lambda: [index.search(query[None], K) for query in queries], "faiss IndexPQ"
    )


def _same(peer: Any, ours: Any) -> None:
    for theirs, own in zip(peer, ours, strict=True):
        if set(np.asarray(theirs).tolist()) != set(np.asarray(own).tolist()):
            raise AssertionError("ours and the peer do not find the same rows")
