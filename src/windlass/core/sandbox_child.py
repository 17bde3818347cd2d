"""The child's side of `windlass.core.sandbox`: give up rights, then answer calls until the parent is gone."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pickle
import resource
import select
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from windlass.core.errors import ReadError, WindlassError
from windlass.core.sandbox_protocol import (
    FAILURE,
    HEADER,
    RESULT,
    RESULT_BYTES,
    Limits,
    active_limits,
    item_name,
)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
# Allocators reserve address space they never touch; the watch on resident memory is the limit that bites.
_DATA_SLACK_BYTES = 2 << 30


def main(config: dict[str, Any]) -> NoReturn:
    """Serve the parent described by `config`; never returns."""
    _die_with(config["parent"])
    limits = Limits(**config["limits"])
    _give_up_rights()  # before any thread: a user namespace is refused to a process that has two
    threading.Thread(target=_exit_on_hangup, args=(config["reads"],), daemon=True).start()
    active_limits.set(limits)
    try:
        function = _find(config["target"])
    except Exception as error:
        # Whatever a module raises while it is imported, the parent should hear of it, not of a dead child.
        _send(config["writes"], *_failure(error, config["target"]))
        os._exit(1)
    _limit_memory(limits)
    _send(config["writes"], RESULT, b"")
    while (request := _receive(config["reads"])) is not None:
        _send(config["writes"], *_answer(function, pickle.loads(request)))
    os._exit(0)


def echo(value: Any) -> Any:
    """The smallest target there is, for `windlass doctor` and examples."""
    return value


def _find(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _answer(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[bytes, bytes]:
    name = item_name(args)
    try:
        payload = pickle.dumps(function(*args), protocol=pickle.HIGHEST_PROTOCOL)
    except (Exception, SystemExit) as error:
        # The item is at fault, or we are; either way the next item must not suffer.
        return _failure(error, name)
    if len(payload) > RESULT_BYTES:
        too_large = f"{name}: the result is larger than {RESULT_BYTES >> 20} MB"
        return _failure(ReadError(too_large, reason="too-large"), name)
    return RESULT, payload


def _failure(error: BaseException, name: str) -> tuple[bytes, bytes]:
    fields = {"class": type(error).__name__, "reason": "", "hint": ""}
    if isinstance(error, WindlassError):
        fields |= {"what": error.what, "hint": error.hint, "reason": getattr(error, "reason", "")}
    elif isinstance(error, MemoryError):
        fields |= {"class": "ReadError", "what": f"{name}: ran out of memory", "reason": "memory"}
    else:
        what = f"{name}: {type(error).__name__}: {error}"[:1000]
        fields |= {"class": "ReadError", "what": what, "reason": "broken"}
    return FAILURE, json.dumps(fields).encode()


def _receive(descriptor: int) -> bytes | None:
    header = _read_exactly(descriptor, HEADER.size)
    return None if header is None else _read_exactly(descriptor, HEADER.unpack(header)[1])


def _read_exactly(descriptor: int, size: int) -> bytes | None:
    parts = []
    while size:
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _send(descriptor: int, tag: bytes, payload: bytes) -> None:
    os.write(descriptor, HEADER.pack(tag, len(payload)))
    rest = memoryview(payload)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _die_with(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask to be told
        os._exit(1)


def _exit_on_hangup(descriptor: int) -> None:
    """Where there is no parent-death signal: no event but the hang-up of the request pipe ends this wait."""
    poller = select.poll()
    poller.register(descriptor, 0)
    poller.poll()
    os._exit(1)


def _give_up_rights() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(5)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        # Best effort: it needs privilege or user namespaces. The audit hook below holds for Python code
        # always.
        if library.unshare(_CLONE_NEWNET) != 0:
            library.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        # A core limit of 0 does not stop a core handler that the kernel feeds through a pipe; this does.
        library.prctl(_PR_SET_DUMPABLE, 0)
    sys.addaudithook(_refuse_network)


def _refuse_network(event: str, _args: tuple[Any, ...]) -> None:
    if event.startswith("socket.") and event != "socket.__new__":
        raise PermissionError(f"no network in a limited process ({event})")


def _limit_memory(limits: Limits) -> None:
    """A backstop in the kernel for what allocates faster than the parent looks."""
    try:
        with open("/proc/self/status") as file:
            used = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData:"))
    except (OSError, StopIteration):
        return
    ceiling = used + 2 * limits.memory_bytes + _DATA_SLACK_BYTES
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or ceiling < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))
