"""The hard facts of a sentence, and the rule that a claim with a wrong one is never supported."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.retrieval.facts import canonical_number, facts
from windlass.retrieval.support import Evidence, contradiction, support, threshold
from windlass.retrieval.terms import local_idf, stem, terms

SOURCES = [
    ("The depth at Berth 4 is 12.5 m below chart datum.", "Berths"),
    ("Maria Ruiz has been harbour master since 3 May 2019.", "Staff"),
    ("Pilotage costs EUR 1,250 for ships up to 120 metres and EUR 1,900 above.", "Tariff > Pilotage"),
    ("The office is open from 08:00 to 16:30 on working days.", "Opening hours"),
    ("Twelve cranes and 7 tugs are in service.", "Equipment"),
]
IDF = local_idf([text for text, _ in SOURCES] + ["ships tugs berths pilots"])


@settings(max_examples=200)
@given(st.text(string.ascii_lowercase, min_size=3, max_size=14))
def test_stems_equal_porter(word: str) -> None:
    stemmer = pytest.importorskip("Stemmer").Stemmer("porter")
    expected = stemmer.stemWord(word)
    if not expected.endswith(("bli", "logi")):  # where Porter later departed from his paper
        assert stem(word) == expected


def test_stems_of_ordinary_words_equal_porter() -> None:
    stemmer = pytest.importorskip("Stemmer").Stemmer("porter")
    words = "dredging relational conditional hopping agreed feed ponies caresses skies dying generously"
    for word in words.split():
        assert stem(word) == stemmer.stemWord(word)


@pytest.mark.parametrize(
    ("written", "expected"),
    [("1,200.50", "1200.5"), ("0.70", "0.7"), ("3,5", "3.5"), ("1.234,5", "1234.5"), ("1 200", "1200"), ("-4", "-4")],
)
def test_numbers_have_one_form(written: str, expected: str) -> None:
    assert canonical_number(written) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [("3 May 2024", "2024-05-03"), ("May 3, 2024", "3rd of May 2024"), ("03.05.2024", "3 May 2024")],
)
def test_dates_have_one_form(one: str, other: str) -> None:
    assert facts(f"on {one}").dates == facts(f"since {other}").dates != ()


def test_times_words_and_amounts() -> None:
    found = facts("From 6 pm to 18:30 twenty-four ships paid $3 million at B4.")
    assert found.times == {18 * 60, 18 * 60 + 30}
    assert {"24", "3000000"} <= found.values
    assert "b4" in found.names and found.currencies == {"usd"}


@pytest.mark.parametrize(
    ("claim", "source"),
    [
        ("Berth 4 has a depth of 12.5 m.", 0),
        ("The depth at berth 4 is 12.50 metres.", 0),
        ("Maria Ruiz has been the harbour master since 2019-05-03.", 1),
        ("Ships up to 120 metres pay €1250 for pilotage.", 2),
        ("The office is open from 8 am to 4:30 pm.", 3),
        ("12 cranes are in service.", 4),
    ],
)
def test_true_claims_are_supported(claim: str, source: int) -> None:
    text, title = SOURCES[source]
    assert contradiction(claim, Evidence(text, title)) is None
    assert support(claim, Evidence(text, title), IDF, cosine=0.85) >= threshold(True)


@pytest.mark.parametrize(
    ("claim", "source"),
    [
        ("Berth 4 has a depth of 13.5 m.", 0),
        ("Berth 5 has a depth of 12.5 m.", 0),
        ("The depth at Berth 4 is not 12.5 m.", 0),
        ("Martha Ruiz has been harbour master since 3 May 2019.", 1),
        ("Maria Ruiz has been harbour master since 4 May 2019.", 1),
        ("Maria Ruiz has been harbour master since 2018.", 1),
        ("Pilotage costs EUR 2,150 for ships up to 120 metres.", 2),
        ("Pilotage costs USD 1,250 for ships up to 120 metres.", 2),
        ("The office is open from 08:00 to 17:30 on working days.", 3),
        ("Twelve tugs are in service.", 4),
        ("7 cranes are in service.", 4),
    ],
)
def test_altered_claims_are_never_supported(claim: str, source: int) -> None:
    text, title = SOURCES[source]
    assert contradiction(claim, Evidence(text, title)) is not None
    assert support(claim, Evidence(text, title), IDF, cosine=1.0) == 0.0


@given(st.sampled_from(SOURCES), st.integers(0, 9), st.integers(0, 40))
def test_any_altered_digit_is_noticed(source: tuple[str, str], digit: int, place: int) -> None:
    text, title = source
    digits = [i for i, letter in enumerate(text) if letter.isdigit()]
    if not digits:
        return
    at = digits[place % len(digits)]
    altered = text[:at] + str(digit) + text[at + 1 :]
    if facts(altered) == facts(text):
        return
    assert support(altered, Evidence(text, title), IDF, cosine=1.0) == 0.0


@given(st.sampled_from(SOURCES))
def test_a_sentence_supports_itself(source: tuple[str, str]) -> None:
    assert support(source[0], Evidence(*source), IDF) == pytest.approx(1.0)


def test_names_may_come_from_the_heading_unless_the_span_names_another() -> None:
    claim = "Rosa Blum may sign for the port."
    assert contradiction(claim, Evidence("She may sign for the port.", "Rosa Blum")) is None
    assert contradiction(claim, Evidence("Only Tom Lee may sign for the port.", "Rosa Blum")) is not None


@given(st.text(max_size=200))
def test_any_text_is_read_without_error(text: str) -> None:
    found = facts(text)
    assert all(canonical_number(number) == number for number in found.values)
    assert all(text[term.start : term.end] == term.written for term in terms(text))
