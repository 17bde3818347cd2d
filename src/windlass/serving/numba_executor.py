"""Runs batches on the model of this machine: one pass over the weights for everything in a batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import AdapterNotFound
from windlass.models.adapter_tables import TokenAdapters
from windlass.models.config import ModelConfig
from windlass.models.key_sketch import SparseReading
from windlass.models.page_pool import PagePool
from windlass.models.token_batch import AttentionMass, TokenBatch
from windlass.serving.adapters import EngineAdapters
from windlass.serving.batch import Batch, ExecutorCaps, Sampled, StepResult, WorkItem
from windlass.serving.sampling import Floats, not_numbers, sample, with_logprobs
from windlass.serving.sparse_kv import SparseReader


class PagedModel(Protocol):
    """A decoder that computes tokens of many sequences over paged memory; `models.cpu_engine.CpuEngine` is one."""

    config: ModelConfig

    def forward_tokens(
        self,
        batch: TokenBatch,
        pool: PagePool,
        adapters: TokenAdapters | None = None,
        mass: AttentionMass | None = None,
        sparse: SparseReading | None = None,
    ) -> Floats:
        """float32 [len(batch.out_rows), vocab]. `adapters` is given only when a token has one, `mass` when a sequence
        wants to know what its tokens attend to, `sparse` when a token does not read everything.
        """
        ...


@runtime_checkable
class GreedyPagedModel(Protocol):
    """One that finds the likeliest tokens without computing all logits."""

    def forward_greedy(
        self,
        batch: TokenBatch,
        pool: PagePool,
        adapters: TokenAdapters | None = None,
        mass: AttentionMass | None = None,
        sparse: SparseReading | None = None,
    ) -> NDArray[np.int64]:
        """int64 [len(batch.out_rows)]."""
        ...


class NumbaExecutor:
    """The real model, on the processor. Batches that need no logits do not compute them all.

    Args:
        model: Computes a batch of tokens.
        pool: The memory it writes; the one that the engine's `KVManager` hands out.
        adapters: What requests with an adapter run with; None: such requests fail.
        sparse: Which part of long contexts is read; None: all.
        clock: Seconds, for the durations it reports.
        most_tokens: Largest batch.
    """

    def __init__(
        self,
        model: PagedModel,
        pool: PagePool,
        *,
        adapters: EngineAdapters | None = None,
        sparse: SparseReader | None = None,
        clock: Callable[[], float] = time.perf_counter,
        most_tokens: int = 4096,
    ) -> None:
        self._model, self._pool, self._clock = model, pool, clock
        self._adapters, self._sparse = adapters, sparse
        self.caps = ExecutorCaps("cpu", most_tokens, model.config.max_position)

    def run(self, batch: Batch) -> StepResult:
        started = self._clock()
        options, failed = self._adapters_of(batch.items)
        if failed:
            batch = Batch([item for item in batch.items if item.seq.id not in failed])
        if not batch.items:
            return StepResult({}, self._clock() - started, failed=failed)
        mass = attention_mass(batch.items)
        if mass is not None:
            options["mass"] = mass
        reading = self._sparse.of(batch.items) if self._sparse is not None else None
        if reading is not None:
            options["sparse"] = reading
        if isinstance(self._model, GreedyPagedModel) and only_greedy(batch):
            result = self._run_greedy(self._model, batch, options)
        else:
            result = run_batch(
                batch, lambda tokens: self._model.forward_tokens(tokens, self._pool, **options), self._clock
            )
        if mass is not None:
            with_shares(result, batch.items, mass)
        result.failed |= failed
        result.duration_s = self._clock() - started
        return result

    def _run_greedy(self, model: GreedyPagedModel, batch: Batch, options: dict[str, Any]) -> StepResult:
        result = StepResult({}, 0.0)
        ids = model.forward_greedy(token_batch(batch.items), self._pool, **options).tolist()
        sampling = [item.seq.id for item in batch.items if item.samples]
        for name, token in zip(sampling, ids, strict=True):
            if token < self._model.config.vocab_size:
                result.tokens[name] = Sampled(token)
            else:
                result.failed[name] = not_numbers(name)
        return result

    def _adapters_of(self, items: list[WorkItem]) -> tuple[dict[str, Any], dict[str, Exception]]:
        """What the model is told about adapters, if there is anything to tell; and who cannot run without theirs."""
        named = [item.seq for item in items if item.seq.request.adapter is not None]
        if not named:
            return {}, {}
        if self._adapters is None:
            return {}, {seq.id: AdapterNotFound("this engine has no adapters") for seq in named}
        adapters, failed = self._adapters.prepare(items)
        return {"adapters": adapters}, {
            seq.id: failed[seq.request.adapter or ""] for seq in named if seq.request.adapter in failed
        }


def only_greedy(batch: Batch) -> bool:
    """Whether nobody in the batch needs logits: every new token is the likeliest, and none is to be rated."""
    wanted = (item.seq.request.params for item in batch.items if item.samples)
    rated = any(item.rated for item in batch.items)
    return not rated and all(params.plain_greedy and params.logprobs is None for params in wanted)


def run_batch(batch: Batch, forward: Callable[[TokenBatch], Floats], clock: Callable[[], float]) -> StepResult:
    """Compute a batch with `forward`, which returns float32 logits [len(out_rows), vocab], and sample from them."""
    started = clock()
    logits = forward(token_batch(batch.items))
    sampling = [item.seq for item in batch.items if item.samples]
    result = StepResult({}, 0.0)
    if len(logits) > len(sampling):
        logits = _rate_prompts(batch, logits, result)
    for seq, made in zip(sampling, sample(logits, sampling), strict=True):
        if isinstance(made, Sampled):
            result.tokens[seq.id] = made
        else:
            result.failed[seq.id] = made
    result.duration_s = clock() - started
    return result


def _rate_prompts(batch: Batch, logits: Floats, result: StepResult) -> Floats:
    """Note the chances of prompt tokens that were asked for; the rows that new tokens are sampled from."""
    row, sampled = 0, []
    for item in batch.items:
        seq, wanted = item.seq, item.seq.request.params.prompt_logprobs
        for place in item.rated:
            result.rated.setdefault(seq.id, {})[place] = with_logprobs(logits[row], seq.tokens[place], wanted)
            row += 1
        if item.samples:
            sampled.append(row)
            row += 1
    rows: Floats = logits[sampled]
    return rows


def attention_mass(items: list[WorkItem]) -> AttentionMass | None:
    """Room for what the tokens of a batch attend to; None when no sequence asks."""
    bounds = [
        () if item.kind == "decode" or item.seq.reuse is None
        else range(1, item.stop + 1) if item.kind == "probe"
        else item.seq.reuse.bounds
        for item in items
    ]  # fmt: skip
    return AttentionMass.over(bounds, sum(item.n_tokens for item in items)) if any(bounds) else None


def with_shares(result: StepResult, items: list[WorkItem], mass: AttentionMass) -> StepResult:
    """`result`, with each sequence's part of what was noted."""
    ends = np.cumsum([item.n_tokens for item in items])
    for row, (item, end) in enumerate(zip(items, ends, strict=True)):
        stretches = int(mass.offsets[row + 1] - mass.offsets[row])
        if stretches:
            result.shares[item.seq.id] = mass.shares[end - item.n_tokens : end, :stretches]
    return result


