"""The check of the simulator against this machine: requests served for real, and the same ones on the virtual clock.

Steps are measured on an idle engine and fitted (`serving.step_time`); then a trace that had no part in the fit arrives
in real time, and its steps, first tokens and totals are compared with what the same policy does in `serving.simulated`
at the fitted prices.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from windlass.bench.harness import BenchContext
from windlass.bench.report import Metric, metric
from windlass.bench.serving.real_engine import fresh_engine, request
from windlass.core.progress import check_cancelled
from windlass.models.cpu_engine import CpuEngine
from windlass.serving.batch import Batch, BatchExecutor, BatchShape, StepResult
from windlass.serving.cost import StepFit
from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.scheduler import StallFree
from windlass.serving.simulated import RequestTimes, SimBatchExecutor, VirtualClock, simulate
from windlass.sim.report import quantile
from windlass.sim.trace import RequestTrace

BUDGET = 64
_LENGTHS = ([40, 90, 160, 300, 420], [8, 16, 24, 32, 40])
_RATE = 0.6  # some 40 % busy: in a fuller queue a small error of the steps becomes a large one of the waiting


def replay_metrics(context: BenchContext, decoder: CpuEngine, price: StepFit) -> list[Metric]:
    """How far predicted steps, first tokens, tokens and totals lie from measured ones."""
    count = 8 if context.quick else 24
    trace = RequestTrace.poisson(_RATE, count, _LENGTHS, context.seed)
    steps, served, seconds = _serve_for_real(context, decoder, trace)
    run = simulate(trace, lambda clock: _virtual_engine(clock, price))
    predicted = np.array([price.seconds(shape) for shape, _ in steps])
    measured = np.array([duration for _, duration in steps])
    errors = np.abs(predicted / measured - 1.0)
    note = f"{len(steps)} steps of {count} requests that had no part in the fit (simulated against measured)"
    found = [
        metric("step time, median error", "", float(np.median(errors)), better="lower", most=0.15, note=note),
        metric(
            "all steps together, error",
            "",
            abs(float(predicted.sum() / measured.sum()) - 1),
            better="lower",
            note=f"{predicted.sum():.2f} s predicted, {measured.sum():.2f} s measured, {seconds:.1f} s with the pauses",
        ),
        metric("whole run, error", "", abs(run.seconds / seconds - 1), better="lower", most=0.05, note=note),
    ]
    for name, pick in (("time to first token", _first), ("time a token", _each)):
        for q in (0.5, 0.99):
            ours, real = (quantile(sorted(map(pick, each)), q) for each in (run.requests, served))
            told = f"{ours:.3f} s simulated, {real:.3f} s measured"
            error = abs(ours / real - 1)
            found.append(metric(f"{name}, p{q * 100:g}, error", "", error, better="lower", most=0.15, note=told))
    return found


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
