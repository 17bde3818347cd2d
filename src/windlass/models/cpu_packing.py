"""Weights of a source as the compiled engine wants them: all matrices in one arena of tiles, all norms in one array.

Formats that have a tile of their own (Q4_0, Q4_1, Q8_0) are permuted, bit for bit; Q4_K becomes w4m, Q5_0 and all
others are rounded to 8 bits once. Of an 8-bit output head, the upper halves of the codes serve for guessing the best
rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ModelError
from windlass.kernels import tile_layout
from windlass.models import cpu_tables
from windlass.models.block_formats import BY_NAME, Floats
from windlass.models.kernel_cache import kernels
from windlass.models.mapped import Releasable
from windlass.models.weights import WeightSource

LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
KERNELS = tuple(f"windlass.kernels.tile_packing:{name}" for name in ("PACK_BLOCKS", "PACK_BYTE_BLOCKS", "PACK_CODES"))
TOGETHER = 32
"""Matrices after which what was read of the file no longer counts as this process's memory."""
PERMUTED = ("q4_0", "q4_1", "q8_0")
"""Formats whose blocks are moved as they are."""


@dataclass(frozen=True)
class PackedModel:
    """A model in tiles.

    Attributes:
        arena: uint8, tiles of all matrices.
        floats: float32, norms and biases.
        plan: int64 `[layers + 1, 7, 6]`, a row a matrix (`cpu_tables.KIND` and following); -1 where there is none.
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
        """Whether the head can be guessed from the upper halves of its codes."""
        return bool(self.plan[-1, cpu_tables.COARSE, cpu_tables.BYTE] >= 0)


def pack(source: WeightSource, threads: int) -> PackedModel:
    """Read every tensor once.

    Raises:
        ModelError: a tensor is missing, misshapen or not finite; the message names it.
    """
    return _Packer(source).run(threads)


class _Packer:
    def __init__(self, source: WeightSource) -> None:
        self.source, self.config = source, source.config
        self.names = set(source.names())
        self.floats: list[Floats] = []
        self.n_floats = 0
        self.arena = np.empty(0, np.uint8)
        self.kernels = kernels(KERNELS)

    def run(self, threads: int) -> PackedModel:
        config = self.config
        plan = np.full((config.n_layers + 1, cpu_tables.MATRICES, cpu_tables.COLUMNS), -1, np.int64)
        extras = np.full((config.n_layers, cpu_tables.NOTES), -1, np.int64)
        jobs, used = [], 0
        for layer, slot, name, shape in self._matrices():
            kind = self._kind(name + ".weight", shape)
            bias = self._note(f"{name}.bias", shape[0]) if f"{name}.bias" in self.names else -1
            rows, blocks = shape[0], -(-shape[1] // tile_layout.GROUP)
            lower = tile_layout.lower_half(used, rows, blocks) if kind == tile_layout.W8 else -1
            plan[layer, slot] = (kind, used, lower, rows, blocks, bias)
            jobs.append((name + ".weight", plan[layer, slot]))
            used += tile_layout.packed_bytes(kind, *shape)
        last = plan[config.n_layers]
        if config.tie_embeddings:
            last[cpu_tables.HEAD] = last[cpu_tables.EMBEDDING]
        head = last[cpu_tables.HEAD]
        if head[cpu_tables.KIND] == tile_layout.W8 and head[cpu_tables.BIAS] < 0:
            last[cpu_tables.COARSE] = head
            last[cpu_tables.COARSE, cpu_tables.KIND] = tile_layout.GUESS
        self.arena = np.zeros(used, np.uint8)
        with ThreadPoolExecutor(threads, "windlass-pack") as pool:
            for start in range(0, len(jobs), TOGETHER):
                list(pool.map(lambda job: self._pack(*job), jobs[start : start + TOGETHER]))
                if isinstance(self.source, Releasable):
                    self.source.release()
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
            return tile_layout.W4M
        return tile_layout.W4 if meta.format == "q4_0" else tile_layout.W8

    def _pack(self, name: str, entry: NDArray[np.int64]) -> None:
        stored = self.source.meta(name).format
        kind, at, lower, rows, blocks, _ = (int(number) for number in entry)
        raw, size = (
            (self.source.raw(name), BY_NAME[stored].nbytes) if stored in PERMUTED else (np.zeros(0, np.uint8), 1)
        )
        # A folder that windlass saved may hold the codes and scales of such a format apart.
        if len(raw) != rows * blocks * size:
            self._pack_codes(name, stored, kind, at, lower)
            return
        pack_blocks, pack_byte_blocks, _ = self.kernels
        if kind == tile_layout.W8:
            bad = pack_byte_blocks(raw, rows, blocks, self.arena, at, lower)
        else:
            bad = pack_blocks(raw, rows, blocks, size, size - 16, self.arena, at)
        if bad:
            raise self._not_finite(name)

    def _pack_codes(self, name: str, stored: str, kind: int, at: int, lower: int) -> None:
        quantized = self.source.quantized(name) if stored in ("q5_0", "q8_0", "q4_k") else None
        if quantized is None:
            weights = self.source.tensor(name)
            if not np.isfinite(weights.sum(dtype=np.float64)):
                raise self._not_finite(name)
            codes, scales = tile_layout.round_to_int8(weights)
            minimums = scales
        else:
            codes = quantized.codes.view(np.uint8)
            scales = quantized.scales.astype(np.float16).view(np.uint16)
            zeros = quantized.scales if quantized.zeros is None else quantized.zeros
            minimums = zeros.astype(np.float16).view(np.uint16)
            if not np.isfinite(np.stack((scales, minimums)).view(np.float16)).all():
                raise self._not_finite(name)
        parts = (np.ascontiguousarray(part).reshape(-1) for part in (codes, scales, minimums))
        self.kernels[2](*parts, *codes.shape, kind, self.arena, at, lower)

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
