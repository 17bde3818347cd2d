"""Databases with published schemas: Chinook and Northwind as they are, the others filled with made-up rows.

Of TPC-H, TPC-DS and the Spider collection only names, types and keys are used; `filled` makes up rows that heed them.
Keys count from one unless they are text, which is the hardest case: every such key includes every other by accident.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

from windlass.bench.lake.data import shared_folder
from windlass.bench.lake.join_databases import (
    Database,
    Edge,
    database_table,
    key_values,
    measure_values,
    reference_values,
)

# Only these names are taken for counters and ranks; anything else of type number is drawn from a random range.
_COUNTED = ("year", "month", "rating", "quantity", "rank")
_WORDS = "amber birch cedar delta ember flint grove heath inlet jetty knoll larch mill north oak pier quay reed".split()
_RETURNS = {
    "store_returns": (("sr_item_sk", "sr_ticket_number"), "store_sales", ("ss_item_sk", "ss_ticket_number")),
    "catalog_returns": (("cr_item_sk", "cr_order_number"), "catalog_sales", ("cs_item_sk", "cs_order_number")),
    "web_returns": (("wr_item_sk", "wr_order_number"), "web_sales", ("ws_item_sk", "ws_order_number")),
}
_TPCH_ROWS = {
    "region": 5,
    "nation": 25,
    "supplier": 100,
    "part": 400,
    "partsupp": 1_600,
    "customer": 300,
    "orders": 1_500,
    "lineitem": 5_000,
}
_TPCH = """
region: r_regionkey* r_name=text r_comment=text
nation: n_nationkey* n_name=text n_regionkey>region.r_regionkey n_comment=text
supplier: s_suppkey* s_name=text s_address=text s_nationkey>nation.n_nationkey s_phone=text s_acctbal s_comment=text
part: p_partkey* p_name=text p_mfgr=text p_brand=text p_type=text p_size p_container=text p_retailprice p_comment=text
partsupp: ps_partkey*>part.p_partkey ps_suppkey*>supplier.s_suppkey ps_availqty ps_supplycost ps_comment=text
customer: c_custkey* c_name=text c_address=text c_nationkey>nation.n_nationkey c_phone=text c_acctbal c_mktsegment=text
orders: o_orderkey* o_custkey>customer.c_custkey o_orderstatus=text o_totalprice o_orderdate=time o_shippriority
lineitem: l_orderkey*>orders.o_orderkey l_partkey>part.p_partkey l_suppkey>supplier.s_suppkey l_linenumber* l_quantity
    l_extendedprice l_discount l_tax l_returnflag=text l_shipdate=time l_receiptdate=time l_shipmode=text
