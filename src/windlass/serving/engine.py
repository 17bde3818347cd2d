"""The loop: take what came in, let the policy decide, run the step, hand out tokens, give pages back."""

from __future__ import annotations

import heapq
import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from windlass.core.errors import (
    Cancelled,
    ContextLengthError,
    DeadlineError,
    EngineBug,
    QueueFull,
    UsageError,
)
from windlass.serving.batch import Batch, BatchExecutor, Sampled, Scheduler, StepResult
from windlass.serving.kv import KVManager, PageStats
from windlass.serving.metrics import EngineMetrics
from windlass.serving.request import FinishReason, Request, Sequence, State, sequences_of
from windlass.serving.sparse_policy import SparsePolicy

if TYPE_CHECKING:
    from windlass.serving.adapters import EngineAdapters
    from windlass.serving.chunk_cache import ChunkOptions
    from windlass.serving.schedule_trace import ScheduleTrace

log = logging.getLogger("windlass.serving")


class Clock(Protocol):
    """Where the engine's time comes from: the machine's clock, or a simulated one."""

    def now(self) -> float: ...


class AnswerText(Protocol):
    """The text of one answer as it grows; `windlass.serving.text.Readable` is one."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        ...

    def add(self, token: int) -> str:
        """What became readable with a token."""
        ...

    def finish(self) -> str:
        """What was held back until the end."""
        ...


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Bounds of the engine.

    Attributes:
        max_queue: Sequences that may wait.
        max_queue_per_tenant: Of these, of one tenant.
        max_queued_tokens: Prompt tokens that may wait.
        check_every: Steps between checks of the memory's books; 0: never.
        kv_sparsity: Share of a long context that generated tokens do not read; 0: they read all of it.
        chunks: How chunks of prompts are kept for requests that allow it (`Request.reuse_chunks`); None: they are not.
        strict: Raise our own bugs instead of failing the request they belong to.
    """

    max_queue: int = 256
    max_queue_per_tenant: int = 64
    max_queued_tokens: int = 1 << 20
    check_every: int = 0
    kv_sparsity: float = 0.0
    chunks: ChunkOptions | None = None
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to answer `index` of a request.

    Attributes:
        text: What became readable; empty while a character is incomplete or a stop string may be beginning.
        sampled: The new token, None at an end without one.
        finish: Set on the last event of an answer.
        error: Why it ended, when `finish` is ERROR, DEADLINE or CANCELLED.
        time: On the engine's clock.
    """

    request_id: str
    index: int
    time: float
    text: str = ""
    sampled: Sampled | None = None
    finish: FinishReason | None = None
    error: Exception | None = None


class RequestHandle:
    """What came of a request so far. Events are put in by the engine's thread and may be taken out by another."""

    def __init__(self, request: Request, sequences: list[Sequence], sparse: SparsePolicy | None = None) -> None:
        self.request = request
        self.sequences = sequences
        self.sparse = sparse
        self.listener: Callable[[], None] | None = None
        self._events: deque[Event] = deque()
        self._unfinished = len(sequences)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def done(self) -> bool:
        """Whether the last event is there, taken out or not."""
        return self._unfinished == 0

    @property
    def approximations(self) -> dict[str, dict[str, float]]:
        """What made the answers differ from those of a full computation, by the name of the option; empty: nothing."""
        plans = [seq.reuse for seq in self.sequences if seq.reuse is not None and seq.reuse.taken]
        found = {"chunks": plans[0].report()} if plans else {}
        if self.sparse is not None and any(
            seq.made > 1 and self.sparse.applies(len(seq.tokens)) for seq in self.sequences
        ):
            found["kv_sparsity"] = {"share_read": self.sparse.ratio}
        return found

    def take(self) -> list[Event]:
        """The events since the last call."""
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken

    def put(self, event: Event) -> None:
        """Called by the engine."""
        self._events.append(event)
        if event.finish is not None:
            self._unfinished -= 1
        if self.listener is not None:
            self.listener()


@dataclass(frozen=True, slots=True)
class EngineStats:
    """How the engine stands."""

    waiting: int
    running: int
    queued_tokens: int
    pages: PageStats
    steps: int
    tokens_per_second: float


