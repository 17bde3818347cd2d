"""The door: who may come in, how much they may bring, and what every answer carries."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from starlette.routing import Mount, Route

from windlass.app.http.keys import hash_key
from windlass.app.http.limits import Limits
from windlass.app.http.tenants import Tenant

KEY = "wl-a-key-for-tests"
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def locked(pipeline: Any, serve: Any) -> Any:
    with serve(pipeline, tenants=[Tenant(hashes=(hash_key("wl-other"), hash_key(KEY)), admin=True)]) as server:
        yield server


def routes(app: Any) -> list[tuple[str, str]]:
    """Every method and path that the application knows, parameters filled in."""

    def walk(found: list[Any], prefix: str) -> Any:
        for route in found:
            if isinstance(route, Mount):
                yield from walk(route.routes, prefix + route.path)
            elif isinstance(route, Route):
                path = prefix + route.path.replace("{doc_id}", "7").replace("{model_id:path}", "windlass")
                for name in ("request_id", "file_id", "batch_id"):
                    path = path.replace(f"{{{name}}}", "some-id")
                yield from ((method, path) for method in route.methods or () if method != "HEAD")
            else:  # an included router, as newer versions of FastAPI keep it
                inner = getattr(route, "original_router", route)
                yield from walk(inner.routes, prefix)

    return list(walk(app.routes, ""))


def test_every_route_but_health_needs_the_key(locked: Any) -> None:
    known = routes(locked.app)
    assert {path for _, path in known} >= {"/health", "/metrics", "/v1/models", "/api/search", "/openapi.json"}
    with locked.client() as client:
        for method, path in [*known, ("GET", "/no-such-path"), ("POST", "/"), ("GET", "/HEALTH"), ("GET", "/health/")]:
            reply = client.request(method, path)
            if path == "/health" and method == "GET":
                assert reply.status_code == 200
            else:
                assert reply.status_code == 401, (method, path)
                assert reply.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("value", ["", "Bearer", f"Bearer {KEY}x", KEY, f"Basic {KEY}", "Bearer \u00ff"])
def test_wrong_keys(locked: Any, value: str) -> None:
    with locked.client() as client:
        reply = client.get("/v1/models", headers=[(b"authorization", value.encode("latin-1"))])
        assert reply.status_code == 401
        assert KEY not in reply.text


def test_the_right_key_opens_everything_and_is_never_logged(locked: Any, caplog: Any) -> None:
    caplog.set_level("DEBUG")
    with locked.client(headers=BEARER) as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/metrics").status_code == 200
        assert client.get("/api/overview", headers={"host": "some-name:1"}).status_code == 200
    assert KEY not in caplog.text


def test_a_browser_signs_in_with_a_form(locked: Any) -> None:
    page = {"accept": "text/html"}
    with locked.client() as client:
        asked = client.get("/", headers=page)
        assert asked.status_code == 401
        assert b"<form" in asked.content and "form-action 'self'" in asked.headers["content-security-policy"]
        assert client.post("/sign-in", data={"key": "wrong"}).status_code == 401
        opened = client.post("/sign-in", data={"key": KEY}, headers={"origin": locked.url})
        assert (opened.status_code, opened.headers["location"]) == (303, "/")
        cookie = opened.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Lax" in cookie and KEY not in cookie and hash_key(KEY) not in cookie
        assert client.get("/api/overview").status_code == 200
        client.cookies.set("windlass_session", "0" * 64)
        client.cookies.clear()
        client.cookies.set("windlass_session", hash_key(KEY))
        assert client.get("/api/overview").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:80"},
        {"host": "localhost.evil.example"},
        {"host": "10.0.0.1"},
        {"host": ""},
        {"host": "127.0.0.1@evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
def test_pages_of_other_sites_get_nothing(server: Any, headers: dict[str, str]) -> None:
    with server.client() as client:
        for method, path in (("GET", "/api/overview"), ("POST", "/api/ask"), ("GET", "/health")):
            reply = client.request(method, path, headers=headers)
            assert reply.status_code == 403
            assert reply.json()["error"]["code"] == "foreign_origin"
    assert server.pipeline.asked == []


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1", "[::1]"])
def test_names_of_this_machine_are_fine(server: Any, name: str) -> None:
    host = f"{name}:{server.port}"
    headers = {"host": host, "origin": f"http://{host.lower()}", "sec-fetch-site": "same-origin"}
    with server.client() as client:
        assert client.get("/api/overview", headers=headers).status_code == 200


def test_a_form_of_another_site_cannot_ask(server: Any) -> None:
    with server.client() as client:
        for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data"):
            reply = client.post("/api/ask", content=b'{"question": "x"}', headers={"content-type": kind})
            assert reply.status_code == 400
    assert server.pipeline.asked == []


def test_long_bodies_are_refused_declared_or_not(pipeline: Any, serve: Any) -> None:
    with serve(pipeline, limits=Limits(body_bytes=1000)) as server, server.client() as client:
        declared = client.post("/api/ask", content=b"x" * 1001)
        counted = client.post("/api/ask", content=iter([b"x" * 600, b"x" * 600]))
        exact = client.post("/api/ask", content=b'"' + b"x" * 998 + b'"', headers={"content-type": "application/json"})
    assert declared.status_code == counted.status_code == 413
    assert declared.json()["error"]["code"] == "body_too_large"
    assert exact.status_code == 400


def raw(server: Any, sent: bytes) -> bytes:
    """What comes back on a bare connection until the server closes it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65_536):
            received += piece
        return received


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he",
    ],
)
def test_connections_that_never_finish_their_headers_are_closed(pipeline: Any, serve: Any, sent: bytes) -> None:
    with serve(pipeline, limits=Limits(header_seconds=0.2)) as server:
        received = raw(server, sent)
        assert received.count(b"HTTP/1.1 200") == sent.count(b"\r\n\r\n")
        with server.client() as client:
            assert client.get("/health").status_code == 200


