"""Documents cut into passages: the unit that is searched, shown and cited.

A passage never splits a sentence, a list item or a table row, stays inside one section, and repeats the last
sentence of its predecessor, so that a fact on the border is found whole. Headings are kept beside the text and take
part in search; they are not repeated in it. Every table gives one passage that describes it and one for each run of
rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from windlass.lake.document import Block, Document, Table
from windlass.retrieval.sentences import sentence_spans

_SAMPLES_SHOWN = 3
_COLUMNS_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Cut:
    """A passage to be: like `Passage` without ids. `table` is an index into the document's tables."""

    kind: str
    start: int
    end: int
    heading: str
    text: str
    page: int | None = None
    table: int | None = None
    rows: tuple[int, int] | None = None

    @property
    def embedded_text(self) -> str | None:
        """What the encoder sees. None for rows: they are found by their words (see docs/decisions.md)."""
        if self.kind == "rows":
            return None
        return f"{self.heading}\n{self.text}" if self.heading else self.text

    @property
    def text_hash(self) -> bytes | None:
        text = self.embedded_text
        return None if text is None else hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def cut_document(document: Document, *, words: int = 160) -> Iterator[Cut]:
    """All passages of a document, in the order of its text; prose first, then its tables.

    Args:
        document: As a reader made it.
        words: How many words a passage aims at. One sentence longer than twice that is cut at a word.
    """
    yield from _cut_blocks(document, words)
    for number, table in enumerate(document.tables):
        yield _describe(document, table, number)
        for run in table.runs:
            if run.text.strip():
                heading = _table_heading(document, table)
                yield Cut("rows", run.start, run.end, heading, run.text, None, number, (run.first, run.last))


@dataclass(slots=True)
class _Unit:
    """What is packed whole: a sentence, a line, or a `block` of them that is only taken apart at a border."""

    start: int
    end: int
    words: int
    page: int | None
    block: Block | None = None


def _cut_blocks(document: Document, words: int) -> Iterator[Cut]:
    path: list[tuple[int, str]] = [(0, document.title)] if document.title else []
    pending: list[_Unit] = []
    heading_only: Block | None = None
    kind = "prose"
    for block in document.blocks:
        if block.kind == "rows":
            heading_only = None  # a heading above a table is found with the table's description
            continue
        if block.kind == "heading":
            yield from _pack(document, pending, path, kind, words)
            level = max(block.level, 1)
            # A heading right above a deeper one is part of that one's path; any other bare heading stands for itself.
            if heading_only is not None and not pending and level <= max(heading_only.level, 1):
                yield _heading_cut(document, heading_only, path)
            pending, heading_only = [], block
            title = " ".join(document.text[block.start : block.end].split()).lstrip("# ").rstrip("# ")
            # A document's title and its first heading are often the same words.
            path = [entry for entry in path if entry[0] < level and entry[1] != title] + [(level, title)]
            continue
        block_kind = "code" if block.kind == "code" else "prose"
        if block_kind != kind:
            yield from _pack(document, pending, path, kind, words)
            pending, kind = [], block_kind
        pending.extend(_units(document.text, block, words))
        if pending:
            heading_only = None
    yield from _pack(document, pending, path, kind, words)
    if heading_only is not None and not pending:
        yield _heading_cut(document, heading_only, path)


def _units(text: str, block: Block, words: int) -> Iterator[_Unit]:
    piece = text[block.start : block.end]
    count = len(piece.split())
    if count > words or len(piece) > 16 * words or _ends_sentences_unspaced(piece):
        yield from _parts(text, block, words)
    elif count:
        yield _Unit(block.start, block.end, count, block.page, block)


def _ends_sentences_unspaced(piece: str) -> bool:
    """Whether sentences may follow one another without a space: then their words do not add up to the block's."""
    return not piece.isascii() and any(stop in piece for stop in "\u3002\uff01\uff1f")


