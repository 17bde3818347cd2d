"""Which columns may refer to which, and how likely that is: the local half of Auto-BI (Lin, He, Chaudhuri 2023).

A candidate is a column of one table of which at least 80 % of the distinct values are in a column of another table
that has (nearly) every value once. All of them are found at once over one sorted list of the keys' value hashes, not
pair by pair. How likely a candidate is follows from its names and its data by a logistic model, whose few weights lie
beside this file and can be read; the trees of the paper need a library to train and say less about why.

What differs from the paper: one model instead of two for joins to one and one to one; the names are compared by words
and letters only; and there are no composite keys.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ModelError
from windlass.core.progress import Progress, Silent, check_cancelled
from windlass.kernels.cells import NULL
from windlass.lake.containment import LakeTable
from windlass.lake.profile import ColumnProfile
from windlass.lake.schema_graph import Join

LEAST_INCLUSION = 0.8
_NEARLY_UNIQUE = 0.95
_MOST_VALUES = 1_000_000
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_KEY_WORDS = frozenset(("id", "key", "sk", "no", "nr", "code", "number", "num", "fk", "pk", "ref", "iata"))
_GENERIC = frozenset(("id", "key", "code", "no", "nr", "number", "name", "sk", "pk", "uuid"))
_TABLE_WORDS = frozenset(("dim", "fact", "tbl", "table", "lookup", "data", "master", "list"))
_FAMILIES = {"integer": "number", "number": "number", "date": "time", "timestamp": "time", "text": "text"}

FEATURES = (
    "inclusion",
    "coverage",
    "child_repeats",
    "larger_child",
    "same_name",
    "words_shared",
    "letters_shared",
    "names_parent",
    "abbreviates",
    "head_matches",
    "parent_covered",
    "key_word",
    "parent_key_word",
    "parent_first",
    "child_first",
    "dense_parent",
    "dense_both",
    "range_covered",
    "rivals",
    "unrelated_names",
    "measure",
    "child_key",
)


class Candidate(NamedTuple):
    """A possible join of two columns, and what speaks for and against it: float64[features], see `FEATURES`."""

    child: str
    column: str
    parent: str
    key: str
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


@dataclass(frozen=True)
class JoinModel:
    """A logistic model over `FEATURES`.

    Attributes:
        weights: float64[features], of the features as they are.
        intercept: What is added.
    """

    weights: NDArray[np.float64]
    intercept: float

    @classmethod
    @cache
    def load(cls) -> JoinModel:
        """The weights that come with Windlass.

        Raises:
            ModelError: Their file is damaged or of other features.
        """
        try:
            document = tomllib.loads((files("windlass.lake") / "join_model.toml").read_text("utf-8"))
            weights = document["weights"]
            return cls(np.array([weights[name] for name in FEATURES], np.float64), float(document["intercept"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"the join model is damaged: {error}", hint="install windlass again") from error

    def predict(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64[n] probabilities of float64[n, features]."""
        return 1 / (1 + np.exp(-np.clip(features @ self.weights + self.intercept, -30, 30)))

    def reasons(self, features: NDArray[np.float64]) -> list[tuple[str, float]]:
        """What each feature adds to the log odds, strongest first."""
        parts = features * self.weights
        return [(FEATURES[place], float(parts[place])) for place in np.argsort(-np.abs(parts), kind="stable")]


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
        Join(c.child, (c.column,), c.parent, (c.key,), float(chance), c.mutual)
        for c, chance in zip(candidates, chances, strict=True)
    ]
    return sorted(joins, key=lambda join: (-join.probability, join))


