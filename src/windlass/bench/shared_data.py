"""Public data that some benchmarks read, where somebody has it."""

from __future__ import annotations

import os
from pathlib import Path

from windlass.core.errors import NotFound


def shared_path(name: str) -> Path:
    """A file or folder under the one that `WINDLASS_SHARED_DATA` names.

    Args:
        name: Relative, with slashes.

    Raises:
        NotFound: It is not there.
    """
    root = os.environ.get("WINDLASS_SHARED_DATA", "")
    path = Path(root) / name
    if not root or not path.exists():
        raise NotFound(f"this benchmark needs {name} of the shared data", hint="set WINDLASS_SHARED_DATA to its folder")
    return path
