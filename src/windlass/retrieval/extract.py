"""Answers made of the files' own sentences.

Every quotable span of the found passages is scored by how much of the question it and what it leans on cover, by
cosine, by whether it holds the kind of thing that was asked for, and by the rank of its passage. No model writes, so
nothing can be invented; what remains to be judged is whether the best span answers at all (see `confidence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from windlass.retrieval.candidates import Candidate, DocumentText, find_candidates
from windlass.retrieval.facts import facts
from windlass.retrieval.links import bears_name
from windlass.retrieval.questions import Question
from windlass.retrieval.support import SentenceEncoder
from windlass.retrieval.terms import stems
from windlass.retrieval.types import Hit

MOST_SENTENCES = 3
MOST_ENCODED = 20
_MOST_LED_TO = 2

# What a word of the question is worth by where it stands.
_IN_LEAD, _IN_CONTEXT, _IN_BEFORE, _IN_ORIGIN = 0.9, 0.7, 0.5, 0.5
_IN_PASSAGE = 0.25

_SECOND_SHARE = 0.85
_SAME_WORDS = 0.8
_MOST_COLUMNS = 12
# What a whole row is worth as an answer when no column of it is asked for.
_WHOLE_ROW = 0.2


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with the parts of its score.

    Attributes:
        candidate: The span.
        text: What is shown.
        coverage: Credited share of the question's words, in [0, 1].
        cosine: Of question and span, None without an encoder.
        in_kind: How well it holds the kind of thing asked for, in [0, 1].
        missing: Share of the question's names and numbers that neither it nor what it leans on holds.
    """

    candidate: Candidate
    text: str
    coverage: float
    cosine: float | None
    in_kind: float
    missing: float

    @property
    def embedded_text(self) -> str:
        """What the encoder sees: the span under its headings."""
        return f"{self.candidate.passage.title}\n{self.candidate.lead} {self.candidate.text}".strip()

    @property
    def score(self) -> float:
        """What candidates are ordered by."""
        prior = 1.0 / (1.0 + 0.25 * self.candidate.rank)
        if self.cosine is None:
            meaning = 0.75 * self.coverage
        else:
            meaning = 0.30 * self.coverage + 0.45 * max(0.0, self.cosine)
        return meaning + 0.10 * self.in_kind + 0.05 * prior - 0.12 * self.missing


def rank_candidates(
    question: Question, hits: Sequence[Hit], document_text: DocumentText, encoder: SentenceEncoder | None
) -> list[Scored]:
    """All quotable spans of `hits`, best first. Without an encoder the words decide alone."""
    found = find_candidates(hits, document_text)
    passages = {hit.passage.id: stems(hit.passage.text) for hit in hits}
    texts = {hit.passage.id: f"{hit.passage.title} {hit.passage.text}" for hit in hits}
    rough: list[Scored] = []
    for candidate in found:
        if not _says_something(question, candidate):
            continue
        via = candidate.hit.via
        origin = texts.get(via.origin, "") if via else ""
        coverage = _coverage(question, candidate, passages[candidate.passage.id], stems(origin))
        text, is_asked = _facts_shown(question, candidate) if candidate.facts else (candidate.text, True)
        in_kind = question.carried_by(text, f"{candidate.passage.title} {candidate.lead}") if is_asked else _WHOLE_ROW
        near = f"{candidate.lead} {candidate.context} {candidate.before} {candidate.text} {origin}"
        missing = question.missing(near)
        if missing and candidate.row is None:  # what the passage says elsewhere may still be what the span is about
            missing = 0.3 * missing + 0.7 * question.missing(f"{near} {candidate.passage.text}")
        rough.append(Scored(candidate, text, coverage, None, in_kind, missing))
    rough.sort(key=lambda item: -item.score)
    led_to = [item for item in rough[MOST_ENCODED:] if item.candidate.hit.via and item.candidate.row is not None]
    rough = rough[:MOST_ENCODED] + led_to[:_MOST_LED_TO]
    cosines = _cosines(question, rough, encoder)
    scored = [replace(item, cosine=cosine) for item, cosine in zip(rough, cosines, strict=True)]
    scored.sort(key=lambda item: (-item.score, item.candidate.rank, item.candidate.start))
    return scored


