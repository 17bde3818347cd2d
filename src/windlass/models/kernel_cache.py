"""Kernels as machine code on disk: made once by processes of their own, loaded in milliseconds by all later ones.

Compiling holds the interpreter for seconds at a time and leaves a hundred megabytes behind, so it is done by children;
whoever waits for them can be interrupted. Without object files for this system, Numba compiles in this process and
keeps its own cache. What earlier versions left in the user's cache is removed here, too.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib import import_module
from pathlib import Path

from windlass.core import storage
from windlass.core.tasks import usable_cores
from windlass.kernels import machine_code
from windlass.kernels.cache_folder import cache_folder
from windlass.kernels.machine_code import Kernel, UnknownCode

UNUSED_DAYS = 7
"""Another installation may still read its folder; one that nobody has read for so long is left over."""
MOST_CHILDREN = 4
_MARK = b"windlass kernel 1"
_COMPILE = "import sys; from windlass.models.kernel_cache import compile_kernels; compile_kernels(sys.argv[1:])"

_loaded: dict[str, Kernel] = {}


def kernels(names: Sequence[str]) -> list[Kernel]:
    """Kernels by name, `module:NAME` of a `Compiled` each; read from disk, or compiled now.

    Example:
        forward, = kernels(["windlass.models.cpu_step:FORWARD"])
    """
    missing = [name for name in names if name not in _loaded and not _load(name)]
    if missing and machine_code.SUPPORTED:
        with _compiling():
            _compile_in_children([name for name in missing if not _load(name)])
        missing = [name for name in missing if not _load(name)]
    for name in missing:
        _loaded[name] = Kernel(_compiled(name).address())
    return [_loaded[name] for name in names]


def prepare() -> None:
    """Compile the decoder's and the encoder's kernels where they are missing, so that no first use waits for it."""
    from windlass.models import cpu_bert, cpu_engine, cpu_packing

    kernels((*cpu_engine.KERNELS, *cpu_packing.KERNELS, *cpu_bert.KERNELS))


def compile_kernels(names: Sequence[str]) -> None:
    """Compile here and write the machine code where `kernels` looks for it."""
    storage.make_folder(_folder())
    for name in names:
        symbol, code = _compiled(name).machine_code()
        body = symbol.encode() + b"\n" + code
        storage.write_atomic(_path(name), b"\n".join((_MARK, sha256(body).hexdigest().encode(), body)))


def _compiled(name: str):  # type: ignore[no-untyped-def]
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _folder() -> Path:
    return cache_folder() / "objects"


def _path(name: str) -> Path:
    return _folder() / (name.replace(":", ".") + ".o")


def _load(name: str) -> bool:
    """Whether there is machine code of this name; from then on it is loaded."""
    try:
        mark, digest, body = _path(name).read_bytes().split(b"\n", 2)
        if mark != _MARK or sha256(body).hexdigest().encode() != digest:
            return False
        symbol, _, code = body.partition(b"\n")
        _loaded[name] = Kernel(machine_code.load(code, symbol.decode()))
    except (OSError, ValueError, UnknownCode):
        return False
    return True


def _compile_in_children(names: Sequence[str]) -> None:
    """Share `names` among processes; what they do not manage is missing afterwards."""
    count = min(usable_cores(), MOST_CHILDREN, len(names))
    commands = [[sys.executable, "-c", _COMPILE, *names[start::count]] for start in range(count)]
    children = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    try:
        for child in children:
            child.wait()
    finally:
        for child in children:
            child.kill()
            child.wait()


@contextmanager
def _compiling() -> Iterator[None]:
    """One process at a time; the others find everything done when it is their turn."""
    storage.make_folder(_folder())
    with (_folder() / "lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clear_old_kernels(current: Path | None = None) -> int:
    """Remove compiled kernels of other versions that were neither read nor written for a week.

    Args:
        current: The folder in use, whose neighbours are looked at; None takes that of this process.

    Returns:
        Bytes that became free.
    """
    if current is None:
        current = cache_folder()
    freed = 0
    for folder in current.parent.iterdir() if current.parent.is_dir() else ():
        if folder == current or folder.is_symlink() or not _looks_like_ours(folder):
            continue
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
        used = max((max(file.st_atime, file.st_mtime) for file in files), default=folder.stat().st_mtime)
        if time.time() - used > UNUSED_DAYS * 24 * 3600:
            shutil.rmtree(folder, ignore_errors=True)
            freed += sum(file.st_size for file in files)
    return freed


def _looks_like_ours(folder: Path) -> bool:
    name = folder.name
    return folder.is_dir() and len(name) == 16 and set(name) <= set("0123456789abcdef") and os.access(folder, os.W_OK)
