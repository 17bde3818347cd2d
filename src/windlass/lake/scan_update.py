"""What a scan found, and how the rows of `files` follow from it."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from windlass.core.errors import ReadError
from windlass.lake.walk import FileEntry


@dataclass
class ScanDelta:
    """What a scan found. Paths are relative; every list is sorted.

    Attributes:
        total: Number of regular files now in the folder.
        unchanged: How many of them were recognised without reading.
        hashed: How many were read in full.
        unreadable: (path, reason word, sentence) of files that are there and cannot be read.
        skipped: (path, why) of entries that are never read: links, pipes, sockets, devices, unreadable folders.
        duplicates: Groups of paths with equal content, canonical path (shortest, then first) in front.
    """

    total: int = 0
    unchanged: int = 0
    hashed: int = 0
    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)

    def sort(self) -> None:
        """Put every list in path order."""
        for paths in (self.added, self.changed, self.removed):
            paths.sort()
        self.renamed.sort()
        self.unreadable.sort()
        self.skipped.sort()

    @property
    def quiet(self) -> bool:
        """True when nothing changed."""
        return not (self.added or self.changed or self.removed or self.renamed)


class Stored(NamedTuple):
    entry: FileEntry
    scanned_ns: int
    failed: bool


class Update:
    """Compares what was hashed with what was known, and writes what follows: rows, and the delta."""

    def __init__(
        self,
        delta: ScanDelta,
        found: dict[str, FileEntry],
        missing: dict[str, Stored],
        here: set[str],
        started_ns: int,
        folders: list[str],
    ) -> None:
        self._delta = delta
        self._found = found
        self._missing = missing
        self._started_ns = started_ns
        self._news = False
        self._folders = folders
        self._gone_by_hash: dict[str, list[str]] = defaultdict(list)
        for path in sorted(missing.keys() - here, reverse=True):
            if missing[path].entry.content_hash:
                self._gone_by_hash[missing[path].entry.content_hash].append(path)

    def drop_folders(self, connection: sqlite3.Connection) -> None:
        """Forget the digests of folders whose files are about to change, in the transaction that changes the first.

        A run that is cut short must not leave a digest behind that the files no longer have.
        """
        connection.executemany("DELETE FROM folders WHERE path = ?", [(folder,) for folder in self._folders])
        self._folders = []

    def pop_news(self) -> bool:
        """True when anything that was stored since the last call changes what can be found."""
        news, self._news = self._news, False
        return news

    def store(self, connection: sqlite3.Connection, before: FileEntry, result: FileEntry | ReadError) -> None:
        if isinstance(result, ReadError):
            self._store_failure(connection, before, result)
            return
        delta, stored = self._delta, self._missing.get(result.path)
        delta.hashed += 1
        self._found[result.path] = result
        if stored is not None and stored.entry.content_hash == result.content_hash:
            _touch_row(connection, result, self._started_ns)
            return
        self._news = True
        if stored is not None:
            delta.changed.append(result.path)
            _write_row(connection, result, self._started_ns, state="seen")
        elif self._gone_by_hash.get(result.content_hash):
            old = self._gone_by_hash[result.content_hash].pop()
            delta.renamed.append((old, result.path))
            _rename_row(connection, self._missing.pop(old), result, self._started_ns)
        else:
            delta.added.append(result.path)
            _write_row(connection, result, self._started_ns, state="seen")

    def _store_failure(self, connection: sqlite3.Connection, before: FileEntry, error: ReadError) -> None:
        if error.reason == "gone":
            self._delta.total -= 1
            return
        stored = self._missing.get(before.path)
        self._news |= stored is None or bool(stored.entry.content_hash)
        self._delta.unreadable.append((before.path, error.reason, error.what))
        self._found[before.path] = before
        # scanned_ns 0 makes the stat match untrusted: the file is tried again at every scan.
        _write_row(connection, before, 0, state="failed", reason=error.reason, message=str(error))


def _write_row(
    connection: sqlite3.Connection,
    entry: FileEntry,
    scanned_ns: int,
    *,
    state: str,
    reason: str | None = None,
    message: str | None = None,
) -> None:
    connection.execute(
        "INSERT INTO files (path, size, mtime_ns, ctime_ns, inode, content_hash, scanned_ns, state, reason, message)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (path) DO UPDATE SET size = excluded.size,"
        " mtime_ns = excluded.mtime_ns, ctime_ns = excluded.ctime_ns, inode = excluded.inode,"
        " content_hash = excluded.content_hash, scanned_ns = excluded.scanned_ns, kind = NULL,"
        " state = excluded.state, reason = excluded.reason, message = excluded.message, document_id = NULL",
        (*entry[:5], entry.content_hash or None, scanned_ns, state, reason, message),
    )


def _touch_row(connection: sqlite3.Connection, entry: FileEntry, scanned_ns: int) -> None:
    connection.execute(
        "UPDATE files SET size = ?, mtime_ns = ?, ctime_ns = ?, inode = ?, scanned_ns = ? WHERE path = ?",
        (*entry[1:5], scanned_ns, entry.path),
    )


def _rename_row(connection: sqlite3.Connection, stored: Stored, entry: FileEntry, scanned_ns: int) -> None:
    old = stored.entry.path
    # The ending decides how a file is read; and what failed under the old name says so in its message.
    if stored.failed or Path(old).suffix != Path(entry.path).suffix:
        connection.execute("DELETE FROM files WHERE path = ?", (old,))
        _write_row(connection, entry, scanned_ns, state="seen")
        return
    connection.execute(
        "UPDATE files SET path = ?, size = ?, mtime_ns = ?, ctime_ns = ?, inode = ?, scanned_ns = ? WHERE path = ?",
        (entry.path, *entry[1:5], scanned_ns, old),
    )
