"""Parts searched by functions: short calls in whatever workers there are, each over one part and a few queries.

After SQUASH (2025). A tree of allocators hands queries out: each starts the allocators below it, then serves its own
share of the queries, part by part, and goes on to parts farther away until k rows have matched or no part is left. A
worker keeps the parts it has opened, so a later call finds them there. Differences: allocators are threads beside the
caller, which waits anyway, and only the calls on parts leave the process; a filter is decided on codes and looked up
where they leave it open, so no row that fails it is returned.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.core.access import Access
from windlass.core.crew import Crew, Outcome, TaskFailed, Threads
from windlass.core.errors import UsageError
from windlass.core.filters import Filter
from windlass.core.storage import LOCAL_DISK
from windlass.vectors.attribute_codes import TRUE, FieldCells, possible, possible_in
from windlass.vectors.errors import BadInput, VectorStoreError
from windlass.vectors.masks import passing
from windlass.vectors.partitioned import PartitionedIndex
from windlass.vectors.results import Counters
from windlass.vectors.schema import Schema
from windlass.vectors.segment import Segment
from windlass.vectors.state import View

if TYPE_CHECKING:
    from windlass.vectors.snapshot import Snapshot

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Best = list[tuple[float, int, Any]]
"""For one query: score, the order among equals, and id of each row, best first."""

BATCH = 50
_RETAINED = 8
_retained: OrderedDict[tuple[str, int], _Held] = OrderedDict()
_retained_lock = threading.Lock()


@dataclass(frozen=True)
class PartCall:
    """What a function is told. Everything it needs besides is in the files of the collection.

    Attributes:
        folder, number, schema: Of the segment.
        part: Which of its parts.
        queries: float32 `[m, d]`, checked.
        filter: Bound to the fields.
        visible: Bits over the positions of the part that may be seen; None: all.
    """

    folder: str
    number: int
    schema: dict[str, Any]
    part: int
    queries: Floats
    k: int
    filter: Filter | None
    visible: bytes | None
    recall: float | None
    params: dict[str, Any]


@dataclass(frozen=True)
class PartAnswer:
    """Attributes:
    best: For each query.
    matches: Rows of the part that may be returned.
    opened: Whether the files had to be opened for this call.
    """

    best: list[Best]
    matches: int
    opened: bool


@dataclass(frozen=True, slots=True)
class FunctionsResult:
    """Rows found by functions.

    Attributes:
        ids, scores, n_found: As in `SearchResult`.
        invocations, opened: Calls, and how many of them had to open their part.
        skipped: Parts that the cells of the filter's fields ruled out, over all queries.
        partial: Whether a part could not be searched, and the caller allowed that.
    """

    ids: NDArray[Any]
    scores: Floats
    n_found: Rows
    invocations: int
    opened: int
    skipped: int
    partial: bool


@dataclass(frozen=True)
class LaunchTree:
    """Who starts whom: allocators with `fanout` children each, `depth` levels below the one that is the caller.

    Numbers are given depth first, so that who has a number needs no others to know the numbers below it.

    Example:
        >>> tree = LaunchTree(2, 2)
        >>> tree.total, tree.children(-1, 0), tree.children(0, 1)
        (6, [0, 3], [1, 2])
    """

    fanout: int = 4
    depth: int = 3

    def __post_init__(self) -> None:
        if self.fanout < 1 or self.depth < 1 or self.total > 100_000:
            raise UsageError(
                f"a tree of fanout {self.fanout} and depth {self.depth}", hint="give 1 or more, both small"
            )

    @staticmethod
    def to_serve(queries: int) -> LaunchTree:
        """The smallest tree whose allocators have one batch each, up to the published 84."""
        if queries <= BATCH:
            return LaunchTree(1, 1)
        return next(
            (tree for tree in (LaunchTree(4, 1), LaunchTree(4, 2)) if tree.total * BATCH >= queries), LaunchTree()
        )

    @property
    def total(self) -> int:
        return sum(self.fanout**level for level in range(1, self.depth + 1))

    def children(self, number: int, level: int) -> list[int]:
        """The numbers below allocator `number` of `level`; the caller is -1 at level 0."""
        if level >= self.depth:
            return []
        below = -(-self.total // self.fanout)
        for _ in range(level):
            below = -(-(below - 1) // self.fanout)
        return [number + child * below + 1 for child in range(self.fanout)]

    def share(self, number: int, queries: int) -> range:
        """Which of so many queries an allocator serves; lower numbers have the larger shares."""
        return range(number, queries, self.total)


class FunctionRunner(Protocol):
    """Where calls go."""

    def invoke(self, call: PartCall) -> Future[PartAnswer]: ...


class CrewRunner:
    """Calls in threads, in processes, or as tasks on Ray (extra `cluster`). A worker that dies is replaced once a call.

    Args:
        kind: Where.
        workers: How many at once.
    """

    def __init__(self, kind: Literal["threads", "processes", "ray"] = "threads", workers: int = 2) -> None:
        self._calls: queue.SimpleQueue[tuple[PartCall, Future[PartAnswer]] | None] = queue.SimpleQueue()
        self._crew = _crew(kind, workers)
        self._thread = threading.Thread(target=self._work, name="windlass-functions", daemon=True)
        self._thread.start()

    def invoke(self, call: PartCall) -> Future[PartAnswer]:
        """Start a call; its future has what `serve` returned or raised."""
        future: Future[PartAnswer] = Future()
        self._calls.put((call, future))
        return future

    def close(self) -> None:
        """Stop; calls that are not done fail."""
        self._calls.put(None)
        self._thread.join()

    def __enter__(self) -> CrewRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        waiting: dict[int, tuple[PartCall, Future[PartAnswer], bool]] = {}
        number = 0
        while True:
            while True:
                try:
                    given = self._calls.get(block=not waiting)
                except queue.Empty:
                    break
                if given is None:
                    self._crew.close()
                    for _, future, _ in waiting.values():
                        future.set_exception(VectorStoreError("the functions were closed before they answered"))
                    return
                waiting[number] = (*given, False)
                self._crew.give(number, given[0])
                number += 1
            for done, outcome in self._crew.take(0.005):
                call, future, again = waiting.pop(done)
                if isinstance(outcome.error, TaskFailed) and not again:
                    waiting[done] = call, future, True
                    self._crew.give(done, call)
                else:
                    _settle(future, outcome)


def search_parts(
    collection: Snapshot,
    query: Any,
    k: int = 10,
    *,
    runner: FunctionRunner,
    filter: Filter | str | None = None,
    access: Access | None = None,
    recall: float | None = None,
    params: dict[str, Any] | None = None,
    tree: LaunchTree | None = None,
    allow_partial: bool = False,
) -> FunctionsResult:
    """As `Collection.search`, the parts of partitioned segments searched by functions; other rows are searched here.

    Args:
        collection: On a local disk or one that all workers see; opened by path.
        allow_partial: Answer also when a part cannot be read, and say so.

    Raises:
        CorruptSegment, VectorStoreError: A part cannot be searched.
        BadInput, AccessRequired, FilterError: As `Collection.search`.
    """
    from windlass.vectors.searching import Searcher, bound_filter, checked_queries

    view, searcher = collection._now(), Searcher()
    queries = checked_queries(view.schema, query)
    allowed, visible = searcher.asking(view, filter, access), searcher.asking(view, None, access)
    bound = bound_filter(view.schema, filter)
    found = _Found(len(queries), k)
    job = _Job(runner, view.schema, queries, k, bound, recall, params or {}, allow_partial, found)
    for part in view.parts:
        if isinstance(part.index, PartitionedIndex) and isinstance(part.source, Segment):
            seen = visible(part, Counters())
            hidden = None if len(seen.rows) == part.source.count else seen.mask
            _Segment(job, part.index, hidden).serve(tree or LaunchTree.to_serve(len(queries)))
        else:
            rows = allowed(part, Counters())
            for number, one in enumerate(queries):
                scores, best, ids = searcher.in_part(part, rows, one, k, recall, params or {}, Counters())
                found.add(number, zip(scores.tolist(), best.tolist(), ids.tolist(), strict=True))
    return found.result(view)


def serve(call: PartCall) -> PartAnswer:
    """The function: search one part. The segment stays open in this process for the next call.

    Raises:
        CorruptSegment: A file is missing or damaged.
    """
    held, opened = _hold(call)
    index, segment = held.index, held.segment
    first, last = int(index.starts[call.part]), int(index.starts[call.part + 1])
    seen = np.ones(last - first, np.bool_)
    if call.visible is not None:
        seen = np.unpackbits(np.frombuffer(call.visible, np.uint8), count=last - first).astype(np.bool_)
    if call.filter is not None:
        seen &= held.passing(call.filter, first, last, seen)
    chosen = first + np.flatnonzero(seen)
    best: list[Best] = []
    for query in call.queries:
        wanted = min(call.k, len(chosen))
        if wanted == 0:
            best.append([])
            continue
        if len(chosen) <= int(call.params.get("exact_rows", index.exact_rows)):
            scores, rows = segment.exact(query, wanted, index.row_at[chosen].astype(np.int64))
        else:
            scores, rows = index.best(
                query, wanted, chosen, recall=call.recall, params=call.params, counters=Counters()
            )
        best.append(list(zip(scores.tolist(), segment.order[rows].tolist(), segment.ids[rows].tolist(), strict=True)))
    return PartAnswer(best, len(chosen), opened)


class _Held:
    """An open segment with the cells of its fields, kept by a worker."""

    def __init__(self, call: PartCall) -> None:
        self.segment = Segment(Path(call.folder), call.number, Schema.from_json(call.schema), LOCAL_DISK)
        self.index = PartitionedIndex(self.segment)
        self._cells, self._codes, _ = cells_of(self.segment)

    def passing(self, bound: Filter, first: int, last: int, seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool `[last - first]`: the positions that pass, decided on codes; open ones among `seen` are looked up."""
        codes = {name: code[first:last] for name, code in self._codes.items()}
        outcomes = possible(bound, self._cells, codes, last - first)
        found: NDArray[np.bool_] = outcomes == TRUE
        open_places = np.flatnonzero((outcomes & TRUE > 0) & ~found & seen)
        rows = self.index.row_at[first + open_places].astype(np.int64)
        columns = {
            name: item.take(rows) for name, item in self.segment.columns_of(bound).items() if name in bound.fields()
        }
        found[open_places] = passing(bound, columns)
        return found


