"""What the engine counts: plain records; whoever shows them reads them from here."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from windlass.serving.batch import Batch, StepResult
from windlass.serving.request import FinishReason, Sequence

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKENS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)

_REMEMBERED = 64


class Histogram:
    """Counts of values up to each of `bounds`, and of those beyond the last."""

    def __init__(self, bounds: Items[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class TenantMetrics:
    """Times of one tenant's requests: to the first token, between tokens, to the end."""

    ttft: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    tbt: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    e2e: Histogram = field(default_factory=lambda: Histogram(SECONDS))


class EngineMetrics:
    """Counters of an engine's life.

    Attributes:
        tokens_per_second: Of steps lately, prompts and answers alike.
        prompt_rate: The same of steps with chunks of prompts: how fast a queue drains.
    """

    def __init__(self) -> None:
        self.tenants: dict[str, TenantMetrics] = {}
        self.step_tokens = Histogram(TOKENS)
        self.step_seconds = Histogram(SECONDS)
        self.finished: Counter[str] = Counter()
        self.steps = 0
        self.computed_tokens = 0
        self.made_tokens = 0
        self.preemptions = 0
        self.tokens_per_second = 0.0
        self.prompt_rate = 0.0
        self._step = self._prompt_step = 0.0
        self._answers: deque[int] = deque(maxlen=_REMEMBERED)
        self._last: dict[str, float] = {}

    def note_step(self, batch: Batch, result: StepResult) -> None:
        self.steps += 1
        self.computed_tokens += batch.n_tokens
        self.preemptions += len(batch.preempted)
        self.step_tokens.add(batch.n_tokens)
        self.step_seconds.add(result.duration_s)
        seconds = result.duration_s
        if seconds > 0:
            self.tokens_per_second = _lately(self.tokens_per_second, batch.n_tokens / seconds)
            self._step = _lately(self._step, seconds)
            if any(item.kind == "prefill" for item in batch.items):
                self.prompt_rate = _lately(self.prompt_rate, batch.n_tokens / seconds)
                self._prompt_step = _lately(self._prompt_step, seconds)

    def seconds_for(self, prompts: int, most_tokens: int, *, others: bool) -> float:
        """How long `prompts` tokens of prompts and the answer after them will take; 0 when nothing is known yet.

        Args:
            prompts: Tokens that are computed before the answer begins, other requests' included.
            most_tokens: Most tokens of the answer. Where answers were shorter lately, nine in ten of them, it counts
                as one of these.
            others: Whether more prompts wait, chunks of which will share its steps.
        """
        usual = sorted(self._answers)[len(self._answers) * 9 // 10] if self._answers else most_tokens
        step = max(self._step, self._prompt_step) if others else self._step
        return (prompts / self.prompt_rate if self.prompt_rate else 0.0) + min(most_tokens, usual) * step

    def note_token(self, seq: Sequence, now: float) -> None:
        self.made_tokens += 1
        last = self._last.get(seq.id)
        if last is None:
            self._of(seq).ttft.add(now - seq.added)
        else:
            self._of(seq).tbt.add(now - last)
        self._last[seq.id] = now

    def note_finish(self, seq: Sequence, now: float) -> None:
        self._last.pop(seq.id, None)
        if seq.finish in (FinishReason.LENGTH, FinishReason.EOS, FinishReason.STOP):
            self._answers.append(seq.made)
        self.finished[str(seq.finish)] += 1
        self._of(seq).e2e.add(now - seq.added)

    def _of(self, seq: Sequence) -> TenantMetrics:
        found = self.tenants.get(seq.request.tenant)
        if found is None:
            found = self.tenants[seq.request.tenant] = TenantMetrics()
        return found


def _lately(before: float, now: float) -> float:
    """The average of the last twenty or so."""
    return before + 0.05 * (now - before) if before else now
