"""How one table could answer a question: which columns and values its words speak of, as one SELECT.

A plan is made only when every content word of the question is explained by the table's name, a column, a value that
stands in the table, a date, or the measure itself. One word left over and there is no plan: a wrong figure is worse
than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import PurePosixPath

from windlass.lake.document import Column
from windlass.retrieval.facts import Date, dates_of
from windlass.retrieval.questions import ALTERNATIVES
from windlass.retrieval.table_intent import FILLER, UNITS, Comparing, Intent, Measure
from windlass.retrieval.terms import Term, stem, terms

NUMERIC = ("integer", "number")
DATED = ("date", "timestamp")
_YEAR = re.compile(r"\b(?:19|20)\d\d\b")
# Units that a column may well be about: `payment_days`, `built_year`.
_TIME_UNITS = frozenset("hour hours day days minute minutes year years".split())
_MOST_OF = re.compile(r"\b(?:most|fewest|least|largest number of|highest number of)\s+([^\W\d_]+)", re.IGNORECASE)
_BEFORE = re.compile(r"\bbefore(?: the)?\s*$", re.IGNORECASE)
_AFTER = re.compile(r"\b(?:after|since)(?: the)?\s*$", re.IGNORECASE)
_RANGE = re.compile(r"\b(?:between|until|from|by|till|and|to)(?: the)?\s*$", re.IGNORECASE)
_OLD_COPY = re.compile(r"\b(?:archive|archived|old|backup|copy|draft|export|exports|tmp|temp|previous)\b|\(\d+\)", re.I)


Values = Callable[[Column], Sequence[str]]
"""The distinct values of a text column that could stand in the question."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One part of the WHERE clause, as SQL and as a person would say it."""

    sql: str
    said: str
    column: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compute from one table.

    Attributes:
        measure: Of `column`; `count` needs none.
        column: The measured (or counted) column.
        shown: Columns to show of each row, for look-ups and rankings.
        group: Column to group by, for "which X has the most rows".
        conditions: All must hold.
        limit, descending: For rankings.
        score: How specifically the table was meant; a plan of a higher score is better.
    """

    measure: Measure
    column: str | None
    shown: tuple[str, ...]
    group: str | None
    conditions: tuple[Condition, ...]
    limit: int
    descending: bool
    score: float


@dataclass
class _Reading:
    """Matching one question with one table; `explained` grows as words find their meaning."""

    intent: Intent
    columns: Sequence[Column]
    sequence: list[Term]
    explained: set[int] = field(default_factory=set)

    def explain(self, stems: set[str] | frozenset[str]) -> None:
        self.explained |= {term.start for term in self.intent.words if term.stem in stems}

    def left(self) -> list[Term]:
        return [term for term in self.intent.words if term.start not in self.explained]


def name_stems(name: str) -> list[str]:
    """The words of a column's or table's name, without units: `max_draught_m` -> max, draught.

    Example:
        >>> name_stems("GrossTonnage (t)")
        ['gross', 'tonnag']
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.findall(r"[^\W\d_]+|\d+", spaced)
    kept = [stem(word) for word in words if word.casefold() not in UNITS - _TIME_UNITS]
    return kept or [stem(word) for word in words]


def make_plan(
    intent: Intent, name: str, file: str, columns: Sequence[Column], rows: int, values: Values
) -> Plan | None:
    """The plan by which this table answers, or None when a word of the question stays unexplained.

    Args:
        intent: The question.
        name, file: Of the table.
        columns: Its profile.
        rows: Its length.
        values: Gives the values to look for in the question.
    """
    reading = _Reading(intent, columns, terms(intent.text))
    table_words = set(name_stems(name)) | set(name_stems(PurePosixPath(file).stem))
    is_named = any(term.stem in table_words for term in intent.words)
    conditions = _value_conditions(reading, values, table_words)
    dated = _date_conditions(reading, table_words)
    if conditions is None or dated is None:
        return None
    taken = {condition.column for condition in [*conditions, *dated]}
    measured = None if _counts_rows(intent, table_words) else _measured_column(reading, table_words, taken)
    bounds = _bound_conditions(reading, measured)
    if bounds is None:
        return None
    conditions = [*conditions, *dated, *bounds]
    plan = _shape(reading, measured, conditions, table_words)
    reading.explain(table_words)
    if plan is None or any(term.stem not in FILLER for term in reading.left()):
        return None
    measure, column, shown, group = plan
    own = name_stems(name)
    matched = sum(word in {term.stem for term in intent.words} for word in own) / max(1, len(own))
    score = 2.0 * is_named + matched + 0.5 * len(conditions) - 3.0 * bool(_OLD_COPY.search(file.replace("_", " ")))
    return Plan(measure, column, shown, group, tuple(conditions), intent.limit, intent.descending, round(score, 3))


