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
from functools import cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.kernels.sketches import bottom_misses, count_members
from windlass.lake.hashing import HashedTable
from windlass.lake.profile import TableProfile
from windlass.lake.text_dedup import PairStage

if TYPE_CHECKING:
    from windlass.core.tasks import TaskPool

_HELD_CELLS = 20_000_000
_LOT_CELLS = 1_000_000


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
    tables: Sequence[LakeTable],
    *,
    fresh: Collection[str] | None = None,
    task_pool: TaskPool | None = None,
    progress: Progress | None = None,
) -> ContainmentGraph:
    """Every ordered pair of tables of which the first is contained in the second.

    Args:
        tables: With profiles; tables without columns or rows take no part.
        fresh: Only pairs that one of these ids is in; None for all.
        task_pool: Where rows are compared, one task a parent; `load` of the tables must be fit to be sent there.
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
    groups = schema_groups([frozenset(table.columns) for table in tables])
    pairs = sum(len(small) * len(large) - len(set(small) & set(large)) for small, large in groups)
    stages.append(PairStage("columns", len(tables) * (len(tables) - 1), pairs, time.perf_counter() - clock))
    clock = time.perf_counter()
    chosen = np.array([fresh is None or table.id in fresh for table in tables], np.bool_)
    possible = possible_pairs(tables, groups, chosen)
    stages.append(PairStage("profiles", pairs, len(possible), time.perf_counter() - clock))
    clock = time.perf_counter()
    edges = sorted(_verified(tables, possible, task_pool, progress))
    stages.append(PairStage("rows", len(possible), len(edges), time.perf_counter() - clock))
    return ContainmentGraph(tuple(edges), tuple(stages))


def schema_groups(schemas: Sequence[frozenset[str]]) -> list[tuple[list[int], list[int]]]:
    """Groups of tables by their columns: those of one set of columns, and those of a set that holds it.

    Every pair `(i, j)` with `schemas[i] <= schemas[j]` is in exactly one entry, `i` on its left and `j` on its right,
    among them every `(i, i)`.

    Example:
        >>> schema_groups([frozenset("ab"), frozenset("abc"), frozenset("d")])
        [([0], [0]), ([0], [1]), ([1], [1]), ([2], [2])]
    """
    members: dict[frozenset[str], list[int]] = defaultdict(list)
    for number, schema in enumerate(schemas):
        members[schema].append(number)
    distinct = list(members)
    having: dict[str, int] = defaultdict(int)
    for number, schema in enumerate(distinct):
        for column in schema:
            having[column] |= 1 << number
    found = []
    for number, schema in enumerate(distinct):
        above = -1
        for column in sorted(schema, key=lambda column: having[column].bit_count()):
            above &= having[column]
            if above == 1 << number:
                break
        found += [(members[schema], members[distinct[place]]) for place in _bits(above)]
    return found


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


class ColumnFacts:
    """What profiles say of all columns of all tables, side by side; tables' columns stand in the order of names."""

    def __init__(self, tables: Sequence[LakeTable]) -> None:
        ordered = [[table.profile.columns[place] for _, place in sorted(table.columns.items())] for table in tables]
        columns = [column for own in ordered for column in own]
        self.names = [sorted(table.columns) for table in tables]
        self.first = np.cumsum([0, *map(len, ordered)])
        self.nulls = np.array([column.column.nulls > 0 for column in columns], np.bool_)
        # What was only estimated bounds nothing: as a child it has no value, as a parent all of them.
        distinct = np.array([column.column.distinct for column in columns], np.float64)
        exact = np.array([column.exact for column in columns], np.bool_)
        self.at_least = np.where(exact, distinct, 0)
        self.at_most = np.where(exact, distinct, np.inf)
        self.low = np.array([column.low for column in columns], np.float64)
        self.high = np.array([column.high for column in columns], np.float64)
        self.bottom_ends = np.cumsum([0, *(column.bottom.size for column in columns)])
        self.bottoms = np.concatenate([np.empty(0, np.uint64), *(column.bottom for column in columns)])

    def may_hold(self, children: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool[n]: whether counts and ranges allow that each parent column holds its child's values."""
        possible = self.nulls[parents] | ~self.nulls[children]
        possible &= self.at_least[children] <= self.at_most[parents]
        # A comparison with nan is False: where the parent has no number, a child with one is ruled out.
        inside = (self.low[children] >= self.low[parents]) & (self.high[children] <= self.high[parents])
        answer: NDArray[np.bool_] = possible & (inside | np.isnan(self.low[children]))
        return answer

    def hashes_fit(self, children: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The same by the smallest hashes of their values."""
        compared, missing = np.empty(children.size, np.int64), np.empty(children.size, np.int64)
        bottom_misses(self.bottoms, self.bottom_ends, children, parents, compared, missing)
        fits: NDArray[np.bool_] = missing == 0
        return fits


def possible_pairs(
    tables: Sequence[LakeTable], groups: Sequence[tuple[list[int], list[int]]], chosen: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """int64[pairs, 2]: pairs of tables, one of them chosen, that no profile of a column rules out."""
    facts = ColumnFacts(tables)
    found = [np.empty((0, 2), np.int64)]
    lots: list[Lot] = []
    size = 0
    for lot in candidate_lots(facts, groups, chosen):
        lots.append(lot)
        size += lot.children.size
        if size > _LOT_CELLS:
            found.append(_not_ruled_out(facts, lots))
            lots, size = [], 0
    if lots:
        found.append(_not_ruled_out(facts, lots))
    return np.concatenate(found)


class Lot(NamedTuple):
    """Pairs of tables (int64[pairs, 2]) and of their columns, each int64[pairs, columns of the child]."""

    pairs: NDArray[np.int64]
    children: NDArray[np.int64]
    parents: NDArray[np.int64]


def candidate_lots(
    facts: ColumnFacts, groups: Sequence[tuple[list[int], list[int]]], chosen: NDArray[np.bool_]
) -> Iterator[Lot]:
    """The pairs of tables by column names, one of them chosen, with their columns side by side."""
    for small, large in groups:
        if len(small) == 1 and small == large:
            continue
        names = facts.names[small[0]]
        index = {name: place for place, name in enumerate(facts.names[large[0]])}
        places = np.array([index[name] for name in names])
        step = max(1, _LOT_CELLS // (len(large) * len(names)))
        for begin in range(0, len(small), step):
            part = small[begin : begin + step]
            pairs = np.stack([np.repeat(part, len(large)), np.tile(large, len(part))], axis=1)
            pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & chosen[pairs].any(axis=1)]
            if len(pairs):
                own = facts.first[pairs[:, 0]][:, None] + np.arange(len(names))
                yield Lot(pairs, own, facts.first[pairs[:, 1]][:, None] + places)


def _not_ruled_out(facts: ColumnFacts, lots: Sequence[Lot]) -> NDArray[np.int64]:
    """The pairs of which every column of the child may be in its column of the parent."""
    pairs = np.concatenate([lot.pairs for lot in lots])
    widths = np.concatenate([np.full(len(lot.pairs), lot.children.shape[1]) for lot in lots])
    children = np.concatenate([lot.children.ravel() for lot in lots])
    parents = np.concatenate([lot.parents.ravel() for lot in lots])
    for rule in (facts.may_hold, facts.hashes_fit):
        if not len(pairs):
            break
        starts = np.cumsum(widths) - widths
        possible = np.logical_and.reduceat(rule(children, parents), starts)
        cells = np.repeat(possible, widths)
        pairs, widths, children, parents = pairs[possible], widths[possible], children[cells], parents[cells]
    return pairs


class LoadedTables:
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


class Block(NamedTuple):
    """One parent and what is to be looked for in it: the work of one task, which reads every table it needs itself.

    `parts` holds, for each set of columns, the children as (number, how to load it).
    """

    load: Callable[[], HashedTable]
    parts: tuple[tuple[tuple[str, ...], tuple[tuple[int, Callable[[], HashedTable]], ...]], ...]


def compare_block(block: Block) -> list[tuple[int, tuple[str, ...], int]]:
    """(number, columns, distinct rows) of the children whose rows are all in the parent."""
    parent = block.load()
    found = []
    for columns, children in block.parts:
        rows = parent.row_hashes(columns)
        for number, load in children:
            distinct, common = count_members(load().row_hashes(columns), rows)
            if common == distinct:
                found.append((number, columns, int(distinct)))
    return found


def blocks_of(
    tables: Sequence[LakeTable], pairs: NDArray[np.int64], load: Callable[[int], Callable[[], HashedTable]]
) -> list[tuple[int, Block]]:
    """The comparisons of pairs of tables by parent, so that each parent is read once, and projected once a schema."""
    by_parent: dict[int, dict[tuple[str, ...], list[int]]] = defaultdict(lambda: defaultdict(list))
    for child, parent in pairs.tolist():
        by_parent[parent][tuple(sorted(tables[child].columns))].append(child)
    return [
        (
            parent,
            Block(
                load(parent),
                tuple((columns, tuple((n, load(n)) for n in own)) for columns, own in sorted(parts.items())),
            ),
        )
        for parent, parts in sorted(by_parent.items())
    ]


def _verified(
    tables: Sequence[LakeTable], pairs: NDArray[np.int64], task_pool: TaskPool | None, progress: Progress
) -> Iterator[Contained]:
    """The pairs of which all rows were compared."""
    held = LoadedTables(tables)

    def load(number: int) -> Callable[[], HashedTable]:
        # Here, tables that were just used are kept; a task elsewhere has only what it reads.
        return partial(held.__getitem__, number) if task_pool is None else tables[number].load

    blocks = blocks_of(tables, pairs, load)
    work = [block for _, block in blocks]
    progress.start("contain", len(blocks), "tables")
    results = map(compare_block, work) if task_pool is None else task_pool.map(compare_block, work)
    for (parent, _), found in zip(blocks, results, strict=True):
        check_cancelled(progress)
        for child, columns, distinct in found:
            yield _edge(tables[child], tables[parent], columns, distinct)
        progress.advance("contain", detail=tables[parent].id)
    progress.finish("contain")


def _edge(child: LakeTable, parent: LakeTable, columns: tuple[str, ...], distinct: int) -> Contained:
    trivial = distinct <= 1 or all(column.column.distinct <= 2 for column in child.profile.columns)
    return Contained(child.id, parent.id, columns, child.profile.rows, parent.profile.rows, trivial)
