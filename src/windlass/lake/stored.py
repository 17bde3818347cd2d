"""What reading left in the workspace: the texts of documents and the cells of their tables."""

from __future__ import annotations

import json
import sqlite3
import zlib
from typing import TYPE_CHECKING

from windlass.core.errors import NotFound, WorkspaceError
from windlass.core.workspace import Workspace
from windlass.lake.document import Column
from windlass.lake.table_data import table_cells

if TYPE_CHECKING:
    from windlass.lake.hashing import Cells


def document_text(connection: sqlite3.Connection, doc_id: int) -> str | None:
    """The canonical text of a document, None when it is gone.

    Raises:
        WorkspaceError: What is stored is damaged.
    """
    row = connection.execute("SELECT text FROM documents WHERE id = ?", (doc_id,)).fetchone()
    if row is None:
        return None
    try:
        return zlib.decompress(row[0]).decode("utf-8", "surrogatepass")
    except (zlib.error, UnicodeDecodeError) as error:
        raise WorkspaceError(
            f"the text of document {doc_id} is damaged: {error}", hint="run `windlass doctor FOLDER --repair`"
        ) from error


def stored_columns(text: str) -> tuple[Column, ...]:
    """The column profiles of a row of `tables`."""
    return tuple(Column(**{**column, "samples": tuple(column["samples"])}) for column in json.loads(text))


def stored_cells(workspace: Workspace, table_id: int) -> Cells:
    """All cells of a table.

    Raises:
        NotFound: The table is gone.
        ReadError: It is longer than what is kept of it.
    """
    with workspace.reading() as connection:
        row = connection.execute(
            "SELECT documents.id, kind, start, end, rows, columns FROM tables JOIN documents"
            " ON documents.id = document_id WHERE tables.id = ?",
            (table_id,),
        ).fetchone()
        text = document_text(connection, row[0]) if row else None
    if text is None:
        raise NotFound("the table is gone", hint="its file may have changed; run it again")
    return table_cells(row[1], text[row[2] : row[3]], stored_columns(row[5]), row[4])
