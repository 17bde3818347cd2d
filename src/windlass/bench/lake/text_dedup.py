"""`text-dedup`: all near-duplicate pairs of real texts, against rensa (Rust) and datasketch.

All three start from the texts and end with pairs whose exact Jaccard similarity of word 5-grams is at least 0.7. The
peers need shingles from Python (one regular expression, one join for each shingle, as their examples do) and propose
candidates with the same 32 bands of 4 rows, so that they miss as little as ours; their candidates are then verified
with Python sets, which they do not do themselves. rensa is driven through its bulk functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from windlass.bench.harness import BenchContext, compare, peer_module
from windlass.bench.lake.data import documentation_texts, true_near_duplicates
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.randomness import integers
from windlass.lake.text_dedup import find_near_duplicates

_THRESHOLD, _SLOTS, _BANDS, _ROWS, _WORDS = 0.7, 128, 32, 4, 5
_COPIES = 100_000
_WORD = re.compile(r"\w+")
Texts = list[tuple[str, str]]
Pairs = set[tuple[str, str]]


def run(context: BenchContext) -> BenchReport:
    texts = documentation_texts()
    truth = true_near_duplicates(_THRESHOLD)
    metrics: list[Metric] = []
    found: Pairs = set()
    for name, peer, least in (("rensa", by_rensa, 8.0), ("datasketch", by_datasketch, 20.0)):
        there = peer_module(name) is not None
        result = compare(
            lambda: ours(texts),
            _call(peer, texts) if there else None,
            warm_up=name == "rensa",
            progress=context.progress,
        )
        found = result.ours.result
        metrics += result.metrics(f"texts to verified pairs, beside {name}", peer_name=name, least_ratio=least)
        if result.peer is not None:
            recall = len(truth & result.peer.result) / len(truth)
            metrics.append(metric(f"recall of {name} with those bands", "", recall, better="higher"))
    metrics.append(metric("recall", "", len(truth & found) / len(truth), better="higher", least=0.995))
    metrics.append(metric("precision", "", len(truth & found) / max(1, len(found)), better="higher", least=1.0))
    copies = [(f"{number:06}", "the same notice to mariners as always") for number in range(_COPIES)]
    alike = compare(lambda: ours(copies), None, warm_up=False, progress=context.progress)
    metrics.append(metric("100,000 equal texts", "s", alike.ours.wall_median, better="lower", most=2.0))
    if not context.quick:
        metrics += _growth(texts, context)
    size = sum(len(text) for _, text in texts)
    return context.report(
        mode="measured",
        workload=f"{len(texts):,} documentation texts of {size / 1e6:.1f} MB, {len(truth)} true pairs at Jaccard 0.7",
        metrics=metrics,
    )


def ours(texts: Texts) -> Pairs:
    return {(pair.first, pair.second) for pair in find_near_duplicates(texts, threshold=_THRESHOLD).pairs}


def by_rensa(texts: Texts) -> Pairs:
    import rensa

    sets = [shingles(text) for _, text in texts]
    digests = rensa.RMinHash.from_token_sets([list(words) for words in sets], _SLOTS, 42)
    index = rensa.RMinHashLSH(_THRESHOLD, _SLOTS, _BANDS)
    index.insert_many(digests)
    candidates = ((i, j) for i, near in enumerate(index.query_all(digests)) for j in near if i < j)
    return verified(texts, sets, candidates)


def by_datasketch(texts: Texts) -> Pairs:
    import datasketch

    sets = [shingles(text) for _, text in texts]
    digests = datasketch.MinHash.bulk([[word.encode() for word in words] for words in sets], num_perm=_SLOTS)
    index = datasketch.MinHashLSH(num_perm=_SLOTS, params=(_BANDS, _ROWS))
    for number, digest in enumerate(digests):
        index.insert(number, digest)
    candidates = ((i, j) for i, digest in enumerate(digests) for j in index.query(digest) if i < j)
    return verified(texts, sets, candidates)


def shingles(text: str) -> set[str]:
    words = _WORD.findall(text.lower())
    if len(words) < _WORDS:
        return set(words)
    return {" ".join(words[place : place + _WORDS]) for place in range(len(words) - _WORDS + 1)}


def verified(texts: Texts, sets: list[set[str]], candidates: Iterable[tuple[int, int]]) -> Pairs:
    found = set()
    for i, j in candidates:
        common = len(sets[i] & sets[j])
        if common and common >= _THRESHOLD * (len(sets[i]) + len(sets[j]) - common):
            found.add((min(texts[i][0], texts[j][0]), max(texts[i][0], texts[j][0])))
    return found


def _call(peer: Callable[[Texts], Pairs], texts: Texts) -> Callable[[], Pairs]:
    return lambda: peer(texts)


def _growth(texts: Texts, context: BenchContext) -> list[Metric]:
    """How the time grows from 10,000 to 40,000 texts, a fifth of them edited copies."""
    import math

    seconds = []
    sizes = (10_000, 20_000, 40_000)
    for size in sizes:
        corpus = grown(texts, size, context.seed)
        timed: Any = compare(_grown_call(corpus), None, warm_up=False, progress=context.progress)
        seconds.append(timed.ours.wall_median)
    exponent = math.log(seconds[-1] / seconds[0]) / math.log(sizes[-1] / sizes[0])
    return [
        metric("40,000 texts", "s", seconds[-1], better="lower"),
        metric("time grows with texts to the power of", "", exponent, better="lower", most=1.15),
    ]


def _grown_call(corpus: Texts) -> Callable[[], Pairs]:
    return lambda: ours(corpus)


def grown(texts: Texts, size: int, seed: int) -> Texts:
    """So many texts: slices of the real ones with words moved on, and one in five a copy with a few words replaced."""
    corpus: Texts = []
    for number in range(size):
        draws = integers(seed, number, size=64, high=1 << 30).tolist()
        if number % 5 == 4:
            words = corpus[draws[0] % number][1].split()
            share = (0.02, 0.05, 0.10)[draws[1] % 3]
            for place in draws[2 : 2 + max(1, min(60, int(share * len(words))))]:
                words[place % len(words)] = f"w{place % 997}"
        else:
            words = texts[draws[0] % len(texts)][1].split()[:150]
            # A stride of the words makes a text of the same kind that shares no word sequence with its source.
            words = [*words[:: 2 + draws[1] % 5], f"n{number}", *words[:: 7 + draws[2] % 5]]
        corpus.append((f"t{number:06}", " ".join(words)))
    return corpus
