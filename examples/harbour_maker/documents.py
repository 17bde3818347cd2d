"""Markdown sources to PDF, DOCX and PPTX whose bytes do not change from run to run.

A source is named after what it becomes (`Tariffs/Harbour Tariff 2025.pdf.md`). It uses a small part of
Markdown: headings of three levels, paragraphs of one line each, `-` and `1.` lists, and pipe tables.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from docx import Document
from pptx import Presentation
from reportlab import rl_config
from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate, Spacer, Table, TableStyle

from harbour_maker.tablefiles import write_office_file

AUTHOR = "Ravensholm Harbour Authority"
_WRITTEN = datetime(2025, 1, 6, 9, 0)


@dataclass(frozen=True)
class Piece:
    """One block of a source: `heading` (with its level), `paragraph`, `bullet`, `step` or `table`."""

    kind: str
    text: str = ""
    level: int = 0
    rows: tuple[tuple[str, ...], ...] = ()


def read_source(text: str) -> list[Piece]:
    """The blocks of a Markdown source, in order."""
    pieces: list[Piece] = []
    table: list[tuple[str, ...]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
            if not all(re.fullmatch(r"-+", cell) for cell in cells):
                table.append(cells)
            continue
        if table:
            pieces.append(Piece("table", rows=tuple(table)))
            table = []
        if heading := re.match(r"(#+) (.*)", line):
            pieces.append(Piece("heading", heading[2], len(heading[1])))
        elif line.startswith("- "):
            pieces.append(Piece("bullet", line[2:]))
        elif step := re.match(r"\d+\. (.*)", line):
            pieces.append(Piece("step", step[1]))
        elif line.strip():
            pieces.append(Piece("paragraph", line))
    return pieces


def write_document(source: Path, target: Path) -> None:
    """Make `target` (.pdf, .docx or .pptx) from a Markdown source."""
    makers: dict[str, Callable[[list[Piece]], bytes]] = {".docx": _docx, ".pptx": _pptx}
    pieces = read_source(source.read_text(encoding="utf-8"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".pdf":
        target.write_bytes(_pdf(pieces))
    else:
        write_office_file(target, makers[target.suffix](pieces))


def _docx(pieces: list[Piece]) -> bytes:
    document = Document()
    properties = document.core_properties
    properties.author = properties.last_modified_by = AUTHOR
    properties.title = pieces[0].text
    properties.created = properties.modified = _WRITTEN
    for piece in pieces:
        if piece.kind == "heading":
            document.add_heading(piece.text, piece.level - 1)
        elif piece.kind == "table":
            table = document.add_table(len(piece.rows), len(piece.rows[0]), style="Light Grid Accent 1")
            for row, cells in zip(table.rows, piece.rows, strict=True):
                for cell, text in zip(row.cells, cells, strict=True):
                    cell.text = text
        else:
            style = {"bullet": "List Bullet", "step": "List Number"}.get(piece.kind)
            document.add_paragraph(piece.text, style=style)
    return _saved(document.save)


def _pptx(pieces: list[Piece]) -> bytes:
    deck = Presentation()
    deck.core_properties.author = deck.core_properties.last_modified_by = AUTHOR
    deck.core_properties.title = pieces[0].text
    deck.core_properties.created = deck.core_properties.modified = _WRITTEN
    body = None
    for piece in pieces:
        if piece.kind == "heading":
            slide = deck.slides.add_slide(deck.slide_layouts[0 if piece.level == 1 else 1])
            slide.shapes.title.text = piece.text
            body = slide.placeholders[1].text_frame
        elif body is not None:
            line = body.paragraphs[0] if not body.text else body.add_paragraph()
            line.text = piece.text
    return _saved(deck.save)


def _saved(save: Callable[[io.BytesIO], None]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def _pdf(pieces: list[Piece]) -> bytes:
    rl_config.invariant = 1
    stream = io.BytesIO()
    page = SimpleDocTemplate(
        stream,
        pagesize=A4,
        leftMargin=24 * mm,
        rightMargin=24 * mm,
        topMargin=24 * mm,
        bottomMargin=22 * mm,
        title=pieces[0].text,
        author=AUTHOR,
        invariant=1,
    )
    base = getSampleStyleSheet()
    text = ParagraphStyle("text", parent=base["BodyText"], fontSize=10, leading=13.5, spaceAfter=5)
    styles = {1: base["Title"], 2: base["Heading2"], 3: base["Heading3"]}
    flow: list[Flowable] = []
    steps = 0
    for piece in pieces:
        steps = steps + 1 if piece.kind == "step" else 0
        if piece.kind == "heading":
            flow.append(Paragraph(_escaped(piece.text), styles[piece.level]))
        elif piece.kind == "table":
            flow += [_pdf_table(piece.rows, text, page.width), Spacer(1, 6)]
        elif piece.kind == "paragraph":
            flow.append(Paragraph(_escaped(piece.text), text))
        else:
            mark = "\N{BULLET}" if piece.kind == "bullet" else f"{steps}."
            indented = ParagraphStyle("item", parent=text, leftIndent=16, bulletIndent=2)
            flow.append(Paragraph(_escaped(piece.text), indented, bulletText=mark))
    footer = _footer(pieces[0].text)
    page.build(flow, onFirstPage=footer, onLaterPages=footer)
    return stream.getvalue()


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _pdf_table(rows: tuple[tuple[str, ...], ...], text: ParagraphStyle, width: float) -> Table:
    cell = ParagraphStyle("cell", parent=text, fontSize=9, leading=11, spaceAfter=0)
    longest = [min(60, max(len(row[column]) for row in rows)) + 3 for column in range(len(rows[0]))]
    widths = [width * length / sum(longest) for length in longest]
    table = Table([[Paragraph(_escaped(text), cell) for text in row] for row in rows], widths, repeatRows=1)
    ruled = [("GRID", (0, 0), (-1, -1), 0.4, colors.grey), ("BACKGROUND", (0, 0), (-1, 0), colors.whitesmoke)]
    table.setStyle(TableStyle(ruled))
    return table


def _footer(title: str) -> Callable[[Canvas, SimpleDocTemplate], None]:
    def draw(canvas: Canvas, page: SimpleDocTemplate) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawString(24 * mm, 12 * mm, f"{AUTHOR} \N{MIDDLE DOT} {title}")
        canvas.drawRightString(A4[0] - 24 * mm, 12 * mm, f"{page.page}")

    return draw
