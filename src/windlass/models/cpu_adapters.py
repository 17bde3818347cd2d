"""Adapters in a compiled step: each token's low-rank updates, between the products with the packed matrices.

Activations are shrunk where they are rounded, by the thread that rounds them, and expanded where a product is stored,
by the thread that stores it; so adapters need no further meeting of the threads.
"""

from __future__ import annotations

from typing import Any

from numba import types

from windlass.kernels.compiled import Compiled, caller, compiled
from windlass.kernels.cpu_attention import normalize
from windlass.kernels.lora import call_expand, call_shrink
from windlass.models.cpu_tables import (
    ADAPTERS,
    EXPAND_CALL,
    FIRST_COLUMN,
    FIRST_ROW,
    RANK,
    SHRINK_CALL,
    WEIGHTS,
    Adapters,
    Weights,
)


@compiled
def _shrink_tokens(
    thread: int, threads: int, tokens: int, layer: int, low: int, high: int, x: Any, size: int, norm_at: int,
    w: Weights, adapters: Adapters, data: Any,
) -> None:  # fmt: skip
    """What the matrices `low` to `high`, three at most, make of rows of `x`, after the norm at `norm_at` if any.

    Shared as the rows are when they are rounded: one token is for every thread, of several each has its own.
    """
    width = adapters.shrunk.shape[1] // 3
    for token in range(0 if tokens == 1 else thread, tokens, 1 if tokens == 1 else threads):
        slot = adapters.slots[token]
        if slot < 0:
            continue
        place, source, at = thread if tokens == 1 else token, x, token * size
        if norm_at >= 0:
            normalize(x, at, size, w.floats, norm_at, w.eps, adapters.inputs[thread], 0)
            source, at = adapters.inputs[thread], 0
        for matrix in range(low, high):
            table = adapters.tables[slot, layer, matrix]
            arguments = (
                source, at, size, data, adapters.cells, table[FIRST_ROW], table[RANK],
                adapters.scales[slot, layer, matrix], adapters.shrunk[place], (matrix - low) * width,
            )  # fmt: skip
            call_shrink(w.calls[SHRINK_CALL], arguments)


@compiled
def _expand_rows(
    thread: int, tokens: int, first: int, count: int, layer: int, matrix: int, shift: int, low: int, rows: int,
    w: Weights, adapters: Adapters, data: Any, out: Any, out_at: int, stride: int,
) -> None:  # fmt: skip
    """Add rows `low` to `low + rows` of one matrix' updates of `count` tokens from `first` on.

    Those of each go to `out[out_at + stride * number]`; `shift` is the matrix' place among those that were shrunk
    together.
    """
    width = adapters.shrunk.shape[1] // 3
    for number in range(count):
        token = first + number
        slot = adapters.slots[token]
        if slot < 0:
            continue
        table = adapters.tables[slot, layer, matrix]
        arguments = (
            adapters.shrunk[thread if tokens == 1 else token], shift * width, data, adapters.cells,
            table[FIRST_COLUMN], table[RANK], low, rows, out, out_at + number * stride,
        )  # fmt: skip
        call_expand(w.calls[EXPAND_CALL], arguments)


_INT, _F32 = types.int64, types.Array(types.float32, 1, "C")
_U16 = types.Array(types.uint16, 1, "C")
SHRINK_TOKENS = Compiled(
    _shrink_tokens,
    types.void(_INT, _INT, _INT, _INT, _INT, _INT, _F32, _INT, _INT, WEIGHTS, ADAPTERS, _U16),
)
EXPAND_ROWS = Compiled(
    _expand_rows,
    types.void(
        _INT, _INT, _INT, _INT, _INT, _INT, _INT, _INT, _INT, WEIGHTS, ADAPTERS, _U16, _F32, _INT, _INT
    ),
)  # fmt: skip
call_shrink_tokens, call_expand_rows = caller(SHRINK_TOKENS.signature), caller(EXPAND_ROWS.signature)
