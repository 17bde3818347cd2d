"""The disk door under power cuts, dying processes and failing calls."""

from __future__ import annotations

import errno
import itertools
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.core.simulated_disk import ROOT, Fault, Image, ProcessDied, SimulatedDisk
from windlass.core import storage
from windlass.core.errors import StorageError, WorkspaceError
from windlass.core.storage import ObjectStore

FILE, MANIFEST, OBJECTS = ROOT / "notes", ROOT / "manifest.json", ROOT / "objects"
SHORT, LONG = b"short", b"".join(bytes([letter]) * 512 for letter in b"abcde") + b"tail"
FIRST, SECOND = b"first object", b"2" * 1100


class Step(NamedTuple):
    """One durable write: what it sets (a key of `observe`), to what, and how."""

    key: str
    value: object
    run: Callable[[SimulatedDisk], object]


def object_step(data: bytes) -> Step:
    return Step(f"object {data[:1]!r}", data, lambda disk: ObjectStore(OBJECTS, disk=disk).put(data))


def file_step(data: bytes) -> Step:
    return Step("file", data, lambda disk: storage.write_atomic(FILE, data, disk=disk))


def manifest_step(value: int) -> Step:
    return Step("manifest", value, lambda disk: storage.write_manifest(MANIFEST, 1, {"value": value}, disk=disk))


STEPS = (
    file_step(SHORT),
    file_step(LONG),
    manifest_step(1),
    manifest_step(2),
    object_step(FIRST),
    object_step(SECOND),
)


def observe(disk: SimulatedDisk) -> dict[str, object]:
    """What a program that opens the state sees; raises when anything is damaged."""
    seen: dict[str, object] = {}
    files = disk.files(ROOT)
    if FILE in files:
        seen["file"] = disk.read(FILE)
    if MANIFEST in files:
        seen["manifest"] = storage.read_manifest(MANIFEST, 1, disk=disk)["value"]
    store = ObjectStore(OBJECTS, disk=disk)
    for name in store.names():
        data = store.get(name)
        seen[f"object {data[:1]!r}"] = data
    return seen


_opened: dict[frozenset[tuple[Path, bytes]], dict[str, object]] = {}


def open_again(image: Image) -> dict[str, object]:
    """What is seen after the power came back, leftovers removed. Histories share beginnings, so it is remembered."""
    key = frozenset(image.files.items())
    if key not in _opened:
        disk = SimulatedDisk(image)
        seen = observe(disk)
        if storage.remove_leftovers(ROOT, disk=disk):
            assert observe(disk) == seen
        assert not [path for path in disk.files(ROOT) if path.name.endswith(".partial")]
        _opened[key] = seen
    return _opened[key]


def check(image: Image, acknowledged: dict[str, object], in_flight: list[Step]) -> None:
    seen = open_again(image)
    for key in {*seen, *acknowledged}:
        allowed = [acknowledged[key]] if key in acknowledged else [None]
        allowed += [step.value for step in in_flight if step.key == key]
        assert seen.get(key) in allowed, f"after {image.operations} operations {key} is {seen.get(key)!r:.60}"


def run_all(disk: SimulatedDisk, steps: tuple[Step, ...]) -> list[int]:
    """Run the steps; returns the length of the log when each was acknowledged."""
    return [len(disk.log) for step in steps if (step.run(disk), True)]


def check_power_cuts(steps: tuple[Step, ...]) -> int:
    disk = SimulatedDisk()
    done_at = run_all(disk, steps)
    states = 0
    for image in disk.power_cuts():
        states += 1
        finished = sum(end <= image.operations for end in done_at)
        acknowledged = {step.key: step.value for step in steps[:finished]}
        check(image, acknowledged, list(steps[finished : finished + 1]))
    return states


@pytest.fixture(autouse=True)
def writer_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated writer has our process id; after a power cut it is nobody's."""
    monkeypatch.setattr(storage, "_being_written", set())


@pytest.fixture
def same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """One writer needs no random names, and without them `_opened` knows most states."""
    monkeypatch.setattr(storage.secrets, "token_hex", lambda size: "0" * 2 * size)


def test_power_cut_at_any_moment_shows_an_acknowledged_value_or_the_one_being_written(same_names: None) -> None:
    states = sum(check_power_cuts(steps) for steps in itertools.product(STEPS, repeat=3))
    assert states >= 20_000


