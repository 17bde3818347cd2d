"""From a question to rows: filter and access first, then the rows, then the best of all parts.

Which rows may be returned is settled before any distance is computed; no later stage can add one. Then each part is
searched by its index, or exactly where it has none or where so few rows are left that looking at all of them is
faster.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.core.access import Access, AccessRequired
from windlass.core.filter_text import parse_filter
from windlass.core.filters import Filter
from windlass.vectors.errors import BadInput, Timeout
from windlass.vectors.indexes import Allowed
from windlass.vectors.memory import MemoryView
from windlass.vectors.results import Counters, SearchRequest, SearchResult
from windlass.vectors.schema import Schema
from windlass.vectors.state import Part, View
from windlass.vectors.tenants import TenantRows

Rows = NDArray[np.int64]
Found = tuple[NDArray[np.float32], Rows, NDArray[Any]]

MAX_K = 100_000
_REMEMBERED_BYTES = 64 << 20
_Key = tuple[int, frozenset[str], Filter | None]


class Searcher:
    """Answers questions about a view; remembers which rows of a part a set of tenants has and a filter lets pass."""

    def __init__(self) -> None:
        self._remembered: OrderedDict[_Key, tuple[tuple[int, ...], Any, Allowed, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def search(
        self,
        view: View,
        query: Any,
        k: int,
        *,
        filter: Filter | str | None,
        access: Access | None,
        recall: float | None,
        params: Mapping[str, Any],
        include: Sequence[str],
        timeout_s: float | None,
    ) -> SearchResult:
        """See `Collection.search`."""
        deadline = None if timeout_s is None else time.perf_counter() + timeout_s
        if isinstance(k, bool) or not isinstance(k, int) or not 0 <= k <= MAX_K:
            raise BadInput(f"k is {k!r}", hint=f"give 0 to {MAX_K:,}")
        _check_included(view.schema, include)
        queries = checked_queries(view.schema, query)
        counters, began = Counters(), time.perf_counter()
        allowed = self.asking(view, filter, access)
        chosen = [(part, allowed(part, counters)) for part in view.parts if part.source.count]
        chosen = [(part, rows) for part, rows in chosen if len(rows.rows)]
        counters.segments = len(chosen)
        counters.ms_by_stage["mask"] = 1000 * (time.perf_counter() - began)
        began = time.perf_counter()
        answers = []
        for one in queries:
            if deadline is not None and time.perf_counter() > deadline:
                raise Timeout(f"the search took longer than {timeout_s} s", hint="allow more, or ask for less recall")
            found = [self.in_part(part, rows, one, k, recall, params, counters) for part, rows in chosen]
            answers.append(_merged(view.schema, found, k))
        counters.ms_by_stage["search"] = 1000 * (time.perf_counter() - began)
        return _result(view, answers, k, include, self._plan(chosen, params), counters)

    def asking(
        self, view: View, filter: Filter | str | None, access: Access | None
    ) -> Callable[[Part, Counters], Allowed]:
        """What tells the rows of a part of `view` that a filter and an access let pass.

        Raises:
            AccessRequired: The collection has tenants and nobody said for whom.
            FilterSyntaxError, FilterTypeError, UnknownField.
        """
        bound = bound_filter(view.schema, filter)
        names: frozenset[str] = frozenset()
        if view.schema.tenants:
            names = tenants_of(view, access)
        elif access is not None:
            raise BadInput("this collection has no tenants", hint="leave access out")

        def allowed(part: Part, counters: Counters) -> Allowed:
            if bound is None and not view.schema.tenants:
                return part.allowed
            found, masked = self._remembering(view.tenants, part, names, bound)
            counters.rows_masked += masked
            return found

        return allowed

    def in_part(
        self,
        part: Part,
        rows: Allowed,
        query: NDArray[np.float32],
        k: int,
        recall: float | None,
        params: Mapping[str, Any],
        counters: Counters,
    ) -> Found:
        """Scores of the best rows of a part, which of two equal ones comes first, and their ids."""
        if part.index is None or _exactly(part, rows, params):
            counters.vectors_scored += len(rows.rows)
            scores, best = part.source.exact(query, k, rows.rows)
        else:
            scores, best = part.index.search(query, k, rows, recall=recall, params=params, counters=counters)
        return scores, part.source.order[best], part.source.ids[best]

    def _remembering(
        self, tenants: TenantRows, part: Part, names: frozenset[str], bound: Filter | None
    ) -> tuple[Allowed, int]:
        """The live rows of a part that any of these tenants has and that pass a filter, and how many the filter kept
        out; remembered until something of it changes."""
        arrays = [tenants.one(name) for name in sorted(names)]
        key = (id(part.source), names, bound)
        state = (id(part.live), *(id(array) for array in arrays))
        with self._lock:
            known = self._remembered.get(key)
            if known is not None and known[0] == state:
                self._remembered.move_to_end(key)
                return known[2], known[3]
        rows = part.live_rows
        if part.source.schema.tenants:
            rows = part.source.positions(tenants.of(names))
            rows = rows[part.live[rows]]
        passed = rows if bound is None or not len(rows) else rows[part.source.passing(bound)[rows]]
        found, masked = Allowed(part.source.count, passed), len(rows) - len(passed)
        if isinstance(part.source, MemoryView):  # another one after every change
            return found, masked
        with self._lock:
            # What the key and the state name is kept with the entry, so that nothing else can come to have its id.
            old = self._remembered.pop(key, None)
            self._remembered[key] = (state, (part, arrays), found, masked)
            self._size += found.rows.nbytes - (0 if old is None else old[2].rows.nbytes)
            while self._size > _REMEMBERED_BYTES and len(self._remembered) > 1:
                self._size -= self._remembered.popitem(last=False)[1][2].rows.nbytes
        return found, masked

    def _plan(self, chosen: list[tuple[Part, Allowed]], params: Mapping[str, Any]) -> str:
        if not chosen:
            return "nothing passes the filter and the access"
        steps = []
        for part, rows in chosen:
            exact = _exactly(part, rows, params)
            steps.append(f"{'exact' if exact else part.source.kind} over {len(rows.rows)} rows")
        return "; ".join(steps)


def bound_filter(schema: Schema, filter: Filter | str | None) -> Filter | None:
    """A filter in either form, checked against the fields."""
    if filter is None:
        return None
    if not isinstance(filter, str | Filter):
        raise BadInput(f"a filter is a text or a Filter, not {filter!r}", hint="write it like year >= 2020")
    return (parse_filter(filter) if isinstance(filter, str) else filter).bind(schema.types)


def tenants_of(view: View, access: Access | None) -> frozenset[str]:
    """The tenants that `access` stands for.

    Raises:
        AccessRequired: Nobody said for whom.
    """
    if access is None:
        raise AccessRequired("this collection has tenants", hint="say for whom you ask: access=Access(tenants={...})")
    return view.tenants.resolve(access)


def checked_queries(schema: Schema, query: Any) -> NDArray[np.float32]:
    """float32 `[n, dim]`; a query of zeros is refused under cosine, like a vector."""
    array = np.asarray(query)
    if isinstance(query, SearchRequest):
        raise BadInput("a SearchRequest goes to search_batch")
    return schema.checked(array[None] if array.ndim == 1 else array)


def _exactly(part: Part, rows: Allowed, params: Mapping[str, Any]) -> bool:
    return part.index is None or len(rows.rows) <= int(params.get("exact_rows", part.index.exact_rows))


def _merged(schema: Schema, found: list[Found], k: int) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """The best k of all parts: higher scores first, then the lower id (or the older row, where ids are texts)."""
    if not found:
        return np.zeros(0, np.float32), np.zeros(0, np.int64 if schema.ids == "int" else object)
    if len(found) == 1:
        return found[0][0], found[0][2]
    scores, order, ids = (np.concatenate([one[column] for one in found]) for column in range(3))
    best = np.lexsort((order, -scores))[:k]
    return scores[best], ids[best]


def _result(
    view: View,
    answers: list[tuple[NDArray[np.float32], NDArray[Any]]],
    k: int,
    include: Sequence[str],
    plan: str,
    counters: Counters,
) -> SearchResult:
    sizes = np.array([len(score) for score, _ in answers], np.int64)
    if len(answers) == 1 and sizes[0] == k:
        scores, ids = answers[0][0][None], answers[0][1][None]
    else:
        scores = np.full((len(answers), k), -np.inf, np.float32)
        ids = np.full((len(answers), k), -1, np.int64) if view.schema.ids == "int" else np.full((len(answers), k), None)
        for number, (score, found) in enumerate(answers):
            scores[number, : len(score)], ids[number, : len(score)] = score, found
    extra = [name for name in include if name not in ("ids", "scores")]
    rows = [columns_of(view, found, extra) for _, found in answers] if extra else None
    return SearchResult(ids, scores, sizes, plan, counters, rows)


def columns_of(view: View, ids: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """For live ids of a view: float32 vectors, and lists of the values of fields, in the order of `ids`."""
    found: dict[str, list[Any]] = {name: [None] * len(ids) for name in names}
    for part in view.parts:
        rows, places = find_live(part, ids)
        if not len(rows):
            continue
        run = part.source.run(rows)
        values: dict[str, Any] = {name: run.columns[name].values() for name in names if name != "vectors"}
        if "vectors" in names:
            values["vectors"] = view.schema.decode(run.vectors, run.scales)
        for name in names:
            for place, value in zip(places.tolist(), values[name], strict=True):
                found[name][place] = value
    return found


def find_live(part: Part, ids: NDArray[Any]) -> tuple[Rows, Rows]:
    """The rows of a part that live under one of `ids`, and which of `ids` that is."""
    wanted = {row_id: place for place, row_id in enumerate(ids.tolist())}
    finder = getattr(part.source, "find", None)
    if finder is not None:
        rows = finder(ids)
        places = np.flatnonzero(rows >= 0)
        places = places[part.live[rows[places]]] if len(places) else places
        return rows[places], places
    live = part.live_rows
    known = [
        (row, wanted[row_id])
        for row, row_id in zip(live.tolist(), part.source.ids[live].tolist(), strict=True)
        if row_id in wanted
    ]
    return np.array([row for row, _ in known], np.int64), np.array([place for _, place in known], np.int64)


def _check_included(schema: Schema, include: Sequence[str]) -> None:
    known = ("ids", "scores", "vectors", *schema.fields)
    for name in [include] if isinstance(include, str) else include:
        if name not in known:
            raise BadInput(f"nothing called {name!r} can be included", hint=f"choose from {', '.join(known)}")
