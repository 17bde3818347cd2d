"""Grammars over tokens: masks against a search byte by byte, and texts of an adversary against parser and schema."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.serving.automaton import Spellings, Stacks, TokenGrammar, Walk
from windlass.serving.json_grammar import json_object, json_schema, tool_call

END = 0
WORDS = [
    b"", *(bytes([value]) for value in range(256)), b'{"', b'":', b'", "', b'": "', b'"}', b"}}", b"[[", b"]]", b"],",
    b"true", b"fal", b"se", b"null", b"12", b"345", b"0.", b"e+", b"\\u", b"\\ud8", b"\xc3\xa9", b"\xf0\x9f", b"name",
    b"  ", b"\n  ", b', "', b'"a": ', b"-1", b'":{"', b"hello wor", b'x", "y": [', b"0000", b'""', b"99", b"000",
]  # fmt: skip
SPELLINGS = Spellings(WORDS)


def walk(automaton: Any) -> Walk:
    return Walk(TokenGrammar(automaton, SPELLINGS), {END})


def is_valid(value: Any, schema: Any, root: Any) -> bool:
    """An oracle for the keywords that are supported, as the specification words them."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        found = root
        for part in schema["$ref"].split("/")[1:]:
            found = found[part]
        return is_valid(value, found, root)
    checks = [
        "enum" not in schema or any(same(value, other) for other in schema["enum"]),
        "const" not in schema or same(value, schema["const"]),
        "anyOf" not in schema or any(is_valid(value, other, root) for other in schema["anyOf"]),
        "type" not in schema or any(has_type(value, kind) for kind in np.atleast_1d(schema["type"])),
    ]
    if isinstance(value, str):
        checks.append(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf))
    if has_type(value, "number"):
        checks.append(schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf))
        checks.append(schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf))
    if isinstance(value, list):
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf))
        checks += [is_valid(item, schema.get("items", True), root) for item in value]
    if isinstance(value, dict):
        checks.append(set(schema.get("required", ())) <= value.keys())
        for name, item in value.items():
            of = schema.get("properties", {}).get(name, schema.get("additionalProperties", True))
            checks.append(is_valid(item, of, root))
    return all(checks)


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def has_type(value: Any, kind: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {
        "string": isinstance(value, str), "number": number, "boolean": isinstance(value, bool), "null": value is None,
        "integer": number and float(value).is_integer(), "array": isinstance(value, list),
        "object": isinstance(value, dict),
    }[str(kind)]  # fmt: skip


def adversarial_text(walking: Walk, draw: random.Random, patience: int = 60) -> str:
    """Any allowed tokens for a while, the strangest first; then those that close what is open."""
    text = b""
    closers = [WORDS.index(sign) for sign in (b'"', b"]", b"}", b"0", b"a", b":", b"8", b"\xa0", b"n")]
    for step in range(4000):
        mask = walking.allowed()
        fitting = np.flatnonzero(mask)
        assert len(fitting), f"nothing may follow {text!r}"
        if walking.done or (mask[END] and step > patience):
            return text.decode()
        if step <= patience:
            token = int(fitting[draw.randrange(len(fitting))])
        else:
            token = next((closer for closer in closers if mask[closer]), int(fitting[-1]))
        if token == END:
            return text.decode()
        walking.take(token)
        text += WORDS[token]
    raise AssertionError("the text does not end")


def between(kind: str, low: str, high: str) -> Callable[[int, int], dict[str, Any]]:
    return lambda least, more: {"type": kind, low: least, high: least + more}


literals = st.sampled_from([None, 1, 1.5, "x", "yé\n", [1], {"k": "v"}])
names = st.sampled_from(["a", "b", "name", "x/y", "é", 'q"', "properties"])
leaves = st.one_of(
    st.just({"type": "boolean"}), st.just({"type": ["null", "number"]}), st.just({}), st.just({"description": "any"}),
    st.builds(between("string", "minLength", "maxLength"), st.integers(0, 4), st.integers(0, 6)),
    st.builds(between("integer", "minimum", "maximum"), st.integers(-2000, 2000), st.integers(0, 3000)),
    st.builds(lambda low: {"type": "integer", "exclusiveMinimum": low}, st.integers(-120, 120)),
    st.builds(lambda values: {"enum": values}, st.lists(literals, min_size=1)),
    st.just({"const": {"a": [1, "b"]}}),
)  # fmt: skip


def objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def build(members: dict[str, Any], needed: list[str], others: Any) -> dict[str, Any]:
        schema: dict[str, Any] = {"type": "object", "additionalProperties": others}
        if members:
            schema |= {"properties": members, "required": [name for name in needed if name in members]}
        return schema

    return st.builds(build, st.dictionaries(names, inner, max_size=4), st.lists(names), st.just(False) | inner)


schemas = st.recursive(
    leaves,
    lambda inner: st.one_of(
        objects(inner),
        st.builds(
            lambda item, size: {"items": item} | size,
            inner,
            st.builds(between("array", "minItems", "maxItems"), st.integers(0, 3), st.integers(0, 3)),
        ),
        st.builds(lambda item: {"type": "array", "items": item}, inner),
        st.builds(lambda choices: {"anyOf": choices}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(schemas, st.integers(0, 2**32))
def test_whatever_the_sampler_does_the_text_parses_and_is_valid(schema: Any, seed: int) -> None:
    text = adversarial_text(walk(json_schema(schema)), random.Random(seed))
    assert is_valid(json.loads(text), schema, schema), text


@settings(max_examples=25, deadline=None)
@given(schemas, st.integers(0, 2**32))
def test_masks_are_what_a_search_byte_by_byte_finds(schema: Any, seed: int) -> None:
    draw, automaton = random.Random(seed), json_schema(schema)
    walking, stacks = walk(automaton), Stacks(automaton)
    places, may_end = stacks.settle([(automaton.start, None)])
    for _ in range(12):
        expected = []
        for word in WORDS:
            reached, over = places, False
            for value in word:
                reached, over = stacks.after(reached, value)
            expected.append(bool(word) and bool(reached or over))
        expected[END] = may_end
        mask = walking.allowed()
        assert mask.tolist() == expected
        fitting = np.flatnonzero(mask[1:]) + 1
        if not len(fitting):
            return
        token = int(draw.choice(fitting.tolist()))
        walking.take(token)
        for value in WORDS[token]:
            places, may_end = stacks.after(places, value)
        assert walking.may_end == may_end


TREE = {
    "$defs": {"tree": {"type": "object", "properties": {"left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
                                                        "size": {"type": "integer"}}, "required": ["left", "size"],
                       "additionalProperties": False}},
    "$ref": "#/$defs/tree",
}  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_a_schema_may_contain_itself(seed: int) -> None:
    text = adversarial_text(walk(json_schema(TREE)), random.Random(seed))
    assert is_valid(json.loads(text), TREE, TREE)


@pytest.mark.parametrize("seed", range(8))
def test_any_object(seed: int) -> None:
    assert isinstance(json.loads(adversarial_text(walk(json_object()), random.Random(seed), 200)), dict)


def accepts(automaton: Any, text: str) -> bool:
    stacks = Stacks(automaton)
    places, over = stacks.settle([(automaton.start, None)])
    for value in text.encode():
        places, over = stacks.after(places, value)
    return over


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": -12, "maximum": 1034}, str(number)) for number in (-12, -9, 0, 7, 99, 100, 1034)
    ]
    + [
        ({"type": "number"}, "-0.5e-12"), ({"type": "string"}, '"\\ud7ff é \U0001f6a2"'),
        ({"type": "array", "items": {"type": "null"}}, "[null, null,null]"),
        ({"properties": {"a": {}, "b": {}}}, '{\n  "b": {"x": [1, {"y": []}]}\n}'), ({"enum": [1, "b"]}, '"b"'),
        ({"type": "string", "minLength": 2, "maxLength": 2}, '"\\n港"'), ({}, '[{}, true, "", -1]'),
        ({"type": "object", "required": ["z"]}, '{"z": 1}'),
    ],
)  # fmt: skip
def test_what_should_pass(schema: Any, text: str) -> None:
    assert accepts(json_schema(schema), text)


@pytest.mark.parametrize(
    ("schema", "text"),
    [({"type": "integer", "minimum": -12, "maximum": 1034}, text) for text in ("-13", "1035", "-0", "07", "1.0", "")]
    + [
        ({"type": "string"}, '"\\ud800"'), ({"type": "string"}, '"a\nb"'), ({"type": "array", "minItems": 2}, "[1]"),
        ({"properties": {"a": {}}, "required": ["a"]}, "{}"), ({"properties": {"a": {}}}, '{"a":1,}'),
        ({"type": "string", "maxLength": 1}, '"ab"'), ({"type": "number"}, "1."), ({"const": 1}, "2"), ({}, "[1 2]"),
    ],
)  # fmt: skip
def test_what_should_not_pass(schema: Any, text: str) -> None:
    assert not accepts(json_schema(schema), text)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "string", "pattern": "a+"}, "'pattern'"), ({"oneOf": [{}]}, "'oneOf'"), ({"not": {}}, "'not'"),
        ({"properties": {"a": {"type": "number", "minimum": 1}}}, "#/properties/a: the keyword 'minimum'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"), ({"type": "date"}, "'date'"),
        ({"$ref": "http://x"}, "http://x"), ({"$ref": "#/$defs/none"}, "none"), ({"anyOf": []}, "anyOf"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer"), ({"enum": 3}, "not a list"),
        ({"type": "string", "minLength": -1}, "minLength"), (False, "false"), ([], "not a schema"),
        ({"type": "string", "maxLength": 10**6}, "maxLength"), ({"enum": ["a"], "minLength": 3}, "beside 'enum'"),
        ({"required": ["a"], "additionalProperties": False}, "forbids"), ({"const": math.inf}, "cannot write"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(schema: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named.replace("+", r"\+")):
        json_schema(schema)


def test_nothing_fits_what_never_ends() -> None:
    with pytest.raises(UsageError, match="nothing fits"):
        walk(json_schema({"$ref": "#"}))


@pytest.mark.parametrize("seed", range(6))
def test_calls_of_tools(seed: int) -> None:
    tools = [("weather", {"properties": {"city": {"type": "string"}}, "required": ["city"]}), ("now", {})]
    found = json.loads(adversarial_text(walk(tool_call(tools, or_text=False)), random.Random(seed)))
    assert found.keys() == {"name", "arguments"} and found["name"] in ("weather", "now")
    assert is_valid(found["arguments"], dict(tools)[found["name"]], {}) and isinstance(found["arguments"], dict)
    either = tool_call(tools, or_text=True)
    assert accepts(either, "It is [raining].") and accepts(either, "") and not accepts(either, '{"x": 1}')
    assert accepts(either, '{"name": "now", "arguments": {}}')


def test_a_token_that_is_not_allowed_changes_nothing() -> None:
    walking = walk(json_object())
    before = walking.allowed().copy()
    for token in (END, WORDS.index(b"]")):
        with pytest.raises(UsageError, match="not allowed"):
            walking.take(token)
    assert np.array_equal(walking.allowed(), before)
