"""Engines without a model, for tests of what is decided rather than computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

from windlass.serving.engine import Engine, EngineConfig
from windlass.serving.executor import ScriptedExecutor
from windlass.serving.kv import KVManager, PageCounts
from windlass.serving.request import Request, SamplingParams, tokens_of

STRICT = EngineConfig(max_queue=10_000, max_queue_per_tenant=10_000, check_every=1, strict=True)


def scripted_engine(
    scheduler: Any,
    *,
    pages: int = 64,
    page_tokens: int = 4,
    answers: Mapping[str, Sequence[int]] | None = None,
    config: EngineConfig = STRICT,
    share_prefixes: bool = True,
    watermark: float = 0.01,
    seconds: Callable[[Any], float] = lambda batch: 1.0,
    **options: Any,
) -> Engine:
    """An engine on a script, whose memory is checked after every step."""
    executor = ScriptedExecutor(answers, seconds=seconds)
    kv = KVManager(PageCounts(), pages, page_tokens=page_tokens, share_prefixes=share_prefixes, watermark=watermark)
    return Engine(executor, scheduler, kv, options.pop("clock", executor), config=config, **options)


def request(name: str, prompt: int | Sequence[int], max_tokens: int = 4, **fields: Any) -> Request:
    """A request; a number stands for a prompt of so many tokens that nobody else has."""
    tokens = (
        [crc32(f"{name} {place}".encode()) % 30_000 for place in range(prompt)] if isinstance(prompt, int) else prompt
    )
    params = SamplingParams(max_tokens=max_tokens, **fields.pop("params", {}))
    return Request(name, tokens_of(tokens), params, **fields)
