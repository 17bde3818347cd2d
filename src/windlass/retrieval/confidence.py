"""Whether the found passages answer the question at all.

Fused retrieval scores are made of ranks and look the same for a good and a hopeless question, so the evidence is
weighed anew: how much of the question the best span covers, how close it is in meaning, whether it holds the kind of
thing asked for, and above all whether the names and numbers of the question occur there. A logistic function of
these, fitted on a development set of answerable and unanswerable questions (see docs/decisions.md), gives a
probability-like number in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from windlass.retrieval.extract import Scored
from windlass.retrieval.questions import Question
from windlass.retrieval.terms import stems

# Intercept, then one weight a field of `Features`.
_WITH_COSINE = (-7.1, 4.4, 2.6, 4.3, 1.3, -2.0)
_WORDS_ALONE = (-6.1, 5.3, 3.4, 0.0, 1.4, -2.0)


@dataclass(frozen=True, slots=True)
class Features:
    """What the judgement is made from; all in [0, 1].

    Attributes:
        coverage: Of the question's words by the best span and what it leans on.
        passage: Of the question's words by the best passage as a whole.
        cosine: Of the question and the best span; 0 without an encoder.
        in_kind: 1 when the best span holds the kind of thing asked for.
        missing: Share of the question's names, numbers and dates that its passage does not hold.
    """

    coverage: float
    passage: float
    cosine: float
    in_kind: float
    missing: float


def features(question: Question, scored: Sequence[Scored]) -> Features:
    """The features of the best span; all zero when there is none."""
    if not scored or not question.words:
        return Features(0.0, 0.0, 0.0, 0.0, 1.0)
    best = scored[0]
    passage = best.candidate.passage
    around = f"{best.candidate.context} {passage.text} {best.candidate.lead} {best.candidate.text}"
    whole = stems(around)
    return Features(
        coverage=best.coverage,
        passage=question.coverage(question.credit(whole)),
        cosine=max(0.0, best.cosine or 0.0),
        in_kind=float(best.in_kind),
        missing=question.missing(around),
    )


def evidence(found: Features, *, has_cosine: bool) -> float:
    """How likely the passages answer the question, in [0, 1]."""
    intercept, *slopes = _WITH_COSINE if has_cosine else _WORDS_ALONE
    total = intercept + sum(slope * value for slope, value in zip(slopes, astuple(found), strict=True))
    return 1.0 / (1.0 + math.exp(-total))
