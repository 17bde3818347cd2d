"""PDF: the text of every page with its page number; larger type is a heading, larger gaps part paragraphs."""

from __future__ import annotations

import ctypes
from collections import Counter
from dataclasses import dataclass
from typing import Any

from windlass.core.errors import ReadError
from windlass.lake.document import Document
from windlass.lake.readers.composing import Composer
from windlass.lake.readers.source import Source

MOST_PAGES = 2000
FILE_BYTES = 512 << 20

_HEADING_SCALE = 1.15
_HEADING_CHARACTERS = 150
_PARAGRAPH_GAP = 1.6
_HYPHENS = {"\ufffe": "-", "\x02": "-", "\ufeff": ""}
_LEVELS = 4
_NO_TITLES = frozenset(("untitled", "(anonymous)", "unknown"))  # what programs write for want of one
_PASSWORD = 4  # FPDF_ERR_PASSWORD


@dataclass(slots=True)
class _Line:
    """One line of a page: its type size and the upper edge of its first character, in points from below."""

    text: str
    page: int
    size: float
    top: float


def read_pdf(source: Source) -> Document:
    """Pages in order, up to `MOST_PAGES`. Scanned pages have no text; a document of them says so."""
    import pypdfium2

    source.check_size(FILE_BYTES)
    try:
        pdf = pypdfium2.PdfDocument(source.path)
    except pypdfium2.PdfiumError as error:
        if getattr(error, "err_code", None) == _PASSWORD or "password" in str(error).lower():
            what = f"{source.name}: locked with a password"
            raise ReadError(what, reason="encrypted", hint="save a copy without a password") from error
        raise source.broken(f"not a valid PDF ({error})") from error
    composer = Composer()
    try:
        pages = len(pdf)
        lines: list[_Line] = []
        damaged = 0
        for number in range(min(pages, MOST_PAGES)):
            try:
                lines.extend(_page_lines(pdf, number))
            except pypdfium2.PdfiumError:
                damaged += 1
        title = str(pdf.get_metadata_value("Title") or "").strip()
        if title.lower() in _NO_TITLES:
            title = ""
    finally:
        pdf.close()
    if damaged:
        composer.warnings.append(f"{damaged:,} of {pages:,} pages are damaged and were left out")
    if pages > MOST_PAGES:
        composer.warnings.append(f"only the first {MOST_PAGES:,} of {pages:,} pages were read")
    if not lines:
        composer.warnings.append("no text (scanned?)")
    _compose(lines, composer)
    return composer.document("pdf", title=title or composer.first_heading() or source.stem, pages=pages)


def _page_lines(pdf: Any, number: int) -> list[_Line]:
    from pypdfium2 import raw

    page = pdf[number]
    try:
        text_page = page.get_textpage()
        try:
            count = raw.FPDFText_CountChars(text_page)
            lines: list[_Line] = []
            offset = 0
            for line in text_page.get_text_range().split("\n") if count > 0 else ():
                words = line.rstrip("\r")
                indent = len(words) - len(words.lstrip())
                size, top = _measure(text_page, min(offset + indent, count - 1))
                lines.append(_Line(_readable(words).strip(), number + 1, size, top))
                offset += len(line) + 1
            return lines
        finally:
            text_page.close()
    finally:
        page.close()


def _measure(text_page: Any, index: int) -> tuple[float, float]:
    """Type size and upper edge of one character."""
    from pypdfium2 import raw

    left, right, bottom, top = (ctypes.c_double() for _ in range(4))
    raw.FPDFText_GetCharBox(text_page, index, left, right, bottom, top)
    return round(float(raw.FPDFText_GetFontSize(text_page, index)), 1), top.value


def _readable(line: str) -> str:
    """The marks that the library puts where a line ends in a hyphen become the hyphen they stand for."""
    if line.isprintable():
        return line
    line = "".join(_HYPHENS.get(character, character) for character in line)
    return "".join(c if c.isprintable() or c == "\t" else " " for c in line)


def _compose(lines: list[_Line], composer: Composer) -> None:
    body, levels = _heading_levels(lines)
    paragraph: list[str] = []
    previous: _Line | None = None
    for line in lines:
        is_heading = line.size in levels and 0 < len(line.text) <= _HEADING_CHARACTERS
        if previous is not None and (is_heading or _parted(previous, line, body)):
            _end_paragraph(paragraph, previous.page, composer)
        if is_heading:
            composer.add("heading", line.text, level=levels[line.size], page=line.page)
            previous = None
            continue
        if line.text:
            paragraph.append(line.text)
        previous = line
    if previous is not None:
        _end_paragraph(paragraph, previous.page, composer)


def _end_paragraph(paragraph: list[str], page: int, composer: Composer) -> None:
    composer.add("paragraph", "\n".join(paragraph), page=page)
    paragraph.clear()


def _parted(before: _Line, line: _Line, body: float) -> bool:
    """Another page, a blank line, or more space above the line than lines of this size have between them."""
    if before.page != line.page or not line.text:
        return True
    usual = max(before.size, line.size, body)
    return abs(before.top - line.top) > _PARAGRAPH_GAP * usual


def _heading_levels(lines: list[_Line]) -> tuple[float, dict[float, int]]:
    """The size of the body text, and which larger sizes are which level, the largest being 1."""
    characters: Counter[float] = Counter()
    for line in lines:
        characters[line.size] += len(line.text)
    if not characters:
        return 0.0, {}
    body = max(characters.items(), key=lambda pair: pair[1])[0]
    larger = sorted((size for size in characters if size >= body * _HEADING_SCALE), reverse=True)
    return body, {size: min(level, _LEVELS) for level, size in enumerate(larger, 1)}