def _shape(
    reading: _Reading, measured: Column | None, conditions: list[Condition], table_words: set[str]
) -> tuple[Measure, str | None, tuple[str, ...], str | None] | None:
    """Measure, column, shown columns and group, when the question and the table fit together."""
    intent = reading.intent
    is_named = any(term.stem in table_words for term in intent.words)
    if intent.measure == "count":
        if measured is not None and any(c.column != measured.name for c in conditions):
            return "lookup", None, (measured.name,), None  # how many cranes has berth 4
        return ("count", None, (), None) if measured is None and (is_named or conditions) else None
    if intent.measure == "distinct":
        column = _asked_column(reading, set(), reading.columns)
        return ("distinct", column.name, (), None) if column else None
    taken = {condition.column for condition in conditions}
    if intent.measure == "lookup":
        asked = _asked_columns(reading, taken)
        if not asked and intent.is_which and is_named:
            asked = [column for column in [identity_column(reading.columns)] if column and column.name not in taken]
        if not conditions or not asked:
            return None
        return "lookup", None, tuple(column.name for column in asked), None
    if intent.measure == "top":
        if _counts_rows(intent, table_words):
            others = [column for column in reading.columns if not _is_key(column, table_words)]
            grouped = _asked_column(reading, taken, others)
            return ("top", None, (), grouped.name) if grouped else None
        label = _label_column(reading, measured)
        if measured is not None:
            return "top", measured.name, (label.name,) if label else (), None
        return None
    return (intent.measure, measured.name, (), None) if measured is not None else None


def _counts_rows(intent: Intent, table_words: set[str]) -> bool:
    """ "The most calls": rows of the table are counted, no column is measured."""
    found = _MOST_OF.search(intent.text)
    return found is not None and stem(found.group(1)) in table_words


def _value_conditions(reading: _Reading, values: Values, table_words: set[str]) -> list[Condition] | None:
    """`column = value` for every value that the question names. None when one value could mean two columns."""
    found: list[tuple[int, int, Column, str]] = []
    for column in reading.columns:
        if column.type in NUMERIC:
            found.extend(_number_matches(reading, column))
        elif column.type not in DATED:
            for value in values(column):
                place = _find(reading.sequence, value, _column_words(column))
                if place is not None:
                    found.append((*place, column, value))
    conditions: list[Condition] = []
    for start, end, column, value in _longest(reading, found, table_words):
        written = value if column.type in NUMERIC else _quoted(value)
        conditions.append(Condition(f"{identifier(column.name)} = {written}", f"{column.name} = {value}", column.name))
        words = {term.start for term in reading.sequence[start:end]}
        reading.explained |= words
        reading.explain({word for word in _column_words(column) if _near(reading, word, start, end)})
    taken = [condition.column for condition in conditions]
    return conditions if len(taken) == len(set(taken)) else None


def _longest(
    reading: _Reading, found: list[tuple[int, int, Column, str]], table_words: set[str]
) -> list[tuple[int, int, Column, str]]:
    """The longest value at each place; of equals the one whose column is named beside it."""
    asked = {term.stem for term in reading.intent.words}
    usable = [item for item in found if not {term.stem for term in reading.sequence[item[0] : item[1]]} <= table_words]

    def preference(item: tuple[int, int, Column, str]) -> tuple[int, int, int]:
        return (-(item[1] - item[0]), -len(asked & _column_words(item[2])), reading.columns.index(item[2]))

    kept: list[tuple[int, int, Column, str]] = []
    for item in sorted(usable, key=preference):
        if all(item[1] <= other[0] or item[0] >= other[1] for other in kept):
            kept.append(item)
    return sorted(kept, key=lambda item: item[0])