def cells_of(
    segment: Segment,
) -> tuple[dict[str, FieldCells], dict[str, NDArray[np.uint8]], dict[str, NDArray[np.bool_]]]:
    """The cells of each coded field of a partitioned segment, the cell of each position, the cells in each part."""
    cells, codes, present = {}, {}, {}
    for number, name in enumerate(segment.schema.fields):
        if name in segment.parameters["fields"]:
            packed = segment.small_file(f"cells{number}")
            cells[name], codes[name], present[name] = FieldCells.restored(packed), packed["codes"], packed["present"]
    return cells, codes, present


@dataclass(frozen=True)
class _Job:
    runner: FunctionRunner
    schema: Schema
    queries: Floats
    k: int
    filter: Filter | None
    recall: float | None
    params: dict[str, Any]
    allow_partial: bool
    found: _Found


@dataclass
class _Found:
    """What has come back so far; allocators add to it at the same time."""

    count: int
    k: int
    invocations: int = 0
    opened: int = 0
    skipped: int = 0
    partial: bool = False
    best: list[Best] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.best = [[] for _ in range(self.count)]

    def add(self, number: int, more: Iterable[tuple[float, int, Any]]) -> None:
        """Merge the best rows of a part into those of a query."""
        with self._lock:
            merged = sorted([*self.best[number], *more], key=lambda row: (-row[0], row[1]))
            self.best[number] = merged[: self.k]

    def tell(self, *, invocations: int = 0, opened: int = 0, skipped: int = 0, partial: bool = False) -> None:
        with self._lock:
            self.invocations += invocations
            self.opened += opened
            self.skipped += skipped
            self.partial |= partial

    def result(self, view: View) -> FunctionsResult:
        shape = (self.count, self.k)
        ids = np.full(shape, -1, np.int64) if view.schema.ids == "int" else np.full(shape, None)
        scores = np.full(shape, -np.inf, np.float32)
        for number, best in enumerate(self.best):
            ids[number, : len(best)] = [row[2] for row in best]
            scores[number, : len(best)] = [row[0] for row in best]
        sizes = np.array([len(best) for best in self.best], np.int64)
        return FunctionsResult(ids, scores, sizes, self.invocations, self.opened, self.skipped, self.partial)


