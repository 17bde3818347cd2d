# ruff: noqa: RUF001 - typographic quotes, dashes and stops are what texts are made of
"""The hard facts of a sentence: numbers, dates, times, amounts and names.

A claim may be put in other words than its source, but these must agree to the letter (or the digit): they are what
small models get wrong and what a reader would act on. Written forms are brought to one: `1,200` and `1200`,
`3 May 2024` and `2024-05-03`, `6 pm` and `18:00`, `twelve` and `12`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache

from windlass.retrieval.terms import STOP_WORDS, stem, terms

Date = tuple[int | None, int | None, int | None]
"""Year, month, day; None where it is not said."""

_MONTHS = {
    name: number
    for number, names in enumerate(
        (
            "january jan",
            "february feb",
            "march mar",
            "april apr",
            "may",
            "june jun",
            "july jul",
            "august aug",
            "september sept sep",
            "october oct",
            "november nov",
            "december dec",
        ),
        1,
    )
    for name in names.split()
}
_MONTH = r"(?P<month>" + "|".join(sorted(_MONTHS, key=len, reverse=True)) + r")\b\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>(?:1[5-9]|20|21)\d\d)"
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?<![\d-])(?P<year>\d{4})-(?P<month>\d{2})-(?P<day>\d{2})(?![\d-])",
        rf"\b{_DAY}\s+(?:of\s+)?{_MONTH},?\s+{_YEAR}\b",
        rf"\b{_MONTH}\s+{_DAY},?\s+{_YEAR}\b",
        rf"\b{_MONTH},?\s+{_YEAR}\b",
        rf"\b{_DAY}\s+(?:of\s+)?{_MONTH}(?![a-z])",
        rf"\b{_MONTH}\s+{_DAY}(?![\d:.])",
        r"(?<![\d./])(?P<a>\d{1,2})(?P<separator>[./])(?P<b>\d{1,2})(?P=separator)(?P<year>\d{4})(?![\d/])",
    )
)
_TIMES = (
    re.compile(r"(?<![\d:])(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?::\d\d)?(?:\s*(?P<half>[ap])\.?m\b\.?)?", re.I),
    re.compile(r"(?<![\d:.,])(?P<hour>\d{1,2})(?:\.(?P<minute>[0-5]\d))?\s*(?P<half>[ap])\.?m\b\.?", re.I),
    re.compile(r"(?<![\d:.,])(?P<hour>[01]\d|2[0-4])(?P<minute>[0-5]\d)\s*(?:hrs|hours|h|utc|lt|gmt)\b", re.I),
)
_NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:[ \u00a0\u202f]\d{3}(?!\d)|[.,]\d+)*(?![\d])", re.UNICODE)
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_SCALE = re.compile(r"\s+(thousand|million|billion)\b", re.IGNORECASE)
_SMALL = {
    word: number
    for number, word in enumerate(
        "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen".split(),
        2,
    )
}
_TENS = {word: 10 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_UNITS = ("one", *list(_SMALL)[:8])
_NUMBER_WORD = re.compile(
    rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?:[- ](?P<unit>{'|'.join(_UNITS)}))?|(?P<small>{'|'.join(_SMALL)}))\b",
    re.IGNORECASE,
)
_CURRENCIES = {"€": "eur", "$": "usd", "£": "gbp", "¥": "jpy"}
_IDENTIFIER = re.compile(r"[^\W_]*(?:\d[^\W\d_]|[^\W\d_]\d)[^\W_]*")
_NAME_WORD = re.compile(r"[^\W\d_][\w'’-]*")
_SENTENCE_START = re.compile(r"(?:^|[.!?:;]\s+|[\n\r]\s*|[\"“‘(\[]\s*|^[-*•]\s*)$")
_NEGATION = re.compile(r"\b(?:not|no|never|without|nor|neither|none|cannot|\w+n['’]t)\b", re.IGNORECASE)
_PLAIN_OPENERS = STOP_WORDS | frozenset(
    "according additionally also based both currently finally first however indeed instead it meanwhile moreover no "
    "note overall since so still therefore thus whether yes although answer question passage passages text document "
    "documents file files context information following sure certainly every anyone everyone".split()
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What must agree between a claim and its source.

    Attributes:
        numbers: Canonical decimals, with the stems of the words before and after each (None at an edge).
        dates: Every date; those of unclear order (03/05/2024) give both readings.
        times: Minutes of the day.
        names: Stems of names and identifiers.
        currencies: ISO codes of currency signs.
        negated: Whether the sentence denies something.
    """

    numbers: tuple[tuple[str, str | None, str | None], ...]
    dates: tuple[frozenset[Date], ...]
    times: frozenset[int]
    names: frozenset[str]
    currencies: frozenset[str]
    negated: bool

    @property
    def values(self) -> frozenset[str]:
        """The numbers alone."""
        return frozenset(number for number, _, _ in self.numbers)


