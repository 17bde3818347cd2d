"""Whether the found passages answer the question at all.

Fused retrieval scores are made of ranks and look the same for a good and a hopeless question, so the evidence is
weighed anew: how much of the question the best span covers, how close it is in meaning, how well the worst-matched
words of the question are matched, whether the span holds the kind of thing asked for, and whether the names and
numbers of the question occur there. A logistic function of these, fitted on a development set of answerable and
unanswerable questions (see docs/decisions.md), gives a number in [0, 1] that is calibrated for even odds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise

import numpy as np

from windlass.retrieval.extract import Scored
from windlass.retrieval.questions import Question
from windlass.retrieval.support import SentenceEncoder
from windlass.retrieval.terms import stems

_MOST_ALIGNED = 3

# Intercept, then one weight a field of `Features`.
_WITH_ENCODER = (-3.77, 1.79, 0.0, 3.49, 5.41, -2.45, -2.5)
_WORDS_ALONE = (-2.19, 3.25, 2.28, 0.0, 0.0, -2.01, -2.5)


@dataclass(frozen=True, slots=True)
class Features:
    """What the judgement is made from; all in [0, 1].

    Attributes:
        coverage: Of the question's words by the best span and what it leans on.
        passage: Of the question's words by the best passage as a whole.
        cosine: Of the question and the best span; 0 without an encoder.
        weakest: How well the worst-matched third of the question's tokens is matched; 0 without an encoder.
        lacking: 1 when the question asks for a kind of thing (a length, a person) that the best span has not.
        missing: Share of the question's names, numbers and dates that its passage does not hold.
    """

    coverage: float
    passage: float
    cosine: float
    weakest: float
    lacking: float
    missing: float


def features(question: Question, scored: Sequence[Scored], encoder: SentenceEncoder | None) -> Features:
    """The features of the best span; all zero when there is none."""
    if not scored or not question.words:
        return Features(0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
    best = scored[0]
    passage = best.candidate.passage
    around = f"{best.candidate.context} {passage.text} {best.candidate.lead} {best.candidate.text}"
    return Features(
        coverage=best.coverage,
        passage=question.coverage(question.credit(stems(around))),
        cosine=max(0.0, best.cosine or 0.0),
        weakest=0.0 if encoder is None else _weakest_third(question.text, scored[:_MOST_ALIGNED], encoder),
        lacking=float(best.in_kind == 0.0),
        missing=question.missing(around),
    )


def evidence(found: Features, *, has_encoder: bool) -> float:
    """How likely the passages answer the question, in [0, 1]."""
    intercept, *slopes = _WITH_ENCODER if has_encoder else _WORDS_ALONE
    total = intercept + sum(slope * value for slope, value in zip(slopes, astuple(found), strict=True))
    return 1.0 / (1.0 + math.exp(-total))


def _weakest_third(question: str, scored: Sequence[Scored], encoder: SentenceEncoder) -> float:
    """Each token of the question takes its nearest token of a span (as in ColBERT); the mean of the worst third.

    A question about the right thing but the wrong property ("how heavy is the boat", of a boat whose price alone is
    known) is near in its mean and far in its worst words.
    """
    vectors, offsets, _ = encoder.encode_tokens([question, *(item.embedded_text for item in scored)])
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    asked = vectors[offsets[0] : offsets[1]][1:-1]  # without the tokens that open and close every text
    if not len(asked):
        return 0.0
    worst = max(1, len(asked) // 3)
    best = 0.0
    for start, end in pairwise(offsets[1:]):
        nearest = np.sort((asked @ vectors[start:end].T).max(axis=1))
        best = max(best, float(nearest[:worst].mean()))
    return max(0.0, best)
