"""The remote model against a real little HTTP server that speaks, or misspeaks, the protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from windlass.core.errors import Busy, ModelError, UsageError, WindlassError
from windlass.models.remote import RemoteModel

MESSAGES = [{"role": "user", "content": "Where do large ships berth?"}]


class Server:
    """Answers every request by `reply(path, body)` -> (status, content type, bytes or list of bytes)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any]] = []
        self.reply: Any = self.ordinary
        self.hold = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(None)

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: Any) -> None:
                server.seen.append((self.path, self.headers.get("Authorization", ""), body))
                status, kind, content = server.reply(self.path, body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Location", "https://elsewhere.example")
                self.end_headers()
                for part in content if isinstance(content, list) else [content]:
                    if part is None:
                        server.hold.wait(20)
                        continue
                    self.wfile.write(part)
                    self.wfile.flush()

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def ordinary(self, path: str, body: Any) -> tuple[int, str, Any]:
        if path == "/v1/models":
            return 200, "application/json", json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode()
        if path == "/v1/embeddings":
            vectors = [{"index": n, "embedding": [len(text), 1.0]} for n, text in enumerate(body["input"])]
            return 200, "application/json", json.dumps({"data": vectors[::-1]}).encode()
        return 200, "text/event-stream", sse("At ", "the ", "east quay é.", done=True)


def sse(*pieces: str, done: bool) -> list[bytes]:
    events = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    events += [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    events += [{"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {}}]
    lines = [b": keep-alive\n\n"] + [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    return [*lines, b"data: [DONE]\n\ndata: never read\n\n"] if done else lines


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("WINDLASS_API_KEY", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    yield made
    made.hold.set()
    made.http.shutdown()
    made.http.server_close()


def answer(status: int, content: Any, kind: str = "application/json") -> Any:
    raw = content if isinstance(content, (bytes, list)) else json.dumps(content).encode()
    return lambda path, body: (status, kind, raw)


@pytest.mark.parametrize("done", [True, False])
def test_chat_streams(server: Server, done: bool) -> None:
    if not done:
        server.reply = answer(200, sse("At ", "the ", "east quay é.", done=False), "text/event-stream; charset=utf-8")
    model = RemoteModel(server.url, model="m", api_key="k")
    pieces = list(model.chat(MESSAGES, max_tokens=9, temperature=0.5, top_p=0.9, stop=["\n"], seed=3))
    assert pieces == ["At ", "the ", "east quay é."]
    path, key, body = server.seen[0]
    assert (path, key) == ("/v1/chat/completions", "Bearer k")
    wanted = {"model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 9, "temperature": 0.5}
    assert body == wanted | {"seed": 3, "stop": ["\n"], "top_p": 0.9}


def test_pieces_arrive_before_the_end_and_leaving_is_allowed(server: Server) -> None:
    server.reply = answer(200, [*sse("early", done=False), None, *sse("late", done=True)], "text/event-stream")
    pieces = RemoteModel(server.url, model="m").chat(MESSAGES)
    assert next(pieces) == "early"
    pieces.close()
    stopped = RemoteModel(server.url, model="m").chat(MESSAGES, cancel=lambda: True)
    assert list(stopped) == []


def test_a_server_that_does_not_stream(server: Server) -> None:
    server.reply = answer(200, {"choices": [{"message": {"content": "whole"}}]})
    assert list(RemoteModel(server.url, model="m").chat(MESSAGES)) == ["whole"]


def test_the_first_listed_model_is_asked_for_once(server: Server) -> None:
    model = RemoteModel(server.url + "/v1/")
    assert server.seen == []
    list(model.chat(MESSAGES))
    list(model.chat(MESSAGES))
    assert [path for path, _, _ in server.seen].count("/v1/models") == 1
    assert server.seen[1][2]["model"] == model.model == "first"
    server.reply = answer(200, {"data": []})
    with pytest.raises(ModelError, match="lists no model"):
        list(RemoteModel(server.url).chat(MESSAGES))


def test_embeddings_come_in_order_and_unit_length(server: Server) -> None:
    texts = ["x" * n for n in range(150)]
    vectors = RemoteModel(server.url, model="m").embed(texts)
    assert vectors.dtype == np.float32 and vectors.shape == (150, 2)
    raw = np.stack([np.arange(150), np.ones(150)], 1)
    np.testing.assert_allclose(vectors, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-6)
    assert [len(body["input"]) for _, _, body in server.seen] == [64, 64, 22]
    assert RemoteModel(server.url, model="m").embed([]).shape[0] == 0


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"data": [{"index": 0, "embedding": [1.0]}]},
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}]},
        {"data": [{"index": 0, "embedding": ["a"]}, {"index": 1, "embedding": ["b"]}]},
        {"data": [{"index": 0, "embedding": [float("nan")]}, {"index": 1, "embedding": [1.0]}]},
        {"data": [{"embedding": [1.0]}, {"embedding": [1.0]}]},
        [],
    ],
)
def test_embeddings_that_are_none(server: Server, content: Any) -> None:
    server.reply = answer(200, content)
    with pytest.raises(ModelError, match="not as an OpenAI-compatible server"):
        RemoteModel(server.url, model="m").embed(["a", "b"])


@pytest.mark.parametrize(
    ("reply", "error", "says"),
    [
        (answer(401, {"error": {"message": "bad key sk-secret"}}), ModelError, r"401: bad key \*\*\*; another API key"),
        (answer(403, b"no"), ModelError, "WINDLASS_API_KEY"),
        (answer(404, b"<html>" + b"x" * 9999), ModelError, r"404: <html>x+\.\.\.; check the address"),
        (answer(404, {"error": "model 'm' not found"}), ModelError, "model 'm' not found"),
        (answer(429, {"message": "slow down"}), Busy, "slow down"),
        (answer(307, b""), ModelError, "use the address it points to: https://elsewhere.example"),
        (answer(500, {"error": {"message": "context is 2048 tokens"}}), ModelError, "500: context is 2048 tokens"),
        (answer(200, b"<html>hello</html>"), ModelError, "not JSON: '<html>hello</html>'"),
        (answer(200, {"answer": 1}), ModelError, "no choices"),
        (answer(200, [b"data: {oops\n\n"], "text/event-stream"), ModelError, "not JSON"),
        (answer(200, [b"data: 7\n\n"], "text/event-stream"), ModelError, "no choices"),
        (answer(200, [b'data: {"error": {"message": "GPU lost"}}\n\n'], "text/event-stream"), ModelError, "GPU lost"),
    ],
)
def test_what_goes_wrong_is_said_plainly(server: Server, reply: Any, error: type[WindlassError], says: str) -> None:
    server.reply = reply
    model = RemoteModel(server.url, model="m", api_key="sk-secret")
    with pytest.raises(error, match=says) as caught:
        list(model.chat(MESSAGES))
    assert "secret" not in str(caught.value) + repr(model)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ModelError, match=r"cannot talk to http://127\.0\.0\.1:1/v1/chat/completions.*start the server"):
        list(RemoteModel("http://127.0.0.1:1", model="m").chat(MESSAGES))


