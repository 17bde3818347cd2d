"""How well a span of a file carries a sentence.

Support is 0.5 x the idf-weighted share of the sentence's words that stand in the span + 0.5 x the cosine of the two
(words alone without an encoder), after the idea of ALCE (arXiv 2305.14627) that a citation is something to be
checked, with two differences: no second model judges, and hard facts are not a matter of degree. A number, date,
time or name of the sentence that the span does not hold makes its support zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.retrieval.facts import Date, Facts, facts, holds_date, month_stems
from windlass.retrieval.terms import Idf, content_terms, recall, terms, weights

THRESHOLD_WITH_COSINE = 0.6
THRESHOLD_WORDS_ALONE = 0.65

_HALVES = frozenset(("am", "pm"))
_ANAPHORA = frozenset("it he she they this these those that its his her their such both there".split())


class SentenceEncoder(Protocol):
    """What this module needs of `windlass.models.encoder.Encoder`."""

    def encode_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Normalised vectors of questions, float32 [n, dim]."""
        ...

    def encode_passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Normalised vectors of passages, float32 [n, dim]."""
        ...

    def encode_tokens(
        self, texts: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32] | None]:
        """Vectors of tokens, float32 [total, dim]; offsets int64 [n + 1]; attention float32 [total] or None."""
        ...


@dataclass(frozen=True, slots=True)
class Evidence:
    """A span that may be cited.

    Attributes:
        text: The span, verbatim.
        context: What the span leans on: its headings and file name. Names may come from here, values may not
            contradict it.
    """

    text: str
    context: str = ""


def threshold(has_cosine: bool) -> float:
    """The support from which a sentence counts as carried."""
    return THRESHOLD_WITH_COSINE if has_cosine else THRESHOLD_WORDS_ALONE


def support(claim: str, evidence: Evidence, idf: Idf, cosine: float | None = None) -> float:
    """Support of `claim` by `evidence`, in [0, 1]; 0 when a hard fact disagrees.

    Args:
        claim: One sentence.
        evidence: The span, and what it leans on.
        idf: Rarity of words.
        cosine: Cosine of the two texts, None without an encoder.
    """
    if contradiction(claim, evidence) is not None:
        return 0.0
    wanted = weights(content_terms(claim), idf)
    if not wanted:
        return 0.0
    # Figures, dates and times stand in the span already, if in another form: that was just checked.
    present = {term.stem for term in terms(evidence.text)} | {word for word in wanted if _is_checked(word, claim)}
    borrowed = {term.stem for term in terms(evidence.context)}
    words = recall(wanted, present) + 0.75 * recall(wanted, borrowed - present)
    score = words if cosine is None else 0.5 * words + 0.5 * float(cosine)
    return min(1.0, max(0.0, score))


def _is_checked(word: str, claim: str) -> bool:
    return any(letter.isdigit() for letter in word) or word in _HALVES or word in _month_names(facts(claim))


def contradiction(claim: str, evidence: Evidence) -> str | None:
    """The first hard fact of `claim` that `evidence` does not hold, for people; None when all stand."""
    said, cited = facts(claim), facts(evidence.text)
    context = facts(evidence.context)
    return (
        _missing_value(said, cited, context)
        or _missing_date(said, cited)
        or _missing_name(said, evidence, cited)
        or ("one denies what the other says" if said.negated != cited.negated else None)
    )


def leans_on_previous(sentence: str) -> bool:
    """Whether a sentence begins with a word that stands for something said before it."""
    first = next(iter(terms(sentence)), None)
    return first is not None and first.written.casefold() in _ANAPHORA


def _missing_value(said: Facts, cited: Facts, context: Facts) -> str | None:
    years = {str(date[0]) for readings in cited.dates for date in readings if date[0]}
    for number, before, after in said.numbers:
        if number not in cited.values | years and not _is_borrowed(number, before, cited, context):
            return f"the number {number} is not in the source"
        if _is_bound_elsewhere(number, before, after, cited):
            return f"the number {number} belongs to something else in the source"
    for minute in said.times - cited.times:
        return f"the time {minute // 60:02d}:{minute % 60:02d} is not in the source"
    for code in said.currencies - cited.currencies - cited.names:
        return f"the currency {code.upper()} is not in the source"
    return None


def _is_borrowed(number: str, before: str | None, cited: Facts, context: Facts) -> bool:
    """A heading may give the number in "Berth 4", unless the span itself speaks of another berth."""
    in_context = any(number == value and before == word for value, word, _ in context.numbers)
    return in_context and before is not None and all(word != before for _, word, _ in cited.numbers)


def _is_bound_elsewhere(number: str, before: str | None, after: str | None, cited: Facts) -> bool:
    """Whether the word beside the number stands beside other numbers only: 5 berths, but "5 cranes and 7 berths"."""
    holders_after = {value for value, _, word in cited.numbers if word == after} if after else set()
    holders_before = {value for value, word, _ in cited.numbers if word == before} if before else set()
    bound_after = bool(holders_after) and number not in holders_after
    bound_before = bool(holders_before) and number not in holders_before
    return (bound_after and number not in holders_before) or (bound_before and number not in holders_after)


def _missing_date(said: Facts, cited: Facts) -> str | None:
    for readings in said.dates:
        if not holds_date(cited, readings):
            return f"the date {_shown(next(iter(readings)))} is not in the source"
    return None


def _shown(date: Date) -> str:
    return "-".join("?" if part is None else f"{part:02d}" for part in date)


def _missing_name(said: Facts, evidence: Evidence, cited: Facts) -> str | None:
    present = {term.stem for term in terms(evidence.text)} | cited.names | _month_names(cited)
    missing = said.names - present - cited.currencies
    borrowed = {term.stem for term in terms(evidence.context)}
    if missing - borrowed:
        return f"{', '.join(sorted(missing - borrowed))} is not in the source"
    if missing and cited.names - said.names - borrowed:
        return f"the source names {', '.join(sorted(cited.names - said.names - borrowed))} instead"
    return None


def _month_names(cited: Facts) -> set[str]:
    return {word for readings in cited.dates for date in readings if date[1] for word in month_stems(date[1])}


def cosines(encoder: SentenceEncoder | None, claims: Sequence[str], spans: Sequence[str]) -> NDArray[np.float32] | None:
    """float32 [claims, spans], or None without an encoder."""
    if encoder is None or not claims or not spans:
        return None
    return encoder.encode_passages(list(claims)) @ encoder.encode_passages(list(spans)).T
