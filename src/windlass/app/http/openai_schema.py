"""Requests of the OpenAI-compatible routes, as they may come in: every field typed and bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from windlass.app.http.replies import ApiError

MOST_MESSAGES = 1024
MOST_INPUTS = 2048
MOST_TOKENS = 1_000_000
LARGEST_SEED = (1 << 63) - 1

# What these fields hold when a client means "nothing special"; anything else is refused rather than ignored.
_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
}

StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Extension(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ContentPart(_Body):
    """One piece of a message's content; only text is understood."""

    type: str
    text: str | None = None


class Message(_Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(max_length=256)]

    def text(self, place: int) -> str:
        """The content as one text; `place` is the message's index, for the error."""
        if isinstance(self.content, str):
            return self.content
        for index, part in enumerate(self.content):
            if part.type != "text" or part.text is None:
                param = f"messages.{place}.content.{index}"
                raise ApiError(400, f"{param}: only text is understood", param=param, code="unsupported_content")
        return "\n".join(part.text or "" for part in self.content)


class StreamOptions(_Body):
    """Extras of a stream."""

    include_usage: bool = False


class AskOptions(_Extension):
    """The request object `windlass`: how a question over the folder is answered."""

    k: Annotated[int, Field(ge=1, le=100)] | None = None
    mode: Literal["auto", "extract", "generate"] | None = None


class ChatRequest(_Body):
    """`POST /v1/chat/completions`."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-LARGEST_SEED, le=LARGEST_SEED)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    windlass: AskOptions | None = None

    def check(self) -> None:
        """Refuse what is well formed and not offered.

        Raises:
            ApiError: 400, naming the field.
        """
        if self.n not in (None, 1):
            raise ApiError(400, f"n is {self.n}, only one choice is made", param="n", code="unsupported_value")
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options", code="invalid_value")
        for name, value in (self.model_extra or {}).items():
            if name in _NOT_OFFERED and value not in _NOT_OFFERED[name]:
                raise ApiError(400, f"{name} is not supported", param=name, code="unsupported_parameter")

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


def conversation(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the model's chat template takes them.

    Raises:
        ApiError: One has content that is not text.
    """
    return [
        {"role": "system" if message.role == "developer" else message.role, "content": message.text(place)}
        for place, message in enumerate(messages)
    ]


class EmbeddingRequest(_Body):
    """`POST /v1/embeddings`."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    input: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_INPUTS)]
        | Annotated[list[int], Field(min_length=1, max_length=1_000_000)]
        | Annotated[list[list[int]], Field(min_length=1, max_length=MOST_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=65_536)] | None = None

    def texts(self) -> list[str]:
        """The inputs in order.

        Raises:
            ApiError: 400 for token ids (they would be another tokenizer's) and for empty texts.
        """
        texts = [self.input] if isinstance(self.input, str) else self.input
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ApiError(
                    400, "input: token ids are not understood, send text", param="input", code="unsupported_value"
                )
            if not text:
                raise ApiError(400, f"input.{index} is empty", param="input", code="invalid_value")
        return [str(text) for text in texts]
