"""Pinned prompts, and a cleared cache."""

from __future__ import annotations

from typing import Any

from tests.app.test_engine_api import HELLO, MODEL, chat
from windlass.app.http.tenants import Tenant

LONG = [{"role": "user", "content": "the same long beginning " * 6}]


def send(server: Any, method: str, url: str, **body: Any) -> Any:
    with server.client() as client:
        return client.request(method, url, json=body or None)


def test_a_pinned_prompt_outlives_the_cache(served: Any) -> None:
    chat(served, messages=LONG)
    kv = served.services.engine().engine.engine.kv
    pinned = send(served, "POST", "/v1/cache/pin", messages=LONG, seconds=600).json()
    assert 0 < pinned["pinned_tokens"] <= pinned["tokens"]
    assert send(served, "POST", "/v1/cache/clear").json()["cleared_pages"] > 0
    before = kv.hit_tokens
    chat(served, messages=LONG)
    assert kv.hit_tokens - before >= 16
    served.services.engine().engine.between_steps(lambda: kv.unpin(float("inf")))
    assert send(served, "POST", "/v1/cache/pin").status_code == 400


def test_only_the_owner_arranges(pipeline: Any, serve: Any, engine_chat: Any) -> None:
    from windlass.app.http.keys import hash_key

    pipeline.model = engine_chat
    with serve(pipeline, tenants=(Tenant("anna", hashes=(hash_key("wl-a"),)),)) as server:
        with server.client(headers={"authorization": "Bearer wl-a"}) as client:
            for path in ("/v1/cache/clear", "/v1/cache/pin"):
                assert client.post(path).status_code == 403
            assert client.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO}).status_code == 200


def test_models_that_are_elsewhere_have_no_cache_here(server: Any) -> None:
    assert send(server, "POST", "/v1/cache/clear").json()["error"]["code"] == "feature_unavailable"
