"""Processes that tests start to kill, to stop, or to be somebody else."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


class Child:
    """A forked process that runs `work(say)`; what it says comes out of `lines`."""

    def __init__(self, work: Callable[[Callable[[str], None]], object]) -> None:
        reads, writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reads)
            status = 1
            try:
                work(lambda line: os.write(writes, f"{line}\n".encode()) and None)
                status = 0
            finally:
                os._exit(status)
        os.close(writes)
        self._output = os.fdopen(reads, "r")
        self._ended = False

    def line(self) -> str:
        return self._output.readline().strip()

    def kill(self) -> list[str]:
        """End it at once; returns what it had said and nobody had read."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()[1]

    def wait(self) -> tuple[int, list[str]]:
        lines = self._output.read().splitlines()
        self._output.close()
        self._ended = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), lines

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._ended:
            self.kill()


@contextlib.contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory where there is such a place: for what is synced often and need not outlive the machine."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def folder_of_somebody_else(mode: int) -> Iterator[Path]:
    """A folder outside pytest's own (which only its owner may enter)."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "files").mkdir()
        (folder / "home").mkdir()
        folder.chmod(0o755)
        (folder / "home").chmod(0o777)
        (folder / "files").chmod(mode)
        yield folder
    finally:
        (folder / "files").chmod(0o755)
        shutil.rmtree(folder)


def as_nobody() -> None:
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