class _Segment:
    """All queries over one segment: its allocators, and the calls they make."""

    def __init__(self, job: _Job, index: PartitionedIndex, hidden: NDArray[np.uint8] | None) -> None:
        self._job, self._index = job, index
        self._visible = None if hidden is None else hidden[index.row_at] > 0
        self._parts = np.ones(index.parts, np.bool_)
        if job.filter is not None:
            cells, _, present = cells_of(index.segment)
            for part in range(index.parts):
                in_part = {name: found[part] for name, found in present.items()}
                self._parts[part] = possible_in(job.filter, cells, in_part)
        self._error: BaseException | None = None

    def serve(self, tree: LaunchTree) -> None:
        """Start the tree and wait for all of it."""
        self._launch(tree, -1, 0)
        if self._error is not None:
            raise self._error

    def _launch(self, tree: LaunchTree, number: int, level: int) -> None:
        """Start the allocators below, serve the own queries, wait for those below."""
        below = [
            threading.Thread(target=self._launch, args=(tree, child, level + 1))
            for child in tree.children(number, level)
            if child < len(self._job.queries)
        ]
        for thread in below:
            thread.start()
        try:
            if number >= 0:
                own = list(tree.share(number, len(self._job.queries)))
                for start in range(0, len(own), BATCH):
                    self._ask(own[start : start + BATCH])
        except BaseException as error:
            self._error = error
        for thread in below:
            thread.join()

    def _ask(self, numbers: Sequence[int]) -> None:
        """Call the near parts of each query, then parts farther away while fewer than k rows have matched."""
        job, index = self._job, self._index
        routes = {}
        for number in numbers:
            order, near = index.route(
                job.queries[number], 0.1 if job.filter else 1.0, params=job.params, recall=job.recall
            )
            kept = order[self._parts[order]]
            job.found.tell(skipped=len(order) - len(kept))
            routes[number] = kept.tolist(), int(self._parts[order[:near]].sum())
        matched = dict.fromkeys(numbers, 0)
        visited = dict.fromkeys(numbers, 0)
        while True:
            wanted: dict[int, list[int]] = {}
            for number, (order, near) in routes.items():
                done = visited[number]
                until = near if done < near else done + (matched[number] < job.k)
                for part in order[done:until]:
                    wanted.setdefault(part, []).append(number)
                visited[number] = min(max(until, done), len(order))
            if not wanted:
                return
            calls = [(part, asked, job.runner.invoke(self._call(part, asked))) for part, asked in wanted.items()]
            for part, asked, future in calls:
                self._take(part, asked, future, matched)

    def _take(self, part: int, asked: Sequence[int], future: Future[PartAnswer], matched: dict[int, int]) -> None:
        job = self._job
        try:
            answer = future.result()
        except VectorStoreError:
            job.found.tell(invocations=1, partial=True)
            if not job.allow_partial:
                raise
            return
        job.found.tell(invocations=1, opened=int(answer.opened))
        for number, best in zip(asked, answer.best, strict=True):
            matched[number] += answer.matches
            job.found.add(number, best)

    def _call(self, part: int, asked: Sequence[int]) -> PartCall:
        job, index, visible = self._job, self._index, None
        if self._visible is not None:
            visible = np.packbits(self._visible[index.starts[part] : index.starts[part + 1]]).tobytes()
        segment = index.segment
        return PartCall(
            str(segment.path("meta").parent),
            segment.number,
            job.schema.to_json(),
            part,
            job.queries[list(asked)],
            job.k,
            job.filter,
            visible,
            job.recall,
            job.params,
        )


def _hold(call: PartCall) -> tuple[_Held, bool]:
    key = call.folder, call.number
    with _retained_lock:
        held = _retained.get(key)
        if held is not None:
            _retained.move_to_end(key)
            return held, False
    held = _Held(call)
    with _retained_lock:
        _retained[key] = held
        while len(_retained) > _RETAINED:
            _retained.popitem(last=False)
    return held, True


def _crew(kind: str, workers: int) -> Crew:
    if kind == "threads":
        return Threads(serve, workers)
    if kind == "processes":
        from windlass.core.crew_processes import Processes

        return Processes(serve, workers)
    if kind == "ray":
        from windlass.core.crew_ray import Ray

        return Ray(serve, workers)
    raise BadInput(f"no functions of kind {kind!r}", hint="choose threads, processes or ray")


def _settle(future: Future[PartAnswer], outcome: Outcome) -> None:
    if outcome.error is None:
        future.set_result(outcome.result)
    else:
        future.set_exception(outcome.error)
