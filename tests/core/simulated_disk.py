"""A disk in memory that can lose power.

It keeps a log of every operation. `power_cuts` yields what the platter may hold when the power goes after any
operation of the log: of each file's unsynced writes any set of 512-byte blocks arrived (or none, or only the new
length), and of each folder's unsynced changes of names any subset. What POSIX promises after `fsync` of a file (its
bytes) and of a folder (its names) holds, and nothing beyond it does.

Besides power cuts there are two gentler faults: `die_after` ends the *process* at an operation, the disk's own cache
survives; and `fail` makes calls raise `OSError`, where a failed `fsync` also forgets the bytes that it covered, as
Linux does.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/state")
_BLOCK = 512
_FOLDER = -1


class ProcessDied(BaseException):
    """The simulated process was killed; its disk accepts nothing until `restart`."""


class NameChange(NamedTuple):
    """Entries of one folder that change together: path to inode, or None for an entry that goes."""

    folder: Path
    entries: tuple[tuple[Path, int | None], ...]


class Write(NamedTuple):
    inode: int
    offset: int
    data: bytes


class FileSync(NamedTuple):
    inode: int


class FolderSync(NamedTuple):
    folder: Path


class LostWrites(NamedTuple):
    inode: int


Operation = NameChange | Write | FileSync | FolderSync | LostWrites


@dataclass
class Fault:
    """`number` fails the nth call from now on, and all later ones too when `lasting`."""

    error: int
    number: int
    lasting: bool = False

    def strikes(self, call: int) -> bool:
        return call == self.number or (self.lasting and call > self.number)


class SimulatedDisk:
    """Behaves as `windlass.core.storage.Disk`, below `ROOT`, which exists from the start."""

    def __init__(self, image: Image | None = None) -> None:
        """A disk as it is after the power came back to `image`; an empty one without."""
        image = image or Image(0, {}, frozenset({ROOT}))
        inodes = {path: inode for inode, path in enumerate(image.files)}
        self.log: list[Operation] = []
        self.calls = 0
        self._image = image
        self._names = dict.fromkeys(image.folders, _FOLDER) | inodes
        self._contents = {inode: bytearray(image.files[path]) for path, inode in inodes.items()}
        self._fault: Fault | None = None
        self._dies_after: int | None = None

    def fail(self, fault: Fault | None) -> None:
        self._fault = fault
        self.calls = 0

    def die_after(self, calls: int) -> None:
        self._dies_after = calls
        self.calls = 0

    def restart(self) -> None:
        self._dies_after = None

    def create(self, path: Path) -> SimulatedFile:
        self._call()
        self._need_folder(path.parent)
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        inode = len(self._contents)
        self._contents[inode] = bytearray()
        self._rename(path.parent, (path, inode))
        return SimulatedFile(self, inode)

    def write(self, inode: int, offset: int, data: bytes) -> None:
        self._call()
        self.log.append(Write(inode, offset, data))
        self._contents[inode][offset : offset + len(data)] = data

    def fsync(self, file: io.RawIOBase) -> None:
        assert isinstance(file, SimulatedFile)
        try:
            self._call()
        except OSError:
            self.log.append(LostWrites(file.inode))
            raise
        self.log.append(FileSync(file.inode))

    def make_folder(self, path: Path) -> None:
        self._call()
        self._need_folder(path.parent)
        if path in self._names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self._rename(path.parent, (path, _FOLDER))

    def fsync_folder(self, path: Path) -> None:
        self._call()
        self._need_folder(path)
        self.log.append(FolderSync(path))

    def rename(self, source: Path, target: Path) -> None:
        self._call()
        assert source.parent == target.parent, "a rename between folders is not modelled"
        self._need_file(source)
        self._rename(source.parent, (source, None), (target, self._names[source]))

    def remove(self, path: Path) -> None:
        self._call()
        self._need_file(path)
        self._rename(path.parent, (path, None))

    def read(self, path: Path) -> bytes:
        self._call(writes=False)
        self._need_file(path)
        return bytes(self._contents[self._names[path]])

    def files(self, folder: Path) -> list[Path]:
        self._call(writes=False)
        below = f"{folder}/"
        return [path for path, inode in self._names.items() if inode != _FOLDER and str(path).startswith(below)]

    def power_cuts(self, start: int = 0) -> Iterator[Image]:
        """What may be left when the power goes after `start`, `start + 1`, ... operations of the log."""
        platter = _Platter(self._image)
        for operations in range(len(self.log) + 1):
            if operations:
                platter.apply(self.log[operations - 1])
            if operations >= start:
                yield from platter.images(operations)

    def _call(self, *, writes: bool = True) -> None:
        if self._dies_after is not None and self.calls >= self._dies_after:
            raise ProcessDied
        self.calls += 1
        if self._fault is None or (not writes and self._fault.error in (errno.ENOSPC, errno.EDQUOT)):
            return
        if self._fault.strikes(self.calls):
            raise OSError(self._fault.error, os.strerror(self._fault.error))

    def _rename(self, folder: Path, *entries: tuple[Path, int | None]) -> None:
        self.log.append(NameChange(folder, entries))
        _apply_names(self._names, entries)

    def _need_folder(self, path: Path) -> None:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if self._names[path] != _FOLDER:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))

    def _need_file(self, path: Path) -> None:
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if self._names[path] == _FOLDER:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


class SimulatedFile(io.RawIOBase):
    def __init__(self, disk: SimulatedDisk, inode: int) -> None:
        self._disk = disk
        self.inode = inode
        self._offset = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._disk.write(self.inode, self._offset, data)
        self._offset += len(data)
        return len(data)


@dataclass(frozen=True)
class Image:
    """What the platter holds after a power cut that came `operations` operations into the log."""

    operations: int
    files: dict[Path, bytes]
    folders: frozenset[Path]


@dataclass
class _Stored:
    synced: bytes = b""
    unsynced: list[Write] = field(default_factory=list)

    def whole(self) -> bytes:
        content = bytearray(self.synced)
        for write in self.unsynced:
            content[write.offset : write.offset + len(write.data)] = write.data
        return bytes(content)

    def variants(self) -> list[bytes]:
        """Everything that a power cut may leave of the file."""
        if not self.unsynced:
            return [self.synced]
        whole = self.whole()
        old = self.synced.ljust(len(whole), b"\0")
        starts = [at for at in range(0, len(whole), _BLOCK) if whole[at : at + _BLOCK] != old[at : at + _BLOCK]]
        found = {self.synced, old}
        for arrived in itertools.product((False, True), repeat=len(starts)):
            torn, length = bytearray(old), len(self.synced)
            for at in itertools.compress(starts, arrived):
                torn[at : at + _BLOCK] = whole[at : at + _BLOCK]
                length = max(length, min(at + _BLOCK, len(whole)))
            found |= {bytes(torn), bytes(torn[:length])}
        return sorted(found)


class _Platter:
    """What is certainly on the disk, and what may or may not be."""

    def __init__(self, image: Image) -> None:
        inodes = {path: inode for inode, path in enumerate(image.files)}
        self._names = dict.fromkeys(image.folders, _FOLDER) | inodes
        self._changes: list[NameChange] = []
        self._contents = {inode: _Stored(image.files[path]) for path, inode in inodes.items()}

    def apply(self, operation: Operation) -> None:
        match operation:
            case NameChange():
                self._changes.append(operation)
            case Write(inode=inode):
                self._contents.setdefault(inode, _Stored()).unsynced.append(operation)
            case FileSync(inode=inode):
                self._contents[inode] = _Stored(self._contents.get(inode, _Stored()).whole())
            case LostWrites(inode=inode):
                self._contents.setdefault(inode, _Stored()).unsynced.clear()
            case FolderSync(folder=folder):
                for change in self._changes:
                    if change.folder == folder:
                        _apply_names(self._names, change.entries)
                self._changes = [change for change in self._changes if change.folder != folder]

    def images(self, operations: int) -> Iterator[Image]:
        seen = set()
        for arrived in itertools.product((False, True), repeat=len(self._changes)):
            names = dict(self._names)
            for change in itertools.compress(self._changes, arrived):
                _apply_names(names, change.entries)
            reachable = {path: inode for path, inode in names.items() if _is_reachable(path, names)}
            state = frozenset(reachable.items())
            if state in seen:
                continue
            seen.add(state)
            folders = frozenset(path for path, inode in reachable.items() if inode == _FOLDER)
            files = {path: inode for path, inode in reachable.items() if inode != _FOLDER}
            choices = [self._contents.get(inode, _Stored()).variants() for inode in files.values()]
            for contents in itertools.product(*choices):
                yield Image(operations, dict(zip(files, contents, strict=True)), folders)


def _apply_names(names: dict[Path, int], entries: tuple[tuple[Path, int | None], ...]) -> None:
    for path, inode in entries:
        if inode is None:
            names.pop(path, None)
        else:
            names[path] = inode


def _is_reachable(path: Path, names: dict[Path, int]) -> bool:
    while path != ROOT:
        path = path.parent
        if names.get(path) != _FOLDER:
            return False
    return True
