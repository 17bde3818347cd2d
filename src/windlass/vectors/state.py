"""What a collection holds at one moment, and how a logged change makes the next.

The same `apply` runs when a change is made and when the log is read again after a crash, so both end in the same
state. A `View` is what a search sees; it never changes, so searches need no lock and see whole changes only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.access import Directory
from windlass.vectors import rows as stored_rows
from windlass.vectors.indexes import Allowed, Index
from windlass.vectors.log import Record
from windlass.vectors.memory import MemoryRows, MemoryView
from windlass.vectors.packing import pack, unpack
from windlass.vectors.rows import Rows, StoredRows
from windlass.vectors.schema import Schema
from windlass.vectors.segment import Segment
from windlass.vectors.tenants import TenantRows

Mask = NDArray[np.bool_]

ADD, DELETE, GRANT, REVOKE, DROP, DIRECTORY = range(1, 7)


@dataclass(frozen=True)
class Part:
    """Rows that are searched together: a segment, or what is in memory.

    Attributes:
        source: Where they are.
        live: bool `[n]`: those that are not deleted.
        index: What finds them without looking at all, or None.
    """

    source: Segment | MemoryView
    live: Mask
    index: Index | None

    @cached_property
    def live_rows(self) -> Rows:
        return np.flatnonzero(self.live)

    @cached_property
    def allowed(self) -> Allowed:
        """The live rows, as an index is given them."""
        return Allowed(self.source.count, self.live_rows, all=len(self.live_rows) == self.source.count)


@dataclass(frozen=True)
class View:
    """All rows and grants at one moment."""

    schema: Schema
    parts: tuple[Part, ...]
    tenants: TenantRows
    commits: int

    @cached_property
    def rows(self) -> int:
        return sum(len(part.live_rows) for part in self.parts)


class State:
    """The segments, the rows in memory, the grants.

    Args:
        segments: Segments with their live rows and indexes, oldest first.
        commits: Changes that are in the segments.
    """

    def __init__(
        self,
        schema: Schema,
        segments: Iterable[tuple[Segment, Mask, Index | None]],
        tenants: TenantRows,
        next_serial: int,
        commits: int,
    ) -> None:
        self.schema, self.tenants = schema, tenants
        self.segments = [Part(segment, live, index) for segment, live, index in segments]
        self.memory, self._memory_live = MemoryRows(schema), np.zeros(0, np.bool_)
        self.next_serial, self.commits = next_serial, commits
        self.view = self._seen()

    # Changes, each as the payload of a record

    def added(self, run: StoredRows, tenants: Mapping[str, Rows]) -> bytes:
        """The record of adding rows, replacing those whose ids are there."""
        names = sorted(tenants)
        content = {**run.packed(with_vectors=True), "tenants": names}
        for number, name in enumerate(names):
            content[f"tenant/{number}"] = tenants[name]
        return pack(content)

    def deleted(self, ids: NDArray[Any]) -> bytes:
        none = np.zeros((0, self.schema.dim), self.schema.stored)
        scales = np.zeros(0, np.float32)
        return pack(StoredRows(ids, np.zeros(0, np.int64), none, scales, {}).packed(with_vectors=False))

    def granting(self, serials: Rows, tenants: Iterable[str]) -> bytes:
        return pack({"serials": serials, "tenants": sorted(tenants)})

    def dropping(self, tenant: str, ids: NDArray[Any]) -> bytes:
        """The record of forgetting a tenant, and of deleting these rows with it."""
        return pack({"tenant": tenant, **unpack(self.deleted(ids))})

    def directing(self, directory: Directory) -> bytes:
        return pack({"directory": directory.to_json()})

    def apply(self, records: Iterable[Record]) -> None:
        """Make changes, and then one new view of them all.

        Raises:
            KeyError, ValueError: A record is not what the functions above made.
        """
        for record in records:
            self._apply(record.kind, unpack(record.payload))
            self.commits += 1
        self.view = self._seen()

    def _apply(self, kind: int, values: dict[str, Any]) -> None:
        if kind == ADD:
            run = stored_rows.unpacked(self.schema, values, values["vectors"])
            self._bury(run.ids)
            self.memory.append(run)
            self._memory_live = np.concatenate([self._memory_live, np.ones(len(run), np.bool_)])
            self.next_serial = max(self.next_serial, int(run.serials.max(initial=0)) + 1)
            each = {name: values[f"tenant/{number}"] for number, name in enumerate(values["tenants"])}
            self.tenants = self.tenants.granted_each(each)
        elif kind == DELETE:
            self._bury(self._ids(values))
        elif kind == GRANT:
            self.tenants = self.tenants.granted(values["serials"], values["tenants"])
        elif kind == REVOKE:
            self.tenants = self.tenants.revoked(values["serials"], values["tenants"])
        elif kind == DROP:
            self._bury(self._ids(values))
            self.tenants = self.tenants.dropped(values["tenant"])
        elif kind == DIRECTORY:
            self.tenants = self.tenants.with_directory(Directory.from_json(values["directory"]))
        else:
            raise ValueError(f"a record of the unknown type {kind}")

    def _ids(self, values: dict[str, Any]) -> NDArray[Any]:
        no_fields = Schema(dim=self.schema.dim, ids=self.schema.ids)
        return stored_rows.unpacked(no_fields, values, np.zeros(0)).ids

    def _bury(self, ids: NDArray[Any]) -> None:
        """Mark every live row with one of these ids as deleted, in masks of their own."""
        for number, live, rows in list(self._living(ids)):
            buried = live.copy()
            buried[rows] = False
            if number < 0:
                self._memory_live = buried
            else:
                part = self.segments[number]
                self.segments[number] = Part(part.source, buried, part.index)

    def _living(self, ids: NDArray[Any]) -> Iterator[tuple[int, Mask, Rows]]:
        """Segment number (-1: memory), live mask and rows, wherever one of these ids lives."""
        places: list[tuple[int, Mask, Any]] = [(-1, self._memory_live, self.memory)]
        places += [(number, part.live, part.source) for number, part in enumerate(self.segments)]
        for number, live, source in places:
            rows = source.find(ids)
            rows = rows[rows >= 0]
            rows = rows[live[rows]] if len(rows) else rows
            if len(rows):
                yield number, live, rows

    # Questions

    def serials_of(self, ids: NDArray[Any]) -> Rows:
        """int64: the serial of each id that is there, -1 for the others."""
        found = np.full(len(ids), -1, np.int64)
        places: list[tuple[Mask, Any, Any]] = [(self._memory_live, self.memory, self.view.parts[-1].source)]
        places += [(part.live, part.source, part.source) for part in self.segments]
        for live, finder, source in places:
            rows = finder.find(ids)
            there = np.flatnonzero(rows >= 0)
            there = there[live[rows[there]]] if len(there) else there
            found[there] = source.serials[rows[there]]
        return found

    def locate(self, ids: NDArray[Any]) -> list[tuple[Part, Rows, Rows]]:
        """For each part of the view: the places in `ids` that it holds, and their rows."""
        found = []
        for part in self.view.parts:
            finder: Any = self.memory if isinstance(part.source, MemoryView) else part.source
            rows = finder.find(ids)
            there = np.flatnonzero(rows >= 0)
            there = there[part.live[rows[there]]] if len(there) else there
            if len(there):
                found.append((part, there, rows[there]))
        return found

    def _seen(self) -> View:
        memory = Part(self.memory.view(), self._memory_live, None)
        return View(self.schema, (*self.segments, memory), self.tenants, self.commits)
