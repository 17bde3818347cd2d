"""One protocol by which long work tells how far it is, and hears that it should stop.

The command line (Rich), the web page and the tests implement it; libraries only call it.
"""

from __future__ import annotations

from typing import Protocol

from windlass.core.errors import Cancelled


class Progress(Protocol):
    """Receives the events of one job. Calls are cheap and may come from any thread."""

    def start(self, stage: str, total: int | None, unit: str) -> None:
        """A stage begins. `total` is the number of units, `None` when unknown."""

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        """`done` more units of `stage` are finished; `detail` names the current one (a path, a table)."""

    def finish(self, stage: str) -> None:
        """The stage is over. May be called for a stage that never started."""

    @property
    def cancelled(self) -> bool:
        """True once somebody asked the job to stop."""
        ...


class Silent:
    """A `Progress` that shows nothing and remembers whether it was cancelled.

    Example:
        >>> progress = Silent()
        >>> progress.cancel()
        >>> progress.cancelled
        True
    """

    def __init__(self) -> None:
        self._cancelled = False

    def start(self, stage: str, total: int | None, unit: str) -> None:
        pass

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        pass

    def finish(self, stage: str) -> None:
        pass

    def cancel(self) -> None:
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        return self._cancelled


def check_cancelled(progress: Progress) -> None:
    """Raise `Cancelled` when `progress` was cancelled; called between units of work."""
    if progress.cancelled:
        raise Cancelled("stopped", hint="what was finished is kept; run the same command again to go on")
