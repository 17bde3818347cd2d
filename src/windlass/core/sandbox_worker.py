"""The parent's side of one worker of `windlass.core.sandbox`: start it, talk to it, watch it, kill it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from windlass.core import errors
from windlass.core.errors import ReadError, WindlassError
from windlass.core.sandbox_protocol import HEADER, RESULT, RESULT_BYTES, Limits

START_SECONDS = 60.0
_LOOK_MILLISECONDS = 30
_BOOT = (
    "import json, sys; config = json.loads(sys.argv[1]); sys.path[:] = config['path']; "
    "from windlass.core.sandbox_child import main; main(config)"
)
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
_PLAIN_CLASSES = {
    "builtins": {"bytearray", "complex", "frozenset", "range", "set", "slice"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
}


@dataclass
class Stopped(Exception):
    """A worker did not answer. `why` is a reason of `ReadError`, or empty when nobody wants the answer."""

    why: str = ""


class Worker:
    """One child process and the two pipes to it. Used by one thread only."""

    def __init__(self, target: str, limits: Limits, unwanted: Callable[[], bool]) -> None:
        import psutil

        if not sys.executable:
            raise WindlassError("no Python interpreter to start a worker with", hint="set sys.executable")
        child_reads, self._request = os.pipe()
        self._answer, child_writes = os.pipe()
        os.set_blocking(self._request, False)
        config = {
            "path": sys.path,
            "target": target,
            "limits": asdict(limits),
            "parent": os.getpid(),
            "reads": child_reads,
            "writes": child_writes,
        }
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT, json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(child_reads, child_writes),
                start_new_session=True,
                env=_child_environment(),
            )
        except OSError as error:
            os.close(self._request)
            os.close(self._answer)
            raise WindlassError(f"a worker process cannot be started: {error}") from error
        finally:
            os.close(child_reads)
            os.close(child_writes)
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(self._answer, fcntl.F_SETPIPE_SZ, 1 << 20)
        self._memory_limit = limits.memory_bytes
        try:
            self._watched = psutil.Process(self._process.pid)
            tag, payload = self.exchange(b"", START_SECONDS, unwanted, watch_memory=False)
            self._idle_bytes = int(self._watched.memory_info().rss)
        except (Stopped, psutil.Error) as error:
            self.kill()
            if isinstance(error, Stopped) and not error.why:
                raise
            raise WindlassError(f"the worker for {target} did not start: {error}") from error
        if tag != RESULT:
            self.kill()
            raise WindlassError(f"the worker for {target} did not start: {json.loads(payload)['what']}")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def swollen(self) -> bool:
        """True when so much memory stayed in use that the next item would be blamed for it."""
        return self._grown() > self._memory_limit // 2

    def exchange(
        self, request: bytes, seconds: float, unwanted: Callable[[], bool], *, watch_memory: bool = True
    ) -> tuple[bytes, bytes]:
        """Send `request` (when not empty), wait for tag and payload of the answer, watch clock and memory."""
        deadline = time.monotonic() + seconds
        unsent = memoryview(HEADER.pack(RESULT, len(request)) + request) if request else memoryview(b"")
        answer = bytearray()
        poller = select.poll()
        poller.register(self._answer, select.POLLIN)
        if unsent:
            poller.register(self._request, select.POLLOUT)
        next_look = time.monotonic() + _LOOK_MILLISECONDS / 1000
        while True:
            for descriptor, _event in poller.poll(_LOOK_MILLISECONDS):
                if descriptor == self._request:
                    unsent = self._send(unsent)
                    if not unsent:
                        poller.unregister(self._request)
                elif self._receive(answer):
                    return bytes(answer[:1]), bytes(memoryview(answer)[HEADER.size :])
            now = time.monotonic()
            if now > deadline:
                raise Stopped("timeout")
            if unwanted():
                raise Stopped
            if watch_memory and now >= next_look:
                if self._grown() > self._memory_limit:
                    raise Stopped("memory")
                next_look = now + _LOOK_MILLISECONDS / 1000

    def kill(self) -> None:
        """End the process and whatever it started, and release the pipes. May be called twice."""
        if self._request >= 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            os.close(self._request)
            os.close(self._answer)
            self._request = self._answer = -1

    def cause_of_death(self) -> tuple[str, str]:
        """A reason of `ReadError` and a phrase for a process that ended by itself; call after `kill`."""
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "memory", "was killed by the system, which was probably out of memory"
        if code < 0:
            return "broken", f"crashed the reader ({signal.Signals(-code).name})"
        return "broken", f"ended the reader (exit code {code})"

    def _send(self, unsent: memoryview) -> memoryview:
        try:
            return unsent[os.write(self._request, unsent) :]
        except BlockingIOError:
            return unsent
        except OSError as error:
            raise self._gone() from error

    def _receive(self, answer: bytearray) -> bool:
        """Read what is there; true once the answer is whole."""
        chunk = os.read(self._answer, 1 << 20)
        if not chunk:
            raise self._gone()
        answer += chunk
        if len(answer) < HEADER.size:
            return False
        expected = HEADER.unpack_from(answer)[1]
        if expected > RESULT_BYTES:
            raise Stopped("too-large")
        return len(answer) >= HEADER.size + int(expected)

    def _gone(self) -> Stopped:
        # The pipe closes a moment before the exit code is there; without it we would read our own kill.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        return Stopped("gone")

    def _grown(self) -> int:
        import psutil

        try:
            return int(self._watched.memory_info().rss) - self._idle_bytes
        except psutil.Error:
            return 0


def _child_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    # One item, one core: workers are the parallelism, and idle thread pools cost memory in each of them.
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_IO_THREADS")
    return kept | dict.fromkeys(threads, "1")


def stop_error(stop: Stopped, worker: Worker, name: str, limits: Limits) -> ReadError:
    if stop.why == "timeout":
        return ReadError(f"{name}: took longer than {limits.seconds:g} s and was stopped", reason="timeout")
    if stop.why == "memory":
        size = limits.memory_bytes >> 20
        return ReadError(f"{name}: needed more than {size} MB of memory and was stopped", reason="memory")
    if stop.why == "too-large":
        return ReadError(f"{name}: the result is larger than {RESULT_BYTES >> 20} MB", reason="too-large")
    reason, phrase = worker.cause_of_death()
    return ReadError(f"{name}: {phrase}", reason=reason)


def open_answer(tag: bytes, payload: bytes, name: str) -> Any:
    """The result in an answer, or raise the `WindlassError` in it; `ReadError` for one that is neither."""
    try:
        if tag == RESULT:
            return _PlainUnpickler(io.BytesIO(payload)).load()
        error = _rebuilt_error(json.loads(payload))
    except Exception as damage:
        # A damaged or forged answer may raise anything at all; none of it is more than a broken item.
        raise ReadError(f"{name}: the worker's answer cannot be read: {damage}", reason="broken") from damage
    raise error


def _rebuilt_error(fields: dict[str, str]) -> WindlassError:
    kind = getattr(errors, fields["class"], WindlassError)
    if kind is ReadError:
        return ReadError(fields["what"], reason=fields["reason"], hint=fields["hint"])
    if not (isinstance(kind, type) and issubclass(kind, WindlassError)):
        kind = WindlassError
    return kind(fields["what"], hint=fields["hint"])


class _PlainUnpickler(pickle.Unpickler):
    """Builds only plain values and records of this package: a pickle may name any callable on the machine."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _PLAIN_CLASSES.get(module, ()):
            return super().find_class(module, name)
        if module.startswith("windlass.") and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and (is_dataclass(found) or issubclass(found, tuple)):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not a record a worker may send")
