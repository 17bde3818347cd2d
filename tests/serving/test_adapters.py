"""Adapters on the engine: names and contents, pages shared with keys and values, and the tokens that come out."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.adapters import write_adapter
from tests.models.tiny_models import hf_config, random_weights, write_folder
from tests.serving.conftest import STRICT, request
from tests.serving.test_exactness import POLICIES, Clock, Disturber
from windlass.core.errors import (
    AdapterError,
    AdapterNotFound,
    ContextLengthError,
    EngineBug,
    PoolExhausted,
    UsageError,
)
from windlass.models.adapter_tables import AdapterTables, Layout, PlacedAdapter, TokenAdapters
from windlass.models.cpu_engine import CpuEngine
from windlass.models.decoder import Decoder
from windlass.models.generate import LocalModel
from windlass.models.installed_adapters import install_adapter, installed_adapters, remove_adapter
from windlass.models.token_batch import TokenBatch
from windlass.serving.adapter_pages import AdapterPages
from windlass.serving.adapters import AdapterStore, EngineAdapters, register_installed
from windlass.serving.engine import Engine
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.local_engine import local_engine
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import FinishReason, Request, SamplingParams, Sequence, tokens_of
from windlass.serving.scheduler import StallFree

CONFIG = hf_config("llama", max_position_embeddings=256, hidden_size=64, head_dim=16, intermediate_size=96)
SHORT = SamplingParams(max_tokens=3)
RANKS: list[Any] = [1, 8, [3, 5, 2], 4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    write_folder(root / "model", CONFIG, random_weights(CONFIG, 4))
    for number, rank in enumerate(RANKS):
        modules = [0, 1, 2, 3] if number == 3 else range(7)
        write_adapter(root / f"a{number}", CONFIG, rank, seed=number, modules=modules, strength=2.0)
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[CpuEngine]:
    engine = CpuEngine.load(folder / "model", threads=2)
    yield engine
    engine.close()


def adapter_engine(
    model: CpuEngine, folder: Path, pages: int, policy: Any = None, **options: Any
) -> tuple[Engine, AdapterStore]:
    pool = model.new_pool(pages=pages)
    store = AdapterStore(model.config, pool.data.shape[1], pages, **options)
    adapters = EngineAdapters(store, pool)
    kv = KVManager(pool, pages, adapters=adapters.pages)
    executor = NumbaExecutor(model, pool, adapters=adapters)
    engine = Engine(executor, policy or StallFree(16), kv, Clock(), config=STRICT, adapters=adapters)
    for number in range(len(RANKS)):
        store.register(f"a{number}", folder / f"a{number}")
    return engine, store


def alone(model: CpuEngine, store: AdapterStore, key: str | None, tokens: list[int], made: int) -> list[int]:
    """What the model makes of a prompt by itself, token by token, with an adapter that nobody else shares."""
    pool, known = model.new_pool(pages=80), list(tokens)
    placed = []
    if key is not None:
        store.claim(key)
        adapter, layout = store.get(key)
        placed.append(PlacedAdapter(adapter, layout, tuple(pool.take_many(layout.pages))))
        placed[0].write(pool.data)
        store.release(key)
    tables, pages = AdapterTables.of(placed, pool.data.shape[1], model.config), pool.take_many(20)
    length = 0
    for _ in range(made):
        fresh = np.array(known[length:], np.int64)
        batch = TokenBatch.contiguous([fresh], [pages], [length], pool.page_tokens)
        adapters = TokenAdapters(np.full(len(fresh), 0 if placed else -1, np.int64), tables)
        length = len(known)
        known.append(int(model.forward_tokens(batch, pool, adapters)[0].argmax()))
    return known


@pytest.mark.parametrize("name", ["chunks of 7", "chunks of 512", "prefill first", "hybrid", "fair"])
def test_each_request_gets_the_tokens_of_its_adapter_alone(name: str, model: CpuEngine, folder: Path) -> None:
    """Mixed ranks in a batch, chunked prompts, preemption, adapters that come and go: the very same tokens."""
    draw = random.Random(5)
    disturber = Disturber(POLICIES[name](), draw)
    engine, store = adapter_engine(model, folder, 26, disturber)
    beginning = [draw.randrange(200) for _ in range(32)]
    handles = []
    for number in range(10):
        prompt = beginning[: draw.choice([0, 16, 32])] + [draw.randrange(200) for _ in range(draw.randrange(1, 20))]
        adapter = draw.choice([None, *(store.resolve(f"a{one}") for one in range(len(RANKS)))])
        params = SamplingParams(max_tokens=draw.randrange(2, 14))
        handles.append(engine.submit(Request(f"r{number}", tokens_of(prompt), params, adapter=adapter)))
        for _ in range(draw.randrange(0, 4)):
            engine.step()
    engine.run_until_idle(5_000)
    assert disturber.times > 0 and engine.kv.adapters.evictions > 0
    assert engine.kv.stats().used == 0
    distinct = set()
    for handle in handles:
        (seq,) = handle.sequences
        prompt, key = seq.tokens[: seq.prompt_length], handle.request.adapter
        assert seq.finish is FinishReason.LENGTH
        assert seq.tokens == alone(model, store, key, prompt, seq.made), f"{handle.id} with adapter {key}"
        distinct.add(key)
    assert len(distinct) >= 4


def test_prefixes_are_shared_within_an_adapter_and_never_across(model: CpuEngine, folder: Path) -> None:
    engine, store = adapter_engine(model, folder, 60)
    prompt = tokens_of(range(3, 60))
    expected = {}
    for key in (None, store.resolve("a1"), store.resolve("a2")):
        for again in range(2):
            before = engine.kv.hit_tokens
            handle = engine.submit(Request(f"{key}{again}", prompt, SamplingParams(max_tokens=4), adapter=key))
            engine.run_until_idle()
            assert engine.kv.hit_tokens - before == (48 if again else 0)
            expected.setdefault(key, handle.sequences[0].tokens)
            assert handle.sequences[0].tokens == expected[key]
    assert len({tuple(tokens) for tokens in expected.values()}) == 3


def test_pages_are_conserved_whatever_comes_and_goes() -> None:
    draw = random.Random(1)
    sizes = {f"a{number}": draw.randrange(1, 6) for number in range(12)}
    kv = KVManager(PageCounts(), 40, page_tokens=4, adapters=AdapterPages(sizes.__getitem__))
    live: list[Sequence] = []
    refused = 0
    for number in range(4_000):
        action = draw.random()
        if action < 0.5:
            key = draw.choice([None, *sizes])
            prompt = [draw.randrange(3) for _ in range(draw.randrange(1, 30))]
            seq = Sequence(request(f"s{number}", prompt, adapter=key, cache=draw.random() < 0.7))
            fits = kv.can_admit(seq)
            try:
                seq.computed = kv.admit(seq)
                assert fits
                seq.view.advance(len(seq.tokens) - seq.computed)
                seq.computed = len(seq.tokens)
                live.append(seq)
            except PoolExhausted:
                refused += 1
        elif action < 0.65 and live:
            seq = draw.choice(live)
            if kv.grow(seq, 1):
                seq.tokens.append(1)
                seq.view.advance(1)
                seq.computed += 1
        elif live:
            kv.release(live.pop(draw.randrange(len(live))), keep=draw.random() < 0.8)
        if number % 5 == 0:
            kv.check()
            held = {seq.request.adapter for seq in live} - {None}
            assert held <= {known.key for known in kv.adapters.resident()}
    assert refused > 50 and kv.adapters.evictions > 50
    for seq in live:
        kv.release(seq)
    kv.clear()
    kv.check()
    assert kv.stats().free == 40 and kv.adapters.pages == 0


def test_dropping_what_nobody_holds_is_a_bug() -> None:
    books = AdapterPages(lambda key: 1)
    with pytest.raises(EngineBug, match="nobody holds"):
        books.drop("a")
    books.hold("a")
    with pytest.raises(EngineBug, match="no pages"):
        books.get("a")


def test_a_name_stands_for_what_it_stood_for_when_the_request_came(model: CpuEngine, folder: Path) -> None:
    engine, store = adapter_engine(model, folder, 80)
    prompt, old = list(range(5, 25)), store.resolve("a1")
    first = engine.submit(Request("first", tokens_of(prompt), SamplingParams(max_tokens=12), adapter=old))
    engine.step()
    store.register("a1", folder / "a2")
    new = store.resolve("a1")
    assert new == store.resolve("a2") != old
    second = engine.submit(Request("second", tokens_of(prompt), SamplingParams(max_tokens=12), adapter=new))
    store.remove("a1")
    engine.run_until_idle()
    with pytest.raises(AdapterNotFound, match="'a1'"):
        store.resolve("a1")
    with pytest.raises(AdapterNotFound):
        engine.submit(Request("late", tokens_of(prompt), SHORT, adapter=old))
    assert second.sequences[0].tokens == alone(model, store, new, prompt, 12)
    store.register("again", folder / "a1")
    assert first.sequences[0].tokens == alone(model, store, old, prompt, 12)


def test_tenants_have_names_of_their_own(model: CpuEngine, folder: Path) -> None:
    _, store = adapter_engine(model, folder, 80)
    store.register("a0", folder / "a1", tenant="x")
    store.register("mine", folder / "a2", tenant="x")
    assert store.resolve("a0", tenant="x") == store.resolve("a1") != store.resolve("a0", tenant="y")
    assert [info.name for info in store.list(tenant="x")] == ["a0", "a1", "a2", "a3", "mine"]
    assert [info.name for info in store.list(tenant="y")] == ["a0", "a1", "a2", "a3"]
    with pytest.raises(AdapterNotFound):
        store.resolve("mine", tenant="y")
    assert not store.remove("mine", tenant="y") and store.remove("mine", tenant="x")
    assert store.resolve("a2")


def test_adapters_beyond_the_memory_are_read_again(model: CpuEngine, folder: Path) -> None:
    engine, store = adapter_engine(model, folder, 60, memory_bytes=1)
    assert store.memory_used == 0
    prompt = list(range(5, 25))
    handles = [
        engine.submit(
            Request(f"r{number}", tokens_of(prompt), SamplingParams(max_tokens=5), adapter=store.resolve(f"a{number}"))
        )
        for number in range(4)
    ]
    engine.run_until_idle()
    assert store.memory_used == 0
    for handle in handles:
        assert handle.sequences[0].tokens == alone(model, store, handle.request.adapter, prompt, 5)


def test_files_that_changed_or_went_fail_their_requests_only(model: CpuEngine, folder: Path, tmp_path: Path) -> None:
    for number in range(4):
        shutil.copytree(folder / f"a{number}", tmp_path / f"a{number}")
    engine, store = adapter_engine(model, tmp_path, 60, memory_bytes=1)
    shutil.rmtree(tmp_path / "a0")
    shutil.rmtree(tmp_path / "a1")
    shutil.copytree(folder / "a2", tmp_path / "a1")
    handles = [
        engine.submit(Request(f"r{number}", tokens_of([4, 5, 6]), SHORT, adapter=store.resolve(f"a{number}")))
        for number in range(4)
    ]
    plain = engine.submit(Request("plain", tokens_of([4, 5, 6]), SamplingParams(max_tokens=3)))
    engine.run_until_idle()
    errors = [handle.sequences[0].error for handle in handles]
    assert "cannot read" in str(errors[0]) and "changed" in str(errors[1])
    assert errors[2] is None and errors[3] is None and plain.sequences[0].error is None
    shutil.copytree(folder / "a0", tmp_path / "a0")
    again = engine.submit(Request("again", tokens_of([4, 5, 6]), SHORT, adapter=store.resolve("a0")))
    engine.run_until_idle()
    assert again.sequences[0].error is None


def test_what_does_not_fit_is_refused_with_sizes(model: CpuEngine, folder: Path) -> None:
    pool = model.new_pool(pages=5)
    store = AdapterStore(model.config, pool.data.shape[1], 5)
    with pytest.raises(AdapterError, match=r"takes \d+ pages, the engine's memory has 5"):
        store.register("big", folder / "a1")
    engine, store = adapter_engine(model, folder, 20)
    pages = store.pages_of(store.resolve("a1"))
    room = 16 * (20 - pages)
    for name in ("", "a:b", "x" * 300, "a\nb"):
        with pytest.raises(AdapterError, match="no name"):
            store.register(name, folder / "a1")
    with pytest.raises(ContextLengthError, match="pages"):
        engine.submit(Request("long", tokens_of([5] * room), SamplingParams(max_tokens=1), adapter=store.resolve("a1")))
    engine.submit(
        Request("fits", tokens_of([5] * (room - 4)), SamplingParams(max_tokens=4), adapter=store.resolve("a1"))
    )
    engine.run_until_idle()


def test_an_engine_without_adapters_fails_who_asks_for_one(model: CpuEngine) -> None:
    pool = model.new_pool(pages=20)
    engine = Engine(NumbaExecutor(model, pool), StallFree(16), KVManager(pool, 20), Clock(), config=STRICT)
    asks = engine.submit(Request("asks", tokens_of([4]), SHORT, adapter="x"))
    plain = engine.submit(Request("plain", tokens_of([4]), SamplingParams(max_tokens=2)))
    engine.run_until_idle()
    assert isinstance(asks.sequences[0].error, AdapterNotFound)
    assert plain.sequences[0].finish is FinishReason.LENGTH


def test_the_engine_of_a_model_file_has_adapters(folder: Path) -> None:
    local = LocalModel.load(folder / "model", engine="compiled")
    engine = local_engine(local, memory_bytes=4 << 20)
    assert engine.adapters is not None
    info = engine.adapters.store.register("a1", folder / "a1")
    assert info.rank == 8 and info.modules[:2] == ("q_proj", "k_proj") and info.pages > 0
    outs = []
    for adapter in (None, info.key):
        handle = engine.submit(
            Request(str(adapter), tokens_of([5, 6, 7]), SamplingParams(max_tokens=8), adapter=adapter)
        )
        engine.run_until_idle()
        outs.append(handle.sequences[0].tokens)
    assert outs[0] != outs[1]


def test_installed_adapters_are_offered_to_the_model_they_are_for(
    model: CpuEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_MODELS", str(tmp_path / "models"))
    other = hf_config("llama", hidden_size=64, head_dim=16, intermediate_size=160)
    write_adapter(tmp_path / "other", other, 4)
    wider = Decoder.load(write_folder(tmp_path / "wider", other, random_weights(other))).config
    first = install_adapter("legal", folder / "a1", model.config)
    install_adapter("other", tmp_path / "other", wider)
    with pytest.raises(AdapterError, match="another model"):
        install_adapter("wrong", tmp_path / "other", model.config)
    with pytest.raises(UsageError, match="no name"):
        install_adapter("../legal", folder / "a1", model.config)
    assert [one.name for one in installed_adapters()] == ["legal", "other"]
    _, store = adapter_engine(model, folder, 80)
    register_installed(store)
    assert store.resolve("legal") == first.digest == store.resolve("a1")
    with pytest.raises(AdapterNotFound):
        store.resolve("other")
    second = install_adapter("legal", folder / "a2", model.config)
    assert not first.folder.exists() and second.folder.exists()
    remove_adapter("legal")
    with pytest.raises(AdapterNotFound):
        remove_adapter("legal")
    assert [one.name for one in installed_adapters()] == ["other"]


def test_layout_pages_are_what_the_store_says(model: CpuEngine, folder: Path) -> None:
    engine, store = adapter_engine(model, folder, 60)
    for info in store.list():
        store.claim(info.key)
        adapter, layout = store.get(info.key)
        assert layout.pages == info.pages == Layout.of(adapter, engine.kv.pool.data.shape[1]).pages
        store.release(info.key)
