"""DOCX: paragraphs with their heading levels, lists, tables in order, footnotes at the end."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from windlass.lake.document import Document
from windlass.lake.readers.composing import Composer
from windlass.lake.readers.package import Package
from windlass.lake.readers.source import Source

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_STRICT_W = "{http://purl.oclc.org/ooxml/wordprocessingml/main}"
_MAIN_PART = "word/document.xml"
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_HEADING_NAME = re.compile(r"heading (\d)", re.IGNORECASE)
_PIECES = ("{*}t", "{*}tab", "{*}br", "{*}cr", "{*}noBreakHyphen", "{*}p")
# What a tracked change moved away, and the copy of a drawing for older programs.
_HIDDEN = ("{*}moveFrom", "{*}Fallback")


def read_word(source: Source) -> Document:
    """The text a person reads on the pages, without headers, footers and what tracked changes deleted."""
    package = Package(source)
    composer = Composer()
    _Body(package, composer).read()
    for kind in ("footnotes", "endnotes"):
        _add_notes(package, f"word/{kind}.xml", composer)
    title = _core_title(package) or composer.first_heading() or source.stem
    return composer.document("docx", title=title)


class _Body:
    """Walks the main part as a stream: a table or a top-level paragraph is dropped once it is read."""

    def __init__(self, package: Package, composer: Composer) -> None:
        self._package = package
        self._composer = composer
        self._levels = _heading_levels(package)
        self._items: list[str] = []

    def read(self) -> None:
        for element in self._package.events(_MAIN_PART, "{*}p", "{*}tbl"):
            if not _is_top_level(element):
                continue
            if _local(element) == "p":
                self._paragraph(element)
            else:
                self._end_list()
                self._composer.add("table", "\n".join(_rows(element)))
            # Earlier siblings too: lxml keeps them in memory as long as the parent lives.
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
        self._end_list()

    def _paragraph(self, paragraph: Any) -> None:
        text = _text(paragraph).strip()
        if not text:
            return
        form = _form(paragraph)
        level = form.outline or self._levels.get(form.style, 0)
        if form.depth is not None and not level:
            self._items.append("  " * form.depth + "- " + text)
            return
        self._end_list()
        if level:
            self._composer.add("heading", " ".join(text.split()), level=level)
        else:
            self._composer.add("paragraph", text)

    def _end_list(self) -> None:
        if self._items:
            self._composer.add("list", "\n".join(self._items))
            self._items.clear()


class _Form(NamedTuple):
    """What a paragraph's properties say: style id, outline level from 1 (0: none), depth in a list."""

    style: str = ""
    outline: int = 0
    depth: int | None = None


def _form(paragraph: Any) -> _Form:
    if not len(paragraph) or _local(paragraph[0]) != "pPr":
        return _Form()
    style, outline = "", 0
    depth: int | None = None
    for entry in paragraph[0]:
        name = _local(entry)
        if name == "pStyle":
            style = _value(entry)
            if style.startswith("List") and depth is None:
                depth = 0
        elif name == "outlineLvl" and _value(entry).isdigit() and int(_value(entry)) < 9:
            outline = int(_value(entry)) + 1
        elif name == "numPr":
            depth = 0
            for part in entry:
                if _local(part) == "ilvl" and _value(part).isdigit():
                    depth = min(int(_value(part)), 8)
    return _Form(style, outline, depth)


def _heading_levels(package: Package) -> dict[str, int]:
    """Style id to heading level; ids are translated in localised files, names are not."""
    levels: dict[str, int] = {}
    parents: dict[str, str] = {}
    if "word/styles.xml" not in package:
        return levels
    for style in package.events("word/styles.xml", "{*}style"):
        identity = _attribute(style, "styleId")
        for entry in style:
            if _local(entry) == "basedOn":
                parents[identity] = _value(entry)
            elif _local(entry) == "name":
                if found := _HEADING_NAME.match(_value(entry)):
                    levels[identity] = max(1, int(found.group(1)))
                elif _value(entry).lower() == "title":
                    levels[identity] = 1
    for identity in parents:
        ancestor, steps = identity, 0
        while ancestor not in levels and ancestor in parents and steps < 20:
            ancestor, steps = parents[ancestor], steps + 1
        if ancestor in levels:
            levels.setdefault(identity, levels[ancestor])
    return levels


def _is_top_level(element: Any) -> bool:
    """Directly in the body, or in a content control of it; tables and text boxes are read as a whole."""
    parent = element.getparent()
    while parent is not None and _local(parent) in ("sdtContent", "sdt", "customXml", "ins"):
        parent = parent.getparent()
    return parent is not None and _local(parent) == "body"


def _text(element: Any) -> str:
    """The visible text below an element, in order."""
    parts: list[str] = []
    hidden = next(element.iter(*_HIDDEN), None) is not None  # rare, and dear to look for at every piece
    for piece in element.iter(*_PIECES):
        if hidden and next(piece.iterancestors(*_HIDDEN), None) is not None:
            continue
        name = _local(piece)
        if name == "t":
            parts.append(piece.text or "")
        elif name == "tab":
            parts.append("\t" if _local(piece.getparent()) == "r" else "")
        elif name in ("br", "cr"):
            parts.append("\n")
        elif name == "noBreakHyphen":
            parts.append("-")
        elif parts and piece is not element:  # a paragraph in a cell, a note or a text box
            parts.append("\n")
    return "".join(parts)


def _rows(table: Any) -> list[str]:
    """One line a row; a table inside a cell is read as that cell's text."""
    lines = []
    for row in table.iterchildren():
        if _local(row) != "tr":
            continue
        cells = [" ".join(_text(cell).split()) for cell in row.iterchildren() if _local(cell) in ("tc", "sdt")]
        if any(cells):
            lines.append(" | ".join(cells))
    return lines


def _add_notes(package: Package, part: str, composer: Composer) -> None:
    if part not in package:
        return
    for note in package.events(part, "{*}footnote", "{*}endnote"):
        if not _attribute(note, "type"):  # separators have one
            composer.add("paragraph", _text(note))


def _core_title(package: Package) -> str:
    if "docProps/core.xml" not in package:
        return ""
    for element in package.events("docProps/core.xml", _TITLE):
        return str(element.text or "").strip()
    return ""


def _local(element: Any) -> str:
    """The name without its namespace: Word has two for the same names."""
    tag = element.tag
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""


def _attribute(element: Any, name: str) -> str:
    """An attribute of either of Word's two namespaces; empty when it is missing."""
    return element.get(_W + name) or element.get(_STRICT_W + name) or ""


def _value(element: Any) -> str:
    return _attribute(element, "val")