def _number_matches(reading: _Reading, column: Column) -> list[tuple[int, int, Column, str]]:
    """`berth 4` for an integer column `berth`."""
    found = []
    for index in range(1, len(reading.sequence)):
        term, before = reading.sequence[index], reading.sequence[index - 1]
        if re.fullmatch(r"\d+", term.stem) and before.stem in _column_words(column) and column.type == "integer":
            found.append((index, index + 1, column, str(int(term.stem))))
    return found


def _find(sequence: list[Term], value: str, column_words: set[str]) -> tuple[int, int] | None:
    """Where the words of `value` stand one after the other in the question."""
    wanted = [term.stem for term in terms(value)]
    if not wanted or len(wanted) > len(sequence):
        return None
    for start in range(len(sequence) - len(wanted) + 1):
        if [term.stem for term in sequence[start : start + len(wanted)]] != wanted:
            continue
        single = len(wanted) == 1 and (len(wanted[0]) == 1 or wanted[0] in _COMMON)
        beside = start > 0 and sequence[start - 1].stem in column_words
        if not single or beside:
            return start, start + len(wanted)
    return None


_KEY_WORDS = frozenset("id key no nr number code ref refer".split())
_COMMON = frozenset("yes no true false other all none open not is in on at a i the to of and".split())


def _near(reading: _Reading, word: str, start: int, end: int) -> bool:
    return any(term.stem == word for term in reading.sequence[max(0, start - 3) : end + 2])


def _date_conditions(reading: _Reading, table_words: set[str]) -> list[Condition] | None:
    """Date windows; None when a date is said but it is unclear which column or window it means."""
    text = reading.intent.text
    spans: list[tuple[int, int, Date]] = []
    for start, end, readings in dates_of(text):
        if len(readings) != 1 or next(iter(readings))[0] is None:
            return None
        spans.append((start, end, next(iter(readings))))
    for match in _YEAR.finditer(text):
        if all(match.end() <= start or match.start() >= end for start, end, _ in spans):
            in_value = any(t.start == match.start() and t.start in reading.explained for t in reading.sequence)
            if not in_value:
                spans.append((match.start(), match.end(), (int(match.group()), None, None)))
    conditions = []
    for start, end, when in spans:
        column = _date_column(reading)
        if column is None and when[1] is None and str(when[0]) in table_words:
            continue  # the table is of that year
        if column is None or _RANGE.search(text, 0, start):
            return None
        conditions.append(_window(column, when, text[:start]))
        reading.explained |= {term.start for term in reading.sequence if start <= term.start < end}
        reading.explain(_column_words(column))
    return conditions


def _date_column(reading: _Reading) -> Column | None:
    dated = [c for c in reading.columns if c.type in DATED or (c.type == "integer" and "year" in _column_words(c))]
    asked = {term.stem for term in reading.intent.words}
    named = [column for column in dated if asked & _column_words(column)]
    chosen = named or dated
    return chosen[0] if len(chosen) == 1 else None


