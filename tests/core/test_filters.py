"""Filters: text and Python mean the same, DuckDB agrees with every one, errors point at the place."""

from __future__ import annotations

from datetime import UTC, date, datetime

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.filter_text import parse_filter
from windlass.core.filters import (
    And,
    Compare,
    Contains,
    F,
    FilterError,
    FilterSyntaxError,
    FilterTypeError,
    IsIn,
    IsNull,
    Not,
    Or,
    StartsWith,
    UnknownField,
    microseconds,
)
from windlass.vectors.columns import column
from windlass.vectors.masks import passing

TYPES = {"i": "int", "x": "float", "s": "str", "b": "bool", "t": "timestamp", "tags": "set[str]"}
SQL = {"i": "BIGINT", "x": "DOUBLE", "s": "VARCHAR", "b": "BOOLEAN", "t": "TIMESTAMP", "tags": "VARCHAR[]"}
OPS = ["=", "!=", "<", "<=", ">", ">="]

values = {
    "i": st.integers(-3, 3),
    "x": st.sampled_from([-1.5, 0.0, 0.5, 2.0]),
    "s": st.sampled_from(["", "a", "b'c", "ab", "é"]),
    "b": st.booleans(),
    "t": st.integers(0, 3).map(lambda day: datetime(2024, 1, 1 + day)),
    "tags": st.lists(st.sampled_from(["p", "q", "r"]), unique=True, max_size=3),
}
rows = st.fixed_dictionaries({name: st.none() | kind for name, kind in values.items()})


def leaves():
    compared = st.sampled_from(["i", "x", "s", "t"]).flatmap(
        lambda name: st.builds(Compare, st.just(name), st.sampled_from(OPS), values[name])
    )
    crossed = st.one_of(
        st.builds(Compare, st.just("i"), st.sampled_from(OPS), values["x"]),
        st.builds(Compare, st.just("b"), st.sampled_from(["=", "!="]), st.booleans()),
    )
    listed = st.sampled_from(["i", "x", "s", "b", "t"]).flatmap(
        lambda name: st.builds(IsIn, st.just(name), st.lists(values[name], max_size=3).map(tuple))
    )
    words = st.one_of(
        st.builds(Contains, st.just("tags"), st.sampled_from(["p", "q", "z"])),
        st.builds(StartsWith, st.just("s"), st.sampled_from(["", "a", "b'", "é"])),
        st.builds(IsNull, st.sampled_from(list(TYPES))),
    )
    return st.one_of(compared, crossed, listed, words)