class Engine:
    """Many requests on one executor, step by step. `submit` and `cancel` may be called from any thread.

    Args:
        executor: Runs batches; the memory it writes is that of `kv`.
        scheduler: Decides about each step.
        kv: The memory.
        clock: Time for arrivals, deadlines and metrics; never used to decide anything but deadlines.
        config: Bounds.
        end_ids: Tokens with which the model ends an answer.
        text: Makes the text of an answer; None: tokens only.
        trace: Where every step is noted, to be replayed.
        adapters: Those that requests may name, on the books of `kv`; None: none.
    """

    def __init__(
        self,
        executor: BatchExecutor,
        scheduler: Scheduler,
        kv: KVManager,
        clock: Clock,
        *,
        config: EngineConfig | None = None,
        end_ids: Iterable[int] = (),
        text: Callable[[Sequence], AnswerText] | None = None,
        trace: ScheduleTrace | None = None,
        adapters: EngineAdapters | None = None,
    ) -> None:
        self.executor, self.scheduler, self.kv = executor, scheduler, kv
        self.config = config or EngineConfig()
        self.metrics = EngineMetrics()
        self.adapters = adapters
        self.end_ids = frozenset(end_ids)
        self._clock, self._now = clock, -math.inf
        self._text, self._trace = text, trace
        self._lock = threading.Lock()
        self._inbox: deque[tuple[str, RequestHandle | None]] = deque()
        self._chores: deque[Callable[[], object]] = deque()
        self._handles: dict[str, RequestHandle] = {}
        self._texts: dict[str, AnswerText] = {}
        self._siblings: dict[str, list[Sequence]] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._fresh: dict[str, Sequence] = {}
        self._queued_tokens = 0
        self._queued_of: Counter[str] = Counter()
        self._over: list[Sequence] = []
        self._events: list[Event] = []

    def submit(self, request: Request) -> RequestHandle:
        """Put a request in the queue.

        Raises:
            ContextLengthError: prompt and answer together fit neither the model nor the memory.
            QueueFull: too many wait already.
            DeadlineError: what waits before it takes longer than it has.
            AdapterNotFound: there is no such adapter.
            UsageError: its id is in use.
        """
        self._require_memory(request)
        if self.kv.chunks is not None:
            self.kv.chunks.fetch(request)
        sparse = SparsePolicy(1 - self.config.kv_sparsity) if self.config.kv_sparsity else None
        handle = RequestHandle(request, sequences_of(request), sparse)
        with self._lock:
            if request.id in self._handles:
                raise UsageError(f"a request with the id {request.id!r} is under way")
            self._require_place(request)
            if self.adapters is not None:
                self.adapters.claim(request, self.kv.page_tokens, self.kv.total_pages)
            self._handles[request.id] = handle
            for seq in handle.sequences:
                self._enqueue(seq)
            self._inbox.append((request.id, handle))
        return handle

    def cancel(self, request_id: str) -> bool:
        """End a request with the next step; False when it is not under way."""
        if request_id not in self._handles:
            return False
        self._inbox.append((request_id, None))
        return True

    def perform(self, chore: Callable[[], object]) -> None:
        """Have something done before the next step, by whoever steps the engine: the memory is its alone."""
        self._chores.append(chore)

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._handles or self._inbox or self._chores)

    def step(self) -> list[Event]:
        """One step, and what happened in it."""
        self._events = []
        now = self._time()
        self._drain(now)
        batch = self.scheduler.next_batch(now, self.kv)
        for seq in batch.dropped:
            late = DeadlineError("the request was given up: it could not be answered in time")
            self._finish(seq, FinishReason.DEADLINE, now, error=late)
        if batch.items or batch.preempted:
            for item in batch.items:
                self._dequeue(item.seq)
            result = self._run(batch) if batch.items else StepResult({}, 0.0)
            now = self._time()
            self._consume(batch, result, now)
            self.scheduler.on_step(batch, result, now)
            self.metrics.note_step(batch, result)
            if self._trace is not None:
                self._trace.note(batch, result)
        self._release()
        if self.config.check_every and self.metrics.steps % self.config.check_every == 0:
            self.kv.check()
        return self._events

    def abort(self, error: Exception) -> None:
        """End every request with `error`."""
        now = self._time()
        self._drain(now)
        for request_id in list(self._handles):
            self._end_request(request_id, FinishReason.ERROR, error, now)

    def run_until_idle(self, most_steps: int = 1_000_000) -> list[Event]:
        """Step until nothing is under way; everything that happened.

        Raises:
            EngineBug: it does not come to an end.
        """
        events: list[Event] = []
        for _ in range(most_steps):
            if not self.busy:
                return events
            events += self.step()
        raise EngineBug(f"still busy after {most_steps} steps: {self.snapshot()}")

    def snapshot(self) -> EngineStats:
        """How the engine stands; may be called from any thread."""
        waiting, running = self.scheduler.depth
        return EngineStats(
            max(waiting, len(self._fresh)), running, self._queued_tokens, self.kv.stats(), self.metrics.steps,
            self.metrics.tokens_per_second,
        )  # fmt: skip

    def retry_after(self) -> int:
        """Seconds until what waits now is probably done, 1 to 60."""
        rate = self.metrics.prompt_rate
        return max(1, min(60, math.ceil(self._queued_tokens / rate))) if rate else 5

    # Coming in

    def _require_memory(self, request: Request) -> None:
        prompt, wanted = len(request.prompt), request.params.max_tokens
        limit = min(self.executor.caps.context_length, self.kv.capacity_tokens)
        if prompt + wanted > limit:
            raise ContextLengthError(
                f"the prompt has {prompt:,} tokens and {wanted:,} are to be made, {limit:,} fit together",
                hint="send less, or lower max_tokens",
            )

    def _require_place(self, request: Request) -> None:
        config, count = self.config, request.params.n
        if self._deadline_missed(request):
            raise DeadlineError("the request cannot be done by its deadline", hint="allow more time or come back later")
        if len(self._fresh) + count > config.max_queue:
            raise QueueFull(f"{len(self._fresh)} requests wait already", self.retry_after())
        if self._queued_of[request.tenant] + count > config.max_queue_per_tenant:
            raise QueueFull(
                f"{self._queued_of[request.tenant]} requests of this tenant wait already", self.retry_after()
            )
        if self._fresh and self._queued_tokens + len(request.prompt) > config.max_queued_tokens:
            raise QueueFull(f"prompts of {self._queued_tokens:,} tokens wait already", self.retry_after())

    def _deadline_missed(self, request: Request) -> bool:
        if request.deadline is None:
            return False
        prompts, others = self._queued_tokens + len(request.prompt), bool(self._fresh)
        seconds = self.metrics.seconds_for(prompts, request.params.max_tokens, others=others)
        return self._clock.now() + seconds > request.deadline

    def _enqueue(self, seq: Sequence) -> None:
        self._fresh[seq.id] = seq
        self._queued_tokens += seq.prompt_length
        self._queued_of[seq.request.tenant] += 1

    def _dequeue(self, seq: Sequence) -> None:
        """`seq` ran, or will never run: it does not count as waiting any more, not even when it is preempted."""
        if seq.id not in self._fresh:
            return
        with self._lock:
            del self._fresh[seq.id]
            self._queued_tokens -= seq.prompt_length
            self._queued_of[seq.request.tenant] -= 1
            if not self._queued_of[seq.request.tenant]:
                del self._queued_of[seq.request.tenant]

    def _drain(self, now: float) -> None:
        while self._chores:
            self._chores.popleft()()
        while self._inbox:
            request_id, handle = self._inbox.popleft()
            if handle is None:
                self._end_request(request_id, FinishReason.CANCELLED, Cancelled("the request was cancelled"), now)
            else:
                self._start(handle, now)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            late = DeadlineError("the request was not done by its deadline")
            self._end_request(request_id, FinishReason.DEADLINE, late, now)
        self.kv.unpin(now)

    def _start(self, handle: RequestHandle, now: float) -> None:
        if self._trace is not None:
            self._trace.note_arrival(handle.request)
        first, *others = handle.sequences
        for seq in handle.sequences:
            seq.added = now
            if self._text is not None:
                self._texts[seq.id] = self._text(seq)
        if handle.request.deadline is not None:
            heapq.heappush(self._deadlines, (handle.request.deadline, handle.id))
        # The other answers wait for the first one's prompt, whose pages they then find in the prefix tree.
        if others:
            self._siblings[handle.id] = others
        self.scheduler.add(first, now)

    def _end_request(self, request_id: str, reason: FinishReason, error: Exception, now: float) -> None:
        handle = self._handles.get(request_id)
        if handle is None:
            return
        if self._trace is not None:
            self._trace.note_cancel(request_id)
        for seq in handle.sequences:
            if seq.state is not State.FINISHED:
                self.scheduler.cancel(seq)
                self._finish(seq, reason, now, error=error)
        self._release()

    # Running

    def _time(self) -> float:
        # A clock that is set back must not make intervals negative.
        self._now = max(self._now, self._clock.now())
        return self._now

    def _run(self, batch: Batch) -> StepResult:
        try:
            if self.kv.chunks is not None:
                for item in batch.items:
                    self.kv.chunks.place(item.seq)
            return self.executor.run(batch)
        except Exception as error:
            if self.config.strict:
                raise
            log.exception("a step failed")
            return StepResult({}, 0.0, failed={item.seq.id: error for item in batch.items})

    def _consume(self, batch: Batch, result: StepResult, now: float) -> None:
        for item in batch.items:
            seq = item.seq
            error = result.failed.get(seq.id)
            if error is not None:
                self._finish(seq, FinishReason.ERROR, now, error=error)
                continue
            if self.kv.chunks is not None and seq.id in result.shares:
                self.kv.chunks.watch(seq, item.indices, result.shares[seq.id])
            if item.kind == "probe":
                continue
            seq.advance(item.n_tokens)
            if seq.id in result.rated:
                seq.rated = (seq.rated or {}) | result.rated[seq.id]
            if item.n_tokens > 1 or seq.computed % self.kv.page_tokens == 0:
                self.kv.publish(seq)
            sampled = result.tokens.get(seq.id)
            if sampled is None:
                continue
            if seq.state is State.PREFILL:
                seq.move(State.DECODE)
                self._wake_siblings(seq, now)
            self._take_token(seq, sampled, now)

    def _wake_siblings(self, seq: Sequence, now: float) -> None:
        for sibling in self._siblings.pop(seq.request.id, ()):
            self.scheduler.add(sibling, now)

    def _take_token(self, seq: Sequence, sampled: Sampled, now: float) -> None:
        params, text = seq.request.params, self._texts.get(seq.id)
        if params.max_tokens == 0:
            self._finish(seq, FinishReason.LENGTH, now)
            return
        seq.tokens.append(sampled.token)
        self.metrics.note_token(seq, now)
        ended = sampled.token in self.end_ids and not params.ignore_eos
        if ended or sampled.token in params.stop_token_ids:
            self._finish(seq, FinishReason.EOS if ended else FinishReason.STOP, now, sampled)
            return
        if seq.constraint is not None:
            try:
                seq.constraint.take(sampled.token)
            except UsageError as error:
                self._finish(seq, FinishReason.ERROR, now, error=error)
                return
        shown = text.add(sampled.token) if text is not None else ""
        if (text is not None and text.stopped) or (seq.constraint is not None and seq.constraint.done):
            self._finish(seq, FinishReason.STOP, now, sampled, shown)
        elif seq.budget_left == 0:
            self._finish(seq, FinishReason.LENGTH, now, sampled, shown)
        else:
            self._tell(seq, Event(seq.request.id, seq.index, now, shown, sampled))

    # Going out

    def _finish(
        self,
        seq: Sequence,
        reason: FinishReason,
        now: float,
        sampled: Sampled | None = None,
        shown: str = "",
        *,
        error: Exception | None = None,
    ) -> None:
        text = self._texts.pop(seq.id, None)
        if text is not None and not text.stopped:
            shown += text.finish()
            if text.stopped and reason is FinishReason.LENGTH:
                reason = FinishReason.STOP
        seq.move(State.FINISHED)
        seq.finish, seq.error = reason, error
        self._dequeue(seq)
        self._over.append(seq)
        self.metrics.note_finish(seq, now)
        self._tell(seq, Event(seq.request.id, seq.index, now, shown, sampled, reason, error))
        if seq.request.id in self._siblings:
            self._siblings_follow(seq, now, error)

    def _siblings_follow(self, seq: Sequence, now: float, error: Exception | None) -> None:
        """The first answer ended before its prompt was computed; the others would wait for it for ever."""
        for sibling in self._siblings.pop(seq.request.id):
            if sibling is not seq and sibling.state is not State.FINISHED:
                assert seq.finish is not None
                self._finish(sibling, seq.finish, now, error=error)

    def _tell(self, seq: Sequence, event: Event) -> None:
        handle = self._handles[event.request_id]
        handle.put(event)
        self._events.append(event)
        if handle.done:
            del self._handles[event.request_id]
            if self.adapters is not None:
                self.adapters.release(handle.request)

    def _release(self) -> None:
        for seq in self._over:
            if self.kv.chunks is not None and seq.finish is not FinishReason.ERROR:
                self.kv.chunks.keep(seq)
            self.kv.release(seq, keep=seq.finish is not FinishReason.ERROR)
        self._over.clear()