def _parts(text: str, block: Block, words: int) -> Iterator[_Unit]:
    spans = (
        _lines(text, block.start, block.end)
        if block.kind in ("list", "table", "code")
        else sentence_spans(text, block.start, block.end)
    )
    for start, end in spans:
        count = len(text[start:end].split())
        if count > 2 * words or end - start > 16 * words:
            yield from _hard_cut(text, start, end, words, block.page)
        elif count:
            yield _Unit(start, end, count, block.page)


def _lines(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while start < end:
        newline = text.find("\n", start, end)
        stop = end if newline < 0 else newline + 1
        if text[start:stop].strip():
            yield start, stop
        start = stop


def _hard_cut(text: str, start: int, end: int, words: int, page: int | None) -> Iterator[_Unit]:
    limit = 8 * words
    while start < end:
        stop = min(end, start + limit)
        if stop < end:
            space = text.rfind(" ", start + limit // 2, stop)
            stop = space if space > 0 else stop
        count = len(text[start:stop].split())
        if count:
            yield _Unit(start, stop, max(count, words // 2), page)
        start = stop


def _pack(document: Document, units: list[_Unit], path: list[tuple[int, str]], kind: str, words: int) -> Iterator[Cut]:
    heading = " > ".join(title for _, title in path)
    current: list[_Unit] = []
    size = 0
    waiting = units[::-1]
    while waiting:
        unit = waiting.pop()
        new_page = bool(current) and unit.page != current[0].page
        if unit.block is not None and (size + unit.words > words or new_page):
            waiting.extend(list(_parts(document.text, unit.block, words))[::-1])
            continue
        crosses_page = new_page and size >= words // 2
        if current and (size + unit.words > words or crosses_page):
            yield _cut(document, current, heading, kind)
            if current[-1].block is not None:
                current[-1:] = _parts(document.text, current[-1].block, words)
            last = current[-1]
            keep_last = kind == "prose" and last.words <= words // 3 and len(current) > 1 and not crosses_page
            current = [last] if keep_last else []
            size = last.words if keep_last else 0
        current.append(unit)
        size += unit.words
    if current:
        yield _cut(document, current, heading, kind)


def _cut(document: Document, units: list[_Unit], heading: str, kind: str) -> Cut:
    start, end = _trim(document.text, units[0].start, units[-1].end)
    return Cut(kind, start, end, heading, document.text[start:end], units[0].page)


def _heading_cut(document: Document, block: Block, path: list[tuple[int, str]]) -> Cut:
    start, end = _trim(document.text, block.start, block.end)
    heading = " > ".join(title for _, title in path[:-1])
    return Cut("prose", start, end, heading, document.text[start:end], block.page)


def _trim(text: str, start: int, end: int) -> tuple[int, int]:
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def _describe(document: Document, table: Table, number: int) -> Cut:
    lines = [f"Table {table.name}: {table.rows:,} rows, {len(table.columns):,} columns."]
    for column in table.columns[:_COLUMNS_SHOWN]:
        line = f"{column.name} ({column.type}"
        if column.minimum is not None and column.type in ("integer", "number", "date", "timestamp"):
            line += f", {column.minimum} to {column.maximum}"
        line += ")"
        if column.samples and column.type == "text":
            line += ": " + ", ".join(column.samples[:_SAMPLES_SHOWN])
        lines.append(line)
    if len(table.columns) > _COLUMNS_SHOWN:
        lines.append(f"and {len(table.columns) - _COLUMNS_SHOWN:,} more columns")
    end = table.runs[0].start if table.runs and table.runs[0].start > table.start else table.end
    start, end = _trim(document.text, table.start, end)
    heading = _table_heading(document, table)
    return Cut("schema", start, max(end, start), heading, "\n".join(lines), None, number)


def _table_heading(document: Document, table: Table) -> str:
    return table.name if document.title in ("", table.name) else f"{document.title} > {table.name}"
