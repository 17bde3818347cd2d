"""Keys turned on: against keys that were turned to their new place at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels import rope_shift
from windlass.models.decoder import rotate

FREQUENCIES = 10_000.0 ** (-np.arange(0, 32, 2) / 32)


def turned(keys: np.ndarray, position: int, style: str) -> np.ndarray:
    angles = (position + np.arange(len(keys)))[:, None] * FREQUENCIES
    return rotate(keys, (np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)), style)


@given(position=st.integers(0, 4000), delta=st.integers(-4000, 4000), style=st.sampled_from(["half", "interleaved"]))
@settings(max_examples=60, deadline=None)
def test_a_turned_key_is_turned_on(position: int, delta: int, style: str) -> None:
    if position + delta < 0:
        delta = -position
    keys = np.random.default_rng(position).normal(size=(7, 2, 32)).astype(np.float32)
    interleaved = style == "interleaved"
    found = rope_shift.reference(
        turned(keys, position, style), *rope_shift.angles(FREQUENCIES, delta, interleaved=interleaved),
        interleaved=interleaved,
    )  # fmt: skip
    assert found == pytest.approx(turned(keys, position + delta, style), abs=2e-3 * max(1.0, abs(delta) / 4000))


@given(
    tokens=st.integers(1, 40), first=st.integers(0, 20), start=st.integers(0, 15), delta=st.integers(-300, 300),
    interleaved=st.booleans(), heads=st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_is_placed_is_the_reference_and_nothing_else_is_touched(
    tokens: int, first: int, start: int, delta: int, interleaved: bool, heads: int
) -> None:
    draw = np.random.default_rng(tokens + 100 * first)
    first = min(first, tokens - 1)
    count, layers, size = tokens - first, 2, 32
    source = draw.normal(size=(layers, 2, heads, tokens, size)).astype(np.float16)
    pages = draw.permutation(6)[:5].astype(np.int64)
    data = np.full((6, layers, 2, heads, 16, size), 7, np.float16)
    cosine, sine = rope_shift.angles(FREQUENCIES, delta, interleaved=interleaved)
    rope_shift.place(
        source.view(np.uint16).reshape(-1), layers, heads, tokens, size, first, count, cosine, sine, interleaved,
        data.view(np.uint16).reshape(-1), 16, pages, start,
    )  # fmt: skip
    expected = np.full_like(data, 7)
    keys = rope_shift.reference(source[:, 0].astype(np.float32), cosine, sine, interleaved=interleaved)
    for at in range(count):
        page, row = pages[(start + at) // 16], (start + at) % 16
        expected[page, :, 0, :, row] = keys[:, :, first + at]
        expected[page, :, 1, :, row] = source[:, 1, :, first + at]
    assert np.array_equal(data[:, :, 1], expected[:, :, 1])
    assert data[:, :, 0].astype(np.float32) == pytest.approx(expected[:, :, 0].astype(np.float32), abs=5e-3)
