"""Containment against sets of rows, by brute force."""

from __future__ import annotations

import csv
import os
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.core.tasks import TaskPool
from windlass.lake.containment import LakeTable, find_containment, possible_pairs, schema_groups
from windlass.lake.hashing import HashedTable, hash_table, record_cells
from windlass.lake.profile import profile_table
from windlass.lake.table_files import file_cells

Records = list[list[str]]


def lake_table(name: str, columns: list[str], rows: Records) -> LakeTable:
    hashed = hash_table(record_cells(rows, columns))
    return LakeTable(name, profile_table(name, hashed), lambda: hashed)


CELL = st.sampled_from(["", "1", "1.0", "2", "x", "NA", "true", "2024-01-01"])
CANONICAL = {"NA": "", "1.0": "1"}


@st.composite
def lakes(draw: st.DrawFn) -> list[tuple[list[str], Records]]:
    tables = []
    for _ in range(draw(st.integers(2, 7))):
        columns = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
        rows = draw(st.lists(st.lists(CELL, min_size=len(columns), max_size=len(columns)), min_size=1, max_size=5))
        tables.append((columns, rows))
        if draw(st.booleans()):  # a projection of a selection
            some = draw(st.lists(st.sampled_from(columns), min_size=1, unique=True))
            kept = draw(st.lists(st.sampled_from(rows), min_size=1, max_size=4))
            tables.append((some, [[row[columns.index(name)] for name in some] for row in kept]))
    return tables


def contains(parent: tuple[list[str], Records], child: tuple[list[str], Records]) -> bool:
    if not set(child[0]) <= set(parent[0]):
        return False

    def rows(table: tuple[list[str], Records]) -> set[tuple[str, ...]]:
        places = [table[0].index(name) for name in child[0]]
        return {tuple(CANONICAL.get(row[place], row[place]) for place in places) for row in table[1]}

    return rows(child) <= rows(parent)


@settings(deadline=None, max_examples=80)
@given(lakes())
def test_all_contained_tables_are_found_and_no_other(lake: list[tuple[list[str], Records]]) -> None:
    tables = [lake_table(str(n), *table) for n, table in enumerate(lake)]
    want = {(str(i), str(j)) for i, a in enumerate(lake) for j, b in enumerate(lake) if i != j and contains(b, a)}
    graph = find_containment(tables)
    assert {(edge.child, edge.parent) for edge in graph.edges} == want
    for fresh in ("0", "1"):
        some = find_containment(tables, fresh={fresh})
        assert {(e.child, e.parent) for e in some.edges} == {pair for pair in want if fresh in pair}


@settings(deadline=None, max_examples=80)
@given(lakes())
def test_no_profile_rules_out_a_true_pair(lake: list[tuple[list[str], Records]]) -> None:
    tables = [lake_table(str(n), *table) for n, table in enumerate(lake)]
    groups = schema_groups([frozenset(table.columns) for table in tables])
    kept = set(map(tuple, possible_pairs(tables, groups, np.ones(len(tables), np.bool_)).tolist()))
    true = {(i, j) for i in range(len(lake)) for j in range(len(lake)) if i != j and contains(lake[j], lake[i])}
    assert true <= kept


@settings(deadline=None)
@given(st.lists(st.frozensets(st.sampled_from("abcde"), min_size=1), max_size=12))
def test_pairs_by_columns_are_all_pairs_of_subsets(schemas: list[frozenset[str]]) -> None:
    want = [(i, j) for i, a in enumerate(schemas) for j, b in enumerate(schemas) if a <= b]
    assert sorted((i, j) for small, large in schema_groups(schemas) for i in small for j in large) == want


def test_a_large_child_with_one_strange_row_is_told_apart() -> None:
    rows = [[str(n), f"v{n % 97}"] for n in range(5_000)]
    near = [*rows[:2_000], ["2000", "v0"]]
    tables = [
        lake_table(name, ["n", "v"], part) for name, part in (("all", rows), ("some", rows[:2_000]), ("near", near))
    ]
    graph = find_containment(tables)
    assert [(edge.child, edge.parent) for edge in graph.edges] == [("some", "all"), ("some", "near")]
    assert graph.stages[0].pairs_out == 6
    assert "all 2,000 rows of some" in graph.explain("some", "all")
    assert "not contained" in graph.explain("near", "all")


def made(seed: int, number: int) -> HashedTable:
    rng = np.random.default_rng(seed)
    records = [[str(n), str(rng.integers(99)), f"w{rng.integers(9)}"] for n in range(200)]
    some = [record for row, record in enumerate(records) if row % (number + 1) == 0]
    if number == 3:
        some[0] = ["7", "strange", "w1"]
    return hash_table(record_cells(some, ["a", "b", "c"]))


@pytest.mark.parametrize("kind", ["threads", "processes", pytest.param("ray", marks=pytest.mark.peers)])
def test_tasks_elsewhere_find_the_same(kind: Any) -> None:
    if kind == "ray":
        pytest.importorskip("ray")
    tables = [
        LakeTable(f"{seed}-{number}", profile_table("t", made(seed, number)), partial(made, seed, number))
        for seed in range(2)
        for number in range(5)
    ]
    assert find_containment(tables, task_pool=TaskPool(kind, 2)).edges == find_containment(tables).edges != ()


def test_duplicates_and_trivial_tables() -> None:
    rows = [[str(n), str(n * n)] for n in range(9)]
    tables = [
        lake_table("a", ["n", "square"], rows),
        lake_table("b", ["Square", "N"], [row[::-1] for row in rows[::-1]]),
        lake_table("one", ["n"], [["3"]]),
        lake_table("none", ["n"], []),
    ]
    graph = find_containment(tables)
    assert graph.duplicates() == [["a", "b"]]
    assert {(e.child, e.parent): e.trivial for e in graph.edges} == {
        ("a", "b"): False, ("b", "a"): False, ("one", "a"): True, ("one", "b"): True,
    }  # fmt: skip


def test_two_tables_of_one_id_are_refused() -> None:
    table = lake_table("a", ["n"], [["1"]])
    with pytest.raises(UsageError, match="same id"):
        find_containment([table, table])


@pytest.mark.shared
def test_the_463_true_containments_of_a_real_lake(tmp_path: Path) -> None:
    folder = Path(os.environ["WINDLASS_SHARED_DATA"]) / "lake" / "rdatasets"
    with zipfile.ZipFile(folder / "tables.zip") as archive:
        archive.extractall(tmp_path)
    with open(folder / "containment_truth.csv", newline="") as file:
        truth = {(row[0], row[1]) for row in list(csv.reader(file))[1:] if float(row[2]) == 1.0}
    graph = find_containment([_without_index(path) for path in sorted(tmp_path.rglob("*.csv"))])
    assert len(truth) == 463
    assert {(edge.child, edge.parent) for edge in graph.edges} == truth


def _without_index(path: Path) -> LakeTable:
    """The truth leaves out the leading column of row names."""
    hashed = hash_table(_cells(path))
    return LakeTable(path.name, profile_table(path.name, hashed), partial(_hashed, path))


def _cells(path: Path):  # type: ignore[no-untyped-def]
    cells = file_cells(str(path))
    kept = [place for place, name in enumerate(cells.names) if name.lower() != "rownames"]
    spans = [np.ascontiguousarray(part[kept]) for part in (cells.starts, cells.ends)]
    return replace(cells, names=tuple(cells.names[place] for place in kept), starts=spans[0], ends=spans[1])


def _hashed(path: Path) -> HashedTable:
    return hash_table(_cells(path))
