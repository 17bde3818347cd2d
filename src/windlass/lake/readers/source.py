"""How the bytes of a file come in: regular files only, never more than a cap, gzip counted as it inflates."""

from __future__ import annotations

import os
import stat
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from windlass.core.errors import ReadError
from windlass.core.sandbox_protocol import Limits, active_limits, item_name

TEXT_BYTES = 64 << 20
"""The largest file that is read as one text; a larger one is refused before anything is read."""

_HARMLESS_BYTES = 32 << 20
_CHUNK = 1 << 20


@dataclass(slots=True)
class Source:
    """One open regular file.

    Attributes:
        path: As the caller gave it.
        name: The path for messages, on one line.
        file: Open for reading at offset 0.
        size: Bytes on disk, by `fstat` of the open file.
    """

    path: str
    name: str
    file: BinaryIO
    size: int

    @property
    def stem(self) -> str:
        """The file's name without folders and endings: what a document is called that has no title."""
        base = os.path.basename(self.name)
        stem, ending = os.path.splitext(base)
        if ending.lower() == ".gz":
            stem = os.path.splitext(stem)[0]
        return stem or base

    def read(self, most: int) -> bytes:
        """The whole file. Raises `ReadError` (`too-large`) when it has more than `most` bytes."""
        self.check_size(most)
        self.file.seek(0)
        data = self.file.read(most + 1)
        if len(data) > most:  # it grew since it was opened
            raise self.too_large(most)
        return data

    def check_size(self, most: int) -> None:
        if self.size > most:
            raise self.too_large(most)

    def too_large(self, most: int) -> ReadError:
        what = f"{self.name}: {_megabytes(self.size)}, more than the {_megabytes(most)} that are read at once"
        return ReadError(what, reason="too-large", hint="split it, or store tables as Parquet")

    def broken(self, what: str) -> ReadError:
        hint = "open it in its program and save it again"
        return ReadError(f"{self.name}: {what}", reason="broken", hint=hint)


def open_source(path: str) -> Source:
    """Open a regular file without ever blocking on a pipe or a device.

    Raises:
        ReadError: `unreadable` (missing, no permission), `unsupported` (a folder, a pipe, a device).
    """
    name = item_name((path,))
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        hint = "check that it exists and may be read"
        raise ReadError(f"{name}: {what}", reason="unreadable", hint=hint) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise ReadError(f"{name}: not a regular file", reason="unsupported")
    return Source(path, name, os.fdopen(descriptor, "rb"), status.st_size)


class InflationCount:
    """Counts what comes out of compressed input, and refuses more than the limits allow.

    The ratio holds only past a size that does no harm: honest small documents reach 300 to 1.
    """

    def __init__(self, source: Source) -> None:
        self._limits: Limits = active_limits.get()
        self._name = source.name
        ratio = int(source.size * self._limits.inflated_ratio)
        self._most = min(self._limits.inflated_bytes, max(_HARMLESS_BYTES, ratio))
        self._packed = source.size
        self._total = 0

    @property
    def left(self) -> int:
        return self._most - self._total

    def add(self, size: int) -> None:
        self._total += size
        if self._total > self._most:
            packed, most = _megabytes(self._packed), _megabytes(self._most)
            what = f"{self._name}: {packed} that unpack to more than {most}"
            raise ReadError(what, reason="bomb", hint="if you trust it, unpack and save it again")


def gunzip(source: Source) -> bytes:
    """The content of a gzip file (all its members), within the limits and `TEXT_BYTES`."""
    import gzip

    count = InflationCount(source)
    parts: list[bytes] = []
    size = 0
    source.file.seek(0)
    with gzip.GzipFile(fileobj=source.file, mode="rb") as inflated:
        while True:
            try:
                part = inflated.read(_CHUNK)
            except (OSError, EOFError, zlib.error) as error:
                raise source.broken(f"damaged gzip data ({error})") from error
            if not part:
                return b"".join(parts)
            count.add(len(part))
            size += len(part)
            if size > TEXT_BYTES:
                most = _megabytes(TEXT_BYTES)
                what = f"{source.name}: unpacks to more than the {most} that are read at once"
                raise ReadError(what, reason="too-large", hint="split it, or store tables as Parquet")
            parts.append(part)


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MB" if size < 10 << 20 else f"{size >> 20:,} MB"
