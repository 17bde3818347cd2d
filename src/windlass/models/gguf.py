"""GGUF files: one file with metadata, tokenizer and quantised tensors.

The header is checked by this module before anything is allocated: every count, length, offset and size
against the bytes that are left in the file, so a damaged or hostile file ends in a `ModelError` and never in
a large allocation.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from windlass.core.errors import ModelError
from windlass.models.block_formats import FORMATS, OTHER_NAMES, Bytes, Floats, QuantTensor, split_blocks, to_float
from windlass.models.config import ModelConfig, config_from_gguf
from windlass.models.mapped import MappedFile, TensorMeta, sample_digest

MAGIC = b"GGUF"
STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "<u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
LONGEST_NAME = 256
LARGEST_HEADER_COUNT = 1 << 16
"""Tensors or metadata entries; the largest known files have a few thousand."""
LARGEST_STRING_ARRAY = 1 << 21
"""Strings in one array; the largest known vocabularies have 262,144 entries and about as many merges."""
DAMAGED = "the file is truncated or damaged; fetch it again"


class _Cursor:
    """Walks the header; each step checks the bytes that are left before it takes any."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.at = file, 0
        self.budget = LARGEST_STRING_ARRAY

    def fail(self, what: str) -> ModelError:
        return ModelError(f"{self.file.path}: {what} at byte {self.at}", hint=DAMAGED)

    def take(self, nbytes: int, what: str) -> int:
        start = self.at
        if nbytes > self.file.size - start:
            raise self.fail(f"{what} needs {nbytes} bytes, {self.file.size - start} are left")
        self.at = start + nbytes
        return start

    def number(self, code: str, what: str) -> int:
        start = self.take(struct.calcsize(code), what)
        return int(struct.unpack_from("<" + code, self.file.bytes, start)[0])

    def string(self, what: str, *, longest: int | None = None, strict: bool = False) -> str:
        length = self.number("Q", what)
        if longest is not None and length > longest:
            raise self.fail(f"{what} is {length} bytes long, at most {longest} are allowed")
        start = self.take(length, what)
        raw = bytes(self.file.bytes[start : start + length])
        try:
            return raw.decode("utf-8", "strict" if strict else "replace")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string(what)
        if kind == ARRAY:
            return self.array(what, depth)
        if kind not in SCALARS:
            raise self.fail(f"{what} has unknown value type {kind}")
        found = self.scalars(kind, 1, what)[0].item()
        return bool(found) if kind == BOOL else found

    def scalars(self, kind: int, count: int, what: str) -> np.ndarray[Any, Any]:
        dtype = np.dtype(SCALARS[kind])
        start = self.take(count * dtype.itemsize, what)
        return np.frombuffer(self.file.bytes, dtype, count, start)

    def strings(self, count: int, what: str) -> list[str]:
        """What `count` calls of `string` would read; vocabularies hold so many that a call each takes half a second."""
        data, at, end, unpack = self.file.bytes, self.at, self.file.size, struct.Struct("<Q").unpack_from
        found = []
        for _ in range(count):
            length = unpack(data, at)[0] if end - at >= 8 else end
            if length > end - at - 8:
                self.at = at
                found.append(self.string(what))  # says what is wrong
            found.append(str(data[at + 8 : at + 8 + length], "utf-8", "replace"))
            at += 8 + length
        self.at = at
        return found

    def array(self, what: str, depth: int) -> Any:
        kind, count = self.number("I", what), self.number("Q", what)
        if kind in SCALARS:
            return self.scalars(kind, count, what)
        if kind not in (STRING, ARRAY) or depth > 3:
            raise self.fail(f"{what} is an array of unknown type {kind} or nested too deeply")
        self.budget -= count
        if count > (self.file.size - self.at) // 8 or self.budget < 0:
            raise self.fail(f"{what} claims {count} entries")
        if kind == STRING:
            return self.strings(count, what)
        return [self.value(kind, what, depth + 1) for _ in range(count)]


