"""What an encoder does between its matrix products: rounding, layer normalisation, attention. All in float32.

Tokens of a batch lie one behind the other without padding; attention is given one sequence at a time, whose tokens
all see one another.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from windlass.kernels.byte_gemm import SHIFT
from windlass.kernels.compiled import Compiled, called, caller, compiled, inlined
from windlass.kernels.isa import LANES
from windlass.kernels.simd import (
    add_float,
    exp_float,
    fma,
    load_float,
    max_float,
    max_lanes,
    mul_float,
    repeat,
    round_float,
    splat,
    store_codes,
    store_float,
    sum_lanes,
    zero_float,
)


@inlined
def round_token(x: Any, at: int, size: int, codes: Any, codes_at: int, steps: Any, lows: Any, token: int) -> None:
    """`size` numbers (a multiple of `LANES`) as codes 0 to 255 between the smallest and the largest of them."""
    high, low = splat(np.float32(-np.inf)), splat(np.float32(-np.inf))
    minus = splat(np.float32(-1))
    for i in range(0, size, LANES):
        value = load_float(x, at + i)
        high, low = max_float(high, value), max_float(low, mul_float(value, minus))
    least = -max_lanes(low)
    step = (max_lanes(high) - least) / np.float32(255)
    inverse = splat(np.float32(1) / step if step > 0 else np.float32(0))
    shift = splat(-least)
    for i in range(0, size, LANES):
        store_codes(codes, codes_at + i, round_float(mul_float(add_float(load_float(x, at + i), shift), inverse)))
    steps[token] = step
    lows[token] = least + np.float32(SHIFT) * step


@compiled
def round_tokens(
    x: Any, at: int, stride: int, size: int, codes: Any, codes_at: int, steps: Any, lows: Any, token: int, tokens: int
) -> None:
    """`round_token` for the first `size` numbers of rows of `x` that begin every `stride` from `at`."""
    for t in range(tokens):
        round_token(x, at + t * stride, size, codes, codes_at + t * size, steps, lows, token + t)


@compiled
def normalize_tokens(
    x: Any, at: int, update: Any, update_at: int, size: int, floats: Any, norm_at: int, eps: float,
    codes: Any, codes_at: int, steps: Any, lows: Any, token: int, tokens: int,
) -> None:  # fmt: skip
    """x = layer norm of (x + update), in place, and the result as codes.

    Args:
        floats: float32, the norm's scale from `norm_at` and its shift behind it.
    """
    share = np.float32(1) / np.float32(size)
    for t in range(tokens):
        row, more = at + t * size, update_at + t * size
        total = zero_float()
        for i in range(0, size, LANES):
            value = add_float(load_float(x, row + i), load_float(update, more + i))
            store_float(x, row + i, value)
            total = add_float(total, value)
        middle = splat(-sum_lanes(total) * share)
        total = zero_float()
        for i in range(0, size, LANES):
            value = add_float(load_float(x, row + i), middle)
            total = fma(value, value, total)
        factor = splat(np.float32(1.0 / math.sqrt(sum_lanes(total) * share + eps)))
        for i in range(0, size, LANES):
            value = mul_float(add_float(load_float(x, row + i), middle), factor)
            value = fma(value, load_float(floats, norm_at + i), load_float(floats, norm_at + size + i))
            store_float(x, row + i, value)
        round_token(x, row, size, codes, codes_at + t * size, steps, lows, token + t)


@called
def gather_head(qkv: Any, at: int, hidden: int, length: int, size: int, keys: Any, values: Any) -> None:
    """Keys and values of one head of one sequence, keys as `[tile of 16 tokens][size][16]`, values as `[token][size]`.

    `at` is where the head's query of the first token lies; keys and values follow after `hidden` and `2 * hidden`.
    """
    for token in range(length):
        row = at + token * 3 * hidden
        base = token // 16 * 16 * size + token % 16
        for i in range(size):
            keys[base + 16 * i] = qkv[row + hidden + i]
        for i in range(0, size, LANES):
            store_float(values, token * size + i, load_float(qkv, row + 2 * hidden + i))


@inlined
def _soften(scores: Any, base: int, length: int) -> float:
    """Turn `length` scores into exp(score - largest), what pads them to 16 into next to nothing; one over their sum."""
    whole = (length + 15) // 16 * 16
    for i in range(length, whole):
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
    inverse: float = np.float32(1) / sum_lanes(total)
    return inverse


@compiled
def attend_sequence(
    qkv: Any, at: int, hidden: int, length: int, size: int, keys: Any, values: Any, scores: Any, room: int,
    received: Any, received_at: int,
) -> None:  # fmt: skip
    """Attention of one head over one sequence; the results take the places of the queries.

    Args:
        qkv: float32 `[token][3 * hidden]`, the head's first query at `at`, already divided by sqrt(size).
        size: Channels of the head, a multiple of 16.
        keys, values: float32 scratch as `gather_head` fills it.
        scores: float32 scratch of four times `room`, which is at least `length` rounded up to 16.
        received: float32, what each token receives from the inner tokens is added from `received_at`; -1: nothing is.
    """
    gather_head(qkv, at, hidden, length, size, keys, values)
    stride = 3 * hidden
    for first in range(0, length, 4):
        count = min(4, length - first)
        q0 = at + first * stride
        q1, q2, q3 = q0 + min(1, count - 1) * stride, q0 + min(2, count - 1) * stride, q0 + (count - 1) * stride
        for key in range(0, length, 16):
            a, b, c, d = zero_float(), zero_float(), zero_float(), zero_float()
            e, f, g, h = zero_float(), zero_float(), zero_float(), zero_float()
            base = key * size
            for i in range(size):
                low = load_float(keys, base + 16 * i)
                w, x, y, z = repeat(qkv, q0 + i), repeat(qkv, q1 + i), repeat(qkv, q2 + i), repeat(qkv, q3 + i)
                a, b, c, d = fma(low, w, a), fma(low, x, b), fma(low, y, c), fma(low, z, d)
                if LANES == 8:
                    high = load_float(keys, base + 16 * i + 8)
                    e, f, g, h = fma(high, w, e), fma(high, x, f), fma(high, y, g), fma(high, z, h)
            store_float(scores, key, a)
            store_float(scores, room + key, b)
            store_float(scores, 2 * room + key, c)
            store_float(scores, 3 * room + key, d)
            if LANES == 8:
                store_float(scores, key + 8, e)
                store_float(scores, room + key + 8, f)
                store_float(scores, 2 * room + key + 8, g)
                store_float(scores, 3 * room + key + 8, h)
        s0 = _soften(scores, 0, length)
        s1 = _soften(scores, room, length)
        s2 = _soften(scores, 2 * room, length)
        s3 = _soften(scores, 3 * room, length)
        if received_at >= 0:
            for query in range(count):
                if 0 < first + query < length - 1:
                    share = (s0, s1, s2, s3)[query]
                    for key in range(1, length - 1):
                        received[received_at + key] += scores[query * room + key] * share
        _blend(qkv, q0, q1, q2, q3, length, size, values, scores, room, s0, s1, s2, s3)


@inlined
def _blend(
    out: Any, o0: int, o1: int, o2: int, o3: int, length: int, size: int, values: Any, scores: Any, room: int,
    s0: float, s1: float, s2: float, s3: float,
) -> None:  # fmt: skip
    """Values weighted by softened scores. Missing queries repeat the last one and write the same again."""
    for i in range(0, size, 16):
        a, b, c, d = zero_float(), zero_float(), zero_float(), zero_float()
        e, f, g, h = zero_float(), zero_float(), zero_float(), zero_float()
        for token in range(length):
            low = load_float(values, token * size + i)
            w, x = repeat(scores, token), repeat(scores, room + token)
            y, z = repeat(scores, 2 * room + token), repeat(scores, 3 * room + token)
            a, b, c, d = fma(low, w, a), fma(low, x, b), fma(low, y, c), fma(low, z, d)
            if LANES == 8:
                high = load_float(values, token * size + i + 8)
                e, f, g, h = fma(high, w, e), fma(high, x, f), fma(high, y, g), fma(high, z, h)
        store_float(out, o0 + i, mul_float(a, splat(s0)))
        store_float(out, o1 + i, mul_float(b, splat(s1)))
        store_float(out, o2 + i, mul_float(c, splat(s2)))
        store_float(out, o3 + i, mul_float(d, splat(s3)))
        if LANES == 8:
            store_float(out, o0 + i + 8, mul_float(e, splat(s0)))
            store_float(out, o1 + i + 8, mul_float(f, splat(s1)))
            store_float(out, o2 + i + 8, mul_float(g, splat(s2)))
            store_float(out, o3 + i + 8, mul_float(h, splat(s3)))


_U8, _F32, _INT = types.Array(types.uint8, 1, "C"), types.Array(types.float32, 1, "C"), types.int64
ROUND_TOKENS = Compiled(round_tokens, types.void(_F32, _INT, _INT, _INT, _U8, _INT, _F32, _F32, _INT, _INT))
NORMALIZE_TOKENS = Compiled(
    normalize_tokens,
    types.void(_F32, _INT, _F32, _INT, _INT, _F32, _INT, types.float64, _U8, _INT, _F32, _F32, _INT, _INT),
)
ATTEND_SEQUENCE = Compiled(
    attend_sequence, types.void(_F32, _INT, _INT, _INT, _INT, _F32, _F32, _F32, _INT, _F32, _INT)
)
call_round_tokens, call_normalize_tokens, call_attend_sequence = (
    caller(kernel.signature) for kernel in (ROUND_TOKENS, NORMALIZE_TOKENS, ATTEND_SEQUENCE)
)
