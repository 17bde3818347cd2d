"""What a scheduler decides, what an executor returns, and the two protocols between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from windlass.serving.kv import KVManager
from windlass.serving.request import Sequence

Kind = Literal["prefill", "decode", "probe"]
"""Tokens of a prompt, a token of an answer, or tokens that only look at what was taken from chunks, to be computed
again afterwards.
"""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """The next `n_tokens` tokens that a sequence is to compute, from token `start` on.

    `places` says which tokens they are when they are not neighbours: those between them were taken from chunks.
    """

    seq: Sequence
    n_tokens: int
    kind: Kind
    start: int
    places: NDArray[np.int64] | None = None

    @staticmethod
    def next_of(seq: Sequence, count: int, kind: Kind) -> WorkItem:
        """The next tokens of `seq`, `count` at most."""
        if seq.todo is None:
            return WorkItem(seq, count, kind, seq.computed)
        places = seq.todo[:count]
        if seq.reuse is not None and seq.reuse.probing:
            before = places[places < seq.reuse.exact]
            places, kind = (before, kind) if len(before) else (places, "probe")
        return WorkItem(seq, len(places), kind, seq.computed, places)

    @property
    def indices(self) -> NDArray[np.int64]:
        """Which tokens of the sequence these are, int64 [n_tokens]."""
        return np.arange(self.start, self.start + self.n_tokens) if self.places is None else self.places

    @property
    def stop(self) -> int:
        """The token behind the last one computed."""
        return self.start + self.n_tokens if self.places is None else int(self.places[-1]) + 1

    @property
    def samples(self) -> bool:
        """Whether the step ends with a new token: the last known one is among those computed."""
        return self.kind != "probe" and self.stop == len(self.seq.tokens)

    @property
    def rated(self) -> range:
        """Places of prompt tokens whose chances this item finds: each follows one of its tokens."""
        if self.seq.request.params.prompt_logprobs is None or self.seq.index or self.places is not None:
            return range(0)
        return range(self.start + 1, min(self.start + self.n_tokens + 1, self.seq.prompt_length))

    @property
    def rows(self) -> int:
        """Rows of logits that it needs."""
        return len(self.rated) + self.samples


@dataclass(slots=True)
class Batch:
    """One step. `preempted` lost their pages to make room for it; `dropped` will never run."""

    items: list[WorkItem] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    dropped: list[Sequence] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return sum(item.n_tokens for item in self.items)


@dataclass(frozen=True, slots=True)
class BatchShape:
    """All that the duration of a step depends on.

    Attributes:
        tokens: Tokens computed.
        samples: Rows of logits.
        prefill_pairs: Query-key pairs of prompt chunks: sum of `n * (start + stop) / 2`.
        decode_context: Context tokens read by decoding sequences.
    """

    tokens: int
    samples: int
    prefill_pairs: float
    decode_context: int

    @staticmethod
    def of(batch: Batch) -> BatchShape:
        pairs, context = 0.0, 0
        for item in batch.items:
            if item.kind == "decode":
                context += item.start + 1
            else:
                # Places are spread over what lies between them, roughly evenly.
                pairs += item.n_tokens * (item.start + item.stop) / 2
        return BatchShape(batch.n_tokens, sum(item.rows for item in batch.items), pairs, context)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A new token. `logprob` and the likeliest alternatives are of the unchanged distribution, when asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class StepResult:
    """What a step made.

    Attributes:
        tokens: New tokens by sequence id, for items that sample.
        duration_s: How long it took, on the executor's clock.
        failed: Errors by sequence id; the others of the batch are not affected.
        rated: Tokens of prompts by place, where their chances are wanted; by sequence id.
        shares: What computed tokens attended to, by sequence id, for sequences that asked (`Sequence.reuse`): float32
            [n_tokens, stretches].
        counters: Further figures of the executor's own.
    """

    tokens: dict[str, Sampled]
    duration_s: float
    failed: dict[str, Exception] = field(default_factory=dict)
    rated: dict[str, dict[int, Sampled]] = field(default_factory=dict)
    shares: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)


class Scheduler(Protocol):
    """Decides what the next step computes. It reads no clock, does no I/O, draws no random numbers: `now` is told."""

    def add(self, seq: Sequence, now: float) -> None:
        """A sequence begins to wait."""

    def cancel(self, seq: Sequence) -> None:
        """Forget a sequence; its pages are the engine's business."""

    def next_batch(self, now: float, kv: KVManager) -> Batch:
        """What to compute now; empty when there is nothing to do."""
        ...

    def on_step(self, batch: Batch, result: StepResult, now: float) -> None:
        """A batch is done: tokens are appended, finished sequences marked as such."""

    @property
    def depth(self) -> tuple[int, int]:
        """Sequences that wait, and that run."""
        ...


@dataclass(frozen=True, slots=True)
class ExecutorCaps:
    """What an executor can do.

    Attributes:
        device: `cpu`, `cuda`, or `simulated`.
        max_tokens_per_step: Largest batch it takes.
        context_length: Tokens of the longest sequence.
    """

    device: str
    max_tokens_per_step: int
    context_length: int


class BatchExecutor(Protocol):
    """Runs batches: computes keys, values and logits of every item, and samples where an item ends its sequence."""

    @property
    def caps(self) -> ExecutorCaps: ...

    def run(self, batch: Batch) -> StepResult:
        """Compute a batch. It changes nothing about the sequences: that is the engine's."""
        ...
