"""What one request, one client and one moment may cost the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of the HTTP server; the defaults suit one machine and a few people.

    Attributes:
        body_bytes: Longest request body; more is answered with 413.
        upload_bytes: The same for a file of a batch.
        header_seconds: How long a connection may take to send a request's headers.
        body_seconds: How long a client may pause while it sends a body.
        send_seconds: How long a client may refuse to read its answer before it is dropped.
        heartbeat_seconds: Silence after which a stream gets a comment line, so that proxies keep it open.
        waiting: Generations that may wait behind the running one; more are answered with 429.
        calls_waiting: Searches and other short calls that may wait for a thread; more are answered with 429.
        threads: Threads for short calls. Each holds one database connection.
        drain_seconds: How long running requests may take to end when the server stops.
        connections: Open connections at one time; more are answered with 503.
    """

    body_bytes: int = 8 << 20
    upload_bytes: int = 64 << 20
    header_seconds: float = 20.0
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    heartbeat_seconds: float = 15.0
    waiting: int = 16
    calls_waiting: int = 64
    threads: int = 4
    drain_seconds: float = 30.0
    connections: int = 900
