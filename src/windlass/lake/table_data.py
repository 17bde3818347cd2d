"""All rows of a table as Arrow columns, from the document text that was kept when its file was read.

The text of a document holds every row of its tables in the order they stand in the file (up to the reader's limit),
so a question over a whole table needs neither the file nor its parser again.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from windlass.core.errors import ReadError
from windlass.lake.document import Column
from windlass.lake.readers.columns import NULL_WORDS
from windlass.lake.readers.delimited import find_delimiter

if TYPE_CHECKING:
    import pyarrow

    from windlass.lake.hashing import Cells

_SAMPLE_CHARACTERS = 64 << 10


def table_data(kind: str, text: str, columns: Sequence[Column], rows: int) -> pyarrow.Table:
    """The whole table, columns typed as their profiles say, null words as nulls.

    Args:
        kind: Format of the document (`csv`, `xlsx`, `parquet`, ...).
        text: The table's span of the document's text.
        columns: Profiles, in order.
        rows: How many data rows the table has.

    Raises:
        ReadError: The text does not hold that many rows, because the table is longer than what is kept of it.

    Example:
        >>> column = Column("depth", "number", 0, 2, "7.5", "9.1", ("7.5",))
        >>> table_data("csv", "depth\\n7.5\\n9.1\\n", [column], 2).to_pydict()
        {'depth': [7.5, 9.1]}
    """
    import pyarrow

    records = _records(kind, text, [column.name for column in columns])
    if len(records) == rows + 1:
        records = records[1:]  # the header
    if len(records) != rows:
        raise _too_long(len(records), rows)
    arrays = []
    for place, column in enumerate(columns):
        cells = [record[place] if place < len(record) else "" for record in records]
        arrays.append(_typed(column.type, [None if cell.strip() in NULL_WORDS else cell.strip() for cell in cells]))
    return pyarrow.table(arrays, names=[column.name for column in columns])


def table_cells(kind: str, text: str, columns: Sequence[Column], rows: int) -> Cells:
    """The whole table as cells to be hashed.

    Args:
        kind, text, columns, rows: As for `table_data`.

    Raises:
        ReadError: As `table_data`.
    """
    from windlass.lake.hashing import delimited_cells, record_cells

    names = [column.name for column in columns]
    cells = None
    if kind in ("csv", "tsv"):
        delimiter = find_delimiter(text[:_SAMPLE_CHARACTERS], kind)
        cells = delimited_cells(text.encode("utf-8", "replace"), 0, delimiter, names)
    if cells is None:
        cells = record_cells(_records(kind, text, names), names)
    if cells.rows == rows + 1:
        cells = cells.without_first()  # the header
    if cells.rows != rows:
        raise _too_long(cells.rows, rows)
    return cells


def _too_long(kept: int, rows: int) -> ReadError:
    what = f"{kept:,} of {rows:,} rows are kept of this table"
    return ReadError(what, reason="too-large", hint="ask the file itself")


def _records(kind: str, text: str, names: Sequence[str]) -> list[list[str]]:
    if kind in ("json", "jsonl"):
        return _json_records(kind, text, names)
    if kind in ("csv", "tsv"):
        delimiter = find_delimiter(text[:_SAMPLE_CHARACTERS], kind)
        return [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    return [line.split("\t") for line in text.split("\n") if line]


def _json_records(kind: str, text: str, names: Sequence[str]) -> list[list[str]]:
    try:
        values = (
            json.loads(text) if kind == "json" else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
    except ValueError as error:
        raise ReadError(f"the table is not plain JSON ({error})", reason="broken") from error
    values = values if isinstance(values, list) else [values]
    if not all(isinstance(value, dict) for value in values):
        raise ReadError("the table is not a list of records", reason="broken")
    return [[_cell(value.get(name)) for name in names] for value in values]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _typed(kind: str, cells: list[str | None]) -> pyarrow.Array:
    """An Arrow array of the profile's type, or of text when some cell does not take it."""
    import pyarrow

    parse = _PARSERS.get(kind)
    if parse is not None:
        try:
            return pyarrow.array([None if cell is None else parse(cell) for cell in cells])
        except (ValueError, OverflowError, pyarrow.ArrowInvalid):
            pass  # at most one in a hundred dates may be odd; then the column stays what it is in the file
    return pyarrow.array(cells, pyarrow.string())


def _number(cell: str) -> float:
    return float(cell.replace(",", ""))


def _integer(cell: str) -> int:
    value = _number(cell)
    if not value.is_integer():
        raise ValueError(cell)
    return int(cell) if cell.lstrip("+-").isdigit() else int(value)


_PARSERS: dict[str, Callable[[str], Any]] = {
    "integer": _integer,
    "number": _number,
    "date": lambda cell: datetime.fromisoformat(cell).date(),
    "timestamp": lambda cell: datetime.fromisoformat(cell).replace(tzinfo=None),
}
