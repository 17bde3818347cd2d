"""Tables that share only a part of their rows, or share them under other column names.

Beyond R2D2 (Shah et al., SIGMOD 2024), which looks for whole containment under equal names; its paper names both as
what real lakes are full of. How much of a child is in a parent is counted by row hashes, exactly; profiles only leave
out pairs that cannot reach the threshold. A column of which `m` distinct values are missing in the parent takes at
least `m` distinct rows with it: where the smallest hashes of a column show too many missing, the pair is dropped (for
certain when they hold all values, else with an error below 0.001, by Hoeffding's bound).

Under other names: the column of a child that tells most (of integers, only such that lie far apart) is looked for in
all columns of all tables by its 16 smallest hashes; where it is found, the other columns are paired by their values, at
most 64 ways, and each way is counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.kernels.cells import NULL
from windlass.kernels.sketches import bottom_misses, count_held, count_members
from windlass.lake.containment import ColumnFacts, LakeTable, LoadedTables, candidate_lots, schema_groups
from windlass.lake.hashing import HashedTable
from windlass.lake.profile import ColumnProfile

_ERROR = 1e-3
_PROBES = 16
_FOUND_PROBES = 13
_LEAST_ANCHOR = 8
_CLOSE = 0.2
_SIMILAR = 0.95
_RENAMED_SHARE = 0.9
_WAYS = 64
_STEPS = 4_000
_LOT = 2_000
_PAIRS_BY_PROFILE = 20_000


class Overlap(NamedTuple):
    """`share` of the child's distinct rows are in the parent, its `columns` compared with the parent's `keys`."""

    child: str
    parent: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    share: float
    child_rows: int
    parent_rows: int

    @property
    def renamed(self) -> bool:
        """Whether a column is called otherwise in the parent."""
        return self.columns != self.keys


def find_overlaps(
    tables: Sequence[LakeTable],
    *,
    threshold: float = 0.5,
    fresh: Collection[str] | None = None,
    progress: Progress | None = None,
) -> list[Overlap]:
    """Every ordered pair of tables of which at least `threshold` of the first's rows are in the second; sorted.

    Whole containment is among them. Pairs under equal names are all found (but for the error above); under other names,
    those of two columns and more that pair up one to one with at least 95 % of their cells and share 90 % of the rows.

    Args:
        tables: With profiles; tables without columns or rows take no part.
        threshold: Above 0, at most 1.
        fresh: Only pairs that one of these ids is in; None for all.
        progress: Hears of the stage `overlap`.

    Raises:
        UsageError: The threshold is out of range, or two tables have one id.
        Cancelled: Stopped through `progress`.
    """
    if not 0 < threshold <= 1:
        raise UsageError(f"a share of {threshold} cannot be asked for", hint="above 0, at most 1")
    if len({table.id for table in tables}) != len(tables):
        raise UsageError("two tables have the same id", hint="give every table an id of its own")
    progress = progress or Silent()
    tables = sorted((table for table in tables if table.profile.rows and table.columns), key=lambda table: table.id)
    chosen = np.array([fresh is None or table.id in fresh for table in tables], np.bool_)
    search = _Search(tables, chosen, threshold, progress)
    found = {edge[:2]: edge for edge in search.by_names()}
    for edge in search.by_values():
        if edge[:2] not in found:
            found[edge[:2]] = edge
    return sorted(found.values())


class _Search:
    def __init__(
        self, tables: Sequence[LakeTable], chosen: NDArray[np.bool_], threshold: float, progress: Progress
    ) -> None:
        self._tables = tables
        self._chosen = chosen
        self._threshold = threshold
        self._progress = progress
        self._loaded = LoadedTables(tables)
        self._facts = ColumnFacts(tables)

    def by_names(self) -> Iterator[Overlap]:
        """Pairs in which every column of the child has its name in the parent."""
        by_parent: dict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for child, parent in self._possible().tolist():
            by_parent[parent, tuple(sorted(self._tables[child].columns))].append(child)
        self._progress.start("overlap", len(by_parent), "tables")
        for (parent, columns), children in sorted(by_parent.items()):
            check_cancelled(self._progress)
            rows = self._loaded[parent].row_hashes(columns)
            for child in children:
                yield from self._edge(child, parent, columns, columns, self._loaded[child].row_hashes(columns), rows)
            self._progress.advance("overlap", detail=self._tables[parent].id)
        self._progress.finish("overlap")

    def by_values(self) -> Iterator[Overlap]:
        """Pairs whose columns hold the same values under other names."""
        for (child, place, parent, key), fits in self._plausible(sorted(self._anchored())):
            check_cancelled(self._progress)
            ways = islice(self._pairings(child, place, parent, key, fits), _WAYS)
            edges = (edge for keys in ways for edge in self._mapped(child, parent, keys))
            best: Overlap | None = None
            for edge in edges:
                if best is None or edge.share > best.share:
                    best = edge
                if best.share == 1:
                    break
            if best is not None and best.renamed and best.share >= _RENAMED_SHARE:
                yield best

    def _possible(self) -> NDArray[np.int64]:
        """int64[pairs, 2]: pairs of tables that no profile of a column rules out."""
        groups = schema_groups([frozenset(table.columns) for table in self._tables])
        found = [np.empty((0, 2), np.int64)]
        rows = np.array([table.profile.rows for table in self._tables], np.float64)
        for lot in candidate_lots(self._facts, groups, self._chosen):
            missing = self._least_missing(lot.children.ravel(), lot.parents.ravel()).reshape(lot.children.shape)
            allowed = (1 - self._threshold) * rows[lot.pairs[:, 0]] + 1e-9
            found.append(lot.pairs[(missing <= allowed[:, None]).all(axis=1)])
        return np.concatenate(found)

    def _least_missing(self, children: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64[n]: how many distinct values of each child column are not in its parent column, at the least."""
        facts = self._facts
        fewer = np.maximum(facts.at_least[children] - facts.at_most[parents], 0)
        compared, missing = np.empty(children.size, np.int64), np.empty(children.size, np.int64)
        bottom_misses(facts.bottoms, facts.bottom_ends, children, parents, compared, missing)
        some = np.maximum(compared, 1)
        share = missing / some - np.sqrt(math.log(1 / _ERROR) / (2 * some))
        least: NDArray[np.float64] = np.maximum(np.maximum(fewer, missing), share * facts.at_least[children])
        return least

    def _edge(
        self, child: int, parent: int, columns: tuple[str, ...], keys: tuple[str, ...], rows: object, others: object
    ) -> Iterator[Overlap]:
        distinct, common = count_members(rows, others)
        if common >= self._threshold * distinct:
            one, other = self._tables[child], self._tables[parent]
            yield Overlap(one.id, other.id, columns, keys, common / distinct, one.profile.rows, other.profile.rows)

    def _anchored(self) -> set[tuple[int, int, int, int]]:
        """(child, its column that tells most, parent, the column of the parent that has its smallest hashes)."""
        anchors = [
            (number, place)
            for number, table in enumerate(self._tables)
            # One column alone is in another one by accident too often to call it renamed.
            if len(table.columns) > 1 and (place := _anchor(table)) is not None
        ]
        if not anchors:
            return set()
        bottoms = [self._tables[number].profile.columns[place].bottom[:_PROBES] for number, place in anchors]
        needed = np.array([math.ceil(len(bottom) * _FOUND_PROBES / _PROBES) for bottom in bottoms])
        probes, places = np.unique(np.concatenate(bottoms), return_inverse=True)
        owners = np.repeat(np.arange(len(anchors)), [len(bottom) for bottom in bottoms])[np.argsort(places)]
        ends = np.cumsum(np.concatenate([[0], np.bincount(places)]))
        found: set[tuple[int, int, int, int]] = set()
        parents = self._possible_parents(anchors)
        self._progress.start("overlap", len(parents), "tables")
        for parent in parents:
            check_cancelled(self._progress)
            hashed = self._loaded[parent]
            for key in range(len(hashed.names)):
                near = np.minimum(np.searchsorted(probes, hashed.hashes[key]), len(probes) - 1)
                there = np.unique(near[probes[near] == hashed.hashes[key]])
                if not len(there):
                    continue
                hits = np.bincount(
                    np.concatenate([owners[ends[p] : ends[p + 1]] for p in there]), minlength=len(anchors)
                )
                for which in np.flatnonzero(hits >= needed).tolist():
                    child, place = anchors[which]
                    wanted = child != parent and (self._chosen[child] or self._chosen[parent])
                    # Under the names that they have, `by_names` has compared them.
                    if wanted and not self._tables[child].columns.keys() <= self._tables[parent].columns.keys():
                        found.add((child, place, parent, key))
            self._progress.advance("overlap", detail=self._tables[parent].id)
        self._progress.finish("overlap")
        return found

    def _possible_parents(self, anchors: Sequence[tuple[int, int]]) -> Sequence[int]:
        """Tables to look for anchors in: all, or of few fresh tables those that may hold one, and the fresh ones."""
        everyone = range(len(self._tables))
        fresh = np.flatnonzero(self._chosen).tolist()
        if len(fresh) * len(everyone) > _PAIRS_BY_PROFILE:
            return everyone
        own = [anchor for anchor in anchors if self._chosen[anchor[0]]]
        pairs = [(child, place, parent, 0) for child, place in own for parent in everyone if parent != child]
        return sorted({*fresh, *(entry[2] for entry, _ in self._plausible(pairs))})

    def _plausible(
        self, anchored: Sequence[tuple[int, int, int, int]]
    ) -> Iterator[tuple[tuple[int, int, int, int], NDArray[np.bool_]]]:
        """Those in which every column of the child may nearly be in some column of the parent, by the profiles.

        With each comes bool[columns of the child, columns of the parent], which may be in which.
        """
        first = self._facts.first
        orders = [[place for _, place in sorted(table.columns.items())] for table in self._tables]
        for start in range(0, len(anchored), _LOT):
            lot = anchored[start : start + _LOT]
            shapes = [(len(orders[child]), len(orders[parent])) for child, _, parent, _ in lot]
            children = [np.repeat(first[e[0]] + np.arange(n), m) for e, (n, m) in zip(lot, shapes, strict=True)]
            parents = [np.tile(first[e[2]] + np.arange(m), n) for e, (n, m) in zip(lot, shapes, strict=True)]
            missing = self._least_missing(np.concatenate(children), np.concatenate(parents))
            at = 0
            for entry, shape in zip(lot, shapes, strict=True):
                child, _, parent, _ = entry
                by_name = missing[at : at + shape[0] * shape[1]].reshape(shape)
                at += by_name.size
                fits = np.empty(shape, np.bool_)
                fits[np.ix_(orders[child], orders[parent])] = (
                    by_name <= (1 - _SIMILAR) * self._tables[child].profile.rows
                )
                if fits.any(axis=1).all() and fits.any(axis=0).sum() >= shape[0]:
                    yield entry, fits

    def _pairings(self, child: int, place: int, parent: int, key: int, fits: NDArray[np.bool_]) -> Iterator[list[int]]:
        """Ways to give each column of the child one of the parent's, likelier ones first."""
        own, other = self._loaded[child], self._loaded[parent]
        choices: dict[int, list[int]] = {}
        # What tells most comes first: mostly the rest is not even looked at.
        for column in sorted(range(len(own.names)), key=lambda column: column != place):
            able = [key] if column == place else [k for k in np.flatnonzero(fits[column]).tolist() if k != key]
            choices[column] = [k for k in able if _holds(own, column, other, k)]
            if not choices[column]:
                return
            choices[column].sort(key=lambda k: (own.keys[column] != other.keys[k], k))
        yield from _injective(choices)

    def _mapped(self, child: int, parent: int, keys: list[int]) -> Iterator[Overlap]:
        own, other = self._loaded[child], self._loaded[parent]
        rows = own.tuple_hashes(range(len(keys)), own.seeds)
        others = other.tuple_hashes(keys, own.seeds)
        yield from self._edge(child, parent, own.keys, tuple(other.keys[key] for key in keys), rows, others)


