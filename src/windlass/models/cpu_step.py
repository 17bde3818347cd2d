"""The whole model as one compiled function: some tokens in, logits out, entered by every thread at once.

The tokens may belong to one sequence (a prompt) or to many (a batch of decoding steps); each brings its position, its
slot and the runs of its context (`token_batch`). Threads split the rows of each matrix and meet between phases. With a
single token every thread rounds the activations for itself, which is cheaper than meeting once more, and the threads
share its context instead of its sequence's neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from windlass.kernels.compiled import Compiled, caller, compiled
from windlass.kernels.cpu_attention import ATTEND, MASS
from windlass.kernels.cpu_gemm import TILE_PRODUCT, VECTOR_PRODUCT, unpack_row
from windlass.kernels.lora import EXPAND, SHRINK
from windlass.kernels.meeting import meet
from windlass.models.cpu_adapters import EXPAND_ROWS, SHRINK_TOKENS, call_expand_rows, call_shrink_tokens
from windlass.models.cpu_context import (
    ATTEND_FEW,
    ATTEND_MANY,
    MEASURE_MASS,
    MERGE_PARTS,
    STORE_KEYS,
    TURN,
    attention,
    call_attend_few,
    call_measure_mass,
    call_merge_parts,
)
from windlass.models.cpu_head import FIND_HEAD, call_head
from windlass.models.cpu_linear import (
    PROJECT,
    PROJECT_GATED,
    QUANTIZE,
    call_project,
    call_project_gated,
    call_quantize,
)
from windlass.models.cpu_sparse import ATTEND_SPARSE, call_attend_sparse
from windlass.models.cpu_tables import (
    ADAPTERS,
    ATTN_NORM,
    BATCH,
    BYTE,
    DOWN,
    EMBEDDING,
    EXPAND_ROWS_CALL,
    FEW_CALL,
    FFN_NORM,
    GATE,
    GATED_CALL,
    HEAD_CALL,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    INNER,
    KEY_HEADS,
    KIND,
    LARGEST_BLOCKS,
    LAYER_CALL,
    MEASURE_CALL,
    MERGE_CALL,
    OUTPUT,
    PROJECT_CALL,
    QUANTIZE_CALL,
    QUERY,
    ROWS,
    SCRATCH,
    SHRINK_TOKENS_CALL,
    SPARSE,
    SPARSE_CALL,
    UP,
    VALUE,
    WEIGHTS,
    WINDOW,
    Adapters,
    Batch,
    Scratch,
    Sparse,
    Weights,
    share,
)


def kernel_addresses() -> NDArray[np.int64]:
    """What `Weights.calls` holds: the machine code of the kernels, compiled or read from disk now."""
    kernels = (
        TILE_PRODUCT, VECTOR_PRODUCT, ATTEND, PROJECT, PROJECT_GATED, QUANTIZE, TURN, STORE_KEYS, ATTEND_FEW,
        MERGE_PARTS, ATTEND_MANY, FIND_HEAD, LAYER, SHRINK, EXPAND, SHRINK_TOKENS, EXPAND_ROWS, MASS, MEASURE_MASS,
        ATTEND_SPARSE,
    )  # fmt: skip
    return np.array([kernel.address() for kernel in kernels], np.int64)


@compiled
def _linear_qkv(
    thread: int, threads: int, tokens: int, layer: int, w: Weights, s: Scratch, x_at: int, adapters: Adapters, data: Any
) -> None:
    plan = w.plan[layer]
    stride = (w.sizes[HEADS] + 2 * w.sizes[KEY_HEADS]) * w.sizes[HEAD_DIM]
    total = 0
    for matrix in range(QUERY, VALUE + 1):
        total += (plan[matrix, ROWS] + 15) // 16
    low, high = share(total, thread, threads)
    before, out_at = 0, 0
    for matrix in range(QUERY, VALUE + 1):
        tiles = (plan[matrix, ROWS] + 15) // 16
        begin, end = max(low - before, 0), min(high - before, tiles)
        arguments = (
            plan[matrix], begin, end, tokens, w.arena, w.floats, s.xq, s.dx, s.xsum, x_at, w.calls, s.sums[thread],
            s.qkv, out_at, stride, False,
        )  # fmt: skip
        call_project(w.calls[PROJECT_CALL], arguments)
        if adapters.slots.shape[0] > 0 and begin < end:
            rows = min(16 * end, plan[matrix, ROWS]) - 16 * begin
            updates = (
                thread, tokens, 0, tokens, layer, matrix, matrix - QUERY, 16 * begin, rows, w, adapters, data, s.qkv,
                out_at + 16 * begin, stride,
            )  # fmt: skip
            call_expand_rows(w.calls[EXPAND_ROWS_CALL], updates)
        before += tiles
        out_at += plan[matrix, ROWS]


@compiled
def _linear_add(
    thread: int, threads: int, tokens: int, layer: int, which: int, w: Weights, s: Scratch, x_at: int,
    adapters: Adapters, data: Any,
) -> None:  # fmt: skip
    matrix = w.plan[layer, which]
    low, high = share((matrix[ROWS] + 15) // 16, thread, threads)
    arguments = (
        matrix, low, high, tokens, w.arena, w.floats, s.xq, s.dx, s.xsum, x_at, w.calls, s.sums[thread], s.x, 0,
        w.sizes[HIDDEN], True,
    )  # fmt: skip
    call_project(w.calls[PROJECT_CALL], arguments)
    if adapters.slots.shape[0] > 0 and low < high:
        updates = (
            thread, tokens, 0, tokens, layer, which, 0, 16 * low, min(16 * high, matrix[ROWS]) - 16 * low, w, adapters,
            data, s.x, 16 * low, w.sizes[HIDDEN],
        )  # fmt: skip
        call_expand_rows(w.calls[EXPAND_ROWS_CALL], updates)


@compiled
def _shrink(
    thread: int, threads: int, tokens: int, layer: int, low: int, high: int, x: Any, size: int, norm_at: int,
    w: Weights, adapters: Adapters, data: Any,
) -> None:  # fmt: skip
    if adapters.slots.shape[0] > 0:
        arguments = (thread, threads, tokens, layer, low, high, x, size, norm_at, w, adapters, data)
        call_shrink_tokens(w.calls[SHRINK_TOKENS_CALL], arguments)


@compiled
def _layer(
    thread: int, threads: int, barrier: Any, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch, x_at: int,
    adapters: Adapters, sparse: Sparse,
) -> None:  # fmt: skip
    tokens, hidden, inner = batch.ids.shape[0], w.sizes[HIDDEN], w.sizes[INNER]
    plan, extra, normed = w.plan[layer], w.extras[layer], s.normed[thread]
    together = 1 if tokens == 1 else threads
    mixed = w.sizes[HEADS] * w.sizes[HEAD_DIM]
    call_quantize(
        w.calls[QUANTIZE_CALL],
        (thread, threads, tokens, s.x, hidden, w.floats, extra[ATTN_NORM], w.eps, normed, s.xq, s.dx, s.xsum, x_at),
    )
    _shrink(thread, threads, tokens, layer, QUERY, VALUE + 1, s.x, hidden, extra[ATTN_NORM], w, adapters, data)
    meet(barrier, together)
    _linear_qkv(thread, threads, tokens, layer, w, s, x_at, adapters, data)
    meet(barrier, threads)
    if tokens == 1 and sparse.budgets.shape[0] == 0:
        call_attend_few(w.calls[FEW_CALL], (thread, threads, layer, w, batch, data, s))
        meet(barrier, threads)
        if batch.bounds.shape[0] > 0:
            call_measure_mass(w.calls[MEASURE_CALL], (thread, threads, layer, w, batch, data, s))
        call_merge_parts(w.calls[MERGE_CALL], (0, layer, w, batch, s, thread, normed))
        arguments = (0, 1, 1, normed, mixed, w.floats, -1, w.eps, normed, s.xq, s.dx, s.xsum, x_at)
        call_quantize(w.calls[QUANTIZE_CALL], arguments)
        _shrink(thread, threads, tokens, layer, OUTPUT, OUTPUT + 1, normed, mixed, -1, w, adapters, data)
    else:
        window = extra[WINDOW] > 0
        attention(thread, threads, barrier, layer, w, batch, data, s, sparse.windowed if window else sparse.budgets)
        if sparse.budgets.shape[0] > 0 and not window:
            call_attend_sparse(w.calls[SPARSE_CALL], (thread, threads, layer, w, batch, data, s, sparse))
        if batch.bounds.shape[0] > 0:
            call_measure_mass(w.calls[MEASURE_CALL], (thread, threads, layer, w, batch, data, s))
        meet(barrier, threads)
        arguments = (thread, threads, tokens, s.mixed, mixed, w.floats, -1, w.eps, normed, s.xq, s.dx, s.xsum, x_at)
        call_quantize(w.calls[QUANTIZE_CALL], arguments)
        _shrink(thread, threads, tokens, layer, OUTPUT, OUTPUT + 1, s.mixed, mixed, -1, w, adapters, data)
    meet(barrier, together)
    _linear_add(thread, threads, tokens, layer, OUTPUT, w, s, x_at, adapters, data)
    meet(barrier, threads)
    call_quantize(
        w.calls[QUANTIZE_CALL],
        (thread, threads, tokens, s.x, hidden, w.floats, extra[FFN_NORM], w.eps, normed, s.xq, s.dx, s.xsum, x_at),
    )
    _shrink(thread, threads, tokens, layer, GATE, UP + 1, s.x, hidden, extra[FFN_NORM], w, adapters, data)
    meet(barrier, together)
    low, high = share((inner + 15) // 16, thread, threads)
    gated = (
        plan[GATE], plan[UP], low, high, tokens, w.arena, w.floats, s.xq, s.dx, s.xsum, x_at, w.calls, s.sums[thread],
        s.more[thread], s.inner, inner, thread, layer, w, adapters, data,
    )  # fmt: skip
    call_project_gated(w.calls[GATED_CALL], gated)
    meet(barrier, threads)
    call_quantize(
        w.calls[QUANTIZE_CALL],
        (thread, threads, tokens, s.inner, inner, w.floats, -1, w.eps, normed, s.xq, s.dx, s.xsum, x_at),
    )
    _shrink(thread, threads, tokens, layer, DOWN, DOWN + 1, s.inner, inner, -1, w, adapters, data)
    meet(barrier, together)
    _linear_add(thread, threads, tokens, layer, DOWN, w, s, x_at, adapters, data)
    meet(barrier, threads)


_INT, _I64 = types.int64, types.Array(types.int64, 1, "C")
_U16 = types.Array(types.uint16, 1, "C")
LAYER = Compiled(_layer, types.void(_INT, _INT, _I64, _INT, WEIGHTS, BATCH, _U16, SCRATCH, _INT, ADAPTERS, SPARSE))
call_layer = caller(LAYER.signature)


@compiled
def forward(
    thread: int,
    threads: int,
    barrier: Any,
    w: Weights,
    batch: Batch,
    data: Any,
    s: Scratch,
    adapters: Adapters,
    sparse: Sparse,
    logits: Any,
    best: Any,
    chosen: Any,
) -> None:
    """Append every token of `batch` to its sequence; write what `head` says for each of
    `batch.wanted`.

    Tokens with an adapter get its updates too (`adapters`), those with a budget read a part of their context
    (`sparse`). Every thread calls this with its own number and the same arguments. Sums do not depend on the number of
    threads, nor on which tokens share a batch.
    """
    tokens, hidden, layers = batch.ids.shape[0], w.sizes[HIDDEN], w.extras.shape[0]
    mine = thread * w.sizes[LARGEST_BLOCKS]
    embedding = w.plan[layers, EMBEDDING]
    for token in range(thread, tokens, threads):
        unpack_row(w.arena, embedding[BYTE], embedding[KIND], hidden, batch.ids[token], s.x, token * hidden)
    meet(barrier, threads)
    for layer in range(layers):
        arguments = (thread, threads, barrier, layer, w, batch, data, s, mine if tokens == 1 else 0, adapters, sparse)
        call_layer(w.calls[LAYER_CALL], arguments)
    if batch.wanted.shape[0] > 0:
        call_head(w.calls[HEAD_CALL], (thread, threads, barrier, w, batch, s, logits, best, chosen))
        meet(barrier, threads)
