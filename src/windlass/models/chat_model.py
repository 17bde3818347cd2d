"""The one protocol of a language model that chats, local or remote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable


class ChatModel(Protocol):
    """What retrieval and serving ask of a language model; `LocalModel` and `RemoteModel` are two."""

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may take together."""
        ...

    def count(self, text: str) -> int:
        """Tokens in `text`."""
        ...

    def count_chat(self, messages: Sequence[Mapping[str, str]]) -> int:
        """Tokens of the whole prompt that `messages` make."""
        ...

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[str]:
        """Pieces of the answer, whole characters each, stop strings taken out.

        Raises:
            UsageError: Prompt and answer do not fit the context; never a silent cut.
        """
        ...


class Reply(Protocol):
    """An answer, piece by piece."""

    def __iter__(self) -> Iterator[str]: ...

    @property
    def approximations(self) -> Mapping[str, Mapping[str, float]]:
        """What made it differ from the answer of a full computation, by the name of the option; empty: nothing."""
        ...


@runtime_checkable
class PassageModel(Protocol):
    """A chat model that keeps what it computed for passages, to use it again where they stand in other prompts."""

    def chat_over(
        self, messages: Sequence[Mapping[str, str]], passages: Sequence[str], *, max_tokens: int, seed: int = 0
    ) -> Reply:
        """As `ChatModel.chat`; `passages` are texts that stand in the messages, word for word."""
        ...
