"""Passages by id, as the workspace holds them now."""

from __future__ import annotations

from collections.abc import Sequence

from windlass.core.workspace import Workspace
from windlass.retrieval.types import Passage


def load_passages(workspace: Workspace, ids: Sequence[int]) -> dict[int, Passage]:
    """The passages of `ids` that are (still) there."""
    with workspace.reading() as connection:
        rows = connection.execute(
            "SELECT chunks.id, document_id, start, end, heading, text, kind, page, first_row, last_row, (SELECT name"
            f" FROM tables WHERE tables.id = table_id) FROM chunks WHERE chunks.id IN ({_marks(ids)})",
            list(ids),
        ).fetchall()
        documents = sorted({row[1] for row in rows})
        paths: dict[int, list[str]] = {document: [] for document in documents}
        for document, path in connection.execute(
            f"SELECT document_id, path FROM files WHERE document_id IN ({_marks(documents)})"
            " ORDER BY length(path), path",
            documents,
        ):
            paths[document].append(path)
    passages = {}
    for row in rows:
        names = paths[row[1]] or [""]
        passages[row[0]] = Passage(
            id=row[0],
            doc_id=row[1],
            source=names[0],
            start=row[2],
            end=row[3],
            title=row[4],
            text=row[5],
            kind=row[6],
            page=row[7],
            rows=None if row[8] is None else (row[8], row[9]),
            table=row[10],
            also=tuple(names[1:]),
        )
    return passages


def _marks(values: Sequence[int]) -> str:
    return ", ".join("?" * len(values))
