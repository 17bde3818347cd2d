"""Rows of text cells to a `Table`: names for columns, runs of rows to index, a profile of every column."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import islice
from typing import Any

from windlass.lake.document import Block, Column, RowRun, Table
from windlass.lake.readers.columns import describe_column, looks_typed

INDEXED_ROWS = 50_000
"""Rows past this number are counted and profiled, but not cut into runs."""

RUN_ROWS = 20
RUN_CHARACTERS = 4000
ROW_CHARACTERS = 64_000
ROW_CELLS = 200
MOST_COLUMNS = 10_000

_NAME_CHARACTERS = 200
_PREFIX_CHARACTERS = 60
_BATCH_CELLS = 500_000


def column_names(header: Sequence[str], width: int) -> tuple[str, ...]:
    """Unique, non-empty names for `width` columns; case is kept, an empty one is `_1`, a second `a` is `a.2`.

    Example:
        >>> column_names([" Berth ", "", "berth"], 4)
        ('Berth', '_2', 'berth.2', '_4')
    """
    seen: set[str] = set()
    names: list[str] = []
    for index in range(width):
        cell = header[index] if index < len(header) else ""
        base = " ".join(unicodedata.normalize("NFC", cell).split())[:_NAME_CHARACTERS] or f"_{index + 1}"
        name, copies = base, 1
        while name.lower() in seen:
            copies += 1
            name = f"{base}.{copies}"
        seen.add(name.lower())
        names.append(name)
    return tuple(names)


def first_is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first of some rows names the columns: it is text where those below are numbers or dates.

    Without such evidence a first row whose cells differ is taken for one, as tables usually have one.
    """
    if not rows:
        return False
    first, below = rows[0], rows[1:]
    for_it, against = 0, 0
    for index, cell in enumerate(first[:ROW_CELLS]):
        column = [row[index] for row in below if index < len(row) and row[index].strip()]
        if not column or not cell.strip():
            continue
        if sum(map(looks_typed, column)) < 0.8 * len(column):
            continue
        if not looks_typed(cell):
            for_it += 1
        elif not _is_year(cell):
            against += 1
    if for_it or against:
        return for_it > against
    filled = [cell.strip() for cell in first if cell.strip()]
    if not filled or any(looks_typed(cell) and not _is_year(cell) for cell in filled):
        return False
    below_cells = {cell.strip() for row in below for cell in row}
    return 2 * len(set(filled)) > len(filled) and not below_cells.issuperset(filled)


def _is_year(cell: str) -> bool:
    """Years are the numbers that do name columns."""
    return len(cell.strip()) == 4 and cell.strip().isdecimal()


def tab_separated(row: Sequence[str]) -> str:
    """A row as one line of text that is never empty; line ends and tabs inside of cells become spaces."""
    line = "\t".join(row)
    if "\n" in line or "\r" in line or line.count("\t") >= len(row):
        line = "\t".join(" ".join(cell.split()) for cell in row)
    return line or " "