def find_candidates(tables: Sequence[LakeTable], progress: Progress | None = None) -> list[Candidate]:
    """All pairs of columns of different tables that a join may be on; sorted.

    Raises:
        Cancelled: Stopped through `progress`.
    """
    columns = _columns(tables, progress or Silent())
    keys = [column for column in columns if _is_key(column)]
    if not keys:
        return []
    hashes = np.concatenate([key.values for key in keys])
    owners = np.repeat(np.arange(len(keys)), [len(key.values) for key in keys])
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    found: list[tuple[_Column, _Column, float, float]] = []
    for column in columns:
        if not len(column.values) or column.family == "none":
            continue
        left, right = np.searchsorted(hashes, column.values, "left"), np.searchsorted(hashes, column.values, "right")
        sizes = right - left
        places = np.repeat(left - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes) + np.arange(sizes.sum())
        common = np.bincount(owners[places], minlength=len(keys))
        for number in np.flatnonzero(common >= LEAST_INCLUSION * len(column.values)):
            key = keys[number]
            if key.table != column.table and key.family == column.family:
                shares = common[number] / len(column.values), common[number] / len(key.values)
                found.append((column, key, float(shares[0]), float(shares[1])))
    return sorted(_described(tables, found), key=lambda c: (c.child, c.column, c.parent, c.key))


def _columns(tables: Sequence[LakeTable], progress: Progress) -> list[_Column]:
    columns = []
    progress.start("join", len(tables), "tables")
    for number, table in enumerate(tables):
        check_cancelled(progress)
        hashed = table.load()
        for place, profile in enumerate(table.profile.columns):
            if profile.column.type in _FAMILIES and profile.column.distinct <= _MOST_VALUES:
                values = np.unique(hashed.hashes[place][hashed.kinds[place] != NULL])
                columns.append(_Column(number, place, profile, values))
        progress.advance("join", detail=table.id)
    progress.finish("join")
    return columns


def _is_key(column: _Column) -> bool:
    profile = column.profile
    if profile.column.type == "number" or profile.filled < 2 or profile.column.nulls > 0.05 * profile.rows:
        return False
    return len(column.values) >= _NEARLY_UNIQUE * profile.filled


def _described(tables: Sequence[LakeTable], found: Sequence[tuple[_Column, _Column, float, float]]) -> list[Candidate]:
    rivals: dict[tuple[int, int], set[int]] = defaultdict(set)
    for column, key, _, _ in found:
        rivals[column.table, column.place].add(key.table)
    both_ways = {(a.table, a.place, b.table, b.place) for a, b, _, _ in found}
    names = [_TableNames.of(table) for table in tables]
    candidates = []
    for column, key, inclusion, coverage in found:
        child, parent = tables[column.table], tables[key.table]
        others = len(rivals[column.table, column.place]) - 1
        mutual = (key.table, key.place, column.table, column.place) in both_ways and _is_key(column)
        both = names[column.table], names[key.table]
        features = _features(child, column, parent, key, both, (inclusion, coverage), others)
        candidates.append(Candidate(child.id, column.profile.name, parent.id, key.profile.name, features, mutual))
    return candidates


@dataclass(frozen=True)
class _Name:
    """The words of a column's name: all of them, and those that say what it is about, in order."""

    words: tuple[str, ...]
    about: tuple[str, ...]

    @property
    def is_key(self) -> bool:
        return bool(self.words) and (self.words[-1] in _KEY_WORDS or self.words[-1].endswith(("id", "key")))


@dataclass(frozen=True)
class _TableNames:
    """What a table and its columns are called, the prefix that most of its columns share left out."""

    about: tuple[str, ...]
    columns: tuple[_Name, ...]

    @classmethod
    def of(cls, table: LakeTable) -> _TableNames:
        split = [_words(column.name) for column in table.profile.columns]
        firsts = Counter(words[0] for words in split if len(words) > 1)
        prefix, times = firsts.most_common(1)[0] if firsts else ("", 0)
        common = prefix if len(prefix) <= 4 and times > 1 and times >= 0.6 * len(split) else ""
        names = []
        for words in split:
            left = words[1:] if common and words[0] == common and len(words) > 1 else words
            about = tuple(word for word in map(_without_key, left) if word and word not in _GENERIC)
            names.append(_Name(left, about))
        own = _words(table.profile.name)
        return cls(tuple(word for word in own if word not in _TABLE_WORDS) or own, tuple(names))


