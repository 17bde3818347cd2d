"""The one door to the disk for everything that is not a row of the workspace database.

Writes are crash-safe in one way only: a new file under a temporary name, `fsync`, `rename` over the final name,
`fsync` of the folder. A reader therefore sees the old bytes or the new ones, never a mixture, also after a power
cut. A new folder is made durable in its parent before anything in it is acknowledged. An `fsync` that fails ends the
write: the pages it covered may be gone, and trying again would lie.

All operations go through a `Disk`, so that the fault tests can put a simulated one (lost, torn and reordered writes,
full disk) behind the same code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from windlass.core.errors import StorageError, WorkspaceError

_TEMPORARY_SUFFIX = ".partial"
_REPAIR = "run `windlass doctor FOLDER --repair`"


class Disk(Protocol):
    """What storage asks of an operating system. Every method may raise `OSError`."""

    def create(self, path: Path) -> BinaryIO: ...
    def fsync(self, file: BinaryIO) -> None: ...
    def make_folder(self, path: Path) -> None: ...
    def fsync_folder(self, path: Path) -> None: ...
    def rename(self, source: Path, target: Path) -> None: ...
    def remove(self, path: Path) -> None: ...
    def read(self, path: Path) -> bytes: ...
    def files(self, folder: Path) -> list[Path]: ...


class LocalDisk:
    """The real disk."""

    def create(self, path: Path) -> BinaryIO:
        return open(path, "xb")

    def fsync(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())

    def make_folder(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def fsync_folder(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems know no such thing
                raise
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        path.unlink()

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def files(self, folder: Path) -> list[Path]:
        """All files below `folder`, at any depth; none when there is no such folder."""
        return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


LOCAL_DISK = LocalDisk()
_being_written: set[Path] = set()


def write_atomic(path: Path, data: bytes, *, disk: Disk = LOCAL_DISK) -> None:
    """Put `data` at `path`, all or nothing, durable when this returns.

    Raises:
        StorageError: `path` holds what it held before or, when only its folder could not be synced, `data`; it is
            not known to be durable.
    """
    write_atomic_parts(path, (data,), disk=disk)


def write_atomic_parts(path: Path, parts: Iterable[bytes], *, disk: Disk = LOCAL_DISK) -> None:
    """`write_atomic` for what is larger than memory: the parts are taken and written one after the other.

    Raises:
        StorageError: As `write_atomic`. Whatever `parts` raises leaves `path` as it was.
    """
    # The process in the name lets `remove_leftovers` tell a dead writer's file from one that is being written.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
    _being_written.add(temporary)
    try:
        with writing(path):
            try:
                with disk.create(temporary) as file:
                    for part in parts:
                        file.write(part)
                    file.flush()
                    disk.fsync(file)
                disk.rename(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    disk.remove(temporary)
                raise
            disk.fsync_folder(path.parent)
    finally:
        _being_written.discard(temporary)


def make_folder(path: Path, *, disk: Disk = LOCAL_DISK) -> None:
    """Make `path` and its missing parents, for the owner only; durable when this returns.

    Raises:
        StorageError: It cannot be made, or a file stands there.
    """
    with writing(path):
        # One that is there already may be the work of a process that died before the name was durable.
        with contextlib.suppress(FileExistsError):
            try:
                disk.make_folder(path)
            except FileNotFoundError:
                make_folder(path.parent, disk=disk)
                disk.make_folder(path)
        disk.fsync_folder(path)  # fails when a file stands there
        disk.fsync_folder(path.parent)


def move_file(source: Path, target: Path, *, disk: Disk = LOCAL_DISK) -> None:
    """Move a file; durable when this returns. To another disk it is copied first, and the source removed last.

    Raises:
        StorageError: It could not be moved; at every moment one of the two names holds it whole.
    """
    with writing(target):
        try:
            disk.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            write_atomic(target, disk.read(source), disk=disk)
            disk.remove(source)
        disk.fsync_folder(target.parent)
        disk.fsync_folder(source.parent)


def write_manifest(path: Path, format_version: int, content: dict[str, Any], *, disk: Disk = LOCAL_DISK) -> None:
    """Write a small JSON receipt that says which files of a folder are valid; written last, swapped atomically."""
    body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(body.encode(), digest_size=16).hexdigest()
    document = {"format": format_version, "checksum": digest, "content": content}
    write_atomic(path, json.dumps(document, indent=1, sort_keys=True).encode(), disk=disk)


def read_manifest(path: Path, format_version: int, *, disk: Disk = LOCAL_DISK) -> dict[str, Any]:
    """The content of a manifest.

    Raises:
        WorkspaceError: Not a manifest, of a newer format than `format_version`, or its checksum is wrong.
        StorageError: It cannot be read.
        FileNotFoundError: There is none.
    """
    raw = _read(path, disk)
    try:
        document = json.loads(raw)
        found, digest, content = document["format"], document["checksum"], document["content"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkspaceError(f"{path} is not a manifest ({error})", hint=_REPAIR) from error
    if not isinstance(found, int) or found > format_version:
        raise WorkspaceError(
            f"{path} has format {found}, this version of windlass knows up to {format_version}",
            hint="use a newer windlass, or remove the .windlass folder to build it again",
        )
    body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    if not isinstance(content, dict) or hashlib.blake2b(body.encode(), digest_size=16).hexdigest() != digest:
        raise WorkspaceError(f"{path} is damaged: checksum does not match", hint=_REPAIR)
    return content


class ObjectStore:
    """Content-addressed artefacts: `put` bytes, get them back by their BLAKE2b-256 name, verified on every read.

    Example:
        >>> import tempfile
        >>> store = ObjectStore(Path(tempfile.mkdtemp()))
        >>> store.get(store.put(b"a table as Parquet"))
        b'a table as Parquet'
    """

    def __init__(self, folder: Path, *, disk: Disk = LOCAL_DISK) -> None:
        self._folder = folder
        self._disk = disk
        self._durable: set[Path] = set()

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its name (64 hex digits). Storing the same bytes twice writes them once.

        Raises:
            StorageError: The bytes did not reach the disk.
        """
        name = hashlib.blake2b(data, digest_size=32).hexdigest()
        path = self.path(name)
        for folder in (self._folder, path.parent):
            if folder not in self._durable:
                make_folder(folder, disk=self._disk)
                self._durable.add(folder)
        if self._holds(path, data):
            # Whoever stored it may have died before its name was durable, and we are about to acknowledge it.
            with writing(path):
                self._disk.fsync_folder(path.parent)
        else:
            write_atomic(path, data, disk=self._disk)
        return name

    def get(self, name: str) -> bytes:
        """The bytes of `name`.

        Raises:
            KeyError: There is no such object.
            WorkspaceError: The bytes on disk are not the ones that were stored.
            StorageError: They cannot be read.
        """
        try:
            data = _read(self.path(name), self._disk)
        except FileNotFoundError as error:
            raise KeyError(name) from error
        if hashlib.blake2b(data, digest_size=32).hexdigest() != name:
            raise WorkspaceError(f"object {name} is damaged: its checksum does not match", hint=_REPAIR)
        return data

    def path(self, name: str) -> Path:
        return self._folder / name[:2] / name[2:]

    def names(self) -> Iterator[str]:
        """All stored names, in no order; leftovers of interrupted writes are not among them."""
        for path in self._disk.files(self._folder):
            if not path.name.endswith(_TEMPORARY_SUFFIX):
                yield path.parent.name + path.name

    def discard(self, name: str) -> None:
        """Remove an object, if it is there."""
        path = self.path(name)
        with writing(path), contextlib.suppress(FileNotFoundError):
            self._disk.remove(path)

    def _holds(self, path: Path, data: bytes) -> bool:
        try:
            return _read(path, self._disk) == data
        except FileNotFoundError:
            return False


