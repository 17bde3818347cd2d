"""Clustering by adapter and early abort, on schedules without a model."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from tests.serving.conftest import STRICT, request, scripted_engine
from windlass.core.errors import DeadlineError, UsageError
from windlass.serving.adapter_pages import AdapterPages
from windlass.serving.adapter_policies import AdapterClustered, EarlyAbort
from windlass.serving.engine import Engine
from windlass.serving.executor import ScriptedExecutor
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.request import FinishReason, Sequence
from windlass.serving.scheduler import FairShare, StallFree


def running_adapters(engine: Engine, inner: Any) -> list[set[str | None]]:
    """Step to the end; the adapters that ran in each step."""
    seen = []
    while engine.busy:
        engine.step()
        seen.append({seq.request.adapter for seq in inner.running.values()})
    return seen


@pytest.mark.parametrize("fair", [False, True])
def test_one_adapter_at_a_time_never_mixes_and_serves_everybody(fair: bool) -> None:
    inner = StallFree(64)
    policy = AdapterClustered(FairShare(inner) if fair else inner, 1, strict=True)
    engine = scripted_engine(policy, pages=200)
    draw = random.Random(3)
    handles = [
        engine.submit(request(f"r{n}", 6, 5, adapter=draw.choice("abc"), tenant=draw.choice("xy"))) for n in range(30)
    ]
    seen = running_adapters(engine, inner)
    assert all(len(adapters) <= 1 for adapters in seen)
    assert all(handle.sequences[0].finish is FinishReason.LENGTH for handle in handles)
    changes = sum(a != b for a, b in itertools.pairwise(seen) if a and b)
    assert changes <= 4


def test_clustering_loads_fewer_adapters_and_keeps_the_batch_full() -> None:
    def loads(policy: Any) -> tuple[int, int]:
        books = AdapterPages(lambda key: 4)
        kv = KVManager(PageCounts(), 80, page_tokens=4, adapters=books)
        executor = ScriptedExecutor()
        engine = Engine(executor, policy, kv, executor, config=STRICT)
        draw = random.Random(1)
        for number in range(120):
            engine.submit(request(f"r{number}", 6, 6, adapter=f"a{draw.randrange(30)}"))
        engine.run_until_idle()
        return books.loads, engine.metrics.steps

    plain, steps = loads(StallFree(64))
    clustered, clustered_steps = loads(AdapterClustered(StallFree(64), 6))
    assert clustered < 0.8 * plain and clustered_steps <= 1.1 * steps


def test_the_first_in_line_is_passed_a_bounded_number_of_times() -> None:
    inner = StallFree(64, max_num_seqs=2)
    engine = scripted_engine(AdapterClustered(inner, 1, strict=True, patience=5), pages=200)
    engine.submit(request("a0", 4, 3, adapter="a"))
    engine.step()
    other = engine.submit(request("b", 4, 3, adapter="b"))
    done_before = 0
    for number in range(1, 40):
        engine.submit(request(f"a{number}", 4, 3, adapter="a"))
    finished: list[str] = []
    while not other.done:
        finished += [event.request_id for event in engine.step() if event.finish]
    done_before = finished.index("b")
    assert 5 <= done_before <= 9
    engine.run_until_idle()


def test_who_cannot_be_served_in_time_is_given_up() -> None:
    policy = EarlyAbort(StallFree(16, max_num_seqs=2), first_token_slo_s=6.0, estimate_s=0.5)
    engine = scripted_engine(policy, pages=100)
    handles = [engine.submit(request(f"r{number}", 8, 4)) for number in range(30)]
    engine.run_until_idle()
    errors = [handle.sequences[0].error for handle in handles]
    served = [error is None for error in errors]
    assert served[0] and 2 <= sum(served) < 12
    assert all(isinstance(error, DeadlineError) for error in errors if error is not None)
    assert engine.kv.stats().used == 0 and policy.depth == (0, 0)


def test_under_overload_the_newest_go_first_and_more_are_served_in_time() -> None:
    def in_time(policy: Any) -> float:
        engine = scripted_engine(policy, pages=400, seconds=lambda batch: 0.1)
        rng = np.random.default_rng(0)
        arrivals = np.cumsum(rng.gamma(1 / 16, 16 / 6.0, 200))
        clock: ScriptedExecutor = engine.executor
        good = 0
        pending = list(enumerate(arrivals))
        handles = {}
        while pending or engine.busy:
            while pending and pending[0][1] <= clock.now():
                number, at = pending.pop(0)
                handles[f"r{number}"] = at
                engine.submit(request(f"r{number}", 8, 12, arrival=at))
            if not engine.busy:
                clock._now = float(pending[0][1])
                continue
            for event in engine.step():
                if event.sampled is not None and event.request_id in handles:
                    good += event.time - handles.pop(event.request_id) <= 6.0
        return good / 200

    plain = in_time(StallFree(16, max_num_seqs=2))
    aborting = in_time(EarlyAbort(StallFree(16, max_num_seqs=2)))
    assert aborting >= 1.3 * plain


def test_senseless_settings_are_refused() -> None:
    for arguments in ({"max_adapters": 0}, {"max_adapters": 1, "patience": 0}):
        with pytest.raises(UsageError):
            AdapterClustered(StallFree(16), **arguments)
    for times in ({"first_token_slo_s": 0.0}, {"estimate_s": 7.0}, {"window_s": 0.0}):
        with pytest.raises(UsageError):
            EarlyAbort(StallFree(16), **times)


def test_an_early_abort_forgets_who_was_cancelled() -> None:
    policy = EarlyAbort(StallFree(16))
    seq = Sequence(request("r", 4))
    policy.add(seq, 0.0)
    policy.cancel(seq)
    seq.state = FinishReason.CANCELLED  # type: ignore[assignment]
    assert policy.next_batch(100.0, KVManager(PageCounts(), 10)).dropped == []
