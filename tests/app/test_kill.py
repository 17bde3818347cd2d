"""`windlass up` killed, interrupted, crowded and starved: the next run goes on and ends where it would have ended."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import windlass
from tests.children import Child, quick_folder
from tests.direct_sandbox import DirectSandbox
from tests.index_content import Rows, check_no_unused_vectors, check_whole, content, rows
from tests.retrieval.test_indexing import CountingEncoder, StopsAt
from windlass.app import lift as lift_module
from windlass.app.lift import keep_up, lift
from windlass.core.progress import Silent
from windlass.core.workspace import Workspace
from windlass.lake import scan as scan_module
from windlass.lake.walk import hash_file
from windlass.retrieval import embedding, indexing
from windlass.retrieval.pipeline import IndexReport, Pipeline


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "windlass.app.cli", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    source = str(Path(windlass.__file__).parents[1])
    no_models = {"WINDLASS_MODELS_ENCODER": "none", "WINDLASS_MODELS_DECODER": "none"}
    return {**os.environ, "PYTHONPATH": source, **no_models, **more}


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=listen_to_ctrl_c,
    )


def listen_to_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would our child."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        command(*arguments), **{"env": environment(), "capture_output": True, "text": True, "timeout": 100, **options}
    )


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll; the test's own time limit ends it."""
    while not condition():
        time.sleep(0.01)


def has_locked(process: subprocess.Popen[str], folder: Path) -> bool:
    """To try the lock would be to hold it for a moment, and turn the process away."""
    lock = folder / ".windlass" / "lock"
    return process.poll() is not None or (lock.exists() and lock.read_text().strip() == str(process.pid))


