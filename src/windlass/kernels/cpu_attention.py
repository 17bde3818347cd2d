"""Attention of new tokens over a paged half-precision cache, and the small float work around it.

A page holds 16 positions of one layer and one key head: keys as `[head_dim][16]`, so that 16 scores come out of
plain multiplications without adding up lanes, values as `[16][head_dim]`. A sequence is a list of page numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, caller, compiled, inlined, pasted
from windlass.kernels.simd import (
    LANES,
    add_float,
    div_float,
    exp_float,
    fma,
    load_float,
    load_half,
    max_float,
    max_lanes,
    mul_float,
    repeat,
    splat,
    store_float,
    store_half,
    sum_lanes,
    zero_float,
)

PAGE = 16
"""Positions in a page."""


@inlined
def normalize(x: Any, x_at: int, size: int, weights: Any, weight_at: int, eps: float, out: Any, out_at: int) -> None:
    """RMS norm of `size` numbers (a multiple of 16) of `x` into `out`; they may be the same place."""
    total = zero_float()
    for i in range(0, size, LANES):
        value = load_float(x, x_at + i)
        total = fma(value, value, total)
    factor = splat(np.float32(1.0 / math.sqrt(sum_lanes(total) / np.float32(size) + eps)))
    for i in range(0, size, LANES):
        scaled = mul_float(load_float(x, x_at + i), factor)
        store_float(out, out_at + i, mul_float(scaled, load_float(weights, weight_at + i)))


@inlined
def gate(gates: Any, gates_at: int, ups: Any, ups_at: int, out: Any, out_at: int) -> None:
    """`silu(gate) * up` of 16 numbers."""
    for i in range(0, 16, LANES):
        value = load_float(gates, gates_at + i)
        decay = exp_float(mul_float(value, splat(np.float32(-1))))
        sigmoid = div_float(splat(np.float32(1)), add_float(splat(np.float32(1)), decay))
        store_float(out, out_at + i, mul_float(mul_float(value, sigmoid), load_float(ups, ups_at + i)))


@inlined
def rotate(x: Any, at: int, size: int, cosine: Any, sine: Any, angle_at: int, interleaved: bool) -> None:
    """Turn the channel pairs of one head in place."""
    half = size // 2
    for pair in range(half):
        first, second = (at + 2 * pair, at + 2 * pair + 1) if interleaved else (at + pair, at + pair + half)
        a, b = x[first], x[second]
        c, s = cosine[angle_at + pair], sine[angle_at + pair]
        x[first] = a * c - b * s
        x[second] = b * c + a * s


@pasted
def page_start(layer: int, page: int, head: int, pages: int, heads: int, size: int) -> int:
    """First element of a page in the flat cache `[layer][page][key head][16 * head_dim]`."""
    return ((layer * pages + page) * heads + head) * PAGE * size


@inlined
def remember(
    key: Any, value: Any, value_at: int, size: int, keys: Any, values: Any, start: int, slot: int, half: Any
) -> None:
    """Write one head's key (`key[:size]`) and value of one position to slot `slot` of the page that begins at `start`.

    `half` is scratch of `size` uint16.
    """
    for i in range(0, size, LANES):
        store_half(half, i, load_float(key, i))
        store_half(values, start + slot * size + i, load_float(value, value_at + i))
    for i in range(size):
        keys[start + i * PAGE + slot] = half[i]


@compiled
def attend(
    x: Any, query_at: int, heads: int, size: int, position: int, first: int, table: Any, keys: Any, values: Any,
    layer: int, pages: int, key_head: int, key_heads: int, scores: Any, room: int, out: Any, out_at: int,
) -> None:  # fmt: skip
    """Attention of one to four neighbouring query heads over positions `first` to `position`.

    Four heads share each key and value that is read; missing ones repeat the last.

    Args:
        x: float32, queries from `query_at`, head after head.
        table: page numbers of the sequence.
        scores: float32 scratch of four times `room`.
        out: float32, results from `out_at`, head after head.
    """
    scale = splat(np.float32(1.0 / math.sqrt(size)))
    begin = first // PAGE
    q0 = query_at
    q1 = query_at + min(1, heads - 1) * size
    q2 = query_at + min(2, heads - 1) * size
    q3 = query_at + min(3, heads - 1) * size
    for page in range(begin, position // PAGE + 1):
        start = page_start(layer, table[page], key_head, pages, key_heads, size)
        a0, b0, c0, d0 = zero_float(), zero_float(), zero_float(), zero_float()
        a1, b1, c1, d1 = zero_float(), zero_float(), zero_float(), zero_float()
        for i in range(size):
            low = load_half(keys, start + i * PAGE)
            a, b, c, d = repeat(x, q0 + i), repeat(x, q1 + i), repeat(x, q2 + i), repeat(x, q3 + i)
            a0, b0, c0, d0 = fma(low, a, a0), fma(low, b, b0), fma(low, c, c0), fma(low, d, d0)
            if LANES == 8:
                high = load_half(keys, start + i * PAGE + 8)
                a1, b1, c1, d1 = fma(high, a, a1), fma(high, b, b1), fma(high, c, c1), fma(high, d, d1)
        place = (page - begin) * PAGE
        store_float(scores, place, mul_float(a0, scale))
        store_float(scores, room + place, mul_float(b0, scale))
        store_float(scores, 2 * room + place, mul_float(c0, scale))
        store_float(scores, 3 * room + place, mul_float(d0, scale))
        if LANES == 8:
            store_float(scores, place + 8, mul_float(a1, scale))
            store_float(scores, room + place + 8, mul_float(b1, scale))
            store_float(scores, 2 * room + place + 8, mul_float(c1, scale))
            store_float(scores, 3 * room + place + 8, mul_float(d1, scale))
    for head in range(heads):
        share = soften(scores, head * room, first - begin * PAGE, position - begin * PAGE + 1)
        scores[head * room + room - 1] = share
    blend(heads, size, position, first, table, values, layer, pages, key_head, key_heads, scores, room, out, out_at)


@inlined
def soften(scores: Any, base: int, first: int, end: int) -> float:
    """Turn scores `first` to `end` into exp(score - max), those around them into zero; 1 / their sum."""
    whole = (end + 15) // 16 * 16
    for i in range(first):
        scores[base + i] = np.float32(-np.inf)
    for i in range(end, whole):
        scores[base + i] = np.float32(-np.inf)
    largest = splat(np.float32(-np.inf))
    for i in range(0, whole, LANES):
        largest = max_float(largest, load_float(scores, base + i))
    top = splat(-max_lanes(largest))
    total = zero_float()
    for i in range(0, whole, LANES):
        weight = exp_float(add_float(load_float(scores, base + i), top))
        store_float(scores, base + i, weight)
        total = add_float(total, weight)
    for i in range(first):
        scores[base + i] = np.float32(0)
    for i in range(end, whole):
        scores[base + i] = np.float32(0)
    inverse: float = np.float32(1) / sum_lanes(total)
    return inverse


@inlined
def _finish(heads: int, head: int, low: Any, high: Any, scores: Any, room: int, out: Any, at: int, size: int) -> None:
    if head < heads:
        share = repeat(scores, head * room + room - 1)
        store_float(out, at + head * size, mul_float(low, share))
        store_float(out, at + head * size + LANES, mul_float(high, share))


@inlined
def blend(
    heads: int, size: int, position: int, first: int, table: Any, values: Any, layer: int, pages: int, key_head: int,
    key_heads: int, scores: Any, room: int, out: Any, out_at: int,
) -> None:  # fmt: skip
    """Values weighted by the softened scores; `scores[room - 1]` of each head is one over their sum."""
    begin = first // PAGE
    s1, s2, s3 = min(1, heads - 1) * room, min(2, heads - 1) * room, min(3, heads - 1) * room
    for i in range(0, size, 2 * LANES):
        a0, b0, c0, d0 = zero_float(), zero_float(), zero_float(), zero_float()
        a1, b1, c1, d1 = zero_float(), zero_float(), zero_float(), zero_float()
        for page in range(begin, position // PAGE + 1):
            start = page_start(layer, table[page], key_head, pages, key_heads, size) + i
            slot_first = max(first - page * PAGE, 0)
            slot_end = min(position - page * PAGE + 1, PAGE)
            place = (page - begin) * PAGE
            for slot in range(slot_first, slot_end):
                low, high = load_half(values, start + slot * size), load_half(values, start + slot * size + LANES)
                a, b = repeat(scores, place + slot), repeat(scores, s1 + place + slot)
                c, d = repeat(scores, s2 + place + slot), repeat(scores, s3 + place + slot)
                a0, b0, c0, d0 = fma(low, a, a0), fma(low, b, b0), fma(low, c, c0), fma(low, d, d0)
                a1, b1, c1, d1 = fma(high, a, a1), fma(high, b, b1), fma(high, c, c1), fma(high, d, d1)
        _finish(heads, 0, a0, a1, scores, room, out, out_at + i, size)
        _finish(heads, 1, b0, b1, scores, room, out, out_at + i, size)
        _finish(heads, 2, c0, c1, scores, room, out, out_at + i, size)
        _finish(heads, 3, d0, d1, scores, room, out, out_at + i, size)


_F32, _U16, _PAGES = (
    types.Array(types.float32, 1, "C"),
    types.Array(types.uint16, 1, "C"),
    types.Array(types.int64, 1, "C"),
)
_INT = types.int64
ATTEND = Compiled(
    attend,
    types.void(_F32, _INT, _INT, _INT, _INT, _INT, _PAGES, _U16, _U16, _INT, _INT, _INT, _INT, _F32, _INT, _F32, _INT),
)
call_attend = caller(ATTEND.signature)
