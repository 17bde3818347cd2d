"""An HTTP protocol that does not wait for ever: a connection that sends no complete request headers is closed."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """As uvicorn's own, with a time limit on each request's headers, the first one's included."""

    header_seconds = 20.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._patience: asyncio.TimerHandle | None = None
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        between_requests = self.cycle is None or self.cycle.response_complete
        if between_requests and self._waiting_since is not self.cycle:
            self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._waiting_since: Any = self.cycle
        self._patience = self.loop.call_later(self.header_seconds, self._check, self.cycle)

    def _check(self, seen: Any) -> None:
        self._patience = None
        upgraded = self.transport.get_protocol() is not self
        if not upgraded and self.cycle is seen and not self.transport.is_closing():
            self.transport.close()
