"""XLSX: one table a sheet, rendered as tab-separated lines; formulas show the values they had when saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice

from windlass.lake.document import Document
from windlass.lake.readers.composing import Composer
from windlass.lake.readers.source import Source
from windlass.lake.readers.tables import (
    INDEXED_ROWS,
    TableBuilder,
    column_names,
    first_is_header,
    tab_separated,
)
from windlass.lake.readers.workbook import Workbook

_SAMPLE_ROWS = 100
_TITLE_ROWS = 20


def read_workbook(source: Source) -> Document:
    """Sheets in order. Charts, macros, hidden names and links to other files are not looked at."""
    composer = Composer()
    workbook = Workbook(source)
    for sheet in workbook.sheets:
        _add_sheet(sheet.name, workbook.rows(sheet), composer)
    return composer.document("xlsx", title=source.stem)


def _add_sheet(name: str, rows: Iterator[list[str]], composer: Composer) -> None:
    sample = list(islice(rows, _SAMPLE_ROWS))
    if not sample:
        return
    composer.add("heading", name, level=1)
    titles = _title_rows(sample)
    for row in sample[:titles]:
        composer.add("paragraph", " ".join(row))
    sample = sample[titles:]
    has_header = first_is_header(sample)
    width = max(len(row) for row in sample)  # a longer row further down counts as ragged
    names = column_names(sample[0] if has_header else [], width)
    builder = TableBuilder(name, names)
    lines = _Lines(composer)
    start = composer.length
    if has_header:
        start, _ = lines.add(sample[0])
    for index, row in enumerate(chain(sample[1:] if has_header else sample, rows)):
        span = lines.add(row) if index < INDEXED_ROWS else (0, 0)
        if index == 0 and not has_header:
            start = span[0]
        # Empty cells at the end of a row are not stored; their absence is no fault.
        builder.add(row if len(row) >= width else [*row, *[""] * (width - len(row))], *span)
    table = builder.finish(start, composer.length)
    composer.tables.append(table)
    composer.blocks.extend(builder.blocks())


class _Lines:
    """Appends the lines of one table to the text: the first after a blank line, the others below it."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._first = True

    def add(self, row: Sequence[str]) -> tuple[int, int]:
        line = tab_separated(row)
        start = self._composer.add_text(line, "\n\n" if self._first else "\n")
        self._first = False
        return start, start + len(line)


def _title_rows(rows: Sequence[Sequence[str]]) -> int:
    """Rows above the table that hold one cell where most rows hold three or more."""
    filled = sorted(sum(map(bool, row)) for row in rows)
    if filled[len(filled) // 2] < 3:
        return 0
    count = 0
    while count < min(_TITLE_ROWS, len(rows) - 1) and sum(map(bool, rows[count])) <= 1:
        count += 1
    return count
