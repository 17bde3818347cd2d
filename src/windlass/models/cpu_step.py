"""The whole model as one compiled function: some tokens in, logits out, entered by every thread at once.

The tokens may belong to one sequence (a prompt) or to many (a batch of decoding steps); each brings its position, its
slot and the runs of its context (`token_batch`). Threads split the rows of each matrix and meet between phases. With a
single token every thread rounds the activations for itself, which is cheaper than meeting once more, and the threads
share its context instead of its sequence's neighbours.
"""

from __future__ import annotations

from typing import Any

from numba import types

from windlass.kernels.compiled import Compiled, called, caller
from windlass.kernels.meeting import meet
from windlass.kernels.tile_packing import unpack_row
from windlass.kernels.views import float32s, int64s, table_at, uint8s
from windlass.models.cpu_adapters import call_shrink_tokens
from windlass.models.cpu_context import attention, call_attend_few, call_measure_mass, call_merge_parts, reads_parts
from windlass.models.cpu_head import call_head
from windlass.models.cpu_linear import call_project, call_project_gated, call_quantize, matrix_at, share, update
from windlass.models.cpu_sparse import call_attend_sparse
from windlass.models.cpu_tables import (
    ARENA,
    ATTN_NORM,
    BARRIER,
    BOUNDS,
    BYTE,
    CALLS,
    DOWN,
    EMBEDDING,
    EXTRAS,
    FEW_CALL,
    FFN_NORM,
    GATE,
    GATED_CALL,
    HEAD_CALL,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    IDS,
    INNER,
    INNER_STATE,
    KEY_HEADS,
    KIND,
    LARGEST_BLOCKS,
    LAYER_CALL,
    LAYERS,
    LOWER,
    MEASURE_CALL,
    MERGE_CALL,
    MIXED,
    NORMED,
    NOTES,
    OUTPUT,
    PLAN,
    PROJECT_CALL,
    QKV,
    QUANTIZE_CALL,
    QUERY,
    ROWS,
    SHRINK_TOKENS_CALL,
    SIZES,
    SPARSE_CALL,
    TOKEN_ADAPTERS,
    UP,
    VALUE,
    WANTED,
    X,
)


@called
def _linear_qkv(t: Any, thread: int, threads: int, tokens: int, layer: int, x_at: int) -> None:
    plan, sizes, qkv, calls = int64s(t, PLAN), int64s(t, SIZES), float32s(t, QKV), int64s(t, CALLS)
    stride, total = (sizes[HEADS] + 2 * sizes[KEY_HEADS]) * sizes[HEAD_DIM], 0
    for slot in range(QUERY, VALUE + 1):
        total += (plan[matrix_at(layer, slot) + ROWS] + 15) // 16
    low, high = share(total, thread, threads)
    before, out_at = 0, 0
    for slot in range(QUERY, VALUE + 1):
        matrix = matrix_at(layer, slot)
        rows = plan[matrix + ROWS]
        tiles = (rows + 15) // 16
        begin, end = max(low - before, 0), min(high - before, tiles)
        call_project(calls[PROJECT_CALL], (t, matrix, begin, end, tokens, x_at, qkv, out_at, stride, False))
        if begin < end:
            shift, low_row, count = slot - QUERY, 16 * begin, min(16 * end, rows) - 16 * begin
            at = out_at + low_row
            update(t, thread, tokens, 0, tokens, layer, slot, shift, low_row, count, qkv, at, stride)
        before += tiles
        out_at += rows


