"""The whole model as one compiled function: some tokens in, logits out, entered by every thread at once.

The tokens may belong to one sequence (a prompt) or to many (a batch of decoding steps); each brings its position, its
slot and the runs of its context (`token_batch`). Threads split the rows of each matrix and meet between phases. With a
single token every thread rounds the activations for itself, which is cheaper than meeting once more, and the threads
share its context instead of its sequence's neighbours.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from windlass.kernels.compiled import Compiled, caller, compiled, pasted
from windlass.kernels.cpu_attention import (
    ATTEND,
    CHUNK,
    call_attend,
    finish,
    gate,
    merge,
    normalize,
    remember,
    rotate,
)
from windlass.kernels.cpu_gemm import (
    TILE_PRODUCT,
    VECTOR_PRODUCT,
    call_tile_product,
    call_vector_product,
    quantize_token,
    unpack_row,
)
from windlass.kernels.meeting import meet
from windlass.kernels.simd import LANES, add_float, load_float, store_float

QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN = range(7)
"""Rows of `plan[layer]`: the matrices of a layer; of the row after the last layer: embedding and head."""
EMBEDDING, HEAD = range(2)
KIND, BYTE, ROWS, BLOCKS, BIAS = range(5)
"""Columns of a matrix in `plan`: kind, first byte, rows, blocks of 32 inputs, first bias in `floats` or -1."""
ATTN_NORM, FFN_NORM, Q_NORM, K_NORM, WINDOW = range(5)
"""Columns of `extras[layer]`: where norms begin in `floats` (-1: none), and the attention window (0: everything)."""
HIDDEN, HEADS, KEY_HEADS, HEAD_DIM, INNER, INTERLEAVED, FINAL_NORM, LARGEST_BLOCKS, PAGE_TOKENS = range(9)
"""Entries of `sizes`."""
TILE_CALL, VECTOR_CALL, ATTEND_CALL, PROJECT_CALL, GATED_CALL, QUANTIZE_CALL, TURN_CALL = range(7)
"""Entries of `Weights.calls`: addresses of compiled functions."""
TOKEN_GROUP = 64
"""Tokens that share one pass over a weight tile; their sums stay in the first-level cache."""


class Weights(NamedTuple):
    """A packed model: `arena` uint8, `floats` float32, `plan` int64 [layers + 1, 7, 5], `extras` int64 [layers, 5]."""

    arena: Any
    floats: Any
    plan: Any
    extras: Any
    sizes: Any
    eps: float
    cosine: Any
    sine: Any
    calls: Any


class Batch(NamedTuple):
    """The arrays of a `TokenBatch`, int64, and where in its context each run begins."""

    ids: Any
    positions: Any
    rows: Any
    slots: Any
    visible: Any
    pages: Any
    starts: Any
    begins: Any
    lengths: Any
    offsets: Any
    wanted: Any


class Scratch(NamedTuple):
    """Memory for one step. Shared: x, qkv, mixed, inner, xq, dx, xsum, parts. A row a thread: the others.

    `parts` holds what `attend` makes of each chunk of a single token's context, by key head and chunk; `pair`
    the same for the two chunks that one thread is merging.
    """

    x: Any
    qkv: Any
    mixed: Any
    inner: Any
    xq: Any
    dx: Any
    xsum: Any
    normed: Any
    sums: Any
    more: Any
    scores: Any
    queries: Any
    twice: Any
    parts: Any
    pair: Any


@pasted
def _tile_bytes(kind: int, blocks: int) -> int:
    return blocks * (544 if kind == 2 else (320 if kind == 0 else 288))


@pasted
def _share(total: int, thread: int, threads: int) -> tuple[int, int]:
    return total * thread // threads, total * (thread + 1) // threads


@compiled
def _store(
    sums: Any, sums_at: int, count: int, rows: int, floats: Any, bias_at: int, out: Any, out_at: int, stride: int,
    add: bool,
) -> None:  # fmt: skip
    """Write (or add) `rows` of each token's sums, of whole tiles but the last, to `out[out_at + token * stride]`."""
    for token in range(count):
        target, source = out_at + token * stride, sums_at + 16 * token
        whole = rows // LANES * LANES
        for row in range(0, whole, LANES):
            value = load_float(sums, source + row)
            if bias_at >= 0:
                value = add_float(value, load_float(floats, bias_at + row))
            if add:
                value = add_float(value, load_float(out, target + row))
            store_float(out, target + row, value)
        for row in range(whole, rows):
            single = sums[source + row]
            if bias_at >= 0:
                single += floats[bias_at + row]
            out[target + row] = single + (out[target + row] if add else np.float32(0))


