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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from windlass.core.errors import NotFound, ReadError, UsageError
from windlass.core.paths import to_text
from windlass.core.workspace import STATE_FOLDER

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


def walk(folder: Path, *, ignore: Sequence[str], skipped: list[tuple[str, str]]) -> Iterator[FileEntry]:
    """All regular files below `folder`, unhashed, in sorted order; what is passed over goes to `skipped`.

    Raises:
        NotFound: The folder itself cannot be listed: it is gone, and not empty.
        UsageError: A line of `.windlassignore` is no pattern.
    """
    ignored = _ignored(folder, ignore)
    pending = [b""]
    root = os.fsencode(folder)
    while pending:
        relative = pending.pop()
        try:
            with os.scandir(root + b"/" + relative if relative else root) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            if not relative:
                raise NotFound(
                    f"{folder} cannot be listed any more: {error.strerror}", hint="what is indexed stays as it is"
                ) from error
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                skipped.append((to_text(relative), f"folder cannot be read: {error.strerror}"))
            continue
        folders = []
        for entry in entries:
            name = relative + b"/" + entry.name if relative else entry.name
            text = to_text(name)
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
                if ignored(text + "/" if is_folder else text):
                    continue
                if is_folder:
                    folders.append(name)
                    continue
                record = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # vanished between the listing and now
            except OSError as error:
                skipped.append((text, f"cannot be looked at: {error.strerror}"))
                continue
            if stat.S_ISREG(record.st_mode):
                yield FileEntry(text, record.st_size, record.st_mtime_ns, record.st_ctime_ns, record.st_ino, "")
            else:
                skipped.append((text, _why_skipped(record)))
        pending.extend(reversed(folders))


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


def _ignored(folder: Path, ignore: Sequence[str]) -> Callable[[str], object]:
    """What says of a path (a folder's ends with `/`) whether it is passed over; its folders were asked about before."""
    own = folder / IGNORE_FILE
    lines: list[str] = []
    if tuple(ignore) == DEFAULT_IGNORE and not own.exists():
        return _default_ignored
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
    return pathspec.GitIgnoreSpec.from_lines([*ignore, *lines, f"/{STATE_FOLDER}/"]).match_file


def _why_skipped(record: os.stat_result) -> str:
    if stat.S_ISLNK(record.st_mode):
        return "symbolic link, not followed"
    return "special file (pipe, socket or device)"


def _digest(handle: int, size: int, check: Callable[[], None]) -> str:
    digest = hashlib.blake2b(digest_size=32)
    # One byte past the size tells that the file grew; a log that grows as fast as it is read would never end.
    left = size + 1
    while left > 0 and (block := os.read(handle, min(left, _HASH_BLOCK))):
        digest.update(block)
        left -= len(block)
        check()
    return digest.hexdigest()
