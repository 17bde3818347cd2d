"""Filters as text: a small recursive-descent parser whose errors point at the column.

    filter     := all ("or" all)*
    all        := one ("and" one)*
    one        := "not" one | "(" filter ")" | field test
    test       := ("=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") value
                | ["not"] "in" "(" [value ("," value)*] ")"
                | ["not"] "between" value "and" value
                | ["not"] "contains" text | ["not"] "starts" "with" text
                | "is" ["not"] "null"
    field      := a word, or "any text" in double quotes
    value      := number | 'text' | true | false

Words of the language are not case-sensitive; names of fields and values are.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, NoReturn

from windlass.core.filters import MAX_DEPTH, Compare, Contains, F, Filter, FilterSyntaxError, IsIn, IsNull, StartsWith

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>[-+]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?(?![\w.]))
      | (?P<text>'(?:[^']|'')*')
      | (?P<name>"(?:[^"]|"")+")
      | (?P<word>[^\W\d]\w*(?:[.\-]\w+)*)
      | (?P<sign><=|>=|!=|<>|==|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_OPERATORS = {"=": "=", "==": "=", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_RESERVED = frozenset("and or not in between contains starts with is null true false".split())


class _Token(NamedTuple):
    kind: str
    value: str
    column: int

    @property
    def lower(self) -> str:
        return self.value.lower() if self.kind == "word" else self.value

    @property
    def shown(self) -> str:
        return "the end" if self.kind == "end" else repr(self.value)


def parse_filter(text: str) -> Filter:
    """The filter that `text` writes.

    Raises:
        FilterSyntaxError: It is none; the message names the column, counted from 1.

    Example:
        >>> parse_filter("year >= 2020 and lang in ('en','de')").to_sql()
        '("year" >= 2020 AND "lang" IN (\\'en\\', \\'de\\'))'
    """
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._at = 0
        self._depth = 0

    def whole(self) -> Filter:
        found = self._any()
        if self._next.kind != "end":
            self._fail("expected and, or, or the end")
        return found

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _took(self, *words: str) -> bool:
        if self._next.kind in ("word", "sign") and self._next.lower in words:
            self._at += 1
            return True
        return False

    def _need(self, word: str) -> None:
        if not self._took(word):
            self._fail(f"expected {word}")

    def _any(self) -> Filter:
        found = self._all()
        while self._took("or"):
            found = found | self._all()
        return found

    def _all(self) -> Filter:
        found = self._one()
        while self._took("and"):
            found = found & self._one()
        return found

    def _one(self) -> Filter:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(f"nested deeper than {MAX_DEPTH} levels at")
        try:
            if self._took("not"):
                return ~self._one()
            if self._took("("):
                found = self._any()
                self._need(")")
                return found
            return self._test()
        finally:
            self._depth -= 1

    def _test(self) -> Filter:
        name = self._field()
        if self._next.kind == "sign" and self._next.value in _OPERATORS:
            return Compare(name, _OPERATORS[self._take().value], self._value())  # type: ignore[arg-type]
        if self._took("is"):
            negated = self._took("not")
            self._need("null")
            return ~IsNull(name) if negated else IsNull(name)
        if self._took("not"):
            return ~self._membership(name)
        return self._membership(name)

    def _membership(self, name: str) -> Filter:
        if self._took("in"):
            return IsIn(name, self._list())
        if self._took("between"):
            low = self._value()
            self._need("and")
            return F(name).between(low, self._value())
        if self._took("contains"):
            return Contains(name, self._word())
        if self._took("starts"):
            self._need("with")
            return StartsWith(name, self._word())
        self._fail(f"expected a comparison after {name!r}")

    def _field(self) -> str:
        token = self._next
        if token.kind == "name":
            return self._take().value[1:-1].replace('""', '"')
        if token.kind == "word" and token.lower not in _RESERVED:
            return self._take().value
        self._fail("expected the name of a field")

    def _list(self) -> tuple[Any, ...]:
        self._need("(")
        values: list[Any] = []
        while not self._took(")"):
            if values:
                self._need(",")
            values.append(self._value())
        return tuple(values)

    def _word(self) -> str:
        value = self._value()
        if not isinstance(value, str):
            self._at -= 1
            self._fail("expected a text in quotes")
        return value

    def _value(self) -> Any:
        token = self._next
        if token.kind == "number":
            return float(self._take().value) if re.search(r"[.eE]", token.value) else int(self._take().value)
        if token.kind == "text":
            return self._take().value[1:-1].replace("''", "'")
        if token.kind == "word" and token.lower in ("true", "false"):
            return self._take().lower == "true"
        self._fail("expected a value: a number, a text in single quotes, true or false")

    def _fail(self, expected: str) -> NoReturn:
        token = self._next
        raise FilterSyntaxError(
            f"filter, column {token.column}: {expected}, found {token.shown}",
            hint="write it like: year >= 2020 and lang in ('en', 'de')",
        )


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            column = at + len(text[at:]) - len(text[at:].lstrip()) + 1
            unclosed = text[column - 1] in "'\""
            raise FilterSyntaxError(
                f"filter, column {column}: " + ("a quote that is not closed" if unclosed else "cannot be read"),
                hint="texts stand in single quotes, with a quote inside written twice",
            )
        kind = str(match.lastgroup)
        found.append(_Token(kind, match[kind], match.start(kind) + 1))
        at = match.end()
    return [*found, _Token("end", "", len(text) + 1)]
