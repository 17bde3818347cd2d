"""Partial and renamed containment against sets of rows, by brute force."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.lake import overlap as overlap_module
from windlass.lake.containment import LakeTable
from windlass.lake.hashing import hash_table, record_cells
from windlass.lake.overlap import find_overlaps
from windlass.lake.profile import profile_table

Table = tuple[list[str], list[list[str]]]


def lake_table(name: str, table: Table) -> LakeTable:
    hashed = hash_table(record_cells(table[1], table[0]))
    return LakeTable(name, profile_table(name, hashed), lambda: hashed)


@st.composite
def lakes(draw: st.DrawFn) -> list[Table]:
    """Bases, and selections of them with rows of their own."""
    cell = st.sampled_from(["1", "2", "3", "x", "y", ""])
    tables: list[Table] = []
    for _ in range(draw(st.integers(1, 3))):
        columns = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
        row = st.lists(cell, min_size=len(columns), max_size=len(columns))
        rows = draw(st.lists(row, min_size=1, max_size=8))
        tables.append((columns, rows))
        for _ in range(draw(st.integers(0, 2))):
            kept = draw(st.lists(st.sampled_from(rows), min_size=1, max_size=6))
            tables.append((columns, kept + draw(st.lists(row, max_size=3))))
    return tables


def share(child: Table, parent: Table) -> float:
    if not set(child[0]) <= set(parent[0]):
        return 0.0
    places = [parent[0].index(name) for name in child[0]]
    ours = {tuple(row) for row in child[1]}
    return len(ours & {tuple(row[place] for place in places) for row in parent[1]}) / len(ours)


@settings(deadline=None, max_examples=120)
@given(lakes(), st.sampled_from([0.3, 0.5, 0.9, 1.0]))
def test_shares_are_those_of_sets_of_rows(lake: list[Table], threshold: float) -> None:
    tables = [lake_table(f"{number:02}", table) for number, table in enumerate(lake)]
    found = {(e.child, e.parent): e.share for e in find_overlaps(tables, threshold=threshold) if not e.renamed}
    want = {
        (f"{i:02}", f"{j:02}"): share(one, other)
        for i, one in enumerate(lake)
        for j, other in enumerate(lake)
        if i != j and share(one, other) >= threshold
    }
    assert found.keys() == want.keys()
    assert all(found[pair] == pytest.approx(want[pair]) for pair in want)


def table_of(seed: int, rows: int, names: list[str]) -> Table:
    kinds = [
        lambda n: f"s{n * 37 % 1009}",
        lambda n: str((n * 13 + seed) % 97 / 2),
        lambda n: "quay" if n % 3 else "pier",
    ]
    return names, [[kinds[place % 3](n + seed * 5_000 + place) for place in range(len(names))] for n in range(rows)]


@settings(deadline=None, max_examples=40)
@given(st.permutations([0, 1, 2]), st.integers(20, 80), st.integers(0, 9), st.integers(2, 3))
def test_renamed_columns_are_paired_by_their_values(order: list[int], rows: int, own: int, width: int) -> None:
    names, records = table_of(1, 120, ["id", "depth", "place"])
    places = order[:width]
    if 0 not in places:
        places = [0, *places[1:]]
    part = [[record[place] for place in places] for record in records[5 : 5 + rows]]
    part += [[f"other {n} {place}" for place in places] for n in range(min(own, rows // 25))]
    child = ([f"c{place}" for place in places], part)
    tables = [
        lake_table("child", child),
        lake_table("parent", (names, records)),
        lake_table("z", table_of(9, 50, ["q", "w"])),
    ]
    found = {(e.child, e.parent): e for e in find_overlaps(tables, threshold=0.5)}
    edge = found["child", "parent"]
    ours = {tuple(row) for row in part}
    best = max(
        len(ours & {tuple(record[k] for k in keys) for record in records}) / len(ours)
        for keys in permutations(range(3), len(places))
    )
    assert edge.renamed and edge.share == pytest.approx(best)
    assert dict(zip(edge.columns, edge.keys, strict=True)) == {f"c{place}": names[place] for place in places}
    assert not any(pair[0] == "z" for pair in found)


@settings(deadline=None, max_examples=30)
@given(lakes(), st.booleans())
def test_fresh_tables_find_what_all_find(lake: list[Table], few: bool) -> None:
    tables = [lake_table(f"{number:02}", table) for number, table in enumerate(lake)]
    tables += [lake_table("child", table_of(1, 30, ["x", "y"])), lake_table("parent", table_of(1, 90, ["id", "depth"]))]
    every = find_overlaps(tables)
    with mock.patch.object(overlap_module, "_PAIRS_BY_PROFILE", 10_000 if few else 0):
        for fresh in ({"child"}, {"parent"}, {"00"}):
            assert find_overlaps(tables, fresh=fresh) == [e for e in every if fresh & {e.child, e.parent}]


def test_only_pairs_of_fresh_tables() -> None:
    tables = [lake_table(str(n), table_of(1, 60 - n, ["id", "depth"])) for n in range(3)]
    assert {e[:2] for e in find_overlaps(tables, fresh={"2"})} == {("0", "2"), ("1", "2"), ("2", "0"), ("2", "1")}


@pytest.mark.parametrize("threshold", [0.0, 1.5, -1.0])
def test_a_share_out_of_range_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="cannot be asked for"):
        find_overlaps([], threshold=threshold)
    with pytest.raises(UsageError, match="same id"):
        find_overlaps([lake_table("a", (["x"], [["1"]]))] * 2)


@pytest.mark.shared
def test_the_partial_containments_of_a_real_lake(tmp_path: Path) -> None:
    if not os.environ.get("WINDLASS_SHARED_DATA"):
        pytest.skip("WINDLASS_SHARED_DATA is not set")
    from windlass.bench.lake.data import true_overlaps, unpack_tables
    from windlass.bench.lake.r2d2 import lake_table as from_file

    tables = [from_file(path) for path in unpack_tables(tmp_path)]
    found = {(e.child, e.parent): e.share for e in find_overlaps(tables) if not e.renamed}
    truth = true_overlaps(0.5)
    assert found.keys() == truth.keys()
    assert all(found[pair] == pytest.approx(truth[pair], abs=1e-3) for pair in truth)
