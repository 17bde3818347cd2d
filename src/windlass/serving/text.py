"""The text of an answer while it grows: whole characters, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from windlass.models.generate import StopText


class Detokenizer(Protocol):
    """Tokens to text, never half a character; `models.tokenizer.Detokenizer` is one."""

    def add(self, token: int) -> str: ...

    def finish(self) -> str: ...


class Readable:
    """What may be shown of an answer.

    Args:
        detokenizer: A fresh one.
        stop: Texts that end the answer.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = StopText(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met; nothing is shown after it."""
        return self._stop.met

    def add(self, token: int) -> str:
        """What became readable with `token`."""
        return self._stop.add(self._detokenizer.add(token))

    def finish(self) -> str:
        """What was held back until the end."""
        shown = self._stop.add(self._detokenizer.finish())
        return shown if self._stop.met else shown + self._stop.finish()
