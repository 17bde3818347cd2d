"""Clients of a running server as they come: patient ones, rude ones, broken ones, and far too many.

`soak` sends everything that a server may meet and keeps what it must never answer. `overload` sends more streams than
can be served and keeps when the tokens of the accepted ones came.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

_WORDS = "harbour pilot quay crane tide dredging vessel anchor Köln 港 rope berth".split()
_FINE = frozenset({200, 429})
_REFUSED = frozenset({400, 404, 413, 422, 429})
# One connection for each request: an idle one may be closed by the server at the very moment it is used again.
_CONNECTIONS = httpx.Limits(max_connections=None, max_keepalive_connections=0)


@dataclass(slots=True)
class SoakReport:
    """What came back.

    Attributes:
        kinds: Requests by what the client was up to.
        statuses: Answers by HTTP status.
        broken: Answers that no client should ever get, one line each.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


async def soak(url: str, model: str, seconds: float, *, clients: int = 12, seed: int = 0) -> SoakReport:
    """Send random requests of every kind for `seconds`.

    Args:
        url: Of the server, without `/v1`.
        model: Name of a model on the serving engine.
        clients: How many send at one time.
        seed: Of what they send.
    """
    report, end = SoakReport(), time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False, limits=_CONNECTIONS) as client:
        await asyncio.gather(
            *(_Client(client, model, random.Random(f"{seed} {number}"), report).run(end) for number in range(clients))
        )
    return report


