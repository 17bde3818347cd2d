"""Questions over whole tables, against the same figures computed row by row in plain Python."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import ReadError
from windlass.lake.document import Column
from windlass.retrieval.table_questions import TableSource, answer_from_tables
from windlass.retrieval.types import Answer

NAMES = ["Aurora", "Black Pearl", "Cygnus", "Dorado", "Estrella", "Fulmar", "Golden Hind", "Hesperus"]
TYPES = ["tanker", "bulk carrier", "tanker", "ro-ro", "container ship", "tanker", "bulk carrier", "ro-ro"]
_random = random.Random(4)
VESSELS: list[dict[str, Any]] = [
    {
        "imo": 9300000 + i,
        "name": NAMES[i],
        "type": TYPES[i],
        "length_m": 80.0 + 37.5 * ((i * 5) % 8),
        "draught_m": 4.0 + 1.5 * ((i * 3) % 8),
        "flag": ["Malta", "Panama", "Norway"][i % 3],
        "built_year": 1985 + 4 * i,
    }
    for i in range(8)
]
CALLS: list[dict[str, Any]] = [
    {
        "call_id": i,
        "vessel": _random.choice(NAMES),
        "berth": _random.randint(1, 12),
        "arrival": datetime(2023, 1, 1) + timedelta(hours=_random.randint(0, 17_000)),
        "cargo_t": round(_random.uniform(0, 9000), 1),
        "status": _random.choice(["completed", "cancelled", "planned", 'o\'dd "one"']),
    }
    for i in range(3000)
]
_TYPES = {int: "integer", float: "number", str: "text", datetime: "timestamp"}


def source(name: str, rows: list[dict[str, Any]], file: str = "", doc_id: int = 1) -> TableSource:
    table = pa.Table.from_pylist(rows)
    columns = []
    for column in table.column_names:
        values = [row[column] for row in rows if row[column] is not None]
        samples = tuple(str(value) for value in dict.fromkeys(values))[:5]
        kind = _TYPES[type(values[0])]
        columns.append(Column(column, kind, 0, len(set(values)), str(min(values)), str(max(values)), samples))
    return TableSource(file or f"data/{name}.csv", doc_id, name, tuple(columns), len(rows), lambda: table)


TABLES = [source("vessels", VESSELS), source("calls", CALLS, doc_id=2)]


def ask(question: str) -> Answer:
    answer = answer_from_tables(question, TABLES)
    assert answer is not None, question
    assert answer.mode == "table" and answer.found
    citation = answer.sentences[0].citations[0]
    assert citation.sql is not None and citation.sql.startswith("SELECT ") and ";" not in citation.sql
    assert citation.quote == "" and citation.start == citation.end
    return answer


def figure(value: float) -> str:
    return f"{value:,.2f}".rstrip("0").rstrip(".")


def where(rows: list[dict[str, Any]], **equal: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in equal.items())]


@pytest.mark.parametrize(
    ("question", "rows"),
    [
        ("How many vessels are there?", VESSELS),
        ("How many rows does the calls table have?", CALLS),
        ("How many tankers are registered?", where(VESSELS, type="tanker")),
        ("How many vessels have the flag Malta?", where(VESSELS, flag="Malta")),
        ("How many calls were there at berth 7?", where(CALLS, berth=7)),
        ("How many calls were cancelled?", where(CALLS, status="cancelled")),
        ("How many calls were there in 2024?", [row for row in CALLS if row["arrival"].year == 2024]),
        (
            "How many calls of the Black Pearl were completed in March 2023?",
            [
                row
                for row in where(CALLS, vessel="Black Pearl", status="completed")
                if (row["arrival"].year, row["arrival"].month) == (2023, 3)
            ],
        ),
        ("How many calls were there before 2024?", [row for row in CALLS if row["arrival"].year < 2024]),
        ("How many calls after 30 June 2024?", [row for row in CALLS if row["arrival"] >= datetime(2024, 7, 1)]),
        ("How many vessels are longer than 200 m?", [row for row in VESSELS if row["length_m"] > 200]),
        ("How many vessels have a draught of at most 8.5 metres?", [r for r in VESSELS if r["draught_m"] <= 8.5]),
        ("How many vessels were built before 2000?", [row for row in VESSELS if row["built_year"] < 2000]),
    ],
)
def test_counts(question: str, rows: list[dict[str, Any]]) -> None:
    assert f": {len(rows):,} rows" in ask(question).text


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("What is the total cargo of all calls?", sum(row["cargo_t"] for row in CALLS)),
        ("What is the total cargo of the Aurora?", sum(row["cargo_t"] for row in where(CALLS, vessel="Aurora"))),
        (
            "What is the average length of tankers?",
            statistics.mean(r["length_m"] for r in where(VESSELS, type="tanker")),
        ),
        ("What is the median cargo of calls?", statistics.median(row["cargo_t"] for row in CALLS)),
        ("What is the maximum length of a ro-ro?", max(r["length_m"] for r in where(VESSELS, type="ro-ro"))),
        ("What is the smallest draught of the vessels?", min(row["draught_m"] for row in VESSELS)),
    ],
)
def test_figures(question: str, value: float) -> None:
    assert figure(value) in ask(question).text


def test_rankings_and_rows() -> None:
    longest = sorted(VESSELS, key=lambda row: -row["length_m"])
    assert longest[0]["name"] in ask("Which vessel is the longest?").text
    three = ask("What are the 3 longest vessels?").text
    assert [row["name"] for row in longest[:3]] == [
        name for name in three.replace(";", " /").split() if name in NAMES
    ] or all(row["name"] in three for row in longest[:3])
    assert longest[3]["name"] not in three
    assert VESSELS[0]["name"] in ask("What is the oldest vessel?").text
    berth, count = min(Counter(row["berth"] for row in CALLS).items(), key=lambda item: (-item[1], item[0]))
    assert f"berth {berth}: {count:,} rows" in ask("Which berth had the most calls?").text
    assert (
        f"is {len(set(r['flag'] for r in VESSELS))}"
        in ask("How many different flags are there among the vessels?").text
    )


def test_look_ups_cite_their_row() -> None:
    answer = ask("What is the draught of the Golden Hind?")
    assert f"draught_m: {figure(VESSELS[6]['draught_m'])}" in answer.text
    assert answer.sentences[0].citations[0].rows == (7, 7)
    assert "name: Dorado" in ask("What is the name of the vessel with imo 9300003?").text
    assert f"built_year: {VESSELS[5]['built_year']}" in ask("When was the Fulmar built?").text


@pytest.mark.parametrize(
    "question",
    [
        "",
        "🚢",
        "How many cranes does berth 4 have?",
        "How many days may a vessel stay?",
        "Who is the harbour master?",
        "What is the average waiting time of calls?",
        "How many vessels are not tankers?",
        "How many vessels are tankers or ro-ro?",
        "How many calls per berth?",
        "How many calls between March and May 2024?",
        "How many calls were there this year?",
        "How do I count calls?",
        "How many calls; DROP TABLE calls?",
        "What is the draught of the Titanic?",
        "How many vessels does the port of Rotterdam have?",
        "Which vessel has the most cranes?",
        "word " * 2000,
    ],
)
def test_when_not_sure_it_says_nothing(question: str) -> None:
    assert answer_from_tables(question, TABLES) is None


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=80), st.sampled_from(["How many calls where status is {}?", "Total cargo of {} calls?", "{}"]))
def test_no_question_can_break_or_change_anything(text: str, frame: str) -> None:
    answer = answer_from_tables(frame.format(text), TABLES)
    assert answer is None or answer.sentences[0].citations[0].sql.startswith("SELECT ")  # type: ignore[union-attr]


def test_values_are_quoted_not_executed() -> None:
    rows = [{"item": "x'; DROP TABLE t; --", "price": 3.0}, {"item": 'y" OR 1=1', "price": 5.0}]
    found = answer_from_tables("What is the price of the item x'; DROP TABLE t; --?", [source("t", rows)])
    assert found is None or "price: 3" in found.text
    assert "5" in answer_from_tables("What is the maximum price?", [source("t", rows)]).text  # type: ignore[union-attr]


def test_external_access_is_off() -> None:
    from windlass.core.errors import WindlassError
    from windlass.retrieval.table_questions import _Database

    with _Database(TABLES[0]) as database:
        assert database.rows('SELECT count(*) FROM "vessels"') == [(8,)]
        for statement in ("SELECT * FROM read_text('/etc/hostname')", "SET enable_external_access = true"):
            with pytest.raises(WindlassError):
                database.rows(statement)


def test_a_long_query_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    from windlass.core.errors import WindlassError
    from windlass.retrieval import table_questions

    monkeypatch.setattr(table_questions, "SECONDS", 0.05)
    with table_questions._Database(TABLES[0]) as database, pytest.raises(WindlassError, match=r"(?i)interrupt"):
        database.rows("SELECT count(*) FROM range(100000000) a, range(100000) b WHERE (a.range * b.range) % 7 = 3")


def test_equal_claims_that_disagree_are_no_answer_and_old_copies_do_not_win() -> None:
    one, other = source("stock", VESSELS[:5], "a/stock.csv"), source("stock", VESSELS, "b/stock.csv", 2)
    assert answer_from_tables("How many rows has stock?", [one, other]) is None
    archived = source("stock", VESSELS[:5], "archive/stock.csv")
    answer = answer_from_tables("How many rows has stock?", [archived, other])
    assert answer is not None and answer.sentences[0].citations[0].file == "b/stock.csv"


def test_a_table_that_cannot_be_read_is_passed_over() -> None:
    def broken() -> pa.Table:
        raise ReadError("vessels.csv is broken")

    bad = TableSource("x/vessels.csv", 3, "vessels", TABLES[0].columns, 99, broken)
    answer = answer_from_tables("How many vessels are there?", [bad, *TABLES])
    assert answer is not None and ": 8 rows" in answer.text
