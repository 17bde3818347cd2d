"""BERT with 8-bit weights and activations, compiled: the same states as `bert.Bert` but for the rounding.

Linear layers multiply bytes (`kernels.byte_gemm`); embeddings, norms, gelu and attention stay float32. After attention
a layer is taken through by `_BLOCK` tokens at a time, so that what lies between its products never leaves the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from windlass.core.errors import ModelError, UsageError
from windlass.kernels.byte_gemm import BYTE_PRODUCT, PANEL, TOGETHER, call_byte_product, pack_panels, round_rows
from windlass.kernels.compiled import compiled, pasted
from windlass.kernels.cpu_encoder import (
    ATTEND_SEQUENCE,
    NORMALIZE_TOKENS,
    ROUND_TOKENS,
    call_attend_sequence,
    call_normalize_tokens,
    call_round_tokens,
)
from windlass.models.bert import Bert, Layer, rounds_to_bytes

_BLOCK = 32
_QKV, _OUTPUT, _INNER, _OUTER = range(4)
_BYTE, _FLOAT, _PANELS, _COLUMNS = range(4)
_HIDDEN, _INNER_SIZE, _HEADS = range(3)
_PRODUCT_CALL, _ROUND_CALL, _NORMALIZE_CALL, _ATTEND_CALL = range(4)


class Weights(NamedTuple):
    """`arena` uint8 panels; `floats` float32 scales, sums, biases and norms; `plan` int64 [layers, 4 matrices, 4];
    `norms` int64 [layers + 1, 2], where each norm begins in `floats`, the embedding's in the row after the last layer.
    """

    arena: Any
    floats: Any
    plan: Any
    norms: Any
    sizes: Any
    eps: float
    calls: Any


class Memory(NamedTuple):
    """Working memory of one batch. A row a token: hidden, qkv, update, codes; a block's: inner, inner_codes, mixed."""

    hidden: Any
    qkv: Any
    update: Any
    inner: Any
    codes: Any
    mixed: Any
    inner_codes: Any
    steps: Any
    lows: Any
    keys: Any
    values: Any
    scores: Any


