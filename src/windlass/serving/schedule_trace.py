"""A recorded run, and its replay: the same policy on the same durations must make the same batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from windlass.core.errors import ModelError, UsageError
from windlass.serving.batch import Batch, ExecutorCaps, Sampled, StepResult
from windlass.serving.request import Request, SamplingParams, Sequence, State, tokens_of

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
    """One step: what was in it, who lost its pages, whose end it was, how long it took, which tokens came out."""

    items: tuple[TracedItem, ...]
    preempted: tuple[str, ...]
    ended: tuple[str, ...]
    duration_s: float
    tokens: dict[str, int]


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """A request as the policy saw it."""

    id: str
    tenant: str
    prompt: list[int]
    max_tokens: int
    n: int
    cache: bool


@dataclass(frozen=True, slots=True)
class TracedInput:
    """Before step `step` a request came, or (`request` is None) the one called `id` was taken away."""

    step: int
    id: str
    request: TracedRequest | None


@dataclass(slots=True)
class ScheduleTrace:
    """Everything a policy saw and decided in one run."""

    steps: list[TracedStep] = field(default_factory=list)
    inputs: list[TracedInput] = field(default_factory=list)

    def note(self, batch: Batch, result: StepResult) -> None:
        """Called by the engine after each step."""
        items = tuple(TracedItem(item.seq.id, item.kind, item.start, item.n_tokens) for item in batch.items)
        preempted = tuple(seq.id for seq in batch.preempted)
        ended = tuple(item.seq.id for item in batch.items if item.seq.state is State.FINISHED)
        tokens = {seq_id: sampled.token for seq_id, sampled in result.tokens.items()}
        self.steps.append(TracedStep(items, preempted, ended, result.duration_s, tokens))

    def note_arrival(self, request: Request) -> None:
        """Called by the engine when a request reaches the policy."""
        params, prompt = request.params, request.prompt.tolist()
        traced = TracedRequest(request.id, request.tenant, prompt, params.max_tokens, params.n, request.cache)
        self.inputs.append(TracedInput(len(self.steps), request.id, traced))

    def note_cancel(self, request_id: str) -> None:
        """Called by the engine when a request is taken away from the policy."""
        self.inputs.append(TracedInput(len(self.steps), request_id, None))

    def replay(self, engine: Engine) -> None:
        """Feed `engine` what came in, in the same order and before the same steps.

        The engine runs on a `ReplayExecutor(self)`, which is also its clock, and takes `replayer.text` for its text.
        """
        waiting = iter(self.inputs)
        coming = next(waiting, None)
        for step in range(len(self.steps) + 1):
            while coming is not None and coming.step == step:
                if coming.request is None:
                    engine.cancel(coming.id)
                else:
                    engine.submit(_request(coming.request))
                coming = next(waiting, None)
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
                tuple(TracedItem(**item) for item in step["items"]), tuple(step["preempted"]), tuple(step["ended"]),
                step["duration_s"],
                step["tokens"],
            )
            for step in data["steps"]
        ]  # fmt: skip
        inputs = [
            TracedInput(
                entry["step"], entry["id"], None if entry["request"] is None else TracedRequest(**entry["request"])
            )
            for entry in data["inputs"]
        ]
        return ScheduleTrace(steps, inputs)


def _request(traced: TracedRequest) -> Request:
    params = SamplingParams(max_tokens=traced.max_tokens, n=traced.n)
    return Request(traced.id, tokens_of(traced.prompt), params, tenant=traced.tenant, cache=traced.cache)


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
        self._ended = {seq_id for step in trace.steps for seq_id in step.ended}
        self._durations: Iterator[float] = iter([step.duration_s for step in trace.steps if step.items])
        self._now = 0.0

    def now(self) -> float:
        return self._now

    def text(self, seq: Sequence) -> _RecordedEnd:
        """Ends an answer where it ended when it was recorded, for whatever reason."""
        return _RecordedEnd(len(self._tokens.get(seq.id, ())) if seq.id in self._ended else -1)

    def run(self, batch: Batch) -> StepResult:
        duration = next(self._durations, 0.0)
        self._now += duration
        result = StepResult({}, duration)
        for item in batch.items:
            recorded = self._tokens.get(item.seq.id, [])
            if item.samples and item.seq.made < len(recorded):
                result.tokens[item.seq.id] = Sampled(recorded[item.seq.made])
            elif item.samples:
                result.failed[item.seq.id] = ModelError(f"{item.seq.id} failed here when it was recorded")
        return result


class _RecordedEnd:
    """An answer without text that stops after `length` tokens."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.stopped = False

    def add(self, token: int) -> str:
        self._left -= 1
        self.stopped = self._left == 0
        return ""

    def finish(self) -> str:
        return ""
