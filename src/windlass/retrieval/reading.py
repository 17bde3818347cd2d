"""Files read and cut into passages, inside the sandbox: what comes out are rows that only need to be written.

Reading and cutting are most of the work of a first index, and the children do it side by side. Small files come
several to a call, because each call costs a round trip during which the child has nothing to do.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields

from windlass.core.errors import ReadError
from windlass.core.paths import to_text
from windlass.lake.document import Column, Document
from windlass.lake.readers.read import read_document
from windlass.retrieval.passages import Cut, cut_document

TARGET = "windlass.retrieval.reading:read_passages"
"""What the sandbox is told to call."""

_COLUMN_FIELDS = tuple(field.name for field in fields(Column))

TableRow = tuple[str, int, int, int, str, str]
"""name, rows, start, end, columns (JSON), warnings (JSON)"""

PassageRow = tuple[str, int, int, int | None, int | None, int | None, int | None, str, str, bytes | None]
"""kind, start, end, page, index of the table, first row, last row, heading, text, hash of the embedded text"""


@dataclass(frozen=True, slots=True)
class Reading:
    """One file, as the database wants it: `text` is zlib-compressed UTF-8, `warnings` are JSON.

    `named_after` is the file's name when the title or a table is called after it, and empty when the content says
    what they are called.
    """

    kind: str
    title: str
    named_after: str
    pages: int | None
    characters: int
    faithful: bool
    encoding: str | None
    warnings: str
    text: bytes
    tables: list[TableRow]
    passages: list[PassageRow]


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that could not be read: the fields of a `ReadError`."""

    what: str
    reason: str
    hint: str


def read_passages(path: str, others: tuple[str, ...], words: int) -> list[Reading | Unread]:
    """Read `path` and `others` and cut each into passages of about `words` words; results in that order.

    Whatever is not a `ReadError` fails the call for all of them; call it again for each alone.
    """
    return [_read(each, words) for each in (path, *others)]


def storable(text: str) -> str:
    """Text that SQLite takes: lone surrogates replaced, NUL (which ends a C string) as its picture."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\u2400")


def _named_after(path: str, document: Document) -> str:
    name = to_text(os.path.basename(path))
    titles = [document.title, *(table.name for table in document.tables)]
    return name if any(title and name.startswith(title) for title in titles) else ""


def _read(path: str, words: int) -> Reading | Unread:
    try:
        document = read_document(path)
    except ReadError as error:
        return Unread(error.what, error.reason, error.hint)
    return Reading(
        document.kind,
        storable(document.title),
        _named_after(path, document),
        document.pages,
        len(document.text),
        document.faithful,
        document.encoding,
        json.dumps(document.warnings),
        zlib.compress(document.text.encode("utf-8", "surrogatepass"), 1),
        list(_table_rows(document)),
        [_passage_row(cut) for cut in cut_document(document, words=words)],
    )


def _table_rows(document: Document) -> Iterator[TableRow]:
    for table in document.tables:
        columns = json.dumps([{name: getattr(column, name) for name in _COLUMN_FIELDS} for column in table.columns])
        yield storable(table.name), table.rows, table.start, table.end, columns, json.dumps(table.warnings)


def _passage_row(cut: Cut) -> PassageRow:
    first, last = cut.rows or (None, None)
    heading, text = storable(cut.heading), storable(cut.text)
    return cut.kind, cut.start, cut.end, cut.page, cut.table, first, last, heading, text, cut.text_hash
