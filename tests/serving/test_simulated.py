"""The engine on a virtual clock."""

import numpy as np
import pytest

from windlass.serving.batch import BatchShape
from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.schedule_trace import ReplayExecutor, ScheduleTrace
from windlass.serving.scheduler import DecodeFirst, HybridFull, PrefillFirst, StallFree
from windlass.serving.simulated import SimBatchExecutor, VirtualClock, simulate
from windlass.sim.report import Slo
from windlass.sim.trace import RequestTrace


class Price:
    """A step costs a millisecond and as much a token."""

    error = 0.1

    def seconds(self, shape: BatchShape) -> float:
        return 1e-3 * (1 + shape.tokens)


PRICE = Price()
POLICIES = [lambda: StallFree(64), PrefillFirst, HybridFull, DecodeFirst]


def engine_of(policy, *, pages=10_000, trace=None, share=False, **bounds):
    def make(clock):
        kv = KVManager(PageCounts(), pages, share_prefixes=share)
        config = EngineConfig(strict=True, check_every=7, **bounds)
        return Engine(SimBatchExecutor(PRICE, clock), policy(), kv, clock, config=config, trace=trace)

    return make


def random_trace(seed=0, count=60, rate=20.0):
    return RequestTrace.poisson(rate, count, ([10, 100, 400], [1, 5, 30]), seed)


@pytest.mark.parametrize("policy", POLICIES)
def test_everybody_gets_as_many_tokens_as_the_trace_says(policy):
    trace = random_trace()
    run = simulate(trace, engine_of(policy))
    assert [len(times.tokens) for times in run.requests] == trace.output_tokens.tolist()
    for times, arrival in zip(run.requests, trace.arrival_s, strict=True):
        assert times.arrival == arrival <= times.scheduled < times.tokens[0]
        assert times.tokens == sorted(times.tokens) and times.done == times.tokens[-1]
    assert run.busy_s <= run.seconds and not run.rejected


def test_one_request_alone_takes_what_its_steps_cost():
    trace = RequestTrace(np.array([5.0]), np.array([100]), np.array([3]))
    run = simulate(trace, engine_of(lambda: StallFree(64)))
    times = run.requests[0]
    first = 5.0 + PRICE.seconds(BatchShape(64, 0, 0, 0)) + PRICE.seconds(BatchShape(36, 1, 0, 0))
    each = PRICE.seconds(BatchShape(1, 1, 0, 0))
    assert times.tokens == pytest.approx([first, first + each, first + 2 * each])
    assert run.steps == 4


def test_the_same_trace_makes_the_same_run():
    runs = [simulate(random_trace(3), engine_of(lambda: StallFree(64))) for _ in range(2)]
    assert [times.tokens for times in runs[0].requests] == [times.tokens for times in runs[1].requests]


def test_chunks_keep_the_gaps_short_that_whole_prompts_make_long():
    trace = RequestTrace(np.array([0.0, 0.05]), np.array([10, 2000]), np.array([100, 5]))
    worst = {
        name: max(simulate(trace, engine_of(policy)).gaps())
        for name, policy in (("chunks", lambda: StallFree(64)), ("whole", PrefillFirst))
    }
    assert worst["whole"] > 2.0 > 0.1 > worst["chunks"]


def test_little_memory_makes_it_slower_and_loses_nobody():
    trace = random_trace(rate=200.0)
    wide, narrow = (simulate(trace, engine_of(lambda: StallFree(64), pages=pages)) for pages in (10_000, 40))
    assert [len(times.tokens) for times in narrow.requests] == trace.output_tokens.tolist()
    assert narrow.seconds >= wide.seconds


def test_what_the_engine_refuses_is_counted():
    crowd = RequestTrace(np.zeros(50), np.full(50, 10), np.full(50, 5))
    run = simulate(crowd, engine_of(lambda: StallFree(64), max_queue=20))
    assert run.rejected == {"QueueFull": 30}
    assert sum(bool(times.tokens) for times in run.requests) == 20
    assert run.report(PRICE).metrics["requests"] == 20


def test_equal_prefixes_are_computed_once():
    blocks = [np.array([1, 2]), np.array([1, 2]), np.array([1, 3])]
    columns = (np.array([0.0, 10.0, 20.0]), np.full(3, 1024), np.full(3, 2))
    shared = RequestTrace(*columns, prefix_blocks=blocks)
    run = simulate(shared, engine_of(lambda: StallFree(2048), share=True))
    waits = [times.tokens[0] - times.arrival for times in run.requests]
    assert waits[1] < 0.05 * waits[0] < waits[2] < 0.6 * waits[0]


def test_a_recorded_simulation_replays_batch_by_batch():
    recorded = ScheduleTrace()
    simulate(random_trace(5), engine_of(lambda: StallFree(64), pages=80, trace=recorded))
    again = ScheduleTrace()
    executor = ReplayExecutor(recorded)
    kv = KVManager(PageCounts(), 80, share_prefixes=False)
    engine = Engine(executor, StallFree(64), kv, executor, trace=again, text=executor.text)
    recorded.replay(engine)
    assert [step.items for step in again.steps] == [step.items for step in recorded.steps]
    assert [step.preempted for step in again.steps] == [step.preempted for step in recorded.steps]


def test_the_report_is_marked_and_carries_the_error():
    trace = random_trace()
    run = simulate(trace, engine_of(lambda: StallFree(64)))
    report = run.report(PRICE, Slo(ttft=1e9))
    assert (report.mode, report.error, report.seconds) == ("simulated", 0.1, run.seconds)
    assert report.metrics["goodput requests/s"] == pytest.approx(report.metrics["requests/s"])
    gaps = np.concatenate([np.diff(times.tokens) for times in run.requests])
    assert report.metrics["tbt p99 s"] == pytest.approx(np.quantile(gaps, 0.99))


def test_a_virtual_clock_only_goes_forward():
    clock = VirtualClock()
    clock.advance(2.0)
    clock.reach(1.0)
    assert clock.now() == 2.0


def test_a_run_gives_up_when_too_many_gaps_are_long():
    trace = random_trace(rate=100.0)
    whole = simulate(trace, engine_of(PrefillFirst))
    long = sum(gap > 0.05 for gap in whole.gaps())
    assert long > 5
    assert not simulate(trace, engine_of(PrefillFirst), give_up=(0.05, long)).gave_up
    stopped = simulate(trace, engine_of(PrefillFirst), give_up=(0.05, 3))
    assert stopped.gave_up and stopped.late > 3 and stopped.seconds < whole.seconds
