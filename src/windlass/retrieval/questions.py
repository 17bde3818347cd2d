"""What a question asks for: its words by rarity, the names and numbers it insists on, and the kind of answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from windlass.retrieval.facts import Facts, facts
from windlass.retrieval.terms import Idf, content_terms, stem, terms, weights

Expected = Literal["person", "time", "duration", "number", "money", "place", "contact", "anything"]

MOST_WORDS = 64

_PATTERNS: tuple[tuple[Expected, str], ...] = (
    ("contact", r"\b(?:phone|telephone|e-?mail|fax|vhf|contact (?:number|address)|website|url)\b"),
    (
        "money",
        r"\bhow (?:much (?:does|do|is|are|will|would|must|did)\b.*\b(?:cost|pay|charge\w*|fees?|price\w*|paid)"
        r"|expensive)\b|\b(?:what|which)\b[^?]*\b(?:fees?|costs?|prices?|tariffs?|charges?|fines?|deposit|salary)\b",
    ),
    (
        "duration",
        r"\bhow (?:long|often|soon|early|late|old)\b"
        r"|\bhow (?:many|much) (?:days?|hours?|minutes?|weeks?|months?|years?|notice|time)\b",
    ),
    (
        "time",
        r"\bwhen\b|\b(?:what|which) (?:time|date|day|year|month|hours?)\b|\buntil when\b|\bdeadline\b"
        r"|\b(?:opening|closing|office|working) (?:hours|times?)\b",
    ),
    (
        "number",
        r"\bhow (?:many|much|deep|high|wide|far|fast|large|big|tall|heavy|hot|cold|strong)\b"
        r"|\b(?:what|which)\b[^?]*\b(?:number|depth|length|width|height|weight|speed|limit|rate|percentage|amount|"
        r"size|capacity|draught|draft|tonnage|maximum|minimum|total|average|temperature|distance|version|code)\b",
    ),
    ("person", r"\bwho(?:m|se)?\b|\bwhich (?:person|officer|manager|team|department|company)\b"),
    ("place", r"\bwhere\b|\b(?:what|which) (?:place|room|building|address|location|city|street)\b"),
)
_EXPECTED = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _PATTERNS)

_TIME = re.compile(
    r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b|\b(?:january|february|march|april|may|june|july|august|"
    r"september|october|november|december)\b|\b\d{1,2}[:.]\d\d\b|\b\d{1,2}\s*[ap]\.?m\b|\b(?:1[5-9]|20|21)\d\d\b|"
    r"\b\d{4}-\d\d-\d\d\b|\b(?:daily|weekly|monthly|annually|noon|midnight|sunrise|sunset)\b",
    re.IGNORECASE,
)
_DURATION = re.compile(
    r"\b(?:seconds?|minutes?|hours?|days?|weeks?|months?|quarters?|years?|daily|weekly|monthly|quarterly|yearly|"
    r"annually|hourly|twice|once|permanently|immediately)\b",
    re.IGNORECASE,
)
_ABOUT_TABLES = re.compile(r"\b(?:columns?|tables?|fields?|rows?|datasets?|spreadsheets?|csv)\b", re.IGNORECASE)
_LENGTH = re.compile(r"\d\s?(?:m|km|cm|mm|ft|metres?|meters?|kilomet\w+|miles?|nm|feet|inch\w*)\b", re.IGNORECASE)
_MONEY = re.compile(
    r"[€$£¥]|\b[A-Z]{3}\s?\d|\d\s?(?:[A-Z]{3}\b|euros?\b|dollars?\b|pounds?\b|cents?\b|per ?cent|%)|\bfree\b"
)
_CONTACT = re.compile(r"@\w|\+?\d[\d ()/-]{4,}\d|https?://|www\.|\bchannel\s+\d", re.IGNORECASE)
_PERSON = re.compile(
    r"\b(?:\w*(?:master|manager|officer|director|chief|captain|clerk|engineer|supervisor|owner|team|staff|office|"
    r"department|authority|committee|board|president|secretary|agent|inspector|coordinator|administrator))s?\b",
    re.IGNORECASE,
)
_PLACE = re.compile(
    r"\b(?:street|road|avenue|quay|building|room|floor|hall|gate|office|desk|city|town|country|north|south|east|west|"
    r"at|in|near|next to|behind|opposite)\b",
    re.IGNORECASE,
)

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
        expected: The kind of thing that answers it.
    """

    text: str
    words: dict[str, float]
    hard: Facts
    expected: Expected

    @classmethod
    def parse(cls, text: str, idf: Idf) -> Question:
        """Take `text` apart; a text without any content word gives no words."""
        found = weights(content_terms(text), idf)
        if len(found) > MOST_WORDS:
            found = dict(sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS])
        head = text[:2000]
        expected: Expected = next((kind for kind, pattern in _EXPECTED if pattern.search(head)), "anything")
        return cls(text, found, facts(head), expected)

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
        """Share of the question's names, numbers and dates that `text` does not hold; 0 when it states none."""
        total = len(self.hard.names) + len(self.hard.values) + len(self.hard.dates)
        if not total:
            return 0.0
        held, present = facts(text), {term.stem for term in terms(text)}
        numbers = held.values | present
        absent = sum(name not in present for name in self.hard.names)
        absent += sum(value not in numbers for value in self.hard.values)
        absent += sum(not any(readings & others for others in held.dates) for readings in self.hard.dates)
        return absent / total

    @property
    def is_about_tables(self) -> bool:
        """Whether the question asks what a table holds rather than for something in it."""
        return _ABOUT_TABLES.search(self.text) is not None

    def is_answered_in_kind(self, text: str) -> bool:
        """Whether `text` carries the expected kind of thing, over and above what the question itself says."""
        if self.expected == "anything":
            return True
        found = facts(text[:2000])
        new_values = found.values - self.hard.values
        if self.expected == "number":
            return bool(new_values)
        if self.expected == "money":
            return "free of charge" in text.casefold() or (bool(new_values) and _MONEY.search(text) is not None)
        if self.expected == "duration":
            measured = bool(new_values) and _LENGTH.search(text) is not None
            return measured or _DURATION.search(text) is not None or bool(found.times or found.dates)
        if self.expected == "time":
            return bool(found.times - self.hard.times or found.dates) or _TIME.search(text) is not None
        if self.expected == "contact":
            return _CONTACT.search(text) is not None
        if self.expected == "person":
            return bool(found.names - self.hard.names) or _PERSON.search(text) is not None
        return bool(found.names - self.hard.names) or _PLACE.search(text) is not None
