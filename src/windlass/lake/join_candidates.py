"""Which columns may refer to which, and how likely that is: the local half of Auto-BI (Lin, He, Chaudhuri 2023).

A candidate is a column of one table of which at least 80 % of the distinct values are in a column of another table
that has (nearly) every value once. All of them are found at once over one sorted list of the keys' value hashes, not
pair by pair. How likely a candidate is follows from its names and its data by a logistic model, whose few weights lie
beside this file and can be read; the trees of the paper need a library to train and say less about why.

A table without a unique column may still be referred to, over two or three columns that tell its rows apart together.
The columns that fit each of them are found as above, and what they hold together is looked up by row hashes.

What differs from the paper: one model instead of two for joins to one and one to one; the names are compared by words
and letters only; keys of several columns; and columns that refer to their own table.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.kernels.cells import NULL
from windlass.lake.containment import LakeTable, LoadedTables
from windlass.lake.join_model import FEATURES, JoinModel
from windlass.lake.join_names import TableNames, abbreviates, alike, stands_for
from windlass.lake.profile import ColumnProfile, unique_groups
from windlass.lake.schema_graph import Join

LEAST_INCLUSION = 0.8
_NEARLY_UNIQUE = 0.95
_MOST_VALUES = 1_000_000
_KEY_PARTS = 10
_ABOVE = frozenset(("parent", "report", "manager", "supervisor", "boss", "head", "previous", "main", "super"))
_MOST_TUPLES = 32
_FAMILIES = {"integer": "number", "number": "number", "date": "time", "timestamp": "time", "text": "text"}


class Candidate(NamedTuple):
    """A possible join over one column or several, and what speaks for and against it: float64[features]."""

    child: str
    columns: tuple[str, ...]
    parent: str
    keys: tuple[str, ...]
    features: NDArray[np.float64]
    mutual: bool


@dataclass(frozen=True)
class _Column:
    table: int
    place: int
    profile: ColumnProfile
    values: NDArray[np.uint64]

    @property
    def family(self) -> str:
        return _FAMILIES.get(self.profile.column.type, "none")

    @property
    def is_key(self) -> bool:
        profile = self.profile
        if profile.column.type == "number" or profile.filled < 2 or profile.column.nulls > 0.05 * profile.rows:
            return False
        return len(self.values) >= _NEARLY_UNIQUE * profile.filled


class _Match(NamedTuple):
    """A column of which so large a share of the values is in another one, and so large a share of that one in it."""

    column: _Column
    key: _Column
    inclusion: float
    coverage: float


def find_joins(
    tables: Sequence[LakeTable], *, model: JoinModel | None = None, progress: Progress | None = None
) -> list[Join]:
    """Every candidate with its probability, most probable first.

    Raises:
        Cancelled: Stopped through `progress`.
    """
    candidates = find_candidates(tables, progress)
    if not candidates:
        return []
    chances = (model or JoinModel.load()).predict(np.stack([candidate.features for candidate in candidates]))
    joins = [
        Join(c.child, c.columns, c.parent, c.keys, float(chance), c.mutual, evidence(c))
        for c, chance in zip(candidates, chances, strict=True)
    ]
    return sorted(joins, key=lambda join: (-join.probability, join))


def evidence(candidate: Candidate) -> str:
    """What speaks for a join and against it, in words.

    Example:
        >>> features = dict.fromkeys(FEATURES, 0.0) | {"inclusion": 1.0, "coverage": 0.5, "same_name": 1.0}
        >>> values = np.array(list(features.values()))
        >>> evidence(Candidate("calls", ("berth",), "berths", ("berth",), values, False))
        'all values are in the key, which has 50 % of its values referred to; the names are the same'
    """
    known = dict(zip(FEATURES, candidate.features.tolist(), strict=True))
    inclusion = LEAST_INCLUSION + (1 - LEAST_INCLUSION) * known["inclusion"]
    share = "all values are" if inclusion == 1 else f"{100 * inclusion:.0f} % of the values are"
    said = [f"{share} in the key, which has {100 * known['coverage']:.0f} % of its values referred to"]
    if known["same_name"]:
        said.append("the names are the same")
    elif known["parent_covered"] >= 1 or known["head_matches"]:
        said.append(f"it is named after {candidate.parent}")
    elif known["unrelated_names"]:
        said.append("the names have nothing in common")
    if known["several"]:
        said.append("only together do the columns tell the rows apart")
    if known["dense_both"]:
        said.append("both count up from one, so they may agree by accident")
    elif known["measure"]:
        said.append("it may be a quantity")
    rivals = round(math.expm1(2 * known["rivals"]))
    if rivals > 0:
        said.append(f"the values are in keys of {rivals} more {'table' if rivals == 1 else 'tables'}")
    return "; ".join(said)


def find_candidates(tables: Sequence[LakeTable], progress: Progress | None = None) -> list[Candidate]:
    """All columns, and sets of up to three, that a join may be on; sorted.

    Raises:
        Cancelled: Stopped through `progress`.
    """
    columns, groups = _columns(tables, progress or Silent())
    parts = {(table, place) for table, own in enumerate(groups) for group in own for place in group}
    targets = [column for column in columns if column.is_key or (column.table, column.place) in parts]
    matches = _matches(columns, targets)
    described = _Described(tables, matches)
    found = described.singles([match for match in matches if match.key.is_key])
    found += described.several(groups, [match for match in matches if match.key.table != match.column.table])
    return sorted(found, key=lambda c: c[:4])


def _columns(tables: Sequence[LakeTable], progress: Progress) -> tuple[list[_Column], list[list[tuple[int, ...]]]]:
    """The columns that may take part, and for each table the sets of columns that tell its rows apart together."""
    columns, groups = [], []
    progress.start("join", len(tables), "tables")
    for number, table in enumerate(tables):
        check_cancelled(progress)
        hashed = table.load()
        own = []
        for place, profile in enumerate(table.profile.columns):
            if profile.column.type in _FAMILIES and profile.column.distinct <= _MOST_VALUES:
                values = np.unique(hashed.hashes[place][hashed.kinds[place] != NULL])
                own.append(_Column(number, place, profile, values))
        parts = [c for c in own if c.profile.column.type != "number" and not c.profile.column.nulls and not c.is_key]
        names = TableNames.of(table).columns
        parts = sorted(
            (c for c in parts if len(c.values) > 1), key=lambda c: (not names[c.place].is_key, -len(c.values))
        )
        parts = parts[:_KEY_PARTS]
        groups.append(list(unique_groups(hashed, table.profile.columns, sorted(c.place for c in parts))))
        columns += own
        progress.advance("join", detail=table.id)
    progress.finish("join")
    return columns, groups


def _matches(columns: Sequence[_Column], targets: Sequence[_Column]) -> list[_Match]:
    """The columns that are nearly included in a target, all at once over one sorted list of the targets' values."""
    if not targets:
        return []
    hashes = np.concatenate([target.values for target in targets])
    owners = np.repeat(np.arange(len(targets)), [len(target.values) for target in targets])
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    found = []
    for column in columns:
        if not len(column.values):
            continue
        left, right = np.searchsorted(hashes, column.values, "left"), np.searchsorted(hashes, column.values, "right")
        sizes = right - left
        places = np.repeat(left - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum())
        common = np.bincount(owners[places], minlength=len(targets))
        for number in np.flatnonzero(common >= LEAST_INCLUSION * len(column.values)):
            target = targets[int(number)]
            if (target.table, target.place) != (column.table, column.place) and target.family == column.family:
                inclusion, coverage = common[number] / len(column.values), common[number] / len(target.values)
                found.append(_Match(column, target, float(inclusion), float(coverage)))
    return found


