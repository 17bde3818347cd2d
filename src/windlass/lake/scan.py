"""What is in the folder, and what changed since the last look.

An unchanged file is recognised by its stat record alone, as git does it, the racy case included: a file modified
within two seconds of the previous scan could change again without its times changing, so it is hashed again. Of a
folder in which nothing changed only a digest of names and stat records is kept, so that a second look costs little
more than the file system's own answers. All else is hashed (BLAKE2b-256) with threads, since hashing releases the
interpreter lock. Contents are compared by hash: an equal hash under a new name is a rename, several names of one hash
are duplicates.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

from windlass.core.errors import Cancelled, NotFound, ReadError
from windlass.core.paths import to_os
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.core.workspace import Workspace, mark_changed
from windlass.lake.look import looks
from windlass.lake.scan_update import ScanDelta, Stored, Update
from windlass.lake.walk import DEFAULT_IGNORE, FileEntry, Rules, Sifted, hash_file, ignore_rules, sift

_RACY_NS = 2_000_000_000
_COMMIT_EVERY = 1_000
_COMMIT_SECONDS = 1.0
_ASKED_FOLDERS = 50
_LOT_FILES, _LOT_BYTES = 16, 2 << 20


class Catalog:
    """The lake's face of the workspace database: the files and their states.

    Args:
        workspace: An open workspace. `scan` needs its lock to be held.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def scan(
        self,
        *,
        ignore: Sequence[str] = DEFAULT_IGNORE,
        threads: int = 2,
        progress: Progress | None = None,
    ) -> ScanDelta:
        """Bring the `files` table in line with the folder and say what changed.

        A new or changed file gets the state `seen` and loses its document; a renamed one keeps both.

        Args:
            ignore: Patterns in gitignore syntax; those of a `.windlassignore` file in the folder are added.
            threads: How many files are hashed at once.

        Raises:
            Cancelled: The person stopped it; what was committed stays.
            NotFound: The folder itself is gone or cannot be listed; what is known about it stays.
            UsageError: A line of `.windlassignore` is no pattern.
        """
        progress = progress or Silent()
        started_ns = time.time_ns()
        delta = ScanDelta()
        rules = ignore_rules(self._workspace.folder, ignore)
        known = self._known_folders()
        progress.start("scan", None, "files")
        dirty, visited = self._look(rules, known, delta, progress)
        progress.finish("scan")
        delta.total = delta.unchanged
        gone = known.keys() - visited
        if dirty or gone:
            self._bring_in_line(dirty, gone, delta, started_ns, threads, progress)
        delta.duplicates = self.duplicates()
        delta.sort()
        return delta

    def _look(
        self, rules: Rules, known: dict[str, _Folder], delta: ScanDelta, progress: Progress
    ) -> tuple[dict[str, _Dirty], set[str]]:
        """Go through all folders: those that are not as they were, and the names of all."""
        root = os.fsencode(self._workspace.folder)
        look_into = looks(sum(folder.files for folder in known.values()))
        dirty: dict[str, _Dirty] = {}
        visited: set[str] = set()
        pending = [""]
        while pending:
            folder = pending.pop()
            check_cancelled(progress)
            try:
                look = look_into(root + b"/" + to_os(folder) if folder else root, is_root=not folder)
            except OSError as error:
                if not folder:
                    raise NotFound(
                        f"{self._workspace.folder} cannot be listed any more: {error.strerror}",
                        hint="what is indexed stays as it is",
                    ) from error
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    delta.skipped.append((folder, f"folder cannot be read: {error.strerror}"))
                continue
            visited.add(folder)
            digest, before = look.digest(rules.key), known.get(folder)
            if before is not None and digest is not None and before.digest == digest:
                delta.unchanged += before.files
                delta.skipped += before.skipped
                progress.advance("scan", before.files)
                inside = before.inside
            else:
                sifted = sift(look, folder, rules.ignored)
                dirty[folder] = _Dirty(digest, sifted)
                delta.skipped += sifted.skipped
                progress.advance("scan", len(sifted.files))
                inside = sifted.folders
            pending += [f"{folder}/{name}" if folder else name for name in reversed(inside)]
        check_cancelled(progress)
        return dirty, visited

    def _bring_in_line(
        self,
        dirty: dict[str, _Dirty],
        gone: Collection[str],
        delta: ScanDelta,
        started_ns: int,
        threads: int,
        progress: Progress,
    ) -> None:
        """Compare the files of changed folders with what is stored, hash what is new, and store it."""
        known = self._known(dirty.keys() | gone)
        found: dict[str, FileEntry] = {}
        to_hash: list[FileEntry] = []
        for folder in dirty.values():
            for entry in folder.sifted.files:
                stored = known.get(entry.path)
                if stored is not None and _same(entry, stored):
                    found[entry.path] = stored.entry
                else:
                    to_hash.append(entry)
        delta.unchanged += len(found)
        to_hash.sort()  # renames are matched in path order
        delta.total += len(found) + len(to_hash)
        missing = {path: row for path, row in known.items() if path not in found}
        update = Update(delta, found, missing, {entry.path for entry in to_hash}, started_ns, [*dirty, *gone])
        self._hash_and_store(to_hash, update, threads, progress)
        lost = [path for path in missing if path not in found]
        delta.removed.extend(lost)
        with self._workspace.transaction() as connection:
            update.drop_folders(connection)
            if lost:
                connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in lost])
                mark_changed(connection)
            failed = {path for path, _, _ in delta.unreadable}
            connection.executemany(
                "INSERT OR REPLACE INTO folders VALUES (?, ?, ?, ?, ?)",
                [_folder_row(path, folder, found, failed, started_ns) for path, folder in dirty.items()],
            )

    def duplicates(self) -> list[list[str]]:
        """Groups of paths with equal content, as of the last scan."""
        with self._workspace.reading() as connection:
            rows = connection.execute(
                "SELECT path, size, content_hash FROM files WHERE size > 0 AND content_hash IN (SELECT content_hash"
                " FROM files WHERE content_hash IS NOT NULL GROUP BY content_hash HAVING count(*) > 1)"
            )
            return _duplicates(FileEntry(path, size, 0, 0, 0, digest) for path, size, digest in rows)

    def _known_folders(self) -> dict[str, _Folder]:
        """Folders as the last scan left them; none when the files are not those it left."""
        with self._workspace.reading() as connection:
            rows = connection.execute("SELECT path, digest, files, inside, skipped FROM folders").fetchall()
            files = connection.execute("SELECT count(*) FROM files").fetchone()[0]
        if sum(row[2] for row in rows) != files:
            return dict.fromkeys((row[0] for row in rows), _Folder(None, 0, [], []))
        return {
            row[0]: _Folder(row[1], row[2], _names(row[3]), [(path, why) for path, why in _names(row[4])])
            for row in rows
        }

    def _known(self, folders: Collection[str]) -> dict[str, Stored]:
        """What is stored of the files that stand directly in some folders."""
        columns = "path, size, mtime_ns, ctime_ns, inode, coalesce(content_hash, ''), scanned_ns, state = 'failed'"
        rows: list[tuple[Any, ...]] = []
        with self._workspace.reading() as connection:
            if "" in folders or len(folders) > _ASKED_FOLDERS:
                every = connection.execute(f"SELECT {columns} FROM files")
                rows = [row for row in every if row[0].rpartition("/")[0] in folders]
            else:
                for folder in folders:
                    below = f"SELECT {columns} FROM files WHERE path >= ? AND path < ?"
                    found = connection.execute(below, (folder + "/", folder + "0"))  # 0 is what follows the slash
                    rows += [row for row in found if row[0].rpartition("/")[0] == folder]
        return {row[0]: Stored(FileEntry(*row[:6]), row[6], bool(row[7])) for row in rows}

    def _hash_and_store(self, entries: list[FileEntry], update: Update, threads: int, progress: Progress) -> None:
        folder = os.fsencode(self._workspace.folder)
        stop = threading.Event()

        def check() -> None:
            check_cancelled(progress)
            if stop.is_set():
                raise Cancelled("stopped")

        def hash_entry(entry: FileEntry) -> FileEntry | ReadError:
            try:
                return hash_file(folder + b"/" + to_os(entry.path), entry.path, check=check)
            except ReadError as error:
                return error

        def hash_lot(lot: list[FileEntry]) -> list[FileEntry | ReadError]:
            return [hash_entry(entry) for entry in lot]

        progress.start("hash", len(entries), "files")
        pool = ThreadPoolExecutor(threads)
        try:
            # Handing over a small file takes as long as hashing it.
            results = zip(entries, chain.from_iterable(pool.map(hash_lot, _lots(entries))), strict=True)
            for batch in _batches(results, progress):
                with self._workspace.transaction() as connection:
                    update.drop_folders(connection)
                    for before, result in batch:
                        update.store(connection, before, result)
                    if update.pop_news():
                        mark_changed(connection)
        finally:
            stop.set()  # a file of many gigabytes must not hold up Ctrl-C
            pool.shutdown(cancel_futures=True)
        progress.finish("hash")


