"""What a reader makes of one file: plain records that cross the process border of the sandbox.

A `Document` is one canonical text plus blocks that say what each stretch of it is. Offsets are character offsets
into `Document.text`, half-open. For plain text, Markdown, source code, CSV, TSV, JSON and JSONL the canonical text
*is* the decoded file (byte-order mark removed, nothing else changed), so a span points into the file itself; for
HTML, PDF, DOCX, PPTX, XLSX and Parquet it is the extracted or rendered text, and `Document.faithful` is False.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

BlockKind = Literal["heading", "paragraph", "list", "table", "code", "rows"]


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch `text[start:end]` of a document that is one thing.

    Attributes:
        kind: `heading` opens a section of depth `level`; `rows` is a run of table rows (see `Table`); the others
            are what they say.
        start, end: Character offsets into the document's text, `0 <= start < end <= len(text)`.
        level: Heading depth from 1, 0 for everything that is not a heading.
        page: 1-based page or slide number, None where the format has none.
    """

    kind: BlockKind
    start: int
    end: int
    level: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table as a person would want it described.

    `type` is one of `integer`, `number`, `boolean`, `date`, `timestamp`, `text`, `empty`; `minimum`, `maximum` and
    `samples` are rendered as text; `distinct` may be approximate.
    """

    name: str
    type: str
    nulls: int
    distinct: int
    minimum: str | None
    maximum: str | None
    samples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RowRun:
    """Consecutive rows of a table: 1-based data row numbers (header not counted), inclusive, and their span."""

    first: int
    last: int
    start: int
    end: int
    text: str  # "column: value; column: value" lines, one a row: what is indexed


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a document (a CSV has one, a workbook one a sheet).

    Attributes:
        name: Sheet name, or the file's stem.
        rows: Number of data rows of the whole table.
        columns: Profile of every column over the whole table.
        start, end: Span of the table in the document's text.
        runs: Row runs, in order; they may cover less than `rows` when the table is longer than the reader's limit.
        warnings: What was odd, for people ("37 of 20,000 rows had a different number of fields").
    """

    name: str
    rows: int
    columns: tuple[Column, ...]
    start: int
    end: int
    runs: tuple[RowRun, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """All that is read from one file. `kind` is the short format name (`markdown`, `pdf`, `csv`, ...)."""

    kind: str
    text: str
    title: str
    blocks: tuple[Block, ...]
    tables: tuple[Table, ...] = ()
    pages: int | None = None
    faithful: bool = True
    encoding: str | None = None
    warnings: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
