"""Answers made of the files' own sentences.

Every quotable span of the found passages is scored by how much of the question it and what it leans on cover, by
cosine, by whether it holds the kind of thing that was asked for, and by the rank of its passage. No model writes, so
nothing can be invented; what remains to be judged is whether the best span answers at all (see `confidence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from windlass.retrieval.candidates import Candidate, DocumentText, find_candidates
from windlass.retrieval.facts import facts
from windlass.retrieval.questions import Question
from windlass.retrieval.support import SentenceEncoder
from windlass.retrieval.terms import stems
from windlass.retrieval.types import Hit

MOST_SENTENCES = 3
MOST_ENCODED = 48

# What a word of the question is worth by where it stands.
_IN_LEAD, _IN_CONTEXT, _IN_BEFORE = 0.9, 0.7, 0.5
_IN_PASSAGE = 0.25

_SECOND_SHARE = 0.85
_SAME_WORDS = 0.8
_MOST_COLUMNS = 12


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with the parts of its score.

    Attributes:
        candidate: The span.
        coverage: Credited share of the question's words, in [0, 1].
        cosine: Of question and span, None without an encoder.
        in_kind: Whether it holds the kind of thing asked for.
        score: What candidates are ordered by.
        text: What is shown.
    """

    candidate: Candidate
    coverage: float
    cosine: float | None
    in_kind: bool
    score: float
    text: str


def rank_candidates(
    question: Question, hits: Sequence[Hit], document_text: DocumentText, encoder: SentenceEncoder | None
) -> list[Scored]:
    """All quotable spans of `hits`, best first. Without an encoder the words decide alone."""
    found = find_candidates(hits, document_text)
    passages = {hit.passage.id: stems(hit.passage.text) for hit in hits}
    rough: list[tuple[float, Candidate, float, bool, str]] = []
    for candidate in found:
        coverage = _coverage(question, candidate, passages[candidate.passage.id])
        if candidate.facts and not _names_a_value(question, candidate):
            continue
        text = _facts_shown(question, candidate) if candidate.facts else candidate.text
        in_kind = question.is_answered_in_kind(text)
        rough.append((_score(coverage, None, in_kind, candidate.rank), candidate, coverage, in_kind, text))
    rough.sort(key=lambda item: -item[0])
    cosines = _cosines(question, [item[1] for item in rough[:MOST_ENCODED]], encoder)
    scored = [
        Scored(candidate, coverage, cosine, in_kind, _score(coverage, cosine, in_kind, candidate.rank), text)
        for (_, candidate, coverage, in_kind, text), cosine in zip(rough, cosines, strict=False)
    ]
    scored.sort(key=lambda item: (-item.score, item.candidate.rank, item.candidate.start))
    return scored


def choose(question: Question, scored: Sequence[Scored]) -> list[Scored]:
    """The one to three spans to quote: the best, and those nearly as good that say something else."""
    chosen: list[Scored] = []
    for item in scored:
        if len(chosen) == MOST_SENTENCES or (chosen and item.score < _SECOND_SHARE * chosen[0].score):
            break
        if not any(_repeats(item, other) for other in chosen):
            chosen.append(item)
    return chosen


def _coverage(question: Question, candidate: Candidate, passage: set[str]) -> float:
    own = stems(candidate.text)
    best = question.credit(own)
    for words, worth in (
        (stems(candidate.lead), _IN_LEAD),
        (stems(candidate.context), _IN_CONTEXT),
        (stems(candidate.before), _IN_BEFORE),
        (passage if not candidate.facts else set(), _IN_PASSAGE),
    ):
        for word, credit in question.credit(words).items():
            best[word] = max(best[word], credit * worth)
    return question.coverage(best)


def _score(coverage: float, cosine: float | None, in_kind: bool, rank: int) -> float:
    prior = 1.0 / (1.0 + 0.25 * rank)
    meaning = coverage if cosine is None else 0.5 * coverage + 0.5 * max(0.0, cosine)
    return 0.75 * meaning + 0.15 * in_kind + 0.10 * prior


def _cosines(
    question: Question, candidates: Sequence[Candidate], encoder: SentenceEncoder | None
) -> list[float | None]:
    if encoder is None or not candidates:
        return [None] * len(candidates)
    texts = [f"{candidate.passage.title}\n{candidate.lead} {candidate.text}".strip() for candidate in candidates]
    vectors = encoder.encode_passages(texts)
    asked = encoder.encode_queries([question.text])[0]
    return [float(value) for value in np.asarray(vectors @ asked, np.float32)]


def _names_a_value(question: Question, candidate: Candidate) -> bool:
    """A table row is about the question when the question holds one of its values, not only column names."""
    return any(_matches_value(question, value) for _, value in candidate.facts)


def _matches_value(question: Question, value: str) -> bool:
    words = stems(value)
    return bool(words) and words <= set(question.words)


def _facts_shown(question: Question, candidate: Candidate) -> str:
    """The values that the question names and the columns that it asks for, or the whole row when none is clear."""
    keys = [fact for fact in candidate.facts if _matches_value(question, fact[1])]
    taken = {word for _, value in keys for word in stems(value)}
    wanted = {word: 1.0 for word in question.words if word not in taken}
    asked = []
    for name, value in candidate.facts:
        if (name, value) in keys:
            continue
        credits = question.credit(stems(name.replace("_", " ")))
        if any(credits[word] for word in wanted):
            asked.append((name, value))
    chosen = [fact for fact in candidate.facts if fact in keys or fact in asked] if asked else candidate.facts
    return "; ".join(f"{name}: {value}" if name else value for name, value in chosen[:_MOST_COLUMNS])


def _repeats(item: Scored, other: Scored) -> bool:
    """Whether quoting both would say the same twice: overlapping spans, or the same words in two files."""
    a, b = item.candidate, other.candidate
    if a.passage.doc_id == b.passage.doc_id and a.start < b.end and b.start < a.end:
        return True
    words, others = stems(item.text), stems(other.text)
    same = len(words & others) >= _SAME_WORDS * max(1, min(len(words), len(others)))
    return same and facts(item.text).values == facts(other.text).values
