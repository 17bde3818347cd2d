"""Answers of a given form over HTTP, made by a tiny model that knows nothing: whatever it likes best must fit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.app.test_engine_api import HELLO, MODEL, chat, text_of
from tests.app.test_openai_api import events

SCHEMA = {
    "type": "object",
    "properties": {
        "quay": {"type": "integer", "minimum": 1, "maximum": 40},
        "open": {"type": "boolean"},
        "kind": {"enum": ["tug", "pilot"]},
    },
    "required": ["quay", "open", "kind"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "quay", "schema": SCHEMA, "strict": True}}
BERTH = {"properties": {"quay": {"enum": [4, 40]}}, "required": ["quay"]}
TOOLS = [{"type": "function", "function": {"name": "book", "parameters": BERTH}}]


def is_quay(value: Any) -> bool:
    return (
        value.keys() == {"quay", "open", "kind"}
        and 1 <= value["quay"] <= 40
        and isinstance(value["open"], bool)
        and value["kind"] in ("tug", "pilot")
    )


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "seed": 5, "n": 3}, {"presence_penalty": 2.0}])
def test_a_schema_is_kept(served: Any, options: dict[str, Any]) -> None:
    reply = chat(served, response_format=FORMAT, max_tokens=200, **options)
    assert reply.status_code == 200, reply.text
    for choice in reply.json()["choices"]:
        assert is_quay(json.loads(choice["message"]["content"])) and choice["finish_reason"] == "stop"


def test_any_object(served: Any) -> None:
    for seed in range(3):
        reply = chat(served, response_format={"type": "json_object"}, max_tokens=400, temperature=1.0, seed=seed)
        choice = reply.json()["choices"][0]
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
        else:
            assert choice["message"]["content"].startswith("{")


def test_the_form_of_one_leaves_the_others_alone(served: Any) -> None:
    plain = text_of(chat(served))
    assert is_quay(json.loads(text_of(chat(served, response_format=FORMAT, max_tokens=200))))
    assert text_of(chat(served, response_format={"type": "text"})) == plain


def test_a_tool_that_must_be_called_is(served: Any) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "book"}}):
        reply = chat(served, tools=TOOLS, tool_choice=choice, max_tokens=150).json()
        message = reply["choices"][0]["message"]
        assert message["content"] is None and reply["choices"][0]["finish_reason"] == "tool_calls"
        (call,) = message["tool_calls"]
        assert call["type"] == "function" and call["function"]["name"] == "book"
        assert json.loads(call["function"]["arguments"])["quay"] in (4, 40)
    answered = [*HELLO, message, {"role": "tool", "tool_call_id": call["id"], "content": "booked"}]
    assert chat(served, messages=answered, tools=TOOLS, tool_choice="none").status_code == 200


def test_a_streamed_call_comes_whole(served: Any) -> None:
    found = events(chat(served, tools=TOOLS, tool_choice="required", max_tokens=150, stream=True).content)
    deltas = [chunk["choices"][0]["delta"] for chunk in found[:-1]]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert (
        len(calls) == 1 and calls[0]["index"] == 0 and json.loads(calls[0]["function"]["arguments"])["quay"] in (4, 40)
    )
    assert found[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert "".join(delta.get("content") or "" for delta in deltas) == ""


def test_who_may_choose_may_write(served: Any) -> None:
    reply = chat(served, tools=TOOLS, max_tokens=20, logit_bias={"0": 0.0}, temperature=1.0, seed=1).json()["choices"][
        0
    ]
    whole = reply["message"]["content"]
    streamed = events(chat(served, tools=TOOLS, max_tokens=20, stream=True, temperature=1.0, seed=1).content)
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in streamed[:-1])
    assert text == (whole or "") and (whole or reply["message"]["tool_calls"])


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", ""),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        (
            {"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": {"type": "string", "pattern": "a"}}}},
            "response_format",
            "#: the keyword 'pattern' is not supported",
        ),
        ({"response_format": FORMAT, "tools": TOOLS}, "response_format", "beside tools"),
        ({"tools": TOOLS * 2}, "tools", "same name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "no tool"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {**BERTH, "minProperties": 1}}}]},
            "tools",
            "f#: the keyword 'minProperties'",
        ),
        (
            {"response_format": {**FORMAT, "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
            "response_format",
            "nothing fits",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(served: Any, body: dict[str, Any], param: str, told: str) -> None:
    reply = chat(served, **body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert str(error["param"]).startswith(param) and told in error["message"]


def test_models_that_are_elsewhere_keep_no_form(server: Any) -> None:
    for body in ({"response_format": FORMAT}, {"tools": TOOLS}):
        with server.client() as client:
            reply = client.post("/v1/chat/completions", json={"model": MODEL, "messages": HELLO, **body})
        assert reply.status_code == 400 and reply.json()["error"]["param"] == next(iter(body))
