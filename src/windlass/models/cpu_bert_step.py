"""All layers of the encoder in one compiled function, entered by one thread for each batch."""

from __future__ import annotations

from typing import Any

from numba import types

from windlass.kernels.byte_gemm import call_byte_product
from windlass.kernels.byte_panels import PANEL
from windlass.kernels.compiled import Compiled, called
from windlass.kernels.cpu_encoder import call_attend_sequence, call_normalize_tokens, call_round_tokens
from windlass.kernels.views import float32s, int64s, table_at, uint8s
from windlass.models.cpu_bert_tables import (
    ARENA,
    ATTEND_CALL,
    BLOCK,
    BYTE,
    CALLS,
    CODES,
    EPSILON,
    FLOAT,
    FLOATS,
    HEADS,
    HIDDEN,
    HIDDEN_SIZE,
    INNER,
    INNER_CODES,
    INNER_SIZE,
    INPUTS,
    KEYS,
    LAYERS,
    LENGTHS,
    LOWS,
    MIXED,
    NORMALIZE_CALL,
    NORMS,
    PANELS,
    PLAN,
    PRODUCT_CALL,
    QKV,
    RECEIVED,
    ROUND_CALL,
    SCORES,
    SIZES,
    STEPS,
    TO_INNER,
    TO_OUTER,
    TO_OUTPUT,
    TO_QKV,
    UPDATE,
    VALUES,
)


@called
def _multiply(
    t: Any, layer: int, matrix: int, codes: Any, x_at: int, first: int, tokens: int, out: Any, out_at: int, bend: bool
) -> None:
    plan, at = int64s(t, PLAN), (4 * layer + matrix) * 4
    panels = plan[at + PANELS]
    arguments = (
        codes, x_at, plan[at + INPUTS], float32s(t, STEPS), float32s(t, LOWS), first, tokens, uint8s(t, ARENA),
        plan[at + BYTE], panels, float32s(t, FLOATS), plan[at + FLOAT], out, out_at, panels * PANEL, bend,
    )  # fmt: skip
    call_byte_product(int64s(t, CALLS)[PRODUCT_CALL], arguments)


@called
def _round(t: Any, x: Any, at: int, stride: int, size: int, codes: Any, token: int, tokens: int) -> None:
    arguments = (x, at, stride, size, codes, 0, float32s(t, STEPS), float32s(t, LOWS), token, tokens)
    call_round_tokens(int64s(t, CALLS)[ROUND_CALL], arguments)


@called
def _normalize(t: Any, norm: int, first: int, tokens: int) -> None:
    """`HIDDEN` plus `UPDATE`, normed, and its codes, for `tokens` tokens from `first`."""
    size = int64s(t, SIZES)[HIDDEN_SIZE]
    at = first * size
    arguments = (
        float32s(t, HIDDEN), at, float32s(t, UPDATE), at, size, float32s(t, FLOATS), int64s(t, NORMS)[norm],
        float32s(t, EPSILON)[0], uint8s(t, CODES), at, float32s(t, STEPS), float32s(t, LOWS), first, tokens,
    )  # fmt: skip
    call_normalize_tokens(int64s(t, CALLS)[NORMALIZE_CALL], arguments)


@called
def _mix(t: Any, wanted: bool) -> None:
    """Attention of every sequence, into the places of the queries."""
    sizes, lengths, qkv, calls = int64s(t, SIZES), int64s(t, LENGTHS), float32s(t, QKV), int64s(t, CALLS)
    keys, values, scores, received = float32s(t, KEYS), float32s(t, VALUES), float32s(t, SCORES), float32s(t, RECEIVED)
    hidden, heads = sizes[HIDDEN_SIZE], sizes[HEADS]
    size, room, start = hidden // heads, scores.shape[0] // 4, 0
    for sequence in range(lengths.shape[0]):
        length = lengths[sequence]
        for head in range(heads):
            arguments = (
                qkv, start * 3 * hidden + head * size, hidden, length, size, keys, values, scores, room, received,
                start if wanted else -1,
            )  # fmt: skip
            call_attend_sequence(calls[ATTEND_CALL], arguments)
        start += length


@called
def _block(t: Any, layer: int, first: int, tokens: int, rows: int) -> None:
    """What follows attention in a layer, for `tokens` tokens from `first`; codes of the result are left in `CODES`.

    Steps and lows of the block's own roundings lie behind those of the tokens.
    """
    sizes, qkv, update, inner_state = int64s(t, SIZES), float32s(t, QKV), float32s(t, UPDATE), float32s(t, INNER)
    codes, mixed, inner_codes = uint8s(t, CODES), uint8s(t, MIXED), uint8s(t, INNER_CODES)
    hidden, inner = sizes[HIDDEN_SIZE], sizes[INNER_SIZE]
    at = first * hidden
    _round(t, qkv, 3 * at, 3 * hidden, hidden, mixed, rows, tokens)
    _multiply(t, layer, TO_OUTPUT, mixed, 0, rows, tokens, update, at, False)
    _normalize(t, 2 * layer, first, tokens)
    _multiply(t, layer, TO_INNER, codes, at, first, tokens, inner_state, 0, True)
    _round(t, inner_state, 0, inner, inner, inner_codes, rows, tokens)
    _multiply(t, layer, TO_OUTER, inner_codes, 0, rows, tokens, update, at, False)
    _normalize(t, 2 * layer + 1, first, tokens)


@called
def _run_layers(table: int, rows: int, wanted: int) -> None:
    """All layers over packed sequences; `HIDDEN` and `UPDATE` hold the embeddings' two parts.

    Args:
        rows: Tokens, rounded up to `byte_panels.TOGETHER`; the last ones hold zeros and belong to no sequence.
        wanted: 1 to add the last layer's attention to `RECEIVED`.
    """
    t = table_at(table)
    sizes, codes, qkv = int64s(t, SIZES), uint8s(t, CODES), float32s(t, QKV)
    hidden, layers = sizes[HIDDEN_SIZE], sizes[LAYERS]
    _normalize(t, 2 * layers, 0, rows)
    for layer in range(layers):
        for first in range(0, rows, BLOCK):
            tokens = min(BLOCK, rows - first)
            _multiply(t, layer, TO_QKV, codes, first * hidden, first, tokens, qkv, first * 3 * hidden, False)
        _mix(t, wanted == 1 and layer == layers - 1)
        for first in range(0, rows, BLOCK):
            _block(t, layer, first, min(BLOCK, rows - first), rows)


RUN_LAYERS = Compiled(_run_layers, types.void(types.int64, types.int64, types.int64))
