"""The scan against an oracle that reads everything, in a folder where anything may happen."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.children import Child, as_nobody, folder_of_somebody_else, quick_folder
from tests.lake.scan_oracle import Oracle, apply, check_documents, check_scan, look, scan, stored, write_files
from windlass.core.errors import Cancelled, NotFound, ReadError
from windlass.core.paths import to_os
from windlass.core.workspace import Workspace
from windlass.kernels import folder_listing  # noqa: F401  (so that the compiled look is used)
from windlass.lake import look as look_module
from windlass.lake import scan as scan_module
from windlass.lake.scan import Catalog
from windlass.lake.scan_update import Update
from windlass.lake.walk import hash_file

# --- any sequence of changes

NAMES = [
    b"a.txt",
    b"b.txt",
    b"b.md",
    b"d/a.txt",
    b"d/e/b.txt",
    b"d",
    b"od\nd \xff\xf0\x9f\x9a\xa2.txt",
    b"n" * 251 + b".txt",
]
CONTENTS = [b"", b"x", b"y", b"xx", b"yy", b"long" * 5_000, b"lonG" * 5_000]
name, content = st.sampled_from(NAMES), st.sampled_from(CONTENTS)
change = st.one_of(
    st.tuples(st.just("write"), name, content),
    st.tuples(st.just("write keeping the time"), name, content),
    st.tuples(st.just("append"), name, content),
    st.tuples(st.just("truncate"), name, st.integers(0, 3)),
    st.tuples(st.just("rename"), name, name),
    st.tuples(st.just("copy"), name, name),
    st.tuples(st.just("delete"), name),
    st.tuples(st.just("touch"), name, st.integers(0, 2**31)),
    st.tuples(st.just("make folder"), name),
)


def check_history(history: list[list[tuple]], pause: float = 0.0) -> None:  # type: ignore[type-arg]
    with quick_folder() as folder, Workspace.open(folder) as workspace:
        known: Oracle = {}
        for changes in history:
            time.sleep(pause)
            for change in changes:
                apply(folder, change)
            known = check_scan(workspace, known)


histories = st.lists(st.lists(change, max_size=6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_any_history_of_a_folder(history: list[list[tuple]]) -> None:  # type: ignore[type-arg]
    check_history(history)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_any_history_of_a_settled_folder(history: list[list[tuple]]) -> None:  # type: ignore[type-arg]
    """Every scan believes to come ten seconds later, so that folders without a change are known by their digest."""
    plain = time.time_ns
    later = mock.patch.object(scan_module.time, "time_ns", lambda: plain() + 10_000_000_000)
    with later, mock.patch.object(look_module, "_LEAST_FILES", 3):
        check_history(history, pause=0.012)  # longer than a tick of the file system's clock


def test_a_run_cut_short_leaves_no_digest_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is moved away and back around a scan that is cut short: its files are not forgotten."""
    write_files(tmp_path, "a/1.txt", "a/2.txt", "b/3.txt")
    plain = time.time_ns
    monkeypatch.setattr(scan_module.time, "time_ns", lambda: plain() + 10_000_000_000)
    with Workspace.open(tmp_path) as workspace:
        scan(workspace)
        os.rename(tmp_path / "a", tmp_path.parent / "aside")
        whole = Catalog._hash_and_store

        def cut_short(catalog: Catalog, entries: object, update: Update, *rest: object) -> None:
            with workspace.transaction() as connection:
                update.drop_folders(connection)
                connection.execute("DELETE FROM files WHERE path LIKE 'a/%'")
            raise Cancelled("cut short")

        monkeypatch.setattr(Catalog, "_hash_and_store", cut_short)
        with pytest.raises(Cancelled):
            scan(workspace)
        monkeypatch.setattr(Catalog, "_hash_and_store", whole)
        os.rename(tmp_path.parent / "aside", tmp_path / "a")
        assert scan(workspace).added == ["a/1.txt", "a/2.txt"]
        assert stored(workspace) == look(tmp_path)


def test_files_that_others_forgot_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "a/1.txt", "b/2.txt")
    plain = time.time_ns
    monkeypatch.setattr(scan_module.time, "time_ns", lambda: plain() + 10_000_000_000)
    with Workspace.open(tmp_path) as workspace:
        scan(workspace)
        with workspace.acquire(), workspace.transaction() as connection:
            connection.execute("DELETE FROM files WHERE path = 'a/1.txt'")
        assert scan(workspace).added == ["a/1.txt"]


