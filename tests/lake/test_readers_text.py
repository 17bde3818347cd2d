"""Plain text, Markdown, source code, HTML: encodings, blocks, and spans that point into the file itself."""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from windlass.core.errors import ReadError, UsageError
from windlass.lake.document import Document
from windlass.lake.readers import SUPPORTED, read_document
from windlass.lake.readers.composing import BLOCK_CHARACTERS, cut
from windlass.lake.readers.encoding import decode
from windlass.lake.readers.integrity import check_document


def read(folder: Path, name: str, content: bytes | str, kind: str | None = None) -> Document:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_document(str(path), kind)


def outline(document: Document) -> list[tuple[str, str]]:
    return [(block.kind, document.text[block.start : block.end]) for block in document.blocks]


def headings(document: Document) -> list[tuple[int, str]]:
    return [(b.level, document.text[b.start : b.end]) for b in document.blocks if b.kind == "heading"]


def test_text_is_the_file_and_blank_lines_part_paragraphs(tmp_path: Path) -> None:
    content = "  First line\r\nsecond line\r\n\r\n \t\r\nThird\rold line end\n\nlast"
    document = read(tmp_path, "note.txt", content)
    assert document.text == content and document.faithful and document.kind == "text"
    assert outline(document) == [
        ("paragraph", "First line\r\nsecond line"),
        ("paragraph", "Third\rold line end"),
        ("paragraph", "last"),
    ]
    assert document.title == "note"


@pytest.mark.parametrize(
    ("encoding", "text", "name"),
    [
        ("utf-8", "Wörter - naïve ☃", "utf-8"),
        ("utf-8-sig", "Wörter", "utf-8"),
        ("utf-16", "Wörter und Zahlen", "utf-16-le"),
        ("utf-16-be", "plain words in wide letters", "utf-16-be"),
        ("utf-32", "Wörter", "utf-32-le"),
        ("cp1252", "Das Schiff lädt für die Überfahrt - „morgen“", "cp1252"),
        ("cp1251", "Привет, мир. Корабль стоит на рейде.", "cp1251"),
        ("cp932", "港の船は朝に出ます。横浜港。", "cp932"),
        ("gb18030", "港口的船早上出发。上海港口管理局。", "gb18030"),
        ("euc_kr", "배는 아침에 항구를 떠납니다.", "euc_kr"),
        ("cp1250", "Łódź, Gdańsk, żegluga śródlądowa, port w Świnoujściu", "cp1250"),
    ],
)
def test_encodings_are_found(tmp_path: Path, encoding: str, text: str, name: str) -> None:
    document = read(tmp_path, "a.txt", text.encode(encoding))
    assert document.text == text
    assert document.encoding == name


def test_mixed_encodings_are_read_piece_by_piece() -> None:
    data = "Größe Übung ".encode() * 3 + "Größe".encode("cp1252")
    decoded = decode(data)
    assert decoded.text == "Größe Übung " * 3 + "Größe"
    assert decoded.encoding == "utf-8" and "2 bytes are not UTF-8" in decoded.warnings[0]


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_decoding_never_fails_and_keeps_utf8(data: bytes) -> None:
    assert isinstance(decode(data).text, str)
    text = data.decode("utf-8", errors="ignore")
    if "\0" not in text and not text.startswith("\ufeff"):
        assert decode(text.encode()).text == text


def test_stray_nuls_are_text_and_a_program_is_not(tmp_path: Path) -> None:
    document = read(tmp_path, "app.log", b"one\0two three four five six seven eight nine ten\n" * 3)
    assert document.text.count("\0") == 3 and len(document.blocks) == 1
    for name, content in [
        ("a.txt", os.urandom(4000)),
        ("a", b"\x7fELF" + bytes(500)),
        ("b.png", b"\x89PNG\r\n\x1a\n"),
    ]:
        with pytest.raises(ReadError) as caught:
            read(tmp_path, name, content)
        assert caught.value.reason == "unsupported"


