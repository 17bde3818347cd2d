"""The event queue: virtual seconds, callbacks in order of time, generators as processes.

    def customer(sim):
        yield 2.0                       # two seconds later
        door = sim.event()
        sim.after(1.0, door.succeed)
        yield door                      # until it fires
        yield AnyOf(door, sim.after(5)) # until the first of them

Entries are ordered by (time, sequence): ties resolve in the order they were made, and two runs with one seed are equal
to the last byte. Nothing here reads a wall clock or a global random state.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from windlass.core.errors import SimulationError, UsageError
from windlass.core.randomness import bits

if TYPE_CHECKING:
    import numpy as np

Steps = Generator[Any, Any, Any]


class Deadlock(SimulationError):
    """Nothing is left to happen and processes still wait.

    Attributes:
        waiting: One line a process: its name, and what it waits for.
    """

    def __init__(self, waiting: list[str]) -> None:
        self.waiting = waiting
        shown = "; ".join(waiting[:5]) + (f"; and {len(waiting) - 5} more" if len(waiting) > 5 else "")
        super().__init__(
            f"deadlock: {len(waiting)} processes wait for what can no longer happen: {shown}",
            hint="look for a receive without a send, a cycle of waits, or a collective that a member never joins",
        )


class Event:
    """Something that happens at most once, with a value or an error. Processes yield it to wait for it."""

    __slots__ = ("_waiting", "done", "error", "name", "sim", "value")

    def __init__(self, sim: Sim, name: str = "") -> None:
        self.sim = sim
        self.name = name
        self.done = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._waiting: list[Callable[[Event], object]] = []

    def succeed(self, value: Any = None) -> None:
        """It happens now. Those who wait go on at this time, after what is already due."""
        self._settle(value, None)

    def fail(self, error: BaseException) -> None:
        """It will not happen; whoever waits for it gets `error` raised."""
        self._settle(None, error)

    def then(self, callback: Callable[[Event], object]) -> None:
        """Call `callback(self)` when it has happened, at once when it already has."""
        if self.done:
            callback(self)
        else:
            self._waiting.append(callback)

    def _settle(self, value: Any, error: BaseException | None) -> None:
        if self.done:
            raise SimulationError(f"event {self.name or hex(id(self))} happened twice", hint="a mistake in a model")
        self.done, self.value, self.error = True, value, error
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback(self)


class Timer(Event):
    """A moment of the virtual clock: calls its function, then is done. Cancelled ones are skipped when due."""

    __slots__ = ("args", "cancelled", "fn", "time")

    def __init__(self, sim: Sim, time: float, fn: Callable[..., object] | None, args: tuple[Any, ...]) -> None:
        super().__init__(sim, "timer")
        self.time, self.fn, self.args, self.cancelled = time, fn, args, False

    def cancel(self) -> None:
        """It will not fire, and whoever waits for it waits forever; nothing when it already fired."""
        self.cancelled = True

    def _fire(self) -> None:
        value = self.fn(*self.args) if self.fn is not None else None
        self.succeed(value)


class AllOf:
    """Waits until every one of `events` has happened; its value is the list of theirs."""

    __slots__ = ("events",)

    def __init__(self, *events: Event) -> None:
        self.events = events


class AnyOf:
    """Waits until the first of `events` has happened; its value is that event."""

    __slots__ = ("events",)

    def __init__(self, *events: Event) -> None:
        if not events:
            raise UsageError("AnyOf nothing never happens", hint="give it events")
        self.events = events


class Process(Event):
    """A running generator. It is an event too: it happens when the generator returns, with what that returned.

    Attributes:
        waits_for: What it yielded last, for the message of a deadlock.
        background: A process that may still wait when all else is over (a server).
    """

    __slots__ = ("_send", "background", "generator", "waits_for")

    def __init__(self, sim: Sim, generator: Steps, name: str, background: bool) -> None:
        super().__init__(sim, name or getattr(generator, "__name__", "process"))
        self.generator, self.background = generator, background
        self.waits_for: Any = None
        self._send = generator.send

    def interrupt(self, error: BaseException) -> None:
        """Raise `error` inside the process, now; what it waited for is forgotten."""
        if not self.done:
            self.sim._forget(self)
            self.sim._resume(self, None, error)


@dataclass(frozen=True, slots=True)
class SimStats:
    """How a run went.

    Attributes:
        events: Entries of the queue that were acted on, in all runs so far.
        now: Virtual seconds.
        pending: Entries that are still due.
    """

    events: int
    now: float
    pending: int


class Sim:
    """A virtual clock with a queue of what is due.

    Args:
        seed: Of every random number drawn through `rng`.

    Example:
        >>> sim = Sim()
        >>> def walk():
        ...     yield 1.5
        ...     yield 2.5
        >>> _ = sim.spawn(walk())
        >>> sim.run().now
        4.0
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.now = 0.0
        # (time, sequence, how to go on, what): a process with its `send`, or None and a Timer or a wake-up.
        self._heap: list[tuple[float, int, Callable[[Any], Any] | None, Any]] = []
        self._tick = itertools.count().__next__
        self._events = 0
        self._running = False
        self._live: dict[Process, None] = {}

    def at(self, t: float, fn: Callable[..., object] | None = None, *args: Any) -> Timer:
        """Call `fn(*args)` at time `t`, seconds; the timer can be waited for and cancelled.

        Raises:
            UsageError: `t` lies in the past, or is not a number.
        """
        if not self.now <= t < math.inf:
            raise UsageError(f"an event at {t} s when it is {self.now} s", hint="times are finite and not in the past")
        timer = Timer(self, t, fn, args)
        self._push(t, timer)
        return timer

    def after(self, dt: float, fn: Callable[..., object] | None = None, *args: Any) -> Timer:
        """Call `fn(*args)` in `dt` seconds; see `at`."""
        return self.at(self.now + dt, fn, *args)

    def event(self, name: str = "") -> Event:
        """A fresh event that somebody will `succeed` or `fail`."""
        return Event(self, name)

    def spawn(self, process: Steps, *, name: str = "", background: bool = False) -> Process:
        """Start a generator as a process, at this time but after what is already due.

        It yields seconds, an `Event` (also a `Timer` or a `Process`), `AllOf` or `AnyOf`, and gets the value of what
        it waited for. An error it does not catch goes to whoever waits for it, or ends `run` when nobody does.
        """
        made = Process(self, process, name, background)
        self._live[made] = None
        self._push(self.now, made, made._send)
        return made

    def run(self, until: float | None = None, max_events: int | None = None) -> SimStats:
        """Let time pass until nothing is due, `until` is reached, or `max_events` more entries were acted on.

        Raises:
            Deadlock: nothing is due any more and processes that are not in the background still wait.
            UsageError: called from inside a process.
        """
        if self._running:
            raise UsageError("a simulation cannot be run from inside itself", hint="yield instead")
        limit = math.inf if until is None else until
        last = math.inf if max_events is None else self._events + max_events
        self._running = True
        try:
            self._loop(limit, last)
        finally:
            self._running = False
        if not self._heap:
            self._check_deadlock()
        if until is not None and not (self._heap and self._heap[0][0] <= limit):
            self.now = max(self.now, limit)
        return SimStats(self._events, self.now, len(self._heap))

    def rng(self, name: str) -> np.random.Generator:
        """A random stream of its own, from the seed and `name`: another consumer never shifts its numbers."""
        import numpy as np

        return np.random.default_rng(bits(self.seed, "sim", name))

    def _push(self, time: float, what: Any, send: Callable[[Any], Any] | None = None) -> None:
        heapq.heappush(self._heap, (time, self._tick(), send, what))

    def _loop(self, limit: float, last: float) -> None:
        # What runs stays at the head of the heap while it runs: whatever it adds sorts behind it, so that a process's
        # next delay replaces it in one sift instead of a pop and a push.
        heap, replace, pop, tick, forever = self._heap, heapq.heapreplace, heapq.heappop, self._tick, math.inf
        events = self._events
        try:
            while heap:
                time, _, send, what = heap[0]
                if time > limit or events >= last:
                    return
                if send is None:
                    pop(heap)
                    if what.__class__ is Timer and what.cancelled:
                        continue  # and no time passes for it
                    self.now = time
                    events += 1
                    if what.__class__ is Timer:
                        what._fire()
                    else:
                        self._resume(*what)
                    continue
                self.now = time
                events += 1
                try:
                    yielded = send(None)
                except BaseException as error:
                    pop(heap)
                    self._end(what, error)
                    continue
                # Comparing the sum refuses negative delays and NaN in one step; endless ones are refused by `_wait`.
                if yielded.__class__ is float and time <= (then := time + yielded) < forever:
                    replace(heap, (then, tick(), send, what))
                else:
                    pop(heap)
                    self._wait(what, yielded)
        finally:
            self._events = events

    def _forget(self, process: Process) -> None:
        # Entries of a process that sleeps are not looked at before it is resumed, which keeps sleeping cheap; so an
        # interrupt, which is rare, looks through the queue.
        process.waits_for = None
        for place, (time, number, send, what) in enumerate(self._heap):
            if what is process or (send is None and what.__class__ is tuple and what[0] is process):
                nothing = Timer(self, time, None, ())
                nothing.cancel()
                self._heap[place] = (time, number, None, nothing)

    def _resume(self, process: Process, value: Any, error: BaseException | None) -> None:
        if process.done:
            return
        try:
            yielded = process._send(value) if error is None else process.generator.throw(error)
        except BaseException as raised:
            self._end(process, raised)
        else:
            self._wait(process, yielded)

    def _end(self, process: Process, reason: BaseException) -> None:
        if isinstance(reason, StopIteration):
            self._finish(process, reason.value, None)
        else:
            self._finish(process, None, reason)

    def _wait(self, process: Process, yielded: Any) -> None:
        if isinstance(yielded, Event):
            process.waits_for = yielded
            yielded.then(lambda event: self._wake(process, yielded, event.value, event.error))
        elif isinstance(yielded, AllOf):
            process.waits_for = yielded
            self._wait_all(process, yielded)
        elif isinstance(yielded, AnyOf):
            process.waits_for = yielded
            for event in yielded.events:
                event.then(lambda first: self._wake(process, yielded, first, first.error))
        elif isinstance(yielded, int | float) and 0 <= yielded < math.inf:
            process.waits_for = yielded
            self._push(self.now + yielded, process, process._send)
        else:
            self._resume(process, None, UsageError(f"a process yielded {yielded!r}", hint="seconds >= 0, or an event"))

    def _wait_all(self, process: Process, joined: AllOf) -> None:
        left = len(joined.events)
        if not left:
            self._wake(process, joined, [], None)

        def one_more(event: Event) -> None:
            nonlocal left
            left -= 1
            if event.error is not None:
                self._wake(process, joined, None, event.error)
            elif not left:
                self._wake(process, joined, [each.value for each in joined.events], None)

        for event in joined.events:
            event.then(one_more)

    def _wake(self, process: Process, reason: Any, value: Any, error: BaseException | None) -> None:
        # A process that was interrupted, or whose AnyOf already fired, no longer waits for this.
        if process.waits_for is reason:
            process.waits_for = None
            self._push(self.now, (process, value, error))

    def _finish(self, process: Process, value: Any, error: BaseException | None) -> None:
        del self._live[process]
        if error is not None and not process._waiting:
            raise error
        process._settle(value, error)

    def _check_deadlock(self) -> None:
        waiting = [f"{each.name} for {_describe(each.waits_for)}" for each in self._live if not each.background]
        if waiting:
            raise Deadlock(waiting)


class SimClock:
    """The virtual clock as a `core.program.Clock`.

    `sleep` lets the simulation run on for so long; it is for a loop that drives the simulation from outside.
    Processes inside it yield their delays instead.
    """

    def __init__(self, sim: Sim) -> None:
        self.sim = sim

    def now(self) -> float:
        return self.sim.now

    def sleep(self, dt: float) -> None:
        self.sim.run(until=self.sim.now + dt)

    def call_later(self, dt: float, fn: Callable[..., object], *args: object) -> Timer:
        return self.sim.after(dt, fn, *args)


def _describe(waited: Any) -> str:
    if isinstance(waited, AllOf | AnyOf):
        word = "all of" if isinstance(waited, AllOf) else "any of"
        return f"{word} {_names(waited.events)}"
    return waited.name or "an event" if isinstance(waited, Event) else repr(waited)


def _names(events: Iterable[Event]) -> str:
    return ", ".join(event.name or "an event" for event in events if not event.done)
