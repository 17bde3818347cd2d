"""Chunks taken from elsewhere: the same bits in the same context, turned keys in another, nothing for others."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.serving.conftest import STRICT
from tests.serving.paged_models import tiny_llama
from windlass.models.cpu_engine import CpuEngine
from windlass.serving.chunk_cache import ChunkCache, ChunkOptions
from windlass.serving.engine import Engine
from windlass.serving.kv import KVManager
from windlass.serving.local_engine import chunk_cache
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import Request, SamplingParams, Segment, Sequence, tokens_of
from windlass.serving.scheduler import StallFree

PAGES = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuEngine]:
    path = tiny_llama(tmp_path_factory.mktemp("chunks"), 5, hidden_size=64, head_dim=16)
    engine = CpuEngine.load(path, threads=2)
    yield engine
    engine.close()


class Clock:
    def now(self) -> float:
        return 0.0


class Bench:
    """An engine over a tiny model, with a chunk cache, whose books are checked after every step."""

    def __init__(self, model: CpuEngine, options: ChunkOptions | None = None, *, budget: int = 13) -> None:
        self.model, self.count = model, 0
        pool = model.new_pool(pages=PAGES)
        self.chunks = chunk_cache(model, pool, "weights", options or ChunkOptions(least_tokens=4))
        self.kv = KVManager(pool, PAGES, revision="weights", chunks=self.chunks)
        self.pool = pool
        self.engine = Engine(NumbaExecutor(model, pool), StallFree(budget), self.kv, Clock(), config=STRICT)

    def ask(self, parts: list[Any], **options: Any) -> Sequence:
        """Run one request to its end; the sequence."""
        request = self.request(parts, **options)
        (seq,) = self.engine.submit(request).sequences
        self.engine.run_until_idle(2_000)
        return seq

    def request(self, parts: list[Any], *, made: int = 6, reuse: bool = True, tenant: str = "a") -> Request:
        self.count += 1
        prompt, segments = assemble(parts)
        return Request(
            f"r{self.count}", tokens_of(prompt), SamplingParams(max_tokens=made), tenant=tenant, segments=segments,
            reuse_chunks=reuse,
        )  # fmt: skip


def assemble(parts: list[Any]) -> tuple[list[int], tuple[Segment, ...]]:
    """Lists of tokens are plain, tuples are chunks, the first part is the system's."""
    prompt: list[int] = []
    segments = []
    for place, part in enumerate(parts):
        start = len(prompt)
        prompt += part
        if isinstance(part, tuple):
            segments.append(Segment(start, len(prompt), "chunk"))
        elif place == 0:
            segments.append(Segment(start, len(prompt), "system"))
    return prompt, tuple(segments)


def words(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(200) for _ in range(count)]


SYSTEM, QUESTION, OTHER = words(0, 9), words(1, 7), words(2, 11)
A, B, C = tuple(words(3, 25)), tuple(words(4, 33)), tuple(words(5, 18))


def test_the_same_context_gives_the_same_bits_without_computing_anything(model: CpuEngine) -> None:
    bench = Bench(model)
    first = bench.ask([SYSTEM, A, B, C, QUESTION])
    bench.kv.clear()
    before = bench.engine.metrics.computed_tokens
    again = bench.ask([SYSTEM, A, B, C, QUESTION])
    assert again.tokens == first.tokens
    assert again.reuse is not None and len(again.reuse.taken) == 3
    assert all(len(part.repaired) == 0 for part in again.reuse.taken)
    assert bench.engine.metrics.computed_tokens - before == len(SYSTEM) + len(QUESTION) + 5


def test_nothing_is_taken_unless_a_request_allows_it(model: CpuEngine) -> None:
    bench = Bench(model)
    bench.ask([SYSTEM, A, B, QUESTION])
    bench.kv.clear()
    assert bench.ask([SYSTEM, B, A, QUESTION], reuse=False).reuse is None
    assert bench.ask([SYSTEM, A, B, QUESTION], made=1, reuse=True).reuse is not None


def test_answers_in_another_context_name_what_was_taken(model: CpuEngine) -> None:
    bench = Bench(model, ChunkOptions(alpha=0.5, least_tokens=4))
    bench.ask([SYSTEM, A, B, QUESTION])
    handle = bench.engine.submit(bench.request([SYSTEM, B, C, A, OTHER]))
    bench.engine.run_until_idle(2_000)
    named = handle.approximations["chunks"]
    assert named["alpha"] == 0.5
    assert 0 < named["repaired_tokens"] < named["reused_tokens"]
    assert named["reused_tokens"] + named["repaired_tokens"] == len(A) + len(B)
    full = bench.engine.submit(bench.request([SYSTEM, C, OTHER], reuse=False))
    bench.engine.run_until_idle(2_000)
    assert full.approximations == {}


def pages_of(bench: Bench, parts: list[Any], *, reuse: bool) -> np.ndarray:
    """Keys and values float32 [layers, 2, heads, tokens, size] after the prompt was computed."""
    request = bench.request(parts, made=2, reuse=reuse)
    (seq,) = bench.engine.submit(request).sequences
    while seq.made == 0:
        bench.engine.step()
    assert seq.view is not None
    view = bench.pool.view()[seq.view.pages]
    found = np.concatenate(list(view.view(np.float16).astype(np.float32)), axis=3)[:, :, :, : seq.prompt_length]
    bench.engine.run_until_idle(2_000)
    bench.kv.clear()
    return found


