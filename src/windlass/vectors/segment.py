"""A segment: rows that are written once and never changed, with an index over them or none.

    segments/000012.vectors   the vectors, row by row
    segments/000012.rows      ids, serial numbers, fields, and the ids sorted for lookup
    segments/000012.*         what its index keeps
    segments/000012.meta      written last: sizes, checksums of each MiB, kind and parameters

Rows lie in the order of their serials. What is deleted is known to the collection, not to the segment.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.errors import WorkspaceError
from windlass.core.filters import Filter
from windlass.core.storage import Disk
from windlass.kernels.distances import gather_topk
from windlass.vectors import rows as stored_rows
from windlass.vectors.columns import Column, Numbers, column
from windlass.vectors.errors import CorruptSegment, FormatTooNew
from windlass.vectors.files import FileWriter, MappedFile, read_small, write_small
from windlass.vectors.masks import passing
from windlass.vectors.packing import pack, unpack
from windlass.vectors.rows import Rows, StoredRows, keys_of
from windlass.vectors.schema import Schema

FORMAT = 1
_REMEMBERED_MASKS = 8


class SegmentWriter:
    """Writes a new segment, run by run.

    Nothing of it counts before `finish` returned and a manifest of the collection names it.
    """

    def __init__(self, folder: Path, number: int, schema: Schema, disk: Disk) -> None:
        self.folder, self.number, self.schema, self.disk = folder, number, schema, disk
        self._parts: list[StoredRows] = []
        self._vectors = FileWriter(self.path("vectors"), disk)
        self._receipts: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        return self.folder / f"{self.number:06d}.{name}"

    def append(self, run: StoredRows) -> None:
        """Add rows. Their vectors go to the disk, the rest waits in memory."""
        self._vectors.write(run.vectors)
        none = np.zeros((0, self.schema.dim), run.vectors.dtype)
        self._parts.append(StoredRows(run.ids, run.serials, none, run.scales, run.columns))

    def columns(self) -> dict[str, Column]:
        """The fields of all rows so far."""
        return stored_rows.joined_rows(self._parts).columns

    def add_file(self, name: str, data: bytes) -> None:
        """A file of the index."""
        self._receipts[name] = write_small(self.path(name), data, self.disk)

    def add_written(self, name: str, receipt: dict[str, Any]) -> None:
        """A file of the index that was written under `path(name)` already."""
        self._receipts[name] = receipt

    def written(self, name: str) -> MappedFile:
        """A file that was added."""
        return MappedFile(self.path(name), self._receipts[name], self.disk)

    def close_vectors(self) -> MappedFile:
        """No more rows; the vectors, for building an index over them."""
        self._receipts["vectors"] = self._vectors.finish()
        return self.written("vectors")

    def finish(self, kind: str, parameters: Mapping[str, Any]) -> None:
        """Write the rest; durable when this returns.

        Raises:
            StorageError: The disk refuses.
        """
        if "vectors" not in self._receipts:
            self._receipts["vectors"] = self._vectors.finish()
        whole = stored_rows.joined_rows(self._parts)
        keys = keys_of(whole.ids)
        sorted_rows = np.argsort(keys, kind="stable").astype(np.int32)
        lookup = {"sorted_keys": keys[sorted_rows], "sorted_rows": sorted_rows}
        self.add_file("rows", pack({**whole.packed(with_vectors=False), **lookup}))
        content = {"kind": kind, "parameters": dict(parameters), "rows": len(whole), "files": self._receipts}
        storage.write_manifest(self.path("meta"), FORMAT, content, disk=self.disk)

    def abandon(self) -> None:
        self._vectors.abandon()


class Segment:
    """A written segment, opened.

    Attributes:
        number: Its number; files are named by it.
        kind: The kind of its index; `flat` has none.
        count: Rows, deleted ones included.
        order: int64 `[n]`: which of two rows with equal scores comes first.

    Raises:
        CorruptSegment: A file is missing or of the wrong size, or one of the small ones is damaged.
        FormatTooNew: A newer Windlass wrote it.
    """

    def __init__(self, folder: Path, number: int, schema: Schema, disk: Disk) -> None:
        self.number, self.schema, self._folder, self._disk = number, schema, folder, disk
        content = read_checked(self.path("meta"), FORMAT, disk)
        self.kind, self.parameters = str(content["kind"]), content["parameters"]
        self.count, self._receipts = int(content["rows"]), content["files"]
        self._file = MappedFile(self.path("vectors"), self._receipts["vectors"], disk)
        self.vectors: NDArray[Any] = self._file.bytes.view(schema.stored).reshape(self.count, schema.dim)
        values = self.small_file("rows")
        loaded = stored_rows.unpacked(schema, values, self.vectors)
        self.ids, self.serials, self.scales, self.columns = loaded.ids, loaded.serials, loaded.scales, loaded.columns
        self._sorted_keys, self._sorted_rows = values["sorted_keys"], values["sorted_rows"]
        self.order: Rows = self.ids if schema.ids == "int" else self.serials
        self._masks: OrderedDict[Filter, NDArray[np.bool_]] = OrderedDict()
        self._masks_lock = threading.Lock()

    def path(self, name: str) -> Path:
        return self._folder / f"{self.number:06d}.{name}"

    def small_file(self, name: str) -> dict[str, Any]:
        """The pack in one of its files, checked."""
        data = read_small(self.path(name), self._receipts[name], self._disk)
        try:
            return unpack(data)
        except ValueError as error:
            raise CorruptSegment(self.path(name), 0, str(error)) from error

    def large_file(self, name: str) -> MappedFile:
        return MappedFile(self.path(name), self._receipts[name], self._disk)

    def paths(self) -> list[Path]:
        """All files of it."""
        return [self.path(name) for name in (*self._receipts, "meta")]

    @property
    def bytes_on_disk(self) -> int:
        return sum(int(receipt["size"]) for receipt in self._receipts.values())

    def find(self, ids: NDArray[Any]) -> Rows:
        """int64 `[len(ids)]`: the row of each id, -1 where there is none."""
        keys = keys_of(ids)
        at = np.searchsorted(self._sorted_keys, keys)
        inside = np.minimum(at, max(self.count - 1, 0))
        found = np.full(len(ids), -1, np.int64)
        if self.count:
            hit = self._sorted_keys[inside] == keys
            found[hit] = self._sorted_rows[inside[hit]]
        if self.schema.ids == "str":
            for number in np.flatnonzero(found >= 0):
                found[number] = self._same_text(str(ids[number]), int(at[number]))
        return found

    def _same_text(self, wanted: str, at: int) -> int:
        """Texts may share a key: the one that is really meant, from where the key begins."""
        key = self._sorted_keys[at]
        while at < self.count and self._sorted_keys[at] == key:
            if self.ids[self._sorted_rows[at]] == wanted:
                return int(self._sorted_rows[at])
            at += 1
        return -1

    def passing(self, bound: Filter) -> NDArray[np.bool_]:
        """bool `[n]`: the rows that a filter lets pass. Remembered, for rows never change."""
        with self._masks_lock:
            if bound in self._masks:
                self._masks.move_to_end(bound)
                return self._masks[bound]
        mask = passing(bound, self.columns_of(bound))
        with self._masks_lock:
            self._masks[bound] = mask
            if len(self._masks) > _REMEMBERED_MASKS:
                self._masks.popitem(last=False)
        return mask

    def columns_of(self, bound: Filter) -> dict[str, Column]:
        return id_column(bound, self.ids) | self.columns

    def positions(self, serials: Rows) -> Rows:
        """int64: the rows that have these serials (sorted); serials of other segments are left out."""
        at = np.searchsorted(self.serials, serials)
        at[at == self.count] = 0
        return at[self.serials[at] == serials] if self.count else np.zeros(0, np.int64)

    def verify_vectors(self) -> None:
        """Check all vectors, once.

        Raises:
            CorruptSegment: They are not what was written.
        """
        self._file.verified()

    def exact(self, query: NDArray[np.float32], k: int, chosen: Rows) -> tuple[NDArray[np.float32], Rows]:
        """Scores and rows of the best `k` of `chosen`.

        Raises:
            CorruptSegment: Vectors that are needed are not what was written.
        """
        self._file.verify_rows(chosen, self.schema.dim * self.schema.stored.itemsize)
        metric = self.schema.kernel_metric
        return gather_topk(self.vectors, query, k, chosen, metric=metric, scales=self.scales, order=self.order)

    def run(self, rows: Rows) -> StoredRows:
        """Rows as they are stored, checked.

        Raises:
            CorruptSegment: They are not what was written.
        """
        self._file.verify_rows(rows, self.schema.dim * self.schema.stored.itemsize)
        return StoredRows(self.ids, self.serials, self.vectors, self.scales, self.columns).take(rows)

    def recheck(self) -> None:
        """Read every byte of every file and compare.

        Raises:
            CorruptSegment: The first that is not what was written.
        """
        for name in self._receipts:
            self.large_file(name).recheck()
        if (np.diff(self.serials) <= 0).any():
            raise CorruptSegment(self.path("rows"), 0, "serial numbers are out of order")


def id_column(bound: Filter, ids: NDArray[Any]) -> dict[str, Column]:
    """The ids as a field called `id`, when the filter asks for it."""
    if "id" not in bound.fields():
        return {}
    return {"id": Numbers("int", ids) if ids.dtype == np.int64 else column("id", "str", ids.tolist())}


def read_checked(path: Path, version: int, disk: Disk) -> dict[str, Any]:
    """A manifest's content.

    Raises:
        CorruptSegment: It is missing or damaged.
        FormatTooNew: A newer Windlass wrote it.
    """
    try:
        return storage.read_manifest(path, version, disk=disk)
    except FileNotFoundError:
        raise CorruptSegment(path, 0, "the file is missing") from None
    except WorkspaceError as error:
        if " has format " in error.what:
            raise FormatTooNew(error.what, hint="use a newer windlass to open it") from error
        raise CorruptSegment(path, 0, "it is no manifest, or its checksum does not match") from error
