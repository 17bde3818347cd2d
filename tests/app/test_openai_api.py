"""The OpenAI-compatible routes, byte for byte where it matters."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from windlass.app.http.limits import Limits

MODEL = "smollm2-135m-instruct"
ENCODER = "all-minilm-l6-v2"
HELLO = [{"role": "user", "content": "hello there"}]


def chat(server: Any, **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, **body})


def events(raw: bytes) -> list[Any]:
    """The events of a stream; fails on anything that is not exactly `data: ...` and a blank line, or a comment."""
    assert raw.endswith(b"\n\n")
    found = []
    for block in raw[:-2].split(b"\n\n"):
        if block.startswith(b": "):
            continue
        assert block.startswith(b"data: ") and b"\n" not in block
        found.append("[DONE]" if block == b"data: [DONE]" else json.loads(block[6:]))
    return found


def test_models_are_listed_and_found(server: Any) -> None:
    with server.client() as client:
        listed = client.get("/v1/models").json()
        assert [model["id"] for model in listed["data"]] == ["windlass", MODEL, ENCODER]
        assert client.get(f"/v1/models/{MODEL}").json()["object"] == "model"
        missing = client.get("/v1/models/none/such")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


def test_a_whole_answer(server: Any) -> None:
    reply = chat(server, temperature=0.5, top_p=0.9, seed=3, stop=["END"], max_tokens=10).json()
    assert reply["object"] == "chat.completion"
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "one two three four"}
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
    call = server.pipeline.model.calls[0]
    assert (call["temperature"], call["top_p"], call["seed"], call["stop"]) == (0.5, 0.9, 3, ("END",))


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_token_limit_ends_with_length(server: Any, name: str) -> None:
    choice = chat(server, **{name: 2}).json()["choices"][0]
    assert choice["message"]["content"] == "one two"
    assert choice["finish_reason"] == "length"


def test_a_stream_is_role_text_reason_usage_done(server: Any) -> None:
    reply = chat(server, stream=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    found = events(reply.content)
    assert found[-1] == "[DONE]"
    first, *middle, last, usage = found[:-1]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == "one two three four"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in [first, *middle])
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] == 8
    assert {chunk["id"] for chunk in found[:-1]} == {first["id"]}
    assert {chunk["object"] for chunk in found[:-1]} == {"chat.completion.chunk"}


def test_a_stream_without_usage_has_none(server: Any) -> None:
    found = events(chat(server, stream=True).content)
    assert all("usage" not in chunk for chunk in found[:-1])
    assert found[-2]["choices"][0]["finish_reason"] == "stop"


def test_characters_beyond_ascii_arrive_whole(server: Any) -> None:
    server.pipeline.model.text = "Köln 港 \U0001f6a2 straße"
    found = events(chat(server, stream=True).content)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found[:-1])
    assert text == server.pipeline.model.text


def test_an_error_inside_a_stream_is_an_event_and_its_end(server: Any) -> None:
    server.pipeline.model.error = RuntimeError("weights on fire at /secret/path")
    found = events(chat(server, stream=True).content)
    assert found[-1]["error"]["type"] == "server_error"
    assert "secret" not in json.dumps(found)
    assert "[DONE]" not in found
    assert server.until_idle()


def test_silence_is_filled_with_heartbeats(pipeline: Any, serve: Any) -> None:
    import threading

    pipeline.model.gate = threading.Semaphore(0)
    with serve(pipeline, limits=Limits(heartbeat_seconds=0.05)) as server, server.client() as client:
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as reply:
            raw = b""
            for piece in reply.iter_raw():
                raw += piece
                if raw.count(b": ping\n\n") == 2:
                    pipeline.model.gate.release(10)
        assert [event for event in events(raw) if event != "[DONE]"]
        assert raw.endswith(b"data: [DONE]\n\n")


def body(**extra: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HELLO, **extra}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_model(server: Any, until: Any, stream: bool) -> None:
    import threading

    model = server.pipeline.model
    model.text, model.gate = "word " * 50, threading.Semaphore(1)
    with server.client() as client:
        if stream:
            with client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as reply:
                next(reply.iter_raw())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/chat/completions", json=body(), timeout=0.3)
    assert until(lambda: model.ended.is_set())
    assert server.until_idle()
    assert model.made <= 1
    model.gate = None
    assert chat(server).status_code == 200


def test_a_client_that_leaves_the_queue_is_never_run(server: Any, until: Any) -> None:
    import threading

    model = server.pipeline.model
    model.gate = threading.Semaphore(0)
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=body(stream=True)) as running:
        chunks = running.iter_raw()  # dropping it would close the stream
        raw = next(chunks)
        with server.client() as other:
            with other.stream("POST", "/v1/chat/completions", json=body(stream=True)) as waiting:
                other_chunks = waiting.iter_raw()
                next(other_chunks)
                assert server.services.queue.depth == 2
        assert until(lambda: server.services.queue.depth == 1)
        model.gate.release(10)
        assert events(raw + b"".join(chunks))[-1] == "[DONE]"
    assert len(model.calls) == 1


def test_a_full_queue_says_when_to_come_back(pipeline: Any, serve: Any, until: Any) -> None:
    import threading

    pipeline.model.gate = threading.Semaphore(0)
    with serve(pipeline, limits=Limits(waiting=1)) as server, server.client() as client:
        with (
            client.stream("POST", "/v1/chat/completions", json=body(stream=True)),
            client.stream("POST", "/v1/chat/completions", json=body(stream=True)),
        ):
            assert until(lambda: server.services.queue.depth == 2)
            refused = chat(server)
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert client.get("/ready").status_code == 503
            assert client.get("/api/search", params={"q": "quay"}).status_code == 200
        assert server.until_idle()
        pipeline.model.gate = None
        assert chat(server).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": 10**9}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"seed": 2**70}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}] * 2000}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"windlass": {"k": 5}}, "windlass"),
        ({"windlass": {"colour": 1}}, "windlass.colour"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_is_wrong_is_refused_by_name(server: Any, change: dict[str, Any], param: str) -> None:
    reply = chat(server, **change)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"] or "").startswith(param)
    assert server.pipeline.model.calls == []


def test_neutral_and_unknown_fields_are_let_pass(server: Any) -> None:
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logprobs": False, "tools": [], "user": "me", "x": 1}
    assert chat(server, **neutral, n=1, response_format={"type": "text"}).status_code == 200


def test_text_parts_and_the_developer_role_are_understood(server: Any) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    assert chat(server, messages=messages).status_code == 200
    assert server.pipeline.model.calls[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello\nthere"},
    ]


@pytest.mark.parametrize("words", [70, 1_000_000])
def test_a_prompt_that_does_not_fit_is_never_cut(server: Any, words: int) -> None:
    reply = chat(server, messages=[{"role": "user", "content": "w " * words}])
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "64" in error["message"]
    reply = chat(server, max_tokens=61)
    assert "4 tokens and 61" in reply.json()["error"]["message"]


@pytest.mark.parametrize("raw", [b"{", b"[]", b"null", b'{"model": NaN}', b"[" * 50_000, b"\xff\xfe", b""])
def test_bodies_that_are_no_request(server: Any, raw: bytes) -> None:
    with server.client() as client:
        headers = {"content-type": "application/json"}
        reply = client.post("/v1/chat/completions", content=raw, headers=headers)
    assert reply.status_code == 400
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def test_not_a_number_is_not_a_temperature(server: Any) -> None:
    raw = json.dumps(body(temperature=float("nan"))).encode()
    with server.client() as client:
        reply = client.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "temperature"


def test_unknown_and_missing_models(server: Any) -> None:
    assert chat(server, model="gpt-4").json()["error"]["code"] == "model_not_found"
    server.pipeline.model = None
    server.pipeline.encoder = None
    for path, extra in (("/v1/chat/completions", body()), ("/v1/embeddings", {"model": ENCODER, "input": "x"})):
        with server.client() as client:
            reply = client.post(path, json=extra)
        assert reply.status_code == 503
        assert "windlass models pull" in reply.json()["error"]["message"]
    with server.client() as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["windlass"]


@pytest.mark.parametrize("stream", [True, False])
def test_the_model_windlass_answers_from_the_folder(server: Any, stream: bool) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "Who approves dredging?"}]
    reply = chat(server, model="windlass", messages=messages, stream=stream, windlass={"k": 5, "mode": "extract"})
    if stream:
        found = events(reply.content)
        extension = found[-2]["windlass"]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in found[:-1])
    else:
        extension = reply.json()["windlass"]
        text = reply.json()["choices"][0]["message"]["content"]
    assert text == "The harbour master approves dredging works. [1]"
    assert extension["citations"][0]["quote"] == "The harbour master approves dredging works."
    assert (extension["passages_used"], extension["passages_found"], extension["found"]) == (1, 3, True)
    assert server.pipeline.asked == [{"question": "Who approves dredging?", "k": 5, "mode": "extract"}]


def embed(server: Any, **extra: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/embeddings", json={"model": ENCODER, "input": ["a b", "c"], **extra})


def test_embeddings_keep_order_and_both_encodings_agree(server: Any) -> None:
    plain = embed(server).json()
    packed = embed(server, encoding_format="base64").json()
    expected = server.pipeline.encoder.encode_passages(["a b", "c"])
    assert [item["index"] for item in plain["data"]] == [0, 1]
    for row in range(2):
        np.testing.assert_allclose(plain["data"][row]["embedding"], expected[row], rtol=1e-6)
        unpacked = np.frombuffer(base64.b64decode(packed["data"][row]["embedding"]), "<f4")
        np.testing.assert_array_equal(unpacked, expected[row])
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_fewer_dimensions_are_cut_and_made_unit_length_again(server: Any) -> None:
    vector = np.asarray(embed(server, dimensions=3).json()["data"][0]["embedding"])
    whole = server.pipeline.encoder.encode_passages(["a b"])[0, :3]
    np.testing.assert_allclose(vector, whole / np.linalg.norm(whole), rtol=1e-5)
    assert embed(server, dimensions=9).json()["error"]["param"] == "dimensions"


@pytest.mark.parametrize("value", [["x"] * 2049, [], [1, 2], [[1], [2]], "", ["a", ""], 5, None])
def test_inputs_that_cannot_be_embedded(server: Any, value: Any) -> None:
    reply = embed(server, input=value)
    assert reply.status_code == 400
    assert (reply.json()["error"]["param"] or "").startswith("input")