def _lots(entries: Sequence[FileEntry]) -> Iterator[list[FileEntry]]:
    """The files in runs of a few, fewer where they are large."""
    lot: list[FileEntry] = []
    size = 0
    for entry in entries:
        lot.append(entry)
        size += entry.size
        if len(lot) == _LOT_FILES or size > _LOT_BYTES:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


def _batches(
    results: Iterable[tuple[FileEntry, FileEntry | ReadError]], progress: Progress
) -> Iterator[list[tuple[FileEntry, FileEntry | ReadError]]]:
    """The results as they come, in lots worth a commit."""
    batch: list[tuple[FileEntry, FileEntry | ReadError]] = []
    began = time.monotonic()
    for before, result in results:
        progress.advance("hash", detail=before.path)
        batch.append((before, result))
        if len(batch) >= _COMMIT_EVERY or time.monotonic() - began > _COMMIT_SECONDS or progress.cancelled:
            yield batch
            check_cancelled(progress)
            batch, began = [], time.monotonic()
    if batch:
        yield batch


class _Folder(NamedTuple):
    """A folder as the last scan left it: a row of `folders`."""

    digest: bytes | None
    files: int
    inside: list[str]
    skipped: list[tuple[str, str]]


class _Dirty(NamedTuple):
    """A folder that is new, or not as it was."""

    digest: bytes | None
    sifted: Sifted


