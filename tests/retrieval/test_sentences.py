"""Sentence spans: nothing lost, nothing cut that belongs together."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from windlass.retrieval import sentences
from windlass.retrieval.sentences import sentence_spans

_PIECES = st.sampled_from(
    "Depth is 3.5 m. |Ask Dr. J. Ruiz? |On 3. 5. 2024 it closed. |No. 12 |- item\n|1. First\n|| a | b |\n|# Head\n|\n\n"
    "|"
    "a\tb\tc\n|Rate: 4,000.25 EUR!\n|e.g. |U.S. |どうぞ。|…|\r\n|\f|6 p.m. |x = 1.25; |\u2028|Section .... 4\n".split(
        "|"
    )
)


@given(st.one_of(st.text(max_size=300), st.lists(_PIECES, max_size=20).map("".join)), st.integers(0, 40))
@example("", 0)
@example("A line\n" * 200, 3)
def test_spans_hold_every_visible_character_in_order(text: str, start: int) -> None:
    spans = sentence_spans(text, start)
    position = min(start, len(text))
    for begin, end in spans:
        assert position <= begin < end <= len(text)
        assert not text[position:begin].strip()
        assert text[begin:end] == text[begin:end].strip()
        position = end
    assert not text[position:].strip()


@given(st.lists(_PIECES, max_size=20).map("".join))
def test_no_boundary_falls_inside_a_number(text: str) -> None:
    for begin, _ in sentence_spans(text):
        assert not re.search(r"\d[.,:]?\Z", text[:begin]) or not text[begin].isdigit()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is 3.5 m deep. Call 555.1234 now!", ["It is 3.5 m deep.", "Call 555.1234 now!"]),
        ("Mr. A. B. Smith came. He left.", ["Mr. A. B. Smith came.", "He left."]),
        ("See Fig. 3 and No. 4. Then go.", ["See Fig. 3 and No. 4.", "Then go."]),
        ("Use gloves, e.g. Nitrile ones. Wash.", ["Use gloves, e.g. Nitrile ones.", "Wash."]),
        ("Berth C. The pilot boards.", ["Berth C.", "The pilot boards."]),
        ("Open until 5 p.m. The gate shuts.", ["Open until 5 p.m.", "The gate shuts."]),
        ("This line is wrapped in the middle of a\nsentence that goes on. Next.", None),
        ("# Title\nBody text.", ["# Title", "Body text."]),
        ("- one thing\n- another thing", ["- one thing", "- another thing"]),
        ("| a | b |\n| 1 | 2. Two |", ["| a | b |", "| 1 | 2. Two |"]),
        ("Heads to the tower ........ 6\nAbove the tower ........... 4", None),
        ("Phone: 12\nMail: x@y.example", ["Phone: 12", "Mail: x@y.example"]),
        ("Short line\nAnother one", ["Short line", "Another one"]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("終わり。次の文。", ["終わり。", "次の文。"]),
    ],
)
def test_examples(text: str, expected: list[str] | None) -> None:
    found = [text[a:b] for a, b in sentence_spans(text)]
    if expected is None:
        expected = text.split("\n") if "...." in text else [text[: text.index(" Next")], "Next."]
    assert found == expected


def test_text_without_stops_is_cut_at_its_semicolons() -> None:
    text = "; ".join(f"clause number {i} says a little" for i in range(100))
    found = [text[a:b] for a, b in sentence_spans(text)]
    assert len(found) > 1
    assert max(len(piece) for piece in found) < 700


@given(
    st.lists(_PIECES | st.sampled_from("The berth closed. |Inspection. |iv. |x. |Überall. ".split("|")), max_size=25)
)
def test_short_cuts_change_nothing(pieces: list[str]) -> None:
    text = "".join(pieces)
    short = sentence_spans(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences, "_is_plain", lambda *_: False)
        patch.setattr(sentences, "_marked_lines", lambda lines: [True] * len(lines))
        assert sentence_spans(text) == short
