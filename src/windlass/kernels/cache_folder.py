"""Where compiled kernels are kept: a folder named by their sources, the versions and the instruction set.

Numba itself looks at the file of the called function only, and would run stale code after an edit of a function that
is inlined from another file.
"""

from __future__ import annotations

import os
from functools import cache
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from platformdirs import user_cache_path

from windlass.kernels.isa import ISA, processor

SOURCES = ("kernels/*.py", "models/cpu_*.py")


@cache
def cache_folder() -> Path:
    """Of this version of the kernels, for this kind of processor; below the user cache directory."""
    digest = sha256(f"{version('numba')} {version('llvmlite')} {ISA}".encode())
    digest.update(repr((processor()[0], sorted(processor()[1]))).encode())
    package = Path(__file__).parent.parent
    for path in sorted(path for pattern in SOURCES for path in package.glob(pattern)):
        digest.update(path.read_bytes())
    root = os.environ.get("NUMBA_CACHE_DIR")
    base = Path(root) if root else user_cache_path("windlass") / "numba"
    return base / digest.hexdigest()[:16]
