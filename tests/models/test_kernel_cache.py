"""Only what is surely left over is removed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from windlass.models.kernel_cache import clear_old_kernels


def folder(root: Path, name: str, days: float) -> Path:
    made = root / name / "kernels_1"
    made.mkdir(parents=True)
    (made / "a.nbc").write_bytes(b"x" * 100)
    stamp = time.time() - days * 24 * 3600
    os.utime(made / "a.nbc", (stamp, stamp))
    return root / name


def test_old_folders_go_and_others_stay(tmp_path: Path) -> None:
    old, recent = folder(tmp_path, "0123456789abcdef", 30), folder(tmp_path, "00000000000000aa", 2)
    current, foreign = folder(tmp_path, "ffffffffffffffff", 30), folder(tmp_path, "something-else", 300)
    link = tmp_path / "aaaaaaaaaaaaaaaa"
    link.symlink_to(foreign)
    assert clear_old_kernels(current) == 100
    assert not old.exists() and all(kept.exists() for kept in (recent, current, foreign, link))
    assert clear_old_kernels(current) == 0


def test_nothing_to_look_at(tmp_path: Path) -> None:
    assert clear_old_kernels(tmp_path / "none" / "ffffffffffffffff") == 0
