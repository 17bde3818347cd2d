"""Adapters that come and go while the server runs, pinned prompts, a cleared cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.app.conftest import TINY
from tests.app.test_engine_api import HELLO, MODEL, chat, text_of
from tests.models.adapters import write_adapter
from windlass.app.http.tenants import Tenant

LONG = [{"role": "user", "content": "the same long beginning " * 6}]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "a"
    write_adapter(folder, TINY, 4, seed=3, strength=4.0)
    return folder


def send(server: Any, method: str, url: str, **body: Any) -> Any:
    with server.client() as client:
        return client.request(method, url, json=body or None)


def test_an_adapter_comes_speaks_and_goes(served: Any, adapter: Path) -> None:
    plain = text_of(chat(served))
    added = send(served, "POST", "/v1/adapters", name="quay", path=str(adapter))
    assert added.status_code == 201 and added.json()["name"] == "quay" and added.json()["rank"] == 4
    assert send(served, "GET", "/v1/models").json()["data"][2]["id"] == f"{MODEL}:quay"
    adapted = text_of(chat(served, model=f"{MODEL}:quay"))
    assert adapted != plain == text_of(chat(served))
    assert adapted == text_of(chat(served, windlass={"adapter": "quay"}))
    assert [info["name"] for info in send(served, "GET", "/v1/adapters").json()["data"]] == ["quay"]
    assert send(served, "DELETE", "/v1/adapters/quay").json()["deleted"]
    gone = chat(served, model=f"{MODEL}:quay")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "model_not_found")
    assert send(served, "DELETE", "/v1/adapters/quay").status_code == 404


def test_an_adapter_of_a_tenant_is_nobody_elses(served: Any, adapter: Path) -> None:
    assert send(served, "POST", "/v1/adapters", name="own", path=str(adapter), tenant="anna").status_code == 201
    assert chat(served, model=f"{MODEL}:own").status_code == 404
    assert send(served, "GET", "/v1/adapters").json()["data"] == []
    assert len(send(served, "GET", "/v1/adapters?tenant=anna").json()["data"]) == 1


def test_broken_adapters_are_refused(served: Any, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        reply = send(served, "POST", "/v1/adapters", name="bad", path=str(path))
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_adapter")


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
            for method, path in (("GET", "/v1/adapters"), ("POST", "/v1/cache/clear"), ("POST", "/v1/cache/pin")):
                assert client.request(method, path).status_code == 403
            assert client.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO}).status_code == 200


def test_models_that_are_elsewhere_have_no_adapters(server: Any) -> None:
    assert send(server, "GET", "/v1/adapters").json()["error"]["code"] == "feature_unavailable"
    with server.client() as client:
        reply = client.post("/v1/chat/completions", json={"model": f"{MODEL}:quay", "messages": HELLO})
    assert reply.status_code == 404
