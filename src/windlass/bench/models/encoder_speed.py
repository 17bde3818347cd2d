"""The embedding model beside `sentence-transformers` on the same folder: passages a second, how near the vectors are.

The peer runs in float32 with the batch size that was best for it in a short trial; both sides get the same number of
threads and the same texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import Metric, metric
from windlass.core.randomness import integers
from windlass.core.tasks import usable_cores
from windlass.models import store
from windlass.models.encoder import BertEncoder

_WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its about "
    "than into them can only other time new some could these two may first then do any like my now over such our man "
    "me even most made after also did many off before must well back through years where much your way down should "
    "harbour vessel pilot berth crane quayside dredging manifest inspection tonnage stevedore lighthouse breakwater "
    "hydrography containerised demurrage navigational uncharted 1,250 2026-11-22 EUR 14.5% SKU-2291 misrouted"
).split()
_MODEL = "all-minilm-l6-v2"
_BATCH_SIZES = (4, 8, 32)


def encoder_rows(context: BenchContext) -> list[Metric]:
    """Metrics on passages of 160 words and of 4 to 160 words, with two cores and (not in quick mode) with one.

    Raises:
        ModelError: The default encoder is not installed.
    """
    folder = store.locate(_MODEL)
    peer = _peer(str(folder))
    count = 24 if context.quick else 96
    loads = {
        "passages of 160 words": _texts(context.seed, count, 160, 160),
        "passages of 4 to 160 words": _texts(context.seed, 2 * count, 4, 160),
    }
    rows: list[Metric] = []
    cores = usable_cores()
    for threads in dict.fromkeys((min(2, cores), min(2, cores) if context.quick else 1)):
        ours = BertEncoder.load(folder, threads=threads, precision="int8")
        for name, texts in loads.items():
            rows += _speed(context, ours, peer, texts, f"{name}, {threads} threads", threads)
    rows += _nearness(folder, peer, loads["passages of 4 to 160 words"])
    return rows


def _speed(
    context: BenchContext, ours: BertEncoder, peer: Any, texts: list[str], name: str, threads: int
) -> list[Metric]:
    run: Callable[[], object] | None = None
    note = ""
    if peer is not None:
        peer_module("torch").set_num_threads(threads)  # type: ignore[union-attr]
        best = _best_batch(peer, texts[:: max(1, len(texts) // 16)])
        note = f"peer's batch size {best}"

        def run() -> object:
            return peer.encode(texts, batch_size=best, normalize_embeddings=True)

    both = compare(lambda: ours.encode_passages(texts), run, progress=context.progress)
    return [
        metric(
            name, "passages/s", len(texts) / both.ours.wall_median,
            peer=len(texts) / both.peer.wall_median if both.peer else None, better="higher",
            peer_name="sentence-transformers", least_ratio=2, note=note,
        ),
        metric(
            f"{name}, a CPU second", "passages/s", len(texts) / both.ours.cpu_median,
            peer=len(texts) / both.peer.cpu_median if both.peer else None, better="higher",
            peer_name="sentence-transformers",
        ),
    ]  # fmt: skip


def _nearness(folder: Any, peer: Any, texts: list[str]) -> list[Metric]:
    """The smallest cosine to float32 (and to the peer, where there is one) over `texts`."""
    rounded = BertEncoder.load(folder, precision="int8").encode_passages(texts)
    exact = BertEncoder.load(folder).encode_passages(texts)
    rows = [
        metric(
            "smallest cosine, int8 to float32", "", float((rounded * exact).sum(1).min()), better="higher", least=0.995
        )
    ]
    if peer is not None:
        theirs = peer.encode(texts, normalize_embeddings=True)
        for name, vectors, least in (("float32", exact, 0.99999), ("int8", rounded, 0.995)):
            least_cosine = float((vectors * theirs).sum(1).min())
            label = f"smallest cosine, {name} to sentence-transformers"
            rows.append(metric(label, "", least_cosine, better="higher", least=least))
    return rows


def _peer(folder: str) -> Any:
    module = peer_module("sentence_transformers")
    return None if module is None else module.SentenceTransformer(folder, device="cpu")


def _best_batch(peer: Any, texts: list[str]) -> int:
    seconds = {}
    for size in _BATCH_SIZES:
        peer.encode(texts[:4], batch_size=size)
        began = time.perf_counter()
        peer.encode(texts, batch_size=size)
        seconds[size] = time.perf_counter() - began
    return min(seconds, key=lambda size: seconds[size])


def _texts(seed: int, count: int, least: int, most: int) -> list[str]:
    sizes = least + integers(seed, "sizes", size=count, high=most - least + 1)
    picks = integers(seed, "words", size=int(sizes.sum()), high=len(_WORDS))
    stops = np.cumsum(sizes)
    return [
        " ".join(_WORDS[pick] for pick in picks[stop - size : stop]) for size, stop in zip(sizes, stops, strict=True)
    ]
