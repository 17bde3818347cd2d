"""Windlass's own routes."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest


def get(server: Any, path: str, **params: Any) -> Any:
    with server.client() as client:
        return client.get(path, params=params)


def test_search_gives_passages_with_their_ranks(server: Any) -> None:
    reply = get(server, "/api/search", q="quay", k=3, mode="lexical").json()
    hit = reply["hits"][0]
    assert hit["ranks"] == {"lexical": 1, "dense": 3}
    assert hit["passage"]["doc_id"] == 7
    assert reply["mode"] == "lexical"


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"q": ""},
        {"q": " "},
        {"q": "x" * 5000},
        {"q": "x", "k": 0},
        {"q": "x", "k": 10**9},
        {"q": "x", "mode": "magic"},
    ],
)
def test_search_refuses_what_makes_no_sense(server: Any, params: dict[str, Any]) -> None:
    reply = get(server, "/api/search", **params)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


def test_ask_answers_with_spans_that_can_be_opened(server: Any) -> None:
    with server.client() as client:
        answer = client.post("/api/ask", json={"question": "Who approves dredging?", "k": 4}).json()
        citation = answer["sentences"][0]["citations"][0]
        span = {"start": citation["start"], "end": citation["end"], "around": 10}
        source = client.get(f"/api/source/{citation['doc_id']}", params=span).json()
    assert answer["found"] and answer["text"].endswith("[1]")
    assert source["quote"] == citation["quote"]
    assert source["text_before"] == "at quay 4. "[-10:]


def test_ask_says_when_nothing_was_found(server: Any) -> None:
    with server.client() as client:
        answer = client.post("/api/ask", json={"question": "What is love?"}).json()
    assert answer["found"] is False
    assert len(answer["hits"]) == 1


@pytest.mark.parametrize(
    "body", [{}, {"question": ""}, {"question": 1}, {"question": "x", "k": 0}, {"question": "x", "y": 1}]
)
def test_ask_refuses_what_it_does_not_know(server: Any, body: dict[str, Any]) -> None:
    with server.client() as client:
        assert client.post("/api/ask", json=body).status_code == 400


@pytest.mark.parametrize(
    ("path", "params", "status"),
    [
        ("/api/source/99", {"start": 0, "end": 1}, 404),
        ("/api/source/7", {"start": 5, "end": 2}, 400),
        ("/api/source/7", {"start": 0, "end": 10**30}, 400),
        ("/api/source/7", {"start": -1, "end": 2}, 400),
        ("/api/source/7", {}, 400),
        ("/api/source/%2e%2e%2fetc", {"start": 0, "end": 1}, 404),
        ("/api/source/" + "9" * 30, {"start": 0, "end": 1}, 404),
    ],
)
def test_sources_that_are_not_there(server: Any, path: str, params: dict[str, Any], status: int) -> None:
    reply = get(server, path, **params)
    assert reply.status_code == status
    assert "error" in reply.json()


def test_overview_and_files_are_json_all_through(server: Any) -> None:
    overview = get(server, "/api/overview").json()
    assert overview["by_kind"] == {"markdown": [2, 300]}
    assert overview["progress"] == {"active": False, "stages": [], "current": None}
    assert str(server.pipeline.folder) not in str(overview)
    files = get(server, "/api/files", limit=1).json()
    assert (files["total"], files["files"][0]["state"]) == (1, "indexed")
    assert get(server, "/api/files", state="failed").json()["files"] == []


def test_progress_is_told_while_a_job_runs(server: Any) -> None:
    progress = server.services.progress
    progress.start("read", 4, "files")
    progress.advance("read", 1, "notes.md")
    try:
        told = get(server, "/api/overview").json()["progress"]
        assert get(server, "/ready").json()["indexing"] is True
    finally:
        progress.finish("read")
    assert told["active"] and told["current"]["detail"] == "notes.md"
    assert (told["current"]["done"], told["current"]["total"]) == (1, 4)


def test_health_and_readiness(pipeline: Any, serve: Any) -> None:
    with serve(pipeline) as server:
        assert get(server, "/health").json() == {"status": "ok"}
        ready = get(server, "/ready")
        assert (ready.status_code, ready.json()["passages"]) == (200, 1)
        server.services.stop_admission()
        assert get(server, "/ready").status_code == 503
        assert get(server, "/health").status_code == 200
        with server.client() as client:
            refused = client.post("/api/ask", json={"question": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")


def test_metrics_count_what_happened(pipeline: Any, serve: Any) -> None:
    with serve(pipeline) as server:
        get(server, "/api/search", q="quay")
        get(server, "/api/source/99", start=0, end=1)
        with server.client() as client:
            client.post("/api/ask", json={"question": "dredging"})
        text = get(server, "/metrics").text
    assert 'windlass_http_requests_total{method="GET",route="/api/search",status="200"} 1.0' in text
    assert 'windlass_http_requests_total{method="GET",route="/api/source/{doc_id}",status="404"} 1.0' in text
    assert 'windlass_e2e_seconds_count{tenant="local"} 1.0' in text
    assert 'windlass_files{state="failed"} 1.0' in text
    assert re.search(r"^windlass_passages 1\.0$", text, re.MULTILINE)
    assert "windlass_generation_queue_depth 0.0" in text


def test_a_question_whose_client_leaves_is_stopped(server: Any, until: Any, monkeypatch: Any) -> None:
    import httpx

    stopped = threading.Event()

    def ask(question: str, *, on_token: Any, **_: Any) -> Any:
        try:
            while True:
                on_token("more")
                stopped.wait(0.01)
        finally:
            stopped.set()

    monkeypatch.setattr(server.pipeline, "ask", ask, raising=False)
    with server.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/api/ask", json={"question": "x"}, timeout=0.3)
    assert stopped.wait(10)


def test_too_many_short_calls_are_told_to_come_back(pipeline: Any, serve: Any, until: Any, monkeypatch: Any) -> None:
    from windlass.app.http.limits import Limits

    gate = threading.Event()
    monkeypatch.setattr(pipeline, "files", lambda: gate.wait(10) and [], raising=False)
    with serve(pipeline, limits=Limits(threads=1, calls_waiting=1)) as server:
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda: codes.append(get(server, "/api/files").status_code)) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert until(lambda: server.services._pending == 2)
        refused = get(server, "/api/files")
        gate.set()
        for thread in threads:
            thread.join()
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert codes == [200, 200]
