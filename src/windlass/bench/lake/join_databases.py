"""Generated databases with known foreign keys, which the join model is trained on.

Stars, snowflakes and constellations in eleven conventions of naming keys, with what makes joins hard to see: surrogate
keys that all count from one, dimensions that a fact refers to twice, keys of several columns, tables that refer to
themselves, references to nothing, and columns of ranks, years and quantities that fit many keys by accident.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from windlass.lake.containment import LakeTable
from windlass.lake.hashing import hash_table, record_cells
from windlass.lake.profile import profile_table

Edge = tuple[str, tuple[str, ...], str, tuple[str, ...]]
"""child table, its columns, parent table, its key"""

_NOUNS = (
    "customer product order store employee region supplier invoice payment account branch vehicle driver route city "
    "country warehouse category brand contract project task team department device sensor station patient doctor visit "
    "course student teacher school book author publisher album artist track genre playlist ticket event venue hotel "
    "room guest flight airport airline claim policy agent currency campaign channel segment shipment carrier material "
    "machine plant batch recipe ingredient menu reservation league player match season vendor asset license partner"
).split()
_STRANGE = ("owner", "rep", "lead", "via", "contact", "source", "manager")
_ROLES = ("ship", "bill", "origin", "target", "first", "last", "sales", "primary")
_ABOVE = ("parent", "manager", "previous", "main", "head")
_SELF = ("reports_to", "parent", "ParentID", "supersedes", "belongs_to")
_MEASURES = ("quantity", "amount", "price", "discount", "year", "month", "rank", "line_no", "rating", "units", "weight")
_LABELS = ("name", "title", "status", "notes", "type", "email", "phone", "address", "created", "description")


@dataclass
class Database:
    """Tables and what their foreign keys are."""

    name: str
    tables: list[LakeTable]
    truth: set[Edge] = field(default_factory=set)


def in_order(edge: Edge) -> Edge:
    """The same reference with its columns in order."""
    pairs = sorted(zip(edge[1], edge[3], strict=True))
    return edge[0], tuple(column for column, _ in pairs), edge[2], tuple(key for _, key in pairs)


def generate(seed: int, tables: int) -> Database:
    """A random database of so many tables."""
    return _Maker(seed, tables).make()


class _Maker:
    """One generated database."""

    def __init__(self, seed: int, tables: int) -> None:
        self.draw = random.Random(seed)
        self.nouns = self.draw.sample(_NOUNS, min(tables, len(_NOUNS)))
        # Names of two words, which references abbreviate.
        self.nouns = [
            f"{noun}_{self.draw.choice(_NOUNS)}" if self.draw.random() < 0.35 else noun for noun in self.nouns
        ]
        self.database = Database(f"generated {seed}", [])
        self.style = self.draw.randrange(len(_STYLES))
        self.short = {noun: noun[: self.draw.choice((1, 2, 3))] for noun in self.nouns}
        self.keys: dict[str, tuple[str, list[str]]] = {}
        self.labels: dict[tuple[str, str], list[str]] = {}

    def make(self) -> Database:
        facts = max(1, round(len(self.nouns) * self.draw.uniform(0.15, 0.4)))
        dimensions = self.nouns[facts:]
        for number, noun in enumerate(dimensions):
            upwards = [dimensions[place] for place in range(number) if self.draw.random() < 0.5 / (number + 1)]
            self.add(noun, self.draw.randint(8, 300), upwards[:2], keyed=True)
        for noun in self.nouns[:facts]:
            count = min(len(dimensions), self.draw.randint(2, 5))
            self.add(noun, self.draw.randint(200, 1_200), self.draw.sample(dimensions, count), self.draw.random() < 0.7)
        if dimensions and self.draw.random() < 0.3:
            self.extend(self.draw.choice(dimensions))
        if len(dimensions) > 1 and self.draw.random() < 0.4:
            self.bridge(self.draw.sample(dimensions, 2))
        return self.database

    def add(self, noun: str, rows: int, parents: Sequence[str], keyed: bool) -> None:
        own_key, reference = _STYLES[self.style]
        columns: dict[str, list[str]] = {}
        if keyed:
            name = own_key(noun, self.short[noun])
            self.keys[noun] = (name, key_values(noun, rows, self.draw))
            columns[name] = self.keys[noun][1]
        for parent in parents:
            key, values = self.keys[parent]
            roles = self.draw.sample(_ROLES, 2) if self.draw.random() < 0.25 else [""]
            for role in roles:
                name = reference(parent, self.short[noun], self.short[parent])
                name = f"{role}_{name}" if role else name
                if self.draw.random() < 0.05:
                    name = f"{self.draw.choice(_STRANGE)}_id"
                if name not in columns:
                    columns[name] = reference_values(values, rows, self.draw)
                    self.database.truth.add((self.table_name(noun), (name,), self.table_name(parent), (key,)))
        if keyed and self.draw.random() < 0.2:
            self.refer_to_itself(noun, columns)
        for name in self.draw.sample(_MEASURES, self.draw.randint(1, 4)):
            columns.setdefault(self.styled(name, noun), measure_values(name, rows, self.draw))
        for name in self.draw.sample(_LABELS, self.draw.randint(1, 3)):
            unique = self.draw.random() < 0.4
            values = [f"{name} {number if unique else self.draw.randrange(rows)}" for number in range(rows)]
            columns.setdefault(self.styled(name, noun), values)
            self.labels[noun, name] = values
        for parent in parents:
            for name in _LABELS:
                if (parent, name) in self.labels and self.draw.random() < 0.2:
                    copied = reference_values(self.labels[parent, name], rows, self.draw)
                    columns.setdefault(self.styled(f"{self.draw.choice(_ROLES)}_{name}", noun), copied)
        records = list(zip(*columns.values(), strict=True))
        self.database.tables.append(database_table(self.table_name(noun), list(columns), records))

    def refer_to_itself(self, noun: str, columns: dict[str, list[str]]) -> None:
        key, values = self.keys[noun]
        by_role = f"{self.draw.choice(_ABOVE)}_{_STYLES[self.style][1](noun, self.short[noun], self.short[noun])}"
        name = self.draw.choice((by_role, by_role, f"{self.draw.choice(_ABOVE)}_id", self.draw.choice(_SELF)))
        columns[name] = ["" if self.draw.random() < 0.1 else self.draw.choice(values) for _ in values]
        self.database.truth.add((self.table_name(noun), (name,), self.table_name(noun), (key,)))

    def bridge(self, nouns: Sequence[str]) -> None:
        """A table whose key is two references, or a reference and a line number, and one that refers to it."""
        reference = _STYLES[self.style][1]
        name = self.draw.choice(("assignment", "offer", "entry", "listing", "membership"))
        short, lined = name[:2], self.draw.random() < 0.4
        self.short[name] = short
        parts: dict[str, list[str]] = {}
        pairs = self._pairs(nouns, lined)
        for place, noun in enumerate(nouns[:1] if lined else nouns):
            column = reference(noun, short, self.short[noun])
            parts[column] = [pair[place] for pair in pairs]
            self.database.truth.add((self.table_name(name), (column,), self.table_name(noun), (self.keys[noun][0],)))
        if lined:
            parts[self.styled("line_no", name)] = [pair[1] for pair in pairs]
        if len(parts) < 2:
            return
        columns = {**parts, "amount": measure_values("amount", len(pairs), self.draw)}
        records = list(zip(*columns.values(), strict=True))
        self.database.tables.append(database_table(self.table_name(name), list(columns), records))
        below = self.draw.choice(("delivery", "claim_line", "check", "return_line"))
        rows = [self.draw.choice(range(len(pairs))) for _ in range(self.draw.randint(80, 500))]
        names = [
            column if column == self.styled("line_no", name) else reference(noun, below[:2], self.short[noun])
            for column, noun in zip(parts, nouns, strict=True)
        ]
        if len(set(names)) < 2:
            return
        data = {own: [values[row] for row in rows] for own, values in zip(names, parts.values(), strict=True)}
        data["quantity"] = measure_values("quantity", len(rows), self.draw)
        self.database.tables.append(
            database_table(self.table_name(below), list(data), list(zip(*data.values(), strict=True)))
        )
        self.database.truth.add((self.table_name(below), tuple(names), self.table_name(name), tuple(parts)))
        for own, noun in list(zip(names, nouns, strict=True))[: 1 if lined else 2]:
            self.database.truth.add((self.table_name(below), (own,), self.table_name(noun), (self.keys[noun][0],)))

    def _pairs(self, nouns: Sequence[str], lined: bool) -> list[tuple[str, str]]:
        first, second = (self.keys[noun][1] for noun in nouns)
        if lined:
            used = self.draw.sample(first, max(2, len(first) // 2))
            return [(value, str(line)) for value in used for line in range(1, self.draw.randint(2, 7))]
        count = min(400, len(first) * len(second) // 3 + 2)
        return sorted({(self.draw.choice(first), self.draw.choice(second)) for _ in range(count)})

    def extend(self, noun: str) -> None:
        """A second table of the same things, one to one."""
        key, values = self.keys[noun]
        kept = [value for value in values if self.draw.random() < 0.95]
        columns = {key: kept, "remark": [f"remark {self.draw.randrange(9_999)}" for _ in kept]}
        name = self.table_name(noun) + "_details"
        self.database.tables.append(database_table(name, list(columns), list(zip(*columns.values(), strict=True))))
        self.database.truth.add((name, (key,), self.table_name(noun), (key,)))

    def table_name(self, noun: str) -> str:
        return (noun + "s", noun, noun.capitalize(), f"dim_{noun}", f"{noun}_tbl")[self.style % 5]

    def styled(self, name: str, noun: str) -> str:
        if self.style in (3, 4):
            return f"{self.short[noun]}_{name}"
        return name.title().replace("_", "") if self.style == 2 else name


def key_values(name: str, rows: int, draw: random.Random, *, text: bool = False) -> list[str]:
    """A key: numbers that count from one or elsewhere, with gaps or without, or codes."""
    kind = draw.uniform(0.8, 1.0) if text else draw.random()
    if kind < 0.6:
        return [str(number) for number in range(1, rows + 1)]
    if kind < 0.7:
        start = draw.choice((100, 1_000, 5_001))
        return [str(start + number) for number in range(rows)]
    if kind < 0.8:
        return [str(number) for number in draw.sample(range(rows * 50), rows)]
    return [f"{name[0].upper()}{number:05}" for number in draw.sample(range(99_999), rows)]


def reference_values(values: Sequence[str], rows: int, draw: random.Random, *, sound: bool = False) -> list[str]:
    """References to a key: to all of it or to a part, evenly or not, some missing, some (if not `sound`) to nothing."""
    count = max(2, int(len(values) * draw.uniform(0.4, 1)))
    # What is referred to is often one stretch of the keys: the newest customers, the dates of one year.
    start = draw.randrange(len(values) - count + 1) if len(values) > count else 0
    stretch = draw.random() < 0.4
    known = list(values[start : start + count]) if stretch else draw.sample(list(values), min(count, len(values)))
    dangling = 0.02 if draw.random() < 0.05 and not sound else 0.0
    missing = 0.1 if draw.random() < 0.15 else 0.0
    power = draw.choice((1, 2))
    found = []
    for _ in range(rows):
        chance = draw.random()
        if chance < missing:
            found.append("")
        elif chance < missing + dangling:
            found.append(str(draw.randrange(10**6)))
        else:
            found.append(known[int(len(known) * draw.random() ** power)])
    return found


def measure_values(name: str, rows: int, draw: random.Random) -> list[str]:
    """Numbers that are no key, as their name has them."""
    if name in ("rank", "line_no") and draw.random() < 0.6:
        return [str(number % draw.choice((rows, 7, 12)) + 1) for number in range(rows)]
    ranges = {"year": (2012, 2024), "month": (1, 12), "rating": (1, 5), "quantity": (1, 40), "units": (1, 100)}
    if name in ranges:
        low, high = ranges[name]
        return [str(draw.randint(low, high)) for _ in range(rows)]
    return [f"{draw.uniform(0, 500):.2f}" for _ in range(rows)]


def database_table(name: str, columns: Sequence[str], records: Sequence[Sequence[str]]) -> LakeTable:
    hashed = hash_table(record_cells(records, list(columns)))
    return LakeTable(name, profile_table(name, hashed), lambda: hashed)


def _clipped(noun: str) -> str:
    """`customer_address` is `caddr`, `customer` is `cust`."""
    first, _, second = noun.partition("_")
    return first[0] + second[:4] if second else first[:4]


_Own = Callable[[str, str], str]
_Reference = Callable[[str, str, str], str]
_STYLES: tuple[tuple[_Own, _Reference], ...] = (
    (lambda noun, short: f"{noun}_id", lambda noun, child, parent: f"{noun}_id"),
    (lambda noun, short: "id", lambda noun, child, parent: f"{noun}_id"),
    (lambda noun, short: f"{noun.capitalize()}ID", lambda noun, child, parent: f"{noun.capitalize()}ID"),
    (
        lambda noun, short: f"{short}_{noun.split('_')[-1][:4]}key",
        lambda noun, child, parent: f"{child}_{noun.split('_')[-1][:4]}key",
    ),
    (lambda noun, short: f"{short}_{noun}_sk", lambda noun, child, parent: f"{child}_{noun}_sk"),
    (lambda noun, short: f"{noun}_no", lambda noun, child, parent: noun),
    (lambda noun, short: "code", lambda noun, child, parent: f"{noun}_code"),
    (lambda noun, short: f"{noun.split('_')[-1][:3]}id", lambda noun, child, parent: f"{noun.split('_')[-1][:3]}id"),
    (
        lambda noun, short: f"{noun[0]}{noun.split('_')[-1][0]}id",
        lambda noun, child, parent: f"{noun[0]}{noun.split('_')[-1][0]}id",
    ),
    (lambda noun, short: f"{noun}_name", lambda noun, child, parent: f"{noun}_name"),
    (lambda noun, short: f"{short}_{_clipped(noun)}_sk", lambda noun, child, parent: f"{child}_{_clipped(noun)}_sk"),
)
