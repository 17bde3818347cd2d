"""What a scan must say, found by reading everything."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections import defaultdict
from pathlib import Path

from windlass.core.paths import to_os, to_text
from windlass.core.workspace import Workspace
from windlass.lake.scan import Catalog
from windlass.lake.scan_update import ScanDelta

Oracle = dict[str, str]


def look(folder: Path) -> Oracle:
    """Path to content hash of every regular file that is not hidden, by reading them all."""
    found = {}
    root = os.fsencode(folder)
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(b".") and stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as file:
                    found[to_text(os.path.relpath(path, root))] = hashlib.blake2b(
                        file.read(), digest_size=32
                    ).hexdigest()
    return found


def stored(workspace: Workspace) -> Oracle:
    with workspace.reading() as connection:
        return dict(connection.execute("SELECT path, content_hash FROM files"))


def scan(workspace: Workspace) -> ScanDelta:
    with workspace.acquire():
        return Catalog(workspace).scan()


def expected(before: Oracle, now: Oracle) -> tuple[list[str], list[str], list[str], list[tuple[str, str]]]:
    """What a delta must say: added, changed, removed, renamed."""
    changed = sorted(path for path in before.keys() & now.keys() if before[path] != now[path])
    gone: dict[str, list[str]] = defaultdict(list)
    for path in sorted(before.keys() - now.keys()):
        gone[before[path]].append(path)
    added, renamed = [], []
    for path in sorted(now.keys() - before.keys()):
        if gone[now[path]]:
            renamed.append((gone[now[path]].pop(0), path))
        else:
            added.append(path)
    removed = sorted(path for paths in gone.values() for path in paths)
    return added, changed, removed, sorted(renamed)


def check_scan(workspace: Workspace, before: Oracle) -> Oracle:
    now = look(workspace.folder)
    delta = scan(workspace)
    assert (delta.added, delta.changed, delta.removed, delta.renamed) == expected(before, now)
    assert delta.quiet == (before == now)
    assert stored(workspace) == now
    assert delta.total == len(now) == delta.hashed + delta.unchanged
    groups: dict[str, list[str]] = defaultdict(list)
    for path, digest in now.items():
        if (workspace.folder / os.fsdecode(to_os(path))).stat().st_size:
            groups[digest].append(path)
    duplicates = [sorted(group, key=lambda path: (len(path), path)) for group in groups.values() if len(group) > 1]
    assert delta.duplicates == sorted(duplicates) == Catalog(workspace).duplicates()
    check_documents(workspace)
    return now


def check_documents(workspace: Workspace) -> None:
    """Files that were not touched keep their documents, a document goes with its last file; then read the new."""
    with workspace.reading() as connection:
        wrong = connection.execute(
            "SELECT path FROM files JOIN documents ON documents.id = document_id WHERE files.content_hash <>"
            " documents.content_hash OR state = 'seen'"
        ).fetchall()
        orphans = connection.execute(
            "SELECT id FROM documents WHERE id NOT IN (SELECT document_id FROM files WHERE document_id IS NOT NULL)"
        ).fetchall()
        unread = connection.execute("SELECT path, content_hash FROM files WHERE state = 'seen'").fetchall()
    assert (wrong, orphans) == ([], [])
    with workspace.acquire(), workspace.transaction() as connection:
        for path, digest in unread:
            kind = Path(path).suffix
            connection.execute(
                "INSERT INTO documents (content_hash, kind, reader_version, title, characters, faithful, warnings,"
                " text) VALUES (?, ?, 1, '', 0, 1, '[]', x'') ON CONFLICT DO NOTHING",
                (digest, kind),
            )
            connection.execute(
                "UPDATE files SET state = 'parsed', document_id = (SELECT id FROM documents WHERE content_hash = ? AND"
                " kind = ?) WHERE path = ?",
                (digest, kind, path),
            )


def write_files(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def apply(folder: Path, change: tuple) -> None:  # type: ignore[type-arg]
    """Do it if it can be done; a file in the way of a folder, and the reverse, is replaced."""
    kind, first, *rest = change
    path = os.path.join(os.fsencode(folder), first)
    if kind in ("write", "make folder", "write keeping the time"):
        make_room(folder, first + b"/" if kind == "make folder" else first)
        if kind == "make folder":
            return
        times = os.stat(path) if os.path.isfile(path) else None
        with open(path, "wb") as file:
            file.write(rest[0])
        if times is not None and kind == "write keeping the time":
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif os.path.isfile(path):
        if kind == "append":
            with open(path, "ab") as file:
                file.write(rest[0])
        elif kind == "truncate":
            os.truncate(path, rest[0])
        elif kind == "touch":
            os.utime(path, (rest[0], rest[0]))
        elif kind == "delete":
            os.unlink(path)
        elif first != rest[0] and not (first + b"/").startswith(rest[0]) and not rest[0].startswith(first + b"/"):
            make_room(folder, rest[0])
            target = os.path.join(os.fsencode(folder), rest[0])
            (os.replace if kind == "rename" else shutil.copyfile)(path, target)


def make_room(folder: Path, name: bytes) -> None:
    root = os.fsencode(folder)
    path = os.path.join(root, name)
    if os.path.isdir(path):
        shutil.rmtree(path)
    parent = os.path.dirname(path)
    while parent != root:
        if os.path.isfile(parent):
            os.unlink(parent)
        parent = os.path.dirname(parent)
    os.makedirs(os.path.dirname(path), exist_ok=True)
