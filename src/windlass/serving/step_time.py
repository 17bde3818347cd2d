"""Steps of this machine's model, measured on an idle engine: what a budget in seconds is computed with."""

from __future__ import annotations

import itertools
import math

from windlass.serving.batch import Batch, BatchExecutor, BatchShape, WorkItem
from windlass.serving.cost import MeasuredStep, StepFit, fit_steps
from windlass.serving.kv import KVManager
from windlass.serving.request import Request, SamplingParams, Sequence, State, tokens_of

CHUNKS = (1, 8, 32, 96)
CONTEXTS = (0, 512)
DECODES = (0, 4)


def measure(executor: BatchExecutor, kv: KVManager, *, repeats: int = 2, seconds: float = math.inf) -> StepFit:
    """What steps take here, fitted to `measured_steps`."""
    return fit_steps(measured_steps(executor, kv, repeats=repeats, seconds=seconds))


def measured_steps(
    executor: BatchExecutor, kv: KVManager, *, repeats: int = 2, seconds: float = math.inf
) -> list[MeasuredStep]:
    """Run a few steps of prompts and generations on the executor of an idle engine.

    What the pages hold does not matter for the time, so contexts are not computed first. The fastest of the repeats
    counts; nothing is repeated any more once the steps took `seconds` together.

    Raises:
        UsageError: the memory is too small for eight different steps.
    """
    longest = max(0, min(executor.caps.context_length, kv.capacity_tokens // (max(DECODES) + 2)) - max(CHUNKS) - 1)
    contexts = sorted({min(context, longest) for context in CONTEXTS})
    steps, spent = [], 0.0
    for chunk, context, decodes in itertools.product(CHUNKS, contexts, DECODES):
        batch = _batch(kv, chunk, context, decodes)
        shortest = math.inf
        for repeat in range(repeats):
            if repeat and spent > seconds:
                break
            took = executor.run(batch).duration_s
            shortest, spent = min(shortest, took), spent + took
        steps.append(MeasuredStep(BatchShape.of(batch), shortest))
        for item in batch.items:
            kv.release(item.seq, keep=False)
    return steps


def warm_up(executor: BatchExecutor, kv: KVManager) -> None:
    """Run one step of every kind of work, which compiles what this machine has not compiled yet."""
    batch = _batch(kv, max(CHUNKS), 0, max(DECODES))
    executor.run(batch)
    for item in batch.items:
        kv.release(item.seq, keep=False)


def _batch(kv: KVManager, chunk: int, context: int, decodes: int) -> Batch:
    """A chunk of a prompt behind `context` tokens, beside `decodes` generations of that context."""
    batch = Batch()
    for number in range(decodes + 1):
        own = 1 if number else chunk
        prompt = tokens_of([1] * (context + own))
        seq = Sequence(Request(f"measure-{number}", prompt, SamplingParams(max_tokens=0), cache=False))
        kv.admit(seq)
        assert seq.view is not None
        seq.view.advance(context)
        seq.computed = context
        seq.state = State.DECODE if number else State.PREFILL
        batch.items.append(WorkItem(seq, own, "decode" if number else "prefill", context))
    return batch
