"""A collection of vectors on disk: one writer, many readers, searched by nearness, filter and access.

A change is in the log, and durable, before it is acknowledged, and visible to the next search. Rows gather in memory
and become a segment at 20,000; `optimize` joins segments into one and puts an index over it. Whatever a process was
doing when it was killed, the next one finds every change that was acknowledged, and no half of any other.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Collection as Several
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from windlass.core import storage
from windlass.core.access import Directory, checked_name
from windlass.core.errors import StorageError
from windlass.core.filters import Filter
from windlass.core.progress import Progress, Silent
from windlass.core.storage import Disk
from windlass.vectors import indexes
from windlass.vectors.errors import BadInput, DuplicateId, VectorStoreError
from windlass.vectors.incoming import Conflict, incoming_columns, incoming_rows, need_tenants
from windlass.vectors.log import Durability, LogReader, LogWriter, Record, log_path
from windlass.vectors.reorganising import Reorganiser
from windlass.vectors.results import Budget, CollectionStats, Commit, OptimizeReport, VerifyReport
from windlass.vectors.rows import StoredRows, checked_ids, first_duplicate, joined_rows
from windlass.vectors.schema import Schema
from windlass.vectors.searching import Searcher, bound_filter, find_live
from windlass.vectors.segment import Segment
from windlass.vectors.snapshot import Snapshot
from windlass.vectors.state import ADD, DELETE, DIRECTORY, DROP, GRANT, REVOKE, Part, State, View
from windlass.vectors.storage import MANIFEST, Opened, Store
from windlass.vectors.tenants import NO_SERIALS

if TYPE_CHECKING:
    import pyarrow

Stamp = tuple[int, ...]
Look = tuple[Stamp, Stamp, Stamp]

FLUSH_ROWS = 20_000
FLUSH_BYTES = 64 << 20


def create(
    path: str | Path,
    schema: Schema,
    *,
    kind: str = "auto",
    params: Mapping[str, Any] | None = None,
    durability: Durability = "commit",
    disk: Disk = storage.LOCAL_DISK,
) -> Collection:
    """Make an empty collection in the folder `path` and open it for writing.

    Args:
        kind: Of the index that `optimize` makes; `auto` chooses by size.
        params: Of that index.
        durability: When a change counts as written: `commit` at once, `batch` within 50 ms, `none` at `flush`.

    Raises:
        CollectionExists: There is one already.
        CollectionLocked, StorageError.

    Example:
        >>> import tempfile
        >>> with create(tempfile.mkdtemp(), Schema(dim=2)) as collection:
        ...     _ = collection.add([7, 8], [[1, 0], [0, 1]])
        ...     collection.search([0.1, 0.9], k=1).ids.tolist()
        [[8]]
    """
    store = Store(Path(path), disk=disk)
    indexes.checked_kind(kind)
    storage.make_folder(store.path, disk=disk)
    store.lock()
    try:
        store.create(schema, kind, dict(params or {}))
        return Collection(store, writable=True, durability=durability, memory_budget=None)
    except BaseException:
        store.unlock()
        raise


def open(
    path: str | Path,
    *,
    mode: Literal["r", "rw"] = "r",
    memory_budget: int | None = None,
    durability: Durability = "commit",
    disk: Disk = storage.LOCAL_DISK,
) -> Collection:
    """Open the collection in the folder `path`.

    Args:
        mode: `rw` for the one writer; any number of processes may read beside it, and see each of its changes.
        memory_budget: Bytes that indexes may hold in memory.

    Raises:
        NotFound: There is no collection.
        CollectionLocked: Another process writes to it.
        CorruptSegment, FormatTooNew, BudgetExceeded, StorageError.
    """
    if mode not in ("r", "rw"):
        raise BadInput(f"mode is {mode!r}", hint="choose r or rw")
    store = Store(Path(path), disk=disk)
    store.read_manifest()
    if mode == "rw":
        store.lock()
    try:
        return Collection(store, writable=mode == "rw", durability=durability, memory_budget=memory_budget)
    except BaseException:
        store.unlock()
        raise


class Collection(Snapshot):
    """An open collection; made by `create` and `open`. Safe to use from several threads.

    A collection that was opened for reading follows its writer: each question sees what was acknowledged before it.
    """

    def __init__(self, store: Store, *, writable: bool, durability: Durability, memory_budget: int | None) -> None:
        self._store, self._writable, self._durability = store, writable, durability
        self._memory_budget = memory_budget
        self._lock = threading.RLock()
        self._searcher = Searcher()
        self._log: LogWriter | None = None
        self._closed = False
        self._broken = ""
        stamp = _stamp(store.path / MANIFEST)
        self._state: State
        self._load(store.open(), stamp)
        if writable:
            self._begin_writing()

    # Reading

    @property
    def path(self) -> Path:
        return self._store.path

    @property
    def schema(self) -> Schema:
        return self._manifest.schema

    @property
    def directory(self) -> Directory:
        """Groups and principals."""
        return self._now().tenants.directory

    def snapshot(self) -> Snapshot:
        """The collection as it is now, for as long as the object lives."""
        return Snapshot(self._now())

    def stats(self) -> CollectionStats:
        """Sizes, segments, dead rows; for whoever keeps the collection, not for its tenants."""
        view = self._now()
        segments = [
            {
                "number": part.source.number,
                "kind": part.source.kind,
                "rows": part.source.count,
                "live": len(part.live_rows),
            }
            for part in view.parts[:-1]
        ]
        memory = view.parts[-1]
        total = sum(part.source.count for part in view.parts)
        copies = [part.index.amplification * part.source.count for part in view.parts if part.index is not None]
        rest = sum(part.source.count for part in view.parts if part.index is None)
        indexes_hold = sum(part.index.resident_bytes for part in view.parts if part.index is not None)
        resident = indexes_hold + sum(part.live.nbytes for part in view.parts) + memory.source.vectors.nbytes
        names = [name for name, _ in view.tenants.items()] if self.schema.tenants else None
        return CollectionStats(
            rows=view.rows,
            dead_rows=total - view.rows,
            memory_rows=memory.source.count,
            segments=segments,
            log_bytes=sum(log.bytes for log in self._positions()),
            disk_bytes=sum(part.source.bytes_on_disk for part in view.parts[:-1]),
            resident_bytes=resident + view.tenants.nbytes,
            tenants=None if names is None else len(names),
            grants=None if names is None else view.tenants.grants,
            amplification=(sum(copies) + rest) / total if total else 1.0,
            index_bytes=indexes_hold,
        )

    def verify(self, *, deep: bool = False) -> VerifyReport:
        """Check that what is on the disk is what was written.

        Args:
            deep: Read every byte; without it, sizes and the small files.

        Raises:
            CorruptSegment: The first thing that is wrong, with its file and offset.
        """
        with self._lock:
            opened = self._store.open()
            for reader in opened.logs:
                reader.records()
            checked = 0
            for segment, _ in opened.segments:
                if deep:
                    segment.recheck()
                    checked += segment.bytes_on_disk
                index = indexes.open_index(segment, self._memory_budget)
                if index is not None:
                    index.verify()
            return VerifyReport(len(opened.segments), self._now().rows, checked)

    # Writing

    def add(
        self,
        ids: Any,
        vectors: Any,
        attrs: Mapping[str, Any] | pyarrow.Table | None = None,
        tenants: Sequence[Several[str]] | None = None,
        *,
        on_conflict: Conflict = "error",
    ) -> Commit:
        """Store rows; all of them or none. Found by the next search.

        Args:
            ids: int64 `[n]`, or `n` texts, as the schema says.
            vectors: `[n, dim]`.
            attrs: A column of `n` values for each field; a field that is left out has no values.
            tenants: For each row, who may see it.
            on_conflict: What happens to ids that are there: `error`; `replace` the row, which keeps its grants unless
                `tenants` are given; or `skip` the new one.

        Raises:
            DuplicateId, DimensionMismatch, NonFiniteVector, ZeroVector, UnknownField, BadInput: Nothing was stored.
            StorageError: It is not known whether it was stored; open the collection again.
        """
        if on_conflict not in ("error", "replace", "skip"):
            raise BadInput(f"on_conflict is {on_conflict!r}", hint="choose error, replace or skip")
        with self._writing():
            run, granted, skipped = incoming_rows(self._state, ids, vectors, attrs, tenants, on_conflict)
            if len(run):
                self._commit(ADD, self._state.added(run, granted))
                self._flush_when_full()
            return Commit(self._state.commits, len(run), skipped)

    def delete(self, ids: Any = None, *, filter: Filter | str | None = None, tenant: str | None = None) -> int:
        """Remove the rows that meet every condition given; returns how many there were.

        Raises:
            BadInput: No condition at all.
        """
        if ids is None and filter is None and tenant is None:
            raise BadInput("delete what?", hint="give ids, a filter or a tenant")
        with self._writing():
            view = self._state.view
            wanted = None if ids is None else checked_ids(self.schema, ids)
            bound = bound_filter(self.schema, filter)
            serials = None if tenant is None else view.tenants.one(checked_name(tenant))
            gone = []
            for part in view.parts:
                mask = part.live.copy()
                if wanted is not None:
                    asked = np.zeros(part.source.count, np.bool_)
                    asked[find_live(part, wanted)[0]] = True
                    mask &= asked
                if serials is not None:
                    owned = np.zeros(part.source.count, np.bool_)
                    owned[part.source.positions(serials)] = True
                    mask &= owned
                if bound is not None and mask.any():
                    mask &= part.source.passing(bound)
                gone.append(part.source.ids[mask])
            ids_gone = np.concatenate(gone)
            if len(ids_gone):
                self._commit(DELETE, self._state.deleted(ids_gone))
            return len(ids_gone)

    def update_attrs(self, ids: Any, attrs: Mapping[str, Any] | pyarrow.Table) -> Commit:
        """Give rows new values in some fields; their vectors, grants and other fields stay.

        Raises:
            BadInput: An id is not there, or a value is of another type. UnknownField. Nothing was changed.
        """
        with self._writing():
            asked = self._present(ids)
            given = incoming_columns(self.schema, attrs, len(asked), only_given=True)
            runs = []
            for part, places, rows in self._state.locate(asked):
                run = part.source.run(rows)
                changed = {**run.columns, **{name: item.take(places) for name, item in given.items()}}
                runs.append(StoredRows(run.ids, run.serials, run.vectors, run.scales, changed))
            if runs:
                self._commit(ADD, self._state.added(joined_rows(runs), {}))
                self._flush_when_full()
            return Commit(self._state.commits, len(asked))

    # Access

    def grant(self, ids: Any, tenants: Several[str]) -> Commit:
        """Let each of `tenants` see these rows.

        Raises:
            BadInput: An id is not there, a name is not valid, or the collection has no tenants.
        """
        return self._regrant(GRANT, ids, tenants)

    def revoke(self, ids: Any, tenants: Several[str]) -> Commit:
        """Let none of `tenants` see these rows any more; in force when this returns."""
        return self._regrant(REVOKE, ids, tenants)

    def drop_tenant(self, name: str, *, purge: bool = False) -> Commit:
        """Forget a tenant. With `purge`, delete the rows that nobody else can see, too.

        Deleted rows leave the disk with the next `optimize`.
        """
        with self._writing():
            need_tenants(self.schema)
            checked_name(name)
            only = self._state.tenants.only_of(name) if purge else NO_SERIALS
            parts = self._state.view.parts
            gone = np.concatenate(
                [part.source.ids[np.intersect1d(part.source.positions(only), part.live_rows)] for part in parts]
            )
            self._commit(DROP, self._state.dropping(name, gone))
            return Commit(self._state.commits, len(gone))

    def create_group(self, name: str, tenants: Several[str] = (), groups: Several[str] = ()) -> Commit:
        """Make or change a group of tenants and of other groups. See `core.access.Directory`."""
        return self._redirect(lambda directory: directory.with_group(name, tenants=tenants, groups=groups))

    def drop_group(self, name: str) -> Commit:
        """Forget a group, also where other groups or principals hold it."""
        return self._redirect(lambda directory: directory.without_group(name))

    def set_principal(self, name: str, tenants: Several[str] = (), groups: Several[str] = ()) -> Commit:
        """Say which tenants and groups a principal has; with none it is forgotten."""
        return self._redirect(lambda directory: directory.with_principal(name, tenants=tenants, groups=groups))

    # Reorganising

    def flush(self) -> None:
        """Make a segment of the rows in memory. Everything is on the platter then, whatever the durability.

        Raises:
            StorageError: The collection is as before, or, when the manifest could not be written, must be opened again.
        """
        with self._writing():
            self._reorganise().flush()

    def optimize(
        self,
        kind: str | None = None,
        *,
        params: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> OptimizeReport:
        """Join all segments into one without deleted rows, and put an index over it.

        Searches go on meanwhile; other changes wait. Interrupted at any point, the collection is as before.

        Args:
            kind: Of the index; None: as the collection was created.

        Raises:
            BadInput, BudgetExceeded, Cancelled, StorageError.
        """
        began = time.perf_counter()
        with self._writing():
            chosen = indexes.checked_kind(kind or self._manifest.kind)
            parameters = dict(self._manifest.parameters if params is None else params)
            report = self._reorganise().optimize(
                chosen, parameters, budget or Budget(), seed, progress if progress is not None else Silent()
            )
        return OptimizeReport(**report, seconds=time.perf_counter() - began)

    def build(
        self,
        source: Iterable[Mapping[str, Any]],
        *,
        kind: str | None = None,
        params: Mapping[str, Any] | None = None,
        budget: Budget | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> OptimizeReport:
        """Load many new rows past the log, then `optimize`.

        Args:
            source: Batches, each a mapping with `ids` and `vectors`, and perhaps `attrs` and `tenants`, as for `add`.
                Rows count batch by batch: after a failure those of the batches before it are there.
        """
        with self._writing():
            for batch in source:
                run, granted, _ = incoming_rows(
                    self._state, batch["ids"], batch["vectors"], batch.get("attrs"), batch.get("tenants"), "error"
                )
                if len(run):
                    self._reorganise().load(run, granted)
        return self.optimize(kind, params=params, budget=budget, seed=seed, progress=progress)

    def close(self) -> None:
        """Let go of the collection; rows in memory stay in the log. Closing twice is no error."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._log is not None:
                    self._log.close()
            finally:
                self._store.unlock()

    def __enter__(self) -> Collection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    def _now(self) -> View:
        if self._closed:
            raise VectorStoreError(f"{self.path} is closed", hint="open it again")
        if not self._writable:
            self._follow()
        return self._state.view

    def _load(self, opened: Opened, stamp: Stamp, old: Sequence[Part] = ()) -> None:
        """Make the state of what was read. `stamp` is of the manifest, taken before it was read."""
        manifest = opened.manifest
        known = {part.source.number: part for part in old}
        segments = []
        for segment, live in opened.segments:
            same = known.get(segment.number)
            index = same.index if same is not None else indexes.open_index(segment, self._memory_budget)
            segments.append((segment, live, index))
        state = State(manifest.schema, segments, opened.tenants, manifest.next_serial, manifest.commits)
        folder, number = self._store.folder("wal"), opened.logs[-1].position.number
        # What changes on the disk whenever the collection does: manifest, newest log, and the one after it.
        self._watched = tuple(map(str, (self.path / MANIFEST, log_path(folder, number), log_path(folder, number + 1))))
        log, next_log = _stamp(self._watched[1]), _stamp(self._watched[2])
        for reader in opened.logs:
            state.apply(reader.records())
        self._manifest, self._state, self._readers = manifest, state, opened.logs
        self._seen = stamp, log, next_log

    def _follow(self) -> None:
        """See what the writer has acknowledged since the last look."""
        if self._look() == self._seen:
            return
        with self._lock:
            now = self._look()
            if now[0] == self._seen[0] and now[2] == self._seen[2]:
                if now[1] != self._seen[1]:
                    self._state.apply(self._readers[-1].records())
                    self._seen = now
            else:
                old = self._state.segments
                known = [part.source for part in old if isinstance(part.source, Segment)]
                self._load(self._store.open(known), now[0], old)

    def _look(self) -> Look:
        manifest, log, next_log = self._watched
        return _stamp(manifest), _stamp(log), _stamp(next_log)

    def _begin_writing(self) -> None:
        self._store.remove_orphans(self._manifest)
        self._next_number = self._store.next_free(self._manifest)
        self._log = self._store.new_log(self._readers[-1].position.number + 1, self._readers, self._durability)

    def _positions(self) -> list[Any]:
        logs: list[LogReader | LogWriter] = [*self._readers]
        if self._log is not None:
            logs.append(self._log)
        return [log.position for log in logs]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise VectorStoreError(f"{self.path} is closed", hint="open it again")
            if not self._writable:
                raise BadInput(f"{self.path} is open for reading", hint="open it with mode='rw'")
            if self._broken:
                raise StorageError(
                    f"{self.path} takes no more writes since one failed ({self._broken})",
                    hint="open the collection again: what was acknowledged is there",
                )
            yield

    def _commit(self, kind: int, payload: bytes) -> None:
        """Log a change, then make it."""
        assert self._log is not None
        self._log.append(kind, payload)
        self._state.apply([Record(kind, payload)])

    def _reorganise(self) -> Reorganiser:
        return Reorganiser(self)

    def _flush_when_full(self) -> None:
        memory = self._state.memory
        if memory.count >= FLUSH_ROWS or memory.count * self.schema.dim * self.schema.stored.itemsize >= FLUSH_BYTES:
            # The rows are in the log: when the disk is full now, they are flushed with a later change.
            with contextlib.suppress(StorageError):
                self._reorganise().flush()

    def _present(self, ids: Any) -> NDArray[Any]:
        asked = checked_ids(self.schema, ids)
        missing = np.flatnonzero(self._state.serials_of(asked) < 0)
        if len(missing):
            raise BadInput(f"id {asked.tolist()[missing[0]]!r} is not there; nothing was changed", hint="check the ids")
        twice = first_duplicate(asked)
        if twice is not None:
            raise DuplicateId(f"id {twice!r} stands twice in one call", twice, hint="leave one of them out")
        return asked

    def _regrant(self, kind: int, ids: Any, tenants: Several[str]) -> Commit:
        with self._writing():
            need_tenants(self.schema)
            if isinstance(tenants, str):
                raise BadInput(f"tenants is the text {tenants!r}", hint=f"write [{tenants!r}]")
            names = {checked_name(name) for name in tenants}
            asked = self._present(ids)
            serials = np.sort(self._state.serials_of(asked))
            if len(serials) and names:
                self._commit(kind, self._state.granting(serials, names))
            return Commit(self._state.commits, len(asked))

    def _redirect(self, change: Any) -> Commit:
        with self._writing():
            need_tenants(self.schema)
            self._commit(DIRECTORY, self._state.directing(change(self._state.tenants.directory)))
            return Commit(self._state.commits, 0)


def _stamp(path: str | Path) -> Stamp:
    """Differs whenever the file does."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