def test_a_second_power_cut_while_going_on_after_the_first(same_names: None) -> None:
    """The second run starts from everything that the first cut may leave, and is cut itself."""
    states = 0
    for first, second in itertools.product(STEPS[1:], STEPS[1:]):
        if first.key.split()[0] != second.key.split()[0]:
            continue
        disk = SimulatedDisk()
        first.run(disk)
        platters = {(frozenset(image.files.items()), image.folders): image for image in disk.power_cuts()}
        for image in platters.values():
            disk = SimulatedDisk(image)
            survived = observe(disk)
            storage.remove_leftovers(ROOT, disk=disk)
            start = len(disk.log)
            second.run(disk)
            for again in disk.power_cuts(start):
                states += 1
                done = {second.key: second.value} if again.operations == len(disk.log) else {}
                check(again, survived | done, [] if done else [second])
    assert states >= 5_000


@pytest.mark.slow
def test_power_cuts_of_longer_histories(same_names: None) -> None:
    assert sum(check_power_cuts(steps) for steps in itertools.product(STEPS, repeat=4)) >= 100_000


def test_a_process_that_dies_and_a_power_cut_after_the_next_one(same_names: None) -> None:
    """The second process finds what the first left in the disk's cache, and may rely on none of it."""
    states = 0
    for first, second in itertools.product((STEPS[1], STEPS[2], STEPS[5]), repeat=2):
        for calls in itertools.count():
            disk = SimulatedDisk()
            disk.die_after(calls)
            try:
                first.run(disk)
            except ProcessDied:
                pass
            else:
                break
            disk.restart()
            storage.remove_leftovers(ROOT, disk=disk)
            start = len(disk.log)
            second.run(disk)
            end = len(disk.log)
            for image in disk.power_cuts(start):
                states += 1
                acknowledged = {second.key: second.value} if image.operations == end else {}
                # What the first process was writing was never acknowledged: it may be there or not.
                check(image, acknowledged, [first] if acknowledged and first.key != second.key else [first, second])
    assert states >= 1_000


def test_the_simulated_disk_catches_a_writer_that_skips_a_sync() -> None:
    """The checker itself is checked: leave out one call and some power cut must be seen to lose data."""

    class NoFileSync(SimulatedDisk):
        def fsync(self, file: object) -> None:
            self._call()

    class NoFolderSync(SimulatedDisk):
        def fsync_folder(self, path: Path) -> None:
            self._call()

    for kind in (NoFileSync, NoFolderSync):
        disk = kind()
        step = file_step(LONG)
        step.run(disk)
        with pytest.raises(AssertionError):
            for image in disk.power_cuts():
                check(image, {step.key: step.value} if image.operations == len(disk.log) else {}, [step])


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
def test_every_call_of_every_write_may_fail(error: int, lasting: bool) -> None:
    for old, new in ((file_step(SHORT), file_step(LONG)), (manifest_step(1), manifest_step(2)), (None, STEPS[4])):
        for number in itertools.count(1):
            disk = SimulatedDisk()
            if old is not None:
                old.run(disk)
            before = observe(disk)
            disk.fail(Fault(error, number, lasting))
            try:
                new.run(disk)
            except StorageError as raised:
                error_shown = raised
            else:
                if disk.calls < number:
                    break
                assert error in (errno.ENOSPC, errno.EDQUOT), "a failed call went unnoticed"
                continue  # the call was a read
            assert str(ROOT) in str(error_shown) and error_shown.hint
            assert ("disk full" in str(error_shown)) == (error in (errno.ENOSPC, errno.EDQUOT))
            disk.fail(None)
            assert observe(disk) in (before, before | {new.key: new.value})
            for image in disk.power_cuts(len(disk.log)):
                check(image, before, [new])
            storage.remove_leftovers(ROOT, disk=disk)
            assert not [path for path in disk.files(ROOT) if path.name.endswith(".partial")]
            new.run(disk)
            assert observe(disk) == before | {new.key: new.value}


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE, errno.EACCES])
def test_reads_that_fail_are_typed_and_name_the_file(error: int) -> None:
    disk = SimulatedDisk()
    storage.write_manifest(MANIFEST, 1, {}, disk=disk)
    store = ObjectStore(OBJECTS, disk=disk)
    name = store.put(FIRST)
    disk.fail(Fault(error, 1, lasting=True))
    with pytest.raises(StorageError, match=r"manifest\.json"):
        storage.read_manifest(MANIFEST, 1, disk=disk)
    with pytest.raises(StorageError, match=name[2:]):
        store.get(name)


def test_an_object_that_rotted_is_refused_and_healed_by_storing_it_again(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path)
    name = store.put(FIRST)
    store.path(name).write_bytes(FIRST[:-1] + b"?")
    with pytest.raises(WorkspaceError, match="damaged"):
        store.get(name)
    assert store.put(FIRST) == name
    assert store.get(name) == FIRST
    store.discard(name)
    store.discard(name)
    with pytest.raises(KeyError):
        store.get(name)


