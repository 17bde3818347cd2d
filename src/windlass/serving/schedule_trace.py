"""A recorded run, and its replay: the same policy on the same durations must make the same batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from windlass.core.errors import UsageError
from windlass.serving.batch import Batch, ExecutorCaps, Sampled, StepResult
from windlass.serving.request import Request, SamplingParams, Sequence, tokens_of

if TYPE_CHECKING:
    from windlass.serving.engine import Engine

FORMAT = 1


@dataclass(frozen=True, slots=True)
class TracedItem:
    """One item of a step."""

    seq: str
    kind: str
    start: int
    n_tokens: int


@dataclass(frozen=True, slots=True)
class TracedStep:
    """One step: what was in it, who lost its pages, how long it took, which tokens came out."""

    items: tuple[TracedItem, ...]
    preempted: tuple[str, ...]
    duration_s: float
    tokens: dict[str, int]


@dataclass(slots=True)
class TracedArrival:
    """A request, and before which step it was added or cancelled."""

    step: int
    request: str
    tenant: str
    prompt: list[int]
    max_tokens: int
    n: int
    cache: bool
    cancelled: int | None = None


@dataclass(slots=True)
class ScheduleTrace:
    """Everything a policy saw and decided in one run."""

    steps: list[TracedStep] = field(default_factory=list)
    arrivals: list[TracedArrival] = field(default_factory=list)

    def note(self, batch: Batch, result: StepResult) -> None:
        """Called by the engine after each step."""
        items = tuple(TracedItem(item.seq.id, item.kind, item.start, item.n_tokens) for item in batch.items)
        preempted = tuple(seq.id for seq in batch.preempted)
        tokens = {seq_id: sampled.token for seq_id, sampled in result.tokens.items()}
        self.steps.append(TracedStep(items, preempted, result.duration_s, tokens))

    def note_arrival(self, request: Request) -> None:
        """Called by the engine when a request reaches the policy."""
        params = request.params
        self.arrivals.append(
            TracedArrival(
                len(self.steps), request.id, request.tenant, request.prompt.tolist(), params.max_tokens, params.n,
                request.cache,
            )
        )  # fmt: skip

    def note_cancel(self, request_id: str) -> None:
        """Called by the engine when a request is taken away from the policy."""
        for arrival in reversed(self.arrivals):
            if arrival.request == request_id:
                arrival.cancelled = len(self.steps)
                return

    def replay(self, engine: Engine) -> None:
        """Feed `engine` what arrived, before the steps it arrived before.

        The engine runs on a `ReplayExecutor(self)`, which is also its clock, and takes `replayer.text` for its text.
        """
        for step in range(len(self.steps) + 1):
            for arrival in self.arrivals:
                if arrival.step == step:
                    params = SamplingParams(max_tokens=arrival.max_tokens, n=arrival.n)
                    prompt = tokens_of(arrival.prompt)
                    engine.submit(Request(arrival.request, prompt, params, tenant=arrival.tenant, cache=arrival.cache))
            for arrival in self.arrivals:
                if arrival.cancelled == step:
                    engine.cancel(arrival.request)
            engine.step()

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)})

    @staticmethod
    def from_json(text: str) -> ScheduleTrace:
        """Read what `to_json` wrote.

        Raises:
            UsageError: it is of another format.
        """
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise UsageError(f"a schedule trace of format {data.get('format')!r}, this version reads {FORMAT}")
        steps = [
            TracedStep(
                tuple(TracedItem(**item) for item in step["items"]), tuple(step["preempted"]), step["duration_s"],
                step["tokens"],
            )
            for step in data["steps"]
        ]  # fmt: skip
        return ScheduleTrace(steps, [TracedArrival(**arrival) for arrival in data["arrivals"]])


class ReplayExecutor:
    """Returns the tokens and durations of a recorded run, whatever batch it is given.

    Attributes:
        now: The virtual time: the sum of the durations so far.
    """

    caps = ExecutorCaps("simulated", 1 << 30, 1 << 30)

    def __init__(self, trace: ScheduleTrace) -> None:
        self._tokens: dict[str, list[int]] = {}
        for step in trace.steps:
            for seq_id, token in step.tokens.items():
                self._tokens.setdefault(seq_id, []).append(token)
        self._durations: Iterator[float] = iter([step.duration_s for step in trace.steps])
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def text(self, seq: Sequence) -> _RecordedEnd:
        """Ends an answer where it ended when it was recorded, for whatever reason."""
        return _RecordedEnd(len(self._tokens.get(seq.id, ())))

    def run(self, batch: Batch) -> StepResult:
        duration = next(self._durations, 0.0)
        self._now += duration
        tokens = {}
        for item in batch.items:
            if item.samples:
                tokens[item.seq.id] = Sampled(self._tokens[item.seq.id][item.seq.made])
        return StepResult(tokens, duration)


class _RecordedEnd:
    """An answer without text that stops after `length` tokens."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.stopped = False

    def add(self, token: int) -> str:
        self._left -= 1
        self.stopped = self._left <= 0
        return ""

    def finish(self) -> str:
        return ""