class TableBuilder:
    """Takes the rows of one table in order and makes its `Table` and its `rows` blocks.

    Args:
        name: The table's name.
        names: Unique column names, from `column_names`.
    """

    def __init__(self, name: str, names: Sequence[str]) -> None:
        self._name = name
        self._names = tuple(names)
        self._prefixes = [f"{column[:_PREFIX_CHARACTERS]}: " for column in names]
        self._batch: list[Sequence[str]] = []
        self._batch_rows = max(1, _BATCH_CELLS // max(1, len(names)))
        self._chunks: list[list[Any]] = [[] for _ in names]
        self._lines: list[str] = []
        self._line_characters = 0
        self._run_start = self._run_end = 0
        self._runs: list[RowRun] = []
        self._shortened = 0
        self.rows = 0
        self.ragged = 0

    def add(self, row: Sequence[str], start: int, end: int) -> None:
        """Append one row whose text is `[start, end)` of the document; ragged rows are counted."""
        width = len(self._names)
        extra: Sequence[str] = ()
        if len(row) != width:
            row, extra = self._fitted(row)
        self.rows += 1
        self._batch.append(row)
        if len(self._batch) >= self._batch_rows:
            self._store_batch()
        if self.rows <= INDEXED_ROWS:
            self._add_to_run(row, extra, start, end)

    def finish(
        self,
        start: int,
        end: int,
        warnings: Sequence[str] = (),
        *,
        columns: tuple[Column, ...] | None = None,
        rows: int | None = None,
    ) -> Table:
        """The table, which spans `[start, end)` of the document. The builder is of no use after it.

        A reader that was given only the first rows of a longer table, and profiled all of it by its own
        means, hands in what it knows: `columns` and `rows`.
        """
        self._close_run()
        if columns is None:
            columns = self._columns()
        self.rows = self.rows if rows is None else rows
        notes, width = [*warnings], len(self._names)
        if self.ragged:
            notes.append(f"{self.ragged:,} of {self.rows:,} rows do not have {width:,} fields")
        if self.rows > INDEXED_ROWS:
            notes.append(f"only the first {INDEXED_ROWS:,} of {self.rows:,} rows can be found by search")
        if width > ROW_CELLS:
            notes.append(f"{len(self._names):,} columns; search sees the first {ROW_CELLS} filled cells of a row")
        if self._shortened:
            notes.append(f"search sees the first {ROW_CHARACTERS:,} characters of {self._shortened:,} long rows")
        return Table(self._name, self.rows, columns, start, end, tuple(self._runs), tuple(notes))

    def blocks(self) -> list[Block]:
        """One `rows` block for each run; call after `finish`."""
        return [Block("rows", run.start, run.end) for run in self._runs]

    def _fitted(self, row: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
        width = len(self._names)
        if len(row) < width:
            self.ragged += 1
            return [*row, *[""] * (width - len(row))], ()
        extra = row[width:]
        if any(extra):  # a delimiter too many at the end of each line is a habit, not a fault
            self.ragged += 1
        return row[:width], extra

    def _add_to_run(self, row: Sequence[str], extra: Sequence[str], start: int, end: int) -> None:
        if len(row) > ROW_CELLS:
            pairs = zip(self._prefixes, row, strict=True)
            line = "; ".join(islice((prefix + cell for prefix, cell in pairs if cell), ROW_CELLS))
        else:
            line = "; ".join([prefix + cell for prefix, cell in zip(self._prefixes, row, strict=True) if cell])
        if extra and any(extra):
            line = "; ".join([line, *[cell for cell in extra[:ROW_CELLS] if cell]])
        if "\n" in line or "\r" in line or "\0" in line:
            line = " ".join(line.replace("\0", " ").split())
        if len(line) > ROW_CHARACTERS:
            line = line[: ROW_CHARACTERS - 1] + "…"
            self._shortened += 1
        if self._lines and self._line_characters + len(line) > RUN_CHARACTERS:
            self._close_run()
        if not self._lines:
            self._run_start = start
        self._lines.append(line)
        self._line_characters += len(line)
        self._run_end = end
        if len(self._lines) == RUN_ROWS:
            self._close_run()

    def _close_run(self) -> None:
        if self._lines:
            first = self._runs[-1].last + 1 if self._runs else 1
            last = first + len(self._lines) - 1
            self._runs.append(RowRun(first, last, self._run_start, self._run_end, "\n".join(self._lines)))
            self._lines.clear()
            self._line_characters = 0

    def _store_batch(self) -> None:
        import pyarrow as pa

        if self._batch:
            for chunks, cells in zip(self._chunks, zip(*self._batch, strict=True), strict=True):
                chunks.append(pa.array(cells, pa.string()))
            self._batch.clear()

    def _columns(self) -> tuple[Column, ...]:
        if not any(self._chunks):  # a table of one batch is counted in less time than Arrow takes to import
            cells = zip(*self._batch, strict=True) if self._batch else [()] * len(self._names)
            return tuple(map(describe_column, self._names, cells))
        import pyarrow as pa

        self._store_batch()
        described = []
        for name, chunks in zip(self._names, self._chunks, strict=True):
            described.append(describe_column(name, pa.chunked_array(chunks, pa.string())))
            chunks.clear()
        return tuple(described)
