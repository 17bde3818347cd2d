"""Which tables are contained in which: every row of the child, on the child's columns, is in the parent.

Follows R2D2 (Shah et al., SIGMOD 2024): pairs by column names, then by ranges, then by content. What differs: pairs by
column names come from one bit set a column instead of clusters around centres (the same pairs); ranges are joined by
null counts, distinct counts and the smallest hashes of each column, all sound for exact containment; and the random
sample of rows gives way to looking at all of them, since one pass over the parent is what a sample costs too. So no
true pair is ever dropped and no false one is reported, but for collisions of 64-bit hashes.

Rows are compared as sets. Whoever acts on the result needs the recipe that `reclaim` verifies byte by byte.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.kernels.sketches import bottoms_fit, count_members
from windlass.lake.hashing import HashedTable
from windlass.lake.profile import TableProfile
from windlass.lake.text_dedup import PairStage

_HELD_CELLS = 20_000_000


@dataclass(frozen=True)
class LakeTable:
    """A table that may be compared.

    Attributes:
        id: A name of its own.
        profile: What is known without reading it.
        load: Reads and hashes it; called only for pairs that nothing else decides.
    """

    id: str
    profile: TableProfile
    load: Callable[[], HashedTable]

    @cached_property
    def columns(self) -> dict[str, int]:
        """Column names as they are compared, and where they stand."""
        return {column.name.lower(): place for place, column in enumerate(self.profile.columns)}


class Contained(NamedTuple):
    """A child table whose rows are all in the parent.

    `trivial` says that this is no wonder: the child has at most one row, or no column with more than two values.
    """

    child: str
    parent: str
    columns: tuple[str, ...]
    child_rows: int
    parent_rows: int
    trivial: bool


@dataclass(frozen=True)
class ContainmentGraph:
    """All pairs that were found, sorted, and how many were alive after each stage."""

    edges: tuple[Contained, ...]
    stages: tuple[PairStage, ...]

    def duplicates(self) -> list[list[str]]:
        """Groups of tables with the same columns and the same set of rows; sorted."""
        pairs = {(edge.child, edge.parent) for edge in self.edges}
        groups: dict[str, set[str]] = defaultdict(set)
        for child, parent in pairs:
            if (parent, child) in pairs:
                groups[min(child, parent)].update((child, parent))
        firsts = {name for first, group in groups.items() for name in group if name != first}
        return sorted(sorted(group) for first, group in groups.items() if first not in firsts)

    def explain(self, child: str, parent: str) -> str:
        """Why a table counts as contained in another, or that it does not."""
        for edge in self.edges:
            if (edge.child, edge.parent) == (child, parent):
                rows = f"all {edge.child_rows:,} rows of {child} are among the {edge.parent_rows:,} of {parent}"
                return f"{rows} on {', '.join(edge.columns)}"
        return f"{child} is not contained in {parent}"


def find_containment(
    tables: Sequence[LakeTable], *, fresh: Collection[str] | None = None, progress: Progress | None = None
) -> ContainmentGraph:
    """Every ordered pair of tables of which the first is contained in the second.

    Args:
        tables: With profiles; tables without columns or rows take no part.
        fresh: Only pairs that one of these ids is in; None for all.
        progress: Hears of the stage `contain`.

    Raises:
        UsageError: Two tables have one id.
        Cancelled: Stopped through `progress`.
    """
    progress = progress or Silent()
    if len({table.id for table in tables}) != len(tables):
        raise UsageError("two tables have the same id", hint="give every table an id of its own")
    tables = sorted((table for table in tables if table.profile.rows and table.columns), key=lambda table: table.id)
    stages: list[PairStage] = []
    clock = time.perf_counter()
    pairs = schema_pairs([frozenset(table.columns) for table in tables])
    if fresh is not None:
        chosen = np.array([table.id in fresh for table in tables], np.bool_)
        pairs = pairs[chosen[pairs].any(axis=1)]
    stages.append(PairStage("columns", len(tables) * (len(tables) - 1), len(pairs), time.perf_counter() - clock))
    clock = time.perf_counter()
    possible = pairs[_may_be_contained(tables, pairs)]
    stages.append(PairStage("profiles", len(pairs), len(possible), time.perf_counter() - clock))
    clock = time.perf_counter()
    edges = sorted(_verified(tables, possible, progress))
    stages.append(PairStage("rows", len(possible), len(edges), time.perf_counter() - clock))
    return ContainmentGraph(tuple(edges), tuple(stages))


def schema_pairs(schemas: Sequence[frozenset[str]]) -> NDArray[np.int64]:
    """int64[pairs, 2]: all (i, j), i != j, for which the columns of `i` are among those of `j`; sorted.

    Example:
        >>> schema_pairs([frozenset("ab"), frozenset("abc"), frozenset("d")]).tolist()
        [[0, 1]]
    """
    members: dict[frozenset[str], list[int]] = defaultdict(list)
    for number, schema in enumerate(schemas):
        members[schema].append(number)
    distinct = list(members)
    having: dict[str, int] = defaultdict(int)
    for number, schema in enumerate(distinct):
        for column in schema:
            having[column] |= 1 << number
    found: list[tuple[int, int]] = []
    for number, schema in enumerate(distinct):
        above = -1
        for column in sorted(schema, key=lambda column: having[column].bit_count()):
            above &= having[column]
            if above == 1 << number:
                break
        wider = [j for place in _bits(above) for j in members[distinct[place]]]
        found += [(i, j) for i in members[schema] for j in wider if i != j]
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def _may_be_contained(tables: Sequence[LakeTable], pairs: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[pairs]: False where the profiles of some column rule containment out."""
    if not len(pairs):
        return np.zeros(0, np.bool_)
    first_column = np.cumsum([0, *(len(table.columns) for table in tables)])
    columns = [column for table in tables for column in table.profile.columns]
    sizes = np.array([len(tables[child].columns) for child, _ in pairs])
    children = np.concatenate([np.arange(first_column[c], first_column[c + 1]) for c, _ in pairs])
    wider = [(first_column[parent], tables[parent].columns, tables[child].columns) for child, parent in pairs]
    parents = np.array([first + places[name] for first, places, names in wider for name in names])
    nulls = np.array([column.column.nulls for column in columns]) > 0
    distinct = np.array([column.column.distinct for column in columns])
    exact = np.array([column.exact for column in columns])
    low, high = np.array([column.low for column in columns]), np.array([column.high for column in columns])
    possible = nulls[parents] | ~nulls[children]
    possible &= (distinct[children] <= distinct[parents]) | ~(exact[children] & exact[parents])
    has_numbers = ~np.isnan(low)
    # A comparison with nan is False: where the parent has no number, a child with one is ruled out.
    inside = (low[children] >= low[parents]) & (high[children] <= high[parents])
    possible &= ~has_numbers[children] | inside
    offsets = np.concatenate([[0], np.cumsum([column.bottom.size for column in columns])]).astype(np.int64)
    bottoms = np.concatenate([column.bottom for column in columns])
    fits = np.empty(len(children), np.bool_)
    bottoms_fit(bottoms, offsets, children, parents, fits)
    possible &= fits
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    answer: NDArray[np.bool_] = np.logical_and.reduceat(possible, starts)
    return answer


