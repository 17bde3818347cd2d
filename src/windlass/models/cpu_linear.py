"""Linear layers of a compiled step: products of packed matrices with rounded tokens, stored where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from windlass.kernels.compiled import Compiled, caller, compiled, pasted
from windlass.kernels.cpu_attention import gate, normalize
from windlass.kernels.cpu_gemm import (
    call_tile_product,
    call_vector_product,
    quantize_token,
)
from windlass.kernels.simd import LANES, add_float, load_float, store_float
from windlass.models.cpu_adapters import call_expand_rows
from windlass.models.cpu_tables import (
    ADAPTERS,
    BIAS,
    BLOCKS,
    BYTE,
    EXPAND_ROWS_CALL,
    GATE,
    KIND,
    ROWS,
    TILE_CALL,
    TOKEN_GROUP,
    UP,
    VECTOR_CALL,
    WEIGHTS,
    Adapters,
    Weights,
)


@pasted
def tile_bytes(kind: int, blocks: int) -> int:
    """Bytes of 16 rows of a matrix."""
    return blocks * (544 if kind == 2 else (320 if kind == 0 else 288))


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
    size = tile_bytes(kind, blocks)
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
    at = matrix[BYTE] + tile * tile_bytes(kind, blocks)
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
    x_at: int, calls: Any, sums: Any, more: Any, out: Any, stride: int, thread: int, layer: int, w: Weights,
    adapters: Adapters, data: Any,
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
            if adapters.slots.shape[0] > 0:
                for matrix, target in ((GATE, sums), (UP, more)):
                    updates = (
                        thread, tokens, first, count, layer, matrix, matrix - GATE, 16 * tile, 16 * tiles, w, adapters,
                        data, target, 0, 16,
                    )  # fmt: skip
                    call_expand_rows(calls[EXPAND_ROWS_CALL], updates)
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


_INT, _FLOAT, _FLAG = types.int64, types.float64, types.boolean
_U8, _I8, _F32, _I64 = (types.Array(kind, 1, "C") for kind in (types.uint8, types.int8, types.float32, types.int64))
_ROUNDED = (_I8, _F32, _F32, _INT)
PROJECT = Compiled(
    _project,
    types.void(_I64, _INT, _INT, _INT, _U8, _F32, *_ROUNDED, _I64, _F32, _F32, _INT, _INT, _FLAG),
)
PROJECT_GATED = Compiled(
    _project_gated,
    types.void(
        _I64, _I64, _INT, _INT, _INT, _U8, _F32, *_ROUNDED, _I64, _F32, _F32, _F32, _INT, _INT, _INT, WEIGHTS, ADAPTERS,
        types.Array(types.uint16, 1, "C"),
    ),
)  # fmt: skip
QUANTIZE = Compiled(_quantize, types.void(_INT, _INT, _INT, _F32, _INT, _F32, _INT, _FLOAT, _F32, *_ROUNDED))
call_project, call_project_gated, call_quantize = (
    caller(kernel.signature) for kernel in (PROJECT, PROJECT_GATED, QUANTIZE)
)