@pytest.mark.slow
@settings(max_examples=3_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_many_histories_of_a_folder(history: list[list[tuple]]) -> None:  # type: ignore[type-arg]
    check_history(history)


# --- what may not be read, and what must be


class Opened:
    """Counts the files of a folder that are opened."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[bytes] = []
        plain = os.open
        prefix, state = os.fsencode(folder) + b"/", os.fsencode(folder / ".windlass")

        def counting(path: object, *args: object, **named: object) -> int:
            raw = os.fsencode(path) if isinstance(path, str | bytes | os.PathLike) else b""
            if raw.startswith(prefix) and not raw.startswith(state):
                self.paths.append(raw.removeprefix(prefix))
            return plain(path, *args, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(os, "open", counting)


def settle(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every scan believes to come ten seconds later, so that nothing on the disk is fresh."""
    plain = time.time_ns
    monkeypatch.setattr(scan_module.time, "time_ns", lambda: plain() + 10_000_000_000)


def test_an_unchanged_folder_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        (tmp_path / f"{number}.txt").write_text(str(number))
    settle(monkeypatch)
    with Workspace.open(tmp_path) as workspace:
        opened = Opened(tmp_path, monkeypatch)
        assert scan(workspace).hashed == len(opened.paths) == 50
        opened.paths.clear()
        generation = workspace.generation()
        delta = scan(workspace)
        assert (delta.hashed, delta.unchanged, opened.paths) == (0, 50, [])
        assert delta.quiet and workspace.generation() == generation
        (tmp_path / "7.txt").write_text("new")
        assert scan(workspace).changed == ["7.txt"]
        assert opened.paths == [b"7.txt"]


def test_a_change_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    """Same size, same times: only the file's freshness at the last scan tells that it must be read."""
    file = tmp_path / "a.txt"
    file.write_text("one")
    with Workspace.open(tmp_path) as workspace:
        scan(workspace)
        file.write_text("two")
        with workspace.acquire(), workspace.transaction() as connection:
            # As if the file system's clock had not ticked between the two writes.
            now = os.stat(file)
            connection.execute("UPDATE files SET mtime_ns = ?, ctime_ns = ?", (now.st_mtime_ns, now.st_ctime_ns))
        delta = scan(workspace)
        assert (delta.changed, delta.unchanged) == (["a.txt"], 0)


def test_a_changed_file_whose_time_was_put_back_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    os.utime(file, (1_000, 1_000))
    settle(monkeypatch)
    with Workspace.open(tmp_path) as workspace:
        scan(workspace)
        time.sleep(0.02)
        file.write_text("two")
        os.utime(file, (1_000, 1_000))
        assert scan(workspace).changed == ["a.txt"]


def test_a_clock_that_jumps_back_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = time.time_ns
    day = 86_400 * 10**9
    with Workspace.open(tmp_path) as workspace:
        for number, shift in enumerate((0, day, -day, 0, day, -2 * day)):
            monkeypatch.setattr(scan_module.time, "time_ns", lambda shift=shift: plain() + shift)
            (tmp_path / "a.txt").write_text(str(number))
            known = {"a.txt": hashlib.blake2b(str(number).encode(), digest_size=32).hexdigest()}
            scan(workspace)
            assert stored(workspace) == known


def test_special_files_are_passed_over_and_named(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "file.txt").write_text("x")
    os.mkfifo(folder / "pipe")
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    (folder / "deep" / "loop").symlink_to(folder)
    (folder / "self").symlink_to("self")
    (folder / "out").symlink_to(outside)
    (folder / "secret.txt").symlink_to(outside / "secret.txt")
    (folder / "dangling").symlink_to("nowhere")
    with Workspace.open(folder) as workspace:
        delta = scan(workspace)
        assert list(stored(workspace)) == ["file.txt"]
    skipped = dict(delta.skipped)
    assert set(skipped) == {"pipe", "socket", "deep/loop", "self", "out", "secret.txt", "dangling"}
    assert "pipe" in skipped["pipe"] and "link" in skipped["out"]
    assert delta.unreadable == []


def test_a_link_or_pipe_put_in_a_files_place_is_not_opened(tmp_path: Path) -> None:
    """The scan has listed a regular file; what stands there when it is opened is something else."""
    (tmp_path / "secret").write_text("secret")
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to("secret")
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, tmp_path / "missing", tmp_path / "secret" / "below"):
        with pytest.raises(ReadError) as raised:
            hash_file(os.fsencode(path), "name")
        assert raised.value.reason == "gone"