def test_taken_keys_are_those_of_their_new_place_where_context_does_not_matter(model: CpuEngine) -> None:
    bench = Bench(model, ChunkOptions(alpha=0.0, least_tokens=4))
    pages_of(bench, [SYSTEM, A, B, QUESTION], reuse=True)
    taken = pages_of(bench, [SYSTEM, B, A, QUESTION], reuse=True)
    full = pages_of(bench, [SYSTEM, B, A, QUESTION], reuse=False)
    # The first layer knows nothing but the token and its place; float16 has 11 bits.
    assert np.abs(taken[0] - full[0]).max() <= 2e-3 * np.abs(full[0]).max()
    assert np.abs(taken[-1] - full[-1]).max() > 1e-2
    chunks = slice(len(SYSTEM), len(SYSTEM) + len(A) + len(B))
    assert np.array_equal(taken[:, :, :, : chunks.start], full[:, :, :, : chunks.start])


def error_of(model: CpuEngine, alpha: float, seed: int) -> float:
    bench = Bench(model, ChunkOptions(alpha=alpha, least_tokens=4))
    a, b, c = (tuple(words(100 * seed + n, 24)) for n in range(3))
    pages_of(bench, [SYSTEM, c, a, b, QUESTION], reuse=True)
    taken = pages_of(bench, [SYSTEM, b, a, c, QUESTION], reuse=True)
    full = pages_of(bench, [SYSTEM, b, a, c, QUESTION], reuse=False)
    return float(np.square(taken[1:] - full[1:]).mean())


def test_more_repair_is_nearer_to_a_full_computation(model: CpuEngine) -> None:
    errors = {alpha: np.mean([error_of(model, alpha, seed) for seed in range(4)]) for alpha in (0.0, 0.6, 1.8)}
    assert errors[1.8] < 0.9 * errors[0.6] < 0.9 * 1.1 * errors[0.0]


def test_other_tenants_and_other_instructions_find_nothing(model: CpuEngine) -> None:
    bench = Bench(model)
    bench.ask([SYSTEM, A, QUESTION])
    bench.kv.clear()
    for parts, tenant in (([SYSTEM, A, QUESTION], "b"), ([OTHER, A, QUESTION], "a")):
        seq = bench.ask(parts, tenant=tenant)
        assert seq.reuse is not None and not seq.reuse.taken
        bench.kv.clear()
    assert bench.ask([SYSTEM, A, OTHER]).reuse.taken  # type: ignore[union-attr]


def test_a_content_id_that_lies_changes_nothing(model: CpuEngine) -> None:
    bench = Bench(model)
    bench.ask([SYSTEM, A, QUESTION])
    bench.kv.clear()
    request = bench.request([SYSTEM, B[: len(A)], QUESTION])
    lying = replace(request, segments=tuple(replace(each, content_id=b"A") for each in request.segments))
    (seq,) = bench.engine.submit(lying).sequences
    bench.engine.run_until_idle(2_000)
    assert seq.reuse is not None and not seq.reuse.taken


def test_pages_of_taken_chunks_are_never_found_as_a_prefix(model: CpuEngine) -> None:
    bench = Bench(model, ChunkOptions(alpha=0.0, least_tokens=4))
    bench.ask([SYSTEM, A, B, QUESTION])
    bench.kv.clear()
    parts = [SYSTEM, B, A, QUESTION]
    bench.ask(parts)
    exact = bench.ask(parts, reuse=False)
    bench.kv.clear()
    assert exact.tokens == bench.ask(parts, reuse=False).tokens


def test_repairs_never_alter_what_is_stored(model: CpuEngine) -> None:
    bench = Bench(model, ChunkOptions(alpha=1.5, least_tokens=4))
    bench.ask([SYSTEM, A, B, QUESTION])
    stored = {record.name: record.data.copy() for record in records(bench.chunks)}
    for parts in ([SYSTEM, B, A, QUESTION], [SYSTEM, A, OTHER], [SYSTEM, B, B, A, QUESTION]):
        bench.ask(parts)
    after = {record.name: record.data for record in records(bench.chunks)}
    assert stored and all(np.array_equal(after[name], data) for name, data in stored.items())


def records(chunks: ChunkCache) -> list[Any]:
    return [kept.record for each in chunks.store._kept.values() for kept in each]


@pytest.mark.parametrize("budget", [5, 13, 64])
def test_a_busy_engine_keeps_its_books_and_its_exact_answers(model: CpuEngine, budget: int) -> None:
    """Chunks, chunked prompts, preemption for want of pages, exact requests beside: those stay exact."""
    draw = random.Random(budget)
    bench = Bench(model, ChunkOptions(alpha=0.4, least_tokens=4), budget=budget)
    exact = []
    for number in range(14):
        chunks = draw.sample([A, B, C], draw.randrange(1, 4))
        reuse = draw.random() < 0.7
        request = bench.request([SYSTEM, *chunks, words(number, 6)], made=draw.randrange(1, 30), reuse=reuse)
        (seq,) = bench.engine.submit(request).sequences
        if not reuse:
            exact.append(seq)
        for _ in range(draw.randrange(0, 4)):
            bench.engine.step()
        if draw.random() < 0.2:
            running = list(bench.engine.scheduler.running.values())  # type: ignore[attr-defined]
            if running:
                bench.engine.cancel(running[-1].request.id)
    bench.engine.run_until_idle(5_000)
    assert bench.kv.stats().used == 0
    assert bench.chunks.reused_tokens > 0
    for seq in exact:
        cache = model.cache()
        logits = model.prefill(np.array(seq.tokens[: seq.prompt_length]), cache)
        for token in seq.tokens[seq.prompt_length :]:
            assert token == int(np.argmax(logits))
            logits = model.step(token, cache)
