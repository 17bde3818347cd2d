"""Policies together: adapters, chunks, planned batches, chunked prompts and preemption on one engine."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import STRICT
from tests.serving.test_adapters import RANKS, alone, folder, model  # noqa: F401
from tests.serving.test_batch_scheduler import planned
from tests.serving.test_chunk_cache import assemble, words
from tests.serving.test_exactness import Clock, Disturber
from windlass.models.cpu_engine import CpuEngine
from windlass.serving.adapters import AdapterStore, EngineAdapters
from windlass.serving.batch_scheduler import BatchScheduler
from windlass.serving.chunk_cache import ChunkOptions
from windlass.serving.engine import Engine
from windlass.serving.kv import KVManager
from windlass.serving.local_engine import chunk_cache
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import Request, SamplingParams, Sequence, tokens_of

SYSTEM, A, B, C = words(0, 9), tuple(words(3, 25)), tuple(words(4, 33)), tuple(words(5, 18))


class All:
    """Everything at once, in a small memory."""

    def __init__(self, model: CpuEngine, folder: Path, pages: int, policy: Any) -> None:  # noqa: F811
        pool = model.new_pool(pages=pages)
        self.store = AdapterStore(model.config, pool.data.shape[1], pages)
        adapters = EngineAdapters(self.store, pool)
        self.chunks = chunk_cache(model, pool, "weights", ChunkOptions(least_tokens=4, head_tokens=2))
        self.kv = KVManager(pool, pages, revision="weights", adapters=adapters.pages, chunks=self.chunks)
        executor = NumbaExecutor(model, pool, adapters=adapters)
        self.engine = Engine(executor, policy, self.kv, Clock(), config=STRICT, adapters=adapters)
        for number in range(len(RANKS)):
            self.store.register(f"a{number}", folder / f"a{number}")

    def request(self, name: str, parts: list[Any], *, reuse: bool, adapter: str | None, made: int = 5) -> Request:
        prompt, segments = assemble(parts)
        key = None if adapter is None else self.store.resolve(adapter)
        return Request(
            name, tokens_of(prompt), SamplingParams(max_tokens=made), segments=segments, reuse_chunks=reuse, adapter=key
        )

    def ask(self, name: str, parts: list[Any], *, adapter: str | None = None) -> Sequence:
        (seq,) = self.engine.submit(self.request(name, parts, reuse=True, adapter=adapter)).sequences
        self.engine.run_until_idle(2_000)
        self.kv.clear()
        return seq


def test_chunks_of_one_adapter_are_not_found_by_another(model: CpuEngine, folder: Path) -> None:  # noqa: F811
    both = All(model, folder, 60, BatchScheduler(16))
    for number, adapter in enumerate((None, "a0", "a1")):
        seq = both.ask(f"first{number}", [SYSTEM, A, B, words(1, 6)], adapter=adapter)
        assert seq.reuse is not None and not seq.reuse.taken
    seq = both.ask("again", [SYSTEM, A, B, words(1, 6)], adapter="a1")
    assert seq.reuse is not None and len(seq.reuse.taken) == 2
    assert seq.tokens == alone(model, both.store, both.store.resolve("a1"), seq.tokens[: seq.prompt_length], 5)


@pytest.mark.parametrize("seed", [1, 2])
def test_everything_at_once_keeps_exact_answers_exact(model: CpuEngine, folder: Path, seed: int) -> None:  # noqa: F811
    draw = random.Random(seed)
    policy = Disturber(BatchScheduler(13), draw)
    both = All(model, folder, 40, policy)
    exact: list[Sequence] = []
    for adapter in (None, "a0"):
        both.ask(f"before {adapter}", [SYSTEM, C, A, B, words(1, 6)], adapter=adapter)
    beginning = words(50 + seed, 30)
    for request in planned([[*beginning, number, number] for number in range(5)], made=4):
        exact += both.engine.submit(request).sequences
    reused = 0
    handles = []
    for number in range(10):
        parts = [SYSTEM, *draw.sample([A, B, C], draw.randrange(1, 4)), words(number, 5)]
        reuse, adapter = draw.random() < 0.6, draw.choice([None, "a0", "a0", "a2"])
        handle = both.engine.submit(
            both.request(f"r{number}", parts, reuse=reuse, adapter=adapter, made=draw.randrange(1, 9))
        )
        handles.append(handle)
        if not reuse:
            exact += handle.sequences
        for _ in range(draw.randrange(0, 5)):
            both.engine.step()
    both.engine.run_until_idle(8_000)
    for handle in handles:
        named = handle.approximations.get("chunks", {})
        reused += int(named.get("reused_tokens", 0))
        assert not named or handle.request.reuse_chunks
    assert policy.times > 0 and reused > 0
    stats = both.kv.stats()
    assert stats.used == 0
    for seq in exact:
        prompt = seq.tokens[: seq.prompt_length]
        assert seq.tokens == alone(model, both.store, seq.request.adapter, prompt, seq.made), seq.id
