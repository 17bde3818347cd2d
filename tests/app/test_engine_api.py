"""The OpenAI routes over the real engine and a tiny model of this test's own."""

from __future__ import annotations

import itertools
import json
import math
import socket
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest

from tests.app.test_batch_api import finished, results, start
from tests.app.test_batch_api import line as batch_line
from tests.app.test_openai_api import events
from windlass.app.http.limits import Limits
from windlass.models.generate import LocalModel
from windlass.serving.engine_chat import EngineChat

MODEL = "smollm2-135m-instruct"
HELLO = [{"role": "user", "content": "hello there"}]


def chat(server: Any, **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, "max_tokens": 12, **body})


def complete(server: Any, **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v1/completions", json={"model": MODEL, **body})


def text_of(reply: httpx.Response, index: int = 0) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][index]["message"]["content"])


def test_greedy_text_is_the_models_own(served: Any, tiny: LocalModel) -> None:
    reply = chat(served)
    assert text_of(reply) == "".join(tiny.chat(HELLO, max_tokens=12))
    usage = reply.json()["usage"]
    assert usage["prompt_tokens"] == tiny.count_chat(HELLO) and usage["completion_tokens"] == 12
    assert reply.json()["choices"][0]["finish_reason"] == "length"


def test_a_stream_is_the_whole_in_pieces(served: Any) -> None:
    whole = text_of(chat(served))
    found = events(chat(served, stream=True, stream_options={"include_usage": True}).content)
    assert found[-1] == "[DONE]"
    first, *middle, last, usage = found[:-1]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == whole
    assert last["choices"][0]["finish_reason"] == "length" and usage["usage"]["completion_tokens"] == 12


def test_several_answers_and_seeds(served: Any) -> None:
    options = {"n": 3, "temperature": 1.5, "seed": 7}
    first, second = chat(served, **options).json(), chat(served, **options).json()
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    assert first["usage"]["completion_tokens"] == 36
    unseeded = {text_of(chat(served, temperature=1.5)) for _ in range(3)}
    assert len(unseeded) == 3


def test_streamed_answers_keep_apart(served: Any) -> None:
    options = {"n": 2, "temperature": 1.5, "seed": 7}
    whole = chat(served, **options).json()["choices"]
    found = events(chat(served, stream=True, **options).content)[:-1]
    for choice in whole:
        deltas = [chunk["choices"][0] for chunk in found if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(delta["delta"].get("content", "") for delta in deltas) == choice["message"]["content"]
        assert [delta["finish_reason"] for delta in deltas][-1] == "length"


def test_token_chances_are_of_the_plain_distribution(served: Any, tiny: LocalModel) -> None:
    reply = chat(served, logprobs=True, top_logprobs=3, temperature=0)
    content = reply.json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 12
    assert bytes(itertools.chain.from_iterable(entry["bytes"] for entry in content)).decode("utf-8", "replace") == (
        text_of(reply)
    )
    cache = tiny.decoder.cache()
    logits = tiny.decoder.prefill(np.array(tiny.tokenizer.chat(HELLO)), cache).astype(np.float64)
    logprobs = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
    best = np.argsort(-logprobs, kind="stable")[:3]
    assert [entry["logprob"] for entry in content[0]["top_logprobs"]] == pytest.approx(
        logprobs[best].tolist(), abs=1e-4
    )
    assert content[0]["logprob"] == pytest.approx(float(logprobs.max()), abs=1e-4)


def test_biases_and_penalties_reach_the_sampler(served: Any, tiny: LocalModel) -> None:
    token = tiny.tokenizer.encode("h")[0]
    forced = chat(served, logit_bias={str(token): 100}, max_tokens=4)
    assert text_of(forced) == tiny.tokenizer.decode([token] * 4)
    plain, changed = text_of(chat(served, max_tokens=40)), text_of(chat(served, max_tokens=40, frequency_penalty=2))
    assert plain != changed


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"windlass": {"k": 3}}, "windlass.k"),
        ({"windlass": {"cach": "off"}}, "windlass.cach"),
        ({"max_tokens": 600}, "messages"),
    ],
)
def test_what_is_wrong_is_named(served: Any, body: dict[str, Any], param: str) -> None:
    reply = chat(served, **body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param


def test_a_deadline_that_cannot_be_met(served: Any) -> None:
    chat(served)
    reply = chat(served, max_tokens=400, windlass={"deadline_ms": 1})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "deadline_unreachable")


