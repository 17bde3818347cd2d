"""Who runs a batch: the real model on this machine, or a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items

from windlass.serving.batch import Batch, ExecutorCaps, Sampled, StepResult


class ScriptedExecutor:
    """Says what it is told: for tests of control flow, and of schedules.

    Args:
        answers: Tokens by sequence id; a sequence that is not named, or whose answer is over, makes `filler`.
        seconds: Duration of a step; its clock stands at their sum.

    Example:
        >>> executor = ScriptedExecutor({"a": [5, 6]})
        >>> executor.now()
        0.0
    """

    caps = ExecutorCaps("simulated", 1 << 30, 1 << 30)

    def __init__(
        self,
        answers: Mapping[str, Items[int]] | None = None,
        *,
        seconds: Callable[[Batch], float] = lambda batch: 1.0,
        filler: int = 1,
    ) -> None:
        self._answers = answers or {}
        self._seconds = seconds
        self._filler = filler
        self._now = 0.0

    def now(self) -> float:
        """The time of its virtual clock."""
        return self._now

    def run(self, batch: Batch) -> StepResult:
        duration = self._seconds(batch)
        self._now += duration
        tokens = {item.seq.id: Sampled(self._next(item.seq.id, item.seq.made)) for item in batch.items if item.samples}
        return StepResult(tokens, duration)

    def _next(self, seq_id: str, made: int) -> int:
        answer = self._answers.get(seq_id, ())
        return answer[made] if made < len(answer) else self._filler
