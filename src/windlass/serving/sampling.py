"""From logits to tokens. What a sequence draws depends on its own logits, options and place, never on its batch mates.

In this order: penalties, biases, mask, temperature, top-k, top-p, min-p, and a draw with a random number that is a
function of (seed, answer, place). Log-probabilities are of the distribution before any of it.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import NumericsError, UsageError, WindlassError
from windlass.core.randomness import rand
from windlass.serving.batch import Sampled
from windlass.serving.request import SamplingParams, Sequence

Floats = NDArray[np.float32]
_HEAD = 1024


def sample(logits: Floats, sequences: Items[Sequence]) -> list[Sampled | WindlassError]:
    """The next token of each sequence.

    Args:
        logits: float32 [len(sequences), vocab].
        sequences: Whose logits they are.

    Returns:
        For each sequence its token, or why there is none.
    """
    best = logits.argmax(axis=1) if len(sequences) else np.zeros(0, np.int64)
    # argmax stops at a NaN, so one look at the winner sees any; a winner of infinity is no better.
    sound = np.isfinite(logits[np.arange(len(sequences)), best])
    made: list[Sampled | WindlassError] = []
    for row, seq in enumerate(sequences):
        params = seq.request.params
        if not sound[row]:
            made.append(not_numbers(seq.id))
        elif params.plain_greedy and params.logprobs is None:
            made.append(Sampled(int(best[row])))
        else:
            allowed = None if seq.constraint is None else seq.constraint.allowed()
            if allowed is not None and not allowed.any():
                made.append(UsageError(f"no token may follow in {seq.id}", hint="the answer is nested too deep"))
            else:
                made.append(with_logprobs(logits[row], draw(logits[row], seq, allowed), params.logprobs))
    return made


def not_numbers(name: str) -> NumericsError:
    """Why sequence `name` cannot go on."""
    return NumericsError(f"the model computed logits that are no numbers for {name}")


def draw(logits: Floats, seq: Sequence, allowed: NDArray[np.bool_] | None = None) -> int:
    """The next token by `logits` [vocab]."""
    params = seq.request.params
    if params.reshapes or allowed is not None:
        logits = _reshaped(logits, seq, allowed)
    if params.temperature == 0:
        return int(logits.argmax())
    ids, weights = candidates(logits, params)
    target = rand(params.seed, "sample", seq.index, seq.made) * weights.sum()
    place = int(np.searchsorted(np.cumsum(weights), target, side="right"))
    return int(ids[min(place, len(ids) - 1)])


def candidates(logits: Floats, params: SamplingParams) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Tokens that may be drawn, by id, and weights in proportion to their probabilities."""
    scaled = logits.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    ids = np.flatnonzero(weights)
    if params.top_k:
        ids = _heaviest(weights, ids, params.top_k)
    if params.top_p < 1:
        ids = _nucleus(weights, ids, params.top_p)
    if params.min_p:
        ids = ids[weights[ids] >= params.min_p * weights[ids].max()]
    return ids, weights[ids]


def with_logprobs(logits: Floats, token: int, wanted: int | None) -> Sampled:
    """`token` with its log-probability, and those of the `wanted` likeliest tokens (ties by id)."""
    if wanted is None:
        return Sampled(token)
    top = float(logits.max())
    total = top + float(np.log(np.exp(logits.astype(np.float64) - top).sum()))
    likeliest = _heaviest(logits, np.arange(len(logits)), wanted) if wanted else np.zeros(0, np.int64)
    likeliest = likeliest[np.argsort(-logits[likeliest], kind="stable")]
    return Sampled(
        token, float(logits[token]) - total, tuple((int(other), float(logits[other]) - total) for other in likeliest)
    )


def _reshaped(logits: Floats, seq: Sequence, allowed: NDArray[np.bool_] | None) -> Floats:
    params, shaped = seq.request.params, logits.copy()
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.asarray(seq.tokens, np.int64))
        values = shaped[seen]
        shaped[seen] = np.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        made, times = np.unique(np.asarray(seq.tokens[seq.prompt_length :], np.int64), return_counts=True)
        shaped[made] -= (params.presence_penalty + params.frequency_penalty * times).astype(np.float32)
    for token, bias in params.logit_bias.items():
        if 0 <= token < len(shaped):
            shaped[token] += np.float32(bias)
    if allowed is not None:
        shaped[~allowed] = -np.inf
    return shaped


def _heaviest(weights: NDArray[np.floating], ids: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The `count` of `ids` with the largest weights, by id; of equal ones the lower ids."""
    if count >= len(ids):
        return ids
    values = weights[ids]
    least = np.partition(values, len(values) - count)[len(values) - count]
    above, equal = ids[values > least], ids[values == least]
    return np.sort(np.concatenate((above, equal[: count - len(above)])))


def _nucleus(weights: NDArray[np.float64], ids: NDArray[np.int64], top_p: float) -> NDArray[np.int64]:
    """The fewest of `ids`, largest weights first, that hold `top_p` of their weight; by id."""
    needed = top_p * float(weights[ids].sum())
    # Sorting the whole vocabulary takes milliseconds, and the first thousand nearly always hold enough.
    for size in (_HEAD, len(ids)):
        head = _heaviest(weights, ids, size)
        order = head[np.argsort(-weights[head], kind="stable")]
        mass = np.cumsum(weights[order])
        if mass[-1] >= needed or size >= len(ids):
            return np.sort(order[: int(np.searchsorted(mass, needed)) + 1])
    return ids
