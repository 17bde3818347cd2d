"""Vectors for passages that are found by their words already: the second half of indexing.

A vector belongs to a text, not to a file: equal passages share one, and a moved file needs none. What is missing is
what has no row, so a run that was killed goes on where the last commit stood.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import numpy as np

from windlass.core.progress import Progress, check_cancelled
from windlass.core.workspace import Workspace, mark_changed
from windlass.models.encoder import Encoder

# A batch is one commit and one step of the progress bar: a second or two on a laptop.
_BATCH = 64

_MISSING = (
    "text_hash IS NOT NULL AND NOT EXISTS"
    " (SELECT 1 FROM embeddings WHERE encoder = ? AND embeddings.text_hash = chunks.text_hash)"
)


def embed_passages(workspace: Workspace, encoder: Encoder, progress: Progress) -> int:
    """Give every passage that wants one a vector of `encoder`; returns how many were made.

    Old vectors of another encoder go when the new ones are complete.
    """
    if not _demote_unembedded(workspace, encoder.fingerprint) and not _any_parsed(workspace):
        return 0
    missing = _missing_passages(workspace, encoder.fingerprint)
    if missing:
        progress.start("embed", len(missing), "passages")
        for first in range(0, len(missing), _BATCH):
            check_cancelled(progress)
            batch = missing[first : first + _BATCH]
            _embed_batch(workspace, encoder, batch)
            progress.advance("embed", len(batch))
        progress.finish("embed")
    with workspace.transaction() as connection:
        _promote_embedded(connection, encoder.fingerprint)
        connection.execute("DELETE FROM embeddings WHERE encoder <> ?", (encoder.fingerprint,))
    return len(missing)


def count_missing(workspace: Workspace, fingerprint: str) -> int:
    """How many different passage texts have no vector of this encoder yet."""
    with workspace.reading() as connection:
        row = connection.execute(
            f"SELECT count(DISTINCT text_hash) FROM chunks WHERE {_MISSING}", (fingerprint,)
        ).fetchone()
        return int(row[0])


def _missing_passages(workspace: Workspace, fingerprint: str) -> list[int]:
    """One passage of each text without a vector; descriptions of tables first: they are few and answer much."""
    with workspace.reading() as connection:
        rows = connection.execute(
            f"SELECT min(id) FROM chunks WHERE {_MISSING} GROUP BY text_hash ORDER BY kind = 'schema' DESC, min(id)",
            (fingerprint,),
        )
        return [row[0] for row in rows]


def _embed_batch(workspace: Workspace, encoder: Encoder, passages: list[int]) -> None:
    marks = ", ".join("?" * len(passages))
    with workspace.reading() as connection:
        rows = connection.execute(
            f"SELECT text_hash, heading, text FROM chunks WHERE id IN ({marks})", passages
        ).fetchall()
    texts = [f"{heading}\n{text}" if heading else text for _, heading, text in rows]
    vectors = encoder.encode_passages(texts).astype(np.float16)
    with workspace.transaction() as connection:
        connection.executemany(
            "INSERT OR IGNORE INTO embeddings VALUES (?, ?, ?)",
            [(encoder.fingerprint, row[0], vector.tobytes()) for row, vector in zip(rows, vectors, strict=True)],
        )
        documents = [row[0] for row in _documents_of(connection, [row[0] for row in rows])]
        _promote_embedded(connection, encoder.fingerprint, documents)
        mark_changed(connection)


def _documents_of(connection: sqlite3.Connection, hashes: list[bytes]) -> Iterator[tuple[int]]:
    marks = ", ".join("?" * len(hashes))
    return connection.execute(f"SELECT DISTINCT document_id FROM chunks WHERE text_hash IN ({marks})", hashes)


_HAS_MISSING_VECTOR = f"EXISTS (SELECT 1 FROM chunks WHERE chunks.document_id = files.document_id AND {_MISSING})"


def _promote_embedded(connection: sqlite3.Connection, fingerprint: str, documents: list[int] | None = None) -> None:
    """Files whose passages all have their vectors are `indexed`; only those of `documents` are looked at, if given."""
    among = "" if documents is None else f" AND document_id IN ({', '.join('?' * len(documents))})"
    connection.execute(
        f"UPDATE files SET state = 'indexed' WHERE state = 'parsed'{among} AND NOT {_HAS_MISSING_VECTOR}",
        (*(documents or ()), fingerprint),
    )


def _any_parsed(workspace: Workspace) -> bool:
    with workspace.reading() as connection:
        return connection.execute("SELECT 1 FROM files WHERE state = 'parsed' LIMIT 1").fetchone() is not None


def _demote_unembedded(workspace: Workspace, fingerprint: str) -> bool:
    """After a change of encoder, files that were complete are not. True when another encoder's vectors are there."""
    with workspace.reading() as connection:
        others = connection.execute(
            "SELECT 1 FROM embeddings WHERE encoder < ?1 OR encoder > ?1 LIMIT 1", (fingerprint,)
        ).fetchone()
    if others:
        with workspace.transaction() as connection:
            connection.execute(
                f"UPDATE files SET state = 'parsed' WHERE state = 'indexed' AND {_HAS_MISSING_VECTOR}", (fingerprint,)
            )
    return others is not None
