"""Planned batches on the engine: shared tokens are computed once, answers are those of each prompt alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.serving.conftest import STRICT, scripted_engine
from tests.serving.paged_models import tiny_llama
from windlass.models.cpu_engine import CpuEngine
from windlass.serving.batch_planner import plan_batch
from windlass.serving.batch_scheduler import BatchScheduler
from windlass.serving.engine import Engine
from windlass.serving.kv import KVManager
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import PlannedMember, Request, SamplingParams, tokens_of


def planned(prompts: Sequence[list[int]], made: int = 3, mode: Any = "auto") -> list[Request]:
    plan = plan_batch([tokens_of(prompt) for prompt in prompts], mode=mode)
    return [
        Request(f"m{member}", tokens_of(prompt), SamplingParams(max_tokens=made), cache=False,
                shared=PlannedMember(plan, member))
        for member, prompt in enumerate(prompts)
    ]  # fmt: skip


def run(engine: Engine, requests: list[Request]) -> dict[str, list[int]]:
    handles = [engine.submit(request) for request in requests]
    engine.run_until_idle(20_000)
    return {handle.id: handle.sequences[0].tokens for handle in handles}


def grouped(draw: random.Random, groups: int, members: int) -> list[list[int]]:
    beginnings = [[draw.randrange(200) for _ in range(draw.randrange(20, 45))] for _ in range(groups)]
    prompts = [[9, 9, 9, *beginnings[n % groups], draw.randrange(200), draw.randrange(200)] for n in range(members)]
    draw.shuffle(prompts)
    return prompts


@given(
    prompts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=10),
    budget=st.integers(1, 20), mode=st.sampled_from(["multilevel", "flat", "exact"]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_with_room_for_all_only_what_the_plan_says_is_computed(
    prompts: list[list[int]], budget: int, mode: str
) -> None:
    engine = scripted_engine(BatchScheduler(budget), pages=400)
    requests = planned(prompts, made=1, mode=mode)
    run(engine, requests)
    assert requests[0].shared is not None
    plan = requests[0].shared.plan
    # The last token of a prompt is computed even when another prompt had it: without it there are no logits.
    again = len(prompts) - len({tuple(prompt) for prompt in prompts})
    ended = {tuple(prompt) for prompt in prompts}
    inside = sum(
        any(len(other) > len(prompt) and other[: len(prompt)] == prompt for other in map(list, ended))
        for prompt in map(list, ended)
    )
    computed = engine.metrics.computed_tokens
    assert plan.total_tokens - plan.saved_tokens <= computed <= plan.total_tokens - plan.saved_tokens + again + inside
    assert engine.kv.stats().used == 0


@given(seed=st.integers(0, 10_000), pages=st.integers(20, 60), budget=st.integers(4, 40))
@settings(max_examples=40, deadline=None)
def test_in_any_memory_everybody_is_answered_once_and_nothing_is_lost(seed: int, pages: int, budget: int) -> None:
    draw = random.Random(seed)
    engine = scripted_engine(BatchScheduler(budget), pages=pages)
    requests = planned(grouped(draw, 4, 14), made=draw.randrange(1, 12))
    handles = [engine.submit(request) for request in requests]
    for number in range(6):
        for _ in range(draw.randrange(0, 9)):
            engine.step()
        if draw.random() < 0.4:
            engine.cancel(f"m{draw.randrange(len(requests))}")
        engine.submit(Request(f"o{number}", tokens_of([1] * draw.randrange(1, 30)), SamplingParams(max_tokens=4)))
    engine.run_until_idle(20_000)
    assert all(handle.done for handle in handles)
    assert engine.kv.stats().used == 0
    assert engine.scheduler.depth == (0, 0)


def test_others_go_before_a_batch() -> None:
    engine = scripted_engine(BatchScheduler(8), pages=40)
    batch = [engine.submit(request) for request in planned([[n] * 30 for n in range(6)], made=8)]
    for _ in range(6):
        engine.step()
    other = engine.submit(Request("other", tokens_of([77] * 100), SamplingParams(max_tokens=20)))
    while not other.done:
        engine.step()
    assert sum(handle.done for handle in batch) < len(batch)
    engine.run_until_idle()
    assert all(handle.done for handle in batch)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuEngine]:
    path = tiny_llama(tmp_path_factory.mktemp("batch"), 6, hidden_size=64, head_dim=16)
    engine = CpuEngine.load(path, threads=2)
    yield engine
    engine.close()


@pytest.mark.parametrize(("pages", "mode"), [(14, "multilevel"), (60, "multilevel"), (60, "flat")])
def test_answers_are_those_of_each_prompt_alone(model: CpuEngine, pages: int, mode: str) -> None:
    class Clock:
        def now(self) -> float:
            return 0.0

    pool = model.new_pool(pages=pages)
    engine = Engine(NumbaExecutor(model, pool), BatchScheduler(13), KVManager(pool, pages), Clock(), config=STRICT)
    prompts = grouped(random.Random(3), 3, 10)
    made = run(engine, planned(prompts, made=6, mode=mode))
    for member, prompt in enumerate(prompts):
        cache = model.cache()
        logits = model.prefill(np.array(prompt), cache)
        for token in made[f"m{member}"][len(prompt) :]:
            assert token == int(np.argmax(logits))
            logits = model.step(token, cache)
    if pages == 60:
        assert engine.metrics.computed_tokens < 0.6 * sum(map(len, prompts)) + 10 * 5
