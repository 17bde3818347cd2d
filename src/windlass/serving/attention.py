"""The one attention primitive: attend to a stretch of context, and merge what several stretches gave.

Shared prefixes, contexts spread over machines, joined branches and sparse selections are all calls to these two
functions: a softmax over a whole context is exactly the merge of the softmaxes over its parts (Dao et al.,
FlashAttention, 2022; Ye et al., Cascade inference, 2024).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import UsageError
from windlass.kernels import span_attention
from windlass.models.page_pool import PagePool
from windlass.serving.kv_view import Span

Floats = NDArray[np.float32]
Part = tuple[Floats, Floats]
"""Means float32 [T, heads, head_dim] and logarithms of the sums of weights float32 [T, heads]."""


def attend(
    queries: Floats, span: Span, pool: PagePool, layer: int, *, visible: NDArray[np.int64] | None = None
) -> Part:
    """Attention of some tokens to one span.

    Args:
        queries: float32 [T, heads, head_dim], rotated.
        span: Where the keys (rotated) and values stand.
        pool: The memory it points into.
        layer: Which.
        visible: int64 [T]: query t sees the first `visible[t]` tokens of the span; None: all of them.

    Raises:
        UsageError: shapes do not fit the pool, or more is to be seen than the span has.
    """
    _, layers, _, key_heads, _, size = (len(pool.data), *pool.shape)
    if queries.ndim != 3 or queries.shape[2] != size or queries.shape[1] % key_heads or not 0 <= layer < layers:
        raise UsageError(f"queries {queries.shape} of layer {layer} do not fit a pool of shape {pool.shape}")
    seen = np.full(len(queries), span.length, np.int64) if visible is None else np.asarray(visible, np.int64)
    if seen.shape != (len(queries),) or (seen < 0).any() or (seen > span.length).any():
        raise UsageError(f"visible must be {len(queries)} numbers from 0 to {span.length}")
    means, logs = np.zeros(queries.shape, np.float32), np.empty(queries.shape[:2], np.float32)
    scores = np.empty((*queries.shape[:2], max(1, int(seen.max(initial=0)))), np.float32)
    span_attention.attend(
        np.ascontiguousarray(queries, np.float32), pool.view(), layer, np.array(span.pages, np.int64), span.start, seen,
        span_attention.half_table(), scores, means, logs,
    )  # fmt: skip
    return means, logs


def merge_lse(parts: Sequence[Part]) -> Part:
    """What attention over all parts together gives; in any grouping and, but for rounding, in any order.

    Raises:
        UsageError: there are no parts, or their shapes differ.
    """
    if not parts or len({part[0].shape for part in parts}) != 1:
        raise UsageError("merging needs parts of one shape, at least one")
    logs = np.stack([part[1] for part in parts]).astype(np.float64)
    top = logs.max(axis=0)
    shift = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(logs - shift)
    total = weights.sum(axis=0)
    means = sum(weight[..., None] * part[0] for weight, part in zip(weights, parts, strict=True))
    with np.errstate(divide="ignore"):
        merged = (np.log(total) + shift).astype(np.float32)
    return (means / np.where(total > 0, total, 1.0)[..., None]).astype(np.float32), merged
