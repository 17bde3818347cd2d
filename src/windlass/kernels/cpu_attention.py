"""Attention of new tokens over a paged half-precision cache, and the small float work around it.

A context is a list of runs: some neighbouring slots of a page each. It is worked through in chunks of 256 slots,
counted from its start: softmax inside a chunk, then chunks are merged in order (the online softmax). So the bits of a
result depend on what the context holds and never on how it is cut into runs, on the batch or on the threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, caller, compiled, inlined
from windlass.kernels.simd import (
    LANES,
    add_float,
    div_float,
    exp2_float,
    exp_float,
    fma,
    load_float,
    load_half,
    max_float,
    max_lanes,
    mul_float,
    prefetch,
    repeat,
    splat,
    store_float,
    store_four_sums,
    store_half,
    sum_lanes,
    swap_pairs,
    zero_float,
)

CHUNK = 256
"""Slots of a context whose scores are kept at once."""
RUNS_AHEAD = 2
"""Runs whose memory is asked for before they are needed."""


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
def rotate(
    x: Any, at: int, size: int, cosine: Any, sine: Any, angle_at: int, interleaved: bool, scale: float, out: Any,
    out_at: int,
) -> None:  # fmt: skip
    """Turn the channel pairs of one head, times `scale`.

    Args:
        x: float32 head at `at`; for pairs that are half a head apart it stands there twice, one behind the other.
        cosine, sine: a number for each channel from `angle_at`; the sine of a pair's first channel is negated.
    """
    factor = splat(np.float32(scale))
    for i in range(0, size, LANES):
        own = load_float(x, at + i)
        partner = swap_pairs(own) if interleaved else load_float(x, at + i + size // 2)
        turned = fma(partner, load_float(sine, angle_at + i), mul_float(own, load_float(cosine, angle_at + i)))
        store_float(out, out_at + i, mul_float(turned, factor))


@inlined
def _score_rows(
    q: Any, q0: int, q1: int, q2: int, size: int, data: Any, k0: int, k1: int, k2: int, k3: int, scores: Any, s0: int,
    s1: int, s2: int,
) -> None:  # fmt: skip
    """Products of three queries with four keys, four scores side by side for each query."""
    a0, a1, a2, a3 = zero_float(), zero_float(), zero_float(), zero_float()
    b0, b1, b2, b3 = zero_float(), zero_float(), zero_float(), zero_float()
    c0, c1, c2, c3 = zero_float(), zero_float(), zero_float(), zero_float()
    for i in range(0, size, LANES):
        a, b, c = load_float(q, q0 + i), load_float(q, q1 + i), load_float(q, q2 + i)
        key = load_half(data, k0 + i)
        a0, b0, c0 = fma(a, key, a0), fma(b, key, b0), fma(c, key, c0)
        key = load_half(data, k1 + i)
        a1, b1, c1 = fma(a, key, a1), fma(b, key, b1), fma(c, key, c1)
        key = load_half(data, k2 + i)
        a2, b2, c2 = fma(a, key, a2), fma(b, key, b2), fma(c, key, c2)
        key = load_half(data, k3 + i)
        a3, b3, c3 = fma(a, key, a3), fma(b, key, b3), fma(c, key, c3)
    store_four_sums(scores, s0, a0, a1, a2, a3)
    store_four_sums(scores, s1, b0, b1, b2, b3)
    store_four_sums(scores, s2, c0, c1, c2, c3)


@inlined
def _blend_rows(
    scores: Any, s0: int, s1: int, s2: int, rows: int, size: int, data: Any, value_at: int, out: Any, o0: int, o1: int,
    o2: int,
) -> None:  # fmt: skip
    """Add `rows` values, weighted by the scores of three heads, to three outputs."""
    wide = size // (4 * LANES) * (4 * LANES)
    for i in range(0, wide, 4 * LANES):
        j, k, m = i + LANES, i + 2 * LANES, i + 3 * LANES
        a0, a1, a2, a3 = (
            load_float(out, o0 + i),
            load_float(out, o0 + j),
            load_float(out, o0 + k),
            load_float(out, o0 + m),
        )
        b0, b1, b2, b3 = (
            load_float(out, o1 + i),
            load_float(out, o1 + j),
            load_float(out, o1 + k),
            load_float(out, o1 + m),
        )
        c0, c1, c2, c3 = (
            load_float(out, o2 + i),
            load_float(out, o2 + j),
            load_float(out, o2 + k),
            load_float(out, o2 + m),
        )
        for row in range(rows):
            at = value_at + row * size
            a, b, c = repeat(scores, s0 + row), repeat(scores, s1 + row), repeat(scores, s2 + row)
            value = load_half(data, at + i)
            a0, b0, c0 = fma(a, value, a0), fma(b, value, b0), fma(c, value, c0)
            value = load_half(data, at + j)
            a1, b1, c1 = fma(a, value, a1), fma(b, value, b1), fma(c, value, c1)
            value = load_half(data, at + k)
            a2, b2, c2 = fma(a, value, a2), fma(b, value, b2), fma(c, value, c2)
            value = load_half(data, at + m)
            a3, b3, c3 = fma(a, value, a3), fma(b, value, b3), fma(c, value, c3)
        _store_four(out, o2 + i, c0, c1, c2, c3)
        _store_four(out, o1 + i, b0, b1, b2, b3)
        _store_four(out, o0 + i, a0, a1, a2, a3)
    for i in range(wide, size, LANES):
        a0, b0, c0 = load_float(out, o0 + i), load_float(out, o1 + i), load_float(out, o2 + i)
        for row in range(rows):
            value = load_half(data, value_at + row * size + i)
            a0 = fma(repeat(scores, s0 + row), value, a0)
            b0 = fma(repeat(scores, s1 + row), value, b0)
            c0 = fma(repeat(scores, s2 + row), value, c0)
        store_float(out, o2 + i, c0)
        store_float(out, o1 + i, b0)
        store_float(out, o0 + i, a0)


@inlined
def _store_four(out: Any, at: int, a: Any, b: Any, c: Any, d: Any) -> None:
    store_float(out, at, a)
    store_float(out, at + LANES, b)
    store_float(out, at + 2 * LANES, c)
    store_float(out, at + 3 * LANES, d)


@inlined
def _soften(scores: Any, at: int, count: int, out: Any, out_at: int) -> None:
    """Turn `count` scores into 2^(score - max), zeros behind them; the maximum and the sum to `out`."""
    whole = (count + LANES - 1) // LANES * LANES
    for i in range(count, whole):
        scores[at + i] = np.float32(-np.inf)
    largest = splat(np.float32(-np.inf))
    for i in range(0, whole, LANES):
        largest = max_float(largest, load_float(scores, at + i))
    top = max_lanes(largest)
    total = zero_float()
    for i in range(0, whole, LANES):
        weight = exp2_float(add_float(load_float(scores, at + i), splat(-top)))
        store_float(scores, at + i, weight)
        total = add_float(total, weight)
    out[out_at], out[out_at + 1] = top, sum_lanes(total)


@inlined
def _fetch_rows(data: Any, at: int, elements: int) -> None:
    for i in range(0, elements, 32):
        prefetch(data, at + i)


@compiled
def attend(
    q: Any, q_at: int, heads: int, size: int, data: Any, key_at: int, value_at: int, page_elements: int, pages: Any,
    starts: Any, begins: Any, lengths: Any, low: int, high: int, begin: int, end: int, scores: Any, out: Any,
    out_at: int,
) -> None:  # fmt: skip
    """Attention of the query heads of one key head over slots `begin` to `end` of a context, at most 256.

    Three heads share each key and value that is read; missing ones repeat the last. Memory of the next runs is asked
    for while one is worked on, since the processor cannot guess where the next page is.

    Args:
        q: float32 queries `[heads, size]` from `q_at`, times log2(e) / sqrt(size).
        data: uint16, the pool, flat; keys of this layer and head are `key_at` behind a page's beginning.
        pages, starts, begins, lengths: the runs of all contexts; `begins` counts slots from the context's start.
        low, high: the runs of this context.
        scores: float32 scratch, `heads * (CHUNK + 16)`.
        out: float32: sums of weighted values `[heads, size]` from `out_at`, then for each head the largest score and
            the sum of weights.
    """
    room = CHUNK + 16
    first, last = low, high
    while last - first > 1:
        middle = (first + last) // 2
        if begins[middle] <= begin:
            first = middle
        else:
            last = middle
    stop = first + 1
    while stop < high and begins[stop] < end:
        stop += 1
    for run in range(first, stop):
        skip = max(begin - begins[run], 0)
        rows = min(end - begins[run], lengths[run]) - skip
        base = pages[run] * page_elements + key_at + (starts[run] + skip) * size
        place = begins[run] + skip - begin
        coming = run + RUNS_AHEAD
        ahead = key_at
        if coming >= stop:
            coming = min(coming - stop + first, stop - 1)
            ahead = value_at
        ahead += pages[coming] * page_elements + starts[coming] * size
        for row in range(0, rows, 4):
            _fetch_rows(data, ahead + row * size, 4 * size)
            k0 = base + row * size
            k1, k2 = base + min(row + 1, rows - 1) * size, base + min(row + 2, rows - 1) * size
            k3 = base + min(row + 3, rows - 1) * size
            for head in range(0, heads, 3):
                h1, h2 = min(head + 1, heads - 1), min(head + 2, heads - 1)
                _score_rows(
                    q, q_at + head * size, q_at + h1 * size, q_at + h2 * size, size, data, k0, k1, k2, k3, scores,
                    head * room + place + row, h1 * room + place + row, h2 * room + place + row,
                )  # fmt: skip
    for head in range(heads):
        _soften(scores, head * room, end - begin, out, out_at + heads * size + 2 * head)
    for i in range(0, heads * size, LANES):
        store_float(out, out_at + i, zero_float())
    for run in range(first, stop):
        skip = max(begin - begins[run], 0)
        rows = min(end - begins[run], lengths[run]) - skip
        base = pages[run] * page_elements + value_at + (starts[run] + skip) * size
        place = begins[run] + skip - begin
        coming = min(run + RUNS_AHEAD, high - 1)
        ahead = pages[coming] * page_elements + starts[coming] * size + (value_at if coming < stop else key_at)
        _fetch_rows(data, ahead, rows * size)
        for head in range(0, heads, 3):
            h1, h2 = min(head + 1, heads - 1), min(head + 2, heads - 1)
            _blend_rows(
                scores, head * room + place, h1 * room + place, h2 * room + place, rows, size, data, base, out,
                out_at + head * size, out_at + h1 * size, out_at + h2 * size,
            )  # fmt: skip


@inlined
def merge(sums: Any, at: int, more: Any, more_at: int, heads: int, size: int) -> None:
    """Take what `attend` wrote for the next chunk of a context into what it wrote for those before."""
    for head in range(heads):
        top_at, more_top_at = at + heads * size + 2 * head, more_at + heads * size + 2 * head
        top = max(sums[top_at], more[more_top_at])
        keep = exp2_float(splat(np.float32(sums[top_at] - top)))
        take = exp2_float(splat(np.float32(more[more_top_at] - top)))
        for i in range(head * size, (head + 1) * size, LANES):
            kept = mul_float(load_float(sums, at + i), keep)
            store_float(sums, at + i, fma(load_float(more, more_at + i), take, kept))
        total = max_lanes(keep) * sums[top_at + 1]
        sums[top_at + 1] = total + max_lanes(take) * more[more_top_at + 1]
        sums[top_at] = top


@inlined
def finish(sums: Any, at: int, heads: int, size: int, out: Any, out_at: int) -> None:
    """Divide weighted sums by the sum of weights: the attention of each head into `out [heads, size]`."""
    for head in range(heads):
        share = splat(np.float32(1) / sums[at + heads * size + 2 * head + 1])
        for i in range(head * size, (head + 1) * size, LANES):
            store_float(out, out_at + i, mul_float(load_float(sums, at + i), share))


@inlined
def remember(x: Any, at: int, size: int, data: Any, place: int) -> None:
    """Write one head's key or value to the pool."""
    for i in range(0, size, LANES):
        store_half(data, place + i, load_float(x, at + i))


_F32, _U16, _I64 = (types.Array(kind, 1, "C") for kind in (types.float32, types.uint16, types.int64))
_INT = types.int64
ATTEND = Compiled(
    attend,
    types.void(
        _F32, _INT, _INT, _INT, _U16, _INT, _INT, _INT, _I64, _I64, _I64, _I64, _INT, _INT, _INT, _INT, _F32, _F32, _INT
    ),
)
call_attend = caller(ATTEND.signature)
