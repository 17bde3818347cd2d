"""The tables of a folder, ready to be asked as wholes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from windlass.core.errors import NotFound
from windlass.core.workspace import Workspace
from windlass.lake.document import Column
from windlass.lake.stored import document_text
from windlass.lake.table_data import table_data
from windlass.retrieval.overview import list_tables
from windlass.retrieval.table_questions import TableSource

if TYPE_CHECKING:
    import pyarrow


def table_sources(workspace: Workspace) -> list[TableSource]:
    """Every table once; its rows are read only when a question is about it."""
    return [
        TableSource(
            file=table.file,
            doc_id=table.document_id,
            name=table.name,
            columns=table.columns,
            rows=table.rows,
            load=partial(_load, workspace, table.id, table.columns),
            start=table.start,
        )
        for table in list_tables(workspace)
    ]


def _load(workspace: Workspace, table_id: int, columns: tuple[Column, ...]) -> pyarrow.Table:
    with workspace.reading() as connection:
        row = connection.execute(
            "SELECT documents.id, kind, start, end, rows FROM tables JOIN documents ON documents.id = document_id"
            " WHERE tables.id = ?",
            (table_id,),
        ).fetchone()
        text = document_text(connection, row[0]) if row else None
    if text is None:
        raise NotFound("the table is gone", hint="its file may have changed; ask again")
    return table_data(row[1], text[row[2] : row[3]], columns, row[4])
