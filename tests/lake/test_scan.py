"""The scan against an oracle that reads everything, in a folder where anything may happen."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.children import Child, as_nobody, folder_of_somebody_else, quick_folder
from windlass.core.errors import Cancelled, NotFound, ReadError, UsageError
from windlass.core.paths import to_os, to_text
from windlass.core.progress import Silent
from windlass.core.workspace import Workspace
from windlass.lake import scan as scan_module
from windlass.lake.scan import Catalog, ScanDelta
from windlass.lake.walk import DEFAULT_IGNORE, _default_ignored, hash_file

Oracle = dict[str, str]


def look(folder: Path) -> Oracle:
    """Path to content hash of every regular file that is not hidden, by reading them all."""
    found = {}
    root = os.fsencode(folder)
    for parent, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(b".") and stat.S_ISREG(os.lstat(path).st_mode):
                with open(path, "rb") as file:
                    found[to_text(os.path.relpath(path, root))] = hashlib.blake2b(
                        file.read(), digest_size=32
                    ).hexdigest()
    return found


def stored(workspace: Workspace) -> Oracle:
    with workspace.reading() as connection:
        return dict(connection.execute("SELECT path, content_hash FROM files"))


def scan(workspace: Workspace) -> ScanDelta:
    with workspace.acquire():
        return Catalog(workspace).scan()


def expected(before: Oracle, now: Oracle) -> tuple[list[str], list[str], list[str], list[tuple[str, str]]]:
    """What a delta must say: added, changed, removed, renamed."""
    changed = sorted(path for path in before.keys() & now.keys() if before[path] != now[path])
    gone: dict[str, list[str]] = defaultdict(list)
    for path in sorted(before.keys() - now.keys()):
        gone[before[path]].append(path)
    added, renamed = [], []
    for path in sorted(now.keys() - before.keys()):
        if gone[now[path]]:
            renamed.append((gone[now[path]].pop(0), path))
        else:
            added.append(path)
    removed = sorted(path for paths in gone.values() for path in paths)
    return added, changed, removed, sorted(renamed)


def check_scan(workspace: Workspace, before: Oracle) -> Oracle:
    now = look(workspace.folder)
    delta = scan(workspace)
    assert (delta.added, delta.changed, delta.removed, delta.renamed) == expected(before, now)
    assert delta.quiet == (before == now)
    assert stored(workspace) == now
    assert delta.total == len(now) == delta.hashed + delta.unchanged
    groups: dict[str, list[str]] = defaultdict(list)
    for path, digest in now.items():
        if (workspace.folder / os.fsdecode(to_os(path))).stat().st_size:
            groups[digest].append(path)
    duplicates = [sorted(group, key=lambda path: (len(path), path)) for group in groups.values() if len(group) > 1]
    assert delta.duplicates == sorted(duplicates) == Catalog(workspace).duplicates()
    check_documents(workspace)
    return now


def check_documents(workspace: Workspace) -> None:
    """Files that were not touched keep their documents, a document goes with its last file; then read the new."""
    with workspace.reading() as connection:
        wrong = connection.execute(
            "SELECT path FROM files JOIN documents ON documents.id = document_id WHERE files.content_hash <>"
            " documents.content_hash OR state = 'seen'"
        ).fetchall()
        orphans = connection.execute(
            "SELECT id FROM documents WHERE id NOT IN (SELECT document_id FROM files WHERE document_id IS NOT NULL)"
        ).fetchall()
        unread = connection.execute("SELECT path, content_hash FROM files WHERE state = 'seen'").fetchall()
    assert (wrong, orphans) == ([], [])
    with workspace.acquire(), workspace.transaction() as connection:
        for path, digest in unread:
            kind = Path(path).suffix
            connection.execute(
                "INSERT INTO documents (content_hash, kind, reader_version, title, characters, faithful, warnings,"
                " text) VALUES (?, ?, 1, '', 0, 1, '[]', x'') ON CONFLICT DO NOTHING",
                (digest, kind),
            )
            connection.execute(
                "UPDATE files SET state = 'parsed', document_id = (SELECT id FROM documents WHERE content_hash = ? AND"
                " kind = ?) WHERE path = ?",
                (digest, kind, path),
            )


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


def apply(folder: Path, change: tuple) -> None:  # type: ignore[type-arg]
    """Do it if it can be done; a file in the way of a folder, and the reverse, is replaced."""
    kind, first, *rest = change
    path = os.path.join(os.fsencode(folder), first)
    if kind in ("write", "make folder", "write keeping the time"):
        make_room(folder, first + b"/" if kind == "make folder" else first)
        if kind == "make folder":
            return
        times = os.stat(path) if os.path.isfile(path) else None
        with open(path, "wb") as file:
            file.write(rest[0])
        if times is not None and kind == "write keeping the time":
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif os.path.isfile(path):
        if kind == "append":
            with open(path, "ab") as file:
                file.write(rest[0])
        elif kind == "truncate":
            os.truncate(path, rest[0])
        elif kind == "touch":
            os.utime(path, (rest[0], rest[0]))
        elif kind == "delete":
            os.unlink(path)
        elif first != rest[0] and not (first + b"/").startswith(rest[0]) and not rest[0].startswith(first + b"/"):
            make_room(folder, rest[0])
            target = os.path.join(os.fsencode(folder), rest[0])
            (os.replace if kind == "rename" else shutil.copyfile)(path, target)


def make_room(folder: Path, name: bytes) -> None:
    root = os.fsencode(folder)
    path = os.path.join(root, name)
    if os.path.isdir(path):
        shutil.rmtree(path)
    parent = os.path.dirname(path)
    while parent != root:
        if os.path.isfile(parent):
            os.unlink(parent)
        parent = os.path.dirname(parent)
    os.makedirs(os.path.dirname(path), exist_ok=True)


def check_history(history: list[list[tuple]]) -> None:  # type: ignore[type-arg]
    with quick_folder() as folder, Workspace.open(folder) as workspace:
        known: Oracle = {}
        for changes in history:
            for change in changes:
                apply(folder, change)
            known = check_scan(workspace, known)


histories = st.lists(st.lists(change, max_size=6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories)
def test_any_history_of_a_folder(history: list[list[tuple]]) -> None:  # type: ignore[type-arg]
    check_history(history)


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


# --- what is ignored


def write_files(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)


def test_ignore_patterns(tmp_path: Path) -> None:
    write_files(
        tmp_path, "a.log", "keep.log", "d/b.log", "build/x", "d/build/x", "top.txt", "d/top.txt", "d/t/x.tmp", "plain",
        ".hidden", ".git/config", "node_modules/m.js", "~$draft.docx", "trailing ", "#hash",
    )  # fmt: skip
    rules = "# comment\n*.log\n!keep.log\nbuild/\n/top.txt\n**/t/*.tmp\n\n!.windlass/\n\\#hash\n"
    (tmp_path / ".windlassignore").write_text(rules)
    with Workspace.open(tmp_path) as workspace:
        scan(workspace)
        assert sorted(stored(workspace)) == ["d/top.txt", "keep.log", "plain", "trailing "]
        (tmp_path / ".windlassignore").write_text("!.hidden\nplain\n")
        delta = scan(workspace)
        assert {".hidden", "a.log", "build/x", "top.txt"} <= set(delta.added)
        assert delta.removed == ["plain"]
        assert not [path for path in stored(workspace) if path.startswith((".windlass/", ".git/"))]


@pytest.mark.parametrize("line", ["!", "[z-a]", "a\\"])
def test_a_line_that_is_no_pattern_is_named(tmp_path: Path, line: str) -> None:
    write_files(tmp_path, "a")
    (tmp_path / ".windlassignore").write_text(f"*.log\n{line}\n")
    with Workspace.open(tmp_path) as workspace, pytest.raises(UsageError, match=r"\.windlassignore, line 2"):
        scan(workspace)


def test_ignore_rules_that_cannot_be_read_are_not_ignored(tmp_path: Path) -> None:
    """Indexing what was to be left out would be worse than stopping."""
    write_files(tmp_path, "a")
    (tmp_path / ".windlassignore").write_bytes(b"\xff\xfe\x00*.log\n")
    with Workspace.open(tmp_path) as workspace:
        scan(workspace)
        assert list(stored(workspace)) == ["a"]


# --- stopping


class StopsAt(Silent):
    """A progress that is cancelled when a stage has advanced so far."""

    def __init__(self, stage: str, number: int) -> None:
        super().__init__()
        self._stage, self._left = stage, number

    def advance(self, stage: str, done: int = 1, detail: str = "") -> None:
        self._left -= stage == self._stage
        if self._left <= 0:
            self.cancel()


@pytest.mark.parametrize("stage", ["scan", "hash"])
def test_a_cancelled_scan_stops_and_the_next_one_goes_on(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, *(f"{number}.txt" for number in range(100)))
    monkeypatch.setattr(scan_module, "_COMMIT_EVERY", 10)
    with Workspace.open(tmp_path) as workspace:
        with pytest.raises(Cancelled), workspace.acquire():
            Catalog(workspace).scan(progress=StopsAt(stage, 50))
        assert len(stored(workspace)) < 100
        scan(workspace)
        assert stored(workspace) == look(tmp_path)


def test_a_huge_file_does_not_hold_up_a_cancelled_scan(tmp_path: Path) -> None:
    """Hashing a sparse terabyte would take hours; the block after the wish to stop is the last."""
    with open(tmp_path / "huge", "wb") as file:
        file.truncate(1 << 40)

    class Impatient(Silent):
        def start(self, stage: str, total: int | None, unit: str) -> None:
            if stage == "hash":
                threading.Timer(0.05, self.cancel).start()

    with Workspace.open(tmp_path) as workspace, workspace.acquire(), pytest.raises(Cancelled):
        Catalog(workspace).scan(progress=Impatient())


def changing_scanner(folder: Path) -> Callable[[Callable[[str], None]], None]:
    def work(say: Callable[[str], None]) -> None:
        with Workspace.open(folder) as workspace:
            say("open")
            scan(workspace)
            say("done")

    return work


@pytest.fixture
def often_committed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(scan_module, "_COMMIT_EVERY", 7)
    yield


def test_a_killed_scan_is_made_good_by_the_next(often_committed: None) -> None:
    with quick_folder() as folder:
        check_killed_scans(folder)


def check_killed_scans(folder: Path) -> None:
    chance = random.Random(1)
    paths = [b"%d/%d.txt" % (number % 7, number) for number in range(150)]
    for path in paths:
        apply(folder, ("write", path, path * 50))
    finished = 0
    for _ in range(20):
        for path in chance.sample(paths, 60):
            kind = chance.choice(["write", "append", "rename", "copy", "delete"])
            apply(folder, (kind, path, chance.choice(paths) if kind in ("rename", "copy") else chance.randbytes(30)))
        with Child(changing_scanner(folder)) as child:
            child.line()
            time.sleep(chance.uniform(0, 0.06))
            finished += "done" in child.kill()
        with Workspace.open(folder) as workspace:
            assert workspace.check_integrity() == []
            half_way = stored(workspace)
            now = look(folder)
            delta = scan(workspace)
            assert (delta.added, delta.changed, delta.removed, delta.renamed) == expected(half_way, now)
            assert stored(workspace) == now
            check_documents(workspace)
    assert finished < 20, "no scan was killed"


NAME = st.text(st.sampled_from("ab.~$_pycdnoelsk+THmiTt"), min_size=1, max_size=8) | st.sampled_from(
    [
        ".git",
        "a.pyc",
        "~$x.docx",
        "Thumbs.db",
        "desktop.ini",
        "__pycache__",
        "node_modules",
        "lost+found",
        "x.thumbs.db",
    ]
)


@settings(deadline=None, max_examples=300)
@given(NAME.filter(lambda name: name not in (".", "..")), st.booleans(), st.booleans())
def test_the_quick_ignore_rule_is_that_of_the_patterns(name: str, is_folder: bool, nested: bool) -> None:
    import pathspec

    path = ("part/" if nested else "") + name + ("/" if is_folder else "")
    assert bool(_default_ignored(path)) == pathspec.GitIgnoreSpec.from_lines(DEFAULT_IGNORE).match_file(path)
