"""What stands in a workspace, as values that can be compared, and the promises that hold at every moment."""

from __future__ import annotations

from typing import Any

from windlass.core.workspace import Workspace

Rows = list[tuple[Any, ...]]
_DOCUMENT = "(SELECT content_hash || ' ' || kind FROM documents WHERE id = document_id)"
_CONTENT = {
    "files": f"SELECT path, size, content_hash, kind, state, reason, message, {_DOCUMENT} FROM files ORDER BY path",
    "documents": "SELECT content_hash, kind, title, pages, characters, faithful, encoding, warnings, text"
    " FROM documents ORDER BY content_hash, kind",
    "tables": f"SELECT {_DOCUMENT} AS document, name, rows, start, end, columns, warnings"
    " FROM tables ORDER BY document, start, name",
    "chunks": f"SELECT {_DOCUMENT} AS document, kind, start, end, page, first_row, last_row, heading, text, text_hash"
    " FROM chunks ORDER BY document, start, end, kind, text",
    "vectors": "SELECT encoder, text_hash, vector FROM embeddings ORDER BY encoder, text_hash",
}


def rows(workspace: Workspace, query: str, *values: object) -> Rows:
    with workspace.reading() as connection:
        return connection.execute(query, values).fetchall()


def content(workspace: Workspace) -> dict[str, Rows]:
    """Everything that was made of the folder, without ids and times."""
    return {name: rows(workspace, query) for name, query in _CONTENT.items()}


def check_whole(workspace: Workspace) -> None:
    """Nothing half-written: a document has a file, a file its document, a passage its words."""
    assert workspace.check_integrity() == []
    held = "SELECT document_id FROM files WHERE document_id IS NOT NULL"
    assert rows(workspace, f"SELECT id FROM documents WHERE id NOT IN ({held})") == []
    assert (
        rows(workspace, "SELECT path FROM files WHERE (document_id IS NULL) = (state IN ('parsed', 'indexed'))") == []
    )
    differ = "SELECT path FROM files JOIN documents ON document_id = documents.id WHERE files.content_hash <>"
    assert rows(workspace, f"{differ} documents.content_hash OR files.kind <> documents.kind") == []
    unembedded = (
        "SELECT path FROM files JOIN chunks USING (document_id) WHERE state = 'indexed' AND text_hash IS NOT NULL AND"
        " text_hash NOT IN (SELECT text_hash FROM embeddings)"
    )
    assert rows(workspace, unembedded) == []


def check_no_unused_vectors(workspace: Workspace) -> None:
    """Holds after every run that was not interrupted."""
    wanted = "SELECT text_hash FROM chunks WHERE text_hash IS NOT NULL"
    assert rows(workspace, f"SELECT text_hash FROM embeddings WHERE text_hash NOT IN ({wanted})") == []