def _features(
    child: LakeTable,
    column: _Column,
    parent: LakeTable,
    key: _Column,
    names: tuple[_TableNames, _TableNames],
    shares: tuple[float, float],
    others: int,
) -> NDArray[np.float64]:
    own, other = names[0].columns[column.place], names[1].columns[key.place]
    # A key called `id` says nothing by itself: what it identifies stands in its table's name.
    parent_words = names[1].about
    target = {*other.about, *parent_words}
    matched = {word for word in own.about if word in target}
    short = {word for word in own.about if word not in target and _abbreviates(word, (*parent_words, *other.about))}
    named_words = sum(any(_stands_for(word, part) for word in own.about) for part in parent_words)
    covered = max([named_words, *(_abbreviates(word, parent_words) for word in own.about)])
    letters = max(
        _alike(column.profile.name, key.profile.name) if other.about else 0.0,
        _alike(column.profile.name, parent.profile.name),
        _alike(column.profile.name, f"{parent.profile.name} {key.profile.name}"),
    )
    heads = {words[-1] for words in (parent_words, other.about) if words}
    head = bool(own.about) and any(_stands_for(own.about[-1], word) for word in heads)
    head = head or (bool(own.about) and _abbreviates(own.about[-1], parent_words) > 0)
    same = bool(other.about) and own.about == other.about
    named = any(_alike(word, name) >= 0.75 for word in own.about for name in parent_words)
    dense_parent, dense_child = _is_dense(key.profile), _is_dense(column.profile)
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
            float(_is_key(column) and about_itself and column.place == 0),
        ],
        np.float64,
    )


@cache
def _words(name: str) -> tuple[str, ...]:
    """The words of a name in their order, in the singular: `OrderDetails_ID` is `order`, `detail`, `id`."""
    return tuple(_singular(word.lower()) for word in _WORDS.findall(name))


def _without_key(word: str) -> str:
    """`custkey` is about `cust`."""
    return word.removesuffix("key") if len(word) > 5 else word


def _stands_for(word: str, whole: str) -> bool:
    """Whether a word is another one, or its beginning."""
    return word == whole or (len(word) >= 3 and whole.startswith(word))


@cache
def _abbreviates(word: str, whole: tuple[str, ...]) -> int:
    """Of how many words in their order the beginnings make up a word: 2 for `hdemo` and `household demographics`."""
    if len(word) < 3 or not word.isalpha():
        return 0

    def most(rest: str, place: int) -> int:
        """How many words the rest takes, far below 0 when it cannot be made up."""
        if not rest:
            return 0
        ways = [
            1 + most(rest[length:], later + 1)
            for later in range(place, len(whole))
            for length in range(min(len(rest), len(whole[later])), 0, -1)
            if rest.startswith(whole[later][:length])
        ]
        return max(ways, default=-len(whole) - 1)

    return max(0, most(word, 0))


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


@cache
def _alike(a: str, b: str) -> float:
    """Share of letters in common and in order, of names without signs and case."""
    first, second = ("".join(_words(name)) for name in (a, b))
    return SequenceMatcher(None, first, second, autojunk=False).ratio() if first and second else 0.0


def _is_dense(profile: ColumnProfile) -> bool:
    """Whether a column counts from 0 or 1 without large gaps: such columns include one another by accident."""
    if profile.column.type != "integer" or math.isnan(profile.low) or profile.low not in (0.0, 1.0):
        return False
    return profile.column.distinct >= 0.8 * (profile.high - profile.low + 1)


def weights_toml(weights: Mapping[str, float], intercept: float, about: str) -> str:
    """The model as the file that `JoinModel.load` reads."""
    lines = [f"# {line}" for line in about.splitlines()]
    lines += [f"intercept = {intercept:.4f}", "", "[weights]"]
    return "\n".join([*lines, *(f"{name} = {value:.4f}" for name, value in weights.items())]) + "\n"
