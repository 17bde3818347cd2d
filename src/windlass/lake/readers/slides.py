"""PPTX: one page a slide, its title as a heading, then its texts, tables and speaker's notes."""

from __future__ import annotations

import re
from typing import Any

from windlass.lake.document import Document
from windlass.lake.readers.composing import Composer
from windlass.lake.readers.package import Package
from windlass.lake.readers.source import Source

_MAIN_PART = "ppt/presentation.xml"
_SLIDE_NUMBER = re.compile(r"(\d+)\.xml$")
_RELATION_ID = re.compile(r"\{.*[/]relationships\}id$")
_TITLES = ("title", "ctrTitle")
_CHROME = ("sldNum", "ftr", "dt", "hdr", "sldImg")


def read_slides(source: Source) -> Document:
    """Slides in the order in which they are shown; hidden ones included."""
    package = Package(source)
    slides = _slide_parts(package)
    composer = Composer()
    title = ""
    for number, part in enumerate(slides, 1):
        heading = _add_slide(package, part, composer, number)
        title = title or heading
    return composer.document("pptx", title=title or source.stem, pages=len(slides))


def _slide_parts(package: Package) -> list[str]:
    relations = package.relations(_MAIN_PART)
    parts = []
    for element in package.events(_MAIN_PART):
        if _local(element) == "sldId":
            identity = next((value for key, value in element.attrib.items() if _RELATION_ID.match(key)), "")
            kind, part = relations.get(identity, ("", ""))
            if kind == "slide" and part in package:
                parts.append(part)
    return parts


def _add_slide(package: Package, part: str, composer: Composer, number: int) -> str:
    """Append one slide; returns its title."""
    title, bodies, tables = "", [], []
    for element in package.events(part):
        name = _local(element)
        if name == "sp" and (role := _role(element)) not in _CHROME:
            text = "\n".join(_paragraphs(element))
            if role in _TITLES and not title:
                title = " ".join(text.split())
            elif text:
                bodies.append(text)
        elif name == "tbl":
            tables.append("\n".join(_rows(element)))
    composer.add("heading", title or f"Slide {number}", level=1, page=number)
    for text in bodies:
        composer.add("list" if "\n" in text else "paragraph", text, page=number)
    for rows in tables:
        composer.add("table", rows, page=number)
    for kind, target in package.relations(part).values():
        if kind == "notesSlide" and target in package:
            composer.add("paragraph", "\n".join(_notes(package, target)), page=number)
    return title


def _notes(package: Package, part: str) -> list[str]:
    lines = []
    for element in package.events(part):
        if _local(element) == "sp" and _role(element) not in _CHROME:
            lines.extend(_paragraphs(element))
    return lines


def _role(shape: Any) -> str:
    """The placeholder's type: `title`, `body`, ...; empty for an ordinary shape."""
    for element in shape.iter("{*}ph"):
        return element.get("type") or "body"
    return ""


def _paragraphs(shape: Any) -> list[str]:
    lines = []
    for paragraph in shape.iter("{*}p"):
        pieces = paragraph.iter("{*}t", "{*}br", "{*}tab")
        line = "".join((piece.text or "") if _local(piece) == "t" else " " for piece in pieces).strip()
        if line:
            lines.append(line)
    return lines


def _rows(table: Any) -> list[str]:
    lines = []
    for row in table.iter("{*}tr"):
        cells = [" ".join(_paragraphs(cell)) for cell in row.iterchildren("{*}tc")]
        if any(cells):
            lines.append(" | ".join(cells))
    return lines


def _local(element: Any) -> str:
    tag = element.tag
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""