def test_what_may_not_be_read_is_reported_and_tried_again() -> None:
    with folder_of_somebody_else(0o777) as base:
        folder = base / "files"
        (folder / "closed").mkdir()
        (folder / "listed").mkdir()
        for path in ("open.txt", "shut.txt", "closed/in.txt", "listed/in.txt"):
            (folder / path).write_text(path)

        def work(say: Callable[[str], None]) -> None:
            os.umask(0)
            as_nobody()
            with Workspace.open(folder) as workspace:
                for _ in range(3):
                    delta = scan(workspace)
                    say(repr((sorted(stored(workspace)), [entry[:2] for entry in delta.unreadable], delta.skipped)))
                    signal_go()

        turn, done = os.pipe()

        def signal_go() -> None:
            os.read(turn, 1)

        (folder / "shut.txt").chmod(0o000)
        (folder / "closed").chmod(0o000)
        (folder / "listed").chmod(0o744)
        with Child(work) as child:
            first = child.line()
            os.write(done, b".")
            assert "('shut.txt', 'unreadable')" in first
            assert "('closed', 'folder cannot be read" in first
            assert "('listed/in.txt', 'cannot be looked at" in first
            second = child.line()
            assert second == first
            (folder / "shut.txt").chmod(0o644)
            os.write(done, b".")
            third = child.line()
            assert "'shut.txt'" in third and "unreadable" not in third
            os.write(done, b".")
            assert child.wait()[0] == 0
        (folder / "closed").chmod(0o755)


def test_a_file_that_keeps_changing_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"x")

    def append() -> None:
        with open(file, "ab") as log:
            log.write(b"x")

    with pytest.raises(ReadError) as raised:
        hash_file(os.fsencode(file), "log", check=append)
    assert raised.value.reason == "changing" and raised.value.hint


def test_a_file_that_cannot_be_read_any_more_loses_its_passages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("x")
    with Workspace.open(tmp_path) as workspace:
        scan(workspace)
        check_documents(workspace)
        plain = os.open

        def failing(path: object, *args: object, **named: object) -> int:
            if isinstance(path, bytes) and path.endswith(b"a.txt"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return plain(path, *args, **named)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", failing)
            for _ in range(2):
                delta = scan(workspace)
                assert [entry[:2] for entry in delta.unreadable] == [("a.txt", "unreadable")]
        with workspace.reading() as connection:
            assert connection.execute("SELECT state, reason FROM files").fetchall() == [("failed", "unreadable")]
            assert connection.execute("SELECT count(*) FROM documents").fetchone() == (0,)
        scan(workspace)
        check_documents(workspace)


def test_a_folder_that_is_gone_is_an_error_and_forgets_nothing(tmp_path: Path) -> None:
    """An unplugged drive is not an empty folder."""
    folder = tmp_path / "drive"
    folder.mkdir()
    (folder / "a.txt").write_text("x")
    with Workspace.open(folder, state=tmp_path / "state") as workspace:
        scan(workspace)
        folder.rename(tmp_path / "unplugged")
        with pytest.raises(NotFound, match="drive"):
            scan(workspace)
        assert list(stored(workspace)) == ["a.txt"]
        (tmp_path / "unplugged").rename(folder)
        assert scan(workspace).quiet


def test_a_folder_that_changes_while_it_is_scanned(tmp_path: Path) -> None:
    """No scan raises, and the first one after the noise is right."""
    chance = random.Random(5)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            for _ in range(20):
                kind = chance.choice(["write", "append", "rename", "copy", "delete"])
                first, second = chance.choice(NAMES), chance.choice(NAMES)
                apply(tmp_path, (kind, first, second if kind in ("rename", "copy") else chance.choice(CONTENTS)))
            time.sleep(0.001)

    with Workspace.open(tmp_path) as workspace:
        noise = threading.Thread(target=disturb)
        noise.start()
        try:
            for _ in range(25):
                scan(workspace)
        finally:
            stop.set()
            noise.join()
        scan(workspace)
        assert stored(workspace) == look(tmp_path)


def test_odd_names_come_back_byte_for_byte(tmp_path: Path) -> None:
    names = [
        b"new\nline.txt",
        "\U0001f6a2 ship.md".encode(),
        b"caf\xe9",
        b"\xee\xbe\x80",
        b"n" * 255,
        b" lead",
        b"-rf",
        b"a\\b",
    ]
    for number, raw in enumerate(names):
        with open(os.fsencode(tmp_path) + b"/" + raw, "wb") as file:
            file.write(b"%d" % number)
    deep = os.fsencode(tmp_path)
    for _ in range(12):
        deep += b"/" + b"d" * 200
    os.makedirs(deep)
    (Path(os.fsdecode(deep)) / "far.txt").write_text("far")
    with Workspace.open(tmp_path) as workspace:
        delta = scan(workspace)
        assert {to_os(path) for path in stored(workspace)} >= set(names)
        assert delta.total == len(names) + 1 and not delta.unreadable
        assert scan(workspace).quiet


def test_empty_files_are_files_and_no_duplicates(tmp_path: Path) -> None:
    for path in ("a", "b", "c"):
        (tmp_path / path).touch()
    with Workspace.open(tmp_path) as workspace:
        delta = scan(workspace)
        assert (delta.added, delta.duplicates) == (["a", "b", "c"], [])
