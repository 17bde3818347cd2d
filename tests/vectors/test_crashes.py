"""Killed processes, power cuts, full disks, damaged bytes: what was acknowledged is there, damage is named."""

from __future__ import annotations

import errno
import itertools
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.children import Child, quick_folder
from tests.core.simulated_disk import ROOT, Fault, ProcessDied, SimulatedDisk
from tests.vectors.model import small_index
from windlass import vectors
from windlass.core.access import Access
from windlass.core.errors import StorageError
from windlass.vectors.errors import CorruptSegment, FormatTooNew, VectorStoreError
from windlass.vectors.indexes import kinds
from windlass.vectors.log import log_path
from windlass.vectors.schema import Field, Schema

SCHEMA = Schema(dim=4, fields={"n": Field("int")}, tenants=True)
PLACE = ROOT / "collection"
EVERYBODY = Access(tenants={"a", "b"})


def vector(number: int) -> list[float]:
    return [1.0, float(number), 0.5, -1.0]


def contents(collection: vectors.Collection) -> dict[int, tuple[int, bool]]:
    """Id to its field, and whether tenant a sees it."""
    ids = list(range(60))
    rows = collection.get(ids, access=EVERYBODY).to_pydict()
    seen = set(collection.get(ids, access=Access(tenants={"a"}))["id"].to_pylist())
    return {key: (n, key in seen) for key, n in zip(rows["id"], rows["n"], strict=True)}


def script(collection: vectors.Collection):
    """Changes one by one; yields what must be there after each, before it is made."""
    expected: dict[int, tuple[int, bool]] = {}

    def put(ids, n, conflict="error"):
        for key in ids:
            expected[key] = (n, key % 2 == 0)
        tenants = [{"a", "b"} if key % 2 == 0 else {"b"} for key in ids]
        args = (ids, [vector(key) for key in ids], {"n": [n] * len(ids)}, tenants)
        return lambda: collection.add(*args, on_conflict=conflict)

    def remove(ids):
        for key in ids:
            expected.pop(key, None)
        return lambda: collection.delete(ids)

    def grant(ids):
        for key in ids:
            expected[key] = (expected[key][0], True)
        return lambda: collection.grant(ids, ["a"])

    def revoke(ids):
        for key in ids:
            expected[key] = (expected[key][0], False)
        return lambda: collection.revoke(ids, ["a"])

    def steps():
        yield put([0, 1, 2, 3], 1)
        yield put([2, 3, 4], 2, "replace")
        yield collection.flush
        yield remove([0, 3])
        yield grant([1])
        yield collection.flush
        yield put([0, 9], 5)
        yield revoke([1, 2])
        yield collection.optimize
        yield remove([9])
        yield put([11], 7)

    for change in steps():
        yield change, dict(expected)


@pytest.mark.parametrize("kind", kinds())
def test_the_process_dies_at_any_call_of_the_disk(kind):
    """Everything acknowledged is there; what was in flight is there wholly or not at all."""
    died = 0
    for calls in itertools.count():
        disk = SimulatedDisk()
        collection = vectors.create(PLACE, SCHEMA, kind=kind, params=small_index(kind), disk=disk)
        before: dict[int, tuple[int, bool]] = {}
        disk.die_after(calls)
        after = before
        try:
            for change, expected in script(collection):
                after = expected
                change()
                before = expected
        except ProcessDied:
            died += 1
        else:
            assert died > 100
            return
        finally:
            disk.restart()
        again = vectors.open(PLACE, mode="rw", disk=disk)
        assert contents(again) in (before, after), calls
        again.verify(deep=True)
        again.add([30], [vector(30)], {"n": [9]}, [{"a"}])
        assert contents(again)[30] == (9, True)


def test_the_power_goes_at_any_operation():
    """The same with everything unsynced lost, torn or reordered."""
    disk = SimulatedDisk()
    collection = vectors.create(PLACE, SCHEMA, disk=disk)
    done: list[tuple[int, dict]] = [(len(disk.log), {})]
    for change, expected in script(collection):
        change()
        done.append((len(disk.log), expected))
    rng = random.Random(0)
    looked = 0
    for image in _sampled(disk, done[0][0], rng):
        acknowledged = [expected for operations, expected in done if operations <= image.operations][-1]
        later = [expected for operations, expected in done if operations > image.operations][:1]
        again = vectors.open(PLACE, mode="rw", disk=SimulatedDisk(image))
        assert contents(again) in [acknowledged, *later]
        again.verify(deep=True)
        looked += 1
    assert looked > 300