def choose(question: Question, scored: Sequence[Scored]) -> list[Scored]:
    """The one to three spans to quote: the best, and those nearly as good that say something else.

    A sentence is followed by the row about whom or what it names, when that row was found through the name.
    """
    chosen: list[Scored] = []
    for item in scored:
        if len(chosen) == MOST_SENTENCES or (chosen and item.score < _SECOND_SHARE * chosen[0].score):
            break
        if not any(_repeats(item, other) for other in chosen):
            chosen.append(item)
    for item in chosen:
        row = next((other for other in scored if _is_named_by(item, other) and other not in chosen), None)
        if row is not None:
            position = chosen.index(item) + 1
            return [*chosen[:position], row, *chosen[position:]][:MOST_SENTENCES]
    return chosen


def _is_named_by(item: Scored, row: Scored) -> bool:
    via = row.candidate.hit.via
    if via is None or row.candidate.row is None:
        return False
    return via.file == item.candidate.passage.source and via.name in item.text


def _coverage(question: Question, candidate: Candidate, passage: set[str], origin: set[str]) -> float:
    own = stems(candidate.text)
    best = question.credit(own)
    for words, worth in (
        (stems(candidate.lead), _IN_LEAD),
        (stems(candidate.context), _IN_CONTEXT),
        (stems(candidate.before), _IN_BEFORE),
        (origin, _IN_ORIGIN),
        (passage if not candidate.facts else set(), _IN_PASSAGE),
    ):
        for word, credit in question.credit(words).items():
            best[word] = max(best[word], credit * worth)
    return question.coverage(best)


def _cosines(question: Question, scored: Sequence[Scored], encoder: SentenceEncoder | None) -> list[float] | list[None]:
    if encoder is None or not scored:
        return [None] * len(scored)
    vectors = encoder.encode_passages([item.embedded_text for item in scored])
    asked = encoder.encode_queries([question.text])[0]
    return [float(value) for value in vectors @ asked]


def _says_something(question: Question, candidate: Candidate) -> bool:
    """Leaves out what cannot answer.

    A table row that holds no value of the question is about something else; a heading or a fragment that only
    repeats the question says nothing; a table's description answers only questions about tables.
    """
    if candidate.facts:
        return candidate.hit.via is not None or any(_matches_value(question, value) for _, value in candidate.facts)
    if candidate.passage.kind == "schema":
        return question.is_about_tables
    new = stems(candidate.text) - set(question.words) - stems(candidate.context)
    said = [word for word in stems(candidate.text) if not word[0].isdigit()]
    return bool(new) and (len(said) > 1 or bool(candidate.lead))


def _matches_value(question: Question, value: str) -> bool:
    """Whether the question names `value`: all of its words, or most of a name of several words ("Smith Ltd.")."""
    words = stems(value)
    matched = len(words & set(question.words))
    return bool(words) and (matched == len(words) or (matched >= 2 and matched >= 0.6 * len(words)))


def _facts_shown(question: Question, candidate: Candidate) -> tuple[str, bool]:
    """The values that the question or the link names and the columns it asks for, or the whole row if none is clear.

    The second value tells whether it asks for a column.
    """
    via = candidate.hit.via
    keys = [
        fact
        for fact in candidate.facts
        if _matches_value(question, fact[1]) or (via is not None and bears_name(f"{fact[0]}: {fact[1]}", via.name))
    ]
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
    text = "; ".join(f"{name}: {value}" if name else value for name, value in chosen[:_MOST_COLUMNS])
    return text, bool(asked)


def _repeats(item: Scored, other: Scored) -> bool:
    """Whether quoting both would say the same twice: overlapping spans, or the same words in two files."""
    a, b = item.candidate, other.candidate
    if a.passage.doc_id == b.passage.doc_id and a.start < b.end and b.start < a.end:
        return True
    words, others = stems(item.text), stems(other.text)
    same = len(words & others) >= _SAME_WORDS * max(1, min(len(words), len(others)))
    return same and facts(item.text).values == facts(other.text).values
