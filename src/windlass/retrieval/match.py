"""A question turned into a full-text query: its content words, and the phrases that must be meant together.

Any word may match. Some words only mean something side by side, and count extra where they stand so: codes
(`INV-2024-00603`), names (`Maren Kirstine`, `South Quay 2`), a thing and its number (`crane 4`), and dates, which are
searched in every common way of writing them (`24 December 2024` also finds `2024-12-24`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from windlass.retrieval.facts import facts
from windlass.retrieval.terms import is_stop_word

_MOST_WORDS = 48
_MOST_PHRASES = 16
_WORD = re.compile(r"[^\W_]+")
_CODE = re.compile(r"(?=[^\s]*\d)[^\W_]+(?:[-./:_][^\W_]+)+")
_NAME = re.compile(r"\b[^\W\d_a-z][\w']*(?: (?:[^\W\d_a-z][\w']*|\d+[A-Za-z]?\b))+")
_NUMBERED = re.compile(r"\b([^\W\d_]{3,}) (\d{1,4}[A-Za-z]?)\b")
_FIXED_DAYS = {
    "christmas eve": "24 December",
    "christmas day": "25 December",
    "boxing day": "26 December",
    "new year's eve": "31 December",
    "new year's day": "1 January",
}
_FIXED_DAY = re.compile("|".join(_FIXED_DAYS), re.IGNORECASE)
_MONTHS = "January February March April May June July August September October November December".split()


def match_expression(query: str, *, keep_stop_words: bool = False) -> str:
    """An FTS5 expression that matches any content word or phrase of `query`; empty when it has no word at all.

    Everything is quoted, so nothing in a question is ever an operator.

    Example:
        >>> match_expression('When is "Berth 4" dredged?')
        '"berth" OR "4" OR "dredged" OR "berth 4"'
    """
    words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query)))
    content = [word for word in words if not is_stop_word(word)]
    chosen = words if keep_stop_words or not content else content
    if len(chosen) > _MOST_WORDS:  # a pasted page: its longest words say most
        longest = set(sorted(chosen, key=lambda word: (-len(word), word))[:_MOST_WORDS])
        chosen = [word for word in chosen if word in longest]
    found = dict.fromkeys(" ".join(_WORD.findall(phrase.lower())) for phrase in phrases(query))
    several = [phrase for phrase in found if " " in phrase][:_MOST_PHRASES]
    return " OR ".join(f'"{text}"' for text in (*chosen, *several))


def phrases(query: str) -> Iterator[str]:
    """The word sequences of `query` that belong together, dates in all their forms first."""
    head = with_plain_dates(query[:2000])
    for readings in facts(head).dates:
        for year, month, day in sorted(readings, key=str):
            if month and day:
                yield from _written_dates(year, month, day)
    yield from _CODE.findall(head)
    for name in _NAME.findall(head):
        yield " ".join(_without_opener(name.split()))
    for thing, number in _NUMBERED.findall(head):
        if not is_stop_word(thing):
            yield f"{thing} {number}"


def with_plain_dates(text: str) -> str:
    """`text` with typewriter apostrophes and days of fixed date named by it: `Christmas Eve` -> `24 December`."""
    return _FIXED_DAY.sub(lambda match: _FIXED_DAYS[match.group().lower()], text.replace("\u2019", "'"))


def _written_dates(year: int | None, month: int, day: int) -> Iterator[str]:
    name = _MONTHS[month - 1]
    if year is None:
        yield from (f"{day} {name}", f"{name} {day}")
    else:
        yield from (f"{year}-{month:02}-{day:02}", f"{day} {name} {year}", f"{name} {day} {year}")
        yield from (f"{day:02}.{month:02}.{year}", f"{day:02} {month:02} {year}")


def _without_opener(words: list[str]) -> list[str]:
    """`What Does The Maren Kirstine` is a name after its function words."""
    while words and is_stop_word(words[0]):
        words = words[1:]
    return words