def test_a_server_that_does_not_answer(server: Server) -> None:
    server.reply = answer(200, [None], "text/event-stream")
    with pytest.raises(ModelError, match=r"did not answer within 0.05 s"):
        list(RemoteModel(server.url, model="m", timeout=0.05).chat(MESSAGES))


def test_a_connection_that_breaks(server: Server) -> None:
    def reply(path: str, body: Any) -> Any:
        raise ConnectionError("simulated crash of the server")

    server.reply = reply
    server.http.handle_error = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="cannot talk to"):
        list(RemoteModel(server.url, model="m").chat(MESSAGES))


@pytest.mark.parametrize("url", ["localhost:11434", "ftp://host/v1", "http://", "", "http://me:secret@host/v1"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        RemoteModel(url)
    assert "secret" not in str(caught.value)


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    list(RemoteModel(server.url, model="m").chat(MESSAGES))
    monkeypatch.setenv("WINDLASS_API_KEY", "first")
    list(RemoteModel(server.url, model="m").chat(MESSAGES))
    assert [key for _, key, _ in server.seen] == ["Bearer second", "Bearer first"]
    with pytest.raises(UsageError, match="header"):
        RemoteModel(server.url, api_key="schlüssel")


def test_counts_are_on_the_high_side_and_identity_follows_the_name() -> None:
    model = RemoteModel("http://host", model="m", context_length=1000)
    assert model.url == "http://host/v1" and RemoteModel("http://host/api/").url == "http://host/api"
    assert model.count("") == 0 and model.count("港" * 10) == 10
    assert model.count_chat(MESSAGES) > model.count(MESSAGES[0]["content"]) >= 9
    assert model.fingerprint == RemoteModel("http://host", model="m").fingerprint
    assert model.fingerprint != RemoteModel("http://host", model="n").fingerprint
