"""Chunks on the disk: whole or not at all, never somebody else's, and never more than there is room for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.core import storage
from windlass.core.errors import WorkspaceError
from windlass.serving.chunk_record import ChunkRecord, read_record, write_record
from windlass.serving.chunk_store import ChunkStore

OWNER = b"o" * 16


def record(seed: int, *, tokens: int = 20, owner: bytes = OWNER) -> ChunkRecord:
    draw = np.random.default_rng(seed)
    return ChunkRecord(
        owner, bytes(draw.integers(0, 256, 16, np.uint8)), int(draw.integers(0, 500)),
        {bytes(draw.integers(0, 256, 16, np.uint8)): float(draw.random()) for _ in range(seed % 3)},
        draw.random(tokens).astype(np.float32), float(draw.random()),
        draw.integers(0, 1 << 16, (3, 2, 2, tokens, 16)).astype(np.uint16),
    )  # fmt: skip


def same(a: ChunkRecord, b: ChunkRecord) -> bool:
    return (
        (a.owner, a.content, a.position, a.attended, a.impact) == (b.owner, b.content, b.position, b.attended, b.impact)
        and np.array_equal(a.outside, b.outside)
        and np.array_equal(a.data, b.data)
    )


@pytest.mark.parametrize("seed", range(4))
def test_what_was_written_is_read(tmp_path: Path, seed: int) -> None:
    made = record(seed)
    write_record(tmp_path / made.name, made)
    assert same(read_record(tmp_path / made.name, OWNER), made)


@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans(), flip=st.integers(1, 255))
@settings(max_examples=60, deadline=None)
def test_no_damage_passes(tmp_path_factory: pytest.TempPathFactory, place: float, cut: bool, flip: int) -> None:
    path = tmp_path_factory.mktemp("damage") / "chunk.kv"
    write_record(path, record(2, tokens=5))
    raw = bytearray(path.read_bytes())
    at = int(place * len(raw))
    if cut:
        del raw[at:]
    else:
        raw[at] ^= flip
    path.write_bytes(raw)
    with pytest.raises(WorkspaceError, match="not a chunk"):
        read_record(path, OWNER)


def test_somebody_elses_is_refused(tmp_path: Path) -> None:
    made = record(1)
    write_record(tmp_path / made.name, made)
    with pytest.raises(WorkspaceError, match="another model, tenant"):
        read_record(tmp_path / made.name, b"p" * 16)


def test_chunks_outlive_the_store_and_damaged_ones_are_deleted(tmp_path: Path) -> None:
    store = ChunkStore(1 << 20, tmp_path)
    made = [record(seed) for seed in range(3)]
    for each in made:
        store.add(each)
    store.close()
    path = tmp_path / made[1].name
    path.write_bytes(path.read_bytes()[:-1])
    later = ChunkStore(1 << 20, tmp_path)
    for each in made:
        assert later.variants(each.content) == []
        later.load(each.content, OWNER)
    assert same(later.variants(made[0].content)[0], made[0])
    assert later.variants(made[1].content) == [] and not path.exists()
    assert later.stats().damaged == 1
    later.close()


class FullDisk(storage.LocalDisk):
    def fsync(self, file: object) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_memory(tmp_path: Path) -> None:
    store = ChunkStore(1 << 20, tmp_path, disk=FullDisk())
    store.add(record(0))
    store.flush()
    store.add(record(1))
    store.close()
    assert store.variants(record(1).content) and store.stats().files == 0 and store.stats().unwritten >= 1
    assert list(tmp_path.glob("*.kv")) == []


def test_memory_and_disk_keep_to_their_bounds(tmp_path: Path) -> None:
    size = record(0).nbytes
    store = ChunkStore(3 * size, tmp_path, disk_bytes=4 * size)
    made = [record(seed) for seed in range(6)]
    for each in made[:3]:
        store.add(each)
    for _ in range(2):
        store.used(made[0], 0.9)
    for each in made[3:]:
        store.add(each)
        store.flush()
    kept = {each.content for each in made if store.variants(each.content)}
    assert len(kept) == 3 and made[0].content in kept and store.stats().nbytes <= 3 * size
    assert store.stats().files == len(list(tmp_path.glob("*.kv"))) <= 4
    store.close()


def test_of_one_chunk_so_many_variants_are_kept() -> None:
    store = ChunkStore(1 << 30, max_variants=2)
    first = record(2)
    for number in range(4):
        content = {bytes([number] * 16): 1.0}
        store.add(ChunkRecord(OWNER, first.content, 0, content, first.outside, 0.5, first.data))
        store.used(store.variants(first.content)[0], 0.5)
    assert len(store.variants(first.content)) == 2


_WRITER = """
import sys
from pathlib import Path
from tests.serving.test_chunk_store import record
from windlass.serving.chunk_store import ChunkStore
store = ChunkStore(1 << 30, Path(sys.argv[1]))
print("ready", flush=True)
for seed in range(10_000):
    store.add(record(seed, tokens=200))
    store.flush()
"""


def test_kill_leaves_no_half_of_a_chunk(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "src")])
    for wait in (0.03, 0.11):
        child = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(wait)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    files = sorted(tmp_path.glob("*.kv"))
    assert files
    store = ChunkStore(1 << 30, tmp_path)
    by_content = {record(seed, tokens=200).content: seed for seed in range(len(files) + 2)}
    for path in files:
        seed = by_content[bytes.fromhex(path.name[:32])]
        assert same(read_record(path, OWNER), record(seed, tokens=200))
    assert {path.suffix for path in tmp_path.iterdir()} == {".kv"}
    store.close()
