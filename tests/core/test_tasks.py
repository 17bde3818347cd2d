import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from windlass.core.errors import Cancelled, ReadError, UsageError
from windlass.core.progress import Silent
from windlass.core.tasks import TaskFailed, TaskPool, usable_cores

WORK = """
import os, signal, sys, threading, time
from windlass.core.errors import ReadError

def square(x):
    return x * x

def slow_when_even(x):
    time.sleep(0.05 if x % 2 == 0 else 0.0)
    return x

def picky(x):
    if x == 3:
        raise ValueError("three is odd")
    return x

def unreadable(x):
    raise ReadError("broken.pdf cannot be read", reason="encrypted", hint="unlock it")

class Strange(Exception):
    def __init__(self, first, second):
        super().__init__(first)
        self.second = second

def strange(x):
    raise Strange("left", threading.Lock())

def closure(x):
    return lambda: x

def die(x):
    if x == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

def leave(x):
    sys.exit(7)

def who(x):
    time.sleep(0.02)
    return os.getpid()

def sleep(x):
    time.sleep(3600)

def length(data):
    return len(data)

def big(x):
    return bytes(x)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    (tmp_path / "task_work.py").write_text(WORK, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import task_work

    yield task_work
    del sys.modules["task_work"]


LOCAL = ["serial", "threads", "processes"]


@pytest.mark.parametrize("kind", LOCAL)
def test_results_come_in_the_order_of_the_items(kind, work):
    pool = TaskPool(kind, workers=2)
    assert list(pool.map(work.square, range(30))) == [x * x for x in range(30)]
    assert list(pool.map(work.slow_when_even, [4, 1, 6, 3])) == [4, 1, 6, 3]
    assert list(pool.map(work.square, [])) == []


@pytest.mark.parametrize("kind", LOCAL)
def test_only_a_window_of_items_is_drawn_ahead(kind, work):
    drawn = 0

    def items():
        nonlocal drawn
        for x in range(10_000):
            drawn += 1
            yield x

    results = TaskPool(kind, workers=2).map(work.square, items())
    assert drawn == 0
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert drawn <= 3 + 2 * 4
    results.close()


@pytest.mark.parametrize("kind", LOCAL)
def test_a_failure_names_the_item(kind, work):
    results = TaskPool(kind, workers=2).map(work.picky, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(TaskFailed, match=r"picky failed on 3: ValueError: three is odd") as caught:
        next(results)
    assert caught.value.item == 3
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_failure_in_another_process_keeps_its_traceback(work):
    with pytest.raises(TaskFailed) as caught:
        list(TaskPool("processes", workers=1).map(work.picky, [3]))
    assert 'raise ValueError("three is odd")' in "".join(caught.value.__notes__)


@pytest.mark.parametrize("kind", LOCAL)
def test_our_own_errors_come_out_as_they_are(kind, work):
    with pytest.raises(ReadError) as caught:
        list(TaskPool(kind, workers=2).map(work.unreadable, ["broken.pdf"]))
    assert (caught.value.reason, caught.value.hint) == ("encrypted", "unlock it")
    assert caught.value.__notes__ == ["while unreadable worked on 'broken.pdf'"]


def test_an_exception_that_cannot_travel_is_still_told(work):
    with pytest.raises(TaskFailed, match="strange failed on 0: RuntimeError: Strange: left"):
        list(TaskPool("processes", workers=1).map(work.strange, [0]))


def test_a_result_that_cannot_travel_is_told(work):
    with pytest.raises(TaskFailed, match="closure failed on 5: TypeError: its result cannot be sent"):
        list(TaskPool("processes", workers=1).map(work.closure, [5]))


def test_a_killed_worker_is_named_with_its_item_and_the_pool_goes_on(work):
    pool = TaskPool("processes", workers=2)
    with pytest.raises(TaskFailed, match=r"killed by SIGKILL while die worked on 2; .*fewer workers") as caught:
        list(pool.map(work.die, range(6)))
    assert caught.value.item == 2
    with pytest.raises(TaskFailed, match="exited with status 7 while leave worked on 0"):
        list(pool.map(work.leave, [0]))
    assert list(pool.map(work.square, [1, 2, 3])) == [1, 4, 9]


def test_processes_are_as_many_as_asked_and_none_remains(work):
    pids = set(TaskPool("processes", workers=2).map(work.who, range(8)))
    assert len(pids) == 2 and os.getpid() not in pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_items_and_results_larger_than_a_pipe(work):
    pool = TaskPool("processes", workers=2)
    assert list(pool.map(work.length, [bytes(3_000_000)] * 4)) == [3_000_000] * 4
    assert [len(data) for data in pool.map(work.big, [3_000_000] * 4)] == [3_000_000] * 4


@pytest.mark.parametrize("kind", ["processes", "serial"])
def test_cancelling_stops_even_a_stuck_worker(kind, work):
    progress = Silent()
    if kind == "serial":
        results = TaskPool(kind).map(work.square, range(5), progress=progress)
        assert next(results) == 0
        progress.cancel()
    else:
        results = TaskPool(kind, workers=2).map(work.sleep, range(5), progress=progress)
        threading.Timer(0.3, progress.cancel).start()
    with pytest.raises(Cancelled):
        next(results)


def test_leaving_early_kills_the_workers(work):
    results = TaskPool("processes", workers=2).map(work.who, range(1000))
    pid = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


class Recorder(Silent):
    def __init__(self):
        super().__init__()
        self.events = []

    def start(self, stage, total, unit):
        self.events.append(("start", stage, total, unit))

    def advance(self, stage, done=1, detail=""):
        self.events.append(("advance", stage))

    def finish(self, stage):
        self.events.append(("finish", stage))


def test_progress_is_told(work):
    known, hinted = Recorder(), Recorder()
    list(TaskPool("serial").map(work.square, [1, 2], progress=known))
    advance = ("advance", "square")
    assert known.events == [("start", "square", 2, "items"), advance, advance, ("finish", "square")]
    list(TaskPool("serial").map(work.square, iter([1]), size_hint=1, progress=hinted))
    assert hinted.events[0] == ("start", "square", 1, "items")


def test_what_makes_no_sense_is_refused(work):
    with pytest.raises(UsageError, match="unknown kind of task pool 'gpu'"):
        TaskPool("gpu")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="0 workers"):
        TaskPool("threads", workers=0)
    with pytest.raises(UsageError, match="cannot be sent to another process"):
        list(TaskPool("processes").map(lambda x: x, [1]))
    with pytest.raises(UsageError, match="the item <unlocked"):
        list(TaskPool("processes").map(work.square, [threading.Lock()]))
    assert TaskPool().workers == usable_cores()
    assert TaskPool("serial", workers=8).workers == 1


def run_script(tmp_path, body, **options):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(body), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=environment, **options
    )


def test_an_unguarded_script_works_and_leaves_no_process(tmp_path, work):
    done = run_script(
        tmp_path,
        """
        import task_work
        from windlass.core.tasks import TaskPool
        print("main runs")
        results = TaskPool("processes", workers=2).map(task_work.who, range(100))
        print(next(results))
        """,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[:2] == ["main", "runs"] and len(lines) == 3, "the main script ran once"
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines[2]), 0)


def test_a_function_of_the_main_script_is_refused_with_advice(tmp_path):
    done = run_script(
        tmp_path,
        """
        from windlass.core.tasks import TaskPool
        def double(x):
            return 2 * x
        list(TaskPool("processes").map(double, [1]))
        """,
    )
    assert "double stands in the main script" in done.stderr and "module of its own" in done.stderr


def test_workers_end_when_their_parent_is_killed(tmp_path, work):
    done = run_script(
        tmp_path,
        """
        import os, signal, task_work
        from windlass.core.tasks import TaskPool
        results = TaskPool("processes", workers=1).map(task_work.who, iter(range(10_000)))
        print(next(results), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    pid = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent by 10 s")


def test_without_ray_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'windlass\[cluster\]'"):
        list(TaskPool("ray").map(abs, [1]))


@pytest.mark.slow
def test_ray_does_the_same_work(work, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    pool = TaskPool("ray", workers=2)
    assert list(pool.map(work.square, range(20))) == [x * x for x in range(20)]
    with pytest.raises(TaskFailed, match="picky failed on 3: ValueError"):
        list(pool.map(work.picky, range(6)))
    with pytest.raises(TaskFailed, match="a Ray worker failed") as caught:
        list(pool.map(work.die, [2]))
    assert caught.value.item == 2
    assert list((tmp_path / "home").iterdir()) == [], "nothing was written into the home folder"
