"""The engine of one model on this machine, put together from its parts."""

from __future__ import annotations

from collections.abc import Mapping

from windlass.core.errors import UsageError
from windlass.core.program import WallClock
from windlass.models.cpu_engine import CpuEngine
from windlass.models.generate import LocalModel
from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.kv import KVManager
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import Sequence
from windlass.serving.scheduler import FairShare, QueuePolicy, StallFree
from windlass.serving.text import Readable

TOKEN_BUDGET = 64
"""Tokens of a step on a processor: enough to use the weights well, few enough that nobody waits long for the next."""


def local_engine(
    model: LocalModel,
    *,
    memory_bytes: int = 512 << 20,
    policy: QueuePolicy | None = None,
    weights: Mapping[str, float] | None = None,
    config: EngineConfig | None = None,
) -> Engine:
    """An engine that runs `model`, fair between tenants.

    Args:
        model: A model on the compiled engine.
        memory_bytes: For keys and values; at least one whole context.
        policy: Who gets the next step; stall-free batching when None.
        weights: Shares of tenants; 1 for those that are not named.
        config: Bounds of the queue.

    Raises:
        UsageError: the model does not run on the compiled engine.
    """
    decoder = model.decoder
    if not isinstance(decoder, CpuEngine):
        raise UsageError("this model does not run on the compiled engine", hint="see `windlass models inspect`")
    probe = decoder.new_pool(pages=1)
    context_pages = -(-model.context_length // probe.page_tokens)
    pages = max(memory_bytes // probe.page_bytes, context_pages)
    pool = decoder.new_pool(pages=pages)
    kv = KVManager(pool, pages, page_tokens=pool.page_tokens, revision=model.fingerprint)

    def text(seq: Sequence) -> Readable:
        return Readable(model.tokenizer.detokenizer(), seq.request.params.stop)

    return Engine(
        NumbaExecutor(decoder, pool),
        FairShare(policy or StallFree(TOKEN_BUDGET), weights),
        kv,
        WallClock(),
        config=config,
        end_ids={*model.tokenizer.end_ids, *decoder.config.eos_ids},
        text=text,
    )
