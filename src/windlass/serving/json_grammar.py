"""JSON Schema as an automaton over bytes: every text that leads through it parses, and is valid.

Understood are `type`, `enum`, `const`, `properties`, `required`, `additionalProperties`, `items`, `minItems`,
`maxItems`, `minLength`, `maxLength`, bounds of integers, `anyOf`, `$ref` into the schema itself (recursion included),
and `$defs`. Whatever else would restrict a value is refused by name; notes to readers (`title`, `description`, ...) are
passed over.

Of the valid texts a few are left out, so that answers end and can be read: properties come in the order of the schema
and only those it names, unless it names none; numbers have at most 15 digits before and behind the point; between
signs stands at most one space, or a line break and an indentation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from windlass.core.errors import UsageError
from windlass.serving.automaton import Automaton

Schema = Mapping[str, Any] | bool
_TYPES = ("string", "integer", "number", "boolean", "null", "object", "array")
_OF_TYPE = {
    "string": {"minLength", "maxLength"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": set[str](),
    "boolean": set[str](),
    "null": set[str](),
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
}
_BOUNDS = _OF_TYPE["integer"]
_NOTES = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$schema", "$id", "$comment")
)
_ALONE = ("$ref", "anyOf", "enum", "const")
_DEFINITIONS = frozenset(("$defs", "definitions"))
_MOST_STATES = 200_000
_MOST_COUNT = 4_096
_DIGITS = 15
_LARGEST = 10**_DIGITS - 1
_INDENT = 24
_DIGIT, _HEX = b"0123456789", b"0123456789abcdefABCDEF"
_ANYTHING: Schema = True


def json_object() -> Automaton:
    """Any JSON object."""
    return json_schema({"type": "object"})


def json_schema(schema: Schema) -> Automaton:
    """Every JSON text that a schema allows, but for those named above.

    Raises:
        UsageError: a keyword is not supported, or the schema is wrong or too large; the message says where.
    """
    automaton = Automaton()
    _Builder(automaton, schema).value(schema, "#", automaton.start, automaton.end)
    return automaton


def tool_call_text(name: str, arguments: str) -> str:
    """A call as `tool_call` has it; `arguments` is a JSON object."""
    return f'{{"name": {json.dumps(name)}, "arguments": {arguments}}}'


def read_tool_call(text: str) -> tuple[str, str] | None:
    """Name and arguments of a call, the arguments as far as they are there; None when `text` is none."""
    lead = '{"name": '
    if not text.startswith(lead):
        return None
    try:
        name, _ = json.JSONDecoder().raw_decode(text, len(lead))
    except ValueError:
        return None
    beginning = tool_call_text(name, "")[:-1]
    if not text.startswith(beginning):
        return None
    arguments = text[len(beginning) :]
    try:
        json.loads(text)
    except ValueError:
        return name, arguments
    return name, arguments[:-1]


def tool_call(tools: Sequence[tuple[str, Schema]], *, or_text: bool) -> Automaton:
    """A call of one of `tools`, `{"name": ..., "arguments": ...}`, each with the schema of its arguments.

    Args:
        tools: Names and schemas.
        or_text: Also any text that does not begin with a brace.

    Raises:
        UsageError: as `json_schema`; places are told as `NAME#/...`.
    """
    automaton = Automaton()
    for name, schema in tools:
        named, called = automaton.state(), automaton.state()
        automaton.spell(automaton.start, tool_call_text(name, "")[:-1].encode(), named)
        automaton.call(named, _Builder(automaton, schema).target(schema, f"{name}#", {"type": "object"}), called)
        automaton.spell(called, b"}", automaton.end)
    if or_text:
        automaton.skip(automaton.start, automaton.end)
        text = automaton.state(final=True)
        automaton.read(automaton.start, set(range(256)) - {ord("{")}, text)
        automaton.read(text, range(256), text)
    return automaton


class _Builder:
    """Puts the parts of one schema into an automaton."""

    def __init__(self, automaton: Automaton, root: Schema) -> None:
        self._made, self._root = automaton, root
        self._shared: dict[str, int] = {}

    def value(self, schema: Schema, path: str, start: int, end: int) -> None:
        """From `start` to `end` by a value of `schema`, which stands at `path`."""
        if len(self._made.final) > _MOST_STATES:
            raise UsageError(f"the schema is too large: {path} does not fit any more")
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise UsageError(f"{path}: nothing fits `false`" if schema is False else f"{path} is not a schema")
        alone = [name for name in _ALONE if name in schema]
        if alone:
            self._alone(alone[0], schema, path, start, end)
            return
        kinds = self._kinds(schema, path)
        if schema.keys() <= _NOTES | _DEFINITIONS:
            self._made.call(start, self._anything(), end)
            return
        for kind in kinds:
            self._of_kind(kind, schema, path, start, end)

    def target(self, schema: Schema, path: str, otherwise: Schema | None = None) -> int:
        """Where to call a value of `schema`. What stands at one path is made once, so it may contain itself."""
        known = self._shared.get(path)
        if known is not None:
            return known
        start, end = self._made.state(), self._made.state(final=True)
        self._shared[path] = start
        self.value(otherwise if otherwise is not None and schema == {} else schema, path, start, end)
        return start

    def _kinds(self, schema: Mapping[str, Any], path: str) -> list[str]:
        """The types that are wanted, told or guessed; anything that cannot be kept is refused."""
        told = schema.get("type", [])
        kinds = [told] if isinstance(told, str) else told
        if not isinstance(kinds, list) or any(kind not in _TYPES for kind in kinds):
            raise UsageError(f"{path}/type is {told!r}, expected some of {', '.join(_TYPES)}")
        if not kinds:
            kinds = [kind for kind in _TYPES if _OF_TYPE[kind] & schema.keys()]
        known = _NOTES | _DEFINITIONS | {"type"} | set().union(*_OF_TYPE.values())
        for name in schema:
            if name not in known or (name in _BOUNDS and "number" in kinds):
                of = " of numbers that need not be integers" if name in _BOUNDS else ""
                raise UsageError(f"{path}: the keyword {name!r}{of} is not supported")
        # An integer is a number; both would only make the automaton ambiguous.
        return [kind for kind in kinds if kind != "integer" or "number" not in kinds]

    def _alone(self, name: str, schema: Mapping[str, Any], path: str, start: int, end: int) -> None:
        for other in schema:
            if other != name and other not in _NOTES | _DEFINITIONS | {"type"}:
                raise UsageError(f"{path}: the keyword {other!r} beside {name!r} is not supported")
        if name == "$ref":
            self._made.call(start, self._referred(schema[name], path), end)
        elif name == "anyOf":
            choices = schema[name]
            if not isinstance(choices, list) or not choices or "type" in schema:
                raise UsageError(f"{path}: the keyword 'anyOf' needs schemas, and no 'type' beside it")
            for number, choice in enumerate(choices):
                self._made.call(start, self.target(choice, f"{path}/anyOf/{number}"), end)
        else:
            self._literals(name, schema, path, start, end)

    def _literals(self, name: str, schema: Mapping[str, Any], path: str, start: int, end: int) -> None:
        values = schema[name] if name == "enum" else [schema[name]]
        if not isinstance(values, list):
            raise UsageError(f"{path}/enum is not a list")
        kinds = self._kinds({"type": schema["type"]}, path) if "type" in schema else None
        fitting = [value for value in values if kinds is None or any(_is_a(value, kind) for kind in kinds)]
        if not fitting:
            raise UsageError(f"{path}: no value of {name!r} is of the type asked for")
        for value in fitting:
            try:
                text = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
            except ValueError as error:  # infinity, or half of a surrogate pair
                raise UsageError(f"{path}: {name} holds {value!r}, which JSON cannot write") from error
            self._made.spell(start, text, end)

    def _referred(self, name: Any, path: str) -> int:
        if not isinstance(name, str) or not (name == "#" or name.startswith("#/")):
            raise UsageError(f"{path}: the $ref {name!r} does not point into the schema itself")
        found: Any = self._root
        for part in name.split("/")[1:]:
            step = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            else:
                raise UsageError(f"{path}: nothing stands at the $ref {name!r}")
        return self.target(found, f"ref {name}")

    def _of_kind(self, kind: str, schema: Mapping[str, Any], path: str, start: int, end: int) -> None:
        made = self._made
        if kind == "null":
            made.spell(start, b"null", end)
        elif kind == "boolean":
            made.spell(start, b"true", end)
            made.spell(start, b"false", end)
        elif kind == "number":
            made.call(start, self._part("number"), end)
        elif kind == "integer":
            self._integer(schema, path, start, end)
        elif kind == "string":
            self._string(schema, path, start, end)
        elif kind == "array":
            self._array(schema, path, start, end)
        else:
            self._object(schema, path, start, end)

    # Values

    def _integer(self, schema: Mapping[str, Any], path: str, start: int, end: int) -> None:
        lows = [_bound(schema, name, path) for name in ("minimum", "exclusiveMinimum") if name in schema]
        highs = [_bound(schema, name, path) for name in ("maximum", "exclusiveMaximum") if name in schema]
        low, high = math.ceil(max([-_LARGEST, *lows])), math.floor(min([_LARGEST, *highs]))
        if "exclusiveMinimum" in schema and low == schema["exclusiveMinimum"]:
            low += 1
        if "exclusiveMaximum" in schema and high == schema["exclusiveMaximum"]:
            high -= 1
        if low > high:
            raise UsageError(f"{path}: no integer of at most {_DIGITS} digits is within its bounds")
        if high >= 0:
            self._counting(max(low, 0), high, start, end)
        if low < 0:
            signed = self._made.state()
            self._made.read(start, b"-", signed)
            self._counting(max(1, -high), -low, signed, end)

    def _counting(self, low: int, high: int, start: int, end: int) -> None:
        """Integers of `low` to `high`, none negative, without leading zeros."""
        for digits in range(len(str(low)), len(str(high)) + 1):
            first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
            self._between(str(first), str(min(high, 10**digits - 1)), start, end)

    def _between(self, low: str, high: str, start: int, end: int) -> None:
        """Numerals of one length, from `low` to `high`."""
        made, first, last = self._made, int(low[0]), int(high[0])
        if len(low) == 1:
            made.read(start, _DIGIT[first : last + 1], end)
            return
        if first == last:
            rest = made.state()
            made.read(start, _DIGIT[first : first + 1], rest)
            self._between(low[1:], high[1:], rest, end)
            return
        zeros, nines = "0" * (len(low) - 1), "9" * (len(low) - 1)
        if low[1:] != zeros:
            self._between(low, low[0] + nines, start, end)
            first += 1
        if high[1:] != nines:
            self._between(high[0] + zeros, high, start, end)
            last -= 1
        if first <= last:
            rest = made.state()
            made.read(start, _DIGIT[first : last + 1], rest)
            for _ in range(len(low) - 2):
                rest, before = made.state(), rest
                made.read(before, _DIGIT, rest)
            made.read(rest, _DIGIT, end)

    def _string(self, schema: Mapping[str, Any], path: str, start: int, end: int) -> None:
        least, most = _count(schema, "minLength", path), _count(schema, "maxLength", path)
        if not least and most is None:
            self._made.call(start, self._part("string"), end)
            return
        made, inside = self._made, self._made.state()
        made.read(start, b'"', inside)
        closing = made.state()
        made.read(closing, b'"', end)
        # Not a call for each: nearly every token would leave it, and be followed through the stack.
        self._times(self._character, least or 0, most, inside, closing, path)

    def _times(
        self, part: Callable[[int, int], None], least: int, most: int | None, start: int, end: int, path: str
    ) -> None:
        """`least` to `most` of a part one behind the other."""
        if most is not None and most < (least or 0):
            raise UsageError(f"{path}: at least {least} and at most {most} cannot be")
        for place in range(least if most is None else most):
            if place >= least:
                self._made.skip(start, end)
            start, before = self._made.state(), start
            part(before, start)
        if most is None:
            part(start, start)
        self._made.skip(start, end)

    def _array(self, schema: Mapping[str, Any], path: str, start: int, end: int) -> None:
        least, most = _count(schema, "minItems", path) or 0, _count(schema, "maxItems", path)
        made, opened, closing = self._made, self._made.state(), self._made.state()
        self._sign(start, b"[", opened)
        made.read(closing, b"]", end)
        if least == 0:
            made.skip(opened, closing)
        if most == 0 and least == 0:
            return
        item = self.target(schema.get("items", _ANYTHING), f"{path}/items")
        further, last, behind = made.state(), made.state(), made.state()
        follower, follower_end = made.state(), made.state(final=True)
        comma = made.state()
        self._sign(follower, b",", comma)
        made.call(comma, item, follower_end)
        made.call(opened, item, further)
        most = None if most is None else most - 1
        self._times(
            lambda one, next_one: made.call(one, follower, next_one), max(0, least - 1), most, further, last, path
        )
        made.call(last, self._part("space"), behind)
        made.skip(behind, closing)

    def _object(self, schema: Mapping[str, Any], path: str, start: int, end: int) -> None:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, Mapping) or not isinstance(required, list):
            raise UsageError(f"{path}: `properties` is an object and `required` a list of names")
        others = schema.get("additionalProperties", _ANYTHING)
        members = dict(properties)
        for name in required:
            if name not in members and others is False:
                raise UsageError(f"{path}: {name!r} is required, and additionalProperties forbids it")
            members.setdefault(name, others)
        made, opened, last = self._made, self._made.state(), self._made.state()
        self._sign(start, b"{", opened)
        if members:
            self._members(members, frozenset(required), path, opened, last)
        else:
            made.skip(opened, last)
            if others is not False:
                self._mapping(others, path, opened, last)
        made.read(last, b"}", end)

    def _members(
        self, members: Mapping[str, Schema], required: frozenset[str], path: str, start: int, end: int
    ) -> None:
        """The members in order; who is not required may be left out. No comma stands before the first one there is."""
        made, first, later = self._made, start, self._made.state()
        for name, schema in members.items():
            key, value, next_first, next_later = made.state(), made.state(), made.state(), made.state()
            self._sign(later, b",", key)
            made.skip(first, key)
            made.spell(key, json.dumps(name, ensure_ascii=False).encode(), value)
            colon = made.state()
            self._sign(value, b":", colon)
            made.call(colon, self.target(schema, f"{path}/properties/{_step(name)}"), next_later)
            if name not in required:
                made.skip(first, next_first)
                made.skip(later, next_later)
            first, later = next_first, next_later
        if not required:
            made.skip(first, end)
        made.call(later, self._part("space"), end)

    def _mapping(self, values: Schema, path: str, start: int, end: int) -> None:
        """Members of any name, at least one."""
        made, member, valued = self._made, self._made.state(), self._made.state(final=True)
        named, colon, some, key = made.state(), made.state(), made.state(), made.state()
        made.call(member, self._part("string"), named)
        self._sign(named, b":", colon)
        made.call(colon, self.target(values, f"{path}/additionalProperties"), valued)
        made.call(start, member, some)
        self._sign(some, b",", key)
        made.call(key, member, some)
        made.call(some, self._part("space"), end)

    def _anything(self) -> int:
        known = self._shared.get("anything")
        if known is None:
            known = self._shared["anything"] = self._made.state()
            end = self._made.state(final=True)
            for kind in _TYPES:
                if kind != "integer":
                    self._of_kind(kind, {}, "anything", known, end)
        return known

    # Parts that are written once and called

    def _sign(self, start: int, sign: bytes, end: int) -> None:
        """One of `[{,:` and the space behind it."""
        behind = self._made.state()
        self._made.read(start, sign, behind)
        self._made.call(behind, self._part("space"), end)

    def _part(self, name: str) -> int:
        known = self._shared.get(name)
        if known is None:
            known = self._shared[name] = self._made.state()
            end = self._made.state(final=True)
            {"space": self._space, "character": self._character, "number": self._number, "string": self._text}[name](
                known, end
            )
        return known

    def _space(self, start: int, end: int) -> None:
        made = self._made
        made.skip(start, end)
        made.read(start, b" ", end)
        place = made.state()
        made.read(start, b"\n", place)
        for _ in range(_INDENT):
            made.skip(place, end)
            place, before = made.state(), place
            made.read(before, b" ", place)
        made.skip(place, end)

    def _text(self, start: int, end: int) -> None:
        inside = self._made.state()
        self._made.read(start, b'"', inside)
        self._character(inside, inside)
        self._made.read(inside, b'"', end)

    def _character(self, start: int, end: int) -> None:
        """One code point, as it is or escaped; never half a surrogate pair."""
        made = self._made
        made.read(start, set(range(0x20, 0x80)) - set(b'"\\'), end)
        escape, code = made.state(), made.state()
        made.read(start, b"\\", escape)
        made.read(escape, b'"\\/bfnrt', end)
        made.read(escape, b"u", code)
        second, low = made.state(), made.state()
        made.read(code, set(_HEX) - set(b"dD"), second)
        made.read(code, b"dD", low)
        third, fourth = made.state(), made.state()
        made.read(second, _HEX, third)
        made.read(low, b"01234567", third)
        made.read(third, _HEX, fourth)
        made.read(fourth, _HEX, end)
        self._utf8(start, end)

    def _utf8(self, start: int, end: int) -> None:
        """Code points of two to four bytes, in their shortest form, surrogates left out."""
        made, tail = self._made, range(0x80, 0xC0)
        one, two = made.state(), made.state()
        made.read(one, tail, end)
        made.read(two, tail, one)
        made.read(start, range(0xC2, 0xE0), one)
        made.read(start, {*range(0xE1, 0xED), 0xEE, 0xEF}, two)
        made.read(start, range(0xF1, 0xF4), three := made.state())
        made.read(three, tail, two)
        for lead, second, behind in ((0xE0, range(0xA0, 0xC0), one), (0xED, range(0x80, 0xA0), one),
                                     (0xF0, range(0x90, 0xC0), two), (0xF4, range(0x80, 0x90), two)):  # fmt: skip
            made.read(start, (lead,), between := made.state())
            made.read(between, second, behind)

    def _number(self, start: int, end: int) -> None:
        made, whole, pointed, scaled = self._made, self._made.state(), self._made.state(), self._made.state()
        signed = made.state()
        made.skip(start, signed)
        made.read(start, b"-", signed)
        self._counting(0, _LARGEST, signed, whole)
        made.skip(whole, end)
        made.read(whole, b".", pointed)
        fraction = self._digits(pointed, _DIGITS, end)
        for place in (whole, *fraction):
            made.read(place, b"eE", scaled)
        power = made.state()
        made.skip(scaled, power)
        made.read(scaled, b"+-", power)
        self._digits(power, 2, end)

    def _digits(self, start: int, most: int, end: int) -> list[int]:
        """One to `most` digits; the states behind each of them."""
        behind = []
        for _ in range(most):
            start, before = self._made.state(), start
            self._made.read(before, _DIGIT, start)
            self._made.skip(start, end)
            behind.append(start)
        return behind


def _bound(schema: Mapping[str, Any], name: str, path: str) -> float:
    value = schema[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{path}/{name} is {value!r}, expected a number")
    return value


def _step(name: str) -> str:
    """A name as part of a path, by the rules of JSON pointers."""
    return name.replace("~", "~0").replace("/", "~1")


def _count(schema: Mapping[str, Any], name: str, path: str) -> int | None:
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_COUNT:
        raise UsageError(f"{path}/{name} is {value!r}, expected 0 to {_MOST_COUNT}")
    return value


def _is_a(value: Any, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    types: dict[str, Any] = {
        "string": str, "boolean": bool, "null": type(None), "object": dict, "array": list
    }  # fmt: skip
    return isinstance(value, types[kind])
