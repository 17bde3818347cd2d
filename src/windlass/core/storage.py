"""The one door to the disk for everything that is not a row of the workspace database.

Writes are crash-safe in one way only: a new file under a temporary name, `fsync`, `rename` over the final name,
`fsync` of the folder. A reader therefore sees the old bytes or the new ones, never a mixture, also after a power
cut. An `fsync` that fails ends the write: the pages it covered may be gone, and trying again would lie.

All operations go through a `Disk`, so that the fault tests can put a simulated one (lost, torn and reordered writes,
full disk) behind the same code.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from windlass.core.errors import StorageError, WorkspaceError

_TEMPORARY_SUFFIX = ".partial"


class Disk(Protocol):
    """What storage asks of an operating system. Every method may raise `OSError`."""

    def create(self, path: Path) -> BinaryIO: ...
    def fsync(self, file: BinaryIO) -> None: ...
    def fsync_folder(self, path: Path) -> None: ...
    def rename(self, source: Path, target: Path) -> None: ...
    def remove(self, path: Path) -> None: ...
    def read(self, path: Path) -> bytes: ...


class LocalDisk:
    """The real disk."""

    def create(self, path: Path) -> BinaryIO:
        return open(path, "xb")

    def fsync(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())

    def fsync_folder(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def remove(self, path: Path) -> None:
        path.unlink()

    def read(self, path: Path) -> bytes:
        return path.read_bytes()


LOCAL_DISK = LocalDisk()


def write_atomic(path: Path, data: bytes, *, disk: Disk = LOCAL_DISK) -> None:
    """Put `data` at `path`, all or nothing, durable when this returns.

    Raises:
        StorageError: The bytes did not reach the disk; whatever stood at `path` before still stands.
    """
    with _naming_the_file(path):
        temporary = path.with_name(f"{path.name}.{os.getpid()}{_TEMPORARY_SUFFIX}")
        with contextlib.suppress(FileNotFoundError):
            disk.remove(temporary)
        try:
            with disk.create(temporary) as file:
                file.write(data)
                file.flush()
                disk.fsync(file)
            disk.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                disk.remove(temporary)
            raise
        disk.fsync_folder(path.parent)


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
        FileNotFoundError: There is none.
    """
    raw = disk.read(path)
    try:
        document = json.loads(raw)
        found, digest, content = document["format"], document["checksum"], document["content"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(f"{path} is not a manifest ({error})", hint="run `windlass doctor --repair`") from error
    if not isinstance(found, int) or found > format_version:
        raise WorkspaceError(
            f"{path} has format {found}, this version of windlass knows up to {format_version}",
            hint="use a newer windlass, or remove the .windlass folder to build it again",
        )
    body = json.dumps(content, sort_keys=True, separators=(",", ":"))
    if hashlib.blake2b(body.encode(), digest_size=16).hexdigest() != digest:
        raise WorkspaceError(f"{path} is damaged: checksum does not match", hint="run `windlass doctor --repair`")
    return cast(dict[str, Any], content)


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

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its name (64 hex digits). Storing the same bytes twice is free."""
        name = hashlib.blake2b(data, digest_size=32).hexdigest()
        path = self.path(name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, data, disk=self._disk)
        return name

    def get(self, name: str) -> bytes:
        """The bytes of `name`.

        Raises:
            KeyError: There is no such object.
            WorkspaceError: The bytes on disk are not the ones that were stored.
        """
        try:
            data = self._disk.read(self.path(name))
        except FileNotFoundError as error:
            raise KeyError(name) from error
        if hashlib.blake2b(data, digest_size=32).hexdigest() != name:
            raise WorkspaceError(
                f"object {name} is damaged: its checksum does not match",
                hint="run `windlass doctor --repair`",
            )
        return data

    def path(self, name: str) -> Path:
        return self._folder / name[:2] / name[2:]

    def names(self) -> Iterator[str]:
        """All stored names, in no order; leftovers of interrupted writes are not among them."""
        for shard in self._folder.iterdir() if self._folder.exists() else ():
            for path in shard.iterdir():
                if not path.name.endswith(_TEMPORARY_SUFFIX):
                    yield shard.name + path.name

    def discard(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._disk.remove(self.path(name))


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files of writers that died; returns how many. Only while holding the workspace's lock."""
    leftovers = list(folder.rglob(f"*{_TEMPORARY_SUFFIX}"))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def free_bytes(folder: Path) -> int:
    """Bytes a normal user may still write to the disk that holds `folder`."""
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def _naming_the_file(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageError(f"disk full while writing {path}", hint="free some space and run it again") from error
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            hint="check the disk and the folder's permissions",
        ) from error