def _anchor(table: LakeTable) -> int | None:
    """The column by which a table is looked for: most distinct values, but no integers that lie close together.

    Years, ages and counts are in many columns by accident; a table that has nothing else is not looked for.
    """
    able = [
        (profile.column.distinct, -place)
        for place, profile in enumerate(table.profile.columns)
        if profile.column.distinct >= _LEAST_ANCHOR and not _is_close(profile)
    ]
    return -max(able)[1] if able else None


def _is_close(profile: ColumnProfile) -> bool:
    return profile.column.type == "integer" and profile.column.distinct > _CLOSE * (profile.high - profile.low + 1)


def _holds(own: HashedTable, column: int, other: HashedTable, key: int) -> bool:
    """Whether nearly all filled cells of a column have a value of another one."""
    filled = own.kinds[column] != NULL
    if not filled.any():
        return own.keys[column] == other.keys[key]
    cells = own.hashes[column][filled]
    return bool(count_held(cells, other.hashes[key]) >= _SIMILAR * len(cells))


def _injective(choices: Mapping[int, Sequence[int]]) -> Iterator[list[int]]:
    """Ways to choose something different for everyone, earlier choices first; gives up after some thousand steps."""
    order = sorted(choices, key=lambda who: (len(choices[who]), who))
    taken: dict[int, int] = {}
    left = [_STEPS]

    def extend(depth: int) -> Iterator[list[int]]:
        if depth == len(order):
            yield [taken[who] for who in sorted(choices)]
            return
        for choice in choices[order[depth]]:
            left[0] -= 1
            if left[0] < 0:
                return
            if choice not in taken.values():
                taken[order[depth]] = choice
                yield from extend(depth + 1)
                del taken[order[depth]]

    yield from extend(0)
