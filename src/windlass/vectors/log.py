"""The write-ahead log: what was acknowledged and is not in a segment yet.

A log is one file, begun when a collection is opened for writing and after each flush:

    8 bytes magic | header record | records

    record: 8 bytes mark | u64 length | u32 checksum | u8 type | u64 synced | payload

`synced` is the length of the file that was known to be on the platter when the record was written. It tells a torn
tail from damage: after a crash, any part of what was not synced may be missing, and a record that cannot be read is
then simply the end. But when a later record says that those bytes had been synced, or the header of a later log, which
lists how far the logs before it are valid, an acknowledged write was lost. That is an error with the file and the
offset, never a silent loss.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from windlass.core import storage
from windlass.core.errors import StorageError
from windlass.core.storage import Disk
from windlass.vectors.errors import CorruptSegment

Durability = Literal["commit", "batch", "none"]

_MAGIC = b"WLLOG001"
_MARK = b"\xf5WLrecd\x0a"
_FIXED = struct.Struct("<8sQIBQ")
_HEADER = 0
BATCH_SECONDS = 0.05


class Record(NamedTuple):
    """One acknowledged change."""

    kind: int
    payload: bytes


class Position(NamedTuple):
    """How far a log is valid: its number and its bytes."""

    number: int
    bytes: int


def log_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.log"


class LogWriter:
    """Appends records to a new log.

    Args:
        folder: Where logs lie.
        number: Of this log; no such file may exist.
        previous: How far the logs before it are valid, as far as they still count.
        durability: `commit`: a record is on the platter when `append` returns. `batch`: at most 50 ms later. `none`:
            when `sync` returns.

    Raises:
        StorageError: The disk refuses.
    """

    def __init__(
        self, folder: Path, number: int, *, previous: Sequence[Position], durability: Durability, disk: Disk
    ) -> None:
        self.path, self.number = log_path(folder, number), number
        self._disk, self._durability = disk, durability
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._broken = ""
        self._last_sync = 0.0
        with storage.writing(self.path):
            self._file: BinaryIO = disk.create(self.path)
        self.bytes = self._synced = 0
        header = json.dumps({"previous": list(previous)}).encode()
        self._write(_MAGIC + _record(_HEADER, header, 0))
        self.sync()
        with storage.writing(self.path):
            disk.fsync_folder(folder)

    @property
    def position(self) -> Position:
        return Position(self.number, self.bytes)

    def append(self, kind: int, payload: bytes) -> None:
        """Write one record; as durable as `durability` says when this returns.

        Raises:
            StorageError: It is not known to have been written, and this log takes no more.
        """
        with self._lock:
            self._check()
            self._write(_record(kind, payload, self._synced))
            if self._durability == "commit":
                self._sync()
            elif self._durability == "batch":
                self._sync_soon()

    def sync(self) -> None:
        """Return when everything appended is on the platter."""
        with self._lock:
            self._check()
            if self._synced < self.bytes:
                self._sync()

    def close(self) -> None:
        """Sync and let go of the file. The lock of a broken log is let go too, silently: its error was raised."""
        try:
            if not self._broken:
                self.sync()
        finally:
            self._file.close()

    def _write(self, data: bytes) -> None:
        with self._breaking(), storage.writing(self.path):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
            if isinstance(self._file, io.BufferedIOBase):
                self._file.flush()
        self.bytes += len(data)

    def _sync(self) -> None:
        with self._breaking(), storage.writing(self.path):
            self._disk.fsync(self._file)
        self._synced = self.bytes
        self._last_sync = time.monotonic()

    def _sync_soon(self) -> None:
        if time.monotonic() - self._last_sync >= BATCH_SECONDS:
            self._sync()
        elif self._timer is None:
            self._timer = threading.Timer(BATCH_SECONDS, self._sync_late)
            self._timer.daemon = True
            self._timer.start()

    def _sync_late(self) -> None:
        with self._lock, contextlib.suppress(StorageError, ValueError):  # remembered, and told at the next call
            self._timer = None
            if not self._broken and self._synced < self.bytes:
                self._sync()

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """After a failed write or sync the file may hold half a record, or may have lost pages: nobody may go on."""
        try:
            yield
        except BaseException as error:
            self._broken = str(error)
            raise

    def _check(self) -> None:
        if self._broken:
            raise StorageError(
                f"{self.path} takes no more writes since one failed ({self._broken})",
                hint="open the collection again: what was acknowledged is there",
            )


class LogReader:
    """Reads the records of one log, now and again later as it grows.

    Attributes:
        position: How far it was valid when last read.
        previous: What the header says of the logs before it: their bytes by number.
    """

    def __init__(self, folder: Path, number: int, *, disk: Disk) -> None:
        self.path, self._disk = log_path(folder, number), disk
        self.position = Position(number, 0)
        self.previous: dict[int, int] = {}
        self.promised = 0

    def records(self) -> list[Record]:
        """The records after `position`; none when the log is torn there.

        Raises:
            CorruptSegment: Bytes that had been synced cannot be read any more.
            FileNotFoundError: There is no such log.
            StorageError: It cannot be read.
        """
        try:
            data = self._disk.read(self.path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}", hint="check the disk") from error
        at, found = self.position.bytes, []
        if at == 0:
            if data[:8] != _MAGIC:
                self._torn(data, 0)
                return []
            at = len(_MAGIC)
        while (parsed := _parse(data, at)) is not None:
            kind, payload, at = parsed
            if kind == _HEADER:
                self.previous = dict(json.loads(payload)["previous"])
            else:
                found.append(Record(kind, payload))
            self.position = self.position._replace(bytes=at)
        if at < len(data) or at < self.promised:
            self._torn(data, at)
        return found

    def _torn(self, data: bytes, at: int) -> None:
        """Nothing, if what is missing from `at` on had never been promised."""
        promised, search = self.promised, at
        while (search := data.find(_MARK, search + 1)) >= 0:
            if (parsed := _parse(data, search)) is not None:
                promised = max(promised, _FIXED.unpack_from(data, search)[4])
                search = parsed[2] - 1
        if promised > at:
            raise CorruptSegment(self.path, at, "an acknowledged record cannot be read")


def read_logs(folder: Path, first: int, *, disk: Disk) -> list[LogReader]:
    """Readers of the logs from number `first` on that follow one another, with what each is known to hold.

    A log that was begun and whose header never arrived is the last, and empty.

    Raises:
        CorruptSegment: A log in the middle is missing or its header cannot be read.
    """
    there = {path.name for path in disk.files(folder)}
    numbers = sorted(int(name[:-4]) for name in there if name.endswith(".log") and name[:-4].isdigit())
    numbers = [number for number in numbers if number >= first]
    readers = [LogReader(folder, number, disk=disk) for number in numbers]
    for reader in readers:
        header = LogReader(folder, reader.position.number, disk=disk)
        header.records()
        for earlier in readers:
            earlier.promised = max(earlier.promised, header.previous.get(earlier.position.number, 0))
    for expected, reader in enumerate(readers, start=first):
        if reader.position.number != expected:
            raise CorruptSegment(log_path(folder, expected), 0, "the log is missing")
    if not readers:
        raise CorruptSegment(log_path(folder, first), 0, "the log is missing")
    return readers


def _record(kind: int, payload: bytes, synced: int) -> bytes:
    checksum = zlib.crc32(payload, zlib.crc32(struct.pack("<QBQ", len(payload), kind, synced)))
    return _FIXED.pack(_MARK, len(payload), checksum, kind, synced) + payload


def _parse(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """Kind, payload and end of the record at `at`, or None when there is no whole one."""
    if at + _FIXED.size > len(data):
        return None
    mark, length, checksum, kind, synced = _FIXED.unpack_from(data, at)
    end = at + _FIXED.size + length
    if mark != _MARK or end > len(data):
        return None
    payload = data[at + _FIXED.size : end]
    if zlib.crc32(payload, zlib.crc32(struct.pack("<QBQ", length, kind, synced))) != checksum:
        return None
    return kind, payload, end
