"""The two shapes in which an answer leaves: a chat completion and a text completion, whole or as events."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any

from windlass.app.http.completion import Call, Choice, Completion, Piece, TokenChance, ToolCall
from windlass.app.http.event_stream import DONE, PING, event


class Reply(ABC):
    """The frame that all parts of one answer share.

    Args:
        model: The model's name, as the client wrote it.
        choices: How many answers there will be.
        kind, chunk_kind: What the whole and a part of it are called.
    """

    prefix: str
    kind: str
    chunk_kind: str

    def __init__(self, model: str, choices: int = 1) -> None:
        self._id, self._created, self._model = self.prefix + uuid.uuid4().hex, int(time.time()), model
        self._choices = choices

    def whole(self, completion: Completion) -> dict[str, Any]:
        """The answer in one object."""
        choices = [self._choice(choice) for choice in completion.choices]
        return {**self._frame(self.kind), "choices": choices, "usage": completion.usage, **completion.extra}

    async def events(self, call: Call, silence: float, include_usage: bool) -> AsyncIterator[bytes]:
        """What opens it, text as it comes, the reasons for the end, the usage if wanted, `[DONE]`."""
        # A client that asked for usage finds `usage: null` in every chunk but the last.
        no_usage: dict[str, Any] = {"usage": None} if include_usage else {}
        for opening in self._openings():
            yield self._chunk(opening, no_usage)
        async for piece in call.pieces(silence):
            yield PING if piece is None else self._chunk(self._part(piece), no_usage)
        completion = await call.result()
        for choice in completion.choices:
            for closing in self._closings(choice):
                yield self._chunk(closing, {**no_usage, **completion.extra})
        if include_usage:
            yield event({**self._frame(self.chunk_kind), "choices": [], "usage": completion.usage})
        yield DONE

    def _chunk(self, choice: dict[str, Any], extra: dict[str, Any]) -> bytes:
        return event({**self._frame(self.chunk_kind), "choices": [choice], **extra})

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    @abstractmethod
    def _openings(self) -> list[dict[str, Any]]: ...

    @abstractmethod
    def _part(self, piece: Piece) -> dict[str, Any]: ...

    @abstractmethod
    def _closings(self, choice: Choice) -> list[dict[str, Any]]: ...

    @abstractmethod
    def _choice(self, choice: Choice) -> dict[str, Any]: ...


class ChatReply(Reply):
    """`/v1/chat/completions`."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def _openings(self) -> list[dict[str, Any]]:
        return [_delta(index, {"role": "assistant", "content": ""}) for index in range(self._choices)]

    def _part(self, piece: Piece) -> dict[str, Any]:
        return _delta(piece.index, {"content": piece.text}, logprobs=_chat_logprobs(piece.tokens or None))

    def _closings(self, choice: Choice) -> list[dict[str, Any]]:
        calls = [{"index": place, **_tool_call(call)} for place, call in enumerate(choice.tool_calls)]
        called = [_delta(choice.index, {"tool_calls": calls})] if calls else []
        return [*called, _delta(choice.index, {}, choice.finish)]

    def _choice(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text}
        if choice.tool_calls:
            message = {**message, "content": None, "tool_calls": [_tool_call(call) for call in choice.tool_calls]}
        logprobs = _chat_logprobs(choice.tokens)
        return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}


class TextReply(Reply):
    """`/v1/completions`.

    Args:
        model, choices: As in `Reply`.
        echoes: The prompt of each choice where it is to be repeated before the answer.
    """

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(self, model: str, choices: int, echoes: tuple[str, ...] = ()) -> None:
        super().__init__(model, choices)
        self._echoes = echoes or ("",) * choices
        self._lengths = [len(echo) for echo in self._echoes]

    def _openings(self) -> list[dict[str, Any]]:
        return [_text(index, echo) for index, echo in enumerate(self._echoes) if echo]

    def _part(self, piece: Piece) -> dict[str, Any]:
        logprobs = _text_logprobs(piece.tokens or None, self._lengths[piece.index])
        self._lengths[piece.index] += sum(len(token.text) for token in piece.tokens)
        return _text(piece.index, piece.text, logprobs=logprobs)

    def _closings(self, choice: Choice) -> list[dict[str, Any]]:
        return [_text(choice.index, "", choice.finish)]

    def _choice(self, choice: Choice) -> dict[str, Any]:
        echo = self._echoes[choice.index]
        if choice.prompt:
            logprobs = _text_logprobs((*choice.prompt, *(choice.tokens or ())), 0)
        else:
            logprobs = _text_logprobs(choice.tokens, len(echo))
        return _text(choice.index, echo + choice.text, choice.finish, logprobs)


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _delta(
    index: int, delta: dict[str, Any], finish: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _text(index: int, text: str, finish: str | None = None, logprobs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _chat_logprobs(tokens: tuple[TokenChance, ...] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None

    def spelled(token: TokenChance) -> dict[str, Any]:
        return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}

    return {
        "content": [{**spelled(token), "top_logprobs": [spelled(other) for other in token.top]} for token in tokens]
    }


def _text_logprobs(tokens: tuple[TokenChance, ...] | None, offset: int) -> dict[str, Any] | None:
    if tokens is None:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [
            None if token.logprob is None else {other.text: other.logprob for other in token.top} for token in tokens
        ],
        "text_offset": offsets,
    }
