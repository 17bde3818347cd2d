"""Keys and values of a stretch of tokens moved to other places, keys turned from one rotary position to another.

A rotated key is turned on by the angle of the difference, which is exact but for rounding; values do not know where
they stand.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from windlass.kernels.compiled import compiled
from windlass.kernels.cpu_attention import remember, rotate
from windlass.kernels.simd import LANES, load_half, store_float


def angles(frequencies: NDArray[np.float64], delta: int, *, interleaved: bool) -> tuple[Any, Any]:
    """Cosine and sine of each channel for a turn by `delta` positions, float32 [head_dim]; the sine of a pair's first
    channel is negated.

    Args:
        frequencies: Radians a position of each channel pair, [head_dim / 2].
        delta: May be negative.
        interleaved: Whether pairs are neighbours; else they are half a head apart.
    """
    turn = frequencies * delta
    cosine, sine = np.concatenate((np.cos(turn), np.cos(turn))), np.concatenate((-np.sin(turn), np.sin(turn)))
    if interleaved:
        order = np.argsort(np.tile(np.arange(len(frequencies)), 2), kind="stable")
        cosine, sine = cosine[order], sine[order]
    return cosine.astype(np.float32), sine.astype(np.float32)


def reference(keys: NDArray[np.float32], cosine: NDArray[np.float32], sine: NDArray[np.float32], *,
              interleaved: bool) -> NDArray[np.float32]:  # fmt: skip
    """`keys [..., head_dim]`, turned by what `angles` says."""
    size = keys.shape[-1]
    order = np.arange(size) ^ 1 if interleaved else np.roll(np.arange(size), size // 2)
    turned: NDArray[np.float32] = keys * cosine + keys[..., order] * sine
    return turned


@compiled
def place(
    source: Any, layers: int, heads: int, tokens: int, size: int, first: int, count: int, cosine: Any, sine: Any,
    interleaved: bool, data: Any, page_tokens: int, pages: Any, start: int,
) -> None:  # fmt: skip
    """Write tokens `first` to `first + count` of a stretch into pages, their keys turned.

    Args:
        source: uint16 bits of float16, flat [layers, 2, heads, tokens, size]: keys, then values.
        cosine, sine: As `angles`.
        data: uint16, the pool, flat [pages, layers, 2, heads, page_tokens, size].
        pages, start: The pages written to, and the slot of the first of them where the first token goes.
    """
    twice, turned, one = np.empty(2 * size, np.float32), np.empty(size, np.float32), 1.0
    for at in range(count):
        page, row = pages[(start + at) // page_tokens], (start + at) % page_tokens
        for layer in range(layers):
            for head in range(heads):
                key_from = ((layer * 2 * heads + head) * tokens + first + at) * size
                value_from = key_from + heads * tokens * size
                key_to = (((page * layers + layer) * 2 * heads + head) * page_tokens + row) * size
                value_to = key_to + heads * page_tokens * size
                for i in range(0, size, LANES):
                    value = load_half(source, key_from + i)
                    store_float(twice, i, value)
                    store_float(twice, size + i, value)
                rotate(twice, 0, size, cosine, sine, 0, interleaved, one, turned, 0)
                remember(turned, 0, size, data, key_to)
                for i in range(size):
                    data[value_to + i] = source[value_from + i]
