"""Cells against Python's own csv module, float conversion and date parser."""

from __future__ import annotations

import csv
import io
import math
from datetime import datetime

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from windlass.kernels.cells import CODE, DATE, INTEGER, NULL, NUMBER, TEXT, TIMESTAMP, TRUTH
from windlass.lake.hashing import delimited_cells, hash_table, record_cells
from windlass.lake.readers.columns import NULL_WORDS, typed


def kinds_and_hashes(values: list[str]) -> tuple[list[int], list[int], list[float]]:
    table = hash_table(record_cells([[value] for value in values], ["a"]))
    return table.kinds[0].tolist(), table.hashes[0].tolist(), table.values[0].tolist()


CELL = st.text(st.sampled_from('ab1 ,;"\n\r.-é'), max_size=6)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_cells_are_split_as_by_the_csv_module(rows: list[list[str]], eol: str) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator=eol).writerows(rows)
    text = out.getvalue()
    want = [row for row in csv.reader(io.StringIO(text, newline="")) if any(row)]
    cells = delimited_cells(text.encode(), 0, ",", ["a", "b", "c", "d"])
    assert cells is not None
    found = [[cells.text(column, row) for column in range(4)] for row in range(cells.rows)]
    assert found == [row + [""] * (4 - len(row)) for row in want]
    assert cells.ragged == sum(len(row) != 4 for row in want)


def test_what_the_csv_module_takes_from_odd_quotes() -> None:
    text = '"a"b,c"d"e\n"x""y","1\n2"\n'
    cells = delimited_cells(text.encode(), 0, ",", ["a", "b"])
    assert cells is not None
    assert [[cells.text(c, r) for c in (0, 1)] for r in (0, 1)] == list(csv.reader(io.StringIO(text, newline="")))


def test_a_quote_that_runs_away_is_given_back() -> None:
    assert delimited_cells(b'a,"b\nc,d\n', 0, ",", ["a", "b"]) is None


def test_lines_say_where_each_row_begins() -> None:
    data = b"a,b\r\n\r\n1,2\r\n3,4"
    cells = delimited_cells(data, 5, ",", ["a", "b"])
    assert cells is not None and cells.lines.tolist() == [7, 12]


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**18) + 1, 10**18 - 1).map(str),
    st.from_regex(r"\A[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,2})?\Z"),
)


@settings(deadline=None, max_examples=200)
@given(NUMBERS)
@example("0.1000000000000000055")
@example("9007199254740993")
@example("123456789012345678")
@example("1e-320")
def test_numbers_are_those_of_float(word: str) -> None:
    (kind,), _, (value,) = kinds_and_hashes([word])
    if kind == CODE:  # more than 18 digits before the point, or three of an exponent too many
        assert typed([word]).type == "text"
        return
    assert kind in (INTEGER, NUMBER)
    assert value == float(word)
    assert typed([word]).type in ("integer", "number")


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_spelling_of_a_number_has_one_hash(value: float) -> None:
    spellings = [repr(value), format(value, ".17g"), format(value, ".25e"), f" {value!r} "]
    if value.is_integer() and abs(value) < 1e15:
        spellings += [str(int(value)), f"{int(value)}.0", f"{int(value)}."]
    kinds, hashes, _ = kinds_and_hashes(spellings)
    assert set(kinds) <= {INTEGER, NUMBER} and len(set(hashes)) == 1


def test_integers_that_no_float_holds_are_told_apart() -> None:
    _, hashes, _ = kinds_and_hashes(["9007199254740993", "9007199254740992", "+9007199254740993", "9007199254740992.0"])
    assert hashes[0] == hashes[2] != hashes[1] == hashes[3]


@pytest.mark.parametrize("word", sorted(NULL_WORDS))
def test_null_words_are_one_null(word: str) -> None:
    kinds, hashes, _ = kinds_and_hashes([word, f" {word}\t", ""])
    assert kinds == [NULL] * 3 and len(set(hashes)) == 1


@pytest.mark.parametrize("word", ["n", "Na", "NAN", "none", "Null", "NaNs", "--", "nA", "nule"])
def test_what_only_looks_like_null_is_text(word: str) -> None:
    assert kinds_and_hashes([word])[0][0] in (TEXT, CODE)


@pytest.mark.parametrize("word", ["007", "1,234", "12a", "+", "-", "1e", "1e1234", "1.2.3", "0x10", "1_000", "٣"])
def test_codes_are_no_numbers(word: str) -> None:
    assert kinds_and_hashes([word])[0][0] in (CODE, TEXT, NULL)


@settings(deadline=None)
@given(st.datetimes(), st.sampled_from([" ", "T"]))
def test_moments_are_those_of_datetime(moment: datetime, between: str) -> None:
    kinds, hashes, values = kinds_and_hashes([moment.isoformat(between), moment.isoformat(" ")])
    assert kinds == [TIMESTAMP] * 2 and hashes[0] == hashes[1]
    micros = (moment - datetime(1970, 1, 1)) // (datetime.resolution)
    assert math.isclose(values[0], micros, rel_tol=1e-15, abs_tol=0.6)


@settings(deadline=None)
@given(st.dates())
def test_a_date_is_its_midnight(day: datetime) -> None:
    kinds, hashes, _ = kinds_and_hashes(
        [day.isoformat(), f"{day.isoformat()} 00:00", f"{day.isoformat()}T00:00:00.000"]
    )
    assert kinds == [DATE, TIMESTAMP, TIMESTAMP] and len(set(hashes)) == 1


@pytest.mark.parametrize(
    "word", ["2023-02-29", "2024-13-01", "2024-00-10", "2024-01-01 24:00", "2024-1-1", "2024-01-01x"]
)
def test_what_is_no_moment_is_text(word: str) -> None:
    assert kinds_and_hashes([word])[0] == [CODE]


def test_truth_is_one_of_two_in_any_case() -> None:
    kinds, hashes, _ = kinds_and_hashes(["true", "TRUE", "True", "false", "FALSE"])
    assert kinds == [TRUTH] * 5 and len(set(hashes[:3])) == 1 and hashes[3] == hashes[4] != hashes[0]


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=8))
def test_space_is_cut_off_as_by_strip(text: str) -> None:
    cells = record_cells([[text]], ["a"])
    hash_table(cells)
    assert cells.text(0, 0) == text.strip()


def test_kinds_of_value_never_meet() -> None:
    words = ["1", "true", "2024-01-01", "x", "", "01"]
    assert len(set(kinds_and_hashes(words)[1])) == len(words)
    assert np.isnan(kinds_and_hashes(["x"])[2][0])
