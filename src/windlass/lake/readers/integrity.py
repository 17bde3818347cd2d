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
    end = 0
    for block in document.blocks:
        _require(end <= block.start < block.end <= len(document.text), f"{block} is out of order or place")
        _require(not document.text[block.start : block.end].isspace(), f"{block} is blank")
        _require((block.level > 0) == (block.kind == "heading"), f"{block} has a level that does not fit")
        if block.page is not None:
            _require(1 <= block.page <= (document.pages or 0), f"{block} is on no page of {document.pages}")
        end = block.end
    for table in document.tables:
        _check_table(table, len(document.text))
    spans = [(block.start, block.end) for block in document.blocks if block.kind == "rows"]
    runs = [(run.start, run.end) for table in document.tables for run in table.runs]
    _require(sorted(spans) == sorted(runs), "rows blocks and row runs differ")


def _check_table(table: Table, length: int) -> None:
    _require(0 <= table.start <= table.end <= length, f"table {table.name} is out of place")
    row, end = 0, table.start
    for run in table.runs:
        follows = run.first == row + 1 and run.last >= run.first
        _require(follows, f"rows {run.first} to {run.last} do not follow {row}")
        _require(end <= run.start < run.end <= table.end, f"rows {run.first} to {run.last} are out of place")
        lines = run.text.count("\n") + 1
        _require(lines == run.last - run.first + 1, f"rows {run.first} to {run.last} have {lines} lines")
        row, end = run.last, run.end
    _require(row <= table.rows, f"table {table.name} has {table.rows} rows, and runs for {row}")
    for column in table.columns:
        _require(0 <= column.nulls <= table.rows, f"column {column.name} has {column.nulls} nulls")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise WindlassError(f"a reader made an unsound document: {otherwise}", hint="please report this")