"""


def real_database(name: str) -> Database:
    """`chinook` or `northwind`. References of and to empty tables are left out: no data shows them.

    Raises:
        DataMissing: The shared data are not there.
    """
    with zipfile.ZipFile(shared_folder("bi") / f"{name}.zip") as archive:
        schema = json.loads(archive.read("schema.json"))
        tables, truth = [], set()
        filled_tables = {table["name"] for table in schema["tables"] if table["rows"]}
        for table in schema["tables"]:
            if table["name"] not in filled_tables:
                continue
            text = archive.read(f"{table['name']}.csv").decode("utf-8-sig")
            rows = list(csv.reader(io.StringIO(text, newline="")))
            tables.append(database_table(table["name"], rows[0], rows[1:]))
            truth |= {edge for edge in _edges(table) if edge[2] in filled_tables}
    return Database(name, tables, truth)


def tpch_like(seed: int) -> Database:
    """The eight tables of TPC-H, with the reference of its order lines to parts and suppliers over two columns."""
    tables = []
    for line in _TPCH.replace("\n    ", " ").strip().splitlines():
        name, _, rest = line.partition(": ")
        table: dict[str, Any] = {"name": name, "columns": [], "types": [], "primary_key": [], "foreign_keys": []}
        for word in rest.split():
            described, _, target = word.partition(">")
            described, _, kind = described.partition("=")
            column = described.removesuffix("*")
            table["columns"].append(column)
            table["types"].append(kind or "number")
            if described.endswith("*"):
                table["primary_key"].append(column)
            if target:
                parent, key = target.split(".")
                table["foreign_keys"].append({"columns": [column], "ref_table": parent, "ref_columns": [key]})
        tables.append(table)
    both = {"columns": ["l_partkey", "l_suppkey"], "ref_table": "partsupp", "ref_columns": ["ps_partkey", "ps_suppkey"]}
    tables[-1]["foreign_keys"].append(both)
    return filled("tpch-like", tables, seed, _TPCH_ROWS)


def tpcds_like(seed: int) -> Database:
    """24 tables with the names, keys and references of TPC-DS, returns to their sales over two columns included."""
    draw = random.Random(seed)
    tables = json.loads((shared_folder("bi") / "tpcds_keys.json").read_text("utf-8"))["tables"]
    rows = {
        table["name"]: draw.randint(800, 3_000) if len(table["foreign_keys"]) > 5 else draw.randint(60, 900)
        for table in tables
    }
    for table in tables:
        if table["name"] in _RETURNS:
            columns, parent, keys = _RETURNS[table["name"]]
            reference = {"columns": list(columns), "ref_table": parent, "ref_columns": list(keys)}
            table["foreign_keys"].append(reference)
        own = [column for key in table["foreign_keys"] for column in key["columns"]]
        prefix = table["primary_key"][0].split("_")[0]
        measures = [f"{prefix}_{name}" for name in draw.sample((*_COUNTED, "amount", "price", "discount"), 3)]
        table["columns"] = list(dict.fromkeys([*table["primary_key"], *own, *measures]))
        table["types"] = ["number"] * len(table["columns"])
    return filled("tpcds-like", tables, seed, rows)


def spider_databases(seed: int) -> list[Database]:
    """The 130 schemas of the Spider collection. References of one table to several columns of another are one."""
    with gzip.open(shared_folder("bi") / "spider_schemas.json.gz", "rt", encoding="utf-8") as file:
        schemas = json.load(file)
    for schema in schemas:
        keys = {table["name"]: table["primary_key"] for table in schema["tables"]}
        for table in schema["tables"]:
            own = [key["columns"][0] for key in table["foreign_keys"]]
            if len(own) > 1 and table["primary_key"] and table["primary_key"][0] in own:
                # Of a key of several columns the collection names the first: a link table has all of its references.
                table["primary_key"] = list(dict.fromkeys(own))
        for table in schema["tables"]:
            table["foreign_keys"] = _joined(table["foreign_keys"], keys)
    return [
        filled(schema["database"], schema["tables"], seed + number, {}, gaps=number % 3 == 1)
        for number, schema in enumerate(schemas)
    ]


def filled(
    name: str, tables: Sequence[dict[str, Any]], seed: int, rows: Mapping[str, int], *, gaps: bool = False
) -> Database:
    """Made-up rows for a schema: keys are unique, references are to rows that are there.

    Args:
        name: Of the database.
        tables: Each with `name`, `columns`, `types`, `primary_key`, `foreign_keys`.
        seed: Of every choice.
        rows: How many rows tables have; those not named get 20 to 1,000.
        gaps: Whether number keys leave numbers out.
    """
    return _Filler(name, tables, seed, rows, gaps).fill()


def _edges(table: Mapping[str, Any]) -> set[Edge]:
    return {
        (table["name"], tuple(key["columns"]), key["ref_table"], tuple(key["ref_columns"]))
        for key in table["foreign_keys"]
    }


def _joined(references: Sequence[dict[str, Any]], keys: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    """References to one table made one, but for those that stand for themselves: to its key, or twice to a column."""
    by_table: dict[str, list[dict[str, Any]]] = {}
    for reference in references:
        by_table.setdefault(reference["ref_table"], []).append(reference)
    found = []
    for parent, own in by_table.items():
        targets = [reference["ref_columns"][0] for reference in own]
        alone = [reference for reference in own if reference["ref_columns"] == keys[parent]]
        if len(own) == 1 or len(set(targets)) < len(own):
            found += own
        elif alone and len(keys[parent]) == 1 and not _parts_of_a_key(targets, own):
            found += alone
        else:
            columns = [reference["columns"][0] for reference in own]
            found.append({"columns": columns, "ref_table": parent, "ref_columns": targets})
    return found


def _parts_of_a_key(targets: Sequence[str], own: Sequence[dict[str, Any]]) -> bool:
    """Whether a first key column that the collection calls the key is only a part of it: all are called the same."""
    return all(reference["columns"] == reference["ref_columns"] for reference in own) and len(targets) > 1


class _Filler:
    """Fills one database, parents before children."""

    def __init__(
        self, name: str, tables: Sequence[dict[str, Any]], seed: int, rows: Mapping[str, int], gaps: bool
    ) -> None:
        self.draw = random.Random(seed)
        self.database = Database(name, [])
        self.tables = {table["name"]: table for table in tables}
        self.rows = rows
        self.gaps = gaps
        self.data: dict[str, dict[str, list[str]]] = {}
        self.unique: dict[str, set[tuple[str, ...]]] = {name: set() for name in self.tables}
        for table in tables:
            if table["primary_key"]:
                self.unique[table["name"]].add(tuple(table["primary_key"]))
            for key in table["foreign_keys"]:
                self.unique[key["ref_table"]].add(tuple(key["ref_columns"]))
        for sets in self.unique.values():  # a set that holds a key is unique anyway
            sets -= {one for one in sets if any(set(other) < set(one) for other in sets)}

    def fill(self) -> Database:
        for name in self.tables:
            self.visit(name, ())
        return self.database

    def visit(self, name: str, path: tuple[str, ...]) -> None:
        if name in self.data or name in path:
            return
        for key in self.tables[name]["foreign_keys"]:
            self.visit(key["ref_table"], (*path, name))
        self.add(self.tables[name])

    def add(self, table: Mapping[str, Any]) -> None:
        name = table["name"]
        keys = [key for key in table["foreign_keys"] if key["ref_table"] in self.data]
        itself = [key for key in table["foreign_keys"] if key["ref_table"] == name and len(key["columns"]) == 1]
        many = self.draw.randint(150, 1_000) if keys else self.draw.randint(20, 250)
        count = self.rows.get(name, many)
        singles = {columns[0] for columns in self.unique[name] if len(columns) == 1}
        data: dict[str, list[str]] = {}
        for key in sorted(keys, key=lambda key: -len(key["columns"])):
            if len(key["columns"]) > 1 and not set(key["columns"]) & set(data):
                self.refer_together(key, data, count)
        for column in dict.fromkeys(key["columns"][0] for key in keys if len(key["columns"]) == 1):
            if column not in data:
                data[column] = self.refer(keys, column, count, column in singles)
        count = min([count, *map(len, data.values())])
        for column in sorted(singles - set(data)):
            data[column] = self.own_key(table, column, count)
        for key in itself:
            data.setdefault(
                key["columns"][0], reference_values(data[key["ref_columns"][0]], count, self.draw, sound=True)
            )
        chosen = self.tell_apart(table, data, count)
        ordered = {}
        for column, kind in zip(table["columns"], table["types"], strict=True):
            values = data.get(column)
            ordered[column] = [values[row] for row in chosen] if values else self.others(column, kind, len(chosen))
        self.data[name] = ordered
        records = list(zip(*ordered.values(), strict=True))
        self.database.tables.append(database_table(name, list(ordered), records))
        self.database.truth |= _edges({"name": name, "foreign_keys": [*keys, *itself]})

    def refer_together(self, key: Mapping[str, Any], data: dict[str, list[str]], count: int) -> None:
        parent = self.data[key["ref_table"]]
        whole = range(len(next(iter(parent.values()))))
        rows = [self.draw.choice(whole) for _ in range(count)]
        for column, target in zip(key["columns"], key["ref_columns"], strict=True):
            data[column] = [parent[target][row] for row in rows]

    def refer(self, keys: Sequence[Mapping[str, Any]], column: str, count: int, unique: bool) -> list[str]:
        """References of one column, to a value that all the tables have which it refers to."""
        pools = [self.data[key["ref_table"]][key["ref_columns"][0]] for key in keys if key["columns"] == [column]]
        common = set.intersection(*map(set, pools)) - {""} or set(pools[0])
        known = [value for value in dict.fromkeys(pools[0]) if value in common]
        if unique:
            return self.draw.sample(known, min(count, len(known)))
        return reference_values(known, count, self.draw, sound=True)

    def own_key(self, table: Mapping[str, Any], column: str, count: int) -> list[str]:
        kind = table["types"][table["columns"].index(column)]
        if kind == "number" and not self.gaps:
            return [str(number) for number in range(1, count + 1)]
        return key_values(column, count, self.draw, text=kind != "number")

    def tell_apart(self, table: Mapping[str, Any], data: dict[str, list[str]], count: int) -> Sequence[int]:
        """Fill the parts of keys of several columns; returns rows that differ in all keys and lack none."""
        chosen: Sequence[int] = range(count)
        for columns in sorted(self.unique[table["name"]]):
            if len(columns) == 1:
                continue
            free = [column for column in columns if column not in data]
            for column in free[:-1]:
                data[column] = [str(self.draw.randint(1, 12)) for _ in range(count)]
            seen: dict[tuple[str, ...], int] = {}
            if free:
                others = [column for column in columns if column != free[-1]]
                numbers = []
                for row in range(count):
                    group = tuple(data[column][row] for column in others)
                    seen[group] = seen.get(group, 0) + 1
                    # Lines are counted within what they belong to; tickets and orders hold several rows each.
                    numbers.append(str(seen[group] if "line" in free[-1].lower() else 1 + row // 6))
                data[free[-1]] = numbers
            seen = {}
            for row in chosen:
                group = tuple(data[column][row] for column in columns)
                if all(group):
                    seen.setdefault(group, row)
            chosen = sorted(seen.values())
        return chosen

    def others(self, column: str, kind: str, count: int) -> list[str]:
        words, draw = column.lower(), self.draw
        if kind == "number":
            counted = next((name for name in _COUNTED if name in words), "")
            if counted or draw.random() < 0.5:
                return measure_values(counted or "amount", count, draw)
            high = draw.choice((5, 50, 500, 10_000))
            return [str(draw.randint(0 if high > 50 else 1, high)) for _ in range(count)]
        if kind == "time" or "date" in words:
            return [f"20{draw.randint(10, 24)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}" for _ in range(count)]
        if "name" in words or "title" in words:
            return [f"{draw.choice(_WORDS)} {draw.choice(_WORDS)} {draw.randrange(2 * count)}" for _ in range(count)]
        several = draw.sample(_WORDS, draw.randint(2, 12))
        return [draw.choice(several) for _ in range(count)]
