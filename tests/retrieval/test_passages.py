"""Passages: spans are true, everything is covered, nothing that belongs together is split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.lake.document import Block, BlockKind, Column, Document, RowRun, Table
from windlass.retrieval import passages
from windlass.retrieval.passages import cut_document

_SENTENCES = st.lists(
    st.lists(st.sampled_from("harbour berth tide pilot crane 14 3.5 Dr. depth".split()), min_size=1, max_size=30).map(
        lambda words: "The " + " ".join(words) + "."
    ),
    min_size=1,
    max_size=12,
)


def _document(sections: list[tuple[str | None, list[str]]], title: str = "") -> Document:
    text, blocks = "", []
    for heading, sentences in sections:
        if heading is not None:
            blocks.append(Block("heading", len(text), len(text) + len(heading), 1))
            text += heading + "\n\n"
        body = " ".join(sentences)
        blocks.append(Block("paragraph", len(text), len(text) + len(body)))
        text += body + "\n\n"
    return Document("markdown", text, title, tuple(blocks))


@given(st.lists(st.tuples(st.sampled_from([None, "Depths", "Tides"]), _SENTENCES), min_size=1, max_size=5))
def test_spans_are_verbatim_and_cover_every_word(sections: list[tuple[str | None, list[str]]]) -> None:
    document = _document(sections)
    cuts = list(cut_document(document, words=40))
    covered: set[int] = set()
    for cut in cuts:
        assert document.text[cut.start : cut.end] == cut.text
        assert cut.text.strip() == cut.text != ""
        covered.update(range(cut.start, cut.end))
    for block in document.blocks:
        if block.kind == "paragraph":
            missed = [i for i in range(block.start, block.end) if i not in covered and not document.text[i].isspace()]
            assert missed == []
    starts = [cut.start for cut in cuts]
    assert starts == sorted(starts)


@given(_SENTENCES)
def test_no_sentence_is_split(sentences: list[str]) -> None:
    document = _document([(None, sentences)])
    for cut in cut_document(document, words=40):
        assert cut.text.startswith("The ")
        assert cut.text.endswith(".")


def test_a_passage_repeats_the_last_sentence_of_its_predecessor() -> None:
    sentences = [f"Berth {number} is dredged every spring by the port." for number in range(20)]
    first, second, *_ = cut_document(_document([(None, sentences)]), words=40)
    assert second.text.startswith(first.text.rsplit(". ", 1)[1])


def test_heading_path_follows_the_levels() -> None:
    text = "Manual\nBerths\nA.\nTides\nB.\nTariff\nC."
    spans = [(0, 6, 1), (7, 13, 2), (14, 16, 0), (17, 22, 3), (23, 25, 0), (26, 32, 1), (33, 35, 0)]
    blocks = tuple(Block("heading" if level else "paragraph", a, b, level) for a, b, level in spans)
    cuts = list(cut_document(Document("markdown", text, "", blocks)))
    assert [(cut.heading, cut.text) for cut in cuts] == [
        ("Manual > Berths", "A."),
        ("Manual > Berths > Tides", "B."),
        ("Tariff", "C."),
    ]


def test_a_heading_without_a_body_is_found_too() -> None:
    blocks = (Block("heading", 0, 6, 1), Block("heading", 7, 13, 1))
    cuts = list(cut_document(Document("markdown", "Berths\nTariff", "", blocks)))
    assert [cut.text for cut in cuts] == ["Berths", "Tariff"]


def test_the_name_of_a_sheet_above_its_rows_is_no_passage() -> None:
    text = "Survey\nid\n7\n"
    table = Table("Survey", 1, (), 7, len(text), (RowRun(1, 1, 10, 12, "id: 7"),))
    blocks = (Block("heading", 0, 6, 1), Block("rows", 10, 12))
    cuts = list(cut_document(Document("xlsx", text, "", blocks, (table,))))
    assert [cut.kind for cut in cuts] == ["schema", "rows"]


def test_a_line_of_ten_megabytes_becomes_many_passages() -> None:
    text = "x" * 10_000_000
    cuts = list(cut_document(Document("text", text, "", (Block("paragraph", 0, len(text)),))))
    assert "".join(cut.text for cut in cuts) == text
    assert max(len(cut.text) for cut in cuts) < 10_000


def test_pages_start_new_passages_once_there_is_enough() -> None:
    sentences = [f"Sentence {n} about the tide gauge at the outer mole." for n in range(12)]
    text, blocks = "", []
    for page in (1, 2):
        body = " ".join(sentences)
        blocks.append(Block("paragraph", len(text), len(text) + len(body), page=page))
        text += body + "\n"
    cuts = list(cut_document(Document("pdf", text, "", tuple(blocks)), words=160))
    assert [cut.page for cut in cuts] == [1, 2]


def test_tables_are_described_and_their_rows_cut() -> None:
    text = "id,name\n1,Maren\n2,Kirstine\n"
    column = Column("id", "integer", 0, 2, "1", "2", ("1", "2"))
    table = Table("vessels", 2, (column,), 0, len(text), (RowRun(1, 2, 8, len(text), "id: 1; name: Maren\n..."),))
    document = Document("csv", text, "", (Block("rows", 0, len(text)),), (table,))
    schema, rows = cut_document(document)
    assert schema.kind == "schema" and "vessels" in schema.text and "id (integer, 1 to 2)" in schema.text
    assert rows.kind == "rows" and rows.rows == (1, 2) and text[rows.start : rows.end].startswith("1,Maren")
    assert rows.text_hash is None and schema.text_hash is not None


_WORDS = st.sampled_from(
    ["The", "Dr.", "harbour", "3.5", "i.", "No.", "end.", "stop!", "前。後", "- b", "|", "\n", "x" * 90]
)
_BODIES = st.tuples(
    st.sampled_from(["paragraph", "paragraph", "list", "code"]),
    st.lists(_WORDS, min_size=1, max_size=60),
    st.booleans(),
)


@given(st.lists(_BODIES, min_size=1, max_size=8), st.sampled_from([3, 8, 20, 40]))
def test_a_block_that_is_packed_whole_makes_the_passages_of_its_sentences(
    bodies: list[tuple[BlockKind, list[str], bool]], words: int
) -> None:
    text, blocks, page = "", [], 1
    for kind, parts, turns_page in bodies:
        body = " ".join(parts)
        page += turns_page
        blocks.append(Block(kind, len(text), len(text) + len(body), page=page))
        text += body + "\n\n"
    document = Document("pdf", text, "", tuple(block for block in blocks if text[block.start : block.end].strip()))
    whole = list(cut_document(document, words=words))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passages, "_units", passages._parts)
        assert list(cut_document(document, words=words)) == whole
