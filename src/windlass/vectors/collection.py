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
from windlass.core.access import Access, Directory, checked_name
from windlass.core.errors import StorageError
from windlass.core.filters import Filter, UnknownField
from windlass.core.progress import Progress, Silent
from windlass.core.storage import Disk
from windlass.vectors import indexes
from windlass.vectors.columns import Column, column, empty
from windlass.vectors.errors import BadInput, DuplicateId, VectorStoreError
from windlass.vectors.log import Durability, LogReader, LogWriter, Record, log_path
from windlass.vectors.reorganising import Reorganiser
from windlass.vectors.results import (
    Budget,
    CollectionStats,
    Commit,
    Counters,
    OptimizeReport,
    SearchRequest,
    SearchResult,
    VerifyReport,
)
from windlass.vectors.rows import Rows, StoredRows, checked_ids, first_duplicate, joined_rows
from windlass.vectors.schema import Schema
from windlass.vectors.searching import Searcher, bound_filter, columns_of, find_live
from windlass.vectors.state import ADD, DELETE, DIRECTORY, DROP, GRANT, REVOKE, State, View
from windlass.vectors.storage import MANIFEST, Opened, Store

if TYPE_CHECKING:
    import pyarrow

Conflict = Literal["error", "replace", "skip"]

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


class Snapshot:
    """The rows and grants of one moment; later changes are not seen. Asked like a `Collection`."""

    def __init__(self, view: View) -> None:
        self._fixed = view
        self._searcher = Searcher()

    def _now(self) -> View:
        return self._fixed

    @property
    def schema(self) -> Schema:
        return self._fixed.schema

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        filter: Filter | str | None = None,
        access: Access | None = None,
        recall: float | None = None,
        params: Mapping[str, Any] | None = None,
        include: Sequence[str] = ("ids", "scores"),
        timeout_s: float | None = None,
    ) -> SearchResult:
        """The `k` nearest rows that pass the filter and the access.

        Args:
            query: `[dim]` or `[n, dim]`.
            filter: Which rows may be found, as a `Filter` or as text.
            access: For whom it is asked; needed, and only allowed, in a collection with tenants.
            recall: The share of the true nearest rows that an index should find on average.
            params: Of the index, for this search only. `exact_rows`: up to how many rows are looked at one by one.
            include: Also `vectors` and names of fields, for `SearchResult.rows`.

        Raises:
            DimensionMismatch, NonFiniteVector, ZeroVector, BadInput: The question.
            FilterSyntaxError, FilterTypeError, UnknownField: The filter.
            AccessRequired: The collection has tenants and `access` is missing.
            Timeout, CorruptSegment.
        """
        return self._searcher.search(
            self._now(),
            query,
            k,
            filter=filter,
            access=access,
            recall=recall,
            params=params or {},
            include=include,
            timeout_s=timeout_s,
        )

    def search_batch(self, requests: Sequence[SearchRequest]) -> list[SearchResult]:
        """The answers to many questions, all about the same moment."""
        view = self._now()
        return [
            self._searcher.search(
                view,
                one.query,
                one.k,
                filter=one.filter,
                access=one.access,
                recall=None,
                params=one.params or {},
                include=("ids", "scores"),
                timeout_s=None,
            )
            for one in requests
        ]

    def count(self, filter: Filter | str | None = None, access: Access | None = None) -> int:
        """How many rows pass the filter and the access."""
        view, counters = self._now(), Counters()
        return sum(len(self._searcher.allowed(view, part, filter, access, counters).rows) for part in view.parts)

    def get(self, ids: Any, *, access: Access | None = None) -> pyarrow.Table:
        """The rows with these ids, in this order, as columns `id`, `vector` and the fields.

        Ids that are not there, or that `access` does not see, are left out. Vectors come back as they are stored: at
        length one under `cosine`.
        """
        import pyarrow

        view = self._now()
        asked = checked_ids(view.schema, ids)
        allowed = np.zeros(len(asked), np.bool_)
        for part in view.parts:
            seen = self._searcher.allowed(view, part, None, access, Counters())
            rows, places = find_live(part, asked)
            allowed[places] = seen.mask[rows] > 0
        kept = asked[allowed]
        values = columns_of(view, kept, ["vectors", *view.schema.fields])
        flat = np.concatenate([*values.pop("vectors"), np.zeros(0, np.float32)])
        kind = pyarrow.int64() if view.schema.ids == "int" else pyarrow.string()
        arrays = {
            "id": pyarrow.array(kept.tolist(), kind),
            "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat, pyarrow.float32()), view.schema.dim),
        }
        for name, item in view.schema.fields.items():
            arrays[name] = pyarrow.array(values[name], _arrow_type(item.type))
        return pyarrow.table(arrays)


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
        resident = sum(part.index.resident_bytes for part in view.parts if part.index is not None)
        resident += sum(part.live.nbytes for part in view.parts) + memory.source.vectors.nbytes
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
            run, granted, skipped = self._checked_rows(ids, vectors, attrs, tenants, on_conflict)
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
            given = self._columns(attrs, len(asked), only_given=True)
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
            self._need_tenants()
            gone: list[NDArray[Any]] = []
            if purge:
                only = self._state.tenants.only_of(checked_name(name))
                for part in self._state.view.parts:
                    gone.append(part.source.ids[np.intersect1d(part.source.positions(only), part.live_rows)])
            self._commit(DROP, self._state.dropping(checked_name(name), np.concatenate([*gone, self._no_ids()])))
            return Commit(self._state.commits, sum(len(ids) for ids in gone))

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
        """Make a segment of the rows in memory. Everything is on the platter when this returns, whatever the durability.

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
                run, granted, _ = self._checked_rows(
                    batch["ids"], batch["vectors"], batch.get("attrs"), batch.get("tenants"), "error"
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

    def _load(self, opened: Opened, stamp: tuple[int, ...]) -> None:
        """Make the state of what was read. `stamp` is of the manifest, taken before it was read."""
        manifest = opened.manifest
        known = {part.source.number: part for part in self._state.segments} if hasattr(self, "_state") else {}
        segments = []
        for segment, live in opened.segments:
            same = known.get(segment.number)
            index = same.index if same is not None else indexes.open_index(segment, self._memory_budget)
            segments.append((segment, live, index))
        state = State(manifest.schema, segments, opened.tenants, manifest.next_serial, manifest.commits)
        logs = self._log_stamps(opened.logs[-1].position.number)
        for reader in opened.logs:
            state.apply(reader.records())
        self._manifest, self._state, self._readers = manifest, state, opened.logs
        self._seen = (stamp, *logs)

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
                self._load(self._store.open(part.source for part in self._state.segments), now[0])  # type: ignore[misc]

    def _look(self) -> tuple[tuple[int, ...], ...]:
        """What changes on the disk whenever the collection does: manifest, newest log, and the one after it."""
        return (_stamp(self.path / MANIFEST), *self._log_stamps(self._readers[-1].position.number))

    def _log_stamps(self, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        folder = self._store.folder("wal")
        return _stamp(log_path(folder, number)), _stamp(log_path(folder, number + 1))

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

    def _checked_rows(
        self,
        ids: Any,
        vectors: Any,
        attrs: Mapping[str, Any] | pyarrow.Table | None,
        tenants: Sequence[Several[str]] | None,
        on_conflict: Conflict,
    ) -> tuple[StoredRows, dict[str, Rows], int]:
        """Rows ready to be stored, who may see them, and how many were skipped."""
        schema = self.schema
        asked = checked_ids(schema, ids)
        given = np.asarray(vectors)
        if len(asked) != (len(given) if given.ndim else 0):
            raise BadInput(f"{len(asked)} ids for {len(given) if given.ndim else 0} vectors", hint="give one for each")
        twice = first_duplicate(asked)
        if twice is not None:
            raise DuplicateId(f"id {twice!r} stands twice in one call", twice, hint="leave one of them out")
        checked = schema.checked(given) if len(asked) else np.zeros((0, schema.dim), np.float32)
        columns = self._columns(attrs, len(asked))
        names = self._names(tenants, len(asked))
        serials = self._state.serials_of(asked)
        there = serials >= 0
        if on_conflict == "error" and there.any():
            first = asked[int(there.argmax())]
            raise DuplicateId(f"id {first!r} is there already", first, hint="use on_conflict='replace' or 'skip'")
        new = ~there if names is None else np.ones(len(asked), np.bool_)
        serials[new] = self._state.next_serial + np.arange(int(new.sum()))
        encoded, scales = schema.encode(checked)
        run = StoredRows(asked, serials, encoded, scales, columns)
        kept = np.flatnonzero(~there) if on_conflict == "skip" else np.arange(len(asked))
        granted: dict[str, list[int]] = {}
        for row in kept.tolist() if names is not None else ():
            for name in (names or ())[row]:
                granted.setdefault(name, []).append(int(serials[row]))
        each = {name: np.array(sorted(found), np.int64) for name, found in granted.items()}
        return (run if len(kept) == len(asked) else run.take(kept)), each, len(asked) - len(kept)

    def _columns(
        self, attrs: Mapping[str, Any] | pyarrow.Table | None, count: int, *, only_given: bool = False
    ) -> dict[str, Column]:
        names = [] if attrs is None else list(attrs.column_names if hasattr(attrs, "column_names") else attrs)
        for name in names:
            if name not in self.schema.fields:
                raise UnknownField(name, self.schema.fields)
        columns = {}
        for name, item in self.schema.fields.items():
            if attrs is not None and name in names:
                columns[name] = column(name, item.type, attrs[name], nullable=item.nullable)
                if len(columns[name]) != count:
                    raise BadInput(f"field {name!r} has {len(columns[name])} values for {count} rows")
            elif not only_given:
                if count and not item.nullable:
                    raise BadInput(f"field {name!r} is missing", hint="the field is not nullable")
                columns[name] = empty(item.type, count)
        return columns

    def _names(self, tenants: Sequence[Several[str]] | None, count: int) -> list[frozenset[str]] | None:
        if tenants is None:
            return None
        self._need_tenants()
        if len(tenants) != count or any(isinstance(names, str) for names in tenants):
            raise BadInput(
                f"tenants has {len(tenants)} entries for {count} rows", hint="give a set of names for each row"
            )
        return [frozenset(checked_name(name) for name in names) for names in tenants]

    def _no_ids(self) -> NDArray[Any]:
        return self._state.view.parts[-1].source.ids[:0]

    def _need_tenants(self) -> None:
        if not self.schema.tenants:
            raise BadInput("this collection has no tenants", hint="create it with Schema(tenants=True)")

    def _present(self, ids: Any) -> NDArray[Any]:
        asked = checked_ids(self.schema, ids)
        missing = np.flatnonzero(self._state.serials_of(asked) < 0)
        if len(missing):
            raise BadInput(f"id {asked[missing[0]]!r} is not there; nothing was changed", hint="check the ids")
        twice = first_duplicate(asked)
        if twice is not None:
            raise DuplicateId(f"id {twice!r} stands twice in one call", twice, hint="leave one of them out")
        return asked

    def _regrant(self, kind: int, ids: Any, tenants: Several[str]) -> Commit:
        with self._writing():
            self._need_tenants()
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
            self._need_tenants()
            self._commit(DIRECTORY, self._state.directing(change(self._state.tenants.directory)))
            return Commit(self._state.commits, 0)


def _stamp(path: Path) -> tuple[int, ...]:
    """Differs whenever the file does."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _arrow_type(kind: str) -> Any:
    import pyarrow

    types = {
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "str": pyarrow.string(),
        "bool": pyarrow.bool_(),
        "timestamp": pyarrow.timestamp("us", tz="UTC"),
        "set[str]": pyarrow.list_(pyarrow.string()),
    }
    return types[kind]
