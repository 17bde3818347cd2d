"""Signatures, bands and exact overlaps against brute force and the probabilities they promise."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels.minhash import (
    EMPTY,
    band_keys,
    candidate_pairs,
    choose_bands,
    common_values,
    densified,
    estimate_jaccard,
    merge_sets,
    minima,
    signatures,
    slot_constants,
    sort_unique,
)


def packed(sets: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(values) for values in sets])]).astype(np.int64)
    return np.concatenate([np.empty(0, np.uint64), *sets]).astype(np.uint64), offsets


def signed(sets: list[np.ndarray], slots: int = 128) -> np.ndarray:
    table = np.empty((len(sets), slots), np.uint32)
    signatures(*packed(sets), *slot_constants(slots), table)
    return table


def pair_of_sets(rng: np.random.Generator, common: int, apart: int) -> list[np.ndarray]:
    """Two sets with `common` values in both and `apart` in each alone."""
    values = rng.integers(0, 2**64, common + 2 * apart, np.uint64)
    return [values[: common + apart], np.concatenate([values[:common], values[common + apart :]])]


@pytest.mark.parametrize(("common", "apart"), [(70, 15), (20, 20), (200, 50), (8, 2)])
def test_slots_agree_with_the_probability_of_jaccard(common: int, apart: int) -> None:
    rng = np.random.default_rng(common)
    jaccard = common / (common + 2 * apart)
    one, bins = [], []
    for _ in range(300):
        sets = pair_of_sets(rng, common, apart)
        table = signed(sets)
        one.append(estimate_jaccard(table[0], table[1]))
        both = []
        for values in sets:
            slots = np.full(128, EMPTY, np.uint32)
            minima(values, slots)
            both.append(densified(slots))
        bins.append(estimate_jaccard(both[0], both[1]))
    deviation = np.sqrt(jaccard * (1 - jaccard) / 128 / 300)
    assert abs(np.mean(one) - jaccard) < 4 * deviation
    # One permutation borrows for small sets, which costs variance but no bias.
    assert abs(np.mean(bins) - jaccard) < 4 * np.std(bins) / np.sqrt(300)


@pytest.mark.parametrize(("common", "apart"), [(70, 15), (50, 25), (30, 35)])
def test_bands_collide_with_the_probability_of_the_s_curve(common: int, apart: int) -> None:
    rng = np.random.default_rng(7)
    bands, rows, trials = 32, 4, 400
    sets = [values for _ in range(trials) for values in pair_of_sets(rng, common, apart)]
    keys = np.empty((bands, 2 * trials), np.uint64)
    band_keys(signed(sets), bands, rows, keys)
    hits = (keys[:, ::2] == keys[:, 1::2]).any(axis=0).mean()
    wanted = 1 - (1 - (common / (common + 2 * apart)) ** rows) ** bands
    assert abs(hits - wanted) < 3 * np.sqrt(wanted * (1 - wanted) / trials) + 0.005


def test_bins_of_a_union_are_the_smaller_of_both() -> None:
    rng = np.random.default_rng(2)
    one, other = rng.integers(0, 2**64, (2, 90), np.uint64)
    slots = [np.full(64, EMPTY, np.uint32) for _ in range(3)]
    for values, out in zip((one, other, np.concatenate([one, other])), slots, strict=True):
        minima(values, out)
    assert np.array_equal(np.minimum(slots[0], slots[1]), slots[2])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_bands_are_the_longest_that_keep_the_promise(threshold: float) -> None:
    bands, rows = choose_bands(threshold, 128)
    promise = {r: (1 - threshold**r) ** (128 // r) <= 1e-3 for r in range(1, 129)}
    assert bands == 128 // rows
    assert rows == max([r for r, kept in promise.items() if kept], default=1)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=2, max_size=12))
def test_candidates_are_all_pairs_with_a_key_in_common(columns: list[list[int]]) -> None:
    keys = np.array(columns, np.uint64).T.copy()
    usable = np.array([column[0] != 3 for column in columns])
    want = [
        [i, j]
        for i, j in combinations(range(len(columns)), 2)
        if usable[i] and usable[j] and any(a == b for a, b in zip(columns[i], columns[j], strict=True))
    ]
    assert candidate_pairs(keys, usable).tolist() == want


def test_a_large_group_is_linked_and_not_squared() -> None:
    count = 5_000
    pairs = candidate_pairs(np.zeros((3, count), np.uint64), np.ones(count, np.bool_))
    assert len(pairs) < 2 * count
    parents = np.arange(count)
    merge_sets(pairs, parents)
    assert not parents.any()


SETS = st.lists(st.lists(st.integers(0, 12), max_size=15), min_size=2, max_size=6)


@settings(deadline=None)
@given(SETS, st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
def test_overlaps_are_exact_and_stop_only_below_the_threshold(lists: list[list[int]], threshold: float) -> None:
    values, offsets = packed([np.array(numbers, np.uint64) for numbers in lists])
    counts = np.zeros(len(lists), np.int64)
    sort_unique(values, offsets, np.ones(len(lists), np.bool_), counts)
    pairs = np.array(list(combinations(range(len(lists)), 2)))
    out = np.empty(len(pairs), np.int64)
    common_values(values, offsets, counts, pairs, threshold, out)
    for (i, j), found in zip(pairs, out, strict=True):
        a, b = set(lists[i]), set(lists[j])
        assert counts[i] == len(a)
        if found >= 0:
            assert found == len(a & b)
        else:
            assert len(a & b) < threshold * len(a | b)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=25))
def test_clusters_are_the_connected_components(edges: list[tuple[int, int]]) -> None:
    parents = np.arange(20)
    merge_sets(np.array(edges, np.int64).reshape(-1, 2), parents)
    groups = {frozenset([i]) for i in range(20)}
    for a, b in edges:
        one, other = (next(group for group in groups if x in group) for x in (a, b))
        groups = groups - {one, other} | {one | other}
    assert {int(parent) for parent in parents} == {min(group) for group in groups}
    assert all(parents[i] == min(group) for group in groups for i in group)
