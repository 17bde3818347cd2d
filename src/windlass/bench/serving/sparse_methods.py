"""Which tokens each method of sparse attention reads, computed plainly: one layer at a time, on the NumPy decoder.

All methods have the same budget. `history` is ALISA's own rule: the newest tokens and those with most attention over
the last steps, weights counted only where a token was read. `h2o` is the same with attention summed from the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from windlass.models.activations import rms_norm, softmax
from windlass.models.decoder import Decoder, rotate

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SINKS = 4
PAGE = 16


class Method:
    """Chooses the tokens that a step reads in one layer; `reset` begins a text."""

    name = "dense"

    def reset(self, seed_attention: Floats) -> None:
        """Attention of the last prompt tokens over the prompt, float32 [rows, prompt], summed over heads."""

    def choose(self, queries: Floats, keys: Floats, budget: int) -> Ints:
        """Ascending places among `keys` [stored, key_heads, size]; the newest is always read."""
        return np.arange(len(keys))

    def note(self, chosen: Ints, weights: Floats) -> None:
        """Attention of the step over `chosen`, summed over heads."""


class LocalAndSinks(Method):
    name = "local + sinks"

    def choose(self, queries: Floats, keys: Floats, budget: int) -> Ints:
        stored = len(keys)
        return np.concatenate((np.arange(SINKS), np.arange(stored - budget + SINKS, stored)))


class Strided(Method):
    name = "strided"

    def choose(self, queries: Floats, keys: Floats, budget: int) -> Ints:
        stored = len(keys)
        near, far = budget // 2, budget - budget // 2
        older = np.unique(np.linspace(0, stored - near - 1, far).astype(np.int64))
        return np.concatenate((older, np.arange(stored - near, stored)))


class HeavyHitters(Method):
    name = "H2O"

    def __init__(self) -> None:
        self._sums = np.zeros(0, np.float64)

    def reset(self, seed_attention: Floats) -> None:
        self._sums = seed_attention.sum(axis=0).astype(np.float64)

    def choose(self, queries: Floats, keys: Floats, budget: int) -> Ints:
        return _newest_and_best(self._importance(len(keys)), budget)

    def note(self, chosen: Ints, weights: Floats) -> None:
        sums = self._importance(int(chosen[-1]) + 1)
        sums[chosen] += weights
        self._sums = sums

    def _importance(self, stored: int) -> NDArray[np.float64]:
        return np.concatenate((self._sums, np.zeros(stored - len(self._sums))))


class History(Method):
    name = "history (ALISA)"

    def __init__(self) -> None:
        self._rows: list[tuple[Ints, Floats]] = []

    def reset(self, seed_attention: Floats) -> None:
        self._rows = [(np.arange(len(row)), row) for row in seed_attention]

    def choose(self, queries: Floats, keys: Floats, budget: int) -> Ints:
        importance = np.zeros(len(keys))
        for places, weights in self._rows[-(budget // 2) :]:
            importance[places] += weights
        return _newest_and_best(importance, budget)

    def note(self, chosen: Ints, weights: Floats) -> None:
        self._rows.append((chosen, weights))


def _newest_and_best(importance: NDArray[np.float64], budget: int) -> Ints:
    stored = len(importance)
    near = budget // 2
    older = importance[: stored - near]
    best = np.lexsort((np.arange(len(older)), -older))[: budget - near]
    return np.concatenate((np.sort(best), np.arange(stored - near, stored)))


def log_likelihoods(decoder: Decoder, tokens: Ints, prompt: int, ratio: float, make: Callable[[], Method]) -> Floats:
    """Log-likelihood of each token behind the prompt, float32 [len(tokens) - prompt], each step reading `ratio`."""
    config, eps = decoder.config, decoder.config.norm_eps
    heads, key_heads, size = config.n_heads, config.n_kv_heads, config.head_dim
    keys = np.zeros((config.n_layers, len(tokens), key_heads, size), np.float32)
    values = np.zeros_like(keys)
    methods = [make() for _ in range(config.n_layers)]
    found = np.zeros(len(tokens) - prompt, np.float32)

    def forward(low: int, high: int) -> Floats:
        angles = np.arange(low, high)[:, None] * decoder._frequencies
        rotation = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        x = decoder._embedding[tokens[low:high]]
        for index, layer in enumerate(decoder._layers):
            qkv = layer.qkv(rms_norm(x, layer.attn_norm, eps)).reshape(len(x), -1, size)
            queries = rotate(qkv[:, :heads], rotation, config.rope_style)
            keys[index, low:high] = rotate(qkv[:, heads : heads + key_heads], rotation, config.rope_style)
            values[index, low:high] = qkv[:, heads + key_heads :]
            mixed = _attend(queries, keys[index, :high], values[index, :high], methods[index], ratio, low)
            x = x + layer.output(mixed.reshape(len(x), -1))
            x = x + decoder._feed_forward(rms_norm(x, layer.ffn_norm, eps), layer.ffn, index)
        logits: Floats = decoder._to_logits(x[-1:])[0]
        return logits

    logits = forward(0, prompt)
    for place in range(prompt, len(tokens)):
        top = logits.max()
        found[place - prompt] = logits[tokens[place]] - top - math.log(float(np.exp(logits - top).sum()))
        if place + 1 < len(tokens):
            logits = forward(place, place + 1)
    return found


def _attend(queries: Floats, keys: Floats, values: Floats, method: Method, ratio: float, low: int) -> Floats:
    group = queries.shape[1] // keys.shape[1]
    chosen = np.arange(len(keys))
    if len(queries) == 1:
        chosen = method.choose(queries[0], keys, round(ratio * len(keys)))
    wide_keys, wide_values = (np.repeat(part[chosen], group, axis=1) for part in (keys, values))
    scores = np.matmul(queries.transpose(1, 0, 2), wide_keys.transpose(1, 2, 0)) / np.float32(math.sqrt(keys.shape[2]))
    if len(queries) > 1:
        hidden = np.arange(len(keys))[None, :] > low + np.arange(len(queries))[:, None]
        scores = np.where(hidden, np.float32(-np.inf), scores)
    weights = softmax(scores)
    if len(queries) > 1:
        method.reset(weights[:, -max(1, round(ratio * len(keys) / 2)) :].sum(axis=0))
    else:
        method.note(chosen, weights[:, 0].sum(axis=0))
    mixed: Floats = np.matmul(weights, wide_values.transpose(1, 0, 2)).transpose(1, 0, 2)
    return mixed


def perplexity(likelihoods: Sequence[Floats]) -> float:
    """Of all tokens of several texts."""
    return math.exp(-float(np.concatenate(likelihoods).mean()))
