"""Attention over one stretch of paged keys and values, with what is needed to merge it with other stretches.

For every query and head: the weighted mean of the values it sees, and the logarithm of the sum of its weights.
`reference` is NumPy, `attend` the same compiled: each key and value is read once for all queries and heads that
share it.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.compiled import compiled

Floats = NDArray[np.float32]


def reference(queries: Floats, keys: Floats, values: Floats, visible: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The obvious way.

    Args:
        queries: float32 [T, heads, head_dim].
        keys, values: float32 [S, key_heads, head_dim]; heads is a multiple of key_heads.
        visible: int64 [T]: query t sees the first `visible[t]` slots.

    Returns:
        float32 [T, heads, head_dim] means (zeros where nothing is seen) and float32 [T, heads] logarithms (-inf there).
    """
    _, heads, size = queries.shape
    group = heads // keys.shape[1]
    wide_keys, wide_values = (np.repeat(part.astype(np.float64), group, axis=1) for part in (keys, values))
    scores = np.einsum("thd,shd->ths", queries.astype(np.float64), wide_keys) / math.sqrt(size)
    hidden = np.arange(len(keys))[None, :] >= visible[:, None]
    scores = np.where(hidden[:, None, :], -np.inf, scores)
    top = scores.max(axis=2, initial=-np.inf, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=2)
    means = np.einsum("ths,shd->thd", weights, wide_values) / np.where(total > 0, total, 1.0)[..., None]
    with np.errstate(divide="ignore"):
        logs = np.log(total) + np.where(np.isfinite(top), top, 0.0)[..., 0]
    return means.astype(np.float32), logs.astype(np.float32)


@cache
def half_table() -> Floats:
    """The float32 value of every half-precision bit pattern; [65536]."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


@compiled
def attend(
    queries: Any, stored: Any, layer: int, pages: Any, start: int, visible: Any, halves: Any, scores: Any, means: Any,
    logs: Any,
) -> None:  # fmt: skip
    """As `reference`, over bits of half-precision numbers in pages.

    Args:
        queries: float32 [T, heads, head_dim].
        stored: uint16 [pages, layers, 2, key_heads, page_tokens, head_dim].
        layer: Which.
        pages, start: int64 [P], and the slot of the first of them where the stretch begins.
        visible: int64 [T], at most what the pages hold from `start` on.
        halves: `half_table()`.
        scores: float32 scratch [T, heads, max(visible)].
        means, logs: The results.
    """
    tokens, heads, size = queries.shape
    key_heads, page_tokens = stored.shape[3], stored.shape[4]
    group = heads // key_heads
    scale = np.float32(1.0 / math.sqrt(size))
    row = np.empty(size, np.float32)
    longest = 0
    for token in range(tokens):
        longest = max(longest, visible[token])
    for key_head in range(key_heads):
        for slot in range(longest):
            page, place = pages[(start + slot) // page_tokens], (start + slot) % page_tokens
            for i in range(size):
                row[i] = halves[stored[page, layer, 0, key_head, place, i]]
            for token in range(tokens):
                if slot < visible[token]:
                    for head in range(key_head * group, (key_head + 1) * group):
                        total = np.float32(0)
                        for i in range(size):
                            total += queries[token, head, i] * row[i]
                        scores[token, head, slot] = total * scale
        for token in range(tokens):
            for head in range(key_head * group, (key_head + 1) * group):
                logs[token, head] = _soften(scores[token, head], visible[token])
                for i in range(size):
                    means[token, head, i] = np.float32(0)
        for slot in range(longest):
            page, place = pages[(start + slot) // page_tokens], (start + slot) % page_tokens
            for i in range(size):
                row[i] = halves[stored[page, layer, 1, key_head, place, i]]
            for token in range(tokens):
                if slot < visible[token]:
                    for head in range(key_head * group, (key_head + 1) * group):
                        weight = scores[token, head, slot]
                        for i in range(size):
                            means[token, head, i] += weight * row[i]


@compiled
def _soften(scores: Any, count: int) -> float:
    """Turn scores into weights that sum to one; the logarithm of what they summed to before."""
    if count == 0:
        return -np.inf
    top = scores[0]
    for slot in range(count):
        top = max(top, scores[slot])
    total = 0.0
    for slot in range(count):
        scores[slot] = math.exp(scores[slot] - top)
        total += scores[slot]
    share = np.float32(1.0 / total)
    for slot in range(count):
        scores[slot] *= share
    return float(math.log(total) + top)
