"""The one language in which rows are chosen by their fields.

Written in Python or as text, with the same meaning:

    (F("year") >= 2020) & F("lang").isin(["en", "de"]) & ~F("tags").contains("draft")
    year >= 2020 and lang in ('en', 'de') and not tags contains 'draft'

Logic is SQL's, with three values: a comparison with a missing value is unknown, `not` of unknown is unknown, and only
rows for which the whole is true are chosen. A filter is checked against the types of the fields by `bind` before it
meets any row; there is no silent conversion between text and numbers.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, ClassVar, Literal, TypeAlias

from windlass.core.errors import UsageError

FieldType = Literal["int", "float", "str", "bool", "timestamp", "set[str]"]
FIELD_TYPES: tuple[FieldType, ...] = ("int", "float", "str", "bool", "timestamp", "set[str]")
Operator = Literal["=", "!=", "<", "<=", ">", ">="]
Value: TypeAlias = "int | float | str | bool | datetime | date"
Truth: TypeAlias = "bool | None"

MAX_DEPTH = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ACCEPTS = {
    "int": "a number",
    "float": "a number",
    "str": "a text in quotes",
    "bool": "true or false",
    "timestamp": "a date such as '2024-05-01' or '2024-05-01T12:00:00Z'",
    "set[str]": "a text in quotes",
}


class FilterError(UsageError):
    """A filter that cannot be used."""


class FilterSyntaxError(FilterError):
    """The text is not a filter; the message points at the column."""


class FilterTypeError(FilterError):
    """A field is compared with a value of another type, or in a way that its type does not know."""


class UnknownField(FilterError):
    """There is no field of that name.

    Attributes:
        name: The name that was asked for.
        did_you_mean: The nearest names there are.
    """

    def __init__(self, name: str, names: Iterable[str]) -> None:
        self.name = name
        known = sorted(names)
        self.did_you_mean = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if self.did_you_mean:
            hint = f"did you mean {' or '.join(self.did_you_mean)}?"
        else:
            hint = f"the fields are {', '.join(known)}" if known else "there are no fields"
        super().__init__(f"no field {name!r}", hint=hint)


class Filter(ABC):
    """A condition on a row. Combine with `&`, `|` and `~`; immutable, equal by content."""

    def __and__(self, other: Filter) -> Filter:
        return And(_parts(And, self) + _parts(And, other))

    def __or__(self, other: Filter) -> Filter:
        return Or(_parts(Or, self) + _parts(Or, other))

    def __invert__(self) -> Filter:
        return self.part if isinstance(self, Not) else Not(self)

    @abstractmethod
    def fields(self) -> frozenset[str]:
        """The names it mentions."""

    @abstractmethod
    def matches(self, row: Mapping[str, Any]) -> Truth:
        """Whether it holds for one row of Python values; None when that is unknown. A missing key is a null.

        Timestamps are compared as `bind` makes them: microseconds since 1970, UTC.
        """

    @abstractmethod
    def to_sql(self) -> str:
        """The same condition for DuckDB."""

    def bind(self, types: Mapping[str, FieldType]) -> Filter:
        """The filter with its values in the form that fields of these types are stored in.

        Raises:
            UnknownField, FilterTypeError, FilterError (nested deeper than `MAX_DEPTH`).
        """
        return self._bind(types, 0)

    @abstractmethod
    def _bind(self, types: Mapping[str, FieldType], depth: int) -> Filter: ...


@dataclass(frozen=True, slots=True)
class Compare(Filter):
    """`field op value`."""

    field: str
    op: Operator
    value: Any

    def fields(self) -> frozenset[str]:
        return frozenset((self.field,))

    def matches(self, row: Mapping[str, Any]) -> Truth:
        value = row.get(self.field)
        return None if value is None else compare(value, self.op, self.value)

    def to_sql(self) -> str:
        op = "<>" if self.op == "!=" else self.op
        return f"{quoted(self.field)} {op} {literal(self.value)}"

    def _bind(self, types: Mapping[str, FieldType], depth: int) -> Filter:
        kind = _type_of(self.field, types)
        if kind == "set[str]":
            raise FilterTypeError(
                f"{self.field!r} is a set of texts and cannot be compared by {self.op}",
                hint=f"write {self.field} contains 'word'",
            )
        if kind == "bool" and self.op not in ("=", "!="):
            raise FilterTypeError(f"{self.field!r} is true or false and has no order", hint="use = or !=")
        return replace(self, value=stored_value(self.field, kind, self.value))


@dataclass(frozen=True, slots=True)
class IsIn(Filter):
    """`field in (values)`; nothing is in an empty list."""

    field: str
    values: tuple[Any, ...]

    def fields(self) -> frozenset[str]:
        return frozenset((self.field,))

    def matches(self, row: Mapping[str, Any]) -> Truth:
        value = row.get(self.field)
        if not self.values:
            return False
        return None if value is None else value in self.values

    def to_sql(self) -> str:
        if not self.values:
            return "FALSE"
        return f"{quoted(self.field)} IN ({', '.join(literal(value) for value in self.values)})"

    def _bind(self, types: Mapping[str, FieldType], depth: int) -> Filter:
        kind = _type_of(self.field, types)
        if kind == "set[str]":
            raise FilterTypeError(
                f"{self.field!r} is a set of texts and is not in a list", hint=f"write {self.field} contains 'word'"
            )
        return replace(self, values=tuple(stored_value(self.field, kind, value) for value in self.values))


@dataclass(frozen=True, slots=True)
class Contains(Filter):
    """`field contains 'word'`, for a set of texts."""

    field: str
    value: str

    def fields(self) -> frozenset[str]:
        return frozenset((self.field,))

    def matches(self, row: Mapping[str, Any]) -> Truth:
        value = row.get(self.field)
        return None if value is None else self.value in value

    def to_sql(self) -> str:
        return f"list_contains({quoted(self.field)}, {literal(self.value)})"

    def _bind(self, types: Mapping[str, FieldType], depth: int) -> Filter:
        kind = _type_of(self.field, types)
        if kind != "set[str]":
            raise FilterTypeError(f"{self.field!r} is {_a(kind)} and contains nothing", hint="use = or starts with")
        return replace(self, value=stored_value(self.field, kind, self.value))


@dataclass(frozen=True, slots=True)
class StartsWith(Filter):
    """`field starts with 'text'`."""

    field: str
    value: str

    def fields(self) -> frozenset[str]:
        return frozenset((self.field,))

    def matches(self, row: Mapping[str, Any]) -> Truth:
        value = row.get(self.field)
        return None if value is None else str(value).startswith(self.value)

    def to_sql(self) -> str:
        return f"starts_with({quoted(self.field)}, {literal(self.value)})"

    def _bind(self, types: Mapping[str, FieldType], depth: int) -> Filter:
        kind = _type_of(self.field, types)
        if kind != "str":
            raise FilterTypeError(f"{self.field!r} is {_a(kind)}, not a text that starts with something")
        return replace(self, value=stored_value(self.field, kind, self.value))


@dataclass(frozen=True, slots=True)
class IsNull(Filter):
    """`field is null`: true or false, never unknown."""

    field: str

    def fields(self) -> frozenset[str]:
        return frozenset((self.field,))

    def matches(self, row: Mapping[str, Any]) -> Truth:
        return row.get(self.field) is None

    def to_sql(self) -> str:
        return f"{quoted(self.field)} IS NULL"

    def _bind(self, types: Mapping[str, FieldType], depth: int) -> Filter:
        _type_of(self.field, types)
        return self


@dataclass(frozen=True, slots=True)
class _Joined(Filter):
    """Several parts under one word."""

    parts: tuple[Filter, ...]
    _word: ClassVar[str]
    _decisive: ClassVar[bool]
    """The truth of one part that settles the whole."""

    def fields(self) -> frozenset[str]:
        return frozenset().union(*(part.fields() for part in self.parts))

    def matches(self, row: Mapping[str, Any]) -> Truth:
        found = [part.matches(row) for part in self.parts]
        return self._decisive if self._decisive in found else None if None in found else not self._decisive

    def to_sql(self) -> str:
        return "(" + f" {self._word} ".join(part.to_sql() for part in self.parts) + ")"

    def _bind(self, types: Mapping[str, FieldType], depth: int) -> Filter:
        return type(self)(tuple(part._bind(types, _deeper(depth)) for part in self.parts))


class And(_Joined):
    """All of the parts."""

    __slots__ = ()
    _word, _decisive = "AND", False


class Or(_Joined):
    """At least one of the parts."""

    __slots__ = ()
    _word, _decisive = "OR", True


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """The opposite; unknown stays unknown."""

    part: Filter

    def fields(self) -> frozenset[str]:
        return self.part.fields()

    def matches(self, row: Mapping[str, Any]) -> Truth:
        found = self.part.matches(row)
        return None if found is None else not found

    def to_sql(self) -> str:
        return f"(NOT {self.part.to_sql()})"

    def _bind(self, types: Mapping[str, FieldType], depth: int) -> Filter:
        return Not(self.part._bind(types, _deeper(depth)))


class F:
    """A field, from which filters are made.

    Example:
        >>> ((F("year") >= 2020) & ~F("tags").contains("draft")).to_sql()
        '("year" >= 2020 AND (NOT list_contains("tags", \\'draft\\')))'
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self._name = name

    def __eq__(self, value: Value) -> Filter:  # type: ignore[override]
        return Compare(self._name, "=", value)

    def __ne__(self, value: Value) -> Filter:  # type: ignore[override]
        return Compare(self._name, "!=", value)

    def __lt__(self, value: Value) -> Filter:
        return Compare(self._name, "<", value)

    def __le__(self, value: Value) -> Filter:
        return Compare(self._name, "<=", value)

    def __gt__(self, value: Value) -> Filter:
        return Compare(self._name, ">", value)

    def __ge__(self, value: Value) -> Filter:
        return Compare(self._name, ">=", value)

    def isin(self, values: Iterable[Value]) -> Filter:
        return IsIn(self._name, tuple(values))

    def between(self, low: Value, high: Value) -> Filter:
        """Both ends included, as in SQL."""
        return (self >= low) & (self <= high)

    def contains(self, word: str) -> Filter:
        return Contains(self._name, word)

    def starts_with(self, text: str) -> Filter:
        return StartsWith(self._name, text)

    def is_null(self) -> Filter:
        return IsNull(self._name)


