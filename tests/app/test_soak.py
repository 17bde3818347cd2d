"""Everything that a server may meet, all at once, for a while: nothing breaks, nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
from typing import Any

import psutil
import pytest

from tests.app.conftest import wait_for
from windlass.app.http.limits import Limits
from windlass.bench.serving.http_load import SoakReport, capacity, overload, soak
from windlass.core.settings import ServerSettings
from windlass.models.generate import LocalModel
from windlass.serving.engine_chat import EngineChat

MODEL = "smollm2-135m-instruct"
KINDS = {"whole", "stream", "vanish", "cancel", "bad_body", "bad_field", "half_body", "raw", "late"}
FEW_PAGES = ServerSettings(kv_cache_mb=1)
"""So that memory is full early, and sequences are preempted."""


@pytest.fixture
def small(pipeline: Any, serve: Any, tiny: LocalModel) -> Any:
    """A server whose memory holds a few conversations; at its end no page may be in use, and no call known."""
    chat = EngineChat.start(tiny, FEW_PAGES)
    pipeline.model = chat
    with serve(pipeline, limits=Limits(waiting=12)) as server:
        yield server
        assert server.services._calls == {} and server.services._engine._open == set()
    assert chat.engine.drain(10)
    chat.engine.engine.kv.check()
    assert chat.engine.snapshot().pages.used == 0
    chat.close()


def soaked(server: Any, seconds: float, seed: int) -> SoakReport:
    report = asyncio.run(soak(server.url, MODEL, seconds, seed=seed))
    assert report.broken == []
    wait_until_idle(server)
    return report


def wait_until_idle(server: Any) -> None:
    engine = server.services.engine()
    assert wait_for(lambda: not engine.busy, 20)


def memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def test_three_seconds_of_everything(small: Any) -> None:
    report = soaked(small, 3, seed=1)
    assert set(report.kinds) == KINDS
    assert report.statuses[200] > 10 and report.statuses[400] > 5


@pytest.mark.slow
def test_a_minute_of_everything_in_flat_memory(small: Any) -> None:
    soaked(small, 20, seed=2)
    before = memory()
    report = soaked(small, 40, seed=3)
    grown = memory() - before
    print(f"\n{sum(report.kinds.values())} requests, {dict(report.statuses)}, memory {grown / 1e6:+.1f} MB")
    assert set(report.kinds) == KINDS
    assert grown < 8e6


def overloaded(server: Any, measured_for: float, seconds: float) -> None:
    words = itertools.cycle(["harbour", "pilot", "tide", "crane", "quay"])

    def body() -> dict[str, Any]:
        text = " ".join(next(words) for _ in range(23))
        options = {"deadline_ms": 8000}
        messages = [{"role": "user", "content": text}]
        return {"model": MODEL, "messages": messages, "max_tokens": 150, "temperature": 1.0, "windlass": options}

    served = asyncio.run(capacity(server.url, body, measured_for, clients=12))
    before = memory()
    report = asyncio.run(overload(server.url, body, 10 * served.rate, seconds))
    grown = memory() - before
    late = [stream for stream in report.accepted if stream.finish not in ("length", "stop")]
    print(f"\n{served.rate:.1f}/s alone, {dict(report.statuses)}, {report.rate:.1f}/s finished, "
          f"{len(late)} late, memory {grown / 1e6:+.1f} MB")  # fmt: skip
    assert set(report.statuses) <= {200, 429, 503} and report.statuses[429] > 0
    assert all(wait is not None and 1 <= int(wait) <= 60 for wait in report.waits)
    assert len(late) <= 0.05 * len(report.accepted)
    assert grown < 16e6
    wait_until_idle(server)


def test_ten_times_too_many(small: Any) -> None:
    overloaded(small, 1.5, 2)


@pytest.mark.slow
def test_ten_times_too_many_for_a_minute(small: Any) -> None:
    overloaded(small, 5, 60)
