"""The pool of pages against a plain count of owners."""

from __future__ import annotations

import doctest
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core.errors import PoolExhausted, UsageError
from windlass.models import page_pool
from windlass.models.page_pool import PagePool, SequenceCache


def small(pages: int | None = None) -> PagePool:
    return PagePool(2, 1, 16, page_tokens=4, pages=pages)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["take", "share", "release", "copy", "many"]), st.integers(0, 20))),
    st.booleans(),
)
def test_pages_are_counted_as_a_dictionary_counts_them(moves: list[tuple[str, int]], bounded: bool) -> None:
    pool, owners = small(12 if bounded else None), dict[int, int]()
    for move, number in moves:
        held = sorted(owners)
        if move in ("take", "many"):
            wanted = 1 if move == "take" else number
            if bounded and len(owners) + wanted > 12:
                with pytest.raises(PoolExhausted, match="are free"):
                    pool.take_many(wanted)
            else:
                for page in pool.take_many(wanted):
                    assert owners.setdefault(page, 1) == 1 and page not in held
        elif held:
            page = held[number % len(held)]
            if move == "share":
                pool.share(page)
                owners[page] += 1
            elif move == "release":
                pool.release(page)
                owners[page] -= 1
                if owners[page] == 0:
                    del owners[page]
            elif not bounded or len(owners) < 12:
                pool.data[page] = number
                owners[twin := pool.copy(page)] = 1
                assert twin != page and (pool.data[twin] == number).all()
        pool.check_integrity()
        assert {page: count for page, count in enumerate(pool.owners) if count} == owners
        assert pool.free_pages == pool.count - len(owners)


def test_growing_keeps_what_is_stored() -> None:
    pool = small()
    for number in range(40):
        page = pool.take()
        pool.data[page] = number
    pages = [int(row[0]) for row in pool.data[:40]]
    assert sorted(pages) == list(range(40))
    assert pool.view().shape == (64, 2, 2, 1, 4, 16) and pool.page_bytes == 2 * 2 * 2 * 4 * 16


def test_a_budget_is_not_memory_until_it_is_written() -> None:
    pool = PagePool(4, 1, 64, pages=100_000)
    before = psutil.Process().memory_info().rss
    pool.data[pool.take()] = 1
    assert pool.data.nbytes > 1.6e9 and psutil.Process().memory_info().rss - before < 1e8
    with pytest.raises(UsageError, match="more than this machine can give"):
        PagePool(4, 1, 64, pages=10**11)


def test_misuse_is_named() -> None:
    pool = small(2)
    page = pool.take()
    pool.release(page)
    for move in (pool.share, pool.release):
        with pytest.raises(UsageError, match=f"page {page} of 2 is not in use"):
            move(page)
    with pytest.raises(UsageError, match="not in use"):
        pool.release(99)
    with pytest.raises(UsageError, match="every size must be at least 1"):
        PagePool(1, 1, 16, pages=0)


def test_a_cache_that_does_not_fit_leaves_the_pool_as_it_was() -> None:
    pool = small(3)
    cache = SequenceCache(pool)
    cache.reserve(6)
    cache.length = 6
    twin = cache.fork()
    before = list(pool.owners)
    with pytest.raises(PoolExhausted):
        twin.reserve(9)
    assert pool.owners == before and twin.pages == cache.pages
    twin.reserve(8)
    assert twin.pages[0] == cache.pages[0] and twin.pages[1] != cache.pages[1]
    del twin
    cache.truncate(0)
    assert pool.free_pages == 3


def test_the_example_runs() -> None:
    found: Any = doctest.testmod(page_pool)
    assert found.attempted >= 3 and found.failed == 0
