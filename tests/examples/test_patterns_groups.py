"""The picture of docs/patterns.md is what its example draws."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_picture_is_the_examples():
    made = runpy.run_path(str(ROOT / "examples" / "patterns_groups.py"))["picture"]()
    kept = (ROOT / "docs" / "images" / "patterns_groups.svg").read_text(encoding="utf-8")
    words = re.compile(r"<text.*?</text>|<circle|<rect")
    assert words.findall(made) == words.findall(kept)
    assert "6 groups, found" in made