def test_a_file_in_the_place_of_a_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "objects").write_bytes(b"")
    with pytest.raises(StorageError, match="objects"):
        ObjectStore(tmp_path / "objects").put(FIRST)
    with pytest.raises(StorageError, match="objects"):
        storage.make_folder(tmp_path / "objects")


def test_leftovers_of_the_dead_go_and_writes_under_way_stay(tmp_path: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    names = [
        f"old.{dead}-0a.partial",
        f"mine.{os.getpid()}-0a.partial",
        "foreign.partial",
        f"live.{os.getppid()}-0a.partial",
    ]
    (tmp_path / "deep").mkdir()
    for name in names:
        (tmp_path / "deep" / name).write_bytes(b"half")
    assert storage.remove_leftovers(tmp_path) == 3
    assert [path.name for path in (tmp_path / "deep").iterdir()] == names[3:]


def test_a_writer_is_not_disturbed_by_the_removal_of_leftovers(tmp_path: Path) -> None:
    """As when a key is added while an index run begins."""
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            storage.remove_leftovers(tmp_path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(30):
            storage.write_atomic(tmp_path / "file", b"%d" % number)
            assert (tmp_path / "file").read_bytes() == b"%d" % number
    finally:
        stop.set()
        sweeper.join()


def test_two_threads_write_one_file_and_one_of_them_wins(tmp_path: Path) -> None:
    values = [bytes([65 + number]) * 4_000 for number in range(4)]
    threads = [
        threading.Thread(target=lambda value=value: [storage.write_atomic(tmp_path / "f", value) for _ in range(10)])
        for value in values
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "f").read_bytes() in values
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_manifest_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    storage.write_manifest(tmp_path / "m", 3, {"a": 1})
    assert storage.read_manifest(tmp_path / "m", 4) == {"a": 1}
    with pytest.raises(WorkspaceError, match="format 3") as raised:
        storage.read_manifest(tmp_path / "m", 2)
    assert "newer windlass" in raised.value.hint


_FORGED = json.dumps({"format": 1, "checksum": "?", "content": {"database": "workspace.sqlite", "n": [1, 2.5, None]}})


@given(data=st.data())
def test_a_damaged_manifest_is_never_believed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged-manifest"
    content = {"database": "workspace.sqlite", "numbers": [1, 2.5, None]}
    storage.write_manifest(path, 1, content)
    good = path.read_bytes()
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 40)))
    path.write_bytes(good[:start] + data.draw(st.binary(max_size=40)) + good[end:])
    try:
        assert storage.read_manifest(path, 1) == content
    except WorkspaceError as error:
        assert str(path) in str(error) and error.hint


@pytest.mark.parametrize("raw", [b"", b"[]", b"7", b"{}", b"[" * 100_000, b"\xff", b"null", _FORGED.encode()])
def test_what_is_no_manifest_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "m").write_bytes(raw)
    with pytest.raises(WorkspaceError):
        storage.read_manifest(tmp_path / "m", 1)


@given(lines=st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line)), cut=st.integers(0, 200))
def test_a_line_log_keeps_what_it_acknowledged(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], cut: int
) -> None:
    """Whatever a crash leaves of the last line, opening the log again gives the whole lines before it."""
    path = tmp_path_factory.mktemp("log") / "lines"
    with storage.LineLog(path) as log:
        for line in lines:
            log.add(line)
    whole = path.read_bytes()
    assert whole == b"".join(line + b"\n" for line in lines)
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    left = path.read_bytes()
    with storage.LineLog(path) as log:
        assert path.read_bytes() == left[: left.rfind(b"\n") + 1]
        log.add(b"next")
    assert path.read_bytes().endswith(b"next\n")


def test_a_torn_line_longer_than_a_block_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"good\n" + b"x" * 200_000)
    storage.LineLog(path).close()
    assert path.read_bytes() == b"good\n"


def test_a_line_that_does_not_reach_the_disk_is_not_acknowledged(tmp_path: Path) -> None:
    class Failing(storage.LocalDisk):
        broken = False

        def fsync(self, file: BinaryIO) -> None:
            if self.broken:
                raise OSError(errno.ENOSPC, "no space")

    disk = Failing()
    with storage.LineLog(tmp_path / "lines", disk=disk) as log:
        log.add(b"good")
        disk.broken = True
        with pytest.raises(StorageError, match=r"disk full while writing .*lines"):
            log.add(b"lost")
