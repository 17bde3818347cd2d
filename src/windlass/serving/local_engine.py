"""The engine of one model on this machine, put together from its parts."""

from __future__ import annotations

from collections.abc import Mapping

from windlass.core.errors import UsageError
from windlass.core.program import WallClock
from windlass.models.cpu_engine import CpuEngine
from windlass.models.generate import LocalModel
from windlass.models.page_pool import PagePool
from windlass.serving.adapters import AdapterStore, EngineAdapters
from windlass.serving.batch_scheduler import BatchScheduler
from windlass.serving.chunk_cache import ChunkCache, ChunkOptions
from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.kv import KVManager
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import Sequence
from windlass.serving.scheduler import DecodeFirst, FairShare, HybridFull, PrefillFirst, QueuePolicy
from windlass.serving.sparse_kv import SparseReader
from windlass.serving.sparse_policy import SparsePolicy
from windlass.serving.step_time import measure
from windlass.serving.text import Readable

TOKEN_BUDGET = 64
"""Tokens of a step on a processor: enough to use the weights well, few enough that nobody waits long for the next."""


POLICIES = ("stall-free", "prefill-first", "hybrid", "decode-first")
"""Names of policies, as settings and the command line have them."""


def local_engine(
    model: LocalModel,
    *,
    memory_bytes: int = 512 << 20,
    policy: str = "stall-free",
    tbt_slo_s: float | None = None,
    weights: Mapping[str, float] | None = None,
    config: EngineConfig | None = None,
) -> Engine:
    """An engine that runs `model`, fair between tenants.

    Args:
        model: A model on the compiled engine.
        memory_bytes: For keys and values; at least one whole context.
        policy: Who gets the next step, one of `POLICIES`.
        tbt_slo_s: Seconds that may lie between two tokens of an answer, for `stall-free`: a few steps are measured
            (about a second), and prompts are cut so that steps stay within it. None: a fixed budget.
        weights: Shares of tenants; 1 for those that are not named.
        config: Bounds of the queue, and what is switched on.

    Raises:
        UsageError: the model does not run on the compiled engine, or there is no such policy.
    """
    decoder = model.decoder
    if not isinstance(decoder, CpuEngine):
        raise UsageError("this model does not run on the compiled engine", hint="see `windlass models inspect`")
    probe = decoder.new_pool(pages=1)
    context_pages = -(-model.context_length // probe.page_tokens)
    pages = max(memory_bytes // probe.page_bytes, context_pages)
    pool = decoder.new_pool(pages=pages)
    adapters = EngineAdapters(AdapterStore(decoder.config, pool.data.shape[1], pages), pool)
    chunks = chunk_cache(decoder, pool, model.fingerprint, config.chunks) if config and config.chunks else None
    kv = KVManager(
        pool, pages, page_tokens=pool.page_tokens, revision=model.fingerprint, adapters=adapters.pages, chunks=chunks
    )  # fmt: skip
    sparse = SparseReader(SparsePolicy(1 - config.kv_sparsity), pool) if config and config.kv_sparsity else None

    def text(seq: Sequence) -> Readable:
        return Readable(model.tokenizer.detokenizer(), seq.request.params.stop)

    executor = NumbaExecutor(decoder, pool, adapters=adapters, sparse=sparse)
    return Engine(
        executor,
        FairShare(_policy(policy, tbt_slo_s, executor, kv), weights),
        kv,
        WallClock(),
        config=config,
        end_ids={*model.tokenizer.end_ids, *decoder.config.eos_ids},
        text=text,
        adapters=adapters,
    )


def chunk_cache(decoder: CpuEngine, pool: PagePool, revision: str, options: ChunkOptions) -> ChunkCache:
    """Where chunks of a model's prompts are kept."""
    return ChunkCache(
        pool, decoder.frequencies, interleaved=decoder.config.rope_style == "interleaved", revision=revision,
        options=options,
    )  # fmt: skip


def _policy(name: str, tbt_slo_s: float | None, executor: NumbaExecutor, kv: KVManager) -> QueuePolicy:
    if tbt_slo_s is not None and name != "stall-free":
        raise UsageError(f"{name} cannot keep a time between tokens", hint="use the policy stall-free, or no time")
    if name == "stall-free" and tbt_slo_s is not None:
        return BatchScheduler("auto", tbt_slo_s=tbt_slo_s, step_time=measure(executor, kv))
    if name == "stall-free":
        return BatchScheduler(TOKEN_BUDGET)
    others: dict[str, type[QueuePolicy]] = {
        "prefill-first": PrefillFirst, "hybrid": HybridFull, "decode-first": DecodeFirst
    }  # fmt: skip
    if name not in others:
        raise UsageError(f"there is no policy {name!r}", hint=f"one of {', '.join(POLICIES)}")
    return others[name]()
