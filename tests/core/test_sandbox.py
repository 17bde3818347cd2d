"""The limited child process: every cap is hit for real, and the item after the bad one still works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import windlass
from windlass.core.errors import Cancelled, NotFound, ReadError, UsageError, WindlassError
from windlass.core.progress import Silent
from windlass.core.sandbox import Limits, Sandbox

TARGETS = """
import ctypes, os, socket, sys, time
from windlass.core.errors import NotFound, ReadError
from windlass.core.sandbox import active_limits
from windlass.lake.document import Block

def act(what, value=None):
    return globals()[what](value)

def give(value): return value
def sleep(seconds): time.sleep(seconds); return "woke"
def spin(_):
    while True: pass
def hog(size):
    held = bytearray(size)
    for i in range(0, size, 4096): held[i] = 1
    time.sleep(20)
def grab(size): return len(bytearray(size))
def crash(_): ctypes.string_at(0)
def leave(code): sys.exit(code)
def vanish(code): os._exit(code)
def noise(_):
    print("NOISE"); print("NOISE", file=sys.stderr); os.write(2, b"NOISE"); return sys.stdin.read()
def raise_read(_): raise ReadError("a.pdf: locked", reason="encrypted", hint="open it first")
def raise_missing(_): raise NotFound("no such thing", hint="look again")
def raise_other(_): raise KeyError("surprise")
def recurse(_): return recurse(_)
def big(size): return bytes(size)
def record(_): return Block("heading", 1, 2, level=3)
def connect(_): socket.create_connection(("127.0.0.1", 9), timeout=1)
def raw_connect(_):
    library = ctypes.CDLL(None, use_errno=True)
    handle = library.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    address = (2).to_bytes(2, "little") + (9).to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)
    library.connect(handle, address, 16)
    return os.strerror(ctypes.get_errno())
class Forged:
    def __reduce__(self): return (os.system, ("touch " + os.environ["HOME"] + "/owned",))
def forge(_): return Forged()
def limits(_): return active_limits.get()
def environment(_): return dict(os.environ)
def pid(_): return os.getpid()
def core(_):
    import resource
    return resource.getrlimit(resource.RLIMIT_CORE)