def _sampled(disk: SimulatedDisk, start: int, rng: random.Random):
    """At every operation the first image, and of the many others some."""
    last = -1
    for image in itertools.islice(disk.power_cuts(start), 60_000):
        if image.operations != last or rng.random() < 0.3:
            last = image.operations
            yield image


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("lasting", [False, True])
def test_a_failing_disk_loses_nothing_acknowledged(error, lasting):
    failed = 0
    for number in itertools.count(1):
        disk = SimulatedDisk()
        collection = vectors.create(PLACE, SCHEMA, disk=disk)
        before: dict[int, tuple[int, bool]] = {}
        after = before
        disk.fail(Fault(error, number, lasting))
        try:
            for change, expected in script(collection):
                after = expected
                change()
                before = expected
        except (StorageError, CorruptSegment):
            failed += 1
        else:
            if disk.calls < number:
                assert failed > 20
                return
        disk.fail(None)
        assert contents(vectors.open(PLACE, disk=disk)) in (before, after), number


def test_after_a_failed_write_nobody_writes_on():
    disk = SimulatedDisk()
    collection = vectors.create(PLACE, SCHEMA, disk=disk)
    collection.add([1], [vector(1)], {"n": [1]}, [{"a"}])
    disk.fail(Fault(errno.EIO, 2))  # the fsync after the write
    with pytest.raises(StorageError, match=r"cannot write .*wal"):
        collection.add([2], [vector(2)], {"n": [2]}, [{"a"}])
    disk.fail(None)
    with pytest.raises(StorageError, match=r"takes no more writes since one failed.*open the collection again"):
        collection.add([3], [vector(3)], {"n": [3]}, [{"a"}])
    assert contents(collection) == {1: (1, True)}


def writer(folder: Path, kind: str, say) -> None:
    """Adds, replaces, deletes, flushes and optimises for ever; says what is acknowledged."""
    collection = vectors.open(folder, mode="rw")
    start = collection.count(access=EVERYBODY)
    rng = random.Random(start)
    for number in itertools.count():
        keys = [start * 1000 + number * 3 + offset for offset in range(3)]
        tenants = [{"a"}] * 3
        say(f"try {' '.join(map(str, keys))}")
        collection.add(keys, [vector(key) for key in keys], {"n": keys}, tenants)
        say(f"add {' '.join(map(str, keys))}")
        if rng.random() < 0.3:
            say(f"try- {keys[0]}")
            collection.delete([keys[0]])
            say(f"del {keys[0]}")
        if rng.random() < 0.2:
            collection.flush()
        if rng.random() < 0.1:
            collection.optimize()


def killed(folder: Path, kind: str, rng: random.Random, known: set[int]) -> set[int]:
    """Run the writer, kill it after a moment, open the collection; returns what is there."""
    with Child(lambda say: writer(folder, kind, say)) as child:
        line = child.line()
        time.sleep(rng.random() * 0.03)
        lines = [line, *child.kill()]
    acknowledged, maybe = set(known), set()
    for line in lines:
        word, *numbers = line.split()
        keys = set(map(int, numbers))
        if word == "add":
            acknowledged |= keys
        elif word == "del":
            acknowledged -= keys
        elif word == "try" or (word == "try-" and keys):
            maybe = keys
    collection = vectors.open(folder, mode="rw")
    collection.verify(deep=True)
    table = collection.get(sorted(acknowledged | maybe), access=EVERYBODY).to_pydict()
    there = set(table["id"])
    assert collection.count(access=EVERYBODY) == len(there)
    assert table["n"] == table["id"]
    in_flight = there ^ acknowledged
    assert in_flight <= maybe
    assert not in_flight or in_flight == maybe
    collection.close()
    return there


def _kill_often(kind: str, times: int) -> None:
    rng = random.Random(5)
    with quick_folder() as folder:
        vectors.create(folder / "c", SCHEMA, kind=kind, params=small_index(kind)).close()
        known: set[int] = set()
        for _ in range(times):
            known = killed(folder / "c", kind, rng, known)


@pytest.mark.parametrize("kind", kinds())
def test_killed_at_random_points(kind):
    _kill_often(kind, 12)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", kinds())
def test_killed_at_three_hundred_random_points(kind):
    _kill_often(kind, 300)


@pytest.fixture
def written(tmp_path):
    """A closed collection with a segment, deletions, grants and a log."""
    collection = vectors.create(tmp_path / "c", SCHEMA)
    keys = list(range(30))
    collection.add(keys, [vector(key) for key in keys], {"n": keys}, [{"a"}] * 30)
    collection.flush()
    collection.delete([3])
    collection.flush()
    collection.add([40], [vector(40)], {"n": [40]}, [{"a"}])
    collection.add([41], [vector(41)], {"n": [41]}, [{"a"}])
    collection.close()
    return tmp_path / "c"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "LOCK")


