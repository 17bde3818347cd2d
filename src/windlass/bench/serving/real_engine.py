"""The default model on the serving engine, as benchmarks need it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from windlass.core import settings
from windlass.core.errors import ModelError
from windlass.core.program import WallClock
from windlass.models.cpu_engine import CpuEngine
from windlass.models.generate import LocalModel
from windlass.models.store import locate
from windlass.serving.batch import Scheduler
from windlass.serving.engine import Engine, EngineConfig, Event
from windlass.serving.kv import KVManager
from windlass.serving.numba_executor import NumbaExecutor
from windlass.serving.request import Request, SamplingParams, tokens_of


def default_model() -> CpuEngine:
    """The compiled engine of the configured language model.

    Raises:
        ModelError: the configured model runs on another engine.
    """
    decoder = local_model().decoder
    assert isinstance(decoder, CpuEngine)
    return decoder


def local_model() -> LocalModel:
    """The configured language model on the compiled engine, tokenizer and all.

    Raises:
        ModelError: the configured model runs on another engine.
    """
    model = LocalModel.load(locate(settings.load().models.decoder))
    if not isinstance(model.decoder, CpuEngine):
        raise ModelError("this benchmark measures the compiled engine, which does not run the configured model")
    return model


def fresh_engine(model: CpuEngine, policy: Scheduler, *, pages: int = 1200) -> Engine:
    """An engine with empty memory."""
    pool = model.new_pool(pages=pages)
    pool.data.fill(0)  # touched now, so that no step pays for the first use of a page of memory
    kv = KVManager(pool, pages, page_tokens=pool.page_tokens)
    config = EngineConfig(max_queue=4096, max_queue_per_tenant=4096)
    return Engine(NumbaExecutor(model, pool), policy, kv, WallClock(), config=config)


def request(name: str, prompt: int, made: int, seed: int = 0) -> Request:
    """A request of so many random tokens that makes exactly `made`."""
    drawn = np.random.default_rng([seed, *name.encode()]).integers(100, 40_000, prompt)
    return Request(name, tokens_of(drawn.tolist()), SamplingParams(max_tokens=made, ignore_eos=True))


@dataclass(slots=True)
class Timeline:
    """When the tokens of each request came."""

    times: dict[str, list[float]] = field(default_factory=dict)

    def note(self, events: list[Event]) -> None:
        for event in events:
            if event.sampled is not None:
                self.times.setdefault(event.request_id, []).append(event.time)

    def gaps(self, names: list[str], since: float = 0.0) -> list[float]:
        """Seconds between neighbouring tokens of `names`, of those that end after `since`."""
        return [
            later - earlier
            for name in names
            for earlier, later in zip(self.times[name], self.times[name][1:], strict=False)
            if later > since
        ]


def run_all(engine: Engine, line: Timeline, until: Callable[[], bool] | None = None) -> float:
    """Step until idle, or `until()`; seconds it took."""
    started = time.perf_counter()
    while engine.busy and not (until is not None and until()):
        line.note(engine.step())
    return time.perf_counter() - started