@compiled
def _project(
    matrix: Any, low: int, high: int, tokens: int, arena: Any, floats: Any, xq: Any, dx: Any, xsum: Any, x_at: int,
    calls: Any, sums: Any, out: Any, out_at: int, stride: int, add: bool,
) -> None:  # fmt: skip
    """Tiles `low` to `high` of one matrix for all tokens, into `out[token * stride + out_at + row]`."""
    kind, blocks, bias = matrix[KIND], matrix[BLOCKS], matrix[BIAS]
    size = _tile_bytes(kind, blocks)
    if tokens == 1:
        for tile in range(low, high, TOKEN_GROUP):
            tiles, at = min(TOKEN_GROUP, high - tile), matrix[BYTE] + tile * size
            call_vector_product(calls[VECTOR_CALL], (arena, at, kind, blocks, tiles, xq, dx, xsum, x_at, sums))
            rows, start = min(16 * tiles, matrix[ROWS] - 16 * tile), bias + 16 * tile if bias >= 0 else -1
            _store(sums, 0, 1, rows, floats, start, out, out_at + 16 * tile, stride, add)
        return
    for tile in range(low, high):
        rows, start = min(16, matrix[ROWS] - 16 * tile), bias + 16 * tile if bias >= 0 else -1
        for first in range(0, tokens, TOKEN_GROUP):
            count, at = min(TOKEN_GROUP, tokens - first), matrix[BYTE] + tile * size
            arguments = (arena, at, kind, blocks, xq, dx, xsum, tokens, first, count, x_at, sums)
            call_tile_product(calls[TILE_CALL], arguments)
            _store(sums, 0, count, rows, floats, start, out, out_at + first * stride + 16 * tile, stride, add)


@compiled
def _gated_tiles(
    matrix: Any, tile: int, tiles: int, tokens: int, first: int, count: int, arena: Any, floats: Any, xq: Any,
    dx: Any, xsum: Any, x_at: int, calls: Any, sums: Any,
) -> None:  # fmt: skip
    """Sums of one of the two matrices, its bias included: of several tiles for one token, or one tile for several."""
    kind, blocks = matrix[KIND], matrix[BLOCKS]
    at = matrix[BYTE] + tile * _tile_bytes(kind, blocks)
    if tokens == 1:
        call_vector_product(calls[VECTOR_CALL], (arena, at, kind, blocks, tiles, xq, dx, xsum, x_at, sums))
    else:
        arguments = (arena, at, kind, blocks, xq, dx, xsum, tokens, first, count, x_at, sums)
        call_tile_product(calls[TILE_CALL], arguments)
    if matrix[BIAS] >= 0:
        for i in range(16 * tiles * count):
            sums[i] += floats[matrix[BIAS] + 16 * tile + (i if tokens == 1 else i % 16)]


@compiled
def _project_gated(
    gates: Any, ups: Any, low: int, high: int, tokens: int, arena: Any, floats: Any, xq: Any, dx: Any, xsum: Any,
    x_at: int, calls: Any, sums: Any, more: Any, out: Any, stride: int,
) -> None:  # fmt: skip
    """Tiles of the gate and the up matrix together: `silu(gate) * up` into `out[token * stride + row]`."""
    together = 8 if tokens == 1 else 1
    for tile in range(low, high, together):
        tiles = min(together, high - tile)
        for first in range(0, tokens, TOKEN_GROUP):
            count = min(TOKEN_GROUP, tokens - first)
            for matrix, target in ((gates, sums), (ups, more)):
                _gated_tiles(
                    matrix, tile, tiles, tokens, first, count, arena, floats, xq, dx, xsum, x_at, calls, target
                )
            for part in range(tiles * count):
                row = 16 * (tile + part) if tokens == 1 else (first + part) * stride + 16 * tile
                gate(sums, 16 * part, more, 16 * part, out, row)


