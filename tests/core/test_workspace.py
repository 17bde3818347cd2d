"""The workspace: versions, one writer, full disks, damage, and a writer that is killed again and again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.children import Child, as_nobody, folder_of_somebody_else, quick_folder
from windlass.core import schema, storage
from windlass.core.errors import NotFound, StorageError, UsageError, WindlassError, WorkspaceError, WorkspaceLocked
from windlass.core.workspace import FORMAT_VERSION, Workspace, mark_changed, repair

INSERT_FILE = (
    "INSERT INTO files (path, size, mtime_ns, ctime_ns, inode, scanned_ns, state) VALUES (?, 1, 1, 1, 1, 1, 'seen')"
)


def hold_lock(folder: Path) -> Callable[[Callable[[str], None]], None]:
    def work(say: Callable[[str], None]) -> None:
        with Workspace.open(folder) as workspace, workspace.acquire():
            say("held")
            signal.pause()

    return work


def add_files(workspace: Workspace, *paths: str) -> None:
    with workspace.transaction() as connection:
        connection.executemany(INSERT_FILE, [(path,) for path in paths])
        mark_changed(connection)


def paths_of(workspace: Workspace) -> list[str]:
    with workspace.reading() as connection:
        return [row[0] for row in connection.execute("SELECT path FROM files ORDER BY path")]


def fill(workspace: Workspace, rows: int = 200) -> None:
    """Enough of everything for damage to hit something."""
    with workspace.transaction() as connection:
        for number in range(rows):
            text = f"passage {number} of a long story about harbours and tides " * 5
            connection.execute(
                "INSERT INTO documents (id, content_hash, kind, reader_version, title, characters, faithful, warnings,"
                " text) VALUES (?, ?, 'text', 1, 'title', 10, 1, '[]', ?)",
                (number + 1, f"{number:064x}", text.encode()),
            )
            connection.execute(INSERT_FILE, (f"file {number}",))
            connection.execute(
                "UPDATE files SET document_id = ?, state = 'parsed' WHERE path = ?", (number + 1, f"file {number}")
            )
            connection.execute(
                "INSERT INTO chunks (document_id, kind, start, end, heading, text, text_hash) VALUES"
                " (?, 'prose', 0, 10, 'heading', ?, ?)",
                (number + 1, text, number.to_bytes(16, "big")),
            )
            connection.execute("INSERT INTO embeddings VALUES ('e', ?, ?)", (number.to_bytes(16, "big"), bytes(768)))
        mark_changed(connection)


def read_everything(workspace: Workspace) -> None:
    with workspace.reading() as connection:
        for table in ("documents", "files", "tables", "chunks", "embeddings", "counters"):
            connection.execute(f"SELECT * FROM {table}").fetchall()
        connection.execute("SELECT rowid FROM lexical WHERE lexical MATCH 'harbour'").fetchall()


# --- opening


def test_a_new_workspace_has_every_table_and_nothing_in_it(tmp_path: Path) -> None:
    assert not Workspace.exists(tmp_path)
    with Workspace.open(tmp_path) as workspace:
        assert Workspace.exists(tmp_path)
        assert workspace.generation() == 0
        assert workspace.check_integrity() == []
        read_everything(workspace)
        with workspace.reading() as connection:
            assert connection.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION
            assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert workspace.state.stat().st_mode & 0o077 == 0


def test_what_is_not_a_folder_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotFound, match="no such folder"):
        Workspace.open(tmp_path / "missing")
    with pytest.raises(UsageError, match="is a file"):
        Workspace.open(tmp_path / "file")
    with pytest.raises(WindlassError):
        Workspace.open(tmp_path / ("n" * 300))
    with pytest.raises(WindlassError):
        Workspace.open(tmp_path / "file" / "below")
    for name in ("missing", "file", "n" * 300):
        assert not Workspace.exists(tmp_path / name)


def test_a_removed_current_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for folder in (".", "below"):
        with pytest.raises(NotFound):
            Workspace.open(folder)
        assert not Workspace.exists(folder)


def test_a_newer_manifest_is_refused(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        storage.write_manifest(workspace.state / "manifest.json", FORMAT_VERSION + 1, {})
    with pytest.raises(WorkspaceError, match="newer windlass"):
        Workspace.open(tmp_path)


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace, workspace.acquire(), workspace.transaction() as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    before = (tmp_path / ".windlass/workspace.sqlite").read_bytes()
    with pytest.raises(WorkspaceError, match="newer windlass"):
        Workspace.open(tmp_path)
    assert (tmp_path / ".windlass/workspace.sqlite").read_bytes() == before


def test_an_older_schema_is_migrated_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Workspace.open(tmp_path) as workspace, workspace.acquire():
        add_files(workspace, "kept")
    steps = schema.STEPS
    monkeypatch.setattr(schema, "VERSION", len(steps) + 1)
    monkeypatch.setattr(schema, "STEPS", (*steps, "CREATE TABLE new (a);\nINSERT INTO nowhere VALUES (1);"))
    with pytest.raises(WindlassError):
        Workspace.open(tmp_path)
    monkeypatch.setattr(schema, "STEPS", (*steps, "CREATE TABLE new (a);"))
    with Workspace.open(tmp_path) as workspace:
        assert paths_of(workspace) == ["kept"]
        with workspace.reading() as connection:
            assert connection.execute("SELECT * FROM new").fetchall() == []


def test_several_processes_make_one_workspace(tmp_path: Path) -> None:
    for round_ in range(4):
        folder = tmp_path / str(round_)
        folder.mkdir()
        children = [Child(lambda say, folder=folder: Workspace.open(folder).generation()) for _ in range(4)]  # type: ignore[misc]
        assert [child.wait()[0] for child in children] == [0, 0, 0, 0]
        with Workspace.open(folder) as workspace:
            assert workspace.check_integrity() == []


@pytest.mark.parametrize("lifted_before", [False, True])
def test_the_state_of_a_read_only_folder_lies_elsewhere(lifted_before: bool) -> None:
    with folder_of_somebody_else(0o755) as base:
        if lifted_before:
            Workspace.open(base / "files").close()
            (base / "files" / ".windlass").chmod(0o555)
        (base / "files").chmod(0o555)

        def work(say: Callable[[str], None]) -> None:
            as_nobody()
            os.environ["XDG_STATE_HOME"] = str(base / "home")
            with Workspace.open(base / "files") as workspace, workspace.acquire():
                add_files(workspace, "a")
                assert Workspace.exists(base / "files")
                say(str(workspace.state))

        with Child(work) as child:
            status, lines = child.wait()
        assert status == 0
        assert lines[0].startswith(str(base / "home"))


def test_an_unreadable_folder_is_refused_in_words() -> None:
    with folder_of_somebody_else(0o000) as base:

        def work(say: Callable[[str], None]) -> None:
            as_nobody()
            for folder in (base / "files", base / "files" / "below"):
                try:
                    Workspace.open(folder)
                except WindlassError as error:
                    say(str(error))

        with Child(work) as child:
            status, lines = child.wait()
        assert status == 0
        assert len(lines) == 2 and all("cannot be read" in line for line in lines)


# --- one writer


def test_a_second_process_is_told_who_writes_and_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace, Child(hold_lock(tmp_path)) as child:
        assert child.line() == "held"
        with pytest.raises(WorkspaceLocked, match=rf"pid {child.pid}\b"), workspace.acquire():
            pass
        with pytest.raises(WorkspaceError, match="lock"), workspace.transaction():
            pass
        assert paths_of(workspace) == []
        child.kill()
        with workspace.acquire():
            add_files(workspace, "a")


def test_a_stopped_holder_is_named_at_once_and_does_not_stop_readers(tmp_path: Path) -> None:
    def work(say: Callable[[str], None]) -> None:
        with Workspace.open(tmp_path) as workspace, workspace.acquire(), workspace.transaction() as connection:
            connection.execute(INSERT_FILE, ("not committed",))
            say("writing")
            signal.pause()

    with Workspace.open(tmp_path) as workspace, workspace.acquire():
        add_files(workspace, "a")
    with Child(work) as child, Workspace.open(tmp_path) as workspace:
        assert child.line() == "writing"
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(WorkspaceLocked, match=str(child.pid)), workspace.acquire():
            pass
        assert paths_of(workspace) == ["a"]
        os.kill(child.pid, signal.SIGCONT)
        child.kill()
        assert paths_of(workspace) == ["a"]


def test_the_holder_keeps_its_lock_when_another_thread_is_refused(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace, workspace.acquire():
        with pytest.raises(WorkspaceLocked, match="this process"), workspace.acquire():
            pass
        add_files(workspace, "a")
        assert paths_of(workspace) == ["a"]


def test_a_child_that_was_started_meanwhile_does_not_inherit_the_lock(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        with workspace.acquire():
            sleeper = subprocess.Popen(["sleep", "60"], close_fds=False)
        try:
            with workspace.acquire():
                pass
        finally:
            sleeper.kill()
            sleeper.wait()


def test_state_that_vanished_is_a_storage_error(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        shutil.rmtree(workspace.state)
        with pytest.raises(StorageError, match="lock"), workspace.acquire():
            pass


def test_a_transaction_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace, workspace.acquire():
        add_files(workspace, "a")
        with pytest.raises(KeyboardInterrupt), workspace.transaction() as connection:
            connection.execute(INSERT_FILE, ("b",))
            raise KeyboardInterrupt
        with pytest.raises(sqlite3.IntegrityError), workspace.transaction() as connection:
            connection.execute(INSERT_FILE, ("c",))
            connection.execute(INSERT_FILE, ("a",))
        assert paths_of(workspace) == ["a"]


def test_readers_see_one_state_while_a_writer_goes_on(tmp_path: Path) -> None:
    """Every commit keeps the number of files equal to the generation; no reader may ever see otherwise."""
    torn: list[tuple[int, int]] = []
    looks = 0
    done = threading.Event()

    with Workspace.open(tmp_path) as workspace:

        def read() -> None:
            nonlocal looks
            while not done.is_set():
                with workspace.reading() as connection:
                    count = connection.execute("SELECT count(*) FROM files").fetchone()[0]
                    time.sleep(0.001)
                    generation = workspace.generation()
                looks += 1
                if count != generation:
                    torn.append((count, generation))

        readers = [threading.Thread(target=read) for _ in range(3)]
        for reader in readers:
            reader.start()
        with workspace.acquire():
            for number in range(60):
                add_files(workspace, str(number))
        done.set()
        for reader in readers:
            reader.join()
        assert not torn and looks
        assert workspace.generation() == 60


def test_connections_of_ended_threads_are_closed(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        for _ in range(30):
            thread = threading.Thread(target=workspace.generation)
            thread.start()
            thread.join()
        assert len(os.listdir("/proc/self/fd")) < before + 10


# --- full disks


def test_a_full_database_is_a_storage_error_and_the_old_state_stands(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace, workspace.acquire():
        add_files(workspace, "a")
        with workspace.reading() as connection:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages + 2}")
        with pytest.raises(StorageError, match=r"workspace\.sqlite.*full"):
            add_files(workspace, *[f"long name {number}" * 20 for number in range(1_000)])
        assert paths_of(workspace) == ["a"]
        assert workspace.check_integrity() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("may not mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_a_storage_error_and_the_old_state_stands(small_disk: Path) -> None:
    with Workspace.open(small_disk) as workspace, workspace.acquire():
        add_files(workspace, "a")
        name = workspace.objects.put(b"kept")
        ballast = small_disk / "ballast"
        with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        with pytest.raises(StorageError, match="full"):
            workspace.objects.put(bytes(100_000))
        with pytest.raises(StorageError, match=r"workspace\.sqlite"):
            add_files(workspace, *[f"long name {number}" * 20 for number in range(1_000)])
        assert paths_of(workspace) == ["a"]
        assert workspace.objects.get(name) == b"kept"
    with pytest.raises(StorageError):
        Workspace.open(small_disk, state=small_disk / "another")
    with Workspace.open(small_disk) as workspace:  # a full disk does not hinder readers, nor the lock
        assert paths_of(workspace) == ["a"]
        with workspace.acquire():
            ballast.unlink()
            add_files(workspace, "b")
        assert paths_of(workspace) == ["a", "b"]
        assert workspace.check_integrity() == []


# --- damage


def damage(database: Path, how: str, chance: random.Random) -> None:
    data = bytearray(database.read_bytes())
    if how == "flipped":
        for _ in range(chance.randint(1, 30)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif how == "header":
        data[chance.randrange(100)] ^= 1 << chance.randrange(8)
    elif how == "block":
        at = chance.randrange(len(data))
        data[at : at + 4096] = chance.randbytes(4096)
    elif how == "truncated":
        del data[chance.randrange(len(data)) :]
    elif how == "empty":
        data.clear()
    elif how == "garbage":
        data = bytearray(chance.randbytes(20_000))
    database.write_bytes(data)


@pytest.mark.parametrize("how", ["flipped", "header", "block", "truncated", "empty", "garbage", "wal"])
def test_a_damaged_database_is_never_a_bare_error(tmp_path: Path, how: str) -> None:
    """Whatever happens is ours and says what to do; `repair` clears the way for a new index."""
    chance = random.Random(how)
    master = tmp_path / "master"
    master.mkdir()
    with Workspace.open(master) as workspace, workspace.acquire():
        fill(workspace)
    noticed = 0
    for number in range(1 if how == "empty" else 12):
        folder = tmp_path / str(number)
        shutil.copytree(master, folder)
        database = folder / ".windlass/workspace.sqlite"
        if how == "wal":
            database.with_name("workspace.sqlite-wal").write_bytes(chance.randbytes(50_000))
        else:
            damage(database, how, chance)
        try:
            with Workspace.open(folder) as workspace:
                read_everything(workspace)
                found = workspace.check_integrity()
        except WindlassError as error:
            assert isinstance(error, WorkspaceError | StorageError) and error.hint
            assert "workspace.sqlite" in str(error)
            found = [str(error)]
        noticed += bool(found)
        aside = repair(folder)
        assert (aside is not None) == bool(found), found
        with Workspace.open(folder) as workspace, workspace.acquire():
            assert workspace.check_integrity() == []
            if aside is not None:
                assert (aside / "workspace.sqlite").exists()
                fill(workspace, 3)
    if how in ("empty", "garbage", "truncated", "block"):
        assert noticed


def test_a_lost_or_empty_database_is_reported_and_not_taken_for_a_new_one(tmp_path: Path) -> None:
    for loss in (Path.unlink, lambda path: path.write_bytes(b"")):
        with Workspace.open(tmp_path) as workspace, workspace.acquire():
            fill(workspace, 3)
        loss(tmp_path / ".windlass/workspace.sqlite")
        with pytest.raises(WorkspaceError, match="doctor"):
            Workspace.open(tmp_path)
        assert repair(tmp_path)


def test_a_damaged_manifest_is_repaired(tmp_path: Path) -> None:
    Workspace.open(tmp_path).close()
    (tmp_path / ".windlass/manifest.json").write_bytes(b'{"format"')
    with pytest.raises(WorkspaceError, match="doctor"):
        Workspace.open(tmp_path)
    assert repair(tmp_path) is not None
    assert repair(tmp_path) is None


def test_repair_needs_a_workspace_and_leaves_a_working_one_alone(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        repair(tmp_path)
    with Workspace.open(tmp_path) as workspace, workspace.acquire():
        fill(workspace, 3)
    assert repair(tmp_path) is None
    with Child(hold_lock(tmp_path)) as child:
        assert child.line() == "held"
        with pytest.raises(WorkspaceLocked, match=str(child.pid)):
            repair(tmp_path)
    with Workspace.open(tmp_path) as workspace:
        assert len(paths_of(workspace)) == 3


def test_a_check_during_writes_finds_nothing_wrong(tmp_path: Path) -> None:
    def work(say: Callable[[str], None]) -> None:
        with Workspace.open(tmp_path) as workspace, workspace.acquire():
            for number in range(10_000):
                add_files(workspace, str(number))
                say(".")
                time.sleep(0.001)

    Workspace.open(tmp_path).close()
    with Child(work) as child, Workspace.open(tmp_path) as workspace:
        child.line()
        for _ in range(5):
            assert workspace.check_integrity() == []


# --- kill -9


def write_for_ever(folder: Path) -> Callable[[Callable[[str], None]], None]:
    def work(say: Callable[[str], None]) -> None:
        with Workspace.open(folder) as workspace, workspace.acquire():
            assert not list(workspace.state.rglob("*.partial"))
            start = len(paths_of(workspace))
            for number in range(start, start + 10_000):
                add_files(workspace, f"{number:06d}")
                say(f"row {number:06d}")
                say(f"object {workspace.objects.put(b'%d' % number * 500)}")

    return work


def check_killed_writers(base: Path, rounds: int) -> None:
    """Half of them are killed at any time, the making of the workspace included, half after some acknowledgements."""
    chance = random.Random(rounds)
    acknowledged_rows: set[str] = set()
    acknowledged_objects: set[str] = set()
    folder, total = base, 0
    for round_ in range(rounds):
        if round_ % 5 == 0:
            folder = base / str(round_)
            folder.mkdir()
            acknowledged_rows, acknowledged_objects = set(), set()
        with Child(write_for_ever(folder)) as child:
            heard = [child.line() for _ in range(chance.randint(1, 20))] if round_ % 2 else []
            time.sleep(chance.uniform(0, 0.002 if heard else 0.05))
            said = [line.split() for line in heard + child.kill() if line.count(" ") == 1]
        total += len(said)
        acknowledged_rows |= {value for kind, value in said if kind == "row"}
        acknowledged_objects |= {value for kind, value in said if kind == "object" and len(value) == 64}
        with Workspace.open(folder) as workspace:
            rows = set(paths_of(workspace))
            assert acknowledged_rows <= rows
            assert workspace.generation() == len(rows)
            if round_ % 5 == 4:
                assert workspace.check_integrity() == []
            assert acknowledged_objects <= set(workspace.objects.names())
            for name in workspace.objects.names():
                workspace.objects.get(name)
            with workspace.acquire():
                assert not list(workspace.state.rglob("*.partial"))
    assert total >= rounds // 2


def test_a_writer_killed_at_any_moment_loses_nothing_it_acknowledged() -> None:
    with quick_folder() as folder:
        check_killed_writers(folder, 100)


@pytest.mark.slow
def test_a_writer_killed_a_thousand_times() -> None:
    with quick_folder() as folder:
        check_killed_writers(folder, 1_000)