@lru_cache(maxsize=8192)
def facts(text: str) -> Facts:
    """The facts of one sentence (or of a short span).

    Example:
        >>> found = facts("Ms Ruiz pays EUR 1,200.50 by 3 May 2024.")
        >>> sorted(found.values), sorted(found.names)
        (['1200.5'], ['eur', 'ms', 'ruiz'])
    """
    dated = dates_of(text)
    covered = [(start, end) for start, end, _ in dated]
    times = set()
    for pattern in _TIMES:
        for match in pattern.finditer(text):
            minute = _minute_of_day(match)
            if minute is not None and _is_free(covered, match.start(), match.end()):
                covered.append(match.span())
                times.add(minute)
    return Facts(
        numbers=tuple(_numbers(text, covered)),
        dates=tuple(readings for _, _, readings in dated),
        times=frozenset(times),
        names=frozenset(_names(text, covered)),
        currencies=frozenset(code for sign, code in _CURRENCIES.items() if sign in text),
        negated=_NEGATION.search(text) is not None,
    )


def dates_of(text: str) -> list[tuple[int, int, frozenset[Date]]]:
    """Every date of `text`: its span and its possible readings. A year alone is a number, not a date."""
    found: list[tuple[int, int, frozenset[Date]]] = []
    for pattern in _DATES:
        for match in pattern.finditer(text):
            readings = _readings(match)
            if readings and _is_free([(start, end) for start, end, _ in found], match.start(), match.end()):
                found.append((match.start(), match.end(), readings))
    return found


def canonical_number(written: str) -> str | None:
    """`written` as a plain decimal: `1,200.50` -> `1200.5`, `0.70` -> `0.7`, `3,5` -> `3.5`; None when it is none."""
    plain = re.sub(r"[\s\u00a0\u202f]", "", written).replace("−", "-").lstrip("+")
    if re.fullmatch(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?", plain):
        plain = plain.replace(",", "")
    elif re.fullmatch(r"-?\d{1,3}(?:\.\d{3})+,\d+", plain):
        plain = plain.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"-?\d+,\d+", plain):
        plain = plain.replace(",", ".")
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return None
    text = format(value, "f")
    return (text.rstrip("0").rstrip(".") if "." in text else text) or "0"


def holds_date(held: Facts, readings: frozenset[Date]) -> bool:
    """Whether a text holds a date, in one of its readings, at least as exactly: "March 2025" stands in 4 March 2025."""
    return any(
        all(a is None or a == b for a, b in zip(said, other, strict=True))
        for said in readings
        for others in held.dates
        for other in others
    )


def month_stems(month: int) -> set[str]:
    """The names of a month as `terms` gives them."""
    return {stem(name) for name, number in _MONTHS.items() if number == month}