def is_dead(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def one_line(text: str) -> str:
    (line,) = text.splitlines()
    assert line.startswith("windlass: ")
    return line


def write(folder: Path, chance: random.Random, number: int) -> None:
    words = " ".join(chance.choice(("ship", "berth", "tide", "crane")) + str(chance.randint(0, 50)) for _ in range(300))
    if number % 5 == 4:
        lines = "".join(f"{n},{chance.randint(0, 99)}\n" for n in range(20))
        (folder / f"{number}.csv").write_text(f"call,berth\n{lines}")
    else:
        (folder / f"{number}.md").write_text(f"# Notice {number}\n\n{words}.\n\n## More\n\n{words[::-1]}.\n")


def fill(folder: Path, chance: random.Random, files: int = 30) -> None:
    for number in range(files):
        write(folder, chance, number)
    shutil.copy(folder / "3.md", folder / "twin.md")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing")


def disturb(folder: Path, chance: random.Random) -> None:
    for number in chance.sample(range(30), 4):
        write(folder, chance, number)
    present = sorted(folder.glob("*.md"))
    chance.choice(present).unlink()
    chance.choice([path for path in present if path.exists()]).rename(folder / f"renamed {chance.random()}.md")


def lift_once(folder: Path, dies_at: int = 0) -> Callable[[Callable[[str], None]], None]:
    """A run that says how many statements it gave to the database, or is killed at one of them."""
    count = 0

    def traced(_: str) -> None:
        nonlocal count
        count += 1
        if count == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        connection = sqlite3.dbapi2.connect(*args, **options)
        connection.set_trace_callback(traced)
        return connection

    def work(say: Callable[[str], None]) -> None:
        sqlite3.connect = connect  # type: ignore[assignment]  # we are a process of our own
        with Pipeline.open(folder, encoder=CountingEncoder(), model=None) as pipeline:
            lift(pipeline, Silent(), offline=True)
        say(str(count))

    return work


def reference(folder: Path, target: Path) -> dict[str, Rows]:
    """What an uninterrupted run makes of the same files."""
    shutil.copytree(folder, target, ignore=lambda _, names: [name for name in names if name == ".windlass"])
    with Pipeline.open(target, encoder=CountingEncoder(), model=None) as pipeline:
        lift(pipeline, Silent(), offline=True)
        return content(pipeline.workspace)


@pytest.fixture
def many_commits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in a long run: every file and every few passages are a commit, so a kill falls between two of them."""
    monkeypatch.setattr(scan_module, "_COMMIT_EVERY", 3)
    monkeypatch.setattr(indexing, "_COMMIT_SECONDS", 0.0)
    monkeypatch.setattr(embedding, "_BATCH", 4)
    monkeypatch.setattr(indexing, "Sandbox", DirectSandbox)
    yield


def done_work(workspace: Workspace) -> set[tuple[str, str]]:
    """(path, hash) of files that are read, as far as their files are as they were."""
    known = rows(workspace, "SELECT path, content_hash FROM files WHERE state IN ('parsed', 'indexed')")
    return {
        (path, digest)
        for path, digest in known
        if (file := workspace.folder / path).exists() and hash_file(os.fsencode(file), path).content_hash == digest
    }


def check_kills(base: Path, points: int) -> None:
    """Half of the runs die at a moment, half at a statement: between two of them is where a mistake would show."""
    folder = base / "folder"
    folder.mkdir()
    chance = random.Random(points)
    fill(folder, chance)
    kept: set[tuple[str, str]] = set()
    statements, span, killed = 300, 0.5, 0
    for point in range(points):
        dies_at = chance.randrange(20, statements) if point % 2 else 0
        began = time.monotonic()
        with Child(lift_once(folder, dies_at)) as child:
            if point % 2 == 0:
                time.sleep(chance.uniform(0, span))
                said = child.kill()
            else:
                said = child.wait()[1]
        killed += said == []
        if said:
            statements, span = int(said[0]), time.monotonic() - began
        with Workspace.open(folder) as workspace:
            check_whole(workspace)
            assert kept <= done_work(workspace), "work that was acknowledged is gone"
            disturb(folder, chance)
            kept = done_work(workspace)
    assert killed >= points // 4
    with Pipeline.open(folder, encoder=CountingEncoder(), model=None) as pipeline:
        lift(pipeline, Silent(), offline=True)
        assert content(pipeline.workspace) == reference(folder, base / "reference")
        check_whole(pipeline.workspace)
        check_no_unused_vectors(pipeline.workspace)


def test_twenty_kills_at_any_moment(many_commits: None) -> None:
    with quick_folder() as base:
        check_kills(base, 20)


@pytest.mark.slow
def test_two_hundred_kills_at_any_moment(many_commits: None) -> None:
    with quick_folder() as base:
        check_kills(base, 200)


def check_killed_command(base: Path, points: int) -> None:
    """The real command and its whole process tree, readers included."""
    folder = base / "folder"
    folder.mkdir()
    chance = random.Random(points)
    fill(folder, chance, 30)
    for _ in range(points):
        process = start("up", folder, "--no-web", "--offline")
        tree = psutil.Process(process.pid)
        wait_for(lambda tree=tree: is_dead(tree) or len(tree.children(recursive=True)) > 0)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.5))
        children = [] if is_dead(tree) else tree.children(recursive=True)
        process.kill()
        process.communicate()
        wait_for(lambda children=children: all(is_dead(child) for child in children))  # type: ignore[misc]
        with Workspace.open(folder) as workspace:
            check_whole(workspace)
        disturb(folder, chance)
    finished = run("up", folder, "--no-web", "--offline")
    assert finished.returncode == 0, finished.stderr
    copy = base / "copy"
    shutil.copytree(folder, copy, ignore=lambda _, names: [name for name in names if name == ".windlass"])
    assert run("up", copy, "--no-web", "--offline").returncode == 0
    with Workspace.open(folder) as workspace, Workspace.open(copy) as uninterrupted:
        assert content(workspace) == content(uninterrupted)


def test_a_killed_command_takes_its_readers_along(tmp_path: Path) -> None:
    check_killed_command(tmp_path, 1)


@pytest.mark.slow
def test_twenty_killed_commands(tmp_path: Path) -> None:
    check_killed_command(tmp_path, 20)


def test_ctrl_c_ends_at_once_with_one_line(tmp_path: Path) -> None:
    """In the middle of a sparse terabyte, which would take an hour."""
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "a.txt").write_text("small")
    process = start("up", tmp_path, "--no-web", "--offline")
    wait_for(lambda: has_locked(process, tmp_path))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert "stopped" in one_line(err)
    with Workspace.open(tmp_path) as workspace, workspace.acquire():
        check_whole(workspace)


def test_a_second_up_is_told_who_is_at_work(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")

    def hold(say: Callable[[str], None]) -> None:
        with Workspace.open(tmp_path) as workspace, workspace.acquire():
            say("held")
            signal.pause()

    with Child(hold) as child:
        assert child.line() == "held"
        os.kill(child.pid, signal.SIGSTOP)
        second = run("up", tmp_path, "--no-web", "--offline")
        assert second.returncode == 3
        assert f"pid {child.pid}" in one_line(second.stderr)


def test_a_current_folder_that_was_removed(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.txt").write_text("words")
    for folder, status in ((".", 2), ("below", 2), (tmp_path / "files", 0)):
        gone = tmp_path / "gone"
        gone.mkdir()
        shell = ["sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", *command("up", folder, "--no-web", "--offline")]
        result = subprocess.run(shell, cwd=gone, env=environment(), capture_output=True, text=True, timeout=100)
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
        if status:
            one_line(result.stderr)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_in_one_line_and_the_next_run_goes_on(small_disk: Path) -> None:
    ballast = small_disk / "ballast.bin"
    ballast.write_bytes(os.urandom(1_500_000))
    fill(small_disk, random.Random(0), 30)
    full = run("up", small_disk, "--no-web", "--offline")
    assert full.returncode == 1, full.stderr
    assert "space" in one_line(full.stderr)
    ballast.unlink()
    again = run("up", small_disk, "--no-web", "--offline")
    assert again.returncode == 0, again.stderr
    with Workspace.open(small_disk) as workspace:
        check_whole(workspace)
        assert rows(workspace, "SELECT count(*) FROM files WHERE state = 'parsed'") == [(31,)]


# --- keeping up


def test_a_folder_that_changes_while_it_is_lifted(tmp_path: Path, many_commits: None) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    chance = random.Random(3)
    fill(folder, chance)
    stop = threading.Event()

    def change() -> None:
        while not stop.wait(0.02):
            disturb(folder, chance)

    noise = threading.Thread(target=change)
    noise.start()
    with Pipeline.open(folder, encoder=CountingEncoder(), model=None) as pipeline:
        try:
            for _ in range(3):
                lift(pipeline, Silent(), offline=True)
                check_whole(pipeline.workspace)
        finally:
            stop.set()
            noise.join()
        lift(pipeline, Silent(), offline=True)
        assert content(pipeline.workspace) == reference(folder, tmp_path / "reference")


class Watcher:
    """`keep_up` in a thread, without a file watcher unless asked for."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.reports: list[IndexReport] = []
        self.errors: list[Exception] = []
        self._stop = threading.Event()
        options = {"on_change": self.reports.append, "on_error": self.errors.append}
        self._thread = threading.Thread(target=keep_up, args=(pipeline, Silent(), self._stop), kwargs=options)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def test_a_change_that_nobody_watched_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It happened while passages were embedded: no event will ever tell of it."""
    import watchfiles

    monkeypatch.setattr(watchfiles, "watch", lambda *_, stop_event, **__: iter(stop_event.wait, True))
    with Pipeline.open(tmp_path, encoder=None, model=None) as pipeline:
        pipeline.index()
        (tmp_path / "late.txt").write_text("words")
        with Watcher(pipeline) as watcher:
            wait_for(lambda: bool(watcher.reports))
        assert watcher.reports[0].delta.added == ["late.txt"]


def test_a_change_waits_for_a_locked_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lift_module, "_RETRY_SECONDS", 0.02)
    (tmp_path / "a.txt").write_text("words")
    with Pipeline.open(tmp_path, encoder=None, model=None) as pipeline:
        with Workspace.open(tmp_path) as other, other.acquire():
            watcher = Watcher(pipeline)
            watcher.__enter__()
            time.sleep(0.1)
            assert watcher.reports == []
        wait_for(lambda: bool(watcher.reports))
        (tmp_path / "b.txt").write_text("more")
        wait_for(lambda: len(watcher.reports) > 1)
        watcher.__exit__()
    assert [report.delta.added for report in watcher.reports] == [["a.txt"], ["b.txt"]]
    assert watcher.errors == []


def test_a_folder_that_goes_away_is_reported_and_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive = tmp_path / "drive"
    drive.mkdir()
    (drive / "a.txt").write_text("words")
    with Pipeline.open(drive, state=tmp_path / "state", encoder=None, model=None) as pipeline:
        pipeline.index()
        drive.rename(tmp_path / "unplugged")
        with pytest.raises(Exception, match="cannot be listed"):
            pipeline.index()
        assert [info.path for info in pipeline.files()] == ["a.txt"]


def test_a_cancelled_lift_keeps_what_was_finished(tmp_path: Path, many_commits: None) -> None:
    from windlass.core.errors import Cancelled

    fill(tmp_path, random.Random(4))
    with Pipeline.open(tmp_path, encoder=CountingEncoder(), model=None) as pipeline:
        with pytest.raises(Cancelled):
            lift(pipeline, StopsAt("read", 10), offline=True)
        assert done_work(pipeline.workspace)
        check_whole(pipeline.workspace)