filters = st.recursive(
    leaves(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: And(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Or(tuple(parts))),
        inner.map(Not),
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def database():
    connection = duckdb.connect()
    yield connection
    connection.close()


@settings(max_examples=80, deadline=None)
@given(table=st.lists(rows, min_size=1, max_size=8), condition=filters)
def test_rows_columns_and_duckdb_agree(database, table, condition):
    database.execute(
        "CREATE OR REPLACE TABLE rows (n INTEGER, " + ", ".join(f'"{k}" {v}' for k, v in SQL.items()) + ")"
    )
    one = f"({', '.join('?' * (len(SQL) + 1))})"
    given = [value for number, row in enumerate(table) for value in (number, *(row[name] for name in SQL))]
    database.execute(f"INSERT INTO rows VALUES {', '.join([one] * len(table))}", given)
    found = database.execute(f"SELECT n FROM rows WHERE {condition.to_sql()} ORDER BY n").fetchall()
    expected = [number for (number,) in found]
    bound = condition.bind(TYPES)
    stored = [{**row, "t": None if row["t"] is None else microseconds(row["t"])} for row in table]
    assert [number for number, row in enumerate(stored) if bound.matches(row)] == expected
    columns = {name: column(name, kind, [row[name] for row in table]) for name, kind in TYPES.items()}
    assert np.flatnonzero(passing(bound, columns)).tolist() == expected


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("year >= 2020", F("year") >= 2020),
        ("year >= 2020 and lang in ('en','de')", (F("year") >= 2020) & F("lang").isin(["en", "de"])),
        ("NOT tags contains 'draft'", ~F("tags").contains("draft")),
        ("tags not contains 'a'", ~F("tags").contains("a")),
        ("a = 1 or b = 2 and c <> 3", (F("a") == 1) | ((F("b") == 2) & (F("c") != 3))),
        ("(a = 1 or b = 2) and c = -3.5e1", ((F("a") == 1) | (F("b") == 2)) & (F("c") == -35.0)),
        ("x between 1 and 2 and y is not null", F("x").between(1, 2) & ~F("y").is_null()),
        ("path starts with 'docs/it''s'", F("path").starts_with("docs/it's")),
        ('"a b" == true', F("a b") == True),  # noqa: E712
        ("n not in (1, 2)", ~F("n").isin([1, 2])),
        ("n in ()", F("n").isin([])),
        ("größe < 3 and file.size > 1", (F("größe") < 3) & (F("file.size") > 1)),
    ],
)
def test_text_and_python_mean_the_same(text, same):
    assert parse_filter(text) == same


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "column 1: expected the name of a field, found the end"),
        ("year >", "column 7: expected a value"),
        ("year >= 2020 lang", "column 14: expected and, or, or the end, found 'lang'"),
        ("year >= 'abc", "column 9: a quote that is not closed"),
        ("(a = 1", r"column 7: expected \), found the end"),
        ("a = 1 and and b = 2", "column 11: expected the name of a field, found 'and'"),
        ("a contains 3", "column 12: expected a text in quotes, found '3'"),
        ("a ? 3", "column 3: cannot be read"),
        ("a is 3", "column 6: expected null"),
        ("a in (1 2)", "column 9: expected ,"),
        ("a = 12abc", "column 5: cannot be read"),
        ("not " * 200 + "a = 1", "nested deeper than 100"),
        ("(" * 5000 + "a = 1", "nested deeper than 100"),
    ],
)
def test_what_is_no_filter_is_pointed_at(text, message):
    with pytest.raises(FilterSyntaxError, match=message):
        parse_filter(text)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (F("i") > "abc", "'i' is a whole number and is compared with 'abc'; give a number"),
        (F("s") == 3, "'s' is a text and is compared with 3; give a text in quotes"),
        (F("b") == 1, "'b' is true or false and is compared with 1"),
        (F("b") < True, "'b' is true or false and has no order"),
        (F("i") == True, "'i' is a whole number and is compared with True"),  # noqa: E712
        (F("x") == float("nan"), "'x' is compared with NaN; write x is null"),
        (F("t") > "yesterday", "'t' is a timestamp and is compared with 'yesterday'; give a date"),
        (F("tags") == "p", "'tags' is a set of texts and cannot be compared by ="),
        (F("s").contains("a"), "'s' is a text and contains nothing"),
        (F("tags").isin(["a"]), "'tags' is a set of texts and is not in a list"),
        (F("i").starts_with("1"), "'i' is a whole number, not a text that starts"),
    ],
)
def test_types_are_never_guessed(condition, message):
    with pytest.raises(FilterTypeError, match=message):
        condition.bind(TYPES)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(UnknownField, match="no field 'yaer'; did you mean year") as caught:
        (F("yaer") > 3).bind({"year": "int", "title": "str"})
    assert caught.value.did_you_mean[0] == "year"
    with pytest.raises(UnknownField, match="the fields are a, b"):
        (F("zzz") > 3).bind({"a": "int", "b": "str"})


def test_depth_is_limited_however_the_filter_was_made():
    nested = F("a") == 1
    for _ in range(150):
        nested = Not(Or((nested, F("a") == 2)))
    with pytest.raises(FilterError, match="nested deeper than 100"):
        nested.bind({"a": "int"})


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (datetime(1970, 1, 1, 0, 0, 1), 1_000_000),
        (datetime(1970, 1, 1, tzinfo=UTC), 0),
        (date(1969, 12, 31), -86_400_000_000),
    ],
)
def test_moments_are_counted_from_1970(moment, expected):
    assert microseconds(moment) == expected
    assert (F("t") >= moment).bind({"t": "timestamp"}).value == expected


def test_whole_numbers_beyond_the_exact_range_of_floats():
    big = 2**60
    numbers = column("n", "int", [big, big + 1])
    for condition, expected in (
        (F("n") == big + 1, [1]),
        (F("n") > float(big), [1]),
        (F("n") < 10**30, [0, 1]),
        (F("n") > 1e300, []),
        (F("n") > float("-inf"), [0, 1]),
    ):
        bound = condition.bind({"n": "int"})
        assert np.flatnonzero(passing(bound, {"n": numbers})).tolist() == expected
