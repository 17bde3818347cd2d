"""A conversation as the tokens and segments of a request."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Protocol

from windlass.serving.request import Segment


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer; `models.tokenizer.Tokenizer` is one."""

    def chat_pieces(
        self, messages: Items[Mapping[str, str]], texts: Items[str] = ()
    ) -> list[tuple[list[int], int | None]]: ...


def segmented(
    tokenizer: ChatTokenizer, messages: Items[Mapping[str, str]], passages: Items[str]
) -> tuple[list[int], tuple[Segment, ...]]:
    """The prompt of a conversation in which `passages` stand, and where they stand in it.

    A passage is tokenized by itself, so it has the same tokens in every prompt; what the first message says as the
    system is a segment, too.
    """
    system = [messages[0]["content"]] if messages and messages[0].get("role") == "system" else []
    prompt: list[int] = []
    segments = []
    for tokens, number in tokenizer.chat_pieces(messages, [*system, *passages]):
        if number is not None and tokens:
            is_system = number < len(system)
            segments.append(Segment(len(prompt), len(prompt) + len(tokens), "system" if is_system else "chunk"))
        prompt += tokens
    return prompt, tuple(segments)