def _window(column: Column, when: Date, before: str) -> Condition:
    name = identifier(column.name)
    if column.type == "integer":
        is_since = before.rstrip().casefold().endswith("since")
        sign = "<" if _BEFORE.search(before) else ">=" if is_since else ">" if _AFTER.search(before) else "="
        return Condition(f"{name} {sign} {when[0]}", f"{column.name} {sign} {when[0]}", column.name)
    year, month, day = when
    first = date(year or 1, month or 1, day or 1)
    if day:
        after = first + timedelta(days=1)
    elif month:
        after = date(first.year + month // 12, month % 12 + 1, 1)
    else:
        after = date(first.year + 1, 1, 1)
    moment = f"TRY_CAST({name} AS TIMESTAMP)"
    said = "-".join(f"{part:02d}" for part in when if part)
    if _BEFORE.search(before):
        return Condition(f"{moment} < TIMESTAMP '{first}'", f"{column.name} before {said}", column.name)
    if _AFTER.search(before):
        bound = first if before.rstrip().casefold().endswith("since") else after
        return Condition(f"{moment} >= TIMESTAMP '{bound}'", f"{column.name} from {bound}", column.name)
    sql = f"{moment} >= TIMESTAMP '{first}' AND {moment} < TIMESTAMP '{after}'"
    return Condition(sql, f"{column.name} in {said}", column.name)


def _bound_conditions(reading: _Reading, measured: Column | None) -> list[Condition] | None:
    """`column > number`; None when it is unclear which column is compared."""
    conditions = []
    for bound in reading.intent.bounds:
        column = _bounded_column(reading, bound, measured)
        if column is None:
            return None
        sql = f"{number(column)} {bound.comparison} {bound.number}"
        conditions.append(Condition(sql, f"{column.name} {bound.comparison} {bound.number}", column.name))
    return conditions


def _bounded_column(reading: _Reading, bound: Comparing, measured: Column | None) -> Column | None:
    numeric = [column for column in reading.columns if column.type in NUMERIC]
    if bound.hints:
        hinted = [column for column in numeric if bound.hints & _column_words(column)]
        return hinted[0] if len(hinted) == 1 else None
    return _asked_column(reading, {measured.name} if measured and reading.intent.measure != "count" else set(), numeric)


def _measured_column(reading: _Reading, table_words: set[str], taken: set[str]) -> Column | None:
    intent = reading.intent
    if intent.measure in ("lookup", "distinct") or (intent.measure == "count" and intent.bounds):
        return None
    allowed = NUMERIC + (DATED if intent.measure in ("top", "maximum", "minimum") else ())
    numeric = [column for column in reading.columns if column.type in allowed and not _is_key(column, table_words)]
    if intent.hints:
        hinted = [column for column in numeric if intent.hints & _column_words(column)]
        exact = _asked_column(reading, set(), hinted)
        return exact or (hinted[0] if len(hinted) == 1 else None)
    return _asked_column(reading, taken if intent.measure == "count" else set(), numeric)


def _is_key(column: Column, table_words: set[str]) -> bool:
    """A number that only names the row (`call_id`) is no measure, and nothing is counted by it."""
    return column.type != "text" and _column_words(column) <= table_words | _KEY_WORDS


def _label_column(reading: _Reading, measured: Column | None) -> Column | None:
    others = [column for column in reading.columns if column is not measured]
    asked = _asked_column(reading, set(), [column for column in others if column.type not in NUMERIC])
    return asked or identity_column(others)


def identity_column(columns: Sequence[Column]) -> Column | None:
    """The column that tells rows apart for a person: a name, else the first text, else the first column."""
    for wanted in ("name", "titl"):
        found = next((column for column in columns if wanted in name_stems(column.name)), None)
        if found:
            return found
    text = [column for column in columns if column.type == "text"]
    return max(text, key=lambda column: column.distinct, default=columns[0] if columns else None)


def _asked_column(reading: _Reading, taken: set[str], columns: Sequence[Column]) -> Column | None:
    """The one column that unexplained words of the question name best; None when two are named equally well."""
    scored = []
    for column in columns:
        words = name_stems(column.name)
        matched = _matched_words(reading, set(words))
        if matched and column.name not in taken:
            scored.append((len(matched), len(matched) / len(words), column))
    scored.sort(key=lambda item: (-item[0], -item[1]))
    if not scored or (len(scored) > 1 and scored[0][:2] == scored[1][:2]):
        return None
    column = scored[0][2]
    reading.explained |= _matched_words(reading, _column_words(column))
    return column


def _asked_columns(reading: _Reading, taken: set[str]) -> list[Column]:
    asked: list[Column] = []
    while len(asked) < 4:
        column = _asked_column(reading, taken | {other.name for other in asked}, reading.columns)
        if column is None:
            break
        asked.append(column)
    return asked


def _matched_words(reading: _Reading, words: set[str]) -> set[int]:
    """Starts of the unexplained words of the question that are, or nearly mean, one of `words`."""
    return {
        term.start for term in reading.left() if term.stem in words or ALTERNATIVES.get(term.stem, frozenset()) & words
    }


def _column_words(column: Column) -> set[str]:
    return set(name_stems(column.name))


def identifier(name: str) -> str:
    """`name` quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def number(column: Column) -> str:
    """SQL of a column as a number, whatever it is stored as."""
    return f"TRY_CAST({identifier(column.name)} AS DOUBLE)"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
