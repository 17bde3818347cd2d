"""The engine on a virtual clock: the same loop, the same policy and the same memory books, only the model is a price.

    run = simulate(trace, lambda clock: Engine(SimBatchExecutor(price, clock), StallFree(512), kv, clock))
    run.report(price).metrics["tbt p99 s"]

A request's tokens are a stand-in: as many as the trace says, and equal prefixes where the trace says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from windlass.core.errors import EngineBug
from windlass.serving.batch import Batch, BatchShape, ExecutorCaps, Sampled, StepResult
from windlass.serving.cost import Priced
from windlass.serving.engine import Engine
from windlass.serving.request import Request, SamplingParams, Tokens
from windlass.sim.report import SimReport, Slo, quantile, request_metrics
from windlass.sim.trace import RequestTrace, TracedRequest

_VOCABULARY = 1 << 30
_STAND_IN = Sampled(1)


class VirtualClock:
    """A time that stands still until it is moved.

    Example:
        >>> clock = VirtualClock()
        >>> clock.advance(1.5)
        >>> clock.now()
        1.5
    """

    def __init__(self) -> None:
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def advance(self, dt: float) -> None:
        """Let `dt` seconds pass."""
        self._now += dt

    def reach(self, time: float) -> None:
        """Go to `time`, when it is not past already."""
        self._now = max(self._now, time)


class SimBatchExecutor:
    """Runs batches in virtual time.

    Args:
        price: Seconds of a step.
        clock: Moves on by them; the engine's own.
        context_length: Most tokens of a sequence.

    Attributes:
        busy_s: Seconds of steps so far.
        first_steps: When the first step with a sequence began.
    """

    def __init__(self, price: Priced, clock: VirtualClock, *, context_length: int = 1 << 30) -> None:
        self.price, self.clock = price, clock
        self.caps = ExecutorCaps("simulated", 1 << 30, context_length)
        self.busy_s = 0.0
        self.first_steps: dict[str, float] = {}

    def run(self, batch: Batch) -> StepResult:
        begun = self.clock.now()
        for item in batch.items:
            if not item.start:
                self.first_steps.setdefault(item.seq.id, begun)
        duration = self.price.seconds(BatchShape.of(batch))
        self.clock.advance(duration)
        self.busy_s += duration
        return StepResult({item.seq.id: _STAND_IN for item in batch.items if item.samples}, duration)


@dataclass(slots=True)
class RequestTimes:
    """What one request saw, in virtual seconds.

    Attributes:
        arrival, scheduled, done: When it came, when its first step began, when its last token was there; NaN: never.
        tokens: When each token was there.
    """

    arrival: float
    scheduled: float = float("nan")
    done: float = float("nan")
    tokens: list[float] = field(default_factory=list)


@dataclass(slots=True)
class ServingRun:
    """What came of a trace.

    Attributes:
        requests: In the order of the trace.
        steps: How many there were.
        busy_s, seconds: Of steps, and in all.
        rejected: Requests that were refused, by the name of the reason.
        late: Gaps longer than what `give_up` allows.
        gave_up: Whether it stopped for them.
    """

    requests: list[RequestTimes]
    steps: int = 0
    busy_s: float = 0.0
    seconds: float = 0.0
    rejected: dict[str, int] = field(default_factory=dict)
    late: int = 0
    gave_up: bool = False

    def gaps(self) -> list[float]:
        """Seconds between tokens of an answer, of all answers."""
        return [b - a for times in self.requests for a, b in zip(times.tokens, times.tokens[1:], strict=False)]

    def delays(self) -> list[float]:
        """Seconds from arrival to the first step, of those that had one."""
        found = [times.scheduled - times.arrival for times in self.requests]
        return [delay for delay in found if delay == delay]

    def report(self, price: Priced, slo: Slo | None = None) -> SimReport:
        """Percentiles of the run, marked simulated, with the error of the prices it rests on."""
        arrivals = [times.arrival for times in self.requests]
        first = [times.tokens[0] if times.tokens else float("nan") for times in self.requests]
        done = [times.done for times in self.requests]
        metrics = request_metrics(arrivals, first, done, [len(times.tokens) for times in self.requests], slo)
        for name, values in (("tbt", sorted(self.gaps())), ("scheduling delay", sorted(self.delays()))):
            if values:
                metrics |= {f"{name} p{p} s": quantile(values, p / 100) for p in (50, 99)}
        metrics["steps"] = float(self.steps)
        return SimReport(
            mode="simulated",
            seconds=self.seconds,
            metrics=metrics,
            error=price.error,
            utilisation={"device 0": self.busy_s / self.seconds if self.seconds else 0.0},
            assumptions=[f"steps are priced with a relative error of {price.error:.0%}"],
        )


def simulate(
    trace: RequestTrace,
    engine_of: Callable[[VirtualClock], Engine],
    *,
    until: float = float("inf"),
    give_up: tuple[float, int] | None = None,
) -> ServingRun:
    """Serve `trace` in virtual time; what has not ended `until` then stays without an end.

    Args:
        engine_of: Makes the engine around the clock it is given; its executor is a `SimBatchExecutor` on that clock.
        give_up: (seconds, count): stop when more than so many gaps between tokens were longer, because whoever asked
            knows enough then; `ServingRun.gave_up` says so.

    Raises:
        EngineBug: the engine makes no progress with work at hand.
    """
    clock = VirtualClock()
    engine = engine_of(clock)
    executor = engine.executor
    assert isinstance(executor, SimBatchExecutor)
    run = ServingRun([RequestTimes(arrival) for arrival in trace.arrival_s.tolist()])
    place = {f"r{index}": times for index, times in enumerate(run.requests)}
    coming, (allowed, most_late) = 0, give_up if give_up is not None else (float("inf"), 0)
    while clock.now() < until and not run.gave_up and (coming < len(trace) or engine.busy):
        if not engine.busy:
            clock.reach(run.requests[coming].arrival)
        while coming < len(trace) and run.requests[coming].arrival <= clock.now():
            _submit(engine, trace.request(coming), run)
            coming += 1
        before, steps = clock.now(), engine.metrics.steps
        for event in engine.step():
            times = place[event.request_id]
            if event.sampled is not None:
                run.late += bool(times.tokens) and event.time - times.tokens[-1] > allowed
                times.tokens.append(event.time)
            if event.finish is not None:
                times.done = event.time
        run.gave_up = run.late > most_late
        if clock.now() == before and engine.metrics.steps == steps and engine.busy:
            raise EngineBug(f"no progress at {before} s: {engine.snapshot()}")
    for request_id, began in executor.first_steps.items():
        place[request_id].scheduled = began
    run.steps, run.busy_s, run.seconds = engine.metrics.steps, executor.busy_s, clock.now()
    return run


def _submit(engine: Engine, traced: TracedRequest, run: ServingRun) -> None:
    from windlass.core.errors import WindlassError

    params = SamplingParams(max_tokens=max(1, traced.output_tokens), ignore_eos=True)
    try:
        engine.submit(Request(f"r{traced.index}", _prompt(traced), params, arrival=traced.arrival_s))
    except WindlassError as error:
        name = type(error).__name__
        run.rejected[name] = run.rejected.get(name, 0) + 1


def _prompt(traced: TracedRequest, block_tokens: int = 512) -> Tokens:
    """Token ids of a prompt nobody wrote: the same where blocks are the same, its own elsewhere."""
    length = max(1, traced.input_tokens)
    ids = np.arange(length, dtype=np.int64) + (traced.index + 1) * 104_729
    for number, block in enumerate(traced.prefix_blocks):
        part = slice(number * block_tokens, min((number + 1) * block_tokens, length))
        ids[part] = np.arange(part.start, part.stop) + (block + 1) * 15_485_863
    return (ids % _VOCABULARY).astype(np.int32)
