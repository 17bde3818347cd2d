"""A file of weights in memory without reading it: mapped once, bounds checked at every slice."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from windlass.core.errors import ModelError, NotFound


@dataclass(frozen=True)
class TensorMeta:
    """Where a tensor lies: `shape` rows first, `format` such as `f32` or `q4_1`, `offset` and `nbytes` in
    its file.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    offset: int
    nbytes: int


class MappedFile:
    """A read-only map of one file that notices when the file under it shrinks.

    Raises:
        NotFound: there is no such file.
        ModelError: the file is empty, not a regular file, or cannot be mapped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise ModelError(f"{path} is empty", hint="fetch the model again: windlass models pull")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as error:
            raise NotFound(f"no such model file: {path}") from error
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read {path}: {error}") from error
        self.bytes = memoryview(self._map)

    def slice(self, offset: int, nbytes: int, what: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Bytes `offset` to `offset + nbytes` as uint8, without a copy.

        Reading a map past the end of a file that was cut since would kill the process, so its size is asked
        again.
        """
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise ModelError(
                f"{self.path}: {what} needs bytes {offset} to {offset + nbytes}, the file has {self.size}",
                hint="the file is truncated or damaged; fetch it again",
            )
        if self._map.size() < self.size:
            raise ModelError(f"{self.path} was cut while it was in use", hint="load the model again")
        return np.frombuffer(self.bytes, np.uint8, nbytes, offset)

    def release(self) -> None:
        """Stop counting pages that were read as this process's memory; the next read maps them again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


@runtime_checkable
class Releasable(Protocol):
    """A source whose memory is the map of a file."""

    def release(self) -> None:
        """Stop counting pages that were read as this process's memory; the next read maps them again."""
        ...


def give_back() -> None:
    """Return what was freed to the system, where its C library keeps it; after a load that is megabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def sample_digest(files: list[MappedFile]) -> str:
    """A fingerprint of the files' content in milliseconds: sizes, first and last MiB, and 64 blocks between.

    Two files that differ only between the sampled blocks share a fingerprint; it tells models apart, it is
    no seal.
    """
    from hashlib import sha256

    digest = sha256()
    for file in files:
        digest.update(file.size.to_bytes(8, "little"))
        edge = min(file.size, 1 << 20)
        step = max(file.size // 64, 1 << 16)
        for start, length in [
            (0, edge),
            (file.size - edge, edge),
            *((at, 1 << 14) for at in range(0, file.size, step)),
        ]:
            digest.update(file.slice(start, min(length, file.size - start), "fingerprint").data)
    return digest.hexdigest()[:32]
