"""Adapters over HTTP and on the command line: loaded, asked for by name, listed, removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.app.test_engine_api import HELLO, MODEL, chat, text_of
from tests.app.test_model_commands import windlass  # noqa: F401
from tests.models.adapters import write_adapter
from tests.models.tiny_models import hf_config, random_weights, write_folder
from windlass.app.http.keys import hash_key
from windlass.app.http.tenants import Tenant
from windlass.models.generate import LocalModel


@pytest.fixture
def trained(tiny: LocalModel, tmp_path: Path) -> Path:
    """An adapter of the tiny model."""
    config = tiny.decoder.config
    shape = hf_config(
        hidden_size=config.hidden_size, head_dim=config.head_dim, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
    )  # fmt: skip
    write_adapter(tmp_path / "trained", shape, 6, strength=3.0)
    return tmp_path / "trained"


def add(server: Any, name: str, folder: Path, **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/adapters", json={"name": name, "path": str(folder), **body})


def test_an_adapter_is_a_model_of_its_own(served: Any, trained: Path) -> None:
    plain = text_of(chat(served))
    reply = add(served, "legal", trained)
    assert reply.status_code == 200 and reply.json()["rank"] == 6 and reply.json()["modules"][0] == "q_proj"
    adapted = chat(served, model=f"{MODEL}:legal")
    assert text_of(adapted) != plain and adapted.json()["model"] == f"{MODEL}:legal"
    assert text_of(chat(served, windlass={"adapter": "legal"})) == text_of(adapted)
    assert text_of(chat(served)) == plain
    with served.client() as client:
        assert f"{MODEL}:legal" in [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert client.get(f"/v1/models/{MODEL}:legal").status_code == 200
        assert [one["id"] for one in client.get("/v1/adapters").json()["data"]] == ["legal"]
        completed = client.post("/v1/completions", json={"model": f"{MODEL}:legal", "prompt": "hello", "max_tokens": 4})
        assert completed.status_code == 200
        assert client.delete("/v1/adapters/legal").json()["deleted"]
        assert client.delete("/v1/adapters/legal").status_code == 404
    gone = chat(served, model=f"{MODEL}:legal")
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "adapter_not_found"


def test_what_is_wrong_with_an_adapter_is_said(served: Any, trained: Path, tmp_path: Path) -> None:
    missing = add(served, "x", tmp_path / "nowhere")
    assert missing.status_code == 400 and missing.json()["error"]["code"] == "adapter_invalid"
    assert add(served, "a:b", trained).status_code == 400
    assert add(served, "x", trained, tenant="nobody").json()["error"]["param"] == "tenant"
    wrong = hf_config(hidden_size=128, head_dim=32, intermediate_size=32)
    write_adapter(tmp_path / "wrong", wrong, 4)
    assert "another model" in add(served, "x", tmp_path / "wrong").json()["error"]["message"]
    both = chat(served, model=f"{MODEL}:a", windlass={"adapter": "b"})
    assert both.status_code == 400 and both.json()["error"]["param"] == "windlass.adapter"
    for name in (f"{MODEL}:", "other:legal"):
        assert chat(served, model=name).json()["error"]["code"] == "model_not_found"
    assert chat(served, model="windlass", windlass={"adapter": "b"}).status_code == 400


def test_only_administrators_manage_adapters(pipeline: Any, serve: Any, tiny: LocalModel, trained: Path) -> None:
    tenants = [
        Tenant(hashes=(hash_key("wl-owner"),), admin=True),
        Tenant("anna", (hash_key("wl-anna"),), models=(MODEL,)),
        Tenant("ben", (hash_key("wl-ben"),)),
    ]
    from windlass.core.settings import ServerSettings
    from windlass.serving.engine_chat import EngineChat

    pipeline.model = EngineChat.start(tiny, ServerSettings(kv_cache_mb=4))
    with serve(pipeline, tenants=tenants) as server:
        body = {"name": "legal", "path": str(trained), "tenant": "anna"}
        keys = {name: {"authorization": f"Bearer wl-{name}"} for name in ("owner", "anna", "ben")}
        with server.client() as client:
            assert client.post("/v1/adapters", json=body, headers=keys["anna"]).status_code == 403
            assert client.post("/v1/adapters", json=body, headers=keys["owner"]).status_code == 200
            asked = {"model": f"{MODEL}:legal", "messages": HELLO, "max_tokens": 3}
            replies = {
                name: client.post("/v1/chat/completions", json=asked, headers=keys[name]).status_code
                for name in ("anna", "ben")
            }
            seen = {
                name: f"{MODEL}:legal"
                in [model["id"] for model in client.get("/v1/models", headers=keys[name]).json()["data"]]
                for name in ("anna", "ben")
            }
    pipeline.model.close()
    assert replies == {"anna": 200, "ben": 404} and seen == {"anna": True, "ben": False}


def test_the_command_line_keeps_adapters(
    windlass: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WINDLASS_MODELS", str(tmp_path / "models"))
    config = hf_config()
    base = write_folder(tmp_path / "base", config, random_weights(config))
    write_adapter(tmp_path / "a", config, 4)
    assert windlass("models", "adapters", "list").out.startswith("none")
    added = windlass("models", "adapters", "add", "legal", tmp_path / "a", "--model", base)
    assert added.status == 0 and "legal: rank 4" in added.out
    assert windlass("models", "adapters", "add", "../x", tmp_path / "a", "--model", base).status == 2
    found = json.loads(windlass("models", "adapters", "list", "--json").out)
    assert [one["name"] for one in found] == ["legal"] and "rank 4" in windlass("models", "adapters", "list").out
    assert windlass("models", "adapters", "remove", "legal").status == 0
    assert windlass("models", "adapters", "remove", "legal").status == 2