@called
def _linear_add(t: Any, thread: int, threads: int, tokens: int, layer: int, slot: int, x_at: int) -> None:
    matrix, x, stride = matrix_at(layer, slot), float32s(t, X), int64s(t, SIZES)[HIDDEN]
    rows = int64s(t, PLAN)[matrix + ROWS]
    low, high = share((rows + 15) // 16, thread, threads)
    arguments = (t, matrix, low, high, tokens, x_at, x, 0, stride, True)
    call_project(int64s(t, CALLS)[PROJECT_CALL], arguments)
    if low < high:
        first, count = 16 * low, min(16 * high, rows) - 16 * low
        update(t, thread, tokens, 0, tokens, layer, slot, 0, first, count, x, first, stride)


@called
def _round(
    t: Any, thread: int, threads: int, tokens: int, layer: int, low: int, high: int, x: Any, size: int, norm_at: int,
    x_at: int,
) -> None:  # fmt: skip
    """Prepare rows of `x`, after the norm at `norm_at` if any, for the matrices `low` to `high` of a layer."""
    calls = int64s(t, CALLS)
    call_quantize(calls[QUANTIZE_CALL], (t, thread, threads, tokens, x, size, norm_at, x_at))
    if int64s(t, TOKEN_ADAPTERS).shape[0] > 0:
        arguments = (t, thread, threads, tokens, layer, low, high, x, size, norm_at)
        call_shrink_tokens(calls[SHRINK_TOKENS_CALL], arguments)
    meet(int64s(t, BARRIER), 1 if tokens == 1 else threads)


@called
def _mix(t: Any, thread: int, threads: int, layer: int, tokens: int, x_at: int) -> None:
    """From projected queries, keys and values to rounded mixed values."""
    sizes, calls, barrier, normed = int64s(t, SIZES), int64s(t, CALLS), int64s(t, BARRIER), float32s(t, NORMED)
    width = sizes[HEADS] * sizes[HEAD_DIM]
    parts = reads_parts(t, layer)
    alone = tokens == 1 and not parts
    if alone:
        call_attend_few(calls[FEW_CALL], (t, thread, threads, layer))
        meet(barrier, threads)
    else:
        attention(t, thread, threads, layer)
    if parts:
        call_attend_sparse(calls[SPARSE_CALL], (t, thread, threads, layer))
    if int64s(t, BOUNDS).shape[0] > 0:
        call_measure_mass(calls[MEASURE_CALL], (t, thread, threads, layer))
    if alone:
        call_merge_parts(calls[MERGE_CALL], (t, 0, layer, normed, 0))
        _round(t, thread, threads, tokens, layer, OUTPUT, OUTPUT + 1, normed, width, -1, x_at)
    else:
        meet(barrier, threads)
        _round(t, thread, threads, tokens, layer, OUTPUT, OUTPUT + 1, float32s(t, MIXED), width, -1, x_at)


@called
def _layer(t: Any, thread: int, threads: int, layer: int, tokens: int, x_at: int) -> None:
    sizes, barrier, x, inner_state = int64s(t, SIZES), int64s(t, BARRIER), float32s(t, X), float32s(t, INNER_STATE)
    extras, hidden, inner, notes = int64s(t, EXTRAS), sizes[HIDDEN], sizes[INNER], layer * NOTES
    _round(t, thread, threads, tokens, layer, QUERY, VALUE + 1, x, hidden, extras[notes + ATTN_NORM], x_at)
    _linear_qkv(t, thread, threads, tokens, layer, x_at)
    meet(barrier, threads)
    _mix(t, thread, threads, layer, tokens, x_at)
    _linear_add(t, thread, threads, tokens, layer, OUTPUT, x_at)
    meet(barrier, threads)
    _round(t, thread, threads, tokens, layer, GATE, UP + 1, x, hidden, extras[notes + FFN_NORM], x_at)
    low, high = share((inner + 15) // 16, thread, threads)
    call_project_gated(int64s(t, CALLS)[GATED_CALL], (t, thread, layer, low, high, tokens, x_at))
    meet(barrier, threads)
    _round(t, thread, threads, tokens, layer, DOWN, DOWN + 1, inner_state, inner, -1, x_at)
    _linear_add(t, thread, threads, tokens, layer, DOWN, x_at)
    meet(barrier, threads)


_INT, _I64 = types.int64, types.Array(types.int64, 1, "C")
LAYER = Compiled(_layer, types.void(_I64, _INT, _INT, _INT, _INT, _INT))
call_layer = caller(LAYER.signature)


@called
def _forward(table: int, thread: int, threads: int) -> None:
    """Append every token of the batch to its sequence; then logits, or the best row, of each wanted token.

    Every thread calls this with its own number and table. Tokens with an adapter get its updates too, those with a
    budget read a part of their context. Sums do not depend on the number of threads, nor on which tokens share a batch.
    """
    t = table_at(table)
    sizes, plan, ids, x = int64s(t, SIZES), int64s(t, PLAN), int64s(t, IDS), float32s(t, X)
    barrier, calls, arena = int64s(t, BARRIER), int64s(t, CALLS), uint8s(t, ARENA)
    tokens, hidden, layers = ids.shape[0], sizes[HIDDEN], sizes[LAYERS]
    embedding = matrix_at(layers, EMBEDDING)
    at, lower, kind = plan[embedding + BYTE], plan[embedding + LOWER], plan[embedding + KIND]
    for token in range(thread, tokens, threads):
        unpack_row(arena, at, lower, kind, hidden, ids[token], x, token * hidden)
    meet(barrier, threads)
    x_at = thread * sizes[LARGEST_BLOCKS] if tokens == 1 else 0
    for layer in range(layers):
        call_layer(calls[LAYER_CALL], (t, thread, threads, layer, tokens, x_at))
    if int64s(t, WANTED).shape[0] > 0:
        call_head(calls[HEAD_CALL], (t, thread, threads))
        meet(barrier, threads)


FORWARD = Compiled(_forward, types.void(_INT, _INT, _INT))
