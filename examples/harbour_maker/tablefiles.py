"""Rows to files whose bytes do not change from run to run: CSV, TSV, JSON lines, Parquet and workbooks."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from datetime import date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl import Workbook
from openpyxl.styles import Font
from openpyxl.utils import get_column_letter

Row = dict[str, object]
_ZIP_TIME = (2025, 1, 6, 9, 0, 0)


def _cell(field: str, value: object) -> object:
    if field == "amount_eur":
        return f"{value:.2f}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, date):
        return value.isoformat()
    return "" if value is None else value


def write_csv(path: Path, rows: list[Row], columns: tuple[str, ...] = (), delimiter: str = ",") -> None:
    """`columns` chooses and orders; all columns of the first row when empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = columns or tuple(rows[0])
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        writer.writerow(fields)
        writer.writerows([_cell(field, row[field]) for field in fields] for row in rows)


def write_jsonl(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path: Path, rows: list[Row]) -> None:
    """Moments are stored as timestamps in seconds without a zone (all times of the port are UTC)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows)
    seconds = [pa.field(f.name, pa.timestamp("s")) if pa.types.is_timestamp(f.type) else f for f in table.schema]
    pq.write_table(table.cast(pa.schema(seconds)), path, compression="zstd", row_group_size=2000)


def write_workbook(path: Path, sheets: dict[str, list[list[object]]], header_row: int = 1) -> None:
    """One sheet a list of rows; `header_row` (1-based) is set in bold and frozen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
        for cell in sheet[header_row]:
            cell.font = Font(bold=True)
        for number in range(1, sheet.max_column + 1):
            longest = max(len(str(row[number - 1])) for row in rows if len(row) >= number)
            sheet.column_dimensions[get_column_letter(number)].width = min(48, longest + 2)
        sheet.freeze_panes = f"A{header_row + 1}"
    stream = io.BytesIO()
    book.save(stream)
    write_office_file(path, stream.getvalue())


def as_sheet(rows: list[Row], columns: tuple[str, ...] = ()) -> list[list[object]]:
    """Rows with their column names on top, as `write_workbook` wants a sheet."""
    fields = columns or tuple(rows[0])
    return [list(fields)] + [[row[field] for field in fields] for row in rows]


def write_office_file(path: Path, package: bytes) -> None:
    """Write a zipped office document with the times of its members and its core properties fixed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        zipfile.ZipFile(io.BytesIO(package)) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in sorted(source.namelist()):
            content = source.read(name)
            if name == "docProps/core.xml":
                stamp = rb"\g<1>2025-01-06T09:00:00Z\g<2>"
                content = re.sub(rb"(<dcterms:(?:created|modified)[^>]*>)[^<]*(<)", stamp, content)
            member = zipfile.ZipInfo(name, _ZIP_TIME)
            member.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(member, content)
