"""The kind of thing a question asks for, and whether a text carries one.

"How deep" wants a length, "what does it cost" an amount of money, "who" a person. A text without such a thing may be
on the subject and still be no answer, which is the commonest way of being wrong with confidence.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from windlass.retrieval.facts import Facts, facts

UNKNOWN = 0.5
_LIKELY = 0.7

_NUMERAL = (
    r"(?:\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|twenty|thirty|forty|fifty|sixty|"
    r"seventy|eighty|ninety|hundred|thousand|million|half|third|quarter|dozen|an?|zero|few|several|many)\b)"
)
_MOST_READ = 2000


def _measured(units: str) -> re.Pattern[str]:
    """A number, in digits or words, with one of the units right behind it."""
    return re.compile(rf"{_NUMERAL}[\s\u00a0-]?(?:\w+ )?(?:{units})(?![\w])", re.IGNORECASE)


_LENGTH = _measured(
    r"m|km|cm|mm|ft|metres?|meters?|kilomet(?:re|er)s?|centimet(?:re|er)s?|millimet(?:re|er)s?|miles?|nm|"
    r"nautical miles?|cables?|feet|foot|inch(?:es)?|yards?"
)
_WEIGHT = _measured(r"t|kg|g|mg|gt|dwt|tonnes?|tons?|kilos?|kilograms?|grams?|pounds?|lbs?|ounces?")
_SPEED = _measured(
    r"knots?|kn|km/?h|mph|m/s|kilomet(?:re|er)s? (?:an|per) hour|miles (?:an|per) hour|[kmg]bit(?:/s)?|bps"
)
_TEMPERATURE = _measured(r"°\s?[cf]?|degrees?|celsius|kelvin")
_VOLUME = _measured(r"l|ml|litres?|liters?|m3|m³|cubic \w+|gallons?|barrels?|teu|hectolit\w+")
_RATE = re.compile(r"\b(?:an|per|a) (?:hour|minute|second|day)\b|/(?:h|min|s)\b", re.IGNORECASE)
_PERCENT = _measured(r"%|per ?cent|percent|percentage points?|permille")
_DURATION = re.compile(
    rf"{_NUMERAL}[\s\u00a0-]?(?:\w+ )?(?:seconds?|minutes?|min|hours?|hrs?|h|days?|nights?|weeks?|fortnights?|months?|"
    r"quarters?|years?|decades?)\b"
    r"|\b(?:daily|weekly|monthly|quarterly|yearly|annually|hourly|nightly|twice|once|every|permanently|immediately|"
    r"at once|without delay|forever|indefinitely)\b|\bhalf (?:a|an) (?:hour|day|year)\b",
    re.IGNORECASE,
)
_CURRENCY = (
    r"(?:EUR|USD|GBP|CHF|JPY|SEK|NOK|DKK|ISK|PLN|CZK|HUF|RON|BGN|TRY|RUB|UAH|CAD|AUD|NZD|CNY|HKD|SGD|INR|KRW|BRL|MXN|"
    r"ZAR)"
)
_MONEY = re.compile(
    rf"[€$£¥]\s?\d|\b{_CURRENCY}\s?\d|\d\s?(?:[€$£¥]|{_CURRENCY}\b)|{_NUMERAL}[\s\u00a0-]?(?:euros?|eur|dollars?|pounds?|cents?|"
    r"pence|francs?|crowns?|kron\w+|guilders?|yen|usd|gbp|pennies|penny)\b|\bfree\b|\bno (?:charge|fee)\b|\bnothing\b"
    r"|\b(?:price|fee|cost|rate|amount|eur|usd|total)s?(?: \w+){0,3}: ?\d",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"\b\d{1,2}[:.]\d\d\b|\b\d{1,2}\s*[ap]\.?m\b|\b(?:noon|midnight|sunrise|sunset|dawn|dusk)\b", re.I)
_CALENDAR = re.compile(
    r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b|\b(?:january|february|march|april|june|july|august|september|"
    r"october|november|december)\b|\b\d{1,2} may\b|\bmay \d|\b(?:1[5-9]|20|21)\d\d\b|\b\d{4}-\d\d-\d\d\b|"
    r"\b(?:spring|summer|autumn|winter)\b|\b(?:christmas|easter)\b",
    re.IGNORECASE,
)
_TELEPHONE = re.compile(
    r"\+?\d[\d ()/-]{4,}\d|\b(?:call|ring|dial|tel\w*|phone|extension|ext)\b\W+(?:\w+ ){0,2}\d{2,}", re.IGNORECASE
)
_MAIL = re.compile(r"[\w.+-]+@[\w.-]+")
_LINK = re.compile(r"https?://|www\.|\b[\w-]+\.(?:org|com|net|example)\b", re.IGNORECASE)
_CHANNEL = re.compile(r"\bchannels?\b\W+\d|\bVHF\b\W+\d|\bkHz\b|\bMHz\b", re.IGNORECASE)
_PERSON = re.compile(
    r"\b(?:\w*(?:master|manager|officer|director|chief|captain|clerk|engineer|supervisor|owner|team|staff|office|"
    r"department|authority|committee|board|president|secretary|agent|inspector|coordinator|administrator|operator|"
    r"desk|librarian|adviser|doctor|nurse|teacher|chair|taker|man|woman|keeper))s?\b",
    re.IGNORECASE,
)
_PLACE = re.compile(
    r"\b(?:street|road|lane|avenue|quay|building|room|floor|hall|gate|office|desk|city|town|country|park|house|cabinet|"
    r"shelf|box|yard|harbour|bank|corner|entrance|site|square|loft|shed|store|folder|directory)s?\b|"
    r"\b(?:behind|beside|next to|opposite|near|under|north of|south of|east of|west of)\b|/\w+/",
    re.IGNORECASE,
)
_REASON = re.compile(r"\b(?:because|since|due to|owing to|so that|in order to|as|reason|therefore|caused?|for)\b", re.I)


Carried = Callable[[str, Facts, Facts, str], float]
"""From a text, its facts, the facts of the question, and what the text stands under, to 0, 0.7 (likely) or 1."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of answer: how questions ask for it, and how well a text carries it (0, 0.7 likely, 1)."""

    name: str
    asked: re.Pattern[str]
    carried: Carried