def _use(folder: Path) -> None:
    with vectors.open(folder) as collection:
        collection.search(vector(3), 50, access=EVERYBODY)
        contents(collection)
        collection.verify(deep=True)


def test_every_flipped_bit_is_found_and_named(written):
    """But one in the last record of the last log, which cannot be told from a write that was cut off."""
    rng = random.Random(1)
    last = log_path(written / "wal", max(int(path.stem) for path in (written / "wal").iterdir()))
    for path in _files(written):
        data = path.read_bytes()
        if not data:
            continue
        for at in sorted(rng.sample(range(len(data)), min(60, len(data)))):
            if path == last and at >= data.rindex(b"\xf5WLrecd"):
                continue
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
            with pytest.raises(VectorStoreError) as caught:
                _use(written)
            assert path.name in str(caught.value), (path, at)
        path.write_bytes(data)
    _use(written)


def test_every_missing_or_shortened_file_is_found_and_named(written):
    for path in _files(written):
        data = path.read_bytes()
        if not data:
            continue
        if path.suffix != ".log":
            for length in {0, len(data) // 2, len(data) - 1}:
                path.write_bytes(data[:length])
                with pytest.raises(CorruptSegment) as caught:
                    _use(written)
                assert path.name in str(caught.value)
        path.unlink()
        with pytest.raises(Exception, match=r"missing|no collection"):
            _use(written)
        path.write_bytes(data)
    _use(written)


def test_a_lost_acknowledged_record_is_no_torn_tail(written):
    log = max((written / "wal").iterdir())
    data = log.read_bytes()
    second = data.rindex(b"\xf5WLrecd")
    log.write_bytes(data[:second])  # a torn tail: the last record never arrived
    with vectors.open(written) as collection:
        assert contents(collection).keys() >= {40}
    first = data.rindex(b"\xf5WLrecd", 0, second)
    log.write_bytes(data[: first + 30] + b"\0" + data[first + 31 :])
    with pytest.raises(CorruptSegment, match=f"{log.name} is damaged at byte {first}: an acknowledged record"):
        vectors.open(written)


def test_a_torn_log_that_was_continued_counts_to_where_it_was_valid(written):
    log = max((written / "wal").iterdir())
    data = log.read_bytes()
    log.write_bytes(data + data[-40:])
    for key in (50, 51):
        with vectors.open(written, mode="rw") as collection:
            collection.add([key], [vector(key)], {"n": [key]}, [{"a"}])
    with vectors.open(written) as collection:
        assert {40, 41, 50, 51} <= contents(collection).keys()
    log.write_bytes(data[:-1])
    with pytest.raises(CorruptSegment, match="an acknowledged record cannot be read"):
        vectors.open(written)


def test_a_newer_format_is_refused(written):
    manifest = written / "MANIFEST"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(FormatTooNew, match=r"format 2.*use a newer windlass"):
        vectors.open(written)


def test_what_a_dead_writer_left_is_removed(written):
    (written / "segments" / "000077.vectors").write_bytes(b"x" * 10)
    (written / "deletes" / "000078.bin").write_bytes(b"x")
    with vectors.open(written) as reader:
        assert (written / "segments" / "000077.vectors").exists()
        reader.count(access=EVERYBODY)
    vectors.open(written, mode="rw").close()
    assert not (written / "segments" / "000077.vectors").exists()
    assert not (written / "deletes" / "000078.bin").exists()


def test_a_collection_half_made_is_made_again(tmp_path):
    vectors.create(tmp_path / "c", SCHEMA).close()
    (tmp_path / "c" / "MANIFEST").unlink()
    vectors.create(tmp_path / "c", SCHEMA).close()
    shutil.rmtree(tmp_path / "c")


def test_batches_are_synced_within_a_moment(tmp_path):
    with vectors.create(tmp_path / "c", SCHEMA, durability="batch") as collection:
        for key in range(20):
            collection.add([key], [vector(key)], {"n": [key]}, [{"a"}])
        log = collection._log
        deadline = time.monotonic() + 10
        while log._synced < log.bytes and time.monotonic() < deadline:
            time.sleep(0.01)
        assert log._synced == log.bytes
    assert np.array_equal(sorted(contents(vectors.open(tmp_path / "c"))), range(20))
