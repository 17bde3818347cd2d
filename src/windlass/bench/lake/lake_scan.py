"""`lake-scan`: what a second look at an unchanged folder costs, against `git status` and against hashing everything.

`git status` is run on the same files, committed, with the index it keeps; hashing is the same BLAKE2b, one file after
the other. The scan is called in this process, as `up` calls it; `git` is a process of its own, and its start counts,
as it does for whoever types it. Both compare size, times and inode. The kernels are loaded, as in the process that
serves the folder; a row says what the scan takes without them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from windlass.bench.harness import BenchContext, compare
from windlass.bench.report import BenchReport, Metric, metric
from windlass.core.randomness import bits_array, rand
from windlass.core.workspace import Workspace
from windlass.kernels import folder_listing  # noqa: F401  (loaded, as in a process that searches)
from windlass.lake import scan
from windlass.lake.look import look_into
from windlass.lake.scan import Catalog

_FILES, _QUICK_FILES = 10_000, 3_000
_A_FOLDER = 100
_RACY_SECONDS = 2.5
_GIT = ["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "core.fsmonitor=false"]


def run(context: BenchContext) -> BenchReport:
    folder = context.workdir / "tree"
    files = _QUICK_FILES if context.quick else _FILES
    size = make_tree(folder, files, context.seed)
    git = git_status(folder) if shutil.which("git") else None
    metrics: list[Metric] = []
    with Workspace.open(folder, state=context.workdir / "state") as workspace, workspace.acquire():

        def first() -> int:
            with workspace.transaction() as connection:
                connection.execute("DELETE FROM files")
                connection.execute("DELETE FROM folders")
            return Catalog(workspace).scan().hashed

        metrics += compare(first, lambda: hash_all(folder), progress=context.progress).metrics(
            "first scan, stored", peer_name="hashing in a loop, not stored"
        )
        _wait_until_settled()
        Catalog(workspace).scan()

        def again() -> int:
            return Catalog(workspace).scan().hashed

        rehash = compare(again, lambda: hash_all(folder), progress=context.progress)
        metrics += rehash.metrics("unchanged scan", peer_name="hashing again", least_ratio=20)
        beside = compare(again, git, repeats=5, progress=context.progress)
        metrics += beside.metrics("unchanged scan, beside git", peer_name="git status", least_ratio=1 / 1.5)
        metrics.append(without_kernels(again, rehash.ours.wall_median, context))
        metrics.append(floor(folder, beside.ours.wall_median, context))
        metrics.append(ten_changed(workspace, folder, beside.ours.wall_median))
        metrics.append(metric("files hashed again", "", float(beside.ours.result), better="lower", most=0))
    return context.report(
        mode="measured",
        workload=f"{files:,} files of {size / 1e6:.0f} MB in folders of {_A_FOLDER}, one in twenty a copy",
        metrics=metrics,
    )


def without_kernels(again: Callable[[], int], ours: float, context: BenchContext) -> Metric:
    """The scan beside itself in a process that has loaded no compiled code, as a command that has just started."""
    with mock.patch.object(scan, "looks", lambda files: look_into):
        plain = compare(again, None, repeats=5, progress=context.progress).ours.wall_median
    return metric("unchanged scan, kernels loaded", "s", ours, better="lower", peer=plain, peer_name="not loaded")


def floor(folder: Path, ours: float, context: BenchContext) -> Metric:
    """The scan beside a bare walk in Python: `scandir` and one `stat` a file, nothing compared, nothing kept."""

    def walk() -> int:
        files, pending = 0, [str(folder)]
        while pending:
            with os.scandir(pending.pop()) as listing:
                for entry in listing:
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith("."):
                            pending.append(entry.path)
                    else:
                        entry.stat(follow_symlinks=False)
                        files += 1
        return files

    bare = compare(walk, None, repeats=5, progress=context.progress).ours.wall_median
    return metric("unchanged scan, beside a bare walk", "s", ours, better="lower", peer=bare, peer_name="scandir, stat")


def ten_changed(workspace: Workspace, folder: Path, unchanged: float) -> Metric:
    """What ten changed files add to an unchanged scan, beside hashing those ten."""
    paths = sorted(folder.rglob("*.bin"))
    chosen = paths[:: len(paths) // 10][:10]
    more, hashing = [], []
    for number in range(3):
        for path in chosen:
            path.write_bytes(path.read_bytes() + bytes([number]))
        started = time.perf_counter()
        for path in chosen:
            hashlib.blake2b(path.read_bytes(), digest_size=32).digest()
        hashing.append(time.perf_counter() - started)
        _wait_until_settled()
        started = time.perf_counter()
        assert len(Catalog(workspace).scan().changed) == len(chosen)
        more.append(time.perf_counter() - started - unchanged)
    ours, peer = max(statistics.median(more), 0.0), statistics.median(hashing)
    return metric(
        "ten files changed, beyond an unchanged scan",
        "s",
        ours,
        better="lower",
        peer=peer,
        peer_name="hashing the ten",
        least_ratio=0.5,
        note="stored in two transactions, each safe on disk",
    )


def make_tree(folder: Path, files: int, seed: int) -> int:
    """Files of 0.2 to 200 KB, as many of every order of size; returns their bytes."""
    total = 0
    block = bits_array(seed, "content", size=30_000).tobytes()
    for number in range(files):
        content = number - 1 if number % 20 == 19 else number
        length = int(200 * 1000 ** rand(seed, content))
        path = folder / f"part{number // _A_FOLDER:03}" / f"file{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = int(rand(seed, content, "start") * 30_000)
        path.write_bytes(str(content).encode() + block[start : start + length])
        total += path.stat().st_size
    return total


def hash_all(folder: Path) -> int:
    """Hash every file, one after the other."""
    digests = {path: hashlib.blake2b(path.read_bytes(), digest_size=32).digest() for path in folder.rglob("*.bin")}
    return len(digests)


def git_status(folder: Path) -> Callable[[], int]:
    """Commit the folder and return a call of `git status`."""
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "tree"]):
        subprocess.run([*_GIT, "-C", str(folder), *words], check=True, capture_output=True)

    def status() -> int:
        done = subprocess.run([*_GIT, "-C", str(folder), "status", "--porcelain"], check=True, capture_output=True)
        return len(done.stdout)

    return status


def _wait_until_settled() -> None:
    """A file that was just written counts as racy, and is hashed again by git as by us."""
    time.sleep(_RACY_SECONDS)
