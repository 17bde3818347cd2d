"""BERT with 8-bit weights and activations, compiled: the same states as `bert.Bert` but for the rounding.

Linear layers multiply bytes (`kernels.byte_gemm`); embeddings, norms, gelu and attention stay float32. After attention
a layer is taken through by `_BLOCK` tokens at a time, so that what lies between its products never leaves the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass.core.errors import ModelError, UsageError
from windlass.kernels.byte_panels import PANEL, TOGETHER, pack_panels, round_rows
from windlass.models import cpu_bert_tables as tables
from windlass.models.bert import Bert, Layer, rounds_to_bytes
from windlass.models.cpu_tables import StepTables
from windlass.models.kernel_cache import kernels

KERNELS = (
    "windlass.models.cpu_bert_step:RUN_LAYERS", "windlass.kernels.byte_gemm:BYTE_PRODUCT",
    "windlass.kernels.cpu_encoder:ROUND_TOKENS", "windlass.kernels.cpu_encoder:NORMALIZE_TOKENS",
    "windlass.kernels.cpu_encoder:ATTEND_SEQUENCE",
)  # fmt: skip
"""All layers, and what they call, in the order of `cpu_bert_tables.PRODUCT_CALL` and following."""


class Memory:
    """Working memory of one batch at a time."""

    def __init__(self, arrays: dict[int, np.ndarray]) -> None:
        self.table = StepTables(1, tables.ARRAYS)
        for number, array in arrays.items():
            self.table.put(number, array)
        self.hidden, self.update = arrays[tables.HIDDEN], arrays[tables.UPDATE]


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
        self._run, *called = kernels(KERNELS)
        self._weights[tables.CALLS] = np.array([kernel.address for kernel in called], np.int64)

    def memory(self, tokens: int) -> Memory:
        """For batches of up to `tokens` tokens."""
        config = self.config
        hidden, inner = config.hidden_size, config.intermediate_size
        rows = -(-tokens // TOGETHER) * TOGETHER
        room = -(-min(tokens, config.positions) // 16) * 16
        head = hidden // config.heads

        def floats(*shape: int) -> np.ndarray:
            return np.zeros(shape, np.float32)

        block = tables.BLOCK
        return Memory(
            {
                **self._weights,
                tables.HIDDEN: floats(rows, hidden),
                tables.QKV: floats(rows, 3 * hidden),
                tables.UPDATE: floats(rows, hidden),
                tables.INNER: floats(block, inner),
                tables.CODES: np.zeros(rows * hidden, np.uint8),
                tables.MIXED: np.zeros(block * hidden, np.uint8),
                tables.INNER_CODES: np.zeros(block * inner, np.uint8),
                tables.STEPS: floats(rows + block),
                tables.LOWS: floats(rows + block),
                tables.KEYS: floats(room, head),
                tables.VALUES: floats(room, head),
                tables.SCORES: floats(4, room + 1),
            }
        )

    def forward(
        self, ids: np.ndarray, lengths: np.ndarray, memory: Memory, attention: np.ndarray | None = None
    ) -> np.ndarray:
        """As `Bert.forward`, with a `Memory` in place of its scratch."""
        total = len(ids)
        hidden, update = memory.hidden, memory.update
        self._model.embed(ids, lengths, hidden[:total], update[:total])
        rows = -(-total // TOGETHER) * TOGETHER
        hidden[total:rows] = 0
        update[total:rows] = 0
        received = np.zeros(1, np.float32) if attention is None else attention
        received[:] = 0
        memory.table.put(tables.LENGTHS, np.ascontiguousarray(lengths, np.int64))
        memory.table.put(tables.RECEIVED, received)
        self._run(memory.table.address(0), rows, int(attention is not None))
        states: np.ndarray = hidden[:total]
        return states


def _pack(model: Bert, place: str) -> dict[int, np.ndarray]:
    """The arrays of a model, by number."""
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
    return {
        tables.ARENA: np.concatenate(arena),
        tables.FLOATS: np.concatenate(floats),
        tables.PLAN: np.array(plan, np.int64),
        tables.NORMS: np.array(norms, np.int64),
        tables.SIZES: np.array([len(plan), config.hidden_size, config.intermediate_size, config.heads], np.int64),
        tables.EPSILON: np.array([config.norm_eps], np.float32),
    }


def _matrices(layer: Layer, matrix: Any) -> list[list[int]]:
    qkv_bias = np.zeros(layer.qkv.shape[1], np.float32)
    qkv_bias[: len(layer.query_bias)] = layer.query_bias
    return [
        matrix(layer.qkv, qkv_bias),
        matrix(layer.output, layer.output_bias),
        matrix(layer.inner, layer.inner_bias),
        matrix(layer.outer, layer.outer_bias),
    ]