def _folder_row(
    path: str, folder: _Dirty, found: dict[str, FileEntry], failed: Collection[str], started_ns: int
) -> tuple[object, ...]:
    files = [entry for entry in folder.sifted.files if entry.path in found]
    # A file that could change again without its times changing, or was not read, is looked at again next time.
    settled = len(files) == len(folder.sifted.files) and not any(
        entry.path in failed or max(entry.mtime_ns, entry.ctime_ns) >= started_ns - _RACY_NS for entry in files
    )
    inside, skipped = json.dumps(folder.sifted.folders), json.dumps(folder.sifted.skipped)
    return path, folder.digest if settled else None, len(files), inside, skipped


def _names(text: str) -> list[Any]:
    """A list of JSON; most of them are empty."""
    return [] if text == "[]" else list(json.loads(text))


def _same(entry: FileEntry, stored: Stored) -> bool:
    # Both times: the first can be set by anybody, the second is not everywhere the time of the last change.
    newest = max(stored.entry.mtime_ns, stored.entry.ctime_ns)
    return entry[1:5] == stored.entry[1:5] and newest < stored.scanned_ns - _RACY_NS


def _duplicates(entries: Iterable[FileEntry]) -> list[list[str]]:
    groups: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if entry.size > 0 and entry.content_hash:
            groups[entry.content_hash].append(entry.path)
    return sorted(sorted(paths, key=lambda path: (len(path), path)) for paths in groups.values() if len(paths) > 1)
