"""Rows move: from memory into a segment, from many segments into one.

Each step writes new files, then a new log, then the manifest that makes them count, then removes what no longer does.
A failure before the manifest leaves everything as it was; when it is not known whether the manifest arrived, nobody
writes on before the collection is opened again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.progress import Progress, check_cancelled
from windlass.vectors import indexes
from windlass.vectors.log import LogReader, LogWriter
from windlass.vectors.results import Budget
from windlass.vectors.rows import Rows, StoredRows, joined_rows
from windlass.vectors.schema import Schema
from windlass.vectors.segment import Segment, SegmentWriter
from windlass.vectors.state import Part, State
from windlass.vectors.storage import NamedFile, successor
from windlass.vectors.tenants import TenantRows

if TYPE_CHECKING:
    from windlass.vectors.collection import Collection

MANY_SEGMENTS = 8
INDEXED_ROWS = 10_000
"""Fewer rows in all are scanned as fast as any index would find them."""
_CHUNK = 4096


class Reorganiser:
    """Works on a collection whose lock is held."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._store, self._state = collection._store, collection._state
        self._schema = collection.schema

    def flush(self) -> None:
        """Make a segment of the rows in memory; join the smaller ones when there are many."""
        memory = self._state.view.parts[-1]
        parts = list(self._state.segments)
        if len(memory.live_rows):
            parts.append(self._join([memory], "flat", {})[0])
        if len(parts) > MANY_SEGMENTS:
            parts = self._fewer(parts)
        self._publish(parts, self._state.tenants)

    def load(self, run: StoredRows, granted: Mapping[str, Rows]) -> None:
        """Make a segment of new rows, past the log."""
        self.flush()
        state = self._collection._state
        number = self._number()
        writer = self._store.new_segment(number, self._schema)
        try:
            writer.append(run)
            writer.finish("flat", {})
        except BaseException:
            writer.abandon()
            raise
        segment = self._store.open_segment(number, self._schema)
        loaded = Part(segment, np.ones(len(run), np.bool_), None)
        state.next_serial = max(state.next_serial, int(run.serials.max()) + 1)
        state.commits += 1
        self._state = state
        self._publish([*state.segments, loaded], state.tenants.granted_each(dict(granted)))

    def optimize(
        self, kind: str, parameters: Mapping[str, Any], budget: Budget, seed: int, progress: Progress
    ) -> dict[str, Any]:
        """One segment of all live rows, with an index."""
        view = self._state.view
        before = [part for part in view.parts if part.source.count]
        dead = sum(part.source.count - len(part.live_rows) for part in before)
        if kind == "auto":
            kind = automatic_kind(self._schema, view.rows)
        details: dict[str, Any] = {}
        parts: list[Part] = []
        if view.rows:
            built, details = self._join(before, kind, parameters, budget=budget, seed=seed, progress=progress)
            parts = [built]
        live = np.sort(np.concatenate([part.source.serials[part.live] for part in view.parts]))
        self._publish(parts, self._state.tenants.only(live))
        return {
            "kind": kind,
            "rows": view.rows,
            "segments_before": len(self._state.segments),
            "segments_after": len(parts),
            "dead_rows_removed": dead,
            "details": details,
        }

    def _fewer(self, parts: Sequence[Part]) -> list[Part]:
        """Join the smaller half of the segments without an index."""
        flat = sorted((part for part in parts if part.index is None), key=lambda part: part.source.count)
        chosen = flat[: max(2, (len(flat) + 1) // 2)]
        kept = [part for part in parts if part not in chosen]
        return [*kept, self._join(chosen, "flat", {})[0]] if len(chosen) > 1 else list(parts)

    def _join(
        self,
        parts: Sequence[Part],
        kind: str,
        parameters: Mapping[str, Any],
        *,
        budget: Budget | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> tuple[Part, dict[str, Any]]:
        """A new segment of the live rows of `parts`, in the order of their serials, and what its index reports."""
        number = self._number()
        writer = self._store.new_segment(number, self._schema)
        try:
            scales = self._write_rows(writer, parts, progress)
            used: dict[str, Any] = {}
            details: dict[str, Any] = {}
            if kind != "flat" and budget is not None and progress is not None:
                mapped = writer.close_vectors()
                vectors = mapped.verified(self._schema.stored).reshape(-1, self._schema.dim)
                used, details = indexes.build(
                    kind, writer, vectors, scales, parameters, seed=seed, budget=budget, progress=progress
                )
            writer.finish(kind, used)
        except BaseException:
            writer.abandon()
            raise
        segment = self._store.open_segment(number, self._schema)
        index = indexes.open_index(segment, self._collection._memory_budget)
        return Part(segment, np.ones(segment.count, np.bool_), index), details

    def _write_rows(
        self, writer: SegmentWriter, parts: Sequence[Part], progress: Progress | None
    ) -> NDArray[np.float32]:
        serials = np.concatenate([part.source.serials[part.live_rows] for part in parts])
        source = np.repeat(np.arange(len(parts)), [len(part.live_rows) for part in parts])
        rows = np.concatenate([part.live_rows for part in parts])
        order = np.argsort(serials, kind="stable")
        scales = []
        for start in range(0, len(order), _CHUNK):
            if progress is not None:
                check_cancelled(progress)
            chunk = order[start : start + _CHUNK]
            runs, places = [], []
            for number in np.unique(source[chunk]).tolist():
                own = np.flatnonzero(source[chunk] == number)
                runs.append(parts[number].source.run(rows[chunk[own]]))
                places.append(own)
            run = joined_rows(runs).take(np.argsort(np.concatenate(places), kind="stable"))
            writer.append(run)
            scales.append(run.scales)
        return np.concatenate(scales)

    def _publish(self, parts: Sequence[Part], tenants: TenantRows) -> None:
        """Make these segments and grants count instead of what is in the logs, and forget the logs."""
        collection, store, state = self._collection, self._store, self._state
        old_files = self._files_of(state.segments, collection._manifest)
        segments: list[tuple[int, NamedFile | None]] = []
        for part in parts:
            assert isinstance(part.source, Segment)
            deletes = None
            if not part.live.all():
                deletes = store.write_deletes(self._number(), part.live)
            segments.append((part.source.number, deletes))
        access = store.write_access(self._number(), tenants) if self._schema.tenants else None
        assert collection._log is not None
        old_logs: list[LogReader | LogWriter] = [*collection._readers, collection._log]
        log = store.new_log(collection._log.number + 1, old_logs, collection._durability)
        manifest = successor(
            collection._manifest,
            segments=tuple(segments),
            access=access,
            first_log=log.number,
            next_number=self._number(),
            next_serial=state.next_serial,
            commits=state.commits,
        )
        try:
            store.write_manifest(manifest)
        except BaseException as error:
            collection._broken = str(error)
            log.close()
            raise
        collection._log.close()
        fresh = State(
            self._schema,
            [(part.source, part.live, part.index) for part in parts],  # type: ignore[misc]
            tenants,
            state.next_serial,
            state.commits,
        )
        collection._manifest, collection._log, collection._readers = manifest, log, []
        collection._state = fresh
        kept = self._files_of(fresh.segments, manifest)
        store.remove([path for path in old_files if path not in kept])
        store.remove([old.path for old in old_logs])

    def _files_of(self, segments: Sequence[Part], manifest: Any) -> set[Any]:
        found = {path for part in segments if isinstance(part.source, Segment) for path in part.source.paths()}
        found |= {self._store._bin("deletes", file.number) for _, file in manifest.segments if file is not None}
        if manifest.access is not None:
            found.add(self._store._bin("access", manifest.access.number))
        return found

    def _number(self) -> int:
        number = self._collection._next_number
        self._collection._next_number += 1
        return number


def automatic_kind(schema: Schema, rows: int) -> str:
    """The kind of index that serves so many rows best. Trees are cut by distance, which dot products do not follow."""
    if rows < INDEXED_ROWS or (schema.tenants and schema.metric == "ip"):
        return "flat"
    return "tenant-tree" if schema.tenants else "postings"
