"""What a folder holds, as a person wants to see it: files, types, duplicates, tables, failures, progress."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from windlass.core.workspace import Workspace
from windlass.lake.document import Column
from windlass.lake.scan import Catalog
from windlass.lake.stored import stored_columns
from windlass.lake.survey import (
    ContainedTable,
    NearCopy,
    OverlappingTable,
    contained_tables,
    near_copies,
    overlapping_tables,
)
from windlass.lake.table_joins import TableJoin, stored_joins
from windlass.retrieval.embedding import count_missing
from windlass.retrieval.topics import Topics


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One file: its state is `seen`, `parsed` (found by word), `indexed` (also by meaning) or `failed` (see why)."""

    path: str
    size: int
    kind: str | None
    state: str
    reason: str | None
    message: str | None
    title: str
    pages: int | None
    document_id: int | None
    duplicate_of: str | None


@dataclass(frozen=True, slots=True)
class TableInfo:
    """One table, profiled over all its rows."""

    id: int
    document_id: int
    file: str
    name: str
    rows: int
    columns: tuple[Column, ...]
    warnings: tuple[str, ...]
    start: int = 0


@dataclass(frozen=True)
class Overview:
    """A folder at one moment.

    Attributes:
        files, bytes: Regular files, ignored ones not counted.
        by_kind: For each format: (files, bytes). Files not read yet count as "waiting", failed ones as "failed".
        by_state: Files in each state.
        duplicates: Groups of files with equal content, the one to keep in front.
        duplicate_bytes: What the other copies take.
        contained: Tables all of whose rows are in another one, as of the last survey.
        contained_bytes: What the files of those tables take.
        overlapping: Tables that share most rows with another one, or all under other column names.
        near_copies: Files whose texts are nearly the same.
        joins: Which tables refer to which, most probable first.
        failed: (path, reason, message) of files that could not be read.
        passages: Searchable passages.
        embedded: (with vectors, wanting vectors).
        topics: Files grouped by meaning, as of the last survey; None before one, without vectors, or of few files.
    """

    files: int
    bytes: int
    by_kind: dict[str, tuple[int, int]]
    by_state: dict[str, int]
    duplicates: list[list[str]]
    duplicate_bytes: int
    tables: list[TableInfo]
    failed: list[tuple[str, str, str]]
    passages: int
    embedded: tuple[int, int]
    contained: list[ContainedTable] = field(default_factory=list)
    contained_bytes: int = 0
    overlapping: list[OverlappingTable] = field(default_factory=list)
    near_copies: list[NearCopy] = field(default_factory=list)
    joins: list[TableJoin] = field(default_factory=list)
    encoder: str | None = None
    model: str | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    topics: Topics | None = None


def list_files(workspace: Workspace) -> list[FileInfo]:
    """All files in path order."""
    canonical = {path: group[0] for group in Catalog(workspace).duplicates() for path in group[1:]}
    with workspace.reading() as connection:
        rows = connection.execute(
            "SELECT path, size, files.kind, state, reason, message, coalesce(title, ''), pages, document_id FROM files"
            " LEFT JOIN documents ON documents.id = document_id ORDER BY path"
        )
        return [
            FileInfo(path, size, kind, state, reason, message, title, pages, doc_id, canonical.get(path))
            for path, size, kind, state, reason, message, title, pages, doc_id in rows
        ]


def list_tables(workspace: Workspace) -> list[TableInfo]:
    """All tables; a table in several equal files is listed once, under the shortest path."""
    with workspace.reading() as connection:
        rows = connection.execute(
            "SELECT tables.id, tables.document_id, name, rows, columns, tables.warnings, start, (SELECT path FROM files"
            " WHERE files.document_id = tables.document_id ORDER BY length(path), path LIMIT 1) AS file FROM tables"
            " ORDER BY file, tables.id"
        )
        return [
            TableInfo(row[0], row[1], row[7], row[2], row[3], stored_columns(row[4]), tuple(json.loads(row[5])), row[6])
            for row in rows
            if row[7] is not None
        ]


def overview(workspace: Workspace, fingerprint: str | None) -> Overview:
    """The whole picture, from one state of the database."""
    with workspace.reading() as connection:
        files = list_files(workspace)
        duplicates = Catalog(workspace).duplicates()
        wanting = connection.execute("SELECT count(DISTINCT text_hash) FROM chunks").fetchone()[0]
        missing = count_missing(workspace, fingerprint or "")
        passages = connection.execute("SELECT count(*) FROM chunks").fetchone()[0]
        tables = list_tables(workspace)
        contained, near, joins = contained_tables(workspace), near_copies(workspace), stored_joins(workspace)
        overlapping = overlapping_tables(workspace)
    by_kind: dict[str, tuple[int, int]] = {}
    by_state: dict[str, int] = {}
    for file in files:
        kind = "failed" if file.state == "failed" else file.kind or "waiting"
        count, size = by_kind.get(kind, (0, 0))
        by_kind[kind] = (count + 1, size + file.size)
        by_state[file.state] = by_state.get(file.state, 0) + 1
    sizes = {file.path: file.size for file in files}
    return Overview(
        files=len(files),
        bytes=sum(sizes.values()),
        by_kind=dict(sorted(by_kind.items(), key=lambda item: (-item[1][0], item[0]))),
        by_state=by_state,
        duplicates=duplicates,
        duplicate_bytes=sum(sizes.get(path, 0) for group in duplicates for path in group[1:]),
        tables=tables,
        failed=[(file.path, file.reason or "broken", file.message or "") for file in files if file.state == "failed"],
        passages=passages,
        embedded=(wanting - missing, wanting),
        contained=contained,
        contained_bytes=sum(table.bytes for table in contained),
        overlapping=overlapping,
        near_copies=near,
        joins=joins,
    )
