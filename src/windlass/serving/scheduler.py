"""Who gets the next step: stall-free batching, the policies it is compared with, and fairness between tenants.

`StallFree` follows Sarathi-Serve (Agrawal et al., OSDI 2024): running generations get their token first, what is left
of the step's budget goes to chunks of prompts. Different here: the budget may be given in seconds and is then found by
a model of the step's duration; a sequence is preempted at most twice; short prompts may pass a long one, bounded.
`PrefillFirst`, `HybridFull` and `DecodeFirst` are what vLLM, Orca and FasterTransformer do. `FairShare` is the virtual
token counter (Sheng et al., OSDI 2024) in the place of any policy's waiting queue.

All of them are plain state machines over `Sequence` and `KVManager`. A step costs what its batch costs, however many
wait.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal, Protocol

from windlass.core.errors import PoolExhausted, UsageError
from windlass.serving.batch import Batch, BatchShape, StepResult, WorkItem
from windlass.serving.kv import KVManager, Reserve
from windlass.serving.request import Sequence, State
from windlass.serving.waiting import FairQueue, FirstCome, WaitingQueue

MAX_PREEMPTIONS = 2
"""A sequence that lost its pages this often gets pages for its whole answer and keeps them."""


class StepTime(Protocol):
    """Predicts how long a step takes."""

    def seconds(self, shape: BatchShape) -> float: ...


class QueuePolicy(ABC):
    """What all policies share: a queue of waiting sequences, the running ones in the order they came, preemption."""

    def __init__(self, *, max_num_seqs: int = 128, reserve: Reserve = "prompt") -> None:
        if max_num_seqs < 1:
            raise UsageError(f"max_num_seqs is {max_num_seqs}, expected at least 1")
        self.waiting: WaitingQueue = FirstCome()
        self.running: dict[str, Sequence] = {}
        self.max_num_seqs = max_num_seqs
        self.reserve: Reserve = reserve
        self._in_flight: set[str] = set()

    @abstractmethod
    def next_batch(self, now: float, kv: KVManager) -> Batch:
        """What to compute now; empty when there is nothing to do."""

    def add(self, seq: Sequence, now: float) -> None:
        self.waiting.push(seq)

    def cancel(self, seq: Sequence) -> None:
        self.waiting.remove(seq)
        self.running.pop(seq.id, None)
        self._in_flight.discard(seq.id)

    @property
    def depth(self) -> tuple[int, int]:
        return len(self.waiting), len(self.running)

    def on_step(self, batch: Batch, result: StepResult, now: float) -> None:
        for item in batch.items:
            self._in_flight.discard(item.seq.id)
            if item.seq.state is State.FINISHED:
                self.running.pop(item.seq.id, None)
            if item.seq.id in result.tokens:
                self.waiting.charge_token(item.seq)

    def _ready(self, state: State) -> list[Sequence]:
        return [seq for seq in self.running.values() if seq.state is state and seq.id not in self._in_flight]

    def _put(self, batch: Batch, seq: Sequence, count: int) -> None:
        batch.items.append(WorkItem.next_of(seq, count, "decode" if seq.state is State.DECODE else "prefill"))
        self._in_flight.add(seq.id)

    def _add_decodes(self, batch: Batch, kv: KVManager) -> None:
        """One token of every generation, first come first; who gets no page makes the last ones give theirs back."""
        for seq in self._ready(State.DECODE):
            while seq.state is State.DECODE and not kv.grow(seq, 1):
                self._preempt(self._victim(batch), batch, kv)
            if seq.state is State.DECODE:
                self._put(batch, seq, 1)

    def _victim(self, batch: Batch) -> Sequence:
        """Whose pages are cheapest to compute again, among the last quarter of those that are not in the batch."""
        candidates = [
            seq for seq in self.running.values() if seq.id not in self._in_flight and seq.preemptions < MAX_PREEMPTIONS
        ] or [seq for seq in self.running.values() if seq.id not in self._in_flight]
        last = candidates[-max(1, len(candidates) // 4) :]
        # Linear work is the same for each page, attention is more the later it stands: short contexts are cheap.
        return min(reversed(last), key=lambda seq: seq.computed)

    def _preempt(self, seq: Sequence, batch: Batch, kv: KVManager) -> None:
        kv.release(seq)
        seq.computed = 0
        seq.preemptions += 1
        seq.move(State.WAITING)
        del self.running[seq.id]
        self._wait_again(seq)
        batch.preempted.append(seq)

    def _wait_again(self, seq: Sequence) -> None:
        """`seq` lost its pages."""
        self.waiting.push_front(seq)

    def _admit(self, seq: Sequence, kv: KVManager) -> bool:
        """Take `seq` out of the queue and into memory, when it fits."""
        reserve: Reserve = "full" if seq.preemptions >= MAX_PREEMPTIONS else self.reserve
        if len(self.running) >= self.max_num_seqs or not kv.can_admit(seq, reserve):
            return False
        try:
            seq.computed = kv.admit(seq, reserve)
        except PoolExhausted:  # cached pages that cannot go, because what follows them is in use
            return False
        seq.move(State.PREFILL)
        self.waiting.remove(seq)
        self.waiting.charge_prompt(seq)
        self.running[seq.id] = seq
        return True


class PrefillFirst(QueuePolicy):
    """Whole prompts before anything else (vLLM's): generations wait while prompts are computed.

    Args:
        max_batched_tokens: Most prompt tokens of a step; a longer prompt goes alone.
    """

    def __init__(self, *, max_batched_tokens: int = 4096, max_num_seqs: int = 128, reserve: Reserve = "prompt") -> None:
        super().__init__(max_num_seqs=max_num_seqs, reserve=reserve)
        self.max_batched_tokens = max_batched_tokens

    def next_batch(self, now: float, kv: KVManager) -> Batch:
        batch = Batch()
        used = 0
        while (head := self.waiting.head()) is not None:
            if (used and used + len(head.tokens) > self.max_batched_tokens) or not self._admit(head, kv):
                break
            self._put(batch, head, head.pending)
            used += head.pending
        if not batch.items:
            self._add_decodes(batch, kv)
        return batch


class HybridFull(QueuePolicy):
    """Generations and whole prompts in one step (Orca's): a long prompt holds everybody's next token up."""

    def next_batch(self, now: float, kv: KVManager) -> Batch:
        batch = Batch()
        self._add_decodes(batch, kv)
        while not batch.preempted and (head := self.waiting.head()) is not None and self._admit(head, kv):
            self._put(batch, head, head.pending)
        return batch


class DecodeFirst(QueuePolicy):
    """Nobody joins before the whole batch is done (FasterTransformer's)."""

    def __init__(self, *, max_num_seqs: int = 128) -> None:
        super().__init__(max_num_seqs=max_num_seqs, reserve="full")

    def next_batch(self, now: float, kv: KVManager) -> Batch:
        batch = Batch()
        if not self.running:
            while (head := self.waiting.head()) is not None and self._admit(head, kv):
                self._put(batch, head, head.pending)
        else:
            self._add_decodes(batch, kv)
        return batch


class StallFree(QueuePolicy):
    """Generations first, then chunks of prompts up to a budget: no prompt, however long, stalls a generation.

    Args:
        token_budget: Most tokens of a step. `auto` needs `tbt_slo_s` and `step_time`: the largest chunk whose predicted
            step stays within the time.
        tbt_slo_s: Seconds that may lie between two tokens of a generation.
        step_time: Predicts the duration of a step; corrected by what steps really take.
        tile: Chunks are multiples of it, where they can; one too many costs a whole tile more.
        max_partial_prefills: Prompts that are computed side by side; more than 1 lets short ones pass a long one.
        short_prompt: Most tokens of a short prompt.
        largest_chunk: Most tokens of a step under `auto`.

    Raises:
        UsageError: the budget is not positive, or `auto` without what it needs.
    """

    def __init__(
        self,
        token_budget: int | Literal["auto"] = 512,
        *,
        tbt_slo_s: float | None = None,
        step_time: StepTime | None = None,
        tile: int = 16,
        max_num_seqs: int = 128,
        max_partial_prefills: int = 1,
        short_prompt: int = 320,
        largest_chunk: int = 8192,
        reserve: Reserve = "prompt",
    ) -> None:
        super().__init__(max_num_seqs=max_num_seqs, reserve=reserve)
        if token_budget == "auto" and (tbt_slo_s is None or step_time is None):
            raise UsageError("a token budget of `auto` needs tbt_slo_s and step_time", hint="or give a number")
        if token_budget != "auto" and token_budget < 1:
            raise UsageError(f"token_budget is {token_budget}, expected at least 1")
        if tbt_slo_s is not None and not tbt_slo_s > 0:
            raise UsageError(f"tbt_slo_s is {tbt_slo_s}, expected more than 0")
        if tile < 1 or max_partial_prefills < 1:
            raise UsageError("tile and max_partial_prefills count from 1")
        self.token_budget: int | Literal["auto"] = token_budget
        self.tbt_slo_s = tbt_slo_s
        self.step_time = step_time
        self.tile = tile
        self.max_partial_prefills = max_partial_prefills
        self.short_prompt = short_prompt
        self.largest_chunk = largest_chunk
        self.correction = 1.0
        self.steps_over_slo = 0
        self._passed: dict[str, int] = {}

    def next_batch(self, now: float, kv: KVManager) -> Batch:
        batch = Batch()
        self._add_decodes(batch, kv)
        self._fill(Step(batch), kv)
        return batch

    def _fill(self, step: Step, kv: KVManager) -> None:
        """Spend what is left of the step on prompts."""
        batch = step.batch
        for seq in self._prefilling():
            self._add_chunk(step, seq)
        # Who just lost pages for want of room must not have them taken again by the next in line.
        while not batch.preempted and (head := self.waiting.head()) is not None:
            if self._room(step, head.computed) == 0 or not self._admit(head, kv):
                break
            self._add_chunk(step, head)
        if self.max_partial_prefills > 1 and not batch.preempted:
            self._let_pass(step, kv)

    def _prefilling(self) -> list[Sequence]:
        """Running sequences whose prompt is not computed yet."""
        return self._ready(State.PREFILL)

    def cancel(self, seq: Sequence) -> None:
        super().cancel(seq)
        self._passed.pop(seq.id, None)

    def on_step(self, batch: Batch, result: StepResult, now: float) -> None:
        super().on_step(batch, result, now)
        for item in batch.items:
            self._passed.pop(item.seq.id, None)
        if self.step_time is None or not batch.items or result.duration_s <= 0:
            return
        predicted = self.step_time.seconds(BatchShape.of(batch))
        if predicted > 0:
            measured = min(2.0, max(0.5, result.duration_s / predicted))
            self.correction += 0.1 * (measured - self.correction)

    def _add_chunk(self, step: Step, seq: Sequence) -> None:
        room = self._room(step, seq.computed)
        if self.max_partial_prefills > 1 and seq.pending > self.short_prompt and self._short_waits():
            room = room // 2 // self.tile * self.tile or (room + 1) // 2
        count = min(seq.pending, room)
        if count:
            self._put(step.batch, seq, count)
            step.add(count, seq.computed)

    def _short_waits(self) -> bool:
        return any(len(seq.tokens) <= self.short_prompt for seq in self.waiting.first(8))

    def _let_pass(self, step: Step, kv: KVManager) -> None:
        """Admit short prompts from behind a head that cannot go, as long as it does not wait for it too long."""
        head = self.waiting.head()
        if head is None:
            return
        partial = len([seq for seq in self.running.values() if seq.state is State.PREFILL])
        for seq in list(self.waiting.first(32))[1:]:
            passed = self._passed.get(head.id, 0) + len(seq.tokens)
            if partial >= self.max_partial_prefills or self._room(step, 0) == 0:
                return
            # Work that passes is at most what the head itself brings, so its wait at most doubles.
            if len(seq.tokens) > self.short_prompt or passed > len(head.tokens) or not self._admit(seq, kv):
                continue
            self._passed[head.id] = passed
            self._add_chunk(step, seq)
            partial += 1

    def _room(self, step: Step, context: int) -> int:
        """Tokens that a chunk behind `context` tokens may have."""
        if self.token_budget != "auto":
            return max(0, self.token_budget - step.tokens)
        assert self.step_time is not None and self.tbt_slo_s is not None
        allowed, most = self.tbt_slo_s / self.correction, max(0, self.largest_chunk - step.tokens)
        # The largest multiple of the tile that fits; the first prompt gets a tile even when nothing does.
        low, high = 0, most // self.tile
        while low < high:
            middle = (low + high + 1) // 2
            if self.step_time.seconds(step.shape(middle * self.tile, context)) <= allowed:
                low = middle
            else:
                high = middle - 1
        if low == 0 and not step.chunks:
            self.steps_over_slo += 1
            return min(self.tile, most)
        return low * self.tile


class Step:
    """A batch under construction, and its shape."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.chunks = 0
        shape = BatchShape.of(batch)
        self.tokens, self._pairs, self._context = shape.tokens, shape.prefill_pairs, shape.decode_context
        self._samples = shape.samples

    def add(self, count: int, start: int) -> None:
        self.tokens += count
        self.chunks += 1
        self._pairs += count * (start + count / 2)

    def shape(self, count: int, start: int) -> BatchShape:
        pairs = self._pairs + count * (start + count / 2)
        return BatchShape(self.tokens + count, self._samples + 1, pairs, self._context)


class FairShare:
    """Any policy, with tenants served by weight instead of by who came first.

    Between tenants that have work waiting, the weighted service differs by a bounded amount, however many requests one
    of them sends.

    Args:
        inner: The policy.
        weights: Shares of tenants; 1 for those it does not name.
    """

    def __init__(self, inner: QueuePolicy, weights: Mapping[str, float] | None = None) -> None:
        self.inner = inner
        self.queue = FairQueue(weights)
        inner.waiting = self.queue
        self.add, self.cancel = inner.add, inner.cancel
        self.next_batch, self.on_step = inner.next_batch, inner.on_step

    @property
    def depth(self) -> tuple[int, int]:
        return self.inner.depth
