"""The check of the simulator against this machine: requests served for real, and the same ones on the virtual clock.

Steps are measured on an idle engine right before and right after the run, since a machine is not as fast at every hour,
and fitted (`serving.step_time`); so is what the engine itself takes between two steps. A trace that had no part in the
fit arrives in real time, and its steps, first tokens and totals are compared with what the same policy does in
`serving.simulated` at the fitted prices.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from windlass.bench.harness import BenchContext
from windlass.bench.report import Metric, metric
from windlass.bench.serving.real_engine import fresh_engine, request
from windlass.core.progress import check_cancelled
from windlass.models.cpu_engine import CpuEngine
from windlass.serving.batch import Batch, BatchExecutor, BatchShape, StepResult
from windlass.serving.cost import MeasuredStep, StepFit, fit_steps
from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.scheduler import StallFree
from windlass.serving.simulated import RequestTimes, SimBatchExecutor, VirtualClock, simulate
from windlass.serving.step_time import measured_steps
from windlass.sim.report import quantile
from windlass.sim.trace import RequestTrace

BUDGET = 64
_LENGTHS = ([40, 90, 160, 300, 420], [8, 16, 24, 32, 40])
_RATES = (0.6, 1.0)  # some 40 and 70 % busy: in a fuller queue a small error of steps is a large one of the waiting


def replay_metrics(context: BenchContext, decoder: CpuEngine) -> list[Metric]:
    """How far predicted steps, first tokens, tokens and totals lie from measured ones, at two loads."""
    return [found for rate in _RATES for found in _at_rate(context, decoder, rate)]


def _at_rate(context: BenchContext, decoder: CpuEngine, rate: float) -> list[Metric]:
    count = 8 if context.quick else 24
    trace = RequestTrace.poisson(rate, count, _LENGTHS, context.seed)
    before = _measured(decoder)
    steps, served, seconds = _serve_for_real(context, decoder, trace)
    price = fit_steps([*before, *_measured(decoder)])
    between = _between_steps(decoder)
    run = simulate(trace, lambda clock: _virtual_engine(clock, replace(price, overhead=price.overhead + between)))
    predicted = np.array([price.seconds(shape) for shape, _ in steps])
    measured = np.array([duration for _, duration in steps])
    errors = np.abs(predicted / measured - 1.0)
    note = f"{len(steps)} steps of {count} requests that had no part in the fit (simulated against measured)"
    load = f"{rate:g} requests/s"
    found = [
        metric(f"step time, median error, {load}", "", float(np.median(errors)), better="lower", most=0.15, note=note),
        metric(
            f"all steps together, error, {load}",
            "",
            abs(float(predicted.sum() / measured.sum()) - 1),
            better="lower",
            note=f"{predicted.sum():.2f} s predicted, {measured.sum():.2f} s measured, {seconds:.1f} s with the pauses",
        ),
        metric(f"whole run, error, {load}", "", abs(run.seconds / seconds - 1), better="lower", most=0.05, note=note),
    ]
    for name, pick in (("time to first token", _first), ("time a token", _each)):
        for q in (0.5, 0.99):
            ours, real = (quantile(sorted(map(pick, each)), q) for each in (run.requests, served))
            told = f"{ours:.3f} s simulated, {real:.3f} s measured"
            error = abs(ours / real - 1)
            titled = f"{name}, p{q * 100:g}, error, {load}"
            found.append(metric(titled, "", error, better="lower", most=0.15, note=told))
    return found


def _measured(decoder: CpuEngine) -> list[MeasuredStep]:
    engine = fresh_engine(decoder, StallFree(BUDGET))
    return measured_steps(engine.executor, engine.kv)


def _between_steps(decoder: CpuEngine) -> float:
    """Seconds that the engine takes for itself in each step of four generations."""
    engine = fresh_engine(decoder, StallFree(BUDGET))
    watched = engine.executor = _Watched(engine.executor)
    for number in range(4):
        engine.submit(request(f"o{number}", 16, 16))
    begun = time.perf_counter()
    engine.run_until_idle()
    seconds = time.perf_counter() - begun
    return max(0.0, seconds - sum(duration for _, duration in watched.steps)) / len(watched.steps)


class _Watched:
    """An executor that notes what each step was and how long it took."""

    def __init__(self, inner: BatchExecutor) -> None:
        self.inner, self.caps = inner, inner.caps
        self.steps: list[tuple[BatchShape, float]] = []

    def run(self, batch: Batch) -> StepResult:
        shape = BatchShape.of(batch)
        result = self.inner.run(batch)
        self.steps.append((shape, result.duration_s))
        return result


def _serve_for_real(
    context: BenchContext, decoder: CpuEngine, trace: RequestTrace
) -> tuple[list[tuple[BatchShape, float]], list[RequestTimes], float]:
    engine = fresh_engine(decoder, StallFree(BUDGET))
    watched = _Watched(engine.executor)
    engine.executor = watched
    served = [RequestTimes(arrival) for arrival in trace.arrival_s.tolist()]
    place = {f"r{index}": times for index, times in enumerate(served)}
    coming, begun = 0, time.monotonic()
    while coming < len(trace) or engine.busy:
        check_cancelled(context.progress)
        now = time.monotonic() - begun
        while coming < len(trace) and served[coming].arrival <= now:
            traced = trace.request(coming)
            engine.submit(request(f"r{coming}", traced.input_tokens, traced.output_tokens, context.seed))
            coming += 1
        if not engine.busy:
            time.sleep(min(0.01, max(0.0, served[coming].arrival - now)))
            continue
        for event in engine.step():
            if event.sampled is not None:
                place[event.request_id].tokens.append(event.time - begun)
    return watched.steps, served, time.monotonic() - begun


def _virtual_engine(clock: VirtualClock, price: StepFit) -> Engine:
    kv = KVManager(PageCounts(), 1200, share_prefixes=False)
    config = EngineConfig(max_queue=4096, max_queue_per_tenant=4096)
    return Engine(SimBatchExecutor(price, clock), StallFree(BUDGET), kv, clock, config=config)


def _first(times: RequestTimes) -> float:
    return times.tokens[0] - times.arrival


def _each(times: RequestTimes) -> float:
    tokens: Sequence[float] = times.tokens
    return (tokens[-1] - tokens[0]) / (len(tokens) - 1)
