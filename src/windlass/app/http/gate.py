"""The one door in front of every route: nothing reaches the application that has not passed here.

In order: the `Host` and `Origin` headers (a page of another site may not use a server on this machine, also not by
DNS rebinding), the key (every route but `/health`, by default and not by list), what the key's tenant may use and how
much of it, the size and speed of the body. On the way out: request id, security headers, metrics, and an end for
clients that do not read their answer.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from windlass.app.http import content_policy, sign_in
from windlass.app.http.openai_schema import FOLDER_MODEL
from windlass.app.http.replies import error_body
from windlass.app.http.services import Caller, Services
from windlass.app.http.tenants import LOCAL, Tenant

log = logging.getLogger("windlass.http")

OPEN_PATH = "/health"
UPLOAD_PATH = "/v1/files"
_API_PREFIXES = ("/v1/", "/api/", "/tokenize", "/detokenize", "/health", "/ready", "/metrics", "/openapi.json")
# What a tenant that may not use the folder reaches all the same; the rest is the folder's search and page.
_NOT_OF_THE_FOLDER = ("/v1/", "/tokenize", "/detokenize", "/ready", "/openapi.json")
_ADMIN_PATHS = ("/metrics", "/v1/adapters", "/v1/cache/")
_COUNTED = ("/v1/", "/api/", "/tokenize", "/detokenize")


class Gate:
    """Pure ASGI middleware; see the module.

    Args:
        app: The application behind the door.
        services: Its services, handed to every request as `scope["windlass"]`.
        doorkeeper: Who may come in.
    """

    def __init__(self, app: ASGIApp, services: Services, doorkeeper: sign_in.Doorkeeper) -> None:
        self._app = app
        self._services = services
        self._limits = services.limits
        self._doorkeeper = doorkeeper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "windlass_caller" in scope:  # a batch's request, made in this process; nothing from outside can set it
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        answer = _Answer(send, scope, self._limits.send_seconds)
        try:
            tenant = await self._admit(scope, receive, answer)
            if tenant is not None:
                await self._serve(tenant, scope, receive, answer)
        except _ClientStalled:
            # Returning with the answer unfinished makes the server close the connection.
            log.info("%s: the client did not read its answer and was dropped", answer.request_id)
        except Exception:
            log.exception("%s: %s %s failed", answer.request_id, scope["method"], scope["path"])
            if not answer.begun:
                message = f"something went wrong on our side; the server's log has it under {answer.request_id}"
                await answer.refuse(500, message, code="internal_error")
        finally:
            self._count(scope, answer.status, time.monotonic() - started)

    async def _admit(self, scope: Scope, receive: Receive, answer: _Answer) -> Tenant | None:
        """Who sends the request, or None when it was answered here."""
        headers = Headers(scope=scope)
        problem = self._foreign(headers, scope)
        if problem:
            await answer.refuse(403, problem, code="foreign_origin")
            return None
        if scope["path"] == sign_in.PATH and scope["method"] == "POST" and not self._doorkeeper.open:
            form = await self._body(scope, receive, answer)
            if form is not None:
                await self._sign_in(form, answer)
            return None
        if scope["path"] == OPEN_PATH:
            return LOCAL
        tenant = self._tenant(headers)
        if tenant is None:
            await self._ask_for_key(scope, headers, answer)
            return None
        problem = _forbidden(tenant, scope["path"])
        if problem:
            await answer.refuse(403, problem, code="not_permitted")
            return None
        return tenant

    async def _serve(self, tenant: Tenant, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Count the request, read its body, and hand it to the application."""
        admission = self._services.admission
        counted = scope["path"].startswith(_COUNTED)
        if counted:
            refusal = admission.enter(tenant)
            answer.limits = admission.headers(tenant)
            if refusal is not None:
                self._services.metrics.rejected.labels(refusal.code).inc()
                wait = {"retry-after": str(refusal.retry_after)}
                message = f"{refusal.message}; try again in {refusal.retry_after} s"
                await answer.refuse(429, message, code=refusal.code, headers=wait)
                return
            answer.when_over = lambda: admission.leave(tenant)
        try:
            body = await self._body(scope, receive, answer)
            if body is not None:
                _hand_over(scope, self._services, Caller(tenant, answer.request_id))
                await self._app(scope, _replay(body, receive), answer.send)
                await answer.flush()
        finally:
            answer.over()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        tenant = None if self._foreign(headers, scope) else self._tenant(headers)
        if tenant is None or _forbidden(tenant, scope["path"]):
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "not allowed"})
            return
        _hand_over(scope, self._services, Caller(tenant, ""))
        await self._app(scope, receive, send)

    def _tenant(self, headers: Headers) -> Tenant | None:
        return self._doorkeeper.admits(headers.get("authorization", ""), headers.get("cookie", ""))

    def _foreign(self, headers: Headers, scope: Scope) -> str:
        """Why a request must come from somebody else's page; empty when it need not."""
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            return "exactly one Host header is needed"
        host = hosts[0].lower()
        # A rebound name sends its own Host. With a key there is nothing to gain: cookies belong to the host's name.
        if self._doorkeeper.open and not is_loopback_name(host):
            return f"Host {host!r:.80} is not a name of this machine; use localhost"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host:
            return f"Origin {origin!r:.80} is another site"
        site = headers.get("sec-fetch-site", "none")
        if site in ("cross-site", "same-site") and headers.get("sec-fetch-mode") != "navigate":
            return "the request comes from another site's page"
        if site == "cross-site" and scope.get("method") not in ("GET", "HEAD", None):
            return "the request comes from another site's page"
        return ""

    async def _body(self, scope: Scope, receive: Receive, answer: _Answer) -> bytes | None:
        limit = self._limits.upload_bytes if scope["path"] == UPLOAD_PATH else self._limits.body_bytes
        declared = Headers(scope=scope).get("content-length", "0")
        too_long = f"the body is longer than the limit of {limit:,} bytes"
        if declared.isdigit() and int(declared) > limit:
            await answer.refuse(413, too_long, headers={"connection": "close"})
            return None
        parts, size = [], 0
        while True:
            try:
                message = await asyncio.wait_for(receive(), self._limits.body_seconds)
            except TimeoutError:
                text = f"the body did not arrive: silence for {self._limits.body_seconds:g} s"
                await answer.refuse(408, text, code="body_timeout", headers={"connection": "close"})
                return None
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                await answer.refuse(413, too_long, headers={"connection": "close"})
                return None
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _ask_for_key(self, scope: Scope, headers: Headers, answer: _Answer) -> None:
        wants_page = "text/html" in headers.get("accept", "") and not scope["path"].startswith(_API_PREFIXES)
        if wants_page and scope["method"] == "GET":
            await answer.form(401, wrong=False)
        else:
            message = "a key is needed: send it as `Authorization: Bearer KEY`"
            await answer.refuse(401, message, headers={"www-authenticate": "Bearer"})

    async def _sign_in(self, form: bytes, answer: _Answer) -> None:
        cookie = self._doorkeeper.cookie_for(form)
        if cookie is None:
            await answer.form(401, wrong=True)
        else:
            await answer.reply(303, b"", {"location": "/", "set-cookie": cookie})

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        if route is None:
            route = "page" if 200 <= status < 400 else "none"
        self._services.metrics.requests.labels(route, scope["method"], str(status or 499)).inc()
        self._services.metrics.latency.labels(route).observe(seconds)


