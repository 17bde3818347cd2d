"""Measures of rankings, answers and confidences, as the literature defines them.

Rankings are sequences of ids, best first; `relevant` maps an id to its grade (> 0). A query without any relevant id
is the caller's to leave out: every measure of it is 0.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


def recall_at(ranking: Sequence[Hashable], relevant: Mapping[Hashable, float], k: int) -> float:
    """Share of the relevant ids among the first `k`."""
    wanted = {item for item, grade in relevant.items() if grade > 0}
    return len(wanted & set(ranking[:k])) / len(wanted) if wanted else 0.0


def all_gold_at(ranking: Sequence[Hashable], relevant: Mapping[Hashable, float], k: int) -> float:
    """1 when every relevant id is among the first `k`."""
    return float(recall_at(ranking, relevant, k) == 1.0)


def ndcg_at(ranking: Sequence[Hashable], relevant: Mapping[Hashable, float], k: int) -> float:
    """Normalised discounted cumulative gain: gain is the grade, discount log2(rank + 1)."""
    gain = sum(max(0.0, relevant.get(item, 0.0)) / math.log2(rank + 1) for rank, item in enumerate(ranking[:k], 1))
    best = sorted((grade for grade in relevant.values() if grade > 0), reverse=True)[:k]
    ideal = sum(grade / math.log2(rank + 1) for rank, grade in enumerate(best, 1))
    return gain / ideal if ideal else 0.0


def reciprocal_rank(ranking: Sequence[Hashable], relevant: Mapping[Hashable, float]) -> float:
    """1 / rank of the first relevant id, 0 when there is none."""
    return next((1.0 / rank for rank, item in enumerate(ranking, 1) if relevant.get(item, 0.0) > 0), 0.0)


def average_precision(ranking: Sequence[Hashable], relevant: Mapping[Hashable, float]) -> float:
    """Mean over the relevant ids of the precision at their ranks (0 for those not found)."""
    wanted = sum(grade > 0 for grade in relevant.values())
    found, total = 0, 0.0
    for rank, item in enumerate(ranking, 1):
        if relevant.get(item, 0.0) > 0:
            found += 1
            total += found / rank
    return total / wanted if wanted else 0.0


def normalise(text: str) -> str:
    """SQuAD's normal form of an answer: lower case, no punctuation, no articles, single spaces."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", kept).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """1 when the answer equals an accepted one after normalisation."""
    return float(normalise(answer) in {normalise(other) for other in accepted})


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """The best harmonic mean of token precision and recall with an accepted answer."""
    return max((_f1(normalise(answer).split(), normalise(other).split()) for other in accepted), default=0.0)


def _f1(answer: list[str], gold: list[str]) -> float:
    if not answer or not gold:
        return float(answer == gold)
    same = sum((Counter(answer) & Counter(gold)).values())
    return 2 * same / (len(answer) + len(gold))


def contains_answer(text: str, accepted: Sequence[str]) -> bool:
    """Whether an accepted answer stands in `text`, as whole words, after normalisation.

    Example:
        >>> contains_answer("Depth: 12.50 m; quay 300 m [1]", ["12.5 m"]), contains_answer("112.5 m", ["12.5 m"])
        (True, False)
    """
    padded = f" {_words(text)} "
    return any(f" {_words(other)} " in padded for other in accepted if _words(other))


def _words(text: str) -> str:
    """Like `normalise`, but numbers keep their decimal point and lose grouping and trailing zeros."""
    text = re.sub(r"\[\d+\]", " ", text.lower())
    text = re.sub(r"(?<=\d)[,\u00a0\u202f](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)|(?<=[€$£%])(?=\d)|(?<=\d)(?=[€$£%])", " ", text)
    text = re.sub(r"(\d\.\d*?)0+(?!\d)", r"\1", text)
    text = re.sub(r"\.(?!\d)|(?<!\d)\.", " ", text)
    text = re.sub(r"[^\w.€$£%]+|_", " ", text)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", text).split())


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive scores above a negative, ties counting half. NaN when one side is empty."""
    if not len(positive) or not len(negative):
        return math.nan
    high, low = np.asarray(positive, np.float64)[:, None], np.asarray(negative, np.float64)[None, :]
    return float(np.mean((high > low) + 0.5 * (high == low)))


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of paired differences and its bootstrap interval; `p` is two-sided."""

    mean: float
    low: float
    high: float
    p: float


def paired_bootstrap(
    ours: Sequence[float], theirs: Sequence[float], *, draws: int = 10_000, seed: int = 0
) -> Difference:
    """Is `ours` better than `theirs` on the same questions? 95 % percentile interval of the mean difference.

    Raises:
        ValueError: The two differ in length or are empty.
    """
    differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    if not len(differences):
        raise ValueError("nothing to compare")
    random = np.random.default_rng(seed)
    means = np.array([differences[random.integers(0, len(differences), len(differences))].mean() for _ in range(draws)])
    low, high = np.percentile(means, [2.5, 97.5])
    p = min(1.0, 2.0 * float(min(np.mean(means <= 0), np.mean(means >= 0))))
    return Difference(float(differences.mean()), float(low), float(high), p)
