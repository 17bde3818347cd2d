"""Compiled functions from object files that Numba made once, without Numba and without LLVM.

Importing Numba takes half a second and 60 MB, loading its cached code as much again; an object file of a few functions
needs its sections copied and some addresses filled in. Understood is what LLVM writes for Linux on x86-64; elsewhere
`load` says so, and Numba loads its own cache.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64" and sys.maxsize > 1 << 32
_HEADER = b"\x7fELF\x02\x01"
_RELOCATABLE, _X86_64 = 1, 62
_SYMBOLS, _RELOCATIONS, _ZEROS = 2, 4, 8
_WRITABLE, _IN_MEMORY = 1, 2
_COMMON, _ABSOLUTE = 0xFFF2, 0xFFF1
_ADDRESS, _NEAR, _NEAR_CALL, _DISTANCE = 1, 2, 4, 24
_NEVER_CALLED = ("NRT_", "numba_", "Py", "_Py")
"""Names that only the handling of Python objects and errors mentions; kernels raise nothing and own no array."""
_OWNS_ARRAYS = ("NRT_MemInfo_alloc", "NRT_Allocate", "NRT_Reallocate")
"""Names by which a function that makes an array is known: it needs Numba."""

_maps: list[mmap.mmap] = []


class UnknownCode(Exception):
    """An object file that this loader does not understand."""


@dataclass
class _Section:
    kind: int
    flags: int
    data: bytes
    size: int
    link: int
    applies_to: int
    alignment: int
    place: int = -1


class Kernel:
    """A compiled function, called from Python without the interpreter lock.

    It takes whole numbers and one-dimensional contiguous arrays, and returns a whole number or nothing (0).
    """

    def __init__(self, address: int) -> None:
        self.address = address
        self._typed: dict[int, Any] = {}

    def __call__(self, *arguments: Any) -> int:
        flat: list[int] = []
        for argument in arguments:
            flat += _flattened(argument) if isinstance(argument, np.ndarray) else (argument,)
        call = self._typed.get(len(flat))
        if call is None:
            numbers = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * len(flat)
            call = self._typed.setdefault(len(flat), ctypes.CFUNCTYPE(ctypes.c_int32, *numbers)(self.address))
        result, error = ctypes.c_int64(), ctypes.c_int64()
        status = call(ctypes.addressof(result), ctypes.addressof(error), *flat)
        if status:
            raise RuntimeError(f"a compiled function failed with status {status}")
        return result.value


def _flattened(array: np.ndarray) -> tuple[int, ...]:
    """An array as Numba passes it: owner, parent, elements, bytes each, address, shape, strides."""
    if array.ndim != 1 or not array.flags.c_contiguous:
        raise TypeError(f"an array of shape {array.shape} and strides {array.strides}, expected a flat contiguous one")
    return 0, 0, array.size, array.itemsize, array.ctypes.data, array.size, array.itemsize


def load(code: bytes, symbol: str) -> int:
    """Put an object file into memory; the address of its function `symbol`. It stays there until the process ends.

    Raises:
        UnknownCode: the file is no x86-64 ELF object, or holds what kernels do not need.
    """
    if not SUPPORTED:
        raise UnknownCode(f"object files for {sys.platform} on {platform.machine()}")
    try:
        sections = list(_sections(code))
        table = next(section for section in sections if section.kind == _SYMBOLS)
        symbols = list(struct.iter_unpack("<IBBHQQ", table.data))
        names = sections[table.link].data
        base, addresses = _place(sections, symbols, names)
        for section in sections:
            if section.kind == _RELOCATIONS and sections[section.applies_to].place >= 0:
                _relocate(section.data, sections[section.applies_to].place, addresses, base)
        _protect(base)
        return addresses[next(i for i, entry in enumerate(symbols) if _name(names, entry[0]) == symbol)]
    except (struct.error, IndexError, StopIteration, OSError, ValueError) as error:
        raise UnknownCode(f"a damaged object file: {error}") from error


def _sections(code: bytes) -> Iterator[_Section]:
    kind, machine = struct.unpack_from("<HH", code, 16)
    if code[:6] != _HEADER or (kind, machine) != (_RELOCATABLE, _X86_64):
        raise UnknownCode("not an x86-64 object file")
    (at,) = struct.unpack_from("<Q", code, 0x28)
    size, count, names = struct.unpack_from("<HHH", code, 0x3A)
    raw = [struct.unpack_from("<IIQQQQIIQQ", code, at + size * number) for number in range(count)]
    strings = code[raw[names][4] : raw[names][4] + raw[names][5]]
    for name, kind, flags, _, offset, nbytes, link, info, alignment, _ in raw:
        # Nothing is unwound through kernels.
        flags &= -1 if not _name(strings, name).startswith(".eh_frame") else ~_IN_MEMORY
        data = b"" if kind == _ZEROS else code[offset : offset + nbytes]
        yield _Section(kind, flags, data, nbytes, link, info, max(alignment, 1))


@dataclass
class _Memory:
    """Where an object file lies: its first `fixed` bytes are made read-only and executable at the end."""

    start: int
    size: int
    fixed: int


def _place(sections: list[_Section], symbols: list[tuple[int, ...]], names: bytes) -> tuple[_Memory, list[int]]:
    """Copy sections into memory; it and the address of every symbol."""
    used = 0
    inside = [section for section in sections if section.flags & _IN_MEMORY]
    fixed = 0
    for section in sorted(inside, key=lambda section: section.flags & _WRITABLE):
        if section.flags & _WRITABLE and not fixed:
            used = fixed = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
        used = -(-used // section.alignment) * section.alignment
        section.place, used = used, used + section.size
    fixed = fixed or -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
    common, used = max(used, fixed), max(used, fixed) + 16 * len(symbols)
    memory = mmap.mmap(-1, used)
    _maps.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for section in inside:
        memory[section.place : section.place + len(section.data)] = section.data
        section.place += start
    addresses = []
    for number, (name, _, _, where, value, size) in enumerate(symbols):
        if where == _COMMON:
            if size > 8:
                raise UnknownCode(f"a common symbol of {size} bytes")
            addresses.append(start + common + 16 * number)
        elif where == 0:
            addresses.append(_outside(_name(names, name)))
        else:
            addresses.append(value if where == _ABSOLUTE else max(sections[where].place, 0) + value)
    return _Memory(start, used, fixed), addresses


def _outside(name: str) -> int:
    """The address of a function of the C library; of what must never be called, that of `abort`."""
    if not name:
        return 0
    if name.startswith(_OWNS_ARRAYS):
        raise UnknownCode(f"a call of {name}")
    library = ctypes.CDLL(None)
    try:
        function = library["abort" if name.startswith(_NEVER_CALLED) else name]
    except AttributeError as error:
        raise UnknownCode(f"a call of {name}") from error
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _relocate(entries: bytes, place: int, addresses: list[int], memory: _Memory) -> None:
    for offset, info, addend in struct.iter_unpack("<QQq", entries):
        target, at, kind = addresses[info >> 32] + addend, place + offset, info & 0xFFFFFFFF
        if kind == _ADDRESS:
            data = struct.pack("<Q", target & 0xFFFFFFFFFFFFFFFF)
        elif kind in (_NEAR, _NEAR_CALL):
            data = struct.pack("<i", target - at)
        elif kind == _DISTANCE:
            data = struct.pack("<q", target - at)
        else:
            raise UnknownCode(f"relocation type {kind}")
        if not memory.start <= at <= memory.start + memory.size - len(data):
            raise UnknownCode("a relocation outside its section")
        ctypes.memmove(at, data, len(data))


def _protect(memory: _Memory) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    call = library.mprotect
    call.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if call(memory.start, memory.fixed, mmap.PROT_READ | mmap.PROT_EXEC):
        raise UnknownCode(f"memory that may be executed is refused (error {ctypes.get_errno()})")


def _name(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()
