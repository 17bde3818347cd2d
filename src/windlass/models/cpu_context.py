"""Attention of a compiled step: keys and values into the pool, queries over the runs of each context."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, called, caller, pasted
from windlass.kernels.context_chunks import CHUNK
from windlass.kernels.cpu_attention import call_attend, call_mass, finish, merge, normalize, remember, rotate
from windlass.kernels.isa import LANES
from windlass.kernels.meeting import meet
from windlass.kernels.simd import load_float, store_float
from windlass.kernels.views import float32s, int64s, uint16s
from windlass.models.cpu_linear import share
from windlass.models.cpu_tables import (
    ATTEND_CALL,
    BARRIER,
    BEGINS,
    BOUND_OFFSETS,
    BOUNDS,
    BUDGETS,
    CALLS,
    COSINE,
    DATA,
    EPSILON,
    EXTRAS,
    FEW,
    FEW_CALL,
    FLOATS,
    HEAD_DIM,
    HEADS,
    IDS,
    INTERLEAVED,
    K_NORM,
    KEY_HEADS,
    LAYERS,
    LENGTHS,
    MANY_CALL,
    MASS,
    MASS_CALL,
    MERGE_CALL,
    MIXED,
    NORMED,
    NOTES,
    OFFSETS,
    OWN_QUERIES,
    PAGE_TOKENS,
    PAGES,
    PAIR,
    PARTS,
    POSITIONS,
    Q_NORM,
    QKV,
    QUERIES,
    SCORES,
    SEQUENCES,
    SINE,
    SIZES,
    SLOTS,
    STARTS,
    STATES,
    STRETCH_SUMS,
    TURN_CALL,
    TWICE,
    VISIBLE,
    WINDOW,
)


@called
def _turn(t: Any, at: int, heads: int, norm_at: int, position: int, scale: float, out: Any, out_at: int) -> None:
    """Norm (when `norm_at` is not -1), turn and scale `heads` heads of `QKV` from `at` into `out`."""
    sizes, x, twice, floats = int64s(t, SIZES), float32s(t, QKV), float32s(t, TWICE), float32s(t, FLOATS)
    cosine, sine, eps = float32s(t, COSINE), float32s(t, SINE), float32s(t, EPSILON)[0]
    size, interleaved = sizes[HEAD_DIM], sizes[INTERLEAVED] == 1
    for head in range(heads):
        source, from_ = (x, at + head * size) if norm_at < 0 else (twice, 0)
        if norm_at >= 0:
            normalize(x, at + head * size, size, floats, norm_at, eps, twice, 0)
        for i in range(0, size, LANES):
            value = load_float(source, from_ + i)
            store_float(twice, i, value)
            store_float(twice, size + i, value)
        rotate(twice, 0, size, cosine, sine, position * size, interleaved, scale, out, out_at + head * size)


_F32, _I64, _INT = types.Array(types.float32, 1, "C"), types.Array(types.int64, 1, "C"), types.int64
TURN = Compiled(_turn, types.void(_I64, _INT, _INT, _INT, _INT, types.float32, _F32, _INT))
call_turn = caller(TURN.signature)


@called
def _store_keys(t: Any, token: int, layer: int) -> None:
    """Put the turned keys and the values of a token into its slot."""
    sizes, data, qkv, normed = int64s(t, SIZES), uint16s(t, DATA), float32s(t, QKV), float32s(t, NORMED)
    heads, key_heads, size, page_tokens = sizes[HEADS], sizes[KEY_HEADS], sizes[HEAD_DIM], sizes[PAGE_TOKENS]
    base, position = token * (heads + 2 * key_heads) * size, int64s(t, POSITIONS)[token]
    norm_at, scale = int64s(t, EXTRAS)[layer * NOTES + K_NORM], np.float32(1)
    call_turn(int64s(t, CALLS)[TURN_CALL], (t, base + heads * size, key_heads, norm_at, position, scale, normed, 0))
    slot = int64s(t, SLOTS)[token]
    page, row = slot // page_tokens, slot % page_tokens
    for head in range(key_heads):
        key_at = (((page * sizes[LAYERS] + layer) * 2 * key_heads + head) * page_tokens + row) * size
        remember(normed, head * size, size, data, key_at)
        value_at = base + (heads + key_heads + head) * size
        remember(qkv, value_at, size, data, key_at + key_heads * page_tokens * size)


@called
def turn_queries(t: Any, token: int, low: int, high: int, layer: int, out: Any, out_at: int) -> None:
    """The queries of the groups of key heads `low` to `high`, turned and scaled, to `out`."""
    sizes = int64s(t, SIZES)
    heads, key_heads, size = sizes[HEADS], sizes[KEY_HEADS], sizes[HEAD_DIM]
    group, scale = heads // key_heads, np.float32(math.log2(math.e) / math.sqrt(size))
    at = (token * (heads + 2 * key_heads) + low * group) * size
    norm_at, position = int64s(t, EXTRAS)[layer * NOTES + Q_NORM], int64s(t, POSITIONS)[token]
    call_turn(int64s(t, CALLS)[TURN_CALL], (t, at, (high - low) * group, norm_at, position, scale, out, out_at))


@called
def _attend_chunk(
    t: Any, token: int, low: int, high: int, chunk: int, layer: int, queries: Any, q_at: int, out: Any, out_at: int
) -> None:
    """One chunk of the context of a token for key heads `low` to `high`, whose queries begin at `q_at`."""
    sizes, offsets, row = int64s(t, SIZES), int64s(t, OFFSETS), int64s(t, SEQUENCES)[token]
    key_heads, size, page_tokens = sizes[KEY_HEADS], sizes[HEAD_DIM], sizes[PAGE_TOKENS]
    begin = max(chunk * CHUNK, first_seen(t, token, layer))
    end = min((chunk + 1) * CHUNK, int64s(t, VISIBLE)[token])
    stride = page_tokens * size
    key_at = (layer * 2 * key_heads + low) * stride
    arguments = (
        queries, q_at, high - low, sizes[HEADS] // key_heads, size, uint16s(t, DATA), key_at,
        key_at + key_heads * stride, stride, sizes[LAYERS] * 2 * key_heads * stride, int64s(t, PAGES),
        int64s(t, STARTS), int64s(t, BEGINS), int64s(t, LENGTHS), offsets[row], offsets[row + 1], begin, end,
        float32s(t, SCORES), out, out_at,
    )  # fmt: skip
    call_attend(int64s(t, CALLS)[ATTEND_CALL], arguments)


@pasted
def first_seen(t: Any, token: int, layer: int) -> int:
    """The first slot of its context that a token attends to."""
    window = int64s(t, EXTRAS)[layer * NOTES + WINDOW]
    return max(0, int64s(t, VISIBLE)[token] - window) if window > 0 else 0


@pasted
def _chunks(t: Any, token: int, layer: int) -> tuple[int, int]:
    """The chunks of its context that a token attends to: from, to."""
    return first_seen(t, token, layer) // CHUNK, (int64s(t, VISIBLE)[token] + CHUNK - 1) // CHUNK


@pasted
def reads_parts(t: Any, layer: int) -> bool:
    """Whether tokens read parts of their contexts in this layer: where there is a window, they read that."""
    return bool(int64s(t, BUDGETS).shape[0] > 0 and int64s(t, EXTRAS)[layer * NOTES + WINDOW] <= 0)


@called
def _attention_of_few(t: Any, thread: int, threads: int, layer: int) -> None:
    """Cells of the contexts of a few tokens, a chunk and key head each, split evenly; `_merge_parts` joins them."""
    sizes, tokens, queries, parts = (
        int64s(t, SIZES),
        int64s(t, IDS).shape[0],
        float32s(t, OWN_QUERIES),
        float32s(t, PARTS),
    )
    key_heads = sizes[KEY_HEADS]
    unit, cells = sizes[HEADS] // key_heads * (sizes[HEAD_DIM] + 2), 0
    for token in range(tokens):
        first, end = _chunks(t, token, layer)
        cells += (end - first) * key_heads
    low, high = share(cells, thread, threads)
    if tokens == 1 and low < high:
        # Every thread stores the same bytes, so that none waits for the other.
        _store_keys(t, 0, layer)
    cell = 0
    for token in range(tokens):
        turned = -1
        first, end = _chunks(t, token, layer)
        for chunk in range(first, end):
            begin, stop = max(low - cell, 0), min(high - cell, key_heads)
            if begin < stop:
                if turned != begin * key_heads + stop:
                    turn_queries(t, token, begin, stop, layer, queries, 0)
                    turned = begin * key_heads + stop
                _attend_chunk(t, token, begin, stop, chunk, layer, queries, 0, parts, (cell + begin) * unit)
            cell += key_heads


ATTEND_FEW = Compiled(_attention_of_few, types.void(_I64, _INT, _INT, _INT))
call_attend_few = caller(ATTEND_FEW.signature)


@called
def _merge_parts(t: Any, token: int, layer: int, out: Any, out_at: int) -> None:
    """The mixed values of one of a few tokens, to `out`."""
    sizes, pair, parts = int64s(t, SIZES), float32s(t, PAIR), float32s(t, PARTS)
    key_heads, size = sizes[KEY_HEADS], sizes[HEAD_DIM]
    group = sizes[HEADS] // key_heads
    unit, cell = group * (size + 2), 0
    for before in range(token):
        first, end = _chunks(t, before, layer)
        cell += (end - first) * key_heads
    first, end = _chunks(t, token, layer)
    for head in range(key_heads):
        at = (cell + head) * unit
        for i in range(unit):
            pair[i] = parts[at + i]
        for chunk in range(1, end - first):
            merge(pair, 0, parts, at + chunk * key_heads * unit, group, size)
        finish(pair, 0, group, size, out, out_at + head * group * size)


MERGE_PARTS = Compiled(_merge_parts, types.void(_I64, _INT, _INT, _F32, _INT))
call_merge_parts = caller(MERGE_PARTS.signature)


@called
def _attention_of_many(t: Any, thread: int, threads: int, layer: int) -> None:
    """Every thread takes its tokens through one chunk after the other, so that neighbours find it in the cache.

    Tokens that read a part only are left out.
    """
    sizes, tokens, queries, states = (
        int64s(t, SIZES),
        int64s(t, IDS).shape[0],
        float32s(t, QUERIES),
        float32s(t, STATES),
    )
    key_heads, size, pair, mixed = sizes[KEY_HEADS], sizes[HEAD_DIM], float32s(t, PAIR), float32s(t, MIXED)
    group, width = sizes[HEADS] // key_heads, sizes[HEADS] * size
    unit, chunks, budgets, parts = group * (size + 2), 0, int64s(t, BUDGETS), reads_parts(t, layer)
    for token in range(thread, tokens, threads):
        if parts and budgets[token] > 0:
            continue
        turn_queries(t, token, 0, key_heads, layer, queries, token * width)
        chunks = max(chunks, _chunks(t, token, layer)[1])
    for chunk in range(chunks):
        for token in range(thread, tokens, threads):
            if parts and budgets[token] > 0:
                continue
            first, end = _chunks(t, token, layer)
            if first <= chunk < end:
                state = token * key_heads * unit
                out, out_at = (states, state) if chunk == first else (pair, 0)
                _attend_chunk(t, token, 0, key_heads, chunk, layer, queries, token * width, out, out_at)
                for head in range(key_heads):
                    if chunk > first:
                        merge(states, state + head * unit, pair, head * unit, group, size)
                    if chunk == end - 1:
                        finish(states, state + head * unit, group, size, mixed, token * width + head * group * size)


ATTEND_MANY = Compiled(_attention_of_many, types.void(_I64, _INT, _INT, _INT))
call_attend_many = caller(ATTEND_MANY.signature)


@called
def attention(t: Any, thread: int, threads: int, layer: int) -> None:
    """From projected queries, keys and values to mixed values, but of tokens that read a part only."""
    sizes, tokens, calls, barrier = int64s(t, SIZES), int64s(t, IDS).shape[0], int64s(t, CALLS), int64s(t, BARRIER)
    mixed, width = float32s(t, MIXED), sizes[HEADS] * sizes[HEAD_DIM]
    for token in range(thread, tokens, threads):
        _store_keys(t, token, layer)
    meet(barrier, threads)
    if tokens > FEW or reads_parts(t, layer):
        call_attend_many(calls[MANY_CALL], (t, thread, threads, layer))
        return
    call_attend_few(calls[FEW_CALL], (t, thread, threads, layer))
    meet(barrier, threads)
    for token in range(thread, tokens, threads):
        call_merge_parts(calls[MERGE_CALL], (t, token, layer, mixed, token * width))


@called
def _measure_mass(t: Any, thread: int, threads: int, layer: int) -> None:
    """Add what each token attends to in this layer to its line of `MASS`, for sequences that have bounds.

    Every third layer is asked: the mean hardly moves, and it costs a third.
    """
    if layer % 3 != 0:
        return
    sizes, tokens, bounds, bound_offsets = (
        int64s(t, SIZES),
        int64s(t, IDS).shape[0],
        int64s(t, BOUNDS),
        int64s(t, BOUND_OFFSETS),
    )
    heads, key_heads, size, layers = sizes[HEADS], sizes[KEY_HEADS], sizes[HEAD_DIM], sizes[LAYERS]
    stride, mass, queries, offsets = (
        sizes[PAGE_TOKENS] * size,
        float32s(t, MASS),
        float32s(t, OWN_QUERIES),
        int64s(t, OFFSETS),
    )
    widest, key_at = mass.shape[0] // tokens, layer * 2 * key_heads * stride
    for token in range(thread, tokens, threads):
        row = int64s(t, SEQUENCES)[token]
        low, high = bound_offsets[row], bound_offsets[row + 1]
        if low == high:
            continue
        turn_queries(t, token, 0, key_heads, layer, queries, 0)
        arguments = (
            queries, key_heads, heads // key_heads, size, uint16s(t, DATA), key_at, key_at + key_heads * stride, stride,
            layers * 2 * key_heads * stride, int64s(t, PAGES), int64s(t, STARTS), int64s(t, BEGINS),
            int64s(t, LENGTHS), offsets[row], offsets[row + 1], first_seen(t, token, layer), int64s(t, VISIBLE)[token],
            bounds, low, high, float32s(t, SCORES), float32s(t, STRETCH_SUMS),
            1.0 / (heads * ((layers + 2) // 3)), mass, token * widest,
        )  # fmt: skip
        call_mass(int64s(t, CALLS)[MASS_CALL], arguments)


MEASURE_MASS = Compiled(_measure_mass, types.void(_I64, _INT, _INT, _INT))
call_measure_mass = caller(MEASURE_MASS.signature)
