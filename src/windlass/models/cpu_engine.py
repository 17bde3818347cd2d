"""The decoder on a plain CPU at the speed of its memory: packed weights, compiled steps, no torch, no compiler.

Same interface as `decoder.Decoder`, which it is tested against. Weights stay in 4 or 8 bits; activations are rounded to
8 bits for each 32 channels, the cache to half precision. Formats that have no tile of their own are rounded to 8
bits once more when loaded (Q5_1, Q5_K, Q6_K, and plain numbers).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ModelError, UsageError
from windlass.core.tasks import usable_cores
from windlass.kernels.cpu_attention import CHUNK
from windlass.kernels.lora import ROOM
from windlass.models import cpu_step, cpu_tables
from windlass.models.adapter_tables import AdapterTables, TokenAdapters
from windlass.models.block_formats import Floats
from windlass.models.config import packing_obstacle
from windlass.models.cpu_packing import pack
from windlass.models.decoder import Tokens, check_tokens, rotary_frequencies
from windlass.models.key_sketch import SparseReading
from windlass.models.page_pool import PAGE_TOKENS, PagePool, SequenceCache
from windlass.models.token_batch import AttentionMass, TokenBatch, Wanted
from windlass.models.weights import WeightSource, open_weights

PREFILL_CHUNK = 256
"""Tokens of a prompt computed together."""
MOST_THREADS = 8
"""More threads than memory channels only wait for each other."""
_NO_BOUNDS = np.zeros(0, np.int64)


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
        self.threads = threads or min(usable_cores(), MOST_THREADS)
        self.packed = pack(source, self.threads)
        self._frequencies, self._magnitude = rotary_frequencies(self.config, source)
        self._cosine = self._sine = np.zeros(0, np.float32)
        self._sizes = self._describe(self.packed.final_norm)
        self._pool = self.new_pool()
        self._scratch: cpu_tables.Scratch | None = None
        self._scratch_for = (0, 0)
        self._calls = cpu_step.kernel_addresses()
        self._barrier = np.zeros(16, np.int64)
        none = AdapterTables.of([], 1, self.config)
        self._no_adapters = self._make_adapters(np.zeros(0, np.int64), none, 0, 0)
        self._no_sparse = cpu_tables.Sparse(
            *[np.zeros(0, np.int64)] * 3, np.zeros((0, 0, 0, 0), np.uint16), np.zeros((0, 0, 0), np.int64),
            np.zeros(0, np.int64), *[np.zeros((0, 0), np.float32)] * 2, *[np.zeros((0, 0), np.int64)] * 4,
        )  # fmt: skip
        self._crew, self._free_cores = _Crew(self.threads), _FreeCores(self.threads)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, *, threads: int | None = None) -> CpuEngine:
        """Pack the weights of a GGUF file or a safetensors folder."""
        return cls(open_weights(path), threads=threads)

    @property
    def nbytes(self) -> int:
        """Bytes of weights in memory; about the bytes of the file."""
        return self.packed.arena.nbytes + self.packed.floats.nbytes

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """Radians a position that each channel pair of a key is turned by, `[head_dim / 2]`."""
        return self._frequencies

    def cache(self) -> SequenceCache:
        """An empty sequence."""
        return SequenceCache(self._pool)

    def prefill(self, tokens: Tokens, cache: SequenceCache) -> Floats:
        checked = check_tokens(tokens, self.config, cache.length)
        for start in range(0, len(checked), PREFILL_CHUNK):
            part = checked[start : start + PREFILL_CHUNK]
            last = start + len(part) == len(checked)
            logits, _ = self._append([part], [cache], wanted="last" if last else "none")
        last_logits: Floats = logits[0]
        return last_logits

    def step(self, token: int, cache: SequenceCache) -> Floats:
        checked = check_tokens(np.array([token]), self.config, cache.length)
        logits, _ = self._append([checked], [cache])
        only: Floats = logits[0]
        return only

    def likeliest(self, tokens: Tokens, cache: SequenceCache) -> int:
        """Append `tokens` (at least one) to the sequence; the id that `argmax` of the logits after the last would find.

        Most rows of an 8-bit head are read in 4 bits only: the 64 best tiles of 16 rows of that guess are computed
        exactly, and the best of them wins.
        """
        checked = check_tokens(tokens, self.config, cache.length)
        for start in range(0, len(checked), PREFILL_CHUNK):
            part = checked[start : start + PREFILL_CHUNK]
            last = start + len(part) == len(checked)
            _, chosen = self._append([part], [cache], wanted="last" if last else "none", greedy=True)
        return int(chosen[0])

    def step_batch(self, tokens: Tokens, caches: list[SequenceCache]) -> Floats:
        """Append one token to each of several sequences; float32 `[len(caches), vocab]` logits after them.

        The logits of a sequence are the same bits whatever else is in the batch.
        """
        if len(tokens) != len(caches) or len({id(cache) for cache in caches}) != len(caches):
            raise UsageError(f"{len(tokens)} tokens for {len(caches)} sequences: each needs exactly one")
        for token, cache in zip(tokens, caches, strict=True):
            check_tokens(np.array([token]), self.config, cache.length)
        return self._append([np.array([token]) for token in tokens], caches)[0]

    def forward_tokens(
        self,
        batch: TokenBatch,
        pool: PagePool,
        adapters: TokenAdapters | None = None,
        mass: AttentionMass | None = None,
        sparse: SparseReading | None = None,
    ) -> Floats:
        """Compute a batch of tokens of any sequences over pages of `pool`, and write their keys and values there.

        Args:
            batch: What to compute; its pages are owned by the caller.
            pool: Pages of this model's shape, made by `new_pool`. Nothing else may write to the pages of
                the batch meanwhile.
            adapters: Low-rank updates of tokens that have any; their pages are among the pool's.
            mass: Where to note what the tokens attend to; costs about a third of attention itself.
            sparse: Which tokens read a part of their context only.

        Returns:
            Logits, float32 `[len(batch.out_rows), vocab]`. They are the same bits whatever else is in the batch.

        Raises:
            UsageError: the pool is of another shape, or the batch is inconsistent; nothing is written then.
        """
        with self._lock:
            self._require_valid(batch, pool, mass, sparse)
            updates = self._updates(batch, pool, adapters)
            return self._compute(batch, pool, greedy=False, adapters=updates, mass=mass, sparse=sparse)[0]

    def forward_greedy(
        self,
        batch: TokenBatch,
        pool: PagePool,
        adapters: TokenAdapters | None = None,
        mass: AttentionMass | None = None,
        sparse: SparseReading | None = None,
    ) -> NDArray[np.int64]:
        """`forward_tokens` for those who only want the likeliest token: int64 `[len(batch.out_rows)]`, as `likeliest`.

        Where logits are no numbers, the id is `vocab_size`, which no token has.

        Raises:
            UsageError: as `forward_tokens`.
        """
        with self._lock:
            self._require_valid(batch, pool, mass, sparse)
            updates = self._updates(batch, pool, adapters)
            logits, chosen = self._compute(batch, pool, greedy=True, adapters=updates, mass=mass, sparse=sparse)
            if len(logits):
                chosen[~np.isfinite(logits[np.arange(len(chosen)), chosen])] = self.config.vocab_size
            return chosen

    def new_pool(self, *, pages: int | None = None, page_tokens: int = PAGE_TOKENS) -> PagePool:
        """A pool of this model's shape; with a budget of `pages`, or growing as needed."""
        config = self.config
        return PagePool(config.n_layers, config.n_kv_heads, config.head_dim, page_tokens=page_tokens, pages=pages)

    def logits(self, tokens: Tokens) -> Floats:
        cache, checked = self.cache(), check_tokens(tokens, self.config, 0)
        parts = [checked[start : start + PREFILL_CHUNK] for start in range(0, len(checked), PREFILL_CHUNK)]
        return np.concatenate([self._append([part], [cache], wanted="every")[0] for part in parts])

    def close(self) -> None:
        """End the worker threads; the engine then runs on the calling thread alone."""
        self._crew.close()
        self.threads, self._free_cores = 1, _FreeCores(1)

    def _append(
        self, tokens: list[Tokens], caches: list[SequenceCache], *, wanted: Wanted = "last", greedy: bool = False
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Append new tokens to each sequence; logits after those that are wanted, or only the likeliest ids."""
        with self._lock:
            ends = [cache.length + len(part) for cache, part in zip(caches, tokens, strict=True)]
            for cache, end in zip(caches, ends, strict=True):
                cache.reserve(end)
            pages, lengths = [cache.pages for cache in caches], [cache.length for cache in caches]
            batch = TokenBatch.contiguous(tokens, pages, lengths, self._pool.page_tokens, wanted=wanted)
            found = self._compute(batch, self._pool, greedy=greedy)
            for cache, end in zip(caches, ends, strict=True):
                cache.length = end
            return found

    def _compute(
        self,
        batch: TokenBatch,
        pool: PagePool,
        *,
        greedy: bool,
        adapters: cpu_tables.Adapters | None = None,
        mass: AttentionMass | None = None,
        sparse: SparseReading | None = None,
    ) -> tuple[Floats, NDArray[np.int64]]:
        tokens, seen = len(batch.ids), int(batch.visible.max())
        self._turn_up_to(int(batch.positions.max()) + 1)
        self._sizes[cpu_tables.PAGE_TOKENS] = pool.page_tokens
        threads = self._free_cores.threads()
        wanted, guess = len(batch.out_rows), greedy and self.packed.has_coarse_head
        logits = np.empty((0 if guess else wanted, self.config.vocab_size), np.float32)
        best, chosen = np.zeros(threads * wanted, np.float32), np.zeros(threads * wanted, np.int64)
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(batch.context_lengths)))
        begins = before[:-1] - np.repeat(before[batch.context_offsets[:-1]], np.diff(batch.context_offsets))
        step = cpu_tables.Batch(
            batch.ids, batch.positions, batch.rows, batch.slots, batch.visible, batch.context_pages,
            batch.context_starts, begins, batch.context_lengths, batch.context_offsets, batch.out_rows,
            *((_NO_BOUNDS, _NO_BOUNDS) if mass is None else (mass.bounds, mass.offsets)),
        )  # fmt: skip
        scratch = self._room_for(tokens, seen)
        if mass is not None:
            scratch = scratch._replace(mass=mass.shares.reshape(-1))
        shared = (
            self._barrier, self._weights(), step, pool.data.reshape(-1), scratch,
            self._no_adapters if adapters is None else adapters, self._sparse(batch, pool, sparse),
        )  # fmt: skip
        pool.versions[batch.slots // pool.page_tokens] += 1
        out = (logits.reshape(-1), best, chosen)
        self._crew.run(threads, lambda thread: cpu_step.forward(thread, threads, *shared, *out))
        if not greedy:
            return logits, chosen
        if not guess:
            return logits, logits.argmax(axis=1)
        # Of the threads that found the highest logit, the one with the lowest id; as `argmax` breaks ties.
        by_thread, ids = best.reshape(threads, wanted), chosen.reshape(threads, wanted)
        highest = by_thread.max(axis=0)
        winners = (by_thread == highest) & np.isfinite(highest)
        return logits, np.where(winners, ids, self.config.vocab_size).min(axis=0)

    def _require_valid(
        self, batch: TokenBatch, pool: PagePool, mass: AttentionMass | None, sparse: SparseReading | None
    ) -> None:
        config = self.config
        expected = (config.n_layers, 2, config.n_kv_heads, pool.page_tokens, config.head_dim)
        if pool.shape != expected:
            raise UsageError(f"the pool's pages have shape {pool.shape}, this model needs {expected}")
        batch.require_valid(
            pages=pool.count,
            page_tokens=pool.page_tokens,
            vocab_size=config.vocab_size,
            max_position=config.max_position,
        )
        if mass is not None:
            mass.require_valid(batch)
        if sparse is not None:
            sparse.require_valid(batch, pool)

    def _sparse(self, batch: TokenBatch, pool: PagePool, sparse: SparseReading | None) -> cpu_tables.Sparse:
        if sparse is None or not sparse.budgets.any():
            return self._no_sparse
        runs = int(np.diff(batch.context_offsets).max()) + 16
        floats = [np.empty((self.threads, runs), np.float32) for _ in range(2)]
        lists = [np.empty((self.threads, runs), np.int64) for _ in range(4)]
        sketch = sparse.sketch
        return cpu_tables.Sparse(
            sparse.budgets, np.zeros_like(sparse.budgets), sparse.newest, sketch.data, sketch.seen, pool.versions,
            *floats, *lists,
        )  # fmt: skip

    def _updates(self, batch: TokenBatch, pool: PagePool, adapters: TokenAdapters | None) -> cpu_tables.Adapters | None:
        if adapters is None or (adapters.slots < 0).all():
            return None
        adapters.require_valid(tokens=len(batch.ids), config=self.config, elements=pool.data.size)
        rank, rows = adapters.resident.rank, max(len(batch.ids), self.threads)
        return self._make_adapters(adapters.slots, adapters.resident, 4 * (-(-(rank + ROOM) // 4)), rows)

    def _make_adapters(
        self, slots: NDArray[np.int64], resident: AdapterTables, width: int, rows: int
    ) -> cpu_tables.Adapters:
        config = self.config
        widest = max(config.hidden_size, config.intermediate_size, config.n_heads * config.head_dim)
        shrunk, inputs = np.empty((rows, 3 * width), np.float32), np.empty((self.threads, widest), np.float32)
        return cpu_tables.Adapters(slots, resident.tables, resident.scales, resident.cells, shrunk, inputs)

    def _weights(self) -> cpu_tables.Weights:
        return cpu_tables.Weights(
            self.packed.arena, self.packed.floats, self.packed.plan, self.packed.extras, self._sizes,
            self.config.norm_eps, self._cosine, self._sine, self._calls,
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

    def _room_for(self, tokens: int, length: int) -> cpu_tables.Scratch:
        have_tokens, have_length = self._scratch_for
        if self._scratch is None or tokens > have_tokens or length > have_length:
            tokens = max(tokens, have_tokens, 1)
            length = max(length, have_length * 2 if length > have_length else have_length, 1024)
            self._scratch, self._scratch_for = self._make_scratch(tokens, length), (tokens, length)
        return self._scratch

    def _make_scratch(self, tokens: int, length: int) -> cpu_tables.Scratch:
        config, threads = self.config, self.threads
        blocks = int(self._sizes[cpu_tables.LARGEST_BLOCKS]) * max(tokens, threads)
        group = config.n_heads // config.n_kv_heads
        unit = group * (config.head_dim + 2)
        mixed = config.n_heads * config.head_dim
        widest = max(config.hidden_size, mixed)
        sums = 16 * cpu_tables.TOKEN_GROUP

        def floats(*shape: int) -> Floats:
            return np.zeros(shape, np.float32)

        return cpu_tables.Scratch(
            x=floats(tokens * config.hidden_size),
            qkv=floats(tokens * (mixed + 2 * config.n_kv_heads * config.head_dim)),
            mixed=floats(tokens * mixed),
            inner=floats(tokens * config.intermediate_size),
            xq=np.zeros(32 * blocks, np.int8),
            dx=floats(blocks),
            xsum=floats(blocks),
            parts=floats(min(tokens, cpu_tables.FEW) * config.n_kv_heads * (length // CHUNK + 1) * unit),
            queries=floats(tokens, mixed),
            states=floats(tokens, config.n_kv_heads * unit),
            normed=floats(threads, widest),
            sums=floats(threads, sums),
            more=floats(threads, sums),
            scores=floats(threads, config.n_heads * (CHUNK + 16)),
            own_queries=floats(threads, mixed),
            twice=floats(threads, 2 * config.head_dim),
            pair=floats(threads, config.n_kv_heads * unit),
            tops=floats(tokens * -(-config.vocab_size // 16) if self.packed.has_coarse_head else 0),
            ranked=floats(threads, cpu_tables.CANDIDATES),
            candidates=np.zeros((threads, cpu_tables.CANDIDATES), np.int64),
            mass=floats(0),
        )


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


class _FreeCores:
    """How many threads are worth starting: cores that other programs want are left to them.

    A thread that waits for its turn keeps the others waiting at the next meeting, so two threads on one and a half
    cores are slower than one. What is running is noisy, so it is averaged over a few steps.
    """

    def __init__(self, threads: int) -> None:
        self._threads, self._cores, self._others = threads, max(usable_cores(), threads), 0.0

    def threads(self) -> int:
        if self._threads > 1:
            self._others += 0.25 * (_running() - 1 - self._others)
        return max(1, min(self._threads, self._cores - int(self._others + 0.5)))


def _running() -> int:
    """Threads of all programs that run or want to, ours included; 1 where the system does not say."""
    try:
        with open("/proc/loadavg", "rb", buffering=0) as file:
            return int(file.read(64).split()[3].split(b"/")[0])
    except (OSError, ValueError, IndexError):
        return 1
