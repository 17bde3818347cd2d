"""Candidates against all pairs of columns, and the model on databases it has not seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.bench.lake.join_databases import generate
from windlass.bench.lake.train_join_model import calibration_error, label
from windlass.core.errors import ModelError
from windlass.kernels.cells import NULL
from windlass.lake import join_candidates
from windlass.lake.containment import LakeTable
from windlass.lake.hashing import hash_table, record_cells
from windlass.lake.join_candidates import FEATURES, JoinModel, _abbreviates, _words, find_candidates, find_joins
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
                    if a is b or FAMILY.get(own.column.type) is None or FAMILY.get(key.column.type) is None:
                        continue
                    left, right = (set(values(table, place)) for table, place in ((a, i), (b, j)))
                    unique = len(right) >= 0.95 * key.filled and key.filled > 1 and not key.column.nulls
                    same = FAMILY[own.column.type] == FAMILY[key.column.type] and key.column.type != "number"
                    if left and unique and same and len(left & right) >= 0.8 * len(left):
                        want.add((a.id, own.name, b.id, key.name))
    found = find_candidates(tables)
    assert {(c.child, c.column, c.parent, c.key) for c in found} == want
    assert all(np.isfinite(c.features).all() and len(c.features) == len(FEATURES) for c in found)


def values(table: LakeTable, place: int) -> list[int]:
    hashed = table.load()
    return hashed.hashes[place][hashed.kinds[place] != NULL].tolist()


def test_unseen_databases_are_predicted_and_calibrated() -> None:
    scores, chances, right = [], [], []
    for seed in range(6):
        database = generate(900_000 + seed, 6 + 3 * seed)
        graph = build_schema([table.id for table in database.tables], find_joins(database.tables))
        found = {(join.child, join.columns[0], join.parent, join.keys[0]) for join in graph.joins}
        scores.append(2 * len(found & database.truth) / (len(found) + len(database.truth)))
        features, truth = label(database)
        chances.append(JoinModel.load().predict(features))
        right.append(truth)
    assert np.mean(scores) >= 0.85
    assert calibration_error(np.concatenate(chances), np.concatenate(right)) <= 0.05


def test_reasons_add_up_to_the_prediction() -> None:
    model = JoinModel.load()
    features = np.linspace(0, 1, len(FEATURES))
    total = sum(part for _, part in model.reasons(features)) + model.intercept
    assert model.predict(features[None, :])[0] == pytest.approx(1 / (1 + math.exp(-total)))


def test_a_damaged_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_candidates, "FEATURES", (*FEATURES, "something else"))
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
    assert bool(_abbreviates(word, whole)) == fits


def test_words_of_names() -> None:
    assert _words("OrderDetails_ID") == ("order", "detail", "id")
    assert _words("ss_customer_sk") == ("ss", "customer", "sk")
    assert _words("Categories2") == ("category", "2")


def test_no_tables_and_empty_tables() -> None:
    assert find_candidates([]) == [] and find_joins([]) == []
    assert find_joins([lake_table("a", {"x": []}), lake_table("b", {"x": ["1", "2"]})]) == []
