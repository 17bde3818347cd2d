"""`squash`: filtered search through parts and codes, with one setting for filters of 50 % down to 0.1 % of the rows.

Peers in the same run, each at its cheapest setting of at least the same recall for each filter: faiss `IndexIVFFlat`
told the rows as a bitmap, hnswlib with a filter function (where it passes at least 8 % of the rows; below it takes
minutes), and looking at every row that passes. The price in a cloud is simulated: functions that start cold or warm,
with and without parts kept between calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass import vectors
from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.bench.vectors.data import data_and_queries
from windlass.bench.vectors.functions_price import simulated_price
from windlass.core.randomness import uniform
from windlass.kernels.distances import gather_topk
from windlass.vectors.functions import CrewRunner, search_parts
from windlass.vectors.schema import Field, Schema

K, LEAST_RECALL = 10, 0.97

Vectors = NDArray[np.float32]
Ask = Callable[[Vectors], Any]


@dataclass(frozen=True)
class Filtered:
    """A filter, the rows that pass it, and the true answers."""

    name: str
    text: str
    passing: NDArray[np.bool_]
    truth: list[set[int]]


def run(context: BenchContext) -> BenchReport:
    count, asked = (60_000, 100) if context.quick else (200_000, 300)
    rows, queries = data_and_queries(count, asked, context.seed, of=10_000 if context.quick else None)
    attrs = attributes(rows, queries, context.seed)
    filters = [_filtered(name, text, rows, queries, attrs) for name, text in FILTERS.items()]
    schema = Schema(dim=rows.shape[1], fields={name: Field("float") for name in attrs})
    with vectors.create(context.workdir / "parts", schema, durability="none") as collection:
        began = time.perf_counter()
        batches = [{"ids": np.arange(count), "vectors": rows, "attrs": attrs}]
        report = collection.build(batches, kind="partitioned", seed=context.seed, progress=context.progress)
        built = time.perf_counter() - began
        faiss, hnswlib = _faiss(rows), _hnswlib(rows)
        metrics: list[Metric] = []
        for one in filters:
            metrics += _against_peers(collection, rows, queries, one, faiss, hnswlib, context)
        code_bytes = report.details["code_bytes"]
        share = "of the vectors in float32; the codes of vectors and fields"
        metrics += [
            metric("bytes of codes", "B", code_bytes, better="lower", most=0.16 * rows.nbytes, note=share),
            metric("build", "s", built, better="lower"),
            *_functions(collection, queries, filters[1], context),
        ]
        metrics += simulated_price(collection.stats().segments[0]["rows"], report.details["parts"], code_bytes, asked)
    return context.report(
        mode="measured",
        workload=f"{count:,} MiniLM-like vectors of 384 with five fields, {asked} real ones asked under five filters, "
        f"k = {K}, one thread; the price of functions is simulated",
        metrics=metrics,
    )


FILTERS = {
    "50 %": "a < 0.5",
    "8 %": "a < 0.532 and b < 0.532 and c < 0.532 and d < 0.532",
    "8 % nearest to a row": "near >= 0",
    "1 %": "a < 0.01",
    "0.1 %": "a < 0.001",
}


def attributes(rows: Vectors, queries: Vectors, seed: int) -> dict[str, NDArray[np.float64]]:
    """Four uniform fields, and `near`, which is not negative for the 8 % of the rows nearest to one of them."""
    found = {name: uniform(seed, "field", name, size=len(rows)) for name in "abcd"}
    to_anchor = (rows @ rows[0]).astype(np.float64)
    return {**found, "near": to_anchor - np.quantile(to_anchor, 0.92)}


def _filtered(name: str, text: str, rows: Vectors, queries: Vectors, attrs: dict[str, NDArray[np.float64]]) -> Filtered:
    from windlass.core.filter_text import parse_filter
    from windlass.vectors.columns import column
    from windlass.vectors.masks import passing

    types: dict[str, Any] = dict.fromkeys(attrs, "float")
    mask = passing(parse_filter(text).bind(types), {key: column(key, "float", value) for key, value in attrs.items()})
    chosen = np.flatnonzero(mask)
    truth = [set(gather_topk(rows, query, K, chosen)[1].tolist()) for query in queries]
    return Filtered(name, text, mask, truth)


def _reached(ask: Ask, queries: Vectors, one: Filtered) -> float:
    hits = sum(len(set(np.asarray(ask(query)).tolist()) & true) for query, true in zip(queries, one.truth, strict=True))
    return hits / sum(len(true) for true in one.truth)


def _against_peers(
    collection: vectors.Collection,
    rows: Vectors,
    queries: Vectors,
    one: Filtered,
    faiss: Any,
    hnswlib: Any,
    context: BenchContext,
) -> list[Metric]:
    chosen, flat = np.flatnonzero(one.passing), np.arange(len(rows))
    right = [0]

    def ours(query: Vectors) -> Any:
        found = collection.search(query, K, filter=one.text)
        right[0] += int(one.passing[found.ids[0]].all()) if found.n_found[0] == K else 0
        return found.ids[0]

    def exact(query: Vectors) -> Any:
        return gather_topk(rows, query, K, chosen, order=flat)[1]

    found = [metric(f"{one.name}: recall, ours", "", _reached(ours, queries, one), better="higher", least=LEAST_RECALL)]
    if right[0] != len(queries):
        raise AssertionError(f"{one.text}: rows that do not pass, or too few")
    sides: list[tuple[str, Ask | None, float | None]] = [("faiss IVF with a bitmap", None, 2.0)]
    if faiss is not None:
        listed, setting, reached = _tuned_faiss(faiss, queries, one)
        sides = [("faiss IVF with a bitmap", listed, 2.0 if one.name in ("50 %", "8 %") else None)]
        found.append(metric(f"{one.name}: recall, faiss", "", reached, better="higher", note=setting))
    if one.passing.mean() > 0.05 and hnswlib is not None:
        graph, setting, reached = _tuned_hnswlib(hnswlib, queries, one)
        sides.append(("hnswlib with a filter", graph, 1.0 if one.name in ("50 %", "8 %") else None))
        found.append(metric(f"{one.name}: recall, hnswlib", "", reached, better="higher", note=setting))
    sides.append(("every row that passes", exact, 1.0 if one.passing.mean() < 0.05 else None))
    for name, peer, least in sides:
        some = queries[:20] if name.startswith("hnswlib") else queries

        def all_of(ask: Ask, some: Vectors = some) -> Callable[[], object]:
            return lambda: [ask(query) for query in some]

        result = compare(all_of(ours), all_of(peer) if peer else None, repeats=3, progress=context.progress)
        found += result.metrics(f"{one.name}: {len(some)} queries", peer_name=name, least_ratio=least)
    return found


def _faiss(rows: Vectors) -> Any:
    faiss: Any = peer_module("faiss")
    if faiss is None:
        return None
    faiss.omp_set_num_threads(2)
    lists = 512 if len(rows) < 100_000 else 1024
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(rows.shape[1]), rows.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    index.train(rows[: 40 * lists])
    index.add(rows)
    faiss.omp_set_num_threads(1)
    return index


def _tuned_faiss(index: Any, queries: Vectors, one: Filtered) -> tuple[Ask, str, float]:
    faiss: Any = peer_module("faiss")
    bits = np.packbits(one.passing, bitorder="little")
    selector = faiss.IDSelectorBitmap(len(one.passing), faiss.swig_ptr(bits))
    for probes in (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, index.nlist):
        params = faiss.SearchParametersIVF(sel=selector, nprobe=probes)

        def ask(query: Vectors, params: Any = params, kept: Any = (bits, selector)) -> Any:
            return index.search(query[None], K, params=params)[1][0]

        reached = _reached(ask, queries, one)
        if reached >= LEAST_RECALL:
            break
    return ask, f"{index.nlist} lists, nprobe {probes}", reached


def _hnswlib(rows: Vectors) -> Any:
    hnswlib: Any = peer_module("hnswlib")
    if hnswlib is None:
        return None
    index = hnswlib.Index("cosine", rows.shape[1])
    index.init_index(len(rows), M=16, ef_construction=100, random_seed=1)
    index.add_items(rows, num_threads=2)
    index.set_num_threads(1)
    return index


def _tuned_hnswlib(index: Any, queries: Vectors, one: Filtered) -> tuple[Ask, str, float]:
    listed = one.passing.tolist()

    def ask(query: Vectors) -> Any:
        return index.knn_query(query[None], K, filter=listed.__getitem__)[0][0]

    some = Filtered(one.name, one.text, one.passing, one.truth[:20])
    for ef in (16, 32, 64, 128, 256):
        index.set_ef(ef)
        reached = _reached(ask, queries[:20], some)
        if reached >= LEAST_RECALL:
            break
    return ask, f"M 16, ef {ef}, on 20 queries", reached


def _functions(collection: vectors.Collection, queries: Vectors, one: Filtered, context: BenchContext) -> list[Metric]:
    """The same questions through functions in processes: the first call of a process beside later ones."""
    asked = queries[:20]
    true = collection.search(asked, K, filter=one.text, params={"exact_rows": 0}).ids
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(3):
        with CrewRunner("processes", 1) as runner:
            for place in range(4):
                began = time.perf_counter()
                found = search_parts(collection, asked, K, filter=one.text, runner=runner)
                (warm if place else cold).append(time.perf_counter() - began)
    same = sum(len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found.ids, true, strict=True)) / true.size
    return [
        metric(
            f"functions in a process: {len(asked)} queries, warm",
            "s",
            float(np.median(warm)),
            better="lower",
            peer=float(np.median(cold)),
            peer_name="the first call",
            least_ratio=5.0,
            note=f"{found.invocations} calls; {same:.0%} of the rows are those of the search without functions",
        )
    ]
