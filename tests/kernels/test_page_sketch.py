"""Pages chosen from sketches, against the obvious way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.kernels.page_sketch import bound_page, choose_pages, page_scores, reference


def chosen(queries: np.ndarray, keys: np.ndarray, budget: int, newest: int, places: np.ndarray) -> list[int]:
    """What the compiled functions read of a context whose pages lie at `places` of a pool."""
    pages, tokens, size = keys.shape
    pool = np.zeros((places.max() + 1, tokens, size), np.float16)
    pool[places] = keys
    sketch = np.zeros(len(pool) * 2 * size, np.uint16)
    for place in places:
        bound_page(pool.view(np.uint16).reshape(-1), place * tokens * size, tokens, size, sketch, place * 2 * size)
    lengths, starts = np.full(pages, tokens, np.int64), np.zeros(pages, np.int64)
    ranks, work = np.full((2, pages + 16), np.nan, np.float32)
    page_scores(
        queries.reshape(-1),
        len(queries),
        size,
        places,
        lengths,
        1,
        pages - newest,
        tokens,
        sketch,
        0,
        2 * size,
        work,
        ranks,
    )
    lists = np.zeros((4, pages), np.int64)
    count = choose_pages(places, starts, lengths, 0, pages, newest, budget, ranks, work, *lists)
    assert (lists[2, :count] == tokens * np.arange(count)).all() and (lists[3, :count] == tokens).all()
    where = {int(place): page for page, place in enumerate(places)}
    return [where[int(place)] for place in lists[0, :count]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    pages=st.integers(4, 40),
    group=st.integers(1, 4),
    newest=st.integers(1, 3),
    budget=st.integers(2, 45),
    size=st.sampled_from([16, 32, 64]),
    levels=st.sampled_from([2, 3, 1000]),
)
def test_the_chosen_pages_are_the_references(
    seed: int, pages: int, group: int, newest: int, budget: int, size: int, levels: int
) -> None:
    newest = min(newest, pages - 2)
    rng = np.random.default_rng(seed)
    # Few levels make ties, which go to the earlier page.
    keys = (rng.integers(-levels, levels + 1, (pages, 8, size)) / levels).astype(np.float16).astype(np.float32)
    queries = rng.integers(-2, 3, (group, size)).astype(np.float32) / 4
    places = rng.permutation(pages + 7)[:pages].astype(np.int64)
    expected = reference(queries, keys, max(budget, newest + 1), newest)
    assert chosen(queries, keys, max(budget, newest + 1), newest, places) == expected


def test_bounds_hold_for_every_key() -> None:
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((16, 32)).astype(np.float16)
    sketch = np.zeros(64, np.uint16)
    bound_page(keys.view(np.uint16).reshape(-1), 0, 16, 32, sketch, 0)
    largest, smallest = sketch.view(np.float16)[:32], -sketch.view(np.float16)[32:]
    assert (largest == keys.max(axis=0)).all() and (smallest == keys.min(axis=0)).all()


def test_pages_that_are_not_whole_are_read() -> None:
    lengths = np.array([8, 8, 3, 8, 8, 8], np.int64)
    places, starts = np.arange(6), np.zeros(6, np.int64)
    sketch = np.zeros(6 * 32, np.uint16)
    ranks, work = np.zeros((2, 32), np.float32)
    page_scores(np.ones(16, np.float32), 1, 16, places, lengths, 1, 5, 8, sketch, 0, 32, work, ranks)
    assert np.isinf(ranks[1]) and np.isfinite(ranks[[0, 2, 3]]).all()
    lists = np.zeros((4, 6), np.int64)
    count = choose_pages(places, starts, lengths, 0, 6, 1, 3, ranks, work, *lists)
    assert lists[0, :count].tolist() == [0, 2, 5] and lists[2, :count].tolist() == [0, 8, 11]
    assert count == pytest.approx(3)
