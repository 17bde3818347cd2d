"""Kernels are compiled once, by others; damage is repaired; only what is surely left over is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from windlass.kernels import machine_code
from windlass.models.kernel_cache import clear_old_kernels

LOAD = """
import sys
from windlass.models.kernel_cache import kernels
found = kernels(["windlass.kernels.tile_packing:PACK_CODES"])
print(found[0].address != 0, "numba" in sys.modules)
"""


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


@pytest.mark.skipif(not machine_code.SUPPORTED, reason="elsewhere Numba keeps its own cache")
def test_children_compile_and_damage_is_repaired(tmp_path: Path) -> None:
    def load() -> list[str]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        run = subprocess.run(
            [sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return run.stdout.split()

    assert load() == ["True", "False"]
    (made,) = tmp_path.glob("*/objects/*.o")
    good = made.read_bytes()
    made.write_bytes(good[: len(good) // 2])
    assert load() == ["True", "False"]
    assert made.read_bytes() == good
    made.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    stamp = made.stat().st_mtime_ns
    assert load() == ["True", "False"] and made.stat().st_mtime_ns != stamp
