"""Making blocks: cutting long stretches at good places, and collecting extracted text with its blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from windlass.lake.document import Block, BlockKind, Document, Table

BLOCK_CHARACTERS = 4000
"""No block but a heading or a row run is longer; longer stretches are cut at lines, sentences or spaces."""

_TITLE_CHARACTERS = 200
_CUTS = ("\n\n", "\n", ". ", "? ", "! ", "; ", " ")
_SURROGATES = re.compile("[\ud800-\udfff]")


def cut(text: str, start: int, end: int, most: int = BLOCK_CHARACTERS) -> Iterator[tuple[int, int]]:
    """Spans that cover the non-blank text of `[start, end)`, each at most `most` characters, in order.

    Example:
        >>> list(cut("one two three", 0, 13, most=8))
        [(0, 7), (8, 13)]
    """
    while True:
        start, end = _trimmed(text, start, end)
        if start >= end:
            return
        if end - start <= most:
            yield start, end
            return
        middle = _best_cut(text, start + most // 2, start + most)
        first, last = _trimmed(text, start, middle)
        if first < last:
            yield first, last
        start = middle


def blocks_of(text: str, kind: BlockKind, start: int, end: int, page: int | None = None) -> Iterator[Block]:
    """`text[start:end]` as one block, or as several when it is long; nothing when it is blank."""
    for first, last in cut(text, start, end):
        yield Block(kind, first, last, page=page)


def clean_title(title: str) -> str:
    """A title on one line, without control characters, of a length a list can show."""
    words = "".join(character if character.isprintable() else " " for character in title[:2000]).split()
    title = " ".join(words)
    return title if len(title) <= _TITLE_CHARACTERS else title[: _TITLE_CHARACTERS - 1].rstrip() + "…"


def without_surrogates(text: str) -> str:
    """The same text, of the same length, that can be encoded: lone surrogates become U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
    return text


class Composer:
    """Collects the text of an extracted format piece by piece, each piece a block.

    Example:
        >>> composer = Composer()
        >>> _ = composer.add("heading", "Tides", level=1)
        >>> _ = composer.add("paragraph", "High water at noon.")
        >>> composer.document("html", title="").text
        'Tides\\n\\nHigh water at noon.'
    """

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.tables: list[Table] = []
        self.warnings: list[str] = []
        self._parts: list[str] = []
        self._length = 0

    @property
    def length(self) -> int:
        """Characters so far: where the next piece's separator will stand."""
        return self._length

    def add(self, kind: BlockKind, text: str, *, level: int = 0, page: int | None = None) -> int:
        """Append `text` as a block (or several, when long). Returns the offset at which it begins."""
        text = text.strip()
        start = self.add_text(text)
        if kind == "heading":
            if text:
                self.blocks.append(Block("heading", start, start + len(text), level=max(1, level), page=page))
        elif 0 < len(text) <= BLOCK_CHARACTERS:
            self.blocks.append(Block(kind, start, start + len(text), page=page))
        else:
            for first, last in cut(text, 0, len(text)):
                self.blocks.append(Block(kind, start + first, start + last, page=page))
        return start

    def add_text(self, text: str, separator: Literal["\n\n", "\n"] = "\n\n") -> int:
        """Append text that gets its blocks elsewhere (a table's rows). Returns where it begins."""
        if not text:
            return self._length
        if self._parts:
            self._parts.append(separator)
            self._length += len(separator)
        start = self._length
        self._parts.append(text)
        self._length += len(text)
        return start

    def first_heading(self) -> str:
        text = "".join(self._parts)
        for block in self.blocks:
            if block.kind == "heading":
                return text[block.start : block.end]
        return ""

    def document(self, kind: str, *, title: str, pages: int | None = None) -> Document:
        return Document(
            kind=kind,
            text="".join(self._parts),
            title=clean_title(title),
            blocks=tuple(self.blocks),
            tables=tuple(self.tables),
            pages=pages,
            faithful=False,
            warnings=tuple(self.warnings),
        )


def _best_cut(text: str, low: int, high: int) -> int:
    for mark in _CUTS:
        found = text.rfind(mark, low, high)
        if found >= 0:
            return found + len(mark)
    return high


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
