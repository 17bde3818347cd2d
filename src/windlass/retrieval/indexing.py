"""From files that were seen to passages that can be found by their words: read, cut, store.

The state of every file in the database is the whole plan: what is `seen` is read, what is `parsed` is embedded (see
`embedding`), what is `failed` waits until it changes. There is no journal beside it, so a run that was killed goes on
where the last commit stood. Files are read in limited child processes; one that is broken, too big or hostile becomes
a failed file with its reason, and the others go on.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from windlass.core.errors import ReadError, WindlassError
from windlass.core.paths import to_os
from windlass.core.progress import Progress
from windlass.core.sandbox import Limits, Sandbox
from windlass.core.settings import Settings
from windlass.core.workspace import Workspace, mark_changed
from windlass.retrieval.reading import TARGET, Reading, storable

READER_VERSION = 1
_COMMIT_SECONDS = 1.0
_COMMIT_CHARACTERS = 256 << 10
_HELD_CHARACTERS = 16 << 20
_PARCEL_BYTES = 128 << 10
_PARCEL_FILES = 32


@dataclass
class ReadReport:
    """What reading did: files read, passages stored, and (path, reason, message) of each file that failed."""

    files: int = 0
    passages: int = 0
    failed: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Waiting:
    """Files of equal content and ending: read once, for all of them."""

    paths: tuple[str, ...]
    size: int
    mtime_ns: int
    content_hash: str


def reading_sandbox(workspace: Workspace, settings: Settings) -> Sandbox:
    """Where files are read. For a folder that was never scanned two processes start at once, beside the scan."""
    limits = Limits(
        seconds=settings.limits.reader_seconds,
        memory_bytes=settings.limits.reader_memory_mb << 20,
        inflated_bytes=settings.limits.inflated_mb << 20,
    )
    sandbox = Sandbox(TARGET, limits=limits)
    with workspace.reading() as connection:
        if connection.execute("SELECT 1 FROM files LIMIT 1").fetchone() is None:
            sandbox.start(2)
    return sandbox


def read_files(workspace: Workspace, settings: Settings, sandbox: Sandbox, progress: Progress) -> ReadReport:
    """Read every file in state `seen` and store its passages; afterwards they can be searched by word."""
    report = ReadReport()
    _retry_after_reader_change(workspace)
    _forget_old_names(workspace)
    _share_documents(workspace)
    waiting = _waiting(workspace)
    if waiting:
        _read_waiting(workspace, settings, sandbox, waiting, report, progress)
    _drop_unused_vectors(workspace)
    return report


def _read_waiting(
    workspace: Workspace,
    settings: Settings,
    sandbox: Sandbox,
    waiting: list[_Waiting],
    report: ReadReport,
    progress: Progress,
) -> None:
    progress.start("read", sum(len(group.paths) for group in waiting), "files")
    batch: list[tuple[_Waiting, Reading | WindlassError]] = []
    characters, committed = 0, time.monotonic()
    # A thread writes while we go on giving work to the children; what is read meanwhile is the next batch.
    with ThreadPoolExecutor(1, "store") as writer:
        stored = writer.submit(_store, workspace, [], report)
        for group, result in _read(workspace, settings, sandbox, waiting, progress):
            batch.append((group, _checked(workspace, group, result)))
            characters += result.characters if isinstance(result, Reading) else 0
            progress.advance("read", len(group.paths), group.paths[0])
            due = characters > _COMMIT_CHARACTERS or time.monotonic() - committed > _COMMIT_SECONDS
            if (due and stored.done()) or characters > _HELD_CHARACTERS:
                stored.result()
                stored = writer.submit(_store, workspace, batch, report)
                batch, characters, committed = [], 0, time.monotonic()
        stored.result()
        writer.submit(_store, workspace, batch, report).result()
    progress.finish("read")


def _read(
    workspace: Workspace, settings: Settings, sandbox: Sandbox, waiting: list[_Waiting], progress: Progress
) -> Iterator[tuple[_Waiting, Reading | WindlassError]]:
    """Read small files several at a time; when a parcel breaks, each of its files again, alone."""
    folder = os.fsencode(workspace.folder)
    parcels = list(_parcels(waiting))
    while parcels:
        calls = []
        for parcel in parcels:
            path, *others = [os.fsdecode(folder + b"/" + to_os(group.paths[0])) for group in parcel]
            calls.append((path, tuple(others), settings.index.passage_words))
        broken: list[_Waiting] = []
        for number, result in sandbox.map(calls, progress=progress):
            parcel = parcels[number]
            if isinstance(result, list) and len(result) == len(parcel):
                for group, one in zip(parcel, result, strict=True):
                    yield (
                        group,
                        one if isinstance(one, Reading) else ReadError(one.what, reason=one.reason, hint=one.hint),
                    )
            elif len(parcel) > 1:
                broken += parcel
            else:
                yield (
                    parcel[0],
                    result if isinstance(result, WindlassError) else ReadError("no answer", reason="broken"),
                )
        parcels = [[group] for group in broken]


def _parcels(waiting: list[_Waiting]) -> Iterator[list[_Waiting]]:
    parcel: list[_Waiting] = []
    size = 0
    for group in waiting:
        if parcel and (size + group.size > _PARCEL_BYTES or len(parcel) == _PARCEL_FILES):
            yield parcel
            parcel, size = [], 0
        parcel.append(group)
        size += group.size
    if parcel:
        yield parcel


def _retry_after_reader_change(workspace: Workspace) -> None:
    with workspace.reading() as connection:
        row = connection.execute(
            "SELECT count(*) FROM documents WHERE reader_version <> ?", (READER_VERSION,)
        ).fetchone()
    if row[0]:
        with workspace.transaction() as connection:
            connection.execute(
                "UPDATE files SET state = 'seen', document_id = NULL WHERE document_id IN"
                " (SELECT id FROM documents WHERE reader_version <> ?)",
                (READER_VERSION,),
            )
            mark_changed(connection)


def _forget_old_names(workspace: Workspace) -> None:
    """What is called after a file that is now called otherwise is read again, or the old name would go on."""
    names: dict[int, set[str]] = defaultdict(set)
    after: dict[int, str] = {}
    with workspace.reading() as connection:
        for doc_id, named_after, path in connection.execute(
            "SELECT documents.id, named_after, path FROM documents JOIN files ON document_id = documents.id"
            " WHERE named_after <> ''"
        ):
            after[doc_id] = named_after
            names[doc_id].add(PurePosixPath(path).name)
    stale = [(doc_id,) for doc_id, name in after.items() if name not in names[doc_id]]
    if stale:
        with workspace.transaction() as connection:
            connection.executemany("UPDATE files SET state = 'seen', document_id = NULL WHERE document_id = ?", stale)
            mark_changed(connection)


def _share_documents(workspace: Workspace) -> None:
    """A file whose content is already known under the same ending takes over that document."""
    with workspace.reading() as connection:
        known = connection.execute(
            "SELECT seen.path, other.path, other.kind, other.state, other.document_id FROM files AS seen JOIN files"
            " AS other ON other.content_hash = seen.content_hash AND other.document_id IS NOT NULL"
            " WHERE seen.state = 'seen'"
        ).fetchall()
    shared = {
        seen: (kind, state, doc, seen) for seen, other, kind, state, doc in known if _ending(seen) == _ending(other)
    }
    if shared:
        with workspace.transaction() as connection:
            connection.executemany(
                "UPDATE files SET kind = ?, state = ?, document_id = ? WHERE path = ?", list(shared.values())
            )
            mark_changed(connection)


def _waiting(workspace: Workspace) -> list[_Waiting]:
    groups: dict[tuple[str, str], list[tuple[str, int, int]]] = defaultdict(list)
    with workspace.reading() as connection:
        rows = connection.execute(
            "SELECT path, size, mtime_ns, content_hash FROM files WHERE state = 'seen' ORDER BY size, path"
        )
        for path, size, mtime_ns, content_hash in rows:
            groups[content_hash, _ending(path)].append((path, size, mtime_ns))
    return [
        _Waiting(tuple(path for path, _, _ in files), files[0][1], files[0][2], content_hash)
        for (content_hash, _), files in groups.items()
    ]


def _checked(workspace: Workspace, group: _Waiting, result: Reading | WindlassError) -> Reading | WindlassError:
    """The result, unless the file changed between hashing and reading: then its hash is not that of what was read."""
    try:
        record = os.lstat(os.fsencode(workspace.folder) + b"/" + to_os(group.paths[0]))
    except OSError:
        return ReadError(f"{group.paths[0]} vanished while it was read", reason="changing")
    if (record.st_size, record.st_mtime_ns) != (group.size, group.mtime_ns):
        return ReadError(f"{group.paths[0]} changed while it was read", reason="changing")
    return result


def _store(workspace: Workspace, batch: list[tuple[_Waiting, Reading | WindlassError]], report: ReadReport) -> None:
    if not batch:
        return
    with workspace.transaction() as connection:
        for group, result in batch:
            if isinstance(result, Reading):
                doc_id, passages = _store_document(connection, group.content_hash, result)
                report.files += 1
                report.passages += passages
                _set_files(connection, group.paths, "parsed", kind=result.kind, doc_id=doc_id)
            elif isinstance(result, ReadError) and result.reason == "changing":
                continue  # stays `seen`; the next scan hashes it again
            else:
                reason = result.reason if isinstance(result, ReadError) else "broken"
                message = _without_place(str(result), group.paths[0])
                report.failed.extend((path, reason, message) for path in group.paths)
                _set_files(connection, group.paths, "failed", reason=reason, message=message)
        mark_changed(connection)


def _without_place(message: str, path: str) -> str:
    """A reader names the file it was given; beside the file's own path that is said twice."""
    place, colon, rest = message.partition(": ")
    return rest if colon and place.endswith(PurePosixPath(path).name) else message


