"""Sketches against what they estimate, and their laws of merging."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels import sketches
from windlass.kernels.sketches import (
    BOTTOM,
    bottom_hashes,
    bottom_misses,
    count_held,
    count_members,
    estimate_distinct,
    fill_registers,
    group_values,
    merge_quantiles,
    quantile_sketch,
    quantiles,
    rows_are_unique,
)

VALUES = st.lists(st.integers(0, 30), max_size=60)


def hashes(values: list[int]) -> np.ndarray:
    return np.array(values, np.uint64) * np.uint64(0x9E3779B97F4A7C15)


@settings(deadline=None)
@given(VALUES)
def test_groups_are_those_of_a_counter(values: list[int]) -> None:
    wanted = np.array([value % 5 != 0 for value in values], np.uint8)
    first, count = group_values(hashes(values), wanted)
    counted = Counter(value for value in values if value % 5)
    assert [values[place] for place in first] == list(counted)
    assert count.tolist() == list(counted.values())


@settings(deadline=None)
@given(VALUES, VALUES)
def test_members_are_counted_as_sets(rows: list[int], others: list[int]) -> None:
    distinct, found = count_members(hashes(rows), hashes(others))
    assert (distinct, found) == (len(set(rows)), len(set(rows) & set(others)))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_rows_are_unique_exactly_when_no_two_are_equal(rows: list[tuple[int, int]]) -> None:
    cells = np.array(rows, np.uint64).reshape(-1, 2).T.copy()
    cells[0] *= np.uint64(0x9E3779B97F4A7C15)
    slots = np.empty(64, np.uint64)
    assert rows_are_unique(cells, np.array([0, 1]), slots) == (len(set(rows)) == len(rows))


@pytest.mark.parametrize("count", [10, 1_000, 5_000, 20_000, 300_000])
def test_distinct_values_are_estimated_within_five_per_cent(count: int) -> None:
    rng = np.random.default_rng(count)
    errors = []
    for _ in range(30):
        registers = np.zeros(sketches.REGISTERS, np.uint8)
        fill_registers(rng.integers(0, 2**64, count, np.uint64), registers)
        errors.append(abs(estimate_distinct(registers) - count) / count)
    assert sum(error > 0.05 for error in errors) <= 1
    assert np.sqrt(np.mean(np.square(errors))) < 0.025


@settings(deadline=None)
@given(st.integers(0, 5_000), st.integers(0, 5_000))
def test_registers_and_bottoms_of_a_union_are_those_of_both(a: int, b: int) -> None:
    rng = np.random.default_rng(a + b)
    one, other = (rng.integers(0, 2**64, size, np.uint64) for size in (a, b))
    both = np.concatenate([one, other])
    parts = []
    for values in (one, other, both):
        registers = np.zeros(sketches.REGISTERS, np.uint8)
        fill_registers(values, registers)
        parts.append(registers)
    assert np.array_equal(np.maximum(parts[0], parts[1]), parts[2])
    merged = bottom_hashes(np.union1d(bottom_hashes(np.unique(one)), bottom_hashes(np.unique(other))))
    assert np.array_equal(merged, bottom_hashes(np.unique(both)))


@settings(deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.randoms(use_true_random=False))
def test_bottoms_never_rule_out_a_contained_column(parent: int, child: int, random: object) -> None:
    rng = np.random.default_rng(parent * 1000 + child)
    values = np.unique(rng.integers(0, 2**64, parent, np.uint64))
    some = rng.permutation(values)[: min(child, len(values))]
    others = rng.integers(0, 2**64, 600, np.uint64)
    bottoms = [bottom_hashes(part) for part in (values, some, others)]
    offsets = np.concatenate([[0], np.cumsum([len(bottom) for bottom in bottoms])])
    compared, missing = np.empty(2, np.int64), np.empty(2, np.int64)
    bottom_misses(np.concatenate(bottoms), offsets, np.array([1, 2]), np.array([0, 0]), compared, missing)
    assert missing[0] == 0 and missing[1] == compared[1] > 0
    if len(values) < BOTTOM:
        assert compared.tolist() == [len(some), BOTTOM]


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), max_size=200))
def test_quantiles_of_few_values_are_exact(values: list[float]) -> None:
    shares = np.linspace(0, 1, 11)
    found = quantiles(quantile_sketch(np.array(values)), shares)
    if values:
        assert found.tolist() == np.quantile(values, shares, method="inverted_cdf").tolist()
    else:
        assert np.isnan(found).all()


def test_quantiles_of_many_merged_values_are_within_three_per_cent_of_rank() -> None:
    rng = np.random.default_rng(4)
    sketch = quantile_sketch(np.empty(0))
    everything = rng.standard_normal(200_000) ** 3
    for part in np.array_split(everything, 40):
        sketch = merge_quantiles(sketch, quantile_sketch(part))
    assert sketch[1].sum() == len(everything) and len(sketch[0]) < 3_000
    shares = np.linspace(0, 1, 11)
    ranks = np.searchsorted(np.sort(everything), quantiles(sketch, shares)) / len(everything)
    assert np.abs(ranks - shares).max() < 0.03


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=40), st.lists(st.integers(0, 12), max_size=40))
def test_cells_that_another_column_has(cells: list[int], others: list[int]) -> None:
    left, right = (np.array(values, np.uint64) for values in (cells, others))
    assert count_held(left, right) == sum(value in others for value in cells)
