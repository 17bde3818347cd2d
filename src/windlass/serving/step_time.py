"""How long a step takes on this machine, from a few steps measured: what a budget in seconds is computed with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.serving.batch import Batch, BatchExecutor, BatchShape, WorkItem
from windlass.serving.kv import KVManager
from windlass.serving.request import Request, SamplingParams, Sequence, State, tokens_of

CHUNKS = (1, 8, 32, 96)
CONTEXTS = (0, 512)


@dataclass(frozen=True, slots=True)
class LinearStepTime:
    """Seconds of a step as a sum: a fixed part, and so much for each token, row of logits, pair and context token.

    Example:
        >>> LinearStepTime(0.004, 0.001, 0.0, 0.0, 0.0).seconds(BatchShape(10, 1, 50.0, 0))
        0.014
    """

    fixed: float
    token: float
    sample: float
    pair: float
    context: float

    def seconds(self, shape: BatchShape) -> float:
        return (
            self.fixed
            + self.token * shape.tokens
            + self.sample * shape.samples
            + self.pair * shape.prefill_pairs
            + self.context * shape.decode_context
        )

    @staticmethod
    def fit(shapes: Items[BatchShape], seconds: Items[float]) -> LinearStepTime:
        """The sum with the least squared relative error and no negative part.

        Raises:
            UsageError: there are no measurements, or one is not positive.
        """
        if not shapes or len(shapes) != len(seconds) or min(seconds) <= 0:
            raise UsageError("a step time needs measured steps, each with a positive duration")
        rows = np.array([[1, s.tokens, s.samples, s.prefill_pairs, s.decode_context] for s in shapes], np.float64)
        weighted = rows / np.array(seconds)[:, None]
        return LinearStepTime(*(float(part) for part in _non_negative(weighted, np.ones(len(rows)))))


def measure(executor: BatchExecutor, kv: KVManager, *, repeats: int = 2) -> LinearStepTime:
    """Run a few steps of prompts and generations on an idle engine's executor and fit their durations.

    What the pages hold does not matter for the time, so contexts are not computed first.
    """
    shapes, seconds = [], []
    longest = min(executor.caps.context_length, kv.capacity_tokens // 2) - max(CHUNKS) - 1
    for count, context in itertools.product(CHUNKS, sorted({min(context, longest) for context in CONTEXTS})):
        for decodes in (0, 4):
            batch = _batch(kv, count, context, decodes)
            if batch is not None:
                durations = [executor.run(batch).duration_s for _ in range(repeats)]
                shapes.append(BatchShape.of(batch))
                seconds.append(min(durations))
                for item in batch.items:
                    kv.release(item.seq, keep=False)
    return LinearStepTime.fit(shapes, seconds)


def _batch(kv: KVManager, count: int, context: int, decodes: int) -> Batch | None:
    """A chunk of `count` tokens behind `context` tokens, beside `decodes` generations of that context."""
    batch = Batch()
    for number in range(decodes + 1):
        own = 1 if number else count
        prompt = tokens_of([1] * (context + own))
        seq = Sequence(Request(f"measure-{number}", prompt, SamplingParams(max_tokens=0), cache=False))
        if not kv.can_admit(seq):
            for item in batch.items:
                kv.release(item.seq, keep=False)
            return None
        kv.admit(seq)
        assert seq.view is not None
        seq.view.advance(context)
        seq.computed = context
        seq.state = State.DECODE if number else State.PREFILL
        batch.items.append(WorkItem(seq, own, "decode" if number else "prefill", context))
    return batch


def _non_negative(rows: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-negative least squares by trying every set of columns that may be more than zero; there are five."""
    best, least = np.zeros(rows.shape[1]), np.inf
    for kept in itertools.product((False, True), repeat=rows.shape[1]):
        columns = np.flatnonzero(kept)
        if not len(columns):
            continue
        found = np.linalg.lstsq(rows[:, columns], wanted, rcond=None)[0]
        error = float(np.square(rows[:, columns] @ found - wanted).sum())
        if (found >= 0).all() and error < least:
            best, least = np.zeros(rows.shape[1]), error
            best[columns] = found
    return best
