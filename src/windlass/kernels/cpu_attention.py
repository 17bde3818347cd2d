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
from windlass.kernels.context_chunks import CHUNK
from windlass.kernels.isa import LANES
from windlass.kernels.simd import (
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
    o2: int, ahead: int,
) -> None:  # fmt: skip
    """Add `rows` values, weighted by the scores of three heads, to three outputs; ask for as many from `ahead`.

    A line at a time beside the sums: a burst of requests fills the queue to memory, and all loads behind it wait.
    """
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
            prefetch(data, ahead + row * size + i)
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


@inlined
def _score_chunk(
    q: Any, q_at: int, key_heads: int, group: int, size: int, data: Any, key_at: int, value_at: int, head_stride: int,
    page_elements: int, pages: Any, starts: Any, begins: Any, lengths: Any, first: int, stop: int, begin: int, end: int,
    scores: Any,
) -> None:  # fmt: skip
    """Products of all queries with the keys of slots `begin` to `end`, which runs `first` to `stop` hold."""
    room = CHUNK + 16
    for run in range(first, stop):
        skip = max(begin - begins[run], 0)
        rows = min(end - begins[run], lengths[run]) - skip
        base = pages[run] * page_elements + (starts[run] + skip) * size
        coming = run + RUNS_AHEAD
        ahead = value_at if coming >= stop else key_at
        if coming >= stop:
            coming = min(coming - stop + first, stop - 1)
        ahead += pages[coming] * page_elements + starts[coming] * size
        for head in range(key_heads):
            keys, coming_keys = base + key_at + head * head_stride, ahead + head * head_stride
            place = head * group * room + begins[run] + skip - begin
            for row in range(0, rows, 4):
                _fetch_rows(data, coming_keys + row * size, 4 * size)
                k0 = keys + row * size
                k1, k2 = keys + min(row + 1, rows - 1) * size, keys + min(row + 2, rows - 1) * size
                k3 = keys + min(row + 3, rows - 1) * size
                for member in range(0, group, 3):
                    second, third = min(member + 1, group - 1), min(member + 2, group - 1)
                    q0 = q_at + head * group * size
                    _score_rows(
                        q, q0 + member * size, q0 + second * size, q0 + third * size, size, data, k0, k1, k2, k3,
                        scores, place + row + member * room, place + row + second * room, place + row + third * room,
                    )  # fmt: skip


@compiled
def attend(
    q: Any, q_at: int, key_heads: int, group: int, size: int, data: Any, key_at: int, value_at: int, head_stride: int,
    page_elements: int, pages: Any, starts: Any, begins: Any, lengths: Any, low: int, high: int, begin: int, end: int,
    scores: Any, out: Any, out_at: int,
) -> None:  # fmt: skip
    """Attention of neighbouring key heads' groups of query heads over slots `begin` to `end` of a context, at most 256.

    The key heads of a run lie side by side, so memory is read in long pieces; three query heads share each key and
    value that is read, missing ones repeat the last. Memory of the next runs is asked for while one is worked on,
    since the processor cannot guess where the next page is.

    Args:
        q: float32 queries `[key_heads, group, size]` from `q_at`, times log2(e) / sqrt(size).
        data: uint16, the pool, flat; keys of the first head are `key_at` behind a page's beginning, of the next
            `head_stride` further.
        pages, starts, begins, lengths: the runs of all contexts; `begins` counts slots from the context's start.
        low, high: the runs of this context.
        scores: float32 scratch, `key_heads * group * (CHUNK + 16)`.
        out: float32 from `out_at`, for each key head: sums of weighted values `[group, size]`, then for each query
            head the largest score and the sum of weights.
    """
    room, unit = CHUNK + 16, group * (size + 2)
    first, stop = _runs_between(begins, low, high, begin, end)
    _score_chunk(
        q, q_at, key_heads, group, size, data, key_at, value_at, head_stride, page_elements, pages, starts, begins,
        lengths, first, stop, begin, end, scores,
    )  # fmt: skip
    for head in range(key_heads):
        at = out_at + head * unit
        for i in range(0, group * size, LANES):
            store_float(out, at + i, zero_float())
        for member in range(group):
            _soften(scores, (head * group + member) * room, end - begin, out, at + group * size + 2 * member)
    for run in range(first, stop):
        skip = max(begin - begins[run], 0)
        rows = min(end - begins[run], lengths[run]) - skip
        base = pages[run] * page_elements + (starts[run] + skip) * size
        coming = min(run + RUNS_AHEAD, high - 1)
        ahead = pages[coming] * page_elements + starts[coming] * size + (value_at if coming < stop else key_at)
        for head in range(key_heads):
            values = base + value_at + head * head_stride
            place, at = head * group * room + begins[run] + skip - begin, out_at + head * unit
            coming_values = ahead + head * head_stride
            for member in range(0, group, 3):
                second, third = min(member + 1, group - 1), min(member + 2, group - 1)
                _blend_rows(
                    scores, place + member * room, place + second * room, place + third * room, rows, size, data,
                    values, out, at + member * size, at + second * size, at + third * size, coming_values,
                )  # fmt: skip