class LineLog:
    """A file that grows by whole lines, each of them durable when `add` returns.

    A crash can leave a line that was not acknowledged, whole or cut; a cut one is taken off when the log is opened.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "answers.jsonl"
        >>> with LineLog(path) as log:
        ...     log.add(b"{}")
        >>> path.read_bytes()
        b'{}\\n'
    """

    def __init__(self, path: Path, *, disk: Disk = LOCAL_DISK) -> None:
        self._path, self._disk = path, disk
        with writing(path):
            is_new = not path.exists()
            self._file = open(path, "ab+", buffering=0)
            _cut_torn_line(self._file)
            disk.fsync(self._file)
            if is_new:
                disk.fsync_folder(path.parent)

    def add(self, line: bytes) -> None:
        """Append one line, given without its end.

        Raises:
            StorageError: It is not known to be durable; nothing more should be added.
        """
        with writing(self._path):
            data = line + b"\n"
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._disk.fsync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> LineLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_leftovers(folder: Path, *, disk: Disk = LOCAL_DISK) -> int:
    """Delete temporary files of writers that died; returns how many.

    Raises:
        StorageError: One cannot be removed.
    """
    leftovers = [path for path in disk.files(folder) if path.name.endswith(_TEMPORARY_SUFFIX) and _is_abandoned(path)]
    for path in leftovers:
        with writing(path), contextlib.suppress(FileNotFoundError):
            disk.remove(path)
    return len(leftovers)


def free_bytes(folder: Path) -> int:
    """Bytes a normal user may still write to the disk that holds `folder`."""
    return shutil.disk_usage(folder).free


def _cut_torn_line(file: BinaryIO) -> None:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65_536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        end = start + newline + 1
        if newline >= 0:
            break
    file.truncate(end)


def _is_abandoned(path: Path) -> bool:
    writer = path.name.removesuffix(_TEMPORARY_SUFFIX).rpartition(".")[2].partition("-")[0]
    if not writer.isdecimal():
        return True
    if int(writer) == os.getpid():
        return path not in _being_written
    try:
        os.kill(int(writer), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # another user's process
    return False


def _read(path: Path, disk: Disk) -> bytes:
    try:
        return disk.read(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {error.strerror or error}", hint="check the disk and the file's permissions"
        ) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about writing `path` into a `StorageError` that names it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(f"disk full while writing {path}", hint="free some space and run it again") from error
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            hint="check the disk and the folder's permissions",
        ) from error
