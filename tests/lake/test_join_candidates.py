"""Candidates against all pairs of columns, and the model on databases it has not seen."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.bench.lake.auto_bi import score
from windlass.bench.lake.join_databases import Database, generate
from windlass.bench.lake.train_join_model import calibration_error, label
from windlass.core.errors import ModelError
from windlass.kernels.cells import NULL
from windlass.lake import join_model
from windlass.lake.containment import LakeTable
from windlass.lake.hashing import hash_table, record_cells
from windlass.lake.join_candidates import find_candidates, find_joins
from windlass.lake.join_model import FEATURES, JoinModel
from windlass.lake.join_names import abbreviates, words_of
from windlass.lake.profile import profile_table
from windlass.lake.schema_graph import build_schema

FAMILY = {"integer": "n", "number": "n", "text": "t", "date": "d", "timestamp": "d"}


def lake_table(name: str, columns: dict[str, list[str]]) -> LakeTable:
    hashed = hash_table(record_cells(list(zip(*columns.values(), strict=True)), list(columns)))
    return LakeTable(name, profile_table(name, hashed), lambda: hashed)


VALUES = st.lists(st.sampled_from(["1", "2", "3", "4", "5", "6", "x", "y", "", "2024-01-01"]), min_size=6, max_size=6)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.lists(VALUES, min_size=1, max_size=3), min_size=2, max_size=4))
def test_candidates_are_all_included_columns_of_keys(lake: list[list[list[str]]]) -> None:
    tables = [lake_table(str(n), {f"c{k}": values for k, values in enumerate(own)}) for n, own in enumerate(lake)]
    want = set()
    for a in tables:
        for b in tables:
            for i, own in enumerate(a.profile.columns):
                for j, key in enumerate(b.profile.columns):
                    if (
                        (a is b and i == j)
                        or FAMILY.get(own.column.type) is None
                        or FAMILY.get(key.column.type) is None
                    ):
                        continue
                    left, right = (set(values(table, place)) for table, place in ((a, i), (b, j)))
                    unique = len(right) >= 0.95 * key.filled and key.filled > 1 and not key.column.nulls
                    same = FAMILY[own.column.type] == FAMILY[key.column.type] and key.column.type != "number"
                    if left and unique and same and len(left & right) >= 0.8 * len(left):
                        want.add((a.id, (own.name,), b.id, (key.name,)))
    found = find_candidates(tables)
    assert {c[:4] for c in found if len(c.columns) == 1} == want
    assert all(np.isfinite(c.features).all() and len(c.features) == len(FEATURES) for c in found)


def values(table: LakeTable, place: int) -> list[int]:
    hashed = table.load()
    return hashed.hashes[place][hashed.kinds[place] != NULL].tolist()


def test_unseen_databases_are_predicted_and_calibrated() -> None:
    scores, chances, right = [], [], []
    for seed in range(6):
        database = generate(900_000 + seed, 6 + 3 * seed)
        graph = build_schema([table.id for table in database.tables], find_joins(database.tables))
        scores.append(score({join[:4] for join in graph.joins}, database).f1)
        features, truth = label(database)
        chances.append(JoinModel.load().predict(features))
        right.append(truth)
    assert np.mean(scores) >= 0.85
    assert calibration_error(np.concatenate(chances), np.concatenate(right)) <= 0.05


def included(tables: list[LakeTable]) -> set[tuple[str, tuple[str, ...], str, tuple[str, ...]]]:
    """Sets of two and three columns by brute force, rows as tuples of hashes."""
    found = set()
    for parent in tables:
        rows = list(zip(*parent.load().hashes.tolist(), strict=True))
        names = [column.name for column in parent.profile.columns]
        able = [p for p, c in enumerate(parent.profile.columns) if is_part(parent, p) and c.column.type in FAMILY]
        keys: list[tuple[int, ...]] = []
        for width in (2, 3):
            for group in combinations(able, width):
                if any(set(key) <= set(group) for key in keys):
                    continue
                if len({tuple(row[p] for p in group) for row in rows}) == len(rows):
                    keys.append(group)
        for child in tables:
            if child is parent:
                continue
            for key in keys:
                for columns in permutations(range(len(child.profile.columns)), len(key)):
                    if fits(child, columns, parent, key):
                        own = [child.profile.columns[c].name for c in columns]
                        pairs = sorted(zip(own, (names[p] for p in key), strict=True))
                        found.add((child.id, tuple(a for a, _ in pairs), parent.id, tuple(b for _, b in pairs)))
    return found


def is_part(table: LakeTable, place: int) -> bool:
    profile = table.profile.columns[place]
    distinct = len(set(values(table, place)))
    return (
        profile.column.type != "number"
        and not profile.column.nulls
        and distinct > 1
        and not (profile.filled > 1 and distinct >= 0.95 * profile.filled)
    )


def fits(child: LakeTable, columns: tuple[int, ...], parent: LakeTable, key: tuple[int, ...]) -> bool:
    for column, place in zip(columns, key, strict=True):
        own, other = child.profile.columns[column].column.type, parent.profile.columns[place].column.type
        left, right = set(values(child, column)), set(values(parent, place))
        if own not in FAMILY or FAMILY[own] != FAMILY[other] or not left or len(left & right) < 0.8 * len(left):
            return False
    ours, theirs = child.load(), parent.load()
    filled = (ours.kinds[list(columns)] != NULL).all(axis=0)
    left = {tuple(row) for row in ours.hashes[list(columns)].T[filled].tolist()}
    right = {tuple(row) for row in theirs.hashes[list(key)].T.tolist()}
    return bool(left) and len(left & right) >= 0.8 * len(left)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(VALUES, min_size=2, max_size=3), min_size=2, max_size=3))
def test_keys_of_several_columns_are_found(lake: list[list[list[str]]]) -> None:
    tables = [lake_table(str(n), {f"c{k}": values for k, values in enumerate(own)}) for n, own in enumerate(lake)]
    found = {c[:4] for c in find_candidates(tables) if len(c.columns) > 1}
    assert found == included(tables)


def test_order_lines_refer_to_offers_over_two_columns() -> None:
    pairs = [(part, supplier) for part in range(1, 31) for supplier in range(1, 9) if (part * supplier) % 3]
    offers = {"part": [str(p) for p, _ in pairs], "supplier": [str(s) for _, s in pairs], "price": ["9.5"] * len(pairs)}
    used = [pairs[(7 * row) % len(pairs)] for row in range(300)]
    lines = {"line": [f"L{row}" for row in range(300)]}
    lines |= {"part": [str(p) for p, _ in used], "supplier": [str(s) for _, s in used]}
    joins = find_joins([lake_table("offers", offers), lake_table("lines", lines)])
    assert ("lines", ("part", "supplier"), "offers", ("part", "supplier")) in {join[:4] for join in joins}
    assert joins[0].probability > 0.5


def test_a_table_may_refer_to_itself() -> None:
    staff = {"employee_id": [str(n) for n in range(1, 61)], "name": [f"n{n}" for n in range(60)]}
    staff["parent_employee_id"] = ["", *(str(1 + n // 5) for n in range(59))]
    tables = [lake_table("employees", staff), lake_table("tools", {"tool": [f"t{n}" for n in range(9)]})]
    graph = build_schema([table.id for table in tables], find_joins(tables))
    assert [join[:4] for join in graph.joins] == [("employees", ("parent_employee_id",), "employees", ("employee_id",))]
    assert graph.facts == () and graph.dimensions == ()


def test_one_to_one_references_count_in_either_direction() -> None:
    ids = [str(n) for n in range(30)]
    tables = [lake_table(name, {"id": ids}) for name in ("a", "b", "c")] + [lake_table("d", {"a": ids[:5] * 4})]
    one, two, three = (("a", ("id",), "b", ("id",)), ("b", ("id",), "c", ("id",)), ("d", ("a",), "a", ("id",)))
    database = Database("x", tables, {one, two, three})
    turned = {(one[2], one[3], one[0], one[1]), ("c", ("id",), "a", ("id",)), ("d", ("a",), "c", ("id",))}
    assert score(turned, database).f1 == 1.0
    assert score({one, (one[2], one[3], one[0], one[1])}, database).right == 1
    assert score({("d", ("a",), "a", ("id",)), ("d", ("a",), "b", ("id",))}, database).right == 1


def test_reasons_add_up_to_the_prediction() -> None:
    model = JoinModel.load()
    features = np.linspace(0, 1, len(FEATURES))
    total = sum(part for _, part in model.reasons(features)) + model.intercept
    assert model.predict(features[None, :])[0] == pytest.approx(1 / (1 + math.exp(-total)))


def test_a_damaged_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_model, "FEATURES", (*FEATURES, "something else"))
    with pytest.raises(ModelError, match="damaged"):
        JoinModel.load.__wrapped__(JoinModel)


@pytest.mark.parametrize(
    ("word", "whole", "fits"),
    [
        ("hdemo", ("household", "demographic"), True),
        ("addr", ("customer", "address"), True),
        ("cust", ("customer",), True),
        ("demoh", ("household", "demographic"), False),
        ("id", ("identity",), False),
        ("date", ("time", "dim"), False),
    ],
)
def test_abbreviations(word: str, whole: tuple[str, ...], fits: bool) -> None:
    assert bool(abbreviates(word, whole)) == fits


def test_words_of_names() -> None:
    assert words_of("OrderDetails_ID") == ("order", "detail", "id")
    assert words_of("ss_customer_sk") == ("ss", "customer", "sk")
    assert words_of("Categories2") == ("category", "2")


def test_no_tables_and_empty_tables() -> None:
    assert find_candidates([]) == [] and find_joins([]) == []
    assert find_joins([lake_table("a", {"x": []}), lake_table("b", {"x": ["1", "2"]})]) == []
