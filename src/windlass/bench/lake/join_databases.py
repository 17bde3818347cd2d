"""Databases with known foreign keys: generated ones, two real ones, and one with the published keys of TPC-DS.

The generated ones are what the join model is trained on: stars, snowflakes and constellations in seven conventions of
naming keys, with what makes joins hard to see: surrogate keys that all count from one, dimensions that a fact refers
to twice, references to nothing, and columns of ranks, years and quantities that fit many keys by accident.
"""

from __future__ import annotations

import csv
import io
import json
import random
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from windlass.bench.lake.data import shared_folder
from windlass.lake.containment import LakeTable
from windlass.lake.hashing import hash_table, record_cells
from windlass.lake.profile import profile_table

Edge = tuple[str, str, str, str]
"""child table, its column, parent table, its key"""

_NOUNS = (
    "customer product order store employee region supplier invoice payment account branch vehicle driver route city "
    "country warehouse category brand contract project task team department device sensor station patient doctor visit "
    "course student teacher school book author publisher album artist track genre playlist ticket event venue hotel "
    "room guest flight airport airline claim policy agent currency campaign channel segment shipment carrier material "
    "machine plant batch recipe ingredient menu reservation league player match season vendor asset license partner"
).split()
_STRANGE = ("owner", "rep", "lead", "via", "contact", "source", "manager")
_ROLES = ("ship", "bill", "origin", "target", "first", "last", "sales", "primary")
_MEASURES = ("quantity", "amount", "price", "discount", "year", "month", "rank", "line_no", "rating", "units", "weight")
_LABELS = ("name", "title", "status", "notes", "type", "email", "phone", "address", "created", "description")


@dataclass
class Database:
    """Tables and what their foreign keys are."""

    name: str
    tables: list[LakeTable]
    truth: set[Edge] = field(default_factory=set)


def generate(seed: int, tables: int) -> Database:
    """A random database of so many tables."""
    return _Maker(seed, tables).make()


def real_database(name: str) -> Database:
    """`chinook` or `northwind`. References within a table and those of empty tables are left out: no data shows them.

    Raises:
        NotFound: The shared data are not there.
    """
    with zipfile.ZipFile(shared_folder("bi") / f"{name}.zip") as archive:
        schema = json.loads(archive.read("schema.json"))
        tables, truth = [], set()
        filled = {table["name"] for table in schema["tables"] if table["rows"]}
        for table in schema["tables"]:
            if table["name"] not in filled:
                continue
            text = archive.read(f"{table['name']}.csv").decode("utf-8-sig")
            rows = list(csv.reader(io.StringIO(text, newline="")))
            tables.append(_table(table["name"], rows[0], rows[1:]))
            truth |= _single_keys(table, filled)
    return Database(name, tables, truth)


def tpcds_like(seed: int) -> Database:
    """24 tables with the names, keys and references of TPC-DS and made-up data of 60 to 3,000 rows.

    References over several columns are left out, because joins over several columns are not predicted.
    """
    draw = random.Random(seed)
    schema = json.loads((shared_folder("bi") / "tpcds_keys.json").read_text("utf-8"))
    rows = {
        table["name"]: draw.randint(800, 3_000) if len(table["foreign_keys"]) > 5 else draw.randint(60, 900)
        for table in schema["tables"]
    }
    keys = {
        table["name"]: list(range(1, rows[table["name"]] + 1))
        for table in schema["tables"]
        if len(table["primary_key"]) == 1
    }
    filled = set(rows)
    tables, truth = [], set()
    for table in schema["tables"]:
        columns: dict[str, list[str]] = {}
        count = rows[table["name"]]
        if len(table["primary_key"]) == 1:
            columns[table["primary_key"][0]] = [str(key) for key in keys[table["name"]]]
        edges = _single_keys(table, filled)
        for _, column, parent, _ in sorted(edges):
            known = keys[parent][: max(1, int(len(keys[parent]) * draw.uniform(0.5, 1)))]
            columns[column] = [str(draw.choice(known)) if draw.random() > 0.02 else "" for _ in range(count)]
        for name in table["primary_key"]:
            columns.setdefault(name, [str(draw.randint(1, count)) for _ in range(count)])
        prefix = table["primary_key"][0].split("_")[0]
        for name in draw.sample(_MEASURES, 3):
            columns[f"{prefix}_{name}"] = _measure(name, count, draw)
        tables.append(_table(table["name"], list(columns), list(zip(*columns.values(), strict=True))))
        truth |= edges
    return Database("tpcds-like", tables, truth)


