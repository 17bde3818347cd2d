"""Whose turn it is when requests bring adapters, and when there are more requests than can be served in time.

`AdapterClustered` and `EarlyAbort` follow S-LoRA (Sheng et al., MLSys 2024) and wrap any policy. Different from the
paper: who is passed over is passed a bounded number of times, and only requests that never ran are given up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice

from windlass.core.errors import UsageError
from windlass.serving.batch import Batch, StepResult
from windlass.serving.kv import KVManager
from windlass.serving.request import Sequence, State
from windlass.serving.scheduler import FairShare, QueuePolicy
from windlass.serving.waiting import WaitingQueue

LOOK_AHEAD = 64
"""Waiting requests among which one with a resident adapter is looked for."""


class AdapterClustered:
    """Any policy; once so many adapters run, requests whose adapter runs already go first.

    Args:
        inner: The policy, fair between tenants or not.
        max_adapters: Distinct adapters that run before the others have to wait.
        strict: Nobody else joins until one of them is gone. One adapter, strictly, is how engines work that cannot mix
            adapters in a batch.
        patience: How often the first in line may be passed.

    Raises:
        UsageError: `max_adapters` or `patience` is not positive.
    """

    def __init__(
        self, inner: QueuePolicy | FairShare, max_adapters: int, *, strict: bool = False, patience: int = 256
    ) -> None:
        if max_adapters < 1 or patience < 1:
            raise UsageError("max_adapters and patience count from 1")
        self.inner = inner.inner if isinstance(inner, FairShare) else inner
        self.inner.waiting = _ClusteredQueue(self.inner.waiting, self.inner.running, max_adapters, strict, patience)
        self.add, self.cancel = inner.add, inner.cancel
        self.next_batch, self.on_step = inner.next_batch, inner.on_step

    @property
    def depth(self) -> tuple[int, int]:
        return self.inner.depth


class _ClusteredQueue:
    """A queue whose head is the first that brings no new adapter, once enough of them run."""

    def __init__(
        self, inner: WaitingQueue, running: Mapping[str, Sequence], most: int, strict: bool, patience: int
    ) -> None:
        self._inner, self._running = inner, running
        self._most, self._strict, self._patience = most, strict, patience
        self._passed: dict[str, int] = {}
        self.push, self.push_front = inner.push, inner.push_front
        self.charge_prompt, self.charge_token = inner.charge_prompt, inner.charge_token

    def __len__(self) -> int:
        return len(self._inner)

    def head(self) -> Sequence | None:
        return next(self.first(1), None)

    def first(self, count: int) -> Iterator[Sequence]:
        running = {seq.request.adapter for seq in self._running.values()}
        if len(running) < self._most:
            return self._inner.first(count)
        waiting = list(self._inner.first(max(count, LOOK_AHEAD)))
        joining = [seq for seq in waiting if seq.request.adapter in running]
        if waiting and self._passed.get(waiting[0].id, 0) >= self._patience:
            # Its turn: nobody passes any more, and without room for it the batch shrinks until there is.
            joining = [seq for seq in waiting[:1] if not self._strict or seq.request.adapter in running]
        elif not self._strict:
            joining += [seq for seq in waiting if seq.request.adapter not in running]
        return islice(iter(joining), count)

    def remove(self, seq: Sequence) -> None:
        first = next(self._inner.first(1), None)
        if first is not None and first is not seq:
            self._passed[first.id] = self._passed.get(first.id, 0) + 1
        self._passed.pop(seq.id, None)
        self._inner.remove(seq)


class EarlyAbort:
    """Any policy; requests that can no longer get their first token in time are given up, and under overload the newest
    go first: serving those who still can be served in time serves more of them.

    Args:
        inner: The policy.
        first_token_slo_s: Time to the first token after which an answer is worth nothing.
        estimate_s: What a request still needs from its admission to its first token.
        window_s: Over which arrivals and admissions are counted.

    Raises:
        UsageError: a time is not positive.
    """

    def __init__(
        self, inner: QueuePolicy, *, first_token_slo_s: float = 6.0, estimate_s: float = 0.5, window_s: float = 1.0
    ) -> None:
        if not (first_token_slo_s > 0 and window_s > 0 and 0 <= estimate_s < first_token_slo_s):
            raise UsageError("first_token_slo_s and window_s are more than 0, estimate_s is less than the former")
        self.inner = inner
        self._latest = first_token_slo_s - estimate_s
        self._window = window_s
        self._arrived: deque[tuple[float, Sequence]] = deque()
        self._queue = _NewestFirst(inner.waiting)
        inner.waiting = self._queue
        self._since = 0.0
        self._counts = [0, 0]
        self._rates = [0.0, 0.0]

    @property
    def depth(self) -> tuple[int, int]:
        return self.inner.depth

    @property
    def overloaded(self) -> bool:
        """Whether requests come faster than they are admitted."""
        return self._rates[0] > self._rates[1]

    def add(self, seq: Sequence, now: float) -> None:
        self._counts[0] += 1
        self._arrived.append((now, seq))
        self.inner.add(seq, now)

    def cancel(self, seq: Sequence) -> None:
        self.inner.cancel(seq)

    def next_batch(self, now: float, kv: KVManager) -> Batch:
        dropped = self._give_up(now)
        self._count(now)
        self._queue.newest_first = self.overloaded
        before = len(self._queue)
        batch = self.inner.next_batch(now, kv)
        self._counts[1] += max(0, before - len(self._queue))
        batch.dropped += dropped
        return batch

    def on_step(self, batch: Batch, result: StepResult, now: float) -> None:
        self.inner.on_step(batch, result, now)

    def _give_up(self, now: float) -> list[Sequence]:
        dropped = []
        while self._arrived and self._arrived[0][0] + self._latest < now:
            _, seq = self._arrived.popleft()
            if seq.state is State.WAITING and seq.preemptions == 0:
                self.inner.cancel(seq)
                dropped.append(seq)
        return dropped

    def _count(self, now: float) -> None:
        passed = now - self._since
        if passed >= self._window:
            for place in (0, 1):
                self._rates[place] = 0.7 * self._counts[place] / passed + 0.3 * self._rates[place]
            self._since, self._counts = now, [0, 0]


class _NewestFirst:
    """A queue that can be told to be served from its end. Who was preempted goes first all the same."""

    def __init__(self, inner: WaitingQueue) -> None:
        self._inner = inner
        self.newest_first = False
        self._line: dict[str, Sequence] = {}
        self.push_front = inner.push_front
        self.charge_prompt, self.charge_token = inner.charge_prompt, inner.charge_token

    def __len__(self) -> int:
        return len(self._inner)

    def push(self, seq: Sequence) -> None:
        self._line[seq.id] = seq
        self._inner.push(seq)

    def head(self) -> Sequence | None:
        return next(self.first(1), None)

    def first(self, count: int) -> Iterator[Sequence]:
        if not self.newest_first:
            return self._inner.first(count)
        again = [seq for seq in self._inner.first(count) if seq.preemptions]
        newest = islice(reversed(self._line.values()), count)
        return islice(iter([*again, *newest]), count)

    def remove(self, seq: Sequence) -> None:
        self._line.pop(seq.id, None)
        self._inner.remove(seq)
