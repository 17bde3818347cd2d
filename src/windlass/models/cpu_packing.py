"""Weights of a source as the compiled engine wants them: all matrices in one arena of tiles, all norms in one array.

Formats that have a tile of their own (Q4_0, Q4_1, Q8_0) are permuted, byte for byte; Q4_K becomes w4m, Q5_0 and all
others are rounded to 8 bits once. Of an 8-bit output head, a second copy in 4 bits is kept for guessing the best rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ModelError
from windlass.kernels import cpu_gemm
from windlass.models import cpu_tables
from windlass.models.block_formats import BY_NAME, Floats
from windlass.models.mapped import Releasable
from windlass.models.weights import WeightSource

LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
PERMUTED = ("q4_0", "q4_1", "q8_0")
"""Formats whose blocks are moved as they are."""


@dataclass(frozen=True)
class PackedModel:
    """What `cpu_tables.Weights` describes.

    Attributes:
        arena: uint8, tiles of all matrices.
        floats: float32, norms and biases.
        plan: int64 `[layers + 1, 7, 5]`, a row a matrix (`cpu_tables.KIND` and following); -1 where there is none.
        extras: int64 `[layers, 5]` (`cpu_tables.ATTN_NORM` and following).
        final_norm: Where the last norm begins in `floats`.
    """

    arena: NDArray[np.uint8]
    floats: Floats
    plan: NDArray[np.int64]
    extras: NDArray[np.int64]
    final_norm: int

    @property
    def has_coarse_head(self) -> bool:
        """Whether a 4-bit guess of the head is there."""
        return bool(self.plan[-1, cpu_tables.COARSE, cpu_tables.BYTE] >= 0)


def pack(source: WeightSource, threads: int) -> PackedModel:
    """Read every tensor once.

    Raises:
        ModelError: a tensor is missing, misshapen or not finite; the message names it.
    """
    packed = _Packer(source).run(threads)
    if isinstance(source, Releasable):
        source.release()
    return packed


class _Packer:
    def __init__(self, source: WeightSource) -> None:
        self.source, self.config = source, source.config
        self.names = set(source.names())
        self.floats: list[Floats] = []
        self.n_floats = 0
        self.arena = np.empty(0, np.uint8)

    def run(self, threads: int) -> PackedModel:
        config = self.config
        plan = np.full((config.n_layers + 1, len(LAYER_MATRICES), 5), -1, np.int64)
        extras = np.full((config.n_layers, 5), -1, np.int64)
        jobs, used = [], 0
        for layer, slot, name, shape in self._matrices():
            kind = self._kind(name + ".weight", shape)
            bias = self._note(f"{name}.bias", shape[0]) if f"{name}.bias" in self.names else -1
            plan[layer, slot] = (kind, used, shape[0], -(-shape[1] // 32), bias)
            jobs.append((name + ".weight", plan[layer, slot]))
            used += cpu_gemm.packed_bytes(kind, *shape)
        last = plan[config.n_layers]
        if config.tie_embeddings:
            last[cpu_tables.HEAD] = last[cpu_tables.EMBEDDING]
        kind, _, rows, blocks, bias = last[cpu_tables.HEAD]
        guess = kind == cpu_gemm.W8 and bias < 0
        if guess:
            last[cpu_tables.COARSE] = (cpu_gemm.W4, used, rows, blocks, bias)
            used += cpu_gemm.packed_bytes(cpu_gemm.W4, int(rows), 32 * int(blocks))
        self.arena = np.zeros(used, np.uint8)
        with ThreadPoolExecutor(threads, "windlass-pack") as pool:
            list(pool.map(lambda job: self._pack(*job), jobs))
            if guess:
                list(pool.map(lambda tiles: self._coarsen(last, *tiles), _parts(-(-int(rows) // 16), threads)))
        for layer in range(config.n_layers):
            self._note_norms(extras[layer], layer)
        final_norm = self._note("output_norm.weight", config.hidden_size)
        return PackedModel(self.arena, np.concatenate(self.floats), plan, extras, final_norm)

    def _matrices(self) -> Iterable[tuple[int, int, str, tuple[int, int]]]:
        """Layer, slot in the plan, name and shape of each matrix, in the order of a step."""
        config = self.config
        hidden, inner, size = config.hidden_size, config.intermediate_size, config.head_dim
        query, key = config.n_heads * size, config.n_kv_heads * size
        rows = (query, key, key, hidden, inner, inner, hidden)
        columns = (hidden, hidden, hidden, query, hidden, hidden, inner)
        for layer in range(config.n_layers):
            for slot, name in enumerate(LAYER_MATRICES):
                yield layer, slot, f"blk.{layer}.{name}", (rows[slot], columns[slot])
        yield config.n_layers, cpu_tables.EMBEDDING, "token_embd", (config.vocab_size, hidden)
        if not config.tie_embeddings:
            yield config.n_layers, cpu_tables.HEAD, "output", (config.vocab_size, hidden)

    def _kind(self, name: str, shape: tuple[int, int]) -> int:
        meta = self.source.meta(name)
        if meta.shape != shape:
            raise ModelError(f"{self.source.path}: tensor {name} has shape {meta.shape}, expected {shape}")
        if meta.format in ("q4_1", "q4_k"):
            return cpu_gemm.W4M
        return cpu_gemm.W4 if meta.format == "q4_0" else cpu_gemm.W8

    def _pack(self, name: str, entry: NDArray[np.int64]) -> None:
        stored = self.source.meta(name).format
        kind, at, rows, blocks, _ = (int(number) for number in entry)
        size, head = (BY_NAME[stored].nbytes, 4 if stored == "q4_1" else 2) if stored in PERMUTED else (0, 0)
        raw = self.source.raw(name) if stored in PERMUTED else np.zeros(0, np.uint8)
        # A folder that windlass saved may hold the codes and scales of such a format apart.
        if stored in PERMUTED and len(raw) == rows * blocks * size:
            if cpu_gemm.pack_blocks(raw, rows, blocks, size, head, self.arena, at):
                raise self._not_finite(name)
        else:
            self._pack_codes(name, stored, kind, at)

    def _pack_codes(self, name: str, stored: str, kind: int, at: int) -> None:
        quantized = self.source.quantized(name) if stored in ("q5_0", "q8_0", "q4_k") else None
        if quantized is None:
            weights = self.source.tensor(name)
            if not np.isfinite(weights.sum(dtype=np.float64)):
                raise self._not_finite(name)
            codes, scales = cpu_gemm.round_to_int8(weights)
            minimums = scales
        else:
            codes = quantized.codes.view(np.uint8)
            scales = quantized.scales.astype(np.float16).view(np.uint16)
            zeros = quantized.scales if quantized.zeros is None else quantized.zeros
            minimums = zeros.astype(np.float16).view(np.uint16)
            if not np.isfinite(np.stack((scales, minimums)).view(np.float16)).all():
                raise self._not_finite(name)
        cpu_gemm.pack_codes(np.ascontiguousarray(codes), scales, minimums, kind, self.arena, at)

    def _coarsen(self, last: NDArray[np.int64], low: int, high: int) -> None:
        blocks = int(last[cpu_tables.HEAD, cpu_tables.BLOCKS])
        source = int(last[cpu_tables.HEAD, cpu_tables.BYTE]) + low * blocks * cpu_gemm.BLOCK_BYTES[cpu_gemm.W8]
        target = int(last[cpu_tables.COARSE, cpu_tables.BYTE]) + low * blocks * cpu_gemm.BLOCK_BYTES[cpu_gemm.W4]
        cpu_gemm.coarsen(self.arena, source, high - low, blocks, self.arena, target)

    def _not_finite(self, name: str) -> ModelError:
        return ModelError(
            f"{self.source.path}: tensor {name} holds NaN or infinite weights",
            hint="the file is damaged; fetch it again",
        )

    def _note(self, name: str, size: int) -> int:
        values = self.source.tensor(name).reshape(-1)
        if len(values) != size:
            raise ModelError(f"{self.source.path}: tensor {name} has {len(values)} numbers, expected {size}")
        if not np.isfinite(values).all():
            raise self._not_finite(name)
        at, self.n_floats = self.n_floats, self.n_floats + size
        self.floats.append(np.array(values, np.float32))
        return at

    def _note_norms(self, extra: NDArray[np.int64], layer: int) -> None:
        prefix, config = f"blk.{layer}.", self.config
        extra[cpu_tables.ATTN_NORM] = self._note(prefix + "attn_norm.weight", config.hidden_size)
        extra[cpu_tables.FFN_NORM] = self._note(prefix + "ffn_norm.weight", config.hidden_size)
        if config.qk_norm == "head":
            extra[cpu_tables.Q_NORM] = self._note(prefix + "attn_q_norm.weight", config.head_dim)
            extra[cpu_tables.K_NORM] = self._note(prefix + "attn_k_norm.weight", config.head_dim)
        windowed = config.sliding_window is not None and layer >= config.sliding_from
        extra[cpu_tables.WINDOW] = (config.sliding_window or 0) if windowed else 0


def _parts(total: int, parts: int) -> list[tuple[int, int]]:
    return [(total * part // parts, total * (part + 1) // parts) for part in range(parts)]
