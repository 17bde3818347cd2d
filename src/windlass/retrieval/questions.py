"""What a question asks for: its words by rarity, the names and numbers it insists on, and the kind of answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from windlass.retrieval.expected import Kind, carries, expected_kind
from windlass.retrieval.facts import Facts, facts, holds_date
from windlass.retrieval.terms import Idf, content_terms, stem, terms, weights

MOST_WORDS = 64

_ABOUT_TABLES = re.compile(r"\b(?:columns?|tables?|fields?|rows?|datasets?|spreadsheets?|csv)\b", re.IGNORECASE)

ALTERNATIVES: dict[str, frozenset[str]] = {
    stem(word): frozenset(stem(other) for other in others.split())
    for word, others in {
        "deep": "depth draught", "long": "length duration", "wide": "width", "high": "height", "tall": "height",
        "heavy": "weight", "fast": "speed", "far": "distance", "old": "age", "hot": "temperature", "big": "size",
        "large": "size", "often": "frequency every daily weekly monthly", "expensive": "price cost",
        "cost": "price fee charge tariff rate", "price": "cost fee charge tariff rate", "pay": "fee charge price cost",
        "fee": "charge tariff price cost", "charge": "fee tariff price", "phone": "telephone tel call",
        "telephone": "phone tel call", "email": "mail", "boss": "manager head", "job": "position role",
        "buy": "purchase", "start": "begin open", "begin": "start", "end": "finish close", "allowed": "permitted may",
        "permitted": "allowed", "forbidden": "prohibited", "prohibited": "forbidden", "maximum": "max most limit",
        "minimum": "min least", "biggest": "largest", "responsible": "charge responsibility", "written": "author wrote",
        "rules": "regulations", "hours": "open", "happens": "must", "document": "form certificate",
    }.items()
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """A question, taken apart.

    Attributes:
        text: As asked.
        words: Stem -> rarity of its content words, at most `MOST_WORDS`, the rarest ones of a longer question.
        hard: The facts it states; an answer about something else is no answer.
        kind: The kind of thing that answers it, None when it does not show.
    """

    text: str
    words: dict[str, float]
    hard: Facts
    kind: Kind | None

    @classmethod
    def parse(cls, text: str, idf: Idf) -> Question:
        """Take `text` apart; a text without any content word gives no words."""
        found = weights(content_terms(text), idf)
        if len(found) > MOST_WORDS:
            found = dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS])
        head = text[:2000]
        return cls(text, found, facts(head), expected_kind(text))

    def credit(self, present: set[str]) -> dict[str, float]:
        """How far each word of the question stands in `present`: 1 itself, 0.8 a near synonym, else 0."""
        return {
            word: 1.0 if word in present else 0.8 if ALTERNATIVES.get(word, frozenset()) & present else 0.0
            for word in self.words
        }

    def coverage(self, credits: dict[str, float]) -> float:
        """The credited share of the question's weight, in [0, 1]."""
        total = sum(self.words.values())
        return sum(weight * credits[word] for word, weight in self.words.items()) / total if total else 0.0

    def missing(self, text: str) -> float:
        """The largest share of the question's names, its numbers, or its dates that `text` does not hold."""
        hard = self.hard
        if not (hard.names or hard.numbers or hard.dates):
            return 0.0
        held, present = facts(text), {term.stem for term in terms(text)}
        return max(
            _share(name not in present for name in hard.names),
            _share(not _holds_number(held, present, number, before) for number, before, _ in hard.numbers),
            _share(not holds_date(held, readings) for readings in hard.dates),
        )

    @property
    def is_about_tables(self) -> bool:
        """Whether the question asks what a table holds rather than for something in it."""
        return _ABOUT_TABLES.search(self.text) is not None

    def carried_by(self, text: str, about: str = "") -> float:
        """How well `text` holds the kind of thing asked for: 0 to 1, 0.5 when the question does not show it."""
        return carries(self.kind, text, self.hard, about)


def _holds_number(held: Facts, present: set[str], number: str, before: str | None) -> bool:
    """Whether a text holds `number`; where it numbers things called `before` ("berth 4"), one of them must be it."""
    named = {value for value, word, _ in held.numbers if before is not None and word == before}
    return number in named if named else number in held.values or number in present


def _share(flags: Iterable[bool]) -> float:
    listed = list(flags)
    return sum(listed) / len(listed) if listed else 0.0
