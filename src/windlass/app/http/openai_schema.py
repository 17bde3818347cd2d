"""Requests of the OpenAI-compatible routes, as they may come in: every field typed and bounded."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from windlass.app.http.replies import ApiError
from windlass.serving.json_grammar import tool_call_text
from windlass.serving.request import Constraint, SamplingParams

MOST_MESSAGES = 1024
MOST_INPUTS = 2048
MOST_TOKENS = 1_000_000
MOST_CHOICES = 128
MOST_CHANCES = 20
MOST_TOOLS = 128
FOLDER_MODEL = "windlass"
"""The model that answers from the folder."""
LARGEST_SEED = (1 << 63) - 1

# What these fields hold when a client means "nothing special"; anything else is refused rather than ignored.
_NOT_OFFERED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "suffix": (None, ""),
}
# What only the engine of this machine does: not the folder's quoting, not a model behind a URL.
_OF_THE_ENGINE: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "top_k": (None, 0),
    "min_p": (None, 0),
    "tools": (None, []),
}
_OF_THE_FOLDER, _OF_THE_MODEL = ("k", "mode"), ("priority", "deadline_ms", "cache", "segments", "adapter")

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Extension(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ContentPart(_Body):
    """One piece of a message's content; only text is understood."""

    type: str
    text: str | None = None


class FunctionCall(_Body):
    """A call that a model made, its arguments as the text of a JSON object."""

    name: ToolName
    arguments: str


class MadeCall(_Body):
    """A call in the message that made it."""

    id: Annotated[str, StringConstraints(max_length=256)]
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_Body):
    """One turn of a conversation. `tool` brings what a call gave back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[ContentPart], Field(max_length=256)] | None = None
    tool_calls: Annotated[list[MadeCall], Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, StringConstraints(max_length=256)] | None = None

    def text(self, place: int) -> str:
        """The content as one text; `place` is the message's index, for the error."""
        if self.tool_calls:
            calls = [tool_call_text(call.function.name, call.function.arguments) for call in self.tool_calls]
            return "\n".join([self.content, *calls] if isinstance(self.content, str) and self.content else calls)
        if self.content is None:
            param = f"messages.{place}.content"
            raise ApiError(400, f"{param}: it is missing", param=param, code="invalid_value")
        if isinstance(self.content, str):
            return self.content
        for index, part in enumerate(self.content):
            if part.type != "text" or part.text is None:
                param = f"messages.{place}.content.{index}"
                raise ApiError(400, f"{param}: only text is understood", param=param, code="unsupported_content")
        return "\n".join(part.text or "" for part in self.content)


class JsonSchema(_Body):
    """A named schema for answers."""

    name: str
    # `schema` is a method of every model, so the field goes by another name here.
    body: dict[str, Any] | bool = Field(True, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Body):
    """What an answer must be: any text, a JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(_Body):
    """A function that a model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(_Body):
    """Something a model may call; functions only."""

    type: Literal["function"]
    function: Function


class NamedFunction(_Body):
    """The name of a function."""

    name: ToolName


class NamedTool(_Body):
    """The one tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(_Body):
    """Extras of a stream."""

    include_usage: bool = False


class SegmentText(_Extension):
    """A text that stands in the messages, word for word, and comes again in other requests."""

    type: Literal["chunk"]
    text: Annotated[str, StringConstraints(min_length=1, max_length=1 << 20)]


class WindlassOptions(_Extension):
    """The request object `windlass`.

    `k` and `mode` say how a question over the folder is answered; the others how a model's answer is scheduled:
    larger `priority` first, not at all when it cannot be done in `deadline_ms`, and with `cache` off nothing of the
    prompt is shared with other calls. With `cache` set to `chunks`, the `segments` of a prompt are taken from where
    they were computed before, wherever they stand now: faster, not exact, and named in the answer. `adapter` names an
    adapter of the model, as the model name `model:adapter` does.
    """

    k: Annotated[int, Field(ge=1, le=100)] | None = None
    mode: Literal["auto", "extract", "generate"] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    deadline_ms: Annotated[int, Field(ge=1, le=86_400_000)] | None = None
    cache: Literal["on", "exact", "chunks", "off"] | None = None
    segments: Annotated[list[SegmentText], Field(max_length=256)] | None = None
    adapter: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None


class SamplingBody(_Body):
    """What chat and text completions have in common."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-LARGEST_SEED, le=LARGEST_SEED)] | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    windlass: WindlassOptions | None = None

    def check(self) -> None:
        """Refuse what is well formed and not offered.

        Raises:
            ApiError: 400, naming the field.
        """
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options", code="invalid_value")
        for name, value in (self.model_extra or {}).items():
            if name in _NOT_OFFERED and value not in _NOT_OFFERED[name]:
                raise ApiError(400, f"{name} is not supported", param=name, code="unsupported_parameter")

    def check_for_folder(self) -> None:
        """Refuse what the model `windlass` does not do.

        Raises:
            ApiError: 400, naming the field.
        """
        self.check_without_engine(FOLDER_MODEL)
        self._refuse_options(_OF_THE_MODEL, "not for the model windlass")

    def check_without_engine(self, model: str) -> None:
        """Refuse what only the engine of this machine does.

        Raises:
            ApiError: 400, naming the field.
        """
        for name, plain in _OF_THE_ENGINE.items():
            if getattr(self, name, None) not in plain:
                raise ApiError(400, f"{name} is not supported by {model}", param=name, code="unsupported_parameter")

    def check_for_model(self) -> None:
        """Refuse what only the model `windlass` does.

        Raises:
            ApiError: 400, naming the field.
        """
        self._refuse_options(_OF_THE_FOLDER, f"only for the model {FOLDER_MODEL}")

    def params(
        self,
        most_tokens: int,
        answers: int | None = None,
        constraint: Callable[[], Constraint] | None = None,
    ) -> SamplingParams:
        """How the engine draws tokens for this.

        Args:
            most_tokens: Of one answer.
            answers: How many; None: as the body says.
            constraint: What each is held to.
        """
        return SamplingParams(
            max_tokens=most_tokens,
            temperature=self.temperature or 0.0,
            top_p=self.top_p or 1.0,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            # Without a seed two calls should differ, as far as anything is left to chance.
            seed=secrets.randbits(63) if self.seed is None else self.seed,
            stop=self.stops,
            logprobs=self.token_chances,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            logit_bias=self._biases(),
            n=answers or self.n or 1,
            constraint=constraint,
            prompt_logprobs=self.token_chances if self.rates_prompt else None,
        )

    @property
    def rates_prompt(self) -> bool:
        """Whether the chances of the prompt's tokens are wanted, too."""
        return False

    @property
    def chunk_texts(self) -> list[str]:
        """Texts that may be taken from where they were computed before."""
        options = self.windlass
        return [each.text for each in options.segments or ()] if options and options.cache == "chunks" else []

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def token_chances(self) -> int | None:
        """How many likeliest tokens to report for each token; None for nothing."""
        return None

    def _biases(self) -> dict[int, float]:
        try:
            return {int(token): bias for token, bias in (self.logit_bias or {}).items()}
        except ValueError as error:
            raise ApiError(400, "logit_bias: its keys must be token ids", param="logit_bias") from error

    def _refuse_options(self, names: tuple[str, ...], why: str) -> None:
        for name in names:
            if self.windlass is not None and getattr(self.windlass, name) is not None:
                raise ApiError(400, f"windlass.{name}: {why}", param=f"windlass.{name}", code="invalid_value")