class ByteBert:
    """`Bert` with byte products. Stateless between calls; safe to use from several threads with a `Memory` each."""

    def __init__(self, model: Bert, place: str) -> None:
        """Round and pack the weights of `model`; half a second for 20 million of them.

        Raises:
            ModelError: A weight of the file `place` is not a finite number, or its sizes are not those of
                `bert.rounds_to_bytes`.
        """
        if not rounds_to_bytes(model.config):
            raise ModelError(f"model file {place}: its layer sizes are no multiples of 32", hint="use float32")
        self.config = model.config
        self._model = model
        self._weights = _pack(model, place)

    def memory(self, tokens: int) -> Memory:
        """For batches of up to `tokens` tokens."""
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size
        rows = -(-tokens // TOGETHER) * TOGETHER
        room = -(-min(tokens, config.positions) // 16) * 16
        head = hidden // config.heads

        def floats(*shape: int) -> np.ndarray:
            return np.zeros(int(np.prod(shape)), np.float32)

        return Memory(
            hidden=floats(rows, hidden),
            qkv=floats(rows, 3 * hidden),
            update=floats(rows, hidden),
            inner=floats(_BLOCK, inner),
            codes=np.zeros(rows * hidden, np.uint8),
            mixed=np.zeros(_BLOCK * hidden, np.uint8),
            inner_codes=np.zeros(_BLOCK * inner, np.uint8),
            steps=floats(rows + _BLOCK),
            lows=floats(rows + _BLOCK),
            keys=floats(room, head),
            values=floats(room, head),
            scores=floats(4, room + 1),
        )

    def forward(
        self, ids: np.ndarray, lengths: np.ndarray, memory: Memory, attention: np.ndarray | None = None
    ) -> np.ndarray:
        """As `Bert.forward`, with a `Memory` in place of its scratch."""
        total, size = len(ids), self.config.hidden_size
        hidden = memory.hidden.reshape(-1, size)
        update = memory.update.reshape(-1, size)
        self._model.embed(ids, lengths, hidden[:total], update[:total])
        rows = -(-total // TOGETHER) * TOGETHER
        hidden[total:rows] = 0
        update[total:rows] = 0
        received = np.zeros(1, np.float32) if attention is None else attention
        received[:] = 0
        run_layers(lengths, rows, self._weights, memory, received, attention is not None)
        states: np.ndarray = hidden[:total]
        return states


def _pack(model: Bert, place: str) -> Weights:
    arena: list[np.ndarray] = []
    floats: list[np.ndarray] = []
    sizes = {"bytes": 0, "floats": 0}

    def put(values: list[np.ndarray]) -> int:
        at = sizes["floats"]
        for value in values:
            floats.append(np.ascontiguousarray(value, np.float32))
            sizes["floats"] += len(value)
        return at

    def matrix(weight: np.ndarray, bias: np.ndarray) -> list[int]:
        try:
            codes, scales = round_rows(np.ascontiguousarray(weight.T))
        except UsageError as error:
            raise ModelError(f"model file {place}: {error}", hint="pull or copy the model again") from error
        at = sizes["bytes"]
        arena.append(pack_panels(codes))
        sizes["bytes"] += len(arena[-1])
        sums = scales * codes.sum(axis=1, dtype=np.int64)
        return [at, put([scales, sums, bias]), len(codes) // PANEL, codes.shape[1]]

    plan = [_matrices(layer, matrix) for layer in model.layers]
    norms = [[put(list(norm)) for norm in (layer.attention_norm, layer.outer_norm)] for layer in model.layers]
    norms.append([put(list(model.embedding_norm)), 0])
    config = model.config
    return Weights(
        np.concatenate(arena),
        np.concatenate(floats),
        np.array(plan, np.int64),
        np.array(norms, np.int64),
        np.array([config.hidden_size, config.intermediate_size, config.heads], np.int64),
        config.norm_eps,
        np.array([kernel.address() for kernel in (BYTE_PRODUCT, ROUND_TOKENS, NORMALIZE_TOKENS, ATTEND_SEQUENCE)]),
    )


def _matrices(layer: Layer, matrix: Any) -> list[list[int]]:
    qkv_bias = np.zeros(layer.qkv.shape[1], np.float32)
    qkv_bias[: len(layer.query_bias)] = layer.query_bias
    return [
        matrix(layer.qkv, qkv_bias),
        matrix(layer.output, layer.output_bias),
        matrix(layer.inner, layer.inner_bias),
        matrix(layer.outer, layer.outer_bias),
    ]


@pasted
def _multiply(
    matrix: Any, x: Any, x_at: int, first: int, tokens: int, w: Weights, s: Memory, out: Any, out_at: int, bend: bool
) -> None:
    stride = matrix[_PANELS] * PANEL
    call_byte_product(
        w.calls[_PRODUCT_CALL],
        (
            x, x_at, matrix[_COLUMNS], s.steps, s.lows, first, tokens, w.arena, matrix[_BYTE], matrix[_PANELS],
            w.floats, matrix[_FLOAT], out, out_at, stride, bend,
        ),
    )  # fmt: skip


@compiled
def _mix(lengths: Any, w: Weights, s: Memory, received: Any, wanted: bool) -> None:
    """Attention of every sequence, into the places of the queries."""
    hidden, heads = w.sizes[_HIDDEN], w.sizes[_HEADS]
    size, room = hidden // heads, s.scores.shape[0] // 4
    start = 0
    for length in lengths:
        for head in range(heads):
            call_attend_sequence(
                w.calls[_ATTEND_CALL],
                (
                    s.qkv, start * 3 * hidden + head * size, hidden, length, size, s.keys, s.values, s.scores, room,
                    received, start if wanted else -1,
                ),
            )  # fmt: skip
        start += length


@compiled
def _block(layer: int, first: int, tokens: int, rows: int, w: Weights, s: Memory) -> None:
    """What follows attention in a layer, for `tokens` tokens from `first`; codes of the result are left in `s.codes`.

    Steps and lows of the block's own roundings lie behind those of the tokens.
    """
    hidden, inner = w.sizes[_HIDDEN], w.sizes[_INNER_SIZE]
    plan, norms, at = w.plan[layer], w.norms[layer], first * hidden
    call_round_tokens(
        w.calls[_ROUND_CALL],
        (s.qkv, 3 * at, 3 * hidden, hidden, s.mixed, 0, s.steps, s.lows, rows, tokens),
    )
    _multiply(plan[_OUTPUT], s.mixed, 0, rows, tokens, w, s, s.update, at, False)
    call_normalize_tokens(
        w.calls[_NORMALIZE_CALL],
        (
            s.hidden, at, s.update, at, hidden, w.floats, norms[0], w.eps, s.codes, at, s.steps, s.lows, first, tokens,
        ),
    )  # fmt: skip
    _multiply(plan[_INNER], s.codes, at, first, tokens, w, s, s.inner, 0, True)
    call_round_tokens(
        w.calls[_ROUND_CALL],
        (s.inner, 0, inner, inner, s.inner_codes, 0, s.steps, s.lows, rows, tokens),
    )
    _multiply(plan[_OUTER], s.inner_codes, 0, rows, tokens, w, s, s.update, at, False)
    call_normalize_tokens(
        w.calls[_NORMALIZE_CALL],
        (
            s.hidden, at, s.update, at, hidden, w.floats, norms[1], w.eps, s.codes, at, s.steps, s.lows, first, tokens,
        ),
    )  # fmt: skip


@compiled
def run_layers(lengths: Any, rows: int, w: Weights, s: Memory, received: Any, wanted: bool) -> None:
    """All layers over packed sequences of `lengths`; `s.hidden` and `s.update` hold the embeddings' two parts.

    Args:
        rows: Tokens, rounded up to `TOGETHER`; the last ones hold zeros and belong to no sequence.
        received: float32, to which the last layer's attention is added when `wanted`.
    """
    hidden, layers = w.sizes[_HIDDEN], w.plan.shape[0]
    call_normalize_tokens(
        w.calls[_NORMALIZE_CALL],
        (
            s.hidden, 0, s.update, 0, hidden, w.floats, w.norms[layers, 0], w.eps, s.codes, 0, s.steps, s.lows, 0, rows,
        ),
    )  # fmt: skip
    for layer in range(layers):
        for first in range(0, rows, _BLOCK):
            tokens = min(_BLOCK, rows - first)
            _multiply(
                w.plan[layer, _QKV], s.codes, first * hidden, first, tokens, w, s, s.qkv, first * 3 * hidden, False
            )
        _mix(lengths, w, s, received, wanted and layer == layers - 1)
        for first in range(0, rows, _BLOCK):
            _block(layer, first, min(_BLOCK, rows - first), rows, w, s)
