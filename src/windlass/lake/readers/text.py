"""Plain text and source code: the decoded file itself, with the stretches that belong together as blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from windlass.lake.document import Block, Document
from windlass.lake.readers.composing import blocks_of
from windlass.lake.readers.encoding import Decoded
from windlass.lake.readers.source import Source

_BLANK_LINES = re.compile(r"\n[ \t\f\v]*+\n\s*+")
# Atomic, or the two halves of one "\r\n" would count as two line ends.
_BLANK_LINES_ANY = re.compile(r"(?>\r\n|\n|\r)[ \t\f\v]*+(?>\r\n|\n|\r)\s*+")
_UNIT_CHARACTERS = 1500
_DEFINITION = re.compile(
    r"[^\n]{0,120}?(?:@|#\[|\b(?:def|class|func|function|fn|struct|enum|interface|trait|impl|module|namespace"
    r"|record|procedure|CREATE TABLE)\b)"
)


def read_text(source: Source, decoded: Decoded) -> Document:
    """Paragraphs are what blank lines part; long ones are cut at lines, sentences or spaces."""
    text = decoded.text
    blocks = [
        block
        for start, end in _parts_between(text, _BLANK_LINES_ANY if "\r" in text else _BLANK_LINES)
        for block in blocks_of(text, "paragraph", start, end)
    ]
    return _document("text", source, decoded, blocks)


def read_code(source: Source, decoded: Decoded) -> Document:
    """Blocks are top-level definitions with their comments, or groups of lines parted by blank ones."""
    text = decoded.text
    blocks: list[Block] = []
    for start, end in _units(text):
        blocks.extend(blocks_of(text, "code", start, end))
    return _document("code", source, decoded, blocks)


def _document(kind: str, source: Source, decoded: Decoded, blocks: list[Block]) -> Document:
    return Document(
        kind=kind,
        text=decoded.text,
        title=source.stem,
        blocks=tuple(blocks),
        encoding=decoded.encoding,
        warnings=decoded.warnings,
    )


def _parts_between(text: str, separator: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    start = 0
    for match in separator.finditer(text):
        yield start, match.start()
        start = match.end()
    yield start, len(text)


def _units(text: str) -> Iterator[tuple[int, int]]:
    """Groups of lines, each beginning at the left margin; small neighbours that define nothing are joined."""
    start = 0
    begun = False  # whether the unit so far holds a definition
    for part_start, part_end in _parts_between(text, _BLANK_LINES_ANY if "\r" in text else _BLANK_LINES):
        first = part_start
        # The separator swallowed the indentation; what decides is whether the line had any.
        at_margin = first == 0 or text[first - 1] in "\r\n"
        defines = at_margin and _DEFINITION.match(text, first) is not None
        too_long = part_end - start > _UNIT_CHARACTERS
        if first > start and at_margin and (defines or begun or too_long):
            yield start, first
            start, begun = first, False
        begun = begun or defines
    yield start, len(text)
