"""What a folder of a Linux file system holds, by the kernel's own calls: two a file at most, and no Python object.

`getdents64` and `statx` have one layout on all processors. `available` says whether this C library has both.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import compiled

_getdents: Any = types.ExternalFunction("getdents64", types.intp(types.int32, types.uintp, types.uintp))
_statx: Any = types.ExternalFunction(
    "statx", types.int32(types.int32, types.uintp, types.int32, types.uint32, types.uintp)
)

_FOLDER, _FILE, _LINK, _UNKNOWN = 4, 8, 10, 0
_NO_FOLLOW, _BASIC_STATS = 0x100, 0x7FF
_TYPE_BITS, _MODE_FOLDER, _MODE_FILE, _MODE_LINK = 0xF000, 0x4000, 0x8000, 0xA000
_D, _F, _L, _S = ord("d"), ord("f"), ord("l"), ord("s")


@cache
def available() -> bool:
    """Whether the system has the calls."""
    if sys.platform != "linux" or sys.byteorder != "little":
        return False
    library = ctypes.CDLL(None)
    return hasattr(library, "getdents64") and hasattr(library, "statx")


@compiled
def _word(data: Any, at: Any, size: Any) -> Any:
    """The signed little-endian number of up to 8 bytes at a place (int64)."""
    word = np.int64(0)
    for place in range(size):
        word |= np.int64(data[at + place]) << np.int64(8 * place)
    return word


@compiled
def list_folder(handle: Any, entries: Any, record: Any, names: Any, records: Any, found: Any) -> Any:
    """List an open folder.

    Args:
        handle: File descriptor of the folder, at its beginning.
        entries: uint8[>= 4096], scratch.
        record: uint8[256], scratch.
        names: uint8[], written: every name, a letter for what it is before it and a zero byte after it.
        records: int64[files, 4], written: size, modification and change in ns, inode of every regular file.
        found: int64[2], written: bytes of `names`, files.

    Returns:
        0; 1 when there is not room enough; 2 when something could not be looked at.
    """
    used, files = 0, 0
    found[0] = found[1] = 0
    while True:
        size = _getdents(handle, entries.ctypes.data, entries.size)
        if size < 0:
            return 2
        if size == 0:
            break
        at = 0
        while at < size:
            length = _word(entries, at + 16, 2)
            kind, name = entries[at + 18], at + 19
            last = name
            while entries[last] != 0:
                last += 1
            dots = entries[name] == 46 and (last == name + 1 or (last == name + 2 and entries[name + 1] == 46))
            if not dots:
                if used + last - name + 2 > names.size:
                    return 1
                letter = _S
                if kind == _FILE or kind == _UNKNOWN:
                    if _statx(handle, entries.ctypes.data + name, _NO_FOLLOW, _BASIC_STATS, record.ctypes.data) != 0:
                        return 2
                    mode = _word(record, 28, 2) & _TYPE_BITS
                    if mode == _MODE_FILE:
                        if files == records.shape[0]:
                            return 1
                        records[files, 0] = _word(record, 40, 8)
                        records[files, 1] = _word(record, 112, 8) * 1_000_000_000 + _word(record, 120, 4)
                        records[files, 2] = _word(record, 96, 8) * 1_000_000_000 + _word(record, 104, 4)
                        records[files, 3] = _word(record, 32, 8)
                        files += 1
                        letter = _F
                    elif mode == _MODE_FOLDER:
                        letter = _D
                    elif mode == _MODE_LINK:
                        letter = _L
                elif kind == _FOLDER:
                    letter = _D
                elif kind == _LINK:
                    letter = _L
                names[used] = letter
                used += 1
                for place in range(name, last + 1):
                    names[used] = entries[place]
                    used += 1
            at += length
    found[0], found[1] = used, files
    return 0
