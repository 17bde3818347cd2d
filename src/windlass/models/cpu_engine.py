"""The decoder on a plain CPU at the speed of its memory: packed weights, compiled steps, no torch, no compiler.

Same interface as `decoder.Decoder`, which it is tested against. Weights stay in 4 or 8 bits; activations are rounded to
8 bits for each 32 channels, the cache to half precision. Formats that have no tile of their own are rounded to 8
bits once more when loaded (Q5_1, Q5_K, Q6_K, and plain numbers).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ModelError, UsageError
from windlass.kernels import cpu_gemm
from windlass.kernels.cpu_attention import CHUNK
from windlass.models import cpu_step
from windlass.models.block_formats import BY_NAME, Floats
from windlass.models.config import packing_obstacle
from windlass.models.decoder import Tokens, check_tokens, rotary_frequencies
from windlass.models.page_pool import PAGE_TOKENS, PagePool, SequenceCache
from windlass.models.token_batch import TokenBatch, Wanted
from windlass.models.weights import WeightSource, open_weights

PREFILL_CHUNK = 256
"""Tokens of a prompt computed together."""
MOST_THREADS = 8
"""More threads than memory channels only wait for each other."""
LAYER_MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


class CpuEngine:
    """A packed decoder model and the threads that run it.

    Args:
        source: The weights; read once, tensor by tensor, and not needed afterwards.
        threads: How many threads share a step; None takes the cores this process may use, at most 8.

    Raises:
        ModelError: a tensor is missing, misshapen or not finite, or the shape is not supported.

    Example:
        engine = CpuEngine.load(Path("SmolLM2-135M-Instruct.Q4_1.gguf"))
        cache = engine.cache()
        logits = engine.prefill(np.array([1, 42]), cache)
    """

    def __init__(self, source: WeightSource, *, threads: int | None = None) -> None:
        self.config = source.config
        reason = packing_obstacle(self.config)
        if reason is not None:
            raise ModelError(f"{source.path}: the compiled engine cannot run this model: {reason}")
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}, expected at least 1")
        self.threads = threads or min(_usable_cores(), MOST_THREADS)
        packed = _Packer(source)
        self._arena, self._floats, self._plan, self._extras = packed.run()
        self._frequencies, self._magnitude = rotary_frequencies(self.config, source)
        self._cosine = self._sine = np.zeros(0, np.float32)
        self._sizes = self._describe(packed.final_norm)
        self._pool = self.new_pool()
        self._scratch: cpu_step.Scratch | None = None
        self._scratch_for = (0, 0)
        self._calls = cpu_step.kernel_addresses()
        self._barrier = np.zeros(16, np.int64)
        self._crew = _Crew(self.threads)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, *, threads: int | None = None) -> CpuEngine:
        """Pack the weights of a GGUF file or a safetensors folder."""
        return cls(open_weights(path), threads=threads)

    @property
    def nbytes(self) -> int:
        """Bytes of weights in memory; about the bytes of the file."""
        return self._arena.nbytes + self._floats.nbytes

    def cache(self) -> SequenceCache:
        """An empty sequence."""
        return SequenceCache(self._pool)

    def prefill(self, tokens: Tokens, cache: SequenceCache) -> Floats:
        checked = check_tokens(tokens, self.config, cache.length)
        for start in range(0, len(checked), PREFILL_CHUNK):
            part = checked[start : start + PREFILL_CHUNK]
            last = start + len(part) == len(checked)
            logits = self._append([part], [cache], wanted="last" if last else "none")
        last_logits: Floats = logits[0]
        return last_logits

    def step(self, token: int, cache: SequenceCache) -> Floats:
        checked = check_tokens(np.array([token]), self.config, cache.length)
        logits: Floats = self._append([checked], [cache])[0]
        return logits

    def step_batch(self, tokens: Tokens, caches: list[SequenceCache]) -> Floats:
        """Append one token to each of several sequences; float32 `[len(caches), vocab]` logits after them.

        The logits of a sequence are the same bits whatever else is in the batch.
        """
        if len(tokens) != len(caches) or len({id(cache) for cache in caches}) != len(caches):
            raise UsageError(f"{len(tokens)} tokens for {len(caches)} sequences: each needs exactly one")
        for token, cache in zip(tokens, caches, strict=True):
            check_tokens(np.array([token]), self.config, cache.length)
        return self._append([np.array([token]) for token in tokens], caches)

    def forward_tokens(self, batch: TokenBatch, pool: PagePool) -> Floats:
        """Compute a batch of tokens of any sequences over pages of `pool`, and write their keys and values there.

        Args:
            batch: What to compute; its pages are owned by the caller.
            pool: Pages of this model's shape, made by `new_pool`. Nothing else may write to the pages of
                the batch meanwhile.

        Returns:
            Logits, float32 `[len(batch.out_rows), vocab]`. They are the same bits whatever else is in the batch.

        Raises:
            UsageError: the pool is of another shape, or the batch is inconsistent; nothing is written then.
        """
        self._require_shape(pool)
        batch.require_valid(
            pages=pool.count,
            page_tokens=pool.page_tokens,
            vocab_size=self.config.vocab_size,
            max_position=self.config.max_position,
        )
        with self._lock:
            return self._compute(batch, pool)

    def new_pool(self, *, pages: int | None = None, page_tokens: int = PAGE_TOKENS) -> PagePool:
        """A pool of this model's shape; with a budget of `pages`, or growing as needed."""
        config = self.config
        return PagePool(config.n_layers, config.n_kv_heads, config.head_dim, page_tokens=page_tokens, pages=pages)

    def logits(self, tokens: Tokens) -> Floats:
        cache, checked = self.cache(), check_tokens(tokens, self.config, 0)
        parts = [checked[start : start + PREFILL_CHUNK] for start in range(0, len(checked), PREFILL_CHUNK)]
        return np.concatenate([self._append([part], [cache], wanted="every") for part in parts])

    def close(self) -> None:
        """End the worker threads; the engine then runs on the calling thread alone."""
        self._crew.close()
        self.threads = 1

    def _append(self, tokens: list[Tokens], caches: list[SequenceCache], *, wanted: Wanted = "last") -> Floats:
        """Append new tokens to each sequence; logits after those that are wanted."""
        with self._lock:
            ends = [cache.length + len(part) for cache, part in zip(caches, tokens, strict=True)]
            for cache, end in zip(caches, ends, strict=True):
                cache.reserve(end)
            pages, lengths = [cache.pages for cache in caches], [cache.length for cache in caches]
            batch = TokenBatch.contiguous(tokens, pages, lengths, self._pool.page_tokens, wanted=wanted)
            logits = self._compute(batch, self._pool)
            for cache, end in zip(caches, ends, strict=True):
                cache.length = end
            return logits

    def _compute(self, batch: TokenBatch, pool: PagePool) -> Floats:
        tokens, seen = len(batch.ids), int(batch.visible.max())
        self._turn_up_to(int(batch.positions.max()) + 1)
        self._sizes[cpu_step.PAGE_TOKENS] = pool.page_tokens
        threads = 1 if _crowded(self.threads) else self.threads
        logits = np.empty((len(batch.out_rows), self.config.vocab_size), np.float32)
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(batch.context_lengths)))
        begins = before[:-1] - np.repeat(before[batch.context_offsets[:-1]], np.diff(batch.context_offsets))
        step = cpu_step.Batch(
            batch.ids, batch.positions, batch.rows, batch.slots, batch.visible, batch.context_pages,
            batch.context_starts, begins, batch.context_lengths, batch.context_offsets, batch.out_rows,
        )  # fmt: skip
        shared = (self._barrier, self._weights(), step, pool.data.reshape(-1), self._room_for(tokens, seen))
        self._crew.run(threads, lambda thread: cpu_step.forward(thread, threads, *shared, logits.reshape(-1)))
        return logits

    def _require_shape(self, pool: PagePool) -> None:
        config = self.config
        expected = (config.n_layers, 2, config.n_kv_heads, pool.page_tokens, config.head_dim)
        if pool.shape != expected:
            raise UsageError(f"the pool's pages have shape {pool.shape}, this model needs {expected}")

    def _weights(self) -> cpu_step.Weights:
        return cpu_step.Weights(
            self._arena, self._floats, self._plan, self._extras, self._sizes, self.config.norm_eps,
            self._cosine, self._sine, self._calls,
        )  # fmt: skip

    def _describe(self, final_norm: int) -> NDArray[np.int64]:
        config = self.config
        largest = max(config.hidden_size, config.intermediate_size, config.n_heads * config.head_dim) // 32
        interleaved = int(config.rope_style == "interleaved")
        return np.array(
            [config.hidden_size, config.n_heads, config.n_kv_heads, config.head_dim, config.intermediate_size,
             interleaved, final_norm, largest, PAGE_TOKENS], np.int64,
        )  # fmt: skip

    def _turn_up_to(self, length: int) -> None:
        """Extend the tables of rotary angles; by doubling, so that they are made a few times only."""
        size, interleaved = self.config.head_dim, self.config.rope_style == "interleaved"
        known = len(self._cosine) // size
        if length > known:
            angles = np.arange(max(length, 2 * known, 1024))[:, None] * self._frequencies
            cosine, sine = np.cos(angles) * self._magnitude, np.sin(angles) * self._magnitude
            order = np.argsort(np.tile(np.arange(size // 2), 2), kind="stable") if interleaved else np.arange(size)
            self._cosine = np.concatenate((cosine, cosine), axis=1)[:, order].astype(np.float32).reshape(-1)
            self._sine = np.concatenate((-sine, sine), axis=1)[:, order].astype(np.float32).reshape(-1)

    def _room_for(self, tokens: int, length: int) -> cpu_step.Scratch:
        have_tokens, have_length = self._scratch_for
        if self._scratch is None or tokens > have_tokens or length > have_length:
            tokens = max(tokens, have_tokens, 1)
            length = max(length, have_length * 2 if length > have_length else have_length, 1024)
            self._scratch, self._scratch_for = self._make_scratch(tokens, length), (tokens, length)
        return self._scratch

    def _make_scratch(self, tokens: int, length: int) -> cpu_step.Scratch:
        config, threads = self.config, self.threads
        blocks = int(self._sizes[cpu_step.LARGEST_BLOCKS]) * max(tokens, threads)
        group = config.n_heads // config.n_kv_heads
        unit = group * (config.head_dim + 2)
        mixed = config.n_heads * config.head_dim
        widest = max(config.hidden_size, mixed)
        sums = 16 * cpu_step.TOKEN_GROUP

        def floats(*shape: int) -> Floats:
            return np.zeros(shape, np.float32)

        return cpu_step.Scratch(
            x=floats(tokens * config.hidden_size),
            qkv=floats(tokens * (mixed + 2 * config.n_kv_heads * config.head_dim)),
            mixed=floats(tokens * mixed),
            inner=floats(tokens * config.intermediate_size),
            xq=np.zeros(32 * blocks, np.int8),
            dx=floats(blocks),
            xsum=floats(blocks),
            normed=floats(threads, widest),
            sums=floats(threads, sums),
            more=floats(threads, sums),
            scores=floats(threads, group * (CHUNK + 16)),
            queries=floats(threads, group * config.head_dim),
            twice=floats(threads, 2 * config.head_dim),
            parts=floats(config.n_kv_heads * (length // CHUNK + 1) * unit),
            pair=floats(threads, 2 * unit),
        )


class _Packer:
    """Lays all matrices of a source into one arena of tiles, and all norms and biases into one float array."""

    def __init__(self, source: WeightSource) -> None:
        self.source, self.config = source, source.config
        self.names = set(source.names())
        self.floats: list[Floats] = []
        self.n_floats = self.used = self.final_norm = 0
        self.arena = np.empty(0, np.uint8)

    def run(self) -> tuple[NDArray[np.uint8], Floats, NDArray[np.int64], NDArray[np.int64]]:
        config = self.config
        hidden, inner, size = config.hidden_size, config.intermediate_size, config.head_dim
        query, key = config.n_heads * size, config.n_kv_heads * size
        rows = (query, key, key, hidden, inner, inner, hidden)
        columns = (hidden, hidden, hidden, query, hidden, hidden, inner)
        plan = np.full((config.n_layers + 1, len(rows), 5), -1, np.int64)
        extras = np.full((config.n_layers, 5), -1, np.int64)
        jobs = [
            (plan[layer, slot], f"blk.{layer}.{name}", (rows[slot], columns[slot]))
            for layer in range(config.n_layers)
            for slot, name in enumerate(LAYER_MATRICES)
        ]
        last = plan[config.n_layers]
        jobs.append((last[cpu_step.EMBEDDING], "token_embd", (config.vocab_size, hidden)))
        if not config.tie_embeddings:
            jobs.append((last[cpu_step.HEAD], "output", (config.vocab_size, hidden)))
        kinds = [self._kind(name + ".weight", shape) for _, name, shape in jobs]
        total = sum(cpu_gemm.packed_bytes(kind, *shape) for kind, (_, _, shape) in zip(kinds, jobs, strict=True))
        self.arena = np.zeros(total, np.uint8)
        for kind, (entry, name, shape) in zip(kinds, jobs, strict=True):
            self._pack(entry, name, shape, kind)
        if config.tie_embeddings:
            last[cpu_step.HEAD] = last[cpu_step.EMBEDDING]
        for layer in range(config.n_layers):
            self._note_norms(extras[layer], layer)
        self.final_norm = self._note("output_norm.weight", hidden)
        return self.arena, np.concatenate(self.floats), plan, extras

    def _kind(self, name: str, shape: tuple[int, int]) -> int:
        meta = self.source.meta(name)
        if meta.shape != shape:
            raise ModelError(f"{self.source.path}: tensor {name} has shape {meta.shape}, expected {shape}")
        if meta.format in ("q4_1", "q4_k"):
            return cpu_gemm.W4M
        return cpu_gemm.W4 if meta.format == "q4_0" else cpu_gemm.W8

    def _pack(self, entry: NDArray[np.int64], name: str, shape: tuple[int, int], kind: int) -> None:
        rows, columns = shape
        bias = self._note(f"{name}.bias", rows) if f"{name}.bias" in self.names else -1
        entry[:] = (kind, self.used, rows, columns // 32, bias)
        weight = f"{name}.weight"
        stored = self.source.meta(weight).format
        if stored in ("q4_0", "q4_1"):
            block = BY_NAME[stored]
            raw = self.source.raw(weight)
            self._check_halves(raw.reshape(-1, block.nbytes)[:, : block.nbytes - 16], weight)
            cpu_gemm.pack_nibbles(raw, rows, columns // 32, block.nbytes, block.nbytes - 16, self.arena, self.used)
        else:
            self._pack_codes(weight, stored, kind)
        self.used += cpu_gemm.packed_bytes(kind, rows, columns)

    def _pack_codes(self, name: str, stored: str, kind: int) -> None:
        quantized = self.source.quantized(name) if stored in ("q8_0", "q5_0", "q4_k") else None
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
            self._check_halves(np.stack((scales, minimums)).view(np.uint8).reshape(1, -1), name)
        cpu_gemm.pack_codes(np.ascontiguousarray(codes), scales, minimums, kind, self.arena, self.used)

    def _check_halves(self, halves: NDArray[np.uint8], name: str) -> None:
        if not np.isfinite(np.ascontiguousarray(halves).view(np.float16)).all():
            raise self._not_finite(name)

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
        extra[cpu_step.ATTN_NORM] = self._note(prefix + "attn_norm.weight", config.hidden_size)
        extra[cpu_step.FFN_NORM] = self._note(prefix + "ffn_norm.weight", config.hidden_size)
        if config.qk_norm == "head":
            extra[cpu_step.Q_NORM] = self._note(prefix + "attn_q_norm.weight", config.head_dim)
            extra[cpu_step.K_NORM] = self._note(prefix + "attn_k_norm.weight", config.head_dim)
        windowed = config.sliding_window is not None and layer >= config.sliding_from
        extra[cpu_step.WINDOW] = (config.sliding_window or 0) if windowed else 0


class _Crew:
    """Threads that wait for a step, take part in it, and wait again. They start with the first step that needs them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._wakes: list[threading.Semaphore] = []
        self._done = threading.Semaphore(0)
        self._work: Callable[[int], None] | None = None
        self._failure: BaseException | None = None

    def run(self, threads: int, work: Callable[[int], None]) -> None:
        """Call `work(0)` here and `work(1)` to `work(threads - 1)` on the crew; return when all have."""
        while len(self._wakes) < threads - 1:
            self._wakes.append(threading.Semaphore(0))
            number = len(self._wakes)
            threading.Thread(target=self._wait, args=(number,), name=f"windlass-cpu-{number}", daemon=True).start()
        self._work = work
        for wake in self._wakes[: threads - 1]:
            wake.release()
        work(0)
        for _ in range(threads - 1):
            self._done.acquire()
        self._work = None

    def _wait(self, number: int) -> None:
        wake = self._wakes[number - 1]
        while True:
            wake.acquire()
            work = self._work
            if work is None:
                return
            work(number)
            self._done.release()

    def close(self) -> None:
        for wake in self._wakes:
            wake.release()
        self._wakes = []


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _crowded(threads: int) -> bool:
    """Whether other programs want the cores right now, so that threads would wait for each other's turns."""
    if threads == 1:
        return False
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            running = int(file.read().split()[3].split("/")[0])
    except (OSError, ValueError, IndexError):
        return False
    return running > _usable_cores()
