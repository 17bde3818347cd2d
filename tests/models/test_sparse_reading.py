"""The compiled engine reading a part of a context: the very bits of attention over the pages it chose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.models.test_cpu_engine import relative, shape, write
from windlass.core.errors import UsageError
from windlass.models.cpu_engine import CpuEngine
from windlass.models.key_sketch import KeySketch, SparseReading
from windlass.models.page_pool import PagePool
from windlass.models.token_batch import TokenBatch

PAGE = 16
TOKENS = np.random.default_rng(9).integers(0, 250, 400)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuEngine]:
    """One layer and one key head, so that a set of pages is one of all that attention reads."""
    config = shape(num_hidden_layers=1, num_key_value_heads=1)
    engine = CpuEngine(write(tmp_path_factory.mktemp("sparse"), config), threads=2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuEngine]:
    engine = CpuEngine(write(tmp_path_factory.mktemp("deep"), shape(num_hidden_layers=3)), threads=2)
    yield engine
    engine.close()


def filled(engine: CpuEngine, length: int, pool: PagePool | None = None, shift: int = 0) -> tuple[PagePool, list[int]]:
    """A pool and the pages that hold the first `length` tokens."""
    pool = pool or engine.new_pool(pages=120)
    pages = list(reversed(pool.take_many(length // PAGE + 1)))
    tokens = np.roll(TOKENS, shift)[:length]
    engine.forward_tokens(TokenBatch.contiguous([tokens], [pages], [0], PAGE), pool)
    return pool, pages


def decode(
    engine: CpuEngine, pool: PagePool, contexts: list[tuple[list[int], int]], budgets: list[int], newest: int = 1,
    sketch: KeySketch | None = None,
) -> np.ndarray:  # fmt: skip
    """Logits of one more token of each context."""
    batch = TokenBatch.contiguous(
        [np.array([7])] * len(contexts), [pages for pages, _ in contexts], [length for _, length in contexts], PAGE
    )
    sparse = SparseReading(
        sketch or KeySketch(pool), np.array(budgets, np.int64), np.full(len(budgets), newest, np.int64)
    )
    return engine.forward_tokens(batch, pool, sparse=sparse)


def over(engine: CpuEngine, pool: PagePool, pages: list[int], length: int, kept: list[int]) -> np.ndarray:
    """Logits of the same token that sees only the slots of `kept` pages."""
    lengths = [min(PAGE, length + 1 - PAGE * page) for page in kept]
    batch = TokenBatch(
        ids=np.array([7]), positions=np.array([length]), rows=np.array([0]),
        slots=np.array([pages[length // PAGE] * PAGE + length % PAGE]), visible=np.array([sum(lengths)]),
        context_pages=np.array([pages[page] for page in kept]), context_starts=np.zeros(len(kept), np.int64),
        context_lengths=np.array(lengths), context_offsets=np.array([0, len(kept)]), out_rows=np.array([0]),
    )  # fmt: skip
    return engine.forward_tokens(batch, pool)


@pytest.mark.parametrize(("length", "budget", "newest"), [(130, 4, 1), (140, 5, 2), (128, 3, 1), (399, 24, 2)])
def test_a_token_reads_some_pages_and_nothing_else(engine: CpuEngine, length: int, budget: int, newest: int) -> None:
    pool, pages = filled(engine, length)
    ours = decode(engine, pool, [(pages, length)], [budget], newest)
    count = length // PAGE + 1
    forced = [0, *range(count - newest, count)]
    free = [page for page in range(count) if page not in forced]
    found = [
        sorted([*forced, *chosen])
        for chosen in itertools.combinations(free, budget - len(forced))
        if (over(engine, pool, pages, length, sorted([*forced, *chosen])) == ours).all()
    ]
    assert len(found) == 1


def test_a_budget_for_everything_is_dense_to_the_bit(deep: CpuEngine) -> None:
    pool, pages = filled(deep, 250)
    dense = decode(deep, pool, [(pages, 250)], [0])
    assert (decode(deep, pool, [(pages, 250)], [16]) == dense).all()
    assert relative(decode(deep, pool, [(pages, 250)], [4]), dense) > 0


def test_layers_with_a_window_read_their_window(tmp_path: Path) -> None:
    engine = CpuEngine(write(tmp_path, shape(), **{"llama.attention.sliding_window": 40}), threads=1)
    pool, pages = filled(engine, 250)
    assert (decode(engine, pool, [(pages, 250)], [4]) == decode(engine, pool, [(pages, 250)], [0])).all()


def test_batch_mates_and_threads_change_nothing(deep: CpuEngine) -> None:
    pool, first = filled(deep, 250)
    contexts = [(first, 250)]
    for shift, length in ((3, 100), (5, 333), (9, 200), (11, 40)):
        contexts.append((filled(deep, length, pool, shift)[1], length))
    budgets = [4, 0, 7, 3, 0]
    together = decode(deep, pool, contexts, budgets)
    many = decode(deep, pool, contexts, budgets)
    assert (many == together).all(), "a sketch that is used again chooses otherwise"
    for number, context in enumerate(contexts):
        assert (decode(deep, pool, [context], [budgets[number]]) == together[number]).all()


def test_pages_that_are_written_anew_are_sketched_anew(engine: CpuEngine) -> None:
    pool, pages = filled(engine, 200)
    sketch = KeySketch(pool)
    decode(engine, pool, [(pages, 200)], [4], sketch=sketch)
    for page in pages:
        pool.release(page)
    again, others = filled(engine, 200, pool, shift=50)
    assert again is pool and set(others) == set(pages)
    used = decode(engine, pool, [(others, 200)], [4], sketch=sketch)
    assert (used == decode(engine, pool, [(others, 200)], [4])).all()


def test_senseless_budgets_are_refused(engine: CpuEngine) -> None:
    pool, pages = filled(engine, 200)
    for budget, newest in ((1, 1), (3, 3), (5, 0), (-1, 1), (13, 12)):
        with pytest.raises(UsageError, match="cannot read"):
            decode(engine, pool, [(pages, 200)], [budget], newest)
    with pytest.raises(UsageError, match="another pool"):
        decode(engine, pool, [(pages, 200)], [4], sketch=KeySketch(engine.new_pool(pages=4)))
    with pytest.raises(UsageError, match="budget"):
        KeySketch(engine.new_pool())