class _Described:
    """Makes candidates of columns that match."""

    def __init__(self, tables: Sequence[LakeTable], matches: Sequence[_Match]) -> None:
        self._tables = tables
        self._names = [TableNames.of(table) for table in tables]
        self._derived = {(m.column.table, m.column.place) for m in matches if self._is_derived(m)}
        self._loaded = LoadedTables(tables)

    def singles(self, matches: Sequence[_Match]) -> list[Candidate]:
        """Joins over one column."""
        rivals: dict[tuple[int, int], set[int]] = defaultdict(set)
        for column, key, _, _ in matches:
            rivals[column.table, column.place].add(key.table)
        both_ways = {(a.table, a.place, b.table, b.place) for a, b, _, _ in matches}
        found = []
        for match in matches:
            column, key = match.column, match.key
            mutual = (key.table, key.place, column.table, column.place) in both_ways and column.is_key
            features = self._features(match, len(rivals[column.table, column.place]) - 1)
            child, parent = self._tables[column.table].id, self._tables[key.table].id
            found.append(Candidate(child, (column.profile.name,), parent, (key.profile.name,), features, mutual))
        return found

    def several(self, groups: Sequence[Sequence[tuple[int, ...]]], matches: Sequence[_Match]) -> list[Candidate]:
        """Joins over two or three columns: of those that match each for itself, the ones that do so together."""
        by_part: dict[tuple[int, int, int], list[_Match]] = defaultdict(list)
        for match in matches:
            by_part[match.key.table, match.key.place, match.column.table].append(match)
        found: list[tuple[list[_Match], tuple[float, float, float]]] = []
        for parent, own in enumerate(groups):
            for group in own:
                children = set.intersection(*({key[2] for key in by_part if key[:2] == (parent, p)} for p in group))
                for child in sorted(children):
                    ways = product(*(by_part[parent, place, child] for place in group))
                    for _, chosen in zip(range(_MOST_TUPLES), ways, strict=False):
                        shares = self._shares_together(chosen)
                        if shares[0] >= LEAST_INCLUSION:
                            found.append((list(chosen), shares))
        rivals = Counter((chosen[0].column.table, _places(chosen)) for chosen, _ in found)
        return [
            self._together(chosen, shares, rivals[chosen[0].column.table, _places(chosen)] - 1)
            for chosen, shares in found
        ]

    def _shares_together(self, chosen: Sequence[_Match]) -> tuple[float, float, float]:
        """(inclusion, coverage, repetition in the child) of the values that columns hold together; nulls left out."""
        if len({match.column.place for match in chosen}) < len(chosen):
            return 0.0, 0.0, 0.0
        child, parent = self._loaded[chosen[0].column.table], self._loaded[chosen[0].key.table]
        columns, keys = [match.column.place for match in chosen], [match.key.place for match in chosen]
        filled = (child.kinds[columns] != NULL).all(axis=0)
        seeds = parent.seeds[keys]
        rows = child.tuple_hashes(columns, seeds)[filled]
        ours, theirs = np.unique(rows), np.unique(parent.tuple_hashes(keys, seeds))
        if not len(ours):
            return 0.0, 0.0, 0.0
        common = int(np.isin(ours, theirs, assume_unique=True).sum())
        return common / len(ours), common / len(theirs), 1 - len(ours) / len(rows)

    def _together(self, chosen: list[_Match], shares: tuple[float, float, float], others: int) -> Candidate:
        chosen = sorted(chosen, key=lambda match: match.column.place)
        features = np.mean([self._features(match, others) for match in chosen], axis=0)
        parent = self._tables[chosen[0].key.table]
        room = math.prod(match.key.profile.column.distinct for match in chosen)
        known = {
            "inclusion": (shares[0] - LEAST_INCLUSION) / (1 - LEAST_INCLUSION),
            "coverage": shares[1],
            "child_repeats": shares[2],
            "several": 1.0,
            "sparse_key": 1 - parent.profile.rows / room,
        }
        for name, value in known.items():
            features[FEATURES.index(name)] = value
        columns = tuple(match.column.profile.name for match in chosen)
        keys = tuple(match.key.profile.name for match in chosen)
        child = self._tables[chosen[0].column.table].id
        return Candidate(child, columns, parent.id, keys, features, shares[1] >= LEAST_INCLUSION and shares[2] == 0)

    def _features(self, match: _Match, others: int) -> NDArray[np.float64]:
        column, key = match.column, match.key
        both = self._names[column.table], self._names[key.table]
        shares = match.inclusion, match.coverage
        derived = (key.table, key.place) in self._derived
        return _features(
            self._tables[column.table], column, self._tables[key.table], key, both, shares, others, derived
        )

    def _is_derived(self, match: _Match) -> bool:
        """Whether a column is called as a key is whose table bears that name with more right."""
        names, (column, key, _, _) = self._names, match
        own, other = names[column.table].columns[column.place], names[key.table].columns[key.place]
        if not own.about or own.words != other.words or column.table == key.table:
            return False
        return own.names(names[key.table].about) > own.names(names[column.table].about)


