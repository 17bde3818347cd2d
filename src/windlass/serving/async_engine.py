"""The engine in a thread of its own, for callers that wait for text in threads or in an event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from windlass.core.errors import Busy, EngineBug, WindlassError
from windlass.serving.engine import Engine, EngineStats, Event, RequestHandle
from windlass.serving.request import Request

T = TypeVar("T")
log = logging.getLogger("windlass.serving")

_NOTHING_TO_DO_S = 0.005
_POLL_S = 0.05


class AsyncEngine:
    """Steps an engine as long as there is work. Everything here may be called from any thread.

    Args:
        engine: The engine; nobody else may step it.

    Example:
        engine = AsyncEngine(local_engine(model))
        for event in engine.events(engine.submit(request)):
            print(event.text, end="")
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._work = threading.Condition()
        self._open = True
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="windlass-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> RequestHandle:
        """Put a request in the queue.

        Raises:
            Busy: the engine is stopping. Else what `Engine.submit` raises.
        """
        if not self._open:
            raise Busy("the engine is stopping", hint="send the request to another server, or come back later")
        handle = self.engine.submit(request)
        self._wake()
        return handle

    def cancel(self, request_id: str) -> bool:
        """End a request with the next step; False when it is not under way."""
        found = self.engine.cancel(request_id)
        self._wake()
        return found

    def between_steps(self, function: Callable[[], T]) -> T:
        """Call `function` in the engine's thread, between two steps, and return what it returns.

        Raises:
            Busy: the engine is stopping. Else what `function` raises.
        """
        if not self._open:
            raise Busy("the engine is stopping")
        done: Future[T] = Future()

        def chore() -> None:
            try:
                done.set_result(function())
            except Exception as error:
                done.set_exception(error)

        self.engine.perform(chore)
        self._wake()
        return done.result()

    def snapshot(self) -> EngineStats:
        """How the engine stands."""
        return self.engine.snapshot()

    def events(self, handle: RequestHandle, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """What happens to a request until it is over, in the calling thread.

        The request is cancelled when `cancelled()` says so or the caller stops taking events.
        """
        news = threading.Event()
        handle.listener = news.set
        try:
            while True:
                news.clear()
                over = handle.done
                yield from handle.take()
                if over:
                    return
                if cancelled():
                    self.cancel(handle.id)
                news.wait(_POLL_S)
        finally:
            if not handle.done:
                self.cancel(handle.id)

    async def stream(self, handle: RequestHandle) -> AsyncIterator[Event]:
        """As `events`, for an event loop: leaving the loop, or a cancelled task, cancels the request."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        handle.listener = lambda: _tell(loop, news)
        try:
            while True:
                news.clear()
                over = handle.done
                for event in handle.take():
                    yield event
                if over:
                    return
                await news.wait()
        finally:
            if not handle.done:
                self.cancel(handle.id)

    def stop_admission(self) -> None:
        """Take nothing new; what is under way goes on."""
        self._open = False

    def drain(self, seconds: float) -> bool:
        """Take nothing new and wait for what is under way; whether all of it came to its end in time."""
        self.stop_admission()
        end = time.monotonic() + seconds
        while self.engine.busy and time.monotonic() < end:
            time.sleep(_NOTHING_TO_DO_S)
        return not self.engine.busy

    def close(self) -> None:
        """Cancel everything and end the thread."""
        self.stop_admission()
        self._stopping = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        with self._work:
            self._work.notify()

    def _run(self) -> None:
        while True:
            with self._work:
                while not self.engine.busy and not self._stopping:
                    self._work.wait()
            if self._stopping:
                self.engine.abort(Busy("the engine was stopped"))
                return
            self._step()

    def _step(self) -> None:
        before = self.engine.metrics.steps
        try:
            self.engine.step()
        except Exception as error:
            # A bug of ours in the loop itself: nobody may be left waiting for it.
            log.exception("the engine failed")
            self.engine.abort(error if isinstance(error, WindlassError) else EngineBug(f"the engine failed: {error!r}"))
        if self.engine.metrics.steps == before:
            with self._work:
                self._work.wait(_NOTHING_TO_DO_S)


def _tell(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(news.set)
    except RuntimeError:
        log.debug("an event loop was closed while a request of its was under way")
