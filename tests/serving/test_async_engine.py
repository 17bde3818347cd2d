"""The engine in its thread: readers in threads and event loops, readers that leave, draining, failing."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.serving.conftest import request, scripted_engine
from windlass.core.errors import Busy, EngineBug
from windlass.serving.async_engine import AsyncEngine
from windlass.serving.engine import EngineConfig
from windlass.serving.request import FinishReason
from windlass.serving.router import LeastOutstanding, PrefixAffinity, RoundRobin, Router
from windlass.serving.scheduler import StallFree


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)
    return condition()


@pytest.fixture
def started() -> Iterator[Callable[..., AsyncEngine]]:
    open_ones = []

    def start(**options: Any) -> AsyncEngine:
        config = options.pop("config", EngineConfig(max_queue=1000, max_queue_per_tenant=1000, check_every=1))
        engine = AsyncEngine(scripted_engine(StallFree(32), pages=600, config=config, **options))
        open_ones.append(engine)
        return engine

    yield start
    for engine in open_ones:
        engine.close()


def test_many_readers_at_once(started: Any) -> None:
    engine = started(answers={f"r{i}": list(range(i, i + 20)) for i in range(20)})
    got: dict[str, list[int]] = {}

    def read(name: str) -> None:
        handle = engine.submit(request(name, 30, 20))
        got[name] = [event.sampled.token for event in engine.events(handle)]

    threads = [threading.Thread(target=read, args=(f"r{i}",)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert got == {f"r{i}": list(range(i, i + 20)) for i in range(20)}


def slow(batch: Any) -> float:
    time.sleep(0.002)
    return 0.002


def test_readers_that_vanish_leave_nothing_behind(started: Any) -> None:
    engine = started(seconds=slow)
    for number in range(50):
        events = engine.events(engine.submit(request(f"r{number}", 10, 30)))
        for _ in range(number % 3 + 1):
            next(events)
        events.close()
    assert until(lambda: not engine.engine.busy)
    assert engine.snapshot().pages.used == 0 and engine.snapshot().running == 0


def test_cancelling_from_outside_ends_the_reader(started: Any) -> None:
    engine = started(seconds=slow)
    handle = engine.submit(request("a", 10, 2000))
    leave = threading.Event()
    seen = []
    for event in engine.events(handle, leave.is_set):
        seen.append(event)
        if len(seen) == 3:
            leave.set()
    assert seen[-1].finish is FinishReason.CANCELLED and len(seen) < 1500


def test_streams_in_an_event_loop(started: Any) -> None:
    engine = started(answers={"a": [5, 6, 7]}, seconds=slow)

    async def work() -> list[int]:
        leaver = asyncio.ensure_future(anext(aiter(engine.stream(engine.submit(request("b", 10, 2000))))))
        await leaver
        tokens = [event.sampled.token async for event in engine.stream(engine.submit(request("a", 10, 3)))]
        patient = engine.stream(engine.submit(request("c", 10, 2000)))
        task = asyncio.ensure_future(_all(patient))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return tokens

    assert asyncio.run(work()) == [5, 6, 7]
    assert until(lambda: not engine.engine.busy)
    assert engine.snapshot().pages.used == 0


async def _all(events: Any) -> None:
    async for _ in events:
        pass


def test_draining_finishes_what_runs_and_takes_nothing_new(started: Any) -> None:
    engine = started(seconds=slow)
    handle = engine.submit(request("a", 10, 20))
    assert engine.drain(20)
    assert handle.take()[-1].finish is FinishReason.LENGTH
    with pytest.raises(Busy, match="stopping"):
        engine.submit(request("b", 10, 20))


def test_closing_ends_what_is_left(started: Any) -> None:
    engine = started(seconds=slow)
    handle = engine.submit(request("a", 10, 2000))
    assert not engine.drain(0.02)
    engine.close()
    last = handle.take()[-1]
    assert last.finish is FinishReason.ERROR and isinstance(last.error, Busy)


def test_a_bug_in_the_loop_leaves_nobody_waiting(started: Any) -> None:
    engine = started(seconds=slow)

    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("oops")

    engine.engine.scheduler.next_batch, original = fail, engine.engine.scheduler.next_batch
    last = list(engine.events(engine.submit(request("a", 10, 5))))[-1]
    assert isinstance(last.error, EngineBug)
    engine.engine.scheduler.next_batch = original
    assert len(list(engine.events(engine.submit(request("b", 10, 5))))) == 5


def engines(count: int) -> list[Any]:
    return [scripted_engine(StallFree(32), pages=600) for _ in range(count)]


def test_dispatchers() -> None:
    router = Router(engines(3), RoundRobin())
    for number in range(6):
        router.submit(request(f"r{number}", 10))
    assert [state.outstanding for state in router.states()] == [2, 2, 2]
    router = Router(engines(2), LeastOutstanding())
    router.submit(request("a", 10))
    router.submit(request("b", 10))
    router.replicas[0].run_until_idle()
    router.submit(request("c", 10))
    assert [state.outstanding for state in router.states()] == [1, 1]
    assert router.cancel("c") and not router.cancel("nobody")


def test_the_same_beginning_goes_to_the_same_replica_unless_it_is_swamped() -> None:
    router = Router(engines(3), PrefixAffinity(page_tokens=4, slack=4))
    for number in range(3):
        router.submit(request(f"one{number}", [1] * 20 + [number]))
        router.submit(request(f"two{number}", [2] * 20 + [number]))
    assert sorted(state.outstanding for state in router.states()) == [0, 3, 3]
    for number in range(3, 12):
        router.submit(request(f"one{number}", [1] * 20 + [number]))
    assert max(state.outstanding for state in router.states()) < 9