def token_batch(items: list[WorkItem]) -> TokenBatch:
    """The arrays of a batch: each item is a row of the context table."""
    counts = np.array([item.n_tokens for item in items], np.int64)
    parts: dict[str, list[Any]] = {"ids": [], "positions": [], "slots": [], "visible": []}
    runs: list[Any] = []
    for item in items:
        view, ahead = item.seq.view, item.indices - item.start
        assert view is not None
        parts["ids"].append(np.array(item.seq.tokens[item.start : item.stop], np.int64)[ahead])
        parts["positions"].append(view.next_position + ahead)
        parts["slots"].append(view.slots(ahead))
        parts["visible"].append(view.n_tokens + 1 + ahead)
        runs.append(view.runs(item.stop - item.start))
    pages, starts, lengths = (np.concatenate([run[part] for run in runs]) for part in range(3))
    ends = np.cumsum(counts)
    return TokenBatch(
        **{name: np.concatenate(arrays) for name, arrays in parts.items()},
        rows=np.repeat(np.arange(len(items), dtype=np.int64), counts),
        context_pages=pages,
        context_starts=starts,
        context_lengths=lengths,
        context_offsets=np.concatenate(([0], np.cumsum([len(run[0]) for run in runs]))).astype(np.int64),
        out_rows=np.concatenate([_out_rows(item, end - item.n_tokens) for item, end in zip(items, ends, strict=True)]),
    )


def _out_rows(item: WorkItem, begin: int) -> NDArray[np.int64]:
    """Tokens of an item whose logits are wanted; its first is token `begin` of the batch."""
    rated = begin - 1 - item.start + np.array(item.rated, np.int64)
    return np.append(rated, begin + item.n_tokens - 1) if item.samples else rated
