"""A collection's folder: one manifest that says what counts, and everything it names.

    MANIFEST                 which segments, deletions, grants and logs are valid; swapped atomically
    wal/000042.log           what was acknowledged after the last flush (vectors/log.py)
    segments/000012.*        rows that never change (vectors/segment.py)
    deletes/000031.bin       which rows of a segment are deleted, a bit each
    access/000031.bin        which tenants have which rows
    LOCK                     held by the one writer; the operating system lets go of it when that process ends

Opening reads the manifest and then the logs from the one it names. A file that no manifest names is the work of a
process that died before it counted; the next writer removes it. Nothing else is ever repaired silently.

A reader needs no lock: it opens the files that a manifest names and keeps them mapped. A writer that swaps the
manifest in between removes names, not files that are open; a reader that was too slow finds a newer manifest and
starts over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import NotFound, StorageError
from windlass.core.storage import Disk, LocalDisk
from windlass.kernels.bitcodes import pack_mask, unpack_mask
from windlass.vectors.errors import CollectionExists, CollectionLocked, CorruptSegment
from windlass.vectors.files import read_small, write_small
from windlass.vectors.log import Durability, LogReader, LogWriter, read_logs
from windlass.vectors.packing import pack, unpack
from windlass.vectors.schema import Schema
from windlass.vectors.segment import Segment, SegmentWriter, read_checked
from windlass.vectors.tenants import TenantRows

FORMAT = 1
MANIFEST = "MANIFEST"
_FOLDERS = ("wal", "segments", "deletes", "access")
_RETRIES = 20


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A numbered file and its receipt."""

    number: int
    receipt: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What counts.

    Attributes:
        version: Grows by one with each manifest.
        kind, parameters: What `optimize` is to make of the segments.
        segments: The valid ones, oldest rows first, each with its deletions or None.
        access: Grants; None when there are none.
        first_log: The oldest log that holds what is in no segment.
        next_number, next_serial: Not used yet.
        commits: Changes that the segments hold.
    """

    version: int
    schema: Schema
    kind: str
    parameters: dict[str, Any]
    segments: tuple[tuple[int, NamedFile | None], ...]
    access: NamedFile | None
    first_log: int
    next_number: int
    next_serial: int
    commits: int

    def to_json(self) -> dict[str, Any]:
        def named(file: NamedFile | None) -> list[Any] | None:
            return None if file is None else [file.number, file.receipt]

        return {
            "version": self.version,
            "schema": self.schema.to_json(),
            "kind": self.kind,
            "parameters": self.parameters,
            "segments": [[number, named(deletes)] for number, deletes in self.segments],
            "access": named(self.access),
            "first_log": self.first_log,
            "next_number": self.next_number,
            "next_serial": self.next_serial,
            "commits": self.commits,
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> Manifest:
        def named(file: list[Any] | None) -> NamedFile | None:
            return None if file is None else NamedFile(*file)

        segments = tuple((number, named(deletes)) for number, deletes in content["segments"])
        schema = Schema.from_json(content["schema"])
        changed = {"schema": schema, "segments": segments, "access": named(content["access"])}
        return Manifest(**{**content, **changed})


@dataclass
class Opened:
    """Everything that a manifest names, opened."""

    manifest: Manifest
    segments: list[tuple[Segment, NDArray[np.bool_]]]
    tenants: TenantRows
    logs: list[LogReader]


class Store:
    """Reads and writes the folder of one collection."""

    def __init__(self, path: Path, *, disk: Disk) -> None:
        self.path, self.disk = path, disk
        self._lock: int | None = None

    def folder(self, name: str) -> Path:
        return self.path / name

    # Opening

    def create(self, schema: Schema, kind: str, parameters: dict[str, Any]) -> None:
        """Make an empty collection. Whatever a process left that died while making one here is removed.

        Raises:
            CollectionExists, StorageError.
        """
        storage.make_folder(self.path, disk=self.disk)
        if (self.path / MANIFEST) in self.disk.files(self.path):
            raise CollectionExists(f"{self.path} holds a collection already", hint="open it, or choose another folder")
        for name in _FOLDERS:
            storage.make_folder(self.folder(name), disk=self.disk)
            self.remove(self.disk.files(self.folder(name)))
        LogWriter(self.folder("wal"), 1, previous=(), durability="none", disk=self.disk).close()
        self.write_manifest(Manifest(1, schema, kind, parameters, (), None, 1, 1, 1, 0))

    def open(self, reusable: Iterable[Segment] = ()) -> Opened:
        """Everything that counts now.

        Args:
            reusable: Segments that are open already; those that still count are not opened again.

        Raises:
            NotFound: There is no collection.
            CorruptSegment, FormatTooNew, StorageError.
        """
        known = {segment.number: segment for segment in reusable}
        for attempt in range(_RETRIES):
            manifest = self.read_manifest()
            try:
                return self._open(manifest, known)
            except (CorruptSegment, FileNotFoundError):
                # Either damage, or a writer has swapped the manifest meanwhile and removed what the old one named.
                if attempt == _RETRIES - 1 or self.read_manifest().version == manifest.version:
                    raise
        raise AssertionError("unreachable")

    def read_manifest(self) -> Manifest:
        if (self.path / MANIFEST) not in self._present():
            raise NotFound(f"no collection in {self.path}", hint="make one with windlass.vectors.create")
        content = read_checked(self.path / MANIFEST, FORMAT, self.disk)
        try:
            return Manifest.from_json(content)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptSegment(self.path / MANIFEST, 0, f"its content makes no sense ({error})") from error

    def _present(self) -> list[Path]:
        if isinstance(self.disk, LocalDisk):
            return [self.path / MANIFEST] if (self.path / MANIFEST).is_file() else []
        return self.disk.files(self.path)

    def _open(self, manifest: Manifest, known: dict[int, Segment]) -> Opened:
        schema, segments = manifest.schema, []
        for number, deletes in manifest.segments:
            segment = known.get(number) or Segment(self.folder("segments"), number, schema, self.disk)
            live = np.ones(segment.count, np.bool_)
            if deletes is not None:
                words = read_small(self._bin("deletes", deletes.number), deletes.receipt, self.disk).view(np.uint64)
                live = ~unpack_mask(words, segment.count)
            segments.append((segment, live))
        tenants = TenantRows.none()
        if manifest.access is not None:
            path = self._bin("access", manifest.access.number)
            try:
                tenants = TenantRows.unpacked(unpack(read_small(path, manifest.access.receipt, self.disk)))
            except (KeyError, TypeError, ValueError) as error:
                raise CorruptSegment(path, 0, f"its content makes no sense ({error})") from error
        return Opened(manifest, segments, tenants, read_logs(self.folder("wal"), manifest.first_log, disk=self.disk))

    # Writing

    def new_segment(self, number: int, schema: Schema) -> SegmentWriter:
        return SegmentWriter(self.folder("segments"), number, schema, self.disk)

    def open_segment(self, number: int, schema: Schema) -> Segment:
        return Segment(self.folder("segments"), number, schema, self.disk)

    def new_log(self, number: int, previous: Iterable[LogReader | LogWriter], durability: Durability) -> LogWriter:
        positions = [log.position for log in previous]
        return LogWriter(self.folder("wal"), number, previous=positions, durability=durability, disk=self.disk)

    def write_deletes(self, number: int, live: NDArray[np.bool_]) -> NamedFile:
        return NamedFile(number, write_small(self._bin("deletes", number), pack_mask(~live).tobytes(), self.disk))

    def write_access(self, number: int, tenants: TenantRows) -> NamedFile:
        return NamedFile(number, write_small(self._bin("access", number), pack(tenants.packed()), self.disk))

    def write_manifest(self, manifest: Manifest) -> None:
        """Make what it names count. Durable when this returns.

        Raises:
            StorageError: The old manifest counts, or when only the folder could not be synced, perhaps this one.
        """
        for name in _FOLDERS:
            with storage.writing(self.folder(name)):
                self.disk.fsync_folder(self.folder(name))
        storage.write_manifest(self.path / MANIFEST, FORMAT, manifest.to_json(), disk=self.disk)

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files that no longer count. One that resists is left for the next writer."""
        for path in paths:
            with contextlib.suppress(OSError):
                self.disk.remove(path)

    def remove_orphans(self, manifest: Manifest) -> int:
        """Remove what no manifest names; returns how many files."""
        storage.remove_leftovers(self.path, disk=self.disk)
        segments = {f"{number:06d}" for number, _ in manifest.segments}
        deletes = {f"{file.number:06d}" for _, file in manifest.segments if file is not None}
        access = {f"{manifest.access.number:06d}"} if manifest.access else set()
        gone = []
        for name, kept in (("segments", segments), ("deletes", deletes), ("access", access)):
            gone += [path for path in self.disk.files(self.folder(name)) if path.name.split(".")[0] not in kept]
        for path in self.disk.files(self.folder("wal")):
            if path.stem.isdigit() and int(path.stem) < manifest.first_log:
                gone.append(path)
        self.remove(gone)
        return len(gone)

    def next_free(self, manifest: Manifest) -> int:
        """A number that no file has, whether it counts or not."""
        numbers = [manifest.next_number]
        for name in ("segments", "deletes", "access"):
            stems = (path.name.split(".")[0] for path in self.disk.files(self.folder(name)))
            numbers += [int(stem) + 1 for stem in stems if stem.isdigit()]
        return max(numbers)

    def _bin(self, folder: str, number: int) -> Path:
        return self.folder(folder) / f"{number:06d}.bin"

    # The one writer

    def lock(self) -> None:
        """Become the one writer, until `unlock` or the end of the process.

        Raises:
            CollectionLocked: Somebody else is.
            StorageError: The lock cannot be made.
        """
        if not isinstance(self.disk, LocalDisk):
            return
        try:
            handle = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise NotFound(f"no collection in {self.path}", hint="make one with windlass.vectors.create") from None
        except OSError as error:
            raise StorageError(
                f"cannot open {self.path / 'LOCK'}: {error.strerror}", hint="check permissions"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid, _, host = os.pread(handle, 300, 0).decode("utf-8", "replace").strip().partition(" ")
            os.close(handle)
            raise CollectionLocked(self.path, pid, host) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, only nameless
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
        self._lock = handle

    def unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def successor(manifest: Manifest, **changes: Any) -> Manifest:
    """The next manifest."""
    return replace(manifest, version=manifest.version + 1, **changes)
