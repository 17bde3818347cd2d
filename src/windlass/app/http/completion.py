"""What comes out of a model for one call, whoever made it: pieces while it is made, the whole at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token and how likely the model found it.

    Attributes:
        text: What it stands for; broken UTF-8 as U+FFFD, control tokens by their names.
        bytes: Its part of the answer's UTF-8.
        logprob: Natural logarithm; None for the first of a prompt.
        top: The likeliest tokens at its place, itself not necessarily among them.
    """

    text: str
    bytes: bytes
    logprob: float | None
    top: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """More of the choice `index`."""

    index: int
    text: str
    tokens: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of one of the caller's functions; `arguments` is the text of a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One whole answer.

    `finish` is `stop`, `length` or `tool_calls`; `tokens` are there when they were asked for, as is `prompt`, of which
    nothing says how likely the first is.
    """

    index: int
    text: str
    finish: str
    tokens: tuple[TokenChance, ...] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    prompt: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """Everything about a finished call. `extra` goes beside the choices."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def usage(self) -> dict[str, int]:
        """The usage object of the API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Call(Protocol):
    """A call that is under way."""

    def cancel(self) -> None:
        """Nobody wants it any more. May be called at any time and from any thread, also when it is over."""

    def when_done(self, tell: Callable[[], object]) -> None:
        """Call `tell` once it is over, in whatever way and thread; at once when it is over already."""

    def pieces(self, silence: float) -> AsyncIterator[Piece | None]:
        """The text so far, then more as it comes; None after every `silence` seconds without any."""
        ...

    async def result(self) -> Completion:
        """The whole.

        Raises:
            Cancelled: It was cancelled. Else whatever went wrong.
        """
        ...


class CallAround:
    """A call that gives out otherwise what another one makes: that one is cancelled, and done, with it."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def cancel(self) -> None:
        self._call.cancel()

    def when_done(self, tell: Callable[[], object]) -> None:
        self._call.when_done(tell)