def _by(*patterns: re.Pattern[str]) -> Carried:
    return lambda text, found, asked, about: float(any(pattern.search(text) for pattern in patterns))


def _measure(attributes: str, unit: re.Pattern[str]) -> Carried:
    """A number with the unit; or a new number beside, or under a heading with, the attribute's name."""
    named = re.compile(rf"\b(?:{attributes})s?\b", re.IGNORECASE)

    def carried(text: str, found: Facts, asked: Facts, about: str) -> float:
        if unit.search(text):
            return 1.0
        return _LIKELY if found.values - asked.values and named.search(f"{about} {text}") else 0.0

    return carried


def _number(text: str, found: Facts, asked: Facts, about: str) -> float:
    if found.values - asked.values:
        return 1.0
    return _LIKELY if re.search(r"\b(?:one|half|third|quarter|once|twice|no|none|nothing|zero)\b", text, re.I) else 0.0


def _time(text: str, found: Facts, asked: Facts, about: str) -> float:
    if found.dates or found.times - asked.times or _CLOCK.search(text) or _CALENDAR.search(text):
        return 1.0
    return _LIKELY if _DURATION.search(text) or re.search(r"\b(?:when|until|after|before|as soon as)\b", text) else 0.0


_named_duration = _measure("day|hour|year|age|length|minute", _DURATION)


def _duration(text: str, found: Facts, asked: Facts, about: str) -> float:
    if _LENGTH.search(text):
        return 1.0
    return max(_named_duration(text, found, asked, about), _LIKELY * _time(text, found, asked, about))


def _person(text: str, found: Facts, asked: Facts, about: str) -> float:
    if found.names - asked.names:
        return 1.0
    return _LIKELY if _PERSON.search(text) else 0.0


def _place(text: str, found: Facts, asked: Facts, about: str) -> float:
    return 1.0 if found.names - asked.names or _PLACE.search(text) else 0.0


def _kind(name: str, asked: str, carried: Carried) -> Kind:
    return Kind(name, re.compile(asked, re.IGNORECASE), carried)


