"""Worker processes with a pipe each, so that it is always known who works on what.

A worker is a fresh interpreter, not a fork: a copy of a process with threads, locks and open databases is not one to
work in, and unlike `multiprocessing` nothing of the caller's main script is run again. It ends when its pipe closes,
so none outlives its parent.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

from windlass.core.crew import Outcome, TaskFailed, attempt, shown
from windlass.core.errors import UsageError

_PROGRAM = "import sys; from windlass.core.crew_processes import work; work(int(sys.argv[1]))"


@dataclass(slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    number: int | None = None  # of the item it works on


class Processes:
    """At most `workers` processes, started as items come."""

    def __init__(self, fn: Callable[[Any], Any], workers: int) -> None:
        if getattr(fn, "__module__", "") == "__main__":
            raise UsageError(
                f"{getattr(fn, '__qualname__', fn)} stands in the main script, which workers do not run",
                hint="put the function into a module of its own; or use threads",
            )
        self._fn = _pickled(fn, "the function", "it must stand at the top of a module; or use threads")
        self._most = workers
        self._workers: list[_Worker] = []
        self._queue: deque[tuple[int, bytes]] = deque()
        self._stop = weakref.finalize(self, _stop, self._workers)  # also at exit, when nobody closed us

    def give(self, number: int, item: Any) -> None:
        self._queue.append((number, _pickled(item, f"the item {shown(item)}", "or use threads")))
        self._feed()

    def take(self, seconds: float) -> list[tuple[int, Outcome]]:
        ready = wait([worker.pipe for worker in self._workers], seconds)
        outcomes = [self._read(worker) for worker in list(self._workers) if worker.pipe in ready]
        self._feed()
        return [outcome for outcome in outcomes if outcome is not None]

    def close(self) -> None:
        self._stop()

    def _feed(self) -> None:
        while self._queue:
            idle = next((worker for worker in self._workers if worker.number is None), None)
            if idle is None and len(self._workers) == self._most:
                return
            worker = idle or self._start()
            worker.number, item = self._queue.popleft()
            _send(worker.pipe, item)

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        path = os.pathsep.join(entry for entry in sys.path if entry)
        # The pool is the parallelism: a worker's matrix library must not take all cores as well.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**threads, **os.environ, "PYTHONPATH": path},
                process_group=0,  # Ctrl-C is for the parent, which decides what becomes of the work
            )
        worker = _Worker(process, ours)
        self._workers.append(worker)
        _send(ours, self._fn)
        return worker

    def _read(self, worker: _Worker) -> tuple[int, Outcome] | None:
        try:
            outcome: Outcome = pickle.loads(worker.pipe.recv_bytes())
        except (EOFError, ConnectionResetError):
            outcome = Outcome(error=self._bury(worker))
        number, worker.number = worker.number, None
        return None if number is None else (number, outcome)

    def _bury(self, worker: _Worker) -> TaskFailed:
        worker.pipe.close()
        self._workers.remove(worker)
        code = worker.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        hint = "most often memory ran out: use fewer workers" if code == -signal.SIGKILL else ""
        return TaskFailed(f"a worker process {how}", item=None, hint=hint)


def work(descriptor: int) -> None:
    """The life of a worker process: the function, then items in and outcomes out, until the pipe closes."""
    pipe = Connection(descriptor)
    fn, broken = None, None
    try:
        fn = pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionResetError):
        return
    except Exception as error:
        broken = error
    while True:
        try:
            item = pipe.recv_bytes()
            outcome = Outcome(error=broken) if fn is None else attempt(lambda data: fn(pickle.loads(data)), item)
            pipe.send_bytes(_portable(outcome))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _portable(outcome: Outcome) -> bytes:
    """The outcome as bytes that are known to come apart again on the other side."""
    try:
        data = pickle.dumps(outcome)
        if outcome.error is not None:
            pickle.loads(data)
        return data
    except Exception as error:
        if outcome.error is None:
            reason = f"its result cannot be sent between processes: {type(error).__name__}: {error}"
            return pickle.dumps(Outcome(error=TypeError(reason)))
        reason = f"{type(outcome.error).__name__}: {outcome.error}"
        return pickle.dumps(Outcome(error=RuntimeError(reason), trace=outcome.trace))


def _pickled(value: object, name: str, hint: str) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:
        raise UsageError(f"{name} cannot be sent to another process: {error}", hint=hint) from error


def _send(pipe: Connection, data: bytes) -> None:
    try:
        pipe.send_bytes(data)
    except (BrokenPipeError, ConnectionResetError):
        return  # it has died: its pipe is readable at once, and whoever reads it finds out


def _stop(workers: list[_Worker]) -> None:
    """Let idle workers leave by closing their pipes, kill the busy ones, wait for all."""
    for worker in workers:
        worker.pipe.close()
        if worker.number is not None:
            worker.process.kill()
    for worker in workers:
        try:
            worker.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
    workers.clear()
