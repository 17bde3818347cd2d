"""The promises of `windlass.lake.document`, checked on every document before it leaves a reader."""

from __future__ import annotations

from windlass.core.errors import WindlassError
from windlass.lake.document import Document, Table


def check_document(document: Document) -> None:
    """Raise `WindlassError` naming the first promise that a document breaks; returns None when it keeps them.

    Blocks are in order, do not overlap, lie inside the text and are not blank; headings alone have a level;
    pages are within the document's; `rows` blocks are exactly the row runs of the tables; runs follow one
    another, lie inside their table and have one line a row.
    """
    text, end = document.text, 0
    for block in document.blocks:
        if not end <= block.start < block.end <= len(text):
            raise _unsound(f"{block} is out of order or place")
        if text[block.start : block.end].isspace():
            raise _unsound(f"{block} is blank")
        if (block.level > 0) != (block.kind == "heading"):
            raise _unsound(f"{block} has a level that does not fit")
        if block.page is not None and not 1 <= block.page <= (document.pages or 0):
            raise _unsound(f"{block} is on no page of {document.pages}")
        end = block.end
    for table in document.tables:
        _check_table(table, len(text))
    spans = [(block.start, block.end) for block in document.blocks if block.kind == "rows"]
    runs = [(run.start, run.end) for table in document.tables for run in table.runs]
    if sorted(spans) != sorted(runs):
        raise _unsound("rows blocks and row runs differ")


def _check_table(table: Table, length: int) -> None:
    if not 0 <= table.start <= table.end <= length:
        raise _unsound(f"table {table.name} is out of place")
    row, end = 0, table.start
    for run in table.runs:
        if run.first != row + 1 or run.last < run.first:
            raise _unsound(f"rows {run.first} to {run.last} do not follow {row}")
        if not end <= run.start < run.end <= table.end:
            raise _unsound(f"rows {run.first} to {run.last} are out of place")
        lines = run.text.count("\n") + 1
        if lines != run.last - run.first + 1:
            raise _unsound(f"rows {run.first} to {run.last} have {lines} lines")
        row, end = run.last, run.end
    if row > table.rows:
        raise _unsound(f"table {table.name} has {table.rows} rows, and runs for {row}")
    for column in table.columns:
        if not 0 <= column.nulls <= table.rows:
            raise _unsound(f"column {column.name} has {column.nulls} nulls")


def _unsound(what: str) -> WindlassError:
    return WindlassError(f"a reader made an unsound document: {what}", hint="please report this")