def _places(chosen: Sequence[_Match]) -> tuple[int, ...]:
    return tuple(sorted(match.column.place for match in chosen))


def _features(
    child: LakeTable,
    column: _Column,
    parent: LakeTable,
    key: _Column,
    names: tuple[TableNames, TableNames],
    shares: tuple[float, float],
    others: int,
    derived: bool,
) -> NDArray[np.float64]:
    own, other = names[0].columns[column.place], names[1].columns[key.place]
    # A key called `id` says nothing by itself: what it identifies stands in its table's name.
    parent_words = names[1].about
    target = {*other.about, *parent_words}
    matched = {word for word in own.about if word in target}
    short = {word for word in own.about if word not in target and abbreviates(word, (*parent_words, *other.about))}
    named_words = sum(any(stands_for(word, part) for word in own.about) for part in parent_words)
    covered = max([named_words, *(abbreviates(word, parent_words) for word in own.about)])
    letters = max(
        alike(column.profile.name, key.profile.name) if other.about else 0.0,
        alike(column.profile.name, parent.profile.name),
        alike(column.profile.name, f"{parent.profile.name} {key.profile.name}"),
    )
    heads = {words[-1] for words in (parent_words, other.about) if words}
    head = bool(own.about) and any(stands_for(own.about[-1], word) for word in heads)
    head = head or (bool(own.about) and abbreviates(own.about[-1], parent_words) > 0)
    same = bool(other.about) and own.about == other.about
    named = any(alike(word, name) >= 0.75 for word in own.about for name in parent_words)
    dense_parent, dense_child = key.profile.counts_up, column.profile.counts_up
    width = key.profile.high - key.profile.low
    spread = 1.0 if math.isnan(width) or width <= 0 else (column.profile.high - column.profile.low) / width
    about_itself = bool(set(own.about) & set(names[0].about)) or not own.about
    return np.array(
        [
            (shares[0] - LEAST_INCLUSION) / (1 - LEAST_INCLUSION),
            shares[1],
            1 - len(column.values) / max(1, column.profile.filled),
            math.tanh(math.log(max(1, child.profile.rows) / max(1, parent.profile.rows)) / 3),
            float(same),
            len(matched) / len(own.about) if own.about else 0.0,
            letters,
            float(named),
            float(bool(short)),
            float(head),
            covered / len(parent_words) if parent_words else 0.0,
            float(own.is_key),
            float(other.is_key),
            float(key.place == 0),
            float(column.place == 0),
            float(dense_parent),
            float(dense_parent and dense_child),
            min(1.0, spread),
            math.log1p(max(0, others)) / 2,
            float(letters < 0.5 and not (named or same or matched or short)),
            float(not own.is_key and column.family == "number" and not matched),
            float(column.is_key and about_itself and column.place == 0),
            0.0,
            0.0,
            float(column.table == key.table),
            float(column.table == key.table and not _ABOVE.isdisjoint(own.words)),
            float(derived),
        ],
        np.float64,
    )
