"""One look into a folder: its names, the stat records of its files, and a digest that tells whether any of it changed.

Two ways give the same answer: through Python's `scandir`, and compiled, through the kernel's own calls, which takes a
third of the time and is used for folders of many files, where loading the compiler's part pays.
"""

from __future__ import annotations

import hashlib
import os
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import NamedTuple

_LEAST_FILES, _WORTH_LOADING = 1_000, 30_000


class Look(NamedTuple):
    """What one folder holds, in the order of the file system.

    Attributes:
        text: Every name as bytes, a letter before it (`f`ile, `d`irectory, `l`ink, `s`pecial), zero bytes between.
        numbers: int64: size, time of modification, time of change (both ns) and inode of every file, as bytes.
        failed: (name, why) of what could not be looked at.
    """

    text: bytes
    numbers: bytes
    failed: list[tuple[str, str]]

    @property
    def names(self) -> list[str]:
        """The names with their letters, bytes that are not UTF-8 as surrogates."""
        return self.text.decode("utf-8", "surrogateescape").split("\0") if self.text else []

    @property
    def records(self) -> Iterator[tuple[int, ...]]:
        """(size, modification, change, inode) of every file."""
        numbers = array("q", self.numbers)
        return zip(numbers[0::4], numbers[1::4], numbers[2::4], numbers[3::4], strict=True)

    def digest(self, key: bytes) -> bytes | None:
        """Equal when nothing is new or changed, what is in folders below left out; None when something is not known."""
        if self.failed:
            return None
        return hashlib.blake2b(self.text + b"\0\0" + self.numbers, digest_size=16, key=key).digest()


def look_into(path: bytes, *, is_root: bool) -> Look:
    """List one folder and look at its files; links are not followed.

    Raises:
        OSError: It cannot be listed, or is no folder any more.
    """
    handle = _open(path, is_root)
    try:
        return _listed(handle)
    finally:
        os.close(handle)


def looks(files: int) -> Callable[..., Look]:
    """The fastest `look_into` for a tree of so many files."""
    if files < _LEAST_FILES or (files < _WORTH_LOADING and "numba" not in sys.modules):
        return look_into
    from windlass.kernels import folder_listing

    return _Compiled().look_into if folder_listing.available() else look_into


def _open(path: bytes, is_root: bool) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if is_root else os.O_NOFOLLOW))


def _listed(handle: int) -> Look:
    names: list[str] = []
    records: list[int] = []
    failed: list[tuple[str, str]] = []
    # By handle: the file system looks up one name a file, not its whole path.
    with os.scandir(handle) as listing:
        for entry in listing:
            try:
                if entry.is_file(follow_symlinks=False):
                    record = entry.stat(follow_symlinks=False)
                    names.append("f" + entry.name)
                    records += (record.st_size, record.st_mtime_ns, record.st_ctime_ns, record.st_ino)
                elif entry.is_dir(follow_symlinks=False):
                    names.append("d" + entry.name)
                else:
                    names.append(("l" if entry.is_symlink() else "s") + entry.name)
            except FileNotFoundError:
                continue  # vanished between the listing and now
            except OSError as error:
                failed.append((entry.name, f"cannot be looked at: {error.strerror}"))
    text = "\0".join(names).encode("utf-8", "surrogateescape")
    return Look(text, _packed(records), failed)


def _packed(records: list[int]) -> bytes:
    try:
        return array("q", records).tobytes()
    except OverflowError:  # some file systems use the last bit of an inode, too
        return array("q", [number if number < 1 << 63 else number - (1 << 64) for number in records]).tobytes()


class _Compiled:
    """The same by compiled code, in memory that is used again for every folder."""

    def __init__(self) -> None:
        import numpy as np

        self._entries = np.empty(1 << 16, np.uint8)
        self._record = np.empty(256, np.uint8)
        self._found = np.zeros(2, np.int64)
        self._make_room(4_096)

    def _make_room(self, files: int) -> None:
        import numpy as np

        self._names = np.empty(files * 32, np.uint8)
        self._records = np.empty((files, 4), np.int64)

    def look_into(self, path: bytes, *, is_root: bool) -> Look:
        """See the function of that name."""
        from windlass.kernels.folder_listing import list_folder

        handle = _open(path, is_root)
        try:
            while True:
                answer = list_folder(handle, self._entries, self._record, self._names, self._records, self._found)
                if answer != 1:
                    break
                self._make_room(2 * len(self._records))
                os.lseek(handle, 0, os.SEEK_SET)
            if answer == 2:  # Python's own way says what the matter is
                os.lseek(handle, 0, os.SEEK_SET)
                return _listed(handle)
            size, files = self._found.tolist()
            return Look(self._names[: max(0, size - 1)].tobytes(), self._records[:files].tobytes(), [])
        finally:
            os.close(handle)
