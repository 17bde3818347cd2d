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
from windlass.kernels.context_chunks import CHUNK
from windlass.kernels.machine_code import Kernel
from windlass.models import cpu_tables as tables
from windlass.models.adapter_tables import TokenAdapters
from windlass.models.block_formats import Floats
from windlass.models.config import packing_obstacle
from windlass.models.cpu_packing import KERNELS as PACKING_KERNELS
from windlass.models.cpu_packing import pack
from windlass.models.cpu_tables import StepTables
from windlass.models.decoder import Tokens, check_tokens, rotary_frequencies
from windlass.models.kernel_cache import kernels
from windlass.models.key_sketch import SparseReading
from windlass.models.page_pool import PAGE_TOKENS, PagePool, SequenceCache
from windlass.models.token_batch import AttentionMass, TokenBatch, Wanted
from windlass.models.weights import WeightSource, open_weights

KERNELS = (
    "windlass.models.cpu_step:FORWARD", "windlass.kernels.cpu_gemm:TILE_PRODUCT",
    "windlass.kernels.cpu_gemm:VECTOR_PRODUCT", "windlass.kernels.cpu_attention:ATTEND",
    "windlass.models.cpu_linear:PROJECT", "windlass.models.cpu_linear:PROJECT_GATED",
    "windlass.models.cpu_linear:QUANTIZE", "windlass.models.cpu_context:TURN",
    "windlass.models.cpu_context:ATTEND_FEW", "windlass.models.cpu_context:MERGE_PARTS",
    "windlass.models.cpu_context:ATTEND_MANY", "windlass.models.cpu_head:FIND_HEAD", "windlass.models.cpu_step:LAYER",
)  # fmt: skip
"""The step, and what it calls, in the order of `cpu_tables.TILE_CALL` and following."""
ADAPTER_KERNELS = (
    "windlass.kernels.lora:SHRINK", "windlass.kernels.lora:EXPAND",
    "windlass.models.cpu_adapters:SHRINK_TOKENS", "windlass.models.cpu_adapters:EXPAND_ROWS",
)  # fmt: skip
"""What only tokens with adapters need, in the order of `cpu_tables.SHRINK_CALL` and following."""
MASS_KERNELS = ("windlass.kernels.cpu_attention:MASS", "windlass.models.cpu_context:MEASURE_MASS")
"""What only an `AttentionMass` needs, in the order of `cpu_tables.MASS_CALL` and following."""
SPARSE_KERNELS = ("windlass.models.cpu_sparse:ATTEND_SPARSE",)
"""What only tokens that read a part of their context need: `cpu_tables.SPARSE_CALL`."""
PREFILL_CHUNK = 256
"""Tokens of a prompt computed together."""
MOST_THREADS = 8
"""More threads than memory channels only wait for each other."""
_NONE = np.zeros(0, np.int64)


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
        kernels((*KERNELS, *PACKING_KERNELS))  # together, so that a first start compiles all at once
        self.packed = pack(source, self.threads)
        self._frequencies, self._magnitude = rotary_frequencies(self.config, source)
        self._cosine = self._sine = np.zeros((0, 0), np.float32)
        self._sizes = self._describe(self.packed.final_norm)
        self._pool = self.new_pool()
        self._tables = StepTables(self.threads)
        self._room = (0, 0)
        self._calls = np.zeros(tables.SPARSE_CALL + 1, np.int64)
        self._forward = self._put_model()
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
            self._require_valid(batch, pool, adapters, mass, sparse)
            return self._compute(batch, pool, greedy=False, adapters=adapters, mass=mass, sparse=sparse)[0]

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
            self._require_valid(batch, pool, adapters, mass, sparse)
            logits, chosen = self._compute(batch, pool, greedy=True, adapters=adapters, mass=mass, sparse=sparse)
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
        adapters: TokenAdapters | None = None,
        mass: AttentionMass | None = None,
        sparse: SparseReading | None = None,
    ) -> tuple[Floats, NDArray[np.int64]]:
        tokens, seen = len(batch.ids), int(batch.visible.max())
        self._turn_up_to(int(batch.positions.max()) + 1)
        self._sizes[tables.PAGE_TOKENS] = pool.page_tokens
        threads = self._free_cores.threads()
        wanted, guess = len(batch.out_rows), greedy and self.packed.has_coarse_head
        logits = np.empty((0 if guess else wanted, self.config.vocab_size), np.float32)
        best, chosen = np.zeros((threads, wanted), np.float32), np.zeros((threads, wanted), np.int64)
        before = np.concatenate((np.zeros(1, np.int64), np.cumsum(batch.context_lengths)))
        begins = before[:-1] - np.repeat(before[batch.context_offsets[:-1]], np.diff(batch.context_offsets))
        for number, array in (
            (tables.IDS, batch.ids), (tables.POSITIONS, batch.positions), (tables.SEQUENCES, batch.rows),
            (tables.SLOTS, batch.slots), (tables.VISIBLE, batch.visible), (tables.PAGES, batch.context_pages),
            (tables.STARTS, batch.context_starts), (tables.BEGINS, begins), (tables.LENGTHS, batch.context_lengths),
            (tables.OFFSETS, batch.context_offsets), (tables.WANTED, batch.out_rows), (tables.DATA, pool.data),
            (tables.LOGITS, logits), (tables.BEST, best), (tables.CHOSEN, chosen),
        ):  # fmt: skip
            self._tables.put(number, array)
        self._put_mass(mass)
        self._put_adapters(adapters, max(tokens, self.threads))
        self._make_room(tokens, seen)
        pool.versions[batch.slots // pool.page_tokens] += 1
        self._put_sparse(sparse, batch, pool)
        self._crew.run(threads, lambda thread: self._forward(self._tables.address(thread), thread, threads))
        if not greedy:
            return logits, chosen
        if not guess:
            return logits, logits.argmax(axis=1)
        # Of the threads that found the highest logit, the one with the lowest id; as `argmax` breaks ties.
        highest = best.max(axis=0)
        winners = (best == highest) & np.isfinite(highest)
        return logits, np.where(winners, chosen, self.config.vocab_size).min(axis=0)

    def _require_valid(
        self,
        batch: TokenBatch,
        pool: PagePool,
        adapters: TokenAdapters | None,
        mass: AttentionMass | None,
        sparse: SparseReading | None,
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
        if adapters is not None:
            adapters.require_valid(tokens=len(batch.ids), config=config, elements=pool.data.size)
        if sparse is not None:
            sparse.require_valid(batch, pool)

    def _put_mass(self, mass: AttentionMass | None) -> None:
        """Where to note what tokens attend to, if anywhere."""
        if mass is not None:
            self._fill_calls(tables.MASS_CALL, MASS_KERNELS)
            room = self.config.n_heads * (mass.shares.shape[1] + 1) + 2
            self._tables.put_rows(tables.STRETCH_SUMS, np.empty((self.threads, room), np.float32))
        self._tables.put(tables.BOUNDS, _NONE if mass is None else mass.bounds)
        self._tables.put(tables.BOUND_OFFSETS, _NONE if mass is None else mass.offsets)
        self._tables.put(tables.MASS, _NONE if mass is None else mass.shares)

    def _put_adapters(self, adapters: TokenAdapters | None, rows: int) -> None:
        """Which updates the tokens get, and memory for `rows` tokens or threads to make them in."""
        if adapters is None or (adapters.slots < 0).all():
            self._tables.put(tables.TOKEN_ADAPTERS, _NONE)
            return
        self._fill_calls(tables.SHRINK_CALL, ADAPTER_KERNELS)
        config, resident = self.config, adapters.resident
        widest = max(config.hidden_size, config.intermediate_size, config.n_heads * config.head_dim)
        width = -(-resident.rank // 4) * 4
        self._sizes[tables.SHRUNK_WIDTH] = width
        for number, array in (
            (tables.TOKEN_ADAPTERS, adapters.slots), (tables.ADAPTERS, resident.tables),
            (tables.ADAPTER_SCALES, resident.scales), (tables.ADAPTER_CELLS, resident.cells),
            (tables.SHRUNK, np.empty((rows, 3 * width), np.float32)),
        ):  # fmt: skip
            self._tables.put(number, array)
        self._tables.put_rows(tables.INPUTS, np.empty((self.threads, widest), np.float32))

    def _put_sparse(self, sparse: SparseReading | None, batch: TokenBatch, pool: PagePool) -> None:
        """Which tokens read a part of their context, and memory to choose it in."""
        if sparse is None or not sparse.budgets.any():
            self._tables.put(tables.BUDGETS, _NONE)
            return
        self._fill_calls(tables.SPARSE_CALL, SPARSE_KERNELS)
        for number, array in (
            (tables.BUDGETS, sparse.budgets), (tables.NEWEST, sparse.newest), (tables.SKETCH, sparse.sketch.data),
            (tables.SKETCHED, sparse.sketch.seen), (tables.VERSIONS, pool.versions),
        ):  # fmt: skip
            self._tables.put(number, array)
        shape = self.threads, int(np.diff(batch.context_offsets).max()) + 16
        for number in (tables.PAGE_BOUNDS, tables.PAGE_RANKS):
            self._tables.put_rows(number, np.empty(shape, np.float32))
        for number in (tables.READ_PAGES, tables.READ_STARTS, tables.READ_BEGINS, tables.READ_LENGTHS):
            self._tables.put_rows(number, np.empty(shape, np.int64))

    def _fill_calls(self, first: int, names: tuple[str, ...]) -> None:
        """Compile or load what is seldom needed, and say where it is."""
        if not self._calls[first]:
            self._calls[first : first + len(names)] = [kernel.address for kernel in kernels(names)]

    def _put_model(self) -> Kernel:
        """Write what never changes into the tables; the compiled step."""
        packed, step_tables = self.packed, self._tables
        forward, *called = kernels(KERNELS)
        self._calls[: len(called)] = [kernel.address for kernel in called]
        for number, array in (
            (tables.ARENA, packed.arena), (tables.FLOATS, packed.floats), (tables.PLAN, packed.plan),
            (tables.EXTRAS, packed.extras), (tables.SIZES, self._sizes), (tables.CALLS, self._calls),
            (tables.EPSILON, np.array([self.config.norm_eps], np.float32)), (tables.BARRIER, np.zeros(16, np.int64)),
        ):  # fmt: skip
            step_tables.put(number, array)
        return forward

    def _describe(self, final_norm: int) -> NDArray[np.int64]:
        config = self.config
        largest = max(config.hidden_size, config.intermediate_size, config.n_heads * config.head_dim) // 32
        interleaved = int(config.rope_style == "interleaved")
        return np.array(
            [config.n_layers, config.hidden_size, config.n_heads, config.n_kv_heads, config.head_dim,
             config.intermediate_size, interleaved, final_norm, largest, PAGE_TOKENS, 0], np.int64,
        )  # fmt: skip

    def _turn_up_to(self, length: int) -> None:
        """Extend the tables of rotary angles; by doubling, so that they are made a few times only."""
        size, interleaved = self.config.head_dim, self.config.rope_style == "interleaved"
        known = len(self._cosine)
        if length > known:
            angles = np.arange(max(length, 2 * known, 256))[:, None] * self._frequencies
            cosine, sine = np.cos(angles) * self._magnitude, np.sin(angles) * self._magnitude
            order = np.argsort(np.tile(np.arange(size // 2), 2), kind="stable") if interleaved else np.arange(size)
            self._cosine = np.concatenate((cosine, cosine), axis=1)[:, order].astype(np.float32, order="C")
            self._sine = np.concatenate((-sine, sine), axis=1)[:, order].astype(np.float32, order="C")
            self._tables.put(tables.COSINE, self._cosine)
            self._tables.put(tables.SINE, self._sine)

    def _make_room(self, tokens: int, length: int) -> None:
        """Memory to work in for so many tokens, over contexts of this length."""
        have_tokens, have_length = self._room
        if tokens <= have_tokens and length <= have_length:
            return
        tokens = max(tokens, have_tokens)
        length = max(length, have_length * 2 if length > have_length else have_length, 1024)
        self._room = (tokens, length)
        config, threads = self.config, self.threads
        blocks = int(self._sizes[tables.LARGEST_BLOCKS]) * max(tokens, threads)
        unit = config.n_heads // config.n_kv_heads * (config.head_dim + 2)
        mixed, few = config.n_heads * config.head_dim, min(tokens, tables.FEW)
        tiles = -(-config.vocab_size // 16) if self.packed.has_coarse_head else 0
        for number, *shape in (
            (tables.X, tokens, config.hidden_size),
            (tables.QKV, tokens, mixed + 2 * config.n_kv_heads * config.head_dim),
            (tables.MIXED, tokens, mixed),
            (tables.INNER_STATE, tokens, config.intermediate_size),
            (tables.STEPS, blocks),
            (tables.CODE_SUMS, blocks),
            (tables.PARTS, few, config.n_kv_heads, length // CHUNK + 1, unit),
            (tables.QUERIES, tokens, mixed),
            (tables.STATES, tokens, config.n_kv_heads * unit),
            (tables.TOPS, tokens, tiles),
        ):
            self._tables.put(number, np.zeros(shape, np.float32))
        self._tables.put(tables.CODES, np.zeros(32 * blocks, np.int8))
        for number, size in (
            (tables.NORMED, max(config.hidden_size, mixed)),
            (tables.SUMS, 16 * tables.TOKEN_GROUP),
            (tables.MORE, 16 * tables.TOKEN_GROUP),
            (tables.SCORES, config.n_heads * (CHUNK + 16)),
            (tables.OWN_QUERIES, mixed),
            (tables.TWICE, 2 * config.head_dim),
            (tables.PAIR, config.n_kv_heads * unit),
            (tables.RANKED, tables.CANDIDATES),
        ):
            self._tables.put_rows(number, np.zeros((threads, size), np.float32))
        self._tables.put_rows(tables.CANDIDATE_TILES, np.zeros((threads, tables.CANDIDATES), np.int64))


class _Crew:
    """Threads that wait for a step, take part in it, and wait again. They start with the first step that needs them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._wakes: list[threading.Semaphore] = []
        self._done = threading.Semaphore(0)
        self._work: Callable[[int], object] | None = None
        self._failure: BaseException | None = None

    def run(self, threads: int, work: Callable[[int], object]) -> None:
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
