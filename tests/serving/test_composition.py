"""Options of the engine together: adapters, chunks taken from elsewhere, chunked prompts, preemption."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.models.adapters import write_adapter
from tests.models.tiny_models import hf_config, random_weights, write_folder
from tests.serving.conftest import STRICT
from tests.serving.test_adapters import alone
from tests.serving.test_chunk_cache import assemble, words
from tests.serving.test_exactness import Clock, Disturber
from windlass.models.cpu_engine import CpuEngine
from windlass.serving.adapters import AdapterStore, EngineAdapters
from windlass.serving.chunk_cache import ChunkOptions
from windlass.serving.engine import Engine, RequestHandle
from windlass.serving.kv import KVManager
from windlass.serving.local_engine import chunk_cache
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import FinishReason, Request, SamplingParams, tokens_of
from windlass.serving.scheduler import FairShare, StallFree

CONFIG = hf_config("llama", max_position_embeddings=256, hidden_size=64, head_dim=16, intermediate_size=96)
SYSTEM, QUESTION = words(0, 9), words(1, 7)
PASSAGES = [tuple(words(seed, 20 + seed)) for seed in range(3, 7)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("composition")
    write_folder(root / "model", CONFIG, random_weights(CONFIG, 4))
    for number, rank in enumerate((2, 6)):
        write_adapter(root / f"a{number}", CONFIG, rank, seed=number, strength=2.0)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[CpuEngine]:
    engine = CpuEngine.load(folder / "model", threads=2)
    yield engine
    engine.close()


def composed(model: CpuEngine, folder: Path, pages: int, policy: Any) -> tuple[Engine, AdapterStore]:
    pool = model.new_pool(pages=pages)
    store = AdapterStore(model.config, pool.data.shape[1], pages)
    for number in range(2):
        store.register(f"a{number}", folder / f"a{number}")
    adapters, chunks = EngineAdapters(store, pool), chunk_cache(model, pool, "weights", ChunkOptions(least_tokens=4))
    kv = KVManager(pool, pages, revision="weights", chunks=chunks, adapters=adapters.pages)
    executor = NumbaExecutor(model, pool, adapters=adapters)
    return Engine(executor, policy, kv, Clock(), config=STRICT, adapters=adapters), store


def ask(engine: Engine, name: str, passages: list[tuple[int, ...]], adapter: str | None, reuse: bool) -> RequestHandle:
    prompt, segments = assemble([SYSTEM, *passages, QUESTION])
    return engine.submit(
        Request(
            name, tokens_of(prompt), SamplingParams(max_tokens=6), segments=segments, adapter=adapter,
            reuse_chunks=reuse,
        )
    )  # fmt: skip


@pytest.mark.parametrize("reuse", [False, True])
def test_adapters_with_chunks_under_chunked_prompts_and_preemption(model: CpuEngine, folder: Path, reuse: bool) -> None:
    """Exact while nothing lossy is on, whoever is preempted; with chunks reused, named, and never across adapters."""
    draw = random.Random(2)
    disturber = Disturber(FairShare(StallFree(13)), draw)
    engine, store = composed(model, folder, 34, disturber)
    keys = [None, store.resolve("a0"), store.resolve("a1")]
    handles = []
    for number in range(12):
        passages = draw.sample(PASSAGES, 3)
        handles.append(ask(engine, f"r{number}", passages, draw.choice(keys), reuse))
        for _ in range(draw.randrange(0, 9)):
            engine.step()
    engine.run_until_idle(5_000)
    assert disturber.times > 0 and engine.kv.stats().used == 0
    taken: set[str | None] = set()
    for handle in handles:
        (seq,) = handle.sequences
        assert seq.finish is FinishReason.LENGTH
        if handle.approximations:
            assert set(handle.approximations) == {"chunks"}
            taken.add(handle.request.adapter)
        else:
            prompt = seq.tokens[: seq.prompt_length]
            assert seq.tokens == alone(model, store, handle.request.adapter, prompt, seq.made)
    assert bool(taken) == reuse


def test_chunks_of_one_adapter_are_unknown_to_another(model: CpuEngine, folder: Path) -> None:
    engine, store = composed(model, folder, 60, StallFree(16))
    first, second = store.resolve("a0"), store.resolve("a1")
    ask(engine, "first", PASSAGES[:3], first, True)
    engine.run_until_idle()
    engine.kv.clear()
    order = [PASSAGES[1], PASSAGES[0], PASSAGES[2]]
    for name, key, expected in (("plain", None, set()), ("other", second, set()), ("same", first, {"chunks"})):
        handle = ask(engine, name, order, key, True)
        engine.run_until_idle()
        assert set(handle.approximations) == expected
        engine.kv.clear()
