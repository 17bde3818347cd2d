import math
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.core.randomness import GAMMA, bits, bits_array, integers, permutation, rand, uniform

seeds = st.integers(min_value=-(2**70), max_value=2**70)
parts = st.one_of(st.integers(min_value=-(2**70), max_value=2**70), st.text(max_size=8))


def test_the_empty_key_is_the_published_splitmix64():
    # The first outputs of the generator as published, started at 1234567 and at 0.
    assert [bits(1234567 + GAMMA * step) for step in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    assert bits(0) == 0xE220A8397B1DCDAF


def test_values_are_pinned():
    assert bits(0, 0) == 575854417547002445
    assert bits(42, "walk", 3, -1) == 15951328993839574493
    assert rand(42, "walk", 3) == 0.3735826895687753
    assert permutation(1, "p", size=8).tolist() == [0, 3, 1, 6, 2, 4, 7, 5]


@given(seeds, st.lists(parts, max_size=3))
def test_arrays_agree_with_single_draws(seed, key):
    drawn = bits_array(seed, *key, size=5)
    assert drawn.dtype == np.uint64
    assert drawn.tolist() == [bits(seed, *key, i) for i in range(5)]
    grid = uniform(seed, *key, size=(2, 3))
    assert grid.shape == (2, 3) and grid.dtype == np.float64
    assert grid.ravel().tolist() == [rand(seed, *key, i) for i in range(6)]
    assert ((grid >= 0) & (grid < 1)).all()


@given(seeds, st.integers(min_value=0, max_value=300))
def test_a_permutation_holds_every_number_once(seed, size):
    order = permutation(seed, "order", size=size)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(size))


def test_a_prefix_does_not_depend_on_the_length():
    assert (bits_array(3, "x", size=1000)[:10] == bits_array(3, "x", size=10)).all()


def test_threads_and_order_do_not_matter():
    keys = list(range(500))
    with ThreadPoolExecutor(4) as pool:
        drawn = dict(zip(reversed(keys), pool.map(lambda key: bits(9, key), reversed(keys)), strict=True))
    assert [drawn[key] for key in keys] == bits_array(9, size=500).tolist()


def test_a_seed_and_a_part_that_are_equal_do_not_cancel_out():
    assert len({bits(number, number) for number in range(1000)}) == 1000
    assert min(bits(number, number) for number in range(1000)) > 2**40


def test_keys_that_look_alike_differ():
    keys = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), ("0",), ("",), (-1,), ("a", "b"), ("ab",), ("b", "a")]
    drawn = {bits(seed, *key) for seed, key in product(range(4), keys)}
    assert len(drawn) == 4 * len(keys)


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


def within(statistic, freedom, sigmas=5):
    """Whether a chi-square statistic lies where chance puts it (normal approximation, many degrees of freedom)."""
    return abs(statistic - freedom) < sigmas * math.sqrt(2 * freedom)


@pytest.mark.parametrize("key", [("a",), (0,), (2**63,), ("walk", 12345)])
def test_uniform_fills_the_interval_evenly(key):
    drawn = uniform(5, *key, size=200_000)
    counts = np.bincount((drawn * 1000).astype(int), minlength=1000)
    assert within(chi_square(counts), 999)
    assert abs(drawn.mean() - 0.5) < 5 / math.sqrt(12 * drawn.size)


def test_streams_of_neighbouring_keys_and_seeds_are_independent():
    streams = [uniform(seed, key, size=100_000) for seed, key in product((0, 1), (0, 1, 2))]
    for i, first in enumerate(streams):
        for second in streams[:i]:
            cells = (first * 16).astype(int) * 16 + (second * 16).astype(int)
            assert within(chi_square(np.bincount(cells, minlength=256)), 255)


def test_successive_numbers_of_a_stream_are_independent():
    drawn = uniform(11, "pairs", size=200_000)
    cells = (drawn[:-1] * 32).astype(int) * 32 + (drawn[1:] * 32).astype(int)
    assert within(chi_square(np.bincount(cells, minlength=1024)), 1023)


def test_each_bit_is_fair_and_flips_half_of_the_others():
    drawn = bits_array(1, "bits", size=50_000)
    ones = ((drawn[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(axis=0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(drawn.size)
    flipped = [bin(bits(1, "flip", number) ^ bits(1, "flip", number ^ 1)).count("1") for number in range(4000)]
    assert abs(np.mean(flipped) - 32) < 5 * 4 / math.sqrt(2000)


def test_every_place_of_a_permutation_is_equally_likely():
    counts = np.zeros((6, 6))
    for draw in range(6000):
        counts[np.arange(6), permutation(2, draw, size=6)] += 1
    assert within(chi_square(counts), 25)


@given(seeds, st.integers(min_value=1, max_value=2**53))
def test_integers_stay_below_their_bound(seed, high):
    drawn = integers(seed, "n", size=20, high=high)
    assert drawn.dtype == np.int64
    assert ((drawn >= 0) & (drawn < high)).all()
    assert drawn.tolist() == [math.floor(rand(seed, "n", i) * high) for i in range(20)]


def test_integers_are_even_and_bounds_checked():
    assert within(chi_square(np.bincount(integers(4, "dice", size=100_000, high=600), minlength=600)), 599)
    for high in (0, -1, 2**53 + 1):
        with pytest.raises(UsageError, match="integers below"):
            integers(0, size=1, high=high)


def test_a_negative_size_is_refused():
    with pytest.raises(UsageError, match="-1"):
        bits_array(0, size=-1)