def test_a_line_of_ten_megabytes_is_cut_between_sentences(tmp_path: Path) -> None:
    line = "The tide rises and falls twice a day. " * (10_000_000 // 38)
    document = read(tmp_path, "long.txt", line)
    assert document.text == line and len(document.blocks) > 2000
    assert all(b.end - b.start <= BLOCK_CHARACTERS for b in document.blocks)
    assert all(line[b.end - 1] == "." for b in document.blocks)
    unbroken = read(tmp_path, "unbroken.md", "x" * 3_000_000)
    assert sum(b.end - b.start for b in unbroken.blocks) == 3_000_000


@settings(deadline=None)
@given(st.text(alphabet=st.sampled_from("ab .\n;"), max_size=200), st.integers(2, 30))
def test_cut_covers_all_words_within_the_limit(text: str, most: int) -> None:
    spans = list(cut(text, 0, len(text), most))
    assert all(0 < end - start <= most for start, end in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    covered = "".join(text[start:end] for start, end in spans)
    assert "".join(covered.split()) == "".join(text.split())


MARKDOWN = """---
title: "The manual"
---
# Pilotage ##
Every vessel takes
a pilot.

Boarding
--------
- first
- second
  continued

  still second
1. numbered

| Berth | Depth |
|-------|------:|
| A1    | 12 m  |

```python
# no heading

code()
```
    indented code

***
> quoted
##
####### not a heading
"""


def test_markdown_blocks(tmp_path: Path) -> None:
    document = read(tmp_path, "manual.md", MARKDOWN)
    assert document.title == "The manual" and document.text == MARKDOWN
    assert outline(document) == [
        ("code", '---\ntitle: "The manual"\n---'),
        ("heading", "Pilotage"),
        ("paragraph", "Every vessel takes\na pilot."),
        ("heading", "Boarding"),
        ("list", "- first\n- second\n  continued\n\n  still second\n1. numbered"),
        ("table", "| Berth | Depth |\n|-------|------:|\n| A1    | 12 m  |"),
        ("code", "```python\n# no heading\n\ncode()\n```"),
        ("code", "indented code"),
        ("paragraph", "> quoted"),
        ("paragraph", "####### not a heading"),
    ]
    assert headings(document) == [(1, "Pilotage"), (2, "Boarding")]
    assert read(tmp_path, "b.md", "text\r\n\r\n# One\r\n").title == "One"
    assert read(tmp_path, "c.md", "---\nno front matter\n").title == "c"


MARKDOWN_PIECES = st.sampled_from(
    [
        "# a\n",
        "a\n",
        "===\n",
        "---\n",
        "\n",
        "- x\n",
        "  y\n",
        "```\n",
        "~~~~\n",
        "|a|b|\n",
        "|-|-|\n",
        "    c\n",
        "\r\n",
        "# ",
        " ",
        "1. z",
        "\t",
    ]
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MARKDOWN_PIECES, max_size=25))
def test_any_markdown_is_covered_but_for_its_marks(tmp_path: Path, pieces: list[str]) -> None:
    document = read(tmp_path, "a.md", "".join(pieces))
    check_document(document)
    covered = "".join(document.text[b.start : b.end] for b in document.blocks)
    for letter in "axyzc":
        assert covered.count(letter) == document.text.count(letter)


def test_code_is_cut_at_definitions(tmp_path: Path) -> None:
    one = "def one():\n    a = 1\n\n    return a"
    two = "# about two\nclass Two:\n    x = 1"
    source = f"import os\n\nLIMIT = 3\n\n\n{one}\n\n\n{two}\n"
    document = read(tmp_path, "a.py", source)
    assert document.kind == "code" and document.text == source
    assert [text for _, text in outline(document)] == ["import os\n\nLIMIT = 3", one, two]
    assert {kind for kind, _ in outline(document)} == {"code"}


HTML = """<!doctype html><html><head><title>Port
 notice</title><style>p{}</style><script>var x</script></head><body><nav>Menu</nav>
<h1>Harbour <b>rules</b></h1><p>First<br>second <i>line</i>.</p>
<div>loose <span>text</span><p>inner</p>tail</div>
<ul><li>one<ul><li>nested</li></ul></li><li><p>two</p></li></ul>
<table><tr><th>Berth</th><th>Depth</th></tr><tr><td>A1</td><td>12 <b>m</b><p>deep</p></td></tr></table>
<table><tr><td><h2>Layout</h2><table><tr><td>x</td><td>y</td></tr></table></td></tr></table>
<pre>code
  here</pre><p hidden>secret</p><ul style="display: none"><li>orders</li></ul><p>Fish &amp; chips
  &#x1F600;</p>"""


def test_html_is_what_a_person_sees(tmp_path: Path) -> None:
    document = read(tmp_path, "notice.html", HTML)
    assert document.title == "Port notice" and not document.faithful
    assert outline(document) == [
        ("heading", "Harbour rules"),
        ("paragraph", "First\nsecond line."),
        ("paragraph", "loose text"),
        ("paragraph", "inner"),
        ("paragraph", "tail"),
        ("list", "- one\n  - nested\n- two"),
        ("table", "Berth | Depth\nA1 | 12 m deep"),
        ("heading", "Layout"),
        ("table", "x | y"),
        ("code", "code\n  here"),
        ("paragraph", "Fish & chips 😀"),
    ]
    assert headings(document) == [(1, "Harbour rules"), (2, "Layout")]


def test_html_traps(tmp_path: Path) -> None:
    declared = b"<meta charset=windows-1251><p>" + "Порт".encode("cp1251")
    assert read(tmp_path, "a.html", declared).text == "Порт"
    deep = read(tmp_path, "b.html", "<div>" * 100_000 + "end")
    assert deep.text == "end"
    bomb = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><p>&b; &lt;</p>'
    assert "haha" not in read(tmp_path, "c.html", bomb).text
    assert read(tmp_path, "page", "  <!DOCTYPE html><p>x").kind == "html"


HTML_TAGS = "p div ul li table tr td h1 pre br b nav /ul /li /table /td /tr /p /h1 /pre /div".split()
HTML_PIECES = st.sampled_from([*(f"<{tag}>" for tag in HTML_TAGS), "word", " ", "\n"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(HTML_PIECES, max_size=30))
def test_any_html_is_sound(tmp_path: Path, pieces: list[str]) -> None:
    check_document(read(tmp_path, "a.html", "".join(pieces)))


def test_compressed_text_and_names(tmp_path: Path) -> None:
    document = read(tmp_path, "log.txt.gz", gzip.compress(b"one\n\ntwo") + gzip.compress(b" more"))
    assert document.text == "one\n\ntwo more" and document.title == "log"
    for broken in (gzip.compress(b"x" * 1000)[:-9], b"\x1f\x8b broken"):
        with pytest.raises(ReadError) as caught:
            read(tmp_path, "b.txt.gz", broken)
        assert caught.value.reason == "broken"
    assert read(tmp_path, "LICENSE", "words").kind == "text"
    assert read(tmp_path, "table.txt", "a,b\n1,2\n", kind="csv").kind == "csv"
    with pytest.raises(UsageError, match="unknown kind"):
        read(tmp_path, "a.txt", "x", kind="novel")
    assert {"md", "py", "csv", "pdf", "docx", "xlsx", "parquet"} <= set(SUPPORTED)


def test_empty_files_are_empty_documents(tmp_path: Path) -> None:
    for name in ("a.txt", "b.csv", "c.pdf", "d.docx", "e"):
        document = read(tmp_path, name, b"")
        assert (document.text, document.blocks, document.tables) == ("", (), ())
    assert read(tmp_path, "f.md", b" \n\n ").blocks == ()


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    cases = {
        "pipe.txt": "unsupported",
        "folder.txt": "unsupported",
        "loop.txt": "unreadable",
        "none": "unreadable",
    }
    for name, reason in cases.items():
        with pytest.raises(ReadError) as caught:
            read_document(str(tmp_path / name))
        assert caught.value.reason == reason and name in str(caught.value)
    with pytest.raises(ReadError, match="null byte"):
        read_document("a\0b")


def test_a_large_sparse_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    for name in ("huge.txt", "huge.csv", "huge.pdf", "huge.docx", "huge.xlsx"):
        with open(tmp_path / name, "wb") as file:
            file.write(b"%PDF-1.4\n" if name.endswith("pdf") else b"words and words\n")
            file.truncate(1 << 30)
        with pytest.raises(ReadError) as caught:
            read_document(str(tmp_path / name))
        assert caught.value.reason == "too-large"


def test_odd_names_are_printable_in_messages(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xffname\nline.txt")
    assert read(tmp_path, name, "text").title.startswith("bad")
    with pytest.raises(ReadError) as caught:
        read(tmp_path, name + ".gz", b"\x1f\x8b")
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