def _numbers(text: str, covered: list[tuple[int, int]]) -> Iterator[tuple[str, str | None, str | None]]:
    found: list[tuple[int, int, str]] = []
    for match in _NUMBER.finditer(text):
        start, end = match.span()
        if text[start] in "-+−" and start and not text[start - 1].isspace():
            start += 1  # a hyphen between words or the dash of a range, not a sign
        number = canonical_number(text[start:end])
        if number is None or not _is_free(covered, start, end) or _is_inside_word(text, start, end):
            continue
        scale = _SCALE.match(text, end)
        if scale:
            number = canonical_number(str(Decimal(number) * _SCALES[scale.group(1).casefold()])) or number
        found.append((start, scale.end() if scale else end, number))
    for match in _NUMBER_WORD.finditer(text):
        small = match["small"] or match["unit"]
        unit = _SMALL.get(small.casefold(), 1) if small else 0
        found.append((match.start(), match.end(), str(_TENS.get((match["tens"] or "").casefold(), 0) + unit)))
    for start, end, number in sorted(found):
        yield number, _neighbour(text[max(0, start - 40) : start], -1), _neighbour(text[end : end + 40], 0)


def _is_inside_word(text: str, start: int, end: int) -> bool:
    """`B4` and `H2O` are names; `12m` and `5km` are a number and its unit."""
    before = start > 0 and (text[start - 1].isalnum() or text[start - 1] == "_")
    return before or bool(re.match(r"[^\W\d_]*\d", text[end:]) and text[end : end + 1].isalpha())


def _neighbour(text: str, index: int) -> str | None:
    if re.search(r"[.;:!?\n]", text.strip(" \t") if index == 0 else text):
        text = re.split(r"[.;:!?\n]", text)[index]
    words = terms(text)
    return words[index].stem if words and words[index].written.casefold() not in STOP_WORDS else None


def _names(text: str, covered: list[tuple[int, int]]) -> Iterator[str]:
    for match in _IDENTIFIER.finditer(text):
        if _is_free(covered, match.start(), match.end()) and not re.fullmatch(r"\d+[^\W\d_]{1,3}", match.group()):
            yield stem(match.group())
    words = [m for m in _NAME_WORD.finditer(text) if _is_free(covered, m.start(), m.end())]
    for position, match in enumerate(words):
        word = match.group()
        if not word[0].isupper() or word.casefold() in STOP_WORDS or word.casefold() in ("am", "pm"):
            continue
        opens = _SENTENCE_START.search(text, 0, match.start()) is not None
        follows_name = position + 1 < len(words) and words[position + 1].group()[0].isupper()
        if opens and not follows_name and word.casefold() in _PLAIN_OPENERS:
            continue
        yield from (term.stem for term in terms(word) if term.written.casefold() not in STOP_WORDS)


def _is_free(covered: list[tuple[int, int]], start: int, end: int) -> bool:
    return all(end <= taken_start or start >= taken_end for taken_start, taken_end in covered)


def _readings(match: re.Match[str]) -> frozenset[Date]:
    parts = match.groupdict()
    year = int(parts["year"]) if parts.get("year") else None
    pairs: set[tuple[int, int | None]]
    if parts.get("a"):
        first, second = int(parts["a"]), int(parts["b"])
        pairs = {(second, first)} if parts["separator"] == "." else {(second, first), (first, second)}
    else:
        month = parts["month"].casefold()
        number = int(month) if month.isdigit() else _MONTHS[month]
        pairs = {(number, int(parts["day"]) if parts.get("day") else None)}
    return frozenset((year, month, day) for month, day in pairs if 1 <= month <= 12 and (day is None or 1 <= day <= 31))


def _minute_of_day(match: re.Match[str]) -> int | None:
    hour, minute, half = int(match["hour"]), int(match["minute"] or 0), None
    if "half" in match.re.groupindex and match["half"]:
        half = match["half"].casefold()
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12 + (12 if half == "p" else 0)
    return hour * 60 + minute if hour <= 24 else None
