"""Server-sent events for one call: errors come in band, and the work ends when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from windlass.app.http.replies import error_body, error_of, log
from windlass.core.errors import WindlassError

T = TypeVar("T", covariant=True)
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def event(data: Any) -> bytes:
    """One event. JSON escapes everything beyond ASCII, so an event is never cut inside a character."""
    return b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n"


class Cancellable(Protocol):
    """Work that can be stopped."""

    def cancel(self) -> None: ...


class Awaited(Cancellable, Protocol[T]):
    """Work that ends with a result."""

    async def result(self) -> T: ...


class EventStream(Response):
    """Sends what `events` yields; whatever ends the sending also ends the call.

    Args:
        call: The work behind the stream.
        events: Makes the stream's bytes; a `WindlassError` out of it becomes an error event.
    """

    media_type = "text/event-stream"

    def __init__(self, call: Cancellable, events: Callable[[], AsyncIterator[bytes]]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._call = call
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._call.cancel()
            unfinished = [task for task in (sending, leaving) if not task.done()]
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)
        if not sending.cancelled():
            sending.result()

    async def _send_all(self, send: Send) -> None:
        headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with contextlib.aclosing(self._guarded()) as chunks:
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _guarded(self) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self._events():
                yield chunk
        except WindlassError as error:
            yield event(error_of(error)[1])
        except Exception:
            log.exception("a stream failed")
            yield event(
                error_body(500, "something went wrong on our side; see the server's log", code="internal_error")
            )


async def until_disconnect(request: Request, call: Awaited[T]) -> T:
    """The call's result; a client that leaves meanwhile takes its work with it.

    Raises:
        Cancelled: The client left.
    """
    leaving = asyncio.ensure_future(_disconnected(request.receive))
    leaving.add_done_callback(lambda task: None if task.cancelled() else call.cancel())
    try:
        return await call.result()
    finally:
        call.cancel()
        leaving.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
