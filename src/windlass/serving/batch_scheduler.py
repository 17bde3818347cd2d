"""Stall-free steps whose left-over goes to planned batches: what a batch shares is computed once and forked.

BatchLLM (Zheng et al., MLSys 2026), together with whoever is served meanwhile: generations and prompts of others come
first, a batch gets what is left of the budget and of the memory, and gives its pages back first. A sequence of a batch
is admitted with pages for its whole answer, so batches never make one another compute twice.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Any, Literal

from windlass.core.errors import PoolExhausted
from windlass.serving.batch import Batch, StepResult
from windlass.serving.batch_planner import BatchPlan
from windlass.serving.kv import KVManager
from windlass.serving.kv_view import KVView
from windlass.serving.request import Sequence, State
from windlass.serving.scheduler import StallFree, Step

_LOOK_AHEAD = 64
"""Sequences that are looked at for one whose shared prefix is not just being computed by another."""


@dataclass(slots=True)
class _Prefix:
    """One shared prefix: its context when it is computed, who computes it, how many still wait for it."""

    left: int
    view: KVView | None = None
    maker: Sequence | None = None


@dataclass(slots=True)
class _Progress:
    """How far one batch is."""

    plan: BatchPlan
    prefixes: list[_Prefix]
    waiting: list[tuple[int, int, Sequence]] = field(default_factory=list)

    def path(self, seq: Sequence) -> list[_Prefix]:
        """The shared prefixes of a sequence, the longest first."""
        assert seq.request.shared is not None
        return [self.prefixes[prefix] for prefix in self.plan.path(seq.request.shared.member)]


_Key = tuple[int, str, str | None]


def _key(seq: Sequence) -> _Key:
    """Whose keys and values may be shared: those of one plan, one tenant and one adapter."""
    return id(seq.request.shared.plan) if seq.request.shared else 0, seq.request.tenant, seq.request.adapter


class BatchScheduler(StallFree):
    """`StallFree`, and planned batches (`Request.shared`) behind everybody else. Arguments as `StallFree`."""

    def __init__(self, *budget: int | Literal["auto"], **options: Any) -> None:
        super().__init__(*budget, **options)
        self._batches: dict[_Key, _Progress] = {}

    def add(self, seq: Sequence, now: float) -> None:
        if seq.request.shared is None:
            super().add(seq, now)
        else:
            self._wait_again(seq)

    def cancel(self, seq: Sequence) -> None:
        super().cancel(seq)
        progress = self._progress_of(seq)
        if progress is None:
            return
        kept = [entry for entry in progress.waiting if entry[2] is not seq]
        if len(kept) < len(progress.waiting):
            progress.waiting = kept
            heapq.heapify(kept)
            self._admitted(progress, seq)
        self._unmake(progress, seq)

    @property
    def depth(self) -> tuple[int, int]:
        waiting, running = super().depth
        return waiting + sum(len(progress.waiting) for progress in self._batches.values()), running

    def next_batch(self, now: float, kv: KVManager) -> Batch:
        self._make_room_for_others(kv)
        return super().next_batch(now, kv)

    def on_step(self, batch: Batch, result: StepResult, now: float) -> None:
        super().on_step(batch, result, now)
        for item in batch.items:
            progress = self._progress_of(item.seq)
            if progress is not None:
                self._keep_prefixes(progress, item.seq)
                if item.seq.state is State.FINISHED:
                    self._unmake(progress, item.seq)
        if not any(seq.request.shared is not None for seq in self.running.values()):
            for key, progress in list(self._batches.items()):
                if not progress.waiting:
                    self._forget(progress)
                    del self._batches[key]

    # What `StallFree` asks

    def _prefilling(self) -> list[Sequence]:
        return [seq for seq in super()._prefilling() if seq.request.shared is None]

    def _fill(self, step: Step, kv: KVManager) -> None:
        super()._fill(step, kv)
        for seq in super()._prefilling():
            if seq.request.shared is not None:
                self._add_chunk(step, seq)
        # Who waits in front needs the memory that would be given away here.
        if step.batch.preempted or self.waiting.head() is not None:
            return
        for progress in list(self._batches.values()):
            while self._room(step, 0) and self._admit_next(progress, step, kv):
                pass

    def _victim(self, batch: Batch) -> Sequence:
        """Batches give their pages back before anybody else does."""
        planned = [
            seq for seq in self.running.values() if seq.request.shared is not None and seq.id not in self._in_flight
        ]
        return min(reversed(planned), key=lambda seq: seq.computed) if planned else super()._victim(batch)

    def _wait_again(self, seq: Sequence) -> None:
        if seq.request.shared is None:
            super()._wait_again(seq)
            return
        plan, member = seq.request.shared
        progress = self._progress_of(seq)
        if progress is None:
            progress = self._batches[_key(seq)] = _Progress(plan, [_Prefix(int(users)) for users in plan.users])
        if seq.preemptions:
            self._unmake(progress, seq)
            for prefix in progress.path(seq):
                prefix.left += 1
        heapq.heappush(progress.waiting, (int(plan.rank[member]), seq.index, seq))

    # Batches

    def _progress_of(self, seq: Sequence) -> _Progress | None:
        return None if seq.request.shared is None else self._batches.get(_key(seq))

    def _admit_next(self, progress: _Progress, step: Step, kv: KVManager) -> bool:
        """Admit the first sequence in the batch's order that need not wait for a prefix; whether one was."""
        if len(self.running) >= self.max_num_seqs:
            return False
        passed: list[tuple[int, int, Sequence]] = []
        chosen = None
        while progress.waiting and len(passed) < _LOOK_AHEAD and chosen is None:
            entry = heapq.heappop(progress.waiting)
            if any(prefix.maker is not None and prefix.view is None for prefix in progress.path(entry[2])):
                passed.append(entry)
            else:
                chosen = entry
        if chosen is not None and not self._admit_behind(progress, chosen[2], kv):
            passed.append(chosen)
            chosen = None
        for entry in passed:
            heapq.heappush(progress.waiting, entry)
        if chosen is None:
            return False
        self._add_chunk(step, chosen[2])
        return True

    def _admit_behind(self, progress: _Progress, seq: Sequence, kv: KVManager) -> bool:
        path = progress.path(seq)
        behind = next((prefix.view for prefix in path if prefix.view is not None), None)
        if not kv.can_admit(seq, "full", behind=behind):
            if any(running.request.shared is not None for running in self.running.values()):
                return False
            # Nobody of a batch runs who could make room: contexts kept for later do, its own the last.
            for keep in (behind, None):
                self._forget(progress, but=keep)
                behind = keep
                if kv.can_admit(seq, "full", behind=behind):
                    break
            else:
                return False
        try:
            seq.computed = kv.admit(seq, "full", behind=behind)
        except PoolExhausted:
            return False
        seq.move(State.PREFILL)
        self.running[seq.id] = seq
        for prefix in path:
            if prefix.view is not None:
                break
            prefix.maker = seq
        self._admitted(progress, seq)
        return True

    def _admitted(self, progress: _Progress, seq: Sequence) -> None:
        """`seq` waits for no prefix any more; those that nobody waits for are let go."""
        for prefix in progress.path(seq):
            prefix.left -= 1
            if prefix.left <= 0 and prefix.view is not None:
                prefix.view.release()
                prefix.view = None

    def _keep_prefixes(self, progress: _Progress, seq: Sequence) -> None:
        """What `seq` computed of its shared prefixes can be forked from now on."""
        if seq.view is None or seq.request.shared is None:
            return
        plan, member = seq.request.shared
        for number in plan.path(member):
            prefix = progress.prefixes[number]
            if prefix.maker is seq and seq.computed >= plan.depth[number]:
                prefix.maker = None
                if prefix.left > 0:
                    prefix.view = seq.view.fork()
                    prefix.view.truncate(int(plan.depth[number]))

    def _unmake(self, progress: _Progress, seq: Sequence) -> None:
        """`seq` computes no prefixes for others any more."""
        for prefix in progress.path(seq):
            if prefix.maker is seq:
                prefix.maker = None

    def _forget(self, progress: _Progress, but: KVView | None = None) -> None:
        """Let go of contexts that are kept for sequences to come; they are computed again."""
        for prefix in progress.prefixes:
            if prefix.view is not None and prefix.view is not but:
                prefix.view.release()
                prefix.view = None

    def _make_room_for_others(self, kv: KVManager) -> None:
        """When somebody waits in front and lacks memory, contexts that are kept for batches go, then sequences."""
        head = self.waiting.head()
        if head is None or kv.can_admit(head, self.reserve):
            return
        for progress in self._batches.values():
            self._forget(progress)
        planned = [
            seq for seq in self.running.values() if seq.request.shared is not None and seq.id not in self._in_flight
        ]
        while planned and not kv.can_admit(head, self.reserve):
            self._preempt(planned.pop(), Batch(), kv)
