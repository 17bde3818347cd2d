"""Adapters in a compiled step: each token's low-rank updates, between the products with the packed matrices.

Activations are shrunk where they are rounded, by the thread that rounds them, and expanded where a product is stored,
by the thread that stores it; so adapters need no further meeting of the threads.
"""

from __future__ import annotations

from typing import Any

from numba import types

from windlass.kernels.compiled import Compiled, called, caller
from windlass.kernels.cpu_attention import normalize
from windlass.kernels.lora import call_expand, call_shrink
from windlass.kernels.views import float32s, int64s, uint16s
from windlass.models.cpu_tables import (
    ADAPTER_CELLS,
    ADAPTER_SCALES,
    ADAPTERS,
    CALLS,
    DATA,
    EPSILON,
    EXPAND_CALL,
    FIRST_COLUMN,
    FIRST_ROW,
    FLOATS,
    INPUTS,
    LAYERS,
    MATRICES,
    RANK,
    SHRINK_CALL,
    SHRUNK,
    SHRUNK_WIDTH,
    SIZES,
    TOKEN_ADAPTERS,
)


@called
def _shrink_tokens(
    t: Any, thread: int, threads: int, tokens: int, layer: int, low: int, high: int, x: Any, size: int, norm_at: int
) -> None:
    """What the matrices `low` to `high`, three at most, make of rows of `x`, after the norm at `norm_at` if any.

    Shared as the rows are when they are rounded: one token is for every thread, of several each has its own.
    """
    sizes, slots, tables, scales = (
        int64s(t, SIZES),
        int64s(t, TOKEN_ADAPTERS),
        int64s(t, ADAPTERS),
        float32s(t, ADAPTER_SCALES),
    )
    cells, data, shrunk, inputs = int64s(t, ADAPTER_CELLS), uint16s(t, DATA), float32s(t, SHRUNK), float32s(t, INPUTS)
    floats, eps, call, width = (
        float32s(t, FLOATS),
        float32s(t, EPSILON)[0],
        int64s(t, CALLS)[SHRINK_CALL],
        sizes[SHRUNK_WIDTH],
    )
    for token in range(0 if tokens == 1 else thread, tokens, 1 if tokens == 1 else threads):
        slot = slots[token]
        if slot < 0:
            continue
        place, source, at = thread if tokens == 1 else token, x, token * size
        if norm_at >= 0:
            normalize(x, at, size, floats, norm_at, eps, inputs, 0)
            source, at = inputs, 0
        for matrix in range(low, high):
            number = (slot * sizes[LAYERS] + layer) * MATRICES + matrix
            arguments = (
                source, at, size, data, cells, tables[3 * number + FIRST_ROW], tables[3 * number + RANK],
                scales[number], shrunk, (3 * place + matrix - low) * width,
            )  # fmt: skip
            call_shrink(call, arguments)


@called
def _expand_rows(
    t: Any, thread: int, tokens: int, first: int, count: int, layer: int, matrix: int, shift: int, low: int, rows: int,
    out: Any, out_at: int, stride: int,
) -> None:  # fmt: skip
    """Add rows `low` to `low + rows` of one matrix' updates of `count` tokens from `first` on.

    Those of each go to `out[out_at + stride * number]`; `shift` is the matrix' place among those that were shrunk
    together.
    """
    sizes, slots, tables, cells = (
        int64s(t, SIZES),
        int64s(t, TOKEN_ADAPTERS),
        int64s(t, ADAPTERS),
        int64s(t, ADAPTER_CELLS),
    )
    data, shrunk, call, width = (
        uint16s(t, DATA),
        float32s(t, SHRUNK),
        int64s(t, CALLS)[EXPAND_CALL],
        sizes[SHRUNK_WIDTH],
    )
    for number in range(count):
        token = first + number
        slot = slots[token]
        if slot < 0:
            continue
        table = ((slot * sizes[LAYERS] + layer) * MATRICES + matrix) * 3
        place = thread if tokens == 1 else token
        arguments = (
            shrunk, (3 * place + shift) * width, data, cells, tables[table + FIRST_COLUMN], tables[table + RANK], low,
            rows, out, out_at + number * stride,
        )  # fmt: skip
        call_expand(call, arguments)


_INT, _F32, _I64 = types.int64, types.Array(types.float32, 1, "C"), types.Array(types.int64, 1, "C")
SHRINK_TOKENS = Compiled(_shrink_tokens, types.void(_I64, _INT, _INT, _INT, _INT, _INT, _INT, _F32, _INT, _INT))
EXPAND_ROWS = Compiled(
    _expand_rows, types.void(_I64, _INT, _INT, _INT, _INT, _INT, _INT, _INT, _INT, _INT, _F32, _INT, _INT)
)
call_shrink_tokens, call_expand_rows = caller(SHRINK_TOKENS.signature), caller(EXPAND_ROWS.signature)
