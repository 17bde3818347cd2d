"""The exactness contract: whatever shares the batch, however prompts are cut, whoever is preempted, whatever is cached.

Once in float32 against full forward passes of each request alone, once bit for bit on the compiled engine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.serving.conftest import STRICT
from tests.serving.paged_models import FloatModel, FloatPool, tiny_llama
from windlass.models.cpu_engine import CpuEngine
from windlass.models.decoder import Decoder
from windlass.serving.batch import Batch
from windlass.serving.engine import Engine
from windlass.serving.kv import KVManager
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import Request, SamplingParams, tokens_of
from windlass.serving.scheduler import DecodeFirst, FairShare, HybridFull, PrefillFirst, QueuePolicy, StallFree

POLICIES: dict[str, Any] = {
    "chunks of 1": lambda: StallFree(1),
    "chunks of 7": lambda: StallFree(7),
    "chunks of 16": lambda: StallFree(16),
    "chunks of 512": lambda: StallFree(512),
    "short ones pass": lambda: StallFree(16, max_partial_prefills=3, short_prompt=12),
    "prefill first": lambda: PrefillFirst(max_batched_tokens=64),
    "hybrid": HybridFull,
    "decode first": DecodeFirst,
    "fair": lambda: FairShare(StallFree(16)),
}


class Clock:
    """Counts how often it is asked."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        self.time += 1.0
        return self.time


class Disturber:
    """A policy that now and then takes the pages of a running sequence away."""

    def __init__(self, policy: Any, draw: random.Random) -> None:
        self.policy, self.inner, self.draw = policy, getattr(policy, "inner", policy), draw
        self.add, self.cancel, self.on_step = policy.add, policy.cancel, policy.on_step
        self.times = 0

    @property
    def depth(self) -> tuple[int, int]:
        depth: tuple[int, int] = self.policy.depth
        return depth

    def next_batch(self, now: float, kv: KVManager) -> Batch:
        inner: QueuePolicy = self.inner
        if inner.running and self.draw.random() < 0.1:
            victim = self.draw.choice(list(inner.running.values()))
            if victim.preemptions < 2:
                inner._preempt(victim, Batch(), kv)
                self.times += 1
                if self.draw.random() < 0.5:
                    kv.clear()
        batch: Batch = self.policy.next_batch(now, kv)
        return batch


def disturbed_run(model: Any, pool: Any, pages: int, policy: Any, seed: int, vocabulary: int) -> list[Request | Any]:
    """Random requests through an engine with a small memory; their sequences, all finished."""
    draw = random.Random(seed)
    disturber = Disturber(policy, draw)
    engine = Engine(NumbaExecutor(model, pool), disturber, KVManager(pool, pages), Clock(), config=STRICT)
    beginnings = [[draw.randrange(vocabulary) for _ in range(40)] for _ in range(2)]
    sequences, count = [], 8
    for number in range(count):
        prompt = draw.choice(beginnings)[: draw.randrange(0, 41)]
        prompt += [draw.randrange(vocabulary) for _ in range(draw.randrange(1, 30))]
        params = SamplingParams(max_tokens=draw.randrange(1, 24), n=draw.choice([1, 1, 2]))
        handle = engine.submit(
            Request(f"r{number}", tokens_of(prompt), params, tenant=draw.choice("xy"), cache=draw.random() < 0.8)
        )
        sequences += handle.sequences
        for _ in range(draw.randrange(0, 6)):
            engine.step()
        if draw.random() < 0.1:
            engine.cancel(f"r{draw.randrange(number + 1)}")
    engine.run_until_idle(5_000)
    assert disturber.times > 0
    assert engine.kv.stats().used == 0
    return sequences


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return Decoder.load(tiny_llama(tmp_path_factory.mktemp("tiny"), 3))


@pytest.mark.parametrize("name", POLICIES)
def test_greedy_tokens_are_those_of_a_full_forward_pass(name: str, decoder: Decoder) -> None:
    steps, exempt = 0, 0
    for seed in range(2):
        pages = 12 if seed else 40
        sequences = disturbed_run(
            FloatModel(decoder), FloatPool(decoder, pages), pages, POLICIES[name](), seed, decoder.config.vocab_size
        )
        for seq in sequences:
            if seq.made == 0:
                continue
            logits = decoder.logits(np.array(seq.tokens[:-1]))[seq.prompt_length - 1 :]
            second, first = np.partition(logits, -2, axis=1)[:, -2:].T
            close = first - second < 1e-3
            wrong = logits.argmax(axis=1) != seq.tokens[seq.prompt_length :]
            steps, exempt = steps + len(logits), exempt + int((wrong & close).sum())
            assert not (wrong & ~close).any()
    assert steps > 100 and exempt < 0.005 * steps


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuEngine]:
    path = tiny_llama(tmp_path_factory.mktemp("compiled"), 4, hidden_size=64, head_dim=16)
    engine = CpuEngine.load(path, threads=2)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", POLICIES)
def test_the_compiled_engine_makes_the_very_same_tokens(name: str, compiled: CpuEngine) -> None:
    pages = 12
    pool = compiled.new_pool(pages=pages)
    sequences = disturbed_run(compiled, pool, pages, POLICIES[name](), 7, compiled.config.vocab_size)
    pool.check_integrity()
    for seq in sequences:
        cache = compiled.cache()
        logits = compiled.prefill(np.array(seq.tokens[: seq.prompt_length]), cache)
        for token in seq.tokens[seq.prompt_length :]:
            assert token == int(np.argmax(logits))
            logits = compiled.step(token, cache)


def test_sampled_tokens_do_not_depend_on_the_batch_either(compiled: CpuEngine) -> None:
    def run(names: list[str], policy: Any) -> dict[str, list[int]]:
        pool = compiled.new_pool(pages=60)
        engine = Engine(NumbaExecutor(compiled, pool), policy, KVManager(pool, 60), Clock(), config=STRICT)
        handles = []
        for name in names:
            prompt = [number % 200 for number in range(ord(name), ord(name) + 30)]
            params = SamplingParams(
                max_tokens=20, temperature=1.3, top_p=0.9, seed=ord(name), frequency_penalty=0.5, logprobs=2
            )
            handles.append(engine.submit(Request(name, tokens_of(prompt), params)))
        engine.run_until_idle(5_000)
        return {handle.id: handle.sequences[0].tokens for handle in handles}

    together = run(list("abcdef"), StallFree(13))
    for name in "adf":
        assert run([name], PrefillFirst())[name] == together[name]