def test_raw_prompts_are_continued(served: Any, tiny: LocalModel) -> None:
    one = complete(served, prompt="hello", max_tokens=8, temperature=0).json()
    assert one["object"] == "text_completion"
    assert one["choices"][0]["text"] == "".join(tiny.complete("hello", max_tokens=8))
    tokens = tiny.tokenizer.prompt("hello")
    assert complete(served, prompt=tokens, max_tokens=8, temperature=0).json()["choices"] == one["choices"]
    many = complete(served, prompt=["hello", "there"], max_tokens=8, temperature=0, n=2).json()["choices"]
    assert [choice["index"] for choice in many] == [0, 1, 2, 3]
    assert many[0]["text"] == many[1]["text"] == one["choices"][0]["text"]
    assert many[2]["text"] == "".join(tiny.complete("there", max_tokens=8))
    assert complete(served, prompt="hello").json()["usage"]["completion_tokens"] <= 16


def test_echo_and_logprobs_of_raw_prompts(served: Any) -> None:
    plain = complete(served, prompt="hello", max_tokens=5).json()["choices"][0]
    echoed = complete(served, prompt="hello", max_tokens=5, echo=True).json()["choices"][0]
    assert echoed["text"] == "hello" + plain["text"]
    streamed = events(complete(served, prompt="hello", max_tokens=5, echo=True, stream=True).content)[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == echoed["text"]
    chances = complete(served, prompt="hello", max_tokens=5, logprobs=2).json()["choices"][0]["logprobs"]
    assert len(chances["tokens"]) == len(chances["token_logprobs"]) == len(chances["top_logprobs"]) == 5
    assert chances["text_offset"][0] == 0 and chances["text_offset"] == sorted(chances["text_offset"])


@pytest.mark.parametrize("made", [0, 5])
def test_an_echoed_prompt_is_rated(served: Any, tiny: LocalModel, made: int) -> None:
    """What a full forward pass of prompt and answer says about each token, the first apart; longer than a step."""
    text = "all the ships that lie at the quay wait for the tide, and the pilots for the ships " * 2
    prompt = tiny.tokenizer.prompt(text)
    assert len(prompt) > 64
    reply = complete(served, prompt=prompt, echo=True, logprobs=2, max_tokens=made, n=2).json()
    first, second = (choice["logprobs"] for choice in reply["choices"])
    assert first["token_logprobs"][: len(prompt)] == second["token_logprobs"][: len(prompt)]
    logits = tiny.decoder.logits(np.array(prompt)).astype(np.float64)
    exact = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert first["token_logprobs"][0] is None and first["top_logprobs"][0] is None
    expected = [exact[place - 1, token] for place, token in enumerate(prompt) if place]
    np.testing.assert_allclose(first["token_logprobs"][1 : len(prompt)], expected, atol=1e-4)
    # Two tokens may be spelled alike, as the halves of characters are.
    assert len(first["tokens"]) == len(prompt) + made and all(1 <= len(top) <= 2 for top in first["top_logprobs"][1:])
    assert first["text_offset"][0] == 0 and "".join(first["tokens"][: len(prompt)]) == tiny.tokenizer.decode(prompt)


def test_the_best_of_several(served: Any) -> None:
    options = {"prompt": "hello", "max_tokens": 6, "temperature": 1.5, "seed": 3, "logprobs": 0}
    every = complete(served, n=4, **options).json()["choices"]
    means = {choice["text"]: sum(choice["logprobs"]["token_logprobs"]) / 6 for choice in every}
    best = complete(served, n=2, best_of=4, **options).json()["choices"]
    assert [choice["text"] for choice in best] == sorted(means, key=means.__getitem__, reverse=True)[:2]
    assert [choice["index"] for choice in best] == [0, 1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [10**8]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "n": 3, "best_of": 2}, "best_of"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": ["a"] * 100, "n": 2}, "n"),
        ({"prompt": "a", "echo": True, "logprobs": 1, "stream": True}, "echo"),
    ],
)
def test_raw_prompts_that_are_wrong(served: Any, body: dict[str, Any], param: str) -> None:
    reply = complete(served, **body)
    assert reply.status_code == 400
    assert str(reply.json()["error"]["param"]).split(".")[0] == param


def test_a_second_question_finds_the_first_ones_pages(served: Any) -> None:
    long = [{"role": "user", "content": "the same long beginning " * 6}]
    chat(served, messages=long)
    kv = served.services.engine().engine.engine.kv
    before = kv.hit_tokens
    chat(served, messages=long)
    assert kv.hit_tokens > before
    before = kv.hit_tokens
    chat(served, messages=long, windlass={"cache": "off"})
    assert kv.hit_tokens == before
    with served.client() as client:
        text = client.get("/metrics").text
    for name in (
        'windlass_kv_pages{state="cached"}',
        "windlass_queue_depth",
        'windlass_tbt_seconds_count{tenant="local"}',
    ):
        assert name in text


