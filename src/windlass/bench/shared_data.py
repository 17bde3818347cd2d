"""Public data that some benchmarks read, where somebody has it: the folder that `WINDLASS_SHARED_DATA` names."""

from __future__ import annotations

import os
from pathlib import Path

from windlass.core.errors import DataMissing


def find_shared(name: str) -> Path | None:
    """A file or folder by its path in the shared data, with slashes; None where it is not."""
    root = os.environ.get("WINDLASS_SHARED_DATA", "")
    path = Path(root) / name
    return path if root and path.exists() else None


def shared_path(name: str) -> Path:
    """As `find_shared`, for those who cannot do without.

    Raises:
        DataMissing: It is not there.
    """
    path = find_shared(name)
    if path is None:
        raise DataMissing(
            f"this benchmark needs {name} of the shared data", hint="set WINDLASS_SHARED_DATA to its folder"
        )
    return path