class GGUFSource:
    """A GGUF file as a `WeightSource`: the header in memory, the tensors mapped and decoded one at a time.

    Attributes:
        config: The decoder's shape.
        metadata: Key to number, string, list of strings, or NumPy array.

    Raises:
        NotFound: there is no such file.
        ModelError: the file is damaged, of an unknown architecture, or one part of several.

    Example:
        source = GGUFSource(Path("model.gguf"))
        source.tensor("blk.0.attn_q.weight")      # float32 [out, in]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = MappedFile(path)
        self.metadata, self._tensors = _read_header(self.file)
        shapes = {name: meta.shape for name, meta in self._tensors.items()}
        self.config: ModelConfig = config_from_gguf(self.metadata, shapes, str(path))

    @property
    def fingerprint(self) -> str:
        return sample_digest([self.file])

    def names(self) -> list[str]:
        return list(self._tensors)

    def meta(self, name: str) -> TensorMeta:
        """Shape and format of a tensor; `ModelError` when the file has none of that name."""
        found = self._tensors.get(name)
        if found is None:
            raise ModelError(f"{self.path}: tensor {name} is missing")
        return found

    def tensor(self, name: str) -> Floats:
        """The weights as float32, rows first. `f32` tensors are views of the map: do not write to them."""
        meta = self._readable(name)
        return to_float(self.file.slice(meta.offset, meta.nbytes, f"tensor {name}"), meta.format, meta.shape)

    def quantized(self, name: str) -> QuantTensor | None:
        """Codes and scales of a block-quantised matrix, None when the tensor is stored as plain numbers."""
        meta = self._readable(name)
        if meta.format in ("f32", "f16", "bf16") or len(meta.shape) != 2:
            return None
        raw = self.file.slice(meta.offset, meta.nbytes, f"tensor {name}")
        return split_blocks(raw, meta.format, (meta.shape[0], meta.shape[1]))

    def raw(self, name: str) -> Bytes:
        """The tensor's bytes as they lie in the file, uint8, not copied."""
        meta = self._readable(name)
        return self.file.slice(meta.offset, meta.nbytes, f"tensor {name}")

    def release(self) -> None:
        """Stop counting pages that were read as this process's memory; the next read maps them again."""
        self.file.release()

    def _readable(self, name: str) -> TensorMeta:
        meta = self.meta(name)
        if meta.nbytes < 0:
            readable = ", ".join(block.name.upper() for block in FORMATS.values())
            raise ModelError(
                f"{self.path}: tensor {name} has unsupported tensor type {meta.format}",
                hint=f"readable: {readable}",
            )
        return meta


def _read_header(file: MappedFile) -> tuple[Mapping[str, Any], dict[str, TensorMeta]]:
    cursor = _Cursor(file)
    start = cursor.take(4, "magic")
    if bytes(file.bytes[start:4]) != MAGIC:
        raise ModelError(f"{file.path} is not a GGUF file: it starts with {bytes(file.bytes[:4])!r}")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        raise ModelError(f"{file.path}: GGUF version {version} is not supported, only 2 and 3 (little-endian)")
    n_tensors, n_entries = cursor.number("Q", "tensor count"), cursor.number("Q", "metadata count")
    if max(n_tensors, n_entries) > LARGEST_HEADER_COUNT:
        raise cursor.fail(f"{n_tensors} tensors and {n_entries} metadata entries are claimed")
    metadata: dict[str, Any] = {}
    for _ in range(n_entries):
        key = cursor.string("metadata key", longest=1 << 16, strict=True)
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.number("I", key), key)
    if metadata.get("split.count", 1) not in (0, 1):
        raise ModelError(f"{file.path} is one part of a split model", hint="merge the parts into one file first")
    return metadata, _read_tensor_table(cursor, n_tensors, _alignment(metadata, cursor))


def _alignment(metadata: Mapping[str, Any], cursor: _Cursor) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r}, expected a power of two")
    return alignment


def _read_tensor_table(cursor: _Cursor, count: int, alignment: int) -> dict[str, TensorMeta]:
    claimed: dict[str, tuple[tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.string("tensor name", longest=LONGEST_NAME, strict=True)
        if name in claimed:
            raise cursor.fail(f"tensor {name} occurs twice")
        n_dims = cursor.number("I", name)
        if not 1 <= n_dims <= 4:
            raise cursor.fail(f"tensor {name} has {n_dims} dimensions")
        fastest_first = [cursor.number("Q", name) for _ in range(n_dims)]
        claimed[name] = (tuple(reversed(fastest_first)), cursor.number("I", name), cursor.number("Q", name))
    data_start = -(-cursor.at // alignment) * alignment
    return {
        name: _place_tensor(cursor, name, shape, kind, offset, data_start, alignment)
        for name, (shape, kind, offset) in claimed.items()
    }


def _place_tensor(
    cursor: _Cursor,
    name: str,
    shape: tuple[int, ...],
    kind: int,
    offset: int,
    data_start: int,
    alignment: int,
) -> TensorMeta:
    if kind in OTHER_NAMES:
        return TensorMeta(name, shape, OTHER_NAMES[kind], data_start + offset, -1)
    block = FORMATS.get(kind)
    if block is None:
        raise cursor.fail(f"tensor {name} has unknown type number {kind}")
    weights = 1
    for size in shape:
        weights *= size
    if weights == 0 or shape[-1] % block.weights:
        raise cursor.fail(
            f"tensor {name} of type {block.name} has shape {shape}, rows must fill blocks of {block.weights}"
        )
    nbytes = weights // block.weights * block.nbytes
    if offset % alignment or data_start + offset + nbytes > cursor.file.size:
        raise cursor.fail(
            f"tensor {name} claims bytes {data_start + offset} to {data_start + offset + nbytes} "
            f"of a file of {cursor.file.size}"
        )
    return TensorMeta(name, shape, block.name, data_start + offset, nbytes)