@inlined
def _runs_between(begins: Any, low: int, high: int, begin: int, end: int) -> tuple[int, int]:
    """The runs that hold slots `begin` to `end` of the context whose runs are `low` to `high`."""
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
    return first, stop


@compiled
def attention_mass(
    q: Any, key_heads: int, group: int, size: int, data: Any, key_at: int, value_at: int, head_stride: int,
    page_elements: int, pages: Any, starts: Any, begins: Any, lengths: Any, low: int, high: int, begin: int, end: int,
    bounds: Any, bound_low: int, bound_high: int, scores: Any, sums: Any, share: float, out: Any, out_at: int,
) -> None:  # fmt: skip
    """How much of a token's attention each stretch of its context gets, summed over the heads.

    Args:
        q, data, ..., high: As in `attend`; `q` begins with this token's queries.
        begin, end: The slots that the token sees.
        bounds: Stretch `i` of this context ends before slot `bounds[bound_low + i]`, where the next one begins; the
            first begins at slot 0, and the last ends at `end` or behind it.
        scores: float32 scratch, `key_heads * group * (CHUNK + 16)`.
        sums: float32 scratch, `key_heads * group * (stretches + 1) + 2`.
        share: What the attention of one head counts.
        out: float32 from `out_at`, one for each stretch; added to.
    """
    heads, stretches, room = key_heads * group, bound_high - bound_low, CHUNK + 16
    tops = heads * stretches
    pair = tops + heads
    for place in range(pair):
        sums[place] = np.float32(0) if place < tops else np.float32(-np.inf)
    for chunk in range(begin // CHUNK, (end + CHUNK - 1) // CHUNK):
        from_, to = max(begin, chunk * CHUNK), min(end, (chunk + 1) * CHUNK)
        first, stop = _runs_between(begins, low, high, from_, to)
        _score_chunk(
            q, 0, key_heads, group, size, data, key_at, value_at, head_stride, page_elements, pages, starts, begins,
            lengths, first, stop, from_, to, scores,
        )  # fmt: skip
        for head in range(heads):
            _soften(scores, head * room, to - from_, sums, pair)
            top, highest = sums[pair], sums[tops + head]
            weight = np.float32(1)
            if top > highest:
                fade = np.float32(2.0 ** (highest - top))
                for stretch in range(stretches):
                    sums[head * stretches + stretch] *= fade
                sums[tops + head] = top
            else:
                weight = np.float32(2.0 ** (top - highest))
            at = from_
            for stretch in range(stretches):
                total = np.float32(0)
                while at < min(to, bounds[bound_low + stretch]):
                    total += scores[head * room + at - from_]
                    at += 1
                sums[head * stretches + stretch] += weight * total
    for head in range(heads):
        whole = np.float32(0)
        for stretch in range(stretches):
            whole += sums[head * stretches + stretch]
        for stretch in range(stretches):
            out[out_at + stretch] += np.float32(share) * sums[head * stretches + stretch] / whole


@inlined
def merge(sums: Any, at: int, more: Any, more_at: int, group: int, size: int) -> None:
    """Take what `attend` wrote for a key head and the next chunk of a context into what it wrote for those before."""
    for member in range(group):
        top_at, more_top_at = at + group * size + 2 * member, more_at + group * size + 2 * member
        top = max(sums[top_at], more[more_top_at])
        keep = exp2_float(splat(np.float32(sums[top_at] - top)))
        take = exp2_float(splat(np.float32(more[more_top_at] - top)))
        for i in range(member * size, (member + 1) * size, LANES):
            kept = mul_float(load_float(sums, at + i), keep)
            store_float(sums, at + i, fma(load_float(more, more_at + i), take, kept))
        total = max_lanes(keep) * sums[top_at + 1]
        sums[top_at + 1] = total + max_lanes(take) * more[more_top_at + 1]
        sums[top_at] = top


@inlined
def finish(sums: Any, at: int, group: int, size: int, out: Any, out_at: int) -> None:
    """Divide weighted sums by the sum of weights: the attention of a key head's group into `out [group, size]`."""
    for member in range(group):
        share = splat(np.float32(1) / sums[at + group * size + 2 * member + 1])
        for i in range(member * size, (member + 1) * size, LANES):
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
        _F32,
        _INT,
        _INT,
        _INT,
        _INT,
        _U16,
        _INT,
        _INT,
        _INT,
        _INT,
        _I64,
        _I64,
        _I64,
        _I64,
        _INT,
        _INT,
        _INT,
        _INT,
        _F32,
        _F32,
        _INT,
    ),
)
call_attend = caller(ATTEND.signature)
MASS = Compiled(
    attention_mass,
    types.void(
        _F32, _INT, _INT, _INT, _U16, _INT, _INT, _INT, _INT, _I64, _I64, _I64, _I64, _INT, _INT, _INT, _INT, _I64,
        _INT, _INT, _F32, _F32, types.float64, _F32, _INT,
    ),
)  # fmt: skip
call_mass = caller(MASS.signature)
