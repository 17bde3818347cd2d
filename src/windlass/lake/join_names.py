"""What names of tables and columns say: their words, what they abbreviate, how alike they are."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache

from windlass.lake.containment import LakeTable

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_KEY_WORDS = frozenset(("id", "key", "sk", "no", "nr", "code", "number", "num", "fk", "pk", "ref", "iata"))
_GENERIC = frozenset(("id", "key", "code", "no", "nr", "number", "name", "sk", "pk", "uuid"))
_TABLE_WORDS = frozenset(("dim", "fact", "tbl", "table", "lookup", "data", "master", "list"))


@dataclass(frozen=True)
class Name:
    """The words of a column's name: all of them, and those that say what it is about, in order."""

    words: tuple[str, ...]
    about: tuple[str, ...]

    @property
    def is_key(self) -> bool:
        return bool(self.words) and (self.words[-1] in _KEY_WORDS or self.words[-1].endswith(("id", "key")))

    def names(self, table: tuple[str, ...]) -> float:
        """How much of a table's name the words make up, those of each that the other lacks counted against it."""
        covered = {part for part in table if any(stands_for(word, part) for word in self.about)}
        said = {word for word in self.about if any(stands_for(word, part) for part in table)}
        abbreviated = max((abbreviates(word, table) for word in self.about), default=0)
        if abbreviated > len(covered):
            return abbreviated / len(table)
        whole = len(table) + len(self.about) - len(said)
        return len(covered) / whole if whole else 0.0


@dataclass(frozen=True)
class TableNames:
    """What a table and its columns are called, the prefix that most of its columns share left out."""

    about: tuple[str, ...]
    columns: tuple[Name, ...]

    @classmethod
    def of(cls, table: LakeTable) -> TableNames:
        split = [words_of(column.name) for column in table.profile.columns]
        firsts = Counter(words[0] for words in split if len(words) > 1)
        prefix, times = firsts.most_common(1)[0] if firsts else ("", 0)
        common = prefix if len(prefix) <= 4 and times > 1 and times >= 0.6 * len(split) else ""
        names = []
        for words in split:
            left = words[1:] if common and words[0] == common and len(words) > 1 else words
            about = tuple(word for word in map(_without_key, left) if word and word not in _GENERIC)
            names.append(Name(left, about))
        own = words_of(table.profile.name)
        return cls(tuple(word for word in own if word not in _TABLE_WORDS) or own, tuple(names))


@cache
def words_of(name: str) -> tuple[str, ...]:
    """The words of a name in their order, in the singular: `OrderDetails_ID` is `order`, `detail`, `id`."""
    return tuple(_singular(word.lower()) for word in _WORDS.findall(name))


def _without_key(word: str) -> str:
    """`custkey` is about `cust`."""
    return word.removesuffix("key") if len(word) > 5 else word


def stands_for(word: str, whole: str) -> bool:
    """Whether a word is another one, or its beginning."""
    return word == whole or (len(word) >= 3 and whole.startswith(word))


@cache
def abbreviates(word: str, whole: tuple[str, ...]) -> int:
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
def alike(a: str, b: str) -> float:
    """Share of letters in common and in order, of names without signs and case."""
    first, second = ("".join(words_of(name)) for name in (a, b))
    return SequenceMatcher(None, first, second, autojunk=False).ratio() if first and second else 0.0