@compiled
def _quantize(
    thread: int, threads: int, tokens: int, x: Any, size: int, floats: Any, norm_at: int, eps: float, scratch: Any,
    xq: Any, dx: Any, xsum: Any, x_at: int,
) -> None:  # fmt: skip
    """Round rows of `x`, after the norm at `norm_at` when there is one. One token: every thread for itself."""
    for token in range(0 if tokens == 1 else thread, tokens, 1 if tokens == 1 else threads):
        if norm_at >= 0:
            normalize(x, token * size, size, floats, norm_at, eps, scratch, 0)
            quantize_token(scratch, 0, size // 32, token, tokens, xq, dx, xsum, x_at)
        else:
            quantize_token(x, token * size, size // 32, token, tokens, xq, dx, xsum, x_at)


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


_INT, _FLOAT, _FLAG = types.int64, types.float64, types.boolean
_U8, _I8, _F32, _I64 = (types.Array(kind, 1, "C") for kind in (types.uint8, types.int8, types.float32, types.int64))
_ROUNDED = (_I8, _F32, _F32, _INT)
PROJECT = Compiled(
    _project,
    types.void(_I64, _INT, _INT, _INT, _U8, _F32, *_ROUNDED, _I64, _F32, _F32, _INT, _INT, _FLAG),
)
PROJECT_GATED = Compiled(
    _project_gated,
    types.void(_I64, _I64, _INT, _INT, _INT, _U8, _F32, *_ROUNDED, _I64, _F32, _F32, _F32, _INT),
)
QUANTIZE = Compiled(_quantize, types.void(_INT, _INT, _INT, _F32, _INT, _F32, _INT, _FLOAT, _F32, *_ROUNDED))
TURN = Compiled(
    _turn,
    types.void(_F32, _INT, _INT, _INT, _INT, _F32, _FLOAT, types.float32, _F32, _F32, _INT, _FLAG, _F32, _F32),
)
call_project, call_project_gated, call_quantize, call_turn = (
    caller(kernel.signature) for kernel in (PROJECT, PROJECT_GATED, QUANTIZE, TURN)
)


def kernel_addresses() -> NDArray[np.int64]:
    """What `Weights.calls` holds: the machine code of the kernels, compiled or read from disk now."""
    kernels = (TILE_PRODUCT, VECTOR_PRODUCT, ATTEND, PROJECT, PROJECT_GATED, QUANTIZE, TURN)
    return np.array([kernel.address() for kernel in kernels], np.int64)


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


@compiled
def _turn_queries(token: int, head: int, layer: int, w: Weights, batch: Batch, s: Scratch, thread: int) -> None:
    """The queries of the group of a key head, turned and scaled, into this thread's `queries`."""
    heads, key_heads, size = w.sizes[HEADS], w.sizes[KEY_HEADS], w.sizes[HEAD_DIM]
    group, scale = heads // key_heads, np.float32(math.log2(math.e) / math.sqrt(size))
    at = (token * (heads + 2 * key_heads) + head * group) * size
    arguments = (
        s.qkv, at, group, size, w.extras[layer, Q_NORM], w.floats, w.eps, scale, w.cosine, w.sine,
        batch.positions[token] * size, w.sizes[INTERLEAVED] == 1, s.twice[thread], s.queries[thread],
    )  # fmt: skip
    call_turn(w.calls[TURN_CALL], arguments)


@compiled
def _attend_chunk(
    token: int, head: int, chunk: int, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch, thread: int,
    out: Any, out_at: int,
) -> None:  # fmt: skip
    """One chunk of the context of a token for the group of a key head, whose queries are turned."""
    key_heads, size, page_tokens = w.sizes[KEY_HEADS], w.sizes[HEAD_DIM], w.sizes[PAGE_TOKENS]
    begin = max(chunk * CHUNK, _first_seen(token, layer, w, batch))
    end = min((chunk + 1) * CHUNK, batch.visible[token])
    key_at = (layer * 2 * key_heads + head) * page_tokens * size
    row = batch.rows[token]
    arguments = (
        s.queries[thread], 0, w.sizes[HEADS] // key_heads, size, data, key_at, key_at + key_heads * page_tokens * size,
        w.extras.shape[0] * 2 * key_heads * page_tokens * size, batch.pages, batch.starts, batch.begins, batch.lengths,
        batch.offsets[row], batch.offsets[row + 1], begin, end, s.scores[thread], out, out_at,
    )  # fmt: skip
    call_attend(w.calls[ATTEND_CALL], arguments)


@pasted
def _first_seen(token: int, layer: int, w: Weights, batch: Batch) -> int:
    window = w.extras[layer, WINDOW]
    return max(0, batch.visible[token] - window) if window > 0 else 0


@compiled
def _attention(
    thread: int, threads: int, barrier: Any, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch
) -> None:
    """From projected queries, keys and values to mixed values of several tokens, split by token and key head."""
    tokens, key_heads, size = batch.ids.shape[0], w.sizes[KEY_HEADS], w.sizes[HEAD_DIM]
    group = w.sizes[HEADS] // key_heads
    pair, unit = s.pair[thread], group * (size + 2)
    for token in range(thread, tokens, threads):
        for head in range(key_heads):
            _store_keys(token, head, layer, w, batch, data, s, thread)
    meet(barrier, threads)
    for item in range(thread, tokens * key_heads, threads):
        token, head = item // key_heads, item % key_heads
        _turn_queries(token, head, layer, w, batch, s, thread)
        first = _first_seen(token, layer, w, batch) // CHUNK
        for chunk in range(first, (batch.visible[token] - 1) // CHUNK + 1):
            _attend_chunk(token, head, chunk, layer, w, batch, data, s, thread, pair, 0 if chunk == first else unit)
            if chunk > first:
                merge(pair, 0, pair, unit, group, size)
        finish(pair, 0, group, size, s.mixed, item * group * size)


@compiled
def _attention_of_one(thread: int, threads: int, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch) -> None:
    """The chunks of a single token's context, split by key head and chunk; `_merge_parts` puts them together."""
    key_heads, unit = w.sizes[KEY_HEADS], w.sizes[HEADS] // w.sizes[KEY_HEADS] * (w.sizes[HEAD_DIM] + 2)
    first = _first_seen(0, layer, w, batch) // CHUNK
    chunks = (batch.visible[0] - 1) // CHUNK + 1 - first
    low, high = _share(key_heads * chunks, thread, threads)
    turned = -1
    for item in range(low, high):
        head = item // chunks
        if head != turned:
            # Threads that share a key head store the same bytes twice, so that none waits for the other.
            _store_keys(0, head, layer, w, batch, data, s, thread)
            _turn_queries(0, head, layer, w, batch, s, thread)
            turned = head
        _attend_chunk(0, head, first + item % chunks, layer, w, batch, data, s, thread, s.parts, item * unit)


@compiled
def _merge_parts(layer: int, w: Weights, batch: Batch, s: Scratch, thread: int) -> None:
    """The mixed values of a single token, into this thread's `normed`."""
    key_heads, size = w.sizes[KEY_HEADS], w.sizes[HEAD_DIM]
    group = w.sizes[HEADS] // key_heads
    pair, unit = s.pair[thread], group * (size + 2)
    chunks = (batch.visible[0] - 1) // CHUNK + 1 - _first_seen(0, layer, w, batch) // CHUNK
    for head in range(key_heads):
        at = head * chunks * unit
        pair[:unit] = s.parts[at : at + unit]
        for chunk in range(1, chunks):
            merge(pair, 0, s.parts, at + chunk * unit, group, size)
        finish(pair, 0, group, size, s.normed[thread], head * group * size)


@compiled
def _linear_qkv(thread: int, threads: int, tokens: int, plan: Any, w: Weights, s: Scratch, x_at: int) -> None:
    stride = (w.sizes[HEADS] + 2 * w.sizes[KEY_HEADS]) * w.sizes[HEAD_DIM]
    total = 0
    for matrix in range(QUERY, VALUE + 1):
        total += (plan[matrix, ROWS] + 15) // 16
    low, high = _share(total, thread, threads)
    before, out_at = 0, 0
    for matrix in range(QUERY, VALUE + 1):
        tiles = (plan[matrix, ROWS] + 15) // 16
        begin, end = max(low - before, 0), min(high - before, tiles)
        arguments = (
            plan[matrix], begin, end, tokens, w.arena, w.floats, s.xq, s.dx, s.xsum, x_at, w.calls, s.sums[thread],
            s.qkv, out_at, stride, False,
        )  # fmt: skip
        call_project(w.calls[PROJECT_CALL], arguments)
        before += tiles
        out_at += plan[matrix, ROWS]


@compiled
def _linear_add(thread: int, threads: int, tokens: int, matrix: Any, w: Weights, s: Scratch, x_at: int) -> None:
    low, high = _share((matrix[ROWS] + 15) // 16, thread, threads)
    arguments = (
        matrix, low, high, tokens, w.arena, w.floats, s.xq, s.dx, s.xsum, x_at, w.calls, s.sums[thread], s.x, 0,
        w.sizes[HIDDEN], True,
    )  # fmt: skip
    call_project(w.calls[PROJECT_CALL], arguments)


@compiled
def _layer(
    thread: int, threads: int, barrier: Any, layer: int, w: Weights, batch: Batch, data: Any, s: Scratch, x_at: int
) -> None:
    tokens, hidden, inner = batch.ids.shape[0], w.sizes[HIDDEN], w.sizes[INNER]
    plan, extra, normed = w.plan[layer], w.extras[layer], s.normed[thread]
    together = 1 if tokens == 1 else threads
    mixed = w.sizes[HEADS] * w.sizes[HEAD_DIM]
    call_quantize(
        w.calls[QUANTIZE_CALL],
        (thread, threads, tokens, s.x, hidden, w.floats, extra[ATTN_NORM], w.eps, normed, s.xq, s.dx, s.xsum, x_at),
    )
    meet(barrier, together)
    _linear_qkv(thread, threads, tokens, plan, w, s, x_at)
    meet(barrier, threads)
    if tokens == 1:
        _attention_of_one(thread, threads, layer, w, batch, data, s)
        meet(barrier, threads)
        _merge_parts(layer, w, batch, s, thread)
        arguments = (0, 1, 1, normed, mixed, w.floats, -1, w.eps, normed, s.xq, s.dx, s.xsum, x_at)
        call_quantize(w.calls[QUANTIZE_CALL], arguments)
    else:
        _attention(thread, threads, barrier, layer, w, batch, data, s)
        meet(barrier, threads)
        arguments = (thread, threads, tokens, s.mixed, mixed, w.floats, -1, w.eps, normed, s.xq, s.dx, s.xsum, x_at)
        call_quantize(w.calls[QUANTIZE_CALL], arguments)
    meet(barrier, together)
    _linear_add(thread, threads, tokens, plan[OUTPUT], w, s, x_at)
    meet(barrier, threads)
    call_quantize(
        w.calls[QUANTIZE_CALL],
        (thread, threads, tokens, s.x, hidden, w.floats, extra[FFN_NORM], w.eps, normed, s.xq, s.dx, s.xsum, x_at),
    )
    meet(barrier, together)
    low, high = _share((inner + 15) // 16, thread, threads)
    gated = (
        plan[GATE], plan[UP], low, high, tokens, w.arena, w.floats, s.xq, s.dx, s.xsum, x_at, w.calls, s.sums[thread],
        s.more[thread], s.inner, inner,
    )  # fmt: skip
    call_project_gated(w.calls[GATED_CALL], gated)
    meet(barrier, threads)
    call_quantize(
        w.calls[QUANTIZE_CALL],
        (thread, threads, tokens, s.inner, inner, w.floats, -1, w.eps, normed, s.xq, s.dx, s.xsum, x_at),
    )
    meet(barrier, together)
    _linear_add(thread, threads, tokens, plan[DOWN], w, s, x_at)
    meet(barrier, threads)


@compiled
def forward(
    thread: int, threads: int, barrier: Any, w: Weights, batch: Batch, data: Any, s: Scratch, logits: Any
) -> None:
    """Append every token of `batch` to its sequence; write `logits[row]` (float32) for each of `batch.wanted`.

    Every thread calls this with its own number and the same arguments. Sums do not depend on the number of threads,
    nor on which tokens share a batch.
    """
    tokens, hidden, layers = batch.ids.shape[0], w.sizes[HIDDEN], w.extras.shape[0]
    mine = thread * w.sizes[LARGEST_BLOCKS]
    embedding, head = w.plan[layers, EMBEDDING], w.plan[layers, HEAD]
    for token in range(thread, tokens, threads):
        unpack_row(w.arena, embedding[BYTE], embedding[KIND], hidden, batch.ids[token], s.x, token * hidden)
    meet(barrier, threads)
    for layer in range(layers):
        _layer(thread, threads, barrier, layer, w, batch, data, s, mine if tokens == 1 else 0)
    wanted = batch.wanted.shape[0]
    if wanted == 0:
        return
    for row in range(0 if wanted == 1 else thread, wanted, 1 if wanted == 1 else threads):
        normed, place = s.normed[thread], mine if wanted == 1 else 0
        normalize(s.x, batch.wanted[row] * hidden, hidden, w.floats, w.sizes[FINAL_NORM], w.eps, normed, 0)
        quantize_token(normed, 0, hidden // 32, row, wanted, s.xq, s.dx, s.xsum, place)
    meet(barrier, 1 if wanted == 1 else threads)
    low, high = _share((head[ROWS] + 15) // 16, thread, threads)
    arguments = (
        head, low, high, wanted, w.arena, w.floats, s.xq, s.dx, s.xsum, mine if wanted == 1 else 0, w.calls,
        s.sums[thread], logits, 0, head[ROWS], False,
    )  # fmt: skip
    call_project(w.calls[PROJECT_CALL], arguments)
    meet(barrier, threads)
