"""The regular files of a folder, and what is in them: nothing here remembers anything.

Links are not followed: a link out of the folder would lift what was not asked for, a link inside it would lift
things twice. Special files (pipes, sockets, devices) are never opened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from windlass.core.errors import ReadError, UsageError
from windlass.core.paths import to_text
from windlass.core.workspace import STATE_FOLDER
from windlass.lake.look import Look

IGNORE_FILE = ".windlassignore"
DEFAULT_IGNORE: tuple[str, ...] = (
    ".*",
    "__pycache__/",
    "node_modules/",
    "lost+found/",
    "*.pyc",
    "~$*",
    "Thumbs.db",
    "desktop.ini",
)
# The same for names alone: nine patterns a path are a third of the time of looking at an unchanged folder.
_default_ignored = re.compile(
    r"(?:^|/)(?:\.[^/]*/?|[^/]*\.pyc/?|~\$[^/]*/?|Thumbs\.db/?|desktop\.ini/?|__pycache__/|node_modules/|lost\+found/)$"
).search
_HASH_BLOCK = 1 << 20
_READ_ATTEMPTS = 3


class FileEntry(NamedTuple):
    """One regular file: its path relative to the folder (text form, `/` between parts) and its stat record."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    content_hash: str  # 64 hex digits; empty until hashed


class Rules(NamedTuple):
    """What is passed over: says it of a path (a folder's ends with `/`) whose folders were asked about before.

    `key` tells different rules apart.
    """

    ignored: Callable[[str], object]
    key: bytes


class Sifted(NamedTuple):
    """A folder without what is ignored: its files (unhashed), the names of its folders, and (path, why) of the rest."""

    files: list[FileEntry]
    folders: list[str]
    skipped: list[tuple[str, str]]


def sift(look: Look, folder: str, ignored: Callable[[str], object]) -> Sifted:
    """Leave out what is ignored; `folder` is the text form of its relative path, empty for the root."""
    before = folder + "/" if folder else ""
    files: list[FileEntry] = []
    folders: list[str] = []
    skipped: list[tuple[str, str]] = []
    records = iter(look.records)
    for tagged in look.names:
        kind, name = tagged[0], tagged[1:]
        path = before + (name if name.isascii() else to_text(name))
        size, modified, changed, inode = next(records) if kind == "f" else (0, 0, 0, 0)
        if ignored(path + "/" if kind == "d" else path):
            continue
        if kind == "f":
            files.append(FileEntry(path, size, modified, changed, inode, ""))
        elif kind == "d":
            folders.append(path[len(before) :])
        else:
            skipped.append((path, _SKIPPED[kind]))
    for name, why in look.failed:
        path = before + to_text(name)
        if not ignored(path):
            skipped.append((path, why))
    return Sifted(files, sorted(folders), skipped)


_SKIPPED = {"l": "symbolic link, not followed", "s": "special file (pipe, socket or device)"}


def hash_file(path: bytes, name: str, *, check: Callable[[], None] = lambda: None) -> FileEntry:
    """Read one file and return its entry with the hash, as it stood when size and time held still.

    Args:
        path: Where it is.
        name: What it is called in the entry and in messages.
        check: Called between blocks; raises to give up.

    Raises:
        ReadError: Cannot be opened (`unreadable`), vanished (`gone`), or kept changing (`changing`).
    """
    for _ in range(_READ_ATTEMPTS):
        try:
            # O_NONBLOCK: a pipe put in the file's place must not block us; it does nothing to regular files.
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise ReadError(f"{name} vanished while scanning", reason="gone") from error
            raise ReadError(f"{name} cannot be opened: {error.strerror}", reason="unreadable") from error
        try:
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                raise ReadError(f"{name} vanished while scanning", reason="gone")
            digest = _digest(handle, before.st_size, check)
            after = os.fstat(handle)
        except OSError as error:
            raise ReadError(f"{name} cannot be read: {error.strerror}", reason="unreadable") from error
        finally:
            os.close(handle)
        if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
            return FileEntry(name, after.st_size, after.st_mtime_ns, after.st_ctime_ns, after.st_ino, digest)
    raise ReadError(f"{name} keeps changing while it is read", reason="changing", hint="it is tried again next time")


def ignore_rules(folder: Path, ignore: Sequence[str]) -> Rules:
    """The patterns given and those of the folder's own `.windlassignore`.

    Raises:
        UsageError: A line of it is no pattern, or it cannot be read.
    """
    own = folder / IGNORE_FILE
    lines: list[str] = []
    if tuple(ignore) == DEFAULT_IGNORE and not own.exists():
        return Rules(_default_ignored, b"default")
    if own.is_file() and not own.is_symlink():
        try:
            lines = own.read_text("utf-8", "replace").splitlines()
        except OSError as error:
            raise UsageError(f"{own} cannot be read: {error.strerror}", hint="check its permissions") from error
    import pathspec

    for number, line in enumerate(lines, 1):
        try:
            pathspec.GitIgnoreSpec.from_lines([line])
        except (ValueError, re.error) as error:
            raise UsageError(f"{own}, line {number}: {line!r} is not a pattern", hint="see gitignore(5)") from error
    patterns = [*ignore, *lines, f"/{STATE_FOLDER}/"]
    key = hashlib.blake2b("\n".join(patterns).encode("utf-8", "surrogatepass"), digest_size=32).digest()
    return Rules(pathspec.GitIgnoreSpec.from_lines(patterns).match_file, key)


def _digest(handle: int, size: int, check: Callable[[], None]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    # One byte past the size tells that the file grew; a log that grows as fast as it is read would never end.
    left = size + 1
    while left > 0 and (block := os.read(handle, min(left, _HASH_BLOCK))):
        digest.update(block)
        left -= len(block)
        check()
    return digest.hexdigest()
