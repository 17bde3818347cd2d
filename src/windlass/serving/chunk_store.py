"""Where chunks are kept: in memory, and on the disk beneath it, where they outlive the process."""

from __future__ import annotations

import logging
import queue
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from windlass.core import storage
from windlass.core.errors import StorageError, WorkspaceError
from windlass.serving.chunk_record import ChunkRecord, read_record, write_record

log = logging.getLogger("windlass.serving")

_WRITES_WAITING = 64


@dataclass(slots=True)
class _Kept:
    """A record in memory, what its uses saved so far, and what it is worth."""

    record: ChunkRecord
    saved: float = 0.0
    worth: float = 0.0


@dataclass(frozen=True, slots=True)
class ChunkStats:
    """Records and bytes in memory and on the disk; files that were damaged; records that were not written."""

    records: int
    nbytes: int
    files: int
    file_bytes: int
    damaged: int
    unwritten: int


class ChunkStore:
    """Variants of chunks by content. May be used from several threads.

    Who saves most goes last: each use of a record adds the share of its tokens that need not be computed, and what was
    last evicted sets the floor that newcomers start from, so that old merits fade.

    Args:
        memory_bytes: For records in memory.
        folder: Where files stand; None: nowhere, memory is all there is.
        disk_bytes: For files; the least recently used go.
        max_variants: Of one chunk.
        disk: What the folder is on.
    """

    def __init__(
        self,
        memory_bytes: int,
        folder: Path | None = None,
        *,
        disk_bytes: int = 1 << 30,
        max_variants: int = 5,
        disk: storage.Disk = storage.LOCAL_DISK,
    ) -> None:
        self._memory_bytes, self._disk_bytes, self._max_variants = memory_bytes, disk_bytes, max_variants
        self._folder, self._disk = folder, disk
        self._lock = threading.RLock()
        self._kept: dict[bytes, list[_Kept]] = {}
        self._nbytes, self._floor = 0, 0.0
        self._files: OrderedDict[str, int] = OrderedDict()
        self._damaged = self._unwritten = 0
        self._writes: queue.Queue[ChunkRecord | None] = queue.Queue(_WRITES_WAITING)
        self._writer: threading.Thread | None = None
        if folder is not None:
            self._open(folder)

    def variants(self, content: bytes) -> list[ChunkRecord]:
        """The records of a chunk that are in memory."""
        with self._lock:
            return [kept.record for kept in self._kept.get(content, ())]

    def load(self, content: bytes, owner: bytes) -> None:
        """Bring a chunk's records from the disk into memory. A damaged file is deleted: the chunk is computed again."""
        with self._lock:
            known = {record.name for record in self.variants(content)}
            names = [name for name in self._files if name.startswith(content.hex()) and name not in known]
        for name in names:
            assert self._folder is not None
            path = self._folder / name
            try:
                record = read_record(path, owner, disk=self._disk)
            except FileNotFoundError:  # another process made room
                self._forget_file(name)
            except (WorkspaceError, OSError) as error:
                log.warning("%s", error)
                self._damaged += 1
                self._forget_file(name)
                self._delete(path)
            else:
                with self._lock:
                    self._files.move_to_end(name)
                self._insert(record)

    def add(self, record: ChunkRecord) -> None:
        """Keep a record; it reaches the disk soon, or not at all when the disk cannot keep up."""
        self._insert(record)
        with self._lock:
            if self._writer is None or record.name in self._files:
                return
            try:
                self._writes.put_nowait(record)
            except queue.Full:
                self._unwritten += 1

    def used(self, record: ChunkRecord, saved: float) -> None:
        """`record` spared this share of its tokens."""
        with self._lock:
            for kept in self._kept.get(record.content, ()):
                if kept.record is record:
                    kept.saved += saved
                    kept.worth = self._floor + kept.saved
            if record.name in self._files:
                self._files.move_to_end(record.name)

    def stats(self) -> ChunkStats:
        with self._lock:
            records = sum(len(variants) for variants in self._kept.values())
            return ChunkStats(
                records, self._nbytes, len(self._files), sum(self._files.values()), self._damaged, self._unwritten
            )

    def flush(self) -> None:
        """Wait until everything that was added is on the disk, or given up."""
        self._writes.join()

    def close(self) -> None:
        """Write what waits, and end the writer."""
        if self._writer is not None:
            self._writes.put(None)
            self._writer.join()
            self._writer = None

    def _open(self, folder: Path) -> None:
        try:
            storage.make_folder(folder, disk=self._disk)
            storage.remove_leftovers(folder, disk=self._disk)
            found = [(path.stat().st_mtime, path.name, path.stat().st_size) for path in folder.glob("*.kv")]
        except (StorageError, OSError) as error:
            log.warning("chunks are kept in memory only: %s", error)
            return
        self._files.update((name, size) for _, name, size in sorted(found))
        self._writer = threading.Thread(target=self._write_all, name="windlass-chunks", daemon=True)
        self._writer.start()

    def _insert(self, record: ChunkRecord) -> None:
        with self._lock:
            variants = self._kept.setdefault(record.content, [])
            for kept in variants:
                if kept.record.name == record.name:
                    return
            variants.append(_Kept(record, worth=self._floor))
            self._nbytes += record.nbytes
            if len(variants) > self._max_variants:
                self._drop(min(variants, key=lambda kept: kept.worth))
            while self._nbytes > self._memory_bytes and self._kept:
                least = min((kept for each in self._kept.values() for kept in each), key=lambda kept: kept.worth)
                self._floor = max(self._floor, least.worth)
                self._drop(least)

    def _drop(self, kept: _Kept) -> None:
        variants = self._kept[kept.record.content]
        variants.remove(kept)
        self._nbytes -= kept.record.nbytes
        if not variants:
            del self._kept[kept.record.content]

    def _write_all(self) -> None:
        while True:
            record = self._writes.get()
            try:
                if record is None:
                    return
                self._write(record)
            finally:
                self._writes.task_done()

    def _write(self, record: ChunkRecord) -> None:
        assert self._folder is not None
        if self._disk_bytes <= 0:
            return
        try:
            write_record(self._folder / record.name, record, disk=self._disk)
        except StorageError as error:
            log.warning("no more chunks are written to the disk: %s", error)
            self._disk_bytes = 0
            self._unwritten += 1
            return
        with self._lock:
            self._files[record.name] = record.nbytes
            over = sum(self._files.values()) - self._disk_bytes
            gone = []
            while over > 0 and self._files:
                name, size = self._files.popitem(last=False)
                over -= size
                gone.append(name)
        for name in gone:
            self._delete(self._folder / name)

    def _forget_file(self, name: str) -> None:
        with self._lock:
            self._files.pop(name, None)

    def _delete(self, path: Path) -> None:
        try:
            self._disk.remove(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("%s cannot be deleted: %s", path, error)
