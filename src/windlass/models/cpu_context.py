"""Attention of a compiled step: keys and values into the pool, queries over the runs of each context."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, caller, compiled, pasted
from windlass.kernels.cpu_attention import CHUNK, call_attend, call_mass, finish, merge, normalize, remember, rotate
from windlass.kernels.meeting import meet
from windlass.kernels.simd import LANES, load_float, store_float
from windlass.models.cpu_tables import (
    ATTEND_CALL,
    BATCH,
    FEW,
    FEW_CALL,
    HEAD_DIM,
    HEADS,
    INTERLEAVED,
    K_NORM,
    KEY_HEADS,
    KEYS_CALL,
    MANY_CALL,
    MASS_CALL,
    MERGE_CALL,
    PAGE_TOKENS,
    Q_NORM,
    SCRATCH,
    TURN_CALL,
    WEIGHTS,
    WINDOW,
    Batch,
    Scratch,
    Weights,
    share,
)


@compiled
def _turn(
    x: Any, at: int, heads: int, size: int, norm_at: int, floats: Any, eps: float, scale: float, cosine: Any, sine: Any,
    angle: int, interleaved: bool, twice: Any, out: Any,
) -> None:  # fmt: skip
    """Norm (when `norm_at` is not -1), scale and turn `heads` heads of `x` from `at` into `out`.

    `twice` is scratch for two heads.
    """
    for head in range(heads):
        source, from_ = (x, at + head * size) if norm_at < 0 else (twice, 0)
        if norm_at >= 0:
            normalize(x, at + head * size, size, floats, norm_at, eps, twice, 0)
        for i in range(0, size, LANES):
            value = load_float(source, from_ + i)
            store_float(twice, i, value)
            store_float(twice, size + i, value)
        rotate(twice, 0, size, cosine, sine, angle, interleaved, scale, out, head * size)


_F32 = types.Array(types.float32, 1, "C")
_INT, _FLOAT, _FLAG = types.int64, types.float64, types.boolean
_U16 = types.Array(types.uint16, 1, "C")
TURN = Compiled(
    _turn,
    types.void(_F32, _INT, _INT, _INT, _INT, _F32, _FLOAT, types.float32, _F32, _F32, _INT, _FLAG, _F32, _F32),
)
call_turn = caller(TURN.signature)


@compiled
def _store_keys(
    token: int, head: int, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch, thread: int
) -> None:
    """Put the turned key and the value of one key head of a token into its slot."""
    heads, key_heads, size = w.sizes[HEADS], w.sizes[KEY_HEADS], w.sizes[HEAD_DIM]
    base = token * (heads + 2 * key_heads) * size
    arguments = (
        s.qkv, base + (heads + head) * size, 1, size, w.extras[layer, K_NORM], w.floats, w.eps, np.float32(1),
        w.cosine, w.sine, batch.positions[token] * size, w.sizes[INTERLEAVED] == 1, s.twice[thread], s.normed[thread],
    )  # fmt: skip
    call_turn(w.calls[TURN_CALL], arguments)
    slot, page_tokens = batch.slots[token], w.sizes[PAGE_TOKENS]
    page, row = slot // page_tokens, slot % page_tokens
    key_at = (((page * w.extras.shape[0] + layer) * 2 * key_heads + head) * page_tokens + row) * size
    remember(s.normed[thread], 0, size, data, key_at)
    remember(s.qkv, base + (heads + key_heads + head) * size, size, data, key_at + key_heads * page_tokens * size)


STORE_KEYS = Compiled(_store_keys, types.void(_INT, _INT, _INT, WEIGHTS, BATCH, _U16, SCRATCH, _INT))
call_store_keys = caller(STORE_KEYS.signature)


@compiled
def turn_queries(
    token: int, low: int, high: int, layer: int, w: Weights, batch: Batch, s: Scratch, thread: int, out: Any
) -> None:
    """The queries of the groups of key heads `low` to `high`, turned and scaled, to the beginning of `out`."""
    heads, key_heads, size = w.sizes[HEADS], w.sizes[KEY_HEADS], w.sizes[HEAD_DIM]
    group, scale = heads // key_heads, np.float32(math.log2(math.e) / math.sqrt(size))
    at = (token * (heads + 2 * key_heads) + low * group) * size
    arguments = (
        s.qkv, at, (high - low) * group, size, w.extras[layer, Q_NORM], w.floats, w.eps, scale, w.cosine, w.sine,
        batch.positions[token] * size, w.sizes[INTERLEAVED] == 1, s.twice[thread], out,
    )  # fmt: skip
    call_turn(w.calls[TURN_CALL], arguments)


@compiled
def _attend_chunk(
    token: int, low: int, high: int, chunk: int, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch,
    thread: int, queries: Any, out: Any, out_at: int,
) -> None:  # fmt: skip
    """One chunk of the context of a token for key heads `low` to `high`, whose queries `queries` begins with."""
    key_heads, size, page_tokens = w.sizes[KEY_HEADS], w.sizes[HEAD_DIM], w.sizes[PAGE_TOKENS]
    begin = max(chunk * CHUNK, _first_seen(token, layer, w, batch))
    end = min((chunk + 1) * CHUNK, batch.visible[token])
    stride, row = page_tokens * size, batch.rows[token]
    key_at = (layer * 2 * key_heads + low) * stride
    arguments = (
        queries, 0, high - low, w.sizes[HEADS] // key_heads, size, data, key_at, key_at + key_heads * stride, stride,
        w.extras.shape[0] * 2 * key_heads * stride, batch.pages, batch.starts, batch.begins, batch.lengths,
        batch.offsets[row], batch.offsets[row + 1], begin, end, s.scores[thread], out, out_at,
    )  # fmt: skip
    call_attend(w.calls[ATTEND_CALL], arguments)


@pasted
def _first_seen(token: int, layer: int, w: Weights, batch: Batch) -> int:
    window = w.extras[layer, WINDOW]
    return max(0, batch.visible[token] - window) if window > 0 else 0


@pasted
def _first_chunk(token: int, layer: int, w: Weights, batch: Batch) -> int:
    return _first_seen(token, layer, w, batch) // CHUNK


@pasted
def _chunks_end(token: int, batch: Batch) -> int:
    end: int = (batch.visible[token] + CHUNK - 1) // CHUNK
    return end


@compiled
def _attention_of_few(thread: int, threads: int, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch) -> None:
    """Cells of the contexts of a few tokens, a chunk and key head each, split evenly; `_merge_parts` joins them."""
    key_heads = w.sizes[KEY_HEADS]
    unit, cells = w.sizes[HEADS] // key_heads * (w.sizes[HEAD_DIM] + 2), 0
    for token in range(batch.ids.shape[0]):
        cells += (_chunks_end(token, batch) - _first_chunk(token, layer, w, batch)) * key_heads
    low, high = share(cells, thread, threads)
    if batch.ids.shape[0] == 1 and low < high:
        # Every thread stores the same bytes, so that none waits for the other.
        for head in range(key_heads):
            call_store_keys(w.calls[KEYS_CALL], (0, head, layer, w, batch, data, s, thread))
    queries, cell = s.own_queries[thread], 0
    for token in range(batch.ids.shape[0]):
        turned = -1
        for chunk in range(_first_chunk(token, layer, w, batch), _chunks_end(token, batch)):
            begin, end = max(low - cell, 0), min(high - cell, key_heads)
            if begin < end:
                if turned != begin * key_heads + end:
                    turn_queries(token, begin, end, layer, w, batch, s, thread, queries)
                    turned = begin * key_heads + end
                out_at = (cell + begin) * unit
                _attend_chunk(token, begin, end, chunk, layer, w, batch, data, s, thread, queries, s.parts, out_at)
            cell += key_heads


ATTEND_FEW = Compiled(_attention_of_few, types.void(_INT, _INT, _INT, WEIGHTS, BATCH, _U16, SCRATCH))
call_attend_few = caller(ATTEND_FEW.signature)


@compiled
def _merge_parts(token: int, layer: int, w: Weights, batch: Batch, s: Scratch, thread: int, out: Any) -> None:
    """The mixed values of one of a few tokens, to the beginning of `out`."""
    key_heads, size = w.sizes[KEY_HEADS], w.sizes[HEAD_DIM]
    group = w.sizes[HEADS] // key_heads
    pair, unit, cell = s.pair[thread], group * (size + 2), 0
    for before in range(token):
        cell += (_chunks_end(before, batch) - _first_chunk(before, layer, w, batch)) * key_heads
    chunks = _chunks_end(token, batch) - _first_chunk(token, layer, w, batch)
    for head in range(key_heads):
        at = (cell + head) * unit
        pair[:unit] = s.parts[at : at + unit]
        for chunk in range(1, chunks):
            merge(pair, 0, s.parts, at + chunk * key_heads * unit, group, size)
        finish(pair, 0, group, size, out, head * group * size)


MERGE_PARTS = Compiled(_merge_parts, types.void(_INT, _INT, WEIGHTS, BATCH, SCRATCH, _INT, _F32))
call_merge_parts = caller(MERGE_PARTS.signature)


@compiled
def _attention_of_many(
    thread: int, threads: int, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch, budgets: Any
) -> None:
    """Every thread takes its tokens through one chunk after the other, so that neighbours find it in the cache.

    Tokens with a budget (int64 [tokens], or empty when there are none) are left out.
    """
    tokens, key_heads, size = batch.ids.shape[0], w.sizes[KEY_HEADS], w.sizes[HEAD_DIM]
    group, mixed = w.sizes[HEADS] // key_heads, w.sizes[HEADS] * size
    unit, pair, chunks = group * (size + 2), s.pair[thread], 0
    for token in range(thread, tokens, threads):
        if budgets.shape[0] > 0 and budgets[token] > 0:
            continue
        turn_queries(token, 0, key_heads, layer, w, batch, s, thread, s.queries[token])
        chunks = max(chunks, _chunks_end(token, batch))
    for chunk in range(chunks):
        for token in range(thread, tokens, threads):
            if budgets.shape[0] > 0 and budgets[token] > 0:
                continue
            first, end = _first_chunk(token, layer, w, batch), _chunks_end(token, batch)
            if first <= chunk < end:
                out, state = (s.states[token], s.states[token]) if chunk == first else (pair, s.states[token])
                _attend_chunk(
                    token, 0, key_heads, chunk, layer, w, batch, data, s, thread, s.queries[token], out, 0
                )  # fmt: skip
                for head in range(key_heads):
                    if chunk > first:
                        merge(state, head * unit, pair, head * unit, group, size)
                    if chunk == end - 1:
                        finish(state, head * unit, group, size, s.mixed, token * mixed + head * group * size)


ATTEND_MANY = Compiled(
    _attention_of_many,
    types.void(_INT, _INT, _INT, WEIGHTS, BATCH, _U16, SCRATCH, types.Array(types.int64, 1, "C")),
)  # fmt: skip
call_attend_many = caller(ATTEND_MANY.signature)


@compiled
def attention(
    thread: int, threads: int, barrier: Any, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch, budgets: Any
) -> None:
    """From projected queries, keys and values of several tokens to mixed values, but of those with a budget."""
    tokens, mixed = batch.ids.shape[0], w.sizes[HEADS] * w.sizes[HEAD_DIM]
    for token in range(thread, tokens, threads):
        for head in range(w.sizes[KEY_HEADS]):
            call_store_keys(w.calls[KEYS_CALL], (token, head, layer, w, batch, data, s, thread))
    meet(barrier, threads)
    if tokens > FEW or budgets.shape[0] > 0:
        call_attend_many(w.calls[MANY_CALL], (thread, threads, layer, w, batch, data, s, budgets))
        return
    call_attend_few(w.calls[FEW_CALL], (thread, threads, layer, w, batch, data, s))
    meet(barrier, threads)
    for token in range(thread, tokens, threads):
        out = s.mixed[token * mixed : (token + 1) * mixed]
        call_merge_parts(w.calls[MERGE_CALL], (token, layer, w, batch, s, thread, out))


@compiled
def _measure_mass(thread: int, threads: int, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch) -> None:
    """Add what each token attends to in this layer to its line of `s.mass`, for sequences that have bounds.

    Every third layer is asked: the mean hardly moves, and it costs a third.
    """
    if layer % 3 != 0:
        return
    tokens, heads, key_heads, size = batch.ids.shape[0], w.sizes[HEADS], w.sizes[KEY_HEADS], w.sizes[HEAD_DIM]
    stride, widest = w.sizes[PAGE_TOKENS] * size, s.mass.shape[0] // tokens
    key_at, layers = layer * 2 * key_heads * stride, w.extras.shape[0]
    for token in range(thread, tokens, threads):
        row = batch.rows[token]
        low, high = batch.bound_offsets[row], batch.bound_offsets[row + 1]
        if low == high:
            continue
        turn_queries(token, 0, key_heads, layer, w, batch, s, thread, s.own_queries[thread])
        arguments = (
            s.own_queries[thread], key_heads, heads // key_heads, size, data, key_at, key_at + key_heads * stride,
            stride, layers * 2 * key_heads * stride, batch.pages, batch.starts, batch.begins, batch.lengths,
            batch.offsets[row], batch.offsets[row + 1], _first_seen(token, layer, w, batch), batch.visible[token],
            batch.bounds, low, high, s.scores[thread], 1.0 / (heads * ((layers + 2) // 3)), s.mass, token * widest,
        )  # fmt: skip
        call_mass(w.calls[MASS_CALL], arguments)


MEASURE_MASS = Compiled(_measure_mass, types.void(_INT, _INT, _INT, WEIGHTS, BATCH, _U16, SCRATCH))
call_measure_mass = caller(MEASURE_MASS.signature)
