"""Linear layers of a compiled step: products of packed matrices with rounded tokens, stored where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, called, caller, pasted
from windlass.kernels.cpu_attention import gate, normalize
from windlass.kernels.cpu_gemm import call_tile_product, call_vector_product, quantize_token
from windlass.kernels.isa import LANES
from windlass.kernels.simd import add_float, load_float, store_float
from windlass.kernels.views import float32s, int8s, int64s, uint8s
from windlass.models.cpu_adapters import call_expand_rows
from windlass.models.cpu_tables import (
    ARENA,
    BIAS,
    BLOCKS,
    BYTE,
    CALLS,
    CODE_SUMS,
    CODES,
    COLUMNS,
    EPSILON,
    EXPAND_ROWS_CALL,
    FLOATS,
    GATE,
    INNER,
    INNER_STATE,
    KIND,
    LOWER,
    MATRICES,
    MORE,
    NORMED,
    PLAN,
    ROWS,
    SIZES,
    STEPS,
    SUMS,
    TILE_CALL,
    TOKEN_ADAPTERS,
    TOKEN_GROUP,
    UP,
    VECTOR_CALL,
)


@pasted
def share(total: int, thread: int, threads: int) -> tuple[int, int]:
    """Which part of `total` pieces is this thread's."""
    return total * thread // threads, total * (thread + 1) // threads


@pasted
def matrix_at(layer: int, matrix: int) -> int:
    """Where a matrix is described in the plan."""
    return (layer * MATRICES + matrix) * COLUMNS


@pasted
def update(
    t: Any, thread: int, tokens: int, first: int, count: int, layer: int, matrix: int, shift: int, low: int, rows: int,
    out: Any, out_at: int, stride: int,
) -> None:  # fmt: skip
    """Add what adapters change, as `cpu_adapters` says; nothing when no token has any."""
    if int64s(t, TOKEN_ADAPTERS).shape[0] > 0:
        arguments = (t, thread, tokens, first, count, layer, matrix, shift, low, rows, out, out_at, stride)
        call_expand_rows(int64s(t, CALLS)[EXPAND_ROWS_CALL], arguments)


@called
def multiply(
    t: Any, matrix: int, tile: int, tiles: int, tokens: int, first: int, count: int, x_at: int, out: Any
) -> None:
    """Sums of `tiles` tiles for a single token, or of one tile for `count` of several, side by side in `out`."""
    plan, calls = int64s(t, PLAN), int64s(t, CALLS)
    kind, blocks = plan[matrix + KIND], plan[matrix + BLOCKS]
    at = plan[matrix + BYTE] + tile * blocks * (320 if kind == 0 else 288)
    lower = plan[matrix + LOWER] + tile * blocks * 256
    arena, codes, steps, sums = uint8s(t, ARENA), int8s(t, CODES), float32s(t, STEPS), float32s(t, CODE_SUMS)
    if tokens == 1:
        arguments = (arena, at, lower, kind, blocks, tiles, codes, steps, sums, x_at, out)
        call_vector_product(calls[VECTOR_CALL], arguments)
    else:
        several = (arena, at, lower, kind, blocks, codes, steps, sums, tokens, first, count, x_at, out)
        call_tile_product(calls[TILE_CALL], several)


@called
def _store(
    sums: Any, count: int, rows: int, floats: Any, bias_at: int, out: Any, out_at: int, stride: int, add: bool
) -> None:
    """Write (or add) `rows` of each token's sums, of whole tiles but the last, to `out[out_at + token * stride]`."""
    for token in range(count):
        target, source = out_at + token * stride, 16 * token
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


@called
def _project(
    t: Any, matrix: int, low: int, high: int, tokens: int, x_at: int, out: Any, out_at: int, stride: int, add: bool
) -> None:
    """Tiles `low` to `high` of one matrix for all tokens, into `out[token * stride + out_at + row]`."""
    plan, floats, sums = int64s(t, PLAN), float32s(t, FLOATS), float32s(t, SUMS)
    bias, rows = plan[matrix + BIAS], plan[matrix + ROWS]
    together, group = (TOKEN_GROUP, 1) if tokens == 1 else (1, TOKEN_GROUP)
    for tile in range(low, high, together):
        tiles = min(together, high - tile)
        here, start = min(16 * tiles, rows - 16 * tile), bias + 16 * tile if bias >= 0 else -1
        for first in range(0, tokens, group):
            count = min(group, tokens - first)
            multiply(t, matrix, tile, tiles, tokens, first, count, x_at, sums)
            _store(sums, count, here, floats, start, out, out_at + first * stride + 16 * tile, stride, add)


@called
def _project_gated(t: Any, thread: int, layer: int, low: int, high: int, tokens: int, x_at: int) -> None:
    """Tiles of the gate and the up matrix together: `silu(gate) * up` into `INNER_STATE`."""
    plan, floats, out, stride = int64s(t, PLAN), float32s(t, FLOATS), float32s(t, INNER_STATE), int64s(t, SIZES)[INNER]
    sums, more = float32s(t, SUMS), float32s(t, MORE)
    together, group = (8, 1) if tokens == 1 else (1, TOKEN_GROUP)
    for tile in range(low, high, together):
        tiles = min(together, high - tile)
        for first in range(0, tokens, group):
            count = min(group, tokens - first)
            for slot, target in ((GATE, sums), (UP, more)):
                matrix = matrix_at(layer, slot)
                multiply(t, matrix, tile, tiles, tokens, first, count, x_at, target)
                bias = plan[matrix + BIAS]
                if bias >= 0:
                    for i in range(16 * tiles * count):
                        target[i] += floats[bias + 16 * tile + (i if tokens == 1 else i % 16)]
                update(t, thread, tokens, first, count, layer, slot, slot - GATE, 16 * tile, 16 * tiles, target, 0, 16)
            for part in range(tiles * count):
                row = 16 * (tile + part) if tokens == 1 else (first + part) * stride + 16 * tile
                gate(sums, 16 * part, more, 16 * part, out, row)


@called
def _quantize(t: Any, thread: int, threads: int, tokens: int, x: Any, size: int, norm_at: int, x_at: int) -> None:
    """Round rows of `x`, after the norm at `norm_at` when there is one. One token: every thread for itself."""
    floats, normed, eps = float32s(t, FLOATS), float32s(t, NORMED), float32s(t, EPSILON)[0]
    codes, steps, sums = int8s(t, CODES), float32s(t, STEPS), float32s(t, CODE_SUMS)
    for token in range(0 if tokens == 1 else thread, tokens, 1 if tokens == 1 else threads):
        if norm_at >= 0:
            normalize(x, token * size, size, floats, norm_at, eps, normed, 0)
            quantize_token(normed, 0, size // 32, token, tokens, codes, steps, sums, x_at)
        else:
            quantize_token(x, token * size, size // 32, token, tokens, codes, steps, sums, x_at)


_INT, _FLAG = types.int64, types.boolean
_F32, _I64 = (types.Array(kind, 1, "C") for kind in (types.float32, types.int64))
PROJECT = Compiled(_project, types.void(_I64, _INT, _INT, _INT, _INT, _INT, _F32, _INT, _INT, _FLAG))
PROJECT_GATED = Compiled(_project_gated, types.void(_I64, _INT, _INT, _INT, _INT, _INT, _INT))
QUANTIZE = Compiled(_quantize, types.void(_I64, _INT, _INT, _INT, _F32, _INT, _INT, _INT))
call_project, call_project_gated, call_quantize = (
    caller(kernel.signature) for kernel in (PROJECT, PROJECT_GATED, QUANTIZE)
)