def _single_keys(table: dict[str, Any], filled: set[str]) -> set[Edge]:
    return {
        (table["name"], key["columns"][0], key["ref_table"], key["ref_columns"][0])
        for key in table["foreign_keys"]
        if len(key["columns"]) == 1 and key["ref_table"] in filled and key["ref_table"] != table["name"]
    }


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
        return self.database

    def add(self, noun: str, rows: int, parents: Sequence[str], keyed: bool) -> None:
        own_key, reference = _STYLES[self.style]
        columns: dict[str, list[str]] = {}
        if keyed:
            name = own_key(noun, self.short[noun])
            self.keys[noun] = (name, self.key_values(noun, rows))
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
                    columns[name] = self.references(values, rows)
                    self.database.truth.add((self.table_name(noun), name, self.table_name(parent), key))
        for name in self.draw.sample(_MEASURES, self.draw.randint(1, 4)):
            columns.setdefault(self.styled(name, noun), _measure(name, rows, self.draw))
        for name in self.draw.sample(_LABELS, self.draw.randint(1, 3)):
            unique = self.draw.random() < 0.4
            values = [f"{name} {number if unique else self.draw.randrange(rows)}" for number in range(rows)]
            columns.setdefault(self.styled(name, noun), values)
            self.labels[noun, name] = values
        for parent in parents:
            for name in _LABELS:
                if (parent, name) in self.labels and self.draw.random() < 0.2:
                    copied = self.references(self.labels[parent, name], rows)
                    columns.setdefault(self.styled(f"{self.draw.choice(_ROLES)}_{name}", noun), copied)
        records = list(zip(*columns.values(), strict=True))
        self.database.tables.append(_table(self.table_name(noun), list(columns), records))

    def extend(self, noun: str) -> None:
        """A second table of the same things, one to one."""
        key, values = self.keys[noun]
        kept = [value for value in values if self.draw.random() < 0.95]
        columns = {key: kept, "remark": [f"remark {self.draw.randrange(9_999)}" for _ in kept]}
        name = self.table_name(noun) + "_details"
        self.database.tables.append(_table(name, list(columns), list(zip(*columns.values(), strict=True))))
        self.database.truth.add((name, key, self.table_name(noun), key))

    def key_values(self, noun: str, rows: int) -> list[str]:
        kind = self.draw.random()
        if kind < 0.6:
            return [str(number) for number in range(1, rows + 1)]
        if kind < 0.7:
            start = self.draw.choice((100, 1_000, 5_001))
            return [str(start + number) for number in range(rows)]
        if kind < 0.8:
            return [str(number) for number in self.draw.sample(range(rows * 50), rows)]
        letter = noun[0].upper()
        return [f"{letter}{number:05}" for number in self.draw.sample(range(99_999), rows)]

    def references(self, values: Sequence[str], rows: int) -> list[str]:
        count = max(2, int(len(values) * self.draw.uniform(0.4, 1)))
        # What is referred to is often one stretch of the keys: the newest customers, the dates of one year.
        start = self.draw.randrange(len(values) - count + 1) if len(values) > count else 0
        stretch = self.draw.random() < 0.4
        known = (
            list(values[start : start + count]) if stretch else self.draw.sample(list(values), min(count, len(values)))
        )
        dangling = 0.02 if self.draw.random() < 0.05 else 0.0
        missing = 0.1 if self.draw.random() < 0.15 else 0.0
        power = self.draw.choice((1, 2))
        found = []
        for _ in range(rows):
            chance = self.draw.random()
            if chance < missing:
                found.append("")
            elif chance < missing + dangling:
                found.append(str(self.draw.randrange(10**6)))
            else:
                found.append(known[int(len(known) * self.draw.random() ** power)])
        return found

    def table_name(self, noun: str) -> str:
        return (noun + "s", noun, noun.capitalize(), f"dim_{noun}", f"{noun}_tbl")[self.style % 5]

    def styled(self, name: str, noun: str) -> str:
        if self.style in (3, 4):
            return f"{self.short[noun]}_{name}"
        return name.title().replace("_", "") if self.style == 2 else name


def _measure(name: str, rows: int, draw: random.Random) -> list[str]:
    if name in ("rank", "line_no") and draw.random() < 0.6:
        return [str(number % draw.choice((rows, 7, 12)) + 1) for number in range(rows)]
    ranges = {"year": (2012, 2024), "month": (1, 12), "rating": (1, 5), "quantity": (1, 40), "units": (1, 100)}
    if name in ranges:
        low, high = ranges[name]
        return [str(draw.randint(low, high)) for _ in range(rows)]
    return [f"{draw.uniform(0, 500):.2f}" for _ in range(rows)]


def _table(name: str, columns: Sequence[str], records: Sequence[Sequence[str]]) -> LakeTable:
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
    (lambda noun, short: f"{short}_{_clipped(noun)}_sk", lambda noun, child, parent: f"{child}_{_clipped(noun)}_sk"),
)
