"""A safetensors file as memory-mapped arrays: nothing is read before it is used, nothing is trusted before it
is checked.

The header is a JSON object in front of the data. Every claim in it (length, types, shapes, offsets) is held
against the size of the file before an array is made, so a truncated or lying file is an error here and not a
crash later.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np

from windlass.core.errors import ModelError
from windlass.core.storage import write_atomic_parts

_MAX_HEADER = 100_000_000
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: its safetensors type name, its shape, and its first and past-the-end byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read and check the header only; costs a few milliseconds whatever the size of the file.

    Raises:
        ModelError: The file is truncated, is no safetensors file, or its header contradicts itself.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _damaged(path, f"it ends after {len(prefix)} bytes")
            (length,) = struct.unpack("<Q", prefix)
            if length > _MAX_HEADER:
                raise _damaged(path, "it does not begin with a safetensors header")
            if 8 + length > size:
                raise _damaged(path, f"its header needs {8 + length} bytes, the file has {size}")
            raw = file.read(length)
    except OSError as error:
        raise ModelError(f"cannot read the model file {path}: {error.strerror}") from error
    try:
        fields = json.loads(raw, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise _damaged(path, "its header is not a JSON object")
    base = 8 + length
    return {
        str(name): _entry(path, name, field, base, size) for name, field in fields.items() if name != "__metadata__"
    }


def open_tensors(path: Path) -> dict[str, np.ndarray]:
    """Map every tensor of the file, read-only. `BF16` tensors arrive widened to float32 (the only copy made).

    Raises:
        ModelError: As `read_header`.

    Example:
        >>> import tempfile, safetensors.numpy
        >>> folder = Path(tempfile.mkdtemp())
        >>> safetensors.numpy.save_file({"w": np.ones((2, 3), np.float32)}, folder / "m.safetensors")
        >>> open_tensors(folder / "m.safetensors")["w"].shape
        (2, 3)
    """
    header = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    tensors = {}
    for name, entry in header.items():
        view = data[entry.start : entry.stop].view(np.ndarray)
        # Offsets need not be multiples of the item size; NumPy reads such arrays, only slower.
        array = np.frombuffer(view, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)
        if entry.dtype == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = array
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file, all or nothing, one tensor in memory at a time beside the caller's.

    Raises:
        ModelError: a tensor has a type that the format does not know.
        StorageError: it did not reach the disk.
    """
    types = {np.dtype(code): name for name, code in _DTYPES.items() if name != "BF16"}
    header: dict[str, object] = {}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in types:
            raise ModelError(f"{path}: tensor {name} of type {tensor.dtype} cannot be stored")
        header[name] = {
            "dtype": types[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)

    def parts() -> Iterator[bytes]:
        yield struct.pack("<Q", len(raw)) + raw
        for tensor in tensors.values():
            yield np.ascontiguousarray(tensor).tobytes()

    write_atomic_parts(path, parts())


def _entry(path: Path, name: str, field: object, base: int, size: int) -> TensorEntry:
    if not isinstance(field, dict) or field.get("dtype") not in _DTYPES:
        kind = field.get("dtype") if isinstance(field, dict) else field
        raise ModelError(f"model file {path}: tensor {name!r} has the unsupported type {kind!r}")
    shape, offsets = field.get("shape"), field.get("data_offsets")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise _damaged(path, f"tensor {name!r} has no valid shape and offsets")
    start, stop = base + offsets[0], base + offsets[1]
    needed = math.prod(shape) * np.dtype(_DTYPES[field["dtype"]]).itemsize
    if stop - start != needed:
        raise _damaged(path, f"tensor {name!r} claims {stop - start} bytes, its shape needs {needed}")
    if stop > size:
        raise _damaged(path, f"tensor {name!r} ends at byte {stop}, the file has {size}")
    return TensorEntry(field["dtype"], tuple(shape), start, stop)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(f"model file truncated or damaged: {path}: {why}", hint="copy or download it again")
