"""The newest rows, held in memory until they become a segment; searched exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.filters import Filter
from windlass.kernels.distances import NO_SCALES, gather_topk
from windlass.vectors.columns import Column, joined
from windlass.vectors.masks import passing
from windlass.vectors.rows import Rows, StoredRows
from windlass.vectors.schema import Schema
from windlass.vectors.segment import id_column


class MemoryRows:
    """Rows in the order in which they came.

    A reader holds a count of rows and sees those for ever: rows below it never change, and arrays that grew too small
    are replaced, not moved.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.count = 0
        self._where: dict[int | str, int] = {}
        self._ids: NDArray[Any] = np.empty(0, np.int64 if schema.ids == "int" else object)
        self._serials = np.empty(0, np.int64)
        self._scales = np.empty(0, np.float32)
        self._vectors: NDArray[Any] = np.empty((0, schema.dim), schema.stored)
        self._columns: dict[str, list[Column]] = {name: [] for name in schema.fields}

    def append(self, run: StoredRows) -> None:
        """Add rows. An id that is here already is found at its newest row."""
        first, self.count = self.count, self.count + len(run)
        if self.count > len(self._ids):
            size = max(64, 2 * self.count)
            self._ids, self._serials = _grown(self._ids, size), _grown(self._serials, size)
            self._vectors = _grown(self._vectors, size)
            if self.schema.dtype == "i8":
                self._scales = _grown(self._scales, size)
        new = slice(first, self.count)
        self._ids[new], self._serials[new], self._vectors[new] = run.ids, run.serials, run.vectors
        if self.schema.dtype == "i8":
            self._scales[new] = run.scales
        self._where.update(zip(run.ids.tolist(), range(first, self.count), strict=True))
        for name, parts in self._columns.items():
            self._columns[name] = _merged([*parts, run.columns[name]])

    def find(self, ids: NDArray[Any]) -> Rows:
        """int64: the newest row of each id, deleted or not; -1 where there is none."""
        where = self._where
        return np.fromiter((where.get(row_id, -1) for row_id in ids.tolist()), np.int64, len(ids))

    def view(self) -> MemoryView:
        return MemoryView(
            self.schema,
            self.count,
            self._ids,
            self._serials,
            self._vectors,
            self._scales,
            dict(self._columns),
        )


class MemoryView:
    """The rows that were there at one moment; the same questions as a `Segment` answers."""

    kind, number, bytes_on_disk = "flat", 0, 0

    def __init__(
        self,
        schema: Schema,
        count: int,
        ids: NDArray[Any],
        serials: Rows,
        vectors: NDArray[Any],
        scales: NDArray[np.float32],
        columns: dict[str, list[Column]],
    ) -> None:
        self.schema, self.count = schema, count
        self.ids, self.serials, self.vectors = ids[:count], serials[:count], vectors[:count]
        self.scales = scales[:count] if schema.dtype == "i8" else NO_SCALES
        self.order: Rows = self.ids if schema.ids == "int" else self.serials
        self._columns = columns

    def passing(self, bound: Filter) -> NDArray[np.bool_]:
        return passing(bound, id_column(bound, self.ids) | self._joined(bound.fields()))

    def positions(self, serials: Rows) -> Rows:
        """The rows with these serials (sorted); a serial may stand twice, its older row deleted."""
        if not len(serials) or not self.count:
            return np.zeros(0, np.int64)
        at = np.searchsorted(serials, self.serials)
        at[at == len(serials)] = 0
        return np.flatnonzero(serials[at] == self.serials)

    def exact(self, query: NDArray[np.float32], k: int, chosen: Rows) -> tuple[NDArray[np.float32], Rows]:
        metric = self.schema.kernel_metric
        return gather_topk(self.vectors, query, k, chosen, metric=metric, scales=self.scales, order=self.order)

    def run(self, rows: Rows) -> StoredRows:
        columns = self._joined(self._columns)
        return StoredRows(self.ids, self.serials, self.vectors, self.scales, columns).take(rows)

    def _joined(self, names: Any) -> dict[str, Column]:
        return {name: joined(parts) for name, parts in self._columns.items() if name in names and parts}


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    larger = np.empty((size, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger


def _merged(parts: list[Column]) -> list[Column]:
    """Runs that double in length, so that adding row by row copies each row a few times only."""
    while len(parts) > 1 and len(parts[-2]) < 2 * len(parts[-1]):
        parts = [*parts[:-2], joined(parts[-2:])]
    return parts
