"""Files that are written once, with a checksum for each MiB, and mapped to be read.

A file's receipt (its size and checksums) stands in the manifest of its segment. The size is checked when the file is
opened, each MiB when it is first used, so that opening a large collection reads nothing, and damage is found before
any number from it is returned.
"""

from __future__ import annotations

import mmap
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import StorageError
from windlass.core.storage import Disk, LocalDisk
from windlass.vectors.errors import CorruptSegment

BLOCK = 1 << 20


class FileWriter:
    """Writes one new file from front to back."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path, self._disk = path, disk
        self._checksums: list[int] = []
        self._open_block, self.size = 0, 0
        with storage.writing(path):
            self._file = disk.create(path)

    def write(self, data: Any) -> None:
        """Append bytes, or the bytes of a contiguous array.

        Raises:
            StorageError: The disk refuses.
        """
        view = memoryview(_raw(data) if isinstance(data, np.ndarray) else data)
        for start in range(0, len(view), BLOCK):
            part = view[start : start + BLOCK]
            self._count(part)
            with storage.writing(self.path):
                while part:
                    part = part[self._file.write(part.tobytes()) :]

    def finish(self) -> dict[str, Any]:
        """Make the bytes durable (not yet the name) and return the receipt."""
        with storage.writing(self.path), self._file as file:
            file.flush()
            self._disk.fsync(file)
        return {"size": self.size, "checksums": self._checksums}

    def abandon(self) -> None:
        self._file.close()

    def _count(self, part: memoryview) -> None:
        while part:
            room = BLOCK - self.size % BLOCK
            if room == BLOCK:
                self._checksums.append(0)
            taken = part[:room]
            self._checksums[-1] = zlib.crc32(taken, self._checksums[-1])
            self.size += len(taken)
            part = part[room:]


class MappedFile:
    """A written file as an array of bytes.

    Args:
        receipt: What `FileWriter.finish` returned.

    Raises:
        CorruptSegment: It is missing, or longer or shorter than was written.
        StorageError: It cannot be read.
    """

    def __init__(self, path: Path, receipt: Mapping[str, Any], disk: Disk) -> None:
        self.path = path
        self._checksums = receipt["checksums"]
        self.bytes: NDArray[np.uint8] = _mapped(path, disk)
        if len(self.bytes) != receipt["size"]:
            where = min(len(self.bytes), receipt["size"])
            raise CorruptSegment(path, where, f"it has {len(self.bytes)} bytes, {receipt['size']} were written")
        self._seen = np.zeros(len(self._checksums), np.bool_)
        self._all_seen = not len(self._seen)

    def verified(self, dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
        """All of it, as an array of `dtype`, after every block was checked once."""
        if not self._all_seen:
            self._check(np.flatnonzero(~self._seen))
        return self.bytes if dtype is None else self.bytes.view(dtype)

    def verify_rows(self, rows: NDArray[np.int64], bytes_a_row: int) -> None:
        """Check the blocks that hold these rows, unless that was done before.

        Raises:
            CorruptSegment: One is not what was written.
        """
        if self._all_seen or not len(rows):
            return
        first, last = rows * bytes_a_row // BLOCK, ((rows + 1) * bytes_a_row - 1) // BLOCK
        wanted = np.zeros(len(self._seen), np.bool_)
        wanted[first] = wanted[last] = True
        for at in range(1, int((last - first).max(initial=0))):
            wanted[np.minimum(first + at, last)] = True
        self._check(np.flatnonzero(wanted & ~self._seen))

    def recheck(self) -> None:
        """Check every block, also those checked before.

        Raises:
            CorruptSegment: One is not what was written.
        """
        self._check(np.arange(len(self._seen)))

    def _check(self, blocks: NDArray[np.int64]) -> None:
        for block in blocks.tolist():
            start = block * BLOCK
            if zlib.crc32(self.bytes[start : start + BLOCK].data) != self._checksums[block]:
                raise CorruptSegment(self.path, start, "its checksum does not match in the MiB that begins there")
            self._seen[block] = True
        self._all_seen = bool(self._seen.all())


def read_small(path: Path, receipt: Mapping[str, Any], disk: Disk) -> NDArray[np.uint8]:
    """A whole file as bytes, checked."""
    return MappedFile(path, receipt, disk).verified()


def write_small(path: Path, data: bytes, disk: Disk) -> dict[str, Any]:
    """Write a whole new file; its bytes are durable, its name is not yet. Returns the receipt."""
    writer = FileWriter(path, disk)
    try:
        writer.write(data)
        return writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _raw(array: NDArray[Any]) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _mapped(path: Path, disk: Disk) -> NDArray[np.uint8]:
    try:
        if not isinstance(disk, LocalDisk):
            return np.frombuffer(bytearray(disk.read(path)), np.uint8)
        with open(path, "rb") as file:
            if path.stat().st_size == 0:
                return np.zeros(0, np.uint8)
            # A private writable mapping: compiled code has one form for arrays, and this one cannot reach the disk.
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    except FileNotFoundError:
        raise CorruptSegment(path, 0, "the file is missing") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}", hint="check the disk") from error