class _Client:
    """Draws what to do next until the time is over."""

    def __init__(self, client: httpx.AsyncClient, model: str, draw: random.Random, report: SoakReport) -> None:
        self._client, self._model, self._draw, self._report = client, model, draw, report

    async def run(self, end: float) -> None:
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._whole, self._stream, self._vanish, self._cancel, self._bad_body, self._bad_field, self._half_body,
            self._raw, self._late,
        ]  # fmt: skip
        while time.monotonic() < end:
            kind = self._draw.choice(kinds)
            self._report.kinds[kind.__name__.removeprefix("_")] += 1
            try:
                await kind()
            except (httpx.HTTPError, OSError) as error:
                self._report.broken.append(f"{kind.__name__}: {error!r}")

    async def _whole(self) -> None:
        draw = self._draw
        body = self._body(n=draw.choice([1, 1, 2, 3]), logprobs=draw.random() < 0.3, stop=draw.choice([None, ["e"]]))
        self._note("whole", await self._client.post("/v1/chat/completions", json=body), _FINE)

    async def _stream(self) -> None:
        async with self._client.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as reply:
            lines = [line async for line in reply.aiter_lines()]
        self._report.statuses[reply.status_code] += 1
        if reply.status_code not in _FINE or (reply.status_code == 200 and "data: [DONE]" not in lines):
            self._report.broken.append(f"stream: {reply.status_code} {lines[-3:]}")

    async def _vanish(self) -> None:
        """Hang up in the middle of a stream, before or after its first bytes."""
        async with self._client.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as reply:
            self._report.statuses[reply.status_code] += 1
            async for _ in reply.aiter_bytes():
                if self._draw.random() < 0.4:
                    break

    async def _cancel(self) -> None:
        """End a stream by the id of its request; the stream then says so and closes."""
        async with self._client.stream("POST", "/v1/chat/completions", json=self._body(stream=True)) as reply:
            self._report.statuses[reply.status_code] += 1
            async for _ in reply.aiter_bytes():
                over = await self._client.delete(f"/v1/requests/{reply.headers['x-request-id']}")
                self._note("cancel", over, frozenset({200, 404}))

    async def _bad_body(self) -> None:
        draw, whole = self._draw, json.dumps(self._body())
        content = draw.choice(
            [
                draw.randbytes(draw.randrange(1, 4000)),
                whole[: draw.randrange(1, len(whole))].encode(),
                b"[" * draw.randrange(1, 50_000),
                b'{"model": NaN}',
                b"",
                b"null",
            ]
        )
        path = draw.choice(["/v1/chat/completions", "/v1/completions", "/tokenize"])
        reply = await self._client.post(path, content=content, headers={"content-type": "application/json"})
        self._note("bad body", reply, _REFUSED)

    async def _bad_field(self) -> None:
        bad: dict[str, Any] = self._draw.choice(
            [
                {"messages": []}, {"messages": "hello"}, {"temperature": "hot"}, {"max_tokens": -1}, {"n": 10**9},
                {"messages": [{"role": "user", "content": "word " * 20_000}]}, {"logit_bias": {"x": 1}}, {"stop": [""]},
                {"model": "no-such-model"}, {"windlass": {"unknown": 1}}, {"max_tokens": 10**6}, {"top_p": 0},
            ]
        )  # fmt: skip
        self._note("bad field", await self._client.post("/v1/chat/completions", json=self._body(**bad)), _REFUSED)

    async def _half_body(self) -> None:
        """Promise more bytes than are sent, and go."""
        url, body = self._client.base_url, json.dumps(self._body()).encode()
        _, writer = await asyncio.open_connection(url.host, url.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _raw(self) -> None:
        draw = self._draw
        prompts = [[draw.randrange(1, 100) for _ in range(draw.randrange(1, 60))] for _ in range(draw.choice([1, 4]))]
        body = {"model": self._model, "prompt": prompts, "max_tokens": draw.randrange(0, 20), "echo": True}
        self._note("raw", await self._client.post("/v1/completions", json=body), _FINE)

    async def _late(self) -> None:
        """A deadline that is kept, refused at once, or missed."""
        body = self._body(windlass={"deadline_ms": self._draw.choice([1, 30, 200, 2000])})
        self._note("late", await self._client.post("/v1/chat/completions", json=body), _FINE | {503})

    def _body(self, **changes: Any) -> dict[str, Any]:
        draw = self._draw
        text = " ".join(draw.choices(_WORDS, k=draw.randrange(1, 40)))
        body = {
            "model": self._model, "messages": [{"role": "user", "content": text}], "temperature": 1.0,
            "max_tokens": draw.choice([1, 3, 10, 40]),
        }  # fmt: skip
        return {**body, **changes}

    def _note(self, kind: str, reply: httpx.Response, fine: frozenset[int]) -> None:
        self._report.statuses[reply.status_code] += 1
        told = reply.status_code == 200 or "error" in _json(reply)
        if reply.status_code not in fine or not told:
            self._report.broken.append(f"{kind}: {reply.status_code} {reply.text[:300]}")


@dataclass(slots=True)
class Accepted:
    """One stream that was let in: seconds to its first token, between its tokens, and to its end; how it ended."""

    first: float
    gaps: list[float]
    total: float
    finish: str


@dataclass(slots=True)
class LoadReport:
    """What became of streams. `waits` holds the `Retry-After` of each 429 (None where it had none)."""

    accepted: list[Accepted] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    waits: list[str | None] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Streams finished a second."""
        return len(self.accepted) / self.seconds


async def capacity(url: str, body: Callable[[], dict[str, Any]], seconds: float, clients: int) -> LoadReport:
    """As many streams as are served when `clients` send one after the other."""
    report, begun = LoadReport(), time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=_CONNECTIONS) as client:

        async def one() -> None:
            while time.monotonic() - begun < seconds:
                await _stream(client, body(), report)

        await asyncio.gather(*(one() for _ in range(clients)))
    report.seconds = time.monotonic() - begun
    return report


async def overload(
    url: str, body: Callable[[], dict[str, Any]], rate: float, seconds: float, *, seed: int = 0
) -> LoadReport:
    """Streams that arrive by chance, `rate` a second on average, whether or not earlier ones are done."""
    report, draw, begun = LoadReport(), random.Random(seed), time.monotonic()
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=_CONNECTIONS) as client:
        async with asyncio.TaskGroup() as group:
            due = 0.0
            while (due := due + draw.expovariate(rate)) < seconds:
                await asyncio.sleep(max(0.0, begun + due - time.monotonic()))
                group.create_task(_stream(client, body(), report))
    report.seconds = time.monotonic() - begun
    return report


async def _stream(client: httpx.AsyncClient, body: dict[str, Any], report: LoadReport) -> None:
    begun = time.monotonic()
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
        report.statuses[reply.status_code] += 1
        if reply.status_code == 429:
            report.waits.append(reply.headers.get("retry-after"))
        if reply.status_code != 200:
            return
        times, finish = [], "none"
        async for chunk in _chunks(reply):
            if "error" in chunk:
                finish = str(chunk["error"].get("code"))
            elif chunk["choices"][0]["finish_reason"]:
                finish = chunk["choices"][0]["finish_reason"]
            elif chunk["choices"][0]["delta"].get("content"):
                times.append(time.monotonic())
    first = (times[0] if times else time.monotonic()) - begun
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    report.accepted.append(Accepted(first, gaps, time.monotonic() - begun, finish))


async def _chunks(reply: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in reply.aiter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def _json(reply: httpx.Response) -> dict[str, Any]:
    try:
        found: dict[str, Any] = reply.json()
    except ValueError:
        return {}
    return found
