"""Who does the work of a `TaskPool`: the contract, and the workers that need no other process."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from windlass.core.errors import WindlassError


class TaskFailed(WindlassError):
    """The function raised something unexpected on one item, or its worker died.

    Attributes:
        item: The item.
    """

    def __init__(self, what: str, *, item: object, hint: str = "") -> None:
        self.item = item
        super().__init__(what, hint=hint)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: its result, or what was raised with the traceback as text."""

    result: Any = None
    error: BaseException | None = None
    trace: str = ""


class Crew(Protocol):
    """Workers of one kind. Items are numbered by the caller, outcomes come back in any order."""

    def give(self, number: int, item: Any) -> None:
        """Queue an item; never blocks."""

    def take(self, seconds: float) -> list[tuple[int, Outcome]]:
        """The outcomes that are there within `seconds`; may be empty."""

    def close(self) -> None:
        """Stop. What is still running is abandoned; processes are killed."""


def attempt(fn: Callable[[Any], Any], item: Any) -> Outcome:
    """`fn(item)`, or what it raised."""
    try:
        return Outcome(result=fn(item))
    except Exception as error:
        return Outcome(error=error, trace=traceback.format_exc())


def shown(item: object) -> str:
    """The item as a message names it."""
    text = repr(item)
    return text if len(text) <= 200 else text[:197] + "..."


class Serial:
    """Works when asked for outcomes, in the caller's own thread."""

    def __init__(self, fn: Callable[[Any], Any]) -> None:
        self._fn = fn
        self._queue: list[tuple[int, Any]] = []

    def give(self, number: int, item: Any) -> None:
        self._queue.append((number, item))

    def take(self, seconds: float) -> list[tuple[int, Outcome]]:
        number, item = self._queue.pop(0)
        return [(number, attempt(self._fn, item))]

    def close(self) -> None:
        self._queue.clear()


class Threads:
    def __init__(self, fn: Callable[[Any], Any], workers: int) -> None:
        self._fn = fn
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="windlass-task")
        self._futures: dict[Future[Outcome], int] = {}

    def give(self, number: int, item: Any) -> None:
        self._futures[self._pool.submit(attempt, self._fn, item)] = number

    def take(self, seconds: float) -> list[tuple[int, Outcome]]:
        finished, _ = wait(self._futures, timeout=seconds, return_when=FIRST_COMPLETED)
        return [(self._futures.pop(future), future.result()) for future in finished]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
