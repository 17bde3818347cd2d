"""Several engines behind one door: which of them gets a request."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

from windlass.core.errors import UsageError
from windlass.serving.async_engine import AsyncEngine
from windlass.serving.engine import Engine, EngineStats, RequestHandle
from windlass.serving.request import Request


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What a dispatcher may know of a replica: how many requests it has, and how its engine stands."""

    outstanding: int
    stats: EngineStats


class Dispatcher(Protocol):
    """Chooses a replica. As a scheduler, it reads no clock and does no I/O."""

    def choose(self, request: Request, replicas: Items[ReplicaState], now: float) -> int: ...


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: Request, replicas: Items[ReplicaState], now: float) -> int:
        chosen = self._next % len(replicas)
        self._next = chosen + 1
        return chosen


class LeastOutstanding:
    """Who has the fewest requests."""

    def choose(self, request: Request, replicas: Items[ReplicaState], now: float) -> int:
        return min(range(len(replicas)), key=lambda index: replicas[index].outstanding)


class PrefixAffinity:
    """Who computed the longest beginning of the same prompt before, unless it has much more to do than the others.

    Args:
        page_tokens: Prompts are compared in steps of so many tokens.
        slack: Requests that it may have more than the least busy one.
        remembered: Beginnings that are remembered; the oldest are forgotten.
    """

    def __init__(self, *, page_tokens: int = 16, slack: int = 8, remembered: int = 65_536) -> None:
        self._page_tokens, self._slack, self._remembered = page_tokens, slack, remembered
        self._known: dict[tuple[str, str | None, bytes], int] = {}

    def choose(self, request: Request, replicas: Items[ReplicaState], now: float) -> int:
        keys = [
            (request.tenant, request.adapter, request.prompt[:end].tobytes()) for end in self._ends(len(request.prompt))
        ]
        least = min(range(len(replicas)), key=lambda index: replicas[index].outstanding)
        known = next((self._known[key] for key in reversed(keys) if key in self._known), least)
        busy = known >= len(replicas) or replicas[known].outstanding > replicas[least].outstanding + self._slack
        chosen = least if busy else known
        for key in keys:
            self._known.pop(key, None)
            self._known[key] = chosen
        while len(self._known) > self._remembered:
            del self._known[next(iter(self._known))]
        return chosen

    def _ends(self, length: int) -> list[int]:
        """Doubling steps: few keys a prompt, and long shared beginnings are still told from short ones."""
        ends, end = [], self._page_tokens
        while end <= length:
            ends.append(end)
            end *= 2
        return ends


class Router:
    """Several replicas of one model as one.

    Args:
        replicas: Engines, each with a scheduler and memory of its own.
        dispatcher: Chooses among them.

    Raises:
        UsageError: there are none.
    """

    def __init__(self, replicas: Items[Engine | AsyncEngine], dispatcher: Dispatcher | None = None) -> None:
        if not replicas:
            raise UsageError("a router needs at least one replica")
        self.replicas = list(replicas)
        self.dispatcher = dispatcher or LeastOutstanding()
        self._outstanding: list[dict[str, RequestHandle]] = [{} for _ in replicas]

    def submit(self, request: Request, now: float = 0.0) -> RequestHandle:
        """Give a request to the replica that the dispatcher chooses; raises what that one raises."""
        chosen = self.dispatcher.choose(request, self.states(), now)
        handle = self.replicas[chosen].submit(request)
        self._outstanding[chosen][request.id] = handle
        return handle

    def cancel(self, request_id: str) -> bool:
        """End a request; False when it is not under way."""
        return any(
            replica.cancel(request_id)
            for replica, known in zip(self.replicas, self._outstanding, strict=True)
            if request_id in known
        )

    def states(self) -> list[ReplicaState]:
        """How the replicas stand."""
        states = []
        for index, replica in enumerate(self.replicas):
            live = {name: handle for name, handle in self._outstanding[index].items() if not handle.done}
            self._outstanding[index] = live
            states.append(ReplicaState(len(live), replica.snapshot()))
        return states
