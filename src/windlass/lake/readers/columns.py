"""What a column of text cells holds: its type, its nulls, its range, a few samples.

Only distinct values are looked at, so a column costs one hash of its cells plus a little per distinct value.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

from windlass.lake.document import Column

NULL_WORDS = frozenset(("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "-"))
SAMPLES = 5

_SHOWN_CHARACTERS = 80
_PEEK = 20
_DATED_SHARE = 0.99
_TRUTH = frozenset(("true", "false", "yes", "no", "t", "f"))
# No leading zeros: 007 and 01234 are codes, and a code is text.
_INTEGER = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})\Z", re.ASCII).match
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9]\d{0,17})(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?\Z", re.ASCII).match
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})*(?:\.\d+)?\Z|0(?:\.\d+)?\Z", re.ASCII).match
_COMMA = re.compile(r"[+-]?(?:[1-9]\d{0,2}(?:\.\d{3})+|0|[1-9]\d{0,17})(?:,\d+)?\Z", re.ASCII).match
_DAY = re.compile(r"(\d{1,2})([./-])(\d{1,2})\2(\d{4})\Z", re.ASCII).match


class Typed(NamedTuple):
    type: str
    minimum: str | None
    maximum: str | None


def describe_column(name: str, cells: Any) -> Column:
    """Profile of one column.

    Args:
        name: The column's name.
        cells: Sequence of strings, or Arrow array or chunked array of them; null and the `NULL_WORDS` (after
            stripping) are null.

    Example:
        >>> column = describe_column("depth", ["12", "7", "", "n/a", "12"])
        >>> column.type, column.nulls, column.distinct, column.minimum
        ('text', 1, 3, '12')
    """
    counts = _counted(cells)
    nulls = sum(counts[value] for value in counts if value.strip() in NULL_WORDS)
    values = [value for value in dict.fromkeys(map(str.strip, counts)) if value not in NULL_WORDS]
    found = typed(values)
    samples = tuple(shown(value) for value in values[:SAMPLES])
    return Column(name, found.type, nulls, len(values), found.minimum, found.maximum, samples)


def _counted(cells: Any) -> dict[str, int]:
    """How often each distinct value is there, in order of first appearance; null is empty."""
    if isinstance(cells, Sequence):
        return Counter(cells)
    import pyarrow.compute as pc

    counted = pc.value_counts(pc.fill_null(cells, ""))
    return dict(zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True))


def shown(value: str) -> str:
    """A value on one line, short enough for a table of columns."""
    line = " ".join(value[: 4 * _SHOWN_CHARACTERS].split())
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"


def looks_typed(cell: str) -> bool:
    """Whether a single cell is a number or a date: what a heading hardly ever is."""
    cell = cell.strip()
    if not cell or cell[0].isalpha():
        return False
    found = _NUMBER(cell) or _THOUSANDS(cell) or _COMMA(cell) or _DAY(cell) or _parse_iso(cell)
    return found is not None


def typed(values: Sequence[str]) -> Typed:
    """The narrowest type that all of the distinct, non-null, stripped `values` take."""
    if not values:
        return Typed("empty", None, None)
    return _as_number(values) or _as_truth(values) or _as_date(values) or _as_text(values)


def _as_number(values: Sequence[str]) -> Typed | None:
    """Plain numbers, else numbers with thousands marks, else numbers with a decimal comma."""
    if all(map(_INTEGER, values)):
        integers = list(map(int, values))
        return Typed("integer", str(min(integers)), str(max(integers)))
    if all(map(_NUMBER, values)):
        plain = values
    elif all(map(_THOUSANDS, values)):
        plain = [value.replace(",", "") for value in values]
    elif all(map(_COMMA, values)):
        plain = [value.replace(".", "").replace(",", ".") for value in values]
    else:
        return None
    numbers = list(map(float, plain))
    whole = not any("." in value or "e" in value or "E" in value for value in plain)
    return Typed("integer" if whole else "number", rendered(min(numbers)), rendered(max(numbers)))


def rendered(number: float) -> str:
    """A number as the profiles show it."""
    return format(number, ".15g")


def _as_truth(values: Sequence[str]) -> Typed | None:
    words = {value.lower() for value in values[: 2 * len(_TRUTH)]}
    if len(values) > 2 * len(_TRUTH) or not words <= _TRUTH:
        return None
    return Typed("boolean", min(words), max(words))


def _as_date(values: Sequence[str]) -> Typed | None:
    """Dates by the ISO rules, or day and month in the one order that fits the whole column."""
    for parse in (_parse_iso, _parse_day_first, _parse_month_first):
        # One stray word in the first few is allowed: the rule is 99 % of all.
        peek = values[:_PEEK]
        if sum(parse(value) is not None for value in peek) < max(1, len(peek) - 1):
            continue
        moments = [moment for value in values if (moment := parse(value)) is not None]
        if len(moments) < _DATED_SHARE * len(values):
            continue
        if any(moment.hour or moment.minute or moment.second or moment.microsecond for moment in moments):
            return Typed("timestamp", min(moments).isoformat(" "), max(moments).isoformat(" "))
        return Typed("date", min(moments).date().isoformat(), max(moments).date().isoformat())
    return None


def _as_text(values: Sequence[str]) -> Typed:
    return Typed("text", shown(min(values)), shown(max(values)))


def _parse_iso(value: str) -> datetime | None:
    """`2024-05-01`, with or without a time; offsets are dropped, because columns mix them with none."""
    if len(value) < 10 or len(value) > 35 or value[4] != "-" or value[7] != "-":
        return None
    try:
        return datetime.fromisoformat(value).replace(tzinfo=None)
    except ValueError:
        return None


def _parse_day_first(value: str) -> datetime | None:
    return _parse_day(value, lambda first, second: (second, first))


def _parse_month_first(value: str) -> datetime | None:
    return _parse_day(value, lambda first, second: (first, second))


def _parse_day(value: str, month_and_day: Callable[[int, int], tuple[int, int]]) -> datetime | None:
    found = _DAY(value)
    if found is None:
        return None
    month, day = month_and_day(int(found[1]), int(found[3]))
    try:
        return datetime.combine(date(int(found[4]), month, day), datetime.min.time())
    except ValueError:
        return None