_KINDS = (
    _kind("mail", r"\be-?mail\b", _by(_MAIL)),
    _kind(
        "channel",
        r"\bvhf\b|\b(?:radio|working) channel\b|\b(?:which|what) channel\b|\bfrequency (?:do|does|is)\b",
        _by(_CHANNEL),
    ),
    _kind(
        "telephone",
        r"\b(?:tele)?phone\b|\bfax\b|\bnumber\b.{0,25}\b(?:call|ring|dial)\b|\bextension\b",
        _by(_TELEPHONE),
    ),
    _kind("link", r"\b(?:website|url|web ?page)\b", _by(_LINK)),
    _kind(
        "duration",
        r"\bhow (?:long|often|soon|early|late|old)\b|"
        r"\bhow (?:many|much) (?:days?|hours?|minutes?|weeks?|months?|years?|"
        r"notice|time|longer)\b|\bsince when\b",
        _duration,
    ),
    _kind(
        "time",
        r"\bwhen\b(?!.*\?.*\?)|\b(?:what|which) (?:times?|dates?|days?|years?|months?|"
        r"hours?|season|deadline)\b|\bdeadline\b|\b(?:opening|closing|office|working) (?:hours|times?)\b|\bby when\b",
        _time,
    ),
    _kind(
        "percent",
        r"\bper ?cent(?:age)?\b|\brate of interest\b|\binterest rate\b|\bwhat (?:share|discount"
        r"|surcharge)\b",
        _by(_PERCENT),
    ),
    _kind(
        "money",
        r"\bhow (?:much|expensive)\b.*\b(?:cost|pay|pays|paid|charged?|fee|fees|price|prices|rent|spend|spent|earn)\b|"
        r"\b(?:what|which)\b.*\b(?:fees?|costs?|prices?|charges?|fines?|deposit|salary|rent|pays?|paid|rates?|dues)\b|"
        r"\bhow much (?:is it|money|is the|are the)\b|\b(?:up to )?what amount\b",
        _by(_MONEY, _PERCENT),
    ),
    _kind(
        "length",
        r"\bhow (?:deep|high|wide|tall|far|thick)\b",
        _measure("depth|height|width|draught|draft|distance|length|beam|loa", _LENGTH),
    ),
    _kind(
        "weight",
        r"\bhow heavy\b|\b(?:what|which|how much)\b.*\b(?:weigh|weight|tonnage|displacement)\b",
        _measure("weight|mass|tonnage|gt|dwt|load|swl", _WEIGHT),
    ),
    _kind(
        "speed",
        r"\bhow (?:fast|quickly)\b|\b(?:what|which)\b.*\b(?:speed|wind)\b",
        _measure("speed|knots|wind|kn|rate", re.compile(f"{_SPEED.pattern}|{_RATE.pattern}", re.IGNORECASE)),
    ),
    _kind(
        "temperature",
        r"\bhow (?:hot|cold|warm)\b|\btemperature\b",
        _measure("temperature|temp|night|day", _TEMPERATURE),
    ),
    _kind(
        "length or volume",
        r"\b(?:what|which)\b.*\b(?:depth|length|width|height|clearance|draught|draft|distance|altitude|wave)\b",
        _measure("depth|height|width|draught|draft|distance|length|clearance|wave|beam|loa", _LENGTH),
    ),
    _kind(
        "number",
        r"\bhow (?:many|much|large|big|strong|rough)\b|\b(?:what|which)\b.*\b(?:number|limit|percentage|amount|size|"
        r"capacity|maximum|minimum|total|average|version|code|most|least|height)\b",
        _number,
    ),
    _kind(
        "person",
        r"\bwho(?:m|se)?\b|\b(?:which|what) (?:person|officer|manager|team|department|company|firm)\b",
        _person,
    ),
    _kind(
        "place",
        r"\bwhere\b|\b(?:what|which) (?:place|room|building|address|location|city|street|quay|file)\b",
        _place,
    ),
    _kind("reason", r"\bwhy\b|\bfor what reason\b", _by(_REASON)),
)  # fmt: skip


@lru_cache(maxsize=256)
def expected_kind(question: str) -> Kind | None:
    """The kind of thing that `question` asks for first; None when it does not show.

    Example:
        >>> expected_kind("How deep is the basin?").name
        'length'
    """
    head = question[:_MOST_READ]
    found = [(match.start(), order) for order, kind in enumerate(_KINDS) if (match := kind.asked.search(head))]
    return _KINDS[min(found)[1]] if found else None


def carries(kind: Kind | None, text: str, asked: Facts, about: str = "") -> float:
    """How well `text` holds what was asked for beyond what the question says itself: 0 to 1, 0.5 when unknown.

    Args:
        kind: As `expected_kind` gave it.
        text: What is judged.
        asked: The facts of the question.
        about: What the text stands under: its headings.
    """
    if kind is None:
        return UNKNOWN
    plain = text[:_MOST_READ].replace("_", " ")
    return kind.carried(plain, facts(plain), asked, about.replace("_", " "))