class _Loaded:
    """Hashed tables by number, the last used ones kept, and their row hashes on sets of columns."""

    def __init__(self, tables: Sequence[LakeTable]) -> None:
        self._tables = tables
        self._held: dict[int, HashedTable] = {}
        self._cells = 0

    def __getitem__(self, number: int) -> HashedTable:
        table = self._held.pop(number, None)
        if table is None:
            table = self._tables[number].load()
            self._cells += table.hashes.size
            while self._held and self._cells > _HELD_CELLS:
                self._cells -= self._held.pop(next(iter(self._held))).hashes.size
        self._held[number] = table
        return table


def _verified(tables: Sequence[LakeTable], pairs: NDArray[np.int64], progress: Progress) -> Iterator[Contained]:
    """The pairs of which all rows were compared; grouped by parent, so that each is read and projected once."""
    progress.start("contain", len(pairs), "pairs")
    loaded = _Loaded(tables)
    by_parent: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
    for child, parent in pairs.tolist():
        by_parent[parent, tuple(sorted(tables[child].columns))].append(child)
    for (parent, columns), children in sorted(by_parent.items()):
        rows = loaded[parent].row_hashes(columns)
        for child in children:
            check_cancelled(progress)
            progress.advance("contain")
            distinct, found = count_members(loaded[child].row_hashes(columns), rows)
            if found == distinct:
                yield _edge(tables[child], tables[parent], columns, distinct)
    progress.finish("contain")


def _edge(child: LakeTable, parent: LakeTable, columns: tuple[str, ...], distinct: int) -> Contained:
    trivial = distinct <= 1 or all(column.column.distinct <= 2 for column in child.profile.columns)
    return Contained(child.id, parent.id, columns, child.profile.rows, parent.profile.rows, trivial)