def test_clients_that_vanish_leave_nothing_behind(served: Any) -> None:
    """Fifty clients hang up in the middle of a stream; `served` then finds no page in use."""
    body = json.dumps({"model": MODEL, "messages": HELLO, "max_tokens": 400, "stream": True, "temperature": 1.0})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reached = []

    def vanish() -> None:
        with socket.create_connection(("127.0.0.1", served.port), timeout=20) as connection:
            connection.sendall(head.encode() + body.encode())
            reached.append(connection.recv(200)[:15])

    threads = [threading.Thread(target=vanish) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reached.count(b"HTTP/1.1 200 OK") == 50
    end = time.monotonic() + 20
    while served.services.engine().busy and time.monotonic() < end:
        time.sleep(0.01)
    assert not served.services.engine().busy
    assert served.services._calls == {}


def test_too_many_get_429_and_nothing_breaks(pipeline: Any, serve: Any, engine_chat: EngineChat) -> None:
    pipeline.model = engine_chat
    with serve(pipeline, limits=Limits(waiting=2)) as server:
        codes: list[int] = []
        headers: list[str | None] = []

        def ask() -> None:
            reply = chat(server, max_tokens=60)
            codes.append(reply.status_code)
            if reply.status_code == 429:
                headers.append(reply.headers.get("retry-after"))

        threads = [threading.Thread(target=ask) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(codes) == {200, 429}
        assert all(header is not None and 1 <= int(header) <= 60 for header in headers)
        assert chat(server).status_code == 200


def test_a_server_that_ends_leaves_the_model_to_its_owner(pipeline: Any, serve: Any, engine_chat: EngineChat) -> None:
    pipeline.model = engine_chat
    with serve(pipeline) as server:
        running = threading.Thread(target=chat, args=(server,), kwargs={"max_tokens": 400, "temperature": 1.0})
        running.start()
        while not engine_chat.engine.snapshot().running:
            time.sleep(0.01)
        services = server.services
        services.stop_admission()
        assert chat(server).status_code == 503
    running.join(20)
    assert not engine_chat.engine.engine.busy
    assert len(list(engine_chat.chat(HELLO, max_tokens=3))) > 0


def test_models_that_are_elsewhere_have_no_raw_prompts(server: Any) -> None:
    assert complete(server, prompt="a").json()["error"]["code"] == "feature_unavailable"
    refused = chat(server, n=2)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


def test_segments_that_were_read_before_are_taken_and_named(served: Any) -> None:
    texts = ["the first of two passages speaks of ships and harbours", "the second one of ropes, anchors and chains"]

    def ask(cache: str, *order: int) -> dict[str, Any]:
        content = "\n".join(texts[place] for place in order) + "\nand what of it?"
        segments = [{"type": "chunk", "text": text} for text in texts]
        reply = chat(
            served, messages=[{"role": "user", "content": content}], windlass={"cache": cache, "segments": segments}
        )
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    assert "windlass" not in ask("chunks", 0, 1)
    taken = ask("chunks", 1, 0)["windlass"]["approx"]["chunks"]
    assert taken["reused_tokens"] > 0 and taken["alpha"] > 0
    assert "windlass" not in ask("exact", 1, 0)
    assert chat(served, windlass={"segments": [{"type": "page", "text": "x"}]}).status_code == 400


def test_a_batch_computes_what_its_lines_share_once(served: Any, engine_chat: EngineChat, tiny: LocalModel) -> None:
    shared = "of all the ships that lay in the harbour that morning " * 2
    chats = [[{"role": "user", "content": f"{shared}tell me of number {number}"}] for number in range(9)]
    lines = [batch_line(f"l{number}", messages=messages, max_tokens=3) for number, messages in enumerate(chats)]
    before = engine_chat.engine.engine.metrics.computed_tokens
    with served.client() as client:
        done = finished(client, start(client, lines)["id"])
        answers = results(client, done["output_file_id"])
    computed = engine_chat.engine.engine.metrics.computed_tokens - before
    assert done["request_counts"] == {"total": 9, "completed": 9, "failed": 0}
    for number, messages in enumerate(chats):
        text = answers[f"l{number}"]["body"]["choices"][0]["message"]["content"]
        assert text == "".join(tiny.chat(messages, max_tokens=3))
    assert computed < 0.5 * sum(tiny.count_chat(messages) for messages in chats)
