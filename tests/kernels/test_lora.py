"""Gathered low-rank products against the obvious way, over scattered cells and mixed ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels.lora import ROOM, expand, reference, shrink


def scattered(rng: np.random.Generator, ranks: list[int], inputs: int, outputs: int) -> tuple[np.ndarray, ...]:
    """A pool with adapters of these ranks at random places, and their tables; between them is NaN."""
    lengths = [length for rank in ranks for length in [inputs] * rank + [outputs] * rank]
    starts = np.zeros(len(lengths), np.int64)
    at = 0
    for number in rng.permutation(len(lengths)):
        at += int(rng.integers(0, 9))
        starts[number] = at
        at += lengths[number]
    data = np.full(at + 16, np.nan, np.float16)
    for start, length in zip(starts, lengths, strict=True):
        data[start : start + length] = rng.standard_normal(length)
    begins = np.concatenate(([0], np.cumsum([2 * rank for rank in ranks])))[:-1]
    tables = np.array([[rank, begin, begin + rank] for rank, begin in zip(ranks, begins, strict=True)], np.int64)
    return data.view(np.uint16), starts, tables.reshape(-1, 3)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    ranks=st.lists(st.sampled_from([1, 2, 3, 4, 5, 8, 13, 64]), min_size=1, max_size=4),
    tokens=st.integers(1, 6),
    inputs=st.sampled_from([32, 64, 96]),
    outputs=st.sampled_from([16, 48, 64, 144]),
)
def test_the_compiled_products_are_the_plain_ones(
    seed: int, ranks: list[int], tokens: int, inputs: int, outputs: int
) -> None:
    rng = np.random.default_rng(seed)
    data, cells, tables = scattered(rng, ranks, inputs, outputs)
    x = rng.standard_normal((tokens, inputs)).astype(np.float32)
    slots = rng.integers(-1, len(ranks), tokens)
    scales = rng.uniform(0.1, 2, len(ranks)).astype(np.float32)
    expected = reference(x, data, slots, tables, scales, cells, outputs)
    out = np.zeros((tokens, outputs), np.float32)
    for token, slot in enumerate(slots):
        if slot < 0:
            continue
        rank, rows, columns = (int(number) for number in tables[slot])
        y = np.full(rank + ROOM, np.nan, np.float32)
        shrink(x.reshape(-1), token * inputs, inputs, data, cells, rows, rank, scales[slot], y, 0)
        whole = out[token].copy()
        expand(y, 0, data, cells, columns, rank, 0, outputs, whole, 0)
        # Rows in parts, as threads take them, are the same bits.
        cut = 16 * int(rng.integers(0, outputs // 16 + 1))
        expand(y, 0, data, cells, columns, rank, 0, cut, out[token], 0)
        expand(y, 0, data, cells, columns, rank, cut, outputs - cut, out[token], cut)
        assert (out[token] == whole).all()
    error = np.abs(out - expected).max()
    assert error <= 1e-4 * max(1.0, float(np.abs(expected).max()))
    assert (out[slots < 0] == 0).all()