class _ClientStalled(OSError):
    """The client stopped reading."""


class _Answer:
    """The way back to the client: adds headers, holds HTML until its scripts have their nonce."""

    def __init__(self, send: Send, scope: Scope, send_seconds: float) -> None:
        self.request_id = "req_" + secrets.token_hex(12)
        self.status = 0
        self.begun = False
        self.limits: dict[str, str] = {}
        self.when_over: Callable[[], None] | None = None
        self._send = send
        self._seconds = send_seconds
        self._is_data = scope["path"].startswith(_API_PREFIXES)
        self._nonce = secrets.token_urlsafe(16)
        self._held: Message | None = None
        self._html = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            self._secure(headers)
            if headers.get("content-type", "").startswith("text/html"):
                self._held = message
                return
        elif self._held is not None and message["type"] == "http.response.body":
            self._html += message.get("body", b"")
            if not message.get("more_body", False):
                await self.flush()
            return
        await self._put(message)

    async def flush(self) -> None:
        """Send the HTML that was held back, if any."""
        if self._held is None:
            return
        held, self._held = self._held, None
        html = content_policy.with_nonce(self._html, self._nonce)
        headers = MutableHeaders(scope=held)
        headers["content-length"] = str(len(html))
        await self._put(held)
        await self._put({"type": "http.response.body", "body": html})

    async def refuse(
        self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        body = json.dumps(error_body(status, message, code=code)).encode()
        await self.reply(status, body, {"content-type": "application/json", **(headers or {})})

    async def form(self, status: int, *, wrong: bool) -> None:
        headers = {
            "content-type": "text/html; charset=utf-8",
            "content-security-policy": content_policy.form_policy(self._nonce),
        }
        await self.reply(status, sign_in.form(self._nonce, wrong=wrong), headers)

    async def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """A whole answer that is our own."""
        self.status = status
        start: Message = {"type": "http.response.start", "status": status, "headers": []}
        own = MutableHeaders(scope=start)
        for name, value in {**headers, "content-length": str(len(body))}.items():
            own[name] = value
        self._secure(own)
        await self._put(start)
        await self._put({"type": "http.response.body", "body": body})

    def _secure(self, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self.request_id
        headers.update(self.limits)
        headers["x-content-type-options"] = "nosniff"
        headers["x-frame-options"] = "DENY"
        headers["referrer-policy"] = "same-origin"
        headers["cross-origin-resource-policy"] = "same-origin"
        if "content-security-policy" not in headers:
            html = headers.get("content-type", "").startswith("text/html")
            policy = content_policy.page_policy(self._nonce) if html else content_policy.DATA_POLICY
            headers["content-security-policy"] = policy
        if self._is_data or self.status >= 400:
            headers["cache-control"] = "no-store"

    def over(self) -> None:
        """The request is done with; told once, before its last byte goes out: the client may come back with it."""
        tell, self.when_over = self.when_over, None
        if tell is not None:
            tell()

    async def _put(self, message: Message) -> None:
        self.begun = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.over()
        try:
            await asyncio.wait_for(self._send(message), self._seconds)
        except TimeoutError as error:
            raise _ClientStalled("the client does not read its answer") from error


def is_loopback_name(host: str) -> bool:
    """True for `localhost` and loopback addresses, with or without a port.

    Example:
        >>> [is_loopback_name(host) for host in ("localhost:80", "[::1]:80", "127.0.0.9", "evil.example", "")]
        [True, True, True, False, False]
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost":
            return True
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _forbidden(tenant: Tenant, path: str) -> str:
    """Why a tenant may not use `path`; empty when it may."""
    if path.startswith(_ADMIN_PATHS) and not tenant.admin:
        return f"{tenant.name} may not use {path}: it needs the owner's key"
    if not path.startswith((*_NOT_OF_THE_FOLDER, *_ADMIN_PATHS)) and not tenant.may_use(FOLDER_MODEL):
        return f"{tenant.name} may not use this folder"
    return ""


def _hand_over(scope: Scope, services: Services, caller: Caller) -> None:
    scope["windlass"] = services
    scope["windlass_caller"] = caller
    # Only a proxy that we know could be believed, and we know none.
    scope["headers"] = [pair for pair in scope["headers"] if not pair[0].startswith(b"x-forwarded-")]


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body at once and then waits for the client to leave."""
    given = False

    async def again() -> dict[str, Any]:
        nonlocal given
        if given:
            return dict(await receive())
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
