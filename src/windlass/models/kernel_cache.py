"""What earlier versions of the kernels left in the user's cache, and its removal."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

UNUSED_DAYS = 7
"""Another installation may still read its folder; one that nobody has read for so long is left over."""


def clear_old_kernels(current: Path | None = None) -> int:
    """Remove compiled kernels of other versions that were neither read nor written for a week.

    Args:
        current: The folder in use, whose neighbours are looked at; None takes that of this process.

    Returns:
        Bytes that became free.
    """
    if current is None:
        from windlass.kernels.compiled import cache_folder

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
