"""Attention to spans against a plain softmax over the whole context, and merging in every grouping."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import UsageError
from windlass.kernels.span_attention import half_table, reference
from windlass.models.page_pool import PagePool
from windlass.serving.attention import attend, merge_lse
from windlass.serving.kv_view import Span

LAYERS, KEY_HEADS, SIZE, PAGES = 2, 2, 16, 12


def filled_pool(rng: np.random.Generator) -> PagePool:
    pool = PagePool(LAYERS, KEY_HEADS, SIZE, pages=PAGES)
    pool.data[:] = rng.standard_normal(pool.data.shape).astype(np.float16).view(np.uint16)
    return pool


def stored(pool: PagePool, span: Span, layer: int) -> tuple[Any, Any]:
    """Keys and values of a span, slot by slot, float32 [length, key_heads, size]."""
    slots = [divmod(span.start + at, pool.page_tokens) for at in range(span.length)]
    rows = pool.view().view(np.float16)
    return tuple(
        np.array([rows[span.pages[p], layer, part, :, o] for p, o in slots], np.float32).reshape(-1, KEY_HEADS, SIZE)
        for part in (0, 1)
    )


def plain(queries: Any, keys: Any, values: Any, visible: Any) -> Any:
    """Softmax attention, one query and head at a time, in float64."""
    out = np.zeros(queries.shape)
    for t, h in np.ndindex(*queries.shape[:2]):
        kv = h // (queries.shape[1] // KEY_HEADS)
        scores = keys[: visible[t], kv].astype(np.float64) @ queries[t, h] / np.sqrt(SIZE)
        if len(scores):
            shares = np.exp(scores - scores.max())
            out[t, h] = shares / shares.sum() @ values[: visible[t], kv]
    return out


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 1000), group=st.sampled_from([1, 3]), tokens=st.integers(1, 4))
def test_spans_merged_are_the_whole_context(data: Any, seed: int, group: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    pool = filled_pool(rng)
    order = rng.permutation(PAGES).tolist()
    queries = (rng.standard_normal((tokens, KEY_HEADS * group, SIZE)) * 3).astype(np.float32)
    spans = []
    for part in range(3):
        start = data.draw(st.integers(0, 15))
        length = data.draw(st.integers(0, 64 - start))
        spans.append(Span(tuple(order[4 * part : 4 * part + 4]), start, length, 0))
    layer = seed % LAYERS
    parts = [attend(queries, span, pool, layer) for span in spans]
    for span, part in zip(spans, parts, strict=True):
        expected = reference(queries, *stored(pool, span, layer), np.full(tokens, span.length))
        np.testing.assert_allclose(part[0], expected[0], atol=2e-5)
        np.testing.assert_allclose(part[1], expected[1], atol=2e-5)
    whole = [np.concatenate(arrays) for arrays in zip(*(stored(pool, span, layer) for span in spans), strict=True)]
    expected = plain(queries, *whole, np.full(tokens, len(whole[0])))
    for grouping in ([parts], [parts[:2], parts[2:]], [parts[2:], parts[:2]], [[part] for part in parts]):
        merged = merge_lse([merge_lse(some) for some in grouping])
        np.testing.assert_allclose(merged[0], expected, atol=3e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), length=st.integers(0, 48), tokens=st.integers(1, 6))
def test_queries_see_what_they_may(seed: int, length: int, tokens: int) -> None:
    rng = np.random.default_rng(seed)
    pool = filled_pool(rng)
    visible = rng.integers(0, length + 1, tokens)
    queries = rng.standard_normal((tokens, 4, SIZE)).astype(np.float32)
    span = Span((3, 1, 7), 0, length, 0)
    means, logs = attend(queries, span, pool, 1, visible=visible)
    np.testing.assert_allclose(means, plain(queries, *stored(pool, span, 1), visible), atol=2e-5)
    assert (np.isneginf(logs) == (visible == 0)[:, None]).all()


def test_nothing_seen_anywhere_is_nothing() -> None:
    empty = (np.zeros((1, 2, SIZE), np.float32), np.full((1, 2), -np.inf, np.float32))
    means, logs = merge_lse([empty, empty])
    assert (means == 0).all() and np.isneginf(logs).all()


def test_large_scores_do_not_overflow() -> None:
    parts = [(np.full((1, 1, 2), value, np.float32), np.full((1, 1), log, np.float32)) for value, log in
             ((1.0, 3000.0), (5.0, 3000.0), (9.0, -3000.0))]  # fmt: skip
    means, logs = merge_lse(parts)
    assert means.tolist() == [[[3.0, 3.0]]] and logs[0, 0] == pytest.approx(3000.0 + np.log(2))


def test_every_half_is_in_the_table() -> None:
    table = half_table()
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert np.array_equal(table, bits.astype(np.float32), equal_nan=True)


def test_what_does_not_fit_is_refused() -> None:
    pool = PagePool(LAYERS, KEY_HEADS, SIZE, pages=2)
    good = np.zeros((2, 4, SIZE), np.float32)
    for queries, layer, visible in ((good[:, :3], 0, None), (good, 2, None), (good, 0, [1, 9]), (good, 0, [1])):
        with pytest.raises(UsageError):
            attend(queries, Span((0,), 0, 8, 0), pool, layer, visible=visible)
    with pytest.raises(UsageError):
        merge_lse([])
