"""`/tokenize` and `/detokenize` over a tiny model of this test's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models.tiny_models import hf_config, random_weights, write_folder
from windlass.models.generate import LocalModel


@pytest.fixture
def local(pipeline: Any, tmp_path: Path) -> LocalModel:
    config = hf_config()
    model = LocalModel.load(write_folder(tmp_path / "tiny", config, random_weights(config)))
    pipeline.model = model
    return model


def test_a_text_goes_there_and_back(local: LocalModel, server: Any) -> None:
    with server.client() as client:
        made = client.post("/tokenize", json={"prompt": "Quay four, naïve ☂"}).json()
        back = client.post("/detokenize", json={"tokens": made["tokens"]}).json()
    assert made["tokens"] == local.tokenizer.encode("Quay four, naïve ☂")
    assert (made["count"], made["max_model_len"]) == (len(made["tokens"]), local.context_length)
    assert back == {"prompt": "Quay four, naïve ☂"}


def test_a_conversation_is_its_whole_prompt(local: LocalModel, server: Any) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    with server.client() as client:
        reply = client.post("/tokenize", json={"messages": messages}).json()
    assert reply["tokens"] == local.tokenizer.chat([{"role": "system", "content": "Be brief."}, messages[1]])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/detokenize", {"tokens": [5, 10**9]}, "tokens.1"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(local: LocalModel, server: Any, path: str, body: dict[str, Any], param: str) -> None:
    with server.client() as client:
        reply = client.post(path, json=body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == param


def test_other_models_have_no_tokens_here(server: Any) -> None:
    with server.client() as client:
        far = client.post("/tokenize", json={"prompt": "a"})  # the scripted model stands for one on another machine
        none = client.post("/tokenize", json={"prompt": "a", "model": "none"})
    assert (far.status_code, far.json()["error"]["code"]) == (400, "feature_unavailable")
    assert (none.status_code, none.json()["error"]["code"]) == (404, "model_not_found")