class ChatRequest(SamplingBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_CHANCES)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None

    def check(self) -> None:
        super().check()
        self._check_tools()
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
        if self.max_tokens == 0:
            raise ApiError(400, "max_tokens: at least 1 is needed", param="max_tokens", code="invalid_value")

    def _check_tools(self) -> None:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ApiError(400, "tools: two have the same name", param="tools", code="invalid_value")
        choice = self.tool_choice
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise ApiError(400, f"tool_choice: no tool {choice.function.name!r}", param="tool_choice")
        if choice == "required" and not names:
            raise ApiError(400, "tool_choice: there are no tools", param="tool_choice", code="invalid_value")
        wanted = self.response_format
        if wanted is not None and wanted.type == "json_schema" and wanted.json_schema is None:
            param = "response_format.json_schema"
            raise ApiError(400, f"{param}: it is missing", param=param, code="invalid_value")
        if wanted is not None and wanted.type != "text" and self.usable_tools:
            raise ApiError(400, "response_format cannot be kept beside tools", param="response_format")

    def check_without_engine(self, model: str) -> None:
        super().check_without_engine(model)
        if self.response_format is not None and self.response_format.type != "text":
            raise ApiError(
                400, f"response_format is not supported by {model}", param="response_format",
                code="unsupported_parameter",
            )  # fmt: skip

    @property
    def usable_tools(self) -> list[Function]:
        """Functions that may be called in this answer."""
        if self.tool_choice == "none":
            return []
        named = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else None
        return [tool.function for tool in self.tools or () if named in (None, tool.function.name)]

    @property
    def may_write_text(self) -> bool:
        """Whether an answer without a call is one."""
        return self.tool_choice in (None, "auto", "none")

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def token_chances(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SamplingBody):
    """`POST /v1/completions`."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_CHOICES)]
        | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MOST_TOKENS)]
        | Annotated[list[list[Annotated[int, Field(ge=0)]]], Field(min_length=1, max_length=MOST_CHOICES)]
    )
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_CHANCES)] | None = None

    def check(self) -> None:
        super().check()
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ApiError(400, f"best_of is less than n, which is {self.n}", param="best_of", code="invalid_value")
        if self.best_of is not None and self.best_of > (self.n or 1) and self.stream:
            raise ApiError(400, "best_of cannot be streamed", param="best_of", code="invalid_value")
        if self.rates_prompt and self.stream:
            raise ApiError(400, "logprobs of a prompt cannot be streamed", param="echo", code="invalid_value")
        if len(self.prompts) * (self.best_of or self.n or 1) > MOST_CHOICES:
            raise ApiError(
                400, f"at most {MOST_CHOICES} answers are made for one call", param="n", code="invalid_value"
            )

    @property
    def rates_prompt(self) -> bool:
        """Whether the chances of the prompt's tokens are wanted, too."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt as it came, text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(part, int) for part in self.prompt):
            return [[part for part in self.prompt if isinstance(part, int)]]
        return [part for part in self.prompt if not isinstance(part, int)]

    @property
    def token_limit(self) -> int | None:
        # What text completions of this API have made since the first of them, when nothing was said.
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def token_chances(self) -> int | None:
        if self.logprobs is None and self.best_of is not None:
            return 0
        return self.logprobs


def conversation(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the model's chat template takes them.

    Raises:
        ApiError: One has content that is not text.
    """
    turns = []
    for place, message in enumerate(messages):
        text = message.text(place)
        # Chat templates of small models know three roles; what a call gave back is told as what somebody said.
        role = {"developer": "system", "tool": "user"}.get(message.role, message.role)
        turns.append({"role": role, "content": f"The call returned: {text}" if message.role == "tool" else text})
    return turns


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
