"""DOCX: paragraphs with their heading levels, lists, tables in order, footnotes at the end."""

from __future__ import annotations

import re
from typing import Any

from windlass.lake.document import Document
from windlass.lake.readers.composing import Composer
from windlass.lake.readers.package import Package
from windlass.lake.readers.source import Source

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_STRICT_W = "{http://purl.oclc.org/ooxml/wordprocessingml/main}"
_MAIN_PART = "word/document.xml"
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_HEADING_NAME = re.compile(r"heading (\d)", re.IGNORECASE)
_SKIPPED = frozenset(("del", "moveFrom", "instrText", "delText", "fldData"))


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
        text = _text(paragraph)
        if not text.strip():
            return
        level, depth = self._level(paragraph), _list_depth(paragraph)
        if level:
            self._end_list()
            self._composer.add("heading", " ".join(text.split()), level=level)
        elif depth is not None:
            self._items.append("  " * depth + "- " + text.strip())
        else:
            self._end_list()
            self._composer.add("paragraph", text)

    def _end_list(self) -> None:
        self._composer.add("list", "\n".join(self._items))
        self._items.clear()

    def _level(self, paragraph: Any) -> int:
        properties = _child(paragraph, "pPr")
        if properties is None:
            return 0
        outline = _child(properties, "outlineLvl")
        if outline is not None and (_value(outline) or "9").isdigit() and int(_value(outline) or 9) < 9:
            return int(_value(outline) or 9) + 1
        style = _child(properties, "pStyle")
        return self._levels.get(_value(style) or "", 0) if style is not None else 0


def _heading_levels(package: Package) -> dict[str, int]:
    """Style id to heading level; ids are translated in localised files, names are not."""
    levels: dict[str, int] = {}
    parents: dict[str, str] = {}
    if "word/styles.xml" not in package:
        return levels
    for style in package.events("word/styles.xml"):
        if _local(style) != "style":
            continue
        identity = _attribute(style, "styleId") or ""
        name, based_on = _child(style, "name"), _child(style, "basedOn")
        if based_on is not None:
            parents[identity] = _value(based_on) or ""
        written = (_value(name) or "") if name is not None else ""
        if found := _HEADING_NAME.match(written):
            levels[identity] = max(1, int(found.group(1)))
        elif written.lower() == "title":
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
    """The visible text below an element, in order, walked without recursion."""
    parts: list[str] = []
    stack = [element]
    while stack:
        node = stack.pop()
        if not isinstance(node.tag, str) or node.tag == _FALLBACK:
            continue
        name = _local(node)
        if name in _SKIPPED:
            continue
        if name == "t":
            parts.append(node.text or "")
        elif name in ("tab", "ptab"):
            parts.append("\t" if _local(node.getparent()) == "r" else "")
        elif name in ("br", "cr"):
            parts.append("\n")
        elif name in ("noBreakHyphen", "softHyphen"):
            parts.append("-" if name == "noBreakHyphen" else "")
        elif name == "p" and parts and node is not element:
            parts.append("\n")
        stack.extend(reversed(node))
    return "".join(parts)


def _rows(table: Any) -> list[str]:
    """One line a row; a table inside a cell is read as that cell's text."""
    lines = []
    for row in table.iterchildren():
        if _local(row) != "tr":
            continue
        cells = [
            " ".join(_text(cell).split()) for cell in row.iterchildren() if _local(cell) in ("tc", "sdt")
        ]
        if any(cells):
            lines.append(" | ".join(cells))
    return lines


def _list_depth(paragraph: Any) -> int | None:
    properties = _child(paragraph, "pPr")
    if properties is None:
        return None
    numbering = _child(properties, "numPr")
    if numbering is not None:
        depth = _child(numbering, "ilvl")
        written = (_value(depth) if depth is not None else None) or "0"
        return min(int(written), 8) if written.isdigit() else 0
    style = _child(properties, "pStyle")
    return 0 if style is not None and (_value(style) or "").startswith("List") else None


def _add_notes(package: Package, part: str, composer: Composer) -> None:
    if part not in package:
        return
    for note in package.events(part):
        if _local(note) in ("footnote", "endnote") and _attribute(note, "type") is None:
            composer.add("paragraph", _text(note))


def _core_title(package: Package) -> str:
    if "docProps/core.xml" not in package:
        return ""
    for element in package.events("docProps/core.xml", _TITLE):
        return str(element.text or "").strip()
    return ""


def _local(element: Any) -> str:
    """The name without its namespace, for the two namespaces that Word has; other names never collide."""
    tag = element.tag
    return tag.rsplit("}", 1)[-1] if isinstance(tag, str) else ""


def _child(element: Any, name: str) -> Any:
    found = element.find(_W + name)
    return found if found is not None else element.find(_STRICT_W + name)


def _attribute(element: Any, name: str) -> str | None:
    value: str | None = element.get(_W + name)
    return value if value is not None else element.get(_STRICT_W + name)


def _value(element: Any) -> str | None:
    return _attribute(element, "val")
