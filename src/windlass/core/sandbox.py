"""The one limited child process: work on input that may be broken or hostile runs here, never in our own.

A `Sandbox` keeps a few worker processes that import one function and call it again and again. A worker that
passes its time or memory is killed and replaced; the item it was on becomes a `ReadError` and the others go
on. A worker has no network, no terminal, none of our environment, a lower priority, and dies with its
parent. What it sends back is unpickled with a short list of allowed classes, so that a parser that was
taken over cannot take us over.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from windlass.core.errors import Cancelled, UsageError, WindlassError
from windlass.core.progress import Progress, check_cancelled
from windlass.core.sandbox_protocol import Limits, active_limits, item_name
from windlass.core.sandbox_worker import Stopped, Worker, open_answer, stop_error

__all__ = ["Limits", "Sandbox", "active_limits"]

_DEFAULT_LIMITS = Limits()


class Sandbox:
    """Calls one importable function in limited child processes.

    Args:
        target: `"module:function"`, imported in the child. Its arguments and result must pickle; the result
            may hold plain Python values and records (dataclasses, named tuples) of this package.
        workers: How many processes at most; they start when first needed.
        limits: What one call may use.

    Example:
        >>> with Sandbox("windlass.core.sandbox_child:echo", workers=1) as sandbox:
        ...     sandbox.call(("hello",))
        'hello'
    """

    def __init__(self, target: str, *, workers: int | None = None, limits: Limits = _DEFAULT_LIMITS) -> None:
        if workers is None:
            workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
        if workers < 1:
            raise UsageError(f"a sandbox needs at least one worker, not {workers}")
        self.workers = workers
        self._crew = _Crew(target, limits)
        # Not only for tidiness: a sandbox that was forgotten must not hold processes until the parent ends.
        self._finalizer = weakref.finalize(self, _Crew.dismiss, self._crew)

    def start(self, workers: int) -> None:
        """Start some of the workers now, while the caller does something else; if one cannot, the first call tells."""
        self._crew.start(min(workers, self.workers))

    def call(self, args: tuple[Any, ...]) -> Any:
        """The result of `target(*args)`.

        Raises:
            ReadError: reason `timeout`, `memory`, `broken` (crashed, or raised something unforeseen),
                `too-large` (the result); or whatever `WindlassError` the target raised.
        """
        answer: Future[_Outcome] = Future()
        self._submit(_Job(args, answer.set_result, _Batch()))
        outcome = answer.result()
        if isinstance(outcome, _Failure):
            raise outcome.error
        return outcome.value

    def map(self, items: Iterable[tuple[Any, ...]], *, progress: Progress | None = None) -> Iterator[tuple[int, Any]]:
        """Yield `(index, result or WindlassError)` of every item, in the order in which they are done.

        At most two items a worker are taken ahead of what was consumed. `progress` is only asked whether
        the job was cancelled; the caller, who knows what an item is, advances it. Leaving the loop early
        stops the work.

        Raises:
            WindlassError: the workers cannot be started at all.
            Cancelled: `progress` was cancelled.
        """
        done: queue.SimpleQueue[tuple[int, _Outcome]] = queue.SimpleQueue()
        batch = _Batch()
        numbered = enumerate(items)
        pending, exhausted = 0, False
        try:
            while True:
                while not exhausted and pending < 2 * self.workers:
                    index, args = next(numbered, (-1, None))
                    if args is None:
                        exhausted = True
                        break
                    self._submit(_Job(args, _numbered_delivery(done, index), batch))
                    pending += 1
                if pending == 0:
                    return
                index, outcome = _next_done(done, progress)
                pending -= 1
                if isinstance(outcome, _Failure):
                    if outcome.fatal:
                        raise outcome.error
                    yield index, outcome.error
                else:
                    yield index, outcome.value
        finally:
            batch.abandoned = True

    def close(self) -> None:
        """Kill the workers. Calls that are under way end with `Cancelled`. May be called twice."""
        self._finalizer()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(self, job: _Job) -> None:
        self._crew.submit(job, self.workers)


@dataclass(slots=True)
class _Batch:
    """The jobs of one `map`: when its consumer walks away, they are not worth finishing."""

    abandoned: bool = False


@dataclass(slots=True)
class _Result:
    value: Any


@dataclass(slots=True)
class _Failure:
    error: WindlassError
    fatal: bool = False  # no worker can be started: the next item would fare no better


_Outcome = _Result | _Failure


@dataclass(slots=True)
class _Job:
    args: tuple[Any, ...]
    deliver: Callable[[_Outcome], None]
    batch: _Batch

    @property
    def name(self) -> str:
        return item_name(self.args)


def _numbered_delivery(done: queue.SimpleQueue[tuple[int, _Outcome]], index: int) -> Callable[[_Outcome], None]:
    return lambda outcome: done.put((index, outcome))


def _next_done(done: queue.SimpleQueue[tuple[int, _Outcome]], progress: Progress | None) -> tuple[int, _Outcome]:
    if progress is None:
        return done.get()
    while True:
        check_cancelled(progress)
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=0.1)


class _Crew:
    """Threads that each own one worker process and take jobs from one queue.

    Threads, because a consumer that is slow to take results must neither delay the clock of a worker nor
    starve it. One thread owns one process from start to end, because Linux sends the parent-death signal
    when the *thread* that started the process ends. They are daemons, so that they never hold up the
    program's exit.
    """

    def __init__(self, target: str, limits: Limits) -> None:
        self._target = target
        self._limits = limits
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        # Reentrant: the garbage collector may dismiss the crew from inside any allocation.
        self._lock = threading.RLock()
        self._threads: list[threading.Thread] = []
        self._outstanding = 0
        self._closed = False

    def submit(self, job: _Job, most_threads: int) -> None:
        with self._lock:
            if self._closed:
                raise UsageError("this sandbox is closed", hint="open a new one")
            self._outstanding += 1
            if self._outstanding > len(self._threads) < most_threads:
                self._hire(at_once=False)
            self._jobs.put(job)

    def start(self, threads: int) -> None:
        with self._lock:
            while len(self._threads) < threads and not self._closed:
                self._hire(at_once=True)

    def _hire(self, *, at_once: bool) -> None:
        thread = threading.Thread(target=self._serve, args=(at_once,), name=f"sandbox {self._target}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def dismiss(self) -> None:
        with self._lock:
            self._closed = True
            threads = list(self._threads)
            for _ in threads:
                self._jobs.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(timeout=5)

    def _serve(self, at_once: bool) -> None:
        worker: Worker | None = None
        try:
            if at_once:
                with contextlib.suppress(Stopped, WindlassError):  # the first job will meet and report it
                    worker = Worker(self._target, self._limits, lambda: self._closed)
            while (job := self._jobs.get()) is not None:
                outcome, worker = self._perform(job, worker)
                with self._lock:
                    self._outstanding -= 1
                job.deliver(outcome)
        finally:
            if worker is not None:
                worker.kill()

    def _perform(self, job: _Job, worker: Worker | None) -> tuple[_Outcome, Worker | None]:
        """Run one job; the worker comes back only if it is fit for another."""

        def unwanted() -> bool:
            return self._closed or job.batch.abandoned

        stopped = _Failure(Cancelled(f"{job.name}: stopped before it was done"))
        if unwanted():
            return stopped, worker
        try:
            request = pickle.dumps(job.args, protocol=pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            # Pickling calls code of the arguments, which may raise anything.
            return _Failure(UsageError(f"{job.name}: arguments cannot be sent to a worker: {error}")), worker
        if worker is None or not worker.alive:
            try:
                worker = Worker(self._target, self._limits, unwanted)
            except Stopped:
                return stopped, None
            except WindlassError as error:
                return _Failure(error, fatal=True), None
        try:
            tag, payload = worker.exchange(request, self._limits.seconds, unwanted)
        except Stopped as stop:
            worker.kill()
            if not stop.why:
                return stopped, None
            return _Failure(stop_error(stop, worker, job.name, self._limits)), None
        outcome = _opened(tag, payload, job.name)
        if worker.swollen:
            worker.kill()
            return outcome, None
        return outcome, worker


def _opened(tag: bytes, payload: bytes, name: str) -> _Outcome:
    try:
        return _Result(open_answer(tag, payload, name))
    except WindlassError as error:
        return _Failure(error)