def _store_document(connection: sqlite3.Connection, content_hash: str, reading: Reading) -> tuple[int, int]:
    known = connection.execute(
        "SELECT id FROM documents WHERE content_hash = ? AND kind = ?", (content_hash, reading.kind)
    ).fetchone()
    if known is not None:  # equal files whose endings differ and mean the same, as .htm and .html
        return int(known[0]), 0
    doc_id = connection.execute(
        "INSERT INTO documents (content_hash, kind, reader_version, title, named_after, pages, characters, faithful,"
        " encoding, warnings, text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            content_hash,
            reading.kind,
            READER_VERSION,
            reading.title,
            reading.named_after,
            reading.pages,
            reading.characters,
            reading.faithful,
            reading.encoding,
            reading.warnings,
            reading.text,
        ),
    ).lastrowid
    assert doc_id is not None
    table_ids = [
        connection.execute(
            "INSERT INTO tables (document_id, name, rows, start, end, columns, warnings) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (doc_id, *table),
        ).lastrowid
        for table in reading.tables
    ]
    connection.executemany(
        "INSERT INTO chunks (document_id, kind, start, end, page, table_id, first_row, last_row, heading, text,"
        " text_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(doc_id, *row[:4], None if row[4] is None else table_ids[row[4]], *row[5:]) for row in reading.passages],
    )
    return doc_id, len(reading.passages)


def _set_files(
    connection: sqlite3.Connection,
    paths: Iterable[str],
    state: str,
    *,
    kind: str | None = None,
    doc_id: int | None = None,
    reason: str | None = None,
    message: str | None = None,
) -> None:
    connection.executemany(
        "UPDATE files SET state = ?, kind = ?, document_id = ?, reason = ?, message = ? WHERE path = ?",
        [(state, kind, doc_id, reason, None if message is None else storable(message), path) for path in paths],
    )


def _drop_unused_vectors(workspace: Workspace) -> None:
    """Not while files wait to be read: most passages of an edited file come back as they were."""
    with workspace.reading() as connection:
        suspected = connection.execute("SELECT 1 FROM counters WHERE name = 'unused_vectors'").fetchone()
    if suspected:
        with workspace.transaction() as connection:
            connection.execute(
                "DELETE FROM embeddings WHERE NOT EXISTS"
                " (SELECT 1 FROM chunks WHERE chunks.text_hash = embeddings.text_hash)"
            )
            connection.execute("DELETE FROM counters WHERE name = 'unused_vectors'")


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
