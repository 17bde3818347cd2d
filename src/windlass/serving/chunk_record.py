"""The keys and values of one chunk, where they came from, and the file that keeps them.

A file is written beside its name and swapped in when it is whole, so `kill -9` leaves no half of one. Its head and each
layer carry a checksum; what does not pass is never used.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import WorkspaceError

MAGIC = b"WLCHUNK\x01"
_HEAD = struct.Struct("<8sII")


@dataclass(frozen=True, slots=True, eq=False)
class ChunkRecord:
    """One variant of a chunk: computed once, at `position`, behind the chunks in `attended`.

    Attributes:
        owner: Names tenant, adapter, weights and the words before all chunks; records of other owners are not found.
        content: Digest of the owner and the chunk's tokens.
        position: Rotary position of its first key.
        attended: Attention of all its tokens to each earlier chunk, in their order.
        outside: float32 [tokens], of each token to all earlier chunks.
        impact: `chunk_plan.context_impact`.
        data: uint16 [layers, 2, key_heads, tokens, head_dim], bits of float16: keys as rotated, then values.
    """

    owner: bytes
    content: bytes
    position: int
    attended: dict[bytes, float]
    outside: NDArray[np.float32]
    impact: float
    data: NDArray[np.uint16]

    @property
    def tokens(self) -> int:
        return int(self.data.shape[3])

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.outside.nbytes

    @property
    def name(self) -> str:
        """Of its file: the content, then the context it was computed in."""
        context = zlib.crc32(b"".join(self.attended))
        return f"{self.content.hex()}-{context:08x}.kv"


def write_record(path: Path, record: ChunkRecord, *, disk: storage.Disk = storage.LOCAL_DISK) -> None:
    """Put a record at `path`, all or nothing.

    Raises:
        StorageError: the disk is full or failing.
    """
    layers = [np.ascontiguousarray(layer).tobytes() for layer in record.data]
    head = json.dumps(
        {
            "owner": record.owner.hex(),
            "content": record.content.hex(),
            "position": record.position,
            "attended": [[content.hex(), weight] for content, weight in record.attended.items()],
            "outside": [float(value) for value in record.outside],
            "impact": record.impact,
            "shape": list(record.data.shape),
            "checksums": [zlib.crc32(layer) for layer in layers],
        }
    ).encode()
    storage.write_atomic_parts(path, (_HEAD.pack(MAGIC, len(head), zlib.crc32(head)), head, *layers), disk=disk)


def read_record(path: Path, owner: bytes, *, disk: storage.Disk = storage.LOCAL_DISK) -> ChunkRecord:
    """The record at `path`.

    Raises:
        WorkspaceError: it is cut, damaged, of another format, or of another owner.
        OSError: it cannot be read.
    """
    raw = disk.read(path)
    try:
        magic, length, checksum = _HEAD.unpack_from(raw)
        head = raw[_HEAD.size : _HEAD.size + length]
        if magic != MAGIC or zlib.crc32(head) != checksum:
            raise ValueError("its head is damaged or of another format")
        return _record(json.loads(head), memoryview(raw)[_HEAD.size + length :], owner)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(f"{path} is not a chunk that can be used: {error}", hint="it is computed again") from error


def _record(head: dict[str, Any], body: memoryview, owner: bytes) -> ChunkRecord:
    shape = tuple(head["shape"])
    if bytes.fromhex(head["owner"]) != owner:
        raise ValueError("it belongs to another model, tenant or system prompt")
    size = 2 * int(np.prod(shape[1:]))
    if len(body) != size * shape[0]:
        raise ValueError(f"it has {len(body)} bytes of keys and values, {size * shape[0]} are due")
    for layer, checksum in enumerate(head["checksums"]):
        if zlib.crc32(body[layer * size : (layer + 1) * size]) != checksum:
            raise ValueError(f"layer {layer} is damaged")
    return ChunkRecord(
        owner,
        bytes.fromhex(head["content"]),
        int(head["position"]),
        {bytes.fromhex(content): float(weight) for content, weight in head["attended"]},
        np.array(head["outside"], np.float32),
        float(head["impact"]),
        np.frombuffer(body, np.uint16).reshape(shape),
    )
