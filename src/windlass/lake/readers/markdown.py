"""Markdown, line by line: headings, lists, fenced and indented code, tables, paragraphs, front matter."""

from __future__ import annotations

import re
from collections.abc import Callable

from windlass.lake.document import Block, BlockKind, Document
from windlass.lake.readers.composing import blocks_of, clean_title
from windlass.lake.readers.encoding import Decoded
from windlass.lake.readers.source import Source

_LINE = re.compile(r"([^\r\n]*+)(?:\r\n|\n|\r|\Z)")
_HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})([^\r\n]*)$")
_ITEM = re.compile(r"[ \t]*(?:[-*+]|\d{1,9}[.)])(?:[ \t]|$)")
_TABLE_RULE = re.compile(r" {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*+\|?[ \t]*$")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*+){3,}+|(?:-[ \t]*+){3,}+|(?:_[ \t]*+){3,}+)$")
_MARKS = frozenset("#`~*-_+0123456789")
_INDENTED = re.compile(r"(?: {4}| {0,3}\t)\S")
_TITLE_LINE = re.compile(r"title[ \t]*[:=][ \t]*(.+)$", re.IGNORECASE)


def read_markdown(source: Source, decoded: Decoded) -> Document:
    """Blocks of a Markdown file; a heading's span holds its words only, without the marks around them."""
    scanner = _Scanner(decoded.text)
    scanner.scan()
    title = scanner.front_title or scanner.first_heading or source.stem
    return Document(
        kind="markdown",
        text=decoded.text,
        title=clean_title(title),
        blocks=tuple(scanner.blocks),
        encoding=decoded.encoding,
        warnings=decoded.warnings,
    )


class _Scanner:
    """Lines are `(start, end)` without their line end; `at` is the line that is looked at."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = [match.span(1) for match in _LINE.finditer(text)]
        if self.lines and self.lines[-1][0] == self.lines[-1][1]:
            self.lines.pop()  # what stands after the last line end
        self.at = 0
        self.blocks: list[Block] = []
        self.front_title = ""
        self.first_heading = ""

    def scan(self) -> None:
        self._front_matter()
        while self.at < len(self.lines):
            line = self._line(self.at)
            if not line or line.isspace() or _RULE.match(line):
                self.at += 1
            elif heading := _HEADING.match(line):
                self._heading(heading)
            elif fence := _FENCE.match(line):
                self._fenced(fence.group(1))
            elif self._table_begins():
                self._take("table", self._while(lambda line: "|" in line, self.at + 2))
            elif _ITEM.match(line):
                self._list()
            elif _INDENTED.match(line):
                self._take("code", self._while(lambda line: line[:1] in (" ", "\t") or not line, self.at + 1))
            else:
                self._paragraph()

    def _line(self, index: int) -> str:
        start, end = self.lines[index]
        return self.text[start:end]

    def _while(self, holds: Callable[[str], bool], index: int) -> int:
        """The first line from `index` on for which `holds` is false."""
        while index < len(self.lines) and holds(self._line(index)):
            index += 1
        return index

    def _take(self, kind: BlockKind, until: int) -> None:
        """Lines up to `until` are one block."""
        start, end = self.lines[self.at][0], self.lines[until - 1][1]
        self.blocks.extend(blocks_of(self.text, kind, start, end))
        self.at = until

    def _front_matter(self) -> None:
        if not self.lines or self._line(0).rstrip() not in ("---", "+++"):
            return
        fence = self._line(0).rstrip()
        end = self._while(lambda line: line.rstrip() != fence and len(line) < 10_000, 1)
        if end >= min(len(self.lines), 200) or self._line(end).rstrip() != fence:
            return
        for index in range(1, end):
            if found := _TITLE_LINE.match(self._line(index)):
                self.front_title = found.group(1).strip().strip("\"'")
        self._take("code", end + 1)

    def _heading(self, match: re.Match[str]) -> None:
        start, end = self.lines[self.at]
        start += match.end()
        words = self.text[start:end].rstrip()
        unclosed = words.rstrip("#")
        if not unclosed or unclosed[-1] in " \t":  # "## Title ##": the marks at the end are no words
            words = unclosed.rstrip()
        if lead := words.lstrip():
            start += len(words) - len(lead)
            self._add_heading(start, start + len(lead), len(match.group(1)))
        self.at += 1

    def _add_heading(self, start: int, end: int, level: int) -> None:
        self.blocks.append(Block("heading", start, end, level=level))
        self.first_heading = self.first_heading or self.text[start:end]

    def _fenced(self, fence: str) -> None:
        closing = re.compile(rf"[ \t]*{fence[0]}{{{len(fence)},}}[ \t]*$")
        end = self._while(lambda line: not closing.match(line), self.at + 1)
        self._take("code", min(end + 1, len(self.lines)))

    def _table_begins(self) -> bool:
        if "|" not in self._line(self.at) or self.at + 1 >= len(self.lines):
            return False
        rule = self._line(self.at + 1)
        return "-" in rule and _TABLE_RULE.match(rule) is not None

    def _list(self) -> None:
        """Items and what belongs to them: indented lines, lazy lines, and blank lines between items."""
        index = self.at + 1
        last = index
        blank = False
        while index < len(self.lines):
            line = self._line(index)
            if not line or line.isspace():
                blank = True
                index += 1
                continue
            if not (_ITEM.match(line) or line[0] in " \t" or (not blank and not _begins_block(line))):
                break
            if _RULE.match(line) and not line[0].isspace():
                break
            blank = False
            index += 1
            last = index
        self._take("list", last)

    def _paragraph(self) -> None:
        index = self.at + 1
        while index < len(self.lines):
            line = self._line(index)
            if index == self.at + 1 and (underline := _UNDERLINE.match(line)):
                start, end = self.lines[self.at]
                words = self.text[start:end]
                start += len(words) - len(words.lstrip())
                end -= len(words) - len(words.rstrip())
                self._add_heading(start, end, 1 if "=" in underline[1] else 2)
                self.at = index + 1
                return
            if not line or line.isspace() or _begins_block(line):
                break
            index += 1
        self._take("paragraph", index)


def _begins_block(line: str) -> bool:
    if line.lstrip()[:1] not in _MARKS:  # most lines, and a fifth of the cost of the patterns
        return False
    return bool(_HEADING.match(line) or _FENCE.match(line) or _RULE.match(line) or _ITEM.match(line))