def spawn(_):
    import subprocess
    child = subprocess.Popen(["sleep", "60"])
    with open(os.environ["HOME"] + "/grandchild", "w") as file: file.write(str(child.pid))
    time.sleep(60)
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "sandbox_targets.py").write_text(TARGETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return "sandbox_targets:act"


def failure(sandbox: Sandbox, *args: object) -> WindlassError:
    with pytest.raises(WindlassError) as caught:
        sandbox.call(args)
    return caught.value


def reason(sandbox: Sandbox, *args: object) -> str:
    error = failure(sandbox, *args)
    assert isinstance(error, ReadError)
    return error.reason


def wait_for(condition: Callable[[], bool]) -> bool:
    for _ in range(400):
        if condition():
            return True
        time.sleep(0.025)
    return False


def running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_results_errors_and_records_cross_the_border(target: str) -> None:
    with Sandbox(target, workers=1) as sandbox:
        assert sandbox.call(("give", {"a": (1, 2.5, None, {3})})) == {"a": (1, 2.5, None, {3})}
        assert sandbox.call(("record",)).level == 3
        locked = failure(sandbox, "raise_read")
        assert isinstance(locked, ReadError)
        assert (str(locked), locked.reason) == ("a.pdf: locked; open it first", "encrypted")
        missing = failure(sandbox, "raise_missing")
        assert type(missing) is NotFound and missing.hint == "look again"
        assert sandbox.call(("limits",)) == Limits()
        assert sandbox.call(("core",)) == (0, 0)


def test_unforeseen_errors_keep_the_worker(target: str) -> None:
    with Sandbox(target, workers=1) as sandbox:
        before = sandbox.call(("pid",))
        for what, sign in [
            ("raise_other", "KeyError"),
            ("leave", "SystemExit"),
            ("recurse", "RecursionError"),
        ]:
            error = failure(sandbox, what)
            assert isinstance(error, ReadError) and error.reason == "broken" and sign in str(error)
        assert sandbox.call(("pid",)) == before


@pytest.mark.parametrize(
    ("what", "value", "expected"),
    [
        ("sleep", 60, "timeout"),
        ("spin", None, "timeout"),
        ("hog", 200 << 20, "memory"),
        ("grab", 1 << 40, "memory"),
        ("crash", None, "broken"),
        ("vanish", 3, "broken"),
    ],
)
def test_caps_kill_the_worker_and_the_next_item_works(target: str, what: str, value: int | None, expected: str) -> None:
    limits = Limits(seconds=0.7 if expected == "timeout" else 30.0, memory_bytes=64 << 20)
    with Sandbox(target, workers=1, limits=limits) as sandbox:
        error = failure(sandbox, what, value)
        assert isinstance(error, ReadError) and error.reason == expected and what in str(error)
        assert sandbox.call(("give", 7)) == 7


def test_a_killed_worker_takes_its_children_along(target: str, tmp_path: Path) -> None:
    with Sandbox(target, workers=1, limits=Limits(seconds=1)) as sandbox:
        assert reason(sandbox, "spawn") == "timeout"
    grandchild = int((tmp_path / "grandchild").read_text())
    assert wait_for(lambda: not running(grandchild))


def test_results_that_are_too_large_are_refused(target: str) -> None:
    with Sandbox(target, workers=1, limits=Limits(memory_bytes=2 << 30)) as sandbox:
        assert len(sandbox.call(("big", 9 << 20))) == 9 << 20
        assert reason(sandbox, "big", 257 << 20) == "too-large"


def test_a_forged_result_is_never_run(target: str, tmp_path: Path) -> None:
    with Sandbox(target, workers=1) as sandbox:
        error = failure(sandbox, "forge")
        assert "not a record a worker may send" in str(error)
        assert not (tmp_path / "owned").exists()
        assert sandbox.call(("give", 1)) == 1


def test_no_network_no_secrets_no_noise(
    target: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WINDLASS_KEY", "secret")
    with Sandbox(target, workers=1) as sandbox:
        assert "no network" in str(failure(sandbox, "connect"))
        # Refused where the kernel gave us a network namespace of our own to be alone in, or nobody listens.
        assert sandbox.call(("raw_connect",)) in ("Network is unreachable", "Connection refused")
        assert "WINDLASS_KEY" not in sandbox.call(("environment",))
        assert sandbox.call(("noise",)) == ""
    assert "NOISE" not in "".join(capfd.readouterr())


def test_map_yields_every_item_once_and_bad_ones_stop_nothing(target: str) -> None:
    bad: dict[int, tuple[object, ...]] = {
        5: ("crash", None),
        17: ("raise_read", None),
        30: ("hog", 300 << 20),
        31: ("raise_other", 0),
    }
    items = [bad.get(i, ("give", i)) for i in range(60)]
    with Sandbox(target, workers=3, limits=Limits(memory_bytes=64 << 20)) as sandbox:
        pairs = list(sandbox.map(items))
    assert sorted(index for index, _ in pairs) == list(range(60))
    for index, outcome in pairs:
        assert isinstance(outcome, ReadError) if index in bad else outcome == index


def test_map_takes_only_a_few_items_ahead(target: str) -> None:
    taken = 0

    def items() -> Iterator[tuple[object, ...]]:
        nonlocal taken
        for i in range(1000):
            taken += 1
            yield ("give", i)

    with Sandbox(target, workers=2) as sandbox:
        results = sandbox.map(items())
        for _ in range(10):
            next(results)
        assert 10 <= taken <= 10 + 4


def test_cancelling_stops_the_work(target: str) -> None:
    progress = Silent()
    with Sandbox(target, workers=1) as sandbox:
        threading.Timer(0.5, progress.cancel).start()
        with pytest.raises(Cancelled):
            list(sandbox.map([("sleep", 100)] * 3, progress=progress))
        assert sandbox.call(("give", 2)) == 2  # only free once the abandoned sleep was killed


def test_calls_from_many_threads(target: str) -> None:
    answers: list[int] = []
    with Sandbox(target, workers=2) as sandbox:

        def one(i: int) -> None:
            answers.append(sandbox.call(("give", i)))

        threads = [threading.Thread(target=one, args=(i,)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(answers) == list(range(20))


def test_close_ends_what_is_running_and_refuses_more(target: str) -> None:
    sandbox = Sandbox(target, workers=1)
    sandbox.call(("give", 0))
    caught: list[WindlassError] = []
    thread = threading.Thread(target=lambda: caught.append(failure(sandbox, "sleep", 100)))
    thread.start()
    time.sleep(0.2)
    sandbox.close()
    sandbox.close()
    thread.join()
    assert isinstance(caught[0], Cancelled)
    with pytest.raises(UsageError, match="closed"):
        sandbox.call(("give", 0))


def test_bad_targets_and_arguments_are_named(target: str) -> None:
    with Sandbox("no_such_module:read", workers=1) as sandbox:
        with pytest.raises(WindlassError, match="no_such_module"):
            sandbox.call(())
        with pytest.raises(WindlassError, match="no_such_module"):
            list(sandbox.map([()] * 100))
    with pytest.raises(UsageError, match="at least one worker"):
        Sandbox(target, workers=0)
    with Sandbox(target, workers=1) as sandbox:
        assert "cannot be sent" in str(failure(sandbox, lambda: None))
        assert sandbox.call(("give", "still here")) == "still here"


def test_started_workers_wait_for_the_first_call(target: str) -> None:
    def children() -> set[int]:
        return {child.pid for child in psutil.Process().children()}

    before = children()
    with Sandbox(target, workers=3) as sandbox:
        sandbox.start(2)
        assert wait_for(lambda: len(children() - before) == 2)
        started = children() - before
        assert sandbox.call(("pid",)) in started
        assert children() - before == started
    assert children() == before
    with Sandbox(target, workers=2) as sandbox:
        sandbox.start(2)  # closed while they start
    assert children() == before
    with Sandbox("no_such_module:read", workers=1) as sandbox:
        sandbox.start(2)
        with pytest.raises(WindlassError, match="no_such_module"):
            sandbox.call(())


def test_a_forgotten_sandbox_releases_its_processes(target: str) -> None:
    sandbox = Sandbox(target, workers=1)
    pid = sandbox.call(("pid",))
    del sandbox
    assert wait_for(lambda: not running(pid))


PARENT = """
import sys, threading, time
sys.path.insert(0, {folder!r})
from windlass.core.sandbox import Sandbox
sandbox = Sandbox("sandbox_targets:act", workers=2)
print(sandbox.call(("pid",)), flush=True)
threading.Thread(target=lambda: list(sandbox.map([("spin",)] * 2)), daemon=True).start()
time.sleep(0.5)
print("ready", flush=True)
{end}
"""


@pytest.mark.parametrize("end", ["time.sleep(100)", "raise KeyboardInterrupt", "sys.exit(0)"])
def test_workers_end_with_their_parent(target: str, tmp_path: Path, end: str) -> None:
    program = textwrap.dedent(PARENT).format(folder=str(tmp_path), end=end)
    source = str(Path(windlass.__path__[0]).parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": source},
    )
    assert parent.stdout is not None
    workers = {int(parent.stdout.readline())}
    workers |= {child.pid for child in psutil.Process(parent.pid).children(recursive=True)}
    assert parent.stdout.readline() == b"ready\n"
    if "sleep" in end:
        parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=60)
    parent.stdout.close()
    assert wait_for(lambda: not any(running(pid) for pid in workers))
