"""Other people's clients on a live server: the official `openai` one for every route, LangChain, the `llm` tool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.peers

MODEL, ENCODER = "smollm2-135m-instruct", "all-minilm-l6-v2"
HELLO: list[Any] = [{"role": "user", "content": "hello there"}]


@pytest.fixture
def client(served: Any) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["windlass", MODEL, ENCODER]
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat(client: Any) -> None:
    whole = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=8, n=2, logprobs=True, top_logprobs=2, seed=1, temperature=1
    )
    assert len(whole.choices) == 2 and len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    assert whole.usage.completion_tokens == 16
    plain = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8)
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=8, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == plain.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == 8 and chunks[-2].choices[0].finish_reason == "length"


def test_the_folder_answers(client: Any) -> None:
    reply = client.chat.completions.create(
        model="windlass", messages=[{"role": "user", "content": "Who approves dredging works?"}]
    )
    assert "harbour master" in reply.choices[0].message.content
    assert reply.windlass["citations"][0]["file"].endswith(".md")


def test_completions(client: Any) -> None:
    whole = client.completions.create(model=MODEL, prompt=["hello", "there"], max_tokens=4, logprobs=1, echo=False)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert len(whole.choices[0].logprobs.token_logprobs) == 4
    pieces = client.completions.create(model=MODEL, prompt="hello", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text


def test_answers_of_a_given_form(client: Any) -> None:
    from pydantic import BaseModel

    class Quay(BaseModel):
        number: int
        open: bool

    kept = client.chat.completions.parse(model=MODEL, messages=HELLO, max_tokens=80, response_format=Quay)
    assert isinstance(kept.choices[0].message.parsed, Quay)
    parameters = {"type": "object", "properties": {"a": {"type": "boolean"}}}
    tools: list[Any] = [{"type": "function", "function": {"name": "go", "parameters": parameters}}]
    made = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=80, tools=tools, tool_choice="required", stream=True
    )
    calls = [call for chunk in made for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.function.name for call in calls] == ["go"]
    assert json.loads(calls[0].function.arguments).keys() <= {"a"}


def test_the_chances_of_a_prompt(client: Any) -> None:
    prompt = "hello there"
    rated = client.completions.create(model=MODEL, prompt=prompt, max_tokens=0, echo=True, logprobs=1).choices[0]
    assert rated.text == prompt == "".join(rated.logprobs.tokens)
    assert rated.logprobs.token_logprobs[0] is None and max(rated.logprobs.token_logprobs[1:]) <= 0


def test_embeddings(client: Any) -> None:
    reply = client.embeddings.create(model=ENCODER, input=["a", "b"])  # this client asks for base64 by itself
    assert [len(entry.embedding) for entry in reply.data] == [8, 8]
    assert client.embeddings.create(model=ENCODER, input="a", encoding_format="float").data[0].embedding == (
        pytest.approx(reply.data[0].embedding)
    )


def test_files_and_batches(client: Any) -> None:
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": MODEL, "messages": HELLO, "max_tokens": 4}}
        for name in ("a", "b")
    ]  # fmt: skip
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    assert client.files.content(file.id).read() == content
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"for": "test"}
    )
    for _ in range(600):
        batch = client.batches.retrieve(batch.id)
        if batch.status == "completed":
            break
        time.sleep(0.05)
    assert batch.request_counts.completed == 2
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert {answer["custom_id"] for answer in answers} == {"a", "b"}
    assert batch.id in [entry.id for entry in client.batches.list(limit=1)]
    assert client.files.delete(file.id).deleted
    assert file.id not in [entry.id for entry in client.files.list()]


def test_errors_have_their_types(client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none", messages=HELLO)
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5000)
    assert raised.value.code == "context_length_exceeded" and raised.value.param == "messages"


def test_langchain(served: Any) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    model = langchain_openai.ChatOpenAI(
        model=MODEL, base_url=f"{served.url}/v1", api_key="none", max_tokens=8, temperature=0
    )
    whole = model.invoke("hello there")
    assert whole.usage_metadata["output_tokens"] == 8
    assert "".join(str(chunk.content) for chunk in model.stream("hello there")) == whole.content


def test_the_llm_command(served: Any, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    settings = f"- model_id: tiny\n  model_name: {MODEL}\n  api_base: {served.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(settings)
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", "-m", "tiny", "-o", "max_tokens", "8", "hello there"]
    for extra in ([], ["--no-stream"]):
        made = subprocess.run([*command, *extra], env=environment, capture_output=True, text=True, timeout=120)
        assert made.returncode == 0, made.stderr
        assert made.stdout.strip()
