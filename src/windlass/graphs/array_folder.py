"""Named arrays and a few plain values as a folder: one file an array, a manifest with checksums written last.

Array files carry their checksum in their name, so that writing over an old folder leaves its readers what they
opened, and a writer that dies leaves the old manifest in force.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from windlass.core import storage
from windlass.core.errors import GraphFormatError, WorkspaceError

_MANIFEST = "manifest.json"


def save_arrays(
    path: Path, kind: str, version: int, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]
) -> None:
    """Write a folder of arrays.

    Args:
        kind, version: What it is and in which format; `open_arrays` asks for both.
        values: What JSON can hold.

    Raises:
        StorageError: It did not reach the disk; what stood there before still does.
    """
    storage.make_folder(path)
    entries = {}
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        digest = hashlib.blake2b(data, digest_size=16).hexdigest()
        file = f"{name}-{digest[:12]}.bin"
        storage.write_atomic(path / file, data)  # type: ignore[arg-type]
        entries[name] = {"file": file, "dtype": array.dtype.str, "shape": list(array.shape), "checksum": digest}
    storage.write_manifest(path / _MANIFEST, version, {"kind": kind, "arrays": entries, "values": dict(values)})
    used = {entry["file"] for entry in entries.values()}
    for old in path.glob("*.bin"):
        if old.name not in used:
            with contextlib.suppress(OSError):  # a reader on Windows may hold it; it is in nobody's way
                old.unlink()


def open_arrays(path: Path, kind: str, version: int, *, mmap: bool = True) -> tuple[dict[str, np.ndarray], Any]:
    """What `save_arrays` wrote, every byte checked; writing to them does not change the files.

    Args:
        mmap: Leave the arrays on disk, to be paged in, instead of reading them.

    Raises:
        GraphFormatError: Nothing of that kind is there, or a file is missing, cut, changed or of another version.
    """
    try:
        manifest = storage.read_manifest(path / _MANIFEST, version)
    except FileNotFoundError as error:
        raise GraphFormatError(f"{path} holds no {kind}", hint="check the path") from error
    except WorkspaceError as error:
        raise GraphFormatError(error.what, hint=error.hint) from error
    if manifest.get("kind") != kind:
        raise GraphFormatError(f"{path} holds a {manifest.get('kind')}, not a {kind}", hint="check the path")
    arrays = {}
    for name, entry in manifest["arrays"].items():
        arrays[name] = _read(path / entry["file"], entry, mmap)
    return arrays, manifest["values"]


def _read(path: Path, entry: Mapping[str, Any], mmap: bool) -> np.ndarray:
    shape, dtype = tuple(entry["shape"]), np.dtype(entry["dtype"])
    wanted = int(np.prod(shape)) * dtype.itemsize
    try:
        if path.stat().st_size != wanted:
            raise GraphFormatError(f"{path} has {path.stat().st_size} bytes, {wanted} are due", hint="make it again")
        if not wanted:
            return np.empty(shape, dtype)
        # Copy-on-write: kernels are compiled once for arrays in memory and on disk, and the file stays what it is.
        array = np.memmap(path, dtype, "c", shape=shape) if mmap else np.fromfile(path, dtype).reshape(shape)
    except OSError as error:
        raise GraphFormatError(f"cannot read {path}: {error.strerror or error}", hint="make it again") from error
    plain = np.asarray(array)
    if hashlib.blake2b(plain.reshape(-1).view(np.uint8).data, digest_size=16).hexdigest() != entry["checksum"]:
        raise GraphFormatError(f"{path} is damaged: its checksum does not match", hint="make it again")
    return plain
