"""Everything that a server may meet, all at once, for a while: nothing breaks, nothing stays behind."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from tests.app.conftest import wait_for
from windlass.app.http.limits import Limits
from windlass.bench.serving.http_load import LoadReport, SoakReport, capacity, overload, soak
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
@pytest.mark.timeout(400)
def test_a_minute_of_everything_in_flat_memory(small: Any) -> None:
    soaked(small, 20, seed=2)
    before = memory()
    report = soaked(small, 40, seed=3)
    grown = memory() - before
    print(f"\n{sum(report.kinds.values())} requests, {dict(report.statuses)}, memory {grown / 1e6:+.1f} MB")
    assert set(report.kinds) == KINDS
    assert grown < 8e6


def six_answers(**options: Any) -> Callable[[], dict[str, Any]]:
    """Bodies of calls that make six answers each, so that few calls are much work: the clients share this process."""
    words = itertools.cycle(["harbour", "pilot", "tide", "crane", "quay"])

    def body() -> dict[str, Any]:
        messages = [{"role": "user", "content": " ".join(next(words) for _ in range(23))}]
        return {"model": MODEL, "messages": messages, "n": 6, "temperature": 1.0, **options}

    return body


def require_refusals(report: LoadReport) -> None:
    assert set(report.statuses) <= {200, 429, 503} and report.statuses[429] > 0
    assert all(wait is not None and 1 <= int(wait) <= 60 for wait in report.waits)


def test_far_too_many_at_once(small: Any) -> None:
    report = asyncio.run(overload(small.url, six_answers(max_tokens=60), 400, 0.2))
    require_refusals(report)
    assert report.accepted and {stream.finish for stream in report.accepted} <= {"length", "stop"}
    wait_until_idle(small)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_ten_times_too_many_for_a_minute(small: Any) -> None:
    """What is accepted keeps its deadline, and memory does not grow."""
    body = six_answers(max_tokens=200, windlass={"deadline_ms": 15_000})
    served = asyncio.run(capacity(small.url, body, 5, clients=2))
    asyncio.run(overload(small.url, body, 10 * served.rate, 5, seed=1))
    before = memory()
    report = asyncio.run(overload(small.url, body, 10 * served.rate, 60))
    grown = memory() - before
    late = [stream for stream in report.accepted if stream.finish not in ("length", "stop")]
    firsts, gaps = (
        np.quantile(values, [0.5, 0.99]).round(3).tolist()
        for values in ([s.first for s in report.accepted], [gap for s in report.accepted for gap in s.gaps])
    )
    print(f"\n{served.rate:.1f}/s alone, {dict(report.statuses)}, {report.rate:.1f}/s finished, {len(late)} late, "
          f"first tokens {firsts} s, between tokens {gaps} s, memory {grown / 1e6:+.1f} MB")  # fmt: skip
    require_refusals(report)
    assert len(late) <= 0.05 * len(report.accepted) and grown < 12e6
    wait_until_idle(small)