def compare(left: Any, op: Operator, right: Any) -> bool:
    """`left op right` for two values of one type."""
    match op:
        case "=":
            return bool(left == right)
        case "!=":
            return bool(left != right)
        case "<":
            return bool(left < right)
        case "<=":
            return bool(left <= right)
        case ">":
            return bool(left > right)
        case ">=":
            return bool(left >= right)


def stored_value(name: str, kind: FieldType, value: Any) -> Any:
    """`value` as a field of type `kind` stores it: timestamps become microseconds since 1970, UTC.

    Raises:
        FilterTypeError: It is of another type.
    """
    if kind in ("str", "set[str]") and isinstance(value, str):
        return value
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind in ("int", "float") and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isnan(value):
            return value
        raise FilterTypeError(f"{name!r} is compared with NaN", hint=f"write {name} is null for missing values")
    if kind == "timestamp":
        moment = _moment(value)
        if moment is not None:
            return moment
    raise FilterTypeError(f"{name!r} is {_a(kind)} and is compared with {value!r}", hint=f"give {_ACCEPTS[kind]}")


def microseconds(moment: datetime | date) -> int:
    """Since 1970; a time without a zone is UTC.

    Example:
        >>> microseconds(date(1970, 1, 2))
        86400000000
    """
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def quoted(name: str) -> str:
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: Any) -> str:
    """A value in SQL."""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, datetime | date):
        return f"make_timestamp({microseconds(value)})"
    if isinstance(value, float) and math.isinf(value):
        return f"'{'-' if value < 0 else ''}inf'::DOUBLE"
    if isinstance(value, int | float):
        return repr(value)
    return "'" + str(value).replace("'", "''") + "'"


def _moment(value: Any) -> int | None:
    if isinstance(value, datetime | date):
        return microseconds(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return microseconds(datetime.fromisoformat(value))
        except ValueError:
            return None
    return None


def _type_of(name: str, types: Mapping[str, FieldType]) -> FieldType:
    if name not in types:
        raise UnknownField(name, types)
    return types[name]


def _a(kind: str) -> str:
    return {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}.get(
        kind, {"timestamp": "a timestamp", "set[str]": "a set of texts"}.get(kind, kind)
    )


def _deeper(depth: int) -> int:
    if depth >= MAX_DEPTH:
        raise FilterError(f"the filter is nested deeper than {MAX_DEPTH} levels", hint="use `in` for long lists")
    return depth + 1


def _parts(kind: type[And] | type[Or], part: Filter) -> tuple[Filter, ...]:
    return part.parts if isinstance(part, kind) else (part,)