def test_bodies_that_stop_coming_end_the_request(pipeline: Any, serve: Any) -> None:
    head = b"POST /api/ask HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\nContent-Type: application/json\r\n\r\n{"
    with serve(pipeline, limits=Limits(body_seconds=0.2)) as server:
        received = raw(server, head)
    assert received.startswith(b"HTTP/1.1 408") and b"body_timeout" in received


def test_two_hosts_or_none_are_refused(server: Any) -> None:
    assert b" 400 " in raw(server, b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")[:20]
    two = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(server, two).split(b" ")[1] in (b"400", b"403")


def test_a_reader_that_stalls_is_dropped(pipeline: Any, serve: Any, until: Any) -> None:
    pipeline.model.text = "x" * 200_000 + (" " + "y" * 200_000) * 100
    pipeline.model.context_length = 1 << 20
    with serve(pipeline, limits=Limits(send_seconds=0.3)) as server:
        body = b'{"model": "smollm2-135m-instruct", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert until(lambda: server.services.queue.depth == 1)
            assert server.until_idle()
            assert until(
                lambda: server.services.metrics.requests.labels("/v1/chat/completions", "POST", "200")._value.get() == 1
            )


def test_every_answer_carries_an_id_and_a_policy(server: Any) -> None:
    seen = set()
    with server.client() as client:
        for path in ("/health", "/v1/models", "/nothing", "/api/source/7?start=9&end=2"):
            reply = client.get(path)
            seen.add(reply.headers["x-request-id"])
            assert reply.headers["content-security-policy"].startswith("default-src 'none'")
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in reply.headers
    assert len(seen) == 4


def test_our_own_bugs_are_told_without_their_insides(server: Any, monkeypatch: Any) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(server.pipeline, "search", broken, raising=False)
    with server.client() as client:
        reply = client.get("/api/search", params={"q": "x"})
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert reply.headers["x-request-id"] in reply.json()["error"]["message"]


def test_there_is_no_documentation_page_from_another_host(server: Any) -> None:
    with server.client() as client:
        assert client.get("/docs").status_code == 404
        assert client.get("/redoc").status_code == 404
