"""What a token attends to, stretch by stretch: the compiled sums against a softmax in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels.context_chunks import CHUNK
from windlass.kernels.cpu_attention import attention_mass

PAGE, SIZE = 16, 16


def dense(queries: np.ndarray, keys: np.ndarray, begin: int, end: int, bounds: list[int]) -> np.ndarray:
    """float64 [stretches]: mean over heads of the softmax, summed between bounds."""
    heads, key_heads = len(queries), keys.shape[1]
    found = np.zeros(len(bounds))
    for head in range(heads):
        scores = keys[begin:end, head // (heads // key_heads)] @ queries[head] * math.log(2)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        for place, (low, high) in enumerate(zip([0, *bounds], bounds, strict=False)):
            found[place] += weights[max(low - begin, 0) : max(high - begin, 0)].sum() / heads
    return found


@given(
    length=st.integers(1, 600), key_heads=st.integers(1, 3), group=st.integers(1, 4), seed=st.integers(0, 2**16),
    cuts=st.lists(st.integers(0, 600), max_size=5), skipped=st.integers(0, 700),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_shares_are_those_of_a_dense_softmax(
    length: int, key_heads: int, group: int, seed: int, cuts: list[int], skipped: int
) -> None:
    draw = np.random.default_rng(seed)
    begin, end = min(skipped, length - 1), length
    bounds = [*sorted(min(cut, length) for cut in cuts), length]
    keys = draw.normal(size=(length, key_heads, SIZE)).astype(np.float16)
    queries = draw.normal(size=(key_heads * group, SIZE)).astype(np.float32)
    count = -(-length // PAGE)
    pages = draw.permutation(count + 3)[:count]
    data = np.zeros((count + 3, 1, 2, key_heads, PAGE, SIZE), np.float16)
    for slot in range(length):
        data[pages[slot // PAGE], 0, 0, :, slot % PAGE] = keys[slot]
    begins = np.arange(count, dtype=np.int64) * PAGE
    lengths = np.minimum(PAGE, length - begins)
    stride = PAGE * SIZE
    out = np.zeros(len(bounds), np.float32)
    attention_mass(
        queries.reshape(-1), key_heads, group, SIZE, data.view(np.uint16).reshape(-1), 0, key_heads * stride, stride,
        2 * key_heads * stride, pages.astype(np.int64), np.zeros(count, np.int64), begins, lengths, 0, count,
        begin, end, np.array(bounds, np.int64), 0, len(bounds), np.zeros(key_heads * group * (CHUNK + 16), np.float32),
        np.full(key_heads * group * (len(bounds) + 1) + 2, np.nan, np.float32),
        1.0 / (key_heads * group), out, 0,
    )  # fmt: skip
    expected = dense(queries.astype(np.float64), keys.astype(np.float64), begin, end, bounds)
    assert out == pytest.approx(expected, abs=2e-4)
    assert out.sum() == pytest.approx(1.0, abs=1e-4)
