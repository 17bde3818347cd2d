"""Word, slides, workbooks and PDF, made by the libraries that people use to make them."""

from __future__ import annotations

import datetime
import io
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import docx
import openpyxl
import pptx
import pytest
from openpyxl.cell.rich_text import CellRichText, TextBlock
from openpyxl.cell.text import InlineFont
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import getSampleStyleSheet
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate, Spacer

from windlass.core.errors import ReadError
from windlass.lake.document import Document
from windlass.lake.readers import read_document

Edit = Callable[[bytes], bytes]
MARKUP = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'


def outline(document: Document) -> list[tuple[str, int, str]]:
    return [(b.kind, b.level, document.text[b.start : b.end]) for b in document.blocks]


def rewritten(path: Path, part: str, edit: Edit) -> None:
    """The same package with one part changed (or added)."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts[part] = edit(parts.get(part, b""))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def replacing(before: str, after: str) -> Edit:
    def edit(content: bytes) -> bytes:
        assert before.encode() in content
        return content.replace(before.encode(), after.encode())

    return edit


def manual(path: Path) -> None:
    document = docx.Document()
    document.add_heading("Pilotage", 0)
    document.add_heading("Who takes a pilot", 1)
    document.add_paragraph("Every vessel over ").add_run("60 m").bold = True
    document.add_paragraph("first", style="List Bullet")
    document.add_paragraph("second", style="List Number")
    document.add_heading("Berths", 2)
    table = document.add_table(2, 2)
    for index, text in enumerate(["Berth", "Depth", "A1\nquay", "12 m"]):
        table.cell(index // 2, index % 2).text = text
    table.cell(1, 1).add_table(1, 1).cell(0, 0).text = "inner"
    document.add_paragraph("The end")
    document.save(str(path))


def test_word(tmp_path: Path) -> None:
    path = tmp_path / "manual.docx"
    manual(path)
    document = read_document(str(path))
    assert outline(document) == [
        ("heading", 1, "Pilotage"),
        ("heading", 1, "Who takes a pilot"),
        ("paragraph", 0, "Every vessel over 60 m"),
        ("list", 0, "- first\n- second"),
        ("heading", 2, "Berths"),
        ("table", 0, "Berth | Depth\nA1 quay | 12 m inner"),
        ("paragraph", 0, "The end"),
    ]
    assert (document.title, document.kind, document.faithful) == ("Pilotage", "docx", False)


def test_word_shows_what_the_page_shows(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    manual(path)
    rewritten(
        path,
        "word/document.xml",
        replacing(
            "<w:r><w:t>The end</w:t></w:r>",
            "<w:ins><w:r><w:t>new</w:t><w:tab/><w:t>words</w:t></w:r></w:ins>"
            "<w:del><w:r><w:delText>deleted</w:delText></w:r></w:del>"
            "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom>"
            "<w:r><w:instrText>PAGE</w:instrText></w:r>"
            f"<w:r><mc:AlternateContent {MARKUP}>"
            '<mc:Choice Requires="wps"><w:p><w:r><w:t>box</w:t></w:r></w:p></mc:Choice>'
            "<mc:Fallback><w:p><w:r><w:t>box again</w:t></w:r></w:p></mc:Fallback>"
            "</mc:AlternateContent></w:r>",
        ),
    )
    assert outline(read_document(str(path)))[-1] == ("paragraph", 0, "new\twords\nbox")


def test_word_headings_of_other_languages_and_footnotes(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    manual(path)
    rewritten(path, "word/document.xml", lambda content: content.replace(b'"Heading2"', b'"berschrift2"'))
    rewritten(path, "word/styles.xml", lambda content: content.replace(b'"Heading2"', b'"berschrift2"'))
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    notes = (
        f"<w:footnotes {space}>"
        '<w:footnote w:type="separator"><w:p><w:r><w:t>--</w:t></w:r></w:p></w:footnote>'
        "<w:footnote><w:p><w:r><w:t>See the annex.</w:t></w:r></w:p></w:footnote></w:footnotes>"
    )
    rewritten(path, "word/footnotes.xml", lambda _: notes.encode())
    found = outline(read_document(str(path)))
    assert ("heading", 2, "Berths") in found and found[-1] == ("paragraph", 0, "See the annex.")


def test_slides(tmp_path: Path) -> None:
    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text = "Safety first"
    slide.placeholders[1].text = "Wear a vest\nHold the rail"
    slide.notes_slide.notes_text_frame.text = "Say it twice"
    slide = show.slides.add_slide(show.slide_layouts[6])
    table = slide.shapes.add_table(2, 2, 0, 0, 914400, 914400).table
    for index, text in enumerate(["Berth", "Depth", "A1", "12 m"]):
        table.cell(index // 2, index % 2).text = text
    show.save(str(tmp_path / "a.pptx"))
    document = read_document(str(tmp_path / "a.pptx"))
    assert [(*entry, b.page) for entry, b in zip(outline(document), document.blocks, strict=True)] == [
        ("heading", 1, "Safety first", 1),
        ("list", 0, "Wear a vest\nHold the rail", 1),
        ("paragraph", 0, "Say it twice", 1),
        ("heading", 1, "Slide 2", 2),
        ("table", 0, "Berth | Depth\nA1 | 12 m", 2),
    ]
    assert (document.title, document.pages) == ("Safety first", 2)


def test_workbook_tables(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.title = "Calls"
    sheet.append(["Calls of the year"])
    sheet.append([])
    sheet.append(["ship", "day", "tons", "paid"])
    for number in range(45):
        day = datetime.date(2024, 1, 1) + datetime.timedelta(number)
        sheet.append([f"MV {number}", day, number * 1.5, number % 2 == 0])
    book.create_sheet("Empty")
    notes = book.create_sheet("Notes")
    notes["C2"] = "only\nthis"
    book.save(tmp_path / "a.xlsx")
    document = read_document(str(tmp_path / "a.xlsx"))
    calls, note = document.tables
    assert (calls.name, calls.rows, [c.type for c in calls.columns]) == (
        "Calls",
        45,
        ["text", "date", "number", "boolean"],
    )
    assert (calls.columns[1].minimum, calls.columns[2].maximum) == ("2024-01-01", "66")
    assert document.text[calls.start :].startswith("ship\tday\ttons\tpaid\nMV 0\t2024-01-01\t0\ttrue\nMV 1\t")
    assert calls.runs[1].text.startswith("ship: MV 20; day: 2024-01-21; tons: 30; paid: true\n")
    assert outline(document)[:2] == [("heading", 1, "Calls"), ("paragraph", 0, "Calls of the year")]
    assert (note.name, note.rows) == ("Notes", 0) and "only this" in document.text


def test_workbook_cells_agree_with_openpyxl(tmp_path: Path) -> None:
    chance = random.Random(11)
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    makers: list[Callable[[], object]] = [
        lambda: chance.randrange(-(10**6), 10**6),
        lambda: chance.random() * 10 ** chance.randrange(-8, 12),
        lambda: chance.choice(["x", "two words", "é☃", "tab\there", " padded "]),
        lambda: chance.random() < 0.5,
        lambda: datetime.datetime(1950, 1, 1) + datetime.timedelta(seconds=chance.randrange(3 * 10**9)),
        lambda: datetime.date(1900, 1, 5) + datetime.timedelta(days=chance.randrange(80_000)),
        lambda: datetime.time(chance.randrange(1, 24), chance.randrange(60)),
        lambda: None,
    ]
    for _ in range(200):
        sheet.append([chance.choice(makers)() for _ in range(12)])
    sheet["A1"] = CellRichText("rich ", TextBlock(InlineFont(b=True), "text"))
    book.save(tmp_path / "a.xlsx")
    table = read_document(str(tmp_path / "a.xlsx")).tables[0]
    shown = [
        dict(cell.split(": ", 1) for cell in line.split("; ")) for run in table.runs for line in run.text.split("\n")
    ]
    names = [column.name for column in table.columns]
    loaded = openpyxl.load_workbook(tmp_path / "a.xlsx", data_only=True).active
    assert loaded is not None
    expected = list(loaded.iter_rows(values_only=True))[-len(shown) :]
    for line, row in zip(shown, expected, strict=True):
        for name, value in zip(names, row, strict=True):
            assert_same(line.get(name, ""), value)


def assert_same(shown: str, value: object) -> None:
    if value is None:
        assert shown == ""
    elif isinstance(value, bool):
        assert shown == str(value).lower()
    elif isinstance(value, datetime.datetime):
        rounded = (value + datetime.timedelta(microseconds=500_000)).replace(microsecond=0)
        assert datetime.datetime.fromisoformat(shown) == rounded
    elif isinstance(value, datetime.time):
        assert shown == value.isoformat()
    elif isinstance(value, int | float):
        assert float(shown) == value
    else:
        assert shown == str(value).strip()


def test_workbook_dates_before_march_1900_and_of_1904(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["day", "n"])
    for serial in (1, 59, 61, 45_000.5):
        sheet.append([serial, 1])
        sheet.cell(sheet.max_row, 1).number_format = 'yyyy"-"mm-dd'
    sheet.append([5, 2])
    sheet.cell(sheet.max_row, 1).number_format = '0.00 "days"'
    book.save(tmp_path / "a.xlsx")
    lines = read_document(str(tmp_path / "a.xlsx")).text.split("\n")
    days = [line.split("\t")[0] for line in lines if "\t" in line]
    assert days == ["day", "1900-01-01", "1900-02-28", "1900-03-01", "2023-03-15 12:00:00", "5"]
    rewritten(
        tmp_path / "a.xlsx",
        "xl/workbook.xml",
        lambda c: re.sub(rb"<workbookPr\b", b'<workbookPr date1904="1"', c),
    )
    assert "1904-01-02" in read_document(str(tmp_path / "a.xlsx")).text


def test_pdf_pages_headings_paragraphs(tmp_path: Path) -> None:
    styles = getSampleStyleSheet()
    body = "The tide rises and falls twice a day in the outer harbour. " * 4
    story: list[object] = []
    for chapter in ("High water", "Low water"):
        story += [Paragraph(chapter, styles["Heading1"]), Paragraph("In short", styles["Heading2"])]
        story += [
            Paragraph(body, styles["BodyText"]),
            Spacer(1, 12),
            Paragraph(body, styles["BodyText"]),
            PageBreak(),
        ]
    SimpleDocTemplate(str(tmp_path / "t.pdf"), title="Tide tables").build(story)
    document = read_document(str(tmp_path / "t.pdf"))
    assert (document.title, document.pages, document.faithful) == ("Tide tables", 2, False)
    assert [(b.kind, b.level, b.page) for b in document.blocks] == [
        entry
        for page in (1, 2)
        for entry in [
            ("heading", 1, page),
            ("heading", 2, page),
            ("paragraph", 0, page),
            ("paragraph", 0, page),
        ]
    ]
    assert " ".join(outline(document)[2][2].split()) == body.strip()
    assert outline(document)[4][2] == "Low water"


def test_pdf_without_text_with_a_password_and_with_many_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = Canvas(str(tmp_path / "scan.pdf"), A4)
    scanned.rect(10, 10, 100, 100)
    scanned.save()
    document = read_document(str(tmp_path / "scan.pdf"))
    assert document.warnings == ("no text (scanned?)",) and document.blocks == () and document.title == "scan"
    locked = Canvas(str(tmp_path / "locked.pdf"), A4, encrypt="secret")
    locked.drawString(50, 50, "words")
    locked.save()
    with pytest.raises(ReadError) as caught:
        read_document(str(tmp_path / "locked.pdf"))
    assert caught.value.reason == "encrypted"
    many = Canvas(str(tmp_path / "many.pdf"), A4)
    for number in range(9):
        many.drawString(50, 500, f"page {number + 1}")
        many.showPage()
    many.save()
    monkeypatch.setattr("windlass.lake.readers.pdf.MOST_PAGES", 5)
    document = read_document(str(tmp_path / "many.pdf"))
    assert document.pages == 9 and document.blocks[-1].page == 5
    assert document.warnings == ("only the first 5 of 9 pages were read",)


def test_kinds_are_known_by_their_content(tmp_path: Path) -> None:
    manual(tmp_path / "a.docx")
    (tmp_path / "a.txt").write_bytes((tmp_path / "a.docx").read_bytes())
    assert read_document(str(tmp_path / "a.txt")).kind == "docx"
    canvas = Canvas(str(tmp_path / "b.bin"), A4)
    canvas.drawString(50, 50, "words")
    canvas.save()
    assert read_document(str(tmp_path / "b.bin")).kind == "pdf"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.txt", "words")
    for name, content, reason in [
        ("a.zip", archive.getvalue(), "unsupported"),
        ("old.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "unsupported"),
        ("locked.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "encrypted"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ReadError) as caught:
            read_document(str(tmp_path / name))
        assert caught.value.reason == reason
