"""`treehop`: two rounds of search by vector beside one, at equal numbers of passages.

Workload: HotpotQA questions over their passages and, in the full run, those of another collection; passages and
questions as the default encoder makes them, for all sides alike. How much the passage counts in the linear update is
tuned on other questions (hotpot_train). The trained gate learns from mentions in the passages that are not the
questions' own; it needs torch, and the row says what it does to recall, for better or worse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.report import BenchReport, Metric, metric
from windlass.bench.retrieval.collections import Collection, read_collection
from windlass.core.errors import ModelError
from windlass.models.encoder import Encoder
from windlass.retrieval.bridges import bridge_chains, mentions
from windlass.retrieval.multihop import LinearHop, MultiHopRetriever, NextQueries

_DEPTH = 10
_WEIGHTS = (-0.5, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)
_REWRITTEN = 20
Rankings = Sequence[Sequence[int]]


class _Exact:
    """Passages by vector, all of them looked at."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self._vectors = vectors

    def nearest(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        scores = vectors @ self._vectors.T
        k = min(k, len(self._vectors))
        ids = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, ids, 1), axis=1, kind="stable")
        ids = np.take_along_axis(ids, order, 1)
        return ids.astype(np.int64), np.take_along_axis(scores, ids, 1)

    def vectors_of(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._vectors[ids]


def run(context: BenchContext) -> BenchReport:
    encoder = _encoder()
    asked, tuning = read_collection("hotpot"), read_collection("hotpot_train")
    if context.quick:
        asked, tuning = asked.first(60, 600), tuning.first(30, 200)
    else:
        asked = asked.beside(read_collection("wiki6k"))
    vectors, questions = asked.vectors(encoder), encoder.encode_queries(asked.questions)
    tuning_vectors, tuning_questions = tuning.vectors(encoder), encoder.encode_queries(tuning.questions)
    weight = max(
        _WEIGHTS, key=lambda w: _recall(_hops(_Exact(tuning_vectors), tuning_questions, LinearHop(w)), tuning.gold)
    )
    store, links = _Exact(vectors), _both_ways(mentions(asked.titles, asked.texts))
    direct: Rankings = store.nearest(questions, _DEPTH)[0].tolist()
    linear = _hops(store, questions, LinearHop(weight))
    ours = _hops(store, questions, LinearHop(), links)
    metrics = [
        *_beside("recall@10", asked.gold, ours, direct, "direct search, as many passages", 1.05),
        *_beside("recall@10, beside the linear update", asked.gold, ours, linear, f"q - {weight:g} c, tuned", 1.02),
        metric(
            "both gold passages among ten", "share", _all(ours, asked.gold), better="higher",
            peer=_all(direct, asked.gold), peer_name="direct search, as many passages",
        ),
        *_beside_words(asked, ours),
        *_added_time(context, store, questions, links),
    ]  # fmt: skip
    if not context.quick:
        metrics += _trained(asked, tuning, encoder, (tuning_vectors, vectors), store, questions, links)
        metrics += _beside_rewriting(asked, encoder, store, questions, links, direct)
    return context.report(
        mode="measured",
        workload=f"{len(asked.questions)} HotpotQA questions, {len(asked.titles):,} passages, {encoder.dim} dimensions",
        metrics=metrics,
    )


def _encoder() -> Encoder:
    from windlass.models.encoder import BertEncoder
    from windlass.models.store import locate

    try:
        return BertEncoder.load(locate("all-minilm-l6-v2"), precision="int8")
    except ModelError as error:
        raise ModelError("treehop measures the default encoder", hint="run `windlass models pull`") from error


def _hops(
    store: _Exact, questions: NDArray[np.float32], update: NextQueries, links: list[set[int]] | None = None
) -> Rankings:
    neighbours = links.__getitem__ if links is not None else None
    retriever = MultiHopRetriever(store, update, hops=2, top_n=_DEPTH // 2, neighbours=neighbours)
    found: Rankings = retriever.search(questions).ids.tolist()
    return found


def _both_ways(linked: list[list[int]]) -> list[set[int]]:
    found = [set(targets) for targets in linked]
    for origin, targets in enumerate(linked):
        for target in targets:
            found[target].add(origin)
    return found


def _beside(
    name: str, gold: list[set[int]], ours: Rankings, theirs: Rankings, peer_name: str, least_ratio: float
) -> list[Metric]:
    return [
        metric(
            name, "share", _recall(ours, gold), better="higher", peer=_recall(theirs, gold), peer_name=peer_name,
            least_ratio=least_ratio,
        )
    ]  # fmt: skip


def _beside_words(asked: Collection, ours: Rankings) -> list[Metric]:
    bm25s, stemming = peer_module("bm25s"), peer_module("Stemmer")
    theirs = None
    if bm25s is not None and stemming is not None:
        stemmer = stemming.Stemmer("english")
        passages = [f"{title} {text}" for title, text in zip(asked.titles, asked.texts, strict=True)]
        index = bm25s.BM25()
        index.index(bm25s.tokenize(passages, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
        tokens = bm25s.tokenize(asked.questions, stopwords="en", stemmer=stemmer, show_progress=False)
        found, _ = index.retrieve(tokens, k=_DEPTH, show_progress=False)
        theirs = _recall(found.tolist(), asked.gold)
    return [
        metric(
            "recall@10, beside words", "share", _recall(ours, asked.gold), better="higher", peer=theirs,
            peer_name="bm25s",
        )
    ]  # fmt: skip


def _added_time(
    context: BenchContext, store: _Exact, questions: NDArray[np.float32], links: list[set[int]]
) -> list[Metric]:
    """What the second round costs beside the searches it must make, and how time grows with rounds."""
    count = len(questions)
    several = np.repeat(questions, _DEPTH // 2, axis=0)
    both = compare(
        lambda: _hops(store, questions, LinearHop(), links),
        lambda: (store.nearest(questions, _DEPTH), store.nearest(several, _DEPTH)),
        progress=context.progress,
    )
    assert both.peer is not None
    rounds = [
        compare(lambda h=hops: MultiHopRetriever(store, hops=h).search(questions), None).ours.cpu_median  # type: ignore[misc]
        for hops in (2, 4)
    ]
    return [
        metric(
            "two rounds, a question", "ms", 1000 * both.ours.wall_median / count, better="lower",
            peer=1000 * both.peer.wall_median / count, peer_name="the same searches alone", least_ratio=0.5,
        ),
        metric("growth of CPU time from two rounds to four", "times", rounds[1] / rounds[0], better="lower", most=3.6),
    ]  # fmt: skip


def _trained(
    asked: Collection,
    tuning: Collection,
    encoder: Encoder,
    vectors: tuple[NDArray[np.float32], NDArray[np.float32]],
    store: _Exact,
    questions: NDArray[np.float32],
    links: list[set[int]],
) -> list[Metric]:
    """Recall with the gate trained on mentions in passages that no question is about."""
    if peer_module("torch") is None:
        return []
    from windlass.retrieval.torch_hops import HopChains, train_hops

    gold = set().union(*asked.gold)
    free = [place for place in range(len(asked.titles)) if place not in gold]
    titles = [*tuning.titles, *(asked.titles[place] for place in free)]
    texts = [*tuning.texts, *(asked.texts[place] for place in free)]
    chains = list(bridge_chains(titles, texts))
    begun = time.perf_counter()
    made = train_hops(
        HopChains(
            np.asarray(encoder.encode_queries([chain.question for chain in chains]), np.float32),
            np.array([chain.gold for chain in chains]),
            np.array([chain.negatives for chain in chains]),
            np.concatenate([vectors[0], vectors[1][free]]),
        ),
        encoder.fingerprint,
        epochs=4,
    )
    seconds = time.perf_counter() - begun
    learned = f"{made.found[0]:.2f} -> {max(made.found):.2f} on chains set aside"
    note = f"{len(chains):,} chains, epoch {made.epoch} kept, {learned}"
    return [
        metric(
            "recall@10 with the trained gate", "share", _recall(_hops(store, questions, made.gate, links), asked.gold),
            better="higher", peer=_recall(_hops(store, questions, LinearHop(), links), asked.gold),
            peer_name="our linear update", note=note,
        ),
        metric("training the gate", "s", seconds, better="lower", most=90),
    ]  # fmt: skip


def _beside_rewriting(
    asked: Collection,
    encoder: Encoder,
    store: _Exact,
    questions: NDArray[np.float32],
    links: list[set[int]],
    direct: Rankings,
) -> list[Metric]:
    """What a question costs when the default model writes the second one."""
    from windlass.models.generate import LocalModel
    from windlass.models.store import locate

    try:
        model = LocalModel.load(locate("smollm2-135m-instruct"))
    except ModelError:
        return []

    def rewritten(row: int) -> None:
        found = asked.texts[direct[row][0]][:1500]
        prompt = f"Passage: {found}\n\nQuestion: {asked.questions[row]}\n\nWrite the next search query, in one line."
        query = "".join(model.chat([{"role": "user", "content": prompt}], max_tokens=32))
        store.nearest(np.asarray(encoder.encode_queries([query or "?"]), np.float32), _DEPTH)

    seconds = _median_time(rewritten, min(_REWRITTEN, len(questions)))
    ours = _median_time(lambda row: _hops(store, questions[row : row + 1], LinearHop(), links), _REWRITTEN)
    return [
        metric(
            "second round of one question", "ms", 1000 * ours, better="lower", peer=1000 * seconds,
            peer_name="the default model writes the query", least_ratio=50,
        )
    ]  # fmt: skip


def _median_time(work: Callable[[int], object], count: int) -> float:
    work(0)
    times = []
    for row in range(count):
        begun = time.perf_counter()
        work(row)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


def _recall(rankings: Rankings, gold: list[set[int]]) -> float:
    return float(
        np.mean([len(set(found) & wanted) / len(wanted) for found, wanted in zip(rankings, gold, strict=True)])
    )


def _all(rankings: Rankings, gold: list[set[int]]) -> float:
    return float(np.mean([wanted <= set(found) for found, wanted in zip(rankings, gold, strict=True)]))
