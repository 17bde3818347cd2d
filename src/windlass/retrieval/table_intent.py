"""What a question wants from a table, read from its words alone: count, sum, average, extreme, ranking or look-up."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from windlass.retrieval.facts import canonical_number
from windlass.retrieval.terms import Term, stem, terms

Measure = Literal["count", "distinct", "sum", "average", "median", "maximum", "minimum", "top", "lookup"]
Comparison = Literal[">", ">=", "<", "<=", "="]

# Adjectives of ranking, the column names that they speak of, and whether the most of it is meant.
SUPERLATIVES: dict[str, tuple[str, bool]] = {
    "longest": ("length loa duration", True), "shortest": ("length loa duration height", False),
    "deepest": ("depth draught draft", True), "shallowest": ("depth draught draft", False),
    "widest": ("width beam breadth", True), "narrowest": ("width beam breadth", False),
    "tallest": ("height", True), "heaviest": ("weight mass tonnage", True), "lightest": ("weight mass", False),
    "fastest": ("speed", True), "slowest": ("speed", False), "oldest": ("year built born date planted age", False),
    "newest": ("year built date", True), "youngest": ("year born built age", True),
    "cheapest": ("price cost fee rate amount", False), "dearest": ("price cost fee rate amount", True),
    "costliest": ("price cost fee rate amount", True), "latest": ("date time day", True),
    "earliest": ("date time day", False), "busiest": ("", True),
}  # fmt: skip
_MOST = re.compile(r"\b(?:largest|biggest|highest|greatest|maximum|max|most|top)\b", re.IGNORECASE)
_LEAST = re.compile(r"\b(?:smallest|lowest|minimum|min|least|fewest)\b", re.IGNORECASE)
_COMPARATIVES = {
    "longer": "length loa duration", "shorter": "length loa duration height", "deeper": "depth draught draft",
    "shallower": "depth draught draft", "wider": "width beam breadth", "taller": "height", "higher": "height",
    "heavier": "weight mass tonnage", "faster": "speed", "slower": "speed", "older": "", "cheaper": "price cost fee",
}  # fmt: skip
_LESS = frozenset("shorter shallower slower cheaper less fewer under below lower smaller".split())

_COUNT = re.compile(r"\bhow many\b|\b(?:the )?(?:total )?(?:number|count) of\b", re.IGNORECASE)
_DISTINCT = re.compile(r"\b(?:different|distinct|unique)\b", re.IGNORECASE)
_SUM = re.compile(r"\b(?:total|sum|combined|altogether|in all|overall)\b", re.IGNORECASE)
_AVERAGE = re.compile(r"\b(?:average|mean|avg|on average)\b", re.IGNORECASE)
_MEDIAN = re.compile(r"\bmedian\b", re.IGNORECASE)
_NUMBER = r"(?P<number>\d+(?:[ ,.]\d+)*)"
_COMPARED = re.compile(
    rf"\b(?P<words>(?:(?:more|greater|larger|bigger|less|fewer|smaller|{'|'.join(_COMPARATIVES)}) than|at least|"
    rf"at most|over|above|under|below|exceeding|no more than|up to))\s+(?:[€$£]\s?|EUR\s|USD\s)?{_NUMBER}"
    r"(?P<unit>\s?(?:%|[^\W\d_]{1,7}\b))?",
    re.IGNORECASE,
)
_TOP = re.compile(
    r"\b(?:top|the)\s+(?P<number>\d{1,3}|two|three|four|five|ten)\s+(?=\w*(?:est|most|least|top)\b|\w)", re.IGNORECASE
)
_NUMBER_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "ten": 10}
UNITS = frozenset(
    "m km cm mm kg t g l eur usd gbp euro euros dollar dollars metre metres meter meters tonne tonnes ton tons hour "
    "hours day days minute minutes year years percent knot knots kn feet ft litre litres teu".split()
)
FILLER = frozenset(
    stem(word)
    for word in "file files table tables data dataset list listed listing record records recorded row rows entry "
    "entries line lines registered register value values column columns exist overall total number count altogether "
    "contain contains contained hold holds item items spreadsheet sheet database csv parquet currently name named "
    "called id amount size measured known large big long high old deep wide tall fast heavy made make fly among belong "
    "appear occur happen".split()
)


# What these rules cannot express; the words are too small to be missed as unexplained.
_BEYOND = re.compile(
    r"\b(?:why|how (?:do|does|can|should|to|is|are)|not|no|never|without|except|excluding|other than|neither|each|"
    r"every|per|(?:this|last|next|past) (?:year|month|week|day|quarter)|today|yesterday|now|or)\b|n't\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Comparing:
    """A bound such as "longer than 200 m". `hints` are column words that the comparative implies."""

    comparison: Comparison
    number: str
    hints: frozenset[str]


@dataclass(frozen=True, slots=True)
class Intent:
    """A question as a table would hear it.

    Attributes:
        measure: What is to be computed.
        hints: Column words (stems) that an adjective such as "longest" implies.
        limit: How many rows a ranking asks for.
        bounds: Comparisons with a number.
        words: The content words, which the table must explain by its name, a column, or a value; those in `FILLER`
            need no explanation but may find one.
        is_which: The question asks for a thing ("which vessel"), not for a figure.
    """

    measure: Measure
    hints: frozenset[str]
    limit: int
    bounds: tuple[Comparing, ...]
    words: tuple[Term, ...]
    is_which: bool
    descending: bool = True
    text: str = field(default="", repr=False)


def read_intent(question: str, stop_words: frozenset[str]) -> Intent | None:
    """The intent of a question, None when it is none that a table could answer (why, how to, yes or no)."""
    if len(question) > 500 or not re.search(
        r"\b(?:what|which|who|whose|how (?:many|much|\w+)|when|where)\b|\bcount\b|\bof\b", question, re.I
    ):
        return None
    if _BEYOND.search(question.replace("\u2019", "'")):
        return None
    used: list[tuple[int, int]] = []
    bounds = tuple(_bounds(question, used))
    is_which = re.search(r"\b(?:which|who|whose|what are)\b", question, re.IGNORECASE) is not None
    measure, hints, limit, descending = _measure(question, used, is_which)
    words = tuple(
        term
        for term in terms(question)
        if term.written.casefold() not in stop_words
        and not any(start < term.end and term.start < end for start, end in used)
    )
    return Intent(measure, hints, limit, bounds, words, is_which, descending, question)


def _measure(question: str, used: list[tuple[int, int]], is_which: bool) -> tuple[Measure, frozenset[str], int, bool]:
    superlative = next((term for term in terms(question) if term.written.casefold() in SUPERLATIVES), None)
    counted = _COUNT.search(question)
    most, least = _MOST.search(question), _LEAST.search(question)
    for pattern, measure in ((_AVERAGE, "average"), (_MEDIAN, "median")):
        found = pattern.search(question)
        if found:
            used.append(found.span())
            return measure, frozenset(), 1, True  # type: ignore[return-value]
    if counted:
        used.append(counted.span())
        distinct = _DISTINCT.search(question)
        if distinct:
            used.append(distinct.span())
            return "distinct", frozenset(), 1, True
        total = _SUM.search(question, counted.end())
        if total:
            used.append(total.span())
            return "sum", frozenset(), 1, True
        return "count", frozenset(), 1, True
    limit = 1
    top = _TOP.search(question)
    if top and (superlative or most or least):
        limit = _NUMBER_WORDS.get(top["number"].casefold()) or int(top["number"])
        used.append(top.span())
    if superlative:
        hints, descending = SUPERLATIVES[superlative.written.casefold()]
        used.append((superlative.start, superlative.end))
        return "top", frozenset(stem(word) for word in hints.split()), limit, descending
    extreme = most or least
    if extreme:
        used.append(extreme.span())
        if is_which or limit > 1:
            return "top", frozenset(), limit, extreme is most
        return ("maximum" if extreme is most else "minimum"), frozenset(), 1, extreme is most
    total = _SUM.search(question)
    if total:
        used.append(total.span())
        return "sum", frozenset(), 1, True
    return "lookup", frozenset(), 1, True


def _bounds(question: str, used: list[tuple[int, int]]) -> list[Comparing]:
    bounds = []
    for match in _COMPARED.finditer(question):
        number = canonical_number(match["number"])
        if number is None:
            continue
        words = match["words"].casefold().split()
        end = match.end("number")
        if match["unit"] and match["unit"].strip().casefold() in UNITS | {"%"}:
            end = match.end("unit")
        used.append((match.start(), end))
        less = words[0] in _LESS or words[:2] in (["at", "most"], ["no", "more"], ["up", "to"])
        closed = words[0] in ("at", "no", "up")
        comparison: Comparison = ("<=" if closed else "<") if less else (">=" if closed else ">")
        hints = frozenset(stem(word) for word in _COMPARATIVES.get(words[0], "").split())
        bounds.append(Comparing(comparison, number, hints))
    return bounds
