"""The queue in front of the model: one generation runs, a bounded number wait, the rest are told to come back.

All work of the model happens in one thread of its own, first come first served. A `Generation` is the handle of one
piece of work: text comes out of it as it is made, and cancelling it stops the work at its next token, or takes it out
of the queue. A reader that is slower than the model gets the text in larger pieces and never holds the model up.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from windlass.app.http.completion import Completion, Piece
from windlass.app.http.metrics import Metrics
from windlass.app.http.replies import ApiError
from windlass.app.http.tenants import LOCAL
from windlass.core.errors import Cancelled, QueueFull
from windlass.core.progress import Silent

T = TypeVar("T")

_REMEMBERED = 20
_FIRST_GUESS_SECONDS = 5.0


class Generation(Silent, Generic[T]):
    """One piece of work for the model. Being a `Progress`, it can be handed to `Pipeline.ask` to be cancelled by."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.submitted = time.monotonic()
        self._loop = loop
        self._pieces: list[str] = []
        self._lock = threading.Lock()
        self._news = asyncio.Event()
        self._future: Future[T]
        self.on_first_piece: Callable[[], None] | None = None

    def emit(self, piece: str) -> None:
        """Hand out more text; called by the work in the model's thread.

        Raises:
            Cancelled: Nobody wants it any more; the work should let this pass and end.
        """
        self.check()
        if self.on_first_piece is not None:
            self.on_first_piece()
            self.on_first_piece = None
        with self._lock:
            self._pieces.append(piece)
        self._tell()

    def check(self) -> None:
        """Raise `Cancelled` when nobody wants the text any more; for work that has nothing to emit yet."""
        if self.cancelled:
            raise Cancelled("the request was cancelled")

    def cancel(self) -> None:
        """Stop at the next token, or leave the queue. May be called at any time, also when it is over."""
        super().cancel()
        self._future.cancel()

    @property
    def done(self) -> bool:
        return self._future.done()

    def when_done(self, tell: Callable[[], object]) -> None:
        """Call `tell` once it is over, in whatever way and thread; at once when it is over already."""
        self._future.add_done_callback(lambda _: tell())

    async def pieces(self, silence: float) -> AsyncIterator[str]:
        """The text so far, then more as it comes; an empty string after every `silence` seconds without any."""
        while True:
            finished = self._future.done()
            self._news.clear()
            with self._lock:
                text, self._pieces = "".join(self._pieces), []
            if text:
                yield text
            if finished:
                return
            if not text:
                try:
                    await asyncio.wait_for(self._news.wait(), silence)
                except TimeoutError:
                    yield ""

    async def result(self) -> T:
        """What the work returned.

        Raises:
            Cancelled: It was cancelled. Else whatever the work raised.
        """
        while not self._future.done():
            self._news.clear()
            if not self._future.done():
                await self._news.wait()
        if self._future.cancelled():
            raise Cancelled("the request was cancelled")
        return self._future.result(timeout=0)

    def _attach(self, future: Future[T]) -> None:
        self._future = future
        future.add_done_callback(lambda _: self._tell())

    def _tell(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop is closed: the server is gone and nobody listens
            super().cancel()


class GenerationQueue:
    """One generation at a time, `waiting` behind it.

    Args:
        waiting: How many may wait.
        metrics: Where depth and durations are counted.
    """

    def __init__(self, waiting: int, metrics: Metrics) -> None:
        self._waiting = waiting
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="windlass-model")
        self._open: set[Generation[Any]] = set()
        self._lock = threading.Lock()
        self._durations: deque[float] = deque(maxlen=_REMEMBERED)
        self._closing = False

    @property
    def depth(self) -> int:
        """Generations that are running or waiting."""
        return len(self._open)

    @property
    def has_room(self) -> bool:
        return not self._closing and self.depth <= self._waiting

    def submit(self, work: Callable[[Generation[T]], T], tenant: str = LOCAL.name) -> Generation[T]:
        """Put `work` in the queue. It runs in the model's thread and gets its own handle.

        Args:
            work: What to do.
            tenant: For whom; its times are counted under this name.

        Raises:
            QueueFull: Too many wait already.
            ApiError: The server is stopping.
        """
        if self._closing:
            raise ApiError(503, "the server is stopping", code="stopping", headers={"retry-after": "5"})
        with self._lock:
            if self.depth > self._waiting:
                self._metrics.rejected.labels("queue_full").inc()
                raise QueueFull(f"{self.depth} requests are running or waiting for the model", self.retry_after())
            generation: Generation[T] = Generation(asyncio.get_running_loop())
            generation.on_first_piece = lambda: self._metrics.first_token.labels(tenant).observe(
                time.monotonic() - generation.submitted
            )
            self._open.add(generation)
        future = self._thread.submit(self._run, work, generation)
        generation._attach(future)
        future.add_done_callback(lambda _: self._forget(generation, tenant))
        return generation

    def retry_after(self) -> int:
        """Seconds until a place is likely free, from how long the last ones took; between 1 and 60."""
        typical = sum(self._durations) / len(self._durations) if self._durations else _FIRST_GUESS_SECONDS
        return max(1, min(60, math.ceil(typical * self.depth)))

    def stop_admission(self) -> None:
        """Take nothing new; what is running or waiting goes on."""
        self._closing = True

    def close(self) -> None:
        """Cancel everything and end the thread once the running piece has noticed."""
        self._closing = True
        for generation in list(self._open):
            generation.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, work: Callable[[Generation[T]], T], generation: Generation[T]) -> T:
        started = time.monotonic()
        try:
            return work(generation)
        finally:
            self._durations.append(time.monotonic() - started)

    def _forget(self, generation: Generation[Any], tenant: str) -> None:
        self._metrics.end_to_end.labels(tenant).observe(time.monotonic() - generation.submitted)
        with self._lock:
            self._open.discard(generation)


class QueueCall:
    """A completion that is made in the queue; see `Call`."""

    def __init__(self, generation: Generation[Completion]) -> None:
        self._generation = generation

    def cancel(self) -> None:
        self._generation.cancel()

    def when_done(self, tell: Callable[[], object]) -> None:
        self._generation.when_done(tell)

    async def pieces(self, silence: float) -> AsyncIterator[Piece | None]:
        async for text in self._generation.pieces(silence):
            yield Piece(0, text) if text else None

    async def result(self) -> Completion:
        return await self._generation.result()
