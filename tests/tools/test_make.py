import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORDS = ("demo", "test", "lint", "fix", "floors", "bench", "docs", "clean")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*words, folder=ROOT):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, env=environment)
    return done


@pytest.fixture
def checkout(tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_make_alone_lists_the_words():
    output = make().stdout
    for word in ("help", *WORDS):
        assert re.search(rf"^  make {word} +\S", output, re.M), word


@pytest.mark.parametrize("word", WORDS)
def test_only_test_and_checks_want_the_dev_extra(checkout, word):
    plan = make("-n", word, f"ARGS=--{word}-flag", folder=checkout).stdout
    assert ("'.[dev]'" in plan) == (word in ("test", "lint", "fix", "floors", "bench"))
    assert ("--editable . " in plan) == (word in ("demo", "docs"))
    assert "torch" not in plan
    if word in ("demo", "test", "bench"):
        assert f"--{word}-flag" in plan


def test_nothing_is_installed_twice(checkout):
    (checkout / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", "core.stamp", "dev.stamp"):
        (checkout / ".venv" / name).write_text("", encoding="utf-8")
    assert "pip install" not in make("-n", "demo", "test", folder=checkout).stdout
    os.utime(checkout / ".venv" / "dev.stamp", (0, 0))
    assert "pip install" in make("-n", "test", folder=checkout).stdout, "pyproject.toml is younger"


def test_an_old_or_missing_python_is_told(checkout):
    done = make("demo", "PYTHON=no-such-python", folder=checkout)
    assert done.returncode != 0
    assert "no-such-python is missing or older than Python 3.11" in done.stderr
    assert not (checkout / ".venv").exists()


def test_ci_runs_every_stage_and_ends_with_the_tests():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "set -euo pipefail" in script
    stages = re.findall(r"^(?:stage )?(make .+)$", script, re.M)
    assert stages == ["make demo ARGS=--no-web", "make lint", "make floors", "make test"]
    assert script.strip().endswith("make test")
